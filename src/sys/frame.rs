//! One UDP datagram to a machine that has no address yet, so that ARP cannot find it: the IPv4 and UDP headers are made
//! here (RFC 791, RFC 768) and the frame goes out of a packet socket (`packet(7)`) to a hardware address that we say.

use std::io;
use std::mem;
use std::net::SocketAddrV4;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use super::datagram::{short, socklen};

/// Bytes of an IPv4 header without options.
const IP_HEADER: usize = 20;
/// Bytes of a UDP header.
const UDP_HEADER: usize = 8;
/// IANA's number of UDP in an IPv4 header.
const UDP: u8 = 17;
/// Hops that a reply may take; it is for the wire that it leaves on, and 64 is the usual value (RFC 1700).
const TIME_TO_LIVE: u8 = 64;

/// A packet socket that only sends, out of one interface.
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
        // Protocol 0: nothing is ever queued for receiving. SOCK_DGRAM: the kernel writes the Ethernet header.
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

    /// Sends one UDP datagram to the machine with this hardware address.
    ///
    /// # Errors
    /// `InvalidInput` if the payload is longer than a datagram; else what `sendto(2)` says, `WouldBlock` among it.
    pub fn send(&self, hardware: [u8; 6], from: SocketAddrV4, to: SocketAddrV4, payload: &[u8]) -> io::Result<()> {
        let packet = packet(from, to, payload)
            .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "longer than a UDP datagram"))?;
        // SAFETY: sockaddr_ll is plain data, for which zeros are a valid value.
        let mut name: libc::sockaddr_ll = unsafe { mem::zeroed() };
        name.sll_family = short(libc::AF_PACKET);
        name.sll_protocol = short(libc::ETH_P_IP).to_be();
        name.sll_ifindex = self.interface;
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

/// An IPv4 packet with one UDP datagram; `None` if the payload is too long for one.
fn packet(from: SocketAddrV4, to: SocketAddrV4, payload: &[u8]) -> Option<Vec<u8>> {
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
fn sum(start: u16, bytes: &[u8]) -> u16 {
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
    fn a_payload_longer_than_a_datagram_is_refused() {
        let (from, to) = ends();
        assert!(packet(from, to, &vec![0; 65_507]).is_some());
        assert!(packet(from, to, &vec![0; 65_508]).is_none());
    }
}
