//! The clients' disks: one open chain for each client, all over one shared master for each image.

use std::collections::HashMap;
use std::fs;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{OnceCell, Semaphore};
use tokio::task::JoinSet;

use super::atomic::Note;
use super::children::{ChildFiles, Masters};
use super::lanes::{Lane, Lanes};
use super::queue::WriteQueue;
use super::report::disk_path;
use crate::disk::{Chain, Disk, DiskError};
use crate::fleet::policy::DiskFound;
use crate::fleet::{Client, ClientName, DiskPolicy, ImageName};
use crate::scsi::LogicalUnit;

/// Disks that are opened at once. A lab that is switched on together opens hundreds; a few at a time keep the device busy
/// and leave threads to others.
const OPENINGS: usize = 8;

/// A client's disk while it is served.
#[derive(Debug)]
pub struct ClientDisk {
    /// Its bytes. Writes go through `writes`.
    pub disk: Arc<dyn Disk>,
    /// The same, where it is a file.
    chain: Option<Arc<Chain>>,
    /// The logical unit that its sessions share.
    pub unit: Mutex<LogicalUnit>,
    /// The one way to change it.
    pub writes: Arc<WriteQueue>,
    /// Where persistent reservations are kept that must outlive the power.
    reservations: Option<ReservationFile>,
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
    /// The host has lost its power since the disk was made.
    #[error(
        "{} is a reset disk of an earlier boot of the server, and what it held was lost then; it is made anew when the \
         machine boots: switch it off and on",
        disk.display()
    )]
    Lost {
        /// Its file.
        disk: PathBuf,
    },
    /// The disk cannot be made or opened.
    #[error("{0}{advice}", advice = advice(.0))]
    Disk(#[from] DiskError),
}

/// What to do about a disk that cannot be opened, where its own words do not say it.
fn advice(error: &DiskError) -> String {
    match error {
        DiskError::ParentMissing { child, .. } | DiskError::ParentMismatch { child, .. } => {
            let client = child.file_stem().unwrap_or_default().display();
            format!("; bring that parent back, or give up what the disk holds: roost reset {client}")
        }
        DiskError::Corrupt { .. } => {
            "; put a good copy in its place, or, if it is a client's disk, give up what it holds: roost reset NAME"
                .to_owned()
        }
        _ => String::new(),
    }
}

impl ClientDisk {
    fn of_chain(chain: Arc<Chain>, target: &str, lanes: &Arc<Lanes>, beside: Beside) -> Arc<Self> {
        let disk = Arc::clone(&chain) as Arc<dyn Disk>;
        let unit = Self::unit_of(&*disk, target, beside.text.as_deref());
        let writes = WriteQueue::with_note(Arc::clone(&disk), Arc::clone(lanes), beside.note);
        let reservations = Some(beside.reservations);
        Arc::new(Self { chain: Some(chain), unit: Mutex::new(unit), writes, disk, reservations })
    }

    /// A disk that is no file.
    fn of_disk(disk: Arc<dyn Disk>, target: &str, lanes: &Arc<Lanes>) -> Arc<Self> {
        let unit = Mutex::new(Self::unit_of(&*disk, target, None));
        let writes = WriteQueue::new(Arc::clone(&disk), Arc::clone(lanes));
        Arc::new(Self { chain: None, unit, writes, disk, reservations: None })
    }

    fn unit_of(disk: &dyn Disk, target: &str, reservations: Option<&str>) -> LogicalUnit {
        let mut unit = LogicalUnit::new(target, disk.size(), disk.read_only());
        if let Some(text) = reservations
            && !unit.restore(text)
        {
            tracing::warn!("{target}: the reservations that were kept cannot be read, and are forgotten");
        }
        unit
    }

    /// Keeps the unit's reservations, as they are now, for the time after a loss of power.
    ///
    /// # Errors
    /// The system's.
    pub async fn keep_reservations(self: &Arc<Self>, lanes: &Arc<Lanes>) -> Result<(), DiskError> {
        let Some(file) = &self.reservations else { return Ok(()) };
        let (path, disk) = (file.path.clone(), Arc::clone(self));
        let keep = move || match &disk.reservations {
            Some(file) => file.keep(|| disk.unit().kept_reservations()),
            None => Ok(()),
        };
        let kept = lanes.run(Lane::Sync, keep).await;
        kept.unwrap_or_else(|| Err(DiskError::io(&path, "write", io::Error::other("a defect of Roost"))))
    }

    /// The logical unit, for a moment: never across an await.
    pub fn unit(&self) -> MutexGuard<'_, LogicalUnit> {
        self.unit.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What lies beside a disk's pending map.
struct Beside {
    reservations: ReservationFile,
    text: Option<String>,
    note: Option<Note>,
}

/// The file beside a disk's pending map in which persistent reservations outlive the power.
#[derive(Debug)]
struct ReservationFile {
    path: PathBuf,
    /// One change at a time.
    turn: Mutex<()>,
}

impl ReservationFile {
    fn of(state: &Path, client: &ClientName) -> Self {
        Self { path: state.join("pending").join(format!("{client}.reservations")), turn: Mutex::default() }
    }

    /// What was kept.
    fn text(&self) -> Result<Option<String>, DiskError> {
        match fs::read_to_string(&self.path) {
            Ok(text) => Ok(Some(text)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(DiskError::io(&self.path, "read", error)),
        }
    }

    /// Keeps what is to be kept once it is its turn, durably; or nothing any more.
    fn keep(&self, text: impl FnOnce() -> Option<String>) -> Result<(), DiskError> {
        let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        let failed = |error| DiskError::io(&self.path, "write", error);
        match text() {
            None => match fs::remove_file(&self.path) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
                removed => removed.map_err(failed)?,
            },
            Some(text) => {
                let next = self.path.with_extension("reservations.next");
                let mut file = fs::File::create(&next).map_err(failed)?;
                file.write_all(text.as_bytes()).and_then(|()| file.sync_all()).map_err(failed)?;
                fs::rename(&next, &self.path).map_err(failed)?;
            }
        }
        let folder = self.path.parent().unwrap_or(Path::new("."));
        fs::File::open(folder).and_then(|folder| folder.sync_all()).map_err(failed)
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
    masters: Masters,
}

impl Disks {
    /// The disks under this state folder. `boot_id` is what this boot of the host is called.
    #[must_use]
    pub fn new(state: PathBuf, boot_id: String, lanes: Arc<Lanes>) -> Self {
        let openings = Arc::new(Semaphore::new(OPENINGS));
        Self { state, boot_id, lanes, slots: Mutex::default(), openings, masters: Arc::default() }
    }

    /// The client's disk, made if there is none yet, opened if it is not open, and durable if its policy is to keep it.
    ///
    /// The caller holds the client's [door](super::sessions::Sessions::door).
    ///
    /// # Errors
    /// The image is missing, the disk cannot be made or opened, or what it held was lost with the host's power.
    pub async fn open(&self, client: &Client, target: &str) -> Result<Arc<ClientDisk>, ServeError> {
        let slot = Arc::clone(self.slots().entry(client.name.clone()).or_default());
        let (files, policy) = (self.files(client), client.disk);
        let (state, name, read_only) = (self.state.clone(), client.name.clone(), client.read_only);
        let (target, lanes, openings) = (target.to_owned(), Arc::clone(&self.lanes), Arc::clone(&self.openings));
        // In a task of its own: a login that is given up meanwhile must not leave a file half open, for the next one to
        // find locked.
        self.detached(client, "open", async move {
            let _turn = openings.acquire().await.expect("never closed");
            let opening = files.clone();
            let reservations = ReservationFile::of(&state, &name);
            let note = state.join("pending").join(format!("{name}.atomic"));
            let open = || async move {
                let path = opening.disk().to_owned();
                let open = move || {
                    let chain = Arc::new(opening.open()?);
                    let note = Note::open(note, &chain)?;
                    let text = reservations.text()?;
                    Ok::<_, ServeError>((chain, Beside { reservations, text, note }))
                };
                let opened = tokio::task::spawn_blocking(open).await;
                let (chain, beside) =
                    opened.map_err(|panic| DiskError::io(&path, "open", io::Error::other(panic)))??;
                Ok::<_, ServeError>(ClientDisk::of_chain(chain, &target, &lanes, beside))
            };
            let disk = Arc::clone(slot.get_or_try_init(open).await?);
            disk.unit().set_read_only(read_only || disk.disk.read_only());
            if let Some(chain) = disk.chain.clone().filter(|chain| policy == DiskPolicy::Keep && chain.is_volatile()) {
                let path = files.disk().to_owned();
                let kept = tokio::task::spawn_blocking(move || files.keep(&chain)).await;
                kept.map_err(|panic| DiskError::io(&path, "settle", io::Error::other(panic)))??;
            }
            Ok(disk)
        })
        .await
    }

    /// What the client's disk is, as it lies there.
    ///
    /// # Errors
    /// It cannot be read.
    pub async fn found(&self, client: &Client) -> Result<DiskFound, ServeError> {
        let files = self.files(client);
        let found = async move { tokio::task::spawn_blocking(move || files.found()).await };
        let found = found.await.map_err(|panic| self.failed(client, "look at", panic))?;
        Ok(found?)
    }

    /// Replaces the client's disk by a new one, a child of its image. The old one stays as `NAME.vhd.previous` until the
    /// first login on the new one; true if it is there.
    ///
    /// The caller holds the client's [door](super::sessions::Sessions::door), and no session is on the disk.
    ///
    /// # Errors
    /// The image is missing, or the disk cannot be made. The old disk is then as it was.
    pub async fn make_anew(&self, client: &Client) -> Result<bool, ServeError> {
        let old = self.slots().remove(&client.name).and_then(|slot| slot.get().cloned());
        if let Some(old) = old
            && let Err(error) = old.writes.flush().await
        {
            // It is on its way out, and may be what is wrong with the client.
            tracing::warn!("{}: the old disk: {error}", client.name);
        }
        let (files, openings) = (self.files(client), Arc::clone(&self.openings));
        let path = files.disk().to_owned();
        let reservations = ReservationFile::of(&self.state, &client.name);
        self.detached(client, "make anew", async move {
            let _turn = openings.acquire().await.expect("never closed");
            let make = move || {
                // Whoever reserved the old disk has nothing to do with the new one.
                reservations.keep(|| None)?;
                files.make_anew(&mut |_| ())
            };
            let made = tokio::task::spawn_blocking(make).await;
            made.map_err(|panic| DiskError::io(&path, "make anew", io::Error::other(panic)))?
        })
        .await
    }

    /// Runs to its end whether or not the caller does.
    async fn detached<T: Send + 'static>(
        &self,
        client: &Client,
        operation: &'static str,
        work: impl Future<Output = Result<T, ServeError>> + Send + 'static,
    ) -> Result<T, ServeError> {
        tokio::spawn(work).await.map_err(|panic| self.failed(client, operation, panic))?
    }

    fn failed(&self, client: &Client, operation: &'static str, panic: tokio::task::JoinError) -> DiskError {
        DiskError::io(&disk_path(&self.state, &client.name), operation, io::Error::other(panic))
    }

    fn files(&self, client: &Client) -> ChildFiles {
        ChildFiles::new(&self.state, client, &self.boot_id, &self.masters)
    }

    /// Serves this disk as the client's from now on, where the state folder has none to open: for disks that are no files.
    pub fn put(&self, client: ClientName, target: &str, disk: Arc<dyn Disk>) -> Arc<ClientDisk> {
        let served = ClientDisk::of_disk(disk, target, &self.lanes);
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
