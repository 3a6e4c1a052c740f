//! The context of an event: what the headers and the connection of its request say (SPEC 7,
//! `context`).

use std::borrow::Cow;
use std::net::IpAddr;

/// The context of a request: what its headers and its connection say (SPEC 7, `context`).
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
    /// `User-Agent`, cut after 1024 bytes.
    pub user_agent: Option<Cow<'a, str>>,
    /// `Referer`, as far as `[privacy]` keeps it, cut after 2048 bytes.
    pub referer: Option<Cow<'a, str>>,
    /// Whether the request has `Sec-GPC: 1`.
    pub gpc: bool,
    /// Whether the request has `DNT: 1`.
    pub dnt: bool,
    /// Whether the browser says that it prefetches the page.
    pub prefetch: bool,
    /// The members that an operator or a host asks for. `None` if there are none. They are boxed,
    /// because a context is moved several times for each request, and most contexts have none.
    pub further: Option<Box<FurtherContext<'a>>>,
}

/// The members of a context that are set only if an operator or a host asks for them.
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
    /// `Host`, at most 259 bytes, if an upstream has `keep_host`.
    pub host: Option<Cow<'a, str>>,
    /// The value of the cookie that `events.utk_cookie` names, at most 255 bytes.
    pub utk: Option<Cow<'a, str>>,
    /// The headers that `events.context_headers` names as (name, value), sorted by name. Values are
    /// cut after 1024 bytes, the list after 16.
    pub headers: Vec<(Cow<'a, str>, Cow<'a, str>)>,
    /// The additions of the host (`Builder::inspect`) as (name, value), sorted by name, each name
    /// once. Values are cut after 255 bytes, the list after 16.
    pub added: Vec<(Cow<'a, str>, Cow<'a, str>)>,
}

static NOTHING: FurtherContext<'static> =
    FurtherContext { host: None, utk: None, headers: Vec::new(), added: Vec::new() };

impl<'a> Context<'a> {
    /// The further members. All are empty if there are none.
    pub fn further(&self) -> &FurtherContext<'a> {
        self.further.as_deref().unwrap_or(&NOTHING)
    }
}

impl<'a> FurtherContext<'a> {
    /// The value of [`Context::further`]: `None` if all members are empty.
    pub(crate) fn boxed(self) -> Option<Box<FurtherContext<'a>>> {
        (self != NOTHING).then(|| Box::new(self))
    }
}
