//! What a fuzzer runs: any bytes, and damage to sound packets, against what must hold of every answer. `dhcproto` reads the
//! answers, so that they are held to somebody else's idea of the format.

use std::net::SocketAddrV6;

use dhcproto::v6::{DhcpOption, Message, MessageType, OptionCode};
use dhcproto::{Decodable, Decoder};

use super::{Arrival, LARGEST_REPLY, Outcome, Port, Reason, Site, handle};
use crate::dhcp::{Guide, Role, Site as Wired};
use crate::fleet::{Client, DiskPolicy, Fleet, Initiators, Mac, Naming, Start};

/// The machine of the one client.
pub(super) const MACHINE: [u8; 6] = [0x52, 0x54, 0, 0x77, 1, 0];
/// Our own identifier.
pub(super) const SERVER: [u8; 10] = [0, 3, 0, 1, 0x52, 0x54, 0, 0, 0, 1];
/// The transaction of every sound packet.
pub(super) const TRANSACTION: [u8; 3] = [0x0f, 0x7a, 0x58];

/// A fleet of one client, and one that is off.
pub(super) fn fleet() -> Fleet {
    let client = |name: &str, octets, off| Client {
        name: name.parse().expect("a name"),
        group: None,
        macs: Mac::from_octets(octets).into_iter().collect(),
        port: None,
        options: Vec::new(),
        ip: None,
        image: "debian-12".parse().expect("a name"),
        disk: DiskPolicy::Keep,
        initiators: Initiators::OwnOnly,
        chap: false,
        read_only: false,
        off,
        title: None,
        note: None,
        limit: None,
        start: Start::default(),
        data: None,
    };
    Fleet::new([client("pc-01", MACHINE, false), client("pc-02", [2, 0, 0, 0, 0, 2], true)]).expect("two clients")
}

/// Our place on the wire, beside or instead of another server of IPv4 addresses.
pub(super) fn site(role: Role) -> Site {
    let wired = Wired {
        server: [10, 9, 0, 1].into(),
        http_port: 80,
        naming: Naming::new("iqn.2026-11.test"),
        role,
        guide: Guide::default(),
    };
    let mac = Mac::from_octets([0x52, 0x54, 0, 0, 0, 1]).expect("a machine's");
    Site { address: "fd00:77::1".parse().expect("an address"), mac, wired }
}

/// How a machine's own packet comes.
pub(super) fn arrival(port: Port) -> Arrival {
    let from = if port == Port::Servers { "[fe80::5054:ff:fe77:100%4]:546" } else { "[fd00:77::1e3]:4011" };
    let from: SocketAddrV6 = from.parse().expect("an address");
    Arrival { from, port, neighbour: None }
}

/// Options one after another.
pub(super) fn options<'a>(options: impl IntoIterator<Item = (u16, &'a [u8])>) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (code, value) in options {
        super::put(&mut bytes, code, value);
    }
    bytes
}

/// What UEFI firmware sent: its SOLICIT, or with our identifier its question on port 4011.
pub(super) fn firmware(kind: u8, http: bool) -> Vec<u8> {
    let identifier = [&[0, 1, 0, 1, 0x31, 0xdd, 0x60, 0xc6][..], &MACHINE].concat();
    let class: &[u8] = if http {
        b"\0\0\x01\x57\0\x21HTTPClient:Arch:00016:UNDI:003000"
    } else {
        b"\0\0\x01\x57\0\x20PXEClient:Arch:00007:UNDI:003000"
    };
    let association = [0x77, 0x1e, 0xdc, 0x7b, 255, 255, 255, 255, 255, 255, 255, 255];
    let head: [(u16, &[u8]); 2] = [(1, &identifier), if kind == 1 { (3, &association) } else { (2, &SERVER) }];
    let tail: [(u16, &[u8]); 5] = [
        (8, &[0, 0]),
        (6, &[0, 59, 0, 60, 0, 23, 0, 16]),
        (62, &[1, 3, 0]),
        (61, if http { &[0, 16] } else { &[0, 7] }),
        (16, class),
    ];
    let mut bytes = vec![kind];
    bytes.extend(TRANSACTION);
    bytes.extend(options(head.into_iter().chain(tail)));
    bytes
}

/// The same as a relay brings it, with the hardware address that the relay saw.
pub(super) fn relayed(message: &[u8], mac: [u8; 6]) -> Vec<u8> {
    let mut bytes = vec![12, 0];
    bytes.extend([0xfd; 16]);
    bytes.extend("fe80::1".parse::<std::net::Ipv6Addr>().expect("an address").octets());
    let seen = [&[0, 1][..], &mac].concat();
    bytes.extend(options([(18, &b"ge-0/0/4"[..]), (79, &seen), (9, message)]));
    bytes
}

/// The body of the fuzzer.
pub fn fuzz(data: &[u8]) {
    let [choice, rest @ ..] = data else { return };
    let (role, port) = (
        if choice & 1 == 0 { Role::Server } else { Role::Proxy },
        if choice & 2 == 0 { Port::Servers } else { Port::BootServer },
    );
    let bytes = match choice >> 2 & 7 {
        0 => rest.to_vec(),
        1 => damaged(firmware(1, false), rest),
        2 => damaged(firmware(1, true), rest),
        3 => damaged(firmware(3, false), rest),
        4 => damaged(firmware(11, true), rest),
        5 => damaged(relayed(&firmware(1, false), MACHINE), rest),
        6 => damaged(relayed(&relayed(&firmware(11, false), MACHINE), [2; 6]), rest),
        // More room than an answer has.
        _ => relayed(&firmware(1, false), MACHINE).into_iter().chain(options([(18, rest)])).collect(),
    };
    check(&bytes, &handle(&fleet(), &site(role), &arrival(port), &bytes));
}

/// Each two bytes of the fuzzer are a place and what it holds instead; an odd one cuts the end off.
fn damaged(mut bytes: Vec<u8>, damage: &[u8]) -> Vec<u8> {
    for pair in damage.chunks(2) {
        let len = bytes.len();
        match pair {
            [at, value] if len > 0 => bytes[usize::from(*at) % len] = *value,
            [cut] => bytes.truncate(len.saturating_sub(usize::from(*cut))),
            _ => {}
        }
    }
    bytes
}

/// What holds of every answer.
fn check(request: &[u8], outcome: &Outcome) {
    let Some(reply) = &outcome.reply else {
        assert!(!matches!(outcome.reason, Reason::Offered(_) | Reason::Told(_)), "{outcome:?}");
        return;
    };
    assert!(reply.bytes.len() <= LARGEST_REPLY, "{} bytes", reply.bytes.len());
    assert!(outcome.note.is_some() && outcome.asker.is_some(), "an answer that nobody hears of: {outcome:?}");
    let (mut asked, mut answer) = (request.to_vec(), reply.bytes.clone());
    while asked[0] == 12 {
        assert_eq!((answer[0], &answer[1..34]), (13, &asked[1..34]), "hops, link and peer as they were");
        assert_eq!(raw(&answer[34..], 18), raw(&asked[34..], 18), "its interface");
        (asked, answer) = (inner(&asked), inner(&answer));
    }
    let message = Message::decode(&mut Decoder::new(&answer)).expect("dhcproto reads our answer");
    let kind = if asked[0] == 1 { MessageType::Advertise } else { MessageType::Reply };
    assert_eq!((message.msg_type(), &message.xid()[..]), (kind, &asked[1..4]));
    assert!(matches!(message.opts().get(OptionCode::ServerId), Some(DhcpOption::ServerId(id)) if id[..] == SERVER));
    let identifier = raw(&asked[4..], 1);
    match message.opts().get(OptionCode::ClientId) {
        Some(DhcpOption::ClientId(id)) => assert_eq!(Some(&id[..]), identifier.as_deref()),
        _ => assert_eq!(identifier, None),
    }
    let Some(url) = raw(&answer[4..], 59) else { panic!("an answer without a file: {answer:02x?}") };
    assert!(url.starts_with(b"tftp://[fd00:77::1]/") || url.starts_with(b"http://[fd00:77::1]/"), "{url:?}");
    // Firmware looks for a zero behind it.
    let end = answer.windows(url.len()).position(|part| part == url).expect("it is there") + url.len();
    assert_eq!(answer.get(end), Some(&0));
}

/// The first option with this code, by a reader of its own that stops at what is cut.
fn raw(mut bytes: &[u8], code: u16) -> Option<Vec<u8>> {
    while bytes.len() >= 4 {
        let found = u16::from_be_bytes([bytes[0], bytes[1]]);
        let end = 4 + usize::from(u16::from_be_bytes([bytes[2], bytes[3]]));
        let value = bytes.get(4..end)?;
        if found == code {
            return Some(value.to_vec());
        }
        bytes = &bytes[end..];
    }
    None
}

fn inner(bytes: &[u8]) -> Vec<u8> {
    raw(&bytes[34..], 9).expect("a relay's message holds another")
}
