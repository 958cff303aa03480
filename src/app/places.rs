//! Where the files of images and clients are under the state folder.
//!
//! ```text
//! images/NAME/1.vhd                 a version of an image, or 1.vhdx
//! disks/NAME.vhd                    a client's disk, or NAME.vhdx; its layers lie beside it, see `disk::overlay`
//! disks/NAME.data.vhdx              its second disk
//! ```
//!
//! An image is in one format, and so are the disks of its clients; [`names`] says which file is meant where a folder has
//! both.

use std::fs;
use std::path::{Path, PathBuf};

use crate::disk::overlay::{Place, versions};
use crate::disk::{Format, names};
use crate::fleet::image::FIRST_VERSION;
use crate::fleet::{Client, ClientName, ImageName};

/// The folder of an image.
#[must_use]
pub fn image_folder(state: &Path, image: &ImageName) -> PathBuf {
    state.join("images").join(image.as_str())
}

/// Where the version of an image is that clients boot: `STATE/images/NAME/1.vhd`.
#[must_use]
pub fn master_path(state: &Path, image: &ImageName) -> PathBuf {
    version_path(state, image, FIRST_VERSION)
}

/// Where a version of an image is: `STATE/images/NAME/VERSION.vhd`; where there is none, where a VHD would be.
#[must_use]
pub fn version_path(state: &Path, image: &ImageName, version: u32) -> PathBuf {
    versions::version_path(&image_folder(state, image), version)
}

/// Every version of every image: which image's, and its file.
#[must_use]
pub fn masters(state: &Path) -> Vec<(ImageName, PathBuf)> {
    let folders = fs::read_dir(state.join("images")).into_iter().flatten().flatten();
    // What is no name is an import under way, or somebody's own.
    let images =
        folders.filter_map(|entry| Some((entry.file_name().to_str()?.parse::<ImageName>().ok()?, entry.path())));
    let mut masters: Vec<_> = images
        .flat_map(|(image, folder)| {
            let files = fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
            files.filter(|path| versions::version_of(path).is_some()).map(move |path| (image.clone(), path))
        })
        .collect();
    masters.sort();
    masters
}

/// Where a client's own disk is: `STATE/disks/NAME.vhd`. Where there is none yet, it will be of its image's format.
#[must_use]
pub fn disk_path(state: &Path, client: &Client) -> PathBuf {
    own_disk(state, client.name.as_str(), &client.image)
}

fn own_disk(state: &Path, name: &str, image: &ImageName) -> PathBuf {
    let stem = state.join("disks").join(name);
    names::find(&stem).unwrap_or_else(|| {
        let format = Format::of_name(&master_path(state, image)).unwrap_or_default();
        names::path(&stem, format)
    })
}

/// What the file of a client's second disk is called. No other client's file is: names have no dots.
pub(super) fn data_file(client: &str) -> String {
    format!("{client}.data.vhdx")
}

/// Where a client's second disk is: `STATE/disks/NAME.data.vhdx`.
#[must_use]
pub fn data_path(state: &Path, client: &ClientName) -> PathBuf {
    state.join("disks").join(data_file(client.as_str()))
}

/// Where the disk is kept that a client had before its present one: `STATE/disks/NAME.vhd.previous`.
#[must_use]
pub fn previous_path(state: &Path, client: &Client) -> PathBuf {
    Place::new(disk_path(state, client)).previous()
}

/// The disks of clients that there are with their layers, also of clients that the mapping file no longer has.
#[must_use]
pub fn client_disks(state: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(state.join("disks")).into_iter().flatten().flatten();
    // The links to masters that lie there for 7-Zip are no disks of clients.
    let is_disk = |path: &PathBuf| names::stem(path).is_some() && !path.is_symlink();
    let mut disks: Vec<PathBuf> = entries.map(|entry| entry.path()).filter(is_disk).collect();
    disks.sort();
    disks
}

#[cfg(test)]
mod tests {
    use super::*;

    fn touch(path: &Path) {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, "").unwrap();
    }

    #[test]
    fn masters_are_the_numbered_disks_of_images_alone() {
        let state = tempfile::tempdir().unwrap();
        let images = state.path().join("images");
        for path in [
            "b/2.vhd",
            "b/10.vhdx",
            "b/1.vhd.blake3",
            "b/maintenance.vhdx",
            "b/notes.txt",
            "a/1.vhd",
            ".import-7/1.vhd",
            "Not A Name/1.vhd",
        ] {
            touch(&images.join(path));
        }
        let found: Vec<_> = masters(state.path())
            .into_iter()
            .map(|(image, path)| format!("{image} {}", path.strip_prefix(&images).unwrap().display()))
            .collect();
        assert_eq!(found, ["a a/1.vhd", "b b/10.vhdx", "b b/2.vhd"]);
        assert!(masters(&state.path().join("nowhere")).is_empty());
    }

    #[test]
    fn a_client_has_one_disk_which_is_the_one_that_is_there_else_of_its_images_format() {
        let folder = tempfile::tempdir().unwrap();
        let state = folder.path();
        let image = "linux".parse().unwrap();
        let disk = || own_disk(state, "pc-01", &image);
        let name = || disk().file_name().unwrap().to_str().unwrap().to_owned();
        assert_eq!(name(), "pc-01.vhd", "nobody knows better");
        touch(&state.join("images/linux/1.vhdx"));
        assert_eq!(name(), "pc-01.vhdx");
        touch(&state.join("disks/pc-01.vhd"));
        assert_eq!(name(), "pc-01.vhd", "of the image that it had before");
        touch(&state.join("disks/pc-01.vhdx"));
        assert_eq!(name(), "pc-01.vhdx");
        touch(&state.join("disks/pc-01.vhd.previous"));
        assert_eq!(Place::new(disk()).previous(), state.join("disks/pc-01.vhd.previous"));
        let layer = state.join("disks/pc-10.checkpoint-1.vhd");
        touch(&layer);
        std::os::unix::fs::symlink("nowhere", state.join(r"disks/..\images\linux\1.vhdx")).unwrap();
        assert_eq!(client_disks(state), [state.join("disks/pc-01.vhd"), state.join("disks/pc-01.vhdx"), layer]);
    }
}
