//! Cuts a stream of bytes into PDUs, incrementally.

use bytes::{Buf, BytesMut};

use super::pdu::{HEADER, Header, Pdu, padding};

/// A PDU that cannot be taken. The stream's framing is lost: the connection must be closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// A data segment longer than was declared (RFC 7143 §13.12).
    #[error("a data segment of {claimed} bytes, where at most {limit} were agreed on")]
    TooLong {
        /// Its length by its header.
        claimed: u32,
        /// The longest that we declared to take.
        limit: u32,
    },
}

/// Takes the next whole PDU off the front of `input`; `None` while it is not all there.
///
/// The data segment is split off `input`, not copied. Space for a PDU is reserved only once its header is known to keep
/// to the limit, so a stranger's number never allocates more than `limit`.
///
/// # Errors
/// See [`FrameError`].
pub fn next(input: &mut BytesMut, limit: u32) -> Result<Option<Pdu>, FrameError> {
    let Some((header, _)) = input.split_first_chunk::<HEADER>() else {
        input.reserve(HEADER);
        return Ok(None);
    };
    let header = Header(*header);
    let claimed = header.data_length();
    if claimed > limit {
        return Err(FrameError::TooLong { claimed, limit });
    }
    let data = claimed as usize;
    let ahs = header.ahs_length();
    let whole = whole(&header);
    if input.len() < whole {
        input.reserve(whole - input.len());
        return Ok(None);
    }
    input.advance(HEADER + ahs);
    let segment = input.split_to(data).freeze();
    input.advance(padding(data));
    Ok(Some(Pdu { header, ahs: ahs > 0, data: segment }))
}

/// Whether a whole PDU lies at the front of `input`.
#[must_use]
pub fn is_whole(input: &[u8]) -> bool {
    input.split_first_chunk::<HEADER>().is_some_and(|(header, _)| input.len() >= whole(&Header(*header)))
}

/// Bytes of a PDU by its header.
fn whole(header: &Header) -> usize {
    let data = header.data_length() as usize;
    HEADER + header.ahs_length() + data + padding(data)
}

#[cfg(test)]
mod tests {
    use super::super::pdu;
    use super::*;
    use proptest::prelude::*;

    const LIMIT: u32 = 4096;

    proptest! {
        #[test]
        fn pdus_come_out_as_they_went_in_however_the_stream_is_cut(
            segments in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..300), 1..6),
            cuts in prop::collection::vec(1_usize..97, 1..64),
        ) {
            let mut stream = Vec::new();
            for segment in &segments {
                pdu::append(&mut stream, Header::new(pdu::opcode::NOP_OUT, pdu::FINAL), segment);
            }
            let (mut input, mut seen, mut at) = (BytesMut::new(), Vec::new(), 0);
            for cut in cuts.iter().cycle() {
                let end = stream.len().min(at + cut);
                input.extend_from_slice(&stream[at..end]);
                at = end;
                while let Some(pdu) = next(&mut input, LIMIT).unwrap() {
                    seen.push(pdu.data.to_vec());
                }
                if at == stream.len() {
                    break;
                }
            }
            prop_assert_eq!(seen, segments);
            prop_assert!(input.is_empty());
        }

        #[test]
        fn strangers_bytes_never_reserve_more_than_the_limit(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let mut input = BytesMut::from(&bytes[..]);
            while let Ok(Some(_)) = next(&mut input, LIMIT) {}
            prop_assert!(input.capacity() <= 200 + HEADER + 255 * 4 + LIMIT as usize + 4);
        }
    }
}
