//! What can be done to a client's disk as a whole: checkpoint, roll back, merge, resize, compact.
//!
//! A client's disk is the top of a chain. Below it lie layers that are frozen, each a file that never changes again, and
//! at the bottom the master. [`Overlay`] is such a chain while it is served; [`Place`] is where its files are, [`Tree`] what
//! they say; [`merge`] makes chains shorter, [`versions`] makes masters of them.
//!
//! # A checkpoint
//!
//! A checkpoint takes the disk's present file out of the way and puts an empty child in its place. No data moves.
//!
//! | step | what a crash after it leaves |
//! |---|---|
//! | the disk is flushed, its pending map is empty | the disk |
//! | the note is written | the disk, and a note of nothing, which the next checkpoint overwrites |
//! | the child is written as `NAME.vhd.next`, and durable; its parent is to be `NAME.checkpoint-N.vhd` | the disk, and a file of no meaning |
//! | the disk gets `NAME.checkpoint-N.vhd` as a second name; the folder is flushed | the disk. The second name is known for what it is by the identity, and removed when the disk is opened |
//! | `NAME.vhd.next` is renamed to `NAME.vhd`; the folder is flushed | the child, over the checkpoint |
//!
//! So at every moment `NAME.vhd` is a whole disk with all that was flushed. All this is one operation of the disk's writer:
//! no write comes in between, reads go on over whichever chain they began with.
//!
//! # A change of size
//!
//! The same, with a larger child: beyond its parent it reads as zeros. The layer that is left is no checkpoint, and is
//! merged away once something lies on it that is frozen too.
//!
//! # Thawing
//!
//! A layer that is no checkpoint and has nothing above it but an empty disk of its size becomes the disk again, by one rename.

mod format;
mod layers;
pub mod merge;
pub mod versions;

#[cfg(test)]
mod tests;

use std::io::{IoSlice, IoSliceMut};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use uuid::Uuid;

use super::chain::{Chain, PendingPath};
use super::error::DiskError;
use super::file::{Access, File, Media};
use super::names::Format;
use super::{Disk, PassOn, Sectors, Stretch};
use format::{Seen, look};
pub use format::{identity, size};
use layers::open_layers;
pub use layers::{Layer, MAX_NOTE, Note, Place, Step, Tree};

/// Checkpoints that one client's disk may have. Each costs a lookup for every read that goes through it; and a checkpoint
/// that nobody can tell from thirty others helps nobody.
pub const MAX_CHECKPOINTS: usize = 32;

/// Layers that may lie below a disk: its checkpoints, one layer between each two of them at the worst, and a margin for those
/// that wait to be merged. Below the limit of any chain ([`MAX_DEPTH`](super::chain::MAX_DEPTH)).
pub const MAX_LAYERS: usize = 56;

/// Sizes of disks are multiples of this, as Windows and every partitioner expect.
pub const SIZE_UNIT: u64 = 1 << 20;

/// Why a verb was not carried out. Nothing has happened.
#[derive(Debug, thiserror::Error)]
pub enum VerbError {
    /// It must not be done.
    #[error("{what}")]
    Refused {
        /// Why.
        what: String,
        /// What to do instead.
        help: String,
    },
    /// It failed.
    #[error(transparent)]
    Disk(#[from] DiskError),
}

fn refused(what: impl Into<String>, help: impl Into<String>) -> VerbError {
    VerbError::Refused { what: what.into(), help: help.into() }
}

/// A file that two layers' states may hold at the same time: the one that is being frozen has no more use for it.
#[derive(Debug, Clone)]
struct Shared(Arc<File>);

impl Media for Shared {
    fn path(&self) -> &Path {
        self.0.path()
    }
    fn len(&self) -> Result<u64, DiskError> {
        self.0.len()
    }
    fn set_len(&self, len: u64) -> Result<(), DiskError> {
        self.0.set_len(len)
    }
    fn try_read(&self, offset: u64, bufs: &mut [IoSliceMut<'_>]) -> Result<bool, DiskError> {
        self.0.try_read(offset, bufs)
    }
    fn read(&self, offset: u64, bufs: &mut [IoSliceMut<'_>]) -> Result<(), DiskError> {
        self.0.read(offset, bufs)
    }
    fn write(&self, offset: u64, bufs: &[IoSlice<'_>]) -> Result<(), DiskError> {
        self.0.write(offset, bufs)
    }
    fn try_write(&self, offset: u64, bufs: &[IoSlice<'_>]) -> Result<bool, DiskError> {
        self.0.try_write(offset, bufs)
    }
    fn zero(&self, offset: u64, len: u64) -> Result<(), DiskError> {
        self.0.zero(offset, len)
    }
    fn sync(&self) -> Result<(), DiskError> {
        self.0.sync()
    }
    fn next_data(&self, offset: u64) -> Result<Option<u64>, DiskError> {
        self.0.next_data(offset)
    }
}

/// The pending map of the disk, whichever file that is.
#[derive(Debug)]
struct Map {
    file: Shared,
    boot_id: String,
}

impl Map {
    fn open(pending: &PendingPath) -> Result<Self, DiskError> {
        let file = Shared(Arc::new(File::open_or_create(&pending.path)?));
        Ok(Self { file, boot_id: pending.boot_id.clone() })
    }

    fn media(&self) -> Box<dyn Media> {
        Box::new(self.file.clone())
    }
}

/// A client's disk while it is served: a chain whose top can be frozen under it.
///
/// Reads take the chain as it is when they begin. The verbs exclude each other, but not writes: the caller lets no write
/// happen meanwhile.
#[derive(Debug)]
pub struct Overlay {
    place: Place,
    base: Arc<Chain>,
    top: RwLock<Arc<Chain>>,
    /// Held by a verb. `None`: the disk is volatile, and has no map.
    map: Mutex<Option<Map>>,
    /// A verb failed half-way: which file is the disk by now is for the next opening to find out.
    stuck: AtomicBool,
}

impl Overlay {
    /// Opens the disk, over its layers and `base`, the master that is open already. With a pending map it is durable, see
    /// [`Chain::open_child`]; without one, volatile, see [`Chain::open_volatile`].
    ///
    /// # Errors
    /// A file that does not stand on `base`, a damaged file, a lock, or the system's error.
    pub fn open(place: Place, base: Arc<Chain>, pending: Option<&PendingPath>) -> Result<Self, DiskError> {
        let top = place.top().to_owned();
        let parent = {
            let _gate = place.layers_stay();
            let tree = Tree::read(&place)?;
            for &number in &tree.unfinished {
                // Before anything is written: it is the same file.
                place.remove(number)?;
            }
            // What is no child at all, or cannot be read, is told of below.
            match tree.top.as_ref().and_then(|seen| seen.parent) {
                Some(id) => open_layers(&place, &tree, id, &base, &top)?,
                None => Arc::clone(&base),
            }
        };
        let file = Box::new(File::open(&top, Access::Write)?);
        let (chain, map) = match pending {
            None => (Chain::volatile_on(file, parent)?, None),
            Some(pending) => {
                let map = Map::open(pending)?;
                let chain = Chain::child_on(file, parent, Some((map.media(), map.boot_id.clone())))?;
                (chain, Some(map))
            }
        };
        let top = RwLock::new(Arc::new(chain));
        Ok(Self { place, base, top, map: Mutex::new(map), stuck: AtomicBool::new(false) })
    }

    /// Where its files are.
    #[must_use]
    pub fn place(&self) -> &Place {
        &self.place
    }

    /// The master.
    #[must_use]
    pub fn base(&self) -> &Arc<Chain> {
        &self.base
    }

    /// The identity of the file that is on top now.
    ///
    /// # Panics
    /// Never: the top is a child, and every child has one.
    #[must_use]
    pub fn unique_id(&self) -> Uuid {
        self.top().unique_id().expect("a child has an identity")
    }

    /// Whether a flush waits for nothing, see [`Chain::open_volatile`].
    #[must_use]
    pub fn is_volatile(&self) -> bool {
        self.top().is_volatile()
    }

    /// Whether a flush would have something to do.
    #[must_use]
    pub fn dirty(&self) -> bool {
        self.top().dirty()
    }

    /// Makes a volatile disk durable, see [`Chain::keep`].
    ///
    /// # Errors
    /// The system's; the disk is as volatile as it was.
    pub fn keep(&self, pending: &PendingPath) -> Result<(), DiskError> {
        let mut held = self.map();
        let map = Map::open(pending)?;
        self.top().keep_on(map.media(), &map.boot_id)?;
        *held = Some(map);
        Ok(())
    }

    /// Freezes the disk as it is, durably, and goes on in an empty child. The layer's number.
    ///
    /// # Errors
    /// Refusals, and the system's errors; the disk is as it was, or takes no more writes until it is opened anew.
    pub fn checkpoint(&self, note: &Note) -> Result<u32, VerbError> {
        let held = self.map();
        let tree = Tree::read(&self.place)?;
        if tree.checkpoints().count() >= MAX_CHECKPOINTS {
            return Err(refused(
                format!("the disk has {MAX_CHECKPOINTS} checkpoints, which is the limit"),
                "delete one that is not needed any more: `roost client checkpoints NAME` lists them",
            ));
        }
        if note.text.len() > MAX_NOTE {
            let what = format!("a note of {} bytes is too long: {MAX_NOTE} are the limit", note.text.len());
            return Err(refused(what, "a sentence says it"));
        }
        self.push(held.as_ref(), &tree, note, self.size())
    }

    /// Grows the disk to `size` bytes; what is new reads as zeros. False if it has that size.
    ///
    /// # Errors
    /// As [`checkpoint`](Overlay::checkpoint).
    pub fn resize(&self, size: u64, now_ms: u64) -> Result<bool, VerbError> {
        let held = self.map();
        let now = self.size();
        if size == now {
            return Ok(false);
        }
        if size < now {
            return Err(refused(
                format!(
                    "the disk has {now} bytes, and a disk does not shrink: {size} bytes would cut off what lies there"
                ),
                "shrink the file system and copy what is left to a smaller disk, or leave it: what was never written takes \
                 no space on the host",
            ));
        }
        if !size.is_multiple_of(SIZE_UNIT) {
            return Err(refused(format!("{size} bytes are no whole MiB"), "sizes of disks are whole MiB"));
        }
        let most = Format::of_child(&self.base).max_size();
        if size > most {
            let what = format!("{size} bytes are too many: disks of this format end at {} GiB", most >> 30);
            return Err(refused(what, "choose a smaller size"));
        }
        self.push(held.as_ref(), &Tree::read(&self.place)?, &left_by_a_verb(now_ms), size)?;
        Ok(true)
    }

    /// Freezes the top under this note, and goes on in a child of this size: see the module.
    fn push(&self, map: Option<&Map>, tree: &Tree, note: &Note, size: u64) -> Result<u32, VerbError> {
        let place = &self.place;
        let top = self.top();
        self.check_sound()?;
        let Some(map) = map.filter(|_| !top.is_volatile()) else {
            return Err(refused(
                "the disk need not outlive the power, so nothing can stand on it",
                "give the client `disk = \"keep\"`",
            ));
        };
        if tree.below_top().len() >= MAX_LAYERS {
            return Err(refused(
                format!("{MAX_LAYERS} layers lie below the disk, which is the limit"),
                "layers are being merged: try again later, or switch the machine off and run `roost client compact NAME`",
            ));
        }
        // The frozen file is complete without a log.
        top.close()?;
        let number = tree.next_number();
        let made = self.make_child(number, &top, note, size);
        let renamed = made.and_then(|upper| place.hands.rename(&place.next(), place.top()).map(|()| upper));
        let upper = renamed.inspect_err(|_| {
            // The disk is as it was; what was begun means nothing, and is removed as far as that is possible.
            let _ = place.hands.remove(&place.next());
            let _ = place.remove(number);
        })?;
        // From here on this process must not write to the old file, whatever happens.
        self.stuck.store(true, Ordering::Release);
        place.hands.sync(place.top())?;
        upper.keep_on(map.media(), &map.boot_id)?;
        self.go_on_with(upper);
        Ok(number)
    }

    /// Everything before the rename: the note, the child, the second name.
    fn make_child(&self, number: u32, top: &Chain, note: &Note, size: u64) -> Result<Chain, DiskError> {
        let place = &self.place;
        let Seen { format, .. } = look(place.top())?;
        let frozen = place.layer(number);
        place.write_note(number, note)?;
        place.write_next(format, top, (&place.spelled(number), &frozen), size)?;
        place.hands.link(place.top(), &frozen)?;
        place.hands.sync(&frozen)?;
        // Opened before it counts, so that little can fail afterwards.
        let below = Arc::clone(top.parent().unwrap_or(&self.base));
        let lower = Chain::frozen_on(Box::new(File::open(&frozen, Access::Peek)?), below)?;
        let file = File::open(&place.next(), Access::Write)?.called(place.top());
        Chain::child_on(Box::new(file), Arc::new(lower), None)
    }

    /// Sets the disk's contents aside where that lets the layer below it be merged: it is no checkpoint, nothing else stands on
    /// it, and [`thaw`](Overlay::thaw) cannot do it. True if it did; a [`tidy`](merge::tidy) then merges the two.
    ///
    /// # Errors
    /// As [`checkpoint`](Overlay::checkpoint).
    pub fn loosen(&self, now_ms: u64) -> Result<bool, VerbError> {
        let held = self.map();
        let tree = Tree::read(&self.place)?;
        let Some(layer) = lone_layer(&tree) else { return Ok(false) };
        let top = self.top();
        if layer.size == top.size() && format::is_empty(&top)? {
            return Ok(false);
        }
        self.push(held.as_ref(), &tree, &left_by_a_verb(now_ms), top.size())?;
        Ok(true)
    }

    /// Makes the layer right below the disk the disk again, where that changes nothing: see the module. True if it did.
    ///
    /// # Errors
    /// The system's; the disk is as it was, or takes no more writes until it is opened anew.
    pub fn thaw(&self) -> Result<bool, DiskError> {
        let held = self.map();
        let (place, top) = (&self.place, self.top());
        self.check_sound()?;
        let Some(map) = held.as_ref().filter(|_| !top.is_volatile()) else { return Ok(false) };
        let tree = Tree::read(place)?;
        let Some(layer) = lone_layer(&tree) else { return Ok(false) };
        if layer.size != top.size() || !format::is_empty(&top)? {
            return Ok(false);
        }
        top.flush()?;
        let _gate = place.layers_move();
        let path = place.layer(layer.number);
        let below = open_layers(place, &tree, layer.parent, &self.base, &path)?;
        let file = File::open(&path, Access::Write)?.called(place.top());
        let thawed = Chain::child_on(Box::new(file), below, None)?;
        place.hands.rename(&path, place.top())?;
        self.stuck.store(true, Ordering::Release);
        place.hands.sync(place.top())?;
        thawed.keep_on(map.media(), &map.boot_id)?;
        self.go_on_with(thawed);
        // Without its layer the note says nothing.
        let _ = place.hands.remove(&place.note(layer.number));
        Ok(true)
    }

    /// Takes the layers below as they are in the files by now, after a merge.
    ///
    /// # Errors
    /// The system's; the disk goes on over the old ones, which say the same.
    pub fn rebase(&self) -> Result<(), DiskError> {
        let _held = self.map();
        let _gate = self.place.layers_stay();
        let top = self.top();
        let tree = Tree::read(&self.place)?;
        let Some(parent) = tree.top.as_ref().filter(|seen| Some(seen.id) == top.linkage()).and_then(|top| top.parent)
        else {
            return Ok(());
        };
        let below = open_layers(&self.place, &tree, parent, &self.base, self.place.top())?;
        *self.top.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(top.over(below));
        Ok(())
    }

    /// Gives pages of this range back to the host that hold nothing, or zeros only. What the disk reads as does not change.
    ///
    /// # Errors
    /// A range beyond the disk, or the system's error.
    pub fn compact(&self, offset: u64, len: u64) -> Result<(), DiskError> {
        let _held = self.map();
        self.check_sound()?;
        let top = self.top();
        look(self.place.top())?.format.punch(&top, offset, len)
    }

    fn go_on_with(&self, chain: Chain) {
        *self.top.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(chain);
        self.stuck.store(false, Ordering::Release);
    }

    fn top(&self) -> Arc<Chain> {
        Arc::clone(&self.top.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn map(&self) -> MutexGuard<'_, Option<Map>> {
        self.map.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn check_sound(&self) -> Result<(), DiskError> {
        if self.stuck.load(Ordering::Acquire) {
            return Err(DiskError::Failed { path: self.place.top().to_owned() });
        }
        Ok(())
    }
}

/// The layer right below the disk, if it is no checkpoint and nothing else stands on it.
fn lone_layer(tree: &Tree) -> Option<&Layer> {
    let layer = tree.below_top().first().copied().filter(|layer| !layer.note.checkpoint)?;
    let alone = tree.children_of(layer.id) == (Vec::new(), 1) && !tree.blind && tree.damaged.is_empty();
    alone.then_some(layer)
}

fn left_by_a_verb(made_ms: u64) -> Note {
    Note { made_ms, text: String::new(), checkpoint: false }
}

impl Disk for Overlay {
    fn size(&self) -> u64 {
        self.top().size()
    }

    fn sectors(&self) -> Sectors {
        self.top().sectors()
    }

    fn try_read(&self, offset: u64, bufs: &mut [IoSliceMut<'_>]) -> Result<bool, DiskError> {
        self.top().try_read(offset, bufs)
    }

    fn read(&self, offset: u64, bufs: &mut [IoSliceMut<'_>]) -> Result<(), DiskError> {
        self.top().read(offset, bufs)
    }

    fn pass_on(&self, offset: u64, len: u64, each: &mut PassOn<'_>) -> Result<Option<u64>, DiskError> {
        self.top().pass_on(offset, len, each)
    }

    fn write(&self, offset: u64, bufs: &[IoSlice<'_>]) -> Result<(), DiskError> {
        self.check_sound()?;
        self.top().write(offset, bufs)
    }

    fn try_write(&self, offset: u64, bufs: &[IoSlice<'_>]) -> Result<bool, DiskError> {
        self.check_sound()?;
        self.top().try_write(offset, bufs)
    }

    fn zero(&self, offset: u64, len: u64) -> Result<(), DiskError> {
        self.check_sound()?;
        self.top().zero(offset, len)
    }

    fn flush(&self) -> Result<(), DiskError> {
        self.check_sound()?;
        self.top().flush()
    }

    fn close(&self) -> Result<(), DiskError> {
        self.check_sound()?;
        self.top().close()
    }

    fn read_only(&self) -> bool {
        self.top().read_only()
    }

    fn provisioning(&self, offset: u64, len: u64, most: usize) -> Result<Vec<Stretch>, DiskError> {
        self.top().provisioning(offset, len, most)
    }

    fn growth(&self, offset: u64, len: u64) -> Result<u64, DiskError> {
        self.top().growth(offset, len)
    }
}
