//! The traits that Pingora requires of a stream beside reading, writing and closing.

/// Implements these traits for `$stream`: each method calls that of the stream which `$inner`
/// returns.
macro_rules! delegate_traits {
    ($stream:ty, $inner:ident) => {
        impl pingora::protocols::UniqueID for $stream {
            fn id(&self) -> pingora::protocols::UniqueIDType {
                self.$inner().id()
            }
        }

        impl pingora::protocols::Ssl for $stream {
            fn get_ssl(&self) -> Option<&pingora::protocols::tls::TlsRef> {
                self.$inner().get_ssl()
            }

            fn get_ssl_digest(&self) -> Option<Arc<pingora::protocols::tls::SslDigest>> {
                self.$inner().get_ssl_digest()
            }

            fn selected_alpn_proto(&self) -> Option<pingora::protocols::ALPN> {
                self.$inner().selected_alpn_proto()
            }
        }

        impl pingora::protocols::GetTimingDigest for $stream {
            fn get_timing_digest(&self) -> Vec<Option<pingora::protocols::TimingDigest>> {
                self.$inner().get_timing_digest()
            }

            fn get_read_pending_time(&self) -> Duration {
                self.$inner().get_read_pending_time()
            }

            fn get_write_pending_time(&self) -> Duration {
                self.$inner().get_write_pending_time()
            }
        }

        impl pingora::protocols::GetProxyDigest for $stream {
            fn get_proxy_digest(
                &self,
            ) -> Option<Arc<pingora::protocols::raw_connect::ProxyDigest>> {
                self.$inner().get_proxy_digest()
            }
        }

        impl pingora::protocols::GetSocketDigest for $stream {
            fn get_socket_digest(&self) -> Option<Arc<pingora::protocols::SocketDigest>> {
                self.$inner().get_socket_digest()
            }
        }

        impl pingora::protocols::Peek for $stream {}
    };
}
pub(super) use delegate_traits;
