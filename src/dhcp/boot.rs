//! What a machine told about itself, and which part of the boot chain it gets: a loader, a script, or an address alone
//! (RFC 4578, RFC 5970 §3.3, PXE 2.1, UEFI 2.10 §24.7).
//!
//! The three ways in which firmware is told are kept apart to the byte, because each firmware knows only some:
//! - BIOS gets `43 = 06 01 08 ff`: boot from the file in this packet and ask nobody else.
//! - UEFI gets the same from a server, but from a proxy no option 43 at all: much firmware ignores the file of a proxy's
//!   offer, whatever 43 says, and asks port 4011 if 43 is missing.
//! - Firmware that boots by HTTP gets an absolute URL, and heeds it only with its own `HTTPClient` in option 60.
//!
//! Not here: which disk it boots. That is the script's matter.

use std::fmt;

use super::reply::Encoder;
use super::scope::{Role, Site};
use super::wire::{Request, code};
use crate::fleet::{Client, web};

/// The loader for BIOS machines, which uses the network driver of the card's own ROM.
pub const BIOS_LOADER: &str = "undionly.kpxe";
/// The loader for x64 UEFI machines, which uses the firmware's own network driver.
pub const UEFI_X64_LOADER: &str = "snponly.efi";

/// How option 60 of a machine begins that boots by PXE; in an answer, the whole of it (PXE 2.1 §2.4).
const PXE_CLIENT: &[u8] = b"PXEClient";
/// How option 60 of a machine begins that boots by HTTP; in an answer, the whole of it (UEFI 2.10 §24.7.2).
const HTTP_CLIENT: &[u8] = b"HTTPClient";
/// PXE_DISCOVERY_CONTROL = 8, end: take the boot file from this packet and ask no boot server (PXE 2.1 §3.2.1). Without it,
/// firmware that sees `PXEClient` in option 60 asks port 4011 first.
const BOOT_FROM_FILE: [u8; 4] = [6, 1, 8, 255];
/// iPXE's encapsulated `no-pxedhcp` = 1: do not wait two seconds for a proxy. It works in the offer only.
const NO_PROXY: [u8; 3] = [0xb0, 1, 1];

/// What a request tells of its machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Machine {
    /// It boots from the network: option 60 begins with `PXEClient` or `HTTPClient`, or option 93 is there. Neither 94 nor 97
    /// is asked for, since some network cards leave them out.
    pub netboot: bool,
    /// It boots by HTTP, not by TFTP: option 60 begins with `HTTPClient`.
    pub http: bool,
    /// What runs is iPXE already.
    pub ipxe: bool,
    /// Its first client architecture (option 93, RFC 4578 §2.1).
    pub architecture: Option<u16>,
    /// Its SMBIOS UUID (option 97), in the order of the packet; `None` also where firmware sends zeros.
    pub uuid: Option<[u8; 16]>,
}

impl Machine {
    pub(super) fn of(request: &Request) -> Self {
        let class = request.option(code::VENDOR_CLASS).unwrap_or_default();
        let architectures = request.option(code::ARCHITECTURE);
        Self {
            netboot: architectures.is_some() || class.starts_with(PXE_CLIENT) || class.starts_with(HTTP_CLIENT),
            http: class.starts_with(HTTP_CLIENT),
            // iPXE sends 77 as the bare word, RFC 3004 would have a length before it; some builds of it send only 175.
            ipxe: request.option(code::USER_CLASS).is_some_and(|class| class.windows(4).any(|word| word == b"iPXE"))
                || request.option(code::IPXE).is_some(),
            architecture: architectures.and_then(|list| list.first_chunk()).map(|first| u16::from_be_bytes(*first)),
            uuid: match request.option(code::MACHINE_ID) {
                Some([0, uuid @ ..]) => uuid.try_into().ok().filter(|uuid| uuid != &[0; 16]),
                _ => None,
            },
        }
    }

    /// What goes with this machine's address.
    pub(super) fn handout(&self) -> Handout {
        match self {
            Self { ipxe: true, .. } => Handout::Script,
            Self { netboot: true, http, architecture, .. } => {
                // An old ROM that says nothing about itself is a BIOS.
                match (architecture.unwrap_or(0), http) {
                    (0, false) => Handout::Loader(BIOS_LOADER),
                    // 9 is "EBC" on paper; RFC 4578 had 7 and 9 the wrong way round, and x64 firmware sends either.
                    (7 | 9, false) => Handout::Loader(UEFI_X64_LOADER),
                    (7 | 9 | 16, true) => Handout::LoaderUrl(UEFI_X64_LOADER),
                    (other, _) => Handout::NoLoader(other),
                }
            }
            _ => Handout::AddressOnly,
        }
    }
}

/// In option 43, the boot server and the layer of its menu that a machine asks for (PXE 2.1 §2.4, PXE_BOOT_ITEM): two
/// numbers of 16 bits, which the answer repeats.
const BOOT_ITEM: u8 = 71;
/// Ends the options within option 43.
const VENDOR_END: u8 = 255;

/// The way into the boot chain, in an answer to this machine; returns what it is.
pub(super) fn hand_out(
    reply: &mut Encoder,
    site: &Site,
    request: &Request,
    machine: &Machine,
    client: Option<&Client>,
) -> Handout {
    let (handout, item) = (machine.handout(), boot_item(request));
    match handout {
        Handout::AddressOnly | Handout::NoLoader(_) => {}
        Handout::Loader(name) => {
            // Towards others these two would be a lie.
            reply.boot_file(site.server, name).option(code::VENDOR_CLASS, PXE_CLIENT);
            if item.is_none() && (site.role == Role::Server || name == BIOS_LOADER) {
                reply.option(code::VENDOR, &BOOT_FROM_FILE);
            }
        }
        Handout::LoaderUrl(name) => {
            reply.boot_file(site.server, &web::url(site.http(), name)).option(code::VENDOR_CLASS, HTTP_CLIENT);
        }
        Handout::Script => {
            reply.boot_file(site.server, &web::script_url(site.http()));
            match site.role {
                Role::Server => reply.option(code::IPXE, &NO_PROXY),
                // By this iPXE knows a proxy's offer, which it must go on waiting for.
                Role::Proxy => reply.option(code::VENDOR_CLASS, PXE_CLIENT),
            };
            if let Some(client) = client {
                // Said outright, since iPXE would else make a name of the host name.
                reply.option(code::INITIATOR, site.naming.initiator(&client.name).as_bytes());
            }
        }
    }
    if let (true, Some([a, b, c, d])) = (machine.netboot, item) {
        reply.option(code::VENDOR, &[BOOT_ITEM, 4, a, b, c, d, VENDOR_END]);
    }
    if let (true, Some(uuid)) = (machine.netboot, request.option(code::MACHINE_ID)) {
        reply.option(code::MACHINE_ID, uuid);
    }
    handout
}

/// The boot server and layer that a machine asks for.
pub(super) fn boot_item(request: &Request) -> Option<[u8; 4]> {
    let mut rest = request.option(code::VENDOR)?;
    while let [tag, tail @ ..] = rest {
        match *tag {
            0 => rest = tail,
            VENDOR_END => return None,
            tag => {
                let (len, tail) = tail.split_first()?;
                let (value, tail) = tail.split_at_checked(usize::from(*len))?;
                if tag == BOOT_ITEM {
                    return value.try_into().ok();
                }
                rest = tail;
            }
        }
    }
    None
}

/// What goes with an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Handout {
    /// Nothing: it does not boot from the network.
    AddressOnly,
    /// The name of a loader, by TFTP.
    Loader(&'static str),
    /// The name of a loader, by HTTP.
    LoaderUrl(&'static str),
    /// The address of its script: iPXE runs already.
    Script,
    /// Nothing: there is no loader for this architecture.
    NoLoader(u16),
}

impl fmt::Display for Handout {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AddressOnly => f.write_str("no boot file"),
            Self::Loader(name) => f.write_str(name),
            Self::LoaderUrl(name) => write!(f, "{name} by HTTP"),
            Self::Script => f.write_str("its boot script"),
            Self::NoLoader(architecture) => {
                write!(f, "no boot file: there is no loader for {}", architecture_name(*architecture))
            }
        }
    }
}

impl Handout {
    /// What is handed out and to what kind of machine, for a person: `its boot script (iPXE, UEFI x64)`.
    pub(super) fn to(self, machine: &Machine) -> String {
        if let Self::NoLoader(_) = self {
            return self.to_string();
        }
        let runs = if machine.ipxe { "iPXE, " } else { "" };
        format!("{self} ({runs}{})", architecture_name(machine.architecture.unwrap_or(0)))
    }
}

/// A client architecture in words (IANA, "Processor Architecture Types").
#[must_use]
pub fn architecture_name(architecture: u16) -> String {
    let name = match architecture {
        0 => "BIOS",
        6 => "UEFI IA32",
        7 | 9 => "UEFI x64",
        10 => "UEFI ARM32",
        11 => "UEFI ARM64",
        15 => "UEFI IA32 by HTTP",
        16 => "UEFI x64 by HTTP",
        18 => "UEFI ARM32 by HTTP",
        19 => "UEFI ARM64 by HTTP",
        other => return format!("architecture {other}"),
    };
    name.to_owned()
}
