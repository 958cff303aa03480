//! The host's space: how much of it clients may still take, and who must wait.
//!
//! Two bounds. Each client's own files have their `limit`; and the file system of the state folder keeps a reserve, which
//! disks never grow into, so that the store, leases and logs go on when it is full. What a write takes is promised before it
//! is written and settled after it, in one account that all disks share: together they cannot promise what is not there.
//!
//! A promise is first an upper bound that costs nothing to know. Only where that does not fit is it found out what is
//! free now, and what the write really adds ([`Disk::growth`](crate::disk::Disk::growth)): overwriting adds nothing, and always goes on.

use std::collections::HashMap;
use std::fmt;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use super::App;
use super::places::data_file;
use crate::disk::{DiskError, PAGE, names};
use crate::fleet::ClientName;
use crate::scsi::unmap::ByteRange;

/// How often the host's free space is looked at although nobody asks, and the age after which a look is none any more: others
/// use the file system too.
const LOOK: Duration = Duration::from_secs(1);

/// What is made at once takes no look by itself: until this age the one that is made every [`LOOK`] is good enough for it.
const LATEST: Duration = Duration::from_secs(2);

/// The share of the file system below which it runs low: a twentieth, within [`MIN_LOW`] and [`MAX_LOW`].
const LOW_SHARE: u64 = 20;
/// Less than this is little for a lab that writes.
const MIN_LOW: u64 = 1 << 30;
/// More than this is enough, however large the file system is.
const MAX_LOW: u64 = 64 << 30;
/// On a small file system an eighth is low, whatever [`MIN_LOW`] says.
const SMALL_LOW_SHARE: u64 = 8;

/// What disks leave to the store, leases and logs; on a small file system a part of it.
const RESERVE: u64 = 256 << 20;
const RESERVE_SHARE: u64 = 64;

/// A block's bits lie apart from its data: bytes of the disk for which a page of bits may have to be allocated.
const BITS_STEP: u64 = 2 << 20;

/// The space of a file system.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Free {
    /// Bytes that can still be allocated.
    pub(super) free: u64,
    /// Bytes of it altogether.
    pub(super) total: u64,
}

impl Free {
    /// Below this it runs low.
    fn low(self) -> u64 {
        (self.total / LOW_SHARE).clamp(MIN_LOW, MAX_LOW).min(self.total / SMALL_LOW_SHARE)
    }

    /// What disks do not grow into.
    fn reserve(self) -> u64 {
        RESERVE.min(self.total / RESERVE_SHARE)
    }
}

/// Tells how much is free.
pub(super) trait Meter: Send + Sync {
    /// As it is now.
    fn look(&self) -> io::Result<Free>;
}

/// The file system of a folder.
struct Folder(PathBuf);

impl Meter for Folder {
    fn look(&self) -> io::Result<Free> {
        let stat = rustix::fs::statvfs(&self.0)?;
        Ok(Free {
            free: stat.f_bavail.saturating_mul(stat.f_frsize),
            total: stat.f_blocks.saturating_mul(stat.f_frsize),
        })
    }
}

/// The host's space, shared by all disks.
pub(super) struct Space {
    state: PathBuf,
    meter: Box<dyn Meter>,
    host: Mutex<Host>,
    /// Those of clients whose disks are open.
    accounts: Mutex<HashMap<ClientName, Weak<Account>>>,
}

#[derive(Default)]
struct Host {
    /// The last look. `None`: none succeeded.
    seen: Option<(Instant, Free)>,
    /// Promised to writes that are not done.
    promised: u64,
    /// Of promises that were settled since the last look.
    settled: u64,
    low: bool,
}

impl fmt::Debug for Space {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Space").field("state", &self.state).finish_non_exhaustive()
    }
}

/// What a look found that is news.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum News {
    /// The host runs low.
    Low(Free),
    /// It has space again.
    Recovered(Free),
}

impl Space {
    /// The space under this state folder.
    pub(super) fn of(state: &Path) -> Arc<Self> {
        Self::with(state, Box::new(Folder(state.to_owned())))
    }

    fn with(state: &Path, meter: Box<dyn Meter>) -> Arc<Self> {
        Arc::new(Self { state: state.to_owned(), meter, host: Mutex::default(), accounts: Mutex::default() })
    }

    /// The one account of a client, whose disk is this and whatever lies beside it. It looks at the files.
    pub(super) fn account(self: &Arc<Self>, client: &ClientName, disk: &Path) -> Arc<Account> {
        let account = {
            let mut accounts = self.accounts.lock().unwrap_or_else(PoisonError::into_inner);
            accounts.retain(|_, account| account.strong_count() > 0);
            let known = accounts
                .get(client)
                .and_then(Weak::upgrade)
                .filter(|known| known.disk.with_extension("") == disk.with_extension(""));
            known.unwrap_or_else(|| {
                let account = Arc::new(Account::new(client, disk, self));
                accounts.insert(client.clone(), Arc::downgrade(&account));
                account
            })
        };
        account.measure();
        account
    }

    /// Promises so many bytes, if they are there; `false`: they are not.
    fn promise(&self, bytes: u64) -> bool {
        let mut host = self.host();
        let fits = |host: &Host| host.room().is_none_or(|room| bytes <= room);
        let fresh = host.seen.is_some_and(|(at, _)| at.elapsed() < LOOK);
        if !(fresh && fits(&host)) {
            host.look(&*self.meter);
        }
        let fits = bytes == 0 || fits(&host);
        if fits {
            host.promised += bytes;
        }
        fits
    }

    /// The same without a look; `false` also where it would take one to know.
    fn try_promise(&self, bytes: u64) -> bool {
        let mut host = self.host();
        let fresh = host.seen.is_some_and(|(at, _)| at.elapsed() < LATEST);
        let fits = fresh && host.room().is_some_and(|room| bytes <= room);
        if fits {
            host.promised += bytes;
        }
        fits
    }

    fn settle(&self, bytes: u64) {
        let mut host = self.host();
        host.promised -= bytes;
        host.settled += bytes;
    }

    /// Looks, and tells what is news.
    fn news(&self) -> Option<News> {
        let mut host = self.host();
        host.look(&*self.meter);
        let (_, free) = host.seen?;
        // A little above the mark it would be low again at once.
        let enough = free.low() + free.low() / 8;
        match host.low {
            false if free.free < free.low() => {
                host.low = true;
                Some(News::Low(free))
            }
            true if free.free >= enough => {
                host.low = false;
                Some(News::Recovered(free))
            }
            _ => None,
        }
    }

    fn host(&self) -> MutexGuard<'_, Host> {
        self.host.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Host {
    /// What disks may still grow by; `None` where nobody knows, and the file system itself will say.
    fn room(&self) -> Option<u64> {
        let (_, free) = self.seen?;
        Some(free.free.saturating_sub(free.reserve()).saturating_sub(self.promised + self.settled))
    }

    /// What was settled before is in what is found; what is only promised may be or not, and is counted.
    fn look(&mut self, meter: &dyn Meter) {
        match meter.look() {
            Ok(free) => {
                self.seen = Some((Instant::now(), free));
                self.settled = 0;
            }
            Err(error) => {
                tracing::debug!("how much space is free cannot be told: {error}");
                self.seen = None;
            }
        }
    }
}

/// Bytes that a write may take. Given back, as taken, when it is dropped.
#[derive(Debug)]
pub(super) struct Promise {
    space: Arc<Space>,
    bytes: u64,
}

impl Drop for Promise {
    fn drop(&mut self) {
        self.space.settle(self.bytes);
    }
}

/// Why a write may not begin.
#[derive(Debug, thiserror::Error)]
pub(super) enum NoRoom {
    /// The client's own files would grow beyond its limit.
    #[error("the client's own disk has grown to its limit")]
    Limit,
    /// The host has no space just now.
    #[error("the host is full")]
    Host,
    /// What it would take could not be found out.
    #[error(transparent)]
    Disk(#[from] DiskError),
}

/// One client's part of the account, of all its disks together.
#[derive(Debug)]
pub(super) struct Account {
    client: ClientName,
    disk: PathBuf,
    space: Arc<Space>,
    own: Mutex<Own>,
}

#[derive(Debug, Default)]
struct Own {
    limit: Option<u64>,
    /// What its files took up when they were last looked at.
    measured: u64,
    /// What was promised since.
    since: u64,
    /// It was told that it is full.
    full: bool,
}

impl Account {
    fn new(client: &ClientName, disk: &Path, space: &Arc<Space>) -> Self {
        Self { client: client.clone(), disk: disk.to_owned(), space: Arc::clone(space), own: Mutex::default() }
    }

    /// Looks at what its files take up.
    fn measure(&self) {
        let measured = bytes_of(&self.disk);
        let mut own = self.own.lock().unwrap_or_else(PoisonError::into_inner);
        (own.measured, own.since) = (measured, 0);
    }

    /// Whether the host runs low, as far as anybody has been told.
    pub(super) fn host_is_low(&self) -> bool {
        self.space.host().low
    }

    /// How far its files may grow from now on.
    pub(super) fn set_limit(&self, limit: Option<u64>) {
        self.own.lock().unwrap_or_else(PoisonError::into_inner).limit = limit;
    }

    /// Promises what writes of these ranges take, if that is known to fit without a look at anything.
    pub(super) fn try_promise(&self, ranges: impl Iterator<Item = ByteRange>) -> Option<Promise> {
        let bytes = ranges.map(|range| most_of(&range)).fold(0, u64::saturating_add);
        let mut own = self.own.lock().unwrap_or_else(PoisonError::into_inner);
        let within = own.limit.is_none_or(|limit| own.used().saturating_add(bytes) <= limit);
        if !within || !self.space.try_promise(bytes) {
            return None;
        }
        own.since += bytes;
        Some(Promise { space: Arc::clone(&self.space), bytes })
    }

    /// Promises what a write of these ranges takes. `growth` finds out what the data adds, if it must be known.
    ///
    /// # Errors
    /// There is no room for it.
    pub(super) fn promise(
        &self,
        ranges: &[ByteRange],
        growth: &dyn Fn() -> Result<u64, DiskError>,
    ) -> Result<Promise, NoRoom> {
        let bits = ranges.iter().map(bits_of).sum::<u64>();
        let most = ranges.iter().map(most_of).fold(0, u64::saturating_add);
        let exactly = || match growth()? {
            0 => Ok::<_, DiskError>(0),
            grown => Ok(grown.saturating_add(bits)),
        };
        let mut exact = None;
        let mut own = self.own.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(limit) = own.limit
            && own.used().saturating_add(most) > limit
        {
            (own.measured, own.since) = (bytes_of(&self.disk), 0);
            if own.used().saturating_add(most) > limit {
                let grown = exactly()?;
                if grown > 0 && own.used().saturating_add(grown) > limit {
                    own.tell_full(&self.client, limit);
                    return Err(NoRoom::Limit);
                }
                exact = Some(grown);
            }
            own.full &= own.used().saturating_add(limit / 16) > limit;
        }
        let mut bytes = exact.unwrap_or(most);
        if !self.space.promise(bytes) {
            bytes = match exact {
                Some(grown) => grown,
                None => exactly()?,
            };
            if !self.space.promise(bytes) {
                return Err(NoRoom::Host);
            }
        }
        own.since += bytes;
        Ok(Promise { space: Arc::clone(&self.space), bytes })
    }
}

/// What a write of a range takes for its bits at most.
fn bits_of(range: &ByteRange) -> u64 {
    (range.length / BITS_STEP + 2) * PAGE
}

/// What a write of a range takes at most, without a look at what is there.
fn most_of(range: &ByteRange) -> u64 {
    range.length.saturating_add(2 * PAGE).saturating_add(bits_of(range))
}

impl Own {
    /// What its files take up at most.
    fn used(&self) -> u64 {
        self.measured.saturating_add(self.since)
    }

    /// Said once, until it has freed a part.
    fn tell_full(&mut self, client: &ClientName, limit: u64) {
        if !std::mem::replace(&mut self.full, true) {
            tracing::warn!(
                "{client}: its disk has grown to its limit of {}: what would grow it further is refused; raise `limit` in \
                 roost.toml, or free space in it (delete checkpoints, roost client compact {client})",
                short(limit)
            );
        }
    }
}

/// What a client's own files take up on the host: its disk, of whichever format it is by now, the layers below it, and its
/// second disk.
pub(super) fn bytes_of(disk: &Path) -> u64 {
    let stored = |meta: &fs::Metadata| meta.blocks() * 512; // `st_blocks` counts these, whatever the file system's are
    let (Some(folder), Some(stem)) = (disk.parent(), disk.file_stem().and_then(|stem| stem.to_str())) else {
        return 0;
    };
    let top = names::find(&folder.join(stem)).and_then(|top| fs::metadata(top).ok());
    let top = top.map_or(0, |meta| stored(&meta));
    let (layer, data) = (format!("{stem}.checkpoint-"), data_file(stem));
    let is_own = |name: &str| name.starts_with(&layer) || name == data;
    let files = fs::read_dir(folder).into_iter().flatten().flatten();
    let others = files.filter(|file| file.file_name().to_str().is_some_and(is_own));
    others.filter_map(|layer| layer.metadata().ok()).map(|meta| stored(&meta)).fold(top, u64::saturating_add)
}

/// `256 KiB`, `20 MiB`.
fn short(bytes: u64) -> String {
    if bytes < 1 << 20 { format!("{} KiB", bytes >> 10) } else { format!("{} MiB", bytes >> 20) }
}

/// Looks at the host's space from time to time, and tells the operator and the clients when it runs low.
pub async fn run(app: &Arc<App>) {
    let space = Arc::clone(&app.disks.space);
    loop {
        let looking = Arc::clone(&space);
        // A file system may take its time.
        let news = tokio::task::spawn_blocking(move || looking.news()).await.unwrap_or_default();
        match news {
            Some(News::Low(free)) => {
                for disk in app.disks.open_disks() {
                    disk.unit().space_runs_low();
                }
                tracing::warn!(
                    "{}: {} left of {}, which is little: free some, or give clients a limit; once no more than {} are left, \
                     what grows a disk waits, and is told that the disk is busy",
                    space.state.display(),
                    short(free.free),
                    short(free.total),
                    short(free.reserve())
                );
            }
            Some(News::Recovered(free)) => {
                for disk in app.disks.open_disks() {
                    disk.unit().space_recovered();
                }
                tracing::info!("{}: {} are free again, which is enough", space.state.display(), short(free.free));
            }
            None => {}
        }
        tokio::time::sleep(LOOK).await;
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::collections::BTreeSet;
    use std::io::IoSlice;

    use proptest::prelude::*;

    use super::*;
    use crate::disk::file::Access;
    use crate::disk::{Chain, Disk as _};

    /// A file system that a test fills and frees.
    #[derive(Debug, Clone)]
    pub(in crate::app) struct Fake(Arc<Mutex<Free>>);

    impl Fake {
        pub(in crate::app) fn new(free: u64, total: u64) -> Self {
            Self(Arc::new(Mutex::new(Free { free, total })))
        }

        pub(in crate::app) fn set(&self, free: u64) {
            self.0.lock().unwrap().free = free;
        }

        fn get(&self) -> Free {
            *self.0.lock().unwrap()
        }

        /// An account of a client without a limit.
        pub(in crate::app) fn account(&self) -> Arc<Account> {
            let space = Space::with(Path::new("/state"), Box::new(self.clone()));
            Arc::new(Account::new(&"pc-01".parse().unwrap(), Path::new("/nowhere/pc-01.vhd"), &space))
        }
    }

    impl Meter for Fake {
        fn look(&self) -> io::Result<Free> {
            Ok(self.get())
        }
    }

    const TOTAL: u64 = 64 << 20;

    #[test]
    fn marks_follow_the_size_of_the_file_system() {
        let marks = |total: u64| {
            let free = Free { free: 0, total };
            (free.low() >> 20, free.reserve() >> 20)
        };
        assert_eq!(marks(16 << 20), (2, 0), "of the reserve there are 256 KiB");
        assert_eq!(marks(4 << 30), (512, 64));
        assert_eq!(marks(100 << 30), (5 << 10, 256));
        assert_eq!(marks(10 << 40), (64 << 10, 256));
    }

    #[test]
    fn a_host_that_runs_low_is_told_once_and_again_after_it_recovered() {
        let fake = Fake::new(TOTAL, TOTAL);
        let space = Space::with(Path::new("/state"), Box::new(fake.clone()));
        let low = TOTAL / 8;
        let mut news = |free| {
            fake.set(free);
            space.news().map(|news| matches!(news, News::Low(_)))
        };
        let told = [low, low - 1, 0, low, low + low / 8 - 1, low + low / 8, low, low - 1].map(&mut news);
        assert_eq!(told, [None, Some(true), None, None, None, Some(false), None, Some(true)]);
    }

    #[derive(Debug, Clone)]
    enum Step {
        /// A write asks for so much.
        Ask(u64),
        /// One that was let through allocates this part, in thousandths, of what it may, and is done or goes on.
        Write { which: usize, part: u64, done: bool },
        /// Others take or free so much, and it is looked.
        Others(u64),
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            4 => (0..8_u64 << 20).prop_map(Step::Ask),
            4 => (any::<usize>(), 0..=1000_u64, any::<bool>()).prop_map(|(which, part, done)| Step::Write { which, part, done }),
            1 => (0..TOTAL).prop_map(Step::Others),
        ];
        prop::collection::vec(step, 1..60)
    }

    proptest! {
        /// Who is let through finds what it was promised, beside all the others, and leaves the reserve alone; who is not
        /// would not have.
        #[test]
        fn what_is_promised_is_there(steps in steps()) {
            let fake = Fake::new(TOTAL, TOTAL);
            let reserve = fake.get().reserve();
            let space = Space::with(Path::new("/state"), Box::new(fake.clone()));
            // Of each write what it was promised, and what it has not allocated of that yet.
            let mut writes: Vec<(u64, u64)> = Vec::new();
            for step in steps {
                match step {
                    Step::Ask(bytes) => {
                        let free = fake.get().free;
                        let open: u64 = writes.iter().map(|(_, rest)| rest).sum();
                        let promised: u64 = writes.iter().map(|(whole, _)| whole).sum();
                        if space.promise(bytes) {
                            prop_assert!(bytes == 0 || free >= reserve + open + bytes, "{} of {}", bytes, free);
                            writes.push((bytes, bytes));
                        } else {
                            prop_assert!(free < reserve + promised + bytes, "{} of {}", bytes, free);
                        }
                    }
                    Step::Write { which, part, done } if !writes.is_empty() => {
                        let index = which % writes.len();
                        let (whole, rest) = &mut writes[index];
                        let taken = (*rest).min(*whole * part / 1000);
                        *rest -= taken;
                        fake.set(fake.get().free.saturating_sub(taken));
                        if done {
                            space.settle(writes.swap_remove(index).0);
                        }
                    }
                    Step::Write { .. } => {}
                    Step::Others(free) => {
                        fake.set(free);
                        space.news();
                    }
                }
            }
        }

        /// On a real file: it never takes more than its limit, a write is refused only where it would, and what lies there is
        /// overwritten whatever the limit.
        #[test]
        fn a_client_stays_within_its_limit(writes in prop::collection::vec((0..512_u64, 1..64_u64, any::<bool>()), 1..60)) {
            const LIMIT: u64 = 1 << 20;
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("pc-01.vhd");
            fs::File::create(&path).unwrap().set_len(4 << 20).unwrap();
            let disk = Chain::open(&path, Access::Write).unwrap();
            let space = Space::with(folder.path(), Box::new(Fake::new(TOTAL, TOTAL)));
            let account = Account::new(&"pc-01".parse().unwrap(), &path, &space);
            account.set_limit(Some(LIMIT));
            let mut mine: BTreeSet<u64> = BTreeSet::new();
            for (first, count, free) in writes {
                let range = ByteRange { offset: first * PAGE, length: count * PAGE };
                let pages = first..first + count;
                if free {
                    disk.zero(range.offset, range.length).unwrap();
                    mine.retain(|page| !pages.contains(page));
                    continue;
                }
                let new = pages.clone().filter(|page| !mine.contains(page)).count() as u64 * PAGE;
                prop_assert_eq!(disk.growth(range.offset, range.length).unwrap(), new);
                let used = bytes_of(&path);
                match account.promise(&[range], &|| disk.growth(range.offset, range.length)) {
                    Ok(_promise) => {
                        let data = vec![1; usize::try_from(range.length).unwrap()];
                        disk.write(range.offset, &[IoSlice::new(&data)]).unwrap();
                        mine.extend(pages);
                        prop_assert!(bytes_of(&path) <= LIMIT);
                    }
                    Err(NoRoom::Limit) => {
                        let bits = (range.length / BITS_STEP + 2) * PAGE;
                        prop_assert!(new > 0 && used + new + bits > LIMIT, "{} and {}", used, new);
                    }
                    Err(other) => return Err(TestCaseError::fail(other.to_string())),
                }
            }
        }
    }

    #[test]
    fn layers_count_and_other_clients_do_not() {
        let folder = tempfile::tempdir().unwrap();
        let fill = |name: &str, pages: usize| fs::write(folder.path().join(name), vec![1; pages * 4096]).unwrap();
        fill("pc-1.vhd", 3);
        fill("pc-1.checkpoint-1.vhd", 2);
        fill("pc-10.vhd", 7);
        fill("pc-10.checkpoint-1.vhd", 7);
        fill("pc-1.vhd.previous", 7);
        assert_eq!(bytes_of(&folder.path().join("pc-1.vhd")), 5 * 4096);
    }
}
