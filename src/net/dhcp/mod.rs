//! DHCP on the interfaces that clients are on: packets in, packets out, and leases durable before the client hears of them.
//!
//! [`Server`] gives addresses; [`Proxy`] works beside a server that does; [`BootServer`] answers port 4011 beside either; [`Six`] tells
//! machines how to boot over IPv6.
//! Not here: what is answered (`dhcp::handle`, `dhcp::proxy`), and where leases are kept ([`Durable`]).

mod boot_server;
mod kept;
mod lookout;
mod proxy;
mod six;

use std::convert::Infallible;
use std::fmt;
use std::io;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::AsFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::io::Interest;
use tokio::net::UdpSocket;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tracing::{debug, trace, warn};

pub use boot_server::BootServer;
pub use lookout::Lookout;
pub use proxy::Proxy;
pub use six::Six;

use super::udp::{BindError, Udp};
use crate::app::App;
use crate::app::recorder::now;
use crate::dhcp::{
    self, Around, Arrival, Asker, CLIENT_PORT, Destination, Guide, Kind, LeaseChange, Leases, Lesson, Outcome, PROBE,
    Reason, Reply, Role, SERVER_PORT, Scope, ScopeError, Site, Wire, others,
};
use crate::fleet::{Finding, Mac, Naming, Pool, Stage, Subnet, Timestamp};
use crate::sys::{self, ArpSocket, Interface, Local, PacketSocket, Received};

/// Largest packet that is read; no client sends more than an Ethernet frame holds.
const LARGEST_PACKET: usize = 2_048;

/// Bytes of packets that may wait in a socket: those of half a second in which everybody asks, with the kernel's own share of
/// each.
const SOCKET_ROOM: usize = 4 << 20;

/// Packets that are taken from a socket before anything else has its turn.
const AT_A_TIME: usize = 64;

/// Once so many packets were taken and the socket was never empty, we are behind: then strangers' DISCOVERs are thrown away until
/// it is. To read a packet and throw it away takes a tenth of the time of an answer, so that others need not wait behind a
/// flood. Five thousand machines that are switched on at once are not that many, as fast as packets are answered.
const BEHIND: usize = 4_096;

/// Answers that wait for their leases to be durable. When so many wait, packets stay in the socket until the disk keeps up.
const MAX_WAITING: usize = 1_024;

/// Most answers that share one commit.
const MAX_BATCH: usize = 512;

/// Commits begin no closer to one another than this, so that answers gather while many ask: a commit costs a hundred
/// microseconds of CPU, whatever is in it, and one more lease costs a few. Whoever asks alone does not wait.
const BETWEEN_COMMITS: Duration = Duration::from_millis(20);

/// Most offers that wait for an answer by ARP. Those of a flood beyond that leave at once.
const MAX_PROBES: usize = 64;

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
    #[error("there are no addresses to give: dhcp = \"full\" needs [server.pool], or [server.pools.NAME]")]
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

/// An interface that clients are on, and our address there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// The interface.
    pub interface: Interface,
    /// The one of its addresses at which machines find us.
    pub address: Ipv4Addr,
}

/// A DHCP server that is bound to its interfaces.
#[derive(Debug)]
pub struct Server<D> {
    app: Arc<App>,
    leases: Leases,
    durable: D,
    ports: Vec<Port>,
}

impl<D: Durable + 'static> Server<D> {
    /// Takes port 67 of these interfaces. Scripts are served on `http_port` of the same addresses. Servers on other
    /// interfaces of the host are not disturbed.
    ///
    /// # Errors
    /// A [`DhcpError`]: no pool, none that fits an interface, the port is taken, privileges are missing.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub fn bind(
        app: Arc<App>,
        places: &[Place],
        http_port: u16,
        leases: Leases,
        durable: D,
    ) -> Result<Self, DhcpError> {
        let open = |(place, wire): (&Place, Wire)| {
            let Interface { name, index, .. } = &place.interface;
            let udp = Udp::bind(SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, SERVER_PORT), Some(name))
                .map_err(|source| DhcpError::Bind { source })?;
            udp.make_room(SOCKET_ROOM);
            let frames = PacketSocket::open(*index).map_err(DhcpError::Frames)?;
            let local = Local { interface: *index, address: place.address };
            let arp = Arp::open(&place.interface).map_err(DhcpError::Frames)?;
            let keeping = kept::Keeping::on(place.interface.mac);
            Ok(Port { app: Arc::clone(&app), interface: name.clone(), wire, udp, frames, arp, local, keeping })
        };
        let wires = wires(app.settings.pool.as_ref(), &app.settings.pools, &app.naming, places, http_port)?;
        let ports = places.iter().zip(wires).map(open).collect::<Result<_, _>>()?;
        Ok(Self { app, leases, durable, ports })
    }

    /// The same, with these loaders.
    #[must_use]
    pub fn with_guide(mut self, guide: &Guide) -> Self {
        let with = |port: Port| Port { wire: port.wire.with_guide(guide), ..port };
        self.ports = self.ports.into_iter().map(with).collect();
        self
    }

    /// Our addresses on wires whose own machines get none.
    pub fn without_pool(&self) -> impl Iterator<Item = Ipv4Addr> {
        self.ports.iter().filter(|port| port.wire.local().is_none()).map(|port| port.local.address)
    }

    /// Serves until the future is dropped. What was not answered by then, clients ask again.
    pub async fn run(self) -> Infallible {
        let Self { app, leases, durable, ports } = self;
        let (waiting, commits) = mpsc::channel(MAX_WAITING);
        let leases = Arc::new(Mutex::new(leases));
        let mut serving = JoinSet::new();
        for port in ports {
            let (port, app, leases) = (Arc::new(port), Arc::clone(&app), Arc::clone(&leases));
            let (waiting, alarms, probes) = (waiting.clone(), Alarms::default(), Vec::new());
            serving.spawn(Serving { port, app, leases, waiting, alarms, probes, behind: 0 }.run());
        }
        serving.spawn(async move { commit(&durable, commits).await });
        match serving.join_next().await {
            // One of them panicked: what it left undone must not look like a server.
            Some(Err(error)) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
            _ => std::future::pending().await,
        }
    }
}

/// What is served on each place. The pool of `[server.pool]` is for the place whose subnet holds it; a subnet of
/// `[server.pools]` for that which has an address in it, and for relays on all of them.
fn wires(
    pool: Option<&Pool>,
    pools: &[Subnet],
    naming: &Naming,
    places: &[Place],
    http_port: u16,
) -> Result<Vec<Wire>, DhcpError> {
    if pool.is_none() && pools.is_empty() {
        return Err(DhcpError::NoPool);
    }
    let prefix =
        |place: &Place| place.interface.addresses.iter().find(|(own, _)| *own == place.address).map(|own| own.1);
    let misfit = |place: &Place, source| DhcpError::Scope { interface: place.interface.name.clone(), source };
    let (mut first_error, mut pool_fits) = (None, false);
    let mut wires = Vec::new();
    for place in places {
        let naming = naming.clone();
        let guide = Guide::default();
        let site = Site { server: place.address, http_port, naming: naming.clone(), role: Role::Server, guide };
        let prefix = prefix(place).ok_or_else(|| DhcpError::NoAddress(place.interface.name.clone()))?;
        let mut local = None;
        if let Some(pool) = pool {
            match Scope::new(place.address, prefix, pool.clone(), http_port, naming) {
                Ok(scope) => {
                    local = Some(scope);
                    pool_fits = true;
                }
                Err(error) => first_error = first_error.or_else(|| Some(misfit(place, error))),
            }
        }
        let mut beyond = Vec::new();
        for subnet in pools {
            let scope = Scope::of(&site, subnet).map_err(|error| misfit(place, error))?;
            if subnet.contains(place.address) && local.is_none() {
                local = Some(scope);
            } else {
                beyond.push(scope);
            }
        }
        wires.push(Wire::new(site, local, beyond));
    }
    match first_error {
        Some(error) if !pool_fits => Err(error),
        _ => Ok(wires),
    }
}

/// A lease that must be durable, the answer that waits for it, and the way that it goes.
type Waiting = (Vec<LeaseChange>, Option<(Arc<Port>, Reply)>);

/// Commits what waits, all that is there at once, and sends the answers.
async fn commit(durable: &impl Durable, mut waiting: mpsc::Receiver<Waiting>) -> Infallible {
    let mut batch = Vec::with_capacity(MAX_BATCH);
    let mut next = Instant::now();
    loop {
        if waiting.recv_many(&mut batch, MAX_BATCH).await == 0 {
            std::future::pending::<()>().await;
        }
        tokio::time::sleep_until(next).await;
        while batch.len() < MAX_BATCH
            && let Ok(more) = waiting.try_recv()
        {
            batch.push(more);
        }
        next = Instant::now() + BETWEEN_COMMITS;
        let (changes, replies): (Vec<_>, Vec<_>) = batch.drain(..).unzip();
        match durable.commit(changes.into_iter().flatten().collect()).await {
            Ok(()) => {
                for (port, reply) in replies.iter().flatten() {
                    port.send(reply).await;
                }
            }
            Err(error) => {
                warn!(%error, "DHCP: leases could not be stored, so their clients get no answer");
                for (port, reply) in replies.iter().flatten() {
                    port.keep(reply, Err(&error));
                }
            }
        }
    }
}

/// Port 67 of one interface: what is served there, the way in, and the two ways out.
#[derive(Debug)]
struct Port {
    app: Arc<App>,
    interface: String,
    wire: Wire,
    udp: Udp,
    frames: PacketSocket,
    /// Whom to ask about addresses; `None` where the interface has no hardware address.
    arp: Option<Arp>,
    local: Local,
    keeping: kept::Keeping,
}

/// The socket for ARP.
#[derive(Debug)]
struct Arp {
    socket: ArpSocket,
    /// The same socket once more, in the hands of tokio, that wakes us. Only its readiness is used.
    wake: UdpSocket,
}

impl Arp {
    fn open(interface: &Interface) -> std::io::Result<Option<Self>> {
        let Some(mac) = interface.mac else { return Ok(None) };
        let socket = ArpSocket::open(interface.index, mac)?;
        let wake = UdpSocket::from_std(socket.as_fd().try_clone_to_owned()?.into())?;
        Ok(Some(Self { socket, wake }))
    }
}

/// A packet whose answer waits until nobody is found at the address that it offers.
#[derive(Debug)]
struct Probe {
    address: Ipv4Addr,
    mac: Mac,
    until: Instant,
    arrival: Arrival,
    bytes: Vec<u8>,
    reply: Reply,
}

/// What serves a port.
struct Serving {
    port: Arc<Port>,
    app: Arc<App>,
    leases: Arc<Mutex<Leases>>,
    waiting: mpsc::Sender<Waiting>,
    alarms: Alarms,
    probes: Vec<Probe>,
    /// How many packets were taken since the socket was empty.
    behind: usize,
}

impl Serving {
    async fn run(mut self) -> Infallible {
        let port = Arc::clone(&self.port);
        let mut buffer = [0; LARGEST_PACKET];
        loop {
            let soonest = self.probes.iter().map(|probe| probe.until).min();
            tokio::select! {
                received = port.udp.receive(&mut buffer) => self.take_all(received, &mut buffer).await,
                (address, mac) = port.answered() => self.found(address, mac).await,
                () = tokio::time::sleep_until(soonest.unwrap_or_else(Instant::now)), if soonest.is_some() => {
                    self.release().await;
                }
            }
        }
    }

    /// Handles a packet that came, and those that are there already, up to [`AT_A_TIME`].
    async fn take_all(&mut self, first: io::Result<Received>, buffer: &mut [u8; LARGEST_PACKET]) {
        let mut received = first;
        for left in (0..AT_A_TIME).rev() {
            match received {
                Ok(received) => {
                    self.behind += 1;
                    let bytes = &buffer[..received.len];
                    if self.behind > BEHIND && dhcp::is_strangers_discover(&self.app.fleet(), bytes) {
                        self.alarms.behind(now());
                    } else {
                        self.take(Arrival { from: received.from, to: received.to }, bytes, None).await;
                    }
                }
                Err(error) => {
                    warn!(%error, "DHCP: a packet could not be read");
                    tokio::time::sleep(AFTER_ERROR).await;
                }
            }
            if left == 0 {
                break;
            }
            match self.port.udp.try_receive(buffer) {
                Some(next) => received = next,
                None => {
                    self.behind = 0;
                    return;
                }
            }
        }
        // Commits, among others, have their turn.
        tokio::task::yield_now().await;
    }

    /// Handles a packet. One whose answer was thrown away, because its address is in use, has time until `until`.
    async fn take(&mut self, arrival: Arrival, bytes: &[u8], until: Option<Instant>) {
        let (now, fleet) = (now(), self.app.fleet());
        if others::asks(bytes).is_some_and(|mac| self.app.others.is_asker(mac)) {
            return trace!("DHCP: our own question for other servers is not answered");
        }
        let outcome = {
            let in_session = |address| self.app.sessions.client_at(address);
            let around = Around { fleet: &fleet, wire: &self.port.wire, in_session: &in_session };
            dhcp::handle(&mut lock(&self.leases), around, now, &arrival, bytes)
        };
        if until.is_none() {
            let to = SocketAddrV4::new(arrival.to, SERVER_PORT);
            self.port.keeping.came(&self.app, arrival.from, to, bytes, &outcome);
        }
        if let Reason::ChoseOther(server) = outcome.reason
            && server != self.port.local.address
        {
            self.app.found(Finding::SecondServer { server }, &self.port.interface);
        }
        // An address that we give is its machine's; what an INFORM says of one, anybody can say.
        tell(&self.app, &self.port.wire.site().guide, arrival.from, &outcome, |asker| {
            asker.kind != Kind::Inform || is_neighbour(asker)
        });
        self.alarms.sound(&outcome, now);
        let Outcome { persist, reply, probe, asker, .. } = outcome;
        let mac = asker.map(|asker| asker.mac);
        let until = until.unwrap_or_else(|| Instant::now() + PROBE);
        let (Some(reply), Some(address), Some(mac)) = (&reply, probe, mac) else {
            return self.answer(persist, reply).await;
        };
        // Asked a second time, its question goes on where it is.
        let until = match self.probes.iter().position(|probe| probe.mac == mac) {
            Some(at) => self.probes.swap_remove(at).until.min(until),
            None => until,
        };
        let Some(arp) = self.port.arp.as_ref().filter(|_| self.probes.len() < MAX_PROBES && Instant::now() < until)
        else {
            return self.answer(persist, Some(reply.clone())).await;
        };
        if let Err(error) = arp.socket.ask(address) {
            debug!(%error, %address, "DHCP: nobody could be asked about an address");
            return self.answer(persist, Some(reply.clone())).await;
        }
        let probe = Probe { address, mac, until, arrival, bytes: bytes.to_vec(), reply: reply.clone() };
        self.probes.push(probe);
        self.answer(persist, None).await;
    }

    /// Sends an answer once what it depends on is durable.
    async fn answer(&self, persist: Vec<LeaseChange>, reply: Option<Reply>) {
        match reply {
            Some(reply) if persist.is_empty() => self.port.send(&reply).await,
            None if persist.is_empty() => {}
            reply => {
                let reply = reply.map(|reply| (Arc::clone(&self.port), reply));
                if self.waiting.send((persist, reply)).await.is_err() {
                    // The process is stopping.
                    std::future::pending::<()>().await;
                }
            }
        }
    }

    /// Somebody uses this address: those to whom it was about to be offered get another one.
    async fn found(&mut self, address: Ipv4Addr, mac: Mac) {
        let asked: Vec<Probe> = self.probes.extract_if(.., |probe| probe.address == address).collect();
        // A machine that asks for the address that it has already answers for itself.
        for probe in asked {
            if probe.mac == mac {
                self.port.send(&probe.reply).await;
                continue;
            }
            warn!("DHCP: {address} is in use by {mac}, to which we did not give it: nobody gets it for now");
            let words = format!("{address} is in use by {mac}, to which we did not give it; it is offered another one");
            let client = self.app.fleet().by_mac(probe.mac).map(|client| client.name.clone());
            self.app.recorder.note(Some(probe.mac), client.as_ref(), Stage::Offer, &words);
            lock(&self.leases).found_in_use(address, now());
            self.take(probe.arrival, &probe.bytes, Some(probe.until)).await;
        }
    }

    /// Sends the answers about whose addresses nobody has said anything in time.
    async fn release(&mut self) {
        let due = Instant::now();
        let silent: Vec<Probe> = self.probes.extract_if(.., |probe| probe.until <= due).collect();
        for probe in silent {
            lock(&self.leases).found_silent(probe.address, now());
            self.port.send(&probe.reply).await;
        }
    }
}

impl Port {
    /// The next answer by ARP: an address, and who uses it.
    async fn answered(&self) -> (Ipv4Addr, Mac) {
        let Some(arp) = &self.arp else { return std::future::pending().await };
        loop {
            match arp.wake.async_io(Interest::READABLE, || arp.socket.receive()).await {
                Ok(Some((address, mac))) => {
                    if let Some(mac) = Mac::from_octets(mac) {
                        return (address, mac);
                    }
                }
                Ok(None) => {}
                Err(error) => {
                    debug!(%error, "DHCP: an answer by ARP could not be read");
                    tokio::time::sleep(AFTER_ERROR).await;
                }
            }
        }
    }

    async fn send(&self, reply: &Reply) {
        let to = |address| SocketAddrV4::new(address, CLIENT_PORT);
        let sent = match reply.to {
            Destination::Broadcast => self.udp.send(&reply.bytes, to(Ipv4Addr::BROADCAST), self.local).await,
            Destination::Unicast(address) => self.udp.send(&reply.bytes, to(address), self.local).await,
            Destination::Frame { ip, mac } => {
                let from = SocketAddrV4::new(self.local.address, SERVER_PORT);
                self.frames.send(mac.octets(), from, to(ip), &reply.bytes)
            }
            Destination::Relay(relay) => {
                self.udp.send(&reply.bytes, SocketAddrV4::new(relay, SERVER_PORT), self.local).await
            }
            Destination::Asker(asker) => self.udp.send(&reply.bytes, asker, self.local).await,
        };
        self.keep(reply, sent.as_ref().map(|_| ()));
        if let Err(error) = sent {
            // The client asks again; a cable that was pulled is no news for the operator.
            debug!(%error, to = ?reply.to, "DHCP: an answer could not be sent");
        }
    }
}

impl Port {
    /// Keeps an answer that left, or did not.
    fn keep<E: fmt::Display>(&self, reply: &Reply, sent: Result<(), E>) {
        let to = match reply.to {
            Destination::Broadcast => SocketAddrV4::new(Ipv4Addr::BROADCAST, CLIENT_PORT),
            Destination::Unicast(ip) | Destination::Frame { ip, .. } => SocketAddrV4::new(ip, CLIENT_PORT),
            Destination::Relay(relay) => SocketAddrV4::new(relay, SERVER_PORT),
            Destination::Asker(asker) => asker,
        };
        let from = SocketAddrV4::new(self.local.address, SERVER_PORT);
        self.keeping.left(&self.app, from, to, &reply.bytes, sent);
    }
}

/// The book; whoever panicked while it had it left it whole, for every change of it is one call.
fn lock(leases: &Mutex<Leases>) -> MutexGuard<'_, Leases> {
    leases.lock().unwrap_or_else(PoisonError::into_inner)
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
                port = asker.port.as_ref().map(tracing::field::display),
                ipxe = asker.machine.ipxe,
                architecture = asker.machine.architecture,
                ?left_out,
                reason = %outcome.reason,
                "DHCP"
            );
            if let Some(port) = &asker.port
                && !matches!(outcome.reason, Reason::TwoClients(_) | Reason::PortInUse(..))
            {
                app.plugged_in(asker.mac, port);
            }
            // Beside another server, what the rest of the building's machines ask is none of our business.
            let address = asker.address.filter(|_| proven(asker));
            if !matches!(outcome.reason, Reason::Stranger) && (address.is_some() || asker.client.is_none()) {
                app.recorder.saw(asker.mac, address);
            }
            if let Some(platform) = asker.machine.platform().filter(|_| asker.machine.netboot || asker.machine.ipxe) {
                app.recorder.is_of(asker.mac, asker.client.is_some(), platform);
            }
            if asker.machine.ipxe && outcome.reply.is_some() {
                app.booting.saw(asker.mac, now());
            }
        }
    }
    let Lesson { notes, habit } = guide.learn(outcome);
    for note in outcome.note.iter().chain(&notes) {
        app.recorder.note_fact(Some(note.mac), note.client.as_ref(), note.stage, &note.detail, note.fact.clone());
    }
    if let Some((mac, habit)) = habit {
        app.recorder.keep_habit(mac, habit);
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
    /// When it was said last that strangers are not answered, and how many were not since.
    behind: Option<Timestamp>,
    unanswered: u64,
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
        (self.last, self.unsaid) = (Some(now), 0);
    }

    /// A stranger is not answered.
    fn behind(&mut self, now: Timestamp) {
        self.unanswered += 1;
        if self.behind.is_some_and(|last| now.since(last) < BETWEEN_ALARMS) {
            return;
        }
        warn!(
            since_the_last = self.unanswered,
            "DHCP: machines that are in no client's place ask faster than they can be answered; some are not, clients are"
        );
        (self.behind, self.unanswered) = (Some(now), 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(name: &str, addresses: &[&str]) -> Place {
        let interface = Interface {
            name: name.into(),
            index: 2,
            mac: None,
            addresses: addresses.iter().map(|address| (address.parse().unwrap(), 24)).collect(),
            ipv6: Vec::new(),
            up: true,
            carrier: true,
            wired: true,
            mtu: 1500,
        };
        Place { address: interface.addresses.first().map_or(Ipv4Addr::UNSPECIFIED, |own| own.0), interface }
    }

    fn pool(third: u8) -> Pool {
        Pool {
            first: Ipv4Addr::new(10, 20, third, 100),
            last: Ipv4Addr::new(10, 20, third, 199),
            router: None,
            dns: Vec::new(),
            lease: Duration::from_secs(3600),
        }
    }

    fn subnet(third: u8) -> Subnet {
        let name = format!("room-{third}");
        Subnet { name, network: Ipv4Addr::new(10, 20, third, 0), prefix: 24, pool: pool(third) }
    }

    fn plan(pool: Option<&Pool>, pools: &[Subnet], places: &[Place]) -> Result<Vec<Wire>, DhcpError> {
        wires(pool, pools, &Naming::new("iqn.2026-11.test"), places, 80)
    }

    #[test]
    fn each_wire_gives_the_addresses_of_its_own_subnet_and_all_give_those_behind_relays() {
        let places = [place("enp3s0", &["10.20.0.2"]), place("lab", &["10.20.1.2"]), place("spare", &["10.9.0.2"])];
        let wires = plan(Some(&pool(0)), &[subnet(1), subnet(7)], &places).unwrap();
        let locals: Vec<_> = wires.iter().map(|wire| wire.local().map(|scope| scope.pool().first)).collect();
        assert_eq!(locals, [Some(pool(0).first), Some(pool(1).first), None]);
        for wire in &wires {
            assert!(wire.scope_of(Ipv4Addr::new(10, 20, 7, 1)).is_some());
            assert_eq!(wire.scope_of(Ipv4Addr::new(10, 20, 9, 1)), None);
        }
        let served: Vec<_> = wires.iter().map(|wire| wire.scope_of(pool(7).first).unwrap().server()).collect();
        assert_eq!(served, places.map(|place| place.address), "each by its own address");
    }

    #[test]
    fn what_cannot_be_served_is_said() {
        let words = plan(Some(&pool(0)), &[], &[place("enp3s0", &["192.168.1.5"])]).unwrap_err().to_string();
        assert!(words.contains("enp3s0") && words.contains("outside 192.168.1.5/24"), "{words}");
        assert!(matches!(plan(Some(&pool(0)), &[], &[place("enp3s0", &[])]), Err(DhcpError::NoAddress(_))));
        assert!(matches!(plan(None, &[], &[place("enp3s0", &["10.20.0.2"])]), Err(DhcpError::NoPool)));
    }
}
