//! What a machine told about itself, and which part of the boot chain it gets: a loader, a script, or an address alone
//! (RFC 4578, PXE 2.1).
//!
//! Not here: which disk it boots. That is the script's matter.

use std::fmt;

use super::wire::{Request, code};

/// The loader for BIOS machines, which uses the network driver of the card's own ROM.
pub const BIOS_LOADER: &str = "undionly.kpxe";
/// The loader for x64 UEFI machines, which uses the firmware's own network driver.
pub const UEFI_X64_LOADER: &str = "snponly.efi";

/// What a request tells of its machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Machine {
    /// It boots from the network: option 60 begins with `PXEClient` or `HTTPClient`, or option 93 is there. Neither 94 nor 97
    /// is asked for, since some network cards leave them out.
    pub netboot: bool,
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
            netboot: architectures.is_some() || class.starts_with(b"PXEClient") || class.starts_with(b"HTTPClient"),
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
            Self { netboot: true, architecture, .. } => {
                // An old ROM that says nothing about itself is a BIOS.
                let architecture = architecture.unwrap_or(0);
                match architecture {
                    0 => Handout::Loader(BIOS_LOADER),
                    // 9 is "EBC" on paper; RFC 4578 had 7 and 9 the wrong way round, and x64 firmware sends either.
                    7 | 9 => Handout::Loader(UEFI_X64_LOADER),
                    other => Handout::NoLoader(other),
                }
            }
            _ => Handout::AddressOnly,
        }
    }
}

/// What goes with an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Handout {
    /// Nothing: it does not boot from the network.
    AddressOnly,
    /// The name of a loader, by TFTP.
    Loader(&'static str),
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
            Self::Script => f.write_str("its boot script"),
            Self::NoLoader(architecture) => {
                write!(f, "no boot file: there is no loader for {}", architecture_name(*architecture))
            }
        }
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
