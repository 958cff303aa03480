//! Import: any disk that can be read becomes a master.
//!
//! A master is a *dynamic VHD*: only blocks that hold data are in the file, each with an all-ones bitmap and its data on
//! a 4 KiB boundary, and pages of zeros inside of a block stay holes. So it is about as large as what is in it, reads as
//! fast as a raw file, and other tools open it. It is written beside its place, flushed, made read-only and renamed.

use std::fs;
use std::io::IoSliceMut;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use thiserror::Error;

use super::chain::Chain;
use super::error::DiskError;
use super::file::{Access, Media};
use super::inspect::{DiskFormat, Foreign, identify};
use super::vhd::create::TempFile;
use super::vhd::{Builder, MAX_SIZE};
use super::{Disk, SECTOR};

/// Sizes are rounded up to this with zeros, as Windows and every partitioner expect.
pub const SIZE_UNIT: u64 = 1 << 20;
/// A page that is all zeros stays a hole.
const PAGE: usize = 4096;

/// What an import made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Imported {
    /// Capacity of the master in bytes.
    pub size: u64,
    /// Bytes that are not holes.
    pub data_bytes: u64,
    /// What the source was.
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

/// Makes a master of a raw disk or a VHD (with its parents, if it has any). `progress` is told bytes done and bytes in
/// all, as the disk counts them, now and then.
///
/// # Errors
/// See [`ImportError`]. Nothing is left behind at `into`.
pub fn import(source: &Path, into: &Path, progress: &mut dyn FnMut(u64, u64)) -> Result<Imported, ImportError> {
    if into.exists() {
        return Err(ImportError::Exists { path: into.into() });
    }
    let format = match identify(source)? {
        Ok(format) => format,
        Err(Some(foreign)) => return Err(ImportError::Foreign { path: source.into(), foreign }),
        Err(None) => {
            let len = fs::metadata(source).map_err(|error| DiskError::io(source, "look at", error))?.len();
            return Err(ImportError::NotADisk { path: source.into(), len });
        }
    };
    let disk = match Chain::open(source, Access::Read) {
        // The capacity of a VHD is checked as its footer is read; a raw file has none.
        Ok(disk) if disk.size() > MAX_SIZE => {
            return Err(ImportError::TooLarge { path: source.into(), size: disk.size() });
        }
        disk => disk?,
    };
    let size = disk.size().next_multiple_of(SIZE_UNIT).min(MAX_SIZE);
    let temp = TempFile::beside(into)?;
    let mut builder = Builder::new(&temp.file, size)?;
    let mut data_bytes = 0;
    let mut buffer = vec![0; usize::try_from(Builder::BLOCK_SIZE).expect("2 MiB")];
    let mut at = 0;
    while at < disk.size() {
        progress(at, disk.size());
        let len = Builder::BLOCK_SIZE.min(disk.size() - at);
        if let Some(hole) = hole_at(&disk, at, len)? {
            at = at.saturating_add(hole).min(disk.size());
            continue;
        }
        let bytes = &mut buffer[..usize::try_from(len).expect("at most a block")];
        disk.read(at, &mut [IoSliceMut::new(bytes)])?;
        data_bytes += write_data(&mut builder, at, bytes)?;
        at += len;
    }
    builder.finish()?;
    fs::set_permissions(temp.temp_path(), fs::Permissions::from_mode(0o444))
        .map_err(|error| DiskError::io(temp.temp_path(), "make read-only", error))?;
    temp.file.sync()?;
    temp.keep()?;
    progress(disk.size(), disk.size());
    Ok(Imported { size, data_bytes, format })
}

/// If a block of the source needs no reading: how many bytes from its start are zeros, in whole blocks.
fn hole_at(disk: &Chain, at: u64, len: u64) -> Result<Option<u64>, DiskError> {
    if disk.is_flat() {
        // The file's bytes are the disk's, so one question answers for all of a long hole.
        let data = disk.media().next_data(at)?.unwrap_or(u64::MAX);
        let blocks = (data - at) / Builder::BLOCK_SIZE;
        return Ok((blocks > 0 || data - at >= len).then(|| len.max(blocks.saturating_mul(Builder::BLOCK_SIZE))));
    }
    for extent in disk.resolve(at, len)? {
        if let Some((media, from)) = extent.at
            && media.next_data(from)?.is_some_and(|data| data < from + extent.len)
        {
            return Ok(None);
        }
    }
    Ok(Some(len))
}

/// Writes what is not zero, in runs of pages.
fn write_data(builder: &mut Builder<'_>, at: u64, bytes: &[u8]) -> Result<u64, DiskError> {
    let is_data = |page: &[u8]| page.iter().any(|&byte| byte != 0);
    let mut written = 0;
    let mut start = 0;
    while start < bytes.len() {
        let page_end = |start: usize| (start + PAGE).min(bytes.len());
        if !is_data(&bytes[start..page_end(start)]) {
            start = page_end(start);
            continue;
        }
        let mut end = page_end(start);
        while end < bytes.len() && is_data(&bytes[end..page_end(end)]) {
            end = page_end(end);
        }
        debug_assert!((end as u64).is_multiple_of(SECTOR));
        builder.write(at + start as u64, &bytes[start..end])?;
        written += (end - start) as u64;
        start = end;
    }
    Ok(written)
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
            (&b"QFI\xfb"[..], "qemu-img convert -O raw"),
            (b"KDMV", "qemu-img convert -O raw"),
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
