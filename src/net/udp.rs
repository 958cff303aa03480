//! A UDP socket that knows where each datagram arrived and sends from where it is told to: `sys::datagram` under tokio.
//!
//! Not here: what is said over it.

use std::io;
use std::net::{SocketAddr, SocketAddrV4};
use std::os::fd::AsFd;

use socket2::{Domain, Protocol, Socket, Type};
use tokio::io::Interest;
use tokio::net::UdpSocket;

use crate::sys::{Local, Received, Taken, Transport, datagram};

/// An IPv4 UDP socket.
#[derive(Debug)]
pub struct Udp {
    socket: UdpSocket,
}

/// Why a socket could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// Somebody else has the port.
    #[error("{taken}")]
    Taken {
        /// The port, and who has it.
        taken: Taken,
    },
    /// Ports below 1024 and interfaces need privileges.
    #[error("UDP port {}{} needs privileges; run as root, or with CAP_NET_BIND_SERVICE and CAP_NET_RAW", .address.port(), on(.device))]
    Permission {
        /// The address and port.
        address: SocketAddr,
        /// The interface.
        device: Option<String>,
    },
    /// Anything else.
    #[error("UDP {address}{}: {source}", on(.device))]
    Other {
        /// The address and port.
        address: SocketAddr,
        /// The interface.
        device: Option<String>,
        /// What the kernel said.
        source: io::Error,
    },
}

impl BindError {
    /// What it means that this address could not be bound.
    #[must_use]
    pub fn of(source: io::Error, address: SocketAddr, device: Option<&str>) -> Self {
        let device = device.map(str::to_owned);
        match source.kind() {
            io::ErrorKind::AddrInUse => Self::Taken { taken: Taken::find(Transport::Udp, address) },
            io::ErrorKind::PermissionDenied => Self::Permission { address, device },
            _ => Self::Other { address, device, source },
        }
    }
}

fn on(device: &Option<String>) -> String {
    device.as_ref().map(|name| format!(" on {name}")).unwrap_or_default()
}

impl Udp {
    /// Binds this address and port (0: any free one), on one interface only if `device` names it.
    ///
    /// Two sockets on the same port of *different* devices do not conflict, so each interface can have its own server. The
    /// port is not shared by `SO_REUSEADDR`: with it, a second server on the same interface would start and silently take
    /// the datagrams of the first.
    ///
    /// # Errors
    /// A [`BindError`] that says what to do.
    pub fn bind(address: SocketAddrV4, device: Option<&str>) -> Result<Self, BindError> {
        Self::open(address, device).map_err(|source| BindError::of(source, address.into(), device))
    }

    fn open(address: SocketAddrV4, device: Option<&str>) -> io::Result<Self> {
        let socket = Socket::new(Domain::IPV4, Type::DGRAM, Some(Protocol::UDP))?;
        socket.set_nonblocking(true)?;
        socket.set_broadcast(true)?;
        datagram::tell_arrival(socket.as_fd())?;
        if let Some(name) = device {
            // Before the bind: it is what tells this socket from those of other interfaces.
            socket.bind_device(Some(name.as_bytes()))?;
        }
        socket.bind(&SocketAddr::V4(address).into())?;
        Ok(Self { socket: UdpSocket::from_std(socket.into())? })
    }

    /// Lets so many bytes of datagrams wait in the kernel, as far as this process may say so. A server that is kept from its
    /// socket for a moment loses what finds no room there, and clients wait seconds before they ask again.
    pub fn make_room(&self, bytes: usize) {
        use rustix::net::sockopt;
        // Beyond the system's limit with CAP_NET_ADMIN, else up to it.
        if sockopt::set_socket_recv_buffer_size_force(&self.socket, bytes).is_err() {
            let _ = sockopt::set_socket_recv_buffer_size(&self.socket, bytes);
        }
    }

    /// Where it is bound, with the port that the kernel chose.
    ///
    /// # Errors
    /// What `getsockname(2)` says.
    pub fn local_addr(&self) -> io::Result<SocketAddrV4> {
        match self.socket.local_addr()? {
            SocketAddr::V4(address) => Ok(address),
            SocketAddr::V6(_) => unreachable!("the socket was made for IPv4"),
        }
    }

    /// The next datagram, and where it arrived. Cancelling the future loses nothing.
    ///
    /// # Errors
    /// What `recvmsg(2)` says. An ICMP error of an earlier datagram comes up here and concerns nobody else.
    pub async fn receive(&self, buffer: &mut [u8]) -> io::Result<Received> {
        self.socket.async_io(Interest::READABLE, || datagram::receive(self.socket.as_fd(), buffer)).await
    }

    /// The next datagram that is there already; `None`: none is.
    pub fn try_receive(&self, buffer: &mut [u8]) -> Option<io::Result<Received>> {
        let received = self.socket.try_io(Interest::READABLE, || datagram::receive(self.socket.as_fd(), buffer));
        match received {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => None,
            received => Some(received),
        }
    }

    /// Sends one datagram from this address, out of this interface.
    ///
    /// # Errors
    /// What `sendmsg(2)` says.
    pub async fn send(&self, bytes: &[u8], to: SocketAddrV4, from: Local) -> io::Result<()> {
        self.socket.async_io(Interest::WRITABLE, || datagram::send(self.socket.as_fd(), bytes, to, from)).await
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    #[tokio::test]
    async fn an_answer_comes_from_the_address_that_was_asked() {
        let server = Udp::bind("0.0.0.0:0".parse().unwrap(), None).unwrap();
        let client = Udp::bind("127.0.0.1:0".parse().unwrap(), None).unwrap();
        let asked = SocketAddrV4::new(Ipv4Addr::new(127, 0, 0, 88), server.local_addr().unwrap().port());
        let us = Local { interface: 0, address: Ipv4Addr::LOCALHOST };
        client.send(b"question", asked, us).await.unwrap();

        let mut buffer = [0; 1500];
        let received = server.receive(&mut buffer).await.unwrap();
        assert_eq!(&buffer[..received.len], b"question");
        server.send(b"answer", received.from, received.local).await.unwrap();
        let received = client.receive(&mut buffer).await.unwrap();
        assert_eq!((&buffer[..received.len], received.from), (&b"answer"[..], asked));
    }

    #[tokio::test]
    async fn a_port_that_is_taken_is_said_so() {
        let first = Udp::bind("127.0.0.1:0".parse().unwrap(), None).unwrap();
        let error = Udp::bind(first.local_addr().unwrap(), None).unwrap_err();
        assert!(matches!(error, BindError::Taken { .. }), "{error}");
        let words = format!("is taken by {}", std::fs::read_to_string("/proc/self/comm").unwrap().trim_end());
        assert!(error.to_string().contains(&words), "{error}");
    }
}
