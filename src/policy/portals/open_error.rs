//! The error of a portal policy that cannot be opened.

/// The file cannot be read or is not a list. Names the file and, if known, the line.
///
/// ```
/// use pixelgate::custom::PortalFormat;
/// use pixelgate::errors::OpenError;
/// use pixelgate::{Config, PixelGate};
///
/// let builder = PixelGate::builder(Config::default()).portals("62x15", PortalFormat::Text);
/// let Err(OpenError::Portals(error)) = builder.gate() else { panic!() };
/// assert!(error.to_string().contains("line 1"));
/// ```
#[derive(Debug, thiserror::Error)]
#[error("portals.source: {0}")]
pub struct OpenError(pub(super) String);
