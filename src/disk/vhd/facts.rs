//! What a VHD's structures say that a person may want to know and no reader needs.

use super::super::error::DiskError;
use super::super::file::{Media, read_vec};
use super::sparse::{Sparse, Wait};
use super::wire::{Footer, Geometry, LocatorKind};

/// Bytes of the disk that are looked through at once.
const STEP: u64 = 256 << 20;

/// The particulars of one VHD.
#[derive(Debug, Clone)]
pub struct VhdFacts {
    /// When it was made, in seconds since 1970-01-01T00:00Z.
    pub created: u64,
    /// The system that it was made under, in four letters.
    pub creator_os: String,
    /// The capacity that it was made with, in bytes.
    pub original_size: u64,
    /// Cylinders, heads and sectors as its creator wrote them.
    pub geometry: Geometry,
    /// Where the footer lies that is believed, and what the other one is; a fixed disk has one.
    pub footers: Vec<FooterCopy>,
    /// Bytes of a block, of a dynamic or differencing disk.
    pub block_size: Option<u64>,
    /// Sectors whose bit is set: those that the file has itself. Read from a file that is written meanwhile, a moment's number.
    pub sectors_here: Option<u64>,
    /// The texts that lead to the parent, in the order in which they are followed: `W2ru` or `W2ku`, and the text.
    pub locators: Vec<(&'static str, String)>,
}

/// One of a VHD's footers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FooterCopy {
    /// Where it lies in the file.
    pub offset: u64,
    /// Whether it is sound; if not, why.
    pub sound: Result<(), String>,
}

impl VhdFacts {
    /// The particulars of a file whose footer has been read, and of its blocks where it has such.
    ///
    /// # Errors
    /// A locator outside of the file, or the system's error.
    pub fn of(media: &dyn Media, footer: &Footer, sparse: Option<&Sparse>) -> Result<Self, DiskError> {
        let mut footers = vec![copy_at(media, media.len()?.saturating_sub(512), footer)?];
        let mut facts = Self {
            created: footer.created(),
            creator_os: footer.creator_os(),
            original_size: footer.original_size(),
            geometry: footer.geometry(),
            footers: Vec::new(),
            block_size: None,
            sectors_here: None,
            locators: Vec::new(),
        };
        if let Some(sparse) = sparse {
            footers.push(copy_at(media, 0, footer)?);
            facts.block_size = Some(sparse.header().block_size());
            facts.sectors_here = Some(sectors_here(sparse)?);
            for locator in sparse.header().locators() {
                let kind = match locator.kind {
                    LocatorKind::Relative => "W2ru",
                    LocatorKind::Absolute => "W2ku",
                };
                facts.locators.push((kind, locator.text(media)?));
            }
        }
        Ok(Self { footers, ..facts })
    }
}

/// A footer's copy, held against the one that is believed.
fn copy_at(media: &dyn Media, offset: u64, believed: &Footer) -> Result<FooterCopy, DiskError> {
    let bytes = read_vec(media, offset, 512)?;
    let parse = |bytes: &[u8]| Footer::parse(bytes);
    // At the end of a file, 511 bytes do.
    let sound =
        match parse(&bytes).or_else(|why| if offset > 0 { parse(&bytes[1..]).map_err(|_| why) } else { Err(why) }) {
            Ok(footer) if footer.as_bytes() == believed.as_bytes() => Ok(()),
            Ok(_) => Err("differs from the one that is believed".to_owned()),
            Err(why) => Err(why),
        };
    Ok(FooterCopy { offset, sound })
}

fn sectors_here(sparse: &Sparse) -> Result<u64, DiskError> {
    let (mut at, mut bytes) = (0, 0);
    while at < sparse.size() {
        let len = STEP.min(sparse.size() - at);
        let runs = sparse.map_range(at, len, Wait::Block)?.expect("it waits");
        bytes += runs.iter().filter(|run| run.at.is_some()).map(|run| run.len).sum::<u64>();
        at += len;
    }
    Ok(bytes / super::super::SECTOR)
}
