//! Who is logged in to which client's target, and how a new login finds its place free.
//!
//! A session belongs to its connection's task; here is only the way to speak to it.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;

use super::disks::ClientDisks;
use super::report::{SessionKind, SessionReport, SessionsView};
use crate::fleet::{ClientName, Timestamp};
use crate::iscsi::text::Params;
use crate::scsi::{InitiatorPort, Nexus};

/// How long an old session has to show that it lives. Waiting longer would delay the boot of every machine that was power-cycled.
pub const PROBE: Duration = Duration::from_secs(1);

/// Sessions in all. Each costs its buffers, at most a few MiB when it is busy.
pub const MAX_SESSIONS: usize = 1024;

/// Sessions on one client's disk: its loader's, its system's, and those that an operator lets in, by several paths each.
/// Without a bound, one disk that is open to anybody could take all of [`MAX_SESSIONS`].
pub const MAX_SESSIONS_OF_ONE: usize = 64;

/// Messages to a session that may wait for its task.
const MAILBOX: usize = 8;

/// What a session's task is asked to do. A sender that is dropped instead of used means that the session ended.
#[derive(Debug)]
pub enum Control {
    /// Ask the initiator for a sign of life, and tell when one came.
    Probe(oneshot::Sender<()>),
    /// We stop: ask the initiator to log out, or end where that cannot be asked.
    Leave,
    /// End, and tell when nothing of the session can touch the disk any more.
    End(&'static str, oneshot::Sender<()>),
    /// Another session resets a logical unit (all, where none is named), or clears its task set: stop all tasks there, and
    /// tell when that is done, and whether there were any.
    Reset(Option<u8>, oneshot::Sender<bool>),
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
    /// Target session identifying handle: never 0, and unlike those of the client's other sessions.
    pub tsih: u16,
    /// Connection ID.
    pub cid: u16,
    /// What it agreed on, which holds for a connection that takes the place of this one.
    pub params: Params,
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
    /// The handle that it goes on with; 0 for a new session.
    pub tsih: u16,
    /// Connection ID.
    pub cid: u16,
    /// What it agreed on.
    pub params: Params,
    /// Where it comes from.
    pub address: IpAddr,
    /// What is at the other end.
    pub kind: SessionKind,
    /// Now.
    pub since: Timestamp,
}

/// There is no room for another session.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Full {
    /// Not in this process.
    #[error("there are {MAX_SESSIONS} sessions, and no more are taken")]
    All,
    /// Not on this disk.
    #[error("there are {MAX_SESSIONS_OF_ONE} sessions on this disk, and no more are taken: log some of them out")]
    OfOne,
}

/// A session's place on its client's disk.
///
/// However the session's task ends, its place is given back: by [`Place::leave`], or, where the task was dropped, by a
/// task of its own. The mailbox closes last, once nothing of the session can touch the disk any more.
#[derive(Debug)]
pub struct Place {
    /// The session, as others see it.
    pub entry: Arc<Entry>,
    /// What others ask of the session.
    pub mailbox: mpsc::Receiver<Control>,
    /// The client's disks.
    pub disks: ClientDisks,
    sessions: Arc<Sessions>,
    left: bool,
}

/// The right to open, enter or replace one client's disk; nobody else has it until this is dropped.
#[derive(Debug)]
pub struct Door(#[expect(dead_code, reason = "it is held, not used")] tokio::sync::OwnedMutexGuard<()>);

#[derive(Debug, Default)]
struct Table {
    by_client: HashMap<ClientName, Vec<Arc<Entry>>>,
    /// One login or boot of a client at a time.
    doors: HashMap<ClientName, Arc<tokio::sync::Mutex<()>>>,
    /// Clients whose disks are served elsewhere for now.
    moved: HashMap<ClientName, SocketAddr>,
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

    /// Waits for the one place from which a client's disk may be opened, entered or replaced.
    pub async fn door(&self, client: &ClientName) -> Door {
        let door = self.table().doors.entry(client.clone()).or_default().clone();
        Door(door.lock_owned().await)
    }

    /// Makes room for a login and takes its place on the disk, which the same holder of the door opened. Sessions of the same
    /// initiator are ended if they are the same session (RFC 7143 §6.3.5) or give no sign of life; when this returns, no
    /// write of theirs can land any more.
    ///
    /// # Errors
    /// [`Full`].
    pub async fn enter(self: &Arc<Self>, _door: &Door, newcomer: Newcomer, disks: ClientDisks) -> Result<Place, Full> {
        self.make_way(&newcomer).await;
        let (sender, mailbox) = mpsc::channel(MAILBOX);
        let entry = self.table().add(newcomer, sender)?;
        let port = InitiatorPort { name: entry.initiator.clone(), isid: entry.isid };
        for disk in &*disks {
            disk.unit().attach(entry.nexus, port.clone());
        }
        Ok(Place { entry, mailbox, disks, sessions: Arc::clone(self), left: false })
    }

    /// Ends what stands in a newcomer's way. All at once: a machine whose loader and system both left a dead session
    /// waits for one probe, not for two.
    ///
    /// Only a client's own machine can have been power-cycled. Others that an operator lets in may come twice by one name (by
    /// two paths, say), and need not answer on one while they log in on the other.
    async fn make_way(&self, newcomer: &Newcomer) {
        let mut probed = JoinSet::new();
        for old in self.of(&newcomer.client).into_iter().filter(|old| old.initiator == newcomer.initiator) {
            let same = old.isid == newcomer.isid;
            if !same && newcomer.kind == SessionKind::Other {
                continue;
            }
            probed.spawn(async move {
                if same {
                    old.end("the same session logged in again").await;
                } else if !old.lives().await {
                    old.end("its machine logged in anew, and it gave no sign of life").await;
                }
            });
        }
        while probed.join_next().await.is_some() {}
    }

    /// Asks every session of a client for a sign of life, and ends those that give none. Those that gave one.
    pub async fn clear(&self, client: &ClientName, why: &'static str) -> Vec<Arc<Entry>> {
        let mut asked = JoinSet::new();
        for old in self.of(client) {
            asked.spawn(async move {
                if old.lives().await {
                    return Some(old);
                }
                old.end(why).await;
                None
            });
        }
        asked.join_all().await.into_iter().flatten().collect()
    }

    fn remove(&self, entry: &Entry) {
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

    /// Whose disk the machine at this address has open: a client's own machine, not others that an operator lets in.
    #[must_use]
    pub fn client_at(&self, address: Ipv4Addr) -> Option<ClientName> {
        let address = IpAddr::V4(address);
        let table = self.table();
        let mut own = table.by_client.values().flatten().filter(|entry| entry.kind != SessionKind::Other);
        own.find(|entry| entry.address == address).map(|entry| entry.client.clone())
    }

    /// The session of a client with this handle.
    #[must_use]
    pub fn with_handle(&self, client: &ClientName, tsih: u16) -> Option<Arc<Entry>> {
        self.of(client).into_iter().find(|entry| entry.tsih == tsih)
    }

    /// From now on logins of this client are led to another address; `None`: they are taken here again. Sessions that there
    /// are stay until they end.
    pub fn lead(&self, client: &ClientName, elsewhere: Option<SocketAddr>) {
        let moved = &mut self.table().moved;
        match elsewhere {
            Some(address) => drop(moved.insert(client.clone(), address)),
            None => drop(moved.remove(client)),
        }
    }

    /// Where logins of this client are led to.
    #[must_use]
    pub fn elsewhere(&self, client: &ClientName) -> Option<SocketAddr> {
        self.table().moved.get(client).copied()
    }

    fn all(&self) -> Vec<Arc<Entry>> {
        self.table().by_client.values().flatten().cloned().collect()
    }

    /// Has every session ask its initiator to log out.
    pub fn ask_to_leave(&self) {
        for entry in self.all() {
            // A full mailbox belongs to a session that is on its way out, or is told soon enough.
            let _ = entry.mailbox.try_send(Control::Leave);
        }
    }

    /// Ends every session; returns when nothing of them can touch a disk any more.
    pub async fn end_all(&self, why: &'static str) {
        let mut ended = JoinSet::new();
        for entry in self.all() {
            ended.spawn(async move { entry.end(why).await });
        }
        while ended.join_next().await.is_some() {}
    }

    /// Stops the tasks of these sessions of a client on a logical unit, which another one of it preempted there.
    pub async fn stop_tasks(&self, client: &ClientName, nexuses: &[Nexus], lun: u8) {
        let mut asked = JoinSet::new();
        for session in self.of(client).into_iter().filter(|session| nexuses.contains(&session.nexus)) {
            asked.spawn(async move { session.ask(|done| Control::Reset(Some(lun), done)).await });
        }
        while asked.join_next().await.is_some() {}
    }

    /// Stops the tasks of every other session on this logical unit of the actor's (on all of them, where none is named); ends
    /// those sessions too, where `end` says so. Those that go on, and had tasks.
    pub async fn reset_others(&self, actor: &Entry, lun: Option<u8>, end: bool) -> Vec<Nexus> {
        let mut asked = JoinSet::new();
        for other in self.of(&actor.client).into_iter().filter(|other| other.nexus != actor.nexus) {
            asked.spawn(async move {
                if end {
                    other.end("another initiator reset the target").await;
                    return None;
                }
                let stopped = other.ask(|done| Control::Reset(lun, done)).await;
                stopped.filter(|had_tasks| *had_tasks).map(|_| other.nexus)
            });
        }
        let mut stopped = Vec::new();
        while let Some(done) = asked.join_next().await {
            stopped.extend(done.ok().flatten());
        }
        stopped
    }
}

impl Table {
    fn add(&mut self, newcomer: Newcomer, mailbox: mpsc::Sender<Control>) -> Result<Arc<Entry>, Full> {
        if self.by_client.values().map(Vec::len).sum::<usize>() >= MAX_SESSIONS {
            return Err(Full::All);
        }
        let others = self.by_client.entry(newcomer.client.clone()).or_default();
        if others.len() >= MAX_SESSIONS_OF_ONE {
            return Err(Full::OfOne);
        }
        let is_free = |tsih: u16| tsih != 0 && others.iter().all(|other| other.tsih != tsih);
        self.last += 1;
        let mut tsih = newcomer.tsih;
        while !is_free(tsih) {
            tsih = u16::try_from(self.last % (u64::from(u16::MAX) + 1)).unwrap_or_default();
            self.last += u64::from(!is_free(tsih));
        }
        let entry = Arc::new(Entry {
            nexus: Nexus(self.last),
            client: newcomer.client,
            initiator: newcomer.initiator,
            isid: newcomer.isid,
            tsih,
            cid: newcomer.cid,
            params: newcomer.params,
            address: newcomer.address,
            kind: newcomer.kind,
            since: newcomer.since,
            traffic: Traffic::default(),
            mailbox,
        });
        others.push(Arc::clone(&entry));
        Ok(entry)
    }
}

impl Place {
    /// Leaves in order: when this returns, nothing of the session can touch the disk any more.
    pub async fn leave(mut self) {
        depart(&self.sessions, &self.entry, &self.disks).await;
        self.left = true;
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if self.left {
            return;
        }
        let (sessions, entry, disks) = (Arc::clone(&self.sessions), Arc::clone(&self.entry), Arc::clone(&self.disks));
        let mailbox = std::mem::replace(&mut self.mailbox, mpsc::channel(1).1);
        // Without a runtime the process is on its way out, and its table with it.
        if let Ok(runtime) = Handle::try_current() {
            runtime.spawn(async move {
                depart(&sessions, &entry, &disks).await;
                drop(mailbox);
            });
        }
    }
}

async fn depart(sessions: &Sessions, entry: &Entry, disks: &ClientDisks) {
    for disk in &**disks {
        disk.unit().detach(entry.nexus);
    }
    for disk in &**disks {
        disk.writes.cancel(entry.nexus, None).await;
    }
    sessions.remove(entry);
    // What a session leaves is made durable, whoever ended it. Nobody waits for that.
    for disk in &**disks {
        let (writes, client) = (Arc::clone(&disk.writes), entry.client.clone());
        tokio::spawn(async move { writes.flush().await.unwrap_or_else(|error| tracing::error!("{client}: {error}")) });
    }
}

impl Entry {
    /// Sends a request and waits for its answer; `None` if the session ended instead.
    async fn ask<T>(&self, request: impl FnOnce(oneshot::Sender<T>) -> Control) -> Option<T> {
        let (sender, answer) = oneshot::channel();
        self.mailbox.send(request(sender)).await.ok()?;
        answer.await.ok()
    }

    /// Whether the initiator gives a sign of life within [`PROBE`].
    pub async fn lives(&self) -> bool {
        tokio::time::timeout(PROBE, self.ask(Control::Probe)).await.is_ok_and(|answer| answer.is_some())
    }

    /// Ends the session and waits until it has left.
    pub async fn end(&self, why: &'static str) {
        if self.ask(|done| Control::End(why, done)).await.is_some() {
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
