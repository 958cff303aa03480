//! Mode pages: caching, control, informational exceptions (SPC-4 §7.5, SBC-3 §6.4).

use super::Geometry;
use super::command::ModeSense;
use super::sense::Sense;

/// Page control 1: which bits an initiator may change.
const CHANGEABLE: u8 = 1;
/// Page control 2: the values after a reset.
const DEFAULT: u8 = 2;
/// Page control 3: saved values, of which there are none.
const SAVED: u8 = 3;
/// "All pages".
const ALL: u8 = 0x3F;
/// "All subpages".
const ALL_SUBPAGES: u8 = 0xFF;

/// Write cache enabled: a write is answered before it is durable; SYNCHRONIZE CACHE makes it so.
const WCE: u8 = 0x04;

/// Descriptor format sense data, in the control page's byte 2.
const D_SENSE: u8 = 0x04;
/// Software write protect, in the control page's byte 4.
const SWP: u8 = 0x08;

/// What initiators may change, for all of them.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Modes {
    /// Sense data is in the descriptor format.
    pub descriptor_sense: bool,
    /// Writes are refused.
    pub write_protect: bool,
}

impl Modes {
    /// The pages, in the order of their codes, with these values.
    fn pages(self) -> [(u8, Vec<u8>); 3] {
        let descriptor_sense = if self.descriptor_sense { D_SENSE } else { 0 };
        let write_protect = if self.write_protect { SWP } else { 0 };
        // Control: unrestricted reordering, commands of other nexuses are aborted silently (TAS = 0).
        let control = vec![0x0A, 0x0A, descriptor_sense, 0x10, write_protect, 0, 0, 0, 0, 0, 0, 0];
        [
            (0x08, vec![0x08, 0x12, WCE, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]),
            (0x0A, control),
            (0x1C, vec![0x1C, 0x0A, 0x08, 0, 0, 0, 0, 0, 0, 0, 0, 0]), // DEXCPT: nothing is reported
        ]
    }

    /// The bits of a page that may be changed.
    fn changeable(code: u8, length: usize) -> Vec<u8> {
        let mut mask = vec![0; length];
        if code == 0x0A {
            (mask[2], mask[4]) = (D_SENSE, SWP);
        }
        mask
    }
}

/// MODE SENSE data for a disk of this geometry.
///
/// # Errors
/// SAVING PARAMETERS NOT SUPPORTED for saved values, INVALID FIELD IN CDB for a page that there is not.
pub fn sense(request: ModeSense, modes: Modes, disk: Geometry, read_only: bool) -> Result<Vec<u8>, Sense> {
    let values = match request.control {
        SAVED => return Err(Sense::SAVING_NOT_SUPPORTED),
        DEFAULT => Modes::default(),
        _ => modes,
    };
    let subpage_known = request.subpage == 0 || (request.subpage == ALL_SUBPAGES && request.page == ALL);
    let wanted = values.pages().into_iter().filter(|(code, _)| [*code, ALL].contains(&request.page));
    let wanted: Vec<(u8, Vec<u8>)> = wanted.collect();
    if wanted.is_empty() || !subpage_known {
        return Err(Sense::INVALID_FIELD_IN_CDB);
    }

    let descriptor = if request.dbd { Vec::new() } else { block_descriptor(disk) };
    let descriptor_length = u8::try_from(descriptor.len()).expect("eight bytes");
    let device = 0x10 | u8::from(read_only || modes.write_protect) << 7; // DPOFUA, WP
    let mut data = if request.ten {
        vec![0, 0, 0, device, 0, 0, 0, descriptor_length]
    } else {
        vec![0, 0, device, descriptor_length]
    };
    data.extend(descriptor);
    for (code, page) in wanted {
        let values = data.len();
        data.extend_from_slice(&page);
        if request.control == CHANGEABLE {
            data[values + 2..].copy_from_slice(&Modes::changeable(code, page.len())[2..]);
        }
    }
    if request.ten {
        let length = u16::try_from(data.len() - 2).expect("the pages are small");
        data[0..2].copy_from_slice(&length.to_be_bytes());
    } else {
        data[0] = u8::try_from(data.len() - 1).expect("the pages are small");
    }
    Ok(data)
}

/// Longest parameter list of MODE SELECT: each page a few times over.
pub const MAX_PARAMETERS: u16 = 512;

/// The values after a MODE SELECT with this parameter list (SPC-4 §6.10). All of it is checked before any of it counts.
///
/// # Errors
/// PARAMETER LIST LENGTH ERROR for a list that ends in the middle, INVALID FIELD IN PARAMETER LIST for a page that there
/// is not, or a bit that may not be changed.
pub fn select(list: &[u8], ten: bool, modes: Modes, disk: Geometry) -> Result<Modes, Sense> {
    if list.is_empty() {
        return Ok(modes);
    }
    let header = if ten { 8 } else { 4 };
    let (head, rest) = list.split_at_checked(header).ok_or(Sense::PARAMETER_LIST_LENGTH)?;
    let descriptors = if ten { usize::from(u16::from_be_bytes([head[6], head[7]])) } else { head[3].into() };
    let (descriptor, mut rest) = rest.split_at_checked(descriptors).ok_or(Sense::PARAMETER_LIST_LENGTH)?;
    check_descriptor(descriptor, disk)?;
    let mut wanted = modes;
    while !rest.is_empty() {
        let [code, length, ..] = *rest else { return Err(Sense::PARAMETER_LIST_LENGTH) };
        let (page, after) = rest.split_at_checked(2 + usize::from(length)).ok_or(Sense::PARAMETER_LIST_LENGTH)?;
        rest = after;
        // PS is reserved here; with SPF it would be a subpage, of which there are none.
        let found = modes.pages().into_iter().find(|(known, _)| *known == code & 0x7F);
        let Some((code, current)) = found.filter(|(_, current)| current.len() == page.len()) else {
            return Err(Sense::INVALID_FIELD_IN_PARAMETERS);
        };
        let mask = Modes::changeable(code, current.len());
        let fixed = |at: usize| (page[at] ^ current[at]) & !mask[at] == 0;
        if !(2..page.len()).all(fixed) {
            return Err(Sense::INVALID_FIELD_IN_PARAMETERS);
        }
        if code == 0x0A {
            wanted = Modes { descriptor_sense: page[2] & D_SENSE != 0, write_protect: page[4] & SWP != 0 };
        }
    }
    Ok(wanted)
}

/// A block descriptor may say what is the case, or nothing.
fn check_descriptor(descriptor: &[u8], disk: Geometry) -> Result<(), Sense> {
    if descriptor.is_empty() {
        return Ok(());
    }
    let now = block_descriptor(disk);
    let count = descriptor.get(..4).is_some_and(|count| *count == now[..4] || count == [0; 4]);
    if descriptor.len() == now.len() && count && descriptor[4..] == now[4..] {
        Ok(())
    } else {
        Err(Sense::INVALID_FIELD_IN_PARAMETERS)
    }
}

/// The short block descriptor: number of blocks, at most `FFFFFFFFh`, and their size (SBC-3 §6.4.2.2).
fn block_descriptor(disk: Geometry) -> Vec<u8> {
    [u32::try_from(disk.blocks()).unwrap_or(u32::MAX).to_be_bytes(), disk.block_field()].concat()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::Sectors;

    fn disk(blocks: u64) -> Geometry {
        Geometry::new(blocks * 512, Sectors::default())
    }

    const CACHING: ModeSense = ModeSense { ten: false, dbd: true, control: 0, page: 0x08, subpage: 0, allocation: 255 };

    #[test]
    fn the_caching_page_says_that_writes_are_cached() {
        let data = sense(CACHING, Modes::default(), disk(2048), false).unwrap();
        assert_eq!(data[..4], [23, 0, 0x10, 0]);
        assert_eq!(data[4..7], [0x08, 0x12, WCE]);
        let changeable =
            sense(ModeSense { control: CHANGEABLE, ..CACHING }, Modes::default(), disk(2048), false).unwrap();
        assert_eq!(changeable[4..7], [0x08, 0x12, 0]);
    }

    #[test]
    fn all_pages_come_with_the_block_descriptor_and_write_protection() {
        let all = sense(ModeSense { ten: true, dbd: false, page: ALL, ..CACHING }, Modes::default(), disk(2048), true)
            .unwrap();
        assert_eq!(all.len(), 8 + 8 + 20 + 12 + 12);
        assert_eq!(all[3], 0x90);
        assert_eq!(all[8..16], [0, 0, 8, 0, 0, 0, 2, 0]);
    }

    #[test]
    fn pages_that_there_are_not_are_refused() {
        assert_eq!(
            sense(ModeSense { page: 0x19, ..CACHING }, Modes::default(), disk(1), false),
            Err(Sense::INVALID_FIELD_IN_CDB)
        );
        assert_eq!(
            sense(ModeSense { subpage: 1, ..CACHING }, Modes::default(), disk(1), false),
            Err(Sense::INVALID_FIELD_IN_CDB)
        );
        assert_eq!(
            sense(ModeSense { control: SAVED, ..CACHING }, Modes::default(), disk(1), false),
            Err(Sense::SAVING_NOT_SUPPORTED)
        );
    }

    #[test]
    fn sense_format_and_write_protection_can_be_changed_and_nothing_else() {
        let control = ModeSense { page: 0x0A, ..CACHING };
        let changeable = sense(ModeSense { control: CHANGEABLE, ..control }, Modes::default(), disk(1), false).unwrap();
        assert_eq!(changeable[4..], [0x0A, 0x0A, D_SENSE, 0, SWP, 0, 0, 0, 0, 0, 0, 0]);

        let mut list = sense(control, Modes::default(), disk(1), false).unwrap();
        (list[0], list[2]) = (0, 0);
        assert_eq!(select(&list, false, Modes::default(), disk(1)), Ok(Modes::default()));
        (list[6], list[8]) = (D_SENSE, SWP);
        let both = Modes { descriptor_sense: true, write_protect: true };
        assert_eq!(select(&list, false, Modes::default(), disk(1)), Ok(both));
        assert_eq!(sense(control, both, disk(1), false).unwrap()[2..], [&[0x90, 0][..], &list[4..]].concat());
        let default = sense(ModeSense { control: DEFAULT, ..control }, both, disk(1), false).unwrap();
        assert_eq!(default[4 + 2..4 + 5], [0, 0x10, 0], "the values after a reset");

        list[9] = 1;
        assert_eq!(select(&list, false, Modes::default(), disk(1)), Err(Sense::INVALID_FIELD_IN_PARAMETERS));
        for cut in [1, 3, 5, list.len() - 1] {
            assert_eq!(select(&list[..cut], false, both, disk(1)), Err(Sense::PARAMETER_LIST_LENGTH), "{cut}");
        }
    }

    #[test]
    fn a_block_descriptor_must_be_the_one_there_is() {
        let list = |blocks: u8, size: u8| [0, 0, 0, 8, 0, 0, 0, blocks, 0, 0, size, 0];
        for (blocks, size, right) in [(4, 2, true), (0, 2, true), (5, 2, false), (4, 16, false)] {
            assert_eq!(
                select(&list(blocks, size), false, Modes::default(), disk(4)).is_ok(),
                right,
                "{blocks} of {size}"
            );
        }
    }
}
