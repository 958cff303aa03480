//! How far a long verb is, and what goes away when it is interrupted.

use std::fs;
use std::io::{self, IsTerminal, Write};
use std::path::PathBuf;
use std::sync::{Mutex, Once, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use tokio::signal::unix::{SignalKind, signal};

use super::output::bytes;

/// How far it is, on standard error: a line that changes on a terminal, else a line now and then.
pub(super) struct Progress {
    started: Instant,
    told: Option<Instant>,
    every: Duration,
    terminal: bool,
    quiet: bool,
    what: &'static str,
}

impl Progress {
    /// The progress of `what`, from now on; `quiet` where a program reads along.
    pub(super) fn new(what: &'static str, quiet: bool) -> Self {
        let terminal = io::stderr().is_terminal();
        let every = if terminal { Duration::from_millis(100) } else { Duration::from_secs(5) };
        Self { started: Instant::now(), told: None, every, terminal, quiet, what }
    }

    /// Tells how far it is, if that was not told a moment ago.
    pub(super) fn tell(&mut self, done: u64, total: u64) {
        let since = self.told.unwrap_or(self.started);
        if self.quiet || since.elapsed() < self.every {
            return;
        }
        self.told = Some(Instant::now());
        let (before, after) = if self.terminal { ("\r\x1b[K", "") } else { ("", "\n") };
        let line = progress_line(self.what, done, total, self.started.elapsed());
        // Progress that cannot be shown is no reason to stop.
        let _ = write!(io::stderr(), "{before}{line}{after}");
    }

    /// Takes the line off a terminal.
    pub(super) fn end(&self) {
        if self.terminal && self.told.is_some() {
            let _ = write!(io::stderr(), "\r\x1b[K");
        }
    }
}

/// `importing   45%  921.6 MiB of 2.0 GiB, 184.3 MiB a second`
fn progress_line(what: &str, done: u64, total: u64, elapsed: Duration) -> String {
    let percent = u128::from(done) * 100 / u128::from(total.max(1));
    let rate = u128::from(done) * 1_000 / elapsed.as_millis().max(1);
    let rate = bytes(u64::try_from(rate).unwrap_or(u64::MAX));
    format!("{what}  {percent:3}%  {} of {}, {rate} a second", bytes(done), bytes(total))
}

/// What is to be removed where this process is interrupted.
static UNFINISHED: Mutex<Vec<PathBuf>> = Mutex::new(Vec::new());

/// An unfinished file, or a folder of such. It is removed if the process is told to stop (by Ctrl-C, SIGTERM, a closed
/// terminal) before this is dropped. Whoever drops it has put it in its place, or removed it.
pub(super) struct Unfinished(PathBuf);

impl Unfinished {
    /// From now on this path is unfinished.
    pub(super) fn new(path: PathBuf) -> Self {
        /// What shells expect of a process that Ctrl-C ended: 128 and the signal's number.
        const INTERRUPTED: i32 = 130;
        static LISTEN: Once = Once::new();
        UNFINISHED.lock().unwrap_or_else(PoisonError::into_inner).push(path.clone());
        LISTEN.call_once(|| {
            thread::spawn(|| {
                // Without it the signals end the process at once, and what is unfinished stays.
                let Ok(runtime) = tokio::runtime::Builder::new_current_thread().enable_all().build() else { return };
                runtime.block_on(told_to_stop());
                // Held to the end: whoever is about to finish, or to fail because of what goes away here, waits.
                let unfinished = UNFINISHED.lock().unwrap_or_else(PoisonError::into_inner);
                for path in &*unfinished {
                    let _ = if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) };
                }
                let _ = writeln!(io::stderr(), "interrupted; what was unfinished is removed");
                std::process::exit(INTERRUPTED);
            });
        });
        Self(path)
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        UNFINISHED.lock().unwrap_or_else(PoisonError::into_inner).retain(|path| *path != self.0);
    }
}

async fn told_to_stop() {
    let kinds = [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup()];
    let (Ok(mut interrupt), Ok(mut terminate), Ok(mut hangup)) = (signal(kinds[0]), signal(kinds[1]), signal(kinds[2]))
    else {
        return std::future::pending().await;
    };
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
        _ = hangup.recv() => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn progress_says_how_much_and_how_fast_and_never_divides_by_nothing() {
        let line = progress_line("importing", 512 << 20, 2 << 30, Duration::from_secs(4));
        assert_eq!(line, "importing   25%  512.0 MiB of 2.0 GiB, 128.0 MiB a second");
        assert_eq!(
            progress_line("checking", 0, 0, Duration::ZERO),
            "checking    0%  0 bytes of 0 bytes, 0 bytes a second"
        );
    }
}
