//! The `[events]` section, and the [`Rules`] made of it.
//!
//! What may be wrong in a configuration is found here, once, at construction: judging holds
//! [`Rules`], which cannot be wrong.

use crate::config_error::ConfigError;

use bytesize::ByteSize;
use serde::Deserialize;

use super::param::{
    PARAMS_MAX_DEFAULT, PARAMS_MAX_RANGE, PROPERTY_NAME_BYTES_MAX, QUERY_BYTES_MAX_DEFAULT,
    QUERY_BYTES_MAX_RANGE, Reserved,
};

/// The `[events]` section (SPEC 9).
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// The event path, in canonical form. Its spellings are in SPEC 2.
    pub path: String,
    /// The methods that are judged: `GET`, and `POST` if wished.
    pub methods: Vec<String>,
    /// The longest query, in bytes.
    pub query_bytes_max: ByteSize,
    /// The most non-empty pieces of a query.
    pub params_max: usize,
    /// Names of parameters that are always ignored; upper and lower case are the same.
    pub ignore_params: Vec<String>,
}

impl Default for Config {
    fn default() -> Config {
        Config {
            path: "/v1/event/".to_owned(),
            methods: vec!["GET".to_owned()],
            query_bytes_max: ByteSize::b(QUERY_BYTES_MAX_DEFAULT as u64),
            params_max: PARAMS_MAX_DEFAULT,
            ignore_params: vec!["t".to_owned()],
        }
    }
}

/// How much of a query is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// The longest query, in bytes.
    pub query_bytes_max: usize,
    /// The most non-empty pieces of a query.
    pub params_max: usize,
}

/// What [`parse`](super::parse) needs to know: a [`Config`] found to be right.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rules {
    limits: Limits,
    ignore_params: Box<[String]>,
    judges_post: bool,
}

impl Rules {
    /// Takes what concerns the query from a configuration.
    ///
    /// # Errors
    ///
    /// The first key whose value is not within its range.
    pub fn new(config: &Config) -> Result<Rules, ConfigError> {
        let query_bytes_max = usize::try_from(config.query_bytes_max.as_u64())
            .ok()
            .filter(|bytes| QUERY_BYTES_MAX_RANGE.contains(bytes))
            .ok_or_else(|| {
                ConfigError::new(
                    "events.query_bytes_max",
                    format!("must be within {QUERY_BYTES_MAX_RANGE:?} bytes"),
                )
            })?;
        if !PARAMS_MAX_RANGE.contains(&config.params_max) {
            return Err(ConfigError::new(
                "events.params_max",
                format!("must be within {PARAMS_MAX_RANGE:?}"),
            ));
        }
        Ok(Rules {
            limits: Limits { query_bytes_max, params_max: config.params_max },
            ignore_params: ignore_params(&config.ignore_params)?,
            judges_post: judges_post(&config.methods)?,
        })
    }

    /// How much of a query is read.
    pub fn limits(&self) -> Limits {
        self.limits
    }

    /// Whether `POST` is judged like `GET`.
    pub fn judges_post(&self) -> bool {
        self.judges_post
    }

    /// Whether the operator wants this parameter left out. The name is in lower case.
    pub(super) fn ignores(&self, name: &str) -> bool {
        self.ignore_params.iter().any(|ignored| ignored == name)
    }
}

impl Default for Rules {
    fn default() -> Rules {
        Rules {
            limits: Limits {
                query_bytes_max: QUERY_BYTES_MAX_DEFAULT,
                params_max: PARAMS_MAX_DEFAULT,
            },
            ignore_params: Box::new(["t".to_owned()]),
            judges_post: false,
        }
    }
}

fn ignore_params(names: &[String]) -> Result<Box<[String]>, ConfigError> {
    let key = "events.ignore_params";
    names
        .iter()
        .map(|name| {
            let name = name.trim().to_ascii_lowercase();
            if Reserved::of(name.as_bytes()).is_some() {
                // Silently losing every address or amount is surely a mistake.
                let reason = format!("must not name the reserved parameter {name:?}");
                return Err(ConfigError::new(key, reason));
            }
            if name.is_empty() || name.len() > PROPERTY_NAME_BYTES_MAX {
                let reason = format!("must hold names of 1 to {PROPERTY_NAME_BYTES_MAX} bytes");
                return Err(ConfigError::new(key, reason));
            }
            Ok(name)
        })
        .collect()
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
    fn ignored_names_are_compared_in_lower_case_and_never_reserved() {
        let config = Config { ignore_params: vec![" CacheBuster ".into()], ..Config::default() };
        assert!(Rules::new(&config).is_ok_and(|rules| rules.ignores("cachebuster")));
        for name in ["email", "_A", " id", "", "  "] {
            assert_eq!(refused(|c| c.ignore_params = vec![name.into()]), "events.ignore_params");
        }
    }
}
