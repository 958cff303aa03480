//! Which sectors are in a file: the pages of its sector bitmap blocks, loaded as they are needed and dropped when they
//! are many.
//!
//! A bit is one where the sector is in this file, *least* significant bit first. A page of 4 KiB tells of 32,768
//! neighbouring sectors, whatever the size of blocks.

use std::collections::HashMap;

use super::wire::{PAGE, PAGE_BYTES};

/// Sectors that one page tells of.
pub(super) const SECTORS: u64 = PAGE * 8;
/// Pages with bytes of their own that one disk keeps: 16 MiB, which tell of 64 GiB of 512-byte sectors.
const MAX_MIXED: usize = 4096;

type Bytes = Box<[u8; PAGE_BYTES]>;

/// One page, short where all its sectors say the same.
#[derive(Debug)]
enum Bitmap {
    NoneHere,
    AllHere,
    /// `ahead`: the file does not say so yet, so it must not be dropped.
    Mixed {
        bytes: Bytes,
        ahead: bool,
    },
}

/// The bitmap pages of a disk that are in memory.
#[derive(Debug, Default)]
pub(super) struct Bits {
    pages: HashMap<u32, Bitmap>,
    mixed: usize,
    /// How often pages were dropped: what was read from the file before that may be old.
    dropped: u64,
}

/// The page of a sector.
pub(super) fn page_of(sector: u64) -> u32 {
    u32::try_from(sector / SECTORS).expect("64 TiB have 2^22 pages")
}

/// The pages that tell of a run of sectors.
pub(super) fn pages_of(from: u64, to: u64) -> std::ops::RangeInclusive<u32> {
    page_of(from)..=page_of(to - 1)
}

impl Bits {
    pub(super) fn is_known(&self, page: u32) -> bool {
        self.pages.contains_key(&page)
    }

    /// A number to read before a page is read from the file, for [`learn`](Bits::learn).
    pub(super) fn dropped(&self) -> u64 {
        self.dropped
    }

    /// Takes note of a page as read from the file, unless it is known or `dropped` says that it may be old.
    pub(super) fn learn(&mut self, page: u32, bytes: &[u8; PAGE_BYTES], dropped: u64) {
        if self.is_known(page) || self.dropped != dropped {
            return;
        }
        let bitmap = match run(bytes, 0, SECTORS) {
            (here, SECTORS) => {
                if here {
                    Bitmap::AllHere
                } else {
                    Bitmap::NoneHere
                }
            }
            _ => {
                self.make_room();
                self.mixed += 1;
                Bitmap::Mixed { bytes: Box::new(*bytes), ahead: false }
            }
        };
        self.pages.insert(page, bitmap);
    }

    /// Drops half of the pages that the file knows as well, if there are too many.
    fn make_room(&mut self) {
        if self.mixed < MAX_MIXED {
            return;
        }
        let mut excess = self.mixed - MAX_MIXED / 2;
        self.pages.retain(|_, bitmap| {
            let goes = excess > 0 && matches!(bitmap, Bitmap::Mixed { ahead: false, .. });
            excess -= usize::from(goes);
            !goes
        });
        self.mixed = self.pages.values().filter(|bitmap| matches!(bitmap, Bitmap::Mixed { .. })).count();
        self.dropped += 1;
    }

    /// Whether a sector of a known page is here, and for how many sectors before `to` and the page's end that is the same.
    pub(super) fn run(&self, from: u64, to: u64) -> (bool, u64) {
        let start = from - from % SECTORS;
        let to = to.min(start + SECTORS);
        match &self.pages[&page_of(from)] {
            Bitmap::NoneHere => (false, to - from),
            Bitmap::AllHere => (true, to - from),
            Bitmap::Mixed { bytes, .. } => run(bytes, from - start, to - start),
        }
    }

    /// Notes that sectors of known pages are here now, or are not.
    pub(super) fn set(&mut self, from: u64, to: u64, here: bool) {
        let mut at = from;
        while at < to {
            let start = at - at % SECTORS;
            let end = to.min(start + SECTORS);
            let page = self.pages.get_mut(&page_of(at)).expect("the page is known");
            let fill = match page {
                Bitmap::NoneHere => Some(0),
                Bitmap::AllHere => Some(0xff),
                Bitmap::Mixed { .. } => None,
            };
            if let Some(fill) = fill {
                *page = Bitmap::Mixed { bytes: Box::new([fill; PAGE_BYTES]), ahead: true };
                self.mixed += 1;
            }
            if let Bitmap::Mixed { bytes, ahead } = page {
                *ahead = true;
                for sector in at - start..end - start {
                    let (byte, bit) = (usize::try_from(sector / 8).expect("under 4096"), 1 << (sector % 8));
                    bytes[byte] = if here { bytes[byte] | bit } else { bytes[byte] & !bit };
                }
            }
            at = end;
        }
    }

    /// A known page as it lies in the file.
    pub(super) fn bytes(&self, page: u32) -> [u8; PAGE_BYTES] {
        match &self.pages[&page] {
            Bitmap::NoneHere => [0; PAGE_BYTES],
            Bitmap::AllHere => [0xff; PAGE_BYTES],
            Bitmap::Mixed { bytes, .. } => **bytes,
        }
    }

    /// Takes note that the file says of a page what memory does.
    pub(super) fn written(&mut self, page: u32) {
        let Some(bitmap) = self.pages.get_mut(&page) else { return };
        if let Bitmap::Mixed { bytes, ahead } = bitmap {
            *ahead = false;
            let (here, sectors) = run(bytes, 0, SECTORS);
            if sectors == SECTORS {
                *bitmap = if here { Bitmap::AllHere } else { Bitmap::NoneHere };
                self.mixed -= 1;
            }
        }
    }
}

/// The value of bit `from` and how many bits before `to` have it, 64 at a time.
fn run(bytes: &[u8; PAGE_BYTES], from: u64, to: u64) -> (bool, u64) {
    let index = |bit: u64| usize::try_from(bit / 8).expect("under 4096");
    let here = bytes[index(from)] >> (from % 8) & 1 != 0;
    let mut at = from;
    while at < to {
        let start = index(at) / 8 * 8;
        let word = u64::from_le_bytes(bytes[start..start + 8].try_into().expect("8 bytes"));
        let differs = if here { !word } else { word } >> (at % 64);
        let rest = 64 - at % 64;
        let same = u64::from(differs.trailing_zeros()).min(rest);
        at += same;
        if same < rest {
            break;
        }
    }
    (here, at.min(to) - from)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ZEROS: [u8; 4096] = [0; 4096];

    proptest! {
        #[test]
        fn runs_agree_with_bits_counted_one_by_one(
            sets in proptest::collection::vec((32_000u64..33_600, 1u64..300, any::<bool>()), 0..12),
            from in 32_000u64..33_600, len in 1u64..900,
        ) {
            let mut bits = Bits::default();
            bits.learn(0, &ZEROS, 0);
            bits.learn(1, &ZEROS, 0);
            let mut model = vec![false; 35_000];
            for (start, len, here) in sets {
                bits.set(start, start + len, here);
                model[usize::try_from(start).unwrap()..usize::try_from(start + len).unwrap()].fill(here);
            }
            let page_end = if from < SECTORS { SECTORS } else { 2 * SECTORS };
            let (at, to) = (usize::try_from(from).unwrap(), usize::try_from((from + len).min(page_end)).unwrap());
            let same = model[at..to].iter().take_while(|&&bit| bit == model[at]).count();
            prop_assert_eq!(bits.run(from, from + len), (model[at], same as u64));
            let mut again = Bits::default();
            [0, 1].iter().for_each(|&page| again.learn(page, &bits.bytes(page), 0));
            prop_assert_eq!(again.run(from, from + len), bits.run(from, from + len));
            [0, 1].iter().for_each(|&page| bits.written(page));
            prop_assert_eq!(again.run(from, from + len), bits.run(from, from + len));
        }
    }

    #[test]
    fn pages_that_the_file_knows_are_dropped_when_they_are_many_and_late_readers_are_not_believed() {
        let mut bits = Bits::default();
        let mut page = ZEROS;
        page[7] = 1;
        bits.learn(0, &page, 0);
        bits.set(5, 6, true);
        let before = bits.dropped();
        for n in 1..=u32::try_from(MAX_MIXED).unwrap() {
            bits.learn(n, &page, bits.dropped());
        }
        assert!(bits.mixed <= MAX_MIXED && bits.dropped() > before);
        assert!(bits.is_known(0), "what the file does not know yet stays");
        let gone = (1..).find(|&page| !bits.is_known(page)).unwrap();
        bits.learn(gone, &ZEROS, before);
        assert!(!bits.is_known(gone));
        bits.learn(gone, &page, bits.dropped());
        assert_eq!(bits.run(u64::from(gone) * SECTORS + 56, u64::from(gone) * SECTORS + 60), (true, 1));
    }

    #[test]
    fn memory_is_not_overwritten_by_what_a_late_reader_found() {
        let mut bits = Bits::default();
        bits.learn(0, &ZEROS, 0);
        bits.set(5, 6, true);
        bits.learn(0, &ZEROS, 0);
        assert_eq!(bits.run(5, 9), (true, 1));
    }
}
