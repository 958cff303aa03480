//! VHDX against tools and files that nobody here made: 7-Zip, qemu-img, and images of Windows.
//!
//! A test whose tool or file is missing says `skip:` and passes. The files are looked for in `ROOST_FIXTURES`.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod strangers;

use std::fs;
use std::io::IoSlice;
use std::path::Path;
use std::process::Command;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use roost::disk::export::{ExportFormat, chain, flatten};
use roost::disk::file::Access;
use roost::disk::inspect::{DiskFormat, inspect};
use roost::disk::vhdx::{Spec, create, create_child};
use roost::disk::{Chain, Disk, DiskError, PendingPath, SECTOR};
use strangers::{Wxtla, fixture, has, sha256, sha256_by_7zip, sha256_of};

/// The SHA-256 of what qemu-img finds in a VHDX that needs no parent.
fn sha256_by_qemu(path: &Path) -> String {
    let raw = path.with_extension("by-qemu");
    let output = Command::new("qemu-img").args(["convert", "-f", "vhdx", "-O", "raw"]).arg(path).arg(&raw).output();
    let output = output.unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    sha256(|to| to.write_all(&fs::read(&raw).unwrap()).unwrap())
}

/// One test at a time: a program that another thread starts holds every open file, and its lock, until it runs.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Random numbers that are the same in each run.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % bound
    }
}

/// Writes single sectors and short runs all over a disk, and now and then zeros, of a sector or of many blocks.
fn scribble(disk: &Chain, writes: u64, random: &mut Random) {
    for _ in 0..writes {
        let sectors = disk.size() / SECTOR;
        let start = random.below(sectors);
        let len = 1 + if random.below(4) == 0 { random.below(40.min(sectors - start)) } else { 0 };
        let bytes: Vec<u8> = (0..len * SECTOR).map(|_| u8::try_from(random.below(256)).unwrap()).collect();
        disk.write(start * SECTOR, &[IoSlice::new(&bytes)]).unwrap();
        if random.below(8) == 0 {
            disk.zero(random.below(sectors) * SECTOR, SECTOR).unwrap();
        }
        if random.below(50) == 0 {
            let start = random.below(sectors);
            disk.zero(start * SECTOR, (sectors - start).min(20_000) * SECTOR).unwrap();
        }
    }
}

#[test]
fn images_that_windows_made_hold_what_is_known_of_them() {
    let _alone = alone();
    let test = "images_that_windows_made_hold_what_is_known_of_them";
    let dir = tempfile::tempdir().unwrap();
    let iotest = "d3d112d8dab7fd360609f7d5a7b769904b7a2a7d7b6b8c535f65a23293c05478";
    let replayed = "3ba3b309425b7ff5e8e0199edceed95226250f880c53b24e8eae93865f3fad5e";
    let btrfs = "0b959f9cb4e18348ad8b646f152178282542c8304f02fddf765e3fd1a1de6864";
    let long = std::env::var("ROOST_LONG").is_ok_and(|value| value == "1");
    for (name, content, dirty) in [
        ("qemu/iotest-dynamic-1G.vhdx.bz2", iotest, false),
        ("discutils/vhdx-log-replay.vhdx.gz", replayed, true),
        ("discutils/btrfs.vhdx.gz", btrfs, false),
    ] {
        let Some(path) = fixture(test, dir.path(), name) else { continue };
        let before = fs::read(&path).unwrap();
        let seen = inspect(&path).unwrap();
        assert!(seen.complete, "{name}: {:?}", seen.warnings);
        assert_eq!(seen.warnings.iter().any(|warning| warning.contains("log")), dirty, "{name}: {:?}", seen.warnings);
        let layer = &seen.layers[0];
        assert_eq!((layer.format, layer.virtual_size), (DiskFormat::VhdxDynamic, 1 << 30));
        assert_eq!(layer.block_size, Some(32 << 20));
        assert!(layer.creator.as_ref().unwrap().starts_with("Microsoft Windows"), "{:?}", layer.creator);
        assert_eq!(sha256_of(&Chain::open(&path, Access::Read).unwrap()), content, "{name}, its log in memory");
        assert!(fs::read(&path).unwrap() == before, "reading changes nothing");

        let disk = Chain::open(&path, Access::Write).unwrap();
        // Each checksum is of a GiB.
        if dirty || long {
            assert_eq!(sha256_of(&disk), content, "{name}, its log in the file");
        }
        if !long {
            continue;
        }
        scribble(&disk, 60, &mut Random(5));
        let changed = sha256_of(&disk);
        drop(disk);
        assert!(inspect(&path).unwrap().warnings.is_empty());
        if has(test, "7zz", "7zip") {
            assert_eq!(sha256_by_7zip("VHDX", &path), changed, "{name}");
        }
    }
}

/// A dynamic VHDX with some data, its sectors and blocks of the given sizes.
fn master(path: &Path, logical_sector: u32, block_size: u32, random: &mut Random) {
    create(path, &Spec { logical_sector, block_size, ..Spec::dynamic(37 << 20) }).unwrap();
    scribble(&Chain::open(path, Access::Write).unwrap(), 300, random);
}

#[test]
fn seven_zip_and_qemu_read_dynamic_and_fixed_disks_as_we_do() {
    let _alone = alone();
    let test = "seven_zip_and_qemu_read_dynamic_and_fixed_disks_as_we_do";
    if !has(test, "7zz", "7zip") || !has(test, "qemu-img", "qemu-utils") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("disk.vhdx");
    let mut random = Random(7);
    for fixed in [false, true] {
        for (logical_sector, block_size) in [(512, 1), (512, 2), (4096, 4), (512, 32)] {
            let block_size = block_size << 20;
            create(&path, &Spec { logical_sector, fixed, block_size, ..Spec::dynamic(37 << 20) }).unwrap();
            let disk = Chain::open(&path, Access::Write).unwrap();
            scribble(&disk, 100, &mut random);
            let ours = sha256_of(&disk);
            drop(disk);
            let kind = if fixed { DiskFormat::VhdxFixed } else { DiskFormat::VhdxDynamic };
            assert_eq!(inspect(&path).unwrap().layers[0].format, kind);
            assert_eq!(sha256_by_7zip("VHDX", &path), ours, "{logical_sector} {block_size} {fixed}");
            if logical_sector == 512 {
                assert_eq!(sha256_by_qemu(&path), ours, "{logical_sector} {block_size} {fixed}");
                assert!(
                    Command::new("qemu-img").args(["check", "-q", "-f", "vhdx"]).arg(&path).status().unwrap().success()
                );
            }
        }
    }
}

#[test]
fn seven_zip_reads_a_chain_of_three_as_we_do() {
    let _alone = alone();
    let test = "seven_zip_reads_a_chain_of_three_as_we_do";
    if !has(test, "7zz", "7zip") {
        return;
    }
    let mut random = Random(42);
    for (logical_sector, block_size) in [(512, 32 << 20), (4096, 1 << 20)] {
        let dir = tempfile::tempdir().unwrap();
        let image = dir.path().join("images/1.vhdx");
        fs::create_dir_all(image.parent().unwrap()).unwrap();
        fs::create_dir(dir.path().join("disks")).unwrap();
        master(&image, logical_sector, block_size, &mut random);
        // On Linux 7-Zip takes the whole text of a relative path as the name of a file beside the child.
        std::os::unix::fs::symlink(&image, dir.path().join(r"disks/..\images\1.vhdx")).unwrap();
        for n in 0..2 {
            std::os::unix::fs::symlink(format!("pc-{n}.vhdx"), dir.path().join(format!(r"disks/.\pc-{n}.vhdx")))
                .unwrap();
        }
        let mut parent = Arc::new(Chain::open(&image, Access::Read).unwrap());
        for (n, relative) in [r"..\images\1.vhdx", r".\pc-0.vhdx", r".\pc-1.vhdx"].into_iter().enumerate() {
            let path = dir.path().join(format!("disks/pc-{n}.vhdx"));
            create_child(&path, &parent, relative).unwrap();
            assert_eq!(sha256_by_7zip("VHDX", &path), sha256_of(&parent), "a new child reads as its parent");
            let pending = PendingPath { path: dir.path().join(format!("pending-{n}")), boot_id: "a-boot".into() };
            let disk = Chain::open_child(&path, Arc::clone(&parent), Some(pending)).unwrap();
            scribble(&disk, 400, &mut random);
            disk.flush().unwrap();
            let ours = sha256_of(&disk);
            assert_ne!(ours, sha256_of(&parent));
            drop(disk);
            assert_eq!(sha256_by_7zip("VHDX", &path), ours);
            // This time the parents are found as the files name them.
            parent = Arc::new(Chain::open(&path, Access::Read).unwrap());
            assert_eq!(sha256_of(&parent), ours);
            let seen = inspect(&path).unwrap();
            assert!(seen.complete && seen.layers.len() == n + 2, "{:?}", seen.warnings);
        }
        drop(parent);
        // The master is written to: whoever was made of it says so.
        scribble(&Chain::open(&image, Access::Write).unwrap(), 1, &mut random);
        let error = Chain::open(&dir.path().join("disks/pc-2.vhdx"), Access::Read).unwrap_err();
        assert!(matches!(error, DiskError::ParentChanged { .. }), "{error}");
    }
}

#[test]
fn wxtla_reads_a_chain_of_vhdxs_as_we_do_and_replays_their_logs() {
    let _alone = alone();
    let Some(wxtla) = Wxtla::find("wxtla_reads_a_chain_of_vhdxs_as_we_do_and_replays_their_logs") else { return };
    let mut random = Random(44);
    for (logical_sector, block_size) in [(512, 32 << 20), (512, 1 << 20), (4096, 1 << 20)] {
        let dir = tempfile::tempdir().unwrap();
        let mut path = dir.path().join("images/1.vhdx");
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::create_dir(dir.path().join("disks")).unwrap();
        master(&path, logical_sector, block_size, &mut random);
        assert_eq!(wxtla.sha256(&path), sha256_of(&Chain::open(&path, Access::Read).unwrap()), "the master");
        let mut dirty = 0;
        for (n, relative) in [r"..\images\1.vhdx", r".\pc-0.vhdx", r".\pc-1.vhdx"].into_iter().enumerate() {
            let parent = Chain::open(&path, Access::Read).unwrap();
            path = dir.path().join(format!("disks/pc-{n}.vhdx"));
            create_child(&path, &parent, relative).unwrap();
            assert_eq!(wxtla.sha256(&path), sha256_of(&parent), "a new child reads as its parent");
            let disk = Chain::open(&path, Access::Write).unwrap();
            scribble(&disk, 400, &mut random);
            disk.flush().unwrap();
            let ours = sha256_of(&disk);
            // As the power would leave it now: what is flushed is in the log, or in its place.
            let left = dir.path().join(format!("disks/left-{n}.vhdx"));
            fs::copy(&path, &left).unwrap();
            dirty += usize::from(has_log(&left));
            assert_eq!(wxtla.sha256(&left), ours, "layer {n}, with its log");
            assert_eq!(sha256_of(&Chain::open(&left, Access::Read).unwrap()), ours, "the same, by us");
            drop(disk);
            assert!(!has_log(&path));
            assert_eq!(wxtla.sha256(&path), ours, "layer {n}");
        }
        assert!(dirty > 0, "some of them had a log to replay");
    }
}

/// Whether there is a log to be replayed: the current header, of the higher sequence number, has a log's GUID.
fn has_log(path: &Path) -> bool {
    let bytes = fs::read(path).unwrap();
    let header = |at: usize| &bytes[at..at + 80];
    let sequence = |at| u64::from_le_bytes(header(at)[8..16].try_into().unwrap());
    let (one, two) = (64 << 10, 128 << 10);
    header(if sequence(one) > sequence(two) { one } else { two })[48..64].iter().any(|&byte| byte != 0)
}

#[test]
fn seven_zip_reads_an_exported_chain_and_qemu_a_flattened_one() {
    let _alone = alone();
    let test = "seven_zip_reads_an_exported_chain_and_qemu_a_flattened_one";
    if !has(test, "7zz", "7zip") || !has(test, "qemu-img", "qemu-utils") {
        return;
    }
    let mut random = Random(61);
    let (dir, out) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    master(&dir.path().join("0.vhdx"), 512, 32 << 20, &mut random);
    for n in 1..=2 {
        let (parent, path) = (dir.path().join(format!("{}.vhdx", n - 1)), dir.path().join(format!("{n}.vhdx")));
        create_child(&path, &Chain::open(&parent, Access::Read).unwrap(), &format!(r".\{}.vhdx", n - 1)).unwrap();
        scribble(&Chain::open(&path, Access::Write).unwrap(), 300, &mut random);
    }
    let disk = Chain::open(&dir.path().join("2.vhdx"), Access::Read).unwrap();
    let ours = sha256_of(&disk);
    let (flat, top) = (out.path().join("flat.vhdx"), out.path().join("top.vhdx"));
    flatten(&disk, &flat, ExportFormat::Vhdx, false, &mut |_, _| ()).unwrap();
    assert_eq!((sha256_by_qemu(&flat), sha256_by_7zip("VHDX", &flat)), (ours.clone(), ours.clone()));
    assert!(Command::new("qemu-img").args(["check", "-q", "-f", "vhdx"]).arg(&flat).status().unwrap().success());
    let exported = chain(&disk, &top, ExportFormat::Vhdx, false, &mut |_, _| ()).unwrap();
    drop(disk);
    drop(dir);
    for file in &exported.files {
        // On Linux 7-Zip takes the whole text of a relative path as the name of a file beside the child.
        let name = file.file_name().unwrap().to_str().unwrap();
        std::os::unix::fs::symlink(name, out.path().join(format!(r".\{name}"))).unwrap();
    }
    assert_eq!(
        (sha256_of(&Chain::open(&top, Access::Read).unwrap()), sha256_by_7zip("VHDX", &top)),
        (ours.clone(), ours)
    );
}

#[test]
fn we_read_and_change_what_qemu_wrote() {
    let _alone = alone();
    if !has("we_read_and_change_what_qemu_wrote", "qemu-img", "qemu-utils") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let raw = dir.path().join("disk.raw");
    fs::File::create(&raw).unwrap().set_len(37 << 20).unwrap();
    let disk = Chain::open(&raw, Access::Write).unwrap();
    scribble(&disk, 20, &mut Random(3));
    let ours = sha256_of(&disk);
    drop(disk);
    for options in ["subformat=dynamic,block_size=1M", "subformat=dynamic", "subformat=fixed,block_size=4M,log_size=2M"]
    {
        let vhdx = dir.path().join("disk.vhdx");
        let convert = ["convert", "-f", "raw", "-O", "vhdx", "-o", options];
        assert!(Command::new("qemu-img").args(convert).args([&raw, &vhdx]).status().unwrap().success());
        let theirs = Chain::open(&vhdx, Access::Write).unwrap();
        assert_eq!(sha256_of(&theirs), ours, "{options}");
        scribble(&theirs, 50, &mut Random(4));
        theirs.flush().unwrap();
        let changed = sha256_of(&theirs);
        drop(theirs);
        assert_eq!(sha256_by_qemu(&vhdx), changed, "{options}");
    }
}

#[test]
fn libvhdi_reads_a_chain_of_three_as_we_do() {
    let _alone = alone();
    let test = "libvhdi_reads_a_chain_of_three_as_we_do";
    if !has(test, "vhdimount", "libvhdi-utils") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let mut random = Random(43);
    master(&dir.path().join("0.vhdx"), 512, 1 << 20, &mut random);
    for n in 1..=2 {
        let (parent, path) = (dir.path().join(format!("{}.vhdx", n - 1)), dir.path().join(format!("{n}.vhdx")));
        create_child(&path, &Chain::open(&parent, Access::Read).unwrap(), &format!(r".\{}.vhdx", n - 1)).unwrap();
        scribble(&Chain::open(&path, Access::Write).unwrap(), 300, &mut random);
    }
    let top = dir.path().join("2.vhdx");
    let mount = dir.path().join("mount");
    fs::create_dir(&mount).unwrap();
    // It looks for parents beside the child from where it stands.
    let mounted = Command::new("vhdimount").args(["2.vhdx", "mount"]).current_dir(dir.path()).output().unwrap();
    if !mounted.status.success() {
        println!("skip: {test} needs /dev/fuse and the right to mount: {}", String::from_utf8_lossy(&mounted.stderr));
        return;
    }
    // The lowest disk is the first.
    let theirs = sha256(|to| to.write_all(&fs::read(mount.join("vhdi3")).unwrap_or_default()).unwrap());
    assert!(Command::new("umount").arg(&mount).status().unwrap().success());
    assert_eq!(theirs, sha256_of(&Chain::open(&top, Access::Read).unwrap()));
}

#[test]
fn a_child_of_a_large_disk_is_a_few_pages_and_made_at_once() {
    let _alone = alone();
    use std::os::unix::fs::MetadataExt;
    let dir = tempfile::tempdir().unwrap();
    let (image, path) = (dir.path().join("1.vhdx"), dir.path().join("pc.vhdx"));
    create(&image, &Spec::dynamic(256 << 30)).unwrap();
    let parent = Arc::new(Chain::open(&image, Access::Read).unwrap());
    let began = std::time::Instant::now();
    create_child(&path, &parent, r".\1.vhdx").unwrap();
    println!("a child of 256 GiB in {:?}", began.elapsed());
    let meta = fs::metadata(&path).unwrap();
    assert!(meta.blocks() * 512 < 512 << 10 && meta.len() < 16 << 20, "{} of {}", meta.blocks() * 512, meta.len());

    let pending = PendingPath { path: dir.path().join("pending"), boot_id: "a-boot".into() };
    for pending in [Some(pending), None] {
        let disk = Chain::open_child(&path, Arc::clone(&parent), pending).unwrap();
        let began = std::time::Instant::now();
        for block in 0..500 {
            disk.write((block * 37 + 1) << 21, &[IoSlice::new(&[7; 4096])]).unwrap();
        }
        let each = began.elapsed() / 500;
        let began = std::time::Instant::now();
        disk.flush().unwrap();
        println!("first writes to 500 new blocks: {each:?} each; a flush after them {:?}", began.elapsed());
        drop(disk);
        create_child(&path, &parent, r".\1.vhdx").unwrap();
    }
}

#[test]
fn a_parent_that_is_missing_or_of_another_format_is_named_and_loops_end() {
    let _alone = alone();
    use roost::disk::vhd;
    let dir = tempfile::tempdir().unwrap();
    let [image, child, other] = ["1.vhdx", "pc.vhdx", "1.vhd"].map(|name| dir.path().join(name));
    create(&image, &Spec::dynamic(64 << 20)).unwrap();
    create_child(&child, &Chain::open(&image, Access::Read).unwrap(), r".\1.vhdx").unwrap();
    let linkage = inspect(&image).unwrap().layers[0].data_write_id.unwrap().to_string();
    let refused = || Chain::open(&child, Access::Read).unwrap_err();

    fs::remove_file(&image).unwrap();
    let error = refused();
    assert!(matches!(error, DiskError::ParentMissing { .. }), "{error}");
    assert!(error.to_string().contains(&linkage) && error.to_string().contains("1.vhdx"), "{error}");
    std::os::unix::fs::symlink(&child, &image).unwrap();
    assert!(refused().to_string().contains("loop"));
    fs::remove_file(&image).unwrap();

    vhd::create_dynamic(&image, 64 << 20).unwrap();
    assert!(refused().to_string().contains("is no VHDX"));
    let error = create_child(&child, &Chain::open(&image, Access::Read).unwrap(), r".\1.vhdx").unwrap_err();
    assert!(error.to_string().contains("is no VHDX"), "{error}");
    create(&other, &Spec::dynamic(64 << 20)).unwrap();
    let error = Chain::open_child(&child, Arc::new(Chain::open(&other, Access::Read).unwrap()), None).unwrap_err();
    assert!(matches!(error, DiskError::ParentChanged { .. }), "{error}");
}
