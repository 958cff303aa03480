//! Formats that `qemu-img` reads for us, where it is installed: qcow2, VMDK, VDI.
//!
//! An image of such a format may name other files to be read with it: a backing file, an extent, a data file. Whoever made
//! the image could so have any file of this host read into a disk. So the names are looked at first, and only what lies
//! beside the image, under a bare name, is let through.
//!
//! `qemu-img convert` takes what lies beyond the end of a file for zeros: a download that was cut short becomes a disk that
//! looks whole. So `qemu-img check` and `qemu-img map` are asked first.

use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::thread;

use serde::Deserialize;
use thiserror::Error;

use super::SECTOR;
use super::error::DiskError;
use super::file::{Access, File, Media, read_vec};

/// Longest descriptor of a VMDK that is read. Each of 2 GiB extents has a line; more than this is some other file.
const MAX_DESCRIPTOR: u64 = 64 * 1024;
/// Longest progress line that is waited for, and longest complaint that is repeated.
const MAX_WORDS: u64 = 8 * 1024;

/// A format that `qemu-img` reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ByQemu {
    /// QEMU's own.
    Qcow2,
    /// VMware's.
    Vmdk,
    /// VirtualBox's.
    Vdi,
}

impl ByQemu {
    /// What `qemu-img -f` calls it.
    fn word(self) -> &'static str {
        match self {
            Self::Qcow2 => "qcow2",
            Self::Vmdk => "vmdk",
            Self::Vdi => "vdi",
        }
    }
}

/// Why an image was not converted.
#[derive(Debug, Error)]
pub enum QemuError {
    /// The image cannot be looked at.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// The program is not installed.
    #[error(
        "{}: reading {what} takes the program qemu-img, which is not installed: apt install qemu-utils (Debian, Ubuntu) \
         or dnf install qemu-img (Fedora)", path.display()
    )]
    Missing {
        /// The image.
        path: PathBuf,
        /// Its format.
        what: &'static str,
    },
    /// The image stands on other files.
    #[error(
        "{}: {what}; it is not followed, for it could be any file of this host. If it is yours, make the image one whole \
         first: qemu-img convert -O qcow2 {} whole.qcow2", path.display(), path.display()
    )]
    Elsewhere {
        /// The image.
        path: PathBuf,
        /// What it stands on.
        what: String,
    },
    /// The program ran and failed.
    #[error("{}: qemu-img cannot read it: {said}", path.display())]
    Failed {
        /// The image.
        path: PathBuf,
        /// Its last words.
        said: String,
    },
}

/// Makes a raw disk, with holes, of an image. `progress` is told hundredths of a percent.
///
/// # Errors
/// See [`QemuError`]. What is at `raw` is then of no use.
pub fn convert(source: &Path, format: ByQemu, raw: &Path, progress: &mut dyn FnMut(u64)) -> Result<(), QemuError> {
    stands_alone(source, format)?;
    // An absolute path is never taken for a protocol (`nbd:`) or an option.
    let path = std::path::absolute(source).map_err(|error| DiskError::io(source, "resolve", error))?;
    let raw = std::path::absolute(raw).map_err(|error| DiskError::io(raw, "resolve", error))?;
    is_whole(source, &path, format)?;
    let mut child = Command::new("qemu-img")
        .args(["convert", "-p", "-f", format.word(), "-O", "raw"])
        .args([&path, &raw])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|error| not_started(source, format, error))?;
    let mut stderr = child.stderr.take().expect("piped");
    let listener = thread::spawn(move || {
        let mut said = Vec::new();
        // What is beyond it is read too, so that the program never waits for us.
        let _ = (&mut stderr).take(MAX_WORDS).read_to_end(&mut said);
        let _ = io::copy(&mut stderr, &mut io::sink());
        String::from_utf8_lossy(&said).trim().replace('\n', "; ")
    });
    read_progress(&mut child.stdout.take().expect("piped"), progress);
    let ended = child.wait().map_err(|error| DiskError::io(Path::new("qemu-img"), "wait for", error))?;
    let said = listener.join().unwrap_or_default();
    if ended.success() {
        return Ok(());
    }
    Err(failed(source, &said, ended))
}

fn not_started(source: &Path, format: ByQemu, error: io::Error) -> QemuError {
    match error.kind() {
        io::ErrorKind::NotFound => QemuError::Missing { path: source.into(), what: format.word() },
        _ => DiskError::io(Path::new("qemu-img"), "start", error).into(),
    }
}

fn failed(source: &Path, said: &str, ended: ExitStatus) -> QemuError {
    let said = said.trim().strip_prefix("qemu-img: ").unwrap_or(said.trim());
    QemuError::Failed { path: source.into(), said: if said.is_empty() { ended.to_string() } else { said.into() } }
}

/// A part of an image, as `qemu-img map --output=json` tells it.
#[derive(Debug, Deserialize)]
struct Mapped {
    length: u64,
    data: bool,
    zero: bool,
    /// Where it lies in the file; compressed data does not say.
    offset: Option<u64>,
}

/// Refuses an image that leads to what is not there.
fn is_whole(source: &Path, path: &Path, format: ByQemu) -> Result<(), QemuError> {
    /// What `qemu-img check` ends with besides 0 where an image can be read: space that nobody uses, a format that has no
    /// check.
    const FINE: [i32; 2] = [3, 63];
    let ask = |arguments: &[&str]| {
        let mut command = Command::new("qemu-img");
        command.args(arguments).args(["-f", format.word()]).arg(path).stdin(Stdio::null());
        command.output().map_err(|error| not_started(source, format, error))
    };
    let checked = ask(&["check"])?;
    if !checked.status.success() && !checked.status.code().is_some_and(|code| FINE.contains(&code)) {
        // One line for each of thousands of clusters.
        let said = [checked.stderr, checked.stdout].concat();
        let said = String::from_utf8_lossy(&said).lines().find(|line| !line.trim().is_empty()).unwrap_or("").to_owned();
        return Err(failed(source, &said, checked.status));
    }
    let file = File::open(path, Access::Peek)?;
    if format == ByQemu::Vmdk && !read_vec(&file, 0, 4)?.starts_with(b"KDMV") {
        // Offsets are those of other files.
        return Ok(());
    }
    let mapped = ask(&["map", "--output=json"])?;
    let parts: Vec<Mapped> = match serde_json::from_slice(&mapped.stdout) {
        Ok(parts) if mapped.status.success() => parts,
        _ => return Err(failed(source, &String::from_utf8_lossy(&mapped.stderr), mapped.status)),
    };
    let ends =
        parts.iter().filter(|part| part.data && !part.zero).filter_map(|part| part.offset?.checked_add(part.length));
    let (needed, len) = (ends.max().unwrap_or(0), file.len()?);
    if needed > len {
        let what =
            format!("the image goes on to byte {needed}, but the file ends here: was the download or copy cut short?");
        return Err(DiskError::corrupt(source, len, what).into());
    }
    Ok(())
}

/// Reads `    (12.34/100%)\r` until the program closes its output.
fn read_progress(from: &mut dyn Read, progress: &mut dyn FnMut(u64)) {
    let (mut buffer, mut line) = ([0; 512], Vec::new());
    while let Ok(read @ 1..) = from.read(&mut buffer) {
        for &byte in &buffer[..read] {
            match byte {
                b'\r' | b'\n' => {
                    if let Some(done) = hundredths(&line) {
                        progress(done);
                    }
                    line.clear();
                }
                _ if (line.len() as u64) < MAX_WORDS => line.push(byte),
                _ => {}
            }
        }
    }
}

fn hundredths(line: &[u8]) -> Option<u64> {
    let text = std::str::from_utf8(line).ok()?.trim().strip_prefix('(')?.strip_suffix("/100%)")?;
    let (whole, part) = text.split_once('.')?;
    let done = whole.parse::<u64>().ok()?.checked_mul(100)?.checked_add(part.get(..2)?.parse().ok()?)?;
    (done <= 10_000).then_some(done)
}

/// Refuses an image that would have files read which do not lie beside it under a bare name.
fn stands_alone(path: &Path, format: ByQemu) -> Result<(), QemuError> {
    let file = File::open(path, Access::Peek)?;
    let front = read_vec(&file, 0, usize::try_from(file.len()?.min(104)).expect("at most 104"))?;
    let named = match format {
        ByQemu::Qcow2 => qcow2_names(&file, &front)?,
        ByQemu::Vmdk => {
            let descriptor = descriptor(&file, &front)?;
            let named = vmdk_names(&descriptor);
            if named.is_none() {
                flat_extents_are_whole(path, &descriptor)?;
            }
            named
        }
        // A differencing VDI names its parent by an identity, which qemu-img does not follow.
        ByQemu::Vdi => None,
    };
    named.map_or(Ok(()), |what| Err(QemuError::Elsewhere { path: path.into(), what }))
}

/// qcow2 (QEMU, `docs/interop/qcow2.txt`), all big-endian: version at 4, backing file's name at 8 and 16, incompatible
/// features at 72, of which bit 2 means an external data file.
fn qcow2_names(file: &File, front: &[u8]) -> Result<Option<String>, DiskError> {
    const EXTERNAL_DATA: u64 = 1 << 2;
    const LONGEST_NAME: u32 = 1023;
    let word = |at: usize| front.get(at..at + 4).map_or(0, |b| u32::from_be_bytes(b.try_into().expect("four bytes")));
    let long = |at: usize| u64::from(word(at)) << 32 | u64::from(word(at + 4));
    let version = word(4);
    if !matches!(version, 2 | 3) {
        return Err(DiskError::corrupt(file.path(), 4, format!("qcow2 version {version}; 2 and 3 are known")));
    }
    let (name_at, name_len) = (long(8), word(16));
    if name_at != 0 {
        let end = name_at.checked_add(name_len.into());
        let there = name_len <= LONGEST_NAME && end.is_some_and(|end| file.len().is_ok_and(|len| end <= len));
        let name = if there { read_vec(file, name_at, name_len as usize)? } else { Vec::new() };
        return Ok(Some(format!("it is only the changes to another image, `{}`", String::from_utf8_lossy(&name))));
    }
    let external = version == 3 && long(72) & EXTERNAL_DATA != 0;
    Ok(external.then(|| "its data is in another file".to_owned()))
}

/// The descriptor of a VMDK: the whole file, or a part that a sparse extent's header names (at 28 and 36, little-endian,
/// in sectors). An old extent ("COWD") has none.
fn descriptor(file: &File, front: &[u8]) -> Result<String, DiskError> {
    let sectors =
        |at: usize| front.get(at..at + 8).map_or(0, |b| u64::from_le_bytes(b.try_into().expect("eight bytes")));
    let len = file.len()?;
    let (at, wanted) = if front.starts_with(b"KDMV") {
        (sectors(28).saturating_mul(SECTOR), sectors(36).saturating_mul(SECTOR))
    } else if front.starts_with(b"COWD") {
        (0, 0)
    } else {
        (0, len)
    };
    if at.checked_add(wanted).is_none_or(|end| end > len) || wanted > MAX_DESCRIPTOR {
        let what = format!("a VMDK descriptor of {wanted} bytes at {at} in a file of {len}");
        return Err(DiskError::corrupt(file.path(), 28, what));
    }
    let bytes = read_vec(file, at, usize::try_from(wanted).expect("at most 64 KiB"))?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

fn vmdk_names(descriptor: &str) -> Option<String> {
    for line in descriptor.split(['\n', '\0']).map(str::trim) {
        if let Some((key, value)) = line.split_once('=') {
            let value = value.trim().trim_matches('"');
            match key.trim().to_ascii_lowercase().as_str() {
                "parentcid" if !value.eq_ignore_ascii_case("ffffffff") => {
                    return Some("it is only the changes to another image".to_owned());
                }
                "parentfilenamehint" => return Some(format!("it is only the changes to another image, `{value}`")),
                _ => {}
            }
        }
        let is_extent = ["RW ", "RDONLY ", "NOACCESS "].iter().any(|word| line.starts_with(word));
        if is_extent
            && let Some((_, rest)) = line.split_once('"')
            && let Some((name, _)) = rest.rsplit_once('"')
            && (name.contains(['/', '\\', ':']) || name == "..")
        {
            return Some(format!("its data is in `{name}`, which is no bare name of a file beside it"));
        }
    }
    None
}

/// The extents that are plain bytes (`RW 18432 FLAT "disk-flat.vmdk" 0`: sectors, and the first in the file): all there?
fn flat_extents_are_whole(path: &Path, descriptor: &str) -> Result<(), DiskError> {
    for line in descriptor.split(['\n', '\0']).map(str::trim) {
        let Some((before, rest)) = line.split_once('"') else { continue };
        let ([_, sectors, "FLAT"], Some((name, from))) =
            (&before.split_whitespace().collect::<Vec<_>>()[..], rest.rsplit_once('"'))
        else {
            continue;
        };
        let (sectors, from): (u64, u64) = (sectors.parse().unwrap_or(0), from.trim().parse().unwrap_or(0));
        let extent = path.with_file_name(name);
        let len = File::open(&extent, Access::Peek)?.len()?;
        if from.saturating_add(sectors).saturating_mul(SECTOR) > len {
            let what = format!("{} wants {sectors} sectors of it: was the download or copy cut short?", path.display());
            return Err(DiskError::corrupt(&extent, len, what));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn progress_is_read_and_what_is_none_passed_over() {
        let mut told = Vec::new();
        read_progress(
            &mut &b"    (0.00/100%)\r    (12.34/100%)\rnonsense\n(999.00/100%)\r    (100.00/100%)\r"[..],
            &mut |n| {
                told.push(n);
            },
        );
        assert_eq!(told, [0, 1_234, 10_000]);
    }

    #[test]
    fn an_image_that_would_have_another_file_read_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("image");
        let refused = |bytes: &[u8], format| {
            std::fs::write(&path, bytes).unwrap();
            stands_alone(&path, format).map_err(|error| error.to_string())
        };
        let mut qcow2 = vec![0; 512];
        qcow2[..8].copy_from_slice(b"QFI\xfb\0\0\0\x03");
        refused(&qcow2, ByQemu::Qcow2).unwrap();
        qcow2[79] = 4;
        assert!(refused(&qcow2, ByQemu::Qcow2).unwrap_err().contains("its data is in another file"));
        qcow2[8..20].copy_from_slice(&[0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 11]);
        qcow2[256..267].copy_from_slice(b"/etc/shadow");
        assert!(refused(&qcow2, ByQemu::Qcow2).unwrap_err().contains("`/etc/shadow`"));
        qcow2[8..16].fill(0xff);
        assert!(refused(&qcow2, ByQemu::Qcow2).unwrap_err().contains("changes to another image"));
        qcow2[7] = 9;
        assert!(refused(&qcow2, ByQemu::Qcow2).unwrap_err().contains("version 9"));

        let vmdk = |line: &str| format!("# Disk DescriptorFile\nCID=1\nparentCID=ffffffff\n{line}\n");
        let flat = vmdk("RW 2048 FLAT \"disk-flat.vmdk\" 0");
        std::fs::write(dir.path().join("disk-flat.vmdk"), vec![0; 1 << 20]).unwrap();
        refused(flat.as_bytes(), ByQemu::Vmdk).unwrap();
        std::fs::write(dir.path().join("disk-flat.vmdk"), vec![0; 1000]).unwrap();
        assert!(refused(flat.as_bytes(), ByQemu::Vmdk).unwrap_err().contains("disk-flat.vmdk: damaged at byte 1000"));
        for (line, word) in [
            ("RW 2048 FLAT \"/etc/shadow\" 0", "`/etc/shadow`"),
            ("RW 2048 FLAT \"nbd:host:1\" 0", "`nbd:host:1`"),
            ("RW 2048 FLAT \"../../secret\" 0", "`../../secret`"),
            ("parentFileNameHint=\"base.vmdk\"", "`base.vmdk`"),
            ("parentCID=12345678", "changes to another"),
        ] {
            let error = refused(vmdk(line).as_bytes(), ByQemu::Vmdk).unwrap_err();
            assert!(error.contains(word), "{error}");
        }
        let mut sparse = b"KDMV".to_vec();
        sparse.resize(512, 0);
        refused(&sparse, ByQemu::Vmdk).unwrap();
        sparse[28..44].fill(0xff);
        assert!(refused(&sparse, ByQemu::Vmdk).unwrap_err().contains("VMDK descriptor"));
    }
}
