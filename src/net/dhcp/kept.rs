//! DHCP's packets, as they are kept for `roost packets`: what came, what was decided about it, and what left.

use std::borrow::Cow;
use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddrV4, SocketAddrV6};

use crate::app::App;
use crate::app::packets::{Datagram, Decision, Direction, Packet, Protocol};
use crate::dhcp::others::Answer;
use crate::dhcp::{BOOT_SERVER_PORT, Machine, Outcome, Reason, architecture_name, v6};
use crate::fleet::Mac;

/// Nobody's hardware address, or one that is not known.
const NOBODY: [u8; 6] = [0; 6];
const EVERYBODY: [u8; 6] = [0xff; 6];

/// Where packets come and go: the hardware address of one interface.
#[derive(Debug, Clone, Copy)]
pub(super) struct Keeping {
    own: [u8; 6],
}

impl Keeping {
    pub(super) fn on(own: Option<[u8; 6]>) -> Self {
        Self { own: own.unwrap_or(NOBODY) }
    }

    /// A packet came from `from` to `to`.
    pub(super) fn came(self, app: &App, from: SocketAddrV4, to: SocketAddrV4, bytes: &[u8], outcome: &Outcome) {
        let Some(mac) = machine_of(bytes) else { return };
        let asker = outcome.asker.as_ref();
        let what = asker.map_or(Cow::Borrowed("no request"), |asker| question(asker.kind.word(), &asker.machine));
        let decision = match &outcome.reason {
            Reason::Refused { .. } => Decision::Refused,
            _ if outcome.reply.is_some() => Decision::Answered,
            reason if reason.is_done() => Decision::Noted,
            _ => Decision::Ignored,
        };
        let datagram = Datagram {
            // What a relay brings has the relay's address, which no socket tells.
            source: if relayed(bytes) { NOBODY } else { mac.octets() },
            destination: if to.ip().is_broadcast() { EVERYBODY } else { self.own },
            from: from.into(),
            to: to.into(),
            payload: bytes.into(),
        };
        let packet = Packet {
            direction: Direction::In,
            protocol: protocol(to),
            what,
            decision,
            code: outcome.reason.word(),
            reason: outcome.reason.to_string().into(),
            datagram: Some(datagram),
        };
        app.recorder.packets().add(mac, asker.is_some_and(|asker| asker.client.is_some()), packet);
    }

    /// An answer left, or did not, for this reason.
    pub(super) fn left<E: fmt::Display>(
        self,
        app: &App,
        from: SocketAddrV4,
        to: SocketAddrV4,
        bytes: &[u8],
        sent: Result<(), E>,
    ) {
        let Some(mac) = machine_of(bytes) else { return };
        let (decision, code, reason) = left(sent);
        let destination = match () {
            () if to.ip().is_broadcast() => EVERYBODY,
            () if relayed(bytes) => NOBODY,
            () => mac.octets(),
        };
        let packet = Packet {
            direction: Direction::Out,
            protocol: protocol(from),
            what: answer(bytes).into(),
            decision,
            code,
            reason,
            datagram: Some(Datagram {
                source: self.own,
                destination,
                from: from.into(),
                to: to.into(),
                payload: bytes.into(),
            }),
        };
        app.recorder.packets().add(mac, app.fleet().by_mac(mac).is_some(), packet);
    }

    /// A packet came over IPv6. What tells no machine is nobody's.
    pub(super) fn came_over_ipv6(
        self,
        app: &App,
        arrival: &v6::Arrival,
        to: SocketAddrV6,
        bytes: &[u8],
        outcome: &v6::Outcome,
    ) {
        let Some(asker) = &outcome.asker else { return };
        let datagram = Datagram {
            source: arrival.neighbour.map_or(NOBODY, Mac::octets),
            destination: if to.ip().is_multicast() { group(*to.ip()) } else { self.own },
            from: arrival.from.into(),
            to: to.into(),
            payload: bytes.into(),
        };
        let packet = Packet {
            direction: Direction::In,
            protocol: protocol6(to),
            what: question(asker.kind.word(), &asker.machine),
            decision: if outcome.reply.is_some() { Decision::Answered } else { Decision::Ignored },
            code: outcome.reason.word(),
            reason: outcome.reason.to_string().into(),
            datagram: Some(datagram),
        };
        app.recorder.packets().add(asker.mac, asker.client.is_some(), packet);
    }

    /// Its answer left for this hardware, or did not.
    pub(super) fn left_over_ipv6<E: fmt::Display>(
        self,
        app: &App,
        from: SocketAddrV6,
        destination: [u8; 6],
        outcome: &v6::Outcome,
        sent: Result<(), E>,
    ) {
        let (Some(asker), Some(reply)) = (&outcome.asker, &outcome.reply) else { return };
        let (decision, code, reason) = left(sent);
        let (to, payload) = (reply.to.into(), reply.bytes.as_slice().into());
        let packet = Packet {
            direction: Direction::Out,
            protocol: protocol6(from),
            what: answer6(&reply.bytes).into(),
            decision,
            code,
            reason,
            datagram: Some(Datagram { source: self.own, destination, from: from.into(), to, payload }),
        };
        app.recorder.packets().add(asker.mac, asker.client.is_some(), packet);
    }
}

/// What became of an answer.
fn left<E: fmt::Display>(sent: Result<(), E>) -> (Decision, &'static str, Cow<'static, str>) {
    match sent {
        Ok(()) => (Decision::Sent, "sent", Cow::Borrowed("")),
        Err(error) => (Decision::Failed, "not-sent", error.to_string().into()),
    }
}

/// A question in a few words: `DISCOVER, UEFI x64`.
fn question(kind: &'static str, machine: &Machine) -> Cow<'static, str> {
    let architecture = || architecture_name(machine.architecture.unwrap_or(0));
    match (machine.ipxe, machine.netboot) {
        (true, _) => format!("{kind} of iPXE, {}", architecture()).into(),
        (false, true) => format!("{kind}, {}", architecture()).into(),
        (false, false) => kind.into(),
    }
}

/// Another server's answer to a machine was overheard.
pub(super) fn overheard(app: &App, from: SocketAddrV4, to: SocketAddrV4, bytes: &[u8], answer: &Answer) {
    let known = app.fleet().by_mac(answer.mac).is_some();
    let packet = Packet {
        direction: Direction::Heard,
        protocol: Protocol::Dhcp,
        what: answer.words().into(),
        decision: Decision::Noted,
        code: "overheard",
        reason: "another server's answer".into(),
        datagram: Some(Datagram {
            source: NOBODY,
            destination: EVERYBODY,
            from: from.into(),
            to: to.into(),
            payload: bytes.into(),
        }),
    };
    app.recorder.packets().add(answer.mac, known, packet);
}

fn protocol(own: SocketAddrV4) -> Protocol {
    if own.port() == BOOT_SERVER_PORT { Protocol::Pxe } else { Protocol::Dhcp }
}

fn protocol6(own: SocketAddrV6) -> Protocol {
    if own.port() == BOOT_SERVER_PORT { Protocol::Pxe } else { Protocol::Dhcpv6 }
}

/// The Ethernet address of a group (RFC 2464 §7).
fn group(group: Ipv6Addr) -> [u8; 6] {
    let [.., a, b, c, d] = group.octets();
    [0x33, 0x33, a, b, c, d]
}

/// The machine that a DHCP packet is of (`chaddr`, RFC 2131 §2).
fn machine_of(bytes: &[u8]) -> Option<Mac> {
    Mac::from_octets(bytes.get(28..34)?.try_into().ok()?)
}

/// A relay brought it, or brings it on (`giaddr`).
fn relayed(bytes: &[u8]) -> bool {
    bytes.get(24..28).is_some_and(|giaddr| giaddr != [0; 4])
}

/// An answer of our own in a few words. Its first option is its kind, always.
fn answer(bytes: &[u8]) -> String {
    let kind = match bytes.get(240..243) {
        Some([53, 1, 2]) => "OFFER",
        Some([53, 1, 5]) => "ACK",
        Some([53, 1, 6]) => "NAK",
        _ => "answer",
    };
    let address = bytes.get(16..20).and_then(|octets| <[u8; 4]>::try_from(octets).ok()).map(Ipv4Addr::from);
    match address.filter(|address| !address.is_unspecified()) {
        Some(address) => format!("{kind} of {address}"),
        None => kind.to_owned(),
    }
}

/// The same of DHCPv6, whose first byte is its kind (RFC 8415 §7.3).
fn answer6(bytes: &[u8]) -> &'static str {
    match bytes.first() {
        Some(2) => "ADVERTISE",
        Some(7) => "REPLY",
        Some(13) => "RELAY-REPL",
        _ => "answer",
    }
}
