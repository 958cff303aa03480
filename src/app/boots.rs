//! Where a boot begins, and what becomes of the client's disk then.
//!
//! A boot begins when a machine fetches its client's script from an address that is known to be its own. Old sessions are
//! asked for a sign of life first: a system that answers is running on the disk, which then stays whatever the policy says.
//! The decision itself stands in [`disk_at_boot`]; here it is carried out.
//!
//! Not here: who fetches scripts, and how sessions are asked.

use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::App;
use super::bootfiles::{Begun, Boot};
use super::disks::ServeError;
use super::places::{data_path, disk_path, previous_path};
use super::secrets::SecretError;
use super::sessions::Entry;
use crate::fleet::policy::{DiskAtBoot, DiskFound, Fetch, Plan, Stays, boot_plan, disk_at_boot};
use crate::fleet::{Client, ClientName, DiskPolicy, Mac};

/// How long the fetch of a script may wait for its disk: a second for the question, some milliseconds for a new file, and
/// patience with a host that is busy. iPXE waits longer.
pub const PATIENCE: Duration = Duration::from_secs(10);

/// Why sessions are ended at a boot, for the log.
const BOOTED: &str = "its machine boots, and it gave no sign of life";

/// Why a boot cannot begin: the script must not go out, for the disk behind it is not what was promised.
#[derive(Debug, thiserror::Error)]
pub enum BootError {
    /// The disk cannot be made anew.
    #[error("its disk cannot be made anew: {0}")]
    Disk(#[from] ServeError),
    /// It has no CHAP secret.
    #[error("no CHAP secret could be made for it: {0}")]
    Secret(#[from] SecretError),
    /// An old session does not let go of the disk in time.
    #[error("its disk is still busy with an old session after {} s", PATIENCE.as_secs())]
    Busy,
}

/// Why a disk was not reset.
#[derive(Debug, thiserror::Error)]
pub enum ResetError {
    /// Somebody is using it.
    #[error("{}", running(client, who))]
    Running {
        /// The client's name.
        client: String,
        /// The session that answered.
        who: Arc<Entry>,
    },
    /// It cannot be made anew.
    #[error(transparent)]
    Boot(#[from] BootError),
    /// It cannot be closed.
    #[error(transparent)]
    Disk(ServeError),
}

/// What `POST /v1/clients/NAME/reset` and `roost reset` answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResetReport {
    /// The client's name.
    pub name: String,
    /// Whether there was a disk to make anew; if not, the first login makes one.
    pub made_anew: bool,
    /// The disk.
    pub disk_path: PathBuf,
    /// Where the old one is until the first login on the new one.
    pub previous_disk: Option<PathBuf>,
    /// Checkpoints of the client, which stay.
    #[serde(default)]
    pub checkpoints: usize,
}

/// Says who keeps a disk from being replaced.
pub(super) fn running(client: &str, who: &Entry) -> String {
    format!("the disk of `{client}` is in use: {} answers from {}", who.initiator, who.address)
}

/// What `POST /v1/clients/NAME/release` answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReleaseReport {
    /// The client's name.
    pub name: String,
    /// The disk, closed and whole until the next login; none where there is no disk yet.
    pub disk_path: Option<PathBuf>,
    /// The second disk, as closed; none where there is none.
    #[serde(default)]
    pub data_path: Option<PathBuf>,
}

impl App {
    /// The machine with this MAC fetches its script: if a client's disk is what it is to boot, see
    /// [`begin_boot`](App::begin_boot).
    ///
    /// # Errors
    /// As there.
    pub async fn begin_boot_of(self: &Arc<Self>, mac: Mac, from: IpAddr, neighbour: Option<Mac>) -> Begun {
        let fleet = self.fleet();
        let Plan::Boot(client) = boot_plan(&fleet, mac) else { return Ok(None) };
        let disk = self.begin_boot(client, from, neighbour).await?;
        // By the same rule as the boot itself: only its own address is told.
        let told = client.chap && self.is_its_machine(client, from, neighbour).is_ok();
        let secrets = if told { Some(self.secrets.of(&client.name).await?) } else { None };
        Ok(Some(Boot { disk, policy: client.disk, secrets }))
    }

    /// A machine fetches its client's script: the boot begins, if it is really its machine. Returns once the script may go
    /// out, after [`PATIENCE`] at the latest.
    ///
    /// `neighbour` is the machine that the kernel knows at that address, if it knows one.
    ///
    /// # Errors
    /// The disk is not what the client is to boot from: it must not get its script.
    pub async fn begin_boot(
        self: &Arc<Self>,
        client: &Client,
        from: IpAddr,
        neighbour: Option<Mac>,
    ) -> Result<DiskAtBoot, BootError> {
        let own_address = match self.is_its_machine(client, from, neighbour) {
            Ok(()) => true,
            Err(why) => {
                tracing::debug!("{}: a fetch of its script begins no boot: {why}", client.name);
                false
            }
        };
        if !own_address {
            return Ok(disk_at_boot(client.disk, Fetch { own_address, answered: false, disk: DiskFound::Sound }));
        }
        let (app, this) = (Arc::clone(self), client.clone());
        let decided = self.in_time(&client.name, async move {
            let answered = !app.sessions.clear(&this.name, BOOTED).await.is_empty();
            let disk = app.disks.find_out(&this).await?;
            let decision = disk_at_boot(this.disk, Fetch { own_address, answered, disk });
            if let DiskAtBoot::Anew(_) = decision {
                app.disks.make_anew(&this).await?;
            }
            Ok(decision)
        });
        match decided.await {
            // A disk that is kept is right as it is; the login will see whether it can be had.
            Err(error) if client.disk == DiskPolicy::Keep => {
                tracing::warn!("{}: {error}", client.name);
                Ok(DiskAtBoot::Stays(Stays::Kept))
            }
            decided => decided,
        }
    }

    /// Makes a client's disk anew, whatever its policy, unless somebody is using it.
    ///
    /// # Errors
    /// Somebody is, or it cannot be made anew.
    pub async fn reset_disk(self: &Arc<Self>, client: &Client) -> Result<ResetReport, ResetError> {
        let (app, this) = (Arc::clone(self), client.clone());
        let done = self.in_time(&client.name, async move {
            let answered = app.sessions.clear(&this.name, "its disk is made anew, and it gave no sign of life").await;
            if let Some(who) = answered.into_iter().next() {
                return Ok(Err(who));
            }
            let made_anew = app.disks.find_out(&this).await? != DiskFound::Missing;
            let previous = made_anew && app.disks.make_anew(&this).await?;
            Ok(Ok((made_anew, previous)))
        });
        let (made_anew, previous) =
            done.await?.map_err(|who| ResetError::Running { client: client.name.to_string(), who })?;
        let state = &self.settings.state;
        let checkpoints = self.disks.tree(client).await.map(|tree| tree.checkpoints().count()).unwrap_or_default();
        Ok(ResetReport {
            name: client.name.to_string(),
            made_anew,
            checkpoints,
            disk_path: disk_path(state, client),
            previous_disk: previous.then(|| previous_path(state, client)),
        })
    }

    /// Lets go of a client's disk, so that its file can be read: all that was acknowledged is in it.
    ///
    /// # Errors
    /// Somebody is logged in, or the disk cannot be settled.
    pub async fn release_disk(self: &Arc<Self>, client: &Client) -> Result<ReleaseReport, ResetError> {
        let (app, this) = (Arc::clone(self), client.clone());
        let done = self.in_time(&client.name, async move {
            let gone = "its disk is to be read, and it gave no sign of life";
            if let Some(who) = app.sessions.clear(&this.name, gone).await.into_iter().next() {
                return Ok(Err(who));
            }
            Ok(Ok(app.disks.release(&this).await))
        });
        let released = done.await?.map_err(|who| ResetError::Running { client: client.name.to_string(), who })?;
        let there = released.map_err(ResetError::Disk)?;
        let disk_path = there.then(|| disk_path(&self.settings.state, client));
        let data_path = Some(data_path(&self.settings.state, &client.name)).filter(|path| path.exists());
        Ok(ReleaseReport { name: client.name.to_string(), disk_path, data_path })
    }

    /// Does this behind the client's door, and waits for it at most [`PATIENCE`]. Once begun it goes on after that, and when
    /// nobody waits any more: half a boot is none.
    pub(super) async fn in_time<T: Send + 'static>(
        &self,
        client: &ClientName,
        work: impl Future<Output = Result<T, BootError>> + Send + 'static,
    ) -> Result<T, BootError> {
        let begun = async {
            let door = self.sessions.door(client).await;
            let inside = tokio::spawn(async move {
                let done = work.await;
                drop(door);
                done
            });
            inside.await
        };
        match tokio::time::timeout(PATIENCE, begun).await {
            Ok(Ok(done)) => done,
            Ok(Err(_)) | Err(_) => Err(BootError::Busy),
        }
    }
}
