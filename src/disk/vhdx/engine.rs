//! A VHDX at work: where each part of the disk is, and in which order a change becomes durable.
//!
//! The ground rule: until a flush a sector reads old or new, never anything else, whatever the moment at which power
//! is lost. "Old" is zeros where no block is, but the *parent's* bytes in a differencing disk, so there neither a bitmap's
//! bit nor a table's entry may reach the device before the data it shows.
//!
//! | change | order |
//! |---|---|
//! | a sector that is here already | the data, no metadata at all |
//! | a new sector or block of a child with a [pending map](crate::disk::pending) | data; a record in the map; bit and entry in memory. At the next flush: barrier, log entry, barrier, the pages in their places |
//! | a new block of a dynamic disk, in space that is durably zero | data; log entry. At the next flush: barrier, the pages in their places |
//! | the same in a child without a map | as in a dynamic disk: outlives the process, may tear with the power |
//!
//! So no allocation waits for the device. The log is what outlives the process in the last two rows: its entries count as
//! soon as they are written. It is also what makes a change of several pages one change.
//!
//! Space is used again only when the change that gave it up is durable, and its old contents durably gone: it is `freed`,
//! then `punched`, then `free`.

use std::cmp::Reverse;
use std::collections::BTreeSet;
use std::io::{IoSlice, IoSliceMut};
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, RwLock, RwLockReadGuard, RwLockWriteGuard};

use uuid::Uuid;

use super::bits::{self, Bits};
use super::log::{self, Log, Page};
use super::overlay::Overlay;
use super::wire::{CHUNK_SECTORS, Entry, HEADERS, Header, MIB, Metadata, PAGE, PAGE_BYTES, Regions, State};
use crate::disk::cache::{Bitmaps, Cache, Holds};
use crate::disk::error::DiskError;
use crate::disk::file::{Media, read_vec, write_all};
use crate::disk::iovec::{self, Gather};
use crate::disk::pending::PendingMap;
use crate::disk::vhd::sparse::Wait;

/// Table entries in a page.
const ENTRIES: usize = 512;
/// Pages of metadata that wait for a flush before the disk flushes by itself: 8 MiB.
const MAX_WAITING: usize = 2048;
/// Records that go into the pending map at once.
const MAX_APPEND: usize = 4096;
/// Bytes between two blocks that are taken for new ones; more is no trace of blocks that went, and may take long to clear.
const MAX_GAP: u64 = 1 << 30;
/// How far a file grows beyond its blocks at once, a hole that closing cuts off: lengthening it is dearer than the write that
/// needs it.
const AHEAD: u64 = 256 * MIB;
/// Pages of the table that are read at once.
const TABLE_STEP: usize = 256;

/// A part of a request, as this layer sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Run {
    /// First byte on the disk.
    pub offset: u64,
    /// Bytes.
    pub len: u64,
    /// Where they are.
    pub at: At,
}

/// Where a part of the disk is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum At {
    /// In this file, from here.
    Here(u64),
    /// Zeros, whatever the parent holds.
    Zero,
    /// Ask the parent; zeros without one.
    Below,
}

/// A page of metadata, in the order in which pages may become durable one by one: bits before the entry that makes them
/// count, and (the table from its end) a chunk's bitmap block before the blocks that need it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Meta {
    Bitmap(u32),
    Table(Reverse<u32>),
}

/// A change of metadata that a request needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Change {
    /// A chunk's bitmap block lies here now.
    Bitmap { chunk: u32, at: u64 },
    /// A payload block is this now.
    Block { block: u32, entry: Entry },
    /// Sectors are here now.
    Bits { from: u64, to: u64 },
}

/// What the records of a [pending map](PendingMap) begin with here, in the four highest bits of what is a sector in a VHD.
const RECORD_BLOCK: u64 = 1 << 60;
const RECORD_BITMAP: u64 = 2 << 60;

/// How many sectors a record of a pending map tells of at most, in a disk whose blocks have so many.
#[must_use]
pub fn recorded_sectors(record: &Range<u64>, block: u64) -> u64 {
    match Change::from_record(record) {
        Change::Bits { from, to } => to - from,
        Change::Block { entry, .. } if entry.state() == Ok(State::Full) => block,
        Change::Block { .. } | Change::Bitmap { .. } => 0,
    }
}

impl Change {
    fn record(self) -> Range<u64> {
        match self {
            Self::Bits { from, to } => from..to,
            Self::Block { block, entry } => {
                let first = RECORD_BLOCK | (entry.0 & 7) << 32 | u64::from(block);
                first..first + entry.0 / MIB
            }
            Self::Bitmap { chunk, at } => {
                let first = RECORD_BITMAP | u64::from(chunk);
                first..first + at / MIB
            }
        }
    }

    fn from_record(record: &Range<u64>) -> Self {
        let number = u32::try_from(record.start & u64::from(u32::MAX)).expect("masked");
        let place = (record.end - record.start) * MIB;
        match record.start & 0xf << 60 {
            RECORD_BLOCK => Self::Block { block: number, entry: Entry(place | record.start >> 32 & 7) },
            RECORD_BITMAP => Self::Bitmap { chunk: number, at: place },
            _ => Self::Bits { from: record.start, to: record.end },
        }
    }
}

/// What readers need, behind one lock that is never held across I/O.
#[derive(Debug)]
struct Map {
    /// Pages of the table; those without any entry take no memory.
    table: Vec<Option<Box<[u64; ENTRIES]>>>,
    bits: Bits,
}

impl Holds for Map {
    fn bitmaps(&mut self) -> &mut Bitmaps {
        &mut self.bits.pages
    }
}

impl Map {
    fn entry(&self, index: u32) -> Entry {
        let (page, within) = (index as usize / ENTRIES, index as usize % ENTRIES);
        Entry(self.table[page].as_ref().map_or(0, |page| page[within]))
    }

    fn set_entry(&mut self, index: u32, entry: Entry) {
        let (page, within) = (index as usize / ENTRIES, index as usize % ENTRIES);
        self.table[page].get_or_insert_with(|| Box::new([0; ENTRIES]))[within] = entry.0;
    }

    fn table_bytes(&self, page: u32) -> [u8; PAGE_BYTES] {
        let mut bytes = [0; PAGE_BYTES];
        if let Some(page) = &self.table[page as usize] {
            for (to, entry) in bytes.chunks_exact_mut(8).zip(&page[..]) {
                to.copy_from_slice(&entry.to_le_bytes());
            }
        }
        bytes
    }
}

/// Where new blocks may lie. All of it in bytes, in whole MiB.
#[derive(Debug, Default)]
struct Space {
    /// Behind everything that the file's structures know of.
    end: u64,
    /// Durably zero, and nobody's.
    free: Vec<Range<u64>>,
    /// Given back to the host; durably so after the next barrier.
    punched: Vec<Range<u64>>,
    /// Nobody's once what waits is durable.
    freed: Vec<Range<u64>>,
}

/// What only the one writer touches.
#[derive(Debug)]
struct Writer {
    header: Header,
    /// Which of the two headers that is.
    slot: usize,
    /// The header has got its new identities for this opening.
    renewed: bool,
    /// Its `DataWriteGuid` stays.
    keeps_identity: bool,
    /// The header points to a log with entries in it.
    log: Option<Log>,
    pending: Option<PendingMap>,
    /// Pages whose memory is ahead of the log.
    unlogged: BTreeSet<Meta>,
    /// Pages that are in the log, but not in their places.
    unapplied: BTreeSet<Meta>,
    space: Space,
    len: u64,
    /// The length that the file has whatever happens.
    durable_len: u64,
}

/// A VHDX: fixed, dynamic or differencing.
#[derive(Debug)]
pub struct Vhdx {
    media: Box<dyn Media>,
    metadata: Metadata,
    regions: Regions,
    map: Arc<RwLock<Map>>,
    cache: &'static Cache,
    writer: Mutex<Writer>,
    read_only: bool,
    /// Nothing waits for the device: what is written outlives the process, not the power.
    volatile: AtomicBool,
    /// A barrier failed: what the device holds is unknown.
    failed: AtomicBool,
    /// Something was acknowledged since the last flush.
    unsettled: AtomicBool,
    /// Held around a write or zeroing on a disk whose sectors are larger than a request's unit.
    pub(in crate::disk) edges: Mutex<()>,
    warnings: Vec<String>,
}

impl Vhdx {
    /// Opens a file: checks every structure, and that every block has its own place. A log that a crash left is replayed, in
    /// the file if it may be written, else in memory.
    ///
    /// # Errors
    /// A damaged file, one that needs what is not known here, or the system's error.
    pub fn open(mut media: Box<dyn Media>, read_only: bool) -> Result<Self, DiskError> {
        let mut warnings = Vec::new();
        let (mut header, mut slot, passed_over) = Header::read(&*media)?;
        warnings.extend(passed_over.map(|why| format!("one of two headers is bad ({why}); the other is used")));
        if !header.log.is_nil() {
            let patches = log::read(&*media, &header)?;
            if read_only {
                warnings.push("was not closed: its log is replayed in memory".to_owned());
                media = Box::new(Overlay { below: media, patches });
            } else {
                header.file_write = Uuid::new_v4();
                update_header(&*media, &mut header, &mut slot, &mut || media.sync())?;
                patches.apply(&*media)?;
                header.log = Uuid::nil();
                update_header(&*media, &mut header, &mut slot, &mut || media.sync())?;
            }
        }
        let (regions, passed_over) = Regions::read(&*media, &header)?;
        warnings.extend(passed_over.map(|why| format!("the first region table is bad ({why}); the second is used")));
        let metadata = Metadata::read(&*media, &regions.metadata)?;
        let table = read_table(&*media, &metadata, &regions.bat)?;
        let cache = Cache::current();
        let map = Map { table, bits: Bits::new(cache, metadata.size / u64::from(metadata.logical_sector)) };
        let len = media.len()?;
        let space = survey(&*media, &metadata, &regions, &map, len)?;
        let map = Arc::new(RwLock::new(map));
        cache.join(&map);
        let writer = Writer {
            header,
            slot,
            renewed: false,
            keeps_identity: false,
            log: None,
            pending: None,
            unlogged: BTreeSet::new(),
            unapplied: BTreeSet::new(),
            space,
            len,
            durable_len: 0,
        };
        Ok(Self {
            media,
            metadata,
            regions,
            map,
            cache,
            writer: Mutex::new(writer),
            read_only,
            volatile: AtomicBool::new(false),
            failed: AtomicBool::new(false),
            unsettled: AtomicBool::new(!read_only),
            edges: Mutex::new(()),
            warnings,
        })
    }

    /// The file, as its log makes it.
    pub fn media(&self) -> &dyn Media {
        &*self.media
    }

    /// What never changes about the disk.
    pub fn metadata(&self) -> &Metadata {
        &self.metadata
    }

    /// The header that counts now.
    pub fn header(&self) -> Header {
        self.writer().header
    }

    /// What was found wrong, and could be lived with.
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// The capacity in bytes.
    pub fn size(&self) -> u64 {
        self.metadata.size
    }

    /// Whether it was opened for reading only.
    pub fn read_only(&self) -> bool {
        self.read_only
    }

    /// Whether a flush has something to do.
    pub fn is_unsettled(&self) -> bool {
        self.unsettled.load(Ordering::Acquire)
    }

    /// Makes barriers wait for nothing, or for the device again. What was written meanwhile is durable after the next flush.
    pub fn set_volatile(&self, volatile: bool) {
        self.volatile.store(volatile, Ordering::Release);
        if !volatile && !self.read_only {
            self.unsettled.store(true, Ordering::Release);
        }
    }

    /// The first write gives the disk no new `DataWriteGuid`: what is written makes it what its children know already.
    pub(in crate::disk) fn keep_identity(&self) {
        self.writer().keeps_identity = true;
    }

    /// Where a byte of the disk lies in the file, if its block does, and for how many bytes that goes on.
    pub(in crate::disk) fn place_of(&self, offset: u64) -> (Option<u64>, u64) {
        let within = offset % self.block_size();
        let block = u32::try_from(offset / self.block_size()).expect("the offset lies on the disk");
        (self.entry(block).at().map(|at| at + within), self.block_size() - within)
    }

    /// Payload blocks that lie in the file.
    pub fn blocks_present(&self) -> u32 {
        let map = self.map();
        let present = |block: &u32| map.entry(self.metadata.payload_entry(*block)).at().is_some();
        u32::try_from((0..self.metadata.blocks()).filter(present).count()).expect("at most all blocks")
    }

    /// Puts a pending map under the disk, and first what the map tells into the file.
    ///
    /// # Errors
    /// The system's.
    pub fn attach(&self, mut pending: PendingMap, records: &[Range<u64>]) -> Result<(), DiskError> {
        let mut writer = self.writer();
        self.check_sound()?;
        for record in records {
            let change = Change::from_record(record);
            // The map is not to be believed from the first record on that no disk of this id can have made.
            if !self.is_possible(change, writer.len) {
                break;
            }
            self.apply_changes(&mut writer, &[change])?;
        }
        if !writer.unlogged.is_empty() {
            let space = survey(&*self.media, &self.metadata, &self.regions, &self.map(), writer.len)?;
            writer.space = space;
            self.begin_change(&mut writer)?;
        }
        self.settle(&mut writer)?;
        if writer.log.is_some() {
            self.barrier(&mut writer)?;
        }
        self.unsettled.store(false, Ordering::Release);
        pending.clear()?;
        writer.pending = Some(pending);
        Ok(())
    }

    /// Whether a record of a map may be one of this disk.
    fn is_possible(&self, change: Change, len: u64) -> bool {
        let metadata = &self.metadata;
        let within = |at: u64, size: u64| at >= MIB && at.checked_add(size).is_some_and(|end| end <= len);
        let placed = |entry: Entry| entry.at().is_some_and(|at| within(at, self.block_size()));
        match change {
            Change::Bitmap { chunk, at } => {
                metadata.parent.is_some()
                    && chunk <= (metadata.blocks() - 1) / metadata.chunk_ratio()
                    && within(at, MIB)
            }
            Change::Block { block, .. } if block >= metadata.blocks() => false,
            Change::Block { block, entry } => match entry.state() {
                Ok(State::Zero) => entry.0 / MIB == 0,
                Ok(State::Full) => placed(entry),
                Ok(State::Partial) => placed(entry) && self.bitmap_at(block / metadata.chunk_ratio()).is_some(),
                Ok(State::NotPresent) | Err(_) => false,
            },
            Change::Bits { from, to } => {
                let sector = u64::from(metadata.logical_sector);
                let bounded = from < to && to - from <= self.block_size() / sector && to <= metadata.size / sector;
                bounded
                    && [from, to - 1].into_iter().all(|sector| {
                        let chunk = u32::try_from(sector / CHUNK_SECTORS).expect("within the disk");
                        self.bitmap_at(chunk).is_some()
                    })
            }
        }
    }

    /// Where each part of a range is, in order and without gaps; `None` if a bitmap would have to be waited for. The caller
    /// has checked the range.
    ///
    /// # Errors
    /// The system's.
    pub fn map_range(&self, offset: u64, len: u64, wait: Wait) -> Result<Option<Vec<Run>>, DiskError> {
        let mut runs: Vec<Run> = Vec::new();
        let (mut at, end) = (offset, offset + len);
        while at < end {
            let Some(run) = self.run_at(at, end - at, wait)? else { return Ok(None) };
            match runs.last_mut() {
                Some(Run { at: At::Here(at), len, .. }) if At::Here(*at + *len) == run.at => *len += run.len,
                Some(last) if last.at == run.at && !matches!(run.at, At::Here(_)) => last.len += run.len,
                _ => runs.push(run),
            }
            at += run.len;
        }
        Ok(Some(runs))
    }

    /// The same for as much of a range as one table entry or page of bits tells of alike.
    ///
    /// # Errors
    /// The system's.
    pub(in crate::disk) fn run_at(&self, offset: u64, len: u64, wait: Wait) -> Result<Option<Run>, DiskError> {
        let piece = self.pieces(offset, len).next().expect("the range is not empty");
        let index = self.metadata.payload_entry(piece.block);
        let whole = |at| Ok(Some(Run { offset, len: piece.len, at }));
        let sector = u64::from(self.metadata.logical_sector);
        let (mut map, page) = (self.map(), bits::page_of(offset / sector));
        loop {
            let entry = map.entry(index);
            let block_at = match (entry.known(), entry.at()) {
                (State::Full, Some(at)) => return whole(At::Here(at + piece.within)),
                (State::Partial, Some(at)) => at,
                (State::Zero, _) => return whole(At::Zero),
                _ => return whole(At::Below),
            };
            if map.bits.is_known(page) {
                let end = offset + piece.len;
                let (here, sectors) = map.bits.run(offset / sector, end.div_ceil(sector));
                let run_end = ((offset / sector + sectors) * sector).min(end);
                let at = if here { At::Here(block_at + piece.within) } else { At::Below };
                return Ok(Some(Run { offset, len: run_end - offset, at }));
            }
            // The entry is looked at again then: it may be another by now.
            drop(map);
            let Some(loaded) = self.load(page, wait)? else { return Ok(None) };
            map = RwLockWriteGuard::downgrade(loaded);
        }
    }

    /// Writes whole logical sectors over such as are here, if that needs no waiting. The caller has checked the range, and lets
    /// no other change run meanwhile, so that whoever else holds the writer holds it for microseconds.
    ///
    /// # Errors
    /// As [`Disk::try_write`](crate::disk::Disk::try_write).
    pub fn try_write(&self, offset: u64, bufs: &[IoSlice<'_>]) -> Result<bool, DiskError> {
        let (writer, len) = (self.writer(), iovec::len(bufs));
        if !writer.renewed || len == 0 {
            return Ok(false);
        }
        self.check_sound()?;
        match self.run_at(offset, len, Wait::Never)? {
            Some(Run { at: At::Here(at), len: all, .. }) if all == len => {
                self.unsettled.store(true, Ordering::Release);
                self.media.try_write(at, bufs)
            }
            _ => Ok(false),
        }
    }

    /// Writes whole logical sectors; the caller has checked the range.
    ///
    /// # Errors
    /// As [`Disk::write`](crate::disk::Disk::write).
    pub fn write(&self, offset: u64, bufs: &[IoSlice<'_>]) -> Result<(), DiskError> {
        let mut writer = self.writer_for_change()?;
        let mut changes = Vec::new();
        let mut gather = Gather::new(bufs);
        let mut write_pieces = || -> Result<(), DiskError> {
            for piece in self.pieces(offset, iovec::len(bufs)) {
                let at = self.place(&mut writer, &piece, &mut changes)?;
                self.media.write(at + piece.within, &gather.take(piece.len))?;
            }
            Ok(())
        };
        let written = write_pieces();
        self.finish(&mut writer, &changes, written)
    }

    /// Makes a range of whole logical sectors zeros of this layer's own; the caller has checked the range.
    ///
    /// # Errors
    /// As [`Disk::zero`](crate::disk::Disk::zero).
    pub fn zero(&self, offset: u64, len: u64) -> Result<(), DiskError> {
        let mut writer = self.writer_for_change()?;
        let mut changes = Vec::new();
        let mut zero_pieces = || -> Result<(), DiskError> {
            for piece in self.pieces(offset, len) {
                let block_end = (piece.offset - piece.within + self.block_size()).min(self.size());
                let whole = piece.within == 0 && piece.offset + piece.len == block_end;
                let state = self.entry(piece.block).known();
                match state {
                    State::Zero => {}
                    State::NotPresent if self.metadata.parent.is_none() => {}
                    _ if whole && !self.metadata.leave_allocated => {
                        changes.push(Change::Block { block: piece.block, entry: Entry::new(State::Zero, 0) });
                    }
                    _ => {
                        let at = self.place(&mut writer, &piece, &mut changes)?;
                        // Also where no bit is set: what an unacknowledged write left there must not come to light.
                        self.media.zero(at + piece.within, piece.len)?;
                    }
                }
            }
            Ok(())
        };
        let zeroed = zero_pieces();
        self.finish(&mut writer, &changes, zeroed)
    }

    /// Makes everything acknowledged durable.
    ///
    /// # Errors
    /// As [`Disk::flush`](crate::disk::Disk::flush).
    pub fn flush(&self) -> Result<(), DiskError> {
        let mut writer = self.writer();
        self.check_sound()?;
        if self.is_unsettled() {
            self.settle(&mut writer)?;
            self.unsettled.store(false, Ordering::Release);
        }
        Ok(())
    }

    /// Flushes, and leaves an empty log, so that every reader of the format finds the file complete. Dropping does the same,
    /// but cannot tell of errors (which cost nothing but a replay at the next opening).
    ///
    /// # Errors
    /// As [`flush`](Vhdx::flush).
    pub fn close(&self) -> Result<(), DiskError> {
        self.flush()?;
        let mut writer = self.writer();
        if writer.log.is_some() {
            self.barrier(&mut writer)?;
            writer.header.log = Uuid::nil();
            self.write_header(&mut writer)?;
            writer.log = None;
            self.barrier(&mut writer)?;
        }
        // No sooner: the entries of a log tell how long the file was, and a shorter one would be refused.
        if writer.renewed && writer.len > writer.space.end {
            self.media.set_len(writer.space.end)?;
            writer.len = writer.space.end;
            writer.durable_len = writer.durable_len.min(writer.len);
        }
        Ok(())
    }

    /// Where a piece's block lies for a write, and into `changes` what the write will have changed about it.
    fn place(&self, writer: &mut Writer, piece: &Piece, changes: &mut Vec<Change>) -> Result<u64, DiskError> {
        let entry = self.entry(piece.block);
        let sector = u64::from(self.metadata.logical_sector);
        let (from, to) = (piece.offset / sector, (piece.offset + piece.len).div_ceil(sector));
        match (entry.known(), entry.at()) {
            (State::Full, Some(at)) => return Ok(at),
            (State::Partial, Some(at)) => {
                self.collect_new(from, to, changes)?;
                return Ok(at);
            }
            _ => {}
        }
        let at = self.allocate(writer, self.block_size())?;
        let whole = piece.len == self.block_size();
        let below = entry.known() == State::NotPresent && self.metadata.parent.is_some();
        let state = if below && !whole { State::Partial } else { State::Full };
        if state == State::Partial {
            let chunk = piece.block / self.metadata.chunk_ratio();
            let known = |change: &Change| matches!(change, Change::Bitmap { chunk: other, .. } if *other == chunk);
            if self.bitmap_at(chunk).is_none() && !changes.iter().any(known) {
                changes.push(Change::Bitmap { chunk, at: self.allocate(writer, MIB)? });
            }
        }
        changes.push(Change::Block { block: piece.block, entry: Entry::new(state, at) });
        if state == State::Partial {
            changes.push(Change::Bits { from, to });
        }
        Ok(at)
    }

    /// Adds the runs of sectors whose bits are not set.
    fn collect_new(&self, from: u64, to: u64, changes: &mut Vec<Change>) -> Result<(), DiskError> {
        let mut at = from;
        while at < to {
            let (here, sectors) = self.map_with(bits::page_of(at))?.bits.run(at, to);
            if !here {
                changes.push(Change::Bits { from: at, to: at + sectors });
            }
            at += sectors;
        }
        Ok(())
    }

    /// Space that is nobody's and zero, and stays so when power is lost.
    fn allocate(&self, writer: &mut Writer, len: u64) -> Result<u64, DiskError> {
        let space = &mut writer.space;
        if let Some(n) = space.free.iter().position(|free| free.end - free.start >= len) {
            let at = space.free[n].start;
            space.free[n].start += len;
            if space.free[n].is_empty() {
                space.free.swap_remove(n);
            }
            return Ok(at);
        }
        let (at, end) = (space.end, space.end + len);
        if end / MIB > u64::from(u32::MAX) {
            let what = "the file would grow beyond 4 PiB".to_owned();
            return Err(DiskError::Unsupported { path: self.media.path().into(), what });
        }
        if writer.len < end {
            self.media.set_len(end + AHEAD)?;
            writer.len = end + AHEAD;
        }
        space.end = end;
        Ok(at)
    }

    /// Ends a request: its changes count if its data is where it belongs, or its space is nobody's again.
    fn finish(&self, writer: &mut Writer, changes: &[Change], done: Result<(), DiskError>) -> Result<(), DiskError> {
        if done.is_err() {
            for change in changes {
                match *change {
                    Change::Block { entry, .. } => {
                        writer.space.freed.extend(entry.at().map(|at| at..at + self.block_size()));
                    }
                    Change::Bitmap { at, .. } => writer.space.freed.push(at..at + MIB),
                    Change::Bits { .. } => {}
                }
            }
            return done;
        }
        self.acknowledge(writer, changes)
    }

    /// Makes changes outlive the process, then shows them to readers.
    fn acknowledge(&self, writer: &mut Writer, changes: &[Change]) -> Result<(), DiskError> {
        if changes.is_empty() {
            return Ok(());
        }
        let mut settle = false;
        if writer.pending.is_some() {
            for changes in changes.chunks(MAX_APPEND) {
                let records: Vec<_> = changes.iter().map(|change| change.record()).collect();
                let pending = writer.pending.as_mut().expect("looked at above");
                match pending.append(&records) {
                    Ok(()) => settle |= pending.is_full(),
                    Err(error) => {
                        // What a flush does is as good as a record, but a map that holds older ones would tell them after it.
                        self.settle(writer)?;
                        if writer.pending.as_ref().is_some_and(|pending| !pending.is_empty()) {
                            return Err(error);
                        }
                        settle = true;
                    }
                }
            }
        }
        let freed = self.apply_changes(writer, changes)?;
        writer.space.freed.extend(freed);
        if writer.pending.is_none() && !settle {
            settle = !self.log_now(writer)?;
        }
        if settle || self.cache.is_crowded() || writer.unlogged.len() + writer.unapplied.len() > MAX_WAITING {
            self.settle(writer)?;
        }
        Ok(())
    }

    /// Changes memory, and says which space is given up by that.
    fn apply_changes(&self, writer: &mut Writer, changes: &[Change]) -> Result<Vec<Range<u64>>, DiskError> {
        let (metadata, mut freed) = (&self.metadata, Vec::new());
        for change in changes {
            if let Change::Bitmap { chunk, at } = *change {
                let index = metadata.bitmap_entry(chunk);
                self.map_mut().set_entry(index, Entry::new(State::Full, at));
                writer.unlogged.insert(table_page(index));
            }
        }
        let sectors_of = |block: u32| {
            let sector = u64::from(metadata.logical_sector);
            let (first, end) = (u64::from(block) * self.block_size(), (u64::from(block) + 1) * self.block_size());
            (first / sector, end / sector)
        };
        for change in changes {
            match *change {
                Change::Bitmap { .. } => {}
                Change::Block { block, entry } => {
                    if entry.known() == State::Partial {
                        // What the bits said of a block that was not there means nothing.
                        let (from, to) = sectors_of(block);
                        for (from, to) in bits::by_page(from, to) {
                            let page = bits::page_of(from);
                            let mut map = self.map_mut_with(page)?;
                            if map.bits.run(from, to) != (false, to - from) {
                                map.bits.set(from, to, false);
                                writer.unlogged.insert(Meta::Bitmap(page));
                            }
                        }
                    }
                    let index = metadata.payload_entry(block);
                    let mut map = self.map_mut();
                    let old = map.entry(index).at().filter(|&at| entry.at() != Some(at));
                    freed.extend(old.map(|at| at..at + self.block_size()));
                    map.set_entry(index, entry);
                    writer.unlogged.insert(table_page(index));
                }
                Change::Bits { from, to } => {
                    for (from, to) in bits::by_page(from, to) {
                        let page = bits::page_of(from);
                        self.map_mut_with(page)?.bits.set(from, to, true);
                        writer.unlogged.insert(Meta::Bitmap(page));
                    }
                }
            }
        }
        Ok(freed)
    }

    /// Logs what is not logged, without a barrier; `false` if it does not fit.
    fn log_now(&self, writer: &mut Writer) -> Result<bool, DiskError> {
        self.begin_log(writer)?;
        let log = writer.log.as_ref().expect("begun above");
        if writer.unlogged.len() > log.room_for() {
            return Ok(false);
        }
        self.log_some(writer)?;
        Ok(true)
    }

    /// Writes one log entry of as many pages as fit.
    fn log_some(&self, writer: &mut Writer) -> Result<(), DiskError> {
        let log = writer.log.as_mut().expect("begun by the caller");
        let some: Vec<Meta> = writer.unlogged.iter().copied().take(log.room_for()).collect();
        let pages: Vec<Page> = some.iter().map(|&meta| self.page(meta)).collect();
        log.append(&*self.media, &pages, writer.durable_len, writer.space.end)?;
        for meta in some {
            writer.unlogged.remove(&meta);
            writer.unapplied.insert(meta);
        }
        Ok(())
    }

    /// A page as it is to be, and where it lies.
    fn page(&self, meta: Meta) -> Page {
        let map = self.map();
        match meta {
            Meta::Table(Reverse(page)) => (self.regions.bat.start + u64::from(page) * PAGE, map.table_bytes(page)),
            Meta::Bitmap(page) => {
                let at = self.bitmap_page_at(&map, page).expect("a page with changed bits has its block");
                (at, map.bits.bytes(page))
            }
        }
    }

    /// Data durable, then the log, then the pages in their places, which may take their time.
    fn settle(&self, writer: &mut Writer) -> Result<(), DiskError> {
        self.barrier(writer)?;
        if !writer.unlogged.is_empty() {
            self.begin_log(writer)?;
            while !writer.unlogged.is_empty() {
                if writer.log.as_ref().is_some_and(|log| log.room_for() == 0) {
                    self.barrier(writer)?;
                    self.write_pages(writer)?;
                    self.barrier(writer)?;
                }
                self.log_some(writer)?;
            }
            self.barrier(writer)?;
        }
        self.write_pages(writer)?;
        while let Some(freed) = writer.space.freed.pop() {
            self.media.zero(freed.start, freed.end - freed.start)?;
            writer.space.punched.push(freed);
        }
        if let Some(pending) = &mut writer.pending {
            // A map that cannot be emptied tells again what is true already.
            let _ = pending.clear();
        }
        Ok(())
    }

    /// Writes what is durable in the log in its place.
    fn write_pages(&self, writer: &mut Writer) -> Result<(), DiskError> {
        for &meta in &writer.unapplied {
            let (at, bytes) = self.page(meta);
            write_all(&*self.media, at, &bytes)?;
        }
        for meta in std::mem::take(&mut writer.unapplied) {
            // One that was changed again since it was logged stays in memory until that is logged too.
            if let Meta::Bitmap(page) = meta
                && !writer.unlogged.contains(&meta)
            {
                self.map_mut().bits.written(page);
            }
        }
        if let Some(log) = &mut writer.log {
            log.applied();
        }
        Ok(())
    }

    /// New identities before the first change since the file was opened, and a log to write entries to.
    fn begin_change(&self, writer: &mut Writer) -> Result<(), DiskError> {
        self.unsettled.store(true, Ordering::Release);
        if writer.renewed {
            return Ok(());
        }
        if writer.len != writer.space.end {
            // Blocks that a crash kept out of the table go; new ones find zeros there.
            self.media.set_len(writer.space.end)?;
            writer.len = writer.space.end;
        }
        writer.header.file_write = Uuid::new_v4();
        if !writer.keeps_identity {
            writer.header.data_write = Uuid::new_v4();
        }
        if self.metadata.leave_allocated {
            self.write_header(writer)?;
        } else {
            self.begin_log(writer)?;
        }
        writer.renewed = true;
        Ok(())
    }

    /// Begins a log if there is none: first an entry that changes nothing, for a log without a sound entry is damage; then
    /// the header that makes it count.
    fn begin_log(&self, writer: &mut Writer) -> Result<(), DiskError> {
        if writer.log.is_some() {
            return Ok(());
        }
        let mut log = Log::new(&writer.header, Uuid::new_v4());
        let page = read_vec(&*self.media, self.regions.bat.start, 4096)?;
        let page = (self.regions.bat.start, page.try_into().expect("a page"));
        log.append(&*self.media, &[page], writer.len, writer.len)?;
        log.applied();
        self.barrier(writer)?;
        writer.header.log = log.id;
        self.write_header(writer)?;
        log.durable();
        writer.log = Some(log);
        Ok(())
    }

    fn write_header(&self, writer: &mut Writer) -> Result<(), DiskError> {
        let mut next = (writer.header, writer.slot);
        update_header(&*self.media, &mut next.0, &mut next.1, &mut || self.barrier(writer))?;
        (writer.header, writer.slot) = next;
        Ok(())
    }

    /// The map with a bitmap page in it.
    fn map_with(&self, page: u32) -> Result<RwLockReadGuard<'_, Map>, DiskError> {
        let map = self.map();
        if map.bits.is_known(page) {
            return Ok(map);
        }
        drop(map);
        Ok(RwLockWriteGuard::downgrade(self.map_mut_with(page)?))
    }

    /// The same for a change, with room for a page that becomes a mixture.
    fn map_mut_with(&self, page: u32) -> Result<RwLockWriteGuard<'_, Map>, DiskError> {
        Ok(self.load(page, Wait::Block)?.expect("it waits"))
    }

    /// The same, reading the page if it is not known; `None` if that would have to wait. The lock is not given up between
    /// learning a page and using it, for others may need its room.
    fn load(&self, page: u32, wait: Wait) -> Result<Option<RwLockWriteGuard<'_, Map>>, DiskError> {
        loop {
            self.cache.make_room(PAGE_BYTES);
            let map = self.map_mut();
            if map.bits.is_known(page) {
                return Ok(Some(map));
            }
            let at = self.bitmap_page_at(&map, page).expect("checked as the table was read");
            let dropped = map.bits.pages.dropped();
            drop(map);
            let mut bytes = [0; PAGE_BYTES];
            match wait {
                Wait::Block => self.media.read(at, &mut [IoSliceMut::new(&mut bytes)])?,
                Wait::Never if self.media.try_read(at, &mut [IoSliceMut::new(&mut bytes)])? => {}
                Wait::Never => return Ok(None),
            }
            let mut map = self.map_mut();
            if map.bits.learn(page, &bytes, dropped) {
                return Ok(Some(map));
            }
        }
    }

    fn bitmap_page_at(&self, map: &Map, page: u32) -> Option<u64> {
        const PER_CHUNK: u64 = CHUNK_SECTORS / bits::SECTORS;
        let (chunk, within) = (u64::from(page) / PER_CHUNK, u64::from(page) % PER_CHUNK);
        let index = self.metadata.bitmap_entry(u32::try_from(chunk).expect("fewer than pages"));
        map.entry(index).at().map(|at| at + within * PAGE)
    }

    fn bitmap_at(&self, chunk: u32) -> Option<u64> {
        self.map().entry(self.metadata.bitmap_entry(chunk)).at()
    }

    fn entry(&self, block: u32) -> Entry {
        self.map().entry(self.metadata.payload_entry(block))
    }

    fn block_size(&self) -> u64 {
        self.metadata.block_size.into()
    }

    fn barrier(&self, writer: &mut Writer) -> Result<(), DiskError> {
        if !self.volatile.load(Ordering::Acquire) {
            self.media.sync().inspect_err(|_| self.failed.store(true, Ordering::Release))?;
        }
        writer.durable_len = writer.len;
        if let Some(log) = &mut writer.log {
            log.durable();
        }
        let punched = std::mem::take(&mut writer.space.punched);
        writer.space.free.extend(punched);
        Ok(())
    }

    fn check_sound(&self) -> Result<(), DiskError> {
        if self.failed.load(Ordering::Acquire) {
            return Err(DiskError::Failed { path: self.media.path().into() });
        }
        Ok(())
    }

    fn writer_for_change(&self) -> Result<MutexGuard<'_, Writer>, DiskError> {
        if self.read_only {
            return Err(DiskError::ReadOnly { path: self.media.path().into() });
        }
        let mut writer = self.writer();
        self.check_sound()?;
        self.begin_change(&mut writer)?;
        Ok(writer)
    }

    fn writer(&self) -> MutexGuard<'_, Writer> {
        self.writer.lock().expect("no writer panicked")
    }

    fn map(&self) -> RwLockReadGuard<'_, Map> {
        self.map.read().expect("no writer panicked")
    }

    fn map_mut(&self) -> RwLockWriteGuard<'_, Map> {
        self.map.write().expect("no writer panicked")
    }

    /// Cuts a range at block borders.
    fn pieces(&self, offset: u64, len: u64) -> impl Iterator<Item = Piece> + use<> {
        let block_size = self.block_size();
        let (mut at, end) = (offset, offset + len);
        std::iter::from_fn(move || {
            if at >= end {
                return None;
            }
            let (block, within) = (at / block_size, at % block_size);
            let len = (block_size - within).min(end - at);
            let block = u32::try_from(block).expect("the range lies on the disk");
            let piece = Piece { offset: at, block, within, len };
            at += len;
            Some(piece)
        })
    }
}

impl Drop for Vhdx {
    fn drop(&mut self) {
        let changed = self.writer.get_mut().is_ok_and(|writer| writer.renewed);
        if changed && self.check_sound().is_ok() {
            // The log stays then, and says the same to whoever opens the file next.
            let _ = self.close();
        }
    }
}

/// A part of a request within one block.
#[derive(Debug, Clone, Copy)]
struct Piece {
    /// First byte on the disk.
    offset: u64,
    block: u32,
    /// First byte within the block.
    within: u64,
    len: u64,
}

fn table_page(index: u32) -> Meta {
    Meta::Table(Reverse(index / 512))
}

/// Writes a header over the one that does not count; a barrier makes it the one that does; then the other follows, so that
/// either can be lost.
fn update_header(
    media: &dyn Media,
    header: &mut Header,
    slot: &mut usize,
    barrier: &mut dyn FnMut() -> Result<(), DiskError>,
) -> Result<(), DiskError> {
    for first in [true, false] {
        header.sequence = header.sequence.wrapping_add(1);
        *slot = 1 - *slot;
        write_all(media, HEADERS[*slot], &header.to_bytes())?;
        if first {
            barrier()?;
        }
    }
    Ok(())
}

/// Reads the block allocation table; holes and pages of zeros take no memory.
fn read_table(
    media: &dyn Media,
    metadata: &Metadata,
    region: &Range<u64>,
) -> Result<Vec<Option<Box<[u64; ENTRIES]>>>, DiskError> {
    let pages = u64::from(metadata.bat_entries()).div_ceil(ENTRIES as u64);
    if pages * PAGE > region.end - region.start {
        let what = format!(
            "BAT region length: {} bytes are too few for {} entries",
            region.end - region.start,
            metadata.bat_entries()
        );
        return Err(DiskError::corrupt(media.path(), region.start, what));
    }
    let mut table = Vec::new();
    table.resize_with(usize::try_from(pages).expect("at most 2^18"), || None);
    let (mut at, end) = (region.start, region.start + pages * PAGE);
    while at < end {
        match media.next_data(at)? {
            Some(data) if data < end => at = at.max(data - data % PAGE),
            _ => break,
        }
        let step = (end - at).min(TABLE_STEP as u64 * PAGE);
        let bytes = read_vec(media, at, usize::try_from(step).expect("1 MiB"))?;
        for (n, page) in bytes.chunks_exact(PAGE_BYTES).enumerate() {
            if page.iter().any(|&byte| byte != 0) {
                let mut entries = Box::new([0; ENTRIES]);
                for (entry, bytes) in entries.iter_mut().zip(page.chunks_exact(8)) {
                    *entry = u64::from_le_bytes(bytes.try_into().expect("8 bytes"));
                }
                let first = usize::try_from((at - region.start) / PAGE).expect("at most 2^18");
                table[first + n] = Some(entries);
            }
        }
        at += step;
    }
    Ok(table)
}

/// Checks every entry of the table, and that every block has its own place in the file; says which space is nobody's.
fn survey(media: &dyn Media, metadata: &Metadata, regions: &Regions, map: &Map, len: u64) -> Result<Space, DiskError> {
    let ratio = metadata.chunk_ratio();
    let (blocks, block_size) = (metadata.blocks(), u64::from(metadata.block_size));
    let mut used: Vec<(u64, u64, u32)> = Vec::new();
    let entry_at = |index: u32| regions.bat.start + u64::from(index) * 8;
    let damaged = |index: u32, what: String| DiskError::corrupt(media.path(), entry_at(index), what);
    for (page, entries) in (0u32..).zip(&map.table) {
        let Some(entries) = entries else { continue };
        for (index, &entry) in (page * 512..).zip(entries.iter()) {
            if entry == 0 || index >= metadata.bat_entries() {
                continue;
            }
            let entry = Entry(entry);
            let (chunk, within) = (index / (ratio + 1), index % (ratio + 1));
            let block = index - chunk;
            let size = if within == ratio {
                if !matches!(entry.0 & 7, 0 | 6) {
                    return Err(damaged(index, format!("BAT entry state of bitmap block {chunk}: {}", entry.0 & 7)));
                }
                MIB
            } else {
                if block >= blocks {
                    // Room in the table behind the last block means nothing.
                    continue;
                }
                match entry.state() {
                    Err(state) => return Err(damaged(index, format!("BAT entry state of block {block}: {state}"))),
                    Ok(State::Partial) if metadata.parent.is_none() => {
                        let what = format!("BAT entry state of block {block}: partial, on a disk without a parent");
                        return Err(damaged(index, what));
                    }
                    Ok(State::Partial) if map.entry(metadata.bitmap_entry(chunk)).at().is_none() => {
                        let what = format!("BAT entry state of block {block}: partial, without a bitmap block");
                        return Err(damaged(index, what));
                    }
                    Ok(_) => {}
                }
                block_size
            };
            let Some(at) = entry.at() else { continue };
            // The tail of the last block, beyond the disk, may be missing.
            let last = within != ratio && block == blocks - 1;
            let needed = if last { metadata.size - u64::from(block) * block_size } else { size };
            if at.checked_add(needed).is_none_or(|end| end > len) {
                let what = format!(
                    "BAT entry offset of {}: {at} is beyond the end of the file",
                    name(within == ratio, chunk, block)
                );
                return Err(damaged(index, what));
            }
            if let Some(taken) = regions.taken.iter().find(|taken| at < taken.end && taken.start < at + size) {
                let what = format!(
                    "BAT entry offset of {}: {at} lies over the structure at {}",
                    name(within == ratio, chunk, block),
                    taken.start
                );
                return Err(damaged(index, what));
            }
            used.push((at, at + size, index));
        }
    }
    used.sort_unstable();
    if let Some(pair) = used.windows(2).find(|pair| pair[0].1 > pair[1].0) {
        let what = format!("BAT entry offset: {} belongs to another block as well", pair[1].0);
        return Err(damaged(pair[1].2, what));
    }
    let mut all: Vec<Range<u64>> = used.iter().map(|&(start, end, _)| start..end).collect();
    all.extend(regions.taken.iter().cloned());
    all.sort_unstable_by_key(|range| range.start);
    let mut space = Space::default();
    for range in all {
        if range.start > space.end {
            let gap = space.end..range.start.min(space.end + MAX_GAP);
            // A hole is zeros already.
            let hole = media.next_data(gap.start)?.is_none_or(|data| data >= gap.end);
            if hole { &mut space.punched } else { &mut space.freed }.push(gap);
        }
        space.end = space.end.max(range.end);
    }
    Ok(space)
}

fn name(bitmap: bool, chunk: u32, block: u32) -> String {
    if bitmap { format!("bitmap block {chunk}") } else { format!("block {block}") }
}
