//! The sector bitmaps of all open disks, in memory within one budget.
//!
//! Each disk keeps the [`Bitmaps`] that it was asked about behind the lock of its own map, so that a read takes no lock but
//! its disk's. A bitmap whose sectors all say the same takes two bits and stays. The others share [`LIMIT`] bytes: who is
//! about to add one [makes room](Cache::make_room) first, holding no map's lock, and takes it from whichever disk a clock
//! says. The clock's hand goes round all bitmaps of all disks; what was used since it came by last is passed over.
//!
//! A bitmap that is *ahead* of its file must not go. So a disk settles when such bitmaps are [many](Cache::is_crowded), and half of
//! the budget is always there for those that may go. The budget is overdrawn by at most [`SLACK`] bitmaps for each thread at work.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};
use std::sync::atomic::{AtomicU8, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock, TryLockError, Weak};

/// Bytes that all bitmaps with bytes of their own take together: those of some 210 GiB of touched VHD blocks of 2 MiB, or of
/// 240 GiB of a VHDX, in any mixture of disks.
const LIMIT: usize = 64 << 20;
/// What a bitmap takes beside its bytes: its [`Slot`] in a vector that may be half empty, its place in the index, and what the
/// allocator adds.
const OVERHEAD: usize = 112;
/// Bitmaps by which a thread may overdraw the budget: one that it loads, and the two ends of a write, which are ahead before
/// the disk can settle.
#[cfg(test)]
pub(super) const SLACK: usize = 3;

static CACHE: Cache = Cache::new(LIMIT);

/// Bytes that the sector bitmaps of all open disks take in memory.
#[must_use]
pub fn bitmap_bytes() -> usize {
    CACHE.used.load(Ordering::Relaxed)
}

/// A budget of bitmaps.
#[derive(Debug)]
pub(super) struct Cache {
    limit: usize,
    used: AtomicUsize,
    /// The part of it that cannot be given up.
    ahead: AtomicUsize,
    clock: Mutex<Clock>,
}

/// Whose bitmaps there are, and whose turn it is to give some up.
#[derive(Debug)]
struct Clock {
    disks: Vec<Weak<dyn Shed>>,
    hand: usize,
}

/// The lock around a disk's [`Bitmaps`].
trait Shed: Send + Sync {
    /// Moves the hand over this disk's bitmaps until so many bytes are free. With `insist` the lock is waited for, and what
    /// was used goes as well.
    fn shed(&self, wanted: usize, insist: bool);
}

/// What holds a disk's bitmaps behind its lock.
pub(super) trait Holds: Send + Sync {
    /// The bitmaps.
    fn bitmaps(&mut self) -> &mut Bitmaps;
}

impl<M: Holds> Shed for RwLock<M> {
    fn shed(&self, wanted: usize, insist: bool) {
        let map = match self.try_write() {
            Err(TryLockError::WouldBlock) if insist => self.write().ok(),
            map => map.ok(),
        };
        if let Some(mut map) = map {
            map.bitmaps().shed(wanted, insist);
        }
    }
}

impl Cache {
    const fn new(limit: usize) -> Self {
        let clock = Mutex::new(Clock { disks: Vec::new(), hand: 0 });
        Self { limit, used: AtomicUsize::new(0), ahead: AtomicUsize::new(0), clock }
    }

    /// The budget that disks opened now count against.
    pub(super) fn current() -> &'static Self {
        #[cfg(test)]
        if let Some(cache) = tests::WITHIN.get() {
            return cache;
        }
        &CACHE
    }

    /// Lets a disk's bitmaps take part, until its map is dropped.
    pub(super) fn join<M: Holds + 'static>(&self, map: &Arc<RwLock<M>>) {
        let map: Weak<RwLock<M>> = Arc::downgrade(map);
        self.clock().disks.push(map);
    }

    /// Makes room for another bitmap of so many bytes, and then some, so that the next ones need not. The caller holds no
    /// map's lock; that of a disk is held without waiting for anything, so a disk's writer may call this.
    pub(super) fn make_room(&self, bytes: usize) {
        let wanted = self.used.load(Ordering::Relaxed) + cost(bytes);
        if wanted <= self.limit {
            return;
        }
        let goal = self.limit - self.limit / 16;
        let mut clock = self.clock();
        // A round may find all bitmaps used and the next one none of them; the last takes what there is.
        for round in 0..3 {
            for _ in 0..clock.disks.len() {
                let over = (self.used.load(Ordering::Relaxed) + cost(bytes)).saturating_sub(goal);
                if over == 0 {
                    return;
                }
                clock.hand %= clock.disks.len();
                let hand = clock.hand;
                if let Some(disk) = clock.disks[hand].upgrade() {
                    disk.shed(over, round == 2);
                    clock.hand += 1;
                } else {
                    clock.disks.swap_remove(hand);
                }
            }
        }
    }

    /// Whether a disk should settle before it puts more bitmaps ahead of its file.
    pub(super) fn is_crowded(&self) -> bool {
        self.ahead.load(Ordering::Relaxed) > self.limit / 2
    }

    fn clock(&self) -> std::sync::MutexGuard<'_, Clock> {
        // Whatever panicked there left a list of disks.
        self.clock.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What a bitmap of so many bytes counts.
const fn cost(bytes: usize) -> usize {
    bytes + OVERHEAD
}

/// What is known of a bitmap.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Bitmap<'a> {
    /// It has not been looked at, or was given up.
    Unknown,
    /// All its sectors say the same: here, or not.
    All(bool),
    Mixed(&'a [u8]),
}

const UNKNOWN: u64 = 0;
const NONE_HERE: u64 = 1;
const ALL_HERE: u64 = 2;
const MIXED: u64 = 3;

/// The bitmaps of a disk: some number of them, all of one size.
#[derive(Debug)]
pub(super) struct Bitmaps {
    cache: &'static Cache,
    size: usize,
    /// Two bits for each.
    states: Box<[u64]>,
    /// Those that are mixed, in no order.
    slots: Vec<Slot>,
    /// Where in `slots` each is.
    index: HashMap<u32, usize, BuildHasherDefault<Spread>>,
    /// The slot that the clock comes to next.
    hand: usize,
    /// How often a bitmap was given up that the file has got since it was loaded.
    dropped: u64,
}

#[derive(Debug)]
struct Slot {
    number: u32,
    bytes: Box<[u8]>,
    /// The file does not say so yet.
    ahead: bool,
    /// It was ahead, so the file is not what it was when this was loaded.
    changed: bool,
    mark: AtomicU8,
}

/// Not looked at since the clock's hand came by: the next to go.
const IDLE: u8 = 0;
/// Looked at since then.
const USED: u8 = 1;
/// Not looked at yet. The look that it was loaded for makes it idle, so that one pass over a whole disk drives out nothing.
const FRESH: u8 = 2;

impl Bitmaps {
    /// So many bitmaps of `size` bytes, none of them known.
    pub(super) fn new(cache: &'static Cache, count: u32, size: usize) -> Self {
        let states = vec![0; count.div_ceil(32) as usize].into();
        Self { cache, size, states, slots: Vec::new(), index: HashMap::default(), hand: 0, dropped: 0 }
    }

    pub(super) fn is_known(&self, number: u32) -> bool {
        self.state(number) != UNKNOWN
    }

    /// What is known of a bitmap.
    pub(super) fn look(&self, number: u32) -> Bitmap<'_> {
        match self.state(number) {
            UNKNOWN => Bitmap::Unknown,
            NONE_HERE => Bitmap::All(false),
            ALL_HERE => Bitmap::All(true),
            _ => {
                let slot = &self.slots[self.index[&number]];
                // Not written each time, so that readers on several cores do not take it from each other.
                match slot.mark.load(Ordering::Relaxed) {
                    USED => {}
                    mark => slot.mark.store(if mark == FRESH { IDLE } else { USED }, Ordering::Relaxed),
                }
                Bitmap::Mixed(&slot.bytes)
            }
        }
    }

    /// A number to note before a bitmap is read from the file, for [`learn`](Bitmaps::learn).
    pub(super) fn dropped(&self) -> u64 {
        self.dropped
    }

    /// Takes note of a bitmap as read from the file, unless it is known, for memory may be ahead; or unless `dropped` tells that the file
    /// may have got another one since. `false`: it is still unknown, and is to be read again.
    pub(super) fn learn(&mut self, number: u32, found: Bitmap<'_>, dropped: u64) -> bool {
        if self.is_known(number) {
            return true;
        }
        if self.dropped != dropped {
            return false;
        }
        match found {
            Bitmap::Unknown => return false,
            Bitmap::All(here) => self.set_state(number, if here { ALL_HERE } else { NONE_HERE }),
            Bitmap::Mixed(bytes) => self.add(number, bytes.into()),
        }
        true
    }

    /// Changes a known bitmap, which then is ahead of the file. `edit` tells whether all sectors say the same now, and what.
    pub(super) fn edit(&mut self, number: u32, edit: impl FnOnce(&mut [u8]) -> Option<bool>) {
        let fill = match self.state(number) {
            NONE_HERE => Some(0),
            ALL_HERE => Some(0xff),
            _ => None,
        };
        if let Some(fill) = fill {
            self.add(number, vec![fill; self.size].into());
        }
        let at = self.index[&number];
        let slot = &mut self.slots[at];
        if let Some(here) = edit(&mut slot.bytes) {
            self.remove(at);
            self.set_state(number, if here { ALL_HERE } else { NONE_HERE });
            return;
        }
        slot.changed = true;
        *slot.mark.get_mut() = USED;
        if !std::mem::replace(&mut slot.ahead, true) {
            self.cache.ahead.fetch_add(cost(self.size), Ordering::Relaxed);
        }
    }

    /// Takes note that the file says of a bitmap what memory does.
    pub(super) fn written(&mut self, number: u32) {
        if let Some(&at) = self.index.get(&number)
            && std::mem::take(&mut self.slots[at].ahead)
        {
            self.cache.ahead.fetch_sub(cost(self.size), Ordering::Relaxed);
        }
    }

    /// Moves the hand over all bitmaps at most once, and gives up those that the file has, until so many bytes are free.
    fn shed(&mut self, wanted: usize, insist: bool) {
        let (mut freed, mut steps) = (0, self.slots.len());
        while freed < wanted && steps > 0 {
            steps -= 1;
            if self.hand >= self.slots.len() {
                self.hand = 0;
            }
            let slot = &mut self.slots[self.hand];
            if slot.ahead || (std::mem::replace(slot.mark.get_mut(), IDLE) == USED && !insist) {
                self.hand += 1;
                continue;
            }
            let (number, changed) = (slot.number, slot.changed);
            self.remove(self.hand);
            self.set_state(number, UNKNOWN);
            self.dropped += u64::from(changed);
            freed += cost(self.size);
        }
        if self.slots.capacity() > 4 * self.slots.len() {
            self.slots.shrink_to(2 * self.slots.len());
            self.index.shrink_to(2 * self.slots.len());
        }
    }

    fn add(&mut self, number: u32, bytes: Box<[u8]>) {
        self.cache.used.fetch_add(cost(self.size), Ordering::Relaxed);
        self.index.insert(number, self.slots.len());
        self.slots.push(Slot { number, bytes, ahead: false, changed: false, mark: AtomicU8::new(FRESH) });
        self.set_state(number, MIXED);
    }

    fn remove(&mut self, at: usize) {
        let slot = self.slots.swap_remove(at);
        self.index.remove(&slot.number);
        if let Some(moved) = self.slots.get(at) {
            self.index.insert(moved.number, at);
        }
        self.cache.used.fetch_sub(cost(self.size), Ordering::Relaxed);
        if slot.ahead {
            self.cache.ahead.fetch_sub(cost(self.size), Ordering::Relaxed);
        }
    }

    fn state(&self, number: u32) -> u64 {
        self.states[number as usize / 32] >> (number % 32 * 2) & 3
    }

    fn set_state(&mut self, number: u32, state: u64) {
        let (word, shift) = (&mut self.states[number as usize / 32], number % 32 * 2);
        *word = *word & !(3 << shift) | state << shift;
    }
}

impl Drop for Bitmaps {
    fn drop(&mut self) {
        let ahead = self.slots.iter().filter(|slot| slot.ahead).count();
        self.cache.used.fetch_sub(self.slots.len() * cost(self.size), Ordering::Relaxed);
        self.cache.ahead.fetch_sub(ahead * cost(self.size), Ordering::Relaxed);
    }
}

/// Spreads the numbers of bitmaps, which come in rows, over a table. Nobody gains by choosing them badly: at most as many
/// are in the table as its disk has.
#[derive(Default)]
struct Spread(u64);

impl Hasher for Spread {
    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|&byte| self.write_u32(byte.into()));
    }

    fn write_u32(&mut self, number: u32) {
        // The golden ratio; the best bits are the high ones, and the table looks at the low ones.
        self.0 = (self.0 ^ u64::from(number)).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(26);
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::cell::Cell;
    use std::io::{IoSlice, IoSliceMut};
    use std::sync::atomic::AtomicU64;

    use proptest::prelude::*;

    use super::*;
    use crate::disk::chain::{Chain, PendingPath};
    use crate::disk::file::Access;
    use crate::disk::model::{BOOT, scratch};
    use crate::disk::vhd::{Layout, NewChild, create_child_as, create_dynamic};
    use crate::disk::{Disk, SECTOR, vhdx};

    thread_local! {
        /// Set by [`within`].
        pub(super) static WITHIN: Cell<Option<&'static Cache>> = const { Cell::new(None) };
    }

    /// Two bitmaps of a VHD with blocks of 2 MiB, and less than one page of a VHDX.
    const TINY: usize = 1300;

    /// Lets the disks that `work` opens on this thread share a budget of their own.
    fn within<T>(limit: usize, work: impl FnOnce() -> T) -> T {
        struct Back(Option<&'static Cache>);
        impl Drop for Back {
            fn drop(&mut self) {
                WITHIN.set(self.0);
            }
        }
        let _back = Back(WITHIN.replace(Some(Box::leak(Box::new(Cache::new(limit))))));
        work()
    }

    /// Does the same work with plenty of room for bitmaps or next to none, as a seed says.
    pub(in crate::disk) fn within_much_or_little<T>(seed: u64, work: impl FnOnce() -> T) -> T {
        if seed.is_multiple_of(2) { within(TINY, work) } else { work() }
    }

    /// A disk without a file.
    struct Shelf(Bitmaps);

    impl Holds for Shelf {
        fn bitmaps(&mut self) -> &mut Bitmaps {
            &mut self.0
        }
    }

    const DISKS: usize = 4;
    const COUNT: u32 = 40;
    const SIZE: usize = 8;

    #[derive(Debug, Clone)]
    enum Step {
        /// A bitmap is looked at, and loaded first if it has to be.
        Look(usize, u32),
        /// A byte of it is set to this.
        Edit(usize, u32, usize, u8),
        /// The file gets what is ahead of it.
        Settle(usize),
        /// Somebody reads a bitmap from the file,
        Read(usize, u32),
        /// and comes with the oldest that was read so only now.
        Learn,
        Close(usize),
    }

    fn step() -> impl Strategy<Value = Step> {
        let bitmap = || (0..DISKS, 0..COUNT);
        let byte = prop_oneof![Just(0), Just(0xff), any::<u8>()];
        prop_oneof![
            8 => bitmap().prop_map(|(disk, number)| Step::Look(disk, number)),
            8 => (bitmap(), 0..SIZE, byte).prop_map(|((disk, number), at, byte)| Step::Edit(disk, number, at, byte)),
            2 => (0..DISKS).prop_map(Step::Settle),
            3 => bitmap().prop_map(|(disk, number)| Step::Read(disk, number)),
            3 => Just(Step::Learn),
            1 => (0..DISKS).prop_map(Step::Close),
        ]
    }

    fn uniform(bytes: &[u8]) -> Option<bool> {
        let same = matches!(bytes[0], 0 | 0xff) && bytes.iter().all(|&byte| byte == bytes[0]);
        same.then(|| bytes[0] != 0)
    }

    fn found(bytes: &[u8]) -> Bitmap<'_> {
        uniform(bytes).map_or(Bitmap::Mixed(bytes), Bitmap::All)
    }

    proptest! {
        #[test]
        fn what_is_in_memory_is_what_a_model_without_bounds_knows_and_the_budget_holds(
            steps in proptest::collection::vec(step(), 1..300), room in 1usize..30,
        ) {
            let cache: &Cache = Box::leak(Box::new(Cache::new(room * cost(SIZE))));
            let open = || {
                let map = Arc::new(RwLock::new(Shelf(Bitmaps::new(cache, COUNT, SIZE))));
                cache.join(&map);
                map
            };
            // What each disk is to know, and what its file says.
            let new = [[0u8; SIZE]; COUNT as usize];
            let mut disks: Vec<_> = (0..DISKS).map(|_| (open(), new, new)).collect();
            let mut late = Vec::new();
            for step in steps {
                match step {
                    Step::Look(disk, number) | Step::Edit(disk, number, ..) => {
                        let (map, known, file) = &mut disks[disk];
                        cache.make_room(SIZE);
                        let mut map = map.write().unwrap();
                        let dropped = map.0.dropped();
                        prop_assert!(map.0.learn(number, found(&file[number as usize]), dropped));
                        prop_assert_eq!(map.0.look(number), found(&known[number as usize]));
                        if let Step::Edit(.., at, byte) = step {
                            known[number as usize][at] = byte;
                            map.0.edit(number, |bytes| {
                                bytes[at] = byte;
                                uniform(bytes)
                            });
                        }
                    }
                    Step::Settle(_) => {}
                    Step::Read(disk, number) => {
                        let (map, _, file) = &disks[disk];
                        late.push((Arc::clone(map), disk, number, map.read().unwrap().0.dropped(), file[number as usize]));
                    }
                    Step::Learn if late.is_empty() => {}
                    Step::Learn => {
                        let (map, disk, number, dropped, bytes) = late.remove(0);
                        cache.make_room(SIZE);
                        let learnt = map.write().unwrap().0.learn(number, found(&bytes), dropped);
                        let (now, known, _) = &disks[disk];
                        if learnt && Arc::ptr_eq(&map, now) {
                            let map = map.read().unwrap();
                            prop_assert_eq!(map.0.look(number), found(&known[number as usize]));
                        }
                    }
                    Step::Close(disk) => {
                        let (map, known, file) = &mut disks[disk];
                        *file = *known;
                        (0..COUNT).for_each(|number| map.write().unwrap().0.written(number));
                        *map = open();
                    }
                }
                let crowded = cache.is_crowded();
                if let Step::Settle(disk) | Step::Edit(disk, ..) = step
                    && (crowded || matches!(step, Step::Settle(_)))
                {
                    let (map, known, file) = &mut disks[disk];
                    *file = *known;
                    (0..COUNT).for_each(|number| map.write().unwrap().0.written(number));
                }
                prop_assert!(cache.ahead.load(Ordering::Relaxed) <= cache.limit / 2);
                prop_assert!(cache.used.load(Ordering::Relaxed) <= cache.limit);
            }
            late.clear();
            disks.clear();
            prop_assert_eq!((cache.used.load(Ordering::Relaxed), cache.ahead.load(Ordering::Relaxed)), (0, 0));
        }
    }

    #[test]
    fn what_was_used_since_the_hand_came_by_stays() {
        let cache: &Cache = Box::leak(Box::new(Cache::new(32 * cost(SIZE))));
        let maps = [(); 2].map(|()| Arc::new(RwLock::new(Shelf(Bitmaps::new(cache, 1000, SIZE)))));
        maps.iter().for_each(|map| cache.join(map));
        for number in 0..1000 {
            for map in &maps {
                cache.make_room(SIZE);
                assert!(map.write().unwrap().0.learn(number, Bitmap::Mixed(&[7; SIZE]), 0));
                map.read().unwrap().0.look(number);
            }
            assert_ne!(maps[1].read().unwrap().0.look(0), Bitmap::Unknown, "used all the time, after {number}");
        }
        assert!(!maps[0].read().unwrap().0.is_known(0), "and not this one, which was not");
    }

    /// Sectors that the threads below use, of a disk of this size.
    const CELLS: u64 = 512;
    const BYTES: u64 = 256 << 20;

    /// Eight neighbours each in places far from each other.
    fn place(cell: u64) -> u64 {
        (cell / 8 * (BYTES / SECTOR / (CELLS / 8)) + cell % 8) * SECTOR
    }

    #[test]
    fn many_disks_with_little_room_read_what_was_acknowledged_while_they_are_written() {
        let limit = 3 * cost(4096);
        within(limit, || {
            let (dir, cache) = (scratch(), Cache::current());
            let paths = ["master.vhd", "master.vhdx"].map(|name| dir.path().join(name));
            create_dynamic(&paths[0], BYTES).unwrap();
            vhdx::create(&paths[1], &vhdx::Spec::dynamic(BYTES)).unwrap();
            let masters = paths.map(|path| Arc::new(Chain::open(&path, Access::Read).unwrap()));
            let disks: Vec<Chain> = (0..8)
                .map(|n| {
                    let master = &masters[n % 2];
                    let path = dir.path().join(format!("{n}"));
                    let name = master.path().file_name().unwrap().to_string_lossy();
                    let relative = format!(".\\{name}");
                    if n % 2 == 0 {
                        let layout = if n % 4 == 0 { Layout::Mapped } else { Layout::Compact };
                        let new = NewChild { layout, ..NewChild::default() };
                        create_child_as(&path, master, &relative, new).unwrap();
                    } else {
                        vhdx::create_child(&path, master, &relative).unwrap();
                    }
                    let pending = PendingPath { path: path.with_extension("pending"), boot_id: BOOT.into() };
                    let pending = (n < 6).then_some(pending);
                    Chain::open_child(&path, Arc::clone(master), pending).unwrap()
                })
                .collect();
            // The version of each sector of which a write has begun, and has ended.
            let versions: Vec<Vec<[AtomicU64; 2]>> =
                disks.iter().map(|_| (0..CELLS).map(|_| Default::default()).collect()).collect();
            let (writing, reads) = (AtomicUsize::new(disks.len()), AtomicU64::new(0));
            let bound = limit + (disks.len() + 3) * SLACK * cost(4096);
            let random = |state: &mut u64| {
                *state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                *state >> 33
            };
            std::thread::scope(|scope| {
                let (disks, versions, writing, reads) = (&disks, &versions, &writing, &reads);
                for (n, disk) in disks.iter().enumerate() {
                    scope.spawn(move || {
                        let mut state = n as u64;
                        for _ in 0..600 {
                            let cell = random(&mut state) % CELLS;
                            let [begun, ended] = &versions[n][usize::try_from(cell).unwrap()];
                            let version = begun.fetch_add(1, Ordering::SeqCst) + 1;
                            let bytes = version.to_le_bytes().repeat(64);
                            disk.write(place(cell), &[IoSlice::new(&bytes)]).unwrap();
                            ended.store(version, Ordering::SeqCst);
                            if random(&mut state).is_multiple_of(100) {
                                disk.flush().unwrap();
                            }
                            assert!(cache.used.load(Ordering::SeqCst) <= bound);
                        }
                        writing.fetch_sub(1, Ordering::SeqCst);
                    });
                }
                for n in 0..3 {
                    scope.spawn(move || {
                        let mut state = 1000 + n;
                        while writing.load(Ordering::SeqCst) > 0 {
                            let (disk, cell) = (random(&mut state) % disks.len() as u64, random(&mut state) % CELLS);
                            let disk = usize::try_from(disk).unwrap();
                            let [begun, ended] = &versions[disk][usize::try_from(cell).unwrap()];
                            let from = ended.load(Ordering::SeqCst);
                            let mut bytes = [0; 512];
                            disks[disk].read(place(cell), &mut [IoSliceMut::new(&mut bytes)]).unwrap();
                            let seen = u64::from_le_bytes(bytes[..8].try_into().unwrap());
                            let to = begun.load(Ordering::SeqCst);
                            assert!((from..=to).contains(&seen), "disk {disk}, {cell}: {seen}, not {from} to {to}");
                            assert!(cache.used.load(Ordering::SeqCst) <= bound);
                            reads.fetch_add(1, Ordering::Relaxed);
                        }
                    });
                }
            });
            assert!(reads.load(Ordering::Relaxed) > 100);
        });
    }
}
