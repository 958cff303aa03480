//! The command line as its users meet it: the binary, its exit codes and its words, on state folders of their own.

#![expect(clippy::unwrap_used, reason = "a helper that fails is a test that fails")]

use std::fs;
use std::future::pending;
use std::io::IoSlice;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::Arc;

use roost::app::App;
use roost::app::keeper::Keeper;
use roost::app::recorder::Recorder;
use roost::app::report::{ClientReport, NoSessions, Reporter};
use roost::disk::Disk;
use roost::disk::chain::Chain;
use roost::disk::data::DataDisk;
use roost::disk::file::Access;
use roost::disk::vhd::create_child;
use roost::fleet::{Event, Holder, Lease, Stage, Timestamp};
use roost::http::control::{Control, ControlSocket, SOCKET};
use roost::store::{Record, StateLock, Store};
use serde_json::Value;
use tempfile::TempDir;

const DONE: i32 = 0;
const FAILED: i32 = 1;
const USAGE: i32 = 2;
const CONFIGURATION: i32 = 3;
const NOTHING_RUNS: i32 = 4;
const REFUSED: i32 = 5;

/// A lab of two clients in a folder that goes at the end.
struct Lab {
    folder: TempDir,
}

impl Lab {
    fn new() -> Self {
        let lab = Self { folder: tempfile::tempdir().unwrap() };
        let file = format!(
            r#"
[server]
interface = "lo"
dhcp = "off"
state = "{}"

[defaults]
image = "debian-12"

[clients]
pc-01 = "52:54:00:aa:00:01"

[group.lab-a]
title = "Room A"

[group.lab-a.clients]
a-01 = {{ mac = "52:54:00:aa:00:02", off = true }}
"#,
            lab.state().display()
        );
        fs::write(lab.config(), file).unwrap();
        lab
    }

    fn config(&self) -> PathBuf {
        self.folder.path().join("roost.toml")
    }

    fn state(&self) -> PathBuf {
        self.folder.path().join("state")
    }

    /// A raw disk of one MiB with something on it.
    fn raw_disk(&self) -> PathBuf {
        let path = self.folder.path().join("master.raw");
        let mut disk = vec![0; 1 << 20];
        disk[..4].copy_from_slice(b"boot");
        fs::write(&path, disk).unwrap();
        path
    }

    fn roost(&self, arguments: &[&str]) -> Output {
        roost(&[&["--config", self.config().to_str().unwrap()], arguments].concat())
    }
}

fn roost(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_roost")).args(arguments).stdin(Stdio::null()).output().unwrap()
}

#[track_caller]
fn expect(output: &Output, code: i32) -> (String, String) {
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    let (out, err) = (text(&output.stdout), text(&output.stderr));
    assert_eq!(output.status.code(), Some(code), "stdout: {out}\nstderr: {err}");
    (out, err)
}

#[track_caller]
fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

#[test]
fn a_wrong_command_line_exits_with_2() {
    for arguments in [
        &[][..],
        &["serve"],
        &["client"],
        &["client", "show"],
        &["client", "show", "PC 01"],
        &["reset"],
        &["image", "import", "disk.raw"],
        &["image", "import", "disk.raw", "--name", "../etc"],
        &["--log", "loud", "client", "list"],
    ] {
        let (out, err) = expect(&roost(arguments), USAGE);
        assert!(out.is_empty() && !err.is_empty(), "{arguments:?}");
    }
    expect(&roost(&["--help"]), DONE);
    expect(&roost(&["--version"]), DONE);
}

#[test]
fn a_missing_mapping_file_exits_with_3_and_says_which() {
    let folder = tempfile::tempdir().unwrap();
    let missing = folder.path().join("roost.toml");
    for verb in [&["run"][..], &["client", "list"], &["client", "show", "pc-01"], &["image", "list"]] {
        let output = roost(&[&["--config", missing.to_str().unwrap()], verb].concat());
        let (_, err) = expect(&output, CONFIGURATION);
        assert!(err.contains(missing.to_str().unwrap()) && err.contains("help: "), "{err}");
    }
}

#[test]
fn a_wrong_mapping_file_exits_with_3_and_shows_the_place() {
    let lab = Lab::new();
    let mut file = fs::read_to_string(lab.config()).unwrap();
    file.push_str("a-02 = \"52-54-00-AA-00-02\"\n");
    fs::write(lab.config(), file).unwrap();
    for verb in [&["run"][..], &["client", "list"]] {
        let (_, err) = expect(&lab.roost(verb), CONFIGURATION);
        assert!(err.contains("roost.toml:17:") && err.contains("given to two clients"), "{err}");
    }
    let (out, _) = expect(&lab.roost(&["check"]), CONFIGURATION);
    assert!(out.contains("given to two clients"), "{out}");
    assert!(!lab.state().exists(), "a wrong file makes no state");
}

#[test]
fn check_takes_a_file_or_that_of_config() {
    let lab = Lab::new();
    let config = lab.config();
    let (out, _) = expect(&lab.roost(&["check"]), DONE);
    assert!(out.contains("2 clients"), "{out}");
    let (out, _) = expect(&roost(&["check", config.to_str().unwrap(), "--json"]), DONE);
    assert_eq!(json(&out)["ok"], true);
    // Once there is a state with images, an image that is not there is an error.
    fs::create_dir_all(lab.state().join("images")).unwrap();
    let (out, _) = expect(&lab.roost(&["check"]), CONFIGURATION);
    assert!(out.contains("debian-12"), "{out}");
    let (_, err) = expect(&lab.roost(&["run"]), CONFIGURATION);
    assert!(err.contains("debian-12"), "{err}");
}

#[test]
fn to_show_a_client_something_has_to_run() {
    let lab = Lab::new();
    let (_, err) = expect(&lab.roost(&["client", "show", "pc-01"]), NOTHING_RUNS);
    assert!(
        err.starts_with("error: no roost is running") && err.contains("  help: start it with `roost run`"),
        "{err}"
    );
    // The socket of a process that died is no process.
    fs::create_dir(lab.state()).unwrap();
    drop(UnixListener::bind(lab.state().join(SOCKET)).unwrap());
    let (_, err) = expect(&lab.roost(&["client", "show", "pc-01", "--json"]), NOTHING_RUNS);
    assert_eq!(json(&err)["kind"], "nothing-runs");
}

#[test]
fn clients_are_listed_as_they_were_left() {
    let lab = Lab::new();
    let (out, _) = expect(&lab.roost(&["client", "list"]), DONE);
    let expected = "NAME   GROUP  ADDRESS  IMAGE      ON HOST  NOW  LAST BOOT\n\
                    a-01   lab-a  -        debian-12  -        off  -\n\
                    pc-01  -      -        debian-12  -        -    -\n";
    assert_eq!(out, expected);
    assert!(!lab.state().exists(), "to list a lab that was never run makes no state");

    let lock = StateLock::acquire(&lab.state()).unwrap();
    leave_a_boot(&Store::open(&lab.state()).unwrap());
    fs::write(lab.state().join("disks/pc-01.vhd"), vec![1; 8_192]).unwrap();
    drop(lock);
    let (out, _) = expect(&lab.roost(&["client", "list"]), DONE);
    assert_eq!(
        out.lines().nth(2).unwrap().split_whitespace().collect::<Vec<_>>(),
        ["pc-01", "-", "10.0.0.7", "debian-12", "8.0", "KiB", "-", "script", "after", "2.5", "s"]
    );
    let (out, _) = expect(&lab.roost(&["client", "list", "--json"]), DONE);
    let clients: Vec<ClientReport> = serde_json::from_str(&out).unwrap();
    assert_eq!(clients[1].last_boot.as_ref().unwrap().stages[1].after_ms, 2_500);
    assert_eq!(clients[1].disk_bytes_on_host, Some(8_192));
}

fn leave_a_boot(store: &Store) {
    let mac = "52:54:00:aa:00:01".parse().unwrap();
    let name: roost::fleet::ClientName = "pc-01".parse().unwrap();
    let holder = Holder::Client(name.clone());
    let lease = Lease { holder, address: [10, 0, 0, 7].into(), mac, expires: Timestamp(9_000) };
    let event = |at, stage, detail: &str| {
        let client = Some(name.clone());
        Record::Event(Event { at: Timestamp(at), mac: Some(mac), client, stage, detail: detail.to_owned(), fact: None })
    };
    let offer = event(1_000, Stage::Offer, "10.0.0.7");
    let script = event(3_500, Stage::Script, "boot.ipxe");
    store.commit(&[Record::Lease(lease), offer, script]).unwrap();
}

#[test]
fn a_state_that_another_process_has_is_refused_with_its_number() {
    let lab = Lab::new();
    let _lock = StateLock::acquire(&lab.state()).unwrap();
    let disk = lab.raw_disk();
    let import = ["image", "import", disk.to_str().unwrap(), "--name", "other"];
    for verb in [&["client", "list"][..], &import] {
        let (_, err) = expect(&lab.roost(verb), REFUSED);
        assert!(err.contains(&format!("process {}", std::process::id())), "{err}");
    }
}

#[test]
fn a_store_of_a_newer_roost_is_refused() {
    let lab = Lab::new();
    drop(StateLock::acquire(&lab.state()).unwrap());
    drop(Store::open(&lab.state()).unwrap());
    let db = redb::Database::open(lab.state().join(roost::store::FILE)).unwrap();
    let write = db.begin_write().unwrap();
    let meta = redb::TableDefinition::<&str, u64>::new("meta");
    write.open_table(meta).unwrap().insert("schema", roost::store::SCHEMA + 1).unwrap();
    write.commit().unwrap();
    drop(db);
    let (_, err) = expect(&lab.roost(&["client", "list"]), REFUSED);
    assert!(err.contains("made by a newer roost"), "{err}");
}

#[test]
fn an_image_is_imported_once_and_listed() {
    let lab = Lab::new();
    let disk = lab.raw_disk();
    let before = fs::read(&disk).unwrap();
    let (out, _) = expect(&lab.roost(&["image", "list"]), DONE);
    assert!(out.contains("no images"), "{out}");

    let import = ["image", "import", disk.to_str().unwrap(), "--name", "debian-12"];
    let (out, _) = expect(&lab.roost(&import), DONE);
    assert!(out.starts_with("image debian-12, version 1: a disk of 1.0 MiB"), "{out}");
    assert_eq!(fs::read(&disk).unwrap(), before);

    let (_, err) = expect(&lab.roost(&import), REFUSED);
    assert!(err.contains("there is an image `debian-12` already"), "{err}");

    let other = ["image", "import", disk.to_str().unwrap(), "--name", "other", "--json"];
    let (out, _) = expect(&lab.roost(&other), DONE);
    let imported = json(&out);
    assert_eq!(imported["disk_size"], 1 << 20);
    assert!(Path::new(imported["path"].as_str().unwrap()).exists());

    let (out, _) = expect(&lab.roost(&["image", "list", "--json"]), DONE);
    let names: Vec<_> = json(&out).as_array().unwrap().iter().map(|image| image["name"].clone()).collect();
    assert_eq!(names, ["debian-12", "other"]);
    let (out, _) = expect(&lab.roost(&["image", "list"]), DONE);
    assert!(out.lines().nth(1).unwrap().starts_with("debian-12  1        1.0 MiB"), "{out}");
    assert_eq!(fs::read_dir(lab.state().join("images")).unwrap().count(), 2, "nothing else is left there");
}

#[test]
fn an_import_that_fails_leaves_nothing_behind() {
    let lab = Lab::new();
    let (_, err) = expect(&lab.roost(&["image", "import", "/nowhere/disk.raw", "--name", "x"]), FAILED);
    assert!(err.contains("/nowhere/disk.raw"), "{err}");
    assert!(!lab.state().exists(), "a slip of the pen makes no state");

    let empty = lab.folder.path().join("empty.raw");
    fs::write(&empty, "").unwrap();
    expect(&lab.roost(&["image", "import", empty.to_str().unwrap(), "--name", "x"]), FAILED);
    assert_eq!(fs::read_dir(lab.state().join("images")).unwrap().count(), 0);
}

#[test]
fn a_childs_chain_is_inspected_down_to_its_image() {
    let lab = Lab::new();
    let disk = lab.raw_disk();
    expect(&lab.roost(&["image", "import", disk.to_str().unwrap(), "--name", "debian-12"]), DONE);
    let master = Chain::open(&lab.state().join("images/debian-12/1.vhd"), Access::Read).unwrap();
    let child = lab.state().join("disks/pc-01.vhd");
    create_child(&child, &master, r"..\images\debian-12\1.vhd").unwrap();

    let (out, _) = expect(&roost(&["inspect", child.to_str().unwrap()]), DONE);
    assert!(out.starts_with(&format!("{}\n  format    VHD, differencing\n", child.display())), "{out}");
    assert!(out.ends_with("chain of 2 files, complete\n"), "{out}");
    let (out, _) = expect(&roost(&["inspect", child.to_str().unwrap(), "--json"]), DONE);
    let formats: Vec<_> =
        json(&out)["layers"].as_array().unwrap().iter().map(|layer| layer["format"].clone()).collect();
    assert_eq!(formats, ["vhd-differencing", "vhd-dynamic"]);

    // The client's disk is as large as its image, and takes next to nothing.
    let (out, _) = expect(&lab.roost(&["client", "list", "--json"]), DONE);
    let clients: Vec<ClientReport> = serde_json::from_str(&out).unwrap();
    assert_eq!(clients[1].disk_size, Some(1 << 20));
    assert!(clients[1].disk_bytes_on_host.is_some_and(|stored| stored < 64 << 10), "{clients:?}");
    // One that has not booted will be: the image says how large.
    assert_eq!((clients[0].disk_size, clients[0].disk_bytes_on_host), (Some(1 << 20), None));

    let packed = lab.folder.path().join("disk.gz");
    fs::write(&packed, b"\x1f\x8b\x08 and so on").unwrap();
    let (out, _) = expect(&roost(&["inspect", packed.to_str().unwrap()]), DONE);
    assert!(out.contains("compressed with gzip\n  help: unpack it first"), "{out}");
    expect(&roost(&["inspect", "/nowhere/disk.vhd"]), FAILED);
}

#[test]
fn the_state_folder_of_the_command_line_beats_that_of_the_file() {
    let lab = Lab::new();
    let elsewhere = lab.folder.path().join("elsewhere");
    let disk = lab.raw_disk();
    let state = ["--state", elsewhere.to_str().unwrap()];
    expect(&lab.roost(&[&state[..], &["image", "import", disk.to_str().unwrap(), "--name", "x"]].concat()), DONE);
    assert!(elsewhere.join("images/x/1.vhd").exists() && !lab.state().exists());
    // With it, images need no mapping file.
    let (out, _) =
        expect(&roost(&[&["--config", "/nowhere/roost.toml"], &state[..], &["image", "list"]].concat()), DONE);
    assert!(out.contains('x'), "{out}");
}

/// Serves the control socket of this lab as a running roost does, while `inside` runs.
fn while_running(lab: &Lab, inside: impl FnOnce()) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let _inside_runtime = runtime.enter();
    let config = roost::config::load(&lab.config()).unwrap().config;
    let lock = StateLock::acquire(&lab.state()).unwrap();
    let store = Store::open(&lab.state()).unwrap();
    leave_a_boot(&store);
    let reporter = Reporter::new(config.settings.clone(), Some(store), Arc::new(NoSessions));
    let app = Arc::new(App::new(config.settings, config.fleet, Recorder::detached(), String::new()));
    let keeper = Arc::new(Keeper::new(Arc::clone(&app), lab.config()));
    let socket = ControlSocket::bind(&lab.state(), &lock).unwrap();
    runtime.spawn(socket.serve(Control { app, keeper, reporter }, pending()));
    inside();
}

#[test]
fn the_running_process_is_asked_where_there_is_one() {
    let lab = Lab::new();
    while_running(&lab, || {
        let (out, _) = expect(&lab.roost(&["client", "list"]), DONE);
        assert!(out.contains("script after 2.5 s"), "{out}");

        let (out, _) = expect(&lab.roost(&["client", "show", "pc-01"]), DONE);
        assert!(
            out.contains("  address      10.0.0.7\n") && out.contains("   2.5 s  script      boot.ipxe\n"),
            "{out}"
        );
        let (out, _) = expect(&lab.roost(&["client", "show", "pc-01", "--json"]), DONE);
        assert_eq!(serde_json::from_str::<ClientReport>(&out).unwrap().name, "pc-01");

        let (_, err) = expect(&lab.roost(&["client", "show", "pc-02"]), REFUSED);
        assert!(err.contains("there is no client `pc-02`") && err.contains("did you mean `pc-01`?"), "{err}");

        let never = lab.folder.path().join("never.raw");
        let export = ["client", "export", "pc-01", never.to_str().unwrap()];
        let (_, err) = expect(&lab.roost(&export), REFUSED);
        assert!(err.contains("`pc-01` has no disk yet"), "{err}");

        // An import needs no lock beside it.
        let disk = lab.raw_disk();
        expect(&lab.roost(&["image", "import", disk.to_str().unwrap(), "--name", "debian-12"]), DONE);

        // A second one is refused.
        let (_, err) = expect(&lab.roost(&["run"]), REFUSED);
        assert!(err.contains(&format!("process {}", std::process::id())), "{err}");
    });
}

#[test]
fn a_reader_that_goes_away_is_no_failure() {
    let lab = Lab::new();
    let config = lab.config();
    let mut listing = Command::new(env!("CARGO_BIN_EXE_roost"));
    listing.args(["--config", config.to_str().unwrap(), "client", "list"]);
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let status = listing.stdout(writer).status().unwrap();
    assert_eq!(status.code(), Some(DONE));
}

#[test]
fn errors_are_json_where_json_is_asked_for() {
    let (_, err) = expect(&roost(&["--json", "--config", "/nowhere/roost.toml", "client", "list"]), CONFIGURATION);
    let error = json(&err);
    assert_eq!(error["kind"], "configuration");
    assert!(error["error"].as_str().unwrap().contains("/nowhere/roost.toml"));
    assert!(error["help"].is_array());
}

#[test]
fn reset_makes_a_clean_disk_and_asks_before_it_throws_away_what_is_kept() {
    let lab = Lab::new();
    let raw = lab.raw_disk();
    expect(&lab.roost(&["image", "import", raw.to_str().unwrap(), "--name", "debian-12"]), DONE);
    let (_, err) = expect(&lab.roost(&["reset", "pc-77"]), REFUSED);
    assert!(err.contains("there is no client `pc-77`") && err.contains("client list"), "{err}");
    let (out, _) = expect(&lab.roost(&["reset", "pc-01"]), DONE);
    assert_eq!(out, "pc-01 has no disk yet; its first login makes one\n");

    let disk = lab.state().join("disks/pc-01.vhd");
    let previous = lab.state().join("disks/pc-01.vhd.previous");
    let master = || Chain::open(&lab.state().join("images/debian-12/1.vhd"), Access::Read).unwrap();
    create_child(&disk, &master(), r"..\images\debian-12\1.vhd").unwrap();
    let id = |path: &Path| Chain::open(path, Access::Peek).unwrap().unique_id().unwrap();
    let old = id(&disk);
    for arguments in [&["reset", "pc-01"][..], &["reset", "pc-01", "--json"]] {
        let (_, err) = expect(&lab.roost(arguments), REFUSED);
        assert!(err.contains("`pc-01` keeps its disk") && err.contains("roost reset pc-01 --yes"), "{err}");
    }
    assert_eq!(id(&disk), old);
    let (out, _) = expect(&lab.roost(&["reset", "pc-01", "--yes"]), DONE);
    let (new, kept) = (disk.display(), previous.display());
    assert_eq!(out, format!("pc-01: {new} is new; the one before it is {kept} until the next login\n"));
    assert!(id(&disk) != old && id(&previous) == old);

    // By the running process.
    fs::remove_file(&previous).unwrap();
    while_running(&lab, || {
        let old = id(&disk);
        expect(&lab.roost(&["reset", "pc-01"]), REFUSED);
        let (out, _) = expect(&lab.roost(&["reset", "pc-01", "--yes", "--json"]), DONE);
        let report = json(&out);
        assert_eq!(report["made_anew"], true);
        assert_eq!(report["previous_disk"], previous.to_str().unwrap());
        assert!(id(&disk) != old && id(&previous) == old);
        let (out, _) = expect(&lab.roost(&["client", "show", "pc-01"]), DONE);
        assert!(out.contains(&format!("the one before it is {kept} until the next login\n")), "{out}");
        expect(&lab.roost(&["reset", "pc-77"]), REFUSED);
    });

    // A lab whose disks are reset anyway is not asked.
    let file = fs::read_to_string(lab.config()).unwrap();
    fs::write(lab.config(), file.replace("[defaults]\n", "[defaults]\ndisk = \"reset\"\n")).unwrap();
    expect(&lab.roost(&["reset", "pc-01"]), DONE);

    let _held = StateLock::acquire(&lab.state()).unwrap();
    let (_, err) = expect(&lab.roost(&["reset", "pc-01"]), REFUSED);
    assert!(err.contains("is in use by process"), "{err}");
}

#[test]
fn a_data_disk_is_shown_checked_verified_and_exported() {
    let lab = Lab::new();
    let raw = lab.raw_disk();
    expect(&lab.roost(&["image", "import", raw.to_str().unwrap(), "--name", "debian-12"]), DONE);
    let with = |data: &str| {
        let file = fs::read_to_string(lab.config()).unwrap();
        let file: String =
            file.lines().filter(|line| !line.starts_with("data")).map(|line| format!("{line}\n")).collect();
        fs::write(lab.config(), file.replace("[defaults]\n", &format!("[defaults]\n{data}"))).unwrap();
    };
    let export = |into: &str| {
        let into = lab.folder.path().join(into);
        let _ = fs::remove_file(&into);
        (lab.roost(&["client", "export", "pc-01", into.to_str().unwrap(), "--data"]), into)
    };
    let (_, err) = expect(&export("never.raw").0, REFUSED);
    assert!(err.contains("`pc-01` has no data disk"), "{err}");

    with("data = \"8M\"\n");
    expect(&lab.roost(&["check"]), DONE);
    let path = lab.state().join("disks/pc-01.data.vhdx");
    let disk = DataDisk::create(&path, 8 << 20).and_then(|()| DataDisk::open(&path)).unwrap();
    disk.write(5 << 20, &[IoSlice::new(&[9; 4096])]).unwrap();
    // As a process that was killed leaves it.
    let left = fs::read(&path).unwrap();
    drop(disk);
    fs::write(&path, left).unwrap();
    let mut must = vec![0; 8 << 20];
    must[5 << 20..(5 << 20) + 4096].fill(9);
    let (done, into) = export("data.raw");
    expect(&done, DONE);
    assert!(fs::read(&into).unwrap() == must);
    let (out, _) = expect(&lab.roost(&["verify", "--all"]), DONE);
    assert!(out.contains("pc-01.data.vhdx: sound"), "{out}");
    expect(&lab.roost(&["inspect", path.to_str().unwrap()]), DONE);

    while_running(&lab, || {
        let (out, _) = expect(&lab.roost(&["client", "show", "pc-01"]), DONE);
        assert!(out.contains("  data disk    ") && out.contains("on the host for a disk of 8.0 MiB"), "{out}");
        let (out, _) = expect(&lab.roost(&["client", "list", "--json"]), DONE);
        assert!(out.contains("\"wanted\": 8388608") && out.contains("pc-01.data.vhdx"), "{out}");
        let (done, into) = export("data.raw");
        expect(&done, DONE);
        assert!(fs::read(&into).unwrap() == must);
    });

    // Smaller, or none: said, and nothing is lost.
    with("data = \"4M\"\n");
    let (out, _) = expect(&lab.roost(&["check"]), CONFIGURATION);
    assert!(out.contains("the data disk of `pc-01` has 8388608 bytes, and does not shrink to 4194304"), "{out}");
    with("");
    let (out, _) = expect(&lab.roost(&["check"]), DONE);
    assert!(out.contains("warning: `pc-01` has a data disk of 8388608 bytes, which is not served"), "{out}");
    while_running(&lab, || {
        let (out, _) = expect(&lab.roost(&["client", "show", "pc-01"]), DONE);
        assert!(out.contains("it is not served, for `data` is not in roost.toml"), "{out}");
    });
    let (done, into) = export("data.raw");
    expect(&done, DONE);
    assert!(fs::read(&into).unwrap() == must);
}
