//! `roost image list`: the golden masters.
//!
//! An image appears whole, by the rename of its folder, and never changes: listing needs neither the lock nor a process.

use std::path::PathBuf;

use serde::Serialize;

use super::error::Error;
use super::output::{bytes, or_dash, print, print_json, print_table};
use super::{Globals, lab};
use crate::app::places::master_path;
use crate::app::report::{bytes_on_host, disk_size};
use crate::fleet::image::FIRST_VERSION;

/// One image, as `--json` gives it.
#[derive(Debug, Serialize)]
struct ImageReport {
    name: String,
    version: u32,
    path: PathBuf,
    /// The size of the disk, in bytes.
    disk_size: Option<u64>,
    /// What its file takes up on the host, in bytes.
    bytes_on_host: Option<u64>,
}

pub(super) fn run(globals: &Globals) -> Result<(), Error> {
    let state = lab::state(globals)?;
    let images: Vec<ImageReport> = lab::images(&state)
        .unwrap_or_default()
        .into_iter()
        .map(|name| {
            let path = master_path(&state, &name);
            ImageReport {
                name: name.to_string(),
                version: FIRST_VERSION,
                disk_size: disk_size(&path),
                bytes_on_host: bytes_on_host(&path),
                path,
            }
        })
        .collect();
    if globals.json {
        return print_json(&images);
    }
    if images.is_empty() {
        return print(&format!(
            "there are no images in {}; `roost image import FILE --name NAME` makes one\n",
            state.display()
        ));
    }
    let rows: Vec<[String; 4]> = images.iter().map(row).collect();
    print_table(["NAME", "VERSION", "DISK", "ON HOST"], &rows)
}

fn row(image: &ImageReport) -> [String; 4] {
    [
        image.name.clone(),
        image.version.to_string(),
        or_dash(image.disk_size.map(bytes)),
        or_dash(image.bytes_on_host.map(bytes)),
    ]
}
