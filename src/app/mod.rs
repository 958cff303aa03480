//! What the adapters share: the fleet's snapshot, the recorder of what was seen, the open disks.
//!
//! Not here: sockets and wire formats. An adapter holds an `Arc<App>` and asks it.

pub mod bootfiles;
pub mod recorder;
pub mod report;

use std::sync::Arc;

use tokio::sync::watch;

use crate::config::Settings;
use crate::fleet::{Fleet, Naming};
use recorder::Recorder;

/// The shared state of a running Roost.
#[derive(Debug)]
pub struct App {
    /// The `[server]` section.
    pub settings: Settings,
    /// How clients' iSCSI names are made.
    pub naming: Naming,
    /// Where adapters report what they saw.
    pub recorder: Recorder,
    fleet: watch::Sender<Arc<Fleet>>,
}

impl App {
    /// The shared state for this configuration.
    #[must_use]
    pub fn new(settings: Settings, fleet: Fleet, recorder: Recorder) -> Self {
        let naming = Naming::new(settings.iqn.clone());
        Self { settings, naming, recorder, fleet: watch::Sender::new(Arc::new(fleet)) }
    }

    /// The fleet as it is now.
    #[must_use]
    pub fn fleet(&self) -> Arc<Fleet> {
        self.fleet.borrow().clone()
    }
}
