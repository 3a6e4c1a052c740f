//! Replaces what is in force of a gate's configuration while the gate serves requests.
//!
//! A [`Reload`] is checked and built as a whole before anything of it takes effect, so a mistake
//! changes nothing. Requests and attempts to deliver that have begun end with what they began with.

use crate::builder::{OpenError, ValidConfig};
use crate::delivery::RouteLimits;
use crate::plugin::{PixelGate, Settings};
use crate::policy::portals;
use crate::policy::portals::Portals;
use crate::policy::privacy;
use crate::request::client::TrustedProxies;
use crate::spool;
use crate::upstream::{Replaceable, Replacement};
use std::collections::HashMap;
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
    spool: spool::ValidConfig,
    /// The limits of each configured upstream, by its name, and those of all others.
    limits: HashMap<String, RouteLimits>,
    limits_of_others: RouteLimits,
}

impl PixelGate {
    /// Checks and builds everything of a new configuration that takes effect without a restart:
    /// `[events]`, `[privacy]`, `[response]`, `[portals]`, `[batch]`, `[spool]` but its `dir` and
    /// `durability`, and of each upstream all but its name, kind and order, and the keys of kind
    /// `file`. With an order, `concurrency_max` stays as well. The rest of `config` is not looked
    /// at, and a list that the host brings stays as it is. Reads the files that `config` names
    /// again. Nothing is in force before [`Reload::apply`].
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
        let spool = config.valid_spool().clone();
        let (limits, limits_of_others) = config.route_limits();
        let (clock, inspector) = (state.clock.clone(), state.reload.inspector.clone());
        let trusted = self.settings().trusted.clone();
        let settings = config.into_settings(portals, clock, inspector, trusted)?;
        Ok(Reload {
            gate: self.clone(),
            portals: list,
            settings,
            upstreams,
            spool,
            limits,
            limits_of_others,
        })
    }

    /// Reads the certificates and keys of the upstreams again, where their files have changed. Each
    /// upstream also does so by itself before it sends. A file that cannot be used changes nothing
    /// and is a fault. Blocks.
    pub fn reload_upstream_files(&self) {
        self.state().reload.upstreams.iter().for_each(Replaceable::look);
    }
}

impl Reload {
    /// Trusts these proxies instead of those in force.
    pub fn trusted_proxies(mut self, trusted: TrustedProxies) -> Self {
        self.settings.trusted = trusted;
        self
    }

    /// Puts the configuration in force.
    pub fn apply(self) {
        let state = self.gate.state();
        state.spool.set_config(&self.spool);
        let limits = |name: &str| self.limits.get(name).unwrap_or(&self.limits_of_others).clone();
        state.delivery.forwarder().set_limits(limits);
        *state.reload.portals.lock() = self.portals;
        state.delivery.watch(self.settings.gate.portals());
        state.settings.store(Arc::new(self.settings));
        self.gate.count_reload();
        for (running, replacement) in self.upstreams {
            running.put(replacement);
        }
    }
}
