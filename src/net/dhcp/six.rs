//! DHCPv6 on one interface, beside whoever gives the addresses there: what is asked of all servers, and port 4011, where
//! firmware asks which file to boot. What is answered is `dhcp::v6`'s.

use std::convert::Infallible;
use std::io;
use std::net::{SocketAddr, SocketAddrV6};
use std::os::fd::AsFd;
use std::sync::Arc;

use tokio::io::Interest;
use tokio::net::UdpSocket;
use tracing::{debug, trace, warn};

use super::kept::Keeping;
use super::{AFTER_ERROR, BETWEEN_ALARMS, DhcpError, LARGEST_PACKET};
use crate::app::App;
use crate::app::recorder::now;
use crate::dhcp::v6::{self, Arrival, Outcome, Port, Reason, Site};
use crate::dhcp::{BOOT_SERVER_PORT, Lesson, Note};
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
    keeping: Keeping,
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
        let keeping = Keeping::on(Some(site.mac.octets()));
        Ok(Self { app, site, servers, wake, boot_server, keeping })
    }

    /// Serves until the future is dropped.
    pub async fn run(self) -> Infallible {
        let (mut questions, mut requests) = (vec![0; LARGEST_PACKET], vec![0; LARGEST_PACKET]);
        let mut alarms = Alarms::default();
        loop {
            let heard = tokio::select! {
                heard = self.question(&mut questions) => heard,
                heard = self.boot_request(&mut requests) => heard,
            };
            match heard {
                Ok(Some(outcome)) => alarms.sound(&outcome, now()),
                Ok(None) => {}
                Err(error) => {
                    warn!(%error, "DHCPv6: a packet could not be read");
                    tokio::time::sleep(AFTER_ERROR).await;
                }
            }
        }
    }

    /// Answers the next question to all servers. Once it is read, nothing is waited for, so that none is lost when the other
    /// port hears something.
    async fn question(&self, buffer: &mut [u8]) -> io::Result<Option<Outcome>> {
        let heard = self.wake.async_io(Interest::READABLE, || {
            let asked = self.servers.receive(buffer)?;
            Ok(asked.map(|asked| {
                let neighbour = Mac::from_octets(asked.mac);
                let arrival = Arrival { from: asked.from, port: Port::Servers, neighbour };
                (asked.mac, self.handle(&arrival, asked.to, asked.payload))
            }))
        });
        let Some((mac, outcome)) = heard.await? else { return Ok(None) };
        if let Some(reply) = &outcome.reply {
            let from = self.servers.answers_from(self.site.address, *reply.to.ip());
            let sent = self.servers.send(mac, from, reply.to, &reply.bytes);
            self.keeping.left_over_ipv6(&self.app, from, mac, &outcome, sent.as_ref().map(|_| ()));
            say(sent);
        }
        Ok(Some(outcome))
    }

    /// The same for port 4011.
    async fn boot_request(&self, buffer: &mut [u8]) -> io::Result<Option<Outcome>> {
        let (len, SocketAddr::V6(from)) = self.boot_server.recv_from(buffer).await? else { return Ok(None) };
        let neighbour = sys::neighbour(*from.ip()).and_then(Mac::from_octets);
        let own = SocketAddrV6::new(self.site.address, BOOT_SERVER_PORT, 0, 0);
        let outcome = self.handle(&Arrival { from, port: Port::BootServer, neighbour }, own, &buffer[..len]);
        if let Some(reply) = &outcome.reply {
            let sent = self.boot_server.try_send_to(&reply.bytes, reply.to.into()).map(drop);
            let mac = neighbour.map_or([0; 6], Mac::octets);
            self.keeping.left_over_ipv6(&self.app, own, mac, &outcome, sent.as_ref().map(|_| ()));
            say(sent);
        }
        Ok(Some(outcome))
    }

    /// What came of a packet, which is told to the log and the recorder.
    fn handle(&self, arrival: &Arrival, to: SocketAddrV6, bytes: &[u8]) -> Outcome {
        let outcome = v6::handle(&self.app.fleet(), &self.site, arrival, bytes);
        self.keeping.came_over_ipv6(&self.app, arrival, to, bytes, &outcome);
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
                if let Some(platform) = asker.machine.platform().filter(|_| outcome.reply.is_some()) {
                    self.app.recorder.is_of(asker.mac, asker.client.is_some(), platform);
                }
                if asker.machine.ipxe && outcome.reply.is_some() {
                    self.app.booting.saw(asker.mac, now());
                }
            }
        }
        let Lesson { notes, .. } = outcome.teach(&self.site.wired.guide);
        for note in outcome.note.iter().chain(&notes) {
            let Note { mac, client, stage, detail, fact } = note;
            self.app.recorder.note_fact(Some(*mac), client.as_ref(), *stage, detail, fact.clone());
        }
        outcome
    }
}

fn say(sent: io::Result<()>) {
    if let Err(error) = sent {
        // The client asks again.
        debug!(%error, "DHCPv6: an answer could not be sent");
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
