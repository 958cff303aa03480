//! UDP over a packet socket (`packet(7)`), with the headers of IP and UDP made and read here (RFC 791, RFC 8200, RFC 768).
//!
//! Out: one datagram to a machine that has no address yet, so that ARP cannot find it; the frame goes to a hardware address
//! that we say. In: what is sent to a port that another process of this host has. The kernel gives each unicast datagram to
//! one socket, and shares broadcasts only among sockets that all agreed to; a packet socket hears beside them, and takes
//! nothing from them.

use std::io;
use std::mem;
use std::net::{Ipv4Addr, SocketAddrV4, SocketAddrV6};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use super::datagram::{short, socklen};

/// Bytes of an IPv4 header without options.
const IP_HEADER: usize = 20;
/// Bytes of a UDP header.
const UDP_HEADER: usize = 8;
/// IANA's number of UDP in an IP header.
const UDP: u8 = 17;
/// In the sixth and seventh byte of an IPv4 header: where in its datagram a fragment belongs, and that more follow.
const FRAGMENT_OFFSET: u16 = 0x1fff;
const MORE_FRAGMENTS: u16 = 0x2000;
/// Hops that a reply may take; it is for the wire that it leaves on, and 64 is the usual value (RFC 1700).
const TIME_TO_LIVE: u8 = 64;

/// Most bytes of a packet that are handed over: all of them.
const WHOLE: u32 = u32::MAX;

/// A datagram that was heard beside the socket that it was for. Its UDP checksum is not looked at: a sender on this host, or
/// in a virtual machine, leaves it to hardware that is not there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Overheard<'a> {
    /// Who sent it.
    pub from: SocketAddrV4,
    /// Where to.
    pub to: SocketAddrV4,
    /// What it says.
    pub payload: &'a [u8],
}

/// Which packets of an interface a packet socket hears.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Traffic {
    /// Those that arrive.
    Arriving,
    /// Those that leave, too. The kernel then shows it every packet of the interface, of whatever protocol.
    Both,
}

/// A packet socket on one interface.
#[derive(Debug)]
pub struct PacketSocket {
    fd: OwnedFd,
    interface: i32,
}

impl PacketSocket {
    /// A sender for the interface with this index. It does not block.
    ///
    /// # Errors
    /// `PermissionDenied` without `CAP_NET_RAW`.
    pub fn open(interface: u32) -> io::Result<Self> {
        // Protocol 0: nothing is queued for receiving until `listen`. SOCK_DGRAM: the kernel writes the Ethernet header.
        // SAFETY: no pointers; the result is checked before it becomes an owned descriptor, which nobody else has.
        let fd = unsafe {
            let fd = libc::socket(libc::AF_PACKET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK, 0);
            if fd < 0 {
                return Err(io::Error::last_os_error());
            }
            OwnedFd::from_raw_fd(fd)
        };
        Ok(Self { fd, interface: interface.cast_signed() })
    }

    /// Hears, from now on, the UDP datagrams on the interface that are for one of these ports.
    ///
    /// # Errors
    /// What `setsockopt(2)` and `bind(2)` say; the interface may be gone.
    pub fn listen(&self, ports: [u16; 2], traffic: Traffic) -> io::Result<()> {
        // Before the bind, so that nothing else is ever queued.
        socket2::SockRef::from(&self.fd).attach_filter(&for_ports(ports))?;
        let name = self.address(short(match traffic {
            Traffic::Arriving => libc::ETH_P_IP,
            Traffic::Both => libc::ETH_P_ALL,
        }));
        // SAFETY: `name` outlives the call and is passed with its true length; the kernel only reads it.
        let result = unsafe {
            libc::bind(self.fd.as_raw_fd(), (&raw const name).cast(), socklen(size_of::<libc::sockaddr_ll>()))
        };
        if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }

    /// Takes one datagram off a socket that listens; `None` if it is none after all: a fragment, or cut short.
    ///
    /// # Errors
    /// What `recv(2)` says, `WouldBlock` among it.
    pub fn receive<'a>(&self, buffer: &'a mut [u8]) -> io::Result<Option<Overheard<'a>>> {
        let (len, _) = rustix::net::recv(&self.fd, &mut *buffer, rustix::net::RecvFlags::empty())?;
        Ok(datagram(&buffer[..len]))
    }

    /// This interface, as `packet(7)` names it.
    fn address(&self, protocol: u16) -> libc::sockaddr_ll {
        // SAFETY: sockaddr_ll is plain data, for which zeros are a valid value.
        let mut name: libc::sockaddr_ll = unsafe { mem::zeroed() };
        name.sll_family = short(libc::AF_PACKET);
        name.sll_protocol = protocol.to_be();
        name.sll_ifindex = self.interface;
        name
    }

    /// Sends one UDP datagram to the machine with this hardware address.
    ///
    /// # Errors
    /// `InvalidInput` if the payload is longer than a datagram; else what `sendto(2)` says, `WouldBlock` among it.
    pub fn send(&self, hardware: [u8; 6], from: SocketAddrV4, to: SocketAddrV4, payload: &[u8]) -> io::Result<()> {
        let packet = packet(from, to, payload)
            .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "longer than a UDP datagram"))?;
        let mut name = self.address(short(libc::ETH_P_IP));
        name.sll_halen = 6;
        name.sll_addr[..6].copy_from_slice(&hardware);
        // SAFETY: `packet` and `name` outlive the call and are passed with their true lengths; the kernel only reads.
        let sent = unsafe {
            libc::sendto(
                self.fd.as_raw_fd(),
                packet.as_ptr().cast(),
                packet.len(),
                libc::MSG_NOSIGNAL,
                (&raw const name).cast(),
                socklen(size_of::<libc::sockaddr_ll>()),
            )
        };
        if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }
}

impl AsFd for PacketSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// A sender of whole IPv4 packets (`raw(7)`), which the kernel routes: for datagrams from a port that another process has.
#[derive(Debug)]
pub struct RawSocket {
    fd: OwnedFd,
}

impl RawSocket {
    /// A sender. It does not block, and receives nothing.
    ///
    /// # Errors
    /// `PermissionDenied` without `CAP_NET_RAW`.
    pub fn open() -> io::Result<Self> {
        // SAFETY: no pointers; the result is checked before it becomes an owned descriptor, which nobody else has.
        let fd = unsafe {
            let kind = libc::SOCK_RAW | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
            let fd = libc::socket(libc::AF_INET, kind, libc::IPPROTO_RAW);
            if fd < 0 {
                return Err(io::Error::last_os_error());
            }
            OwnedFd::from_raw_fd(fd)
        };
        Ok(Self { fd })
    }

    /// Sends one UDP datagram.
    ///
    /// # Errors
    /// `InvalidInput` if the payload is longer than a datagram; else what `sendto(2)` says.
    pub fn send(&self, from: SocketAddrV4, to: SocketAddrV4, payload: &[u8]) -> io::Result<()> {
        let packet = packet(from, to, payload)
            .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "longer than a UDP datagram"))?;
        let to = SocketAddrV4::new(*to.ip(), 0);
        rustix::net::sendto(&self.fd, &packet, rustix::net::SendFlags::NOSIGNAL, &to)?;
        Ok(())
    }
}

/// A classic BPF program (`Documentation/networking/filter.rst` of Linux) that passes the first fragments of UDP datagrams to
/// one of these ports. Offsets count from the IPv4 header.
///
/// What the kernel knows to be for others is not passed. That is above all what carries the tag of a VLAN of which this host has
/// no interface: the tag is taken off before a packet socket sees the frame, which then looks like one of this wire.
fn for_ports([one, other]: [u16; 2]) -> [socket2::SockFilter; 12] {
    const LOAD_BYTE: u32 = libc::BPF_LD | libc::BPF_B | libc::BPF_ABS;
    const LOAD_HALF: u32 = libc::BPF_LD | libc::BPF_H | libc::BPF_ABS;
    const LOAD_HALF_BEHIND: u32 = libc::BPF_LD | libc::BPF_H | libc::BPF_IND;
    const LOAD_HEADER_LEN: u32 = libc::BPF_LDX | libc::BPF_B | libc::BPF_MSH;
    const EQUAL: u32 = libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K;
    const ANY_BIT: u32 = libc::BPF_JMP | libc::BPF_JSET | libc::BPF_K;
    const RETURN: u32 = libc::BPF_RET | libc::BPF_K;
    let step = |code: u32, yes, no, k| {
        socket2::SockFilter::new(u16::try_from(code).expect("BPF codes have 16 bits"), yes, no, k)
    };
    let packet_type = (libc::SKF_AD_OFF + libc::SKF_AD_PKTTYPE).cast_unsigned();
    [
        step(LOAD_BYTE, 0, 0, packet_type),
        step(EQUAL, 9, 0, u32::from(libc::PACKET_OTHERHOST)),
        step(LOAD_BYTE, 0, 0, 9),
        step(EQUAL, 0, 7, u32::from(UDP)),
        step(LOAD_HALF, 0, 0, 6),
        step(ANY_BIT, 5, 0, u32::from(FRAGMENT_OFFSET)),
        step(LOAD_HEADER_LEN, 0, 0, 0),
        step(LOAD_HALF_BEHIND, 0, 0, 2),
        step(EQUAL, 1, 0, u32::from(one)),
        step(EQUAL, 0, 1, u32::from(other)),
        step(RETURN, 0, 0, WHOLE),
        step(RETURN, 0, 0, 0),
    ]
}

/// The UDP datagram of a whole IPv4 packet.
fn datagram(packet: &[u8]) -> Option<Overheard<'_>> {
    let first = *packet.first()?;
    let header_len = usize::from(first & 0x0f) * 4;
    if first >> 4 != 4 || header_len < IP_HEADER {
        return None;
    }
    let (header, _) = packet.split_at_checked(header_len)?;
    let half = |bytes: &[u8], at: usize| Some(u16::from_be_bytes(bytes.get(at..)?.first_chunk().copied()?));
    let ip = |at: usize| Some(Ipv4Addr::from(header.get(at..)?.first_chunk::<4>().copied()?));
    if header[9] != UDP || half(header, 6)? & (FRAGMENT_OFFSET | MORE_FRAGMENTS) != 0 {
        return None;
    }
    // Ethernet pads short packets; what counts is what IP says.
    let udp = packet.get(header_len..usize::from(half(header, 2)?))?;
    let payload = udp.get(UDP_HEADER..usize::from(half(udp, 4)?))?;
    let end = |address, port| Some(SocketAddrV4::new(address, half(udp, port)?));
    Some(Overheard { from: end(ip(12)?, 0)?, to: end(ip(16)?, 2)?, payload })
}

/// An IPv4 packet with one UDP datagram, its checksums right; `None` if the payload is too long for one.
#[must_use]
pub fn packet(from: SocketAddrV4, to: SocketAddrV4, payload: &[u8]) -> Option<Vec<u8>> {
    let udp_len = u16::try_from(UDP_HEADER + payload.len()).ok()?;
    let total_len = u16::try_from(IP_HEADER + UDP_HEADER + payload.len()).ok()?;

    let mut ip = [0; IP_HEADER];
    ip[0] = 0x45; // version 4, five words of header
    ip[2..4].copy_from_slice(&total_len.to_be_bytes());
    // Identification 0 and no "don't fragment": the reply is far shorter than any MTU.
    ip[8] = TIME_TO_LIVE;
    ip[9] = UDP;
    ip[12..16].copy_from_slice(&from.ip().octets());
    ip[16..20].copy_from_slice(&to.ip().octets());
    let checksum = !sum(0, &ip);
    ip[10..12].copy_from_slice(&checksum.to_be_bytes());

    let mut udp = [0; UDP_HEADER];
    udp[0..2].copy_from_slice(&from.port().to_be_bytes());
    udp[2..4].copy_from_slice(&to.port().to_be_bytes());
    udp[4..6].copy_from_slice(&udp_len.to_be_bytes());
    let checksum = match !udp_sum(from, to, &udp, payload) {
        0 => 0xffff, // RFC 768: 0 would mean "no checksum"
        sum => sum,
    };
    udp[6..8].copy_from_slice(&checksum.to_be_bytes());
    Some([&ip[..], &udp[..], payload].concat())
}

/// An IPv6 packet with one UDP datagram, its checksum right; `None` if the payload is too long for one (RFC 8200 §3, §8.1).
#[must_use]
pub fn packet6(from: SocketAddrV6, to: SocketAddrV6, payload: &[u8]) -> Option<Vec<u8>> {
    let udp_len = u16::try_from(UDP_HEADER + payload.len()).ok()?.to_be_bytes();
    let addresses = [from.ip().octets(), to.ip().octets()].concat();
    let mut udp = [0; UDP_HEADER];
    udp[..2].copy_from_slice(&from.port().to_be_bytes());
    udp[2..4].copy_from_slice(&to.port().to_be_bytes());
    udp[4..6].copy_from_slice(&udp_len);
    let pseudo = [0, 0, udp_len[0], udp_len[1], 0, 0, 0, UDP];
    // Zero would mean that there is none, which IPv6 does not allow.
    let checksum = match !sum(sum(sum(sum(0, &addresses), &pseudo), &udp), payload) {
        0 => u16::MAX,
        checksum => checksum,
    };
    udp[6..].copy_from_slice(&checksum.to_be_bytes());
    let version = [0x60, 0, 0, 0];
    Some([&version[..], &udp_len, &[UDP, TIME_TO_LIVE], &addresses, &udp, payload].concat())
}

/// The sum that a UDP checksum covers: pseudo header, header, payload.
fn udp_sum(from: SocketAddrV4, to: SocketAddrV4, header: &[u8; UDP_HEADER], payload: &[u8]) -> u16 {
    let mut pseudo = [0; 12];
    pseudo[0..4].copy_from_slice(&from.ip().octets());
    pseudo[4..8].copy_from_slice(&to.ip().octets());
    pseudo[9] = UDP;
    pseudo[10..12].copy_from_slice(&header[4..6]);
    sum(sum(sum(0, &pseudo), header), payload)
}

/// The one's complement sum of 16-bit words (RFC 1071), continued from `start`; an odd last byte is padded with zero.
pub(super) fn sum(start: u16, bytes: &[u8]) -> u16 {
    bytes.chunks(2).fold(start, |sum, pair| {
        let word = u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)]);
        let (sum, carry) = sum.overflowing_add(word);
        sum + u16::from(carry)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ends() -> (SocketAddrV4, SocketAddrV4) {
        ("10.9.0.1:67".parse().unwrap(), "10.9.0.25:68".parse().unwrap())
    }

    #[test]
    fn the_sum_is_that_of_the_example_in_rfc_1071() {
        assert_eq!(sum(0, &[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7]), 0xddf2);
    }

    #[test]
    fn both_checksums_verify_for_odd_and_even_payloads() {
        let (from, to) = ends();
        for payload in [&b""[..], b"odd", b"even"] {
            let packet = packet(from, to, payload).unwrap();
            assert_eq!(packet.len(), 28 + payload.len());
            // A receiver sums what it got, checksum included, and wants all ones.
            assert_eq!(sum(0, &packet[..20]), 0xffff);
            let header: &[u8; 8] = packet[20..28].try_into().unwrap();
            assert_eq!(udp_sum(from, to, header, payload), 0xffff);
            assert_eq!(&packet[28..], payload);
        }
    }

    #[test]
    fn what_is_sent_can_be_read_and_what_is_cut_or_no_datagram_is_nothing() {
        let (from, to) = ends();
        let whole = packet(from, to, b"payload").unwrap();
        assert_eq!(datagram(&whole), Some(Overheard { from, to, payload: b"payload" }));
        let padded = [&whole[..], &[0; 20]].concat();
        assert_eq!(datagram(&padded).unwrap().payload, b"payload");
        for len in 0..whole.len() {
            assert_eq!(datagram(&whole[..len]), None, "{len} bytes");
        }
        // Version 6, a header of 16 bytes, a header longer than the packet, TCP, a middle and a first fragment, a UDP length
        // below its header and beyond the packet.
        for (at, byte) in [(0, 0x65), (0, 0x44), (0, 0x4f), (9, 6), (7, 1), (6, 0x20), (25, 7), (25, 99), (3, 27)] {
            let mut bad = whole.clone();
            bad[at] = byte;
            assert_eq!(datagram(&bad), None, "byte {at} = {byte:#x}");
        }
    }

    /// A socket on the loopback interface, if this process may have one.
    fn on_loopback(test: &str) -> Option<PacketSocket> {
        match PacketSocket::open(1) {
            Ok(socket) => Some(socket),
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                eprintln!("skip: {test} needs CAP_NET_RAW");
                None
            }
            Err(error) => panic!("{error}"),
        }
    }

    #[test]
    fn what_the_kernel_knows_to_be_for_others_is_not_overheard() {
        let Some(socket) = on_loopback("what_the_kernel_knows_to_be_for_others_is_not_overheard") else { return };
        let server = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let std::net::SocketAddr::V4(to) = server.local_addr().unwrap() else { unreachable!() };
        socket.listen([to.port(), 1], Traffic::Arriving).unwrap();
        // The loopback interface's own hardware address is zeros.
        for (hardware, payload) in [([2, 0, 0, 0, 0, 1], b"theirs"), ([0; 6], b"for us")] {
            socket.send(hardware, to, to, payload).unwrap();
        }
        let mut buffer = [0; 1500];
        assert_eq!(socket.receive(&mut buffer).unwrap().unwrap().payload, b"for us");
    }

    #[test]
    fn a_port_that_another_socket_has_is_overheard() {
        let Some(socket) = on_loopback("a_port_that_another_socket_has_is_overheard") else { return };
        let server = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let client = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let port = server.local_addr().unwrap().port();
        socket.listen([1, port], Traffic::Arriving).unwrap();
        let mut buffer = [0; 1500];
        assert_eq!(socket.receive(&mut buffer).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        client.send_to(b"not for it", client.local_addr().unwrap()).unwrap();
        client.send_to(b"question", server.local_addr().unwrap()).unwrap();
        let heard = socket.receive(&mut buffer).unwrap().unwrap();
        assert_eq!((heard.payload, heard.to.port()), (&b"question"[..], port));
        assert_eq!(std::net::SocketAddr::V4(heard.from), client.local_addr().unwrap());
        let mut buffer = [0; 64];
        assert_eq!(server.recv(&mut buffer).unwrap(), 8, "the other socket has it too");
    }

    #[test]
    fn a_payload_longer_than_a_datagram_is_refused() {
        let (from, to) = ends();
        assert!(packet(from, to, &vec![0; 65_507]).is_some());
        assert!(packet(from, to, &vec![0; 65_508]).is_none());
    }
}
