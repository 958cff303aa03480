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

use super::kept::Keeping;
use super::{AFTER_ERROR, Alarms, DhcpError, LARGEST_PACKET, lookout, tell};
use crate::app::App;
use crate::app::recorder::now;
use crate::dhcp::{CLIENT_PORT, Destination, SERVER_PORT, Site, others, proxy};
use crate::fleet::lease::netmask;
use crate::sys::{Interface, PacketSocket, RawSocket, Taken, Traffic, Transport};

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
            // Port 68 costs nothing more: there other servers' broadcast answers are overheard.
            frames.listen([SERVER_PORT, CLIENT_PORT], Traffic::Arriving)?;
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
        let (keeping, own) = (Keeping::on(interface.mac), SocketAddrV4::new(site.server, SERVER_PORT));
        let addresses: Vec<Ipv4Addr> = interface.addresses.iter().map(|(address, _)| *address).collect();
        let mut buffer = [0; HEADERS + LARGEST_PACKET];
        let mut alarms = Alarms::default();
        loop {
            let heard = wake.async_io(Interest::READABLE, || {
                let heard = frames.receive(&mut buffer)?;
                Ok(heard.map(|datagram| (datagram.from, datagram.to, datagram.payload.to_vec())))
            });
            let (from, to, payload) = match heard.await {
                Ok(Some(heard)) => heard,
                Ok(None) => continue,
                Err(error) => {
                    warn!(%error, "DHCP: a packet could not be read");
                    tokio::time::sleep(AFTER_ERROR).await;
                    continue;
                }
            };
            if to.port() == CLIENT_PORT {
                lookout::take_in(&app, site.role, &addresses, &interface.name, from, to, &payload);
                continue;
            }
            if others::asks(&payload).is_some_and(|mac| app.others.is_asker(mac)) {
                continue;
            }
            let outcome = proxy::overheard(&app.fleet(), &site, &payload);
            keeping.came(&app, from, to, &payload, &outcome);
            // Nobody vouches for an address that a relay's packet names; on this wire it will be seen in use, or not.
            tell(&app, &site.guide, from, &outcome, |asker| asker.address.is_some_and(|address| !on_link(address)));
            alarms.sound(&outcome, now());
            let Some(reply) = outcome.reply else { continue };
            let (to, sent) = match reply.to {
                Destination::Relay(relay) => {
                    let to = SocketAddrV4::new(relay, SERVER_PORT);
                    (to, raw.send(own, to, &reply.bytes))
                }
                _ => shout(&frames, own, &reply.bytes),
            };
            keeping.left(&app, own, to, &reply.bytes, sent.as_ref().map(|_| ()));
            if let Err(error) = sent {
                tracing::debug!(%error, "DHCP: an answer could not be sent");
            }
        }
    }
}

/// An answer to a machine that has no address, and gets none from us: to everybody.
fn shout(frames: &PacketSocket, from: SocketAddrV4, bytes: &[u8]) -> (SocketAddrV4, io::Result<()>) {
    let to = SocketAddrV4::new(Ipv4Addr::BROADCAST, CLIENT_PORT);
    (to, frames.send(EVERYBODY, from, to, bytes))
}
