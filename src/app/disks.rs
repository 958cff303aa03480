//! The clients' disks: one open chain for each client, all over one shared master for each image.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use tokio::sync::{OnceCell, Semaphore};
use tokio::task::JoinSet;

use super::lanes::Lanes;
use super::queue::WriteQueue;
use super::report::{disk_path, master_path};
use crate::disk::file::Access;
use crate::disk::{Chain, Disk, DiskError, PendingPath, vhd};
use crate::fleet::image::FIRST_VERSION;
use crate::fleet::{Client, ClientName, ImageName};
use crate::scsi::LogicalUnit;

/// Disks that are opened at once. A lab that is switched on together opens hundreds; a few at a time keep the device busy
/// and leave threads to others.
const OPENINGS: usize = 8;

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

impl ClientDisk {
    fn new(disk: Arc<dyn Disk>, target: &str, lanes: &Arc<Lanes>) -> Arc<Self> {
        Arc::new(Self {
            unit: Mutex::new(LogicalUnit::new(target, disk.size(), disk.read_only())),
            writes: WriteQueue::new(Arc::clone(&disk), Arc::clone(lanes)),
            disk,
        })
    }

    /// The logical unit, for a moment: never across an await.
    pub fn unit(&self) -> MutexGuard<'_, LogicalUnit> {
        self.unit.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Where a client's disk is once it is open. It is opened once, whoever asks for it in the meantime.
type Slot = Arc<OnceCell<Arc<ClientDisk>>>;

/// The open disks.
#[derive(Debug)]
pub struct Disks {
    state: PathBuf,
    boot_id: String,
    lanes: Arc<Lanes>,
    slots: Mutex<HashMap<ClientName, Slot>>,
    openings: Arc<Semaphore>,
    masters: Arc<Mutex<HashMap<PathBuf, Weak<Chain>>>>,
}

impl Disks {
    /// The disks under this state folder. `boot_id` is what this boot of the host is called.
    #[must_use]
    pub fn new(state: PathBuf, boot_id: String, lanes: Arc<Lanes>) -> Self {
        let openings = Arc::new(Semaphore::new(OPENINGS));
        Self { state, boot_id, lanes, slots: Mutex::default(), openings, masters: Arc::default() }
    }

    /// The client's disk, made if there is none yet, opened if it is not open.
    ///
    /// # Errors
    /// The image is missing, or the disk cannot be made or opened.
    pub async fn open(&self, client: &Client, target: &str) -> Result<Arc<ClientDisk>, ServeError> {
        let slot = Arc::clone(self.slots().entry(client.name.clone()).or_default());
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
        let (target, lanes, openings) = (target.to_owned(), Arc::clone(&self.lanes), Arc::clone(&self.openings));
        let open = async move {
            let _turn = openings.acquire().await.expect("never closed");
            let path = opening.disk.clone();
            let opened = tokio::task::spawn_blocking(move || opening.run()).await;
            let chain = opened.map_err(|panic| DiskError::io(&path, "open", std::io::Error::other(panic)))??;
            Ok(ClientDisk::new(Arc::new(chain), &target, &lanes))
        };
        // In a task of its own: a login that is given up meanwhile must not leave a file half open, for the next one to
        // find locked.
        let opened = tokio::spawn(async move { slot.get_or_try_init(|| open).await.cloned() }).await;
        let lost = |panic| DiskError::io(&disk_path(&self.state, &client.name), "open", std::io::Error::other(panic));
        opened.map_err(lost)?
    }

    /// Serves this disk as the client's from now on, where the state folder has none to open: for disks that are no files.
    pub fn put(&self, client: ClientName, target: &str, disk: Arc<dyn Disk>) -> Arc<ClientDisk> {
        let served = ClientDisk::new(disk, target, &self.lanes);
        self.slots().insert(client, Arc::new(OnceCell::new_with(Some(Arc::clone(&served)))));
        served
    }

    /// Makes every open disk durable and closes it.
    pub async fn close_all(&self) {
        let mut closing = JoinSet::new();
        let slots = std::mem::take(&mut *self.slots());
        for (name, slot) in slots {
            let Some(disk) = slot.get().cloned() else { continue };
            closing.spawn(async move {
                disk.writes.flush().await.unwrap_or_else(|error| tracing::error!("{name}: {error}"));
            });
        }
        while closing.join_next().await.is_some() {}
    }

    fn slots(&self) -> MutexGuard<'_, HashMap<ClientName, Slot>> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
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
