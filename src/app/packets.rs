//! The last packets of each machine, and what was decided about them: DHCP, TFTP, boot files by HTTP, logins.
//!
//! Kept in memory alone, for `roost packets`. DHCP's packets and DHCPv6's are kept whole, both ways. Of TFTP there are requests,
//! agreed options, errors, and one line for all of a transfer's blocks; HTTP and iSCSI have one line for each request and no bytes.
//! Frames are rebuilt from what the sockets told: Ethernet addresses that they did not tell are zeros.
//!
//! Not here: the decisions. Every adapter reports its own.

use std::borrow::Cow;
use std::collections::VecDeque;
use std::fmt;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use super::recorder::Recent;
use crate::fleet::Mac;
use crate::sys::frame;

/// Packets that are kept of one machine: some ten boots.
pub const MAX_OF_ONE: usize = 200;
/// Machines in clients' places whose packets are kept. As many as a mapping file has.
pub const MAX_MACHINES: usize = 4_096;
/// Bytes that all of their packets may take up: those of some 600 machines that boot in the same hour.
pub const MAX_BYTES: usize = 32 << 20;
/// Machines in nobody's place. They have a shelf of their own: whoever makes up addresses pushes out others of that kind.
pub const MAX_STRANGERS: usize = 256;
/// Bytes that all packets of strangers may take up.
pub const MAX_BYTES_OF_STRANGERS: usize = 4 << 20;
/// Longest payload that is kept. DHCP reads and sends none that is longer, so each is kept whole.
pub const MAX_PAYLOAD: usize = 2_048;
/// Longest text of a packet, in bytes: names come from strangers.
const MAX_TEXT: usize = 400;

/// Which way a packet went.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Direction {
    /// From the machine to us.
    In,
    /// From us to the machine.
    Out,
    /// From somebody else to the machine, overheard.
    Heard,
}

/// Of which protocol a packet is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// DHCP, ports 67 and 68.
    Dhcp,
    /// DHCPv6, ports 546 and 547.
    Dhcpv6,
    /// Firmware's second question, port 4011.
    Pxe,
    /// TFTP.
    Tftp,
    /// HTTP: boot files.
    Http,
    /// iSCSI: logins.
    Iscsi,
}

/// What was done with a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Decision {
    /// It was answered with what it asked for.
    Answered,
    /// It was answered: no.
    Refused,
    /// It told something, and there was nothing to answer.
    Noted,
    /// It is not for us, or cannot be helped.
    Ignored,
    /// It is ours, and was sent.
    Sent,
    /// It is ours, and could not be sent; or what it began did not come to its end.
    Failed,
}

impl fmt::Display for Direction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::In => "in",
            Self::Out => "out",
            Self::Heard => "heard",
        })
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Dhcp => "DHCP",
            Self::Dhcpv6 => "DHCPv6",
            Self::Pxe => "PXE",
            Self::Tftp => "TFTP",
            Self::Http => "HTTP",
            Self::Iscsi => "iSCSI",
        })
    }
}

impl fmt::Display for Decision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Answered => "answered",
            Self::Refused => "refused",
            Self::Noted => "noted",
            Self::Ignored => "ignored",
            Self::Sent => "sent",
            Self::Failed => "failed",
        })
    }
}

/// A packet, or what stands for several, as an adapter reports it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Packet {
    /// Which way it went.
    pub direction: Direction,
    /// Of which protocol it is.
    pub protocol: Protocol,
    /// What it says, for a person: `DISCOVER`, `read snponly.efi, blksize 1468`.
    pub what: Cow<'static, str>,
    /// What was done.
    pub decision: Decision,
    /// Why, in one word, for programs: `no-address`.
    pub code: &'static str,
    /// Why, for a person.
    pub reason: Cow<'static, str>,
    /// It itself, where it is kept.
    pub datagram: Option<Datagram>,
}

/// A UDP datagram and its way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Datagram {
    /// The sender's hardware address; zeros where it is not known.
    pub source: [u8; 6],
    /// The receiver's.
    pub destination: [u8; 6],
    /// Who sent it.
    pub from: SocketAddr,
    /// Where to.
    pub to: SocketAddr,
    /// What it carries.
    pub payload: Box<[u8]>,
}

impl Datagram {
    /// The whole Ethernet frame (IEEE 802.3, RFC 894, RFC 2464), checksums right; the frame check sequence is no part of a
    /// capture.
    #[must_use]
    pub fn frame(&self) -> Option<Vec<u8>> {
        const IPV4: [u8; 2] = [0x08, 0x00];
        const IPV6: [u8; 2] = [0x86, 0xdd];
        let (kind, packet) = match (self.from, self.to) {
            (SocketAddr::V4(from), SocketAddr::V4(to)) => (IPV4, frame::packet(from, to, &self.payload)?),
            (SocketAddr::V6(from), SocketAddr::V6(to)) => (IPV6, frame::packet6(from, to, &self.payload)?),
            _ => return None,
        };
        Some([&self.destination[..], &self.source, &kind, &packet].concat())
    }
}

/// A packet that is kept.
#[derive(Debug)]
struct Kept {
    number: u64,
    at_ns: u64,
    packet: Packet,
}

impl Kept {
    /// What it takes up, as near as matters.
    fn cost(&self) -> usize {
        let Packet { what, reason, datagram, .. } = &self.packet;
        size_of::<Self>()
            + what.len()
            + reason.len()
            + datagram.as_ref().map_or(0, |datagram| size_of::<Datagram>() + datagram.payload.len())
    }
}

/// A machine's packets, oldest first.
#[derive(Debug, Default)]
struct Ring {
    packets: VecDeque<Kept>,
    bytes: usize,
}

/// The rings of one kind of machine.
struct Shelf {
    rings: Recent<Mac, Ring>,
    bytes: usize,
    most_bytes: usize,
}

impl Shelf {
    fn new(most: usize, most_bytes: usize) -> Self {
        Self { rings: Recent::new(most), bytes: 0, most_bytes }
    }

    fn add(&mut self, mac: Mac, kept: Kept) {
        if self.rings.is_full() && self.rings.peek(&mac).is_none() {
            self.drop_oldest();
        }
        let cost = kept.cost();
        let ring = self.rings.touch(mac);
        if ring.packets.len() >= MAX_OF_ONE
            && let Some(gone) = ring.packets.pop_front()
        {
            ring.bytes -= gone.cost();
            self.bytes -= gone.cost();
        }
        ring.packets.push_back(kept);
        ring.bytes += cost;
        self.bytes += cost;
        // The one that was just added is the youngest, and goes last.
        while self.bytes > self.most_bytes && self.drop_oldest() {}
    }

    fn drop_oldest(&mut self) -> bool {
        let gone = self.rings.pop_oldest();
        self.bytes -= gone.as_ref().map_or(0, |ring| ring.bytes);
        gone.is_some()
    }

    fn take(&mut self, mac: Mac) -> Ring {
        let ring = self.rings.remove(&mac).unwrap_or_default();
        self.bytes -= ring.bytes;
        ring
    }
}

/// The packets of all machines.
pub struct Packets {
    next: AtomicU64,
    shelves: Mutex<Shelves>,
}

struct Shelves {
    clients: Shelf,
    strangers: Shelf,
}

impl fmt::Debug for Packets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Packets").finish_non_exhaustive()
    }
}

impl Default for Packets {
    fn default() -> Self {
        let shelves = Shelves {
            clients: Shelf::new(MAX_MACHINES, MAX_BYTES),
            strangers: Shelf::new(MAX_STRANGERS, MAX_BYTES_OF_STRANGERS),
        };
        Self { next: AtomicU64::new(1), shelves: Mutex::new(shelves) }
    }
}

impl Packets {
    /// Keeps a packet of this machine. `known`: it stands in a client's place.
    pub fn add(&self, mac: Mac, known: bool, packet: Packet) {
        self.add_at(now_ns(), mac, known, packet);
    }

    fn add_at(&self, at_ns: u64, mac: Mac, known: bool, mut packet: Packet) {
        shorten(&mut packet.what);
        shorten(&mut packet.reason);
        packet.datagram = packet.datagram.filter(|datagram| datagram.payload.len() <= MAX_PAYLOAD);
        let mut shelves = self.shelves();
        let kept = Kept { number: self.next.fetch_add(1, Ordering::Relaxed), at_ns, packet };
        let Shelves { clients, strangers } = &mut *shelves;
        if !known {
            return strangers.add(mac, kept);
        }
        // What it said before it was in anybody's place goes with it.
        if strangers.rings.peek(&mac).is_some() {
            for before in strangers.take(mac).packets {
                clients.add(mac, before);
            }
        }
        clients.add(mac, kept);
    }

    /// The packets of these machines that came after the one of this number, oldest first.
    #[must_use]
    pub fn of(&self, macs: &[Mac], after: u64) -> Vec<PacketReport> {
        let shelves = self.shelves();
        let mut reports = Vec::new();
        for mac in macs {
            let rings = [shelves.clients.rings.peek(mac), shelves.strangers.rings.peek(mac)];
            let packets = rings.into_iter().flatten().flat_map(|ring| &ring.packets);
            reports.extend(packets.filter(|kept| kept.number > after).map(|kept| PacketReport::of(*mac, kept)));
        }
        drop(shelves);
        reports.sort_by_key(|report| report.number);
        reports
    }

    /// Every change is whole before anything can panic, so a poisoned lock guards sound data.
    fn shelves(&self) -> MutexGuard<'_, Shelves> {
        self.shelves.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Texts as one line of bounded length, which cannot steer a terminal.
fn shorten(text: &mut Cow<'static, str>) {
    if text.len() > MAX_TEXT || text.chars().any(char::is_control) {
        let clean = |c: char| if c.is_control() { char::REPLACEMENT_CHARACTER } else { c };
        *text = Cow::Owned(text.chars().take(MAX_TEXT / 4).map(clean).chain(['…']).collect());
    }
}

/// The wall clock, in nanoseconds since 1970-01-01T00:00Z.
fn now_ns() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

/// What `GET /v1/packets/WHO` answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PacketsReport {
    /// The client in whose place the machine stands, if in any.
    pub client: Option<String>,
    /// The machines, `52:54:00:aa:00:01`.
    pub macs: Vec<String>,
    /// Their packets, oldest first.
    pub packets: Vec<PacketReport>,
}

/// One packet, or what stands for several.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PacketReport {
    /// Its number; later ones have higher numbers.
    pub number: u64,
    /// When, in nanoseconds since 1970-01-01T00:00Z.
    pub at_ns: u64,
    /// Of which machine.
    pub mac: String,
    /// Which way it went.
    pub direction: Direction,
    /// Of which protocol it is.
    pub protocol: Protocol,
    /// What it says, for a person.
    pub what: String,
    /// What was done.
    pub decision: Decision,
    /// Why, in one word.
    pub code: String,
    /// Why, for a person.
    pub reason: String,
    /// Who sent it, where it is kept: `10.20.0.7:68`.
    pub from: Option<SocketAddr>,
    /// Where to.
    pub to: Option<SocketAddr>,
    /// The whole Ethernet frame, rebuilt, in hexadecimal digits.
    pub frame: Option<String>,
}

impl PacketReport {
    fn of(mac: Mac, Kept { number, at_ns, packet }: &Kept) -> Self {
        let hexadecimal = |bytes: Vec<u8>| bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        let datagram = packet.datagram.as_ref();
        Self {
            number: *number,
            at_ns: *at_ns,
            mac: mac.to_string(),
            direction: packet.direction,
            protocol: packet.protocol,
            what: packet.what.to_string(),
            decision: packet.decision,
            code: packet.code.to_owned(),
            reason: packet.reason.to_string(),
            from: datagram.map(|datagram| datagram.from),
            to: datagram.map(|datagram| datagram.to),
            frame: datagram.and_then(Datagram::frame).map(hexadecimal),
        }
    }

    /// The bytes of its frame.
    #[must_use]
    pub fn frame_bytes(&self) -> Option<Vec<u8>> {
        let digits = self.frame.as_ref()?.as_bytes();
        let byte = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok();
        digits.chunks(2).map(byte).collect()
    }
}

/// The beginning of a capture file: the classic format with times in nanoseconds (draft-ietf-opsawg-pcap §4), for Ethernet.
#[must_use]
pub fn pcap_header() -> [u8; 24] {
    const MAGIC_NANOSECONDS: u32 = 0xa1b2_3c4d;
    const VERSION: [u16; 2] = [2, 4];
    const SNAPLEN: u32 = 65_535;
    const ETHERNET: u32 = 1;
    let mut header = [0; 24];
    header[..4].copy_from_slice(&MAGIC_NANOSECONDS.to_le_bytes());
    header[4..6].copy_from_slice(&VERSION[0].to_le_bytes());
    header[6..8].copy_from_slice(&VERSION[1].to_le_bytes());
    header[16..20].copy_from_slice(&SNAPLEN.to_le_bytes());
    header[20..].copy_from_slice(&ETHERNET.to_le_bytes());
    header
}

/// One frame of a capture file (draft-ietf-opsawg-pcap §5).
#[must_use]
pub fn pcap_record(at_ns: u64, frame: &[u8]) -> Vec<u8> {
    const SECOND: u64 = 1_000_000_000;
    let word = |value: u64| u32::try_from(value).unwrap_or(u32::MAX).to_le_bytes();
    let length = word(frame.len() as u64);
    [&word(at_ns / SECOND)[..], &word(at_ns % SECOND), &length, &length, frame].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mac(number: u32) -> Mac {
        let [_, a, b, c] = number.to_be_bytes();
        Mac::from_octets([0x52, 0x54, 0, a, b, c]).unwrap()
    }

    fn packet(payload: usize) -> Packet {
        Packet {
            direction: Direction::In,
            protocol: Protocol::Dhcp,
            what: "DISCOVER".into(),
            decision: Decision::Answered,
            code: "offered",
            reason: "offered 10.9.0.100, no boot file".into(),
            datagram: Some(Datagram {
                source: [2, 0, 0, 0, 0, 1],
                destination: [0xff; 6],
                from: "0.0.0.0:68".parse().unwrap(),
                to: "255.255.255.255:67".parse().unwrap(),
                payload: vec![7; payload].into(),
            }),
        }
    }

    #[test]
    fn a_machine_has_its_last_two_hundred_packets() {
        let packets = Packets::default();
        for at in 0..450 {
            packets.add_at(at, mac(1), true, packet(300));
        }
        let kept = packets.of(&[mac(1)], 0);
        assert_eq!((kept.len(), kept[0].at_ns, kept[199].at_ns), (MAX_OF_ONE, 250, 449));
        assert_eq!(packets.of(&[mac(1)], kept[197].number).len(), 2);
        assert_eq!(packets.of(&[mac(2)], 0), []);
    }

    #[test]
    fn a_flood_of_strangers_pushes_out_no_client_and_has_its_bounds() {
        let packets = Packets::default();
        packets.add_at(0, mac(1), true, packet(300));
        for number in 0..20_000 {
            packets.add_at(1, mac(100 + number), false, packet(MAX_PAYLOAD));
        }
        assert_eq!(packets.of(&[mac(1)], 0).len(), 1);
        let shelves = packets.shelves();
        assert!(shelves.strangers.bytes <= MAX_BYTES_OF_STRANGERS, "{}", shelves.strangers.bytes);
        let rings = (20_000 - 300..20_000).filter(|number| shelves.strangers.rings.peek(&mac(100 + number)).is_some());
        assert_eq!(rings.count(), MAX_STRANGERS);
    }

    #[test]
    fn the_bytes_of_all_machines_have_a_bound_and_are_counted_right() {
        let packets = Packets::default();
        for round in 0..20 {
            for number in 0..2_000 {
                packets.add_at(round, mac(number), true, packet(1_000));
            }
        }
        let mut shelves = packets.shelves();
        assert!(shelves.clients.bytes <= MAX_BYTES);
        while let Some(ring) = shelves.clients.rings.pop_oldest() {
            assert_eq!(ring.bytes, ring.packets.iter().map(Kept::cost).sum::<usize>());
            shelves.clients.bytes -= ring.bytes;
        }
        assert_eq!(shelves.clients.bytes, 0);
    }

    #[test]
    fn what_a_stranger_said_goes_with_it_into_a_clients_place() {
        let packets = Packets::default();
        packets.add_at(1, mac(1), false, packet(10));
        packets.add_at(2, mac(1), true, packet(10));
        assert_eq!(packets.of(&[mac(1)], 0).iter().map(|kept| kept.at_ns).collect::<Vec<_>>(), [1, 2]);
        assert_eq!(packets.shelves().strangers.bytes, 0);
    }

    #[test]
    fn a_frame_is_rebuilt_to_the_byte_and_read_back_from_its_report() {
        let packets = Packets::default();
        packets.add_at(1_700_000_000_123_456_789, mac(1), true, packet(3));
        let [report] = packets.of(&[mac(1)], 0).try_into().unwrap();
        let frame = report.frame_bytes().unwrap();
        assert_eq!(frame[..14], [0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2, 0, 0, 0, 0, 1, 8, 0]);
        assert_eq!((frame.len(), &frame[42..]), (14 + 20 + 8 + 3, &[7, 7, 7][..]));
        let record = pcap_record(report.at_ns, &frame);
        assert_eq!(record[..8], [1_700_000_000_u32.to_le_bytes(), 123_456_789_u32.to_le_bytes()].concat());
        assert_eq!(record[8..16], [45, 0, 0, 0, 45, 0, 0, 0]);
        let header = pcap_header();
        assert_eq!((&header[..8], header[20]), (&[0x4d, 0x3c, 0xb2, 0xa1, 2, 0, 4, 0][..], 1));
    }

    #[test]
    fn a_frame_of_an_ipv6_datagram_has_the_right_type_and_length() {
        let ends = ("[fe80::1]:546".parse().unwrap(), "[ff02::1:2]:547".parse().unwrap());
        let Packet { datagram, .. } = packet(3);
        let datagram = datagram.map(|datagram| Datagram { from: ends.0, to: ends.1, ..datagram });
        let frame = datagram.clone().unwrap().frame().unwrap();
        assert_eq!((frame.len(), &frame[12..15], frame[19]), (14 + 40 + 8 + 3, &[0x86, 0xdd, 0x60][..], 8 + 3));
        let mixed = Datagram { to: "10.9.0.1:67".parse().unwrap(), ..datagram.unwrap() };
        assert_eq!(mixed.frame(), None);
    }

    #[test]
    fn texts_of_strangers_are_one_short_line() {
        let packets = Packets::default();
        let long = Packet { what: format!("read \u{1b}[31m{}", "é".repeat(1_000)).into(), ..packet(MAX_PAYLOAD + 1) };
        packets.add_at(0, mac(1), false, long);
        let [kept] = packets.of(&[mac(1)], 0).try_into().unwrap();
        assert!(kept.what.len() <= MAX_TEXT && !kept.what.contains('\u{1b}'), "{}", kept.what);
        assert_eq!(kept.frame, None, "longer than anything that is read");
    }
}
