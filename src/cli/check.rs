//! `roost check`: everything that is wrong with a mapping file, at once.
//!
//! Not here: the arguments, and printing what comes back.

use std::path::Path;

use serde::Serialize;

use super::error::Kind;
use crate::config::{self, Loaded, Report, Settings};
use crate::fleet::{ClientName, ImageName};

/// Exit code where nothing is wrong.
pub const FINE: u8 = super::DONE;

/// Exit code where the file has errors.
pub const CONFIGURATION: u8 = Kind::Configuration.code();

/// How the answer is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Style {
    /// For a file or a pipe.
    Plain,
    /// For a terminal, with ANSI colours.
    Coloured,
    /// For a program: one JSON object on one line.
    Json,
}

/// What to print, and the exit code.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// Lines for standard output, the last one ended too.
    pub text: String,
    /// [`FINE`] or [`CONFIGURATION`].
    pub exit: u8,
}

/// The images of a state folder, and what else the file can be held against.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Images {
    /// Those that there are.
    pub there: Vec<ImageName>,
    /// Those of them that are not what was imported, and how that is known.
    pub changed: Vec<(ImageName, String)>,
    /// Whose second disks there are, and of how many bytes.
    pub data: Vec<(ClientName, u64)>,
}

/// Checks the file at `path`. `images` is asked which images there are once the file says where the state is; where it
/// says `None` (no state on this machine, as where a file is only edited), images are not checked.
pub fn check(path: &Path, style: Style, images: impl FnOnce(&Settings) -> Option<Images>) -> Answer {
    let (report, loaded) = match config::load(path) {
        Err(report) => (report, None),
        Ok(loaded) => {
            let warnings = loaded.warnings.clone();
            match images(&loaded.config.settings) {
                Some(Images { there, changed, data }) => {
                    let images = loaded.check_images(&there).merged(loaded.check_changed(&changed));
                    (warnings.merged(images).merged(loaded.check_data(&data)), Some(loaded))
                }
                None => (warnings, Some(loaded)),
            }
        }
    };
    answer(&report, loaded.as_ref(), style)
}

/// The answer for a report and, where the file could be read, what is in it.
#[must_use]
pub fn answer(report: &Report, loaded: Option<&Loaded>, style: Style) -> Answer {
    let exit = if report.has_errors() { CONFIGURATION } else { FINE };
    let contents = loaded.filter(|_| !report.has_errors()).map(Contents::of);
    let text = match style {
        Style::Plain => format!("{report}{}\n", summary(report, contents.as_ref())),
        Style::Coloured => format!("{}{}\n", report.coloured(), summary(report, contents.as_ref())),
        Style::Json => {
            let whole = Whole { ok: !report.has_errors(), contents, report };
            format!("{}\n", serde_json::to_string(&whole).expect("numbers and texts are always JSON"))
        }
    };
    Answer { text, exit }
}

/// What a good file holds.
#[derive(Debug, Serialize)]
struct Contents {
    clients: usize,
    groups: usize,
    images: usize,
}

impl Contents {
    fn of(loaded: &Loaded) -> Self {
        Self {
            clients: loaded.config.fleet.clients().len(),
            groups: loaded.config.groups.len(),
            images: loaded.image_count(),
        }
    }
}

#[derive(Debug, Serialize)]
struct Whole<'a> {
    ok: bool,
    contents: Option<Contents>,
    #[serde(flatten)]
    report: &'a Report,
}

/// `roost.toml: 12 clients in 2 groups, 1 image; no problems`
fn summary(report: &Report, contents: Option<&Contents>) -> String {
    let problems = [(report.errors, "error"), (report.warnings, "warning")]
        .into_iter()
        .filter(|(count, _)| *count > 0)
        .map(|(count, word)| counted(count, word))
        .collect::<Vec<_>>()
        .join(", ");
    let file = &report.file;
    match contents {
        Some(Contents { clients, groups, images }) => {
            let groups = if *groups > 0 { format!(" in {}", counted(*groups, "group")) } else { String::new() };
            let problems = if problems.is_empty() { "no problems" } else { &problems };
            format!("{file}: {}{groups}, {}; {problems}", counted(*clients, "client"), counted(*images, "image"))
        }
        None => format!("{file}: {problems}"),
    }
}

fn counted(count: usize, word: &str) -> String {
    if count == 1 { format!("1 {word}") } else { format!("{count} {word}s") }
}
