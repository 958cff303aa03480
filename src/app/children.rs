//! The files of one client's disk: how it is made, made anew and opened.
//!
//! ```text
//! disks/NAME.vhd                    the disk
//! disks/NAME.checkpoint-3.vhd       a frozen layer below it, see `disk::overlay`
//! disks/NAME.vhd.next               its successor, while that is being made
//! disks/NAME.vhd.previous           its predecessor, until the first login on the disk
//! disks/NAME.volatile               which disks of this name are volatile, and since which boot of the host
//! pending/NAME                      the pending map of a durable disk
//! ```
//!
//! A disk has the format of its master: over a VHDX all of these end in `vhdx`. Where a client's image has another format
//! than the one before it, its disk is replaced by one of that format at the next making; until then it is what it was.
//!
//! A disk is *volatile* (it need not outlive the host's power) if the record names it: a line is the disk's unique id and
//! the boot id of the host (`random(4)`) under which it was made. The record is durable before such a disk is
//! in its place, and while a disk is being replaced it names both. So whatever moment ends the process or the power, the
//! disk that is in its place is known for what it is. A line that names another disk says nothing.
//!
//! Synchronous: callers run this on threads that may block, and see to it that no session uses the disk.

use std::fs;
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, RwLock, Weak};

use uuid::Uuid;

use super::disks::ServeError;
use super::places::{disk_path, master_path};
use crate::disk::file::{Access, remove};
use crate::disk::overlay::merge::{self, Progress};
use crate::disk::overlay::{self, Layer, Overlay, Place, Tree};
use crate::disk::{Chain, DiskError, PendingPath};
use crate::fleet::policy::DiskFound;
use crate::fleet::{Client, DiskPolicy, ImageName};

/// The masters that are open, each shared by all of its children.
pub(super) type Masters = Arc<Mutex<std::collections::HashMap<PathBuf, Weak<Chain>>>>;

/// Held while layers of any disk change places, for a moment.
pub(super) type Gate = Arc<RwLock<()>>;

/// The files of one client's disk.
#[derive(Debug, Clone)]
pub(super) struct ChildFiles {
    master: PathBuf,
    image: ImageName,
    policy: DiskPolicy,
    place: Place,
    record: PathBuf,
    pending: PendingPath,
    masters: Masters,
}

/// A moment in the making of a new disk, after which the process may die.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    /// The new file is complete, beside the old one.
    Made,
    /// The record names the new one, too.
    Recorded,
    /// The old one has its second name.
    Linked,
    /// The new one is in its place.
    Swapped,
}

impl ChildFiles {
    pub(super) fn new(state: &Path, client: &Client, boot_id: &str, masters: &Masters, gate: &Gate) -> Self {
        let disk = disk_path(state, client);
        Self {
            master: master_path(state, &client.image),
            image: client.image.clone(),
            policy: client.disk,
            record: disk.with_extension("volatile"),
            pending: PendingPath {
                path: state.join("pending").join(client.name.as_str()),
                boot_id: boot_id.to_owned(),
            },
            place: Place::new(disk).behind(Arc::clone(gate)),
            masters: Arc::clone(masters),
        }
    }

    /// Where the disk's files are.
    pub(super) fn place(&self) -> &Place {
        &self.place
    }

    /// Where the disk is.
    pub(super) fn disk(&self) -> &Path {
        self.place.top()
    }

    /// Opens the disk for a login, and makes it if it is missing. What was before it is removed.
    ///
    /// # Errors
    /// It cannot be made or opened, or what it held was lost with the host's power.
    pub(super) fn open(&self) -> Result<Overlay, ServeError> {
        let master = self.master()?;
        if !self.disk().exists() {
            let place = self.make(&master, &mut |_| ())?;
            return Self { place, ..self.clone() }.open();
        }
        let pending = match self.volatile_since()? {
            None => Some(&self.pending),
            Some(boot) if boot == self.pending.boot_id => None,
            Some(_) => return Err(ServeError::Lost { disk: self.disk().to_owned() }),
        };
        let disk = Overlay::open(self.place.clone(), master, pending)?;
        remove(&self.place.previous())?;
        for left in self.place.remove_others()? {
            tracing::info!("{}: is removed, for the disk is {}", left.display(), self.disk().display());
        }
        Ok(disk)
    }

    /// Puts what a process that died left in memory of the disk's bits into the file; `false` where there is no disk. Nobody
    /// has it open.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub(super) fn settle(&self) -> Result<bool, ServeError> {
        match self.found()? {
            DiskFound::Missing => Ok(false),
            DiskFound::Lost => Err(ServeError::Lost { disk: self.disk().to_owned() }),
            DiskFound::Sound => {
                if self.pending.path.exists() && self.volatile_since()?.is_none() {
                    Overlay::open(self.place.clone(), self.master()?, Some(&self.pending))?;
                }
                Ok(true)
            }
        }
    }

    /// Makes an open volatile disk durable, because its client's policy is to keep it now.
    ///
    /// # Errors
    /// The disk's; it is volatile then.
    pub(super) fn keep(&self, disk: &Overlay) -> Result<(), ServeError> {
        disk.keep(&self.pending)?;
        // Only now: without the record the disk must be what it says.
        remove(&self.record)?;
        Ok(self.sync_folder()?)
    }

    /// Replaces the disk by a new one. True if the old one is still there, under its second name. Its checkpoints stay.
    ///
    /// # Errors
    /// It cannot be made; the old disk is as it was.
    pub(super) fn make_anew(&self, at: &mut dyn FnMut(Step)) -> Result<bool, ServeError> {
        let master = self.master()?;
        self.settle_old(&master)?;
        self.make(&master, at)?;
        Ok(self.place.previous().exists())
    }

    /// Replaces the disk by a new child of a checkpoint. True if the old one is still there, under its second name.
    ///
    /// # Errors
    /// The checkpoint cannot be opened, or the child not be made; the old disk is as it was.
    pub(super) fn roll_back(&self, to: &Layer, at: &mut dyn FnMut(Step)) -> Result<bool, ServeError> {
        let master = self.master()?;
        self.settle_old(&master)?;
        self.place.roll_back(to, &master, &mut |step| self.follow(step, at))?;
        Ok(self.place.previous().exists())
    }

    /// What a dead process left in the map belongs to the old disk, which somebody may want to look at.
    fn settle_old(&self, master: &Arc<Chain>) -> Result<(), DiskError> {
        if self.pending.path.exists() && self.volatile_since()?.is_none() {
            match Overlay::open(self.place.clone(), Arc::clone(master), Some(&self.pending)) {
                Ok(settled) => drop(settled),
                Err(error) => tracing::debug!("the old disk is not settled: {error}"),
            }
        }
        Ok(())
    }

    /// Its checkpoints and other layers.
    ///
    /// # Errors
    /// The folder cannot be read.
    pub(super) fn tree(&self) -> Result<Tree, DiskError> {
        Tree::read(&self.place)
    }

    /// Says that a layer is no checkpoint any more.
    ///
    /// # Errors
    /// The system's.
    pub(super) fn disown(&self, layer: &Layer) -> Result<(), DiskError> {
        self.place.disown(layer)
    }

    /// Whether layers wait to be merged or removed.
    ///
    /// # Errors
    /// The folder cannot be read.
    pub(super) fn is_untidy(&self) -> Result<bool, DiskError> {
        merge::is_untidy(&self.place)
    }

    /// Merges and removes layers that are no checkpoints.
    ///
    /// # Errors
    /// The disk's.
    pub(super) fn tidy(&self, progress: Progress<'_>) -> Result<usize, ServeError> {
        let master = self.master()?;
        Ok(merge::tidy(&self.place, &master, progress)?)
    }

    /// What lies there.
    ///
    /// # Errors
    /// It cannot be read.
    pub(super) fn found(&self) -> Result<DiskFound, DiskError> {
        if !self.disk().exists() {
            return Ok(DiskFound::Missing);
        }
        let lost = self.volatile_since()?.is_some_and(|boot| boot != self.pending.boot_id);
        Ok(if lost { DiskFound::Lost } else { DiskFound::Sound })
    }

    /// Makes a disk beside the one that is there, if any, and puts it in its place.
    fn make(&self, master: &Chain, at: &mut dyn FnMut(Step)) -> Result<Place, DiskError> {
        let file = self.master.file_name().unwrap_or_default().display();
        let relative = format!(r"..\images\{}\{file}", self.image);
        let place = self.place.replace(master, &relative, &mut |step| self.follow(step, at))?;
        self.link_parent(&relative);
        Ok(place)
    }

    /// What belongs to each step of the making of a disk.
    fn follow(&self, step: overlay::Step, at: &mut dyn FnMut(Step)) -> Result<(), DiskError> {
        match step {
            overlay::Step::Made(id) => {
                at(Step::Made);
                self.record(id)?;
                at(Step::Recorded);
            }
            overlay::Step::Linked => at(Step::Linked),
            overlay::Step::Swapped => {
                at(Step::Swapped);
                // The map of the old disk says nothing about the new one. Until now it did say something; and whoever
                // still has it open has it to himself.
                remove(&self.pending.path)?;
            }
        }
        Ok(())
    }

    /// Writes down what the new disk is. A record of the one that is still in its place stays.
    fn record(&self, new: Uuid) -> Result<(), DiskError> {
        let mut lines = Vec::new();
        if self.disk().exists()
            && let Some(boot) = self.volatile_since()?
        {
            lines.push(format!("{} {boot}\n", overlay::identity(self.disk())?));
        }
        if self.policy == DiskPolicy::Reset {
            lines.push(format!("{new} {}\n", self.pending.boot_id));
        }
        if lines.is_empty() {
            return remove(&self.record);
        }
        let temp = self.record.with_extension("volatile.new");
        let written = fs::File::create(&temp).and_then(|mut file| {
            file.write_all(lines.concat().as_bytes())?;
            file.sync_all()?;
            fs::rename(&temp, &self.record)
        });
        written.map_err(|source| DiskError::io(&self.record, "write", source))?;
        self.sync_folder()
    }

    /// The boot of the host under which the disk was made, if it is volatile.
    fn volatile_since(&self) -> Result<Option<String>, DiskError> {
        let text = match fs::read_to_string(&self.record) {
            Ok(text) => text,
            Err(missing) if missing.kind() == ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(DiskError::io(&self.record, "read", source)),
        };
        // A disk that cannot be read will say so when it is opened, and may be replaced.
        let Ok(id) = overlay::identity(self.disk()).map(|id| id.to_string()) else { return Ok(None) };
        let line = text.lines().filter_map(|line| line.split_once(' ')).find(|(disk, _)| *disk == id);
        Ok(line.map(|(_, boot)| boot.to_owned()))
    }

    fn sync_folder(&self) -> Result<(), DiskError> {
        let folder = self.disk().parent().unwrap_or(Path::new("."));
        let synced = fs::File::open(folder).and_then(|folder| folder.sync_all());
        synced.map_err(|source| DiskError::io(folder, "sync", source))
    }

    /// Leaves a link beside the children whose name is the parent's path as children spell it. Windows follows the spelling;
    /// 7-Zip on Linux takes the backslashes for letters of a file name, and finds the link.
    fn link_parent(&self, spelled: &str) {
        let (Some(folder), Some(file)) = (self.disk().parent(), self.master.file_name()) else { return };
        let target = Path::new("../images").join(self.image.as_str()).join(file);
        match std::os::unix::fs::symlink(target, folder.join(spelled)) {
            Err(error) if error.kind() != ErrorKind::AlreadyExists => {
                tracing::debug!("{}: no link to the parent for 7-Zip: {error}", self.disk().display());
            }
            _ => {}
        }
    }

    /// The image's master, opened once for all of its children.
    fn master(&self) -> Result<Arc<Chain>, ServeError> {
        let mut masters = self.masters.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(master) = masters.get(&self.master).and_then(Weak::upgrade) {
            return Ok(master);
        }
        if !self.master.exists() {
            return Err(ServeError::NoImage { image: self.image.clone() });
        }
        let master = Arc::new(Chain::open(&self.master, Access::Read)?);
        masters.insert(self.master.clone(), Arc::downgrade(&master));
        Ok(master)
    }
}

#[cfg(test)]
mod tests {
    use std::io::{IoSlice, IoSliceMut};
    use std::process::{Command, Stdio};

    use super::*;
    use crate::disk::Disk;
    use crate::disk::vhd::create_dynamic;
    use crate::disk::{Format, names, vhdx};

    /// The state folder and the moment at which this process is to die: how the crash test makes its victims out of this
    /// test binary.
    const VICTIM: &str = "ROOST_TEST_DIES_MAKING_A_DISK";
    const STEPS: [Step; 4] = [Step::Made, Step::Recorded, Step::Linked, Step::Swapped];
    const BOOT: &str = "0f3c1e62-9a34-4d2b-8a55-5d1f6f0f8f10";
    const LATER: &str = "1f3c1e62-9a34-4d2b-8a55-5d1f6f0f8f10";

    fn files(state: &Path, policy: DiskPolicy, boot_id: &str) -> ChildFiles {
        let client = Client {
            macs: vec!["52:54:00:aa:00:01".parse().unwrap()],
            disk: policy,
            ..Client::new("pc-01".parse().unwrap(), "linux".parse().unwrap())
        };
        ChildFiles::new(state, &client, boot_id, &Masters::default(), &Gate::default())
    }

    fn state() -> tempfile::TempDir {
        state_in(Format::Vhd)
    }

    fn state_in(format: Format) -> tempfile::TempDir {
        let state = tempfile::tempdir().unwrap();
        for folder in ["images/linux", "disks", "pending"] {
            fs::create_dir_all(state.path().join(folder)).unwrap();
        }
        make_image(state.path(), format);
        state
    }

    /// From now on the image is this.
    fn make_image(state: &Path, format: Format) {
        let stem = state.join("images/linux/1");
        Format::ALL.iter().for_each(|format| remove(&names::path(&stem, *format)).unwrap());
        let path = names::path(&stem, format);
        match format {
            Format::Vhd => create_dynamic(&path, 4 << 20).unwrap(),
            Format::Vhdx => {
                vhdx::create(&path, &vhdx::Spec { block_size: 1 << 20, ..vhdx::Spec::dynamic(4 << 20) }).unwrap()
            }
        };
    }

    /// The disks of the client that lie there, whatever they are.
    fn disks(state: &Path) -> Vec<Format> {
        let stem = state.join("disks/pc-01");
        Format::ALL.into_iter().filter(|format| names::path(&stem, *format).exists()).collect()
    }

    fn mark(chain: &Overlay, mark: u8) {
        chain.write(4096, &[IoSlice::new(&[mark; 512])]).unwrap();
    }

    fn marked(chain: &dyn Disk) -> u8 {
        let mut sector = [0; 512];
        chain.read(4096, &mut [IoSliceMut::new(&mut sector)]).unwrap();
        assert_eq!(sector, [sector[0]; 512]);
        sector[0]
    }

    #[test]
    fn victim() {
        let Ok(text) = std::env::var(VICTIM) else { return };
        let [state, policy, step] = text.split('|').collect::<Vec<_>>().try_into().unwrap();
        let policy = if policy == "reset" { DiskPolicy::Reset } else { DiskPolicy::Keep };
        let files = files(Path::new(state), policy, BOOT);
        files
            .make_anew(&mut |at| {
                if format!("{at:?}") == step {
                    std::process::abort()
                }
            })
            .unwrap();
    }

    #[test]
    fn whoever_dies_while_a_disk_is_made_anew_leaves_the_old_one_or_the_new_one() {
        use DiskPolicy::{Keep, Reset};
        use Format::{Vhd, Vhdx};
        for (policy, old_policy, old_format, format) in [
            (Reset, Reset, Vhd, Vhd),
            (Reset, Keep, Vhd, Vhd),
            (Keep, Keep, Vhd, Vhd),
            (Keep, Reset, Vhd, Vhd),
            (Reset, Reset, Vhdx, Vhdx),
            (Reset, Reset, Vhd, Vhdx),
            (Keep, Reset, Vhdx, Vhd),
        ] {
            for step in STEPS {
                let state = state_in(old_format);
                let old = files(state.path(), old_policy, BOOT).open().unwrap();
                mark(&old, 7);
                let was_volatile = old.is_volatile();
                drop(old);
                if format != old_format {
                    make_image(state.path(), format);
                }
                let died = Command::new(std::env::current_exe().unwrap())
                    .args(["--exact", "app::children::tests::victim", "--nocapture"])
                    .env(VICTIM, format!("{}|{}|{step:?}", state.path().display(), policy.word()))
                    .stdout(Stdio::null())
                    .stderr(Stdio::null())
                    .status()
                    .unwrap();
                assert!(!died.success(), "it died at {step:?}");

                // Of the same boot: the old disk as it was, or the new one, and each known for what it is.
                let new = step == Step::Swapped;
                let after = files(state.path(), policy, BOOT);
                assert_eq!(after.found().unwrap(), DiskFound::Sound);
                let expect_volatile = if new { policy == DiskPolicy::Reset } else { was_volatile };
                assert_eq!(
                    after.volatile_since().unwrap().is_some(),
                    expect_volatile,
                    "{policy:?} {old_policy:?} {step:?}"
                );
                // Of a later boot of the host: a volatile disk is not believed, a durable one is.
                let later = files(state.path(), policy, LATER);
                let lost = later.found().unwrap() == DiskFound::Lost;
                assert_eq!(lost, expect_volatile, "{policy:?} {old_policy:?} {step:?}");
                assert_eq!(disks(state.path()), [if new { format } else { old_format }], "{step:?}");
                if new || format == old_format {
                    let chain = after.open().unwrap();
                    assert_eq!(marked(&chain), if new { 0 } else { 7 }, "{policy:?} {old_policy:?} {step:?}");
                } else {
                    let error = after.open().unwrap_err();
                    assert!(error.to_string().ends_with("roost reset pc-01"), "as over any other image: {error}");
                }

                // The next boot goes through all the same.
                assert!(after.make_anew(&mut |_| ()).unwrap());
                let after = files(state.path(), policy, BOOT);
                let chain = after.open().unwrap();
                assert_eq!((marked(&chain), chain.is_volatile()), (0, policy == DiskPolicy::Reset));
                assert_eq!(disks(state.path()), [format]);
                let left: Vec<_> =
                    fs::read_dir(state.path().join("disks")).unwrap().map(|e| e.unwrap().file_name()).collect();
                let odd =
                    left.iter().find(|name| name.to_str().is_none_or(|n| n.contains("next") || n.contains("previous")));
                assert_eq!(odd, None, "nothing is left over");
            }
        }
    }

    #[test]
    fn the_old_disk_stays_until_the_first_login_on_the_new_one() {
        for format in Format::ALL {
            let state = state_in(format);
            let files = files(state.path(), DiskPolicy::Reset, BOOT);
            mark(&files.open().unwrap(), 7);
            assert!(files.make_anew(&mut |_| ()).unwrap());
            // A machine that is switched off before it logs in, and on again: what failed is still there to look at.
            assert!(files.make_anew(&mut |_| ()).unwrap());
            let previous = Chain::open(&files.place.previous(), Access::Read).unwrap();
            assert_eq!(marked(&previous), 7);
            drop(previous);
            assert_eq!(marked(&files.open().unwrap()), 0);
            assert!(!files.place.previous().exists());
        }
    }

    #[test]
    fn what_need_not_outlive_the_power_is_refused_after_it_until_it_is_made_anew() {
        for format in Format::ALL {
            let state = state_in(format);
            mark(&files(state.path(), DiskPolicy::Reset, BOOT).open().unwrap(), 7);
            assert_eq!(marked(&files(state.path(), DiskPolicy::Reset, BOOT).open().unwrap()), 7, "a new process");
            for policy in [DiskPolicy::Reset, DiskPolicy::Keep] {
                let error = files(state.path(), policy, LATER).open().unwrap_err();
                assert!(matches!(error, ServeError::Lost { .. }), "{error}");
                assert!(error.to_string().ends_with("switch it off and on"), "{error}");
            }
            let later = files(state.path(), DiskPolicy::Reset, LATER);
            later.make_anew(&mut |_| ()).unwrap();
            assert_eq!(marked(&later.open().unwrap()), 0);
        }
    }

    #[test]
    fn a_disk_that_is_kept_from_now_on_is_durable_first_and_one_that_is_reset_from_now_on_at_its_next_boot() {
        for format in Format::ALL {
            let state = state_in(format);
            let kept = files(state.path(), DiskPolicy::Keep, BOOT);
            let chain = files(state.path(), DiskPolicy::Reset, BOOT).open().unwrap();
            mark(&chain, 7);
            drop(chain);
            let chain = kept.open().unwrap();
            assert!(chain.is_volatile() && chain.dirty());
            kept.keep(&chain).unwrap();
            assert!(!chain.is_volatile() && !chain.dirty());
            mark(&chain, 8);
            drop(chain);
            // It is believed after a power loss (its last write came through, here), and its map is used.
            let later = files(state.path(), DiskPolicy::Keep, LATER);
            assert_eq!(later.found().unwrap(), DiskFound::Sound);
            assert!(state.path().join("pending/pc-01").exists());
            drop(later.open().unwrap());

            // Back again: a system that runs on it keeps it, durable, until a boot begins.
            let reset = files(state.path(), DiskPolicy::Reset, LATER);
            let chain = reset.open().unwrap();
            assert!(!chain.is_volatile());
            drop(chain);
            reset.make_anew(&mut |_| ()).unwrap();
            let chain = reset.open().unwrap();
            assert_eq!((marked(&chain), chain.is_volatile()), (0, true));
        }
    }

    #[test]
    fn a_disk_that_is_damaged_or_has_another_parent_is_replaced_all_the_same() {
        let state = state();
        let files = files(state.path(), DiskPolicy::Reset, BOOT);
        drop(files.open().unwrap());
        fs::write(files.disk(), b"no disk at all").unwrap();
        assert!(files.open().is_err());
        assert_eq!(files.found().unwrap(), DiskFound::Sound);
        files.make_anew(&mut |_| ()).unwrap();
        drop(files.open().unwrap());

        let master = state.path().join("images/linux/1.vhd");
        create_dynamic(&master, 8 << 20).unwrap();
        let fresh = ChildFiles { masters: Masters::default(), ..files };
        assert!(fresh.open().is_err(), "a child of another master");
        fresh.make_anew(&mut |_| ()).unwrap();
        assert_eq!(fresh.open().unwrap().size(), 8 << 20);
    }
}
