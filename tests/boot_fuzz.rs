//! Any bytes through DHCP and TFTP, against machines that know what every answer must be.

#[path = "fuzz/boot.rs"]
mod bodies;

use proptest::prelude::*;

proptest! {
    // Failures are printed whole; there is no file of them beside these tests.
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_packets_are_answered_as_they_ask_and_no_address_has_two_holders(bytes in prop::collection::vec(any::<u8>(), 0..900)) {
        bodies::dhcp(&bytes);
    }

    #[test]
    fn any_request_is_read_as_it_says_and_its_transfer_sends_the_file(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        bodies::tftp(&bytes);
    }
}
