//! The `[events]` section, and the [`Rules`] that are built from it.
//!
//! [`Rules::new`] checks the section once. Judging uses [`Rules`] only, so it never meets a value
//! that is out of range.

use crate::config_error::ConfigError;

use bytesize::ByteSize;
use serde::Deserialize;

use super::context_names::ContextNames;
use super::dropped_names::DroppedNames;
use super::param::{
    IGNORE_PARAMS_DEFAULT, PARAMS_MAX_DEFAULT, PARAMS_MAX_RANGE, PROPERTY_NAME_BYTES_MAX,
    QUERY_BYTES_MAX_DEFAULT, QUERY_BYTES_MAX_RANGE, Reserved, WITHHOLD_PARAMS_DEFAULT,
};
use super::verdict::Ignored;
use crate::env::one_or_many;

/// The `[events]` section (SPEC 9).
///
/// ```
/// use pixelgate::config::Events;
///
/// let mut events = Events::default();
/// events.path = "/pixel/".to_owned();
/// events.ignore_params.push("cache_buster".to_owned());
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[cfg_attr(not(feature = "internals"), non_exhaustive)]
pub struct Config {
    /// The event path in canonical form, at most 127 bytes and 8 segments. SPEC 2 says which other
    /// paths mean the same. Default: `/v1/event/`.
    pub path: String,
    /// The methods that are judged: `GET`, and optionally `POST`. Default: `GET`.
    #[serde(deserialize_with = "one_or_many")]
    pub methods: Vec<String>,
    /// The longest query, 64 bytes to 64 KiB. Default: 8 KiB.
    pub query_bytes_max: ByteSize,
    /// The most non-empty pieces of a query, 2 to 1000. Default: 100.
    pub params_max: usize,
    /// Names of parameters that are always ignored. ASCII case does not matter. Default: `t`, with
    /// which callers avoid caches.
    #[serde(deserialize_with = "one_or_many")]
    pub ignore_params: Vec<String>,
    /// Names of parameters that may be credentials. They are ignored, and their values appear
    /// nowhere. ASCII case does not matter. Default: the ten names of SPEC 3, such as `hapikey`.
    #[serde(deserialize_with = "one_or_many")]
    pub withhold_params: Vec<String>,
    /// The cookie whose value is stored as `context.utk`. Default: none, and no cookie is read.
    pub utk_cookie: Option<String>,
    /// Headers from trusted proxies that are stored in `context.headers`, at most 16 names of at
    /// most 64 bytes. Default: none.
    #[serde(deserialize_with = "one_or_many")]
    pub context_headers: Vec<String>,
}

impl Default for Config {
    fn default() -> Config {
        Config {
            path: "/v1/event/".to_owned(),
            methods: vec!["GET".to_owned()],
            query_bytes_max: ByteSize::b(QUERY_BYTES_MAX_DEFAULT as u64),
            params_max: PARAMS_MAX_DEFAULT,
            ignore_params: IGNORE_PARAMS_DEFAULT.map(str::to_owned).into(),
            withhold_params: WITHHOLD_PARAMS_DEFAULT.map(str::to_owned).into(),
            utk_cookie: None,
            context_headers: Vec::new(),
        }
    }
}

/// The limits of a query.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// The longest query, in bytes.
    pub query_bytes_max: usize,
    /// The most non-empty pieces of a query.
    pub params_max: usize,
}

/// A checked [`Config`], in the form that judging needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rules {
    limits: Limits,
    dropped: DroppedNames,
    context_names: ContextNames,
    judges_post: bool,
}

impl Rules {
    /// Checks all keys but `path`, which the path guard checks.
    ///
    /// # Errors
    ///
    /// The first key whose value is out of range.
    pub fn new(config: &Config) -> Result<Rules, ConfigError> {
        let query_bytes_max = usize::try_from(config.query_bytes_max.as_u64())
            .ok()
            .filter(|bytes| QUERY_BYTES_MAX_RANGE.contains(bytes))
            .ok_or_else(|| {
                let (min, max) = (QUERY_BYTES_MAX_RANGE.start(), QUERY_BYTES_MAX_RANGE.end());
                ConfigError::new("events.query_bytes_max", format!("must be {min} to {max} bytes"))
            })?;
        if !PARAMS_MAX_RANGE.contains(&config.params_max) {
            let (min, max) = (PARAMS_MAX_RANGE.start(), PARAMS_MAX_RANGE.end());
            return Err(ConfigError::new("events.params_max", format!("must be {min} to {max}")));
        }
        Ok(Rules {
            limits: Limits { query_bytes_max, params_max: config.params_max },
            dropped: dropped_names(config)?,
            context_names: ContextNames::new(
                config.utk_cookie.as_deref(),
                &config.context_headers,
            )?,
            judges_post: judges_post(&config.methods)?,
        })
    }

    /// The same rules, which store the `Host` of each request if `is_stored`.
    pub fn with_host(mut self, is_stored: bool) -> Rules {
        self.context_names.set_host(is_stored);
        self
    }

    /// The limits of a query.
    pub fn limits(&self) -> Limits {
        self.limits
    }

    /// The cookie and the headers that are stored with an event.
    pub fn context_names(&self) -> &ContextNames {
        &self.context_names
    }

    /// Whether `POST` is judged like `GET`.
    pub fn judges_post(&self) -> bool {
        self.judges_post
    }

    /// Why the configuration drops a parameter of this name, which is in lower case. `None`: the
    /// configuration does not drop it.
    #[inline]
    pub(super) fn drops(&self, name: &str) -> Option<Ignored> {
        self.dropped.cause(name)
    }

    /// Whether a parameter of this name, which is in lower case, may be a credential
    /// (`events.withhold_params`).
    pub fn withholds(&self, name: &str) -> bool {
        self.drops(name) == Some(Ignored::Withheld)
    }
}

impl Default for Rules {
    fn default() -> Rules {
        let names = |names: &[&str], cause| {
            names.iter().map(|name| ((*name).to_owned(), cause)).collect::<Vec<_>>()
        };
        let withheld = names(&WITHHOLD_PARAMS_DEFAULT, Ignored::Withheld);
        let ignored = names(&IGNORE_PARAMS_DEFAULT, Ignored::Configured);
        Rules {
            limits: Limits {
                query_bytes_max: QUERY_BYTES_MAX_DEFAULT,
                params_max: PARAMS_MAX_DEFAULT,
            },
            dropped: DroppedNames::new(withheld.into_iter().chain(ignored)),
            context_names: ContextNames::default(),
            judges_post: false,
        }
    }
}

/// The names of `withhold_params` and `ignore_params`. A name in both lists is withheld.
fn dropped_names(config: &Config) -> Result<DroppedNames, ConfigError> {
    let withheld = config
        .withhold_params
        .iter()
        .map(|name| Ok((dropped_name("events.withhold_params", name)?, Ignored::Withheld)));
    let ignored = config
        .ignore_params
        .iter()
        .map(|name| Ok((dropped_name("events.ignore_params", name)?, Ignored::Configured)));
    let names: Result<Vec<_>, ConfigError> = withheld.chain(ignored).collect();
    names.map(DroppedNames::new)
}

fn dropped_name(key: &'static str, name: &str) -> Result<String, ConfigError> {
    let name = name.trim().to_ascii_lowercase();
    if Reserved::of(name.as_bytes()).is_some() {
        // Without this check, each event would silently lose its address or its revenue.
        let reason = format!("must not name the reserved parameter {name:?}");
        return Err(ConfigError::new(key, reason));
    }
    if name.is_empty() || name.len() > PROPERTY_NAME_BYTES_MAX {
        let reason = format!("must hold names of 1 to {PROPERTY_NAME_BYTES_MAX} bytes");
        return Err(ConfigError::new(key, reason));
    }
    Ok(name)
}

fn judges_post(methods: &[String]) -> Result<bool, ConfigError> {
    let key = "events.methods";
    if methods.iter().any(|method| !matches!(method.as_str(), "GET" | "POST")) {
        return Err(ConfigError::new(key, "may hold \"GET\" and \"POST\" only"));
    }
    if !methods.iter().any(|method| method == "GET") {
        return Err(ConfigError::new(key, "must hold \"GET\""));
    }
    Ok(methods.iter().any(|method| method == "POST"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(change: impl FnOnce(&mut Config)) -> String {
        let mut config = Config::default();
        change(&mut config);
        Rules::new(&config).expect_err("this configuration must be refused").key().to_owned()
    }

    #[test]
    fn the_default_configuration_gives_the_default_rules() {
        assert_eq!(Rules::new(&Config::default()).unwrap(), Rules::default());
    }

    #[test]
    fn sizes_are_held_to_their_ranges() {
        for bytes in [0, 63, 65_537, u64::MAX] {
            let key = refused(|c| c.query_bytes_max = ByteSize::b(bytes));
            assert_eq!(key, "events.query_bytes_max");
        }
        for params in [0, 1, 1001, usize::MAX] {
            assert_eq!(refused(|c| c.params_max = params), "events.params_max");
        }
        let edges = [(64, 2), (65_536, 1000)];
        for (bytes, params_max) in edges {
            let query_bytes_max = ByteSize::b(bytes);
            let config = Config { query_bytes_max, params_max, ..Config::default() };
            assert!(Rules::new(&config).is_ok());
        }
    }

    #[test]
    fn only_get_and_post_are_methods_and_get_is_needed() {
        assert_eq!(refused(|c| c.methods = vec![]), "events.methods");
        assert_eq!(refused(|c| c.methods = vec!["POST".into()]), "events.methods");
        assert_eq!(refused(|c| c.methods = vec!["GET".into(), "PUT".into()]), "events.methods");
        let config = Config { methods: vec!["GET".into(), "POST".into()], ..Config::default() };
        assert!(Rules::new(&config).is_ok_and(|rules| rules.judges_post()));
    }

    #[test]
    fn dropped_names_are_compared_in_lower_case_and_never_reserved() {
        let config = Config {
            ignore_params: vec![" CacheBuster ".into(), "Pin".into()],
            withhold_params: vec!["PIN".into()],
            ..Config::default()
        };
        let rules = Rules::new(&config).unwrap();
        assert_eq!(rules.drops("cachebuster"), Some(Ignored::Configured));
        assert_eq!(rules.drops("pin"), Some(Ignored::Withheld));
        assert!(rules.withholds("pin") && !rules.withholds("cachebuster"));
        assert_eq!((rules.drops("t"), rules.drops("token")), (None, None), "both lists replace");
        for name in ["email", "_A", " id", "", "  "] {
            assert_eq!(refused(|c| c.ignore_params = vec![name.into()]), "events.ignore_params");
            assert_eq!(
                refused(|c| c.withhold_params = vec![name.into()]),
                "events.withhold_params"
            );
        }
    }
}
