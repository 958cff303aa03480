//! Writes of which all is done or nothing (SBC-4 §4.29, WRITE ATOMIC): what they replace is noted first.
//!
//! The note is a file beside the disk's pending map. While it holds something, a write was under way; whoever opens the
//! disk next puts back what was there before. A file of any other disk, or one that was not written to its end, says nothing.

use std::fs::{self, File};
use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use uuid::Uuid;

use crate::disk::data::DataDisk;
use crate::disk::overlay::Overlay;
use crate::disk::{Disk, DiskError};

/// The first bytes of a note.
const MAGIC: [u8; 8] = *b"ROOSTATW";

/// Before the bytes: what it is, whose it is, where they belong, how many they are, and a sum over all of that and them.
const HEADER: usize = 8 + 16 + 8 + 8 + 8;

/// Longest note that is read: an atomic write is far shorter.
const MAX_NOTE: u64 = 1 << 20;

/// A disk that can have a note.
pub(super) trait Noted: Disk {
    /// The identity of the file that is written to.
    fn unique_id(&self) -> Uuid;
    /// It need not outlive the power.
    fn is_volatile(&self) -> bool;
}

impl Noted for Overlay {
    fn unique_id(&self) -> Uuid {
        self.unique_id()
    }
    fn is_volatile(&self) -> bool {
        self.is_volatile()
    }
}

impl Noted for DataDisk {
    fn unique_id(&self) -> Uuid {
        self.unique_id()
    }
    fn is_volatile(&self) -> bool {
        false
    }
}

/// The note of one disk.
#[derive(Debug)]
pub(super) struct Note {
    path: PathBuf,
    disk: Arc<dyn Noted>,
}

impl Note {
    /// The note at this path for a disk that was just opened. What a write left half done is undone.
    ///
    /// # Errors
    /// The note cannot be read, or the disk not be written.
    pub(super) fn open(path: PathBuf, disk: Arc<dyn Noted>) -> Result<Self, DiskError> {
        let note = Self { path, disk };
        let disk = &note.disk;
        if let Some((offset, before)) = note.read()? {
            disk.write(offset, &[IoSlice::new(&before)])?;
            disk.flush()?;
        }
        remove(&note.path)?;
        Ok(note)
    }

    /// Writes all of this or nothing.
    ///
    /// # Errors
    /// The disk's, or the note's. The disk is then as it was; if even that cannot be done, it will be when it is opened next.
    pub(super) fn write(&self, offset: u64, data: &[u8]) -> Result<(), DiskError> {
        let disk = &self.disk;
        let mut before = vec![0; data.len()];
        disk.read(offset, &mut [IoSliceMut::new(&mut before)])?;
        let file = self.note(offset, &before)?;
        let written = disk.write(offset, &[IoSlice::new(data)]).and_then(|()| disk.flush());
        if written.is_err() {
            disk.write(offset, &[IoSlice::new(&before)])?;
            disk.flush()?;
        }
        // From here on the disk holds one or the other for good.
        file.set_len(0).and_then(|()| self.settle(&file)).map_err(|error| self.failed("empty", error))?;
        written
    }

    fn note(&self, offset: u64, before: &[u8]) -> Result<File, DiskError> {
        let head = self.head(offset, before);
        let new = !self.path.exists();
        let make = || {
            let mut file = File::create(&self.path)?;
            file.write_all(&head)?;
            file.write_all(before)?;
            self.settle(&file)?;
            if new && let Some(folder) = self.path.parent() {
                self.settle(&File::open(folder)?)?;
            }
            Ok(file)
        };
        make().map_err(|error| self.failed("write", error))
    }

    fn settle(&self, file: &File) -> io::Result<()> {
        // What need not outlive the power needs no note that does.
        if self.disk.is_volatile() { Ok(()) } else { file.sync_all() }
    }

    fn head(&self, offset: u64, before: &[u8]) -> [u8; HEADER] {
        let mut head = [0; HEADER];
        head[..8].copy_from_slice(&MAGIC);
        // The file that is on top now: a checkpoint puts another there, and no atomic write is under way then.
        head[8..24].copy_from_slice(self.disk.unique_id().as_bytes());
        head[24..32].copy_from_slice(&offset.to_be_bytes());
        head[32..40].copy_from_slice(&(before.len() as u64).to_be_bytes());
        let sum = sum(&head[..40], before);
        head[40..].copy_from_slice(&sum.to_be_bytes());
        head
    }

    /// Where something was being replaced, and what.
    fn read(&self) -> Result<Option<(u64, Vec<u8>)>, DiskError> {
        let file = match File::open(&self.path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            opened => opened.map_err(|error| self.failed("open", error))?,
        };
        let mut bytes = Vec::new();
        file.take(MAX_NOTE).read_to_end(&mut bytes).map_err(|error| self.failed("read", error))?;
        let Some((head, before)) = bytes.split_first_chunk::<HEADER>() else { return Ok(None) };
        let (_, rest) = head.split_at(24);
        let offset = rest.first_chunk().map_or(0, |offset| u64::from_be_bytes(*offset));
        let whole = *head == self.head(offset, before);
        Ok(whole.then(|| (offset, before.to_vec())))
    }

    fn failed(&self, operation: &'static str, error: io::Error) -> DiskError {
        DiskError::io(&self.path, operation, error)
    }
}

/// FNV-1a: it tells a note that was torn from a whole one.
fn sum(head: &[u8], bytes: &[u8]) -> u64 {
    let all = head.iter().chain(bytes);
    all.fold(0xCBF2_9CE4_8422_2325, |sum, byte| (sum ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01B3))
}

fn remove(path: &Path) -> Result<(), DiskError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(DiskError::io(path, "remove", error)),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::Chain;
    use crate::disk::file::Access;
    use crate::disk::overlay::Place;

    fn read(disk: &Overlay, offset: u64) -> Vec<u8> {
        let mut bytes = vec![0; 1024];
        disk.read(offset, &mut [IoSliceMut::new(&mut bytes)]).unwrap();
        bytes
    }

    #[test]
    fn what_was_half_written_is_undone_at_the_next_opening_and_only_on_its_disk() {
        let folder = tempfile::tempdir().unwrap();
        let (raw, image) = (folder.path().join("raw"), folder.path().join("image.vhd"));
        fs::write(&raw, vec![7; 1 << 20]).unwrap();
        crate::disk::import::import(&raw, &image, &mut |_, _| ()).unwrap();
        let open = || Chain::open(&image, Access::Read).unwrap();
        let child = folder.path().join("child.vhd");
        crate::disk::vhd::create_child(&child, &open(), "image.vhd").unwrap();
        let path = folder.path().join("note");
        let serve = || Arc::new(Overlay::open(Place::new(child.clone()), Arc::new(open()), None).unwrap());

        let disk = serve();
        let note = Note::open(path.clone(), disk.clone()).unwrap();
        note.write(512, &[1; 1024]).unwrap();
        assert_eq!((read(&disk, 512), fs::metadata(&path).unwrap().len()), (vec![1; 1024], 0));

        // The process dies in the middle of a write.
        note.note(512, &[1; 1024]).unwrap();
        disk.write(512, &[IoSlice::new(&[2; 512])]).unwrap();
        let torn = fs::read(&path).unwrap();
        drop((disk, note));
        let disk = serve();
        Note::open(path.clone(), disk.clone()).unwrap();
        assert_eq!(read(&disk, 512), vec![1; 1024], "as it was");
        assert!(!path.exists());

        // A note that was not written to its end, or that is of another disk, says nothing.
        for at in [9, HEADER + 3] {
            let mut other = torn.clone();
            other[at] ^= 1;
            fs::write(&path, &other).unwrap();
            disk.write(512, &[IoSlice::new(&[3; 1024])]).unwrap();
            Note::open(path.clone(), disk.clone()).unwrap();
            assert_eq!(read(&disk, 512), vec![3; 1024]);
        }
    }
}
