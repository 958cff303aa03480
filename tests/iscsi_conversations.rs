//! Conversations with real initiators, replayed: what each of them sent was recorded on the wire, what it must hear stands
//! beside it.
//!
//! `tests/conversations/NAME/01-in.hex` is one PDU of the initiator's and `01-out.txt` the answer, a line for each PDU;
//! `chap.txt` has the secrets and the challenge of that day. `ROOST_UPDATE=1 cargo test --test iscsi_conversations` writes
//! what is answered now; read the difference before you keep it.

#![expect(clippy::unwrap_used, reason = "in a test an unwrap is an assertion, in its helpers too")]

use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::sync::{Arc, Mutex};

use bytes::BytesMut;
use roost::iscsi::chap::{Credentials, Nonce};
use roost::iscsi::login::{Login, Next, Verdict};
use roost::iscsi::pdu::{Digests, Pdu, opcode};
use roost::iscsi::session::Session;
use roost::iscsi::{MAX_DATA_SEGMENT, frame};
use roost::scsi::unit::LogicalUnit;
use roost::scsi::{InitiatorPort, Nexus};

const UPDATE: &str = "ROOST_UPDATE";

fn bytes(hex: &str) -> Vec<u8> {
    let digits: Vec<u32> = hex.chars().filter_map(|c| c.to_digit(16)).collect();
    digits.chunks(2).map(|pair| u8::try_from(pair[0] << 4 | pair[1]).unwrap()).collect()
}

/// What both ends knew, and the challenge of that login.
fn chap(folder: &Path) -> Verdict {
    let text = fs::read_to_string(folder.join("chap.txt")).unwrap();
    let value = |key: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(' '));
        line.unwrap_or_else(|| panic!("{}: no {key}", folder.display())).to_owned()
    };
    let mut challenge = [0; 32];
    let sent = bytes(&value("challenge"));
    challenge[..sent.len()].copy_from_slice(&sent);
    let credentials = Credentials {
        user: value("user"),
        secret: value("secret"),
        target_user: value("target-user"),
        target_secret: value("target-secret"),
    };
    Verdict::Chap {
        credentials,
        nonce: Nonce { identifier: value("identifier").parse().unwrap(), challenge },
        required: true,
    }
}

/// The fields of an answer that tell.
fn lines(out: &[u8]) -> String {
    let (mut input, mut lines) = (BytesMut::from(out), String::new());
    while let Some(Pdu { header, data, .. }) = frame::next(&mut input, MAX_DATA_SEGMENT, Digests::NONE).unwrap() {
        let numbers = format!("StatSN={} ExpCmdSN={} MaxCmdSN={}", header.word(24), header.word(28), header.word(32));
        match header.opcode() {
            opcode::LOGIN_RESPONSE => {
                let status = header.word(36) >> 16;
                writeln!(lines, "Login Response flags={:02x} status={status:04x} {numbers}", header.flags()).unwrap();
                let text = String::from_utf8(data.to_vec()).unwrap();
                text.split_terminator('\0').for_each(|pair| writeln!(lines, "    {pair}").unwrap());
            }
            opcode::SCSI_RESPONSE => writeln!(lines, "SCSI Response status={:02x} {numbers}", header.0[3]).unwrap(),
            other => {
                writeln!(lines, "{other:02x} flags={:02x} length={} {numbers}", header.flags(), data.len()).unwrap();
            }
        }
    }
    assert!(input.is_empty(), "whole PDUs are sent");
    lines
}

fn replay(folder: &Path) {
    let mut unit = LogicalUnit::new("iqn.2026-11.internal.roost:pc-01", 1 << 30, false);
    unit.attach(Nexus(1), InitiatorPort { name: "i".to_owned(), isid: [0; 6] });
    let unit = Arc::new(Mutex::new(unit));
    let (mut login, mut session) = (Login::default(), None::<Session>);
    for number in 1.. {
        let Ok(hex) = fs::read_to_string(folder.join(format!("{number:02}-in.hex"))) else {
            assert!(number > 1, "{}: nothing is said", folder.display());
            break;
        };
        let mut input = BytesMut::from(&bytes(&hex)[..]);
        let pdu = frame::next(&mut input, MAX_DATA_SEGMENT, Digests::NONE).unwrap().expect("one whole PDU");
        let mut out = Vec::new();
        if let Some(session) = &mut session {
            session.receive(pdu, std::slice::from_ref(&unit)).unwrap();
            out.append(session.output());
        } else {
            let mut next = login.receive(&pdu, &mut out).unwrap();
            loop {
                next = match next {
                    Next::Authorize(_) => login.authorized(chap(folder), &mut out),
                    Next::Establish(_) => login.established(Ok(5), &mut out),
                    Next::Done(agreed) => break session = Some(Session::new(Nexus(1), &agreed)),
                    Next::Continue => break,
                    Next::Refused(status) => panic!("{}: {status:?}, {:?}", folder.display(), login.why()),
                };
            }
        }
        let (heard, file) = (lines(&out), folder.join(format!("{number:02}-out.txt")));
        if std::env::var_os(UPDATE).is_some() {
            fs::write(&file, &heard).unwrap();
        }
        let must = fs::read_to_string(&file).unwrap_or_default();
        assert_eq!(heard, must, "{}", file.display());
    }
    assert!(session.is_some(), "{}: it logs in", folder.display());
}

#[test]
fn real_initiators_hear_what_they_heard() {
    let all = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/conversations");
    let mut folders: Vec<_> = fs::read_dir(all).unwrap().map(|entry| entry.unwrap().path()).collect();
    folders.sort();
    assert!(folders.len() >= 2);
    folders.iter().for_each(|folder| replay(folder));
}
