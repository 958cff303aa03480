//! Mode pages: caching, control, informational exceptions (SPC-4 §7.5, SBC-3 §6.4).

use super::BLOCK;
use super::command::ModeSense;
use super::sense::Sense;

/// Page control 1: which bits an initiator may change. None.
const CHANGEABLE: u8 = 1;
/// Page control 3: saved values, of which there are none.
const SAVED: u8 = 3;
/// "All pages".
const ALL: u8 = 0x3F;
/// "All subpages".
const ALL_SUBPAGES: u8 = 0xFF;

/// Write cache enabled: a write is answered before it is durable; SYNCHRONIZE CACHE makes it so.
const WCE: u8 = 0x04;

const PAGES: [(u8, &[u8]); 3] = [
    (0x08, &[0x08, 0x12, WCE, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]),
    // Control: unrestricted reordering, commands of other nexuses are aborted silently (TAS = 0).
    (0x0A, &[0x0A, 0x0A, 0, 0x10, 0, 0, 0, 0, 0, 0, 0, 0]),
    (0x1C, &[0x1C, 0x0A, 0x08, 0, 0, 0, 0, 0, 0, 0, 0, 0]), // DEXCPT: nothing is reported
];

/// MODE SENSE data for a disk of this many blocks.
///
/// # Errors
/// SAVING PARAMETERS NOT SUPPORTED for saved values, INVALID FIELD IN CDB for a page that there is not.
pub fn sense(request: ModeSense, blocks: u64, read_only: bool) -> Result<Vec<u8>, Sense> {
    if request.control == SAVED {
        return Err(Sense::SAVING_NOT_SUPPORTED);
    }
    let subpage_known = request.subpage == 0 || (request.subpage == ALL_SUBPAGES && request.page == ALL);
    let wanted: Vec<&[u8]> =
        PAGES.iter().filter(|(code, _)| [*code, ALL].contains(&request.page)).map(|(_, page)| *page).collect();
    if wanted.is_empty() || !subpage_known {
        return Err(Sense::INVALID_FIELD_IN_CDB);
    }

    let descriptor = if request.dbd { Vec::new() } else { block_descriptor(blocks) };
    let descriptor_length = u8::try_from(descriptor.len()).expect("eight bytes");
    let device = 0x10 | u8::from(read_only) << 7; // DPOFUA, WP
    let mut data = if request.ten {
        vec![0, 0, 0, device, 0, 0, 0, descriptor_length]
    } else {
        vec![0, 0, device, descriptor_length]
    };
    data.extend(descriptor);
    for page in wanted {
        let values = data.len();
        data.extend_from_slice(page);
        if request.control == CHANGEABLE {
            data[values + 2..].fill(0);
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

/// The short block descriptor: number of blocks, at most `FFFFFFFFh`, and their size (SBC-3 §6.4.2.2).
fn block_descriptor(blocks: u64) -> Vec<u8> {
    let mut descriptor = u32::try_from(blocks).unwrap_or(u32::MAX).to_be_bytes().to_vec();
    descriptor.extend_from_slice(&u32::try_from(BLOCK).expect("512").to_be_bytes());
    descriptor
}

#[cfg(test)]
mod tests {
    use super::*;

    const CACHING: ModeSense = ModeSense { ten: false, dbd: true, control: 0, page: 0x08, subpage: 0, allocation: 255 };

    #[test]
    fn the_caching_page_says_that_writes_are_cached() {
        let data = sense(CACHING, 2048, false).unwrap();
        assert_eq!(data[..4], [23, 0, 0x10, 0]);
        assert_eq!(data[4..7], [0x08, 0x12, WCE]);
        let changeable = sense(ModeSense { control: CHANGEABLE, ..CACHING }, 2048, false).unwrap();
        assert_eq!(changeable[4..7], [0x08, 0x12, 0]);
    }

    #[test]
    fn all_pages_come_with_the_block_descriptor_and_write_protection() {
        let all = sense(ModeSense { ten: true, dbd: false, page: ALL, ..CACHING }, 2048, true).unwrap();
        assert_eq!(all.len(), 8 + 8 + 20 + 12 + 12);
        assert_eq!(all[3], 0x90);
        assert_eq!(all[8..16], [0, 0, 8, 0, 0, 0, 2, 0]);
    }

    #[test]
    fn pages_that_there_are_not_are_refused() {
        assert_eq!(sense(ModeSense { page: 0x19, ..CACHING }, 1, false), Err(Sense::INVALID_FIELD_IN_CDB));
        assert_eq!(sense(ModeSense { subpage: 1, ..CACHING }, 1, false), Err(Sense::INVALID_FIELD_IN_CDB));
        assert_eq!(sense(ModeSense { control: SAVED, ..CACHING }, 1, false), Err(Sense::SAVING_NOT_SUPPORTED));
    }
}
