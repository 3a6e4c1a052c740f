//! The export of metrics by OTLP, which a reload begins, changes or ends. Without the feature
//! `otlp` nothing is exported: a configured collector has been refused as a mistake.

use pingora::server::Server;
use pixelgate::admin_pages::Sampler;
#[cfg(feature = "otlp")]
use pixelgate::admin_pages::{OtlpExport, OtlpTarget};
use pixelgate::config::Otlp;
use pixelgate::errors::ConfigError;
use std::sync::Arc;

/// The export as a service of the edge.
pub struct MetricsExport {
    #[cfg(feature = "otlp")]
    export: Arc<OtlpExport>,
}

/// A collector that is not in use yet, if one is configured.
pub struct Prepared {
    #[cfg(feature = "otlp")]
    target: Option<OtlpTarget>,
}

/// Reads the section `[otlp]` and what it names.
///
/// # Errors
///
/// A key of the section that cannot be used, and the reason.
pub fn prepare(otlp: &Otlp) -> Result<Prepared, ConfigError> {
    // The section was checked when it was read.
    #[cfg(not(feature = "otlp"))]
    let _ = otlp;
    Ok(Prepared {
        #[cfg(feature = "otlp")]
        target: OtlpTarget::new(otlp)?,
    })
}

#[cfg(feature = "otlp")]
impl MetricsExport {
    /// Adds the service that sends the metrics of this sampler's gate.
    pub fn start(server: &mut Server, sampler: &Arc<Sampler>, prepared: Prepared) -> Self {
        let export = Arc::new(OtlpExport::new(sampler.clone(), prepared.target));
        let service = pingora::services::background::GenBackgroundService::new(
            "otlp".to_owned(),
            export.clone(),
        );
        server.add_service(service);
        Self { export }
    }

    /// Sends the metrics to this collector from now on, or to none.
    pub fn put(&self, prepared: Prepared) {
        self.export.set(prepared.target);
    }
}

#[cfg(not(feature = "otlp"))]
impl MetricsExport {
    /// Starts nothing.
    pub fn start(_: &mut Server, _: &Arc<Sampler>, _: Prepared) -> Self {
        Self {}
    }

    /// Changes nothing.
    pub fn put(&self, _: Prepared) {}
}
