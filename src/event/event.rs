//! The event that a query describes, in canonical form.

use std::borrow::Cow;
use std::fmt;

use smallvec::SmallVec;

use super::revenue::Revenue;

/// Contact properties as (name, value), sorted by name, each name once.
///
/// Up to 8 are stored inline; more are stored on the heap.
///
/// ```
/// use pixelgate::custom::Properties;
///
/// fn is_on_plan(properties: &Properties<'_>, plan: &str) -> bool {
///     properties.iter().any(|(name, value)| name == "plan" && value == plan)
/// }
/// let properties = Properties::from_iter([("plan".into(), "pro".into())]);
/// assert!(is_on_plan(&properties, "pro"));
/// ```
pub type Properties<'a> = SmallVec<[(Cow<'a, str>, Cow<'a, str>); 8]>;

/// An event in the canonical form of SPEC 3.
///
/// Its `Debug` form shows the portal and which fields are set, and no personal data: an event that
/// is logged by mistake discloses nothing.
///
/// ```
/// use pixelgate::Event;
///
/// fn is_order(event: &Event<'_>) -> bool {
///     event.revenue.is_some() && event.properties.iter().any(|(name, _)| name == "order_id")
/// }
/// ```
#[derive(Clone, Eq)]
#[cfg_attr(not(feature = "internals"), non_exhaustive)]
pub struct Event<'a> {
    /// The account that the event belongs to (`_a`), 1 to 999 999 999 999 999.
    pub portal: u64,
    /// The event's id or name (`_n`), opaque, 1 to 255 characters.
    pub name: Cow<'a, str>,
    /// The contact's address (`email`), lower case, the domain in Unicode.
    pub email: Option<Cow<'a, str>>,
    /// The revenue (`_m`).
    pub revenue: Option<Revenue>,
    /// The sender's own id of the contact (`id`), opaque, at most 255 characters.
    pub external_id: Option<Cow<'a, str>>,
    /// All other parameters that are contact properties, sorted by name.
    pub properties: Properties<'a>,
}

impl Event<'_> {
    /// An empty event that [`parse_into`](super::parse_into) fills in.
    pub(crate) fn blank() -> Self {
        Event {
            portal: 0,
            name: Cow::Borrowed(""),
            email: None,
            revenue: None,
            external_id: None,
            properties: Properties::new(),
        }
    }

    /// Copies all borrowed texts, so that the event has any lifetime, `'static` included.
    pub fn into_owned<'any>(self) -> Event<'any> {
        let own = |text: Cow<'_, str>| Cow::Owned(text.into_owned());
        Event {
            portal: self.portal,
            name: own(self.name),
            email: self.email.map(own),
            revenue: self.revenue,
            external_id: self.external_id.map(own),
            properties: self.properties.into_iter().map(|(n, v)| (own(n), own(v))).collect(),
        }
    }

    /// Removes email, external id and properties. Portal, name and revenue stay (SPEC 7,
    /// `privacy.gpc`).
    pub fn anonymize(&mut self) {
        self.email = None;
        self.external_id = None;
        self.properties.clear();
    }
}

// Not derived: events with different lifetimes must be comparable.
impl<'b> PartialEq<Event<'b>> for Event<'_> {
    fn eq(&self, other: &Event<'b>) -> bool {
        self.portal == other.portal
            && self.name == other.name
            && self.email == other.email
            && self.revenue == other.revenue
            && self.external_id == other.external_id
            && self.properties.len() == other.properties.len()
            && self.properties.iter().zip(&other.properties).all(|(a, b)| a.0 == b.0 && a.1 == b.1)
    }
}

impl fmt::Debug for Event<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Event")
            .field("portal", &self.portal)
            .field("email", &self.email.is_some())
            .field("revenue", &self.revenue.is_some())
            .field("external_id", &self.external_id.is_some())
            .field("properties", &self.properties.len())
            .finish_non_exhaustive()
    }
}
