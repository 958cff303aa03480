//! The table of boot files: the few names that a machine may ask for by TFTP or HTTP, and the bytes behind each.
//!
//! A stranger's path is never joined to one of ours. Its last part is looked up in a table; firmware puts folders, drive
//! letters and backslashes before it, and some of it rubbish after it. The loaders are read into memory once, at start, and
//! each is held against the platform that it is for ([`crate::app::loaders`]): they are small, and every machine of a lab
//! wants them in the same minute.
//!
//! Not here: the protocols that carry them, and what a script says ([`crate::script`]).

use std::borrow::Cow;
use std::fmt;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use super::boots::BootError;
pub use super::loaders::{BootFiles, LOADER_DIR, LoaderError, MAX_LOADER, Wanted};
use super::packets::Packet;
use super::recorder::Recorder;
use crate::fleet::policy::{DiskAtBoot, boot_plan};
use crate::fleet::{DiskPolicy, Fact, Fleet, Mac, Platform, Secrets, Stage};
use crate::script::{self, ScriptError, Server};

/// A loader that was fetched so often in a row, without a script after it, does not do what it is for.
const LOOP_TIMES: u32 = 3;

/// What a machine may ask for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Name<'a> {
    /// The script that iPXE looks for by itself beside its own file.
    Autoexec,
    /// A machine's own script.
    Script,
    /// A loader, if there is one of this name.
    Loader(&'a [u8]),
}

/// The names that are not loaders' but made when they are asked for.
const MADE: [(&str, Name<'static>); 2] = [("autoexec.ipxe", Name::Autoexec), ("boot.ipxe", Name::Script)];
/// The name of a machine's own script.
pub const SCRIPT: &str = "boot.ipxe";

impl<'a> Name<'a> {
    /// What this path, as a machine wrote it, means: at any depth, with `/` or `\`, with a drive letter, in any case.
    ///
    /// Names are bytes. Trailing NUL and 0xFF are what old ROMs read past the end of DHCP's option 67; without them the
    /// name is as good as any.
    #[must_use]
    pub fn of(path: &'a [u8]) -> Option<Self> {
        let end = path.iter().rposition(|b| !matches!(b, 0 | 0xff))? + 1;
        let base = path[..end].rsplit(|b| matches!(b, b'/' | b'\\' | b':')).next().filter(|base| !base.is_empty())?;
        let made = MADE.iter().find(|(name, _)| base.eq_ignore_ascii_case(name.as_bytes()));
        Some(made.map_or(Self::Loader(base), |(_, name)| *name))
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
    /// A file of the operator's, which is no stage of a boot.
    Plain,
}

/// The answer to a request.
#[derive(Debug, Clone)]
pub struct BootFile {
    /// Its name as the table writes it.
    pub name: Cow<'static, str>,
    /// What it is.
    pub kind: Kind,
    /// The whole of it. Files are shared, not copied.
    pub bytes: Bytes,
}

/// Who has this address, as far as the lease table and the kernel's neighbours know.
pub type Resolver = Box<dyn Fn(IpAddr) -> Option<Mac> + Send + Sync>;

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
        let made =
            |name, kind, script: String| Some(BootFile { name: Cow::Borrowed(name), kind, bytes: script.into() });
        Ok(match (name, who) {
            (Name::Script, Some(mac)) => {
                let script = script::render(boot_plan(&(self.fleet)(), mac), mac, &self.server, secrets)?;
                made(SCRIPT, Kind::Script, script)
            }
            (Name::Script, None) => made(SCRIPT, Kind::Hook, script::chain(&self.server)?),
            (Name::Autoexec, _) => made(MADE[0].0, Kind::Hook, script::chain(&self.server)?),
            (Name::Loader(base), _) => {
                self.files.loader(base).map(|(name, bytes)| BootFile { name: name.into(), kind: Kind::Loader, bytes })
            }
        })
    }

    /// The names of all that can be fetched.
    pub fn names(&self) -> impl Iterator<Item = &'static str> {
        self.files.names().chain(MADE.iter().map(|(name, _)| *name))
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
            Kind::Hook | Kind::Plain => return,
        };
        let mut detail = format!("{} by {by}, {}", file.name, size(file.bytes.len()));
        if let Some(took) = took {
            detail += &format!(" in {:.1} s", took.as_secs_f64());
        }
        if let Some(disk) = disk {
            detail += &format!("; {disk}");
        }
        let ms = took.map(|took| u64::try_from(took.as_millis()).unwrap_or(u64::MAX));
        self.note(who, stage, &detail, Fact::Fetched { bytes: file.bytes.len() as u64, ms });
        match (who, file.kind) {
            (Some(mac), Kind::Script) => self.recorder.got_script(mac),
            (Some(mac), Kind::Loader) => {
                let times = self.recorder.loaded(mac, &file.name);
                if times.is_multiple_of(LOOP_TIMES) {
                    let words = format!(
                        "{} was fetched {times} times in a row, and no script after it: the loader does not run, or another \
                         server answers its DHCP",
                        file.name
                    );
                    self.note(who, stage, &words, Fact::LoaderLoop { loader: file.name.to_string(), times });
                }
            }
            _ => {}
        }
    }

    /// A machine asks for this loader: reports one that its firmware cannot run. Of names that are none of ours only the ending
    /// tells.
    pub fn asked(&self, name: &[u8], who: Option<Mac>) {
        let Some(Name::Loader(base)) = Name::of(name) else { return };
        let Some(firmware) = who.and_then(|mac| self.recorder.platform_of(mac)) else { return };
        let ours = self.files.loader(base).and_then(|(name, _)| Some((name, self.files.loaders().platform_of(name)?)));
        let efi = base.len() >= 4 && base[base.len() - 4..].eq_ignore_ascii_case(b".efi");
        let (of, word) = match ours {
            Some((_, of)) => (of.to_string(), of.word()),
            None if efi => ("UEFI".to_owned(), "uefi"),
            None => return,
        };
        let wrong = match ours {
            Some((_, of)) => of != firmware,
            None => matches!(firmware, Platform::Bios | Platform::RaspberryPi),
        };
        if wrong {
            let loader = base.escape_ascii().to_string();
            let words =
                format!("its firmware is {firmware}, but it asks for {loader}, which is for {of}: who told it so?");
            let fact = Fact::WrongLoader { firmware: firmware.word().to_owned(), loader, of: word.to_owned() };
            self.note(who, Stage::Loader, &words, fact);
        }
    }

    /// Keeps a packet of a machine, if it is known which one it is.
    pub fn keep(&self, who: Option<Mac>, packet: Packet) {
        if let Some(mac) = who {
            self.recorder.packets().add(mac, (self.fleet)().by_mac(mac).is_some(), packet);
        }
    }

    /// Reports that a machine is not given its script.
    pub fn withheld(&self, who: Mac, why: &BootError) {
        self.note(Some(who), Stage::Refused, &format!("its boot script: {why}"), None);
    }

    /// Reports that the fetch of a boot file stands still, or came to no good end.
    pub fn stalled(&self, who: Option<Mac>, words: &str, fact: Fact) {
        self.note(who, Stage::Loader, words, fact);
    }

    fn note(&self, who: Option<Mac>, stage: Stage, detail: &str, fact: impl Into<Option<Fact>>) {
        let fleet = (self.fleet)();
        let client = who.and_then(|mac| fleet.by_mac(mac)).map(|client| &client.name);
        self.recorder.note_fact(who, client, stage, detail, fact);
    }
}

fn size(bytes: usize) -> String {
    if bytes < 10_000 { format!("{bytes} bytes") } else { format!("{} KB", bytes.div_ceil(1000)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_found_however_firmware_writes_it() {
        for (path, name) in [
            (&b"undionly.kpxe"[..], Name::Loader(b"undionly.kpxe")),
            (b"/tftpboot/undionly.kpxe", Name::Loader(b"undionly.kpxe")),
            (b"\\Boot\\x64\\SNPONLY.EFI", Name::Loader(b"SNPONLY.EFI")),
            (b"C:\\ipxe.efi", Name::Loader(b"ipxe.efi")),
            (b"C:ipxe.efi", Name::Loader(b"ipxe.efi")),
            (b"../../etc/../autoexec.ipxe", Name::Autoexec),
            (b"/a/b\\c/AutoExec.ipxe", Name::Autoexec),
            (b"//boot.ipxe", Name::Script),
            (b"snponly.efi\xff", Name::Loader(b"snponly.efi")),
            (b"snponly.efi\0\0\xff\xff", Name::Loader(b"snponly.efi")),
        ] {
            assert_eq!(Name::of(path), Some(name), "{}", path.escape_ascii());
        }
        assert!(MADE.iter().any(|(name, of)| *name == SCRIPT && *of == Name::Script));
    }

    #[test]
    fn a_path_without_a_last_part_names_nothing() {
        for path in [&b""[..], b"/", b"\xff\xff", b"undionly.kpxe/", b"C:"] {
            assert_eq!(Name::of(path), None, "{}", path.escape_ascii());
        }
    }
}
