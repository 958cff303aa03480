//! Other DHCP servers on the wire: the question that makes them show themselves, and what their answers mean for machines that
//! boot from us (RFC 2131, PXE 2.1).
//!
//! The question is a DISCOVER as UEFI's firmware sends it, in the name of a machine that does not exist; answers are never taken
//! up, so that no server gives an address away for longer than an offer lasts. It asks for broadcasts, which everybody hears.
//!
//! Not here: when to ask, and sockets (`net::dhcp`).

use std::net::Ipv4Addr;

use super::scope::Role;
use super::wire::{BOOTREPLY, BOOTREQUEST, COOKIE, ETHERNET, ETHERNET_LEN, HEADER, at, code, field, options};
use crate::fleet::{Finding, Mac};

/// What the made-up machine says to be: x64 UEFI, as most machines are.
const CLASS: &[u8] = b"PXEClient:Arch:00007:UNDI:003016";
const X64_UEFI: [u8; 2] = [0, 7];
const UNDI_3_16: [u8; 3] = [1, 3, 16];
/// What it wants to hear: what firmware wants, boot files among it.
const WANTED: [u8; 8] = [1, 3, 6, 43, 54, 60, 66, 67];
/// Longest boot file name that a finding repeats.
const MAX_FILE: usize = 128;

/// The DISCOVER of a machine that does not exist.
#[must_use]
pub fn question(mac: Mac, exchange: [u8; 4]) -> Vec<u8> {
    const BROADCAST: [u8; 2] = [0x80, 0];
    let mut bytes = vec![0; HEADER];
    bytes[0] = BOOTREQUEST;
    (bytes[1], bytes[2]) = (ETHERNET, ETHERNET_LEN);
    bytes[at::XID..at::XID + 4].copy_from_slice(&exchange);
    bytes[at::FLAGS..at::FLAGS + 2].copy_from_slice(&BROADCAST);
    bytes[at::CHADDR..at::CHADDR + 6].copy_from_slice(&mac.octets());
    bytes[at::COOKIE..].copy_from_slice(&COOKIE);
    let id = [&[0; 11][..], &mac.octets()].concat(); // type 0, and 16 bytes that are nobody's
    let told: [(u8, &[u8]); 6] = [
        (code::KIND, &[1]),
        (code::WANTED, &WANTED),
        (code::VENDOR_CLASS, CLASS),
        (code::ARCHITECTURE, &X64_UEFI),
        (code::INTERFACE, &UNDI_3_16),
        (code::MACHINE_ID, &id),
    ];
    for (code, value) in told {
        bytes.extend([code, u8::try_from(value.len()).expect("the constants above are short")]);
        bytes.extend_from_slice(value);
    }
    bytes.push(code::END);
    // Shortest that old relays and servers take (RFC 1542 §2.1).
    bytes.resize(bytes.len().max(300), 0);
    bytes
}

/// In the name of which machine a packet asks, if it is a request.
#[must_use]
pub fn asks(bytes: &[u8]) -> Option<Mac> {
    let header = bytes.first_chunk::<HEADER>()?;
    if header[0] == BOOTREQUEST { Mac::from_octets(field(header, at::CHADDR)) } else { None }
}

/// What a server said to a machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// The server, as it calls itself.
    pub server: Ipv4Addr,
    /// To which machine.
    pub mac: Mac,
    /// Whether it is an offer; else an acknowledgement.
    pub offer: bool,
    /// The address that it gives; `None` for a proxy's answer.
    pub address: Option<Ipv4Addr>,
    /// The boot file that it names, printable.
    pub file: Option<String>,
    /// It says `PXEClient` in option 60.
    pub pxe_class: bool,
    /// It has an option 43.
    pub vendor: bool,
}

impl Answer {
    /// Reads an OFFER or ACK; `None` for everything else.
    #[must_use]
    pub fn read(bytes: &[u8]) -> Option<Self> {
        let (header, rest) = bytes.split_first_chunk::<HEADER>()?;
        let reply = header[0] == BOOTREPLY && (header[1], header[2]) == (ETHERNET, ETHERNET_LEN);
        if !reply || field(header, at::COOKIE) != COOKIE {
            return None;
        }
        let options = options(header, rest);
        let offer = match options.get(&code::KIND)?.as_slice() {
            [2] => true,
            [5] => false,
            _ => return None,
        };
        let overloaded = matches!(options.get(&code::OVERLOAD).map(Vec::as_slice), Some([fields]) if fields & 1 != 0);
        let field_file = (!overloaded).then_some(&header[at::FILE..at::COOKIE]);
        let file = options.get(&code::BOOT_FILE).map(Vec::as_slice).or(field_file).map(printable);
        let some = |address: [u8; 4]| Some(Ipv4Addr::from(address)).filter(|address| !address.is_unspecified());
        Some(Self {
            server: some(options.get(&code::SERVER)?.as_slice().try_into().ok()?)?,
            mac: Mac::from_octets(field(header, at::CHADDR))?,
            offer,
            address: some(field(header, at::YIADDR)),
            file: file.filter(|file| !file.is_empty()),
            pxe_class: options.get(&code::VENDOR_CLASS).is_some_and(|class| class.starts_with(b"PXEClient")),
            vendor: options.contains_key(&code::VENDOR),
        })
    }

    /// What an operator should know about a server that answers machines so, where our own role is this one.
    #[must_use]
    pub fn findings(&self, role: Role) -> Vec<Finding> {
        let server = self.server;
        let second = (role == Role::Server && self.address.is_some()).then_some(Finding::SecondServer { server });
        let file = self.file.clone().map(|file| Finding::BootFile { server, file });
        let class = (self.pxe_class && !self.vendor).then_some(Finding::ClassAlone { server });
        [second, file, class].into_iter().flatten().collect()
    }

    /// It in a few words: `OFFER of 10.20.0.57 by 10.20.0.1, boot file pxelinux.0`.
    #[must_use]
    pub fn words(&self) -> String {
        let kind = if self.offer { "OFFER" } else { "ACK" };
        let address = self.address.map(|address| format!(" of {address}")).unwrap_or_default();
        let file = self.file.as_ref().map(|file| format!(", boot file {file}")).unwrap_or_default();
        let class = match (self.pxe_class, self.vendor) {
            (true, true) => ", options 60 and 43",
            (true, false) => ", option 60 without 43",
            (false, _) => "",
        };
        format!("{kind}{address} by {}{file}{class}", self.server)
    }
}

/// A name up to its first NUL, of bounded length, without what steers a terminal.
fn printable(name: &[u8]) -> String {
    let end = name.iter().position(|byte| *byte == 0).unwrap_or(name.len()).min(MAX_FILE);
    name[..end].iter().map(|byte| if (b' '..=b'~').contains(byte) { char::from(*byte) } else { '?' }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dhcp::wire::{Kind, Request};

    const THEM: Ipv4Addr = Ipv4Addr::new(10, 9, 0, 9);

    fn mac() -> Mac {
        "02:00:00:00:00:07".parse().unwrap()
    }

    fn answer(address: [u8; 4], file: &[u8], told: &[(u8, &[u8])]) -> Answer {
        let mut bytes = vec![0; HEADER];
        (bytes[0], bytes[1], bytes[2]) = (BOOTREPLY, ETHERNET, ETHERNET_LEN);
        bytes[at::YIADDR..at::YIADDR + 4].copy_from_slice(&address);
        bytes[at::CHADDR..at::CHADDR + 6].copy_from_slice(&mac().octets());
        bytes[at::FILE..at::FILE + file.len()].copy_from_slice(file);
        bytes[at::COOKIE..].copy_from_slice(&COOKIE);
        for (code, value) in [(53, &[2][..]), (54, &THEM.octets())].into_iter().chain(told.iter().copied()) {
            bytes.extend([code, u8::try_from(value.len()).unwrap()]);
            bytes.extend_from_slice(value);
        }
        bytes.push(255);
        Answer::read(&bytes).unwrap()
    }

    #[test]
    fn the_question_is_a_discover_of_uefi_firmware() {
        let request = Request::parse(&question(mac(), [1, 2, 3, 4])).unwrap();
        assert_eq!((request.kind, request.mac, request.xid), (Kind::Discover, mac(), [1, 2, 3, 4]));
        assert!(request.wants_broadcast() && request.giaddr.is_unspecified());
        assert_eq!(request.option(93), Some(&[0, 7][..]));
        assert_eq!(request.option(97).map(<[u8]>::len), Some(17));
    }

    #[test]
    fn a_plain_server_beside_a_proxy_is_nothing_to_tell_of() {
        let plain = answer([10, 9, 0, 57], b"", &[]);
        assert_eq!(plain.findings(Role::Proxy), []);
        assert_eq!(plain.findings(Role::Server), [Finding::SecondServer { server: THEM }]);
        assert_eq!(plain.words(), "OFFER of 10.9.0.57 by 10.9.0.9");
    }

    #[test]
    fn a_boot_file_is_found_in_either_place_and_option_60_only_without_43() {
        let of = |file: &str| [Finding::BootFile { server: THEM, file: file.to_owned() }];
        assert_eq!(answer([10, 9, 0, 57], b"pxelinux.0", &[]).findings(Role::Proxy), of("pxelinux.0"));
        assert_eq!(answer([0; 4], b"", &[(67, b"a\x1b.efi\0")]).findings(Role::Server), of("a?.efi"));
        let class = answer([10, 9, 0, 57], b"", &[(60, b"PXEClient")]);
        assert_eq!(class.findings(Role::Proxy), [Finding::ClassAlone { server: THEM }]);
        assert_eq!(answer([0; 4], b"", &[(60, b"PXEClient"), (43, &[6, 1, 8, 255])]).findings(Role::Proxy), []);
        let both = answer([10, 9, 0, 57], b"x", &[(60, b"PXEClient")]);
        assert_eq!(both.findings(Role::Server).len(), 3);
        for finding in both.findings(Role::Server) {
            assert!(finding.to_string().contains("10.9.0.9") && finding.help().contains("10.9.0.9"), "{finding}");
        }
    }

    #[test]
    fn a_file_field_that_holds_options_is_no_boot_file() {
        let overloaded = answer([10, 9, 0, 57], &[12, 1, b'x', 255], &[(52, &[1])]);
        assert_eq!(overloaded.file, None);
    }

    #[test]
    fn what_is_no_answer_is_none() {
        assert_eq!(Answer::read(&question(mac(), [0; 4])), None);
        let mut bytes = question(mac(), [0; 4]);
        bytes[0] = BOOTREPLY;
        for len in 0..bytes.len() {
            assert_eq!(Answer::read(&bytes[..len]), None, "a DISCOVER, and one from a server");
        }
    }
}
