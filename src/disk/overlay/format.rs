//! What the overlay verbs ask of a disk format. A further format is one more variant, and an arm in each function here.
//!
//! A VHD is known to its children by its identity, which never changes; a VHDX by its `DataWriteGuid`, which changes with the
//! first write after each opening. A layer is never written again, so what stands on it finds it either way.

use std::path::Path;

use uuid::Uuid;

use super::super::chain::Chain;
use super::super::error::DiskError;
use super::super::file::{Access, File, Media, read_vec};
use super::super::names::Format;
use super::super::vhd::create::{NewChild, write_child};
use super::super::vhd::wire::{Footer, HEADER, Header, Kind, LocatorKind};
use super::super::vhdx::{self, wire};
use super::super::{Disk, SECTOR};

/// A page of the host: the smallest hole.
const PAGE: u64 = 4096;
/// Bytes that are read at once in the search for zeros.
const WINDOW: u64 = 256 * 1024;

/// What a file says of itself, its parents not asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Seen {
    pub(super) format: Format,
    /// What a child names it by.
    pub(super) id: Uuid,
    /// What its pending map, and other notes of it, name it by: it never changes.
    own: Uuid,
    /// The identity that its parent must have; a disk of its own has none.
    pub(super) parent: Option<Uuid>,
    pub(super) size: u64,
    /// Where the parent is from here, as Windows spells it.
    pub(super) relative: Option<String>,
}

/// A child to be written into an empty file.
#[derive(Debug)]
pub(super) struct Child<'a> {
    /// What its children are to name it by.
    pub(super) id: Uuid,
    pub(super) parent: &'a Chain,
    pub(super) size: u64,
    /// Where the parent is going to be, from the child's folder and as Windows spells it.
    pub(super) relative: &'a str,
    /// The same, from the root.
    pub(super) absolute: &'a Path,
}

/// Reads what a file says of itself.
pub(super) fn look(path: &Path) -> Result<Seen, DiskError> {
    let file = File::open(path, Access::Peek)?;
    if file.len()? >= wire::SIGNATURE.len() as u64 && read_vec(&file, 0, wire::SIGNATURE.len())? == wire::SIGNATURE {
        return look_at_vhdx(&file);
    }
    let (footer, _) = Footer::read(&file)?;
    let (id, size) = (footer.id(), footer.size());
    let mut seen = Seen { format: Format::Vhd, id, own: id, parent: None, size, relative: None };
    if footer.kind() == Kind::Differencing {
        let at = footer.header_offset();
        let bytes = read_vec(&file, at, usize::try_from(HEADER).expect("1024"))?;
        let header = Header::parse(&bytes, footer.size()).map_err(|what| DiskError::corrupt(path, at, what))?;
        seen.parent = Some(header.parent_id());
        let relative = header.locators().into_iter().find(|locator| locator.kind == LocatorKind::Relative);
        seen.relative = relative.map(|locator| locator.text(&file)).transpose()?;
    }
    Ok(seen)
}

/// The identity of a disk file, as [`Chain::unique_id`] tells it: it stays whatever is written.
///
/// # Errors
/// It cannot be read, or is no VHD or VHDX.
pub fn identity(path: &Path) -> Result<Uuid, DiskError> {
    look(path).map(|seen| seen.own)
}

/// The capacity of the disk that is in this file, in bytes. Somebody may be using it.
///
/// # Errors
/// It cannot be read, or is no VHD or VHDX.
pub fn size(path: &Path) -> Result<u64, DiskError> {
    look(path).map(|seen| seen.size)
}

/// The same of a VHDX. None of it is ever changed by way of the log.
fn look_at_vhdx(file: &File) -> Result<Seen, DiskError> {
    let (header, ..) = wire::Header::read(file)?;
    let (regions, _) = wire::Regions::read(file, &header)?;
    let metadata = wire::Metadata::read(file, &regions.metadata)?;
    let locator = metadata.parent.as_ref();
    Ok(Seen {
        format: Format::Vhdx,
        id: header.data_write,
        own: metadata.id,
        parent: locator.and_then(wire::ParentLocator::linkage),
        size: metadata.size,
        relative: locator.and_then(|locator| locator.value("relative_path")).map(str::to_owned),
    })
}

impl Format {
    /// The format of a child of this disk: its own.
    pub(super) fn of_child(parent: &Chain) -> Self {
        if parent.vhdx().is_some() { Self::Vhdx } else { Self::Vhd }
    }

    /// The most bytes that a disk can have.
    pub(super) fn max_size(self) -> u64 {
        match self {
            Self::Vhd => super::super::vhd::MAX_SIZE,
            Self::Vhdx => wire::MAX_SIZE,
        }
    }

    /// Writes a child that reads as its parent, and makes it durable. The identity that its pending map will know it by.
    pub(super) fn write_child(self, media: &dyn Media, child: &Child<'_>) -> Result<Uuid, DiskError> {
        let &Child { id, parent, size, relative, absolute } = child;
        match self {
            Self::Vhd => {
                let new = NewChild { size: Some(size), ..NewChild::default() };
                write_child(media, id, parent, relative, &absolute.to_string_lossy(), new)?;
                Ok(id)
            }
            Self::Vhdx => {
                let new = vhdx::create::NewChild { size: Some(size), data_write: id, ..Default::default() };
                vhdx::create::write_child(media, parent, relative, &absolute.to_string_lossy(), new)
            }
        }
    }

    /// Gives pages of this range of the top file back to the host that hold nothing: no sector that is here, or zeros only.
    /// What the disk reads as does not change. The caller lets nobody write meanwhile.
    pub(super) fn punch(self, top: &Chain, offset: u64, len: u64) -> Result<(), DiskError> {
        match self {
            Self::Vhd => {
                let Some(sparse) = top.sparse() else { return Ok(()) };
                punch_blocks(top, offset, len, &|at| sparse.place_of(at))
            }
            Self::Vhdx => {
                let Some(vhdx) = top.vhdx() else { return Ok(()) };
                punch_blocks(top, offset, len, &|at| vhdx.place_of(at))
            }
        }
    }
}

/// `place_of` says where a byte of the disk lies in the file, if it does, and for how many bytes that goes on.
fn punch_blocks(
    top: &Chain,
    offset: u64,
    len: u64,
    place_of: &dyn Fn(u64) -> (Option<u64>, u64),
) -> Result<(), DiskError> {
    let media = top.media();
    let end = offset + len;
    let mut at = offset;
    while at < end {
        let (places, whole) = place_of(at);
        let piece = whole.min(end - at);
        if let Some(place) = places {
            punch_piece(top, media, at, place, piece)?;
        }
        at += piece;
    }
    Ok(())
}

/// The same for a range that lies in one piece in the file, at `place`.
fn punch_piece(top: &Chain, media: &dyn Media, offset: u64, place: u64, len: u64) -> Result<(), DiskError> {
    let file_end = media.len()?.min(place + len);
    let mut at = place.next_multiple_of(PAGE);
    while let Some(data) = media.next_data(at)?.filter(|data| *data + PAGE <= file_end) {
        at = (data / PAGE * PAGE).max(at);
        let window = WINDOW.min((file_end - at) / PAGE * PAGE);
        if window == 0 {
            break;
        }
        let bytes = read_vec(media, at, usize::try_from(window).expect("at most 256 KiB"))?;
        let mut here = vec![false; usize::try_from(window / SECTOR).expect("at most 512")];
        let first = offset + (at - place);
        let mut covered = 0;
        for extent in top.resolve(first, window)? {
            let ours = extent.at.is_some_and(|(from, _)| std::ptr::addr_eq(from, media));
            let range = |bytes: u64| usize::try_from(bytes / SECTOR).expect("within the window");
            here[range(covered)..range(covered + extent.len)].fill(ours);
            covered += extent.len;
        }
        let needed = |page: usize| {
            let sectors = PAGE / SECTOR;
            (0..usize::try_from(sectors).expect("8")).any(|n| {
                let sector = page * usize::try_from(sectors).expect("8") + n;
                here[sector] && bytes[sector * 512..][..512].iter().any(|&byte| byte != 0)
            })
        };
        let pages = usize::try_from(window / PAGE).expect("at most 64");
        let mut page = 0;
        while page < pages {
            let start = page;
            while page < pages && !needed(page) {
                page += 1;
            }
            if page > start {
                media.zero(at + start as u64 * PAGE, (page - start) as u64 * PAGE)?;
            }
            page += 1;
        }
        at += window;
    }
    Ok(())
}

/// Whether the top file holds nothing of its own.
pub(super) fn is_empty(top: &Chain) -> Result<bool, DiskError> {
    /// Resolved at once, so that a large disk takes no memory by its size.
    const STEP: u64 = 1 << 30;
    let mut at = 0;
    while at < top.size() {
        let len = STEP.min(top.size() - at);
        let own = |(media, _): (&dyn Media, u64)| std::ptr::addr_eq(media, top.media());
        if top.resolve(at, len)?.iter().any(|extent| extent.at.is_some_and(own)) {
            return Ok(false);
        }
        at += len;
    }
    Ok(true)
}
