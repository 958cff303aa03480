//! What the adapters share: the fleet's snapshot, the recorder of what was seen, the open disks, the sessions.
//!
//! Not here: sockets and wire formats. An adapter holds an `Arc<App>` and asks it.

pub mod access;
mod atomic;
pub mod bootfiles;
pub mod booting;
pub mod boots;
mod children;
pub mod disks;
pub mod folder;
pub mod keeper;
pub mod lanes;
pub mod loaders;
pub mod others;
pub mod overlays;
pub mod packets;
pub mod pi;
pub mod places;
pub mod queue;
pub mod recorder;
pub mod report;
pub mod scrub;
pub mod secrets;
pub mod sessions;
pub mod space;
pub mod tally;

use std::sync::Arc;

use tokio::sync::watch;

use crate::config::Settings;
use crate::fleet::{Fleet, Mac, Naming, Port};
use booting::Booting;
use disks::Disks;
use lanes::Lanes;
use others::Others;
use overlays::Works;
use recorder::Recorder;
use secrets::SecretBook;
use sessions::Sessions;
use tally::Tally;

/// The shared state of a running Roost.
#[derive(Debug)]
pub struct App {
    /// The `[server]` section.
    pub settings: Settings,
    /// How clients' iSCSI names are made.
    pub naming: Naming,
    /// Where adapters report what they saw.
    pub recorder: Recorder,
    /// The clients' disks.
    pub disks: Disks,
    /// The clients' CHAP secrets.
    pub secrets: SecretBook,
    /// What went wrong at the iSCSI port, in numbers.
    pub tally: Tally,
    /// Which machines iPXE brings up now.
    pub booting: Booting,
    /// What other DHCP servers do.
    pub others: Others,
    /// Who is logged in.
    pub sessions: Arc<Sessions>,
    /// Where operations that may wait run.
    pub lanes: Arc<Lanes>,
    /// Merges and compactions of disks.
    pub works: Works,
    fleet: watch::Sender<Arc<Fleet>>,
}

impl App {
    /// The shared state for this configuration. `boot_id` is what this boot of the host is called.
    #[must_use]
    pub fn new(settings: Settings, fleet: Fleet, recorder: Recorder, boot_id: String) -> Self {
        let lanes = Arc::<Lanes>::default();
        Self {
            naming: Naming::new(settings.iqn.clone()),
            disks: Disks::new(settings.state.clone(), boot_id, Arc::clone(&lanes)),
            settings,
            recorder,
            secrets: SecretBook::default(),
            tally: Tally::default(),
            booting: Booting::default(),
            others: Others::default(),
            sessions: Arc::default(),
            works: Works::default(),
            lanes,
            fleet: watch::Sender::new(Arc::new(fleet)),
        }
    }

    /// With these CHAP secrets.
    #[must_use]
    pub fn with_secrets(self, secrets: SecretBook) -> Self {
        Self { secrets, ..self }
    }

    /// A machine was seen at this port of a switch: where that is a client's, it stands in the client's place from now on.
    pub fn plugged_in(&self, mac: Mac, port: &Port) {
        let mut changes = Vec::new();
        self.fleet.send_if_modified(|fleet| match fleet.plug(mac, port) {
            Some(next) => {
                changes.extend(fleet.port_of(mac).map(|old| (old.clone(), None)));
                changes.extend(next.port_of(mac).map(|new| (new.clone(), Some(mac))));
                *fleet = Arc::new(next);
                true
            }
            None => false,
        });
        changes.into_iter().for_each(|(port, mac)| self.recorder.keep_plugged(port, mac));
    }

    /// The fleet as it is now.
    #[must_use]
    pub fn fleet(&self) -> Arc<Fleet> {
        self.fleet.borrow().clone()
    }
}
