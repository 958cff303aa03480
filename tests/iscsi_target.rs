//! The iSCSI target over real sockets on loopback, against an initiator of a few lines that sends what it is told to.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod initiator;

use std::fmt::Debug;
use std::fs;
use std::io::{IoSlice, IoSliceMut};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use initiator::{Initiator, Isid, READ, cdb_read, status_of};
use roost::app::App;
use roost::app::disks::ClientDisk;
use roost::app::recorder::Recorder;
use roost::config::{DhcpMode, Settings};
use roost::disk::import::import;
use roost::disk::{Disk, DiskError};
use roost::fleet::{Client, ClientName, DiskPolicy, Event, Fleet, Initiators, Stage};
use roost::net::iscsi::Server;
use tempfile::TempDir;
use tokio::runtime::Runtime;
use tokio::sync::watch;

const PREFIX: &str = "iqn.2026-11.internal.roost";
const HOME: Ipv4Addr = Ipv4Addr::LOCALHOST;
const ELSEWHERE: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 2);
const ADMIN: &str = "iqn.2026-11.internal.roost:admin";

/// The master's size, and what its block `n` is full of.
const MASTER: usize = 4 << 20;

fn master_block(n: usize) -> Vec<u8> {
    vec![u8::try_from(n % 251).unwrap(); 512]
}

/// A target with three clients: `pc-01` at [`HOME`], `pc-02` that lets [`ADMIN`] in, `pc-03` that is switched off.
struct Lab {
    state: TempDir,
    life: Option<Life>,
}

/// One life of the process.
struct Life {
    runtime: Runtime,
    app: Arc<App>,
    address: SocketAddr,
    _stop: watch::Sender<()>,
}

fn client(number: u8, initiators: Initiators, off: bool) -> Client {
    Client {
        name: format!("pc-0{number}").parse().unwrap(),
        group: None,
        macs: vec![format!("52:54:00:aa:00:0{number}").parse().unwrap()],
        ip: Some(HOME),
        image: "linux".parse().unwrap(),
        disk: DiskPolicy::Keep,
        initiators,
        read_only: false,
        off,
        title: None,
        note: None,
    }
}

impl Lab {
    fn new() -> Self {
        let state = tempfile::tempdir().unwrap();
        for folder in ["images/linux", "disks", "pending"] {
            fs::create_dir_all(state.path().join(folder)).unwrap();
        }
        let raw = state.path().join("linux.raw");
        fs::write(&raw, (0..MASTER / 512).flat_map(master_block).collect::<Vec<u8>>()).unwrap();
        import(&raw, &state.path().join("images/linux/1.vhd"), &mut |_, _| ()).unwrap();
        let life = Some(Life::begin(state.path()));
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
        self.life = Some(Life::begin(self.state.path()));
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
    fn begin(state: &Path) -> Self {
        let settings = Settings {
            interface: None,
            dhcp: DhcpMode::Off,
            pool: None,
            state: state.to_owned(),
            iqn: PREFIX.to_owned(),
            loader_dir: None,
        };
        let admin = Initiators::Also(vec![ADMIN.to_owned()]);
        let fleet = Fleet::new([
            client(1, Initiators::OwnOnly, false),
            client(2, admin, false),
            client(3, Initiators::Anyone, true),
        ]);
        let app = Arc::new(App::new(settings, fleet.unwrap(), Recorder::detached(), "this-boot".to_owned()));
        let runtime = Runtime::new().unwrap();
        let (stop, mut stopped) = watch::channel(());
        let server = runtime.block_on(Server::bind((HOME, 0).into(), Arc::clone(&app))).unwrap();
        let address = server.address().unwrap();
        runtime.spawn(server.run(async move { drop(stopped.changed().await) }));
        Self { runtime, app, address, _stop: stop }
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
    assert_eq!(ask(session.tsih, &both), 0x0206);
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
    assert_eq!(actor.test_unit_ready(), None, "the one that reset it is not told");
    other.write(21, &[3; 512]);
    assert_eq!(gate.landed(), [landed, vec![21]].concat(), "no more of what was stopped, no answers of it either");
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
    let reads = || lab.app().sessions.of(&name(1))[0].traffic.reads.load(std::sync::atomic::Ordering::Relaxed);
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
