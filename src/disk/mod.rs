//! Layers of bytes: what lies under a logical unit.
//!
//! A [`Chain`] is a disk file and the parents below it: raw, or a VHD or VHDX that is fixed, dynamic or differencing. It maps a
//! whole request to [`Extent`](chain::Extent)s once and moves the bytes by position. A client's disk is a differencing
//! VHD over a master that all clients share; [`vhd::create_child`] says how it is laid out and [`vhd::sparse`] in
//! which order its writes become durable.
//!
//! Everything here is synchronous and knows neither SCSI nor clients. Nothing but [`mod@file`] touches a file's bytes, so the
//! same code runs on a double that loses power.
//!
//! Standard: *Virtual Hard Disk Image Format Specification* 1.0 (2006), with the practice of Windows where the two differ;
//! \[MS-VHDX\] *Virtual Hard Disk v2 (VHDX) File Format*.

use std::fmt::Debug;
use std::io::{IoSlice, IoSliceMut};
use std::os::fd::BorrowedFd;

mod cache;
pub mod chain;
pub mod check;
pub mod checksum;
pub mod copy;
pub mod data;
pub mod error;
pub mod export;
pub mod file;
pub mod import;
pub mod inspect;
mod iovec;
pub mod names;
pub mod overlay;
pub mod pending;
pub mod qemu;
pub mod vhd;
pub mod vhdx;

#[cfg(test)]
mod conformance;
#[cfg(any(test, fuzzing))]
mod double;
#[cfg(any(test, fuzzing))]
pub mod fuzz;
#[cfg(test)]
mod hostile;
#[cfg(test)]
mod model;
#[cfg(test)]
mod power;
#[cfg(test)]
mod witness;

pub use cache::bitmap_bytes;
pub use chain::{Chain, PendingPath};
pub use error::{DiskError, ErrorKind};
pub use names::Format;

/// Bytes of a sector, the unit of every offset and length.
pub const SECTOR: u64 = 512;

/// Bytes that a file system allocates at once, as nearly all of them do.
pub const PAGE: u64 = 4096;

/// The sizes of a disk's sectors, in bytes: 512 or 4096 each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sectors {
    /// What the disk is addressed in.
    pub logical: u32,
    /// What is written without being read first; no less than the logical size.
    pub physical: u32,
}

impl Default for Sectors {
    /// 512 bytes each: a disk that says nothing of its sectors, as no VHD does.
    fn default() -> Self {
        Self { logical: 512, physical: 512 }
    }
}

/// A part of a disk that is alike in having space on the host, or not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stretch {
    /// Bytes.
    pub len: u64,
    /// Some file has bytes for it; else it reads as zeros and takes no space.
    pub mapped: bool,
}

/// Takes a part of a file, from an offset on: how many of so many bytes it took.
pub type PassOn<'a> = dyn FnMut(BorrowedFd<'_>, u64, u64) -> u64 + 'a;

/// A virtual disk that a logical unit serves. Offsets and lengths are bytes, multiples of [`SECTOR`].
///
/// Synchronous, positional, shared: readers run at any time; the caller lets one writer at a time in (`write`, `zero`
/// and `flush` wait for each other, so a mistake costs time, not data).
pub trait Disk: Send + Sync + Debug {
    /// The capacity in bytes.
    fn size(&self) -> u64;

    /// Its sectors, as its initiators are to see them. Offsets and lengths in here are multiples of [`SECTOR`] all the same.
    fn sectors(&self) -> Sectors {
        Sectors::default()
    }

    /// Reads without blocking into the buffers, one after another. `true`: all of it. `false`: some of it is not in
    /// memory and the buffers' contents are unspecified; use [`read`](Disk::read) on a thread that may block.
    ///
    /// # Errors
    /// A range beyond the disk, a damaged file, or the system's error.
    fn try_read(&self, offset: u64, bufs: &mut [IoSliceMut<'_>]) -> Result<bool, DiskError>;

    /// Reads into the buffers, one after another, and may wait for the device.
    ///
    /// # Errors
    /// A range beyond the disk, a damaged file, or the system's error.
    fn read(&self, offset: u64, bufs: &mut [IoSliceMut<'_>]) -> Result<(), DiskError>;

    /// Passes a range on without copying it: `each` is told of the parts in order, as an open file, an offset and a length, and
    /// tells how many bytes it took; when that is fewer than all, it is not asked again. Returns the bytes taken. `None`, and
    /// `each` was not asked: not all of the range lies in files, in parts of a good size, and in memory;
    /// [`try_read`](Disk::try_read) it.
    ///
    /// # Errors
    /// A range beyond the disk, a damaged file, or the system's error.
    fn pass_on(&self, offset: u64, len: u64, each: &mut PassOn<'_>) -> Result<Option<u64>, DiskError> {
        let _ = (offset, len, each);
        Ok(None)
    }

    /// Writes the buffers one after another. When it returns, the write may be acknowledged: it survives the death of
    /// the process. Power loss is [`flush`](Disk::flush)'s business; until then each sector is old or new.
    ///
    /// # Errors
    /// A range beyond the disk, a read-only disk, a full host, or the system's error. Each sector is then old or new.
    fn write(&self, offset: u64, bufs: &[IoSlice<'_>]) -> Result<(), DiskError>;

    /// Writes the same if that needs no waiting. `true`: it is done, as by [`write`](Disk::write). `false`: each sector is old or
    /// new; use `write` on a thread that may block. Several may run at the same time, but no other change of the disk.
    ///
    /// # Errors
    /// As [`write`](Disk::write).
    fn try_write(&self, offset: u64, bufs: &[IoSlice<'_>]) -> Result<bool, DiskError> {
        let _ = (offset, bufs);
        Ok(false)
    }

    /// Makes a range read back as zeros, never as a lower layer's bytes, and gives its space back to the host where
    /// whole 4 KiB are covered.
    ///
    /// # Errors
    /// As [`write`](Disk::write).
    fn zero(&self, offset: u64, len: u64) -> Result<(), DiskError>;

    /// When it returns, all writes acknowledged before survive power loss. (A [volatile](Chain::open_volatile) disk promises
    /// nothing of the power, and returns at once.)
    ///
    /// # Errors
    /// The system's error. After a failed barrier nobody knows what the device holds, so every later write and flush of
    /// this disk fails too, until it is opened anew.
    fn flush(&self) -> Result<(), DiskError>;

    /// Flushes, and leaves files that other programs find complete. The disk can be used on.
    ///
    /// # Errors
    /// As [`flush`](Disk::flush).
    fn close(&self) -> Result<(), DiskError> {
        self.flush()
    }

    /// Whether writes are refused.
    fn read_only(&self) -> bool;

    /// Which parts of a range take space, in order, no two alike beside each other; no more than `most`, and then not the
    /// whole range. May wait for the device. Without better knowledge all of it does.
    ///
    /// # Errors
    /// A range beyond the disk, a damaged file, or the system's error.
    fn provisioning(&self, offset: u64, len: u64, most: usize) -> Result<Vec<Stretch>, DiskError> {
        let _ = (offset, most);
        Ok(vec![Stretch { len, mapped: true }])
    }

    /// How many bytes more the disk's own file takes up on the host at most once this range is written: nothing where it
    /// has been written before. Tables and bits of the format are not counted. May wait for the device. A disk that
    /// is no file takes nothing.
    ///
    /// # Errors
    /// A range beyond the disk, a damaged file, or the system's error.
    fn growth(&self, offset: u64, len: u64) -> Result<u64, DiskError> {
        let _ = (offset, len);
        Ok(0)
    }
}
