//! How a verb fails: a kind, which is the exit code, what happened, and what to do about it.

use std::fmt;
use std::io::Write;

use serde::Serialize;

use crate::disk::{DiskError, ErrorKind};
use crate::store::{LockError, StoreError};

/// The kinds of failure. Scripts tell them apart by the exit code.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Kind {
    /// It was tried and did not work.
    Failed,
    /// The mapping file is missing or wrong.
    Configuration,
    /// It needs a running `roost run`, and there is none.
    NothingRuns,
    /// It was not tried, because it would do harm.
    Refused,
}

impl Kind {
    /// The exit code. 0 is success; 2, a wrong command line, is clap's.
    pub(super) const fn code(self) -> u8 {
        match self {
            Self::Failed => 1,
            Self::Configuration => 3,
            Self::NothingRuns => 4,
            Self::Refused => 5,
        }
    }
}

/// A verb's failure.
#[derive(Debug)]
pub(super) struct Error {
    pub(super) kind: Kind,
    /// What happened; a report of several lines is printed as it is.
    pub(super) message: String,
    /// What to do, one hint a line.
    pub(super) help: Vec<String>,
}

impl Error {
    pub(super) fn new(kind: Kind, message: impl fmt::Display) -> Self {
        Self { kind, message: message.to_string(), help: Vec::new() }
    }

    pub(super) fn failed(message: impl fmt::Display) -> Self {
        Self::new(Kind::Failed, message)
    }

    pub(super) fn help(mut self, hint: impl Into<String>) -> Self {
        self.help.push(hint.into());
        self
    }

    /// Prints it to standard error, for a person or for a program.
    pub(super) fn print(&self, json: bool) {
        let text = if json { self.json() } else { self.to_string() };
        // Where standard error is gone, the exit code still says it.
        let _ = std::io::stderr().write_all(text.as_bytes());
    }

    fn json(&self) -> String {
        let value = serde_json::json!({ "error": self.message, "kind": self.kind, "help": self.help });
        format!("{value}\n")
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "error: {}", self.message)?;
        self.help.iter().try_for_each(|hint| writeln!(f, "  help: {hint}"))
    }
}

impl From<DiskError> for Error {
    fn from(error: DiskError) -> Self {
        let hint = of_disk(&error);
        let error = Self::failed(error);
        hint.into_iter().fold(error, Self::help)
    }
}

/// What a person can do about a disk file, where the words of the error do not say it.
pub(super) fn of_disk(error: &DiskError) -> Option<&'static str> {
    match error.kind() {
        ErrorKind::Parent => Some(BRING_PARENT_BACK),
        ErrorKind::Corrupt => Some("copy it again from where it came from: damaged disks are not mended here"),
        _ => None,
    }
}

/// About a differencing disk whose chain is broken.
pub(super) const BRING_PARENT_BACK: &str =
    "bring its parent back: a differencing disk is of use only over the very file that it was made of";

impl From<LockError> for Error {
    fn from(error: LockError) -> Self {
        let kind = match error {
            LockError::Held { .. } => Kind::Refused,
            LockError::Unusable { .. } => Kind::Failed,
        };
        Self::new(kind, &error).help(error.help())
    }
}

impl From<StoreError> for Error {
    fn from(error: StoreError) -> Self {
        let kind = match error {
            StoreError::Busy(_) | StoreError::Newer { .. } => Kind::Refused,
            _ => Kind::Failed,
        };
        let full = error.is_full();
        let error = Self::new(kind, error);
        if full { error.help("free some space there; what was stored before is safe") } else { error }
    }
}
