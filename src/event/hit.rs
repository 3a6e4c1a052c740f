//! A hit being read: parameters gathered by what they mean, then judged in the order of SPEC 3.
//!
//! Gathering and judging are apart because the order of the rejections is not the order of the
//! parameters: a later `_a` outranks an earlier `email`.

use std::borrow::Cow;

use super::param::{Reserved, WITHHELD};
use super::query::{NotUtf8, Piece, Plus, Text};
use super::verdict::{Ignored, Reason, Rejection};
use super::{Event, IgnoredParams, Rules};
use super::{email, normalize, revenue::Revenue, validate};

/// What a reserved parameter was given as.
#[derive(Default)]
struct Slot<'a> {
    value: Option<Text<'a>>,
    not_utf8: bool,
    conflicts: bool,
}

impl<'a> Slot<'a> {
    fn take(&mut self, value: Result<Text<'a>, NotUtf8>) {
        match (value, &self.value) {
            (Err(NotUtf8), _) => self.not_utf8 = true,
            (Ok(new), _) if new.text.is_empty() => {}
            (Ok(new), None) => self.value = Some(new),
            (Ok(new), Some(first)) => self.conflicts |= new.text != first.text,
        }
    }

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

/// The parameters of a hit.
pub(super) struct Hit<'h, 'a> {
    reserved: [Slot<'a>; Reserved::COUNT],
    event: &'h mut Event<'a>,
    ignored: &'h mut IgnoredParams<'a>,
}

impl<'h, 'a> Hit<'h, 'a> {
    /// A hit that is read into places that are blank.
    pub(super) fn new(event: &'h mut Event<'a>, ignored: &'h mut IgnoredParams<'a>) -> Self {
        Hit { reserved: Default::default(), event, ignored }
    }

    /// Puts a parameter where it belongs.
    pub(super) fn take(&mut self, piece: Piece<'a>, rules: &Rules) {
        let Ok(key) = piece.key() else { return self.take_nameless(piece) };
        if let Some(param) = Reserved::of(key.as_bytes()) {
            return self.reserved[param as usize].take(piece.value(Plus::of(Some(param))));
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

    fn take_nameless(&mut self, piece: Piece<'a>) {
        if piece.value(Plus::of(None)).is_ok_and(|value| value.text.is_empty()) {
            return;
        }
        self.ignored.push((Cow::Owned(piece.key_lossy()), Ignored::InvalidEncoding));
    }

    /// Judges what was gathered, and makes an event of it.
    pub(super) fn judge(self) -> Result<(), Rejection> {
        let Hit {
            reserved: [mut portal, mut name, mut email, mut revenue, mut external_id], ..
        } = self;

        let portal = portal.read(Reserved::Portal)?.ok_or(Rejection::of(Reason::MissingPortal))?;
        let portal = validate::portal(&portal).ok_or(Rejection::of(Reason::InvalidPortal))?;

        let name = name.read(Reserved::Event)?.ok_or(Rejection::of(Reason::MissingEvent))?;
        if !validate::is_event_name(&name) {
            return Err(Rejection::of(Reason::InvalidEvent));
        }

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

        let event = self.event;
        (event.portal, event.name) = (portal, name.text);
        (event.email, event.revenue) = (email, revenue);
        event.external_id = external_id.map(|id| id.text);
        normalize::sort_and_merge(&mut event.properties);
        Ok(())
    }
}

/// Why a parameter of this name is no contact property, if so. The name is in lower case; `plain`
/// as in [`validate::is_property_name`].
pub(super) fn name_fault(name: &str, plain: bool, rules: &Rules) -> Option<Ignored> {
    if WITHHELD.contains(&name) {
        Some(Ignored::Withheld)
    } else if rules.ignores(name) {
        Some(Ignored::Configured)
    } else if name.starts_with('_') {
        Some(Ignored::Underscore)
    } else if !plain && name.starts_with("amp;") {
        Some(Ignored::EscapedSeparator)
    } else if !validate::is_property_name(name, plain) {
        Some(Ignored::InvalidName)
    } else {
        None
    }
}
