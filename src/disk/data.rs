//! A disk that stands on nothing: a client's second disk, of which no reset or other image changes a byte.
//!
//! The file is a dynamic VHDX. Where nothing lies below, a sector that is not there yet reads as zeros, and so does the space
//! that it will get: data and table need no order, the file's own log lets every acknowledged write outlive the process, and
//! a flush makes it outlive the power. So there is no pending map beside it, and the one file is all there is to carry elsewhere.
//!
//! # Growth
//!
//! A new file's table has room for the largest disk that the format knows; unused, it is a hole. So a larger disk is another
//! number in the metadata: the log is emptied, then eight bytes within one sector are written and flushed. A crash leaves the
//! old size or the new one.

use std::io::{IoSlice, IoSliceMut};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use uuid::Uuid;

use super::chain::Chain;
use super::error::DiskError;
use super::file::{Access, File, Media, write_all};
use super::vhdx::create::{Spec, create_roomy, place_of_size};
use super::vhdx::wire;
use super::{Disk, PassOn, Sectors, Stretch};

/// The most bytes that such a disk can have.
pub const MAX_SIZE: u64 = wire::MAX_SIZE;

/// A disk that stands on nothing, while it is served.
///
/// Reads take the file as it is known when they begin. The caller lets no write happen while it grows.
#[derive(Debug)]
pub struct DataDisk {
    file: File,
    chain: RwLock<Arc<Chain>>,
    /// It grows one step at a time.
    growing: Mutex<()>,
    /// It failed to grow half-way: how large it is by now is for the next opening to find out.
    stuck: AtomicBool,
}

impl DataDisk {
    /// Makes an empty disk of this size, and renames it into place when it is durable.
    ///
    /// # Errors
    /// A size that the format does not know, or the system's error. Nothing is left behind.
    pub fn create(path: &Path, size: u64) -> Result<(), DiskError> {
        create_roomy(path, &Spec::dynamic(size)).map(drop)
    }

    /// Opens the disk for writing.
    ///
    /// # Errors
    /// A file that is no such disk, a damaged one, a lock, or the system's error.
    pub fn open(path: &Path) -> Result<Self, DiskError> {
        let file = File::open(path, Access::Write)?;
        let chain = Self::chain_on(&file)?;
        Ok(Self { file, chain: RwLock::new(Arc::new(chain)), growing: Mutex::default(), stuck: AtomicBool::new(false) })
    }

    fn chain_on(file: &File) -> Result<Chain, DiskError> {
        let chain = Chain::base_on(Box::new(file.duplicate()?), Access::Write)?;
        // What is nothing else would be taken for a raw disk.
        match chain.vhdx() {
            Some(_) => Ok(chain),
            None => Err(DiskError::corrupt(file.path(), 0, "no VHDX: the signature \"vhdxfile\" is missing")),
        }
    }

    /// Grows the disk to `size` bytes; what is new reads as zeros. Nothing happens where it has as many.
    ///
    /// # Errors
    /// A size that the file has no room for, or the system's error; the disk is as it was, or takes no more writes until it is
    /// opened anew.
    pub fn grow(&self, size: u64) -> Result<(), DiskError> {
        let _one = self.growing.lock().unwrap_or_else(PoisonError::into_inner);
        self.check_sound()?;
        let chain = self.chain();
        if size <= chain.size() {
            return Ok(());
        }
        // Without a log, and with all that it told in its place.
        chain.close()?;
        let place = place_of_size(&self.file, size)?;
        self.stuck.store(true, Ordering::Release);
        write_all(&self.file, place, &size.to_le_bytes())?;
        self.file.sync()?;
        *self.chain.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(Self::chain_on(&self.file)?);
        self.stuck.store(false, Ordering::Release);
        Ok(())
    }

    /// The disk's identity, which never changes.
    ///
    /// # Panics
    /// Never: a VHDX has one.
    #[must_use]
    pub fn unique_id(&self) -> Uuid {
        self.chain().unique_id().expect("a VHDX has an identity")
    }

    fn chain(&self) -> Arc<Chain> {
        Arc::clone(&self.chain.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn check_sound(&self) -> Result<(), DiskError> {
        if self.stuck.load(Ordering::Acquire) {
            return Err(DiskError::Failed { path: self.file.path().to_owned() });
        }
        Ok(())
    }
}

/// How large the disk in this file is, whoever has it open.
///
/// # Errors
/// A file that is no VHDX, a damaged one, or the system's error.
pub fn size_of(path: &Path) -> Result<u64, DiskError> {
    let file = File::open(path, Access::Peek)?;
    let (header, ..) = wire::Header::read(&file)?;
    let (regions, _) = wire::Regions::read(&file, &header)?;
    Ok(wire::Metadata::read(&file, &regions.metadata)?.size)
}

impl Disk for DataDisk {
    fn size(&self) -> u64 {
        self.chain().size()
    }

    fn sectors(&self) -> Sectors {
        self.chain().sectors()
    }

    fn try_read(&self, offset: u64, bufs: &mut [IoSliceMut<'_>]) -> Result<bool, DiskError> {
        self.chain().try_read(offset, bufs)
    }

    fn read(&self, offset: u64, bufs: &mut [IoSliceMut<'_>]) -> Result<(), DiskError> {
        self.chain().read(offset, bufs)
    }

    fn pass_on(&self, offset: u64, len: u64, each: &mut PassOn<'_>) -> Result<Option<u64>, DiskError> {
        self.chain().pass_on(offset, len, each)
    }

    fn write(&self, offset: u64, bufs: &[IoSlice<'_>]) -> Result<(), DiskError> {
        self.check_sound()?;
        self.chain().write(offset, bufs)
    }

    fn try_write(&self, offset: u64, bufs: &[IoSlice<'_>]) -> Result<bool, DiskError> {
        self.check_sound()?;
        self.chain().try_write(offset, bufs)
    }

    fn zero(&self, offset: u64, len: u64) -> Result<(), DiskError> {
        self.check_sound()?;
        self.chain().zero(offset, len)
    }

    fn flush(&self) -> Result<(), DiskError> {
        self.check_sound()?;
        self.chain().flush()
    }

    fn close(&self) -> Result<(), DiskError> {
        self.check_sound()?;
        self.chain().close()
    }

    fn read_only(&self) -> bool {
        false
    }

    fn provisioning(&self, offset: u64, len: u64, most: usize) -> Result<Vec<Stretch>, DiskError> {
        self.chain().provisioning(offset, len, most)
    }

    fn growth(&self, offset: u64, len: u64) -> Result<u64, DiskError> {
        self.chain().growth(offset, len)
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::MetadataExt;

    use super::*;

    fn mark(disk: &DataDisk, at: u64, mark: u8) {
        disk.write(at, &[IoSlice::new(&[mark; 4096])]).unwrap();
    }

    fn marked(disk: &dyn Disk, at: u64) -> u8 {
        let mut page = [0; 4096];
        disk.read(at, &mut [IoSliceMut::new(&mut page)]).unwrap();
        assert_eq!(page, [page[0]; 4096]);
        page[0]
    }

    #[test]
    fn it_grows_from_a_mib_to_the_largest_disk_there_is_with_what_was_written_before() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("pc-01.data.vhdx");
        DataDisk::create(&path, 1 << 20).unwrap();
        let disk = DataDisk::open(&path).unwrap();
        let id = disk.unique_id();
        let (mut size, mut marks) = (1_u64 << 20, Vec::new());
        for (number, next) in (1..).zip([3 << 20, 33 << 20, (50 << 30) + (1 << 20), 5 << 40, MAX_SIZE]) {
            mark(&disk, size - 4096, number);
            marks.push((size - 4096, number));
            assert!(disk.write(size, &[IoSlice::new(&[1; 512])]).is_err(), "beyond the end");
            disk.grow(next).unwrap();
            assert_eq!((disk.size(), size_of(&path).unwrap()), (next, next));
            assert_eq!(marked(&disk, size), 0, "what is new is zeros");
            for (at, mark) in &marks {
                assert_eq!(marked(&disk, *at), *mark);
            }
            size = next;
        }
        disk.grow(1 << 20).unwrap();
        assert_eq!(disk.size(), MAX_SIZE, "it never shrinks");
        assert!(disk.grow(MAX_SIZE + (1 << 20)).is_err());
        mark(&disk, MAX_SIZE - 4096, 77);
        drop(disk);
        let disk = DataDisk::open(&path).unwrap();
        assert_eq!((disk.size(), disk.unique_id(), marked(&disk, MAX_SIZE - 4096)), (MAX_SIZE, id, 77));
        assert_eq!(marked(&disk, marks[0].0), 1);
        assert!(fs::metadata(&path).unwrap().blocks() * 512 < 1 << 20, "what was never written takes no space");
    }

    #[test]
    fn what_a_process_that_died_had_written_is_there_and_the_power_may_go_after_a_flush() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("pc-01.data.vhdx");
        DataDisk::create(&path, 200 << 20).unwrap();
        let disk = DataDisk::open(&path).unwrap();
        for block in 0..4 {
            mark(&disk, block * (32 << 20) + 8192, 9);
        }
        // As the process that dies leaves it: nothing is flushed, nothing is closed.
        let died = folder.path().join("died.vhdx");
        fs::copy(&path, &died).unwrap();
        let after = DataDisk::open(&died).unwrap();
        for block in 0..4 {
            assert_eq!((marked(&after, block * (32 << 20) + 8192), marked(&after, block * (32 << 20))), (9, 0));
        }
        // A log is left in it: what grows is the disk as the log makes it.
        after.grow(1 << 30).unwrap();
        assert_eq!((after.size(), marked(&after, 8192)), (1 << 30, 9));
    }

    #[test]
    fn what_is_no_such_disk_is_not_taken_for_one() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("pc-01.data.vhdx");
        fs::write(&path, vec![0; 1 << 20]).unwrap();
        let error = DataDisk::open(&path).unwrap_err();
        assert!(matches!(error, DiskError::Corrupt { .. }), "{error}");
        assert!(size_of(&path).is_err());

        // One that was made elsewhere has no room to grow far, and says so.
        super::super::vhdx::create(&path, &Spec { block_size: 1 << 20, ..Spec::dynamic(64 << 20) }).unwrap();
        let disk = DataDisk::open(&path).unwrap();
        mark(&disk, 0, 3);
        disk.grow(8 << 30).unwrap();
        let error = disk.grow(1 << 40).unwrap_err();
        assert!(error.to_string().contains("has room for"), "{error}");
        mark(&disk, 4096, 4);
        assert_eq!((marked(&disk, 0), marked(&disk, 4096), disk.size()), (3, 4, 8 << 30));
    }
}
