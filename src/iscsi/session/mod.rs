//! The full feature phase of one session (RFC 7143 §4.2, §11): PDUs in, effects and PDUs out.
//!
//! A [`Session`] numbers what it sends, keeps the command window, collects write data and remembers every task until its
//! response. What must be done on a disk leaves as an [`Effect`] and comes back by [`Session::complete`] or
//! [`Session::data_in`]. Sent bytes gather in [`Session::output`], in the order of their StatSN.

mod collected;
mod data_in;
mod exchange;
mod tags;
mod task;
#[cfg(test)]
mod tests;

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::sync::{MutexGuard, PoisonError};

use bytes::Bytes;

use super::login::Agreed;
use super::pdu::{CONTINUE, Digests, FINAL, Header, NO_TAG, Pdu, additional_headers_are_sound, append, opcode};
use super::text::{self, Params};
use super::{LOGIN_DATA_SEGMENT, MAX_DATA_SEGMENT};
use crate::scsi::Sense;
use crate::scsi::command::Check;
use crate::scsi::copy::Copy;
use crate::scsi::unit::{LogicalUnit, Nexus, Units};
use crate::scsi::unmap::ByteRange;
pub use data_in::Layout;
use exchange::Exchange;
use tags::Tags;
use task::Task;

/// Commands of one session that may be on their way or at work. open-iscsi queues 32 by default and 128 at most.
pub const WINDOW: u32 = 64;

/// Immediate commands at work beyond the window, which RFC 7143 §4.2.2.1 lets us limit.
const MAX_IMMEDIATE: usize = 8;

/// Task management functions at work, each of which may wait for the disk.
const MAX_FUNCTIONS: usize = 8;

/// Most bytes of write data that the session has asked for by R2T and not written yet: it bounds what a session's writes
/// hold in memory, together with [`WINDOW`] first bursts that may come unasked.
const MAX_SOLICITED: u32 = 4 * 1_048_576;

/// A task, and where what it asks for is to be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TaskId {
    /// Its number, never used twice in a session (its initiator task tag is).
    pub number: u64,
    /// The place of its logical unit among the session's. (One for a unit that does not exist needs nothing done.)
    pub lun: u8,
}

/// What the session needs done, on the logical unit that the task names. Every effect with a task is answered once, unless the
/// task was aborted before.
#[derive(Debug)]
pub enum Effect {
    /// Read these whole blocks, as many as the layout's data needs; answer by [`Session::data_in`], or by
    /// [`Session::complete`] with what went wrong.
    Read(TaskId, ByteRange),
    /// Write this data from `offset` on; with `fua` onto the medium.
    Write {
        /// The task.
        task: TaskId,
        /// First byte on the disk.
        offset: u64,
        /// The data in pieces, whole blocks in all.
        data: Vec<Bytes>,
        /// Force unit access.
        fua: bool,
    },
    /// Write this data from `offset` on, onto the medium, all of it or none, whatever happens meanwhile.
    WriteAtomic {
        /// The task.
        task: TaskId,
        /// First byte on the disk.
        offset: u64,
        /// The data in pieces, whole blocks in all.
        data: Vec<Bytes>,
    },
    /// Write this data from `offset` on, onto the medium, and compare with it what is then there.
    WriteVerify {
        /// The task.
        task: TaskId,
        /// First byte on the disk.
        offset: u64,
        /// The data in pieces, whole blocks in all.
        data: Vec<Bytes>,
    },
    /// Set the bits of this data on the disk, from `offset` on.
    Or {
        /// The task.
        task: TaskId,
        /// First byte on the disk.
        offset: u64,
        /// The data in pieces, whole blocks in all.
        data: Vec<Bytes>,
        /// Force unit access.
        fua: bool,
    },
    /// Compare the disk from `offset` on with the first half of this data; if it is the same, write the second half, and
    /// let no other write in between.
    CompareAndWrite {
        /// The task.
        task: TaskId,
        /// First byte on the disk.
        offset: u64,
        /// The data in pieces: two halves of whole blocks.
        data: Vec<Bytes>,
        /// Force unit access.
        fua: bool,
    },
    /// Compare the disk with this data, or only read it where there is none.
    Verify {
        /// The task.
        task: TaskId,
        /// Where.
        range: ByteRange,
        /// What should be there.
        expected: Vec<Bytes>,
        /// `expected` is one block that each block is compared with.
        repeat: bool,
    },
    /// Make these bytes zeros.
    Zero(TaskId, Vec<ByteRange>),
    /// Write one block of data over all of these bytes.
    Fill(TaskId, ByteRange, Bytes),
    /// Make everything that was acknowledged durable.
    Flush(TaskId),
    /// Make these bytes, which are the whole disk, zeros and durable, whatever becomes of the task; then tell the unit.
    Erase(TaskId, ByteRange),
    /// Move bytes within the disk; then tell the unit, and answer.
    Copy(TaskId, Copy),
    /// Tell which parts of this range are mapped, in so many stretches at most; answer by [`Session::answer`].
    Provisioning {
        /// The task.
        task: TaskId,
        /// Where.
        range: ByteRange,
        /// Most stretches.
        most: usize,
        /// What is made of it.
        report: Report,
    },
    /// The reservations changed: keep them, and stop the tasks of these sessions; then answer.
    Reserved {
        /// The task.
        task: TaskId,
        /// The unit's kept reservations are others now.
        keep: bool,
        /// Whose tasks.
        abort: Vec<Nexus>,
    },
    /// Stop these tasks, which may be none; answer by [`Session::aborted`] once none of them can touch the disk any more.
    Abort(Abort),
    /// List targets; answer by [`Session::targets`].
    SendTargets(Which),
    /// Send what is in the output, then close.
    Close,
}

/// What is told of a disk's provisioning.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Report {
    /// GET LBA STATUS data.
    LbaStatus,
    /// The log page.
    LogPage,
}

/// A task management function at work, or a logout that ends tasks.
#[derive(Debug)]
pub struct Abort {
    /// The initiator task tag of the request.
    pub request: u32,
    /// This session's tasks to stop.
    pub tasks: Vec<TaskId>,
    /// What else it stops.
    pub scope: Scope,
}

/// How far a task management function reaches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// This session's tasks only.
    Session,
    /// The tasks of every session on this logical unit; others that had some get a unit attention.
    TaskSet(u8),
    /// The tasks of every session on this logical unit, which is reset; the others get a unit attention.
    Unit(u8),
    /// The same on every logical unit.
    Units,
    /// As `Units`, and all sessions end.
    Sessions,
}

/// Which targets an initiator asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Which {
    /// All that it may use.
    All,
    /// The one of this name, or of this session where it is empty.
    One(String),
}

/// The connection must be closed: the initiator broke the protocol in a way that error recovery level 0 cannot mend.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ProtocolError {
    /// A command is missing, on a connection that keeps the order.
    #[error("command {got} came where {expected} was due")]
    Gap {
        /// The CmdSN that came.
        got: u32,
        /// The CmdSN that was due.
        expected: u32,
    },
    /// A PDU that only the target sends, or none at all.
    #[error("PDU {0:02x}h from an initiator")]
    Opcode(u8),
}

/// A session in its full feature phase.
#[derive(Debug)]
pub struct Session {
    nexus: Nexus,
    discovery: bool,
    /// Connection ID: the session's one connection.
    cid: u16,
    params: Params,
    stat_sn: u32,
    exp_cmd_sn: u32,
    max_cmd_sn: u32,
    /// CmdSNs still to come that ABORT TASK made count as received.
    skipped: BTreeSet<u32>,
    tasks: HashMap<u32, Task, Tags>,
    by_id: HashMap<TaskId, u32, Tags>,
    next_id: u64,
    next_ttt: u32,
    solicited: u32,
    waiting_for_r2t: VecDeque<u32>,
    exchange: Option<Exchange>,
    /// Effects of [`Effect::Abort`] that are not answered yet.
    functions: usize,
    /// The initiator task tag of a logout that waits for them.
    logout: Option<u32>,
    /// Nothing that still comes counts.
    closing: bool,
    rejects: u64,
    bad_digests: u64,
    effects: VecDeque<Effect>,
    out: Vec<u8>,
    /// Lists that held data of writes, for those to come: as many as commands may be at work.
    old_lists: Vec<Vec<Bytes>>,
}

/// Reasons of a Reject (RFC 7143 §11.17.1).
mod reject {
    pub(super) const DATA_DIGEST: u8 = 0x02;
    pub(super) const SNACK: u8 = 0x03;
    pub(super) const PROTOCOL_ERROR: u8 = 0x04;
    pub(super) const COMMAND_NOT_SUPPORTED: u8 = 0x05;
    pub(super) const TOO_MANY_IMMEDIATE: u8 = 0x06;
    pub(super) const TASK_IN_PROGRESS: u8 = 0x07;
    pub(super) const INVALID_FIELD: u8 = 0x09;
}

/// Responses of a task management function (RFC 7143 §11.6.1).
mod function {
    pub(super) const COMPLETE: u8 = 0;
    pub(super) const NO_SUCH_TASK: u8 = 1;
    pub(super) const NO_SUCH_UNIT: u8 = 2;
    pub(super) const REASSIGNMENT_NOT_SUPPORTED: u8 = 4;
    pub(super) const NOT_SUPPORTED: u8 = 5;
    pub(super) const REJECTED: u8 = 255;
}

impl Session {
    /// The session that a login agreed on.
    #[must_use]
    pub fn new(nexus: Nexus, agreed: &Agreed) -> Self {
        Self {
            nexus,
            discovery: agreed.who.target.is_none(),
            cid: agreed.cid,
            params: agreed.params.clone(),
            stat_sn: agreed.stat_sn,
            exp_cmd_sn: agreed.cmd_sn,
            max_cmd_sn: agreed.cmd_sn.wrapping_add(WINDOW - 1),
            skipped: BTreeSet::new(),
            tasks: HashMap::default(),
            by_id: HashMap::default(),
            next_id: 0,
            next_ttt: 0,
            solicited: 0,
            waiting_for_r2t: VecDeque::new(),
            exchange: None,
            functions: 0,
            logout: None,
            closing: false,
            rejects: 0,
            bad_digests: 0,
            effects: VecDeque::new(),
            out: Vec::new(),
            old_lists: Vec::new(),
        }
    }

    /// What is to be sent, in order. The caller takes from the front of it.
    pub fn output(&mut self) -> &mut Vec<u8> {
        &mut self.out
    }

    /// The next thing to do. Call until `None` after each PDU and each completion.
    pub fn next_effect(&mut self) -> Option<Effect> {
        self.effects.pop_front()
    }

    /// Whether [`Session::next_effect`] has one.
    #[must_use]
    pub fn has_effects(&self) -> bool {
        !self.effects.is_empty()
    }

    /// PDUs that were rejected.
    #[must_use]
    pub fn rejects(&self) -> u64 {
        self.rejects
    }

    /// Those of them whose data did not match its digest.
    #[must_use]
    pub fn bad_digests(&self) -> u64 {
        self.bad_digests
    }

    /// Tasks that have no response yet.
    #[must_use]
    pub fn tasks(&self) -> usize {
        self.tasks.len()
    }

    /// The digests of this connection's PDUs, both ways.
    #[must_use]
    pub fn digests(&self) -> Digests {
        self.params.digests
    }

    /// A PDU came. `units` are the session's logical units, the same ones every time; none in a discovery session.
    ///
    /// # Errors
    /// The connection must be closed.
    pub fn receive(&mut self, pdu: Pdu, units: &Units) -> Result<(), ProtocolError> {
        let header = pdu.header;
        if self.closing {
            return Ok(());
        }
        let numbered = !matches!(header.opcode(), opcode::DATA_OUT | opcode::SNACK) && !header.immediate();
        if !pdu.intact && header.opcode() != opcode::DATA_OUT {
            self.discard(&header, numbered);
            return Ok(());
        }
        if numbered && !self.take_number(header.word(24))? {
            return Ok(());
        }
        let may_have_ahs = header.opcode() == opcode::SCSI_COMMAND && additional_headers_are_sound(&pdu.ahs);
        if !pdu.ahs.is_empty() && !may_have_ahs {
            self.reject(&header, reject::INVALID_FIELD);
            return Ok(());
        }
        match header.opcode() {
            opcode::NOP_OUT => self.nop_out(&pdu),
            opcode::TEXT => self.text(&pdu),
            opcode::LOGOUT => self.logout(&header),
            opcode::SCSI_COMMAND | opcode::TASK_MANAGEMENT | opcode::DATA_OUT if self.discovery => {
                self.reject(&header, reject::COMMAND_NOT_SUPPORTED);
            }
            opcode::SCSI_COMMAND => self.scsi_command(pdu, units),
            opcode::DATA_OUT => self.data_out(pdu, units),
            opcode::TASK_MANAGEMENT => self.task_management(&header, units.len()),
            opcode::SNACK => self.reject(&header, reject::SNACK),
            opcode::LOGIN => self.reject(&header, reject::PROTOCOL_ERROR),
            0x1C..=0x1E => self.reject(&header, reject::COMMAND_NOT_SUPPORTED), // vendor specific
            other => return Err(ProtocolError::Opcode(other)),
        }
        Ok(())
    }

    /// A PDU whose data does not match its digest is rejected and does not count (RFC 7143 §7.8). Its CmdSN is missing from
    /// then on, which level 0 cannot mend: the session ends, and begins anew.
    fn discard(&mut self, header: &Header, numbered: bool) {
        self.reject(header, reject::DATA_DIGEST);
        if numbered {
            self.closing = true;
            self.effects.push_back(Effect::Close);
        }
    }

    /// Whether a command with this CmdSN is the one due. Others are dropped silently (RFC 7143 §4.2.2.1), but for a gap.
    fn take_number(&mut self, cmd_sn: u32) -> Result<bool, ProtocolError> {
        let ahead = cmd_sn.wrapping_sub(self.exp_cmd_sn);
        let open = self.max_cmd_sn.wrapping_sub(self.exp_cmd_sn).wrapping_add(1);
        if ahead == 0 && open > 0 && open <= WINDOW {
            self.received();
            return Ok(true);
        }
        if ahead > 0 && ahead < open && open <= WINDOW {
            return Err(ProtocolError::Gap { got: cmd_sn, expected: self.exp_cmd_sn });
        }
        Ok(false)
    }

    /// The command that was due counts as received.
    fn received(&mut self) {
        self.exp_cmd_sn = self.exp_cmd_sn.wrapping_add(1);
        while self.skipped.remove(&self.exp_cmd_sn) {
            self.exp_cmd_sn = self.exp_cmd_sn.wrapping_add(1);
        }
    }

    /// Whether a command of this CmdSN may still come, before the request of number `cmd_sn`. If so it counts as received
    /// now (RFC 7143 §11.6.1).
    fn skip(&mut self, missing: u32, cmd_sn: u32) -> bool {
        let ahead = missing.wrapping_sub(self.exp_cmd_sn);
        let open = self.max_cmd_sn.wrapping_sub(self.exp_cmd_sn).wrapping_add(1);
        if ahead >= open || open > WINDOW || ahead >= cmd_sn.wrapping_sub(self.exp_cmd_sn).min(WINDOW) {
            return false;
        }
        if ahead == 0 {
            self.received();
        } else {
            self.skipped.insert(missing);
        }
        true
    }

    /// MaxCmdSN: the window less what is at work, and never moving back.
    fn max_cmd_sn(&mut self) -> u32 {
        let busy = u32::try_from(self.tasks.len()).unwrap_or(WINDOW).min(WINDOW);
        let most = self.exp_cmd_sn.wrapping_add(WINDOW - busy).wrapping_sub(1);
        if most.wrapping_sub(self.max_cmd_sn) < 1 << 31 {
            self.max_cmd_sn = most;
        }
        self.max_cmd_sn
    }

    /// Fills StatSN, ExpCmdSN and MaxCmdSN. iPXE reads them in every PDU, so they are in every PDU.
    fn number(&mut self, header: &mut Header, takes_stat_sn: bool) {
        header.set_word(24, self.stat_sn);
        header.set_word(28, self.exp_cmd_sn);
        let max_cmd_sn = self.max_cmd_sn();
        header.set_word(32, max_cmd_sn);
        if takes_stat_sn {
            self.stat_sn = self.stat_sn.wrapping_add(1);
        }
    }

    fn send(&mut self, mut header: Header, data: &[u8]) {
        self.number(&mut header, true);
        append(&mut self.out, header, data, self.params.digests);
    }

    fn reject(&mut self, header: &Header, reason: u8) {
        let mut rejection = Header::new(opcode::REJECT, FINAL).with(16, NO_TAG);
        rejection.0[2] = reason;
        self.rejects += 1;
        self.bad_digests += u64::from(reason == reject::DATA_DIGEST);
        self.send(rejection, &header.0);
    }

    fn nop_out(&mut self, pdu: &Pdu) {
        if pdu.header.itt() == NO_TAG {
            return; // it answers a ping of ours; that it came is what counts
        }
        let mut header = Header::new(opcode::NOP_IN, FINAL).with(16, pdu.header.itt()).with(20, NO_TAG);
        header.set_lun(pdu.header.lun());
        let most = self.segment().min(pdu.data.len());
        self.send(header, &pdu.data[..most]);
    }

    /// Asks the initiator for a sign of life (RFC 7143 §11.19). Any PDU that it sends is one.
    pub fn ping(&mut self) {
        let ttt = self.new_ttt();
        let mut header = Header::new(opcode::NOP_IN, FINAL).with(16, NO_TAG).with(20, ttt);
        self.number(&mut header, false);
        append(&mut self.out, header, &[], self.params.digests);
    }

    /// Asks the initiator to log out within so many seconds (RFC 7143 §11.9.1). Not for iPXE, which takes it for an error.
    pub fn ask_for_logout(&mut self, seconds: u16) {
        const LOGOUT_REQUESTED: u8 = 1;
        self.tell(LOGOUT_REQUESTED, [0, 0, seconds]);
    }

    /// Says that the session's connections are about to be dropped and that the initiator may be back after so many
    /// seconds. Its tasks are not kept for it.
    pub fn announce_drop(&mut self, back_after: u16) {
        const ALL_CONNECTIONS: u8 = 3;
        self.tell(ALL_CONNECTIONS, [0, back_after, 0]);
    }

    /// Sends an Asynchronous Message.
    fn tell(&mut self, event: u8, parameters: [u16; 3]) {
        if self.discovery || self.closing {
            return;
        }
        let mut header = Header::new(opcode::ASYNC, FINAL).with(16, NO_TAG);
        header.0[36] = event;
        for (field, value) in header.0[38..44].chunks_exact_mut(2).zip(parameters) {
            field.copy_from_slice(&value.to_be_bytes());
        }
        self.send(header, &[]);
    }

    fn new_ttt(&mut self) -> u32 {
        self.next_ttt = self.next_ttt.wrapping_add(1);
        if self.next_ttt == NO_TAG {
            self.next_ttt = 0;
        }
        self.next_ttt
    }

    /// The largest data segment to send, a multiple of four so that only a last one is padded.
    fn segment(&self) -> usize {
        (self.params.initiator_segment.min(MAX_DATA_SEGMENT) & !3) as usize
    }

    fn logout(&mut self, header: &Header) {
        /// Reasons (RFC 7143 §11.14.1) and responses (§11.15.1).
        const CONNECTION: u8 = 1;
        const RECOVERY: u8 = 2;
        const NO_SUCH_CID: u8 = 1;
        const RECOVERY_NOT_SUPPORTED: u8 = 2;
        let itt = header.itt();
        let cid = u16::from_be_bytes([header.0[20], header.0[21]]);
        let refusal = match header.flags() & 0x7F {
            CONNECTION if cid != self.cid => Some(NO_SUCH_CID),
            RECOVERY => Some(RECOVERY_NOT_SUPPORTED),
            reason if reason > RECOVERY => return self.reject(header, reject::INVALID_FIELD),
            _ => None,
        };
        if let Some(refusal) = refusal {
            let mut response = Header::new(opcode::LOGOUT_RESPONSE, FINAL).with(16, itt);
            response.0[2] = refusal;
            return self.send(response, &[]);
        }
        // The response follows what still runs: aborted tasks, and functions that the initiator waits for.
        self.closing = true;
        let tasks = self.forget(|_| true);
        if !tasks.is_empty() {
            self.abort(itt, tasks, Scope::Session);
        }
        self.logout = Some(itt);
        self.finish_logout();
    }

    fn finish_logout(&mut self) {
        if let Some(itt) = self.logout.take_if(|_| self.functions == 0) {
            self.send(Header::new(opcode::LOGOUT_RESPONSE, FINAL).with(16, itt), &[]);
            self.effects.push_back(Effect::Close);
        }
    }

    fn task_management(&mut self, header: &Header, units: usize) {
        let itt = header.itt();
        if self.tasks.contains_key(&itt) || itt == NO_TAG {
            return self.reject(header, reject::TASK_IN_PROGRESS);
        }
        if self.functions >= MAX_FUNCTIONS {
            return self.function_done(itt, function::REJECTED);
        }
        let lun = header.lun();
        let unit = unit_number(lun, units);
        let same_unit = |task: &Task| lun_number(task.lun()) == lun_number(lun);
        // From here on no response of these tasks is sent (RFC 7143 §11.5.1, TAS = 0).
        let (scope, tasks) = match header.flags() & 0x7F {
            1 => {
                let named = header.word(20);
                let tasks = self.forget(|task| task.itt() == named && task.lun() == lun);
                if tasks.is_empty() {
                    let response = match unit {
                        None => function::NO_SUCH_UNIT,
                        Some(_) if self.skip(header.word(32), header.word(24)) => function::COMPLETE,
                        Some(_) => function::NO_SUCH_TASK,
                    };
                    return self.function_done(itt, response);
                }
                (Scope::Session, tasks)
            }
            function @ (2 | 4 | 5) => {
                let Some(unit) = unit else { return self.function_done(itt, function::NO_SUCH_UNIT) };
                let scope = match function {
                    2 => Scope::Session,       // ABORT TASK SET
                    4 => Scope::TaskSet(unit), // CLEAR TASK SET
                    _ => Scope::Unit(unit),    // LOGICAL UNIT RESET
                };
                (scope, self.forget(same_unit))
            }
            6 => (Scope::Units, self.forget(|_| true)), // TARGET WARM RESET
            7 => (Scope::Sessions, self.forget(|_| true)), // TARGET COLD RESET
            8 => return self.function_done(itt, function::REASSIGNMENT_NOT_SUPPORTED),
            _ => return self.function_done(itt, function::NOT_SUPPORTED),
        };
        self.abort(itt, tasks, scope);
    }

    fn abort(&mut self, request: u32, tasks: Vec<TaskId>, scope: Scope) {
        self.functions += 1;
        self.effects.push_back(Effect::Abort(Abort { request, tasks, scope }));
    }

    /// Another session's reset stops all of this session's tasks on a logical unit (or on all, where none is named), without
    /// a response (TAS = 0). Returns them, for the caller to keep from the disk.
    pub fn abort_all(&mut self, lun: Option<u8>) -> Vec<TaskId> {
        self.forget(|task| lun.is_none_or(|lun| lun_number(task.lun()) == Some(lun.into())))
    }

    /// Drops the tasks that this is true of, and says which. What they had asked for is not on its way any more.
    fn forget(&mut self, gone: impl Fn(&Task) -> bool) -> Vec<TaskId> {
        let tasks: Vec<Task> = self.tasks.extract_if(|_, task| gone(task)).map(|(_, task)| task).collect();
        for task in &tasks {
            self.by_id.remove(&task.id);
            self.release(task);
        }
        self.ask_for_more();
        tasks.into_iter().map(|task| task.id).collect()
    }

    /// The tasks of [`Effect::Abort`] can touch the disk no more.
    pub fn aborted(&mut self, request: u32, scope: Scope) {
        self.functions = self.functions.saturating_sub(1);
        if self.logout != Some(request) {
            self.function_done(request, function::COMPLETE);
        }
        self.finish_logout();
        if scope == Scope::Sessions {
            self.closing = true;
            self.effects.push_back(Effect::Close);
        }
    }

    fn function_done(&mut self, itt: u32, response: u8) {
        let mut header = Header::new(opcode::TASK_MANAGEMENT_RESPONSE, FINAL).with(16, itt);
        header.0[2] = response;
        self.send(header, &[]);
    }
}

/// The number of a logical unit, if it is one of so many.
fn unit_number(lun: [u8; 8], units: usize) -> Option<u8> {
    lun_number(lun).and_then(|number| u8::try_from(number).ok()).filter(|number| usize::from(*number) < units)
}

/// The number in a LUN's eight bytes, by peripheral device or flat space addressing of one level (SAM-5 §4.7).
fn lun_number(lun: [u8; 8]) -> Option<u16> {
    let first = u16::from_be_bytes([lun[0], lun[1]]);
    match first >> 14 {
        0 | 1 if lun[2..] == [0; 6] => Some(first & 0x3FFF),
        _ => None,
    }
}
