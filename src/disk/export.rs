//! Export: a disk as a file for elsewhere. Flattened, or as a chain of files that belong together in one folder.
//!
//! A flattened disk is one file that needs no other. A chain has a file for each layer, each with the identity that it
//! has here, whose parent locators name the file below *beside* it: Hyper-V attaches such a chain wherever the
//! folder is. Layers are written in the compact layout (only blocks that hold something), since holes do not travel.
//!
//! Files grow under `NAME.new` and appear by a rename; of a chain the bottom first, so that a parent is there before its child.

use std::ffi::OsString;
use std::fs;
use std::io::{IoSlice, IoSliceMut};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use thiserror::Error;
use uuid::Uuid;

use super::chain::Chain;
use super::copy::{CHUNK, each_run, runs};
use super::error::DiskError;
use super::file::{File, Media, sync_folder_of, write_all};
use super::import::NoVhd;
use super::vhd::Builder;
use super::vhd::create::TempFile;
use super::vhd::sparse::{ALIGN, Sparse, Wait};
use super::vhd::wire::{ABSENT, BLOCK_SIZE, FOOTER, Footer, HEADER, Header, Kind, Locator, LocatorKind, NewHeader};
use super::vhdx::Vhdx;
use super::vhdx::create::{Spec, copy_structures, create_on, fill};
use super::vhdx::engine::At;
use super::{Disk, SECTOR};

/// What an export is written as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExportFormat {
    /// The disk's bytes and nothing else, with holes.
    Raw,
    /// A dynamic VHD.
    Vhd,
    /// A fixed VHD, with holes.
    VhdFixed,
    /// A dynamic VHDX.
    Vhdx,
}

/// That is no format.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("no such format; there are raw, vhd, vhd-fixed and vhdx")]
pub struct NoSuchFormat;

impl FromStr for ExportFormat {
    type Err = NoSuchFormat;

    fn from_str(word: &str) -> Result<Self, NoSuchFormat> {
        match word {
            "raw" => Ok(Self::Raw),
            "vhd" => Ok(Self::Vhd),
            "vhd-fixed" => Ok(Self::VhdFixed),
            "vhdx" => Ok(Self::Vhdx),
            _ => Err(NoSuchFormat),
        }
    }
}

impl ExportFormat {
    /// The format that a file's name asks for.
    #[must_use]
    pub fn of_name(path: &Path) -> Option<Self> {
        match path.extension()?.to_str()?.to_ascii_lowercase().as_str() {
            "raw" | "img" | "dd" => Some(Self::Raw),
            "vhd" => Some(Self::Vhd),
            "vhdx" => Some(Self::Vhdx),
            _ => None,
        }
    }

    /// The word that the command line and JSON use.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::Vhd => "vhd",
            Self::VhdFixed => "vhd-fixed",
            Self::Vhdx => "vhdx",
        }
    }
}

/// Why a disk was not exported. Nothing is left behind, and what was there before is as it was.
#[derive(Debug, Error)]
pub enum ExportError {
    /// The disk, or the place to write to, failed.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// Something is there already.
    #[error("{}: is there already", path.display())]
    Exists {
        /// What is there.
        path: PathBuf,
    },
    /// The file would replace one of those that it is made of.
    #[error("{}: is a part of the disk that is exported; choose another name", path.display())]
    Itself {
        /// The file.
        path: PathBuf,
    },
    /// The place to write to is no plain file's.
    #[error("{}: is no plain file, and an export is put in its place by a rename", path.display())]
    NoFile {
        /// What is there.
        path: PathBuf,
    },
    /// It is no disk that a VHD could hold.
    #[error("{}: {why}: export it as vhdx or raw", path.display())]
    NoVhd {
        /// The disk.
        path: PathBuf,
        /// Why.
        why: NoVhd,
    },
    /// The format cannot be written, or not as a chain.
    #[error("{}: {what}", path.display())]
    Unsupported {
        /// The file that was asked for.
        path: PathBuf,
        /// What is not possible, and what is.
        what: String,
    },
}

/// What an export made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exported {
    /// The files, the top one first.
    pub files: Vec<PathBuf>,
    /// Capacity of the disk in bytes.
    pub size: u64,
}

/// Writes the whole of a disk as one file that needs no other. `replace`: what is at `into` may go. `progress` is told bytes
/// done and bytes in all, as the disk counts them.
///
/// # Errors
/// See [`ExportError`].
pub fn flatten(
    disk: &Chain,
    into: &Path,
    format: ExportFormat,
    replace: bool,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<Exported, ExportError> {
    let size = disk.size();
    check_place(disk, into, replace)?;
    if matches!(format, ExportFormat::Vhd | ExportFormat::VhdFixed)
        && let Some(why) = NoVhd::of(disk)
    {
        return Err(ExportError::NoVhd { path: disk.path().into(), why });
    }
    let temp = TempFile::beside(into)?;
    match format {
        ExportFormat::Raw | ExportFormat::VhdFixed => {
            let footer = if format == ExportFormat::VhdFixed { FOOTER } else { 0 };
            temp.file.set_len(size + footer)?;
            each_run::<DiskError>(disk, 0..size, progress, &mut |at, run| write_all(&temp.file, at, run))?;
            if format == ExportFormat::VhdFixed {
                write_all(&temp.file, size, Footer::new(Kind::Fixed, size, Uuid::new_v4()).as_bytes())?;
            }
            temp.file.sync()?;
        }
        ExportFormat::Vhd => {
            let mut builder = Builder::new(&temp.file, size)?;
            each_run(disk, 0..size, progress, &mut |at, run| builder.write(at, run))?;
            builder.finish()?;
        }
        ExportFormat::Vhdx => {
            let block_size = u32::try_from(CHUNK).expect("2 MiB");
            create_on(&temp.file, &Spec { block_size, ..Spec::of(disk, size) })?;
            fill(&temp.file, &mut |to| {
                each_run(disk, 0..size, progress, &mut |at, run| to.write(at, &[IoSlice::new(run)]))
            })?;
        }
    }
    put(temp, into, replace)?;
    Ok(Exported { files: vec![into.into()], size })
}

/// Writes each layer of a disk as a file of its own: the top one as `into`, those below beside it as `STEM.parent-N.vhd` (or
/// `.vhdx`).
/// Identities stay, so that what knows a parent by its identity finds it again.
///
/// # Errors
/// See [`ExportError`]; among them a layer of another format.
pub fn chain(
    disk: &Chain,
    into: &Path,
    format: ExportFormat,
    replace: bool,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<Exported, ExportError> {
    let (name, fits): (_, fn(&Chain) -> bool) = match format {
        ExportFormat::Vhd => ("VHD", |layer| layer.footer().is_some()),
        ExportFormat::Vhdx => ("VHDX", |layer| layer.vhdx().is_some()),
        ExportFormat::Raw | ExportFormat::VhdFixed => {
            let what = "a chain is written as VHDs or VHDXs: --format vhd or vhdx".to_owned();
            return Err(ExportError::Unsupported { path: into.into(), what });
        }
    };
    let layers: Vec<&Chain> =
        std::iter::successors(Some(disk), |chain| chain.parent().map(|parent| &**parent)).collect();
    let files: Vec<PathBuf> = (0..layers.len()).map(|below| layer_path(into, below, format)).collect();
    if let Some(other) = layers.iter().find(|layer| !fits(layer)) {
        let what = format!(
            "{} is no {name}, and a chain keeps the format of its layers; without --chain it is flattened",
            other.path().display()
        );
        return Err(ExportError::Unsupported { path: into.into(), what });
    }
    files.iter().try_for_each(|path| check_place(disk, path, replace))?;
    let total: u64 = layers.iter().map(|layer| layer.size()).sum();
    let mut before = 0;
    let mut made = Vec::new();
    for (below, layer) in layers.iter().enumerate().rev() {
        let temp = TempFile::beside(&files[below])?;
        let parent =
            files.get(below + 1).map(|path| path.file_name().unwrap_or_default().to_string_lossy().into_owned());
        let progress = &mut |done, _| progress(before + done, total);
        match layer.vhdx() {
            Some(vhdx) => write_vhdx_layer(&temp.file, layer, vhdx, parent.as_deref(), progress)?,
            None => write_layer(&temp.file, layer, parent.as_deref(), progress)?,
        }
        before += layer.size();
        made.push((temp, &files[below]));
    }
    // Only now that all of them could be written does the first one appear.
    made.into_iter().try_for_each(|(temp, path)| put(temp, path, replace))?;
    Ok(Exported { files, size: disk.size() })
}

/// `pc-01.vhd`, `pc-01.parent-1.vhd`, `pc-01.parent-2.vhd`.
fn layer_path(top: &Path, below: usize, format: ExportFormat) -> PathBuf {
    if below == 0 {
        return top.into();
    }
    let mut name: OsString = top.file_stem().unwrap_or_default().to_owned();
    name.push(format!(".parent-{below}.{}", format.word()));
    top.with_file_name(name)
}

fn check_place(disk: &Chain, into: &Path, replace: bool) -> Result<(), ExportError> {
    let Ok(there) = fs::symlink_metadata(into) else { return Ok(()) };
    let same = |layer: &Chain| match (fs::canonicalize(layer.path()), fs::canonicalize(into)) {
        (Ok(layer), Ok(into)) => layer == into,
        _ => false,
    };
    if std::iter::successors(Some(disk), |chain| chain.parent().map(|parent| &**parent)).any(same) {
        return Err(ExportError::Itself { path: into.into() });
    }
    if !there.is_file() {
        return Err(ExportError::NoFile { path: into.into() });
    }
    if replace { Ok(()) } else { Err(ExportError::Exists { path: into.into() }) }
}

/// Renames a finished file into place, over nothing that has come there meanwhile.
fn put(temp: TempFile, into: &Path, replace: bool) -> Result<(), ExportError> {
    if replace {
        return Ok(temp.keep()?);
    }
    match fs::hard_link(temp.temp_path(), into) {
        // The temporary name goes with the value.
        Ok(()) => Ok(sync_folder_of(into)?),
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
            Err(ExportError::Exists { path: into.into() })
        }
        // A file system without hard links.
        Err(_) if !into.exists() => Ok(temp.keep()?),
        Err(error) => Err(DiskError::io(into, "put into place", error).into()),
    }
}

/// Writes one layer with its own identity: a dynamic disk, or over the file called `parent` a differencing one.
fn write_vhdx_layer(
    file: &File,
    layer: &Chain,
    vhdx: &Vhdx,
    parent: Option<&str>,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<(), DiskError> {
    copy_structures(file, vhdx, parent)?;
    let size = vhdx.size();
    fill(file, &mut |to| {
        if parent.is_none() {
            return each_run(layer, 0..size, progress, &mut |at, run| to.write(at, &[IoSlice::new(run)]));
        }
        let mut buffer = vec![0; usize::try_from(CHUNK).expect("2 MiB")];
        let mut at = 0;
        while at < size {
            progress(at, size);
            let len = CHUNK.min(size - at);
            for run in vhdx.map_range(at, len, Wait::Block)?.expect("it waits") {
                match run.at {
                    At::Below => {}
                    At::Zero => to.zero(run.offset, run.len)?,
                    At::Here(from) => {
                        let bytes = &mut buffer[..usize::try_from(run.len).expect("at most a chunk")];
                        vhdx.media().read(from, &mut [IoSliceMut::new(bytes)])?;
                        // All of it is here, also where it is zeros.
                        to.zero(run.offset, run.len)?;
                        for data in runs(bytes) {
                            to.write(run.offset + data.start as u64, &[IoSlice::new(&bytes[data])])?;
                        }
                    }
                }
            }
            at += len;
        }
        progress(size, size);
        Ok(())
    })
}

/// Where the text of the one parent locator lies, and the space for it.
const LOCATOR_AT: u64 = 4096;
const LOCATOR_SPACE: u32 = 4096;

/// Writes one layer with its own identity: a dynamic disk, or over the file called `parent` a differencing one.
fn write_layer(
    media: &dyn Media,
    layer: &Chain,
    parent: Option<&str>,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<(), DiskError> {
    let unsupported = |what: &str| DiskError::Unsupported { path: layer.path().into(), what: what.to_owned() };
    let footer = layer.footer().ok_or_else(|| unsupported("is no VHD"))?;
    let size = footer.size();
    let blocks = size.div_ceil(CHUNK);
    let table_at = if parent.is_some() { LOCATOR_AT + u64::from(LOCATOR_SPACE) } else { FOOTER + HEADER };
    let mut out = Layer {
        media,
        entries: vec![ABSENT; usize::try_from(blocks).expect("at most MAX_BLOCKS")],
        end: table_at + (blocks * 4).next_multiple_of(SECTOR),
    };
    let mut header = NewHeader { size, block_size: BLOCK_SIZE, table_offset: table_at, parent: None };
    let kind = match (parent, layer.sparse()) {
        (Some(name), Some(sparse)) => {
            let text: Vec<u8> = format!(r".\{name}").encode_utf16().flat_map(u16::to_le_bytes).collect();
            let len = u32::try_from(text.len()).ok().filter(|len| *len <= LOCATOR_SPACE);
            let len = len.ok_or_else(|| unsupported("has a parent whose name is too long for a locator"))?;
            write_all(media, LOCATOR_AT, &text)?;
            let relative = Locator { kind: LocatorKind::Relative, offset: LOCATOR_AT, len, space: LOCATOR_SPACE };
            header.parent = Some((sparse.header().parent_id(), name, vec![relative]));
            copy_present(&mut out, sparse, progress)?;
            Kind::Differencing
        }
        (None, _) => {
            each_run::<DiskError>(layer, 0..size, progress, &mut |at, run| out.write_all_here(at, run))?;
            Kind::Dynamic
        }
        (Some(_), None) => return Err(unsupported("has a parent although it is no differencing disk")),
    };
    let footer = Footer::new(kind, size, footer.id());
    write_all(media, 0, footer.as_bytes())?;
    write_all(media, FOOTER, Header::new(&header).as_bytes())?;
    let mut table: Vec<u8> = out.entries.iter().flat_map(|entry| entry.to_be_bytes()).collect();
    table.resize(table.len().next_multiple_of(512), 0xff);
    write_all(media, table_at, &table)?;
    write_all(media, out.end, footer.as_bytes())?;
    media.sync()
}

/// Copies the sectors that a differencing disk has itself, and their bits.
fn copy_present(out: &mut Layer<'_>, sparse: &Sparse, progress: &mut dyn FnMut(u64, u64)) -> Result<(), DiskError> {
    let size = sparse.size();
    let mut buffer = vec![0; usize::try_from(CHUNK).expect("2 MiB")];
    let mut at = 0;
    while at < size {
        progress(at, size);
        let len = CHUNK.min(size - at);
        let present = sparse.map_range(at, len, Wait::Block)?.expect("it waits");
        let mut bitmap = [0; 512];
        for run in present {
            let Some(from) = run.at else { continue };
            let bytes = &mut buffer[..usize::try_from(run.len).expect("at most a chunk")];
            sparse.media().read(from, &mut [IoSliceMut::new(bytes)])?;
            let block = out.block(run.offset, &[0; 512])?;
            for run_of_data in runs(bytes) {
                let to = block + SECTOR + run.offset % CHUNK + run_of_data.start as u64;
                write_all(out.media, to, &bytes[run_of_data])?;
            }
            for sector in (run.offset - at) / SECTOR..(run.offset - at + run.len) / SECTOR {
                bitmap[usize::try_from(sector / 8).expect("under 512")] |= 0x80 >> (sector % 8);
            }
        }
        if bitmap != [0; 512] {
            let block = out.block(at, &bitmap)?;
            write_all(out.media, block, &bitmap)?;
        }
        at += len;
    }
    progress(size, size);
    Ok(())
}

/// A layer that is written from its first block to its last.
struct Layer<'a> {
    media: &'a dyn Media,
    entries: Vec<u32>,
    /// Where the last structure ends.
    end: u64,
}

impl Layer<'_> {
    /// Where the block of this byte of the disk lies, from its bitmap on; a new one begins with this bitmap.
    fn block(&mut self, offset: u64, bitmap: &[u8; 512]) -> Result<u64, DiskError> {
        let entry = &mut self.entries[usize::try_from(offset / CHUNK).expect("within the disk")];
        if *entry == ABSENT {
            let data_at = (self.end + SECTOR).next_multiple_of(ALIGN);
            write_all(self.media, data_at - SECTOR, bitmap)?;
            *entry = u32::try_from((data_at - SECTOR) / SECTOR).expect("2040 GiB and 4 KiB per block are under 2 TiB");
            self.end = data_at + CHUNK;
        }
        Ok(u64::from(*entry) * SECTOR)
    }

    /// Writes bytes of a dynamic disk, all of whose sectors are here.
    fn write_all_here(&mut self, at: u64, bytes: &[u8]) -> Result<(), DiskError> {
        let block = self.block(at, &[0xff; 512])?;
        write_all(self.media, block + SECTOR + at % CHUNK, bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::super::file::Access;
    use super::super::inspect::{DiskFormat, inspect};
    use super::super::model::{self, SECTORS};
    use super::*;

    /// A chain of three with some zeros written over the master's data, and its content.
    fn disk(dir: &Path) -> (Chain, Vec<u8>) {
        let mut model = model::master(&dir.join("master.vhd"));
        let top = model::children(dir, 2, &mut model);
        let disk = Chain::open(&top, Access::Write).unwrap();
        disk.zero(0, 64 * SECTOR).unwrap();
        model[..64 * 512].fill(0);
        drop(disk);
        (Chain::open(&top, Access::Read).unwrap(), model)
    }

    #[test]
    fn a_flattened_disk_holds_the_same_bytes_in_every_format() {
        let dir = model::scratch();
        let (disk, model) = disk(dir.path());
        for (format, found) in [
            (ExportFormat::Raw, DiskFormat::Raw),
            (ExportFormat::Vhd, DiskFormat::VhdDynamic),
            (ExportFormat::VhdFixed, DiskFormat::VhdFixed),
            (ExportFormat::Vhdx, DiskFormat::VhdxDynamic),
        ] {
            let into = dir.path().join(format.word());
            let mut told = (0, 0);
            let exported = flatten(&disk, &into, format, false, &mut |done, total| told = (done, total)).unwrap();
            assert_eq!(
                (exported.files, exported.size, told),
                (vec![into.clone()], disk.size(), (disk.size(), disk.size()))
            );
            let seen = inspect(&into).unwrap();
            assert_eq!((seen.format, seen.layers.len()), (Ok(found), 1));
            assert!(model::read(&Chain::open(&into, Access::Read).unwrap(), 0, SECTORS) == model, "{format:?}");
            assert!(!into.with_extension("new").exists());
        }
    }

    #[test]
    fn a_chain_moves_as_a_whole_and_needs_nothing_of_where_it_came_from() {
        let dir = model::scratch();
        let (disk, model) = disk(dir.path());
        let out = model::scratch();
        let exported = chain(&disk, &out.path().join("pc.vhd"), ExportFormat::Vhd, false, &mut |_, _| ()).unwrap();
        let names = ["pc.vhd", "pc.parent-1.vhd", "pc.parent-2.vhd"].map(|name| out.path().join(name));
        assert_eq!(exported.files, names);
        let ids = |top: &Path| inspect(top).unwrap().layers.iter().map(|layer| layer.unique_id).collect::<Vec<_>>();
        assert_eq!(ids(&names[0]), ids(disk.path()));
        drop(disk);
        fs::remove_dir_all(dir.path()).unwrap();
        let moved = model::scratch();
        for name in &names {
            fs::copy(name, moved.path().join(name.file_name().unwrap())).unwrap();
        }
        drop(out);
        let top = moved.path().join("pc.vhd");
        let seen = inspect(&top).unwrap();
        assert!(seen.complete && seen.warnings.is_empty(), "{:?}", seen.warnings);
        assert!(
            seen.layers.iter().all(|layer| layer.file_size < 9 << 20),
            "no more than the blocks that hold something"
        );
        let copy = Chain::open(&top, Access::Read).unwrap();
        assert!(model::read(&copy, 0, SECTORS) == model);
    }

    #[test]
    fn a_chain_of_vhdxs_moves_as_a_whole_with_its_identities() {
        use super::super::vhdx::create_child;
        for logical_sector in [512, 4096] {
            let (dir, out, moved) = (model::scratch(), model::scratch(), model::scratch());
            let path = |n: usize| dir.path().join(format!("{n}.vhdx"));
            let spec = Spec { logical_sector, block_size: 1 << 20, ..Spec::dynamic(SECTORS * SECTOR) };
            super::super::vhdx::create(&path(0), &spec).unwrap();
            let mut model = vec![0; model::at(SECTORS)];
            for n in 0..3u8 {
                if n > 0 {
                    let parent = Chain::open(&path(usize::from(n) - 1), Access::Read).unwrap();
                    create_child(&path(n.into()), &parent, &format!(r".\{}.vhdx", n - 1)).unwrap();
                }
                let disk = Chain::open(&path(n.into()), Access::Write).unwrap();
                for start in (u64::from(n) * 7..SECTORS - 40).step_by(611) {
                    model::write(&disk, start, &model::pattern(start, 9, n + 1));
                    model[model::at(start)..model::at(start + 9)].copy_from_slice(&model::pattern(start, 9, n + 1));
                }
                // Zeros of its own: some sectors of a block, and a whole one.
                for (start, len) in [(u64::from(n) * 30, 16), (4096, 4096)] {
                    disk.zero(start * SECTOR, len * SECTOR).unwrap();
                    model[model::at(start)..model::at(start + len)].fill(0);
                }
            }
            let disk = Chain::open(&path(2), Access::Read).unwrap();
            let into = out.path().join("pc.vhdx");
            let refused = chain(&disk, &into, ExportFormat::Vhd, false, &mut |_, _| ()).unwrap_err().to_string();
            assert!(refused.contains("is no VHD, and a chain keeps"), "{refused}");
            let exported = chain(&disk, &into, ExportFormat::Vhdx, false, &mut |_, _| ()).unwrap();
            let names = ["pc.vhdx", "pc.parent-1.vhdx", "pc.parent-2.vhdx"].map(|name| out.path().join(name));
            assert_eq!(exported.files, names);
            let ids = |top: &Path| {
                let layers = inspect(top).unwrap().layers;
                layers.iter().map(|layer| layer.unique_id).collect::<Vec<_>>()
            };
            assert_eq!(ids(&names[0]), ids(disk.path()));
            let linkage = |path: &Path| Chain::open(path, Access::Read).unwrap().linkage();
            assert_eq!(linkage(&names[0]), linkage(&path(2)), "a child of it elsewhere finds it again");
            drop(disk);
            fs::remove_dir_all(dir.path()).unwrap();
            for name in &names {
                fs::copy(name, moved.path().join(name.file_name().unwrap())).unwrap();
            }
            drop(out);
            let top = moved.path().join("pc.vhdx");
            let seen = inspect(&top).unwrap();
            assert!(seen.complete && seen.warnings.is_empty(), "{:?}", seen.warnings);
            let copy = Chain::open(&top, Access::Read).unwrap();
            assert!(model::read(&copy, 0, SECTORS) == model);
            assert!(copy.vhdx().unwrap().header().log.is_nil());
        }
    }

    #[test]
    fn nothing_is_written_over_that_was_not_meant() {
        let dir = model::scratch();
        let (disk, _) = disk(dir.path());
        let into = dir.path().join("out.raw");
        fs::write(&into, b"mine").unwrap();
        let raw = |into: &Path, force| flatten(&disk, into, ExportFormat::Raw, force, &mut |_, _| ());
        assert!(matches!(raw(&into, false), Err(ExportError::Exists { .. })));
        assert_eq!(fs::read(&into).unwrap(), b"mine");
        raw(&into, true).unwrap();
        assert_eq!(fs::metadata(&into).unwrap().len(), disk.size());
        for part in [disk.path(), disk.parent().unwrap().path()] {
            assert!(matches!(raw(part, true), Err(ExportError::Itself { .. })));
        }
        assert!(matches!(raw(dir.path(), true), Err(ExportError::NoFile { .. })));
        fs::write(dir.path().join("pc.parent-1.vhd"), b"mine").unwrap();
        let top = dir.path().join("pc.vhd");
        let refused = chain(&disk, &top, ExportFormat::Vhd, false, &mut |_, _| ());
        assert!(matches!(refused, Err(ExportError::Exists { .. })) && !top.exists());
        let refused = chain(&disk, &top, ExportFormat::Raw, true, &mut |_, _| ()).unwrap_err().to_string();
        assert!(refused.contains("written as VHDs"), "{refused}");
    }
}
