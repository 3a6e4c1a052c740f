//! The context of an event: what is known of its request besides the query (SPEC 7, `context`).

use std::borrow::Cow;
use std::net::IpAddr;

/// The context of a request: what is known besides its query (SPEC 7, `context`).
///
/// ```
/// use pixelgate::custom::Context;
///
/// fn is_person(context: &Context<'_>) -> bool {
///     context.user_agent.is_some() && !context.prefetch
/// }
/// ```
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[cfg_attr(not(feature = "internals"), non_exhaustive)]
pub struct Context<'a> {
    /// The client's address, as far as `[privacy]` keeps it.
    pub ip: Option<IpAddr>,
    /// `User-Agent`. Cut after 1024 bytes.
    pub user_agent: Option<Cow<'a, str>>,
    /// `Referer`, as far as `[privacy]` keeps it. Cut after 2048 bytes.
    pub referer: Option<Cow<'a, str>>,
    /// `Sec-GPC: 1`.
    pub gpc: bool,
    /// `DNT: 1`.
    pub dnt: bool,
    /// The browser says that it prefetches the page.
    pub prefetch: bool,
    /// What an operator or a host asks for besides. `None`: nothing. It is boxed because a context
    /// is moved several times for each request, and most contexts have nothing further.
    pub further: Option<Box<FurtherContext<'a>>>,
}

/// The members of a context that are there only where an operator or a host asks for them.
///
/// ```
/// use pixelgate::custom::Context;
///
/// fn visitor<'c>(context: &'c Context<'_>) -> Option<&'c str> {
///     context.further().utk.as_deref()
/// }
/// ```
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[cfg_attr(not(feature = "internals"), non_exhaustive)]
pub struct FurtherContext<'a> {
    /// `Host`, where an upstream sends it on, at most 259 bytes.
    pub host: Option<Cow<'a, str>>,
    /// The value of the cookie that `events.utk_cookie` names, at most 255 bytes.
    pub utk: Option<Cow<'a, str>>,
    /// The headers that `events.context_headers` names as (name, value), sorted by name. Values are
    /// cut after 1024 bytes, the list after 16.
    pub headers: Vec<(Cow<'a, str>, Cow<'a, str>)>,
    /// What the host has added (`Builder::inspect`) as (name, value), sorted by name, each name
    /// once. Values are cut after 255 bytes, the list after 16.
    pub added: Vec<(Cow<'a, str>, Cow<'a, str>)>,
}

static NOTHING: FurtherContext<'static> =
    FurtherContext { host: None, utk: None, headers: Vec::new(), added: Vec::new() };

impl<'a> Context<'a> {
    /// The further members; all of them are empty where there are none.
    pub fn further(&self) -> &FurtherContext<'a> {
        self.further.as_deref().unwrap_or(&NOTHING)
    }
}

impl<'a> FurtherContext<'a> {
    /// As a context holds it: `None` if all members are empty.
    pub(crate) fn boxed(self) -> Option<Box<FurtherContext<'a>>> {
        (self != NOTHING).then(|| Box::new(self))
    }
}
