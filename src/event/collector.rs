//! Collects the parameters of a query, then judges the reserved ones in the order of SPEC 3.
//!
//! Collecting and judging are separate steps because the order of the rejections is not the order
//! of the parameters: a fault in `_a` is reported before a fault in `email`, even if `email` comes
//! first in the query.

use std::borrow::Cow;

use super::config::Rules;
use super::event::Event;
use super::param::Reserved;
use super::query::{NotUtf8, Piece, Plus, Text};
use super::revenue::Revenue;
use super::verdict::{Ignored, IgnoredParams, Reason, Rejection};
use super::{email, normalize, validate};

/// The values given for one reserved parameter.
#[derive(Default)]
struct Slot<'a> {
    value: Option<Text<'a>>,
    not_utf8: bool,
    conflicts: bool,
}

impl<'a> Slot<'a> {
    fn take(&mut self, param: Reserved, value: Result<Text<'a>, NotUtf8>) {
        match (value, &self.value) {
            (Err(NotUtf8), _) => self.not_utf8 = true,
            (Ok(new), _) if new.text.is_empty() => {}
            (Ok(new), None) => self.value = Some(new),
            (Ok(new), Some(first)) if new.text == first.text => {}
            (Ok(new), Some(_)) => self.compare(param, new),
        }
    }

    /// Compares two different texts: they are the same value if they have the same canonical form.
    #[cold]
    fn compare(&mut self, param: Reserved, new: Text<'a>) {
        let canonical = |value| canonical_text(param, value);
        match (self.value.take().and_then(canonical), canonical(new)) {
            // A further value is compared with the canonical form, which is short.
            (Some(first), Some(new)) if first == new => {
                self.value = Some(Text { text: first, plain: false });
            }
            _ => self.conflicts = true,
        }
    }

    /// The value. `None`: the parameter is absent or empty.
    fn read(&mut self, param: Reserved) -> Result<Option<Text<'a>>, Rejection> {
        if self.not_utf8 {
            return Err(Rejection::at(Reason::InvalidEncoding, param));
        }
        if self.conflicts {
            return Err(Rejection::at(Reason::ConflictingParam, param));
        }
        Ok(self.value.take())
    }
}

/// The parameters of one query. Properties go straight into the event.
pub(super) struct ParamCollector<'e, 'a> {
    reserved: [Slot<'a>; Reserved::COUNT],
    event: &'e mut Event<'a>,
    ignored: &'e mut IgnoredParams<'a>,
}

impl<'e, 'a> ParamCollector<'e, 'a> {
    /// A collector that writes into `event` and `ignored`, which must be empty.
    pub(super) fn new(event: &'e mut Event<'a>, ignored: &'e mut IgnoredParams<'a>) -> Self {
        ParamCollector { reserved: Default::default(), event, ignored }
    }

    /// Adds a parameter to the reserved values, to the properties or to the ignored parameters.
    pub(super) fn take(&mut self, piece: Piece<'a>, rules: &Rules) {
        let Ok(key) = piece.key() else { return self.take_undecodable_key(piece) };
        if let Some(param) = Reserved::of(key.as_bytes()) {
            return self.reserved[param as usize].take(param, piece.value(Plus::of(Some(param))));
        }
        let value = piece.value(Plus::of(None));
        if value.as_ref().is_ok_and(|value| value.text.is_empty()) {
            return;
        }
        match (name_fault(&key, piece.has_plain_key(), rules), value) {
            (Some(fault), _) => self.ignored.push((key, fault)),
            (None, Err(NotUtf8)) => self.ignored.push((key, Ignored::InvalidEncoding)),
            (None, Ok(value)) if !validate::is_property_value(&value) => {
                self.ignored.push((key, Ignored::ControlCharacter));
            }
            (None, Ok(value)) => self.event.properties.push((key, value.text)),
        }
    }

    fn take_undecodable_key(&mut self, piece: Piece<'a>) {
        if piece.value(Plus::of(None)).is_ok_and(|value| value.text.is_empty()) {
            return;
        }
        self.ignored.push((Cow::Owned(piece.key_lossy()), Ignored::InvalidEncoding));
    }

    /// Judges the reserved parameters and completes the event. After an error, the event holds the
    /// portal and the name that were found valid before it.
    pub(super) fn judge(self) -> Result<(), Rejection> {
        let ParamCollector {
            reserved: [mut portal, mut name, mut email, mut revenue, mut external_id],
            ..
        } = self;

        let portal = portal.read(Reserved::Portal)?.ok_or(Rejection::of(Reason::MissingPortal))?;
        let event = self.event;
        event.portal = validate::portal(&portal).ok_or(Rejection::of(Reason::InvalidPortal))?;

        let name = name.read(Reserved::Event)?.ok_or(Rejection::of(Reason::MissingEvent))?;
        if !validate::is_event_name(&name) {
            return Err(Rejection::of(Reason::InvalidEvent));
        }
        event.name = name.text;

        let email = email
            .read(Reserved::Email)?
            .map(|text| email::canonical(text.text).ok_or(Rejection::of(Reason::InvalidEmail)))
            .transpose()?;

        let revenue = revenue
            .read(Reserved::Revenue)?
            .map(|text| Revenue::parse(&text.text).ok_or(Rejection::of(Reason::InvalidRevenue)))
            .transpose()?;

        let external_id = external_id.read(Reserved::ExternalId)?;
        if external_id.as_ref().is_some_and(|id| !validate::is_external_id(id)) {
            return Err(Rejection::of(Reason::InvalidExternalId));
        }

        (event.email, event.revenue) = (email, revenue);
        event.external_id = external_id.map(|id| id.text);
        normalize::sort_and_merge(&mut event.properties);
        Ok(())
    }
}

/// The canonical form of a reserved value. `None` if the value breaks the rule of its parameter, or
/// if the parameter is opaque and has no other form than the text.
fn canonical_text<'a>(param: Reserved, value: Text<'a>) -> Option<Cow<'a, str>> {
    match param {
        Reserved::Portal => Some(validate::portal(&value)?.to_string().into()),
        Reserved::Email => email::canonical(value.text),
        Reserved::Revenue => Some(Revenue::parse(&value.text)?.to_string().into()),
        Reserved::Event | Reserved::ExternalId => None,
    }
}

/// Why a parameter of this name is not a contact property; `None` if it is one. The name is in
/// lower case. `plain`: it is known to consist of `[a-z0-9_]`.
pub(super) fn name_fault(name: &str, plain: bool, rules: &Rules) -> Option<Ignored> {
    if let Some(cause) = rules.drops(name) {
        Some(cause)
    } else if name.starts_with('_') {
        Some(Ignored::Underscore)
    } else if !plain && name.starts_with("amp;") {
        Some(Ignored::EscapedSeparator)
    } else {
        let is_valid = match plain {
            true => validate::is_plain_property_name(name),
            false => validate::is_property_name(name),
        };
        (!is_valid).then_some(Ignored::InvalidName)
    }
}
