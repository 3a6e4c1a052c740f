//! The admin listener as a Pingora service, and the sampler that its pages read from (SPEC 8).

use super::listen::Bound;
use async_trait::async_trait;
use pingora::listeners::{L4BufferSettings, ListenerConfig};
use pingora::server::{ListenFds, ShutdownWatch};
use pingora::services::listening::Service;
use pixelgate::PixelGate;
use pixelgate::admin_pages::{Admin, Sampler, TokenHandle};
use pixelgate::custom::InFlight;
use std::sync::Arc;

/// The parts of the admin pages, before they are served.
pub struct Pages {
    /// Must run as a background service.
    pub sampler: Arc<Sampler>,
    /// The listener.
    pub service: Stoppable<Admin>,
    /// Replaces the token at a reload.
    pub token: TokenHandle,
}

/// Builds the sampler and the service of the admin pages. The service listens on `sockets`, shows
/// at most `verdicts` events per second in the log, counts its requests in `in_flight`, and ends
/// when `stopped` changes.
pub fn pages(
    gate: &PixelGate,
    config: &pixelgate::config::Admin,
    verdicts: u32,
    in_flight: &InFlight,
    sockets: Vec<Bound>,
    stopped: ShutdownWatch,
) -> Pages {
    let sampler = Arc::new(Sampler::new(gate.clone(), verdicts));
    let pages = Admin::new(sampler.clone(), config, in_flight.clone());
    let token = pages.token_handle();
    let mut inner = Service::new("admin".to_owned(), pages);
    inner.threads = Some(1);
    sockets.iter().for_each(|bound| inner.add_listener(listener(bound)));
    let service = Stoppable { inner, sockets, stopped };
    Pages { sampler, service, token }
}

fn listener(bound: &Bound) -> ListenerConfig {
    let config = match bound.unix {
        true => ListenerConfig::uds(&bound.key),
        false => ListenerConfig::tcp(&bound.key),
    };
    config.l4_buffer(L4BufferSettings::default().read(0))
}

/// A service on open sockets that ends when `stopped` changes. Pingora's own stop would end it too
/// late, because it comes after the stop of the edge.
pub struct Stoppable<A> {
    inner: Service<A>,
    sockets: Vec<Bound>,
    stopped: ShutdownWatch,
}

#[async_trait]
impl<A> pingora::services::Service for Stoppable<A>
where
    A: pingora::apps::ServerApp + Send + Sync + 'static,
{
    async fn start_service(
        &mut self,
        fds: Option<ListenFds>,
        _shutdown: ShutdownWatch,
        listeners_per_fd: usize,
    ) {
        if let Some(table) = &fds {
            let mut table = table.lock();
            for bound in self.sockets.drain(..) {
                let (key, socket) = bound.into_raw();
                table.add(key, socket);
            }
        }
        self.inner.start_service(fds, self.stopped.clone(), listeners_per_fd).await;
    }

    fn name(&self) -> &str {
        self.inner.name()
    }

    fn threads(&self) -> Option<usize> {
        self.inner.threads()
    }
}
