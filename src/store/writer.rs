//! How async code writes to the store: one task gathers what many adapters record into few commits.
//!
//! A commit that somebody waits for is durable and takes along all others that are queued, so that a hundred machines that ask
//! for an address at once cost one flush of the disk. Events, sightings and habits, which nobody waits for, do not make it longer: they are
//! gathered for [`GATHER`], are readable after that, and durable within [`DURABLE_WITHIN`].

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, timeout_at};

use super::{Record, Store, StoreError};

/// How long records that nobody waits for are gathered before they are stored.
const GATHER: Duration = Duration::from_millis(200);

/// How long a stored event may wait for the disk. A crash of the whole machine loses no more of a boot's history.
const DURABLE_WITHIN: Duration = Duration::from_secs(2);

/// Requests that wait for the task; beyond that, events are dropped rather than adapters blocked. 256 machines that pass
/// all stages of a boot within one commit are 2,048.
const QUEUE: usize = 4_096;

/// Records of one commit; bounds what one transaction keeps in memory.
const MOST_AT_ONCE: usize = 1_024;

/// A durable commit did not happen.
#[derive(Debug, Clone, thiserror::Error)]
pub enum WriteError {
    /// The store refused it.
    #[error(transparent)]
    Store(Arc<StoreError>),
    /// Roost is stopping.
    #[error("the store has been closed: roost is stopping")]
    Closed,
}

enum Request {
    Note(Record),
    Commit(Vec<Record>, Answer),
    Flush(Answer),
}

type Answer = oneshot::Sender<Result<(), WriteError>>;

/// The store's one writer. Clones share it; when the last is dropped, all that was recorded becomes durable.
#[derive(Debug, Clone)]
pub struct Writer {
    queue: mpsc::Sender<Request>,
    dropped: Arc<AtomicU64>,
}

impl Writer {
    /// Starts the writing task on the current tokio runtime.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    #[must_use]
    pub fn start(store: Store) -> Self {
        let (queue, requests) = mpsc::channel(QUEUE);
        let dropped = Arc::new(AtomicU64::new(0));
        tokio::spawn(write_all(store, requests, dropped.clone()));
        Self { queue, dropped }
    }

    /// Stores this soon. Never blocks: where the queue is full, the record is dropped, with one warning for each burst.
    pub fn record(&self, record: Record) {
        if self.queue.try_send(Request::Note(record)).is_err() && self.dropped.fetch_add(1, Ordering::Relaxed) == 0 {
            tracing::warn!("the store cannot keep up: some events of boots will be missing from its timelines");
        }
    }

    /// Stores these, and returns when they are on the disk.
    ///
    /// # Errors
    /// Nobody may count on any of `records` being stored.
    pub async fn commit(&self, records: Vec<Record>) -> Result<(), WriteError> {
        self.ask(|answer| Request::Commit(records, answer)).await
    }

    /// Returns when all that was recorded before is on the disk.
    ///
    /// # Errors
    /// What was recorded since the last durable commit is lost.
    pub async fn flush(&self) -> Result<(), WriteError> {
        self.ask(Request::Flush).await
    }

    async fn ask(&self, request: impl FnOnce(Answer) -> Request) -> Result<(), WriteError> {
        let (answer, answered) = oneshot::channel();
        self.queue.send(request(answer)).await.map_err(|_| WriteError::Closed)?;
        answered.await.map_err(|_| WriteError::Closed)?
    }
}

/// What one commit is to store, and who waits for it.
#[derive(Default)]
struct Batch {
    records: Vec<Record>,
    waiting: Vec<Answer>,
    durable: bool,
}

/// What was asked for and is not stored yet.
#[derive(Default)]
struct Pending {
    /// What somebody waits for, or what nobody may lose.
    urgent: Batch,
    /// What can be gathered, and until when it is.
    notes: Vec<Record>,
    until: Option<Instant>,
    /// Who waits for the notes too.
    flushes: Vec<Answer>,
    /// When what is stored but not durable has to be.
    due: Option<Instant>,
}

impl Pending {
    fn add(&mut self, request: Request) {
        match request {
            Request::Note(
                record @ (Record::Event(_) | Record::Sighting(_) | Record::Habit(..) | Record::Plugged(..)),
            ) => {
                self.notes.push(record);
                self.until.get_or_insert_with(|| Instant::now() + GATHER);
            }
            Request::Note(record) => self.urgent.records.push(record),
            Request::Commit(records, answer) => {
                self.urgent.records.extend(records);
                self.urgent.waiting.push(answer);
            }
            Request::Flush(answer) => self.flushes.push(answer),
        }
    }

    /// What is to be committed now; `None`: nothing yet.
    fn take(&mut self, open: bool, now: Instant) -> Option<Batch> {
        let urgent = !(self.urgent.records.is_empty() && self.urgent.waiting.is_empty());
        let due = self.due.is_some_and(|due| now >= due);
        let gathered = self.notes.len() >= MOST_AT_ONCE || self.until.is_some_and(|until| now >= until);
        let all = !self.flushes.is_empty() || !open || due;
        let mut batch = Batch { durable: urgent || all, ..std::mem::take(&mut self.urgent) };
        // With what somebody waits for, but not each time: a few leases take a tenth of the time that these do.
        if all || gathered {
            batch.records.append(&mut self.notes);
            batch.waiting.append(&mut self.flushes);
            self.until = None;
        }
        if batch.records.is_empty() && batch.waiting.is_empty() && !due {
            return None;
        }
        self.due = if batch.durable { None } else { self.due.or(Some(now + DURABLE_WITHIN)) };
        Some(batch)
    }
}

async fn write_all(store: Store, mut requests: mpsc::Receiver<Request>, dropped: Arc<AtomicU64>) {
    let (mut pending, mut open) = (Pending::default(), true);
    while open {
        open = gather(&mut requests, &mut pending).await;
        let lost = dropped.swap(0, Ordering::Relaxed);
        if lost > 0 {
            tracing::warn!(lost, "the store could not keep up: {lost} events of boots were dropped");
        }
        if let Some(batch) = pending.take(open, Instant::now()) {
            commit(&store, batch).await;
        }
    }
}

/// Waits for requests, or until it is time to commit those that there are, and takes what is queued. False: no more will come.
async fn gather(requests: &mut mpsc::Receiver<Request>, pending: &mut Pending) -> bool {
    let first = match pending.until.into_iter().chain(pending.due).min() {
        None => requests.recv().await,
        Some(time) => match timeout_at(time, requests.recv()).await {
            Ok(first) => first,
            Err(_) => return true,
        },
    };
    let Some(first) = first else { return false };
    pending.add(first);
    while pending.notes.len() < MOST_AT_ONCE && pending.urgent.records.len() < MOST_AT_ONCE {
        match requests.try_recv() {
            Ok(next) => pending.add(next),
            Err(mpsc::error::TryRecvError::Empty) => break,
            Err(mpsc::error::TryRecvError::Disconnected) => return false,
        }
    }
    true
}

async fn commit(store: &Store, batch: Batch) {
    let Batch { records, waiting, durable } = batch;
    let store = store.clone();
    let work = move || if durable { store.commit(&records) } else { store.commit_soon(&records) };
    let done = match tokio::task::spawn_blocking(work).await {
        Ok(done) => done.map_err(|error| WriteError::Store(Arc::new(error))),
        Err(_) => Err(WriteError::Closed),
    };
    if let Err(error) = &done {
        tracing::error!("what was seen could not be stored: {error}");
    }
    for answer in waiting {
        // Whoever asked may have stopped waiting; it is stored all the same.
        let _ = answer.send(done.clone());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fleet::{ClientName, Event, Holder, Lease, Stage, Timestamp};

    fn event(at: u64) -> Event {
        let client = Some("pc-01".parse().unwrap());
        Event { at: Timestamp(at), mac: None, client, stage: Stage::Offer, detail: String::new(), fact: None }
    }

    fn lease(last: u8) -> Record {
        let mac = format!("52:54:00:aa:00:{last:02x}").parse().unwrap();
        let holder = Holder::Client(format!("pc-{last}").parse().unwrap());
        Record::Lease(Lease { holder, address: [10, 0, 0, last].into(), mac, expires: Timestamp(1) })
    }

    #[tokio::test]
    async fn a_commit_takes_along_what_was_recorded_before() {
        let state = tempfile::tempdir().unwrap();
        let store = Store::open(state.path()).unwrap();
        let writer = Writer::start(store.clone());
        let many: Vec<Event> = (0..200).map(event).collect();
        for event in &many {
            writer.record(Record::Event(event.clone()));
        }
        writer.flush().await.unwrap();
        let client: ClientName = "pc-01".parse().unwrap();
        assert_eq!(store.events_of(&client).unwrap(), many);
    }

    #[tokio::test]
    async fn commits_that_arrive_together_are_all_answered() {
        let state = tempfile::tempdir().unwrap();
        let store = Store::open(state.path()).unwrap();
        let writer = Writer::start(store.clone());
        let commits: Vec<_> = (1..=100)
            .map(|last| {
                let writer = writer.clone();
                tokio::spawn(async move { writer.commit(vec![lease(last)]).await })
            })
            .collect();
        for commit in commits {
            commit.await.unwrap().unwrap();
        }
        assert_eq!(store.leases().unwrap().len(), 100);
    }

    #[tokio::test]
    async fn records_that_nobody_waits_for_are_readable_soon() {
        let state = tempfile::tempdir().unwrap();
        let store = Store::open(state.path()).unwrap();
        let writer = Writer::start(store.clone());
        writer.record(Record::Event(event(7)));
        let client: ClientName = "pc-01".parse().unwrap();
        let limit = Instant::now() + Duration::from_secs(30);
        while store.events_of(&client).unwrap().is_empty() {
            assert!(Instant::now() < limit, "the event never arrived");
            tokio::time::sleep(GATHER / 10).await;
        }
    }

    #[test]
    fn what_was_recorded_is_there_after_the_last_writer_is_gone() {
        let state = tempfile::tempdir().unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let store = Store::open(state.path()).unwrap();
            let (queue, requests) = mpsc::channel(QUEUE);
            let writer = Writer { queue, dropped: Arc::default() };
            writer.record(Record::Event(event(7)));
            drop(writer);
            write_all(store, requests, Arc::default()).await;
        });
        let client: ClientName = "pc-01".parse().unwrap();
        assert_eq!(Store::open(state.path()).unwrap().events_of(&client).unwrap(), [event(7)]);
    }

    #[tokio::test]
    async fn a_full_queue_drops_and_counts_instead_of_blocking() {
        let (queue, requests) = mpsc::channel(2);
        let writer = Writer { queue, dropped: Arc::default() };
        for at in 0..5 {
            writer.record(Record::Event(event(at)));
        }
        assert_eq!(writer.dropped.load(Ordering::Relaxed), 3);
        drop(requests);
        assert!(matches!(writer.flush().await, Err(WriteError::Closed)));
    }
}
