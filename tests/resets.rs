//! Where a boot begins and what becomes of the disk, over real sockets on loopback: scripts by HTTP, disks by iSCSI.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

#[expect(dead_code, reason = "other tests ask more of it")]
mod initiator;

use std::fs;
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use initiator::{Initiator, Isid};
use roost::app::App;
use roost::app::bootfiles::{BootContext, BootFiles};
use roost::app::boots::ResetError;
use roost::app::recorder::Recorder;
use roost::config::{DhcpMode, Settings};
use roost::disk::checksum::record_path;
use roost::disk::import::import;
use roost::disk::{Format, names};
use roost::fleet::{Client, ClientName, DiskPolicy, Fleet, Stage};
use roost::http::boot::{BootServer, router};
use roost::net::iscsi::Server;
use roost::script;
use socket2::{Domain, Socket, Type};
use tempfile::TempDir;
use tokio::runtime::Runtime;

const PREFIX: &str = "iqn.2026-11.internal.roost";
const HOME: Ipv4Addr = Ipv4Addr::LOCALHOST;
const ELSEWHERE: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 2);
const MAC: &str = "52:54:00:aa:00:01";
const CLEAN: [u8; 512] = [0x11; 512];
const DIRTY: [u8; 512] = [0x77; 512];

/// A lab of one client, `pc-01` at [`HOME`].
struct Lab {
    state: TempDir,
    format: Format,
    life: Option<Life>,
}

/// One life of the process.
struct Life {
    runtime: Runtime,
    app: Arc<App>,
    iscsi: SocketAddr,
    http: SocketAddr,
}

impl Lab {
    fn new(policy: DiskPolicy) -> Self {
        Self::of(policy, Format::Vhd)
    }

    /// One for each format that the image, and with it the disk, may have.
    fn of_each_format(policy: DiskPolicy) -> impl Iterator<Item = Self> {
        [Format::Vhd, Format::Vhdx].into_iter().map(move |format| Self::of(policy, format))
    }

    fn of(policy: DiskPolicy, format: Format) -> Self {
        let state = tempfile::tempdir().unwrap();
        for folder in ["images/linux", "disks", "pending", "loaders"] {
            fs::create_dir_all(state.path().join(folder)).unwrap();
        }
        let raw = state.path().join("linux.raw");
        fs::write(&raw, CLEAN.repeat(8192)).unwrap();
        import(&raw, &names::path(&state.path().join("images/linux/1"), format), &mut |_, _| ()).unwrap();
        fs::write(state.path().join("loaders/undionly.kpxe"), b"loader").unwrap();
        let mut efi = vec![0; 0x46];
        efi[..2].copy_from_slice(b"MZ");
        efi[0x3c] = 0x40;
        efi[0x40..].copy_from_slice(b"PE\0\0\x64\x86");
        fs::write(state.path().join("loaders/snponly.efi"), efi).unwrap();
        let life = Some(Life::begin(state.path(), policy, "this-boot"));
        Self { state, format, life }
    }

    /// The process dies without a word, and another begins.
    fn begin_again(&mut self, policy: DiskPolicy, boot_id: &str) {
        let Life { runtime, app, .. } = self.life.take().unwrap();
        drop(app);
        runtime.shutdown_timeout(Duration::from_secs(10));
        self.life = Some(Life::begin(self.state.path(), policy, boot_id));
    }

    fn life(&self) -> &Life {
        self.life.as_ref().unwrap()
    }

    fn connect(&self) -> Initiator {
        Initiator::connect(HOME, self.life().iscsi)
    }

    fn log_in(&self, isid: Isid) -> Initiator {
        let mut session = self.connect();
        assert_eq!(session.log_in(&format!("{PREFIX}:client.pc-01"), &format!("{PREFIX}:pc-01"), isid), 0);
        session.settle();
        session
    }

    /// Fetches the client's script; the status.
    fn fetch(&self, method: &str, from: Ipv4Addr) -> u16 {
        fetch(self.life().http, method, from)
    }

    /// What the last fetch of the script said of the disk.
    fn said(&self) -> Option<String> {
        let events = self.life().app.recorder.events();
        let last = events.into_iter().rfind(|event| event.stage == Stage::Script).unwrap();
        last.detail.split_once("; ").map(|(_, disk)| disk.to_owned())
    }

    fn refusal(&self) -> String {
        let events = self.life().app.recorder.events();
        events.into_iter().rfind(|event| event.stage == Stage::Refused).unwrap().detail
    }

    fn sessions(&self) -> usize {
        self.life().app.sessions.of(&name()).len()
    }

    fn disk(&self) -> PathBuf {
        names::path(&self.state.path().join("disks/pc-01"), self.format)
    }

    fn previous(&self) -> PathBuf {
        self.disk().with_added_extension("previous")
    }
}

impl Life {
    fn begin(state: &Path, policy: DiskPolicy, boot_id: &str) -> Self {
        Self::begin_with(state, policy, boot_id, false)
    }

    fn begin_with(state: &Path, policy: DiskPolicy, boot_id: &str, chap: bool) -> Self {
        let settings = Settings {
            interfaces: Vec::new(),
            dhcp: DhcpMode::Off,
            pool: None,
            pools: Vec::new(),
            state: state.to_owned(),
            iqn: PREFIX.to_owned(),
            loader_dir: None,
            loaders: Default::default(),
            files: None,
            tftp_single_port: false,
            ipv6_answer: true,
            dhcp_probe: true,
            ipv6_boot: None,
        };
        let client = Client {
            macs: vec![MAC.parse().unwrap()],
            ip: Some(HOME),
            disk: policy,
            chap,
            ..Client::new(name(), "linux".parse().unwrap())
        };
        let fleet = Fleet::new([client]).unwrap();
        let app = Arc::new(App::new(settings, fleet, Recorder::detached(), boot_id.to_owned()));
        let runtime = Runtime::new().unwrap();
        let (iscsi, http) = runtime.block_on(async {
            let target = Server::bind((HOME, 0).into(), Arc::clone(&app)).await.unwrap();
            let web = BootServer::bind(SocketAddrV4::new(HOME, 0)).await.unwrap();
            let (iscsi, http) = (target.address().unwrap(), web.address());
            let (fleet, boots) = (Arc::clone(&app), Arc::clone(&app));
            let at = |address: SocketAddr| SocketAddrV4::new(HOME, address.port());
            let boot = BootContext {
                files: BootFiles::load(Some(&state.join("loaders"))).unwrap(),
                fleet: Box::new(move || fleet.fleet()),
                server: script::Server { iscsi: at(iscsi), http: at(http), naming: app.naming.clone() },
                recorder: app.recorder.clone(),
                resolver: Box::new(|_| None),
                begin: Box::new(move |mac, from| {
                    let app = Arc::clone(&boots);
                    Box::pin(async move { app.begin_boot_of(mac, from, None).await })
                }),
            };
            tokio::spawn(target.run(std::future::pending()));
            tokio::spawn(web.run(router(Arc::new(boot)), std::future::pending()));
            (iscsi, http)
        });
        Self { runtime, app, iscsi, http }
    }
}

fn name() -> ClientName {
    "pc-01".parse().unwrap()
}

fn fetch(http: SocketAddr, method: &str, from: Ipv4Addr) -> u16 {
    fetch_all(http, method, from).split(' ').nth(1).unwrap().parse().unwrap()
}

fn fetch_all(http: SocketAddr, method: &str, from: Ipv4Addr) -> String {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket.bind(&SocketAddr::new(IpAddr::V4(from), 0).into()).unwrap();
    socket.connect(&http.into()).unwrap();
    let mut stream = TcpStream::from(socket);
    stream.set_read_timeout(Some(Duration::from_secs(15))).unwrap();
    let request = format!("{method} /boot.ipxe?mac={MAC} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

/// A machine writes to its disk and loses its power: its session stays, and answers nothing.
fn wrote_and_lost_power(lab: &Lab) -> Initiator {
    let mut session = lab.log_in(Isid::system(1));
    session.write(5, &DIRTY);
    session.flush();
    session
}

#[test]
fn a_reset_disk_is_clean_at_each_boot_and_the_old_one_stays_until_the_first_login() {
    for lab in Lab::of_each_format(DiskPolicy::Reset) {
        assert_eq!(lab.fetch("GET", HOME), 200);
        assert_eq!(lab.said(), None, "there was no disk yet");
        for boot in 0..2 {
            let mut loader = lab.log_in(Isid::loader(1));
            assert!(!lab.previous().exists(), "removed at the first login");
            assert_eq!(loader.read(5, 1), CLEAN, "boot {boot}");
            let mut dead = wrote_and_lost_power(&lab);
            // (The loader's session was ended by the probe, or is dead now too.)
            let begun = Instant::now();
            assert_eq!(lab.fetch("GET", HOME), 200);
            let waited = begun.elapsed();
            assert!((Duration::from_millis(900)..Duration::from_secs(5)).contains(&waited), "one probe: {waited:?}");
            assert_eq!(lab.said().as_deref(), Some("disk made anew"));
            assert!(dead.is_closed() && lab.sessions() == 0, "the dead sessions were ended first");
            assert!(lab.previous().exists());
        }
    }
}

#[test]
fn a_system_that_answers_keeps_its_disk_whatever_fetches_its_script() {
    let lab = Lab::new(DiskPolicy::Reset);
    let mut system = wrote_and_lost_power(&lab);
    let http = lab.life().http;
    let fetching = thread::spawn(move || fetch(http, "GET", HOME));
    system.answer_a_ping();
    assert_eq!(fetching.join().unwrap(), 200);
    assert_eq!(lab.said().as_deref(), Some("disk kept: a system is running on it"));
    assert_eq!((system.read(5, 1), lab.sessions()), (DIRTY.to_vec(), 1));
    assert!(!lab.previous().exists());

    // Nor is its disk reset on request.
    let app = Arc::clone(&lab.life().app);
    let runtime = lab.life().runtime.handle().clone();
    let resetting = thread::spawn(move || {
        let fleet = app.fleet();
        runtime.block_on(app.reset_disk(fleet.client(&name()).unwrap()))
    });
    system.answer_a_ping();
    let refused = resetting.join().unwrap().unwrap_err();
    assert!(matches!(refused, ResetError::Running { .. }));
    assert_eq!(
        refused.to_string(),
        format!("the disk of `pc-01` is in use: {PREFIX}:client.pc-01 answers from 127.0.0.1")
    );
    assert_eq!(system.read(5, 1), DIRTY);
}

#[test]
fn nothing_but_the_machines_own_fetch_begins_a_boot() {
    let lab = Lab::new(DiskPolicy::Reset);
    drop(wrote_and_lost_power(&lab));
    assert_eq!(lab.fetch("HEAD", HOME), 200);
    assert_eq!(lab.fetch("GET", ELSEWHERE), 200);
    assert_eq!(lab.said().as_deref(), Some("disk kept: fetched from an address that is not known to be the client's"));
    // A login, as after a fault of the network, is no boot either.
    let mut again = lab.log_in(Isid::system(2));
    assert_eq!(again.read(5, 1), DIRTY);
}

#[test]
fn a_kept_disk_is_as_it_was_and_its_dead_sessions_are_ended() {
    let lab = Lab::new(DiskPolicy::Keep);
    let mut dead = wrote_and_lost_power(&lab);
    assert_eq!(lab.fetch("GET", HOME), 200);
    assert_eq!(lab.said(), None);
    assert!(dead.is_closed() && lab.sessions() == 0);
    let begun = Instant::now();
    assert_eq!(lab.log_in(Isid::loader(1)).read(5, 1), DIRTY);
    assert!(begun.elapsed() < Duration::from_millis(800), "its login has nobody left to ask");

    // On request it is made anew all the same.
    let app = &lab.life().app;
    let report = lab.life().runtime.block_on(app.reset_disk(app.fleet().client(&name()).unwrap())).unwrap();
    assert_eq!((report.made_anew, report.previous_disk), (true, Some(lab.previous())));
    assert_eq!(lab.log_in(Isid::loader(1)).read(5, 1), CLEAN);
}

#[test]
fn fetches_and_logins_of_one_moment_do_not_tread_on_each_other() {
    let lab = Lab::new(DiskPolicy::Reset);
    for _ in 0..5 {
        drop(wrote_and_lost_power(&lab));
        let (http, iscsi) = (lab.life().http, lab.life().iscsi);
        let fetches: Vec<_> = (0..4).map(|_| thread::spawn(move || fetch(http, "GET", HOME))).collect();
        let entering = thread::spawn(move || {
            let mut session = Initiator::connect(HOME, iscsi);
            let (own, target) = (format!("{PREFIX}:client.pc-01"), format!("{PREFIX}:pc-01"));
            assert_eq!(session.log_in(&own, &target, Isid::loader(1)), 0);
        });
        for fetch in fetches {
            assert_eq!(fetch.join().unwrap(), 200);
        }
        entering.join().unwrap();
        assert_eq!(lab.fetch("GET", HOME), 200);
        assert_eq!(lab.log_in(Isid::loader(1)).read(5, 1), CLEAN);
    }
}

#[test]
fn what_was_written_outlives_the_process_and_after_the_servers_power_nobody_logs_in_before_a_boot() {
    for mut lab in Lab::of_each_format(DiskPolicy::Reset) {
        drop(wrote_and_lost_power(&lab));
        lab.begin_again(DiskPolicy::Reset, "this-boot");
        assert_eq!(lab.log_in(Isid::system(1)).read(5, 1), DIRTY, "a system logs in anew after a restart");

        lab.begin_again(DiskPolicy::Reset, "next-boot");
        let (own, target) = (format!("{PREFIX}:client.pc-01"), format!("{PREFIX}:pc-01"));
        assert_eq!(lab.connect().log_in(&own, &target, Isid::system(1)), 0x0300);
        let why = lab.refusal();
        assert!(why.contains("a reset disk of an earlier boot of the server"), "{why}");
        assert_eq!(lab.fetch("GET", HOME), 200);
        assert_eq!(lab.log_in(Isid::loader(1)).read(5, 1), CLEAN);
    }
}

#[test]
fn a_disk_changes_its_policy_without_losing_what_it_promised() {
    for mut lab in Lab::of_each_format(DiskPolicy::Reset) {
        drop(wrote_and_lost_power(&lab));
        // reset -> keep: what is on it stays, and outlives the power from the first login on.
        lab.begin_again(DiskPolicy::Keep, "this-boot");
        assert_eq!(lab.fetch("GET", HOME), 200);
        assert_eq!(lab.log_in(Isid::loader(1)).read(5, 1), DIRTY);
        lab.begin_again(DiskPolicy::Keep, "next-boot");
        assert_eq!(lab.log_in(Isid::loader(1)).read(5, 1), DIRTY);
        // keep -> reset: a running system is left alone, the next boot is clean.
        lab.begin_again(DiskPolicy::Reset, "next-boot");
        assert_eq!(lab.log_in(Isid::system(1)).read(5, 1), DIRTY);
        assert_eq!(lab.fetch("GET", HOME), 200);
        assert_eq!(lab.log_in(Isid::loader(1)).read(5, 1), CLEAN);
        // A disk that was lost with the power is made anew even where it is kept from now on.
        lab.begin_again(DiskPolicy::Keep, "third-boot");
        assert_eq!(lab.fetch("GET", HOME), 200);
        assert_eq!(lab.said().as_deref(), Some("disk made anew: what it held was lost with the server's power"));
        assert_eq!(lab.log_in(Isid::loader(1)).read(5, 1), CLEAN);
    }
}

#[test]
fn a_machine_whose_disk_cannot_be_made_anew_gets_no_script() {
    let lab = Lab::new(DiskPolicy::Reset);
    drop(wrote_and_lost_power(&lab));
    fs::remove_file(lab.state.path().join("images/linux/1.vhd")).unwrap();
    fs::remove_dir(lab.state.path().join("images/linux")).unwrap();
    // A folder where the new file is to be: it cannot be made whether the master is still open or not.
    fs::create_dir(lab.state.path().join("disks/pc-01.vhd.next")).unwrap();
    assert_eq!(lab.fetch("GET", HOME), 503);
    let why = lab.refusal();
    assert!(why.starts_with("its boot script: its disk cannot be made anew: "), "{why}");
}

#[test]
fn a_secret_is_told_in_the_script_to_the_machines_own_address_alone() {
    let mut lab = Lab::new(DiskPolicy::Keep);
    let Life { runtime, app, .. } = lab.life.take().unwrap();
    drop(app);
    runtime.shutdown_timeout(Duration::from_secs(10));
    lab.life = Some(Life::begin_with(lab.state.path(), DiskPolicy::Keep, "this-boot", true));
    let script = |method, from| fetch_all(lab.life().http, method, from);
    for (method, from) in [("GET", ELSEWHERE), ("HEAD", HOME), ("HEAD", ELSEWHERE)] {
        let told = script(method, from);
        assert!(told.starts_with("HTTP/1.1 200 ") && !told.contains("password"), "{method} {from}: {told}");
    }
    assert_eq!(lab.life().app.secrets.credentials(&name()), None, "none is made for strangers");
    let told = script("GET", HOME);
    let known = lab.life().app.secrets.credentials(&name()).unwrap();
    for line in [
        "set username pc-01".to_owned(),
        format!("set password {}", known.secret),
        "set reverse-username roost".to_owned(),
        format!("set reverse-password {}", known.target_secret),
    ] {
        assert!(told.contains(&format!("\n{line}\n")), "{line}: {told}");
    }
    let (head, body) = told.split_once("\r\n\r\n").unwrap();
    assert!(head.to_ascii_lowercase().contains(&format!("content-length: {}\r\n", body.len())), "{head}");
    assert_eq!(script("GET", HOME), told, "the same at each boot");
    let events = lab.life().app.recorder.events();
    assert!(events.iter().all(|event| !event.detail.contains(&known.secret)));
}

#[test]
fn an_image_of_the_other_format_is_taken_up_by_a_new_disk_and_the_old_one_is_kept_until_then() {
    for (old, new) in [(Format::Vhd, Format::Vhdx), (Format::Vhdx, Format::Vhd)] {
        let mut lab = Lab::of(DiskPolicy::Keep, old);
        drop(wrote_and_lost_power(&lab));
        let app = Arc::clone(&lab.life().app);
        let its = |app: &App| app.fleet().client(&name()).unwrap().clone();
        let (client, runtime) = (its(&app), lab.life().runtime.handle().clone());
        runtime.block_on(app.checkpoint(&client, "before".to_owned())).unwrap();
        drop(app);

        // The image is imported anew, of other contents.
        let images = lab.state.path().join("images/linux");
        fs::remove_file(names::path(&images.join("1"), old)).unwrap();
        let raw = lab.state.path().join("other.raw");
        fs::write(&raw, [0x22; 512].repeat(8192)).unwrap();
        import(&raw, &names::path(&images.join("1"), new), &mut |_, _| ()).unwrap();
        lab.begin_again(DiskPolicy::Keep, "this-boot");
        let (own, target) = (format!("{PREFIX}:client.pc-01"), format!("{PREFIX}:pc-01"));
        assert_eq!(lab.fetch("GET", HOME), 200);
        assert_eq!(lab.connect().log_in(&own, &target, Isid::loader(1)), 0x0300);
        let why = lab.refusal();
        assert!(why.contains("give up what the disk holds: roost reset pc-01"), "{why}");
        assert!(lab.disk().exists(), "as for every other image");

        let app = Arc::clone(&lab.life().app);
        let report = lab.life().runtime.block_on(app.reset_disk(&its(&app))).unwrap();
        let (before, previous) = (lab.disk(), lab.previous());
        lab.format = new;
        assert_eq!((report.disk_path, report.previous_disk), (lab.disk(), Some(previous.clone())));
        assert!(!before.exists() && previous.exists(), "a client has one disk");
        assert_eq!(lab.log_in(Isid::loader(1)).read(5, 1), [0x22; 512]);
        assert!(!previous.exists(), "gone with the login");

        // A checkpoint of the old one is listed, refused, and can be deleted.
        let client = its(&app);
        let listed = lab.life().runtime.block_on(app.checkpoints(&client)).unwrap();
        assert!(matches!(&listed[..], [one] if one.path.exists() && one.path.extension() == before.extension()));
        let refused = lab.life().runtime.block_on(app.roll_back(&client, Some(1))).unwrap_err();
        assert!(refused.to_string().contains("checkpoint 1 does not stand on the client's image"), "{refused}");
        lab.life().runtime.block_on(app.delete_checkpoint(&client, 1)).unwrap();
        wait_until("its file is gone", || !listed[0].path.exists());
        assert_eq!(lab.log_in(Isid::loader(1)).read(5, 1), [0x22; 512]);
    }
}

/// Until this holds, which it does within moments.
fn wait_until(what: &str, mut holds: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !holds() {
        assert!(begun.elapsed() < Duration::from_secs(20), "waited in vain until {what}");
        thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn a_changed_master_stops_its_children_from_being_served_until_it_is_put_right() {
    use std::os::unix::fs::{FileExt, PermissionsExt};
    let lab = Lab::new(DiskPolicy::Keep);
    let app = Arc::clone(&lab.life().app);
    let watching = Arc::clone(&app);
    lab.life().runtime.spawn(async move { roost::app::scrub::run(&watching).await });
    let master = lab.state.path().join("images/linux/1.vhd");
    wait_until("a master without a checksum has one", || record_path(&master).exists());
    let mut session = wrote_and_lost_power(&lab);
    let problem = || roost::app::report::image_problem(lab.state.path(), &"linux".parse().unwrap());
    assert_eq!(problem(), None);

    // One byte of data, and somebody logs in.
    fs::set_permissions(&master, fs::Permissions::from_mode(0o600)).unwrap();
    let file = fs::File::options().write(true).open(&master).unwrap();
    let at = fs::read(&master).unwrap().windows(512).position(|sector| sector == CLEAN).unwrap() as u64;
    file.write_all_at(&[0x12], at).unwrap();
    let (own, target) = (format!("{PREFIX}:client.pc-01"), format!("{PREFIX}:pc-01"));
    assert_eq!(lab.connect().log_in(&own, &target, Isid::loader(1)), 0x0300);
    wait_until("its hash is known", || problem().is_some_and(|why| why.contains("its BLAKE3 was")));
    wait_until("the sessions are ended", || lab.sessions() == 0);
    assert!(session.is_closed());
    assert_eq!(lab.connect().log_in(&own, &target, Isid::loader(1)), 0x0300);
    let why = lab.refusal();
    assert!(why.starts_with("image `linux` is not what was imported: its BLAKE3 was "), "{why}");
    let reset = lab.life().runtime.block_on(app.reset_disk(app.fleet().client(&name()).unwrap())).unwrap_err();
    assert!(reset.to_string().contains("is not what was imported"), "{reset}");

    // Put right, it is served again, and what its client wrote is there.
    file.write_all_at(&CLEAN[..1], at).unwrap();
    wait_until("it is served again", || lab.connect().log_in(&own, &target, Isid::loader(1)) == 0);
    assert_eq!(problem(), None);
    assert_eq!(lab.log_in(Isid::loader(1)).read(5, 1), DIRTY);
}

#[test]
fn a_disk_is_let_go_of_when_nobody_is_on_it_and_whole() {
    for lab in Lab::of_each_format(DiskPolicy::Keep) {
        use roost::disk::file::Access;
        use roost::disk::{Chain, Disk};
        let app = Arc::clone(&lab.life().app);
        let release = |app: Arc<App>, runtime: &tokio::runtime::Handle| {
            let fleet = app.fleet();
            runtime.block_on(app.release_disk(fleet.client(&name()).unwrap()))
        };
        let runtime = lab.life().runtime.handle().clone();
        assert_eq!(release(Arc::clone(&app), &runtime).unwrap().disk_path, None);

        let mut system = lab.log_in(Isid::system(1));
        system.write(5, &DIRTY);
        let (asking, handle) = (Arc::clone(&app), runtime.clone());
        let refused = thread::spawn(move || release(asking, &handle));
        system.answer_a_ping();
        assert!(matches!(refused.join().unwrap(), Err(ResetError::Running { .. })));

        // Its machine loses its power; nothing was flushed.
        let disk = release(Arc::clone(&app), &runtime).unwrap().disk_path.unwrap();
        assert!(system.is_closed());
        let chain = Chain::open(&disk, Access::Read).unwrap();
        let mut sector = [0; 512];
        chain.read(5 * 512, &mut [std::io::IoSliceMut::new(&mut sector)]).unwrap();
        assert_eq!(sector, DIRTY);
        let (own, target) = (format!("{PREFIX}:client.pc-01"), format!("{PREFIX}:pc-01"));
        assert_eq!(lab.connect().log_in(&own, &target, Isid::loader(1)), 0x0300);
        assert!(lab.refusal().contains("in use by another process"), "{}", lab.refusal());
        drop(chain);
        assert_eq!(lab.log_in(Isid::loader(1)).read(5, 1), DIRTY);
    }
}
