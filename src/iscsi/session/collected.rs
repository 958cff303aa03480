//! The write data of one command as it comes in.

use bytes::{Bytes, BytesMut};

/// Later pieces up to this size are copied together. A piece on its own costs a handle, and keeps the receive buffer that
/// it was cut from: initiators that send 512 bytes at a time, or one, must not make us hold more than they sent.
const SMALL: usize = 8192;

/// Pieces of data, in order.
#[derive(Debug, Default)]
pub(super) struct Collected {
    pieces: Vec<Bytes>,
    small: BytesMut,
}

impl Collected {
    /// Nothing yet, to be kept in an old list of pieces.
    pub(super) fn in_old(pieces: Vec<Bytes>) -> Self {
        debug_assert!(pieces.is_empty());
        Self { pieces, small: BytesMut::new() }
    }

    /// Adds what came next. The first piece is never copied: it is all that most commands have.
    pub(super) fn push(&mut self, piece: Bytes) {
        if piece.is_empty() {
            return;
        }
        if piece.len() <= SMALL && !self.pieces.is_empty() {
            return self.small.extend_from_slice(&piece);
        }
        self.close_small();
        self.pieces.push(piece);
    }

    /// All of it.
    pub(super) fn take(&mut self) -> Vec<Bytes> {
        self.close_small();
        std::mem::take(&mut self.pieces)
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.pieces.iter().map(Bytes::len).sum::<usize>() + self.small.len()
    }

    fn close_small(&mut self) {
        if !self.small.is_empty() {
            self.pieces.push(std::mem::take(&mut self.small).freeze());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn pieces_come_out_in_order_and_small_ones_together(
            lengths in prop::collection::vec(prop_oneof![0_usize..20, 8000_usize..9000], 0..60),
        ) {
            let (mut collected, mut all) = (Collected::default(), Vec::new());
            for (number, length) in (0_u8..).zip(&lengths) {
                collected.push(Bytes::from(vec![number; *length]));
                all.extend(vec![number; *length]);
            }
            let pieces = collected.take();
            prop_assert_eq!(pieces.concat(), all);
            let large = lengths.iter().filter(|length| **length > SMALL).count();
            prop_assert!(pieces.len() <= 2 * large + 2, "{} pieces of {:?}", pieces.len(), lengths);
            prop_assert!(collected.take().is_empty());
        }
    }
}
