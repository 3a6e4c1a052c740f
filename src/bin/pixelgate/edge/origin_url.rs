//! Reads the URL of an origin: scheme, host and port (SPEC 9, `edge.origin`).

/// A parsed entry of `edge.origin`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OriginUrl {
    /// The name or the address. An IPv6 address is without its brackets.
    pub host: String,
    /// The port. A URL without a port has that of its scheme.
    pub port: u16,
    /// Whether the scheme is `https`.
    pub tls: bool,
}

impl OriginUrl {
    /// Reads `http://host:port` or `https://host:port`.
    ///
    /// # Errors
    ///
    /// What is wrong with the URL, as the end of a sentence about its key.
    pub fn parse(text: &str) -> Result<Self, String> {
        let url = url::Url::parse(text).map_err(|e| format!("is not a URL: {e}"))?;
        let tls = match url.scheme() {
            "http" => false,
            "https" => true,
            _ => return Err("must begin with http:// or https://".to_owned()),
        };
        let bare =
            matches!(url.path(), "" | "/") && url.query().is_none() && url.fragment().is_none();
        if !bare || !url.username().is_empty() || url.password().is_some() {
            return Err("takes scheme, host and port only: requests keep their own path".to_owned());
        }
        // A URL with the scheme http or https always has a host.
        let host = url.host_str().unwrap_or_default().trim_matches(['[', ']']).to_owned();
        let port = url.port_or_known_default().unwrap_or(80);
        Ok(Self { host, port, tls })
    }

    /// Returns the value of a `Host` header that names this origin.
    pub fn authority(&self) -> String {
        let host = match self.host.contains(':') {
            true => format!("[{}]", self.host),
            false => self.host.clone(),
        };
        match (self.tls, self.port) {
            (false, 80) | (true, 443) => host,
            (_, port) => format!("{host}:{port}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_origin_is_scheme_host_and_port() {
        let check = |url: &str, host: &str, port: u16, tls: bool| {
            let expect = OriginUrl { host: host.to_owned(), port, tls };
            assert_eq!(OriginUrl::parse(url), Ok(expect), "{url}");
        };
        check("http://127.0.0.1:9000", "127.0.0.1", 9000, false);
        check("https://origin.example/", "origin.example", 443, true);
        check("HTTPS://origin.example", "origin.example", 443, true);
        check("http://[::1]", "::1", 80, false);
        for (url, expect) in [
            ("http://a", "a"),
            ("https://a:443", "a"),
            ("https://a:80", "a:80"),
            ("http://[::1]:8080", "[::1]:8080"),
        ] {
            assert_eq!(OriginUrl::parse(url).unwrap().authority(), expect);
        }
        for wrong in ["", "ftp://a", "http://", "http://a/b", "http://a/?b", "http://u:p@a/"] {
            assert!(OriginUrl::parse(wrong).is_err(), "{wrong}");
        }
    }
}
