//! Any bytes as offers of a login, which are answered as the standard says. `tests/iscsi_fuzz.rs` runs the same on stable.
#![no_main]
#![expect(clippy::unwrap_used, clippy::cast_possible_truncation, reason = "the body is a test's")]

#[path = "../iscsi.rs"]
#[expect(dead_code, reason = "each target has one of the bodies")]
mod bodies;

libfuzzer_sys::fuzz_target!(|data: &[u8]| bodies::login(data));
