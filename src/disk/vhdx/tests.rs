//! VHDX at work on file doubles: against a vector of bytes, under power cuts and killed processes, and on damaged files.

use std::io::{IoSlice, IoSliceMut};
use std::sync::Arc;

use proptest::prelude::*;

use super::create::{Spec, create_on, write_child};
use super::wire::{HEADERS, MIB, REGION_TABLES, seal};
use crate::disk::chain::{Chain, MAX_DEPTH};
use crate::disk::double::{Contents, Double, Event, now};
use crate::disk::file::{Access, Media, read_vec, write_all};
use crate::disk::model::{BOOT, SECTORS, pattern, read, read_once, write};
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

fn child_of(parent: &Chain) -> Double {
    let child = Double::new(0);
    write_child(&child, parent, ".\\master.vhdx", "/master.vhdx", 1 << 20).unwrap();
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
    #![proptest_config(ProptestConfig { cases: 24, max_shrink_iters: 400, ..ProptestConfig::default() })]

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
        let odds: &[u64] = if moment < first { &[] } else { &[0, 4, 7, 8] };
        for &odds in odds {
            let mut keeps = || {
                random ^= random << 13;
                random ^= random >> 7;
                random ^= random << 17;
                random % 8 < odds
            };
            let mut contents = durable.clone();
            since.iter().for_each(|event| contents.apply(event, &mut keeps));
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
    #![proptest_config(ProptestConfig { cases: 4, max_shrink_iters: 200, ..ProptestConfig::default() })]

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
