//! The write queue of one disk: everything that changes it passes through here, one at a time, in the order of arrival.
//!
//! A write that would grow the disk where the host has no space for it steps aside, for [`MAX_HOLD`] at most, and lets the others
//! pass; those that touch the same bytes stay behind it. When there is space again it goes on.
//!
//! Plain writes that need no waiting are made [at once](WriteQueue::write_at_once), on the thread of the session that brings them,
//! while nothing else is at work or waits: a hop to another thread costs more than a small write into memory.
//!
//! What waits can be cancelled, and [`WriteQueue::cancel`] returns only when nothing that it names can touch the disk any
//! more: task management and a new login depend on that.

use std::collections::VecDeque;
use std::io::{IoSlice, IoSliceMut};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, TryLockError};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::atomic::Note;
use super::lanes::{Lane, Lanes};
use super::space::{Account, NoRoom, Promise};
use crate::disk::{Disk, DiskError, ErrorKind};
use crate::scsi::Nexus;
use crate::scsi::copy::CopyRange;
use crate::scsi::unmap::ByteRange;

/// Operations that one hop to a thread takes along, so that a busy disk leaves its lane to others now and then.
const BATCH: usize = 64;

/// After this long without a write, what was written is made durable (so that little is lost with the power).
pub(super) const SETTLE_AFTER: Duration = Duration::from_secs(5);

/// Bytes of writes that are answered together: some tens of microseconds' work.
const ANSWERED_TOGETHER: u64 = 128 * 1024;

/// Longest wait of a write for space on the host: less than the 30 s after which initiators take a command for lost.
pub const MAX_HOLD: Duration = Duration::from_secs(20);

/// How often it is tried again meanwhile.
const TRY_AGAIN: Duration = Duration::from_millis(250);

/// Writes of one disk that wait for space; more are told at once that the disk is busy, so that the rest of a session's
/// commands stay free for reads.
const MAX_HELD: usize = 16;

/// Bytes that a fill writes at once, and a copy moves.
const FILL_STEP: usize = 256 * 1024;

/// One change of a disk. Ranges are whole blocks within the disk.
#[derive(Debug)]
pub enum Job {
    /// Write this data from `offset` on.
    Write {
        /// First byte.
        offset: u64,
        /// The data in pieces.
        data: Vec<Bytes>,
        /// Durable before it is answered.
        fua: bool,
    },
    /// Write all of this data or nothing, durably, and let nobody read a part of it.
    WriteAtomic {
        /// First byte.
        offset: u64,
        /// The data in pieces.
        data: Vec<Bytes>,
    },
    /// Write this data onto the medium, and compare with it what can be read there.
    WriteVerify {
        /// First byte.
        offset: u64,
        /// The data in pieces.
        data: Vec<Bytes>,
    },
    /// Set the bits of this data.
    Or {
        /// First byte.
        offset: u64,
        /// The data in pieces.
        data: Vec<Bytes>,
        /// Durable before it is answered.
        fua: bool,
    },
    /// If the disk holds the first half of this data, write the second.
    CompareAndWrite {
        /// First byte.
        offset: u64,
        /// The data in pieces.
        data: Vec<Bytes>,
        /// Durable before it is answered.
        fua: bool,
    },
    /// Move bytes within the disk.
    Copy(Vec<CopyRange>),
    /// Make this range zeros, and durably so.
    Erase(ByteRange),
    /// Make these ranges zeros.
    Zero(Vec<ByteRange>),
    /// Write one block over the whole range.
    Fill(ByteRange, Bytes),
    /// Make everything written before durable.
    Flush,
    /// Something that no write may come in between of: a checkpoint, a change of size.
    Verb(Verb),
}

/// What a [`Job::Verb`] does, once.
pub struct Verb(Mutex<Option<Box<dyn FnOnce() + Send>>>);

impl Verb {
    fn new(verb: impl FnOnce() + Send + 'static) -> Self {
        Self(Mutex::new(Some(Box::new(verb))))
    }

    fn perform(&self) {
        let verb = self.0.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(verb) = verb {
            verb();
        }
    }
}

impl std::fmt::Debug for Verb {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Verb")
    }
}

/// Whose operation it is: a task of a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ticket {
    /// The session.
    pub nexus: Nexus,
    /// The task's number in it.
    pub task: u64,
}

/// Why an operation was not done.
#[derive(Debug, thiserror::Error)]
pub enum Failed {
    /// The disk's error.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// The disk holds something else, from this byte of the comparison on.
    #[error("the disk differs from byte {0} on")]
    Differs(usize),
    /// It would grow the disk beyond its client's limit. Nothing was written.
    #[error("the disk has grown to its client's limit")]
    Limit,
    /// The host had no space for it, for as long as it could wait. Each sector is old or new.
    #[error("the host has no space for it just now")]
    Busy,
}

/// Called with the result, on the thread that did the work. Not called if the operation was cancelled.
pub type Done = Box<dyn FnOnce(Result<(), Failed>) + Send>;

/// Operations of Roost itself, which nobody cancels.
pub const OWN: Ticket = Ticket { nexus: Nexus(0), task: 0 };

struct Entry {
    ticket: Ticket,
    job: Job,
    done: Done,
    /// Since when it is held.
    held: Option<Instant>,
}

#[derive(Default)]
struct State {
    waiting: VecDeque<Entry>,
    /// Operations that wait for space, and those that touch the same bytes, in their order.
    held: Vec<Entry>,
    /// Somebody sees to it that they are tried again.
    minding: bool,
    /// What is being done now was cancelled: if it cannot be done now, it never is.
    gave_up: bool,
    /// A drain is at work.
    draining: bool,
    /// Sessions that write at once. A drain begins when there are none.
    at_once: usize,
    /// The operations that are being done now.
    running: Vec<Ticket>,
    /// Told when the operations that are being done now are done.
    after_running: Vec<oneshot::Sender<()>>,
    last_change: Option<Instant>,
    settling: bool,
}

/// See the module.
pub struct WriteQueue {
    disk: Arc<dyn Disk>,
    lanes: Arc<Lanes>,
    /// What an atomic write needs, where the disk is a file.
    note: Option<Note>,
    /// What it may take of the host's space, where the disk is a file.
    account: Option<Arc<Account>>,
    /// Whoever reads has this for reading, an atomic write for writing.
    whole: RwLock<()>,
    state: Mutex<State>,
}

impl std::fmt::Debug for WriteQueue {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("WriteQueue").field("disk", &self.disk).finish_non_exhaustive()
    }
}

impl WriteQueue {
    /// The queue of this disk; there must be no other.
    #[must_use]
    pub fn new(disk: Arc<dyn Disk>, lanes: Arc<Lanes>) -> Arc<Self> {
        Self::of_file(disk, lanes, None, None)
    }

    /// The same, with what an atomic write needs, and what bounds the disk's growth.
    pub(super) fn of_file(
        disk: Arc<dyn Disk>,
        lanes: Arc<Lanes>,
        note: Option<Note>,
        account: Option<Arc<Account>>,
    ) -> Arc<Self> {
        Arc::new(Self { disk, lanes, note, account, whole: RwLock::default(), state: Mutex::default() })
    }

    /// The right to read the disk, if no atomic write is at work.
    pub fn try_reading(&self) -> Option<RwLockReadGuard<'_, ()>> {
        match self.whole.try_read() {
            Ok(guard) => Some(guard),
            Err(TryLockError::Poisoned(guard)) => Some(guard.into_inner()),
            Err(TryLockError::WouldBlock) => None,
        }
    }

    /// The right to read the disk, once no atomic write is at work. It may wait for the device.
    pub fn reading(&self) -> RwLockReadGuard<'_, ()> {
        self.whole.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Queues these operations. A wake-up's writes come together and make one hop.
    pub fn submit(self: &Arc<Self>, operations: impl IntoIterator<Item = (Ticket, Job, Done)>) {
        let mut state = self.state();
        state.waiting.extend(operations.into_iter().map(|(ticket, job, done)| Entry { ticket, job, done, held: None }));
        self.begin_drain(&mut state);
    }

    fn begin_drain(self: &Arc<Self>, state: &mut State) {
        if !state.draining && state.at_once == 0 && !state.waiting.is_empty() {
            state.draining = true;
            tokio::spawn(Arc::clone(self).drain());
        }
    }

    /// Makes those of the first of these operations that are plain writes and need no waiting, on this thread, while nothing
    /// else is at work or waits; tells how many. They are done, and may be acknowledged; the rest is for [`submit`].
    ///
    /// It takes no longer than memory does. Only the session itself cancels what it brings, which then is done.
    ///
    /// [`submit`]: WriteQueue::submit
    pub fn write_at_once<'a>(self: &Arc<Self>, jobs: impl Iterator<Item = &'a Job> + Clone) -> usize {
        let writes = jobs.map_while(Job::plain);
        if writes.clone().next().is_none() {
            return 0;
        }
        {
            let mut state = self.state();
            // What is held may touch the same bytes.
            if state.draining || !state.waiting.is_empty() || !state.held.is_empty() {
                return 0;
            }
            state.at_once += 1;
        }
        let _turn = AtOnce(self);
        self.try_writes(writes)
    }

    /// Makes those of the first of these writes that need no waiting; tells how many.
    fn try_writes<'a>(&self, writes: impl Iterator<Item = (u64, &'a [Bytes])> + Clone) -> usize {
        let ranges = writes.clone().map(|(offset, data)| ByteRange { offset, length: length_of(data) });
        let _promise = match &self.account {
            Some(account) => match account.try_promise(ranges) {
                Some(promise) => Some(promise),
                None => return 0,
            },
            None => None,
        };
        // Errors and panics are met again, and told, by the way of the others.
        let made = |(offset, data): &(u64, &[Bytes])| {
            catch_unwind(AssertUnwindSafe(|| self.try_write(*offset, data))).is_ok_and(|made| made.unwrap_or(false))
        };
        writes.take_while(made).count()
    }

    fn try_write(&self, offset: u64, data: &[Bytes]) -> Result<bool, DiskError> {
        if let [data] = data {
            return self.disk.try_write(offset, &[IoSlice::new(data)]);
        }
        let slices: Vec<IoSlice<'_>> = data.iter().map(|piece| IoSlice::new(piece)).collect();
        self.disk.try_write(offset, &slices)
    }

    /// Makes everything that was acknowledged durable.
    ///
    /// # Errors
    /// The disk's error.
    pub async fn flush(self: &Arc<Self>) -> Result<(), DiskError> {
        let (sender, receiver) = oneshot::channel();
        let done = Box::new(move |result| drop(sender.send(result)));
        self.submit([(OWN, Job::Flush, done as Done)]);
        // Nobody cancels it: it is lost only where the runtime itself ends.
        let lost = || DiskError::io(Path::new("a disk"), "flush", std::io::Error::other("the server is stopping"));
        match receiver.await {
            Ok(Err(Failed::Disk(error))) => Err(error),
            Ok(_) => Ok(()), // a flush compares nothing
            Err(_) => Err(lost()),
        }
    }

    /// Does this between the writes before it and those after.
    ///
    /// # Errors
    /// It panicked, or the server is stopping.
    pub async fn perform<T: Send + 'static>(
        self: &Arc<Self>,
        verb: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, DiskError> {
        let (sender, receiver) = oneshot::channel();
        let verb = Verb::new(move || drop(sender.send(verb())));
        self.submit([(OWN, Job::Verb(verb), Box::new(|_| ()) as Done)]);
        let lost = || DiskError::io(Path::new("a disk"), "change", std::io::Error::other("the server is stopping"));
        receiver.await.map_err(|_| lost())
    }

    /// Forgets at once what waits of this session (of these tasks, where they are named). The future is done when none of it
    /// can touch the disk any more.
    pub fn cancel(&self, nexus: Nexus, tasks: Option<&[u64]>) -> impl Future<Output = ()> + Send + use<> {
        let named = |ticket: &Ticket| ticket.nexus == nexus && tasks.is_none_or(|tasks| tasks.contains(&ticket.task));
        let running = {
            let mut state = self.state();
            state.waiting.retain(|entry| !named(&entry.ticket));
            state.held.retain(|entry| !named(&entry.ticket));
            state.running.iter().any(named).then(|| {
                state.gave_up = true;
                let (sender, receiver) = oneshot::channel();
                state.after_running.push(sender);
                receiver
            })
        };
        async move {
            if let Some(done) = running {
                // An error means that the queue is gone, and with it whatever ran.
                let _ = done.await;
            }
        }
    }

    async fn drain(self: Arc<Self>) {
        loop {
            // What came during a hop may need none. Else those that bring more meanwhile would have to hop too, and so on.
            while self.write_waiting_at_once() {
                tokio::task::yield_now().await;
            }
            let lane = {
                let mut state = self.state();
                match state.waiting.front() {
                    None => {
                        state.draining = false;
                        return;
                    }
                    Some(entry) => entry.job.lane(),
                }
            };
            let queue = Arc::clone(&self);
            self.lanes.run(lane, move || queue.run_batch(lane)).await;
            self.settle_later(&mut self.state());
            self.try_held_again();
        }
    }

    /// Makes some of the first that wait, if they are plain writes and need no waiting; false: not even one.
    fn write_waiting_at_once(&self) -> bool {
        let mut answers = Answers::default();
        let mut made = 0;
        while made < ANSWERED_TOGETHER {
            let entry = {
                let mut state = self.state();
                if !state.held.is_empty() {
                    break;
                }
                let Some(entry) = state.waiting.pop_front_if(|entry| entry.job.plain().is_some()) else { break };
                state.gave_up = false;
                state.running.push(entry.ticket);
                entry
            };
            if self.try_writes(entry.job.plain().into_iter()) == 1 {
                self.finished(true);
                made += entry.job.length().max(1);
                answers.hold(entry.done, Ok(()), 0);
            } else {
                let mut state = self.state();
                if !state.gave_up {
                    state.waiting.push_front(entry);
                }
                drop(state);
                self.finished(false);
                break;
            }
        }
        made > 0
    }

    /// Sees to it that what is held goes back before everything that waits, again and again while anything is.
    fn try_held_again(self: &Arc<Self>) {
        let mut state = self.state();
        if state.minding || state.held.is_empty() {
            return;
        }
        state.minding = true;
        let queue = Arc::clone(self);
        tokio::spawn(async move {
            loop {
                tokio::time::sleep(TRY_AGAIN).await;
                let mut state = queue.state();
                if state.held.is_empty() {
                    state.minding = false;
                    return;
                }
                let held = std::mem::take(&mut state.held);
                held.into_iter().rev().for_each(|entry| state.waiting.push_front(entry));
                drop(state);
                queue.submit([]);
            }
        });
    }

    fn run_batch(&self, lane: Lane) {
        let mut answers = Answers::default();
        for _ in 0..BATCH {
            let Some((entry, sharers)) = self.start_next(lane) else { return };
            let result = self.run_caught(&entry.job);
            if matches!(result, Err(Failed::Busy)) {
                if let Some(entry) = self.hold(entry) {
                    answers.hold(entry.done, Err(Failed::Busy), 0);
                }
                continue;
            }
            self.finished(!matches!(entry.job, Job::Flush | Job::Verb(_)));
            for sharer in sharers {
                // One flush serves all that stood together. If it failed, each is told by its own attempt.
                let shared = if result.is_ok() { Ok(()) } else { self.run_caught(&sharer.job) };
                answers.hold(sharer.done, shared, 0);
            }
            answers.hold(entry.done, result, entry.job.length());
        }
    }

    /// Takes the next operation if it is of this lane; if it is a flush, with the flushes right behind it.
    fn start_next(&self, lane: Lane) -> Option<(Entry, Vec<Entry>)> {
        let mut state = self.state();
        let first = loop {
            let next = state.waiting.pop_front_if(|entry| entry.job.lane() == lane)?;
            if state.held.iter().any(|held| held.job.meets(&next.job)) {
                let mut next = next;
                next.held.get_or_insert_with(Instant::now);
                state.held.push(next);
            } else {
                break next;
            }
        };
        let mut sharers = Vec::new();
        if matches!(first.job, Job::Flush) {
            while let Some(next) = state.waiting.pop_front_if(|entry| matches!(entry.job, Job::Flush)) {
                sharers.push(next);
            }
        }
        state.gave_up = false;
        state.running = std::iter::once(&first).chain(&sharers).map(|entry| entry.ticket).collect();
        Some((first, sharers))
    }

    /// A panic is this one operation's failure. Else it would never be answered, and whoever waits for it to be over (a new
    /// login, a reset) would wait for good.
    fn run_caught(&self, job: &Job) -> Result<(), Failed> {
        let run = || {
            let _promise = self.promise(job)?;
            let done = match job {
                Job::WriteAtomic { offset, data } => self.write_atomic(*offset, &data.concat()),
                _ => job.run(&*self.disk),
            };
            match done {
                // Somebody else took what was promised. What can be done twice waits as if it had not begun.
                Err(Failed::Disk(error)) if error.kind() == ErrorKind::NoSpace && self.account.is_some() => {
                    tracing::debug!("{error}");
                    Err(if job.repeats() { Failed::Busy } else { error.into() })
                }
                done => done,
            }
        };
        catch_unwind(AssertUnwindSafe(run)).unwrap_or_else(|_| {
            let defect = std::io::Error::other("a defect of Roost, which the log tells of");
            Err(DiskError::io(Path::new("a disk"), "change", defect).into())
        })
    }

    /// Sets an operation aside that found no space; or gives it back, if it has waited for as long as it may.
    fn hold(&self, mut entry: Entry) -> Option<Entry> {
        let now = Instant::now();
        let since = *entry.held.get_or_insert(now);
        let over = now - since + TRY_AGAIN > MAX_HOLD;
        let mut state = self.state();
        let back = if over || state.held.len() >= MAX_HELD {
            Some(entry)
        } else {
            if !state.gave_up {
                state.held.push(entry);
            }
            None
        };
        drop(state);
        self.finished(false);
        back
    }

    /// Promises what the operation takes of the host's space.
    fn promise(&self, job: &Job) -> Result<Option<Promise>, Failed> {
        let Some(account) = &self.account else { return Ok(None) };
        let ranges = job.written();
        if ranges.is_empty() {
            return Ok(None);
        }
        let growth = || {
            ranges
                .iter()
                .try_fold(0_u64, |sum, range| Ok(sum.saturating_add(self.disk.growth(range.offset, range.length)?)))
        };
        match account.promise(&ranges, &growth) {
            Ok(promise) => Ok(Some(promise)),
            Err(NoRoom::Limit) => Err(Failed::Limit),
            Err(NoRoom::Host) => Err(Failed::Busy),
            Err(NoRoom::Disk(error)) => Err(error.into()),
        }
    }

    fn write_atomic(&self, offset: u64, data: &[u8]) -> Result<(), Failed> {
        let _alone = self.whole.write().unwrap_or_else(PoisonError::into_inner);
        match &self.note {
            Some(note) => note.write(offset, data)?,
            None => {
                self.disk.write(offset, &[IoSlice::new(data)])?;
                self.disk.flush()?;
            }
        }
        Ok(())
    }

    fn finished(&self, changed: bool) {
        let mut state = self.state();
        state.running.clear();
        if changed {
            state.last_change = Some(Instant::now());
        }
        for waiter in state.after_running.drain(..) {
            let _ = waiter.send(());
        }
    }

    /// Starts the wait for a quiet moment in which to make durable what was written.
    fn settle_later(self: &Arc<Self>, state: &mut State) {
        if state.settling || state.last_change.is_none() {
            return;
        }
        state.settling = true;
        let queue = Arc::clone(self);
        tokio::spawn(async move {
            loop {
                let last = queue.state().last_change.unwrap_or_else(Instant::now);
                tokio::time::sleep_until(last + SETTLE_AFTER).await;
                let mut state = queue.state();
                if state.last_change.is_none_or(|now| now <= last) {
                    state.last_change = None;
                    state.settling = false;
                    break;
                }
            }
            if let Err(error) = queue.flush().await {
                tracing::error!("{error}");
            }
        });
    }
}

/// A session's right to write at once, until it is dropped.
struct AtOnce<'a>(&'a Arc<WriteQueue>);

impl Drop for AtOnce<'_> {
    fn drop(&mut self) {
        let mut state = self.0.state();
        state.at_once -= 1;
        state.last_change = Some(Instant::now());
        self.0.settle_later(&mut state);
        self.0.begin_drain(&mut state);
    }
}

/// Bytes of data in pieces.
fn length_of(data: &[Bytes]) -> u64 {
    data.iter().map(|piece| piece.len() as u64).sum()
}

/// Results that are told together, at the latest when this is dropped: each told by itself would wake its session and make
/// a message of its own, which costs more than a small write.
#[derive(Default)]
struct Answers {
    held: Vec<(Done, Result<(), Failed>)>,
    bytes: u64,
}

impl Answers {
    fn hold(&mut self, done: Done, result: Result<(), Failed>, bytes: u64) {
        self.held.push((done, result));
        self.bytes += bytes;
        if self.bytes >= ANSWERED_TOGETHER {
            self.tell();
        }
    }

    fn tell(&mut self) {
        self.bytes = 0;
        for (done, result) in self.held.drain(..) {
            done(result);
        }
    }
}

impl Drop for Answers {
    fn drop(&mut self) {
        self.tell();
    }
}

impl Job {
    /// Where it writes what, if that is all that it does.
    fn plain(&self) -> Option<(u64, &[Bytes])> {
        match self {
            Self::Write { offset, data, fua: false } => Some((*offset, data)),
            _ => None,
        }
    }

    /// Bytes that it moves.
    fn length(&self) -> u64 {
        match self {
            Self::Write { data, .. } => length_of(data),
            _ => ANSWERED_TOGETHER,
        }
    }

    /// Where it writes data. Zeros take no space, and need none.
    fn written(&self) -> Vec<ByteRange> {
        let one = |offset: u64, length: usize| vec![ByteRange { offset, length: length as u64 }];
        let length = |data: &[Bytes]| data.iter().map(Bytes::len).sum::<usize>();
        match self {
            Self::Write { offset, data, .. }
            | Self::WriteAtomic { offset, data }
            | Self::WriteVerify { offset, data }
            | Self::Or { offset, data, .. } => one(*offset, length(data)),
            Self::CompareAndWrite { offset, data, .. } => one(*offset, length(data) / 2),
            Self::Copy(ranges) => {
                ranges.iter().map(|range| ByteRange { offset: range.to, length: range.length }).collect()
            }
            Self::Fill(range, _) => vec![*range],
            Self::Erase(_) | Self::Zero(_) | Self::Flush | Self::Verb(_) => Vec::new(),
        }
    }

    /// Every byte that it reads or changes.
    fn touched(&self) -> Vec<ByteRange> {
        let mut touched = self.written();
        match self {
            Self::Copy(ranges) => {
                touched.extend(ranges.iter().map(|range| ByteRange { offset: range.from, length: range.length }));
            }
            Self::Zero(ranges) => touched.extend(ranges),
            Self::Erase(range) => touched.push(*range),
            _ => {}
        }
        touched
    }

    /// Whether the two must keep their order.
    fn meets(&self, other: &Self) -> bool {
        let theirs = other.touched();
        let apart = |one: &ByteRange, two: &ByteRange| {
            one.offset + one.length <= two.offset || two.offset + two.length <= one.offset
        };
        self.touched().iter().any(|one| theirs.iter().any(|two| !apart(one, two)))
    }

    /// Whether doing it again from its beginning, after a part of it was done, comes to the same.
    fn repeats(&self) -> bool {
        matches!(
            self,
            Self::Write { .. }
                | Self::WriteAtomic { .. }
                | Self::WriteVerify { .. }
                | Self::Or { .. }
                | Self::Fill(..)
                | Self::Zero(_)
                | Self::Erase(_)
        )
    }

    fn lane(&self) -> Lane {
        match self {
            Self::Flush
            | Self::Verb(_)
            | Self::Write { fua: true, .. }
            | Self::Or { fua: true, .. }
            | Self::CompareAndWrite { fua: true, .. }
            | Self::WriteAtomic { .. }
            | Self::WriteVerify { .. }
            | Self::Erase(_) => Lane::Sync,
            _ => Lane::Write,
        }
    }

    fn run(&self, disk: &dyn Disk) -> Result<(), Failed> {
        let settle = |fua: bool| if fua { disk.flush() } else { Ok(()) };
        match self {
            Self::WriteAtomic { .. } => unreachable!("it needs more than a disk"),
            Self::Write { offset, data, fua } => {
                let slices: Vec<IoSlice<'_>> = data.iter().map(|piece| IoSlice::new(piece)).collect();
                disk.write(*offset, &slices)?;
                settle(*fua)?;
            }
            Self::WriteVerify { offset, data } => {
                let data = data.concat();
                disk.write(*offset, &[IoSlice::new(&data)])?;
                disk.flush()?;
                compare(&read(disk, *offset, data.len())?, &data)?;
            }
            Self::Or { offset, data, fua } => {
                let data = data.concat();
                let mut there = read(disk, *offset, data.len())?;
                there.iter_mut().zip(&data).for_each(|(there, new)| *there |= new);
                disk.write(*offset, &[IoSlice::new(&there)])?;
                settle(*fua)?;
            }
            Self::CompareAndWrite { offset, data, fua } => {
                let data = data.concat();
                let (expected, new) = data.split_at(data.len() / 2);
                compare(&read(disk, *offset, expected.len())?, expected)?;
                disk.write(*offset, &[IoSlice::new(new)])?;
                settle(*fua)?;
            }
            Self::Copy(ranges) => ranges.iter().try_for_each(|range| copy(disk, *range))?,
            Self::Erase(range) => {
                disk.zero(range.offset, range.length)?;
                disk.flush()?;
            }
            Self::Zero(ranges) => ranges.iter().try_for_each(|range| disk.zero(range.offset, range.length))?,
            Self::Fill(range, block) => {
                let step = block.repeat(FILL_STEP / block.len());
                let mut offset = range.offset;
                let end = range.offset + range.length;
                while offset < end {
                    let length = usize::try_from(end - offset).map_or(step.len(), |left| left.min(step.len()));
                    disk.write(offset, &[IoSlice::new(&step[..length])])?;
                    offset += length as u64;
                }
            }
            Self::Flush => disk.flush()?,
            Self::Verb(verb) => verb.perform(),
        }
        Ok(())
    }
}

fn read(disk: &dyn Disk, offset: u64, length: usize) -> Result<Vec<u8>, DiskError> {
    let mut there = vec![0; length];
    disk.read(offset, &mut [IoSliceMut::new(&mut there)])?;
    Ok(there)
}

fn compare(there: &[u8], expected: &[u8]) -> Result<(), Failed> {
    match there.iter().zip(expected).position(|(there, expected)| there != expected) {
        Some(at) => Err(Failed::Differs(at)),
        None => Ok(()),
    }
}

/// Moves bytes from low to high, a step at a time. Steps are no longer than the distance between source and destination, so
/// that bytes which overlap are moved as if one by one.
fn copy(disk: &dyn Disk, range: CopyRange) -> Result<(), DiskError> {
    let distance = range.to.saturating_sub(range.from);
    let most = if distance == 0 { FILL_STEP as u64 } else { distance.min(FILL_STEP as u64) };
    let mut moved = 0;
    while moved < range.length && range.from != range.to {
        let step = most.min(range.length - moved);
        let data = read(disk, range.from + moved, usize::try_from(step).unwrap_or(FILL_STEP))?;
        disk.write(range.to + moved, &[IoSlice::new(&data)])?;
        moved += step;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::space::tests::Fake;
    use super::*;
    use std::io::IoSliceMut;
    use std::sync::mpsc;

    /// A disk whose writes wait until they are let through, and that remembers what reached it.
    #[derive(Debug)]
    struct Gate {
        entered: mpsc::SyncSender<u64>,
        open: Mutex<mpsc::Receiver<()>>,
        written: Mutex<Vec<u64>>,
    }

    impl Disk for Gate {
        fn size(&self) -> u64 {
            1 << 20
        }
        fn try_read(&self, _: u64, _: &mut [IoSliceMut<'_>]) -> Result<bool, DiskError> {
            Ok(false)
        }
        fn read(&self, _: u64, _: &mut [IoSliceMut<'_>]) -> Result<(), DiskError> {
            Ok(())
        }
        fn write(&self, offset: u64, _: &[IoSlice<'_>]) -> Result<(), DiskError> {
            self.entered.send(offset).unwrap();
            self.open.lock().unwrap().recv().unwrap();
            self.written.lock().unwrap().push(offset);
            Ok(())
        }
        fn zero(&self, _: u64, _: u64) -> Result<(), DiskError> {
            Ok(())
        }
        fn flush(&self) -> Result<(), DiskError> {
            Ok(())
        }
        fn read_only(&self) -> bool {
            false
        }
    }

    fn gate() -> (Arc<Gate>, mpsc::Receiver<u64>, mpsc::Sender<()>) {
        let (entered, arrivals) = mpsc::sync_channel(16);
        let (opener, open) = mpsc::channel();
        (Arc::new(Gate { entered, open: Mutex::new(open), written: Mutex::default() }), arrivals, opener)
    }

    fn write(nexus: u64, task: u64, offset: u64) -> (Ticket, Job, Done) {
        let job = Job::Write { offset, data: vec![Bytes::from(vec![0; 512])], fua: false };
        (Ticket { nexus: Nexus(nexus), task }, job, Box::new(|_| ()))
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn nothing_that_was_cancelled_reaches_the_disk_after_cancel_returns() {
        let (disk, arrivals, opener) = gate();
        let queue = WriteQueue::new(disk.clone(), Arc::default());
        queue.submit([write(1, 1, 0), write(1, 2, 512), write(2, 3, 1024)]);
        let held = tokio::task::spawn_blocking(move || (arrivals.recv().unwrap(), arrivals)).await.unwrap();
        assert_eq!(held.0, 0, "the first write is held in the pool");

        let cancelled = tokio::spawn({
            let queue = Arc::clone(&queue);
            async move { queue.cancel(Nexus(1), None).await }
        });
        tokio::time::sleep(Duration::from_millis(50)).await;
        assert!(!cancelled.is_finished(), "cancel waits for the write that is held");

        opener.send(()).unwrap();
        cancelled.await.unwrap();
        let landed = disk.written.lock().unwrap().clone();
        opener.send(()).unwrap();
        queue.flush().await.unwrap();
        assert_eq!(landed, [0], "the held write landed before cancel returned");
        assert_eq!(*disk.written.lock().unwrap(), [0, 1024], "the second never did, the other session's did");
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn writes_keep_their_order_and_a_flush_comes_after_them() {
        let (disk, arrivals, opener) = gate();
        let queue = WriteQueue::new(disk.clone(), Arc::default());
        queue.submit((0..8).map(|n| write(1, n, n * 512)));
        for _ in 0..8 {
            opener.send(()).unwrap();
        }
        queue.flush().await.unwrap();
        let order: Vec<u64> = (0..8).map(|n| n * 512).collect();
        assert_eq!(*disk.written.lock().unwrap(), order);
        assert_eq!(arrivals.try_iter().collect::<Vec<_>>(), order);
    }

    /// A disk that writes without waiting, once it is let through.
    #[derive(Debug)]
    struct Quick(Arc<Gate>);

    impl Disk for Quick {
        fn size(&self) -> u64 {
            self.0.size()
        }
        fn try_read(&self, _: u64, _: &mut [IoSliceMut<'_>]) -> Result<bool, DiskError> {
            Ok(false)
        }
        fn read(&self, _: u64, _: &mut [IoSliceMut<'_>]) -> Result<(), DiskError> {
            Ok(())
        }
        fn write(&self, offset: u64, _: &[IoSlice<'_>]) -> Result<(), DiskError> {
            self.0.written.lock().unwrap().push(offset);
            Ok(())
        }
        fn try_write(&self, offset: u64, bufs: &[IoSlice<'_>]) -> Result<bool, DiskError> {
            if offset >= 8192 {
                return Ok(false);
            }
            self.0.write(offset, bufs).map(|()| true)
        }
        fn zero(&self, _: u64, _: u64) -> Result<(), DiskError> {
            Ok(())
        }
        fn flush(&self) -> Result<(), DiskError> {
            self.0.written.lock().unwrap().push(u64::MAX);
            Ok(())
        }
        fn read_only(&self) -> bool {
            false
        }
    }

    fn jobs(offsets: &[u64]) -> Vec<Job> {
        offsets.iter().map(|offset| write(1, 0, *offset).1).collect()
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn what_is_written_at_once_is_the_first_plain_writes_and_all_else_comes_after_them() {
        let (gate, arrivals, opener) = gate();
        let queue = WriteQueue::new(Arc::new(Quick(Arc::clone(&gate))), Arc::default());
        let at_once = tokio::task::spawn_blocking({
            let queue = Arc::clone(&queue);
            move || {
                let mut jobs = jobs(&[0, 512, 8192, 1024]);
                jobs.push(Job::Flush);
                queue.write_at_once(jobs.iter())
            }
        });
        let arrivals = tokio::task::spawn_blocking(move || arrivals.recv().map(|_| arrivals).unwrap()).await.unwrap();
        let flush = tokio::spawn({
            let queue = Arc::clone(&queue);
            async move { queue.flush().await }
        });
        tokio::time::sleep(Duration::from_millis(50)).await;
        assert!(!flush.is_finished(), "it waits for the write that is held");
        assert_eq!(queue.write_at_once(jobs(&[2048]).iter()), 0, "what comes later does not pass the flush");
        for _ in 0..2 {
            opener.send(()).unwrap();
        }
        assert_eq!(at_once.await.unwrap(), 2, "the third would wait, and the fourth must not pass it");
        flush.await.unwrap().unwrap();
        assert_eq!(*gate.written.lock().unwrap(), [0, 512, u64::MAX]);
        assert_eq!(arrivals.try_iter().collect::<Vec<_>>(), [512]);

        let durable = Job::Write { offset: 0, data: vec![Bytes::from(vec![0; 512])], fua: true };
        assert_eq!(queue.write_at_once([durable].iter()), 0);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn nothing_is_written_at_once_beside_what_waits_for_space_or_beyond_what_is_known_to_be_free() {
        let mut full = Full::new();
        assert_eq!(full.queue.write_at_once(jobs(&[0]).iter()), 0, "nobody has looked at the host yet");
        full.write(1, 8192, 2);
        full.write(2, 0, 3);
        assert_eq!(full.ended().await, (2, true), "the first is held by now");
        assert_eq!(full.queue.write_at_once(jobs(&[0]).iter()), 0);
        full.host.set(64 << 20);
        assert_eq!(full.ended().await, (1, true));
        // What was told of last may not have left the queue yet.
        while full.queue.state().draining {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        assert_eq!(full.queue.write_at_once(jobs(&[0]).iter()), 1);
    }

    /// A disk that remembers what was written, and grows by what was not written before.
    #[derive(Debug, Default)]
    struct Thin(Mutex<Vec<(u64, u8)>>);

    impl Thin {
        fn written(&self) -> Vec<(u64, u8)> {
            self.0.lock().unwrap().clone()
        }
    }

    impl Disk for Thin {
        fn size(&self) -> u64 {
            1 << 30
        }
        fn try_read(&self, _: u64, _: &mut [IoSliceMut<'_>]) -> Result<bool, DiskError> {
            Ok(false)
        }
        fn read(&self, _: u64, _: &mut [IoSliceMut<'_>]) -> Result<(), DiskError> {
            Ok(())
        }
        fn write(&self, offset: u64, bufs: &[IoSlice<'_>]) -> Result<(), DiskError> {
            self.0.lock().unwrap().push((offset, bufs[0][0]));
            Ok(())
        }
        fn try_write(&self, offset: u64, bufs: &[IoSlice<'_>]) -> Result<bool, DiskError> {
            self.write(offset, bufs).map(|()| true)
        }
        fn zero(&self, offset: u64, _: u64) -> Result<(), DiskError> {
            self.0.lock().unwrap().push((offset, 0));
            Ok(())
        }
        fn flush(&self) -> Result<(), DiskError> {
            Ok(())
        }
        fn read_only(&self) -> bool {
            false
        }
        fn growth(&self, offset: u64, len: u64) -> Result<u64, DiskError> {
            Ok(if self.written().iter().any(|(there, _)| *there == offset) { 0 } else { len })
        }
    }

    /// A queue over such a disk on a host of 64 MiB, that is full, and what tells of each task's end.
    struct Full {
        disk: Arc<Thin>,
        host: Fake,
        queue: Arc<WriteQueue>,
        ends: tokio::sync::mpsc::UnboundedReceiver<(u64, bool)>,
        end: tokio::sync::mpsc::UnboundedSender<(u64, bool)>,
    }

    impl Full {
        fn new() -> Self {
            let (disk, host) = (Arc::<Thin>::default(), Fake::new(0, 64 << 20));
            disk.0.lock().unwrap().push((0, 1));
            let queue = WriteQueue::of_file(disk.clone(), Arc::default(), None, Some(host.account()));
            let (end, ends) = tokio::sync::mpsc::unbounded_channel();
            Self { disk, host, queue, ends, end }
        }

        fn submit(&self, task: u64, job: Job) {
            let end = self.end.clone();
            let done = move |result: Result<(), Failed>| {
                assert!(matches!(result, Ok(()) | Err(Failed::Busy)), "{result:?}");
                let _ = end.send((task, result.is_ok()));
            };
            self.queue.submit([(Ticket { nexus: Nexus(1), task }, job, Box::new(done) as Done)]);
        }

        fn write(&self, task: u64, offset: u64, byte: u8) {
            self.submit(task, Job::Write { offset, data: vec![Bytes::from(vec![byte; 4096])], fua: false });
        }

        async fn ended(&mut self) -> (u64, bool) {
            self.ends.recv().await.unwrap()
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn what_grows_waits_for_space_and_lets_the_others_pass_but_those_that_touch_the_same_bytes() {
        let mut full = Full::new();
        full.write(1, 8192, 2);
        full.write(2, 8192, 3);
        full.submit(3, Job::Zero(vec![ByteRange { offset: 4096, length: 8192 }]));
        full.write(4, 0, 4);
        full.submit(5, Job::Zero(vec![ByteRange { offset: 1 << 20, length: 4096 }]));
        full.submit(6, Job::Flush);
        for task in 4..=6 {
            assert_eq!(full.ended().await, (task, true));
        }
        assert_eq!(full.disk.written(), [(0, 1), (0, 4), (1 << 20, 0)]);
        full.host.set(64 << 20);
        for task in 1..=3 {
            assert_eq!(full.ended().await, (task, true));
        }
        assert_eq!(full.disk.written()[3..], [(8192, 2), (8192, 3), (4096, 0)]);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn what_waits_for_space_and_is_cancelled_never_lands() {
        let mut full = Full::new();
        full.write(1, 8192, 2);
        full.write(2, 0, 3);
        assert_eq!(full.ended().await, (2, true), "the first is held by now");
        full.queue.cancel(Nexus(1), Some(&[1])).await;
        full.host.set(64 << 20);
        full.write(3, 8192, 4);
        assert_eq!(full.ended().await, (3, true));
        tokio::time::sleep(TRY_AGAIN * 2).await;
        assert_eq!(full.disk.written(), [(0, 1), (0, 3), (8192, 4)]);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn of_many_that_wait_the_rest_is_told_at_once() {
        let mut full = Full::new();
        for n in 0..20 {
            full.write(n, (n + 1) * 4096, 2);
        }
        let most = u64::try_from(MAX_HELD).unwrap();
        for n in most..20 {
            assert_eq!(full.ended().await, (n, false));
        }
        full.host.set(64 << 20);
        for n in 0..most {
            assert_eq!(full.ended().await, (n, true));
        }
    }
}
