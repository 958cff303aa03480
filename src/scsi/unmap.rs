//! The parameter list of UNMAP (SBC-3 §5.28.2).

use super::sense::Sense;
use super::{Geometry, MAX_UNMAP, MAX_UNMAP_RANGES};

/// A range of bytes on the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ByteRange {
    /// First byte.
    pub offset: u64,
    /// How many.
    pub length: u64,
}

const HEADER: usize = 8;
const DESCRIPTOR: usize = 16;

/// The ranges that a parameter list frees on a disk of this geometry; empty ranges are left out.
///
/// # Errors
/// A list that ends within its header, more ranges or blocks than VPD page B0h allows, a range beyond the end.
pub fn parse(list: &[u8], disk: Geometry) -> Result<Vec<ByteRange>, Sense> {
    if list.is_empty() {
        return Ok(Vec::new()); // "not an error"
    }
    if list.len() < HEADER {
        return Err(Sense::PARAMETER_LIST_LENGTH);
    }
    let declared = usize::from(u16::from_be_bytes([list[2], list[3]]));
    // Whole descriptors that are declared and there; "a partial descriptor is ignored".
    let descriptors = list[HEADER..].chunks_exact(DESCRIPTOR).take(declared / DESCRIPTOR);
    if descriptors.len() > MAX_UNMAP_RANGES as usize {
        return Err(Sense::INVALID_FIELD_IN_PARAMETERS);
    }
    let mut ranges = Vec::with_capacity(descriptors.len());
    let mut total = 0_u64;
    for descriptor in descriptors {
        let (lba, rest) = descriptor.split_first_chunk::<8>().expect("a descriptor has 16 bytes");
        let (count, _) = rest.split_first_chunk::<4>().expect("a descriptor has 16 bytes");
        let (lba, count) = (u64::from_be_bytes(*lba), u64::from(u32::from_be_bytes(*count)));
        if lba.checked_add(count).is_none_or(|end| end > disk.blocks()) {
            return Err(Sense::LBA_OUT_OF_RANGE);
        }
        total += count;
        if count > 0 {
            ranges.push(disk.range(lba, count));
        }
    }
    if total > disk.limit(MAX_UNMAP).into() {
        return Err(Sense::INVALID_FIELD_IN_PARAMETERS);
    }
    Ok(ranges)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::Sectors;
    use crate::scsi::BLOCK;
    use proptest::prelude::*;

    fn disk(blocks: u64) -> Geometry {
        Geometry::new(blocks * BLOCK, Sectors::default())
    }

    fn list(ranges: &[(u64, u32)]) -> Vec<u8> {
        let length = u16::try_from(ranges.len() * DESCRIPTOR).unwrap();
        let mut list = vec![0; HEADER];
        list[0..2].copy_from_slice(&(length + 6).to_be_bytes());
        list[2..4].copy_from_slice(&length.to_be_bytes());
        for (lba, count) in ranges {
            list.extend_from_slice(&lba.to_be_bytes());
            list.extend_from_slice(&count.to_be_bytes());
            list.extend_from_slice(&[0; 4]);
        }
        list
    }

    #[test]
    fn ranges_are_read_and_empty_ones_are_fine_even_at_the_end() {
        let ranges = parse(&list(&[(8, 16), (100, 0)]), disk(100)).unwrap();
        assert_eq!(ranges, [ByteRange { offset: 8 * BLOCK, length: 16 * BLOCK }]);
        assert_eq!(parse(&[], disk(100)), Ok(Vec::new()));
    }

    #[test]
    fn blocks_are_as_large_as_the_disk_says() {
        let disk = Geometry::new(100 * 4096, Sectors { logical: 4096, physical: 4096 });
        assert_eq!(parse(&list(&[(8, 16)]), disk), Ok(vec![ByteRange { offset: 8 * 4096, length: 16 * 4096 }]));
        assert_eq!(parse(&list(&[(99, 2)]), disk), Err(Sense::LBA_OUT_OF_RANGE));
    }

    #[test]
    fn what_lies_beyond_the_end_is_refused() {
        for range in [(100, 1), (99, 2), (u64::MAX, 1), (u64::MAX, u32::MAX)] {
            assert_eq!(parse(&list(&[range]), disk(100)), Err(Sense::LBA_OUT_OF_RANGE), "{range:?}");
        }
        assert_eq!(parse(&[0; 7], disk(100)), Err(Sense::PARAMETER_LIST_LENGTH));
    }

    #[test]
    fn more_than_the_limits_of_page_b0_is_refused_and_a_partial_descriptor_is_ignored() {
        let (most, ranges) = (disk(0).limit(MAX_UNMAP), MAX_UNMAP_RANGES as usize);
        let blocks = disk(u64::from(most) * 2);
        assert!(parse(&list(&[(0, most)]), blocks).is_ok());
        assert_eq!(parse(&list(&[(0, most), (0, 1)]), blocks), Err(Sense::INVALID_FIELD_IN_PARAMETERS));
        assert_eq!(parse(&list(&vec![(0, 1); ranges]), blocks).unwrap().len(), ranges);
        assert_eq!(parse(&list(&vec![(0, 1); ranges + 1]), blocks), Err(Sense::INVALID_FIELD_IN_PARAMETERS));
        let two = list(&[(0, 1), (9, 1)]);
        for cut in 0..DESCRIPTOR {
            assert_eq!(parse(&two[..HEADER + DESCRIPTOR + cut], blocks).unwrap().len(), 1);
        }
        let mut declared_less = two;
        declared_less[3] = 31;
        assert_eq!(parse(&declared_less, blocks).unwrap().len(), 1);
    }

    proptest! {
        #[test]
        fn any_list_gives_ranges_within_the_disk(bytes: Vec<u8>, blocks in 0..1_u64 << 40) {
            for range in parse(&bytes, disk(blocks)).unwrap_or_default() {
                prop_assert!(range.offset + range.length <= blocks * BLOCK);
            }
        }
    }
}
