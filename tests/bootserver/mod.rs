//! What the tests of boot files share: a server on loopback with loaders of known bytes, and programs that may be missing.

use std::fs;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use roost::app::bootfiles::{BootContext, BootFiles};
use roost::app::pi::PiFiles;
use roost::app::recorder::Recorder;
use roost::fleet::{Client, DiskPolicy, Event, Fleet, Initiators, Mac, Naming, Stage};
use roost::http::boot::{BootServer, router};
use roost::http::files::Files;
use roost::net::tftp::TftpServer;
use roost::script::Server;
use tempfile::TempDir;
use tokio::runtime::Runtime;
use tokio::sync::watch;
use tokio::task::JoinHandle;

pub(crate) const MAC: &str = "52:54:00:aa:00:01";
pub(crate) const LOCALHOST: Ipv4Addr = Ipv4Addr::LOCALHOST;

/// Boot files by TFTP and HTTP on loopback, where every address is that of `MAC`'s machine if one is given.
pub(crate) struct Lab {
    pub(crate) undionly: Vec<u8>,
    pub(crate) snponly: Vec<u8>,
    pub(crate) tftp: u16,
    pub(crate) http: u16,
    pub(crate) recorder: Recorder,
    pub(crate) out: TempDir,
    stop: watch::Sender<bool>,
    tasks: Vec<JoinHandle<()>>,
    runtime: Runtime,
}

impl Lab {
    /// With an `undionly.kpxe` of so many bytes.
    pub(crate) fn new(undionly: usize, neighbour: Option<&str>) -> Self {
        Self::with(undionly, neighbour, false)
    }

    /// The same, with TFTP over one port alone if that is wanted.
    pub(crate) fn with(undionly: usize, neighbour: Option<&str>, single_port: bool) -> Self {
        let undionly = bytes(undionly);
        let snponly = efi(100_000);
        let out = tempfile::tempdir().unwrap();
        let loaders = out.path().join("loaders");
        fs::create_dir(&loaders).unwrap();
        let files = out.path().join("files");
        fs::create_dir_all(files.join("rpi")).unwrap();
        fs::write(loaders.join("undionly.kpxe"), &undionly).unwrap();
        fs::write(loaders.join("snponly.efi"), &snponly).unwrap();

        let runtime = Runtime::new().unwrap();
        let recorder = Recorder::detached();
        let fleet = Arc::new(fleet());
        let neighbour = neighbour.map(|mac| mac.parse::<Mac>().unwrap());
        let at = |port| SocketAddrV4::new(LOCALHOST, port);
        let (stop, _) = watch::channel(false);
        let (tftp, http, tasks) = runtime.block_on(async {
            let folder = Arc::new(Files::open(&files).unwrap());
            let web = BootServer::bind(at(0)).await.unwrap().with_files(Some(folder));
            let http = web.address().port();
            let boot = Arc::new(BootContext {
                files: BootFiles::load(Some(&loaders)).unwrap(),
                fleet: Box::new(move || Arc::clone(&fleet)),
                server: Server { iscsi: at(3260), http: at(http), naming: Naming::new("iqn.2026-11.internal.roost") },
                recorder: recorder.clone(),
                resolver: Box::new(move |_| neighbour),
                begin: Box::new(|_, _| Box::pin(async { Ok(None) })),
            });
            let server = TftpServer::bind(at(0), 1500, Arc::clone(&boot)).await.unwrap().over_one_port(single_port);
            let server = server.with_pi(PiFiles::within(&files).unwrap().map(Arc::new));
            let tftp = server.address().port();
            let tasks = vec![
                tokio::spawn(server.run(stopped(stop.subscribe()))),
                tokio::spawn(web.run(router(boot), stopped(stop.subscribe()))),
            ];
            (tftp, http, tasks)
        });
        Self { undionly, snponly, tftp, http, recorder, out, stop, tasks, runtime }
    }

    /// A file's place for what a client fetches.
    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.out.path().join(name)
    }

    /// Asks both servers to stop.
    pub(crate) fn stop(&self) {
        self.stop.send_replace(true);
    }

    /// Waits until both servers have stopped.
    pub(crate) fn stopped(self) {
        for task in self.tasks {
            let stopped = async { tokio::time::timeout(Duration::from_secs(20), task).await };
            self.runtime.block_on(stopped).expect("it goes on").unwrap();
        }
    }

    /// Waits until so many events of this stage are known. A client is done a moment before the server has seen its last
    /// ACK.
    pub(crate) fn events(&self, stage: Stage, count: usize) -> Vec<Event> {
        let begin = Instant::now();
        loop {
            let events: Vec<Event> = self.recorder.events().into_iter().filter(|event| event.stage == stage).collect();
            if events.len() >= count || begin.elapsed() > Duration::from_secs(5) {
                return events;
            }
            thread::sleep(Duration::from_millis(5));
        }
    }
}

async fn stopped(mut stop: watch::Receiver<bool>) {
    stop.wait_for(|stop| *stop).await.unwrap();
}

fn fleet() -> Fleet {
    Fleet::new([Client {
        name: "pc-01".parse().unwrap(),
        group: None,
        macs: vec![MAC.parse().unwrap()],
        port: None,
        options: Vec::new(),
        ip: None,
        image: "debian-12".parse().unwrap(),
        disk: DiskPolicy::Keep,
        initiators: Initiators::OwnOnly,
        chap: false,
        read_only: false,
        off: false,
        title: None,
        note: None,
        limit: None,
        start: Default::default(),
        data: None,
    }])
    .unwrap()
}

/// Bytes in which no two blocks are alike.
pub(crate) fn bytes(length: usize) -> Vec<u8> {
    (0..length).map(|at| u8::try_from((at * 31 + at / 251) % 251).unwrap()).collect()
}

/// Bytes behind the header of a program for x64 UEFI.
fn efi(length: usize) -> Vec<u8> {
    let mut program = bytes(length);
    program[..2].copy_from_slice(b"MZ");
    program[0x3c..0x40].copy_from_slice(&0x40_u32.to_le_bytes());
    program[0x40..0x46].copy_from_slice(b"PE\0\0\x64\x86");
    program
}

/// Whether this program is there; if not, says so in one line, and the test that asks is over.
pub(crate) fn have(test: &str, program: &str, package: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let there = std::env::split_paths(&path).any(|dir| dir.join(program).exists());
    if !there {
        eprintln!("skip: {test} needs {program} (apt install {package})");
    }
    there
}

/// Runs a client, at most for a minute.
pub(crate) fn client(program: &str, arguments: &[&str], directory: &Path) -> Output {
    let output =
        Command::new("timeout").arg("60").arg(program).args(arguments).current_dir(directory).output().unwrap();
    assert!(
        output.status.success(),
        "{program} {arguments:?}: {}\n{}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    output
}
