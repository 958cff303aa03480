//! A file double that remembers every change and every barrier, so that a test can cut the power anywhere.

#![expect(clippy::unwrap_used, reason = "a double of a test or a fuzzer fails by panicking")]

use std::collections::BTreeMap;
use std::io::{IoSlice, IoSliceMut};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use super::error::DiskError;
use super::file::Media;

/// What was done to the file.
#[derive(Debug, Clone)]
pub(super) enum Event {
    /// These bytes were put there; `None` instead of bytes: that many zeros.
    Write(u64, Result<Vec<u8>, u64>),
    SetLen(u64),
    Sync,
}

/// A file in memory. Clones are the same file, as two descriptors would be.
#[derive(Debug, Clone, Default)]
pub(super) struct Double(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    contents: Contents,
    /// Each with its place among the events of all doubles.
    events: Vec<(u64, Event)>,
    /// Changes from now on fail.
    broken: bool,
}

/// Sparse bytes: only pages that were written.
#[derive(Debug, Clone, Default)]
pub(super) struct Contents {
    len: u64,
    pages: BTreeMap<u64, Arc<[u8; PAGE]>>,
}

const PAGE: usize = 4096;

/// Counts the events of all doubles, so that the order among two files is known.
static CLOCK: AtomicU64 = AtomicU64::new(0);

/// A moment that later events come after.
#[cfg(test)]
pub(super) fn now() -> u64 {
    CLOCK.load(Ordering::SeqCst)
}

impl Contents {
    /// These bytes; pages of zeros are holes.
    #[cfg(test)]
    pub(super) fn of(bytes: &[u8]) -> Self {
        let mut contents = Self { len: bytes.len() as u64, pages: BTreeMap::new() };
        for (page, bytes) in (0u64..).zip(bytes.chunks(PAGE)).filter(|(_, bytes)| bytes.iter().any(|&byte| byte != 0)) {
            contents.write(page * PAGE as u64, bytes);
        }
        contents
    }

    /// Puts them into a new file.
    #[cfg(test)]
    pub(super) fn store(&self, file: &std::fs::File) {
        use std::os::unix::fs::FileExt;
        for (page, bytes) in &self.pages {
            file.write_all_at(&bytes[..], page * PAGE as u64).unwrap();
        }
        file.set_len(self.len).unwrap();
    }

    fn page_pieces(offset: u64, len: usize) -> impl Iterator<Item = (u64, usize, std::ops::Range<usize>)> {
        let mut done = 0;
        std::iter::from_fn(move || {
            let at = offset + done as u64;
            let within = usize::try_from(at % PAGE as u64).unwrap();
            let piece = (PAGE - within).min(len - done);
            let range = done..done + piece;
            done += piece;
            (piece > 0).then_some((at / PAGE as u64, within, range))
        })
    }

    fn read(&self, offset: u64, buf: &mut [u8]) {
        for (page, within, range) in Self::page_pieces(offset, buf.len()) {
            let len = range.len();
            match self.pages.get(&page) {
                Some(bytes) => buf[range].copy_from_slice(&bytes[within..within + len]),
                None => buf[range].fill(0),
            }
        }
    }

    fn write(&mut self, offset: u64, bytes: &[u8]) {
        self.len = self.len.max(offset + bytes.len() as u64);
        for (page, within, range) in Self::page_pieces(offset, bytes.len()) {
            let page = Arc::make_mut(self.pages.entry(page).or_insert_with(|| Arc::new([0; PAGE])));
            page[within..within + range.len()].copy_from_slice(&bytes[range]);
        }
    }

    fn zero(&mut self, offset: u64, len: u64) {
        let (end, page_size) = (offset + len, PAGE as u64);
        // Only the pages that there are: a hole may be as long as it likes.
        let pages: Vec<u64> =
            self.pages.range(offset / page_size..end.div_ceil(page_size)).map(|(&page, _)| page).collect();
        for page in pages {
            let start = page * page_size;
            if offset <= start && start + page_size <= end {
                self.pages.remove(&page);
            } else {
                let within = |at: u64| usize::try_from(at.clamp(start, start + page_size) - start).unwrap();
                let bytes = self.pages.get_mut(&page).expect("it was just found");
                Arc::make_mut(bytes)[within(offset)..within(end)].fill(0);
            }
        }
    }

    fn set_len(&mut self, len: u64) {
        if len < self.len {
            self.zero(len, self.len - len);
        }
        self.len = len;
    }

    /// Does what an event did, for those of its sectors that `keeps` lets through.
    pub(super) fn apply(&mut self, event: &Event, keeps: &mut dyn FnMut() -> bool) {
        match event {
            Event::Sync => {}
            Event::SetLen(len) => {
                if keeps() {
                    self.set_len(*len);
                }
            }
            Event::Write(offset, bytes) => {
                let len = bytes.as_ref().map_or_else(|&len| len, |bytes| bytes.len() as u64);
                // Cut where the device's sectors are.
                let mut at = *offset;
                while at < offset + len {
                    let end = ((at / 512 + 1) * 512).min(offset + len);
                    if keeps() {
                        match bytes {
                            Ok(bytes) => {
                                let index = |at: u64| usize::try_from(at - offset).unwrap();
                                self.write(at, &bytes[index(at)..index(end)]);
                            }
                            Err(_) => self.zero(at, end - at),
                        }
                    }
                    at = end;
                }
            }
        }
    }
}

impl Double {
    /// A file of zeros.
    pub(super) fn new(len: u64) -> Self {
        Self::holding(Contents { len, pages: BTreeMap::new() })
    }

    /// A file with these contents and no history.
    pub(super) fn holding(contents: Contents) -> Self {
        Self(Arc::new(Mutex::new(State { contents, ..State::default() })))
    }

    pub(super) fn contents(&self) -> Contents {
        self.0.lock().unwrap().contents.clone()
    }

    /// What happened since the double was made, each event with its place among those of all doubles.
    #[cfg(test)]
    pub(super) fn events(&self) -> Vec<(u64, Event)> {
        self.0.lock().unwrap().events.clone()
    }

    #[cfg(test)]
    pub(super) fn break_now(&self, broken: bool) {
        self.0.lock().unwrap().broken = broken;
    }

    fn change(&self, event: Event) -> Result<(), DiskError> {
        let mut state = self.0.lock().unwrap();
        if state.broken {
            return Err(DiskError::io(self.path(), "write", std::io::ErrorKind::StorageFull));
        }
        state.contents.apply(&event, &mut || true);
        state.events.push((CLOCK.fetch_add(1, Ordering::SeqCst), event));
        Ok(())
    }
}

impl Media for Double {
    fn path(&self) -> &Path {
        Path::new("double")
    }

    fn len(&self) -> Result<u64, DiskError> {
        Ok(self.0.lock().unwrap().contents.len)
    }

    fn set_len(&self, len: u64) -> Result<(), DiskError> {
        self.change(Event::SetLen(len))
    }

    fn try_read(&self, offset: u64, bufs: &mut [IoSliceMut<'_>]) -> Result<bool, DiskError> {
        self.read(offset, bufs).map(|()| true)
    }

    fn read(&self, offset: u64, bufs: &mut [IoSliceMut<'_>]) -> Result<(), DiskError> {
        let state = self.0.lock().unwrap();
        let mut at = offset;
        for buf in bufs {
            if at + buf.len() as u64 > state.contents.len {
                return Err(DiskError::corrupt(
                    self.path(),
                    state.contents.len,
                    "the file ends before its contents do",
                ));
            }
            state.contents.read(at, buf);
            at += buf.len() as u64;
        }
        Ok(())
    }

    fn write(&self, offset: u64, bufs: &[IoSlice<'_>]) -> Result<(), DiskError> {
        self.change(Event::Write(offset, Ok(bufs.iter().flat_map(|buf| buf.to_vec()).collect())))
    }

    /// Now and then only a part is written.
    fn try_write(&self, offset: u64, bufs: &[IoSlice<'_>]) -> Result<bool, DiskError> {
        let mut bytes: Vec<u8> = bufs.iter().flat_map(|buf| buf.to_vec()).collect();
        let partly = self.0.lock().unwrap().events.len() % 5 == 4;
        bytes.truncate(if partly { bytes.len() / 2 } else { bytes.len() });
        self.change(Event::Write(offset, Ok(bytes)))?;
        Ok(!partly)
    }

    fn zero(&self, offset: u64, len: u64) -> Result<(), DiskError> {
        self.change(Event::Write(offset, Err(len)))
    }

    fn sync(&self) -> Result<(), DiskError> {
        self.change(Event::Sync)
    }

    fn next_data(&self, offset: u64) -> Result<Option<u64>, DiskError> {
        let state = self.0.lock().unwrap();
        let page = state.contents.pages.range(offset / PAGE as u64..).next();
        Ok(page.map(|(page, _)| offset.max(page * PAGE as u64)))
    }
}
