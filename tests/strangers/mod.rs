//! Disk files as others see them: the programs that read them, and files that others made.
//!
//! What is missing on this host is told in a line that begins with `skip:`.

use std::fs;
use std::io::{IoSliceMut, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use roost::disk::{Chain, Disk};

/// Whether a program can be run; says what to do if not.
pub(crate) fn has(test: &str, program: &str, package: &str) -> bool {
    let found = Command::new(program).arg("--help").stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok();
    if !found {
        println!("skip: {test} needs {program} (apt install {package})");
    }
    found
}

/// A file that others made, unpacked into a folder.
pub(crate) fn fixture(test: &str, dir: &Path, name: &str) -> Option<PathBuf> {
    let root = std::env::var_os("ROOST_FIXTURES")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/fixtures"), PathBuf::from);
    let packed = root.join(name);
    if !packed.exists() {
        println!("skip: {test} needs {name} in the folder that ROOST_FIXTURES names");
        return None;
    }
    let program = if name.ends_with(".bz2") { "bzip2" } else { "gzip" };
    let path = dir.join(packed.file_stem().unwrap());
    let unpacked = Command::new(program).arg("-dc").arg(&packed).stdout(fs::File::create(&path).unwrap()).status();
    if !unpacked.is_ok_and(|status| status.success()) {
        println!("skip: {test} needs {program} (apt install {program})");
        return None;
    }
    Some(path)
}

/// The SHA-256 of a stream, by coreutils.
pub(crate) fn sha256(feed: impl FnOnce(&mut dyn Write)) -> String {
    let mut child = Command::new("sha256sum").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    feed(child.stdin.as_mut().unwrap());
    let output = child.wait_with_output().unwrap();
    String::from_utf8(output.stdout).unwrap()[..64].to_owned()
}

pub(crate) fn sha256_of(disk: &Chain) -> String {
    sha256(|to| {
        let mut buffer = vec![0; 1 << 20];
        let mut at = 0;
        while at < disk.size() {
            let len = usize::try_from((disk.size() - at).min(1 << 20)).unwrap();
            disk.read(at, &mut [IoSliceMut::new(&mut buffer[..len])]).unwrap();
            to.write_all(&buffer[..len]).unwrap();
            at += len as u64;
        }
    })
}

/// The SHA-256 of what 7-Zip finds in a disk file of this type (`VHD`, `VHDX`). A refusal of its own gives no bytes at all and a word on stderr.
pub(crate) fn sha256_by_7zip(kind: &str, path: &Path) -> String {
    let mut command = Command::new("7zz");
    command.args(["e", &format!("-t{kind}"), "-so"]).arg(path).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let stdout = child.stdout.take().unwrap();
    let sum = Command::new("sha256sum").stdin(stdout).output().unwrap();
    let output = child.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.trim().is_empty(), "7zz refused {}: {said}", path.display());
    String::from_utf8(sum.stdout).unwrap()[..64].to_owned()
}

/// Reads disk files by wxtla, if tests/disks/run has built it (`tests/wxtla`) and says where it is.
pub(crate) struct Wxtla(PathBuf);

impl Wxtla {
    pub(crate) fn find(test: &str) -> Option<Self> {
        let found = std::env::var_os("ROOST_WXTLA").map(|path| Self(path.into()));
        if found.is_none() {
            println!("skip: {test} needs wxtla, which tests/disks/run builds where it reaches the registry of crates");
        }
        found
    }

    /// The SHA-256 of what it finds in a chain.
    pub(crate) fn sha256(&self, path: &Path) -> String {
        let mut child = Command::new(&self.0).arg(path).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let sum = Command::new("sha256sum").stdin(child.stdout.take().unwrap()).output().unwrap();
        let output = child.wait_with_output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "wxtla refused {}: {said}", path.display());
        String::from_utf8(sum.stdout).unwrap()[..64].to_owned()
    }
}
