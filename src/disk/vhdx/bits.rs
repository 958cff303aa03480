//! Which sectors are in a file: the pages of its sector bitmap blocks, loaded as they are needed.
//!
//! A bit is one where the sector is in this file, *least* significant bit first. A page of 4 KiB tells of 32,768
//! neighbouring sectors, whatever the size of blocks. How many stay in memory is the [cache](crate::disk::cache)'s business.

use super::wire::{PAGE, PAGE_BYTES};
use crate::disk::cache::{Bitmap, Bitmaps, Cache};

/// Sectors that one page tells of.
pub(super) const SECTORS: u64 = PAGE * 8;

/// The bitmap pages of a disk.
#[derive(Debug)]
pub(super) struct Bits {
    pub(super) pages: Bitmaps,
}

/// The page of a sector.
pub(super) fn page_of(sector: u64) -> u32 {
    u32::try_from(sector / SECTORS).expect("64 TiB have 2^22 pages")
}

/// The pages that tell of a run of sectors.
pub(super) fn pages_of(from: u64, to: u64) -> std::ops::RangeInclusive<u32> {
    page_of(from)..=page_of(to - 1)
}

/// Cuts a run of sectors where pages end.
pub(super) fn by_page(from: u64, to: u64) -> impl Iterator<Item = (u64, u64)> {
    pages_of(from, to).map(move |page| {
        let start = u64::from(page) * SECTORS;
        (from.max(start), to.min(start + SECTORS))
    })
}

impl Bits {
    /// The pages of a disk of so many sectors, nothing known of any.
    pub(super) fn new(cache: &'static Cache, sectors: u64) -> Self {
        let pages = u32::try_from(sectors.div_ceil(SECTORS)).expect("64 TiB have 2^22 pages");
        Self { pages: Bitmaps::new(cache, pages, PAGE_BYTES) }
    }

    pub(super) fn is_known(&self, page: u32) -> bool {
        self.pages.is_known(page)
    }

    /// Takes note of a page as read from the file when [`Bitmaps::dropped`] was this; see [`Bitmaps::learn`].
    pub(super) fn learn(&mut self, page: u32, bytes: &[u8; PAGE_BYTES], dropped: u64) -> bool {
        let found = uniform(bytes).map_or(Bitmap::Mixed(bytes), Bitmap::All);
        self.pages.learn(page, found, dropped)
    }

    /// Whether a sector of a known page is here, and for how many sectors before `to` and the page's end that is the same.
    pub(super) fn run(&self, from: u64, to: u64) -> (bool, u64) {
        debug_assert!(self.is_known(page_of(from)));
        let start = from - from % SECTORS;
        let to = to.min(start + SECTORS);
        match self.pages.look(page_of(from)) {
            Bitmap::Mixed(bytes) => run(bytes, from - start, to - start),
            all => (all == Bitmap::All(true), to - from),
        }
    }

    /// Notes that sectors of one known page are here now, or are not. The page is then ahead of the file.
    pub(super) fn set(&mut self, from: u64, to: u64, here: bool) {
        let page = page_of(from);
        debug_assert!(self.is_known(page) && from < to && page_of(to - 1) == page);
        if self.pages.look(page) == Bitmap::All(here) {
            return;
        }
        let start = from - from % SECTORS;
        self.pages.edit(page, |bytes| {
            for sector in from - start..to - start {
                let (byte, bit) = (usize::try_from(sector / 8).expect("under 4096"), 1 << (sector % 8));
                bytes[byte] = if here { bytes[byte] | bit } else { bytes[byte] & !bit };
            }
            uniform(bytes)
        });
    }

    /// A known page as it lies in the file.
    pub(super) fn bytes(&self, page: u32) -> [u8; PAGE_BYTES] {
        match self.pages.look(page) {
            Bitmap::Mixed(bytes) => bytes.try_into().expect("a page"),
            all => [if all == Bitmap::All(true) { 0xff } else { 0 }; PAGE_BYTES],
        }
    }

    /// Takes note that the file says of a page what memory does.
    pub(super) fn written(&mut self, page: u32) {
        self.pages.written(page);
    }
}

/// What all sectors of a page say, if they say the same.
fn uniform(bytes: &[u8]) -> Option<bool> {
    let (here, same) = run(bytes, 0, SECTORS);
    (same == SECTORS).then_some(here)
}

/// The value of bit `from` and how many bits before `to` have it, 64 at a time.
fn run(bytes: &[u8], from: u64, to: u64) -> (bool, u64) {
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
            let mut bits = Bits::new(Cache::current(), 2 * SECTORS);
            bits.learn(0, &ZEROS, 0);
            bits.learn(1, &ZEROS, 0);
            let mut model = vec![false; 35_000];
            for (start, len, here) in sets {
                by_page(start, start + len).for_each(|(from, to)| bits.set(from, to, here));
                model[usize::try_from(start).unwrap()..usize::try_from(start + len).unwrap()].fill(here);
            }
            let page_end = if from < SECTORS { SECTORS } else { 2 * SECTORS };
            let (at, to) = (usize::try_from(from).unwrap(), usize::try_from((from + len).min(page_end)).unwrap());
            let same = model[at..to].iter().take_while(|&&bit| bit == model[at]).count();
            prop_assert_eq!(bits.run(from, from + len), (model[at], same as u64));
            let mut again = Bits::new(Cache::current(), 2 * SECTORS);
            [0, 1].iter().for_each(|&page| assert!(again.learn(page, &bits.bytes(page), 0)));
            prop_assert_eq!(again.run(from, from + len), bits.run(from, from + len));
            [0, 1].iter().for_each(|&page| bits.written(page));
            prop_assert_eq!(again.run(from, from + len), bits.run(from, from + len));
        }
    }

    #[test]
    fn memory_is_not_overwritten_by_what_a_late_reader_found() {
        let mut bits = Bits::new(Cache::current(), 2 * SECTORS);
        bits.learn(0, &ZEROS, 0);
        bits.set(5, 6, true);
        bits.learn(0, &ZEROS, 0);
        assert_eq!(bits.run(5, 9), (true, 1));
    }
}
