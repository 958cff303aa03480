//! Is a disk file sound, with everything that it stands on? And what of it can be put right without a guess.
//!
//! Looked at are the structures of each file of the chain and their places, every sector bitmap, the parents' identities
//! and sizes, and the checksums of masters that have one ([`checksum`]). Data is read for checksums only.
//!
//! A repair is made where the file holds the right bytes twice and only one copy is damaged: a VHD's footer. Everything else
//! that is wrong is told with its place and left alone: a header's checksum does not say which of its bytes is wrong.

use std::collections::HashMap;
use std::fs;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use super::chain::{Chain, MAX_DEPTH, parent_candidates, vhdx_parent_candidates};
use super::checksum::{Checksum, Compared, Fitness, fitness, record_path};
use super::copy::CHUNK;
use super::error::{DiskError, ErrorKind};
use super::file::{Access, File, Media, read_vec, write_all};
use super::inspect::{DiskFormat, identify};
use super::vhd::sparse::Sparse;
use super::vhd::wire::{ABSENT, FOOTER, Footer, Header, Kind};
use super::vhdx::Vhdx;
use super::{Disk, SECTOR};

/// Bytes of the disk whose bitmaps are looked through between two words of progress.
const STEP: u64 = 512 * CHUNK;

/// What was found, one thing after the other.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Checked {
    /// The files that were looked at, the one that was named first.
    pub files: Vec<PathBuf>,
    /// What is wrong, and what is odd.
    pub findings: Vec<Finding>,
    /// What was put right, in sentences that begin with the file.
    pub repaired: Vec<String>,
}

/// One thing that was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// How bad it is.
    pub severity: Severity,
    /// The file.
    pub path: PathBuf,
    /// Where in the file, if it is in one place.
    pub offset: Option<u64>,
    /// What is there.
    pub what: String,
    /// Whether a repair would put it right.
    pub repairable: bool,
}

/// How bad a finding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Severity {
    /// The disk cannot be read as it was written, or not by every program.
    Damage,
    /// The disk can be read, and somebody should know.
    Notice,
}

impl Checked {
    /// Whether nothing is damaged.
    #[must_use]
    pub fn is_sound(&self) -> bool {
        self.findings.iter().all(|finding| finding.severity != Severity::Damage)
    }

    fn add(&mut self, severity: Severity, path: &Path, offset: Option<u64>, what: impl Into<String>) {
        let (path, what) = (path.into(), what.into());
        self.findings.push(Finding { severity, path, offset, what, repairable: false });
    }

    fn damage(&mut self, path: &Path, offset: u64, what: impl Into<String>) {
        self.add(Severity::Damage, path, Some(offset), what);
    }

    fn notice(&mut self, path: &Path, what: impl Into<String>) {
        self.add(Severity::Notice, path, None, what);
    }

    fn repairable(&mut self, path: &Path, offset: u64, what: impl Into<String>) {
        self.damage(path, offset, what);
        self.findings.last_mut().expect("just added").repairable = true;
    }

    /// Takes note of an error that says what is wrong with a file.
    fn error(&mut self, error: DiskError) {
        match error {
            DiskError::Corrupt { path, offset, what } => self.damage(&path, offset, what),
            DiskError::ParentMismatch { child, parent, wanted, found } => {
                let what = format!("wants the parent with id {wanted}, but {} has id {found}", parent.display());
                self.add(Severity::Damage, &child, None, what);
            }
            DiskError::ParentMissing { child, id, tried } => {
                let tried: Vec<_> = tried.iter().map(|path| path.display().to_string()).collect();
                let what = format!("its parent (id {id}) is missing; looked for {}", tried.join(", "));
                self.add(Severity::Damage, &child, None, what);
            }
            DiskError::Chain { path, what } | DiskError::Unsupported { path, what } => {
                self.add(Severity::Damage, &path, None, what);
            }
            other => {
                let path = self.files.last().cloned().unwrap_or_default();
                self.add(Severity::Damage, &path, None, other.to_string());
            }
        }
    }
}

/// Checks disk files one after the other. A master that many of them stand on is hashed once.
#[derive(Debug, Default)]
pub struct Checker {
    repair: bool,
    /// What the checksums said, by the files' canonical paths.
    compared: HashMap<PathBuf, Vec<Finding>>,
}

impl Checker {
    /// One that puts right what can be put right safely, where `repair` says so.
    #[must_use]
    pub fn new(repair: bool) -> Self {
        Self { repair, compared: HashMap::new() }
    }

    /// Checks a disk file and all that it stands on. `step` is told what is done and what there is in all, for each part of
    /// the work anew, and says whether to go on.
    ///
    /// # Errors
    /// The file cannot be looked at, is no disk or of a format that is not read; a repair cannot be written, or the file is
    /// in use.
    pub fn check(
        &mut self,
        path: &Path,
        step: &mut dyn FnMut(u64, u64) -> ControlFlow<()>,
    ) -> Result<Checked, DiskError> {
        let mut checked = Checked { files: Vec::new(), findings: Vec::new(), repaired: Vec::new() };
        let mut next = Some(path.to_path_buf());
        while let Some(path) = next.take() {
            if checked.files.contains(&path) || checked.files.len() > MAX_DEPTH {
                // The chain's own check says so.
                break;
            }
            checked.files.push(path.clone());
            match layer(&path, self.repair, &mut checked) {
                Ok(parent) => next = parent,
                Err(error) if checked.files.len() == 1 && error.kind() != ErrorKind::Corrupt => return Err(error),
                Err(error) => {
                    checked.error(error);
                    break;
                }
            }
            let canonical = fs::canonicalize(&path).unwrap_or_else(|_| path.clone());
            match self.compared.get(&canonical) {
                Some(known) => checked.findings.extend(known.iter().cloned()),
                None => {
                    let before = checked.findings.len();
                    against_record(&path, &mut checked, step);
                    self.compared.insert(canonical, checked.findings[before..].to_vec());
                }
            }
        }
        // What no single file can tell: identities, sizes, loops; and every bitmap.
        if checked.is_sound()
            && let Err(error) = whole_chain(path, step)
        {
            checked.error(error);
        }
        Ok(checked)
    }
}

/// Checks one file by itself; where its parent is.
fn layer(path: &Path, repair: bool, checked: &mut Checked) -> Result<Option<PathBuf>, DiskError> {
    match identify(path)? {
        Ok(DiskFormat::VhdFixed | DiskFormat::VhdDynamic | DiskFormat::VhdDifferencing) => vhd(path, repair, checked),
        Ok(DiskFormat::VhdxFixed | DiskFormat::VhdxDynamic | DiskFormat::VhdxDifferencing) => vhdx(path, checked),
        // Every byte is as good as any other.
        Ok(DiskFormat::Raw) => Ok(None),
        Err(Some(foreign)) => {
            let what = format!("is {}, which is not read here: {}", foreign.name, foreign.advice(path));
            Err(DiskError::Unsupported { path: path.into(), what })
        }
        Err(None) => {
            let what = "is no disk: neither of a known format nor whole sectors of 512 bytes".to_owned();
            Err(DiskError::Unsupported { path: path.into(), what })
        }
    }
}

/// Opens a file to look at it, also while somebody has it open for writing.
fn look_at(path: &Path, checked: &mut Checked) -> Result<File, DiskError> {
    match File::open(path, Access::Read) {
        Err(DiskError::Locked { .. }) => {
            checked.notice(path, "is in use: it is looked at while it may be written");
            File::open(path, Access::Peek)
        }
        file => file,
    }
}

/// The structures of a VHDX are checked by opening it; a log that was not replayed is replayed in memory.
fn vhdx(path: &Path, checked: &mut Checked) -> Result<Option<PathBuf>, DiskError> {
    let disk = Vhdx::open(Box::new(look_at(path, checked)?), true)?;
    for warning in disk.warnings() {
        checked.notice(path, warning.clone());
    }
    let tried = disk.metadata().parent.as_ref().map(|parent| vhdx_parent_candidates(path, parent));
    // A missing one is the chain's to tell.
    Ok(tried.and_then(|tried| tried.into_iter().find(|path| path.exists())))
}

fn vhd(path: &Path, repair: bool, checked: &mut Checked) -> Result<Option<PathBuf>, DiskError> {
    let file = look_at(path, checked)?;
    let found = vhd_footers(&file, checked)?;
    drop(file);
    if repair && !found.is_empty() {
        mend(path, &found, checked)?;
    }
    let file = File::open(path, Access::Peek)?;
    let (footer, _) = Footer::read(&file)?;
    if footer.kind() == Kind::Fixed {
        return Ok(None);
    }
    let sparse = Sparse::open(Box::new(file), footer, true)?;
    if sparse.footer().kind() != Kind::Differencing {
        return Ok(None);
    }
    let tried = parent_candidates(sparse.media(), sparse.header())?;
    // A missing one is the chain's to tell.
    Ok(tried.into_iter().find(|path| path.exists()))
}

/// A footer that is to be written over a damaged copy of itself.
#[derive(Debug)]
struct Mend {
    offset: u64,
    footer: Footer,
    what: &'static str,
}

/// Compares a VHD's two footers. What can be put right is noted as repairable and returned.
fn vhd_footers(file: &File, checked: &mut Checked) -> Result<Vec<Mend>, DiskError> {
    let path = file.path();
    let (footer, passed_over) = Footer::read(file)?;
    if footer.kind() == Kind::Fixed {
        return Ok(Vec::new());
    }
    let len = file.len()?;
    if let Some(why) = passed_over {
        // The structures must be sound by the copy's word, and say where they end.
        let end = structures_end(file, &footer)?;
        let offset = if end + FOOTER <= len { len - FOOTER } else { end.next_multiple_of(SECTOR) };
        let what = "the footer at the end, from its copy at the beginning";
        checked.repairable(
            path,
            offset,
            format!("the footer at the end is lost ({why}); its copy at the beginning is sound"),
        );
        return Ok(vec![Mend { offset, footer, what }]);
    }
    let front = read_vec(file, 0, 512)?;
    if front == footer.as_bytes() {
        return Ok(Vec::new());
    }
    match Footer::parse(&front) {
        Ok(copy) if (copy.id(), copy.kind(), copy.size()) != (footer.id(), footer.kind(), footer.size()) => {
            let what = "the footer's copy is sound, and tells of another disk than the footer at the end; which is right is \
                        not to be seen from here";
            checked.damage(path, 0, what);
            Ok(Vec::new())
        }
        copy => {
            let why = copy.map_or_else(|why| why, |_| "it differs from the footer at the end".to_owned());
            structures_end(file, &footer)?;
            checked.repairable(
                path,
                0,
                format!("the footer's copy at the beginning is lost ({why}); the one at the end is sound"),
            );
            Ok(vec![Mend { offset: 0, footer, what: "the footer's copy at the beginning, from the footer at the end" }])
        }
    }
}

/// Where the last structure of a dynamic or differencing VHD ends. By then each is known to have a place of its own.
fn structures_end(file: &File, footer: &Footer) -> Result<u64, DiskError> {
    let sparse = Sparse::open(Box::new(File::open(file.path(), Access::Peek)?), footer.clone(), true)?;
    let header: &Header = sparse.header();
    let table = read_vec(file, header.table_offset(), usize::try_from(header.table_size()).expect("at most 16 MiB"))?;
    let mut end = (footer.header_offset() + 1024).max(header.table_offset() + header.table_size());
    for entry in table.chunks_exact(4) {
        let entry = u32::from_be_bytes([entry[0], entry[1], entry[2], entry[3]]);
        if entry != ABSENT {
            // All of the last block, too, although its tail may lie beyond the disk, and be missing.
            end = end.max(u64::from(entry) * SECTOR + header.bitmap_size() + header.block_size());
        }
    }
    for locator in header.locators() {
        end = end.max(locator.offset.saturating_add(locator.len.into()).min(file.len()?));
    }
    Ok(end)
}

/// Writes sound footers over their damaged copies.
fn mend(path: &Path, mends: &[Mend], checked: &mut Checked) -> Result<(), DiskError> {
    let file = File::open(path, Access::Write)?;
    for Mend { offset, footer, what } in mends {
        let len = file.len()?;
        if *offset > 0 && offset + FOOTER > len {
            file.set_len(offset + FOOTER)?;
        }
        write_all(&file, *offset, footer.as_bytes())?;
        file.sync()?;
        checked
            .findings
            .retain(|finding| !(finding.repairable && finding.path == path && finding.offset == Some(*offset)));
        checked.repaired.push(format!("{}: wrote {what}, at byte {offset}", path.display()));
    }
    Ok(())
}

/// Hashes a file that has a record of its checksum.
fn against_record(path: &Path, checked: &mut Checked, step: &mut dyn FnMut(u64, u64) -> ControlFlow<()>) {
    let record = match Checksum::load(path) {
        Ok(None) => return,
        Ok(Some(record)) => record,
        Err(error) => return checked.error(error),
    };
    let wanted = record.blake3.clone();
    match record.compare(path, step) {
        Ok(Compared::Differs(found)) => {
            let record = record_path(path);
            let what = format!(
                "its BLAKE3 is {found}, but {} says {wanted}: it was changed; put back the file that was imported",
                record.display()
            );
            checked.add(Severity::Damage, path, None, what);
        }
        Ok(Compared::Same) => {
            if let Ok(Fitness::Touched) = fitness(path) {
                checked.notice(path, "is being touched while it is checked");
            }
        }
        Ok(Compared::Stopped) => checked.notice(path, "its checksum was not compared to the end"),
        Err(error) => checked.error(error),
    }
}

/// Opens the chain as a reader does, and looks at every bitmap.
fn whole_chain(path: &Path, step: &mut dyn FnMut(u64, u64) -> ControlFlow<()>) -> Result<(), DiskError> {
    let disk = Chain::open(path, Access::Peek)?;
    let mut at = 0;
    while at < disk.size() && step(at, disk.size()).is_continue() {
        let len = STEP.min(disk.size() - at);
        disk.resolve(at, len)?;
        at += len;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::model;
    use super::*;

    type Change<'a> = &'a dyn Fn(&mut Vec<u8>);

    fn on(_: u64, _: u64) -> ControlFlow<()> {
        ControlFlow::Continue(())
    }

    fn look(path: &Path) -> Checked {
        Checker::default().check(path, &mut on).unwrap()
    }

    fn chain() -> (tempfile::TempDir, PathBuf) {
        let dir = model::scratch();
        let mut bytes = model::master(&dir.path().join("master.vhd"));
        let top = model::children(dir.path(), 2, &mut bytes);
        (dir, top)
    }

    #[test]
    fn a_sound_chain_is_sound_and_named_file_by_file() {
        let (dir, top) = chain();
        let checked = look(&top);
        assert!(checked.is_sound() && checked.findings.is_empty(), "{checked:?}");
        assert_eq!((checked.files.len(), &checked.files[2]), (3, &dir.path().join("master.vhd")));
    }

    #[test]
    fn a_lost_footer_is_put_back_from_the_other_one_and_nothing_else_is_touched() {
        for kind in ["dynamic", "child"] {
            let (dir, top) = chain();
            let path = if kind == "dynamic" { dir.path().join("master.vhd") } else { top.clone() };
            let good = fs::read(&path).unwrap();
            let end = good.len();
            let damage = |change: &dyn Fn(&mut Vec<u8>)| {
                let mut bytes = good.clone();
                change(&mut bytes);
                fs::write(&path, bytes).unwrap();
            };
            let damages: [(&str, Change<'_>); 5] = [
                ("cut off", &|bytes| bytes.truncate(end - 512)),
                ("half cut off", &|bytes| bytes.truncate(end - 200)),
                ("zeros", &|bytes| bytes[end - 512..].fill(0)),
                ("a bit", &|bytes| bytes[end - 100] ^= 4),
                ("the copy", &|bytes| bytes[..512].fill(0xee)),
            ];
            for (name, change) in damages {
                damage(change);
                let checked = look(&top);
                assert!(!checked.is_sound() && checked.findings[0].repairable, "{kind}, {name}: {checked:?}");
                let checked = Checker::new(true).check(&top, &mut on).unwrap();
                assert!(checked.is_sound() && checked.repaired.len() == 1, "{kind}, {name}: {checked:?}");
                assert!(fs::read(&path).unwrap() == good, "{kind}, {name}");
                assert!(Checker::new(true).check(&top, &mut on).unwrap().repaired.is_empty());
            }
        }
    }

    #[test]
    fn what_cannot_be_known_is_told_and_left_alone() {
        let (dir, top) = chain();
        let path = dir.path().join("master.vhd");
        let good = fs::read(&path).unwrap();
        let end = good.len();
        let other = Footer::new(Kind::Dynamic, 5 << 20, uuid::Uuid::from_u128(9));
        let damages: [(&str, u64, Change<'_>); 4] = [
            ("dynamic header's checksum", 512, &|bytes| bytes[512 + 60] ^= 1),
            ("beyond the end", 1536, &|bytes| bytes[1536..1540].copy_from_slice(&[0x7f, 0, 0, 0])),
            ("tells of another disk", 0, &|bytes| bytes[..512].copy_from_slice(other.as_bytes())),
            ("checksum", end as u64 - 512, &|bytes| {
                bytes[20] ^= 1;
                bytes[end - 512 + 20] ^= 1;
            }),
        ];
        for (word, offset, change) in damages {
            let mut bytes = good.clone();
            change(&mut bytes);
            fs::write(&path, &bytes).unwrap();
            for repair in [false, true] {
                let checked = Checker::new(repair).check(&top, &mut on).unwrap();
                let damage = checked.findings.iter().find(|finding| finding.severity == Severity::Damage).unwrap();
                assert!(damage.what.contains(word) && !damage.repairable, "{damage:?}");
                assert_eq!((damage.offset, &damage.path), (Some(offset), &path), "{word}");
                assert!(fs::read(&path).unwrap() == bytes, "{word}: left alone");
            }
        }
        fs::remove_file(&path).unwrap();
        assert!(look(&top).findings[0].what.contains("is missing"));
        assert!(Checker::new(false).check(&dir.path().join("nowhere"), &mut on).is_err());
        fs::write(&path, b"QFI\xfb").unwrap();
        assert!(Checker::new(false).check(&path, &mut on).unwrap_err().to_string().contains("qcow2"));
    }

    #[test]
    fn a_changed_master_is_damage_to_its_children_and_a_file_in_use_is_not_repaired() {
        use std::os::unix::fs::FileExt;
        let (dir, top) = chain();
        let path = dir.path().join("master.vhd");
        Checksum::record(&path, &mut on).unwrap();
        assert!(look(&top).is_sound());
        let file = fs::File::options().write(true).open(&path).unwrap();
        file.write_all_at(b"X", 8192).unwrap();
        let checked = look(&top);
        assert!(!checked.is_sound() && checked.findings[0].what.contains("it was changed"), "{checked:?}");

        let len = file.metadata().unwrap().len();
        file.set_len(len - 512).unwrap();
        let _reader = Chain::open(&path, Access::Read).unwrap();
        assert!(matches!(Checker::new(true).check(&path, &mut on), Err(DiskError::Locked { .. })));
    }
}
