//! The recorded BLAKE3 of a master: how anybody finds out that a file which must never change has changed.
//!
//! A VHD cannot tell that its parent was written to, and its child then shows a mixture of two disks. So beside
//! `1.vhd` lies `1.vhd.blake3`, a few lines of JSON: the hash of the whole file, and size, time and inode by which a change
//! is usually seen at a glance. A hash that did not agree is written down there, too, and counts until one agrees.
//!
//! It lies beside the master and not in a database, so that it comes with the folder's rename at import, is copied along with
//! the image, and can be read by whoever looks at the file, whether or not a process runs.

use std::fs;
use std::io::{self, IoSliceMut};
use std::ops::ControlFlow;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::error::DiskError;
use super::file::{Access, File, Media, remove, rename, sync_folder_of, write_whole};

/// Bytes that are hashed between two looks at the clock and at whether to go on.
pub const STEP: u64 = 4 << 20;

/// Longest record that is read.
const MAX_RECORD: u64 = 16 * 1024;

/// What is recorded of a master.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Checksum {
    /// BLAKE3 of the whole file, 64 hexadecimal digits, as `b3sum` prints it.
    pub blake3: String,
    /// What the file looked like when its hash last agreed.
    pub stamp: Stamp,
    /// The hash that the file had when it last did not agree; none since it did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub found: Option<String>,
}

/// What a file looks like from outside.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stamp {
    /// Its length in bytes.
    pub size: u64,
    /// When it was last written: seconds and nanoseconds since 1970-01-01T00:00Z.
    pub modified: (i64, i64),
    /// Its inode, which another file under the same name does not have.
    pub inode: u64,
}

impl Stamp {
    /// The file as it is now.
    ///
    /// # Errors
    /// The system's.
    pub fn of(path: &Path) -> Result<Self, DiskError> {
        let meta = fs::metadata(path).map_err(|error| DiskError::io(path, "look at", error))?;
        Ok(Self { size: meta.len(), modified: (meta.mtime(), meta.mtime_nsec()), inode: meta.ino() })
    }
}

/// What a look at a master tells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fitness {
    /// It looks as it did when its hash agreed.
    Fit,
    /// There is no record of it.
    Unrecorded,
    /// It was written to, replaced or moved, and may be the same all the same: only its hash tells.
    Touched,
    /// It is not what it was, in the words of a sentence's end.
    Changed(String),
}

/// What came of comparing hashes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Compared {
    /// They agree.
    Same,
    /// They do not. The hash that was found.
    Differs(String),
    /// `step` said to stop.
    Stopped,
}

/// Where the record of a master lies.
#[must_use]
pub fn record_path(master: &Path) -> PathBuf {
    let mut path = master.as_os_str().to_owned();
    path.push(".blake3");
    path.into()
}

/// What a look at a master tells, without reading it.
///
/// # Errors
/// The system's, or a record that cannot be read.
pub fn fitness(master: &Path) -> Result<Fitness, DiskError> {
    let Some(record) = Checksum::load(master)? else { return Ok(Fitness::Unrecorded) };
    let now = Stamp::of(master)?;
    Ok(if let Some(found) = &record.found {
        Fitness::Changed(format!("its BLAKE3 was {}, and is {}", short(&record.blake3), short(found)))
    } else if now.size != record.stamp.size {
        Fitness::Changed(format!("it had {} bytes, and has {}", record.stamp.size, now.size))
    } else if now != record.stamp {
        Fitness::Touched
    } else {
        Fitness::Fit
    })
}

/// As much of a hash as a person compares.
fn short(hash: &str) -> &str {
    hash.get(..16).unwrap_or(hash)
}

impl Checksum {
    /// Reads the record of a master, if there is one.
    ///
    /// # Errors
    /// The system's, or a record that is damaged.
    pub fn load(master: &Path) -> Result<Option<Self>, DiskError> {
        let path = record_path(master);
        let len = match fs::metadata(&path) {
            Ok(meta) => meta.len(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(DiskError::io(&path, "look at", error)),
        };
        let damaged = |what: String| {
            let what = format!("{what}: if the master is known to be good, remove this file, and it is recorded anew");
            DiskError::corrupt(&path, 0, what)
        };
        if len > MAX_RECORD {
            return Err(damaged(format!("{len} bytes are too many for the record of a checksum")));
        }
        let text = fs::read(&path).map_err(|error| DiskError::io(&path, "read", error))?;
        let record: Self =
            serde_json::from_slice(&text).map_err(|error| damaged(format!("no record of a checksum ({error})")))?;
        if [Some(&record.blake3), record.found.as_ref()].into_iter().flatten().any(|hash| !is_hash(hash)) {
            return Err(damaged("a hash that is not 64 hexadecimal digits".into()));
        }
        Ok(Some(record))
    }

    /// Hashes a master and records what was found. `step` is told bytes done and in all, and says whether to go on; without
    /// it there is no record.
    ///
    /// # Errors
    /// The system's, or a master that changes meanwhile.
    pub fn record(master: &Path, step: &mut dyn FnMut(u64, u64) -> ControlFlow<()>) -> Result<Option<Self>, DiskError> {
        let Some((blake3, stamp)) = hash_settled(master, step)? else { return Ok(None) };
        let record = Self { blake3, stamp, found: None };
        record.save(master)?;
        Ok(Some(record))
    }

    /// Hashes a master again, and writes down what came of it.
    ///
    /// # Errors
    /// The system's, or a master that changes meanwhile.
    pub fn compare(
        mut self,
        master: &Path,
        step: &mut dyn FnMut(u64, u64) -> ControlFlow<()>,
    ) -> Result<Compared, DiskError> {
        let Some((found, stamp)) = hash_settled(master, step)? else { return Ok(Compared::Stopped) };
        let before = self.clone();
        let compared = if found == self.blake3 {
            (self.stamp, self.found) = (stamp, None);
            Compared::Same
        } else {
            self.found = Some(found.clone());
            Compared::Differs(found)
        };
        if self != before {
            self.save(master)?;
        }
        Ok(compared)
    }

    /// Writes the record, whole or not at all.
    fn save(&self, master: &Path) -> Result<(), DiskError> {
        let path = record_path(master);
        let mut temp = path.clone().into_os_string();
        // Two processes may both have found out.
        temp.push(format!(".{}", std::process::id()));
        let temp = PathBuf::from(temp);
        let text = serde_json::to_string_pretty(self).expect("numbers and texts are always JSON") + "\n";
        let written = write_whole(&temp, text.as_bytes()).and_then(|()| rename(&temp, &path));
        if written.is_err() {
            // It says nothing that the error does not.
            let _ = remove(&temp);
        }
        written?;
        sync_folder_of(&path)
    }
}

fn is_hash(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// The hash of a file that did not change while it was read.
fn hash_settled(
    master: &Path,
    step: &mut dyn FnMut(u64, u64) -> ControlFlow<()>,
) -> Result<Option<(String, Stamp)>, DiskError> {
    let before = Stamp::of(master)?;
    let Some(hash) = hash(master, step)? else { return Ok(None) };
    if Stamp::of(master)? != before {
        let error = io::Error::other("it was written to meanwhile; find out by whom, and try again");
        return Err(DiskError::io(master, "checksum", error));
    }
    Ok(Some((hash, before)))
}

/// BLAKE3 of a file's bytes, holes as zeros; `None` where `step` said to stop.
///
/// # Errors
/// The system's.
pub fn hash(path: &Path, step: &mut dyn FnMut(u64, u64) -> ControlFlow<()>) -> Result<Option<String>, DiskError> {
    let file = File::open(path, Access::Peek)?;
    let len = file.len()?;
    let mut hasher = blake3::Hasher::new();
    let mut buffer = vec![0; usize::try_from(STEP).expect("4 MiB")];
    let mut at = 0;
    while at < len {
        if step(at, len).is_break() {
            return Ok(None);
        }
        let bytes = &mut buffer[..usize::try_from(STEP.min(len - at)).expect("at most 4 MiB")];
        // A hole's zeros need no reading; most of a step is often one.
        let data = file.next_data(at)?.map_or(len, |data| data.min(len));
        let zeros = usize::try_from((data - at).min(bytes.len() as u64)).expect("at most 4 MiB");
        bytes[..zeros].fill(0);
        if zeros < bytes.len() {
            file.read(at + zeros as u64, &mut [IoSliceMut::new(&mut bytes[zeros..])])?;
        }
        hasher.update(bytes);
        at += bytes.len() as u64;
    }
    // The last word is the caller's, too.
    Ok(step(len, len).is_continue().then(|| hasher.finalize().to_hex().to_string()))
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::unix::fs::FileExt;

    use super::*;

    fn on(_: u64, _: u64) -> ControlFlow<()> {
        ControlFlow::Continue(())
    }

    fn master() -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("1.vhd");
        let file = fs::File::create(&path).unwrap();
        file.set_len(9 << 20).unwrap();
        file.write_all_at(b"master", 5 << 20).unwrap();
        (dir, path)
    }

    #[test]
    fn the_hash_of_a_file_with_holes_is_that_of_its_bytes() {
        let (_dir, path) = master();
        let expected = blake3::hash(&fs::read(&path).unwrap()).to_hex().to_string();
        assert_eq!(hash(&path, &mut on).unwrap(), Some(expected));
        // The one that the standard's authors publish for no bytes at all.
        fs::write(&path, b"").unwrap();
        let empty = "af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262";
        assert_eq!(hash(&path, &mut on).unwrap().as_deref(), Some(empty));
    }

    #[test]
    fn a_changed_master_stays_changed_until_its_hash_agrees_again() {
        let (_dir, path) = master();
        assert_eq!(fitness(&path).unwrap(), Fitness::Unrecorded);
        let record = Checksum::record(&path, &mut on).unwrap().unwrap();
        assert_eq!(fitness(&path).unwrap(), Fitness::Fit);
        assert_eq!(Checksum::load(&path).unwrap(), Some(record.clone()));

        // One byte, and the time put back: only the hash tells.
        let time = fs::metadata(&path).unwrap().modified().unwrap();
        let file = fs::File::options().write(true).open(&path).unwrap();
        file.write_all_at(b"M", 5 << 20).unwrap();
        file.set_modified(time).unwrap();
        assert_eq!(fitness(&path).unwrap(), Fitness::Fit);
        let compared = record.clone().compare(&path, &mut on).unwrap();
        assert!(matches!(compared, Compared::Differs(_)));
        let Fitness::Changed(why) = fitness(&path).unwrap() else { panic!("it is known now") };
        assert!(why.contains(&record.blake3[..16]), "{why}");

        // Put right, it is touched, and changed still; then it agrees.
        file.write_all_at(b"m", 5 << 20).unwrap();
        assert!(matches!(fitness(&path).unwrap(), Fitness::Changed(_)));
        let again = Checksum::load(&path).unwrap().unwrap();
        assert_eq!(again.compare(&path, &mut on).unwrap(), Compared::Same);
        assert_eq!(fitness(&path).unwrap(), Fitness::Fit);
    }

    #[test]
    fn a_touched_master_is_known_at_a_glance_and_one_of_another_size_is_changed() {
        let (dir, path) = master();
        let record = Checksum::record(&path, &mut on).unwrap().unwrap();
        let copy = dir.path().join("copy");
        fs::copy(&path, &copy).unwrap();
        fs::rename(&copy, &path).unwrap();
        assert_eq!(fitness(&path).unwrap(), Fitness::Touched);
        assert_eq!(record.compare(&path, &mut on).unwrap(), Compared::Same);
        assert_eq!(fitness(&path).unwrap(), Fitness::Fit);
        fs::File::options().write(true).open(&path).unwrap().set_len(8 << 20).unwrap();
        assert_eq!(fitness(&path).unwrap(), Fitness::Changed("it had 9437184 bytes, and has 8388608".into()));
    }

    #[test]
    fn a_check_that_is_stopped_says_nothing_and_one_beside_a_writer_is_no_check() {
        let (_dir, path) = master();
        let stop = |done, _| if done > 0 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) };
        assert_eq!(Checksum::record(&path, &mut { stop }).unwrap(), None);
        assert_eq!(fitness(&path).unwrap(), Fitness::Unrecorded);
        let mut meanwhile = |_, _| {
            fs::File::options().append(true).open(&path).unwrap().write_all(b"x").unwrap();
            ControlFlow::Continue(())
        };
        let error = Checksum::record(&path, &mut meanwhile).unwrap_err().to_string();
        assert!(error.contains("written to meanwhile"), "{error}");
    }

    #[test]
    fn a_record_that_is_none_is_named_with_what_to_do() {
        let (_dir, path) = master();
        for bad in ["", "{}", r#"{"blake3":"xyz","stamp":{"size":1,"modified":[0,0],"inode":1}}"#] {
            fs::write(record_path(&path), bad).unwrap();
            let error = fitness(&path).unwrap_err().to_string();
            assert!(error.contains("1.vhd.blake3") && error.contains("remove this file"), "{error}");
        }
        fs::write(record_path(&path), vec![b' '; 20_000]).unwrap();
        assert!(fitness(&path).unwrap_err().to_string().contains("too many"));
    }
}
