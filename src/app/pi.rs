//! The files that a Raspberry Pi's own boot loader fetches by TFTP: firmware, `config.txt`, a kernel, an initramfs, out of the
//! operator's folder `rpi`.
//!
//! A Pi asks for each of them below a prefix first, its serial number or its MAC (`1a2b3c4d/start4.elf`), and it asks for
//! dozens that nobody has. So `rpi/1a2b3c4d/` is for what one Pi has of its own, and what is not there is looked for in `rpi/`
//! itself, which is for all of them.
//!
//! A transfer goes back in its file as it must, so files are in memory while they are fetched: once, however many Pis
//! fetch them, and all together no more than [`MAX_HELD_KIB`].

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::folder::Folder;

/// The name of the folder within `[server] files`.
pub const PI_FOLDER: &str = "rpi";
/// Most of all files that are fetched at the same time, in KiB: 256 MiB. A kernel has some 10 MB, the memory image of an
/// installer some 100.
const MAX_HELD_KIB: u32 = 256 << 10;
/// Digits of a serial number, as a Pi writes its own: 8, and 16 where it is told to write all of it.
const SERIAL_DIGITS: [usize; 2] = [8, 16];

/// Why a Pi is not given a file.
#[derive(Debug, thiserror::Error)]
pub enum PiError {
    /// There is no such file.
    #[error("there is no such file")]
    Absent,
    /// It is there and cannot be read.
    #[error("it cannot be read: {0}")]
    Unreadable(#[from] io::Error),
    /// There is no room for it now, or never.
    #[error(
        "with its {0} bytes, the files that Raspberry Pis fetch at this moment would take more than {MAX_HELD_KIB} KiB of memory"
    )]
    Room(u64),
}

/// The folder with the Pis' files.
#[derive(Debug)]
pub struct PiFiles {
    folder: Folder,
    held: Mutex<HashMap<Vec<u8>, Known>>,
    room: Arc<Semaphore>,
}

/// What is in memory of a path, if it still is.
type Known = (Version, Weak<Held>);

/// A file as it is now: another one when it was replaced or written to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Version {
    inode: u64,
    length: u64,
    changed: (i64, i64),
}

/// A file in memory, for as long as somebody fetches it.
#[derive(Debug)]
struct Held {
    bytes: Vec<u8>,
    _room: OwnedSemaphorePermit,
}

struct Shared(Arc<Held>);

impl AsRef<[u8]> for Shared {
    fn as_ref(&self) -> &[u8] {
        &self.0.bytes
    }
}

impl PiFiles {
    /// The folder for Pis within this one; `None` where there is none.
    ///
    /// # Errors
    /// It is there and may not be read.
    pub fn within(files: &Path) -> io::Result<Option<Self>> {
        let folder = match Folder::open(&files.join(PI_FOLDER)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            folder => folder?,
        };
        Ok(Some(Self { folder, held: Mutex::default(), room: Arc::new(Semaphore::new(MAX_HELD_KIB as usize)) }))
    }

    /// The file that a Pi calls so. It may wait for a disk.
    ///
    /// # Errors
    /// Why it gets none.
    pub fn read(&self, name: &[u8]) -> Result<Bytes, PiError> {
        let path = path_of(name);
        let found = self.find(&path).or_else(|error| match common(&path) {
            Some(rest) => self.find(rest),
            None => Err(error),
        });
        let (file, length) = found?;
        let facts = file.metadata()?;
        let version = Version { inode: facts.ino(), length, changed: (facts.mtime(), facts.mtime_nsec()) };
        // Whoever wants the same file waits here until it was read, and shares it then.
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((known, there)) = held.get(&path)
            && *known == version
            && let Some(there) = there.upgrade()
        {
            return Ok(Bytes::from_owner(Shared(there)));
        }
        held.retain(|_, (_, there)| there.strong_count() > 0);
        let kib = u32::try_from(length.div_ceil(1024)).map_err(|_| PiError::Room(length))?;
        let room = Arc::clone(&self.room).try_acquire_many_owned(kib).map_err(|_| PiError::Room(length))?;
        let mut bytes = Vec::with_capacity(usize::try_from(length).map_err(|_| PiError::Room(length))?);
        // No more than there was room made for, should somebody write to it meanwhile.
        file.take(length).read_to_end(&mut bytes)?;
        let there = Arc::new(Held { bytes, _room: room });
        held.insert(path, (version, Arc::downgrade(&there)));
        Ok(Bytes::from_owner(Shared(there)))
    }

    fn find(&self, path: &[u8]) -> Result<(File, u64), PiError> {
        use io::ErrorKind::{InvalidInput, NotADirectory, NotFound};
        self.folder.find(path).map_err(|error| match error.kind() {
            NotFound | NotADirectory | InvalidInput => PiError::Absent,
            _ => PiError::Unreadable(error),
        })
    }
}

/// A name as a path within the folder: from its top, with `/`, and without what old ROMs read past their option's end.
fn path_of(name: &[u8]) -> Vec<u8> {
    let end = name.iter().rposition(|b| !matches!(b, 0 | 0xff)).map_or(0, |last| last + 1);
    let path = name[..end].iter().map(|b| if *b == b'\\' { b'/' } else { *b });
    path.skip_while(|b| *b == b'/').collect()
}

/// The same file among those of all Pis, where this path names one Pi's own.
fn common(path: &[u8]) -> Option<&[u8]> {
    let slash = path.iter().position(|b| *b == b'/')?;
    let (prefix, rest) = (&path[..slash], &path[slash + 1..]);
    let hex = |digits: &[u8]| digits.iter().all(u8::is_ascii_hexdigit);
    let serial = SERIAL_DIGITS.contains(&prefix.len()) && hex(prefix);
    let mac =
        prefix.len() == 17 && prefix.chunks(3).all(|part| hex(&part[..2]) && matches!(part.get(2), None | Some(b'-')));
    (serial || mac).then_some(rest)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn lab(files: &[(&str, &str)]) -> (tempfile::TempDir, PiFiles) {
        let dir = tempfile::tempdir().unwrap();
        for (name, text) in files {
            let path = dir.path().join("rpi").join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        let files = PiFiles::within(dir.path()).unwrap().unwrap();
        (dir, files)
    }

    #[test]
    fn each_pi_has_its_own_files_first_and_then_those_of_all() {
        let (_dir, files) = lab(&[
            ("start4.elf", "all"),
            ("config.txt", "all"),
            ("1a2b3c4d/config.txt", "own"),
            ("overlays/x.dtbo", "overlay"),
            ("lab/config.txt", "lab"),
        ]);
        for (name, text) in [
            ("1a2b3c4d/start4.elf", "all"),
            ("1a2b3c4d/config.txt", "own"),
            ("/1a2b3c4d/config.txt", "own"),
            ("1A2B3C4E/config.txt", "all"),
            ("100000001a2b3c4d/config.txt", "all"),
            ("dc-a6-32-01-02-03/config.txt", "all"),
            ("1a2b3c4d\\overlays\\x.dtbo", "overlay"),
            ("1a2b3c4d/overlays/x.dtbo\u{0}", "overlay"),
            ("config.txt", "all"),
            ("lab/config.txt", "lab"),
        ] {
            assert_eq!(files.read(name.as_bytes()).unwrap(), text, "{name}");
        }
        for name in [
            "1a2b3c4d/recovery.elf",
            "lab/start4.elf",
            "1a2b3c4d/",
            "1a2b3c4d",
            "",
            "overlays",
            "../secret",
            "1a2b3c4d/../../secret",
            "/etc/passwd",
            "start4.elf/x",
        ] {
            assert!(files.read(name.as_bytes()).is_err(), "{name}");
        }
        assert!(matches!(files.read(b"1a2b3c4d/pieeprom.sig"), Err(PiError::Absent)));
    }

    #[test]
    fn a_file_is_in_memory_once_and_only_while_it_is_fetched() {
        let (dir, files) = lab(&[("kernel8.img", "old")]);
        let all = files.room.available_permits();
        let (one, two) = (files.read(b"kernel8.img").unwrap(), files.read(b"1a2b3c4d/kernel8.img").unwrap());
        let three = files.read(b"kernel8.img").unwrap();
        assert_eq!(one.as_ptr(), three.as_ptr());
        fs::write(dir.path().join("rpi/kernel8.img"), "newer").unwrap();
        assert_eq!(files.read(b"kernel8.img").unwrap(), "newer");
        assert_eq!((&one[..], files.room.available_permits()), (&b"old"[..], all - 2));
        drop((one, two, three));
        assert_eq!(files.room.available_permits(), all);
    }

    #[test]
    fn what_has_no_room_is_refused_and_takes_none() {
        let (dir, files) = lab(&[("config.txt", "small")]);
        let large = File::create(dir.path().join("rpi/large.img")).unwrap();
        for length in [u64::from(MAX_HELD_KIB) * 1024 + 1, 1 << 40] {
            large.set_len(length).unwrap();
            assert!(matches!(files.read(b"large.img"), Err(PiError::Room(told)) if told == length));
        }
        assert_eq!(files.read(b"config.txt").unwrap(), "small");
    }

    #[test]
    fn without_a_folder_there_are_none() {
        let dir = tempfile::tempdir().unwrap();
        assert!(PiFiles::within(dir.path()).unwrap().is_none());
    }
}
