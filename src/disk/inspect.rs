//! What a disk file is: plain data that a person or a program reads. Nothing is changed, and nobody is locked out.

use std::fs;
use std::ops::Range;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use uuid::Uuid;

use super::SECTOR;
use super::chain::{Chain, MAX_DEPTH, is_vhdx, parent_candidates, vhdx_parent_candidates};
use super::error::DiskError;
use super::file::{Access, File, Media, read_vec};
use super::qemu::ByQemu;
use super::vhd::facts::VhdFacts;
use super::vhd::sparse::Sparse;
use super::vhd::wire::{Footer, Geometry, Kind};
use super::vhdx::engine::recorded_sectors;
use super::vhdx::{Metadata, Vhdx, wire};

/// Bytes at the front of a file in which other formats say what they are; an ISO 9660 image does so at 32 KiB.
const FRONT: u64 = 34 * 1024;

/// The formats that are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DiskFormat {
    /// The disk's bytes and nothing else.
    Raw,
    /// A fixed VHD.
    VhdFixed,
    /// A dynamic VHD.
    VhdDynamic,
    /// A differencing VHD.
    VhdDifferencing,
    /// A fixed VHDX.
    VhdxFixed,
    /// A dynamic VHDX.
    VhdxDynamic,
    /// A differencing VHDX.
    VhdxDifferencing,
}

impl std::fmt::Display for DiskFormat {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Raw => "raw",
            Self::VhdFixed => "VHD, fixed",
            Self::VhdDynamic => "VHD, dynamic",
            Self::VhdDifferencing => "VHD, differencing",
            Self::VhdxFixed => "VHDX, fixed",
            Self::VhdxDynamic => "VHDX, dynamic",
            Self::VhdxDifferencing => "VHDX, differencing",
        })
    }
}

impl From<Kind> for DiskFormat {
    fn from(kind: Kind) -> Self {
        match kind {
            Kind::Fixed => Self::VhdFixed,
            Kind::Dynamic => Self::VhdDynamic,
            Kind::Differencing => Self::VhdDifferencing,
        }
    }
}

impl From<&Metadata> for DiskFormat {
    fn from(metadata: &Metadata) -> Self {
        match metadata {
            Metadata { parent: Some(_), .. } => Self::VhdxDifferencing,
            Metadata { leave_allocated: true, .. } => Self::VhdxFixed,
            Metadata { .. } => Self::VhdxDynamic,
        }
    }
}

/// A format that is recognised, but not read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Foreign {
    /// What it is.
    pub name: &'static str,
    /// The command that makes a raw disk of FILE, or a sentence.
    convert: Convert,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Convert {
    /// `qemu-img convert` reads it.
    QemuImg(ByQemu),
    /// This command unpacks it.
    Unpack(&'static str),
    /// No command does.
    Say(&'static str),
}

impl Foreign {
    /// Which of the formats it is that an import has `qemu-img` read.
    #[must_use]
    pub fn by_qemu(&self) -> Option<ByQemu> {
        match self.convert {
            Convert::QemuImg(format) => Some(format),
            _ => None,
        }
    }

    /// What a person does with it.
    #[must_use]
    pub fn advice(&self, path: &Path) -> String {
        let path = path.display();
        match self.convert {
            Convert::QemuImg(_) => format!("convert it first: qemu-img convert -O raw {path} disk.raw"),
            Convert::Unpack(command) => format!("unpack it first: {command} {path}"),
            Convert::Say(sentence) => sentence.to_owned(),
        }
    }
}

/// Says what a file is by what is in it: a format that is read; `Err(Some)`: one that is not; `Err(None)`: no disk at all.
///
/// # Errors
/// The system's.
pub fn identify(path: &Path) -> Result<Result<DiskFormat, Option<Foreign>>, DiskError> {
    let file = File::open(path, Access::Peek)?;
    let len = file.len()?;
    if is_vhdx(&file)? {
        let disk = Vhdx::open(Box::new(file), true)?;
        return Ok(Ok(disk.metadata().into()));
    }
    let front = read_vec(&file, 0, usize::try_from(len.min(FRONT)).expect("34 KiB"))?;
    let back = read_vec(&file, len - len.min(512), usize::try_from(len.min(512)).expect("512"))?;
    if Footer::claimed(&front, &back) {
        let (footer, _) = Footer::read(&file)?;
        return Ok(Ok(footer.kind().into()));
    }
    let begins = |magic: &[u8]| front.starts_with(magic);
    let foreign = |name, convert| Ok(Err(Some(Foreign { name, convert })));
    if begins(b"QFI\xfb") {
        return foreign("a qcow2 image", Convert::QemuImg(ByQemu::Qcow2));
    }
    if begins(b"KDMV") || begins(b"COWD") || begins(b"# Disk DescriptorFile") {
        return foreign("a VMDK image", Convert::QemuImg(ByQemu::Vmdk));
    }
    if front.get(64..68) == Some(&[0x7f, 0x10, 0xda, 0xbe]) {
        return foreign("a VDI image", Convert::QemuImg(ByQemu::Vdi));
    }
    if begins(b"\x1f\x8b") {
        return foreign("compressed with gzip", Convert::Unpack("gunzip -k"));
    }
    if begins(b"\xfd7zXZ\0") {
        return foreign("compressed with xz", Convert::Unpack("unxz -k"));
    }
    if begins(b"\x28\xb5\x2f\xfd") {
        return foreign("compressed with Zstandard", Convert::Unpack("unzstd"));
    }
    if begins(b"BZh") {
        return foreign("compressed with bzip2", Convert::Unpack("bunzip2 -k"));
    }
    if begins(b"PK\x03\x04") {
        return foreign("a ZIP archive", Convert::Unpack("unzip"));
    }
    if begins(b"7z\xbc\xaf\x27\x1c") {
        return foreign("a 7z archive", Convert::Unpack("7zz x"));
    }
    if front.get(32_769..32_774) == Some(b"CD001") {
        let advice = "install the system from it into a virtual machine, and import that machine's disk";
        return foreign("an installation disc (ISO 9660), not an installed system", Convert::Say(advice));
    }
    if len == 0 || !len.is_multiple_of(SECTOR) {
        return Ok(Err(None));
    }
    Ok(Ok(DiskFormat::Raw))
}

/// What a file is, and what lies below it.
#[derive(Debug, Clone)]
pub struct Inspection {
    /// The file.
    pub path: PathBuf,
    /// Its format, or a word for what it is instead.
    pub format: Result<DiskFormat, Option<Foreign>>,
    /// The layers from the file down to the bottom, as far as they could be followed. Empty if the format is not read.
    pub layers: Vec<LayerFacts>,
    /// Whether the whole chain opens: every parent there, with the right identity.
    pub complete: bool,
    /// Everything that a careful person should look at.
    pub warnings: Vec<String>,
}

/// One file of a chain.
#[derive(Debug, Clone)]
pub struct LayerFacts {
    /// The file.
    pub path: PathBuf,
    /// Its format.
    pub format: DiskFormat,
    /// Capacity of the disk in bytes.
    pub virtual_size: u64,
    /// Length of the file in bytes.
    pub file_size: u64,
    /// Bytes that it takes on the host: holes take none.
    pub allocated: u64,
    /// Blocks in the file and blocks of the disk, for dynamic and differencing disks.
    pub blocks: Option<(u32, u32)>,
    /// The identity; raw files have none.
    pub unique_id: Option<Uuid>,
    /// The mark of a VHDX's contents, which children name: its DataWriteGuid.
    pub data_write_id: Option<Uuid>,
    /// Bytes of a block, for disks that have blocks.
    pub block_size: Option<u64>,
    /// Bytes of a logical sector, and of a physical one where the file says.
    pub sectors: (u32, Option<u32>),
    /// The program that made it.
    pub creator: Option<String>,
    /// The parent of a differencing disk.
    pub parent: Option<ParentFacts>,
    /// What else a VHD tells.
    pub vhd: Option<VhdFacts>,
}

/// What a differencing disk says of its parent.
#[derive(Debug, Clone)]
pub struct ParentFacts {
    /// The parent's name, often a path.
    pub name: String,
    /// The parent's identity; of a VHDX, the mark of its contents.
    pub id: Uuid,
    /// Where it was looked for.
    pub tried: Vec<PathBuf>,
    /// Where a file was found.
    pub found: Option<PathBuf>,
}

impl LayerFacts {
    /// How many sectors the records of the disk's pending map tell of at most.
    #[must_use]
    pub fn sectors_pending(&self, records: &[Range<u64>]) -> u64 {
        let block = self.block_size.unwrap_or_default() / u64::from(self.sectors.0);
        let of_vhdx = self.data_write_id.is_some();
        let sectors = |record: &Range<u64>| match of_vhdx {
            true => recorded_sectors(record, block),
            false => record.end - record.start,
        };
        records.iter().map(sectors).sum()
    }
}

/// Looks at a file and at the chain below it.
///
/// # Errors
/// If the file itself cannot be read, or is damaged beyond description. What is wrong further down is a warning.
pub fn inspect(path: &Path) -> Result<Inspection, DiskError> {
    let format = identify(path)?;
    let mut inspection =
        Inspection { path: path.into(), format, layers: Vec::new(), complete: false, warnings: Vec::new() };
    if format.is_err() {
        return Ok(inspection);
    }
    let mut next = Some(path.to_path_buf());
    while let Some(path) = next.take() {
        if inspection.layers.len() > MAX_DEPTH {
            break;
        }
        match layer(&path, &mut inspection.warnings) {
            Ok(layer) => {
                next = layer.parent.as_ref().and_then(|parent| parent.found.clone());
                let again = inspection.layers.iter().any(|above| above.path == layer.path);
                inspection.layers.push(layer);
                if again {
                    break;
                }
            }
            Err(error) if inspection.layers.is_empty() => return Err(error),
            Err(_) => break,
        }
    }
    match Chain::open(path, Access::Peek) {
        Ok(_) => inspection.complete = true,
        Err(error) => inspection.warnings.push(error.to_string()),
    }
    Ok(inspection)
}

fn layer(path: &Path, warnings: &mut Vec<String>) -> Result<LayerFacts, DiskError> {
    let file = File::open(path, Access::Peek)?;
    let meta = fs::metadata(path).map_err(|source| DiskError::io(path, "look at", source))?;
    let mut facts = LayerFacts {
        path: path.into(),
        format: DiskFormat::Raw,
        virtual_size: meta.len(),
        file_size: meta.len(),
        allocated: meta.blocks() * 512,
        blocks: None,
        unique_id: None,
        data_write_id: None,
        block_size: None,
        sectors: (512, None),
        creator: None,
        parent: None,
        vhd: None,
    };
    if is_vhdx(&file)? {
        return describe_vhdx(file, facts, warnings);
    }
    if !matches!(identify(path)?, Ok(format) if format != DiskFormat::Raw) {
        let boot_sector = meta.len() < 512 || read_vec(&file, 510, 2)? != [0x55, 0xaa];
        if boot_sector {
            warnings.push(format!("{}: no boot sector (55 AA at byte 510): is this a whole disk?", path.display()));
        }
        return Ok(facts);
    }
    let (footer, passed_over) = Footer::read(&file)?;
    if let Some(why) = passed_over {
        let path = path.display();
        warnings.push(format!("{path}: the footer at the end is bad ({why}); the copy at the beginning is used"));
    }
    (facts.format, facts.virtual_size) = (footer.kind().into(), footer.size());
    (facts.unique_id, facts.creator) = (Some(footer.id()), Some(footer.creator()));
    if footer.geometry() != Geometry::of(footer.size()) {
        let (path, size) = (path.display(), footer.geometry().size());
        warnings.push(format!("{path}: the geometry tells of {size} bytes, and some tools believe it"));
    }
    if footer.kind() == Kind::Fixed {
        facts.vhd = Some(VhdFacts::of(&file, &footer, None)?);
        return Ok(facts);
    }
    if read_vec(&file, 0, 512)? != footer.as_bytes() {
        warnings.push(format!(
            "{}: the footer's copy at the beginning differs; some tools refuse the file",
            path.display()
        ));
    }
    let sparse = Sparse::open(Box::new(file), footer, true)?;
    facts.blocks = Some((sparse.blocks_present(), sparse.header().blocks()));
    facts.block_size = Some(sparse.header().block_size());
    facts.vhd = Some(VhdFacts::of(sparse.media(), sparse.footer(), Some(&sparse))?);
    if facts.format == DiskFormat::VhdDifferencing {
        let tried = parent_candidates(sparse.media(), sparse.header())?;
        let found = tried.iter().find(|path| path.exists()).cloned();
        facts.parent =
            Some(ParentFacts { name: sparse.header().parent_name(), id: sparse.header().parent_id(), tried, found });
    }
    Ok(facts)
}

fn describe_vhdx(file: File, mut facts: LayerFacts, warnings: &mut Vec<String>) -> Result<LayerFacts, DiskError> {
    facts.creator = Some(wire::creator(&file)?);
    let disk = Vhdx::open(Box::new(file), true)?;
    let metadata = disk.metadata();
    warnings.extend(disk.warnings().iter().map(|warning| format!("{}: {warning}", facts.path.display())));
    (facts.format, facts.virtual_size) = (metadata.into(), metadata.size);
    (facts.unique_id, facts.data_write_id) = (Some(metadata.id), Some(disk.header().data_write));
    facts.blocks = Some((disk.blocks_present(), metadata.blocks()));
    facts.block_size = Some(metadata.block_size.into());
    facts.sectors = (metadata.logical_sector, Some(metadata.physical_sector));
    facts.parent = metadata.parent.as_ref().map(|locator| {
        let tried = vhdx_parent_candidates(&facts.path, locator);
        let found = tried.iter().find(|path| path.exists()).cloned();
        let keys = ["absolute_win32_path", "volume_path", "relative_path"];
        let name = keys.iter().find_map(|key| locator.value(key)).unwrap_or_default().to_owned();
        ParentFacts { name, id: locator.linkage().unwrap_or_default(), tried, found }
    });
    Ok(facts)
}

#[cfg(test)]
mod tests {
    use super::super::model;
    use super::*;

    #[test]
    fn a_chain_is_described_to_its_bottom() {
        let dir = model::scratch();
        model::master(&dir.path().join("master.vhd"));
        let top = model::children(dir.path(), 2, &mut vec![0; 5 << 20]);
        let seen = inspect(&top).unwrap();
        assert!(seen.complete && seen.warnings.is_empty(), "{:?}", seen.warnings);
        let formats: Vec<_> = seen.layers.iter().map(|layer| layer.format).collect();
        assert_eq!(formats, [DiskFormat::VhdDifferencing, DiskFormat::VhdDifferencing, DiskFormat::VhdDynamic]);
        let parent = seen.layers[0].parent.as_ref().unwrap();
        assert_eq!((Some(parent.id), parent.found.as_ref()), (seen.layers[1].unique_id, Some(&seen.layers[1].path)));
        assert_eq!((seen.layers[0].blocks, seen.layers[2].blocks), (Some((3, 3)), Some((2, 3))));
        assert!(seen.layers[0].allocated < seen.layers[0].file_size / 10);
    }

    #[test]
    fn damage_that_can_be_lived_with_is_a_warning() {
        let dir = model::scratch();
        let path = dir.path().join("master.vhd");
        model::master(&path);
        let top = model::children(dir.path(), 1, &mut []);
        let mut bytes = fs::read(&path).unwrap();
        let end = bytes.len();
        bytes[end - 100] = 1;
        fs::write(&path, &bytes).unwrap();
        let seen = inspect(&top).unwrap();
        assert!(seen.complete && seen.warnings[0].contains("checksum"), "{:?}", seen.warnings);
        fs::remove_file(&path).unwrap();
        let seen = inspect(&top).unwrap();
        assert!(!seen.complete && seen.warnings[0].contains("missing"), "{:?}", seen.warnings);
    }
}
