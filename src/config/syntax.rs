//! What the TOML parser says about broken text, in words that an operator can use.
//!
//! The parser recovers from most slips, so the rest of the file is still checked. Where it does not (a line that is no
//! `NAME = VALUE`), the line is blanked and the text read again, offsets unchanged.

use std::borrow::Cow;
use std::ops::Range;

use toml::de::{DeTable, DeValue};

use super::report::{Draft, MAX_SHOWN, Source, quoted};
use crate::fleet::Mac;

/// Lines without `=` that are stepped over before giving up: such a file is something else than TOML.
const MAX_BLANKED: usize = 20;

/// How the parser calls a line that has no `=`, the one slip that it cannot step over.
const NO_VALUE: &str = "key with no value";

/// Something that the TOML parser could not read.
#[derive(Debug, Clone)]
pub(super) struct Fault {
    pub(super) span: Range<usize>,
    message: String,
}

impl Fault {
    fn is_duplicate(&self) -> bool {
        self.message == "duplicate key"
    }

    /// An opening bracket without its closing one makes values of the lines that follow it.
    fn is_unclosed(&self) -> bool {
        self.message.starts_with("unclosed array") || self.message.starts_with("unclosed inline table")
    }
}

/// The text with lines that end the parser's recovery blanked, and what is wrong with those lines.
pub(super) fn readable(source: &Source) -> (Cow<'_, str>, Vec<Fault>) {
    let mut text = Cow::Borrowed(source.text());
    let mut stepped_over = Vec::new();
    for _ in 0..MAX_BLANKED {
        let (_, faults) = parse(&text);
        let Some(fault) = faults.into_iter().find(|fault| fault.message.starts_with(NO_VALUE)) else { break };
        let (start, line) = source.line(source.line_of(fault.span.start));
        let line = start..start + line.len();
        if text[line.clone()].trim().is_empty() {
            break;
        }
        text.to_mut().replace_range(line.clone(), &" ".repeat(line.len()));
        stepped_over.push(fault);
    }
    (text, stepped_over)
}

/// The table that can be made out, and what could not.
pub(super) fn parse(text: &str) -> (DeTable<'_>, Vec<Fault>) {
    let (tree, errors) = DeTable::parse_recoverable(text);
    let faults = (errors.iter())
        .map(|error| Fault { span: error.span().unwrap_or(0..0), message: error.message().to_owned() })
        .collect();
    (tree.into_inner(), faults)
}

/// The problems that remain of the parser's faults, and what they hide.
#[derive(Debug, Default)]
pub(super) struct Remains {
    pub(super) drafts: Vec<Draft>,
    /// Something may be missing only because it could not be read.
    pub(super) hides: bool,
    /// From here on nothing that was read means what it says.
    pub(super) garbled_from: Option<usize>,
}

/// What is left of the faults when those at values that the checks have spoken about (`handled`) are dropped: one a line,
/// because the others mostly follow from it.
pub(super) fn remains(
    source: &Source,
    tree: &DeTable<'_>,
    mut faults: Vec<Fault>,
    handled: &[Range<usize>],
) -> Remains {
    faults.sort_by_key(|fault| fault.span.start);
    let mut remains = Remains::default();
    if faults.iter().any(Fault::is_unclosed) {
        // Its first consequence tells where the parser noticed; the last value opened before that was left open.
        let noticed = faults.iter().find(|fault| !fault.is_duplicate()).map_or(0, |fault| fault.span.start);
        let mut open = Vec::new();
        find_unclosed(source, tree, &mut open);
        let at = open.into_iter().filter(|at| *at <= noticed).max().unwrap_or(noticed);
        let bracket = source.slice(at..at + 1);
        let message = match bracket {
            "[" => "this list is not closed: a `]` is missing",
            "{" => "this table is not closed: a `}` is missing",
            _ => "a list or table is not closed: a `]` or `}` is missing",
        };
        remains.drafts.push(Draft::error(at, message));
        remains.hides = true;
        remains.garbled_from = Some(at);
        faults.retain(|fault| fault.span.end < at);
    }
    let handled = Spans::new(handled);
    let mut last_line = None;
    for fault in faults {
        let line = source.line_of(fault.span.start);
        if fault.is_duplicate() {
            // Looking for the first place takes a walk over the file, which is worth it for those that are shown.
            let shown = remains.drafts.len() < MAX_SHOWN;
            remains.drafts.push(duplicate(source, tree, &fault, shown));
        } else if !handled.touch(&fault.span) && last_line != Some(line) {
            last_line = Some(line);
            remains.hides = true;
            remains.drafts.push(in_words(source, &fault));
        }
    }
    remains
}

/// Spans, ready to be asked about many others.
struct Spans {
    /// Where each begins, and how far it and those before it reach.
    reach: Vec<(usize, usize)>,
}

impl Spans {
    fn new(spans: &[Range<usize>]) -> Self {
        let mut reach: Vec<(usize, usize)> = spans.iter().map(|span| (span.start, span.end)).collect();
        reach.sort_unstable();
        let mut farthest = 0;
        for (_, end) in &mut reach {
            farthest = farthest.max(*end);
            *end = farthest;
        }
        Self { reach }
    }

    /// Whether one of them overlaps this span or stands at its end.
    fn touch(&self, span: &Range<usize>) -> bool {
        let before = self.reach.partition_point(|(start, _)| *start <= span.end);
        before > 0 && self.reach[before - 1].1 >= span.start
    }
}

fn in_words(source: &Source, fault: &Fault) -> Draft {
    let at = fault.span.start;
    let raw = source.slice(fault.span.clone());
    let says = |message: String| Draft::error(at, message);
    let starts = |words: &[&str]| words.iter().any(|start| fault.message.starts_with(start));
    if raw.parse::<Mac>().is_ok() {
        return says(format!("a MAC address stands in quotes: \"{raw}\""));
    }
    if starts(&[NO_VALUE]) {
        return says("there is no `=` on this line".to_owned())
            .help("a line is NAME = VALUE, or [section], or # a comment");
    }
    if starts(&["string values must be quoted"]) {
        return match raw {
            "" => says("there is no value after `=`".to_owned()),
            _ => says(format!("text stands in quotes: \"{}\"", quoted(raw))),
        };
    }
    if starts(&["invalid basic string", "invalid literal string"]) && fault.message.contains("expected") {
        return says("the closing quote of this text is missing".to_owned());
    }
    if starts(&["unclosed table"]) {
        return says("this section is not closed: a `]` is missing".to_owned());
    }
    if starts(&["missing escaped value"]) {
        return says("a backslash in double quotes begins an escape; write it twice, or use single quotes".to_owned());
    }
    if starts(&["invalid unquoted key", "unquoted keys cannot be empty"]) {
        return says("a name is made of a to z, 0 to 9, - and _".to_owned());
    }
    if starts(&["cannot extend value of type"]) {
        return says(format!("`{}` has a value already, so it cannot be a table too", quoted(raw)))
            .help("put all of it into one table: NAME = { mac = \"…\", off = true }");
    }
    if starts(&["unexpected key or value"]) {
        return says("the value has ended before this".to_owned())
            .help("one NAME = VALUE on each line; a comment begins with #");
    }
    says(fault.message.clone())
}

fn duplicate(source: &Source, tree: &DeTable<'_>, fault: &Fault, shown: bool) -> Draft {
    let name = source.slice(fault.span.clone());
    let draft = Draft::error(fault.span.start, format!("`{}` is given twice", quoted(name)));
    if !shown {
        return draft;
    }
    let (first, help) = match first_header(source, fault.span.start) {
        Some(first) => (Some(first), "put what belongs to it into one section"),
        None => (first_key(source, tree, name, fault.span.start), "keep one of the two"),
    };
    match first {
        Some(first) => draft.note(first, "it is given here first"),
        None => draft,
    }
    .help(help)
}

/// Where the section whose header stands at `at` was opened first; `None` where no header stands there.
fn first_header(source: &Source, at: usize) -> Option<usize> {
    let bare = |line: &str| -> Option<String> {
        let inner = line.trim_start().strip_prefix('[')?;
        let end = inner.find(']')?;
        Some(inner[..end].split_whitespace().collect())
    };
    let number = source.line_of(at);
    let header = bare(source.line(number).1)?;
    (0..number).map(|number| source.line(number)).find(|(_, line)| bare(line).as_ref() == Some(&header)).map(
        |(start, line)| {
            // At the name that repeats, which is the last one of the header.
            let last = line.find(']').and_then(|end| line[..end].rfind(['.', '[', ' '])).map_or(0, |dot| dot + 1);
            start + last
        },
    )
}

/// The last key of this name before `at` that is not in an inline table of its own.
fn first_key(source: &Source, table: &DeTable<'_>, name: &str, at: usize) -> Option<usize> {
    let mut found = None;
    for (key, value) in table.iter() {
        if source.slice(key.span()) == name && key.span().start < at {
            found = found.max(Some(key.span().start));
        }
        if let Some(inner) = value.get_ref().as_table()
            && (!source.slice(value.span()).starts_with('{') || value.span().contains(&at))
        {
            found = found.max(first_key(source, inner, name, at));
        }
    }
    found
}

/// Where lists and inline tables begin that do not end in their closing bracket.
fn find_unclosed(source: &Source, table: &DeTable<'_>, found: &mut Vec<usize>) {
    for (_, value) in table.iter() {
        find_unclosed_value(source, value.span(), value.get_ref(), found);
    }
}

fn find_unclosed_value(source: &Source, span: Range<usize>, value: &DeValue<'_>, found: &mut Vec<usize>) {
    let raw = source.slice(span.clone());
    match value {
        DeValue::Array(items) => {
            if raw.starts_with('[') && !raw.ends_with(']') {
                found.push(span.start);
            }
            for item in items.iter() {
                find_unclosed_value(source, item.span(), item.get_ref(), found);
            }
        }
        DeValue::Table(inner) => {
            if raw.starts_with('{') && !raw.ends_with('}') {
                found.push(span.start);
            }
            find_unclosed(source, inner, found);
        }
        _ => {}
    }
}
