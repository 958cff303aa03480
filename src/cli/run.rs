//! `roost run`: serve the lab.

use super::error::{Error, Kind};
use super::{Globals, lab};
use crate::store::{LockError, StoreError};

pub(super) fn run(globals: &Globals) -> Result<(), Error> {
    let config = lab::config_with_warnings(globals)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let runtime = runtime.map_err(|error| Error::failed(format!("cannot start: {error}")))?;
    runtime.block_on(crate::serve::run(config)).map_err(why)
}

/// What serving ended with, as an exit code and words.
fn why(error: anyhow::Error) -> Error {
    match error.downcast::<LockError>() {
        Ok(lock) => lock.into(),
        Err(error) => match error.downcast::<StoreError>() {
            Ok(store) => store.into(),
            // With all its causes, on one line.
            Err(error) => Error::new(Kind::Failed, format!("{error:#}")),
        },
    }
}
