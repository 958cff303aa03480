//! Any bytes through DHCP, against machines that know what every answer must be. `tests/boot_fuzz.rs` runs the same on stable.
#![no_main]

#[path = "../boot.rs"]
#[expect(dead_code, reason = "each target has one of the bodies")]
mod bodies;

libfuzzer_sys::fuzz_target!(|data: &[u8]| bodies::dhcp(data));
