//! The real `roost` in a network of its own: namespaces of the kernel, that end with the test.
//!
//! [`alone`] runs a test's process again in a fresh network and mount namespace, by `unshare`: as root, or where users may
//! make namespaces, without. There a [`Lab`] is made. No port, interface or mount of the host is touched, and nothing has to
//! be removed.

use std::ffi::OsStr;
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Child, ChildStdin, Command, Output, Stdio};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use tempfile::TempDir;

/// Tells a test that it runs in its own namespaces.
const INSIDE: &str = "ROOST_TEST_IS_ALONE";
/// Longest wait for a word of the server's.
const PATIENCE: Duration = Duration::from_secs(20);

/// Whether this process has a network of its own, and the test goes on. If not, it has already been run in one, or cannot
/// be and said so.
pub(crate) fn alone(test: &str) -> bool {
    if std::env::var_os(INSIDE).is_some() {
        return true;
    }
    let enter = |program: &OsStr| {
        let mut command = Command::new("unshare");
        if !rustix::process::geteuid().is_root() {
            command.arg("--map-root-user");
        }
        command.args(["--net", "--mount"]).arg(program);
        command
    };
    let probe = enter("sh".as_ref()).args(["-c", "ip link set lo up && nsenter --version && mount -V"]).output();
    match probe {
        Ok(probe) if probe.status.success() => {}
        other => {
            let why = other.map_or_else(|error| error.to_string(), |probe| text(&probe.stderr));
            println!("skip: {test} needs root, or users' own namespaces, with unshare, nsenter and ip: {}", why.trim());
            return false;
        }
    }
    let this = std::env::current_exe().unwrap();
    let again = enter(this.as_os_str()).args(["--exact", test, "--nocapture"]).env(INSIDE, "1").output().unwrap();
    let said = text(&again.stdout) + &text(&again.stderr);
    assert!(again.status.success() && said.contains("1 passed"), "{said}");
    false
}

pub(crate) fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// A lab of three clients on the interface `lan`, 10.77.0.1/24, with an image of [`MASTER`] bytes.
pub(crate) struct Lab {
    folder: TempDir,
    /// Holds the namespaces of the server, where it has some of its own; ends with its standard input.
    host: Option<(Child, ChildStdin)>,
}

/// Size of the image `linux`; its block `n` is full of [`master_block`]`(n)`, up to the last MiB that is not zeros.
pub(crate) const MASTER: usize = 64 << 20;
const WRITTEN: usize = 1 << 20;

pub(crate) fn master_block(n: usize) -> Vec<u8> {
    vec![if n < WRITTEN / 512 { u8::try_from(n % 251).unwrap() } else { 0 }; 512]
}

const CONFIG: &str = r#"
[server]
interface = "lan"
dhcp = "full"
state = "STATE"
loader_dir = "LOADERS"

[server.pool]
range = "10.77.0.100-10.77.0.199"

[defaults]
image = "linux"

[clients]
pc-01 = { mac = "52:54:00:aa:00:01", ip = "10.77.0.11" }
pc-02 = { mac = "52:54:00:aa:00:02", ip = "10.77.0.12" }
pc-03 = { mac = "52:54:00:aa:00:03", ip = "10.77.0.13", off = true }
"#;

impl Lab {
    /// The server is at the other end of a cable: `nic` is ours, with the addresses of the clients.
    pub(crate) fn wired() -> Self {
        let mut host = Command::new("unshare");
        // A new network has a new /sys, which tells of its interfaces.
        host.args(["--net", "--mount", "sh", "-c", "mount -t sysfs sysfs /sys; echo ready; exec cat"]);
        let mut host = host.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        let mut ready = String::new();
        BufReader::new(host.stdout.as_mut().unwrap()).read_line(&mut ready).unwrap();
        let pid = host.id();
        let stdin = host.stdin.take().unwrap();
        here(&format!(
            "mount -t sysfs sysfs /sys; ip link set lo up && ip link add nic type veth peer name lan netns {pid} && ip link set nic up &&
             for n in 11 12 13 66; do ip address add 10.77.0.$n/24 dev nic; done"
        ));
        let lab = Self::of(Some((host, stdin)));
        lab.sh("ip link set lo up && ip address add 10.77.0.1/24 dev lan && ip link set lan up");
        lab
    }

    /// The server is in this process's own network; at the end of its cable is `plug`, which nobody uses.
    pub(crate) fn local() -> Self {
        here(
            "mount -t sysfs sysfs /sys; ip link set lo up && ip link add lan type veth peer name plug &&
             ip address add 10.77.0.1/24 dev lan && ip link set lan up && ip link set plug up",
        );
        Self::of(None)
    }

    fn of(host: Option<(Child, ChildStdin)>) -> Self {
        let lab = Self { folder: tempfile::tempdir().unwrap(), host };
        fs::create_dir(lab.path("loaders")).unwrap();
        fs::create_dir(lab.path("state")).unwrap();
        fs::write(lab.path("loaders/undionly.kpxe"), b"a loader for BIOS").unwrap();
        // The least that passes for a program for x64 UEFI.
        let mut efi = vec![0; 0x46];
        efi[..2].copy_from_slice(b"MZ");
        efi[0x3c] = 0x40;
        efi[0x40..].copy_from_slice(b"PE\0\0\x64\x86");
        fs::write(lab.path("loaders/snponly.efi"), efi).unwrap();
        let config = CONFIG.replace("STATE", lab.path("state").to_str().unwrap());
        fs::write(lab.path("roost.toml"), config.replace("LOADERS", lab.path("loaders").to_str().unwrap())).unwrap();
        let raw = fs::File::create(lab.path("linux.raw")).unwrap();
        let written: Vec<u8> = (0..WRITTEN / 512).flat_map(master_block).collect();
        std::os::unix::fs::FileExt::write_all_at(&raw, &written, 0).unwrap();
        raw.set_len(MASTER as u64).unwrap();
        lab
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// The path as the server's messages write it.
    pub(crate) fn name(&self, name: &str) -> String {
        self.path(name).display().to_string()
    }

    /// A program on the server's host.
    fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let Some((host, _)) = &self.host else { return Command::new(program) };
        let mut command = Command::new("nsenter");
        command.args(["--target", &host.id().to_string(), "--net", "--mount", "--"]).arg(program);
        command
    }

    /// A shell on the server's host.
    pub(crate) fn sh(&self, script: &str) {
        let output = self.command("sh").args(["-c", script]).current_dir(self.folder.path()).output().unwrap();
        assert!(output.status.success(), "{script}: {}", text(&output.stderr));
    }

    /// Runs a verb that ends by itself.
    pub(crate) fn roost(&self, arguments: &[&str]) -> Output {
        self.verb(arguments).stdin(Stdio::null()).output().unwrap()
    }

    fn verb(&self, arguments: &[&str]) -> Command {
        let mut command = self.command(env!("CARGO_BIN_EXE_roost"));
        command.arg("--config").arg(self.path("roost.toml")).args(arguments);
        command
    }

    /// Waits until the page of a client has this: events are stored a moment after they are logged.
    #[track_caller]
    pub(crate) fn shows(&self, client: &str, words: &str) {
        let begun = Instant::now();
        loop {
            let page = text(&self.roost(&["client", "show", client]).stdout);
            if page.contains(words) {
                return;
            }
            assert!(begun.elapsed() < PATIENCE, "{words}\nis not in\n{page}");
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Makes the image of the clients.
    pub(crate) fn import(&self) {
        let raw = self.path("linux.raw");
        let output = self.roost(&["image", "import", raw.to_str().unwrap(), "--name", "linux"]);
        assert!(output.status.success(), "{}", text(&output.stderr));
    }

    /// Starts the server, and waits until it serves.
    pub(crate) fn serve(&self) -> Server {
        self.serve_after(None)
    }

    /// The same, where it says something else before.
    pub(crate) fn serve_after(&self, warning: Option<&str>) -> Server {
        let mut child = self.verb(&["--log", "debug", "run"]).stderr(Stdio::piped()).spawn().unwrap();
        let said = Arc::<Said>::default();
        let lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let saying = Arc::clone(&said);
        std::thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                // Without the time of day.
                saying.lines.lock().unwrap().push(line.get(13..).unwrap_or(&line).to_owned());
                saying.more.notify_all();
            }
        });
        let server = Server { child, said };
        if let Some(warning) = warning {
            server.says(warning);
        }
        let before = server.says("serving 3 clients on lan (10.77.0.1): DHCP, TFTP, HTTP, iSCSI");
        assert!(!before.iter().any(|line| line.contains("no carrier")), "{before:?}");
        server
    }
}

/// A shell in the test's own namespaces.
pub(crate) fn here(script: &str) {
    let output = Command::new("sh").args(["-c", script]).output().unwrap();
    assert!(output.status.success(), "{script}: {}", text(&output.stderr));
}

impl Drop for Lab {
    fn drop(&mut self) {
        if let Some((mut host, stdin)) = self.host.take() {
            drop(stdin);
            let _ = host.wait();
        }
    }
}

#[derive(Default)]
struct Said {
    lines: Mutex<Vec<String>>,
    more: Condvar,
}

/// A running `roost run`, that dies by SIGKILL with its owner.
pub(crate) struct Server {
    child: Child,
    said: Arc<Said>,
}

impl Server {
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Waits until it logs this line, and forgets the lines up to it; those before it.
    #[track_caller]
    pub(crate) fn says(&self, line: &str) -> Vec<String> {
        let lines = self.said.lines.lock().unwrap();
        let missing = |lines: &mut Vec<String>| !lines.iter().any(|said| said == line);
        let (mut lines, waited) = self.said.more.wait_timeout_while(lines, PATIENCE, missing).unwrap();
        assert!(!waited.timed_out(), "it never said\n{line}\nbut\n{}", lines.join("\n"));
        let at = lines.iter().position(|said| said == line).unwrap();
        let before = lines.drain(..at).collect();
        lines.remove(0);
        before
    }

    /// A line that it logged and nobody asked for yet, with these words in it.
    pub(crate) fn said_so_far(&self, words: &str) -> Option<String> {
        self.said.lines.lock().unwrap().iter().find(|line| line.contains(words)).cloned()
    }

    /// Ends it as a power cut would, but for the host.
    pub(crate) fn kill(self) {
        drop(self);
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A command that was refused or failed: its exit code, and what it said on standard error.
pub(crate) fn failure(output: &Output) -> (i32, String) {
    (output.status.code().unwrap(), text(&output.stderr))
}

/// The page of the documentation that says what to do about each fault.
const PAGE: &str = include_str!("../../docs/troubleshooting.md");

/// A message whose lines the documentation has, which it must, with these values in the place of its CAPITALS.
#[track_caller]
pub(crate) fn documented(message: &str, values: &[(&str, &str)]) -> String {
    for line in message.lines() {
        assert!(PAGE.contains(line.trim()), "docs/troubleshooting.md does not have\n{line}");
    }
    values.iter().fold(message.to_owned(), |text, (placeholder, value)| {
        assert!(text.contains(placeholder), "{placeholder} does not stand in {text}");
        text.replace(placeholder, value)
    })
}
