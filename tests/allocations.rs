//! In steady state no command allocates anything: reads and writes of what is in memory, over real sockets.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

#[expect(dead_code, reason = "other tests ask more of it")]
mod initiator;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::fs;
use std::net::Ipv4Addr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use initiator::{Initiator, Isid, READ, cdb_read, status_of};
use roost::app::App;
use roost::app::recorder::Recorder;
use roost::config::{DhcpMode, Settings};
use roost::disk::import::import;
use roost::fleet::{Client, Fleet};
use roost::net::iscsi::Server;
use tokio::runtime::Runtime;

/// The system's allocator, with a count of what every thread but the initiator's asks of it.
struct Counting;

static COUNT: AtomicU64 = AtomicU64::new(0);

thread_local! {
    static IS_INITIATOR: Cell<bool> = const { Cell::new(false) };
}

fn count() {
    // A thread that ends has no such cell any more.
    if !IS_INITIATOR.try_with(Cell::get).unwrap_or(true) {
        COUNT.fetch_add(1, Ordering::Relaxed);
    }
}

#[expect(unsafe_code, reason = "an allocator cannot be counted otherwise")]
// SAFETY: every call goes to the system's allocator as it came.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: the caller keeps the trait's rules.
        unsafe { System.alloc(layout) }
    }
    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: as above.
        unsafe { System.alloc_zeroed(layout) }
    }
    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count();
        // SAFETY: as above.
        unsafe { System.realloc(memory, layout, size) }
    }
    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        // SAFETY: as above.
        unsafe { System.dealloc(memory, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const PREFIX: &str = "iqn.2026-11.internal.roost";
const HOME: Ipv4Addr = Ipv4Addr::LOCALHOST;
/// Commands on their way at once.
const DEPTH: u32 = 8;
/// Blocks of a command.
const BLOCKS: u16 = 8;

/// Serves one client's disk from this folder; the runtime, and where the target is.
fn serve(state: &Path) -> (Runtime, std::net::SocketAddr) {
    for folder in ["images/linux", "disks", "pending"] {
        fs::create_dir_all(state.join(folder)).unwrap();
    }
    let raw = state.join("linux.raw");
    fs::write(&raw, vec![7; 4 << 20]).unwrap();
    import(&raw, &state.join("images/linux/1.vhd"), &mut |_, _| ()).unwrap();
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
        macs: vec!["52:54:00:aa:00:01".parse().unwrap()],
        ip: Some(HOME),
        ..Client::new("pc-01".parse().unwrap(), "linux".parse().unwrap())
    };
    let fleet = Fleet::new([client]).unwrap();
    let app = Arc::new(App::new(settings, fleet, Recorder::detached(), "this-boot".to_owned()));
    let runtime = Runtime::new().unwrap();
    runtime.spawn({
        let app = Arc::clone(&app);
        async move { roost::app::space::run(&app).await }
    });
    let server = runtime.block_on(Server::bind((HOME, 0).into(), app)).unwrap();
    let address = server.address().unwrap();
    runtime.spawn(server.run(std::future::pending()));
    (runtime, address)
}

/// Writes and reads so many rounds of commands, each with [`DEPTH`] at once.
fn work(session: &mut Initiator, rounds: u32) {
    let data = [0xA5; BLOCKS as usize * 512];
    for round in 0..rounds {
        let lba = |n: u32| (round % 16 * DEPTH + n) * u32::from(BLOCKS);
        let writes: Vec<u32> = (0..DEPTH).map(|n| session.start_write(lba(n), &data)).collect();
        for write in writes {
            assert_eq!(status_of(&session.take_response(write)), None);
        }
        for n in 0..DEPTH {
            session.start(&cdb_read(lba(n), BLOCKS), READ, u32::from(BLOCKS) * 512, &[]);
        }
        for _ in 0..DEPTH {
            assert!(session.take_read(data.len()).1 == data);
        }
    }
}

#[test]
fn commands_on_what_is_in_memory_allocate_nothing() {
    /// Lists that grow to what they need do so within some rounds.
    const ROUNDS: u32 = 64;
    IS_INITIATOR.set(true);
    // In memory a write never waits for a device, which Roost knows of tmpfs.
    let state = tempfile::tempdir_in("/dev/shm").unwrap();
    let (runtime, address) = serve(state.path());
    let mut session = Initiator::connect(HOME, address);
    let (initiator, target) = (format!("{PREFIX}:client.pc-01"), format!("{PREFIX}:pc-01"));
    assert_eq!(session.log_in(&initiator, &target, Isid::system(1)), 0);
    session.settle();
    work(&mut session, ROUNDS);
    // What other threads do now and then (looking at the free space, say) is not a command's; it comes far less often than these.
    let fewest = (0..10)
        .map(|_| {
            let before = COUNT.load(Ordering::Relaxed);
            work(&mut session, ROUNDS);
            COUNT.load(Ordering::Relaxed) - before
        })
        .min();
    assert_eq!(fewest, Some(0), "allocations in {} commands", 2 * ROUNDS * DEPTH);
    session.log_out();
    runtime.shutdown_background();
}
