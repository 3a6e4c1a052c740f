//! The list of likely mistakes in a query or a link, each with a sentence that says what to change.
//!
//! No sentence repeats text that was sent.

/// A likely mistake.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Hint {
    /// A key begins with `amp;`.
    EscapedSeparator,
    /// A key begins with `?`.
    SecondQuestionMark,
    /// A piece without `=`: probably the end of a value with a bare `&` in it.
    BareAmpersand,
    /// A value holds what looks like further parameters, after a `;`.
    SemicolonSeparator,
    /// A value is a template's placeholder that was not filled in.
    Placeholder,
    /// A value is still percent-encoded after decoding.
    EncodedTwice,
    /// A reserved parameter is there, but empty.
    EmptyValue,
    /// This name is often mistaken for the reserved parameter named here, which is absent.
    MeantParam(&'static str),
    /// Probably a property's label instead of its internal name.
    PropertyLabel,
    /// A parameter that may be a credential.
    Credential,
    /// More than one address.
    SeveralEmails,
    /// An address with a name, quotes or brackets around it.
    DecoratedEmail,
    /// A space in an address, where a `+` may have been.
    SpaceInEmail,
    /// An invisible character in a name, an id or an address.
    InvisibleCharacter,
    /// An amount with a comma, a currency or grouped digits.
    LocalNumber,
    /// A name with brackets, as some frameworks write lists and nested values.
    ArrayName,
    /// One name in two spellings, such as `firstName` and `firstname`.
    TwoSpellings,
    /// A raw `#`: browsers send nothing from there on.
    CutByFragment,
    /// A raw `+` where it stands for a space, in what looks like a phone number or a time zone.
    PlusIsSpace,
    /// `%u20AC`: the encoding of JavaScript's `escape()`.
    UnicodeEscape,
    /// A letter and a combining accent instead of one accented letter (NFD instead of NFC).
    DecomposedAccent,
    /// A word that programs write for nothing, such as `null`.
    FillerWord,
    /// The link begins with `//`.
    NoScheme,
}

impl Hint {
    /// The label.
    pub const fn as_str(self) -> &'static str {
        match self {
            Hint::EscapedSeparator => "escaped_separator",
            Hint::SecondQuestionMark => "second_question_mark",
            Hint::BareAmpersand => "bare_ampersand",
            Hint::SemicolonSeparator => "semicolon_separator",
            Hint::Placeholder => "placeholder",
            Hint::EncodedTwice => "encoded_twice",
            Hint::EmptyValue => "empty_value",
            Hint::MeantParam(_) => "meant_param",
            Hint::PropertyLabel => "property_label",
            Hint::Credential => "credential",
            Hint::SeveralEmails => "several_emails",
            Hint::DecoratedEmail => "decorated_email",
            Hint::SpaceInEmail => "space_in_email",
            Hint::InvisibleCharacter => "invisible_character",
            Hint::LocalNumber => "local_number",
            Hint::ArrayName => "array_name",
            Hint::TwoSpellings => "two_spellings",
            Hint::CutByFragment => "cut_by_fragment",
            Hint::PlusIsSpace => "plus_is_space",
            Hint::UnicodeEscape => "unicode_escape",
            Hint::DecomposedAccent => "decomposed_accent",
            Hint::FillerWord => "filler_word",
            Hint::NoScheme => "no_scheme",
        }
    }

    /// A sentence for people: what is probably wrong, and what to do.
    pub fn detail(self) -> &'static str {
        match self {
            Hint::MeantParam(param) => meant_detail(param),
            Hint::EscapedSeparator => {
                "The link was escaped for HTML and then used outside of it: write & between \
                 parameters, not &amp;."
            }
            Hint::SecondQuestionMark => "The link has two question marks: only one begins a query.",
            Hint::BareAmpersand => {
                "This name has no = and no value: if it is the end of the value before it, write \
                 the & in that value as %26."
            }
            Hint::SemicolonSeparator => {
                "This value goes on with what look like further parameters: separate them with &, \
                 not with ;."
            }
            Hint::Placeholder => {
                "This is a template's placeholder that was not filled in: check that the tool that \
                 sends it knows this placeholder and has a value for it."
            }
            Hint::EncodedTwice => "This value was percent-encoded twice: encode it once.",
            Hint::EmptyValue => "This parameter is empty, which is the same as leaving it out.",
            Hint::PropertyLabel => {
                "This is no property's internal name: that is made of a-z, 0-9 and _, such as \
                 favorite_color for \"Favorite Color\"."
            }
            Hint::Credential => {
                "Everyone who sees the link can read this: remove it from the link, and replace it \
                 if it is a secret."
            }
            Hint::SeveralEmails => "An event belongs to one contact: send one event per address.",
            Hint::DecoratedEmail => {
                "Send the bare address, without a name, quotes, brackets or mailto: around it."
            }
            Hint::SpaceInEmail => {
                "There is a space in this address: if it was a +, write it as %2B or +, not as %20."
            }
            Hint::InvisibleCharacter => {
                "This holds an invisible character, as copying often leaves: type the text again."
            }
            Hint::LocalNumber => {
                "Write the amount with a point for decimals and without currency or thousands \
                 separators, as in 1234.5."
            }
            Hint::ArrayName => {
                "Names have no brackets here: for a list send one name several times: a=1&a=2."
            }
            Hint::TwoSpellings => {
                "These names differ in upper and lower case alone, so they count as one name and \
                 their values are joined with a semicolon: send one of them."
            }
            Hint::CutByFragment => {
                "Browsers send no part of a link that follows a #: write %23 for a # in a value."
            }
            Hint::PlusIsSpace => {
                "A + here is a space: write %2B for the + of a number or a time zone."
            }
            Hint::UnicodeEscape => "JavaScript's escape() wrote this: use encodeURIComponent().",
            Hint::DecomposedAccent => {
                "Its accents are characters of their own (NFD), so it differs from the same text \
                 in NFC: send NFC."
            }
            Hint::FillerWord => {
                "Programs write this word where they have no value: leave the parameter out then."
            }
            Hint::NoScheme => {
                "A link that begins with // works only on web pages: begin it with https://."
            }
        }
    }
}

fn meant_detail(param: &str) -> &'static str {
    match param {
        "_a" => "If this is the account (Hub ID), its parameter is _a.",
        "_n" => "If this is the event's id or name, its parameter is _n.",
        "_m" => "If this is the revenue, its parameter is _m.",
        "id" => "If this is your own id of the contact, its parameter is id.",
        _ => "If this is the contact's address, its parameter is email.",
    }
}

/// A hint and the parameter that it is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ParamHint {
    /// The parameter's name as decoded, in lower case; for a hint about the link as a whole, the
    /// part of the link that the hint is about.
    pub param: String,
    /// What is probably wrong with it.
    pub hint: Hint,
}
