//! The table of boot files: the few names that a machine may ask for by TFTP or HTTP, and the bytes behind each.
//!
//! A stranger's path is never joined to one of ours. Its last part is looked up in [`NAMES`]; firmware puts folders, drive
//! letters and backslashes before it, and some of it rubbish after it. The loaders are read into memory once, at start:
//! they are small, and every machine of a lab wants them in the same minute.
//!
//! Not here: the protocols that carry them, and what a script says ([`crate::script`]).

use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use super::boots::BootError;
use super::recorder::Recorder;
use crate::fleet::policy::{DiskAtBoot, boot_plan};
use crate::fleet::{DiskPolicy, Fleet, Mac, Secrets, Stage};
use crate::script::{self, ScriptError, Server};

/// Where Debian's package `ipxe` puts loaders.
pub const LOADER_DIR: &str = "/usr/lib/ipxe";

/// Largest loader that is taken into memory. iPXE with every driver is 1 MB; more than this is some other file by mistake.
pub const MAX_LOADER: u64 = 16 << 20;

/// Machine type of x64 in a PE header (Microsoft PE format, "Machine Types").
const PE_X64: u16 = 0x8664;

/// What a machine may ask for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Name {
    /// iPXE over the BIOS network boot ROM's driver.
    Undionly,
    /// iPXE over the UEFI firmware's network driver.
    Snponly,
    /// iPXE with its own network drivers, for UEFI.
    Ipxe,
    /// The script that iPXE looks for by itself beside its own file.
    Autoexec,
    /// A machine's own script.
    Script,
}

/// Every name that is answered; whatever else is asked for does not exist.
pub const NAMES: [(&str, Name); 5] = [
    ("undionly.kpxe", Name::Undionly),
    ("snponly.efi", Name::Snponly),
    ("ipxe.efi", Name::Ipxe),
    ("autoexec.ipxe", Name::Autoexec),
    ("boot.ipxe", Name::Script),
];

impl Name {
    /// What this path, as a machine wrote it, means: at any depth, with `/` or `\`, with a drive letter, in any case.
    ///
    /// Names are bytes. Trailing NUL and 0xFF are what old ROMs read past the end of DHCP's option 67; without them the
    /// name is as good as any.
    #[must_use]
    pub fn of(path: &[u8]) -> Option<Self> {
        let end = path.iter().rposition(|b| !matches!(b, 0 | 0xff))? + 1;
        let base = path[..end].rsplit(|b| matches!(b, b'/' | b'\\' | b':')).next()?;
        NAMES.iter().find(|(name, _)| base.eq_ignore_ascii_case(name.as_bytes())).map(|(_, name)| *name)
    }

    /// The name as the table writes it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        NAMES.iter().find(|(_, name)| *name == self).map_or("", |(text, _)| text)
    }
}

/// What a boot file is to the machine that asks for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A program for firmware.
    Loader,
    /// The same few lines for every machine, that lead to its own script.
    Hook,
    /// A machine's own script: with it a boot begins.
    Script,
}

/// The answer to a request.
#[derive(Debug, Clone)]
pub struct BootFile {
    /// Its name as the table writes it.
    pub name: &'static str,
    /// What it is.
    pub kind: Kind,
    /// The whole of it. Loaders are shared, not copied.
    pub bytes: Bytes,
}

/// Why the loaders cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum LoaderError {
    /// A loader that every lab needs is not there.
    #[error("there is no {name} in {}: install it (apt install ipxe), or say in roost.toml where it is: [server] loader_dir", dir.display())]
    Missing {
        /// Its name.
        name: &'static str,
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
}

/// The loaders, in memory.
#[derive(Debug, Clone)]
pub struct BootFiles {
    undionly: Bytes,
    snponly: Bytes,
    ipxe: Option<Bytes>,
}

impl BootFiles {
    /// Reads `undionly.kpxe` and `snponly.efi`, and `ipxe.efi` where there is one.
    ///
    /// # Errors
    /// A loader is missing, cannot be read, is empty or larger than [`MAX_LOADER`], or is no program for x64 UEFI.
    pub fn load(loader_dir: Option<&Path>) -> Result<Self, LoaderError> {
        let dir = loader_dir.unwrap_or(Path::new(LOADER_DIR));
        let needed = |name: Name| {
            loader(dir, name)?.ok_or_else(|| LoaderError::Missing { name: name.as_str(), dir: dir.to_owned() })
        };
        Ok(Self { undionly: needed(Name::Undionly)?, snponly: needed(Name::Snponly)?, ipxe: loader(dir, Name::Ipxe)? })
    }

    /// The bytes of this loader; `None` for scripts, which are made when asked for, and for a loader that is not there.
    #[must_use]
    pub fn loader(&self, name: Name) -> Option<Bytes> {
        match name {
            Name::Undionly => Some(self.undionly.clone()),
            Name::Snponly => Some(self.snponly.clone()),
            Name::Ipxe => self.ipxe.clone(),
            Name::Autoexec | Name::Script => None,
        }
    }
}

fn loader(dir: &Path, name: Name) -> Result<Option<Bytes>, LoaderError> {
    let path = dir.join(name.as_str());
    let bytes = match read(&path) {
        Ok(bytes) => bytes,
        Err(missing) if missing.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(LoaderError::Read { path, source }),
    };
    let checked = match name {
        Name::Undionly if bytes.is_empty() => Err("it is empty".to_owned()),
        Name::Undionly => Ok(()),
        _ => check_efi(&bytes),
    };
    match checked {
        Ok(()) => Ok(Some(bytes)),
        Err(reason) => Err(LoaderError::Unusable { path, reason }),
    }
}

fn read(path: &Path) -> io::Result<Bytes> {
    let mut bytes = Vec::new();
    let read = File::open(path)?.take(MAX_LOADER + 1).read_to_end(&mut bytes)?;
    if read as u64 > MAX_LOADER {
        return Err(io::Error::other(format!("it is larger than {} MB", MAX_LOADER >> 20)));
    }
    Ok(bytes.into())
}

/// A PE image for x64: `MZ`, at 0x3c the offset of `PE\0\0`, after which the machine type stands.
fn check_efi(bytes: &[u8]) -> Result<(), String> {
    let no_program = || "it is no UEFI program (no PE header)".to_owned();
    if !bytes.starts_with(b"MZ") {
        return Err(no_program());
    }
    let at = bytes.get(0x3c..0x40).and_then(|b| b.try_into().ok()).map(u32::from_le_bytes).ok_or_else(no_program)?;
    let header = usize::try_from(at).ok().and_then(|at| bytes.get(at..)?.get(..6)).ok_or_else(no_program)?;
    if !header.starts_with(b"PE\0\0") {
        return Err(no_program());
    }
    match u16::from_le_bytes([header[4], header[5]]) {
        PE_X64 => Ok(()),
        other => Err(format!("it is a UEFI program for machine type {other:#06x}, not for x64 ({PE_X64:#06x})")),
    }
}

/// Who has this address, as far as the lease table and the kernel's neighbours know.
pub type Resolver = Box<dyn Fn(Ipv4Addr) -> Option<Mac> + Send + Sync>;

/// Begins a boot of this machine, which fetches its script from this address; `None` where it is nobody's machine, or its
/// client is out of service.
pub type Begin = Box<dyn Fn(Mac, IpAddr) -> Pin<Box<dyn Future<Output = Begun> + Send>> + Send + Sync>;

/// What came of beginning a boot.
pub type Begun = Result<Option<Boot>, BootError>;

/// A boot that began.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Boot {
    /// What it means for the client's disk.
    pub disk: DiskAtBoot,
    /// The client's policy.
    pub policy: DiskPolicy,
    /// The client's CHAP secrets, if it has any and the address is known to be the machine's own.
    pub secrets: Option<Secrets>,
}

/// The fleet as it is now.
pub type Snapshot = Box<dyn Fn() -> Arc<Fleet> + Send + Sync>;

/// What the adapters that serve boot files share.
pub struct BootContext {
    /// The loaders.
    pub files: BootFiles,
    /// The fleet as it is now.
    pub fleet: Snapshot,
    /// This server, as scripts name it.
    pub server: Server,
    /// Where fetches are reported.
    pub recorder: Recorder,
    /// Which machine uses an address.
    pub resolver: Resolver,
    /// Where boots begin.
    pub begin: Begin,
}

impl fmt::Debug for BootContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BootContext").field("server", &self.server).finish_non_exhaustive()
    }
}

impl BootContext {
    /// The boot file of this name for this machine; `None`: there is none.
    ///
    /// `who` matters to a script only. Without it a machine is led to its own script by way of its own MAC.
    ///
    /// # Errors
    /// A script could not be rendered.
    pub fn lookup(&self, name: &[u8], who: Option<Mac>) -> Result<Option<BootFile>, ScriptError> {
        self.lookup_with(name, who, None)
    }

    /// The same; with the CHAP secrets of the machine's client, for an address that is known to be the machine's own.
    ///
    /// # Errors
    /// A script could not be rendered.
    pub fn lookup_with(
        &self,
        name: &[u8],
        who: Option<Mac>,
        secrets: Option<&Secrets>,
    ) -> Result<Option<BootFile>, ScriptError> {
        let Some(name) = Name::of(name) else { return Ok(None) };
        let file = |kind, bytes| Some(BootFile { name: name.as_str(), kind, bytes });
        Ok(match (name, who) {
            (Name::Script, Some(mac)) => {
                let script = script::render(boot_plan(&(self.fleet)(), mac), mac, &self.server, secrets)?;
                file(Kind::Script, script.into())
            }
            (Name::Autoexec, _) | (Name::Script, None) => file(Kind::Hook, script::chain(&self.server)?.into()),
            _ => self.files.loader(name).and_then(|bytes| file(Kind::Loader, bytes)),
        })
    }

    /// The names of all that can be fetched.
    pub fn names(&self) -> impl Iterator<Item = &'static str> {
        let made = |name| matches!(name, Name::Autoexec | Name::Script);
        NAMES.iter().filter(move |(_, name)| made(*name) || self.files.loader(*name).is_some()).map(|(text, _)| *text)
    }

    /// Reports that a machine has fetched a boot file: `undionly.kpxe by TFTP, 74 KB in 0.2 s`.
    pub fn fetched(&self, file: &BootFile, who: Option<Mac>, by: &str, took: Option<Duration>) {
        self.fetched_with(file, who, by, took, None);
    }

    /// The same, with what it means for the machine's disk: `boot.ipxe by HTTP, 612 bytes; disk made anew`.
    pub fn fetched_with(
        &self,
        file: &BootFile,
        who: Option<Mac>,
        by: &str,
        took: Option<Duration>,
        disk: Option<&str>,
    ) {
        let stage = match file.kind {
            Kind::Loader => Stage::Loader,
            Kind::Script => Stage::Script,
            Kind::Hook => return,
        };
        let mut detail = format!("{} by {by}, {}", file.name, size(file.bytes.len()));
        if let Some(took) = took {
            detail += &format!(" in {:.1} s", took.as_secs_f64());
        }
        if let Some(disk) = disk {
            detail += &format!("; {disk}");
        }
        self.note(who, stage, &detail);
    }

    /// Reports that a machine is not given its script.
    pub fn withheld(&self, who: Mac, why: &BootError) {
        self.note(Some(who), Stage::Refused, &format!("its boot script: {why}"));
    }

    fn note(&self, who: Option<Mac>, stage: Stage, detail: &str) {
        let fleet = (self.fleet)();
        let client = who.and_then(|mac| fleet.by_mac(mac)).map(|client| &client.name);
        self.recorder.note(who, client, stage, detail);
    }
}

fn size(bytes: usize) -> String {
    if bytes < 10_000 { format!("{bytes} bytes") } else { format!("{} KB", bytes.div_ceil(1000)) }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    /// The least that passes for a program for this machine type.
    fn efi(machine: u16) -> Vec<u8> {
        let mut bytes = vec![0; 0x46];
        bytes[..2].copy_from_slice(b"MZ");
        bytes[0x3c] = 0x40;
        bytes[0x40..0x44].copy_from_slice(b"PE\0\0");
        bytes[0x44..].copy_from_slice(&machine.to_le_bytes());
        bytes
    }

    fn folder(files: &[(&str, &[u8])]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for (name, bytes) in files {
            fs::write(dir.path().join(name), bytes).unwrap();
        }
        dir
    }

    #[test]
    fn a_name_is_found_however_firmware_writes_it() {
        for (path, name) in [
            (&b"undionly.kpxe"[..], Name::Undionly),
            (b"/tftpboot/undionly.kpxe", Name::Undionly),
            (b"\\Boot\\x64\\SNPONLY.EFI", Name::Snponly),
            (b"C:\\ipxe.efi", Name::Ipxe),
            (b"C:ipxe.efi", Name::Ipxe),
            (b"../../etc/../autoexec.ipxe", Name::Autoexec),
            (b"//boot.ipxe", Name::Script),
            (b"snponly.efi\xff", Name::Snponly),
            (b"snponly.efi\0\0\xff\xff", Name::Snponly),
        ] {
            assert_eq!(Name::of(path), Some(name), "{}", path.escape_ascii());
        }
        for (text, name) in NAMES {
            assert_eq!((Name::of(text.as_bytes()), name.as_str()), (Some(name), text));
        }
    }

    #[test]
    fn what_is_not_in_the_table_does_not_exist() {
        for path in [
            &b""[..],
            b"/",
            b"..",
            b"\xff\xff",
            b"/etc/passwd",
            b"undionly.kpxe/",
            b"undionly.kpxe/..",
            b"undionly.kpx",
            b"xundionly.kpxe",
            b"\xffundionly.kpxe",
            b"undionly.kpxe\0x",
        ] {
            assert_eq!(Name::of(path), None, "{}", path.escape_ascii());
        }
    }

    #[test]
    fn loaders_are_read_once_and_ipxe_efi_may_be_missing() {
        let dir = folder(&[("undionly.kpxe", b"bios"), ("snponly.efi", &efi(PE_X64))]);
        let files = BootFiles::load(Some(dir.path())).unwrap();
        drop(dir);
        assert_eq!(files.loader(Name::Undionly).unwrap(), &b"bios"[..]);
        assert_eq!(files.loader(Name::Snponly).unwrap(), efi(PE_X64));
        assert_eq!(files.loader(Name::Ipxe), None);
    }

    #[test]
    fn the_loaders_of_the_package_pass() {
        if !Path::new(LOADER_DIR).join("snponly.efi").exists() {
            eprintln!("skip: the_loaders_of_the_package_pass needs {LOADER_DIR}/snponly.efi (apt install ipxe)");
            return;
        }
        let files = BootFiles::load(None).unwrap();
        assert!(files.loader(Name::Undionly).unwrap().len() > 10_000);
    }

    #[test]
    fn a_missing_loader_is_refused_with_what_to_do() {
        let dir = folder(&[("snponly.efi", &efi(PE_X64))]);
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
        let cut = &efi(PE_X64)[..0x44];
        let mut far = efi(PE_X64);
        far[0x3c..0x40].copy_from_slice(&[0xff; 4]);
        for (bytes, reason) in [
            (&efi(0xaa64)[..], "machine type 0xaa64, not for x64"),
            (b"<html>not found</html>", "no PE header"),
            (b"MZ", "no PE header"),
            (b"", "no PE header"),
            (cut, "no PE header"),
            (&far, "no PE header"),
        ] {
            let dir = folder(&[("undionly.kpxe", b"bios"), ("snponly.efi", bytes)]);
            let words = BootFiles::load(Some(dir.path())).unwrap_err().to_string();
            assert!(words.contains("snponly.efi") && words.contains(reason), "{words}");
        }
        let dir = folder(&[("undionly.kpxe", b""), ("snponly.efi", &efi(PE_X64))]);
        assert!(BootFiles::load(Some(dir.path())).unwrap_err().to_string().contains("it is empty"));
    }

    #[test]
    fn a_loader_too_large_for_memory_is_refused() {
        let dir = folder(&[("snponly.efi", &efi(PE_X64))]);
        File::create(dir.path().join("undionly.kpxe")).unwrap().set_len(MAX_LOADER + 1).unwrap();
        let words = BootFiles::load(Some(dir.path())).unwrap_err().to_string();
        assert!(words.contains("larger than 16 MB"), "{words}");
    }
}
