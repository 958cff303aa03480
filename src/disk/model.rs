//! What the tests of disks share: patterned sectors, reads both ways, a master and its children. And what a VHD does in
//! single, telling cases; the suite that every format passes is in [`super::conformance`].

use std::io::{IoSlice, IoSliceMut};
use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::chain::Chain;
use super::file::Access;
use super::vhd::{Builder, create_child, create_dynamic, create_fixed};
use super::{Disk, SECTOR};

/// Sectors of the disks here: two and a half blocks, so that the last one is cut short.
pub(super) const SECTORS: u64 = 5 << 11;

pub(super) const BOOT: &str = "6f1b0a52-0c64-4d0e-93a4-7d8f2b1c5e90";

/// A folder in memory, where there is one: the tests wait for thousands of barriers.
pub(super) fn scratch() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap()
}

/// Bytes that tell their sector and seed, none of them all zero.
pub(super) fn pattern(start: u64, len: u64, seed: u8) -> Vec<u8> {
    let mut bytes = vec![seed; at(len)];
    for (sector, bytes) in (start..).zip(bytes.chunks_exact_mut(512)) {
        bytes[..8].copy_from_slice(&sector.to_le_bytes());
    }
    bytes
}

/// How many times more than in a quick run a randomized test is to be run: `ROOST_ROUNDS`, or 10 where `ROOST_LONG=1`.
pub(super) fn rounds() -> u32 {
    let long = std::env::var("ROOST_LONG").is_ok_and(|value| value == "1");
    let rounds = std::env::var("ROOST_ROUNDS").ok().and_then(|value| value.parse().ok());
    rounds.unwrap_or(if long { 10 } else { 1 })
}

/// Bytes of so many sectors.
pub(super) fn at(sectors: u64) -> usize {
    usize::try_from(sectors * SECTOR).unwrap()
}

/// Reads through buffers of uneven lengths.
pub(super) fn read_once(disk: &dyn Disk, start: u64, len: u64) -> Vec<u8> {
    let mut bytes = vec![0xa5; at(len)];
    let (one, two) = bytes.split_at_mut(at(len) / 3);
    disk.read(start * SECTOR, &mut [IoSliceMut::new(one), IoSliceMut::new(two)]).unwrap();
    bytes
}

/// Reads each way, which must agree while nobody writes.
pub(super) fn read(disk: &dyn Disk, start: u64, len: u64) -> Vec<u8> {
    let bytes = read_once(disk, start, len);
    let mut again = vec![0x5a; at(len)];
    if disk.try_read(start * SECTOR, &mut [IoSliceMut::new(&mut again)]).unwrap() {
        assert!(again == bytes, "a read without waiting differs from one that waits");
    }
    let mut passed = Vec::new();
    let mut take = |file: BorrowedFd<'_>, offset, len: u64| {
        let mut part = vec![0; usize::try_from(len).unwrap()];
        assert_eq!(rustix::io::pread(file, &mut part, offset).unwrap(), part.len());
        passed.extend(part);
        len
    };
    if let Some(taken) = disk.pass_on(start * SECTOR, len * SECTOR, &mut take).unwrap() {
        assert_eq!(taken, len * SECTOR);
        assert!(passed == bytes, "what is passed on differs from what is read");
    }
    bytes
}

/// Writes either way: every other one, by what it writes, without waiting where that can be.
pub(super) fn write(disk: &dyn Disk, start: u64, bytes: &[u8]) {
    let (one, two) = bytes.split_at(bytes.len() / 7 * 3);
    let bufs = [IoSlice::new(one), IoSlice::new(two)];
    if bytes.first().is_none_or(|byte| byte % 2 != 0) || !disk.try_write(start * SECTOR, &bufs).unwrap() {
        disk.write(start * SECTOR, &bufs).unwrap();
    }
}

/// Writes one sector's bytes to each of many.
pub(super) fn same(disk: &dyn Disk, start: u64, len: u64, sector: &[u8]) {
    let bufs: Vec<_> = (0..len).map(|_| IoSlice::new(sector)).collect();
    disk.write(start * SECTOR, &bufs).unwrap();
}

/// A dynamic master with data in places, and what it reads as.
pub(super) fn master(path: &Path) -> Vec<u8> {
    let temp = super::vhd::create::TempFile::beside(path).unwrap();
    let mut builder = Builder::new(&temp.file, SECTORS * SECTOR).unwrap();
    let mut model = vec![0; at(SECTORS)];
    for (start, len) in [(0, 40), (100, 1), (3000, 900), (8192, 2048)] {
        let bytes = pattern(start, len, 0xee);
        builder.write(start * SECTOR, &bytes).unwrap();
        model[at(start)..at(start + len)].copy_from_slice(&bytes);
    }
    builder.finish().unwrap();
    temp.keep().unwrap();
    model
}

/// A child of a child of a master, `depth` of them, each with some sectors of its own; the top's path.
pub(super) fn children(dir: &Path, depth: u64, model: &mut [u8]) -> PathBuf {
    let mut parent = dir.join("master.vhd");
    for n in 1..=depth {
        let path = dir.join(format!("child-{n}.vhd"));
        let name = format!(".\\{}", parent.file_name().unwrap().to_string_lossy());
        create_child(&path, &Chain::open(&parent, Access::Read).unwrap(), &name).unwrap();
        if n < depth {
            let disk = Chain::open(&path, Access::Write).unwrap();
            for start in (n * 7..SECTORS).step_by(911) {
                let bytes = pattern(start, n, 0xd0 + u8::try_from(n).unwrap());
                write(&disk, start, &bytes);
                model[at(start)..at(start + n)].copy_from_slice(&bytes);
            }
            disk.flush().unwrap();
        }
        parent = path;
    }
    parent
}

#[test]
fn zeroing_what_is_zero_below_takes_no_bit_and_no_space() {
    use std::os::unix::fs::MetadataExt;
    let dir = scratch();
    master(&dir.path().join("master.vhd"));
    let path = children(dir.path(), 1, &mut []);
    let parent = Arc::new(Chain::open(&dir.path().join("master.vhd"), Access::Read).unwrap());
    let disk = Chain::open_child(&path, parent, None).unwrap();
    let blocks = || std::fs::metadata(&path).unwrap().blocks();
    let before = blocks();
    disk.zero(4200 * SECTOR, 3000 * SECTOR).unwrap();
    disk.flush().unwrap();
    assert_eq!(blocks(), before);
    write(&disk, 4200, &pattern(4200, 1024, 7));
    disk.flush().unwrap();
    let written = blocks();
    disk.zero(4200 * SECTOR, 1024 * SECTOR).unwrap();
    disk.flush().unwrap();
    assert!(blocks() + 900 < written, "{} sectors before, {} after", written, blocks());
    assert!(read(&disk, 4200, 1024).iter().all(|&byte| byte == 0));
}

#[test]
fn a_child_larger_than_its_parent_reads_zeros_beyond_it_and_a_smaller_one_is_refused() {
    use super::vhd::wire::{Footer, Kind};
    let dir = scratch();
    let model = master(&dir.path().join("master.vhd"));
    let path = children(dir.path(), 1, &mut []);
    let parent = Arc::new(Chain::open(&dir.path().join("master.vhd"), Access::Read).unwrap());
    // Three blocks are mapped, of which the disk has two and a half: it can say that it ends elsewhere.
    let claim = |sectors: u64| {
        let id = Chain::open(&path, Access::Peek).map(|chain| chain.unique_id().unwrap()).unwrap_or_default();
        let footer = Footer::new(Kind::Differencing, sectors * SECTOR, id);
        let file = super::file::File::open(&path, Access::Write).unwrap();
        use super::file::Media;
        let end = file.len().unwrap() - 512;
        super::file::write_all(&file, 0, footer.as_bytes()).unwrap();
        super::file::write_all(&file, end, footer.as_bytes()).unwrap();
    };
    claim(SECTORS + 100);
    let disk = Chain::open_child(&path, Arc::clone(&parent), None).unwrap();
    let all = read(&disk, SECTORS - 50, 150);
    assert!(all[..at(50)] == model[at(SECTORS - 50)..] && all[at(50)..].iter().all(|&byte| byte == 0));
    drop(disk);
    claim(SECTORS - 1);
    let error = Chain::open_child(&path, parent, None).unwrap_err();
    assert!(error.to_string().contains("fewer than"), "{error}");
}

#[test]
fn a_parent_that_is_missing_or_another_is_named_and_loops_end() {
    let dir = scratch();
    let [a, b, away] = ["master.vhd", "child-1.vhd", "away.vhd"].map(|name| dir.path().join(name));
    master(&a);
    children(dir.path(), 1, &mut []);
    std::fs::rename(&a, &away).unwrap();
    let error = Chain::open(&b, Access::Read).unwrap_err();
    assert!(
        matches!(error, super::DiskError::ParentMissing { .. }) && error.to_string().contains("master.vhd"),
        "{error}"
    );

    let other = create_dynamic(&a, SECTORS * SECTOR).unwrap();
    let error = Chain::open(&b, Access::Read).unwrap_err();
    let wanted = Chain::open(&away, Access::Read).unwrap().unique_id().unwrap();
    for part in [other.to_string(), wanted.to_string(), a.display().to_string(), b.display().to_string()] {
        assert!(error.to_string().contains(&part), "{error}");
    }

    std::fs::remove_file(&a).unwrap();
    std::os::unix::fs::symlink(&b, &a).unwrap();
    let error = Chain::open(&b, Access::Read).unwrap_err();
    assert!(error.to_string().contains("loop"), "{error}");
}

#[test]
fn a_chain_deeper_than_the_limit_is_refused() {
    let dir = scratch();
    create_dynamic(&dir.path().join("master.vhd"), 1 << 20).unwrap();
    let mut parent = dir.path().join("master.vhd");
    for n in 0..super::chain::MAX_DEPTH {
        let path = dir.path().join(format!("{n}.vhd"));
        let name = format!(".\\{}", parent.file_name().unwrap().to_string_lossy());
        match Chain::open(&parent, Access::Read) {
            Ok(chain) => create_child(&path, &chain, &name).unwrap(),
            Err(error) => panic!("depth {n}: {error}"),
        };
        parent = path;
    }
    assert!(matches!(Chain::open(&parent, Access::Read), Err(super::DiskError::Chain { .. })));
}

#[test]
fn a_footer_that_lacks_its_last_byte_is_read() {
    let dir = scratch();
    for create in [create_fixed, create_dynamic] {
        let path = dir.path().join("old.vhd");
        create(&path, SECTORS * SECTOR).unwrap();
        write(&Chain::open(&path, Access::Write).unwrap(), 9, &pattern(9, 2, 4));
        let file = std::fs::File::options().write(true).open(&path).unwrap();
        file.set_len(file.metadata().unwrap().len() - 1).unwrap();
        assert_eq!(read(&Chain::open(&path, Access::Read).unwrap(), 9, 2), pattern(9, 2, 4));
    }
}
