//! Boot scripts.
