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
use std::net::SocketAddrV4;

use super::guide::{Known, ROUNDS};
use super::reply::Encoder;
use super::scope::{Role, Site};
use super::wire::{Request, code};
pub use crate::fleet::platform::{BIOS_LOADER, UEFI_X64_LOADER};
use crate::fleet::{Client, Fact, Mac, Platform, Pxe, web};

/// How option 60 of a machine begins that boots by PXE; in an answer, the whole of it (PXE 2.1 §2.4).
pub(super) const PXE_CLIENT: &[u8] = b"PXEClient";
/// How option 60 of a machine begins that boots by HTTP; in an answer, the whole of it (UEFI 2.10 §24.7.2).
pub(super) const HTTP_CLIENT: &[u8] = b"HTTPClient";
/// PXE_DISCOVERY_CONTROL = 8, end: take the boot file from this packet and ask no boot server (PXE 2.1 §3.2.1). Without it,
/// firmware that sees `PXEClient` in option 60 asks port 4011 first.
const BOOT_FROM_FILE: [u8; 4] = [6, 1, 8, 255];
/// iPXE's encapsulated `no-pxedhcp` = 1: do not wait two seconds for a proxy. It works in the offer only.
const NO_PROXY: [u8; 3] = [0xb0, 1, 1];

/// What a Raspberry Pi wants to hear before it fetches anything: no server to discover, a menu of one item with this very
/// name, and its prompt (PXE 2.1 §3.2.1).
const RASPBERRY_PI: &[u8] = b"\x06\x01\x03\x0a\x04\x00PXE\x09\x14\x00\x00\x11Raspberry Pi Boot\xff";
/// The same for a Pi 3, in whose ROM the name ends in blanks.
const RASPBERRY_PI_3: &[u8] = b"\x06\x01\x03\x0a\x04\x00PXE\x09\x17\x00\x00\x14Raspberry Pi Boot   \xff";
/// The first half of the hardware addresses of Pis up to the 3.
const RASPBERRY_PI_3_OUI: [u8; 3] = [0xb8, 0x27, 0xeb];
/// The first halves of a Raspberry Pi's hardware address (IEEE, "MA-L").
const RASPBERRY_PI_OUIS: [[u8; 3]; 7] = [
    RASPBERRY_PI_3_OUI,
    [0xdc, 0xa6, 0x32],
    [0xe4, 0x5f, 0x01],
    [0x28, 0xcd, 0xc1],
    [0xd8, 0x3a, 0xdd],
    [0x2c, 0xcf, 0x67],
    [0x88, 0xa2, 0x9e],
];
/// How the identifier of a newer one begins; an older one's is its serial number, four times.
const RASPBERRY_PI_ID: [u8; 4] = [0x80, 0x01, 0x75, 0x90];

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
    /// What its iPXE says that it can do, where it says anything.
    pub features: Option<Features>,
    /// Its first client architecture (option 93, RFC 4578 §2.1).
    pub architecture: Option<u16>,
    /// Its SMBIOS UUID (option 97), in the order of the packet; `None` also where firmware sends zeros.
    pub uuid: Option<[u8; 16]>,
    /// It is a Raspberry Pi's own boot loader, which says that it is a BIOS.
    pub raspberry_pi: bool,
    /// The exchange that the request is part of (`xid`).
    pub exchange: [u8; 4],
    /// How many seconds it has been asking, as it says (`secs`). Some firmware swaps the two bytes on port 4011.
    pub secs: u16,
}

impl Machine {
    pub(super) fn of(request: &Request) -> Self {
        let class = request.option(code::VENDOR_CLASS).unwrap_or_default();
        let architectures = request.option(code::ARCHITECTURE);
        let architecture = architectures.and_then(|list| list.first_chunk()).map(|first| u16::from_be_bytes(*first));
        let uuid = match request.option(code::MACHINE_ID) {
            Some([0, uuid @ ..]) => uuid.try_into().ok().filter(|uuid| uuid != &[0; 16]),
            _ => None,
        };
        // Its REQUEST says neither 60 nor 93; its operating system says no 97.
        let firmware = architectures.is_some() || request.option(code::MACHINE_ID).is_some();
        let raspberry_pi = match architecture {
            Some(41) => true,
            None | Some(0) => firmware && is_raspberry_pi(request.mac, uuid),
            Some(_) => false,
        };
        Self {
            netboot: raspberry_pi
                || architectures.is_some()
                || class.starts_with(PXE_CLIENT)
                || class.starts_with(HTTP_CLIENT),
            http: class.starts_with(HTTP_CLIENT),
            // iPXE sends 77 as the bare word, RFC 3004 would have a length before it; some builds of it send only 175.
            ipxe: request.option(code::USER_CLASS).is_some_and(|class| class.windows(4).any(|word| word == b"iPXE"))
                || request.option(code::IPXE).is_some(),
            features: request.option(code::IPXE).and_then(Features::of),
            architecture,
            uuid,
            raspberry_pi,
            exchange: request.xid,
            secs: request.secs,
        }
    }

    /// The platform that its firmware is; `None` where none of ours is, or where it says two things at once.
    #[must_use]
    pub fn platform(&self) -> Option<Platform> {
        if self.raspberry_pi {
            return Some(Platform::RaspberryPi);
        }
        // An old ROM that says nothing about itself is a BIOS.
        let (platform, by_http) = platform(self.architecture.unwrap_or(0))?;
        (self.http || !by_http).then_some(platform)
    }

    /// It is U-Boot, and says so: a moment later it may ask as UEFI.
    pub(super) fn is_u_boot(&self) -> bool {
        self.architecture.is_some_and(is_u_boot)
    }

    /// What its iPXE cannot do and a boot from here needs, as far as it says.
    #[must_use]
    pub fn missing(&self) -> Option<Missing> {
        let features = self.features?;
        match (features.has(ISCSI), features.has(HTTP)) {
            (false, _) => Some(Missing::Iscsi),
            (_, false) => Some(Missing::Http),
            _ => None,
        }
    }

    /// It is an iPXE that opens disks and cannot fetch their scripts, and its client boots so.
    fn boots_by_root_path(&self, site: &Site, client: Option<&Client>) -> bool {
        // A proxy's offer without a file is none to iPXE.
        let told = site.role == Role::Server && client.is_some_and(|client| client.start.root_path);
        told && self.ipxe && self.missing() == Some(Missing::Http)
    }

    /// What goes with this machine's address. `known` is what it did before.
    pub(super) fn handout(&self, site: &Site, client: Option<&Client>, known: Known) -> Handout {
        let loaders = site.guide.loaders();
        let own = client.and_then(|client| client.start.loader.as_deref());
        let loader = |platform: Platform| {
            let of_all = loaders.of(platform)?;
            let spare = of_all.spare.filter(|_| known.told >= ROUNDS && known.told.is_multiple_of(2));
            Some(own.and_then(|name| loaders.named(name, platform)).or(spare).unwrap_or(of_all.name))
        };
        match self {
            Self { ipxe: true, .. } if self.boots_by_root_path(site, client) => Handout::RootPath,
            Self { ipxe: true, .. } => match self.missing().and(self.platform()).and_then(loader) {
                Some(name) if known.chained < ROUNDS => Handout::Chain(name),
                _ => Handout::Script,
            },
            Self { netboot: true, http, architecture, .. } => match self.platform().and_then(loader) {
                Some(name) if *http => Handout::LoaderUrl(name),
                Some(name) => Handout::Loader(name),
                None if self.raspberry_pi => Handout::NoLoader(41),
                None => Handout::NoLoader(architecture.unwrap_or(0)),
            },
            _ => Handout::AddressOnly,
        }
    }
}

fn is_raspberry_pi(mac: Mac, uuid: Option<[u8; 16]>) -> bool {
    let [a, b, c, ..] = mac.octets();
    let id = |uuid: [u8; 16]| {
        let first: [u8; 4] = [uuid[0], uuid[1], uuid[2], uuid[3]];
        let reversed = [uuid[3], uuid[2], uuid[1], uuid[0]];
        let serial = uuid.chunks_exact(4).all(|part| part == first) && first != [0xff; 4];
        serial || first == RASPBERRY_PI_ID || reversed == RASPBERRY_PI_ID
    };
    RASPBERRY_PI_OUIS.contains(&[a, b, c]) || uuid.is_some_and(id)
}

/// The platform of a client architecture, and whether it boots by HTTP alone (IANA, "Processor Architecture Types").
fn platform(architecture: u16) -> Option<(Platform, bool)> {
    Some(match architecture {
        0 => (Platform::Bios, false),
        6 => (Platform::Ia32, false),
        // 9 is "EBC" on paper; RFC 4578 had 7 and 9 the wrong way round, and x64 firmware sends either.
        7 | 9 => (Platform::X64, false),
        // 21 and 22 are U-Boot's own words for itself, which runs UEFI programs too.
        10 | 21 => (Platform::Arm32, false),
        11 | 22 => (Platform::Arm64, false),
        15 => (Platform::Ia32, true),
        16 | 17 => (Platform::X64, true),
        18 | 23 => (Platform::Arm32, true),
        19 | 24 => (Platform::Arm64, true),
        20 => (Platform::Bios, true),
        25 => (Platform::RiscV32, false),
        26 => (Platform::RiscV32, true),
        27 => (Platform::RiscV64, false),
        28 => (Platform::RiscV64, true),
        29 => (Platform::RiscV128, false),
        30 => (Platform::RiscV128, true),
        37 => (Platform::LoongArch32, false),
        38 => (Platform::LoongArch32, true),
        39 => (Platform::LoongArch64, false),
        40 => (Platform::LoongArch64, true),
        41 => (Platform::RaspberryPi, false),
        _ => return None,
    })
}

/// The architectures that U-Boot calls itself (IANA, "Processor Architecture Types").
fn is_u_boot(architecture: u16) -> bool {
    matches!(architecture, 21..=24)
}

/// iPXE's numbers for what it can do (`src/include/ipxe/features.h`): each is an option of one byte within option 175.
const FEATURES: [(u8, &str); 11] = [
    (ISCSI, "iSCSI"),
    (0x12, "AoE"),
    (HTTP, "HTTP"),
    (0x14, "HTTPS"),
    (0x17, "DNS"),
    (0x18, "bzImage"),
    (0x21, "PXE"),
    (0x24, "EFI"),
    (0x26, "VLAN"),
    (0x27, "menu"),
    (0x29, "NFS"),
];
const ISCSI: u8 = 0x11;
const HTTP: u8 = 0x13;
/// iPXE's version, three bytes.
const VERSION: u8 = 0xeb;

/// What an iPXE says of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Features {
    /// Its version.
    pub version: Option<[u8; 3]>,
    /// Bit n: it has feature number n.
    bits: u64,
}

impl Features {
    /// Reads option 175; `None` where no feature is in it, which says nothing of any.
    fn of(option: &[u8]) -> Option<Self> {
        let mut features = Self { version: None, bits: 0 };
        let mut rest = option;
        while let [tag, len, tail @ ..] = rest {
            let Some((value, tail)) = tail.split_at_checked(usize::from(*len)) else { break };
            match (*tag, value) {
                (VERSION, value) => features.version = value.first_chunk().copied(),
                (0x10..0x40, [1, ..]) => features.bits |= 1 << tag,
                _ => {}
            }
            rest = tail;
        }
        (features.bits != 0).then_some(features)
    }

    fn has(self, feature: u8) -> bool {
        self.bits & 1 << feature != 0
    }
}

impl fmt::Display for Features {
    /// `1.0.0 with iSCSI, HTTP, bzImage`
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some([major, minor, patch]) = self.version {
            write!(f, "{major}.{minor}.{patch} ")?;
        }
        let names: Vec<&str> = FEATURES.iter().filter(|(bit, _)| self.has(*bit)).map(|(_, name)| *name).collect();
        write!(f, "with {}", if names.is_empty() { "nothing that we know".to_owned() } else { names.join(", ") })
    }
}

/// Something that an iPXE cannot do, and that a boot from here needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Missing {
    /// Disks over iSCSI.
    Iscsi,
    /// Scripts by HTTP.
    Http,
}

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Iscsi => "iSCSI",
            Self::Http => "HTTP",
        })
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
    let known = site.guide.known(request.mac, request.kind, request.xid);
    let (handout, item) = (machine.handout(site, client, known), boot_item(request));
    match handout {
        Handout::AddressOnly => {
            let asked = request.option(code::WANTED).is_some_and(|wanted| wanted.contains(&code::ROOT_PATH));
            if asked && site.role == Role::Server {
                root_path(reply, site, client.filter(|client| client.start.root_path));
            }
        }
        Handout::NoLoader(_) => {}
        Handout::Loader(name) => {
            // Towards others these two would be a lie.
            reply.boot_file(site.server, name).option(code::VENDOR_CLASS, PXE_CLIENT);
            if machine.raspberry_pi {
                let older = request.mac.octets().starts_with(&RASPBERRY_PI_3_OUI);
                reply.option(code::VENDOR, if older { RASPBERRY_PI_3 } else { RASPBERRY_PI });
            } else if item.is_none() && boots_from_file(site, machine, client, known) {
                reply.option(code::VENDOR, &BOOT_FROM_FILE);
            }
        }
        // iPXE takes a bare name for a file of the TFTP server.
        Handout::Chain(name) => {
            reply.boot_file(site.server, name);
            match site.role {
                Role::Server => reply.option(code::IPXE, &NO_PROXY),
                Role::Proxy => reply.option(code::VENDOR_CLASS, PXE_CLIENT),
            };
        }
        Handout::LoaderUrl(name) => {
            reply.boot_file(site.server, &web::url(site.http(), name)).option(code::VENDOR_CLASS, HTTP_CLIENT);
        }
        // No file beside it: iPXE would open the disk, fetch the file, which it cannot, and end.
        Handout::RootPath => {
            reply.option(code::IPXE, &NO_PROXY);
            root_path(reply, site, client);
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

/// The disk itself, for what boots from iSCSI without a script: an initiator in firmware or in a card's ROM. Never beside a
/// script's address: iPXE would open the disk before the script has begun the boot, with whatever is on it from the last
/// time, and would boot from it where the script said not to.
fn root_path(reply: &mut Encoder, site: &Site, client: Option<&Client>) {
    let Some(client) = client else { return };
    let target = site.naming.target(&client.name);
    let path = web::root_path(SocketAddrV4::new(site.server, web::ISCSI_PORT), &target);
    let initiator = site.naming.initiator(&client.name);
    reply.option(code::ROOT_PATH, path.as_bytes()).option(code::INITIATOR, initiator.as_bytes());
}

/// Whether a machine is told to boot from the file that it is told, and to ask port 4011 no more.
fn boots_from_file(site: &Site, machine: &Machine, client: Option<&Client>, known: Known) -> bool {
    match client.map_or(Pxe::Auto, |client| client.start.pxe) {
        Pxe::File => true,
        Pxe::Binl => false,
        Pxe::Auto => site.role == Role::Server || machine.platform() == Some(Platform::Bios) || known.file,
    }
}

/// What an answer to this request will hand out.
pub(super) fn handout(site: &Site, request: &Request, machine: &Machine, client: Option<&Client>) -> Handout {
    machine.handout(site, client, site.guide.known(request.mac, request.kind, request.xid))
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
    /// The name of a loader, by TFTP, to an iPXE that cannot do what is needed.
    Chain(&'static str),
    /// The address of its script: iPXE runs already.
    Script,
    /// Its disk itself: iPXE runs already, and cannot fetch a script.
    RootPath,
    /// Nothing: there is no loader for this architecture.
    NoLoader(u16),
}

impl fmt::Display for Handout {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AddressOnly => f.write_str("no boot file"),
            Self::Loader(name) => f.write_str(name),
            Self::LoaderUrl(name) => write!(f, "{name} by HTTP"),
            Self::Chain(name) => write!(f, "{name} in place of its own iPXE"),
            Self::Script => f.write_str("its boot script"),
            Self::RootPath => f.write_str("its disk, by root path"),
            Self::NoLoader(architecture) => {
                write!(f, "no boot file: there is no loader for {}", architecture_name(*architecture))
            }
        }
    }
}

impl Handout {
    /// What explains that nothing comes of it.
    pub(super) fn fact(self) -> Option<Fact> {
        if let Self::NoLoader(architecture) = self { Some(Fact::NoLoader { architecture }) } else { None }
    }

    /// What is handed out and to what kind of machine, for a person: `its boot script (iPXE, UEFI x64)`.
    pub(super) fn to(self, machine: &Machine) -> String {
        if let Self::NoLoader(_) = self {
            return self.to_string();
        }
        let runs = if machine.ipxe { "iPXE, " } else { "" };
        let mut text = format!("{self} ({runs}{})", architecture_name(machine.architecture.unwrap_or(0)));
        if let Some(features) = machine.features {
            text += &format!("; iPXE {features}");
        }
        if let Some(missing) = machine.missing() {
            text += &format!(", and without {missing}");
        }
        text
    }
}

/// A client architecture in words (IANA, "Processor Architecture Types").
#[must_use]
pub fn architecture_name(architecture: u16) -> String {
    let u_boot = if is_u_boot(architecture) { ", U-Boot" } else { "" };
    match platform(architecture) {
        Some((platform, by_http)) => format!("{platform}{}{u_boot}", if by_http { " by HTTP" } else { "" }),
        None => format!("architecture {architecture}"),
    }
}
