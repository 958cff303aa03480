//! A logical unit: plans commands, and remembers what each nexus must still be told.
//!
//! A small thing behind one mutex that its sessions share, never held across I/O.

use std::collections::{HashMap, VecDeque};

use super::command::{Blocks, Check, Command};
use super::inquiry::{self, Identity};
use super::sense::Sense;
use super::unmap::ByteRange;
use super::{BLOCK, MAX_TRANSFER_BLOCKS, MAX_WRITE_SAME_BLOCKS, mode, opcodes};

/// An initiator's relation to this logical unit: its session's number, unique while the process lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Nexus(pub u64);

/// Unit attentions that wait for one nexus. More than these few events cannot be told apart by an initiator anyway.
const MAX_ATTENTIONS: usize = 8;

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
    },
    /// Free the ranges of the parameter list to come, of this length.
    Unmap(u16),
    /// Make everything that was acknowledged durable.
    Flush,
    /// CHECK CONDITION.
    Check(Sense),
}

impl Plan {
    /// How much data the command takes from the initiator, in bytes.
    #[must_use]
    pub fn data_out(&self) -> u64 {
        match self {
            Self::Write { range, .. } | Self::Verify { range, check: Check::Data } => range.length,
            Self::Verify { range, check: Check::OneBlock } if range.length > 0 => BLOCK,
            Self::WriteSame { no_data: false, .. } => BLOCK,
            Self::Unmap(length) => u64::from(*length),
            _ => 0,
        }
    }
}

/// The state that a disk's sessions share.
#[derive(Debug)]
pub struct LogicalUnit {
    identity: Identity,
    blocks: u64,
    read_only: bool,
    attentions: HashMap<Nexus, VecDeque<Sense>>,
}

impl LogicalUnit {
    /// The unit that serves a disk of `size` bytes behind this target name.
    #[must_use]
    pub fn new(target: &str, size: u64, read_only: bool) -> Self {
        Self { identity: Identity::of_target(target), blocks: size / BLOCK, read_only, attentions: HashMap::new() }
    }

    /// Size in blocks.
    #[must_use]
    pub fn blocks(&self) -> u64 {
        self.blocks
    }

    /// A session begins. Its first command learns that the target may have been reset before it came (SAM-5 §5.14.1).
    pub fn attach(&mut self, nexus: Nexus) {
        self.attentions.insert(nexus, VecDeque::from([Sense::POWER_ON]));
    }

    /// A session ended.
    pub fn detach(&mut self, nexus: Nexus) {
        self.attentions.remove(&nexus);
    }

    /// The unit was reset by `actor`: every other nexus is told once.
    pub fn reset(&mut self, actor: Nexus) {
        self.tell(Sense::DEVICE_RESET, |nexus| nexus != actor);
    }

    /// The task set was cleared by another nexus: those whose commands were in it are told once.
    pub fn cleared(&mut self, theirs: &[Nexus]) {
        self.tell(Sense::COMMANDS_CLEARED, |nexus| theirs.contains(&nexus));
    }

    fn tell(&mut self, what: Sense, whom: impl Fn(Nexus) -> bool) {
        for (nexus, waiting) in &mut self.attentions {
            if whom(*nexus) && waiting.len() < MAX_ATTENTIONS && !waiting.contains(&what) {
                waiting.push_back(what);
            }
        }
    }

    /// The disk has `size` bytes from now on: every nexus is told once.
    pub fn resize(&mut self, size: u64) {
        if size / BLOCK != self.blocks {
            self.blocks = size / BLOCK;
            self.tell(Sense::CAPACITY_CHANGED, |_| true);
        }
    }

    /// What this command of this nexus needs done. A unit attention that waits is told first, but by the three
    /// commands that report none (SAM-5 §5.14.4).
    pub fn plan(&mut self, nexus: Nexus, command: Command) -> Plan {
        let silent =
            matches!(command, Command::Inquiry { .. } | Command::ReportLuns { .. } | Command::RequestSense { .. });
        if !silent && let Some(sense) = self.take_attention(nexus) {
            return Plan::Check(sense);
        }
        self.plan_now(nexus, command).unwrap_or_else(Plan::Check)
    }

    /// What a CDB with this operation code, which [`Command::parse`] refused, is answered: what the nexus must be told comes
    /// first.
    pub fn refuse(&mut self, nexus: Nexus, opcode: u8, why: Sense) -> Plan {
        let attention = if SILENT.contains(&opcode) { None } else { self.take_attention(nexus) };
        Plan::Check(attention.unwrap_or(why))
    }

    fn take_attention(&mut self, nexus: Nexus) -> Option<Sense> {
        self.attentions.get_mut(&nexus)?.pop_front()
    }

    fn plan_now(&mut self, nexus: Nexus, command: Command) -> Result<Plan, Sense> {
        Ok(match command {
            Command::TestUnitReady | Command::StartStop { load_eject: false } => Plan::Done,
            Command::StartStop { load_eject: true } => return Err(Sense::INVALID_FIELD_IN_CDB),
            Command::RequestSense { descriptor, allocation } => {
                let sense = self.take_attention(nexus).unwrap_or(Sense::NONE);
                let data = if descriptor { sense.descriptor() } else { sense.fixed().to_vec() };
                cut(data, allocation)
            }
            Command::Inquiry { page: None, allocation } => cut(inquiry::standard(true), allocation),
            Command::Inquiry { page: Some(code), allocation } => cut(inquiry::page(code, &self.identity)?, allocation),
            Command::ModeSense(request) => cut(mode::sense(request, self.blocks, self.read_only)?, request.allocation),
            Command::ReadCapacity10 => Plan::Data(inquiry::capacity10(self.blocks)),
            Command::ReadCapacity16 { allocation } => cut(inquiry::capacity16(self.blocks), allocation),
            Command::ReportLuns { select, allocation } => cut(report_luns(select)?, allocation),
            Command::ReportOpcodes { query, timeouts, allocation } => {
                cut(opcodes::report(query, timeouts)?, allocation)
            }
            Command::Read(blocks) => Plan::Read(self.range(blocks, MAX_TRANSFER_BLOCKS)?),
            Command::Write { blocks, fua } => {
                self.writable()?;
                Plan::Write { range: self.range(blocks, MAX_TRANSFER_BLOCKS)?, fua }
            }
            Command::Verify { blocks, check } => {
                Plan::Verify { range: self.range(blocks, MAX_TRANSFER_BLOCKS)?, check }
            }
            Command::SynchronizeCache(blocks) => {
                self.range(blocks, u32::MAX)?;
                Plan::Flush
            }
            Command::Unmap { parameters } => {
                self.writable()?;
                Plan::Unmap(parameters)
            }
            Command::WriteSame { blocks, unmap: _, no_data } => {
                self.writable()?;
                if blocks.count == 0 {
                    return Err(Sense::INVALID_FIELD_IN_CDB); // WSNZ
                }
                Plan::WriteSame { range: self.range(blocks, MAX_WRITE_SAME_BLOCKS)?, no_data }
            }
        })
    }

    fn writable(&self) -> Result<(), Sense> {
        if self.read_only { Err(Sense::WRITE_PROTECTED) } else { Ok(()) }
    }

    /// The bytes of these blocks, which must lie within the disk and be no more than `most`.
    fn range(&self, blocks: Blocks, most: u32) -> Result<ByteRange, Sense> {
        if blocks.lba.checked_add(blocks.count.into()).is_none_or(|end| end > self.blocks) {
            return Err(Sense::LBA_OUT_OF_RANGE);
        }
        if blocks.count > most {
            return Err(Sense::INVALID_FIELD_IN_CDB);
        }
        Ok(ByteRange { offset: blocks.lba * BLOCK, length: u64::from(blocks.count) * BLOCK })
    }
}

/// What a command to a logical unit that does not exist is answered (SPC-4 §6.6.2, §6.33; SAM-5 §5.11).
#[must_use]
pub fn plan_without_unit(command: Command) -> Plan {
    match command {
        Command::Inquiry { page: None, allocation } => cut(inquiry::standard(false), allocation),
        Command::ReportLuns { select, allocation } => match report_luns(select) {
            Ok(data) => cut(data, allocation),
            Err(sense) => Plan::Check(sense),
        },
        Command::RequestSense { descriptor, allocation } => {
            let sense = Sense::NO_SUCH_UNIT;
            cut(if descriptor { sense.descriptor() } else { sense.fixed().to_vec() }, allocation)
        }
        _ => Plan::Check(Sense::NO_SUCH_UNIT),
    }
}

fn cut(mut data: Vec<u8>, allocation: u32) -> Plan {
    data.truncate(usize::try_from(allocation).unwrap_or(usize::MAX));
    Plan::Data(data)
}

/// REPORT LUNS data: LUN 0 is all there is (SPC-4 §6.33).
fn report_luns(select: u8) -> Result<Vec<u8>, Sense> {
    let luns: u32 = match select {
        0x00 | 0x02 => 1,
        0x01 => 0, // well known logical units only
        _ => return Err(Sense::INVALID_FIELD_IN_CDB),
    };
    let length = luns * 8;
    let mut data = length.to_be_bytes().to_vec();
    data.resize(8 + length as usize, 0);
    Ok(data)
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: Nexus = Nexus(1);
    const B: Nexus = Nexus(2);

    fn unit() -> LogicalUnit {
        LogicalUnit::new("iqn.2026-11.internal.roost:pc-01", 4096 * BLOCK, false)
    }

    #[test]
    fn a_new_nexus_is_told_once_and_inquiry_does_not_take_it() {
        let mut unit = unit();
        unit.attach(A);
        assert!(
            matches!(unit.plan(A, Command::Inquiry { page: None, allocation: 36 }), Plan::Data(data) if data.len() == 36)
        );
        assert_eq!(unit.plan(A, Command::TestUnitReady), Plan::Check(Sense::POWER_ON));
        assert_eq!(unit.plan(A, Command::TestUnitReady), Plan::Done);
    }

    #[test]
    fn a_unit_attention_comes_before_the_refusal_of_a_cdb_but_for_the_three_that_report_none() {
        let mut unit = unit();
        unit.attach(A);
        for opcode in SILENT {
            assert_eq!(unit.refuse(A, opcode, Sense::INVALID_FIELD_IN_CDB), Plan::Check(Sense::INVALID_FIELD_IN_CDB));
        }
        assert_eq!(unit.refuse(A, 0xC1, Sense::INVALID_OPCODE), Plan::Check(Sense::POWER_ON));
        assert_eq!(unit.refuse(A, 0xC1, Sense::INVALID_OPCODE), Plan::Check(Sense::INVALID_OPCODE));
    }

    #[test]
    fn a_reset_is_told_to_the_others_only() {
        let mut unit = unit();
        for nexus in [A, B] {
            unit.attach(nexus);
            unit.plan(nexus, Command::TestUnitReady);
        }
        unit.reset(A);
        unit.reset(A);
        assert_eq!(unit.plan(A, Command::TestUnitReady), Plan::Done);
        assert_eq!(unit.plan(B, Command::TestUnitReady), Plan::Check(Sense::DEVICE_RESET));
        assert_eq!(unit.plan(B, Command::TestUnitReady), Plan::Done);
    }

    #[test]
    fn a_cleared_task_set_is_told_to_those_whose_commands_were_in_it() {
        let mut unit = unit();
        for nexus in [A, B] {
            unit.attach(nexus);
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
            unit.attach(nexus);
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
    fn ranges_are_checked_before_anything_moves() {
        let mut unit = unit();
        let read = |lba, count| Command::Read(Blocks { lba, count });
        assert_eq!(unit.plan(A, read(4095, 1)), Plan::Read(ByteRange { offset: 4095 * BLOCK, length: BLOCK }));
        for (lba, count) in [(4095, 2), (4096, 1), (u64::MAX, 1)] {
            assert_eq!(unit.plan(A, read(lba, count)), Plan::Check(Sense::LBA_OUT_OF_RANGE));
        }
        assert_eq!(unit.plan(A, read(0, MAX_TRANSFER_BLOCKS + 1)), Plan::Check(Sense::INVALID_FIELD_IN_CDB));
    }

    #[test]
    fn a_read_only_unit_refuses_every_kind_of_write() {
        let mut unit = LogicalUnit::new("t", 4096 * BLOCK, true);
        let blocks = Blocks { lba: 0, count: 1 };
        for command in [
            Command::Write { blocks, fua: false },
            Command::Unmap { parameters: 24 },
            Command::WriteSame { blocks, unmap: false, no_data: true },
        ] {
            assert_eq!(unit.plan(A, command), Plan::Check(Sense::WRITE_PROTECTED));
        }
    }
}
