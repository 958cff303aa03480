//! What is done to a client's disk as a whole while its sessions may be open: checkpoint, roll back, resize, compact.
//!
//! A verb holds the client's door for a moment, so that no login, boot or reset comes in between, and changes the disk in its
//! write queue, so that no write does. Merging takes long, touches nothing but frozen files, and goes on behind the verb's back
//! as [`Works`]; its last step, the change to the merged files, is such a moment again.

use std::collections::HashMap;
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};
use tokio::sync::Semaphore;

use super::App;
use super::boots::{BootError, running};
use super::disks::{ClientDisk, ServeError};
use super::places::{disk_path, previous_path};
use super::recorder::now;
use super::report::{CheckpointReport, bytes_on_host};
use super::sessions::Entry;
use crate::disk::overlay::{Layer, Note, Overlay, Tree, VerbError};
use crate::disk::{DiskError, ErrorKind};
use crate::fleet::policy::DiskFound;
use crate::fleet::{Client, ClientName, DiskPolicy};

/// Merges and compactions that run at once: they read and write the disks of the host as fast as they can, and machines boot
/// meanwhile.
const WORKS: usize = 1;

/// Bytes of a disk that are compacted in one step, which its writes wait for.
const COMPACT_STEP: u64 = 64 << 20;

/// Why a verb was not carried out.
#[derive(Debug, thiserror::Error)]
pub enum OverlayError {
    /// It must not be done; nothing has happened.
    #[error("{what}")]
    Refused {
        /// Why.
        what: String,
        /// What to do instead.
        help: String,
    },
    /// Somebody is using the disk; nothing has happened.
    #[error("{}", running(client, who))]
    Running {
        /// The client's name.
        client: String,
        /// The session that answered.
        who: Arc<Entry>,
    },
    /// It failed.
    #[error(transparent)]
    Failed(#[from] BootError),
}

impl OverlayError {
    /// What a person can do about it, where it was refused.
    #[must_use]
    pub fn help(&self) -> Option<&str> {
        match self {
            Self::Refused { help, .. } => Some(help),
            Self::Running { .. } => Some("shut that system down, or switch the machine off, and try again"),
            Self::Failed(_) => None,
        }
    }

    fn refused(what: impl Into<String>, help: impl Into<String>) -> Self {
        Self::Refused { what: what.into(), help: help.into() }
    }
}

impl From<VerbError> for OverlayError {
    fn from(error: VerbError) -> Self {
        match error {
            VerbError::Refused { what, help } => Self::Refused { what, help },
            VerbError::Disk(error) => error.into(),
        }
    }
}

impl From<DiskError> for OverlayError {
    fn from(error: DiskError) -> Self {
        ServeError::from(error).into()
    }
}

impl From<ServeError> for OverlayError {
    fn from(error: ServeError) -> Self {
        Self::Failed(error.into())
    }
}

/// What `POST /v1/clients/NAME/checkpoints` asks for.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CheckpointRequest {
    /// What its maker says of it.
    #[serde(default)]
    pub note: String,
}

/// What `POST /v1/clients/NAME/rollback` asks for.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RollbackRequest {
    /// The checkpoint's number; else the one that the disk stands on.
    #[serde(default)]
    pub checkpoint: Option<u32>,
}

/// What came of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RollbackReport {
    /// The client's name.
    pub name: String,
    /// The checkpoint that its disk is a child of now.
    pub checkpoint: CheckpointReport,
    /// The disk.
    pub disk_path: PathBuf,
    /// Where the one before it is until the first login on the new one.
    pub previous_disk: Option<PathBuf>,
}

/// What `POST /v1/clients/NAME/resize` asks for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResizeRequest {
    /// The new size in bytes.
    pub size: u64,
}

/// What came of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResizeReport {
    /// The client's name.
    pub name: String,
    /// The size before, in bytes.
    pub old_size: u64,
    /// The size now, in bytes.
    pub new_size: u64,
}

/// A long operation on a client's disk: `GET /v1/clients/NAME/work`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkReport {
    /// What is done now: `waiting`, `merging` or `compacting`.
    pub doing: String,
    /// How far that is, in bytes.
    pub done: u64,
    /// Of how many.
    pub total: u64,
    /// Whether it is over.
    pub finished: bool,
    /// What the client's files take up less by now, in bytes; once it is over.
    pub bytes_returned: u64,
    /// Why it ended before its time. What was done is done, and doing it again does the rest.
    pub error: Option<String>,
}

/// The long operations, one for each client at most.
#[derive(Debug)]
pub struct Works {
    by_client: Mutex<HashMap<ClientName, Arc<Work>>>,
    turns: Semaphore,
    stop: AtomicBool,
}

impl Default for Works {
    fn default() -> Self {
        Self { by_client: Mutex::default(), turns: Semaphore::new(WORKS), stop: AtomicBool::new(false) }
    }
}

#[derive(Debug, Default)]
struct Work {
    doing: Mutex<&'static str>,
    done: AtomicU64,
    total: AtomicU64,
    /// Pages that hold nothing are to be given back, too.
    compact: AtomicBool,
    /// Asked for while it ran: it does it all again before it ends.
    again: AtomicBool,
    ended: Mutex<Option<Result<u64, String>>>,
}

impl Works {
    fn table(&self) -> MutexGuard<'_, HashMap<ClientName, Arc<Work>>> {
        self.by_client.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The client's long operation, the last one if it is over; `None` if there was none.
    #[must_use]
    pub fn of(&self, client: &ClientName) -> Option<WorkReport> {
        self.table().get(client).map(|work| work.report())
    }

    /// Ends what runs, as soon as that can be; what is under way is lost, and nothing else.
    pub fn stop(&self) {
        self.stop.store(true, Ordering::Release);
        self.turns.close();
    }

    fn stopping(&self) -> bool {
        self.stop.load(Ordering::Acquire)
    }
}

impl Work {
    fn ended(&self) -> MutexGuard<'_, Option<Result<u64, String>>> {
        self.ended.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn begin(&self, doing: &'static str) {
        *self.doing.lock().unwrap_or_else(PoisonError::into_inner) = doing;
        self.told(0, 0);
    }

    fn told(&self, done: u64, total: u64) {
        self.done.store(done, Ordering::Relaxed);
        self.total.store(total, Ordering::Relaxed);
    }

    fn report(&self) -> WorkReport {
        let ended = self.ended().clone();
        let (finished, bytes_returned, error) = match ended {
            None => (false, 0, None),
            Some(Ok(bytes)) => (true, bytes, None),
            Some(Err(error)) => (true, 0, Some(error)),
        };
        WorkReport {
            doing: (*self.doing.lock().unwrap_or_else(PoisonError::into_inner)).to_owned(),
            done: self.done.load(Ordering::Relaxed),
            total: self.total.load(Ordering::Relaxed),
            finished,
            bytes_returned,
            error,
        }
    }
}

impl App {
    /// Freezes a client's disk as it is. Its sessions go on.
    ///
    /// # Errors
    /// Refusals, or the disk's error.
    pub async fn checkpoint(self: &Arc<Self>, client: &Client, note: String) -> Result<CheckpointReport, OverlayError> {
        only_kept(client, "a checkpoint")?;
        let note = Note { made_ms: now().0, text: note, checkpoint: true };
        let number = self.behind_the_door(client, move |app, client| async move {
            let (disk, overlay) = app.its_disk(&client).await?;
            Ok(disk.writes.perform(move || overlay.checkpoint(&note)).await??)
        });
        let number = number.await?;
        self.tidy_later(client).await;
        tracing::info!("{}: checkpoint {number}", client.name);
        let tree = self.disks.tree(client).await?;
        let made = tree.checkpoint(number).map(|layer| self.tell(client, &tree, layer));
        made.ok_or_else(|| OverlayError::refused("the checkpoint was deleted right after it was made", "make another"))
    }

    /// A client's checkpoints, by their numbers.
    ///
    /// # Errors
    /// They cannot be read.
    pub async fn checkpoints(&self, client: &Client) -> Result<Vec<CheckpointReport>, OverlayError> {
        let tree = self.disks.tree(client).await?;
        Ok(tree.checkpoints().map(|layer| self.tell(client, &tree, layer)).collect())
    }

    fn tell(&self, client: &Client, tree: &Tree, layer: &Layer) -> CheckpointReport {
        super::report::checkpoint(self.disks.files(client).place(), tree, layer)
    }

    /// Deletes a checkpoint. What the disk or other checkpoints need of it stays, merged into what stands on it.
    ///
    /// # Errors
    /// There is no such checkpoint, or the system's error.
    pub async fn delete_checkpoint(self: &Arc<Self>, client: &Client, number: u32) -> Result<(), OverlayError> {
        let done = self.behind_the_door(client, move |app, client| async move {
            let layer = find(&app.disks.tree(&client).await?, &client.name, Some(number))?;
            let files = app.disks.files(&client);
            app.disks.on_files(&client, files, "delete", move |files| Ok(files.disown(&layer)?)).await?;
            app.loosen(&client).await;
            Ok(())
        });
        done.await?;
        tracing::info!("{}: checkpoint {number} is deleted", client.name);
        self.start_work(client, false);
        Ok(())
    }

    /// Replaces a client's disk by a new child of one of its checkpoints, unless somebody is using it.
    ///
    /// # Errors
    /// Somebody is, there is no such checkpoint, or the disk's error; the disk is then as it was.
    pub async fn roll_back(
        self: &Arc<Self>,
        client: &Client,
        checkpoint: Option<u32>,
    ) -> Result<RollbackReport, OverlayError> {
        only_kept(client, "a roll-back")?;
        let (layer, tree, previous) = self
            .behind_the_door(client, move |app, client| async move {
                let tree = app.disks.tree(&client).await?;
                let layer = find(&tree, &client.name, checkpoint)?;
                let why = "its disk is rolled back, and it gave no sign of life";
                if let Some(who) = app.sessions.clear(&client.name, why).await.into_iter().next() {
                    return Err(OverlayError::Running { client: client.name.to_string(), who });
                }
                let previous = app.disks.roll_back(&client, layer.clone()).await.map_err(|error| match error {
                    ServeError::Disk(ref disk) if disk.kind() == ErrorKind::Parent => OverlayError::refused(
                        format!("checkpoint {} does not stand on the client's image: {error}", layer.number),
                        "give the client the image again that it had then, or export the checkpoint's file",
                    ),
                    error => error.into(),
                })?;
                Ok((layer, app.disks.tree(&client).await?, previous))
            })
            .await?;
        tracing::info!("{}: its disk was rolled back to checkpoint {}", client.name, layer.number);
        let state = &self.settings.state;
        Ok(RollbackReport {
            name: client.name.to_string(),
            checkpoint: self.tell(client, &tree, &layer),
            disk_path: disk_path(state, client),
            previous_disk: previous.then(|| previous_path(state, client)),
        })
    }

    /// Grows a client's disk. Its sessions are told.
    ///
    /// # Errors
    /// Refusals, or the disk's error.
    pub async fn resize(self: &Arc<Self>, client: &Client, size: u64) -> Result<ResizeReport, OverlayError> {
        only_kept(client, "a change of its size")?;
        let sizes = self.behind_the_door(client, move |app, client| async move {
            let (disk, overlay) = app.its_disk(&client).await?;
            let old = disk.disk.size();
            disk.writes.perform(move || overlay.resize(size, now().0)).await??;
            let new = disk.disk.size();
            disk.unit().resize(new);
            Ok((old, new))
        });
        let (old_size, new_size) = sizes.await?;
        self.tidy_later(client).await;
        tracing::info!("{}: its disk had {old_size} bytes and has {new_size}", client.name);
        Ok(ResizeReport { name: client.name.to_string(), old_size, new_size })
    }

    /// Begins to make a client's files smaller without a change to what its disk holds: layers that are no checkpoints are
    /// merged, and pages that hold nothing are given back to the host. [`Works::of`] tells how it goes.
    ///
    /// # Errors
    /// There is no disk, or it cannot be opened.
    pub async fn compact(self: &Arc<Self>, client: &Client) -> Result<WorkReport, OverlayError> {
        self.behind_the_door(client, |app, client| async move { app.its_disk(&client).await.map(|_| ()) }).await?;
        self.start_work(client, true);
        Ok(self.works.of(&client.name).expect("it has just begun"))
    }

    /// Does this behind the client's door; it goes on when nobody waits any more.
    async fn behind_the_door<T, F>(
        self: &Arc<Self>,
        client: &Client,
        work: impl FnOnce(Arc<Self>, Client) -> F,
    ) -> Result<T, OverlayError>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, OverlayError>> + Send + 'static,
    {
        let work = work(Arc::clone(self), client.clone());
        self.in_time(&client.name, async move { Ok(work.await) }).await?
    }

    /// The client's disk, open. The caller holds the door.
    async fn its_disk(&self, client: &Client) -> Result<(Arc<ClientDisk>, Arc<Overlay>), OverlayError> {
        let no_disk = || {
            let what = format!("{} has no disk yet", client.name);
            OverlayError::refused(what, "its first login makes one: switch the machine on")
        };
        if self.disks.find_out(client).await? == DiskFound::Missing {
            return Err(no_disk());
        }
        let disk = self.disks.open(client, &self.naming.target(&client.name)).await?;
        let overlay = disk.overlay.clone().ok_or_else(no_disk)?;
        Ok((disk, overlay))
    }

    /// Lets the layer right below the disk be merged, where it is no checkpoint. The caller holds the door.
    async fn loosen(&self, client: &Client) {
        let loosened = async {
            let (disk, overlay) = self.its_disk(client).await?;
            Ok::<_, OverlayError>(disk.writes.perform(move || overlay.loosen(now().0)).await??)
        };
        if let Err(error) = loosened.await {
            tracing::debug!("{}: the layer below its disk stays: {error}", client.name);
        }
    }

    /// Merges what can be merged, behind the scenes.
    async fn tidy_later(self: &Arc<Self>, client: &Client) {
        let files = self.disks.files(client);
        match self.disks.on_files(client, files, "look at", |files| Ok(files.is_untidy()?)).await {
            Ok(true) => self.start_work(client, false),
            Ok(false) => {}
            Err(error) => tracing::warn!("{}: {error}", client.name),
        }
    }

    fn start_work(self: &Arc<Self>, client: &Client, compact: bool) {
        let work = {
            let mut table = self.works.table();
            if let Some(work) = table.get(&client.name) {
                let ended = work.ended();
                if ended.is_none() {
                    work.again.store(true, Ordering::Release);
                    work.compact.fetch_or(compact, Ordering::AcqRel);
                    return;
                }
            }
            let work = Arc::new(Work { compact: AtomicBool::new(compact), ..Work::default() });
            work.begin("waiting");
            table.insert(client.name.clone(), Arc::clone(&work));
            work
        };
        let (app, client) = (Arc::clone(self), client.clone());
        tokio::spawn(async move {
            let before = app.bytes_of(&client).await;
            loop {
                let done = app.work(&client, &work).await;
                let returned = before.saturating_sub(app.bytes_of(&client).await);
                let mut ended = work.ended();
                if done.is_ok() && work.again.swap(false, Ordering::AcqRel) {
                    continue;
                }
                if let Err(error) = &done
                    && !app.works.stopping()
                {
                    tracing::warn!("{}: merging its layers: {error}", client.name);
                }
                *ended = Some(done.map(|()| returned).map_err(|error| error.to_string()));
                return;
            }
        });
    }

    /// Merges, and compacts if that is asked for.
    async fn work(self: &Arc<Self>, client: &Client, work: &Arc<Work>) -> Result<(), OverlayError> {
        let stopping =
            || DiskError::io(&disk_path(&self.settings.state, client), "merge", std::io::ErrorKind::Interrupted);
        let _turn = self.works.turns.acquire().await.map_err(|_| stopping())?;
        let compact = work.compact.swap(false, Ordering::AcqRel);
        if compact && client.disk == DiskPolicy::Keep {
            self.behind_the_door(client, |app, client| async move {
                app.loosen(&client).await;
                Ok(())
            })
            .await?;
        }
        work.begin("merging");
        let (files, telling, app) = (self.disks.files(client), Arc::clone(work), Arc::clone(self));
        // Not one of the openings: logins do not wait for a merge.
        let merged = tokio::task::spawn_blocking(move || {
            files.tidy(&mut |done, total| {
                telling.told(done, total);
                if app.works.stopping() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
            })
        });
        merged.await.map_err(|_| stopping())??;
        self.take_merged(client).await?;
        if compact {
            work.begin("compacting");
            self.compact_all(client, work).await?;
        }
        Ok(())
    }

    /// Lets the disk go on over the merged files, and become one with the layer below it where that changes nothing.
    async fn take_merged(self: &Arc<Self>, client: &Client) -> Result<(), OverlayError> {
        let taken = self.behind_the_door(client, |app, client| async move {
            let (disk, overlay) = app.its_disk(&client).await?;
            Ok(disk.writes.perform(move || overlay.rebase().and_then(|()| overlay.thaw())).await??)
        });
        match taken.await {
            Ok(_) => Ok(()),
            // There is none, or it cannot be opened: nothing holds on to the old files either.
            Err(OverlayError::Refused { .. } | OverlayError::Failed(BootError::Disk(_))) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Gives pages that hold nothing back, piece by piece: the disk may be in use.
    async fn compact_all(self: &Arc<Self>, client: &Client, work: &Work) -> Result<(), OverlayError> {
        let mut at = 0;
        loop {
            let size = self
                .behind_the_door(client, move |app, client| async move {
                    let (disk, overlay) = app.its_disk(&client).await?;
                    let size = disk.disk.size();
                    let step = COMPACT_STEP.min(size.saturating_sub(at));
                    disk.writes.perform(move || overlay.compact(at, step)).await??;
                    Ok(size)
                })
                .await?;
            at += COMPACT_STEP;
            work.told(at.min(size), size);
            if at >= size {
                return Ok(());
            }
            if self.works.stopping() {
                return Err(OverlayError::refused("roost is stopping", "ask again once it is back"));
            }
        }
    }

    /// What the client's files take up on the host.
    async fn bytes_of(&self, client: &Client) -> u64 {
        let Ok(tree) = self.disks.tree(client).await else { return 0 };
        let place = self.disks.files(client).place().clone();
        let layers = tree.layers.iter().map(|layer| place.layer(layer.number));
        layers.chain([place.top().to_owned()]).filter_map(|path| bytes_on_host(&path)).sum()
    }
}

/// A reset disk is made anew at each boot, whatever was done to it.
fn only_kept(client: &Client, what: &str) -> Result<(), OverlayError> {
    if client.disk == DiskPolicy::Keep {
        return Ok(());
    }
    Err(OverlayError::refused(
        format!("the disk of `{}` is made anew at each boot, and {what} would be gone with the next one", client.name),
        "give the client `disk = \"keep\"` first",
    ))
}

/// The checkpoint with this number, or the one that the disk stands on.
fn find(tree: &Tree, client: &ClientName, number: Option<u32>) -> Result<Layer, OverlayError> {
    let found = match number {
        Some(number) => tree.checkpoint(number),
        None => tree.below_top().into_iter().find(|layer| layer.note.checkpoint),
    };
    found.cloned().ok_or_else(|| {
        let there: Vec<String> = tree.checkpoints().map(|layer| layer.number.to_string()).collect();
        let help = match there.len() {
            0 => format!("it has none; `roost client checkpoint {client}` makes one"),
            _ => format!("it has {}; `roost client checkpoints {client}` lists them", there.join(", ")),
        };
        let what = match number {
            Some(number) => format!("`{client}` has no checkpoint {number}"),
            None => format!("the disk of `{client}` stands on no checkpoint"),
        };
        OverlayError::refused(what, help)
    })
}
