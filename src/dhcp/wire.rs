//! What a client sent (RFC 2131 §2, RFC 2132): one gate that refuses what is no request, then options as raw bytes, each
//! decoded only when it is asked for. A malformed option is as good as absent and never hides the others.
//!
//! Not here: what the request means for addresses (`leases`) or booting (`boot`).

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use dhcproto::v4::borrowed::DhcpOptionIterator;

use crate::fleet::Mac;

/// Bytes before the options: the fixed header of BOOTP and the magic cookie.
pub(super) const HEADER: usize = 240;
/// Where the fields of the header begin (RFC 2131 §2, figure 1).
pub(super) mod at {
    pub(in super::super) const XID: usize = 4;
    pub(in super::super) const SECS: usize = 8;
    pub(in super::super) const FLAGS: usize = 10;
    pub(in super::super) const CIADDR: usize = 12;
    pub(in super::super) const YIADDR: usize = 16;
    pub(in super::super) const SIADDR: usize = 20;
    pub(in super::super) const GIADDR: usize = 24;
    pub(in super::super) const CHADDR: usize = 28;
    pub(in super::super) const SNAME: usize = 44;
    pub(in super::super) const FILE: usize = 108;
    pub(in super::super) const COOKIE: usize = 236;
}
/// Marks the options as DHCP's (RFC 2131 §3).
pub(super) const COOKIE: [u8; 4] = [99, 130, 83, 99];
/// `op` of a request, `htype` and `hlen` of Ethernet (RFC 2131 §2).
pub(super) const BOOTREQUEST: u8 = 1;
pub(super) const BOOTREPLY: u8 = 2;
pub(super) const ETHERNET: u8 = 1;
pub(super) const ETHERNET_LEN: u8 = 6;

/// Option codes (RFC 2132, RFC 3011, RFC 3046, RFC 4578, and iPXE's own 175 and 203).
pub(super) mod code {
    pub(in super::super) const SUBNET_MASK: u8 = 1;
    pub(in super::super) const ROUTER: u8 = 3;
    pub(in super::super) const NAME_SERVERS: u8 = 6;
    pub(in super::super) const HOST_NAME: u8 = 12;
    pub(in super::super) const ROOT_PATH: u8 = 17;
    pub(in super::super) const BROADCAST: u8 = 28;
    pub(in super::super) const VENDOR: u8 = 43;
    pub(in super::super) const REQUESTED: u8 = 50;
    pub(in super::super) const LEASE_TIME: u8 = 51;
    pub(in super::super) const OVERLOAD: u8 = 52;
    pub(in super::super) const KIND: u8 = 53;
    pub(in super::super) const SERVER: u8 = 54;
    pub(in super::super) const WANTED: u8 = 55;
    pub(in super::super) const MESSAGE: u8 = 56;
    pub(in super::super) const MAX_SIZE: u8 = 57;
    pub(in super::super) const RENEWAL: u8 = 58;
    pub(in super::super) const REBINDING: u8 = 59;
    pub(in super::super) const VENDOR_CLASS: u8 = 60;
    pub(in super::super) const CLIENT_ID: u8 = 61;
    pub(in super::super) const TFTP_SERVER: u8 = 66;
    pub(in super::super) const BOOT_FILE: u8 = 67;
    pub(in super::super) const USER_CLASS: u8 = 77;
    pub(in super::super) const RELAY_AGENT: u8 = 82;
    pub(in super::super) const SUBNET_SELECTION: u8 = 118;
    pub(in super::super) const ARCHITECTURE: u8 = 93;
    pub(in super::super) const INTERFACE: u8 = 94;
    pub(in super::super) const MACHINE_ID: u8 = 97;
    pub(in super::super) const IPXE: u8 = 175;
    pub(in super::super) const INITIATOR: u8 = 203;
    pub(in super::super) const END: u8 = 255;
}

/// What a client asks (option 53, RFC 2132 §9.6).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Who offers an address?
    Discover,
    /// I take this one, or keep it.
    Request,
    /// Somebody already uses this one.
    Decline,
    /// I need it no longer.
    Release,
    /// I have an address; tell me the rest.
    Inform,
}

impl Kind {
    /// The standard's word for it.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Discover => "DISCOVER",
            Self::Request => "REQUEST",
            Self::Decline => "DECLINE",
            Self::Release => "RELEASE",
            Self::Inform => "INFORM",
        }
    }
}

/// Why bytes are no request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// Shorter than the fixed header.
    #[error("{0} bytes are too few for a DHCP packet")]
    Short(usize),
    /// A reply, or nothing that BOOTP knows.
    #[error("op {0} is not a request")]
    Op(u8),
    /// Not Ethernet.
    #[error("hardware type {kind} with addresses of {len} bytes is not Ethernet")]
    Hardware {
        /// `htype`.
        kind: u8,
        /// `hlen`.
        len: u8,
    },
    /// `chaddr` is zero or a group address.
    #[error("no machine has the hardware address {0:02x?}")]
    Mac([u8; 6]),
    /// BOOTP without DHCP's options.
    #[error("it has no DHCP options")]
    Cookie,
    /// Option 53 is absent or not one byte.
    #[error("it does not say what kind of message it is")]
    NoKind,
    /// Option 53 is not something that clients send.
    #[error("message type {0} is not for a server")]
    Kind(u8),
}

/// A request that passed the gate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Request {
    pub(super) kind: Kind,
    pub(super) xid: [u8; 4],
    pub(super) secs: u16,
    pub(super) flags: [u8; 2],
    pub(super) ciaddr: Ipv4Addr,
    pub(super) giaddr: Ipv4Addr,
    pub(super) mac: Mac,
    options: BTreeMap<u8, Vec<u8>>,
}

impl Request {
    /// Reads one packet.
    pub(super) fn parse(bytes: &[u8]) -> Result<Self, Malformed> {
        let (header, rest) = bytes.split_first_chunk::<HEADER>().ok_or(Malformed::Short(bytes.len()))?;
        if header[0] != BOOTREQUEST {
            return Err(Malformed::Op(header[0]));
        }
        let (kind, len) = (header[1], header[2]);
        if (kind, len) != (ETHERNET, ETHERNET_LEN) {
            return Err(Malformed::Hardware { kind, len });
        }
        if field(header, at::COOKIE) != COOKIE {
            return Err(Malformed::Cookie);
        }
        let chaddr = field(header, at::CHADDR);
        let options = options(header, rest);
        Ok(Self {
            kind: match options.get(&code::KIND).map(Vec::as_slice) {
                Some([1]) => Kind::Discover,
                Some([3]) => Kind::Request,
                Some([4]) => Kind::Decline,
                Some([7]) => Kind::Release,
                Some([8]) => Kind::Inform,
                Some([other]) => return Err(Malformed::Kind(*other)),
                _ => return Err(Malformed::NoKind),
            },
            xid: field(header, at::XID),
            secs: u16::from_be_bytes(field(header, at::SECS)),
            flags: field(header, at::FLAGS),
            ciaddr: field(header, at::CIADDR).into(),
            giaddr: field(header, at::GIADDR).into(),
            mac: Mac::from_octets(chaddr).ok_or(Malformed::Mac(chaddr))?,
            options,
        })
    }

    /// The bytes of an option, its fragments joined (RFC 3396).
    pub(super) fn option(&self, code: u8) -> Option<&[u8]> {
        self.options.get(&code).map(Vec::as_slice)
    }

    /// An option that is one IPv4 address; one of any other length, or 0.0.0.0, is as good as absent.
    pub(super) fn address(&self, code: u8) -> Option<Ipv4Addr> {
        let octets: [u8; 4] = self.option(code)?.try_into().ok()?;
        Some(Ipv4Addr::from(octets)).filter(|address| !address.is_unspecified())
    }

    /// An option that is one 16-bit number.
    pub(super) fn number(&self, code: u8) -> Option<u16> {
        Some(u16::from_be_bytes(self.option(code)?.try_into().ok()?))
    }

    /// The client cannot receive unicast before it has its address (RFC 2131 §4.1).
    pub(super) fn wants_broadcast(&self) -> bool {
        self.flags[0] & 0x80 != 0
    }
}

pub(super) fn field<const N: usize>(header: &[u8; HEADER], at: usize) -> [u8; N] {
    header[at..at + N].try_into().expect("the fields lie within the header")
}

/// Every option, the fragments of one code joined wherever they stand: first the options field, then `file`, then `sname`,
/// where option 52 says that those hold options too (RFC 2131 §4.1, RFC 3396 §5).
pub(super) fn options(header: &[u8; HEADER], rest: &[u8]) -> BTreeMap<u8, Vec<u8>> {
    let mut options = BTreeMap::new();
    collect(&mut options, rest);
    let overload = match options.get(&code::OVERLOAD).map(Vec::as_slice) {
        Some([fields]) => *fields,
        _ => 0,
    };
    if overload & 1 != 0 {
        collect(&mut options, &header[at::FILE..at::COOKIE]);
    }
    if overload & 2 != 0 {
        collect(&mut options, &header[at::SNAME..at::FILE]);
    }
    options
}

fn collect(options: &mut BTreeMap<u8, Vec<u8>>, field: &[u8]) {
    for option in DhcpOptionIterator::new(field) {
        options.entry(option.code().into()).or_default().extend_from_slice(option.data());
    }
}
