//! What is asked of all DHCPv6 servers of a wire (RFC 8415 §7.1), over a packet socket (`packet(7)`), with the IPv6 and UDP
//! headers read here (RFC 8200, RFC 768).
//!
//! Port 547 is never bound: the server that gives the addresses may run on this host, and want it for itself. So datagrams to
//! the groups of servers are heard, and none that are sent to this host alone.
//!
//! Not here: what is answered (`dhcp::v6`), and waiting.

use std::io;
use std::net::{Ipv6Addr, SocketAddrV6};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::net::{RecvFlags, SendFlags, recv, send};
use socket2::{Domain, Protocol, Socket, Type};

use super::datagram::short;
use super::frame::packet6;
use super::solicitation::{ETHERNET_HEADER, IPV6_HEADER, link_local, listen};

/// The groups that clients and relays ask.
const GROUPS: [Ipv6Addr; 2] = [Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 1, 2), Ipv6Addr::new(0xff05, 0, 0, 0, 0, 0, 1, 3)];
/// The port that servers and relays listen on.
const PORT: u16 = 547;
/// Bytes of a UDP header.
const UDP_HEADER: usize = 8;
/// IANA's number of UDP in an IPv6 header.
const UDP: u8 = 17;

/// A datagram to the servers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Asked<'a> {
    /// The hardware that sent the frame: the machine's own, or that of a relay or router.
    pub mac: [u8; 6],
    /// Who sent it.
    pub from: SocketAddrV6,
    /// To which group, and port.
    pub to: SocketAddrV6,
    /// What it carries.
    pub payload: &'a [u8],
}

/// A packet socket that hears what is asked of the servers on one interface.
#[derive(Debug)]
pub struct ServersSocket {
    fd: OwnedFd,
    mac: [u8; 6],
    interface: u32,
    /// Tells switches that we are of the groups (RFC 3810), which a packet socket does not. Nothing is read from it.
    _member: Socket,
}

impl ServersSocket {
    /// Listens on the interface with this index and this hardware address. It does not block.
    ///
    /// # Errors
    /// `PermissionDenied` without `CAP_NET_RAW`; the interface may be gone, or without IPv6.
    pub fn open(interface: u32, mac: [u8; 6]) -> io::Result<Self> {
        let member = Socket::new(Domain::IPV6, Type::DGRAM, Some(Protocol::UDP))?;
        for group in &GROUPS {
            member.join_multicast_v6(group, interface)?;
        }
        let fd = listen(interface, &filter(), &GROUPS.map(ethernet))?;
        Ok(Self { fd, mac, interface, _member: member })
    }

    /// Takes one frame off the socket; `None` if it asks the servers nothing.
    ///
    /// # Errors
    /// What `recv(2)` says, `WouldBlock` among it.
    pub fn receive<'a>(&self, buffer: &'a mut [u8]) -> io::Result<Option<Asked<'a>>> {
        let (len, _) = recv(&self.fd, &mut *buffer, RecvFlags::empty())?;
        Ok(asked(buffer.get(..len).unwrap_or_default(), self.interface))
    }

    /// Where answers to this address come from: for a link-local one that is ours, else `own`.
    #[must_use]
    pub fn answers_from(&self, own: Ipv6Addr, to: Ipv6Addr) -> SocketAddrV6 {
        let own = if to.is_unicast_link_local() { link_local(self.mac) } else { own };
        SocketAddrV6::new(own, PORT, 0, 0)
    }

    /// Answers the hardware that sent a frame.
    ///
    /// # Errors
    /// What `send(2)` says, `WouldBlock` among it.
    pub fn send(&self, mac: [u8; 6], from: SocketAddrV6, to: SocketAddrV6, payload: &[u8]) -> io::Result<()> {
        send(&self.fd, &frame((self.mac, from), (mac, to), payload)?, SendFlags::NOSIGNAL)?;
        Ok(())
    }
}

impl AsFd for ServersSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// The Ethernet address of a group (RFC 2464 §7).
fn ethernet(group: Ipv6Addr) -> [u8; 6] {
    let [.., a, b, c, d] = group.octets();
    [0x33, 0x33, a, b, c, d]
}

/// A classic BPF program that passes IPv6, next header UDP, to port 547.
fn filter() -> [socket2::SockFilter; 8] {
    const LOAD_BYTE: u32 = libc::BPF_LD | libc::BPF_B | libc::BPF_ABS;
    const LOAD_HALF: u32 = libc::BPF_LD | libc::BPF_H | libc::BPF_ABS;
    const EQUAL: u32 = libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K;
    const RETURN: u32 = libc::BPF_RET | libc::BPF_K;
    let step = |code: u32, yes, no, k: usize| {
        let k = u32::try_from(k).expect("offsets and codes of a frame's header");
        socket2::SockFilter::new(u16::try_from(code).expect("BPF codes have 16 bits"), yes, no, k)
    };
    [
        step(LOAD_HALF, 0, 0, ETHERNET_HEADER - 2),
        step(EQUAL, 0, 5, usize::from(short(libc::ETH_P_IPV6))),
        step(LOAD_BYTE, 0, 0, ETHERNET_HEADER + 6),
        step(EQUAL, 0, 3, usize::from(UDP)),
        step(LOAD_HALF, 0, 0, ETHERNET_HEADER + IPV6_HEADER + 2),
        step(EQUAL, 0, 1, usize::from(PORT)),
        step(RETURN, 0, 0, usize::from(u16::MAX)),
        step(RETURN, 0, 0, 0),
    ]
}

/// What this Ethernet frame asks the servers. Its checksum is not looked at: a frame of a machine on this host has none yet.
fn asked(frame: &[u8], interface: u32) -> Option<Asked<'_>> {
    let (ethernet, packet) = frame.split_first_chunk::<ETHERNET_HEADER>()?;
    let (header, rest) = packet.split_first_chunk::<IPV6_HEADER>()?;
    // Ethernet pads short packets; what counts is what IP says, and then what UDP says.
    let datagram = rest.get(..usize::from(u16::from_be_bytes([header[4], header[5]])))?;
    let (udp, _) = datagram.split_first_chunk::<UDP_HEADER>()?;
    let payload = datagram.get(UDP_HEADER..usize::from(u16::from_be_bytes([udp[4], udp[5]])))?;
    let address = |at: usize| Some(Ipv6Addr::from(<[u8; 16]>::try_from(header.get(at..at + 16)?).ok()?));
    let (from, to) = (address(8)?, address(24)?);
    let known = ethernet[12..] == short(libc::ETH_P_IPV6).to_be_bytes()
        && header[0] >> 4 == 6
        && header[6] == UDP
        && udp[2..4] == PORT.to_be_bytes()
        && GROUPS.contains(&to)
        && !from.is_multicast()
        && !from.is_unspecified();
    let mac: [u8; 6] = ethernet[6..12].try_into().ok()?;
    let from = SocketAddrV6::new(from, u16::from_be_bytes([udp[0], udp[1]]), 0, interface);
    let to = SocketAddrV6::new(to, PORT, 0, 0);
    (known && mac[0] & 1 == 0).then_some(Asked { mac, from, to, payload })
}

/// The Ethernet frame of a datagram.
fn frame(from: ([u8; 6], SocketAddrV6), to: ([u8; 6], SocketAddrV6), payload: &[u8]) -> io::Result<Vec<u8>> {
    let packet = packet6(from.1, to.1, payload)
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "longer than a UDP datagram"))?;
    Ok([&to.0[..], &from.0, &short(libc::ETH_P_IPV6).to_be_bytes(), &packet].concat())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::frame::sum;

    const MACHINE: [u8; 6] = [0x52, 0x54, 0, 0x77, 1, 0];
    const US: [u8; 6] = [0x52, 0x54, 0, 0, 0, 1];

    fn heard() -> Vec<u8> {
        let from = SocketAddrV6::new(link_local(MACHINE), 546, 0, 0);
        frame((MACHINE, from), (ethernet(GROUPS[0]), SocketAddrV6::new(GROUPS[0], PORT, 0, 0)), b"odd").unwrap()
    }

    #[test]
    fn a_question_is_read_padded_or_not_and_what_is_cut_or_for_others_is_none() {
        let frame = heard();
        let from = SocketAddrV6::new("fe80::5054:ff:fe77:100".parse().unwrap(), 546, 0, 4);
        let found = Asked { mac: MACHINE, from, to: SocketAddrV6::new(GROUPS[0], PORT, 0, 0), payload: b"odd" };
        assert_eq!(asked(&frame, 4), Some(found));
        assert_eq!(asked(&[&frame[..], &[0; 9]].concat(), 4), Some(found));
        for len in 0..frame.len() {
            assert_eq!(asked(&frame[..len], 4), None, "{len} bytes");
        }
        let of_udp = ETHERNET_HEADER + IPV6_HEADER;
        for at in [12, 13, 14, ETHERNET_HEADER + 6, ETHERNET_HEADER + 24, ETHERNET_HEADER + 39, of_udp + 2, of_udp + 3]
        {
            let mut other = frame.clone();
            other[at] ^= 0x10;
            assert_eq!(asked(&other, 4), None, "byte {at}");
        }
    }

    #[test]
    fn the_checksum_of_an_answer_is_right() {
        for payload in [&b""[..], b"\x02", b"even", b"odd"] {
            let to = SocketAddrV6::new(link_local(MACHINE), 546, 0, 4);
            let frame = frame((US, SocketAddrV6::new(link_local(US), PORT, 0, 0)), (MACHINE, to), payload).unwrap();
            assert_eq!((&frame[..6], &frame[6..12]), (&MACHINE[..], &US[..]));
            let (addresses, datagram) = frame[ETHERNET_HEADER + 8..].split_at(32);
            let pseudo = [0, 0, 0, u8::try_from(datagram.len()).unwrap(), 0, 0, 0, UDP];
            assert_eq!(!sum(sum(sum(0, addresses), &pseudo), datagram), 0, "{payload:?}");
        }
    }
}
