//! The conformance suite that every disk format passes: random work on a disk and on a plain vector of bytes, which must
//! agree at every step, after a reopening, and after the process died. Disks are single files and chains of up to
//! [`DEPTH`] layers, each layer of any format of its family, with room for all their bitmaps or for hardly any.
//!
//! A format joins by an entry in [`FORMATS`], an operation that rearranges files by one in [`VERBS`].

use std::fmt::Debug;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use proptest::prelude::*;
use proptest::test_runner::TestRunner;

use super::cache::tests::within_much_or_little;
use super::chain::{Chain, PendingPath};
use super::file::Access;
use super::model::{BOOT, SECTORS, at, pattern, read, rounds, same, scratch, write};
use super::overlay::merge::tidy;
use super::overlay::{Note, Overlay, Place, SIZE_UNIT, Tree};
use super::vhd::create::TempFile;
use super::vhd::{Layout, NewChild, create_child_as, create_dynamic_as, create_fixed};
use super::vhdx::{self, Spec};
use super::{Disk, SECTOR};

/// Layers of the deepest chain.
const DEPTH: usize = 8;
/// What a disk grows to at most.
const MAX_SIZE: u64 = 12 << 20;

/// A kind of disk file that takes writes.
#[derive(Debug)]
pub(super) struct Format {
    pub(super) name: &'static str,
    family: Family,
    make: Make,
    /// The block sizes that it is tried with.
    blocks: &'static [u32],
}

/// Formats whose files can be layers of one chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Family {
    /// No layer of any chain: raw disks have no identity that a child could name.
    Raw,
    Vhd,
    /// With sectors of 512 bytes. A child has its parent's.
    Vhdx,
    /// With sectors of 4096 bytes, eight of a request's units.
    Vhdx4096,
}

impl Family {
    fn extension(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::Vhd => "vhd",
            Self::Vhdx | Self::Vhdx4096 => "vhdx",
        }
    }
}

/// How an empty disk comes to be.
#[derive(Debug, Clone, Copy)]
enum Make {
    /// At a path, of so many bytes, in blocks of so many.
    Base(fn(&Path, u64, u32)),
    /// At a path, as a child of this chain, to which this relative path leads, in blocks of so many bytes.
    Child(fn(&Path, &Chain, &str, u32)),
}

pub(super) static FORMATS: &[Format] = &[
    Format {
        name: "raw",
        family: Family::Raw,
        make: Make::Base(|path, size, _| std::fs::File::create(path).unwrap().set_len(size).unwrap()),
        blocks: &[512],
    },
    Format {
        name: "VHD, fixed",
        family: Family::Vhd,
        make: Make::Base(|path, size, _| {
            create_fixed(path, size).unwrap();
        }),
        blocks: &[512],
    },
    Format {
        name: "VHD, dynamic",
        family: Family::Vhd,
        make: Make::Base(|path, size, block_size| {
            create_dynamic_as(path, size, block_size).unwrap();
        }),
        blocks: VHD_BLOCKS,
    },
    Format {
        name: "VHD, differencing, pre-mapped",
        family: Family::Vhd,
        make: Make::Child(|path, parent, relative, block_size| {
            let new = NewChild { layout: Layout::Mapped, block_size, size: None };
            create_child_as(path, parent, relative, new).unwrap();
        }),
        blocks: VHD_BLOCKS,
    },
    Format {
        name: "VHD, differencing, compact",
        family: Family::Vhd,
        make: Make::Child(|path, parent, relative, block_size| {
            let new = NewChild { layout: Layout::Compact, block_size, size: None };
            create_child_as(path, parent, relative, new).unwrap();
        }),
        blocks: VHD_BLOCKS,
    },
    vhdx(
        "VHDX, fixed",
        Family::Vhdx,
        Make::Base(|path, size, block_size| vhdx_base(path, size, block_size, 512, true)),
    ),
    vhdx(
        "VHDX, dynamic",
        Family::Vhdx,
        Make::Base(|path, size, block_size| vhdx_base(path, size, block_size, 512, false)),
    ),
    vhdx("VHDX, differencing", Family::Vhdx, Make::Child(vhdx_child)),
    vhdx(
        "VHDX, dynamic, sectors of 4096 bytes",
        Family::Vhdx4096,
        Make::Base(|path, size, block_size| vhdx_base(path, size, block_size, 4096, false)),
    ),
    vhdx("VHDX, differencing, sectors of 4096 bytes", Family::Vhdx4096, Make::Child(vhdx_child)),
];

const fn vhdx(name: &'static str, family: Family, make: Make) -> Format {
    Format { name, family, make, blocks: VHDX_BLOCKS }
}

fn vhdx_base(path: &Path, size: u64, block_size: u32, logical_sector: u32, fixed: bool) {
    vhdx::create(path, &Spec { size, fixed, block_size, logical_sector, physical_sector: 4096 }).unwrap();
}

fn vhdx_child(path: &Path, parent: &Chain, relative: &str, block_size: u32) {
    let temp = TempFile::beside(path).unwrap();
    let absolute = parent.path().to_string_lossy();
    let new = vhdx::create::NewChild { block_size, ..Default::default() };
    vhdx::create::write_child(&temp.file, parent, relative, &absolute, new).unwrap();
    temp.keep().unwrap();
}

/// The smallest, those of Windows with the usual one twice, and the largest.
const VHD_BLOCKS: &[u32] = &[4 << 10, 64 << 10, 512 << 10, 2 << 20, 2 << 20, 32 << 20, 256 << 20];
/// The smallest, that of our children, that of Windows, and the largest.
const VHDX_BLOCKS: &[u32] = &[1 << 20, 2 << 20, 1 << 20, 32 << 20, 2 << 20, 256 << 20];

/// What can be done with a disk besides reading and writing, each a function of a number that it may choose by. It leaves
/// the model as the disk must read; the suite opens the disk afterwards and goes on.
static VERBS: &[fn(&mut Bench, usize)] = &[reset, child, checkpoint, merge, resize, compact];

/// The disk becomes as it was made: what lies below it, or zeros.
fn reset(bench: &mut Bench, _: usize) {
    bench.close();
    let (format, path) = bench.layers.pop().unwrap();
    bench.model.clone_from(&bench.below);
    bench.make(format, path);
}

/// The disk stays as it is, and a child of it takes the writes.
fn child(bench: &mut Bench, choice: usize) {
    let family = bench.layers.last().unwrap().0.family;
    let children: Vec<_> =
        FORMATS.iter().filter(|format| format.family == family && matches!(format.make, Make::Child(_))).collect();
    if bench.layers.len() == DEPTH || children.is_empty() {
        return;
    }
    bench.open().flush().unwrap();
    bench.close();
    bench.below.clone_from(&bench.model);
    let path = bench.fresh_path(family);
    bench.make(children[choice % children.len()], path);
}

/// The same by way of the verb.
fn checkpoint(bench: &mut Bench, _: usize) {
    if bench.layers.len() < DEPTH {
        bench.with_overlay(&mut |disk| {
            let note = Note { made_ms: 1, text: String::new(), checkpoint: true };
            disk.checkpoint(&note).unwrap();
        });
    }
}

/// One of the layers that such verbs left goes into what stands on it. Where there is room, two that hold something are made
/// first.
fn merge(bench: &mut Bench, choice: usize) {
    if (2..=DEPTH - 2).contains(&bench.layers.len()) {
        for n in 1..=2u8 {
            checkpoint(bench, 0);
            let start = choice as u64 % (SECTORS - 64) + u64::from(n) * 20;
            bench.write(start, &pattern(start, 30, n));
        }
    }
    bench.with_overlay(&mut |disk| {
        let tree = Tree::read(disk.place()).unwrap();
        let Some(layer) = tree.layers.get(choice % tree.layers.len().max(1)) else { return };
        disk.place().disown(layer).unwrap();
        // What the disk holds itself is set aside where the layer right below it is to go.
        disk.loosen(1).unwrap();
        tidy(disk.place(), disk.base(), &mut |_, _| ControlFlow::Continue(())).unwrap();
        disk.rebase().unwrap();
        disk.thaw().unwrap();
    });
}

/// The disk grows, a child taking the writes.
fn resize(bench: &mut Bench, choice: usize) {
    let size = bench.model.len() as u64 + (1 + choice as u64 % 3) * SIZE_UNIT;
    if bench.layers.len() < DEPTH && size <= MAX_SIZE {
        bench.with_overlay(&mut |disk| assert!(disk.resize(size, 1).unwrap()));
        if bench.layers.len() > 1 {
            bench.model.resize(usize::try_from(size).unwrap(), 0);
        }
    }
}

/// Pages that hold nothing are given back.
fn compact(bench: &mut Bench, _: usize) {
    bench.with_overlay(&mut |disk| disk.compact(0, disk.size()).unwrap());
}

/// What a disk promises, by how it is opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Promise {
    /// Opened by its path alone.
    Plain,
    /// With a pending map.
    Kept,
    Volatile,
}

/// A disk, the files that it is made of, and what it must read as.
struct Bench {
    dir: tempfile::TempDir,
    /// From the bottom to the top.
    layers: Vec<(&'static Format, PathBuf)>,
    promise: Promise,
    /// Chooses block sizes.
    seed: usize,
    files: usize,
    model: Vec<u8>,
    /// What the layers below the top read as; zeros if there are none.
    below: Vec<u8>,
    disk: Option<Chain>,
}

impl Bench {
    /// A disk whose top layer is an empty one of this format, over layers that hold something.
    fn new(top: &'static Format, below: &[usize], promise: Promise, seed: usize) -> Self {
        let zeros = vec![0; at(SECTORS)];
        let mut bench = Self {
            dir: scratch(),
            layers: Vec::new(),
            promise,
            seed,
            files: 0,
            model: zeros.clone(),
            below: zeros,
            disk: None,
        };
        let below = match top.make {
            Make::Base(_) => &[],
            Make::Child(_) => below,
        };
        for &choice in below {
            let fits = |format: &&Format| {
                let base = matches!(format.make, Make::Base(_));
                format.family == top.family && base == bench.layers.is_empty()
            };
            let formats: Vec<_> = FORMATS.iter().filter(fits).collect();
            let path = bench.fresh_path(top.family);
            bench.make(formats[choice % formats.len()], path);
            bench.fill();
            bench.below.clone_from(&bench.model);
        }
        let path = bench.fresh_path(top.family);
        bench.make(top, path);
        bench
    }

    fn fresh_path(&mut self, family: Family) -> PathBuf {
        self.files += 1;
        self.dir.path().join(format!("layer-{}.{}", self.files, family.extension()))
    }

    /// Does something to the disk as one that is served, if it is a child: over what lies below those of its layers that have
    /// the names which the verbs give them.
    fn with_overlay(&mut self, work: &mut dyn FnMut(&Overlay)) {
        if self.layers.len() < 2 {
            return;
        }
        self.open().flush().unwrap();
        self.close();
        let (format, top) = self.layers.last().unwrap().clone();
        let place = Place::new(top.clone());
        let by_verbs = |path: &Path| Tree::read(&place).unwrap().layers.iter().any(|l| place.layer(l.number) == path);
        let own = self.layers.iter().rev().skip(1).take_while(|(_, path)| by_verbs(path)).count();
        let base = &self.layers[self.layers.len() - 2 - own].1;
        let base = Arc::new(Chain::open(base, Access::Read).unwrap());
        let pending = PendingPath { path: top.with_extension("pending"), boot_id: BOOT.into() };
        let disk = Overlay::open(place, base, Some(&pending)).unwrap();
        work(&disk);
        disk.flush().unwrap();
        drop(disk);
        // What there is now is what the files say.
        let found = Chain::open(&top, Access::Peek).unwrap();
        let chain = std::iter::successors(Some(&found), |chain| chain.parent().map(|parent| &**parent));
        let known = |path: &Path| self.layers.iter().find(|(_, known)| known == path).map_or(format, |layer| layer.0);
        let mut layers: Vec<_> = chain.map(|chain| (known(chain.path()), chain.path().to_path_buf())).collect();
        layers.reverse();
        self.below = found.parent().map(|parent| read(&**parent, 0, parent.size() / SECTOR)).unwrap();
        self.layers = layers;
    }

    /// Makes an empty layer and puts it on top.
    fn make(&mut self, format: &'static Format, path: PathBuf) {
        let block_size = format.blocks[(self.seed + self.layers.len()) % format.blocks.len()];
        match format.make {
            Make::Base(make) => make(&path, self.model.len() as u64, block_size),
            Make::Child(make) => {
                let below = &self.layers.last().unwrap().1;
                let relative = format!(".\\{}", below.file_name().unwrap().to_string_lossy());
                make(&path, &Chain::open(below, Access::Read).unwrap(), &relative, block_size);
            }
        }
        self.layers.push((format, path));
    }

    /// Writes something into the top layer that tells it from all others.
    fn fill(&mut self) {
        let depth = self.layers.len() as u64;
        let seed = 0xd0 + u8::try_from(depth).unwrap();
        for start in (depth * 7..SECTORS - 40).step_by(911) {
            self.write(start, &pattern(start, depth * 3, seed));
        }
        self.open().flush().unwrap();
        self.close();
    }

    fn close(&mut self) {
        self.disk = None;
    }

    /// The disk, which is opened if it is not open.
    fn open(&mut self) -> &Chain {
        let (layers, promise) = (&self.layers, self.promise);
        self.disk.get_or_insert_with(|| {
            let top = &layers.last().unwrap().1;
            let Some((_, below)) = layers.iter().rev().nth(1) else { return Chain::open(top, Access::Write).unwrap() };
            let parent = || Arc::new(Chain::open(below, Access::Read).unwrap());
            match promise {
                Promise::Plain => Chain::open(top, Access::Write),
                Promise::Kept => {
                    let pending = PendingPath { path: top.with_extension("pending"), boot_id: BOOT.into() };
                    Chain::open_child(top, parent(), Some(pending))
                }
                Promise::Volatile => Chain::open_volatile(top, parent()),
            }
            .unwrap()
        })
    }

    fn write(&mut self, start: u64, bytes: &[u8]) {
        let disk = self.open();
        write(disk, start, bytes);
        assert_eq!(
            disk.growth(start * SECTOR, bytes.len() as u64).unwrap(),
            0,
            "what was written takes no space again"
        );
        self.model[at(start)..at(start) + bytes.len()].copy_from_slice(bytes);
    }

    fn check(&mut self, start: u64, len: u64) {
        let bytes = read(self.open(), start, len);
        assert!(bytes == self.model[at(start)..at(start + len)], "sectors {start}..{} differ", start + len);
    }

    fn step(&mut self, step: &Step) {
        match *step {
            Step::Write(start, len, seed) => self.write(start, &pattern(start, len, seed)),
            Step::Same(start, len, seed) => {
                let sector = pattern(u64::from(seed), 1, seed);
                same(self.open(), start, len, &sector);
                self.model[at(start)..at(start + len)].chunks_mut(512).for_each(|chunk| chunk.copy_from_slice(&sector));
            }
            Step::Zero(start, len) => {
                self.open().zero(start * SECTOR, len * SECTOR).unwrap();
                self.model[at(start)..at(start + len)].fill(0);
            }
            Step::Read(start, len) => self.check(start, len),
            Step::Flush => {
                let disk = self.open();
                disk.flush().unwrap();
                assert!(disk.is_volatile() || !disk.dirty());
            }
            Step::Reopen => self.close(),
            Step::Verb(verb, choice) => {
                VERBS[verb % VERBS.len()](self, choice);
                assert_eq!(self.open().size(), self.model.len() as u64);
            }
        }
    }
}

/// One step of work.
#[derive(Debug, Clone)]
enum Step {
    /// Sectors from a start, filled from a seed.
    Write(u64, u64, u8),
    /// The same bytes in each of them.
    Same(u64, u64, u8),
    Zero(u64, u64),
    Read(u64, u64),
    Flush,
    /// Closed and opened again, with nothing flushed: what a killed process leaves.
    Reopen,
    Verb(usize, usize),
}

pub(super) fn range() -> impl Strategy<Value = (u64, u64)> {
    // Mostly short, near block borders and neighbours, so that bitmaps become a mixture; up to 1 MiB.
    let start = prop_oneof![0..SECTORS, 4000..4200u64, 0..64u64, SECTORS - 64..SECTORS];
    let len = prop_oneof![6 => 1..24u64, 2 => 1..=2048u64, 1 => Just(1u64)];
    (start, len).prop_map(|(start, len)| (start, len.min(SECTORS - start)))
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        8 => (range(), 1..=255u8).prop_map(|((start, len), seed)| Step::Write(start, len, seed)),
        1 => (range(), 1..=255u8).prop_map(|((start, len), seed)| Step::Same(start, len, seed)),
        2 => range().prop_map(|(start, len)| Step::Zero(start, len)),
        6 => range().prop_map(|(start, len)| Step::Read(start, len)),
        1 => Just(Step::Flush),
        1 => Just(Step::Reopen),
        3 => any::<(usize, usize)>().prop_map(|(verb, choice)| Step::Verb(verb, choice)),
    ]
}

fn conforms(format: &'static Format) {
    let promises = prop_oneof![Just(Promise::Plain), Just(Promise::Kept), Just(Promise::Volatile)];
    let below = proptest::collection::vec(any::<usize>(), 1..DEPTH);
    let steps = proptest::collection::vec(step(), 1..40);
    let config =
        ProptestConfig { cases: 24 * rounds(), max_shrink_iters: 200, failure_persistence: None, ..Default::default() };
    let tested =
        TestRunner::new(config).run(&(below, promises, any::<u16>(), steps), |(below, promise, seed, steps)| {
            within_much_or_little(seed.into(), || {
                let mut bench = Bench::new(format, &below, promise, seed.into());
                steps.iter().for_each(|step| bench.step(step));
                bench.close();
                bench.check(0, bench.model.len() as u64 / SECTOR);
                // And as one finds it who knows nothing but its path.
                bench.close();
                let found = Chain::open(&bench.layers.last().unwrap().1, Access::Read).unwrap();
                prop_assert!(promise == Promise::Kept || read(&found, 0, found.size() / SECTOR) == bench.model);
                Ok(())
            })
        });
    tested.unwrap_or_else(|error| panic!("{}: {error}", format.name));
}

#[test]
fn every_disk_and_every_chain_is_a_vector_of_bytes() {
    std::thread::scope(|scope| FORMATS.iter().for_each(|format| drop(scope.spawn(|| conforms(format)))));
}

#[test]
fn the_deepest_chain_has_a_sector_of_every_layer() {
    for top in FORMATS.iter().filter(|format| matches!(format.make, Make::Child(_))) {
        let mut bench = Bench::new(top, &[1; DEPTH - 1], Promise::Kept, 3);
        bench.fill();
        bench.check(0, SECTORS);
        let files: std::collections::BTreeSet<_> = bench
            .open()
            .resolve(0, SECTORS * SECTOR)
            .unwrap()
            .iter()
            .filter_map(|extent| extent.at.map(|(media, _)| media.path().to_path_buf()))
            .collect();
        assert_eq!(files.len(), DEPTH, "{}: {files:?}", top.name);
    }
}
