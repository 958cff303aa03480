//! Which process has a port that we cannot have: `/proc/net/{udp,tcp}` names a socket by its inode, and `/proc/PID/fd` says
//! whose it is (`proc(5)`).
//!
//! A process of another user shows itself to root only, and one in another container not at all: then it has no name.

use std::fmt;
use std::fs;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::path::Path;

/// A transport protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transport {
    /// UDP.
    Udp,
    /// TCP.
    Tcp,
}

/// A port that somebody else has. Reads as a sentence's beginning: `port 69/udp on 10.77.0.1 is taken by dnsmasq (pid 1234)`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Taken {
    /// UDP or TCP.
    pub transport: Transport,
    /// The address that was wanted; 0.0.0.0 or :: for any.
    pub address: SocketAddr,
    /// Who has it, where that can be known.
    pub by: Option<Process>,
}

/// A process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Process {
    /// Its id.
    pub pid: u32,
    /// Its name, as `ps` shows it.
    pub name: String,
}

impl fmt::Display for Taken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let transport = match self.transport {
            Transport::Udp => "udp",
            Transport::Tcp => "tcp",
        };
        write!(f, "port {}/{transport}", self.address.port())?;
        if !self.address.ip().is_unspecified() {
            write!(f, " on {}", self.address.ip())?;
        }
        match &self.by {
            Some(Process { pid, name }) => write!(f, " is taken by {name} (pid {pid})"),
            None => f.write_str(" is taken by a process that cannot be seen from here"),
        }
    }
}

impl Taken {
    /// Looks for who has this port, after a bind has failed.
    #[must_use]
    pub fn find(transport: Transport, address: impl Into<SocketAddr>) -> Self {
        let address = address.into();
        Self { transport, address, by: holder(transport, address) }
    }
}

/// The process that receives what is sent to this address and port.
#[must_use]
pub fn holder(transport: Transport, address: impl Into<SocketAddr>) -> Option<Process> {
    let address = address.into();
    let tables = match transport {
        Transport::Udp => ["/proc/net/udp6", "/proc/net/udp"],
        Transport::Tcp => ["/proc/net/tcp6", "/proc/net/tcp"],
    };
    // A socket of IPv4 alone keeps nobody from a port of IPv6.
    let inodes: Vec<u64> = (tables.iter().take(if address.is_ipv6() { 1 } else { 2 }))
        .filter_map(|table| fs::read_to_string(table).ok())
        .flat_map(|table| sockets(&table, transport, address))
        .collect();
    (!inodes.is_empty()).then(|| owner(&inodes)).flatten()
}

/// The inodes of the sockets in the text of one of the tables that have this port, on this address or on any.
fn sockets(table: &str, transport: Transport, address: SocketAddr) -> Vec<u64> {
    /// `TCP_LISTEN` (`net/tcp_states.h`). Only a listening socket keeps others from a port.
    const LISTEN: &str = "0A";
    let socket = |line: &str| {
        // sl, local, remote, state, queues, timer, retransmits, uid, timeout, inode.
        let fields: Vec<&str> = line.split_ascii_whitespace().collect();
        let (ip, port) = fields.get(1)?.split_once(':')?;
        let same_port = u16::from_str_radix(port, 16).ok()? == address.port();
        let ip = local_address(ip)?;
        let same_address = ip.is_unspecified() || address.ip().is_unspecified() || ip == address.ip();
        let listens = transport == Transport::Udp || *fields.get(3)? == LISTEN;
        (same_port && same_address && listens).then(|| fields.get(9)?.parse().ok())?
    };
    table.lines().skip(1).filter_map(socket).collect()
}

/// An address as the tables write it: words of 32 bits in the order of this host, in hexadecimal. An IPv6 socket of any
/// address takes IPv4's ports too, unless it says otherwise.
fn local_address(text: &str) -> Option<IpAddr> {
    let word = |at: usize| Some(u32::from_str_radix(text.get(at..at + 8)?, 16).ok()?.to_ne_bytes());
    match text.len() {
        8 => Some(word(0)?.into()),
        32 => {
            let words = [word(0)?, word(8)?, word(16)?, word(24)?];
            let octets: [u8; 16] = words.concat().try_into().expect("four words of four bytes");
            Some(Ipv6Addr::from(octets).to_canonical())
        }
        _ => None,
    }
}

/// The first process that has one of these sockets open.
fn owner(inodes: &[u64]) -> Option<Process> {
    let wanted: Vec<String> = inodes.iter().map(|inode| format!("socket:[{inode}]")).collect();
    let has = |folder: &Path| {
        let descriptors = fs::read_dir(folder.join("fd")).into_iter().flatten().flatten();
        descriptors
            .filter_map(|descriptor| fs::read_link(descriptor.path()).ok())
            .any(|link| link.to_str().is_some_and(|link| wanted.iter().any(|socket| socket == link)))
    };
    fs::read_dir("/proc").ok()?.flatten().find_map(|entry| {
        let pid: u32 = entry.file_name().to_str()?.parse().ok()?;
        let folder = entry.path();
        let name = || Some(fs::read_to_string(folder.join("comm")).ok()?.trim_end().to_owned());
        if has(&folder) { Some(Process { pid, name: name()? }) } else { None }
    })
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, SocketAddrV4, TcpListener, TcpStream, UdpSocket};

    use super::*;

    #[test]
    fn whoever_has_a_port_is_named() {
        let us = Some(std::process::id());
        let pid = |transport, address| holder(transport, address).map(|process| process.pid);
        for bound in ["127.0.0.1:0", "0.0.0.0:0", "[::]:0"] {
            let udp = UdpSocket::bind(bound).unwrap();
            let tcp = TcpListener::bind(bound).unwrap();
            let at = |port| SocketAddrV4::new(Ipv4Addr::LOCALHOST, port);
            assert_eq!(pid(Transport::Udp, at(udp.local_addr().unwrap().port())), us, "{bound}");
            assert_eq!(pid(Transport::Tcp, at(tcp.local_addr().unwrap().port())), us, "{bound}");
        }
        let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
        let port = udp.local_addr().unwrap().port();
        assert_eq!(pid(Transport::Udp, SocketAddrV4::new(Ipv4Addr::new(127, 0, 0, 2), port)), None, "another address");
        assert_eq!(
            pid(Transport::Udp, SocketAddrV4::new(Ipv4Addr::LOCALHOST, port)).is_some(),
            holder(Transport::Udp, (Ipv6Addr::LOCALHOST, port)).is_none(),
            "IPv6 has ports of its own"
        );
        let six = UdpSocket::bind("[::1]:0").unwrap().local_addr().unwrap();
        assert_eq!(holder(Transport::Udp, six), None, "it is closed");
        let open = UdpSocket::bind("[::1]:0").unwrap();
        assert_eq!(holder(Transport::Udp, open.local_addr().unwrap()).map(|process| process.pid), us);
        let words = Taken::find(Transport::Udp, SocketAddrV4::new(Ipv4Addr::LOCALHOST, port)).to_string();
        assert!(words.starts_with(&format!("port {port}/udp on 127.0.0.1 is taken by ")), "{words}");
        assert!(words.ends_with(&format!(" (pid {})", std::process::id())), "{words}");
    }

    #[test]
    fn a_connection_keeps_nobody_from_a_port() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let port = client.local_addr().unwrap().port();
        assert_eq!(holder(Transport::Tcp, SocketAddrV4::new(Ipv4Addr::LOCALHOST, port)), None);
    }

    #[test]
    fn rubbish_in_the_tables_names_nobody() {
        let at = SocketAddrV4::new(Ipv4Addr::LOCALHOST, 69);
        for table in ["", "head", "head\n", "head\n0: zz:0045", "head\n0: 0100007F:0045 0 07 0 0 0 0 0 x", "head\n1:"] {
            assert_eq!(sockets(table, Transport::Udp, at.into()), [0; 0], "{table:?}");
        }
    }
}
