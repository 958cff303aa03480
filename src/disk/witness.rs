//! Power cuts of whole folders: what is done to their files and names is remembered, and given back as every folder that a cut
//! may leave.
//!
//! [`super::power`] does the same for one file on a double. Here the real file code works in a real folder, and tells the thread's
//! witness (hooks in [`super::file`]) of each change that it made. Of what came after a file's last flush any choice of sectors, or
//! of whole writes, is on the device; of the changes of a folder's names after its last flush, any of them.

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::double::{Contents, Event};
use super::file::folder_of;
use super::power::Random;

thread_local! {
    /// The witness of this thread's changes.
    static WITNESS: RefCell<Option<Story>> = const { RefCell::new(None) };
}

/// A file, whatever it is called.
type Id = usize;

/// Names, relative to the folder that is watched, and what lies behind them.
pub(super) type Folder = BTreeMap<String, Contents>;

#[derive(Debug, Clone)]
enum Change {
    File(Id, Event),
    Name { folder: String, what: Naming },
    FlushFolder(String),
}

#[derive(Debug, Clone)]
enum Naming {
    /// A new name: of a new file, or a second one.
    Given(String, Id),
    Renamed(String, String, Id),
    RenamedFolder(String, String),
    Removed(String),
}

/// What was done in a folder since a moment.
#[derive(Debug, Clone)]
pub(super) struct Story {
    root: PathBuf,
    /// What lay behind names at first, durable; a file that was made since holds nothing.
    start: Vec<Contents>,
    names_at_start: BTreeMap<String, Id>,
    /// Files from this one on were made since.
    first_made: Id,
    names: BTreeMap<String, Id>,
    /// By inode, as they were last opened.
    open: HashMap<u64, Id>,
    /// Each with its moment.
    changes: Vec<(usize, Change)>,
    end: usize,
}

/// Something that the code under test might do wrong, planted into the story of code that does it right.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fault {
    /// A file gets its place before its contents are flushed.
    NoFlushBeforeRename,
    /// Names are not flushed.
    NoFlushOfFolders,
    /// A file is removed before what stands in for it has its name durably.
    RemovedTooEarly,
}

/// Watches what this thread does in a folder, from now on.
pub(super) fn watch(root: &Path) {
    let mut story = Story {
        root: root.to_owned(),
        start: vec![],
        names_at_start: BTreeMap::new(),
        first_made: 0,
        names: BTreeMap::new(),
        open: HashMap::new(),
        changes: vec![],
        end: 0,
    };
    story.look_around(root);
    (story.names_at_start, story.first_made) = (story.names.clone(), story.start.len());
    WITNESS.set(Some(story));
}

/// What happened since [`watch`].
pub(super) fn told() -> Story {
    let story = WITNESS.take().expect("somebody watches");
    Story { end: story.changes.len(), ..story }
}

/// The moment that the next change will have; 0 while nobody watches.
pub(super) fn moment() -> usize {
    WITNESS.with_borrow(|story| story.as_ref().map_or(0, |story| story.changes.len()))
}

fn with(tell: impl FnOnce(&mut Story)) {
    WITNESS.with_borrow_mut(|story| story.as_mut().map(tell));
}

/// A file was opened under this name, and made if there was none.
pub(super) fn opened(path: &Path, file: &fs::File) {
    with(|story| {
        let Some(name) = story.name(path) else { return };
        let inode = file.metadata().unwrap().ino();
        let id = story.names.get(&name).copied().unwrap_or_else(|| {
            story.start.push(Contents::default());
            let id = story.start.len() - 1;
            story.name_changed(path, Naming::Given(name, id));
            id
        });
        story.open.insert(inode, id);
    });
}

/// A file was changed, or flushed.
pub(super) fn changed(file: &fs::File, event: impl FnOnce() -> Event) {
    with(|story| {
        if let Some(&id) = story.open.get(&file.metadata().unwrap().ino()) {
            story.push(Change::File(id, event()));
        }
    });
}

pub(super) fn linked(from: &Path, to: &Path) {
    with(|story| {
        let (Some(from), Some(name)) = (story.name(from), story.name(to)) else { return };
        let id = story.names[&from];
        story.name_changed(to, Naming::Given(name, id));
    });
}

pub(super) fn renamed(from: &Path, to: &Path) {
    with(|story| {
        let (Some(old), Some(new)) = (story.name(from), story.name(to)) else { return };
        let what = match story.names.get(&old) {
            Some(&id) => Naming::Renamed(old, new, id),
            None => Naming::RenamedFolder(old, new),
        };
        story.name_changed(to, what);
    });
}

pub(super) fn removed(path: &Path) {
    with(|story| {
        let name = story.name(path).filter(|name| story.names.contains_key(name));
        if let Some(name) = name {
            story.name_changed(path, Naming::Removed(name));
        }
    });
}

pub(super) fn flushed_folder(folder: &Path) {
    with(|story| {
        if let Some(name) = story.name(folder) {
            story.push(Change::FlushFolder(name));
        }
    });
}

impl Naming {
    fn apply(&self, names: &mut BTreeMap<String, Id>) {
        match self {
            Self::Given(name, id) => drop(names.insert(name.clone(), *id)),
            Self::Renamed(from, to, id) => {
                names.remove(from);
                names.insert(to.clone(), *id);
            }
            Self::RenamedFolder(from, to) => {
                let moved = names.keys().filter_map(|name| Some((name.clone(), name.strip_prefix(from)?.to_owned())));
                for (name, rest) in moved.filter(|(_, rest)| rest.starts_with('/')).collect::<Vec<_>>() {
                    let id = names.remove(&name).unwrap();
                    names.insert(format!("{to}{rest}"), id);
                }
            }
            Self::Removed(name) => drop(names.remove(name)),
        }
    }
}

impl Story {
    fn look_around(&mut self, folder: &Path) {
        for entry in fs::read_dir(folder).unwrap().map(|entry| entry.unwrap()) {
            let kind = entry.file_type().unwrap();
            if kind.is_dir() {
                self.look_around(&entry.path());
            } else if kind.is_file() {
                let inode = entry.metadata().unwrap().ino();
                let id = *self.open.entry(inode).or_insert(self.start.len());
                if id == self.start.len() {
                    self.start.push(Contents::of(&fs::read(entry.path()).unwrap()));
                }
                let name = self.name(&entry.path()).unwrap();
                self.names.insert(name, id);
            }
        }
    }

    /// `None`: it lies elsewhere.
    fn name(&self, path: &Path) -> Option<String> {
        Some(path.strip_prefix(&self.root).ok()?.to_str().unwrap().to_owned())
    }

    fn push(&mut self, change: Change) {
        self.changes.push((self.changes.len(), change));
    }

    fn name_changed(&mut self, path: &Path, what: Naming) {
        what.apply(&mut self.names);
        let folder = self.name(folder_of(path)).unwrap();
        self.push(Change::Name { folder, what });
    }

    /// The moment after the last change. One can cut there, and before each change.
    pub(super) fn end(&self) -> usize {
        self.end
    }

    /// What a process that dies before a moment leaves: all that it did.
    pub(super) fn death(&self, moment: usize) -> Folder {
        self.left(moment, &mut |_| true, &mut |_| true)
    }

    /// What a power cut before a moment may leave.
    pub(super) fn cut(&self, moment: usize, random: &mut Random) -> Folder {
        let (names, data, whole) = (random.next() % 5, random.next() % 5, random.next().is_multiple_of(2));
        // None, some, or all of the names; of the sectors or of the writes.
        let flip = RefCell::new(random);
        let odds = |n: u64| flip.borrow_mut().next() % 4 < n;
        self.left(moment, &mut |_| odds(names), &mut |event| match event {
            Some(_) if whole => odds(data),
            Some(_) => true,
            None => whole || odds(data),
        })
    }

    /// What lies in the folder when everything that was flushed before a moment is there, and of the rest what `keeps_name` and
    /// `keeps` let through: `keeps` is asked for each event, and then for each sector of it.
    fn left(
        &self,
        moment: usize,
        keeps_name: &mut dyn FnMut(&Naming) -> bool,
        keeps: &mut dyn FnMut(Option<&Event>) -> bool,
    ) -> Folder {
        let before = &self.changes[..self.changes.partition_point(|(at, _)| *at < moment)];
        let (mut flushed, mut flushed_folders) = (vec![0; self.start.len()], HashMap::new());
        for (n, (_, change)) in before.iter().enumerate() {
            match change {
                Change::File(id, Event::Sync) => flushed[*id] = n,
                Change::FlushFolder(name) => drop(flushed_folders.insert(name, n)),
                _ => {}
            }
        }
        let (mut files, mut names) = (self.start.clone(), self.names_at_start.clone());
        for (n, (_, change)) in before.iter().enumerate() {
            match change {
                Change::File(id, event) if n < flushed[*id] => files[*id].apply(event, &mut || true),
                Change::File(id, event) if keeps(Some(event)) => files[*id].apply(event, &mut || keeps(None)),
                Change::Name { folder, what }
                    if flushed_folders.get(folder).is_some_and(|&flush| n < flush) || keeps_name(what) =>
                {
                    what.apply(&mut names);
                }
                _ => {}
            }
        }
        names.into_iter().map(|(name, id)| (name, files[id].clone())).collect()
    }

    /// The story of code that has this fault.
    pub(super) fn plant(mut self, fault: Fault) -> Self {
        let is_flush = |change: &Change| matches!(change, Change::FlushFolder(_));
        match fault {
            Fault::NoFlushOfFolders => self.changes.retain(|(_, change)| !is_flush(change)),
            Fault::NoFlushBeforeRename => {
                let mut renamed: HashMap<Id, usize> = HashMap::new();
                for (at, change) in &self.changes {
                    match change {
                        Change::Name { what: Naming::Renamed(_, _, id), .. } => drop(renamed.insert(*id, *at)),
                        // All that was made in the folder since.
                        Change::Name { what: Naming::RenamedFolder(..), .. } => {
                            renamed.extend((self.first_made..self.start.len()).map(|id| (id, *at)));
                        }
                        _ => {}
                    }
                }
                self.changes.retain(|(at, change)| match change {
                    Change::File(id, Event::Sync) => renamed.get(id).is_none_or(|renamed| at > renamed),
                    _ => true,
                });
            }
            Fault::RemovedTooEarly => {
                for n in 1..self.changes.len() {
                    let is_removal = matches!(self.changes[n].1, Change::Name { what: Naming::Removed(_), .. });
                    if is_removal && is_flush(&self.changes[n - 1].1) {
                        let (one, other) = self.changes.split_at_mut(n);
                        std::mem::swap(&mut one[n - 1].1, &mut other[0].1);
                    }
                }
            }
        }
        self
    }
}

/// Puts what a cut left into a folder.
pub(super) fn restore(folder: &Folder, root: &Path) {
    for (name, contents) in folder {
        let path = root.join(name);
        fs::create_dir_all(folder_of(&path)).unwrap();
        contents.store(&fs::File::create(path).unwrap());
    }
}

#[test]
fn a_cut_leaves_what_was_flushed_and_any_choice_of_the_rest() {
    use super::file::{File, Media, rename, sync_folder_of, write_all};
    let dir = super::model::scratch();
    let (a, b) = (dir.path().join("a"), dir.path().join("b"));
    fs::write(&a, [1; 1024]).unwrap();
    watch(dir.path());
    let file = File::open_or_create(&b).unwrap();
    write_all(&file, 0, &[2; 1024]).unwrap();
    file.sync().unwrap();
    write_all(&file, 0, &[3; 1024]).unwrap();
    rename(&b, &a).unwrap();
    let unflushed = moment();
    sync_folder_of(&a).unwrap();
    let flushed = moment();
    drop(file);
    let story = told();
    let mut random = Random(9);
    let mut found: Vec<Vec<(String, u8, u8)>> = vec![];
    let mut cut = |moment| {
        found.clear();
        for _ in 0..400 {
            let dir = super::model::scratch();
            restore(&story.cut(moment, &mut random), dir.path());
            let mut names: Vec<_> = fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().path()).collect();
            names.sort();
            let seen = names.iter().map(|path| {
                let bytes = fs::read(path).unwrap();
                (path.file_name().unwrap().to_str().unwrap().to_owned(), bytes[0], bytes[512])
            });
            let seen: Vec<_> = seen.collect();
            if !found.contains(&seen) {
                found.push(seen);
            }
        }
        found.sort();
        found.clone()
    };
    let mixtures = [(2, 2), (2, 3), (3, 2), (3, 3)];
    let renamed: Vec<_> = mixtures.iter().map(|&(one, two)| vec![("a".to_owned(), one, two)]).collect();
    assert_eq!(cut(flushed), renamed, "the names are durable, the last write is not");
    let found = cut(unflushed);
    assert!(renamed.iter().all(|seen| found.contains(seen)), "{found:?}");
    assert!(found.contains(&vec![("a".to_owned(), 1, 1)]), "the new file's name is lost: {found:?}");
    assert!(found.contains(&vec![("a".to_owned(), 1, 1), ("b".to_owned(), 3, 2)]), "{found:?}");
}
