//! What is mapped and what is not: GET LBA STATUS (SBC-3 §5.6) and the log pages (SPC-4 §6.11; SBC-3 §6.3.4).

use super::Geometry;
use super::sense::Sense;
use crate::disk::Stretch;

/// Most descriptors in one answer of GET LBA STATUS: 1 KiB. An initiator that wants more asks again from where it ends.
pub const MAX_DESCRIPTORS: usize = 64;

/// Bytes that one unit of the log page's counts stands for.
const THRESHOLD: u64 = 1 << 20;

/// The same in blocks, as an exponent: VPD page B2h tells it.
#[must_use]
pub fn threshold_exponent(disk: Geometry) -> u8 {
    u8::try_from(disk.limit(THRESHOLD).ilog2()).expect("at most 31")
}

const HEADER: usize = 8;
const DESCRIPTOR: usize = 16;

/// How many descriptors fit an allocation length; at least one, for it may be cut.
#[must_use]
pub fn descriptors(allocation: u32) -> usize {
    let room = usize::try_from(allocation).unwrap_or(usize::MAX).saturating_sub(HEADER) / DESCRIPTOR;
    room.clamp(1, MAX_DESCRIPTORS)
}

/// GET LBA STATUS data in blocks of so many bytes: the first stretch begins at `lba`. A block of which a part takes space
/// is mapped.
#[must_use]
pub fn lba_status(block: u64, lba: u64, stretches: &[Stretch]) -> Vec<u8> {
    let mut data = vec![0; HEADER];
    let (mut bytes, mut told) = (0, 0);
    for stretch in stretches {
        /// Provisioning status: the blocks have no space of their own.
        const DEALLOCATED: u8 = 1;
        bytes += stretch.len;
        let end = if stretch.mapped { bytes.div_ceil(block) } else { bytes / block };
        let Some(blocks) = end.checked_sub(told).filter(|blocks| *blocks > 0) else { continue };
        // What does not fit the field is asked for anew.
        let count = u32::try_from(blocks).unwrap_or(u32::MAX);
        data.extend_from_slice(&(lba + told).to_be_bytes());
        data.extend_from_slice(&count.to_be_bytes());
        data.extend_from_slice(&[if stretch.mapped { 0 } else { DEALLOCATED }, 0, 0, 0]);
        told = end;
        if u64::from(count) < blocks {
            break;
        }
    }
    let length = u32::try_from(data.len() - 4).expect("the descriptors are bounded");
    data[..4].copy_from_slice(&length.to_be_bytes());
    data
}

/// What a log page needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LogPage {
    /// Nothing: here it is.
    Ready(Vec<u8>),
    /// How much of the disk is mapped, for [`resources`].
    Resources,
}

/// The page of logical block provisioning.
const PROVISIONING: u8 = 0x0C;
/// The parameter of it that is told: used resources.
const USED: u16 = 0x0002;
/// All subpages.
const ALL_SUBPAGES: u8 = 0xFF;

/// LOG SENSE of a page, from this parameter on.
///
/// # Errors
/// INVALID FIELD IN CDB for a page or parameter that there is not.
pub fn log_page(page: u8, subpage: u8, parameter: u16) -> Result<LogPage, Sense> {
    match (page, subpage) {
        (0x00, 0x00) if parameter == 0 => Ok(LogPage::Ready(vec![0x00, 0, 0, 2, 0x00, PROVISIONING])),
        (0x00, ALL_SUBPAGES) if parameter == 0 => {
            /// SPF: the page has a subpage code.
            const SPF: u8 = 0x40;
            let pairs = [0x00, 0x00, 0x00, ALL_SUBPAGES, PROVISIONING, 0x00];
            Ok(LogPage::Ready([&[SPF, ALL_SUBPAGES, 0, 6][..], &pairs].concat()))
        }
        (PROVISIONING, 0x00) if parameter <= USED => Ok(LogPage::Resources),
        _ => Err(Sense::INVALID_FIELD_IN_CDB),
    }
}

/// The page of logical block provisioning, of a disk of which so many bytes are mapped.
#[must_use]
pub fn resources(mapped: u64) -> Vec<u8> {
    /// The count is of this unit alone, not shared with others.
    const DEDICATED: u8 = 1;
    /// A list parameter in binary format.
    const BINARY_LIST: u8 = 0x03;
    let count = u32::try_from(mapped.div_ceil(THRESHOLD)).unwrap_or(u32::MAX);
    let [high, low] = USED.to_be_bytes();
    let mut data = vec![PROVISIONING, 0, 0, 12, high, low, BINARY_LIST, 8];
    data.extend_from_slice(&count.to_be_bytes());
    data.extend_from_slice(&[DEDICATED, 0, 0, 0]);
    data
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::Sectors;
    use crate::scsi::BLOCK;

    #[test]
    fn stretches_become_descriptors_that_follow_one_another() {
        let stretches = [Stretch { len: 8 * BLOCK, mapped: true }, Stretch { len: 16 * BLOCK, mapped: false }];
        let data = lba_status(BLOCK, 0x10, &stretches);
        let descriptors =
            [[0, 0, 0, 0, 0, 0, 0, 0x10, 0, 0, 0, 8, 0, 0, 0, 0], [0, 0, 0, 0, 0, 0, 0, 0x18, 0, 0, 0, 16, 1, 0, 0, 0]];
        assert_eq!(data, [&[0, 0, 0, 36, 0, 0, 0, 0][..], &descriptors.concat()].concat());
    }

    #[test]
    fn a_large_block_is_mapped_if_a_part_of_it_is() {
        let stretch = |len, mapped| Stretch { len: len * BLOCK, mapped };
        let stretches = [stretch(12, true), stretch(8, false), stretch(4, true), stretch(7, false), stretch(1, true)];
        let data = lba_status(4096, 0, &stretches);
        let told: Vec<_> = data[HEADER..].chunks(DESCRIPTOR).map(|told| (told[7], told[11], told[12])).collect();
        assert_eq!(told, [(0, 2, 0), (2, 1, 0), (3, 1, 0)]);
        assert_eq!(threshold_exponent(Geometry::new(1 << 30, Sectors { logical: 4096, physical: 4096 })), 8);
    }

    #[test]
    fn a_stretch_too_long_for_its_field_ends_the_list() {
        let long = Stretch { len: (1 << 33) * BLOCK, mapped: false };
        let data = lba_status(BLOCK, 0, &[long, Stretch { len: BLOCK, mapped: true }]);
        assert_eq!(data.len(), HEADER + DESCRIPTOR);
        assert_eq!(data[16..21], [0xFF, 0xFF, 0xFF, 0xFF, 1]);
    }

    #[test]
    fn what_is_allocated_bounds_the_descriptors() {
        for (allocation, fit) in [(0, 1), (24, 1), (39, 1), (40, 2), (u32::MAX, MAX_DESCRIPTORS)] {
            assert_eq!(descriptors(allocation), fit, "{allocation}");
        }
    }

    #[test]
    fn log_pages_list_themselves_and_count_what_is_used() {
        assert_eq!(log_page(0, 0, 0), Ok(LogPage::Ready(vec![0, 0, 0, 2, 0, 0x0C])));
        assert_eq!(log_page(0, 0xFF, 0), Ok(LogPage::Ready(vec![0x40, 0xFF, 0, 6, 0, 0, 0, 0xFF, 0x0C, 0])));
        assert_eq!(log_page(0x0C, 0, 2), Ok(LogPage::Resources));
        for (page, subpage, parameter) in [(0x0D, 0, 0), (0x0C, 1, 0), (0x0C, 0, 3), (0, 0, 1)] {
            assert_eq!(log_page(page, subpage, parameter), Err(Sense::INVALID_FIELD_IN_CDB));
        }
        let data = resources((3 << 20) + 1);
        assert_eq!(data, [0x0C, 0, 0, 12, 0, 2, 3, 8, 0, 0, 0, 4, 1, 0, 0, 0]);
    }
}
