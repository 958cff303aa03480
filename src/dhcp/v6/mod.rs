//! Booting over IPv6, beside whoever gives the addresses there, as a pure function: [`handle`] takes a packet and says what to
//! answer and why (RFC 8415, RFC 5970, UEFI 2.10 §24).
//!
//! Addresses are another server's matter. UEFI firmware takes one from DHCPv6 alone: it looks for servers (SOLICIT), waits some
//! seconds for all of them, and takes the address of one together with the boot file of another. Our ADVERTISE has no address
//! and calls itself `PXEClient` or `HTTPClient`, by which firmware knows it for such a one. Firmware that boots by TFTP then asks
//! once more on port 4011; firmware that boots by HTTP goes by the ADVERTISE. Who has an address already and asks for the
//! rest (INFORMATION-REQUEST) is told the same.
//!
//! Which loader, and for whom, is decided by the same code as over IPv4 ([`Machine`], [`Guide`]).
//!
//! Not here: addresses, routers and name servers, which are the network's own; sockets (`net::dhcp`).

#[cfg(any(test, fuzzing))]
pub mod fuzz;
#[cfg(test)]
mod tests;
mod wire;

use std::fmt;
use std::net::{Ipv6Addr, SocketAddr, SocketAddrV6};

pub use wire::{Kind, Malformed};
use wire::{Request, class_parts, code, message};

use super::boot::{HTTP_CLIENT, Handout, Machine, PXE_CLIENT};
use super::guide::Way;
use super::{BOOT_SERVER_PORT, Guide, Lesson, Note, Role, Site as Wired};
use crate::fleet::policy::{Plan, boot_plan};
use crate::fleet::{ClientName, Fleet, Mac, Stage, web};

/// The port that servers and relays listen on (RFC 8415 §7.2).
pub const SERVER_PORT: u16 = 547;
/// The port that clients listen on (RFC 8415 §7.2).
pub const CLIENT_PORT: u16 = 546;
/// Most bytes of an answer: what every IPv6 network carries whole (RFC 8200 §5), without the headers of IPv6 and UDP. Without
/// relays it is half of that: an identifier, and a URL with the name of a file.
pub const LARGEST_REPLY: usize = 1280 - 40 - 8;
/// Most associations of one request that are told that there is no address for them; firmware has one.
const MAX_ASSOCIATIONS: usize = 4;
/// Intel's enterprise number, under which firmware and its servers write their vendor class (UEFI 2.10 §24.3.2, §24.7.2).
const INTEL: u32 = 343;
/// Status "NoAddrsAvail" (RFC 8415 §21.13).
const NO_ADDRESSES: u16 = 2;

/// Where machines on a wire find us by IPv6.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Site {
    /// Our address for TFTP and HTTP. No link-local one.
    pub address: Ipv6Addr,
    /// The hardware address of the interface, which our server identifier is made of (DUID-LL, RFC 8415 §11.4).
    pub mac: Mac,
    /// What they may expect of us, as over IPv4.
    pub wired: Wired,
}

impl Site {
    fn duid(&self) -> [u8; 10] {
        let [a, b, c, d, e, f] = self.mac.octets();
        [0, 3, 0, 1, a, b, c, d, e, f]
    }

    fn http(&self) -> SocketAddr {
        (self.address, self.wired.http_port).into()
    }
}

/// Which of our sockets a packet came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Port {
    /// Port 547, where everybody is asked.
    Servers,
    /// Port 4011, where we alone are.
    BootServer,
}

/// How a packet came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Arrival {
    /// Who sent it: a client, or a relay.
    pub from: SocketAddrV6,
    /// Where to.
    pub port: Port,
    /// The machine that is seen to use that address, if one is.
    pub neighbour: Option<Mac>,
}

/// What came of a packet.
#[derive(Debug, PartialEq, Eq)]
pub struct Outcome {
    /// Who asked; `None` for what is no request, or says nothing of its machine.
    pub asker: Option<Asker>,
    /// What was done, or why nothing.
    pub reason: Reason,
    /// What to send.
    pub reply: Option<Reply>,
    /// A stage of a boot that the machine reached.
    pub note: Option<Note>,
}

impl Outcome {
    /// Lets the guide take in what came of the packet, after it was answered. Returns what an operator should know of it.
    pub fn teach(&self, guide: &Guide) -> Lesson {
        let (handout, asked) = match self.reason {
            Reason::Offered(handout) => (handout, false),
            Reason::Told(handout) => (handout, true),
            _ => return Lesson::default(),
        };
        let Some(asker) = &self.asker else { return Lesson::default() };
        guide.take_in(asker.mac, asker.client.as_ref(), &asker.machine, Way::Six, handout, asked)
    }
}

/// Who asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Asker {
    /// Its hardware address, as far as it can be known.
    pub mac: Mac,
    /// What it asked.
    pub kind: Kind,
    /// In whose place it stands.
    pub client: Option<ClientName>,
    /// What it told about itself.
    pub machine: Machine,
}

/// A packet to send.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reply {
    /// The DHCPv6 message, of [`LARGEST_REPLY`] bytes at most.
    pub bytes: Vec<u8>,
    /// Where to.
    pub to: SocketAddrV6,
}

/// What was done with a packet, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reason {
    /// Answered, beside the server that gives its address: an offer of a boot file.
    Offered(Handout),
    /// Answered: which file to boot.
    Told(Handout),
    /// Ignored: its address is another server's matter.
    Elsewhere,
    /// Ignored: nothing that port 4011 is for.
    NotForBootServer(Kind),
    /// Ignored: it is no request.
    Malformed(Malformed),
    /// Ignored: nothing tells which machine sent it.
    Nobody,
    /// Ignored: it stands in no client's place, and another server gives its address.
    Stranger,
    /// Ignored: it does not boot from the network.
    NoNetboot,
    /// Ignored: there is no loader for this architecture.
    NoLoader(u16),
    /// Ignored: the client is `off`.
    OutOfService(ClientName),
    /// Ignored: an answer that its relays could take back would be larger than all networks carry.
    TooLong(usize),
}

impl Reason {
    /// What it is in one word, for programs.
    #[must_use]
    pub fn word(&self) -> &'static str {
        match self {
            Self::Offered(_) => "offered-boot",
            Self::Told(_) => "told-boot",
            Self::Elsewhere => "elsewhere",
            Self::NotForBootServer(_) => "not-for-boot-server",
            Self::Malformed(_) => "malformed",
            Self::Nobody => "nobody",
            Self::Stranger => "stranger",
            Self::NoNetboot => "no-netboot",
            Self::NoLoader(_) => "no-loader",
            Self::OutOfService(_) => "out-of-service",
            Self::TooLong(_) => "too-long",
        }
    }

    /// An operator should look at this: somebody gets no loader.
    #[must_use]
    pub fn is_alarming(&self) -> bool {
        matches!(self, Self::NoLoader(_))
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Offered(handout) => write!(f, "offered {handout}, beside the server that gives its address"),
            Self::Told(handout) => write!(f, "told {handout}"),
            Self::Elsewhere => f.write_str("ignored: its address is another server's matter"),
            Self::NotForBootServer(kind) => {
                write!(f, "ignored: {kind:?} is nothing that port {BOOT_SERVER_PORT} is for")
            }
            Self::Malformed(why) => write!(f, "ignored: {why}"),
            Self::Nobody => f.write_str("ignored: neither its identifier nor its address tells a MAC address"),
            Self::Stranger => f.write_str("ignored: no client has this MAC, and another server gives its address"),
            Self::NoNetboot => f.write_str("ignored: it does not boot from the network"),
            Self::NoLoader(architecture) => write!(f, "ignored: {}", Handout::NoLoader(*architecture)),
            Self::OutOfService(name) => write!(f, "ignored: {name} is out of service (off = true)"),
            Self::TooLong(len) => write!(f, "ignored: its answer would have {len} bytes; {LARGEST_REPLY} are the most"),
        }
    }
}

/// Handles one packet.
#[must_use]
pub fn handle(fleet: &Fleet, site: &Site, arrival: &Arrival, bytes: &[u8]) -> Outcome {
    let silent = |asker, reason| Outcome { asker, reason, reply: None, note: None };
    let request = match Request::parse(bytes) {
        Ok(request) => request,
        Err(why) => return silent(None, Reason::Malformed(why)),
    };
    let Some(mac) = machine_of(fleet, arrival, &request) else { return silent(None, Reason::Nobody) };
    let plan = boot_plan(fleet, mac);
    let client = match plan {
        Plan::Boot(client) | Plan::Off(client) => Some(client),
        Plan::Unknown => None,
    };
    let machine = told_of_itself(&request);
    let asker = Asker { mac, kind: request.kind, client: client.map(|client| client.name.clone()), machine };
    let ours = request.options.first(code::SERVER_ID).is_none_or(|id| id == site.duid());
    let ignored = match (plan, request.kind, arrival.port) {
        (Plan::Off(client), ..) => Some(Reason::OutOfService(client.name.clone())),
        (Plan::Unknown, ..) if site.wired.role == Role::Proxy => Some(Reason::Stranger),
        (_, kind @ (Kind::Solicit | Kind::Address), Port::BootServer) => Some(Reason::NotForBootServer(kind)),
        (_, Kind::Address, _) => Some(Reason::Elsewhere),
        // A request names the server that it is for (RFC 8415 §16.4).
        (_, Kind::Request, _) if request.options.first(code::SERVER_ID).is_none() || !ours => Some(Reason::Elsewhere),
        (_, Kind::Information, _) if !ours => Some(Reason::Elsewhere),
        // It goes by the one answer that has an address; firmware alone puts two together.
        (_, Kind::Solicit, _) if machine.ipxe => Some(Reason::Elsewhere),
        _ if !(machine.netboot || machine.ipxe) => Some(Reason::NoNetboot),
        _ => None,
    };
    if let Some(reason) = ignored {
        return silent(Some(asker), reason);
    }
    let exchange = match request.kind {
        Kind::Solicit | Kind::Information => super::Kind::Discover,
        Kind::Request | Kind::Address => super::Kind::Request,
    };
    let known = site.wired.guide.known(mac, exchange, machine.exchange);
    let handout = machine.handout(&site.wired, client, known);
    let at =
        if arrival.port == Port::BootServer { format!(", asked on port {BOOT_SERVER_PORT}") } else { String::new() };
    let detail = format!("{}, over IPv6{at}", handout.to(&machine));
    let note = Some(Note { mac, client: asker.client.clone(), stage: Stage::Offer, detail, fact: handout.fact() });
    if let Handout::NoLoader(architecture) = handout {
        return Outcome { note, ..silent(Some(asker), Reason::NoLoader(architecture)) };
    }
    let bytes = match relayed(&request, answer(site, &request, handout)) {
        Ok(bytes) => bytes,
        Err(len) => return silent(Some(asker), Reason::TooLong(len)),
    };
    let mut to = arrival.from;
    match arrival.port {
        _ if !request.relays.is_empty() => to.set_port(SERVER_PORT),
        Port::Servers => to.set_port(CLIENT_PORT),
        Port::BootServer => {}
    }
    let reason = if request.kind == Kind::Solicit { Reason::Offered(handout) } else { Reason::Told(handout) };
    Outcome { asker: Some(asker), reason, reply: Some(Reply { bytes, to }), note }
}

/// The machine that asks. Firmware makes its identifier out of a hardware address or out of the SMBIOS UUID; the first word
/// that names a client counts, else the first word. All of them are claims: they decide which loader somebody is told, and
/// nothing else.
fn machine_of(fleet: &Fleet, arrival: &Arrival, request: &Request<'_>) -> Option<Mac> {
    let (neighbour, peer) = match request.relays.last() {
        Some(relay) => (None, relay.peer),
        None => (arrival.neighbour, *arrival.from.ip()),
    };
    let words = [request.relayed_mac(), request.duid_mac(), neighbour, wire::mac_of_link_local(peer)];
    let mut macs = words.into_iter().flatten();
    macs.clone().find(|mac| fleet.by_mac(*mac).is_some()).or_else(|| macs.next())
}

/// What a request tells of its machine (RFC 5970 §3.3, RFC 8415 §21.9, §21.15, §21.16).
fn told_of_itself(request: &Request<'_>) -> Machine {
    let options = request.options;
    let class = |begin: &[u8]| {
        let mut classes = options.all(code::VENDOR_CLASS).filter_map(|class| class.split_at_checked(4));
        classes.any(|(_, parts)| class_parts(parts).any(|part| part.starts_with(begin)))
    };
    let architectures = options.first(code::ARCHITECTURE);
    let http = class(HTTP_CLIENT);
    let [a, b, c] = request.transaction;
    Machine {
        netboot: architectures.is_some() || http || class(PXE_CLIENT),
        http,
        ipxe: options
            .all(code::USER_CLASS)
            .flat_map(class_parts)
            .any(|part| part.windows(4).any(|word| word == b"iPXE")),
        features: None,
        architecture: architectures.and_then(|list| list.first_chunk()).map(|first| u16::from_be_bytes(*first)),
        uuid: None,
        raspberry_pi: false,
        // No exchange over IPv4 that begins with it comes from the same machine in the same moment.
        exchange: [6, a, b, c],
        secs: options.first(code::ELAPSED).and_then(|time| time.try_into().ok()).map_or(0, u16::from_be_bytes) / 100,
    }
}

/// The answer, as the client gets it.
fn answer(site: &Site, request: &Request<'_>, handout: Handout) -> Vec<u8> {
    let kind = if request.kind == Kind::Solicit { message::ADVERTISE } else { message::REPLY };
    let [a, b, c] = request.transaction;
    let mut bytes = vec![kind, a, b, c];
    if let Some(id) = request.options.first(code::CLIENT_ID) {
        put(&mut bytes, code::CLIENT_ID, id);
    }
    put(&mut bytes, code::SERVER_ID, &site.duid());
    // An ADVERTISE that said so, too, as RFC 8415 §18.3.9 wants it, firmware would throw away with the boot file in it.
    if request.kind == Kind::Request {
        let associations = request.options.all(code::IA_NA).filter_map(|association| association.first_chunk::<4>());
        for id in associations.take(MAX_ASSOCIATIONS) {
            let mut association = [&id[..], &[0; 8]].concat();
            put(&mut association, code::STATUS, &NO_ADDRESSES.to_be_bytes());
            put(&mut bytes, code::IA_NA, &association);
        }
    }
    let (url, class) = match handout {
        Handout::Loader(name) => (web::tftp_url(site.address, name), Some(PXE_CLIENT)),
        Handout::LoaderUrl(name) => (web::url(site.http(), name), Some(HTTP_CLIENT)),
        Handout::Chain(name) => (web::tftp_url(site.address, name), None),
        Handout::Script => (web::script_url(site.http()), None),
        // A root path goes with an IPv4 address: there the disks are.
        Handout::AddressOnly | Handout::RootPath | Handout::NoLoader(_) => return bytes,
    };
    put(&mut bytes, code::BOOT_FILE_URL, url.as_bytes());
    // Firmware reads the URL up to the next zero, which the code of a further option begins with; so one always follows.
    let class = class.unwrap_or_default();
    let len = u16::try_from(class.len()).expect("a word of ours");
    put(&mut bytes, code::VENDOR_CLASS, &[&INTEL.to_be_bytes()[..], &len.to_be_bytes(), class].concat());
    bytes
}

/// The answer as the last relay gets it: each takes off its own part (RFC 8415 §19.3). Else, how long it would become.
fn relayed(request: &Request<'_>, answer: Vec<u8>) -> Result<Vec<u8>, usize> {
    request.relays.iter().rev().try_fold(answer, |inner, relay| {
        let id = relay.options.first(code::INTERFACE_ID);
        let len = wire::RELAY_HEADER + 4 + inner.len() + id.map_or(0, |id| 4 + id.len());
        if len > LARGEST_REPLY {
            return Err(len);
        }
        let mut bytes = Vec::with_capacity(len);
        bytes.extend([message::RELAY_REPLY, relay.hops]);
        bytes.extend(relay.link);
        bytes.extend(relay.peer.octets());
        if let Some(id) = id {
            put(&mut bytes, code::INTERFACE_ID, id);
        }
        put(&mut bytes, code::RELAY_MESSAGE, &inner);
        Ok(bytes)
    })
}

fn put(bytes: &mut Vec<u8>, code: u16, value: &[u8]) {
    let len = u16::try_from(value.len()).expect("all that is put is shorter than an answer");
    bytes.extend(code.to_be_bytes());
    bytes.extend(len.to_be_bytes());
    bytes.extend(value);
}
