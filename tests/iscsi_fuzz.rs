//! Any bytes, through the framer, a login and a session, against initiators that know what every answer must be.

#![expect(clippy::unwrap_used, reason = "in a test an unwrap is an assertion, in its helpers too")]
#![expect(clippy::cast_possible_truncation, reason = "test patterns are the low bits of positions")]

#[path = "fuzz/iscsi.rs"]
mod bodies;

use proptest::prelude::*;

proptest! {
    // Failures are printed whole; there is no file of them beside these tests.
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_stream_is_cut_alike(bytes in prop::collection::vec(prop_oneof![3 => Just(0_u8), 1 => any::<u8>()], 0..600)) {
        bodies::framer(&bytes);
    }

    #[test]
    fn any_offer_is_answered_as_the_standard_says(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        bodies::login(&bytes);
    }

    #[test]
    fn any_use_of_a_session_reads_what_it_wrote(bytes in prop::collection::vec(any::<u8>(), 64..600)) {
        bodies::session(&bytes);
    }
}
