//! Runs a session: feeds it what the socket brings, does what it asks, sends what it says.
//!
//! Reads that the page cache holds are read at once into the outgoing bytes. Everything that may wait for a device runs on
//! a thread of a lane, so that this task answers pings and task management whatever the disks do.

use std::collections::VecDeque;
use std::io::{self, IoSliceMut};
use std::net::SocketAddr;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::Poll;
use std::time::Duration;

use anyhow::Context;
use bytes::{Bytes, BytesMut};
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tokio::net::tcp::ReadHalf;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use super::LOGOUT_GRACE;
use super::direct;
use super::login::Seat;
use super::output::Output;
use super::portals::Portals;
use crate::app::App;
use crate::app::disks::ClientDisk;
use crate::app::lanes::Lane;
use crate::app::queue::{Done, Failed, Job, OWN, Ticket};
use crate::app::report::SessionKind;
use crate::app::sessions::{Control, Place};
use crate::disk::{Disk, DiskError, ErrorKind};
use crate::fleet::{ClientName, Fact, Mac, Stage};
use crate::iscsi::frame::FrameError;
use crate::iscsi::login::LoginError;
use crate::iscsi::pdu::{Digests, NO_TAG, Pdu, opcode};
use crate::iscsi::session::{Effect, Layout, ProtocolError, Report, Scope, Session, TaskId, Which};
use crate::iscsi::{MAX_DATA_SEGMENT, frame};
use crate::scsi::copy::Copy;
use crate::scsi::unmap::ByteRange;
use crate::scsi::{LogicalUnit, Nexus, Sense, provisioning};

/// While more than this waits to be sent, nothing new is begun: a slow reader holds no more of our memory, and other
/// sessions get their turn.
const MAX_OUTPUT: usize = 256 * 1024;

/// Reads of one session that wait for the device at once, and their bytes: what comes back is held until it is sent. (One
/// is always let through, however large it is.)
const MAX_MISSES: usize = 8;
const MAX_MISSED_BYTES: usize = 2 * 1024 * 1024;

/// How long an initiator that logged out may take to fetch the last answer.
const FAREWELL: Duration = Duration::from_secs(5);

/// An operating system that gave no command for this long has settled.
const IDLE: Duration = Duration::from_secs(10);

/// A loader that gave no command for this long, while no operating system has a session, has handed over to nobody: kernels take
/// some seconds to find the disk again, initramfs and Windows half a minute at most.
const QUIET: Duration = Duration::from_secs(60);

/// Bytes that one read of the socket asks for: a window of small commands, or a good part of a burst.
const INPUT: usize = 64 * 1024;

/// Reads of this many bytes and more go from the page cache to the socket without a copy in between. For shorter ones the
/// calls that this takes cost more than the copy.
const PASSED_ON: u64 = 64 * 1024;

/// With less room than this the input grows before it is read into.
const INPUT_LOW: usize = 4096;

/// What comes back from a lane.
enum Finished {
    Read {
        task: TaskId,
        bytes: usize,
        buffer: Vec<u8>,
        result: Result<(), Sense>,
    },
    Data(TaskId, Vec<u8>),
    Other(TaskId, Result<(), Sense>),
    /// Not done; it may be tried again.
    Busy(TaskId),
    Aborted(u32, Scope),
}

/// A session at work.
struct Running {
    app: Arc<App>,
    session: Session,
    place: Place,
    mac: Option<Mac>,
    output: Output,
    finished: mpsc::UnboundedReceiver<Finished>,
    finish: mpsc::UnboundedSender<Finished>,
    /// The logical units of the place's disks.
    units: Vec<Arc<Mutex<LogicalUnit>>>,
    /// Changes of each disk of this wake-up, which are made at once or make one hop together; who hears of their end, if not
    /// only the session.
    writes: Vec<Vec<(TaskId, Job, Option<Done>)>>,
    /// Reads that wait for the device, and those that wait for [`MAX_MISSES`] or [`MAX_MISSED_BYTES`].
    deferred: VecDeque<(TaskId, ByteRange)>,
    /// Reads of [`PASSED_ON`] bytes and more, which begin when nothing else waits to be sent.
    large: VecDeque<(TaskId, ByteRange)>,
    misses: usize,
    missed_bytes: usize,
    probes: Vec<oneshot::Sender<()>>,
    troubles: Arc<Troubles>,
    /// By when the last answer must be fetched.
    closing: Option<Instant>,
    /// What came since the initiator was last looked after.
    heard: Heard,
    /// It has answered a ping. iPXE never does, which means nothing.
    answers_pings: bool,
    /// Where the initiator reaches us, as SendTargets tells it.
    portals: Vec<String>,
    read_yet: bool,
    last_busy: Instant,
    settled: bool,
    since: Instant,
    /// The session ends by the rules: a logout, or a reset.
    logged_out: bool,
}

/// What was heard of an initiator for a while.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Heard {
    Something,
    Nothing,
    /// Not even an answer to a ping.
    NoAnswer,
}

/// Serves a client's disk until the connection ends; returns when nothing of the session can touch the disk any more.
///
/// A session that has answered a ping before is ended when it does not answer one within `silence`.
pub(super) async fn normal(
    app: &Arc<App>,
    stream: TcpStream,
    portals: &Portals,
    input: BytesMut,
    seat: Seat,
    silence: Duration,
) -> anyhow::Result<()> {
    let (finish, finished) = mpsc::unbounded_channel();
    let Seat { session, place, mac } = seat;
    let mut running = Running {
        app: Arc::clone(app),
        output: Output::default(),
        finished,
        finish,
        units: place.disks.iter().map(|disk| Arc::clone(&disk.unit)).collect(),
        writes: place.disks.iter().map(|_| Vec::new()).collect(),
        deferred: VecDeque::new(),
        large: VecDeque::new(),
        misses: 0,
        missed_bytes: 0,
        probes: Vec::new(),
        troubles: Arc::new(Troubles {
            app: Arc::clone(app),
            mac,
            client: place.entry.client.clone(),
            last: Mutex::default(),
        }),
        closing: None,
        heard: Heard::Something,
        answers_pings: false,
        portals: portals.told(&stream)?,
        read_yet: false,
        last_busy: Instant::now(),
        settled: place.entry.kind == SessionKind::Other,
        since: Instant::now(),
        logged_out: false,
        session,
        place,
        mac,
    };
    running.note_login();
    let ended = running.run(stream, input, silence).await;
    running.note_loss(&ended);
    running.count_rejects();
    if let Err(error) = &ended
        && breaks_protocol(error)
    {
        app.tally.broken.one();
        if matches!(error.downcast_ref(), Some(FrameError::HeaderDigest)) {
            app.tally.bad_digests.one();
        }
        let why = format!("{}: its session was ended: {error}; it may log in again", running.place.entry.initiator);
        running.note(Stage::Refused, &why);
    }
    let place = running.place;
    let (client, initiator) = (place.entry.client.clone(), place.entry.initiator.clone());
    place.leave().await;
    let end = ended.with_context(|| format!("{client}: the session of {initiator} broke"))?;
    tracing::debug!("{client}: the session of {initiator} ended: {}", end.why);
    if let Some(done) = end.done {
        let _ = done.send(());
    }
    Ok(())
}

/// Errors of a session's disk, for the log. One that stays comes with every command, and must not fill the host with its log,
/// which may be full already.
struct Troubles {
    app: Arc<App>,
    mac: Option<Mac>,
    client: ClientName,
    last: Mutex<Option<(ErrorKind, Instant)>>,
}

impl Troubles {
    /// Shortest time between two lines about one kind of error.
    const BETWEEN: Duration = Duration::from_secs(10);

    fn tell(&self, error: &DiskError) {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        match *last {
            Some((kind, at)) if kind == error.kind() && at.elapsed() < Self::BETWEEN => {
                tracing::debug!("{}: {error} (again)", self.client);
            }
            _ => {
                *last = Some((error.kind(), Instant::now()));
                tracing::error!("{}: {error}", self.client);
            }
        }
    }

    /// A write was refused because the client's disk is as large as it may be.
    fn tell_limit(&self) {
        let limit = self.app.fleet().client(&self.client).and_then(|client| client.limit);
        let words = "a write was refused: its own disk has reached its limit".to_owned();
        let words = words + &limit.map(|limit| format!(" of {limit} bytes")).unwrap_or_default();
        let fact = Fact::LimitReached { limit };
        self.app.recorder.note_fact(self.mac, Some(&self.client), Stage::Trouble, &words, fact);
    }

    /// How an operation ended, as its session is told.
    fn end_of(&self, task: TaskId, result: Result<(), Failed>) -> Finished {
        match result {
            Err(Failed::Busy) => Finished::Busy(task),
            result => Finished::Other(task, result.map_err(|failed| self.sense_of(failed))),
        }
    }

    /// What an initiator is told of an operation that was not done.
    fn sense_of(&self, failed: Failed) -> Sense {
        match failed {
            Failed::Disk(error) => {
                self.tell(&error);
                Sense::of_disk(&error, true)
            }
            Failed::Differs(at) => Sense::miscompare(at),
            Failed::Limit => {
                self.tell_limit();
                Sense::SPACE_ALLOCATION_FAILED
            }
            // Its status says it; sense data does not.
            Failed::Busy => Sense::NONE,
        }
    }
}

/// Whether the other end sent what it must not: a connection that merely broke is no news.
pub(super) fn breaks_protocol(error: &anyhow::Error) -> bool {
    error.is::<FrameError>() || error.is::<ProtocolError>() || error.is::<LoginError>()
}

/// Why a session ended in order, and who is told once it has.
struct End {
    why: &'static str,
    /// It is we who end it.
    by_us: bool,
    done: Option<oneshot::Sender<()>>,
}

impl Running {
    async fn run(&mut self, mut stream: TcpStream, mut input: BytesMut, silence: Duration) -> anyhow::Result<End> {
        // One timer for the whole session: to look at the clock for each PDU would cost more.
        let mut look = std::pin::pin!(tokio::time::sleep(silence));
        let (mut reader, writer) = stream.split();
        let stream = writer.as_ref();
        let mut grown = false;
        loop {
            self.work(&mut input)?;
            self.output.append(self.session.output());
            self.output.send(stream)?;
            self.pass_on(stream)?;
            if self.closing.is_some() && self.output.length() == 0 {
                return Ok(End { why: "logged out", by_us: false, done: None });
            }
            if self.output.length() == 0 && self.has_work(&input) {
                // More can be done at once, but other sessions come first.
                tokio::task::yield_now().await;
                continue;
            }
            // A long write's buffer is not kept for the next one, which may never come.
            if grown && input.is_empty() {
                (input, grown) = (BytesMut::new(), false);
            }
            let idle_at = self.last_busy + if self.place.entry.kind == SessionKind::Loader { QUIET } else { IDLE };
            let farewell = self.closing.unwrap_or(idle_at);
            tokio::select! {
                biased;
                Some(control) = self.place.mailbox.recv() => match control {
                    Control::Probe(alive) => {
                        self.session.ping();
                        self.probes.push(alive);
                    }
                    Control::Leave => {
                        if !self.copes_with_messages() {
                            return Ok(End { why: "roost is stopping", by_us: true, done: None });
                        }
                        self.session.ask_for_logout(u16::try_from(LOGOUT_GRACE.as_secs()).unwrap_or(u16::MAX));
                    }
                    Control::End(why, done) => {
                        if self.copes_with_messages() {
                            self.session.announce_drop(0);
                            self.output.append(self.session.output());
                            // What the socket takes goes out; nobody waits for the rest, least of all for a dead machine.
                            let _ = self.output.send(stream);
                        }
                        return Ok(End { why, by_us: true, done: Some(done) });
                    }
                    Control::Reset(lun, done) => {
                        let tasks = self.forget_all(lun);
                        let cancelled = self.cancel(&tasks);
                        tokio::spawn(async move {
                            cancelled.await;
                            let _ = done.send(!tasks.is_empty());
                        });
                    }
                },
                Some(finished) = self.finished.recv() => self.take(finished),
                ready = stream.writable(), if self.output.length() > 0 => ready?,
                ready = stream.readable(), if self.output.length() < MAX_OUTPUT && self.closing.is_none() => {
                    ready?;
                    if !take_bytes(&mut reader, &mut input, self.session.digests()).await? {
                        let why = if input.is_empty() {
                            "the initiator closed the connection"
                        } else {
                            "the initiator closed the connection in the middle of a PDU, which does not count"
                        };
                        return Ok(End { why, by_us: false, done: None });
                    }
                    grown |= input.capacity() > INPUT;
                }
                () = &mut look => {
                    // While we do not read we hear nothing, however much is said.
                    if self.output.length() >= MAX_OUTPUT {
                        self.heard = Heard::Something;
                    }
                    if !self.look_after() {
                        return Ok(End { why: "its initiator answers no more", by_us: false, done: None });
                    }
                    look.as_mut().reset(Instant::now() + silence);
                }
                () = tokio::time::sleep_until(farewell), if self.closing.is_some() => {
                    return Ok(End { why: "logged out, and did not fetch the answer", by_us: false, done: None });
                }
                () = tokio::time::sleep_until(idle_at), if !self.settled && self.session.tasks() == 0 => {
                    self.settled = true;
                    self.note_silence();
                }
            }
        }
    }

    /// Whether the initiator copes with an Asynchronous Message. iPXE closes the connection.
    fn copes_with_messages(&self) -> bool {
        self.place.entry.kind != SessionKind::Loader
    }

    /// Asks an initiator that was silent for a sign of life; false once one that gave them before gives none.
    fn look_after(&mut self) -> bool {
        if self.place.entry.kind == SessionKind::Loader {
            return true; // TCP's own keepalive finds it dead
        }
        self.heard = match self.heard {
            Heard::Something => Heard::Nothing,
            Heard::Nothing => {
                self.session.ping();
                Heard::NoAnswer
            }
            Heard::NoAnswer if self.answers_pings => {
                self.app.tally.dead.one();
                return false;
            }
            Heard::NoAnswer => Heard::Nothing,
        };
        true
    }

    /// Counts what was rejected, and says so once.
    fn count_rejects(&self) {
        let rejects = self.session.rejects();
        self.app.tally.bad_digests.add(self.session.bad_digests());
        if rejects > 0 {
            self.app.tally.rejected.add(rejects);
            let entry = &self.place.entry;
            tracing::info!("{}: {rejects} PDUs of {} were rejected", entry.client, entry.initiator);
        }
    }

    /// Takes PDUs and does what they ask, until there is no more or enough waits to be sent.
    fn work(&mut self, input: &mut BytesMut) -> Result<(), anyhow::Error> {
        while let Ok(finished) = self.finished.try_recv() {
            self.take(finished);
        }
        while self.closing.is_none() && self.room() {
            if let Some(effect) = self.session.next_effect() {
                self.begin(effect);
            } else if let Some(pdu) = frame::next(input, MAX_DATA_SEGMENT, self.session.digests())? {
                self.receive(pdu)?;
            } else {
                break;
            }
        }
        self.start_misses();
        self.make_changes();
        Ok(())
    }

    /// Makes this wake-up's changes: those that need no waiting at once, the rest on a thread.
    fn make_changes(&mut self) {
        let (finish, troubles, nexus) = (&self.finish, &self.troubles, self.place.entry.nexus);
        for (disk, writes) in self.place.disks.iter().zip(&mut self.writes) {
            let made = disk.writes.write_at_once(writes.iter().map(|(_, job, _)| job));
            for (task, job, _) in writes.drain(..made) {
                self.session.complete(task, Ok(()));
                if let Job::Write { data, .. } = job {
                    self.session.take_back(data);
                }
            }
            if writes.is_empty() {
                continue;
            }
            disk.writes.submit(writes.drain(..).map(|(task, job, done)| {
                let tell = || {
                    let (finish, troubles) = (finish.clone(), Arc::clone(troubles));
                    Box::new(move |result| drop(finish.send(troubles.end_of(task, result)))) as Done
                };
                (Ticket { nexus, task: task.number }, job, done.unwrap_or_else(tell))
            }));
        }
    }

    fn receive(&mut self, pdu: Pdu) -> Result<(), ProtocolError> {
        self.heard = Heard::Something;
        match pdu.header.opcode() {
            opcode::SCSI_COMMAND => self.last_busy = Instant::now(),
            // Only an answer to the ping tells that somebody is still there: other PDUs may have waited in the socket
            // since before the machine lost its power.
            opcode::NOP_OUT if pdu.header.itt() == NO_TAG => {
                self.answers_pings = true;
                for probe in self.probes.drain(..) {
                    let _ = probe.send(());
                }
            }
            _ => {}
        }
        self.session.receive(pdu, &self.units)
    }

    /// Less waits to be sent than may.
    fn room(&mut self) -> bool {
        self.output.length() + self.session.output().len() < MAX_OUTPUT
    }

    /// Whether `work` would find something to do without waiting.
    fn has_work(&mut self, input: &BytesMut) -> bool {
        let miss = !self.deferred.is_empty() && self.may_miss();
        self.session.has_effects() || miss || !self.large.is_empty() || frame::is_whole(input, self.session.digests())
    }

    fn may_miss(&self) -> bool {
        self.misses < MAX_MISSES && self.missed_bytes < MAX_MISSED_BYTES
    }

    fn take(&mut self, finished: Finished) {
        self.last_busy = Instant::now();
        match finished {
            Finished::Read { task, bytes, mut buffer, result } => {
                self.misses -= 1;
                self.missed_bytes -= bytes;
                match result {
                    Ok(()) => {
                        if self.session.data_in(task, &mut buffer) {
                            self.output.append(self.session.output());
                            self.output.push(buffer);
                        }
                    }
                    Err(sense) => self.session.complete(task, Err(sense)),
                }
            }
            Finished::Data(task, data) => self.session.answer(task, data),
            Finished::Other(task, result) => self.session.complete(task, result),
            Finished::Busy(task) => self.session.busy(task),
            Finished::Aborted(request, scope) => self.session.aborted(request, scope),
        }
    }

    fn begin(&mut self, effect: Effect) {
        match effect {
            Effect::Read(task, range) => {
                let traffic = &self.place.entry.traffic;
                traffic.reads.fetch_add(1, Ordering::Relaxed);
                traffic.bytes_read.fetch_add(range.length, Ordering::Relaxed);
                self.note_first_read();
                if range.length >= PASSED_ON && !self.session.digests().data {
                    self.large.push_back((task, range));
                } else {
                    self.read(task, range);
                }
            }
            Effect::Write { task, offset, data, fua } => {
                self.note_write(&data);
                self.change(task, Job::Write { offset, data, fua });
            }
            Effect::WriteAtomic { task, offset, data } => {
                self.note_write(&data);
                self.change(task, Job::WriteAtomic { offset, data });
            }
            Effect::WriteVerify { task, offset, data } => {
                self.note_write(&data);
                self.change(task, Job::WriteVerify { offset, data });
            }
            Effect::Or { task, offset, data, fua } => {
                self.note_write(&data);
                self.change(task, Job::Or { offset, data, fua });
            }
            Effect::CompareAndWrite { task, offset, data, fua } => {
                self.note_write(&data);
                self.change(task, Job::CompareAndWrite { offset, data, fua });
            }
            Effect::Erase(task, range) => self.erase(task, range),
            Effect::Copy(task, copy) => self.copy(task, copy),
            Effect::Provisioning { task, range, most, report } => self.look_up(task, range, most, report),
            Effect::Reserved { task, keep, abort } => self.reserved(task, keep, abort),
            Effect::Zero(task, ranges) => self.change(task, Job::Zero(ranges)),
            Effect::Fill(task, range, block) => self.change(task, Job::Fill(range, block)),
            Effect::Flush(task) => self.change(task, Job::Flush),
            Effect::Verify { task, range, expected, repeat } => {
                let (disk, finish) = (Arc::clone(self.disk(task)), self.finish.clone());
                let lanes = Arc::clone(&self.app.lanes);
                tokio::spawn(async move {
                    let bytes = usize::try_from(range.length).unwrap_or(usize::MAX);
                    let work = move || verify(&disk, range, &expected.concat(), repeat);
                    let result = lanes.run(Lane::Miss { bytes }, work).await;
                    let _ = finish.send(Finished::Other(task, result.unwrap_or(Err(Sense::INTERNAL_FAILURE))));
                });
            }
            Effect::Abort(abort) => {
                let (disks, app) = (Arc::clone(&self.place.disks), Arc::clone(&self.app));
                let (entry, finish) = (Arc::clone(&self.place.entry), self.finish.clone());
                // Writes of this wake-up are not queued yet; those of the aborted tasks never will be.
                for writes in &mut self.writes {
                    writes.retain(|(task, ..)| !abort.tasks.contains(task));
                }
                let own = self.cancel(&abort.tasks);
                tokio::spawn(async move {
                    let lun = match abort.scope {
                        Scope::TaskSet(lun) | Scope::Unit(lun) => Some(lun),
                        Scope::Session | Scope::Units | Scope::Sessions => None,
                    };
                    if abort.scope == Scope::Session {
                        own.await;
                    } else {
                        // At once: while one session's write is waited for, the others' must not go on.
                        let others = app.sessions.reset_others(&entry, lun, abort.scope == Scope::Sessions);
                        let ((), stopped) = tokio::join!(own, others);
                        for (_, disk) in (0..).zip(&*disks).filter(|(number, _)| lun.is_none_or(|lun| lun == *number)) {
                            match abort.scope {
                                Scope::TaskSet(_) => disk.unit().cleared(&stopped),
                                _ => disk.unit().reset(),
                            }
                        }
                    }
                    let _ = finish.send(Finished::Aborted(abort.request, abort.scope));
                });
            }
            Effect::SendTargets(which) => {
                let own = self.app.naming.target(&self.place.entry.client);
                let names = match which {
                    Which::One(name) if !name.is_empty() && !name.eq_ignore_ascii_case(&own) => Vec::new(),
                    _ => vec![own],
                };
                self.session.targets(&names, &self.portals);
            }
            Effect::Close => {
                self.logged_out = true;
                self.closing = Some(Instant::now() + FAREWELL);
            }
        }
    }

    /// The disk that a task is about.
    fn disk(&self, task: TaskId) -> &Arc<ClientDisk> {
        &self.place.disks[usize::from(task.lun)]
    }

    /// Forgets at once what waits of these tasks. The future is done when none of them can touch a disk any more.
    fn cancel(&self, tasks: &[TaskId]) -> impl Future<Output = ()> + Send + use<> {
        let of = |lun: u8| tasks.iter().filter(|task| task.lun == lun).map(|task| task.number).collect::<Vec<_>>();
        let nexus = self.place.entry.nexus;
        let cancelled = (0..).zip(&*self.place.disks).map(|(lun, disk)| disk.writes.cancel(nexus, Some(&of(lun))));
        let cancelled: Vec<_> = cancelled.collect();
        async move {
            for cancelled in cancelled {
                cancelled.await;
            }
        }
    }

    /// Reads at once if the bytes are in memory, else on a thread.
    fn read(&mut self, task: TaskId, range: ByteRange) {
        let session = &mut self.session;
        let Some(layout) = session.layout(task) else { return };
        self.output.append(session.output());
        let length = layout.wire_length();
        let buffer = self.output.room(length);
        let disk = &self.place.disks[usize::from(task.lun)];
        let read = match disk.writes.try_reading() {
            Some(_reading) => read_into(&*disk.disk, range, layout, buffer, false),
            None => Ok(false),
        };
        match read {
            Ok(true) if session.data_in(task, buffer) => self.output.fill(length),
            Ok(true) => {}
            Ok(false) => self.deferred.push_back((task, range)),
            Err(error) => {
                self.troubles.tell(&error);
                self.session.complete(task, Err(Sense::of_disk(&error, false)));
            }
        }
    }

    /// Sends one large read that waits, from the files themselves where it lies in memory. One at a wake-up: other sessions
    /// have their turn.
    fn pass_on(&mut self, stream: &TcpStream) -> anyhow::Result<()> {
        // What waits goes first, and the socket is full.
        if self.output.length() > 0 {
            return Ok(());
        }
        let Some((task, range)) = self.large.pop_front() else { return Ok(()) };
        let Some(layout) = self.session.layout(task) else { return Ok(()) }; // aborted while it waited
        let disk = Arc::clone(self.disk(task));
        if range.length == layout.length as u64
            && let Some(_reading) = disk.writes.try_reading()
        {
            let session = &mut self.session;
            let begin = |buffer: &mut [u8]| session.data_in(task, buffer);
            if direct::send(stream, &mut self.output, &*disk.disk, range.offset, layout, begin)? {
                return Ok(());
            }
        }
        self.read(task, range);
        self.output.send(stream)?;
        Ok(())
    }

    /// Starts reads from the device, while there is room for what they bring.
    fn start_misses(&mut self) {
        while self.may_miss()
            && self.room()
            && let Some((task, range)) = self.deferred.pop_front()
        {
            self.miss(task, range);
        }
    }

    fn miss(&mut self, task: TaskId, range: ByteRange) {
        let Some(layout) = self.session.layout(task) else { return }; // aborted while it waited
        let bytes = layout.length;
        self.misses += 1;
        self.missed_bytes += bytes;
        let (disk, lanes) = (Arc::clone(self.disk(task)), Arc::clone(&self.app.lanes));
        let (finish, troubles) = (self.finish.clone(), Arc::clone(&self.troubles));
        tokio::spawn(async move {
            let work = move || {
                let mut buffer = vec![0; layout.wire_length()];
                let _reading = disk.writes.reading();
                let result = read_into(&*disk.disk, range, layout, &mut buffer, true).map(|_| ()).map_err(|error| {
                    troubles.tell(&error);
                    Sense::of_disk(&error, false)
                });
                (buffer, result)
            };
            let (buffer, result) =
                lanes.run(Lane::Miss { bytes }, work).await.unwrap_or((Vec::new(), Err(Sense::INTERNAL_FAILURE)));
            let _ = finish.send(Finished::Read { task, bytes, buffer, result });
        });
    }

    fn change(&mut self, task: TaskId, job: Job) {
        self.writes[usize::from(task.lun)].push((task, job, None));
    }

    fn note_write(&self, data: &[Bytes]) {
        let traffic = &self.place.entry.traffic;
        traffic.writes.fetch_add(1, Ordering::Relaxed);
        traffic.bytes_written.fetch_add(data.iter().map(|piece| piece.len() as u64).sum(), Ordering::Relaxed);
    }

    /// Nobody can cancel it: a unit that is half erased would stay so.
    fn erase(&mut self, task: TaskId, range: ByteRange) {
        let (finish, troubles) = (self.finish.clone(), Arc::clone(&self.troubles));
        let disk = Arc::clone(self.disk(task));
        let done = move |result: Result<(), Failed>| {
            disk.unit().sanitized();
            let _ = finish.send(troubles.end_of(task, result));
        };
        self.disk(task).writes.submit([(OWN, Job::Erase(range), Box::new(done) as Done)]);
    }

    fn copy(&mut self, task: TaskId, copy: Copy) {
        let (finish, troubles) = (self.finish.clone(), Arc::clone(&self.troubles));
        let nexus = self.place.entry.nexus;
        let mut record = CopyRecord { disk: Arc::clone(self.disk(task)), nexus, list: copy.list, done: false };
        let done = move |result: Result<(), Failed>| {
            record.done = result.is_ok();
            drop(record);
            let told = match result {
                // Nothing was copied: the initiator is told what of any other write.
                Err(Failed::Limit | Failed::Busy) | Ok(()) => troubles.end_of(task, result),
                Err(failed) => {
                    troubles.sense_of(failed);
                    Finished::Other(task, Err(Sense::COPY_ABORTED))
                }
            };
            let _ = finish.send(told);
        };
        self.writes[usize::from(task.lun)].push((task, Job::Copy(copy.ranges), Some(Box::new(done))));
    }

    /// Which parts of the disk take space. To find out may wait for the device.
    fn look_up(&mut self, task: TaskId, range: ByteRange, most: usize, report: Report) {
        let (disk, lanes) = (Arc::clone(&self.disk(task).disk), Arc::clone(&self.app.lanes));
        let (finish, troubles) = (self.finish.clone(), Arc::clone(&self.troubles));
        let block = u64::from(disk.sectors().logical);
        tokio::spawn(async move {
            let work = move || disk.provisioning(range.offset, range.length, most);
            let found = match lanes.run(Lane::Miss { bytes: 0 }, work).await {
                Some(Ok(stretches)) => Finished::Data(
                    task,
                    match report {
                        Report::LbaStatus => provisioning::lba_status(block, range.offset / block, &stretches),
                        Report::LogPage => {
                            let mapped = stretches.iter().filter(|stretch| stretch.mapped);
                            provisioning::resources(mapped.map(|stretch| stretch.len).sum())
                        }
                    },
                ),
                Some(Err(error)) => {
                    troubles.tell(&error);
                    Finished::Other(task, Err(Sense::of_disk(&error, false)))
                }
                None => Finished::Other(task, Err(Sense::INTERNAL_FAILURE)),
            };
            let _ = finish.send(found);
        });
    }

    fn reserved(&mut self, task: TaskId, keep: bool, abort: Vec<Nexus>) {
        let (disk, app) = (Arc::clone(self.disk(task)), Arc::clone(&self.app));
        let (finish, troubles) = (self.finish.clone(), Arc::clone(&self.troubles));
        let entry = Arc::clone(&self.place.entry);
        // Of its own tasks only those before it are meant, and this one is their end.
        let abort: Vec<Nexus> = abort.into_iter().filter(|nexus| *nexus != self.place.entry.nexus).collect();
        tokio::spawn(async move {
            let kept = if keep { disk.keep_reservations(&app.lanes).await } else { Ok(()) };
            app.sessions.stop_tasks(&entry.client, &abort, task.lun).await;
            let told = kept.map_err(|error| {
                troubles.tell(&error);
                Sense::of_disk(&error, true)
            });
            let _ = finish.send(Finished::Other(task, told));
        });
    }

    /// Another session's reset: every task on this logical unit (on all, where none is named) is gone without an answer.
    fn forget_all(&mut self, lun: Option<u8>) -> Vec<TaskId> {
        for (_, writes) in (0..).zip(&mut self.writes).filter(|(number, _)| lun.is_none_or(|lun| lun == *number)) {
            writes.clear();
        }
        for waiting in [&mut self.deferred, &mut self.large] {
            waiting.retain(|(task, _)| lun.is_some_and(|lun| lun != task.lun));
        }
        let tasks = self.session.abort_all(lun);
        // No answer of theirs will tell the initiator that its command window is open again; this does.
        self.session.ping();
        tasks
    }

    fn note(&self, stage: Stage, detail: &str) {
        self.app.recorder.note(self.mac, Some(&self.place.entry.client), stage, detail);
    }

    fn note_login(&self) {
        let entry = &self.place.entry;
        match entry.kind {
            SessionKind::Loader => self.note(Stage::Login, &format!("the loader, from {}", entry.address)),
            SessionKind::System => {
                self.note(Stage::OsSession, &format!("the operating system, from {}", entry.address));
            }
            SessionKind::Other => {
                tracing::info!("{}: {} logged in from {}", entry.client, entry.initiator, entry.address);
            }
        }
    }

    fn note_fact(&self, stage: Stage, detail: &str, fact: Fact) {
        self.app.recorder.note_fact(self.mac, Some(&self.place.entry.client), stage, detail, fact);
    }

    /// No command came for a while. For a system that is good; for a loader only if a system has taken over.
    fn note_silence(&self) {
        let entry = &self.place.entry;
        let (reads, bytes) =
            (entry.traffic.reads.load(Ordering::Relaxed), entry.traffic.bytes_read.load(Ordering::Relaxed));
        if entry.kind == SessionKind::System {
            let ms = millis(self.last_busy - self.since);
            return self.note_fact(Stage::Idle, "settled: 10 s without a command", Fact::Settled { ms, bytes });
        }
        let taken_over = self.app.sessions.of(&entry.client).iter().any(|other| other.kind == SessionKind::System);
        if !taken_over {
            let words = format!(
                "its reads stopped after {reads} of them, {bytes} bytes, and its operating system has not logged in: no driver \
                 for the network or for iSCSI at its start"
            );
            self.note_fact(Stage::Trouble, &words, Fact::ReadsStopped { reads, bytes });
        }
    }

    /// The system's session ended, and neither it nor we said so before: it lost its disk, or its machine its power.
    fn note_loss(&self, ended: &anyhow::Result<End>) {
        let entry = &self.place.entry;
        let why = match ended {
            Ok(end) if end.by_us => return,
            _ if entry.kind != SessionKind::System || self.logged_out => return,
            Ok(end) => end.why.to_owned(),
            Err(error) => error.to_string(),
        };
        let span = self.since.elapsed();
        let (ms, in_a_minute) = (millis(span), self.app.recorder.lost_session(&entry.client));
        // The count belongs to the words too: each loss is told, also one that is otherwise the one before it again.
        let again = if in_a_minute > 1 { format!(" ({in_a_minute} within a minute)") } else { String::new() };
        let words = format!(
            "its operating system's session ended without a logout after {:.3} s{again}: {why}",
            span.as_secs_f64()
        );
        self.note_fact(Stage::Trouble, &words, Fact::SessionLost { ms, in_a_minute });
    }

    fn note_first_read(&mut self) {
        if !self.read_yet && self.place.entry.kind == SessionKind::Loader {
            self.note(Stage::FirstRead, "the first block of its disk");
        }
        self.read_yet = true;
    }
}

/// A span in milliseconds.
fn millis(span: Duration) -> u64 {
    u64::try_from(span.as_millis()).unwrap_or(u64::MAX)
}

/// A copy whose result its unit must hear of, even if it is cancelled.
struct CopyRecord {
    disk: Arc<ClientDisk>,
    nexus: Nexus,
    list: u8,
    done: bool,
}

impl Drop for CopyRecord {
    fn drop(&mut self) {
        self.disk.unit().copied(self.nexus, self.list, self.done);
    }
}

/// Takes what the socket has now; false once the other end has closed.
///
/// A read that leaves room has emptied the socket, which tokio takes note of: it is not asked again before there is news.
async fn take_bytes(reader: &mut ReadHalf<'_>, input: &mut BytesMut, digests: Digests) -> io::Result<bool> {
    let room = frame::missing(input, MAX_DATA_SEGMENT, digests).max(INPUT_LOW);
    if input.capacity() - input.len() < room {
        // No more than the buffer has: as soon as all that was cut off it is gone, it is used again.
        input.reserve(INPUT.saturating_sub(input.len()).max(room));
    }
    let mut read = std::pin::pin!(reader.read_buf(input));
    // Once only: if the socket has nothing after all, other things may have happened.
    std::future::poll_fn(|cx| match read.as_mut().poll(cx) {
        Poll::Ready(read) => Poll::Ready(read.map(|length| length > 0)),
        Poll::Pending => Poll::Ready(Ok(true)),
    })
    .await
}

/// Reads a range of the disk into the places that a layout has for it; `false`: some of it is not in memory.
fn read_into(
    disk: &dyn Disk,
    range: ByteRange,
    layout: Layout,
    buffer: &mut [u8],
    wait: bool,
) -> Result<bool, DiskError> {
    let read = |slices: &mut [IoSliceMut<'_>]| {
        if wait { disk.read(range.offset, slices).map(|()| true) } else { disk.try_read(range.offset, slices) }
    };
    if range.length == layout.length as u64
        && let Some(data) = layout.one_segment(buffer)
    {
        return read(&mut [IoSliceMut::new(data)]);
    }
    let mut slices = layout.slices(buffer);
    let rest = usize::try_from(range.length).expect("a command moves at most 1 MiB") - layout.length;
    if rest == 0 {
        return read(&mut slices);
    }
    // The initiator expects a part of the last block only: the rest of it is read, and left out.
    let mut unwanted = vec![0; rest];
    slices.push(IoSliceMut::new(&mut unwanted));
    read(&mut slices)
}

/// Compares the disk with what should be there; with nothing to compare, only reads it.
fn verify(disk: &ClientDisk, range: ByteRange, expected: &[u8], repeat: bool) -> Result<(), Sense> {
    let _reading = disk.writes.reading();
    let mut there = vec![0; usize::try_from(range.length).expect("a command moves at most 1 MiB")];
    disk.disk.read(range.offset, &mut [IoSliceMut::new(&mut there)]).map_err(|error| Sense::of_disk(&error, false))?;
    let step = if repeat || expected.is_empty() { expected.len().max(1) } else { there.len() };
    for (index, part) in there.chunks(step).enumerate().take_while(|_| !expected.is_empty()) {
        if let Some(at) = part.iter().zip(expected).position(|(left, right)| left != right) {
            return Err(Sense::miscompare(index * step + at));
        }
    }
    Ok(())
}

/// Serves a discovery session until it ends: it may list the targets that its initiator may use.
pub(super) async fn discovery(
    app: &Arc<App>,
    mut stream: TcpStream,
    portals: &Portals,
    mut input: BytesMut,
    mut session: Session,
    initiator: &str,
) -> anyhow::Result<()> {
    /// A discovery takes milliseconds.
    const PATIENCE: Duration = Duration::from_secs(60);
    let (peer, addresses) = (stream.peer_addr()?, portals.told(&stream)?);
    let until = Instant::now() + PATIENCE;
    let mut output = Output::default();
    let mut closing = false;
    let (mut reader, writer) = stream.split();
    let stream = writer.as_ref();
    loop {
        // One request, one answer: a listing is far longer than what asks for it.
        if output.length() < MAX_OUTPUT
            && !closing
            && let Some(pdu) = frame::next(&mut input, MAX_DATA_SEGMENT, session.digests())?
        {
            session.receive(pdu, &[])?;
            while let Some(effect) = session.next_effect() {
                match effect {
                    Effect::SendTargets(which) => session.targets(&usable(app, peer, initiator, &which), &addresses),
                    Effect::Close => closing = true,
                    other => tracing::error!("a discovery session asked for {other:?}"),
                }
            }
        }
        output.append(session.output());
        output.send(stream)?;
        if closing && output.length() == 0 {
            return Ok(());
        }
        if !closing && output.length() < MAX_OUTPUT && frame::is_whole(&input, session.digests()) {
            tokio::task::yield_now().await;
            continue;
        }
        tokio::select! {
            ready = stream.writable(), if output.length() > 0 => ready?,
            ready = stream.readable(), if output.length() < MAX_OUTPUT && !closing => {
                ready?;
                if !take_bytes(&mut reader, &mut input, session.digests()).await? {
                    return Ok(());
                }
            }
            () = tokio::time::sleep_until(until) => return Ok(()),
        }
    }
}

/// The targets that an initiator may use, of those that it asks for.
fn usable(app: &App, peer: SocketAddr, initiator: &str, which: &Which) -> Vec<String> {
    let neighbour = super::login::machine_at(peer.ip());
    let fleet = app.fleet();
    let allowed = fleet.clients().filter(|client| app.may_log_in(client, initiator, peer.ip(), neighbour).is_ok());
    let names = allowed.map(|client| app.naming.target(&client.name));
    match which {
        Which::All => names.collect(),
        Which::One(wanted) => names.filter(|name| name.eq_ignore_ascii_case(wanted)).collect(),
    }
}
