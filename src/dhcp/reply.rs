//! A reply in bytes. Its order and shape are what firmware of many years accepts: 53 and 54 first, option 82 last, no
//! padding between options, nothing in `sname` and `file` but what belongs there, 300 bytes at least (RFC 1542 §2.1).

use std::net::Ipv4Addr;

use super::wire::{BOOTREPLY, COOKIE, ETHERNET, ETHERNET_LEN, HEADER, Request, at, code};

/// Shortest BOOTP message that old relays and ROMs take (RFC 1542 §2.1).
const SHORTEST: usize = 300;
/// IP datagram that every client takes (RFC 2131 §2), and that a client without option 57 gets.
const DEFAULT_DATAGRAM: u16 = 576;
/// Largest that is sent, whatever a client says: one Ethernet frame, no fragments.
const LARGEST_DATAGRAM: u16 = 1500;
/// IPv4 and UDP headers within the datagram.
const IP_AND_UDP: u16 = 28;
/// The `file` field with its final NUL.
const FILE_FIELD: usize = at::COOKIE - at::FILE;

/// What kind of reply (option 53).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Answer {
    Offer = 2,
    Ack = 5,
    Nak = 6,
}

/// A reply in the making.
pub(super) struct Encoder {
    bytes: Vec<u8>,
    /// Option 82 and the end, which go last (RFC 3046 §2.2).
    tail: Vec<u8>,
    limit: usize,
    left_out: Vec<u8>,
}

impl Encoder {
    /// A reply to this request from this server, with the header's fields copied (RFC 2131 §4.3.1, table 3).
    pub(super) fn new(request: &Request, answer: Answer, server: Ipv4Addr) -> Self {
        let mut bytes = vec![0; HEADER];
        bytes[0] = BOOTREPLY;
        bytes[1] = ETHERNET;
        bytes[2] = ETHERNET_LEN;
        let datagram = request.number(code::MAX_SIZE).unwrap_or(DEFAULT_DATAGRAM);
        let datagram = datagram.clamp(DEFAULT_DATAGRAM, LARGEST_DATAGRAM);
        let mut reply =
            Self { bytes, tail: Vec::new(), limit: usize::from(datagram - IP_AND_UDP), left_out: Vec::new() };
        reply.put(at::XID, &request.xid);
        reply.put(at::FLAGS, &request.flags);
        if answer == Answer::Nak && !request.giaddr.is_unspecified() {
            // The relay must not send it to an address that the client may not have (RFC 2131 §4.3.2).
            reply.bytes[at::FLAGS] |= 0x80;
        }
        reply.put(at::GIADDR, &request.giaddr.octets());
        reply.put(at::CHADDR, &request.mac.octets());
        reply.put(at::COOKIE, &COOKIE);
        if let Some(information) = request.option(code::RELAY_AGENT) {
            match encode(code::RELAY_AGENT, information) {
                Some(option) => reply.tail = option,
                None => reply.left_out.push(code::RELAY_AGENT),
            }
        }
        reply.tail.push(code::END);
        reply.option(code::KIND, &[answer as u8]).option(code::SERVER, &server.octets());
        reply
    }

    pub(super) fn ciaddr(&mut self, address: Ipv4Addr) -> &mut Self {
        self.put(at::CIADDR, &address.octets());
        self
    }

    pub(super) fn yiaddr(&mut self, address: Ipv4Addr) -> &mut Self {
        self.put(at::YIADDR, &address.octets());
        self
    }

    /// A boot file on this server: `siaddr` and 66, `file` and 67, because each is the only one that somebody reads. 67 ends
    /// with a NUL *inside* its length: EDK2 writes one behind an option without it, over the next option's code.
    pub(super) fn boot_file(&mut self, server: Ipv4Addr, name: &str) -> &mut Self {
        self.put(at::SIADDR, &server.octets());
        if name.len() < FILE_FIELD {
            self.put(at::FILE, name.as_bytes());
        }
        self.option(code::TFTP_SERVER, server.to_string().as_bytes());
        self.option(code::BOOT_FILE, &[name.as_bytes(), b"\0"].concat())
    }

    /// Adds an option, unless it would make the reply larger than the client takes.
    pub(super) fn option(&mut self, code: u8, value: &[u8]) -> &mut Self {
        match encode(code, value) {
            Some(option) if self.bytes.len() + option.len() + self.tail.len() <= self.limit => {
                self.bytes.extend_from_slice(&option);
            }
            _ => self.left_out.push(code),
        }
        self
    }

    /// The reply, and the options for which it had no room.
    pub(super) fn finish(mut self) -> (Vec<u8>, Vec<u8>) {
        self.bytes.append(&mut self.tail);
        self.bytes.resize(self.bytes.len().max(SHORTEST), 0);
        (self.bytes, self.left_out)
    }

    fn put(&mut self, at: usize, field: &[u8]) {
        self.bytes[at..at + field.len()].copy_from_slice(field);
    }
}

/// One option; `None` if it is longer than one can be. Fragments (RFC 3396) are for no firmware.
fn encode(code: u8, value: &[u8]) -> Option<Vec<u8>> {
    let len = u8::try_from(value.len()).ok()?;
    Some([&[code, len], value].concat())
}
