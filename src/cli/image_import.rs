//! `roost image import FILE --name NAME`: a golden master from a raw disk or a VHD.
//!
//! The master grows in a folder of its own beside the images and becomes one by a rename, so that nobody ever sees half an
//! image and a name is given once.

use std::fs::{self, File};
use std::io::{self, ErrorKind, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde_json::json;

use super::ask::{Answer, ask};
use super::error::{Error, Kind};
use super::output::{bytes, print, print_json, seconds};
use super::{Globals, lab};
use crate::app::report::{StatusReport, bytes_on_host, master_path};
use crate::disk;
use crate::disk::import::ImportError;
use crate::fleet::ImageName;
use crate::fleet::image::{FIRST_VERSION, master_file};
use crate::store::{LockError, StateLock};

/// How the folder of an import under way begins; no image's name has a dot.
const STAGING: &str = ".import-";

pub(super) fn run(globals: &Globals, source: &Path, name: &ImageName) -> Result<(), Error> {
    let state = lab::state(globals)?;
    let folder = state.join("images").join(name.as_str());
    if folder.exists() {
        return Err(exists(name, &folder));
    }
    // Looked at before the state is touched: a slip of the pen makes no folders.
    File::open(source).map_err(|error| Error::failed(format!("cannot read {}: {error}", source.display())))?;
    let lock = own_or_shared(&state)?;
    let images = state.join("images");
    if lock.is_some() {
        remove_abandoned(&images);
    }
    let cannot = |what: &Path, error: io::Error| Error::failed(format!("cannot write {}: {error}", what.display()));
    let staging = Staging(images.join(format!("{STAGING}{}", std::process::id())));
    fs::create_dir(&staging.0).map_err(|error| cannot(&staging.0, error))?;

    let started = Instant::now();
    let mut progress = Progress::new(globals.json);
    let imported = disk::import::import(source, &staging.0.join(master_file(FIRST_VERSION)), &mut |done, total| {
        progress.tell(done, total);
    });
    progress.end();
    let imported = imported.map_err(|error| match error {
        ImportError::Disk(error) => error.into(),
        error => Error::failed(error),
    })?;
    sync_folder(&staging.0)?;
    match fs::rename(&staging.0, &folder) {
        Ok(()) => {}
        // Another import was faster.
        Err(error) if matches!(error.kind(), ErrorKind::DirectoryNotEmpty | ErrorKind::AlreadyExists) => {
            return Err(exists(name, &folder));
        }
        Err(error) => return Err(cannot(&folder, error)),
    }
    sync_folder(&images)?;
    drop(lock);

    let took = started.elapsed();
    let path = master_path(&state, name);
    let stored = bytes_on_host(&path).unwrap_or_default();
    if globals.json {
        return print_json(&json!({
            "name": name.as_str(),
            "version": FIRST_VERSION,
            "path": path,
            "disk_size": imported.size,
            "bytes_on_host": stored,
            "seconds": took.as_secs_f64(),
        }));
    }
    print(&format!(
        "image {name}, version {FIRST_VERSION}: a disk of {}, {} on the host, imported in {}\n",
        bytes(imported.size),
        bytes(stored),
        seconds(took)
    ))
}

fn exists(name: &ImageName, folder: &Path) -> Error {
    Error::new(Kind::Refused, format!("there is an image `{name}` already: {}", folder.display()))
        .help("an image never changes, for clients' disks stand on it; choose another name")
}

/// The state's lock; `None` beside a running roost, which has it and does not mind: the new folder is nobody's yet.
fn own_or_shared(state: &Path) -> Result<Option<StateLock>, Error> {
    match StateLock::acquire(state) {
        Ok(lock) => Ok(Some(lock)),
        Err(held @ LockError::Held { .. }) => match ask::<StatusReport>(state, "/v1/status")? {
            Answer::Got(_) => Ok(None),
            Answer::NotFound(_) | Answer::NothingRuns => Err(held.into()),
        },
        Err(other) => Err(other.into()),
    }
}

/// Removes what imports left behind that were killed. Only for the owner of the state's lock, and only what no living
/// process is writing: beside a running roost, imports have no lock.
fn remove_abandoned(images: &Path) {
    for entry in fs::read_dir(images).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let Some(pid) = name.to_str().and_then(|name| name.strip_prefix(STAGING)?.parse::<u32>().ok()) else {
            continue;
        };
        if !Path::new("/proc").join(pid.to_string()).exists() {
            // What cannot be removed costs space only; the next import tries again.
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

fn sync_folder(folder: &Path) -> Result<(), Error> {
    let synced = File::open(folder).and_then(|folder| folder.sync_all());
    synced.map_err(|error| Error::failed(format!("cannot write {}: {error}", folder.display())))
}

/// The folder of an import under way. It goes when this is dropped, unless it has become the image.
struct Staging(PathBuf);

impl Drop for Staging {
    fn drop(&mut self) {
        // Usually it has been renamed and is not there.
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// How far an import is, on standard error: a line that changes on a terminal, else a line now and then.
struct Progress {
    started: Instant,
    told: Option<Instant>,
    every: Duration,
    terminal: bool,
    quiet: bool,
}

impl Progress {
    fn new(quiet: bool) -> Self {
        let terminal = io::stderr().is_terminal();
        let every = if terminal { Duration::from_millis(100) } else { Duration::from_secs(5) };
        Self { started: Instant::now(), told: None, every, terminal, quiet }
    }

    fn tell(&mut self, done: u64, total: u64) {
        let since = self.told.unwrap_or(self.started);
        if self.quiet || since.elapsed() < self.every {
            return;
        }
        self.told = Some(Instant::now());
        let (before, after) = if self.terminal { ("\r\x1b[K", "") } else { ("", "\n") };
        let line = progress_line(done, total, self.started.elapsed());
        // Progress that cannot be shown is no reason to stop.
        let _ = write!(io::stderr(), "{before}{line}{after}");
    }

    fn end(&self) {
        if self.terminal && self.told.is_some() {
            let _ = write!(io::stderr(), "\r\x1b[K");
        }
    }
}

/// ` 45%  921.6 MiB of 2.0 GiB, 184.3 MiB a second`
fn progress_line(done: u64, total: u64, elapsed: Duration) -> String {
    let percent = u128::from(done) * 100 / u128::from(total.max(1));
    let rate = u128::from(done) * 1_000 / elapsed.as_millis().max(1);
    let rate = bytes(u64::try_from(rate).unwrap_or(u64::MAX));
    format!("{percent:3}%  {} of {}, {rate} a second", bytes(done), bytes(total))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn progress_says_how_much_and_how_fast_and_never_divides_by_nothing() {
        let line = progress_line(512 << 20, 2 << 30, Duration::from_secs(4));
        assert_eq!(line, " 25%  512.0 MiB of 2.0 GiB, 128.0 MiB a second");
        assert_eq!(progress_line(0, 0, Duration::ZERO), "  0%  0 bytes of 0 bytes, 0 bytes a second");
    }

    #[test]
    fn what_a_killed_import_left_goes_and_what_a_living_one_writes_stays() {
        let images = tempfile::tempdir().unwrap();
        let mut gone = std::process::Command::new("true").spawn().unwrap();
        let dead = gone.id();
        gone.wait().unwrap();
        let folders = [format!("{STAGING}{dead}"), format!("{STAGING}{}", std::process::id()), "debian-12".to_owned()];
        for folder in &folders {
            fs::create_dir(images.path().join(folder)).unwrap();
        }
        remove_abandoned(images.path());
        let left = folders.map(|folder| images.path().join(folder).exists());
        assert_eq!(left, [false, true, true]);
    }
}
