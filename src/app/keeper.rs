//! The one writer of the fleet: takes a [`Change`], asks what stands in its way, edits the mapping file, publishes the new
//! snapshot, and does what follows from it.
//!
//! The rename of the file is the commit. Before it, the change is refused and nothing has happened; after it, everything
//! else follows, also when whoever asked has gone away. A process that dies in between starts with the new file.

use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinSet;

use super::App;
use super::report::{ReplaceReport, SessionKind};
use super::sessions::Entry;
use crate::config::edit::{self, EditError};
use crate::fleet::change::{Change, Changed, Effect, Refusal};
use crate::fleet::{ClientName, Event, Mac, Stage};
use crate::store::Record;

/// How long the ended sessions of an old machine have to leave its disk. Their last writes may wait for a slow disk; the new
/// machine's login waits for them in any case.
const LEAVING: Duration = Duration::from_secs(5);

/// Why a change was not made. Nothing has happened.
#[derive(Debug, thiserror::Error)]
pub enum KeeperError {
    /// It cannot be made in the fleet as it is.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// The old machine's system is running on the disk.
    #[error("the old machine of `{client}` is running: its session from {address} answers")]
    Lives {
        /// The client.
        client: ClientName,
        /// Where the machine is.
        address: IpAddr,
    },
    /// The mapping file could not be edited.
    #[error(transparent)]
    Edit(#[from] EditError),
    /// Roost is stopping.
    #[error("roost is stopping")]
    Stopping,
}

impl KeeperError {
    /// What a person can do about it.
    #[must_use]
    pub fn help(&self) -> Option<String> {
        Some(match self {
            Self::Refused(refusal) => refusal.help(),
            Self::Lives { .. } => {
                "shut it down first; --force takes its disk away, and what it has not written yet is lost".to_owned()
            }
            Self::Edit(error) => return error.help(),
            Self::Stopping => "ask again once it has stopped or is back".to_owned(),
        })
    }
}

/// The one writer of the fleet.
#[derive(Debug)]
pub struct Keeper {
    app: Arc<App>,
    file: PathBuf,
    turn: tokio::sync::Mutex<()>,
}

impl Keeper {
    /// The keeper of this fleet, which was read from this file.
    #[must_use]
    pub fn new(app: Arc<App>, file: PathBuf) -> Self {
        Self { app, file, turn: tokio::sync::Mutex::default() }
    }

    /// Gives a client a new machine. A machine that answers is only replaced by force.
    ///
    /// # Errors
    /// Why nothing has happened.
    pub async fn replace(
        self: &Arc<Self>,
        client: ClientName,
        mac: Mac,
        force: bool,
    ) -> Result<ReplaceReport, KeeperError> {
        let keeper = Arc::clone(self);
        // A task of its own: whoever asked may go away, and half a change is none.
        let change = Change::Replace { client: client.clone(), mac };
        let made = tokio::spawn(async move { keeper.change(change, force).await });
        let effects = made.await.map_err(|_| KeeperError::Stopping)??;
        Ok(replaced(&client, mac, &effects))
    }

    async fn change(&self, change: Change, force: bool) -> Result<Vec<Effect>, KeeperError> {
        let _only = self.turn.lock().await;
        let Changed { fleet, effects } = change.apply(&self.app.fleet())?;
        if !effects.is_empty()
            && !force
            && let Some(address) = answering(self.machine_sessions(change.client())).await
        {
            return Err(KeeperError::Lives { client: change.client().clone(), address });
        }
        let file = self.file.clone();
        // The file may be ahead of us: what else somebody changed in it stays there, and counts from the next start.
        let edited = tokio::task::spawn_blocking(move || edit::edit(&file, &change)).await;
        edited.map_err(|_| KeeperError::Stopping)??;
        if !effects.is_empty() {
            self.app.fleet.send_replace(Arc::new(fleet));
        }
        for effect in &effects {
            self.follow(effect).await;
        }
        Ok(effects)
    }

    async fn follow(&self, effect: &Effect) {
        let Effect::Machine { client, new, .. } = effect;
        // What the old machine was told lets nobody in any more.
        self.app.secrets.forget(client).await;
        self.app.recorder.note(Some(*new), Some(client), Stage::Replaced, &words(effect));
        let mut ended = JoinSet::new();
        for session in self.machine_sessions(client) {
            ended.spawn(async move { session.end("its machine was replaced").await });
        }
        let all = async { while ended.join_next().await.is_some() {} };
        if tokio::time::timeout(LEAVING, all).await.is_err() {
            tracing::warn!("{client}: the old machine's last writes are still on their way to the disk");
        }
    }

    /// The sessions of the client's own machine; those of others whom it lets in have nothing to do with its hardware.
    fn machine_sessions(&self, client: &ClientName) -> Vec<Arc<Entry>> {
        let mut sessions = self.app.sessions.of(client);
        sessions.retain(|session| session.kind != SessionKind::Other);
        sessions
    }
}

/// Where one of these sessions that gives a sign of life comes from. All are asked at once.
async fn answering(sessions: Vec<Arc<Entry>>) -> Option<IpAddr> {
    let mut asked = JoinSet::new();
    for session in sessions {
        asked.spawn(async move { session.lives().await.then_some(session.address) });
    }
    while let Some(answer) = asked.join_next().await {
        if let Ok(Some(address)) = answer {
            return Some(address);
        }
    }
    None
}

/// What the timeline says of an effect.
fn words(effect: &Effect) -> String {
    let Effect::Machine { old, new, .. } = effect;
    format!("{} is now {new}", listed(old))
}

/// MACs, one after the other.
fn listed(macs: &[Mac]) -> String {
    macs.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

/// What came of a replacement, as it is told.
#[must_use]
pub fn replaced(client: &ClientName, mac: Mac, effects: &[Effect]) -> ReplaceReport {
    let old = match effects.first() {
        Some(Effect::Machine { old, .. }) => old.as_slice(),
        None => &[mac],
    };
    ReplaceReport {
        client: client.to_string(),
        old: old.iter().map(ToString::to_string).collect(),
        new: mac.to_string(),
        changed: !effects.is_empty(),
    }
}

/// What the store is to know of these effects, where nothing runs that would follow them: events in the clients' histories,
/// and that what their old machines were told is void.
#[must_use]
pub fn records(effects: &[Effect]) -> Vec<Record> {
    let records = |effect: &Effect| {
        let Effect::Machine { client, new, .. } = effect;
        let (at, detail) = (super::recorder::now(), words(effect));
        let event =
            Event { at, mac: Some(*new), client: Some(client.clone()), stage: Stage::Replaced, detail, fact: None };
        [Record::Event(event), Record::SecretsGone(client.clone())]
    };
    effects.iter().flat_map(records).collect()
}
