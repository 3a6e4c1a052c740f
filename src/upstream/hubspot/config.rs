//! The settings of an `[[upstream]]` of kind `hubspot`.

use crate::config_error::ConfigError;
use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use http::header::HeaderValue;
use serde::Deserialize;
use tokio::sync::Semaphore;
use url::Url;

use super::names::{self, EventNames};
use super::pauses::{Known, Pauses};
use super::send::Sender;
use super::translate::{REFERRER_PROPERTY, Translator, USER_AGENT_PROPERTY};
use super::upstream::Hubspot;
use crate::env::Secret;
use crate::event::is_property_name;
use crate::upstream::client;
use crate::upstream::http::parse_url;
use crate::upstream::limits::CONNECTION_SECONDS_DEFAULT;
use crate::upstream::tls::Tls;

/// Maximum of `fault_seconds_max`: one week.
pub const FAULT_SECONDS_MAX: u64 = 604_800;

/// The settings of an `[[upstream]]` of kind `hubspot`.
///
/// ```
/// use pixelgate::config::{HubspotUpstream, Secret, Upstream};
///
/// let mut hubspot = HubspotUpstream::default();
/// hubspot.tokens.insert("62515".to_owned(), Secret::new("pat-na1-0000"));
/// hubspot.event_names.insert("000000001625".to_owned(), "signup".to_owned());
/// assert!(Upstream::new("hubspot", hubspot).validate().is_ok());
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[cfg_attr(not(feature = "internals"), non_exhaustive)]
pub struct Config {
    /// The scheme and host of the API. May hold `${ENV}`. Default: `https://api.hubapi.com`.
    pub url: Secret,
    /// A token for each portal, by its number. Values may hold `${ENV}`.
    pub tokens: BTreeMap<String, Secret>,
    /// HubSpot's event names by the names in the pixels. A key is a name, or `portal/name`. A value
    /// is a whole `pe{portal}_{name}`, or the name without its prefix.
    pub event_names: BTreeMap<String, String>,
    /// Whether contacts and their properties are written. Default: `true`.
    pub contacts: bool,
    /// The event property for the revenue. Empty: the revenue is left out. Default: `revenue`.
    pub revenue_property: String,
    /// The event property for the external id. Empty: the external id is left out. Default:
    /// `external_id`.
    pub external_id_property: String,
    /// The contact property for the external id of an event that also has an address. Empty, the
    /// default: the id is not written to contacts.
    pub external_id_contact_property: String,
    /// Whether an event with an external id and no address is sent. HubSpot then finds the contact
    /// by the id, if the event's definition matches it (`customMatchingId`). Default: `false`.
    pub match_external_id: bool,
    /// Whether user agent and referer are sent as HubSpot's default event properties. Default:
    /// `false`.
    pub context_properties: bool,
    /// The longest wait of a portal's events while its token is rejected or missing, in seconds, at
    /// most 604,800 (a week). After it, they become dead letters. 0: no limit. Default: 0.
    pub fault_seconds_max: u64,
    /// The path below `url` for events. Default: `/events/v3/send/batch`.
    pub events_path: String,
    /// The path below `url` for contacts. Default: `/crm/v3/objects/contacts/batch/upsert`.
    pub contacts_path: String,
    /// Maximum number of requests in flight, 1 to 64. Default: 8.
    pub concurrency_max: usize,
    /// The longest time for one request, in seconds, 1 to 300. Default: 10.
    pub timeout_seconds: u64,
    /// The longest time that a connection is used, in seconds, 1 to 86,400. Default: 300.
    pub connection_seconds_max: u64,
    /// The proxy for all requests, an `http://` or `https://` URL. Empty: no proxy. `None`, the
    /// default: the proxy that the environment names. May hold `${ENV}`.
    pub proxy: Option<Secret>,
    /// Certificates (PEM) to trust instead of the machine's.
    pub ca: Option<PathBuf>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            url: Secret::new("https://api.hubapi.com"),
            tokens: BTreeMap::new(),
            event_names: BTreeMap::new(),
            contacts: true,
            revenue_property: "revenue".into(),
            external_id_property: "external_id".into(),
            external_id_contact_property: String::new(),
            match_external_id: false,
            context_properties: false,
            fault_seconds_max: 0,
            events_path: "/events/v3/send/batch".into(),
            contacts_path: "/crm/v3/objects/contacts/batch/upsert".into(),
            concurrency_max: 8,
            timeout_seconds: 10,
            connection_seconds_max: CONNECTION_SECONDS_DEFAULT,
            proxy: None,
            ca: None,
        }
    }
}

impl Config {
    /// Checks the limits, the names, the addresses and the tokens.
    pub fn validate(&self) -> Result<(), ConfigError> {
        self.setup().validate()?;
        if self.fault_seconds_max > FAULT_SECONDS_MAX {
            let reason = format!("must be at most {FAULT_SECONDS_MAX} seconds");
            return Err(ConfigError::new("fault_seconds_max", reason));
        }
        self.endpoint("events_path", &self.events_path)?;
        self.endpoint("contacts_path", &self.contacts_path)?;
        self.translator()?;
        self.authorizations().map(drop)
    }

    /// The translator of events, which needs neither secrets nor addresses.
    pub(in crate::upstream) fn translator(&self) -> Result<Translator, ConfigError> {
        let check = |key: &str, name: &str| {
            if name.is_empty() || (names::is_valid(name) && !name.contains('-')) {
                return Ok(());
            }
            let reason = "is no event property's name: a-z, 0-9 and `_`, letter first, \
                          at most 50 characters; empty leaves it out";
            Err(ConfigError::new(key, reason))
        };
        check("revenue_property", &self.revenue_property)?;
        check("external_id_property", &self.external_id_property)?;
        if self.revenue_property == self.external_id_property && !self.revenue_property.is_empty() {
            let reason = "must differ from revenue_property";
            return Err(ConfigError::new("external_id_property", reason));
        }
        let own = [
            ("revenue_property", &self.revenue_property),
            ("external_id_property", &self.external_id_property),
        ];
        let is_default = |name: &str| [USER_AGENT_PROPERTY, REFERRER_PROPERTY].contains(&name);
        if let Some((key, _)) =
            own.into_iter().find(|(_, name)| self.context_properties && is_default(name))
        {
            return Err(ConfigError::new(key, "is a property that context_properties sends"));
        }
        self.check_external_id()?;
        Ok(Translator {
            event_names: EventNames::new(&self.event_names)?,
            contacts: self.contacts,
            revenue_property: self.revenue_property.clone(),
            external_id_property: self.external_id_property.clone(),
            external_id_contact_property: self.external_id_contact_property.clone(),
            match_external_id: self.match_external_id,
            context_properties: self.context_properties,
        })
    }

    fn check_external_id(&self) -> Result<(), ConfigError> {
        let (name, key) = (&self.external_id_contact_property, "external_id_contact_property");
        let is_contact_property = is_property_name(name) && name != "email";
        if !name.is_empty() && !is_contact_property {
            let reason = "is no contact property's name for an id: a-z, 0-9 and `_`, letter first, \
                          at most 100 characters, and not email";
            return Err(ConfigError::new(key, reason));
        }
        if !name.is_empty() && !self.contacts {
            return Err(ConfigError::new(key, "needs contacts = true"));
        }
        if self.match_external_id && self.external_id_property.is_empty() {
            let reason = "needs external_id_property, which the event's definition matches";
            return Err(ConfigError::new("match_external_id", reason));
        }
        Ok(())
    }

    /// Whether a token for `portal` is configured.
    pub(in crate::upstream) fn has_token(&self, portal: u64) -> bool {
        self.tokens.contains_key(&portal.to_string())
    }

    fn setup(&self) -> client::Setup {
        client::Setup {
            timeout_seconds: self.timeout_seconds,
            connections: self.concurrency_max,
            connection_seconds_max: self.connection_seconds_max,
            proxy: self.proxy.clone(),
            ..client::Setup::default()
        }
    }

    /// Builds the upstream, which begins with the pauses of portals in `known`. Reads the
    /// certificates; resolves no name and opens no connection.
    pub(in crate::upstream) fn build(&self, known: Arc<Known>) -> Result<Hubspot, ConfigError> {
        let tls = Tls { ca: self.ca.as_deref(), ..Tls::default() };
        let events_url = self.endpoint("events_path", &self.events_path)?;
        let contacts_url = match self.contacts {
            true => Some(self.endpoint("contacts_path", &self.contacts_path)?),
            false => None,
        };
        let sender = Sender {
            client: client::Client::build(&events_url, self.setup(), &tls)?,
            events_url,
            contacts_url,
            requests: Semaphore::new(self.concurrency_max),
        };
        let authorizations = self.authorizations()?;
        let fault_max = Some(self.fault_seconds_max).filter(|seconds| *seconds > 0);
        let pauses = Pauses::new(fault_max.map(Duration::from_secs), known);
        Ok(Hubspot::new(self.translator()?, authorizations, sender, pauses))
    }

    fn endpoint(&self, key: &str, path: &str) -> Result<Url, ConfigError> {
        let base = parse_url(&self.url)?;
        if base.query().is_some() || base.fragment().is_some() {
            let reason = "must have no query: events_path and contacts_path name the paths";
            return Err(ConfigError::new("url", reason));
        }
        if !path.starts_with('/') || path.contains('#') {
            return Err(ConfigError::new(key, "must begin with `/`"));
        }
        let whole = format!("{}{path}", base.as_str().trim_end_matches('/'));
        Url::parse(&whole).map_err(|e| ConfigError::caused(key, "is no path", e))
    }

    fn authorizations(&self) -> Result<HashMap<u64, HeaderValue>, ConfigError> {
        if self.tokens.is_empty() {
            let reason =
                "is missing: name a token for each portal, as in { \"62515\" = \"${TOKEN}\" }";
            return Err(ConfigError::new("tokens", reason));
        }
        let mut all = HashMap::new();
        for (portal, token) in &self.tokens {
            let key = format!("tokens.{portal}");
            let Some(portal) = names::portal_of(portal) else {
                return Err(ConfigError::new(key, "is no portal's number"));
            };
            let token = token.expose();
            if token.trim().is_empty() {
                return Err(ConfigError::new(key, "is empty"));
            }
            // The error's text does not contain the token.
            let mut value = HeaderValue::from_str(&format!("Bearer {token}"))
                .map_err(|e| ConfigError::caused(&key, "cannot be a header's value", e))?;
            value.set_sensitive(true);
            all.insert(portal, value);
        }
        Ok(all)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::upstream::limits::{CONCURRENCY_MAX, TIMEOUT_SECONDS_MAX};

    const REFERENCE: &str = include_str!("../../../config/reference.toml");

    fn config(rest: &str) -> Config {
        toml::from_str(&format!("tokens = {{ '62515' = 't0ps3cret' }}\n{rest}")).expect(rest)
    }

    #[track_caller]
    fn check_refused(config: &Config, key: &str, word: &str) {
        let error = config.validate().expect_err(key);
        assert_eq!(error.key(), key);
        assert!(error.reason().contains(word), "{error}");
        assert!(!error.to_string().contains("t0ps3cret"), "{error}");
    }

    #[test]
    fn the_least_that_is_told_is_enough() {
        config("").validate().unwrap();
        assert!(config("").has_token(62515) && !config("").has_token(7));
        check_refused(&Config::default(), "tokens", "missing");
    }

    #[test]
    fn the_reference_shows_the_defaults() {
        let start = REFERENCE.find("\n# kind = \"hubspot\"\n").expect("an entry for hubspot");
        let entry = &REFERENCE[start + 1..];
        let entry = &entry[..entry.find("\n\n").unwrap_or(entry.len())];
        let lines = entry.lines().skip(1).map(|line| line.trim_start_matches("# "));
        let mut table: toml::Table = lines.collect::<Vec<_>>().join("\n").parse().unwrap();
        for only_shown in ["tokens", "event_names", "proxy", "ca"] {
            assert!(table.remove(only_shown).is_some(), "{only_shown}");
        }
        let keys = format!("{:?}", toml::from_str::<Config>("no_such_key = 1").unwrap_err());
        for key in table.keys() {
            assert!(keys.contains(&format!("`{key}`")), "{key}");
        }
        assert_eq!(table.len() + 4, keys.matches('`').count() / 2 - 1, "{keys}");
        assert_eq!(table.try_into::<Config>().unwrap(), Config::default());
    }

    #[test]
    fn tokens_are_checked_and_never_shown() {
        let tokens = |portal: &str, token: &str| {
            let tokens = BTreeMap::from([(portal.to_owned(), Secret::new(token))]);
            Config { tokens, ..Config::default() }
        };
        check_refused(&tokens("062515", "t0ps3cret"), "tokens.062515", "no portal");
        check_refused(&tokens("all", "t0ps3cret"), "tokens.all", "no portal");
        check_refused(&tokens("1", "t0ps3cret\nX: y"), "tokens.1", "header");
        check_refused(&tokens("1", " "), "tokens.1", "empty");
        assert!(!format!("{:?}", config("")).contains("t0ps3cret"));
        assert!(!format!("{:?}", config("").build(Arc::default()).unwrap()).contains("t0ps3cret"));
    }

    #[test]
    fn addresses_are_put_together_and_checked() {
        let at = |url: &str, path: &str| {
            let config = Config { url: Secret::new(url), ..config("") };
            config.endpoint("events_path", path).unwrap().to_string()
        };
        assert_eq!(at("https://h", "/a/b"), "https://h/a/b");
        assert_eq!(at("https://h/x/", "/a?idProperty=email"), "https://h/x/a?idProperty=email");
        check_refused(&config("url = 'https://h/?a=b'"), "url", "query");
        check_refused(&config("url = 'ftp://h'"), "url", "http://");
        check_refused(&config("events_path = 'a'"), "events_path", "begin");
        check_refused(&config("contacts_path = '/a#b'"), "contacts_path", "begin");
    }

    #[test]
    fn numbers_and_names_are_held_to_their_bounds() {
        for (key, max) in
            [("timeout_seconds", TIMEOUT_SECONDS_MAX), ("concurrency_max", CONCURRENCY_MAX as u64)]
        {
            for good in [1, max] {
                config(&format!("{key} = {good}")).validate().expect(key);
            }
            for bad in [0, max + 1] {
                check_refused(&config(&format!("{key} = {bad}")), key, "must be 1 to");
            }
        }
        config("fault_seconds_max = 604800").validate().unwrap();
        check_refused(
            &config("fault_seconds_max = 604801"),
            "fault_seconds_max",
            "must be at most",
        );
        for key in ["revenue_property", "external_id_property"] {
            config(&format!("{key} = ''")).validate().expect(key);
            config(&format!("{key} = 'amount_2'")).validate().expect(key);
            for bad in ["Amount", "2x", "a-b", "a b"] {
                check_refused(&config(&format!("{key} = '{bad}'")), key, "no event property");
            }
        }
        check_refused(
            &config("external_id_property = 'revenue'"),
            "external_id_property",
            "must differ",
        );
        config("revenue_property = 'hs_referrer'").validate().unwrap();
        let both = config("context_properties = true\nrevenue_property = 'hs_referrer'");
        check_refused(&both, "revenue_property", "context_properties");
        let key = "external_id_contact_property";
        config(&format!("{key} = 'legacy_id'\nmatch_external_id = true")).validate().unwrap();
        for bad in ["email", "Id", "2x", "a-b", &"x".repeat(101)] {
            check_refused(&config(&format!("{key} = '{bad}'")), key, "no contact property");
        }
        check_refused(&config(&format!("{key} = 'a'\ncontacts = false")), key, "contacts = true");
        let unmatched = config("match_external_id = true\nexternal_id_property = ''");
        check_refused(&unmatched, "match_external_id", "external_id_property");
        check_refused(&config("event_names = { a = 'B' }"), "event_names.a", "neither");
    }
}
