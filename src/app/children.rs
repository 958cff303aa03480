//! The files of one client's disk: how it is made, made anew and opened.
//!
//! ```text
//! disks/NAME.vhd            the disk
//! disks/NAME.vhd.next       its successor, while that is being made
//! disks/NAME.vhd.previous   its predecessor, until the first login on the disk
//! disks/NAME.volatile       which disks of this name are volatile, and since which boot of the host
//! pending/NAME              the pending map of a durable disk
//! ```
//!
//! A disk is *volatile* (it need not outlive the host's power) if the record names it: a line is the disk's unique id and
//! the boot id of the host (`random(4)`) under which it was made. The record is durable before such a disk is
//! in its place, and while a disk is being replaced it names both. So whatever moment ends the process or the power, the
//! disk that is in its place is known for what it is. A line that names another disk says nothing.
//!
//! Synchronous: callers run this on threads that may block, and see to it that no session uses the disk.

use std::fs;
use std::io::{self, ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use uuid::Uuid;

use super::disks::ServeError;
use super::report::{disk_path, master_path, previous_path};
use crate::disk::file::{Access, File};
use crate::disk::vhd::{self, Footer};
use crate::disk::{Chain, DiskError, PendingPath};
use crate::fleet::image::FIRST_VERSION;
use crate::fleet::policy::DiskFound;
use crate::fleet::{Client, DiskPolicy, ImageName};

/// The masters that are open, each shared by all of its children.
pub(super) type Masters = Arc<Mutex<std::collections::HashMap<PathBuf, Weak<Chain>>>>;

/// The files of one client's disk.
#[derive(Debug, Clone)]
pub(super) struct ChildFiles {
    master: PathBuf,
    image: ImageName,
    policy: DiskPolicy,
    disk: PathBuf,
    next: PathBuf,
    previous: PathBuf,
    record: PathBuf,
    pending: PendingPath,
    masters: Masters,
}

/// A moment in the making of a new disk, after which the process may die.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    /// The new file is complete, beside the old one.
    Made,
    /// The record names the new one, too.
    Recorded,
    /// The old one has its second name.
    Linked,
    /// The new one is in its place.
    Swapped,
}

impl ChildFiles {
    pub(super) fn new(state: &Path, client: &Client, boot_id: &str, masters: &Masters) -> Self {
        let disk = disk_path(state, &client.name);
        Self {
            master: master_path(state, &client.image),
            image: client.image.clone(),
            policy: client.disk,
            next: disk.with_extension("vhd.next"),
            previous: previous_path(state, &client.name),
            record: disk.with_extension("volatile"),
            pending: PendingPath {
                path: state.join("pending").join(client.name.as_str()),
                boot_id: boot_id.to_owned(),
            },
            disk,
            masters: Arc::clone(masters),
        }
    }

    /// Where the disk is.
    pub(super) fn disk(&self) -> &Path {
        &self.disk
    }

    /// Opens the disk for a login, and makes it if it is missing. What was before it is removed.
    ///
    /// # Errors
    /// It cannot be made or opened, or what it held was lost with the host's power.
    pub(super) fn open(&self) -> Result<Chain, ServeError> {
        let master = self.master()?;
        if !self.disk.exists() {
            self.make(&master, &mut |_| ())?;
        }
        let chain = match self.volatile_since()? {
            None => Chain::open_child(&self.disk, master, Some(self.pending.clone()))?,
            Some(boot) if boot == self.pending.boot_id => Chain::open_volatile(&self.disk, master)?,
            Some(_) => return Err(ServeError::Lost { disk: self.disk.clone() }),
        };
        remove(&self.previous)?;
        Ok(chain)
    }

    /// Makes an open volatile disk durable, because its client's policy is to keep it now.
    ///
    /// # Errors
    /// The disk's; it is volatile then.
    pub(super) fn keep(&self, chain: &Chain) -> Result<(), ServeError> {
        chain.keep(&self.pending)?;
        // Only now: without the record the disk must be what it says.
        remove(&self.record)?;
        Ok(self.sync_folder()?)
    }

    /// Replaces the disk by a new one. True if the old one is still there, under its second name.
    ///
    /// # Errors
    /// It cannot be made; the old disk is as it was.
    pub(super) fn make_anew(&self, at: &mut dyn FnMut(Step)) -> Result<bool, ServeError> {
        let master = self.master()?;
        self.make(&master, at)?;
        Ok(self.previous.exists())
    }

    /// What lies there.
    ///
    /// # Errors
    /// It cannot be read.
    pub(super) fn found(&self) -> Result<DiskFound, DiskError> {
        if !self.disk.exists() {
            return Ok(DiskFound::Missing);
        }
        let lost = self.volatile_since()?.is_some_and(|boot| boot != self.pending.boot_id);
        Ok(if lost { DiskFound::Lost } else { DiskFound::Sound })
    }

    /// Makes a disk beside the one that is there, if any, and puts it in its place.
    fn make(&self, master: &Chain, at: &mut dyn FnMut(Step)) -> Result<(), DiskError> {
        let relative = format!(r"..\images\{}\{FIRST_VERSION}.vhd", self.image);
        let id = vhd::create_child(&self.next, master, &relative)?;
        at(Step::Made);
        self.record(id)?;
        at(Step::Recorded);
        // Nobody has logged in on a disk that still has its predecessor: there is nothing on it to look at.
        if self.disk.exists() && !self.previous.exists() {
            let linked = fs::hard_link(&self.disk, &self.previous);
            linked.map_err(|source| DiskError::io(&self.previous, "link", source))?;
        }
        at(Step::Linked);
        fs::rename(&self.next, &self.disk).map_err(|source| DiskError::io(&self.disk, "rename into place", source))?;
        self.sync_folder()?;
        at(Step::Swapped);
        self.link_parent(&relative);
        Ok(())
    }

    /// Writes down what the new disk is. A record of the one that is still in its place stays.
    fn record(&self, new: Uuid) -> Result<(), DiskError> {
        let mut lines = Vec::new();
        if self.disk.exists()
            && let Some(boot) = self.volatile_since()?
        {
            lines.push(format!("{} {boot}\n", unique_id(&self.disk)?));
        }
        if self.policy == DiskPolicy::Reset {
            lines.push(format!("{new} {}\n", self.pending.boot_id));
        }
        if lines.is_empty() {
            return remove(&self.record);
        }
        let temp = self.record.with_extension("volatile.new");
        let written = fs::File::create(&temp).and_then(|mut file| {
            file.write_all(lines.concat().as_bytes())?;
            file.sync_all()?;
            fs::rename(&temp, &self.record)
        });
        written.map_err(|source| DiskError::io(&self.record, "write", source))?;
        self.sync_folder()
    }

    /// The boot of the host under which the disk was made, if it is volatile.
    fn volatile_since(&self) -> Result<Option<String>, DiskError> {
        let text = match fs::read_to_string(&self.record) {
            Ok(text) => text,
            Err(missing) if missing.kind() == ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(DiskError::io(&self.record, "read", source)),
        };
        // A disk that cannot be read will say so when it is opened, and may be replaced.
        let Ok(id) = unique_id(&self.disk).map(|id| id.to_string()) else { return Ok(None) };
        let line = text.lines().filter_map(|line| line.split_once(' ')).find(|(disk, _)| *disk == id);
        Ok(line.map(|(_, boot)| boot.to_owned()))
    }

    fn sync_folder(&self) -> Result<(), DiskError> {
        let folder = self.disk.parent().unwrap_or(Path::new("."));
        let synced = fs::File::open(folder).and_then(|folder| folder.sync_all());
        synced.map_err(|source| DiskError::io(folder, "sync", source))
    }

    /// Leaves a link beside the children whose name is the parent's path as children spell it. Windows follows the spelling;
    /// 7-Zip on Linux takes the backslashes for letters of a file name, and finds the link.
    fn link_parent(&self, spelled: &str) {
        let (Some(folder), Some(file)) = (self.disk.parent(), self.master.file_name()) else { return };
        let target = Path::new("../images").join(self.image.as_str()).join(file);
        match std::os::unix::fs::symlink(target, folder.join(spelled)) {
            Err(error) if error.kind() != ErrorKind::AlreadyExists => {
                tracing::debug!("{}: no link to the parent for 7-Zip: {error}", self.disk.display());
            }
            _ => {}
        }
    }

    /// The image's master, opened once for all of its children.
    fn master(&self) -> Result<Arc<Chain>, ServeError> {
        let mut masters = self.masters.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(master) = masters.get(&self.master).and_then(Weak::upgrade) {
            return Ok(master);
        }
        if !self.master.exists() {
            return Err(ServeError::NoImage { image: self.image.clone() });
        }
        let master = Arc::new(Chain::open(&self.master, Access::Read)?);
        masters.insert(self.master.clone(), Arc::downgrade(&master));
        Ok(master)
    }
}

fn unique_id(disk: &Path) -> Result<Uuid, DiskError> {
    Ok(Footer::read(&File::open(disk, Access::Peek)?)?.0.id())
}

fn remove(path: &Path) -> Result<(), DiskError> {
    match fs::remove_file(path) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => Err(DiskError::io(path, "remove", source)),
        _ => Ok(()),
    }
}
