//! Stands in for lists from a URL in a build without the feature `http`.

use std::{path::Path, sync::Arc, time::Duration};

use url::Url;

use super::config::Config;
use super::list::{Content, List};
use super::look::Look;
use crate::clock::Clock;
use crate::config_error::ConfigError;

/// Cannot exist in this build.
#[derive(Debug)]
pub(super) enum UrlSource {}

impl UrlSource {
    /// Always an error.
    pub(super) fn open(
        _: Url,
        _: &Config,
        _: &Path,
        _: &Arc<dyn Clock>,
    ) -> Result<(Self, Option<(List, Duration)>), ConfigError> {
        let why = "is a URL, and this build lacks the feature `http`";
        Err(ConfigError::new("portals.source", why))
    }

    pub(super) async fn look(&mut self, _: Option<Content>, _: &Arc<dyn Clock>) -> Look {
        match *self {}
    }
}
