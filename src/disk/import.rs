//! Import: any disk that can be read becomes a master. What is not read here, `qemu-img` reads ([`qemu`]).
//!
//! A master is a *dynamic VHD*: only blocks that hold data are in the file, each with an all-ones bitmap and its data on
//! a 4 KiB boundary, and pages of zeros inside of a block stay holes. So it is about as large as what is in it, reads as
//! fast as a raw file, and other tools open it. Or it is a dynamic VHDX of the same kind: where that is asked for, or the
//! disk cannot be a VHD. A VHDX that was made of a VHDX has its sectors; of anything else, 512 bytes on 4096, as Windows
//! makes it. It is written beside its place, flushed, made read-only and renamed.

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
use super::names::{self, Format};
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
    /// It is to be a VHD, and cannot be one.
    #[error("{}: {why}", path.display())]
    NoVhd {
        /// The source.
        path: PathBuf,
        /// Why.
        why: NoVhd,
    },
    /// There is a master at this place already; masters never change.
    #[error("{}: is there already, and a master never changes", path.display())]
    Exists {
        /// The master.
        path: PathBuf,
    },
}

/// Why a disk cannot be a VHD.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum NoVhd {
    /// It has so many bytes.
    #[error("{} GiB are too many for a VHD, which ends at 2040 GiB", .0 >> 30)]
    TooLarge(u64),
    /// Its logical sectors have so many bytes.
    #[error("its sectors have {0} bytes, and those of a VHD have 512")]
    Sectors(u32),
}

impl NoVhd {
    /// Why this disk cannot be a VHD, if it cannot.
    #[must_use]
    pub fn of(disk: &dyn Disk) -> Option<Self> {
        match disk.sectors().logical {
            512 => (disk.size() > MAX_SIZE).then(|| Self::TooLarge(disk.size())),
            sector => Some(Self::Sectors(sector)),
        }
    }
}

/// The master that [`import_fitting`] made.
#[derive(Debug)]
pub struct Fitted {
    /// Its file.
    pub path: PathBuf,
    /// Why it is no VHD.
    pub why: Option<NoVhd>,
    /// The rest.
    pub imported: Imported,
}

/// Where a master is to be made.
#[derive(Debug, Clone, Copy)]
enum Wanted<'a> {
    /// Here; the file's name says in which format.
    At(&'a Path),
    /// As the file of this stem, in the format that fits.
    Fitting(&'a Path),
}

impl Wanted<'_> {
    /// What is in the way.
    fn taken(self) -> Option<PathBuf> {
        match self {
            Self::At(path) => path.exists().then(|| path.to_owned()),
            Self::Fitting(stem) => names::find(stem),
        }
    }

    /// A name beside it.
    fn beside(self, extension: &str) -> PathBuf {
        let (Self::At(path) | Self::Fitting(path)) = self;
        path.with_extension(extension)
    }
}

/// Makes a master of a disk file (with its parents, if it has any): of one that is read here, or that `qemu-img` reads
/// where it is installed. It is a VHDX if the name `into` ends in `vhdx`, else a VHD. `progress` is told bytes done and bytes
/// in all, as the disk counts them, now and then.
///
/// # Errors
/// See [`ImportError`]. Nothing is left behind at `into`.
pub fn import(source: &Path, into: &Path, progress: &mut dyn FnMut(u64, u64)) -> Result<Imported, ImportError> {
    make_any(source, Wanted::At(into), progress).map(|fitted| fitted.imported)
}

/// The same as the file of this [stem](names): a VHD where the disk can be one, else a VHDX.
///
/// # Errors
/// As [`import`].
pub fn import_fitting(source: &Path, stem: &Path, progress: &mut dyn FnMut(u64, u64)) -> Result<Fitted, ImportError> {
    make_any(source, Wanted::Fitting(stem), progress)
}

fn make_any(source: &Path, into: Wanted<'_>, progress: &mut dyn FnMut(u64, u64)) -> Result<Fitted, ImportError> {
    if let Some(path) = into.taken() {
        return Err(ImportError::Exists { path });
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
    into: Wanted<'_>,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<Fitted, ImportError> {
    let raw = TempFile::beside(&into.beside("raw"))?;
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
    into: Wanted<'_>,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<Fitted, ImportError> {
    // What we have just made is locked by us already.
    let access = if path == source { Access::Read } else { Access::Peek };
    let disk = Chain::open(path, access)?;
    let why = NoVhd::of(&disk);
    let (target, into) = match into {
        Wanted::At(path) => (Format::of_name(path).unwrap_or_default(), path.to_owned()),
        Wanted::Fitting(stem) => {
            let target = if why.is_some() { Format::Vhdx } else { Format::Vhd };
            (target, names::path(stem, target))
        }
    };
    let most = match (target, why) {
        (Format::Vhd, Some(why)) => return Err(ImportError::NoVhd { path: source.into(), why }),
        (Format::Vhd, None) => MAX_SIZE,
        (Format::Vhdx, _) => wire::MAX_SIZE,
    };
    let size = disk.size().next_multiple_of(SIZE_UNIT).min(most);
    let temp = TempFile::beside(&into)?;
    let mut data_bytes = 0;
    let mut copy = |write: &mut Take<'_, DiskError>| {
        each_run(&disk, 0..disk.size(), progress, &mut |at, run| {
            data_bytes += run.len() as u64;
            write(at, run)
        })
    };
    match target {
        Format::Vhdx => {
            create_on(&temp.file, &Spec { block_size: BLOCK_SIZE, ..Spec::of(&disk, size) })?;
            fill(&temp.file, &mut |to| copy(&mut |at, run| to.write(at, &[IoSlice::new(run)])))?;
        }
        Format::Vhd => {
            let mut builder = Builder::new(&temp.file, size)?;
            copy(&mut |at, run| builder.write(at, run))?;
            builder.finish()?;
        }
    }
    fs::set_permissions(temp.temp_path(), fs::Permissions::from_mode(0o444))
        .map_err(|error| DiskError::io(temp.temp_path(), "make read-only", error))?;
    temp.file.sync()?;
    temp.keep()?;
    Ok(Fitted { path: into, why, imported: Imported { size, data_bytes, format } })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::super::Sectors;
    use super::super::inspect::inspect;
    use super::super::model::{self, SECTORS};
    use super::super::vhdx::create;
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
    fn a_disk_becomes_what_it_can_be_and_keeps_its_sectors() {
        let dir = model::scratch();
        let sectors = |path: &Path| {
            let Sectors { logical, physical } = Chain::open(path, Access::Read).unwrap().sectors();
            (logical, physical)
        };
        let source = |name: &str, logical_sector, physical_sector, size| {
            let path = dir.path().join(name);
            create(&path, &Spec { logical_sector, physical_sector, ..Spec::dynamic(size) }).unwrap();
            let disk = Chain::open(&path, Access::Write).unwrap();
            disk.write(8192, &[IoSlice::new(&model::pattern(16, 8, 0x31))]).unwrap();
            path
        };
        let fitting =
            |source: &Path, name: &str| import_fitting(source, &dir.path().join(name), &mut |_, _| ()).unwrap();
        // One that can be a VHD is one, and as a VHDX it has the sectors of its source.
        let ordinary = source("ordinary.vhdx", 512, 4096, 8 << 20);
        let made = fitting(&ordinary, "1");
        assert_eq!((made.path, made.why), (dir.path().join("1.vhd"), None));
        assert!(matches!(
            import_fitting(&ordinary, &dir.path().join("1"), &mut |_, _| ()),
            Err(ImportError::Exists { .. })
        ));
        let legacy = source("legacy.vhdx", 512, 512, 8 << 20);
        let again = dir.path().join("legacy-1.vhdx");
        import(&legacy, &again, &mut |_, _| ()).unwrap();
        assert_eq!(sectors(&again), (512, 512));
        // A VHD says nothing of its sectors: as Windows makes a VHDX.
        let of_vhd = dir.path().join("of-vhd.vhdx");
        import(&dir.path().join("1.vhd"), &of_vhd, &mut |_, _| ()).unwrap();
        assert_eq!((sectors(&dir.path().join("1.vhd")), sectors(&of_vhd)), ((512, 512), (512, 4096)));
        // Larger sectors, or a larger disk, and it cannot be a VHD.
        let (large, vast) = (source("4k.vhdx", 4096, 4096, 8 << 20), source("vast.vhdx", 512, 512, 3 << 40));
        for (source, name, why) in [(&large, "2", NoVhd::Sectors(4096)), (&vast, "3", NoVhd::TooLarge(3 << 40))] {
            let made = fitting(source, name);
            assert_eq!((made.path, made.why), (dir.path().join(name).with_extension("vhdx"), Some(why)));
            let refused = import(source, &dir.path().join("no.vhd"), &mut |_, _| ()).unwrap_err();
            assert!(matches!(refused, ImportError::NoVhd { why: found, .. } if found == why), "{refused}");
        }
        assert_eq!(sectors(&dir.path().join("2.vhdx")), (4096, 4096));
        let disk = Chain::open(&dir.path().join("2.vhdx"), Access::Read).unwrap();
        assert!(model::read(&disk, 16, 8) == model::pattern(16, 8, 0x31));
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
