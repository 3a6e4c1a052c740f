//! Checks a configuration without opening a gate.

use super::{OpenError, ValidConfig};
use crate::clock::{Clock, SystemClock};
use crate::policy::portals::Portals;
use crate::upstream;
use std::path::Path;
use std::sync::Arc;

/// Checks a configuration and the files that it names, as `pixelgate check` does. Returns lines of
/// text about the portal list, the upstreams and the spool. Opens no spool.
///
/// ```
/// # let dir = tempfile::tempdir()?;
/// # let folder = dir.path();
/// use pixelgate::{Config, tools};
///
/// std::fs::write(folder.join("portals.txt"), "62515\n")?;
/// let mut config = Config::default();
/// config.portals.source = folder.join("portals.txt").display().to_string();
/// let in_force = tools::check(&config.validate()?, folder)?;
/// assert!(in_force.ends_with("configuration is valid"));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Errors
///
/// The error of the first part that cannot be used.
pub fn check(config: &ValidConfig, state_dir: &Path) -> Result<String, OpenError> {
    let clock: Arc<dyn Clock> = Arc::new(SystemClock);
    let portals = Portals::open(&config.list(&[]), state_dir, clock).map_err(OpenError::Portals)?;
    let mut lines = vec![portals.summary().to_string()];
    for upstream in &config.destinations {
        // Building a file upstream would create its folder; the other kinds only read files.
        if !matches!(upstream.kind, upstream::Kind::File(_)) {
            upstream.build()?;
        }
        lines.push(format!("upstream {}: {}", upstream.name, upstream.kind_name()));
    }
    lines.push(format!("spool: {}", config.spool.dir.display()));
    lines.push("configuration is valid".to_owned());
    Ok(lines.join("\n"))
}
