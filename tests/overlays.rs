//! Checkpoints, roll-backs, new sizes and compaction as a lab meets them: the binary, a running process's control socket, its
//! target over real sockets, and files that other tools read.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

#[expect(dead_code, reason = "another test sends more than is needed here")]
mod initiator;

use std::fs;
use std::future::pending;
use std::io::IoSliceMut;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use initiator::{Initiator, Isid, READ, status_of};
use roost::app::App;
use roost::app::keeper::Keeper;
use roost::app::overlays::{ResizeReport, RollbackReport};
use roost::app::recorder::Recorder;
use roost::app::report::{CheckpointReport, ClientReport, Reporter};
use roost::config;
use roost::disk::file::Access;
use roost::disk::import::import;
use roost::disk::inspect::inspect;
use roost::disk::{Chain, Disk, Format, names};
use roost::http::control::{Control, ControlSocket};
use roost::net::iscsi::Server;
use roost::store::StateLock;
use tempfile::TempDir;
use tokio::runtime::Runtime;

const HOME: Ipv4Addr = Ipv4Addr::LOCALHOST;
const INITIATOR: &str = "iqn.2026-11.internal.roost:client.pc-07";
const TARGET: &str = "iqn.2026-11.internal.roost:pc-07";
const SIZE: usize = 8 << 20;

const DONE: i32 = 0;
const USAGE: i32 = 2;
const REFUSED: i32 = 5;

/// A lab of `pc-07`, which keeps its disk, and `pc-08`, which does not.
struct Lab {
    folder: TempDir,
    format: Format,
    _turn: MutexGuard<'static, ()>,
}

/// One lab at a time: for a moment, a process that a test starts holds the locks of files that another test has closed.
static TURN: Mutex<()> = Mutex::new(());

impl Lab {
    /// One for each format that the image, and with it the disks, may have.
    fn of_each_format() -> impl Iterator<Item = Self> {
        [Format::Vhd, Format::Vhdx].into_iter().map(Self::new)
    }

    fn new(format: Format) -> Self {
        let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        let folder = tempfile::tempdir().unwrap();
        let state = folder.path().join("state");
        let text = format!(
            "[server]\ndhcp = \"off\"\nstate = \"{}\"\n[defaults]\nimage = \"linux\"\n[clients]\n\
             pc-07 = \"52:54:00:aa:00:07\"\n\
             pc-08 = {{ mac = \"52:54:00:aa:00:08\", disk = \"reset\" }}\n",
            state.display()
        );
        fs::write(folder.path().join("roost.toml"), text).unwrap();
        drop(StateLock::acquire(&state).unwrap());
        let raw = folder.path().join("linux.raw");
        fs::write(&raw, vec![7; SIZE]).unwrap();
        fs::create_dir_all(state.join("images/linux")).unwrap();
        import(&raw, &names::path(&state.join("images/linux/1"), format), &mut |_, _| ()).unwrap();
        Self { folder, format, _turn: turn }
    }

    fn config(&self) -> PathBuf {
        self.folder.path().join("roost.toml")
    }

    fn state(&self) -> PathBuf {
        self.folder.path().join("state")
    }

    fn disk(&self) -> PathBuf {
        names::path(&self.state().join("disks/pc-07"), self.format)
    }

    fn layer(&self, number: u32) -> PathBuf {
        self.state().join(format!("disks/pc-07.checkpoint-{number}.{}", self.format.extension()))
    }

    /// `roost client ...`
    fn client(&self, arguments: &[&str]) -> Output {
        let mut roost = Command::new(env!("CARGO_BIN_EXE_roost"));
        roost.arg("--config").arg(self.config()).arg("client").args(arguments).stdin(Stdio::null()).output().unwrap()
    }

    fn reset(&self) -> Output {
        let mut roost = Command::new(env!("CARGO_BIN_EXE_roost"));
        roost
            .arg("--config")
            .arg(self.config())
            .args(["reset", "pc-07", "--yes"])
            .stdin(Stdio::null())
            .output()
            .unwrap()
    }

    #[track_caller]
    fn checkpoints(&self) -> Vec<CheckpointReport> {
        let (out, _) = expect(&self.client(&["checkpoints", "pc-07", "--json"]), DONE);
        serde_json::from_str(&out).unwrap()
    }

    fn numbers(&self) -> Vec<u32> {
        self.checkpoints().iter().map(|checkpoint| checkpoint.number).collect()
    }
}

#[track_caller]
fn expect(output: &Output, code: i32) -> (String, String) {
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    let (out, err) = (text(&output.stdout), text(&output.stderr));
    assert_eq!(output.status.code(), Some(code), "stdout: {out}\nstderr: {err}");
    (out, err)
}

/// A running process: its target and its control socket.
struct Running {
    app: Arc<App>,
    target: SocketAddr,
    runtime: Option<Runtime>,
}

impl Running {
    fn start(lab: &Lab) -> Self {
        let state = lab.state();
        let lock = StateLock::acquire(&state).unwrap();
        let runtime = Runtime::new().unwrap();
        let inside = runtime.enter();
        let loaded = config::load(&lab.config()).unwrap().config;
        let settings = loaded.settings;
        let boot_id = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
        let boot_id = boot_id.trim().to_owned();
        let app = Arc::new(App::new(settings.clone(), loaded.fleet, Recorder::detached(), boot_id));
        app.recorder.saw("52:54:00:aa:00:07".parse().unwrap(), Some(HOME));
        let server = runtime.block_on(Server::bind((HOME, 0).into(), Arc::clone(&app))).unwrap();
        let target = server.address().unwrap();
        runtime.spawn(server.run(pending()));
        let reporter = Reporter::new(settings, None, app.sessions.clone());
        let keeper = Arc::new(Keeper::new(Arc::clone(&app), lab.config()));
        let socket = ControlSocket::bind(&state, &lock).unwrap();
        let control = Control { app: Arc::clone(&app), keeper, reporter };
        runtime.spawn(async move {
            let _lock = lock;
            socket.serve(control, pending()).await
        });
        drop(inside);
        Self { app, target, runtime: Some(runtime) }
    }

    fn log_in(&self, isid: Isid) -> Initiator {
        let mut session = Initiator::connect(HOME, self.target);
        assert_eq!(session.log_in(INITIATOR, TARGET, isid), 0);
        session.settle();
        session
    }

    /// In order: every disk is settled.
    fn stop(mut self) {
        let runtime = self.runtime.take().unwrap();
        runtime.block_on(self.app.disks.close_all());
        drop(self);
        runtime.shutdown_timeout(Duration::from_secs(10));
    }

    /// Waits until no merge is under way.
    fn wait_for_merges(&self) {
        let client = "pc-07".parse().unwrap();
        let begun = Instant::now();
        while self.app.works.of(&client).is_some_and(|work| !work.finished) {
            assert!(begun.elapsed() < Duration::from_secs(20), "a merge does not end");
            thread::sleep(Duration::from_millis(10));
        }
        assert_eq!(self.app.works.of(&client).and_then(|work| work.error), None);
    }
}

/// A file with all below it, read as its locators say.
fn content(path: &Path) -> Vec<u8> {
    let chain = Chain::open(path, Access::Peek).unwrap();
    let mut all = vec![0; usize::try_from(chain.size()).unwrap()];
    chain.read(0, &mut [IoSliceMut::new(&mut all)]).unwrap();
    all
}

fn size_of(session: &mut Initiator) -> u64 {
    let mut cdb = [0; 10];
    cdb[0] = 0x25;
    session.start(&cdb, READ, 8, &[]);
    let data = session.take_read(8).1;
    (u64::from(u32::from_be_bytes(data[..4].try_into().unwrap())) + 1) * 512
}

/// Sectors that the writer goes round and round over.
const ROUND: u32 = 512;

/// What the disk holds after so many of the writer's writes.
fn after(writes: u32) -> Vec<u8> {
    let mut all = vec![7; SIZE];
    for n in writes.saturating_sub(ROUND)..writes {
        let at = (n % ROUND * 9) as usize * 512;
        all[at..at + 512].copy_from_slice(&n.to_le_bytes().repeat(128));
    }
    all
}

#[test]
fn a_checkpoint_under_a_writer_holds_all_that_was_acknowledged_before_and_nothing_that_came_after() {
    for lab in Lab::of_each_format() {
        let running = Running::start(&lab);
        let mut session = running.log_in(Isid::system(1));
        let (acknowledged, stop) = (AtomicU32::new(0), AtomicBool::new(false));
        let mut spans = Vec::new();
        let written = thread::scope(|scope| {
            let writer = scope.spawn(|| {
                let mut n = 0u32;
                while !stop.load(Ordering::Acquire) {
                    session.write(n % ROUND * 9, &n.to_le_bytes().repeat(128));
                    n += 1;
                    acknowledged.store(n, Ordering::Release);
                    // It reads its own writes, whatever is done to the disk meanwhile.
                    if n.is_multiple_of(64) {
                        assert_eq!(session.read((n - 1) % ROUND * 9, 1), (n - 1).to_le_bytes().repeat(128));
                    }
                }
                n
            });
            for note in ["one", "two", "three"] {
                let target = acknowledged.load(Ordering::Acquire) + 300;
                while acknowledged.load(Ordering::Acquire) < target {
                    thread::yield_now();
                }
                let before = acknowledged.load(Ordering::Acquire);
                let (out, _) = expect(&lab.client(&["checkpoint", "pc-07", "--note", note, "--json"]), DONE);
                let made: CheckpointReport = serde_json::from_str(&out).unwrap();
                // One more write may have been under way.
                spans.push((made.number, before, acknowledged.load(Ordering::Acquire) + 1));
                assert_eq!((made.note.as_str(), made.size, made.below_disk), (note, SIZE as u64, true));
            }
            stop.store(true, Ordering::Release);
            writer.join().unwrap()
        });
        session.flush();
        for (number, before, later) in spans {
            let frozen = content(&lab.layer(number));
            let prefix = (before..=later).find(|&writes| frozen == after(writes));
            assert!(prefix.is_some(), "checkpoint {number} is no moment between {before} and {later} writes");
        }
        assert_eq!(lab.numbers(), [1, 2, 3]);
        assert!(session.read(0, 2048) == after(written)[..2048 * 512], "the disk has all of it");

        // A checkpoint is exported beside the running system.
        let raw = lab.state().join("two.raw");
        let export = |number: &str| lab.client(&["export", "pc-07", raw.to_str().unwrap(), "--checkpoint", number]);
        expect(&export("2"), DONE);
        assert!(fs::read(&raw).unwrap() == content(&lab.layer(2)), "its export is the checkpoint");
        let (_, err) = expect(&export("4"), REFUSED);
        assert!(err.contains("has no checkpoint 4") && err.contains("roost client checkpoints pc-07"), "{err}");

        // A system that answers keeps its disk.
        let refused = thread::scope(|scope| {
            let asked = scope.spawn(|| lab.client(&["rollback", "pc-07", "2", "--yes"]));
            session.answer_a_ping();
            asked.join().unwrap()
        });
        let (_, err) = expect(&refused, REFUSED);
        assert!(
            err.contains("in use") && err.contains(INITIATOR) && err.contains("help: shut that system down"),
            "{err}"
        );
        assert_eq!(session.test_unit_ready(), None);

        // A machine that is off does not.
        let wanted = content(&lab.layer(2));
        let (out, _) = expect(&lab.client(&["rollback", "pc-07", "2", "--yes", "--json"]), DONE);
        let report: RollbackReport = serde_json::from_str(&out).unwrap();
        assert_eq!((report.checkpoint.number, report.previous_disk.is_some()), (2, true));
        assert!(content(&report.previous_disk.unwrap()) == after(written), "the one before it can be looked at");
        assert!(session.is_closed());
        let mut session = running.log_in(Isid::system(1));
        assert!(session.read(0, 2048) == wanted[..2048 * 512]);
        assert!(!lab.disk().with_added_extension("previous").exists(), "gone with the login");
        assert_eq!(lab.numbers(), [1, 2, 3], "the third is a branch now");
        assert!(lab.checkpoints().iter().map(|checkpoint| checkpoint.below_disk).eq([true, true, false]));

        let (out, _) = expect(&lab.client(&["show", "pc-07", "--json"]), DONE);
        let shown: ClientReport = serde_json::from_str(&out).unwrap();
        assert_eq!((shown.checkpoints.len(), shown.chain_depth), (3, Some(4)));
        let (out, _) = expect(&lab.client(&["show", "pc-07"]), DONE);
        assert!(out.contains("chain of 4 files") && out.contains("three"), "{out}");

        // Each can go while the disk is in use, and takes nothing with it.
        for number in [2, 3, 1] {
            let (out, _) = expect(&lab.client(&["checkpoint", "pc-07", "--delete", &number.to_string()]), DONE);
            assert!(out.contains("is deleted"), "{out}");
            assert!(session.read(0, 2048) == wanted[..2048 * 512], "{number} is gone");
        }
        assert!(lab.numbers().is_empty());
        session.write(1, &[1; 512]);
        session.flush();
        let mut expected = wanted;
        expected[512..1024].fill(1);
        running.stop();
        assert!(content(&lab.disk()) == expected);
        assert_eq!(inspect(&lab.disk()).unwrap().layers.len(), 2, "the disk and its master are all there is");
    }
}

#[test]
fn a_disk_that_grows_is_told_to_the_system_that_runs_on_it() {
    for lab in Lab::of_each_format() {
        let running = Running::start(&lab);
        let mut session = running.log_in(Isid::system(1));
        session.write(5, &[1; 512]);
        assert_eq!(size_of(&mut session), 8 << 20);
        let (_, err) = expect(&lab.client(&["resize", "pc-07", "4M"]), REFUSED);
        assert!(err.contains("does not shrink") && err.contains("help: "), "{err}");
        expect(&lab.client(&["resize", "pc-07", "lots"]), USAGE);

        let (out, _) = expect(&lab.client(&["resize", "pc-07", "12M", "--json"]), DONE);
        let report: ResizeReport = serde_json::from_str(&out).unwrap();
        assert_eq!((report.old_size, report.new_size), (8 << 20, 12 << 20));
        assert_eq!(session.test_unit_ready(), Some((6, 0x2A, 0x09)), "CAPACITY DATA HAS CHANGED");
        assert_eq!(session.test_unit_ready(), None);
        assert_eq!(size_of(&mut session), 12 << 20);
        let last = (12 << 11) - 1;
        assert_eq!(session.read(last, 1), [0; 512]);
        session.write(last, &[9; 512]);
        session.flush();
        let (out, _) = expect(&lab.client(&["resize", "pc-07", "12M"]), DONE);
        assert!(out.contains("nothing to do"), "{out}");
        assert!(lab.numbers().is_empty(), "a new size leaves no checkpoint");

        // Out of range is said as before.
        let mut cdb = [0; 10];
        (cdb[0], cdb[8]) = (0x28, 1);
        cdb[2..6].copy_from_slice(&(12u32 << 11).to_be_bytes());
        session.start(&cdb, READ, 512, &[]);
        assert_eq!(status_of(&session.take_answer(0x21)), Some((5, 0x21, 0)));

        expect(&lab.client(&["compact", "pc-07"]), DONE);
        running.wait_for_merges();
        assert_eq!(session.read(last, 1), [9; 512]);
        running.stop();
        let seen = inspect(&lab.disk()).unwrap();
        assert_eq!((seen.layers.len(), content(&lab.disk()).len()), (2, 12 << 20), "one file again");
        let running = Running::start(&lab);
        let mut session = running.log_in(Isid::system(1));
        assert_eq!(
            (size_of(&mut session), session.read(5, 1), session.read(last, 1)),
            (12 << 20, vec![1; 512], vec![9; 512])
        );
    }
}

#[test]
fn without_a_running_roost_the_verbs_do_the_same_under_the_lock() {
    for lab in Lab::of_each_format() {
        let (_, err) = expect(&lab.client(&["checkpoint", "pc-07"]), REFUSED);
        assert!(err.contains("has no disk yet"), "{err}");
        let running = Running::start(&lab);
        let mut session = running.log_in(Isid::system(1));
        session.write(5, &[1; 512]);
        session.flush();
        drop(session);
        running.stop();

        let (out, _) = expect(&lab.client(&["checkpoints", "pc-07"]), DONE);
        assert!(out.contains("has no checkpoints"), "{out}");
        let (_, err) = expect(&lab.client(&["rollback", "pc-07", "--yes"]), REFUSED);
        assert!(err.contains("stands on no checkpoint") && err.contains("makes one"), "{err}");
        let (out, _) = expect(&lab.client(&["checkpoint", "pc-07", "--note", "before the \u{1b}update"]), DONE);
        assert!(out.starts_with("pc-07: checkpoint 1;"), "{out}");
        let (out, _) = expect(&lab.client(&["checkpoints", "pc-07"]), DONE);
        assert!(out.contains("before the \\u{1b}update") && out.contains("below the disk"), "{out}");
        let (_, err) = expect(&lab.client(&["rollback", "pc-07", "4", "--yes"]), REFUSED);
        assert!(err.contains("no checkpoint 4") && err.contains("it has 1"), "{err}");
        let (_, err) = expect(&lab.client(&["checkpoint", "pc-07", "--delete", "4"]), REFUSED);
        assert!(err.contains("no checkpoint 4"), "{err}");
        expect(&lab.client(&["checkpoint", "pc-07", "--delete", "1", "--note", "x"]), USAGE);
        let (_, err) = expect(&lab.client(&["rollback", "pc-07"]), REFUSED);
        assert!(err.contains("--yes"), "{err}");
        for verb in ["checkpoint", "checkpoints", "compact"] {
            let (_, err) = expect(&lab.client(&[verb, "pc-7"]), REFUSED);
            assert!(err.contains("did you mean `pc-07`?"), "{err}");
        }
        for verb in [&["checkpoint", "pc-08"][..], &["rollback", "pc-08", "--yes"], &["resize", "pc-08", "1G"]] {
            let (_, err) = expect(&lab.client(verb), REFUSED);
            assert!(err.contains("made anew at each boot") && err.contains("disk = \"keep\""), "{err}");
        }
        let (_, err) = {
            let _held = StateLock::acquire(&lab.state()).unwrap();
            expect(&lab.client(&["checkpoint", "pc-07"]), REFUSED)
        };
        assert!(err.contains("in use by process"), "{err}");

        let at_one = content(&lab.layer(1));
        expect(&lab.client(&["resize", "pc-07", "10M"]), DONE);
        assert_eq!(content(&lab.disk()).len(), 10 << 20);
        // It goes back to the size that it had, too.
        let (out, _) = expect(&lab.client(&["rollback", "pc-07", "--yes"]), DONE);
        assert!(out.contains("as it was at checkpoint 1; the one before it is "), "{out}");
        assert!(content(&lab.disk()) == at_one);

        // A disk that is made anew is a child of the image; the checkpoint stays, and can be gone back to.
        let (out, _) = expect(&lab.reset(), DONE);
        assert!(out.contains("its checkpoint stays"), "{out}");
        assert!(content(&lab.disk()) == vec![7; SIZE]);
        let (_, err) = expect(&lab.client(&["rollback", "pc-07", "--yes"]), REFUSED);
        assert!(err.contains("it has 1"), "{err}");
        expect(&lab.client(&["rollback", "pc-07", "1", "--yes"]), DONE);
        assert!(content(&lab.disk()) == at_one);
        let (out, _) = expect(&lab.client(&["compact", "pc-07", "--json"]), DONE);
        assert!(serde_json::from_str::<serde_json::Value>(&out).unwrap()["bytes_returned"].is_u64(), "{out}");
        let (out, _) = expect(&lab.client(&["checkpoint", "pc-07", "--delete", "1", "--json"]), DONE);
        assert_eq!(serde_json::from_str::<serde_json::Value>(&out).unwrap()["deleted"], 1);
        assert!(content(&lab.disk()) == at_one);
        let left: Vec<_> = fs::read_dir(lab.state().join("disks")).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert!(left.iter().all(|name| !name.to_string_lossy().contains("checkpoint")), "{left:?}");
    }
}

#[test]
fn seven_zip_reads_a_disk_with_checkpoints_as_its_client_does() {
    if Command::new("7zz").arg("--help").stdout(Stdio::null()).status().is_err() {
        println!("skip: seven_zip_reads_a_disk_with_checkpoints_as_its_client_does needs 7zz (apt install 7zip)");
        return;
    }
    for lab in Lab::of_each_format() {
        let running = Running::start(&lab);
        let mut session = running.log_in(Isid::system(1));
        for n in 0..3u8 {
            for sector in 0..40u32 {
                session.write(sector * 97 + u32::from(n) * 31, &[n + 1; 512]);
            }
            session.unmap(u64::from(n) * 11, 8);
            expect(&lab.client(&["checkpoint", "pc-07"]), DONE);
        }
        expect(&lab.client(&["resize", "pc-07", "9M"]), DONE);
        session.take_answer_to_capacity();
        session.write(17_000, &[0xaa; 512]);
        expect(&lab.client(&["checkpoint", "pc-07", "--delete", "2"]), DONE);
        let mut ours = Vec::new();
        (0..9u32).for_each(|n| ours.extend(session.read(n << 11, 1 << 11)));
        session.flush();
        running.stop();
        for checkpoint in lab.checkpoints() {
            assert!(by_7zip(&checkpoint.path) == (true, content(&checkpoint.path)), "checkpoint {}", checkpoint.number);
        }
        assert_eq!(lab.numbers(), [1, 3]);
        // Of a child that is larger than its parent 7-Zip reads what the parent has, says so and stops: a limit of its own.
        let (whole, theirs) = by_7zip(&lab.disk());
        assert!(!whole && theirs.len() >= 7 << 20 && ours.starts_with(&theirs), "{} bytes", theirs.len());
        assert!(content(&lab.disk()) == ours);
        expect(&lab.client(&["rollback", "pc-07", "3", "--yes"]), DONE);
        assert!(by_7zip(&lab.disk()) == (true, content(&lab.layer(3))));
    }
}

/// What 7-Zip reads of a disk file, and whether it has nothing to complain of.
fn by_7zip(path: &Path) -> (bool, Vec<u8>) {
    let kind = path.extension().unwrap().to_str().unwrap();
    let output = Command::new("7zz").args(["e", &format!("-t{kind}"), "-so"]).arg(path).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    (output.status.success() && said.trim().is_empty(), output.stdout)
}

impl Initiator {
    /// Takes what a session is told after a change of size.
    fn take_answer_to_capacity(&mut self) {
        assert_eq!(self.test_unit_ready(), Some((6, 0x2A, 0x09)));
    }
}
