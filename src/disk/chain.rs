//! A disk file and the parents below it, opened and validated once.
//!
//! A request is mapped as a whole, layer by layer, to [`Extent`]s: bytes of a file, or zeros. Depth costs lookups in memory, no I/O.
//! The bottom of a client's chain is the master, one [`Arc`] that all children share: one descriptor, one table.

use std::io::{IoSlice, IoSliceMut};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use uuid::Uuid;

use super::error::DiskError;
use super::file::{Access, File, Media, folder_of};
use super::iovec::{self, Scatter};
use super::pending::PendingMap;
use super::vhd::sparse::{Sparse, Wait};
use super::vhd::wire::{Footer, Header, Kind, LocatorKind};
use super::vhdx::Vhdx;
use super::vhdx::engine::At;
use super::vhdx::wire::{ParentLocator, SIGNATURE};
use super::{Disk, PAGE, PassOn, SECTOR, Sectors, Stretch};

/// Layers that a chain may have. Each costs a lookup per request; more than this is a loop or an accident.
pub const MAX_DEPTH: usize = 64;

/// Bytes that [`Disk::zero`] maps at once, so that a request for the whole disk takes no memory by its size.
const ZERO_STEP: u64 = 1 << 30;

/// Parts in which a range is [passed on](Disk::pass_on), and their bytes on average at least: smaller ones are copied sooner.
const MAX_PARTS: usize = 16;
const MIN_PART: u64 = 16 * 1024;

/// Where a child's pending map is, and what this boot of the host is called (`/proc/sys/kernel/random/boot_id`).
#[derive(Debug, Clone)]
pub struct PendingPath {
    /// The map; made where it is missing.
    pub path: PathBuf,
    /// The host's boot id.
    pub boot_id: String,
}

/// A disk: one file, and the chain below it.
#[derive(Debug)]
pub struct Chain {
    layer: Arc<Layer>,
    parent: Option<Arc<Chain>>,
    /// A flush waits for nothing: what is written here outlives the process, not the power.
    volatile: AtomicBool,
}

#[derive(Debug)]
#[expect(clippy::large_enum_variant, reason = "one per open disk, and never moved about")]
enum Layer {
    /// The disk's bytes as they are: raw, or a fixed VHD before its footer.
    Flat(Flat),
    Sparse(Sparse),
    Vhdx(Vhdx),
}

#[derive(Debug)]
struct Flat {
    media: Box<dyn Media>,
    size: u64,
    footer: Option<Footer>,
    read_only: bool,
    failed: AtomicBool,
    unsettled: AtomicBool,
}

/// A part of a request in one place.
#[derive(Debug, Clone, Copy)]
pub struct Extent<'a> {
    /// Bytes.
    pub len: u64,
    /// The file and the offset in it, or `None`: zeros.
    pub at: Option<(&'a dyn Media, u64)>,
}

impl Chain {
    /// Opens a disk file, and every parent that it names, for reading or (the top only) for writing. A write outlives the
    /// process; a child opened this way may tear when power is lost, see [`open_child`](Chain::open_child).
    ///
    /// # Errors
    /// A damaged file, a parent that is missing or another, a loop, a lock, or the system's error.
    pub fn open(path: &Path, access: Access) -> Result<Self, DiskError> {
        Self::open_below(path, access, &mut Vec::new())
    }

    /// Opens a child over a parent that is open already. With a pending map its bits become durable after their data, and
    /// what an earlier process of this boot acknowledged is put right first.
    ///
    /// # Errors
    /// A file that is no child of this parent, a damaged file, a lock, or the system's error.
    pub fn open_child(path: &Path, parent: Arc<Chain>, pending: Option<PendingPath>) -> Result<Self, DiskError> {
        let media = Box::new(File::open(path, Access::Write)?);
        let pending = match pending {
            Some(PendingPath { path, boot_id }) => {
                let map: Box<dyn Media> = Box::new(File::open_or_create(&path)?);
                Some((map, boot_id))
            }
            None => None,
        };
        Self::child_on(media, parent, pending)
    }

    /// The same, on any media.
    pub(super) fn child_on(
        media: Box<dyn Media>,
        parent: Arc<Chain>,
        pending: Option<(Box<dyn Media>, String)>,
    ) -> Result<Self, DiskError> {
        let chain = Self::layer_on(media, parent, false)?;
        if let Some((media, boot_id)) = pending {
            chain.attach(media, &boot_id)?;
        }
        Ok(chain)
    }

    /// Opens a child that is only read from now on, over a parent that is open already.
    pub(super) fn frozen_on(media: Box<dyn Media>, parent: Arc<Chain>) -> Result<Self, DiskError> {
        Self::layer_on(media, parent, true)
    }

    /// The same top over another parent, which must read as the one before it. Both may be used at the same time.
    pub(super) fn over(&self, parent: Arc<Chain>) -> Self {
        let volatile = AtomicBool::new(self.is_volatile());
        Self { layer: Arc::clone(&self.layer), parent: Some(parent), volatile }
    }

    /// Puts a pending map under the top, and first what it tells into the top.
    fn attach(&self, map: Box<dyn Media>, boot_id: &str) -> Result<(), DiskError> {
        match &*self.layer {
            Layer::Flat(_) => Ok(()),
            Layer::Sparse(sparse) => {
                let (map, runs) = PendingMap::open(map, sparse.footer().id(), boot_id)?;
                sparse.attach(map, &runs)
            }
            Layer::Vhdx(vhdx) => {
                let (map, records) = PendingMap::open(map, vhdx.metadata().id, boot_id)?;
                vhdx.attach(map, &records)
            }
        }
    }

    fn layer_on(media: Box<dyn Media>, parent: Arc<Chain>, read_only: bool) -> Result<Self, DiskError> {
        let below = std::iter::successors(Some(&parent), |chain| chain.parent.as_ref()).count();
        if below >= MAX_DEPTH {
            return Err(too_deep(media.path()));
        }
        if is_vhdx(&*media)? {
            let vhdx = Vhdx::open(media, read_only)?;
            check_vhdx_parent(&vhdx, &parent)?;
            return Ok(Self::of(Layer::Vhdx(vhdx), Some(parent)));
        }
        let (footer, _) = Footer::read(&*media)?;
        if footer.kind() != Kind::Differencing {
            return Err(no_child(media.path()));
        }
        let sparse = Sparse::open(media, footer, read_only)?;
        check_parent(&sparse, &parent)?;
        Ok(Self::of(Layer::Sparse(sparse), Some(parent)))
    }

    /// Opens a child whose contents need not outlive the power: bits go straight into the file, and a flush is done at once.
    /// All that was acknowledged outlives the process. After a power loss the disk is of no use, which the caller sees to.
    ///
    /// # Errors
    /// As [`open_child`](Chain::open_child).
    pub fn open_volatile(path: &Path, parent: Arc<Chain>) -> Result<Self, DiskError> {
        Self::volatile_on(Box::new(File::open(path, Access::Write)?), parent)
    }

    /// The same, on any media.
    pub(super) fn volatile_on(media: Box<dyn Media>, parent: Arc<Chain>) -> Result<Self, DiskError> {
        let chain = Self::child_on(media, parent, None)?;
        if let Layer::Sparse(sparse) = &*chain.layer {
            sparse.make_volatile();
        }
        chain.volatile.store(true, Ordering::Release);
        if let Layer::Vhdx(vhdx) = &*chain.layer {
            vhdx.set_volatile(true);
        }
        Ok(chain)
    }

    /// Whether a flush waits for nothing, see [`open_volatile`](Chain::open_volatile).
    #[must_use]
    pub fn is_volatile(&self) -> bool {
        self.volatile.load(Ordering::Acquire)
    }

    /// Makes a volatile disk durable. When this returns, all that was acknowledged survives power loss, and so does what
    /// is flushed from now on. The map is empty or missing before.
    ///
    /// # Errors
    /// The system's; the disk is as volatile as it was.
    pub fn keep(&self, pending: &PendingPath) -> Result<(), DiskError> {
        let map = Box::new(File::open_or_create(&pending.path)?);
        self.keep_on(map, &pending.boot_id)
    }

    /// The same, with its map on any media.
    pub(super) fn keep_on(&self, map: Box<dyn Media>, boot_id: &str) -> Result<(), DiskError> {
        if let Layer::Vhdx(vhdx) = &*self.layer {
            vhdx.set_volatile(false);
            self.attach(map, boot_id).inspect_err(|_| vhdx.set_volatile(true))?;
        } else {
            self.attach(map, boot_id)?;
        }
        self.volatile.store(false, Ordering::Release);
        Ok(())
    }

    fn of(layer: Layer, parent: Option<Arc<Chain>>) -> Self {
        Self { layer: Arc::new(layer), parent, volatile: AtomicBool::new(false) }
    }

    /// Opens a file that has no parent, on any media.
    pub(super) fn base_on(media: Box<dyn Media>, access: Access) -> Result<Self, DiskError> {
        let layer = open_layer(media, access)?;
        match layer {
            Layer::Sparse(sparse) if sparse.footer().kind() == Kind::Differencing => {
                let (child, id) = (sparse.media().path().into(), sparse.header().parent_id());
                Err(DiskError::ParentMissing { child, id, tried: Vec::new() })
            }
            Layer::Vhdx(vhdx) if vhdx.metadata().parent.is_some() => {
                let child = vhdx.media().path().into();
                Err(DiskError::ParentMissing { child, id: linkage(&vhdx), tried: Vec::new() })
            }
            layer => Ok(Self::of(layer, None)),
        }
    }

    fn open_below(path: &Path, access: Access, above: &mut Vec<(u64, u64)>) -> Result<Self, DiskError> {
        let file = File::open(path, access)?;
        let identity = file.identity()?;
        if above.contains(&identity) {
            let what = "is its own ancestor: the parents form a loop".to_owned();
            return Err(DiskError::Chain { path: path.into(), what });
        }
        if above.len() >= MAX_DEPTH {
            return Err(too_deep(path));
        }
        above.push(identity);
        let layer = open_layer(Box::new(file), access)?;
        let (id, tried) = match &layer {
            Layer::Sparse(sparse) if sparse.footer().kind() == Kind::Differencing => {
                (sparse.header().parent_id(), parent_candidates(sparse.media(), sparse.header())?)
            }
            Layer::Vhdx(vhdx) => match &vhdx.metadata().parent {
                Some(locator) => (linkage(vhdx), vhdx_parent_candidates(path, locator)),
                None => return Ok(Self::of(layer, None)),
            },
            _ => return Ok(Self::of(layer, None)),
        };
        let Some(found) = tried.iter().find(|path| path.exists()) else {
            return Err(DiskError::ParentMissing { child: path.into(), id, tried });
        };
        let access = if access == Access::Peek { Access::Peek } else { Access::Read };
        let parent = Arc::new(Self::open_below(found, access, above)?);
        match &layer {
            Layer::Vhdx(vhdx) => check_vhdx_parent(vhdx, &parent)?,
            Layer::Sparse(sparse) => check_parent(sparse, &parent)?,
            Layer::Flat(_) => {}
        }
        Ok(Self::of(layer, Some(parent)))
    }

    /// The path of the top file.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.media().path()
    }

    /// The identity of the top file; raw files have none.
    #[must_use]
    pub fn unique_id(&self) -> Option<Uuid> {
        match &*self.layer {
            Layer::Vhdx(vhdx) => Some(vhdx.metadata().id),
            _ => self.footer().map(Footer::id),
        }
    }

    /// What a child names this disk by, as it is now: the identity of a VHD, the `DataWriteGuid` of a VHDX, which its first
    /// write after each opening renews.
    #[must_use]
    pub fn linkage(&self) -> Option<Uuid> {
        match &*self.layer {
            Layer::Vhdx(vhdx) => Some(vhdx.header().data_write),
            _ => self.unique_id(),
        }
    }

    /// What lies below.
    #[must_use]
    pub fn parent(&self) -> Option<&Arc<Chain>> {
        self.parent.as_ref()
    }

    /// Whether a flush would have something to do: settle such a disk when it has been idle for a while.
    #[must_use]
    pub fn dirty(&self) -> bool {
        match &*self.layer {
            Layer::Flat(flat) => flat.unsettled.load(Ordering::Acquire),
            Layer::Sparse(sparse) => sparse.is_unsettled(),
            Layer::Vhdx(vhdx) => vhdx.is_unsettled(),
        }
    }

    /// The footer of the top file, if it is a VHD.
    #[must_use]
    pub fn footer(&self) -> Option<&Footer> {
        match &*self.layer {
            Layer::Flat(flat) => flat.footer.as_ref(),
            Layer::Sparse(sparse) => Some(sparse.footer()),
            Layer::Vhdx(_) => None,
        }
    }

    /// The dynamic or differencing VHD on top, if it is one.
    #[must_use]
    pub fn sparse(&self) -> Option<&Sparse> {
        match &*self.layer {
            Layer::Sparse(sparse) => Some(sparse),
            Layer::Flat(_) | Layer::Vhdx(_) => None,
        }
    }

    /// The VHDX on top, if it is one.
    #[must_use]
    pub fn vhdx(&self) -> Option<&Vhdx> {
        match &*self.layer {
            Layer::Vhdx(vhdx) => Some(vhdx),
            Layer::Flat(_) | Layer::Sparse(_) => None,
        }
    }

    /// Whether the disk's bytes are the file's, from its first one on: raw, or a fixed VHD.
    #[must_use]
    pub fn is_flat(&self) -> bool {
        matches!(*self.layer, Layer::Flat(_))
    }

    /// The top file.
    #[must_use]
    pub fn media(&self) -> &dyn Media {
        match &*self.layer {
            Layer::Flat(flat) => &*flat.media,
            Layer::Sparse(sparse) => sparse.media(),
            Layer::Vhdx(vhdx) => vhdx.media(),
        }
    }

    /// Where each part of a range is, neighbours joined. Bytes beyond a parent's end are zeros.
    ///
    /// # Errors
    /// A range beyond the disk, or the system's error.
    pub fn resolve(&self, offset: u64, len: u64) -> Result<Vec<Extent<'_>>, DiskError> {
        self.check(offset, len)?;
        let mut extents = Vec::new();
        let mut rest = Extents::new(self, offset, len, Wait::Block);
        while let Some(extent) = rest.next()?.expect("it waits") {
            extents.push(extent);
        }
        Ok(extents)
    }

    /// Where a range is, as far as that is told by one table entry or bitmap of each layer that is asked; `None` if a bitmap would
    /// have to be waited for. Nothing is allocated and no lock is held when the next layer is asked.
    fn extent_at(&self, offset: u64, mut len: u64, wait: Wait) -> Result<Option<Extent<'_>>, DiskError> {
        let mut chain = self;
        loop {
            let at = match &*chain.layer {
                Layer::Flat(_) => At::Here(offset),
                Layer::Sparse(sparse) => {
                    let Some(run) = sparse.run_at(offset, len, wait)? else { return Ok(None) };
                    len = run.len;
                    run.at.map_or(At::Below, At::Here)
                }
                Layer::Vhdx(vhdx) => {
                    let Some(run) = vhdx.run_at(offset, len, wait)? else { return Ok(None) };
                    len = run.len;
                    run.at
                }
            };
            match (at, &chain.parent) {
                (At::Here(at), _) => return Ok(Some(Extent { len, at: Some((chain.media(), at)) })),
                (At::Below, Some(parent)) if parent.size() > offset => {
                    len = len.min(parent.size() - offset);
                    chain = parent;
                }
                (At::Below | At::Zero, _) => return Ok(Some(Extent { len, at: None })),
            }
        }
    }

    /// Reads a range that has been checked, by `read`; `false` if that or a bitmap would have to be waited for.
    fn read_extents(
        &self,
        offset: u64,
        bufs: &mut [IoSliceMut<'_>],
        wait: Wait,
        read: impl Fn(&dyn Media, u64, &mut [IoSliceMut<'_>]) -> Result<bool, DiskError>,
    ) -> Result<bool, DiskError> {
        let len = iovec::room(bufs);
        let mut rest = Extents::new(self, offset, len, wait);
        let Some(mut next) = rest.next()? else { return Ok(false) };
        // Most requests are in one place, and the caller's buffers serve as they are.
        if let Some(Extent { len: all, at: Some((media, at)) }) = next
            && all == len
        {
            return read(media, at, bufs);
        }
        let mut scatter = Scatter::new(bufs);
        while let Some(extent) = next {
            let mut bufs = scatter.take(extent.len);
            match extent.at {
                Some((media, at)) if !read(media, at, &mut bufs)? => return Ok(false),
                Some(_) => {}
                None => bufs.iter_mut().for_each(|buf| buf.fill(0)),
            }
            let Some(found) = rest.next()? else { return Ok(false) };
            next = found;
        }
        Ok(true)
    }

    /// Cuts a range at multiples of `step`, so that a request for the whole disk takes no memory by its size.
    fn zero_steps(
        &self,
        offset: u64,
        len: u64,
        step: u64,
        zero: &mut dyn FnMut(u64, u64) -> Result<(), DiskError>,
    ) -> Result<(), DiskError> {
        let (mut at, end) = (offset, offset + len);
        while at < end {
            let next = (at - at % step + step).min(end);
            zero(at, next - at)?;
            at = next;
        }
        Ok(())
    }

    /// What reads as zeros because nothing below holds it may stay as it is: no bit, no block, no space.
    fn zero_held(
        &self,
        offset: u64,
        len: u64,
        zero: &mut dyn FnMut(u64, u64) -> Result<(), DiskError>,
    ) -> Result<(), DiskError> {
        let mut at = offset;
        for extent in self.resolve(offset, len)? {
            if extent.at.is_some() {
                zero(at, extent.len)?;
            }
            at += extent.len;
        }
        Ok(())
    }

    /// Writes on a disk whose sectors are larger than a request's unit: the rest of the first and last sector is read.
    fn write_sectors(&self, vhdx: &Vhdx, offset: u64, bufs: &[IoSlice<'_>]) -> Result<(), DiskError> {
        let sector = u64::from(vhdx.metadata().logical_sector);
        let end = offset + iovec::len(bufs);
        let (before, after) = (offset % sector, end.next_multiple_of(sector) - end);
        if before == 0 && after == 0 {
            return vhdx.write(offset, bufs);
        }
        let edge = |at, len: u64| {
            let mut bytes = vec![0; usize::try_from(len).expect("under 4096")];
            self.read(at, &mut [IoSliceMut::new(&mut bytes)]).map(|()| bytes)
        };
        let (first, last) = (edge(offset - before, before)?, edge(end, after)?);
        let bufs = bufs.iter().map(|buf| IoSlice::new(buf));
        let bufs: Vec<_> = std::iter::once(IoSlice::new(&first)).chain(bufs).chain([IoSlice::new(&last)]).collect();
        vhdx.write(offset - before, &bufs)
    }

    /// Zeroes on such a disk.
    fn zero_sectors(&self, vhdx: &Vhdx, offset: u64, len: u64) -> Result<(), DiskError> {
        let sector = u64::from(vhdx.metadata().logical_sector);
        let zeros = [0; 4096];
        let edge = |at: u64, end: u64| match usize::try_from(end.saturating_sub(at)).expect("under 4096") {
            0 => Ok(()),
            len => self.write_sectors(vhdx, at, &[IoSlice::new(&zeros[..len])]),
        };
        let end = offset + len;
        let (first, last) = (offset.next_multiple_of(sector).min(end), end - end % sector);
        edge(offset, first)?;
        if first < last {
            vhdx.zero(first, last - first)?;
        }
        edge(last.max(first), end)
    }

    fn check(&self, offset: u64, len: u64) -> Result<(), DiskError> {
        let size = self.size();
        let whole = offset.is_multiple_of(SECTOR) && len.is_multiple_of(SECTOR);
        if !whole || offset.checked_add(len).is_none_or(|end| end > size) {
            return Err(DiskError::OutOfRange { path: self.path().into(), offset, len, size });
        }
        Ok(())
    }
}

impl Disk for Chain {
    fn size(&self) -> u64 {
        match &*self.layer {
            Layer::Flat(flat) => flat.size,
            Layer::Sparse(sparse) => sparse.size(),
            Layer::Vhdx(vhdx) => vhdx.size(),
        }
    }

    fn sectors(&self) -> Sectors {
        self.vhdx().map_or_else(Sectors::default, |vhdx| {
            let (logical, physical) = (vhdx.metadata().logical_sector, vhdx.metadata().physical_sector);
            Sectors { logical, physical }
        })
    }

    fn try_read(&self, offset: u64, bufs: &mut [IoSliceMut<'_>]) -> Result<bool, DiskError> {
        self.check(offset, iovec::room(bufs))?;
        self.read_extents(offset, bufs, Wait::Never, |media, at, bufs| media.try_read(at, bufs))
    }

    fn read(&self, offset: u64, bufs: &mut [IoSliceMut<'_>]) -> Result<(), DiskError> {
        self.check(offset, iovec::room(bufs))?;
        let complete =
            self.read_extents(offset, bufs, Wait::Block, |media, at, bufs| media.read(at, bufs).map(|()| true))?;
        debug_assert!(complete, "it waits");
        Ok(())
    }

    fn pass_on(&self, offset: u64, len: u64, each: &mut PassOn<'_>) -> Result<Option<u64>, DiskError> {
        self.check(offset, len)?;
        let mut parts = [None; MAX_PARTS];
        let most = usize::try_from(len / MIN_PART).unwrap_or(usize::MAX).clamp(1, MAX_PARTS);
        let (mut extents, mut count) = (Extents::new(self, offset, len, Wait::Never), 0);
        loop {
            match extents.next()? {
                Some(Some(Extent { len, at: Some((media, at)) })) if count < most => {
                    let Some(file) = media.in_memory(at, len) else { return Ok(None) };
                    parts[count] = Some((file, at, len));
                    count += 1;
                }
                Some(None) => break,
                _ => return Ok(None),
            }
        }
        let mut passed = 0;
        for (file, at, len) in parts.into_iter().flatten() {
            let taken = each(file, at, len);
            passed += taken;
            if taken < len {
                break;
            }
        }
        Ok(Some(passed))
    }

    fn write(&self, offset: u64, bufs: &[IoSlice<'_>]) -> Result<(), DiskError> {
        self.check(offset, iovec::len(bufs))?;
        match &*self.layer {
            Layer::Flat(flat) => {
                flat.begin_change()?;
                flat.media.write(offset, bufs)
            }
            Layer::Sparse(sparse) => sparse.write(offset, bufs),
            Layer::Vhdx(vhdx) if vhdx.metadata().logical_sector == 512 => vhdx.write(offset, bufs),
            Layer::Vhdx(vhdx) => {
                let _edges = vhdx.edges.lock().expect("no writer panicked");
                self.write_sectors(vhdx, offset, bufs)
            }
        }
    }

    fn try_write(&self, offset: u64, bufs: &[IoSlice<'_>]) -> Result<bool, DiskError> {
        let len = iovec::len(bufs);
        self.check(offset, len)?;
        match &*self.layer {
            Layer::Flat(_) => Ok(false),
            Layer::Sparse(sparse) => sparse.try_write(offset, bufs),
            Layer::Vhdx(vhdx) => {
                let sector = u64::from(vhdx.metadata().logical_sector);
                let whole = offset.is_multiple_of(sector) && len.is_multiple_of(sector);
                if whole { vhdx.try_write(offset, bufs) } else { Ok(false) }
            }
        }
    }

    fn zero(&self, offset: u64, len: u64) -> Result<(), DiskError> {
        self.check(offset, len)?;
        if self.read_only() {
            return Err(DiskError::ReadOnly { path: self.path().into() });
        }
        match &*self.layer {
            Layer::Flat(flat) => {
                flat.begin_change()?;
                flat.media.zero(offset, len)
            }
            Layer::Sparse(sparse) => self.zero_steps(offset, len, ZERO_STEP, &mut |at, len| {
                self.zero_held(at, len, &mut |at, len| sparse.zero(at, len))
            }),
            Layer::Vhdx(vhdx) => {
                let _edges = vhdx.edges.lock().expect("no writer panicked");
                let block = u64::from(vhdx.metadata().block_size);
                self.zero_steps(offset, len, block, &mut |at, len| {
                    let end = (at - at % block + block).min(self.size());
                    if at.is_multiple_of(block) && at + len == end {
                        // One word in the table says that a whole block is zeros.
                        let held = self.resolve(at, len)?.iter().any(|extent| extent.at.is_some());
                        return if held { vhdx.zero(at, len) } else { Ok(()) };
                    }
                    self.zero_held(at, len, &mut |at, len| self.zero_sectors(vhdx, at, len))
                })
            }
        }
    }

    fn flush(&self) -> Result<(), DiskError> {
        if self.is_volatile() {
            return Ok(());
        }
        match &*self.layer {
            Layer::Flat(flat) => flat.flush(),
            Layer::Sparse(sparse) => sparse.flush(),
            Layer::Vhdx(vhdx) => vhdx.flush(),
        }
    }

    fn close(&self) -> Result<(), DiskError> {
        self.flush()?;
        self.vhdx().map_or(Ok(()), Vhdx::close)
    }

    fn read_only(&self) -> bool {
        match &*self.layer {
            Layer::Flat(flat) => flat.read_only,
            Layer::Sparse(sparse) => sparse.read_only(),
            Layer::Vhdx(vhdx) => vhdx.read_only(),
        }
    }

    fn provisioning(&self, offset: u64, len: u64, most: usize) -> Result<Vec<Stretch>, DiskError> {
        self.check(offset, len)?;
        let mut stretches = Vec::<Stretch>::new();
        // One by one: whoever asks for the whole disk wants to hear of its beginning.
        let mut extents = Extents::new(self, offset, len, Wait::Block);
        while stretches.len() <= most
            && let Some(extent) = extents.next()?.expect("it waits")
        {
            let Some((media, start)) = extent.at else {
                add_stretch(&mut stretches, Stretch { len: extent.len, mapped: false });
                continue;
            };
            // What a file has may be a hole in it: zeros that were written, or freed.
            let (mut here, end) = (start, start + extent.len);
            while here < end && stretches.len() <= most {
                let data = media.next_data(here)?.unwrap_or(end).clamp(here, end);
                let hole = if data < end { media.next_hole(data)?.clamp(data + 1, end) } else { end };
                add_stretch(&mut stretches, Stretch { len: data - here, mapped: false });
                add_stretch(&mut stretches, Stretch { len: hole - data, mapped: true });
                here = hole;
            }
        }
        stretches.truncate(most);
        Ok(stretches)
    }

    fn growth(&self, offset: u64, len: u64) -> Result<u64, DiskError> {
        self.check(offset, len)?;
        let (mut at, end) = (offset, offset + len);
        let mut bytes = 0;
        match &*self.layer {
            Layer::Flat(flat) => bytes = holes(&*flat.media, offset, len)?,
            // Where a sector lies is known before it is written: no bitmap has to be read.
            Layer::Sparse(sparse) => {
                while at < end {
                    let (place, piece) = sparse.place_of(at);
                    let piece = piece.min(end - at);
                    bytes += match place {
                        Some(place) => holes(sparse.media(), place, piece)?,
                        None => pages(0, piece),
                    };
                    at += piece;
                }
            }
            Layer::Vhdx(vhdx) => {
                for run in vhdx.map_range(offset, len, Wait::Block)?.unwrap_or_default() {
                    bytes += match run.at {
                        At::Here(place) => holes(vhdx.media(), place, run.len)?,
                        At::Zero | At::Below => pages(run.offset, run.len),
                    };
                }
            }
        }
        Ok(bytes)
    }
}

/// Bytes of the pages that a range touches.
fn pages(at: u64, len: u64) -> u64 {
    let (first, end) = (at - at % PAGE, at.saturating_add(len));
    if len == 0 { 0 } else { end.next_multiple_of(PAGE) - first }
}

/// Bytes that a file takes up in addition once this range of it is written.
fn holes(media: &dyn Media, at: u64, len: u64) -> Result<u64, DiskError> {
    let (mut here, end) = (at, at + len);
    let mut bytes = 0;
    while here < end {
        let data = media.next_data(here)?.unwrap_or(end).clamp(here, end);
        bytes += pages(here, data - here);
        here = if data < end { media.next_hole(data)?.clamp(data + 1, end) } else { end };
    }
    Ok(bytes)
}

/// Adds a stretch, or lengthens the last one where it is alike.
fn add_stretch(stretches: &mut Vec<Stretch>, new: Stretch) {
    match stretches.last_mut() {
        _ if new.len == 0 => {}
        Some(last) if last.mapped == new.mapped => last.len += new.len,
        _ => stretches.push(new),
    }
}

impl Flat {
    fn begin_change(&self) -> Result<(), DiskError> {
        if self.read_only {
            return Err(DiskError::ReadOnly { path: self.media.path().into() });
        }
        self.check_sound()?;
        self.unsettled.store(true, Ordering::Release);
        Ok(())
    }

    fn flush(&self) -> Result<(), DiskError> {
        self.check_sound()?;
        // Cleared first: a write that comes in between is then not forgotten.
        if self.unsettled.swap(false, Ordering::AcqRel) {
            self.media.sync().inspect_err(|_| self.failed.store(true, Ordering::Release))?;
        }
        Ok(())
    }

    fn check_sound(&self) -> Result<(), DiskError> {
        if self.failed.load(Ordering::Acquire) {
            return Err(DiskError::Failed { path: self.media.path().into() });
        }
        Ok(())
    }
}

/// The extents of a range, one after another, neighbours joined.
struct Extents<'a> {
    chain: &'a Chain,
    offset: u64,
    end: u64,
    wait: Wait,
    /// Found to be no part of the extent before it.
    found: Option<Extent<'a>>,
}

impl<'a> Extents<'a> {
    /// The caller has checked the range.
    fn new(chain: &'a Chain, offset: u64, len: u64, wait: Wait) -> Self {
        Self { chain, offset, end: offset + len, wait, found: None }
    }

    /// The next extent, or `None` inside where the range ends; `None` if a bitmap would have to be waited for.
    #[expect(clippy::option_option, reason = "the end is no failure, and to wait is no end")]
    fn next(&mut self) -> Result<Option<Option<Extent<'a>>>, DiskError> {
        let mut extent = self.found.take();
        while self.offset < self.end {
            let Some(next) = self.chain.extent_at(self.offset, self.end - self.offset, self.wait)? else {
                return Ok(None);
            };
            self.offset += next.len;
            match &mut extent {
                None => extent = Some(next),
                Some(last) if last.goes_on_in(&next) => last.len += next.len,
                Some(_) => {
                    self.found = Some(next);
                    break;
                }
            }
        }
        Ok(Some(extent))
    }
}

impl Extent<'_> {
    fn goes_on_in(&self, next: &Self) -> bool {
        match (self.at, next.at) {
            (None, None) => true,
            (Some((file, at)), Some((next_file, next_at))) => {
                std::ptr::addr_eq(file, next_file) && at + self.len == next_at
            }
            _ => false,
        }
    }
}

/// Opens one file by what it holds: a VHD, or else raw.
fn open_layer(media: Box<dyn Media>, access: Access) -> Result<Layer, DiskError> {
    use super::file::read_vec;
    let read_only = access != Access::Write;
    if is_vhdx(&*media)? {
        return Ok(Layer::Vhdx(Vhdx::open(media, read_only)?));
    }
    let len = media.len()?;
    let claimed = len >= 512 && {
        let (first, last) = (read_vec(&*media, 0, 512)?, read_vec(&*media, len - 512, 512)?);
        Footer::claimed(&first, &last)
    };
    let flat = |media, size, footer| {
        let (failed, unsettled) = (AtomicBool::new(false), AtomicBool::new(!read_only));
        Ok(Layer::Flat(Flat { media, size, footer, read_only, failed, unsettled }))
    };
    if !claimed {
        if len == 0 || !len.is_multiple_of(SECTOR) {
            let what = format!("{len} bytes are no disk: a raw disk is a whole number of 512-byte sectors");
            return Err(DiskError::Unsupported { path: media.path().into(), what });
        }
        return flat(media, len, None);
    }
    let (footer, _) = Footer::read(&*media)?;
    if footer.kind() != Kind::Fixed {
        return Ok(Layer::Sparse(Sparse::open(media, footer, read_only)?));
    }
    let size = footer.size();
    if size > len - 511 {
        let what = format!("the footer tells of {size} bytes, of which the file has {}", len - 511);
        return Err(DiskError::corrupt(media.path(), len - 512, what));
    }
    flat(media, size, Some(footer))
}

/// Whether a file says that it is a VHDX.
pub(super) fn is_vhdx(media: &dyn Media) -> Result<bool, DiskError> {
    Ok(media.len()? >= 8 && super::file::read_vec(media, 0, 8)? == SIGNATURE)
}

fn no_child(path: &Path) -> DiskError {
    DiskError::Unsupported { path: path.into(), what: "is a disk of its own, not a differencing disk".to_owned() }
}

fn too_deep(path: &Path) -> DiskError {
    DiskError::Chain { path: path.into(), what: format!("with it the chain has more than {MAX_DEPTH} layers") }
}

fn check_parent(child: &Sparse, parent: &Chain) -> Result<(), DiskError> {
    let path = || child.media().path().to_path_buf();
    let wanted = child.header().parent_id();
    if parent.vhdx().is_some() {
        let what = format!("is a VHDX, which cannot be the parent of a VHD such as {}", path().display());
        return Err(DiskError::Unsupported { path: parent.path().into(), what });
    }
    let Some(found) = parent.unique_id() else {
        let what = format!("is raw, so it cannot be the parent with id {wanted} that {} wants", path().display());
        return Err(DiskError::Unsupported { path: parent.path().into(), what });
    };
    if found != wanted {
        return Err(DiskError::ParentMismatch { child: path(), parent: parent.path().into(), wanted, found });
    }
    if child.size() < parent.size() {
        let what = format!("has {} bytes, fewer than the {} of its parent", child.size(), parent.size());
        return Err(DiskError::Chain { path: path(), what });
    }
    Ok(())
}

/// The DataWriteGuid that a differencing VHDX wants of its parent.
fn linkage(child: &Vhdx) -> Uuid {
    child.metadata().parent.as_ref().and_then(ParentLocator::linkage).unwrap_or_default()
}

fn check_vhdx_parent(child: &Vhdx, parent: &Chain) -> Result<(), DiskError> {
    let path = || child.media().path().to_path_buf();
    let Some(locator) = &child.metadata().parent else { return Err(no_child(&path())) };
    // A VHDX knows its parent by the DataWriteGuid, which no other format has; Windows mixes no formats either.
    let Some(below) = parent.vhdx() else {
        let what = format!("is no VHDX, so it cannot be the parent of {}", path().display());
        return Err(DiskError::Unsupported { path: parent.path().into(), what });
    };
    let found = below.header().data_write;
    if !locator.accepts(found) {
        let (parent, wanted) = (parent.path().into(), linkage(child));
        return Err(DiskError::ParentChanged { child: path(), parent, wanted, found });
    }
    let sectors = (child.metadata().logical_sector, below.metadata().logical_sector);
    if sectors.0 != sectors.1 {
        let what = format!("has logical sectors of {} bytes, its parent of {}", sectors.0, sectors.1);
        return Err(DiskError::Chain { path: path(), what });
    }
    if child.size() < parent.size() {
        let what = format!("has {} bytes, fewer than the {} of its parent", child.size(), parent.size());
        return Err(DiskError::Chain { path: path(), what });
    }
    Ok(())
}

/// Where a differencing VHDX's parent may be, in the order that the format gives: relative, on a volume, absolute. Of a
/// path of another host the bare name is tried, beside the child.
#[must_use]
pub fn vhdx_parent_candidates(child: &Path, locator: &ParentLocator) -> Vec<PathBuf> {
    let folder = folder_of(child);
    let slashes = |text: &str| text.replace('\\', "/");
    let mut candidates: Vec<PathBuf> = Vec::new();
    if let Some(text) = locator.value("relative_path") {
        let path = folder.join(slashes(text).trim_start_matches('/'));
        candidates.push(path.components().collect()); // drops the "." that Windows begins with
    }
    let keys = ["volume_path", "absolute_win32_path"];
    for text in keys.iter().filter_map(|key| locator.value(key)) {
        // A path of this kind of host may hold a backslash as a letter.
        match text.starts_with('/') {
            true => candidates.push(PathBuf::from(text)),
            false => candidates.extend(Path::new(&slashes(text)).file_name().map(|name| folder.join(name))),
        }
    }
    candidates.extend(
        locator.value("relative_path").and_then(|text| Some(folder.join(Path::new(&slashes(text)).file_name()?))),
    );
    distinct(folder, candidates)
}

/// Drops what is no path of a file, and what was named before.
fn distinct(folder: &Path, candidates: Vec<PathBuf>) -> Vec<PathBuf> {
    let mut seen: Vec<PathBuf> = Vec::new();
    for path in candidates {
        if path != folder && !path.as_os_str().as_encoded_bytes().contains(&0) && !seen.contains(&path) {
            seen.push(path);
        }
    }
    seen
}

/// Where a differencing disk's parent may be, in the order to try: relative, absolute, and the parent's bare name beside
/// the child, for a path of another host.
///
/// # Errors
/// A locator outside of the file, or the system's error.
pub fn parent_candidates(media: &dyn Media, header: &Header) -> Result<Vec<PathBuf>, DiskError> {
    let folder = folder_of(media.path());
    let slashes = |text: &str| text.replace('\\', "/");
    let mut candidates = Vec::new();
    for locator in header.locators() {
        let text = locator.text(media)?;
        match locator.kind {
            LocatorKind::Relative => {
                let path = folder.join(slashes(&text).trim_start_matches('/'));
                candidates.push(path.components().collect()); // drops the "." that Windows begins with
            }
            // A path of this kind of host may hold a backslash as a letter.
            LocatorKind::Absolute if text.starts_with('/') => candidates.push(PathBuf::from(text)),
            LocatorKind::Absolute => candidates.extend(Path::new(&slashes(&text)).file_name().map(|n| folder.join(n))),
        }
    }
    candidates.extend(Path::new(&slashes(&header.parent_name())).file_name().map(|name| folder.join(name)));
    Ok(distinct(folder, candidates))
}
