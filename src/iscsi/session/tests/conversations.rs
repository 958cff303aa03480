//! What known initiators say, from their login on, and what they must hear.

use std::fmt::Write as _;
use std::sync::{Arc, Mutex};

use bytes::BytesMut;

use super::super::*;
use super::pair::{BLOCKS, NEXUS, READ, TARGET, TEST_UNIT_READY, WRITE, port, ten};
use crate::iscsi::frame;
use crate::iscsi::login::{Login, Next, Verdict};
use crate::scsi::BLOCK;

/// One line per PDU: the fields that tell.
fn line(pdu: &Pdu) -> String {
    let header = &pdu.header;
    let mut line = match header.opcode() {
        opcode::LOGIN_RESPONSE => {
            format!("Login Response flags={:02x} status={:04x}", header.flags(), header.word(36) >> 16)
        }
        opcode::SCSI_RESPONSE => format!("SCSI Response status={:02x} residual={}", header.0[3], header.word(44)),
        opcode::DATA_IN => format!(
            "Data-In flags={:02x} DataSN={} offset={} length={}",
            header.flags(),
            header.word(36),
            header.word(40),
            pdu.data.len()
        ),
        opcode::R2T => format!("R2T R2TSN={} offset={} length={}", header.word(36), header.word(40), header.word(44)),
        opcode::NOP_IN => format!("NOP-In length={}", pdu.data.len()),
        opcode::LOGOUT_RESPONSE => format!("Logout Response {}", header.0[2]),
        other => format!("{other:02x}"),
    };
    write!(line, " ITT={} StatSN={} Exp={} Max={}", header.itt(), header.word(24), header.word(28), header.word(32))
        .unwrap();
    match header.opcode() {
        opcode::LOGIN_RESPONSE => {
            let text = String::from_utf8(pdu.data.to_vec()).unwrap();
            write!(line, " | {}", text.trim_end_matches('\0').replace('\0', " ")).unwrap();
        }
        opcode::SCSI_RESPONSE if !pdu.data.is_empty() => {
            write!(line, " | {:x}/{:02x}/{:02x}", pdu.data[4], pdu.data[14], pdu.data[15]).unwrap();
        }
        opcode::DATA_IN if pdu.data.len() <= 36 => write!(line, " | {:02x?}", &pdu.data[..]).unwrap(),
        _ => {}
    }
    line
}

struct Conversation {
    login: Login,
    session: Option<Session>,
    unit: Arc<Mutex<LogicalUnit>>,
    cmd_sn: u32,
    itt: u32,
    heard: String,
    written: Vec<(u64, usize)>,
}

impl Conversation {
    fn new() -> Self {
        let mut unit = LogicalUnit::new(TARGET, BLOCKS * BLOCK, false);
        unit.attach(NEXUS, port());
        Self {
            login: Login::default(),
            session: None,
            unit: Arc::new(Mutex::new(unit)),
            cmd_sn: 1,
            itt: 1,
            heard: String::new(),
            written: Vec::new(),
        }
    }

    fn hear(&mut self, out: &[u8]) {
        let mut input = BytesMut::from(out);
        while let Some(pdu) = frame::next(&mut input, MAX_DATA_SEGMENT, Digests::NONE).unwrap() {
            self.heard += &line(&pdu);
            self.heard.push('\n');
        }
        assert!(input.is_empty());
    }

    fn pdu(header: Header, data: &[u8]) -> Pdu {
        let mut bytes = Vec::new();
        append(&mut bytes, header, data, Digests::NONE);
        frame::next(&mut BytesMut::from(&bytes[..]), MAX_DATA_SEGMENT, Digests::NONE).unwrap().expect("a whole PDU")
    }

    fn login(&mut self, flags: u8, keys: &str) {
        let text = keys.replace(' ', "\0") + "\0";
        let mut header = Header::new(0x40 | opcode::LOGIN, flags).with(16, self.itt).with(24, self.cmd_sn).with(28, 0);
        header.0[8..14].copy_from_slice(&[0x80, 0, 0, 0x5E, 0x12, 0x34]);
        let mut out = Vec::new();
        let mut next = self.login.receive(&Self::pdu(header, text.as_bytes()), &mut out).unwrap();
        loop {
            next = match next {
                Next::Authorize(_) => self.login.authorized(Verdict::Open, &mut out),
                Next::Establish(_) => self.login.established(Ok(5), &mut out),
                Next::Done(agreed) => {
                    self.session = Some(Session::new(NEXUS, &agreed));
                    break;
                }
                Next::Continue => break,
                Next::Refused(status) => panic!("{status:?}"),
            };
        }
        self.hear(&out);
    }

    fn send(&mut self, header: Header, data: &[u8]) {
        let session = self.session.as_mut().expect("logged in");
        let mut wire = Vec::new();
        session.receive(Self::pdu(header, data), std::slice::from_ref(&self.unit)).unwrap();
        while let Some(effect) = session.next_effect() {
            match effect {
                Effect::Read(id, _) => {
                    let mut buffer = vec![0; session.layout(id).unwrap().wire_length()];
                    wire.append(session.output());
                    assert!(session.data_in(id, &mut buffer));
                    wire.extend(buffer);
                }
                Effect::Write { task, offset, data, .. } => {
                    self.written.push((offset, data.concat().len()));
                    session.complete(task, Ok(()));
                }
                Effect::Flush(task) => session.complete(task, Ok(())),
                Effect::Close => {}
                other => panic!("{other:?}"),
            }
        }
        wire.append(session.output());
        self.hear(&wire);
    }

    /// A SCSI command; its ITT counts up.
    fn command(&mut self, flags: u8, expected: u32, cdb: &[u8], data: &[u8]) {
        self.itt += 1;
        let mut header =
            Header::new(opcode::SCSI_COMMAND, flags).with(16, self.itt).with(20, expected).with(24, self.cmd_sn);
        header.0[32..32 + cdb.len()].copy_from_slice(cdb);
        self.cmd_sn += 1;
        self.send(header, data);
    }

    fn data_out(&mut self, ttt: u32, data_sn: u32, offset: u32, last: bool, length: usize) {
        let header = Header::new(opcode::DATA_OUT, if last { FINAL } else { 0 });
        self.send(header.with(16, self.itt).with(20, ttt).with(36, data_sn).with(40, offset), &vec![1; length]);
    }

    #[track_caller]
    fn heard(&mut self, must: &str) {
        let heard = std::mem::take(&mut self.heard);
        let must: Vec<&str> = must.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
        assert_eq!(heard.lines().collect::<Vec<_>>(), must);
    }
}

#[test]
fn ipxe_logs_in_asks_for_the_size_and_reads() {
    let mut ipxe = Conversation::new();
    ipxe.login(0x81, &format!("InitiatorName={TARGET}.client TargetName={TARGET} SessionType=Normal AuthMethod=None"));
    ipxe.heard(
        "Login Response flags=81 status=0000 ITT=1 StatSN=0 Exp=1 Max=1 | TargetPortalGroupTag=1 AuthMethod=None",
    );
    ipxe.login(
        0x87,
        "HeaderDigest=None DataDigest=None MaxConnections=1 InitialR2T=Yes ImmediateData=No \
         MaxRecvDataSegmentLength=8192 MaxBurstLength=262144 FirstBurstLength=65536 DefaultTime2Wait=0 \
         DefaultTime2Retain=0 MaxOutstandingR2T=1 DataPDUInOrder=Yes DataSequenceInOrder=Yes ErrorRecoveryLevel=0",
    );
    ipxe.heard(
        "Login Response flags=87 status=0000 ITT=1 StatSN=1 Exp=1 Max=1 | DataDigest=None DataPDUInOrder=Yes \
         DataSequenceInOrder=Yes DefaultTime2Retain=0 DefaultTime2Wait=0 ErrorRecoveryLevel=0 FirstBurstLength=65536 \
         HeaderDigest=None ImmediateData=No InitialR2T=Yes MaxBurstLength=262144 MaxConnections=1 MaxOutstandingR2T=1 \
         MaxRecvDataSegmentLength=262144",
    );
    ipxe.command(FINAL, 0, &TEST_UNIT_READY, &[]);
    ipxe.command(FINAL, 0, &TEST_UNIT_READY, &[]);
    ipxe.command(FINAL | READ, 8, &ten(0x25, 0, 0), &[]);
    ipxe.heard(
        "SCSI Response status=02 residual=0 ITT=2 StatSN=2 Exp=2 Max=65 | 6/29/00
         SCSI Response status=00 residual=0 ITT=3 StatSN=3 Exp=3 Max=66
         Data-In flags=81 DataSN=0 offset=0 length=8 ITT=4 StatSN=4 Exp=4 Max=67 | [00, 00, 0f, ff, 00, 00, 02, 00]",
    );
    ipxe.command(FINAL | READ, 32_768, &ten(0x28, 0, 64), &[]);
    ipxe.heard(
        "Data-In flags=00 DataSN=0 offset=0 length=8192 ITT=5 StatSN=5 Exp=5 Max=68
         Data-In flags=00 DataSN=1 offset=8192 length=8192 ITT=5 StatSN=5 Exp=5 Max=68
         Data-In flags=00 DataSN=2 offset=16384 length=8192 ITT=5 StatSN=5 Exp=5 Max=68
         Data-In flags=81 DataSN=3 offset=24576 length=8192 ITT=5 StatSN=5 Exp=5 Max=68",
    );
    // Its writes come in PDUs of 512 bytes, after an R2T.
    ipxe.command(FINAL | WRITE, 1024, &ten(0x2A, 6, 2), &[]);
    ipxe.data_out(1, 0, 0, false, 512);
    ipxe.data_out(1, 1, 512, true, 512);
    ipxe.heard(
        "R2T R2TSN=0 offset=0 length=1024 ITT=6 StatSN=6 Exp=6 Max=68
         SCSI Response status=00 residual=0 ITT=6 StatSN=6 Exp=6 Max=69",
    );
    assert_eq!(ipxe.written, [(6 * 512, 1024)]);
}

#[test]
fn open_iscsi_logs_in_looks_around_and_writes_without_asking() {
    let mut linux = Conversation::new();
    linux.login(
        0x87,
        &format!(
            "InitiatorName={TARGET}.client InitiatorAlias=pc-01 TargetName={TARGET} SessionType=Normal HeaderDigest=None \
             DataDigest=None DefaultTime2Wait=2 DefaultTime2Retain=0 IFMarker=No OFMarker=No ErrorRecoveryLevel=0 \
             InitialR2T=No ImmediateData=Yes MaxBurstLength=16776192 FirstBurstLength=262144 MaxOutstandingR2T=1 \
             MaxConnections=1 DataPDUInOrder=Yes DataSequenceInOrder=Yes MaxRecvDataSegmentLength=262144"
        ),
    );
    linux.heard(
        "Login Response flags=87 status=0000 ITT=1 StatSN=0 Exp=1 Max=1 | TargetPortalGroupTag=1 DataDigest=None \
         DataPDUInOrder=Yes DataSequenceInOrder=Yes DefaultTime2Retain=0 DefaultTime2Wait=2 ErrorRecoveryLevel=0 \
         FirstBurstLength=262144 HeaderDigest=None IFMarker=No ImmediateData=Yes InitialR2T=No MaxBurstLength=1048576 \
         MaxConnections=1 MaxOutstandingR2T=1 OFMarker=No MaxRecvDataSegmentLength=262144",
    );
    linux.command(FINAL | READ, 36, &[0x12, 0, 0, 0, 36, 0], &[]);
    let inquiry = "00, 00, 06, 12, 45, 08, 00, 02, 52, 4f, 4f, 53, 54, 20, 20, 20, 44, 49, 46, 46, 45, 52, 45, 4e, 43, \
                   49, 4e, 47, 20, 56, 48, 44, 30, 30, 30, 31";
    linux.heard(&format!("Data-In flags=81 DataSN=0 offset=0 length=36 ITT=2 StatSN=1 Exp=2 Max=65 | [{inquiry}]"));
    linux.command(FINAL | READ, 32, &[0x9E, 0x10, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 32, 0, 0], &[]);
    linux.command(FINAL | READ, 32, &[0x9E, 0x10, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 32, 0, 0], &[]);
    linux.command(FINAL | READ, 24, &[0x1A, 0x08, 0x08, 0, 24, 0], &[]);
    linux.heard(
        "SCSI Response status=02 residual=32 ITT=3 StatSN=2 Exp=3 Max=66 | 6/29/00
         Data-In flags=81 DataSN=0 offset=0 length=32 ITT=4 StatSN=3 Exp=4 Max=67 | [00, 00, 00, 00, 00, 00, 0f, ff, 00, \
         00, 02, 00, 00, 00, c0, 00, 00, 00, 00, 00, 00, 00, 00, 00, 00, 00, 00, 00, 00, 00, 00, 00]
         Data-In flags=81 DataSN=0 offset=0 length=24 ITT=5 StatSN=4 Exp=5 Max=68 | [17, 00, 10, 00, 08, 12, 04, 00, 00, \
         00, 00, 00, 00, 00, 00, 00, 00, 00, 00, 00, 00, 00, 00, 00]",
    );
    linux.command(FINAL | READ, 524_288, &ten(0x28, 0, 1024), &[]);
    linux.heard(
        "Data-In flags=00 DataSN=0 offset=0 length=262144 ITT=6 StatSN=5 Exp=6 Max=69
         Data-In flags=81 DataSN=1 offset=262144 length=262144 ITT=6 StatSN=5 Exp=6 Max=69",
    );
    // 64 KiB as immediate data; 512 KiB as a first burst and what is asked for after it.
    linux.command(FINAL | WRITE, 65_536, &ten(0x2A, 0, 128), &vec![1; 65_536]);
    linux.heard("SCSI Response status=00 residual=0 ITT=7 StatSN=6 Exp=7 Max=70");
    linux.command(WRITE, 524_288, &ten(0x2A, 128, 1024), &vec![1; 131_072]);
    linux.data_out(NO_TAG, 0, 131_072, true, 131_072);
    linux.heard("R2T R2TSN=0 offset=262144 length=262144 ITT=8 StatSN=7 Exp=8 Max=70");
    linux.data_out(1, 0, 262_144, true, 262_144);
    linux.heard("SCSI Response status=00 residual=0 ITT=8 StatSN=7 Exp=8 Max=71");
    assert_eq!(linux.written, [(0, 65_536), (65_536, 524_288)]);
    linux.command(FINAL, 0, &ten(0x35, 0, 0), &[]);
    linux.send(Header::new(0x40, FINAL).with(16, 90).with(20, NO_TAG).with(24, linux.cmd_sn), &[]);
    linux.send(Header::new(0x40 | opcode::LOGOUT, FINAL).with(16, 91).with(24, linux.cmd_sn), &[]);
    linux.heard(
        "SCSI Response status=00 residual=0 ITT=9 StatSN=8 Exp=9 Max=72
         NOP-In length=0 ITT=90 StatSN=9 Exp=9 Max=72
         Logout Response 0 ITT=91 StatSN=10 Exp=9 Max=72",
    );
}
