//! Image versions: a master becomes the next one by merging a child into a new file.
//!
//! A master never changes. A *maintenance child* is a writable child of a version, for one administrator; publishing it, or any
//! other chain, merges everything into a new version while the old one stays for the children that stand on it.
//!
//! ```text
//! images/NAME/1.vhd              a version
//! images/NAME/2.vhd              the next one
//! images/NAME/maintenance.vhd    the maintenance child, while there is one
//! ```
//!
//! All of it may be VHDX as well (`1.vhdx`, `maintenance.vhdx`): what is merged keeps its format.
//!
//! A new version is written beside its place, flushed, and renamed; a crash leaves the versions that there were.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::super::chain::Chain;
use super::super::error::DiskError;
use super::super::file::{Access, remove, sync_folder_of};
use super::super::import::{ImportError, Imported, import};
use super::super::names::{self, Format};
use super::super::vhd::create_child;
use super::super::vhdx;
use super::format::look;

/// Children that an error names; more are counted.
const NAMED: usize = 5;

/// Why a version was not made or removed. Nothing has happened.
#[derive(Debug, thiserror::Error)]
pub enum VersionError {
    /// The chain could not be merged.
    #[error(transparent)]
    Import(#[from] ImportError),
    /// A file could not be read or written.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// Disks stand on it.
    #[error("{} cannot be deleted: {} of it: {}; reset, roll back or delete them first", version.display(), count(children.len()), named(children))]
    HasChildren {
        /// The version's file.
        version: PathBuf,
        /// The files that stand on it.
        children: Vec<PathBuf>,
    },
    /// There is a maintenance child already.
    #[error("{}: there is a maintenance child already: publish it, or delete it", path.display())]
    InMaintenance {
        /// The maintenance child.
        path: PathBuf,
    },
    /// There is no such version.
    #[error("{}: there is no such version", path.display())]
    NoVersion {
        /// Where it would be.
        path: PathBuf,
    },
}

fn count(children: usize) -> String {
    if children == 1 { "a disk is a child".to_owned() } else { format!("{children} disks are children") }
}

fn named(children: &[PathBuf]) -> String {
    let names: Vec<_> = children.iter().take(NAMED).map(|path| path.display().to_string()).collect();
    let more = if children.len() > NAMED { format!(" and {} more", children.len() - NAMED) } else { String::new() };
    names.join(", ") + &more
}

/// Where a version of the image in this folder is.
#[must_use]
pub fn version_path(folder: &Path, version: u32) -> PathBuf {
    of_either_format(folder, &version.to_string())
}

/// Where the maintenance child is.
#[must_use]
pub fn maintenance_path(folder: &Path) -> PathBuf {
    of_either_format(folder, "maintenance")
}

/// The file of this name that is there; a VHD's, if there is none.
fn of_either_format(folder: &Path, stem: &str) -> PathBuf {
    let stem = folder.join(stem);
    names::find(&stem).unwrap_or_else(|| names::path(&stem, Format::Vhd))
}

/// The number of a version's file, by its name.
#[must_use]
pub fn version_of(path: &Path) -> Option<u32> {
    names::stem(path)?.parse().ok().filter(|version| *version > 0)
}

/// The versions of the image in this folder, oldest first.
///
/// # Errors
/// The folder cannot be read.
pub fn versions(folder: &Path) -> Result<Vec<u32>, DiskError> {
    let mut versions: Vec<u32> = files(folder)?.iter().filter_map(|path| version_of(path)).collect();
    versions.sort_unstable();
    versions.dedup();
    Ok(versions)
}

/// Merges a chain, whatever it stands on, into the next version of the image in this folder. The chain stays as it is, and must
/// not be in use. The new version's number.
///
/// # Errors
/// The chain cannot be read, or the version cannot be written; nothing is left behind.
pub fn publish(
    source: &Path,
    folder: &Path,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<(u32, Imported), VersionError> {
    let version = versions(folder)?.last().copied().unwrap_or(0).saturating_add(1);
    // What the source is is known by its contents; one that cannot be looked at is told of by the import.
    let format = look(source).map(|seen| seen.format).unwrap_or_default();
    let into = names::path(&folder.join(version.to_string()), format);
    let imported = import(source, &into, progress)?;
    Ok((version, imported))
}

/// Makes a maintenance child of a version.
///
/// # Errors
/// There is one, there is no such version, or the system's error.
pub fn maintain(folder: &Path, version: u32) -> Result<PathBuf, VersionError> {
    let (path, master) = (maintenance_path(folder), version_path(folder, version));
    if path.exists() {
        return Err(VersionError::InMaintenance { path });
    }
    if !master.exists() {
        return Err(VersionError::NoVersion { path: master });
    }
    let parent = Chain::open(&master, Access::Read)?;
    let format = Format::of_child(&parent);
    let path = names::path(&path, format);
    let relative = format!(r".\{version}.{}", format.extension());
    match format {
        Format::Vhd => create_child(&path, &parent, &relative)?,
        Format::Vhdx => vhdx::create_child(&path, &parent, &relative)?,
    };
    Ok(path)
}

/// Opens the maintenance child for writing.
///
/// # Errors
/// There is none, somebody has it open, or the system's error.
pub fn open_maintenance(folder: &Path) -> Result<Arc<Chain>, DiskError> {
    Ok(Arc::new(Chain::open(&maintenance_path(folder), Access::Write)?))
}

/// Makes the maintenance child the next version, and removes it. A crash in between leaves the version and the child.
///
/// # Errors
/// As [`publish`].
pub fn publish_maintenance(folder: &Path, progress: &mut dyn FnMut(u64, u64)) -> Result<(u32, Imported), VersionError> {
    let path = maintenance_path(folder);
    let published = publish(&path, folder, progress)?;
    remove(&path)?;
    sync_folder_of(&path)?;
    Ok(published)
}

/// Deletes a version on which no disk stands: none in the image's own folder, and none in `others`.
///
/// # Errors
/// There is no such version, disks stand on it, or a folder cannot be read.
pub fn delete_version(folder: &Path, version: u32, others: &[&Path]) -> Result<(), VersionError> {
    let path = version_path(folder, version);
    if !path.exists() {
        return Err(VersionError::NoVersion { path });
    }
    let id = look(&path)?.id;
    let mut children = Vec::new();
    for folder in others.iter().copied().chain([folder]) {
        // What is no disk file (a note, a map) stands on nothing.
        let stands = |file: &PathBuf| look(file).is_ok_and(|seen| seen.parent == Some(id));
        children.extend(files(folder)?.into_iter().filter(stands));
    }
    if !children.is_empty() {
        children.sort();
        return Err(VersionError::HasChildren { version: path, children });
    }
    remove(&path)?;
    Ok(sync_folder_of(&path)?)
}

/// The plain files in a folder.
fn files(folder: &Path) -> Result<Vec<PathBuf>, DiskError> {
    let cannot = |source| DiskError::io(folder, "list", source);
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).map_err(cannot)? {
        let entry = entry.map_err(cannot)?;
        if entry.file_type().map_err(cannot)?.is_file() {
            files.push(entry.path());
        }
    }
    Ok(files)
}
