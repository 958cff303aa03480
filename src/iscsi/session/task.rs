//! A SCSI command from its PDU to its response: collecting write data, executing, answering.

use super::super::pdu::{HEADER, digest, padding};
use super::collected::Collected;
use super::*;
use crate::scsi::BLOCK;
use crate::scsi::command::{CDB_LENGTH, Command};
use crate::scsi::reservation::Refusal;
use crate::scsi::unit::{Plan, Taken, cut, plan_report_luns, plan_without_unit};

/// R and W in a SCSI Command's byte 1: data is expected from, or to, the target.
const READ: u8 = 0x40;
const WRITE: u8 = 0x20;

/// SCSI status codes (SAM-5 §5.3).
const GOOD: u8 = 0x00;
const CHECK_CONDITION: u8 = 0x02;
const BUSY: u8 = 0x08;
const RESERVATION_CONFLICT: u8 = 0x18;

/// How a command without data for the initiator ends.
#[derive(Debug, Clone, Copy)]
enum End {
    Good,
    Check(Sense),
    Conflict,
    Busy,
}

impl From<Refusal> for End {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::Conflict => Self::Conflict,
            Refusal::Check(sense) => Self::Check(sense),
        }
    }
}

impl From<Sense> for End {
    fn from(sense: Sense) -> Self {
        Self::Check(sense)
    }
}

/// One SCSI command that has no response yet.
#[derive(Debug)]
pub(super) struct Task {
    pub(super) id: TaskId,
    itt: u32,
    lun: [u8; 8],
    /// Expected data transfer length of a command that reads, and of one that writes.
    read_length: u32,
    write_length: u32,
    immediate: bool,
    /// The largest data segment that the initiator took when the command came: it may declare another meanwhile.
    segment: usize,
    /// Sense data is in the descriptor format.
    descriptor_sense: bool,
    /// Bytes of a logical block.
    block: u64,
    plan: Plan,
    pub(super) phase: Phase,
    data: Collected,
    received: u32,
    /// Bytes of [`MAX_SOLICITED`] that are set aside for the rest of its data, until it is gone.
    reserved: u32,
    r2t_sn: u32,
}

/// Where a task stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    /// Unsolicited Data-Out PDUs are on their way.
    Unsolicited {
        /// The DataSN that is due.
        data_sn: u32,
    },
    /// It waits for its turn to ask for data.
    WaitingForR2t,
    /// An R2T is out.
    Solicited {
        /// Its target transfer tag.
        ttt: u32,
        /// The DataSN that is due.
        data_sn: u32,
        /// The first byte after what it asked for.
        end: u32,
    },
    /// The disk is at work.
    Executing,
}

/// The logical unit of this number, for a moment.
fn unit(units: &Units, number: u8) -> Option<MutexGuard<'_, LogicalUnit>> {
    Some(units.get(usize::from(number))?.lock().unwrap_or_else(PoisonError::into_inner))
}

/// Bytes that a task collects at most: what it needs, or what was announced, whichever is less.
fn wanted(task: &Task) -> u32 {
    u32::try_from(task.plan.data_out(task.block)).unwrap_or(u32::MAX).min(task.write_length)
}

impl Session {
    pub(super) fn scsi_command(&mut self, pdu: Pdu, units: &Units) {
        let header = pdu.header;
        let itt = header.itt();
        if self.tasks.contains_key(&itt) || itt == NO_TAG {
            return self.reject(&header, reject::TASK_IN_PROGRESS);
        }
        let immediates = || self.tasks.values().filter(|task| task.immediate).count();
        if header.immediate() && immediates() >= MAX_IMMEDIATE {
            return self.reject(&header, reject::TOO_MANY_IMMEDIATE);
        }
        let mut cdb = [0; CDB_LENGTH];
        cdb.copy_from_slice(&header.0[32..48]);
        // Additional headers carry longer CDBs and bidirectional lengths; no command of ours has either.
        let command = if !pdu.ahs.is_empty() { Err(Sense::INVALID_OPCODE) } else { Command::parse(&cdb) };
        let number = unit_number(header.lun(), units.len());
        let (mut descriptor_sense, mut block) = (false, BLOCK);
        let plan = match (command, number.and_then(|number| unit(units, number))) {
            (Err(_), None) => Plan::Check(Sense::NO_SUCH_UNIT),
            (Ok(Command::ReportLuns { select, allocation }), None) => plan_report_luns(units.len(), select, allocation),
            (Ok(command), None) => plan_without_unit(command),
            (command, Some(mut unit)) => {
                (descriptor_sense, block) = (unit.descriptor_sense(), unit.geometry().block());
                match command {
                    Ok(Command::ReportLuns { select, allocation }) => plan_report_luns(units.len(), select, allocation),
                    Ok(command) => unit.plan(self.nexus, command),
                    Err(sense) => unit.refuse(self.nexus, cdb[0], sense),
                }
            }
        };
        self.next_id += 1;
        let expected = header.word(20);
        let flags = header.flags();
        let mut task = Task {
            id: TaskId { number: self.next_id, lun: number.unwrap_or_default() },
            itt,
            lun: header.lun(),
            read_length: if flags & READ == 0 { 0 } else { expected },
            write_length: if flags & WRITE == 0 { 0 } else { expected },
            immediate: header.immediate(),
            segment: self.segment(),
            descriptor_sense,
            block,
            plan,
            phase: Phase::WaitingForR2t,
            data: Collected::in_old(self.old_lists.pop_if(|_| flags & WRITE != 0).unwrap_or_default()),
            received: 0,
            reserved: 0,
            r2t_sn: 0,
        };
        let allowed = if self.params.immediate_data { self.params.first_burst.min(task.write_length) } else { 0 };
        if pdu.data.len() > allowed as usize {
            task.fail(if allowed == 0 { Sense::UNEXPECTED_UNSOLICITED_DATA } else { Sense::INCORRECT_AMOUNT_OF_DATA });
        } else {
            task.take(pdu.data);
        }
        // F means nothing where no data can follow.
        if !header.last() && task.write_length > 0 {
            task.phase = Phase::Unsolicited { data_sn: 0 };
            if self.params.initial_r2t {
                task.fail(Sense::UNEXPECTED_UNSOLICITED_DATA);
            }
        }
        self.by_id.insert(task.id, itt);
        self.tasks.insert(itt, task);
        self.advance(itt, units);
    }

    pub(super) fn data_out(&mut self, pdu: Pdu, units: &Units) {
        let header = pdu.header;
        let itt = header.itt();
        // Data for a task that is gone: aborted tasks leave stragglers, which are no error.
        if !pdu.intact {
            self.reject(&header, reject::DATA_DIGEST);
        }
        let Some(task) = self.tasks.get_mut(&itt) else { return };
        let (ttt, data_sn, offset) = (header.word(20), header.word(36), header.word(40));
        let end_of_data = offset.checked_add(header.data_length());
        let (due, limit) = match &mut task.phase {
            Phase::Unsolicited { data_sn } if ttt == NO_TAG => {
                (data_sn, self.params.first_burst.min(task.write_length))
            }
            Phase::Solicited { ttt: asked, data_sn, end, .. } if ttt == *asked => (data_sn, *end),
            _ => return, // it belongs to no sequence: not asked for, or already given up
        };
        let in_order = data_sn == *due && offset == task.received;
        *due = due.wrapping_add(1);
        if !pdu.intact {
            // Level 0 asks for it no second time; what else was announced is waited for (RFC 7143 §7.8).
            task.fail(Sense::CRC_ERROR);
        } else if !in_order {
            task.fail(Sense::DATA_PHASE_ERROR);
        } else if end_of_data.is_none_or(|end| end > limit) {
            task.fail(Sense::INCORRECT_AMOUNT_OF_DATA);
        } else {
            task.take(pdu.data);
        }
        if !header.last() {
            return;
        }
        if let Phase::Solicited { end, .. } = task.phase
            && task.received != end
        {
            task.fail(Sense::INCORRECT_AMOUNT_OF_DATA);
        }
        task.phase = Phase::WaitingForR2t;
        self.advance(itt, units);
    }

    /// Moves a task on as far as it goes: fails it, asks for its data, or executes it.
    fn advance(&mut self, itt: u32, units: &Units) {
        let Some(task) = self.tasks.get_mut(&itt) else { return };
        if task.phase != Phase::WaitingForR2t {
            return;
        }
        if !task.failed() && task.received < wanted(task) {
            if task.reserved > 0 {
                return self.ask(itt);
            }
            self.waiting_for_r2t.push_back(itt);
            return self.ask_for_more();
        }
        task.phase = Phase::Executing;
        self.execute(itt, units);
    }

    /// Lets tasks ask for their data, in their order, while [`MAX_SOLICITED`] allows. Room is set aside for all that a
    /// task wants: tasks that each have a part of theirs would wait for one another.
    pub(super) fn ask_for_more(&mut self) {
        while let Some(itt) = self.waiting_for_r2t.front().copied() {
            if let Some(task) = self.tasks.get_mut(&itt) {
                let room = wanted(task) - task.received;
                if self.solicited > 0 && self.solicited + room > MAX_SOLICITED {
                    return;
                }
                task.reserved = room;
                self.solicited += room;
                self.ask(itt);
            }
            self.waiting_for_r2t.pop_front();
        }
    }

    /// Sends an R2T for the next burst of a task's data (RFC 7143 §11.8).
    fn ask(&mut self, itt: u32) {
        let ttt = self.new_ttt();
        let Some(task) = self.tasks.get_mut(&itt) else { return };
        let offset = task.received;
        let asked = (wanted(task) - offset).min(self.params.max_burst);
        task.phase = Phase::Solicited { ttt, data_sn: 0, end: offset + asked };
        let mut header = Header::new(opcode::R2T, FINAL).with(16, itt).with(20, ttt).with(36, task.r2t_sn);
        header.set_lun(task.lun);
        task.r2t_sn += 1;
        header.set_word(40, offset);
        header.set_word(44, asked);
        self.number(&mut header, false);
        append(&mut self.out, header, &[], self.params.digests);
    }

    /// A task is gone, and with it the data that it asked for.
    pub(super) fn release(&mut self, task: &Task) {
        self.solicited -= task.reserved;
        // Else a queue that cannot move would grow with each command that is aborted in it.
        self.waiting_for_r2t.retain(|waiting| *waiting != task.itt);
    }

    fn execute(&mut self, itt: u32, units: &Units) {
        let Some(task) = self.tasks.get_mut(&itt) else { return };
        let id = task.id;
        let data = task.data.take();
        let effect = match &task.plan {
            Plan::Done => return self.complete(id, Ok(())),
            Plan::Check(sense) => {
                let sense = *sense;
                return self.complete(id, Err(sense));
            }
            Plan::Conflict => return self.end(id, End::Conflict),
            Plan::Data(_) => return self.answer_from_memory(itt),
            Plan::Read(range) => match task.answer_length() {
                0 => return self.complete(id, Ok(())),
                length => Effect::Read(id, ByteRange { length: length.next_multiple_of(BLOCK), ..*range }),
            },
            Plan::Write { range, fua } => {
                let (offset, fua) = (range.offset, *fua);
                let Some(data) = task.data_of(data, range.length) else { return self.complete(id, Ok(())) };
                Effect::Write { task: id, offset, data, fua }
            }
            Plan::WriteAtomic(range) => {
                let offset = range.offset;
                let Some(data) = task.data_of(data, range.length) else { return self.complete(id, Ok(())) };
                Effect::WriteAtomic { task: id, offset, data }
            }
            Plan::WriteVerify(range) => {
                let offset = range.offset;
                let Some(data) = task.data_of(data, range.length) else { return self.complete(id, Ok(())) };
                Effect::WriteVerify { task: id, offset, data }
            }
            Plan::OrWrite { range, fua } => {
                let (offset, fua) = (range.offset, *fua);
                let Some(data) = task.data_of(data, range.length) else { return self.complete(id, Ok(())) };
                Effect::Or { task: id, offset, data, fua }
            }
            // Half of either half would be compared with the wrong thing: it is all or an error.
            Plan::CompareAndWrite { range, .. } if u64::from(task.write_length) != 2 * range.length => {
                return self.complete(id, Err(Sense::INVALID_FIELD_IN_CDB));
            }
            Plan::CompareAndWrite { range, .. } if range.length == 0 => return self.complete(id, Ok(())),
            Plan::CompareAndWrite { range, fua } => {
                Effect::CompareAndWrite { task: id, offset: range.offset, data, fua: *fua }
            }
            Plan::Verify { range, .. } if range.length == 0 => return self.complete(id, Ok(())),
            Plan::Verify { range, check: Check::Medium } => {
                Effect::Verify { task: id, range: *range, expected: Vec::new(), repeat: false }
            }
            Plan::Verify { range, check } => {
                let (expected, length) =
                    whole_blocks(data, u64::from(task.received).min(task.plan.data_out(task.block)), task.block);
                let repeat = *check == Check::OneBlock;
                let range = ByteRange { length: if repeat { range.length } else { length }, ..*range };
                if length == 0 {
                    return self.complete(id, Ok(()));
                }
                Effect::Verify { task: id, range, expected, repeat }
            }
            Plan::WriteSame { range, .. } if range.length == 0 => return self.complete(id, Ok(())),
            Plan::WriteSame { range, no_data: true, .. } => Effect::Zero(id, vec![*range]),
            Plan::WriteSame { range, no_data: false, unmap } => {
                let block = data.concat();
                let one_block = block.len() as u64 == task.block && u64::from(task.write_length) == task.block;
                if !one_block {
                    return self.complete(id, Err(Sense::INVALID_FIELD_IN_CDB));
                }
                // With UNMAP the block's content is not looked at, as other targets have it: who asks for it sends
                // zeros. (SBC-4 would also let a target write the block wherever it does not unmap.)
                let zeros = *unmap || block.iter().all(|byte| *byte == 0);
                if zeros { Effect::Zero(id, vec![*range]) } else { Effect::Fill(id, *range, block.into()) }
            }
            Plan::Unmap(length) => {
                let mut list = data.concat();
                list.truncate((*length).into());
                let Some(unit) = unit(units, id.lun) else { return self.complete(id, Err(Sense::NO_SUCH_UNIT)) };
                match unit.unmap(&list) {
                    Ok(ranges) if ranges.is_empty() => return self.complete(id, Ok(())),
                    Ok(ranges) => Effect::Zero(id, ranges),
                    Err(sense) => return self.complete(id, Err(sense)),
                }
            }
            Plan::List(kind, length) => {
                let mut list = data.concat();
                list.truncate(usize::try_from(*length).unwrap_or(usize::MAX));
                let Some(mut unit) = unit(units, id.lun) else { return self.complete(id, Err(Sense::NO_SUCH_UNIT)) };
                match unit.take_list(self.nexus, *kind, &list) {
                    Ok(Taken::Done) => return self.complete(id, Ok(())),
                    Ok(Taken::Reserved { keep: false, abort }) if abort.is_empty() => return self.complete(id, Ok(())),
                    Ok(Taken::Reserved { keep, abort }) => Effect::Reserved { task: id, keep, abort },
                    Ok(Taken::Copy(copy)) => Effect::Copy(id, copy),
                    Err(refusal) => return self.end(id, refusal.into()),
                }
            }
            Plan::LbaStatus { offset, length, most, .. } => {
                let range = ByteRange { offset: *offset, length: *length };
                Effect::Provisioning { task: id, range, most: *most, report: Report::LbaStatus }
            }
            Plan::Resources { length, .. } => {
                let range = ByteRange { offset: 0, length: *length };
                Effect::Provisioning { task: id, range, most: usize::MAX, report: Report::LogPage }
            }
            Plan::Flush => Effect::Flush(id),
            Plan::Erase { length, immediate } => {
                let (range, immediate) = (ByteRange { offset: 0, length: *length }, *immediate);
                let Some(mut unit) = unit(units, id.lun) else { return self.complete(id, Err(Sense::NO_SUCH_UNIT)) };
                if let Err(sense) = unit.sanitize() {
                    return self.complete(id, Err(sense));
                }
                self.effects.push_back(Effect::Erase(id, range));
                if immediate {
                    self.complete(id, Ok(()));
                }
                return;
            }
        };
        self.effects.push_back(effect);
    }

    /// How the answer of this read lies in a buffer; `None` if the task is gone.
    #[must_use]
    pub fn layout(&self, id: TaskId) -> Option<Layout> {
        let task = self.tasks.get(self.by_id.get(&id)?)?;
        if !matches!(task.plan, Plan::Read(_) | Plan::Data(_)) {
            return None;
        }
        let length = usize::try_from(task.answer_length()).expect("a command moves at most 1 MiB");
        Some(Layout::new(length, task.segment, self.params.max_burst as usize, self.params.digests))
    }

    /// The disk was read into `buffer`, which lies as [`Session::layout`] said. Fills the headers, the last of which
    /// carries the status; the caller then sends the buffer after what is in the output, before anything else.
    /// False if the task is gone: the buffer must not be sent.
    #[must_use]
    pub fn data_in(&mut self, id: TaskId, buffer: &mut [u8]) -> bool {
        let Some(layout) = self.layout(id) else { return false };
        let Some(task) = self.by_id.remove(&id).and_then(|itt| self.tasks.remove(&itt)) else { return false };
        let (residual_flags, residual) = task.residual();
        for (data_sn, segment) in (0..).zip(layout.segments()) {
            /// S: the PDU carries the command's status (RFC 7143 §11.7.3).
            const STATUS: u8 = 0x01;
            let last = segment.offset + segment.length == layout.length;
            let mut header = Header::new(opcode::DATA_IN, if last || segment.ends_burst { FINAL } else { 0 })
                .with(16, task.itt)
                .with(20, NO_TAG)
                .with(36, data_sn)
                .with(40, u32::try_from(segment.offset).expect("a command moves at most 1 MiB"));
            header.set_data_length(u32::try_from(segment.length).expect("a segment has 24 bits of length"));
            if last {
                header.0[1] |= STATUS | residual_flags;
                header.0[3] = GOOD;
                header.set_word(44, residual);
            }
            self.number(&mut header, last);
            buffer[segment.at..segment.at + HEADER].copy_from_slice(&header.0);
            let end = segment.data_at + segment.length;
            let padded = end + padding(segment.length);
            buffer[end..padded].fill(0);
            if self.params.digests.header {
                buffer[segment.at + HEADER..segment.data_at].copy_from_slice(&digest(&header.0));
            }
            if self.params.digests.data {
                let digest = digest(&buffer[segment.data_at..padded]);
                buffer[padded..padded + digest.len()].copy_from_slice(&digest);
            }
        }
        true
    }

    /// The answer of a task that asked for [`Effect::Provisioning`]. Ignored if the task is gone.
    pub fn answer(&mut self, id: TaskId, data: Vec<u8>) {
        let Some(itt) = self.by_id.get(&id).copied() else { return };
        let Some(task) = self.tasks.get_mut(&itt) else { return };
        if let Plan::LbaStatus { allocation, .. } | Plan::Resources { allocation, .. } = task.plan {
            task.plan = cut(data, allocation);
            self.answer_from_memory(itt);
        }
    }

    fn answer_from_memory(&mut self, itt: u32) {
        let Some(task) = self.tasks.get(&itt) else { return };
        let (id, Plan::Data(data)) = (task.id, task.plan.clone()) else { return };
        let layout = self.layout(id).filter(|layout| layout.length > 0);
        let Some(layout) = layout else { return self.complete(id, Ok(())) };
        let mut buffer = vec![0; layout.wire_length()];
        let mut source = &data[..layout.length];
        for mut slice in layout.slices(&mut buffer) {
            let (now, rest) = source.split_at(slice.len());
            slice.copy_from_slice(now);
            source = rest;
        }
        if self.data_in(id, &mut buffer) {
            self.out.extend_from_slice(&buffer);
        }
    }

    /// A task is done, without data for the initiator. Ignored if it is gone.
    pub fn complete(&mut self, id: TaskId, result: Result<(), Sense>) {
        self.end(id, result.map_or_else(End::Check, |()| End::Good));
    }

    /// A task was not done, and may be tried again later. Ignored if it is gone.
    pub fn busy(&mut self, id: TaskId) {
        self.end(id, End::Busy);
    }

    /// Takes back the list of a write's data, for another command.
    pub fn take_back(&mut self, mut list: Vec<Bytes>) {
        list.clear();
        if self.old_lists.len() < WINDOW as usize {
            self.old_lists.push(list);
        }
    }

    fn end(&mut self, id: TaskId, end: End) {
        let Some(task) = self.by_id.remove(&id).and_then(|itt| self.tasks.remove(&itt)) else { return };
        self.release(&task);
        let (residual_flags, residual) = match end {
            End::Good => task.residual(),
            _ => task.residual_of_nothing(),
        };
        let mut header =
            Header::new(opcode::SCSI_RESPONSE, FINAL | residual_flags).with(16, task.itt).with(44, residual);
        header.set_word(36, task.r2t_sn); // ExpDataSN counts R2Ts too (RFC 7143 §11.4.8)
        match end {
            End::Good => self.send(header, &[]),
            End::Conflict => {
                header.0[3] = RESERVATION_CONFLICT;
                self.send(header, &[]);
            }
            End::Busy => {
                header.0[3] = BUSY;
                self.send(header, &[]);
            }
            End::Check(sense) => {
                header.0[3] = CHECK_CONDITION;
                let sense = sense.bytes(task.descriptor_sense);
                let mut data = u16::try_from(sense.len()).expect("20 bytes").to_be_bytes().to_vec();
                data.extend_from_slice(&sense);
                self.send(header, &data);
            }
        }
        self.ask_for_more();
    }
}

impl Task {
    pub(super) fn itt(&self) -> u32 {
        self.itt
    }

    pub(super) fn lun(&self) -> [u8; 8] {
        self.lun
    }

    #[cfg(test)]
    pub(super) fn reserved(&self) -> u32 {
        self.reserved
    }

    /// Bytes of data that it holds.
    #[cfg(test)]
    pub(super) fn held(&self) -> usize {
        self.data.len()
    }

    fn failed(&self) -> bool {
        matches!(self.plan, Plan::Check(_) | Plan::Conflict)
    }

    /// Of its data the whole blocks that came and that it writes; `None` where that is nothing.
    fn data_of(&self, data: Vec<Bytes>, most: u64) -> Option<Vec<Bytes>> {
        let (data, length) = whole_blocks(data, u64::from(self.received).min(most), self.block);
        (length > 0).then_some(data)
    }

    /// Takes data that came in order. Of a task that failed nothing is kept.
    fn take(&mut self, data: Bytes) {
        self.received += u32::try_from(data.len()).expect("a segment has 24 bits of length");
        if !self.failed() {
            self.data.push(data);
        }
    }

    /// Bytes of data for the initiator: what there is, or what it expects if that is less.
    fn answer_length(&self) -> u64 {
        let expected = u64::from(self.read_length);
        match &self.plan {
            Plan::Read(range) => expected.min(range.length),
            Plan::Data(data) => expected.min(data.len() as u64),
            _ => 0,
        }
    }

    /// Fails the task once the data that is already announced has come. The first reason stays.
    fn fail(&mut self, sense: Sense) {
        if !self.failed() {
            self.plan = Plan::Check(sense);
            self.data.take();
        }
    }

    /// Overflow or underflow against what the initiator expected (RFC 7143 §11.4.5.1).
    fn residual(&self) -> (u8, u32) {
        const OVERFLOW: u8 = 0x04;
        const UNDERFLOW: u8 = 0x02;
        let (moves, expected) = match &self.plan {
            Plan::Read(range) => (range.length, self.read_length),
            Plan::Data(data) => (data.len() as u64, self.read_length),
            plan => (plan.data_out(self.block), self.write_length.max(self.read_length)),
        };
        let expected = u64::from(expected);
        let residual = u32::try_from(moves.abs_diff(expected)).unwrap_or(u32::MAX);
        match moves.cmp(&expected) {
            std::cmp::Ordering::Greater => (OVERFLOW, residual),
            std::cmp::Ordering::Less => (UNDERFLOW, residual),
            std::cmp::Ordering::Equal => (0, 0),
        }
    }

    /// As above, of a command that failed: nothing moved that counts.
    fn residual_of_nothing(&self) -> (u8, u32) {
        match self.write_length.max(self.read_length) {
            0 => (0, 0),
            expected => (0x02, expected),
        }
    }
}

/// The first `length` bytes of the data, rounded down to whole blocks of so many bytes, and how many those are.
fn whole_blocks(data: Vec<Bytes>, length: u64, block: u64) -> (Vec<Bytes>, u64) {
    let length = length - length % block;
    let mut left = usize::try_from(length).expect("a command moves at most 1 MiB");
    let mut pieces = data;
    for piece in &mut pieces {
        piece.truncate(left.min(piece.len()));
        left -= piece.len();
    }
    pieces.retain(|piece| !piece.is_empty());
    (pieces, length)
}
