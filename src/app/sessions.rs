//! Who is logged in to which client's target, and how a new login finds its place free.
//!
//! A session belongs to its connection's task; here is only the way to speak to it.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};

use super::report::{SessionKind, SessionReport, SessionsView};
use crate::fleet::{ClientName, Timestamp};
use crate::scsi::Nexus;

/// How long an old session has to show that it lives. Waiting longer would delay the boot of every machine that was power-cycled.
pub const PROBE: Duration = Duration::from_secs(1);

/// Sessions in all. Each costs its buffers, at most a few MiB when it is busy.
pub const MAX_SESSIONS: usize = 1024;

/// Messages to a session that may wait for its task.
const MAILBOX: usize = 8;

/// What a session's task is asked to do. A sender that is dropped instead of used means that the session ended.
#[derive(Debug)]
pub enum Control {
    /// Ask the initiator for a sign of life, and tell when one came.
    Probe(oneshot::Sender<()>),
    /// End, and tell when nothing of the session can touch the disk any more.
    End(&'static str, oneshot::Sender<()>),
    /// The logical unit is being reset by another session: stop all tasks, and tell when that is done.
    Reset(oneshot::Sender<()>),
}

/// A session that is logged in.
#[derive(Debug)]
pub struct Entry {
    /// Its number.
    pub nexus: Nexus,
    /// Whose disk it is on.
    pub client: ClientName,
    /// The initiator's name.
    pub initiator: String,
    /// Initiator session ID.
    pub isid: [u8; 6],
    /// Target session identifying handle.
    pub tsih: u16,
    /// Where it comes from.
    pub address: IpAddr,
    /// What is at the other end.
    pub kind: SessionKind,
    /// When it logged in.
    pub since: Timestamp,
    /// What it did so far.
    pub traffic: Traffic,
    mailbox: mpsc::Sender<Control>,
}

/// What a session did so far.
#[derive(Debug, Default)]
pub struct Traffic {
    /// Read commands.
    pub reads: AtomicU64,
    /// Write commands.
    pub writes: AtomicU64,
    /// Bytes read.
    pub bytes_read: AtomicU64,
    /// Bytes written.
    pub bytes_written: AtomicU64,
}

/// What a new session says of itself.
#[derive(Debug, Clone)]
pub struct Newcomer {
    /// Whose disk it wants.
    pub client: ClientName,
    /// The initiator's name.
    pub initiator: String,
    /// Initiator session ID.
    pub isid: [u8; 6],
    /// Where it comes from.
    pub address: IpAddr,
    /// What is at the other end.
    pub kind: SessionKind,
    /// Now.
    pub since: Timestamp,
}

/// There is no room for another session.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("there are {MAX_SESSIONS} sessions, and no more are taken")]
pub struct Full;

#[derive(Debug, Default)]
struct Table {
    by_client: HashMap<ClientName, Vec<Arc<Entry>>>,
    /// One login of a client at a time looks for its place.
    doors: HashMap<ClientName, Arc<tokio::sync::Mutex<()>>>,
    last: u64,
}

/// All sessions.
#[derive(Debug, Default)]
pub struct Sessions {
    table: Mutex<Table>,
}

impl Sessions {
    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes room for a login and takes its place. Sessions of the same initiator are ended if they are the same session
    /// (RFC 7143 §6.3.5) or give no sign of life; when this returns, no write of theirs can land any more.
    ///
    /// # Errors
    /// [`Full`].
    pub async fn enter(&self, newcomer: Newcomer) -> Result<(Arc<Entry>, mpsc::Receiver<Control>), Full> {
        let door = self.table().doors.entry(newcomer.client.clone()).or_default().clone();
        let _inside = door.lock().await;
        for old in self.of(&newcomer.client) {
            if old.initiator != newcomer.initiator {
                continue;
            }
            if old.isid == newcomer.isid {
                old.end("the same session logged in again").await;
            } else if !old.lives().await {
                old.end("its machine logged in anew, and it gave no sign of life").await;
            }
        }
        let (sender, mailbox) = mpsc::channel(MAILBOX);
        let mut table = self.table();
        if table.by_client.values().map(Vec::len).sum::<usize>() >= MAX_SESSIONS {
            return Err(Full);
        }
        table.last += 1;
        let entry = Arc::new(Entry {
            nexus: Nexus(table.last),
            client: newcomer.client,
            initiator: newcomer.initiator,
            isid: newcomer.isid,
            // Unique among the sessions that can be open at once, and never 0.
            tsih: u16::try_from(table.last % u64::from(u16::MAX)).unwrap_or_default() + 1,
            address: newcomer.address,
            kind: newcomer.kind,
            since: newcomer.since,
            traffic: Traffic::default(),
            mailbox: sender,
        });
        table.by_client.entry(entry.client.clone()).or_default().push(Arc::clone(&entry));
        Ok((entry, mailbox))
    }

    /// The session ended, and nothing of it can touch the disk any more.
    pub fn leave(&self, entry: &Entry) {
        let mut table = self.table();
        if let Some(entries) = table.by_client.get_mut(&entry.client) {
            entries.retain(|other| other.nexus != entry.nexus);
        }
    }

    /// The sessions on a client's target, oldest first.
    #[must_use]
    pub fn of(&self, client: &ClientName) -> Vec<Arc<Entry>> {
        self.table().by_client.get(client).cloned().unwrap_or_default()
    }

    /// Whether a session has this handle.
    #[must_use]
    pub fn has_handle(&self, client: &ClientName, tsih: u16) -> bool {
        self.of(client).iter().any(|entry| entry.tsih == tsih)
    }

    /// Stops the tasks of every other session on this one's logical unit; ends those sessions too, where `end` says so.
    pub async fn reset_others(&self, actor: &Entry, end: bool) {
        for other in self.of(&actor.client) {
            if other.nexus == actor.nexus {
                continue;
            }
            if end {
                other.end("another initiator reset the target").await;
            } else {
                other.ask(Control::Reset).await;
            }
        }
    }
}

impl Entry {
    /// Sends a request and waits for its answer; false if the session ended instead.
    async fn ask(&self, request: impl FnOnce(oneshot::Sender<()>) -> Control) -> bool {
        let (sender, answer) = oneshot::channel();
        self.mailbox.send(request(sender)).await.is_ok() && answer.await.is_ok()
    }

    /// Whether the initiator gives a sign of life within [`PROBE`].
    pub async fn lives(&self) -> bool {
        tokio::time::timeout(PROBE, self.ask(Control::Probe)).await.unwrap_or(false)
    }

    /// Ends the session and waits until it has left.
    pub async fn end(&self, why: &'static str) {
        if self.ask(|done| Control::End(why, done)).await {
            return;
        }
        // Its task is on its way out by itself; the mailbox closes once nothing of it can touch the disk.
        self.mailbox.closed().await;
    }
}

impl SessionsView for Sessions {
    fn sessions_of(&self, client: &ClientName) -> Vec<SessionReport> {
        let report = |entry: Arc<Entry>| {
            let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
            SessionReport {
                initiator: entry.initiator.clone(),
                address: entry.address,
                kind: entry.kind,
                since_ms: entry.since.0,
                reads: count(&entry.traffic.reads),
                writes: count(&entry.traffic.writes),
                bytes_read: count(&entry.traffic.bytes_read),
                bytes_written: count(&entry.traffic.bytes_written),
            }
        };
        self.of(client).into_iter().map(report).collect()
    }
}
