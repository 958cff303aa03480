//! The one place that knows every part: opens the state, starts the adapters, drains, stops.

use crate::config::Config;

/// Serves this lab until it is told to stop.
///
/// # Errors
/// What could not be started, with the reason.
pub async fn run(config: Config) -> anyhow::Result<()> {
    let _lock = crate::store::StateLock::acquire(&config.settings.state)?;
    anyhow::bail!("nothing can be served yet")
}
