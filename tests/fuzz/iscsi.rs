//! Bodies of fuzz tests of the iSCSI target: each takes any bytes, plays an initiator that knows what every answer must be,
//! and panics where one is not. They need nothing but bytes, so that a coverage-guided fuzzer can hold them as well as a
//! property test.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use bytes::BytesMut;
use roost::iscsi::login::{Agreed, Login, Next, Verdict, Who};
use roost::iscsi::pdu::{Digests, FINAL, Header, NO_TAG, Pdu, append, opcode};
use roost::iscsi::session::{Effect, Session};
use roost::iscsi::text::Params;
use roost::iscsi::{LOGIN_DATA_SEGMENT, MAX_DATA_SEGMENT, frame, text};
use roost::scsi::unit::LogicalUnit;
use roost::scsi::{InitiatorPort, Nexus};

const BLOCK: usize = 512;
const BLOCKS: u32 = 64;

/// Any bytes as a source of decisions; zeros once they are spent.
struct Dice<'a>(&'a [u8]);

impl<'a> Dice<'a> {
    fn byte(&mut self) -> u8 {
        let (first, rest) = self.0.split_first().unwrap_or((&0, &[]));
        self.0 = rest;
        *first
    }

    fn below(&mut self, limit: u32) -> u32 {
        u32::from_be_bytes([0, self.byte(), self.byte(), self.byte()]) % limit
    }

    fn yes(&mut self) -> bool {
        self.byte() & 1 == 1
    }

    fn bytes(&mut self, length: usize) -> &'a [u8] {
        let (now, rest) = self.0.split_at(length.min(self.0.len()));
        self.0 = rest;
        now
    }

    fn digests(&mut self) -> Digests {
        Digests { header: self.yes(), data: self.yes() }
    }
}

/// A stream gives the same PDUs, or the same error after the same PDUs, however it is cut; and nothing reserves more memory
/// than one PDU may take.
pub(crate) fn framer(bytes: &[u8]) {
    const LIMIT: u32 = 8192;
    let mut dice = Dice(bytes);
    let digests = dice.digests();
    let cut = 1 + dice.below(97) as usize;
    let stream = dice.0;
    let drain = |input: &mut BytesMut, seen: &mut Vec<(Header, Vec<u8>, Vec<u8>, bool)>| loop {
        match frame::next(input, LIMIT, digests) {
            Ok(Some(Pdu { header, ahs, data, intact })) => seen.push((header, ahs.to_vec(), data.to_vec(), intact)),
            Ok(None) => return None,
            Err(error) => return Some(error),
        }
    };
    let (mut whole, mut at_once) = (BytesMut::from(stream), Vec::new());
    let ended = drain(&mut whole, &mut at_once);
    let (mut input, mut piecemeal) = (BytesMut::new(), Vec::new());
    let mut ended_piecemeal = None;
    for piece in stream.chunks(cut) {
        input.extend_from_slice(piece);
        ended_piecemeal = drain(&mut input, &mut piecemeal);
        assert!(input.capacity() <= stream.len() + cut + LIMIT as usize + 48 + 1020 + 12 + 64);
        if ended_piecemeal.is_some() {
            break;
        }
    }
    assert_eq!((at_once, ended), (piecemeal, ended_piecemeal));
}

/// What the standard makes of an offer (RFC 7143 §13): the answer, and what holds from then on.
fn rule(key: &str, value: &str) -> Option<String> {
    let number = |range: std::ops::RangeInclusive<u64>, ours: u64| {
        let value = value.strip_prefix("0x").map_or(value.parse().ok(), |hex| u64::from_str_radix(hex, 16).ok());
        value.filter(|value| range.contains(value)).map_or("Reject".to_owned(), |theirs| theirs.min(ours).to_string())
    };
    let boolean = |answer: &dyn Fn(bool) -> bool| match value {
        "Yes" | "No" => if answer(value == "Yes") { "Yes" } else { "No" }.to_owned(),
        _ => "Reject".to_owned(),
    };
    Some(match key {
        "InitialR2T" | "ImmediateData" => boolean(&|theirs| theirs),
        "DataPDUInOrder" | "DataSequenceInOrder" => boolean(&|_| true),
        "IFMarker" | "OFMarker" => boolean(&|_| false),
        "MaxBurstLength" => number(512..=16_777_215, 1_048_576),
        "FirstBurstLength" => number(512..=16_777_215, 262_144),
        "MaxOutstandingR2T" | "MaxConnections" => number(1..=65_535, 1),
        "DefaultTime2Wait" => number(0..=3600, 3600),
        "DefaultTime2Retain" => number(0..=3600, 0),
        "ErrorRecoveryLevel" => number(0..=2, 0),
        "HeaderDigest" | "DataDigest" => {
            value.split(',').find(|v| matches!(*v, "None" | "CRC32C")).unwrap_or("Reject").to_owned()
        }
        "MaxRecvDataSegmentLength" if number(512..=16_777_215, u64::MAX) == "Reject" => "Reject".to_owned(),
        "MaxRecvDataSegmentLength" | "InitiatorAlias" => return None,
        "TargetAlias" | "SendTargets" => "Reject".to_owned(),
        _ => "NotUnderstood".to_owned(),
    })
}

const KEYS: [&str; 20] = [
    "InitialR2T",
    "ImmediateData",
    "DataPDUInOrder",
    "DataSequenceInOrder",
    "IFMarker",
    "OFMarker",
    "MaxBurstLength",
    "FirstBurstLength",
    "MaxOutstandingR2T",
    "MaxConnections",
    "DefaultTime2Wait",
    "DefaultTime2Retain",
    "ErrorRecoveryLevel",
    "HeaderDigest",
    "DataDigest",
    "MaxRecvDataSegmentLength",
    "InitiatorAlias",
    "TargetAlias",
    "SendTargets",
    "X-com.example.any",
];
const VALUES: [&str; 16] = [
    "Yes",
    "No",
    "yes",
    "",
    "0",
    "1",
    "2",
    "3",
    "511",
    "512",
    "0x1000",
    "262144",
    "16777216",
    "65536",
    "CRC32C,None",
    "None",
];

/// An initiator that offers any keys with any values, in any number of steps and pieces, is answered key by key as the
/// standard says; one that breaks off, repeats itself or says anything else ends, and nothing panics.
pub(crate) fn login(bytes: &[u8]) {
    let mut dice = Dice(bytes);
    let (mut login, mut out) = (Login::default(), Vec::new());
    let mut header = Header::new(0x40 | opcode::LOGIN, 0x04).with(16, 7).with(20, 1 << 16).with(24, 40);
    let names = b"InitiatorName=iqn.2026-11.internal.roost:client.a\0TargetName=iqn.2026-11.internal.roost:a\0";
    let mut text = names.to_vec();
    let mut said: BTreeMap<&str, (&str, u32)> = BTreeMap::new();
    for step in 0..8 {
        let mut wanted = BTreeMap::new();
        let mut repeats = false;
        for _ in 0..dice.below(6) {
            let key = KEYS[dice.below(20) as usize];
            let value = VALUES[dice.below(16) as usize];
            text::push(&mut text, key, value);
            // A declaration may be made again in another request if it says the same.
            let again = (value, step);
            repeats |= said.insert(key, again).is_some_and(|before| {
                before.1 == step || before.0 != value || !matches!(key, "MaxRecvDataSegmentLength" | "InitiatorAlias")
            });
            if let Some(answer) = rule(key, value) {
                wanted.insert(key.to_owned(), answer);
            }
        }
        let last = dice.yes() || step == 7;
        header.0[1] = if last { 0x87 } else { 0x04 };
        let spoil = dice.byte() < 10;
        if spoil {
            let at = dice.below(48) as usize;
            header.0[at] ^= dice.byte();
            text.extend_from_slice(dice.bytes(40));
        }
        // In one piece or two.
        let cut = dice.below(u32::try_from(text.len()).unwrap() + 1) as usize;
        let pieces: Vec<&[u8]> = if dice.yes() { vec![&text[..cut], &text[cut..]] } else { vec![&text] };
        let count = pieces.len();
        let mut next = Next::Continue;
        for (number, piece) in pieces.into_iter().enumerate() {
            let mut request = header;
            if number + 1 < count {
                request.0[1] = request.0[1] & !FINAL & !3 | 0x40;
            }
            let pdu = Pdu {
                header: request,
                ahs: bytes::Bytes::new(),
                data: bytes::Bytes::copy_from_slice(piece),
                intact: true,
            };
            out.clear();
            let Ok(answer) = login.receive(&pdu, &mut out) else {
                return assert!(spoil, "only what is no login ends so");
            };
            next = answer;
            if matches!(next, Next::Refused(_)) {
                break;
            }
        }
        loop {
            next = match next {
                Next::Authorize(_) => login.authorized(Verdict::Open, &mut out),
                Next::Establish(_) => login.established(Ok(9), &mut out),
                settled => break next = settled,
            };
        }
        let pdu =
            frame::next(&mut BytesMut::from(&out[..]), LOGIN_DATA_SEGMENT, Digests::NONE).unwrap().expect("one answer");
        assert_eq!(pdu.header.opcode(), opcode::LOGIN_RESPONSE);
        let refused = pdu.header.word(36) >> 16 != 0;
        assert_eq!(refused, matches!(next, Next::Refused(_)));
        if spoil {
            return;
        }
        assert_eq!(refused, repeats, "who says a key twice is refused, and nobody else");
        if refused {
            return;
        }
        let mut answers = text::parse(&pdu.data).unwrap();
        for ours in ["TargetPortalGroupTag", "AuthMethod"] {
            answers.remove(ours);
        }
        // Ours is declared once, where theirs is not refused.
        if !wanted.contains_key("MaxRecvDataSegmentLength") {
            answers.remove("MaxRecvDataSegmentLength").into_iter().for_each(|ours| assert_eq!(ours, "262144"));
        }
        assert_eq!(answers.into_iter().collect::<BTreeMap<_, _>>(), wanted);
        if let Next::Done(Agreed { params, .. }) = next {
            assert!(last && params.first_burst <= params.max_burst && params.max_burst <= 1_048_576);
            return;
        }
        assert!(!last);
        text.clear();
    }
}

/// An initiator, a session, and the disk behind it.
struct Play {
    session: Session,
    unit: Arc<Mutex<LogicalUnit>>,
    params: Params,
    disk: Vec<u8>,
    /// What the disk must hold.
    model: Vec<u8>,
    cmd_sn: u32,
    itt: u32,
}

impl Play {
    fn new(params: Params) -> Self {
        let who = Who { initiator: "i".into(), target: Some("t".into()), isid: [0; 6], tsih: 1, cid: 0 };
        let mut unit = LogicalUnit::new("iqn.2026-11.internal.roost:a", u64::from(BLOCKS) * BLOCK as u64, false);
        unit.attach(Nexus(1), InitiatorPort { name: "i".to_owned(), isid: [0; 6] });
        let agreed = Agreed { who, cid: 0, params: params.clone(), cmd_sn: u32::MAX - 2, stat_sn: 5 };
        let disk = vec![0x5A; BLOCKS as usize * BLOCK];
        let session = Session::new(Nexus(1), &agreed);
        Self {
            session,
            unit: Arc::new(Mutex::new(unit)),
            params,
            model: disk.clone(),
            disk,
            cmd_sn: u32::MAX - 2,
            itt: 0,
        }
    }

    /// Sends a PDU, spoilt by one bit of its data if so wanted, and does at once what the session asks for. The answers; `None`:
    /// the connection is over.
    fn send(&mut self, header: Header, data: &[u8], spoilt: bool) -> Option<Vec<Pdu>> {
        let mut bytes = Vec::new();
        append(&mut bytes, header, data, self.params.digests);
        if spoilt {
            *bytes.last_mut().unwrap() ^= 1;
        }
        let mut input = BytesMut::from(&bytes[..]);
        let pdu = frame::next(&mut input, MAX_DATA_SEGMENT, self.params.digests).unwrap().unwrap();
        self.session.receive(pdu, std::slice::from_ref(&self.unit)).ok()?;
        let mut sent = Vec::new();
        while let Some(effect) = self.session.next_effect() {
            sent.append(self.session.output());
            match effect {
                Effect::Read(id, range) => {
                    let layout = self.session.layout(id).unwrap();
                    let mut buffer = vec![0xEE; layout.wire_length()];
                    let mut at = usize::try_from(range.offset).unwrap();
                    for mut slice in layout.slices(&mut buffer) {
                        let end = at + slice.len();
                        slice.copy_from_slice(&self.disk[at..end]);
                        at = end;
                    }
                    assert!(self.session.data_in(id, &mut buffer));
                    sent.append(self.session.output());
                    sent.extend(buffer);
                }
                Effect::Write { task, offset, data, .. } => {
                    let (at, data) = (usize::try_from(offset).unwrap(), data.concat());
                    self.disk[at..at + data.len()].copy_from_slice(&data);
                    self.session.complete(task, Ok(()));
                }
                Effect::Verify { task, .. } | Effect::Flush(task) => self.session.complete(task, Ok(())),
                Effect::Zero(task, ranges) => {
                    for range in ranges {
                        let at = usize::try_from(range.offset).unwrap();
                        self.disk[at..at + usize::try_from(range.length).unwrap()].fill(0);
                    }
                    self.session.complete(task, Ok(()));
                }
                Effect::Fill(task, range, block) => {
                    let at = usize::try_from(range.offset).unwrap();
                    let part = &mut self.disk[at..at + usize::try_from(range.length).unwrap()];
                    part.chunks_mut(block.len()).for_each(|chunk| chunk.copy_from_slice(&block));
                    self.session.complete(task, Ok(()));
                }
                Effect::Abort(abort) => self.session.aborted(abort.request, abort.scope),
                Effect::SendTargets(_) => self.session.targets(&["t".to_owned()], &["192.0.2.1:3260,1".to_owned()]),
                // Only the last PDU, which is any bytes, may ask for more than that; and for the end.
                _ => return None,
            }
        }
        sent.append(self.session.output());
        let mut input = BytesMut::from(&sent[..]);
        let mut answers = Vec::new();
        while !input.is_empty() {
            let pdu = frame::next(&mut input, MAX_DATA_SEGMENT, self.params.digests).unwrap().expect("whole PDUs");
            assert!(pdu.intact && pdu.data.len() <= self.params.initiator_segment as usize);
            answers.push(pdu);
        }
        Some(answers)
    }

    fn command(&mut self, flags: u8, cdb: &[u8], expected: u32, data: &[u8]) -> Option<Vec<Pdu>> {
        self.itt += 1;
        let mut header = Header::new(opcode::SCSI_COMMAND, flags).with(16, self.itt).with(20, expected);
        header.0[32..32 + cdb.len()].copy_from_slice(cdb);
        header.set_word(24, self.cmd_sn);
        self.cmd_sn = self.cmd_sn.wrapping_add(1);
        self.send(header, data, false)
    }

    /// Writes, in whatever way was agreed on. With `spoil` one of its Data-Outs does not match its digest.
    fn write(&mut self, lba: u32, data: &[u8], chunk: usize, spoil: bool) {
        const WRITE: u8 = 0x20;
        let expected = u32::try_from(data.len()).unwrap();
        let unasked = data.len().min(self.params.first_burst as usize);
        let immediate = if self.params.immediate_data { unasked.min(chunk) } else { 0 };
        let more = !self.params.initial_r2t && immediate < unasked;
        let flags = WRITE | if more { 0 } else { FINAL };
        let cdb = ten(0x2A, lba, expected / BLOCK as u32);
        let mut answers = self.command(flags, &cdb, expected, &data[..immediate]).unwrap();
        let mut failed = false;
        if more {
            answers.extend(self.sequence(data, immediate..unasked, NO_TAG, chunk, spoil, &mut failed));
        }
        loop {
            let last = answers.pop().expect("an R2T or a response");
            let rejects = answers.drain(..).map(|pdu| assert_eq!(pdu.header.opcode(), opcode::REJECT)).count();
            assert!(rejects == 0 || failed);
            if last.header.opcode() == opcode::R2T {
                let (at, length) = (last.header.word(40) as usize, last.header.word(44) as usize);
                assert!(length <= self.params.max_burst as usize && !failed);
                answers = self.sequence(data, at..at + length, last.header.word(20), chunk, spoil, &mut failed);
                continue;
            }
            assert_eq!((last.header.opcode(), last.header.itt()), (opcode::SCSI_RESPONSE, self.itt));
            let sense = (last.header.0[3] != 0).then(|| [last.data[4] & 0x0F, last.data[14], last.data[15]]);
            assert_eq!(sense, failed.then_some([0xB, 0x47, 0x05]));
            break;
        }
        if !failed {
            let at = lba as usize * BLOCK;
            self.model[at..at + data.len()].copy_from_slice(data);
        }
    }

    /// A sequence of Data-Outs.
    fn sequence(
        &mut self,
        data: &[u8],
        range: std::ops::Range<usize>,
        ttt: u32,
        chunk: usize,
        spoil: bool,
        failed: &mut bool,
    ) -> Vec<Pdu> {
        let (mut answers, end) = (Vec::new(), range.end);
        for (data_sn, at) in (0..).zip(range.step_by(chunk)) {
            let part = &data[at..end.min(at + chunk)];
            let flags = if at + part.len() == end { FINAL } else { 0 };
            let header = Header::new(opcode::DATA_OUT, flags).with(16, self.itt).with(20, ttt).with(36, data_sn);
            let spoilt = spoil && !*failed && self.params.digests.data;
            *failed |= spoilt;
            answers.extend(self.send(header.with(40, u32::try_from(at).unwrap()), part, spoilt).unwrap());
        }
        answers
    }

    fn read(&mut self, lba: u32, blocks: u32) {
        let expected = blocks * BLOCK as u32;
        let answers = self.command(FINAL | 0x40, &ten(0x28, lba, blocks), expected, &[]).unwrap();
        let data: Vec<u8> = answers.iter().flat_map(|pdu| pdu.data.to_vec()).collect();
        assert!(answers.iter().all(|pdu| pdu.header.opcode() == opcode::DATA_IN && pdu.header.itt() == self.itt));
        let at = lba as usize * BLOCK;
        assert!(data == self.model[at..at + expected as usize], "what was written last is read");
    }
}

fn ten(opcode: u8, lba: u32, blocks: u32) -> [u8; 10] {
    let ([a, b, c, d], [.., e, f]) = (lba.to_be_bytes(), blocks.to_be_bytes());
    [opcode, 0, a, b, c, d, 0, e, f, 0]
}

/// Reads give what was written last, by an initiator that does anything it may, and some things that must not matter: PDUs
/// out of their order, for tasks that there are not, or spoilt on the way. At the end any bytes at all come as a PDU.
pub(crate) fn session(bytes: &[u8]) {
    let mut dice = Dice(bytes);
    let max_burst = 512 + dice.below(20_000);
    let params = Params {
        initial_r2t: dice.yes(),
        immediate_data: dice.yes(),
        initiator_segment: 512 + dice.below(20_000),
        first_burst: (512 + dice.below(20_000)).min(max_burst),
        max_burst,
        digests: dice.digests(),
        ..Params::default()
    };
    let mut play = Play::new(params);
    let told = play.command(FINAL, &[0; 6], 0, &[]).unwrap();
    assert_eq!(told[0].header.0[3], 2, "a new session is told that the unit may have been reset");
    while dice.0.len() > 64 {
        let (kind, lba) = (dice.byte(), dice.below(BLOCKS));
        let blocks = 1 + dice.below((BLOCKS - lba).min(40));
        match kind % 8 {
            0..=2 => {
                let data: Vec<u8> = (0..blocks).flat_map(|n| vec![kind.wrapping_add(n as u8); BLOCK]).collect();
                let chunk = 1 + dice.below(8192) as usize;
                play.write(lba, &data, chunk.max(64), dice.byte() < 32);
            }
            3 | 4 => play.read(lba, blocks),
            5 => {
                let early = Header::new(opcode::SCSI_COMMAND, FINAL).with(16, 0x7FFF_0000);
                let stale = early.with(24, play.cmd_sn.wrapping_sub(1 + u32::from(dice.byte())));
                assert_eq!(play.send(stale, &[], false).unwrap().len(), 0, "a number that was used is ignored");
            }
            6 => {
                let stray = Header::new(opcode::DATA_OUT, FINAL).with(16, 0x7FFF_0000).with(20, dice.below(9));
                assert_eq!(play.send(stray, dice.bytes(8), false).unwrap().len(), 0, "data of no task is ignored");
            }
            _ => {
                let function = [1, 2, 5, 8, 9][usize::from(dice.byte()) % 5];
                let header = Header::new(0x40 | opcode::TASK_MANAGEMENT, FINAL | function);
                let header = header.with(16, 0x7FFF_0001).with(20, 0x7FFF_0002).with(24, play.cmd_sn);
                let answers = play.send(header, &[], false).unwrap();
                assert_eq!(answers.len(), 1);
                assert_eq!(answers[0].header.opcode(), opcode::TASK_MANAGEMENT_RESPONSE);
                let response = match function {
                    1 => 1,
                    8 => 4,
                    9 => 5,
                    _ => 0,
                };
                assert_eq!(answers[0].header.0[2], response);
            }
        }
        assert_eq!(play.session.tasks(), 0, "all of it is answered");
    }
    assert!(play.disk == play.model);
    let mut header = Header::new(0, 0);
    let noise = dice.bytes(48);
    header.0[..noise.len()].copy_from_slice(noise);
    header.0[4] = 0;
    let _ = play.send(header, dice.bytes(16), false);
}
