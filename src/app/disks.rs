//! The clients' disks: one open chain for each client, all over one shared master for each image.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, Weak};

use super::lanes::Lanes;
use super::queue::WriteQueue;
use super::report::{disk_path, master_path};
use crate::disk::file::Access;
use crate::disk::{Chain, Disk, DiskError, PendingPath, vhd};
use crate::fleet::image::FIRST_VERSION;
use crate::fleet::{Client, ClientName, ImageName};
use crate::scsi::LogicalUnit;

/// A client's disk while it is served.
#[derive(Debug)]
pub struct ClientDisk {
    /// Its bytes. Writes go through `writes`.
    pub disk: Arc<dyn Disk>,
    /// The logical unit that its sessions share.
    pub unit: Mutex<LogicalUnit>,
    /// The one way to change it.
    pub writes: Arc<WriteQueue>,
}

/// Why a client's disk cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The client's image was never imported.
    #[error("there is no image `{image}`: import it with `roost image import FILE --name {image}`")]
    NoImage {
        /// Its name.
        image: ImageName,
    },
    /// The disk cannot be made or opened.
    #[error(transparent)]
    Disk(#[from] DiskError),
}

/// The open disks.
#[derive(Debug)]
pub struct Disks {
    state: PathBuf,
    boot_id: String,
    lanes: Arc<Lanes>,
    /// Async, because a disk is opened while it is held: a client's disk is never opened twice.
    open: tokio::sync::Mutex<HashMap<ClientName, Arc<ClientDisk>>>,
    masters: Arc<Mutex<HashMap<PathBuf, Weak<Chain>>>>,
}

impl Disks {
    /// The disks under this state folder. `boot_id` is what this boot of the host is called.
    #[must_use]
    pub fn new(state: PathBuf, boot_id: String, lanes: Arc<Lanes>) -> Self {
        Self { state, boot_id, lanes, open: tokio::sync::Mutex::default(), masters: Arc::default() }
    }

    /// The client's disk, made if there is none yet, opened if it is not open.
    ///
    /// # Errors
    /// The image is missing, or the disk cannot be made or opened.
    pub async fn open(&self, client: &Client, target: &str) -> Result<Arc<ClientDisk>, ServeError> {
        let mut open = self.open.lock().await;
        if let Some(disk) = open.get(&client.name) {
            return Ok(Arc::clone(disk));
        }
        let opening = Opening {
            master: master_path(&self.state, &client.image),
            image: client.image.clone(),
            disk: disk_path(&self.state, &client.name),
            pending: PendingPath {
                path: self.state.join("pending").join(client.name.as_str()),
                boot_id: self.boot_id.clone(),
            },
            masters: Arc::clone(&self.masters),
        };
        let chain = tokio::task::spawn_blocking(move || opening.run()).await.map_err(|panic| DiskError::Io {
            path: disk_path(&self.state, &client.name),
            operation: "open",
            source: std::io::Error::other(panic),
        })??;
        let disk: Arc<dyn Disk> = Arc::new(chain);
        let served = Arc::new(ClientDisk {
            unit: Mutex::new(LogicalUnit::new(target, disk.size(), disk.read_only())),
            writes: WriteQueue::new(Arc::clone(&disk), Arc::clone(&self.lanes)),
            disk,
        });
        open.insert(client.name.clone(), Arc::clone(&served));
        Ok(served)
    }

    /// Makes every open disk durable and closes it.
    pub async fn close_all(&self) {
        for (name, disk) in self.open.lock().await.drain() {
            if let Err(error) = disk.writes.flush().await {
                tracing::error!("{name}: {error}");
            }
        }
    }
}

/// Everything that it takes to open one disk on a thread that may block.
struct Opening {
    master: PathBuf,
    image: ImageName,
    disk: PathBuf,
    pending: PendingPath,
    masters: Arc<Mutex<HashMap<PathBuf, Weak<Chain>>>>,
}

impl Opening {
    fn run(self) -> Result<Chain, ServeError> {
        let master = self.master()?;
        if !self.disk.exists() {
            // A map that an earlier disk of this name left behind says nothing about the new one.
            match std::fs::remove_file(&self.pending.path) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    return Err(DiskError::Io { path: self.pending.path, operation: "remove", source: error }.into());
                }
                _ => {}
            }
            let relative = format!(r"..\images\{}\{FIRST_VERSION}.vhd", self.image);
            vhd::create_child(&self.disk, &master, &relative)?;
            self.link_parent(&relative);
        }
        Ok(Chain::open_child(&self.disk, master, Some(self.pending))?)
    }

    /// Leaves a link beside the children whose name is the parent's path as children spell it. Windows follows the spelling;
    /// 7-Zip on Linux takes the backslashes for letters of a file name, and finds the link.
    fn link_parent(&self, spelled: &str) {
        let (Some(folder), Some(file)) = (self.disk.parent(), self.master.file_name()) else { return };
        let target = Path::new("../images").join(self.image.as_str()).join(file);
        match std::os::unix::fs::symlink(target, folder.join(spelled)) {
            Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => {
                tracing::debug!("{}: no link to the parent for 7-Zip: {error}", self.disk.display());
            }
            _ => {}
        }
    }

    /// The image's master, opened once for all of its children.
    fn master(&self) -> Result<Arc<Chain>, ServeError> {
        let mut masters = self.masters.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
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
