//! The log: changes of metadata that are complete in it before any of them is made in its place.
//!
//! It is a ring of 4 KiB sectors. An entry holds whole pages of 4 KiB and where they belong, sealed by one checksum, so
//! that it counts as a whole or not at all, and names the oldest entry that must be replayed with it (its *tail*). What a
//! crash leaves is found by [`read`]: the run of entries with successive numbers that ends in the greatest one whose tail
//! it reaches. [`Log`] writes entries.
//!
//! | entry | | descriptor | |
//! |---|---|---|---|
//! | 0 | `loge`, checksum, length, tail | 0 | `desc`: the page's last 4 bytes, its first 8 |
//! | 16 | sequence number u64 | | `zero`: 0, length u64 |
//! | 24 | descriptor count, 0 | 16 | offset in the file |
//! | 32 | the log's GUID | 24 | sequence number |
//! | 48, 56 | file lengths: durable, needed | | |
//!
//! Then, on sector boundaries, a data sector per `desc`: `data`, half of the number, 4084 bytes, the other half.

use std::collections::HashMap;

use uuid::Uuid;
use zerocopy::byteorder::little_endian::{U32, U64};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::overlay::Patches;
use super::wire::{Header, MIB, PAGE, seal};
use crate::disk::error::DiskError;
use crate::disk::file::{Media, read_vec, write_all};

/// The longest log that is replayed; it is read at once. Windows makes 1 MiB.
pub const MAX_LOG: u32 = 64 << 20;
/// No file is longer: the largest disk, its bitmaps and tables, and as much again. Bounds what a log may make of a file.
const MAX_FILE: u64 = 128 << 40;

const SECTOR: usize = 4096;
const FRONT: usize = size_of::<Front>();
const DESCRIPTOR: usize = size_of::<Descriptor>();

#[derive(Debug, Clone, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Front {
    signature: [u8; 4],
    checksum: U32,
    length: U32,
    tail: U32,
    sequence: U64,
    count: U32,
    reserved: U32,
    log: [u8; 16],
    flushed: U64,
    last: U64,
}

#[derive(Debug, Clone, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Descriptor {
    signature: [u8; 4],
    trailing: [u8; 4],
    leading: [u8; 8],
    offset: U64,
    sequence: U64,
}

/// One sound entry of a log that was read.
#[derive(Debug)]
struct Found {
    at: usize,
    front: Front,
}

impl Found {
    fn end(&self, log: usize) -> usize {
        (self.at + self.front.length.get() as usize) % log
    }
}

/// A log as it was read.
struct Ring<'a> {
    bytes: &'a [u8],
}

impl<'a> Ring<'a> {
    /// The `n`th sector from a place on, around the end.
    fn sector(&self, at: usize, n: usize) -> &'a [u8] {
        let start = (at + n * SECTOR) % self.bytes.len();
        &self.bytes[start..start + SECTOR]
    }

    fn descriptors(&self, entry: &Found) -> impl Iterator<Item = Descriptor> {
        let (at, count) = (entry.at, entry.front.count.get() as usize);
        (0..count).map(move |n| {
            let byte = FRONT + n * DESCRIPTOR;
            let sector = self.sector(at, byte / SECTOR);
            Descriptor::read_from_bytes(&sector[byte % SECTOR..][..DESCRIPTOR]).expect("32 bytes")
        })
    }

    /// The entry at a place, if a whole one of this log is there.
    fn entry(&self, at: usize, log: Uuid) -> Option<Found> {
        let (front, _) = Front::read_from_prefix(self.sector(at, 0)).expect("a sector is longer");
        let (length, count) = (front.length.get() as usize, front.count.get() as usize);
        let whole = length >= SECTOR && length.is_multiple_of(SECTOR) && length <= self.bytes.len();
        let fits = count <= length / DESCRIPTOR && (front.tail.get() as usize).is_multiple_of(SECTOR);
        if front.signature != *b"loge" || front.log != log.to_bytes_le() || !whole || !fits {
            return None;
        }
        let found = Found { at, front };
        // Signatures before the checksum: two entries cannot both have theirs in the same sectors, so that the work is
        // bounded by the log's length whatever the entries claim.
        let data_at = (FRONT + count * DESCRIPTOR).div_ceil(SECTOR);
        let (sequence, mut sectors) = (found.front.sequence.get(), data_at);
        for descriptor in self.descriptors(&found) {
            match &descriptor.signature {
                _ if descriptor.sequence.get() != sequence => return None,
                b"zero" => {}
                b"desc" if sectors < length / SECTOR => {
                    let sector = self.sector(at, sectors);
                    let halves = [&sector[SECTOR - 4..], &sector[4..8]].concat();
                    if sector[..4] != *b"data" || halves != sequence.to_le_bytes() {
                        return None;
                    }
                    sectors += 1;
                }
                _ => return None,
            }
        }
        let first = self.sector(at, 0);
        let mut sum = crc32c::crc32c_append(crc32c::crc32c_append(crc32c::crc32c(&first[..4]), &[0; 4]), &first[8..]);
        for n in 1..length / SECTOR {
            sum = crc32c::crc32c_append(sum, self.sector(at, n));
        }
        (sectors == length / SECTOR && sum == found.front.checksum.get()).then_some(found)
    }
}

/// Reads the log of a file whose header says that there is one: what must be changed before the file is what it should be.
///
/// # Errors
/// A log without a sound run of entries, or one that leads out of bounds; a file shorter than it was when the log was
/// written; the system's error.
pub(super) fn read(media: &dyn Media, header: &Header) -> Result<Patches, DiskError> {
    let damaged = |at: u64, what: String| DiskError::corrupt(media.path(), header.log_offset + at, what);
    if header.log_length > MAX_LOG {
        let what = format!("has a log of {} bytes to be replayed; at most {MAX_LOG} are", header.log_length);
        return Err(DiskError::Unsupported { path: media.path().into(), what });
    }
    let bytes = read_vec(media, header.log_offset, header.log_length as usize)?;
    let ring = Ring { bytes: &bytes };
    let mut entries: Vec<Found> =
        (0..bytes.len()).step_by(SECTOR).filter_map(|at| ring.entry(at, header.log)).collect();
    entries.sort_by_key(|entry| entry.front.sequence.get());

    // The entry that each one follows directly, by where it ends.
    let mut ends: HashMap<(usize, u64), usize> = HashMap::new();
    let mut before = vec![None; entries.len()];
    // Where in its run each entry is reached from: entries of one run share a name.
    let mut run: Vec<usize> = (0..entries.len()).collect();
    for (n, entry) in entries.iter().enumerate() {
        let sequence = entry.front.sequence.get();
        if let Some(&previous) = sequence.checked_sub(1).and_then(|number| ends.get(&(entry.at, number))) {
            before[n] = Some(previous);
            run[n] = run[previous];
        }
        ends.insert((entry.end(bytes.len()), sequence), n);
    }
    let starts: HashMap<usize, usize> = entries.iter().enumerate().map(|(n, entry)| (entry.at, n)).collect();
    let tail_of = |n: usize| {
        let tail = *starts.get(&(entries[n].front.tail.get() as usize))?;
        (run[tail] == run[n] && tail <= n).then_some(tail)
    };
    let Some((head, tail)) = (0..entries.len()).rev().find_map(|n| Some((n, tail_of(n)?))) else {
        let what = format!("log: {} sound entries, and no run of them is complete", entries.len());
        return Err(damaged(0, what));
    };
    let mut active = vec![head];
    let mut at = head;
    while at != tail {
        at = before[at].expect("the tail is in the run");
        active.push(at);
    }

    let len = media.len()?;
    let mut patches = Patches::new(len);
    for entry in active.iter().rev().map(|&n| &entries[n]) {
        let at = entry.at as u64;
        let (flushed, last) = (entry.front.flushed.get(), entry.front.last.get());
        if flushed > len {
            let what =
                format!("log entry flushed file offset: the file had {flushed} bytes, and has {len}: it was cut");
            return Err(damaged(at + 48, what));
        }
        if last > MAX_FILE {
            return Err(damaged(at + 56, format!("log entry last file offset: no file has {last} bytes")));
        }
        patches.extend(last);
        let mut data = (FRONT + entry.front.count.get() as usize * DESCRIPTOR).div_ceil(SECTOR);
        for descriptor in ring.descriptors(entry) {
            let offset = descriptor.offset.get();
            let zeros = u64::from_le_bytes(descriptor.leading);
            let length = if descriptor.signature == *b"zero" { zeros } else { PAGE };
            let end = offset.checked_add(length).filter(|&end| end <= MAX_FILE);
            let (true, Some(end)) = (offset >= MIB && (offset | length).is_multiple_of(PAGE), end) else {
                let what = format!("log descriptor file offset: {length} bytes at {offset} are no place for metadata");
                return Err(damaged(at, what));
            };
            patches.extend(end);
            if descriptor.signature == *b"zero" {
                patches.zero(offset, end);
                continue;
            }
            let mut page = [0; SECTOR];
            page.copy_from_slice(ring.sector(entry.at, data));
            page[..8].copy_from_slice(&descriptor.leading);
            page[SECTOR - 4..].copy_from_slice(&descriptor.trailing);
            patches.write(offset, page);
            data += 1;
        }
    }
    Ok(patches)
}

/// A page of metadata as it is to be, and its offset in the file.
pub(super) type Page = (u64, [u8; SECTOR]);

/// The log of a file that is being changed.
///
/// Entries stay until what they say is in its place *and* durable there. The newest of those is kept even then: while its
/// successor is being written it is what a crash falls back to, for a log without any sound entry is damage.
#[derive(Debug)]
pub(super) struct Log {
    offset: u64,
    length: u64,
    pub(super) id: Uuid,
    sequence: u64,
    /// Where the oldest entry that counts begins.
    tail: u64,
    /// Where the next entry goes.
    head: u64,
    /// Where the newest entry begins.
    newest: u64,
    /// The newest entry all of whose pages were written in their places.
    applied: Option<u64>,
}

impl Log {
    /// A new, empty log in the place of the old one.
    pub(super) fn new(header: &Header, id: Uuid) -> Self {
        let (offset, length) = (header.log_offset, header.log_length.into());
        Self { offset, length, id, sequence: 1, tail: 0, head: 0, newest: 0, applied: None }
    }

    fn room(&self) -> u64 {
        let used = match self.sequence {
            1 => 0,
            _ => (self.head + self.length - self.tail) % self.length,
        };
        // Never to the last sector: a full ring would look like an empty one.
        self.length - used - PAGE
    }

    /// Pages that the next entry may have; half of the log at most, so that there is always room for another.
    pub(super) fn room_for(&self) -> usize {
        let sectors = usize::try_from(self.room().min(self.length / 2) / PAGE).expect("a log is under 4 GiB");
        // Each page takes its sector and 32 bytes of the sectors before.
        let mut pages = sectors;
        while pages > 0 && Self::sectors(pages) > sectors {
            pages -= 1;
        }
        pages
    }

    fn sectors(pages: usize) -> usize {
        (FRONT + pages * DESCRIPTOR).div_ceil(SECTOR) + pages
    }

    /// Writes an entry, without a barrier. `flushed`: a length that the file is known to have durably; `last`: the one that
    /// it needs.
    pub(super) fn append(
        &mut self,
        media: &dyn Media,
        pages: &[Page],
        flushed: u64,
        last: u64,
    ) -> Result<(), DiskError> {
        debug_assert!(pages.len() <= self.room_for());
        let number = |n: usize| U32::new(u32::try_from(n).expect("a log is under 4 GiB"));
        let sequence = U64::new(self.sequence);
        let tail = if self.sequence == 1 { self.head } else { self.tail };
        let length = Self::sectors(pages.len()) * SECTOR;
        let mut front = Front::new_zeroed();
        front.signature = *b"loge";
        front.length = number(length);
        front.tail = number(usize::try_from(tail).expect("a log is under 4 GiB"));
        front.sequence = sequence;
        front.count = number(pages.len());
        front.log = self.id.to_bytes_le();
        front.flushed = U64::new(flushed);
        front.last = U64::new(last);
        let mut bytes = front.as_bytes().to_vec();
        for (offset, page) in pages {
            let descriptor = Descriptor {
                signature: *b"desc",
                trailing: page[SECTOR - 4..].try_into().expect("4 bytes"),
                leading: page[..8].try_into().expect("8 bytes"),
                offset: U64::new(*offset),
                sequence,
            };
            bytes.extend_from_slice(descriptor.as_bytes());
        }
        bytes.resize(bytes.len().next_multiple_of(SECTOR), 0);
        let halves = self.sequence.to_le_bytes();
        for (_, page) in pages {
            bytes.extend_from_slice(b"data");
            bytes.extend_from_slice(&halves[4..]);
            bytes.extend_from_slice(&page[8..SECTOR - 4]);
            bytes.extend_from_slice(&halves[..4]);
        }
        debug_assert_eq!(bytes.len(), length);
        seal(&mut bytes);

        let before_end = usize::try_from(self.length - self.head).expect("a log is under 4 GiB").min(length);
        write_all(media, self.offset + self.head, &bytes[..before_end])?;
        if before_end < length {
            write_all(media, self.offset, &bytes[before_end..])?;
        }
        self.newest = self.head;
        self.head = (self.head + length as u64) % self.length;
        self.sequence += 1;
        Ok(())
    }

    /// Every page of every entry is written in its place.
    pub(super) fn applied(&mut self) {
        self.applied = Some(self.newest);
    }

    /// All that was written is durable.
    pub(super) fn durable(&mut self) {
        if let Some(applied) = self.applied.take() {
            self.tail = applied;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::double::Double;

    const ID: Uuid = Uuid::from_u128(0x10);

    fn header() -> Header {
        Header {
            sequence: 1,
            file_write: Uuid::nil(),
            data_write: Uuid::nil(),
            log: ID,
            log_length: 1 << 20,
            log_offset: MIB,
        }
    }

    fn page(offset: u64, byte: u8) -> Page {
        (offset, [byte; SECTOR])
    }

    fn replayed(file: &Double, offset: u64) -> u8 {
        let patches = read(file, &header()).unwrap();
        let copy = Double::holding(file.contents());
        patches.apply(&copy).unwrap();
        read_vec(&copy, offset, 1).unwrap()[0]
    }

    #[test]
    fn entries_are_replayed_in_order_around_the_end_of_the_ring() {
        let file = Double::new(4 << 20);
        let mut log = Log::new(&header(), ID);
        for n in 1..=200u8 {
            let pages: Vec<Page> = (0..u64::from(n) % 7 + 1).map(|p| page((2 << 20) + p * PAGE, n)).collect();
            log.append(&file, &pages, 0, 4 << 20).unwrap();
            assert_eq!(replayed(&file, 2 << 20), n, "entry {n} is the last");
            log.applied();
            log.durable();
        }
        assert!(log.head < log.newest || log.sequence > 100);
    }

    #[test]
    fn a_torn_last_entry_leaves_the_one_before_and_a_log_without_any_is_damage() {
        let file = Double::new(4 << 20);
        let mut log = Log::new(&header(), ID);
        log.append(&file, &[page(2 << 20, 1)], 0, 0).unwrap();
        log.append(&file, &[page(2 << 20, 2)], 0, 0).unwrap();
        log.append(&file, &[page(2 << 20, 3)], 0, 0).unwrap();
        assert_eq!(replayed(&file, 2 << 20), 3);
        write_all(&file, MIB + 5 * PAGE + 99, &[77]).unwrap();
        assert_eq!(replayed(&file, 2 << 20), 2);
        // A hole in the middle: what comes after it does not count.
        write_all(&file, MIB + 5 * PAGE + 99, &[3]).unwrap();
        write_all(&file, MIB + 3 * PAGE + 99, &[77]).unwrap();
        assert_eq!(replayed(&file, 2 << 20), 1);
        write_all(&file, MIB + 99, &[77]).unwrap();
        let error = read(&file, &header()).unwrap_err().to_string();
        assert!(error.contains("1048576") && error.contains("no run of them is complete"), "{error}");
    }

    #[test]
    fn a_file_shorter_than_its_log_knew_it_is_refused_and_one_that_must_grow_grows() {
        let file = Double::new(2 << 20);
        let mut log = Log::new(&header(), ID);
        log.append(&file, &[page(5 << 20, 1)], 2 << 20, 8 << 20).unwrap();
        read(&file, &header()).unwrap().apply(&file).unwrap();
        assert_eq!(file.len().unwrap(), 8 << 20);
        log.append(&file, &[page(5 << 20, 1)], 9 << 20, 9 << 20).unwrap();
        let error = read(&file, &header()).unwrap_err().to_string();
        assert!(error.contains("flushed file offset"), "{error}");
    }

    #[test]
    fn descriptors_that_point_at_headers_or_nowhere_are_refused() {
        for offset in [0, 64 << 10, MIB + 512, MAX_FILE, u64::MAX - 4095] {
            let file = Double::new(2 << 20);
            Log::new(&header(), ID).append(&file, &[page(offset, 1)], 0, 0).unwrap();
            let error = read(&file, &header()).unwrap_err().to_string();
            assert!(error.contains("log descriptor file offset"), "{error}");
        }
    }
}
