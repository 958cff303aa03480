//! Packets as real clients send them, hostile packets, and a lab's worth of random machines against a model.

mod ways;

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::time::Duration;

use dhcproto::v4::{self, DhcpOption, OptionCode};
use dhcproto::{Decodable, Decoder};
use proptest::prelude::*;

use super::wire::at;
use super::*;
use crate::fleet::lease::MAX_STRANGERS;
use crate::fleet::{DiskPolicy, ExtraOption, Initiators, Lease, Naming, Pool, Subnet};

const SERVER: Ipv4Addr = Ipv4Addr::new(10, 9, 0, 1);
const SCRIPT_URL: &str = "http://10.9.0.1/boot.ipxe?mac=${mac:hexhyp}";
const LEASE: Duration = Duration::from_secs(8 * 3600);
const T0: Timestamp = Timestamp(1_700_000_000_000);
const UUID: [u8; 16] = [0x42, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15];

fn mac(last: u8) -> Mac {
    Mac::from_octets([0x52, 0x54, 0, 0xaa, 0, last]).unwrap()
}

fn name(text: &str) -> ClientName {
    text.parse().unwrap()
}

pub(super) fn client(text: &str, macs: &[u8], ip: Option<[u8; 4]>) -> Client {
    Client {
        name: name(text),
        group: None,
        macs: macs.iter().copied().map(mac).collect(),
        port: None,
        options: Vec::new(),
        ip: ip.map(Ipv4Addr::from),
        image: "debian-12".parse().unwrap(),
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

/// pc-01 has a fixed address inside the pool, pc-02 has none, pc-03 is off.
fn fleet() -> Fleet {
    let off = Client { off: true, ..client("pc-03", &[3], None) };
    Fleet::new([client("pc-01", &[1], Some([10, 9, 0, 101])), client("pc-02", &[2], None), off]).unwrap()
}

fn scope_of(first: u8, last: u8) -> Scope {
    let pool = Pool {
        first: Ipv4Addr::new(10, 9, 0, first),
        last: Ipv4Addr::new(10, 9, 0, last),
        router: Some(Ipv4Addr::new(10, 9, 0, 254)),
        dns: vec![Ipv4Addr::new(10, 9, 0, 253), Ipv4Addr::new(9, 9, 9, 9)],
        lease: LEASE,
    };
    Scope::new(SERVER, 24, pool, 80, Naming::new("iqn.2026-11.test")).unwrap()
}

/// A server with its clock.
struct Lab {
    leases: Leases,
    fleet: Fleet,
    scope: Scope,
    /// Subnets behind relays.
    beyond: Vec<Scope>,
    sessions: BTreeMap<Ipv4Addr, ClientName>,
    now: Timestamp,
}

impl Lab {
    fn new() -> Self {
        let (leases, scope) = (Leases::default(), scope_of(100, 103));
        Self { leases, fleet: fleet(), scope, beyond: Vec::new(), sessions: BTreeMap::new(), now: T0 }
    }

    fn hear(&mut self, packet: &Packet) -> Outcome {
        self.hear_bytes(&packet.bytes(), Ipv4Addr::BROADCAST)
    }

    fn hear_unicast(&mut self, packet: &Packet) -> Outcome {
        self.hear_bytes(&packet.bytes(), SERVER)
    }

    fn hear_bytes(&mut self, bytes: &[u8], to: Ipv4Addr) -> Outcome {
        let arrival = Arrival { from: SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, CLIENT_PORT), to };
        self.hear_from(&arrival, bytes)
    }

    fn hear_from(&mut self, arrival: &Arrival, bytes: &[u8]) -> Outcome {
        let wire = Wire::new(self.scope.site().clone(), Some(self.scope.clone()), self.beyond.clone());
        let sessions = &self.sessions;
        let in_session = |address| sessions.get(&address).cloned();
        let around = Around { fleet: &self.fleet, wire: &wire, in_session: &in_session };
        handle(&mut self.leases, around, self.now, arrival, bytes)
    }

    /// DISCOVER and REQUEST; the address, or why there is none.
    fn boot(&mut self, last: u8) -> Result<Ipv4Addr, Reason> {
        let offered = match self.hear(&Packet::new(1, last)).reason {
            Reason::Offered(address, _) => address,
            other => return Err(other),
        };
        match self.hear(&Packet::new(3, last).selecting(offered)).reason {
            Reason::Acked(address, State::Selecting) => Ok(address),
            other => Err(other),
        }
    }

    fn pass(&mut self, span: Duration) {
        self.now = self.now.after(span);
    }
}

/// A request in the making.
#[derive(Debug, Clone)]
struct Packet {
    header: [u8; wire::HEADER],
    options: Vec<(u8, Vec<u8>)>,
}

impl Packet {
    fn new(kind: u8, last: u8) -> Self {
        let mut header = [0; wire::HEADER];
        header[..3].copy_from_slice(&[1, 1, 6]);
        let packet = Self { header, options: vec![(code::KIND, vec![kind])] };
        packet.with(at::XID, &[1, 2, 3, last]).with(at::CHADDR, &mac(last).octets()).with(at::COOKIE, &wire::COOKIE)
    }

    fn with(mut self, at: usize, field: &[u8]) -> Self {
        self.header[at..at + field.len()].copy_from_slice(field);
        self
    }

    fn option(mut self, code: u8, value: &[u8]) -> Self {
        self.options.push((code, value.to_vec()));
        self
    }

    fn without(mut self, code: u8) -> Self {
        self.options.retain(|option| option.0 != code);
        self
    }

    fn selecting(self, address: Ipv4Addr) -> Self {
        self.option(code::REQUESTED, &address.octets()).option(code::SERVER, &SERVER.octets())
    }

    fn using(self, address: Ipv4Addr) -> Self {
        self.with(at::CIADDR, &address.octets())
    }

    fn bytes(&self) -> Vec<u8> {
        let mut bytes = self.header.to_vec();
        for (code, value) in &self.options {
            bytes.extend([*code, u8::try_from(value.len()).unwrap()]);
            bytes.extend(value);
        }
        bytes.push(code::END);
        bytes
    }

    /// iPXE (2019), by BIOS or EFI.
    fn ipxe(kind: u8, last: u8, architecture: u8) -> Self {
        let class =
            if architecture == 0 { "PXEClient:Arch:00000:UNDI:002001" } else { "PXEClient:Arch:00007:UNDI:003010" };
        let mut wanted = vec![1, 3, 6, 7, 12, 15, 17, 26, 43, 60, 66, 67, 119];
        wanted.extend(128..=135);
        wanted.extend([175, 203]);
        let mut features = vec![0xb1, 5, 1, 0x1a, 0xf4, 0x10, 0, 0xeb, 3, 1, 0, 0];
        for feature in [0x11, 0x13, 0x18, 0x21, 0x27] {
            features.extend([feature, 1, 1]);
        }
        Self::new(kind, last)
            .option(57, &1472_u16.to_be_bytes())
            .option(93, &[0, architecture])
            .option(94, if architecture == 0 { &[1, 2, 1] } else { &[1, 3, 0x10] })
            .option(60, class.as_bytes())
            .option(77, b"iPXE")
            .option(55, &wanted)
            .option(175, &features)
            .option(61, &[&[1], &mac(last).octets()[..]].concat())
            .option(97, &[&[0], &UUID[..]].concat())
    }

    /// OVMF 2022.11's own PXE client.
    fn ovmf(kind: u8, last: u8) -> Self {
        let mut wanted: Vec<u8> = [1, 2, 3, 4, 5, 6, 12, 13, 15, 17, 18, 22, 23, 28, 40, 41, 42, 43].to_vec();
        wanted.extend([50, 51, 54, 58, 59, 60, 66, 67, 97]);
        wanted.extend(128..=135);
        let size: u16 = if kind == 1 { 1472 } else { 65280 };
        Self::new(kind, last)
            .with(at::FLAGS, &[0x80, 0])
            .option(57, &size.to_be_bytes())
            .option(55, &wanted)
            .option(97, &[0; 17])
            .option(94, &[1, 3, 0])
            .option(93, &[0, 7])
            .option(60, b"PXEClient:Arch:00007:UNDI:003000")
    }

    /// Debian's initramfs.
    fn linux(kind: u8, last: u8) -> Self {
        Self::new(kind, last).option(60, b"Linux ipconfig").option(55, &[1, 3, 6, 12, 15, 17, 26, 28, 40, 119, 121])
    }
}

/// What an independent decoder reads in our reply.
fn decode(outcome: &Outcome) -> v4::Message {
    let bytes = &outcome.reply.as_ref().expect("an answer").bytes;
    assert!(bytes.len() >= 300, "{} bytes", bytes.len());
    v4::Message::decode(&mut Decoder::new(bytes)).unwrap()
}

/// The options in the order of the packet, without a decoder of anybody.
fn raw_options(bytes: &[u8]) -> Vec<(u8, Vec<u8>)> {
    let (mut rest, mut found) = (&bytes[wire::HEADER..], Vec::new());
    while let [code, len, tail @ ..] = rest
        && *code != code::END
    {
        let (value, tail) = tail.split_at(usize::from(*len));
        found.push((*code, value.to_vec()));
        rest = tail;
    }
    assert_eq!(rest[0], code::END);
    assert!(rest[1..].iter().all(|byte| *byte == 0), "only zeros stand behind the end");
    found
}

fn raw(outcome: &Outcome, code: u8) -> Option<Vec<u8>> {
    let options = raw_options(&outcome.reply.as_ref().expect("an answer").bytes);
    options.into_iter().find(|option| option.0 == code).map(|option| option.1)
}

fn ip(last: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 9, 0, last)
}

#[test]
fn ovmf_is_offered_its_loader_as_an_independent_decoder_reads_it() {
    let mut lab = Lab::new();
    let outcome = lab.hear(&Packet::ovmf(1, 1));
    assert_eq!(outcome.reason, Reason::Offered(ip(101), Handout::Loader(UEFI_X64_LOADER)));
    assert_eq!(outcome.persist, []);
    assert_eq!(outcome.reply.as_ref().unwrap().to, Destination::Broadcast, "the broadcast flag was set");
    let offer = decode(&outcome);
    assert_eq!((offer.opcode(), offer.xid()), (v4::Opcode::BootReply, 0x0102_0301));
    assert_eq!((offer.yiaddr(), offer.ciaddr(), offer.siaddr()), (ip(101), Ipv4Addr::UNSPECIFIED, SERVER));
    assert!(offer.flags().broadcast());
    assert_eq!(offer.chaddr(), mac(1).octets());
    assert_eq!(offer.fname(), Some(&b"snponly.efi\0"[..]));
    let expected = [
        DhcpOption::MessageType(v4::MessageType::Offer),
        DhcpOption::ServerIdentifier(SERVER),
        DhcpOption::AddressLeaseTime(28_800),
        DhcpOption::Renewal(14_400),
        DhcpOption::Rebinding(25_200),
        DhcpOption::SubnetMask(Ipv4Addr::new(255, 255, 255, 0)),
        DhcpOption::Router(vec![ip(254)]),
        DhcpOption::DomainNameServer(vec![ip(253), Ipv4Addr::new(9, 9, 9, 9)]),
        DhcpOption::BroadcastAddr(ip(255)),
        DhcpOption::Hostname("pc-01".into()),
        DhcpOption::TFTPServerName(b"10.9.0.1".to_vec()),
        DhcpOption::BootfileName(b"snponly.efi\0".to_vec()),
        DhcpOption::ClassIdentifier(b"PXEClient".to_vec()),
        DhcpOption::VendorExtensions(vec![6, 1, 8, 255]),
    ];
    for option in &expected {
        assert_eq!(offer.opts().get(OptionCode::from(option)), Some(option));
    }
    // And the UUID of zeros, as it was sent.
    assert_eq!(raw(&outcome, 97), Some(vec![0; 17]));
    assert_eq!(offer.opts().iter().count(), expected.len() + 1, "nothing else: {:?}", offer.opts());
    let codes: Vec<u8> = raw_options(&outcome.reply.unwrap().bytes).into_iter().map(|option| option.0).collect();
    assert_eq!(codes[..2], [53, 54]);

    let asker = outcome.asker.unwrap();
    assert_eq!((asker.machine.netboot, asker.machine.ipxe, asker.machine.uuid), (true, false, None));
    let note = outcome.note.unwrap();
    assert_eq!((note.stage, note.client), (Stage::Offer, Some(name("pc-01"))));
    assert_eq!(note.detail, "10.9.0.101, snponly.efi (UEFI x64)");

    let ack = lab.hear(&Packet::ovmf(3, 1).selecting(ip(101)));
    assert_eq!(ack.reason, Reason::Acked(ip(101), State::Selecting));
    let lease =
        Lease { holder: Holder::Client(name("pc-01")), address: ip(101), mac: mac(1), expires: T0.after(LEASE) };
    assert_eq!(ack.persist, [LeaseChange::Held(lease)]);
    assert_eq!(decode(&ack).opts().msg_type(), Some(v4::MessageType::Ack));
    assert_eq!(ack.note, None, "one note for one offer");
}

#[test]
fn ipxe_is_offered_its_script_and_its_initiator_name() {
    for (architecture, words) in [(0, "iPXE, BIOS"), (7, "iPXE, UEFI x64")] {
        let mut lab = Lab::new();
        let outcome = lab.hear(&Packet::ipxe(1, 2, architecture));
        assert_eq!(outcome.reason, Reason::Offered(ip(100), Handout::Script));
        assert_eq!(outcome.reply.as_ref().unwrap().to, Destination::Frame { ip: ip(100), mac: mac(2) });
        assert_eq!(decode(&outcome).fname(), Some(&[SCRIPT_URL.as_bytes(), b"\0"].concat()[..]));
        assert_eq!(decode(&outcome).siaddr(), SERVER);
        assert_eq!(raw(&outcome, 67), Some([SCRIPT_URL.as_bytes(), b"\0"].concat()));
        assert_eq!(raw(&outcome, 175), Some(vec![0xb0, 1, 1]));
        assert_eq!(raw(&outcome, 203), Some(b"iqn.2026-11.test:client.pc-02".to_vec()));
        assert_eq!(raw(&outcome, 61), Some([&[1], &mac(2).octets()[..]].concat()));
        assert_eq!(raw(&outcome, 97), Some([&[0], &UUID[..]].concat()));
        assert_eq!((raw(&outcome, 60), raw(&outcome, 43)), (None, None));
        let asker = outcome.asker.unwrap();
        assert_eq!((asker.machine.ipxe, asker.machine.uuid), (true, Some(UUID)));
        let detail = outcome.note.unwrap().detail;
        assert!(detail.contains(words), "{detail}");
    }
}

#[test]
fn the_operating_system_gets_the_address_of_its_loader_and_no_boot_file() {
    let mut lab = Lab::new();
    let first = lab.hear(&Packet::ipxe(1, 9, 7));
    lab.hear(&Packet::ipxe(3, 9, 7).selecting(ip(100)));
    assert_eq!(first.reason, Reason::Offered(ip(100), Handout::Script));
    // The same machine with another option 61, or none: the MAC decides.
    let later = lab.hear(&Packet::linux(1, 9).option(61, b"\xff\x00\x01\x02\x03"));
    assert_eq!(later.reason, Reason::Offered(ip(100), Handout::AddressOnly));
    for absent in [43, 60, 66, 67, 97, 175, 203, 12] {
        assert_eq!(raw(&later, absent), None, "option {absent}");
    }
    assert_eq!(decode(&later).siaddr(), Ipv4Addr::UNSPECIFIED);
    assert_eq!(later.note, None);
}

#[test]
fn each_architecture_gets_its_loader_or_is_told_that_there_is_none() {
    for (option, handout) in [
        (Some(vec![0, 0]), Handout::Loader(BIOS_LOADER)),
        (None, Handout::Loader(BIOS_LOADER)),
        (Some(vec![7]), Handout::Loader(BIOS_LOADER)),
        (Some(vec![0, 7]), Handout::Loader(UEFI_X64_LOADER)),
        (Some(vec![0, 9, 0, 7]), Handout::Loader(UEFI_X64_LOADER)),
        (Some(vec![0, 6]), Handout::NoLoader(6)),
        (Some(vec![0, 11]), Handout::NoLoader(11)),
        (Some(vec![0, 16]), Handout::NoLoader(16)), // 60 says PXE, which it does not speak
    ] {
        let mut packet = Packet::new(1, 2).option(60, b"PXEClient");
        if let Some(value) = &option {
            packet = packet.option(93, value);
        }
        let outcome = Lab::new().hear(&packet);
        assert_eq!(outcome.reason, Reason::Offered(ip(100), handout), "{option:?}");
        if matches!(handout, Handout::NoLoader(_)) {
            assert_eq!((raw(&outcome, 67), raw(&outcome, 60)), (None, None));
            let words = outcome.note.unwrap().detail;
            assert!(words.contains("there is no loader for"), "{words}");
        }
    }
}

#[test]
fn ipxe_is_known_by_its_user_class_in_either_form_or_by_its_own_option() {
    for packet in [
        Packet::new(1, 2).option(77, b"iPXE"),
        Packet::new(1, 2).option(77, b"\x04iPXE"),
        Packet::new(1, 2).option(175, &[0xeb, 3, 1, 0, 0]),
    ] {
        assert_eq!(Lab::new().hear(&packet).reason, Reason::Offered(ip(100), Handout::Script));
    }
}

#[test]
fn a_client_that_is_off_is_not_answered_at_all() {
    let mut lab = Lab::new();
    for packet in [Packet::new(1, 3), Packet::new(3, 3).selecting(ip(100)), Packet::new(8, 3).using(ip(100))] {
        let outcome = lab.hear(&packet);
        assert_eq!(outcome.reason, Reason::OutOfService(name("pc-03")));
        assert_eq!((outcome.reply, outcome.persist, outcome.note), (None, vec![], None));
    }
}

#[test]
fn what_is_no_request_on_this_wire_is_ignored_with_its_reason() {
    let mut lab = Lab::new();
    let discover = Packet::new(1, 2);
    let relay = Ipv4Addr::new(10, 8, 0, 1);
    let mut cases = vec![
        (discover.clone().with(0, &[2]), Reason::Malformed(Malformed::Op(2))),
        (discover.clone().with(1, &[6]), Reason::Malformed(Malformed::Hardware { kind: 6, len: 6 })),
        (discover.clone().with(at::COOKIE, &[0]), Reason::Malformed(Malformed::Cookie)),
        (discover.clone().with(at::CHADDR, &[0; 6]), Reason::Malformed(Malformed::Mac([0; 6]))),
        (discover.with(at::GIADDR, &relay.octets()), Reason::NoSubnet(relay)),
        (Packet::new(2, 2), Reason::Malformed(Malformed::Kind(2))),
        (Packet::new(3, 2), Reason::NothingAsked),
        (Packet::new(8, 2), Reason::NothingAsked),
    ];
    for len in (0..=255).filter(|len| *len != 6) {
        let reason = Reason::Malformed(Malformed::Hardware { kind: 1, len });
        let words = format!("ignored: hardware type 1 with addresses of {len} bytes is not Ethernet");
        assert_eq!(reason.to_string(), words);
        cases.push((Packet::new(1, 2).with(2, &[len]), reason));
    }
    let mut without_kind = Packet::new(1, 2);
    without_kind.options.clear();
    cases.push((without_kind, Reason::Malformed(Malformed::NoKind)));
    for (packet, reason) in cases {
        let outcome = lab.hear(&packet);
        assert_eq!(outcome.reason, reason);
        assert_eq!((outcome.reply, outcome.persist, outcome.note), (None, vec![], None), "{reason:?}");
    }
    assert_eq!(lab.hear_bytes(&[1; 239], SERVER).reason, Reason::Malformed(Malformed::Short(239)));
    assert_eq!(lab.leases.iter().count(), 0);
}

#[test]
fn options_are_read_from_every_field_and_joined() {
    // The kind stands in `file`, the vendor class in two pieces: in the options and in `sname`.
    let mut packet =
        Packet::new(1, 2).with(at::FILE, &[53, 1, 1, 255]).with(at::SNAME, &[60, 4, b'i', b'e', b'n', b't', 255]);
    packet.options = vec![(60, b"PXECl".to_vec()), (52, vec![3])];
    let outcome = Lab::new().hear(&packet);
    assert_eq!(outcome.reason, Reason::Offered(ip(100), Handout::Loader(BIOS_LOADER)));
}

#[test]
fn renewals_are_answered_to_the_address_and_everything_else_where_it_is_heard() {
    let mut lab = Lab::new();
    let address = lab.boot(2).unwrap();
    lab.pass(LEASE / 2);
    let renew = lab.hear_unicast(&Packet::linux(3, 2).using(address));
    assert_eq!(renew.reason, Reason::Acked(address, State::Renewing));
    assert_eq!(renew.reply.as_ref().unwrap().to, Destination::Unicast(address));
    assert_eq!((decode(&renew).yiaddr(), decode(&renew).ciaddr()), (address, address));
    assert!(matches!(&renew.persist[..], [LeaseChange::Held(lease)] if lease.expires == lab.now.after(LEASE)));
    assert_eq!(renew.asker.unwrap().address, Some(address));
    let rebind = lab.hear(&Packet::linux(3, 2).using(address));
    assert_eq!(rebind.reason, Reason::Acked(address, State::Rebinding));
    let reboot = lab.hear(&Packet::linux(3, 2).option(code::REQUESTED, &address.octets()));
    assert_eq!(reboot.reason, Reason::Acked(address, State::InitReboot));
    assert_eq!(reboot.reply.unwrap().to, Destination::Frame { ip: address, mac: mac(2) });
    let inform = lab.hear(&Packet::linux(8, 2).using(address));
    assert_eq!(inform.reason, Reason::Informed(address));
    assert_eq!(inform.reply.as_ref().unwrap().to, Destination::Unicast(address));
    assert_eq!((decode(&inform).yiaddr(), inform.persist.len()), (Ipv4Addr::UNSPECIFIED, 0));
    for absent in [51, 58, 59] {
        assert_eq!(raw(&inform, absent), None, "option {absent}");
    }
}

#[test]
fn a_wrong_address_is_refused_aloud_and_an_unknown_one_in_silence() {
    let mut lab = Lab::new();
    lab.boot(2).unwrap();
    let remembers = |last, address: Ipv4Addr| Packet::new(3, last).option(code::REQUESTED, &address.octets());
    let elsewhere = Ipv4Addr::new(192, 168, 1, 5);
    for (packet, why) in [
        (remembers(2, ip(102)), Obstacle::Elsewhere(ip(100))),
        (remembers(9, elsewhere), Obstacle::NoHost),
        (remembers(9, ip(100)), Obstacle::Leased(Holder::Client(name("pc-02")))),
        (Packet::new(3, 9).using(ip(101)), Obstacle::Reserved(name("pc-01"))),
        (Packet::new(3, 1).selecting(ip(102)), Obstacle::Fixed(ip(101))),
    ] {
        let outcome = lab.hear(&packet);
        assert!(matches!(&outcome.reason, Reason::Refused { why: found, .. } if *found == why), "{:?}", outcome.reason);
        assert_eq!(outcome.reply.as_ref().unwrap().to, Destination::Broadcast);
        let nak = decode(&outcome);
        assert_eq!(nak.opts().msg_type(), Some(v4::MessageType::Nak));
        assert_eq!((nak.yiaddr(), nak.siaddr(), nak.ciaddr()), ([0; 4].into(), [0; 4].into(), [0; 4].into()));
        assert_eq!(raw(&outcome, 56), Some(why.to_string().into_bytes()));
        assert_eq!((outcome.persist, outcome.asker.unwrap().address), (vec![], None));
    }
    for packet in [remembers(9, ip(103)), remembers(9, ip(50)), Packet::new(3, 9).using(ip(50))] {
        let outcome = lab.hear(&packet);
        assert!(matches!(outcome.reason, Reason::NoRecord(_)), "{:?}", outcome.reason);
        assert_eq!(outcome.reply, None);
    }
}

#[test]
fn another_servers_offer_is_left_to_it() {
    let mut lab = Lab::new();
    lab.scope = scope_of(100, 100);
    assert!(matches!(lab.hear(&Packet::new(1, 8)).reason, Reason::Offered(address, _) if address == ip(100)));
    assert!(matches!(lab.hear(&Packet::new(1, 9)).reason, Reason::NoAddress(NoAddress::Exhausted { .. })));
    let other = Ipv4Addr::new(10, 9, 0, 7);
    let chose = lab.hear(&Packet::new(3, 8).option(50, &[10, 9, 0, 60]).option(54, &other.octets()));
    assert_eq!((chose.reason, chose.reply), (Reason::ChoseOther(other), None));
    assert!(matches!(lab.hear(&Packet::new(1, 9)).reason, Reason::Offered(address, _) if address == ip(100)));
}

#[test]
fn an_offer_that_a_restart_forgot_can_still_be_taken_up() {
    let mut lab = Lab::new();
    assert!(matches!(lab.hear(&Packet::new(1, 8)).reason, Reason::Offered(..)));
    lab.leases = Leases::restore(Vec::new());
    let outcome = lab.hear(&Packet::new(3, 8).selecting(ip(100)));
    assert_eq!(outcome.reason, Reason::Acked(ip(100), State::Selecting));
}

#[test]
fn of_two_stored_leases_of_one_address_the_longer_is_believed() {
    let lease = |last, seconds| Lease {
        holder: Holder::Stranger(mac(last)),
        address: ip(100),
        mac: mac(last),
        expires: T0.after(Duration::from_secs(seconds)),
    };
    for stored in [[lease(20, 60), lease(21, 90)], [lease(21, 90), lease(20, 60)]] {
        let leases = Leases::restore(stored.to_vec());
        assert_eq!(leases.iter().collect::<Vec<_>>(), [&lease(21, 90)]);
    }
}

#[test]
fn a_replaced_machine_has_its_clients_address() {
    let mut lab = Lab::new();
    let address = lab.boot(2).unwrap();
    // The new board was seen on the wire before it came into the place of pc-02.
    let as_stranger = lab.boot(20).unwrap();
    assert_ne!(as_stranger, address);
    lab.fleet = Fleet::new([client("pc-02", &[20], None)]).unwrap();
    let outcome = lab.hear(&Packet::new(1, 20));
    assert_eq!(outcome.reason, Reason::Offered(address, Handout::AddressOnly));
    assert_eq!(outcome.persist, [LeaseChange::Gone(Holder::Stranger(mac(20)))], "its lease as a stranger is over");
    let old = lab.hear(&Packet::new(3, 2).using(address));
    assert!(matches!(old.reason, Reason::Refused { .. }), "{:?}", old.reason);
}

#[test]
fn a_running_machine_keeps_its_address_when_it_is_entered_renamed_or_removed() {
    let mut lab = Lab::new();
    let address = lab.boot(20).unwrap();
    for (fleet, holder) in [
        (Fleet::new([client("pc-20", &[20], None)]).unwrap(), Holder::Client(name("pc-20"))),
        (Fleet::new([client("desk", &[20], Some(address.octets()))]).unwrap(), Holder::Client(name("desk"))),
        (Fleet::default(), Holder::Stranger(mac(20))),
    ] {
        lab.fleet = fleet;
        let outcome = lab.hear_unicast(&Packet::new(3, 20).using(address));
        assert_eq!(outcome.reason, Reason::Acked(address, State::Renewing));
        let holders: Vec<_> = lab.leases.iter().map(|lease| lease.holder.clone()).collect();
        assert_eq!(holders, [holder]);
    }
}

#[test]
fn a_pool_that_is_used_up_says_so_and_reuses_strangers_oldest_first() {
    let mut lab = Lab::new();
    assert_eq!(lab.boot(2), Ok(ip(100)));
    assert_eq!(lab.boot(20), Ok(ip(102)), "101 is reserved");
    lab.pass(Duration::from_secs(1));
    assert_eq!(lab.boot(21), Ok(ip(103)));
    let reason = lab.boot(22).unwrap_err();
    assert!(reason.is_alarming());
    assert!(reason.to_string().contains("the pool 10.9.0.100-10.9.0.103 is used up: 3 leases"), "{reason}");
    lab.pass(LEASE + Duration::from_secs(1));
    assert_eq!(lab.boot(22), Ok(ip(102)), "of the stranger who is longest gone");
    assert_eq!(lab.boot(21), Ok(ip(103)), "a returning stranger");
    assert!(lab.boot(23).is_err(), "an expired client keeps its address");
    assert_eq!(lab.boot(2), Ok(ip(100)));
    assert_eq!(lab.boot(1), Ok(ip(101)));
}

#[test]
fn strangers_that_only_ask_do_not_keep_a_client_out() {
    let mut lab = Lab::new();
    for stranger in 20..23 {
        assert!(matches!(lab.hear(&Packet::new(1, stranger)).reason, Reason::Offered(..)), "{stranger}");
    }
    assert!(matches!(lab.hear(&Packet::new(1, 23)).reason, Reason::NoAddress(_)));
    assert_eq!(lab.boot(2), Ok(ip(100)));
    // Its address went to a client; the stranger starts anew.
    let late = lab.hear(&Packet::new(3, 20).selecting(ip(100)));
    assert!(matches!(late.reason, Reason::Refused { .. }), "{:?}", late.reason);
}

#[test]
fn only_the_discover_of_a_machine_that_nobody_knows_can_be_left_unanswered() {
    let may = |packet: &Packet| is_strangers_discover(&fleet(), &packet.bytes());
    assert!(may(&Packet::new(1, 20)));
    for packet in [Packet::new(1, 1), Packet::new(1, 2), Packet::new(1, 3), Packet::new(3, 20), Packet::new(7, 20)] {
        assert!(!may(&packet), "{packet:?}");
    }
    let at_a_port =
        Fleet::new([Client { port: Some("sw1/7".parse().unwrap()), ..client("pc-07", &[], None) }]).unwrap();
    let there = Packet::new(1, 20).agent(&[(1, b"7"), (2, b"sw1")]);
    assert!(!is_strangers_discover(&at_a_port, &there.bytes()) && may(&there));
    assert!(!is_strangers_discover(&fleet(), b"no request"));
}

#[test]
fn an_address_that_is_declined_while_it_is_offered_to_another_rests_too() {
    let mut lab = Lab::new();
    lab.scope = scope_of(100, 100);
    let offered = |outcome: &Outcome| matches!(outcome.reason, Reason::Offered(address, _) if address == ip(100));
    assert!(offered(&lab.hear(&Packet::new(1, 9))));
    lab.hear(&Packet::new(3, 9).selecting(ip(100)));
    lab.hear_unicast(&Packet::new(7, 9).using(ip(100)));
    assert!(offered(&lab.hear(&Packet::new(1, 6))), "it was released");
    lab.hear(&Packet::new(4, 9).selecting(ip(100)));
    // A client goes before strangers who were only offered an address, but not to one that rests.
    assert!(matches!(lab.hear(&Packet::new(1, 2)).reason, Reason::NoAddress(_)));
}

#[test]
fn a_declined_address_rests_and_nobody_can_decline_for_another() {
    let mut lab = Lab::new();
    assert_eq!(lab.boot(2), Ok(ip(100)));
    let decline = |last| Packet::new(4, last).selecting(ip(100));
    assert_eq!(lab.hear(&decline(9)).reason, Reason::NotTheirs(ip(100)));
    assert_eq!(lab.boot(2), Ok(ip(100)));
    let outcome = lab.hear(&decline(2));
    assert_eq!((&outcome.reason, outcome.reply), (&Reason::Declined(ip(100)), None));
    assert!(outcome.reason.is_alarming());
    assert_eq!(lab.boot(2), Ok(ip(102)));
    // A fixed address rests too; its client hears nothing until it is free.
    assert_eq!(lab.boot(1), Ok(ip(101)));
    lab.hear(&Packet::new(4, 1).selecting(ip(101)));
    let reason = lab.boot(1).unwrap_err();
    assert_eq!(reason, Reason::NoAddress(NoAddress::Fixed { address: ip(101), why: Obstacle::Quarantined }));
    lab.pass(QUARANTINE);
    assert_eq!(lab.boot(1), Ok(ip(101)));
}

#[test]
fn a_released_address_is_free_for_strangers_and_kept_for_clients() {
    let mut lab = Lab::new();
    lab.scope = scope_of(102, 103);
    assert_eq!(lab.boot(2), Ok(ip(102)));
    assert_eq!(lab.boot(20), Ok(ip(103)));
    assert!(lab.boot(21).is_err());
    for (last, address) in [(2, ip(102)), (20, ip(103))] {
        let outcome = lab.hear_unicast(&Packet::new(7, last).using(address).option(code::SERVER, &SERVER.octets()));
        assert_eq!((&outcome.reason, outcome.reply), (&Reason::Released(address), None));
        assert!(matches!(&outcome.persist[..], [LeaseChange::Held(lease)] if lease.expires == lab.now));
    }
    assert_eq!(lab.boot(21), Ok(ip(103)));
    assert!(lab.boot(22).is_err());
    assert_eq!(lab.boot(2), Ok(ip(102)));
    let other = lab.hear(&Packet::new(7, 2).using(ip(102)).option(code::SERVER, &[10, 9, 0, 7]));
    assert_eq!(other.reason, Reason::OtherServer(ip(7)));
}

#[test]
fn tables_that_strangers_fill_have_a_bound() {
    let mut lab = Lab::new();
    let pool =
        Pool { first: Ipv4Addr::new(10, 9, 0, 2), last: Ipv4Addr::new(10, 9, 255, 254), ..lab.scope.pool().clone() };
    lab.scope = Scope::new(SERVER, 16, pool, 80, Naming::new("iqn.2026-11.test")).unwrap();
    let packet = |kind, number: usize| {
        let octets = u16::try_from(number).unwrap().to_be_bytes();
        Packet::new(kind, 9).with(at::CHADDR, &[0x52, 0x54, 0, 0xbb, octets[0], octets[1]])
    };
    let mut offered = Vec::new();
    for number in 0..=MAX_OFFERS {
        let Reason::Offered(address, _) = lab.hear(&packet(1, number)).reason else { panic!("no offer {number}") };
        offered.push(address);
    }
    // The oldest offer was dropped, and can be taken up all the same.
    let first = lab.hear(&packet(3, 0).selecting(offered[0]));
    assert_eq!(first.reason, Reason::Acked(offered[0], State::Selecting));

    let lease = |number: usize| Lease {
        holder: Holder::Stranger(Request::parse(&packet(1, number).bytes()).unwrap().mac),
        address: Ipv4Addr::from(u32::from(Ipv4Addr::new(10, 9, 16, 0)) + u32::try_from(number).unwrap()),
        mac: mac(9),
        expires: T0.after(LEASE),
    };
    lab.leases = Leases::restore((0..MAX_STRANGERS).map(lease).collect());
    assert_eq!(lab.hear(&packet(1, MAX_STRANGERS)).reason, Reason::NoAddress(NoAddress::Strangers));
    assert!(matches!(lab.hear(&packet(1, 5)).reason, Reason::Offered(..)), "one that is known");
    assert!(lab.boot(2).is_ok(), "a client");
    lab.pass(LEASE + Duration::from_secs(1));
    assert!(matches!(lab.hear(&packet(1, MAX_STRANGERS)).reason, Reason::Offered(..)), "when others are gone");
}

#[test]
fn a_reply_is_no_larger_than_its_client_takes_and_ends_with_option_82() {
    let long = [7; 200];
    let mut lab = Lab::new();
    let mut packet_of = |size: u16| {
        let packet = Packet::ipxe(1, 2, 7).without(57).without(61);
        lab.hear(&packet.option(57, &size.to_be_bytes()).option(82, &long).option(61, &[1; 248]))
    };
    for (size, limit) in [(1472, 1444), (0, 548), (576, 548), (65_280, 1472)] {
        let outcome = packet_of(size);
        let reply = outcome.reply.unwrap();
        assert!(reply.bytes.len() <= limit, "{} bytes for {size}", reply.bytes.len());
        let options = raw_options(&reply.bytes);
        assert_eq!(options.last().unwrap(), &(82, long.to_vec()));
        assert_eq!(reply.left_out.contains(&61), limit == 548, "{:?}", reply.left_out);
        assert!(options.iter().any(|(code, _)| *code == 53));
    }
}

#[test]
fn a_truncated_option_ends_the_options_and_those_before_it_count() {
    let mut lab = Lab::new();
    // Cut anywhere behind the kind, the packet is a DISCOVER that says less.
    let whole = Packet::ovmf(1, 2).bytes();
    for len in wire::HEADER..whole.len() {
        let reason = lab.hear_bytes(&whole[..len], SERVER).reason;
        if len < wire::HEADER + 3 {
            assert_eq!(reason, Reason::Malformed(Malformed::NoKind), "{len} bytes");
            assert_eq!(reason.to_string(), "ignored: it does not say what kind of message it is");
        } else {
            assert!(matches!(reason, Reason::Offered(..)), "{len} bytes: {reason}");
        }
    }
    let words = |packet: &Packet| Lab::new().hear(packet).reason.to_string();
    assert_eq!(words(&Packet::new(1, 2).with(at::COOKIE, &[0; 4])), "ignored: it has no DHCP options");
    // One bad option, of every code, before good ones.
    for bad in (1..=254).filter(|code| ![code::KIND, code::OVERLOAD].contains(code)) {
        let mut packet = Packet::new(1, 2).option(60, b"PXEClient").option(93, &[0, 7]);
        packet.options.insert(0, (bad, vec![0xff; 3]));
        let reason = lab.hear(&packet).reason;
        assert!(matches!(reason, Reason::Offered(..)), "option {bad}: {reason}");
    }
}

/// Another server gives the addresses.
fn beside() -> Site {
    Site { role: Role::Proxy, ..scope_of(100, 103).site().clone() }
}

fn overheard(packet: &Packet) -> Outcome {
    proxy::overheard(&fleet(), &beside(), &packet.bytes())
}

/// What comes to port 4011 from this address of a machine.
fn asked(site: &Site, packet: &Packet, from: Ipv4Addr) -> Outcome {
    let arrival = Arrival { from: SocketAddrV4::new(from, BOOT_SERVER_PORT), to: SERVER };
    proxy::asked(&fleet(), site, &arrival, &packet.bytes())
}

/// OVMF's HTTP client.
fn http_boot(kind: u8, last: u8) -> Packet {
    Packet::ovmf(kind, last)
        .without(60)
        .without(93)
        .option(93, &[0, 16])
        .option(60, b"HTTPClient:Arch:00016:UNDI:003000")
}

#[test]
fn a_proxys_offer_is_to_the_byte_what_each_firmware_takes() {
    let bios = Packet::new(1, 2).option(60, b"PXEClient:Arch:00000:UNDI:002001").option(93, &[0, 0]);
    let bios = bios.option(97, &[&[0], &UUID[..]].concat());
    let script = "http://10.9.0.1/boot.ipxe?mac=${mac:hexhyp}";
    let pxe: Option<&[u8]> = Some(b"PXEClient");
    for (packet, handout, file, class, vendor) in [
        (bios, Handout::Loader(BIOS_LOADER), BIOS_LOADER, pxe, Some(&[6, 1, 8, 255][..])),
        (Packet::ovmf(1, 2), Handout::Loader(UEFI_X64_LOADER), UEFI_X64_LOADER, pxe, None),
        (
            http_boot(1, 2),
            Handout::LoaderUrl(UEFI_X64_LOADER),
            "http://10.9.0.1/snponly.efi",
            Some(b"HTTPClient"),
            None,
        ),
        (Packet::ipxe(1, 2, 0), Handout::Script, script, pxe, None),
        (Packet::ipxe(1, 2, 7), Handout::Script, script, pxe, None),
    ] {
        let outcome = overheard(&packet);
        assert_eq!((&outcome.reason, &outcome.persist[..]), (&Reason::OfferedBoot(handout), &[][..]));
        assert_eq!(outcome.reply.as_ref().unwrap().to, Destination::Broadcast, "it has no address, and gets none here");
        let offer = decode(&outcome);
        assert_eq!(offer.opts().msg_type(), Some(v4::MessageType::Offer));
        assert_eq!((offer.yiaddr(), offer.siaddr()), (Ipv4Addr::UNSPECIFIED, SERVER));
        let terminated = [file.as_bytes(), b"\0"].concat();
        assert_eq!(offer.fname(), Some(&terminated[..]));
        assert_eq!(raw(&outcome, 67), Some(terminated));
        assert_eq!(raw(&outcome, 54), Some(SERVER.octets().to_vec()));
        assert_eq!(raw(&outcome, 60).as_deref(), class, "{handout}");
        assert_eq!(raw(&outcome, 43).as_deref(), vendor, "{handout}");
        let uuid = packet.options.iter().find(|option| option.0 == 97).map(|option| option.1.clone());
        assert_eq!(raw(&outcome, 97), uuid, "echoed");
        for absent in [1, 3, 6, 12, 28, 51, 58, 59, 175] {
            assert_eq!(raw(&outcome, absent), None, "option {absent} is the other server's");
        }
        assert_eq!(outcome.note.unwrap().client, Some(name("pc-02")));
        assert_eq!(outcome.asker.unwrap().address, None);
    }
}

#[test]
fn a_proxy_is_silent_towards_everybody_else_and_says_why() {
    let arm = Packet::new(1, 2).option(60, b"PXEClient").option(93, &[0, 11]);
    for (packet, words) in [
        (Packet::ovmf(1, 9), "ignored: no client has this MAC, and another server gives its address"),
        (Packet::linux(1, 2), "ignored: it does not boot from the network"),
        (Packet::ovmf(1, 3), "ignored: pc-03 is out of service (off = true)"),
        (arm, "ignored: no boot file: there is no loader for UEFI ARM64"),
        (Packet::ovmf(8, 2).using(ip(60)), "ignored: its address is another server's matter"),
        (Packet::ovmf(3, 2).option(50, &[10, 9, 0, 60]).option(54, &[10, 9, 0, 7]), "it takes 10.9.0.60 from 10.9.0.7"),
    ] {
        let outcome = overheard(&packet);
        assert_eq!((outcome.reason.to_string().as_str(), outcome.reply), (words, None));
        assert_eq!(outcome.asker.unwrap().address, None, "a claim is no sighting");
    }
    assert_eq!(proxy::overheard(&fleet(), &beside(), &[1; 9]).reason, Reason::Malformed(Malformed::Short(9)));
}

#[test]
fn port_4011_tells_the_file_to_whoever_asked_in_both_modes() {
    let full = scope_of(100, 103).site().clone();
    for (site, vendor) in [(full, Some(vec![6, 1, 8, 255])), (beside(), None)] {
        let outcome = asked(&site, &Packet::ovmf(3, 2).using(ip(60)), ip(60));
        assert_eq!(outcome.reason, Reason::ToldBoot(Handout::Loader(UEFI_X64_LOADER)));
        let to = SocketAddrV4::new(ip(60), BOOT_SERVER_PORT);
        assert_eq!(outcome.reply.as_ref().unwrap().to, Destination::Asker(to), "though the broadcast flag was set");
        let ack = decode(&outcome);
        assert_eq!(ack.opts().msg_type(), Some(v4::MessageType::Ack));
        assert_eq!((ack.yiaddr(), ack.ciaddr(), ack.siaddr()), (Ipv4Addr::UNSPECIFIED, ip(60), SERVER));
        assert_eq!(ack.fname(), Some(&b"snponly.efi\0"[..]));
        assert_eq!((raw(&outcome, 60), raw(&outcome, 97)), (Some(b"PXEClient".to_vec()), Some(vec![0; 17])));
        assert_eq!((raw(&outcome, 43), raw(&outcome, 51)), (vendor, None));
        assert_eq!(outcome.asker.unwrap().address, Some(ip(60)));

        let elsewhere = asked(&site, &Packet::ovmf(3, 2).using(ip(60)), ip(61));
        assert_eq!(elsewhere.asker.unwrap().address, None, "the packet's two addresses differ");
        let item = asked(&site, &Packet::ovmf(8, 2).using(ip(60)).option(43, &[71, 4, 0, 3, 0, 1, 255]), ip(60));
        assert_eq!(raw(&item, 43), Some(vec![71, 4, 0, 3, 0, 1, 255]), "the same type and layer");
        assert_eq!(decode(&item).yiaddr(), ip(60));
        for hostile in [&[71][..], &[71, 4, 0], &[71, 2, 0, 3], &[0, 0, 255, 71, 4, 1, 1, 1, 1], &[6, 200, 1]] {
            let outcome = asked(&site, &Packet::ovmf(3, 2).using(ip(60)).option(43, hostile), ip(60));
            assert_eq!(decode(&outcome).yiaddr(), Ipv4Addr::UNSPECIFIED, "{hostile:?}");
        }
        for (packet, words) in [
            (Packet::linux(3, 2).using(ip(60)), "ignored: it does not boot from the network"),
            (Packet::ovmf(1, 2), "ignored: Discover is nothing that port 4011 is for"),
            (Packet::ovmf(3, 3), "ignored: pc-03 is out of service (off = true)"),
        ] {
            let outcome = asked(&site, &packet, ip(60));
            assert_eq!((outcome.reason.to_string().as_str(), outcome.reply), (words, None));
        }
    }
    assert_eq!(asked(&beside(), &Packet::ovmf(3, 9), ip(60)).reason, Reason::Stranger);
}

#[test]
fn firmware_that_boots_by_http_gets_an_absolute_url_and_its_own_class() {
    let outcome = Lab::new().hear(&http_boot(1, 2));
    assert_eq!(outcome.reason, Reason::Offered(ip(100), Handout::LoaderUrl(UEFI_X64_LOADER)));
    assert_eq!(raw(&outcome, 60), Some(b"HTTPClient".to_vec()));
    assert_eq!(raw(&outcome, 67), Some(b"http://10.9.0.1/snponly.efi\0".to_vec()));
    assert_eq!((raw(&outcome, 43), decode(&outcome).yiaddr()), (None, ip(100)));
    assert_eq!(outcome.note.unwrap().detail, "10.9.0.100, snponly.efi by HTTP (UEFI x64 by HTTP)");
}

const RELAY: Ipv4Addr = Ipv4Addr::new(10, 30, 0, 1);

/// A lab with a second subnet, 10.30.0.0/24, behind a relay.
fn relayed_lab() -> Lab {
    let mut lab = Lab::new();
    let pool = Pool {
        first: Ipv4Addr::new(10, 30, 0, 100),
        last: Ipv4Addr::new(10, 30, 0, 103),
        router: Some(RELAY),
        ..lab.scope.pool().clone()
    };
    let subnet = Subnet { name: "room-b".into(), network: Ipv4Addr::new(10, 30, 0, 0), prefix: 24, pool };
    lab.beyond = vec![Scope::of(lab.scope.site(), &subnet).unwrap()];
    lab
}

fn far(last: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 30, 0, last)
}

impl Packet {
    fn relayed(self, giaddr: Ipv4Addr) -> Self {
        self.with(at::GIADDR, &giaddr.octets())
    }

    /// Option 82 with these sub-options.
    fn agent(self, subs: &[(u8, &[u8])]) -> Self {
        let mut value = Vec::new();
        for (code, sub) in subs {
            value.extend([*code, u8::try_from(sub.len()).unwrap()]);
            value.extend_from_slice(sub);
        }
        self.option(82, &value)
    }
}

#[test]
fn what_a_relay_brings_goes_back_to_it_with_an_address_of_its_subnet_and_its_option_last() {
    let mut lab = relayed_lab();
    let agent = |packet: Packet| packet.relayed(RELAY).agent(&[(2, b"sw1"), (1, b"ge-0/0/4"), (9, &[0, 0, 13, 233])]);
    let offer = lab.hear_unicast(&agent(Packet::ovmf(1, 2)));
    assert_eq!(offer.reason, Reason::Offered(far(100), Handout::Loader(UEFI_X64_LOADER)));
    let reply = offer.reply.as_ref().unwrap();
    assert_eq!(reply.to, Destination::Relay(RELAY), "though the broadcast flag was set");
    let seen = decode(&offer);
    assert_eq!((seen.giaddr(), seen.flags().broadcast(), seen.yiaddr()), (RELAY, true, far(100)));
    assert_eq!((seen.siaddr(), raw(&offer, 54)), (SERVER, Some(SERVER.octets().to_vec())));
    assert_eq!((raw(&offer, 1), raw(&offer, 3)), (Some(vec![255, 255, 255, 0]), Some(RELAY.octets().to_vec())));
    assert_eq!(raw(&offer, 28), Some(far(255).octets().to_vec()));
    let sent = agent(Packet::ovmf(1, 2)).options.pop().unwrap();
    assert_eq!(raw_options(&reply.bytes).last(), Some(&sent), "verbatim and last");
    let port = offer.asker.unwrap().port.unwrap();
    assert_eq!(port.as_str(), "sw1/ge-0/0/4");
    assert!(offer.note.unwrap().detail.ends_with(", at port sw1/ge-0/0/4"));

    let ack = lab.hear_unicast(&agent(Packet::ovmf(3, 2).selecting(far(100))));
    assert_eq!(ack.reason, Reason::Acked(far(100), State::Selecting));
    assert_eq!(ack.reply.unwrap().to, Destination::Relay(RELAY));
    // It renews by itself, past the relay; where that fails, it asks through the relay again.
    let renew = lab.hear_unicast(&Packet::linux(3, 2).using(far(100)));
    assert_eq!(renew.reason, Reason::Acked(far(100), State::Renewing));
    assert_eq!(renew.reply.as_ref().unwrap().to, Destination::Unicast(far(100)));
    assert_eq!(raw(&renew, 3), Some(RELAY.octets().to_vec()), "of its own subnet");
    let rebind = lab.hear_unicast(&Packet::linux(3, 2).using(far(100)).relayed(RELAY));
    assert_eq!(rebind.reply.unwrap().to, Destination::Relay(RELAY));
    let inform = lab.hear_unicast(&Packet::linux(8, 2).using(far(100)));
    assert_eq!(raw(&inform, 28), Some(far(255).octets().to_vec()));
    let released = lab.hear_unicast(&Packet::new(7, 2).using(far(100)));
    assert_eq!(released.reason, Reason::Released(far(100)));
}

#[test]
fn a_refusal_through_a_relay_is_for_everybody_behind_it() {
    let mut lab = relayed_lab();
    lab.boot(2).unwrap();
    // Plugged in behind the relay, it remembers the address that it had here.
    let remembers = Packet::linux(3, 2).option(code::REQUESTED, &ip(100).octets()).relayed(RELAY);
    let nak = lab.hear_unicast(&remembers);
    assert_eq!(nak.reason, Reason::Refused { address: ip(100), why: Obstacle::NoHost });
    assert_eq!(nak.reply.as_ref().unwrap().to, Destination::Relay(RELAY));
    assert!(decode(&nak).flags().broadcast(), "which the relay must heed");
    // It has an address there, and then here again.
    assert!(
        matches!(lab.hear_unicast(&Packet::new(1, 2).relayed(RELAY)).reason, Reason::Offered(at, _) if at == far(100))
    );
    let taken = lab.hear_unicast(&Packet::new(3, 2).selecting(far(100)).relayed(RELAY));
    assert_eq!(taken.reason, Reason::Acked(far(100), State::Selecting));
    assert_eq!(lab.boot(2), Ok(ip(100)));
    // A fixed address holds in its own subnet only.
    assert!(
        matches!(lab.hear_unicast(&Packet::new(1, 1).relayed(RELAY)).reason, Reason::Offered(at, _) if at == far(100))
    );
    assert_eq!(lab.boot(1), Ok(ip(101)));
}

#[test]
fn a_relay_says_which_subnet_it_means_and_which_server_its_clients_ask() {
    let mut lab = relayed_lab();
    let elsewhere = Ipv4Addr::new(192, 0, 2, 1);
    let here = SERVER.octets();
    for (packet, expected) in [
        (Packet::new(1, 2).relayed(RELAY), far(100)),
        (Packet::new(1, 2).relayed(elsewhere).agent(&[(5, &far(0).octets())]), far(100)),
        (Packet::new(1, 2).relayed(elsewhere).option(118, &far(0).octets()), far(100)),
        (Packet::new(1, 2).relayed(elsewhere).option(118, &here).agent(&[(5, &far(9).octets())]), far(100)),
        (Packet::new(1, 2).relayed(RELAY).option(118, &here), ip(100)),
        (Packet::new(1, 2).relayed(RELAY).agent(&[(5, &[10, 9, 0])]), far(100)),
        // Who is on the wire itself does not choose.
        (Packet::new(1, 2).option(118, &far(0).octets()).agent(&[(5, &far(0).octets())]), ip(100)),
    ] {
        let outcome = lab.hear_unicast(&packet);
        assert!(matches!(outcome.reason, Reason::Offered(address, _) if address == expected), "{:?}", outcome.reason);
        let relayed = packet.header[at::GIADDR] != 0;
        let selected = packet.options.iter().find(|(code, _)| *code == 118 && relayed);
        assert_eq!(raw(&outcome, 118), selected.map(|option| option.1.clone()), "comes back (RFC 3011)");
    }
    let lost = lab.hear_unicast(&Packet::new(1, 2).relayed(elsewhere));
    assert_eq!((&lost.reason, lost.reply), (&Reason::NoSubnet(elsewhere), None));
    assert!(lost.reason.is_alarming() && lost.reason.to_string().contains("[server.pools.NAME]"));

    let instead = |packet: Packet| packet.relayed(RELAY).agent(&[(11, &RELAY.octets())]);
    let offer = lab.hear_unicast(&instead(Packet::ovmf(1, 2)));
    assert_eq!((raw(&offer, 54), decode(&offer).siaddr()), (Some(RELAY.octets().to_vec()), SERVER));
    let request = Packet::ovmf(3, 2).option(50, &far(100).octets()).option(54, &RELAY.octets());
    assert_eq!(lab.hear_unicast(&instead(request.clone())).reason, Reason::Acked(far(100), State::Selecting));
    assert_eq!(lab.hear_unicast(&request.relayed(RELAY)).reason, Reason::ChoseOther(RELAY), "nobody stands in for us");
}

#[test]
fn a_proxy_answers_through_a_relay_too() {
    let outcome = overheard(&Packet::ovmf(1, 2).relayed(RELAY).agent(&[(1, b"7")]));
    assert_eq!(outcome.reason, Reason::OfferedBoot(Handout::Loader(UEFI_X64_LOADER)));
    assert_eq!(outcome.reply.as_ref().unwrap().to, Destination::Relay(RELAY));
    assert_eq!(raw_options(&outcome.reply.as_ref().unwrap().bytes).last(), Some(&(82, vec![1, 1, b'7'])));
    assert_eq!(outcome.asker.unwrap().port.unwrap().as_str(), "10.30.0.1/7");
    let takes = Packet::ovmf(3, 2).option(50, &far(60).octets()).option(54, &[10, 9, 0, 7]).relayed(RELAY);
    assert_eq!(overheard(&takes).asker.unwrap().address, Some(far(60)), "nobody here will see it in use");
}

#[test]
fn a_port_is_told_as_its_switch_writes_it() {
    let port = |giaddr: [u8; 4], subs: &[(u8, &[u8])]| {
        let packet = Packet::new(1, 2).relayed(giaddr.into()).agent(subs);
        relay::port(&Request::parse(&packet.bytes()).unwrap()).map(|port| port.to_string())
    };
    let relay = RELAY.octets();
    for (subs, expected) in [
        (&[(1, &b"ge-0/0/4"[..]), (2, b"sw1")][..], Some("sw1/ge-0/0/4")),
        (&[(1, b"Gi 1/0/4\0"), (2, b"\x01\x03sw1")], Some("sw1/Gi 1/0/4")),
        (&[(1, &[0, 4, 0, 10, 1, 4]), (2, &[0, 6, 0x52, 0x54, 0, 0, 0, 1])], Some("52:54:00:00:00:01/vlan10/1/4")),
        (&[(1, b"7"), (2, &[0x52, 0x54, 0, 0, 0, 1])], Some("52:54:00:00:00:01/7")),
        (&[(1, &[1, 2, 3]), (2, b"a/b")], Some("0x612f62/0x010203")),
        (&[(1, b"0x07"), (2, &[0xff])], Some("0xff/0x30783037")),
        (&[(1, b"eth0")], Some("10.30.0.1/eth0")),
        (&[(1, b"eth0"), (2, b"")], Some("10.30.0.1/eth0")),
        (&[(2, b"sw1")], None),
        (&[(1, b"")], None),
    ] {
        assert_eq!(port(relay, subs).as_deref(), expected, "{subs:?}");
    }
    assert_eq!(port([0; 4], &[(1, b"eth0")]).as_deref(), Some("eth0"), "a switch that is no relay");
    let cut = Packet::new(1, 2).option(82, &[1, 9, b'x']);
    assert_eq!(relay::port(&Request::parse(&cut.bytes()).unwrap()), None);
}

proptest! {
    /// Whatever a relay sends, a port is a text that the mapping file can have; and what is plain text stays apart.
    #[test]
    fn a_port_can_be_written_into_the_file(circuit in prop::collection::vec(any::<u8>(), 1..120),
                                           remote in prop::collection::vec(any::<u8>(), 0..120),
                                           texts in prop::collection::vec("[!-.0-~]{1,8}", 4)) {
        let port = |circuit: &[u8], remote: &[u8]| {
            let packet = Packet::new(1, 2).agent(&[(1, circuit), (2, remote)]);
            relay::port(&Request::parse(&packet.bytes()).unwrap())
        };
        let found = port(&circuit, &remote).unwrap();
        prop_assert_eq!(found.as_str().parse::<Port>(), Ok(found.clone()));
        let [a, b, c, d] = &texts[..] else { unreachable!() };
        let (one, other) = (port(a.as_bytes(), b.as_bytes()), port(c.as_bytes(), d.as_bytes()));
        prop_assert_eq!(one == other, (a, b) == (c, d));
    }
}

#[test]
fn whatever_is_plugged_in_at_a_clients_port_is_that_client_until_it_is_another_ones_too() {
    let mut lab = Lab::new();
    let at_port = Client { port: Some("sw1/4".parse().unwrap()), ..client("desk", &[], None) };
    lab.fleet = Fleet::new([at_port, client("pc-02", &[2], None)]).unwrap();
    let plugged = |packet: Packet, port: &[u8]| packet.agent(&[(1, port), (2, b"sw1")]);
    let first = lab.hear(&plugged(Packet::ipxe(1, 20, 7), b"4"));
    assert_eq!(raw(&first, 203), Some(b"iqn.2026-11.test:client.desk".to_vec()));
    let taken = lab.hear(&plugged(Packet::new(3, 20).selecting(ip(100)), b"4"));
    assert_eq!(taken.asker.unwrap().client, Some(name("desk")));
    // Another machine has the place, and the address, unless the first one is running.
    lab.sessions.insert(ip(100), name("desk"));
    let rival = lab.hear(&plugged(Packet::new(1, 21), b"4"));
    assert_eq!((&rival.reason, rival.reply), (&Reason::PortInUse(name("desk"), mac(20)), None));
    assert!(rival.reason.is_alarming());
    lab.sessions.clear();
    let next = lab.hear(&plugged(Packet::new(1, 21), b"4"));
    assert!(matches!(next.reason, Reason::Offered(address, _) if address == ip(100)), "{:?}", next.reason);
    // The machine of another client there is a mistake of somebody.
    let both = lab.hear(&plugged(Packet::new(1, 2), b"4"));
    let words = "ignored: it is plugged in at the port of `desk` and has the MAC of `pc-02`; correct one of the two";
    assert_eq!((both.reason.to_string().as_str(), both.reply), (words, None));
    assert!(both.reason.is_alarming());
    assert_eq!(lab.hear(&plugged(Packet::new(1, 2), b"5")).asker.unwrap().client, Some(name("pc-02")));
    // A renewal does not pass the switch that tells the port.
    lab.fleet = lab.fleet.plug(mac(21), &"sw1/4".parse().unwrap()).unwrap();
    assert_eq!(lab.hear(&Packet::new(1, 21)).asker.unwrap().client, Some(name("desk")));
    assert_eq!(lab.hear(&plugged(Packet::new(1, 21), b"5")).asker.unwrap().client, None, "it moved");
}

#[test]
fn a_machine_that_runs_from_its_disk_keeps_its_address_whatever_changes() {
    let mut lab = Lab::new();
    let address = lab.boot(2).unwrap();
    lab.sessions.insert(address, name("pc-02"));
    // Anybody can send these in its name.
    for packet in [Packet::new(7, 2).using(address), Packet::new(4, 2).selecting(address)] {
        let outcome = lab.hear_unicast(&packet);
        assert_eq!((outcome.reason, outcome.persist), (Reason::InSession(address), vec![]));
    }
    lab.pass(LEASE * 100);
    let reserved = |holder, ip: Option<[u8; 4]>| client(holder, &[if holder == "pc-02" { 2 } else { 1 }], ip);
    for fleet in [
        // Its own fixed address is another one now; its address is another client's; it is in no client's place any more.
        Fleet::new([reserved("pc-02", Some([10, 9, 0, 103]))]).unwrap(),
        Fleet::new([reserved("pc-02", None), reserved("pc-01", Some(address.octets()))]).unwrap(),
        Fleet::new([reserved("pc-02", None)]).unwrap(),
    ] {
        lab.fleet = fleet;
        for taker in [1, 20, 21, 22, 23] {
            if let Reason::Offered(given, _) = lab.hear(&Packet::new(1, taker)).reason {
                assert_ne!(given, address, "machine {taker}");
            }
            let asks = lab.hear(&Packet::new(3, taker).option(code::REQUESTED, &address.octets()));
            assert!(!matches!(asks.reason, Reason::Acked(..)), "machine {taker}: {:?}", asks.reason);
        }
        let renew = lab.hear_unicast(&Packet::linux(3, 2).using(address));
        assert_eq!(renew.reason, Reason::Acked(address, State::Renewing));
    }
    lab.scope = scope_of(110, 120);
    let renew = lab.hear_unicast(&Packet::linux(3, 2).using(address));
    assert_eq!(renew.reason, Reason::Acked(address, State::Renewing), "though the pool is another one");
    // When it is gone, the file has its way.
    lab.sessions.clear();
    assert!(matches!(lab.hear_unicast(&Packet::linux(3, 2).using(address)).reason, Reason::Refused { .. }));
}

#[test]
fn an_operators_options_go_with_the_address_and_take_the_place_of_the_pools() {
    let mut lab = Lab::new();
    let options = [(6, vec![10, 9, 0, 7]), (43, vec![1, 2, 3]), (42, vec![10, 9, 0, 8]), (252, b"wpad".to_vec())];
    let options = options.map(|(code, value)| ExtraOption { code, value });
    lab.fleet = Fleet::new([Client { options: options.to_vec(), ..client("pc-02", &[2], None) }]).unwrap();
    let system = lab.hear(&Packet::linux(1, 2));
    for ExtraOption { code, value } in options {
        assert_eq!(raw(&system, code), Some(value), "option {code}");
    }
    let all = raw_options(&system.reply.unwrap().bytes);
    assert_eq!(all.iter().filter(|(code, _)| *code == 6).count(), 1);
    let firmware = lab.hear(&Packet::ovmf(1, 2));
    assert_eq!(raw(&firmware, 43), Some(vec![6, 1, 8, 255]), "43 is ours where a machine boots");
    assert_eq!(raw(&firmware, 252), Some(b"wpad".to_vec()));
    assert_eq!(raw(&lab.hear(&Packet::linux(1, 9)), 252), None, "a stranger's are the pool's alone");
}

#[test]
fn somebody_is_asked_about_an_address_only_where_its_owner_may_not_know_of_us() {
    let mut lab = Lab::new();
    let probe = |lab: &mut Lab, packet: &Packet| lab.hear(packet).probe;
    assert_eq!(probe(&mut lab, &Packet::new(1, 1)), None, "a fixed address is its client's");
    assert_eq!(probe(&mut lab, &Packet::new(1, 2)), Some(ip(100)));
    assert_eq!(probe(&mut lab, &Packet::new(1, 2)), Some(ip(100)), "nothing came of it yet");
    lab.leases.found_silent(ip(100), lab.now);
    assert_eq!(probe(&mut lab, &Packet::new(1, 2)), None);
    assert_eq!(lab.boot(2), Ok(ip(100)));
    lab.pass(LEASE * 2);
    assert_eq!(probe(&mut lab, &Packet::new(1, 2)), None, "it is back");
    assert_eq!(probe(&mut lab, &Packet::new(1, 9)), Some(ip(102)));
    lab.leases.found_in_use(ip(102), lab.now);
    let next = lab.hear(&Packet::new(1, 9).option(code::REQUESTED, &ip(102).octets()));
    assert_eq!(next.probe, Some(ip(103)), "another one");
    let insists = lab.hear(&Packet::new(3, 9).option(code::REQUESTED, &ip(102).octets()));
    assert_eq!(insists.reason, Reason::Refused { address: ip(102), why: Obstacle::Quarantined });
    lab.pass(QUARANTINE);
    assert!(matches!(lab.boot(20), Ok(address) if address == ip(102)));
    // What is silent counts for a while, and for so many.
    let mut lab = relayed_lab();
    assert_eq!(lab.hear_unicast(&Packet::new(1, 2).relayed(RELAY)).probe, None, "behind a relay nobody hears us");
    for number in 0..5_000_u32 {
        lab.leases.found_silent(Ipv4Addr::from(number), lab.now.after(Duration::from_millis(number.into())));
    }
    assert_eq!(lab.leases.silent_count(), 1_024);
}

/// Made-up machines ask as fast as they can. The pool is not theirs, nor is the memory; whoever has a name boots.
#[test]
fn a_flood_of_made_up_machines_takes_neither_the_pool_nor_a_clients_boot() {
    const A_SECOND: u32 = 10_000;
    let mut lab = Lab::new();
    lab.scope = scope_of(100, 199);
    let from = |packet: Packet, port: Option<&[u8]>| match port {
        Some(port) => packet.agent(&[(1, port), (2, b"sw1")]),
        None => packet,
    };
    let mut made_up = 0_u32;
    for port in [None, Some(&b"7"[..])] {
        for second in 0..2 {
            for turn in 0..A_SECOND {
                made_up += 1;
                let [_, a, b, c] = made_up.to_be_bytes();
                let packet = Packet::new(1, 0).with(at::CHADDR, &[0x52, 0x54, 1, a, b, c]);
                lab.hear(&from(packet, port));
                if turn % 5_000 == 0 {
                    let known = 1 + u8::try_from(turn / 5_000).unwrap();
                    assert!(lab.boot(known).is_ok(), "client {known} in second {second}");
                }
            }
            lab.pass(Duration::from_secs(1));
        }
        assert!(lab.leases.offer_count() <= 100);
        assert_eq!(lab.leases.iter().count(), 2, "whoever only asks has no lease");
        if port.is_some() {
            assert_eq!(lab.leases.offer_count(), MAX_OFFERS_OF_PORT);
            assert!(lab.boot(90).is_ok(), "a machine at another port");
        }
        lab.pass(STRANGERS_OFFER_HOLD);
        assert!(lab.boot(91).is_ok(), "fifteen seconds later, for everybody");
        lab.leases = Leases::default();
    }
}

fn option_strategy() -> impl Strategy<Value = (u8, Vec<u8>)> {
    (1..=254_u8, prop::collection::vec(any::<u8>(), 0..=40))
}

proptest! {
    #[test]
    fn hostile_bytes_are_handled(bytes in prop::collection::vec(any::<u8>(), 0..600), to_us in any::<bool>()) {
        let to = if to_us { SERVER } else { Ipv4Addr::BROADCAST };
        Lab::new().hear_bytes(&bytes, to);
        let _ = proxy::overheard(&fleet(), &beside(), &bytes);
    }

    #[test]
    fn hostile_options_are_handled(tail in prop::collection::vec(any::<u8>(), 0..400), kind in 1..=8_u8, last in 1..=4_u8,
                                   sname in any::<[u8; 32]>(), ciaddr in any::<[u8; 4]>()) {
        let mut bytes = Packet::new(kind, last).with(at::SNAME, &sname).with(at::CIADDR, &ciaddr).bytes();
        bytes.pop();
        bytes.extend(tail);
        let arrival = Arrival { from: SocketAddrV4::new(ip(60), BOOT_SERVER_PORT), to: SERVER };
        let outcomes = [
            Lab::new().hear_bytes(&bytes, SERVER),
            proxy::overheard(&fleet(), &beside(), &bytes),
            proxy::asked(&fleet(), &beside(), &arrival, &bytes),
        ];
        for reply in outcomes.into_iter().filter_map(|outcome| outcome.reply) {
            prop_assert!((300..=1472).contains(&reply.bytes.len()));
            raw_options(&reply.bytes);
            v4::Message::decode(&mut Decoder::new(&reply.bytes)).unwrap();
        }
    }

    /// Whatever stands in other options, those that matter are read: the oracle is what was put into the packet.
    #[test]
    fn a_bad_option_never_hides_another(junk in prop::collection::vec(option_strategy(), 0..20), place in any::<prop::sample::Index>()) {
        let ours = [code::KIND, code::REQUESTED, code::CLIENT_ID, code::USER_CLASS, code::OVERLOAD, code::SERVER];
        let mut packet = Packet::new(3, 2);
        packet.options = junk.into_iter().filter(|(code, _)| !ours.contains(code)).collect();
        let wanted: Vec<(u8, Vec<u8>)> = vec![(53, vec![3]), (50, vec![10, 9, 0, 102]), (61, vec![9; 5]), (77, b"iPXE".to_vec())];
        for option in &wanted {
            let at = place.index(packet.options.len() + 1);
            packet.options.insert(at, option.clone());
        }
        let mut expected: BTreeMap<u8, Vec<u8>> = BTreeMap::new();
        for (code, value) in &packet.options {
            expected.entry(*code).or_default().extend(value);
        }
        let request = Request::parse(&packet.bytes()).unwrap();
        prop_assert_eq!(request.kind, Kind::Request);
        prop_assert_eq!(request.address(code::REQUESTED), Some(ip(102)));
        prop_assert!(Machine::of(&request).ipxe);
        for (code, value) in &expected {
            prop_assert_eq!(request.option(*code), Some(&value[..]), "option {}", code);
        }
    }
}

/// What a machine, the clock or the operator does.
#[derive(Debug, Clone)]
enum Act {
    Discover { machine: u8, wish: Option<u8> },
    TakeUp { machine: u8 },
    Ask { machine: u8, address: u8, how: u8 },
    Release { machine: u8 },
    Decline { machine: u8 },
    Pass { seconds: u32 },
    Restart,
}

/// Machines 1 and 2 are pc-01 (fixed .101) and pc-02, 4 and 5 both pc-45; 6 to 12 are strangers.
fn act() -> impl Strategy<Value = Act> {
    let machine = || prop_oneof![Just(1_u8), Just(2), Just(4), Just(5), 6..=12_u8];
    let address = 99..=106_u8;
    prop_oneof![
        4 => (machine(), prop::option::of(address.clone())).prop_map(|(machine, wish)| Act::Discover { machine, wish }),
        4 => machine().prop_map(|machine| Act::TakeUp { machine }),
        3 => (machine(), address, 0..3_u8).prop_map(|(machine, address, how)| Act::Ask { machine, address, how }),
        1 => machine().prop_map(|machine| Act::Release { machine }),
        1 => machine().prop_map(|machine| Act::Decline { machine }),
        2 => prop_oneof![1..90_u32, 1000..40_000_u32].prop_map(|seconds| Act::Pass { seconds }),
        1 => Just(Act::Restart),
    ]
}

/// A model that knows only what clients were told: who was acknowledged which address until when.
#[derive(Default)]
struct Model {
    told: BTreeMap<Ipv4Addr, (String, Timestamp)>,
    last_of: BTreeMap<String, Ipv4Addr>,
    declined: BTreeMap<Ipv4Addr, Timestamp>,
    offered: BTreeMap<u8, Ipv4Addr>,
    stored: BTreeMap<Holder, Lease>,
}

fn place(machine: u8) -> String {
    match machine {
        1 => "pc-01".into(),
        2 => "pc-02".into(),
        4 | 5 => "pc-45".into(),
        stranger => mac(stranger).to_string(),
    }
}

impl Model {
    /// An answer that gives `address` to the machine must be one that it may have.
    fn check_given(&self, machine: u8, address: Ipv4Addr, now: Timestamp, fresh: bool) -> Result<(), TestCaseError> {
        let place = place(machine);
        prop_assert_eq!(place == "pc-01", address == ip(101), "reserved is reserved: {} for {}", address, &place);
        prop_assert!((100..=104).contains(&address.octets()[3]), "{} is not in the pool", address);
        if let Some((other, until)) = self.told.get(&address) {
            prop_assert!(*other == place || *until <= now, "{} is {}'s, given to {}", address, other, &place);
        }
        let rests = self.declined.get(&address).is_some_and(|until| *until > now);
        prop_assert!(!rests, "{} was declined", address);
        for (client, last) in &self.last_of {
            let sticky = client.starts_with("pc-") && *client != place && *last == address;
            prop_assert!(!sticky, "{} sticks to {}, given to {}", address, client, &place);
        }
        if let (true, Some(last)) = (fresh && place.starts_with("pc-"), self.last_of.get(&place)) {
            prop_assert_eq!(*last, address, "{} gets its address again", &place);
        }
        Ok(())
    }

    fn store(&mut self, outcome: &Outcome) {
        for change in &outcome.persist {
            match change {
                LeaseChange::Held(lease) => drop(self.stored.insert(lease.holder.clone(), lease.clone())),
                LeaseChange::Gone(holder) => drop(self.stored.remove(holder)),
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn no_address_ever_has_two_holders(acts in prop::collection::vec(act(), 1..120)) {
        let mut lab = Lab::new();
        lab.scope = scope_of(100, 104);
        let pc_01 = client("pc-01", &[1], Some([10, 9, 0, 101]));
        lab.fleet = Fleet::new([pc_01, client("pc-02", &[2], None), client("pc-45", &[4, 5], None)]).unwrap();
        let mut model = Model::default();
        for act in acts {
            let (machine, outcome) = match act {
                Act::Pass { seconds } => {
                    lab.pass(Duration::from_secs(seconds.into()));
                    continue;
                }
                Act::Restart => {
                    lab.leases = Leases::restore(model.stored.values().cloned().collect());
                    // What rests is forgotten, and so is what was offered.
                    model.declined.clear();
                    let (kept, stored): (Vec<_>, Vec<_>) = (lab.leases.iter().collect(), model.stored.values().collect());
                    prop_assert_eq!(kept.len(), stored.len());
                    prop_assert!(stored.iter().all(|lease| kept.contains(lease)));
                    continue;
                }
                Act::Discover { machine, wish } => {
                    let mut packet = Packet::new(1, machine);
                    if let Some(wish) = wish {
                        packet = packet.option(code::REQUESTED, &ip(wish).octets());
                    }
                    (machine, lab.hear(&packet))
                }
                Act::TakeUp { machine } => match model.offered.get(&machine) {
                    Some(address) => (machine, lab.hear(&Packet::new(3, machine).selecting(*address))),
                    None => continue,
                },
                Act::Ask { machine, address, how } => (machine, match how {
                    0 => lab.hear(&Packet::new(3, machine).option(code::REQUESTED, &ip(address).octets())),
                    1 => lab.hear_unicast(&Packet::new(3, machine).using(ip(address))),
                    _ => lab.hear(&Packet::new(3, machine).using(ip(address))),
                }),
                Act::Release { machine } => match model.last_of.get(&place(machine)) {
                    Some(address) => (machine, lab.hear_unicast(&Packet::new(7, machine).using(*address))),
                    None => continue,
                },
                Act::Decline { machine } => match model.last_of.get(&place(machine)) {
                    Some(address) => (machine, lab.hear(&Packet::new(4, machine).selecting(*address))),
                    None => continue,
                },
            };
            model.store(&outcome);
            let place = place(machine);
            match outcome.reason {
                Reason::Offered(address, _) => {
                    model.check_given(machine, address, lab.now, true)?;
                    model.offered.insert(machine, address);
                }
                Reason::Acked(address, _) => {
                    model.check_given(machine, address, lab.now, false)?;
                    model.told.retain(|_, (holder, _)| *holder != place);
                    model.told.insert(address, (place.clone(), lab.now.after(LEASE)));
                    model.last_of.retain(|_, last| *last != address);
                    model.last_of.insert(place, address);
                }
                Reason::Released(address) => {
                    model.told.remove(&address);
                }
                Reason::Declined(address) => {
                    model.told.remove(&address);
                    model.declined.insert(address, lab.now.after(QUARANTINE));
                    model.last_of.remove(&place);
                }
                _ => {}
            }
            let addresses: Vec<_> = lab.leases.iter().map(|lease| lease.address).collect();
            let mut unique = addresses.clone();
            unique.dedup();
            prop_assert_eq!(addresses, unique);
        }
    }
}
