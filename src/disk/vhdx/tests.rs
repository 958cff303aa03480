//! VHDX at work on file doubles: against a vector of bytes, under power cuts and killed processes, and on damaged files.

use std::io::{IoSlice, IoSliceMut};
use std::sync::{Arc, OnceLock};

use proptest::prelude::*;

use super::create::{NewChild, Spec, create_on, write_child};
use super::wire::{HEADERS, MIB, REGION_TABLES, seal};
use crate::disk::chain::Chain;
use crate::disk::double::{Contents, Double, Event, now};
use crate::disk::file::{Access, Media, read_vec, write_all};
use crate::disk::model::{BOOT, SECTORS, pattern, read, read_once, rounds, write};
use crate::disk::{Disk, DiskError, ErrorKind, SECTOR};

const OTHER_BOOT: &str = "00000000-0c64-4d0e-93a4-7d8f2b1c5e90";
/// Sectors of a block of the disks here; there are five blocks.
const BLOCK: u64 = 2048;
/// The sectors that power cuts are tried on: the first, those around a block border, and the last.
const WINDOWS: [(u64, u64); 3] = [(0, 24), (BLOCK - 12, 24), (SECTORS - 24, 24)];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Fixed,
    Dynamic,
    Child,
    /// A child whose sectors are eight of the units of requests.
    Child4096,
}

const KINDS: [Kind; 4] = [Kind::Fixed, Kind::Dynamic, Kind::Child, Kind::Child4096];

/// How a disk is opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    Mapped,
    Plain,
    Volatile,
}

fn bytes_of(sectors: u64) -> usize {
    usize::try_from(sectors * SECTOR).unwrap()
}

fn spec(kind: Kind) -> Spec {
    let logical_sector = if kind == Kind::Child4096 { 4096 } else { 512 };
    let fixed = kind == Kind::Fixed;
    Spec { size: SECTORS * SECTOR, fixed, block_size: 1 << 20, logical_sector, physical_sector: 4096 }
}

/// An empty disk, and what it lies on: a master with data in places, if it has a parent.
fn fresh(kind: Kind) -> (Contents, Option<Arc<Chain>>, Vec<u8>) {
    let master = Double::new(0);
    create_on(&master, &spec(kind)).unwrap();
    let mut model = vec![0; bytes_of(SECTORS)];
    if matches!(kind, Kind::Fixed | Kind::Dynamic) {
        return (master.contents(), None, model);
    }
    let disk = Chain::base_on(Box::new(master.clone()), Access::Write).unwrap();
    let data = WINDOWS.iter().map(|&(start, len)| (start, len / 2)).chain([(3000, 900), (8192, 1024)]);
    for (start, len) in data {
        let bytes = pattern(start, len, 0xee);
        write(&disk, start, &bytes);
        model[bytes_of(start)..bytes_of(start + len)].copy_from_slice(&bytes);
    }
    drop(disk);
    let parent = Arc::new(Chain::base_on(Box::new(master), Access::Read).unwrap());
    let child = child_of(&parent);
    (child.contents(), Some(parent), model)
}

fn small() -> NewChild {
    NewChild { block_size: 1 << 20, ..NewChild::default() }
}

fn child_of(parent: &Chain) -> Double {
    let child = Double::new(0);
    write_child(&child, parent, ".\\master.vhdx", "/master.vhdx", small()).unwrap();
    child
}

fn open(disk: &Double, parent: Option<&Arc<Chain>>, mode: Mode, map: &Double, boot: &str) -> Chain {
    let disk = Box::new(disk.clone());
    let Some(parent) = parent.map(Arc::clone) else { return Chain::base_on(disk, Access::Write).unwrap() };
    match mode {
        Mode::Mapped => Chain::child_on(disk, parent, Some((Box::new(map.clone()), boot.to_owned()))).unwrap(),
        Mode::Plain => Chain::child_on(disk, parent, None).unwrap(),
        Mode::Volatile => Chain::volatile_on(disk, parent).unwrap(),
    }
}

#[derive(Debug, Clone)]
enum Step {
    Write(u64, u64, u8),
    Zero(u64, u64),
    Flush,
    /// Flushed and its log emptied, but open.
    Close,
    /// Closed and opened again.
    Reopen,
    /// The process ends between two requests, and another one opens the disk.
    Kill,
}

fn model_step() -> impl Strategy<Value = Step> {
    let start = || prop_oneof![0..SECTORS, BLOCK - 40..BLOCK + 40, 0..64u64, SECTORS - 64..SECTORS];
    let range = move || {
        let len = prop_oneof![6 => 1..24u64, 2 => 1..BLOCK, 1 => Just(2 * BLOCK)];
        (start(), len).prop_map(|(start, len)| (start, len.min(SECTORS - start)))
    };
    let blocks = (0..5u64, 1..3u64).prop_map(|(first, n)| (first * BLOCK, (n * BLOCK).min(SECTORS - first * BLOCK)));
    prop_oneof![
        8 => (range(), 1..=200u8).prop_map(|((start, len), seed)| Step::Write(start, len, seed)),
        2 => range().prop_map(|(start, len)| Step::Zero(start, len)),
        2 => blocks.prop_map(|(start, len)| Step::Zero(start, len)),
        2 => Just(Step::Flush),
        1 => Just(Step::Close),
        1 => Just(Step::Reopen),
        1 => Just(Step::Kill),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 8 * rounds(), max_shrink_iters: 400, ..ProptestConfig::default() })]

    #[test]
    fn a_disk_of_each_kind_and_depth_is_a_vector_of_bytes(
        steps in proptest::collection::vec(model_step(), 1..40), depth in 1..5usize,
        mode in prop_oneof![Just(Mode::Mapped), Just(Mode::Plain), Just(Mode::Volatile)],
    ) {
        for kind in KINDS {
            let (contents, mut parent, mut model) = fresh(kind);
            let mut disk = Double::holding(contents);
            if parent.is_some() {
                for n in 1..depth as u64 {
                    let chain = open(&disk, parent.as_ref(), Mode::Plain, &Double::new(0), BOOT);
                    for start in (n * 7..SECTORS).step_by(911) {
                        let bytes = pattern(start, n, 0xd0 + u8::try_from(n).unwrap());
                        write(&chain, start, &bytes);
                        model[bytes_of(start)..bytes_of(start + n)].copy_from_slice(&bytes);
                    }
                    drop(chain);
                    // Opened as what lies below is: for reading.
                    let below = open(&disk, parent.as_ref(), Mode::Plain, &Double::new(0), BOOT);
                    disk = child_of(&below);
                    parent = Some(Arc::new(below));
                }
            }
            let mut map = Double::new(0);
            let mut chain = open(&disk, parent.as_ref(), mode, &map, BOOT);
            for step in &steps {
                match *step {
                    Step::Write(start, len, seed) => {
                        let bytes = pattern(start, len, seed);
                        write(&chain, start, &bytes);
                        model[bytes_of(start)..bytes_of(start + len)].copy_from_slice(&bytes);
                        prop_assert!(read(&chain, start, len) == bytes);
                    }
                    Step::Zero(start, len) => {
                        chain.zero(start * SECTOR, len * SECTOR).unwrap();
                        model[bytes_of(start)..bytes_of(start + len)].fill(0);
                    }
                    Step::Flush => {
                        chain.flush().unwrap();
                        prop_assert!(!chain.dirty() || mode == Mode::Volatile);
                    }
                    Step::Close => chain.vhdx().unwrap().close().unwrap(),
                    Step::Reopen => {
                        drop(chain);
                        chain = open(&disk, parent.as_ref(), mode, &map, BOOT);
                    }
                    Step::Kill => {
                        disk = Double::holding(disk.contents());
                        map = Double::holding(map.contents());
                        chain = open(&disk, parent.as_ref(), mode, &map, BOOT);
                    }
                }
                prop_assert!(read(&chain, 0, SECTORS) == model, "{kind:?} differs after {step:?}");
            }
            drop(chain);
            // Closed: whoever reads it needs no log and no map, and finds it well-formed.
            let vhdx = super::Vhdx::open(Box::new(disk.clone()), true).unwrap();
            prop_assert!(vhdx.header().log.is_nil() && vhdx.warnings().is_empty());
            prop_assert!(read(&open(&disk, parent.as_ref(), Mode::Plain, &map, BOOT), 0, SECTORS) == model);
        }
    }
}

fn crash_step() -> impl Strategy<Value = Step> {
    let range = || {
        (0..WINDOWS.len(), 0..24u64, prop_oneof![Just(1u64), 1..20u64]).prop_map(|(window, from, len)| {
            let (start, size) = WINDOWS[window];
            (start + from, len.min(size - from))
        })
    };
    let block = prop_oneof![Just(0u64), Just(1), Just(4)].prop_map(|block| (block * BLOCK, BLOCK));
    prop_oneof![
        6 => (range(), 1..=200u8).prop_map(|((start, len), seed)| Step::Write(start, len, seed)),
        1 => range().prop_map(|(start, len)| Step::Zero(start, len)),
        2 => block.prop_map(|(start, len)| Step::Zero(start, len)),
        3 => Just(Step::Flush),
        1 => Just(Step::Close),
    ]
}

/// What each sector of the windows holds: the seed of its pattern, or 0 for zeros.
fn tags(disk: &Chain) -> Vec<u8> {
    let mut tags = Vec::new();
    for (start, len) in WINDOWS {
        let bytes = read_once(disk, start, len);
        for (sector, bytes) in (start..).zip(bytes.chunks_exact(512)) {
            let seed = bytes[511];
            let torn = || format!("sector {sector} holds what was never written: {:02x?}..", &bytes[..12]);
            assert!(bytes.iter().all(|&byte| byte == 0) || bytes == pattern(sector, 1, seed), "{}", torn());
            tags.push(seed);
        }
    }
    tags
}

fn sectors() -> impl Iterator<Item = u64> {
    WINDOWS.into_iter().flat_map(|(start, len)| start..start + len)
}

/// When a step began and ended, and what the windows held then.
struct Done {
    began: u64,
    ended: u64,
    flush: bool,
    tags: Vec<u8>,
}

fn history(disk: &Chain, steps: &[Step]) -> Vec<Done> {
    let mut tags = tags(disk);
    let mut done = vec![Done { began: 0, ended: 0, flush: true, tags: tags.clone() }];
    for step in steps {
        let began = now();
        let mut set = |start, len, seed| {
            let range = start..start + len;
            sectors().zip(&mut tags).filter(|(sector, _)| range.contains(sector)).for_each(|(_, tag)| *tag = seed);
        };
        match *step {
            Step::Write(start, len, seed) => {
                write(disk, start, &pattern(start, len, seed));
                set(start, len, seed);
            }
            Step::Zero(start, len) => {
                disk.zero(start * SECTOR, len * SECTOR).unwrap();
                set(start, len, 0);
            }
            Step::Close => disk.vhdx().unwrap().close().unwrap(),
            _ => disk.flush().unwrap(),
        }
        done.push(Done { began, ended: now(), flush: matches!(step, Step::Flush | Step::Close), tags: tags.clone() });
    }
    done
}

fn contents_at(mut contents: Contents, events: &[(u64, Event)], moment: u64) -> Contents {
    for (_, event) in events.iter().take_while(|(at, _)| *at < moment) {
        contents.apply(event, &mut || true);
    }
    contents
}

/// Steps before those that are looked at: so many first writes and zeroings of one block, which fill the log.
fn warm_up(rounds: u64) -> Vec<Step> {
    (0..rounds)
        .flat_map(|n| {
            let middle = 2 * BLOCK + n % 40;
            [
                Step::Write(middle, 1, 9),
                Step::Zero(2 * BLOCK, BLOCK),
                if n % 9 == 8 { Step::Flush } else { Step::Write(0, 1, 5) },
            ]
        })
        .collect()
}

/// Cuts the power before every event after the warm-up, and checks what a new boot finds.
fn cut_everywhere(kind: Kind, steps: &[Step], rounds: u64, seed: u64) {
    let (start, parent, _) = fresh(kind);
    let (disk, map) = (Double::holding(start.clone()), Double::new(0));
    let warm = warm_up(rounds);
    let done = {
        let chain = open(&disk, parent.as_ref(), Mode::Mapped, &map, BOOT);
        history(&chain, &[&warm, steps].concat())
    };
    let first = if rounds == 0 { 0 } else { done[warm.len()].ended };
    let events = disk.events();
    let mut random = seed | 1;
    let mut durable = start;
    let mut since: Vec<&Event> = Vec::new();
    let moments = events.iter().map(|(at, _)| *at).chain([now()]);
    for (n, moment) in moments.enumerate() {
        let flushed = done.iter().rposition(|step| step.flush && step.ended <= moment).unwrap();
        let possible = &done[flushed..=done.iter().rposition(|step| step.began <= moment).unwrap()];
        // Sectors kept by the coin, or whole writes: of a log entry hardly ever all sectors would be, one by one.
        let odds: &[(u64, bool)] = match moment < first {
            true => &[],
            false => &[(0, true), (4, false), (7, false), (4, true), (4, true), (6, true), (8, true)],
        };
        for &(odds, whole) in odds {
            let mut coin = || {
                random ^= random << 13;
                random ^= random >> 7;
                random ^= random << 17;
                random % 8 < odds
            };
            let mut contents = durable.clone();
            for event in &since {
                let kept = coin();
                contents.apply(event, &mut || if whole { kept } else { coin() });
            }
            let map = Double::holding(contents_at(Contents::default(), &map.events(), moment));
            let disk = Double::holding(contents);
            let after = tags(&open(&disk, parent.as_ref(), Mode::Mapped, &map, OTHER_BOOT));
            for (at, tag) in after.iter().enumerate() {
                let allowed: Vec<_> = possible.iter().map(|step| step.tags[at]).collect();
                assert!(
                    allowed.contains(tag),
                    "{kind:?}, cut before event {n}: sector {at} of the windows holds {tag}, not one of {allowed:?}"
                );
            }
        }
        match events.get(n) {
            Some((_, Event::Sync)) => since.drain(..).for_each(|event| durable.apply(event, &mut || true)),
            Some((_, event)) => since.push(event),
            None => {}
        }
    }
}

/// Kills the process before every event of either file, and checks what the next process of this boot finds.
fn kill_everywhere(kind: Kind, mode: Mode, steps: &[Step], rounds: u64) {
    let (start, parent, _) = fresh(kind);
    let (disk, map) = (Double::holding(start.clone()), Double::new(0));
    let warm = warm_up(rounds);
    let done = {
        let chain = open(&disk, parent.as_ref(), mode, &map, BOOT);
        history(&chain, &[&warm, steps].concat())
    };
    let (events, map_events) = (disk.events(), map.events());
    let first = if rounds == 0 { 0 } else { done[warm.len()].ended };
    let mut moments: Vec<u64> = events.iter().chain(&map_events).map(|(at, _)| *at).chain([now()]).collect();
    moments.retain(|&moment| moment >= first);
    moments.sort_unstable();
    for moment in moments {
        let disk = Double::holding(contents_at(start.clone(), &events, moment));
        let map = Double::holding(contents_at(Contents::default(), &map_events, moment));
        let acknowledged = done.iter().rposition(|step| step.ended <= moment).unwrap();
        let possible = &done[acknowledged..=done.iter().rposition(|step| step.began <= moment).unwrap()];
        // The second opening finds what the first one has put right.
        for _ in 0..2 {
            let chain = open(&disk, parent.as_ref(), mode, &map, BOOT);
            for (at, tag) in tags(&chain).iter().enumerate() {
                let allowed: Vec<_> = possible.iter().map(|step| step.tags[at]).collect();
                assert!(
                    allowed.contains(tag),
                    "{kind:?} {mode:?}: sector {at} of the windows holds {tag}, not one of {allowed:?}"
                );
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: rounds(), max_shrink_iters: 200, ..ProptestConfig::default() })]

    #[test]
    fn after_a_power_cut_each_sector_is_old_or_new_and_flushed_ones_are_new(
        steps in proptest::collection::vec(crash_step(), 1..20), rounds in prop_oneof![Just(0), 30..180u64], seed in any::<u64>(),
    ) {
        for kind in KINDS {
            cut_everywhere(kind, &steps, rounds, seed);
        }
    }

    #[test]
    fn after_the_death_of_the_process_every_acknowledged_write_is_there(
        steps in proptest::collection::vec(crash_step(), 1..20), rounds in prop_oneof![Just(0), 30..180u64],
        mode in prop_oneof![Just(Mode::Mapped), Just(Mode::Plain), Just(Mode::Volatile)],
    ) {
        for kind in KINDS {
            kill_everywhere(kind, mode, &steps, rounds);
        }
    }
}

#[test]
fn a_write_that_cannot_be_recorded_is_settled_before_it_is_acknowledged() {
    let (start, parent, _) = fresh(Kind::Child);
    let (disk, map) = (Double::holding(start), Double::new(0));
    let chain = open(&disk, parent.as_ref(), Mode::Mapped, &map, BOOT);
    write(&chain, BLOCK, &pattern(BLOCK, 1, 7));
    map.break_now(true);
    // The map holds a record, and cannot be emptied: what it tells would come after this.
    assert_eq!(chain.write(0, &[IoSlice::new(&[1; 512])]).unwrap_err().kind(), ErrorKind::NoSpace);
    map.break_now(false);
    chain.flush().unwrap();
    map.break_now(true);
    let bytes = pattern(5, 3, 9);
    write(&chain, 5, &bytes);
    let heir = open(&Double::holding(disk.contents()), parent.as_ref(), Mode::Plain, &map, OTHER_BOOT);
    assert_eq!((read(&heir, 5, 3), read(&heir, BLOCK, 1)), (bytes, pattern(BLOCK, 1, 7)));
}

#[test]
fn after_a_failed_barrier_nothing_more_is_believed() {
    let (start, parent, _) = fresh(Kind::Child);
    let disk = Double::holding(start);
    let chain = open(&disk, parent.as_ref(), Mode::Mapped, &Double::new(0), BOOT);
    write(&chain, 5, &pattern(5, 3, 9));
    disk.break_now(true);
    assert_eq!(chain.flush().unwrap_err().kind(), ErrorKind::NoSpace);
    disk.break_now(false);
    assert!(matches!(chain.flush(), Err(DiskError::Failed { .. })));
    assert!(matches!(chain.write(0, &[IoSlice::new(&[0; 512])]), Err(DiskError::Failed { .. })));
    assert!(chain.dirty());
    let before = disk.events().len();
    drop(chain);
    assert_eq!(disk.events().len(), before, "nor is anything written on the way out");
}

fn syncs(disk: &Double) -> usize {
    disk.events().iter().filter(|(_, event)| matches!(event, Event::Sync)).count()
}

#[test]
fn first_writes_to_new_blocks_wait_for_nothing_and_a_flush_for_two_barriers_at_most() {
    for kind in [Kind::Dynamic, Kind::Child] {
        let (disk, master) = (Double::new(0), Double::new(0));
        let spec = Spec { size: 300 << 20, ..spec(kind) };
        let mut parent = None;
        if kind == Kind::Child {
            create_on(&master, &spec).unwrap();
            let below = parent.insert(Arc::new(Chain::base_on(Box::new(master), Access::Read).unwrap()));
            write_child(&disk, below, ".\\a", "/a", small()).unwrap();
        } else {
            create_on(&disk, &spec).unwrap();
        }
        let chain = open(&disk, parent.as_ref(), Mode::Mapped, &Double::new(0), BOOT);
        write(&chain, 0, &pattern(0, 1, 1));
        chain.flush().unwrap();
        let before = syncs(&disk);
        (1..300).for_each(|block| write(&chain, block * BLOCK + 5, &pattern(block * BLOCK + 5, 1, 2)));
        assert_eq!(syncs(&disk), before, "{kind:?}");
        chain.flush().unwrap();
        assert!(syncs(&disk) <= before + 2, "{kind:?}: {} barriers", syncs(&disk) - before);
        let before = syncs(&disk);
        write(&chain, 5, &pattern(5, 1, 2));
        chain.flush().unwrap();
        write(&chain, 5, &pattern(5, 1, 3));
        chain.flush().unwrap();
        assert!(syncs(&disk) <= before + 3, "what is there already needs one barrier");
    }
}

#[test]
fn a_volatile_disk_waits_for_nothing_until_it_is_kept() {
    let (start, parent, _) = fresh(Kind::Child);
    let disk = Double::holding(start);
    let chain = open(&disk, parent.as_ref(), Mode::Volatile, &Double::new(0), BOOT);
    let before = syncs(&disk);
    for sector in [0, 1, BLOCK - 1, BLOCK, SECTORS - 1] {
        write(&chain, sector, &pattern(sector, 1, 7));
        chain.flush().unwrap();
    }
    assert_eq!(syncs(&disk), before);
    let heir = open(&Double::holding(disk.contents()), parent.as_ref(), Mode::Volatile, &Double::new(0), BOOT);
    assert_eq!(tags(&heir), tags(&chain));
    chain.keep_on(Box::new(Double::new(0)), BOOT).unwrap();
    assert!(syncs(&disk) > before && !chain.is_volatile());
    assert!(matches!(disk.events().pop().unwrap().1, Event::Sync), "nothing was changed after the barrier");
    write(&chain, 9, &pattern(9, 1, 8));
    let before = syncs(&disk);
    chain.flush().unwrap();
    assert!(syncs(&disk) > before, "a flush is a flush again");
}

#[test]
fn the_identities_are_renewed_by_the_first_write_and_by_nothing_else() {
    let (start, parent, _) = fresh(Kind::Child);
    let disk = Double::holding(start);
    let header = || super::Vhdx::open(Box::new(disk.clone()), true).unwrap().header();
    let before = header();
    let chain = open(&disk, parent.as_ref(), Mode::Mapped, &Double::new(0), BOOT);
    assert!(read(&chain, 0, SECTORS).len() as u64 == SECTORS * SECTOR);
    chain.flush().unwrap();
    drop(chain);
    assert_eq!(header(), before, "opened for writing, read and flushed");
    let chain = open(&disk, parent.as_ref(), Mode::Mapped, &Double::new(0), BOOT);
    write(&chain, 0, &pattern(0, 1, 1));
    let during = header();
    assert!(during.file_write != before.file_write && during.data_write != before.data_write && !during.log.is_nil());
    write(&chain, 9, &pattern(9, 1, 1));
    drop(chain);
    let after = header();
    assert_eq!((after.file_write, after.data_write), (during.file_write, during.data_write), "once per opening");
    assert!(after.log.is_nil() && after.sequence > during.sequence);
    // A log that is replayed changes the file, not the disk.
    let chain = open(&disk, parent.as_ref(), Mode::Mapped, &Double::new(0), BOOT);
    write(&chain, 4000, &pattern(4000, 1, 1));
    chain.flush().unwrap();
    let copy = Double::holding(disk.contents());
    let dirty = super::Vhdx::open(Box::new(copy.clone()), true).unwrap().header();
    drop(super::Vhdx::open(Box::new(copy.clone()), false).unwrap());
    let replayed = super::Vhdx::open(Box::new(copy), true).unwrap().header();
    assert!(!dirty.log.is_nil() && replayed.log.is_nil());
    assert!(replayed.file_write != dirty.file_write && replayed.data_write == dirty.data_write);
}

#[test]
fn zeroed_blocks_are_one_word_and_their_space_is_used_again() {
    let (start, parent, _) = fresh(Kind::Child);
    let disk = Double::holding(start);
    let chain = open(&disk, parent.as_ref(), Mode::Mapped, &Double::new(0), BOOT);
    let mut longest = 0;
    for round in 0..40 {
        for block in 0..5 {
            write(&chain, block * BLOCK + 3, &pattern(block * BLOCK + 3, 2, 7 + round));
        }
        chain.flush().unwrap();
        chain.zero(0, SECTORS * SECTOR).unwrap();
        chain.flush().unwrap();
        assert!(read(&chain, 0, SECTORS).iter().all(|&byte| byte == 0));
        if round == 3 {
            longest = disk.len().unwrap();
        }
    }
    assert_eq!(disk.len().unwrap(), longest, "the file grows no more");
    assert_eq!(chain.vhdx().unwrap().blocks_present(), 0);
    drop(chain);
    // The space is found again at the next opening.
    let chain = open(&disk, parent.as_ref(), Mode::Mapped, &Double::new(0), BOOT);
    write(&chain, 0, &pattern(0, 1, 7));
    assert!(disk.len().unwrap() < longest);
}

#[test]
fn what_the_bitmap_says_of_a_block_that_was_not_there_means_nothing() {
    let (start, parent, model) = fresh(Kind::Child);
    let disk = Double::holding(start);
    let chain = open(&disk, parent.as_ref(), Mode::Mapped, &Double::new(0), BOOT);
    write(&chain, 5, &pattern(5, 1, 1));
    drop(chain);
    // Bits of block 1, which is not in the file: another program may leave such.
    let bitmap_at = bitmap_block(&disk);
    write_all(&disk, bitmap_at + BLOCK / 8, &[0xff; 256]).unwrap();
    let chain = open(&disk, parent.as_ref(), Mode::Mapped, &Double::new(0), BOOT);
    write(&chain, BLOCK + 7, &pattern(BLOCK + 7, 1, 2));
    let expect = |chain: &Chain| {
        let mut model = model[bytes_of(BLOCK)..bytes_of(2 * BLOCK)].to_vec();
        model[bytes_of(7)..bytes_of(8)].copy_from_slice(&pattern(BLOCK + 7, 1, 2));
        assert!(read(chain, BLOCK, BLOCK) == model);
    };
    expect(&chain);
    drop(chain);
    expect(&open(&disk, parent.as_ref(), Mode::Mapped, &Double::new(0), BOOT));
}

/// Where our files have their structures.
const METADATA: u64 = 5 * MIB;
const ITEMS: u64 = METADATA + (64 << 10);
const BAT: u64 = 6 * MIB;

/// Where the first chunk's bitmap block lies.
fn bitmap_block(disk: &Double) -> u64 {
    // 2^23 sectors of 512 bytes in blocks of 1 MiB.
    let entry = read_vec(disk, BAT + 4096 * 8, 8).unwrap();
    u64::from_le_bytes(entry.try_into().unwrap()) & !(MIB - 1)
}

/// A closed child with blocks and bits of its own, its parent, and what it reads as. Made once.
fn sound() -> (Contents, Arc<Chain>, Vec<u8>) {
    static SOUND: OnceLock<(Contents, Arc<Chain>, Vec<u8>)> = OnceLock::new();
    let make = || {
        let (start, parent, mut model) = fresh(Kind::Child);
        let disk = Double::holding(start);
        let chain = open(&disk, parent.as_ref(), Mode::Plain, &Double::new(0), BOOT);
        for sector in (0..40).chain(BLOCK - 30..BLOCK + 40).chain(2 * BLOCK..2 * BLOCK + 30).step_by(3) {
            write(&chain, sector, &pattern(sector, 1, 7));
            model[bytes_of(sector)..bytes_of(sector + 1)].copy_from_slice(&pattern(sector, 1, 7));
        }
        drop(chain);
        (disk.contents(), parent.unwrap(), model)
    };
    SOUND.get_or_init(make).clone()
}

/// Makes the checksums of headers and region tables right again, so that the damage comes past them.
fn reseal(file: &Double) {
    let places = HEADERS.into_iter().map(|at| (at, 4096)).chain(REGION_TABLES.into_iter().map(|at| (at, 64 << 10)));
    for (at, len) in places {
        let mut bytes = read_vec(file, at, len).unwrap();
        seal(&mut bytes);
        write_all(file, at, &bytes).unwrap();
    }
}

#[test]
fn every_field_out_of_range_is_refused_by_its_name() {
    let (sound, parent, _) = sound();
    let bat = |index: u64| BAT + index * 8;
    let both = |at: u64, bytes: &[u8]| HEADERS.map(|header| (header + at, bytes.to_vec())).to_vec();
    let regions = |at: u64, bytes: &[u8]| REGION_TABLES.map(|table| (table + at, bytes.to_vec())).to_vec();
    let one = |at: u64, bytes: &[u8]| vec![(at, bytes.to_vec())];
    let (u16, u32, u64) = (u16::to_le_bytes, u32::to_le_bytes, u64::to_le_bytes);
    let locator = ITEMS + 48;
    let bat_id = read_vec(&Double::holding(sound.clone()), REGION_TABLES[0] + 16, 16).unwrap();
    let first_item = read_vec(&Double::holding(sound.clone()), METADATA + 32, 16).unwrap();
    let second_block =
        u64::from_le_bytes(read_vec(&Double::holding(sound.clone()), bat(1), 8).unwrap().try_into().unwrap());
    #[rustfmt::skip]
    let cases = [
        (one(0, b"V"), "file identifier"),
        (both(0, b"H"), "header: the signature"),
        (both(64, &u16(1)), "header log version"),
        (both(66, &u16(2)), "header version"),
        (both(68, &u32(0)), "header log length"),
        (both(68, &u32(4096)), "header log length"),
        (both(68, &u32(u32::MAX - (1 << 20) + 1)), "beyond the end"),
        (both(72, &u64(0)), "header log offset"),
        (both(72, &u64(MIB + 512)), "header log offset"),
        (both(72, &u64(1 << 50)), "header log offset"),
        (both(72, &u64(0u64.wrapping_sub(MIB))), "header log offset"),
        (both(72, &u64(BAT)), "lies over the structure"),
        (both(8, &u64(9)), "header sequence number"),
        (both(48, &[7; 16]), "no run of them is complete"),
        (regions(0, b"R"), "region table: the signature"),
        (regions(8, &u32(2048)), "region table entry count"),
        (regions(8, &u32(0)), "no BAT region"),
        (regions(8, &u32(1)), "no metadata region"),
        (regions(32, &u64(0)), "offset: 0 is no multiple"),
        (regions(32, &u64(u64::MAX)), "is no multiple"),
        (regions(32, &u64(1 << 50)), "beyond the end"),
        (regions(32, &u64(MIB)), "lies over the structure at 1048576"),
        (regions(40, &u32(77)), "length: 77"),
        (regions(40, &u32(0)), "length: 0"),
        (regions(16, &[7; 16]), "must be understood"),
        (regions(48, &bat_id), "is there twice"),
        (one(METADATA, b"M"), "metadata table: the signature"),
        (one(METADATA + 10, &u16(2048)), "metadata table entry count"),
        (one(METADATA + 10, &u16(1)), "no logical sector size"),
        (one(METADATA + 32, &[9; 16]), "must be understood"),
        (one(METADATA + 64, &first_item), "is there twice"),
        (one(METADATA + 48, &u32(65_535)), "metadata item"),
        (one(METADATA + 48, &u32(u32::MAX)), "metadata item"),
        (one(METADATA + 52, &u32(u32::MAX)), "metadata item"),
        (one(METADATA + 52, &u32(9)), "two items lie over each other"),
        (one(METADATA + 52, &u32(7)), "file parameters length"),
        (one(ITEMS, &u32(0)), "block size: 0"),
        (one(ITEMS, &u32(3 << 20)), "block size"),
        (one(ITEMS, &u32(512 << 20)), "block size"),
        (one(ITEMS, &u32(1 << 19)), "block size"),
        (one(ITEMS + 4, &u32(0)), "partial, on a disk without a parent"),
        (one(ITEMS + 8, &u64(0)), "virtual disk size: 0"),
        (one(ITEMS + 8, &u64(511)), "virtual disk size"),
        (one(ITEMS + 8, &u64((64 << 40) + 512)), "virtual disk size"),
        (one(ITEMS + 8, &u64(64 << 40)), "BAT region length"),
        (one(ITEMS + 8, &u64(512)), "fewer than"),
        (one(ITEMS + 32, &u32(513)), "logical sector size: 513"),
        (one(ITEMS + 40, &u32(513)), "physical sector size"),
        (one(locator, &[8; 16]), "parent locator type"),
        (one(locator + 18, &u16(60_000)), "parent locator entry count"),
        (one(locator + 20, &u32(u32::MAX)), "parent locator key offset"),
        (one(locator + 24, &u32(70_000)), "parent locator value offset"),
        (one(locator + 28, &u16(4)), "parent_linkage: is missing"),
        (one(locator + 56, b"p"), "was changed since"),
        (one(bat(0), &u64(4)), "BAT entry state of block 0: 4"),
        (one(bat(2), &u64(5)), "BAT entry state of block 2: 5"),
        (one(bat(4096), &u64(7)), "BAT entry state of bitmap block 0: 7"),
        (one(bat(4096), &u64(0)), "partial, without a bitmap block"),
        (one(bat(0), &u64(6)), "BAT entry offset of block 0: 0 lies over the structure at 0"),
        (one(bat(0), &u64(MIB | 6)), "lies over the structure at 1048576"),
        (one(bat(0), &u64(METADATA | 6)), "lies over the structure at 5242880"),
        (one(bat(0), &u64(BAT | 6)), "lies over the structure at 6291456"),
        (one(bat(0), &u64(99 << 20 | 6)), "beyond the end of the file"),
        (one(bat(0), &u64(!0xf_fff0)), "beyond the end of the file"),
        (one(bat(0), &u64(second_block)), "belongs to another block as well"),
        (one(bat(4096), &u64(second_block & !7 | 6)), "belongs to another block as well"),
    ];
    let mut wrong = Vec::new();
    for (damage, word) in cases {
        for access in [Access::Read, Access::Write] {
            let file = Double::holding(sound.clone());
            for (at, bytes) in &damage {
                // "parent_linkage" is the first text of the locator; its value's first digit is changed to another.
                let at = if word.contains("was changed") { linkage_digit(&file) } else { *at };
                let bytes = if word.contains("was changed") { flipped_digit(&file, at) } else { bytes.clone() };
                write_all(&file, at, &bytes).unwrap();
            }
            if word.contains("sequence") {
                write_all(&file, HEADERS[1] + 16, &[1]).unwrap();
            }
            reseal(&file);
            let opened = match access {
                _ if word == "file identifier" => super::Vhdx::open(Box::new(file), true).map(drop),
                Access::Write => Chain::child_on(Box::new(file), Arc::clone(&parent), None).map(drop),
                _ => super::Vhdx::open(Box::new(file.clone()), true)
                    .and_then(|_| Chain::child_on(Box::new(file), Arc::clone(&parent), None))
                    .map(drop),
            };
            match opened {
                Err(error) if error.to_string().contains(word) => {}
                other => wrong.push(format!("{access:?}: wanted {word:?}, got {other:?}")),
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// Where the first digit of the parent's DataWriteGuid stands in the locator.
fn linkage_digit(file: &Double) -> u64 {
    let bytes = read_vec(file, ITEMS, 4096).unwrap();
    let at = bytes.windows(2).position(|pair| pair == [b'{', 0]).unwrap();
    ITEMS + at as u64 + 2
}

fn flipped_digit(file: &Double, at: u64) -> Vec<u8> {
    let digit = read_vec(file, at, 1).unwrap()[0];
    vec![if digit == b'1' { b'2' } else { b'1' }]
}

/// Uses a disk that was accepted: it must keep what it is told, wherever its other bytes come from.
fn exercise(disk: &Chain) -> Result<(), DiskError> {
    let sectors = disk.size() / SECTOR;
    for start in [0, BLOCK - 6, sectors.saturating_sub(3)] {
        let len = 8.min(sectors.saturating_sub(start));
        if len == 0 {
            continue;
        }
        let mut bytes = vec![0; bytes_of(len)];
        disk.read(start * SECTOR, &mut [IoSliceMut::new(&mut bytes)])?;
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

fn damage() -> impl Strategy<Value = (u64, u8)> {
    let place = prop_oneof![
        HEADERS[0]..HEADERS[0] + 80,
        HEADERS[1]..HEADERS[1] + 80,
        REGION_TABLES[0]..REGION_TABLES[0] + 80,
        REGION_TABLES[1]..REGION_TABLES[1] + 80,
        METADATA..METADATA + 224,
        ITEMS..ITEMS + 400,
        BAT..BAT + 48,
        BAT + 4096 * 8..BAT + 4096 * 8 + 8,
        7 * MIB..7 * MIB + 600,
    ];
    (place, prop_oneof![any::<u8>(), Just(0xff), Just(0)])
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 192, ..ProptestConfig::default() })]

    #[test]
    fn a_damaged_file_is_refused_or_still_a_disk(
        damage in proptest::collection::vec(damage(), 1..6), seals in any::<bool>(), cut in proptest::option::of(0..12 * MIB),
    ) {
        let (contents, parent, _) = sound();
        let spoil = || {
            let file = Double::holding(contents.clone());
            damage.iter().for_each(|&(at, byte)| write_all(&file, at, &[byte]).unwrap());
            if seals {
                reseal(&file);
            }
            if let Some(cut) = cut && cut < file.len().unwrap() {
                file.set_len(cut).unwrap();
            }
            Box::new(file)
        };
        let _ = super::Vhdx::open(spoil(), true).map(|disk| disk.map_range(0, disk.size().min(SECTORS * SECTOR), crate::disk::vhd::sparse::Wait::Block));
        if let Ok(disk) = Chain::child_on(spoil(), parent, None) {
            let _ = exercise(&disk);
        }
        for access in [Access::Read, Access::Write] {
            if let Ok(disk) = Chain::base_on(spoil(), access) {
                let _ = exercise(&disk);
            }
        }
    }

    #[test]
    fn damage_under_a_checksum_is_noticed_or_harmless(
        flips in proptest::collection::vec((0..4usize, 0..4096u64, 1..=255u8), 1..4), cut in proptest::option::of(0..12 * MIB),
    ) {
        let (contents, parent, model) = sound();
        let file = Double::holding(contents);
        let places = [HEADERS[0], HEADERS[1], REGION_TABLES[0], REGION_TABLES[1]];
        for (place, at, flip) in flips {
            let at = places[place] + at;
            let byte = read_vec(&file, at, 1).unwrap()[0];
            write_all(&file, at, &[byte ^ flip]).unwrap();
        }
        if let Some(cut) = cut && cut < file.len().unwrap() {
            file.set_len(cut).unwrap();
        }
        if let Ok(disk) = Chain::child_on(Box::new(file), parent, None) {
            prop_assert!(read(&disk, 0, SECTORS) == model);
        }
    }

    #[test]
    fn a_damaged_log_is_refused_or_leads_to_a_disk_of_old_and_new_sectors(
        flips in proptest::collection::vec((0..6u64, prop_oneof![0..96u64, 0..4096u64], any::<u8>()), 1..5), seals in any::<bool>(),
    ) {
        static DIRTY: OnceLock<(Contents, Option<Arc<Chain>>, Vec<u8>)> = OnceLock::new();
        let make = || {
            let (start, parent, model) = fresh(Kind::Child);
            let disk = Double::holding(start);
            let chain = open(&disk, parent.as_ref(), Mode::Mapped, &Double::new(0), BOOT);
            write(&chain, 5, &pattern(5, 3, 9));
            chain.flush().unwrap();
            (disk.contents(), parent, model)
        };
        let (contents, parent, model) = DIRTY.get_or_init(make);
        let file = Double::holding(contents.clone());
        for (sector, at, byte) in flips {
            write_all(&file, MIB + sector * 4096 + at, &[byte]).unwrap();
        }
        if seals {
            for (at, len) in [(MIB, 8192), (MIB + 8192, 16_384)] {
                let mut bytes = read_vec(&file, at, len).unwrap();
                seal(&mut bytes);
                write_all(&file, at, &bytes).unwrap();
            }
        }
        match super::Vhdx::open(Box::new(file.clone()), true) {
            Ok(disk) if seals => drop(disk.map_range(0, disk.size().min(SECTORS * SECTOR), crate::disk::vhd::sparse::Wait::Block)),
            Ok(_) => {
                let heir = open(&file, parent.as_ref(), Mode::Plain, &Double::new(0), OTHER_BOOT);
                let all = read_once(&heir, 0, SECTORS);
                prop_assert!(all[bytes_of(8)..] == model[bytes_of(8)..] && all[..bytes_of(5)] == model[..bytes_of(5)]);
                for sector in 5..8 {
                    let found = &all[bytes_of(sector)..bytes_of(sector + 1)];
                    let old = &model[bytes_of(sector)..bytes_of(sector + 1)];
                    prop_assert!(found == old || found == pattern(sector, 1, 9), "sector {sector}");
                }
            }
            Err(error) => prop_assert_eq!(error.kind(), ErrorKind::Corrupt),
        }
    }
}
