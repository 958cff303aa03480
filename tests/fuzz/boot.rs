//! Bodies of fuzz tests of DHCP and TFTP: each takes any bytes, plays machines with them, and panics where an answer is not
//! what the standards and the packets themselves say it must be. They need nothing but bytes, so that a coverage-guided fuzzer
//! can hold them as well as a property test.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::{Duration, Instant};

use bytes::Bytes;
use roost::dhcp::{
    Around, Arrival, LeaseChange, Leases, Outcome, Reason, Reply, Role, Scope, Site, Wire, handle, proxy,
};
use roost::fleet::{Client, DiskPolicy, Fleet, Initiators, Lease, Mac, Naming, Pool, Subnet, Timestamp};
use roost::tftp::{Effect, Inbound, Limits, Transfer, parse};

const SERVER: Ipv4Addr = Ipv4Addr::new(10, 9, 0, 1);
const RELAY: Ipv4Addr = Ipv4Addr::new(10, 9, 1, 1);
/// Where the options begin, and the fields of the header that are read here (RFC 2131 §2).
const HEADER: usize = 240;
const XID: usize = 4;
const YIADDR: usize = 16;
const GIADDR: usize = 24;
const CHADDR: usize = 28;
const COOKIE: usize = 236;
/// Codes of options whose echo or effect is checked; everything else may stand in a packet and must not matter.
const SIZE: u8 = 57;
const CLIENT_ID: u8 = 61;
const AGENT: u8 = 82;
const OURS: [u8; 8] = [50, 52, 53, 54, SIZE, CLIENT_ID, AGENT, 118];

/// Any bytes as a source of decisions; zeros once they are spent.
struct Dice<'a>(&'a [u8]);

impl<'a> Dice<'a> {
    fn byte(&mut self) -> u8 {
        let (first, rest) = self.0.split_first().unwrap_or((&0, &[]));
        self.0 = rest;
        *first
    }

    fn below(&mut self, limit: u8) -> u8 {
        self.byte() % limit
    }

    fn bytes(&mut self, length: usize) -> &'a [u8] {
        let (now, rest) = self.0.split_at(length.min(self.0.len()));
        self.0 = rest;
        now
    }
}

fn client(name: &str, last: u8, ip: Option<Ipv4Addr>) -> Client {
    Client {
        name: name.parse().expect("a name"),
        group: None,
        macs: vec![mac(last)],
        port: None,
        options: Vec::new(),
        ip,
        image: "debian-12".parse().expect("a name"),
        disk: DiskPolicy::Keep,
        initiators: Initiators::OwnOnly,
        chap: false,
        read_only: false,
        off: false,
        title: None,
        note: None,
        limit: None,
        start: Default::default(),
        data: None,
    }
}

fn mac(last: u8) -> Mac {
    Mac::from_octets([0x52, 0x54, 0, 0xaa, 0, last]).expect("a machine's address")
}

fn pool(third: u8) -> Pool {
    let (first, last) = (Ipv4Addr::new(10, 9, third, 100), Ipv4Addr::new(10, 9, third, 103));
    Pool { first, last, router: Some(SERVER), dns: vec![SERVER], lease: Duration::from_secs(3600) }
}

/// A server of two subnets, one of them behind a relay.
struct Lab {
    leases: Leases,
    fleet: Fleet,
    wire: Wire,
    site: Site,
    now: Timestamp,
    /// What would outlive a restart.
    stored: BTreeMap<String, Lease>,
}

/// A packet of a machine, and what must be found in the answer to it.
struct Asked {
    bytes: Vec<u8>,
    /// Option 61, which comes back.
    id: Vec<u8>,
    /// Option 82, which comes back last.
    agent: Option<Vec<u8>>,
    /// The datagram that it takes, as it says.
    size: u16,
}

impl Lab {
    fn new() -> Self {
        let naming = Naming::new("iqn.2026-11.test");
        let local = Scope::new(SERVER, 24, pool(0), 80, naming.clone()).expect("a pool that fits");
        let site = Site { server: SERVER, http_port: 80, naming, role: Role::Server, guide: Default::default() };
        let far = Subnet { name: "far".into(), network: Ipv4Addr::new(10, 9, 1, 0), prefix: 24, pool: pool(1) };
        let beyond = vec![Scope::of(&site, &far).expect("a pool that fits")];
        let fixed = Some(Ipv4Addr::new(10, 9, 0, 101));
        Self {
            leases: Leases::default(),
            fleet: Fleet::new([client("pc-01", 1, fixed), client("pc-02", 2, None)]).expect("two clients"),
            wire: Wire::new(site.clone(), Some(local), beyond),
            site,
            now: Timestamp(1_700_000_000_000),
            stored: BTreeMap::new(),
        }
    }

    fn hear(&mut self, bytes: &[u8], to: Ipv4Addr) -> Outcome {
        let arrival = Arrival { from: SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 68), to };
        let around = Around { fleet: &self.fleet, wire: &self.wire, in_session: &|_| None };
        let outcome = handle(&mut self.leases, around, self.now, &arrival, bytes);
        for change in &outcome.persist {
            match change {
                LeaseChange::Held(lease) => drop(self.stored.insert(format!("{:?}", lease.holder), lease.clone())),
                LeaseChange::Gone(holder) => drop(self.stored.remove(&format!("{holder:?}"))),
            }
        }
        outcome
    }

    /// What must be true after every packet, whatever it was.
    fn check(&self, outcome: &Outcome, bytes: &[u8]) {
        let kept: Vec<&Lease> = self.leases.iter().collect();
        assert!(kept.windows(2).all(|pair| pair[0].address < pair[1].address), "an address has two holders");
        assert_eq!(kept.len(), self.stored.len());
        assert!(self.stored.values().all(|lease| kept.contains(&lease)), "what is stored is what holds");
        if let Reason::Acked(address, _) = outcome.reason {
            let stored = self.stored.values().find(|lease| lease.address == address).expect("an ACK's lease is stored");
            assert!(stored.expires > self.now && stored.mac.octets() == bytes[CHADDR..CHADDR + 6]);
        }
        if let Some(reply) = &outcome.reply {
            check_reply(reply, bytes);
        }
    }
}

/// The shape of every reply: 300 bytes at least, as many at most as any client takes, its options whole, in order, and ended.
fn check_reply(reply: &Reply, asked: &[u8]) -> BTreeMap<u8, Vec<u8>> {
    let bytes = &reply.bytes;
    assert!((300..=1472).contains(&bytes.len()), "{} bytes", bytes.len());
    assert_eq!(bytes[0], 2, "BOOTREPLY");
    assert_eq!(bytes[XID..XID + 4], asked[XID..XID + 4], "xid");
    assert_eq!(bytes[GIADDR..GIADDR + 4], asked[GIADDR..GIADDR + 4], "giaddr");
    assert_eq!(bytes[CHADDR..CHADDR + 6], asked[CHADDR..CHADDR + 6], "chaddr");
    assert_eq!(bytes[COOKIE..HEADER], [99, 130, 83, 99], "cookie");
    let (mut options, mut order, mut rest) = (BTreeMap::new(), Vec::new(), &bytes[HEADER..]);
    loop {
        match rest {
            [255, padding @ ..] => {
                assert!(padding.iter().all(|byte| *byte == 0), "nothing behind the end");
                break;
            }
            [code, length, tail @ ..] if *code != 0 => {
                let (value, tail) = tail.split_at_checked(usize::from(*length)).expect("an option is whole");
                assert!(options.insert(*code, value.to_vec()).is_none(), "option {code} stands twice");
                order.push(*code);
                rest = tail;
            }
            other => panic!("no option at {:?}", other.get(..4)),
        }
    }
    assert_eq!(order[..2], [53, 54]);
    assert!(order.iter().position(|code| *code == AGENT).is_none_or(|at| at == order.len() - 1), "82 is last");
    options
}

/// A packet of one of nine machines with any options between those that are checked.
fn asked(dice: &mut Dice<'_>) -> Asked {
    let mut bytes = vec![0; HEADER];
    bytes[..3].copy_from_slice(&[1, 1, 6]);
    bytes[XID..XID + 4].copy_from_slice(&[1, 2, 3, dice.byte()]);
    bytes[10] = dice.byte();
    bytes[CHADDR..CHADDR + 6].copy_from_slice(&mac(1 + dice.below(9)).octets());
    bytes[COOKIE..HEADER].copy_from_slice(&[99, 130, 83, 99]);
    let relayed = dice.below(3) == 0;
    if relayed {
        bytes[GIADDR..GIADDR + 4].copy_from_slice(&RELAY.octets());
    }
    let address = Ipv4Addr::new(10, 9, u8::from(relayed), 99 + dice.below(6));
    let kind = [1, 3, 4, 7, 8][usize::from(dice.below(5))];
    if dice.below(4) == 0 || kind > 4 {
        bytes[12..16].copy_from_slice(&address.octets());
    }
    let id = dice.bytes(9).to_vec();
    let size = u16::from(dice.byte()) * 8;
    let mut wanted = vec![(53, vec![kind]), (SIZE, size.to_be_bytes().to_vec())];
    if !id.is_empty() {
        wanted.push((CLIENT_ID, id.clone()));
    }
    if dice.below(2) == 0 {
        wanted.push((50, address.octets().to_vec()));
    }
    if dice.below(2) == 0 {
        wanted.push((54, SERVER.octets().to_vec()));
    }
    let agent = (relayed && dice.below(2) == 0).then(|| {
        // Link selection and the server's own name would make it another question.
        let length = dice.below(40);
        [&[1, length][..], &vec![b'p'; usize::from(length)]].concat()
    });
    wanted.extend(agent.clone().map(|agent| (AGENT, agent)));
    for (code, value) in wanted {
        // What stands before an option must not hide it: pads, and options that make no sense.
        for _ in 0..dice.below(3) {
            let junk = dice.byte();
            if junk == 0 {
                bytes.push(0);
            } else if junk != 255 && !OURS.contains(&junk) {
                let length = dice.below(40);
                let value = dice.bytes(usize::from(length));
                bytes.extend([junk, u8::try_from(value.len()).expect("below 40")]);
                bytes.extend(value);
            }
        }
        bytes.extend([code, u8::try_from(value.len()).expect("short")]);
        bytes.extend(value);
    }
    // One that is cut short ends the options.
    match dice.below(3) {
        0 => bytes.extend([12, 200, 1]),
        _ => bytes.push(255),
    }
    Asked { bytes, id, agent, size }
}

/// Any bytes, and machines that ask for addresses: packets with any options between those that matter, in any order.
pub(crate) fn dhcp(bytes: &[u8]) {
    let mut lab = Lab::new();
    let beside = Site { role: Role::Proxy, ..lab.site.clone() };
    for to in [SERVER, Ipv4Addr::BROADCAST] {
        let outcome = lab.hear(bytes, to);
        lab.check(&outcome, bytes);
    }
    let mut dice = Dice(bytes);
    while !dice.0.is_empty() {
        let packet = asked(&mut dice);
        let to = if dice.below(2) == 0 { SERVER } else { Ipv4Addr::BROADCAST };
        let outcome = lab.hear(&packet.bytes, to);
        assert!(outcome.asker.is_some(), "a sound packet is a request: {}", outcome.reason);
        lab.check(&outcome, &packet.bytes);
        let arrival = Arrival { from: SocketAddrV4::new(Ipv4Addr::new(10, 9, 0, 60), 4011), to: SERVER };
        let others = [
            proxy::overheard(&lab.fleet, &beside, &packet.bytes),
            proxy::asked(&lab.fleet, &lab.site, &arrival, &packet.bytes),
        ];
        for reply in [outcome].into_iter().chain(others).filter_map(|outcome| outcome.reply) {
            let options = check_reply(&reply, &packet.bytes);
            let most = usize::from(packet.size.clamp(576, 1500)) - 28;
            assert!(reply.bytes.len() <= most, "{} bytes for a client that takes {most}", reply.bytes.len());
            let id = Some(&packet.id).filter(|id| !id.is_empty() && !reply.left_out.contains(&CLIENT_ID));
            assert_eq!(options.get(&CLIENT_ID), id, "option 61 comes back");
            assert_eq!(options.get(&AGENT), packet.agent.as_ref(), "option 82 comes back");
            if options.get(&53) == Some(&vec![6]) {
                assert_eq!(reply.bytes[YIADDR..YIADDR + 4], [0; 4], "a NAK gives no address");
            }
        }
        match dice.below(8) {
            0 => lab.now = lab.now.after(Duration::from_secs(60 * u64::from(dice.byte()))),
            1 => lab.leases = Leases::restore(lab.stored.values().cloned().collect()),
            _ => {}
        }
    }
}

/// What an option of a read request must be read as, by its own words (RFC 2347, RFC 2348, RFC 2349, RFC 7440).
fn understood(
    options: &[(Vec<u8>, Vec<u8>)],
    name: &str,
    range: std::ops::RangeInclusive<u64>,
    most: u64,
) -> Option<u64> {
    let mut said = options.iter().filter(|(option, _)| option.eq_ignore_ascii_case(name.as_bytes()));
    said.find_map(|(_, value)| {
        let digits = std::str::from_utf8(value).ok().filter(|text| text.bytes().all(|byte| byte.is_ascii_digit()))?;
        digits.parse().ok().filter(|value| range.contains(value)).map(|value: u64| value.min(most))
    })
}

/// Any bytes; a read request with any options between sound ones; and the transfer that it begins, with any packets.
pub(crate) fn tftp(bytes: &[u8]) {
    let _ = parse(bytes);
    let mut dice = Dice(bytes);
    let mut options: Vec<(Vec<u8>, Vec<u8>)> = Vec::new();
    for _ in 0..dice.below(9) {
        let length = usize::from(dice.below(6));
        let value: Vec<u8> = dice.bytes(length).iter().map(|byte| byte.max(&1)).copied().collect();
        let number = (u32::from(dice.byte()) << dice.below(9)).to_string().into_bytes();
        let name =
            ["blksize", "BlkSize", "windowsize", "tsize", "timeout", "multicast", ""][usize::from(dice.below(7))];
        let value = if dice.below(2) == 0 { number } else { value };
        options.push((name.as_bytes().to_vec(), value));
    }
    let mut packet = b"\0\x01snponly.efi\0octet\0".to_vec();
    for (name, value) in &options {
        packet.extend([&name[..], b"\0", value, b"\0"].concat());
    }
    let Inbound::Read(request) = parse(&packet) else { panic!("a read request is one") };
    assert_eq!(request.name, b"snponly.efi");
    let asked = request.options;
    let read = |name, range, most| understood(&options, name, range, most);
    assert_eq!(asked.blksize.map(u64::from), read("blksize", 8..=u64::MAX, 65_464));
    assert_eq!(asked.windowsize.map(u64::from), read("windowsize", 1..=u64::MAX, 65_535));
    assert_eq!(asked.timeout.map(u64::from), read("timeout", 1..=255, 255));
    assert_eq!(asked.tsize, read("tsize", 0..=u64::MAX, u64::MAX).is_some());

    let file: Bytes = (0..u16::from(dice.byte()) * 9).map(|at| at.to_le_bytes()[0] ^ at.to_le_bytes()[1]).collect();
    let limits = Limits::for_mtu(1500);
    let blksize = usize::from(asked.blksize.unwrap_or(512).min(limits.blksize));
    let mut now = Instant::now();
    let (mut transfer, mut effects) = Transfer::new(asked, file.clone(), limits, now);
    let mut offered = !asked.is_empty();
    loop {
        let mut sent = 0;
        for effect in &effects {
            let Effect::Send(packet) = effect else { return };
            match packet[..4] {
                [0, 3, high, low] => {
                    // No block number comes twice in so short a file.
                    let from = (usize::from(u16::from_be_bytes([high, low])) - 1) * blksize;
                    assert_eq!(packet[4..], file[from..file.len().min(from + blksize)], "the file's own bytes");
                    sent += packet.len() - 4;
                }
                [0, 6, ..] => {
                    assert!(std::mem::replace(&mut offered, true), "an OACK to a client that asked for nothing");
                }
                ref other => panic!("{other:?} is nothing that a server sends in a transfer"),
            }
        }
        assert!(sent <= limits.window_bytes.max(blksize), "{sent} bytes at once");
        now += Duration::from_millis(40 * u64::from(dice.byte()));
        effects = match dice.below(6) {
            _ if dice.0.is_empty() => return,
            0 => {
                let length = usize::from(dice.below(12));
                transfer.on_packet(now, dice.bytes(length))
            }
            1 => transfer.on_request_again(now),
            2 => transfer.on_timeout(now),
            _ => transfer.on_packet(now, &[0, 4, 0, dice.byte()]),
        };
    }
}
