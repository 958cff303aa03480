//! What a log would change, and a file seen as if it had: for files that may be read but not written.

use std::collections::BTreeMap;
use std::io::{IoSlice, IoSliceMut};
use std::path::Path;

use super::wire::{PAGE, PAGE_BYTES};
use crate::disk::error::DiskError;
use crate::disk::file::{Media, write_all};
use crate::disk::iovec::{self, Scatter};

type Bytes = [u8; PAGE_BYTES];

/// Changes in whole pages; later ones win.
#[derive(Debug)]
pub(super) struct Patches {
    pages: BTreeMap<u64, Box<Bytes>>,
    /// Start to end, apart from each other. A page of data lies above.
    zeros: BTreeMap<u64, u64>,
    /// The length that the file has, or needs.
    len: u64,
}

impl Patches {
    pub(super) fn new(len: u64) -> Self {
        Self { pages: BTreeMap::new(), zeros: BTreeMap::new(), len }
    }

    pub(super) fn extend(&mut self, len: u64) {
        self.len = self.len.max(len);
    }

    pub(super) fn write(&mut self, offset: u64, page: Bytes) {
        self.pages.insert(offset, Box::new(page));
    }

    pub(super) fn zero(&mut self, mut start: u64, mut end: u64) {
        if start >= end {
            return;
        }
        let gone: Vec<u64> = self.pages.range(start..end).map(|(&at, _)| at).collect();
        gone.iter().for_each(|at| drop(self.pages.remove(at)));
        while let Some((&at, &to)) = self.zeros.range(..=end).next_back().filter(|(_, to)| **to >= start) {
            self.zeros.remove(&at);
            (start, end) = (start.min(at), end.max(to));
        }
        self.zeros.insert(start, end);
    }

    /// Makes the changes, and waits until they are durable.
    pub(super) fn apply(&self, media: &dyn Media) -> Result<(), DiskError> {
        if media.len()? < self.len {
            media.set_len(self.len)?;
        }
        for (&start, &end) in &self.zeros {
            media.zero(start, end - start)?;
        }
        for (&at, page) in &self.pages {
            write_all(media, at, &page[..])?;
        }
        media.sync()
    }

    /// The next part of a range that comes from one place: its length, and whether it is zeros, a page or the file.
    fn part(&self, at: u64, end: u64) -> (u64, Part<'_>) {
        let page = at - at % PAGE;
        if let Some(bytes) = self.pages.get(&page) {
            let within = usize::try_from(at - page).expect("under 4096");
            let len = (page + PAGE).min(end) - at;
            return (len, Part::Bytes(&bytes[within..]));
        }
        let next_page = self.pages.range(page..).next().map_or(end, |(&next, _)| next.min(end));
        if let Some((_, &to)) = self.zeros.range(..=at).next_back().filter(|(_, to)| **to > at) {
            return (to.min(next_page) - at, Part::Zeros);
        }
        let next_zeros = self.zeros.range(at..).next().map_or(end, |(&next, _)| next.min(end));
        (next_page.min(next_zeros) - at, Part::File)
    }
}

enum Part<'a> {
    File,
    Zeros,
    Bytes(&'a [u8]),
}

/// A file and what its log changes about it, for reading.
#[derive(Debug)]
pub(super) struct Overlay {
    pub(super) below: Box<dyn Media>,
    pub(super) patches: Patches,
}

impl Overlay {
    /// Fills the buffers from where each part is; `false` as soon as `file` says so.
    fn fill(
        &self,
        offset: u64,
        bufs: &mut [IoSliceMut<'_>],
        file: impl Fn(u64, &mut [IoSliceMut<'_>]) -> Result<bool, DiskError>,
    ) -> Result<bool, DiskError> {
        let (mut at, end) = (offset, offset + iovec::room(bufs));
        if end > self.patches.len {
            let what = "the file ends before its contents do";
            return Err(DiskError::corrupt(self.path(), self.patches.len, what));
        }
        let len = self.below.len()?;
        let mut scatter = Scatter::new(bufs);
        while at < end {
            let (mut part_len, part) = self.patches.part(at, end);
            let part = match part {
                // The log lengthens the file.
                Part::File if at >= len => Part::Zeros,
                Part::File => {
                    part_len = part_len.min(len - at);
                    Part::File
                }
                part => part,
            };
            let mut bufs = scatter.take(part_len);
            match part {
                Part::File => {
                    if !file(at, &mut bufs)? {
                        return Ok(false);
                    }
                }
                Part::Zeros => bufs.iter_mut().for_each(|buf| buf.fill(0)),
                Part::Bytes(mut bytes) => {
                    for buf in &mut bufs {
                        let (here, rest) = bytes.split_at(buf.len());
                        buf.copy_from_slice(here);
                        bytes = rest;
                    }
                }
            }
            at += part_len;
        }
        Ok(true)
    }

    fn refuse(&self) -> DiskError {
        DiskError::ReadOnly { path: self.path().into() }
    }
}

impl Media for Overlay {
    fn path(&self) -> &Path {
        self.below.path()
    }

    fn len(&self) -> Result<u64, DiskError> {
        Ok(self.patches.len)
    }

    fn set_len(&self, _: u64) -> Result<(), DiskError> {
        Err(self.refuse())
    }

    fn try_read(&self, offset: u64, bufs: &mut [IoSliceMut<'_>]) -> Result<bool, DiskError> {
        self.fill(offset, bufs, |at, bufs| self.below.try_read(at, bufs))
    }

    fn read(&self, offset: u64, bufs: &mut [IoSliceMut<'_>]) -> Result<(), DiskError> {
        self.fill(offset, bufs, |at, bufs| self.below.read(at, bufs).map(|()| true)).map(drop)
    }

    fn write(&self, _: u64, _: &[IoSlice<'_>]) -> Result<(), DiskError> {
        Err(self.refuse())
    }

    fn zero(&self, _: u64, _: u64) -> Result<(), DiskError> {
        Err(self.refuse())
    }

    fn sync(&self) -> Result<(), DiskError> {
        Err(self.refuse())
    }

    fn next_data(&self, offset: u64) -> Result<Option<u64>, DiskError> {
        let page = self.patches.pages.range(offset - offset % PAGE..).next().map(|(&at, _)| at.max(offset));
        let below = self.below.next_data(offset)?;
        Ok(page.into_iter().chain(below).min())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::disk::double::Double;
    use crate::disk::file::read_vec;

    proptest! {
        #[test]
        fn a_file_seen_through_patches_is_the_file_with_the_patches_made(
            changes in proptest::collection::vec((0..16u64, 0..6u64, any::<u8>()), 0..20), from in 0..60_000u64, len in 0..5_000usize,
        ) {
            let file = Double::new(10 * PAGE);
            write_all(&file, 0, &(0..10 * 4096u32).map(|n| n.to_le_bytes()[0] | 1).collect::<Vec<_>>()).unwrap();
            let mut patches = Patches::new(10 * PAGE);
            patches.extend(22 * PAGE);
            for (page, pages, byte) in changes {
                match pages {
                    0 => patches.write(page * PAGE, [byte; 4096]),
                    _ => patches.zero(page * PAGE, (page + pages) * PAGE),
                }
            }
            let made = Double::holding(file.contents());
            patches.apply(&made).unwrap();
            let seen = Overlay { below: Box::new(file), patches };
            prop_assert_eq!(seen.len().unwrap(), made.len().unwrap());
            prop_assert_eq!(read_vec(&seen, from, len).unwrap(), read_vec(&made, from, len).unwrap());
        }
    }
}
