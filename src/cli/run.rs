//! `roost run`: serve the lab.

use super::error::{Error, Kind};
use super::{Globals, lab};
use crate::serve::Misfit;
use crate::store::{LockError, StoreError};

pub(super) fn run(globals: &Globals) -> Result<(), Error> {
    let loaded = lab::loaded_with_warnings(globals)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(workers()).enable_all().build();
    let runtime = runtime.map_err(|error| Error::failed(format!("cannot start: {error}")))?;
    runtime.block_on(crate::serve::run(loaded, globals.config.clone())).map_err(why)
}

/// Threads that serve sockets: half as many as there are cores. What they do is mostly to wake up and to copy a little: one
/// more, which shares a core with the kernel's half of the network and with whatever else this host does, gets no more
/// done, and costs a change of threads for every few requests (`benches/target`). What may wait for a disk has threads of its own.
fn workers() -> usize {
    std::thread::available_parallelism().map_or(1, |cores| (cores.get() / 2).max(1))
}

/// What serving ended with, as an exit code and words.
fn why(error: anyhow::Error) -> Error {
    let error = match error.downcast::<LockError>() {
        Ok(lock) => return lock.into(),
        Err(other) => other,
    };
    let error = match error.downcast::<StoreError>() {
        Ok(store) => return store.into(),
        Err(other) => other,
    };
    match error.downcast::<Misfit>() {
        Ok(misfit) => Error::new(Kind::Configuration, misfit.to_string().trim_end()),
        Err(error) => Error::failed(with_causes(&error)),
    }
}

/// What happened with all its causes, on one line. Many of our messages end in their cause already.
fn with_causes(error: &anyhow::Error) -> String {
    error.chain().map(ToString::to_string).fold(String::new(), |text, cause| {
        if text.contains(&cause) {
            text
        } else if text.is_empty() {
            cause
        } else {
            format!("{text}: {cause}")
        }
    })
}
