//! Whether a part of a file is in the page cache (`mincore(2)`), so that to move it waits for no device.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

/// Bytes that are looked at at once: what a command moves, and some.
const MOST: usize = 4 << 20;

/// Bytes of the smallest page that Linux has. Where pages are larger there are fewer answers.
const SMALLEST_PAGE: usize = 4096;

/// Whether all of this range of a file is in memory at this moment. A range of more than 4 MiB is not looked at, and counts
/// as not.
///
/// # Errors
/// The system's: the file cannot be mapped. (Of a file that is neither ours nor writable by us it says `true`.)
pub fn is_resident(file: BorrowedFd<'_>, offset: u64, len: u64) -> io::Result<bool> {
    let page = rustix::param::page_size();
    let before = offset % page as u64;
    let Some(span) = usize::try_from(before.saturating_add(len)).ok().filter(|span| *span <= MOST) else {
        return Ok(false);
    };
    if len == 0 {
        return Ok(true);
    }
    let start = libc::off_t::try_from(offset - before).map_err(io::Error::other)?;
    let mut pages = [0_u8; MOST / SMALLEST_PAGE];
    // SAFETY: a new mapping at a place of the system's choice, which nobody reads or writes and which is gone when this
    // block ends. `mincore` writes a byte for each of its pages, and `pages` has one for each page of the longest.
    unsafe {
        let map = libc::mmap(std::ptr::null_mut(), span, libc::PROT_READ, libc::MAP_SHARED, file.as_raw_fd(), start);
        if map == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let asked = libc::mincore(map, span, pages.as_mut_ptr());
        let error = io::Error::last_os_error();
        libc::munmap(map, span);
        if asked != 0 {
            return Err(error);
        }
    }
    // The other bits are not for us (`mincore(2)`).
    Ok(pages[..span.div_ceil(page)].iter().all(|page| page & 1 == 1))
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn what_was_just_written_is_in_memory_and_what_nobody_touched_is_not() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&[7; 64 * 1024]).unwrap();
        file.set_len(8 << 20).unwrap();
        let resident = |offset, len| is_resident(file.as_fd(), offset, len).unwrap();
        assert!(resident(0, 64 * 1024));
        assert!(resident(5000, 512), "any offset");
        assert!(resident(5 << 20, 0), "nothing");
        assert!(!resident(60 * 1024, 8192), "the second of two pages was never there");
        assert!(!resident(0, 5 << 20), "too long to look at");
    }
}
