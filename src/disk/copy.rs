//! Reading a whole disk in order without reading its holes: what import, export and `cat` have in common.
//!
//! Where the bytes are is asked of the chain ([`Chain::resolve`]) and of the file system, so a hole of a terabyte costs some
//! questions and no reading, whatever the formats below.

use std::io::IoSliceMut;
use std::ops::Range;

use super::chain::Chain;
use super::error::DiskError;
use super::{Disk, SECTOR};

/// Bytes that are read at once, and the borders that no piece crosses: a block of new VHDs.
pub const CHUNK: u64 = 2 << 20;
/// A page that is all zeros stays a hole.
const PAGE: usize = 4096;
/// Most bytes that are looked through at once for data.
const MAX_WINDOW: u64 = 1 << 30;

/// What takes the bytes of a disk piece by piece, each with its offset.
pub type Take<'a, E> = dyn FnMut(u64, &[u8]) -> Result<(), E> + 'a;

/// The first byte of a range at which something else than zeros may be, or the range's end.
///
/// # Errors
/// The range lies beyond the disk, or the system's error.
pub fn next_data(disk: &Chain, range: Range<u64>) -> Result<u64, DiskError> {
    let (mut at, mut window) = (range.start, CHUNK);
    while at < range.end {
        let len = window.min(range.end - at);
        let mut offset = at;
        for extent in disk.resolve(at, len)? {
            if let Some((media, from)) = extent.at
                && let Some(data) = media.next_data(from)?.filter(|data| *data < from + extent.len)
            {
                return Ok(offset + (data - from) / SECTOR * SECTOR);
            }
            offset += extent.len;
        }
        at += len;
        // A fragmented disk is looked at in small steps, a hole in ever larger ones.
        window = (window * 2).min(MAX_WINDOW);
    }
    Ok(range.end)
}

/// Reads a range in pieces of at most [`CHUNK`] bytes, which cross no multiple of it, and hands on those that may hold
/// data; the rest is zeros. `progress` is told bytes done and bytes in all before each piece, and at the end.
///
/// # Errors
/// The disk's, or the first of `take`.
pub fn each_piece<E: From<DiskError>>(
    disk: &Chain,
    range: Range<u64>,
    progress: &mut dyn FnMut(u64, u64),
    take: &mut Take<'_, E>,
) -> Result<(), E> {
    let total = range.end - range.start;
    let mut buffer = vec![0; usize::try_from(CHUNK).expect("2 MiB")];
    let mut at = range.start;
    while at < range.end {
        progress(at - range.start, total);
        let data = next_data(disk, at..range.end)?;
        // From the chunk's beginning: a reader ahead of the data costs nothing, and whole chunks are read at once.
        at = (data / CHUNK * CHUNK).max(at);
        if data >= range.end {
            break;
        }
        let len = (CHUNK - at % CHUNK).min(range.end - at);
        let bytes = &mut buffer[..usize::try_from(len).expect("at most a chunk")];
        disk.read(at, &mut [IoSliceMut::new(bytes)])?;
        take(at, bytes)?;
        at += len;
    }
    progress(total, total);
    Ok(())
}

/// Reads a range and hands on its runs of pages that are not all zeros, none of which crosses a multiple of [`CHUNK`].
///
/// # Errors
/// The disk's, or the first of `take`.
pub fn each_run<E: From<DiskError>>(
    disk: &Chain,
    range: Range<u64>,
    progress: &mut dyn FnMut(u64, u64),
    take: &mut Take<'_, E>,
) -> Result<(), E> {
    each_piece(disk, range, progress, &mut |at, bytes| {
        runs(bytes).try_for_each(|run| take(at + run.start as u64, &bytes[run]))
    })
}

/// The runs of pages that are not all zeros.
pub(super) fn runs(bytes: &[u8]) -> impl Iterator<Item = Range<usize>> {
    let is_data = |page: &[u8]| page.iter().any(|&byte| byte != 0);
    let page_end = |start: usize| (start + PAGE).min(bytes.len());
    let mut at = 0;
    std::iter::from_fn(move || {
        while at < bytes.len() && !is_data(&bytes[at..page_end(at)]) {
            at = page_end(at);
        }
        let start = at;
        while at < bytes.len() && is_data(&bytes[at..page_end(at)]) {
            at = page_end(at);
        }
        (start < at).then_some(start..at)
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::file::Access;
    use super::super::model;
    use super::*;

    #[test]
    fn runs_are_the_pages_that_hold_something() {
        let mut bytes = vec![0; 5 * PAGE + 512];
        assert_eq!(runs(&bytes).count(), 0);
        bytes[PAGE + 1] = 1;
        bytes[3 * PAGE - 1] = 1;
        bytes[5 * PAGE + 511] = 1;
        assert_eq!(runs(&bytes).collect::<Vec<_>>(), [PAGE..3 * PAGE, 5 * PAGE..5 * PAGE + 512]);
        assert_eq!(runs(&[]).count(), 0);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]
        #[test]
        fn a_range_put_together_from_its_runs_is_the_range(
            writes in prop::collection::vec((super::super::conformance::range(), 0..=255u8), 0..12),
            from in 0..model::SECTORS, len in 1..model::SECTORS,
        ) {
            let dir = model::scratch();
            let mut bytes = model::master(&dir.path().join("master.vhd"));
            let top = model::children(dir.path(), 2, &mut bytes);
            let disk = Chain::open(&top, Access::Write).unwrap();
            for ((start, len), seed) in writes {
                let new = match seed {
                    0..100 => vec![0; usize::try_from(len * SECTOR).unwrap()],
                    _ => model::pattern(start, len, seed),
                };
                model::write(&disk, start, &new);
                let at = usize::try_from(start * SECTOR).unwrap();
                bytes[at..at + new.len()].copy_from_slice(&new);
            }
            let (start, end) = (from * SECTOR, (from + len).min(model::SECTORS) * SECTOR);
            let mut copy = vec![0; bytes.len()];
            let mut last = start;
            each_run::<DiskError>(&disk, start..end, &mut |_, _| (), &mut |at, run| {
                assert!(at >= last && at + run.len() as u64 <= end && at / CHUNK == (at + run.len() as u64 - 1) / CHUNK);
                last = at + run.len() as u64;
                let at = usize::try_from(at).unwrap();
                copy[at..at + run.len()].copy_from_slice(run);
                Ok(())
            }).unwrap();
            let range = usize::try_from(start).unwrap()..usize::try_from(end).unwrap();
            prop_assert!(copy[range.clone()] == bytes[range]);
        }
    }
}
