//! `roost image export NAME[@VERSION] FILE` and `roost client export NAME FILE [--data]`: a disk as a file for elsewhere.
//!
//! A master never changes, so it is exported at any time. A client's disk is exported as it is when nobody is logged in on
//! it: while a system runs, its file is a disk in the middle of everything, with writes of its own and of Roost on their
//! way. The running process lets go of the disk first; a login in the meantime is refused, and comes through after it. A
//! checkpoint never changes either: it is exported whoever is logged in.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Instant;

use clap::Args;
use serde_json::json;

use super::ask::{Answer, ask, tell};
use super::at_rest::AtRest;
use super::error::{Error, Kind};
use super::output::{bytes, print, print_json, seconds};
use super::progress::{Progress, Unfinished};
use super::{Globals, client_disk, lab};
use crate::app::boots::ReleaseReport;
use crate::app::places::version_path;
use crate::app::report::{ClientReport, bytes_on_host};
use crate::disk::checksum::{Fitness, fitness};
use crate::disk::export::{ExportError, ExportFormat, Exported, chain, flatten};
use crate::disk::file::Access;
use crate::disk::{Chain, DiskError};
use crate::fleet::image::FIRST_VERSION;
use crate::fleet::{ClientName, ImageName};

/// How an export is written.
#[derive(Debug, Args)]
pub(super) struct Options {
    /// raw, vhd, vhd-fixed or vhdx [default: by the file's name: .raw .img .vhd .vhdx]
    #[arg(long, value_name = "FORMAT")]
    format: Option<ExportFormat>,
    /// A file for each layer, as FILE, FILE.parent-1 and so on, which belong together in one folder; else one file has all
    #[arg(long)]
    chain: bool,
    /// Write over what is there
    #[arg(long)]
    force: bool,
}

/// `debian-12`, or `debian-12@1`.
#[derive(Debug, Clone)]
pub(super) struct Version {
    image: ImageName,
    version: Option<u32>,
}

impl FromStr for Version {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, version) = match text.split_once('@') {
            Some((name, version)) => {
                let number = version.parse().map_err(|_| format!("`{version}` is no version's number"))?;
                (name, Some(number))
            }
            None => (text, None),
        };
        Ok(Self { image: name.parse().map_err(|error| format!("{error}"))?, version })
    }
}

pub(super) fn image(globals: &Globals, which: &Version, into: &Path, options: &Options) -> Result<(), Error> {
    let state = lab::state(globals)?;
    let Version { image, version } = which;
    let version = version.unwrap_or(FIRST_VERSION);
    let master = version_path(&state, image, version);
    if !master.exists() {
        let there = lab::images(&state).unwrap_or_default();
        let error = match there.contains(image) {
            true => Error::new(Kind::Refused, format!("image `{image}` has no version {version}")),
            false => Error::new(Kind::Refused, format!("there is no image `{image}`")),
        };
        return Err(error.help("`roost image list` shows those that there are"));
    }
    if let Ok(Fitness::Changed(why)) = fitness(&master) {
        let what = format!("{} is not what was imported: {why}", master.display());
        return Err(
            Error::failed(what).help("put back the file that was imported, and `roost verify --masters` finds out")
        );
    }
    export(globals, &master, Access::Read, into, options)
}

pub(super) fn client(
    globals: &Globals,
    name: &ClientName,
    into: &Path,
    data: bool,
    options: &Options,
) -> Result<(), Error> {
    let state = lab::state(globals)?;
    let released = match ask::<ClientReport>(&state, &format!("/v1/clients/{name}"))? {
        Answer::Got(_) => match tell::<ReleaseReport>(&state, &format!("/v1/clients/{name}/release"), &())? {
            Answer::Got(report) => report,
            Answer::NotFound(error) => return Err(error),
            Answer::NothingRuns => {
                return Err(Error::failed("the running roost has stopped meanwhile").help("try again"));
            }
        },
        Answer::NotFound(error) => return Err(error),
        // Nobody is logged in, but what a process that was killed left in memory of the disk's bits is put into the file first.
        Answer::NothingRuns => AtRest::open(globals, name)?
            .run(async |app, client| app.release_disk(&client).await.map_err(Error::failed))?,
    };
    let disk = if data { released.data_path } else { released.disk_path };
    match disk {
        None if data => Err(Error::new(Kind::Refused, format!("`{name}` has no data disk"))
            .help("`data = \"50G\"` in roost.toml gives it one, and its next login makes it")),
        Some(disk) => export(globals, &disk, Access::Read, into, options),
        None => Err(Error::new(Kind::Refused, format!("`{name}` has no disk yet; its first login makes one"))
            .help("until then it is what its image is: roost image export")),
    }
}

pub(super) fn checkpoint(
    globals: &Globals,
    name: &ClientName,
    number: u32,
    into: &Path,
    options: &Options,
) -> Result<(), Error> {
    let there = client_disk::checkpoints(globals, name)?;
    let Some(found) = there.iter().find(|checkpoint| checkpoint.number == number) else {
        return Err(Error::new(Kind::Refused, format!("`{name}` has no checkpoint {number}"))
            .help(format!("`roost client checkpoints {name}` lists those that there are")));
    };
    // It may be locked still, by whoever opened it when it was the disk; nobody writes to it any more.
    export(globals, &found.path, Access::Peek, into, options)
}

fn export(globals: &Globals, source: &Path, access: Access, into: &Path, options: &Options) -> Result<(), Error> {
    let format = options.format.or_else(|| ExportFormat::of_name(into)).ok_or_else(|| {
        Error::new(Kind::Refused, format!("{}: its name does not say which format is wanted", into.display()))
            .help("say it: --format raw, vhd, vhd-fixed or vhdx")
    })?;
    let disk = Chain::open(source, access).map_err(|error| match error {
        locked @ DiskError::Locked { .. } => Error::new(Kind::Refused, locked)
            .help("whoever has it open, a login or another command, has to let go of it"),
        other => other.into(),
    })?;
    let _unfinished = Unfinished::new(beside(into));
    let started = Instant::now();
    let mut progress = Progress::new("exporting", globals.json);
    let write = if options.chain { chain } else { flatten };
    let exported = write(&disk, into, format, options.force, &mut |done, total| progress.tell(done, total));
    progress.end();
    let exported = exported.map_err(|error| match error {
        ExportError::Exists { .. } => Error::new(Kind::Refused, error).help("--force writes over it"),
        ExportError::Itself { .. } | ExportError::NoFile { .. } => Error::new(Kind::Refused, error),
        ExportError::Disk(error) => error.into(),
        other => Error::failed(other),
    })?;
    tell_of(globals, &exported, format, started)
}

/// Where the file is while it grows.
fn beside(into: &Path) -> PathBuf {
    let mut name: OsString = into.as_os_str().to_owned();
    name.push(".new");
    name.into()
}

fn tell_of(globals: &Globals, exported: &Exported, format: ExportFormat, started: Instant) -> Result<(), Error> {
    let Exported { files, size } = exported;
    let took = started.elapsed();
    let stored: u64 = files.iter().filter_map(|path| bytes_on_host(path)).sum();
    if globals.json {
        return print_json(&json!({
            "files": files,
            "format": format.word(),
            "disk_size": size,
            "bytes_on_host": stored,
            "seconds": took.as_secs_f64(),
        }));
    }
    let names: Vec<String> = files.iter().map(|path| path.display().to_string()).collect();
    print(&format!(
        "{}: a disk of {}, {} on this host, exported in {}\n",
        names.join(" over "),
        bytes(*size),
        bytes(stored),
        seconds(took)
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_is_named_with_or_without_its_version() {
        let version = |text: &str| text.parse::<Version>().map(|which| (which.image.to_string(), which.version));
        assert_eq!(version("debian-12"), Ok(("debian-12".into(), None)));
        assert_eq!(version("debian-12@3"), Ok(("debian-12".into(), Some(3))));
        for wrong in ["debian-12@", "debian-12@stable", "@1", "../x", "a@-1"] {
            assert!(version(wrong).is_err(), "{wrong}");
        }
    }
}
