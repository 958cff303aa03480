//! Footer, dynamic header and parent locators as they lie in a file, and their checks.
//!
//! A value of [`Footer`] or [`Header`] has passed every check that needs no other part of the file.

use uuid::Uuid;
use zerocopy::byteorder::big_endian::{U16, U32, U64};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::disk::SECTOR;
use crate::disk::error::DiskError;
use crate::disk::file::{Media, read_vec};

/// Bytes of a footer.
pub const FOOTER: u64 = 512;
/// Bytes of a dynamic header.
pub const HEADER: u64 = 1024;
/// The largest disk of the format: a file has at most 2³² sectors, and Windows stops here.
pub const MAX_SIZE: u64 = 2040 << 30;
/// The longest file: a table's entry is a sector number of 32 bits.
pub const MAX_FILE: u64 = SECTOR << 32;
/// Blocks that a table may have: a disk of [`MAX_SIZE`] in blocks of 512 KiB, the smallest that Windows takes. Bounds
/// the memory that a file can make its reader take, to 16 MiB.
pub const MAX_BLOCKS: u32 = 2040 << 11;
/// The largest block that is read. Its bitmap takes 64 KiB.
pub const MAX_BLOCK_SIZE: u32 = 256 << 20;
/// Longest text of a parent locator that is read, in bytes: twice what Linux takes as a path.
pub const MAX_LOCATOR: u32 = 16 * 1024;
/// The table's word for a block that is not in the file.
pub const ABSENT: u32 = u32::MAX;
/// The block size of new disks, and of nearly all others.
pub const BLOCK_SIZE: u32 = 2 << 20;

const FOOTER_COOKIE: [u8; 8] = *b"conectix";
const HEADER_COOKIE: [u8; 8] = *b"cxsparse";
/// 2000-01-01T00:00:00Z in seconds of Unix time: the format's year zero.
const EPOCH: u64 = 946_684_800;

/// What a footer says its file is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// The bytes of the disk, then the footer.
    Fixed,
    /// Blocks that are in the file or zero.
    Dynamic,
    /// Sectors that are in the file or in its parent.
    Differencing,
}

#[derive(Debug, Clone, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct FooterBytes {
    cookie: [u8; 8],
    features: U32,
    version: U32,
    data_offset: U64,
    timestamp: U32,
    creator: [u8; 4],
    creator_version: U32,
    creator_os: [u8; 4],
    original_size: U64,
    current_size: U64,
    cylinders: U16,
    heads: u8,
    sectors: u8,
    kind: U32,
    checksum: U32,
    id: [u8; 16],
    saved_state: u8,
    reserved: [u8; 427],
}

#[derive(Debug, Clone, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct HeaderBytes {
    cookie: [u8; 8],
    data_offset: U64,
    table_offset: U64,
    version: U32,
    max_blocks: U32,
    block_size: U32,
    checksum: U32,
    parent_id: [u8; 16],
    parent_timestamp: U32,
    reserved: U32,
    parent_name: [U16; 256],
    locators: [LocatorBytes; 8],
    reserved_too: [u8; 256],
}

#[derive(Debug, Clone, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct LocatorBytes {
    code: [u8; 4],
    space: U32,
    len: U32,
    reserved: U32,
    offset: U64,
}

/// Ones' complement of the sum of all bytes, with the checksum's own four bytes left out.
fn checksum(bytes: &[u8], stored: U32) -> u32 {
    let sum = |bytes: &[u8]| bytes.iter().fold(0u32, |sum, &byte| sum.wrapping_add(u32::from(byte)));
    !(sum(bytes).wrapping_sub(sum(stored.as_bytes())))
}

/// A disk's footer.
#[derive(Debug, Clone)]
pub struct Footer {
    bytes: FooterBytes,
    kind: Kind,
}

/// Cylinders, heads and sectors per track, as BIOSes of the time saw a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Geometry {
    /// Cylinders.
    pub cylinders: u16,
    /// Heads.
    pub heads: u8,
    /// Sectors per track.
    pub sectors: u8,
}

impl Geometry {
    /// The geometry of a disk of `size` bytes (specification, appendix "CHS Calculation").
    #[must_use]
    pub fn of(size: u64) -> Self {
        let total = (size / SECTOR).min(65_535 * 16 * 255);
        let (heads, sectors);
        if total >= 65_535 * 16 * 63 {
            (heads, sectors) = (16, 255);
        } else {
            let (mut h, mut s) = ((total / 17).div_ceil(1024).max(4), 17);
            if total / 17 >= h * 1024 || h > 16 {
                (h, s) = (16, 31);
            }
            if total / s >= h * 1024 {
                (h, s) = (16, 63);
            }
            (heads, sectors) = (h, s);
        }
        let cylinders = u16::try_from(total / sectors / heads).expect("the total was capped for this");
        let byte = |n: u64| u8::try_from(n).expect("heads are at most 16, sectors 255");
        Self { cylinders, heads: byte(heads), sectors: byte(sectors) }
    }

    /// Bytes that it spans.
    #[must_use]
    pub fn size(self) -> u64 {
        u64::from(self.cylinders) * u64::from(self.heads) * u64::from(self.sectors) * SECTOR
    }
}

impl Footer {
    /// A footer for a new disk: creator "win ", because of any creator that it does not know QEMU cuts the disk to its
    /// geometry.
    ///
    /// # Panics
    /// If `size` is no whole number of sectors; callers have checked it.
    #[must_use]
    pub fn new(kind: Kind, size: u64, id: Uuid) -> Self {
        assert!(size > 0 && size.is_multiple_of(SECTOR), "the size of a new disk is in whole sectors");
        let geometry = Geometry::of(size);
        let now =
            std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(EPOCH, |since| since.as_secs());
        let mut bytes = FooterBytes {
            cookie: FOOTER_COOKIE,
            features: U32::new(2),
            version: U32::new(0x0001_0000),
            data_offset: U64::new(if kind == Kind::Fixed { u64::MAX } else { FOOTER }),
            timestamp: U32::new(u32::try_from(now.saturating_sub(EPOCH)).unwrap_or(u32::MAX)),
            creator: *b"win ",
            creator_version: U32::new(0x000A_0000),
            creator_os: *b"Wi2k",
            original_size: U64::new(size),
            current_size: U64::new(size),
            cylinders: U16::new(geometry.cylinders),
            heads: geometry.heads,
            sectors: geometry.sectors,
            kind: U32::new(match kind {
                Kind::Fixed => 2,
                Kind::Dynamic => 3,
                Kind::Differencing => 4,
            }),
            checksum: U32::new(0),
            id: id.into_bytes(),
            saved_state: 0,
            reserved: [0; 427],
        };
        bytes.checksum = U32::new(checksum(bytes.as_bytes(), bytes.checksum));
        Self { bytes, kind }
    }

    /// Reads a footer, or says what is wrong with it. 511 bytes are as good: Virtual PC before 2004 wrote so many.
    ///
    /// # Errors
    /// A sentence about the first thing that is wrong.
    pub fn parse(bytes: &[u8]) -> Result<Self, String> {
        let mut whole = [0; 512];
        match bytes.len() {
            511 | 512 => whole[..bytes.len()].copy_from_slice(bytes),
            len => return Err(format!("a footer has 512 bytes, not {len}")),
        }
        let bytes: FooterBytes = zerocopy::transmute!(whole);
        if bytes.cookie != FOOTER_COOKIE {
            return Err("no footer: the cookie \"conectix\" is missing".into());
        }
        let sum = checksum(bytes.as_bytes(), bytes.checksum);
        if sum != bytes.checksum.get() {
            return Err(format!("the footer's checksum is {:#010x}, its bytes give {sum:#010x}", bytes.checksum));
        }
        if bytes.version.get() >> 16 != 1 {
            return Err(format!("footer version {:#010x}; 1.0 is known", bytes.version));
        }
        let kind = match bytes.kind.get() {
            2 => Kind::Fixed,
            3 => Kind::Dynamic,
            4 => Kind::Differencing,
            other => return Err(format!("disk type {other}; 2 (fixed), 3 (dynamic) and 4 (differencing) are known")),
        };
        let size = bytes.current_size.get();
        if size == 0 || !size.is_multiple_of(SECTOR) {
            return Err(format!("a capacity of {size} bytes, which is no whole number of sectors"));
        }
        if size > MAX_SIZE {
            return Err(format!("a capacity of {size} bytes; the format ends at 2040 GiB"));
        }
        Ok(Self { bytes, kind })
    }

    /// As it lies in the file.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        self.bytes.as_bytes()
    }

    /// What the file is.
    #[must_use]
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// The capacity in bytes. The geometry is never asked: it rounds down.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.bytes.current_size.get()
    }

    /// The identity that children name.
    #[must_use]
    pub fn id(&self) -> Uuid {
        Uuid::from_bytes(self.bytes.id)
    }

    /// Where the dynamic header lies.
    #[must_use]
    pub fn header_offset(&self) -> u64 {
        self.bytes.data_offset.get()
    }

    /// The geometry as written by the creator.
    #[must_use]
    pub fn geometry(&self) -> Geometry {
        Geometry { cylinders: self.bytes.cylinders.get(), heads: self.bytes.heads, sectors: self.bytes.sectors }
    }

    /// The program that made the file, and its version: `win 10.0`.
    #[must_use]
    pub fn creator(&self) -> String {
        let name: String = self.bytes.creator.iter().filter(|b| b.is_ascii_graphic()).map(|&b| char::from(b)).collect();
        let version = self.bytes.creator_version.get();
        format!("{name} {}.{}", version >> 16, version & 0xffff)
    }

    /// Finds and reads the footer of a file: the one at its end, or else the copy at its beginning, with a sentence about
    /// why the one at the end was passed over.
    ///
    /// # Errors
    /// [`DiskError::Corrupt`] if neither is sound, or the system's error.
    pub fn read(media: &dyn Media) -> Result<(Self, Option<String>), DiskError> {
        let len = media.len()?;
        if len < FOOTER {
            return Err(DiskError::corrupt(media.path(), 0, format!("{len} bytes are too few for a footer")));
        }
        let tail = read_vec(media, len - FOOTER, 512)?;
        let tail = if tail.starts_with(&FOOTER_COOKIE) || tail[1..9] != FOOTER_COOKIE { &tail[..] } else { &tail[1..] };
        match Self::parse(tail) {
            Ok(footer) => Ok((footer, None)),
            Err(why) => match Self::parse(&read_vec(media, 0, 512)?) {
                // A fixed disk has no copy; its first sector may hold somebody else's.
                Ok(copy) if copy.kind != Kind::Fixed => Ok((copy, Some(why))),
                _ => Err(DiskError::corrupt(media.path(), len - FOOTER, why)),
            },
        }
    }

    /// Where the footer at the end of a file begins, if there is a sound one, of 512 or 511 bytes.
    ///
    /// # Errors
    /// The system's.
    pub fn place_at_end(media: &dyn Media) -> Result<Option<u64>, DiskError> {
        let Some(at) = media.len()?.checked_sub(FOOTER) else { return Ok(None) };
        let tail = read_vec(media, at, 512)?;
        let place = [(at, &tail[..]), (at + 1, &tail[1..])];
        Ok(place.into_iter().find(|(_, bytes)| Self::parse(bytes).is_ok()).map(|(at, _)| at))
    }

    /// Whether these first and last bytes of a file (at least 512 each) claim to be a VHD's.
    #[must_use]
    pub fn claimed(first: &[u8], last: &[u8]) -> bool {
        let tail = &last[last.len().saturating_sub(512)..];
        first.starts_with(&FOOTER_COOKIE)
            || tail.starts_with(&FOOTER_COOKIE)
            || tail.get(1..).is_some_and(|tail| tail.starts_with(&FOOTER_COOKIE))
    }
}

/// Which way a locator's text points.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LocatorKind {
    /// `W2ru`: relative to the child's folder.
    Relative,
    /// `W2ku`: from the root or a drive.
    Absolute,
}

/// Where a child says its parent is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Locator {
    /// What the path starts from.
    pub kind: LocatorKind,
    /// Where the text lies in the file.
    pub offset: u64,
    /// Its bytes, at most [`MAX_LOCATOR`].
    pub len: u32,
    /// What is set aside for it: in sectors by the specification, in bytes as Windows writes it. See [`Locator::room`].
    pub space: u32,
}

impl Locator {
    /// Bytes set aside for the text. A number that is no multiple of a sector, or too small for the text, counts sectors.
    #[must_use]
    pub fn room(&self) -> u64 {
        let space = u64::from(self.space);
        if space.is_multiple_of(SECTOR) && self.space >= self.len { space } else { space * SECTOR }
    }

    /// Reads the text: UTF-16, little-endian. Text that is none has replacement characters in it.
    ///
    /// # Errors
    /// [`DiskError::Corrupt`] if it lies outside of the file, or the system's error.
    pub fn text(&self, media: &dyn Media) -> Result<String, DiskError> {
        if self.offset.checked_add(self.len.into()).is_none_or(|end| media.len().is_ok_and(|len| end > len)) {
            let what = "a parent locator's text lies outside of the file";
            return Err(DiskError::corrupt(media.path(), self.offset, what));
        }
        let bytes = read_vec(media, self.offset, self.len as usize)?;
        let units: Vec<_> = bytes.chunks_exact(2).map(|pair| u16::from_le_bytes([pair[0], pair[1]])).collect();
        Ok(String::from_utf16_lossy(&units).trim_end_matches('\0').to_owned())
    }
}

/// What the header of a new disk says.
#[derive(Debug, Clone)]
pub struct NewHeader<'a> {
    /// The capacity in bytes.
    pub size: u64,
    /// Bytes of a block.
    pub block_size: u32,
    /// Where the table lies.
    pub table_offset: u64,
    /// For a differencing disk: the parent's identity, its name, and where the texts that lead to it lie.
    pub parent: Option<(Uuid, &'a str, [Locator; 2])>,
}

/// A dynamic header.
#[derive(Debug, Clone)]
pub struct Header {
    bytes: HeaderBytes,
    blocks: u32,
}

impl Header {
    /// A header for a new disk.
    ///
    /// # Panics
    /// If the size has more than [`MAX_BLOCKS`] blocks; callers have checked it.
    #[must_use]
    pub fn new(new: &NewHeader<'_>) -> Self {
        let blocks = u32::try_from(new.size.div_ceil(u64::from(new.block_size))).expect("at most MAX_BLOCKS");
        assert!(blocks <= MAX_BLOCKS);
        let mut bytes = HeaderBytes::new_zeroed();
        bytes.cookie = HEADER_COOKIE;
        bytes.data_offset = U64::MAX_VALUE;
        bytes.table_offset = U64::new(new.table_offset);
        bytes.version = U32::new(0x0001_0000);
        bytes.max_blocks = U32::new(blocks);
        bytes.block_size = U32::new(new.block_size);
        if let Some((id, name, locators)) = &new.parent {
            bytes.parent_id = id.into_bytes();
            for (to, unit) in bytes.parent_name.iter_mut().zip(name.encode_utf16()) {
                *to = U16::new(unit);
            }
            for (to, locator) in bytes.locators.iter_mut().zip(locators) {
                to.code = match locator.kind {
                    LocatorKind::Relative => *b"W2ru",
                    LocatorKind::Absolute => *b"W2ku",
                };
                to.space = U32::new(locator.space);
                to.len = U32::new(locator.len);
                to.offset = U64::new(locator.offset);
            }
        }
        bytes.checksum = U32::new(checksum(bytes.as_bytes(), bytes.checksum));
        Self { bytes, blocks }
    }

    /// Reads a header for a disk of `size` bytes, or says what is wrong with it.
    ///
    /// # Errors
    /// A sentence about the first thing that is wrong.
    pub fn parse(bytes: &[u8], size: u64) -> Result<Self, String> {
        let bytes = HeaderBytes::read_from_bytes(bytes).map_err(|_| "a dynamic header has 1024 bytes".to_owned())?;
        if bytes.cookie != HEADER_COOKIE {
            return Err("no dynamic header: the cookie \"cxsparse\" is missing".into());
        }
        let sum = checksum(bytes.as_bytes(), bytes.checksum);
        if sum != bytes.checksum.get() {
            return Err(format!(
                "the dynamic header's checksum is {:#010x}, its bytes give {sum:#010x}",
                bytes.checksum
            ));
        }
        if bytes.version.get() >> 16 != 1 {
            return Err(format!("dynamic header version {:#010x}; 1.0 is known", bytes.version));
        }
        let block = bytes.block_size.get();
        if !block.is_power_of_two() || u64::from(block) < SECTOR || block > MAX_BLOCK_SIZE {
            return Err(format!("blocks of {block} bytes; a power of two from 512 to {MAX_BLOCK_SIZE} is possible"));
        }
        let blocks = size.div_ceil(u64::from(block));
        let blocks = u32::try_from(blocks).ok().filter(|&blocks| blocks <= MAX_BLOCKS);
        let Some(blocks) = blocks else {
            return Err(format!("{size} bytes in blocks of {block}: more than {MAX_BLOCKS} blocks are not read"));
        };
        if bytes.max_blocks.get() < blocks {
            return Err(format!("a table of {} entries is too small for {blocks} blocks", bytes.max_blocks));
        }
        Ok(Self { bytes, blocks })
    }

    /// As it lies in the file.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        self.bytes.as_bytes()
    }

    /// Blocks that the disk has. The table may have more entries, which mean nothing.
    #[must_use]
    pub fn blocks(&self) -> u32 {
        self.blocks
    }

    /// Bytes of a block, its bitmap not counted.
    #[must_use]
    pub fn block_size(&self) -> u64 {
        u64::from(self.bytes.block_size.get())
    }

    /// Bytes of a block's bitmap, in whole sectors.
    #[must_use]
    pub fn bitmap_size(&self) -> u64 {
        (self.block_size() / SECTOR).div_ceil(8).next_multiple_of(SECTOR)
    }

    /// Where the table lies.
    #[must_use]
    pub fn table_offset(&self) -> u64 {
        self.bytes.table_offset.get()
    }

    /// Bytes of the table, its padding not counted.
    #[must_use]
    pub fn table_size(&self) -> u64 {
        u64::from(self.blocks) * 4
    }

    /// The identity that the parent must have.
    #[must_use]
    pub fn parent_id(&self) -> Uuid {
        Uuid::from_bytes(self.bytes.parent_id)
    }

    /// The parent's name, which is a path in files that Windows made.
    #[must_use]
    pub fn parent_name(&self) -> String {
        let units: Vec<_> =
            self.bytes.parent_name.iter().map(|unit| unit.get()).take_while(|&unit| unit != 0).collect();
        String::from_utf16_lossy(&units)
    }

    /// Where the place of each locator ends, those that are not understood with them: nothing else may lie there.
    #[must_use]
    pub fn locator_ends(&self) -> Vec<u64> {
        let used = self.bytes.locators.iter().filter(|bytes| bytes.code != [0; 4]);
        used.map(|bytes| {
            let (offset, len, space) = (bytes.offset.get(), bytes.len.get(), bytes.space.get());
            let locator = Locator { kind: LocatorKind::Absolute, offset, len, space };
            offset.saturating_add(locator.room().max(len.into()))
        })
        .collect()
    }

    /// The locators that are understood, relative ones first: a moved folder takes its parent along.
    #[must_use]
    pub fn locators(&self) -> Vec<Locator> {
        let locators = self.bytes.locators.iter().filter_map(|bytes| {
            let kind = match &bytes.code {
                b"W2ru" => LocatorKind::Relative,
                b"W2ku" => LocatorKind::Absolute,
                _ => return None,
            };
            let (offset, len, space) = (bytes.offset.get(), bytes.len.get(), bytes.space.get());
            (len > 0 && len <= MAX_LOCATOR).then_some(Locator { kind, offset, len, space })
        });
        let mut locators: Vec<_> = locators.collect();
        locators.sort_by_key(|locator| locator.kind == LocatorKind::Absolute);
        locators
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn structures_have_the_sizes_of_the_specification() {
        assert_eq!(size_of::<FooterBytes>() as u64, FOOTER);
        assert_eq!(size_of::<HeaderBytes>() as u64, HEADER);
    }

    #[test]
    fn geometries_agree_with_those_that_windows_and_virtual_pc_wrote() {
        let geometry = |size| {
            let Geometry { cylinders, heads, sectors } = Geometry::of(size);
            (cylinders, heads, sectors)
        };
        assert_eq!(geometry(136_365_211_648), (65_278, 16, 255));
        assert_eq!(geometry(2040 << 30), (65_535, 16, 255));
        assert_eq!(geometry(1 << 20), (30, 4, 17));
        assert_eq!(geometry(512), (0, 4, 17));
    }

    #[test]
    fn a_new_footer_reads_back_and_any_changed_byte_is_noticed() {
        let footer = Footer::new(Kind::Dynamic, 64 << 20, Uuid::from_u128(7));
        let back = Footer::parse(footer.as_bytes()).unwrap();
        assert_eq!((back.kind(), back.size(), back.id()), (Kind::Dynamic, 64 << 20, Uuid::from_u128(7)));
        assert_eq!(back.creator(), "win 10.0");
        for at in 0..512 {
            let mut bytes = footer.as_bytes().to_vec();
            bytes[at] ^= 0x10;
            Footer::parse(&bytes).unwrap_err();
        }
        Footer::parse(&footer.as_bytes()[..511]).unwrap();
    }

    #[test]
    fn a_header_is_refused_where_its_table_cannot_hold_the_disk() {
        let header =
            Header::new(&NewHeader { size: 9 << 20, block_size: BLOCK_SIZE, table_offset: 1536, parent: None });
        assert_eq!(header.blocks(), 5);
        assert_eq!(Header::parse(header.as_bytes(), 9 << 20).unwrap().blocks(), 5);
        assert!(Header::parse(header.as_bytes(), 11 << 20).unwrap_err().contains("too small"));
    }
}
