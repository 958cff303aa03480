//! Headers, region table, metadata and table entries as they lie in a file, and their checks.
//!
//! What is returned from here has passed every check that needs nothing but the structure itself, the length of the file
//! and the structures read before it. A sentence about damage begins with the name of the field.

use std::ops::Range;

use uuid::{Uuid, uuid};
use zerocopy::byteorder::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::disk::error::DiskError;
use crate::disk::file::{Media, read_vec};

/// The unit in which everything of size has its place.
pub const MIB: u64 = 1 << 20;
/// The unit of the log, and of every change to metadata.
pub const PAGE: u64 = PAGE_BYTES as u64;
/// The same, for arrays.
pub(super) const PAGE_BYTES: usize = 4096;
/// What a file begins with.
pub const SIGNATURE: [u8; 8] = *b"vhdxfile";
/// The largest disk of the format.
pub const MAX_SIZE: u64 = 64 << 40;
/// Blocks are a power of two between these.
pub const BLOCK_SIZES: std::ops::RangeInclusive<u32> = 1 << 20..=256 << 20;
/// Sectors that a bitmap block of 1 MiB has bits for: one chunk of the disk.
pub const CHUNK_SECTORS: u64 = 1 << 23;

/// Where the two headers lie.
pub(in crate::disk) const HEADERS: [u64; 2] = [64 << 10, 128 << 10];
/// Where the two copies of the region table lie.
pub(super) const REGION_TABLES: [u64; 2] = [192 << 10, 256 << 10];
/// Bytes of a region table, and of a metadata table.
const TABLE: usize = 64 << 10;
/// Entries that either table has room for.
const MAX_ENTRIES: usize = 2047;
/// Bytes of a parent locator that are read. Windows writes under 4 KiB.
const MAX_LOCATOR: u32 = 64 << 10;

const BAT: Uuid = uuid!("2DC27766-F623-4200-9D64-115E9BFD4A08");
const METADATA: Uuid = uuid!("8B7CA206-4790-4B9A-B8FE-575F050F886E");
const FILE_PARAMETERS: Uuid = uuid!("CAA16737-FA36-4D43-B3B6-33F0AA44E76B");
const DISK_SIZE: Uuid = uuid!("2FA54224-CD1B-4876-B211-5DBED83BF4B8");
const PAGE_83: Uuid = uuid!("BECA12AB-B2E6-4523-93EF-C309E000C746");
const LOGICAL_SECTOR: Uuid = uuid!("8141BF1D-A96F-4709-BA47-F233A8FAAB5F");
const PHYSICAL_SECTOR: Uuid = uuid!("CDA348C7-445D-4471-9CC9-E9885251C556");
const PARENT_LOCATOR: Uuid = uuid!("A8D35F2D-B30B-454D-ABF7-D3D84834AB0C");
/// The only type of parent locator that there is.
const LOCATOR_TYPE: Uuid = uuid!("B04AEFB7-D19E-4A81-B789-25B8E9445913");

const LEAVE_ALLOCATED: u32 = 1;
const HAS_PARENT: u32 = 2;
const IS_USER: u32 = 1;
const IS_VIRTUAL_DISK: u32 = 2;
const IS_REQUIRED: u32 = 4;

#[derive(Debug, Clone, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct HeaderBytes {
    signature: [u8; 4],
    checksum: U32,
    sequence: U64,
    file_write: [u8; 16],
    data_write: [u8; 16],
    log: [u8; 16],
    log_version: U16,
    version: U16,
    log_length: U32,
    log_offset: U64,
    reserved: [u8; 4016],
}

#[derive(Debug, Clone, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct RegionTableFront {
    signature: [u8; 4],
    checksum: U32,
    count: U32,
    reserved: U32,
}

#[derive(Debug, Clone, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct RegionBytes {
    id: [u8; 16],
    offset: U64,
    length: U32,
    required: U32,
}

#[derive(Debug, Clone, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct MetadataFront {
    signature: [u8; 8],
    reserved: U16,
    count: U16,
    reserved_too: [u8; 20],
}

#[derive(Debug, Clone, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct ItemBytes {
    id: [u8; 16],
    offset: U32,
    length: U32,
    flags: U32,
    reserved: U32,
}

#[derive(Debug, Clone, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct LocatorFront {
    kind: [u8; 16],
    reserved: U16,
    count: U16,
}

#[derive(Debug, Clone, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct LocatorEntry {
    key_offset: U32,
    value_offset: U32,
    key_length: U16,
    value_length: U16,
}

/// The CRC-32C of a structure, its own four bytes (at 4 in every structure of the format) taken as zeros.
pub(super) fn checksum(bytes: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c_append(crc32c::crc32c(&bytes[..4]), &[0; 4]), &bytes[8..])
}

/// Writes a structure's checksum into it.
pub(super) fn seal(bytes: &mut [u8]) {
    let sum = checksum(bytes);
    bytes[4..8].copy_from_slice(&sum.to_le_bytes());
}

fn check_sum(name: &str, bytes: &[u8], stored: U32) -> Result<(), String> {
    let sum = checksum(bytes);
    if sum != stored.get() {
        return Err(format!("{name}: the checksum is {:#010x}, its bytes give {sum:#010x}", stored.get()));
    }
    Ok(())
}

/// The first 64 KiB of a new file.
pub(super) fn identifier() -> Vec<u8> {
    let mut bytes = SIGNATURE.to_vec();
    bytes.extend("Roost".encode_utf16().flat_map(u16::to_le_bytes));
    bytes.resize(usize::try_from(PAGE).expect("4096"), 0);
    bytes
}

/// The program that made a file, as it says itself.
///
/// # Errors
/// The system's.
pub fn creator(media: &dyn Media) -> Result<String, DiskError> {
    let bytes = read_vec(media, 8, 512)?;
    let units: Vec<_> = bytes.chunks_exact(2).map(|pair| u16::from_le_bytes([pair[0], pair[1]])).collect();
    let text = units.split(|&unit| unit == 0).next().unwrap_or_default();
    Ok(String::from_utf16_lossy(text))
}

/// What changes about a whole file: its identities for this opening, and its log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// The header with the greater one counts.
    pub sequence: u64,
    /// New at the first change after each opening for writing.
    pub file_write: Uuid,
    /// New at the first change of the disk's contents after each opening; children name it.
    pub data_write: Uuid,
    /// Whose entries in the log count; nil: the log is empty.
    pub log: Uuid,
    /// Bytes of the log.
    pub log_length: u32,
    /// Where the log lies.
    pub log_offset: u64,
}

impl Header {
    pub(super) fn parse(bytes: &[u8], file_len: u64) -> Result<Self, String> {
        let header = HeaderBytes::read_from_bytes(bytes).map_err(|_| "header: has 4096 bytes".to_owned())?;
        if header.signature != *b"head" {
            return Err("header: the signature \"head\" is missing".into());
        }
        check_sum("header", bytes, header.checksum)?;
        if header.version.get() != 1 {
            return Err(format!("header version: {}; 1 is known", header.version));
        }
        if header.log_version.get() != 0 {
            return Err(format!("header log version: {}; 0 is known", header.log_version));
        }
        let (log_offset, log_length) = (header.log_offset.get(), header.log_length.get());
        place("header log", log_offset, log_length, file_len)?;
        Ok(Self {
            sequence: header.sequence.get(),
            file_write: Uuid::from_bytes_le(header.file_write),
            data_write: Uuid::from_bytes_le(header.data_write),
            log: Uuid::from_bytes_le(header.log),
            log_length,
            log_offset,
        })
    }

    /// As it lies in the file.
    pub(super) fn to_bytes(self) -> Vec<u8> {
        let mut header = HeaderBytes::new_zeroed();
        header.signature = *b"head";
        header.sequence = U64::new(self.sequence);
        header.file_write = self.file_write.to_bytes_le();
        header.data_write = self.data_write.to_bytes_le();
        header.log = self.log.to_bytes_le();
        header.version = U16::new(1);
        header.log_length = U32::new(self.log_length);
        header.log_offset = U64::new(self.log_offset);
        let mut bytes = header.as_bytes().to_vec();
        seal(&mut bytes);
        bytes
    }

    /// The header that counts, which of the two it is, and what is wrong with the other.
    ///
    /// # Errors
    /// [`DiskError::Corrupt`] if neither is sound or both are and claim the same sequence number, or the system's error.
    pub(in crate::disk) fn read(media: &dyn Media) -> Result<(Self, usize, Option<String>), DiskError> {
        let len = media.len()?;
        if len < MIB {
            return Err(DiskError::corrupt(media.path(), len, "the file ends within its headers"));
        }
        if read_vec(media, 0, 8)? != SIGNATURE {
            return Err(DiskError::corrupt(media.path(), 0, "file identifier: \"vhdxfile\" is missing"));
        }
        let read = |at| Ok::<_, DiskError>(Self::parse(&read_vec(media, at, 4096)?, len));
        match (read(HEADERS[0])?, read(HEADERS[1])?) {
            (Ok(one), Ok(two)) if one.sequence == two.sequence && one != two => {
                let what = format!("header sequence number: both headers have {}, and they differ", one.sequence);
                Err(DiskError::corrupt(media.path(), HEADERS[1] + 8, what))
            }
            (Ok(one), Ok(two)) if one.sequence >= two.sequence => Ok((one, 0, None)),
            (Ok(_), Ok(two)) => Ok((two, 1, None)),
            (Ok(one), Err(why)) => Ok((one, 0, Some(why))),
            (Err(why), Ok(two)) => Ok((two, 1, Some(why))),
            (Err(why), Err(_)) => {
                Err(DiskError::corrupt(media.path(), HEADERS[0], format!("neither header is sound: {why}")))
            }
        }
    }
}

/// Whether a structure lies in whole MiB behind the headers and within the file.
fn place(name: &str, offset: u64, length: u32, file_len: u64) -> Result<Range<u64>, String> {
    if offset < MIB || !offset.is_multiple_of(MIB) {
        return Err(format!("{name} offset: {offset} is no multiple of 1 MiB behind the headers"));
    }
    if length == 0 || !u64::from(length).is_multiple_of(MIB) {
        return Err(format!("{name} length: {length} is no multiple of 1 MiB"));
    }
    match offset.checked_add(length.into()) {
        Some(end) if end <= file_len => Ok(offset..end),
        _ => Err(format!("{name} offset: {length} bytes at {offset} lie beyond the end of the file, {file_len}")),
    }
}

/// Where the structures lie.
#[derive(Debug, Clone)]
pub(in crate::disk) struct Regions {
    pub(in crate::disk) bat: Range<u64>,
    pub(in crate::disk) metadata: Range<u64>,
    /// Log, regions and all; nothing else may lie there.
    pub(super) taken: Vec<Range<u64>>,
}

impl Regions {
    fn parse(bytes: &[u8]) -> Result<Vec<RegionBytes>, String> {
        let (front, rest) = RegionTableFront::read_from_prefix(bytes).expect("64 KiB");
        if front.signature != *b"regi" {
            return Err("region table: the signature \"regi\" is missing".into());
        }
        check_sum("region table", bytes, front.checksum)?;
        let count = front.count.get() as usize;
        if count > MAX_ENTRIES {
            return Err(format!("region table entry count: {count} of at most {MAX_ENTRIES}"));
        }
        let entry = |bytes: &[u8]| RegionBytes::read_from_bytes(bytes).expect("32 bytes");
        Ok(rest.chunks_exact(size_of::<RegionBytes>()).take(count).map(entry).collect())
    }

    /// Reads the region table, from its first sound copy, and what is wrong with the copy before that.
    pub(in crate::disk) fn read(media: &dyn Media, header: &Header) -> Result<(Self, Option<String>), DiskError> {
        let len = media.len()?;
        let mut passed_over = None;
        let mut found = None;
        for at in REGION_TABLES {
            match Self::parse(&read_vec(media, at, TABLE)?) {
                Ok(entries) => {
                    found = Some((at, entries));
                    break;
                }
                Err(why) => passed_over = passed_over.or(Some(why)),
            }
        }
        let Some((at, entries)) = found else {
            let what = format!("neither region table is sound: {}", passed_over.unwrap_or_default());
            return Err(DiskError::corrupt(media.path(), REGION_TABLES[0], what));
        };
        let log = header.log_offset..header.log_offset + u64::from(header.log_length);
        let (mut bat, mut metadata, mut taken) = (None, None, vec![0..MIB, log]);
        for (entry, at) in entries.iter().zip((at + 16..).step_by(32)) {
            let damaged = |what: String| DiskError::corrupt(media.path(), at, what);
            let id = Uuid::from_bytes_le(entry.id);
            let name = format!("region {id}");
            let region = place(&name, entry.offset.get(), entry.length.get(), len).map_err(damaged)?;
            if let Some(other) = taken.iter().find(|other| region.start < other.end && other.start < region.end) {
                let what = format!("{name} offset: lies over the structure at {}", other.start);
                return Err(damaged(what));
            }
            taken.push(region.clone());
            let slot = match id {
                BAT => &mut bat,
                METADATA => &mut metadata,
                _ if entry.required.get() & 1 != 0 => {
                    let what = format!("has the region {id}, which must be understood and is not known here");
                    return Err(DiskError::Unsupported { path: media.path().into(), what });
                }
                _ => continue,
            };
            if slot.replace(region).is_some() {
                return Err(damaged(format!("{name}: is there twice")));
            }
        }
        let missing = |name| DiskError::corrupt(media.path(), at, format!("region table: no {name} region"));
        let bat = bat.ok_or_else(|| missing("BAT"))?;
        let metadata = metadata.ok_or_else(|| missing("metadata"))?;
        Ok((Self { bat, metadata, taken }, passed_over))
    }

    /// A region table for a new file.
    pub(super) fn to_bytes(bat: &Range<u64>, metadata: &Range<u64>) -> Vec<u8> {
        let front =
            RegionTableFront { signature: *b"regi", checksum: U32::ZERO, count: U32::new(2), reserved: U32::ZERO };
        let mut bytes = front.as_bytes().to_vec();
        for (id, region) in [(BAT, bat), (METADATA, metadata)] {
            let length = u32::try_from(region.end - region.start).expect("a region is under 4 GiB");
            let (offset, length) = (U64::new(region.start), U32::new(length));
            let entry = RegionBytes { id: id.to_bytes_le(), offset, length, required: U32::new(1) };
            bytes.extend_from_slice(entry.as_bytes());
        }
        bytes.resize(TABLE, 0);
        seal(&mut bytes);
        bytes
    }
}

/// What never changes about a disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Metadata {
    /// Bytes of a payload block.
    pub block_size: u32,
    /// A fixed disk: blocks stay in the file whatever is in them.
    pub leave_allocated: bool,
    /// The capacity in bytes.
    pub size: u64,
    /// The disk's identity, as SCSI's page 83h tells it.
    pub id: Uuid,
    /// Bytes of a logical sector: 512 or 4096. What a bitmap's bit stands for.
    pub logical_sector: u32,
    /// Bytes of a physical sector: 512 or 4096.
    pub physical_sector: u32,
    /// For a differencing disk: its parent.
    pub parent: Option<ParentLocator>,
}

impl Metadata {
    /// Reads the metadata region.
    pub(in crate::disk) fn read(media: &dyn Media, region: &Range<u64>) -> Result<Self, DiskError> {
        let damaged = |at: u64, what: String| DiskError::corrupt(media.path(), region.start + at, what);
        let table = read_vec(media, region.start, TABLE)?;
        let (front, rest) = MetadataFront::read_from_prefix(&table).expect("64 KiB");
        if front.signature != *b"metadata" {
            return Err(damaged(0, "metadata table: the signature \"metadata\" is missing".into()));
        }
        let count = usize::from(front.count.get());
        if count > MAX_ENTRIES {
            return Err(damaged(10, format!("metadata table entry count: {count} of at most {MAX_ENTRIES}")));
        }
        let known = [FILE_PARAMETERS, DISK_SIZE, PAGE_83, LOGICAL_SECTOR, PHYSICAL_SECTOR, PARENT_LOCATOR];
        let mut items: [Option<(u64, u32)>; 6] = [None; 6];
        let mut places: Vec<(Range<u64>, u64)> = Vec::new();
        for (bytes, at) in rest.chunks_exact(32).take(count).zip((32..).step_by(32)) {
            let item = ItemBytes::read_from_bytes(bytes).expect("32 bytes");
            let (id, offset, length) = (Uuid::from_bytes_le(item.id), u64::from(item.offset.get()), item.length.get());
            let end = offset + u64::from(length);
            if length > 0 && (offset < TABLE as u64 || end > region.end - region.start) {
                let what = format!("metadata item {id} offset: {length} bytes at {offset} lie outside of the region");
                return Err(damaged(at + 16, what));
            }
            if length > 0 {
                places.push((offset..end, at));
            }
            let user = item.flags.get() & IS_USER != 0;
            match known.iter().position(|known| *known == id && !user) {
                Some(n) if items[n].is_some() => {
                    return Err(damaged(at, format!("metadata item {id}: is there twice")));
                }
                Some(n) => items[n] = Some((offset, length)),
                None if item.flags.get() & IS_REQUIRED != 0 => {
                    let what = format!("has the metadata item {id}, which must be understood and is not known here");
                    return Err(DiskError::Unsupported { path: media.path().into(), what });
                }
                None => {}
            }
        }
        places.sort_unstable_by_key(|(place, _)| place.start);
        if let Some(pair) = places.windows(2).find(|pair| pair[0].0.end > pair[1].0.start) {
            return Err(damaged(pair[1].1 + 16, "metadata item offset: two items lie over each other".into()));
        }
        let item = |n: usize, name: &str, wanted: u32| match items[n] {
            None => Err(damaged(0, format!("metadata table: no {name}"))),
            Some((offset, length)) if length != wanted => {
                Err(damaged(offset, format!("{name} length: {length}, not {wanted}")))
            }
            Some((offset, _)) => Ok((offset, read_vec(media, region.start + offset, wanted as usize)?)),
        };
        let u32_at = |bytes: &[u8], at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().expect("4 bytes"));

        let (at, parameters) = item(0, "file parameters", 8)?;
        let (block_size, flags) = (u32_at(&parameters, 0), u32_at(&parameters, 4));
        if !block_size.is_power_of_two() || !BLOCK_SIZES.contains(&block_size) {
            return Err(damaged(at, format!("block size: {block_size} is no power of two from 1 to 256 MiB")));
        }
        let sector = |n, name: &str| {
            let (at, bytes) = item(n, name, 4)?;
            match u32_at(&bytes, 0) {
                size @ (512 | 4096) => Ok(size),
                other => Err(damaged(at, format!("{name}: {other}; 512 and 4096 are known"))),
            }
        };
        let (logical_sector, physical_sector) = (sector(3, "logical sector size")?, sector(4, "physical sector size")?);
        let (at, size) = item(1, "virtual disk size", 8)?;
        let size = u64::from_le_bytes(size.try_into().expect("8 bytes"));
        if size == 0 || size > MAX_SIZE || !size.is_multiple_of(logical_sector.into()) {
            let what = format!("virtual disk size: {size} is no whole number of sectors up to 64 TiB");
            return Err(damaged(at, what));
        }
        let (_, id) = item(2, "page 83 data", 16)?;
        let id = Uuid::from_bytes_le(id.try_into().expect("16 bytes"));
        let parent = match (flags & HAS_PARENT != 0, items[5]) {
            (false, _) => None,
            (true, None) => return Err(damaged(0, "metadata table: no parent locator".into())),
            (true, Some((at, length))) if length > MAX_LOCATOR => {
                return Err(damaged(at, format!("parent locator length: {length} of at most {MAX_LOCATOR}")));
            }
            (true, Some((at, length))) => {
                let bytes = read_vec(media, region.start + at, length as usize)?;
                Some(ParentLocator::parse(&bytes).map_err(|what| damaged(at, what))?)
            }
        };
        let leave_allocated = flags & LEAVE_ALLOCATED != 0;
        Ok(Self { block_size, leave_allocated, size, id, logical_sector, physical_sector, parent })
    }

    /// Where in the file the capacity stands, of a region that was [read](Metadata::read).
    pub(super) fn place_of_size(media: &dyn Media, region: &Range<u64>) -> Result<u64, DiskError> {
        let table = read_vec(media, region.start, TABLE)?;
        let items = table[size_of::<MetadataFront>()..].chunks_exact(size_of::<ItemBytes>());
        let items = items.map(|bytes| ItemBytes::read_from_bytes(bytes).expect("an item's bytes"));
        let found = items.take(MAX_ENTRIES).find(|item| Uuid::from_bytes_le(item.id) == DISK_SIZE);
        let missing = || DiskError::corrupt(media.path(), region.start, "metadata table: no virtual disk size");
        found.map(|item| region.start + u64::from(item.offset.get())).ok_or_else(missing)
    }

    /// A metadata region for a new file, cut behind its last item.
    pub(super) fn to_bytes(&self) -> Vec<u8> {
        let flags = if self.leave_allocated { LEAVE_ALLOCATED } else { 0 };
        let flags = flags | if self.parent.is_some() { HAS_PARENT } else { 0 };
        let parameters = [self.block_size.to_le_bytes(), flags.to_le_bytes()].concat();
        let disk = IS_VIRTUAL_DISK | IS_REQUIRED;
        let mut items = vec![
            (FILE_PARAMETERS, parameters, IS_REQUIRED),
            (DISK_SIZE, self.size.to_le_bytes().to_vec(), disk),
            (PAGE_83, self.id.to_bytes_le().to_vec(), disk),
            (LOGICAL_SECTOR, self.logical_sector.to_le_bytes().to_vec(), disk),
            (PHYSICAL_SECTOR, self.physical_sector.to_le_bytes().to_vec(), disk),
        ];
        items.extend(self.parent.iter().map(|parent| (PARENT_LOCATOR, parent.to_bytes(), IS_REQUIRED)));
        let mut front = MetadataFront::new_zeroed();
        front.signature = *b"metadata";
        front.count = U16::new(u16::try_from(items.len()).expect("six"));
        let (mut table, mut bodies) = (front.as_bytes().to_vec(), Vec::new());
        for (id, body, flags) in items {
            let number = |n: usize| U32::new(u32::try_from(n).expect("a region is under 4 GiB"));
            let (offset, length) = (number(TABLE + bodies.len()), number(body.len()));
            let item = ItemBytes { id: id.to_bytes_le(), offset, length, flags: U32::new(flags), reserved: U32::ZERO };
            table.extend_from_slice(item.as_bytes());
            bodies.extend_from_slice(&body);
            bodies.resize(bodies.len().next_multiple_of(8), 0);
        }
        table.resize(TABLE, 0);
        table.extend_from_slice(&bodies);
        table
    }

    /// Payload blocks of the disk.
    #[must_use]
    pub fn blocks(&self) -> u32 {
        u32::try_from(self.size.div_ceil(self.block_size.into())).expect("64 TiB have 2^26 blocks of 1 MiB")
    }

    /// Payload blocks that share a sector bitmap block.
    #[must_use]
    pub fn chunk_ratio(&self) -> u32 {
        let ratio = CHUNK_SECTORS * u64::from(self.logical_sector) / u64::from(self.block_size);
        u32::try_from(ratio).expect("at most 2^15")
    }

    /// Entries of the block allocation table.
    #[must_use]
    pub fn bat_entries(&self) -> u32 {
        let (blocks, ratio) = (self.blocks(), self.chunk_ratio());
        match self.parent {
            Some(_) => blocks.div_ceil(ratio) * (ratio + 1),
            None => blocks + (blocks - 1) / ratio,
        }
    }

    /// The table's entry of a payload block.
    pub(super) fn payload_entry(&self, block: u32) -> u32 {
        block + block / self.chunk_ratio()
    }

    /// The table's entry of a chunk's sector bitmap block.
    pub(in crate::disk) fn bitmap_entry(&self, chunk: u32) -> u32 {
        (chunk + 1) * self.chunk_ratio() + chunk
    }
}

/// Where a differencing disk says its parent is, and which contents it must have: keys and values, in the file's order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ParentLocator {
    entries: Vec<(String, String)>,
}

impl ParentLocator {
    /// The locator of a new child.
    pub(super) fn new(linkage: Uuid, relative: &str, absolute: &str) -> Self {
        // `volume_path` names a volume of Windows, of which there is none here; one path is enough for the format.
        let entry = |key: &str, value: String| (key.to_owned(), value);
        Self {
            entries: vec![
                entry("parent_linkage", linkage.braced().to_string()),
                entry("relative_path", relative.to_owned()),
                entry("absolute_win32_path", absolute.to_owned()),
            ],
        }
    }

    /// The locator of a child whose parent lies beside it, wherever that is.
    pub(super) fn beside(linkage: Uuid, name: &str) -> Self {
        let mut locator = Self::new(linkage, &format!(r".\{name}"), "");
        locator.entries.pop();
        locator
    }

    fn parse(bytes: &[u8]) -> Result<Self, String> {
        let Ok((front, rest)) = LocatorFront::read_from_prefix(bytes) else {
            return Err(format!("parent locator length: {} is too short", bytes.len()));
        };
        let kind = Uuid::from_bytes_le(front.kind);
        if kind != LOCATOR_TYPE {
            return Err(format!("parent locator type: {kind} is not known here"));
        }
        let count = usize::from(front.count.get());
        if rest.len() / size_of::<LocatorEntry>() < count {
            return Err(format!("parent locator entry count: {count} are more than it has room for"));
        }
        let text = |name: &str, offset: U32, length: U16| {
            let start = offset.get() as usize;
            let bytes = start.checked_add(length.get().into()).and_then(|end| bytes.get(start..end));
            let bytes = bytes.ok_or_else(|| format!("parent locator {name} offset: {start} lies outside of it"))?;
            let units: Vec<_> = bytes.chunks_exact(2).map(|pair| u16::from_le_bytes([pair[0], pair[1]])).collect();
            Ok::<_, String>(String::from_utf16_lossy(&units).trim_end_matches('\0').to_owned())
        };
        let mut entries = Vec::new();
        for bytes in rest.chunks_exact(size_of::<LocatorEntry>()).take(count) {
            let entry = LocatorEntry::read_from_bytes(bytes).expect("12 bytes");
            let key = text("key", entry.key_offset, entry.key_length)?;
            if entries.iter().any(|(other, _)| *other == key) {
                return Err(format!("parent locator key: {key} is there twice"));
            }
            entries.push((key, text("value", entry.value_offset, entry.value_length)?));
        }
        let locator = Self { entries };
        if locator.linkage().is_none() {
            return Err("parent locator parent_linkage: is missing, or no GUID".into());
        }
        Ok(locator)
    }

    fn to_bytes(&self) -> Vec<u8> {
        let number = |n: usize| u16::try_from(n).expect("paths are bounded where locators are made");
        let kind = LOCATOR_TYPE.to_bytes_le();
        let front = LocatorFront { kind, reserved: U16::ZERO, count: U16::new(number(self.entries.len())) };
        let mut bytes = front.as_bytes().to_vec();
        let texts_at = bytes.len() + self.entries.len() * size_of::<LocatorEntry>();
        let mut texts: Vec<u8> = Vec::new();
        for (key, value) in &self.entries {
            let mut add = |text: &str| {
                let start = texts.len();
                texts.extend(text.encode_utf16().flat_map(u16::to_le_bytes));
                (U32::new(u32::from(number(texts_at + start))), U16::new(number(texts.len() - start)))
            };
            let ((key_offset, key_length), (value_offset, value_length)) = (add(key), add(value));
            let entry = LocatorEntry { key_offset, value_offset, key_length, value_length };
            bytes.extend_from_slice(entry.as_bytes());
        }
        bytes.extend_from_slice(&texts);
        bytes
    }

    /// The value of a key.
    #[must_use]
    pub fn value(&self, key: &str) -> Option<&str> {
        self.entries.iter().find(|(found, _)| found == key).map(|(_, value)| value.as_str())
    }

    /// The parent's DataWriteGuid when the child was made.
    #[must_use]
    pub fn linkage(&self) -> Option<Uuid> {
        self.value("parent_linkage").and_then(|value| Uuid::try_parse(value.trim()).ok())
    }

    /// Whether a parent with this DataWriteGuid is the one.
    #[must_use]
    pub fn accepts(&self, data_write: Uuid) -> bool {
        ["parent_linkage", "parent_linkage2"]
            .into_iter()
            .filter_map(|key| Uuid::try_parse(self.value(key)?.trim()).ok())
            .any(|linkage| linkage == data_write)
    }

    /// Bytes that it takes in a file.
    pub(super) fn fits(&self) -> bool {
        let units = |text: &str| text.encode_utf16().count() * 2;
        self.entries.iter().map(|(key, value)| 12 + units(key) + units(value)).sum::<usize>() < 60 << 10
    }
}

/// What the table says of a payload block or a sector bitmap block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    /// Ask the parent; zeros without one. Of a bitmap block: none of its sectors is here.
    NotPresent,
    /// Zeros: nothing was ever defined, or all of it is zeros, or it was unmapped. The parent is not asked.
    Zero,
    /// All of it is here.
    Full,
    /// The sector bitmap says which of its sectors are here.
    Partial,
}

/// An entry of the block allocation table: its three lowest bits are the state, its 44 highest the place in MiB.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(in crate::disk) struct Entry(pub(in crate::disk) u64);

impl Entry {
    pub(super) fn new(state: State, offset: u64) -> Self {
        debug_assert!(offset.is_multiple_of(MIB));
        let state = match state {
            State::NotPresent => 0,
            State::Zero => 2,
            State::Full => 6,
            State::Partial => 7,
        };
        Self(offset | state)
    }

    /// The state; the number of one that is none.
    pub(super) fn state(self) -> Result<State, u8> {
        match self.0 & 7 {
            0 => Ok(State::NotPresent),
            1..=3 => Ok(State::Zero),
            6 => Ok(State::Full),
            7 => Ok(State::Partial),
            other => Err(u8::try_from(other).expect("three bits")),
        }
    }

    /// The state of an entry that was checked.
    pub(super) fn known(self) -> State {
        self.state().expect("checked as the table was read")
    }

    /// Where the block lies, in bytes, if it is in the file.
    pub(in crate::disk) fn at(self) -> Option<u64> {
        matches!(self.state(), Ok(State::Full | State::Partial)).then_some(self.0 & !(MIB - 1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn structures_have_the_sizes_of_the_specification() {
        assert_eq!(size_of::<HeaderBytes>(), 4096);
        assert_eq!((size_of::<RegionTableFront>(), size_of::<RegionBytes>()), (16, 32));
        assert_eq!((size_of::<MetadataFront>(), size_of::<ItemBytes>()), (32, 32));
        assert_eq!((size_of::<LocatorFront>(), size_of::<LocatorEntry>()), (20, 12));
    }

    #[test]
    fn the_checksum_is_castagnolis() {
        // RFC 3720 B.4: 32 bytes of zeros.
        assert_eq!(checksum(&[0; 32]), 0x8a91_36aa);
    }

    #[test]
    fn table_entries_are_interleaved_with_one_bitmap_entry_per_chunk() {
        let metadata = |size, parent| Metadata {
            block_size: 2 << 20,
            leave_allocated: false,
            size,
            id: Uuid::nil(),
            logical_sector: 512,
            physical_sector: 4096,
            parent,
        };
        let locator = ParentLocator::new(Uuid::nil(), ".\\a", "/a");
        let child = metadata(256 << 30, Some(locator));
        assert_eq!((child.blocks(), child.chunk_ratio()), (131_072, 2048));
        assert_eq!(child.bat_entries(), 64 * 2049);
        assert_eq!((child.payload_entry(2047), child.bitmap_entry(0), child.payload_entry(2048)), (2047, 2048, 2049));
        assert_eq!(child.bitmap_entry(63), child.bat_entries() - 1);
        // Without a parent the last chunk needs no bitmap entry.
        assert_eq!(metadata(256 << 30, None).bat_entries(), 131_072 + 63);
        assert_eq!(metadata(4 << 20, None).bat_entries(), 2);
    }

    #[test]
    fn a_header_reads_back_and_any_changed_byte_is_noticed() {
        let id = Uuid::from_u128;
        let header = Header {
            sequence: 7,
            file_write: id(1),
            data_write: id(2),
            log: id(3),
            log_length: 1 << 20,
            log_offset: 1 << 20,
        };
        assert_eq!(Header::parse(&header.to_bytes(), 2 << 20), Ok(header));
        assert!(Header::parse(&header.to_bytes(), (2 << 20) - 1).unwrap_err().contains("header log offset"));
        for at in 0..4096 {
            let mut bytes = header.to_bytes();
            bytes[at] ^= 0x10;
            Header::parse(&bytes, 2 << 20).unwrap_err();
        }
    }

    #[test]
    fn a_parent_locator_keeps_its_keys_and_takes_either_linkage_in_any_case() {
        let linkage = Uuid::from_u128(0xabcdef);
        let mut locator = ParentLocator::new(linkage, r"..\images\1.vhdx", "/srv/images/1.vhdx");
        locator.entries.push(("parent_linkage2".into(), Uuid::from_u128(9).braced().to_string().to_uppercase()));
        let back = ParentLocator::parse(&locator.to_bytes()).unwrap();
        assert_eq!(back, locator);
        assert_eq!((back.linkage(), back.value("relative_path")), (Some(linkage), Some(r"..\images\1.vhdx")));
        assert!(back.accepts(linkage) && back.accepts(Uuid::from_u128(9)) && !back.accepts(Uuid::from_u128(8)));
    }
}
