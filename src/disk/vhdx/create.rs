//! New VHDX files.
//!
//! ```text
//! 0        file identifier
//! 64 KiB   headers, at 64 and 128 KiB
//! 192 KiB  region table, and again at 256 KiB
//! 1 MiB    log, 4 MiB: an empty one is a hole
//! 5 MiB    metadata, 1 MiB
//! 6 MiB    block allocation table; of a new dynamic or differencing disk a hole
//! ...      payload blocks and sector bitmap blocks, as they come
//! ```
//!
//! A table of zeros says "no block is here", so a new child is a few KiB of structures whatever its size.

use std::path::Path;

use uuid::Uuid;

use super::engine::Vhdx;
use super::log::MAX_LOG;
use super::wire::{
    BLOCK_SIZES, Entry, HEADERS, Header, MAX_SIZE, MIB, Metadata, PAGE, ParentLocator, REGION_TABLES, Regions, State,
    identifier,
};
use crate::disk::chain::Chain;
use crate::disk::error::DiskError;
use crate::disk::file::{File, Media, read_vec, write_all};
use crate::disk::vhd::create::TempFile;
use crate::disk::{Disk, SECTOR};

/// Four times what Windows makes: so many more allocations go by before the log must be emptied.
const LOG_LENGTH: u32 = 4 << 20;
const _: () = assert!(LOG_LENGTH <= MAX_LOG);
/// Blocks of a new child. What one sector of a new block costs is a table entry, so they can be small.
const CHILD_BLOCK: u32 = 2 << 20;
/// Bytes of a table that are written at once.
const TABLE_STEP: usize = 1 << 20;

/// What a new disk without a parent is to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Spec {
    /// The capacity in bytes: whole logical sectors, at most [`MAX_SIZE`].
    pub size: u64,
    /// All blocks are in the file from the start.
    pub fixed: bool,
    /// Bytes of a block: a power of two from 1 to 256 MiB.
    pub block_size: u32,
    /// 512 or 4096.
    pub logical_sector: u32,
    /// 512 or 4096, and no less than the logical one.
    pub physical_sector: u32,
}

impl Spec {
    /// A dynamic disk as Windows makes it: blocks of 32 MiB, sectors of 512 bytes on 4096.
    #[must_use]
    pub fn dynamic(size: u64) -> Self {
        Self { size, fixed: false, block_size: 32 << 20, logical_sector: 512, physical_sector: 4096 }
    }

    /// A dynamic disk of `size` bytes for a copy of this one: with its sectors, if it is a VHDX. (What other formats do not
    /// say of theirs is as Windows makes it.)
    #[must_use]
    pub fn of(disk: &Chain, size: u64) -> Self {
        match disk.vhdx().map(Vhdx::metadata) {
            Some(&Metadata { logical_sector, physical_sector, .. }) => {
                Self { logical_sector, physical_sector, ..Self::dynamic(size) }
            }
            None => Self::dynamic(size),
        }
    }

    /// A fixed disk of this kind.
    #[must_use]
    pub fn fixed(size: u64) -> Self {
        Self { fixed: true, ..Self::dynamic(size) }
    }
}

/// Makes an empty disk, and renames it into place when it is durable. What was at `path` is replaced. The disk's identity.
///
/// # Errors
/// A disk that the format does not know, or the system's error. Nothing is left behind.
pub fn create(path: &Path, spec: &Spec) -> Result<Uuid, DiskError> {
    let temp = TempFile::beside(path)?;
    let id = create_on(&temp.file, spec)?;
    temp.keep()?;
    Ok(id)
}

/// The same with a table that has room for a disk of any size, see [`place_of_size`].
pub(in crate::disk) fn create_roomy(path: &Path, spec: &Spec) -> Result<Uuid, DiskError> {
    let temp = TempFile::beside(path)?;
    let id = create_for(&temp.file, spec, MAX_SIZE)?;
    temp.keep()?;
    Ok(id)
}

/// Writes an empty disk into an empty file. The disk's identity.
///
/// # Errors
/// As [`create`].
pub fn create_on(media: &dyn Media, spec: &Spec) -> Result<Uuid, DiskError> {
    create_for(media, spec, spec.size)
}

/// The same with a table for `room` bytes.
fn create_for(media: &dyn Media, spec: &Spec, room: u64) -> Result<Uuid, DiskError> {
    let refuse = |what: String| Err(DiskError::Unsupported { path: media.path().into(), what });
    let sectors = [spec.logical_sector, spec.physical_sector];
    if sectors.iter().any(|size| ![512, 4096].contains(size)) || spec.physical_sector < spec.logical_sector {
        return refuse(format!("a VHDX with sectors of {} on {} bytes cannot be", sectors[0], sectors[1]));
    }
    if !spec.block_size.is_power_of_two() || !BLOCK_SIZES.contains(&spec.block_size) {
        return refuse(format!(
            "a VHDX with blocks of {} bytes cannot be: powers of two, 1 to 256 MiB",
            spec.block_size
        ));
    }
    if spec.size == 0 || spec.size > MAX_SIZE || !spec.size.is_multiple_of(spec.logical_sector.into()) {
        return refuse(format!("a VHDX of {} bytes cannot be: whole sectors, at most 64 TiB", spec.size));
    }
    let metadata = Metadata {
        block_size: spec.block_size,
        leave_allocated: spec.fixed,
        size: spec.size,
        id: Uuid::new_v4(),
        logical_sector: spec.logical_sector,
        physical_sector: spec.physical_sector,
        parent: None,
    };
    write_structures(media, &metadata, Uuid::new_v4(), room)?;
    Ok(metadata.id)
}

/// Makes a child that reads as its parent, and renames it into place when it is durable. What was at `path` is replaced.
/// The parent's size and sectors are the child's. `relative` leads from the child's folder to the parent, written as
/// Windows does: `..\images\debian\1.vhdx`.
///
/// # Errors
/// A parent that is no VHDX, a path too long, or the system's error. Nothing is left behind.
pub fn create_child(path: &Path, parent: &Chain, relative: &str) -> Result<Uuid, DiskError> {
    let temp = TempFile::beside(path)?;
    let absolute =
        std::path::absolute(parent.path()).map_err(|source| DiskError::io(parent.path(), "resolve", source))?;
    let id = create_child_on(&temp.file, parent, relative, &absolute.to_string_lossy())?;
    temp.keep()?;
    Ok(id)
}

/// Writes a child's structures into an empty file. The child's identity.
///
/// # Errors
/// As [`create_child`].
pub fn create_child_on(media: &dyn Media, parent: &Chain, relative: &str, absolute: &str) -> Result<Uuid, DiskError> {
    write_child(media, parent, relative, absolute, NewChild::default())
}

/// What a new child is to be.
#[derive(Debug, Clone, Copy)]
pub(in crate::disk) struct NewChild {
    /// Bytes of a block: a power of two from 1 to 256 MiB.
    pub(in crate::disk) block_size: u32,
    /// The capacity in bytes, at least the parent's; `None`: the same. What is beyond the parent reads as zeros.
    pub(in crate::disk) size: Option<u64>,
    /// What its own children will know it by; a new one until its first write, unless it takes another's place.
    pub(in crate::disk) data_write: Uuid,
}

impl Default for NewChild {
    fn default() -> Self {
        Self { block_size: CHILD_BLOCK, size: None, data_write: Uuid::new_v4() }
    }
}

/// The same, with blocks and a capacity of any size.
pub(in crate::disk) fn write_child(
    media: &dyn Media,
    parent: &Chain,
    relative: &str,
    absolute: &str,
    new: NewChild,
) -> Result<Uuid, DiskError> {
    let unsupported = |what: &str| DiskError::Unsupported { path: parent.path().into(), what: what.to_owned() };
    let below = parent
        .vhdx()
        .ok_or_else(|| unsupported("is no VHDX: its contents have no mark that a VHDX child could name"))?;
    let locator = ParentLocator::new(below.header().data_write, relative, absolute);
    if !locator.fits() {
        return Err(unsupported("lies at a path too long for a parent locator"));
    }
    let size = new.size.unwrap_or(parent.size());
    if size < parent.size() {
        return Err(unsupported("has more bytes than the wanted child"));
    }
    if size > MAX_SIZE || !size.is_multiple_of(below.metadata().logical_sector.into()) {
        return Err(unsupported("cannot have a child of that size: whole sectors, at most 64 TiB"));
    }
    let metadata = Metadata {
        block_size: new.block_size,
        leave_allocated: false,
        size,
        id: Uuid::new_v4(),
        logical_sector: below.metadata().logical_sector,
        physical_sector: below.metadata().physical_sector,
        parent: Some(locator),
    };
    write_structures(media, &metadata, new.data_write, size)?;
    Ok(metadata.id)
}

/// Has a new VHDX filled, and leaves it complete and durable. Nobody waits for the device before.
pub(in crate::disk) fn fill(
    file: &File,
    fill: &mut dyn FnMut(&Vhdx) -> Result<(), DiskError>,
) -> Result<(), DiskError> {
    let to = Vhdx::open(Box::new(file.duplicate()?), false)?;
    to.keep_identity();
    to.set_volatile(true);
    fill(&to)?;
    to.set_volatile(false);
    to.close()
}

/// Writes the structures of a copy of a disk into an empty file, with the disk's identities: a dynamic disk, or a child of the
/// file called `parent` beside it. No block is in it yet.
pub(in crate::disk) fn copy_structures(media: &dyn Media, of: &Vhdx, parent: Option<&str>) -> Result<(), DiskError> {
    let unsupported = |what: &str| DiskError::Unsupported { path: of.media().path().into(), what: what.to_owned() };
    let locator = match (parent, &of.metadata().parent) {
        (None, _) => None,
        (Some(name), Some(locator)) => {
            let linkage = locator.linkage().ok_or_else(|| unsupported("does not say which parent it has"))?;
            // Without an absolute path: who reads that first would find another file, or none.
            Some(ParentLocator::beside(linkage, name))
        }
        (Some(_), None) => return Err(unsupported("has a parent although it is no differencing disk")),
    };
    let metadata =
        Metadata { block_size: CHILD_BLOCK, leave_allocated: false, parent: locator, ..of.metadata().clone() };
    write_structures(media, &metadata, of.header().data_write, metadata.size)
}

/// Where the capacity of a disk stands in its file, once its table is found fit for `size` bytes, which are more than it has.
/// No log is in the file, and nobody writes to it.
///
/// # Errors
/// A disk that cannot have so many bytes, a damaged file, or the system's error.
pub(in crate::disk) fn place_of_size(file: &dyn Media, size: u64) -> Result<u64, DiskError> {
    let refuse = |what: String| Err(DiskError::Unsupported { path: file.path().into(), what });
    let (header, ..) = Header::read(file)?;
    let (regions, _) = Regions::read(file, &header)?;
    let metadata = Metadata::read(file, &regions.metadata)?;
    if size > MAX_SIZE || !size.is_multiple_of(metadata.logical_sector.into()) {
        return refuse(format!("a VHDX of {size} bytes cannot be: whole sectors, at most 64 TiB"));
    }
    let table = |metadata: &Metadata| regions.bat.start + u64::from(metadata.bat_entries()) * 8;
    let (used, needed) = (table(&metadata), table(&Metadata { size, ..metadata.clone() }));
    if needed.next_multiple_of(PAGE) > regions.bat.end {
        let room = (regions.bat.end - regions.bat.start) / 8 * u64::from(metadata.block_size);
        return refuse(format!(
            "its table has room for a disk of about {} GiB: copy what is on it to a new file",
            room >> 30
        ));
    }
    // What lies in the table behind the last entry meant nothing so far.
    let mut at = used;
    while let Some(data) = file.next_data(at)?.filter(|data| *data < needed) {
        at = data.max(at);
        let step = usize::try_from((needed - at).min(TABLE_STEP as u64)).expect("1 MiB");
        if read_vec(file, at, step)?.iter().any(|&byte| byte != 0) {
            return refuse("its table is followed by something else, and cannot grow".to_owned());
        }
        at += step as u64;
    }
    // The block that was the last one need not have been in the file to its end.
    let last = regions.bat.start + u64::from(metadata.payload_entry(metadata.blocks() - 1)) * 8;
    let entry = read_vec(file, last, 8)?.try_into().expect("8 bytes");
    if let Some(at) = Entry(u64::from_le_bytes(entry)).at()
        && file.len()? < at + u64::from(metadata.block_size)
    {
        file.set_len(at + u64::from(metadata.block_size))?;
    }
    let place = Metadata::place_of_size(file, &regions.metadata)?;
    match place % SECTOR + 8 > SECTOR {
        true => refuse("its capacity stands across two sectors, and cannot be changed at once".to_owned()),
        false => Ok(place),
    }
}

/// The table is made for a disk of `room` bytes.
fn write_structures(media: &dyn Media, metadata: &Metadata, data_write: Uuid, room: u64) -> Result<(), DiskError> {
    let log_offset = MIB;
    let metadata_at = log_offset + u64::from(LOG_LENGTH);
    let bat_at = metadata_at + MIB;
    let entries = Metadata { size: room, ..metadata.clone() }.bat_entries();
    let bat = bat_at..bat_at + (u64::from(entries) * 8).next_multiple_of(MIB);
    let block_size = u64::from(metadata.block_size);
    let blocks = if metadata.leave_allocated { u64::from(metadata.blocks()) } else { 0 };
    media.set_len(bat.end + blocks * block_size)?;

    write_all(media, 0, &identifier())?;
    let header = Header {
        sequence: 0,
        file_write: Uuid::new_v4(),
        data_write,
        log: Uuid::nil(),
        log_length: LOG_LENGTH,
        log_offset,
    };
    for (at, sequence) in HEADERS.into_iter().zip(1..) {
        write_all(media, at, &Header { sequence, ..header }.to_bytes())?;
    }
    let regions = Regions::to_bytes(&bat, &(metadata_at..bat_at));
    for at in REGION_TABLES {
        write_all(media, at, &regions)?;
    }
    write_all(media, metadata_at, &metadata.to_bytes())?;
    if metadata.leave_allocated {
        let mut at = bat.start;
        let mut piece = Vec::with_capacity(TABLE_STEP);
        for index in 0..metadata.bat_entries() {
            let ratio = metadata.chunk_ratio();
            let is_bitmap = index % (ratio + 1) == ratio;
            let block = u64::from(index - index / (ratio + 1));
            let entry =
                if is_bitmap { Entry::default() } else { Entry::new(State::Full, bat.end + block * block_size) };
            piece.extend_from_slice(&entry.0.to_le_bytes());
            if piece.len() == TABLE_STEP {
                write_all(media, at, &piece)?;
                at += piece.len() as u64;
                piece.clear();
            }
        }
        write_all(media, at, &piece)?;
    }
    media.sync()
}
