//! One process owns the state folder: an advisory lock on `STATE/lock`, which the kernel lifts however that process ends.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, ErrorKind, Read, Seek, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};

/// The folders that every state has: masters, clients' disks, and changes that a crash must not lose.
const FOLDERS: [&str; 3] = ["images", "disks", "pending"];

/// Only the owner looks in: disks hold whatever the clients' users do.
const FOLDER_MODE: u32 = 0o700;
const FILE_MODE: u32 = 0o600;

/// A process's number has at most seven digits (`PID_MAX_LIMIT` is 2²²).
const LONGEST_PID: u64 = 8;

/// The state folder is this process's until this is dropped.
#[derive(Debug)]
pub struct StateLock {
    _file: File,
}

/// Why the state folder is not ours.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// Another process has it.
    #[error("the state folder {} is in use by {}", state.display(), holder(*pid, name.as_deref()))]
    Held {
        /// The state folder.
        state: PathBuf,
        /// The process that has it; `None` if it has not written its number yet.
        pid: Option<u32>,
        /// What that process is called.
        name: Option<String>,
    },
    /// The folder cannot be made, opened or written.
    #[error("the state folder {} cannot be used: {}: {source}", state.display(), path.display())]
    Unusable {
        /// The state folder.
        state: PathBuf,
        /// What could not be made or opened.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

fn holder(pid: Option<u32>, name: Option<&str>) -> String {
    match (pid, name) {
        (Some(pid), Some(name)) => format!("process {pid} ({name})"),
        (Some(pid), None) => format!("process {pid}"),
        (None, _) => "another process".to_owned(),
    }
}

impl LockError {
    /// What a person can do about it.
    #[must_use]
    pub fn help(&self) -> String {
        match self {
            Self::Held { pid: Some(pid), .. } => {
                format!("wait until it is done, or stop it with `kill {pid}`; --state DIR names another folder")
            }
            Self::Held { pid: None, .. } => "wait until it is done; --state DIR names another folder".to_owned(),
            Self::Unusable { source, .. } if source.kind() == ErrorKind::PermissionDenied => {
                "run roost as the folder's owner, or name another one: --state DIR, or `state` under [server]"
                    .to_owned()
            }
            Self::Unusable { source, .. } if source.kind() == ErrorKind::ReadOnlyFilesystem => {
                "mount it writable, or name another folder: --state DIR, or `state` under [server]".to_owned()
            }
            Self::Unusable { source, .. } if source.kind() == ErrorKind::StorageFull => {
                "free some space there, or name another folder: --state DIR, or `state` under [server]".to_owned()
            }
            Self::Unusable { .. } => "name another folder: --state DIR, or `state` under [server]".to_owned(),
        }
    }
}

impl StateLock {
    /// Makes the state folder and its subfolders where they are missing, and takes the lock. Does not wait for it.
    ///
    /// # Errors
    /// Another process has it, or the folder cannot be made or written.
    pub fn acquire(state: &Path) -> Result<Self, LockError> {
        let unusable =
            |path: &Path, source| LockError::Unusable { state: state.to_owned(), path: path.to_owned(), source };
        let mut folder = DirBuilder::new();
        folder.recursive(true).mode(FOLDER_MODE);
        folder.create(state).map_err(|error| unusable(state, error))?;
        let path = state.join("lock");
        // Not truncated: until the lock is ours, what is written in it is the holder's.
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(FILE_MODE).open(&path);
        let mut file = file.map_err(|error| unusable(&path, error))?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => {
                let pid = read_pid(&mut file);
                let name = pid.and_then(process_name);
                return Err(LockError::Held { state: state.to_owned(), pid, name });
            }
            Err(error) => return Err(unusable(&path, error.into())),
        }
        let written =
            file.set_len(0).and_then(|()| file.rewind()).and_then(|()| writeln!(file, "{}", std::process::id()));
        written.map_err(|error| unusable(&path, error))?;
        for name in FOLDERS {
            let path = state.join(name);
            folder.create(&path).map_err(|error| unusable(&path, error))?;
        }
        Ok(Self { _file: file })
    }
}

fn read_pid(file: &mut File) -> Option<u32> {
    let mut text = String::new();
    file.take(LONGEST_PID).read_to_string(&mut text).ok()?;
    text.trim().parse().ok()
}

fn process_name(pid: u32) -> Option<String> {
    Some(fs::read_to_string(format!("/proc/{pid}/comm")).ok()?.trim_end().to_owned())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    /// Holds the lock of the folder in this variable until its standard input ends. It is how
    /// `a_second_process_learns_who_has_the_folder` makes its second process: this test binary, asked for this test alone.
    const HOLD: &str = "ROOST_TEST_HOLD_STATE";

    #[test]
    fn the_first_use_makes_the_folder_for_its_owner_alone() {
        let parent = tempfile::tempdir().unwrap();
        let state = parent.path().join("var/roost");
        let _lock = StateLock::acquire(&state).unwrap();
        for folder in ["", "images", "disks", "pending"] {
            let mode = fs::metadata(state.join(folder)).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o700, "{folder:?}");
        }
    }

    #[test]
    fn a_dropped_lock_can_be_taken_again() {
        let state = tempfile::tempdir().unwrap();
        drop(StateLock::acquire(state.path()).unwrap());
        StateLock::acquire(state.path()).unwrap();
    }

    #[test]
    fn a_folder_that_cannot_be_made_is_named_with_what_to_do() {
        let parent = tempfile::tempdir().unwrap();
        let file = parent.path().join("file");
        fs::write(&file, "").unwrap();
        let error = StateLock::acquire(&file.join("state")).unwrap_err();
        assert!(matches!(error, LockError::Unusable { .. }), "{error}");
        assert!(error.to_string().contains(file.to_str().unwrap()), "{error}");
        assert!(error.help().contains("--state"), "{}", error.help());
    }

    #[test]
    fn holder_process() {
        let Some(state) = std::env::var_os(HOLD) else { return };
        let _lock = StateLock::acquire(Path::new(&state)).unwrap();
        println!("\nheld");
        io::copy(&mut io::stdin(), &mut io::sink()).unwrap();
    }

    #[test]
    fn a_second_process_learns_who_has_the_folder() {
        use std::io::{BufRead, BufReader};
        use std::process::{Command, Stdio};

        let state = tempfile::tempdir().unwrap();
        let mut other = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "store::lock::tests::holder_process", "--nocapture"])
            .env(HOLD, state.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(other.stdout.take().unwrap()).lines();
        assert!(lines.any(|line| line.unwrap() == "held"), "the other process has the lock");

        let Err(LockError::Held { pid, name, .. }) = StateLock::acquire(state.path()) else { panic!("two owners") };
        assert_eq!(pid, Some(other.id()));
        assert!(name.is_some_and(|name| name.starts_with("roost")));

        other.kill().unwrap();
        other.wait().unwrap();
        StateLock::acquire(state.path()).expect("a lock ends with its process, however that ends");
    }
}
