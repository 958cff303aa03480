//! An initiator's end of the wire, a session at the other end, and a disk in memory behind it.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};

use bytes::BytesMut;

use super::super::*;
use crate::iscsi::frame;
use crate::iscsi::login::Who;
use crate::iscsi::pdu::{HEADER, padding};
use crate::scsi::{BLOCK, InitiatorPort, provisioning};

pub(super) const BLOCKS: u64 = 4096;
pub(super) const NEXUS: Nexus = Nexus(1);
pub(super) const CID: u16 = 1;
pub(super) const TARGET: &str = "iqn.2026-11.internal.roost:pc-01";
pub(super) const READ: u8 = 0x40;
pub(super) const WRITE: u8 = 0x20;
pub(super) const LUN_0: [u8; 8] = [0; 8];
pub(super) const LUN_1: [u8; 8] = [0, 1, 0, 0, 0, 0, 0, 0];
pub(super) const TEST_UNIT_READY: [u8; 6] = [0; 6];

/// Every PDU crosses as bytes, and of each one that the session sends the numbers are checked.
pub(super) struct Pair {
    pub(super) session: Session,
    pub(super) unit: Arc<Mutex<LogicalUnit>>,
    /// All units of the target, that one first.
    pub(super) units: Vec<Arc<Mutex<LogicalUnit>>>,
    pub(super) disk: Vec<u8>,
    /// What the disk has still to do, in the order in which it was asked.
    pub(super) pending: Vec<Effect>,
    pub(super) closed: bool,
    pub(super) params: Params,
    /// The next CmdSN.
    pub(super) cmd_sn: u32,
    /// The last MaxCmdSN.
    pub(super) max_cmd_sn: u32,
    stat_sn: u32,
    next_itt: u32,
    wire: Vec<u8>,
    inbox: VecDeque<Pdu>,
}

impl Pair {
    /// A session with its unit attention still to come.
    pub(super) fn fresh(params: Params, cmd_sn: u32, stat_sn: u32, target: Option<&str>) -> Self {
        let who = Who {
            initiator: format!("{TARGET}.client"),
            target: target.map(str::to_owned),
            isid: [0; 6],
            tsih: 1,
            cid: CID,
        };
        let mut unit = LogicalUnit::new(TARGET, BLOCKS * BLOCK, false);
        unit.attach(NEXUS, port());
        let unit = Arc::new(Mutex::new(unit));
        Self {
            session: Session::new(NEXUS, &Agreed { who, cid: CID, params: params.clone(), cmd_sn, stat_sn }),
            units: vec![Arc::clone(&unit)],
            unit,
            disk: pattern(0xA5, (BLOCKS * BLOCK) as usize),
            pending: Vec::new(),
            closed: false,
            params,
            cmd_sn,
            max_cmd_sn: cmd_sn,
            stat_sn,
            next_itt: 0x100,
            wire: Vec::new(),
            inbox: VecDeque::new(),
        }
    }

    /// A session whose initiator knows already that the unit was powered on.
    pub(super) fn ready(params: Params) -> Self {
        let mut pair = Self::fresh(params, u32::MAX - 3, u32::MAX - 1, Some(TARGET));
        pair.command(FINAL, 0, &TEST_UNIT_READY, &[]);
        assert_eq!(sense(&pair.one()), Some([6, 0x29, 0]));
        pair
    }

    pub(super) fn new_itt(&mut self) -> u32 {
        self.next_itt += 1;
        self.next_itt
    }

    /// Sends a PDU as it is.
    pub(super) fn raw(&mut self, header: Header, data: &[u8]) -> Result<(), ProtocolError> {
        let mut bytes = Vec::new();
        append(&mut bytes, header, data, self.params.digests);
        let mut input = BytesMut::from(&bytes[..]);
        let pdu = frame::next(&mut input, MAX_DATA_SEGMENT, self.params.digests).unwrap().expect("a whole PDU");
        let units = if self.session.discovery { &[] } else { &self.units[..] };
        let verdict = self.session.receive(pdu, units);
        self.pump();
        verdict
    }

    /// Sends a PDU that takes the next CmdSN.
    pub(super) fn numbered(&mut self, header: Header, data: &[u8]) {
        let header = header.with(24, self.cmd_sn).with(28, self.stat_sn);
        self.cmd_sn = self.cmd_sn.wrapping_add(1);
        self.raw(header, data).unwrap();
    }

    /// Sends a PDU for immediate delivery.
    pub(super) fn immediate(&mut self, mut header: Header, data: &[u8]) {
        header.0[0] |= 0x40;
        self.raw(header.with(24, self.cmd_sn).with(28, self.stat_sn), data).unwrap();
    }

    pub(super) fn header(itt: u32, flags: u8, lun: [u8; 8], expected: u32, cdb: &[u8]) -> Header {
        let mut header = Header::new(opcode::SCSI_COMMAND, flags).with(16, itt).with(20, expected);
        header.set_lun(lun);
        header.0[32..32 + cdb.len()].copy_from_slice(cdb);
        header
    }

    /// Sends a SCSI command to LUN 0; returns its ITT.
    pub(super) fn command(&mut self, flags: u8, expected: u32, cdb: &[u8], data: &[u8]) -> u32 {
        let itt = self.new_itt();
        self.numbered(Self::header(itt, flags, LUN_0, expected, cdb), data);
        itt
    }

    pub(super) fn data_out(&mut self, itt: u32, ttt: u32, data_sn: u32, offset: u32, last: bool, data: &[u8]) {
        let header = Header::new(opcode::DATA_OUT, if last { FINAL } else { 0 });
        self.raw(header.with(16, itt).with(20, ttt).with(36, data_sn).with(40, offset), data).unwrap();
    }

    /// Sends an immediate task management function; returns its ITT.
    pub(super) fn function(&mut self, function: u8, referenced: u32, lun: [u8; 8]) -> u32 {
        let itt = self.new_itt();
        let mut header = Header::new(opcode::TASK_MANAGEMENT, FINAL | function).with(16, itt).with(20, referenced);
        header.set_lun(lun);
        self.immediate(header, &[]);
        itt
    }

    /// Stops what the disk was to do for these tasks.
    pub(super) fn stop(&mut self, tasks: &[TaskId]) {
        self.pending.retain(|effect| task_of(effect).is_none_or(|id| !tasks.contains(&id)));
    }

    /// Takes up the session's effects and its output.
    pub(super) fn pump(&mut self) {
        while let Some(effect) = self.session.next_effect() {
            match effect {
                Effect::Close => self.closed = true,
                Effect::Abort(abort) => {
                    self.stop(&abort.tasks);
                    self.pending.push(Effect::Abort(abort));
                }
                effect => self.pending.push(effect),
            }
        }
        self.wire.append(self.session.output());
        let bytes = std::mem::take(&mut self.wire);
        let mut input = BytesMut::from(&bytes[..]);
        while !input.is_empty() {
            let start = bytes.len() - input.len();
            let pdu = frame::next(&mut input, self.params.initiator_segment, self.params.digests)
                .unwrap()
                .expect("whole PDUs are sent");
            assert!(pdu.intact, "digests are right");
            let end = start + HEADER + self.params.digests.of_header() + pdu.data.len();
            assert!(bytes[end..end + padding(pdu.data.len())].iter().all(|byte| *byte == 0), "padding is zero");
            self.check_numbers(&pdu.header);
            self.inbox.push_back(pdu);
        }
    }

    fn check_numbers(&mut self, header: &Header) {
        let counts = match header.opcode() {
            opcode::R2T => false,
            opcode::DATA_IN => header.flags() & 0x01 != 0,
            opcode::NOP_IN => header.itt() != NO_TAG,
            _ => true,
        };
        assert_eq!(header.word(24), self.stat_sn, "StatSN of {header:02x?}");
        self.stat_sn = self.stat_sn.wrapping_add(counts.into());
        assert_eq!(header.word(28), self.cmd_sn, "ExpCmdSN of {header:02x?}");
        let max = header.word(32);
        assert!(max.wrapping_sub(self.max_cmd_sn) < 1 << 31, "MaxCmdSN moves on from {} to {max}", self.max_cmd_sn);
        assert!(max.wrapping_sub(self.cmd_sn).wrapping_add(1) <= WINDOW, "a window of {max} after {}", self.cmd_sn);
        self.max_cmd_sn = max;
    }

    /// What came since the last time.
    pub(super) fn take(&mut self) -> Vec<Pdu> {
        self.inbox.drain(..).collect()
    }

    pub(super) fn one(&mut self) -> Pdu {
        let mut pdus = self.take();
        assert_eq!(pdus.len(), 1, "one answer: {pdus:02x?}");
        pdus.remove(0)
    }

    /// Nothing came.
    pub(super) fn silence(&mut self) {
        let pdus = self.take();
        assert!(pdus.is_empty(), "no answer: {pdus:02x?}");
    }

    /// Does all that the disk has to do, in order.
    pub(super) fn run(&mut self) {
        while !self.pending.is_empty() {
            self.execute(0);
        }
    }

    /// Does one thing that the disk has to do.
    pub(super) fn execute(&mut self, index: usize) {
        let effect = self.pending.remove(index);
        let at = |offset: u64| usize::try_from(offset).unwrap();
        let bytes = |range: ByteRange| at(range.offset)..at(range.offset + range.length);
        match effect {
            Effect::Read(id, range) => {
                let layout = self.session.layout(id).expect("a read has a layout");
                assert!(range.length > 0 && range.length.is_multiple_of(BLOCK), "whole blocks");
                let mut buffer = vec![0xEE; layout.wire_length()];
                let mut source = &self.disk[bytes(range)];
                for mut slice in layout.slices(&mut buffer) {
                    let (now, rest) = source.split_at(slice.len());
                    slice.copy_from_slice(now);
                    source = rest;
                }
                assert!(source.len() < BLOCK as usize, "no block is read for nothing");
                self.wire.append(self.session.output());
                assert!(self.session.data_in(id, &mut buffer));
                self.wire.extend(buffer);
            }
            Effect::Write { task, offset, data, .. }
            | Effect::WriteAtomic { task, offset, data, .. }
            | Effect::WriteVerify { task, offset, data } => {
                let data = data.concat();
                assert!(!data.is_empty() && (data.len() as u64).is_multiple_of(BLOCK), "whole blocks");
                self.disk[at(offset)..at(offset) + data.len()].copy_from_slice(&data);
                self.session.complete(task, Ok(()));
            }
            Effect::Verify { task, range, expected, repeat } => {
                let expected = expected.concat();
                let found = &self.disk[bytes(range)];
                let expected = if repeat { expected.repeat(found.len() / expected.len()) } else { expected };
                let differs = found.iter().zip(&expected).position(|(a, b)| a != b);
                self.session.complete(task, differs.map_or(Ok(()), |at| Err(Sense::miscompare(at))));
            }
            Effect::Zero(task, ranges) => {
                ranges.into_iter().for_each(|range| self.disk[bytes(range)].fill(0));
                self.session.complete(task, Ok(()));
            }
            Effect::Fill(task, range, block) => {
                self.disk[bytes(range)].chunks_mut(block.len()).for_each(|chunk| chunk.copy_from_slice(&block));
                self.session.complete(task, Ok(()));
            }
            Effect::Or { task, offset, data, .. } => {
                let data = data.concat();
                self.disk[at(offset)..at(offset) + data.len()].iter_mut().zip(&data).for_each(|(old, new)| *old |= new);
                self.session.complete(task, Ok(()));
            }
            Effect::CompareAndWrite { task, offset, data, .. } => {
                let data = data.concat();
                let (expected, new) = data.split_at(data.len() / 2);
                let there = &mut self.disk[at(offset)..at(offset) + new.len()];
                let differs = there.iter().zip(expected).position(|(a, b)| a != b);
                if differs.is_none() {
                    there.copy_from_slice(new);
                }
                self.session.complete(task, differs.map_or(Ok(()), |at| Err(Sense::miscompare(at))));
            }
            Effect::Erase(task, range) => {
                self.disk[bytes(range)].fill(0);
                self.unit.lock().unwrap().sanitized();
                self.session.complete(task, Ok(()));
            }
            Effect::Copy(task, copy) => {
                for range in copy.ranges {
                    self.disk.copy_within(bytes(ByteRange { offset: range.from, length: range.length }), at(range.to));
                }
                self.unit.lock().unwrap().copied(NEXUS, copy.list, true);
                self.session.complete(task, Ok(()));
            }
            Effect::Provisioning { task, range, .. } => {
                self.session.answer(task, provisioning::resources(range.length));
            }
            Effect::Reserved { task, .. } => self.session.complete(task, Ok(())),
            Effect::Flush(task) => self.session.complete(task, Ok(())),
            Effect::Abort(Abort { request, scope, .. }) => {
                if matches!(scope, Scope::Unit(_) | Scope::Units | Scope::Sessions) {
                    self.unit.lock().unwrap().reset();
                }
                self.session.aborted(request, scope);
            }
            Effect::SendTargets(Which::All) => {
                let names: Vec<_> = (0..40).map(|number| format!("{TARGET}-{number}")).collect();
                self.session.targets(&names, &["192.0.2.1:3260,1".to_owned()]);
            }
            Effect::SendTargets(Which::One(name)) => {
                let names = if name.is_empty() { vec![TARGET.to_owned()] } else { vec![name] };
                self.session.targets(&names, &["192.0.2.1:3260,1".to_owned()]);
            }
            Effect::Close => unreachable!("taken up before"),
        }
        self.pump();
    }
}

/// The initiator port of the session under test.
pub(super) fn port() -> InitiatorPort {
    InitiatorPort { name: "iqn.2026-11.internal.roost:client.pc-01".to_owned(), isid: [0, 2, 61, 0, 0, 1] }
}

/// Data that differs from one place to the next, and from seed to seed.
pub(super) fn pattern(seed: u8, length: usize) -> Vec<u8> {
    let mut data = vec![seed; length];
    for (number, chunk) in data.chunks_mut(256).enumerate() {
        chunk[0] ^= number as u8;
        chunk[chunk.len() / 2] ^= (number >> 8) as u8;
    }
    data
}

pub(super) fn task_of(effect: &Effect) -> Option<TaskId> {
    match effect {
        Effect::Read(id, _) | Effect::Zero(id, _) | Effect::Fill(id, ..) | Effect::Flush(id) => Some(*id),
        Effect::Erase(id, _) | Effect::Copy(id, _) => Some(*id),
        Effect::Write { task, .. }
        | Effect::WriteAtomic { task, .. }
        | Effect::WriteVerify { task, .. }
        | Effect::Or { task, .. }
        | Effect::CompareAndWrite { task, .. }
        | Effect::Provisioning { task, .. }
        | Effect::Reserved { task, .. }
        | Effect::Verify { task, .. } => Some(*task),
        Effect::Abort(_) | Effect::SendTargets(_) | Effect::Close => None,
    }
}

/// The sense key and code of a SCSI Response; `None` if its status is GOOD.
pub(super) fn sense(pdu: &Pdu) -> Option<[u8; 3]> {
    assert_eq!(pdu.header.opcode(), opcode::SCSI_RESPONSE, "{pdu:02x?}");
    assert_eq!(pdu.header.0[2], 0, "completed at the target");
    match pdu.header.0[3] {
        0 => {
            assert!(pdu.data.is_empty(), "GOOD has no sense data");
            None
        }
        2 => {
            assert_eq!(pdu.data[..2], [0, 18], "the length of the sense data");
            Some([pdu.data[4] & 0x0F, pdu.data[14], pdu.data[15]])
        }
        status => panic!("status {status:02x}"),
    }
}

/// Residual of a response: positive for underflow, negative for overflow.
pub(super) fn residual(header: &Header) -> i64 {
    let count = i64::from(header.word(44));
    match header.flags() & 0x06 {
        0 => {
            assert_eq!(count, 0, "no residual without U or O");
            0
        }
        2 => count,
        4 => -count,
        _ => panic!("U and O"),
    }
}

pub(super) fn ten(opcode: u8, lba: u32, count: u16) -> [u8; 10] {
    let mut cdb = [0; 10];
    cdb[0] = opcode;
    cdb[2..6].copy_from_slice(&lba.to_be_bytes());
    cdb[7..9].copy_from_slice(&count.to_be_bytes());
    cdb
}
