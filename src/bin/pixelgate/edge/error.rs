//! The error of an edge that does not start, or does not stop as it should.

use super::listen::BindError;

/// Why an edge did not start, or did not stop as it should. The causes, down to the system's
/// error, are its sources.
#[derive(Debug, thiserror::Error)]
pub enum EdgeError {
    /// A part of the gate did not open.
    #[error(transparent)]
    Gate(pixelgate::errors::OpenError),
    /// A part of the gate of a successor did not open.
    #[error("the running edge goes on; when the reason is gone, run the upgrade again")]
    Successor(#[source] pixelgate::errors::OpenError),
    /// A listener did not open. Holds the key that names it.
    #[error("{0}")]
    Listen(&'static str, #[source] BindError),
    /// A key of `[edge]` cannot be used. Holds the key and the reason.
    #[error("{0}")]
    Edge(String),
    /// The file of the access log cannot be opened. Holds its path.
    #[error("access_log.path: {0} cannot be opened")]
    AccessLog(String, #[source] std::io::Error),
    /// The writer of the access log did not start.
    #[error("the writer of the access log cannot be started")]
    AccessLogThread(#[source] std::io::Error),
    /// A key of `[otlp]` cannot be used.
    #[error(transparent)]
    Otlp(pixelgate::errors::ConfigError),
    /// The running process does not hand over its sockets.
    #[error("the running process does not hand over its listening sockets")]
    Upgrade(#[source] std::io::Error),
    /// The proxy did not start, because no socket could be opened on the loopback interface.
    #[error("the proxy needs a socket on the loopback interface to start")]
    Proxy(#[source] std::io::Error),
    /// Pingora refused a setting.
    #[error(transparent)]
    Pingora(Box<pingora::Error>),
    /// The gate did not close as it should.
    #[error(transparent)]
    Close(pixelgate::errors::CloseError),
}

impl EdgeError {
    /// Whether the configuration, or something that it names, is the reason.
    pub fn is_of_configuration(&self) -> bool {
        use EdgeError::*;
        matches!(self, Gate(_) | Successor(_) | Listen(..) | Edge(_) | AccessLog(..) | Otlp(_))
    }
}
