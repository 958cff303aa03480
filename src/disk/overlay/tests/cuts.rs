//! Power cuts and deaths at every moment of the verbs, and of random histories of them, through the real way to open a disk: what
//! [`witness`](super::super::super::witness) says a cut may leave is opened, and held to what was promised. Image versions and imports
//! likewise.

use std::fs;
use std::io::IoSlice;
use std::path::Path;
use std::sync::Arc;

use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::TestRunner;

use super::super::super::checksum::{Checksum, Compared};
use super::super::super::import::place;
use super::super::super::model::rounds;
use super::super::super::names;
use super::super::super::power::Random;
use super::super::super::witness::{Fault, Folder, Story, moment, restore, told, watch};
use super::super::open_layers;
use super::*;

/// Cuts of each verb in each format, and as many deaths, in a quick run.
const CASES: usize = 60;
/// So many cases are one after which all the verbs are tried as well.
const GOES_ON: usize = 4;
/// Stories in which a planted fault must have shown itself.
const STORIES: usize = 40;

/// Numbers that differ from run to run.
fn random() -> Random {
    use std::hash::{BuildHasher, Hasher};
    Random(std::hash::RandomState::new().build_hasher().finish() | 1)
}

/// A verb that is cut: the disk that it is carried out on, the verb, what must hold of what is found afterwards, and which faults
/// would break that. The last is given whether the verb had come to its end.
struct Cut<P, V, C> {
    what: &'static str,
    prepare: P,
    verb: V,
    check: C,
    faults: &'static [Fault],
}

impl<P, V, C> Cut<P, V, C>
where
    P: Fn(&Bench) -> Vec<u8>,
    V: Fn(&Bench),
    C: Fn(&Bench, &Overlay, &[u8], bool),
{
    /// Cuts the power and kills the process at every step, in every format, with and without the faults.
    fn everywhere(&self) {
        for format in FORMATS {
            let (masters, dir) = (scratch(), scratch());
            let (base, _) = master_in(format, masters.path());
            let bench = Bench::new(dir.path(), base);
            let content = (self.prepare)(&bench);
            watch(dir.path());
            (self.verb)(&bench);
            let story = told();
            let check = |after: &Bench, disk: &Overlay, moment, _: bool| {
                (self.check)(after, disk, &content, moment == story.end());
            };
            let cases = cut_story(&story, &bench.base, &check);
            println!("power cuts: {}, {format}: {cases} cases, none wrong", self.what);
            for &fault in self.faults {
                let planted = story.clone().plant(fault);
                let why = (0..STORIES).find_map(|_| {
                    caught(|| {
                        cut_story(&planted, &bench.base, &check);
                    })
                });
                let Some(why) = why else { panic!("{}, {format}: {fault:?} went unnoticed", self.what) };
                println!("planted in {}, {format}: {fault:?}: {why}", self.what);
            }
        }
    }
}

/// What a check that fails says.
fn caught(check: impl FnOnce()) -> Option<String> {
    let failed = std::panic::catch_unwind(std::panic::AssertUnwindSafe(check)).err()?;
    let text = failed.downcast_ref::<String>().cloned();
    let text = text.or_else(|| Some((*failed.downcast_ref::<&str>()?).to_owned())).unwrap_or_default();
    Some(text.lines().next().unwrap_or_default().chars().take(120).collect())
}

/// Every moment of a story, or so many of them that there are enough cases.
fn moments(story: &Story, random: &mut Random) -> Vec<usize> {
    let (cases, all) = (CASES * rounds() as usize, story.end() + 1);
    if all > cases {
        // The end is the moment that promises most.
        return (1..cases).map(|_| usize::try_from(random.next()).unwrap() % all).chain([all - 1]).collect();
    }
    (0..all).cycle().take(cases.next_multiple_of(all)).collect()
}

/// Opens what deaths and cuts leave of a story of a disk, and has it checked: with the moment, and whether the power went.
fn cut_story(story: &Story, base: &Arc<Chain>, check: &dyn Fn(&Bench, &Overlay, usize, bool)) -> usize {
    let mut random = random();
    let mut cases = 0;
    for moment in moments(story, &mut random) {
        for (folder, boot) in [(story.death(moment), BOOT), (story.cut(moment, &mut random), LATER)] {
            let dir = scratch();
            restore(&folder, dir.path());
            let after = Bench::in_folder(dir.path(), Arc::clone(base));
            let what = || format!("moment {moment} of {}: {:?}", story.end(), folder.keys());
            let opened = Overlay::open(after.place.clone(), Arc::clone(base), Some(&after.pending(boot)));
            let disk = opened.unwrap_or_else(|error| panic!("{error}, {}", what()));
            let tree = after.tree();
            assert!(tree.damaged.is_empty() && tree.unfinished.is_empty(), "{tree:?}, {}", what());
            check(&after, &disk, moment, boot == LATER);
            if cases % GOES_ON == 0 {
                goes_on(&after, disk, boot);
            }
            cases += 1;
        }
    }
    cases
}

/// The disk goes on from there, whatever was left.
fn goes_on(after: &Bench, disk: Overlay, boot: &str) {
    let mut model = read(&disk);
    write(&disk, &mut model, 5, 3, 0x31);
    let number = disk.checkpoint(&note("after")).unwrap();
    write(&disk, &mut model, 6, 3, 0x32);
    after.settle(&disk);
    assert!(read(&disk) == model, "the disk differs afterwards");
    drop(disk);
    assert!(read(&after.open_at(boot)) == model, "the disk differs once it is opened again");
    assert_eq!(after.tree().checkpoint(number).unwrap().note.text, "after");
}

/// Each sector is one of these two's.
fn is_mixture(found: &[u8], old: &[u8], new: &[u8]) -> bool {
    let sectors = found.chunks_exact(512).zip(old.chunks_exact(512)).zip(new.chunks_exact(512));
    found.len() == old.len() && sectors.into_iter().all(|((found, old), new)| found == old || found == new)
}

#[test]
fn a_checkpoint_is_there_or_not_whenever_the_power_goes_and_the_disk_is_always_there() {
    let written = |content: &[u8]| {
        let mut new = content.to_vec();
        new[bytes(40)..bytes(60)].copy_from_slice(&pattern(40, 20, 5));
        new
    };
    let cut = Cut {
        what: "a checkpoint",
        prepare: worked,
        verb: |bench: &Bench| {
            let disk = bench.open();
            disk.write(40 * SECTOR, &[IoSlice::new(&pattern(40, 20, 5))]).unwrap();
            assert_eq!(disk.checkpoint(&note("second")).unwrap(), 2);
        },
        check: |bench: &Bench, disk: &Overlay, content: &[u8], ended: bool| {
            let new = written(content);
            assert!(is_mixture(&read(disk), content, &new), "the disk differs");
            let tree = bench.tree();
            let numbers: Vec<u32> = tree.checkpoints().map(|layer| layer.number).collect();
            assert!(numbers == [1, 2] || numbers == [1] && !ended, "{numbers:?}");
            if let Some(second) = tree.checkpoint(2) {
                assert_eq!(second.note.text, "second");
                let opened = open_layers(&bench.place, &tree, second.id, &bench.base, Path::new("test"));
                assert!(read(&*opened.unwrap()) == new, "the checkpoint differs");
                assert!(read(disk) == new, "the disk differs from its checkpoint");
            }
        },
        faults: &[Fault::NoFlushBeforeRename, Fault::NoFlushOfFolders],
    };
    cut.everywhere();
}

#[test]
fn a_disk_has_its_old_size_or_its_new_one_whenever_the_power_goes() {
    let cut = Cut {
        what: "a resize",
        prepare: worked,
        verb: |bench: &Bench| assert!(bench.open().resize(3 * SIZE_UNIT, 8).unwrap()),
        check: |_: &Bench, disk: &Overlay, content: &[u8], ended: bool| {
            let now = read(disk);
            assert!(now.len() == 3 << 20 || now.len() == content.len() && !ended, "{}", now.len());
            assert!(now[..content.len()] == *content && now[content.len()..].iter().all(|&byte| byte == 0));
        },
        faults: &[Fault::NoFlushBeforeRename, Fault::NoFlushOfFolders],
    };
    cut.everywhere();
}

#[test]
fn a_merge_changes_nothing_that_is_read_whenever_the_power_goes() {
    let prepare = |bench: &Bench| {
        let mut model = worked(bench);
        let disk = bench.open();
        disk.checkpoint(&note("second")).unwrap();
        write(&disk, &mut model, 30, 30, 3);
        disk.resize(2 * SIZE_UNIT, 8).unwrap();
        model.resize(2 << 20, 0);
        write(&disk, &mut model, 2048 + 5, 9, 4);
        disk.checkpoint(&note("third")).unwrap();
        disk.flush().unwrap();
        let tree = bench.tree();
        bench.place.disown(tree.checkpoint(2).unwrap()).unwrap();
        model
    };
    let cut = Cut {
        what: "a merge",
        prepare,
        verb: |bench: &Bench| assert_eq!(bench.tidy(), 2),
        check: |bench: &Bench, disk: &Overlay, content: &[u8], _: bool| {
            assert!(read(disk) == content, "the disk differs");
            let tree = bench.tree();
            assert_eq!(tree.checkpoints().map(|layer| layer.number).collect::<Vec<_>>(), [1, 4]);
            let third = tree.checkpoint(4).unwrap();
            let opened = open_layers(&bench.place, &tree, third.id, &bench.base, Path::new("test")).unwrap();
            assert!(read(&*opened) == content, "the checkpoint differs");
        },
        faults: &[Fault::NoFlushBeforeRename, Fault::NoFlushOfFolders, Fault::RemovedTooEarly],
    };
    cut.everywhere();
}

#[test]
fn a_deleted_checkpoint_and_a_thawed_disk_change_nothing_that_is_read_whenever_the_power_goes() {
    let cut = Cut {
        what: "a deletion",
        prepare: worked,
        verb: |bench: &Bench| {
            let disk = bench.open();
            bench.delete(&disk, 1);
            assert!(bench.tree().layers.is_empty(), "it is all one file again");
        },
        check: |bench: &Bench, disk: &Overlay, content: &[u8], ended: bool| {
            assert!(read(disk) == content, "the disk differs");
            assert!(bench.tree().checkpoints().count() <= usize::from(!ended));
        },
        faults: &[Fault::NoFlushBeforeRename, Fault::NoFlushOfFolders],
    };
    cut.everywhere();
}

#[test]
fn a_disk_is_rolled_back_or_not_whenever_the_power_goes() {
    let cut = Cut {
        what: "a rollback",
        prepare: worked,
        verb: |bench: &Bench| bench.roll_back(1),
        check: |bench: &Bench, disk: &Overlay, content: &[u8], ended: bool| {
            let tree = bench.tree();
            let first = tree.checkpoint(1).unwrap();
            let first = open_layers(&bench.place, &tree, first.id, &bench.base, Path::new("test")).unwrap();
            let now = read(disk);
            assert!(now == read(&*first) || now == content && !ended, "the disk differs");
        },
        faults: &[Fault::NoFlushBeforeRename, Fault::NoFlushOfFolders],
    };
    cut.everywhere();
}

/// Histories in a quick run, each with as many cuts and deaths as a verb.
const HISTORIES: u32 = 4;
/// Operations of a history.
const LENGTH: std::ops::Range<usize> = 20..30;

/// When an operation began and ended, and what there was then.
struct Done {
    began: usize,
    ended: usize,
    /// Nothing of the disk from before is lost any more.
    flushes: bool,
    model: Model,
}

/// Carries out operations on a disk that was worked on, and tells what there was after each; the first entry is what there was
/// before.
fn history(bench: &Bench, ops: &[Op]) -> (Story, Vec<Done>) {
    let content = worked(bench);
    let first = bench.layer_by_tree(1);
    watch(&bench.dir);
    let mut running = Running::new(bench, content);
    running.model.checkpoints.insert(1, Arc::new(first));
    let mut done = vec![Done { began: 0, ended: 0, flushes: true, model: running.model.clone() }];
    for op in ops {
        let began = moment();
        running.act(op);
        let flushes = matches!(op, Op::Flush | Op::Checkpoint | Op::RollBack(_) | Op::Grow(_));
        // One that there was nothing to do for has flushed nothing.
        done.push(Done { began, ended: moment(), flushes: flushes && moment() > began, model: running.model.clone() });
    }
    drop(running);
    (told(), done)
}

/// Holds what is found to what there may be. The disk's sectors are each of one moment since the last flush, or of the last
/// operation's if only the process died; the checkpoints are those of before or after the operation that was under way.
fn check_history(done: &[Done], bench: &Bench, disk: &Overlay, moment: usize, power: bool) {
    let begun = done.iter().rposition(|done| done.began <= moment).unwrap();
    let ended = done.iter().rposition(|done| done.ended <= moment).unwrap();
    let flushed = done.iter().rposition(|done| done.flushes && done.ended <= moment).unwrap();
    let possible = &done[if power { flushed } else { ended }..=begun];
    let now = read(disk);
    assert!(possible.iter().any(|done| done.model.disk.len() == now.len()), "the disk has {} bytes", now.len());
    for (n, sector) in now.chunks_exact(512).enumerate() {
        // Beyond its end a disk is zeros.
        let was = |done: &Done| match done.model.disk.get(n * 512..n * 512 + 512) {
            Some(was) => was == sector,
            None => sector.iter().all(|&byte| byte == 0),
        };
        assert!(possible.iter().rev().any(was), "sector {n} is neither old nor new");
    }
    let possible = &done[ended..=begun];
    let tree = bench.tree();
    for layer in tree.checkpoints() {
        let content = open_layers(&bench.place, &tree, layer.id, &bench.base, Path::new("test")).unwrap();
        let content = read(&*content);
        let is = |done: &Done| done.model.checkpoints.get(&layer.number).is_some_and(|was| **was == content);
        assert!(possible.iter().any(is), "checkpoint {} differs", layer.number);
    }
    for number in done[ended].model.checkpoints.keys() {
        let stays = possible.iter().all(|done| done.model.checkpoints.contains_key(number));
        assert!(!stays || tree.checkpoint(*number).is_some(), "checkpoint {number} is lost");
    }
}

/// A random history, with at most one change of size: memory is the limit here.
fn ops() -> Vec<Op> {
    let mut runner = TestRunner::new(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() });
    let mut ops = proptest::collection::vec(op(), LENGTH).new_tree(&mut runner).unwrap().current();
    let mut grown = false;
    for op in &mut ops {
        match op {
            // A boot here is BOOT.
            Op::NextBoot => *op = Op::Flush,
            Op::Grow(_) if std::mem::replace(&mut grown, true) => *op = Op::Flush,
            _ => {}
        }
    }
    ops
}

/// A history in this format, cut: the number of cases. With a fault planted, what gave it away, if anything did.
fn cut_history(format: &str, fault: Option<Fault>) -> Result<usize, String> {
    let (masters, dir) = (scratch(), scratch());
    let (base, _) = master_in(format, masters.path());
    let bench = Bench::new(dir.path(), base);
    let ops = ops();
    let (mut story, done) = history(&bench, &ops);
    let check =
        |after: &Bench, disk: &Overlay, moment: usize, power: bool| check_history(&done, after, disk, moment, power);
    let Some(fault) = fault else {
        let cases = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| cut_story(&story, &bench.base, &check)));
        return Ok(cases.unwrap_or_else(|failed| {
            println!("{format}: {ops:?}");
            std::panic::resume_unwind(failed)
        }));
    };
    story = story.plant(fault);
    caught(|| {
        cut_story(&story, &bench.base, &check);
    })
    .map_or(Ok(0), Err)
}

#[test]
fn whatever_verbs_a_disk_went_through_a_cut_leaves_each_sector_old_or_new_and_every_checkpoint_whole() {
    for format in FORMATS {
        let histories = HISTORIES * rounds();
        let cases: usize = (0..histories).map(|_| cut_history(format, None).unwrap()).sum();
        println!("power cuts: histories of verbs, {format}: {cases} cases in {histories} histories, none wrong");
        for fault in [Fault::NoFlushBeforeRename, Fault::NoFlushOfFolders] {
            let why = (0..STORIES).find_map(|_| cut_history(format, Some(fault)).err());
            let Some(why) = why else { panic!("histories of verbs, {format}: {fault:?} went unnoticed") };
            println!("planted in histories of verbs, {format}: {fault:?}: {why}");
        }
    }
}

/// Cuts a story of a folder, with and without faults. `check` is given the folder, and whether what it tells of had come to its end.
fn cut_folders(what: &str, story: &Story, faults: &[Fault], check: &dyn Fn(&Path, bool)) {
    let cut = |story: &Story| {
        let mut random = random();
        let mut cases = 0;
        for moment in moments(story, &mut random) {
            for folder in [story.death(moment), story.cut(moment, &mut random)] as [Folder; 2] {
                let dir = scratch();
                restore(&folder, dir.path());
                check(dir.path(), moment == story.end());
                cases += 1;
            }
        }
        cases
    };
    println!("power cuts: {what}: {} cases, none wrong", cut(story));
    for &fault in faults {
        let planted = story.clone().plant(fault);
        let why = (0..STORIES).find_map(|_| {
            caught(|| {
                cut(&planted);
            })
        });
        let Some(why) = why else { panic!("{what}: {fault:?} went unnoticed") };
        println!("planted in {what}: {fault:?}: {why}");
    }
}

/// A raw disk with something in it.
fn raw(dir: &Path) -> (PathBuf, Vec<u8>) {
    let path = dir.join("linux.raw");
    let mut content = vec![0; bytes(SECTORS)];
    content[bytes(8)..bytes(48)].copy_from_slice(&pattern(8, 40, 1));
    content[bytes(900)..bytes(1200)].copy_from_slice(&pattern(900, 300, 2));
    fs::write(&path, &content).unwrap();
    (path, content)
}

#[test]
fn an_image_is_there_whole_with_its_checksum_or_not_at_all_whenever_the_power_goes() {
    for format in FORMATS {
        let (sources, dir) = (scratch(), scratch());
        let (raw, content) = raw(sources.path());
        let (prepared, folder) = (dir.path().join(".import-7"), dir.path().join("linux"));
        fs::create_dir(&prepared).unwrap();
        watch(dir.path());
        let master = prepared.join("1").with_extension(format);
        import(&raw, &master, &mut |_, _| ()).unwrap();
        Checksum::record(&master, &mut |_, _| ControlFlow::Continue(())).unwrap();
        place(&prepared, &folder).unwrap();
        let check = |dir: &Path, ended: bool| {
            let folder = dir.join("linux");
            assert!(folder.exists() || !ended, "the image is lost");
            if folder.exists() {
                let master = folder.join("1").with_extension(format);
                assert!(read(&Chain::open(&master, Access::Read).unwrap()) == content, "the image differs");
                let recorded = Checksum::load(&master).unwrap().expect("a checksum");
                let compared = recorded.compare(&master, &mut |_, _| ControlFlow::Continue(())).unwrap();
                assert_eq!(compared, Compared::Same);
            }
        };
        let faults = [Fault::NoFlushBeforeRename, Fault::NoFlushOfFolders];
        cut_folders(&format!("an import, {format}"), &told(), &faults, &check);
    }
}

#[test]
fn a_version_is_published_or_not_whenever_the_power_goes_and_the_old_one_stays() {
    for format in FORMATS {
        let (sources, dir) = (scratch(), scratch());
        let (raw, first) = raw(sources.path());
        import(&raw, &dir.path().join("1").with_extension(format), &mut |_, _| ()).unwrap();
        let path = maintain(dir.path(), 1).unwrap();
        let mut second = first.clone();
        let disk = open_maintenance(dir.path()).unwrap();
        write(&*disk, &mut second, 30, 50, 7);
        disk.zero(1000 * SECTOR, 9 * SECTOR).unwrap();
        second[bytes(1000)..bytes(1009)].fill(0);
        disk.flush().unwrap();
        drop(disk);
        let child = path.file_name().unwrap();
        watch(dir.path());
        publish_maintenance(dir.path(), &mut |_, _| ()).unwrap();
        let check = |dir: &Path, ended: bool| {
            let content = |path: &Path| read(&Chain::open(path, Access::Read).unwrap());
            assert!(content(&version_path(dir, 1)) == first, "the old version differs");
            let found = versions(dir).unwrap();
            assert!(found == [1, 2] || found == [1] && !ended, "{found:?}");
            let path = dir.join(child);
            assert!(!(ended && path.exists()), "the maintenance child is still there");
            if found.len() == 2 {
                assert!(content(&version_path(dir, 2)) == second, "the new version differs");
            } else {
                assert!(content(&path) == second, "the maintenance child differs");
                publish_maintenance(dir, &mut |_, _| ()).unwrap();
                assert!(content(&version_path(dir, 2)) == second, "the new version differs");
            }
        };
        let faults = [Fault::NoFlushBeforeRename, Fault::NoFlushOfFolders, Fault::RemovedTooEarly];
        cut_folders(&format!("a publication, {format}"), &told(), &faults, &check);
    }
}

/// What a replacement of a disk in one format by one in the other left must be one of the two, and only one once it was opened.
struct Change {
    old: (Arc<Chain>, Vec<u8>),
    new: (Arc<Chain>, Vec<u8>),
}

impl Change {
    /// True if it is the new one.
    fn check(&self, dir: &Path, boot: &str) -> bool {
        let extension = |base: &Chain| base.path().extension().unwrap().to_owned();
        let found = names::find(&dir.join("pc-01")).expect("there is a disk");
        let is_new = found.extension() == Some(&extension(&self.new.0));
        let (base, wanted) = if is_new { &self.new } else { &self.old };
        let place = Place::new(found);
        let pending = PendingPath { path: dir.join("map"), boot_id: boot.to_owned() };
        let disk = Overlay::open(place.clone(), Arc::clone(base), Some(&pending)).unwrap();
        assert!(read(&disk) == *wanted, "the disk differs");
        place.remove_others().unwrap();
        let there = [&self.old, &self.new].map(|(base, _)| place.top().with_extension(extension(base)).exists());
        assert_eq!(there, [!is_new, is_new], "one disk is left");
        // Its checkpoint is there whatever the disk is by now, and the next one has a number of its own.
        assert!(Tree::read(&place).unwrap().checkpoint(1).is_some());
        assert_eq!(place.layer(1).extension(), Some(&*extension(&self.old.0)));
        assert_eq!(disk.checkpoint(&note("after")).unwrap(), 2);
        assert!(place.layer(2).exists() && read(&disk) == *wanted, "the disk differs after a checkpoint");
        is_new
    }

    /// The deaths and cuts that left the old disk, and those that left the new one.
    fn cut(&self, story: &Story) -> (usize, usize) {
        let (mut random, mut left) = (random(), (0, 0));
        for moment in moments(story, &mut random) {
            for (folder, boot) in [(story.death(moment), BOOT), (story.cut(moment, &mut random), LATER)] {
                let dir = scratch();
                restore(&folder, dir.path());
                match self.check(dir.path(), boot) {
                    true => left.1 += 1,
                    false => left.0 += 1,
                }
            }
        }
        left
    }
}

#[test]
fn a_disk_becomes_one_of_the_other_format_at_one_moment_whenever_the_power_goes() {
    for (from, to) in [("vhd", "vhdx"), ("vhdx", "vhd")] {
        let (masters, dir) = (scratch(), scratch());
        let ((base, _), new) = (master_in(from, masters.path()), master_in(to, masters.path()));
        let bench = Bench::new(dir.path(), Arc::clone(&base));
        let content = worked(&bench);
        watch(dir.path());
        let place = bench.place.replace(&new.0, &format!(r"..\master.{to}"), &mut |_| Ok(())).unwrap();
        let story = told();
        assert_eq!(place.top(), dir.path().join("pc-01").with_extension(to));
        assert!(place.previous().ends_with(format!("pc-01.{from}.previous")));
        let change = Change { old: (base, content), new };
        assert!(change.check(dir.path(), BOOT), "it is the new one at the end");
        let (olds, news) = change.cut(&story);
        assert!(olds > 10 && news > 1, "{olds} and {news}");
        println!("power cuts: a {from} becomes a {to}: {} cases, none wrong", olds + news);
        for fault in [Fault::NoFlushBeforeRename, Fault::RemovedTooEarly] {
            let planted = story.clone().plant(fault);
            let why = (0..STORIES).find_map(|_| {
                caught(|| {
                    change.cut(&planted);
                })
            });
            let Some(why) = why else { panic!("a {from} becomes a {to}: {fault:?} went unnoticed") };
            println!("planted where a {from} becomes a {to}: {fault:?}: {why}");
        }
    }
}
