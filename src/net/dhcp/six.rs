//! DHCPv6 on one interface, beside whoever gives the addresses there: what is asked of all servers, and port 4011, where
//! firmware asks which file to boot. What is answered is `dhcp::v6`'s.

use std::convert::Infallible;
use std::net::{SocketAddr, SocketAddrV6};
use std::os::fd::AsFd;
use std::sync::Arc;

use tokio::io::Interest;
use tokio::net::UdpSocket;
use tracing::{debug, trace, warn};

use super::{AFTER_ERROR, BETWEEN_ALARMS, DhcpError, LARGEST_PACKET};
use crate::app::App;
use crate::app::recorder::now;
use crate::dhcp::BOOT_SERVER_PORT;
use crate::dhcp::v6::{self, Arrival, Outcome, Port, Reason, Site};
use crate::fleet::{Mac, Timestamp};
use crate::net::udp::BindError;
use crate::sys::{self, Interface, ServersSocket};

/// Listens for DHCPv6 on its interface.
#[derive(Debug)]
pub struct Six {
    app: Arc<App>,
    site: Site,
    servers: ServersSocket,
    /// The same socket once more, in the hands of tokio, that wakes us. Only its readiness is used.
    wake: UdpSocket,
    boot_server: UdpSocket,
}

impl Six {
    /// Listens on this interface, and takes port 4011 of our IPv6 address there.
    ///
    /// # Errors
    /// A [`DhcpError`]: the port is taken, privileges are missing, or the interface is gone.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub async fn bind(app: Arc<App>, interface: &Interface, site: Site) -> Result<Self, DhcpError> {
        let open = || {
            let servers = ServersSocket::open(interface.index, site.mac.octets())?;
            let wake = UdpSocket::from_std(servers.as_fd().try_clone_to_owned()?.into())?;
            Ok((servers, wake))
        };
        let (servers, wake) = open().map_err(DhcpError::Frames)?;
        let address = SocketAddr::from((site.address, BOOT_SERVER_PORT));
        let failed = |source| DhcpError::BootServer { source: BindError::of(source, address, Some(&interface.name)) };
        let boot_server = UdpSocket::bind(address).await.map_err(failed)?;
        Ok(Self { app, site, servers, wake, boot_server })
    }

    /// Serves until the future is dropped.
    pub async fn run(self) -> Infallible {
        let (mut buffer, mut boot_buffer) = (vec![0; LARGEST_PACKET], vec![0; LARGEST_PACKET]);
        let mut alarms = Alarms::default();
        loop {
            let heard = tokio::select! {
                asked = self.wake.async_io(Interest::READABLE, || self.on_question(&mut buffer)) => {
                    asked.map(|answer| {
                        answer.and_then(|(mac, outcome)| {
                            let reply = outcome.reply.as_ref();
                            let sent = reply.map(|it| self.servers.send(mac, self.site.address, it.to, &it.bytes));
                            Some((outcome, sent))
                        })
                    })
                }
                received = self.boot_server.recv_from(&mut boot_buffer) => match received {
                    Ok((len, SocketAddr::V6(from))) => {
                        let outcome = self.on_boot_request(from, &boot_buffer[..len]);
                        let sent = match &outcome.reply {
                            Some(reply) => Some(self.boot_server.send_to(&reply.bytes, reply.to).await.map(drop)),
                            None => None,
                        };
                        Ok(Some((outcome, sent)))
                    }
                    Ok(_) => Ok(None),
                    Err(error) => Err(error),
                },
            };
            match heard {
                Ok(Some((outcome, sent))) => {
                    if let Some(Err(error)) = sent {
                        debug!(%error, "DHCPv6: an answer could not be sent");
                    }
                    alarms.sound(&outcome, now());
                }
                Ok(None) => {}
                Err(error) => {
                    warn!(%error, "DHCPv6: a packet could not be read");
                    tokio::time::sleep(AFTER_ERROR).await;
                }
            }
        }
    }

    /// The next question to all servers: the hardware that its answer goes to, and what came of it.
    fn on_question(&self, buffer: &mut [u8]) -> std::io::Result<Option<([u8; 6], Outcome)>> {
        let Some(asked) = self.servers.receive(buffer)? else { return Ok(None) };
        let arrival = Arrival { from: asked.from, port: Port::Servers, neighbour: Mac::from_octets(asked.mac) };
        Ok(Some((asked.mac, self.handle(&arrival, asked.payload))))
    }

    fn on_boot_request(&self, from: SocketAddrV6, bytes: &[u8]) -> Outcome {
        let neighbour = sys::neighbour(*from.ip()).and_then(Mac::from_octets);
        self.handle(&Arrival { from, port: Port::BootServer, neighbour }, bytes)
    }

    /// What came of a packet, which is told to the log and the recorder.
    fn handle(&self, arrival: &Arrival, bytes: &[u8]) -> Outcome {
        let outcome = v6::handle(&self.app.fleet(), &self.site, arrival, bytes);
        match &outcome.asker {
            None => debug!("DHCPv6: a packet from {} was {}", arrival.from, outcome.reason),
            Some(asker) => {
                trace!(
                    mac = %asker.mac,
                    kind = ?asker.kind,
                    client = asker.client.as_ref().map(tracing::field::display),
                    ipxe = asker.machine.ipxe,
                    architecture = asker.machine.architecture,
                    reason = %outcome.reason,
                    "DHCPv6"
                );
                // Beside another server, what the rest of the building's machines ask is none of our business.
                if !matches!(outcome.reason, Reason::Stranger) {
                    self.app.recorder.saw(asker.mac, None);
                }
                if asker.machine.ipxe && outcome.reply.is_some() {
                    self.app.booting.saw(asker.mac, now());
                }
            }
        }
        for note in outcome.note.iter().chain(&outcome.teach(&self.site.wired.guide)) {
            self.app.recorder.note(Some(note.mac), note.client.as_ref(), note.stage, &note.detail);
        }
        outcome
    }
}

/// Warns of machines that get no loader, seldom enough that strangers cannot fill the log.
#[derive(Debug, Default)]
struct Alarms(Option<Timestamp>);

impl Alarms {
    fn sound(&mut self, Outcome { asker, reason, .. }: &Outcome, now: Timestamp) {
        let (Some(asker), true) = (asker, reason.is_alarming()) else { return };
        if self.0.is_none_or(|last| now.since(last) >= BETWEEN_ALARMS) {
            warn!("DHCPv6: {}: {reason}", asker.mac);
            self.0 = Some(now);
        }
    }
}
