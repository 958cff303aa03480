//! DHCP's packets, as they are kept for `roost packets`: what came, what was decided about it, and what left.

use std::borrow::Cow;
use std::fmt;
use std::net::{Ipv4Addr, SocketAddrV4};

use crate::app::App;
use crate::app::packets::{Datagram, Decision, Direction, Packet, Protocol};
use crate::dhcp::others::Answer;
use crate::dhcp::{BOOT_SERVER_PORT, Outcome, Reason, architecture_name};
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
        let what = asker.map_or(Cow::Borrowed("no request"), |asker| {
            let (kind, machine) = (asker.kind.word(), &asker.machine);
            match (machine.ipxe, machine.netboot) {
                (true, _) => format!("{kind} of iPXE, {}", architecture_name(machine.architecture.unwrap_or(0))).into(),
                (false, true) => format!("{kind}, {}", architecture_name(machine.architecture.unwrap_or(0))).into(),
                (false, false) => kind.into(),
            }
        });
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
            from,
            to,
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
        let (decision, code, reason) = match sent {
            Ok(()) => (Decision::Sent, "sent", Cow::Borrowed("")),
            Err(error) => (Decision::Failed, "not-sent", error.to_string().into()),
        };
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
            datagram: Some(Datagram { source: self.own, destination, from, to, payload: bytes.into() }),
        };
        app.recorder.packets().add(mac, app.fleet().by_mac(mac).is_some(), packet);
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
        datagram: Some(Datagram { source: NOBODY, destination: EVERYBODY, from, to, payload: bytes.into() }),
    };
    app.recorder.packets().add(answer.mac, known, packet);
}

fn protocol(own: SocketAddrV4) -> Protocol {
    if own.port() == BOOT_SERVER_PORT { Protocol::Pxe } else { Protocol::Dhcp }
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
