//! Import: any disk that can be read becomes a master. What is not read here, `qemu-img` reads ([`qemu`]).
//!
//! A master is a *dynamic VHD*: only blocks that hold data are in the file, each with an all-ones bitmap and its data on
//! a 4 KiB boundary, and pages of zeros inside of a block stay holes. So it is about as large as what is in it, reads as
//! fast as a raw file, and other tools open it. Where its name ends in `.vhdx` it is a dynamic VHDX of the same kind. It is written beside its place, flushed, made read-only and renamed.

use std::fs;
use std::io::IoSlice;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use thiserror::Error;

use super::Disk;
use super::chain::Chain;
use super::copy::{Take, each_run};
use super::error::DiskError;
use super::file::{Access, Media, rename, sync_folder, sync_folder_of};
use super::inspect::{DiskFormat, Foreign, identify};
use super::qemu::{self, ByQemu, QemuError};
use super::vhd::create::TempFile;
use super::vhd::wire::BLOCK_SIZE;
use super::vhd::{Builder, MAX_SIZE};
use super::vhdx::create::{Spec, create_on, fill};
use super::vhdx::wire;

/// Sizes are rounded up to this with zeros, as Windows and every partitioner expect.
pub const SIZE_UNIT: u64 = 1 << 20;

/// What an import made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Imported {
    /// Capacity of the master in bytes.
    pub size: u64,
    /// Bytes that are not holes.
    pub data_bytes: u64,
    /// What was read: raw, where `qemu-img` read the source first.
    pub format: DiskFormat,
}

/// Why a file did not become a master.
#[derive(Debug, Error)]
pub enum ImportError {
    /// The source, or the place to write to, failed.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// The source is something that another tool has to open first.
    #[error("{}: {}: {}", path.display(), foreign.name, foreign.advice(path))]
    Foreign {
        /// The source.
        path: PathBuf,
        /// What it is.
        foreign: Foreign,
    },
    /// The source is empty or no whole number of sectors.
    #[error("{}: {len} bytes are no disk: a raw disk is a whole number of 512-byte sectors{}", path.display(),
        if *len == 0 { "" } else { " (was the download or copy cut short?)" })]
    NotADisk {
        /// The source.
        path: PathBuf,
        /// Its length.
        len: u64,
    },
    /// `qemu-img` did not read the source.
    #[error(transparent)]
    Qemu(#[from] QemuError),
    /// What `qemu-img` made of the source is a disk file of another format.
    #[error("{}: in it is not a disk, but a disk file of another format: take that one out and import it", path.display())]
    Nested {
        /// The source.
        path: PathBuf,
    },
    /// Too large for the format.
    #[error("{}: {} GiB are too many: a VHD ends at 2040 GiB", path.display(), size >> 30)]
    TooLarge {
        /// The source.
        path: PathBuf,
        /// Its capacity in bytes.
        size: u64,
    },
    /// There is a master at this place already; masters never change.
    #[error("{}: is there already, and a master never changes", path.display())]
    Exists {
        /// The master.
        path: PathBuf,
    },
}

/// Makes a master of a disk file (with its parents, if it has any): of one that is read here, or that `qemu-img` reads
/// where it is installed. `progress` is told bytes done and bytes in all, as the disk counts them, now and then.
///
/// # Errors
/// See [`ImportError`]. Nothing is left behind at `into`.
pub fn import(source: &Path, into: &Path, progress: &mut dyn FnMut(u64, u64)) -> Result<Imported, ImportError> {
    if into.exists() {
        return Err(ImportError::Exists { path: into.into() });
    }
    match identify(source)? {
        Ok(format) => make(source, format, source, into, progress),
        Err(Some(foreign)) => match foreign.by_qemu() {
            Some(format) => by_qemu(source, format, into, progress),
            None => Err(ImportError::Foreign { path: source.into(), foreign }),
        },
        Err(None) => {
            let len = fs::metadata(source).map_err(|error| DiskError::io(source, "look at", error))?.len();
            Err(ImportError::NotADisk { path: source.into(), len })
        }
    }
}

/// Makes the folder in which an import was prepared the image's, with all that lies in it: it is there whole, durably, or not at all.
///
/// # Errors
/// The system's; a folder that is there already and holds something among them.
pub fn place(prepared: &Path, folder: &Path) -> Result<(), DiskError> {
    sync_folder(prepared)?;
    rename(prepared, folder)?;
    sync_folder_of(folder)
}

/// Has `qemu-img` make a raw disk beside the master, and the master of that.
fn by_qemu(
    source: &Path,
    format: ByQemu,
    into: &Path,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<Imported, ImportError> {
    let raw = TempFile::beside(&into.with_extension("raw"))?;
    // Half of the way is each of the two copies; how long the disk is, is known as soon as the first has begun.
    qemu::convert(source, format, raw.temp_path(), &mut |hundredths| {
        let size = raw.file.len().unwrap_or_default();
        progress(u64::try_from(u128::from(size) * u128::from(hundredths) / 20_000).unwrap_or(size), size);
    })?;
    match identify(raw.temp_path())? {
        Ok(format @ DiskFormat::Raw) => {
            make(raw.temp_path(), format, source, into, &mut |done, total| progress((total + done) / 2, total))
        }
        // To believe it could lead to any file of this host: that of its parent.
        _ => Err(ImportError::Nested { path: source.into() }),
    }
}

/// Makes the master of what can be read. `source` is the name that errors about the whole disk call it by.
fn make(
    path: &Path,
    format: DiskFormat,
    source: &Path,
    into: &Path,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<Imported, ImportError> {
    // What we have just made is locked by us already.
    let vhdx = into.extension().is_some_and(|extension| extension == "vhdx");
    let access = if path == source { Access::Read } else { Access::Peek };
    let disk = match Chain::open(path, access) {
        // The capacity of a VHD is checked as its footer is read; others go further.
        Ok(disk) if disk.size() > MAX_SIZE && !vhdx => {
            return Err(ImportError::TooLarge { path: source.into(), size: disk.size() });
        }
        disk => disk?,
    };
    let size = disk.size().next_multiple_of(SIZE_UNIT).min(if vhdx { wire::MAX_SIZE } else { MAX_SIZE });
    let temp = TempFile::beside(into)?;
    let mut data_bytes = 0;
    let mut copy = |write: &mut Take<'_, DiskError>| {
        each_run(&disk, 0..disk.size(), progress, &mut |at, run| {
            data_bytes += run.len() as u64;
            write(at, run)
        })
    };
    if vhdx {
        create_on(&temp.file, &Spec { block_size: BLOCK_SIZE, ..Spec::dynamic(size) })?;
        fill(&temp.file, &mut |to| copy(&mut |at, run| to.write(at, &[IoSlice::new(run)])))?;
    } else {
        let mut builder = Builder::new(&temp.file, size)?;
        copy(&mut |at, run| builder.write(at, run))?;
        builder.finish()?;
    }
    fs::set_permissions(temp.temp_path(), fs::Permissions::from_mode(0o444))
        .map_err(|error| DiskError::io(temp.temp_path(), "make read-only", error))?;
    temp.file.sync()?;
    temp.keep()?;
    Ok(Imported { size, data_bytes, format })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::super::inspect::inspect;
    use super::super::model::{self, SECTORS};
    use super::*;

    #[test]
    fn a_raw_disk_becomes_a_sparse_read_only_dynamic_vhd_of_the_same_bytes() {
        let dir = model::scratch();
        let (raw, vhd) = (dir.path().join("disk.raw"), dir.path().join("1.vhd"));
        // 100 MiB and a bit, with data at its beginning, inside of a block, and in its last sector.
        let size = (100 << 20) + 512;
        let file = std::fs::File::create(&raw).unwrap();
        file.set_len(size).unwrap();
        use std::os::unix::fs::FileExt;
        for at in [0, (40 << 20) + 7 * 512, size - 512] {
            file.write_all_at(&model::pattern(at, 1, 0x77), at).unwrap();
        }
        let mut told = Vec::new();
        let imported = import(&raw, &vhd, &mut |done, total| told.push((done, total))).unwrap();
        assert_eq!(imported, Imported { size: 101 << 20, data_bytes: 2 * 4096 + 512, format: DiskFormat::Raw });
        assert_eq!(told.last(), Some(&(size, size)));
        assert!(told.len() < 8, "holes are skipped: {told:?}");

        let meta = fs::metadata(&vhd).unwrap();
        assert_eq!(meta.mode() & 0o7777, 0o444);
        assert!(meta.blocks() * 512 < 100_000 && meta.len() < 7 << 20, "{} {}", meta.blocks(), meta.len());
        let seen = inspect(&vhd).unwrap();
        assert_eq!((seen.layers[0].blocks, seen.warnings.len()), (Some((3, 51)), 0));

        let disk = Chain::open(&vhd, Access::Read).unwrap();
        let mut expected = fs::read(&raw).unwrap();
        expected.resize(101 << 20, 0);
        assert!(model::read(&disk, 0, (101 << 20) / 512) == expected);
        assert!(matches!(import(&raw, &vhd, &mut |_, _| ()), Err(ImportError::Exists { .. })));
        assert!(!dir.path().join("1.vhd.new").exists());
    }

    #[test]
    fn a_chain_becomes_one_master() {
        let dir = model::scratch();
        let mut model = model::master(&dir.path().join("master.vhd"));
        let top = model::children(dir.path(), 3, &mut model);
        let flat = dir.path().join("flat.vhd");
        let imported = import(&top, &flat, &mut |_, _| ()).unwrap();
        assert_eq!(imported.format, DiskFormat::VhdDifferencing);
        assert!(model::read(&Chain::open(&flat, Access::Read).unwrap(), 0, SECTORS) == model);
        let vhdx = dir.path().join("flat.vhdx");
        assert_eq!(import(&top, &vhdx, &mut |_, _| ()).unwrap(), imported);
        assert_eq!(identify(&vhdx).unwrap().unwrap(), DiskFormat::VhdxDynamic);
        assert!(model::read(&Chain::open(&vhdx, Access::Read).unwrap(), 0, SECTORS) == model);
    }

    #[test]
    fn what_is_no_disk_is_refused_with_what_to_do() {
        let dir = model::scratch();
        let path = dir.path().join("source");
        let refuse = |bytes: &[u8]| {
            fs::write(&path, bytes).unwrap();
            import(&path, &dir.path().join("1.vhd"), &mut |_, _| ()).unwrap_err().to_string()
        };
        assert!(refuse(b"").contains("0 bytes are no disk"));
        assert!(refuse(&[1; 700]).contains("cut short"));
        for (magic, word) in [
            (&b"QFI\xfb"[..], "qcow2 version 0"),
            (b"vhdxfile", "ends within its headers"),
            (b"\x1f\x8b\x08", "gunzip"),
            (b"\xfd7zXZ\0", "unxz"),
            (b"\x28\xb5\x2f\xfd", "unzstd"),
        ] {
            let mut bytes = vec![0; 4096];
            bytes[..magic.len()].copy_from_slice(magic);
            let error = refuse(&bytes);
            assert!(error.contains(word) && error.contains("source"), "{error}");
        }
        assert!(fs::read_dir(dir.path()).unwrap().count() == 1, "nothing but the source is left");
    }
}
