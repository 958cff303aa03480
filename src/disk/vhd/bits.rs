//! Which sectors of which blocks are in a file: the sector bitmaps, loaded as they are needed.
//!
//! A bit is one where the sector is in this file, most significant bit first. Only blocks that were touched take memory:
//! a fresh child of a large disk costs one bit per block.

use std::collections::HashMap;

use super::super::SECTOR;

/// The bitmap of one block, short where all its sectors say the same.
#[derive(Debug)]
enum Bitmap {
    AllHere,
    Mixed(Box<[u8]>),
}

/// The bitmaps of a disk.
#[derive(Debug)]
pub(super) struct Bits {
    /// Sectors of a block.
    sectors: u32,
    /// One bit per block: its bitmap has not been looked at.
    unknown: Vec<u64>,
    /// The blocks that have been and hold a sector. All others that were looked at have none.
    known: HashMap<u32, Bitmap>,
}

impl Bits {
    /// Bitmaps of `blocks` blocks, nothing known of any.
    pub(super) fn new(blocks: u32, block_size: u64) -> Self {
        let sectors = u32::try_from(block_size / SECTOR).expect("a block is at most 256 MiB");
        Self { sectors, unknown: vec![u64::MAX; blocks.div_ceil(64) as usize], known: HashMap::new() }
    }

    pub(super) fn is_known(&self, block: u32) -> bool {
        self.unknown[block as usize / 64] >> (block % 64) & 1 == 0
    }

    /// Takes note of a block's bitmap as read from the file, unless it is known: memory is ahead of the file.
    pub(super) fn learn(&mut self, block: u32, bytes: &[u8]) {
        if self.is_known(block) {
            return;
        }
        self.unknown[block as usize / 64] &= !(1 << (block % 64));
        match run(bytes, 0, self.sectors) {
            (false, len) if len == self.sectors => None,
            (true, len) if len == self.sectors => self.known.insert(block, Bitmap::AllHere),
            _ => self.known.insert(block, Bitmap::Mixed(bytes.into())),
        };
    }

    /// Takes note that a block has no sector here.
    pub(super) fn learn_empty(&mut self, block: u32) {
        if !self.is_known(block) {
            self.unknown[block as usize / 64] &= !(1 << (block % 64));
        }
    }

    /// Whether sector `from` of a known block is here, and for how many sectors before `to` the answer is the same.
    pub(super) fn run(&self, block: u32, from: u32, to: u32) -> (bool, u32) {
        debug_assert!(self.is_known(block) && from < to && to <= self.sectors);
        match self.known.get(&block) {
            None => (false, to - from),
            Some(Bitmap::AllHere) => (true, to - from),
            Some(Bitmap::Mixed(bytes)) => run(bytes, from, to),
        }
    }

    /// Notes that sectors of a known block are here now.
    pub(super) fn set(&mut self, block: u32, from: u32, to: u32) {
        debug_assert!(self.is_known(block) && from < to && to <= self.sectors);
        let empty = || Bitmap::Mixed(vec![0; bitmap_size(self.sectors)].into());
        let bitmap = self.known.entry(block).or_insert_with(empty);
        if let Bitmap::Mixed(bytes) = bitmap {
            for sector in from..to {
                bytes[sector as usize / 8] |= 0x80 >> (sector % 8);
            }
            if run(bytes, 0, self.sectors) == (true, self.sectors) {
                *bitmap = Bitmap::AllHere;
            }
        }
    }

    /// A known block's bitmap as it lies in the file.
    pub(super) fn bytes(&self, block: u32) -> Vec<u8> {
        match self.known.get(&block) {
            None => vec![0; bitmap_size(self.sectors)],
            Some(Bitmap::AllHere) => vec![0xff; bitmap_size(self.sectors)],
            Some(Bitmap::Mixed(bytes)) => bytes.to_vec(),
        }
    }
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
            let mut bits = Bits::new(3, 2 << 20);
            bits.learn_empty(1);
            let mut model = vec![false; 4096];
            for (start, len) in sets {
                let end = (start + len).min(4096);
                bits.set(1, start, end);
                model[start as usize..end as usize].fill(true);
            }
            let to = (from + len).min(4096);
            let same = model[from as usize..to as usize].iter().take_while(|&&bit| bit == model[from as usize]).count();
            prop_assert_eq!(bits.run(1, from, to), (model[from as usize], u32::try_from(same).unwrap()));

            let mut again = Bits::new(3, 2 << 20);
            again.learn(1, &bits.bytes(1));
            prop_assert_eq!(again.run(1, from, to), bits.run(1, from, to));
            prop_assert!(!again.is_known(0) && !again.is_known(2));
        }
    }

    #[test]
    fn memory_is_not_overwritten_by_what_a_late_reader_found() {
        let mut bits = Bits::new(1, 2 << 20);
        bits.learn(0, &[0; 512]);
        bits.set(0, 5, 6);
        bits.learn(0, &[0; 512]);
        assert_eq!(bits.run(0, 5, 9), (true, 1));
    }
}
