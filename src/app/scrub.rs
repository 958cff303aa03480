//! The watch over masters: a file that must never change is looked at often and read through now and then.
//!
//! What is known of a master stands beside it ([`checksum`](crate::disk::checksum)) and is asked at every login, so there is
//! nothing here to forget. This task finds out: a *glance* once a minute sees a file that was written, replaced or moved,
//! and has it hashed at once; a *round* once a day hashes each, slowly, and sees what changed without a trace.
//!
//! A changed master ends the sessions on its children, and no child of it is served until its hash agrees again: what the
//! clients would read is a mixture of two disks, and what they would write would belong to neither.

use std::collections::{HashMap, HashSet};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use tokio::task::JoinSet;

use super::App;
use super::places::masters;
use crate::disk::DiskError;
use crate::disk::checksum::{Checksum, Compared, Fitness, STEP, Stamp, fitness};
use crate::fleet::ImageName;

/// How often masters are looked at from outside.
const GLANCE: Duration = Duration::from_secs(60);
/// When the first round begins: after the morning's boots.
const FIRST_ROUND: Duration = Duration::from_secs(30 * 60);
/// How long the rounds are apart.
const ROUND: Duration = Duration::from_secs(24 * 60 * 60);
/// Bytes a second of a round: a tenth of what a slow disk gives.
const RATE: u64 = 32 << 20;
/// Bytes a second of a master that clients wait for: as fast as it goes.
const AT_ONCE: u64 = u64::MAX;

/// Why sessions are ended, for the log.
const CHANGED: &str = "its image is not what was imported any more";

/// Watches over the masters. Ends only by being dropped.
pub async fn run(app: &Arc<App>) {
    let _ = tokio::join!(glances(app), rounds(app));
}

async fn glances(app: &Arc<App>) {
    // What changed masters looked like when they were last hashed: again only where that is something else by now. At the
    // start nothing is known, and one that was put right meanwhile is found out.
    let mut hashed: HashMap<PathBuf, Stamp> = HashMap::new();
    let mut told = HashSet::new();
    loop {
        for (image, master) in masters(&app.settings.state) {
            let fitness = match fitness(&master) {
                Ok(fitness) => fitness,
                Err(error) => {
                    if told.insert(error.to_string()) {
                        tracing::error!("image {image}: {error}");
                    }
                    continue;
                }
            };
            let stamp = Stamp::of(&master).ok();
            let rate = match fitness {
                Fitness::Fit => continue,
                Fitness::Unrecorded => RATE,
                Fitness::Touched => AT_ONCE,
                Fitness::Changed(_) if hashed.get(&master).copied() != stamp => AT_ONCE,
                Fitness::Changed(_) => continue,
            };
            if matches!(look_through(app, &image, &master, rate).await, Some(Compared::Differs(_)))
                && let Some(stamp) = stamp
            {
                hashed.insert(master, stamp);
            }
        }
        tokio::select! {
            () = tokio::time::sleep(GLANCE) => {}
            () = app.disks.doubts() => {}
        }
    }
}

async fn rounds(app: &Arc<App>) {
    tokio::time::sleep(FIRST_ROUND).await;
    loop {
        for (image, master) in masters(&app.settings.state) {
            look_through(app, &image, &master, RATE).await;
        }
        tokio::time::sleep(ROUND).await;
    }
}

/// Hashes a master, and does what follows from it.
async fn look_through(app: &Arc<App>, image: &ImageName, master: &Path, rate: u64) -> Option<Compared> {
    let (path, stop) = (master.to_owned(), StopOnDrop::default());
    let stopped = Arc::clone(&stop.0);
    let hashed = tokio::task::spawn_blocking(move || hash(&path, rate, &stopped)).await;
    drop(stop);
    match hashed {
        Ok(Ok(Some(compared))) => {
            if let Compared::Differs(found) = &compared {
                tracing::error!(
                    "image {image}: {} has changed: its BLAKE3 is {found} now. A master never changes; no disk of this image is \
                     served until the file that was imported is put back",
                    master.display()
                );
                end_sessions(app, image).await;
            }
            Some(compared)
        }
        Ok(Ok(None)) => {
            tracing::info!("image {image}: recorded the checksum of {}", master.display());
            None
        }
        Ok(Err(error)) => {
            tracing::error!("image {image}: {error}");
            None
        }
        // It panicked, which the panic tells, or the process is stopping.
        Err(_) => None,
    }
}

/// Compares a master with its record, or records it (`None`), at most so many bytes a second.
fn hash(master: &Path, rate: u64, stop: &AtomicBool) -> Result<Option<Compared>, DiskError> {
    let started = Instant::now();
    let mut step = |done: u64, _| {
        let due = Duration::from_millis(done.saturating_mul(1_000) / rate);
        // A step at the least rate is a fraction of a second, so a stop is never waited for longer.
        debug_assert!(rate >= STEP);
        std::thread::sleep(due.saturating_sub(started.elapsed()));
        if stop.load(Ordering::Relaxed) { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    };
    match Checksum::load(master)? {
        Some(record) => record.compare(master, &mut step).map(Some),
        None => Ok(Checksum::record(master, &mut step)?.map_or(Some(Compared::Stopped), |_| None)),
    }
}

/// Stops the work of a thread when the task that waits for it is dropped.
#[derive(Default)]
struct StopOnDrop(Arc<AtomicBool>);

impl Drop for StopOnDrop {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

async fn end_sessions(app: &Arc<App>, image: &ImageName) {
    let mut ended = JoinSet::new();
    for client in app.fleet().clients().filter(|client| client.image == *image) {
        for session in app.sessions.of(&client.name) {
            ended.spawn(async move { session.end(CHANGED).await });
        }
    }
    while ended.join_next().await.is_some() {}
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_round_keeps_to_its_rate_and_stops_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("1.vhd");
        fs::write(&path, vec![7; 2 * usize::try_from(STEP).unwrap()]).unwrap();
        let started = Instant::now();
        // Twice a step at ten steps a second.
        assert_eq!(hash(&path, 10 * STEP, &AtomicBool::new(false)).unwrap(), None);
        assert!(started.elapsed() >= Duration::from_millis(200));
        assert_eq!(hash(&path, AT_ONCE, &AtomicBool::new(true)).unwrap(), Some(Compared::Stopped));
        assert_eq!(hash(&path, AT_ONCE, &AtomicBool::new(false)).unwrap(), Some(Compared::Same));
    }
}
