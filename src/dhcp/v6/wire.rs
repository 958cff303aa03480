//! What a client of DHCPv6 sent, unwrapped from its relays (RFC 8415 §8, §9): one gate that refuses what is no request, then
//! options as raw bytes, each decoded only when it is asked for. A malformed option is as good as absent and never hides the
//! others; one that is longer than what is left of the packet ends the list.
//!
//! Not here: what the request means.

use std::net::Ipv6Addr;

use crate::fleet::Mac;

/// Most relays that a request may have passed (RFC 8415 §7.6, HOP_COUNT_LIMIT).
pub(super) const MAX_HOPS: usize = 8;
/// Longest DUID: a type and 128 octets (RFC 8415 §11.1).
pub(super) const MAX_DUID: usize = 130;
/// Bytes before the options: the type and the transaction (RFC 8415 §8).
const HEADER: usize = 4;
/// Bytes before the options of a relay: type, hops, link and peer (RFC 8415 §9).
pub(super) const RELAY_HEADER: usize = 34;
/// Hardware type of Ethernet (RFC 8415 §11, RFC 6939 §4).
const ETHERNET: [u8; 2] = [0, 1];

/// Message types (RFC 8415 §7.3).
pub(super) mod message {
    pub(in super::super) const ADVERTISE: u8 = 2;
    pub(in super::super) const REPLY: u8 = 7;
    pub(in super::super) const RELAY_FORWARD: u8 = 12;
    pub(in super::super) const RELAY_REPLY: u8 = 13;
}

/// Option codes (RFC 8415 §21, RFC 5970 §3, RFC 6939 §4).
pub(super) mod code {
    pub(in super::super) const CLIENT_ID: u16 = 1;
    pub(in super::super) const SERVER_ID: u16 = 2;
    pub(in super::super) const IA_NA: u16 = 3;
    pub(in super::super) const ELAPSED: u16 = 8;
    pub(in super::super) const RELAY_MESSAGE: u16 = 9;
    pub(in super::super) const STATUS: u16 = 13;
    pub(in super::super) const USER_CLASS: u16 = 15;
    pub(in super::super) const VENDOR_CLASS: u16 = 16;
    pub(in super::super) const INTERFACE_ID: u16 = 18;
    pub(in super::super) const BOOT_FILE_URL: u16 = 59;
    pub(in super::super) const ARCHITECTURE: u16 = 61;
    pub(in super::super) const LINK_LAYER_ADDRESS: u16 = 79;
}

/// What a client asks (RFC 8415 §7.3).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Who offers an address, and what goes with it?
    Solicit,
    /// I take this server's offer; on port 4011: which file do I boot?
    Request,
    /// I have an address; tell me the rest.
    Information,
    /// Anything that is about an address alone: confirm, renew, rebind, release, decline.
    Address,
}

impl Kind {
    /// What it is in one word.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Solicit => "SOLICIT",
            Self::Request => "REQUEST",
            Self::Information => "INFORMATION-REQUEST",
            Self::Address => "a message about an address",
        }
    }
}

/// Why bytes are no request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// Shorter than the fixed header.
    #[error("{0} bytes are too few for a DHCPv6 message")]
    Short(usize),
    /// Nothing that clients or relays send.
    #[error("message type {0} is not for a server")]
    Kind(u8),
    /// A relay's message with no client's in it.
    #[error("a relay brought no message")]
    NothingRelayed,
    /// More relays than there may be.
    #[error("it passed more than {MAX_HOPS} relays")]
    Hops,
    /// RFC 8415 §16.2 and §16.4 want one.
    #[error("it has no client identifier")]
    NoClientId,
    /// Longer than any DUID.
    #[error("its client identifier has {0} bytes, which no DUID has")]
    ClientId(usize),
    /// RFC 8415 §16.2: whoever looks for servers names none.
    #[error("it looks for servers, and names one")]
    NamesServer,
}

/// Options in the order of the packet.
#[derive(Debug, Clone, Copy)]
pub(super) struct Options<'a>(&'a [u8]);

impl<'a> Iterator for Options<'a> {
    type Item = (u16, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let (head, rest) = self.0.split_first_chunk::<4>()?;
        let [code_high, code_low, len_high, len_low] = *head;
        let len = usize::from(u16::from_be_bytes([len_high, len_low]));
        // What is cut is nothing, and nothing can be found behind it.
        let (value, rest) = rest.split_at_checked(len).unwrap_or_default();
        self.0 = rest;
        (value.len() == len).then_some((u16::from_be_bytes([code_high, code_low]), value))
    }
}

impl<'a> Options<'a> {
    #[cfg(test)]
    pub(super) fn of(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    /// The first option with this code.
    pub(super) fn first(self, code: u16) -> Option<&'a [u8]> {
        self.all(code).next()
    }

    /// Every option with this code.
    pub(super) fn all(mut self, code: u16) -> impl Iterator<Item = &'a [u8]> {
        std::iter::from_fn(move || self.find(|(other, _)| *other == code).map(|(_, value)| value))
    }
}

/// The parts of a class, each behind its length (RFC 8415 §21.15, §21.16).
pub(super) fn class_parts(mut rest: &[u8]) -> impl Iterator<Item = &[u8]> {
    std::iter::from_fn(move || {
        let (len, tail) = rest.split_first_chunk()?;
        let (part, tail) = tail.split_at_checked(usize::from(u16::from_be_bytes(*len)))?;
        rest = tail;
        Some(part)
    })
}

/// A relay on the way, as its answer must name it again (RFC 8415 §9.2).
#[derive(Debug, Clone, Copy)]
pub(super) struct Relay<'a> {
    pub(super) hops: u8,
    pub(super) link: [u8; 16],
    pub(super) peer: Ipv6Addr,
    pub(super) options: Options<'a>,
}

/// A request that passed the gate.
#[derive(Debug, Clone)]
pub(super) struct Request<'a> {
    pub(super) kind: Kind,
    pub(super) transaction: [u8; 3],
    pub(super) options: Options<'a>,
    /// The relays that it passed, the last one first.
    pub(super) relays: Vec<Relay<'a>>,
}

impl<'a> Request<'a> {
    /// Reads one packet.
    pub(super) fn parse(bytes: &'a [u8]) -> Result<Self, Malformed> {
        let (mut bytes, mut relays) = (bytes, Vec::new());
        while let Some(&message::RELAY_FORWARD) = bytes.first() {
            if relays.len() == MAX_HOPS {
                return Err(Malformed::Hops);
            }
            let relay = Relay::parse(bytes)?;
            bytes = relay.options.first(code::RELAY_MESSAGE).ok_or(Malformed::NothingRelayed)?;
            relays.push(relay);
        }
        let (header, rest) = bytes.split_first_chunk::<HEADER>().ok_or(Malformed::Short(bytes.len()))?;
        let [kind, transaction @ ..] = *header;
        let kind = match kind {
            1 => Kind::Solicit,
            3 => Kind::Request,
            11 => Kind::Information,
            4 | 5 | 6 | 8 | 9 => Kind::Address,
            other => return Err(Malformed::Kind(other)),
        };
        let request = Self { kind, transaction, options: Options(rest), relays };
        match request.options.first(code::CLIENT_ID) {
            None if kind != Kind::Information => Err(Malformed::NoClientId),
            Some(id) if id.len() > MAX_DUID => Err(Malformed::ClientId(id.len())),
            _ if kind == Kind::Solicit && request.options.first(code::SERVER_ID).is_some() => {
                Err(Malformed::NamesServer)
            }
            _ => Ok(request),
        }
    }

    /// The hardware address that its first relay saw it use (RFC 6939).
    pub(super) fn relayed_mac(&self) -> Option<Mac> {
        let option = self.relays.last()?.options.first(code::LINK_LAYER_ADDRESS)?;
        Mac::from_octets(option.strip_prefix(&ETHERNET)?.try_into().ok()?)
    }

    /// The hardware address in its DUID, if that is made of one (RFC 8415 §11.2, §11.4).
    pub(super) fn duid_mac(&self) -> Option<Mac> {
        match self.options.first(code::CLIENT_ID)? {
            [0, 1, 0, 1, _, _, _, _, mac @ ..] | [0, 3, 0, 1, mac @ ..] => Mac::from_octets(mac.try_into().ok()?),
            _ => None,
        }
    }
}

impl<'a> Relay<'a> {
    fn parse(bytes: &'a [u8]) -> Result<Self, Malformed> {
        let (header, options) = bytes.split_first_chunk::<RELAY_HEADER>().ok_or(Malformed::Short(bytes.len()))?;
        let address = |at: usize| <[u8; 16]>::try_from(&header[at..at + 16]).expect("it lies within the header");
        Ok(Self { hops: header[1], link: address(2), peer: address(18).into(), options: Options(options) })
    }
}

/// The hardware address that a link-local address was made of, if it looks like one that was (RFC 4291, appendix A). Firmware
/// has no other.
pub(super) fn mac_of_link_local(address: Ipv6Addr) -> Option<Mac> {
    match address.octets() {
        [0xfe, 0x80, 0, 0, 0, 0, 0, 0, a, b, c, 0xff, 0xfe, d, e, f] => Mac::from_octets([a ^ 2, b, c, d, e, f]),
        _ => None,
    }
}
