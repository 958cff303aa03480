//! The full feature phase of one session (RFC 7143 §4.2, §11): PDUs in, effects and PDUs out.
//!
//! A [`Session`] numbers what it sends, keeps the command window, collects write data and remembers every task until its
//! response. What must be done on a disk leaves as an [`Effect`] and comes back by [`Session::complete`] or
//! [`Session::data_in`]. Sent bytes gather in [`Session::output`], in the order of their StatSN.

mod data_in;
mod task;

use std::collections::{HashMap, VecDeque};
use std::sync::{Mutex, PoisonError};

use bytes::Bytes;

use super::MAX_DATA_SEGMENT;
use super::login::Agreed;
use super::pdu::{CONTINUE, FINAL, Header, NO_TAG, Pdu, append, opcode};
use super::text::{self, Params};
use crate::scsi::command::Check;
use crate::scsi::unit::{LogicalUnit, Nexus};
use crate::scsi::unmap::ByteRange;
use crate::scsi::{Sense, unmap};
pub use data_in::Layout;
use task::Task;

/// Commands of one session that may be on their way or at work. open-iscsi queues 32 by default and 128 at most.
pub const WINDOW: u32 = 64;

/// Immediate commands at work beyond the window, which RFC 7143 §4.2.2.1 lets us limit.
const MAX_IMMEDIATE: usize = 8;

/// Most bytes of write data that the session asks for at once by R2T: it bounds what a session's writes hold in memory,
/// together with [`WINDOW`] first bursts that may come unasked.
const MAX_SOLICITED: u32 = 4 * 1_048_576;

/// A task's number, never used twice in a session (its initiator task tag is).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TaskId(pub u64);

/// What the session needs done. Every effect with a task is answered once, unless the task was aborted before.
#[derive(Debug)]
pub enum Effect {
    /// Read these bytes; answer by [`Session::data_in`], or by [`Session::complete`] with what went wrong.
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
    /// Stop these tasks; answer by [`Session::aborted`] once none of them can touch the disk any more.
    Abort(Abort),
    /// List targets; answer by [`Session::targets`].
    SendTargets(Which),
    /// Send what is in the output, then close.
    Close,
}

/// A task management function at work.
#[derive(Debug)]
pub struct Abort {
    /// The initiator task tag of the function's request.
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
    /// The tasks of every session on the logical unit; the others get a unit attention.
    Unit,
    /// As `Unit`, and all sessions end.
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
    params: Params,
    stat_sn: u32,
    exp_cmd_sn: u32,
    max_cmd_sn: u32,
    tasks: HashMap<u32, Task>,
    by_id: HashMap<TaskId, u32>,
    next_id: u64,
    next_ttt: u32,
    solicited: u32,
    waiting_for_r2t: VecDeque<u32>,
    listing: Option<Listing>,
    effects: VecDeque<Effect>,
    out: Vec<u8>,
}

/// A text response that did not fit one PDU.
#[derive(Debug)]
struct Listing {
    itt: u32,
    ttt: u32,
    rest: Vec<u8>,
}

/// Reasons of a Reject (RFC 7143 §11.17.1).
mod reject {
    pub(super) const SNACK: u8 = 0x03;
    pub(super) const PROTOCOL_ERROR: u8 = 0x04;
    pub(super) const COMMAND_NOT_SUPPORTED: u8 = 0x05;
    pub(super) const TOO_MANY_IMMEDIATE: u8 = 0x06;
    pub(super) const TASK_IN_PROGRESS: u8 = 0x07;
}

/// Responses of a task management function (RFC 7143 §11.6.1).
mod function {
    pub(super) const COMPLETE: u8 = 0;
    pub(super) const NO_SUCH_TASK: u8 = 1;
    pub(super) const NO_SUCH_UNIT: u8 = 2;
    pub(super) const REASSIGNMENT_NOT_SUPPORTED: u8 = 4;
    pub(super) const NOT_SUPPORTED: u8 = 5;
}

impl Session {
    /// The session that a login agreed on.
    #[must_use]
    pub fn new(nexus: Nexus, agreed: &Agreed) -> Self {
        Self {
            nexus,
            discovery: agreed.who.target.is_none(),
            params: agreed.params.clone(),
            stat_sn: agreed.stat_sn,
            exp_cmd_sn: agreed.cmd_sn,
            max_cmd_sn: agreed.cmd_sn.wrapping_add(WINDOW - 1),
            tasks: HashMap::new(),
            by_id: HashMap::new(),
            next_id: 0,
            next_ttt: 0,
            solicited: 0,
            waiting_for_r2t: VecDeque::new(),
            listing: None,
            effects: VecDeque::new(),
            out: Vec::new(),
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

    /// Tasks that have no response yet.
    #[must_use]
    pub fn tasks(&self) -> usize {
        self.tasks.len()
    }

    /// A PDU came. `unit` is the session's logical unit, `None` in a discovery session.
    ///
    /// # Errors
    /// The connection must be closed.
    pub fn receive(&mut self, pdu: Pdu, unit: Option<&Mutex<LogicalUnit>>) -> Result<(), ProtocolError> {
        let header = pdu.header;
        let numbered = !matches!(header.opcode(), opcode::DATA_OUT | opcode::SNACK);
        if numbered && !header.immediate() && !self.take_number(header.word(24))? {
            return Ok(());
        }
        match header.opcode() {
            opcode::NOP_OUT => self.nop_out(&pdu),
            opcode::TEXT => self.text(&pdu),
            opcode::LOGOUT => self.logout(&header),
            opcode::SCSI_COMMAND | opcode::TASK_MANAGEMENT | opcode::DATA_OUT if self.discovery => {
                self.reject(&header, reject::COMMAND_NOT_SUPPORTED);
            }
            opcode::SCSI_COMMAND => self.scsi_command(pdu, unit),
            opcode::DATA_OUT => self.data_out(pdu, unit),
            opcode::TASK_MANAGEMENT => self.task_management(&header),
            opcode::SNACK => self.reject(&header, reject::SNACK),
            opcode::LOGIN => self.reject(&header, reject::PROTOCOL_ERROR),
            0x1C..=0x1E => self.reject(&header, reject::COMMAND_NOT_SUPPORTED), // vendor specific
            other => return Err(ProtocolError::Opcode(other)),
        }
        Ok(())
    }

    /// Whether a command with this CmdSN is the one due. Others are dropped silently (RFC 7143 §4.2.2.1), but for a gap.
    fn take_number(&mut self, cmd_sn: u32) -> Result<bool, ProtocolError> {
        let ahead = cmd_sn.wrapping_sub(self.exp_cmd_sn);
        let open = self.max_cmd_sn.wrapping_sub(self.exp_cmd_sn).wrapping_add(1);
        if ahead == 0 && open > 0 && open <= WINDOW {
            self.exp_cmd_sn = self.exp_cmd_sn.wrapping_add(1);
            return Ok(true);
        }
        if ahead > 0 && ahead < open && open <= WINDOW {
            return Err(ProtocolError::Gap { got: cmd_sn, expected: self.exp_cmd_sn });
        }
        Ok(false)
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
        append(&mut self.out, header, data);
    }

    fn reject(&mut self, header: &Header, reason: u8) {
        let mut rejection = Header::new(opcode::REJECT, FINAL).with(16, NO_TAG);
        rejection.0[2] = reason;
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
        append(&mut self.out, header, &[]);
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

    fn text(&mut self, pdu: &Pdu) {
        let header = pdu.header;
        if let Some(listing) = self.listing.take_if(|l| l.ttt == header.word(20) && l.itt == header.itt()) {
            return self.send_listing(listing.itt, listing.rest);
        }
        let keys = (header.flags() & CONTINUE == 0).then(|| text::parse(&pdu.data).ok()).flatten();
        let Some(keys) = keys else { return self.reject(&header, reject::PROTOCOL_ERROR) };
        self.listing = None;
        if let Some(value) = keys.get("SendTargets") {
            let which = if value == "All" { Which::All } else { Which::One(value.clone()) };
            self.listing = Some(Listing { itt: header.itt(), ttt: NO_TAG, rest: Vec::new() });
            return self.effects.push_back(Effect::SendTargets(which));
        }
        let mut reply = Vec::new();
        for key in keys.keys() {
            text::push(&mut reply, key, "NotUnderstood");
        }
        self.send_listing(header.itt(), reply);
    }

    /// The answer to [`Effect::SendTargets`]: target names, and the address that they are reached at, as `ip:port,group`.
    pub fn targets(&mut self, names: &[String], address: &str) {
        let Some(listing) = self.listing.take() else { return };
        let mut reply = Vec::new();
        for name in names {
            text::push(&mut reply, "TargetName", name);
            text::push(&mut reply, "TargetAddress", address);
        }
        self.send_listing(listing.itt, reply);
    }

    /// Sends as much of a text as fits one PDU and remembers the rest for the initiator to ask for.
    fn send_listing(&mut self, itt: u32, mut text: Vec<u8>) {
        let rest = text.split_off(self.segment().min(text.len()));
        let (flags, ttt) = if rest.is_empty() { (FINAL, NO_TAG) } else { (CONTINUE, self.new_ttt()) };
        self.send(Header::new(opcode::TEXT_RESPONSE, flags).with(16, itt).with(20, ttt), &text);
        if !rest.is_empty() {
            self.listing = Some(Listing { itt, ttt, rest });
        }
    }

    fn logout(&mut self, header: &Header) {
        /// The connection is to be closed for recovery, which level 0 does not know.
        const RECOVERY: u8 = 2;
        let mut response = Header::new(opcode::LOGOUT_RESPONSE, FINAL).with(16, header.itt());
        if header.flags() & 0x7F == RECOVERY {
            response.0[2] = 2; // not supported
            return self.send(response, &[]);
        }
        self.tasks.clear();
        self.by_id.clear();
        self.send(response, &[]);
        self.effects.push_back(Effect::Close);
    }

    fn task_management(&mut self, header: &Header) {
        let ours = lun_number(header.lun()) == Some(0);
        let all = |session: &Self| session.by_id.keys().copied().collect();
        let (scope, tasks): (Scope, Vec<TaskId>) = match header.flags() & 0x7F {
            1 => match self.tasks.get(&header.word(20)) {
                Some(task) => (Scope::Session, vec![task.id]),
                None => return self.function_done(header.itt(), function::NO_SUCH_TASK),
            },
            2 | 4 | 5 if !ours => return self.function_done(header.itt(), function::NO_SUCH_UNIT),
            2 => (Scope::Session, all(self)),  // ABORT TASK SET
            4 | 5 => (Scope::Unit, all(self)), // CLEAR TASK SET, LOGICAL UNIT RESET
            6 => (Scope::Unit, all(self)),     // TARGET WARM RESET
            7 => (Scope::Sessions, all(self)), // TARGET COLD RESET
            8 => return self.function_done(header.itt(), function::REASSIGNMENT_NOT_SUPPORTED),
            _ => return self.function_done(header.itt(), function::NOT_SUPPORTED),
        };
        // From here on no response of these tasks is sent (RFC 7143 §11.5.1, TAS = 0).
        self.forget(&tasks);
        self.effects.push_back(Effect::Abort(Abort { request: header.itt(), tasks, scope }));
    }

    /// Another session's reset stops all of this session's tasks, without a response (TAS = 0). Returns them, for the
    /// caller to keep from the disk.
    pub fn abort_all(&mut self) -> Vec<TaskId> {
        let tasks: Vec<TaskId> = self.by_id.keys().copied().collect();
        self.forget(&tasks);
        tasks
    }

    fn forget(&mut self, tasks: &[TaskId]) {
        for id in tasks {
            if let Some(task) = self.by_id.remove(id).and_then(|itt| self.tasks.remove(&itt)) {
                self.settle_r2t(&task);
            }
        }
    }

    /// The tasks of [`Effect::Abort`] can touch the disk no more.
    pub fn aborted(&mut self, request: u32, scope: Scope) {
        self.function_done(request, function::COMPLETE);
        if scope == Scope::Sessions {
            self.effects.push_back(Effect::Close);
        }
    }

    fn function_done(&mut self, itt: u32, response: u8) {
        let mut header = Header::new(opcode::TASK_MANAGEMENT_RESPONSE, FINAL).with(16, itt);
        header.0[2] = response;
        self.send(header, &[]);
    }
}

/// The number in a LUN's eight bytes, by peripheral device or flat space addressing of one level (SAM-5 §4.7).
fn lun_number(lun: [u8; 8]) -> Option<u16> {
    let first = u16::from_be_bytes([lun[0], lun[1]]);
    match first >> 14 {
        0 | 1 if lun[2..] == [0; 6] => Some(first & 0x3FFF),
        _ => None,
    }
}
