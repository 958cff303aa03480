//! Power cuts and killed processes, at every moment of random histories, on file doubles.
//!
//! When power is lost, everything before the last barrier is on the device, and of what came after it any choice of
//! sectors. Each sector of the disk must then read as it was at the last flush or as some later write made it. When only
//! the process dies, every change up to that moment is there, and every acknowledged write must be.

use std::io::IoSlice;
use std::sync::Arc;

use proptest::prelude::*;
use uuid::Uuid;

use super::chain::Chain;
use super::double::{Contents, Double, Event, now};
use super::file::{Access, Media, read_vec, write_all};
use super::model::{BOOT, SECTORS, pattern, read, read_once, write};
use super::pending::MAX_MAP;
use super::vhd::Builder;
use super::vhd::NewChild;
use super::vhd::create::write_child;
use super::{Disk, DiskError, ErrorKind, SECTOR};

const OTHER_BOOT: &str = "00000000-0c64-4d0e-93a4-7d8f2b1c5e90";

/// The sectors that the histories touch: the first, those around a block border, and the last.
const WINDOWS: [(u64, u64); 3] = [(0, 48), (4072, 48), (SECTORS - 48, 48)];

#[derive(Debug, Clone)]
enum Step {
    Write(u64, u64, u8),
    Zero(u64, u64),
    Flush,
}

fn step() -> impl Strategy<Value = Step> {
    let range = || {
        (0..WINDOWS.len(), 0..48u64, prop_oneof![Just(1u64), 1..20u64]).prop_map(|(window, from, len)| {
            let (start, size) = WINDOWS[window];
            (start + from, len.min(size - from))
        })
    };
    prop_oneof![
        6 => (range(), 1..=200u8).prop_map(|((start, len), seed)| Step::Write(start, len, seed)),
        2 => range().prop_map(|(start, len)| Step::Zero(start, len)),
        2 => Just(Step::Flush),
    ]
}

/// The kinds of disk that take writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Layout {
    /// A child as we make it.
    Mapped,
    /// A child whose blocks come as they are needed.
    Compact,
    /// A dynamic disk without a parent.
    Dynamic,
}

/// An empty disk, and what it lies on.
fn fresh(layout: Layout) -> (Contents, Option<Arc<Chain>>) {
    let master = Double::new(0);
    let mut builder = Builder::new(&master, SECTORS * SECTOR).unwrap();
    if layout != Layout::Dynamic {
        for (start, len) in WINDOWS {
            builder.write(start * SECTOR, &pattern(start, len / 2, 0xee)).unwrap();
        }
    }
    builder.finish().unwrap();
    if layout == Layout::Dynamic {
        return (master.contents(), None);
    }
    let parent = Arc::new(Chain::base_on(Box::new(master), Access::Read).unwrap());
    let child = Double::new(0);
    write_child(&child, Uuid::new_v4(), &parent, ".\\master.vhd", "/master.vhd", NewChild::default()).unwrap();
    if layout == Layout::Mapped {
        leave_junk(&child, &parent);
    }
    if layout == Layout::Compact {
        let footer = read_vec(&child, 0, 512).unwrap();
        child.set_len(16_384).unwrap();
        write_all(&child, 16_384, &[0xff; 512]).unwrap();
        write_all(&child, 16_896, &footer).unwrap();
    }
    (child.contents(), Some(parent))
}

/// Fills the windows with what a cut may leave: data whose bits never came. It must not come to light.
fn leave_junk(child: &Double, parent: &Arc<Chain>) {
    let chain = Chain::child_on(Box::new(child.clone()), Arc::clone(parent), None).unwrap();
    WINDOWS.iter().for_each(|&(start, len)| write(&chain, start, &pattern(start, len, 0xbb)));
    let header = chain.sparse().unwrap().header();
    for entry in read_vec(child, header.table_offset(), 12).unwrap().chunks_exact(4) {
        let sector = u32::from_be_bytes(entry.try_into().unwrap());
        write_all(child, u64::from(sector) * SECTOR, &[0; 512]).unwrap();
    }
}

fn open(disk: Double, parent: Option<&Arc<Chain>>, pending: Option<Double>, boot_id: &str) -> Chain {
    match parent {
        None => Chain::base_on(Box::new(disk), Access::Write).unwrap(),
        Some(parent) => {
            let pending = pending.map(|double| (Box::new(double) as Box<dyn Media>, boot_id.to_owned()));
            Chain::child_on(Box::new(disk), Arc::clone(parent), pending).unwrap()
        }
    }
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

fn index(sector: u64) -> usize {
    let mut before = 0;
    for (start, len) in WINDOWS {
        if (start..start + len).contains(&sector) {
            return usize::try_from(before + sector - start).unwrap();
        }
        before += len;
    }
    panic!("sector {sector} lies in no window");
}

/// When a step began and ended, and what the windows held then.
struct Done {
    began: u64,
    ended: u64,
    flush: bool,
    tags: Vec<u8>,
}

/// Does the steps. The first entry is the disk as it was opened.
fn history(disk: &Chain, steps: &[Step]) -> Vec<Done> {
    let mut tags = tags(disk);
    let mut done = vec![Done { began: 0, ended: 0, flush: true, tags: tags.clone() }];
    for step in steps {
        let began = now();
        match *step {
            Step::Write(start, len, seed) => {
                write(disk, start, &pattern(start, len, seed));
                (start..start + len).for_each(|sector| tags[index(sector)] = seed);
            }
            Step::Zero(start, len) => {
                disk.zero(start * SECTOR, len * SECTOR).unwrap();
                (start..start + len).for_each(|sector| tags[index(sector)] = 0);
            }
            Step::Flush => disk.flush().unwrap(),
        }
        done.push(Done { began, ended: now(), flush: matches!(step, Step::Flush), tags: tags.clone() });
    }
    done
}

/// The contents of a file when all its events before a moment had happened.
fn contents_at(mut contents: Contents, events: &[(u64, Event)], moment: u64) -> Contents {
    for (_, event) in events.iter().take_while(|(at, _)| *at < moment) {
        contents.apply(event, &mut || true);
    }
    contents
}

/// Cuts the power before every event, and checks what a new boot finds.
fn cut_everywhere(layout: Layout, steps: &[Step], seed: u64) {
    let (start, parent) = fresh(layout);
    let (disk, pending) = (Double::holding(start.clone()), Double::new(0));
    let done = {
        let chain = open(disk.clone(), parent.as_ref(), Some(pending.clone()), BOOT);
        history(&chain, steps)
    };
    let events = disk.events();
    let mut random = seed | 1;
    let mut durable = start;
    let mut since: Vec<&Event> = Vec::new();
    let moments = events.iter().map(|(at, _)| *at).chain([now()]);
    for (n, moment) in moments.enumerate() {
        let flushed = done.iter().rposition(|step| step.flush && step.ended <= moment).unwrap();
        let possible = &done[flushed..=done.iter().rposition(|step| step.began <= moment).unwrap()];
        for odds in [0u64, 4, 7, 8] {
            let mut keeps = || {
                random ^= random << 13;
                random ^= random >> 7;
                random ^= random << 17;
                random % 8 < odds
            };
            let mut contents = durable.clone();
            since.iter().for_each(|event| contents.apply(event, &mut keeps));
            let map = Double::holding(contents_at(Contents::default(), &pending.events(), moment));
            let after = tags(&open(Double::holding(contents), parent.as_ref(), Some(map), OTHER_BOOT));
            for (at, tag) in after.iter().enumerate() {
                let allowed: Vec<_> = possible.iter().map(|step| step.tags[at]).collect();
                assert!(
                    allowed.contains(tag),
                    "{layout:?}, cut before event {n}: sector {at} of the windows holds {tag}, not one of {allowed:?}"
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
fn kill_everywhere(layout: Layout, steps: &[Step], with_map: bool) {
    let (start, parent) = fresh(layout);
    let (disk, pending) = (Double::holding(start.clone()), Double::new(0));
    let done = {
        let chain = open(disk.clone(), parent.as_ref(), with_map.then(|| pending.clone()), BOOT);
        history(&chain, steps)
    };
    let (events, map_events) = (disk.events(), pending.events());
    let mut moments: Vec<u64> = events.iter().chain(&map_events).map(|(at, _)| *at).chain([now()]).collect();
    moments.sort_unstable();
    for moment in moments {
        let disk = Double::holding(contents_at(start.clone(), &events, moment));
        let map = Double::holding(contents_at(Contents::default(), &map_events, moment));
        let acknowledged = done.iter().rposition(|step| step.ended <= moment).unwrap();
        let possible = &done[acknowledged..=done.iter().rposition(|step| step.began <= moment).unwrap()];
        // The second opening finds what the first one has put right.
        for _ in 0..2 {
            let chain = open(disk.clone(), parent.as_ref(), with_map.then(|| map.clone()), BOOT);
            for (at, tag) in tags(&chain).iter().enumerate() {
                let allowed: Vec<_> = possible.iter().map(|step| step.tags[at]).collect();
                assert!(
                    allowed.contains(tag),
                    "{layout:?}: sector {at} of the windows holds {tag}, not one of {allowed:?}"
                );
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, max_shrink_iters: 400, ..ProptestConfig::default() })]

    #[test]
    fn after_a_power_cut_each_sector_is_old_or_new_and_flushed_ones_are_new(
        steps in proptest::collection::vec(step(), 1..16), seed in any::<u64>(),
    ) {
        for layout in [Layout::Mapped, Layout::Compact, Layout::Dynamic] {
            cut_everywhere(layout, &steps, seed);
        }
    }

    #[test]
    fn after_the_death_of_the_process_every_acknowledged_write_is_there(
        steps in proptest::collection::vec(step(), 1..16), with_map in any::<bool>(),
    ) {
        for layout in [Layout::Mapped, Layout::Compact, Layout::Dynamic] {
            kill_everywhere(layout, &steps, with_map);
        }
    }
}

#[test]
fn a_write_that_cannot_be_recorded_is_settled_before_it_is_acknowledged() {
    let (start, parent) = fresh(Layout::Mapped);
    let (disk, pending) = (Double::holding(start), Double::new(0));
    let chain = open(disk.clone(), parent.as_ref(), Some(pending.clone()), BOOT);
    pending.break_now(true);
    let bytes = pattern(5, 3, 9);
    write(&chain, 5, &bytes);
    drop(chain);
    assert!(matches!(disk.events().last(), Some((_, Event::Sync))), "a barrier comes last");
    let chain = open(Double::holding(disk.contents()), parent.as_ref(), None, OTHER_BOOT);
    assert_eq!(read(&chain, 5, 3), bytes);
}

#[test]
fn after_a_failed_barrier_nothing_more_is_believed() {
    let (start, parent) = fresh(Layout::Mapped);
    let disk = Double::holding(start);
    let chain = open(disk.clone(), parent.as_ref(), Some(Double::new(0)), BOOT);
    write(&chain, 5, &pattern(5, 3, 9));
    disk.break_now(true);
    assert_eq!(chain.flush().unwrap_err().kind(), ErrorKind::NoSpace);
    disk.break_now(false);
    assert!(matches!(chain.flush(), Err(DiskError::Failed { .. })));
    assert!(matches!(chain.write(0, &[IoSlice::new(&[0; 512])]), Err(DiskError::Failed { .. })));
    assert!(chain.dirty());
}

#[test]
fn the_pending_map_stays_within_its_bound_by_settling() {
    let blocks = 40;
    let master = Double::new(0);
    Builder::new(&master, blocks << 21).unwrap().finish().unwrap();
    let parent = Arc::new(Chain::base_on(Box::new(master), Access::Read).unwrap());
    let (child, pending) = (Double::new(0), Double::new(0));
    write_child(&child, Uuid::new_v4(), &parent, ".\\master.vhd", "/master.vhd", NewChild::default()).unwrap();
    let chain = open(child, Some(&parent), Some(pending.clone()), BOOT);
    let mut longest = 0;
    for sector in (0..blocks * 4096).step_by(2) {
        chain.write(sector * SECTOR, &[IoSlice::new(&[1; 512])]).unwrap();
        longest = longest.max(pending.len().unwrap());
    }
    assert!((MAX_MAP / 2..MAX_MAP + 4096).contains(&longest), "{longest}");
    assert!(pending.len().unwrap() < MAX_MAP / 2);
}

#[test]
fn readers_beside_a_writer_see_each_sector_old_or_new() {
    for layout in [Layout::Mapped, Layout::Compact] {
        let (start, parent) = fresh(layout);
        let chain = open(Double::holding(start), parent.as_ref(), Some(Double::new(0)), BOOT);
        let writing = std::sync::atomic::AtomicBool::new(true);
        std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    let mut seen = vec![0xee; index(SECTORS - 1) + 1];
                    while writing.load(std::sync::atomic::Ordering::Relaxed) {
                        for (seen, now) in seen.iter_mut().zip(tags(&chain)) {
                            // Rounds go up; the parent's bytes and zeros come before all of them.
                            let round = |tag: u8| if tag == 0xee { 0 } else { tag };
                            assert!(round(now) >= round(*seen), "sector went back from {seen} to {now}");
                            *seen = now;
                        }
                    }
                });
            }
            for round in 1..=40 {
                for (start, len) in WINDOWS {
                    for sector in (start..start + len).step_by(5) {
                        write(&chain, sector, &pattern(sector, 1, round));
                    }
                }
                if round % 8 == 0 {
                    chain.flush().unwrap();
                }
            }
            writing.store(false, std::sync::atomic::Ordering::Relaxed);
        });
    }
}

#[test]
fn a_volatile_disk_outlives_the_process_without_a_barrier_and_the_power_once_it_is_kept() {
    let (start, parent) = fresh(Layout::Mapped);
    let parent = parent.unwrap();
    let disk = Double::holding(start);
    let syncs = || disk.events().iter().filter(|(_, event)| matches!(event, Event::Sync)).count();
    let chain = Chain::volatile_on(Box::new(disk.clone()), Arc::clone(&parent)).unwrap();
    let before = syncs();
    for sector in [0, 1, 4095, 4096, SECTORS - 1] {
        write(&chain, sector, &pattern(sector, 1, 7));
        chain.flush().unwrap();
    }
    assert_eq!(syncs(), before, "a flush waits for nothing");
    // The process dies: all changes are there, and its successor reads what was acknowledged.
    let copy = Double::holding(disk.contents());
    let heir = Chain::volatile_on(Box::new(copy), Arc::clone(&parent)).unwrap();
    assert_eq!(tags(&heir), tags(&chain));

    chain.keep_on(Box::new(Double::new(0)), BOOT).unwrap();
    assert!(syncs() > before && !chain.is_volatile(), "what was acknowledged is on the device");
    let (_, last) = disk.events().pop().unwrap();
    assert!(matches!(last, Event::Sync), "nothing was changed after the barrier: {last:?}");
    write(&chain, 9, &pattern(9, 1, 8));
    let before = syncs();
    chain.flush().unwrap();
    assert!(syncs() > before, "a flush is a flush again");
}
