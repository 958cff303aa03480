//! Progress of what takes long, on standard error.

use std::io::{self, IsTerminal, Write};
use std::time::{Duration, Instant};

use super::output::bytes;

/// How far a long operation is, on standard error: a line that changes on a terminal, else a line now and then.
pub(super) struct Progress {
    started: Instant,
    told: Option<Instant>,
    every: Duration,
    terminal: bool,
    quiet: bool,
}

impl Progress {
    pub(super) fn new(quiet: bool) -> Self {
        let terminal = io::stderr().is_terminal();
        let every = if terminal { Duration::from_millis(100) } else { Duration::from_secs(5) };
        Self { started: Instant::now(), told: None, every, terminal, quiet }
    }

    pub(super) fn tell(&mut self, done: u64, total: u64) {
        let since = self.told.unwrap_or(self.started);
        if self.quiet || since.elapsed() < self.every {
            return;
        }
        self.told = Some(Instant::now());
        let (before, after) = if self.terminal { ("\r\x1b[K", "") } else { ("", "\n") };
        let line = progress_line(done, total, self.started.elapsed());
        // Progress that cannot be shown is no reason to stop.
        let _ = write!(io::stderr(), "{before}{line}{after}");
    }

    pub(super) fn end(&self) {
        if self.terminal && self.told.is_some() {
            let _ = write!(io::stderr(), "\r\x1b[K");
        }
    }
}

/// ` 45%  921.6 MiB of 2.0 GiB, 184.3 MiB a second`
fn progress_line(done: u64, total: u64, elapsed: Duration) -> String {
    let percent = u128::from(done) * 100 / u128::from(total.max(1));
    let rate = u128::from(done) * 1_000 / elapsed.as_millis().max(1);
    let rate = bytes(u64::try_from(rate).unwrap_or(u64::MAX));
    format!("{percent:3}%  {} of {}, {rate} a second", bytes(done), bytes(total))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn progress_says_how_much_and_how_fast_and_never_divides_by_nothing() {
        let line = progress_line(512 << 20, 2 << 30, Duration::from_secs(4));
        assert_eq!(line, " 25%  512.0 MiB of 2.0 GiB, 128.0 MiB a second");
        assert_eq!(progress_line(0, 0, Duration::ZERO), "  0%  0 bytes of 0 bytes, 0 bytes a second");
    }
}
