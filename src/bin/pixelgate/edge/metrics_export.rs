//! The export of metrics by OTLP, which a reload can begin, change or end (SPEC 8).
//!
//! Without the feature `otlp` nothing is exported, and a configuration that names a collector is
//! refused when it is read.

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

/// The configured collector, if there is one, before metrics are sent to it.
pub struct Prepared {
    #[cfg(feature = "otlp")]
    target: Option<OtlpTarget>,
}

/// Reads the section `[otlp]` and the files that it names.
///
/// # Errors
///
/// The first key of the section that cannot be used, and the reason.
pub fn prepare(otlp: &Otlp) -> Result<Prepared, ConfigError> {
    // Without the feature the section has been refused unless it names no collector.
    #[cfg(not(feature = "otlp"))]
    let _ = otlp;
    Ok(Prepared {
        #[cfg(feature = "otlp")]
        target: OtlpTarget::new(otlp)?,
    })
}

#[cfg(feature = "otlp")]
impl MetricsExport {
    /// Adds the service that sends the metrics of the sampler's gate.
    pub fn start(server: &mut Server, sampler: &Arc<Sampler>, prepared: Prepared) -> Self {
        let export = Arc::new(OtlpExport::new(sampler.clone(), prepared.target));
        let service = pingora::services::background::GenBackgroundService::new(
            "otlp".to_owned(),
            export.clone(),
        );
        server.add_service(service);
        Self { export }
    }

    /// Sends the metrics to this collector from now on, or to none if none is configured.
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
