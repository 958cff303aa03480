//! DHCP beside another server: DISCOVERs are overheard, and answered with how to boot.
//!
//! Port 67 is never bound. The other server may run on this host and have it, now or later; what the kernel gives to one
//! socket another does not get, so everything here passes through a packet socket. What is answered is `dhcp::proxy`'s.

use std::convert::Infallible;
use std::io;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::AsFd;
use std::sync::Arc;

use tokio::io::Interest;
use tokio::net::UdpSocket;
use tracing::{info, warn};

use super::{AFTER_ERROR, Alarms, DhcpError, LARGEST_PACKET, tell};
use crate::app::App;
use crate::app::recorder::now;
use crate::dhcp::{CLIENT_PORT, Destination, SERVER_PORT, Site, proxy};
use crate::fleet::lease::netmask;
use crate::sys::{Interface, PacketSocket, RawSocket, Taken, Transport};

/// Where everybody on a wire listens.
const EVERYBODY: [u8; 6] = [0xff; 6];
/// An IPv4 header with all its options, and UDP's.
const HEADERS: usize = 68;

/// A proxy that listens on its interface.
#[derive(Debug)]
pub struct Proxy {
    app: Arc<App>,
    site: Site,
    frames: PacketSocket,
    /// The way to relays, which can be anywhere.
    raw: RawSocket,
    interface: Interface,
    /// The same socket once more, in the hands of tokio, that wakes us. Only its readiness is used: tokio's own type for any
    /// descriptor is `unsafe` to make.
    wake: UdpSocket,
}

impl Proxy {
    /// Listens on this interface. `site` says which of its addresses is ours.
    ///
    /// # Errors
    /// A [`DhcpError`]: privileges are missing, or the interface is gone.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub fn bind(app: Arc<App>, interface: &Interface, site: Site) -> Result<Self, DhcpError> {
        let open = || {
            let frames = PacketSocket::open(interface.index)?;
            frames.listen(SERVER_PORT)?;
            let wake = UdpSocket::from_std(frames.as_fd().try_clone_to_owned()?.into())?;
            Ok((frames, RawSocket::open()?, wake))
        };
        let (frames, raw, wake) = open().map_err(DhcpError::Frames)?;
        let on = SocketAddrV4::new(site.server, SERVER_PORT);
        match crate::sys::port::holder(Transport::Udp, on) {
            Some(process) => {
                let taken = Taken { transport: Transport::Udp, address: on.into(), by: Some(process) };
                info!("DHCP: {taken}, which gives the addresses; requests are overheard, and answered beside it");
            }
            None => {
                info!(
                    "DHCP: another server gives the addresses; requests are overheard, port {SERVER_PORT} stays free"
                );
            }
        }
        Ok(Self { app, site, frames, raw, interface: interface.clone(), wake })
    }

    /// Serves until the future is dropped.
    pub async fn run(self) -> Infallible {
        let Self { app, site, frames, raw, interface, wake } = self;
        let on_link = |address: Ipv4Addr| {
            let mut own = interface.addresses.iter();
            own.any(|(ip, prefix)| *ip & netmask(*prefix) == address & netmask(*prefix))
        };
        let mut buffer = [0; HEADERS + LARGEST_PACKET];
        let mut alarms = Alarms::default();
        loop {
            let heard = wake.async_io(Interest::READABLE, || {
                let heard = frames.receive(&mut buffer)?;
                Ok(heard.map(|datagram| (datagram.from, proxy::overheard(&app.fleet(), &site, datagram.payload))))
            });
            let (from, outcome) = match heard.await {
                Ok(Some(heard)) => heard,
                Ok(None) => continue,
                Err(error) => {
                    warn!(%error, "DHCP: a packet could not be read");
                    tokio::time::sleep(AFTER_ERROR).await;
                    continue;
                }
            };
            // Nobody vouches for an address that a relay's packet names; on this wire it will be seen in use, or not.
            tell(&app, &site.guide, from, &outcome, |asker| asker.address.is_some_and(|address| !on_link(address)));
            alarms.sound(&outcome, now());
            if let Some(reply) = outcome.reply
                && let Err(error) = match reply.to {
                    Destination::Relay(relay) => {
                        let from = SocketAddrV4::new(site.server, SERVER_PORT);
                        raw.send(from, SocketAddrV4::new(relay, SERVER_PORT), &reply.bytes)
                    }
                    _ => shout(&frames, &site, &reply.bytes),
                }
            {
                tracing::debug!(%error, "DHCP: an answer could not be sent");
            }
        }
    }
}

/// An answer to a machine that has no address, and gets none from us: to everybody.
fn shout(frames: &PacketSocket, site: &Site, bytes: &[u8]) -> io::Result<()> {
    let from = SocketAddrV4::new(site.server, SERVER_PORT);
    frames.send(EVERYBODY, from, SocketAddrV4::new(Ipv4Addr::BROADCAST, CLIENT_PORT), bytes)
}
