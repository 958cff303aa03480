//! Merging: two frozen layers become one, so that a chain stays short and deleted checkpoints give their space back.
//!
//! The lower layer's sectors go where the upper one has none. The result is a file of its own, with the upper one's identity
//! and the lower one's parent, so that nothing above has to change:
//!
//! | step | what a crash after it leaves |
//! |---|---|
//! | the result is written beside the upper layer, and durable | both layers, and a file of no meaning, which is overwritten or removed |
//! | it takes the upper layer's name; the folder is flushed | the result, and the lower layer, on which nothing stands: it is removed the next time |
//! | the lower layer is removed; the folder is flushed; its note is removed | the result |
//!
//! Whoever has the two layers open goes on reading the old files, which say the same.

use std::io::{ErrorKind, IoSlice, IoSliceMut};
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;

use super::super::chain::Chain;
use super::super::error::DiskError;
use super::super::file::{Access, File, Media, remove};
use super::super::{Disk, SECTOR};
use super::format::{Child, look};
use super::layers::{Layer, Place, Tree, open_layer, open_layers};

/// Bytes that are copied at once.
const PIECE: u64 = 1 << 20;
/// Bytes that are mapped at once.
const STEP: u64 = 256 << 20;
/// A page of zeros stays a hole.
const PAGE: usize = 4096;

/// Told how far a long operation is: bytes done, bytes in all. It may be told to stop, which loses what is under way, and
/// nothing else.
pub type Progress<'a> = &'a mut dyn FnMut(u64, u64) -> ControlFlow<()>;

/// What is to be done to a tree next.
enum Task<'a> {
    Remove(&'a Layer),
    Merge { lower: &'a Layer, upper: &'a Layer },
}

/// What can be done now: a layer that is no checkpoint goes if nothing stands on it, and goes into the layer above if that is
/// all that stands on it. While something cannot be read, nobody knows what it stands on, and everything stays.
fn next_task(tree: &Tree) -> Option<Task<'_>> {
    if tree.blind || !tree.damaged.is_empty() {
        return None;
    }
    tree.layers.iter().filter(|layer| !layer.note.checkpoint).find_map(|lower| {
        match (tree.children_of(lower.id), lower) {
            ((layers, 0), lower) if layers.is_empty() => Some(Task::Remove(lower)),
            ((layers, 0), lower) => match layers[..] {
                [upper] => Some(Task::Merge { lower, upper }),
                _ => None,
            },
            _ => None,
        }
    })
}

/// Whether [`tidy`] has anything to do.
///
/// # Errors
/// The folder cannot be read.
pub fn is_untidy(place: &Place) -> Result<bool, DiskError> {
    Ok(next_task(&Tree::read(place)?).is_some())
}

/// Removes and merges frozen layers that are no checkpoints, until none is left that can go; how many went. The disk may be in
/// use meanwhile, by this process; no other `tidy` of it is.
///
/// # Errors
/// The system's. What was done is done, what was not can be done later.
pub fn tidy(place: &Place, base: &Arc<Chain>, progress: Progress<'_>) -> Result<usize, DiskError> {
    let mut gone = 0;
    loop {
        let tree = Tree::read(place)?;
        match next_task(&tree) {
            None => return Ok(gone),
            Some(Task::Remove(layer)) => {
                let _gate = place.layers_move();
                place.remove(layer.number)?;
            }
            Some(Task::Merge { lower, upper }) => merge(place, &tree, (lower, upper), base, progress)?,
        }
        gone += 1;
    }
}

/// Removes a file at the end, unless it has been renamed.
struct Scratch<'a>(&'a Path);

impl Drop for Scratch<'_> {
    fn drop(&mut self) {
        // What cannot be removed is overwritten by the next one.
        let _ = remove(self.0);
    }
}

fn merge(
    place: &Place,
    tree: &Tree,
    (lower, upper): (&Layer, &Layer),
    base: &Arc<Chain>,
    progress: Progress<'_>,
) -> Result<(), DiskError> {
    let lower_path = place.layer(lower.number);
    let upper_path = place.layer(upper.number);
    let merged = place.merged(upper.number);
    // Where the client has another image by now, what its checkpoints stand on is found as they name it.
    let below = open_layers(place, tree, lower.parent, base, &lower_path).or_else(|error| {
        let chain = Chain::open(&lower_path, Access::Peek)?;
        chain.parent().cloned().ok_or(error)
    })?;
    let lower_chain = open_layer(place, lower, Arc::clone(&below))?;
    let upper_chain = open_layer(place, upper, Arc::clone(&lower_chain))?;

    let seen = look(&lower_path)?;
    let absolute = std::path::absolute(below.path()).map_err(|source| DiskError::io(&lower_path, "resolve", source))?;
    let child = Child {
        id: upper.id,
        parent: &below,
        size: upper_chain.size(),
        relative: seen.relative.as_deref().unwrap_or_default(),
        absolute: &absolute,
    };
    let _scratch = Scratch(&merged);
    place.write_file(&merged, seen.format, &child)?;
    let target = Chain::child_on(Box::new(File::open(&merged, Access::Write)?), below, None)?;
    // It takes the upper layer's place: what stands on that must find it.
    if let Some(vhdx) = target.vhdx() {
        vhdx.keep_identity();
    }
    copy(&upper_chain, [upper_chain.media(), lower_chain.media()], &target, progress)?;
    target.close()?;
    drop(target);

    let _gate = place.layers_move();
    place.hands.rename(&merged, &upper_path)?;
    place.hands.sync(&upper_path)?;
    place.remove(lower.number)
}

/// Copies what two layers hold. `source` is the upper one, over the lower one; `target` lies over what is below both.
fn copy(source: &Chain, own: [&dyn Media; 2], target: &Chain, progress: Progress<'_>) -> Result<(), DiskError> {
    let size = source.size();
    let mut buffer = vec![0; usize::try_from(PIECE).expect("1 MiB")];
    let mut at = 0;
    while at < size {
        for extent in source.resolve(at, STEP.min(size - at))? {
            match extent.at {
                Some((media, place)) if own.iter().any(|own| std::ptr::addr_eq(*own, media)) => {
                    copy_piecewise(media, place, target, at, extent.len, &mut buffer)?;
                }
                Some(_) => {}
                // Nothing is here, which the target may have to say where something is below.
                None => target.zero(at, extent.len)?,
            }
            at += extent.len;
            if progress(at, size).is_break() {
                return Err(DiskError::io(target.path(), "merge", ErrorKind::Interrupted));
            }
        }
    }
    Ok(())
}

fn copy_piecewise(
    media: &dyn Media,
    place: u64,
    target: &Chain,
    offset: u64,
    len: u64,
    buffer: &mut [u8],
) -> Result<(), DiskError> {
    let mut done = 0;
    while done < len {
        let piece = PIECE.min(len - done);
        let bytes = &mut buffer[..usize::try_from(piece).expect("at most 1 MiB")];
        media.read(place + done, &mut [IoSliceMut::new(bytes)])?;
        write_sparsely(target, offset + done, bytes)?;
        done += piece;
    }
    Ok(())
}

/// Writes bytes; whole pages of zeros become zeros without space.
fn write_sparsely(target: &Chain, offset: u64, bytes: &[u8]) -> Result<(), DiskError> {
    debug_assert!(bytes.len().is_multiple_of(usize::try_from(SECTOR).expect("512")));
    // Pages are those of the disk: the first and last piece may be shorter.
    let lead = usize::try_from(offset.next_multiple_of(PAGE as u64) - offset).expect("under 4 KiB").min(bytes.len());
    let zero = |bytes: &[u8]| bytes.iter().all(|&byte| byte == 0);
    let mut rest = bytes;
    let mut at = offset;
    let mut cut = lead;
    while !rest.is_empty() {
        let mut end = if cut > 0 { cut } else { rest.len().min(PAGE) };
        let is_zero = zero(&rest[..end]);
        // As many pages as say the same.
        while end < rest.len() && zero(&rest[end..rest.len().min(end + PAGE)]) == is_zero {
            end = rest.len().min(end + PAGE);
        }
        if is_zero {
            target.zero(at, end as u64)?;
        } else {
            target.write(at, &[IoSlice::new(&rest[..end])])?;
        }
        at += end as u64;
        rest = &rest[end..];
        cut = 0;
    }
    Ok(())
}
