//! Edits of the mapping file: one value changes, and every other byte stays as its owner wrote it.
//!
//! [`apply`] is pure: a text in, a text out. [`edit`] does it to a file, and the rename of the new file onto the old one
//! is the commit: whoever looks, and whenever the power fails, there is the old text or the new one. The new text is
//! checked before it is written, and a file that somebody else saved meanwhile is read again, so nothing of theirs is lost.
//!
//! A symlink stays one: the file that it points to is replaced. Mode and owner stay; a second hard link keeps the old text.

use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::net::Ipv4Addr;
use std::ops::Range;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt, fchown};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};
use toml_edit::{Document, Item, Value};

use super::report::Report;
use super::{Loaded, check, read};
use crate::fleet::change::{Change, Changed, Refusal};
use crate::fleet::{Client, ClientName, Mac};

/// How often the edit is begun again on what somebody else saved meanwhile. A person saves once; a program that rewrites
/// the file all the time must be stopped first.
const MAX_TRIES: usize = 5;

/// What an edit did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Edited {
    /// The file says the new thing, durably.
    Written,
    /// The file said it already.
    AsItWas,
}

/// Why the file was not edited. It is as it was.
#[derive(Debug, thiserror::Error)]
pub enum EditError {
    /// The file is wrong already, or would be.
    #[error("{}", .0.to_string().trim_end())]
    Wrong(Report),
    /// The change cannot be made.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// The value was not found where the check of the file found it.
    #[error("cannot find the `mac` of `{0}` in the file")]
    NotFound(String),
    /// Somebody else saves the file again and again.
    #[error("{} is saved by somebody else again and again", .0.display())]
    Busy(PathBuf),
    /// The file system says no.
    #[error("cannot save {}: cannot {doing} {}: {source}", file.display(), path.display())]
    Unwritable {
        /// The mapping file.
        file: PathBuf,
        /// What was being done.
        doing: &'static str,
        /// To which file or folder.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
}

impl EditError {
    /// What a person can do about it.
    #[must_use]
    pub fn help(&self) -> Option<String> {
        Some(match self {
            Self::Wrong(_) => return None,
            Self::Refused(refusal) => refusal.help(),
            Self::NotFound(_) => "write it by hand".to_owned(),
            Self::Busy(_) => "stop the program that does, and try again".to_owned(),
            Self::Unwritable { file, source, .. } => match source.kind() {
                ErrorKind::StorageFull | ErrorKind::QuotaExceeded => {
                    "there is no room left on its disk: free some (df -h shows it); the file is as it was".to_owned()
                }
                ErrorKind::ReadOnlyFilesystem => format!(
                    "it is on a file system that is mounted read-only: mount it writable, or change {} where it comes from",
                    file.display()
                ),
                ErrorKind::PermissionDenied => {
                    "a new file is made beside it, so its folder must be writable: run this (or roost) as the folder's owner"
                        .to_owned()
                }
                _ => "the file is as it was".to_owned(),
            },
        })
    }
}

/// The text with this change; `None` where it says so already.
///
/// The changed value keeps its quotes, and an array of MACs stays an array, of the one new MAC. `name` is the file's path,
/// for the report.
///
/// # Errors
/// The text is wrong, before or after; or the change cannot be made.
pub fn apply(text: &str, name: &str, change: &Change) -> Result<Option<String>, EditError> {
    // Relative paths in it are not looked at here.
    let folder = Path::new("/");
    let Loaded { config, .. } = check(text, name, folder).map_err(EditError::Wrong)?;
    let Changed { fleet: wanted, effects } = change.apply(&config.fleet)?;
    if effects.is_empty() {
        return Ok(None);
    }
    let Change::Replace { client, mac } = change;
    let client = config.fleet.client(client).expect("a change was found for it");
    let not_found = || EditError::NotFound(client.name.to_string());
    let (place, value) = mac_value(text, client, *mac).ok_or_else(not_found)?;
    let edited = format!("{}{value}{}", &text[..place.start], &text[place.end..]);
    let loaded = check(&edited, name, folder).map_err(EditError::Wrong)?;
    if loaded.config.fleet == wanted { Ok(Some(edited)) } else { Err(not_found()) }
}

/// Where the client's MACs stand in the text, and what is to stand there.
fn mac_value(text: &str, client: &Client, mac: Mac) -> Option<(Range<usize>, String)> {
    let document = Document::parse(text).ok()?;
    let home = match &client.group {
        None => document.get("clients")?,
        Some(group) => document.get("group")?.get(group)?.get("clients")?,
    };
    let entry = home.get(client.name.as_str())?;
    let Item::Value(value) = entry.get("mac").unwrap_or(entry) else { return None };
    let place = value.span()?;
    let quoted = |string: &Value| Some(requoted(text.get(string.span()?)?, mac));
    let new = match value {
        Value::String(_) => quoted(value)?,
        Value::Array(macs) => format!("[{}]", quoted(macs.get(0)?)?),
        _ => return None,
    };
    text.get(place.clone())?;
    Some((place, new))
}

/// The MAC in the quotes that the old value has.
fn requoted(old: &str, mac: Mac) -> String {
    let quotes = ["\"\"\"", "'''", "\"", "'"].into_iter().find(|quotes| old.starts_with(quotes)).unwrap_or("\"");
    format!("{quotes}{mac}{quotes}")
}

/// Makes this change in the file.
///
/// It waits for other edits by Roost and for the disk: not for a thread that serves others.
///
/// # Errors
/// The file is as it was; the error says why and what to do.
pub fn edit(path: &Path, change: &Change) -> Result<Edited, EditError> {
    edit_in_steps(path, change, &mut |_| ())
}

/// A client that is to be written into the file: a name, a machine, and the fixed address that it has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewClient {
    /// Its name.
    pub name: ClientName,
    /// Its machine.
    pub mac: Mac,
    /// Its fixed address.
    pub ip: Ipv4Addr,
}

impl fmt::Display for NewClient {
    /// As a line under `[clients]`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, mac, ip } = self;
        write!(f, "{name} = {{ mac = \"{mac}\", ip = \"{ip}\" }}")
    }
}

/// Writes these clients into the file, under `[clients]`; all of them or none.
///
/// # Errors
/// The file is as it was; the error says why and what to do.
pub fn add_clients(path: &Path, clients: &[NewClient]) -> Result<Edited, EditError> {
    edit_with(path, &|text, name| added(text, name, clients), &mut |_| ())
}

/// The text with these clients directly behind `[clients]`, or behind everything, where that section does not stand alone.
fn added(text: &str, name: &str, clients: &[NewClient]) -> Result<Option<String>, EditError> {
    let folder = Path::new("/");
    let before = check(text, name, folder).map_err(EditError::Wrong)?.config.fleet;
    let Some(first) = clients.first() else { return Ok(None) };
    let newline = if text.contains("\r\n") { "\r\n" } else { "\n" };
    let lines: String = clients.iter().map(|client| format!("{client}{newline}")).collect();
    let is_head = |line: &str| line.split('#').next().unwrap_or_default().trim() == "[clients]";
    let mut at = 0;
    let head = text.split_inclusive('\n').find_map(|line| {
        at += line.len();
        is_head(line).then_some(at)
    });
    let edited = match head {
        Some(at) => {
            let missing = if text[..at].ends_with('\n') { "" } else { newline };
            format!("{}{missing}{lines}{}", &text[..at], &text[at..])
        }
        None => {
            let missing = if text.ends_with('\n') { "" } else { newline };
            format!("{text}{missing}{newline}[clients]{newline}{lines}")
        }
    };
    let after = check(&edited, name, folder).map_err(EditError::Wrong)?.config.fleet;
    let there = |client: &NewClient| {
        after.client(&client.name).is_some_and(|found| found.macs == [client.mac] && found.ip == Some(client.ip))
    };
    if after.clients().len() == before.clients().len() + clients.len() && clients.iter().all(there) {
        Ok(Some(edited))
    } else {
        Err(EditError::NotFound(first.name.to_string()))
    }
}

/// What an edit does to the file system, in this order. Tests stop it before each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    Make,
    Write,
    Sync,
    Compare,
    Rename,
    SyncFolder,
    Done,
}

fn edit_in_steps(path: &Path, change: &Change, before: &mut dyn FnMut(Step)) -> Result<Edited, EditError> {
    edit_with(path, &|text, name| apply(text, name, change), before)
}

/// Makes of a file's text and name the text that is to be; `None` where it is so already.
type Make<'a> = &'a dyn Fn(&str, &str) -> Result<Option<String>, EditError>;

fn edit_with(path: &Path, make: Make<'_>, before: &mut dyn FnMut(Step)) -> Result<Edited, EditError> {
    let name = path.display().to_string();
    let unreadable = |(message, help)| EditError::Wrong(Report::whole_file(&name, message, help));
    // The file itself, so that a symlink to it stays one. Where there is none, reading says so.
    let file = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    let save = Save::new(&file);
    // One edit at a time, also of several processes; ends with the descriptor.
    let folder = save.tried("open", &save.folder, File::open(&save.folder))?;
    save.tried("lock", &save.folder, flock(&folder, FlockOperation::LockExclusive).map_err(io::Error::from))?;
    for _ in 0..MAX_TRIES {
        let text = read(&file).map_err(unreadable)?;
        let Some(edited) = make(&text, &name)? else { return Ok(Edited::AsItWas) };
        save.write(&edited, before)?;
        before(Step::Compare);
        if read(&file).is_ok_and(|now| now == text) {
            before(Step::Rename);
            save.tried("rename", &save.new, fs::rename(&save.new, &file))?;
            before(Step::SyncFolder);
            if let Err(error) = folder.sync_all() {
                // It is done, for everybody who looks; only a power cut in the next seconds could undo it.
                tracing::warn!("{name} is saved, but its folder could not be synced: {error}");
            }
            before(Step::Done);
            return Ok(Edited::Written);
        }
    }
    Err(EditError::Busy(file.clone()))
}

/// The new file beside the old one; removed at the end, unless it has taken the old one's place.
struct Save<'a> {
    file: &'a Path,
    folder: PathBuf,
    new: PathBuf,
}

impl<'a> Save<'a> {
    fn new(file: &'a Path) -> Self {
        let folder = file.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let mut name = std::ffi::OsString::from(".");
        name.push(file.file_name().unwrap_or_default());
        name.push(".new");
        Self { file, folder: folder.to_owned(), new: folder.join(name) }
    }

    fn tried<T>(&self, doing: &'static str, path: &Path, result: io::Result<T>) -> Result<T, EditError> {
        let failed =
            |source| EditError::Unwritable { file: self.file.to_owned(), doing, path: path.to_owned(), source };
        result.map_err(failed)
    }

    fn write(&self, text: &str, before: &mut dyn FnMut(Step)) -> Result<(), EditError> {
        let old = self.tried("look at", self.file, fs::metadata(self.file))?;
        before(Step::Make);
        // One that is there was left by a process that died: whoever has the folder's lock is alone.
        match fs::remove_file(&self.new) {
            Err(error) if error.kind() != ErrorKind::NotFound => return self.tried("remove", &self.new, Err(error)),
            _ => {}
        }
        // Nobody reads in it before it has the old one's mode.
        let made = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&self.new);
        let mut new = self.tried("make", &self.new, made)?;
        before(Step::Write);
        self.tried("write", &self.new, new.write_all(text.as_bytes()))?;
        let made = self.tried("look at", &self.new, new.metadata())?;
        if (made.uid(), made.gid()) != (old.uid(), old.gid()) {
            self.tried("give to the owner of the old one", &self.new, fchown(&new, Some(old.uid()), Some(old.gid())))?;
        }
        let mode = fs::Permissions::from_mode(old.mode() & 0o7777);
        self.tried("set the mode of", &self.new, new.set_permissions(mode))?;
        before(Step::Sync);
        self.tried("sync", &self.new, new.sync_all())
    }
}

impl Drop for Save<'_> {
    fn drop(&mut self) {
        // Gone already after the rename; where it cannot be removed, the next edit does.
        let _ = fs::remove_file(&self.new);
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;
    use std::os::unix::process::ExitStatusExt;
    use std::process::Command;

    use super::*;
    use crate::config::parse;

    const NEW: &str = "52:54:00:aa:00:99";

    fn replace(client: &str) -> Change {
        Change::Replace { client: client.parse().unwrap(), mac: NEW.parse().unwrap() }
    }

    /// A whole file with these lines for its clients.
    fn file(clients: &str) -> String {
        format!("# lab\n[server]\ndhcp = \"off\"\n\n[defaults]\nimage = \"debian-12\" # golden\n\n{clients}")
    }

    #[test]
    fn the_mac_is_found_in_every_form_and_nothing_else_changes() {
        // «» stand around what changes.
        for (clients, new) in [
            ("[clients]\npc-07 = «\"52-54-00-AA-00-07\"» # by the door\npc-08 = '525400aa0008'\n", "\"M\""),
            ("[clients]\npc-07   =   «'5254.00aa.0007'»", "'M'"),
            ("[clients]\r\npc-07 = «\"\"\"52:54:00:aa:00:07\"\"\"»\r\n", "\"\"\"M\"\"\""),
            (
                "[clients]\npc-07 = { off = true, mac = «\"52:54:00:aa:00:07\"»  , note = \"52:54:00:aa:00:07\" }\n",
                "\"M\"",
            ),
            ("[clients]\npc-07 = {\n  mac = «\"52:54:00:aa:00:07\"», # TOML 1.1\n}\n", "\"M\""),
            ("[clients.pc-07]\nnote = \"x\"\nmac = «\"52:54:00:aa:00:07\"»\noff = true\n", "\"M\""),
            ("[clients]\npc-07.note = \"x\"\npc-07.mac = «\"52:54:00:aa:00:07\"»\n", "\"M\""),
            ("[clients]\n\"pc-07\".'mac' = «\"52:54:00:aa:00:07\"»\n", "\"M\""),
            ("[group.lab-a.clients]\npc-07 = «\"52:54:00:aa:00:07\"»\n[group.lab-b]\n", "\"M\""),
            ("[group.lab-a.clients.pc-07]\nmac = «\"52:54:00:aa:00:07\"»\n", "\"M\""),
            ("[group]\nlab-a.clients.pc-07.mac = «\"52:54:00:aa:00:07\"»\n", "\"M\""),
            ("[group.lab-a]\nclients = { pc-07 = { mac = «\"52:54:00:aa:00:07\"» } }\n", "\"M\""),
            (
                "[clients]\npc-07 = { mac = «[\"52:54:00:aa:00:07\", '52:54:00:bb:00:07']» } # dock and board\n",
                "[\"M\"]",
            ),
            ("[clients.pc-07]\nmac = «[\n  '52:54:00:aa:00:07', # dock\n]»\nnote = \"é\"\n", "['M']"),
        ] {
            let (head, rest) = clients.split_once('«').unwrap();
            let (_, tail) = rest.split_once('»').unwrap();
            for bom in ["", "\u{feff}"] {
                let old = bom.to_owned() + &file(&clients.replace(['«', '»'], ""));
                let wanted = bom.to_owned() + &file(&format!("{head}{}{tail}", new.replace('M', NEW)));
                let edited =
                    apply(&old, "roost.toml", &replace("pc-07")).unwrap_or_else(|error| panic!("{clients}: {error}"));
                assert_eq!(edited.unwrap(), wanted);
            }
        }
    }

    #[test]
    fn what_the_file_says_already_is_not_written() {
        for same in [NEW, "52-54-00-AA-00-99"] {
            let text = file(&format!("[clients]\npc-07 = \"{same}\"\n"));
            assert_eq!(apply(&text, "roost.toml", &replace("pc-07")).unwrap(), None);
        }
    }

    #[test]
    fn a_wrong_file_is_told_and_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("roost.toml");
        let text = file("[clients]\npc-07 = \"52:54:00:aa:00\"\n");
        fs::write(&path, &text).unwrap();
        let error = edit(&path, &replace("pc-07")).unwrap_err();
        assert!(matches!(&error, EditError::Wrong(_)) && error.to_string().contains("roost.toml:9:"), "{error}");
        assert_eq!(fs::read_to_string(&path).unwrap(), text);

        fs::write(&path, file(&format!("[clients]\npc-07 = \"52:54:00:aa:00:07\"\npc-08 = \"{NEW}\"\n"))).unwrap();
        let error = edit(&path, &replace("pc-07")).unwrap_err();
        assert!(matches!(error, EditError::Refused(Refusal::MacInUse { .. })), "{error}");

        let missing = folder.path().join("nowhere/roost.toml");
        assert!(edit(&missing, &replace("pc-07")).unwrap_err().to_string().contains("cannot open"));
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "nothing is left behind");
    }

    #[test]
    fn clients_are_added_under_their_section_and_nothing_else_changes() {
        let new = |name: &str, last: u8| NewClient {
            name: name.parse().unwrap(),
            mac: Mac::from_octets([0x52, 0x54, 0, 0xaa, 0, last]).unwrap(),
            ip: Ipv4Addr::new(10, 0, 0, last),
        };
        let lines = "x-1 = { mac = \"52:54:00:aa:00:01\", ip = \"10.0.0.1\" }\nx-2 = { mac = \"52:54:00:aa:00:02\", ip = \"10.0.0.2\" }\n";
        for (old, wanted) in [
            (
                file("[clients] # mine\npc = \"52:54:00:aa:00:07\"\n"),
                file(&format!("[clients] # mine\n{lines}pc = \"52:54:00:aa:00:07\"\n")),
            ),
            (file("[clients]"), file(&format!("[clients]\n{lines}"))),
            (file("[group.a]\n"), file(&format!("[group.a]\n\n[clients]\n{lines}"))),
        ] {
            let edited = added(&old, "roost.toml", &[new("x-1", 1), new("x-2", 2)]).unwrap().unwrap();
            assert_eq!(edited, wanted);
        }
        let taken = file("[clients]\npc = \"52:54:00:aa:00:01\"\n");
        assert!(matches!(added(&taken, "roost.toml", &[new("x-1", 1)]), Err(EditError::Wrong(_))));
        assert_eq!(added(&taken, "roost.toml", &[]).unwrap(), None);
    }

    fn lab() -> (tempfile::TempDir, PathBuf, String, String) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("roost.toml");
        let old = file("[clients]\npc-07 = \"52:54:00:aa:00:07\" # by the door\n");
        fs::write(&path, &old).unwrap();
        let new = old.replace("52:54:00:aa:00:07", NEW);
        (folder, path, old, new)
    }

    #[test]
    fn a_symlink_mode_and_owner_stay() {
        let (folder, path, _, new) = lab();
        let other = tempfile::tempdir().unwrap();
        let link = other.path().join("link.toml");
        symlink(&path, &link).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        // Only root may give a file away; elsewhere the owner stays by itself.
        let owner = if std::os::unix::fs::chown(&path, Some(12), Some(34)).is_ok() { Some((12, 34)) } else { None };
        assert_eq!(edit(&link, &replace("pc-07")).unwrap(), Edited::Written);
        assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
        assert_eq!(fs::read_to_string(&path).unwrap(), new);
        let found = fs::metadata(&path).unwrap();
        assert_eq!(found.mode() & 0o7777, 0o640);
        assert!(owner.is_none_or(|owner| owner == (found.uid(), found.gid())));
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "the new file took the old one's place");
        assert_eq!(edit(&link, &replace("pc-07")).unwrap(), Edited::AsItWas);
    }

    #[test]
    fn what_somebody_else_saved_meanwhile_is_kept() {
        let (_folder, path, old, new) = lab();
        let mut saved = false;
        let mut somebody = |step| {
            if step == Step::Compare && !saved {
                saved = true;
                fs::write(&path, old.clone() + "pc-08 = \"52:54:00:aa:00:08\"\n").unwrap();
            }
        };
        assert_eq!(edit_in_steps(&path, &replace("pc-07"), &mut somebody).unwrap(), Edited::Written);
        assert_eq!(fs::read_to_string(&path).unwrap(), new + "pc-08 = \"52:54:00:aa:00:08\"\n");
    }

    #[test]
    fn a_file_that_never_rests_is_given_up() {
        let (folder, path, old, _) = lab();
        let mut count = 0;
        let mut restless = |step| {
            if step == Step::Compare {
                count += 1;
                fs::write(&path, format!("{old}# {count}\n")).unwrap();
            }
        };
        let error = edit_in_steps(&path, &replace("pc-07"), &mut restless).unwrap_err();
        assert!(matches!(error, EditError::Busy(_)), "{error}");
        assert_eq!(count, MAX_TRIES);
        assert_eq!(fs::read_to_string(&path).unwrap(), format!("{old}# {count}\n"));
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_full_disk_and_a_read_only_one_say_what_to_do() {
        let unwritable = |kind: ErrorKind| EditError::Unwritable {
            file: "/etc/roost/roost.toml".into(),
            doing: "write",
            path: "/etc/roost/.roost.toml.new".into(),
            source: kind.into(),
        };
        for (kind, help) in [
            (ErrorKind::StorageFull, "no room left"),
            (ErrorKind::ReadOnlyFilesystem, "mounted read-only"),
            (ErrorKind::PermissionDenied, "folder must be writable"),
        ] {
            let error = unwritable(kind);
            assert!(error.to_string().starts_with("cannot save /etc/roost/roost.toml: cannot write"), "{error}");
            assert!(error.help().unwrap().contains(help), "{error}");
        }
    }

    /// Which file to edit, and before which step to die: how the test below makes its process that dies.
    const DIE: &str = "ROOST_TEST_DIE_IN_EDIT";

    #[test]
    fn dying_process() {
        let Ok(order) = std::env::var(DIE) else { return };
        let (step, path) = order.split_once(' ').unwrap();
        let _ = edit_in_steps(Path::new(path), &replace("pc-07"), &mut |now| {
            if format!("{now:?}") == step {
                std::process::abort();
            }
        });
    }

    #[test]
    fn a_process_that_dies_at_any_step_leaves_the_old_text_or_the_new() {
        let steps = [Step::Make, Step::Write, Step::Sync, Step::Compare, Step::Rename, Step::SyncFolder, Step::Done];
        for step in steps {
            let (folder, path, old, new) = lab();
            let status = Command::new(std::env::current_exe().unwrap())
                .args(["--exact", "config::edit::tests::dying_process", "--nocapture"])
                .env(DIE, format!("{step:?} {}", path.display()))
                .output()
                .unwrap()
                .status;
            assert_eq!(status.signal(), Some(6), "it died before {step:?}");
            let renamed = matches!(step, Step::SyncFolder | Step::Done);
            assert_eq!(&fs::read_to_string(&path).unwrap(), if renamed { &new } else { &old }, "{step:?}");
            // What it left is in nobody's way.
            edit(&path, &replace("pc-07")).unwrap();
            assert_eq!(fs::read_to_string(&path).unwrap(), new);
            if !renamed {
                assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
            }
        }
    }

    mod properties {
        use proptest::prelude::*;

        use super::*;

        /// One client as somebody may write it, with a mark where its MACs stand.
        fn client(number: usize, form: u8, quotes: u8, comment: &str, end: &str) -> String {
            let mac = match number % 4 {
                0 => format!("52:54:00:aa:01:{number:02x}"),
                1 => format!("52-54-00-AA-01-{number:02X}"),
                2 => format!("5254.00aa.01{number:02x}"),
                _ => format!("525400AA01{number:02X}"),
            };
            let quote = ["\"", "'", "\"\"\"", "'''"][usize::from(quotes % 4)];
            let one = format!("{quote}{mac}{quote}");
            let marked = |value: &str| format!("«{number}:{value}»");
            match form % 6 {
                0 => format!("pc-{number} = {}{comment}{end}", marked(&one)),
                1 => format!("pc-{number} = {{ mac = {}, off = true }}{comment}{end}", marked(&one)),
                2 => format!("pc-{number}.mac={}{comment}{end}pc-{number} . note = 'é \"'{end}", marked(&one)),
                3 => {
                    format!("'pc-{number}' = {{note=\"{mac}\",mac  =  {}}}{comment}{end}", marked(&format!("[{one}]")))
                }
                4 => {
                    let two = format!("[{end}  {one},{comment}{end}  \"52:54:00:bb:01:{number:02x}\"{end}]");
                    format!("pc-{number} = {{ mac = {} }}{comment}{end}", marked(&two))
                }
                _ => format!("\"pc-{number}\" = {}{comment}{end}{end}", marked(&one)),
            }
        }

        fn texts() -> impl Strategy<Value = (String, usize)> {
            let line =
                (any::<u8>(), any::<u8>(), prop::sample::select(vec!["", " # é", "  #'\"", "\t# a = \"b\""]), 0..4_u8);
            let ends = prop::sample::select(vec!["\n", "\r\n"]);
            (prop::collection::vec(line, 1..12), ends, any::<prop::sample::Index>(), any::<bool>()).prop_map(
                |(lines, end, which, bom)| {
                    let mut homes = vec![String::new(); 4];
                    for (number, (form, quotes, comment, home)) in lines.iter().enumerate() {
                        homes[usize::from(*home)] += &client(number, *form, *quotes, comment, end);
                    }
                    let bom = if bom { "\u{feff}" } else { "" };
                    let mut text = format!("{bom}[server]{end}dhcp = \"off\"{end}[defaults]{end}image = \"i\"{end}");
                    text += &format!("[clients]{end}{}", homes[0]);
                    for (number, home) in homes.iter().enumerate().skip(1) {
                        text += &format!("{end}# room{end}[group.g{number}.clients]{end}{home}");
                    }
                    (text, which.index(lines.len()))
                },
            )
        }

        /// The text without its marks, and the text around the value of one client.
        fn unmarked(text: &str, which: usize) -> (String, String, String) {
            let mut plain = String::new();
            let mut around = None;
            let mut rest = text;
            while let Some((head, tail)) = rest.split_once('«') {
                plain += head;
                let (value, after) = tail.split_once('»').unwrap();
                let (number, value) = value.split_once(':').unwrap();
                let begin = plain.len();
                plain += value;
                if number == which.to_string() {
                    around = Some((begin, plain.len()));
                }
                rest = after;
            }
            plain += rest;
            let (begin, end) = around.unwrap();
            let (head, tail) = (plain[..begin].to_owned(), plain[end..].to_owned());
            (plain, head, tail)
        }

        proptest! {
            /// The oracle is the generator, which knows where each value stands, and the change of the parsed fleet.
            #[test]
            fn only_the_bytes_of_that_value_change_and_the_file_means_what_was_wanted((text, which) in texts()) {
                let (plain, head, tail) = unmarked(&text, which);
                let change = replace(&format!("pc-{which}"));
                let edited = apply(&plain, "roost.toml", &change).unwrap().unwrap();
                prop_assert!(edited.starts_with(&head) && edited.ends_with(&tail), "{edited}");
                let value = edited[head.len()..edited.len() - tail.len()].trim_matches(['[', ']', '"', '\'']);
                prop_assert_eq!(value, NEW);
                let before = parse(&plain, "roost.toml").unwrap().config;
                let after = parse(&edited, "roost.toml").unwrap().config;
                prop_assert_eq!(after.fleet, change.apply(&before.fleet).unwrap().fleet);
                prop_assert_eq!(after.settings, before.settings);
            }
        }
    }
}
