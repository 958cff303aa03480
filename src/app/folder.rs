//! A folder of the operator's, in which strangers name files.
//!
//! The kernel itself keeps their paths within it (`openat2(2)`, `RESOLVE_BENEATH`): no `..` and no link leads out,
//! whatever is changed there meanwhile. Only plain files are opened; to open may wait for a disk.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::{Mode, OFlags, ResolveFlags};

/// How paths are resolved within it.
const WITHIN: ResolveFlags = ResolveFlags::BENEATH.union(ResolveFlags::NO_MAGICLINKS);

/// The folder.
#[derive(Debug)]
pub struct Folder(OwnedFd);

impl Folder {
    /// This one.
    ///
    /// # Errors
    /// There is no such folder, or it may not be read.
    pub fn open(path: &Path) -> io::Result<Self> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(Self(rustix::fs::open(path, flags, Mode::empty())?))
    }

    /// The file at this path, and how long it is.
    ///
    /// # Errors
    /// There is none, or it is none that may be read.
    pub fn find(&self, path: &[u8]) -> io::Result<(File, u64)> {
        // Without NONBLOCK, to open a pipe would wait for whoever writes into it.
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOCTTY | OFlags::NONBLOCK;
        let file = File::from(rustix::fs::openat2(&self.0, path, flags, Mode::empty(), WITHIN)?);
        let facts = file.metadata()?;
        if !facts.is_file() {
            return Err(io::ErrorKind::NotFound.into());
        }
        Ok((file, facts.len()))
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn nothing_outside_the_folder_and_nothing_but_files_can_be_opened() {
        let dir = tempfile::tempdir().unwrap();
        let (inside, outside) = (dir.path().join("in"), dir.path().join("out"));
        fs::create_dir_all(inside.join("sub")).unwrap();
        fs::write(inside.join("sub/kernel"), b"kernel").unwrap();
        fs::write(&outside, b"secret").unwrap();
        symlink("../out", inside.join("relative")).unwrap();
        symlink(&outside, inside.join("absolute")).unwrap();
        symlink("/proc/self/root", inside.join("root")).unwrap();
        symlink("sub/kernel", inside.join("within")).unwrap();
        rustix::fs::mkfifoat(rustix::fs::CWD, inside.join("pipe"), Mode::RUSR | Mode::WUSR).unwrap();
        let folder = Folder::open(&inside).unwrap();
        for path in ["sub/kernel", "within", "sub/../sub/kernel", "./sub//kernel"] {
            assert_eq!(folder.find(path.as_bytes()).unwrap().1, 6, "{path}");
        }
        for path in [
            "",
            ".",
            "..",
            "sub",
            "sub/",
            "pipe",
            "../out",
            "sub/../../out",
            "/etc/passwd",
            "//etc/passwd",
            "relative",
            "absolute",
            "root/etc/passwd",
            "sub/kernel/",
            "sub/kernel/x",
            "absent",
            "sub\\kernel",
            "sub/kernel\0",
        ] {
            assert!(folder.find(path.as_bytes()).is_err(), "{path}");
        }
        assert!(Folder::open(&outside).is_err());
    }
}
