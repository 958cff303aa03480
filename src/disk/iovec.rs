//! Cursors over the buffers of one request: the next so many bytes, as buffers, without copying.

use std::io::{IoSlice, IoSliceMut};

/// Bytes in all the buffers of a read.
pub(super) fn room(bufs: &[IoSliceMut<'_>]) -> u64 {
    bufs.iter().map(|buf| buf.len() as u64).sum()
}

/// Bytes in all the buffers of a write.
pub(super) fn len(bufs: &[IoSlice<'_>]) -> u64 {
    bufs.iter().map(|buf| buf.len() as u64).sum()
}

/// Hands out the buffers of a read piece by piece.
pub(super) struct Scatter<'a, 'b> {
    rest: std::slice::IterMut<'a, IoSliceMut<'b>>,
    current: &'a mut [u8],
}

impl<'a, 'b> Scatter<'a, 'b> {
    pub(super) fn new(bufs: &'a mut [IoSliceMut<'b>]) -> Self {
        Self { rest: bufs.iter_mut(), current: &mut [] }
    }

    /// The next `len` bytes; fewer where the buffers end.
    pub(super) fn take(&mut self, mut len: u64) -> Vec<IoSliceMut<'a>> {
        let mut taken = Vec::new();
        while len > 0 {
            if self.current.is_empty() {
                match self.rest.next() {
                    Some(buf) => self.current = buf,
                    None => break,
                }
            }
            let current = std::mem::take(&mut self.current);
            let cut = current.len().min(usize::try_from(len).unwrap_or(usize::MAX));
            let (head, tail) = current.split_at_mut(cut);
            self.current = tail;
            len -= cut as u64;
            if cut > 0 {
                taken.push(IoSliceMut::new(head));
            }
        }
        taken
    }
}

/// Hands out the buffers of a write piece by piece.
pub(super) struct Gather<'a> {
    rest: std::slice::Iter<'a, IoSlice<'a>>,
    current: &'a [u8],
}

impl<'a> Gather<'a> {
    pub(super) fn new(bufs: &'a [IoSlice<'a>]) -> Self {
        Self { rest: bufs.iter(), current: &[] }
    }

    /// The next `len` bytes; fewer where the buffers end.
    pub(super) fn take(&mut self, mut len: u64) -> Vec<IoSlice<'a>> {
        let mut taken = Vec::new();
        while len > 0 {
            if self.current.is_empty() {
                match self.rest.next() {
                    Some(buf) => self.current = buf,
                    None => break,
                }
            }
            let (head, tail) =
                self.current.split_at(self.current.len().min(usize::try_from(len).unwrap_or(usize::MAX)));
            self.current = tail;
            len -= head.len() as u64;
            if !head.is_empty() {
                taken.push(IoSlice::new(head));
            }
        }
        taken
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_cross_buffers_and_skip_empty_ones() {
        let (mut a, mut b, mut c) = ([1u8; 3], [0u8; 0], [2u8; 4]);
        let mut bufs = [IoSliceMut::new(&mut a), IoSliceMut::new(&mut b), IoSliceMut::new(&mut c)];
        let mut scatter = Scatter::new(&mut bufs);
        let lengths = |pieces: Vec<IoSliceMut<'_>>| pieces.iter().map(|p| p.len()).collect::<Vec<_>>();
        assert_eq!(lengths(scatter.take(2)), [2]);
        assert_eq!(lengths(scatter.take(3)), [1, 2]);
        assert_eq!(lengths(scatter.take(9)), [2]);

        let (a, c) = ([1u8; 3], [2u8; 4]);
        let bufs = [IoSlice::new(&a), IoSlice::new(&[]), IoSlice::new(&c)];
        let mut gather = Gather::new(&bufs);
        let bytes = |pieces: Vec<IoSlice<'_>>| pieces.iter().flat_map(|p| p.to_vec()).collect::<Vec<_>>();
        assert_eq!(bytes(gather.take(4)), [1, 1, 1, 2]);
        assert_eq!(bytes(gather.take(4)), [2, 2, 2]);
    }
}
