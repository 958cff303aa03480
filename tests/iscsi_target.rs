//! The iSCSI target over real sockets on loopback, against an initiator of a few lines that sends what it is told to.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

#[expect(dead_code, reason = "other tests ask more of it")]
mod initiator;

use std::fmt::Debug;
use std::fs;
use std::io::{IoSlice, IoSliceMut};
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use initiator::{Answer, CONFLICT, Initiator, Isid, READ, cdb_read, status_of};
use roost::app::App;
use roost::app::disks::ClientDisk;
use roost::app::recorder::Recorder;
use roost::config::{DhcpMode, Settings};
use roost::disk::file::Access;
use roost::disk::import::import;
use roost::disk::vhdx::{self, Spec};
use roost::disk::{Chain, Disk, DiskError, PassOn};
use roost::fleet::{Client, ClientName, Event, Fact, Fleet, Initiators, Stage};
use roost::iscsi::chap::{Algorithm, hexadecimal};
use roost::net::iscsi::{Limits, Server};
use tempfile::TempDir;
use tokio::runtime::Runtime;
use tokio::sync::watch;

const PREFIX: &str = "iqn.2026-11.internal.roost";
const HOME: Ipv4Addr = Ipv4Addr::LOCALHOST;
const ELSEWHERE: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 2);
const ADMIN: &str = "iqn.2026-11.internal.roost:admin";
const HELPER: &str = "iqn.2026-11.internal.roost:helper";

/// The master's size, and what its block `n` is full of.
const MASTER: usize = 4 << 20;

/// The size of the data disk, and how far it may grow on the host, with the first one.
const DATA: u64 = 5 << 30;
const DATA_LIMIT: u64 = 8 << 20;

fn master_block(n: usize) -> Vec<u8> {
    vec![u8::try_from(n % 251).unwrap(); 512]
}

/// A target with seven clients: `pc-01` at [`HOME`], `pc-02` that lets [`ADMIN`] in, `pc-03` that is switched off, `pc-04` whose
/// disk is read-only, `pc-05` that must pass CHAP, `pc-06` with a limit of 2 MiB, and `pc-07` with a data disk of [`DATA`],
/// a limit of [`DATA_LIMIT`], and [`HELPER`].
struct Lab {
    state: TempDir,
    life: Option<Life>,
}

/// One life of the process.
struct Life {
    runtime: Runtime,
    app: Arc<App>,
    address: SocketAddr,
    stop: watch::Sender<()>,
}

fn client(number: u8, initiators: Initiators, off: bool) -> Client {
    Client {
        macs: vec![format!("52:54:00:aa:00:0{number}").parse().unwrap()],
        ip: Some(HOME),
        initiators,
        off,
        ..Client::new(format!("pc-0{number}").parse().unwrap(), "linux".parse().unwrap())
    }
}

impl Lab {
    fn new() -> Self {
        Self::with(Limits::default())
    }

    fn with(limits: Limits) -> Self {
        Self::of(limits, |folder| {
            let raw = folder.join("raw");
            fs::write(&raw, (0..MASTER / 512).flat_map(master_block).collect::<Vec<u8>>()).unwrap();
            import(&raw, &folder.join("1.vhd"), &mut |_, _| ()).unwrap();
        })
    }

    /// With the image that this makes in its folder.
    fn of(limits: Limits, image: impl FnOnce(&Path)) -> Self {
        let state = tempfile::tempdir().unwrap();
        for folder in ["images/linux", "disks", "pending"] {
            fs::create_dir_all(state.path().join(folder)).unwrap();
        }
        image(&state.path().join("images/linux"));
        let life = Some(Life::begin(state.path(), limits));
        Self { state, life }
    }

    fn life(&self) -> &Life {
        self.life.as_ref().unwrap()
    }

    fn app(&self) -> &Arc<App> {
        &self.life().app
    }

    /// The process dies without a word, and another begins.
    fn die_and_begin_again(&mut self) {
        let Life { runtime, app, .. } = self.life.take().unwrap();
        drop(app);
        // Tasks are dropped where they stand, and threads that wait for a disk are waited for.
        runtime.shutdown_timeout(Duration::from_secs(10));
        self.life = Some(Life::begin(self.state.path(), Limits::default()));
    }

    fn connect(&self, from: Ipv4Addr) -> Initiator {
        Initiator::connect(from, self.life().address)
    }

    /// A session of this client's own machine.
    fn log_in(&self, number: u8, isid: Isid) -> Initiator {
        let (initiator, target) = names(number);
        let mut session = self.connect(HOME);
        assert_eq!(session.log_in(&initiator, &target, isid), 0);
        session
    }

    fn refused(&self, from: Ipv4Addr, initiator: &str, target: &str) -> u16 {
        self.connect(from).log_in(initiator, target, Isid::system(1))
    }

    /// Gives a client a disk that holds what is written to it.
    fn gate(&self, number: u8) -> Arc<Gate> {
        let gate = Arc::<Gate>::default();
        let (_, target) = names(number);
        let _: Arc<ClientDisk> = self.app().disks.put(name(number), &target, gate.clone());
        gate
    }

    fn events(&self, stage: Stage) -> Vec<Event> {
        self.app().recorder.events().into_iter().filter(|event| event.stage == stage).collect()
    }
}

impl Life {
    fn begin(state: &Path, limits: Limits) -> Self {
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
        let admin = Initiators::Also(vec![ADMIN.to_owned()]);
        let fleet = Fleet::new([
            client(1, Initiators::OwnOnly, false),
            client(2, admin, false),
            client(3, Initiators::Anyone, true),
            Client { read_only: true, ..client(4, Initiators::OwnOnly, false) },
            Client { chap: true, ..client(5, Initiators::OwnOnly, false) },
            Client { limit: Some(2 << 20), ..client(6, Initiators::OwnOnly, false) },
            Client {
                limit: Some(DATA_LIMIT),
                data: Some(DATA),
                ..client(7, Initiators::Also(vec![HELPER.to_owned()]), false)
            },
        ]);
        let app = Arc::new(App::new(settings, fleet.unwrap(), Recorder::detached(), "this-boot".to_owned()));
        let runtime = Runtime::new().unwrap();
        let (stop, mut stopped) = watch::channel(());
        let server = runtime.block_on(Server::bind((HOME, 0).into(), Arc::clone(&app))).unwrap();
        let address = server.address().unwrap();
        runtime.spawn(server.with_limits(limits).run(async move { drop(stopped.changed().await) }));
        Self { runtime, app, address, stop }
    }
}

fn name(number: u8) -> ClientName {
    format!("pc-0{number}").parse().unwrap()
}

/// A client's own initiator, and its target.
fn names(number: u8) -> (String, String) {
    (format!("{PREFIX}:client.pc-0{number}"), format!("{PREFIX}:pc-0{number}"))
}

/// Waits for what another thread is about to do.
fn eventually(what: &str, holds: impl Fn() -> bool) {
    let begun = Instant::now();
    while !holds() {
        assert!(begun.elapsed() < Duration::from_secs(10), "not in 10 s: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// A disk of 64 MiB that is never in memory, whose changes wait while it is shut, and that remembers what reached it.
#[derive(Debug, Default)]
struct Gate {
    state: Mutex<GateState>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct GateState {
    shut: bool,
    held: usize,
    landed: Vec<u64>,
}

impl Gate {
    fn shut(&self, shut: bool) {
        self.state.lock().unwrap().shut = shut;
        self.changed.notify_all();
    }

    fn held(&self) -> usize {
        self.state.lock().unwrap().held
    }

    /// Offsets that were written, in blocks.
    fn landed(&self) -> Vec<u64> {
        self.state.lock().unwrap().landed.clone()
    }

    fn pass(&self, landed: Option<u64>) {
        let mut state = self.state.lock().unwrap();
        state.held += 1;
        state = self.changed.wait_while(state, |state| state.shut).unwrap();
        state.held -= 1;
        state.landed.extend(landed);
    }
}

impl Disk for Gate {
    fn size(&self) -> u64 {
        64 << 20
    }
    fn try_read(&self, _: u64, _: &mut [IoSliceMut<'_>]) -> Result<bool, DiskError> {
        Ok(false)
    }
    fn read(&self, _: u64, _: &mut [IoSliceMut<'_>]) -> Result<(), DiskError> {
        Ok(())
    }
    fn write(&self, offset: u64, _: &[IoSlice<'_>]) -> Result<(), DiskError> {
        self.pass(Some(offset / 512));
        Ok(())
    }
    fn zero(&self, offset: u64, _: u64) -> Result<(), DiskError> {
        self.pass(Some(offset / 512));
        Ok(())
    }
    fn flush(&self) -> Result<(), DiskError> {
        self.pass(None);
        Ok(())
    }
    fn read_only(&self) -> bool {
        false
    }
}

#[test]
fn a_loader_and_a_system_read_write_flush_and_free() {
    let lab = Lab::new();
    let mut loader = lab.log_in(1, Isid::loader(1));
    loader.settle();
    assert_eq!(loader.read(3, 2), [master_block(3), master_block(4)].concat());
    assert_eq!(loader.read(9, 1), master_block(9));
    drop(loader);

    let mut system = lab.log_in(1, Isid::system(1));
    system.settle();
    system.write(4, &[0xee; 1024]);
    system.flush();
    assert_eq!(system.read(3, 4), [master_block(3), vec![0xee; 1024], master_block(6)].concat());
    system.unmap(5, 2);
    assert_eq!(system.read(4, 4), [vec![0xee; 512], vec![0; 1024], master_block(7)].concat(), "zeros, not the master");

    let details = |stage| lab.events(stage).into_iter().map(|event| event.detail).collect::<Vec<_>>();
    assert_eq!(details(Stage::Login), ["the loader, from 127.0.0.1"]);
    assert_eq!(details(Stage::FirstRead).len(), 1, "once in a loader's session, never in a system's");
    assert_eq!(details(Stage::OsSession), ["the operating system, from 127.0.0.1"]);
    assert!(lab.events(Stage::Login).iter().all(|event| event.client == Some(name(1))));
}

#[test]
fn a_systems_session_that_ends_without_a_logout_is_trouble_and_counted() {
    let lab = Lab::new();
    let trouble = || lab.events(Stage::Trouble).into_iter().filter_map(|event| event.fact).collect::<Vec<_>>();
    drop(lab.log_in(1, Isid::loader(1)));
    for times in 1..=3 {
        drop(lab.log_in(1, Isid::system(1)));
        eventually("the loss is told", || trouble().len() == times);
    }
    let counted = trouble().into_iter().map(|fact| match fact {
        Fact::SessionLost { in_a_minute, .. } => in_a_minute,
        other => panic!("{other:?}"),
    });
    assert_eq!(counted.collect::<Vec<_>>(), [1, 2, 3]);
}

#[test]
fn each_refusal_has_its_status_and_a_sentence_for_the_operator() {
    let lab = Lab::new();
    let (own, target) = names(1);
    let last = || lab.events(Stage::Refused).pop().unwrap().detail;

    assert_eq!(lab.refused(HOME, &own, &format!("{PREFIX}:pc-99")), 0x0203);
    assert_eq!(last(), format!("{own}: there is no target {PREFIX}:pc-99"));
    assert_eq!(lab.refused(HOME, ADMIN, &target), 0x0202);
    assert_eq!(
        last(),
        format!("{ADMIN}: this disk is for {own}; add the name to the client's `initiators` to let it in")
    );
    assert_eq!(lab.refused(ELSEWHERE, &own, &target), 0x0202);
    assert_eq!(last(), format!("{own}: it came from 127.0.0.2, but the client's address is 127.0.0.1"));
    let fact = lab.events(Stage::Refused).pop().unwrap().fact;
    let (initiator, why, address) = (Some(own.clone()), "address".to_owned(), ELSEWHERE.into());
    assert_eq!(fact, Some(Fact::LoginRefused { initiator, address, mac: None, status: 0x0202, why }));
    let (own_of_off, off) = names(3);
    assert_eq!(lab.refused(HOME, &own_of_off, &off), 0x0202);
    assert_eq!(last(), format!("{own_of_off}: the client is switched off (`off = true`)"));
    assert_eq!(lab.events(Stage::Refused).pop().unwrap().client, Some(name(3)));

    let ask = |tsih, text: &str| lab.connect(HOME).first_login(Isid::system(1), tsih, text).0;
    assert_eq!(ask(0, &format!("TargetName={target}\0")), 0x0207);
    assert!(last().contains("without the initiator's or the target's name"), "{}", last());
    assert_eq!(ask(0, &format!("InitiatorName={own}\0")), 0x0207);
    let both = format!("InitiatorName={own}\0TargetName={target}\0");
    assert_eq!(ask(0, &format!("{both}AuthMethod=CHAP\0")), 0x0201);
    assert!(last().contains("authentication, which is not set up here"), "{}", last());
    assert_eq!(ask(77, &both), 0x020a);
    assert!(last().contains("a session that is no more"), "{}", last());
    let session = lab.log_in(1, Isid::system(1));
    let mut beside = lab.connect(HOME);
    beside.cid = 7;
    assert_eq!(beside.first_login(Isid::system(1), session.tsih, &both).0, 0x0206);
    assert!(last().contains("second connection"), "{}", last());
}

#[test]
fn initiators_lets_others_in_from_anywhere_and_discovery_shows_what_may_be_used() {
    let lab = Lab::new();
    let (own, target) = names(2);
    let mut admin = lab.connect(ELSEWHERE);
    assert_eq!(admin.log_in(&ADMIN.to_uppercase(), &target, Isid::system(1)), 0, "names have no case");
    assert_eq!(admin.send_targets(""), [target.clone(), format!("{},1", lab.life().address)]);

    let discover = |from, initiator: &str| {
        let mut session = lab.connect(from);
        assert_eq!(session.log_in_to_discovery(initiator), 0);
        session.send_targets("All").into_iter().step_by(2).collect::<Vec<_>>()
    };
    assert_eq!(discover(ELSEWHERE, ADMIN), std::slice::from_ref(&target));
    assert_eq!(discover(HOME, &own), [target]);
    assert_eq!(discover(ELSEWHERE, &own), Vec::<String>::new(), "the right name at the wrong address");
    assert_eq!(discover(HOME, &names(3).0), Vec::<String>::new(), "switched off");
}

#[test]
fn a_machine_that_lost_its_power_is_back_after_one_probe_and_nothing_of_its_old_session_lands_later() {
    let lab = Lab::new();
    let gate = lab.gate(1);
    // Two dead sessions, the loader's and the system's, still cost one probe.
    let mut loader = lab.log_in(1, Isid::loader(1));
    loader.settle();
    let (own, target) = names(1);
    let mut system = lab.connect(HOME);
    let entering = std::thread::spawn({
        let (own, target) = (own.clone(), target.clone());
        move || {
            assert_eq!(system.log_in(&own, &target, Isid::system(1)), 0);
            system.settle();
            system
        }
    });
    loader.answer_a_ping();
    let mut system = entering.join().unwrap();
    assert_eq!(lab.app().sessions.of(&name(1)).len(), 2, "a loader that answers lives on");

    gate.shut(true);
    for block in 0..3 {
        system.start_write(block, &[1; 512]);
    }
    eventually("one write is held in the pool", || gate.held() == 1);
    let begun = Instant::now();
    let entering = std::thread::spawn({
        let mut fresh = lab.connect(HOME);
        move || {
            let status = fresh.log_in(&own, &target, Isid::loader(2));
            (status, begun.elapsed(), fresh)
        }
    });
    std::thread::sleep(Duration::from_millis(1500));
    assert!(!entering.is_finished(), "it waits for the write that is held");
    gate.shut(false);
    let (status, _, mut fresh) = entering.join().unwrap();
    assert_eq!(status, 0);
    assert_eq!(gate.landed(), [0], "the held write landed before the answer; the others never do");
    assert!(loader.is_closed() && system.is_closed(), "the old connections are closed");

    let begun = Instant::now();
    let _again = lab.log_in(1, Isid::loader(3));
    let waited = begun.elapsed();
    assert!((Duration::from_millis(900)..Duration::from_secs(3)).contains(&waited), "one probe: {waited:?}");
    assert!(fresh.is_closed());
    assert_eq!(gate.landed(), [0]);
    assert_eq!(lab.app().sessions.of(&name(1)).len(), 1);
}

#[test]
fn the_same_session_is_reinstated_at_once() {
    let lab = Lab::new();
    let mut old = lab.log_in(1, Isid::system(1));
    let begun = Instant::now();
    let mut new = lab.log_in(1, Isid::system(1));
    assert!(begun.elapsed() < Duration::from_millis(800), "no probe: {:?}", begun.elapsed());
    assert!(old.is_closed());
    new.settle();
    assert_eq!(new.read(1, 1), master_block(1));
}

#[test]
fn what_stood_in_the_socket_before_the_power_cut_is_no_sign_of_life() {
    let lab = Lab::new();
    let gate = lab.gate(1);
    let mut old = lab.log_in(1, Isid::system(1));
    old.settle();
    // More answers than the sockets hold, and more requests behind them, which the target reads when it is let to.
    for _ in 0..60 {
        old.start(&cdb_read(0, 2048), READ, 1 << 20, &[]);
    }
    for block in 0..3 {
        old.start_write(block, &[1; 512]);
    }
    let new = lab.log_in(1, Isid::system(2));
    assert_eq!(lab.app().sessions.of(&name(1)).len(), 1);
    let landed = gate.landed();
    drop(new);
    drop(old);
    eventually("all have left", || lab.app().sessions.of(&name(1)).is_empty());
    assert_eq!(gate.landed(), landed, "nothing of the old session after the new one's login");
}

#[test]
fn no_write_lands_after_a_reset_and_the_others_are_told_once() {
    let lab = Lab::new();
    let gate = lab.gate(2);
    let (own, target) = names(2);
    let mut actor = lab.connect(HOME);
    assert_eq!(actor.log_in(&own, &target, Isid::system(1)), 0);
    let mut other = lab.connect(ELSEWHERE);
    assert_eq!(other.log_in(ADMIN, &target, Isid::system(1)), 0);
    actor.settle();
    other.settle();
    gate.shut(true);
    actor.start_write(10, &[1; 512]);
    eventually("a write is held in the pool", || gate.held() == 1);
    other.start_write(20, &[2; 512]);
    actor.start_write(11, &[1; 512]);
    // A session that waits for its disk answers pings, so what it was sent before has been taken.
    actor.nop();
    other.nop();

    actor.start_lun_reset();
    actor.nop();
    assert_eq!(gate.held(), 1, "the reset waits for the write that is held");
    gate.shut(false);
    assert_eq!(actor.take_answer(0x22).header[2], 0, "function complete");
    let landed = gate.landed();
    // The other session's write may have begun before it heard of the reset; the actor's second one cannot have.
    assert!(landed == [10] || landed == [10, 20], "{landed:?}");
    assert_eq!(other.test_unit_ready(), Some((6, 0x29, 0x03)));
    assert_eq!(other.test_unit_ready(), None, "once");
    assert_eq!(actor.test_unit_ready(), Some((6, 0x29, 0x03)), "the one that reset it, too");
    other.write(21, &[3; 512]);
    assert_eq!(gate.landed(), [landed, vec![21]].concat(), "no more of what was stopped, no answers of it either");
}

#[test]
fn a_cleared_task_set_is_told_to_those_who_had_commands_in_it() {
    let lab = Lab::new();
    let gate = lab.gate(2);
    let (own, target) = names(2);
    let mut actor = lab.connect(HOME);
    assert_eq!(actor.log_in(&own, &target, Isid::system(1)), 0);
    let mut other = lab.connect(ELSEWHERE);
    assert_eq!(other.log_in(ADMIN, &target, Isid::system(1)), 0);
    actor.settle();
    other.settle();
    gate.shut(true);
    other.start_write(21, &[2; 512]);
    eventually("a write is held in the pool", || gate.held() == 1);
    let opening = std::thread::spawn({
        let gate = Arc::clone(&gate);
        move || {
            std::thread::sleep(Duration::from_millis(200));
            gate.shut(false);
        }
    });
    actor.clear_task_set();
    opening.join().unwrap();
    assert_eq!(other.test_unit_ready(), Some((6, 0x2f, 0x00)));
    assert_eq!(other.test_unit_ready(), None, "once");
    assert_eq!(actor.test_unit_ready(), None, "the one that cleared it is not told");
    actor.clear_task_set();
    assert_eq!(other.test_unit_ready(), None, "none of its commands was there");
}

#[test]
fn a_reader_that_waits_for_nobody_is_not_forgotten_when_one_before_it_is_aborted() {
    let lab = Lab::new();
    let slow = Arc::<SlowReads>::default();
    lab.app().disks.put(name(1), &names(1).1, slow.clone());
    let mut session = lab.log_in(1, Isid::system(1));
    session.settle();
    *slow.shut.lock().unwrap() = true;
    // Eight wait for the device; the ninth is aborted while it waits for them, and the tenth must still have its turn.
    let tags: Vec<u32> = (0..10).map(|block| session.start(&cdb_read(block, 1), READ, 512, &[])).collect();
    session.nop();
    session.abort(tags[8]);
    *slow.shut.lock().unwrap() = false;
    slow.changed.notify_all();
    let mut answered: Vec<u32> = (0..9).map(|_| session.take_answer(0x25).itt()).collect();
    answered.sort_unstable();
    assert_eq!(answered, [&tags[..8], &tags[9..]].concat());
}

#[derive(Debug, Default)]
struct SlowReads {
    shut: Mutex<bool>,
    changed: Condvar,
}

impl Disk for SlowReads {
    fn size(&self) -> u64 {
        64 << 20
    }
    fn try_read(&self, _: u64, _: &mut [IoSliceMut<'_>]) -> Result<bool, DiskError> {
        Ok(false)
    }
    fn read(&self, _: u64, _: &mut [IoSliceMut<'_>]) -> Result<(), DiskError> {
        drop(self.changed.wait_while(self.shut.lock().unwrap(), |shut| *shut).unwrap());
        Ok(())
    }
    fn write(&self, _: u64, _: &[IoSlice<'_>]) -> Result<(), DiskError> {
        Ok(())
    }
    fn zero(&self, _: u64, _: u64) -> Result<(), DiskError> {
        Ok(())
    }
    fn flush(&self) -> Result<(), DiskError> {
        Ok(())
    }
    fn read_only(&self) -> bool {
        false
    }
}

#[test]
fn a_session_answers_pings_whatever_its_disk_does() {
    let lab = Lab::new();
    let gate = lab.gate(1);
    let mut session = lab.log_in(1, Isid::system(1));
    session.settle();
    gate.shut(true);
    session.start_write(1, &[1; 512]);
    session.start(&[0x35, 0, 0, 0, 0, 0, 0, 0, 0, 0], 0, 0, &[]);
    eventually("the write is held", || gate.held() == 1);
    session.nop();
    gate.shut(false);
    assert_eq!(status_of(&session.take_answer(0x21)), None);
    assert_eq!(status_of(&session.take_answer(0x21)), None);
}

/// Bytes of this process that are in memory.
fn resident() -> usize {
    let statm = fs::read_to_string("/proc/self/statm").unwrap();
    statm.split(' ').nth(1).unwrap().parse::<usize>().unwrap() * 4096
}

#[test]
fn who_never_reads_holds_little_and_stops_nobody() {
    let lab = Lab::new();
    lab.gate(1);
    let before = resident();
    let mut greedy = lab.log_in(1, Isid::system(1));
    greedy.settle();
    for _ in 0..60 {
        greedy.start(&cdb_read(0, 2048), READ, 1 << 20, &[]);
    }
    let mut other = lab.log_in(2, Isid::system(1));
    other.settle();
    for block in 0..200 {
        assert_eq!(other.read(block, 1), master_block(usize::try_from(block).unwrap()));
    }
    let reads = || lab.app().sessions.of(&name(1))[0].traffic.reads.load(Ordering::Relaxed);
    eventually("its reads have begun", || reads() > 0);
    // 60 MiB were asked for. The other tests of this file run beside this one, so the bound is a loose one.
    assert!(resident().saturating_sub(before) < 48 << 20, "{} MiB more", (resident() - before) >> 20);
    // And it gets all of it once it reads.
    for _ in 0..60 {
        let itt = greedy.take_read(1 << 20).0;
        assert!(itt > 0);
    }
}

#[test]
fn half_open_connections_of_one_address_keep_nobody_out() {
    let lab = Lab::new();
    let half_open: Vec<Initiator> = (0..300).map(|_| lab.connect(ELSEWHERE)).collect();
    let begun = Instant::now();
    let mut session = lab.log_in(1, Isid::system(1));
    session.settle();
    assert_eq!(session.read(0, 1), master_block(0));
    // Not even one that comes from the same address.
    let mut admin = lab.connect(ELSEWHERE);
    assert_eq!(admin.log_in(ADMIN, &names(2).1, Isid::system(1)), 0);
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    drop(half_open);
}

#[test]
fn a_whole_school_may_wait_to_log_in_at_once() {
    let lab = Lab::new();
    let machine = |n: u32| Ipv4Addr::from(u32::from(Ipv4Addr::new(127, 2, 0, 1)) + n);
    let mut waiting: Vec<Initiator> = (0..600).map(|n| lab.connect(machine(n))).collect();
    lab.log_in(1, Isid::system(1)).settle();
    // Each of them is still heard.
    for machine in &mut waiting {
        assert_eq!(machine.log_in(ADMIN, &names(9).1, Isid::system(1)), 0x0203, "no such target");
    }
    assert_eq!(lab.app().tally.turned_away.count(), 0);
}

#[test]
fn who_comes_by_one_portal_is_told_of_the_others_in_its_network() {
    let (lab, runtime) = (Lab::new(), Runtime::new().unwrap());
    let server = runtime.block_on(async {
        let server = Server::bind((HOME, 0).into(), Arc::clone(lab.app())).await.unwrap();
        let portals = ["127.0.0.1/8", "127.0.0.2/8", "127.9.0.3/24"];
        // One that is not this host's is left out.
        let portals = portals.into_iter().chain(["192.0.2.1/24"]).map(|network| network.parse().unwrap());
        server.with_portals(portals).await.unwrap()
    });
    let first = server.address().unwrap();
    let second = SocketAddr::from((ELSEWHERE, first.port()));
    runtime.spawn(server.run(std::future::pending()));
    let (told, target) = ([format!("{first},1"), format!("{second},1")], names(2).1);
    let swapped = [told[1].clone(), told[0].clone()];
    for (portal, wanted) in [(first, &told), (second, &swapped)] {
        let mut session = Initiator::connect(HOME, portal);
        assert_eq!(session.log_in_to_discovery(ADMIN), 0);
        assert_eq!(session.send_targets("All"), [&[target.clone()][..], wanted].concat());
        let mut session = Initiator::connect(HOME, portal);
        assert_eq!(session.log_in(ADMIN, &target, Isid::system(1)), 0);
        assert_eq!(session.send_targets(""), [&[target.clone()][..], wanted].concat());
    }
}

#[test]
fn what_was_acknowledged_outlives_the_process_and_the_map_is_empty_once_a_session_ended() {
    /// A map without records: its front alone.
    const EMPTY: u64 = 64;
    let mut lab = Lab::new();
    let map = lab.state.path().join("pending/pc-01");
    let length = || fs::metadata(&map).unwrap().len();
    let mut session = lab.log_in(1, Isid::system(1));
    session.settle();
    for block in (0..64).step_by(2) {
        session.write(block, &[0xab; 512]);
    }
    assert!(length() > EMPTY, "written, not yet durable");
    lab.die_and_begin_again();

    let mut session = lab.log_in(1, Isid::system(1));
    session.settle();
    for block in 0..64 {
        let expected = if block % 2 == 0 { vec![0xab; 512] } else { master_block(usize::try_from(block).unwrap()) };
        assert_eq!(session.read(block, 1), expected, "block {block}");
    }
    session.write(101, &[0xcd; 512]);
    assert!(length() > EMPTY);
    drop(session);
    eventually("the end of the session settled the disk", || length() == EMPTY);
    lab.die_and_begin_again();
    let mut session = lab.log_in(1, Isid::system(1));
    session.settle();
    assert_eq!(session.read(100, 2), [master_block(100), vec![0xcd; 512]].concat());
}

#[test]
fn a_disk_that_cannot_be_opened_ends_nobodys_session_and_is_said() {
    let lab = Lab::new();
    fs::remove_file(lab.state.path().join("images/linux/1.vhd")).unwrap();
    let (own, target) = names(1);
    assert_eq!(lab.refused(HOME, &own, &target), 0x0300);
    let told = lab.events(Stage::Refused).pop().unwrap().detail;
    assert!(told.starts_with("there is no image `linux`: import it"), "{told}");
    assert!(lab.app().sessions.of(&name(1)).is_empty());
}

#[test]
fn with_both_digests_everything_is_as_it_is_without() {
    let lab = Lab::new();
    let (own, target) = names(1);
    let both = format!("InitiatorName={own}\0TargetName={target}\0HeaderDigest=CRC32C,None\0DataDigest=CRC32C\0");
    let enter = || {
        let mut session = lab.connect(HOME);
        let (status, text) = session.first_login(Isid::system(1), 0, &format!("{both}MaxRecvDataSegmentLength=8192\0"));
        let text = String::from_utf8(text).unwrap();
        assert_eq!(status, 0);
        assert!(text.contains("HeaderDigest=CRC32C\0") && text.contains("DataDigest=CRC32C\0"), "{text}");
        session.use_digests();
        session.settle();
        session
    };
    let mut session = enter();
    let written: Vec<u8> = (0..32768_u32).map(|n| n.to_be_bytes()[3] ^ n.to_be_bytes()[2]).collect();
    session.write(16, &written);
    assert_eq!(session.read(15, 66), [master_block(15), written, master_block(80)].concat(), "in PDUs of 8 KiB");
    session.nop();
    // The disk is not in memory: the answer is made on another thread.
    lab.gate(2);
    let mut other = lab.connect(HOME);
    let (own, target) = names(2);
    let keys = format!("InitiatorName={own}\0TargetName={target}\0HeaderDigest=CRC32C\0DataDigest=CRC32C\0");
    assert_eq!(other.first_login(Isid::system(1), 0, &keys).0, 0);
    other.use_digests();
    other.settle();
    assert_eq!(other.read(0, 300), vec![0; 300 * 512]);
    // A header that does not match its digest ends the connection, and is said.
    let mut header = [0; 52];
    header[0] = 0x40;
    session.send_bytes(&header);
    assert!(session.is_closed());
    eventually("it is told", || !lab.events(Stage::Refused).is_empty());
    let told = lab.events(Stage::Refused).pop().unwrap().detail;
    assert!(told.contains("a header that does not match its digest"), "{told}");
    assert_eq!(lab.app().tally.broken.count(), 1);
    enter();
}

/// A disk of one file in memory, which counts what it passes on.
#[derive(Debug)]
struct Passing {
    chain: Chain,
    passed: AtomicU64,
    /// What it was asked to pass on and the socket did not take.
    left: AtomicU64,
}

impl Disk for Passing {
    fn size(&self) -> u64 {
        self.chain.size()
    }
    fn try_read(&self, offset: u64, bufs: &mut [IoSliceMut<'_>]) -> Result<bool, DiskError> {
        self.chain.try_read(offset, bufs)
    }
    fn read(&self, offset: u64, bufs: &mut [IoSliceMut<'_>]) -> Result<(), DiskError> {
        self.chain.read(offset, bufs)
    }
    fn pass_on(&self, offset: u64, len: u64, each: &mut PassOn<'_>) -> Result<Option<u64>, DiskError> {
        let taken = self.chain.pass_on(offset, len, each)?;
        if let Some(taken) = taken {
            self.passed.fetch_add(taken, Ordering::Relaxed);
            self.left.fetch_add(len - taken, Ordering::Relaxed);
        }
        Ok(taken)
    }
    fn write(&self, offset: u64, bufs: &[IoSlice<'_>]) -> Result<(), DiskError> {
        self.chain.write(offset, bufs)
    }
    fn zero(&self, offset: u64, len: u64) -> Result<(), DiskError> {
        self.chain.zero(offset, len)
    }
    fn flush(&self) -> Result<(), DiskError> {
        self.chain.flush()
    }
    fn read_only(&self) -> bool {
        self.chain.read_only()
    }
}

#[test]
fn large_reads_go_from_the_file_to_the_socket_as_they_are_however_slowly_they_are_taken() {
    const BLOCKS: usize = 8192;
    let lab = Lab::new();
    let raw = lab.state.path().join("raw");
    let block = |n: usize| [u32::try_from(n).unwrap().to_be_bytes(); 128].concat();
    fs::write(&raw, (0..BLOCKS).flat_map(block).collect::<Vec<u8>>()).unwrap();
    let chain = Chain::open(&raw, Access::Write).unwrap();
    let disk = Arc::new(Passing { chain, passed: AtomicU64::new(0), left: AtomicU64::new(0) });
    let (own, target) = names(1);
    let _: Arc<ClientDisk> = lab.app().disks.put(name(1), &target, disk.clone());
    // PDUs of one read each, several to a read, and with a digest behind each header.
    for keys in ["MaxRecvDataSegmentLength=1048576", "MaxRecvDataSegmentLength=61440", "HeaderDigest=CRC32C"] {
        let mut session = lab.connect(HOME);
        let keys = format!("InitiatorName={own}\0TargetName={target}\0{keys}\0");
        assert_eq!(session.first_login(Isid::system(1), 0, &keys).0, 0);
        if keys.contains("Digest") {
            session.use_header_digests();
        }
        session.settle();
        // Far more than the socket holds.
        let reads: Vec<_> = (0..48).map(|n: u32| (n * 997 % 6000, 128 + u16::try_from(n * 31).unwrap())).collect();
        let tags: Vec<_> = reads
            .iter()
            .map(|&(lba, blocks)| session.start(&cdb_read(lba, blocks), READ, u32::from(blocks) * 512, &[]))
            .collect();
        eventually("the socket is full", || disk.left.load(Ordering::Relaxed) > 0);
        for (&(lba, blocks), tag) in reads.iter().zip(tags) {
            let (answered, data) = session.take_read(usize::from(blocks) * 512);
            assert_eq!(answered, tag);
            let lba = usize::try_from(lba).unwrap();
            assert!(data == (lba..lba + usize::from(blocks)).flat_map(block).collect::<Vec<u8>>(), "{lba}+{blocks}");
        }
        // And what was changed since is seen.
        session.write(100, &[0xee; 1024]);
        assert_eq!(session.read(99, 256)[..1536], [block(99), vec![0xee; 1024]].concat());
        session.write(100, &[block(100), block(101)].concat());
        session.log_out();
        assert!(disk.passed.swap(0, Ordering::Relaxed) > 1 << 20, "most is not copied");
        disk.left.store(0, Ordering::Relaxed);
    }
}

/// Value of this key in a text.
fn value(text: &[u8], key: &str) -> String {
    let text = String::from_utf8(text.to_vec()).unwrap();
    let pair = text.split('\0').find_map(|pair| pair.strip_prefix(&format!("{key}=")));
    pair.unwrap_or_else(|| panic!("no {key} in {text}")).to_owned()
}

fn bytes_of(hexadecimal: &str) -> Vec<u8> {
    let digits = hexadecimal.strip_prefix("0x").unwrap();
    (0..digits.len()).step_by(2).map(|at| u8::from_str_radix(&digits[at..at + 2], 16).unwrap()).collect()
}

/// Logs in to the client with CHAP as iPXE does, which asks on in every request; its status, and what the target proved.
fn chap(session: &mut Initiator, name: &str, secret: &str, algorithm: Algorithm) -> (u16, Option<String>) {
    const ON: u8 = 0x81;
    let (own, target) = names(5);
    let isid = Isid::loader(1);
    let first = format!("InitiatorName={own}\0TargetName={target}\0SessionType=Normal\0AuthMethod=CHAP,None\0");
    let (status, flags, text) = session.login_step(ON, isid, 0, &first);
    if status != 0 {
        return (status, None);
    }
    assert_eq!((flags, value(&text, "AuthMethod").as_str()), (0, "CHAP"), "not before it has passed");
    let number = algorithm as u8;
    let (_, flags, text) = session.login_step(ON, isid, 0, &format!("CHAP_A={number}\0"));
    assert_eq!((flags, value(&text, "CHAP_A")), (0, number.to_string()));
    let identifier = value(&text, "CHAP_I").parse().unwrap();
    let response = algorithm.respond(identifier, secret, &bytes_of(&value(&text, "CHAP_C")));
    let proof = format!(
        "CHAP_N={name}\0CHAP_R={}\0CHAP_I=77\0CHAP_C=0x00112233445566778899aabbccddeeff\0",
        hexadecimal(&response)
    );
    let (status, flags, text) = session.login_step(ON, isid, 0, &proof);
    if status != 0 {
        return (status, None);
    }
    assert_eq!((flags, value(&text, "CHAP_N").as_str()), (ON, "roost"));
    let proved = value(&text, "CHAP_R");
    let (status, ..) = session.login_step(0x87, isid, 0, "ImmediateData=No\0");
    (status, Some(proved))
}

#[test]
fn a_client_with_chap_opens_its_disk_to_who_knows_its_secret_and_proves_to_know_its_own() {
    let lab = Lab::new();
    let last = || lab.events(Stage::Refused).pop().unwrap();
    let guess = chap(&mut lab.connect(HOME), "pc-05", "a-guess", Algorithm::Md5);
    assert_eq!(guess.0, 0x0201);
    assert!(last().detail.contains("there is no CHAP secret yet"), "{}", last().detail);
    let secrets = lab.life().runtime.block_on(lab.app().secrets.of(&name(5))).unwrap();
    for algorithm in [Algorithm::Md5, Algorithm::Sha256, Algorithm::Sha3_256] {
        let mut session = lab.connect(HOME);
        let (status, proved) = chap(&mut session, "pc-05", &secrets.machine, algorithm);
        assert_eq!(status, 0);
        let challenge: Vec<u8> = (0..16).map(|n| n * 0x11).collect();
        assert_eq!(proved, Some(hexadecimal(&algorithm.respond(77, &secrets.server, &challenge))));
        session.settle();
        assert_eq!(session.read(2, 1), master_block(2));
    }
    for (user, secret, why) in [
        ("pc-05", "a-guess-of-many", "its CHAP secret is wrong"),
        ("pc-05", secrets.server.as_str(), "its CHAP secret is wrong"),
        ("pc-01", secrets.machine.as_str(), "its CHAP name is not this client's"),
    ] {
        assert_eq!(chap(&mut lab.connect(HOME), user, secret, Algorithm::Md5).0, 0x0201, "{why}");
        assert!(last().detail.contains(why), "{}", last().detail);
        assert_eq!(last().client, Some(name(5)));
    }
    // The secret alone opens nothing, and neither do name and address.
    assert_eq!(chap(&mut lab.connect(ELSEWHERE), "pc-05", &secrets.machine, Algorithm::Md5).0, 0x0202);
    let (own, target) = names(5);
    assert_eq!(lab.connect(HOME).log_in(&own, &target, Isid::system(1)), 0x0201);
    assert!(last().detail.contains("it offers no CHAP"), "{}", last().detail);
    // Whoever lists targets need not prove anything.
    assert_eq!(lab.connect(HOME).log_in_to_discovery(&own), 0);
    // A new machine gets another secret; what the old one knows is worth nothing.
    lab.life().runtime.block_on(lab.app().secrets.forget(&name(5)));
    assert_eq!(chap(&mut lab.connect(HOME), "pc-05", &secrets.machine, Algorithm::Md5).0, 0x0201);
    let renewed = lab.life().runtime.block_on(lab.app().secrets.of(&name(5))).unwrap();
    assert_ne!(renewed, secrets);
    assert_eq!(chap(&mut lab.connect(HOME), "pc-05", &secrets.machine, Algorithm::Md5).0, 0x0201);
    assert_eq!(chap(&mut lab.connect(HOME), "pc-05", &renewed.machine, Algorithm::Md5).0, 0);
    assert_eq!(lab.app().tally.refused_logins.count(), 8);
    let told = lab.events(Stage::Refused);
    assert!(told.iter().all(|event| !event.detail.contains(&secrets.machine)), "no secret is ever told");
}

#[test]
fn a_connection_takes_the_place_of_its_broken_one_with_what_was_agreed_on() {
    let lab = Lab::new();
    let (own, target) = names(1);
    let names = format!("InitiatorName={own}\0TargetName={target}\0");
    let mut old = lab.connect(HOME);
    assert_eq!(old.first_login(Isid::system(1), 0, &format!("{names}ImmediateData=No\0")).0, 0);
    let tsih = old.tsih;
    let mut wrong = lab.connect(HOME);
    assert_eq!(wrong.first_login(Isid::system(2), tsih, &names).0, 0x020a, "another session's handle");
    let mut new = lab.connect(HOME);
    assert_eq!(new.first_login(Isid::system(1), tsih, &names).0, 0);
    assert_eq!(new.tsih, tsih);
    assert!(old.is_closed());
    new.settle();
    let itt = new.start_write(1, &[1; 512]);
    assert_eq!(status_of(&new.take_response(itt)), Some((0xB, 0x0C, 0x0C)), "no immediate data, as agreed on before");
    assert_eq!(lab.app().sessions.of(&name(1)).len(), 1);
}

#[test]
fn a_client_is_led_elsewhere_until_it_is_not() {
    let lab = Lab::new();
    let (own, target) = names(1);
    let ask =
        || lab.connect(HOME).first_login(Isid::system(1), 0, &format!("InitiatorName={own}\0TargetName={target}\0"));
    lab.app().sessions.lead(&name(1), Some(([192, 0, 2, 7], 3260).into()));
    let (status, text) = ask();
    assert_eq!((status, value(&text, "TargetAddress").as_str()), (0x0101, "192.0.2.7:3260"));
    assert_eq!(lab.events(Stage::Refused), [], "that is no refusal");
    lab.app().sessions.lead(&name(1), None);
    assert_eq!(ask().0, 0);
}

#[test]
fn a_silent_session_is_ended_if_it_used_to_answer_and_only_then() {
    let lab = Lab::with(Limits { silence: Duration::from_millis(200), ..Limits::default() });
    let mut never = lab.connect(ELSEWHERE);
    assert_eq!(never.log_in(ADMIN, &names(2).1, Isid::system(1)), 0);
    let mut loader = lab.log_in(1, Isid::loader(1));
    loader.settle();
    let mut lost = lab.log_in(2, Isid::system(1));
    // While it answers it lives, though it says nothing else.
    for _ in 0..4 {
        lost.answer_a_ping();
    }
    assert_eq!(lab.app().tally.dead.count(), 0);
    assert!(lost.is_closed());
    assert_eq!(lab.app().tally.dead.count(), 1);
    eventually("it left its place", || lab.app().sessions.of(&name(2)).len() == 1);
    // Neither one that never answers nor a loader, which is not even asked.
    never.settle();
    assert_eq!(loader.test_unit_ready(), None);
    assert!(!loader.was_pinged() && never.was_pinged());
}

#[test]
fn sessions_are_asked_to_log_out_before_we_stop_and_told_when_we_do() {
    let lab = Lab::new();
    let mut loader = lab.log_in(1, Isid::loader(1));
    let mut obedient = lab.log_in(2, Isid::system(1));
    let mut stubborn = lab.log_in(1, Isid::system(1));
    let event = |answer: &Answer| (answer.header[36], answer.header[43]);
    let begun = Instant::now();
    lab.life().stop.send(()).unwrap();
    assert!(loader.is_closed(), "iPXE would not understand");
    for session in [&mut obedient, &mut stubborn] {
        assert_eq!(event(&session.take_answer(0x32)), (1, 1), "log out within a second");
    }
    obedient.log_out();
    assert!(obedient.is_closed());
    // Until then it is served.
    stubborn.settle();
    assert_eq!(event(&stubborn.take_answer(0x32)), (3, 0), "all connections are dropped");
    assert!(stubborn.is_closed());
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    eventually("nobody is left", || (1..3).all(|number| lab.app().sessions.of(&name(number)).is_empty()));
}

#[test]
fn a_login_that_comes_byte_by_byte_is_ended_in_time() {
    let lab = Lab::with(Limits { login: Duration::from_millis(500), ..Limits::default() });
    let mut slow = lab.connect(HOME);
    let begun = Instant::now();
    while slow.try_send_bytes(&[0x43]) && begun.elapsed() < Duration::from_secs(10) {
        std::thread::sleep(Duration::from_millis(50));
    }
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    assert_eq!(lab.app().tally.slow_logins.count(), 1);
    lab.log_in(1, Isid::system(1)).settle();
}

#[test]
fn thousands_of_login_attempts_exhaust_nothing() {
    // Ten thousand take half a minute.
    let attempts = if std::env::var("ROOST_LONG").is_ok_and(|value| value == "1") { 10_000 } else { 2_000 };
    let lab = Lab::new();
    let mut session = lab.log_in(1, Isid::system(1));
    session.settle();
    let before = resident();
    let address = lab.life().address;
    let knock = |attempt: u32| {
        let [.., high, low] = attempt.to_be_bytes();
        let mut stranger = Initiator::connect(Ipv4Addr::new(127, 1, high % 4, low), address);
        let mut half = [0; 48 + 8191];
        (half[0], half[1], half[6]) = (0x43, 0x87, 0x20);
        let _ = match attempt % 4 {
            0 => true, // says nothing
            1 => stranger.try_send_bytes(&[0x43; 47]),
            2 => stranger.try_send_bytes(&half), // a login with its whole text but for the last byte
            _ => stranger.try_send_bytes(&[0xFF; 48]),
        };
        stranger
    };
    // From several threads: the kernel lets a knock wait for a second when too many come at once.
    let open: Vec<_> = std::thread::scope(|scope| {
        let knocking = |first| {
            move || {
                let mut open = std::collections::VecDeque::new();
                for attempt in (first..attempts).step_by(8) {
                    open.push_back(knock(attempt));
                    // Each of them has an address of its own.
                    if open.len() > 20 {
                        open.pop_front();
                    }
                }
                open
            }
        };
        let threads: Vec<_> = (0..8).map(|first| scope.spawn(knocking(first))).collect();
        for block in 0..100 {
            assert_eq!(session.read(block, 1), master_block(block as usize), "who is in is served");
        }
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    // Meanwhile those that have gone are noticed.
    for block in 0..100 {
        assert_eq!(session.read(block, 1), master_block(block as usize), "who is in is still served");
    }
    // One that knows its name comes in, whatever else knocks.
    lab.log_in(2, Isid::system(1)).settle();
    // 160 of them wait at once, each with what it sent, 8 KiB at most; other tests of this file run beside this one.
    let grown = resident().saturating_sub(before);
    assert!(grown < 40 << 20, "{} MiB more", grown >> 20);
    let sent_away = lab.app().tally.turned_away.count() + lab.app().tally.broken.count();
    assert!(sent_away > u64::from(attempts) / 5, "{sent_away} of {attempts}");
    drop(open);
    eventually("they are gone", || lab.app().sessions.of(&name(1)).len() == 1);
}

/// A sixteen-byte CDB: LBA at 2, count at 10.
fn sixteen(opcode: u8, options: u8, lba: u64, count: u32) -> Vec<u8> {
    [&[opcode, options][..], &lba.to_be_bytes(), &count.to_be_bytes(), &[0, 0]].concat()
}

fn compare_and_write(lba: u64, blocks: u8) -> Vec<u8> {
    [&[0x89, 0][..], &lba.to_be_bytes(), &[0, 0, 0, blocks, 0, 0]].concat()
}

#[test]
fn of_two_who_compare_and_write_one_wins_each_time() {
    const ROUNDS: u64 = 200;
    /// A block that says a number.
    fn block(number: u64) -> Vec<u8> {
        [&number.to_be_bytes()[..], &[0xaa; 504]].concat()
    }
    let lab = Lab::new();
    let mut sessions = [lab.log_in(2, Isid::system(1)), lab.connect(ELSEWHERE)];
    assert_eq!(sessions[1].log_in(ADMIN, &names(2).1, Isid::system(1)), 0);
    sessions.iter_mut().for_each(Initiator::settle);
    sessions[0].write(64, &block(0));
    let count = |mut session: Initiator| {
        let mut won = 0;
        loop {
            let there = session.read(64, 1);
            let number = u64::from_be_bytes(there[..8].try_into().unwrap());
            if number >= ROUNDS {
                return won;
            }
            match session.tell(&compare_and_write(64, 1), &[there, block(number + 1)].concat()) {
                Ok(()) => won += 1,
                Err(lost) => assert_eq!(lost, (0xE, 0x1D, 0)),
            }
        }
    };
    let won: u64 = std::thread::scope(|scope| {
        let both = sessions.map(|session| scope.spawn(|| count(session)));
        both.map(|one| one.join().unwrap()).iter().sum()
    });
    let mut after = lab.log_in(2, Isid::system(2));
    after.settle();
    assert_eq!(after.read(64, 1), block(won), "as many steps as were won");
}

#[test]
fn what_is_compared_combined_verified_and_copied_is_what_is_read() {
    let lab = Lab::new();
    let mut session = lab.log_in(1, Isid::system(1));
    session.settle();
    // The master's bytes are compared like any others.
    let new = [master_block(3), master_block(4), vec![0x11; 1024]].concat();
    assert_eq!(session.tell(&compare_and_write(3, 2), &new), Ok(()));
    assert_eq!(session.tell(&compare_and_write(3, 2), &new), Err((0xE, 0x1D, 0)));
    assert_eq!(session.read(2, 4), [master_block(2), vec![0x11; 1024], master_block(5)].concat());
    // ORWRITE over one block of ours and one of the master's.
    assert_eq!(session.tell(&sixteen(0x8B, 0, 4, 2), &[0x40; 1024]), Ok(()));
    assert_eq!(session.read(4, 2), [vec![0x51; 512], vec![0x45; 512]].concat());
    // WRITE AND VERIFY, WRITE ATOMIC.
    assert_eq!(session.tell(&sixteen(0x8E, 0x02, 9, 1), &[0x22; 512]), Ok(()));
    let atomic = [&[0x9C, 0][..], &16_u64.to_be_bytes(), &[0, 0, 0, 8, 0, 0]].concat();
    assert_eq!(session.tell(&atomic, &[0x33; 4096]), Ok(()));
    assert_eq!(session.read(9, 1), [0x22; 512]);
    assert_eq!(session.read(15, 10), [master_block(15), vec![0x33; 4096], master_block(24)].concat());
    // EXTENDED COPY of blocks 2 to 9 to 100 and, overlapping, one further.
    let page = session.ask(&[0x12, 1, 0x83, 0, 255, 0], 255).unwrap();
    let mut list = vec![9, 0, 0, 32, 0, 0, 0, 0, 0, 0, 0, 56, 0, 0, 0, 0];
    list.extend_from_slice(&[0xE4, 0, 0, 0, 1, 3, 0, 8]);
    list.extend_from_slice(&page[8..16]);
    list.extend_from_slice(&[0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2, 0]);
    for (count, from, to) in [(8_u16, 2_u64, 100_u64), (3, 100, 101)] {
        list.extend_from_slice(&[2, 0, 0, 24, 0, 0, 0, 0, 0, 0]);
        list.extend_from_slice(&count.to_be_bytes());
        list.extend_from_slice(&from.to_be_bytes());
        list.extend_from_slice(&to.to_be_bytes());
    }
    let before = session.read(2, 8);
    assert_eq!(session.tell(&sixteen(0x83, 0, 0, u32::try_from(list.len()).unwrap()), &list), Ok(()));
    assert_eq!(session.read(100, 8), [before[..512].repeat(4), before[4 * 512..].to_vec()].concat());
    let status = session.ask(&[0x84, 0, 9, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 12, 0, 0], 12);
    assert_eq!(status.unwrap(), [0, 0, 0, 8, 1, 0, 2, 1, 0, 0, 0, 5], "done: two segments, eleven blocks");
}

#[test]
fn what_is_mapped_is_told_and_a_sanitized_disk_is_zeros_without_space() {
    let lab = Lab::new();
    let mut session = lab.log_in(1, Isid::system(1));
    session.settle();
    session.write(0, &[0xee; 16 * 512]);
    session.unmap(0, 8);
    let status = |session: &mut Initiator, lba| session.ask(&sixteen(0x9E, 0x12, lba, 255), 255).unwrap();
    let first = status(&mut session, 0);
    assert_eq!(first[8..24], [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 8, 1, 0, 0, 0], "freed");
    assert_eq!(first[24..32], [0, 0, 0, 0, 0, 0, 0, 8]);
    assert_eq!(first[36], 0, "ours and the master's blocks are mapped");
    let blocks = u64::try_from(MASTER / 512).unwrap();
    let beyond = session.ask(&sixteen(0x9E, 0x12, blocks, 255), 255);
    assert_eq!(beyond, Err((5, 0x21, 0)));

    assert_eq!(session.tell(&[0x48, 0x02, 0, 0, 0, 0, 0, 0, 0, 0], &[]), Ok(()));
    let all = status(&mut session, 0);
    let count = u32::try_from(blocks).unwrap().to_be_bytes();
    assert_eq!(all, [&[0, 0, 0, 20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0][..], &count, &[1, 0, 0, 0]].concat());
    assert_eq!(session.read(0, 2048), vec![0; 1 << 20]);
    // The log page: nothing is used.
    let used = session.ask(&[0x4D, 0, 0x4C, 0, 0, 0, 0, 0, 64, 0], 64).unwrap();
    assert_eq!(used, [0x0C, 0, 0, 12, 0, 2, 3, 8, 0, 0, 0, 0, 1, 0, 0, 0]);
}

/// READ CAPACITY (16): the last block, a block's bytes, and the exponent of the physical blocks.
fn geometry(session: &mut Initiator) -> (u64, u32, u8) {
    let data = session.ask(&sixteen(0x9E, 0x10, 0, 32), 32).unwrap();
    let (last, rest) = data.split_at(8);
    (u64::from_be_bytes(last.try_into().unwrap()), u32::from_be_bytes(rest[..4].try_into().unwrap()), rest[5])
}

#[test]
fn a_disk_of_4096_byte_sectors_is_addressed_in_them_and_what_is_acknowledged_outlives_the_process() {
    const BYTES: usize = 4096;
    let filled = |n: usize| vec![u8::try_from(n % 251).unwrap(); BYTES];
    let mut lab = Lab::of(Limits::default(), |folder| {
        let path = folder.join("1.vhdx");
        let spec = Spec { logical_sector: 4096, block_size: 1 << 20, ..Spec::dynamic(MASTER as u64) };
        vhdx::create(&path, &spec).unwrap();
        let all = (0..MASTER / BYTES).flat_map(filled).collect::<Vec<u8>>();
        Chain::open(&path, Access::Write).unwrap().write(0, &[IoSlice::new(&all)]).unwrap();
    });
    let mut session = lab.log_in(1, Isid::system(1));
    session.settle();
    session.block = 4096;
    assert_eq!(geometry(&mut session), (1023, 4096, 0));
    assert_eq!(session.ask(&[0x25, 0, 0, 0, 0, 0, 0, 0, 0, 0], 8).unwrap(), [0, 0, 3, 0xFF, 0, 0, 0x10, 0]);
    let mode = session.ask(&[0x1A, 0, 0x08, 0, 255, 0], 255).unwrap();
    assert_eq!(mode[3..12], [8, 0, 0, 4, 0, 0, 0, 0x10, 0], "its block descriptor");

    assert_eq!(session.read(3, 2), [filled(3), filled(4)].concat());
    session.write(5, &[0xAA; BYTES]);
    assert_eq!(session.read(4, 3), [filled(4), vec![0xAA; BYTES], filled(6)].concat());
    session.write(1023, &[0xBB; BYTES]);
    assert_eq!(session.ask(&sixteen(0x88, 0, 1023, 2), 8192), Err((5, 0x21, 0)));
    assert_eq!(session.read(512, 256), (512..768).flat_map(filled).collect::<Vec<u8>>(), "1 MiB");
    assert_eq!(session.ask(&sixteen(0x88, 0, 0, 257), 1 << 20), Err((5, 0x24, 0)), "and no more");
    let new = [filled(3), vec![0x11; BYTES]].concat();
    assert_eq!(session.tell(&compare_and_write(3, 1), &new), Ok(()));
    assert_eq!(session.tell(&compare_and_write(3, 1), &new), Err((0xE, 0x1D, 0)));
    assert_eq!(session.tell(&sixteen(0x93, 0, 20, 3), &[0x55; BYTES]), Ok(()), "WRITE SAME");
    assert_eq!(session.tell(&sixteen(0x93, 0, 20, 3), &[0x66; 512]), Err((5, 0x24, 0)), "of a part of a block");
    // An initiator that sends less than it announced in its CDB: whole blocks count.
    assert_eq!(session.tell(&sixteen(0x8A, 0, 30, 2), &[0x77; BYTES + 2048]), Ok(()));
    session.unmap(8, 4);
    let status = session.ask(&sixteen(0x9E, 0x12, 8, 255), 255).unwrap();
    assert_eq!(status[8..24], [0, 0, 0, 0, 0, 0, 0, 8, 0, 0, 0, 4, 1, 0, 0, 0], "four blocks were freed");

    let wanted = |n| match n {
        3 => vec![0x11; BYTES],
        5 => vec![0xAA; BYTES],
        8..12 => vec![0; BYTES],
        20..23 => vec![0x55; BYTES],
        30 => vec![0x77; BYTES],
        n => filled(n),
    };
    let wanted: Vec<u8> = (0..64).flat_map(wanted).collect();
    assert!(session.read(0, 64) == wanted);
    lab.die_and_begin_again();
    let mut session = lab.log_in(1, Isid::system(1));
    session.settle();
    session.block = 4096;
    assert!(session.read(0, 64) == wanted);
    assert_eq!(session.read(1023, 1), [0xBB; BYTES]);
}

#[test]
fn a_disk_says_the_sectors_of_its_image() {
    let told = |name: &str, physical_sector| {
        let lab = Lab::of(Limits::default(), |folder| {
            let source = folder.join("source.vhdx");
            vhdx::create(&source, &Spec { physical_sector, ..Spec::dynamic(MASTER as u64) }).unwrap();
            import(&source, &folder.join(name), &mut |_, _| ()).unwrap();
        });
        let mut session = lab.log_in(1, Isid::system(1));
        session.settle();
        geometry(&mut session)
    };
    assert_eq!(told("1.vhdx", 512), (8191, 512, 0));
    assert_eq!(told("1.vhdx", 4096), (8191, 512, 3));
    assert_eq!(told("1.vhd", 4096), (8191, 512, 0), "a VHD has no such field");
}

#[test]
fn a_read_only_disk_says_so_and_is_never_written() {
    let lab = Lab::new();
    let mut session = lab.log_in(4, Isid::system(1));
    session.settle();
    let mode = session.ask(&[0x1A, 0x08, 0x3F, 0, 255, 0], 255).unwrap();
    assert_eq!(mode[2], 0x90, "WP, DPOFUA");
    for (cdb, data) in [
        (sixteen(0x8A, 0, 0, 1), vec![1; 512]),
        (sixteen(0x93, 0x09, 0, 1), Vec::new()),
        (compare_and_write(0, 1), vec![0; 1024]),
        (vec![0x48, 0x02, 0, 0, 0, 0, 0, 0, 0, 0], Vec::new()),
    ] {
        assert_eq!(session.tell(&cdb, &data), Err((7, 0x27, 0)), "{cdb:02x?}");
    }
    assert_eq!(session.read(0, 2), [master_block(0), master_block(1)].concat());
}

/// PERSISTENT RESERVE OUT with these keys, to be kept.
fn reserve_out(session: &mut Initiator, action: u8, kind: u8, keys: [u8; 2]) -> Result<(), (u8, u8, u8)> {
    let mut list = [0; 24];
    (list[7], list[15], list[20]) = (keys[0], keys[1], 1);
    session.tell(&[0x5F, action, kind, 0, 0, 0, 0, 0, 24, 0], &list)
}

#[test]
fn a_reservation_that_is_to_be_kept_outlives_the_process() {
    let mut lab = Lab::new();
    let conflict = Err((CONFLICT, 0, 0));
    let enter = |lab: &Lab| {
        let (mut own, mut admin) = (lab.log_in(2, Isid::system(1)), lab.connect(ELSEWHERE));
        assert_eq!(admin.log_in(ADMIN, &names(2).1, Isid::system(7)), 0);
        own.settle();
        admin.settle();
        (own, admin)
    };
    let write = |session: &mut Initiator| session.tell(&sixteen(0x8A, 0, 0, 1), &[1; 512]);
    let (mut own, mut admin) = enter(&lab);
    assert_eq!(reserve_out(&mut admin, 0, 0, [0, 5]), Ok(()));
    assert_eq!(reserve_out(&mut admin, 1, 1, [5, 0]), Ok(()));
    assert_eq!((write(&mut own), write(&mut admin)), (conflict, Ok(())));
    drop((own, admin));
    lab.die_and_begin_again();

    let (mut own, mut admin) = enter(&lab);
    assert_eq!((write(&mut own), write(&mut admin)), (conflict, Ok(())));
    // The machine takes it over: the other is told, and finds itself out.
    assert_eq!(reserve_out(&mut own, 6, 0, [0, 9]), Ok(()));
    assert_eq!(reserve_out(&mut own, 5, 3, [9, 5]), Ok(()));
    assert_eq!(write(&mut admin), Err((6, 0x2A, 0x05)));
    assert_eq!((write(&mut own), write(&mut admin)), (Ok(()), conflict));
    assert_eq!(reserve_out(&mut own, 3, 0, [9, 0]), Ok(()));
    assert_eq!(write(&mut admin), Ok(()));
    drop((own, admin));
    lab.die_and_begin_again();
    let (mut own, mut admin) = enter(&lab);
    assert_eq!((write(&mut own), write(&mut admin)), (Ok(()), Ok(())));
}

#[test]
fn an_initiator_that_is_let_in_comes_by_two_paths() {
    let lab = Lab::new();
    let mut paths = [1, 2].map(|number| {
        let mut path = lab.connect(ELSEWHERE);
        assert_eq!(path.log_in(ADMIN, &names(2).1, Isid::system(number)), 0);
        path
    });
    // The first did not answer anything meanwhile, and is still there.
    paths.iter_mut().for_each(Initiator::settle);
    assert_eq!(lab.app().sessions.of(&name(2)).len(), 2);
}

#[test]
fn at_its_limit_a_client_is_told_at_once_and_reads_overwrites_and_frees() {
    const LIMIT: u64 = 2 << 20;
    const BLOCKS: u32 = 128;
    let lab = Lab::new();
    let path = lab.state.path().join("disks/pc-06.vhd");
    let mut session = lab.log_in(6, Isid::system(1));
    session.settle();
    let on_host = || fs::metadata(&path).unwrap().blocks() * 512;
    let data = |byte: u8| vec![byte; BLOCKS as usize * 512];
    let try_write = |session: &mut Initiator, n: u32, byte: u8| {
        session.start_write(n * BLOCKS, &data(byte));
        status_of(&session.take_answer(0x21))
    };
    let refused = (0..64).find(|n| {
        let sense = try_write(&mut session, *n, 0xa1);
        assert!([None, Some((7, 0x27, 0x07))].contains(&sense), "{sense:?}");
        sense.is_some()
    });
    let refused = refused.unwrap();
    assert!(on_host() <= LIMIT, "{} bytes", on_host());
    assert!(on_host() + 2 * 65_536 > LIMIT, "{} bytes: it was told too soon", on_host());
    // Nothing of what was refused is there; what was taken is.
    let lba = |n: u32| n * BLOCKS;
    let blocks = u16::try_from(BLOCKS).unwrap();
    let master = (lba(refused)..lba(refused + 1)).flat_map(|lba| master_block(lba as usize));
    assert_eq!(session.read(lba(refused), blocks), master.collect::<Vec<u8>>());
    assert_eq!(session.read(lba(refused - 1), blocks), data(0xa1));
    // Again and again, at once; and between, what lies there is overwritten.
    let at_once = Instant::now();
    for n in 0..30 {
        assert_eq!(try_write(&mut session, refused + n, 0xa2), Some((7, 0x27, 0x07)));
        assert_eq!(try_write(&mut session, n, 0xa3), None);
    }
    assert!(at_once.elapsed() < Duration::from_secs(5));
    // A copy, a WRITE SAME and an atomic write to where nothing is yet are refused like any other.
    let same = sixteen(0x93, 0, u64::from(lba(refused + 9)), BLOCKS);
    assert_eq!(session.tell(&same, &[7; 512]), Err((7, 0x27, 0x07)));
    let mut atomic = sixteen(0x9C, 0, u64::from(lba(refused + 9)), 0);
    atomic[13] = 128;
    assert_eq!(session.tell(&atomic, &data(8)), Err((7, 0x27, 0x07)));
    // So are bits that are set, and a write that found what it compared with; of none of them a part is there.
    let held = session.read(lba(refused + 9), blocks);
    let or = sixteen(0x8B, 0, u64::from(lba(refused + 9)), BLOCKS);
    assert_eq!(session.tell(&or, &data(0xf0)), Err((7, 0x27, 0x07)));
    let compare = compare_and_write(lba(refused + 9).into(), u8::try_from(BLOCKS).unwrap());
    assert_eq!(session.tell(&compare, &[held.clone(), data(8)].concat()), Err((7, 0x27, 0x07)));
    assert_eq!(session.read(lba(refused + 9), blocks), held);
    assert!(on_host() <= LIMIT, "{} bytes", on_host());
    // What it frees it may take elsewhere.
    session.unmap(0, 8 * BLOCKS);
    for n in 0..6 {
        assert_eq!(try_write(&mut session, refused + n, 0xa4), None, "{n}");
    }
    assert!(on_host() <= LIMIT, "{} bytes", on_host());
    session.flush();
    assert_eq!(session.read(lba(refused + 5), blocks), data(0xa4));
    assert_eq!(session.read(0, 8), vec![0; 4096]);
    let told: Vec<_> = lab.events(Stage::Trouble).into_iter().filter_map(|event| event.fact).collect();
    assert_eq!(told.first(), Some(&Fact::LimitReached { limit: Some(2 << 20) }), "{told:?}");
    // Another limit holds from the next login on, and others have none.
    let mut other = lab.log_in(1, Isid::system(2));
    other.settle();
    for n in 0..40 {
        assert_eq!(try_write(&mut other, n, 1), None);
    }
}

/// How many bytes the unit has.
fn size(session: &mut Initiator) -> u64 {
    let (last, block, _) = geometry(session);
    (last + 1) * u64::from(block)
}

/// Does this on the second disk.
fn on_second<T>(session: &mut Initiator, act: impl FnOnce(&mut Initiator) -> T) -> T {
    session.lun = 1;
    let done = act(session);
    session.lun = 0;
    done
}

/// A session of the client with a data disk, past the first words of both units.
fn log_in_with_data(lab: &Lab, isid: Isid) -> Initiator {
    let mut session = lab.log_in(7, isid);
    session.settle();
    on_second(&mut session, Initiator::settle);
    session
}

#[test]
fn a_second_disk_is_a_unit_of_its_own_that_no_reset_and_no_rollback_touches() {
    const REPORT_LUNS: [u8; 12] = [0xA0, 0, 0, 0, 0, 0, 0, 0, 0, 64, 0, 0];
    const SERIAL: [u8; 6] = [0x12, 1, 0x80, 0, 64, 0];
    const IDENTITY: [u8; 6] = [0x12, 1, 0x83, 0, 255, 0];
    let lab = Lab::new();
    let path = lab.state.path().join("disks/pc-07.data.vhdx");
    assert!(!path.exists());
    let mut session = log_in_with_data(&lab, Isid::system(1));
    assert_eq!(session.ask(&REPORT_LUNS, 64).unwrap()[..], {
        [0, 0, 0, 16, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0]
    });
    assert_eq!((size(&mut session), on_second(&mut session, size)), (MASTER as u64, DATA));
    for page in [SERIAL, IDENTITY] {
        let first = session.ask(&page, 255).unwrap();
        assert_ne!(on_second(&mut session, |session| session.ask(&page, 255).unwrap()), first);
    }
    let model = on_second(&mut session, |session| session.ask(&[0x12, 0, 0, 0, 74, 0], 74).unwrap());
    assert_eq!(model[16..32], *b"DATA DISK       ");

    // The same blocks of both, at the same time.
    let both = [(0, vec![1; 4096]), (1, vec![2; 4096])];
    for _ in 0..20 {
        for (lun, data) in &both {
            session.lun = *lun;
            session.start_write(100, data);
        }
    }
    session.lun = 0;
    (0..40).for_each(|_| assert_eq!(status_of(&session.take_answer(0x21)), None));
    assert_eq!(session.read(100, 8), both[0].1);
    assert_eq!(on_second(&mut session, |session| session.read(100, 8)), both[1].1);
    assert_eq!(on_second(&mut session, |session| session.read(0, 1)), vec![0; 512], "it was empty");
    assert_eq!(session.read(0, 1), master_block(0));
    session.log_out();

    let client = Arc::clone(&lab.app().fleet()).client(&name(7)).unwrap().clone();
    let runtime = &lab.life().runtime;
    assert!(runtime.block_on(lab.app().reset_disk(&client)).unwrap().made_anew);
    let mut session = log_in_with_data(&lab, Isid::system(1));
    assert_eq!(session.read(100, 1), master_block(100));
    assert_eq!(on_second(&mut session, |session| session.read(100, 8)), both[1].1);

    runtime.block_on(lab.app().checkpoint(&client, String::new())).unwrap();
    session.write(100, &[3; 4096]);
    on_second(&mut session, |session| session.write(108, &[4; 4096]));
    session.log_out();
    runtime.block_on(lab.app().roll_back(&client, None)).unwrap();
    let mut session = log_in_with_data(&lab, Isid::system(1));
    assert_eq!(session.read(100, 1), master_block(100));
    assert_eq!(on_second(&mut session, |session| session.read(100, 16)), [both[1].1.clone(), vec![4; 4096]].concat());

    // Who has no data disk has one unit.
    let mut other = lab.log_in(1, Isid::system(1));
    other.settle();
    assert_eq!(other.ask(&REPORT_LUNS, 64).unwrap()[..], [0, 0, 0, 8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(on_second(&mut other, Initiator::test_unit_ready), Some((5, 0x25, 0)));
    assert!(!lab.state.path().join("disks/pc-01.data.vhdx").exists());
}

#[test]
fn a_second_disk_grows_at_a_login_and_whoever_is_there_is_told_once() {
    let mut lab = Lab::new();
    let mut session = log_in_with_data(&lab, Isid::system(1));
    on_second(&mut session, |session| session.write(7, &[7; 512]));
    let set = |lab: &Lab, data: Option<u64>| {
        let client = lab.app().fleet().client(&name(7)).unwrap().clone();
        let client = Client { data, ..client };
        let opened = lab.life().runtime.block_on(lab.app().disks.open_data(&client, &names(7).1));
        opened.unwrap().map(|disk| disk.disk.size())
    };
    assert_eq!(set(&lab, Some(3 << 40)), Some(3 << 40));
    assert_eq!(session.test_unit_ready(), None, "the first disk is as it was");
    assert_eq!(on_second(&mut session, Initiator::test_unit_ready), Some((6, 0x2A, 0x09)));
    assert_eq!(on_second(&mut session, Initiator::test_unit_ready), None);
    let capacity16 = |session: &mut Initiator| {
        let mut cdb = [0; 16];
        (cdb[0], cdb[1], cdb[13]) = (0x9E, 0x10, 32);
        u64::from_be_bytes(session.ask(&cdb, 32).unwrap()[..8].try_into().unwrap())
    };
    let last = (3_u64 << 40) / 512 - 1;
    assert_eq!(on_second(&mut session, capacity16), last);
    let far = on_second(&mut session, |session| session.tell(&sixteen(0x8A, 0, last, 1), &[8; 512]));
    assert_eq!(far, Ok(()));
    assert_eq!(on_second(&mut session, |session| session.read(7, 1)), vec![7; 512]);

    // It is wanted smaller (by the configuration of the next life), or not at all: nothing is lost.
    assert_eq!(set(&lab, Some(1 << 20)), Some(3 << 40));
    assert_eq!(set(&lab, None), None);
    lab.die_and_begin_again();
    let mut session = log_in_with_data(&lab, Isid::system(1));
    assert_eq!(on_second(&mut session, capacity16), last);
    let there = on_second(&mut session, |session| session.ask(&sixteen(0x88, 0, last, 1), 512));
    assert_eq!(there, Ok(vec![8; 512]));
    assert_eq!(on_second(&mut session, |session| session.read(7, 1)), vec![7; 512]);
}

#[test]
fn what_one_unit_is_asked_for_leaves_the_other() {
    let lab = Lab::new();
    let mut own = log_in_with_data(&lab, Isid::system(1));
    let mut helper = lab.connect(ELSEWHERE);
    assert_eq!(helper.log_in(HELPER, &names(7).1, Isid::system(7)), 0);
    helper.settle();
    on_second(&mut helper, Initiator::settle);

    // Reservations.
    let write = |session: &mut Initiator| session.tell(&sixteen(0x8A, 0, 0, 1), &[1; 512]);
    assert_eq!(on_second(&mut helper, |helper| reserve_out(helper, 0, 0, [0, 5])), Ok(()));
    assert_eq!(on_second(&mut helper, |helper| reserve_out(helper, 1, 1, [5, 0])), Ok(()));
    assert_eq!(on_second(&mut own, write), Err((CONFLICT, 0, 0)));
    assert_eq!((write(&mut own), write(&mut helper)), (Ok(()), Ok(())));
    assert!(lab.state.path().join("pending/pc-07.data.reservations").exists());
    assert!(!lab.state.path().join("pending/pc-07.reservations").exists());
    assert_eq!(on_second(&mut helper, |helper| reserve_out(helper, 3, 0, [5, 0])), Ok(()));
    let _ = on_second(&mut own, Initiator::test_unit_ready);

    // Resets: the others are told of the unit that was reset, and of no other.
    let reset = Some((6, 0x29, 0x03));
    on_second(&mut helper, |helper| {
        helper.start_lun_reset();
        assert_eq!(helper.take_answer(0x22).header[2], 0);
    });
    assert_eq!(own.test_unit_ready(), None);
    assert_eq!(on_second(&mut own, Initiator::test_unit_ready), reset);
    assert_eq!(on_second(&mut own, Initiator::test_unit_ready), None);
    helper.start_lun_reset();
    assert_eq!(helper.take_answer(0x22).header[2], 0);
    assert_eq!(on_second(&mut own, Initiator::test_unit_ready), None);
    assert_eq!(own.test_unit_ready(), reset);
}

#[test]
fn tasks_of_one_unit_go_on_while_the_other_is_reset() {
    let lab = Lab::new();
    // The first disk holds what is written to it.
    let (gate, (initiator, target)) = (lab.gate(7), names(7));
    let mut own = lab.connect(HOME);
    assert_eq!(own.log_in(&initiator, &target, Isid::system(1)), 0);
    own.settle();
    on_second(&mut own, Initiator::settle);
    let mut helper = lab.connect(ELSEWHERE);
    assert_eq!(helper.log_in(HELPER, &target, Isid::system(7)), 0);
    gate.shut(true);
    let held = own.start_write(9, &[1; 512]);
    eventually("the write is held", || gate.held() == 1);
    // Neither its own reset of the second, nor another's, waits for the first or ends what it does.
    on_second(&mut own, |own| {
        own.start_lun_reset();
        assert_eq!(own.take_answer(0x22).header[2], 0);
        own.clear_task_set();
        assert_eq!(own.test_unit_ready(), Some((6, 0x29, 0x03)));
        own.write(9, &[2; 512]);
    });
    on_second(&mut helper, |helper| {
        helper.start_lun_reset();
        assert_eq!(helper.take_answer(0x22).header[2], 0);
    });
    assert_eq!(gate.landed(), [0_u64; 0]);
    gate.shut(false);
    assert_eq!(status_of(&own.take_response(held)), None);
    assert_eq!(gate.landed(), [9]);
}

#[test]
fn what_was_acknowledged_on_a_second_disk_outlives_the_process_and_counts_against_the_limit() {
    let mut lab = Lab::new();
    let mut session = log_in_with_data(&lab, Isid::system(1));
    for block in (0..640).step_by(10) {
        on_second(&mut session, |session| session.write(block * 1000, &[0xab; 4096]));
    }
    let mut atomic = sixteen(0x9C, 0, 8, 0);
    atomic[13] = 8;
    assert_eq!(on_second(&mut session, |session| session.tell(&atomic, &[5; 4096])), Ok(()));
    lab.die_and_begin_again();
    let mut session = log_in_with_data(&lab, Isid::system(1));
    for block in (0..640).step_by(10) {
        assert_eq!(on_second(&mut session, |session| session.read(block * 1000, 8)), vec![0xab; 4096], "{block}");
    }
    assert_eq!(on_second(&mut session, |session| session.read(8, 8)), vec![5; 4096]);

    // 8 MiB for both disks together.
    let on_host = |file: &str| fs::metadata(lab.state.path().join("disks").join(file)).unwrap().blocks() * 512;
    let data = vec![3; 65_536];
    let grow = |session: &mut Initiator, n: u32| {
        session.start_write(n * 128, &data);
        status_of(&session.take_answer(0x21))
    };
    let full = Some((7, 0x27, 0x07));
    let refused = on_second(&mut session, |session| (40_000..40_200).find(|n| grow(session, *n) == full)).unwrap();
    assert_eq!(grow(&mut session, 3), full, "the first disk, too");
    let both = on_host("pc-07.data.vhdx") + on_host("pc-07.vhd");
    assert!(both <= DATA_LIMIT && both + (1 << 20) > DATA_LIMIT, "{both} bytes");
    on_second(&mut session, |session| {
        session.unmap(40_000 * 128, (refused - 40_000) * 128);
        session.flush();
    });
    assert_eq!(grow(&mut session, 3), None);
}

#[test]
fn a_second_disk_that_cannot_be_opened_keeps_its_machine_out_and_says_why() {
    let lab = Lab::new();
    let path = lab.state.path().join("disks/pc-07.data.vhdx");
    fs::write(&path, vec![7; 4096]).unwrap();
    let (own, target) = names(7);
    assert_eq!(lab.refused(HOME, &own, &target), 0x0300);
    let told = lab.events(Stage::Refused).pop().unwrap().detail;
    assert!(told.starts_with("its data disk: ") && told.contains("take `data` out of roost.toml"), "{told}");
    assert_eq!(fs::read(&path).unwrap(), vec![7; 4096], "it is as it was");
}
