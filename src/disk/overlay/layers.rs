//! Where the files of a client's disk lie, and how they stand on each other.
//!
//! The files are the truth: which layer stands on which is read from the identities in them, each time. Beside a frozen
//! file lies a note with its time and text. A note says more only where a layer is *not* a checkpoint (it was deleted, or
//! a change of size left it); so a note that is lost loses a text, never a checkpoint.

use std::collections::HashSet;
use std::fmt::Debug;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::UNIX_EPOCH;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::super::chain::Chain;
use super::super::error::DiskError;
use super::super::file::{
    Access, File, Media, close_later, folder_of, link, remove, rename, sync_folder_of, write_whole,
};
use super::super::names::{self, Format};
use super::format::{Child, Seen, look};

/// Longest text of a note, in bytes: a sentence or two.
pub const MAX_NOTE: usize = 1024;

/// What is known of a frozen layer besides its contents.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Note {
    /// When it was frozen, in milliseconds since 1970-01-01T00:00Z.
    pub made_ms: u64,
    /// What its maker said of it.
    #[serde(default)]
    pub text: String,
    /// Whether it is a checkpoint. Another layer is there only because something stands on it, and goes by merging.
    #[serde(default = "yes")]
    pub checkpoint: bool,
}

fn yes() -> bool {
    true
}

/// A frozen layer of a client's disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layer {
    /// Its number, by which a person names it.
    pub number: u32,
    /// Its file's identity.
    pub id: Uuid,
    /// That of the file it stands on: another layer, or the master.
    pub parent: Uuid,
    /// The capacity of the disk as it was then, in bytes.
    pub size: u64,
    /// The rest.
    pub note: Note,
}

/// Changes of a folder's entries; a double in the tests lets them fail.
pub(super) trait Hands: Send + Sync + Debug {
    fn link(&self, from: &Path, to: &Path) -> Result<(), DiskError>;
    fn rename(&self, from: &Path, to: &Path) -> Result<(), DiskError>;
    /// One that is not there is removed already.
    fn remove(&self, path: &Path) -> Result<(), DiskError>;
    /// When it returns, all changes before survive power loss.
    fn sync(&self, path: &Path) -> Result<(), DiskError>;
}

#[derive(Debug)]
struct System;

impl Hands for System {
    fn link(&self, from: &Path, to: &Path) -> Result<(), DiskError> {
        link(from, to)
    }

    fn rename(&self, from: &Path, to: &Path) -> Result<(), DiskError> {
        rename(from, to)
    }

    fn remove(&self, path: &Path) -> Result<(), DiskError> {
        remove(path)
    }

    fn sync(&self, path: &Path) -> Result<(), DiskError> {
        sync_folder_of(path)
    }
}

/// Where a client's disk is; its layers, their notes and its successor lie beside it.
///
/// ```text
/// NAME.vhd                  the disk
/// NAME.vhd.next             its successor, while that is being made
/// NAME.vhd.previous         its predecessor, for a while after it was replaced
/// NAME.checkpoint-3.vhd     a frozen layer
/// NAME.checkpoint-3.json    its note
/// ```
///
/// All of it may be VHDX as well, and end in `vhdx`. A disk that is replaced by one of the other format
/// leaves what it was, and its checkpoints, under their names: both kinds are found.
#[derive(Debug, Clone)]
pub struct Place {
    top: PathBuf,
    pub(super) hands: Arc<dyn Hands>,
    /// Held for writing while layers change places, so that nobody who opens them finds one gone.
    gate: Arc<RwLock<()>>,
}

/// A moment in the replacement of a disk, for callers that have their own part in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// The new file is durable beside the old one, and has this identity.
    Made(Uuid),
    /// The old one has its second name.
    Linked,
    /// The new one is in its place, durably.
    Swapped,
}

impl Place {
    /// The place of the disk whose file is this: `disks/NAME.vhd`.
    #[must_use]
    pub fn new(top: PathBuf) -> Self {
        Self { top, hands: Arc::new(System), gate: Arc::default() }
    }

    /// The same, with a gate that all places of a folder share.
    #[must_use]
    pub fn behind(self, gate: Arc<RwLock<()>>) -> Self {
        Self { gate, ..self }
    }

    /// While this is held, no layer changes its place.
    pub(super) fn layers_stay(&self) -> RwLockReadGuard<'_, ()> {
        self.gate.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// While this is held, nobody looks for a layer.
    pub(super) fn layers_move(&self) -> RwLockWriteGuard<'_, ()> {
        self.gate.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// The disk's file.
    #[must_use]
    pub fn top(&self) -> &Path {
        &self.top
    }

    /// What the names of all its files end in: `vhd` or `vhdx`.
    fn extension(&self) -> std::borrow::Cow<'_, str> {
        self.top.extension().map_or("vhd".into(), |extension| extension.to_string_lossy())
    }

    /// The same place for a disk of this format.
    fn in_format(&self, format: Format) -> Self {
        if Format::of_name(&self.top).is_none_or(|named| named == format) {
            return self.clone();
        }
        Self { top: names::path(&self.top, format), ..self.clone() }
    }

    /// The same place for disks of the other formats.
    fn in_others(&self) -> impl Iterator<Item = Self> {
        let own = Format::of_name(&self.top);
        let others = Format::ALL.into_iter().filter(move |format| own.is_some_and(|own| own != *format));
        others.map(|format| self.in_format(format))
    }

    fn beside(&self, what: &str) -> PathBuf {
        self.top.with_extension(format!("{}.{what}", self.extension()))
    }

    /// Where its successor is made.
    #[must_use]
    pub fn next(&self) -> PathBuf {
        self.beside("next")
    }

    /// Where its predecessor is kept, of whichever format that is.
    #[must_use]
    pub fn previous(&self) -> PathBuf {
        let own = self.beside("previous");
        if own.exists() {
            return own;
        }
        self.in_others().map(|other| other.beside("previous")).find(|path| path.exists()).unwrap_or(own)
    }

    /// The file of a frozen layer, of whichever format it is.
    #[must_use]
    pub fn layer(&self, number: u32) -> PathBuf {
        let of = |place: &Self| place.top.with_extension(format!("checkpoint-{number}.{}", place.extension()));
        let own = of(self);
        if own.exists() {
            return own;
        }
        self.in_others().map(|other| of(&other)).find(|path| path.exists()).unwrap_or(own)
    }

    /// Where a layer and the one above it are merged into one.
    pub(super) fn merged(&self, number: u32) -> PathBuf {
        let mut name = self.layer(number).into_os_string();
        name.push(".merged");
        name.into()
    }

    pub(super) fn note(&self, number: u32) -> PathBuf {
        self.top.with_extension(format!("checkpoint-{number}.json"))
    }

    /// A layer's file as a file beside it spells it.
    pub(super) fn spelled(&self, number: u32) -> String {
        let path = self.layer(number);
        format!(r".\{}", path.file_name().unwrap_or_default().to_string_lossy())
    }

    /// The number of a layer's file, by its name.
    fn number_of(&self, name: &str) -> Option<u32> {
        let stem = self.top.file_stem()?.to_str()?;
        let (number, extension) = name.strip_prefix(stem)?.strip_prefix(".checkpoint-")?.split_once('.')?;
        let is_layer =
            extension == self.extension() || Format::ALL.iter().any(|format| extension == format.extension());
        number.parse().ok().filter(|_| is_layer)
    }

    pub(super) fn read_note(&self, number: u32) -> Note {
        let read = || {
            let text = fs::read_to_string(self.note(number)).ok()?;
            serde_json::from_str(&text).ok()
        };
        read().unwrap_or_else(|| {
            let made = fs::metadata(self.layer(number)).and_then(|meta| meta.modified()).ok();
            let since = made.and_then(|made| made.duration_since(UNIX_EPOCH).ok()).unwrap_or_default();
            let made_ms = u64::try_from(since.as_millis()).unwrap_or_default();
            Note { made_ms, text: String::new(), checkpoint: true }
        })
    }

    /// Writes a note. It is durable, but for its name.
    pub(super) fn write_note(&self, number: u32, note: &Note) -> Result<(), DiskError> {
        let path = self.note(number);
        let temp = path.with_extension("json.new");
        let text = serde_json::to_string(note).expect("numbers and text");
        write_whole(&temp, text.as_bytes())?;
        self.hands.rename(&temp, &path)
    }

    /// Says that a layer is no checkpoint any more: it goes once nothing needs it, by [`tidy`](super::merge::tidy).
    ///
    /// # Errors
    /// The system's.
    pub fn disown(&self, layer: &Layer) -> Result<(), DiskError> {
        self.write_note(layer.number, &Note { checkpoint: false, ..layer.note.clone() })?;
        self.hands.sync(&self.top)
    }

    /// Removes a layer that nothing stands on.
    pub(super) fn remove(&self, number: u32) -> Result<(), DiskError> {
        self.hands.remove(&self.layer(number))?;
        // Without its note a layer that is still there would be a checkpoint again.
        self.hands.sync(&self.top)?;
        self.hands.remove(&self.note(number))
    }

    /// Writes a child of a layer (or of `base`, spelled so) as the disk's successor.
    pub(super) fn write_next(
        &self,
        format: Format,
        parent: &Chain,
        (relative, absolute): (&str, &Path),
        size: u64,
    ) -> Result<Uuid, DiskError> {
        let absolute = std::path::absolute(absolute).map_err(|source| DiskError::io(absolute, "resolve", source))?;
        let child = Child { id: Uuid::new_v4(), parent, size, relative, absolute: &absolute };
        self.write_file(&self.next(), format, &child)
    }

    /// Writes a child into a file of this name, which means nothing until it is renamed, and makes it durable but for the name.
    pub(super) fn write_file(&self, path: &Path, format: Format, child: &Child<'_>) -> Result<Uuid, DiskError> {
        let file = File::open_or_create(path)?;
        let written = file.set_len(0).and_then(|()| format.write_child(&file, child));
        written.inspect_err(|_| {
            // It is of no use, and this error says more than another.
            let _ = remove(path);
        })
    }

    /// Replaces the disk by a new child of `parent`, which from here is at `relative`, as Windows spells it. The old disk
    /// is at [`previous`](Place::previous) then, unless an older one is there. `at` is called at each [`Step`]. Where the
    /// disk is from now on: its format is its parent's.
    ///
    /// # Errors
    /// The system's, or those of `at`; the disk is the old one, unless [`Step::Swapped`] was reached.
    pub fn replace(
        &self,
        parent: &Chain,
        relative: &str,
        at: &mut dyn FnMut(Step) -> Result<(), DiskError>,
    ) -> Result<Self, DiskError> {
        use super::super::Disk;
        let format = Format::of_child(parent);
        let new = self.in_format(format);
        let id = new.write_next(format, parent, (relative, parent.path()), parent.size())?;
        at(Step::Made(id))?;
        let previous = self.previous();
        // Nobody has used a disk that still has its predecessor: there is nothing on it to look at.
        if self.top.exists() && !previous.exists() {
            self.hands.link(&self.top, &previous)?;
        }
        at(Step::Linked)?;
        // Where it has no second name it goes with the rename, which must not take long.
        let old = fs::File::open(&self.top);
        self.hands.rename(&new.next(), &new.top)?;
        self.hands.sync(&new.top)?;
        if new.top != self.top {
            // Of the two the VHDX is the disk, see `names`: a new one is that already, an old one until now.
            self.hands.remove(&self.top)?;
            self.hands.sync(&self.top)?;
        }
        if let Ok(old) = old {
            close_later(old);
        }
        at(Step::Swapped)?;
        Ok(new)
    }

    /// Removes what a replacement by a disk of another format left that did not come to its end: this is the disk. What
    /// was removed.
    ///
    /// # Errors
    /// The system's.
    pub fn remove_others(&self) -> Result<Vec<PathBuf>, DiskError> {
        let left = self.in_others().flat_map(|other| [other.next(), other.top]);
        let left: Vec<_> = left.filter(|path| path.exists()).collect();
        left.iter().try_for_each(|path| self.hands.remove(path))?;
        Ok(left)
    }

    /// Replaces the disk by a new child of a checkpoint, see [`replace`](Place::replace). The checkpoint stays.
    ///
    /// # Errors
    /// As there, and a layer that cannot be opened.
    pub fn roll_back(
        &self,
        to: &Layer,
        base: &Arc<Chain>,
        at: &mut dyn FnMut(Step) -> Result<(), DiskError>,
    ) -> Result<Self, DiskError> {
        let parent = {
            let _gate = self.layers_stay();
            open_layers(self, &Tree::read(self)?, to.id, base, &self.top)?
        };
        self.replace(&parent, &self.spelled(to.number), at)
    }
}

/// All layers of a client's disk, and what stands on them.
#[derive(Debug, Clone)]
pub struct Tree {
    /// The frozen layers, by their numbers.
    pub layers: Vec<Layer>,
    /// Files that should be layers and cannot be read, with the reason.
    pub damaged: Vec<(u32, String)>,
    pub(super) top: Option<Seen>,
    pub(super) previous: Option<Seen>,
    /// The disk, or the one before it, is there and cannot be read: nobody knows what it stands on.
    pub(super) blind: bool,
    /// A second name of the disk that a checkpoint left that did not come to its end.
    pub(super) unfinished: Vec<u32>,
}

impl Tree {
    /// Reads what the files say. Files that cannot be read are listed, they are no error.
    ///
    /// # Errors
    /// The folder cannot be read.
    pub fn read(place: &Place) -> Result<Self, DiskError> {
        let folder = folder_of(&place.top);
        let cannot = |source| DiskError::io(folder, "list", source);
        let mut blind = false;
        let mut see = |path: &Path| match look(path) {
            Ok(seen) => Some(seen),
            Err(_) => {
                blind |= path.exists();
                None
            }
        };
        let (top, previous) = (see(&place.top), see(&place.previous()));
        let mut tree = Self { layers: vec![], damaged: vec![], top, previous, blind, unfinished: vec![] };
        for entry in fs::read_dir(folder).map_err(cannot)? {
            let name = entry.map_err(cannot)?.file_name();
            let Some(number) = name.to_str().and_then(|name| place.number_of(name)) else { continue };
            match look(&place.layer(number)) {
                Ok(Seen { id, .. }) if tree.top.as_ref().is_some_and(|top| top.id == id) => {
                    tree.unfinished.push(number);
                }
                Ok(Seen { id, parent: Some(parent), size, .. }) => {
                    tree.layers.push(Layer { number, id, parent, size, note: place.read_note(number) });
                }
                Ok(_) => tree.damaged.push((number, "it is a disk of its own, no layer".to_owned())),
                Err(_) if !place.layer(number).exists() => {} // it went while we looked
                Err(error) => tree.damaged.push((number, error.to_string())),
            }
        }
        tree.layers.sort_by_key(|layer| layer.number);
        Ok(tree)
    }

    /// The layers that are checkpoints, by their numbers.
    pub fn checkpoints(&self) -> impl Iterator<Item = &Layer> {
        self.layers.iter().filter(|layer| layer.note.checkpoint)
    }

    /// The checkpoint with this number.
    #[must_use]
    pub fn checkpoint(&self, number: u32) -> Option<&Layer> {
        self.checkpoints().find(|layer| layer.number == number)
    }

    /// The layers below the disk, from the one right below it down.
    #[must_use]
    pub fn below_top(&self) -> Vec<&Layer> {
        self.top.as_ref().and_then(|top| top.parent).map(|parent| self.down_from(parent)).unwrap_or_default()
    }

    /// The layer with this identity and those below it.
    pub(super) fn down_from(&self, id: Uuid) -> Vec<&Layer> {
        let mut seen = HashSet::new();
        let mut down = Vec::new();
        let mut next = self.by_id(id);
        while let Some(layer) = next.filter(|layer| seen.insert(layer.id)) {
            down.push(layer);
            next = self.by_id(layer.parent);
        }
        down
    }

    pub(super) fn by_id(&self, id: Uuid) -> Option<&Layer> {
        self.layers.iter().find(|layer| layer.id == id)
    }

    /// The layers that stand on this identity, and how many disks that are no layers do.
    pub(super) fn children_of(&self, id: Uuid) -> (Vec<&Layer>, usize) {
        let disks = [&self.top, &self.previous];
        let others = disks.into_iter().flatten().filter(|disk| disk.parent == Some(id)).count();
        (self.layers.iter().filter(|layer| layer.parent == id).collect(), others)
    }

    /// The number of the next layer.
    pub(super) fn next_number(&self) -> u32 {
        let taken = self.layers.iter().map(|layer| layer.number);
        taken.chain(self.damaged.iter().map(|(number, _)| *number)).max().unwrap_or(0).saturating_add(1)
    }
}

/// Opens the layer with this identity and those below it down to `base`, or `base` itself; for `child`, which wants it.
pub(super) fn open_layers(
    place: &Place,
    tree: &Tree,
    id: Uuid,
    base: &Arc<Chain>,
    child: &Path,
) -> Result<Arc<Chain>, DiskError> {
    let found = base.linkage().unwrap_or_default();
    let layers = tree.down_from(id);
    let wanted = layers.last().map_or(id, |last| last.parent);
    if wanted != found {
        if let Some((_, why)) = tree.damaged.first() {
            let what = format!("a layer below it cannot be read: {why}");
            return Err(DiskError::Chain { path: child.to_owned(), what });
        }
        let (child, parent) = (child.to_owned(), base.path().to_owned());
        return Err(DiskError::ParentMismatch { child, parent, wanted, found });
    }
    layers.into_iter().rev().try_fold(Arc::clone(base), |below, layer| open_layer(place, layer, below))
}

/// Opens one frozen layer over what is below it.
pub(super) fn open_layer(place: &Place, layer: &Layer, below: Arc<Chain>) -> Result<Arc<Chain>, DiskError> {
    // Without a lock: while it was the disk it was opened for writing, and some reader may still hold that. Nobody writes
    // to it any more.
    let file = File::open(&place.layer(layer.number), Access::Peek)?;
    Ok(Arc::new(Chain::frozen_on(Box::new(file), below)?))
}
