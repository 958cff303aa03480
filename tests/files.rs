//! The verbs that work on disk files, as their users meet them, and against tools that nobody here made: what `qemu-img` wrote
//! is imported whole, what we export is read by `qemu-img` and 7-Zip as by us.
//!
//! A test whose tool is missing says `skip:` and passes.

#![expect(clippy::unwrap_used, reason = "a helper that fails is a test that fails")]

use std::ffi::OsStr;
use std::fs;
use std::io::{IoSlice, Read};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use roost::disk::file::Access;
use roost::disk::vhd::create_child;
use roost::disk::vhdx::{self, Spec};
use roost::disk::{Chain, Disk, Format, names};
use serde_json::{Value, json as value};
use tempfile::TempDir;

const DONE: i32 = 0;
const FAILED: i32 = 1;
const USAGE: i32 = 2;
const REFUSED: i32 = 5;
const DAMAGED: i32 = 6;

/// Bytes of the disks here: four blocks and a half, in whole MiB.
const SIZE: usize = 9 << 20;

fn has(test: &str, program: &str, package: &str) -> bool {
    let found = Command::new(program).arg("--help").stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok();
    if !found {
        println!("skip: {test} needs {program} (apt install {package})");
    }
    found
}

/// Random numbers that are the same in each run.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, bound: usize) -> usize {
        usize::try_from(self.next() % bound as u64).unwrap()
    }

    fn sectors(&mut self, count: usize) -> Vec<u8> {
        (0..count * 64).flat_map(|_| self.next().to_le_bytes()).collect()
    }
}

/// A disk of random data and much that is zero.
fn content(random: &mut Random) -> Vec<u8> {
    let mut bytes = vec![0; SIZE];
    for _ in 0..60 {
        let count = 1 + random.below(40);
        let start = random.below(SIZE / 512 - count) * 512;
        bytes[start..start + count * 512].copy_from_slice(&random.sectors(count));
    }
    let last = random.sectors(1);
    bytes[SIZE - 512..].copy_from_slice(&last);
    bytes
}

/// A lab with one image and one client whose disk is a child of it, in a folder that goes at the end.
struct Lab {
    folder: TempDir,
    /// Of its images and disks.
    format: Format,
}

impl Lab {
    fn new() -> Self {
        Self::of(Format::Vhd)
    }

    fn of(format: Format) -> Self {
        let lab = Self { folder: tempfile::tempdir().unwrap(), format };
        let file = format!(
            "[server]\ninterface = \"lo\"\ndhcp = \"off\"\nstate = \"{}\"\n\n[defaults]\nimage = \"lab\"\n\n[clients]\n\
             pc-01 = \"52:54:00:aa:00:01\"\npc-02 = \"52:54:00:aa:00:02\"\n",
            lab.state().display()
        );
        fs::write(lab.path("roost.toml"), file).unwrap();
        lab
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn state(&self) -> PathBuf {
        self.path("state")
    }

    fn master(&self, image: &str) -> PathBuf {
        names::path(&self.state().join("images").join(image).join("1"), self.format)
    }

    fn disk(&self) -> PathBuf {
        names::path(&self.state().join("disks/pc-01"), self.format)
    }

    fn command<A: AsRef<OsStr>>(&self, arguments: &[A]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_roost"));
        command.arg("--config").arg(self.path("roost.toml")).args(arguments).stdin(Stdio::null());
        command
    }

    #[track_caller]
    fn run<A: AsRef<OsStr>>(&self, arguments: &[A], code: i32) -> (String, String) {
        expect(self.command(arguments).output().unwrap(), code)
    }

    fn import(&self, source: &Path, name: &str) {
        let arguments =
            ["image", "import", source.to_str().unwrap(), "--name", name, "--format", self.format.extension()];
        self.run(&arguments, DONE);
    }

    /// The image `lab`, and what is in it.
    fn with_image(format: Format, random: &mut Random) -> (Self, Vec<u8>) {
        let (lab, bytes) = (Self::of(format), content(random));
        fs::write(lab.path("disk.raw"), &bytes).unwrap();
        lab.import(&lab.path("disk.raw"), "lab");
        (lab, bytes)
    }

    /// The disk of `pc-01`, which wrote something here and there, and what it sees.
    fn with_client(random: &mut Random) -> (Self, Vec<u8>) {
        Self::with_client_of(Format::Vhd, random)
    }

    fn with_client_of(format: Format, random: &mut Random) -> (Self, Vec<u8>) {
        let (lab, mut bytes) = Self::with_image(format, random);
        let master = Chain::open(&lab.master("lab"), Access::Read).unwrap();
        let relative = format!(r"..\images\lab\1.{}", format.extension());
        match format {
            Format::Vhd => create_child(&lab.disk(), &master, &relative).unwrap(),
            Format::Vhdx => vhdx::create_child(&lab.disk(), &master, &relative).unwrap(),
        };
        let disk = Chain::open(&lab.disk(), Access::Write).unwrap();
        for _ in 0..40 {
            let count = 1 + random.below(9);
            let start = random.below(SIZE / 512 - count) * 512;
            let new = if random.below(4) == 0 { vec![0; count * 512] } else { random.sectors(count) };
            disk.write(start as u64, &[IoSlice::new(&new)]).unwrap();
            bytes[start..start + new.len()].copy_from_slice(&new);
        }
        disk.flush().unwrap();
        (lab, bytes)
    }

    fn cat(&self, file: &Path) -> Vec<u8> {
        let output = self.command(&["cat".as_ref(), file.as_os_str()]).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        output.stdout
    }
}

#[track_caller]
fn expect(output: Output, code: i32) -> (String, String) {
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    let (out, err) = (text(output.stdout), text(output.stderr));
    assert_eq!(output.status.code(), Some(code), "stdout: {out}\nstderr: {err}");
    (out, err)
}

fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

fn qemu_img(arguments: &[&str], paths: &[&Path]) {
    let output = Command::new("qemu-img").args(arguments).args(paths).output().unwrap();
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// What 7-Zip finds in a VHD. A refusal of its own gives no bytes at all and a word on stderr.
fn by_7zip(path: &Path) -> Vec<u8> {
    let kind = if path.extension().is_some_and(|extension| extension == "vhdx") { "-tVHDX" } else { "-tVHD" };
    let output = Command::new("7zz").args(["e", kind, "-so"]).arg(path).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.trim().is_empty(), "7zz refused {}: {said}", path.display());
    output.stdout
}

#[test]
fn what_qemu_img_wrote_is_imported_whole() {
    if !has("what_qemu_img_wrote_is_imported_whole", "qemu-img", "qemu-utils") {
        return;
    }
    let mut random = Random(11);
    let lab = Lab::new();
    let bytes = content(&mut random);
    let raw = lab.path("disk.raw");
    fs::write(&raw, &bytes).unwrap();
    for (number, (format, options)) in [
        ("qcow2", &["-o", "compat=1.1"][..]),
        ("qcow2", &["-o", "compat=0.10"]),
        ("qcow2", &["-c"]),
        ("vmdk", &["-o", "subformat=monolithicSparse"]),
        ("vmdk", &["-o", "subformat=monolithicFlat"]),
        ("vmdk", &["-o", "subformat=twoGbMaxExtentSparse"]),
        ("vmdk", &["-o", "subformat=streamOptimized"]),
        ("vdi", &[]),
        ("vpc", &["-o", "subformat=dynamic,force_size=on"]),
        ("vpc", &["-o", "subformat=fixed,force_size=on"]),
    ]
    .into_iter()
    .enumerate()
    {
        let source = lab.path(&format!("disk-{number}.{format}"));
        qemu_img(&[&["convert", "-f", "raw", "-O", format], options].concat(), &[&raw, &source]);
        let name = format!("i{number}");
        lab.import(&source, &name);
        assert!(lab.cat(&lab.master(&name)) == bytes, "{format} {options:?}");
        qemu_img(&["compare", "-f", "vpc", "-F", "raw"], &[&lab.master(&name), &raw]);
    }
    let images = fs::read_dir(lab.state().join("images")).unwrap();
    assert_eq!(images.count(), 10, "no intermediate disk is left");

    // An overlay would have its base read, whichever file that is.
    let base = lab.path("disk-0.qcow2");
    let overlay = lab.path("overlay.qcow2");
    qemu_img(&["create", "-q", "-f", "qcow2", "-F", "qcow2", "-b"], &[&base, &overlay]);
    let import = |source: &Path| ["image", "import", source.to_str().unwrap(), "--name", "x"].map(str::to_owned);
    let (_, err) = lab.run(&import(&overlay), FAILED);
    assert!(err.contains("only the changes to another image") && err.contains("disk-0.qcow2"), "{err}");
    // Inside is a disk file whose parent could be any file.
    let nested = lab.path("nested.qcow2");
    qemu_img(&["convert", "-f", "raw", "-O", "qcow2"], &[&lab.master("i0"), &nested]);
    let (_, err) = lab.run(&import(&nested), FAILED);
    assert!(err.contains("a disk file of another format"), "{err}");
    // A file that was cut short, wherever, is not taken for zeros.
    let bytes_of_disk = bytes;
    for whole in ["disk-0.qcow2", "disk-2.qcow2", "disk-3.vmdk", "disk-6.vmdk", "disk-7.vdi"] {
        let cut = lab.path(&format!("cut-{whole}"));
        let bytes = fs::read(lab.path(whole)).unwrap();
        for len in [4096, bytes.len() / 2, bytes.len() - 4096] {
            fs::write(&cut, &bytes[..len]).unwrap();
            let output = lab.command(&import(&cut)).output().unwrap();
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            if output.status.success() {
                // What is cut off may be nothing of the disk: a stream's end marker.
                assert!(lab.cat(&lab.master("x")) == bytes_of_disk, "{whole} cut to {len}");
                fs::remove_dir_all(lab.state().join("images/x")).unwrap();
                let marker = whole == "disk-6.vmdk" && len == bytes.len() - 4096;
                assert!(marker, "{whole} cut to {len} has lost something");
            } else {
                assert!(output.status.code() == Some(FAILED) && said.contains(whole), "{whole} cut to {len}: {said}");
            }
        }
    }
    assert_eq!(fs::read_dir(lab.state().join("images")).unwrap().count(), 10);
}

#[test]
fn without_qemu_img_an_import_says_how_to_get_it() {
    let lab = Lab::new();
    let source = lab.path("disk.qcow2");
    fs::write(&source, [b"QFI\xfb\0\0\0\x03".as_slice(), &[0; 4088]].concat()).unwrap();
    let mut command = lab.command(&["image", "import", source.to_str().unwrap(), "--name", "x"]);
    let (_, err) = expect(command.env("PATH", lab.folder.path()).output().unwrap(), FAILED);
    assert!(err.contains("apt install qemu-utils") && err.contains("disk.qcow2"), "{err}");
}

#[test]
fn an_interrupted_import_leaves_nothing() {
    let lab = Lab::new();
    let source = lab.path("disk.qcow2");
    fs::write(&source, [b"QFI\xfb\0\0\0\x03".as_slice(), &[0; 4088]].concat()).unwrap();
    // It works until its work is taken away.
    let slow = lab.path("qemu-img");
    fs::write(
        &slow,
        "#!/bin/sh\n[ $1 = map ] && echo '[]'\n[ $1 = convert ] || exit 0\nwhile [ -e \"$8\" ]; do sleep 0.05; done\n",
    )
    .unwrap();
    fs::set_permissions(&slow, fs::Permissions::from_mode(0o755)).unwrap();
    let path = format!("{}:{}", lab.folder.path().display(), std::env::var("PATH").unwrap());
    for signal in ["-INT", "-TERM"] {
        let mut import = lab.command(&["image", "import", source.to_str().unwrap(), "--name", "x"]);
        let mut import = import.env("PATH", &path).stderr(Stdio::piped()).spawn().unwrap();
        let images = lab.state().join("images");
        let staged = || {
            fs::read_dir(&images).is_ok_and(|mut entries| {
                entries
                    .next()
                    .is_some_and(|e| fs::read_dir(e.unwrap().path()).is_ok_and(|mut inside| inside.next().is_some()))
            })
        };
        while !staged() {
            std::thread::sleep(std::time::Duration::from_millis(10));
            assert!(import.try_wait().unwrap().is_none(), "it ended by itself");
        }
        // Whoever is at work has started to listen for signals before its folder was made.
        std::thread::sleep(std::time::Duration::from_millis(100));
        assert!(Command::new("kill").arg(signal).arg(import.id().to_string()).status().unwrap().success());
        assert_eq!(import.wait().unwrap().code(), Some(130));
        let mut said = String::new();
        import.stderr.take().unwrap().read_to_string(&mut said).unwrap();
        assert!(said.contains("interrupted"), "{said}");
        assert_eq!(fs::read_dir(&images).unwrap().count(), 0);
    }
}

#[test]
fn what_is_exported_is_read_by_others_as_by_us() {
    let test = "what_is_exported_is_read_by_others_as_by_us";
    if !has(test, "7zz", "7zip") || !has(test, "qemu-img", "qemu-utils") {
        return;
    }
    for format in [Format::Vhd, Format::Vhdx] {
        let (lab, bytes) = Lab::with_client_of(format, &mut Random(23));
        let clean = fs::read(lab.path("disk.raw")).unwrap();
        let raw = lab.path("client.raw");
        for (of, name, bytes, raw) in
            [("image", "lab@1", &clean, lab.path("image.raw")), ("client", "pc-01", &bytes, raw.clone())]
        {
            let export = |file: &Path, more: &[&str]| {
                lab.run(&[&[of, "export", name, file.to_str().unwrap()], more].concat(), DONE).0
            };
            let out = export(&raw, &[]);
            assert!(out.contains("a disk of 9.0 MiB"), "{out}");
            assert!(fs::read(&raw).unwrap() == *bytes);
            assert!(fs::metadata(&raw).unwrap().blocks() * 512 < SIZE as u64 / 2, "its holes are holes");
            for (file, more, theirs) in [
                ("flat.vhd", &[][..], "vpc"),
                ("fixed.vhd", &["--format", "vhd-fixed"], "vpc"),
                ("flat.vhdx", &[], "vhdx"),
            ] {
                let file = lab.path(&format!("{of}-{file}"));
                export(&file, more);
                qemu_img(&["compare", "-f", theirs, "-F", "raw"], &[&file, &raw]);
                assert!(by_7zip(&file) == *bytes && lab.cat(&file) == *bytes, "{}", file.display());
            }
            // As a chain, in a folder that has nothing else, moved to another.
            let (folder, moved) = (lab.path(&format!("{of}-chain")), lab.path(&format!("{of}-moved")));
            fs::create_dir(&folder).unwrap();
            let made = json(&export(&names::path(&folder.join("top"), format), &["--chain", "--json"]));
            assert_eq!(made["files"].as_array().unwrap().len(), if of == "image" { 1 } else { 2 });
            fs::rename(&folder, &moved).unwrap();
            let top = names::path(&moved.join("top"), format);
            assert!(by_7zip(&top) == *bytes && lab.cat(&top) == *bytes);
            lab.run(&["verify", top.to_str().unwrap()], DONE);
            let (out, _) = lab.run(&["inspect", "--json", top.to_str().unwrap()], DONE);
            let found = json(&out);
            assert_eq!(
                (&found["complete"], found["warnings"].as_array().unwrap().len()),
                (&Value::Bool(true), 0),
                "{out}"
            );
            for path in found["layers"].as_array().unwrap() {
                assert!(path["path"].as_str().unwrap().starts_with(moved.to_str().unwrap()), "{out}");
            }
            if of == "client" && format == Format::Vhd {
                assert_eq!(found["layers"][0]["vhd"]["locators"][0]["text"], r".\top.parent-1.vhd");
            }
        }
    }
}

#[test]
fn an_image_is_a_vhdx_where_that_is_asked_for_or_needed() {
    let (lab, bytes) = Lab::with_image(Format::Vhdx, &mut Random(5));
    let master = lab.master("lab");
    assert!(lab.cat(&master) == bytes);
    assert!(master.with_extension("vhdx.blake3").exists());
    lab.run(&["verify", "--masters"], DONE);
    lab.run(&["check"], DONE);
    let (out, _) = lab.run(&["image", "list", "--json"], DONE);
    assert_eq!((&json(&out)[0]["path"], &json(&out)[0]["disk_size"]), (&value!(master), &value!(SIZE)));
    let (out, _) = lab.run(&["client", "list", "--json"], DONE);
    assert_eq!((&json(&out)[0]["disk_path"], &json(&out)[0]["disk_size"]), (&value!(lab.disk()), &value!(SIZE)));

    let large = lab.path("large.vhdx");
    vhdx::create(&large, &Spec { logical_sector: 4096, ..Spec::dynamic(SIZE as u64) }).unwrap();
    let import = |name| ["image", "import", large.to_str().unwrap(), "--name", name].map(str::to_owned);
    let (out, _) = lab.run(&import("large"), DONE);
    assert!(out.contains("it is a VHDX, for it cannot be a VHD: its sectors have 4096 bytes"), "{out}");
    let disk = Chain::open(&lab.master("large"), Access::Read).unwrap();
    assert_eq!(disk.sectors().logical, 4096);
    let with = |name, format: &str| [&import(name)[..], &["--format".to_owned(), format.to_owned()]].concat();
    let (_, err) = lab.run(&with("other", "vhd"), FAILED);
    assert!(err.contains("its sectors have 4096 bytes") && err.contains("help: "), "{err}");
    lab.run(&with("other", "raw"), USAGE);
    let flat = lab.path("flat.vhd");
    let (_, err) = lab.run(&["image", "export", "large", flat.to_str().unwrap()], FAILED);
    assert!(err.contains("export it as vhdx or raw") && !flat.exists(), "{err}");
    let flat = lab.path("flat.vhdx");
    lab.run(&["image", "export", "large", flat.to_str().unwrap()], DONE);
    assert_eq!(Chain::open(&flat, Access::Read).unwrap().sectors().logical, 4096);
}

#[test]
fn an_export_harms_nothing_and_says_why_it_will_not() {
    let (lab, bytes) = Lab::with_client(&mut Random(5));
    let mine = lab.path("mine.raw");
    fs::write(&mine, "mine").unwrap();
    let mine = mine.to_str().unwrap();
    let (_, err) = lab.run(&["image", "export", "lab", mine], REFUSED);
    assert!(err.contains("is there already") && err.contains("--force"), "{err}");
    assert_eq!(fs::read(mine).unwrap(), b"mine");
    lab.run(&["client", "export", "pc-01", mine, "--force"], DONE);
    assert!(fs::read(mine).unwrap() == bytes);

    let new = lab.path("new.bin");
    let new = new.to_str().unwrap();
    let disk = lab.disk();
    for (arguments, word) in [
        (&["image", "export", "lab", new][..], "--format raw, vhd"),
        (&["image", "export", "lab@2", new, "--format", "raw"], "has no version 2"),
        (&["image", "export", "win", new, "--format", "raw"], "there is no image `win`"),
        (&["client", "export", "pc-07", new, "--format", "raw"], "there is no client `pc-07`"),
        (&["client", "export", "pc-02", new, "--format", "raw"], "has no disk yet"),
        (&["client", "export", "pc-01", disk.to_str().unwrap(), "--force"], "a part of the disk that is exported"),
        (&["client", "export", "pc-01", lab.folder.path().to_str().unwrap(), "--format", "raw"], "is no plain file"),
    ] {
        let (_, err) = lab.run(arguments, REFUSED);
        assert!(err.contains(word), "{err}");
    }
    lab.run(&["image", "export", "lab", new, "--format", "qcow2"], USAGE);
    let (_, err) = lab.run(&["image", "export", "lab", "/nowhere/x.raw"], FAILED);
    assert!(err.contains("/nowhere/x.raw"), "{err}");
    // Somebody is on the disk.
    let _writer = Chain::open(&disk, Access::Write).unwrap();
    let (_, err) = lab.run(&["client", "export", "pc-01", new, "--format", "raw"], REFUSED);
    assert!(err.contains("in use"), "{err}");
    assert!(!Path::new(new).exists());
    let left: Vec<_> = fs::read_dir(lab.folder.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left.len(), 4, "{left:?}");
}

#[test]
fn cat_gives_a_disk_to_a_pipe_a_file_and_nobody() {
    let (lab, bytes) = Lab::with_client(&mut Random(31));
    let disk = lab.disk();
    let disk = disk.to_str().unwrap();
    assert!(lab.cat(Path::new(disk)) == bytes);
    let part = lab.command(&["cat", disk, "--offset", "1048576", "--length", "2097152"]).output().unwrap().stdout;
    assert!(part == bytes[1 << 20..3 << 20]);
    let rest = lab.command(&["cat", disk, "--offset", "9436672"]).output().unwrap().stdout;
    assert!(rest == bytes[SIZE - 512..]);

    // Into a file with its holes; behind what is there without.
    let file = lab.path("out.raw");
    let into = |append: bool| {
        let out = fs::File::options().create(true).append(append).write(true).open(&file).unwrap();
        assert!(lab.command(&["cat", disk]).stdout(out).status().unwrap().success());
    };
    into(false);
    assert!(fs::read(&file).unwrap() == bytes);
    assert!(fs::metadata(&file).unwrap().blocks() * 512 < SIZE as u64 / 2);
    into(true);
    assert!(fs::read(&file).unwrap() == [&bytes[..], &bytes[..]].concat());
    // Over what is there, zeros too.
    fs::write(&file, vec![0xee; SIZE]).unwrap();
    into(false);
    assert!(fs::read(&file).unwrap() == bytes);

    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let done = lab.command(&["cat", disk]).stdout(writer).stderr(Stdio::piped()).output().unwrap();
    assert_eq!((done.status.code(), done.stderr.len()), (Some(DONE), 0));

    for wrong in [["--offset", "1"], ["--length", "100"], ["--offset", "9437696"], ["--length", "18446744073709551104"]]
    {
        lab.run(&[&["cat", disk], &wrong[..]].concat(), REFUSED);
    }
    lab.run(&["cat", "/nowhere/disk.vhd"], FAILED);
    fs::write(lab.path("disk.gz"), b"\x1f\x8b\x08 and so on").unwrap();
    let (_, err) = lab.run(&["cat", lab.path("disk.gz").to_str().unwrap()], FAILED);
    assert!(err.contains("gunzip"), "{err}");
    let _writer = Chain::open(Path::new(disk), Access::Write).unwrap();
    lab.run(&["cat", disk], REFUSED);
}

#[test]
fn cat_refuses_a_terminal() {
    let test = "cat_refuses_a_terminal";
    if !has(test, "script", "bsdutils") {
        return;
    }
    let (lab, _) = Lab::with_image(Format::Vhd, &mut Random(3));
    let command = format!("{} cat {}", env!("CARGO_BIN_EXE_roost"), lab.master("lab").display());
    let output = Command::new("script").args(["-qec", &command, "/dev/null"]).stdin(Stdio::null()).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.code() == Some(REFUSED) && said.contains("nothing for a terminal"), "{said}");
}

#[test]
fn verify_tells_sound_from_damaged_and_repairs_what_is_certain() {
    let (lab, bytes) = Lab::with_client(&mut Random(17));
    let (disk, master) = (lab.disk(), lab.master("lab"));
    let disk_text = disk.to_str().unwrap();
    lab.run::<&str>(&["verify"], USAGE);
    lab.run(&["verify", "--all", "--masters"], USAGE);
    let (out, _) = lab.run(&["verify", disk_text], DONE);
    assert_eq!(out, format!("{disk_text}: sound (a chain of 2 files)\n"));
    let (out, _) = lab.run(&["verify", "--all", "--json"], DONE);
    assert_eq!((&json(&out)["sound"], json(&out)["disks"].as_array().unwrap().len()), (&Value::Bool(true), 2));
    lab.run(&["verify", "/nowhere/disk.vhd"], FAILED);

    // The footer at the end is cut off.
    let good = fs::read(&disk).unwrap();
    let file = fs::File::options().write(true).open(&disk).unwrap();
    file.set_len(good.len() as u64 - 512).unwrap();
    let (out, _) = lab.run(&["verify", disk_text], DAMAGED);
    assert!(out.contains("the footer at the end is lost") && out.contains("help: --repair"), "{out}");
    let (out, _) = lab.run(&["verify", disk_text, "--repair"], DONE);
    assert!(out.contains("repaired: ") && out.ends_with(": sound (a chain of 2 files)\n"), "{out}");
    assert!(fs::read(&disk).unwrap() == good && lab.cat(&disk) == bytes);

    // The table leads out of the file: told with its place, and left alone.
    file.write_all_at(&[0x7f, 0, 0, 0], 16_384).unwrap();
    let (out, _) = lab.run(&["verify", disk_text, "--repair"], DAMAGED);
    assert!(out.contains("at byte 16384: ") && !out.contains("repaired"), "{out}");
    let (out, _) = lab.run(&["verify", "--all", "--json"], DAMAGED);
    assert_eq!(json(&out)["disks"][1]["findings"][0]["offset"], 16_384, "{out}");
    file.write_all_at(&good[16_384..16_388], 16_384).unwrap();
    let _writer = Chain::open(&disk, Access::Write).unwrap();
    let (out, _) = lab.run(&["verify", disk_text], DONE);
    assert!(out.contains("is in use"), "{out}");

    // A master changes by one bit.
    lab.run(&["verify", "--masters"], DONE);
    fs::set_permissions(&master, fs::Permissions::from_mode(0o600)).unwrap();
    let file = fs::File::options().write(true).open(&master).unwrap();
    let whole = fs::read(&master).unwrap();
    let last = whole.len() as u64 - 4096;
    file.write_all_at(&[whole[usize::try_from(last).unwrap()] ^ 1], last).unwrap();
    let (out, _) = lab.run(&["verify", "--masters"], DAMAGED);
    assert!(out.contains("it was changed; put back the file that was imported"), "{out}");
    lab.run(&["verify", disk_text], DAMAGED);
    let (out, _) = lab.run(&["check"], 3);
    assert!(out.contains("image `lab`: it is not what was imported: its BLAKE3 was "), "{out}");
    let (_, err) = lab.run(&["image", "export", "lab", lab.path("x.raw").to_str().unwrap()], FAILED);
    assert!(err.contains("is not what was imported"), "{err}");
    let (out, _) = lab.run(&["inspect", master.to_str().unwrap()], DONE);
    assert!(out.contains("it is not what was imported"), "{out}");
    fs::write(&master, &whole).unwrap();
    lab.run(&["verify", "--masters"], DONE);
    lab.run(&["check"], DONE);

    // One without a record gets one when that is asked for.
    fs::remove_file(master.with_extension("vhd.blake3")).unwrap();
    let (out, _) = lab.run(&["verify", "--masters"], DONE);
    assert!(out.contains("has no recorded checksum yet"), "{out}");
    lab.run(&["verify", "--masters", "--repair"], DONE);
    assert!(master.with_extension("vhd.blake3").exists());
}

#[test]
fn inspect_tells_all_that_there_is_to_know() {
    let (lab, _) = Lab::with_client(&mut Random(41));
    let disk = lab.disk();
    let (out, _) = lab.run(&["inspect", disk.to_str().unwrap()], DONE);
    for line in [
        "  blocks    5 of 5, 2.0 MiB each\n",
        "  made by   win 10.0 on Wi2k\n",
        "  footer    at byte 0: sound\n",
        "            W2ru says ..\\images\\lab\\1.vhd\n",
        "  checksum  BLAKE3 ",
        "            the file was not touched since that was recorded\n",
    ] {
        assert!(out.contains(line), "{line:?} is not in {out}");
    }
    let (out, _) = lab.run(&["inspect", disk.to_str().unwrap(), "--json"], DONE);
    let found = json(&out);
    let (child, master) = (&found["layers"][0], &found["layers"][1]);
    assert!(child["vhd"]["sectors_here"].as_u64().is_some_and(|here| (40..400).contains(&here)), "{out}");
    assert_eq!(child["vhd"]["block_size"], 2 << 20);
    assert_eq!(child["vhd"]["footers"].as_array().unwrap().len(), 2);
    assert_eq!(child["vhd"]["locators"].as_array().unwrap().len(), 2);
    assert_eq!(child["parent"]["identity"], master["identity"]);
    assert_eq!(master["checksum"]["blake3"].as_str().unwrap().len(), 64);
    assert_eq!(child["checksum"], Value::Null);
}
