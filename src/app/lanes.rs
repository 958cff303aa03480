//! Where operations that may wait for a device run: threads beside the async ones, in three lanes.
//!
//! Each lane has its own bound, so a storm of flushes never starves reads. Reads also share a budget of bytes, because each
//! holds its buffer while it waits.

use std::sync::Arc;

use tokio::sync::Semaphore;

/// Reads that miss the page cache and run at once. A disk serves no more in parallel to its profit.
const MISSES: usize = 32;
/// Disks that are written at once.
const WRITES: usize = 16;
/// Disks that are flushed at once: each holds the device's queue for milliseconds.
const SYNCS: usize = 8;
/// Bytes of reads that wait for the device or run, in KiB: 32 MiB.
const BUDGET_KIB: u32 = 32 * 1024;

/// Which lane an operation runs in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lane {
    /// A read that was not in memory, with the bytes that it holds.
    Miss {
        /// Size of its buffer.
        bytes: usize,
    },
    /// Writes of one disk.
    Write,
    /// A flush of one disk.
    Sync,
}

/// The three lanes of this process.
#[derive(Debug)]
pub struct Lanes {
    misses: Semaphore,
    writes: Semaphore,
    syncs: Semaphore,
    budget: Semaphore,
}

impl Default for Lanes {
    fn default() -> Self {
        Self {
            misses: Semaphore::new(MISSES),
            writes: Semaphore::new(WRITES),
            syncs: Semaphore::new(SYNCS),
            budget: Semaphore::new(BUDGET_KIB as usize),
        }
    }
}

impl Lanes {
    /// Runs this on a thread that may block, once there is room in its lane. `None`: it panicked, which is logged by the
    /// panic itself.
    pub async fn run<T: Send + 'static>(
        self: &Arc<Self>,
        lane: Lane,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Option<T> {
        let never_closed = "the lanes' semaphores are never closed";
        let (room, kib) = match lane {
            Lane::Miss { bytes } => (&self.misses, u32::try_from(bytes.div_ceil(1024)).unwrap_or(u32::MAX)),
            Lane::Write => (&self.writes, 0),
            Lane::Sync => (&self.syncs, 0),
        };
        let _budget = self.budget.acquire_many(kib.min(BUDGET_KIB)).await.expect(never_closed);
        let _room = room.acquire().await.expect(never_closed);
        tokio::task::spawn_blocking(work).await.ok()
    }
}
