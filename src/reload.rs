//! Replaces the configuration of a gate while the gate serves requests (SPEC 8, SIGHUP).
//!
//! A [`Reload`] is checked and built as a whole before any part of it takes effect, so a mistake
//! changes nothing. A request or a delivery attempt that has begun ends with the configuration that
//! it began with.

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

/// A configuration that is checked and built, and takes effect with [`Reload::apply`]. Made by
/// [`PixelGate::prepare`].
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
    /// The limits of each configured upstream, by its name.
    limits: HashMap<String, RouteLimits>,
    limits_of_others: RouteLimits,
}

impl PixelGate {
    /// Checks and builds the parts of a new configuration that can take effect without a restart.
    /// [`Reload::apply`] then puts them in force.
    ///
    /// These are `[events]`, `[privacy]`, `[response]`, `[portals]`, `[batch]`, and `[spool]`
    /// without `dir` and `durability`; and of each upstream every key but its name, its kind, its
    /// `order`, and the keys of kind `file`. For an upstream with an `order`, `concurrency_max`
    /// cannot change either. Other changes in `config` are ignored, and a portal list that the host
    /// brings stays in force.
    ///
    /// Reads the files that `config` names, and blocks meanwhile. A new portal list behind a URL
    /// replaces the earlier list once it is loaded.
    ///
    /// # Errors
    ///
    /// The first part that cannot be used.
    pub fn prepare(&self, config: ValidConfig) -> Result<Reload, OpenError> {
        let state = self.state();
        let known = state.reload.portals.lock().clone();
        let list = (config.portals.clone(), config.privacy);
        let portals = match known.as_ref().is_none_or(|known| *known == list) {
            true => self.gate().portals().clone(),
            false => self.open_portals(&config)?,
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

    /// Opens the portal list of a new configuration, which takes over the counts of the list in
    /// force.
    fn open_portals(&self, config: &ValidConfig) -> Result<Portals, OpenError> {
        let state = self.state();
        // Rules may name running upstreams only: to add an upstream takes an upgrade.
        let names = self.delivery().status().into_iter().map(|route| route.name).collect();
        let dir = &state.reload.state_dir;
        let new = Portals::open(&config.list_for(names), dir, state.clock.clone());
        let new = new.map_err(OpenError::Portals)?;
        new.succeed(self.gate().portals());
        Ok(new)
    }

    /// Reads those certificates and keys of the upstreams again whose files have changed. Each
    /// upstream also does this before it sends. A file that cannot be used changes nothing and
    /// raises a fault. Blocks.
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
