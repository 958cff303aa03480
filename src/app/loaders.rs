//! The boot loaders: found in a folder, read into memory once, and each held against the platform that it is for, so that a
//! file in the wrong place is told at start and not by a machine's blank screen.
//!
//! Programs for UEFI begin with a PE header (Microsoft PE format) that names their processor; what a BIOS boots has no
//! header that could be wrong, but must be none of UEFI's. Where a *signed pair* is in the folder, a shim and the loader
//! that this shim starts, UEFI machines are told the shim: with Secure Boot nothing else would run, and without it the shim
//! does no harm. DHCP does not say which of the two a machine is.
//!
//! Not here: the names that are made when they are asked for ([`super::bootfiles`]). No loader is part of this program.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use bytes::Bytes;

use crate::fleet::{Loader, Loaders, Platform};

/// Where Debian's package `ipxe` puts loaders.
pub const LOADER_DIR: &str = "/usr/lib/ipxe";

/// Largest loader that is taken into memory. iPXE with every driver is 1 MB; more than this is some other file by mistake.
pub const MAX_LOADER: u64 = 16 << 20;

/// What is looked for in the folder: the name under which machines fetch it, and where it may be. Distributions put iPXE's
/// files side by side, iPXE's own builds have a folder for each processor.
const KNOWN: [Known; 9] = [
    known(Platform::Bios, "undionly.kpxe", &["undionly.kpxe"], "ipxe.pxe", &["ipxe.pxe"]),
    known(
        Platform::X64,
        "snponly.efi",
        &["snponly.efi", "x86_64-efi/snponly.efi"],
        "ipxe.efi",
        &["ipxe.efi", "x86_64-efi/ipxe.efi"],
    ),
    known(
        Platform::Ia32,
        "snponly-i386.efi",
        &["snponly-i386.efi", "i386-efi/snponly.efi"],
        "ipxe-i386.efi",
        &["ipxe-i386.efi", "i386-efi/ipxe.efi"],
    ),
    known(
        Platform::Arm64,
        "snponly-arm64.efi",
        &["snponly-arm64.efi", "arm64-efi/snponly.efi"],
        "ipxe-arm64.efi",
        &["ipxe-arm64.efi", "arm64-efi/ipxe.efi"],
    ),
    known(
        Platform::Arm32,
        "snponly-arm32.efi",
        &["snponly-arm32.efi", "arm32-efi/snponly.efi"],
        "ipxe-arm32.efi",
        &["ipxe-arm32.efi", "arm32-efi/ipxe.efi"],
    ),
    known(
        Platform::RiscV32,
        "snponly-riscv32.efi",
        &["snponly-riscv32.efi", "riscv32-efi/snponly.efi"],
        "ipxe-riscv32.efi",
        &["ipxe-riscv32.efi", "riscv32-efi/ipxe.efi"],
    ),
    known(
        Platform::RiscV64,
        "snponly-riscv64.efi",
        &["snponly-riscv64.efi", "riscv64-efi/snponly.efi"],
        "ipxe-riscv64.efi",
        &["ipxe-riscv64.efi", "riscv64-efi/ipxe.efi"],
    ),
    known(
        Platform::LoongArch64,
        "snponly-loong64.efi",
        &["snponly-loong64.efi", "loong64-efi/snponly.efi"],
        "ipxe-loong64.efi",
        &["ipxe-loong64.efi", "loong64-efi/ipxe.efi"],
    ),
    known(
        Platform::LoongArch32,
        "snponly-loong32.efi",
        &["snponly-loong32.efi", "loong32-efi/snponly.efi"],
        "ipxe-loong32.efi",
        &["ipxe-loong32.efi", "loong32-efi/ipxe.efi"],
    ),
];

/// Platforms without whose loader no lab starts, unless the file names others.
const NEEDED: [Platform; 2] = [Platform::Bios, Platform::X64];

/// A platform's loader, and the one for machines on which it does not run: with iPXE's own network drivers.
struct Known {
    platform: Platform,
    name: &'static str,
    places: &'static [&'static str],
    spare: &'static str,
    spare_places: &'static [&'static str],
}

const fn known(
    platform: Platform,
    name: &'static str,
    places: &'static [&'static str],
    spare: &'static str,
    spare_places: &'static [&'static str],
) -> Known {
    Known { platform, name, places, spare, spare_places }
}

/// What the mapping file wants of the loaders.
#[derive(Debug, Clone, Default)]
pub struct Wanted {
    /// The folder; `None`: [`LOADER_DIR`].
    pub dir: Option<PathBuf>,
    /// `[loaders]`: a name in the folder, or a path.
    pub of: BTreeMap<Platform, PathBuf>,
    /// The names that clients ask for instead of their platform's.
    pub others: BTreeSet<String>,
}

/// Why the loaders cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum LoaderError {
    /// A loader that every lab needs, or that the file names, is not there.
    #[error("there is no {name} in {}: install it (apt install ipxe), or say in roost.toml where it is: [server] loader_dir", dir.display())]
    Missing {
        /// Its name.
        name: String,
        /// Where it was looked for.
        dir: PathBuf,
    },
    /// It is there and cannot be read.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It is there and no loader.
    #[error("{} is no boot loader that we can serve: {reason}; reinstall it (apt install --reinstall ipxe)", path.display())]
    Unusable {
        /// The file.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// It is a loader, for other machines.
    #[error("{} is a program for {found}, and is to be the loader for {wanted}: [loaders] {} wants another file", path.display(), wanted.word())]
    Platform {
        /// The file.
        path: PathBuf,
        /// What it is for.
        found: Platform,
        /// What it should be for.
        wanted: Platform,
    },
    /// Two files would be fetched by one name.
    #[error("{} and another loader are both called {name}: machines ask by name; rename one of them", path.display())]
    Twice {
        /// The name.
        name: String,
        /// The second file.
        path: PathBuf,
    },
    /// A shim without what it starts.
    #[error("{} starts {second} from the same folder, which is not there", path.display())]
    Alone {
        /// The shim.
        path: PathBuf,
        /// What it starts.
        second: String,
    },
}

/// The loaders, in memory.
#[derive(Debug, Clone)]
pub struct BootFiles {
    files: BTreeMap<&'static str, (PathBuf, Bytes)>,
    loaders: Loaders,
    remarks: Vec<String>,
}

impl BootFiles {
    /// The loaders of this folder: for BIOS and x64 UEFI, and for other platforms where there are some.
    ///
    /// # Errors
    /// As [`Self::load_with`].
    pub fn load(loader_dir: Option<&Path>) -> Result<Self, LoaderError> {
        Self::load_with(&Wanted { dir: loader_dir.map(Path::to_owned), ..Wanted::default() })
    }

    /// Reads what is wanted.
    ///
    /// # Errors
    /// A loader is missing, cannot be read, is empty or larger than [`MAX_LOADER`], or is for another platform.
    pub fn load_with(wanted: &Wanted) -> Result<Self, LoaderError> {
        let dir = wanted.dir.as_deref().unwrap_or(Path::new(LOADER_DIR));
        let mut files = Self { files: BTreeMap::new(), loaders: Loaders::none(), remarks: Vec::new() };
        for known in &KNOWN {
            if !wanted.of.contains_key(&known.platform) {
                files.take_known(dir, known)?;
            }
        }
        for (platform, path) in &wanted.of {
            let name = files.take_named(&dir.join(path), Some(*platform))?.0;
            files.loaders.set(*platform, Loader { name, spare: None });
        }
        for other in &wanted.others {
            if files.loader(other.as_bytes()).is_none() {
                let (name, platform) = files.take_named(&dir.join(other), None)?;
                files.loaders.add(name, platform);
            }
        }
        Ok(files)
    }

    fn take_known(&mut self, dir: &Path, known: &Known) -> Result<(), LoaderError> {
        let Known { platform, name, places, spare, spare_places } = *known;
        let Some(path) = first(dir, places) else {
            return match NEEDED.contains(&platform) {
                true => Err(LoaderError::Missing { name: name.to_owned(), dir: dir.to_owned() }),
                false => Ok(()),
            };
        };
        let bytes = read(&path)?;
        check(&path, &bytes, platform)?;
        self.files.insert(name, (path, bytes));
        let mut loader = Loader { name, spare: None };
        if let Some(path) = first(dir, spare_places) {
            let bytes = read(&path)?;
            check(&path, &bytes, platform)?;
            self.files.insert(spare, (path, bytes));
            loader.spare = Some(spare);
        }
        self.loaders.set(platform, loader);
        if let Some(shim) = self.take_pair(dir, platform)? {
            self.loaders.set(platform, Loader { name: shim, spare: None });
        }
        Ok(())
    }

    /// A loader by its own file's name, with the one that it starts if it is a shim; its platform is in its header where the
    /// file does not say.
    fn take_named(&mut self, path: &Path, platform: Option<Platform>) -> Result<(&'static str, Platform), LoaderError> {
        let bytes = match File::open(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
                return Err(LoaderError::Missing { name, dir: path.parent().unwrap_or(path).to_owned() });
            }
            _ => read(path)?,
        };
        let platform =
            platform.or_else(|| pe_machine(&bytes).and_then(Platform::of_pe_machine)).unwrap_or(Platform::Bios);
        check(path, &bytes, platform)?;
        let name = self.put(path, bytes)?;
        if let Some(second) = second_stage(name, platform) {
            let beside = path.with_file_name(&second);
            if !beside.exists() {
                return Err(LoaderError::Alone { path: path.to_owned(), second });
            }
            let bytes = read(&beside)?;
            check(&beside, &bytes, platform)?;
            self.put(&beside, bytes)?;
        }
        Ok((name, platform))
    }

    /// A shim and what it starts, if both are in the folder and signed; with them the program by which a machine's owner
    /// enrols keys, if it is there.
    fn take_pair(&mut self, dir: &Path, platform: Platform) -> Result<Option<&'static str>, LoaderError> {
        let Some(suffix) = shim_suffix(platform) else { return Ok(None) };
        let plain = format!("shim{suffix}.efi");
        let mut shims: Vec<String> = std::fs::read_dir(dir)
            .map_err(|source| LoaderError::Read { path: dir.to_owned(), source })?
            .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
            .filter(|name| *name == plain || name.ends_with(&format!("-{plain}")))
            .collect();
        // One that says which loader it starts before one that starts whatever is called GRUB.
        shims.sort_by_key(|name| (*name == plain, std::cmp::Reverse(name.clone())));
        for shim in shims {
            let Some(second) = second_stage(&shim, platform) else { continue };
            let paths = [dir.join(&shim), dir.join(&second)];
            if !paths[1].exists() {
                self.remarks.push(format!("{shim} is not served: {second}, which it starts, is not beside it"));
                continue;
            }
            let bytes = [read(&paths[0])?, read(&paths[1])?];
            for (path, bytes) in paths.iter().zip(&bytes) {
                check(path, bytes, platform)?;
            }
            if let Some(unsigned) = paths.iter().zip(&bytes).find(|(_, bytes)| !is_signed(bytes)).map(|(path, _)| path)
            {
                let name = unsigned.file_name().unwrap_or_default().display();
                self.remarks
                    .push(format!("{shim} is not served: {name} is not signed, so Secure Boot would stop there"));
                continue;
            }
            let [first, second] = bytes;
            let name = self.put(&paths[0], first)?;
            self.put(&paths[1], second)?;
            let manager = dir.join(format!("mm{suffix}.efi"));
            if manager.exists() {
                let bytes = read(&manager)?;
                check(&manager, &bytes, platform)?;
                self.put(&manager, bytes)?;
            }
            self.remarks.push(format!("{platform} machines are told {name}, which Secure Boot lets run"));
            return Ok(Some(name));
        }
        Ok(None)
    }

    /// Takes a file into the table under its own name.
    fn put(&mut self, path: &Path, bytes: Bytes) -> Result<&'static str, LoaderError> {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        match self.files.iter().find(|(known, _)| known.eq_ignore_ascii_case(&name)) {
            Some((known, (there, _))) if there == path => Ok(known),
            Some(_) => Err(LoaderError::Twice { name, path: path.to_owned() }),
            None => {
                // A handful of names, read once: they may as well live as long as the process.
                let name: &'static str = name.leak();
                self.files.insert(name, (path.to_owned(), bytes));
                Ok(name)
            }
        }
    }

    /// The loader of this name, in any case: its name and its bytes.
    #[must_use]
    pub fn loader(&self, name: &[u8]) -> Option<(&'static str, Bytes)> {
        let mut all = self.files.iter();
        all.find(|(known, _)| name.eq_ignore_ascii_case(known.as_bytes()))
            .map(|(known, (_, bytes))| (*known, bytes.clone()))
    }

    /// The names of all loaders.
    pub fn names(&self) -> impl Iterator<Item = &'static str> {
        self.files.keys().copied()
    }

    /// Which platform is told which.
    #[must_use]
    pub fn loaders(&self) -> &Loaders {
        &self.loaders
    }

    /// What an operator should know of them.
    #[must_use]
    pub fn remarks(&self) -> &[String] {
        &self.remarks
    }
}

fn first(dir: &Path, places: &[&str]) -> Option<PathBuf> {
    places.iter().map(|place| dir.join(place)).find(|path| path.exists())
}

fn read(path: &Path) -> Result<Bytes, LoaderError> {
    let all = || {
        let mut bytes = Vec::new();
        let read = File::open(path)?.take(MAX_LOADER + 1).read_to_end(&mut bytes)?;
        if read as u64 > MAX_LOADER {
            return Err(io::Error::other(format!("it is larger than {} MB", MAX_LOADER >> 20)));
        }
        Ok(bytes.into())
    };
    all().map_err(|source| LoaderError::Read { path: path.to_owned(), source })
}

/// Whether this can be the loader of this platform.
fn check(path: &Path, bytes: &[u8], platform: Platform) -> Result<(), LoaderError> {
    let unusable = |reason: String| Err(LoaderError::Unusable { path: path.to_owned(), reason });
    let machine = pe_machine(bytes);
    match (platform.pe_machine(), machine) {
        (None, _) if bytes.is_empty() => unusable("it is empty".to_owned()),
        (None, None) => Ok(()),
        (Some(wanted), Some(found)) if wanted == found => Ok(()),
        (_, Some(found)) => match Platform::of_pe_machine(found) {
            Some(found) => Err(LoaderError::Platform { path: path.to_owned(), found, wanted: platform }),
            None => unusable(format!("it is a UEFI program for machine type {found:#06x}, not for {platform}")),
        },
        (Some(_), None) => match elf_platform(bytes) {
            Some(found) => unusable(format!("it is an ELF program for {found}, and firmware runs PE programs (.efi)")),
            None => unusable("it is no UEFI program (no PE header)".to_owned()),
        },
    }
}

/// Where the header of a PE image is: `MZ`, and at 0x3c the offset of `PE\0\0`.
fn pe_header(bytes: &[u8]) -> Option<&[u8]> {
    let at = u32::from_le_bytes(bytes.get(0x3c..0x40)?.try_into().ok()?);
    let header = bytes.get(usize::try_from(at).ok()?..)?;
    (bytes.starts_with(b"MZ") && header.starts_with(b"PE\0\0")).then_some(header)
}

/// The machine type of a PE image, which stands behind `PE\0\0`.
fn pe_machine(bytes: &[u8]) -> Option<u16> {
    half(pe_header(bytes)?, 4)
}

/// Whether a PE image carries signatures: its certificate table is not empty. Whose they are, firmware judges.
fn is_signed(bytes: &[u8]) -> bool {
    let size = || {
        let optional = pe_header(bytes)?.get(24..)?;
        // The fifth data directory: behind 112 bytes of a PE32+ image, 96 of a PE32.
        let directories = if half(optional, 0)? == 0x20b { 112 } else { 96 };
        let size = optional.get(directories + 4 * 8 + 4..)?.first_chunk::<4>()?;
        Some(u32::from_le_bytes(*size))
    };
    size().is_some_and(|size| size > 0)
}

/// What an ELF program is for.
fn elf_platform(bytes: &[u8]) -> Option<Platform> {
    let class = bytes.strip_prefix(b"\x7fELF")?.first()?;
    Platform::of_elf_machine(half(bytes, 18)?, u16::from(*class) * 32)
}

fn half(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}

/// How a shim's name ends, before `.efi`.
fn shim_suffix(platform: Platform) -> Option<&'static str> {
    match platform {
        Platform::X64 => Some("x64"),
        Platform::Arm64 => Some("aa64"),
        _ => None,
    }
}

/// What a shim starts, by its name: `ipxe-shimx64.efi` starts `ipxe.efi`, and a distribution's `shimx64.efi` the file that
/// it knows as GRUB, `grubx64.efi`, whatever that is. `None` for what is no shim.
fn second_stage(name: &str, platform: Platform) -> Option<String> {
    let suffix = shim_suffix(platform)?;
    let stem = name.strip_suffix(".efi")?.strip_suffix(suffix)?.strip_suffix("shim")?;
    match stem.strip_suffix('-') {
        Some(loader) => Some(format!("{loader}.efi")),
        None if stem.is_empty() => Some(format!("grub{suffix}.efi")),
        None => None,
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    /// The least that passes for a program for this machine type, with or without a certificate table.
    fn program(machine: u16, signed: bool) -> Vec<u8> {
        let mut bytes = vec![0; 0x40 + 24 + 112 + 40];
        bytes[..2].copy_from_slice(b"MZ");
        bytes[0x3c] = 0x40;
        bytes[0x40..0x44].copy_from_slice(b"PE\0\0");
        bytes[0x44..0x46].copy_from_slice(&machine.to_le_bytes());
        bytes[0x58..0x5a].copy_from_slice(&0x20b_u16.to_le_bytes());
        bytes[0x58 + 112 + 36] = u8::from(signed);
        bytes
    }

    fn efi(machine: u16) -> Vec<u8> {
        program(machine, false)
    }

    const X64: u16 = 0x8664;
    const ARM64: u16 = 0xaa64;

    fn folder(files: &[(&str, &[u8])]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for (name, bytes) in [("undionly.kpxe", &b"bios"[..]), ("snponly.efi", &efi(X64))].iter().chain(files) {
            let path = dir.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, bytes).unwrap();
        }
        dir
    }

    fn load(files: &[(&str, &[u8])]) -> Result<BootFiles, LoaderError> {
        BootFiles::load(Some(folder(files).path()))
    }

    fn told(files: &BootFiles, platform: Platform) -> Option<&'static str> {
        files.loaders().of(platform).map(|loader| loader.name)
    }

    #[test]
    fn loaders_are_read_once_and_found_in_any_case() {
        let files = load(&[]).unwrap();
        assert_eq!(files.loader(b"undionly.kpxe").unwrap(), ("undionly.kpxe", Bytes::from_static(b"bios")));
        assert_eq!(files.loader(b"SNPONLY.EFI").unwrap().1, efi(X64));
        for absent in [&b"ipxe.efi"[..], b"etc/passwd", b"", b"snponly.ef", b"xsnponly.efi", b"snponly.efi\0x"] {
            assert_eq!(files.loader(absent), None);
        }
        assert_eq!(*files.loaders(), Loaders::default());
    }

    #[test]
    fn the_loaders_of_the_package_pass() {
        if !Path::new(LOADER_DIR).join("snponly.efi").exists() {
            eprintln!("skip: the_loaders_of_the_package_pass needs {LOADER_DIR}/snponly.efi (apt install ipxe)");
            return;
        }
        let files = BootFiles::load(None).unwrap();
        assert!(files.loader(b"undionly.kpxe").unwrap().1.len() > 10_000);
    }

    #[test]
    fn other_processors_are_served_where_their_loader_is_in_either_layout() {
        let files = load(&[("arm64-efi/snponly.efi", &efi(ARM64)), ("ipxe.efi", &efi(X64))]).unwrap();
        assert_eq!(told(&files, Platform::Arm64), Some("snponly-arm64.efi"));
        assert_eq!(files.loader(b"snponly-arm64.efi").unwrap().1, efi(ARM64));
        assert_eq!(told(&files, Platform::Ia32), None);
        assert_eq!(files.loaders().of(Platform::X64).unwrap().spare, Some("ipxe.efi"));
    }

    #[test]
    fn the_mapping_file_names_others_and_each_is_held_against_its_platform() {
        let dir = folder(&[("own/arm.efi", &efi(ARM64)), ("ipxe.efi", &efi(X64)), ("ipxe.pxe", b"bios too")]);
        let wanted = |of: &[(Platform, &str)], others: &[&str]| Wanted {
            dir: Some(dir.path().to_owned()),
            of: of.iter().map(|(platform, path)| (*platform, PathBuf::from(path))).collect(),
            others: others.iter().map(ToString::to_string).collect(),
        };
        let given = [(Platform::X64, "ipxe.efi"), (Platform::Arm64, "own/arm.efi")];
        let files = BootFiles::load_with(&wanted(&given, &["ipxe.pxe"])).unwrap();
        assert_eq!(told(&files, Platform::X64), Some("ipxe.efi"));
        assert_eq!(told(&files, Platform::Arm64), Some("arm.efi"));
        assert_eq!(files.loaders().named("ipxe.pxe", Platform::Bios), Some("ipxe.pxe"));
        assert_eq!(files.loaders().named("ipxe.pxe", Platform::X64), None);

        let words = |of: &[(Platform, &str)], others: &[&str]| {
            BootFiles::load_with(&wanted(of, others))
                .unwrap_err()
                .to_string()
                .replace(&dir.path().display().to_string(), "DIR")
        };
        assert_eq!(
            words(&[(Platform::Arm64, "ipxe.efi")], &[]),
            "DIR/ipxe.efi is a program for UEFI x64, and is to be the loader for UEFI ARM64: [loaders] arm64 wants another file"
        );
        assert!(words(&[(Platform::Bios, "ipxe.efi")], &[]).contains("for UEFI x64, and is to be the loader for BIOS"));
        assert!(words(&[], &["absent.efi"]).starts_with("there is no absent.efi in DIR"));
    }

    #[test]
    fn a_missing_loader_is_refused_with_what_to_do() {
        let dir = folder(&[]);
        fs::remove_file(dir.path().join("undionly.kpxe")).unwrap();
        let words = BootFiles::load(Some(dir.path())).unwrap_err().to_string();
        assert_eq!(
            words,
            format!(
                "there is no undionly.kpxe in {}: install it (apt install ipxe), or say in roost.toml where it is: \
                 [server] loader_dir",
                dir.path().display()
            )
        );
    }

    #[test]
    fn what_is_no_loader_is_refused() {
        let cut = &efi(X64)[..0x44];
        let mut far = efi(X64);
        far[0x3c..0x40].copy_from_slice(&[0xff; 4]);
        let mut elf = b"\x7fELF\x02\x01\x01".to_vec();
        elf.resize(18, 0);
        elf.extend_from_slice(&183_u16.to_le_bytes());
        for (bytes, reason) in [
            (&efi(ARM64)[..], "a program for UEFI ARM64, and is to be the loader for UEFI x64"),
            (&efi(0x0ebc), "machine type 0x0ebc, not for UEFI x64"),
            (&elf, "an ELF program for UEFI ARM64"),
            (b"<html>not found</html>", "no PE header"),
            (b"MZ", "no PE header"),
            (b"", "no PE header"),
            (cut, "no PE header"),
            (&far, "no PE header"),
        ] {
            let words = load(&[("snponly.efi", bytes)]).unwrap_err().to_string();
            assert!(words.contains("snponly.efi") && words.contains(reason), "{words}");
        }
        assert!(load(&[("undionly.kpxe", b"")]).unwrap_err().to_string().contains("it is empty"));
    }

    #[test]
    fn a_loader_too_large_for_memory_is_refused() {
        let dir = folder(&[]);
        File::create(dir.path().join("undionly.kpxe")).unwrap().set_len(MAX_LOADER + 1).unwrap();
        let words = BootFiles::load(Some(dir.path())).unwrap_err().to_string();
        assert!(words.contains("larger than 16 MB"), "{words}");
    }

    #[test]
    fn a_signed_pair_is_told_to_its_platform_and_half_of_one_is_not() {
        let (signed, arm) = (program(X64, true), program(ARM64, true));
        let files = load(&[("ipxe-shimx64.efi", &signed), ("ipxe.efi", &signed), ("mmx64.efi", &signed)]).unwrap();
        assert_eq!(told(&files, Platform::X64), Some("ipxe-shimx64.efi"));
        for name in ["ipxe-shimx64.efi", "ipxe.efi", "mmx64.efi", "snponly.efi"] {
            assert!(files.loader(name.as_bytes()).is_some(), "{name}");
        }
        let files = load(&[
            ("snponly-arm64.efi", &arm),
            ("shimaa64.efi", &arm),
            ("grubaa64.efi", &arm),
            ("shimx64.efi", &signed),
            ("ipxe-shimx64.efi", &signed),
            ("ipxe.efi", &efi(X64)),
        ])
        .unwrap();
        assert_eq!(told(&files, Platform::Arm64), Some("shimaa64.efi"));
        assert_eq!(told(&files, Platform::X64), Some("snponly.efi"));
        let remarks = files.remarks().join("\n");
        assert!(remarks.contains("ipxe-shimx64.efi is not served: ipxe.efi is not signed"), "{remarks}");
        assert!(
            remarks.contains("shimx64.efi is not served: grubx64.efi, which it starts, is not beside it"),
            "{remarks}"
        );
        assert!(load(&[("snponly-shimx64.efi", &arm), ("snponly.efi", &signed)]).is_err());
    }
}
