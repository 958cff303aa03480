//! What firmware can run: the platforms that machines boot on, which loader each is given, and what firmware calls them.
//!
//! Not here: the loaders' bytes (`app::bootfiles`), and when a machine is told of one (`dhcp`).

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

/// A kind of firmware and processor. One loader runs on all machines of a platform.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Platform {
    /// PC BIOS.
    Bios,
    /// UEFI on a 32-bit x86 processor.
    Ia32,
    /// UEFI on a 64-bit x86 processor.
    X64,
    /// UEFI on a 32-bit ARM processor.
    Arm32,
    /// UEFI on a 64-bit ARM processor.
    Arm64,
    /// UEFI on a 32-bit RISC-V processor.
    RiscV32,
    /// UEFI on a 64-bit RISC-V processor.
    RiscV64,
    /// UEFI on a 128-bit RISC-V processor.
    RiscV128,
    /// UEFI on a 32-bit LoongArch processor.
    LoongArch32,
    /// UEFI on a 64-bit LoongArch processor.
    LoongArch64,
    /// The boot loader in the ROM of a Raspberry Pi.
    RaspberryPi,
}

impl Platform {
    /// Every platform.
    pub const ALL: [Self; 11] = [
        Self::Bios,
        Self::Ia32,
        Self::X64,
        Self::Arm32,
        Self::Arm64,
        Self::RiscV32,
        Self::RiscV64,
        Self::RiscV128,
        Self::LoongArch32,
        Self::LoongArch64,
        Self::RaspberryPi,
    ];

    /// The word that the mapping file uses: `x64`.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Bios => "bios",
            Self::Ia32 => "ia32",
            Self::X64 => "x64",
            Self::Arm32 => "arm32",
            Self::Arm64 => "arm64",
            Self::RiscV32 => "riscv32",
            Self::RiscV64 => "riscv64",
            Self::RiscV128 => "riscv128",
            Self::LoongArch32 => "loongarch32",
            Self::LoongArch64 => "loongarch64",
            Self::RaspberryPi => "rpi",
        }
    }

    /// The machine type in the header of a program for it (Microsoft PE format, "Machine Types"); `None` where its programs
    /// have no such header.
    #[must_use]
    pub fn pe_machine(self) -> Option<u16> {
        match self {
            Self::Bios | Self::RaspberryPi => None,
            Self::Ia32 => Some(0x014c),
            Self::X64 => Some(0x8664),
            Self::Arm32 => Some(0x01c2),
            Self::Arm64 => Some(0xaa64),
            Self::RiscV32 => Some(0x5032),
            Self::RiscV64 => Some(0x5064),
            Self::RiscV128 => Some(0x5128),
            Self::LoongArch32 => Some(0x6232),
            Self::LoongArch64 => Some(0x6264),
        }
    }

    /// The platform whose programs have this machine type in their headers.
    #[must_use]
    pub fn of_pe_machine(machine: u16) -> Option<Self> {
        Self::ALL.into_iter().find(|platform| platform.pe_machine() == Some(machine))
    }

    /// The same machine type in the header of an ELF file (System V ABI, `e_machine`), as some loaders are shipped.
    #[must_use]
    pub fn of_elf_machine(machine: u16, bits: u16) -> Option<Self> {
        match (machine, bits) {
            (3, _) => Some(Self::Ia32),
            (62, _) => Some(Self::X64),
            (40, _) => Some(Self::Arm32),
            (183, _) => Some(Self::Arm64),
            (243, 32) => Some(Self::RiscV32),
            (243, _) => Some(Self::RiscV64),
            (258, 32) => Some(Self::LoongArch32),
            (258, _) => Some(Self::LoongArch64),
            _ => None,
        }
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Bios => "BIOS",
            Self::Ia32 => "UEFI IA32",
            Self::X64 => "UEFI x64",
            Self::Arm32 => "UEFI ARM32",
            Self::Arm64 => "UEFI ARM64",
            Self::RiscV32 => "UEFI RISC-V 32",
            Self::RiscV64 => "UEFI RISC-V 64",
            Self::RiscV128 => "UEFI RISC-V 128",
            Self::LoongArch32 => "UEFI LoongArch 32",
            Self::LoongArch64 => "UEFI LoongArch 64",
            Self::RaspberryPi => "Raspberry Pi",
        })
    }
}

impl FromStr for Platform {
    type Err = ();

    fn from_str(word: &str) -> Result<Self, ()> {
        Self::ALL.into_iter().find(|platform| platform.word() == word).ok_or(())
    }
}

/// The loader of a platform, by the names under which machines fetch it. Names live as long as the process: they are read
/// once, at start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Loader {
    /// What machines are told.
    pub name: &'static str,
    /// What a machine is told on which that one did not run, where there is another.
    pub spare: Option<&'static str>,
}

/// Which loaders there are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Loaders {
    of: BTreeMap<Platform, Loader>,
    named: BTreeMap<&'static str, Platform>,
}

impl Default for Loaders {
    /// What every lab has: iPXE over the driver of the card's own ROM for BIOS, and over firmware's driver for x64 UEFI.
    fn default() -> Self {
        let mut loaders = Self { of: BTreeMap::new(), named: BTreeMap::new() };
        loaders.set(Platform::Bios, Loader { name: BIOS_LOADER, spare: None });
        loaders.set(Platform::X64, Loader { name: UEFI_X64_LOADER, spare: None });
        loaders
    }
}

/// The loader for BIOS machines, which uses the network driver of the card's own ROM.
pub const BIOS_LOADER: &str = "undionly.kpxe";
/// The loader for x64 UEFI machines, which uses the firmware's own network driver.
pub const UEFI_X64_LOADER: &str = "snponly.efi";
/// What the boot loader in a Raspberry Pi is told. A Pi 3 fetches it first; newer ones have it in their own memory, and
/// know by themselves what to fetch from the server that they are told.
pub const RASPBERRY_PI_LOADER: &str = "bootcode.bin";

impl Loaders {
    /// None at all.
    #[must_use]
    pub fn none() -> Self {
        Self { of: BTreeMap::new(), named: BTreeMap::new() }
    }

    /// Says which loader machines of a platform are told.
    pub fn set(&mut self, platform: Platform, loader: Loader) {
        self.of.insert(platform, loader);
        self.add(loader.name, platform);
        if let Some(spare) = loader.spare {
            self.add(spare, platform);
        }
    }

    /// Says of a loader that some client is told, for which platform it is.
    pub fn add(&mut self, name: &'static str, platform: Platform) {
        self.named.insert(name, platform);
    }

    /// The loader of a platform.
    #[must_use]
    pub fn of(&self, platform: Platform) -> Option<Loader> {
        self.of.get(&platform).copied()
    }

    /// The loader of this name, if it is for this platform.
    #[must_use]
    pub fn named(&self, name: &str, platform: Platform) -> Option<&'static str> {
        self.named.get_key_value(name).filter(|(_, of)| **of == platform).map(|(name, _)| *name)
    }

    /// For which platform the loader of this name is.
    #[must_use]
    pub fn platform_of(&self, name: &str) -> Option<Platform> {
        self.named.get(name).copied()
    }

    /// Every platform that has a loader, with it.
    pub fn iter(&self) -> impl Iterator<Item = (Platform, Loader)> {
        self.of.iter().map(|(platform, loader)| (*platform, *loader))
    }
}

/// How firmware is told, beside another DHCP server, which file to boot (PXE 2.1 §2.2.3).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Pxe {
    /// As its machine took it before; at first as most of its kind do.
    #[default]
    Auto,
    /// In the offer, and that is all.
    File,
    /// In the offer, and once more on port 4011, which it is to ask.
    Binl,
}

/// How a machine's firmware took what it was told, beside another DHCP server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Habit {
    /// It boots from the file in the offer, and asks nobody on port 4011: [`Pxe::File`], not [`Pxe::Binl`].
    pub file: bool,
}

/// What a client sets of its way into a boot.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Start {
    /// How its firmware is told.
    pub pxe: Pxe,
    /// The name of a loader that it is told instead of its platform's.
    pub loader: Option<String>,
    /// Its loader leaves the system no gateway: Windows would send what is for the disk there, be it on the same wire.
    pub no_gateway: bool,
    /// What boots from iSCSI without a script is told the disk itself, by DHCP's root path.
    pub root_path: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_platform_has_one_word_and_one_machine_type() {
        for platform in Platform::ALL {
            assert_eq!(platform.word().parse(), Ok(platform));
            assert_eq!(
                platform.pe_machine().and_then(Platform::of_pe_machine),
                platform.pe_machine().map(|_| platform)
            );
        }
    }

    #[test]
    fn a_loader_is_told_only_to_its_own_platform() {
        let mut loaders = Loaders::default();
        loaders.add("ipxe.efi", Platform::X64);
        assert_eq!(loaders.named("ipxe.efi", Platform::X64), Some("ipxe.efi"));
        assert_eq!(loaders.named("ipxe.efi", Platform::Bios), None);
        assert_eq!(loaders.named("other.efi", Platform::X64), None);
    }
}
