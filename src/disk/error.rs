//! What can go wrong with a disk, said so that a person can act on it.

use std::io;
use std::path::{Path, PathBuf};

use thiserror::Error;
use uuid::Uuid;

/// Why a disk could not be opened, read or written. Each message names the file.
#[derive(Debug, Error)]
pub enum DiskError {
    /// The system refused or failed an operation.
    #[error("{}: cannot {operation}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What was tried, as a verb: "read", "flush".
        operation: &'static str,
        /// The system's answer.
        source: io::Error,
    },
    /// The host's file system (or its quota) is full.
    #[error("{}: no space left on the host: free some; what was acknowledged is safe", path.display())]
    NoSpace {
        /// The file that wanted to grow.
        path: PathBuf,
    },
    /// The file contradicts its format.
    #[error("{}: damaged at byte {offset}: {what}", path.display())]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// Where in the file.
        offset: u64,
        /// What is wrong there.
        what: String,
    },
    /// The file is sound, but of a kind that is not read here.
    #[error("{}: {what}", path.display())]
    Unsupported {
        /// The file.
        path: PathBuf,
        /// What it is, and what to do.
        what: String,
    },
    /// A write to a disk that was opened for reading.
    #[error("{}: opened read-only", path.display())]
    ReadOnly {
        /// The file.
        path: PathBuf,
    },
    /// A request outside of the disk, or not in whole sectors.
    #[error("{}: {len} bytes at {offset} are not whole sectors within {size} bytes", path.display())]
    OutOfRange {
        /// The file.
        path: PathBuf,
        /// First byte asked for.
        offset: u64,
        /// Bytes asked for.
        len: u64,
        /// Capacity of the disk.
        size: u64,
    },
    /// Another process has the file open in a way that excludes this one.
    #[error("{}: in use by another process (a disk has one writer, a master has none)", path.display())]
    Locked {
        /// The file.
        path: PathBuf,
    },
    /// An earlier barrier failed: what the device holds is unknown.
    #[error("{}: an earlier flush failed, so nothing more is written; check the device, then open the disk anew", path.display())]
    Failed {
        /// The file.
        path: PathBuf,
    },
    /// The parent of a differencing disk is nowhere it was said to be.
    #[error("{}: its parent (id {id}) is missing; looked for {}", child.display(), list(tried))]
    ParentMissing {
        /// The differencing disk.
        child: PathBuf,
        /// The identity that its parent must have.
        id: Uuid,
        /// Every path that was tried.
        tried: Vec<PathBuf>,
    },
    /// A file lies where the parent should, but it is another disk.
    #[error("{}: wants the parent with id {wanted}, but {} has id {found}", child.display(), parent.display())]
    ParentMismatch {
        /// The differencing disk.
        child: PathBuf,
        /// The file that was found.
        parent: PathBuf,
        /// The identity that the child names.
        wanted: Uuid,
        /// The identity of the file.
        found: Uuid,
    },
    /// The parent of a differencing VHDX was written to since the child was made, or is another disk.
    #[error("{}: its parent {} was changed since the child was made, or is another disk: its DataWriteGuid is {found}, \
        the child's parent_linkage {wanted}", child.display(), parent.display())]
    ParentChanged {
        /// The differencing disk.
        child: PathBuf,
        /// The file that was found.
        parent: PathBuf,
        /// The DataWriteGuid that the child names.
        wanted: Uuid,
        /// The DataWriteGuid of the file.
        found: Uuid,
    },
    /// A disk is its own ancestor, or has too many of them.
    #[error("{}: {what}", path.display())]
    Chain {
        /// The file at which the chain was given up.
        path: PathBuf,
        /// What is wrong with it.
        what: String,
    },
}

/// The kinds of [`DiskError`] that callers treat differently.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorKind {
    /// The device or the system failed.
    Io,
    /// The host is full.
    NoSpace,
    /// The file is damaged.
    Corrupt,
    /// The file is of a kind that is not read here.
    Unsupported,
    /// A write to a read-only disk.
    ReadOnly,
    /// A request outside of the disk.
    OutOfRange,
    /// Somebody else has the file.
    Locked,
    /// The chain of parents is broken.
    Parent,
}

impl DiskError {
    /// The kind, for callers that answer by it.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Io { .. } | Self::Failed { .. } => ErrorKind::Io,
            Self::NoSpace { .. } => ErrorKind::NoSpace,
            Self::Corrupt { .. } => ErrorKind::Corrupt,
            Self::Unsupported { .. } => ErrorKind::Unsupported,
            Self::ReadOnly { .. } => ErrorKind::ReadOnly,
            Self::OutOfRange { .. } => ErrorKind::OutOfRange,
            Self::Locked { .. } => ErrorKind::Locked,
            Self::ParentMissing { .. }
            | Self::ParentMismatch { .. }
            | Self::ParentChanged { .. }
            | Self::Chain { .. } => ErrorKind::Parent,
        }
    }

    pub(crate) fn io(path: &Path, operation: &'static str, source: impl Into<io::Error>) -> Self {
        let source = source.into();
        match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Self::NoSpace { path: path.into() },
            _ => Self::Io { path: path.into(), operation, source },
        }
    }

    pub(crate) fn corrupt(path: &Path, offset: u64, what: impl Into<String>) -> Self {
        Self::Corrupt { path: path.into(), offset, what: what.into() }
    }
}

fn list(paths: &[PathBuf]) -> String {
    let names: Vec<_> = paths.iter().map(|path| path.display().to_string()).collect();
    if names.is_empty() { "no path (the file names none)".to_owned() } else { names.join(", ") }
}
