//! Damaged VHDXs: refused, or still disks. The body is in the library, where stable runs it too.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| roost::disk::fuzz::fuzz_vhdx(data));
