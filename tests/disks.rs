//! Disks against tools and files that nobody here made: 7-Zip, qemu-img, and images of Windows and others.
//!
//! A test whose tool or file is missing says `skip:` and passes. The files are looked for in `ROOST_FIXTURES`.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod strangers;

use std::fs;
use std::io::{IoSlice, IoSliceMut};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use roost::disk::file::{Access, File};
use roost::disk::import::{Imported, import};
use roost::disk::inspect::{DiskFormat, inspect};
use roost::disk::vhd::sparse::{Sparse, Wait};
use roost::disk::vhd::{
    Footer, Kind, Layout, NewChild, create_child_as, create_dynamic, create_dynamic_as, create_fixed,
};
use roost::disk::{Chain, Disk, PendingPath, SECTOR};
use strangers::{Wxtla, fixture, has, sha256, sha256_by_7zip, sha256_of};

/// The disk's bytes as we read them, in a raw file.
fn raw_copy(disk: &Chain, path: &Path) {
    let mut bytes = vec![0; usize::try_from(disk.size()).unwrap()];
    disk.read(0, &mut [IoSliceMut::new(&mut bytes)]).unwrap();
    fs::write(path, bytes).unwrap();
}

/// Holds qemu-img to reading a VHD that needs no parent as we do.
fn same_by_qemu(path: &Path) {
    let raw = path.with_extension("ours");
    raw_copy(&Chain::open(path, Access::Read).unwrap(), &raw);
    let compare = ["compare", "-f", "vpc", "-F", "raw"];
    let output = Command::new("qemu-img").args(compare).arg(path).arg(&raw).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    // A warning tells of another size.
    assert!(output.status.success() && !said.contains("Warning"), "{}: {said}", path.display());
}

/// The SHA-256 of what libvhdi finds in a chain, whose files lie in one folder; `None` where nothing can be mounted.
fn sha256_by_libvhdi(path: &Path, layers: usize) -> Option<String> {
    let mount = path.with_extension("mounted");
    fs::create_dir(&mount).unwrap();
    let mounted = Command::new("vhdimount").arg(path).arg(&mount).output().unwrap();
    if !mounted.status.success() {
        print!("{}", String::from_utf8_lossy(&mounted.stderr));
        return None;
    }
    // vhdi1 is the bottom of the chain.
    let found = fs::read(mount.join(format!("vhdi{layers}")));
    assert!(Command::new("umount").arg(&mount).status().unwrap().success());
    fs::remove_dir(&mount).unwrap();
    Some(sha256(|to| to.write_all(&found.unwrap()).unwrap()))
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

/// Writes single sectors and short runs all over a disk, and now and then zeros.
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
    }
}

/// A raw disk with some data, imported as `images/lab/1.vhd`.
fn master(dir: &Path, random: &mut Random) -> PathBuf {
    let raw = dir.join("disk.raw");
    fs::File::create(&raw).unwrap().set_len(9 << 20).unwrap();
    let disk = Chain::open(&raw, Access::Write).unwrap();
    scribble(&disk, 300, random);
    drop(disk);
    let vhd = dir.join("images/lab/1.vhd");
    fs::create_dir_all(vhd.parent().unwrap()).unwrap();
    let Imported { size, format, .. } = import(&raw, &vhd, &mut |_, _| ()).unwrap();
    assert_eq!((size, format), (9 << 20, DiskFormat::Raw));
    let contents = |path| sha256_of(&Chain::open(path, Access::Read).unwrap());
    assert_eq!(contents(&vhd), contents(&raw));
    vhd
}

/// Every layout, in the blocks of Windows, larger and smaller ones.
const CHILDREN: [NewChild; 5] = [
    NewChild { layout: Layout::Mapped, block_size: 2 << 20, size: None },
    NewChild { layout: Layout::Compact, block_size: 2 << 20, size: None },
    NewChild { layout: Layout::Mapped, block_size: 512 << 10, size: None },
    NewChild { layout: Layout::Compact, block_size: 64 << 10, size: None },
    NewChild { layout: Layout::Compact, block_size: 8 << 20, size: None },
];

#[test]
fn seven_zip_reads_a_chain_of_three_as_we_do() {
    if !has("seven_zip_reads_a_chain_of_three_as_we_do", "7zz", "7zip") {
        return;
    }
    let mut random = Random(42);
    for new in CHILDREN {
        let dir = tempfile::tempdir().unwrap();
        let image = master(dir.path(), &mut random);
        let mut parent = Arc::new(Chain::open(&image, Access::Read).unwrap());
        fs::create_dir(dir.path().join("disks")).unwrap();
        // On Linux 7-Zip takes the whole text of a relative locator as the name of a file beside the child.
        std::os::unix::fs::symlink(&image, dir.path().join(r"disks/..\images\lab\1.vhd")).unwrap();
        for (n, relative) in [r"..\images\lab\1.vhd", r".\pc-0.vhd", r".\pc-1.vhd"].into_iter().enumerate() {
            let path = dir.path().join(format!("disks/pc-{n}.vhd"));
            create_child_as(&path, &parent, relative, new).unwrap();
            assert_eq!(sha256_by_7zip("VHD", &path), sha256_of(&parent), "{new:?}: a new child reads as its parent");
            let pending = PendingPath { path: dir.path().join(format!("pending-{n}")), boot_id: "a-boot".into() };
            let disk = Chain::open_child(&path, Arc::clone(&parent), Some(pending)).unwrap();
            scribble(&disk, 400, &mut random);
            disk.flush().unwrap();
            let ours = sha256_of(&disk);
            assert_ne!(ours, sha256_of(&parent));
            assert_eq!(sha256_by_7zip("VHD", &path), ours, "{new:?}, while it is open");
            drop(disk);
            assert_eq!(sha256_by_7zip("VHD", &path), ours, "{new:?}");
            // This time the parents are found as the files name them.
            parent = Arc::new(Chain::open(&path, Access::Read).unwrap());
            assert_eq!(sha256_of(&parent), ours);
            assert_eq!(inspect(&path).unwrap().layers.len(), n + 2);
        }
    }
}

#[test]
fn wxtla_reads_a_chain_of_vhds_as_we_do() {
    let Some(wxtla) = Wxtla::find("wxtla_reads_a_chain_of_vhds_as_we_do") else { return };
    let mut random = Random(43);
    for new in CHILDREN {
        let dir = tempfile::tempdir().unwrap();
        let mut path = master(dir.path(), &mut random);
        let contents = |path: &Path| sha256_of(&Chain::open(path, Access::Read).unwrap());
        assert_eq!(wxtla.sha256(&path), contents(&path), "the master");
        fs::create_dir(dir.path().join("disks")).unwrap();
        for (n, relative) in [r"..\images\lab\1.vhd", r".\pc-0.vhd", r".\pc-1.vhd"].into_iter().enumerate() {
            let parent = Chain::open(&path, Access::Read).unwrap();
            path = dir.path().join(format!("disks/pc-{n}.vhd"));
            create_child_as(&path, &parent, relative, new).unwrap();
            assert_eq!(wxtla.sha256(&path), sha256_of(&parent), "{new:?}: a new child reads as its parent");
            let disk = Chain::open(&path, Access::Write).unwrap();
            scribble(&disk, 400, &mut random);
            disk.flush().unwrap();
            let ours = sha256_of(&disk);
            drop(disk);
            assert_eq!(wxtla.sha256(&path), ours, "{new:?}, layer {n}");
        }
        let fixed = dir.path().join("fixed.vhd");
        create_fixed(&fixed, 9 << 20).unwrap();
        scribble(&Chain::open(&fixed, Access::Write).unwrap(), 100, &mut random);
        assert_eq!(wxtla.sha256(&fixed), contents(&fixed), "a fixed disk");
    }
}

#[test]
fn libvhdi_reads_a_chain_of_pages_as_we_do() {
    let test = "libvhdi_reads_a_chain_of_pages_as_we_do";
    if !has(test, "vhdimount", "libvhdi-utils") {
        return;
    }
    let mut random = Random(5);
    // Blocks of 64 KiB, which Windows never makes, it reads otherwise than 7-Zip and we do.
    for new in CHILDREN.into_iter().filter(|new| new.block_size >= 128 << 10) {
        let dir = tempfile::tempdir().unwrap();
        // libvhdi takes a path of this kind of host for one that begins in the child's folder.
        let again = dir.path().join(dir.path().strip_prefix("/").unwrap());
        fs::create_dir_all(again.parent().unwrap()).unwrap();
        std::os::unix::fs::symlink(dir.path(), &again).unwrap();
        let mut path = dir.path().join("0.vhd");
        create_dynamic(&path, 9 << 20).unwrap();
        for n in 0..4 {
            if n > 0 {
                let parent = Chain::open(&path, Access::Read).unwrap();
                path = dir.path().join(format!("{n}.vhd"));
                create_child_as(&path, &parent, &format!(r".\{}.vhd", n - 1), new).unwrap();
            }
            let disk = Chain::open(&path, Access::Write).unwrap();
            // Whole aligned pages: after the first bit of a byte that is set, libvhdi takes the rest of the byte as set.
            for _ in 0..60 {
                let page = random.below(disk.size() / 4096);
                let bytes: Vec<u8> = (0..4096).map(|_| u8::try_from(random.below(256)).unwrap()).collect();
                disk.write(page * 4096, &[IoSlice::new(&bytes)]).unwrap();
            }
            disk.flush().unwrap();
            let ours = sha256_of(&disk);
            drop(disk);
            let Some(theirs) = sha256_by_libvhdi(&path, n + 1) else {
                println!("skip: {test} needs FUSE (/dev/fuse, and root)");
                return;
            };
            assert_eq!(theirs, ours, "{new:?}, layer {n}");
        }
    }
}

#[test]
fn seven_zip_and_qemu_read_masters_dynamic_and_fixed_disks_as_we_do() {
    let test = "seven_zip_and_qemu_read_masters_dynamic_and_fixed_disks_as_we_do";
    if !has(test, "7zz", "7zip") || !has(test, "qemu-img", "qemu-utils") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let mut random = Random(7);
    // No multiple of a block, nor of any geometry.
    let size = (7 << 20) + 512;
    let mut disks = vec![dir.path().join("fixed.vhd")];
    create_fixed(&disks[0], size).unwrap();
    for block_size in [4 << 10, 64 << 10, 512 << 10, 2 << 20, 32 << 20, 256 << 20] {
        let path = dir.path().join(format!("dynamic-{block_size}.vhd"));
        create_dynamic_as(&path, size, block_size).unwrap();
        disks.push(path);
    }
    for path in &disks {
        let disk = Chain::open(path, Access::Write).unwrap();
        scribble(&disk, 60, &mut random);
        disk.flush().unwrap();
        // With the space that is kept for more blocks, and without it.
        let ours = sha256_of(&disk);
        assert_eq!(sha256_by_7zip("VHD", path), ours, "{}, while it is open", path.display());
    }
    disks.push(master(dir.path(), &mut random));
    for path in &disks {
        let ours = sha256_of(&Chain::open(path, Access::Read).unwrap());
        assert_eq!(sha256_by_7zip("VHD", path), ours, "{}", path.display());
        same_by_qemu(path);
    }
}

#[test]
fn we_read_and_change_what_qemu_wrote() {
    if !has("we_read_and_change_what_qemu_wrote", "qemu-img", "qemu-utils") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let raw = dir.path().join("disk.raw");
    fs::File::create(&raw).unwrap().set_len(9 << 20).unwrap();
    let disk = Chain::open(&raw, Access::Write).unwrap();
    scribble(&disk, 3, &mut Random(3));
    let ours = sha256_of(&disk);
    drop(disk);
    for kind in ["dynamic", "fixed"] {
        let vhd = dir.path().join(kind);
        let options = format!("subformat={kind},force_size=on");
        let convert = ["convert", "-f", "raw", "-O", "vpc", "-o", &options];
        assert!(Command::new("qemu-img").args(convert).args([&raw, &vhd]).status().unwrap().success());
        let theirs = Chain::open(&vhd, Access::Write).unwrap();
        assert_eq!(sha256_of(&theirs), ours, "{kind}");
        scribble(&theirs, 50, &mut Random(4));
        theirs.flush().unwrap();
        drop(theirs);
        same_by_qemu(&vhd);
    }
}

#[test]
fn images_that_others_made_hold_what_is_known_of_them() {
    let test = "images_that_others_made_hold_what_is_known_of_them";
    let dir = tempfile::tempdir().unwrap();
    let d2v = "1ba076be94a8a64541c25aae8d5a5f8b0da758c3797af597e03acb431ff8d143";
    let ext2 = "870be7ae16c1fa8faab05c6eb9205dc9a7ae35c5f552c5cf8a267c0bc6a5cb99";
    for (name, creator, size, content) in [
        ("qemu/d2v-zerofilled.vhd.bz2", "d2v", None, Some(d2v)),
        ("dfvfs/ext2.vhd.gz", "qemu", None, Some(ext2)),
        ("qemu/hyperv2012r2-dynamic.vhd.bz2", "win 6.3", Some(136_365_211_648), None),
        ("qemu/virtualpc-dynamic.vhd.bz2", "vpc 1.0", Some(136_365_211_648), None),
    ] {
        let Some(path) = fixture(test, dir.path(), name) else { continue };
        let seen = inspect(&path).unwrap();
        assert!(seen.complete, "{name}: {:?}", seen.warnings);
        assert!(seen.layers[0].creator.as_ref().unwrap().starts_with(creator), "{:?}", seen.layers[0].creator);
        let disk = Chain::open(&path, Access::Read).unwrap();
        if let Some(size) = size {
            assert_eq!(disk.size(), size);
            let extents = disk.resolve(0, size).unwrap();
            assert!(extents.len() == 1 && extents[0].at.is_none(), "{name} is empty");
        }
        if let Some(content) = content {
            assert_eq!(sha256_of(&disk), content, "{name}");
        }
    }
}

#[test]
fn what_others_made_is_written_and_read_right_by_others() {
    let test = "what_others_made_is_written_and_read_right_by_others";
    if !has(test, "7zz", "7zip") || !has(test, "qemu-img", "qemu-utils") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    // Blocks with gaps between them; a file of QEMU; an empty disk of Hyper-V, of which the first blocks are written.
    for name in ["qemu/d2v-zerofilled.vhd.bz2", "dfvfs/ext2.vhd.gz", "qemu/hyperv2012r2-dynamic.vhd.bz2"] {
        let Some(path) = fixture(test, dir.path(), name) else { continue };
        let warnings = inspect(&path).unwrap().warnings;
        let disk = Chain::open(&path, Access::Write).unwrap();
        let small = disk.size() < 1 << 30;
        let before = small.then(|| sha256_of(&disk));
        let mut random = Random(11);
        for _ in 0..100 {
            let sector = random.below(disk.size().min(100 << 20) / SECTOR);
            disk.write(sector * SECTOR, &[IoSlice::new(&[u8::try_from(random.below(256)).unwrap(); 512])]).unwrap();
        }
        disk.flush().unwrap();
        let after = small.then(|| sha256_of(&disk));
        drop(disk);
        assert_eq!(inspect(&path).unwrap().warnings, warnings, "{name}");
        if let Some(after) = after {
            assert_ne!(before, Some(after.clone()));
            assert_eq!(sha256_by_7zip("VHD", &path), after, "{name}");
            same_by_qemu(&path);
        }
    }
}

#[test]
fn a_child_that_windows_made_tells_its_sectors_and_its_parent() {
    let dir = tempfile::tempdir().unwrap();
    let test = "a_child_that_windows_made_tells_its_sectors_and_its_parent";
    let Some(path) = fixture(test, dir.path(), "dfvfs/fat-differential.vhd.gz") else { return };
    let file = File::open(&path, Access::Read).unwrap();
    let (footer, passed_over) = Footer::read(&file).unwrap();
    assert_eq!((footer.kind(), passed_over, footer.creator().as_str()), (Kind::Differencing, None, "win 10.0"));
    let size = footer.size();
    let disk = Sparse::open(Box::new(file), footer, true).unwrap();
    assert_eq!(disk.header().parent_id().to_string(), "5fa21a55-f394-aa4d-9958-1951a67d5540");
    let mut sectors = Vec::new();
    let content = sha256(|to| {
        for run in disk.map_range(0, size, Wait::Block).unwrap().unwrap() {
            if let Some(at) = run.at {
                sectors.extend(run.offset / SECTOR..(run.offset + run.len) / SECTOR);
                let mut bytes = vec![0; usize::try_from(run.len).unwrap()];
                disk.media().read(at, &mut [IoSliceMut::new(&mut bytes)]).unwrap();
                to.write_all(&bytes).unwrap();
            }
        }
    });
    let known = [134, 143].into_iter().chain(152..160).chain([184, 185, 188, 190, 191, 192, 194, 196]);
    assert_eq!(sectors, known.collect::<Vec<u64>>());
    assert_eq!(content, "eda75676597b44170921425cb00ad70be1d94ad0d7dae92fcbedb9712846e457");
    let error = Chain::open(&path, Access::Read).unwrap_err().to_string();
    assert!(error.contains("5fa21a55-f394-aa4d-9958-1951a67d5540") && error.contains("missing"), "{error}");
}
