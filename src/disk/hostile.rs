//! Damaged and malicious VHDs: every field out of its range is refused with an error that names the place and the field,
//! and odd files that others really made are read. Random damage is in [`super::fuzz`].

use std::sync::Arc;

use uuid::Uuid;

use super::chain::{Chain, parent_candidates};
use super::double::Double;
use super::file::{Access, File, Media, read_vec, write_all};
use super::fuzz::seal;
use super::model::{SECTORS, at, pattern, read, scratch, write};
use super::vhd::create::write_child;
use super::vhd::wire::{Footer, Header, Locator, LocatorKind, MAX_BLOCKS, NewHeader};
use super::vhd::{
    Builder, Kind, Layout, MAX_SIZE, NewChild, create_child, create_child_as, create_dynamic, create_dynamic_as,
    create_fixed,
};
use super::{Disk, DiskError, SECTOR};

/// Where the dynamic header of our files lies, and the table of a dynamic disk.
const HEADER_AT: u64 = 512;
const TABLE_AT: u64 = 1536;

/// A dynamic disk of three blocks, the last one cut short, all in the file, with a sector in each.
fn sound() -> Double {
    let disk = Double::new(0);
    let mut builder = Builder::new(&disk, SECTORS * SECTOR).unwrap();
    for block in 0..3 {
        builder.write(block << 21, &pattern(block << 12, 1, 9)).unwrap();
    }
    builder.finish().unwrap();
    disk
}

fn open(file: &Double) -> Result<Chain, DiskError> {
    Chain::base_on(Box::new(file.clone()), Access::Read)
}

/// Puts bytes into a structure and its checksum right; the footer in both places.
fn edit_footer(file: &Double, field: u64, bytes: &[u8]) {
    for start in [0, file.len().unwrap() - 512] {
        write_all(file, start + field, bytes).unwrap();
        seal(file, start, 512, 64);
    }
}

fn edit_header(file: &Double, field: u64, bytes: &[u8]) {
    write_all(file, HEADER_AT + field, bytes).unwrap();
    seal(file, HEADER_AT, 1024, 36);
}

/// Puts sector numbers into the table.
fn edit_table(file: &Double, entries: &[(u64, u32)]) {
    for (block, entry) in entries {
        write_all(file, TABLE_AT + block * 4, &entry.to_be_bytes()).unwrap();
    }
}

fn entry(file: &Double, block: u64) -> u32 {
    u32::from_be_bytes(read_vec(file, TABLE_AT + block * 4, 4).unwrap().try_into().unwrap())
}

/// What a file is refused with: the place, and the words.
fn refusal(file: &Double) -> (u64, String) {
    match open(file) {
        Err(error @ DiskError::Corrupt { offset, .. }) => (offset, error.to_string()),
        other => panic!("{other:?}"),
    }
}

#[test]
fn every_field_of_a_footer_that_is_out_of_range_is_refused_by_name() {
    for (field, bytes, words) in [
        (0, &b"conectiX"[..], "cookie"),
        (12, &[0, 2, 0, 0], "version"),
        (60, &[0, 0, 0, 0], "disk type 0"),
        (60, &[0, 0, 0, 1], "disk type 1"),
        (60, &[0, 0, 0, 6], "disk type 6"),
        (60, &[0xff; 4], "disk type 4294967295"),
        (48, &[0; 8], "capacity of 0 bytes"),
        (48, &[0, 0, 0, 0, 0, 0, 2, 1], "capacity of 513 bytes"),
        (48, &(MAX_SIZE + 512).to_be_bytes(), "2040 GiB"),
        (48, &[0xff; 8], "capacity of 18446744073709551615 bytes"),
        (16, &511u64.to_be_bytes(), "dynamic header lies outside"),
        (16, &(1u64 << 40).to_be_bytes(), "dynamic header lies outside"),
        (16, &u64::MAX.to_be_bytes(), "dynamic header lies outside"),
    ] {
        let file = sound();
        let tail = file.len().unwrap() - 512;
        edit_footer(&file, field, bytes);
        if words == "cookie" {
            // Without a cookie a file is raw, unless it has one somewhere.
            write_all(&file, 0, b"conectix").unwrap();
        }
        let (offset, error) = refusal(&file);
        assert!(error.contains(words) && (offset == tail || offset == field), "{field}: {offset}: {error}");
    }
    let file = sound();
    edit_footer(&file, 100, &[1]);
    for start in [0, file.len().unwrap() - 512] {
        write_all(&file, start + 64, &[1, 2, 3, 4]).unwrap();
    }
    assert!(refusal(&file).1.contains("checksum is 0x01020304"), "{:?}", refusal(&file));
}

#[test]
fn every_field_of_a_dynamic_header_that_is_out_of_range_is_refused_by_name() {
    for (field, bytes, words) in [
        (0, &b"cxsparsE"[..], "cookie"),
        (24, &[0, 2, 0, 0], "version"),
        (28, &2u32.to_be_bytes(), "table of 2 entries is too small for 3 blocks"),
        (32, &0u32.to_be_bytes(), "blocks of 0 bytes"),
        (32, &256u32.to_be_bytes(), "blocks of 256 bytes"),
        (32, &(3u32 << 20).to_be_bytes(), "blocks of 3145728 bytes"),
        (32, &(512u32 << 20).to_be_bytes(), "blocks of 536870912 bytes"),
        (16, &u64::MAX.to_be_bytes(), "block allocation table lies outside"),
        (16, &(1u64 << 40).to_be_bytes(), "block allocation table lies outside"),
        (16, &100u64.to_be_bytes(), "block allocation table lies outside"),
        (16, &1024u64.to_be_bytes(), "block allocation table lies over the dynamic header"),
    ] {
        let file = sound();
        edit_header(&file, field, bytes);
        let (offset, error) = refusal(&file);
        let place = HEADER_AT + if field == 16 { 16 } else { 0 };
        assert!(error.contains(words) && offset == place, "{field}: {offset}: {error}");
    }
    let file = sound();
    write_all(&file, HEADER_AT + 200, &[1]).unwrap();
    assert!(refusal(&file).1.contains("dynamic header's checksum"));
}

#[test]
fn every_table_that_gives_a_block_no_place_of_its_own_is_refused_by_block_and_entry() {
    let file = sound();
    let [first, second, third] = [0, 1, 2].map(|block| entry(&file, block));
    let sectors = u32::try_from(file.len().unwrap() / SECTOR).unwrap();
    for (entries, wrong, words) in [
        (vec![(1, sectors)], 1, "block 1 lies beyond the end of the file"),
        (vec![(1, u32::MAX - 1)], 1, "block 1 lies beyond the end of the file"),
        (vec![(2, third + 2049)], 2, "block 2 lies beyond the end of the file"),
        (vec![(0, second)], 1, "gives blocks 0 and 1 the same place"),
        (vec![(2, first)], 2, "gives blocks 0 and 2 the same place"),
        (vec![(1, first + 9)], 1, "blocks 0 and 1 lie over each other"),
        (vec![(0, 0)], 0, "block 0 lies over the footer's copy"),
        (vec![(0, 1)], 0, "block 0 lies over the dynamic header"),
        (vec![(0, 3)], 0, "block 0 lies over the table"),
    ] {
        let file = sound();
        edit_table(&file, &entries);
        let (offset, error) = refusal(&file);
        assert!(error.contains(words), "{entries:?}: {error}");
        assert_eq!(offset, TABLE_AT + wrong * 4, "{error}");
    }
    // Any order is as good, and so is a gap.
    let file = sound();
    edit_table(&file, &[(0, second), (1, first)]);
    assert_eq!(read(&open(&file).unwrap(), 0, 1), pattern(4096, 1, 9));
}

#[test]
fn a_table_larger_than_the_bound_is_refused_before_it_is_read() {
    let file = sound();
    // The largest disk in blocks of 512 bytes: a table of 16 GiB.
    edit_footer(&file, 48, &MAX_SIZE.to_be_bytes());
    edit_header(&file, 28, &u32::MAX.to_be_bytes());
    edit_header(&file, 32, &512u32.to_be_bytes());
    assert!(refusal(&file).1.contains(&MAX_BLOCKS.to_string()));
}

#[test]
fn a_file_that_is_cut_short_is_refused_unless_it_lost_its_footer_alone() {
    let whole = sound();
    let len = whole.len().unwrap();
    let last = (u64::from(entry(&whole, 2)) + 1) * SECTOR + (SECTORS - 2 * 4096) * SECTOR;
    for keep in [
        0,
        1,
        511,
        512,
        513,
        1535,
        1536,
        1540,
        1548,
        2048,
        70_000,
        last - 512,
        last - 1,
        last,
        last + 1,
        len - 512,
        len - 1,
    ] {
        let file = Double::holding(whole.contents());
        file.set_len(keep).unwrap();
        match open(&file) {
            // What remains is a copy of the footer and all blocks, as far as the disk reaches.
            Ok(disk) => {
                assert!(keep >= last, "{keep}");
                assert_eq!(read(&disk, 8192, 1), pattern(8192, 1, 9));
            }
            Err(error) => assert!(keep < last, "{keep}: {error}"),
        }
    }
}

#[test]
fn a_file_without_its_last_footer_is_read_and_gets_it_back_when_it_is_written() {
    for cut in [0, 1, 300, 512] {
        let file = sound();
        let len = file.len().unwrap();
        if cut == 0 {
            write_all(&file, len - 512, &[0; 512]).unwrap();
        } else {
            file.set_len(len - cut).unwrap();
        }
        assert_eq!(read(&open(&file).unwrap(), 4096, 1), pattern(4096, 1, 9), "{cut}");
        let disk = Chain::base_on(Box::new(file.clone()), Access::Write).unwrap();
        assert_eq!(file.len().unwrap(), len, "{cut}");
        let (footer, passed_over) = Footer::read(&file).unwrap();
        assert!(passed_over.is_none() && read_vec(&file, 0, 512).unwrap() == footer.as_bytes(), "{cut}");
        assert_eq!(read(&disk, 4096, 1), pattern(4096, 1, 9), "{cut}");
    }
}

#[test]
fn a_file_whose_first_footer_is_gone_is_read_and_gets_it_back_when_it_is_written() {
    let file = sound();
    write_all(&file, 0, &[0; 512]).unwrap();
    assert_eq!(read(&open(&file).unwrap(), 4096, 1), pattern(4096, 1, 9));
    drop(Chain::base_on(Box::new(file.clone()), Access::Write).unwrap());
    assert_eq!(read_vec(&file, 0, 8).unwrap(), b"conectix");
}

#[test]
fn blocks_with_gaps_between_them_and_in_any_order_are_read_and_added_to() {
    let file = Double::new(0);
    let size = 20 << 16;
    let mut builder = Builder::with_blocks(&file, size, 1 << 16).unwrap();
    for block in [7, 3, 12] {
        builder.write(block << 16, &pattern(block * 128, 128, 9)).unwrap();
    }
    builder.finish().unwrap();
    // Block 12, the last in the file, moves behind a gap in which something lies, no multiple of a page further on.
    let from = u64::from(entry(&file, 12)) * SECTOR;
    let bytes = read_vec(&file, from, (1 << 16) + 512).unwrap();
    let footer = read_vec(&file, 0, 512).unwrap();
    let to = from + 512 * 333;
    file.set_len(to + bytes.len() as u64 + 512).unwrap();
    write_all(&file, from, &vec![0xbb; bytes.len()]).unwrap();
    write_all(&file, to, &bytes).unwrap();
    write_all(&file, to + bytes.len() as u64, &footer).unwrap();
    edit_table(&file, &[(12, u32::try_from(to / SECTOR).unwrap())]);

    let disk = Chain::base_on(Box::new(file.clone()), Access::Write).unwrap();
    for block in [0, 19] {
        write(&disk, block * 128 + 3, &pattern(block * 128 + 3, 2, 5));
    }
    disk.flush().unwrap();
    drop(disk);
    let disk = open(&file).unwrap();
    for block in [7, 3, 12] {
        assert_eq!(read(&disk, block * 128, 128), pattern(block * 128, 128, 9));
    }
    for block in [0, 19] {
        assert_eq!(read(&disk, block * 128 + 3, 2), pattern(block * 128 + 3, 2, 5));
        assert_eq!(read(&disk, block * 128, 3), vec![0; at(3)]);
    }
}

#[test]
fn what_lies_under_the_missing_bits_of_a_dynamic_disk_stays_hidden_when_neighbours_are_written() {
    let file = sound();
    let bitmap = u64::from(entry(&file, 0)) * SECTOR;
    // Sectors 0..8 are here, the others are not, and something lies there.
    write_all(&file, bitmap, &[&[0xff][..], &[0; 511]].concat()).unwrap();
    write_all(&file, bitmap + 512 + 512 * 8, &[0xbb; 512 * 64]).unwrap();
    let disk = Chain::base_on(Box::new(file.clone()), Access::Write).unwrap();
    write(&disk, 20, &pattern(20, 1, 7));
    disk.flush().unwrap();
    drop(disk);
    let disk = open(&file).unwrap();
    assert_eq!(read(&disk, 0, 1), pattern(0, 1, 9));
    assert_eq!(read(&disk, 20, 1), pattern(20, 1, 7));
    assert!(read(&disk, 8, 12).iter().chain(&read(&disk, 21, 60)).all(|&byte| byte == 0));
    assert_eq!(
        read_vec(&file, bitmap, 512).unwrap(),
        [0xff; 512],
        "other tools see the same, whatever a bit means to them"
    );
}

/// A child whose header has one locator, as given, and its text.
fn with_locator(space: u32, text: &str) -> (Double, Arc<Chain>) {
    let master = sound();
    let parent = Arc::new(open(&master).unwrap());
    let child = Double::new(0);
    let new = NewChild { layout: Layout::Compact, ..NewChild::default() };
    write_child(&child, Uuid::from_u128(5), &parent, ".\\master.vhd", "/master.vhd", new).unwrap();
    let bytes: Vec<u8> = text.encode_utf16().flat_map(u16::to_le_bytes).collect();
    // Right behind the table, where the first block would go.
    let offset = 16_384 + 512;
    let locator = |kind| Locator { kind, offset, len: u32::try_from(bytes.len()).unwrap(), space };
    let header = Header::new(&NewHeader {
        size: parent.size(),
        block_size: 2 << 20,
        table_offset: 16_384,
        parent: Some((
            parent.unique_id().unwrap(),
            "x",
            [locator(LocatorKind::Relative), locator(LocatorKind::Absolute)],
        )),
    });
    let footer = read_vec(&child, 0, 512).unwrap();
    write_all(&child, 512, header.as_bytes()).unwrap();
    child.set_len(offset + 4096).unwrap();
    write_all(&child, offset, &bytes).unwrap();
    write_all(&child, offset + 4096, &footer).unwrap();
    (child, parent)
}

#[test]
fn the_space_of_a_locator_is_kept_whether_it_counts_bytes_or_sectors() {
    for space in [4096, 8] {
        let (file, parent) = with_locator(space, ".\\somewhere\\else.vhd");
        let disk = Chain::child_on(Box::new(file.clone()), Arc::clone(&parent), None).unwrap();
        (0..3).for_each(|block| write(&disk, block * 4096 + 9, &pattern(block * 4096 + 9, 1, 3)));
        disk.flush().unwrap();
        let sparse = disk.sparse().unwrap();
        let candidates = parent_candidates(&file, sparse.header()).unwrap();
        assert!(candidates.iter().any(|path| path.ends_with("somewhere/else.vhd")), "{space}: {candidates:?}");
        let first = read_vec(&file, 16_384, 12).unwrap();
        let first = first.chunks_exact(4).map(|entry| u32::from_be_bytes(entry.try_into().unwrap())).min().unwrap();
        assert!(u64::from(first) * SECTOR >= 16_896 + 4096, "{space}: a block lies at sector {first}");
    }
}

#[test]
fn a_locator_that_points_outside_of_the_file_is_refused_by_its_place() {
    let (file, _) = with_locator(4096, ".\\x.vhd");
    // The offset of the first locator.
    write_all(&file, HEADER_AT + 576 + 16, &(1u64 << 50).to_be_bytes()).unwrap();
    seal(&file, HEADER_AT, 1024, 36);
    let (footer, _) = Footer::read(&file).unwrap();
    let header = Header::parse(&read_vec(&file, HEADER_AT, 1024).unwrap(), footer.size()).unwrap();
    let error = parent_candidates(&file, &header).unwrap_err();
    assert!(matches!(error, DiskError::Corrupt { offset, .. } if offset == 1 << 50), "{error}");
    assert!(error.to_string().contains("locator"), "{error}");
}

#[test]
fn a_disk_that_is_its_own_parent_or_its_grandparents_is_a_loop_with_a_name() {
    let dir = scratch();
    let [a, b, c] = ["a.vhd", "b.vhd", "c.vhd"].map(|name| dir.path().join(name));
    create_dynamic(&a, 4 << 20).unwrap();
    create_child(&b, &Chain::open(&a, Access::Read).unwrap(), ".\\a.vhd").unwrap();
    create_child(&c, &Chain::open(&b, Access::Read).unwrap(), ".\\b.vhd").unwrap();
    // Each takes the identity that its child asks for, and lies where the child looks.
    let parent_of_b = File::open(&b, Access::Read).unwrap();
    let wanted = read_vec(&parent_of_b, 512 + 40, 16).unwrap();
    drop(parent_of_b);
    for (top, becomes) in [(&b, &b), (&c, &c)] {
        let file = File::open(becomes, Access::Write).unwrap();
        let tail = file.len().unwrap() - 512;
        let double = Double::new(512);
        write_all(&double, 0, &read_vec(&file, 0, 512).unwrap()).unwrap();
        write_all(&double, 68, &wanted).unwrap();
        seal(&double, 0, 512, 64);
        let footer = read_vec(&double, 0, 512).unwrap();
        write_all(&file, 0, &footer).unwrap();
        write_all(&file, tail, &footer).unwrap();
        drop(file);
        std::fs::remove_file(&a).unwrap();
        std::os::unix::fs::symlink(becomes, &a).unwrap();
        let error = Chain::open(top, Access::Read).unwrap_err();
        assert!(matches!(&error, DiskError::Chain { .. }) && error.to_string().contains("loop"), "{error}");
    }
}

#[test]
fn a_parent_that_has_grown_beyond_its_child_is_refused_and_a_smaller_one_ends_in_zeros() {
    let dir = scratch();
    let [small, large, child] = ["small.vhd", "large.vhd", "child.vhd"].map(|name| dir.path().join(name));
    create_dynamic(&small, 4 << 20).unwrap();
    create_dynamic(&large, 8 << 20).unwrap();
    write(&Chain::open(&small, Access::Write).unwrap(), 8191, &pattern(8191, 1, 4));
    for layout in [Layout::Mapped, Layout::Compact] {
        let new = |size| NewChild { layout, size: Some(size), ..NewChild::default() };
        let error = create_child_as(&child, &Chain::open(&large, Access::Read).unwrap(), ".\\large.vhd", new(4 << 20));
        assert!(error.unwrap_err().to_string().contains("8388608 bytes, more than the 4194304"));
        create_child_as(&child, &Chain::open(&small, Access::Read).unwrap(), ".\\small.vhd", new(8 << 20)).unwrap();
        let disk = Chain::open(&child, Access::Write).unwrap();
        assert_eq!(read(&disk, 8191, 1), pattern(8191, 1, 4));
        assert_eq!(read(&disk, 8192, 8192), vec![0; at(8192)]);
        write(&disk, 16_380, &pattern(16_380, 4, 5));
        assert_eq!(read(&disk, 16_380, 4), pattern(16_380, 4, 5));
    }
}

#[test]
fn the_largest_disk_is_made_and_opened_and_a_larger_one_is_refused_by_name() {
    let dir = scratch();
    let master = dir.path().join("master.vhd");
    create_dynamic(&master, MAX_SIZE).unwrap();
    let parent = Chain::open(&master, Access::Read).unwrap();
    for layout in [Layout::Mapped, Layout::Compact] {
        let child = dir.path().join("child.vhd");
        let new = NewChild { layout, ..NewChild::default() };
        create_child_as(&child, &parent, ".\\master.vhd", new).unwrap();
        let disk = Chain::open(&child, Access::Write).unwrap();
        let last = MAX_SIZE / SECTOR - 1;
        write(&disk, last, &pattern(last, 1, 8));
        drop(disk);
        let disk = Chain::open(&child, Access::Read).unwrap();
        assert_eq!((disk.size(), read(&disk, last, 1)), (MAX_SIZE, pattern(last, 1, 8)), "{layout:?}");
        drop(disk);
        // With small blocks the room between them is too much for the file.
        let error = create_child_as(&child, &parent, ".\\master.vhd", NewChild { block_size: 512 << 10, ..new });
        assert!(error.unwrap_err().to_string().contains("take larger blocks"));
    }
    let path = dir.path().join("larger.vhd");
    for error in [create_dynamic(&path, MAX_SIZE + 512), create_fixed(&path, MAX_SIZE + 512), create_fixed(&path, 700)]
    {
        assert!(error.unwrap_err().to_string().contains("at most 2040 GiB"));
    }
    for block_size in [0, 2048, 3 << 20, 512 << 20] {
        let error = create_dynamic_as(&path, 8 << 20, block_size).unwrap_err();
        assert!(error.to_string().contains("a power of two from 4 KiB to 256 MiB"), "{error}");
    }
    assert!(!path.exists());
}

#[test]
fn a_footer_of_a_fixed_disk_that_tells_of_more_than_the_file_has_is_refused() {
    let file = Double::new(4096);
    write_all(&file, 4096 - 512, Footer::new(Kind::Fixed, 4096, Uuid::from_u128(1)).as_bytes()).unwrap();
    assert!(refusal(&file).1.contains("4096 bytes, of which the file has"));
}
