//! What a verb works on: the mapping file, and the state folder.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use super::Globals;
use super::error::{Error, Kind};
use super::output::colours;
use crate::app::places::master_path;
use crate::config::{self, Config, Loaded, Report};
use crate::disk::checksum::{Fitness, fitness};
use crate::disk::data;
use crate::fleet::{ClientName, ImageName};

/// The state folder, from `--state` alone where that is given: then no mapping file is needed.
pub(super) fn state(globals: &Globals) -> Result<PathBuf, Error> {
    match &globals.state {
        Some(state) => Ok(state.clone()),
        None => Ok(config(globals)?.settings.state),
    }
}

/// The mapping file's contents. Warnings are `roost check`'s and `roost run`'s to show.
pub(super) fn config(globals: &Globals) -> Result<Config, Error> {
    Ok(load(globals)?.config)
}

/// The mapping file's contents, checked against the images that there are, with warnings on standard error.
pub(super) fn loaded_with_warnings(globals: &Globals) -> Result<Loaded, Error> {
    let loaded = load(globals)?;
    let mut report = loaded.warnings.clone();
    if let Some(images) = images(&loaded.config.settings.state) {
        report = report.merged(loaded.check_images(&images));
    }
    if report.has_errors() {
        return Err(wrong(&report));
    }
    if !report.is_empty() && !globals.json {
        let text = if colours(&std::io::stderr()) { report.coloured() } else { report.to_string() };
        // Where standard error is gone, nobody reads warnings.
        let _ = std::io::stderr().write_all(text.as_bytes());
    }
    Ok(loaded)
}

fn load(globals: &Globals) -> Result<Loaded, Error> {
    let mut loaded = config::load(&globals.config).map_err(|report| {
        let error = wrong(&report);
        if globals.config.exists() { error } else { error.help("name another one with --config FILE") }
    })?;
    if let Some(state) = &globals.state {
        loaded.config.settings.state.clone_from(state);
    }
    Ok(loaded)
}

fn wrong(report: &Report) -> Error {
    Error::new(Kind::Configuration, report.to_string().trim_end())
}

/// The images that there are; `None` where there is no state folder with images that this user may read.
pub(super) fn images(state: &Path) -> Option<Vec<ImageName>> {
    let entries = fs::read_dir(state.join("images")).ok()?;
    // What is no name is an import under way, or somebody's own.
    let names = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    let mut names: Vec<ImageName> = names.filter(|name| master_path(state, name).exists()).collect();
    names.sort();
    Some(names)
}

/// Those of these images that are not what was imported, and how that is known. One that was only touched may be.
pub(super) fn changed_images(state: &Path, images: &[ImageName]) -> Vec<(ImageName, String)> {
    let why = |image: &ImageName| match fitness(&master_path(state, image)) {
        Ok(Fitness::Changed(why)) => Some((image.clone(), format!("it is not what was imported: {why}"))),
        Ok(_) => None,
        Err(error) => Some((image.clone(), error.to_string())),
    };
    images.iter().filter_map(why).collect()
}

/// Whose second disks there are, and of how many bytes. One that cannot be read is told of when it is opened.
pub(super) fn data_disks(state: &Path) -> Vec<(ClientName, u64)> {
    let files = fs::read_dir(state.join("disks")).into_iter().flatten().flatten();
    let disk = |file: fs::DirEntry| {
        let client: ClientName = file.file_name().to_str()?.strip_suffix(".data.vhdx")?.parse().ok()?;
        Some((client, data::size_of(&file.path()).ok()?))
    };
    files.filter_map(disk).collect()
}
