//! Edits of the mapping file: one value changes, and every other byte stays as its owner wrote it.
//!
//! [`apply`] is pure: a text in, a text out. [`edit`] does it to a file, and the rename of the new file onto the old one
//! is the commit: whoever looks, and whenever the power fails, there is the old text or the new one. The new text is
//! checked before it is written, and a file that somebody else saved meanwhile is read again, so nothing of theirs is lost.
//!
//! A symlink stays one: the file that it points to is replaced. Mode and owner stay; a second hard link keeps the old text.

use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::ops::Range;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt, fchown};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};
use toml_edit::{Document, Item, Value};

use super::report::Report;
use super::{Loaded, check, read};
use crate::fleet::change::{Change, Changed, Refusal};
use crate::fleet::{Client, Mac};

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
        let Some(edited) = apply(&text, &name, change)? else { return Ok(Edited::AsItWas) };
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
