//! An iSCSI initiator of a few lines: it sends what it is told to, and answers nothing by itself.

use std::collections::VecDeque;
use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::time::Duration;

use socket2::{Domain, Socket, Type};

/// R in a SCSI Command: data is expected.
pub(crate) const READ: u8 = 0x40;
/// W in a SCSI Command: data is sent.
pub(crate) const WRITE: u8 = 0x20;

/// The status RESERVATION CONFLICT.
pub(crate) const CONFLICT: u8 = 0x18;

/// Longest wait for an answer.
const PATIENCE: Duration = Duration::from_secs(10);
const NO_TAG: u32 = 0xFFFF_FFFF;
/// All requests of a login have one tag.
const LOGIN_ITT: u32 = 0x4C4F_4749;

/// An initiator session ID.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Isid([u8; 6]);

impl Isid {
    /// Of iPXE's kind: made out of an enterprise number.
    pub(crate) fn loader(number: u8) -> Self {
        Self([0x40, 0x00, 0x27, 0x23, 0x00, number])
    }

    /// Of open-iscsi's kind.
    pub(crate) fn system(number: u8) -> Self {
        Self([0x00, 0x02, 0x3d, 0x00, 0x00, number])
    }
}

/// A PDU from the target.
#[derive(Debug, Clone)]
pub(crate) struct Answer {
    pub(crate) header: [u8; 48],
    pub(crate) data: Vec<u8>,
}

impl Answer {
    pub(crate) fn itt(&self) -> u32 {
        self.word(16)
    }

    fn word(&self, at: usize) -> u32 {
        u32::from_be_bytes(self.header[at..at + 4].try_into().unwrap())
    }

    fn opcode(&self) -> u8 {
        self.header[0] & 0x3F
    }
}

/// Sense key and code of a SCSI Response; `None` if its status is GOOD.
pub(crate) fn status_of(answer: &Answer) -> Option<(u8, u8, u8)> {
    (answer.header[3] == 2).then(|| (answer.data[2 + 2] & 0x0F, answer.data[2 + 12], answer.data[2 + 13]))
}

/// READ (10).
pub(crate) fn cdb_read(lba: u32, blocks: u16) -> [u8; 10] {
    ten(0x28, lba, blocks)
}

fn ten(opcode: u8, lba: u32, count: u16) -> [u8; 10] {
    let ([a, b, c, d], [e, f]) = (lba.to_be_bytes(), count.to_be_bytes());
    [opcode, 0, a, b, c, d, 0, e, f, 0]
}

/// One connection to a target.
#[derive(Debug)]
pub(crate) struct Initiator {
    stream: TcpStream,
    /// What came while something else was waited for.
    waiting: VecDeque<Answer>,
    cmd_sn: u32,
    last_itt: u32,
    pub(crate) tsih: u16,
    /// Connection ID.
    pub(crate) cid: u16,
    /// The logical unit that commands and functions are for.
    pub(crate) lun: u8,
    /// Bytes of a logical block of it.
    pub(crate) block: u32,
    /// Which digests are in use: of headers, of data.
    digests: (bool, bool),
}

impl Initiator {
    pub(crate) fn connect(from: Ipv4Addr, to: SocketAddr) -> Self {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        socket.bind(&SocketAddr::from((from, 0)).into()).unwrap();
        socket.connect(&to.into()).unwrap();
        let stream = TcpStream::from(socket);
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_nodelay(true).unwrap();
        Self {
            stream,
            waiting: VecDeque::new(),
            cmd_sn: 1,
            last_itt: 0,
            tsih: 0,
            cid: 0,
            lun: 0,
            block: 512,
            digests: (false, false),
        }
    }

    /// Sends these bytes as they are, be they a PDU or not.
    pub(crate) fn send_bytes(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).unwrap();
    }

    /// The same; false once the target has closed the connection.
    pub(crate) fn try_send_bytes(&mut self, bytes: &[u8]) -> bool {
        self.stream.write_all(bytes).is_ok()
    }

    /// Logs out, until that is answered.
    pub(crate) fn log_out(&mut self) {
        let mut header = self.header(0x06, 0x80);
        self.number(&mut header);
        self.send(header, &[]);
        assert_eq!(self.take_answer(0x26).header[2], 0);
    }

    /// Whether a ping came so far, among what was read.
    pub(crate) fn was_pinged(&self) -> bool {
        self.waiting.iter().any(|answer| answer.opcode() == 0x20 && answer.itt() == NO_TAG)
    }

    /// Sends nothing more; what the target still says can be read.
    pub(crate) fn hang_up(&mut self) {
        self.stream.shutdown(std::net::Shutdown::Write).unwrap();
    }

    /// Logs in to a target in one step; its status, 0 if it is in.
    pub(crate) fn log_in(&mut self, initiator: &str, target: &str, isid: Isid) -> u16 {
        let text = format!(
            "InitiatorName={initiator}\0TargetName={target}\0SessionType=Normal\0InitialR2T=No\0ImmediateData=Yes\0\
             FirstBurstLength=262144\0MaxBurstLength=1048576\0MaxRecvDataSegmentLength=262144\0"
        );
        self.first_login(isid, 0, &text).0
    }

    pub(crate) fn log_in_to_discovery(&mut self, initiator: &str) -> u16 {
        let text = format!("InitiatorName={initiator}\0SessionType=Discovery\0");
        self.first_login(Isid::system(0), 0, &text).0
    }

    /// A login request that asks for the full feature phase at once; status and text of the answer.
    pub(crate) fn first_login(&mut self, isid: Isid, tsih: u16, text: &str) -> (u16, Vec<u8>) {
        // T, operational negotiation to full feature phase
        let (status, _, text) = self.login_step(0x87, isid, tsih, text);
        (status, text)
    }

    /// One login request with these flags; status, flags and text of the answer.
    pub(crate) fn login_step(&mut self, flags: u8, isid: Isid, tsih: u16, text: &str) -> (u16, u8, Vec<u8>) {
        let mut header = self.header(0x43, flags);
        header[8..14].copy_from_slice(&isid.0);
        header[14..16].copy_from_slice(&tsih.to_be_bytes());
        header[16..20].copy_from_slice(&LOGIN_ITT.to_be_bytes());
        header[20..22].copy_from_slice(&self.cid.to_be_bytes());
        self.send(header, text.as_bytes());
        let answer = self.take_answer(0x23);
        self.tsih = u16::from_be_bytes([answer.header[14], answer.header[15]]);
        (u16::from_be_bytes([answer.header[36], answer.header[37]]), answer.header[1], answer.data)
    }

    /// From here on every PDU has both digests, and must have them.
    pub(crate) fn use_digests(&mut self) {
        self.digests = (true, true);
    }

    /// From here on every header has a digest, and must have one.
    pub(crate) fn use_header_digests(&mut self) {
        self.digests = (true, false);
    }

    /// Values of the text that answers SendTargets, in order.
    pub(crate) fn send_targets(&mut self, value: &str) -> Vec<String> {
        let mut header = self.header(0x04, 0x80);
        header[20..24].copy_from_slice(&NO_TAG.to_be_bytes());
        self.number(&mut header);
        self.send(header, format!("SendTargets={value}\0").as_bytes());
        let text = String::from_utf8(self.take_answer(0x24).data).unwrap();
        text.split_terminator('\0').map(|pair| pair.split_once('=').unwrap().1.to_owned()).collect()
    }

    /// Takes what a new session is told first.
    pub(crate) fn settle(&mut self) {
        assert_eq!(self.test_unit_ready(), Some((6, 0x29, 0x00)));
        assert_eq!(self.test_unit_ready(), None);
    }

    pub(crate) fn test_unit_ready(&mut self) -> Option<(u8, u8, u8)> {
        let itt = self.start(&[0; 6], 0, 0, &[]);
        status_of(&self.take_response(itt))
    }

    pub(crate) fn read(&mut self, lba: u32, blocks: u16) -> Vec<u8> {
        let length = u32::from(blocks) * self.block;
        let itt = self.start(&cdb_read(lba, blocks), READ, length, &[]);
        let (answered, data) = self.take_read(length as usize);
        assert_eq!(answered, itt);
        data
    }

    /// The data of the next read that is answered, and its tag.
    pub(crate) fn take_read(&mut self, length: usize) -> (u32, Vec<u8>) {
        let mut data = Vec::with_capacity(length);
        loop {
            let part = self.take_answer(0x25);
            assert_eq!(part.word(40) as usize, data.len(), "data is continuous");
            data.extend_from_slice(&part.data);
            if part.header[1] & 1 != 0 {
                assert_eq!((data.len(), part.header[3]), (length, 0), "all of it, and GOOD");
                return (part.itt(), data);
            }
        }
    }

    pub(crate) fn write(&mut self, lba: u32, data: &[u8]) {
        let itt = self.start_write(lba, data);
        assert_eq!(status_of(&self.take_response(itt)), None);
    }

    pub(crate) fn start_write(&mut self, lba: u32, data: &[u8]) -> u32 {
        let blocks = u16::try_from(data.len() / self.block as usize).unwrap();
        self.start(&ten(0x2A, lba, blocks), WRITE, u32::try_from(data.len()).unwrap(), data)
    }

    pub(crate) fn flush(&mut self) {
        self.start(&ten(0x35, 0, 0), 0, 0, &[]);
        assert_eq!(status_of(&self.take_answer(0x21)), None);
    }

    pub(crate) fn unmap(&mut self, lba: u64, blocks: u32) {
        let mut list = vec![0, 22, 0, 16, 0, 0, 0, 0];
        list.extend_from_slice(&lba.to_be_bytes());
        list.extend_from_slice(&blocks.to_be_bytes());
        list.extend_from_slice(&[0; 4]);
        self.start(&ten(0x42, 0, 24), WRITE, 24, &list);
        assert_eq!(status_of(&self.take_answer(0x21)), None);
    }

    /// A command that brings data: the data, or the sense key and code.
    pub(crate) fn ask(&mut self, cdb: &[u8], expected: u32) -> Result<Vec<u8>, (u8, u8, u8)> {
        let itt = self.start(cdb, READ, expected, &[]);
        let answer = self.take(|answer| answer.itt() == itt && [0x21, 0x25].contains(&answer.opcode()));
        if answer.opcode() == 0x25 {
            assert_eq!((answer.header[1] & 1, answer.header[3]), (1, 0), "one PDU with its status");
            return Ok(answer.data);
        }
        status_of(&answer).map_or(Ok(Vec::new()), Err)
    }

    /// A command that takes data, or none: its status, and the sense key and code.
    pub(crate) fn tell(&mut self, cdb: &[u8], data: &[u8]) -> Result<(), (u8, u8, u8)> {
        let flags = if data.is_empty() { 0 } else { WRITE };
        self.start(cdb, flags, u32::try_from(data.len()).unwrap(), data);
        let answer = self.take_answer(0x21);
        match answer.header[3] {
            CONFLICT => Err((CONFLICT, 0, 0)),
            _ => status_of(&answer).map_or(Ok(()), Err),
        }
    }

    /// Sends a command with all of its data; its tag.
    pub(crate) fn start(&mut self, cdb: &[u8], flags: u8, expected: u32, data: &[u8]) -> u32 {
        let mut header = self.header(0x01, 0x80 | flags);
        header[9] = self.lun;
        header[20..24].copy_from_slice(&expected.to_be_bytes());
        header[32..32 + cdb.len()].copy_from_slice(cdb);
        self.number(&mut header);
        self.send(header, data);
        self.last_itt
    }

    pub(crate) fn start_lun_reset(&mut self) {
        let mut header = self.header(0x42, 0x85);
        header[9] = self.lun;
        self.send(header, &[]);
    }

    /// CLEAR TASK SET, until it is done.
    pub(crate) fn clear_task_set(&mut self) {
        let mut header = self.header(0x42, 0x84);
        header[9] = self.lun;
        self.send(header, &[]);
        assert_eq!(self.take_answer(0x22).header[2], 0, "function complete");
    }

    /// ABORT TASK, until it is done.
    pub(crate) fn abort(&mut self, task: u32) {
        let mut header = self.header(0x42, 0x81);
        header[9] = self.lun;
        header[20..24].copy_from_slice(&task.to_be_bytes());
        self.send(header, &[]);
        assert_eq!(self.take_answer(0x22).header[2], 0, "function complete");
    }

    /// Asks the target for a sign of life, and waits for it.
    pub(crate) fn nop(&mut self) {
        let mut header = self.header(0x40, 0x80);
        header[20..24].copy_from_slice(&NO_TAG.to_be_bytes());
        let itt = self.last_itt;
        self.send(header, &[]);
        self.take(|answer| answer.opcode() == 0x20 && answer.itt() == itt);
    }

    /// Waits for the target's ping and answers it.
    pub(crate) fn answer_a_ping(&mut self) {
        let ping = self.take(|answer| answer.opcode() == 0x20 && answer.itt() == NO_TAG);
        let mut header = self.header(0x40, 0x80);
        header[16..20].copy_from_slice(&NO_TAG.to_be_bytes());
        header[20..24].copy_from_slice(&ping.header[20..24]);
        self.send(header, &[]);
    }

    /// The SCSI Response of this task, whatever else is answered before it.
    pub(crate) fn take_response(&mut self, itt: u32) -> Answer {
        self.take(|answer| answer.opcode() == 0x21 && answer.itt() == itt)
    }

    pub(crate) fn take_answer(&mut self, opcode: u8) -> Answer {
        self.take(|answer| answer.opcode() == opcode)
    }

    /// Whether the target has closed the connection; what it sent before is dropped.
    pub(crate) fn is_closed(&mut self) -> bool {
        let mut rest = [0; 4096];
        loop {
            match self.stream.read(&mut rest) {
                Ok(0) => return true,
                Ok(_) => {}
                Err(error) => return matches!(error.kind(), ErrorKind::ConnectionReset | ErrorKind::BrokenPipe),
            }
        }
    }

    fn take(&mut self, wanted: impl Fn(&Answer) -> bool) -> Answer {
        if let Some(at) = self.waiting.iter().position(&wanted) {
            return self.waiting.remove(at).unwrap();
        }
        loop {
            let answer = self.next().expect("an answer within ten seconds");
            if wanted(&answer) {
                return answer;
            }
            self.waiting.push_back(answer);
        }
    }

    fn next(&mut self) -> std::io::Result<Answer> {
        let mut header = [0; 48];
        self.stream.read_exact(&mut header)?;
        if self.digests.0 {
            self.check_digest(&header)?;
        }
        let length = u32::from_be_bytes([0, header[5], header[6], header[7]]) as usize;
        let mut data = vec![0; length.next_multiple_of(4)];
        self.stream.read_exact(&mut data)?;
        if length > 0 && self.digests.1 {
            self.check_digest(&data)?;
        }
        data.truncate(length);
        Ok(Answer { header, data })
    }

    /// Takes the digest that follows these bytes.
    fn check_digest(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        let mut digest = [0; 4];
        self.stream.read_exact(&mut digest)?;
        assert_eq!(digest, crc32c::crc32c(bytes).to_le_bytes(), "a digest of the target's");
        Ok(())
    }

    /// A header with a tag of its own and the CmdSN that is due.
    fn header(&mut self, opcode: u8, flags: u8) -> [u8; 48] {
        self.last_itt += 1;
        let mut header = [0; 48];
        (header[0], header[1]) = (opcode, flags);
        header[16..20].copy_from_slice(&self.last_itt.to_be_bytes());
        header[24..28].copy_from_slice(&self.cmd_sn.to_be_bytes());
        header
    }

    /// The command takes its CmdSN: it is not an immediate one.
    fn number(&mut self, header: &mut [u8; 48]) {
        header[24..28].copy_from_slice(&self.cmd_sn.to_be_bytes());
        self.cmd_sn += 1;
    }

    fn send(&mut self, mut header: [u8; 48], data: &[u8]) {
        header[5..8].copy_from_slice(&u32::try_from(data.len()).unwrap().to_be_bytes()[1..]);
        let mut bytes = header.to_vec();
        if self.digests.0 {
            bytes.extend_from_slice(&crc32c::crc32c(&header).to_le_bytes());
        }
        let start = bytes.len();
        bytes.extend_from_slice(data);
        bytes.resize(start + data.len().next_multiple_of(4), 0);
        if self.digests.1 && !data.is_empty() {
            let digest = crc32c::crc32c(&bytes[start..]).to_le_bytes();
            bytes.extend_from_slice(&digest);
        }
        self.stream.write_all(&bytes).unwrap();
    }
}
