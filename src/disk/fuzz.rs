//! What a fuzzer runs on each format: damage to a sound disk, and what must hold of a disk that is still accepted.
//!
//! The bytes of a fuzzer choose a disk and places in its structures. A disk that opens is held to an oracle: every sector
//! that is looked at reads as the specification says, by a reader that knows nothing but four numbers of the file; after
//! writes, zeros and a reopening the sectors that were written are new, and all others as they were.

use std::io::{IoSlice, IoSliceMut};
use std::sync::Arc;

use uuid::Uuid;

use super::chain::{Chain, parent_candidates};
use super::double::{Contents, Double};
use super::file::{Access, Media, read_vec, write_all};
use super::vhd::create::write_child;
use super::vhd::wire::FOOTER;
use super::vhd::{Builder, Footer, Header, Kind, Layout, NewChild};
use super::vhdx::{self, Spec, wire};
use super::{Disk, SECTOR};

/// Sectors of the disks here: two and a half blocks.
const SECTORS: u64 = 5 << 11;
/// The structures lie in the first bytes, the first bitmaps of a child behind them.
const STRUCTURES: u64 = 24 << 10;

/// A disk, and the one below it.
struct Sound {
    file: Contents,
    parent: Option<Contents>,
}

/// A master with some data, and children of it with a mixture of sectors.
fn sound(choice: u8) -> Sound {
    let master = Double::new(0);
    let mut builder = Builder::new(&master, SECTORS * SECTOR).expect("a size that can be");
    builder.write(0, &[0xee; 9 * 512]).expect("a double takes all");
    builder.write(4096 * SECTOR, &[0xed; 512]).expect("a double takes all");
    builder.finish().expect("a double takes all");
    let layout = match choice % 3 {
        0 => return Sound { file: master.contents(), parent: None },
        1 => Layout::Mapped,
        _ => Layout::Compact,
    };
    let parent = parent(&master.contents());
    let child = Double::new(0);
    let new = NewChild { layout, ..NewChild::default() };
    write_child(&child, Uuid::from_u128(5), &parent, ".\\master.vhd", "/master.vhd", new).expect("a sound parent");
    let disk = Chain::child_on(Box::new(child.clone()), parent, None).expect("a new child opens");
    for sector in (0..200).step_by(3).chain([4095, 4097, SECTORS - 1]) {
        disk.write(sector * SECTOR, &[IoSlice::new(&[7; 512])]).expect("a double takes all");
    }
    drop(disk);
    Sound { file: child.contents(), parent: Some(master.contents()) }
}

fn parent(contents: &Contents) -> Arc<Chain> {
    Arc::new(Chain::base_on(Box::new(Double::holding(contents.clone())), Access::Read).expect("a sound master opens"))
}

/// Makes a structure's checksum right again, so that the damage comes past it.
pub(super) fn seal(file: &Double, at: u64, len: usize, checksum_at: usize) {
    let Ok(mut bytes) = read_vec(file, at, len) else { return };
    bytes[checksum_at..checksum_at + 4].fill(0);
    let sum = !bytes.iter().fold(0u32, |sum, &byte| sum.wrapping_add(u32::from(byte)));
    write_all(file, at + checksum_at as u64, &sum.to_be_bytes()).expect("a double takes all");
}

/// Damages a VHD as `data` says, and looks at what is left of it. Panics where a promise is broken.
///
/// The first byte chooses the disk (dynamic, pre-mapped child, compact child), whether checksums are put right, and whether
/// the file is cut; each four that follow are a place and the byte that is put there.
pub fn fuzz(data: &[u8]) {
    let Some((&choice, edits)) = data.split_first() else { return };
    let Sound { file, parent: below } = sound(choice & 0x0f);
    let file = Double::holding(file);
    let len = file.len().expect("a double's length");
    for edit in edits.chunks_exact(4).take(64) {
        let (place, byte) = (u64::from(u16::from_be_bytes([edit[1], edit[2]])), edit[3]);
        let at = match edit[0] % 8 {
            0 => place % FOOTER,                // the footer's copy
            1 | 2 => FOOTER + place % 80,       // the header's numbers
            3 => FOOTER + 576 + place % 192,    // its locators
            4 => 1536 + place % 16,             // the table of a dynamic disk
            5 => 16_384 + place % 16,           // that of a child
            6 => len - FOOTER + place % FOOTER, // the footer
            _ => place % STRUCTURES,
        };
        write_all(&file, at, &[byte]).expect("a double takes all");
    }
    if choice & 0x10 != 0 {
        seal(&file, 0, 512, 64);
        seal(&file, FOOTER, 1024, 36);
        seal(&file, len - FOOTER, 512, 64);
    }
    if choice & 0x20 != 0 {
        let keep = u64::from(data.last().copied().unwrap_or(0)) * (len / 256) + u64::from(choice);
        file.set_len(keep.min(len)).expect("a double takes all");
    }
    look_for_parents(&file);
    let below = below.as_ref().map(parent);
    examine(&file, below.as_ref(), edits.is_empty() && choice & 0x20 == 0, by_the_book);
}

/// A VHDX, dynamic or, over a dynamic one, differencing, with a mixture of sectors.
fn sound_vhdx(child: bool) -> Sound {
    let master = Double::new(0);
    let spec = Spec { block_size: 1 << 20, ..Spec::dynamic(SECTORS * SECTOR) };
    vhdx::create::create_on(&master, &spec).expect("a size that can be");
    let disk = Chain::base_on(Box::new(master.clone()), Access::Write).expect("a new disk opens");
    let fill = |disk: &Chain, sectors: &mut dyn Iterator<Item = u64>, byte: u8| {
        sectors
            .for_each(|sector| disk.write(sector * SECTOR, &[IoSlice::new(&[byte; 512])]).expect("a double takes all"));
    };
    fill(&disk, &mut (0..9).chain([4096]), 0xee);
    drop(disk);
    if !child {
        return Sound { file: master.contents(), parent: None };
    }
    let parent = parent(&master.contents());
    let file = Double::new(0);
    let new = vhdx::create::NewChild { block_size: 1 << 20, ..Default::default() };
    vhdx::create::write_child(&file, &parent, ".\\master.vhdx", "/master.vhdx", new).expect("a sound parent");
    let disk = Chain::child_on(Box::new(file.clone()), parent, None).expect("a new child opens");
    fill(&disk, &mut (0..200).step_by(3).chain([4095, 4097, SECTORS - 1]), 7);
    disk.zero(6000 * SECTOR, 9 * SECTOR).expect("a double takes all");
    drop(disk);
    Sound { file: file.contents(), parent: Some(master.contents()) }
}

/// The same as [`fuzz`], of a VHDX.
///
/// The lowest bit of the first byte chooses the disk (dynamic, child), and others whether checksums are put right and whether the
/// file is cut; each four that follow are a place and the byte that is put there.
pub fn fuzz_vhdx(data: &[u8]) {
    let Some((&choice, edits)) = data.split_first() else { return };
    let Sound { file, parent: below } = sound_vhdx(choice & 1 == 1);
    let file = Double::holding(file);
    let (header, ..) = wire::Header::read(&file).expect("a sound disk");
    let (regions, _) = wire::Regions::read(&file, &header).expect("a sound disk");
    let (bat, metadata) = (regions.bat.start, regions.metadata.start);
    let bits = by_number(&file, bat + CHUNK_BLOCKS * 8, 8) >> 20 << 20;
    for edit in edits.chunks_exact(4).take(64) {
        let (place, byte) = (u64::from(u16::from_be_bytes([edit[1], edit[2]])), edit[3]);
        let at = match edit[0] % 8 {
            n @ (0 | 1) => wire::HEADERS[usize::from(n)] + place % 80,
            n @ (2 | 3) => REGION_TABLES[usize::from(n - 2)] + place % 80,
            4 => metadata + place % 224,
            5 => metadata + (64 << 10) + place % 400,
            6 => bat + if place.is_multiple_of(3) { CHUNK_BLOCKS * 8 + place % 8 } else { place % 48 },
            _ if bits == 0 => place % 16, // no bits: the file's signature
            _ => bits + place % 1300,
        };
        write_all(&file, at, &[byte]).expect("a double takes all");
    }
    if choice & 0x10 != 0 {
        wire::HEADERS.into_iter().for_each(|at| seal_vhdx(&file, at, 4096));
        REGION_TABLES.into_iter().for_each(|at| seal_vhdx(&file, at, 64 << 10));
    }
    if choice & 0x20 != 0 {
        let len = file.len().expect("a double's length");
        let keep = u64::from(data.last().copied().unwrap_or(0)) * (len / 256) + u64::from(choice);
        file.set_len(keep.min(len)).expect("a double takes all");
    }
    let below = below.as_ref().map(parent);
    examine(&file, below.as_ref(), edits.is_empty() && choice & 0x20 == 0, by_the_book_of_vhdx);
}

/// Blocks of 1 MiB that a bitmap block tells of, in sectors of 512 bytes.
const CHUNK_BLOCKS: u64 = 4096;
/// Where the region tables are.
const REGION_TABLES: [u64; 2] = [192 << 10, 256 << 10];

fn seal_vhdx(file: &Double, at: u64, len: usize) {
    let Ok(mut bytes) = read_vec(file, at, len) else { return };
    bytes[4..8].fill(0);
    let sum = crc32c::crc32c(&bytes);
    write_all(file, at + 4, &sum.to_le_bytes()).expect("a double takes all");
}

/// A little-endian number of the file.
fn by_number(file: &Double, at: u64, len: usize) -> u64 {
    let bytes = read_vec(file, at, len).expect("a disk that opened has its structures");
    bytes.iter().rev().fold(0u64, |number, &byte| number << 8 | u64::from(byte))
}

/// A sector as \[MS-VHDX\] defines it (2.5.1), by the places and the sizes that the headers give and nothing else of the code under test.
fn by_the_book_of_vhdx(file: &Double, disk: &Chain, parent: Option<&Arc<Chain>>, sector: u64) -> Option<Vec<u8>> {
    if disk.vhdx().is_none() {
        // Without its signature it is a raw disk.
        return read_sector(disk, sector);
    }
    let (header, ..) = wire::Header::read(file).expect("a disk that opened has a header");
    let (regions, _) = wire::Regions::read(file, &header).expect("a disk that opened has regions");
    let metadata = wire::Metadata::read(file, &regions.metadata).expect("a disk that opened has metadata");
    let (block_size, unit) = (u64::from(metadata.block_size), u64::from(metadata.logical_sector));
    let ratio = (1 << 23) * unit / block_size;
    let (block, within) = (sector * SECTOR / block_size, sector * SECTOR % block_size);
    let word = |index: u64| by_number(file, regions.bat.start + index * 8, 8);
    let entry = word(block + block / ratio);
    let place = entry >> 20 << 20;
    let from_below = || match parent {
        Some(parent) if sector * SECTOR < parent.size() => read_sector(parent, sector),
        _ => Some(vec![0; 512]),
    };
    match entry & 7 {
        0 => from_below(),
        2 => Some(vec![0; 512]),
        6 => read_vec(file, place + within, 512).ok(),
        7 => {
            let bits = word(block / ratio * (ratio + 1) + ratio) >> 20 << 20;
            let bit = sector * SECTOR / unit % (1 << 23);
            match by_number(file, bits + bit / 8, 1) >> (bit % 8) & 1 {
                1 => read_vec(file, place + within, 512).ok(),
                _ => from_below(),
            }
        }
        // Undefined, or unmapped: any contents will do.
        _ => read_sector(disk, sector),
    }
}

/// The parts that do not need the whole disk to be sound.
fn look_for_parents(file: &Double) {
    if let Ok((footer, _)) = Footer::read(file)
        && let Ok(bytes) = read_vec(file, footer.header_offset().min(1 << 40), 1024)
        && let Ok(header) = Header::parse(&bytes, footer.size())
    {
        let _ = parent_candidates(file, &header);
    }
}

/// Reads a sector of a file that was opened as this disk, over this parent, as the format's specification says.
type Book = fn(&Double, &Chain, Option<&Arc<Chain>>, u64) -> Option<Vec<u8>>;

/// Holds a disk to the oracle, if it opens.
fn examine(file: &Double, parent: Option<&Arc<Chain>>, must_open: bool, book: Book) {
    let open = |file: &Double, access| match parent {
        Some(parent) => Chain::child_on(Box::new(file.clone()), Arc::clone(parent), None),
        None => Chain::base_on(Box::new(file.clone()), access),
    };
    // A copy: opening for writing may put a footer right.
    let copy = Double::holding(file.contents());
    let disk = match open(&copy, Access::Write) {
        Ok(disk) => disk,
        Err(error) => {
            assert!(!must_open, "a sound disk is refused: {error}");
            return;
        }
    };
    let sectors = disk.size() / SECTOR;
    let looked_at: Vec<u64> = [0, 1, 2, 8, 9, 199, 200, 4095, 4096, 4097, SECTORS - 1]
        .into_iter()
        .filter(|&sector| sector < sectors)
        .collect();
    let all = |disk: &Chain| looked_at.iter().map(|&sector| read_sector(disk, sector)).collect::<Vec<_>>();
    let mut wanted = all(&disk);
    for (&sector, found) in looked_at.iter().zip(&wanted) {
        assert_eq!(found, &book(&copy, &disk, parent, sector), "sector {sector}");
    }
    if disk.read_only() {
        return;
    }
    for n in (0..looked_at.len()).step_by(2) {
        let bytes = vec![0x31; 512];
        if disk.write(looked_at[n] * SECTOR, &[IoSlice::new(&bytes)]).is_ok() {
            wanted[n] = Some(bytes);
        }
    }
    if disk.zero(0, SECTOR).is_ok() {
        wanted[0] = Some(vec![0; 512]);
    }
    assert_eq!(all(&disk), wanted, "after writes");
    let flushed = disk.flush().is_ok();
    drop(disk);
    if flushed {
        let disk = open(&copy, Access::Read).expect("what was written by us opens again");
        assert_eq!(all(&disk), wanted, "opened again");
        for (&sector, found) in looked_at.iter().zip(&wanted) {
            assert_eq!(found, &book(&copy, &disk, parent, sector), "sector {sector} in the end");
        }
    }
}

fn read_sector(disk: &Chain, sector: u64) -> Option<Vec<u8>> {
    let mut bytes = vec![0xa5; 512];
    disk.read(sector * SECTOR, &mut [IoSliceMut::new(&mut bytes)]).ok().map(|()| bytes)
}

/// A sector as the specification defines it, read without any of the code under test but the footer's choice.
fn by_the_book(file: &Double, disk: &Chain, parent: Option<&Arc<Chain>>, sector: u64) -> Option<Vec<u8>> {
    let footer = disk.footer().expect("a VHD");
    if footer.kind() == Kind::Fixed {
        return read_vec(file, sector * SECTOR, 512).ok();
    }
    let number = |at: u64, len: usize| {
        let bytes = read_vec(file, at, len).expect("a disk that opened has its structures");
        bytes.iter().fold(0u64, |number, &byte| number << 8 | u64::from(byte))
    };
    let header = number(16, 8);
    let (table, block_size) = (number(header + 16, 8), number(header + 32, 4));
    let (block, within) = (sector * SECTOR / block_size, sector * SECTOR % block_size);
    let entry = number(table + block * 4, 4);
    let here = entry != 0xffff_ffff && {
        let bit = within / SECTOR;
        number(entry * SECTOR + bit / 8, 1) >> (7 - bit % 8) & 1 == 1
    };
    if here {
        let bitmap = (block_size / SECTOR).div_ceil(8).next_multiple_of(512);
        return read_vec(file, entry * SECTOR + bitmap + within, 512).ok();
    }
    match parent {
        Some(parent) if sector * SECTOR < parent.size() => read_sector(parent, sector),
        _ => Some(vec![0; 512]),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::model::rounds;
    use super::*;

    proptest! {
        #![proptest_config(ProptestConfig { cases: 512 * rounds(), ..ProptestConfig::default() })]

        #[test]
        fn a_damaged_vhd_is_refused_or_still_reads_and_writes_by_the_book(
            choice in any::<u8>(), edits in proptest::collection::vec(any::<[u8; 4]>(), 0..5),
        ) {
            fuzz(&[&[choice][..], &edits.concat()].concat());
        }

        #[test]
        fn a_damaged_vhdx_is_refused_or_still_reads_and_writes_by_the_book(
            choice in any::<u8>(), edits in proptest::collection::vec(any::<[u8; 4]>(), 0..5),
        ) {
            fuzz_vhdx(&[&[choice][..], &edits.concat()].concat());
        }
    }

    #[test]
    fn sound_disks_pass_and_a_single_wrong_bit_of_a_mapping_is_seen_by_the_oracle() {
        (0..3).for_each(|choice| fuzz(&[choice]));
        (0..2).for_each(|choice| fuzz_vhdx(&[choice]));
        let Sound { file, parent: below } = sound(1);
        let file = Double::holding(file);
        let below = below.as_ref().map(parent);
        let disk = Chain::child_on(Box::new(file.clone()), Arc::clone(below.as_ref().unwrap()), None).unwrap();
        assert_eq!(by_the_book(&file, &disk, below.as_ref(), 3), Some(vec![7; 512]));
        let at = disk.sparse().unwrap().header().table_offset();
        let entry = read_vec(&file, at, 4).unwrap();
        let bitmap = u64::from(u32::from_be_bytes(entry.try_into().unwrap())) * SECTOR;
        assert_eq!(read_sector(&disk, 3), Some(vec![7; 512]), "its bitmap is in memory");
        write_all(&file, bitmap, &[0]).unwrap();
        assert_eq!(by_the_book(&file, &disk, below.as_ref(), 3), Some(vec![0xee; 512]));
    }
}
