//! `roost cat FILE`: a disk's content through its chain to standard output, from every format that is read. Read-only.
//!
//! Holes are not read. Into a file they stay holes; a pipe gets their zeros.

use std::fs::File;
use std::io::{self, ErrorKind, IsTerminal, Seek, SeekFrom, Write};
use std::os::fd::AsFd;
use std::path::Path;

use clap::Args;
use rustix::fs::{OFlags, fcntl_getfl};

use super::error::{Error, Kind};
use crate::disk::copy::{each_piece, each_run};
use crate::disk::file::Access;
use crate::disk::inspect::identify;
use crate::disk::{Chain, Disk, DiskError, SECTOR};

/// Zeros that are written at once.
static ZEROS: [u8; 64 * 1024] = [0; 64 * 1024];

/// Which part of the disk.
#[derive(Debug, Args)]
pub(super) struct Part {
    /// First byte, a multiple of 512
    #[arg(long, value_name = "BYTES", default_value_t = 0)]
    offset: u64,
    /// How many bytes, a multiple of 512 [default: to the disk's end]
    #[arg(long, value_name = "BYTES")]
    length: Option<u64>,
}

pub(super) fn run(file: &Path, part: &Part) -> Result<(), Error> {
    if io::stdout().is_terminal() {
        let message = "a disk's bytes are nothing for a terminal";
        return Err(Error::new(Kind::Refused, message).help(format!("roost cat {} >disk.raw", file.display())));
    }
    if let Ok(Err(Some(foreign))) = identify(file) {
        return Err(Error::failed(format!("{}: {}", file.display(), foreign.name)).help(foreign.advice(file)));
    }
    let disk = Chain::open(file, Access::Read).map_err(|error| match error {
        locked @ DiskError::Locked { .. } => Error::new(Kind::Refused, locked)
            .help("a client is logged in on it, or roost has not let go of it: `roost client export` asks it to"),
        other => other.into(),
    })?;
    let end = part.length.map_or(Some(disk.size()), |length| part.offset.checked_add(length));
    let whole = [part.offset, part.length.unwrap_or(0)].iter().all(|bytes| bytes.is_multiple_of(SECTOR));
    let Some(end) = end.filter(|&end| whole && part.offset <= end && end <= disk.size()) else {
        let message = format!("the part is not of whole sectors within the {} bytes of the disk", disk.size());
        return Err(Error::new(Kind::Refused, message).help("--offset and --length are multiples of 512"));
    };
    match pour(&disk, part.offset, end) {
        // A reader that has gone away has seen enough.
        Err(Spilt::Out(error)) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
        Err(Spilt::Out(error)) => Err(Error::failed(format!("cannot write to standard output: {error}"))),
        Err(Spilt::Disk(error)) => Err(error.into()),
        Ok(()) => Ok(()),
    }
}

enum Spilt {
    Out(io::Error),
    Disk(DiskError),
}

impl From<DiskError> for Spilt {
    fn from(error: DiskError) -> Self {
        Self::Disk(error)
    }
}

impl From<io::Error> for Spilt {
    fn from(error: io::Error) -> Self {
        Self::Out(error)
    }
}

fn pour(disk: &Chain, start: u64, end: u64) -> Result<(), Spilt> {
    // Not through the buffer of `stdout`, which would look at every byte for the ends of lines.
    let mut out = File::from(io::stdout().as_fd().try_clone_to_owned()?);
    let holes = takes_holes(&mut out)?;
    let mut at = start;
    // To look for zeros pays where they become holes.
    let each = if holes { each_run::<Spilt> } else { each_piece::<Spilt> };
    each(disk, start..end, &mut |_, _| (), &mut |offset, bytes| {
        skip(&mut out, offset - at, holes)?;
        out.write_all(bytes)?;
        at = offset + bytes.len() as u64;
        Ok(())
    })?;
    skip(&mut out, end - at, holes)?;
    if holes {
        let len = out.stream_position()?;
        out.set_len(len)?;
    }
    Ok(())
}

/// Whether what is not written reads as zeros: into a plain file that ends where the writing begins.
fn takes_holes(out: &mut File) -> io::Result<bool> {
    let meta = out.metadata()?;
    Ok(meta.is_file() && !fcntl_getfl(&*out)?.contains(OFlags::APPEND) && out.stream_position()? >= meta.len())
}

fn skip(out: &mut File, mut zeros: u64, holes: bool) -> io::Result<()> {
    if holes {
        return out.seek(SeekFrom::Current(i64::try_from(zeros).map_err(io::Error::other)?)).map(drop);
    }
    while zeros > 0 {
        let len = zeros.min(ZEROS.len() as u64);
        out.write_all(&ZEROS[..usize::try_from(len).expect("at most 64 KiB")])?;
        zeros -= len;
    }
    Ok(())
}
