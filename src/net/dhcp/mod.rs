//! DHCP on one interface: packets in, packets out, and leases durable before the client hears of them.
//!
//! [`Server`] gives addresses; [`Proxy`] works beside a server that does; [`BootServer`] answers port 4011 beside either.
//! Not here: what is answered (`dhcp::handle`, `dhcp::proxy`), and where leases are kept ([`Durable`]).

mod boot_server;
mod proxy;

use std::convert::Infallible;
use std::fmt;
use std::io;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tracing::{debug, trace, warn};

pub use boot_server::BootServer;
pub use proxy::Proxy;

use super::udp::{BindError, Udp};
use crate::app::App;
use crate::app::recorder::now;
use crate::dhcp::{
    self, Arrival, Asker, CLIENT_PORT, Destination, Guide, Kind, LeaseChange, Leases, Outcome, Reason, Reply,
    SERVER_PORT, Scope, ScopeError,
};
use crate::fleet::{Mac, Naming, Pool, Timestamp};
use crate::sys::{self, Interface, Local, PacketSocket};

/// Largest packet that is read; no client sends more than an Ethernet frame holds.
const LARGEST_PACKET: usize = 2_048;

/// Answers that wait for their leases to be durable. When so many wait, packets stay in the socket until the disk keeps up.
const MAX_WAITING: usize = 256;

/// Most answers that share one commit.
const MAX_BATCH: usize = 64;

/// How long nothing is read after an error, so that one that stays does not turn into a loop.
const AFTER_ERROR: Duration = Duration::from_millis(100);

/// Shortest time between two warnings of what clients can cause at will.
const BETWEEN_ALARMS: Duration = Duration::from_secs(60);

/// Where leases outlive a restart.
pub trait Durable: Send + Sync {
    /// What went wrong, for the log.
    type Error: fmt::Display + Send;

    /// Stores these changes in this order, all or none, and returns when they would survive a power cut. An answer that
    /// depends on them leaves only then.
    fn commit(&self, changes: Vec<LeaseChange>) -> impl Future<Output = Result<(), Self::Error>> + Send;
}

/// Why DHCP cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum DhcpError {
    /// `dhcp = "full"` without `[server.pool]`.
    #[error("there are no addresses to give: dhcp = \"full\" needs [server.pool] range")]
    NoPool,
    /// The interface lost its addresses since it was chosen.
    #[error("interface `{0}` has no IPv4 address")]
    NoAddress(String),
    /// The pool does not fit the interface.
    #[error("interface `{interface}`: {source}")]
    Scope {
        /// The interface.
        interface: String,
        /// What does not fit.
        source: ScopeError,
    },
    /// The port of DHCP.
    #[error("cannot serve DHCP: {source}{}", or(source, "write dhcp = \"proxy\" to work beside it"))]
    Bind {
        /// Why.
        source: BindError,
    },
    /// The port where firmware asks which file to boot.
    #[error("cannot answer boot requests: {source}{}", or(source, "switch off its PXE service"))]
    BootServer {
        /// Why.
        source: BindError,
    },
    /// The socket for machines without an address.
    #[error("cannot answer machines that have no address yet: {0}; run as root, or with CAP_NET_RAW")]
    Frames(io::Error),
}

/// What can be done about a port that somebody has.
fn or(error: &BindError, instead: &str) -> String {
    if let BindError::Taken { .. } = error { format!(": stop it, or {instead}") } else { String::new() }
}

/// A DHCP server that is bound to its interface.
#[derive(Debug)]
pub struct Server<D> {
    app: Arc<App>,
    scope: Scope,
    leases: Leases,
    durable: D,
    wire: Wire,
}

impl<D: Durable> Server<D> {
    /// Takes port 67 of this interface. Scripts are served on `http_port` of the same address. Servers on other interfaces
    /// of the host are not disturbed.
    ///
    /// # Errors
    /// A [`DhcpError`]: no pool, none that fits the interface, the port is taken, privileges are missing.
    pub fn bind(
        app: Arc<App>,
        interface: &Interface,
        http_port: u16,
        leases: Leases,
        durable: D,
    ) -> Result<Self, DhcpError> {
        let scope = scope(app.settings.pool.as_ref(), &app.naming, interface, http_port)?;
        let udp = Udp::bind(SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, SERVER_PORT), Some(&interface.name))
            .map_err(|source| DhcpError::Bind { source })?;
        let frames = PacketSocket::open(interface.index).map_err(DhcpError::Frames)?;
        let local = Local { interface: interface.index, address: scope.server() };
        Ok(Self { app, scope, leases, durable, wire: Wire { udp, frames, local } })
    }

    /// The same, with these loaders.
    #[must_use]
    pub fn with_guide(self, guide: Guide) -> Self {
        Self { scope: self.scope.with_guide(guide), ..self }
    }

    /// The subnet that it serves.
    #[must_use]
    pub fn scope(&self) -> &Scope {
        &self.scope
    }

    /// Serves until the future is dropped. What was not answered by then, clients ask again.
    pub async fn run(self) -> Infallible {
        let Self { app, scope, mut leases, durable, wire } = self;
        let (waiting, commits) = mpsc::channel(MAX_WAITING);
        let receive = async {
            let mut buffer = [0; LARGEST_PACKET];
            let mut alarms = Alarms::default();
            loop {
                let received = match wire.udp.receive(&mut buffer).await {
                    Ok(received) => received,
                    Err(error) => {
                        warn!(%error, "DHCP: a packet could not be read");
                        tokio::time::sleep(AFTER_ERROR).await;
                        continue;
                    }
                };
                let arrival = Arrival { from: received.from, to: received.to };
                let now = now();
                let outcome = dhcp::handle(&mut leases, &app.fleet(), &scope, now, &arrival, &buffer[..received.len]);
                // An address that we give is its machine's; what an INFORM says of one, anybody can say.
                tell(&app, &scope.site().guide, received.from, &outcome, |asker| {
                    asker.kind != Kind::Inform || is_neighbour(asker)
                });
                alarms.sound(&outcome, now);
                let Outcome { persist, reply, .. } = outcome;
                match reply {
                    Some(reply) if persist.is_empty() => wire.send(&reply).await,
                    None if persist.is_empty() => {}
                    reply => {
                        if waiting.send((persist, reply)).await.is_err() {
                            unreachable!("the receiver lives in the same future");
                        }
                    }
                }
            }
        };
        tokio::select! {
            never = receive => never,
            never = commit(&wire, &durable, commits) => never,
        }
    }
}

/// The scope of the interface's address whose subnet holds the pool.
fn scope(pool: Option<&Pool>, naming: &Naming, interface: &Interface, http_port: u16) -> Result<Scope, DhcpError> {
    let pool = pool.ok_or(DhcpError::NoPool)?;
    let mut first_error = None;
    for (address, prefix) in &interface.addresses {
        match Scope::new(*address, *prefix, pool.clone(), http_port, naming.clone()) {
            Ok(scope) => return Ok(scope),
            Err(error) => first_error = first_error.or(Some(error)),
        }
    }
    let interface = interface.name.clone();
    Err(match first_error {
        Some(source) => DhcpError::Scope { interface, source },
        None => DhcpError::NoAddress(interface),
    })
}

/// A lease that must be durable, and the answer that waits for it.
type Waiting = (Vec<LeaseChange>, Option<Reply>);

/// Commits what waits, all that is there at once, and sends the answers.
async fn commit(wire: &Wire, durable: &impl Durable, mut waiting: mpsc::Receiver<Waiting>) -> Infallible {
    let mut batch = Vec::with_capacity(MAX_BATCH);
    loop {
        if waiting.recv_many(&mut batch, MAX_BATCH).await == 0 {
            std::future::pending::<()>().await;
        }
        let (changes, replies): (Vec<_>, Vec<_>) = batch.drain(..).unzip();
        match durable.commit(changes.into_iter().flatten().collect()).await {
            Ok(()) => {
                for reply in replies.iter().flatten() {
                    wire.send(reply).await;
                }
            }
            Err(error) => warn!(%error, "DHCP: leases could not be stored, so their clients get no answer"),
        }
    }
}

/// The two ways out of an interface.
#[derive(Debug)]
struct Wire {
    udp: Udp,
    frames: PacketSocket,
    local: Local,
}

impl Wire {
    async fn send(&self, reply: &Reply) {
        let to = |address| SocketAddrV4::new(address, CLIENT_PORT);
        let sent = match reply.to {
            Destination::Broadcast => self.udp.send(&reply.bytes, to(Ipv4Addr::BROADCAST), self.local).await,
            Destination::Unicast(address) => self.udp.send(&reply.bytes, to(address), self.local).await,
            Destination::Frame { ip, mac } => {
                let from = SocketAddrV4::new(self.local.address, SERVER_PORT);
                self.frames.send(mac.octets(), from, to(ip), &reply.bytes)
            }
            Destination::Asker(asker) => self.udp.send(&reply.bytes, asker, self.local).await,
        };
        if let Err(error) = sent {
            // The client asks again; a cable that was pulled is no news for the operator.
            debug!(%error, to = ?reply.to, "DHCP: an answer could not be sent");
        }
    }
}

/// Says what came of a packet: to the log, and to the recorder what it told about a machine. `proven` says whether the asker
/// uses the address that it says it does.
fn tell(app: &App, guide: &Guide, from: SocketAddrV4, outcome: &Outcome, proven: impl Fn(&Asker) -> bool) {
    let left_out = outcome.reply.as_ref().map(|reply| reply.left_out.as_slice()).unwrap_or_default();
    match &outcome.asker {
        // Who sent it, no field of it can be believed to say.
        None => debug!("DHCP: a packet from {from} was {}", outcome.reason),
        Some(asker) => {
            trace!(
                mac = %asker.mac,
                kind = ?asker.kind,
                client = asker.client.as_ref().map(tracing::field::display),
                ipxe = asker.machine.ipxe,
                architecture = asker.machine.architecture,
                ?left_out,
                reason = %outcome.reason,
                "DHCP"
            );
            // Beside another server, what the rest of the building's machines ask is none of our business.
            if !matches!(outcome.reason, Reason::Stranger) {
                app.recorder.saw(asker.mac, asker.address.filter(|_| proven(asker)));
            }
            if asker.machine.ipxe && outcome.reply.is_some() {
                app.booting.saw(asker.mac, now());
            }
        }
    }
    for note in outcome.note.iter().chain(&guide.learn(outcome)) {
        app.recorder.note(Some(note.mac), note.client.as_ref(), note.stage, &note.detail);
    }
}

/// Whether the kernel knows the asker at the address that it says it uses. One datagram proves nothing of who sent it; whoever
/// asks us by unicast has just asked for our hardware address, from its own.
fn is_neighbour(asker: &Asker) -> bool {
    asker.address.and_then(sys::neighbour).and_then(Mac::from_octets) == Some(asker.mac)
}

/// Warns of what an operator should look at, seldom enough that strangers cannot fill the log.
#[derive(Debug, Default)]
struct Alarms {
    last: Option<Timestamp>,
    unsaid: u64,
}

impl Alarms {
    fn sound(&mut self, Outcome { asker, reason, .. }: &Outcome, now: Timestamp) {
        let (Some(asker), true) = (asker, Reason::is_alarming(reason)) else {
            return;
        };
        if self.last.is_some_and(|last| now.since(last) < BETWEEN_ALARMS) {
            self.unsaid += 1;
            return;
        }
        let who = asker.client.as_ref().map_or_else(|| asker.mac.to_string(), |name| format!("{name} ({})", asker.mac));
        warn!(since_the_last = self.unsaid, "DHCP: {who}: {reason}");
        *self = Self { last: Some(now), unsaid: 0 };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_address_that_the_pool_belongs_to_is_the_servers() {
        let interface = |addresses: &[&str]| Interface {
            name: "enp3s0".into(),
            index: 2,
            mac: None,
            addresses: addresses.iter().map(|address| (address.parse().unwrap(), 24)).collect(),
            up: true,
            carrier: true,
            wired: true,
            mtu: 1500,
        };
        let pool = Pool {
            first: Ipv4Addr::new(10, 20, 0, 100),
            last: Ipv4Addr::new(10, 20, 0, 199),
            router: None,
            dns: Vec::new(),
            lease: Duration::from_secs(3600),
        };
        let naming = Naming::new("iqn.2026-11.test");
        let scope_on = |addresses: &[&str]| scope(Some(&pool), &naming, &interface(addresses), 80);
        assert_eq!(scope_on(&["192.168.1.5", "10.20.0.2"]).unwrap().server(), Ipv4Addr::new(10, 20, 0, 2));
        let words = scope_on(&["192.168.1.5", "172.16.0.1"]).unwrap_err().to_string();
        assert!(words.contains("enp3s0") && words.contains("outside 192.168.1.5/24"), "{words}");
        assert!(matches!(scope_on(&[]), Err(DhcpError::NoAddress(_))));
        assert!(matches!(scope(None, &naming, &interface(&["10.20.0.2"]), 80), Err(DhcpError::NoPool)));
    }
}
