//! Any sequence of commands, of any shape that was agreed on, against a model that knows what each answer must be.

use std::collections::HashMap;

use proptest::prelude::*;
use proptest::sample::Index;

use super::super::*;
use super::pair::*;
use crate::scsi::BLOCK;

/// What a command is to do.
#[derive(Debug, Clone)]
enum Kind {
    Read {
        lba: u32,
        count: u16,
    },
    Write {
        lba: u32,
        count: u16,
    },
    Verify {
        lba: u32,
        count: u16,
        one: bool,
    },
    WriteSame {
        lba: u32,
        count: u16,
        no_data: bool,
        unmap: bool,
    },
    Unmap(Vec<(u32, u16)>),
    Flush,
    Ready,
    /// REPORT LUNS with this allocation length.
    Luns {
        allocation: u32,
    },
}

/// How its data is announced and sent.
#[derive(Debug, Clone, Copy)]
struct Shape {
    /// What the initiator expects to move beyond (or short of) what the CDB says.
    extra: i32,
    /// R or W is set.
    announced: bool,
    /// Most immediate data.
    immediate: u32,
    /// Unsolicited Data-Out PDUs are used where they are allowed.
    unsolicited: bool,
    /// Data per Data-Out PDU.
    chunk: usize,
}

const PLAIN: Shape = Shape { extra: 0, announced: true, immediate: u32::MAX, unsolicited: true, chunk: 8192 };

/// A command without an answer.
#[derive(Debug)]
struct Issued {
    kind: Kind,
    /// What moves by the CDB, and what the initiator expects to move.
    moves: u32,
    expected: u32,
    data: Bytes,
    chunk: usize,
    /// Data that was sent or asked for, in bytes.
    covered: u32,
    r2t_sn: u32,
    data_sn: u32,
    received: Vec<u8>,
}

/// Data-Out PDUs that the initiator has still to send.
struct Sequence {
    itt: u32,
    ttt: u32,
    at: usize,
    end: usize,
    data_sn: u32,
    chunk: usize,
    data: Bytes,
}

struct Model {
    pair: Pair,
    disk: Vec<u8>,
    live: HashMap<u32, Issued>,
    functions: HashMap<u32, u8>,
    echoes: HashMap<u32, Vec<u8>>,
    sequences: Vec<Sequence>,
    answered: usize,
    /// Resets that the initiator was not told of yet.
    resets: usize,
}

fn bytes_of(lba: u32, length: usize) -> std::ops::Range<usize> {
    let start = lba as usize * BLOCK as usize;
    start..start + length
}

impl Model {
    fn new(params: Params, cmd_sn: u32, stat_sn: u32) -> Self {
        let mut pair = Pair::fresh(params, cmd_sn, stat_sn, Some(TARGET));
        pair.command(FINAL, 0, &TEST_UNIT_READY, &[]);
        assert_eq!(sense(&pair.one()), Some([6, 0x29, 0]));
        let disk = pair.disk.clone();
        Self {
            pair,
            disk,
            live: HashMap::new(),
            functions: HashMap::new(),
            echoes: HashMap::new(),
            sequences: Vec::new(),
            answered: 0,
            resets: 0,
        }
    }

    fn issue(&mut self, kind: Kind, shape: Shape, fill: u8) -> u32 {
        self.make_room();
        let bytes = |count: u16| u32::from(count) * BLOCK as u32;
        let (cdb, moves, flag) = match &kind {
            Kind::Read { lba, count } => (ten(0x28, *lba, *count).to_vec(), bytes(*count), READ),
            Kind::Write { lba, count } => (ten(0x2A, *lba, *count).to_vec(), bytes(*count), WRITE),
            Kind::Verify { lba, count, one } => {
                let mut cdb = ten(0x2F, *lba, *count);
                cdb[1] = if *one { 6 } else { 2 };
                (cdb.to_vec(), bytes(if *one { (*count).min(1) } else { *count }), WRITE)
            }
            Kind::WriteSame { lba, count, no_data, unmap } => {
                let mut cdb = vec![0x93, u8::from(*no_data) | u8::from(*unmap) << 3, 0, 0, 0, 0];
                cdb.extend(lba.to_be_bytes());
                cdb.extend(u32::from(*count).to_be_bytes());
                cdb.extend([0, 0]);
                (cdb, bytes(u16::from(!*no_data)), WRITE)
            }
            Kind::Unmap(ranges) => {
                let length = u16::try_from(8 + 16 * ranges.len()).unwrap();
                (ten(0x42, 0, length).to_vec(), length.into(), WRITE)
            }
            Kind::Flush => (ten(0x35, 0, 0).to_vec(), 0, 0),
            Kind::Ready => (TEST_UNIT_READY.to_vec(), 0, 0),
            Kind::Luns { allocation } => {
                let mut cdb = vec![0xA0, 0, 0, 0, 0, 0];
                cdb.extend(allocation.to_be_bytes());
                cdb.extend([0, 0]);
                (cdb, 16.min(*allocation), READ)
            }
        };
        let whole = matches!(kind, Kind::Unmap(_)) || flag == 0;
        let flag = if shape.announced || whole { flag } else { 0 };
        let expected = match flag {
            0 => 0,
            _ if whole => moves,
            _ => moves.saturating_add_signed(shape.extra),
        };
        let data = match &kind {
            _ if flag != WRITE => Bytes::new(),
            Kind::Unmap(ranges) => {
                let length = u16::try_from(16 * ranges.len()).unwrap();
                let mut list = [(length + 6).to_be_bytes(), length.to_be_bytes(), [0; 2], [0; 2]].concat();
                for (lba, count) in ranges {
                    list.extend(u64::from(*lba).to_be_bytes());
                    list.extend(u32::from(*count).to_be_bytes());
                    list.extend([0; 4]);
                }
                list.into()
            }
            // Half of the comparisons succeed.
            Kind::Verify { lba, .. } if fill.is_multiple_of(2) => {
                let end = self.disk.len().min(bytes_of(*lba, expected as usize).end);
                let mut data = self.disk[bytes_of(*lba, 0).start..end].to_vec();
                data.resize(expected as usize, 0);
                data.into()
            }
            Kind::WriteSame { .. } if fill.is_multiple_of(2) => vec![0; expected as usize].into(),
            _ => pattern(fill, expected as usize).into(),
        };
        let params = &self.pair.params;
        let first = params.first_burst.min(expected) as usize;
        let immediate = if params.immediate_data && flag == WRITE { first.min(shape.immediate as usize) } else { 0 };
        let more = flag == WRITE && shape.unsolicited && !params.initial_r2t && immediate < first;
        let covered = if more { first } else { immediate };

        let itt = self.pair.new_itt();
        if more {
            let (ttt, data) = (NO_TAG, data.clone());
            self.sequences.push(Sequence { itt, ttt, at: immediate, end: first, data_sn: 0, chunk: shape.chunk, data });
        }
        let issued = Issued {
            kind,
            moves,
            expected,
            data: data.clone(),
            chunk: shape.chunk,
            covered: u32::try_from(covered).unwrap(),
            r2t_sn: 0,
            data_sn: 0,
            received: Vec::new(),
        };
        self.live.insert(itt, issued);
        let flags = flag | if more { 0 } else { FINAL };
        self.pair.numbered(Pair::header(itt, flags, LUN_0, expected, &cdb), &data[..immediate]);
        self.absorb();
        itt
    }

    fn make_room(&mut self) {
        while self.pair.max_cmd_sn.wrapping_add(1) == self.pair.cmd_sn {
            if !self.step() {
                self.nop(0);
            }
        }
    }

    fn nop(&mut self, length: usize) {
        let itt = self.pair.new_itt();
        let data = vec![itt as u8; length];
        self.echoes.insert(itt, data[..length.min(self.pair.params.initiator_segment as usize & !3)].to_vec());
        self.pair.immediate(Header::new(opcode::NOP_OUT, FINAL).with(16, itt).with(20, NO_TAG), &data);
        self.absorb();
    }

    fn abort(&mut self, itt: u32) {
        let expected = u8::from(self.live.remove(&itt).is_none());
        let request = self.pair.function(1, itt, LUN_0);
        self.functions.insert(request, expected);
        self.absorb();
    }

    fn reset(&mut self) {
        self.live.clear();
        let request = self.pair.function(5, NO_TAG, LUN_0);
        let at_work = self.pair.pending.iter().filter(|effect| matches!(effect, Effect::Abort(_))).count();
        self.functions.insert(request, 0);
        self.resets += 1;
        assert!(at_work <= MAX_FUNCTIONS);
        self.absorb();
    }

    fn reset_by_another(&mut self) {
        self.live.clear();
        let stopped = self.pair.session.abort_all(None);
        self.pair.stop(&stopped);
        self.pair.pump();
        self.absorb();
    }

    /// Sends one Data-Out PDU.
    fn send_part(&mut self, index: usize) {
        let sequence = &mut self.sequences[index];
        let now = sequence.chunk.min(sequence.end - sequence.at);
        let last = sequence.at + now == sequence.end;
        let (itt, ttt, data_sn, at, data) =
            (sequence.itt, sequence.ttt, sequence.data_sn, sequence.at, sequence.data.clone());
        sequence.at += now;
        sequence.data_sn += 1;
        if last {
            self.sequences.swap_remove(index);
        }
        self.pair.data_out(itt, ttt, data_sn, u32::try_from(at).unwrap(), last, &data[at..at + now]);
        self.absorb();
    }

    fn execute(&mut self, index: usize) {
        self.pair.execute(index);
        self.absorb();
    }

    fn step(&mut self) -> bool {
        if !self.pair.pending.is_empty() {
            self.execute(0);
        } else if !self.sequences.is_empty() {
            self.send_part(0);
        } else {
            return false;
        }
        true
    }

    /// Lets everything come to its end, and looks for what is left.
    fn settle(&mut self) {
        while self.step() {}
        assert!(self.live.is_empty(), "no answer to {:?}", self.live);
        assert!(self.functions.is_empty() && self.echoes.is_empty());
        assert!(self.disk == self.pair.disk, "the disk holds what was written");
        let session = &self.pair.session;
        assert_eq!((session.tasks(), session.by_id.len(), session.waiting_for_r2t.len()), (0, 0, 0));
        assert_eq!((session.solicited, session.functions), (0, 0));
        self.nop(0);
        assert_eq!(self.pair.max_cmd_sn.wrapping_sub(self.pair.cmd_sn), WINDOW - 1, "the window is open again");
    }

    fn absorb(&mut self) {
        for pdu in self.pair.take() {
            let (header, itt) = (pdu.header, pdu.header.itt());
            match header.opcode() {
                opcode::R2T => self.ready_to_transfer(&header),
                opcode::DATA_IN => self.data_in(&pdu),
                opcode::SCSI_RESPONSE => {
                    let issued = self.live.remove(&itt).expect("one response to a command that was not aborted");
                    assert_eq!(header.word(36), issued.r2t_sn, "ExpDataSN counts R2Ts");
                    assert_eq!(issued.data_sn, 0, "GOOD comes with the data");
                    self.judge(&issued, sense(&pdu), residual(&header));
                }
                opcode::TASK_MANAGEMENT_RESPONSE => {
                    assert_eq!(self.functions.remove(&itt), Some(header.0[2]), "{header:02x?}");
                }
                opcode::NOP_IN => {
                    assert_eq!(self.echoes.remove(&itt).as_deref(), Some(&pdu.data[..]));
                    assert_eq!(header.word(20), NO_TAG);
                }
                _ => panic!("{pdu:02x?}"),
            }
        }
    }

    fn ready_to_transfer(&mut self, header: &Header) {
        let (itt, ttt, offset, length) = (header.itt(), header.word(20), header.word(40), header.word(44));
        let issued = self.live.get_mut(&itt).expect("an R2T of a command that is not aborted");
        assert_eq!(header.lun(), LUN_0);
        assert_eq!(header.word(36), issued.r2t_sn, "R2TSN");
        assert_eq!(offset, issued.covered, "data is asked for in order");
        assert!(length > 0 && length <= self.pair.params.max_burst, "a burst of {length}");
        assert!(offset + length <= issued.moves.min(issued.expected), "no more than there is");
        let open = |sequence: &Sequence| sequence.itt == itt || sequence.ttt == ttt;
        assert!(ttt != NO_TAG && !self.sequences.iter().any(open), "one R2T of a task at a time");
        issued.r2t_sn += 1;
        issued.covered += length;
        let (at, end) = (offset as usize, (offset + length) as usize);
        self.sequences.push(Sequence { itt, ttt, at, end, data_sn: 0, chunk: issued.chunk, data: issued.data.clone() });
    }

    fn data_in(&mut self, pdu: &Pdu) {
        let (header, itt) = (pdu.header, pdu.header.itt());
        let issued = self.live.get_mut(&itt).expect("data of a command that was not aborted");
        assert_eq!(header.word(36), issued.data_sn, "DataSN");
        assert_eq!(header.word(40) as usize, issued.received.len(), "data is continuous");
        assert_eq!(header.word(20), NO_TAG);
        issued.data_sn += 1;
        issued.received.extend_from_slice(&pdu.data);
        let burst = self.pair.params.max_burst as usize;
        let (before, after) = (header.word(40) as usize, issued.received.len());
        assert_eq!(before / burst, (after - 1) / burst, "a PDU lies within one burst");
        let status = header.flags() & 0x01 != 0;
        assert_eq!(header.last(), status || after.is_multiple_of(burst), "F ends a burst");
        if status {
            assert_eq!(header.0[3], 0, "GOOD");
            let issued = self.live.remove(&itt).unwrap();
            self.judge(&issued, None, residual(&header));
        } else {
            assert_eq!(header.flags() & 0x7F, 0);
            assert_eq!(residual(&header), 0);
        }
    }

    /// Compares an answer with what it must be on the disk as it is now, which then changes as the command says.
    fn judge(&mut self, issued: &Issued, sense: Option<[u8; 3]>, residual: i64) {
        self.answered += 1;
        // Whoever resets the unit is told by its next command, which is not done; but REPORT LUNS always is.
        if sense == Some([6, 0x29, 0x03]) {
            assert!(!matches!(issued.kind, Kind::Luns { .. }) && self.resets > 0, "{issued:?}");
            self.resets -= 1;
            return;
        }
        let block = BLOCK as usize;
        let moved = issued.moves.min(issued.expected) as usize;
        let whole = moved - moved % block;
        let inside = |lba: u32, count: u16| u64::from(lba) + u64::from(count) <= BLOCKS;
        let (mut must, mut data) = (None, &[][..]);
        match &issued.kind {
            Kind::Read { lba, count }
            | Kind::Write { lba, count }
            | Kind::Verify { lba, count, .. }
            | Kind::WriteSame { lba, count, .. }
                if !inside(*lba, *count) =>
            {
                must = Some([5, 0x21, 0]);
            }
            Kind::Read { lba, .. } => data = &self.disk[bytes_of(*lba, moved)],
            Kind::Write { lba, .. } => self.disk[bytes_of(*lba, whole)].copy_from_slice(&issued.data[..whole]),
            Kind::Verify { lba, one: false, .. } => {
                if self.disk[bytes_of(*lba, whole)] != issued.data[..whole] {
                    must = Some([0xE, 0x1D, 0]);
                }
            }
            Kind::Verify { lba, count, one: true } => {
                let found = &self.disk[bytes_of(*lba, usize::from(*count) * block)];
                if whole > 0 && found.chunks(block).any(|found| found != &issued.data[..block]) {
                    must = Some([0xE, 0x1D, 0]);
                }
            }
            Kind::WriteSame { lba, count, no_data, unmap } => {
                let end = if *count == 0 { self.disk.len() } else { bytes_of(*lba + u32::from(*count), 0).start };
                let found = &mut self.disk[bytes_of(*lba, 0).start..end];
                if *no_data || found.is_empty() {
                    found.fill(0);
                } else if issued.expected as usize != block {
                    must = Some([5, 0x24, 0]);
                } else if *unmap {
                    found.fill(0);
                } else {
                    found.chunks_mut(block).for_each(|found| found.copy_from_slice(&issued.data[..block]));
                }
            }
            Kind::Unmap(ranges) if ranges.iter().any(|(lba, count)| !inside(*lba, *count)) => {
                must = Some([5, 0x21, 0]);
            }
            Kind::Unmap(ranges) => {
                for (lba, count) in ranges {
                    self.disk[bytes_of(*lba, usize::from(*count) * block)].fill(0);
                }
            }
            Kind::Flush | Kind::Ready => {}
            Kind::Luns { .. } => data = &[0, 0, 0, 8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0][..moved],
        }
        assert_eq!(sense, must, "{issued:?}");
        assert!(issued.received == data, "the data of {:?}", issued.kind);
        let left = i64::from(issued.expected) - if must.is_none() { i64::from(issued.moves) } else { 0 };
        assert_eq!(residual, left, "{issued:?}");
    }
}

#[derive(Debug, Clone)]
enum Action {
    Issue(Kind, Shape, u8),
    Execute(Index),
    Send(Index),
    Nop(usize),
    Abort(Index),
    AbortGone,
    Reset,
    ResetByAnother,
}

fn actions(kinds: BoxedStrategy<Kind>, shapes: BoxedStrategy<Shape>) -> impl Strategy<Value = Action> {
    prop_oneof![
        12 => (kinds, shapes, any::<u8>()).prop_map(|(kind, shape, fill)| Action::Issue(kind, shape, fill)),
        8 => any::<Index>().prop_map(Action::Execute),
        12 => any::<Index>().prop_map(Action::Send),
        1 => (0_usize..2000).prop_map(Action::Nop),
        2 => any::<Index>().prop_map(Action::Abort),
        1 => Just(Action::AbortGone),
        1 => Just(Action::Reset),
        1 => Just(Action::ResetByAnother),
    ]
}

/// Commands of a few blocks, now and then beyond the end of the disk.
fn small_kinds() -> BoxedStrategy<Kind> {
    let last = u32::try_from(BLOCKS).unwrap();
    let lba = prop_oneof![8 => 0..40_u32, 1 => last - 30..last];
    let range = (lba, 0_u16..40);
    prop_oneof![
        4 => range.clone().prop_map(|(lba, count)| Kind::Read { lba, count }),
        5 => range.clone().prop_map(|(lba, count)| Kind::Write { lba, count }),
        2 => (range.clone(), any::<bool>()).prop_map(|((lba, count), one)| Kind::Verify { lba, count, one }),
        2 => (range.clone(), any::<bool>(), any::<bool>())
            .prop_map(|((lba, count), no_data, unmap)| Kind::WriteSame { lba, count, no_data, unmap }),
        2 => prop::collection::vec(range, 0..40).prop_map(Kind::Unmap),
        1 => Just(Kind::Flush),
        1 => Just(Kind::Ready),
        1 => (0_u32..40).prop_map(|allocation| Kind::Luns { allocation }),
    ]
    .boxed()
}

fn shapes() -> BoxedStrategy<Shape> {
    let extra = prop_oneof![6 => Just(0), 1 => -1200..1200_i32, 1 => Just(512), 1 => Just(-512)];
    let announced = prop::bool::weighted(0.9);
    let immediate = prop_oneof![Just(0), Just(u32::MAX), 0..20_000_u32];
    let chunk = prop_oneof![Just(512_usize), Just(8192), 300..9000_usize];
    (extra, announced, immediate, any::<bool>(), chunk)
        .prop_map(|(extra, announced, immediate, unsolicited, chunk)| Shape {
            extra,
            announced,
            immediate,
            unsolicited,
            chunk,
        })
        .boxed()
}

fn params() -> impl Strategy<Value = Params> {
    let length = || prop_oneof![Just(512_u32), 512..5000_u32, 5000..70_000_u32, Just(262_144)];
    let digests = (any::<bool>(), any::<bool>()).prop_map(|(header, data)| Digests { header, data });
    (any::<bool>(), any::<bool>(), length(), length(), length(), digests).prop_map(
        |(initial_r2t, immediate_data, initiator_segment, max_burst, first, digests)| Params {
            initial_r2t,
            immediate_data,
            initiator_segment,
            max_burst,
            first_burst: first.min(max_burst),
            max_r2t: 1,
            digests,
        },
    )
}

fn play(model: &mut Model, actions: Vec<Action>) {
    for action in actions {
        let at = |index: Index, length: usize| (length > 0).then(|| index.index(length));
        match action {
            Action::Issue(kind, shape, fill) => {
                model.issue(kind, shape, fill);
            }
            Action::Execute(index) => {
                at(index, model.pair.pending.len()).into_iter().for_each(|index| model.execute(index));
            }
            Action::Send(index) => {
                at(index, model.sequences.len()).into_iter().for_each(|index| model.send_part(index));
            }
            Action::Nop(length) => model.nop(length),
            _ if model.functions.len() >= MAX_FUNCTIONS => {}
            Action::Abort(index) => {
                let mut tags: Vec<u32> = model.live.keys().copied().collect();
                tags.sort_unstable();
                at(index, tags.len()).into_iter().for_each(|index| model.abort(tags[index]));
            }
            Action::AbortGone => model.abort(0x50),
            Action::Reset => model.reset(),
            Action::ResetByAnother => model.reset_by_another(),
        }
    }
    model.settle();
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 192, ..ProptestConfig::default() })]

    #[test]
    fn whatever_an_initiator_does_the_disk_and_every_answer_are_as_the_model_says(
        params in params(),
        start: (u32, u32),
        actions in prop::collection::vec(actions(small_kinds(), shapes()), 1..120),
    ) {
        play(&mut Model::new(params, start.0, start.1), actions);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn large_writes_take_turns_and_all_of_them_end(
        burst in 60_000_u32..1_048_576,
        actions in prop::collection::vec(
            actions(
                (0..2048_u32, 900_u16..2049).prop_map(|(lba, count)| Kind::Write { lba, count }).boxed(),
                Just(Shape { chunk: 262_144, ..PLAIN }).boxed(),
            ),
            1..60,
        ),
    ) {
        let params = Params { max_burst: burst, first_burst: 4096, ..Params::default() };
        play(&mut Model::new(params, 0, 0), actions);
    }
}

#[test]
fn what_is_written_in_any_agreed_way_is_read_back_in_any() {
    for bits in 0..0b10_0000_u32 {
        let bit = |at: u32, zero: u32, one: u32| if bits >> at & 1 == 0 { zero } else { one };
        let max_burst = bit(3, 262_144, 4608);
        let params = Params {
            initial_r2t: bits & 1 == 0,
            immediate_data: bits & 2 == 0,
            first_burst: bit(2, 65_536, 1000).min(max_burst),
            max_burst,
            initiator_segment: bit(4, 262_144, 8192),
            max_r2t: 1,
            digests: Digests { header: bits & 4 == 0, data: bits & 8 == 0 },
        };
        let mut model = Model::new(params, 7, 9);
        for (immediate, unsolicited) in [(0, false), (0, true), (u32::MAX, false), (u32::MAX, true)] {
            let shape = Shape { immediate, unsolicited, chunk: 512, ..PLAIN };
            model.issue(Kind::Write { lba: 64, count: 100 }, shape, 1 + bits as u8);
            model.settle();
            model.issue(Kind::Read { lba: 60, count: 200 }, PLAIN, 0);
            model.settle();
        }
        assert_eq!(model.answered, 8);
    }
}

#[test]
fn the_window_closes_when_it_is_full_and_opens_with_each_answer() {
    let mut model = Model::new(Params::default(), 0, 0);
    for _ in 0..WINDOW {
        model.issue(Kind::Flush, PLAIN, 0);
    }
    model.nop(0);
    assert_eq!(model.pair.session.tasks(), WINDOW as usize);
    assert_eq!(model.pair.max_cmd_sn.wrapping_add(1), model.pair.cmd_sn, "closed");
    model.pair.raw(Pair::header(1, FINAL, LUN_0, 0, &TEST_UNIT_READY).with(24, model.pair.cmd_sn), &[]).unwrap();
    model.pair.silence();
    model.execute(40);
    assert_eq!(model.pair.max_cmd_sn, model.pair.cmd_sn, "open for one");
    model.settle();
}
