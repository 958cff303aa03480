//! What relays say of a request that they bring: the subnet that it comes from, the server that its client is to know, and
//! the port that its machine is plugged into (RFC 3046, RFC 3527, RFC 5107, RFC 3011).
//!
//! Option 82 comes from switches that watch DHCP on their own ports too, without `giaddr`. Nobody proves any of it: an
//! operator who goes by ports has switches that drop what machines themselves put there.

use std::fmt::Write as _;
use std::net::Ipv4Addr;

use super::wire::{Request, code};
use crate::fleet::Port;

/// Sub-options of option 82.
mod sub {
    /// Agent circuit ID (RFC 3046 §3.1): the port.
    pub(super) const CIRCUIT: u8 = 1;
    /// Agent remote ID (RFC 3046 §3.2): the switch.
    pub(super) const REMOTE: u8 = 2;
    /// Link selection (RFC 3527 §3).
    pub(super) const LINK: u8 = 5;
    /// Server identifier override (RFC 5107 §4).
    pub(super) const SERVER: u8 = 11;
}

/// The address that says which subnet a relayed request comes from: link selection, else subnet selection (option 118), else
/// `giaddr`. `None` for a request that no relay brought: whoever is on the wire itself does not choose.
pub(super) fn link(request: &Request) -> Option<Ipv4Addr> {
    if request.giaddr.is_unspecified() {
        return None;
    }
    address(request, sub::LINK).or_else(|| request.address(code::SUBNET_SELECTION)).or(Some(request.giaddr))
}

/// The server that the client is to know, and to ask for more: the relay itself, where it wants to see every packet.
pub(super) fn server(request: &Request) -> Option<Ipv4Addr> {
    address(request, sub::SERVER)
}

/// The port that the machine is plugged into: `RELAY/CIRCUIT`.
///
/// - The circuit is the circuit ID. Without one there is no port.
/// - The relay is the remote ID; without one, `giaddr`; without either, the circuit stands alone.
/// - Each of the two is written as it is, where it is plain text; text with a type and a length before it (`01 LEN …`) is
///   plain text too, and zeros at the end count for nothing.
/// - A remote ID of six bytes, or of `00 06` and six bytes, is a MAC address: `52:54:00:00:00:01`.
/// - A circuit ID of `00 04` and four bytes is VLAN, module and port: `vlan10/1/4`.
/// - Everything else is written in hexadecimal digits: `0x0102`. A remote ID with a `/` in it is, too.
pub(super) fn port(request: &Request) -> Option<Port> {
    let information = request.option(code::RELAY_AGENT)?;
    let circuit = sub_option(information, sub::CIRCUIT).filter(|id| !id.is_empty())?;
    let circuit = match circuit {
        [0, 4, vlan @ .., module, port] if vlan.len() == 2 => {
            format!("vlan{}/{module}/{port}", u16::from_be_bytes([vlan[0], vlan[1]]))
        }
        other => text(other).unwrap_or_else(|| hexadecimal(other)),
    };
    let remote = match sub_option(information, sub::REMOTE) {
        Some([0, 6, mac @ ..]) if mac.len() == 6 => Some(colons(mac)),
        Some(mac) if mac.len() == 6 && text(mac).is_none() => Some(colons(mac)),
        Some([]) | None => None,
        Some(other) => Some(text(other).filter(|text| !text.contains('/')).unwrap_or_else(|| hexadecimal(other))),
    };
    let relay = remote.or_else(|| (!request.giaddr.is_unspecified()).then(|| request.giaddr.to_string()));
    let words = match relay {
        Some(relay) => format!("{relay}/{circuit}"),
        None => circuit,
    };
    words.parse().ok()
}

/// A sub-option of option 82 that is one address.
fn address(request: &Request, code: u8) -> Option<Ipv4Addr> {
    let octets: [u8; 4] = sub_option(request.option(code::RELAY_AGENT)?, code)?.try_into().ok()?;
    Some(Ipv4Addr::from(octets)).filter(|address| !address.is_unspecified())
}

/// The first sub-option of this code; one that is cut short, and all behind it, is not there.
fn sub_option(mut information: &[u8], wanted: u8) -> Option<&[u8]> {
    while let [code, len, rest @ ..] = information {
        let (value, rest) = rest.split_at_checked(usize::from(*len))?;
        if *code == wanted {
            return Some(value);
        }
        information = rest;
    }
    None
}

/// Bytes that are plain text, without what stands around it.
fn text(bytes: &[u8]) -> Option<String> {
    let bytes = match bytes {
        [1, len, text @ ..] if usize::from(*len) == text.len() => text,
        other => other,
    };
    let end = bytes.iter().rposition(|byte| *byte != 0)? + 1;
    let text = std::str::from_utf8(&bytes[..end]).ok()?.trim_matches(' ');
    let plain = !text.is_empty() && !text.starts_with("0x") && text.bytes().all(|byte| (b' '..=b'~').contains(&byte));
    plain.then(|| text.to_owned())
}

fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().fold("0x".to_owned(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}"); // a String takes everything
        text
    })
}

fn colons(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().join(":")
}
