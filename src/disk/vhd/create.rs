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
//! Its apparent size is the disk's (and 0.2 %), so copies must know holes (`cp --sparse=always`, `rsync -S`). Where they do
//! not, there is the other layout, *compact*: the same structures with an empty table, the footer right behind them, and blocks
//! as they are needed. [`super::sparse`] says how both stay right when power is lost.

use std::path::{Path, PathBuf};

use uuid::Uuid;

use super::super::SECTOR;
use super::super::chain::Chain;
use super::super::error::DiskError;
use super::super::file::{File, Media, remove, rename, sync_folder_of, write_all};
use super::sparse::ALIGN;
use super::wire::{
    ABSENT, BLOCK_SIZE, FOOTER, Footer, HEADER, Header, Kind, Locator, LocatorKind, MAX_BLOCK_SIZE, MAX_BLOCKS,
    MAX_FILE, MAX_SIZE, NewHeader,
};

/// The smallest block of a new disk, one page of the host. Windows takes only blocks of 512 KiB and 2 MiB.
pub const MIN_BLOCK_SIZE: u32 = 4096;

const RELATIVE_AT: u64 = 4096;
const ABSOLUTE_AT: u64 = 8192;
const CHILD_TABLE_AT: u64 = 16_384;
/// Where the table of a new dynamic disk lies: right behind the header, as Windows puts it.
const TABLE_AT: u64 = FOOTER + HEADER;

/// Where the blocks of a new child lie.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Layout {
    /// Every block has its place from birth; the file is as long as the disk, and a hole.
    #[default]
    Mapped,
    /// A block gets a place at its first write; the file is as long as what is in it.
    Compact,
}

/// What a new child is to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NewChild {
    /// Where its blocks lie.
    pub layout: Layout,
    /// Bytes of a block, a power of two from [`MIN_BLOCK_SIZE`] to [`MAX_BLOCK_SIZE`]. Windows takes 512 KiB and 2 MiB.
    pub block_size: u32,
    /// The capacity in bytes, at least the parent's; `None`: the same. What is beyond the parent reads as zeros.
    pub size: Option<u64>,
}

impl Default for NewChild {
    fn default() -> Self {
        Self { layout: Layout::Mapped, block_size: BLOCK_SIZE, size: None }
    }
}

/// Makes a pre-mapped child that reads as its parent, and renames it into place when it is durable. What was at `path` is
/// replaced. The parent's size is the child's. `relative` leads from the child's folder to the parent, written as Windows
/// does: `..\images\debian\1.vhd`.
///
/// # Errors
/// A parent that is no VHD, a path too long for its place, or the system's error. Nothing is left behind.
pub fn create_child(path: &Path, parent: &Chain, relative: &str) -> Result<Uuid, DiskError> {
    create_child_as(path, parent, relative, NewChild::default())
}

/// The same, of any layout, block size and capacity.
///
/// # Errors
/// As [`create_child`], and a block size or capacity that cannot be.
pub fn create_child_as(path: &Path, parent: &Chain, relative: &str, new: NewChild) -> Result<Uuid, DiskError> {
    let temp = TempFile::beside(path)?;
    let id = Uuid::new_v4();
    let absolute =
        std::path::absolute(parent.path()).map_err(|source| DiskError::io(parent.path(), "resolve", source))?;
    write_child(&temp.file, id, parent, relative, &absolute.to_string_lossy(), new)?;
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
    new: NewChild,
) -> Result<(), DiskError> {
    use super::super::Disk;
    let unsupported = |what: String| DiskError::Unsupported { path: parent.path().into(), what };
    let parent_id = parent
        .unique_id()
        .ok_or_else(|| unsupported("has no identity that a child could name: import it first".into()))?;
    let size = new.size.unwrap_or(parent.size());
    if size < parent.size() {
        return Err(unsupported(format!("has {} bytes, more than the {size} of the wanted child", parent.size())));
    }
    check_size(media.path(), size)?;
    check_block_size(media.path(), new.block_size)?;
    let plan = Plan::new(size, new.block_size, CHILD_TABLE_AT);
    plan.check(media.path(), size)?;
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
        block_size: new.block_size,
        table_offset: CHILD_TABLE_AT,
        parent: Some((parent_id, &name, vec![relative, absolute_locator])),
    });
    let (entries, end): (Vec<u32>, _) = match new.layout {
        Layout::Mapped => ((0..plan.blocks).map(|n| plan.entry(n)).collect(), plan.end()),
        Layout::Compact => (vec![ABSENT; usize::try_from(plan.blocks).expect("at most MAX_BLOCKS")], plan.table_end),
    };
    let footer = Footer::new(Kind::Differencing, size, id);

    media.set_len(end + FOOTER)?;
    write_all(media, 0, footer.as_bytes())?;
    write_all(media, FOOTER, header.as_bytes())?;
    write_all(media, RELATIVE_AT, &relative_text)?;
    write_all(media, ABSOLUTE_AT, &absolute_text)?;
    write_all(media, CHILD_TABLE_AT, &table(entries.into_iter()))?;
    write_all(media, end, footer.as_bytes())?;
    media.sync()
}

/// Where the blocks of a disk lie when all of them are in the file, in order.
#[derive(Debug, Clone, Copy)]
struct Plan {
    blocks: u64,
    block_size: u64,
    bitmap_size: u64,
    table_end: u64,
}

impl Plan {
    fn new(size: u64, block_size: u32, table_at: u64) -> Self {
        let block_size = u64::from(block_size);
        let blocks = size.div_ceil(block_size);
        let bitmap_size = (block_size / SECTOR).div_ceil(8).next_multiple_of(SECTOR);
        Self { blocks, block_size, bitmap_size, table_end: table_at + (blocks * 4).next_multiple_of(SECTOR) }
    }

    /// Whether the disk fits its format even when it is full: it must not come to an end half-way.
    fn check(&self, path: &Path, size: u64) -> Result<(), DiskError> {
        if self.blocks > u64::from(MAX_BLOCKS) || self.end() + FOOTER > MAX_FILE {
            let what = format!(
                "{size} bytes in blocks of {} do not fit a VHD, whose file ends at 2 TiB: take larger blocks",
                self.block_size
            );
            return Err(DiskError::Unsupported { path: path.into(), what });
        }
        Ok(())
    }

    /// Where a block's bitmap lies: right before its data, which begins a page.
    fn place(&self, block: u64) -> u64 {
        let first = (self.table_end + self.bitmap_size).next_multiple_of(ALIGN) - self.bitmap_size;
        first + block * (self.bitmap_size + self.block_size).next_multiple_of(ALIGN)
    }

    fn entry(&self, block: u64) -> u32 {
        u32::try_from(self.place(block) / SECTOR).expect("checked by the end")
    }

    /// Where the last block ends.
    fn end(&self) -> u64 {
        self.place(self.blocks - 1) + self.bitmap_size + self.block_size
    }
}

fn check_block_size(path: &Path, block_size: u32) -> Result<(), DiskError> {
    if !block_size.is_power_of_two() || !(MIN_BLOCK_SIZE..=MAX_BLOCK_SIZE).contains(&block_size) {
        let what = format!("blocks of {block_size} bytes cannot be: a power of two from 4 KiB to 256 MiB");
        return Err(DiskError::Unsupported { path: path.into(), what });
    }
    Ok(())
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

/// The same, in blocks of any size: a power of two from [`MIN_BLOCK_SIZE`] to [`MAX_BLOCK_SIZE`]. Windows takes 512 KiB and 2 MiB.
///
/// # Errors
/// A size that the format does not know, or the system's error.
pub fn create_dynamic_as(path: &Path, size: u64, block_size: u32) -> Result<Uuid, DiskError> {
    let temp = TempFile::beside(path)?;
    let id = Builder::with_blocks(&temp.file, size, block_size)?.finish()?;
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
    plan: Plan,
    entries: Vec<u32>,
    /// Blocks in the file.
    present: u64,
}

impl<'a> Builder<'a> {
    /// Bytes of a block, unless another size is asked for.
    pub const BLOCK_SIZE: u64 = BLOCK_SIZE as u64;

    /// Begins a disk of `size` bytes in an empty file.
    ///
    /// # Errors
    /// A size that the format does not know.
    pub fn new(media: &'a dyn Media, size: u64) -> Result<Self, DiskError> {
        Self::with_blocks(media, size, BLOCK_SIZE)
    }

    /// The same, in blocks of any size: a power of two from [`MIN_BLOCK_SIZE`] to [`MAX_BLOCK_SIZE`].
    ///
    /// # Errors
    /// A size that the format does not know.
    pub fn with_blocks(media: &'a dyn Media, size: u64, block_size: u32) -> Result<Self, DiskError> {
        check_size(media.path(), size)?;
        check_block_size(media.path(), block_size)?;
        let plan = Plan::new(size, block_size, TABLE_AT);
        plan.check(media.path(), size)?;
        let entries = vec![ABSENT; usize::try_from(plan.blocks).expect("at most MAX_BLOCKS")];
        Ok(Self { media, size, plan, entries, present: 0 })
    }

    /// Writes bytes at an offset of the disk, within one block. What is not written stays a hole.
    ///
    /// # Errors
    /// The system's.
    pub fn write(&mut self, offset: u64, bytes: &[u8]) -> Result<(), DiskError> {
        let (block, within) = (offset / self.plan.block_size, offset % self.plan.block_size);
        debug_assert!(within + bytes.len() as u64 <= self.plan.block_size);
        let entry = &mut self.entries[usize::try_from(block).expect("within the disk")];
        if *entry == ABSENT {
            *entry = self.plan.entry(self.present);
            self.present += 1;
            let bitmap = vec![0xff; usize::try_from(self.plan.bitmap_size).expect("at most 64 KiB")];
            write_all(self.media, u64::from(*entry) * SECTOR, &bitmap)?;
        }
        write_all(self.media, u64::from(*entry) * SECTOR + self.plan.bitmap_size + within, bytes)
    }

    /// Writes the structures and waits until all is durable. The disk's new identity.
    ///
    /// # Errors
    /// The system's.
    pub fn finish(self) -> Result<Uuid, DiskError> {
        let id = Uuid::new_v4();
        let footer = Footer::new(Kind::Dynamic, self.size, id);
        let block_size = u32::try_from(self.plan.block_size).expect("at most 256 MiB");
        let header = Header::new(&NewHeader { size: self.size, block_size, table_offset: TABLE_AT, parent: None });
        let end = match self.present {
            0 => self.plan.table_end,
            blocks => Plan { blocks, ..self.plan }.end(),
        };
        write_all(self.media, 0, footer.as_bytes())?;
        write_all(self.media, FOOTER, header.as_bytes())?;
        write_all(self.media, TABLE_AT, &table(self.entries.into_iter()))?;
        write_all(self.media, end, footer.as_bytes())?;
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
        rename(&self.temp, &self.path)?;
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
            let _ = remove(&self.temp);
        }
    }
}
