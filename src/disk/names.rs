//! What disk files are called: `STEM.vhd` or `STEM.vhdx`, one of the two. Where nothing but a stem is known, the file that
//! is there is found here, and nowhere else.
//!
//! What a file *is* its contents say; its name is for people and other tools, and is kept in step with them.
//!
//! # Both at once
//!
//! Where both are there, the VHDX is meant. So a disk can become one of the other format at one moment: by the rename that
//! puts `STEM.vhdx` into its place, or by the removal that takes it out of the way of `STEM.vhd`.

use std::path::{Path, PathBuf};

/// The formats in which a master or a client's disk can be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Format {
    /// VHD.
    #[default]
    Vhd,
    /// VHDX.
    Vhdx,
}

impl Format {
    /// All there are. Of two files of one stem the first in this order is meant.
    pub const ALL: [Self; 2] = [Self::Vhdx, Self::Vhd];

    /// What its files' names end in; the word of the command line and of JSON, too.
    #[must_use]
    pub const fn extension(self) -> &'static str {
        match self {
            Self::Vhd => "vhd",
            Self::Vhdx => "vhdx",
        }
    }

    /// The format that a file's name tells.
    #[must_use]
    pub fn of_name(path: &Path) -> Option<Self> {
        let extension = path.extension()?;
        Self::ALL.into_iter().find(|format| extension == format.extension())
    }
}

/// What is no format's word.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("no such format; there are vhd and vhdx")]
pub struct NoSuchFormat;

impl std::str::FromStr for Format {
    type Err = NoSuchFormat;

    fn from_str(word: &str) -> Result<Self, NoSuchFormat> {
        Self::ALL.into_iter().find(|format| word == format.extension()).ok_or(NoSuchFormat)
    }
}

/// The file of this stem in this format: `debian-12/1` becomes `debian-12/1.vhdx`. A stem has no dot of its own that would
/// count as an extension.
#[must_use]
pub fn path(stem: &Path, format: Format) -> PathBuf {
    stem.with_extension(format.extension())
}

/// The disk file of this stem that is there.
#[must_use]
pub fn find(stem: &Path) -> Option<PathBuf> {
    Format::ALL.into_iter().map(|format| path(stem, format)).find(|path| path.exists())
}

/// The stem of a disk file's name; `None` for what is no disk file by its name.
#[must_use]
pub fn stem(path: &Path) -> Option<&str> {
    Format::of_name(path)?;
    path.file_stem()?.to_str()
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn the_file_that_is_there_is_found_and_of_two_the_vhdx() {
        let dir = tempfile::tempdir().unwrap();
        let stem = dir.path().join("pc-01");
        assert_eq!(find(&stem), None);
        for format in [Format::Vhd, Format::Vhdx] {
            fs::write(path(&stem, format), "").unwrap();
            assert_eq!(find(&stem).as_deref().and_then(Format::of_name), Some(format));
        }
    }

    #[test]
    fn what_is_no_disk_by_its_name_has_no_stem() {
        let stem_of = |name: &str| stem(Path::new(name)).map(str::to_owned);
        assert_eq!(stem_of("disks/pc-01.vhdx").as_deref(), Some("pc-01"));
        assert_eq!(stem_of("pc-01.checkpoint-3.vhd").as_deref(), Some("pc-01.checkpoint-3"));
        for other in ["pc-01", "pc-01.vhd.next", "pc-01.vhdx.previous", "1.vhd.blake3", "1.VHD", ".vhd"] {
            assert_eq!(stem_of(other), None, "{other}");
        }
    }
}
