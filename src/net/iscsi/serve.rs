//! Runs a session: feeds it what the socket brings, does what it asks, sends what it says.
//!
//! Reads that the page cache holds are read at once into the outgoing bytes. Everything that may wait for a device runs on
//! a thread of a lane, so that this task answers pings and task management whatever the disks do.

use std::collections::VecDeque;
use std::io::{self, IoSliceMut};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::BytesMut;
use tokio::net::TcpStream;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use super::login::Seat;
use super::output::Output;
use crate::app::App;
use crate::app::lanes::Lane;
use crate::app::queue::{Done, Job, Ticket};
use crate::app::report::SessionKind;
use crate::app::sessions::Control;
use crate::disk::{Disk, DiskError};
use crate::fleet::Stage;
use crate::iscsi::session::{Effect, Layout, ProtocolError, Scope, Session, TaskId, Which};
use crate::iscsi::{MAX_DATA_SEGMENT, PORTAL_GROUP, frame};
use crate::scsi::unmap::ByteRange;
use crate::scsi::{LogicalUnit, Sense};

/// While more than this waits to be sent, nothing new is begun: a slow reader holds no more of our memory, and other
/// sessions get their turn.
const MAX_OUTPUT: usize = 256 * 1024;

/// Reads of one session that wait for the device at once.
const MAX_MISSES: usize = 8;

/// An operating system that gave no command for this long has settled.
const IDLE: Duration = Duration::from_secs(10);

/// Bytes that one read of the socket asks for: a window of small commands, or a good part of a burst.
const INPUT: usize = 64 * 1024;

/// With less room than this the input grows before it is read into.
const INPUT_LOW: usize = 4096;

/// What comes back from a lane.
enum Finished {
    Read(TaskId, Vec<u8>, Result<(), Sense>),
    Other(TaskId, Result<(), Sense>),
    Aborted(u32, Scope),
}

/// A session at work.
struct Running {
    app: Arc<App>,
    seat: Seat,
    output: Output,
    finished: mpsc::UnboundedReceiver<Finished>,
    finish: mpsc::UnboundedSender<Finished>,
    /// Writes of this wake-up, which make one hop together.
    writes: Vec<(Ticket, Job, Done)>,
    /// Reads that wait for one of [`MAX_MISSES`] places.
    deferred: VecDeque<(TaskId, ByteRange)>,
    misses: usize,
    probes: Vec<oneshot::Sender<()>>,
    closing: bool,
    read_yet: bool,
    last_command: Instant,
    settled: bool,
}

/// Serves a client's disk until the connection ends; returns when nothing of the session can touch the disk any more.
pub(super) async fn normal(app: &Arc<App>, stream: TcpStream, input: BytesMut, seat: Seat) -> anyhow::Result<()> {
    let (finish, finished) = mpsc::unbounded_channel();
    let mut running = Running {
        app: Arc::clone(app),
        output: Output::default(),
        finished,
        finish,
        writes: Vec::new(),
        deferred: VecDeque::new(),
        misses: 0,
        probes: Vec::new(),
        closing: false,
        read_yet: false,
        last_command: Instant::now(),
        settled: seat.entry.kind != SessionKind::System,
        seat,
    };
    running.unit(LogicalUnit::attach);
    running.note_login();
    let ended = running.run(stream, input).await;
    running.unit(LogicalUnit::detach);
    let Running { app, seat, .. } = running;
    seat.disk.writes.cancel(seat.entry.nexus, None).await;
    app.sessions.leave(&seat.entry);
    let queue = Arc::clone(&seat.disk.writes);
    match ended {
        Ok(end) => {
            tracing::debug!("{}: the session of {} ended: {}", seat.entry.client, seat.entry.initiator, end.why);
            if let Some(done) = end.done {
                let _ = done.send(());
            }
        }
        Err(error) => {
            tracing::debug!("{}: the session of {} broke: {error}", seat.entry.client, seat.entry.initiator);
        }
    }
    // What a session leaves is made durable, whoever ended it.
    tokio::spawn(async move { queue.flush().await.unwrap_or_else(|error| tracing::error!("{error}")) });
    Ok(())
}

/// Why a session ended in order, and who is told once it has.
struct End {
    why: &'static str,
    done: Option<oneshot::Sender<()>>,
}

impl Running {
    async fn run(&mut self, stream: TcpStream, mut input: BytesMut) -> anyhow::Result<End> {
        loop {
            self.work(&mut input)?;
            self.output.push(std::mem::take(self.seat.session.output()));
            self.output.send(&stream)?;
            if self.closing && self.output.length() == 0 {
                return Ok(End { why: "logged out", done: None });
            }
            if self.output.length() == 0 && self.has_work(&input) {
                // More can be done at once, but other sessions come first.
                tokio::task::yield_now().await;
                continue;
            }
            let idle_at = self.last_command + IDLE;
            tokio::select! {
                biased;
                Some(control) = self.seat.mailbox.recv() => match control {
                    Control::Probe(alive) => {
                        self.seat.session.ping();
                        self.probes.push(alive);
                    }
                    Control::End(why, done) => return Ok(End { why, done: Some(done) }),
                    Control::Reset(done) => {
                        let tasks = self.forget_all();
                        let (writes, nexus) = (Arc::clone(&self.seat.disk.writes), self.seat.entry.nexus);
                        tokio::spawn(async move {
                            writes.cancel(nexus, Some(&tasks)).await;
                            let _ = done.send(());
                        });
                    }
                },
                Some(finished) = self.finished.recv() => self.take(finished),
                ready = stream.writable(), if self.output.length() > 0 => ready?,
                ready = stream.readable(), if self.output.length() < MAX_OUTPUT && !self.closing => {
                    ready?;
                    if !take_bytes(&stream, &mut input)? {
                        return Ok(End { why: "the initiator closed the connection", done: None });
                    }
                }
                () = tokio::time::sleep_until(idle_at), if !self.settled => {
                    self.settled = true;
                    self.note(Stage::Idle, "settled: 10 s without a command");
                }
            }
        }
    }

    /// Takes PDUs and does what they ask, until there is no more or enough waits to be sent.
    fn work(&mut self, input: &mut BytesMut) -> Result<(), anyhow::Error> {
        while let Ok(finished) = self.finished.try_recv() {
            self.take(finished);
        }
        while !self.closing && self.room() {
            if let Some(effect) = self.seat.session.next_effect() {
                self.begin(effect);
            } else if let Some(pdu) = frame::next(input, MAX_DATA_SEGMENT)? {
                for probe in self.probes.drain(..) {
                    let _ = probe.send(());
                }
                self.receive(pdu)?;
            } else {
                break;
            }
        }
        self.seat.disk.writes.submit(self.writes.drain(..));
        Ok(())
    }

    fn receive(&mut self, pdu: crate::iscsi::pdu::Pdu) -> Result<(), ProtocolError> {
        if pdu.header.opcode() == crate::iscsi::pdu::opcode::SCSI_COMMAND {
            self.last_command = Instant::now();
        }
        self.seat.session.receive(pdu, Some(&self.seat.disk.unit))
    }

    /// Less waits to be sent than may.
    fn room(&mut self) -> bool {
        self.output.length() + self.seat.session.output().len() < MAX_OUTPUT
    }

    /// Whether `work` would find something to do without waiting.
    fn has_work(&mut self, input: &BytesMut) -> bool {
        self.seat.session.has_effects() || frame::is_whole(input)
    }

    fn take(&mut self, finished: Finished) {
        match finished {
            Finished::Read(task, mut buffer, result) => {
                self.misses -= 1;
                match result {
                    Ok(()) => {
                        if self.seat.session.data_in(task, &mut buffer) {
                            self.output.push(std::mem::take(self.seat.session.output()));
                            self.output.push(buffer);
                        }
                    }
                    Err(sense) => self.seat.session.complete(task, Err(sense)),
                }
                if let Some((task, range)) = self.deferred.pop_front() {
                    self.miss(task, range);
                }
            }
            Finished::Other(task, result) => self.seat.session.complete(task, result),
            Finished::Aborted(request, scope) => self.seat.session.aborted(request, scope),
        }
    }

    fn begin(&mut self, effect: Effect) {
        let traffic = &self.seat.entry.traffic;
        match effect {
            Effect::Read(task, range) => {
                traffic.reads.fetch_add(1, Ordering::Relaxed);
                traffic.bytes_read.fetch_add(range.length, Ordering::Relaxed);
                self.note_first_read();
                self.read(task, range);
            }
            Effect::Write { task, offset, data, fua } => {
                let length = data.iter().map(|piece| piece.len() as u64).sum();
                traffic.writes.fetch_add(1, Ordering::Relaxed);
                traffic.bytes_written.fetch_add(length, Ordering::Relaxed);
                self.change(task, Job::Write { offset, data, fua });
            }
            Effect::Zero(task, ranges) => self.change(task, Job::Zero(ranges)),
            Effect::Fill(task, range, block) => self.change(task, Job::Fill(range, block)),
            Effect::Flush(task) => self.change(task, Job::Flush),
            Effect::Verify { task, range, expected, repeat } => {
                let (disk, finish) = (Arc::clone(&self.seat.disk.disk), self.finish.clone());
                let lanes = Arc::clone(&self.app.lanes);
                tokio::spawn(async move {
                    let bytes = usize::try_from(range.length).unwrap_or(usize::MAX);
                    let work = move || verify(&*disk, range, &expected.concat(), repeat);
                    let result = lanes.run(Lane::Miss { bytes }, work).await;
                    let _ = finish.send(Finished::Other(task, result.unwrap_or(Err(Sense::INTERNAL_FAILURE))));
                });
            }
            Effect::Abort(abort) => {
                let (disk, app) = (Arc::clone(&self.seat.disk), Arc::clone(&self.app));
                let (entry, finish) = (Arc::clone(&self.seat.entry), self.finish.clone());
                // Writes of this wake-up are not queued yet; those of the aborted tasks never will be.
                self.writes.retain(|(ticket, ..)| !abort.tasks.contains(&TaskId(ticket.task)));
                tokio::spawn(async move {
                    let tasks: Vec<u64> = abort.tasks.iter().map(|task| task.0).collect();
                    disk.writes.cancel(entry.nexus, Some(&tasks)).await;
                    if abort.scope != Scope::Session {
                        app.sessions.reset_others(&entry, abort.scope == Scope::Sessions).await;
                        disk.unit.lock().unwrap_or_else(std::sync::PoisonError::into_inner).reset(entry.nexus);
                    }
                    let _ = finish.send(Finished::Aborted(abort.request, abort.scope));
                });
            }
            Effect::SendTargets(which) => {
                let own = self.app.naming.target(&self.seat.entry.client);
                let names = match which {
                    Which::One(name) if !name.is_empty() && !name.eq_ignore_ascii_case(&own) => Vec::new(),
                    _ => vec![own],
                };
                self.seat.session.targets(&names, &format!("0.0.0.0:0,{PORTAL_GROUP}"));
            }
            Effect::Close => self.closing = true,
        }
    }

    /// Reads at once if the bytes are in memory, else on a thread.
    fn read(&mut self, task: TaskId, range: ByteRange) {
        let session = &mut self.seat.session;
        let Some(layout) = session.layout(task) else { return };
        let mut out = std::mem::take(session.output());
        let start = out.len();
        out.resize(start + layout.wire_length(), 0);
        let read = read_into(&*self.seat.disk.disk, range, layout, &mut out[start..], false);
        let sent = matches!(read, Ok(true)) && session.data_in(task, &mut out[start..]);
        if !sent {
            out.truncate(start);
        }
        *session.output() = out;
        match read {
            Ok(true) => {}
            Ok(false) => self.miss(task, range),
            Err(error) => {
                tracing::error!("{}: {error}", self.seat.entry.client);
                self.seat.session.complete(task, Err(Sense::of_disk(&error, false)));
            }
        }
    }

    fn miss(&mut self, task: TaskId, range: ByteRange) {
        if self.misses >= MAX_MISSES {
            return self.deferred.push_back((task, range));
        }
        let Some(layout) = self.seat.session.layout(task) else { return };
        self.misses += 1;
        let (disk, lanes) = (Arc::clone(&self.seat.disk.disk), Arc::clone(&self.app.lanes));
        let (finish, client) = (self.finish.clone(), self.seat.entry.client.clone());
        tokio::spawn(async move {
            let work = move || {
                let mut buffer = vec![0; layout.wire_length()];
                let result = read_into(&*disk, range, layout, &mut buffer, true).map(|_| ()).map_err(|error| {
                    tracing::error!("{client}: {error}");
                    Sense::of_disk(&error, false)
                });
                (buffer, result)
            };
            let bytes = layout.length;
            let (buffer, result) =
                lanes.run(Lane::Miss { bytes }, work).await.unwrap_or((Vec::new(), Err(Sense::INTERNAL_FAILURE)));
            let _ = finish.send(Finished::Read(task, buffer, result));
        });
    }

    fn change(&mut self, task: TaskId, job: Job) {
        let (finish, client) = (self.finish.clone(), self.seat.entry.client.clone());
        let done = move |result: Result<(), DiskError>| {
            let result = result.map_err(|error| {
                tracing::error!("{client}: {error}");
                Sense::of_disk(&error, true)
            });
            let _ = finish.send(Finished::Other(task, result));
        };
        self.writes.push((Ticket { nexus: self.seat.entry.nexus, task: task.0 }, job, Box::new(done)));
    }

    /// Another session's reset: every task is gone without an answer.
    fn forget_all(&mut self) -> Vec<u64> {
        self.writes.clear();
        self.deferred.clear();
        let tasks = self.seat.session.abort_all();
        // No answer of theirs will tell the initiator that its command window is open again; this does.
        self.seat.session.ping();
        tasks.into_iter().map(|task| task.0).collect()
    }

    fn unit(&self, change: impl FnOnce(&mut LogicalUnit, crate::scsi::Nexus)) {
        let mut unit = self.seat.disk.unit.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        change(&mut unit, self.seat.entry.nexus);
    }

    fn note(&self, stage: Stage, detail: &str) {
        self.app.recorder.note(self.seat.mac, Some(&self.seat.entry.client), stage, detail);
    }

    fn note_login(&self) {
        let entry = &self.seat.entry;
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

    fn note_first_read(&mut self) {
        if !self.read_yet && self.seat.entry.kind == SessionKind::Loader {
            self.note(Stage::FirstRead, "the first block of its disk");
        }
        self.read_yet = true;
    }
}

/// Takes what the socket has now; false once the other end has closed.
fn take_bytes(stream: &TcpStream, input: &mut BytesMut) -> io::Result<bool> {
    if input.capacity() - input.len() < INPUT_LOW {
        input.reserve(INPUT);
    }
    match stream.try_read_buf(input) {
        Ok(0) => Ok(false),
        Ok(_) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(true),
        Err(error) => Err(error),
    }
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
fn verify(disk: &dyn Disk, range: ByteRange, expected: &[u8], repeat: bool) -> Result<(), Sense> {
    let mut there = vec![0; usize::try_from(range.length).expect("a command moves at most 1 MiB")];
    disk.read(range.offset, &mut [IoSliceMut::new(&mut there)]).map_err(|error| Sense::of_disk(&error, false))?;
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
    stream: TcpStream,
    peer: SocketAddr,
    mut input: BytesMut,
    mut session: Session,
    initiator: &str,
) -> anyhow::Result<()> {
    /// A discovery takes milliseconds; one that is left open holds nothing but a connection.
    const PATIENCE: Duration = Duration::from_secs(60);
    let address = format!("{},{PORTAL_GROUP}", stream.local_addr()?);
    let mut output = Output::default();
    let mut closing = false;
    loop {
        while let Some(pdu) = frame::next(&mut input, MAX_DATA_SEGMENT)? {
            session.receive(pdu, None)?;
            while let Some(effect) = session.next_effect() {
                match effect {
                    Effect::SendTargets(which) => session.targets(&usable(app, peer, initiator, &which), &address),
                    Effect::Close => closing = true,
                    other => tracing::error!("a discovery session asked for {other:?}"),
                }
            }
        }
        output.push(std::mem::take(session.output()));
        output.send(&stream)?;
        if closing && output.length() == 0 {
            return Ok(());
        }
        tokio::select! {
            ready = stream.writable(), if output.length() > 0 => ready?,
            ready = stream.readable(), if output.length() < MAX_OUTPUT => {
                ready?;
                if !take_bytes(&stream, &mut input)? {
                    return Ok(());
                }
            }
            () = tokio::time::sleep(PATIENCE) => return Ok(()),
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
