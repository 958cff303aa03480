//! Which sectors of which blocks are in a file: the sector bitmaps, loaded as they are needed.
//!
//! A bit is one where the sector is in this file, most significant bit first. How many stay in memory is the
//! [cache](crate::disk::cache)'s business.

use super::super::SECTOR;
use super::super::cache::{Bitmap, Bitmaps, Cache};

/// The bitmaps of a disk, one for each block.
#[derive(Debug)]
pub(super) struct Bits {
    /// Sectors of a block.
    sectors: u32,
    pub(super) bitmaps: Bitmaps,
}

impl Bits {
    /// Bitmaps of `blocks` blocks, nothing known of any.
    pub(super) fn new(cache: &'static Cache, blocks: u32, block_size: u64) -> Self {
        let sectors = u32::try_from(block_size / SECTOR).expect("a block is at most 256 MiB");
        Self { sectors, bitmaps: Bitmaps::new(cache, blocks, bitmap_size(sectors)) }
    }

    pub(super) fn is_known(&self, block: u32) -> bool {
        self.bitmaps.is_known(block)
    }

    /// Takes note of a block's bitmap as read from the file when [`Bitmaps::dropped`] was this; see [`Bitmaps::learn`].
    pub(super) fn learn(&mut self, block: u32, bytes: &[u8], dropped: u64) -> bool {
        let found = uniform(bytes, self.sectors).map_or(Bitmap::Mixed(bytes), Bitmap::All);
        self.bitmaps.learn(block, found, dropped)
    }

    /// Takes note of the bitmap of a block that holds all of its sectors or none, as yet.
    pub(super) fn learn_all(&mut self, block: u32, here: bool) {
        self.bitmaps.learn(block, Bitmap::All(here), self.bitmaps.dropped());
    }

    /// Whether sector `from` of a known block is here, and for how many sectors before `to` the answer is the same.
    pub(super) fn run(&self, block: u32, from: u32, to: u32) -> (bool, u32) {
        debug_assert!(self.is_known(block) && from < to && to <= self.sectors);
        match self.bitmaps.look(block) {
            Bitmap::Mixed(bytes) => run(bytes, from, to),
            all => (all == Bitmap::All(true), to - from),
        }
    }

    /// Notes that sectors of a known block are here now. Its bitmap is then ahead of the file.
    pub(super) fn set(&mut self, block: u32, from: u32, to: u32) {
        debug_assert!(self.is_known(block) && from < to && to <= self.sectors);
        if self.bitmaps.look(block) == Bitmap::All(true) {
            return;
        }
        let sectors = self.sectors;
        self.bitmaps.edit(block, |bytes| {
            for sector in from..to {
                bytes[sector as usize / 8] |= 0x80 >> (sector % 8);
            }
            uniform(bytes, sectors)
        });
    }

    /// A known block's bitmap as it lies in the file.
    pub(super) fn bytes(&self, block: u32) -> Vec<u8> {
        match self.bitmaps.look(block) {
            Bitmap::Mixed(bytes) => bytes.to_vec(),
            all => vec![if all == Bitmap::All(true) { 0xff } else { 0 }; bitmap_size(self.sectors)],
        }
    }

    /// Takes note that the file says of a block what memory does.
    pub(super) fn written(&mut self, block: u32) {
        self.bitmaps.written(block);
    }
}

/// What all of so many sectors say, if they say the same.
fn uniform(bytes: &[u8], sectors: u32) -> Option<bool> {
    let (here, same) = run(bytes, 0, sectors);
    (same == sectors).then_some(here)
}

fn bitmap_size(sectors: u32) -> usize {
    (sectors as usize).div_ceil(8).next_multiple_of(512)
}

/// The value of bit `from` and how many bits before `to` have it, 64 at a time.
fn run(bytes: &[u8], from: u32, to: u32) -> (bool, u32) {
    let here = bytes[from as usize / 8] & (0x80 >> (from % 8)) != 0;
    let mut at = from;
    while at < to {
        let start = at as usize / 64 * 8;
        let word = u64::from_be_bytes(bytes[start..start + 8].try_into().expect("bitmaps are whole sectors"));
        let differs = if here { !word } else { word } << (at % 64);
        let rest = 64 - at % 64;
        let same = differs.leading_zeros().min(rest);
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

    proptest! {
        #[test]
        fn runs_agree_with_bits_counted_one_by_one(
            sets in proptest::collection::vec((0u32..4096, 1u32..300), 0..12), from in 0u32..4096, len in 1u32..4096,
        ) {
            let mut bits = Bits::new(Cache::current(), 3, 2 << 20);
            bits.learn_all(1, false);
            let mut model = vec![false; 4096];
            for (start, len) in sets {
                let end = (start + len).min(4096);
                bits.set(1, start, end);
                model[start as usize..end as usize].fill(true);
            }
            let to = (from + len).min(4096);
            let same = model[from as usize..to as usize].iter().take_while(|&&bit| bit == model[from as usize]).count();
            prop_assert_eq!(bits.run(1, from, to), (model[from as usize], u32::try_from(same).unwrap()));

            let mut again = Bits::new(Cache::current(), 3, 2 << 20);
            again.learn(1, &bits.bytes(1), 0);
            prop_assert_eq!(again.run(1, from, to), bits.run(1, from, to));
            prop_assert!(!again.is_known(0) && !again.is_known(2));
        }
    }

    #[test]
    fn memory_is_not_overwritten_by_what_a_late_reader_found() {
        let mut bits = Bits::new(Cache::current(), 1, 2 << 20);
        bits.learn(0, &[0; 512], 0);
        bits.set(0, 5, 6);
        bits.learn(0, &[0; 512], 0);
        assert_eq!(bits.run(0, 5, 9), (true, 1));
    }
}
