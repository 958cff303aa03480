//! The clients' disks: one open chain for each client, all over one shared master for each image.

use std::collections::HashMap;
use std::fs;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{Notify, OnceCell, Semaphore};
use tokio::task::JoinSet;

use super::atomic::Note;
use super::children::{ChildFiles, Gate, Masters};
use super::lanes::{Lane, Lanes};
use super::places::{data_path, disk_path, master_path};
use super::queue::{SETTLE_AFTER, WriteQueue};
use super::report::does_not_shrink;
use super::space::{Account, Space};
use crate::disk::checksum::{Fitness, fitness};
use crate::disk::data::DataDisk;
use crate::disk::overlay::{Layer, Overlay, Tree};
use crate::disk::{Disk, DiskError};
use crate::fleet::policy::DiskFound;
use crate::fleet::{Client, ClientName, DiskPolicy, ImageName};
use crate::scsi::LogicalUnit;

/// Disks that are opened at once. A lab that is switched on together opens hundreds; a few at a time keep the device busy
/// and leave threads to others.
const OPENINGS: usize = 8;

/// The logical unit that a client's second disk is.
const DATA_LUN: u8 = 1;

/// How often a disk that is to be closed is looked at.
const CLOSING: std::time::Duration = std::time::Duration::from_millis(50);

/// A client's disk while it is served.
#[derive(Debug)]
pub struct ClientDisk {
    /// Its bytes. Writes go through `writes`.
    pub disk: Arc<dyn Disk>,
    /// The same, where it is a child of a master.
    pub(super) overlay: Option<Arc<Overlay>>,
    /// The same, where it is a client's second disk.
    data: Option<Arc<DataDisk>>,
    /// The logical unit that its sessions share.
    pub unit: Arc<Mutex<LogicalUnit>>,
    /// The one way to change it.
    pub writes: Arc<WriteQueue>,
    /// What it may take of the host's space, where it is a file.
    account: Option<Arc<Account>>,
    /// Where persistent reservations are kept that must outlive the power.
    reservations: Option<ReservationFile>,
}

/// A client's disks while they are served, each at the place that is its logical unit number. The first, which machines boot
/// from, is always there.
pub type ClientDisks = Arc<[Arc<ClientDisk>]>;

/// Why a client's disk cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The client's image was never imported.
    #[error("there is no image `{image}`: import it with `roost image import FILE --name {image}`")]
    NoImage {
        /// Its name.
        image: ImageName,
    },
    /// The client's image is not what was imported.
    #[error(
        "image `{image}` is not what was imported: {why}; no disk of it is served until that file is put back          (`roost verify --masters` compares it)"
    )]
    Changed {
        /// Its name.
        image: ImageName,
        /// How that is known.
        why: String,
    },
    /// The client's image may have changed: nobody knows yet.
    #[error("the file of image `{image}` was touched, and is being compared with its checksum: try again in a moment")]
    Doubtful {
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
    /// The client's second disk cannot be made, opened or grown.
    #[error(
        "its data disk: {0}; put a good copy in its place, or, for the machine to boot without it, take `data` out of roost.toml \
         and start roost again"
    )]
    Data(DiskError),
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
    fn of_overlay(overlay: Arc<Overlay>, target: &str, lanes: &Arc<Lanes>, beside: Beside) -> Arc<Self> {
        let disk = Arc::clone(&overlay) as Arc<dyn Disk>;
        Arc::new(Self { overlay: Some(overlay), ..Self::of_file(disk, target, 0, lanes, beside) })
    }

    fn of_data(data: Arc<DataDisk>, target: &str, lanes: &Arc<Lanes>, beside: Beside) -> Arc<Self> {
        let disk = Arc::clone(&data) as Arc<dyn Disk>;
        Arc::new(Self { data: Some(data), ..Self::of_file(disk, target, DATA_LUN, lanes, beside) })
    }

    fn of_file(disk: Arc<dyn Disk>, target: &str, lun: u8, lanes: &Arc<Lanes>, beside: Beside) -> Self {
        let unit = Self::unit_of(&*disk, target, lun, beside.text.as_deref());
        if beside.account.host_is_low() {
            unit.lock().unwrap_or_else(PoisonError::into_inner).space_runs_low();
        }
        let account = Some(beside.account);
        let writes = WriteQueue::of_file(Arc::clone(&disk), Arc::clone(lanes), beside.note, account.clone());
        let reservations = Some(beside.reservations);
        Self { overlay: None, data: None, unit, writes, disk, account, reservations }
    }

    /// A disk that is no file.
    fn of_disk(disk: Arc<dyn Disk>, target: &str, lanes: &Arc<Lanes>) -> Arc<Self> {
        let unit = Self::unit_of(&*disk, target, 0, None);
        let writes = WriteQueue::new(Arc::clone(&disk), Arc::clone(lanes));
        Arc::new(Self { overlay: None, data: None, unit, writes, disk, account: None, reservations: None })
    }

    fn unit_of(disk: &dyn Disk, target: &str, lun: u8, reservations: Option<&str>) -> Arc<Mutex<LogicalUnit>> {
        let unit = LogicalUnit::numbered(target, lun, disk.size(), disk.read_only());
        let mut unit = unit.with_sectors(disk.sectors());
        if let Some(text) = reservations
            && !unit.restore(text)
        {
            tracing::warn!("{target}: the reservations that were kept cannot be read, and are forgotten");
        }
        Arc::new(Mutex::new(unit))
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

    /// Makes everything that was acknowledged durable, in a file that other programs find complete.
    ///
    /// # Errors
    /// The disk's.
    async fn close(&self) -> Result<(), DiskError> {
        let disk = Arc::clone(&self.disk);
        self.writes.perform(move || disk.close()).await?
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
    account: Arc<Account>,
}

/// The file beside a disk's pending map in which persistent reservations outlive the power.
#[derive(Debug)]
struct ReservationFile {
    path: PathBuf,
    /// One change at a time.
    turn: Mutex<()>,
}

impl ReservationFile {
    /// Of the disk of this name: a client's, or, for its second one, that and `.data`.
    fn of(state: &Path, disk: &str) -> Self {
        Self { path: state.join("pending").join(format!("{disk}.reservations")), turn: Mutex::default() }
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
    /// Those of the second disks.
    data_slots: Mutex<HashMap<ClientName, Slot>>,
    openings: Arc<Semaphore>,
    masters: Masters,
    pub(super) space: Arc<Space>,
    doubt: Notify,
    gate: Gate,
}

impl Disks {
    /// The disks under this state folder. `boot_id` is what this boot of the host is called.
    #[must_use]
    pub fn new(state: PathBuf, boot_id: String, lanes: Arc<Lanes>) -> Self {
        let openings = Arc::new(Semaphore::new(OPENINGS));
        Self {
            space: Space::of(&state),
            state,
            boot_id,
            lanes,
            slots: Mutex::default(),
            data_slots: Mutex::default(),
            openings,
            masters: Arc::default(),
            doubt: Notify::new(),
            gate: Arc::default(),
        }
    }

    /// The client's disk, made if there is none yet, opened if it is not open, and durable if its policy is to keep it.
    ///
    /// The caller holds the client's [door](super::sessions::Sessions::door).
    ///
    /// # Errors
    /// The image is missing, the disk cannot be made or opened, or what it held was lost with the host's power.
    pub async fn open(&self, client: &Client, target: &str) -> Result<Arc<ClientDisk>, ServeError> {
        self.image_is_fit(client).await?;
        let slot = Arc::clone(self.slots().entry(client.name.clone()).or_default());
        let (files, policy) = (self.files(client), client.disk);
        let (state, name, read_only) = (self.state.clone(), client.name.clone(), client.read_only);
        let (limit, space) = (client.limit, Arc::clone(&self.space));
        let (target, lanes, openings) = (target.to_owned(), Arc::clone(&self.lanes), Arc::clone(&self.openings));
        // In a task of its own: a login that is given up meanwhile must not leave a file half open, for the next one to
        // find locked.
        self.detached(client, "open", async move {
            let _turn = openings.acquire().await.expect("never closed");
            let opening = files.clone();
            let reservations = ReservationFile::of(&state, name.as_str());
            let note = state.join("pending").join(format!("{name}.atomic"));
            let account_of = name.clone();
            let open = || async move {
                let path = opening.disk().to_owned();
                let open = move || {
                    let overlay = Arc::new(opening.open()?);
                    let note = Note::open(note, overlay.clone())?;
                    let text = reservations.text()?;
                    let account = space.account(&account_of, opening.disk());
                    Ok::<_, ServeError>((overlay, Beside { reservations, text, note: Some(note), account }))
                };
                let opened = tokio::task::spawn_blocking(open).await;
                let (overlay, beside) =
                    opened.map_err(|panic| DiskError::io(&path, "open", io::Error::other(panic)))??;
                Ok::<_, ServeError>(ClientDisk::of_overlay(overlay, &target, &lanes, beside))
            };
            let disk = Arc::clone(slot.get_or_try_init(open).await?);
            disk.unit().set_read_only(read_only || disk.disk.read_only());
            if let Some(account) = &disk.account {
                account.set_limit(limit);
            }
            let volatile = disk.overlay.clone().filter(|overlay| overlay.is_volatile());
            if let Some(overlay) = volatile.filter(|_| policy == DiskPolicy::Keep) {
                let path = files.disk().to_owned();
                let kept = tokio::task::spawn_blocking(move || files.keep(&overlay)).await;
                kept.map_err(|panic| DiskError::io(&path, "settle", io::Error::other(panic)))??;
            }
            Ok(disk)
        })
        .await
    }

    /// The client's second disk, if it is to have one: made if there is none yet, opened if it is not open, grown if it is to be
    /// larger than it is. Whoever has it open already is told.
    ///
    /// The caller holds the client's [door](super::sessions::Sessions::door).
    ///
    /// # Errors
    /// It cannot be made, opened or grown.
    pub async fn open_data(&self, client: &Client, target: &str) -> Result<Option<Arc<ClientDisk>>, ServeError> {
        let Some(size) = client.data else { return Ok(None) };
        let slot = Arc::clone(self.data_slots().entry(client.name.clone()).or_default());
        let (state, name, limit) = (self.state.clone(), client.name.clone(), client.limit);
        let (space, target, first) = (Arc::clone(&self.space), target.to_owned(), disk_path(&self.state, client));
        let (lanes, openings) = (Arc::clone(&self.lanes), Arc::clone(&self.openings));
        let opened = self.detached(client, "open", async move {
            let _turn = openings.acquire().await.expect("never closed");
            let open = || async {
                let path = data_path(&state, &name);
                let failed = path.clone();
                let opening =
                    tokio::task::spawn_blocking(move || open_data_files(&state, &name, &path, &first, size, &space));
                let (data, beside) =
                    opening.await.map_err(|panic| DiskError::io(&failed, "open", io::Error::other(panic)))??;
                Ok::<_, ServeError>(ClientDisk::of_data(data, &target, &lanes, beside))
            };
            let disk = Arc::clone(slot.get_or_try_init(open).await?);
            if let Some(account) = &disk.account {
                account.set_limit(limit);
            }
            if let Some(data) = disk.data.clone().filter(|data| data.size() < size) {
                disk.writes.perform(move || data.grow(size)).await??;
                disk.unit().resize(disk.disk.size());
            }
            Ok(disk)
        });
        opened.await.map(Some).map_err(|error| match error {
            ServeError::Disk(error) => ServeError::Data(error),
            other => other,
        })
    }

    /// Whether the client's image is what was imported, as far as a look at its file tells.
    async fn image_is_fit(&self, client: &Client) -> Result<(), ServeError> {
        let master = master_path(&self.state, &client.image);
        let image = || client.image.clone();
        let looked =
            tokio::task::spawn_blocking(move || if master.exists() { fitness(&master) } else { Ok(Fitness::Fit) });
        match looked.await.map_err(|panic| self.failed(client, "look at the image of", panic))?? {
            // One without a record has one soon. One that is missing is told of by whoever opens it.
            Fitness::Fit | Fitness::Unrecorded => Ok(()),
            Fitness::Changed(why) => {
                // It may have been put right.
                self.doubt.notify_one();
                Err(ServeError::Changed { image: image(), why })
            }
            Fitness::Touched => {
                self.doubt.notify_one();
                Err(ServeError::Doubtful { image: image() })
            }
        }
    }

    /// Waits until a login finds an image that may have changed.
    pub(super) async fn doubts(&self) {
        self.doubt.notified().await;
    }

    /// What the client's disk is, as it lies there.
    ///
    /// # Errors
    /// It cannot be read.
    pub async fn find_out(&self, client: &Client) -> Result<DiskFound, ServeError> {
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
        self.image_is_fit(client).await?;
        let files = self.put_away(client).await;
        let reservations = ReservationFile::of(&self.state, client.name.as_str());
        self.on_files(client, files, "make anew", move |files| {
            // Whoever reserved the old disk has nothing to do with the new one.
            reservations.keep(|| None)?;
            files.make_anew(&mut |_| ())
        })
        .await
    }

    /// Replaces the client's disk by a new child of one of its checkpoints, as [`make_anew`](Disks::make_anew) does.
    ///
    /// The caller holds the client's [door](super::sessions::Sessions::door), and no session is on the disk.
    ///
    /// # Errors
    /// The checkpoint cannot be opened, or the disk cannot be made. The old disk is then as it was.
    pub(super) async fn roll_back(&self, client: &Client, to: Layer) -> Result<bool, ServeError> {
        self.image_is_fit(client).await?;
        let files = self.put_away(client).await;
        let reservations = ReservationFile::of(&self.state, client.name.as_str());
        self.on_files(client, files, "roll back", move |files| {
            reservations.keep(|| None)?;
            files.roll_back(&to, &mut |_| ())
        })
        .await
    }

    /// The client's checkpoints and other layers, as they lie there.
    ///
    /// # Errors
    /// They cannot be read.
    pub(super) async fn tree(&self, client: &Client) -> Result<Tree, ServeError> {
        let files = self.files(client);
        self.on_files(client, files, "look at", |files| Ok(files.tree()?)).await
    }

    /// Closes the client's disk, in order as far as that is possible.
    async fn put_away(&self, client: &Client) -> ChildFiles {
        let old = self.slots().remove(&client.name).and_then(|slot| slot.get().cloned());
        if let Some(old) = old
            && let Err(error) = old.close().await
        {
            // It is on its way out, and may be what is wrong with the client.
            tracing::warn!("{}: the old disk: {error}", client.name);
        }
        self.files(client)
    }

    /// Does this with the client's files, on a thread that may block, to its end whether or not the caller waits.
    pub(super) async fn on_files<T: Send + 'static>(
        &self,
        client: &Client,
        files: ChildFiles,
        operation: &'static str,
        work: impl FnOnce(&ChildFiles) -> Result<T, ServeError> + Send + 'static,
    ) -> Result<T, ServeError> {
        let openings = Arc::clone(&self.openings);
        let path = files.disk().to_owned();
        self.detached(client, operation, async move {
            let _turn = openings.acquire().await.expect("never closed");
            let done = tokio::task::spawn_blocking(move || work(&files)).await;
            done.map_err(|panic| DiskError::io(&path, operation, io::Error::other(panic)))?
        })
        .await
    }

    /// Makes the client's disks durable, with what a process that died left of the first, and closes them; `false` where there
    /// is no first one.
    ///
    /// The caller holds the client's [door](super::sessions::Sessions::door), and no session is on the disk.
    ///
    /// # Errors
    /// It cannot be opened or made durable.
    pub async fn release(&self, client: &Client) -> Result<bool, ServeError> {
        let open = self.slots().remove(&client.name);
        let data = self.data_slots().remove(&client.name);
        for (slot, path) in [(open, disk_path(&self.state, client)), (data, data_path(&self.state, &client.name))] {
            let Some(open) = slot.and_then(|slot| slot.get().cloned()) else { continue };
            open.close().await?;
            let held = Arc::downgrade(&open.disk);
            drop(open);
            // Whoever waits for a quiet moment to settle the disk still has it, until that moment.
            let closed = async {
                while held.strong_count() > 0 {
                    tokio::time::sleep(CLOSING).await;
                }
            };
            tokio::time::timeout(SETTLE_AFTER * 3 / 2, closed).await.map_err(|_| DiskError::Locked { path })?;
        }
        let files = self.files(client);
        let path = files.disk().to_owned();
        self.detached(client, "settle", async move {
            let settled = tokio::task::spawn_blocking(move || files.settle()).await;
            settled.map_err(|panic| DiskError::io(&path, "settle", io::Error::other(panic)))?
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
        DiskError::io(&disk_path(&self.state, client), operation, io::Error::other(panic))
    }

    pub(super) fn files(&self, client: &Client) -> ChildFiles {
        ChildFiles::new(&self.state, client, &self.boot_id, &self.masters, &self.gate)
    }

    /// Serves this disk as the client's from now on, where the state folder has none to open: for disks that are no files.
    pub fn put(&self, client: ClientName, target: &str, disk: Arc<dyn Disk>) -> Arc<ClientDisk> {
        let served = ClientDisk::of_disk(disk, target, &self.lanes);
        self.slots().insert(client, Arc::new(OnceCell::new_with(Some(Arc::clone(&served)))));
        served
    }

    /// The disks that are open now.
    pub(super) fn open_disks(&self) -> Vec<Arc<ClientDisk>> {
        let open = |slots: &HashMap<ClientName, Slot>| -> Vec<_> {
            slots.values().filter_map(|slot| slot.get().cloned()).collect()
        };
        let (disks, data) = (open(&self.slots()), open(&self.data_slots()));
        disks.into_iter().chain(data).collect()
    }

    /// Makes every open disk durable and closes it.
    pub async fn close_all(&self) {
        let mut closing = JoinSet::new();
        let (slots, data) = (std::mem::take(&mut *self.slots()), std::mem::take(&mut *self.data_slots()));
        for (name, slot) in slots.into_iter().chain(data) {
            let Some(disk) = slot.get().cloned() else { continue };
            closing.spawn(async move {
                disk.close().await.unwrap_or_else(|error| tracing::error!("{name}: {error}"));
            });
        }
        while closing.join_next().await.is_some() {}
    }

    fn slots(&self) -> MutexGuard<'_, HashMap<ClientName, Slot>> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn data_slots(&self) -> MutexGuard<'_, HashMap<ClientName, Slot>> {
        self.data_slots.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Opens the file of a client's second disk, and makes it with this size if it is missing. `first` is where its first disk
/// is. May wait for the device.
fn open_data_files(
    state: &Path,
    client: &ClientName,
    path: &Path,
    first: &Path,
    size: u64,
    space: &Arc<Space>,
) -> Result<(Arc<DataDisk>, Beside), DiskError> {
    if !path.exists() {
        DataDisk::create(path, size)?;
        tracing::info!("{client}: {} is new, an empty disk", path.display());
    }
    let data = Arc::new(DataDisk::open(path)?);
    if data.size() > size {
        tracing::warn!("{client}: {} {}", path.display(), does_not_shrink(size, data.size()));
    }
    let own = format!("{client}.data");
    let note = Note::open(state.join("pending").join(format!("{own}.atomic")), data.clone())?;
    let reservations = ReservationFile::of(state, &own);
    let text = reservations.text()?;
    let account = space.account(client, first);
    Ok((data, Beside { reservations, text, note: Some(note), account }))
}
