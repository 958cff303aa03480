//! UDP over IPv4 with `IP_PKTINFO` (`ip(7)`): a datagram tells on which interface and for which local address it came,
//! and is sent from the address and interface that the caller says.
//!
//! A server bound to `0.0.0.0` cannot do without: the routing table's choice of a source address is not always the address
//! that the client asked, and firmware drops answers from any other.

use std::io;
use std::mem::{self, MaybeUninit};
use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::{AsRawFd, BorrowedFd};

/// What came with a datagram.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Received {
    /// How many bytes of the buffer it fills.
    pub len: usize,
    /// It was longer than the buffer; the rest is lost.
    pub truncated: bool,
    /// Who sent it.
    pub from: SocketAddrV4,
    /// The destination in its IP header: our address, or a broadcast address.
    pub to: Ipv4Addr,
    /// Where it arrived.
    pub local: Local,
}

/// Our end of a datagram.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Local {
    /// The interface's index; 0 leaves the choice to the routing table.
    pub interface: u32,
    /// Our address on it: the destination of a unicast datagram, the interface's own address for a broadcast.
    pub address: Ipv4Addr,
}

/// Control messages of one datagram: `in_pktinfo` and room to spare, aligned as the kernel writes it.
#[repr(C)]
union Control {
    _align: libc::cmsghdr,
    bytes: [u8; 64],
}

/// Asks the kernel to say, from now on, where each datagram arrived.
///
/// # Errors
/// The descriptor is no IPv4 socket.
pub fn tell_arrival(socket: BorrowedFd<'_>) -> io::Result<()> {
    let on: libc::c_int = 1;
    // SAFETY: the option's value is one c_int that outlives the call, and its length is passed.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_IP,
            libc::IP_PKTINFO,
            (&raw const on).cast(),
            socklen(size_of_val(&on)),
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Takes one datagram off a socket prepared by [`tell_arrival`].
///
/// # Errors
/// What `recvmsg(2)` says, `WouldBlock` among it; `InvalidData` if the kernel did not say where the datagram arrived.
pub fn receive(socket: BorrowedFd<'_>, buffer: &mut [u8]) -> io::Result<Received> {
    let mut from = MaybeUninit::<libc::sockaddr_in>::zeroed();
    let mut part = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
    let mut control = Control { bytes: [0; 64] };
    // SAFETY: msghdr is plain data of integers and pointers, for which zeros are a valid value.
    let mut message: libc::msghdr = unsafe { mem::zeroed() };
    message.msg_name = from.as_mut_ptr().cast();
    message.msg_namelen = socklen(size_of::<libc::sockaddr_in>());
    message.msg_iov = &raw mut part;
    message.msg_iovlen = 1;
    message.msg_control = (&raw mut control).cast();
    message.msg_controllen = size_of::<Control>();

    // SAFETY: every pointer in `message` names memory that lives to the end of this function, with its true length.
    let len = unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut message, 0) };
    let len = usize::try_from(len).map_err(|_| io::Error::last_os_error())?;
    // SAFETY: zeroed, and a sockaddr_in of zeros is a valid value; the kernel may have written any part of it.
    let from = unsafe { from.assume_init() };
    let info = pktinfo(&message).ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "no IP_PKTINFO"))?;
    Ok(Received {
        len,
        truncated: message.msg_flags & libc::MSG_TRUNC != 0,
        from: SocketAddrV4::new(address(from.sin_addr), u16::from_be(from.sin_port)),
        to: address(info.ipi_addr),
        local: Local { interface: info.ipi_ifindex.unsigned_abs(), address: address(info.ipi_spec_dst) },
    })
}

/// The `in_pktinfo` among the control messages that the kernel wrote.
fn pktinfo(message: &libc::msghdr) -> Option<libc::in_pktinfo> {
    // SAFETY: the kernel filled msg_control and set msg_controllen to what it wrote; the CMSG functions stay within it. A
    // message of level IPPROTO_IP and type IP_PKTINFO holds one in_pktinfo, read without assuming its alignment.
    unsafe {
        let mut header = libc::CMSG_FIRSTHDR(message);
        while !header.is_null() {
            if (*header).cmsg_level == libc::IPPROTO_IP && (*header).cmsg_type == libc::IP_PKTINFO {
                return Some(libc::CMSG_DATA(header).cast::<libc::in_pktinfo>().read_unaligned());
            }
            header = libc::CMSG_NXTHDR(message, header);
        }
    }
    None
}

/// Sends one datagram from this address, out of this interface.
///
/// # Errors
/// What `sendmsg(2)` says, `WouldBlock` among it.
pub fn send(socket: BorrowedFd<'_>, bytes: &[u8], to: SocketAddrV4, from: Local) -> io::Result<()> {
    // SAFETY: sockaddr_in is plain data, for which zeros are a valid value.
    let mut name: libc::sockaddr_in = unsafe { mem::zeroed() };
    name.sin_family = short(libc::AF_INET);
    name.sin_port = to.port().to_be();
    name.sin_addr = in_addr(*to.ip());
    let info = libc::in_pktinfo {
        ipi_ifindex: from.interface.cast_signed(),
        ipi_spec_dst: in_addr(from.address),
        ipi_addr: in_addr(Ipv4Addr::UNSPECIFIED),
    };
    let mut part = libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
    let mut control = Control { bytes: [0; 64] };
    // SAFETY: as in `receive`.
    let mut message: libc::msghdr = unsafe { mem::zeroed() };
    message.msg_name = (&raw mut name).cast();
    message.msg_namelen = socklen(size_of::<libc::sockaddr_in>());
    message.msg_iov = &raw mut part;
    message.msg_iovlen = 1;
    message.msg_control = (&raw mut control).cast();
    let info_len = socklen(size_of::<libc::in_pktinfo>());
    // SAFETY: pure arithmetic on a length; `Control` is larger than the space for one in_pktinfo and aligned for a
    // header, so the first header exists and its data has room for `info`.
    unsafe {
        message.msg_controllen = libc::CMSG_SPACE(info_len) as usize;
        debug_assert!(message.msg_controllen <= size_of::<Control>());
        let header = libc::CMSG_FIRSTHDR(&raw const message);
        (*header).cmsg_level = libc::IPPROTO_IP;
        (*header).cmsg_type = libc::IP_PKTINFO;
        (*header).cmsg_len = libc::CMSG_LEN(info_len) as usize;
        libc::CMSG_DATA(header).cast::<libc::in_pktinfo>().write_unaligned(info);
    }
    // SAFETY: every pointer in `message` names memory that lives to the end of this function, with its true length; the
    // kernel only reads `bytes`.
    let sent = unsafe { libc::sendmsg(socket.as_raw_fd(), &raw const message, libc::MSG_NOSIGNAL) };
    if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn address(raw: libc::in_addr) -> Ipv4Addr {
    Ipv4Addr::from(u32::from_be(raw.s_addr))
}

fn in_addr(address: Ipv4Addr) -> libc::in_addr {
    libc::in_addr { s_addr: u32::from(address).to_be() }
}

/// A constant of the C headers, as wide as the structures have it.
pub(super) fn short(constant: libc::c_int) -> u16 {
    u16::try_from(constant).expect("families and protocols have 16 bits")
}

/// The size of a structure as the kernel wants it.
pub(super) fn socklen(size: usize) -> libc::socklen_t {
    libc::socklen_t::try_from(size).expect("a socket structure is a few bytes long")
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn a_datagram_tells_the_address_it_was_sent_to_and_is_answered_from_it() {
        let server = UdpSocket::bind("0.0.0.0:0").unwrap();
        tell_arrival(server.as_fd()).unwrap();
        let client = UdpSocket::bind("127.0.0.1:0").unwrap();
        // Any address of 127/8 is ours, so the answer's source shows whether pktinfo or the routing table chose it.
        let asked: Ipv4Addr = "127.0.0.77".parse().unwrap();
        client.send_to(b"question", (asked, v4(&server).port())).unwrap();

        let mut buffer = [0; 4];
        let received = receive(server.as_fd(), &mut buffer).unwrap();
        assert_eq!(received.from, v4(&client));
        assert_eq!((received.to, received.local.address), (asked, asked));
        assert!(received.truncated);
        assert_eq!(&buffer[..received.len], b"ques");
        assert_ne!(received.local.interface, 0);

        send(server.as_fd(), b"answer", received.from, received.local).unwrap();
        let mut buffer = [0; 64];
        let (len, from) = client.recv_from(&mut buffer).unwrap();
        assert_eq!(&buffer[..len], b"answer");
        assert_eq!(from, (asked, v4(&server).port()).into());
    }

    fn v4(socket: &UdpSocket) -> SocketAddrV4 {
        match socket.local_addr().unwrap() {
            std::net::SocketAddr::V4(address) => address,
            std::net::SocketAddr::V6(_) => unreachable!("bound to an IPv4 address"),
        }
    }
}
