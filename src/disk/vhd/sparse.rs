//! A dynamic or differencing VHD at work: where each sector is, and in which order a change becomes durable.
//!
//! The ground rule: until a flush a sector reads old or new, never anything else, whatever the moment at which power
//! is lost. In a differencing disk "old" is the parent's bytes, so a bitmap bit must not reach the device before its data.
//!
//! | change | order |
//! |---|---|
//! | a sector that is here already | the data, no metadata at all |
//! | a sector that is not | data; a record in the [pending map](crate::disk::pending); the bit in memory. At the next flush: barrier, bits, barrier |
//! | the same, without a pending map | data; the bit straight into the file. Outlives the process, may tear with the power |
//! | a block that is not in the file | the table's entry, straight into the file; then as above |
//! | the same, and no space is kept for it | what lies behind all blocks becomes zeros, bitmaps and a new footer behind them, for [many blocks](RESERVE_BLOCKS) at once; barrier; then as above |
//! | a block of a dynamic disk whose bitmap has gaps | the gaps become zeros; barrier; bits; then its sectors are here |
//!
//! A table's entry needs no order of its own, because the space that it points to was made durable beforehand, and says
//! "nothing here": in a differencing disk its bitmap is zero and every sector is the parent's; in a dynamic one the bitmap
//! is all ones and the data a hole, the zeros that were there before. So whichever of entry and data the power lets
//! through, each sector is old or new. Entries and, in a dynamic disk, data need nothing but the flush's one barrier, and
//! outlive the process at once. A thousand first writes to fresh blocks cost a child one barrier, a dynamic disk five; what is left of the
//! space when the disk is closed is cut off again, and what a power cut leaves is zeroed before it is used.
//!
//! While the footer is on its way to its new end, the copy at the front stands in for it. Disks made by
//! [`create_child`](super::create_child) map every block from the start and never take the last rows.

use std::collections::BTreeSet;
use std::io::{IoSlice, IoSliceMut};
use std::ops::{Range, RangeInclusive};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, RwLock, RwLockReadGuard, RwLockWriteGuard};

use super::super::SECTOR;
use super::super::cache::{Bitmaps, Cache, Holds};
use super::super::error::DiskError;
use super::super::file::{Media, read_vec, write_all};
use super::super::iovec::{self, Gather};
use super::super::pending::PendingMap;
use super::bits::Bits;
use super::wire::{ABSENT, FOOTER, Footer, HEADER, Header, Kind, MAX_FILE};

/// Data of new blocks starts at a multiple of this, the page and block size of hosts.
pub const ALIGN: u64 = 4096;

/// Blocks that space is kept for at once, at the cost of one barrier. In a dynamic disk, where each gets a bitmap: as many as
/// there are, within these bounds, so that barriers become rarer as the file grows. In a differencing disk the space is
/// nothing but a hole: the most.
pub const RESERVE_BLOCKS: RangeInclusive<u64> = 64..=1024;
/// The most that a file grows ahead of its blocks: 1024 blocks of the usual 2 MiB.
pub const RESERVE_BYTES: u64 = 1024 * (2 << 20) + 1024 * ALIGN;

/// Runs that go into the pending map at once.
const MAX_APPEND: usize = 4096;

/// A part of a request, as one layer sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Run {
    /// First byte on the disk.
    pub offset: u64,
    /// Bytes.
    pub len: u64,
    /// Where they are in this file; `None`: they are not, ask below.
    pub at: Option<u64>,
}

/// Whether a request may wait for the device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wait {
    /// It may.
    Block,
    /// It must not: better no answer.
    Never,
}

/// The block allocation table.
#[derive(Debug)]
enum Table {
    /// Block `n` has its bitmap at sector `first + n × stride`: the layout of our own children, without a table in memory.
    Even { first: u64, stride: u64 },
    /// The entries as they are in the file.
    Entries(Vec<u32>),
}

impl Table {
    /// The table of these entries, folded to two numbers where that says the same.
    fn of(entries: Vec<u32>) -> Self {
        let (Some(&first), Some(&second)) = (entries.first(), entries.get(1)) else { return Self::Entries(entries) };
        let (first, stride) = (u64::from(first), u64::from(second.wrapping_sub(first)));
        let even =
            entries.iter().zip(0u64..).all(|(&entry, n)| entry != ABSENT && u64::from(entry) == first + n * stride);
        if even { Self::Even { first, stride } } else { Self::Entries(entries) }
    }

    /// Where a block's bitmap lies, in bytes.
    fn at(&self, block: u32) -> Option<u64> {
        match self {
            Self::Even { first, stride } => Some((first + u64::from(block) * stride) * SECTOR),
            Self::Entries(entries) => match entries[block as usize] {
                ABSENT => None,
                sector => Some(u64::from(sector) * SECTOR),
            },
        }
    }
}

/// What readers need, behind one lock that is never held across I/O.
#[derive(Debug)]
struct Map {
    table: Table,
    bits: Bits,
}

impl Holds for Map {
    fn bitmaps(&mut self) -> &mut Bitmaps {
        &mut self.bits.bitmaps
    }
}

/// What only the one writer touches.
#[derive(Debug)]
struct Writer {
    pending: Option<PendingMap>,
    /// Blocks whose bitmap in memory is ahead of the file.
    dirty: BTreeSet<u32>,
    /// Where the next new block may begin: behind everything that the file's structures know of.
    end: u64,
    /// How many blocks the file has durable, empty space for from there on.
    reserved: u64,
}

/// A dynamic or differencing VHD.
#[derive(Debug)]
pub struct Sparse {
    media: Box<dyn Media>,
    footer: Footer,
    header: Header,
    map: Arc<RwLock<Map>>,
    cache: &'static Cache,
    writer: Mutex<Writer>,
    read_only: bool,
    /// A barrier failed: what the device holds is unknown.
    failed: AtomicBool,
    /// Something was acknowledged since the last flush.
    unsettled: AtomicBool,
    /// Nobody wants this to outlive the power: no barrier for new blocks.
    volatile: AtomicBool,
}

impl Sparse {
    /// Opens a file whose footer has been read: checks the header and the table, and where each block lies.
    ///
    /// # Errors
    /// [`DiskError::Corrupt`], or the system's error.
    pub fn open(media: Box<dyn Media>, footer: Footer, read_only: bool) -> Result<Self, DiskError> {
        let (header, table, end) = read_structures(&*media, &footer, media.len()?)?;
        if !read_only {
            repair_footers(&*media, &footer, end)?;
        }
        let cache = Cache::current();
        let mut bits = Bits::new(cache, header.blocks(), header.block_size());
        skip_holes(&*media, &table, &header, &mut bits)?;
        let map = Arc::new(RwLock::new(Map { table, bits }));
        cache.join(&map);
        let writer = Writer { pending: None, dirty: BTreeSet::new(), end, reserved: 0 };
        Ok(Self {
            map,
            cache,
            writer: Mutex::new(writer),
            media,
            footer,
            header,
            read_only,
            failed: AtomicBool::new(false),
            unsettled: AtomicBool::new(!read_only),
            volatile: AtomicBool::new(false),
        })
    }

    /// Says that what is written here need not outlive the power, until a pending map is [attached](Sparse::attach): new
    /// blocks wait for no barrier. The caller sees to it that nobody believes the disk after a power loss.
    pub(in crate::disk) fn make_volatile(&self) {
        self.volatile.store(true, Ordering::Release);
    }

    /// Puts a pending map under the disk, and first what the map tells into the bitmaps.
    ///
    /// # Errors
    /// The system's.
    pub fn attach(&self, mut pending: PendingMap, runs: &[Range<u64>]) -> Result<(), DiskError> {
        let mut writer = self.writer();
        self.volatile.store(false, Ordering::Release);
        for run in runs {
            // No disk of this id acknowledged such a run: the map is not to be believed from here on.
            if run.start >= run.end || run.end > self.size() / SECTOR {
                break;
            }
            for piece in self.pieces(run.start * SECTOR, (run.end - run.start) * SECTOR) {
                if self.block_at(piece.block).is_some() {
                    self.map_mut_with(piece.block)?.bits.set(piece.block, piece.from, piece.to);
                    writer.dirty.insert(piece.block);
                }
            }
        }
        self.settle(&mut writer)?;
        self.unsettled.store(false, Ordering::Release);
        pending.clear()?;
        writer.pending = Some(pending);
        Ok(())
    }

    /// The file.
    pub fn media(&self) -> &dyn Media {
        &*self.media
    }

    /// The footer.
    pub fn footer(&self) -> &Footer {
        &self.footer
    }

    /// The dynamic header.
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// The capacity in bytes.
    pub fn size(&self) -> u64 {
        self.footer.size()
    }

    /// Whether it was opened for reading only.
    pub fn read_only(&self) -> bool {
        self.read_only
    }

    /// Whether a flush has something to do.
    pub fn is_unsettled(&self) -> bool {
        self.unsettled.load(Ordering::Acquire)
    }

    /// Where a byte of the disk lies in the file, or would lie if its sector were here, and how many bytes of the disk lie in
    /// one piece from there on; no place where its block is not in the file.
    pub(in crate::disk) fn place_of(&self, offset: u64) -> (Option<u64>, u64) {
        let (block, within) = (offset / self.header.block_size(), offset % self.header.block_size());
        let at = self.block_at(u32::try_from(block).expect("the offset lies on the disk"));
        (at.map(|at| at + self.header.bitmap_size() + within), self.header.block_size() - within)
    }

    /// Blocks that lie in the file.
    pub fn blocks_present(&self) -> u32 {
        match &self.map().table {
            Table::Even { .. } => self.header.blocks(),
            Table::Entries(entries) => {
                let present = entries.iter().filter(|&&entry| entry != ABSENT).count();
                u32::try_from(present).expect("at most MAX_BLOCKS")
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
                Some(last) if last.at.map(|at| at + last.len) == run.at && last.at.is_some() => last.len += run.len,
                Some(last) if last.at.is_none() && run.at.is_none() => last.len += run.len,
                _ => runs.push(run),
            }
            at += run.len;
        }
        Ok(Some(runs))
    }

    /// The same for as much of a range as one block's bitmap tells of alike.
    ///
    /// # Errors
    /// The system's.
    pub(in crate::disk) fn run_at(&self, offset: u64, len: u64, wait: Wait) -> Result<Option<Run>, DiskError> {
        let piece = self.pieces(offset, len).next().expect("the range is not empty");
        let Some(map) = self.map_with(piece.block, wait)? else { return Ok(None) };
        let Some(bitmap_at) = map.table.at(piece.block) else {
            return Ok(Some(Run { offset, len: piece.len(), at: None }));
        };
        let (here, sectors) = map.bits.run(piece.block, piece.from, piece.to);
        let at = here.then(|| bitmap_at + self.header.bitmap_size() + u64::from(piece.from) * SECTOR);
        Ok(Some(Run { offset, len: u64::from(sectors) * SECTOR, at }))
    }

    /// Writes if that needs no waiting: over sectors that are here, which no other change of the disk may move meanwhile, or
    /// into blocks that are, where the pending map takes note of it. The caller has checked the range.
    ///
    /// # Errors
    /// As [`Disk::try_write`](crate::disk::Disk::try_write).
    pub fn try_write(&self, offset: u64, bufs: &[IoSlice<'_>]) -> Result<bool, DiskError> {
        let len = iovec::len(bufs);
        // A dynamic disk's blocks may have gaps to be filled first.
        if self.read_only || self.footer.kind() != Kind::Differencing || len == 0 {
            return Ok(false);
        }
        self.check_sound()?;
        match self.run_at(offset, len, Wait::Never)? {
            None => return Ok(false),
            Some(Run { at: Some(at), len: all, .. }) if all == len => {
                let written = self.media.try_write(at, bufs);
                // After the data: a flush that begins in between finds one or the other.
                self.unsettled.store(true, Ordering::Release);
                return written;
            }
            Some(_) => {}
        }
        let mut writer = self.writer();
        let mut new = Vec::new();
        for piece in self.pieces(offset, len) {
            if self.block_at(piece.block).is_none() || !self.collect_new(&piece, Wait::Never, &mut new)? {
                return Ok(false);
            }
        }
        let has_room = |pending: &PendingMap| pending.has_room(new.len());
        if self.cache.is_crowded() || !writer.pending.as_ref().is_some_and(has_room) {
            return Ok(false);
        }
        self.unsettled.store(true, Ordering::Release);
        let mut gather = Gather::new(bufs);
        for piece in self.pieces(offset, len) {
            let block_at = self.block_at(piece.block).expect("looked at above, and blocks stay");
            let data_at = block_at + self.header.bitmap_size() + u64::from(piece.from) * SECTOR;
            if !self.media.try_write(data_at, &gather.take(piece.len()))? {
                return Ok(false);
            }
        }
        let runs: Vec<_> = new.iter().map(|new| self.run_of(*new)).collect();
        if !writer.pending.as_mut().expect("looked at above").try_append(&runs)? {
            return Ok(false);
        }
        for (block, from, to) in new {
            // What is in the pending map is true, whether or not its bit can be set now.
            let Some(mut map) = self.load(block, Wait::Never)? else { return Ok(false) };
            map.bits.set(block, from, to);
            writer.dirty.insert(block);
        }
        Ok(true)
    }

    /// The sectors of the disk that some of a block's are.
    fn run_of(&self, (block, from, to): (u32, u32, u32)) -> Range<u64> {
        let first = u64::from(block) * (self.header.block_size() / SECTOR);
        first + u64::from(from)..first + u64::from(to)
    }

    /// Writes; the caller has checked the range.
    ///
    /// # Errors
    /// As [`Disk::write`](crate::disk::Disk::write).
    pub fn write(&self, offset: u64, bufs: &[IoSlice<'_>]) -> Result<(), DiskError> {
        let mut writer = self.writer_for_change()?;
        let mut gather = Gather::new(bufs);
        let mut new = Vec::new();
        for piece in self.pieces(offset, iovec::len(bufs)) {
            let data_at = self.here(&mut writer, piece.block)? + u64::from(piece.from) * SECTOR;
            self.media.write(data_at, &gather.take(piece.len()))?;
            self.collect_new(&piece, Wait::Block, &mut new)?;
        }
        self.acknowledge(&mut writer, &new)
    }

    /// Makes a range zeros of this layer's own; the caller has checked the range.
    ///
    /// # Errors
    /// As [`Disk::zero`](crate::disk::Disk::zero).
    pub fn zero(&self, offset: u64, len: u64) -> Result<(), DiskError> {
        let mut writer = self.writer_for_change()?;
        let mut new = Vec::new();
        for piece in self.pieces(offset, len) {
            let data_at = self.here(&mut writer, piece.block)? + u64::from(piece.from) * SECTOR;
            // Also where no bit is set: what an unacknowledged write left there must not come to light.
            self.media.zero(data_at, piece.len())?;
            self.collect_new(&piece, Wait::Block, &mut new)?;
        }
        self.acknowledge(&mut writer, &new)
    }

    /// Makes everything acknowledged durable.
    ///
    /// # Errors
    /// As [`Disk::flush`](crate::disk::Disk::flush).
    pub fn flush(&self) -> Result<(), DiskError> {
        let mut writer = self.writer();
        self.check_sound()?;
        if !self.is_unsettled() {
            return Ok(());
        }
        // Before the barrier: what is written behind it is another flush's.
        self.unsettled.store(false, Ordering::Release);
        self.settle(&mut writer).inspect_err(|_| self.unsettled.store(true, Ordering::Release))
    }

    /// Data barrier, bits, barrier; one barrier where no bit waits.
    fn settle(&self, writer: &mut Writer) -> Result<(), DiskError> {
        self.barrier()?;
        if writer.dirty.is_empty() {
            return Ok(());
        }
        self.write_bitmaps(&writer.dirty)?;
        self.barrier()?;
        self.mark_written(&mut writer.dirty);
        if let Some(pending) = &mut writer.pending {
            // A map that cannot be emptied tells again what is true already.
            let _ = pending.clear();
        }
        Ok(())
    }

    fn write_bitmaps(&self, blocks: &BTreeSet<u32>) -> Result<(), DiskError> {
        for &block in blocks {
            let (at, bytes) = {
                let map = self.map();
                (map.table.at(block).expect("a block with new bits is in the file"), map.bits.bytes(block))
            };
            write_all(&*self.media, at, &bytes)?;
        }
        Ok(())
    }

    /// Lets go of bitmaps that the file has.
    fn mark_written(&self, blocks: &mut BTreeSet<u32>) {
        let mut map = self.map_mut();
        while let Some(block) = blocks.pop_first() {
            map.bits.written(block);
        }
    }

    /// Makes the bits of data that has just been written outlive the process, then shows them to readers.
    fn acknowledge(&self, writer: &mut Writer, new: &[(u32, u32, u32)]) -> Result<(), DiskError> {
        for new in new.chunks(MAX_APPEND) {
            let recorded = match &mut writer.pending {
                Some(pending) => {
                    let runs: Vec<_> = new.iter().map(|new| self.run_of(*new)).collect();
                    pending.append(&runs).map(|()| pending.is_full())
                }
                None => Ok(false),
            };
            for &(block, from, to) in new {
                self.map_mut_with(block)?.bits.set(block, from, to);
                writer.dirty.insert(block);
            }
            match recorded {
                Ok(false) if writer.pending.is_none() => {
                    self.write_bitmaps(&writer.dirty)?;
                    self.mark_written(&mut writer.dirty);
                }
                Ok(false) if !self.cache.is_crowded() => {}
                // Full, or it cannot grow, or memory is full of bits: what a flush does is as good as a record.
                Ok(_) | Err(_) => self.settle(writer)?,
            }
        }
        Ok(())
    }

    /// Adds the parts of a piece whose bits are not set: block, first sector, end. `false`: that would have to be waited for.
    fn collect_new(&self, piece: &Piece, wait: Wait, new: &mut Vec<(u32, u32, u32)>) -> Result<bool, DiskError> {
        let Some(map) = self.map_with(piece.block, wait)? else { return Ok(false) };
        let mut from = piece.from;
        while from < piece.to {
            let (here, sectors) = map.bits.run(piece.block, from, piece.to);
            if !here {
                new.push((piece.block, from, from + sectors));
            }
            from += sectors;
        }
        Ok(true)
    }

    /// Where a block's data lies; a block that is not in the file is put there first.
    fn here(&self, writer: &mut Writer, block: u32) -> Result<u64, DiskError> {
        let at = match self.block_at(block) {
            Some(at) => at,
            None => self.allocate(writer, block)?,
        };
        let data_at = at + self.header.bitmap_size();
        if self.footer.kind() == Kind::Dynamic {
            self.fill_gaps(block, at, data_at)?;
        }
        Ok(data_at)
    }

    /// Gives a block the next place of those that are kept.
    fn allocate(&self, writer: &mut Writer, block: u32) -> Result<u64, DiskError> {
        if writer.reserved == 0 {
            self.reserve(writer)?;
        }
        let at = self.first_place(writer.end);
        let entry = u32::try_from(at / SECTOR).expect("space was kept for it");
        write_all(&*self.media, self.header.table_offset() + u64::from(block) * 4, &entry.to_be_bytes())?;
        writer.end = at + self.header.bitmap_size() + self.header.block_size();
        writer.reserved -= 1;
        let bitmap = self.empty_bitmap();
        let mut map = self.map_mut();
        if let Table::Entries(entries) = &mut map.table {
            entries[block as usize] = entry;
        }
        let here = bitmap[0] != 0;
        map.bits.learn_all(block, here);
        Ok(at)
    }

    /// Keeps empty, durable space behind all blocks for some more. Nothing points there yet, so that a cut on the way
    /// leaves at most a longer file.
    fn reserve(&self, writer: &mut Writer) -> Result<(), DiskError> {
        let bitmap_size = self.header.bitmap_size();
        let stride = (bitmap_size + self.header.block_size()).next_multiple_of(ALIGN);
        let first = self.first_place(writer.end);
        let present = u64::from(self.blocks_present());
        let absent = u64::from(self.header.blocks()) - present;
        let wanted = match self.footer.kind() {
            Kind::Dynamic => present.clamp(*RESERVE_BLOCKS.start(), *RESERVE_BLOCKS.end()),
            _ => *RESERVE_BLOCKS.end(),
        };
        let wanted = wanted.min(RESERVE_BYTES / stride).clamp(1, absent.max(1));
        // The last place whose sector number the table can hold, with a footer behind it.
        let room = (MAX_FILE - FOOTER).saturating_sub(first) / stride;
        let blocks = wanted.min(room);
        if blocks == 0 {
            let what = "the file would grow beyond the 2 TiB of its format".to_owned();
            return Err(DiskError::Unsupported { path: self.media.path().into(), what });
        }
        let end = first + (blocks - 1) * stride + bitmap_size + self.header.block_size();
        let len = self.media.len()?;
        if len > first {
            // The old footer, and blocks that a cut kept out of the table.
            self.media.zero(first, len.min(end) - first)?;
        }
        let footer_at = end.max(last_sector(len));
        if footer_at + FOOTER > len {
            self.media.set_len(footer_at + FOOTER)?;
        }
        if self.footer.kind() == Kind::Dynamic {
            let bitmap = self.empty_bitmap();
            for n in 0..blocks {
                write_all(&*self.media, first + n * stride, &bitmap)?;
            }
        }
        write_all(&*self.media, footer_at, self.footer.as_bytes())?;
        if !self.volatile.load(Ordering::Acquire) {
            self.barrier()?;
        }
        writer.reserved = blocks;
        Ok(())
    }

    /// The first place for a block at or after `end`: its bitmap lies right before its data.
    fn first_place(&self, end: u64) -> u64 {
        (end + self.header.bitmap_size()).next_multiple_of(ALIGN) - self.header.bitmap_size()
    }

    /// The bitmap of a block that holds nothing yet: a dynamic disk's is all ones, for readers disagree about what a zero
    /// means there, and its data is a hole.
    fn empty_bitmap(&self) -> Vec<u8> {
        let bits = if self.footer.kind() == Kind::Differencing { 0 } else { 0xff };
        vec![bits; usize::try_from(self.header.bitmap_size()).expect("at most 64 KiB")]
    }

    /// Makes all sectors of a dynamic disk's block say "here", as they do in every block of ours: what may lie where a bit
    /// is missing must not come to light with a bit that outruns its data.
    fn fill_gaps(&self, block: u32, bitmap_at: u64, data_at: u64) -> Result<(), DiskError> {
        let start = u64::from(block) * self.header.block_size();
        let len = self.header.block_size().min(self.size() - start);
        let mut gaps = Vec::new();
        for piece in self.pieces(start, len) {
            self.collect_new(&piece, Wait::Block, &mut gaps)?;
        }
        if gaps.is_empty() {
            return Ok(());
        }
        for (_, from, to) in gaps {
            self.media.zero(data_at + u64::from(from) * SECTOR, u64::from(to - from) * SECTOR)?;
        }
        self.barrier()?;
        let bitmap = self.empty_bitmap();
        write_all(&*self.media, bitmap_at, &bitmap)?;
        let sectors = u32::try_from(self.header.block_size() / SECTOR).expect("a block is at most 256 MiB");
        self.map_mut_with(block)?.bits.set(block, 0, sectors);
        Ok(())
    }

    /// The map with the bitmap of a block in it, if the block is in the file; `None` if that would have to wait.
    fn map_with(&self, block: u32, wait: Wait) -> Result<Option<RwLockReadGuard<'_, Map>>, DiskError> {
        let map = self.map();
        if map.bits.is_known(block) || map.table.at(block).is_none() {
            return Ok(Some(map));
        }
        drop(map);
        Ok(self.load(block, wait)?.map(RwLockWriteGuard::downgrade))
    }

    /// The same for a change, with room for a bitmap that becomes a mixture.
    fn map_mut_with(&self, block: u32) -> Result<RwLockWriteGuard<'_, Map>, DiskError> {
        Ok(self.load(block, Wait::Block)?.expect("it waits"))
    }

    /// The same, reading the bitmap if it is not known. The lock is not given up between learning a bitmap and using it, for others may
    /// need its room.
    fn load(&self, block: u32, wait: Wait) -> Result<Option<RwLockWriteGuard<'_, Map>>, DiskError> {
        let size = usize::try_from(self.header.bitmap_size()).expect("at most 64 KiB");
        loop {
            self.cache.make_room(size);
            let map = self.map_mut();
            let dropped = map.bits.bitmaps.dropped();
            let at = match map.table.at(block) {
                Some(at) if !map.bits.is_known(block) => at,
                _ => return Ok(Some(map)),
            };
            drop(map);
            let mut bytes = vec![0; size];
            match wait {
                Wait::Block => self.media.read(at, &mut [IoSliceMut::new(&mut bytes)])?,
                Wait::Never if self.media.try_read(at, &mut [IoSliceMut::new(&mut bytes)])? => {}
                Wait::Never => return Ok(None),
            }
            let mut map = self.map_mut();
            if map.bits.learn(block, &bytes, dropped) {
                return Ok(Some(map));
            }
        }
    }

    fn barrier(&self) -> Result<(), DiskError> {
        self.media.sync().inspect_err(|_| self.failed.store(true, Ordering::Release))
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
        let writer = self.writer();
        self.check_sound()?;
        self.unsettled.store(true, Ordering::Release);
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

    fn block_at(&self, block: u32) -> Option<u64> {
        self.map().table.at(block)
    }

    /// Cuts a range at block borders.
    fn pieces(&self, offset: u64, len: u64) -> impl Iterator<Item = Piece> + use<> {
        let block_size = self.header.block_size();
        let (mut at, end) = (offset, offset + len);
        std::iter::from_fn(move || {
            if at >= end {
                return None;
            }
            let (block, within) = (at / block_size, at % block_size);
            let len = (block_size - within).min(end - at);
            let sectors = |bytes: u64| u32::try_from(bytes / SECTOR).expect("a block is at most 256 MiB");
            let piece = Piece {
                block: u32::try_from(block).expect("the range lies on the disk"),
                from: sectors(within),
                to: sectors(within + len),
            };
            at += len;
            Some(piece)
        })
    }
}

impl Drop for Sparse {
    /// Gives the space back that was kept for more blocks. It is empty, so the order of the two does not matter.
    fn drop(&mut self) {
        let Ok(writer) = self.writer.get_mut() else { return };
        if writer.reserved > 0 && !self.failed.load(Ordering::Acquire) {
            // A file that stays longer than it need be is as good.
            let _ = write_all(&*self.media, writer.end, self.footer.as_bytes())
                .and_then(|()| self.media.set_len(writer.end + FOOTER));
        }
    }
}

/// A part of a request within one block.
#[derive(Debug, Clone, Copy)]
struct Piece {
    block: u32,
    /// First sector within the block.
    from: u32,
    /// First sector after it.
    to: u32,
}

impl Piece {
    fn len(&self) -> u64 {
        u64::from(self.to - self.from) * SECTOR
    }
}

/// Reads header and table, checks that every structure and block has its own place in the file, and says where they end.
fn read_structures(media: &dyn Media, footer: &Footer, len: u64) -> Result<(Header, Table, u64), DiskError> {
    let damaged = |offset, what: String| DiskError::corrupt(media.path(), offset, what);
    let header_at = footer.header_offset();
    if header_at < FOOTER || header_at.checked_add(HEADER).is_none_or(|end| end > len) {
        // Offset 16 of the footer's copy.
        return Err(damaged(16, format!("the dynamic header lies outside of the file, at {header_at}")));
    }
    let bytes = read_vec(media, header_at, usize::try_from(HEADER).expect("1024"))?;
    let header = Header::parse(&bytes, footer.size()).map_err(|what| damaged(header_at, what))?;
    let table_at = header.table_offset();
    let table_end = table_at.checked_add(header.table_size()).filter(|&end| end <= len && table_at >= FOOTER);
    let Some(table_end) = table_end else {
        return Err(damaged(
            header_at + 16,
            format!("the block allocation table lies outside of the file, at {table_at}"),
        ));
    };
    let header_end = header_at + HEADER;
    if table_at < header_end && header_at < table_end {
        let what = format!("the block allocation table lies over the dynamic header, at {table_at}");
        return Err(damaged(header_at + 16, what));
    }
    let bytes = read_vec(media, table_at, usize::try_from(header.table_size()).expect("at most 16 MiB"))?;
    let entries: Vec<u32> = bytes.chunks_exact(4).map(|b| u32::from_be_bytes([b[0], b[1], b[2], b[3]])).collect();
    // Where no block may reach: the footer, or the end of a file that lost it.
    let blocks_end = Footer::place_at_end(media)?.unwrap_or(len);
    let fixed =
        [("footer's copy", 0, FOOTER), ("dynamic header", header_at, header_end), ("table", table_at, table_end)];
    let end = check_blocks(&entries, &header, footer.size(), blocks_end, &fixed)
        .map_err(|(block, what)| damaged(table_at + u64::from(block) * 4, what))?;
    // A locator that points anywhere else than into the file is no place to put blocks behind.
    let texts = header.locator_ends().into_iter().map(|end| end.min(blocks_end));
    let end = texts.fold(end.max(table_end).max(header_end), u64::max).next_multiple_of(SECTOR);
    Ok((header, Table::of(entries), end))
}

/// Checks that each block has a place of its own, and says where the last one ends; or which entry is wrong, and how.
fn check_blocks(
    entries: &[u32],
    header: &Header,
    size: u64,
    file_end: u64,
    fixed: &[(&str, u64, u64)],
) -> Result<u64, (u32, String)> {
    let last = header.blocks() - 1;
    let span = header.bitmap_size() + header.block_size();
    // The tail of the last block, beyond the disk, may be missing.
    let last_span = header.bitmap_size() + (size - u64::from(last) * header.block_size());
    let place = |block: u32| {
        let at = u64::from(entries[block as usize]) * SECTOR;
        (at, at + if block == last { last_span } else { span })
    };
    let mut present: Vec<u32> = (0..header.blocks()).filter(|&block| entries[block as usize] != ABSENT).collect();
    for &block in &present {
        let (at, end) = place(block);
        if end > file_end {
            return Err((block, format!("block {block} lies beyond the end of the file, at {at}")));
        }
        if let Some((name, ..)) = fixed.iter().find(|(_, from, to)| at < *to && *from < end) {
            return Err((block, format!("block {block} lies over the {name}, at {at}")));
        }
    }
    // In most files they are in order already, which this finds out fast.
    present.sort_by_key(|&block| entries[block as usize]);
    for pair in present.windows(2) {
        let ((at, end), (next, _)) = (place(pair[0]), place(pair[1]));
        let (one, other) = (pair[0].min(pair[1]), pair[0].max(pair[1]));
        if at == next {
            return Err((other, format!("the table gives blocks {one} and {other} the same place, {at}")));
        }
        if end > next {
            return Err((other, format!("blocks {one} and {other} lie over each other, at {at} and {next}")));
        }
    }
    Ok(present.last().map_or(0, |&block| place(block).0 + span))
}

/// Puts a footer that is missing, short or another back in its place, at the front and at the end: a new block goes over
/// the one at the end, and until the next one is durable the copy must do.
fn repair_footers(media: &dyn Media, footer: &Footer, end: u64) -> Result<(), DiskError> {
    let len = media.len()?;
    let mut changed = false;
    if read_vec(media, 0, 512)? != footer.as_bytes() {
        write_all(media, 0, footer.as_bytes())?;
        changed = true;
    }
    if read_vec(media, len - FOOTER, 512)? != footer.as_bytes() {
        // Nothing points behind `end`. A footer of 511 bytes begins at its place and gets its last byte.
        let at = Footer::place_at_end(media)?.unwrap_or(end.max(last_sector(len)));
        media.set_len(at + FOOTER)?;
        write_all(media, at, footer.as_bytes())?;
        changed = true;
    }
    if changed { media.sync() } else { Ok(()) }
}

/// Where the last sector of a file of this length begins, one that is cut short counted.
fn last_sector(len: u64) -> u64 {
    len.next_multiple_of(SECTOR) - SECTOR
}

/// Spares the reading of bitmaps that are holes: in a fresh child that is all of them.
fn skip_holes(media: &dyn Media, table: &Table, header: &Header, bits: &mut Bits) -> Result<(), DiskError> {
    let mut hole = 0..0;
    for block in 0..header.blocks() {
        let Some(at) = table.at(block) else { continue };
        // One question answers for all blocks up to the next data, where blocks lie in order.
        if !hole.contains(&at) {
            hole = at..media.next_data(at)?.unwrap_or(u64::MAX);
        }
        if at + header.bitmap_size() <= hole.end {
            bits.learn_all(block, false);
        }
    }
    Ok(())
}
