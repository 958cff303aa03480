//! The arrows between rooms only point down. Reads every `crate::` and `super::` path in `src`, not only those of `use`.

#![expect(clippy::unwrap_used, reason = "a test that cannot read the sources fails")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// What each room may name besides itself. `lib.rs` and `main.rs` stand above all rooms.
const MAY_NAME: &[(&str, &[&str])] = &[
    ("fleet", &[]),
    ("disk", &["sys"]), // whether a part of a file is in memory
    ("sys", &[]),
    ("scsi", &["disk"]),
    ("iscsi", &["scsi"]),
    ("tftp", &[]),
    ("dhcp", &["fleet"]),
    ("script", &["fleet"]),
    ("config", &["fleet"]),
    ("store", &["fleet"]),
    ("app", &["fleet", "config", "store", "script", "iscsi", "scsi", "disk", "sys"]),
    ("http", &["app", "fleet", "config", "store", "script", "sys"]),
    ("net", &["app", "fleet", "dhcp", "tftp", "iscsi", "scsi", "disk", "sys"]),
    (
        "serve",
        &["app", "config", "dhcp", "disk", "fleet", "http", "iscsi", "net", "script", "scsi", "store", "sys", "tftp"],
    ),
    ("cli", &["app", "config", "disk", "fleet", "http", "serve", "store", "sys"]),
];

/// Rooms that may name tokio; the others are pure, or synchronous.
const ASYNC: &[&str] = &["serve", "net", "http", "app", "store", "cli"];

#[test]
fn arrows_only_point_down() {
    let allowed: BTreeMap<&str, &[&str]> = MAY_NAME.iter().copied().collect();
    let mut wrong = Vec::new();
    let mut arrows = 0;
    for file in sources() {
        let Some(room) = file.module.first() else { continue };
        let may = allowed.get(room.as_str()).unwrap_or_else(|| panic!("room `{room}` is not in the plan"));
        for named in file.names() {
            arrows += 1;
            if named != *room && !may.contains(&named.as_str()) && allowed.contains_key(named.as_str()) {
                wrong.push(format!("{}: `{room}` names `{named}`", file.path.display()));
            }
        }
    }
    assert!(arrows > 100, "only {arrows} paths were found: the reader of paths is broken");
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn tokio_stays_where_sockets_are() {
    for file in sources() {
        let Some(room) = file.module.first() else { continue };
        let found = file.words.iter().any(|word| word == "tokio");
        assert!(!found || ASYNC.contains(&room.as_str()), "{} names tokio", file.path.display());
    }
}

#[test]
fn paths_are_found_in_every_form() {
    let names = |module: &[&str], text: &str| {
        let module = module.iter().map(ToString::to_string).collect();
        Source { path: PathBuf::new(), module, words: words(text) }.names().into_iter().collect::<Vec<_>>().join(" ")
    };
    assert_eq!(names(&["a", "b"], "use crate::{x::Y, z::{self, W}}; fn f() { crate::v::g() }"), "v x z");
    assert_eq!(names(&["a", "b"], "use super::super::x::Y; use super::c;"), "a x");
    assert_eq!(names(&["a"], "mod tests { use super::*; use super::super::x; } use super::y;"), "a x y");
    assert_eq!(
        names(&["a"], "// crate::x\n/* crate::y */ const C: &str = \"crate::z\"; type L<'a> = &'a crate::w::T;"),
        "w"
    );
}

struct Source {
    path: PathBuf,
    /// `["app", "queue"]` for `src/app/queue.rs`.
    module: Vec<String>,
    words: Vec<String>,
}

impl Source {
    /// The rooms that this file's paths begin with.
    fn names(&self) -> BTreeSet<String> {
        let mut names = BTreeSet::new();
        // Inline modules that are open, each with the depth of braces at which it ends.
        let (mut inner, mut depth) = (Vec::new(), 0);
        for (at, word) in self.words.iter().enumerate() {
            match word.as_str() {
                "{" => {
                    depth += 1;
                    if at >= 2 && self.words[at - 2] == "mod" {
                        inner.push((self.words[at - 1].clone(), depth));
                    }
                }
                "}" => {
                    inner.retain(|(_, opened)| *opened < depth);
                    depth -= 1;
                }
                "crate" | "super" if at == 0 || self.words[at - 1] != "::" => {
                    let mut module: Vec<String> = self.module.clone();
                    module.extend(inner.iter().map(|(name, _)| name.clone()));
                    names.extend(self.first_names(at, module));
                }
                _ => {}
            }
        }
        names
    }

    fn first_names(&self, mut at: usize, mut module: Vec<String>) -> Vec<String> {
        let word = |at: usize| self.words.get(at).map_or("", String::as_str);
        if word(at) == "crate" {
            module.clear();
            at += 1;
        } else {
            while word(at) == "super" {
                module.pop();
                at += if word(at + 1) == "::" && word(at + 2) == "super" { 2 } else { 1 };
            }
        }
        if let Some(room) = module.first() {
            return vec![room.clone()];
        }
        if word(at) != "::" {
            return Vec::new(); // `pub(crate)`
        }
        if word(at + 1) != "{" {
            return vec![word(at + 1).to_owned()];
        }
        let (mut names, mut depth, mut begins) = (Vec::new(), 0, true);
        for word in &self.words[at + 1..] {
            match word.as_str() {
                "{" => depth += 1,
                "}" => depth -= 1,
                "," => begins = depth == 1,
                name if begins && depth == 1 => {
                    names.push(name.to_owned());
                    begins = false;
                }
                _ => {}
            }
            if depth == 0 {
                break;
            }
        }
        names
    }
}

fn sources() -> Vec<Source> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let (mut folders, mut sources) = (vec![root.clone()], Vec::new());
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let inside = path.strip_prefix(&root).unwrap().with_extension("");
                let mut module: Vec<String> = inside.iter().map(|part| part.to_str().unwrap().to_owned()).collect();
                if matches!(module.last().map(String::as_str), Some("mod" | "lib" | "main")) {
                    module.pop();
                }
                let words = words(&fs::read_to_string(&path).unwrap());
                sources.push(Source { path, module, words });
            }
        }
    }
    sources
}

/// Identifiers, `::`, braces and commas of Rust source, without comments and literals.
fn words(text: &str) -> Vec<String> {
    let mut words = Vec::new();
    let mut rest = text;
    while let Some(c) = rest.chars().next() {
        let taken = if rest.starts_with("//") {
            rest.find('\n').unwrap_or(rest.len())
        } else if rest.starts_with("/*") {
            rest.find("*/").map_or(rest.len(), |end| end + 2)
        } else if let Some(length) = raw_string(rest) {
            length
        } else if c == '"' {
            string(rest)
        } else if c == '\'' {
            character(rest)
        } else if c.is_alphabetic() || c == '_' {
            let length = rest.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(rest.len());
            words.push(rest[..length].to_owned());
            length
        } else if rest.starts_with("::") {
            words.push("::".to_owned());
            2
        } else {
            if matches!(c, '{' | '}' | ',') {
                words.push(c.to_string());
            }
            c.len_utf8()
        };
        rest = &rest[taken..];
    }
    words
}

/// Length of a raw string at the front, if there is one.
fn raw_string(text: &str) -> Option<usize> {
    let after = text.strip_prefix("br").or_else(|| text.strip_prefix('r'))?;
    let hashes = after.len() - after.trim_start_matches('#').len();
    let body = after[hashes..].strip_prefix('"')?;
    let end = format!("\"{}", "#".repeat(hashes));
    let length = body.find(&end)? + end.len();
    Some(text.len() - body.len() + length)
}

/// Length of a string literal.
fn string(text: &str) -> usize {
    let mut escaped = false;
    for (at, c) in text.char_indices().skip(1) {
        match c {
            '\\' if !escaped => escaped = true,
            '"' if !escaped => return at + 1,
            _ => escaped = false,
        }
    }
    text.len()
}

/// Length of a character literal, or of the quote of a lifetime.
fn character(text: &str) -> usize {
    let mut characters = text.char_indices().skip(1);
    match characters.next() {
        Some((_, '\\')) => text[2..].char_indices().skip(1).find(|(_, c)| *c == '\'').map_or(1, |(at, _)| at + 3),
        _ => characters.next().filter(|(_, c)| *c == '\'').map_or(1, |(at, _)| at + 1),
    }
}
