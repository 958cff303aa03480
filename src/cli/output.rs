//! What verbs print to standard output: JSON, aligned tables, and numbers for people.

use std::io::{self, ErrorKind, IsTerminal, Write};
use std::time::Duration;

use serde::Serialize;

use super::error::Error;
use crate::fleet::Timestamp;

/// Prints this text. A reader that has gone away (`roost client list | head`) has seen enough: that is no failure.
pub(super) fn print(text: &str) -> Result<(), Error> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => {
            Err(Error::failed(format!("cannot write to standard output: {error}")))
        }
        _ => Ok(()),
    }
}

/// Prints this value as JSON, in several lines.
pub(super) fn print_json(value: &impl Serialize) -> Result<(), Error> {
    let text = serde_json::to_string_pretty(value).map_err(Error::failed)?;
    print(&format!("{text}\n"))
}

/// Prints rows under headings.
pub(super) fn print_table<const N: usize>(headings: [&str; N], rows: &[[String; N]]) -> Result<(), Error> {
    print(&table(headings, rows, colours(&io::stdout())))
}

/// Whether to colour what goes there: a terminal, whose user has not said no (no-color.org).
pub(super) fn colours(stream: &impl IsTerminal) -> bool {
    stream.is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|no| no.is_empty())
}

/// Columns as wide as their widest cell, two spaces apart, without spaces at the ends of lines.
fn table<const N: usize>(headings: [&str; N], rows: &[[String; N]], bold: bool) -> String {
    let headings = headings.map(str::to_owned);
    let mut widths = [0; N];
    for row in rows.iter().chain([&headings]) {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let line = |row: &[String; N]| {
        let cells: Vec<String> = row.iter().zip(widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
        cells.join("  ").trim_end().to_owned()
    };
    let mut text = if bold { format!("\x1b[1m{}\x1b[0m\n", line(&headings)) } else { line(&headings) + "\n" };
    for row in rows {
        text.push_str(&line(row));
        text.push('\n');
    }
    text
}

/// What a table shows where there is nothing.
pub(super) fn or_dash(value: Option<impl ToString>) -> String {
    value.map_or_else(|| "-".to_owned(), |value| value.to_string())
}

/// `512 bytes`, `4.0 KiB`, `2.0 GiB`: the largest unit of which there is at least one, with one decimal, cut.
pub(super) fn bytes(count: u64) -> String {
    let units = [(40, "TiB"), (30, "GiB"), (20, "MiB"), (10, "KiB")];
    match units.into_iter().find(|(shift, _)| count >> shift > 0) {
        Some((shift, unit)) => {
            let whole = count >> shift;
            let tenth = ((count >> (shift - 10)) & 0x3ff) * 10 / 1_024;
            format!("{whole}.{tenth} {unit}")
        }
        None => format!("{count} bytes"),
    }
}

/// `0.2 s`, `75.0 s`: with one decimal, cut.
pub(super) fn seconds(span: Duration) -> String {
    format!("{}.{} s", span.as_secs(), span.subsec_millis() / 100)
}

/// A time on this host's clock: `2026-11-23 08:31:02`.
pub(super) fn local_time(at: Timestamp) -> String {
    let time = i64::try_from(at.0).ok().and_then(|at| jiff::Timestamp::from_millisecond(at).ok());
    let local = time.map(|time| time.to_zoned(jiff::tz::TimeZone::system()));
    local.map_or_else(|| format!("{} ms", at.0), |local| local.strftime("%Y-%m-%d %H:%M:%S").to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let rows = [["pc-01".to_owned(), "10.0.0.7".to_owned()], ["frontdesk".to_owned(), "-".to_owned()]];
        let expected = "NAME       ADDRESS\npc-01      10.0.0.7\nfrontdesk  -\n";
        assert_eq!(table(["NAME", "ADDRESS"], &rows, false), expected);
    }

    #[test]
    fn sizes_are_in_the_largest_unit_that_they_fill() {
        for (count, text) in [
            (0, "0 bytes"),
            (1_023, "1023 bytes"),
            (1_024, "1.0 KiB"),
            (1_535, "1.4 KiB"),
            (1_536, "1.5 KiB"),
            ((2 << 30) - 1, "1.9 GiB"),
            (2 << 30, "2.0 GiB"),
            (2_040 << 30, "1.9 TiB"),
            (u64::MAX, "16777215.9 TiB"),
        ] {
            assert_eq!(bytes(count), text);
        }
    }

    #[test]
    fn seconds_have_one_decimal() {
        assert_eq!(seconds(Duration::from_millis(999)), "0.9 s");
        assert_eq!(seconds(Duration::from_millis(75_049)), "75.0 s");
    }
}
