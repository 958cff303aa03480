//! A typed walk over the parsed file: what stands there, of the wanted type, with its place, or a draft of what is wrong.

use std::ops::Range;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::report::{Draft, Source, quoted};
use super::schema::{self, Level};
use super::values::Refusal;
use crate::fleet::Mac;

/// A value and the byte where it stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Located<T> {
    pub(super) value: T,
    pub(super) at: usize,
}

/// What a key was given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Given<T> {
    /// The key is not there.
    Absent,
    /// The key is there; what is wrong with its value has been said.
    Wrong,
    /// A good value.
    Good(Located<T>),
}

impl<T: Clone> Given<T> {
    /// This one, or the next level's where this level says nothing: the nearest wins whole.
    pub(super) fn or(&self, farther: &Self) -> Self {
        match self {
            Self::Absent => farther.clone(),
            _ => self.clone(),
        }
    }

    pub(super) fn value(&self) -> Option<T> {
        self.located().map(|good| good.value.clone())
    }

    pub(super) fn located(&self) -> Option<&Located<T>> {
        match self {
            Self::Good(good) => Some(good),
            _ => None,
        }
    }

    pub(super) fn is_absent(&self) -> bool {
        matches!(self, Self::Absent)
    }
}

/// A table of the file that is a section, or a client's own.
#[derive(Debug, Clone)]
pub(super) struct Section<'a> {
    pub(super) table: &'a DeTable<'a>,
    pub(super) level: Level,
    /// How a message names it: `[group.lab-a]`, or a client's name in back quotes.
    pub(super) name: String,
    pub(super) at: usize,
}

/// Reads values and notes down what is wrong.
#[derive(Debug)]
pub(super) struct Walker<'a> {
    pub(super) source: &'a Source,
    pub(super) drafts: Vec<Draft>,
    /// Values about which all is said, whatever the TOML parser says too.
    pub(super) handled: Vec<Range<usize>>,
    /// Keys that were probably meant where an unknown one stands.
    pub(super) misspelt: Vec<&'static str>,
}

impl<'a> Walker<'a> {
    pub(super) fn new(source: &'a Source) -> Self {
        Self { source, drafts: Vec::new(), handled: Vec::new(), misspelt: Vec::new() }
    }

    pub(super) fn push(&mut self, draft: Draft) {
        self.drafts.push(draft);
    }

    pub(super) fn refuse(&mut self, at: usize, refusal: Refusal) {
        let draft = Draft::error(at, refusal.message);
        self.push(match refusal.help {
            Some(help) => draft.help(help),
            None => draft,
        });
    }

    /// Speaks about keys that do not belong in this section, or that this version does not follow.
    pub(super) fn check_keys(&mut self, section: &Section<'a>) {
        for (key, value) in section.table.iter() {
            let (name, at) = (key.get_ref().as_ref(), key.span().start);
            match schema::find(name) {
                Some(known) if !known.levels.contains(&section.level) => {
                    let draft =
                        Draft::error(at, format!("`{name}` does not belong {} {}", at_or_in(section), section.name));
                    self.push(draft.help(format!("it belongs {}", schema::homes(known))));
                }
                Some(known) if !known.supported => {
                    self.handled.push(value.span());
                    let draft = Draft::error(at, format!("`{name}` is not supported yet"));
                    self.push(draft.help("take it out of the file"));
                }
                Some(_) => {}
                None => self.unknown_key(section, name, at, value),
            }
        }
    }

    fn unknown_key(&mut self, section: &Section<'a>, name: &str, at: usize, value: &Spanned<DeValue<'_>>) {
        let kind = if section.level == Level::Top && value.get_ref().is_table() { "section" } else { "key" };
        let shown = quoted(name);
        let message = match section.level {
            Level::Top => format!("there is no {kind} `{shown}`"),
            _ => format!("there is no key `{shown}` in {}", section.name),
        };
        let help = if let Some(near) = schema::nearest(name, schema::names(section.level)) {
            self.misspelt.push(near);
            format!("did you mean `{near}`?")
        } else if self.is_client(value) {
            self.handled.push(value.span());
            match section.level {
                Level::Client => {
                    self.misspelt.push("mac");
                    format!("a name has no dots: write {}-{shown}", section.name.trim_matches('`'))
                }
                Level::Group => format!("clients of this group stand under {}", section.name.replace(']', ".clients]")),
                _ => "clients stand under [clients]".to_owned(),
            }
        } else if kind == "section" && value.get_ref().get("clients").is_some() {
            format!("a group is written [group.{shown}]")
        } else {
            format!("it takes {}", schema::listed(schema::names(section.level)))
        };
        self.push(Draft::error(at, message).help(help));
    }

    /// Whether this looks like what stands behind a client's name.
    pub(super) fn is_client(&self, value: &Spanned<DeValue<'_>>) -> bool {
        match value.get_ref() {
            DeValue::Table(table) => table.contains_key("mac") || table.contains_key("port"),
            DeValue::String(text) => text.parse::<Mac>().is_ok(),
            _ => self.source.slice(value.span()).parse::<Mac>().is_ok(),
        }
    }

    /// The table under this key.
    pub(super) fn table(&mut self, parent: &Section<'a>, key: &str) -> Given<&'a DeTable<'a>> {
        let Some((name, value)) = parent.table.get_key_value(key) else { return Given::Absent };
        let title = match parent.level {
            Level::Top => format!("[{key}]"),
            _ => parent.name.replace(']', &format!(".{key}]")),
        };
        self.as_table(name.span().start, &title, value)
    }

    /// This value as a table that would be a section of its own under `title`.
    pub(super) fn as_table(
        &mut self,
        at: usize,
        title: &str,
        value: &'a Spanned<DeValue<'a>>,
    ) -> Given<&'a DeTable<'a>> {
        match value.get_ref() {
            DeValue::Table(table) => Given::Good(Located { value: table, at: value.span().start }),
            DeValue::Array(items) if self.source.slice(value.span()).starts_with("[[") && !items.is_empty() => {
                self.push(Draft::error(at, format!("{title} stands in single brackets, once")));
                Given::Wrong
            }
            other => {
                self.handled.push(value.span());
                self.push(Draft::error(at, format!("{title} is a section, not {}", type_word(other))));
                Given::Wrong
            }
        }
    }

    /// The text under this key.
    pub(super) fn text(&mut self, section: &Section<'a>, key: &str) -> Given<&'a str> {
        match section.table.get(key) {
            Some(value) => self.as_text(key, &format!("{key} = "), value),
            None => Given::Absent,
        }
    }

    /// A text that is the value of `key` or one of the list there; `before` is what stands in front of it.
    fn as_text(&mut self, key: &str, before: &str, value: &'a Spanned<DeValue<'a>>) -> Given<&'a str> {
        let (span, raw) = (value.span(), self.source.slice(value.span()));
        if raw.is_empty() {
            return Given::Wrong; // the value is missing, which the parser says
        }
        match value.get_ref() {
            DeValue::String(text) if raw.starts_with(['"', '\'']) => {
                Given::Good(Located { value: text, at: span.start })
            }
            found if is_bare_text(found, raw) => {
                self.handled.push(span.clone());
                let bare = raw.trim_matches(['“', '”', '„', '«', '»', '‘', '’', '"', '\'']);
                self.push(Draft::error(span.start, format!("text stands in quotes: {before}\"{}\"", quoted(bare))));
                Given::Wrong
            }
            other => {
                self.wrong_type(key, span, "text in quotes", other);
                Given::Wrong
            }
        }
    }

    fn wrong_type(&mut self, key: &str, span: Range<usize>, wanted: &str, found: &DeValue<'_>) {
        let draft = Draft::error(span.start, format!("`{key}` takes {wanted}, not {}", type_word(found)));
        let example = schema::find(key).map_or("", |key| key.example);
        self.handled.push(span);
        self.push(draft.help(format!("write it like {key} = {example}")));
    }

    /// The text under this key, read by `parse`.
    pub(super) fn parsed<T>(
        &mut self,
        section: &Section<'a>,
        key: &str,
        parse: impl FnOnce(&str) -> Result<T, Refusal>,
    ) -> Given<T> {
        match self.text(section, key) {
            Given::Absent => Given::Absent,
            Given::Wrong => Given::Wrong,
            Given::Good(text) => self.read(&text, parse),
        }
    }

    fn read<T>(&mut self, text: &Located<&str>, parse: impl FnOnce(&str) -> Result<T, Refusal>) -> Given<T> {
        match parse(text.value) {
            Ok(value) => Given::Good(Located { value, at: text.at }),
            Err(refusal) => {
                self.refuse(text.at, refusal);
                Given::Wrong
            }
        }
    }

    /// The one text under this key, or those in the list there, read by `parse`.
    pub(super) fn one_or_list<T>(
        &mut self,
        section: &Section<'a>,
        key: &str,
        parse: impl FnMut(&str) -> Result<T, Refusal>,
    ) -> Given<Vec<Located<T>>> {
        if section.table.get(key).is_some_and(|value| value.get_ref().is_array()) {
            return self.list(section, key, parse);
        }
        match self.parsed(section, key, parse) {
            Given::Absent => Given::Absent,
            Given::Wrong => Given::Wrong,
            Given::Good(one) => Given::Good(Located { at: one.at, value: vec![one] }),
        }
    }

    /// The texts in the list under this key, read by `parse`.
    pub(super) fn list<T>(
        &mut self,
        section: &Section<'a>,
        key: &str,
        mut parse: impl FnMut(&str) -> Result<T, Refusal>,
    ) -> Given<Vec<Located<T>>> {
        let Some(value) = section.table.get(key) else { return Given::Absent };
        let span = value.span();
        let Some(items) = value.get_ref().as_array() else {
            if !span.is_empty() {
                self.wrong_type(key, span, "a list", value.get_ref());
            }
            return Given::Wrong;
        };
        let mut list = Vec::new();
        for item in items.iter() {
            if let Given::Good(text) = self.as_text(key, "", item)
                && let Given::Good(good) = self.read(&text, &mut parse)
            {
                list.push(good);
            }
        }
        if list.len() < items.len() { Given::Wrong } else { Given::Good(Located { value: list, at: span.start }) }
    }

    /// The `true` or `false` under this key.
    pub(super) fn flag(&mut self, section: &Section<'a>, key: &str) -> Given<bool> {
        let Some(value) = section.table.get(key) else { return Given::Absent };
        let (span, raw) = (value.span(), self.source.slice(value.span()));
        match value.get_ref() {
            DeValue::Boolean(flag) if matches!(raw, "true" | "false") => {
                Given::Good(Located { value: *flag, at: span.start })
            }
            _ if raw.is_empty() => Given::Wrong,
            found @ DeValue::Boolean(_) if !is_bare_text(found, raw) => {
                self.handled.push(span.clone());
                let right = raw.to_ascii_lowercase();
                self.push(Draft::error(span.start, format!("`{key}` takes true or false in small letters: {right}")));
                Given::Wrong
            }
            other => {
                let found = if raw.starts_with(['"', '\'']) { type_word(other) } else { &format!("`{}`", quoted(raw)) };
                let draft = Draft::error(span.start, format!("`{key}` takes true or false, not {found}"));
                self.handled.push(span);
                self.push(draft.help(format!("write {key} = true or {key} = false, without quotes")));
                Given::Wrong
            }
        }
    }

    /// A MAC address. One without quotes, which TOML takes for a time, a date or a number, is spoken about and read all
    /// the same, so that two clients with one address are found at once.
    ///
    /// `label` is the key that it belongs to, `before` what stands in front of it.
    pub(super) fn mac(&mut self, label: &str, before: &str, value: &Spanned<DeValue<'_>>) -> Option<Located<Mac>> {
        let (span, raw) = (value.span(), self.source.slice(value.span()));
        if raw.is_empty() {
            return None;
        }
        let at = span.start;
        match value.get_ref() {
            DeValue::String(text) if raw.starts_with(['"', '\'']) => match text.parse() {
                Ok(value) => Some(Located { value, at }),
                Err(error) => {
                    self.push(Draft::error(at, error.to_string()));
                    None
                }
            },
            found @ (DeValue::Table(_) | DeValue::Array(_) | DeValue::Boolean(_)) if !is_bare_text(found, raw) => {
                self.handled.push(span);
                let message = format!("`{label}` takes a MAC address in quotes, not {}", type_word(found));
                self.push(Draft::error(at, message).help("write it like \"52:54:00:aa:00:01\""));
                None
            }
            _ => {
                let mac = raw.parse().ok();
                let shown = if mac.is_some() { raw } else { "52:54:00:aa:00:01" };
                self.handled.push(span);
                let message = format!("a MAC address stands in quotes: {before}\"{shown}\"");
                self.push(Draft::error(at, message));
                mac.map(|value| Located { value, at })
            }
        }
    }
}

fn at_or_in(section: &Section<'_>) -> &'static str {
    if section.level == Level::Top { "at" } else { "in" }
}

/// Whether this is text without quotes, whatever the parser took it for: it decides by the first character, so that
/// `full` is a boolean and `10.20.0.1` a number, both spoilt.
fn is_bare_text(value: &DeValue<'_>, raw: &str) -> bool {
    match value {
        DeValue::String(_) => !raw.starts_with(['"', '\'']),
        DeValue::Boolean(_) => !matches!(raw.to_ascii_lowercase().as_str(), "true" | "false"),
        DeValue::Integer(_) | DeValue::Float(_) => {
            !raw.bytes().all(|b| b.is_ascii_digit() || b"+-._".contains(&b)) || raw.matches('.').count() > 1
        }
        DeValue::Datetime(_) => true,
        DeValue::Array(_) | DeValue::Table(_) => false,
    }
}

/// How a sentence calls a value of this type.
pub(super) fn type_word(value: &DeValue<'_>) -> &'static str {
    match value {
        DeValue::String(_) => "text",
        DeValue::Integer(_) | DeValue::Float(_) => "a number",
        DeValue::Boolean(_) => "true or false",
        DeValue::Datetime(_) => "a date or time",
        DeValue::Array(_) => "a list",
        DeValue::Table(_) => "a table",
    }
}
