//! Router solicitations of IPv6 (RFC 4861 §4.1) that arrive on one interface, and the shortest advertisement that answers one.
//!
//! Both pass through a packet socket (`packet(7)`), so that nothing depends on whether this host uses IPv6 itself. The
//! advertisement (RFC 4861 §4.2) has no option, no prefix and a router lifetime of zero: "there is no router here, and no
//! other server to ask". It changes no address and no route of the machine that gets it.
//!
//! Not here: who is answered (`net::advert`).

use std::io;
use std::net::Ipv6Addr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use rustix::net::{RecvFlags, SendFlags, recv, send};

use super::datagram::{short, socklen};
use super::frame::sum;

/// Destination, source, type (IEEE 802.3).
pub(super) const ETHERNET_HEADER: usize = 14;
/// Bytes of an IPv6 header (RFC 8200 §3).
pub(super) const IPV6_HEADER: usize = 40;
/// Where ICMPv6 begins; a solicitation has no extension header before it.
const ICMP: usize = ETHERNET_HEADER + IPV6_HEADER;
/// IANA's number of ICMPv6 in an IPv6 header.
const ICMPV6: u8 = 58;
/// ICMPv6 types (RFC 4861 §4.1, §4.2).
const SOLICITATION: u8 = 133;
const ADVERTISEMENT: u8 = 134;
/// A packet of neighbour discovery that passed a router is none (RFC 4861 §6.1.1).
const HOP_LIMIT: u8 = 255;
/// The fixed part of a solicitation (RFC 4861 §4.1).
const SHORTEST: usize = 8;
/// An advertisement without options (RFC 4861 §4.2).
const ANSWER: usize = 16;
/// Longest frame that is looked at: a solicitation has one or two options of eight bytes.
const LONGEST: usize = 512;
/// Where solicitations are sent to: ff02::2, all routers, as Ethernet carries it (RFC 2464 §7).
const ALL_ROUTERS: [u8; 6] = [0x33, 0x33, 0, 0, 0, 2];

/// A machine that looks for a router.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Solicitation {
    /// Its hardware address.
    pub mac: [u8; 6],
    /// Its link-local address.
    pub address: Ipv6Addr,
}

/// A packet socket that hears solicitations on one interface.
#[derive(Debug)]
pub struct SolicitationSocket {
    fd: OwnedFd,
    mac: [u8; 6],
}

impl SolicitationSocket {
    /// Listens on the interface with this index and this hardware address. It does not block.
    ///
    /// # Errors
    /// `PermissionDenied` without `CAP_NET_RAW`; the interface may be gone.
    pub fn open(interface: u32, mac: [u8; 6]) -> io::Result<Self> {
        Ok(Self { fd: listen(interface, &filter(), &[ALL_ROUTERS])?, mac })
    }

    /// Takes one frame off the socket; `None` if it is no solicitation that can be answered.
    ///
    /// # Errors
    /// What `recv(2)` says, `WouldBlock` among it.
    pub fn receive(&self) -> io::Result<Option<Solicitation>> {
        let mut frame = [0; LONGEST];
        let (len, _) = recv(&self.fd, &mut frame, RecvFlags::empty())?;
        Ok(solicitation(&frame[..len]))
    }

    /// Says to this machine alone that there is no router.
    ///
    /// # Errors
    /// What `send(2)` says, `WouldBlock` among it.
    pub fn advertise(&self, to: &Solicitation) -> io::Result<()> {
        send(&self.fd, &advertisement(self.mac, to), SendFlags::NOSIGNAL)?;
        Ok(())
    }
}

impl AsFd for SolicitationSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// A packet socket that gets the IPv6 frames of an interface that pass this filter, those to these groups among them. It does
/// not block.
pub(super) fn listen(interface: u32, filter: &[socket2::SockFilter], groups: &[[u8; 6]]) -> io::Result<OwnedFd> {
    // Protocol 0: nothing is queued until the bind below. SOCK_RAW: the Ethernet header tells who it was.
    // SAFETY: no pointers; the result is checked before it becomes an owned descriptor, which nobody else has.
    let fd = unsafe {
        let fd = libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK, 0);
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        OwnedFd::from_raw_fd(fd)
    };
    socket2::SockRef::from(&fd).attach_filter(filter)?;
    for group in groups {
        let mut address = [0; 8];
        address[..6].copy_from_slice(group);
        let member = libc::packet_mreq {
            mr_ifindex: interface.cast_signed(),
            mr_type: short(libc::PACKET_MR_MULTICAST),
            mr_alen: 6,
            mr_address: address,
        };
        // SAFETY: `member` outlives the call and is passed with its true length; the kernel only reads it.
        let done = unsafe {
            libc::setsockopt(
                fd.as_raw_fd(),
                libc::SOL_PACKET,
                libc::PACKET_ADD_MEMBERSHIP,
                (&raw const member).cast(),
                socklen(size_of::<libc::packet_mreq>()),
            )
        };
        if done != 0 {
            return Err(io::Error::last_os_error());
        }
    }
    // SAFETY: sockaddr_ll is plain data, for which zeros are a valid value.
    let mut name: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    name.sll_family = short(libc::AF_PACKET);
    name.sll_protocol = short(libc::ETH_P_IPV6).to_be();
    name.sll_ifindex = interface.cast_signed();
    // SAFETY: `name` outlives the call and is passed with its true length; the kernel only reads it.
    let done = unsafe { libc::bind(fd.as_raw_fd(), (&raw const name).cast(), socklen(size_of::<libc::sockaddr_ll>())) };
    if done == 0 { Ok(fd) } else { Err(io::Error::last_os_error()) }
}

/// A classic BPF program that passes router solicitations: IPv6, next header ICMPv6, type 133.
fn filter() -> [socket2::SockFilter; 8] {
    const LOAD_BYTE: u32 = libc::BPF_LD | libc::BPF_B | libc::BPF_ABS;
    const LOAD_HALF: u32 = libc::BPF_LD | libc::BPF_H | libc::BPF_ABS;
    const EQUAL: u32 = libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K;
    const RETURN: u32 = libc::BPF_RET | libc::BPF_K;
    let step = |code: u32, yes, no, k: usize| {
        let k = u32::try_from(k).expect("offsets and codes of a frame's header");
        socket2::SockFilter::new(u16::try_from(code).expect("BPF codes have 16 bits"), yes, no, k)
    };
    let ethertype = usize::from(short(libc::ETH_P_IPV6));
    [
        step(LOAD_HALF, 0, 0, ETHERNET_HEADER - 2),
        step(EQUAL, 0, 5, ethertype),
        step(LOAD_BYTE, 0, 0, ETHERNET_HEADER + 6),
        step(EQUAL, 0, 3, usize::from(ICMPV6)),
        step(LOAD_BYTE, 0, 0, ICMP),
        step(EQUAL, 0, 1, usize::from(SOLICITATION)),
        step(RETURN, 0, 0, LONGEST),
        step(RETURN, 0, 0, 0),
    ]
}

/// The solicitation in this Ethernet frame, if it is a valid one (RFC 4861 §6.1.1) of a machine with a link-local address.
/// Without one, the answer would have to go to everybody.
fn solicitation(frame: &[u8]) -> Option<Solicitation> {
    let (ethernet, packet) = frame.split_first_chunk::<ETHERNET_HEADER>()?;
    let (header, rest) = packet.split_first_chunk::<IPV6_HEADER>()?;
    // Ethernet pads short packets; what counts is what IP says.
    let message = rest.get(..usize::from(u16::from_be_bytes([header[4], header[5]])))?;
    let known = ethernet[12..] == short(libc::ETH_P_IPV6).to_be_bytes()
        && header[0] >> 4 == 6
        && header[6] == ICMPV6
        && header[7] == HOP_LIMIT
        && message.len() >= SHORTEST
        && message[..2] == [SOLICITATION, 0];
    let mac: [u8; 6] = ethernet[6..12].try_into().ok()?;
    let address = Ipv6Addr::from(<[u8; 16]>::try_from(&header[8..24]).ok()?);
    let sound = known && checksum(header, message) == 0 && address.is_unicast_link_local() && mac[0] & 1 == 0;
    sound.then_some(Solicitation { mac, address })
}

/// The Ethernet frame of an advertisement from the interface with this hardware address.
fn advertisement(from: [u8; 6], to: &Solicitation) -> Vec<u8> {
    let mut header = [0; IPV6_HEADER];
    header[0] = 0x60; // version 6
    header[5] = 16; // of payload: ANSWER
    header[6] = ICMPV6;
    header[7] = HOP_LIMIT;
    header[8..24].copy_from_slice(&link_local(from).octets());
    header[24..40].copy_from_slice(&to.address.octets());
    // Hop limit, flags, lifetime and timers are zero: nothing is said of them (RFC 4861 §4.2).
    let mut message = [0; ANSWER];
    message[0] = ADVERTISEMENT;
    let sum = checksum(&header, &message);
    message[2..4].copy_from_slice(&sum.to_be_bytes());
    [&to.mac[..], &from, &short(libc::ETH_P_IPV6).to_be_bytes(), &header, &message].concat()
}

/// The link-local address that a hardware address makes (RFC 4291 §2.5.6, appendix A).
pub(super) fn link_local([a, b, c, d, e, f]: [u8; 6]) -> Ipv6Addr {
    Ipv6Addr::from([0xfe, 0x80, 0, 0, 0, 0, 0, 0, a ^ 2, b, c, 0xff, 0xfe, d, e, f])
}

/// What the checksum of a message without one must be, and zero for a message with the right one (RFC 4443 §2.3).
fn checksum(header: &[u8; IPV6_HEADER], message: &[u8]) -> u16 {
    let mut pseudo = [0; 8];
    pseudo[2..4].copy_from_slice(&header[4..6]);
    pseudo[7] = ICMPV6;
    !sum(sum(sum(0, &header[8..40]), &pseudo), message)
}

#[cfg(test)]
mod tests {
    use super::*;

    const US: [u8; 6] = [0x52, 0x54, 0, 0, 0, 1];

    /// What iPXE sent, as `tcpdump` shows it: `fe80::5054:ff:fe77:100 > ff02::2: ICMP6, router solicitation, length 16`.
    fn heard() -> Vec<u8> {
        let mac = [0x52, 0x54, 0, 0x77, 1, 0];
        let mut header = [0; IPV6_HEADER];
        header[0] = 0x60;
        header[5] = 16;
        header[6..8].copy_from_slice(&[ICMPV6, HOP_LIMIT]);
        header[8..24].copy_from_slice(&link_local(mac).octets());
        header[24..40].copy_from_slice(&"ff02::2".parse::<Ipv6Addr>().unwrap().octets());
        let mut message = [0; 16];
        message[0] = SOLICITATION;
        message[8..10].copy_from_slice(&[1, 1]);
        message[10..16].copy_from_slice(&mac);
        let sum = checksum(&header, &message);
        message[2..4].copy_from_slice(&sum.to_be_bytes());
        [&ALL_ROUTERS[..], &mac, &[0x86, 0xdd], &header, &message].concat()
    }

    #[test]
    fn a_solicitation_is_read_padded_or_not_and_what_is_cut_or_wrong_is_none() {
        let frame = heard();
        let found =
            Solicitation { mac: [0x52, 0x54, 0, 0x77, 1, 0], address: "fe80::5054:ff:fe77:100".parse().unwrap() };
        assert_eq!(solicitation(&frame), Some(found));
        assert_eq!(solicitation(&[&frame[..], &[0; 6]].concat()), Some(found));
        for len in 0..frame.len() {
            assert_eq!(solicitation(&frame[..len]), None, "{len} bytes");
        }
        // Whatever bit is wrong of those that the checksum covers or that say what it is.
        for at in (12..15).chain(18..frame.len()) {
            let mut bad = frame.clone();
            bad[at] ^= 0x10;
            assert_eq!(solicitation(&bad), None, "byte {at}");
        }
    }

    #[test]
    fn a_machine_without_an_address_yet_is_not_answered() {
        let mut frame = heard();
        frame[22..38].fill(0);
        let (_, packet) = frame.split_at(ETHERNET_HEADER);
        let header: [u8; IPV6_HEADER] = packet[..IPV6_HEADER].try_into().unwrap();
        frame[ICMP + 2..ICMP + 4].fill(0);
        let sum = checksum(&header, &frame[ICMP..]);
        frame[ICMP + 2..ICMP + 4].copy_from_slice(&sum.to_be_bytes());
        assert_eq!(solicitation(&frame), None);
    }

    #[test]
    fn the_answer_has_16_bytes_goes_to_one_machine_and_names_no_router() {
        let to = solicitation(&heard()).unwrap();
        let frame = advertisement(US, &to);
        assert_eq!(frame.len(), ICMP + ANSWER);
        assert_eq!((&frame[..6], &frame[6..12]), (&to.mac[..], &US[..]));
        let header: &[u8; IPV6_HEADER] = frame[ETHERNET_HEADER..ICMP].try_into().unwrap();
        assert_eq!(header[8..24], "fe80::5054:ff:fe00:1".parse::<Ipv6Addr>().unwrap().octets());
        assert_eq!(header[24..40], to.address.octets());
        assert_eq!(checksum(header, &frame[ICMP..]), 0);
        assert_eq!((frame[ICMP], &frame[ICMP + 4..]), (ADVERTISEMENT, &[0; 12][..]));
    }
}
