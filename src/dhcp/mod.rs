//! A DHCP server for one wire, as a pure function: [`handle`] takes a packet and says what to answer, what must be durable
//! before that, and why (RFC 2131, RFC 2132, RFC 3396, RFC 4578, RFC 6842).
//!
//! It gives addresses, and with them the way into the boot chain: firmware gets the name of a loader, iPXE the address of its
//! script. Beside a server that gives the addresses, [`proxy`] does the second half alone.
//!
//! Not here: sockets and clocks (`net::dhcp`), what a machine boots (`fleet::policy`). Not yet: relays.

mod boot;
mod guide;
mod leases;
pub mod proxy;
mod reply;
mod scope;
#[cfg(test)]
mod tests;
mod wire;

use std::fmt;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::Duration;

pub use boot::{BIOS_LOADER, Features, Handout, Machine, Missing, UEFI_X64_LOADER, architecture_name};
pub use guide::Guide;
use leases::{Claim, Rules};
pub use leases::{
    LeaseChange, Leases, MAX_OFFERS, MAX_QUARANTINED, MAX_STRANGERS, NoAddress, OFFER_HOLD, Obstacle, QUARANTINE,
};
use reply::{Answer, Encoder};
pub use scope::{Role, Scope, ScopeError, Site};
pub use wire::{Kind, Malformed};
use wire::{Request, code};

use crate::fleet::lease::MAX_DNS;
use crate::fleet::policy::{Plan, boot_plan};
use crate::fleet::{Client, ClientName, Fleet, Holder, Mac, Stage, Timestamp};

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
    /// What it told about itself.
    pub machine: Machine,
    /// The address that it uses from now on: it was just acknowledged, or it told that it has one. What it merely claimed to
    /// have does not count.
    pub address: Option<Ipv4Addr>,
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
    /// Ignored: it came through a relay.
    Relayed(Ipv4Addr),
    /// Ignored: the client is `off`.
    OutOfService(ClientName),
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
    /// An operator should look at this: somebody gets no address or no loader, or an address is in use by a machine that
    /// should not have it.
    #[must_use]
    pub fn is_alarming(&self) -> bool {
        matches!(self, Self::NoAddress(_) | Self::Declined(_) | Self::NoLoader(_))
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
            Self::Relayed(relay) => {
                write!(f, "ignored: it came through the relay {relay}, and relays are not served yet")
            }
            Self::OutOfService(name) => write!(f, "ignored: {name} is out of service (off = true)"),
            Self::NoAddress(why) => write!(f, "ignored: {why}"),
            Self::NothingAsked => f.write_str("ignored: it names no address"),
            Self::NoRecord(address) => write!(f, "ignored: it remembers {address}, of which nothing is known here"),
            Self::OtherServer(server) => write!(f, "ignored: it is for the server {server}"),
            Self::NotTheirs(address) => write!(f, "ignored: it gives back {address}, which it does not have"),
        }
    }
}

/// Handles one packet that arrived on the wire of `scope`.
pub fn handle(
    leases: &mut Leases,
    fleet: &Fleet,
    scope: &Scope,
    now: Timestamp,
    arrival: &Arrival,
    bytes: &[u8],
) -> Outcome {
    let silent = |asker, reason| Outcome { asker, reason, persist: Vec::new(), reply: None, note: None };
    let request = match Request::parse(bytes) {
        Ok(request) => request,
        Err(why) => return silent(None, Reason::Malformed(why)),
    };
    let plan = boot_plan(fleet, request.mac);
    let client = match plan {
        Plan::Boot(client) | Plan::Off(client) => Some(client),
        Plan::Unknown => None,
    };
    let exchange = Exchange::new(leases, fleet, scope, now, arrival, &request, client);
    if let Plan::Off(client) = plan {
        return silent(Some(exchange.asker), Reason::OutOfService(client.name.clone()));
    }
    if !request.giaddr.is_unspecified() {
        return silent(Some(exchange.asker), Reason::Relayed(request.giaddr));
    }
    exchange.run()
}

/// One request and everything that its answer depends on.
struct Exchange<'a> {
    leases: &'a mut Leases,
    rules: Rules<'a>,
    scope: &'a Scope,
    now: Timestamp,
    arrival: &'a Arrival,
    request: &'a Request,
    client: Option<&'a Client>,
    holder: Holder,
    asker: Asker,
}

/// What an exchange comes to, before it is dressed as an [`Outcome`].
struct Verdict {
    reason: Reason,
    persist: Vec<LeaseChange>,
    reply: Option<Reply>,
}

impl From<Reason> for Verdict {
    fn from(reason: Reason) -> Self {
        Self { reason, persist: Vec::new(), reply: None }
    }
}

impl<'a> Exchange<'a> {
    fn new(
        leases: &'a mut Leases,
        fleet: &'a Fleet,
        scope: &'a Scope,
        now: Timestamp,
        arrival: &'a Arrival,
        request: &'a Request,
        client: Option<&'a Client>,
    ) -> Self {
        let name = client.map(|client| client.name.clone());
        Self {
            leases,
            rules: Rules::new(scope, fleet),
            scope,
            now,
            arrival,
            request,
            client,
            holder: name.clone().map_or(Holder::Stranger(request.mac), Holder::Client),
            asker: Asker {
                mac: request.mac,
                kind: request.kind,
                client: name,
                machine: Machine::of(request),
                address: None,
            },
        }
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
                detail: format!("{address}, {}", handout.to(&self.asker.machine)),
            }),
            _ => None,
        };
        if let Reason::Acked(address, _) | Reason::Informed(address) = verdict.reason {
            self.asker.address = Some(address);
        }
        Outcome { asker: Some(self.asker), reason: verdict.reason, persist, reply: verdict.reply, note }
    }

    /// RFC 2131 §4.3.1.
    fn discover(&mut self) -> Verdict {
        let wish = self.request.address(code::REQUESTED);
        match self.leases.offer(&self.holder, wish, &self.rules, self.now) {
            Err(why) => Reason::NoAddress(why).into(),
            Ok(address) => Verdict {
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
            Some(server) if server != self.scope.server() => {
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
                    reason: Reason::Acked(address, state),
                    persist: self.leases.grant(&self.holder, address, self.request.mac, expires),
                    reply: Some(self.configuration(Answer::Ack, Some(address))),
                }
            }
        }
    }

    fn refuse(&mut self, address: Ipv4Addr, why: Obstacle) -> Verdict {
        self.leases.withdraw(&self.holder);
        let mut reply = Encoder::new(self.request, Answer::Nak, self.scope.server());
        reply.option(code::MESSAGE, why.to_string().as_bytes());
        // Always broadcast: the client may not have the address that it believes it has (RFC 2131 §4.1).
        let reply = finish(self.request, reply, Destination::Broadcast);
        Verdict { reply: Some(reply), ..Reason::Refused { address, why }.into() }
    }

    /// RFC 2131 §4.3.3.
    fn decline(&mut self) -> Verdict {
        match (self.request.address(code::SERVER), self.request.address(code::REQUESTED)) {
            (Some(server), _) if server != self.scope.server() => Reason::OtherServer(server).into(),
            (_, None) => Reason::NothingAsked.into(),
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
            Some(server) if server != self.scope.server() => Reason::OtherServer(server).into(),
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
        let mut reply = Encoder::new(self.request, answer, scope.server());
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
        if let Some(router) = pool.router {
            reply.option(code::ROUTER, &router.octets());
        }
        boot::hand_out(&mut reply, scope.site(), self.request, &self.asker.machine, self.client);
        if let Some(client) = self.client {
            reply.option(code::HOST_NAME, client.name.as_str().as_bytes());
        }
        if !pool.dns.is_empty() {
            let servers: Vec<u8> = pool.dns.iter().take(MAX_DNS).flat_map(Ipv4Addr::octets).collect();
            reply.option(code::NAME_SERVERS, &servers);
        }
        reply.option(code::BROADCAST, &scope.broadcast().octets());
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

/// Option 61 comes back as it was sent (RFC 6842); last, because it can be so long that it leaves no room for others.
fn finish(request: &Request, mut reply: Encoder, to: Destination) -> Reply {
    if let Some(id) = request.option(code::CLIENT_ID) {
        reply.option(code::CLIENT_ID, id);
    }
    let (bytes, left_out) = reply.finish();
    Reply { bytes, to, left_out }
}

/// A time as options 51, 58 and 59 have it. All ones would mean "for ever" (RFC 2131 §3.3), which no lease is.
fn seconds(span: Duration) -> [u8; 4] {
    u32::try_from(span.as_secs()).unwrap_or(u32::MAX).min(u32::MAX - 1).to_be_bytes()
}
