//! How the data of a read is cut into Data-In PDUs (RFC 7143 §11.7).

use std::io::IoSliceMut;
use std::ops::Range;

use super::super::pdu::{Digests, HEADER};

/// The shape of a read's answer: a buffer of headers and data segments that lies as it will be sent, so that the disk is
/// read straight into it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Layout {
    /// Bytes of data.
    pub length: usize,
    segment: usize,
    burst: usize,
    digests: Digests,
}

/// One PDU of a layout.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Segment {
    /// Where its header begins in the buffer.
    pub(super) at: usize,
    /// Where its data begins in the buffer.
    pub(super) data_at: usize,
    /// Where its data begins in the command's data.
    pub(super) offset: usize,
    /// Bytes of data.
    pub(super) length: usize,
    /// It ends a burst.
    pub(super) ends_burst: bool,
}

impl Layout {
    /// `length` bytes in segments and bursts of at most these sizes; `segment` is a multiple of four.
    pub(super) fn new(length: usize, segment: usize, burst: usize, digests: Digests) -> Self {
        Self { length, segment, burst, digests }
    }

    pub(super) fn segments(self) -> impl Iterator<Item = Segment> {
        let (mut at, mut offset) = (0, 0);
        std::iter::from_fn(move || {
            let left_of_burst = self.burst - offset % self.burst;
            let length = self.segment.min(self.length - offset).min(left_of_burst);
            if length == 0 {
                return None;
            }
            let data_at = at + HEADER + self.digests.of_header();
            let segment = Segment { at, data_at, offset, length, ends_burst: length == left_of_burst };
            at += self.digests.wire_length(length);
            offset += length;
            Some(segment)
        })
    }

    /// Bytes of the whole answer.
    #[must_use]
    pub fn wire_length(self) -> usize {
        self.segments().last().map_or(0, |last| last.at + self.digests.wire_length(last.length))
    }

    /// Where the data goes in such a buffer if it goes in one piece.
    ///
    /// # Panics
    /// With a shorter buffer.
    pub fn one_segment(self, buffer: &mut [u8]) -> Option<&mut [u8]> {
        let mut segments = self.segments();
        let (segment, None) = (segments.next()?, segments.next()) else { return None };
        Some(&mut buffer[segment.data_at..segment.data_at + segment.length])
    }

    /// Where in a buffer the header of each PDU is, with its digest, and how many bytes of data come right behind it.
    pub fn headers(self) -> impl Iterator<Item = (Range<usize>, usize)> {
        self.segments().map(|segment| (segment.at..segment.data_at, segment.length))
    }

    /// Where the data goes in a buffer of [`Layout::wire_length`] bytes.
    ///
    /// # Panics
    /// With a shorter buffer.
    pub fn slices(self, buffer: &mut [u8]) -> Vec<IoSliceMut<'_>> {
        let (mut slices, mut rest, mut taken) = (Vec::new(), buffer, 0);
        for segment in self.segments() {
            let end = segment.data_at + segment.length;
            let (head, tail) = rest.split_at_mut(end - taken);
            taken = end;
            let start = head.len() - segment.length;
            slices.push(IoSliceMut::new(&mut head[start..]));
            rest = tail;
        }
        slices
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn segments_cover_the_data_once_and_keep_to_bursts(
            length in 0_usize..300_000, segment in (128_usize..70_000).prop_map(|s| s * 4), burst in 512_usize..300_000,
            header: bool, data: bool,
        ) {
            let layout = Layout::new(length, segment, burst, Digests { header, data });
            let mut covered = 0;
            for part in layout.segments() {
                prop_assert_eq!(part.offset, covered);
                prop_assert!(part.length > 0 && part.length <= segment);
                prop_assert_eq!(part.offset / burst, (part.offset + part.length - 1) / burst);
                covered += part.length;
            }
            prop_assert_eq!(covered, length);
            let mut buffer = vec![0; layout.wire_length()];
            let data: usize = layout.slices(&mut buffer).iter().map(|slice| slice.len()).sum();
            prop_assert_eq!(data, length);
        }
    }
}
