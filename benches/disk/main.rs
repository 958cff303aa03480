//! How dear a disk of three layers is beside a raw file (run by `benches/disk/run`).
//!
//! Every case is run against all subjects, one right after the other in turns of a few milliseconds, for several rounds; what
//! is printed are medians of the ratios within a round, for absolute figures move with whatever else the machine does. One
//! thread does the work, and where no device is waited for, its CPU time counts, not the clock on the wall.
//!
//! Subjects: `raw`, a file read and written by the same positional calls as the layers of a disk; and for each format a master,
//! a child with 64 KiB of every 2 MiB, and the client's child of that with every other 64 KiB, so that reads cross between
//! child and master all the time. All hold the same bytes, and lie in tmpfs.
//!
//! First writes go to a file system with a device below it: 4 KiB into blocks that were never written, acknowledged so that
//! they outlive the process; beside the same with a flush after each, which is two barriers with the bits between them.
//!
//! Memory is that of a process of its own for each format, beyond what it took before it opened its disks.

use std::fs;
use std::io::{IoSlice, IoSliceMut};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use clap::Parser;
use roost::disk::file::{Access, File, Media};
use roost::disk::vhd::{Layout, NewChild, create_child_as, create_dynamic};
use roost::disk::vhdx::{self, Spec};
use roost::disk::{Chain, Disk, PendingPath, bitmap_bytes};
use serde_json::{Value, json};

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;
/// How much of the disk lies in one layer before another follows.
const STRIPE: u64 = 64 * KIB;
/// What clients' disks have for blocks.
const BLOCK: u64 = 2 * MIB;
/// The stripe of every block that the layer between master and client holds, an even one.
const MIDDLE: u64 = 6;
/// Turns of every subject in a round.
const TURNS: usize = 8;

#[derive(Debug, Parser)]
#[command(about = "Disks of three layers beside a raw file of the same bytes")]
struct Options {
    /// Smaller disks and fewer operations
    #[arg(long)]
    quick: bool,
    #[arg(long, default_value_t = 7)]
    rounds: usize,
    /// Write every figure of every round to this file
    #[arg(long)]
    json: Option<PathBuf>,
    /// A folder in memory
    #[arg(long, default_value = "/dev/shm")]
    fast: PathBuf,
    /// A folder on a file system whose barriers reach a device
    #[arg(long, default_value = env!("CARGO_TARGET_TMPDIR"))]
    disk: PathBuf,
    /// Said by cargo
    #[arg(long, hide = true)]
    bench: bool,
    /// Opens disks of this format and tells what memory that takes
    #[arg(long, hide = true)]
    memory: Option<usize>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Format {
    Mapped,
    Compact,
    Vhdx,
}

const FORMATS: [(Format, &str); 3] =
    [(Format::Mapped, "VHD, pre-mapped"), (Format::Compact, "VHD, on demand"), (Format::Vhdx, "VHDX")];

impl Format {
    fn extension(self) -> &'static str {
        if self == Self::Vhdx { "vhdx" } else { "vhd" }
    }

    /// Makes an empty master, and opens it for writing.
    fn master(self, folder: &Path, size: u64) -> Result<Chain> {
        let path = folder.join("master").with_extension(self.extension());
        match self {
            Self::Vhdx => vhdx::create(&path, &Spec::dynamic(size))?,
            Self::Mapped | Self::Compact => create_dynamic(&path, size)?,
        };
        Ok(Chain::open(&path, Access::Write)?)
    }

    /// Makes a child of what lies beside it.
    fn child(self, folder: &Path, name: &str, parent: &Chain) -> Result<PathBuf> {
        let path = folder.join(name).with_extension(self.extension());
        let relative = format!(".\\{}", parent.path().file_name().context("a file")?.to_string_lossy());
        let layout = if self == Self::Compact { Layout::Compact } else { Layout::Mapped };
        match self {
            Self::Vhdx => vhdx::create_child(&path, parent, &relative)?,
            _ => create_child_as(&path, parent, &relative, NewChild { layout, ..NewChild::default() })?,
        };
        Ok(path)
    }

    /// Three layers with these stripes, and the uppermost open as a client's disk is that keeps what is written.
    fn chain(self, folder: &Path, size: u64, stripes: impl Fn(u64, usize) -> bool) -> Result<Chain> {
        let mut below = self.master(folder, size)?;
        fill(&below, |stripe| stripes(stripe, 0))?;
        drop(below);
        below = Chain::open(&folder.join("master").with_extension(self.extension()), Access::Read)?;
        let middle = self.child(folder, "middle", &below)?;
        drop(below);
        fill(&Chain::open(&middle, Access::Write)?, |stripe| stripes(stripe, 1))?;
        let parent = Arc::new(Chain::open(&middle, Access::Read)?);
        let top = open(&self.child(folder, "top", &parent)?, &parent)?;
        fill(&top, |stripe| stripes(stripe, 2))?;
        Ok(top)
    }
}

/// A client's disk that keeps what is written.
fn open(path: &Path, parent: &Arc<Chain>) -> Result<Chain> {
    let boot_id = fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim().to_owned();
    let pending = PendingPath { path: path.with_extension("pending"), boot_id };
    Ok(Chain::open_child(path, Arc::clone(parent), Some(pending))?)
}

/// Bytes that tell where they belong.
fn pattern(offset: u64, bytes: &mut [u8]) {
    for (word, at) in bytes.chunks_exact_mut(8).zip((offset..).step_by(8)) {
        word.copy_from_slice(&at.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes());
    }
}

fn fill(disk: &dyn Disk, wanted: impl Fn(u64) -> bool) -> Result<()> {
    let mut bytes = vec![0; 64 << 10];
    for stripe in (0..disk.size() / STRIPE).filter(|&stripe| wanted(stripe)) {
        pattern(stripe * STRIPE, &mut bytes);
        disk.write(stripe * STRIPE, &[IoSlice::new(&bytes)])?;
    }
    Ok(disk.flush()?)
}

/// What is measured: a raw file, or a disk.
enum Subject {
    Raw(File),
    Disk(Chain),
}

impl Subject {
    fn read(&self, offset: u64, bytes: &mut [u8]) -> Result<()> {
        let bufs = &mut [IoSliceMut::new(bytes)];
        let read = match self {
            Self::Raw(file) => file.try_read(offset, bufs)?,
            Self::Disk(chain) => chain.try_read(offset, bufs)?,
        };
        ensure!(read, "{offset} is not in memory");
        Ok(())
    }

    fn write(&self, offset: u64, bytes: &[u8]) -> Result<()> {
        match self {
            Self::Raw(file) => file.write(offset, &[IoSlice::new(bytes)])?,
            Self::Disk(chain) => chain.write(offset, &[IoSlice::new(bytes)])?,
        }
        Ok(())
    }
}

/// Nanoseconds of CPU that this thread has taken.
fn cpu_ns() -> Result<u64> {
    // The kernel brings its books up to date when a thread gives way.
    std::thread::yield_now();
    let stat = fs::read_to_string("/proc/thread-self/schedstat")?;
    Ok(stat.split(' ').next().unwrap_or_default().parse()?)
}

/// Random numbers that are the same in each run.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 24) % bound
    }
}

/// Something that is done to each subject.
struct Case {
    name: &'static str,
    bytes: u64,
    writes: bool,
    /// Offsets are multiples of this.
    step: u64,
    /// What raw speed is to be kept at least.
    aim: Option<f64>,
}

const CASES: [Case; 4] = [
    Case { name: "random reads, 4 KiB", bytes: 4 * KIB, writes: false, step: 4 * KIB, aim: Some(0.8) },
    Case { name: "reads, 64 KiB, in one layer", bytes: STRIPE, writes: false, step: STRIPE, aim: Some(0.9) },
    Case { name: "reads, 64 KiB, across layers", bytes: STRIPE, writes: false, step: 4 * KIB, aim: Some(0.9) },
    Case { name: "writes again, 4 KiB", bytes: 4 * KIB, writes: true, step: 4 * KIB, aim: None },
];

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

#[expect(clippy::cast_precision_loss, reason = "figures for people")]
fn float(value: u64) -> f64 {
    value as f64
}

/// CPU nanoseconds per operation of each subject in each round.
fn measure(case: &Case, subjects: &[Subject], size: u64, options: &Options) -> Result<Vec<Vec<f64>>> {
    let mut random = Random(1);
    let each = if options.quick { 32 * MIB } else { 128 * MIB } / case.bytes.max(16 * KIB);
    let mut bytes = vec![0; usize::try_from(case.bytes)?];
    let mut rounds = Vec::new();
    for round in 0..=options.rounds {
        let mut spent = vec![0; subjects.len()];
        for turn in 0..TURNS {
            let places: Vec<u64> = (0..each / TURNS as u64)
                .map(|_| match case.writes {
                    false => random.below((size - case.bytes) / case.step + 1) * case.step,
                    // In the client's own stripes.
                    true => {
                        random.below(size / STRIPE / 2) * 2 * STRIPE
                            + STRIPE
                            + random.below(STRIPE / case.step) * case.step
                    }
                })
                .collect();
            for n in 0..subjects.len() {
                let subject = (n + turn) % subjects.len();
                let before = cpu_ns()?;
                for &place in &places {
                    if case.writes {
                        subjects[subject].write(place, &bytes)?;
                    } else {
                        subjects[subject].read(place, &mut bytes)?;
                    }
                }
                spent[subject] += cpu_ns()? - before;
            }
        }
        // The first round warms up.
        if round > 0 {
            let count = each / TURNS as u64 * TURNS as u64;
            rounds.push(spent.into_iter().map(|spent| float(spent) / float(count)).collect());
        }
    }
    Ok(rounds)
}

/// Reads and writes: all cases of all formats beside the raw file.
fn speeds(options: &Options, folder: &Path) -> Result<Vec<Value>> {
    let size = if options.quick { 128 } else { 512 } * MIB;
    let raw = File::open_or_create(&folder.join("raw"))?;
    let mut bytes = vec![0; 64 << 10];
    for at in (0..size).step_by(64 << 10) {
        pattern(at, &mut bytes);
        raw.write(at, &[IoSlice::new(&bytes)])?;
    }
    let mut subjects = vec![Subject::Raw(raw)];
    for (n, (format, _)) in FORMATS.iter().enumerate() {
        let folder = folder.join(n.to_string());
        fs::create_dir(&folder)?;
        let layer = |stripe: u64| match stripe {
            stripe if stripe % 2 == 1 => 2,
            stripe if stripe % (BLOCK / STRIPE) == MIDDLE => 1,
            _ => 0,
        };
        subjects.push(Subject::Disk(format.chain(&folder, size, |stripe, wanted| layer(stripe) == wanted)?));
    }
    let mut expected = bytes.clone();
    for at in (0..size).step_by(64 << 10) {
        pattern(at, &mut expected);
        for subject in &subjects {
            subject.read(at, &mut bytes)?;
            ensure!(bytes == expected, "a subject holds other bytes at {at}");
        }
    }
    println!("{}: {} MiB each; {}", folder.display(), size / MIB, residency(folder)?);
    println!("{:<32}{:>11}{:>20}{:>20}{:>20}", "", "raw", FORMATS[0].1, FORMATS[1].1, FORMATS[2].1);
    println!("{:<32}{:>11}{:>20}{:>20}{:>20}", "", "us CPU/op", "x raw  us/op", "x raw  us/op", "x raw  us/op");
    let mut results = Vec::new();
    for case in &CASES {
        let rounds = measure(case, &subjects, size, options)?;
        let us = |n: usize| median(rounds.iter().map(|round| round[n])) / 1000.0;
        let ratio = |n: usize| median(rounds.iter().map(|round| round[0] / round[n]));
        let columns: String = (1..=3).map(|n| format!("{:>12.2}{:>8.2}", ratio(n), us(n))).collect();
        let aim = case.aim.map_or(String::new(), |aim| format!("   aim {aim}"));
        println!("{:<32}{:>11.2}{columns}{aim}", case.name, us(0));
        let names: Vec<&str> = std::iter::once("raw").chain(FORMATS.map(|(_, name)| name)).collect();
        results.push(json!({ "case": case.name, "subjects": names, "cpu_ns_per_operation": rounds }));
    }
    Ok(results)
}

/// First writes to fresh blocks, and the same with two barriers each.
fn first_writes(options: &Options, folder: &Path) -> Result<Vec<Value>> {
    let (writes, pairs) = if options.quick { (200, 20) } else { (1000, 100) };
    println!("\n{}: {}; 4 KiB into each of {writes} blocks", folder.display(), file_system(folder)?);
    println!(
        "{:<32}{:>20}{:>20}{:>12}{:>27}",
        "us of time for each", "two barriers each", "acknowledged", "x faster", "and one flush for all"
    );
    let mut rounds = vec![Vec::new(); FORMATS.len()];
    for round in 0..options.rounds {
        for (n, (format, _)) in FORMATS.iter().enumerate() {
            // Each on a disk of its own, so that what a fresh one does once is in both.
            let run = |which: &str, writes: u64, each: bool| -> Result<[f64; 2]> {
                let folder = folder.join(format!("{round}-{n}-{which}"));
                fs::create_dir(&folder)?;
                let top = format.chain(&folder, 256 * GIB, |_, _| false)?;
                let began = Instant::now();
                for block in 0..writes {
                    top.write(block * BLOCK + 64 * KIB, &[IoSlice::new(&[7; 4 << 10])])?;
                    if each {
                        top.flush()?;
                    }
                }
                let acknowledged = began.elapsed();
                top.flush()?;
                let us = |time: Duration| time.as_secs_f64() * 1e6 / float(writes);
                let times = [us(acknowledged), us(began.elapsed())];
                drop(top);
                fs::remove_dir_all(&folder)?;
                Ok(times)
            };
            let [flushed, _] = run("flushed", pairs, true)?;
            let [acknowledged, with_flush] = run("acknowledged", writes, false)?;
            rounds[n].push([flushed, acknowledged, with_flush]);
        }
    }
    let mut results = Vec::new();
    for ((_, name), rounds) in FORMATS.iter().zip(&rounds) {
        let us = |which: usize| median(rounds.iter().map(|round| round[which]));
        let faster = median(rounds.iter().map(|round| round[0] / round[1]));
        println!("{name:<32}{:>20.1}{:>20.1}{faster:>12.0}{:>27.1}   aim 50", us(0), us(1), us(2));
        results
            .push(json!({ "case": "first writes", "format": name, "us_two_barriers_acknowledged_with_flush": rounds }));
    }
    Ok(results)
}

/// KiB of memory of its own that this process has.
fn memory_kib() -> Result<u64> {
    let status = fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).context("RssAnon in /proc/self/status")?;
    Ok(line.trim().trim_end_matches(" kB").parse()?)
}

/// How many disks are opened, and how many places are written on each.
const DISKS: u64 = 64;
const PLACES: u64 = 1000;

/// What open disks of 256 GiB take: as they are opened, as they are used, and one with something in each of its blocks.
fn memory(options: &Options, format: Format, folder: &Path) -> Result<Value> {
    let disks = if options.quick { DISKS / 4 } else { DISKS };
    let master = format.master(folder, 256 * GIB)?;
    master.write(0, &[IoSlice::new(&[1; 4 << 10])])?;
    let path = master.path().to_path_buf();
    drop(master);
    let master = Arc::new(Chain::open(&path, Access::Read)?);
    let paths: Vec<_> = (0..=disks).map(|n| format.child(folder, &n.to_string(), &master)).collect::<Result<_>>()?;
    let before = memory_kib()?;
    let opened: Vec<_> = paths[1..].iter().map(|path| open(path, &master)).collect::<Result<_>>()?;
    let fresh = memory_kib()? - before;
    let (mut random, data) = (Random(5), [3; 4 << 10]);
    let write_and_read = |disk: &Chain, place: u64| -> Result<()> {
        disk.write(place, &[IoSlice::new(&data)])?;
        let mut back = [0; 8 << 10];
        disk.read(place, &mut [IoSliceMut::new(&mut back)])?;
        ensure!(back[..4 << 10] == data, "what was written is read");
        Ok(())
    };
    for _ in 0..PLACES {
        for disk in &opened {
            write_and_read(disk, random.below(256 * GIB / (8 * KIB)) * 8 * KIB)?;
        }
    }
    for disk in &opened {
        disk.flush()?;
    }
    let (used, bitmaps) = (memory_kib()? - before, u64::try_from(bitmap_bytes())? / KIB);
    let between = memory_kib()?;
    let full = open(&paths[0], &master)?;
    if !options.quick {
        for block in 0..256 * GIB / BLOCK {
            write_and_read(&full, block * BLOCK + random.below(BLOCK / (8 * KIB)) * 8 * KIB)?;
        }
    }
    full.flush()?;
    let more = memory_kib()?.saturating_sub(between);
    let bitmaps_more = (u64::try_from(bitmap_bytes())? / KIB).saturating_sub(bitmaps);
    Ok(json!({
        "disks": disks, "fresh_kib": fresh, "used_kib": used, "used_bitmaps_kib": bitmaps,
        "full_kib": more, "full_bitmaps_kib": bitmaps_more,
    }))
}

fn memories(options: &Options, folder: &Path) -> Result<Vec<Value>> {
    println!(
        "\nKiB of memory for each open disk of 256 GiB, bitmaps apart{:>18}{:>12}{:>20}",
        "", "bitmaps", "with something in"
    );
    println!("{:<32}{:>14}{:>30}{:>12}{:>20}", "", "fresh", format!("{PLACES} places written"), "of all", "each block");
    let mut results = Vec::new();
    for (n, (_, name)) in FORMATS.iter().enumerate() {
        let folder = tempfile::tempdir_in(folder)?;
        let mut child = Command::new(std::env::current_exe()?);
        child.arg("--memory").arg(n.to_string()).arg("--fast").arg(folder.path());
        if options.quick {
            child.arg("--quick");
        }
        let output = child.output()?;
        if !output.status.success() {
            bail!("{}", String::from_utf8_lossy(&output.stderr));
        }
        let mut figures: Value = serde_json::from_slice(&output.stdout)?;
        let number = |key: &str| figures[key].as_u64().context("a number of the other process");
        let (disks, bitmaps) = (number("disks")?, number("used_bitmaps_kib")?);
        println!(
            "{name:<32}{:>14.0}{:>30.0}{bitmaps:>12}{:>20}    aim 2048, bitmaps 65536",
            float(number("fresh_kib")?) / float(disks),
            float(number("used_kib")?.saturating_sub(bitmaps)) / float(disks),
            number("full_kib")?.saturating_sub(number("full_bitmaps_kib")?),
        );
        figures["case"] = json!("memory");
        figures["format"] = json!(name);
        results.push(figures);
    }
    Ok(results)
}

/// The kind of file system that a folder lies on.
fn file_system(folder: &Path) -> Result<String> {
    let folder = folder.canonicalize()?;
    let mounts = fs::read_to_string("/proc/self/mounts")?;
    let fields = mounts.lines().map(|line| line.split(' ').collect::<Vec<_>>());
    let of = fields.filter(|fields| fields.len() > 2 && folder.starts_with(fields[1]));
    // Of two on the same place the later one counts.
    Ok(of.max_by_key(|fields| fields[1].len()).map_or("?", |fields| fields[2]).to_owned())
}

/// Whether reads of files there can wait for a device.
fn residency(folder: &Path) -> Result<String> {
    let kind = file_system(folder)?;
    ensure!(kind == "tmpfs", "{} is {kind}, not tmpfs: name another folder with --fast", folder.display());
    let memory = fs::read_to_string("/proc/meminfo")?;
    let of = |key: &str| {
        let line = memory.lines().find_map(|line| line.strip_prefix(key));
        line.and_then(|line| line.trim().trim_end_matches(" kB").parse::<u64>().ok()).unwrap_or(0)
    };
    let swapped = of("SwapTotal:") - of("SwapFree:");
    Ok(if swapped == 0 {
        "tmpfs, all pages resident".into()
    } else {
        format!("tmpfs, {swapped} KiB of this host swapped")
    })
}

fn main() -> Result<()> {
    let options = Options::parse();
    if let Some(format) = options.memory {
        let (format, _) = FORMATS.get(format).context("a format")?;
        println!("{}", memory(&options, *format, &options.fast)?);
        return Ok(());
    }
    let began = Instant::now();
    let fast = tempfile::tempdir_in(&options.fast).context("a folder in memory is needed")?;
    let mut results = speeds(&options, fast.path())?;
    drop(fast);
    fs::create_dir_all(&options.disk)?;
    let disk = tempfile::tempdir_in(&options.disk)?;
    results.extend(first_writes(&options, disk.path())?);
    drop(disk);
    results.extend(memories(&options, &options.fast)?);
    if let Some(path) = &options.json {
        fs::write(path, format!("{:#}\n", Value::Array(results)))?;
    }
    let load = fs::read_to_string("/proc/loadavg")?;
    let load = load.split(' ').next().unwrap_or_default();
    println!("{} rounds, {} s; load of this machine: {load}", options.rounds, began.elapsed().as_secs());
    Ok(())
}
