//! Replaces what is in force of a gate's configuration while the gate serves requests.
//!
//! A [`Reload`] is checked and built as a whole before anything of it takes effect, so a mistake
//! changes nothing. Requests and attempts to deliver that have begun end with what they began with.

use crate::builder::{OpenError, ValidConfig};
use crate::plugin::{PixelGate, Settings};
use crate::policy::portals;
use crate::policy::portals::Portals;
use crate::policy::privacy;
use crate::upstream::{Replaceable, Replacement};
use std::sync::Arc;

/// A configuration that is ready to take the place of the one in force: [`PixelGate::prepare`].
///
/// ```
/// # use pixelgate::{Config, PixelGate, errors::OpenError};
/// fn reload(gate: &PixelGate, config: Config) -> Result<(), OpenError> {
///     let reload = gate.prepare(config.validate()?)?; // a mistake changes nothing
///     reload.apply();
///     Ok(())
/// }
/// ```
#[must_use = "nothing is in force before `apply`"]
pub struct Reload {
    gate: PixelGate,
    portals: Option<(portals::Config, privacy::Config)>,
    settings: Settings,
    upstreams: Vec<(Replaceable, Replacement)>,
}

impl PixelGate {
    /// Checks and builds everything of a new configuration that takes effect without a restart:
    /// `[events]`, `[privacy]`, `[response]`, `[portals]`, and of each upstream all but its name,
    /// kind, batches, attempts, concurrency and order, and the keys of kind `file`. The rest of
    /// `config` is not looked at, and a list that the host brings stays as it is. Reads the files
    /// that `config` names again. Nothing is in force before [`Reload::apply`].
    ///
    /// Blocks. A new portal list behind a URL takes the place of the earlier one when it is loaded.
    ///
    /// # Errors
    ///
    /// The first part that cannot be used.
    pub fn prepare(&self, config: ValidConfig) -> Result<Reload, OpenError> {
        let state = self.state();
        let in_force = self.gate().portals().clone();
        let known = state.reload.portals.lock().clone();
        let list = (config.portals.clone(), config.privacy);
        let portals = match known.as_ref().is_none_or(|known| *known == list) {
            true => in_force,
            false => {
                let dir = &state.reload.state_dir;
                // Those that run: an upstream that was added needs an upgrade.
                let names = self.delivery().status().into_iter().map(|route| route.name).collect();
                let new = Portals::open(&config.list_for(names), dir, state.clock.clone());
                let new = new.map_err(OpenError::Portals)?;
                new.succeed(&in_force);
                new
            }
        };
        let mut upstreams = Vec::new();
        for new in config.upstreams() {
            let running = state.reload.upstreams.iter().find(|known| known.name() == new.name);
            let Some(running) = running else { continue };
            if let Some(replacement) = running.prepare(new)? {
                upstreams.push((running.clone(), replacement));
            }
        }
        let list = known.map(|_| list);
        let (clock, inspector) = (state.clock.clone(), state.reload.inspector.clone());
        let settings = config.into_settings(portals, clock, inspector)?;
        Ok(Reload { gate: self.clone(), portals: list, settings, upstreams })
    }

    /// Reads the certificates and keys of the upstreams again, where their files have changed. Each
    /// upstream also does so by itself before it sends. A file that cannot be used changes nothing
    /// and is a fault. Blocks.
    pub fn reload_upstream_files(&self) {
        self.state().reload.upstreams.iter().for_each(Replaceable::look);
    }
}

impl Reload {
    /// Puts the configuration in force.
    pub fn apply(self) {
        let state = self.gate.state();
        *state.reload.portals.lock() = self.portals;
        state.delivery.watch(self.settings.gate.portals());
        state.settings.store(Arc::new(self.settings));
        self.gate.count_reload();
        for (running, replacement) in self.upstreams {
            running.put(replacement);
        }
    }
}
