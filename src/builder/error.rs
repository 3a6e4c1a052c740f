//! The error of a gate that did not open.

use crate::config_error::ConfigError;
use crate::policy::portals;
use crate::spool;

/// Why a gate did not open. The causes, down to the system's error, are its sources.
///
/// ```
/// use pixelgate::errors::OpenError;
/// use pixelgate::{Config, PixelGate};
///
/// let mut config = Config::default();
/// config.events.params_max = 0;
/// let Err(OpenError::Config(error)) = PixelGate::builder(config).open() else { panic!() };
/// assert_eq!(error.key(), "events.params_max");
/// ```
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// A section holds a value that cannot be used.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The portal list cannot be read.
    #[error(transparent)]
    Portals(portals::OpenError),
    /// The spool cannot be opened.
    #[error(transparent)]
    Spool(spool::OpenError),
    /// The metrics cannot be registered: a gate of the same name uses the registry.
    #[error("the metrics cannot be registered")]
    Metrics(#[source] prometheus::Error),
    /// Pingora refuses a prebuilt answer.
    #[error("the answers cannot be built")]
    Answers(#[source] Box<pingora::Error>),
    /// The delivery threads cannot be started.
    #[error("the delivery threads cannot be started")]
    Threads(#[source] std::io::Error),
}
