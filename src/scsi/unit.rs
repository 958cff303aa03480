//! A logical unit: plans commands, and remembers what its initiators share: reservations, mode pages, unit attentions.
//!
//! A small thing behind one mutex that its sessions share, never held across I/O.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex};

use super::command::{Blocks, Check, Command, ReserveOut};
use super::copy::{self, Copy, CopyRange, Progress};
use super::inquiry::{self, Identity};
use super::mode::Modes;
use super::provisioning::{self, LogPage};
use super::registration::{self, Parameters};
use super::reservation::{Consequences, InitiatorPort, Refusal, Reservations, access};
use super::sense::Sense;
use super::unmap::{self, ByteRange};
use super::{GRANULARITY, Geometry, MAX_ATOMIC, MAX_TRANSFER, MAX_WRITE_SAME, mode, opcodes};
use crate::disk::Sectors;

/// An initiator's relation to this logical unit: its session's number, unique while the process lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Nexus(pub u64);

/// Unit attentions that wait for one nexus. More than these few events cannot be told apart by an initiator anyway.
const MAX_ATTENTIONS: usize = 8;

/// The logical units of a target, each at the place that is its number: as a session knows them.
pub type Units = [Arc<Mutex<LogicalUnit>>];

/// Copies whose results are remembered, of all initiators.
const MAX_COPIES: usize = 16;

/// Commands that report no unit attention (SAM-5 §5.14.4): INQUIRY, REPORT LUNS, and REQUEST SENSE, which returns it as data.
const SILENT: [u8; 3] = [0x12, 0xA0, 0x03];

/// What a command needs done. Ranges are checked: they lie within the disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Plan {
    /// GOOD, nothing else.
    Done,
    /// These bytes are the answer, cut to the allocation length.
    Data(Vec<u8>),
    /// Read these bytes of the disk.
    Read(ByteRange),
    /// Write these bytes of the disk; with `fua`, onto the medium before the answer.
    Write {
        /// Where; as much data is to come.
        range: ByteRange,
        /// Force unit access.
        fua: bool,
    },
    /// Write these bytes onto the medium, all or none of them, whatever happens meanwhile.
    WriteAtomic(ByteRange),
    /// Write these bytes onto the medium, and compare what can be read there with the data.
    WriteVerify(ByteRange),
    /// Combine the bytes of the disk with the data to come, bit by bit.
    OrWrite {
        /// Where; as much data is to come.
        range: ByteRange,
        /// Force unit access.
        fua: bool,
    },
    /// Compare these bytes of the disk with the first half of the data to come; if they are the same, write the second.
    CompareAndWrite {
        /// Where; twice as much data is to come.
        range: ByteRange,
        /// Force unit access.
        fua: bool,
    },
    /// Check that these bytes can be read, and compare them with the data to come.
    Verify {
        /// Where.
        range: ByteRange,
        /// With what.
        check: Check,
    },
    /// Write one block of data, or zeros where none is to come, over all of these bytes.
    WriteSame {
        /// Where.
        range: ByteRange,
        /// Zeros, without data.
        no_data: bool,
        /// Free these bytes, which read as zeros then: the block comes, and its content is not looked at.
        unmap: bool,
    },
    /// Free the ranges of the parameter list to come, of this length.
    Unmap(u16),
    /// Hand the parameter list to come, of this length, to [`LogicalUnit::take_list`].
    List(List, u32),
    /// Tell which blocks are mapped, from this byte on, in so many descriptors at most.
    LbaStatus {
        /// First byte.
        offset: u64,
        /// How many bytes to the end of the disk.
        length: u64,
        /// Most descriptors.
        most: usize,
        /// Most bytes to return.
        allocation: u32,
    },
    /// Tell how much of the disk is mapped, as the log page of logical block provisioning.
    Resources {
        /// The disk's size in bytes.
        length: u64,
        /// Most bytes to return.
        allocation: u32,
    },
    /// Make everything that was acknowledged durable.
    Flush,
    /// Call [`LogicalUnit::sanitize`], make the whole disk zeros, durably, and then call [`LogicalUnit::sanitized`].
    Erase {
        /// The disk's size in bytes.
        length: u64,
        /// Answer before it is done.
        immediate: bool,
    },
    /// CHECK CONDITION.
    Check(Sense),
    /// RESERVATION CONFLICT.
    Conflict,
}

/// Parameter lists that change the unit, not the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum List {
    /// MODE SELECT, of ten bytes or of six.
    ModeSelect {
        /// The ten-byte form.
        ten: bool,
    },
    /// PERSISTENT RESERVE OUT.
    ReserveOut(ReserveOut),
    /// EXTENDED COPY.
    ExtendedCopy,
}

/// What is to be done after a parameter list was taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Taken {
    /// GOOD, nothing else.
    Done,
    /// Move these bytes within the disk, then call [`LogicalUnit::copied`].
    Copy(Copy),
    /// First keep the reservations, and stop the tasks of these sessions.
    Reserved {
        /// [`LogicalUnit::kept_reservations`] are others now.
        keep: bool,
        /// Whose tasks are to be stopped.
        abort: Vec<Nexus>,
    },
}

impl Plan {
    /// How much data the command takes from the initiator, in bytes, on a disk with blocks of so many bytes.
    #[must_use]
    pub fn data_out(&self, block: u64) -> u64 {
        match self {
            Self::Write { range, .. }
            | Self::WriteAtomic(range)
            | Self::WriteVerify(range)
            | Self::OrWrite { range, .. }
            | Self::Verify { range, check: Check::Data } => range.length,
            Self::CompareAndWrite { range, .. } => 2 * range.length,
            Self::Verify { range, check: Check::OneBlock } if range.length > 0 => block,
            Self::WriteSame { no_data: false, .. } => block,
            Self::Unmap(length) => u64::from(*length),
            Self::List(_, length) => u64::from(*length),
            _ => 0,
        }
    }
}

impl From<Refusal> for Plan {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::Conflict => Self::Conflict,
            Refusal::Check(sense) => Self::Check(sense),
        }
    }
}

/// A session, as its logical unit sees it.
#[derive(Debug)]
struct Attached {
    port: InitiatorPort,
    attentions: VecDeque<Sense>,
}

impl Attached {
    fn tell(&mut self, sense: Sense) {
        if self.attentions.len() < MAX_ATTENTIONS && !self.attentions.contains(&sense) {
            self.attentions.push_back(sense);
        }
    }
}

/// A copy and its result.
#[derive(Debug)]
struct CopyRecord {
    nexus: Nexus,
    list: u8,
    segments: u16,
    bytes: u64,
    progress: Progress,
}

/// The state that a disk's sessions share.
#[derive(Debug)]
pub struct LogicalUnit {
    identity: Identity,
    number: u8,
    geometry: Geometry,
    read_only: bool,
    modes: Modes,
    sessions: HashMap<Nexus, Attached>,
    reservations: Reservations,
    copies: VecDeque<CopyRecord>,
    sanitizing: bool,
    /// The host has little space left.
    space_is_low: bool,
}

impl LogicalUnit {
    /// The unit that serves a disk of `size` bytes behind this target name, as LUN 0, in blocks of 512 bytes.
    #[must_use]
    pub fn new(target: &str, size: u64, read_only: bool) -> Self {
        Self::numbered(target, 0, size, read_only)
    }

    /// The same, as the LUN of this number.
    #[must_use]
    pub fn numbered(target: &str, number: u8, size: u64, read_only: bool) -> Self {
        Self {
            identity: Identity::of_unit(target, number),
            number,
            geometry: Geometry::new(size, Sectors::default()),
            read_only,
            modes: Modes::default(),
            sessions: HashMap::new(),
            reservations: Reservations::default(),
            copies: VecDeque::new(),
            sanitizing: false,
            space_is_low: false,
        }
    }

    /// The same for a disk with these sectors.
    #[must_use]
    pub fn with_sectors(self, sectors: Sectors) -> Self {
        Self { geometry: Geometry::new(self.geometry.bytes(), sectors), ..self }
    }

    /// Its blocks.
    #[must_use]
    pub fn geometry(&self) -> Geometry {
        self.geometry
    }

    /// Whether writes are refused, whatever an initiator sets.
    pub fn set_read_only(&mut self, read_only: bool) {
        self.read_only = read_only;
    }

    /// Sense data is to be in the descriptor format.
    #[must_use]
    pub fn descriptor_sense(&self) -> bool {
        self.modes.descriptor_sense
    }

    /// The reservations that must outlive a loss of power, as text; `None`: nothing must.
    #[must_use]
    pub fn kept_reservations(&self) -> Option<String> {
        self.reservations.to_text()
    }

    /// Takes up the reservations that outlived a loss of power; false if the text is none of ours.
    pub fn restore(&mut self, text: &str) -> bool {
        let found = Reservations::from_text(text);
        let sound = found.is_some();
        self.reservations = found.unwrap_or_default();
        sound
    }

    /// A session of this initiator port begins. Its first command learns that the target may have been reset before it came
    /// (SAM-5 §5.14.1).
    pub fn attach(&mut self, nexus: Nexus, port: InitiatorPort) {
        let mut session = Attached { port, attentions: VecDeque::from([Sense::POWER_ON]) };
        if self.space_is_low && !self.read_only {
            session.tell(Sense::THRESHOLD_REACHED);
        }
        self.sessions.insert(nexus, session);
    }

    /// A session ended.
    pub fn detach(&mut self, nexus: Nexus) {
        self.sessions.remove(&nexus);
        self.reservations.lose(nexus);
        self.copies.retain(|copy| copy.nexus != nexus);
    }

    /// The unit was reset: every nexus is told once, whoever asked for it (SAM-5 §6.3.3). What was set by MODE SELECT and
    /// RESERVE is as it was at first.
    pub fn reset(&mut self) {
        self.modes = Modes::default();
        self.reservations.reset();
        for session in self.sessions.values_mut() {
            session.tell(Sense::DEVICE_RESET);
        }
    }

    /// The task set was cleared by another nexus: those whose commands were in it are told once.
    pub fn cleared(&mut self, theirs: &[Nexus]) {
        for (_, session) in self.sessions.iter_mut().filter(|(nexus, _)| theirs.contains(nexus)) {
            session.tell(Sense::COMMANDS_CLEARED);
        }
    }

    /// The disk begins to be erased. Until the end commands that need it are told so.
    ///
    /// # Errors
    /// It is being erased already.
    pub fn sanitize(&mut self) -> Result<(), Sense> {
        match std::mem::replace(&mut self.sanitizing, true) {
            true => Err(Sense::SANITIZE_IN_PROGRESS),
            false => Ok(()),
        }
    }

    /// The disk was erased, or could not be.
    pub fn sanitized(&mut self) {
        self.sanitizing = false;
    }

    /// A copy came to its end.
    pub fn copied(&mut self, nexus: Nexus, list: u8, done: bool) {
        let running =
            |copy: &&mut CopyRecord| copy.nexus == nexus && copy.list == list && copy.progress == Progress::Running;
        if let Some(copy) = self.copies.iter_mut().find(running) {
            copy.progress = if done { Progress::Done } else { Progress::Failed };
        }
    }

    /// The disk has `size` bytes from now on: every nexus is told once.
    pub fn resize(&mut self, size: u64) {
        let resized = self.geometry.resized(size);
        if resized != self.geometry {
            self.geometry = resized;
            for session in self.sessions.values_mut() {
                session.tell(Sense::CAPACITY_CHANGED);
            }
        }
    }

    /// The host has little space left for the disk to grow into: every nexus is told once (SBC-3 §4.7.3.7), and each that begins
    /// before [`space_recovered`](LogicalUnit::space_recovered).
    pub fn space_runs_low(&mut self) {
        self.space_is_low = true;
        if !self.read_only {
            for session in self.sessions.values_mut() {
                session.tell(Sense::THRESHOLD_REACHED);
            }
        }
    }

    /// The host has space again.
    pub fn space_recovered(&mut self) {
        self.space_is_low = false;
    }

    /// What this command of this nexus needs done. A unit attention that waits is told first, but by the three
    /// commands that report none (SAM-5 §5.14.4).
    pub fn plan(&mut self, nexus: Nexus, command: Command) -> Plan {
        let silent =
            matches!(command, Command::Inquiry { .. } | Command::ReportLuns { .. } | Command::RequestSense { .. });
        if !silent && let Some(sense) = self.take_attention(nexus) {
            return Plan::Check(sense);
        }
        if !self.reservations.is_free() {
            let port = self.sessions.get(&nexus).map(|session| &session.port);
            if !port.is_some_and(|port| self.reservations.allow(nexus, port, access(&command))) {
                return Plan::Conflict;
            }
        }
        if self.sanitizing && !silent {
            return Plan::Check(Sense::SANITIZE_IN_PROGRESS);
        }
        self.plan_now(nexus, command).unwrap_or_else(Plan::from)
    }

    /// What a CDB with this operation code, which [`Command::parse`] refused, is answered: what the nexus must be told comes
    /// first.
    pub fn refuse(&mut self, nexus: Nexus, opcode: u8, why: Sense) -> Plan {
        let attention = if SILENT.contains(&opcode) { None } else { self.take_attention(nexus) };
        Plan::Check(attention.unwrap_or(why))
    }

    fn take_attention(&mut self, nexus: Nexus) -> Option<Sense> {
        self.sessions.get_mut(&nexus)?.attentions.pop_front()
    }

    fn plan_now(&mut self, nexus: Nexus, command: Command) -> Result<Plan, Refusal> {
        Ok(match command {
            Command::TestUnitReady | Command::StartStop { load_eject: false, .. } | Command::ExitFailureMode => {
                Plan::Done
            }
            Command::StartStop { load_eject: true, .. } => return Err(Sense::INVALID_FIELD_IN_CDB.into()),
            Command::RequestSense { descriptor, allocation } => {
                let calm = if self.sanitizing { Sense::SANITIZE_IN_PROGRESS } else { Sense::NONE };
                cut(self.take_attention(nexus).unwrap_or(calm).bytes(descriptor), allocation)
            }
            Command::Inquiry { page: None, allocation } => cut(inquiry::standard(Some(self.number)), allocation),
            Command::Inquiry { page: Some(code), allocation } => {
                cut(inquiry::page(code, &self.identity, self.geometry)?, allocation)
            }
            Command::ModeSense(request) => {
                cut(mode::sense(request, self.modes, self.geometry, self.read_only)?, request.allocation)
            }
            Command::ModeSelect { ten, parameters } => {
                if parameters > mode::MAX_PARAMETERS {
                    return Err(Sense::PARAMETER_LIST_LENGTH.into());
                }
                Plan::List(List::ModeSelect { ten }, parameters.into())
            }
            Command::LogSense { page, subpage, parameter, allocation } => {
                match provisioning::log_page(page, subpage, parameter)? {
                    LogPage::Ready(data) => cut(data, allocation),
                    LogPage::Resources => Plan::Resources { length: self.geometry.bytes(), allocation },
                }
            }
            Command::ReadCapacity10 => Plan::Data(inquiry::capacity10(self.geometry)),
            Command::ReadCapacity16 { allocation } => cut(inquiry::capacity16(self.geometry), allocation),
            // A unit knows of itself; where there are others, whoever has them all answers, by `plan_report_luns`.
            Command::ReportLuns { select, allocation } => cut(report_luns(select, &[self.number])?, allocation),
            Command::ReportOpcodes { query, timeouts, allocation } => {
                cut(opcodes::report(query, timeouts)?, allocation)
            }
            Command::ReportFunctions { extended, allocation } => cut(opcodes::functions(extended), allocation),
            Command::ReadDefects { twelve, lists, allocation } => cut(no_defects(twelve, lists), allocation),
            Command::GetLbaStatus { lba, allocation } => {
                let Some(blocks) = self.geometry.blocks().checked_sub(lba).filter(|blocks| *blocks > 0) else {
                    return Err(Sense::LBA_OUT_OF_RANGE.into());
                };
                let ByteRange { offset, length } = self.geometry.range(lba, blocks);
                Plan::LbaStatus { offset, length, most: provisioning::descriptors(allocation), allocation }
            }
            Command::Reserve => self.reservations.reserve_legacy(nexus).map(|()| Plan::Done)?,
            Command::Release => self.reservations.release_legacy(nexus).map(|()| Plan::Done)?,
            Command::ReserveIn { action, allocation } => {
                self.reservations.persistent_allowed()?;
                cut(registration::report(&self.reservations, action)?, allocation)
            }
            Command::ReserveOut(request) => {
                self.reservations.persistent_allowed()?;
                if request.parameters > registration::MAX_PARAMETERS {
                    return Err(Sense::PARAMETER_LIST_LENGTH.into());
                }
                Plan::List(List::ReserveOut(request), request.parameters)
            }
            Command::ExtendedCopy { parameters } => {
                self.writable()?;
                if parameters > copy::MAX_PARAMETERS {
                    return Err(Sense::PARAMETER_LIST_LENGTH.into());
                }
                Plan::List(List::ExtendedCopy, parameters)
            }
            Command::CopyStatus { list, allocation } => {
                let mut last_first = self.copies.iter().rev();
                let copy = last_first.find(|copy| copy.nexus == nexus && copy.list == list);
                let copy = copy.ok_or(Sense::INVALID_FIELD_IN_CDB)?;
                cut(copy::status(copy.progress, copy.segments, copy.bytes), allocation)
            }
            Command::CopyParameters { allocation } => cut(copy::parameters(self.geometry), allocation),
            Command::Read(blocks) => Plan::Read(self.range(blocks, MAX_TRANSFER)?),
            Command::Write { blocks, fua } => Plan::Write { range: self.writable_range(blocks, MAX_TRANSFER)?, fua },
            Command::WriteVerify(blocks) => Plan::WriteVerify(self.writable_range(blocks, MAX_TRANSFER)?),
            Command::WriteAtomic(blocks) => {
                let range = self.writable_range(blocks, MAX_ATOMIC)?;
                if !range.offset.is_multiple_of(GRANULARITY) || !range.length.is_multiple_of(GRANULARITY) {
                    return Err(Sense::INVALID_FIELD_IN_CDB.into());
                }
                Plan::WriteAtomic(range)
            }
            Command::CompareAndWrite { blocks, fua } => {
                let most = u64::from(self.geometry.most_to_compare()) * self.geometry.block();
                Plan::CompareAndWrite { range: self.writable_range(blocks, most)?, fua }
            }
            Command::OrWrite { blocks, fua } => {
                Plan::OrWrite { range: self.writable_range(blocks, MAX_TRANSFER)?, fua }
            }
            Command::Verify { blocks, check } => Plan::Verify { range: self.range(blocks, MAX_TRANSFER)?, check },
            Command::Prefetch(blocks) => {
                // As much as one READ may have is fetched: the rest is a hint that is not taken.
                let all = self.to_the_end(blocks)?;
                let length = all.length.min(MAX_TRANSFER);
                Plan::Verify { range: ByteRange { length, ..all }, check: Check::Medium }
            }
            Command::SynchronizeCache(blocks) => {
                self.range(blocks, u64::MAX)?;
                Plan::Flush
            }
            Command::Unmap { parameters } => {
                self.writable()?;
                Plan::Unmap(parameters)
            }
            Command::WriteSame { blocks, unmap, no_data } => {
                self.writable()?;
                let range = self.to_the_end(blocks)?;
                if range.length > MAX_WRITE_SAME {
                    return Err(Sense::INVALID_FIELD_IN_CDB.into());
                }
                Plan::WriteSame { range, no_data, unmap }
            }
            Command::BlockErase { immediate } => {
                self.writable()?;
                Plan::Erase { length: self.geometry.bytes(), immediate }
            }
        })
    }

    /// A parameter list came.
    ///
    /// # Errors
    /// What is wrong with it. Nothing has changed then.
    pub fn take_list(&mut self, nexus: Nexus, list: List, data: &[u8]) -> Result<Taken, Refusal> {
        match list {
            List::ModeSelect { ten } => {
                let wanted = mode::select(data, ten, self.modes, self.geometry)?;
                if wanted != self.modes {
                    self.modes = wanted;
                    for (_, session) in self.sessions.iter_mut().filter(|(other, _)| **other != nexus) {
                        session.tell(Sense::MODE_PARAMETERS_CHANGED);
                    }
                }
                Ok(Taken::Done)
            }
            List::ReserveOut(request) => self.reserve_out(nexus, request, data),
            List::ExtendedCopy => {
                let Some(copy) = copy::parse(data, &self.identity, self.geometry)? else { return Ok(Taken::Done) };
                self.copies.retain(|old| old.nexus != nexus || old.list != copy.list);
                if self.copies.len() >= MAX_COPIES {
                    self.copies.pop_front();
                }
                self.copies.push_back(CopyRecord {
                    nexus,
                    list: copy.list,
                    segments: u16::try_from(copy.ranges.len()).unwrap_or(u16::MAX),
                    bytes: copy.ranges.iter().map(|range: &CopyRange| range.length).sum(),
                    progress: Progress::Running,
                });
                Ok(Taken::Copy(copy))
            }
        }
    }

    fn reserve_out(&mut self, nexus: Nexus, request: ReserveOut, data: &[u8]) -> Result<Taken, Refusal> {
        let parameters = Parameters::parse(request.action, data)?;
        let port = self.sessions.get(&nexus).map(|session| session.port.clone()).ok_or(Refusal::Conflict)?;
        let before = self.reservations.to_text();
        let Consequences { attentions, aborted } =
            self.reservations.change(&port, request.action, request.scope_type, &parameters)?;
        for session in self.sessions.values_mut() {
            let told = attentions.iter().filter(|(port, _)| *port == session.port);
            let told: Vec<Sense> = told.map(|(_, sense)| *sense).collect();
            told.into_iter().for_each(|sense| session.tell(sense));
        }
        let after = self.reservations.to_text();
        let sessions = self.sessions.iter().filter(|(_, session)| aborted.contains(&session.port));
        let abort = sessions.map(|(other, _)| *other).collect();
        Ok(Taken::Reserved { keep: before != after, abort })
    }

    fn writable(&self) -> Result<(), Sense> {
        match (self.read_only, self.modes.write_protect) {
            (true, _) => Err(Sense::WRITE_PROTECTED),
            (false, true) => Err(Sense::SOFTWARE_WRITE_PROTECTED),
            (false, false) => Ok(()),
        }
    }

    fn writable_range(&self, blocks: Blocks, most: u64) -> Result<ByteRange, Sense> {
        self.writable()?;
        self.range(blocks, most)
    }

    /// The bytes of these blocks, which must lie within the disk and be no more than `most`.
    fn range(&self, blocks: Blocks, most: u64) -> Result<ByteRange, Sense> {
        if blocks.lba.checked_add(blocks.count.into()).is_none_or(|end| end > self.geometry.blocks()) {
            return Err(Sense::LBA_OUT_OF_RANGE);
        }
        let range = self.geometry.range(blocks.lba, blocks.count.into());
        if range.length > most { Err(Sense::INVALID_FIELD_IN_CDB) } else { Ok(range) }
    }

    /// The same, where a count of 0 means all up to the end.
    fn to_the_end(&self, blocks: Blocks) -> Result<ByteRange, Sense> {
        let range = self.range(blocks, u64::MAX)?;
        Ok(match blocks.count {
            0 => self.geometry.range(blocks.lba, self.geometry.blocks() - blocks.lba),
            _ => range,
        })
    }

    /// The ranges of an UNMAP parameter list.
    ///
    /// # Errors
    /// As [`unmap::parse`].
    pub fn unmap(&self, list: &[u8]) -> Result<Vec<ByteRange>, Sense> {
        unmap::parse(list, self.geometry)
    }
}

/// READ DEFECT DATA: the lists that were asked for, in whatever format, are empty (SBC-3 §5.18, §5.19).
fn no_defects(twelve: bool, lists: u8) -> Vec<u8> {
    if twelve { vec![0, lists, 0, 0, 0, 0, 0, 0] } else { vec![0, lists, 0, 0] }
}

/// What REPORT LUNS is answered by a target of so many units, whichever it was sent to (SPC-4 §6.33): nothing that a unit
/// knows makes a difference.
#[must_use]
pub fn plan_report_luns(units: usize, select: u8, allocation: u32) -> Plan {
    let luns: Vec<u8> = (0..=u8::MAX).take(units).collect();
    match report_luns(select, &luns) {
        Ok(data) => cut(data, allocation),
        Err(sense) => Plan::Check(sense),
    }
}

/// What a command to a logical unit that does not exist is answered (SPC-4 §6.6.2; SAM-5 §5.11).
#[must_use]
pub fn plan_without_unit(command: Command) -> Plan {
    match command {
        Command::Inquiry { page: None, allocation } => cut(inquiry::standard(None), allocation),
        Command::RequestSense { descriptor, allocation } => {
            let sense = Sense::NO_SUCH_UNIT;
            cut(sense.bytes(descriptor), allocation)
        }
        _ => Plan::Check(Sense::NO_SUCH_UNIT),
    }
}

/// Cuts the data of an answer to its allocation length.
#[must_use]
pub fn cut(mut data: Vec<u8>, allocation: u32) -> Plan {
    data.truncate(usize::try_from(allocation).unwrap_or(usize::MAX));
    Plan::Data(data)
}

/// REPORT LUNS data for the units of these numbers (SPC-4 §6.33).
fn report_luns(select: u8, luns: &[u8]) -> Result<Vec<u8>, Sense> {
    let luns = match select {
        0x00 | 0x02 => luns,
        0x01 => &[], // well known logical units only
        _ => return Err(Sense::INVALID_FIELD_IN_CDB),
    };
    let length = u32::try_from(luns.len() * 8).expect("a target has at most 256 units");
    let mut data = length.to_be_bytes().to_vec();
    data.resize(8, 0);
    for lun in luns {
        data.extend_from_slice(&[0, *lun, 0, 0, 0, 0, 0, 0]); // peripheral device addressing (SAM-5 §4.7.5.2)
    }
    Ok(data)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scsi::BLOCK;

    const A: Nexus = Nexus(1);
    const B: Nexus = Nexus(2);

    fn port(nexus: Nexus) -> InitiatorPort {
        let number = u8::try_from(nexus.0).unwrap();
        InitiatorPort {
            name: format!("iqn.2026-11.internal.roost:client.pc-{number:02}"),
            isid: [0, 0, 0, 0, 0, number],
        }
    }

    /// Two sessions that were told of the power already.
    fn settled() -> LogicalUnit {
        let mut unit = unit();
        for nexus in [A, B] {
            unit.attach(nexus, port(nexus));
            assert_eq!(unit.plan(nexus, Command::TestUnitReady), Plan::Check(Sense::POWER_ON));
        }
        unit
    }

    fn unit() -> LogicalUnit {
        LogicalUnit::new("iqn.2026-11.internal.roost:pc-01", 4096 * BLOCK, false)
    }

    #[test]
    fn a_new_nexus_is_told_once_and_inquiry_does_not_take_it() {
        let mut unit = unit();
        unit.attach(A, port(A));
        assert!(
            matches!(unit.plan(A, Command::Inquiry { page: None, allocation: 36 }), Plan::Data(data) if data.len() == 36)
        );
        assert_eq!(unit.plan(A, Command::TestUnitReady), Plan::Check(Sense::POWER_ON));
        assert_eq!(unit.plan(A, Command::TestUnitReady), Plan::Done);
    }

    #[test]
    fn a_unit_attention_comes_before_the_refusal_of_a_cdb_but_for_the_three_that_report_none() {
        let mut unit = unit();
        unit.attach(A, port(A));
        for opcode in SILENT {
            assert_eq!(unit.refuse(A, opcode, Sense::INVALID_FIELD_IN_CDB), Plan::Check(Sense::INVALID_FIELD_IN_CDB));
        }
        assert_eq!(unit.refuse(A, 0xC1, Sense::INVALID_OPCODE), Plan::Check(Sense::POWER_ON));
        assert_eq!(unit.refuse(A, 0xC1, Sense::INVALID_OPCODE), Plan::Check(Sense::INVALID_OPCODE));
    }

    #[test]
    fn a_reset_is_told_to_all_once_and_ends_what_was_set() {
        let mut unit = settled();
        assert_eq!(unit.plan(A, Command::Reserve), Plan::Done);
        unit.take_list(A, List::ModeSelect { ten: false }, &SWP).unwrap();
        assert_eq!(unit.plan(B, Command::TestUnitReady), Plan::Check(Sense::MODE_PARAMETERS_CHANGED));
        unit.reset();
        unit.reset();
        for nexus in [A, B] {
            assert_eq!(unit.plan(nexus, Command::TestUnitReady), Plan::Check(Sense::DEVICE_RESET));
            assert_eq!(unit.plan(nexus, Command::TestUnitReady), Plan::Done);
            assert!(matches!(unit.plan(nexus, WRITE), Plan::Write { .. }));
        }
    }

    #[test]
    fn a_unit_that_is_reserved_by_reserve_is_for_one_session() {
        let mut unit = settled();
        assert_eq!(unit.plan(A, Command::Reserve), Plan::Done);
        for command in [WRITE, READ, Command::TestUnitReady, Command::Reserve] {
            assert_eq!(unit.plan(B, command), Plan::Conflict, "{command:?}");
        }
        assert!(matches!(unit.plan(B, Command::ReadCapacity10), Plan::Data(_)));
        assert_eq!(unit.plan(B, Command::Release), Plan::Done);
        assert_eq!(unit.plan(B, READ), Plan::Conflict, "another's reservation is not released");
        unit.detach(A);
        assert_eq!(unit.plan(B, Command::Reserve), Plan::Done, "it ended with its session");
    }

    /// A MODE SELECT (6) list that sets SWP in the control page.
    const SWP: [u8; 16] = [0, 0, 0, 0, 0x0A, 0x0A, 0, 0x10, 0x08, 0, 0, 0, 0, 0, 0, 0];
    const READ: Command = Command::Read(Blocks { lba: 0, count: 1 });
    const WRITE: Command = Command::Write { blocks: Blocks { lba: 0, count: 1 }, fua: false };

    #[test]
    fn software_write_protection_is_for_all_and_told_to_the_others() {
        let mut unit = settled();
        assert_eq!(unit.take_list(A, List::ModeSelect { ten: false }, &SWP), Ok(Taken::Done));
        assert_eq!(unit.plan(A, WRITE), Plan::Check(Sense::SOFTWARE_WRITE_PROTECTED));
        assert_eq!(unit.plan(B, WRITE), Plan::Check(Sense::MODE_PARAMETERS_CHANGED));
        assert_eq!(unit.plan(B, WRITE), Plan::Check(Sense::SOFTWARE_WRITE_PROTECTED));
        assert!(matches!(unit.plan(B, READ), Plan::Read(_)));
        unit.take_list(B, List::ModeSelect { ten: false }, &SWP).unwrap();
        assert!(matches!(unit.plan(A, READ), Plan::Read(_)), "nothing changed, nobody is told");
    }

    #[test]
    fn while_a_unit_is_erased_it_only_says_so() {
        let mut unit = settled();
        let erase = Command::BlockErase { immediate: true };
        assert_eq!(unit.plan(A, erase), Plan::Erase { length: 4096 * BLOCK, immediate: true });
        assert_eq!(unit.sanitize(), Ok(()));
        assert_eq!(unit.sanitize(), Err(Sense::SANITIZE_IN_PROGRESS));
        for command in [READ, WRITE, Command::TestUnitReady, erase] {
            assert_eq!(unit.plan(B, command), Plan::Check(Sense::SANITIZE_IN_PROGRESS), "{command:?}");
        }
        assert!(matches!(unit.plan(B, Command::Inquiry { page: None, allocation: 36 }), Plan::Data(_)));
        let told = Command::RequestSense { descriptor: false, allocation: 18 };
        assert_eq!(unit.plan(B, told), Plan::Data(Sense::SANITIZE_IN_PROGRESS.fixed().to_vec()));
        unit.sanitized();
        assert!(matches!(unit.plan(B, READ), Plan::Read(_)));
    }

    /// PERSISTENT RESERVE OUT with these keys.
    fn out(
        unit: &mut LogicalUnit,
        nexus: Nexus,
        action: u8,
        kind: u8,
        keys: [u8; 2],
        keep: bool,
    ) -> Result<Taken, Refusal> {
        let mut list = [0; 24];
        (list[7], list[15], list[20]) = (keys[0], keys[1], u8::from(keep));
        let request = ReserveOut { action, scope_type: kind, parameters: 24 };
        assert_eq!(unit.plan(nexus, Command::ReserveOut(request)), Plan::List(List::ReserveOut(request), 24));
        unit.take_list(nexus, List::ReserveOut(request), &list)
    }

    #[test]
    fn what_is_to_be_kept_is_said_when_it_changes_and_comes_back() {
        let mut unit = settled();
        let changed = Ok(Taken::Reserved { keep: true, abort: vec![] });
        assert_eq!(out(&mut unit, A, 0, 0, [0, 7], true), changed);
        let text = unit.kept_reservations().unwrap();
        assert_eq!(out(&mut unit, A, 1, 3, [7, 0], false), changed);
        let held = unit.kept_reservations().unwrap();
        assert!(held.starts_with(&text) && held.len() > text.len());
        assert_eq!(unit.plan(B, WRITE), Plan::Conflict);

        let mut after = LogicalUnit::new("t", 4096 * BLOCK, false);
        assert!(after.restore(&held));
        for nexus in [A, B] {
            after.attach(nexus, port(nexus));
            after.plan(nexus, Command::TestUnitReady);
        }
        assert_eq!(after.plan(B, READ), Plan::Conflict);
        assert!(matches!(after.plan(A, WRITE), Plan::Write { .. }));
        assert_eq!(out(&mut after, A, 3, 0, [7, 0], false), changed);
        assert_eq!(after.kept_reservations(), None);
        assert!(!after.restore("something else"));
    }

    #[test]
    fn who_is_preempted_is_told_and_stopped() {
        let mut unit = settled();
        for (nexus, key) in [(A, 1), (B, 2)] {
            out(&mut unit, nexus, 0, 0, [0, key], false).unwrap();
        }
        out(&mut unit, A, 1, 3, [1, 0], false).unwrap();
        let taken = out(&mut unit, B, 5, 1, [2, 1], false).unwrap();
        assert_eq!(taken, Taken::Reserved { keep: false, abort: vec![A] });
        assert_eq!(unit.plan(A, WRITE), Plan::Check(Sense::REGISTRATIONS_PREEMPTED));
        assert_eq!(unit.plan(A, WRITE), Plan::Conflict);
        assert!(matches!(unit.plan(A, READ), Plan::Read(_)), "it is write exclusive now");
    }

    #[test]
    fn results_of_copies_are_told_to_who_asked_for_them() {
        let mut unit = settled();
        let status = Command::CopyStatus { list: 9, allocation: 64 };
        assert_eq!(unit.plan(A, status), Plan::Check(Sense::INVALID_FIELD_IN_CDB));
        let mut list = vec![0; 16 + 32 + 28];
        (list[0], list[3], list[11]) = (9, 32, 28);
        (list[16], list[20], list[21], list[23], list[46]) = (0xE4, 1, 3, 8, 2);
        list[24..32].copy_from_slice(&unit.identity.naa());
        (list[48], list[51], list[59]) = (2, 24, 2);
        let ranges = vec![CopyRange { from: 0, to: 0, length: 1024 }];
        assert_eq!(unit.take_list(A, List::ExtendedCopy, &list), Ok(Taken::Copy(Copy { list: 9, ranges })));
        assert_eq!(unit.plan(A, status), Plan::Data(copy::status(Progress::Running, 1, 1024)));
        unit.copied(A, 9, true);
        assert_eq!(unit.plan(A, status), Plan::Data(copy::status(Progress::Done, 1, 1024)));
        assert_eq!(unit.plan(B, status), Plan::Check(Sense::INVALID_FIELD_IN_CDB));
    }

    #[test]
    fn a_count_of_zero_goes_to_the_end_or_nowhere() {
        let mut unit = settled();
        let blocks = Blocks { lba: 4094, count: 0 };
        let rest = ByteRange { offset: 4094 * BLOCK, length: 2 * BLOCK };
        let same = Command::WriteSame { blocks, unmap: true, no_data: true };
        assert_eq!(unit.plan(A, same), Plan::WriteSame { range: rest, no_data: true, unmap: true });
        assert_eq!(unit.plan(A, Command::Prefetch(blocks)), Plan::Verify { range: rest, check: Check::Medium });
        assert_eq!(unit.plan(A, Command::Read(blocks)), Plan::Read(ByteRange { length: 0, ..rest }));
        let beyond = Blocks { lba: 4097, count: 0 };
        assert_eq!(unit.plan(A, Command::Prefetch(beyond)), Plan::Check(Sense::LBA_OUT_OF_RANGE));
        let status = |lba| Command::GetLbaStatus { lba, allocation: 24 };
        assert_eq!(unit.plan(A, status(4096)), Plan::Check(Sense::LBA_OUT_OF_RANGE));
        assert!(matches!(unit.plan(A, status(4095)), Plan::LbaStatus { length: BLOCK, most: 1, .. }));
    }

    #[test]
    fn atomic_writes_keep_to_their_granularity() {
        let mut unit = settled();
        let atomic = |lba, count| Command::WriteAtomic(Blocks { lba, count });
        assert!(matches!(unit.plan(A, atomic(8, 16)), Plan::WriteAtomic(_)));
        for (lba, count) in [(4, 8), (8, 4), (0, 256 + 8)] {
            assert_eq!(unit.plan(A, atomic(lba, count)), Plan::Check(Sense::INVALID_FIELD_IN_CDB), "{lba} {count}");
        }
    }

    #[test]
    fn a_cleared_task_set_is_told_to_those_whose_commands_were_in_it() {
        let mut unit = unit();
        for nexus in [A, B] {
            unit.attach(nexus, port(nexus));
            unit.plan(nexus, Command::TestUnitReady);
        }
        unit.cleared(&[B]);
        unit.cleared(&[B]);
        assert_eq!(unit.plan(A, Command::TestUnitReady), Plan::Done);
        assert_eq!(unit.plan(B, Command::TestUnitReady), Plan::Check(Sense::COMMANDS_CLEARED));
        assert_eq!(unit.plan(B, Command::TestUnitReady), Plan::Done);
    }

    #[test]
    fn a_new_capacity_is_told_to_all_and_holds_at_once() {
        let mut unit = unit();
        for nexus in [A, B] {
            unit.attach(nexus, port(nexus));
            unit.plan(nexus, Command::TestUnitReady);
        }
        unit.resize(4096 * BLOCK);
        assert_eq!(unit.plan(A, Command::TestUnitReady), Plan::Done, "nothing has changed");
        unit.resize(8192 * BLOCK);
        for nexus in [A, B] {
            assert_eq!(unit.plan(nexus, Command::TestUnitReady), Plan::Check(Sense::CAPACITY_CHANGED));
            let last = Command::Read(Blocks { lba: 8191, count: 1 });
            assert!(matches!(unit.plan(nexus, last), Plan::Read(_)));
        }
        assert_eq!((Sense::CAPACITY_CHANGED.asc, Sense::CAPACITY_CHANGED.ascq), (0x2A, 0x09));
    }

    #[test]
    fn little_space_is_told_once_to_who_is_there_and_to_who_comes_while_it_lasts() {
        let mut unit = unit();
        unit.attach(A, port(A));
        unit.plan(A, Command::TestUnitReady);
        unit.space_runs_low();
        assert_eq!(unit.plan(A, Command::TestUnitReady), Plan::Check(Sense::THRESHOLD_REACHED));
        unit.attach(B, port(B));
        for told in [Plan::Check(Sense::POWER_ON), Plan::Check(Sense::THRESHOLD_REACHED), Plan::Done] {
            assert_eq!(unit.plan(B, Command::TestUnitReady), told);
        }
        assert_eq!(unit.plan(A, Command::TestUnitReady), Plan::Done, "once is enough");
        unit.space_recovered();
        unit.attach(B, port(B));
        for told in [Plan::Check(Sense::POWER_ON), Plan::Done] {
            assert_eq!(unit.plan(B, Command::TestUnitReady), told);
        }
    }

    #[test]
    fn ranges_are_checked_before_anything_moves() {
        let mut unit = unit();
        let read = |lba, count| Command::Read(Blocks { lba, count });
        assert_eq!(unit.plan(A, read(4095, 1)), Plan::Read(ByteRange { offset: 4095 * BLOCK, length: BLOCK }));
        for (lba, count) in [(4095, 2), (4096, 1), (u64::MAX, 1)] {
            assert_eq!(unit.plan(A, read(lba, count)), Plan::Check(Sense::LBA_OUT_OF_RANGE));
        }
        assert_eq!(unit.plan(A, read(0, 2049)), Plan::Check(Sense::INVALID_FIELD_IN_CDB));
    }

    #[test]
    fn a_read_only_unit_refuses_every_kind_of_write() {
        let mut unit = LogicalUnit::new("t", 4096 * BLOCK, true);
        let blocks = Blocks { lba: 0, count: 1 };
        for command in [
            Command::Write { blocks, fua: false },
            Command::Unmap { parameters: 24 },
            Command::WriteSame { blocks, unmap: false, no_data: true },
            Command::WriteVerify(blocks),
            Command::WriteAtomic(blocks),
            Command::CompareAndWrite { blocks, fua: false },
            Command::OrWrite { blocks, fua: false },
            Command::BlockErase { immediate: false },
            Command::ExtendedCopy { parameters: 16 },
        ] {
            assert_eq!(unit.plan(A, command), Plan::Check(Sense::WRITE_PROTECTED));
        }
    }
}
