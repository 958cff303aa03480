//! Power cuts and killed processes, at every moment of random histories, on file doubles.
//!
//! When power is lost, everything before the last barrier is on the device, and of what came after it any choice of
//! sectors, or of whole writes (of a long write chance hardly ever keeps every sector). Each sector of the disk must then read as it was at the last flush or as some later write made it. When only
//! the process dies, every change up to that moment is there, and every acknowledged write must be.
//!
//! A *case* is one moment and one choice, replayed into a file that the real code opens. Whether the harness would notice is
//! tested as well: [`Fault`]s are planted into recorded histories, and each must be caught.
//!
//! A format joins by an entry in [`FORMATS`].

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::io::{IoSlice, IoSliceMut};
use std::sync::Arc;

use proptest::prelude::*;
use proptest::test_runner::TestRunner;
use uuid::Uuid;

use super::cache::tests::within_much_or_little;
use super::chain::Chain;
use super::double::{Contents, Double, Event, now};
use super::file::{Access, Media, read_vec, write_all};
use super::model::{BOOT, SECTORS, at, pattern, read, rounds, write};
use super::pending::MAX_MAP;
use super::vhd::create::write_child;
use super::vhd::{Builder, Footer, Header, Kind, Layout, NewChild};
use super::vhdx::{self, Spec};
use super::{Disk, DiskError, ErrorKind, SECTOR};

const OTHER_BOOT: &str = "00000000-0c64-4d0e-93a4-7d8f2b1c5e90";

/// Cases of each format in a quick run.
const CASES: u64 = 1000;
/// Cases for which there is a history at least: some formats have many moments in one.
const CASES_A_HISTORY: u64 = 200;
/// Steps of a history.
const STEPS: std::ops::Range<usize> = 20..32;
/// Histories in which a planted fault must have shown itself.
const HISTORIES: u32 = 60;

/// The sectors that the histories touch: the first, those around a block border, and the last.
const WINDOWS: [(u64, u64); 3] = [(0, 48), (4072, 48), (SECTORS - 48, 48)];

#[derive(Debug, Clone)]
enum Step {
    Write(u64, u64, u8),
    Zero(u64, u64),
    Flush,
    /// The process ends, orderly or not, and another opens the disk.
    Reopen,
}

fn step() -> impl Strategy<Value = Step> {
    let range = || {
        (0..WINDOWS.len(), 0..48u64, prop_oneof![Just(1u64), 1..20u64]).prop_map(|(window, from, len)| {
            let (start, size) = WINDOWS[window];
            (start + from, len.min(size - from))
        })
    };
    prop_oneof![
        12 => (range(), 1..=200u8).prop_map(|((start, len), seed)| Step::Write(start, len, seed)),
        4 => range().prop_map(|(start, len)| Step::Zero(start, len)),
        4 => Just(Step::Flush),
        1 => Just(Step::Reopen),
    ]
}

/// A kind of disk that takes writes, on doubles.
struct Format {
    name: &'static str,
    /// An empty disk in blocks of so many bytes, and what it lies on.
    fresh: fn(u32) -> (Contents, Option<Arc<Chain>>),
    /// What a write to a file of this kind is, by the file as it is in the end.
    part: fn(&Double, u64) -> Part,
    /// The faults that its order of writes must not have.
    faults: &'static [Fault],
}

/// What lies at an offset of a disk file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    /// Says of a sector that it is here.
    Bit,
    /// Says of a block where it is.
    Entry,
    /// Changes of metadata, before they are made in their places.
    Log,
    /// Says where such a log is.
    Header,
    Other,
}

/// What a format's code might do wrong, planted into the history of code that does it right.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    /// Bits are written before the barrier that makes their data durable.
    BitBeforeData,
    /// An entry is written before the barrier that makes the bitmap and the space that it points to durable.
    EntryBeforeBitmap,
    /// There is no barrier between what is written first and the metadata that shows it.
    NoBarrierBeforeMetadata,
    /// A flush ends without its last barrier.
    NoBarrierAtFlush,
    /// Metadata is written after the barrier that should make it durable.
    MetadataAfterBarrier,
    /// A log entry is written before the barrier that makes the data durable which it shows.
    LogBeforeData,
    /// A log is pointed to before the barrier that makes its first entry durable.
    HeaderBeforeLog,
    /// A log entry is written after the barrier that should make it durable.
    LogAfterBarrier,
    /// The second half of a log entry is.
    LogTorn,
}

static FORMATS: &[Format] = &[
    Format {
        name: "raw",
        fresh: |_| (Double::new(SECTORS * SECTOR).contents(), None),
        part: |_, _| Part::Other,
        faults: &[Fault::NoBarrierAtFlush],
    },
    Format {
        name: "VHD, fixed",
        fresh: |_| {
            let disk = Double::new(SECTORS * SECTOR);
            let footer = Footer::new(Kind::Fixed, SECTORS * SECTOR, Uuid::new_v4());
            write_all(&disk, SECTORS * SECTOR, footer.as_bytes()).unwrap();
            (disk.contents(), None)
        },
        part: |_, _| Part::Other,
        faults: &[Fault::NoBarrierAtFlush],
    },
    Format {
        name: "VHD, dynamic",
        fresh: |block_size| {
            let disk = Double::new(0);
            Builder::with_blocks(&disk, SECTORS * SECTOR, block_size).unwrap().finish().unwrap();
            (disk.contents(), None)
        },
        part: vhd_part,
        // Its bits are all ones before there is data, so they cannot come too early.
        faults: &[
            Fault::EntryBeforeBitmap,
            Fault::NoBarrierBeforeMetadata,
            Fault::NoBarrierAtFlush,
            Fault::MetadataAfterBarrier,
        ],
    },
    Format {
        name: "VHD, differencing, pre-mapped",
        fresh: |block_size| vhd_child(Layout::Mapped, block_size),
        part: vhd_part,
        // It writes no entries.
        faults: &[
            Fault::BitBeforeData,
            Fault::NoBarrierBeforeMetadata,
            Fault::NoBarrierAtFlush,
            Fault::MetadataAfterBarrier,
        ],
    },
    Format {
        name: "VHD, differencing, compact",
        fresh: |block_size| vhd_child(Layout::Compact, block_size),
        part: vhd_part,
        faults: &[
            Fault::BitBeforeData,
            Fault::EntryBeforeBitmap,
            Fault::NoBarrierBeforeMetadata,
            Fault::NoBarrierAtFlush,
            Fault::MetadataAfterBarrier,
        ],
    },
    Format {
        name: "VHDX, fixed",
        fresh: |block_size| (vhdx_base(block_size, 512, true).contents(), None),
        part: vhdx_part,
        faults: &[Fault::NoBarrierAtFlush],
    },
    Format {
        name: "VHDX, dynamic",
        fresh: |block_size| (vhdx_base(block_size, 512, false).contents(), None),
        part: vhdx_part,
        // A block without its data is zeros, as before, so that its log entry cannot come too early.
        faults: VHDX_FAULTS,
    },
    Format {
        name: "VHDX, differencing",
        fresh: |block_size| vhdx_child(block_size, 512),
        part: vhdx_part,
        faults: VHDX_CHILD_FAULTS,
    },
    Format {
        name: "VHDX, differencing, sectors of 4096 bytes",
        fresh: |block_size| vhdx_child(block_size, 4096),
        part: vhdx_part,
        faults: VHDX_CHILD_FAULTS,
    },
];

const VHDX_FAULTS: &[Fault] =
    &[Fault::HeaderBeforeLog, Fault::LogAfterBarrier, Fault::LogTorn, Fault::NoBarrierAtFlush];
const VHDX_CHILD_FAULTS: &[Fault] = &[
    Fault::LogBeforeData,
    Fault::HeaderBeforeLog,
    Fault::LogAfterBarrier,
    Fault::LogTorn,
    Fault::NoBarrierBeforeMetadata,
    Fault::NoBarrierAtFlush,
];

/// The usual block.
const BLOCK: u32 = 2 << 20;
/// Blocks that the histories are tried with.
const BLOCK_SIZES: [u32; 3] = [4 << 10, 64 << 10, BLOCK];

fn vhd_child(layout: Layout, block_size: u32) -> (Contents, Option<Arc<Chain>>) {
    let master = Double::new(0);
    let mut builder = Builder::new(&master, SECTORS * SECTOR).unwrap();
    for (start, len) in WINDOWS {
        builder.write(start * SECTOR, &pattern(start, len / 2, 0xee)).unwrap();
    }
    builder.finish().unwrap();
    let parent = Arc::new(Chain::base_on(Box::new(master), Access::Read).unwrap());
    let child = Double::new(0);
    let new = NewChild { layout, block_size, size: None };
    write_child(&child, Uuid::new_v4(), &parent, ".\\master.vhd", "/master.vhd", new).unwrap();
    (child.contents(), Some(parent))
}

fn vhd_part(file: &Double, offset: u64) -> Part {
    let (footer, _) = Footer::read(file).unwrap();
    let header = Header::parse(&read_vec(file, footer.header_offset(), 1024).unwrap(), footer.size()).unwrap();
    let table = header.table_offset()..header.table_offset() + header.table_size();
    if table.contains(&offset) {
        return Part::Entry;
    }
    let entries = read_vec(file, table.start, usize::try_from(header.table_size()).unwrap()).unwrap();
    let is_bitmap = |entry: &[u8]| {
        let at = u64::from(u32::from_be_bytes(entry.try_into().unwrap())) * SECTOR;
        (at..at + header.bitmap_size()).contains(&offset)
    };
    // A dynamic disk's bitmaps are written with its space.
    if footer.kind() == Kind::Differencing && entries.chunks_exact(4).any(is_bitmap) { Part::Bit } else { Part::Other }
}

fn vhdx_base(block_size: u32, logical_sector: u32, fixed: bool) -> Double {
    let disk = Double::new(0);
    let block_size = block_size.max(1 << 20);
    let spec = Spec { size: SECTORS * SECTOR, fixed, block_size, logical_sector, physical_sector: 4096 };
    vhdx::create::create_on(&disk, &spec).unwrap();
    disk
}

fn vhdx_child(block_size: u32, logical_sector: u32) -> (Contents, Option<Arc<Chain>>) {
    let master = vhdx_base(BLOCK, logical_sector, false);
    let disk = Chain::base_on(Box::new(master.clone()), Access::Write).unwrap();
    for (start, len) in WINDOWS {
        write(&disk, start, &pattern(start, len / 2, 0xee));
    }
    drop(disk);
    let parent = Arc::new(Chain::base_on(Box::new(master), Access::Read).unwrap());
    let child = Double::new(0);
    let new = vhdx::create::NewChild { block_size: block_size.max(1 << 20), ..Default::default() };
    vhdx::create::write_child(&child, &parent, ".\\master.vhdx", "/master.vhdx", new).unwrap();
    (child.contents(), Some(parent))
}

fn vhdx_part(file: &Double, offset: u64) -> Part {
    use vhdx::wire::{Entry, HEADERS, Header, Metadata, Regions};
    let (header, ..) = Header::read(file).unwrap();
    let (regions, _) = Regions::read(file, &header).unwrap();
    let metadata = Metadata::read(file, &regions.metadata).unwrap();
    let log = header.log_offset..header.log_offset + u64::from(header.log_length);
    let bitmap = read_vec(file, regions.bat.start + u64::from(metadata.bitmap_entry(0)) * 8, 8).unwrap();
    let bitmap = Entry(u64::from_le_bytes(bitmap.try_into().unwrap())).at();
    match offset {
        offset if HEADERS.contains(&offset) => Part::Header,
        offset if log.contains(&offset) => Part::Log,
        offset if regions.bat.contains(&offset) => Part::Entry,
        offset if bitmap.is_some_and(|at| (at..at + (1 << 20)).contains(&offset)) => Part::Bit,
        _ => Part::Other,
    }
}

impl Fault {
    /// The history of code that has this fault.
    fn plant(self, mut events: Vec<(u64, Event)>, part: &dyn Fn(u64) -> Part) -> Vec<(u64, Event)> {
        let is = |event: &(u64, Event), wanted: &[Part]| match &event.1 {
            Event::Write(offset, Ok(_)) => wanted.contains(&part(*offset)),
            _ => false,
        };
        let is_sync = |event: &(u64, Event)| matches!(event.1, Event::Sync);
        let metadata = &[Part::Bit, Part::Entry, Part::Log, Part::Header][..];
        let mut n = 0;
        while n < events.len() {
            let run = |wanted| events[n + 1..].iter().take_while(|event| is(event, wanted)).count();
            let early: Option<&[Part]> = match self {
                Self::BitBeforeData => Some(&[Part::Bit]),
                Self::EntryBeforeBitmap => Some(&[Part::Entry]),
                Self::LogBeforeData => Some(&[Part::Log]),
                Self::HeaderBeforeLog => Some(&[Part::Header]),
                _ => None,
            };
            match self {
                // The barrier comes after what should follow it.
                _ if early.is_some() && is_sync(&events[n]) => {
                    let moved = run(early.unwrap());
                    shift(&mut events[n..=n + moved]);
                    n += moved;
                }
                Self::NoBarrierBeforeMetadata if is_sync(&events[n]) && run(metadata) > 0 => {
                    events.remove(n);
                    continue;
                }
                Self::NoBarrierAtFlush if is_sync(&events[n]) && run(metadata) == 0 => {
                    events.remove(n);
                    continue;
                }
                Self::LogTorn if is(&events[n], &[Part::Log]) => {
                    let Some(sync) = events[n..].iter().position(is_sync) else { break };
                    let (at, Event::Write(offset, Ok(bytes))) = &events[n] else { unreachable!("a log entry") };
                    let (at, (first, second)) = (*at, bytes.split_at(bytes.len() / 2));
                    let late = Event::Write(offset + first.len() as u64, Ok(second.to_vec()));
                    events[n].1 = Event::Write(*offset, Ok(first.to_vec()));
                    events.insert(n + sync + 1, (at.max(events[n + sync].0), late));
                }
                Self::LogAfterBarrier if is(&events[n], &[Part::Log]) => {
                    let Some(sync) = events[n..].iter().position(is_sync) else { break };
                    shift(&mut events[n..=n + sync]);
                    n += sync;
                }
                Self::MetadataAfterBarrier if is(&events[n], metadata) => {
                    let Some(sync) = events[n..].iter().position(is_sync) else { break };
                    // All of it up to that barrier, in order.
                    let end = n + sync;
                    let mut moved = 0;
                    for at in (n..end).rev() {
                        if is(&events[at], metadata) {
                            shift(&mut events[at..=end - moved]);
                            moved += 1;
                        }
                    }
                    n = end;
                }
                _ => {}
            }
            n += 1;
        }
        events
    }
}

/// Moves the first event behind all the others; the moments stay in order.
fn shift(events: &mut [(u64, Event)]) {
    for n in 1..events.len() {
        let (before, after) = events.split_at_mut(n);
        std::mem::swap(&mut before[n - 1].1, &mut after[0].1);
    }
}

fn open(disk: Double, parent: Option<&Arc<Chain>>, pending: Option<Double>, boot_id: &str) -> Result<Chain, DiskError> {
    match parent {
        None => Chain::base_on(Box::new(disk), Access::Write),
        Some(parent) => {
            let pending = pending.map(|double| (Box::new(double) as Box<dyn Media>, boot_id.to_owned()));
            Chain::child_on(Box::new(disk), Arc::clone(parent), pending)
        }
    }
}

/// What each sector of the windows holds: the seed of its pattern, or 0 for zeros. An error tells of a sector that holds
/// what nobody ever wrote.
fn tags(disk: &Chain) -> Result<Vec<u8>, String> {
    let mut tags = Vec::new();
    for (start, len) in WINDOWS {
        let mut bytes = vec![0xa5; at(len)];
        disk.read(start * SECTOR, &mut [IoSliceMut::new(&mut bytes)]).map_err(|error| error.to_string())?;
        for (sector, bytes) in (start..).zip(bytes.chunks_exact(512)) {
            let seed = bytes[511];
            if !bytes.iter().all(|&byte| byte == 0) && bytes != pattern(sector, 1, seed) {
                return Err(format!("sector {sector} holds what was never written: {:02x?}..", &bytes[..12]));
            }
            tags.push(seed);
        }
    }
    Ok(tags)
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

/// Does the steps on the disk that `open` gives. The first entry is the disk as it was opened.
fn history(open: &dyn Fn() -> Chain, steps: &[Step]) -> Vec<Done> {
    let mut disk = open();
    let mut tags = tags(&disk).unwrap();
    let mut done = vec![Done { began: 0, ended: 0, flush: true, tags: tags.clone() }];
    for step in steps {
        let began = now();
        match *step {
            Step::Write(start, len, seed) => {
                write(&disk, start, &pattern(start, len, seed));
                (start..start + len).for_each(|sector| tags[index(sector)] = seed);
            }
            Step::Zero(start, len) => {
                disk.zero(start * SECTOR, len * SECTOR).unwrap();
                (start..start + len).for_each(|sector| tags[index(sector)] = 0);
            }
            Step::Flush => disk.flush().unwrap(),
            Step::Reopen => {
                drop(disk);
                disk = open();
            }
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

/// Random numbers that follow from a seed.
pub(super) struct Random(pub(super) u64);

impl Random {
    pub(super) fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }
}

/// What the device holds when the power goes before a moment: all up to the last barrier, and of each later sector that
/// was written as `keeps` says.
fn cut(start: &Contents, events: &[(u64, Event)], moment: u64, keeps: &mut dyn FnMut() -> bool) -> Contents {
    let before = events.partition_point(|(at, _)| *at < moment);
    let durable = events[..before].iter().rposition(|(_, event)| matches!(event, Event::Sync)).unwrap_or(0);
    let mut contents = start.clone();
    events[..durable].iter().for_each(|(_, event)| contents.apply(event, &mut || true));
    events[durable..before].iter().for_each(|(_, event)| contents.apply(event, keeps));
    contents
}

/// A history to cut: what came before it, its own steps, and what chance decides.
type Plan = (Vec<Step>, Vec<Step>, u64);

fn plan() -> impl Strategy<Value = Plan> {
    let steps = || proptest::collection::vec(step(), STEPS);
    (proptest::collection::vec(step(), 0..12), steps(), any::<u64>())
}

/// A disk that lost its power once already: what a cut may leave must not come to light later.
fn scarred(format: &Format, before: &[Step], random: &mut Random) -> (Contents, Option<Arc<Chain>>) {
    let block_size = BLOCK_SIZES[usize::try_from(random.next() % 3).unwrap()];
    let (start, parent) = (format.fresh)(block_size);
    let disk = Double::holding(start.clone());
    history(&|| open(disk.clone(), parent.as_ref(), Some(Double::new(0)), BOOT).unwrap(), before);
    let events = disk.events();
    let moment = events.get(usize::try_from(random.next()).unwrap() % events.len().max(1)).map_or(0, |(at, _)| *at);
    (cut(&start, &events, moment, &mut || random.next().is_multiple_of(2)), parent)
}

/// Cuts the power before every event, and checks what a new boot finds. The number of cases, or what was found.
fn cut_everywhere(format: &Format, (before, steps, seed): &Plan, fault: Option<Fault>) -> Result<u64, String> {
    let mut random = Random(seed | 1);
    let (start, parent) = scarred(format, before, &mut random);
    let (disk, pending) = (Double::holding(start.clone()), Double::new(0));
    let done = history(&|| open(disk.clone(), parent.as_ref(), Some(pending.clone()), BOOT).unwrap(), steps);
    let end = now();
    let mut events = disk.events();
    if let Some(fault) = fault {
        let (after, known) = (Double::holding(disk.contents()), RefCell::new(HashMap::new()));
        let part = |offset| *known.borrow_mut().entry(offset).or_insert_with(|| (format.part)(&after, offset));
        events = fault.plant(events, &part);
    }
    let map_events = pending.events();
    let mut durable = start;
    let mut since: Vec<&Event> = Vec::new();
    let mut cases = 0;
    let moments: Vec<u64> = events.iter().map(|(at, _)| *at).chain([end]).collect();
    for (n, moment) in moments.into_iter().enumerate() {
        let flushed = done.iter().rposition(|step| step.flush && step.ended <= moment).unwrap();
        let possible = &done[flushed..=done.iter().rposition(|step| step.began <= moment).unwrap()];
        for (odds, whole) in [(0u64, true), (4, false), (7, false), (4, true), (6, true), (8, true)] {
            let mut contents = durable.clone();
            for event in &since {
                let kept = random.next() % 8 < odds;
                contents.apply(event, &mut || if whole { kept } else { random.next() % 8 < odds });
            }
            let map = Double::holding(contents_at(Contents::default(), &map_events, moment));
            let found = open(Double::holding(contents), parent.as_ref(), Some(map), OTHER_BOOT);
            let after = tags(&found.map_err(|error| error.to_string())?)?;
            cases += 1;
            for (at, tag) in after.iter().enumerate() {
                let allowed: Vec<_> = possible.iter().map(|step| step.tags[at]).collect();
                if !allowed.contains(tag) {
                    return Err(format!("sector {at} of the windows holds {tag}, not one of {allowed:?}"));
                }
            }
            if since.is_empty() {
                break; // nothing to choose from
            }
        }
        match events.get(n) {
            Some((_, Event::Sync)) => since.drain(..).for_each(|event| durable.apply(event, &mut || true)),
            Some((_, event)) => since.push(event),
            None => {}
        }
    }
    Ok(cases)
}

/// How a disk is opened that is to survive the death of its process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Promise {
    Plain,
    Kept,
    Volatile,
}

/// Ends the process before every event, of the disk and of its map, and checks what its successor finds.
fn kill_everywhere(format: &Format, (before, steps, seed): &Plan, promise: Promise) -> Result<u64, String> {
    let (start, parent) = scarred(format, before, &mut Random(seed | 1));
    let (disk, pending) = (Double::holding(start.clone()), Double::new(0));
    let open = |disk: &Double, map: &Double| match (&parent, promise) {
        (Some(parent), Promise::Volatile) => Chain::volatile_on(Box::new(disk.clone()), Arc::clone(parent)),
        (parent, _) => open(disk.clone(), parent.as_ref(), (promise == Promise::Kept).then(|| map.clone()), BOOT),
    };
    let done = history(&|| open(&disk, &pending).unwrap(), steps);
    let (events, map_events) = (disk.events(), pending.events());
    let mut moments: Vec<u64> = events.iter().chain(&map_events).map(|(at, _)| *at).chain([now()]).collect();
    moments.sort_unstable();
    for &moment in &moments {
        let disk = Double::holding(contents_at(start.clone(), &events, moment));
        let map = Double::holding(contents_at(Contents::default(), &map_events, moment));
        let acknowledged = done.iter().rposition(|step| step.ended <= moment).unwrap();
        let possible = &done[acknowledged..=done.iter().rposition(|step| step.began <= moment).unwrap()];
        // The second opening finds what the first one has put right.
        for _ in 0..2 {
            let found = tags(&open(&disk, &map).map_err(|error| error.to_string())?)?;
            for (at, tag) in found.iter().enumerate() {
                let allowed: Vec<_> = possible.iter().map(|step| step.tags[at]).collect();
                if !allowed.contains(tag) {
                    return Err(format!("sector {at} of the windows holds {tag}, not one of {allowed:?}"));
                }
            }
        }
    }
    Ok(moments.len() as u64)
}

/// Tries random histories of each format until there were enough cases, and prints how many.
fn try_all(what: &str, cases: u64, run: impl Fn(&Format, &Plan) -> Result<u64, String> + Sync) {
    let one = |format: &Format| {
        let (counted, histories) = (Cell::new(0), Cell::new(0));
        while counted.get() < cases || histories.get() < cases / CASES_A_HISTORY {
            let config =
                ProptestConfig { cases: 1, max_shrink_iters: 400, failure_persistence: None, ..Default::default() };
            let tested = TestRunner::new(config).run(&plan(), |plan| {
                let cases = within_much_or_little(plan.2, || run(format, &plan)).map_err(TestCaseError::fail)?;
                counted.set(counted.get() + cases);
                histories.set(histories.get() + 1);
                Ok(())
            });
            tested.unwrap_or_else(|error| panic!("{}: {error}", format.name));
        }
        println!("{what}: {}: {} cases in {} histories, none wrong", format.name, counted.get(), histories.get());
    };
    std::thread::scope(|scope| FORMATS.iter().for_each(|format| drop(scope.spawn(|| one(format)))));
}

#[test]
fn after_a_power_cut_each_sector_is_old_or_new_and_flushed_ones_are_new() {
    try_all("power cuts", CASES * u64::from(rounds()), |format, plan| cut_everywhere(format, plan, None));
}

#[test]
fn after_the_death_of_the_process_every_acknowledged_write_is_there() {
    try_all("process deaths", CASES * u64::from(rounds()), |format, plan| {
        let promises = [Promise::Plain, Promise::Kept, Promise::Volatile];
        promises.into_iter().map(|promise| kill_everywhere(format, plan, promise)).sum()
    });
}

/// Whether histories with a fault are caught, and by what.
fn caught(format: &Format, fault: Fault) -> Option<String> {
    let config =
        ProptestConfig { cases: HISTORIES, max_shrink_iters: 0, failure_persistence: None, ..Default::default() };
    let tested = TestRunner::new(config)
        .run(&plan(), |plan| cut_everywhere(format, &plan, Some(fault)).map(|_| ()).map_err(TestCaseError::fail));
    match tested {
        Ok(()) => None,
        Err(proptest::test_runner::TestError::Fail(why, _)) => Some(why.to_string()),
        Err(error) => panic!("{}, {fault:?}: {error}", format.name),
    }
}

fn is_caught_wherever_it_can_be_made(fault: Fault) {
    let formats: Vec<_> = FORMATS.iter().filter(|format| format.faults.contains(&fault)).collect();
    assert!(!formats.is_empty());
    for format in formats {
        let Some(why) = caught(format, fault) else { panic!("{}: {fault:?} went unnoticed", format.name) };
        println!("planted in {}: {fault:?}: {why}", format.name);
    }
}

#[test]
fn a_bit_that_is_written_before_its_data_is_caught() {
    is_caught_wherever_it_can_be_made(Fault::BitBeforeData);
}

#[test]
fn a_table_entry_that_is_written_before_its_bitmap_is_caught() {
    is_caught_wherever_it_can_be_made(Fault::EntryBeforeBitmap);
}

#[test]
fn a_missing_barrier_before_metadata_is_caught() {
    is_caught_wherever_it_can_be_made(Fault::NoBarrierBeforeMetadata);
}

#[test]
fn a_missing_barrier_at_a_flush_is_caught() {
    is_caught_wherever_it_can_be_made(Fault::NoBarrierAtFlush);
}

#[test]
fn metadata_that_is_written_after_its_barrier_is_caught() {
    is_caught_wherever_it_can_be_made(Fault::MetadataAfterBarrier);
}

#[test]
fn a_log_entry_that_is_written_before_its_data_is_caught() {
    is_caught_wherever_it_can_be_made(Fault::LogBeforeData);
}

#[test]
fn a_log_that_is_pointed_to_before_it_is_there_is_caught() {
    is_caught_wherever_it_can_be_made(Fault::HeaderBeforeLog);
}

#[test]
fn a_log_entry_that_is_written_after_its_barrier_is_caught() {
    is_caught_wherever_it_can_be_made(Fault::LogAfterBarrier);
}

#[test]
fn a_log_entry_that_is_torn_at_its_barrier_is_caught() {
    is_caught_wherever_it_can_be_made(Fault::LogTorn);
}

#[test]
fn first_writes_to_fresh_blocks_share_their_barriers() {
    let blocks = 1000;
    let master = Double::new(0);
    Builder::with_blocks(&master, blocks << 16, 1 << 16).unwrap().finish().unwrap();
    let parent = Arc::new(Chain::base_on(Box::new(master.clone()), Access::Read).unwrap());
    let (child, map) = (Double::new(0), Double::new(0));
    let new = NewChild { layout: Layout::Compact, block_size: 1 << 16, size: None };
    write_child(&child, Uuid::new_v4(), &parent, ".\\master.vhd", "/master.vhd", new).unwrap();
    let dynamic = Double::holding(master.contents());
    for (file, parent, barriers) in [(child, Some(&parent), 1), (dynamic, None, 5)] {
        let chain = open(file.clone(), parent, Some(map.clone()), BOOT).unwrap();
        let syncs = || file.events().iter().filter(|(_, event)| matches!(event, Event::Sync)).count() as u64;
        let before = syncs();
        (0..blocks).for_each(|block| write(&chain, block * 128 + 5, &pattern(5, 8, 1)));
        assert_eq!(syncs() - before, barriers, "for all, or for 64, 64, 128, 256 and the rest, not two for each");
        drop(chain);
        let stride = (1 << 16) + 4096;
        let len = file.len().unwrap();
        assert!(len < blocks * stride + 32_768, "what was kept for more blocks is given back: {len}");
    }
}

#[test]
fn a_write_that_cannot_be_recorded_is_settled_before_it_is_acknowledged() {
    let (start, parent) = vhd_child(Layout::Mapped, BLOCK);
    let (disk, pending) = (Double::holding(start), Double::new(0));
    let chain = open(disk.clone(), parent.as_ref(), Some(pending.clone()), BOOT).unwrap();
    pending.break_now(true);
    let bytes = pattern(5, 3, 9);
    write(&chain, 5, &bytes);
    drop(chain);
    assert!(matches!(disk.events().last(), Some((_, Event::Sync))), "a barrier comes last");
    let chain = open(Double::holding(disk.contents()), parent.as_ref(), None, OTHER_BOOT).unwrap();
    assert_eq!(read(&chain, 5, 3), bytes);
}

#[test]
fn after_a_failed_barrier_nothing_more_is_believed() {
    let (start, parent) = vhd_child(Layout::Mapped, BLOCK);
    let disk = Double::holding(start);
    let chain = open(disk.clone(), parent.as_ref(), Some(Double::new(0)), BOOT).unwrap();
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
    let chain = open(child, Some(&parent), Some(pending.clone()), BOOT).unwrap();
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
        let (start, parent) = vhd_child(layout, BLOCK);
        let chain = open(Double::holding(start), parent.as_ref(), Some(Double::new(0)), BOOT).unwrap();
        let writing = std::sync::atomic::AtomicBool::new(true);
        std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    let mut seen = vec![0xee; index(SECTORS - 1) + 1];
                    while writing.load(std::sync::atomic::Ordering::Relaxed) {
                        for (seen, now) in seen.iter_mut().zip(tags(&chain).unwrap()) {
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
    let (start, parent) = vhd_child(Layout::Mapped, BLOCK);
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
    assert_eq!(tags(&heir).unwrap(), tags(&chain).unwrap());

    chain.keep_on(Box::new(Double::new(0)), BOOT).unwrap();
    assert!(syncs() > before && !chain.is_volatile(), "what was acknowledged is on the device");
    let (_, last) = disk.events().pop().unwrap();
    assert!(matches!(last, Event::Sync), "nothing was changed after the barrier: {last:?}");
    write(&chain, 9, &pattern(9, 1, 8));
    let before = syncs();
    chain.flush().unwrap();
    assert!(syncs() > before, "a flush is a flush again");
}
