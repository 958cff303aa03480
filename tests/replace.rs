//! `roost replace` as a lab meets it: the binary, a running process's control socket, its target over real sockets, and the
//! mapping file that it edits.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

#[expect(dead_code, reason = "another test sends more than is needed here")]
mod initiator;

use std::fs;
use std::future::pending;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;

use initiator::{Initiator, Isid};
use roost::app::App;
use roost::app::keeper::Keeper;
use roost::app::recorder::Recorder;
use roost::app::report::{ReplaceReport, Reporter};
use roost::config;
use roost::disk::import::import;
use roost::fleet::{Mac, Stage};
use roost::http::control::{Control, ControlSocket};
use roost::net::iscsi::Server;
use roost::store::{StateLock, Store};
use tempfile::TempDir;
use tokio::runtime::Runtime;

const HOME: Ipv4Addr = Ipv4Addr::LOCALHOST;
const ELSEWHERE: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 2);
const INITIATOR: &str = "iqn.2026-11.internal.roost:client.pc-07";
const TARGET: &str = "iqn.2026-11.internal.roost:pc-07";
const ADMIN: &str = "iqn.2026-11.internal.roost:admin";
const OLD: &str = "52:54:00:aa:00:07";
const NEW: &str = "52:54:00:aa:00:99";

const DONE: i32 = 0;
const FAILED: i32 = 1;
const USAGE: i32 = 2;
const CONFIGURATION: i32 = 3;
const REFUSED: i32 = 5;

fn mac(text: &str) -> Mac {
    text.parse().unwrap()
}

/// The mapping file of `pc-07` and a neighbour, as its owner likes it.
struct Lab {
    folder: TempDir,
    text: String,
    _turn: MutexGuard<'static, ()>,
}

/// One lab at a time: for a moment, a process that a test starts holds the locks of files that another test has closed.
static TURN: Mutex<()> = Mutex::new(());

impl Lab {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let state = folder.path().join("state");
        let text = format!(
            "# north lab\n[server]\ndhcp = \"off\"\nstate = \"{}\"\n[defaults]\nimage = \"linux\"\n\n[clients]\n\
             pc-07   = {{ mac = '52-54-00-AA-00-07', initiators = [\"{ADMIN}\"] }}  # by the door\n\
             pc-08   = \"52:54:00:aa:00:08\"\n",
            state.display()
        );
        fs::write(folder.path().join("roost.toml"), &text).unwrap();
        Self { folder, text, _turn: TURN.lock().unwrap_or_else(PoisonError::into_inner) }
    }

    fn config(&self) -> PathBuf {
        self.folder.path().join("roost.toml")
    }

    fn state(&self) -> PathBuf {
        self.folder.path().join("state")
    }

    fn replace(&self, arguments: &[&str]) -> Output {
        let mut roost = Command::new(env!("CARGO_BIN_EXE_roost"));
        roost.arg("--config").arg(self.config()).arg("replace").args(arguments).stdin(Stdio::null()).output().unwrap()
    }

    #[track_caller]
    fn says(&self, text: &str) {
        assert_eq!(fs::read_to_string(self.config()).unwrap(), text);
    }

    /// The text with one value changed.
    fn replaced(&self) -> String {
        self.text.replace("52-54-00-AA-00-07", NEW)
    }
}

#[track_caller]
fn expect(output: &Output, code: i32) -> (String, String) {
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    let (out, err) = (text(&output.stdout), text(&output.stderr));
    assert_eq!(output.status.code(), Some(code), "stdout: {out}\nstderr: {err}");
    (out, err)
}

const LINE: &str = "pc-07: 52:54:00:aa:00:07 is now 52:54:00:aa:00:99; its disk, name and address stay. \
                    Switch the new machine on.\n";

#[test]
fn without_a_running_roost_the_file_is_edited_and_the_history_written() {
    let lab = Lab::new();
    drop(StateLock::acquire(&lab.state()).unwrap());
    let (out, err) = expect(&lab.replace(&["pc-07", "--mac", "5254.00AA.0099"]), DONE);
    assert_eq!((out.as_str(), err.as_str()), (LINE, ""));
    lab.says(&lab.replaced());
    let store = Store::open(&lab.state()).unwrap();
    let [event] = store.events_of(&"pc-07".parse().unwrap()).unwrap().try_into().unwrap();
    assert_eq!((event.stage, event.mac), (Stage::Replaced, Some(mac(NEW))));
    drop(store);

    let (out, _) = expect(&lab.replace(&["pc-07", "--mac", NEW, "--json"]), DONE);
    let report: ReplaceReport = serde_json::from_str(&out).unwrap();
    assert!(!report.changed && report.old == [NEW] && report.new == NEW, "{report:?}");
    let (out, _) = expect(&lab.replace(&["pc-07", "--mac", NEW]), DONE);
    assert_eq!(out, "pc-07: 52:54:00:aa:00:99 is its machine already; there is nothing to do.\n");
    lab.says(&lab.replaced());
}

#[test]
fn a_lab_that_was_never_run_gets_no_state_by_it() {
    let lab = Lab::new();
    expect(&lab.replace(&["pc-07", "--mac", NEW]), DONE);
    lab.says(&lab.replaced());
    assert!(!lab.state().exists());
}

#[test]
fn what_is_refused_leaves_the_file_and_has_its_exit_code() {
    let lab = Lab::new();
    let (_, err) = expect(&lab.replace(&["pc-07", "--mac", "52:54:00:aa:00:08"]), REFUSED);
    assert!(err.contains("is the machine of `pc-08`"), "{err}");
    let (_, err) = expect(&lab.replace(&["pc-7", "--mac", NEW]), REFUSED);
    assert!(err.contains("there is no client `pc-7`") && err.contains("did you mean `pc-07`?"), "{err}");
    let by_port = lab.text.clone() + "desk = { port = \"sw1/4\" }\n";
    fs::write(lab.config(), &by_port).unwrap();
    let (_, err) = expect(&lab.replace(&["desk", "--mac", NEW]), REFUSED);
    assert!(err.contains("`desk` is whatever machine is plugged in at port sw1/4"), "{err}");
    assert!(err.contains("plug the new machine in at sw1/4, and that is all"), "{err}");
    lab.says(&by_port);
    fs::write(lab.config(), &lab.text).unwrap();
    for wrong in ["52:54:00:aa:00", "ff:ff:ff:ff:ff:ff", "00:00:00:00:00:00"] {
        expect(&lab.replace(&["pc-07", "--mac", wrong]), USAGE);
    }
    expect(&lab.replace(&["pc-07"]), USAGE);
    lab.says(&lab.text);

    // Another verb has the state.
    let lock = StateLock::acquire(&lab.state()).unwrap();
    let (_, err) = expect(&lab.replace(&["pc-07", "--mac", NEW]), REFUSED);
    assert!(err.contains("in use by process"), "{err}");
    drop(lock);
    lab.says(&lab.text);

    let wrong = lab.text.replace("[clients]", "[cleints]");
    fs::write(lab.config(), &wrong).unwrap();
    let (_, err) = expect(&lab.replace(&["pc-07", "--mac", NEW]), CONFIGURATION);
    assert!(err.contains("roost.toml:8:"), "{err}");
    lab.says(&wrong);
}

/// A running process: its target, its control socket, its keeper.
struct Running {
    app: Arc<App>,
    target: SocketAddr,
    _runtime: Runtime,
}

impl Running {
    fn start(lab: &Lab) -> Self {
        let state = lab.state();
        let lock = StateLock::acquire(&state).unwrap();
        let raw = lab.folder.path().join("linux.raw");
        fs::write(&raw, vec![7; 1 << 20]).unwrap();
        fs::create_dir_all(state.join("images/linux")).unwrap();
        import(&raw, &state.join("images/linux/1.vhd"), &mut |_, _| ()).unwrap();

        let runtime = Runtime::new().unwrap();
        let inside = runtime.enter();
        let loaded = config::load(&lab.config()).unwrap().config;
        let settings = loaded.settings;
        let app = Arc::new(App::new(settings.clone(), loaded.fleet, Recorder::detached(), "this-boot".to_owned()));
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
        Self { app, target, _runtime: runtime }
    }

    /// A login as this initiator; the session and its status.
    fn log_in(&self, from: Ipv4Addr, initiator: &str, isid: Isid) -> (Initiator, u16) {
        let mut session = Initiator::connect(from, self.target);
        let status = session.log_in(initiator, TARGET, isid);
        (session, status)
    }

    fn last(&self, stage: Stage) -> String {
        let events = self.app.recorder.events();
        events.into_iter().rev().find(|event| event.stage == stage).expect("there is one").detail
    }
}

/// Status of a login that is in, and of one that is forbidden (RFC 7143 §11.13.5).
const IN: u16 = 0;
const FORBIDDEN: u16 = 0x0202;

#[test]
fn a_machine_that_runs_is_replaced_by_force_only_and_does_not_come_back() {
    let lab = Lab::new();
    let running = Running::start(&lab);
    running.app.recorder.saw(mac(OLD), Some(HOME));
    let (mut old, status) = running.log_in(HOME, INITIATOR, Isid::system(1));
    assert_eq!(status, IN);
    old.settle();
    let (mut admin, status) = running.log_in(HOME, ADMIN, Isid::system(2));
    assert_eq!(status, IN);
    admin.settle();

    // It answers the ping, and keeps its disk.
    let asked = thread::scope(|scope| {
        let asked = scope.spawn(|| lab.replace(&["pc-07", "--mac", NEW]));
        old.answer_a_ping();
        asked.join().unwrap()
    });
    let (_, err) = expect(&asked, REFUSED);
    assert!(err.contains("is running: its session from 127.0.0.1 answers") && err.contains("--force"), "{err}");
    lab.says(&lab.text);
    assert_eq!(old.test_unit_ready(), None, "its session is as it was");

    let (out, _) = expect(&lab.replace(&["pc-07", "--mac", NEW, "--force"]), DONE);
    assert_eq!(out, LINE);
    lab.says(&lab.replaced());
    assert!(old.is_closed(), "the old machine's session is over");
    assert_eq!(admin.test_unit_ready(), None, "the admin's is not the machine's");
    assert_eq!(running.last(Stage::Replaced), "52:54:00:aa:00:07 is now 52:54:00:aa:00:99");
    assert!(running.app.fleet().by_mac(mac(OLD)).is_none());

    // The old machine at its old address is nobody's, whatever it calls itself.
    assert_eq!(running.log_in(HOME, INITIATOR, Isid::system(1)).1, FORBIDDEN);
    // The new one is let in where DHCP put it.
    running.app.recorder.saw(mac(NEW), Some(ELSEWHERE));
    assert_eq!(running.log_in(HOME, INITIATOR, Isid::system(1)).1, FORBIDDEN);
    let (mut new, status) = running.log_in(ELSEWHERE, INITIATOR, Isid::loader(1));
    assert_eq!(status, IN);
    new.settle();
    assert_eq!(new.read(0, 1), [7; 512], "the same disk");
}

#[test]
fn a_machine_that_is_silent_needs_no_force() {
    let lab = Lab::new();
    let running = Running::start(&lab);
    running.app.recorder.saw(mac(OLD), Some(HOME));
    let (mut dead, status) = running.log_in(HOME, INITIATOR, Isid::system(1));
    assert_eq!(status, IN);
    dead.settle();
    dead.write(9, &[1; 512]);
    expect(&lab.replace(&["pc-07", "--mac", NEW]), DONE);
    lab.says(&lab.replaced());
    assert!(dead.is_closed());
    // The same address: what the old machine wrote is there for the new one.
    running.app.recorder.saw(mac(NEW), Some(HOME));
    let (mut new, status) = running.log_in(HOME, INITIATOR, Isid::loader(1));
    assert_eq!(status, IN);
    new.settle();
    assert_eq!(new.read(9, 1), [1; 512]);
}

#[test]
fn the_old_machine_at_the_address_that_is_now_its_successors_is_refused_by_its_mac() {
    let lab = Lab::new();
    let running = Running::start(&lab);
    let app = &running.app;
    let judge = |from: &str| {
        let fleet = app.fleet();
        let client = fleet.client(&"pc-07".parse().unwrap()).unwrap();
        app.may_log_in(client, INITIATOR, HOME.into(), Some(mac(from))).map_err(|refusal| refusal.to_string())
    };
    app.recorder.saw(mac(OLD), Some(HOME));
    assert_eq!(judge(OLD), Ok(()));
    expect(&lab.replace(&["pc-07", "--mac", NEW]), DONE);
    app.recorder.saw(mac(NEW), Some(HOME));
    assert_eq!(judge(NEW), Ok(()));
    assert!(judge(OLD).unwrap_err().contains("52:54:00:aa:00:07, which is not this client's machine"));
    // A bridge that the system made has a MAC that was never seen by itself.
    assert_eq!(judge("52:54:00:cc:00:01"), Ok(()));
}

#[test]
fn a_running_roost_says_what_is_wrong_with_the_file_and_stays_as_it_is() {
    let lab = Lab::new();
    let running = Running::start(&lab);
    let wrong = lab.text.replace("[defaults]", "[defaults]\nimagee = \"x\"");
    fs::write(lab.config(), &wrong).unwrap();
    // The state is named, because the file cannot be read for it.
    let state = lab.state();
    let replace = ["pc-07", "--mac", NEW, "--state", state.to_str().unwrap()];
    let (_, err) = expect(&lab.replace(&replace), CONFIGURATION);
    assert!(err.contains("imagee"), "{err}");
    lab.says(&wrong);
    assert!(running.app.fleet().by_mac(mac(OLD)).is_some());

    let (_, err) = expect(&lab.replace(&[&["pc-07", "--mac", "52:54:00:aa:00:08"], &replace[3..]].concat()), REFUSED);
    assert!(err.contains("`pc-08`") && err.contains("help: "), "{err}");
    let (_, err) = expect(&lab.replace(&[&["pc-17", "--mac", NEW], &replace[3..]].concat()), REFUSED);
    assert!(err.contains("did you mean `pc-07`?"), "{err}");

    // What somebody wrote into the file since the start stays in it.
    fs::write(lab.config(), lab.text.clone() + "pc-09 = \"52:54:00:aa:00:09\"\n").unwrap();
    expect(&lab.replace(&["pc-07", "--mac", NEW]), DONE);
    lab.says(&(lab.replaced() + "pc-09 = \"52:54:00:aa:00:09\"\n"));
    assert!(running.app.fleet().by_mac(mac(NEW)).is_some());
}

#[test]
fn a_file_that_cannot_be_saved_changes_nothing_and_says_what_to_do() {
    let lab = Lab::new();
    let running = Running::start(&lab);
    // Not even root can make a file where a folder is.
    fs::create_dir(lab.folder.path().join(".roost.toml.new")).unwrap();
    let (_, err) = expect(&lab.replace(&["pc-07", "--mac", NEW]), FAILED);
    assert!(err.contains("cannot save") && err.contains(".roost.toml.new") && err.contains("help: "), "{err}");
    lab.says(&lab.text);
    assert!(running.app.fleet().by_mac(mac(OLD)).is_some());
    assert!(running.app.recorder.events().is_empty());
}
