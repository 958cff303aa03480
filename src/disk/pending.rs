//! The pending map of a disk: which sectors were acknowledged while their bitmap bits are still in memory only.
//!
//! A bit must not reach the device before its data (a torn disk would show zeros where the parent's bytes were), yet an
//! acknowledged write must outlive the process. So the bit waits in memory for a barrier, and a record of it is appended
//! here, never synced: it outlives the process in the page cache. After a power loss it must not be believed, for the
//! data may be gone. The host's boot id at the front of the file tells the two apart.
//!
//! ```text
//! 0   8  "roostmap"            64  16 each   records: first sector u64, sectors u32, checksum u32
//! 8   4  version 1
//! 12  4  checksum
//! 16 16  the disk's unique id
//! 32 32  the boot id, cut or zero-padded
//! ```
//! All integers are little-endian; a checksum is FNV-1a over the rest of its record. The first record that fails it ends the map.

use std::io::IoSlice;
use std::ops::Range;

use uuid::Uuid;
use zerocopy::byteorder::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::error::DiskError;
use super::file::{Media, read_vec, write_all};

/// The largest a map grows before its disk settles: 65,536 runs, some seconds of random writes.
pub const MAX_MAP: u64 = 1 << 20;

const MAGIC: [u8; 8] = *b"roostmap";
const VERSION: u32 = 1;

#[derive(Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Front {
    magic: [u8; 8],
    version: U32,
    checksum: U32,
    disk: [u8; 16],
    boot: [u8; 32],
}

#[derive(Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Record {
    first: U64,
    sectors: U32,
    checksum: U32,
}

const FRONT: u64 = size_of::<Front>() as u64;
const RECORD: usize = size_of::<Record>();

impl Front {
    fn new(disk: Uuid, boot_id: &str) -> Self {
        let mut boot = [0; 32];
        // 32 of a UUID's 36 characters; the dashes say nothing.
        for (to, from) in boot.iter_mut().zip(boot_id.bytes().filter(|byte| *byte != b'-')) {
            *to = from;
        }
        let mut front =
            Self { magic: MAGIC, version: U32::new(VERSION), checksum: U32::ZERO, disk: disk.into_bytes(), boot };
        front.checksum = U32::new(fnv1a(front.as_bytes()));
        front
    }
}

impl Record {
    fn new(first: u64, sectors: u32) -> Self {
        let mut record = Self { first: U64::new(first), sectors: U32::new(sectors), checksum: U32::ZERO };
        record.checksum = U32::new(fnv1a(record.as_bytes()));
        record
    }
}

fn records_of(runs: &[Range<u64>]) -> Vec<u8> {
    let record = |run: &Range<u64>| Record::new(run.start, u32::try_from(run.end - run.start).expect("within a block"));
    runs.iter().map(record).flat_map(|record| record.as_bytes().to_vec()).collect()
}

fn fnv1a(bytes: &[u8]) -> u32 {
    bytes.iter().fold(0x811c_9dc5, |hash, &byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193))
}

/// An open map.
#[derive(Debug)]
pub struct PendingMap {
    media: Box<dyn Media>,
    front: Front,
    len: u64,
}

impl PendingMap {
    /// Opens the map of a disk and tells what must be put into its bitmaps before it is used: runs of sectors that an
    /// earlier process of this boot acknowledged. A map of another boot or disk tells nothing.
    ///
    /// # Errors
    /// The system's.
    pub fn open(media: Box<dyn Media>, disk: Uuid, boot_id: &str) -> Result<(Self, Vec<Range<u64>>), DiskError> {
        let front = Front::new(disk, boot_id);
        let len = media.len()?.min(FRONT + MAX_MAP + RECORD as u64 * 4096);
        let mut runs = Vec::new();
        if len >= FRONT {
            let bytes = read_vec(&*media, 0, usize::try_from(len).expect("bounded above"))?;
            let (found, records) = bytes.split_at(front.as_bytes().len());
            if found == front.as_bytes() {
                for bytes in records.chunks_exact(RECORD) {
                    let record = Record::read_from_bytes(bytes).expect("a chunk is a record long");
                    let (first, sectors) = (record.first.get(), record.sectors.get());
                    let Some(end) = first.checked_add(u64::from(sectors)) else { break };
                    if record.checksum != Record::new(first, sectors).checksum {
                        break;
                    }
                    runs.push(first..end);
                }
            }
        }
        Ok((Self { media, front, len }, runs))
    }

    /// Empties the map: what it told is in the bitmaps and durable.
    ///
    /// # Errors
    /// The system's.
    pub fn clear(&mut self) -> Result<(), DiskError> {
        // Cut first: a new front must never stand before old records.
        self.media.set_len(0)?;
        self.len = 0;
        write_all(&*self.media, 0, self.front.as_bytes())?;
        self.len = FRONT;
        Ok(())
    }

    /// Adds runs of sectors. When it returns they outlive the process.
    ///
    /// # Errors
    /// The system's; none of them is in the map then.
    pub fn append(&mut self, runs: &[Range<u64>]) -> Result<(), DiskError> {
        if self.len < FRONT {
            self.clear()?;
        }
        let bytes = records_of(runs);
        write_all(&*self.media, self.len, &bytes)?;
        self.len += bytes.len() as u64;
        Ok(())
    }

    /// The same if that needs no waiting; `false`: they are not in the map, and what is told of them is true all the same if
    /// their data is in its place.
    ///
    /// # Errors
    /// The system's; none of them is in the map then.
    pub fn try_append(&mut self, runs: &[Range<u64>]) -> Result<bool, DiskError> {
        if !self.has_room(runs.len()) {
            return Ok(false);
        }
        let bytes = records_of(runs);
        let appended = self.media.try_write(self.len, &[IoSlice::new(&bytes)])?;
        if appended {
            self.len += bytes.len() as u64;
        }
        Ok(appended)
    }

    /// Whether so many runs can be added before the disk should settle.
    #[must_use]
    pub fn has_room(&self, runs: usize) -> bool {
        self.len >= FRONT && runs as u64 * RECORD as u64 <= MAX_MAP.saturating_sub(self.len + 1)
    }

    /// Whether it tells nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len <= FRONT
    }

    /// Whether the disk should settle before the map grows further.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.len >= MAX_MAP
    }
}

#[cfg(test)]
mod tests {
    use super::super::double::Double;
    use super::*;

    const BOOT: &str = "0f3c1e62-9a34-4d2b-8a55-5d1f6f0f8f10";

    #[test]
    fn a_map_is_believed_by_its_own_boot_and_disk_only_and_a_torn_tail_is_left_out() {
        let double = Double::new(0);
        let (mut map, runs) = PendingMap::open(Box::new(double.clone()), Uuid::from_u128(1), BOOT).unwrap();
        assert!(runs.is_empty());
        map.clear().unwrap();
        map.append(&[3..5, 100..4000]).unwrap();
        map.append(&[7..8, 9..12]).unwrap();

        let runs = |disk, boot| PendingMap::open(Box::new(double.clone()), Uuid::from_u128(disk), boot).unwrap().1;
        assert_eq!(runs(1, BOOT), [3..5, 100..4000, 7..8, 9..12]);
        assert!(runs(2, BOOT).is_empty());
        assert!(runs(1, "1f3c1e62-9a34-4d2b-8a55-5d1f6f0f8f10").is_empty());

        double.set_len(FRONT + 56).unwrap();
        assert_eq!(runs(1, BOOT), [3..5, 100..4000, 7..8]);
        write_all(&double, FRONT + 36, &[0xee]).unwrap();
        assert_eq!(runs(1, BOOT), [3..5, 100..4000]);
        map.clear().unwrap();
        assert!(runs(1, BOOT).is_empty());
    }
}
