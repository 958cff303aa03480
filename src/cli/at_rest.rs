//! A lab where nothing runs: what the process would share, made for one verb, under the state's lock.

use std::sync::Arc;

use super::error::Error;
use super::{Globals, lab};
use crate::app::App;
use crate::app::recorder::Recorder;
use crate::config::edit::EditError;
use crate::fleet::change::Refusal;
use crate::fleet::{Client, ClientName};
use crate::store::StateLock;
use crate::sys;

/// See the module. Nobody is logged in.
pub(super) struct AtRest {
    pub(super) app: Arc<App>,
    pub(super) client: Client,
    _lock: StateLock,
}

impl AtRest {
    pub(super) fn open(globals: &Globals, name: &ClientName) -> Result<Self, Error> {
        let config = lab::config(globals)?;
        let client = config.fleet.client(name).cloned();
        let client = client.ok_or_else(|| EditError::from(Refusal::no_such_client(&config.fleet, name)))?;
        let lock = StateLock::acquire(&config.settings.state)?;
        let boot_id = sys::boot_id().map_err(|error| Error::failed(format!("cannot read this boot's id: {error}")))?;
        let app = Arc::new(App::new(config.settings, config.fleet, Recorder::detached(), boot_id));
        Ok(Self { app, client, _lock: lock })
    }

    /// Does this, and closes every disk in order.
    pub(super) fn run<T, F: Future<Output = Result<T, Error>>>(
        &self,
        verb: impl FnOnce(Arc<App>, Client) -> F,
    ) -> Result<T, Error> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(Error::failed)?;
        runtime.block_on(async {
            let done = verb(Arc::clone(&self.app), self.client.clone()).await;
            self.app.disks.close_all().await;
            done
        })
    }
}
