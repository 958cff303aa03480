//! The addresses that the targets are reached at: one portal group (RFC 7143 §4.4.1), as each session is one connection.
//!
//! The first is the one that machines are told. The interface's other addresses are there for initiators that come by more
//! than one path.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::task::{Context, Poll};

use ipnetwork::Ipv4Network;
use tokio::net::{TcpListener, TcpStream};

use crate::iscsi::PORTAL_GROUP;

/// The listening sockets, at least one.
#[derive(Debug)]
pub(super) struct Listeners {
    sockets: Vec<TcpListener>,
    /// Which one is asked first for the next connection: no portal keeps another one waiting.
    turn: usize,
}

impl Listeners {
    pub(super) fn new(first: TcpListener) -> Self {
        Self { sockets: vec![first], turn: 0 }
    }

    pub(super) fn push(&mut self, socket: TcpListener) {
        self.sockets.push(socket);
    }

    pub(super) fn first(&self) -> &TcpListener {
        &self.sockets[0]
    }

    /// The next connection, whichever portal it comes to. Nothing is lost where this is dropped.
    pub(super) async fn accept(&mut self) -> io::Result<(TcpStream, SocketAddr)> {
        std::future::poll_fn(|context| self.poll_accept(context)).await
    }

    fn poll_accept(&mut self, context: &mut Context<'_>) -> Poll<io::Result<(TcpStream, SocketAddr)>> {
        for _ in 0..self.sockets.len() {
            self.turn = (self.turn + 1) % self.sockets.len();
            if let Poll::Ready(accepted) = self.sockets[self.turn].poll_accept(context) {
                return Poll::Ready(accepted);
            }
        }
        Poll::Pending
    }
}

/// The portals, as SendTargets tells them.
#[derive(Debug, Default)]
pub(super) struct Portals(Vec<(SocketAddr, Ipv4Network)>);

impl Portals {
    pub(super) fn push(&mut self, address: SocketAddr, network: Ipv4Network) {
        self.0.push((address, network));
    }

    /// What an initiator is told (`ip:port,group`, RFC 7143 §13.8): where it reached us, and then the portals in whose
    /// network it is. Whether a router would bring it to the others is not known here.
    pub(super) fn told(&self, stream: &TcpStream) -> io::Result<Vec<String>> {
        Ok(self.reachable(stream.local_addr()?, stream.peer_addr()?.ip()))
    }

    fn reachable(&self, reached: SocketAddr, from: IpAddr) -> Vec<String> {
        let near = |network: &Ipv4Network| matches!(from, IpAddr::V4(from) if network.contains(from));
        let others = self.0.iter().filter(|(address, network)| *address != reached && near(network));
        let all = std::iter::once(reached).chain(others.map(|(address, _)| *address));
        all.map(|address| format!("{address},{PORTAL_GROUP}")).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_initiator_is_told_where_it_came_and_the_other_portals_of_its_network() {
        let portals =
            [("10.0.0.1:3260", "10.0.0.1/24"), ("10.0.0.2:3260", "10.0.0.2/24"), ("10.0.1.1:3260", "10.0.1.1/24")];
        let portals = Portals(portals.map(|(at, network)| (at.parse().unwrap(), network.parse().unwrap())).to_vec());
        let told = |reached: &str, from: &str| portals.reachable(reached.parse().unwrap(), from.parse().unwrap());
        assert_eq!(told("10.0.0.1:3260", "10.0.0.77"), ["10.0.0.1:3260,1", "10.0.0.2:3260,1"]);
        assert_eq!(told("10.0.0.2:3260", "10.0.0.77"), ["10.0.0.2:3260,1", "10.0.0.1:3260,1"]);
        assert_eq!(told("10.0.0.1:3260", "10.0.1.77"), ["10.0.0.1:3260,1", "10.0.1.1:3260,1"]);
        assert_eq!(told("10.0.1.1:3260", "192.168.0.9"), ["10.0.1.1:3260,1"], "from behind a router");
        assert_eq!(told("10.0.1.1:3260", "::1"), ["10.0.1.1:3260,1"]);
    }
}
