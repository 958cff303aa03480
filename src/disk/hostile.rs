//! Damaged and malicious files: each is refused with an error, or works as a disk does. None of them makes its reader
//! panic or take memory by a number in the file.

use std::io::IoSlice;
use std::sync::Arc;

use proptest::prelude::*;
use uuid::Uuid;

use super::chain::{Chain, parent_candidates};
use super::double::{Contents, Double};
use super::file::{Access, Media, read_vec, write_all};
use super::model::{SECTORS, pattern, read};
use super::vhd::NewChild;
use super::vhd::create::write_child;
use super::vhd::wire::{Footer, Header, MAX_BLOCKS};
use super::vhd::{Builder, MAX_SIZE};
use super::{Disk, DiskError, SECTOR};

/// A master, and a child of it with a mixture of sectors.
fn sound() -> (Contents, Contents) {
    let (master, child) = (Double::new(0), Double::new(0));
    let mut builder = Builder::new(&master, SECTORS * SECTOR).unwrap();
    builder.write(0, &pattern(0, 9, 0xee)).unwrap();
    builder.finish().unwrap();
    let parent = Arc::new(Chain::base_on(Box::new(master.clone()), Access::Read).unwrap());
    write_child(&child, Uuid::from_u128(5), &parent, ".\\master.vhd", "/master.vhd", NewChild::default()).unwrap();
    let disk = Chain::child_on(Box::new(child.clone()), parent, None).unwrap();
    for sector in (0..200).step_by(3) {
        disk.write(sector * SECTOR, &[IoSlice::new(&[7; 512])]).unwrap();
    }
    (master.contents(), child.contents())
}

/// Makes a structure's checksum right again, so that the damage comes past it.
fn seal(file: &Double, at: u64, len: usize, checksum_at: usize) {
    let mut bytes = read_vec(file, at, len).unwrap();
    bytes[checksum_at..checksum_at + 4].fill(0);
    let sum = !bytes.iter().fold(0u32, |sum, &byte| sum.wrapping_add(u32::from(byte)));
    write_all(file, at + checksum_at as u64, &sum.to_be_bytes()).unwrap();
}

fn damage() -> impl Strategy<Value = (u64, u8)> {
    // Footer copy, header, locators, tables, first bitmap; counted from the front, or from the end for the footer there.
    let front = prop_oneof![
        0..200u64,
        512..1280u64,
        512..576u64,
        1536..2200u64,
        4096..4200u64,
        16_384..16_400u64,
        19_900..21_000u64
    ];
    (
        prop_oneof![4 => front, 1 => (1..600u64).prop_map(|n| u64::MAX - n)],
        prop_oneof![any::<u8>(), Just(0xff), Just(0)],
    )
}

/// Uses a disk that was accepted: it must keep what it is told, wherever its other bytes come from.
fn exercise(disk: &Chain) -> Result<(), DiskError> {
    let sectors = disk.size() / SECTOR;
    for start in [0, 4090, sectors.saturating_sub(3)] {
        let len = 8.min(sectors.saturating_sub(start));
        if len == 0 {
            continue;
        }
        let mut bytes = vec![0; usize::try_from(len * SECTOR).unwrap()];
        disk.read(start * SECTOR, &mut [std::io::IoSliceMut::new(&mut bytes)])?;
        if !disk.read_only() {
            disk.write(start * SECTOR, &[IoSlice::new(&pattern(start, len, 0x31))])?;
            assert_eq!(read(disk, start, len), pattern(start, len, 0x31));
            disk.zero(start * SECTOR, SECTOR)?;
            assert!(read(disk, start, 1).iter().all(|&byte| byte == 0));
            disk.flush()?;
        }
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, ..ProptestConfig::default() })]

    #[test]
    fn a_damaged_file_is_refused_or_still_a_disk(
        damage in proptest::collection::vec(damage(), 1..6), seals in any::<bool>(), cut in proptest::option::of(0..9_000_000u64),
    ) {
        let (master, child) = sound();
        let spoil = |contents: &Contents| {
            let file = Double::holding(contents.clone());
            let len = file.len().unwrap();
            for &(at, byte) in &damage {
                let at = if at > len { len.saturating_sub(u64::MAX - at) } else { at };
                write_all(&file, at.min(len - 1), &[byte]).unwrap();
            }
            if seals {
                seal(&file, 0, 512, 64);
                seal(&file, 512, 1024, 36);
                seal(&file, len - 512, 512, 64);
            }
            if let Some(cut) = cut && cut < len {
                file.set_len(cut).unwrap();
            }
            file
        };
        let parent = Arc::new(Chain::base_on(Box::new(Double::holding(master.clone())), Access::Read).unwrap());
        for access in [Access::Read, Access::Write] {
            if let Ok(disk) = Chain::base_on(Box::new(spoil(&master)), access) {
                let _ = exercise(&disk);
            }
        }
        if let Ok(disk) = Chain::child_on(Box::new(spoil(&child)), parent, None) {
            let _ = exercise(&disk);
        }
        let file = spoil(&child);
        if let Ok((footer, _)) = Footer::read(&file)
            && let Ok(bytes) = read_vec(&file, footer.header_offset().min(1 << 40), 1024)
            && let Ok(header) = Header::parse(&bytes, footer.size())
        {
            let _ = parent_candidates(&file, &header);
        }
    }
}

#[test]
fn a_table_larger_than_the_bound_is_refused_before_it_is_read() {
    let (master, _) = sound();
    let file = Double::holding(master);
    // The largest disk in blocks of 512 bytes: a table of 16 GiB.
    let len = file.len().unwrap();
    for at in [0, len - 512] {
        write_all(&file, at + 48, &MAX_SIZE.to_be_bytes()).unwrap();
        seal(&file, at, 512, 64);
    }
    write_all(&file, 512 + 28, &u32::MAX.to_be_bytes()).unwrap();
    write_all(&file, 512 + 32, &512u32.to_be_bytes()).unwrap();
    seal(&file, 512, 1024, 36);
    let error = Chain::base_on(Box::new(file), Access::Read).unwrap_err();
    assert!(error.to_string().contains(&MAX_BLOCKS.to_string()), "{error}");
}
