//! New VHD files.
//!
//! A client's disk is a *pre-mapped sparse differencing VHD*: its table maps every block from birth, in order, with the
//! block's bitmap in the sector before a 4 KiB boundary and the data from there. All of it is a hole, and a zero bitmap
//! means "all from the parent", so the file is right before anything is written. Afterwards there is no allocation, no
//! table write and no footer to move: the position of a sector is arithmetic, the only metadata is its bit.
//!
//! ```text
//! 0        footer copy
//! 512      dynamic header
//! 4096     W2ru text           relative to the file's folder, with backslashes
//! 8192     W2ku text           the parent's path on this host
//! 16384    table, one entry per block
//! ...      per block: bitmap, 2 MiB of data, 3584 unused bytes
//! end      footer
//! ```
//!
//! Its apparent size is the disk's (and 0.2 %), so copies must know holes (`cp --sparse=always`, `rsync -S`).

use std::fs;
use std::path::{Path, PathBuf};

use uuid::Uuid;

use super::super::SECTOR;
use super::super::chain::Chain;
use super::super::error::DiskError;
use super::super::file::{File, Media, sync_folder_of, write_all};
use super::sparse::ALIGN;
use super::wire::{
    ABSENT, BLOCK_SIZE, FOOTER, Footer, HEADER, Header, Kind, Locator, LocatorKind, MAX_SIZE, NewHeader,
};

const RELATIVE_AT: u64 = 4096;
const ABSOLUTE_AT: u64 = 8192;
const CHILD_TABLE_AT: u64 = 16_384;
/// Where the table of a new dynamic disk lies: right behind the header, as Windows puts it.
const TABLE_AT: u64 = FOOTER + HEADER;
const BITMAP: u64 = 512;
const STRIDE: u64 = BLOCK_SIZE as u64 + ALIGN;

/// Makes a child that reads as its parent, and renames it into place when it is durable. What was at `path` is replaced.
/// The parent's size is the child's. `relative` leads from the child's folder to the parent, written as Windows does:
/// `..\images\debian\1.vhd`.
///
/// # Errors
/// A parent that is no VHD, a path too long for its place, or the system's error. Nothing is left behind.
pub fn create_child(path: &Path, parent: &Chain, relative: &str) -> Result<Uuid, DiskError> {
    let temp = TempFile::beside(path)?;
    let id = Uuid::new_v4();
    let absolute =
        std::path::absolute(parent.path()).map_err(|source| DiskError::io(parent.path(), "resolve", source))?;
    write_child(&temp.file, id, parent, relative, &absolute.to_string_lossy())?;
    temp.keep()?;
    Ok(id)
}

/// Writes a child's structures into an empty file.
pub(in crate::disk) fn write_child(
    media: &dyn Media,
    id: Uuid,
    parent: &Chain,
    relative: &str,
    absolute: &str,
) -> Result<(), DiskError> {
    use super::super::Disk;
    let unsupported = |what: String| DiskError::Unsupported { path: parent.path().into(), what };
    let parent_id = parent
        .unique_id()
        .ok_or_else(|| unsupported("has no identity that a child could name: import it first".into()))?;
    let size = parent.size();
    let blocks = size.div_ceil(BLOCK_SIZE.into());
    let table_end = CHILD_TABLE_AT + (blocks * 4).next_multiple_of(SECTOR);
    let first = (table_end + BITMAP).next_multiple_of(ALIGN) - BITMAP;
    let end = first + BITMAP + (blocks - 1) * STRIDE + u64::from(BLOCK_SIZE);
    if end / SECTOR >= u64::from(ABSENT) {
        return Err(unsupported(format!("{size} bytes are too many for a differencing VHD (2040 GiB at most)")));
    }

    let text = |kind, text: &str, offset, space: u64| {
        let bytes: Vec<u8> = text.encode_utf16().flat_map(u16::to_le_bytes).collect();
        let fits = bytes.len() as u64 <= space;
        let number = |n: u64| u32::try_from(n).expect("a few KiB");
        fits.then(|| (Locator { kind, offset, len: number(bytes.len() as u64), space: number(space) }, bytes))
            .ok_or_else(|| unsupported("lies at a path too long for a parent locator".into()))
    };
    let (relative, relative_text) = text(LocatorKind::Relative, relative, RELATIVE_AT, ABSOLUTE_AT - RELATIVE_AT)?;
    let (absolute_locator, absolute_text) =
        text(LocatorKind::Absolute, absolute, ABSOLUTE_AT, CHILD_TABLE_AT - ABSOLUTE_AT)?;
    let name = if absolute.encode_utf16().count() < 256 {
        absolute.to_owned()
    } else {
        parent.path().file_name().unwrap_or_default().to_string_lossy().into_owned()
    };
    let header = Header::new(&NewHeader {
        size,
        block_size: BLOCK_SIZE,
        table_offset: CHILD_TABLE_AT,
        parent: Some((parent_id, &name, vec![relative, absolute_locator])),
    });
    let entries = (0..blocks).map(|n| u32::try_from((first + n * STRIDE) / SECTOR).expect("checked by the end"));
    let footer = Footer::new(Kind::Differencing, size, id);

    media.set_len(end + FOOTER)?;
    write_all(media, 0, footer.as_bytes())?;
    write_all(media, FOOTER, header.as_bytes())?;
    write_all(media, RELATIVE_AT, &relative_text)?;
    write_all(media, ABSOLUTE_AT, &absolute_text)?;
    write_all(media, CHILD_TABLE_AT, &table(entries))?;
    write_all(media, end, footer.as_bytes())?;
    media.sync()
}

/// Makes an empty dynamic disk. What was at `path` is replaced.
///
/// # Errors
/// A size that the format does not know, or the system's error.
pub fn create_dynamic(path: &Path, size: u64) -> Result<Uuid, DiskError> {
    let temp = TempFile::beside(path)?;
    let id = Builder::new(&temp.file, size)?.finish()?;
    temp.keep()?;
    Ok(id)
}

/// Makes a fixed disk of zeros, all a hole. What was at `path` is replaced.
///
/// # Errors
/// A size that the format does not know, or the system's error.
pub fn create_fixed(path: &Path, size: u64) -> Result<Uuid, DiskError> {
    check_size(path, size)?;
    let temp = TempFile::beside(path)?;
    let id = Uuid::new_v4();
    temp.file.set_len(size + FOOTER)?;
    write_all(&temp.file, size, Footer::new(Kind::Fixed, size, id).as_bytes())?;
    temp.file.sync()?;
    temp.keep()?;
    Ok(id)
}

fn check_size(path: &Path, size: u64) -> Result<(), DiskError> {
    if size == 0 || !size.is_multiple_of(SECTOR) || size > MAX_SIZE {
        let what = format!("a VHD of {size} bytes cannot be: whole sectors, at most 2040 GiB");
        return Err(DiskError::Unsupported { path: path.into(), what });
    }
    Ok(())
}

fn table(entries: impl Iterator<Item = u32>) -> Vec<u8> {
    let mut bytes: Vec<u8> = entries.flat_map(u32::to_be_bytes).collect();
    bytes.resize(bytes.len().next_multiple_of(512), 0xff);
    bytes
}

/// Writes a dynamic disk from its first block to its last, in one go: the structures come at the end.
#[derive(Debug)]
pub struct Builder<'a> {
    media: &'a dyn Media,
    size: u64,
    entries: Vec<u32>,
    /// Where the last structure ends.
    end: u64,
}

impl<'a> Builder<'a> {
    /// Bytes of a block.
    pub const BLOCK_SIZE: u64 = BLOCK_SIZE as u64;

    /// Begins a disk of `size` bytes in an empty file.
    ///
    /// # Errors
    /// A size that the format does not know.
    pub fn new(media: &'a dyn Media, size: u64) -> Result<Self, DiskError> {
        check_size(media.path(), size)?;
        let blocks = usize::try_from(size.div_ceil(Self::BLOCK_SIZE)).expect("at most MAX_BLOCKS");
        let end = TABLE_AT + (blocks as u64 * 4).next_multiple_of(SECTOR);
        Ok(Self { media, size, entries: vec![ABSENT; blocks], end })
    }

    /// Writes bytes at an offset of the disk, within one block. What is not written stays a hole.
    ///
    /// # Errors
    /// The system's.
    pub fn write(&mut self, offset: u64, bytes: &[u8]) -> Result<(), DiskError> {
        let (block, within) = (offset / Self::BLOCK_SIZE, offset % Self::BLOCK_SIZE);
        debug_assert!(within + bytes.len() as u64 <= Self::BLOCK_SIZE);
        let entry = &mut self.entries[usize::try_from(block).expect("within the disk")];
        if *entry == ABSENT {
            let data_at = (self.end + BITMAP).next_multiple_of(ALIGN);
            write_all(self.media, data_at - BITMAP, &[0xff; 512])?;
            *entry = u32::try_from((data_at - BITMAP) / SECTOR).expect("2040 GiB and 4 KiB per block are under 2 TiB");
            self.end = data_at + Self::BLOCK_SIZE;
        }
        write_all(self.media, u64::from(*entry) * SECTOR + BITMAP + within, bytes)
    }

    /// Writes the structures and waits until all is durable. The disk's new identity.
    ///
    /// # Errors
    /// The system's.
    pub fn finish(self) -> Result<Uuid, DiskError> {
        let id = Uuid::new_v4();
        let footer = Footer::new(Kind::Dynamic, self.size, id);
        let header =
            Header::new(&NewHeader { size: self.size, block_size: BLOCK_SIZE, table_offset: TABLE_AT, parent: None });
        write_all(self.media, 0, footer.as_bytes())?;
        write_all(self.media, FOOTER, header.as_bytes())?;
        write_all(self.media, TABLE_AT, &table(self.entries.into_iter()))?;
        write_all(self.media, self.end, footer.as_bytes())?;
        self.media.sync()?;
        Ok(id)
    }
}

/// A file beside the one that it is to become; removed unless it is kept.
#[derive(Debug)]
pub(in crate::disk) struct TempFile {
    pub(in crate::disk) file: File,
    temp: PathBuf,
    path: PathBuf,
    kept: bool,
}

impl TempFile {
    /// Makes `PATH.new`, empty; one that an earlier process left is taken over.
    pub(in crate::disk) fn beside(path: &Path) -> Result<Self, DiskError> {
        let mut temp = path.as_os_str().to_owned();
        temp.push(".new");
        let temp = PathBuf::from(temp);
        let file = File::open_or_create(&temp)?;
        file.set_len(0)?;
        Ok(Self { file, temp, path: path.into(), kept: false })
    }

    /// Renames a file that has been flushed into place, durably.
    pub(in crate::disk) fn keep(mut self) -> Result<(), DiskError> {
        fs::rename(&self.temp, &self.path).map_err(|source| DiskError::io(&self.path, "rename into place", source))?;
        self.kept = true;
        sync_folder_of(&self.path)
    }

    /// Its path until it is kept.
    pub(in crate::disk) fn temp_path(&self) -> &Path {
        &self.temp
    }
}

impl Drop for TempFile {
    fn drop(&mut self) {
        if !self.kept {
            // It is of no use, and the error that brought us here says more than this one could.
            let _ = fs::remove_file(&self.temp);
        }
    }
}
