//! The only file I/O of the disks: synchronous and positional, never a seek of a shared offset.
//!
//! [`Media`] is what a disk format needs of a file. [`File`] is the real one; the power-cut tests put a double in its
//! place that records writes and barriers.

use std::fmt::Debug;
use std::fs::{self, OpenOptions, TryLockError};
use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU8, Ordering};

use rustix::fs::{FallocateFlags, SeekFrom};
use rustix::io::{Errno, ReadWriteFlags};

#[cfg(test)]
use super::double::Event;
use super::error::DiskError;
use super::iovec;
#[cfg(test)]
use super::witness;
use crate::sys;

/// Buffers that one system call takes (`UIO_MAXIOV`).
const MAX_BUFS: usize = 1024;

/// Zeros that are written at once where a file system cannot punch holes.
static ZEROS: [u8; 64 * 1024] = [0; 64 * 1024];

/// The bytes under a disk format.
pub trait Media: Send + Sync + Debug {
    /// The file's path, for messages.
    fn path(&self) -> &Path;
    /// Its length in bytes.
    ///
    /// # Errors
    /// The system's.
    fn len(&self) -> Result<u64, DiskError>;
    /// Whether nothing is in it.
    ///
    /// # Errors
    /// The system's.
    fn is_empty(&self) -> Result<bool, DiskError> {
        Ok(self.len()? == 0)
    }
    /// Cuts the file, or lengthens it by a hole.
    ///
    /// # Errors
    /// The system's.
    fn set_len(&self, len: u64) -> Result<(), DiskError>;
    /// Fills the buffers if that needs no waiting; `false` if it would, or if the file ends.
    ///
    /// # Errors
    /// The system's.
    fn try_read(&self, offset: u64, bufs: &mut [IoSliceMut<'_>]) -> Result<bool, DiskError>;
    /// Fills the buffers.
    ///
    /// # Errors
    /// The system's, or that the file ends before.
    fn read(&self, offset: u64, bufs: &mut [IoSliceMut<'_>]) -> Result<(), DiskError>;
    /// The open file itself, if this range of it is in memory: what the system moves from it to elsewhere needs no waiting.
    fn in_memory(&self, offset: u64, len: u64) -> Option<BorrowedFd<'_>> {
        let _ = (offset, len);
        None
    }
    /// Writes all the buffers.
    ///
    /// # Errors
    /// The system's.
    fn write(&self, offset: u64, bufs: &[IoSlice<'_>]) -> Result<(), DiskError>;
    /// Writes all the buffers if that needs no waiting; `false` if it would, and then any part of them may be written.
    ///
    /// # Errors
    /// The system's.
    fn try_write(&self, offset: u64, bufs: &[IoSlice<'_>]) -> Result<bool, DiskError> {
        let _ = (offset, bufs);
        Ok(false)
    }
    /// Makes a range within the file read as zeros and gives its space back where the file system can.
    ///
    /// # Errors
    /// The system's.
    fn zero(&self, offset: u64, len: u64) -> Result<(), DiskError>;
    /// A barrier: when it returns, everything written before is on the device.
    ///
    /// # Errors
    /// The system's; what is on the device is then unknown.
    fn sync(&self) -> Result<(), DiskError>;
    /// The first byte at or after `offset` that may be something else than a hole.
    ///
    /// # Errors
    /// The system's.
    fn next_data(&self, offset: u64) -> Result<Option<u64>, DiskError>;
    /// The first byte at or after `offset`, which is not in a hole, from which a hole goes on; at most the file's end.
    ///
    /// # Errors
    /// The system's.
    fn next_hole(&self, offset: u64) -> Result<u64, DiskError> {
        let _ = offset;
        self.len()
    }
}

/// Reads `len` bytes; the caller has bounded `len`.
pub(super) fn read_vec(media: &dyn Media, offset: u64, len: usize) -> Result<Vec<u8>, DiskError> {
    let mut bytes = vec![0; len];
    media.read(offset, &mut [IoSliceMut::new(&mut bytes)])?;
    Ok(bytes)
}

/// Writes one buffer.
pub(super) fn write_all(media: &dyn Media, offset: u64, bytes: &[u8]) -> Result<(), DiskError> {
    media.write(offset, &[IoSlice::new(bytes)])
}

/// How a file is opened, and whom that excludes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// For reading; excludes writers that lock.
    Read,
    /// For reading and writing; excludes everybody else that locks.
    Write,
    /// For reading, whoever else has it open: what is read may change under the reader.
    Peek,
}

/// A file of the host, with an advisory lock (`flock`) that ends when this is dropped.
///
/// It is given up in so many words, not by the close alone: a process that is just being started elsewhere in the program
/// holds a copy of every descriptor until it has become another program, and such a copy would keep the lock for a moment.
#[derive(Debug)]
pub struct File {
    file: fs::File,
    path: PathBuf,
    nowait_reads: AtomicU8,
    nowait_writes: AtomicU8,
}

/// What `RWF_NOWAIT` is good for on a file's file system; learnt by the first read, and by the first write (ext4 takes it for
/// reads only).
const NOWAIT_WORKS: u8 = 0;
/// It is refused, but the file lives in memory, so that nothing waits for a device (tmpfs).
const NOWAIT_NEEDLESS: u8 = 1;
/// It is refused, and a plain call may wait.
const NOWAIT_REFUSED: u8 = 2;

/// `TMPFS_MAGIC` and `RAMFS_MAGIC` (`statfs(2)`).
const IN_MEMORY: [i64; 2] = [0x0102_1994, 0x8584_58f6];

impl File {
    /// Opens a file that is there.
    ///
    /// # Errors
    /// The system's, or [`DiskError::Locked`].
    pub fn open(path: &Path, access: Access) -> Result<Self, DiskError> {
        let file = OpenOptions::new()
            .read(true)
            .write(access == Access::Write)
            .open(path)
            .map_err(|source| DiskError::io(path, "open", source))?;
        Self::locked(file, path, access)
    }

    /// Opens a file for writing, and makes it if it is not there. Its contents stay.
    ///
    /// # Errors
    /// The system's, or [`DiskError::Locked`].
    pub fn open_or_create(path: &Path) -> Result<Self, DiskError> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(path)
            .map_err(|source| DiskError::io(path, "create", source))?;
        Self::locked(file, path, Access::Write)
    }

    fn locked(file: fs::File, path: &Path, access: Access) -> Result<Self, DiskError> {
        if file.metadata().map_err(|source| DiskError::io(path, "look at", source))?.is_dir() {
            return Err(DiskError::Unsupported { path: path.into(), what: "is a folder, not a disk file".into() });
        }
        let lock = match access {
            Access::Read => file.try_lock_shared(),
            Access::Write => file.try_lock(),
            Access::Peek => Ok(()),
        };
        match lock {
            Ok(()) => {
                #[cfg(test)]
                witness::opened(path, &file);
                Ok(Self::fresh(file, path.into()))
            }
            Err(TryLockError::WouldBlock) => Err(DiskError::Locked { path: path.into() }),
            Err(TryLockError::Error(source)) => Err(DiskError::io(path, "lock", source)),
        }
    }

    fn fresh(file: fs::File, path: PathBuf) -> Self {
        let unknown = || AtomicU8::new(NOWAIT_WORKS);
        Self { file, path, nowait_reads: unknown(), nowait_writes: unknown() }
    }

    /// The same file, called by the name that it is going to have: messages say it.
    #[must_use]
    pub(super) fn called(mut self, path: &Path) -> Self {
        self.path = path.into();
        self
    }

    /// The same open file, and its lock, once more.
    pub(super) fn duplicate(&self) -> Result<Self, DiskError> {
        let file = self.file.try_clone().map_err(|source| self.error("open again", source))?;
        Ok(Self::fresh(file, self.path.clone()))
    }

    /// The device and inode, which tell one file from another whatever its paths.
    ///
    /// # Errors
    /// The system's.
    pub fn identity(&self) -> Result<(u64, u64), DiskError> {
        use std::os::unix::fs::MetadataExt;
        let meta = self.file.metadata().map_err(|source| self.error("look at", source))?;
        Ok((meta.dev(), meta.ino()))
    }

    fn error(&self, operation: &'static str, source: impl Into<io::Error>) -> DiskError {
        DiskError::io(&self.path, operation, source)
    }

    /// Remembers why `RWF_NOWAIT` was refused.
    fn learn_nowait(&self, of: &AtomicU8) -> u8 {
        let learnt = match rustix::fs::fstatfs(&self.file) {
            Ok(stat) if IN_MEMORY.contains(&stat.f_type) => NOWAIT_NEEDLESS,
            _ => NOWAIT_REFUSED,
        };
        of.store(learnt, Ordering::Relaxed);
        learnt
    }
}

impl Media for File {
    fn path(&self) -> &Path {
        &self.path
    }

    fn len(&self) -> Result<u64, DiskError> {
        let meta = self.file.metadata().map_err(|source| self.error("look at", source))?;
        if meta.is_file() {
            return Ok(meta.len());
        }
        // A disk or partition of the host.
        rustix::fs::seek(&self.file, SeekFrom::End(0)).map_err(|errno| self.error("measure", errno))
    }

    fn set_len(&self, len: u64) -> Result<(), DiskError> {
        self.file.set_len(len).map_err(|source| self.error("resize", source))?;
        #[cfg(test)]
        witness::changed(&self.file, || Event::SetLen(len));
        Ok(())
    }

    fn try_read(&self, offset: u64, bufs: &mut [IoSliceMut<'_>]) -> Result<bool, DiskError> {
        match self.nowait_reads.load(Ordering::Relaxed) {
            NOWAIT_WORKS => {}
            NOWAIT_NEEDLESS => return self.read(offset, bufs).map(|()| true),
            _ => return Ok(false),
        }
        let mut at = offset;
        for bufs in bufs.chunks_mut(MAX_BUFS) {
            let wanted = iovec::room(bufs);
            match rustix::io::preadv2(&self.file, bufs, at, ReadWriteFlags::NOWAIT) {
                Ok(read) if read as u64 == wanted => at += wanted,
                // Short: the rest is cold. Interrupted: no worse than cold.
                Ok(_) | Err(Errno::AGAIN | Errno::INTR) => return Ok(false),
                Err(Errno::OPNOTSUPP | Errno::NOSYS) => {
                    if self.learn_nowait(&self.nowait_reads) == NOWAIT_NEEDLESS {
                        return self.read(at, bufs).map(|()| true);
                    }
                    return Ok(false);
                }
                Err(errno) => return Err(self.error("read", errno)),
            }
        }
        Ok(true)
    }

    fn read(&self, offset: u64, bufs: &mut [IoSliceMut<'_>]) -> Result<(), DiskError> {
        let total = iovec::room(bufs);
        let mut done = 0;
        // The caller's buffers serve the first call, which is nearly always the only one.
        let mut rest = match self.read_some(offset, bufs)? {
            read if read == total => return Ok(()),
            read => {
                done += read;
                let mut scatter = iovec::Scatter::new(bufs);
                scatter.take(done);
                scatter.take(total - done)
            }
        };
        let mut rest = &mut rest[..];
        while done < total {
            let read = self.read_some(offset + done, rest)?;
            if read == 0 {
                return Err(DiskError::corrupt(&self.path, offset + done, "the file ends before its contents do"));
            }
            done += read;
            IoSliceMut::advance_slices(&mut rest, usize::try_from(read).expect("a read fits in memory"));
        }
        Ok(())
    }

    fn in_memory(&self, offset: u64, len: u64) -> Option<BorrowedFd<'_>> {
        let resident = match self.nowait_reads.load(Ordering::Relaxed) {
            NOWAIT_WORKS => sys::is_resident(self.file.as_fd(), offset, len).unwrap_or(false),
            NOWAIT_NEEDLESS => true,
            _ => false,
        };
        resident.then(|| self.file.as_fd())
    }

    fn write(&self, offset: u64, bufs: &[IoSlice<'_>]) -> Result<(), DiskError> {
        self.write_whole(offset, bufs)?;
        #[cfg(test)]
        witness::changed(&self.file, || Event::Write(offset, Ok(bufs.iter().flat_map(|buf| buf.to_vec()).collect())));
        Ok(())
    }

    fn try_write(&self, offset: u64, bufs: &[IoSlice<'_>]) -> Result<bool, DiskError> {
        match self.nowait_writes.load(Ordering::Relaxed) {
            NOWAIT_WORKS if bufs.len() <= MAX_BUFS => {}
            NOWAIT_NEEDLESS => return self.write(offset, bufs).map(|()| true),
            _ => return Ok(false),
        }
        match rustix::io::pwritev2(&self.file, bufs, offset, ReadWriteFlags::NOWAIT) {
            Ok(written) => {
                #[cfg(test)]
                witness::changed(&self.file, || {
                    Event::Write(offset, Ok(bufs.iter().flat_map(|buf| buf.to_vec()).take(written).collect()))
                });
                Ok(written as u64 == iovec::len(bufs))
            }
            Err(Errno::AGAIN | Errno::INTR) => Ok(false),
            Err(Errno::OPNOTSUPP | Errno::NOSYS) => match self.learn_nowait(&self.nowait_writes) {
                NOWAIT_NEEDLESS => self.write(offset, bufs).map(|()| true),
                _ => Ok(false),
            },
            Err(errno) => Err(self.error("write", errno)),
        }
    }

    fn zero(&self, offset: u64, len: u64) -> Result<(), DiskError> {
        if len == 0 {
            return Ok(());
        }
        // The kernel zeroes the edges of a hole that are no whole blocks.
        match rustix::fs::fallocate(&self.file, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, offset, len) {
            Ok(()) => {
                #[cfg(test)]
                witness::changed(&self.file, || Event::Write(offset, Err(len)));
                return Ok(());
            }
            Err(Errno::OPNOTSUPP | Errno::NOSYS) => {}
            Err(errno) => return Err(self.error("punch a hole", errno)),
        }
        let mut done = 0;
        while done < len {
            let piece = (len - done).min(ZEROS.len() as u64);
            write_all(self, offset + done, &ZEROS[..usize::try_from(piece).expect("at most 64 KiB")])?;
            done += piece;
        }
        Ok(())
    }

    fn sync(&self) -> Result<(), DiskError> {
        self.file.sync_data().map_err(|source| self.error("flush", source))?;
        #[cfg(test)]
        witness::changed(&self.file, || Event::Sync);
        Ok(())
    }

    fn next_data(&self, offset: u64) -> Result<Option<u64>, DiskError> {
        // The shared offset moves, and nobody uses it.
        match rustix::fs::seek(&self.file, SeekFrom::Data(offset)) {
            Ok(at) => Ok(Some(at)),
            Err(Errno::NXIO) => Ok(None),
            Err(Errno::INVAL | Errno::OPNOTSUPP) => Ok(Some(offset)),
            Err(errno) => Err(self.error("look for data", errno)),
        }
    }

    fn next_hole(&self, offset: u64) -> Result<u64, DiskError> {
        match rustix::fs::seek(&self.file, SeekFrom::Hole(offset)) {
            Ok(at) => Ok(at),
            Err(Errno::INVAL | Errno::OPNOTSUPP | Errno::NXIO) => self.len(),
            Err(errno) => Err(self.error("look for a hole", errno)),
        }
    }
}

impl File {
    fn write_whole(&self, offset: u64, bufs: &[IoSlice<'_>]) -> Result<(), DiskError> {
        let total = iovec::len(bufs);
        // The caller's buffers serve the first call, which is nearly always the only one.
        let mut written = if total == 0 { 0 } else { self.write_some(offset, bufs)? };
        if written as u64 == total {
            return Ok(());
        }
        let mut rest: Vec<_> = bufs.iter().map(|buf| IoSlice::new(buf)).collect();
        let (mut rest, mut at) = (&mut rest[..], offset);
        loop {
            at += written as u64;
            // Passes over empty buffers too.
            IoSlice::advance_slices(&mut rest, written);
            if rest.is_empty() {
                return Ok(());
            }
            written = self.write_some(at, rest)?;
        }
    }

    /// Writes a part of these buffers, which are not empty.
    fn write_some(&self, offset: u64, bufs: &[IoSlice<'_>]) -> Result<usize, DiskError> {
        loop {
            match rustix::io::pwritev(&self.file, &bufs[..bufs.len().min(MAX_BUFS)], offset) {
                Ok(0) => return Err(self.error("write", io::ErrorKind::WriteZero)),
                Ok(written) => return Ok(written),
                Err(Errno::INTR) => {}
                Err(errno) => return Err(self.error("write", errno)),
            }
        }
    }

    fn read_some(&self, offset: u64, bufs: &mut [IoSliceMut<'_>]) -> Result<u64, DiskError> {
        let count = bufs.len().min(MAX_BUFS);
        loop {
            match rustix::io::preadv(&self.file, &mut bufs[..count], offset) {
                Ok(read) => return Ok(read as u64),
                Err(Errno::INTR) => {}
                Err(errno) => return Err(self.error("read", errno)),
            }
        }
    }
}

impl Drop for File {
    fn drop(&mut self) {
        // Where it fails, the close that follows does it.
        let _ = self.file.unlock();
    }
}

/// Files that take up more than this, in units of 512 bytes, are closed elsewhere.
const SMALL: u64 = 256;

/// Removes a file; one that is not there is removed already. What it took up comes back a moment later, see [`close_later`].
///
/// # Errors
/// The system's.
pub fn remove(path: &Path) -> Result<(), DiskError> {
    let open = fs::File::open(path);
    match fs::remove_file(path) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => return Err(DiskError::io(path, "remove", source)),
        _ => {}
    }
    #[cfg(test)]
    witness::removed(path);
    if let Ok(file) = open {
        close_later(file);
    }
    Ok(())
}

/// Closes a file that may have lost its last name. Its space comes back with that, which takes a file system up to milliseconds
/// for each piece of a large disk: nobody waits for it.
pub(super) fn close_later(file: fs::File) {
    use std::os::unix::fs::MetadataExt;
    if file.metadata().is_ok_and(|meta| meta.blocks() > SMALL) {
        // Without a thread it is closed here and now.
        let _ = std::thread::Builder::new().name("close".to_owned()).spawn(move || drop(file));
    }
}

/// Makes a file of these bytes, and flushes it; one that is there is written over. Its name is as durable as its folder.
///
/// # Errors
/// The system's, or [`DiskError::Locked`].
pub(super) fn write_whole(path: &Path, bytes: &[u8]) -> Result<(), DiskError> {
    let file = File::open_or_create(path)?;
    file.set_len(0)?;
    write_all(&file, 0, bytes)?;
    file.sync()
}

/// Gives a file, or a folder, another name; what had that name is gone then.
///
/// # Errors
/// The system's.
pub(super) fn rename(from: &Path, to: &Path) -> Result<(), DiskError> {
    fs::rename(from, to).map_err(|source| DiskError::io(to, "rename into place", source))?;
    #[cfg(test)]
    witness::renamed(from, to);
    Ok(())
}

/// Gives a file a second name, which must be free.
///
/// # Errors
/// The system's.
pub(super) fn link(from: &Path, to: &Path) -> Result<(), DiskError> {
    fs::hard_link(from, to).map_err(|source| DiskError::io(to, "link", source))?;
    #[cfg(test)]
    witness::linked(from, to);
    Ok(())
}

/// Makes the entries of a folder durable, so that a rename in it survives power loss.
///
/// # Errors
/// The system's.
pub fn sync_folder_of(path: &Path) -> Result<(), DiskError> {
    sync_folder(folder_of(path))
}

/// The same for the folder itself.
pub(super) fn sync_folder(folder: &Path) -> Result<(), DiskError> {
    fs::File::open(folder).and_then(|dir| dir.sync_all()).map_err(|source| DiskError::io(folder, "flush", source))?;
    #[cfg(test)]
    witness::flushed_folder(folder);
    Ok(())
}

/// The folder that a path lies in.
pub(super) fn folder_of(path: &Path) -> &Path {
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scratch() -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        (dir, path)
    }

    #[test]
    fn more_buffers_than_one_call_takes_are_all_read_and_written() {
        let (_dir, path) = scratch();
        let file = File::open_or_create(&path).unwrap();
        let bytes: Vec<u8> = (0..3000u32).map(|n| n.to_le_bytes()[0]).collect();
        let bufs: Vec<_> = bytes.chunks(1).map(IoSlice::new).collect();
        file.write(7, &bufs).unwrap();
        let mut back = vec![0; 3000];
        file.read(7, &mut back.chunks_mut(1).map(IoSliceMut::new).collect::<Vec<_>>()).unwrap();
        assert_eq!(back, bytes);
        back.fill(0);
        assert!(file.try_read(7, &mut back.chunks_mut(1).map(IoSliceMut::new).collect::<Vec<_>>()).unwrap());
        assert_eq!(back, bytes);
    }

    #[test]
    fn a_read_past_the_end_says_where_the_file_ends() {
        let (_dir, path) = scratch();
        fs::write(&path, [1; 700]).unwrap();
        let file = File::open(&path, Access::Read).unwrap();
        let error = read_vec(&file, 512, 512).unwrap_err();
        assert!(matches!(error, DiskError::Corrupt { offset: 700, .. }), "{error}");
    }

    #[test]
    fn one_writer_excludes_all_but_those_who_peek() {
        let (_dir, path) = scratch();
        let writer = File::open_or_create(&path).unwrap();
        assert!(matches!(File::open(&path, Access::Read), Err(DiskError::Locked { .. })));
        assert!(matches!(File::open(&path, Access::Write), Err(DiskError::Locked { .. })));
        File::open(&path, Access::Peek).unwrap();
        drop(writer);
        let _reader = File::open(&path, Access::Read).unwrap();
        File::open(&path, Access::Read).unwrap();
        assert!(matches!(File::open(&path, Access::Write), Err(DiskError::Locked { .. })));
    }

    #[test]
    fn a_closed_file_is_free_at_once_even_while_a_starting_process_holds_a_copy_of_its_descriptor() {
        let (_dir, path) = scratch();
        let writer = File::open_or_create(&path).unwrap();
        let inherited = writer.file.try_clone().unwrap();
        drop(writer);
        let again = File::open(&path, Access::Write).unwrap();
        drop(inherited);
        assert!(matches!(File::open(&path, Access::Read), Err(DiskError::Locked { .. })), "the new lock stays");
        drop(again);
        File::open(&path, Access::Read).unwrap();
    }

    #[test]
    fn a_punched_range_reads_as_zeros_to_the_byte() {
        let (_dir, path) = scratch();
        fs::write(&path, [7; 20_000]).unwrap();
        let file = File::open(&path, Access::Write).unwrap();
        file.zero(512, 9_000).unwrap();
        let mut expected = vec![7; 20_000];
        expected[512..9_512].fill(0);
        assert_eq!(fs::read(&path).unwrap(), expected);
    }

    #[test]
    fn a_file_in_memory_is_read_inline() {
        let Ok(dir) = tempfile::tempdir_in("/dev/shm") else {
            println!("skip: a_file_in_memory_is_read_inline needs /dev/shm");
            return;
        };
        let path = dir.path().join("file");
        fs::write(&path, [9; 512]).unwrap();
        let file = File::open(&path, Access::Read).unwrap();
        let mut back = [0; 512];
        assert!(file.try_read(0, &mut [IoSliceMut::new(&mut back)]).unwrap());
        assert_eq!(back, [9; 512]);
    }
}
