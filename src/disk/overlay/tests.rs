//! Random histories of verbs against a model; in [`cuts`], power cuts and deaths at every step of them.

mod cuts;

use std::collections::BTreeMap;
use std::fs;
use std::io::{IoSlice, IoSliceMut};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use proptest::prelude::*;

use super::super::chain::{Chain, PendingPath};
use super::super::file::{Access, remove};
use super::super::import::import;
use super::super::model::{pattern, scratch};
use super::super::vhd::{Builder, create_child};
use super::super::vhdx;
use super::super::{Disk, DiskError, ErrorKind, SECTOR};
use super::layers::Hands;
use super::merge::{is_untidy, tidy};
use super::versions::{
    VersionError, delete_version, maintain, open_maintenance, publish, publish_maintenance, version_path, versions,
};
use super::{MAX_CHECKPOINTS, Note, Overlay, Place, SIZE_UNIT, Step, Tree, VerbError};

const BOOT: &str = "0f3c1e62-9a34-4d2b-8a55-5d1f6f0f8f10";
const LATER: &str = "1f3c1e62-9a34-4d2b-8a55-5d1f6f0f8f10";
/// Sectors of the disk at first.
const SECTORS: u64 = SIZE_UNIT / SECTOR;

/// The formats of clients' disks, by the ends of their names.
const FORMATS: [&str; 2] = ["vhd", "vhdx"];

/// A VHD as a master in `dir`, and what it reads as.
fn master(dir: &Path) -> (Arc<Chain>, Vec<u8>) {
    master_in("vhd", dir)
}

/// The same in any format.
fn master_in(format: &str, dir: &Path) -> (Arc<Chain>, Vec<u8>) {
    let path = dir.join("master").with_extension(format);
    let mut model = vec![0; bytes(SECTORS)];
    if format == "vhdx" {
        vhdx::create(&path, &vhdx::Spec { block_size: 1 << 20, ..vhdx::Spec::dynamic(SIZE_UNIT) }).unwrap();
        let disk = Chain::open(&path, Access::Write).unwrap();
        for (start, len) in [(0, 40), (100, 1), (900, 300)] {
            write(&disk, &mut model, start, len, 0xee);
        }
        drop(disk);
        return (Arc::new(Chain::open(&path, Access::Read).unwrap()), model);
    }
    let file = super::super::file::File::open_or_create(&path).unwrap();
    let mut builder = Builder::new(&file, SIZE_UNIT).unwrap();
    for (start, len) in [(0, 40), (100, 1), (900, 300)] {
        let data = pattern(start, len, 0xee);
        builder.write(start * SECTOR, &data).unwrap();
        model[bytes(start)..bytes(start + len)].copy_from_slice(&data);
    }
    builder.finish().unwrap();
    drop(file);
    (Arc::new(Chain::open(&path, Access::Read).unwrap()), model)
}

fn bytes(sectors: u64) -> usize {
    usize::try_from(sectors * SECTOR).unwrap()
}

fn read(disk: &dyn Disk) -> Vec<u8> {
    let mut all = vec![0xa5; usize::try_from(disk.size()).unwrap()];
    disk.read(0, &mut [IoSliceMut::new(&mut all)]).unwrap();
    all
}

fn write(disk: &dyn Disk, model: &mut [u8], start: u64, len: u64, seed: u8) {
    let data = pattern(start, len, seed);
    disk.write(start * SECTOR, &[IoSlice::new(&data)]).unwrap();
    model[bytes(start)..bytes(start + len)].copy_from_slice(&data);
}

fn note(text: &str) -> Note {
    Note { made_ms: 7, text: text.to_owned(), checkpoint: true }
}

/// A client's disk in a folder of its own, its pending map beside it.
struct Bench {
    dir: PathBuf,
    base: Arc<Chain>,
    place: Place,
}

impl Bench {
    fn in_folder(dir: &Path, base: Arc<Chain>) -> Self {
        let top = dir.join("pc-01").with_extension(base.path().extension().unwrap());
        Self { dir: dir.to_owned(), base, place: Place::new(top) }
    }

    fn new(dir: &Path, base: Arc<Chain>) -> Self {
        let bench = Self::in_folder(dir, base);
        let path = bench.place.top();
        match bench.base.vhdx() {
            Some(_) => vhdx::create_child(path, &bench.base, r"..\master.vhdx"),
            None => create_child(path, &bench.base, r"..\master.vhd"),
        }
        .unwrap();
        bench
    }

    fn pending(&self, boot: &str) -> PendingPath {
        PendingPath { path: self.dir.join("map"), boot_id: boot.to_owned() }
    }

    fn open_at(&self, boot: &str) -> Overlay {
        Overlay::open(self.place.clone(), Arc::clone(&self.base), Some(&self.pending(boot))).unwrap()
    }

    fn open(&self) -> Overlay {
        self.open_at(BOOT)
    }

    fn tree(&self) -> Tree {
        Tree::read(&self.place).unwrap()
    }

    fn tidy(&self) -> usize {
        tidy(&self.place, &self.base, &mut |_, _| ControlFlow::Continue(())).unwrap()
    }

    /// What a layer reads as, found as other tools find it: by the locators in the files.
    fn layer(&self, number: u32) -> Vec<u8> {
        read(&Chain::open(&self.place.layer(number), Access::Peek).unwrap())
    }

    /// The same, by the identities in the files.
    fn layer_by_tree(&self, number: u32) -> Vec<u8> {
        let tree = self.tree();
        let id = tree.checkpoint(number).unwrap().id;
        read(&*super::open_layers(&self.place, &tree, id, &self.base, Path::new("test")).unwrap())
    }

    fn roll_back(&self, number: u32) {
        let tree = self.tree();
        self.place.roll_back(tree.checkpoint(number).unwrap(), &self.base, &mut |_| Ok(())).unwrap();
    }

    /// Deletes a checkpoint, as far as that can be done by now.
    fn delete(&self, disk: &Overlay, number: u32) {
        let tree = self.tree();
        self.place.disown(tree.checkpoint(number).unwrap()).unwrap();
        self.settle(disk);
    }

    /// Merges all that can be.
    fn settle(&self, disk: &Overlay) {
        disk.loosen(9).unwrap();
        self.tidy();
        disk.rebase().unwrap();
        disk.thaw().unwrap();
    }
}

#[derive(Debug, Clone)]
enum Op {
    Write(u64, u64, u8),
    Zero(u64, u64),
    Flush,
    /// The process dies, and another one of the same boot opens the disk.
    Reopen,
    /// The server loses its power after a flush.
    NextBoot,
    Checkpoint,
    /// To the nth checkpoint there is.
    RollBack(usize),
    Delete(usize),
    Grow(u64),
    Compact,
    Settle,
    Tidy,
}

fn op() -> impl Strategy<Value = Op> {
    // Small parts of numbers that count for more: borders of pages, ends.
    let range = (prop_oneof![0..SECTORS, 0..64u64, SECTORS - 64..SECTORS + 4096], 1..200u64);
    prop_oneof![
        8 => (range.clone(), 1..=200u8).prop_map(|((start, len), seed)| Op::Write(start, len, seed)),
        3 => range.prop_map(|(start, len)| Op::Zero(start, len)),
        1 => Just(Op::Flush),
        1 => Just(Op::Reopen),
        1 => Just(Op::NextBoot),
        4 => Just(Op::Checkpoint),
        2 => (0..8usize).prop_map(Op::RollBack),
        2 => (0..8usize).prop_map(Op::Delete),
        1 => (1..3u64).prop_map(Op::Grow),
        1 => Just(Op::Compact),
        1 => Just(Op::Settle),
        1 => Just(Op::Tidy),
    ]
}

/// What the disk and each checkpoint hold.
#[derive(Debug, Clone, Default)]
struct Model {
    disk: Vec<u8>,
    checkpoints: BTreeMap<u32, Arc<Vec<u8>>>,
}

/// A disk, and what it and its checkpoints must hold.
struct Running<'a> {
    bench: &'a Bench,
    /// `None` while nobody has it open.
    disk: Option<Overlay>,
    model: Model,
    boot: u32,
}

impl<'a> Running<'a> {
    fn new(bench: &'a Bench, content: Vec<u8>) -> Self {
        let mut running = Self { bench, disk: None, model: Model { disk: content, ..Model::default() }, boot: 0 };
        running.open();
        running
    }

    fn open(&mut self) {
        // A disk that is open has its lock.
        self.disk = None;
        // The first one is BOOT.
        self.disk = Some(self.bench.open_at(&format!("{:08x}{}", 0x0f3c_1e62 + self.boot, &BOOT[8..])));
    }

    fn disk(&self) -> &Overlay {
        self.disk.as_ref().unwrap()
    }

    fn act(&mut self, op: &Op) {
        let (bench, size) = (self.bench, self.disk().size());
        let sectors = size / SECTOR;
        let clip = |start: u64, len: u64| (start.min(sectors - 1), len.min(sectors - start.min(sectors - 1)));
        let model = &mut self.model;
        let disk = self.disk.as_ref().unwrap();
        match *op {
            Op::Write(start, len, seed) => {
                let (start, len) = clip(start, len);
                write(disk, &mut model.disk, start, len, seed);
            }
            Op::Zero(start, len) => {
                let (start, len) = clip(start, len);
                disk.zero(start * SECTOR, len * SECTOR).unwrap();
                model.disk[bytes(start)..bytes(start + len)].fill(0);
            }
            Op::Flush => disk.flush().unwrap(),
            Op::Reopen => self.open(),
            Op::NextBoot => {
                disk.flush().unwrap();
                self.boot += 1;
                self.open();
            }
            Op::Checkpoint => match disk.checkpoint(&note("by the test")) {
                Ok(number) => assert!(model.checkpoints.insert(number, Arc::new(model.disk.clone())).is_none()),
                Err(error) => assert!(model.checkpoints.len() == MAX_CHECKPOINTS, "{error}"),
            },
            Op::RollBack(nth) => {
                let Some((&number, content)) = model.checkpoints.iter().nth(nth) else { return };
                model.disk.clone_from(content);
                self.disk = None;
                bench.roll_back(number);
                self.open();
                remove(&bench.place.previous()).unwrap();
            }
            Op::Delete(nth) => {
                let Some((&number, _)) = model.checkpoints.iter().nth(nth) else { return };
                bench.delete(disk, number);
                model.checkpoints.remove(&number);
            }
            Op::Grow(units) => {
                let size = size + units * SIZE_UNIT;
                if size <= 8 * SIZE_UNIT {
                    assert!(disk.resize(size, 9).unwrap());
                    model.disk.resize(usize::try_from(size).unwrap(), 0);
                }
            }
            Op::Compact => disk.compact(0, size).unwrap(),
            Op::Settle => bench.settle(disk),
            Op::Tidy => drop(bench.tidy()),
        }
    }
}

fn run(format: &str, ops: &[Op]) {
    let (masters, dir) = (scratch(), scratch());
    let (base, content) = master_in(format, masters.path());
    let bench = Bench::new(dir.path(), base);
    // The locator leads out of a folder that is not there in this test; what looks for it finds it here.
    fs::copy(bench.base.path(), dir.path().join("master").with_extension(format)).unwrap();
    let mut running = Running::new(&bench, content);
    for op in ops {
        running.act(op);
        assert!(read(running.disk()) == running.model.disk, "the disk differs");
        let tree = bench.tree();
        assert!(tree.damaged.is_empty() && tree.unfinished.is_empty(), "{tree:?}");
        let listed: Vec<u32> = tree.checkpoints().map(|layer| layer.number).collect();
        assert_eq!(listed, running.model.checkpoints.keys().copied().collect::<Vec<_>>());
    }
    let Running { disk, model, .. } = running;
    let disk = disk.unwrap();
    for (number, content) in &model.checkpoints {
        assert!(bench.layer(*number) == **content, "checkpoint {number} differs");
    }
    bench.settle(&disk);
    assert!(!is_untidy(&bench.place).unwrap());
    assert!(read(&disk) == model.disk, "the disk differs once it is settled");
    // Other tools find every file by the locators.
    disk.flush().unwrap();
    drop(disk);
    assert!(read(&Chain::open(bench.place.top(), Access::Read).unwrap()) == model.disk, "by the locators");
    for (number, content) in &model.checkpoints {
        assert!(bench.layer(*number) == **content, "checkpoint {number} differs once it is settled");
    }
    let tree = bench.tree();
    assert!(
        tree.layers.len() <= 2 * model.checkpoints.len(),
        "{} layers for {} checkpoints",
        tree.layers.len(),
        model.checkpoints.len()
    );
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, max_shrink_iters: 300, ..ProptestConfig::default() })]

    #[test]
    fn a_disk_and_its_checkpoints_are_vectors_of_bytes_whatever_the_verbs(
        ops in proptest::collection::vec(op(), 1..40),
    ) {
        FORMATS.iter().for_each(|format| run(format, &ops));
    }
}

/// A disk with a checkpoint and changes, flushed.
fn worked(bench: &Bench) -> Vec<u8> {
    let disk = bench.open();
    let mut model = read(&disk);
    write(&disk, &mut model, 3, 20, 1);
    disk.checkpoint(&note("first")).unwrap();
    write(&disk, &mut model, 10, 30, 2);
    disk.zero(100 * SECTOR, 4 * SECTOR).unwrap();
    model[bytes(100)..bytes(104)].fill(0);
    disk.flush().unwrap();
    model
}

#[test]
fn what_was_acknowledged_before_a_checkpoint_is_in_it_and_what_comes_after_is_not() {
    let (masters, dir) = (scratch(), scratch());
    let (base, mut model) = master(masters.path());
    let bench = Bench::new(dir.path(), base);
    let disk = bench.open();
    write(&disk, &mut model, 7, 9, 1);
    let frozen = model.clone();
    let number = disk.checkpoint(&note("now")).unwrap();
    write(&disk, &mut model, 8, 9, 2);
    // The process dies, then the power goes: the frozen file needs no map.
    drop(disk);
    let tree = bench.tree();
    let id = tree.checkpoint(number).unwrap().id;
    let opened = super::open_layers(&bench.place, &tree, id, &bench.base, Path::new("test")).unwrap();
    assert!(read(&*opened) == frozen);
    assert!(read(&bench.open()) == model, "the map is the new file's");
}

#[test]
fn a_checkpoint_that_fails_leaves_the_disk_at_work() {
    let (masters, dir) = (scratch(), scratch());
    let (base, mut model) = master(masters.path());
    let bench = Bench::new(dir.path(), base);
    let disk = bench.open();
    write(&disk, &mut model, 7, 9, 1);
    // Not even root can write a file where a folder is.
    fs::create_dir(dir.path().join("pc-01.vhd.next")).unwrap();
    assert!(matches!(disk.checkpoint(&note("no")), Err(VerbError::Disk(_))));
    write(&disk, &mut model, 8, 9, 2);
    assert!(bench.tree().layers.is_empty());
    fs::remove_dir(dir.path().join("pc-01.vhd.next")).unwrap();
    assert_eq!(disk.checkpoint(&note("yes")).unwrap(), 1);
    drop(disk);
    assert!(read(&bench.open()) == model);
}

/// Renames, and loses the folder right then.
#[derive(Debug)]
struct Slips(Mutex<bool>);

impl Hands for Slips {
    fn link(&self, from: &Path, to: &Path) -> Result<(), DiskError> {
        fs::hard_link(from, to).map_err(|source| DiskError::io(to, "link", source))
    }
    fn rename(&self, from: &Path, to: &Path) -> Result<(), DiskError> {
        *self.0.lock().unwrap() = to.extension().is_some_and(|extension| extension == "vhd");
        fs::rename(from, to).map_err(|source| DiskError::io(to, "rename", source))
    }
    fn remove(&self, path: &Path) -> Result<(), DiskError> {
        let _ = fs::remove_file(path);
        Ok(())
    }
    fn sync(&self, path: &Path) -> Result<(), DiskError> {
        if *self.0.lock().unwrap() { Err(DiskError::io(path, "flush", std::io::ErrorKind::Other)) } else { Ok(()) }
    }
}

#[test]
fn a_disk_of_which_nobody_knows_which_file_it_is_takes_no_more_writes_until_it_is_opened_anew() {
    let (masters, dir) = (scratch(), scratch());
    let (base, mut model) = master(masters.path());
    let mut bench = Bench::new(dir.path(), base);
    bench.place.hands = Arc::new(Slips(Mutex::new(false)));
    let disk = bench.open();
    write(&disk, &mut model, 7, 9, 1);
    assert!(disk.checkpoint(&note("slips")).is_err());
    assert!(read(&disk) == model, "reads go on");
    let refused = disk.write(0, &[IoSlice::new(&[1; 512])]).unwrap_err();
    assert!(matches!(refused, DiskError::Failed { .. }) && disk.flush().is_err() && disk.zero(0, 512).is_err());
    assert!(disk.checkpoint(&note("again")).is_err());
    drop(disk);
    assert!(read(&bench.open()) == model);
}

#[test]
fn what_must_not_be_done_is_refused_with_what_to_do() {
    let (masters, dir) = (scratch(), scratch());
    let (base, _) = master(masters.path());
    let bench = Bench::new(dir.path(), Arc::clone(&base));
    let disk = bench.open();
    let refusal = |answer: Result<bool, VerbError>| match answer {
        Err(VerbError::Refused { what, help }) => format!("{what}; {help}"),
        other => panic!("{other:?}"),
    };
    assert!(refusal(disk.resize(SIZE_UNIT - 512, 1)).contains("does not shrink"));
    assert!(refusal(disk.resize(SIZE_UNIT + 512, 1)).contains("whole MiB"));
    assert!(refusal(disk.resize((2040 << 30) + SIZE_UNIT, 1)).contains("2040 GiB"));
    assert!(!disk.resize(SIZE_UNIT, 1).unwrap());
    assert!(refusal(disk.checkpoint(&note(&"x".repeat(1025))).map(|_| true)).contains("1024"));
    for _ in 0..MAX_CHECKPOINTS {
        disk.checkpoint(&note("one more")).unwrap();
    }
    assert!(refusal(disk.checkpoint(&note("too many")).map(|_| true)).contains("32 checkpoints"));
    drop(disk);
    let dir = scratch();
    let volatile = Overlay::open(Bench::new(dir.path(), Arc::clone(&base)).place, base, None).unwrap();
    assert!(refusal(volatile.checkpoint(&note("no")).map(|_| true)).contains("keep"));
}

#[test]
fn a_disk_of_the_greatest_size_is_made_and_larger_ones_are_not() {
    let (masters, dir) = (scratch(), scratch());
    let (base, mut model) = master(masters.path());
    let bench = Bench::new(dir.path(), base);
    let disk = bench.open();
    write(&disk, &mut model, 7, 9, 1);
    assert!(disk.resize(2040 << 30, 1).unwrap());
    let last = (2040 << 30) - 512;
    disk.write(last, &[IoSlice::new(&[9; 512])]).unwrap();
    drop(disk);
    let disk = bench.open();
    let mut sector = [0; 512];
    disk.read(last, &mut [IoSliceMut::new(&mut sector)]).unwrap();
    assert_eq!((sector, disk.size()), ([9; 512], 2040 << 30));
}

#[test]
fn a_branch_that_others_stand_on_stays_until_one_is_left() {
    let (masters, dir) = (scratch(), scratch());
    let (base, mut model) = master(masters.path());
    let bench = Bench::new(dir.path(), base);
    let disk = bench.open();
    write(&disk, &mut model, 7, 9, 1);
    let one = disk.checkpoint(&note("one")).unwrap();
    let at_one = model.clone();
    write(&disk, &mut model, 8, 9, 2);
    let two = disk.checkpoint(&note("two")).unwrap();
    let at_two = model.clone();
    drop(disk);
    bench.roll_back(one);
    let disk = bench.open();
    // The disk that was rolled back from stands on `two` as long as it is there.
    bench.delete(&disk, two);
    assert_eq!(bench.tree().layers.len(), 2);
    bench.delete(&disk, one);
    assert_eq!(bench.tree().checkpoints().count(), 0);
    assert!(read(&Chain::open(&bench.place.previous(), Access::Peek).unwrap()) == at_two);
    fs::remove_file(bench.place.previous()).unwrap();
    bench.settle(&disk);
    assert!(bench.tree().layers.is_empty());
    assert!(read(&disk) == at_one);
}

#[test]
fn a_lost_note_loses_no_checkpoint_and_a_damaged_layer_stops_all_merging() {
    let (masters, dir) = (scratch(), scratch());
    let (base, mut model) = master(masters.path());
    let bench = Bench::new(dir.path(), base);
    let disk = bench.open();
    for n in 1..=3 {
        write(&disk, &mut model, u64::from(n), 9, n);
        disk.checkpoint(&note("kept")).unwrap();
    }
    fs::write(bench.place.note(2), b"{ torn").unwrap();
    fs::remove_file(bench.place.note(3)).unwrap();
    assert_eq!(bench.tree().checkpoints().count(), 3);
    bench.place.disown(bench.tree().checkpoint(1).unwrap()).unwrap();
    let good = fs::read(bench.place.layer(3)).unwrap();
    fs::write(bench.place.layer(3), b"not a disk").unwrap();
    assert!(!is_untidy(&bench.place).unwrap());
    assert_eq!(bench.tree().damaged.len(), 1);
    drop(disk);
    let error = Overlay::open(bench.place.clone(), Arc::clone(&bench.base), Some(&bench.pending(BOOT))).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Parent);
    assert!(error.to_string().contains("checkpoint-3"), "{error}");
    fs::write(bench.place.layer(3), good).unwrap();
    assert_eq!(bench.tidy(), 1);
    assert!(read(&bench.open()) == model);
}

#[test]
fn a_merge_that_is_told_to_stop_leaves_everything_and_can_be_done_later() {
    let (masters, dir) = (scratch(), scratch());
    let (base, _) = master(masters.path());
    let bench = Bench::new(dir.path(), base);
    let model = worked(&bench);
    let disk = bench.open();
    bench.place.disown(bench.tree().checkpoint(1).unwrap()).unwrap();
    assert!(disk.loosen(9).unwrap());
    let held = || {
        let entries = fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().path());
        entries
            .map(|path| (fs::read(&path).unwrap(), path))
            .map(|(bytes, path)| (path, bytes))
            .collect::<BTreeMap<_, _>>()
    };
    let before = held();
    assert!(tidy(&bench.place, &bench.base, &mut |_, _| ControlFlow::Break(())).is_err());
    assert!(held() == before);
    assert_eq!(bench.tidy(), 1);
    assert!(read(&disk) == model);
}

#[test]
fn compacting_gives_back_what_holds_nothing_and_nothing_else() {
    use std::os::unix::fs::MetadataExt;
    let (masters, dir) = (scratch(), scratch());
    let (base, mut model) = master(masters.path());
    let bench = Bench::new(dir.path(), base);
    let disk = bench.open();
    write(&disk, &mut model, 0, 1600, 1);
    // Zeros that were written, not unmapped, to the sector.
    disk.write(801 * SECTOR, &[IoSlice::new(&vec![0; bytes(400)])]).unwrap();
    model[bytes(801)..bytes(1201)].fill(0);
    disk.flush().unwrap();
    let blocks = || fs::metadata(bench.place.top()).unwrap().blocks();
    let before = blocks();
    disk.compact(0, disk.size()).unwrap();
    let given_back = before - blocks();
    assert!((384..=400).contains(&given_back), "{given_back} of 400 sectors");
    assert!(read(&disk) == model);
    drop(disk);
    assert!(read(&bench.open()) == model);
}

#[test]
fn a_version_is_made_of_a_child_and_goes_only_when_nothing_stands_on_it() {
    FORMATS.into_iter().for_each(version_of_a_child);
}

fn version_of_a_child(format: &str) {
    let dir = scratch();
    let (images, disks) = (dir.path().join("images/linux"), dir.path().join("disks"));
    fs::create_dir_all(&images).unwrap();
    fs::create_dir_all(&disks).unwrap();
    let raw = dir.path().join("linux.raw");
    fs::write(&raw, pattern(0, SECTORS, 1)).unwrap();
    import(&raw, &images.join("1").with_extension(format), &mut |_, _| ()).unwrap();
    let first = Chain::open(&version_path(&images, 1), Access::Read).unwrap();
    let child = disks.join("pc-01").with_extension(format);
    match first.vhdx() {
        Some(_) => vhdx::create_child(&child, &first, r"..\images\linux\1.vhdx"),
        None => create_child(&child, &first, r"..\images\linux\1.vhd"),
    }
    .unwrap();
    drop(first);

    let path = maintain(&images, 1).unwrap();
    assert!(matches!(maintain(&images, 1), Err(VersionError::InMaintenance { .. })));
    assert!(
        matches!(delete_version(&images, 1, &[&disks]), Err(VersionError::HasChildren { children, .. }) if children.len() == 2)
    );
    let mut model = pattern(0, SECTORS, 1);
    let maintenance = open_maintenance(&images).unwrap();
    write(&*maintenance, &mut model, 99, 9, 2);
    maintenance.flush().unwrap();
    assert!(matches!(publish(&path, &images, &mut |_, _| ()), Err(VersionError::Import(_))), "somebody works on it");
    drop(maintenance);
    let mut told = 0;
    let (version, _) = publish_maintenance(&images, &mut |done, total| told = done * 100 / total).unwrap();
    assert_eq!((version, told, path.exists()), (2, 100, false));
    assert_eq!(versions(&images).unwrap(), [1, 2]);
    assert!(read(&Chain::open(&version_path(&images, 2), Access::Read).unwrap()) == model);
    assert!(read(&Chain::open(&child, Access::Read).unwrap()) == pattern(0, SECTORS, 1), "who stands on 1 sees 1");

    let error = delete_version(&images, 1, &[&disks]).unwrap_err().to_string();
    assert!(error.contains("a disk is a child of it") && error.contains("pc-01.vhd"), "{error}");
    fs::remove_file(&child).unwrap();
    delete_version(&images, 1, &[&disks]).unwrap();
    assert_eq!(versions(&images).unwrap(), [2]);
    assert!(matches!(delete_version(&images, 1, &[&disks]), Err(VersionError::NoVersion { .. })));
}

#[test]
fn a_replacement_tells_its_steps_in_order() {
    let (masters, dir) = (scratch(), scratch());
    let (base, _) = master(masters.path());
    let bench = Bench::new(dir.path(), Arc::clone(&base));
    let mut steps = Vec::new();
    bench
        .place
        .replace(&base, r"..\master.vhd", &mut |step| {
            steps.push(step);
            Ok(())
        })
        .unwrap();
    assert!(matches!(steps[..], [Step::Made(_), Step::Linked, Step::Swapped]), "{steps:?}");
    assert!(bench.place.previous().exists());
}

/// Run by hand: `cargo test --release --lib overlay::tests::times -- --ignored --nocapture`, with `TMPDIR` on the file system in
/// question.
#[test]
#[ignore = "a measurement, no test: what it takes depends on the host"]
fn times_of_a_disk_of_256_gib() {
    use super::super::vhd::create_dynamic;
    use std::time::{Duration, Instant};
    const ROUNDS: usize = 25;
    let median = |mut times: Vec<Duration>| {
        times.sort_unstable();
        (times[ROUNDS / 2], times[ROUNDS - 1])
    };
    for folder in ["/dev/shm".into(), std::env::temp_dir()] {
        let dir = tempfile::tempdir_in(&folder).unwrap();
        let path = dir.path().join("master.vhd");
        create_dynamic(&path, 256 << 30).unwrap();
        let base = Arc::new(Chain::open(&path, Access::Read).unwrap());
        let mut times: [Vec<Duration>; 6] = Default::default();
        for round in 0..ROUNDS {
            let place = Place::new(dir.path().join(format!("pc-{round}.vhd")));
            let mut time = |what: usize, work: &mut dyn FnMut()| {
                let begun = Instant::now();
                work();
                times[what].push(begun.elapsed());
            };
            time(0, &mut || {
                create_child(place.top(), &base, r".\master.vhd").unwrap();
            });
            let pending = PendingPath { path: dir.path().join(format!("map-{round}")), boot_id: BOOT.to_owned() };
            let mut disk = None;
            time(1, &mut || disk = Some(Overlay::open(place.clone(), Arc::clone(&base), Some(&pending)).unwrap()));
            let disk = disk.unwrap();
            for n in 0..200u64 {
                disk.write(n * 977 * 64 * 512, &[IoSlice::new(&[1; 4096])]).unwrap();
            }
            disk.flush().unwrap();
            time(2, &mut || {
                disk.checkpoint(&note("")).unwrap();
            });
            time(3, &mut || assert!(disk.resize(disk.size() + SIZE_UNIT, 1).unwrap()));
            drop(disk);
            time(4, &mut || drop(place.replace(&base, r".\master.vhd", &mut |_| Ok(())).unwrap()));
            time(5, &mut || super::super::file::remove(&place.layer(1)).unwrap());
        }
        let names = ["create", "open", "checkpoint", "resize", "reset", "delete a file with 200 pages"];
        for (name, times) in names.into_iter().zip(times) {
            let (middle, worst) = median(times);
            println!("{}: {name}: median {middle:?}, worst {worst:?}", folder.display());
        }
    }
}
