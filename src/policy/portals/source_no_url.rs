//! Replaces `source_url.rs` in a build without the feature `http`.

use std::{path::Path, sync::Arc, time::Duration};

use http::HeaderMap;
use url::Url;

use super::list::{Content, List};
use super::look::Look;
use super::open_error::OpenError;
use super::terms::Terms;
use crate::env::Secret;

/// A type without values: this build opens no URL.
#[derive(Debug)]
pub(super) enum UrlSource {}

impl UrlSource {
    /// Always an error.
    pub(super) fn open(
        _: Url,
        _: HeaderMap,
        _: Option<Secret>,
        _: &Path,
        _: &Arc<Terms>,
    ) -> Result<(Self, Option<(List, Duration)>), OpenError> {
        Err(OpenError("is a URL, and this build lacks the feature `http`".to_owned()))
    }

    pub(super) async fn look(&mut self, _: Option<Content>, _: &Arc<Terms>) -> Look {
        match *self {}
    }

    pub(super) fn unstored(&self) -> Option<&str> {
        match *self {}
    }
}
