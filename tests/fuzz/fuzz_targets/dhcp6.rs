//! DHCPv6 packets: answered soundly, or not at all. The body is in the library, where stable runs it too.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| roost::dhcp::v6::fuzz::fuzz(data));
