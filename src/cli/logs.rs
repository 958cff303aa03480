//! Logs to standard error: one readable line for each event, or JSON.

use std::fmt::{self, Write};

use tracing::field::{Field, Visit};
use tracing::{Event, Subscriber};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::registry::LookupSpan;

use super::output::colours;

/// How much is logged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum Level {
    /// What failed
    Error,
    /// What is worth waking somebody for
    Warn,
    /// Each stage of each boot
    Info,
    /// Decisions, and why
    Debug,
    /// Each packet
    Trace,
}

impl Level {
    fn word(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Warn => "warn",
            Self::Info => "info",
            Self::Debug => "debug",
            Self::Trace => "trace",
        }
    }
}

/// Logs from now on.
pub(super) fn start(level: Level, json: bool) {
    // Libraries at `warn`: their `info` is of no use to an operator.
    let filter = EnvFilter::new(format!("warn,roost={}", level.word()));
    let logs = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    // It fails only where logs have been started before: then they go on as they are.
    let _ = if json {
        logs.json().flatten_event(true).with_current_span(false).with_span_list(false).try_init()
    } else {
        logs.with_ansi(colours(&std::io::stderr())).event_format(Line).try_init()
    };
}

/// `08:31:02.250 pc-01  loader      undionly.kpxe by TFTP`: the time, the level unless it is `INFO`, the message, and the
/// fields of all but boot stages, whose message says the same.
struct Line;

/// The target of boot stages.
const BOOT: &str = "roost::boot";

impl<S, N> FormatEvent<S, N> for Line
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(&self, _: &FmtContext<'_, S, N>, mut writer: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        let (dim, plain) = if writer.has_ansi_escapes() { ("\x1b[2m", "\x1b[0m") } else { ("", "") };
        write!(writer, "{dim}{}{plain} ", jiff::Zoned::now().strftime("%H:%M:%S%.3f"))?;
        let level = *event.metadata().level();
        if level != tracing::Level::INFO {
            let colour = match level {
                _ if !writer.has_ansi_escapes() => "",
                tracing::Level::ERROR => "\x1b[31m",
                tracing::Level::WARN => "\x1b[33m",
                _ => dim,
            };
            write!(writer, "{colour}{level}{plain} ")?;
        }
        let mut words = Words { fields: event.metadata().target() != BOOT, ..Words::default() };
        event.record(&mut words);
        writeln!(writer, "{}{}", words.message, words.rest)
    }
}

/// An event's message and fields as text.
#[derive(Default)]
struct Words {
    /// Whether fields besides the message are wanted.
    fields: bool,
    message: Clean,
    rest: Clean,
}

impl Visit for Words {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        // Writing to a string does not fail.
        let _ = match field.name() {
            "message" => write!(self.message, "{value:?}"),
            name if self.fields => write!(self.rest, " {name}={value:?}"),
            _ => Ok(()),
        };
    }
}

/// Text that cannot steer a terminal: names in it come from strangers on the wire.
#[derive(Default)]
struct Clean(String);

impl Write for Clean {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.0.extend(text.chars().map(|c| if c.is_control() { char::REPLACEMENT_CHARACTER } else { c }));
        Ok(())
    }
}

impl fmt::Display for Clean {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::sync::{Arc, Mutex};

    use super::*;

    #[derive(Clone, Default)]
    struct Sink(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Sink {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    /// What is logged inside, without the times in front.
    fn logged(inside: impl FnOnce()) -> Vec<String> {
        let sink = Sink::default();
        let writer = sink.clone();
        let logs = tracing_subscriber::fmt()
            .with_max_level(tracing::Level::INFO)
            .with_writer(move || writer.clone())
            .with_ansi(false)
            .event_format(Line);
        tracing::subscriber::with_default(logs.finish(), inside);
        let text = String::from_utf8(sink.0.lock().unwrap().clone()).unwrap();
        text.lines().map(|line| line.split_once(' ').unwrap().1.to_owned()).collect()
    }

    #[test]
    fn a_boot_stage_is_one_aligned_line_without_fields() {
        use crate::app::recorder::Recorder;
        use crate::fleet::Stage;

        let name = "pc-01".parse().unwrap();
        let mac = "52:54:00:aa:00:01".parse().unwrap();
        let lines = logged(|| {
            let recorder = Recorder::detached();
            recorder.note(Some(mac), Some(&name), Stage::Loader, "undionly.kpxe by TFTP, 78 KB in 0.2 s");
            recorder.note(Some(mac), None, Stage::Offer, "10.0.0.7");
        });
        assert_eq!(
            lines,
            ["pc-01  loader      undionly.kpxe by TFTP, 78 KB in 0.2 s", "52:54:00:aa:00:01 offer       10.0.0.7"]
        );
    }

    #[test]
    fn other_lines_carry_their_level_and_fields_and_no_control_characters() {
        let lines = logged(|| {
            tracing::warn!(count = 3, "odd name \x1b[31m");
            tracing::info!("ready");
        });
        assert_eq!(lines, ["WARN odd name \u{fffd}[31m count=3", "ready"]);
    }
}
