//! A DHCP server for one wire and the subnets behind its relays, as a pure function: [`handle`] takes a packet and says what to answer, what must be durable
//! before that, and why (RFC 2131, RFC 2132, RFC 3046, RFC 3396, RFC 4578, RFC 6842).
//!
//! It gives addresses, and with them the way into the boot chain: firmware gets the name of a loader, iPXE the address of its
//! script. Beside a server that gives the addresses, [`proxy`] does the second half alone.
//!
//! Not here: sockets and clocks (`net::dhcp`), what a machine boots (`fleet::policy`).

mod boot;
mod guide;
mod leases;
mod offers;
pub mod others;
pub mod proxy;
mod relay;
mod reply;
mod scope;
#[cfg(test)]
mod tests;
pub mod v6;
mod wire;

use std::fmt;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::Duration;

pub use boot::{BIOS_LOADER, Features, Handout, Machine, Missing, UEFI_X64_LOADER, architecture_name};
pub use guide::{Guide, Lesson};
use leases::{Claim, Rules};
pub use leases::{
    InSession, LeaseChange, Leases, MAX_OFFERS, MAX_OFFERS_OF_PORT, MAX_QUARANTINED, NoAddress, OFFER_HOLD, Obstacle,
    PROBE, QUARANTINE, STRANGERS_OFFER_HOLD,
};
use reply::{Answer, Encoder};
pub use scope::{Role, Scope, ScopeError, Site, Wire};
pub use wire::{Kind, Malformed};
use wire::{Request, code};

use crate::fleet::lease::MAX_DNS;
use crate::fleet::policy::{Plan, TwoClients, boot_plan_at};
use crate::fleet::{Client, ClientName, ExtraOption, Fact, Fleet, Holder, Mac, Port, Stage, Timestamp};

/// The port that servers listen on.
pub const SERVER_PORT: u16 = 67;
/// The port that clients listen on.
pub const CLIENT_PORT: u16 = 68;
/// The port where firmware asks for its boot file once it has an address (PXE 2.1 §2.2.3).
pub const BOOT_SERVER_PORT: u16 = 4011;

/// How a packet came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Arrival {
    /// Who sent it.
    pub from: SocketAddrV4,
    /// Where to: our address, or a broadcast address.
    pub to: Ipv4Addr,
}

/// What came of a packet.
#[derive(Debug, PartialEq, Eq)]
pub struct Outcome {
    /// Who asked; `None` for what is no request.
    pub asker: Option<Asker>,
    /// What was done, or why nothing.
    pub reason: Reason,
    /// What must be durable before the reply leaves.
    pub persist: Vec<LeaseChange>,
    /// An address that somebody may use already. It is worth asking before the reply leaves, if that takes no longer than
    /// [`PROBE`].
    pub probe: Option<Ipv4Addr>,
    /// What to send.
    pub reply: Option<Reply>,
    /// A stage of a boot that the machine reached.
    pub note: Option<Note>,
}

/// Who asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Asker {
    /// Its hardware address.
    pub mac: Mac,
    /// What it asked.
    pub kind: Kind,
    /// In whose place it stands.
    pub client: Option<ClientName>,
    /// The port that it is plugged into, where a relay or a switch tells it.
    pub port: Option<Port>,
    /// What it told about itself.
    pub machine: Machine,
    /// The address that it uses from now on: it was just acknowledged, or it told that it has one. What it merely claimed to
    /// have does not count.
    pub address: Option<Ipv4Addr>,
}

impl Asker {
    /// Where it is plugged in, as the end of a sentence.
    fn at(&self) -> String {
        self.port.as_ref().map(|port| format!(", at port {port}")).unwrap_or_default()
    }
}

/// A packet to send.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reply {
    /// The DHCP message.
    pub bytes: Vec<u8>,
    /// Where to.
    pub to: Destination,
    /// Options that found no room.
    pub left_out: Vec<u8>,
}

/// Where a reply goes: to port 68 where no port is said (RFC 2131 §4.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Destination {
    /// To everybody on the wire.
    Broadcast,
    /// To an address that its machine has and answers ARP for.
    Unicast(Ipv4Addr),
    /// To an address that its machine does not have yet: in a frame to its hardware address.
    Frame {
        /// The address.
        ip: Ipv4Addr,
        /// The machine.
        mac: Mac,
    },
    /// To the relay that brought the request, which hands it on: to port 67.
    Relay(Ipv4Addr),
    /// Back to where the request came from, from the port that it was sent to.
    Asker(SocketAddrV4),
}

/// A stage of a boot, for the record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Note {
    /// Which machine.
    pub mac: Mac,
    /// In whose place.
    pub client: Option<ClientName>,
    /// Which stage.
    pub stage: Stage,
    /// The particulars, for a person.
    pub detail: String,
    /// What a program may have to go by.
    pub fact: Option<Fact>,
}

/// What a REQUEST is about (RFC 2131 §4.3.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// It takes up an offer.
    Selecting,
    /// It was switched on and remembers an address.
    InitReboot,
    /// It asks us to extend its lease.
    Renewing,
    /// It asks anybody to extend its lease.
    Rebinding,
}

/// What was done with a packet, and why: the log, the metrics and the tests read the same values.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reason {
    /// Answered: an offer.
    Offered(Ipv4Addr, Handout),
    /// Answered: a lease.
    Acked(Ipv4Addr, State),
    /// Answered: a refusal (NAK), so that the client starts anew.
    Refused {
        /// What it asked for.
        address: Ipv4Addr,
        /// What is wrong with it.
        why: Obstacle,
    },
    /// Answered: the rest of the configuration.
    Informed(Ipv4Addr),
    /// Done, nothing to answer: the address is free again.
    Released(Ipv4Addr),
    /// Done, nothing to answer: the address is in use by somebody else.
    Declined(Ipv4Addr),
    /// Done, nothing to answer: the client took another server's offer.
    ChoseOther(Ipv4Addr),
    /// Answered, beside the server that gives its address: an offer of a boot file.
    OfferedBoot(Handout),
    /// Answered on port 4011: which file to boot.
    ToldBoot(Handout),
    /// Done, nothing to answer: another server gives its address.
    Elsewhere {
        /// The address that it takes, where it said so.
        address: Option<Ipv4Addr>,
        /// The server that gives it.
        server: Option<Ipv4Addr>,
    },
    /// Ignored: it stands in no client's place, and another server gives its address.
    Stranger,
    /// Ignored: it does not boot from the network, and another server gives its address.
    NoNetboot,
    /// Ignored: there is no loader for this architecture, and another server gives its address.
    NoLoader(u16),
    /// Ignored: nothing that port 4011 is for.
    NotForBootServer(Kind),
    /// Ignored: it is no request.
    Malformed(Malformed),
    /// Ignored: there is no pool for the subnet that it comes from.
    NoSubnet(Ipv4Addr),
    /// Ignored: the client is `off`.
    OutOfService(ClientName),
    /// Ignored: it matches two clients.
    TwoClients(TwoClients),
    /// Ignored: it is plugged in at the port of a client whose machine, another one, is running.
    PortInUse(ClientName, Mac),
    /// Ignored: it gives back, or declines, an address at which it runs from its disk.
    InSession(Ipv4Addr),
    /// Ignored: there is no address for it.
    NoAddress(NoAddress),
    /// Ignored: a request that names no address.
    NothingAsked,
    /// Ignored: it remembers an address that we know nothing of (RFC 2131 §4.3.2); another server may.
    NoRecord(Ipv4Addr),
    /// Ignored: meant for another server.
    OtherServer(Ipv4Addr),
    /// Ignored: it gives back an address that it does not have.
    NotTheirs(Ipv4Addr),
}

impl Reason {
    /// What it is in one word, for programs.
    #[must_use]
    pub fn word(&self) -> &'static str {
        match self {
            Self::Offered(..) => "offered",
            Self::Acked(..) => "leased",
            Self::Refused { .. } => "refused",
            Self::Informed(_) => "informed",
            Self::Released(_) => "released",
            Self::Declined(_) => "declined",
            Self::ChoseOther(_) => "chose-other",
            Self::OfferedBoot(_) => "offered-boot",
            Self::ToldBoot(_) => "told-boot",
            Self::Elsewhere { .. } => "elsewhere",
            Self::Stranger => "stranger",
            Self::NoNetboot => "no-netboot",
            Self::NoLoader(_) => "no-loader",
            Self::NotForBootServer(_) => "not-for-boot-server",
            Self::Malformed(_) => "malformed",
            Self::NoSubnet(_) => "no-subnet",
            Self::OutOfService(_) => "out-of-service",
            Self::TwoClients(_) => "two-clients",
            Self::PortInUse(..) => "port-in-use",
            Self::InSession(_) => "in-session",
            Self::NoAddress(_) => "no-address",
            Self::NothingAsked => "nothing-asked",
            Self::NoRecord(_) => "no-record",
            Self::OtherServer(_) => "other-server",
            Self::NotTheirs(_) => "not-theirs",
        }
    }

    /// It took something in, though there was nothing to answer.
    #[must_use]
    pub fn is_done(&self) -> bool {
        matches!(self, Self::Released(_) | Self::Declined(_) | Self::ChoseOther(_) | Self::Elsewhere { .. })
    }

    /// An operator should look at this: somebody gets no address or no loader, or an address is in use by a machine that
    /// should not have it.
    #[must_use]
    pub fn is_alarming(&self) -> bool {
        matches!(
            self,
            Self::NoAddress(_)
                | Self::Declined(_)
                | Self::NoLoader(_)
                | Self::NoSubnet(_)
                | Self::TwoClients(_)
                | Self::PortInUse(..)
        )
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Offered(address, handout) => write!(f, "offered {address}, {handout}"),
            Self::Acked(address, State::Selecting) => write!(f, "leased {address}"),
            Self::Acked(address, State::InitReboot) => write!(f, "leased {address} again"),
            Self::Acked(address, State::Renewing | State::Rebinding) => write!(f, "extended the lease of {address}"),
            Self::Refused { address, why } => write!(f, "refused {address}: {why}"),
            Self::Informed(address) => write!(f, "informed {address}"),
            Self::Released(address) => write!(f, "{address} was released"),
            Self::Declined(address) => write!(f, "{address} was declined: another machine uses it"),
            Self::ChoseOther(server) => write!(f, "it took the offer of {server}"),
            Self::OfferedBoot(handout) => write!(f, "offered {handout}, beside the server that gives its address"),
            Self::ToldBoot(handout) => write!(f, "told on port {BOOT_SERVER_PORT}: {handout}"),
            Self::Elsewhere { address: Some(address), server: Some(server) } => {
                write!(f, "it takes {address} from {server}")
            }
            Self::Elsewhere { .. } => f.write_str("ignored: its address is another server's matter"),
            Self::Stranger => f.write_str("ignored: no client has this MAC, and another server gives its address"),
            Self::NoNetboot => f.write_str("ignored: it does not boot from the network"),
            Self::NoLoader(architecture) => write!(f, "ignored: {}", Handout::NoLoader(*architecture)),
            Self::NotForBootServer(kind) => {
                write!(f, "ignored: {kind:?} is nothing that port {BOOT_SERVER_PORT} is for")
            }
            Self::Malformed(why) => write!(f, "ignored: {why}"),
            Self::NoSubnet(link) => {
                write!(
                    f,
                    "ignored: it comes from the subnet of {link}, for which there is no pool; add one: [server.pools.NAME]"
                )
            }
            Self::TwoClients(why) => write!(f, "ignored: {why}"),
            Self::PortInUse(name, other) => {
                write!(f, "ignored: it is plugged in at the port of {name}, whose machine {other} is running")
            }
            Self::InSession(address) => write!(f, "ignored: it runs from its disk at {address}"),
            Self::OutOfService(name) => write!(f, "ignored: {name} is out of service (off = true)"),
            Self::NoAddress(why) => write!(f, "ignored: {why}"),
            Self::NothingAsked => f.write_str("ignored: it names no address"),
            Self::NoRecord(address) => write!(f, "ignored: it remembers {address}, of which nothing is known here"),
            Self::OtherServer(server) => write!(f, "ignored: it is for the server {server}"),
            Self::NotTheirs(address) => write!(f, "ignored: it gives back {address}, which it does not have"),
        }
    }
}

/// What an answer depends on besides the packet and the leases.
#[derive(Clone, Copy)]
pub struct Around<'a> {
    /// The clients.
    pub fleet: &'a Fleet,
    /// Where the packet arrived.
    pub wire: &'a Wire,
    /// Who runs from a disk of ours.
    pub in_session: InSession<'a>,
}

impl fmt::Debug for Around<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Around").field("wire", self.wire).finish_non_exhaustive()
    }
}

/// Handles one packet that arrived on a wire where we give the addresses.
pub fn handle(leases: &mut Leases, around: Around<'_>, now: Timestamp, arrival: &Arrival, bytes: &[u8]) -> Outcome {
    let silent = |asker, reason| Outcome { asker, reason, persist: Vec::new(), probe: None, reply: None, note: None };
    let request = match Request::parse(bytes) {
        Ok(request) => request,
        Err(why) => return silent(None, Reason::Malformed(why)),
    };
    let (client, asker) = match recognise(around.fleet, &request) {
        Ok(recognised) => recognised,
        Err(ignored) => return *ignored,
    };
    let scope = match scope_for(around.wire, arrival, &request) {
        Ok(scope) => scope,
        Err(link) => return silent(Some(asker), Reason::NoSubnet(link)),
    };
    if let Some((client, other)) =
        client.and_then(|client| Some((client, leases.rival(client, request.mac, around.in_session)?)))
    {
        return silent(Some(asker), Reason::PortInUse(client.name.clone(), other));
    }
    Exchange::new(leases, around, scope, now, arrival, &request, client, asker).run()
}

/// Whether this is the DISCOVER of a machine that is in nobody's place: what floods are made of, and what can be left
/// unanswered where not everything can be answered.
#[must_use]
pub fn is_strangers_discover(fleet: &Fleet, bytes: &[u8]) -> bool {
    let Ok(request) = Request::parse(bytes) else { return false };
    let plan = boot_plan_at(fleet, request.mac, relay::port(&request).as_ref());
    request.kind == Kind::Discover && plan == Ok(Plan::Unknown)
}

/// Who asks, and in whose place it stands; or why it is not answered, whoever gives its address.
fn recognise<'a>(fleet: &'a Fleet, request: &Request) -> Result<(Option<&'a Client>, Asker), Box<Outcome>> {
    let port = relay::port(request);
    let asker = |client: Option<&Client>| Asker {
        mac: request.mac,
        kind: request.kind,
        client: client.map(|client| client.name.clone()),
        port: port.clone(),
        machine: Machine::of(request),
        address: None,
    };
    let (asker, reason) = match boot_plan_at(fleet, request.mac, port.as_ref()) {
        Ok(Plan::Boot(client)) => return Ok((Some(client), asker(Some(client)))),
        Ok(Plan::Unknown) => return Ok((None, asker(None))),
        Ok(Plan::Off(client)) => (asker(Some(client)), Reason::OutOfService(client.name.clone())),
        Err(two) => (asker(None), Reason::TwoClients(two)),
    };
    Err(Box::new(Outcome { asker: Some(asker), reason, persist: Vec::new(), probe: None, reply: None, note: None }))
}

/// The subnet that a request comes from; where we have no pool for it, an address that it is known by.
fn scope_for<'a>(wire: &'a Wire, arrival: &Arrival, request: &Request) -> Result<&'a Scope, Ipv4Addr> {
    if let Some(link) = relay::link(request) {
        return wire.scope_of(link).ok_or(link);
    }
    // Who has an address asks us alone, past the relay (RFC 2131 §4.3.2): what it says of itself names the subnet.
    if arrival.to == wire.site().server && !request.ciaddr.is_unspecified() {
        return wire.scope_of(request.ciaddr).or(wire.local()).ok_or(request.ciaddr);
    }
    wire.local().ok_or(wire.site().server)
}

/// Who an address is given to: the client, or the machine that is in nobody's place.
fn holder(mac: Mac, client: Option<&Client>) -> Holder {
    client.map_or(Holder::Stranger(mac), |client| Holder::Client(client.name.clone()))
}

/// One request and everything that its answer depends on.
struct Exchange<'a> {
    leases: &'a mut Leases,
    rules: Rules<'a>,
    scope: &'a Scope,
    /// What the client knows us by: our address, unless its relay wants to be asked instead.
    server: Ipv4Addr,
    now: Timestamp,
    arrival: &'a Arrival,
    request: &'a Request,
    client: Option<&'a Client>,
    holder: Holder,
    asker: Asker,
}

/// What an exchange comes to, before it is dressed as an [`Outcome`].
struct Verdict {
    probe: Option<Ipv4Addr>,
    reason: Reason,
    persist: Vec<LeaseChange>,
    reply: Option<Reply>,
}

impl From<Reason> for Verdict {
    fn from(reason: Reason) -> Self {
        Self { probe: None, reason, persist: Vec::new(), reply: None }
    }
}

impl<'a> Exchange<'a> {
    #[expect(clippy::too_many_arguments, reason = "they are what an answer depends on, put together once")]
    fn new(
        leases: &'a mut Leases,
        around: Around<'a>,
        scope: &'a Scope,
        now: Timestamp,
        arrival: &'a Arrival,
        request: &'a Request,
        client: Option<&'a Client>,
        asker: Asker,
    ) -> Self {
        Self {
            leases,
            rules: Rules::new(scope, around.fleet, around.in_session),
            scope,
            server: relay::server(request).unwrap_or(scope.server()),
            now,
            arrival,
            request,
            client,
            holder: holder(request.mac, client),
            asker,
        }
    }

    /// The client means another server than us. It may know us by our own address too: from another relay, say.
    fn is_for(&self, server: Ipv4Addr) -> bool {
        server == self.server || server == self.scope.server()
    }

    fn run(mut self) -> Outcome {
        let mut persist = match self.request.kind {
            Kind::Discover | Kind::Request => self.leases.adopt(&self.holder, self.request.mac, &self.rules),
            Kind::Decline | Kind::Release | Kind::Inform => Vec::new(),
        };
        let verdict = match self.request.kind {
            Kind::Discover => self.discover(),
            Kind::Request => self.request(),
            Kind::Decline => self.decline(),
            Kind::Release => self.release(),
            Kind::Inform => self.inform(),
        };
        persist.extend(verdict.persist);
        let note = match &verdict.reason {
            Reason::Offered(address, handout) if self.asker.machine.netboot || self.asker.machine.ipxe => Some(Note {
                mac: self.asker.mac,
                client: self.asker.client.clone(),
                stage: Stage::Offer,
                detail: format!("{address}, {}{}", handout.to(&self.asker.machine), self.asker.at()),
                fact: handout.fact(),
            }),
            Reason::ChoseOther(server) => took_other(&self.asker, *server),
            _ => None,
        };
        if let Reason::Acked(address, _) | Reason::Informed(address) = verdict.reason {
            self.asker.address = Some(address);
        }
        Outcome {
            asker: Some(self.asker),
            reason: verdict.reason,
            persist,
            probe: verdict.probe,
            reply: verdict.reply,
            note,
        }
    }

    /// RFC 2131 §4.3.1.
    fn discover(&mut self) -> Verdict {
        let wish = self.request.address(code::REQUESTED);
        match self.leases.offer(&self.holder, wish, self.asker.port.as_ref(), &self.rules, self.now) {
            Err(why) => Reason::NoAddress(why).into(),
            Ok(address) => Verdict {
                probe: Some(address).filter(|address| {
                    self.request.giaddr.is_unspecified() && self.leases.is_doubtful(*address, &self.holder, &self.rules)
                }),
                reply: Some(self.configuration(Answer::Offer, Some(address))),
                ..Reason::Offered(address, self.handout()).into()
            },
        }
    }

    fn handout(&self) -> Handout {
        boot::handout(self.scope.site(), self.request, &self.asker.machine, self.client)
    }

    /// RFC 2131 §4.3.2.
    fn request(&mut self) -> Verdict {
        let asked = self.request.address(code::REQUESTED);
        let current = Some(self.request.ciaddr).filter(|address| !address.is_unspecified());
        let (state, address) = match self.request.address(code::SERVER) {
            Some(server) if !self.is_for(server) => {
                self.leases.withdraw(&self.holder);
                return Reason::ChoseOther(server).into();
            }
            Some(_) => (State::Selecting, asked.or(current)),
            None if current.is_none() => (State::InitReboot, asked),
            None if self.arrival.to == self.scope.server() => (State::Renewing, current),
            None => (State::Rebinding, current),
        };
        let Some(address) = address else {
            return Reason::NothingAsked.into();
        };
        match self.leases.claim(&self.holder, address, &self.rules, self.now) {
            // Whoever remembers an address of another server's time, and is not ours, may be right.
            Claim::Wrong(Obstacle::NotInPool)
                if matches!(state, State::InitReboot | State::Rebinding) && !self.leases.knows(&self.holder) =>
            {
                Reason::NoRecord(address).into()
            }
            Claim::Wrong(why) => self.refuse(address, why),
            // RFC 2131 demands silence towards a client of whom there is no record only here. One that *uses* an address of
            // our pool, which is ours alone to give, keeps it: a running system loses its disk with its address.
            Claim::Free if state == State::InitReboot => Reason::NoRecord(address).into(),
            Claim::Free | Claim::Theirs => {
                let expires = self.now.after(self.scope.pool().lease);
                Verdict {
                    probe: None,
                    reason: Reason::Acked(address, state),
                    persist: self.leases.grant(&self.holder, address, self.request.mac, expires),
                    reply: Some(self.configuration(Answer::Ack, Some(address))),
                }
            }
        }
    }

    fn refuse(&mut self, address: Ipv4Addr, why: Obstacle) -> Verdict {
        self.leases.withdraw(&self.holder);
        let mut reply = Encoder::new(self.request, Answer::Nak, self.server);
        reply.option(code::MESSAGE, why.to_string().as_bytes());
        // To everybody: the client may not have the address that it believes it has (RFC 2131 §4.1).
        let reply = finish(self.request, reply, Destination::Broadcast);
        Verdict { reply: Some(reply), ..Reason::Refused { address, why }.into() }
    }

    /// RFC 2131 §4.3.3.
    fn decline(&mut self) -> Verdict {
        match (self.request.address(code::SERVER), self.request.address(code::REQUESTED)) {
            (Some(server), _) if !self.is_for(server) => Reason::OtherServer(server).into(),
            (_, None) => Reason::NothingAsked.into(),
            // Only its running system uses the address; anybody can have sent this.
            (_, Some(address)) if self.rules.runs_at(&self.holder, address) => Reason::InSession(address).into(),
            (_, Some(address)) => match self.leases.decline(&self.holder, address, self.now) {
                None => Reason::NotTheirs(address).into(),
                Some(persist) => Verdict { persist, ..Reason::Declined(address).into() },
            },
        }
    }

    /// RFC 2131 §4.3.4.
    fn release(&mut self) -> Verdict {
        let address = self.request.ciaddr;
        match self.request.address(code::SERVER) {
            Some(server) if !self.is_for(server) => Reason::OtherServer(server).into(),
            _ if self.rules.runs_at(&self.holder, address) => Reason::InSession(address).into(),
            _ => match self.leases.release(&self.holder, address, self.now) {
                None => Reason::NotTheirs(address).into(),
                Some(change) => Verdict { persist: vec![change], ..Reason::Released(address).into() },
            },
        }
    }

    /// RFC 2131 §4.3.5.
    fn inform(&self) -> Verdict {
        let address = self.request.ciaddr;
        if !self.scope.is_host(address) {
            return Reason::NothingAsked.into();
        }
        Verdict { reply: Some(self.configuration(Answer::Ack, None)), ..Reason::Informed(address).into() }
    }

    /// An OFFER or ACK: the address, if it gives one, and all that goes with it.
    fn configuration(&self, answer: Answer, address: Option<Ipv4Addr>) -> Reply {
        let (scope, pool) = (self.scope, self.scope.pool());
        let mut reply = Encoder::new(self.request, answer, self.server);
        if answer == Answer::Ack {
            reply.ciaddr(self.request.ciaddr);
        }
        if let Some(address) = address {
            reply.yiaddr(address);
            let lease = pool.lease;
            reply.option(code::LEASE_TIME, &seconds(lease));
            // RFC 2131 §4.4.5: T1 and T2.
            reply.option(code::RENEWAL, &seconds(lease / 2)).option(code::REBINDING, &seconds(lease / 8 * 7));
        }
        reply.option(code::SUBNET_MASK, &scope.netmask().octets());
        let extra = self.client.map_or(&[][..], |client| &client.options);
        let given = |code| extra.iter().any(|option| option.code == code);
        if let Some(router) = pool.router.filter(|_| !given(code::ROUTER)) {
            reply.option(code::ROUTER, &router.octets());
        }
        boot::hand_out(&mut reply, scope.site(), self.request, &self.asker.machine, self.client);
        if let Some(client) = self.client {
            reply.option(code::HOST_NAME, client.name.as_str().as_bytes());
        }
        if !pool.dns.is_empty() && !given(code::NAME_SERVERS) {
            let servers: Vec<u8> = pool.dns.iter().take(MAX_DNS).flat_map(Ipv4Addr::octets).collect();
            reply.option(code::NAME_SERVERS, &servers);
        }
        reply.option(code::BROADCAST, &scope.broadcast().octets());
        // Firmware and loaders read 43 as instructions for booting, which are ours.
        let boots = self.asker.machine.netboot || self.asker.machine.ipxe;
        for ExtraOption { code, value } in extra.iter().filter(|option| !(boots && option.code == code::VENDOR)) {
            reply.option(*code, value);
        }
        let to = match address {
            _ if !self.request.ciaddr.is_unspecified() && answer == Answer::Ack => {
                Destination::Unicast(self.request.ciaddr)
            }
            Some(ip) if !self.request.wants_broadcast() => Destination::Frame { ip, mac: self.request.mac },
            _ => Destination::Broadcast,
        };
        finish(self.request, reply, to)
    }
}

/// What a relay brought goes back to it, wherever else it would go (RFC 2131 §4.1). Options 118 and 61 come back as they were
/// sent (RFC 3011, RFC 6842); 61 last, because it can be so long that it leaves no room for others.
fn finish(request: &Request, mut reply: Encoder, to: Destination) -> Reply {
    let mut to = to;
    if !(request.giaddr.is_unspecified() || matches!(to, Destination::Asker(_))) {
        to = Destination::Relay(request.giaddr);
        if let Some(selected) = request.option(code::SUBNET_SELECTION) {
            reply.option(code::SUBNET_SELECTION, selected);
        }
    }
    if let Some(id) = request.option(code::CLIENT_ID) {
        reply.option(code::CLIENT_ID, id);
    }
    let (bytes, left_out) = reply.finish();
    Reply { bytes, to, left_out }
}

/// A client's machine, or one that boots from the network, took another server's offer.
fn took_other(asker: &Asker, server: Ipv4Addr) -> Option<Note> {
    (asker.client.is_some() || asker.machine.netboot || asker.machine.ipxe).then(|| Note {
        mac: asker.mac,
        client: asker.client.clone(),
        stage: Stage::Offer,
        detail: format!("it took the offer of {server}, another DHCP server"),
        fact: Some(Fact::TookOther { server }),
    })
}

/// A time as options 51, 58 and 59 have it. All ones would mean "for ever" (RFC 2131 §3.3), which no lease is.
fn seconds(span: Duration) -> [u8; 4] {
    u32::try_from(span.as_secs()).unwrap_or(u32::MAX).min(u32::MAX - 1).to_be_bytes()
}
