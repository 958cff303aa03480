//! Cuts a stream of bytes into PDUs, incrementally.

use bytes::{Buf, BytesMut};

use super::pdu::{Digests, HEADER, Header, Pdu, digest, padding};

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
    /// A header that does not match its digest: nothing in it can be trusted, not even its length (RFC 7143 §7.7).
    #[error("a header that does not match its digest")]
    HeaderDigest,
}

/// Takes the next whole PDU off the front of `input`; `None` while it is not all there.
///
/// The data segment is split off `input`, not copied; [`missing`] tells how much room the next PDU wants. A data segment
/// that does not match its digest is said to be so in [`Pdu::intact`]: its framing is sound, and what follows can be read.
///
/// # Errors
/// See [`FrameError`].
pub fn next(input: &mut BytesMut, limit: u32, digests: Digests) -> Result<Option<Pdu>, FrameError> {
    let Some((header, _)) = input.split_first_chunk::<HEADER>() else { return Ok(None) };
    let header = Header(*header);
    let headers = HEADER + header.ahs_length();
    if digests.header {
        let Some(sent) = input.get(headers..headers + digests.of_header()) else { return Ok(None) };
        if sent != digest(&input[..headers]) {
            return Err(FrameError::HeaderDigest);
        }
    }
    let claimed = header.data_length();
    if claimed > limit {
        return Err(FrameError::TooLong { claimed, limit });
    }
    let data = claimed as usize;
    let whole = whole(&header, digests);
    if input.len() < whole {
        return Ok(None);
    }
    let padded = data + padding(data);
    let at = headers + digests.of_header();
    let intact = digests.of_data(data) == 0 || input[at + padded..whole] == digest(&input[at..at + padded]);
    input.advance(HEADER);
    let ahs = input.split_to(headers - HEADER).freeze();
    input.advance(digests.of_header());
    let segment = input.split_to(data).freeze();
    input.advance(whole - at - data);
    Ok(Some(Pdu { header, ahs, data: segment, intact }))
}

/// Bytes that the PDU at the front of `input`, which [`next`] found not to be whole, still lacks as far as is known; room for
/// them may be made. A stranger's number makes it at most `limit` and a kilobyte.
#[must_use]
pub fn missing(input: &[u8], limit: u32, digests: Digests) -> usize {
    let Some((header, _)) = input.split_first_chunk::<HEADER>() else { return HEADER - input.len() };
    let header = Header(*header);
    // At most 1,020 bytes of additional headers: that much may be waited for on the word of a header that is not checked.
    let checked = HEADER + header.ahs_length() + digests.of_header();
    let known = if input.len() < checked || header.data_length() > limit { checked } else { whole(&header, digests) };
    known.saturating_sub(input.len())
}

/// Whether a whole PDU lies at the front of `input`.
#[must_use]
pub fn is_whole(input: &[u8], digests: Digests) -> bool {
    input.split_first_chunk::<HEADER>().is_some_and(|(header, _)| input.len() >= whole(&Header(*header), digests))
}

/// Bytes of a PDU by its header.
fn whole(header: &Header, digests: Digests) -> usize {
    header.ahs_length() + digests.wire_length(header.data_length() as usize)
}

#[cfg(test)]
mod tests {
    use super::super::pdu;
    use super::*;
    use proptest::prelude::*;

    const LIMIT: u32 = 4096;

    fn digests() -> impl Strategy<Value = Digests> {
        (any::<bool>(), any::<bool>()).prop_map(|(header, data)| Digests { header, data })
    }

    /// One PDU as bytes, with additional headers of so many words.
    fn encoded(ahs: u8, segment: &[u8], digests: Digests) -> Vec<u8> {
        let mut header = Header::new(pdu::opcode::NOP_OUT, pdu::FINAL);
        header.0[4] = ahs;
        header.set_data_length(u32::try_from(segment.len()).unwrap());
        let mut bytes = header.0.to_vec();
        bytes.resize(HEADER + usize::from(ahs) * 4, 0x5A);
        if digests.header {
            bytes.extend_from_slice(&digest(&bytes));
        }
        let mut data = segment.to_vec();
        data.resize(segment.len().next_multiple_of(4), 0);
        bytes.extend_from_slice(&data);
        if digests.data && !data.is_empty() {
            bytes.extend_from_slice(&digest(&data));
        }
        bytes
    }

    proptest! {
        #[test]
        fn pdus_come_out_as_they_went_in_however_the_stream_is_cut(
            segments in prop::collection::vec((0_u8..4, prop::collection::vec(any::<u8>(), 0..300)), 1..6),
            cuts in prop::collection::vec(1_usize..97, 1..64),
            digests in digests(),
        ) {
            let stream: Vec<u8> = segments.iter().flat_map(|(ahs, data)| encoded(*ahs, data, digests)).collect();
            let (mut input, mut seen, mut at) = (BytesMut::new(), Vec::new(), 0);
            for cut in cuts.iter().cycle() {
                let end = stream.len().min(at + cut);
                let lacks = missing(&input, LIMIT, digests);
                prop_assert!(lacks > 0 && lacks <= stream.len() - at, "{lacks} of {}", stream.len() - at);
                input.extend_from_slice(&stream[at..end]);
                at = end;
                while is_whole(&input, digests) {
                    let pdu = next(&mut input, LIMIT, digests).unwrap().expect("it is whole");
                    prop_assert!(pdu.intact);
                    seen.push((u8::try_from(pdu.ahs.len() / 4).unwrap(), pdu.data.to_vec()));
                }
                prop_assert!(next(&mut input, LIMIT, digests).unwrap().is_none());
                if at == stream.len() {
                    break;
                }
            }
            prop_assert_eq!(seen, segments);
            prop_assert!(input.is_empty());
        }

        #[test]
        fn one_wrong_bit_is_seen_by_the_digest_that_covers_it(
            ahs in 0_u8..3, segment in prop::collection::vec(any::<u8>(), 1..300), bit: prop::sample::Index,
        ) {
            let both = Digests { header: true, data: true };
            let mut bytes = encoded(ahs, &segment, both);
            let headers = HEADER + usize::from(ahs) * 4 + 4;
            let bit = bit.index(bytes.len() * 8);
            bytes[bit / 8] ^= 1 << (bit % 8);
            bytes.resize(bytes.len() + 2048, 0); // a header that claims more has that to wait for
            match next(&mut BytesMut::from(&bytes[..]), LIMIT, both) {
                Err(FrameError::HeaderDigest) => prop_assert!(bit / 8 < headers),
                Ok(Some(pdu)) => prop_assert!(bit / 8 >= headers && !pdu.intact),
                other => prop_assert!(false, "{:?}", other),
            }
        }

        #[test]
        fn strangers_bytes_never_want_more_room_than_the_limit(
            bytes in prop::collection::vec(any::<u8>(), 0..200), digests in digests(),
        ) {
            let mut input = BytesMut::from(&bytes[..]);
            while let Ok(Some(_)) = next(&mut input, LIMIT, digests) {}
            prop_assert!(missing(&input, LIMIT, digests) <= HEADER + 255 * 4 + LIMIT as usize + 12);
        }
    }
}
