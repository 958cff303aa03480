//! `roost image import FILE --name NAME`: a golden master from a disk file.
//!
//! The master grows in a folder of its own beside the images and becomes one by a rename, together with its checksum, so that
//! nobody ever sees half an image and a name is given once. An import that is interrupted leaves nothing; what one that was
//! killed left, the next one removes.

use std::fs::{self, File};
use std::io::{self, ErrorKind};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::time::Instant;

use rustix::fs::{FlockOperation, flock};
use serde_json::json;

use super::ask::{Answer, ask};
use super::error::{Error, Kind};
use super::output::{bytes, print, print_json, seconds};
use super::progress::{Progress, Unfinished};
use super::{Globals, lab};
use crate::app::places::{image_folder, master_path};
use crate::app::report::{StatusReport, bytes_on_host};
use crate::disk::checksum::Checksum;
use crate::disk::import::{Fitted, ImportError, import, import_fitting, place};
use crate::disk::{DiskError, Format, names};
use crate::fleet::ImageName;
use crate::fleet::image::FIRST_VERSION;
use crate::store::{LockError, StateLock};

/// How the folder of an import under way begins; no image's name has a dot.
const STAGING: &str = ".import-";

pub(super) fn run(globals: &Globals, source: &Path, name: &ImageName, format: Option<Format>) -> Result<(), Error> {
    let state = lab::state(globals)?;
    let folder = image_folder(&state, name);
    if folder.exists() {
        return Err(exists(name, &folder));
    }
    // Looked at before the state is touched: a slip of the pen makes no folders.
    File::open(source).map_err(|error| Error::failed(format!("cannot read {}: {error}", source.display())))?;
    let lock = own_or_shared(&state)?;
    let images = state.join("images");
    remove_abandoned(&images);
    let cannot = |what: &Path, error: io::Error| Error::failed(format!("cannot write {}: {error}", what.display()));
    let staging = Staging::new(images.join(format!("{STAGING}{}", std::process::id())))
        .map_err(|(path, error)| cannot(&path, error))?;
    let stem = staging.path.join(FIRST_VERSION.to_string());

    let started = Instant::now();
    let mut progress = Progress::new("importing", globals.json);
    let made = make(source, &stem, format, &mut |done, total| progress.tell(done, total));
    progress.end();
    let Fitted { path: master, why, imported } = made.map_err(|error| match error {
        ImportError::Disk(error) => error.into(),
        no_vhd @ ImportError::NoVhd { .. } => Error::failed(no_vhd).help("without --format it becomes a VHDX"),
        error => Error::failed(error),
    })?;
    let mut progress = Progress::new("checksum", globals.json);
    let recorded = Checksum::record(&master, &mut |done, total| {
        progress.tell(done, total);
        ControlFlow::Continue(())
    });
    progress.end();
    let blake3 = recorded?.map(|record| record.blake3);
    match place(&staging.path, &folder) {
        Ok(()) => {}
        // Another import was faster.
        Err(DiskError::Io { source, .. })
            if matches!(source.kind(), ErrorKind::DirectoryNotEmpty | ErrorKind::AlreadyExists) =>
        {
            return Err(exists(name, &folder));
        }
        Err(error) => return Err(error.into()),
    }
    drop(lock);

    let took = started.elapsed();
    let path = master_path(&state, name);
    let made_as = Format::of_name(&path).unwrap_or_default();
    let stored = bytes_on_host(&path).unwrap_or_default();
    if globals.json {
        return print_json(&json!({
            "name": name.as_str(),
            "version": FIRST_VERSION,
            "path": path,
            "format": made_as.extension(),
            "disk_size": imported.size,
            "bytes_on_host": stored,
            "blake3": blake3,
            "seconds": took.as_secs_f64(),
        }));
    }
    let reason = why.map(|why| format!("  it is a VHDX, for it cannot be a VHD: {why}\n")).unwrap_or_default();
    print(&format!(
        "image {name}, version {FIRST_VERSION}: a disk of {}, {} on the host, imported in {}\n{reason}",
        bytes(imported.size),
        bytes(stored),
        seconds(took)
    ))
}

/// Makes the master in the format that was asked for, or in the one that fits.
fn make(
    source: &Path,
    stem: &Path,
    format: Option<Format>,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<Fitted, ImportError> {
    let Some(format) = format else { return import_fitting(source, stem, progress) };
    let path = names::path(stem, format);
    let imported = import(source, &path, progress)?;
    Ok(Fitted { path, why: None, imported })
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

/// Removes what imports left behind that were killed: a living one has its folder locked.
fn remove_abandoned(images: &Path) {
    for entry in fs::read_dir(images).into_iter().flatten().flatten() {
        let path = entry.path();
        if !entry.file_name().to_str().is_some_and(|name| name.starts_with(STAGING)) {
            continue;
        }
        let Ok(folder) = File::open(&path) else { continue };
        if flock(&folder, FlockOperation::NonBlockingLockExclusive).is_ok() {
            // What cannot be removed costs space only; the next import tries again.
            let _ = fs::remove_dir_all(&path);
        }
    }
}

/// The folder of an import under way. It goes when this is dropped, unless it has become the image.
struct Staging {
    path: PathBuf,
    _locked: File,
    _unfinished: Unfinished,
}

impl Staging {
    fn new(path: PathBuf) -> Result<Self, (PathBuf, io::Error)> {
        let unfinished = Unfinished::new(path.clone());
        // Another import may have taken it for abandoned before it was locked: then there is no such folder any more.
        let made = fs::create_dir(&path).and_then(|()| File::open(&path)).and_then(|folder| {
            flock(&folder, FlockOperation::NonBlockingLockExclusive)?;
            fs::metadata(&path).map(|_| folder)
        });
        match made {
            Ok(locked) => Ok(Self { path, _locked: locked, _unfinished: unfinished }),
            Err(error) => Err((path, error)),
        }
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        // Usually it has been renamed and is not there.
        let _ = fs::remove_dir_all(&self.path);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_killed_import_left_goes_and_what_a_living_one_writes_stays() {
        let images = tempfile::tempdir().unwrap();
        let living = Staging::new(images.path().join(format!("{STAGING}1"))).unwrap();
        let folders =
            [&format!("{STAGING}1"), &format!("{STAGING}2"), "debian-12"].map(|name| images.path().join(name));
        folders[1..].iter().for_each(|folder| fs::create_dir(folder).unwrap());
        remove_abandoned(images.path());
        assert_eq!(folders.each_ref().map(|folder| folder.exists()), [true, false, true]);
        drop(living);
        assert!(!folders[0].exists());
    }
}
