//! Questions by ARP over a packet socket (RFC 826, RFC 5227): whether somebody uses an address.
//!
//! Only answers are heard. Not here: waiting for them, and what they mean.

use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use super::datagram::{short, socklen};

/// Bytes of an ARP packet for Ethernet and IPv4.
const ARP: usize = 28;
/// How each begins: Ethernet, IPv4, and the lengths of their addresses.
const HEAD: [u8; 6] = [0, 1, 8, 0, 6, 4];
const REQUEST: [u8; 2] = [0, 1];
const REPLY: [u8; 2] = [0, 2];

/// A packet socket for ARP on one interface.
#[derive(Debug)]
pub struct ArpSocket {
    fd: OwnedFd,
    interface: i32,
    own: [u8; 6],
}

impl ArpSocket {
    /// One for the interface with this index and hardware address. It does not block.
    ///
    /// # Errors
    /// `PermissionDenied` without `CAP_NET_RAW`; else what the kernel says.
    pub fn open(interface: u32, own: [u8; 6]) -> io::Result<Self> {
        // Protocol 0: nothing is queued before the filter is there. SOCK_DGRAM: the kernel writes the Ethernet header.
        // SAFETY: no pointers; the result is checked before it becomes an owned descriptor, which nobody else has.
        let fd = unsafe {
            let fd = libc::socket(libc::AF_PACKET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK, 0);
            if fd < 0 {
                return Err(io::Error::last_os_error());
            }
            OwnedFd::from_raw_fd(fd)
        };
        let socket = Self { fd, interface: interface.cast_signed(), own };
        socket2::SockRef::from(&socket.fd).attach_filter(&answers())?;
        let name = socket.address(None);
        // SAFETY: `name` outlives the call and is passed with its true length; the kernel only reads it.
        let result = unsafe {
            libc::bind(socket.fd.as_raw_fd(), (&raw const name).cast(), socklen(size_of::<libc::sockaddr_ll>()))
        };
        if result == 0 { Ok(socket) } else { Err(io::Error::last_os_error()) }
    }

    /// Asks everybody on the wire who has this address, as one who has none: so that nobody's table changes (RFC 5227
    /// §2.1.1).
    ///
    /// # Errors
    /// What `sendto(2)` says, `WouldBlock` among it.
    pub fn ask(&self, address: Ipv4Addr) -> io::Result<()> {
        let packet = [&HEAD[..], &REQUEST, &self.own, &[0; 4], &[0; 6], &address.octets()].concat();
        let name = self.address(Some([0xff; 6]));
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

    /// The next answer: an address, and the hardware that uses it. `None` for what is no answer after all.
    ///
    /// # Errors
    /// What `recv(2)` says, `WouldBlock` among it.
    pub fn receive(&self) -> io::Result<Option<(Ipv4Addr, [u8; 6])>> {
        let mut buffer = [0; 64];
        let (len, _) = rustix::net::recv(&self.fd, &mut buffer, rustix::net::RecvFlags::empty())?;
        Ok(answer(&buffer[..len.min(buffer.len())]))
    }

    /// This interface, and whom on it, as `packet(7)` names them.
    fn address(&self, to: Option<[u8; 6]>) -> libc::sockaddr_ll {
        // SAFETY: sockaddr_ll is plain data, for which zeros are a valid value.
        let mut name: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
        name.sll_family = short(libc::AF_PACKET);
        name.sll_protocol = short(libc::ETH_P_ARP).to_be();
        name.sll_ifindex = self.interface;
        if let Some(mac) = to {
            name.sll_halen = 6;
            name.sll_addr[..6].copy_from_slice(&mac);
        }
        name
    }
}

impl AsFd for ArpSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// A classic BPF program that passes answers.
fn answers() -> [socket2::SockFilter; 4] {
    const LOAD_HALF: u32 = libc::BPF_LD | libc::BPF_H | libc::BPF_ABS;
    const EQUAL: u32 = libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K;
    const RETURN: u32 = libc::BPF_RET | libc::BPF_K;
    let step = |code: u32, yes, no, k| {
        socket2::SockFilter::new(u16::try_from(code).expect("BPF codes have 16 bits"), yes, no, k)
    };
    let operation = u32::try_from(HEAD.len()).expect("six");
    [
        step(LOAD_HALF, 0, 0, operation),
        step(EQUAL, 0, 1, u32::from(u16::from_be_bytes(REPLY))),
        step(RETURN, 0, 0, u32::MAX),
        step(RETURN, 0, 0, 0),
    ]
}

/// Who says that it has which address.
fn answer(packet: &[u8]) -> Option<(Ipv4Addr, [u8; 6])> {
    let packet: &[u8; ARP] = packet.first_chunk()?;
    if packet[..6] != HEAD || packet[6..8] != REPLY {
        return None;
    }
    let (mac, rest) = packet[8..].split_first_chunk::<6>()?;
    let address: &[u8; 4] = rest.first_chunk()?;
    Some((Ipv4Addr::from(*address), *mac))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_whole_answer_is_one() {
        let mac = [0x52, 0x54, 0, 0xaa, 0, 1];
        let whole = [&HEAD[..], &REPLY, &mac, &[10, 9, 0, 25], &[2; 6], &[10, 9, 0, 1]].concat();
        assert_eq!(answer(&whole), Some(([10, 9, 0, 25].into(), mac)));
        assert_eq!(answer(&[&whole[..], &[0; 18]].concat()), Some(([10, 9, 0, 25].into(), mac)), "padded by Ethernet");
        for len in 0..whole.len() {
            assert_eq!(answer(&whole[..len]), None, "{len} bytes");
        }
        for at in 0..8 {
            let mut bad = whole.clone();
            bad[at] ^= 4;
            assert_eq!(answer(&bad), None, "byte {at}");
        }
    }
}
