//! The DHCP server against clients that nobody here wrote: busybox `udhcpc` and ISC `dhclient`, each in a network
//! namespace at the other end of a virtual cable.
//!
//! Needs root, `ip`, `udhcpc` and `dhclient`; without them it says what is missing and passes.

#![expect(clippy::unwrap_used, reason = "a test; whatever is in the way of it should end it")]

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use roost::app::App;
use roost::app::recorder::Recorder;
use roost::config::{DhcpMode, Settings};
use roost::dhcp::{LeaseChange, Leases, SERVER_PORT};
use roost::fleet::{Client, Fleet, Holder, Lease, Mac, Pool, Timestamp};
use roost::net::dhcp::{Durable, Place, Server};
use roost::net::udp::{BindError, Udp};
use roost::sys;

/// Where the helper process finds its folder.
const FOLDER: &str = "ROOST_TEST_FOLDER";
/// Longest that anything here takes; a client asks again after one to three seconds.
const PATIENCE: Duration = Duration::from_secs(20);

const PC_01: &str = "52:54:00:aa:00:01";
const PC_02: &str = "52:54:00:aa:00:02";
const STRANGER: &str = "52:54:00:bb:00:01";
const OTHER_STRANGER: &str = "52:54:00:bb:00:02";

#[test]
fn real_clients_get_renew_and_keep_their_addresses() {
    if let Some(missing) = what_is_missing() {
        println!("skip: {missing}");
        return;
    }
    let lab = Lab::new();
    let server = lab.start_server();

    // A machine's firmware, as udhcpc can play it: no broadcast flag, so the answer is a frame without ARP.
    lab.become_machine(PC_02);
    let pxe = lab.udhcpc(&["-V", "PXEClient:Arch:00007:UNDI:003000", "-x", "93:0007"]);
    assert_eq!(pxe["ip"], "10.77.0.100");
    assert_eq!((pxe["boot_file"].as_str(), pxe["siaddr"].as_str()), ("snponly.efi", "10.77.0.1"));
    assert_eq!((pxe["hostname"].as_str(), pxe["lease"].as_str()), ("pc-02", "3600"));
    assert_eq!((pxe["subnet"].as_str(), pxe["router"].as_str()), ("255.255.255.0", "10.77.0.254"));
    // Its system asks with the broadcast flag, and has the same address.
    let system = lab.udhcpc(&["-B"]);
    assert_eq!((system["ip"].as_str(), system.get("boot_file")), ("10.77.0.100", None));

    lab.become_machine(PC_01);
    assert_eq!(lab.dhclient(), "10.77.0.50", "fixed");
    lab.become_machine(STRANGER);
    assert_eq!(lab.dhclient(), "10.77.0.101");
    lab.become_machine(OTHER_STRANGER);
    assert_eq!(lab.udhcpc(&[])["ip"], "10.77.0.102");

    // udhcpc renews by unicast when it is told to.
    let mut resident = lab.spawn_udhcpc(&[]);
    lab.wait_for_event("bound");
    let before = lab.stored();
    signal(&resident, rustix::process::Signal::USR1);
    lab.wait_for_event("renew");
    assert_ne!(lab.stored(), before, "the renewal was stored before it was acknowledged");
    signal(&resident, rustix::process::Signal::KILL);
    resident.wait().unwrap();

    // A lease that cannot be stored is not acknowledged.
    File::create(lab.path("disk-is-full")).unwrap();
    let mut hopeless = lab.spawn_udhcpc(&["-q", "-t", "1", "-A", "1"]);
    assert!(!hopeless.wait().unwrap().success(), "udhcpc was told of a lease that no disk has");
    fs::remove_file(lab.path("disk-is-full")).unwrap();
    assert_eq!(lab.udhcpc(&[])["ip"], "10.77.0.102");

    drop(server);
    let _server = lab.start_server();
    // In another order, so that whoever is first is not simply given the first address.
    for (machine, address) in [(OTHER_STRANGER, "10.77.0.102"), (STRANGER, "10.77.0.101"), (PC_02, "10.77.0.100")] {
        lab.become_machine(machine);
        assert_eq!(lab.udhcpc(&[])["ip"], address, "{machine} after the restart, by udhcpc");
        assert_eq!(lab.dhclient(), address, "{machine} after the restart, by dhclient");
    }
}

/// The server's half of the test above, run by it in another namespace.
#[test]
#[ignore = "a helper process of the other test"]
fn serve() {
    let folder = PathBuf::from(std::env::var_os(FOLDER).expect("only run by the other test"));
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    runtime.block_on(async {
        let interfaces = sys::interfaces().unwrap();
        let interface = sys::choose(&interfaces, None).unwrap();
        let durable = Journal::open(&folder.join("leases"));
        let leases = Leases::restore(durable.leases.clone());
        let place = Place { address: interface.addresses[0].0, interface: interface.clone() };
        let server = Server::bind(Arc::new(app()), &[place], 80, leases, durable).unwrap();
        let port = format!("0.0.0.0:{SERVER_PORT}").parse().unwrap();
        assert!(matches!(Udp::bind(port, Some(&interface.name)), Err(BindError::Taken { .. })));
        assert!(Udp::bind(port, Some("lo")).is_ok(), "another interface is another server's matter");
        let running = tokio::spawn(server.run());
        File::create(folder.join("ready")).unwrap();
        // The other test holds our standard input open for as long as it lives.
        tokio::task::spawn_blocking(|| std::io::stdin().read_to_end(&mut Vec::new())).await.unwrap().unwrap();
        running.abort();
    });
}

fn app() -> App {
    let client = |name: &str, mac: &str, ip: Option<Ipv4Addr>| Client {
        macs: vec![mac.parse().unwrap()],
        ip,
        ..Client::new(name.parse().unwrap(), "debian-12".parse().unwrap())
    };
    let fleet = Fleet::new([client("pc-01", PC_01, Some(Ipv4Addr::new(10, 77, 0, 50))), client("pc-02", PC_02, None)]);
    let pool = Pool {
        first: Ipv4Addr::new(10, 77, 0, 100),
        last: Ipv4Addr::new(10, 77, 0, 199),
        router: Some(Ipv4Addr::new(10, 77, 0, 254)),
        dns: Vec::new(),
        lease: Duration::from_secs(3600),
    };
    let settings = Settings {
        interfaces: Vec::new(),
        dhcp: DhcpMode::Full,
        pool: Some(pool),
        pools: Vec::new(),
        state: PathBuf::new(),
        iqn: "iqn.2026-11.test".into(),
        loader_dir: None,
        loaders: Default::default(),
        files: None,
        tftp_single_port: false,
        ipv6_answer: true,
        dhcp_probe: true,
        ipv6_boot: None,
    };
    App::new(settings, fleet.unwrap(), Recorder::detached(), String::new())
}

/// Leases as lines of a file, each written before the client hears of it.
struct Journal {
    leases: Vec<Lease>,
    file: Mutex<File>,
    /// As long as this file exists, nothing can be stored.
    full: PathBuf,
}

impl Journal {
    fn open(path: &Path) -> Self {
        let mut leases: Vec<Lease> = Vec::new();
        for line in fs::read_to_string(path).unwrap_or_default().lines() {
            let [verb, holder, address, mac, expires] = line.split(' ').collect::<Vec<_>>().try_into().unwrap();
            let holder = match holder.parse::<Mac>() {
                Ok(mac) => Holder::Stranger(mac),
                Err(_) => Holder::Client(holder.parse().unwrap()),
            };
            leases.retain(|lease| lease.holder != holder);
            if verb == "held" {
                let expires = Timestamp(expires.parse().unwrap());
                leases.push(Lease { holder, address: address.parse().unwrap(), mac: mac.parse().unwrap(), expires });
            }
        }
        let file = Mutex::new(OpenOptions::new().create(true).append(true).open(path).unwrap());
        Self { leases, file, full: path.with_file_name("disk-is-full") }
    }
}

impl Durable for Journal {
    type Error = std::io::Error;

    async fn commit(&self, changes: Vec<LeaseChange>) -> Result<(), Self::Error> {
        let who = |holder: &Holder| match holder {
            Holder::Client(name) => name.to_string(),
            Holder::Stranger(mac) => mac.to_string(),
        };
        if self.full.exists() {
            return Err(std::io::ErrorKind::StorageFull.into());
        }
        let mut file = self.file.lock().unwrap();
        for change in &changes {
            match change {
                LeaseChange::Held(Lease { holder, address, mac, expires }) => {
                    writeln!(file, "held {} {address} {mac} {}", who(holder), expires.0)?;
                }
                LeaseChange::Gone(holder) => writeln!(file, "gone {} - - -", who(holder))?,
            }
        }
        file.sync_all()
    }
}

/// Why this test cannot run here.
fn what_is_missing() -> Option<String> {
    if !rustix::process::geteuid().is_root() {
        return Some("network namespaces need root".into());
    }
    let there =
        |tool: &&str| Command::new("sh").args(["-c", &format!("command -v {tool}")]).output().unwrap().status.success();
    if let Some(tool) = ["ip", "udhcpc", "dhclient"].iter().find(|tool| !there(tool)) {
        return Some(format!("there is no `{tool}`"));
    }
    let probe = format!("roost-probe-{}", std::process::id());
    let made = Command::new("ip").args(["netns", "add", &probe]).output().unwrap();
    if !made.status.success() {
        return Some(format!("no network namespace: {}", String::from_utf8_lossy(&made.stderr).trim()));
    }
    run("ip", &["netns", "del", &probe]);
    None
}

/// Two namespaces and the cable between them.
struct Lab {
    server: String,
    client: String,
    folder: tempfile::TempDir,
}

impl Lab {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let id = std::process::id();
        let lab = Self { server: format!("roost-s-{id}"), client: format!("roost-c-{id}"), folder };
        for namespace in [&lab.server, &lab.client] {
            run("ip", &["netns", "add", namespace]);
            run("ip", &["-n", namespace, "link", "set", "lo", "up"]);
        }
        run(
            "ip",
            &["link", "add", "wire", "netns", &lab.server, "type", "veth", "peer", "name", "nic", "netns", &lab.client],
        );
        run("ip", &["-n", &lab.server, "address", "add", "10.77.0.1/24", "dev", "wire"]);
        run("ip", &["-n", &lab.server, "link", "set", "wire", "up"]);
        run("ip", &["-n", &lab.client, "link", "set", "nic", "up"]);
        let script = "#!/bin/sh\n\
            [ \"$1\" = bound ] || [ \"$1\" = renew ] || exit 0\n\
            ip address replace \"$ip/24\" dev \"$interface\"\n\
            { echo \"event=$1\"; env; } > \"$ROOST_TEST_FOLDER/event.new\"\n\
            mv \"$ROOST_TEST_FOLDER/event.new\" \"$ROOST_TEST_FOLDER/event-$1\"\n";
        fs::write(lab.path("udhcpc.sh"), script).unwrap();
        fs::write(lab.path("dhclient.sh"), "#!/bin/sh\nexit 0\n").unwrap();
        for script in ["udhcpc.sh", "dhclient.sh"] {
            run("chmod", &["+x", lab.path(script).to_str().unwrap()]);
        }
        lab
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn in_namespace(&self, namespace: &str, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", namespace]).arg(program).env(FOLDER, self.folder.path());
        command
    }

    fn start_server(&self) -> Process {
        let _ = fs::remove_file(self.path("ready"));
        let mut command = self.in_namespace(&self.server, std::env::current_exe().unwrap());
        command.args(["--exact", "serve", "--ignored", "--nocapture"]).stdin(Stdio::piped()).stdout(Stdio::null());
        let server = Process(command.spawn().unwrap());
        self.wait_for(|| self.path("ready").exists(), "the server to start");
        server
    }

    /// The client's interface gets another machine's hardware address, and forgets its IP addresses.
    fn become_machine(&self, mac: &str) {
        for arguments in [&["down"][..], &["address", mac], &["up"]] {
            run("ip", &[&["-n", &self.client, "link", "set", "nic"], arguments].concat());
        }
        run("ip", &["-n", &self.client, "address", "flush", "dev", "nic", "scope", "global"]);
    }

    fn spawn_udhcpc(&self, options: &[&str]) -> Child {
        for event in ["event-bound", "event-renew"] {
            let _ = fs::remove_file(self.path(event));
        }
        let mut command = self.in_namespace(&self.client, "udhcpc");
        command.args(["-f", "-i", "nic", "-n", "-t", "8", "-T", "1", "-s"]).arg(self.path("udhcpc.sh")).args(options);
        command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
    }

    /// One lease by busybox: the variables that its script is given.
    fn udhcpc(&self, options: &[&str]) -> std::collections::HashMap<String, String> {
        let status = self.spawn_udhcpc(&[&["-q"], options].concat()).wait().unwrap();
        assert!(status.success(), "udhcpc got no lease");
        run("ip", &["-n", &self.client, "address", "flush", "dev", "nic", "scope", "global"]);
        let event = fs::read_to_string(self.path("event-bound")).unwrap();
        event.lines().filter_map(|line| line.split_once('=')).map(|(key, value)| (key.into(), value.into())).collect()
    }

    /// One lease by ISC's client, which remembers nothing of earlier ones: the address.
    fn dhclient(&self) -> String {
        let (leases, pid) = (self.path("dhclient.leases"), self.path("dhclient.pid"));
        File::create(&leases).unwrap();
        let mut command = self.in_namespace(&self.client, "dhclient");
        command.args(["-d", "-1", "-cf", "/dev/null", "-sf"]).arg(self.path("dhclient.sh"));
        command.arg("-lf").arg(&leases).arg("-pf").arg(&pid).arg("nic").stdout(Stdio::null()).stderr(Stdio::null());
        // It would stay to renew its lease; it ends here, without a RELEASE.
        let _dhclient = Process(command.spawn().unwrap());
        let lease = || fs::read_to_string(&leases).unwrap();
        self.wait_for(|| lease().contains('}'), "dhclient's lease");
        let text = lease();
        let address = text.lines().find_map(|line| line.trim().strip_prefix("fixed-address "));
        address.expect("a lease has an address").trim_end_matches(';').to_owned()
    }

    fn stored(&self) -> String {
        fs::read_to_string(self.path("leases")).unwrap()
    }

    fn wait_for_event(&self, event: &str) {
        let path = self.path(&format!("event-{event}"));
        self.wait_for(|| path.exists(), event);
    }

    fn wait_for(&self, done: impl Fn() -> bool, what: &str) {
        let start = Instant::now();
        while !done() {
            assert!(start.elapsed() < PATIENCE, "waited too long for {what}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        for namespace in [&self.server, &self.client] {
            let _ = Command::new("ip").args(["netns", "del", namespace]).status();
        }
    }
}

/// A process that ends with its owner, by SIGKILL.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn signal(child: &Child, signal: rustix::process::Signal) {
    rustix::process::kill_process(rustix::process::Pid::from_child(child), signal).unwrap();
}

fn run(program: &str, arguments: &[&str]) {
    let output = Command::new(program).args(arguments).output().unwrap();
    assert!(output.status.success(), "{program} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
}
