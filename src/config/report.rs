//! What is wrong with a mapping file, and where: drafts that the checks write, and the report that a person reads.
//!
//! A [`Draft`] points into the text by byte offsets and costs little. A [`Report`] is made of drafts at the end: sorted,
//! cut to a readable number, with lines and carets in place. Columns count characters, from 1.

use std::fmt;

use serde::Serialize;

/// Most errors, and most warnings, that one report shows: more is a file of some other kind, not a list of slips.
pub const MAX_SHOWN: usize = 100;

/// Characters of a line that a report shows; longer lines are cut around the caret.
pub const MAX_LINE_SHOWN: usize = 100;

/// Characters that stay in front of the caret when a long line is cut.
const BEFORE_CARET: usize = 40;

/// Characters of somebody's value that a message repeats.
const MAX_QUOTED: usize = 60;

/// How bad a problem is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// The file is not taken.
    Error,
    /// The file is taken, but this is probably not what was meant.
    Warning,
}

impl fmt::Display for Severity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Error => "error",
            Self::Warning => "warning",
        })
    }
}

/// A place in the file.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Place {
    /// The line, from 1.
    pub line: usize,
    /// The character in that line, from 1; one more than the line has for a place at its end.
    pub column: usize,
    /// The line, as far as it is shown: unprintable characters replaced, long lines cut with `…`.
    pub text: String,
    /// Characters of `text` in front of the caret.
    #[serde(skip)]
    caret: usize,
}

/// Another place that has to do with a problem.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Note {
    /// What is there.
    pub message: String,
    /// Where.
    pub place: Place,
}

/// One thing that is wrong, or odd.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Problem {
    /// How bad it is.
    pub severity: Severity,
    /// What is wrong.
    pub message: String,
    /// Where; `None` where the file as a whole is meant.
    pub place: Option<Place>,
    /// Other places that have to do with it.
    pub notes: Vec<Note>,
    /// What to do.
    pub help: Option<String>,
}

/// All that is wrong with one mapping file, in the order of the lines.
///
/// `Display` gives the plain text, [`Report::coloured`] the same for a terminal, and serde a structure for programs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Report {
    /// The file, as it was named by whoever asked.
    pub file: String,
    /// How many errors there are, shown or not.
    pub errors: usize,
    /// How many warnings there are, shown or not.
    pub warnings: usize,
    /// The problems, at most [`MAX_SHOWN`] of each severity.
    pub problems: Vec<Problem>,
}

impl Report {
    /// A report on a file in which no line can be named: it is not there, or not text.
    pub(super) fn whole_file(file: &str, message: String, help: Option<String>) -> Self {
        let problem = Problem { severity: Severity::Error, message, place: None, notes: Vec::new(), help };
        Self { file: printable(file), errors: 1, warnings: 0, problems: vec![problem] }
    }

    /// Whether the file cannot be taken.
    #[must_use]
    pub fn has_errors(&self) -> bool {
        self.errors > 0
    }

    /// Whether there is nothing to say.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.errors + self.warnings == 0
    }

    /// This report and another on the same file as one, in the order of the lines.
    #[must_use]
    pub fn merged(mut self, other: Self) -> Self {
        self.errors += other.errors;
        self.warnings += other.warnings;
        self.problems.extend(other.problems);
        self.problems.sort_by(|a, b| a.place.cmp(&b.place));
        self
    }

    /// The text with ANSI colours, for a terminal.
    #[must_use]
    pub fn coloured(&self) -> String {
        let mut text = String::new();
        self.write(&mut text, true).expect("a String takes all that is written to it");
        text
    }

    fn write(&self, out: &mut impl fmt::Write, colour: bool) -> fmt::Result {
        for problem in &self.problems {
            self.write_problem(out, problem, colour)?;
        }
        let hidden = self.errors + self.warnings - self.problems.len();
        if hidden > 0 {
            writeln!(out, "{}: {hidden} more not shown", self.file)?;
        }
        Ok(())
    }

    fn write_problem(&self, out: &mut impl fmt::Write, problem: &Problem, colour: bool) -> fmt::Result {
        let (tint, bold, end) = match (colour, problem.severity) {
            (false, _) => ("", "", ""),
            (true, Severity::Error) => ("\x1b[1;31m", "\x1b[1m", "\x1b[0m"),
            (true, Severity::Warning) => ("\x1b[1;33m", "\x1b[1m", "\x1b[0m"),
        };
        let file = &self.file;
        write!(out, "{bold}{file}")?;
        if let Some(place) = &problem.place {
            write!(out, ":{}:{}", place.line, place.column)?;
        }
        writeln!(out, ":{end} {tint}{}{end}: {bold}{}{end}", problem.severity, problem.message)?;
        if let Some(place) = &problem.place {
            // A tab stays a tab, so that the caret stands under its character whatever the tabs are set to.
            let indent: String =
                place.text.chars().take(place.caret).map(|c| if c == '\t' { '\t' } else { ' ' }).collect();
            writeln!(out, "{:>4} | {}", place.line, place.text)?;
            let gutter = place.line.to_string().len().max(4);
            writeln!(out, "{:gutter$} | {indent}{tint}^{end}", "")?;
        }
        for Note { message, place } in &problem.notes {
            writeln!(out, "  note: {file}:{}:{}: {message}", place.line, place.column)?;
        }
        if let Some(help) = &problem.help {
            writeln!(out, "  help: {help}")?;
        }
        Ok(())
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.write(f, false)
    }
}

impl std::error::Error for Report {}

/// A problem as the checks note it down, with byte offsets for places.
#[derive(Debug, Clone)]
pub(super) struct Draft {
    pub(super) severity: Severity,
    pub(super) at: Option<usize>,
    /// Keys whose absence this is about: there may be one after all, misspelt or hidden by a syntax error.
    pub(super) absent: &'static [&'static str],
    message: String,
    notes: Vec<(usize, String)>,
    help: Option<String>,
}

impl Draft {
    pub(super) fn error(at: impl Into<Option<usize>>, message: impl Into<String>) -> Self {
        let (at, message) = (at.into(), message.into());
        Self { severity: Severity::Error, at, absent: &[], message, notes: Vec::new(), help: None }
    }

    pub(super) fn warning(at: impl Into<Option<usize>>, message: impl Into<String>) -> Self {
        Self { severity: Severity::Warning, ..Self::error(at, message) }
    }

    pub(super) fn note(mut self, at: usize, message: impl Into<String>) -> Self {
        self.notes.push((at, message.into()));
        self
    }

    pub(super) fn help(mut self, help: impl Into<String>) -> Self {
        self.help = Some(help.into());
        self
    }

    /// Says that one of these keys would have helped.
    pub(super) fn missing(mut self, keys: &'static [&'static str]) -> Self {
        self.absent = keys;
        self
    }
}

/// The text of a mapping file, which knows its lines.
#[derive(Debug, Clone)]
pub(super) struct Source {
    name: String,
    text: String,
    /// Where each line begins.
    lines: Vec<usize>,
}

impl Source {
    pub(super) fn new(name: &str, text: &str) -> Self {
        // A byte order mark, which some editors write, is no character of the first line.
        let first = if text.starts_with('\u{feff}') { '\u{feff}'.len_utf8() } else { 0 };
        let lines = std::iter::once(first).chain(text.match_indices('\n').map(|(at, _)| at + 1)).collect();
        Self { name: name.to_owned(), text: text.to_owned(), lines }
    }

    pub(super) fn text(&self) -> &str {
        &self.text
    }

    /// What stands at these bytes; nothing where that is no part of the text.
    pub(super) fn slice(&self, span: std::ops::Range<usize>) -> &str {
        self.text.get(span).unwrap_or_default()
    }

    /// The number of the line, from 0, that this byte is in.
    pub(super) fn line_of(&self, at: usize) -> usize {
        self.lines.partition_point(|start| *start <= at).saturating_sub(1)
    }

    /// Where this line begins and what it says, without its end.
    pub(super) fn line(&self, number: usize) -> (usize, &str) {
        let start = self.lines.get(number).copied().unwrap_or(self.text.len());
        let end = self.lines.get(number + 1).map_or(self.text.len(), |next| next - 1);
        let line = self.slice(start..end);
        (start, line.strip_suffix('\r').unwrap_or(line))
    }

    fn place(&self, at: usize) -> Place {
        let number = self.line_of(at);
        let (start, line) = self.line(number);
        let before = line.char_indices().take_while(|(offset, _)| start + offset < at).count();
        let length = line.chars().count();
        let first = if length > MAX_LINE_SHOWN { before.saturating_sub(BEFORE_CARET) } else { 0 };
        let mut shown: String = line.chars().skip(first).take(MAX_LINE_SHOWN).map(shown_as).collect();
        let mut caret = before - first;
        if first > 0 {
            shown.insert(0, '…');
            caret += 1;
        }
        if first + MAX_LINE_SHOWN < length {
            shown.push('…');
        }
        Place { line: number + 1, column: before + 1, text: shown, caret }
    }

    /// The report that these drafts make.
    pub(super) fn report(&self, mut drafts: Vec<Draft>) -> Report {
        drafts.sort_by_key(|draft| (draft.at, draft.severity));
        let mut counts = [0_usize; 2];
        let mut problems = Vec::new();
        for draft in drafts {
            let count = &mut counts[usize::from(draft.severity == Severity::Warning)];
            *count += 1;
            if *count > MAX_SHOWN {
                continue;
            }
            problems.push(Problem {
                severity: draft.severity,
                message: printable(&draft.message),
                place: draft.at.map(|at| self.place(at)),
                notes: (draft.notes.into_iter())
                    .map(|(at, message)| Note { message: printable(&message), place: self.place(at) })
                    .collect(),
                help: draft.help.as_deref().map(printable),
            });
        }
        Report { file: printable(&self.name), errors: counts[0], warnings: counts[1], problems }
    }
}

/// Somebody's value for a message: short, whatever it is.
pub(super) fn quoted(text: &str) -> String {
    match text.char_indices().nth(MAX_QUOTED) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

/// A text without characters that would move a terminal's cursor or turn its writing direction.
fn printable(text: &str) -> String {
    text.chars().map(|c| if c == '\t' { ' ' } else { shown_as(c) }).collect()
}

fn shown_as(c: char) -> char {
    let turns_direction =
        matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{feff}');
    if (c.is_control() && c != '\t') || turns_direction { '\u{fffd}' } else { c }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rendered(text: &str, at: usize) -> String {
        Source::new("f", text).report(vec![Draft::error(at, "here")]).to_string()
    }

    #[test]
    fn the_caret_stands_under_its_character() {
        assert_eq!(
            rendered("ä = \"ü\" x\n", "ä = \"ü\" ".len()),
            "f:1:9: error: here\n   1 | ä = \"ü\" x\n     |         ^\n"
        );
        assert_eq!(rendered("a\n\t\tb\r\n", 4), "f:2:3: error: here\n   2 | \t\tb\n     | \t\t^\n");
        assert_eq!(rendered("\u{feff}a", 3), "f:1:1: error: here\n   1 | a\n     | ^\n");
        assert_eq!(rendered("", 0), "f:1:1: error: here\n   1 | \n     | ^\n");
    }

    #[test]
    fn the_end_of_the_text_is_a_place() {
        assert_eq!(rendered("a = 1\n", 6), "f:2:1: error: here\n   2 | \n     | ^\n");
        assert_eq!(rendered("a = 1", 5), "f:1:6: error: here\n   1 | a = 1\n     |      ^\n");
    }

    #[test]
    fn a_long_line_is_cut_around_the_caret() {
        let text = format!("{}X{}", "a".repeat(500), "b".repeat(500));
        let place = Source::new("f", &text).place(500);
        assert_eq!(place.column, 501);
        assert_eq!(place.text.chars().count(), MAX_LINE_SHOWN + 2);
        assert_eq!(place.text.chars().nth(place.caret), Some('X'));
    }

    #[test]
    fn what_would_move_the_cursor_is_not_repeated() {
        let report =
            Source::new("f\x1b[2J", "\x1b[2J\u{202e}x").report(vec![Draft::error(0, "\x1b]0;x\x07").help("\n")]);
        assert!(!report.to_string().contains(['\x1b', '\x07', '\u{202e}']), "{report:?}");
    }

    #[test]
    fn a_flood_is_counted_and_cut() {
        let mut drafts = vec![Draft::warning(0, "odd"); 5000];
        drafts.push(Draft::error(1, "wrong"));
        let report = Source::new("f", "ab").report(drafts);
        assert_eq!((report.errors, report.warnings, report.problems.len()), (1, 5000, MAX_SHOWN + 1));
        assert!(report.to_string().ends_with("f: 4900 more not shown\n"));
    }
}
