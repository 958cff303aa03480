//! What must outlive a restart and is not the mapping file.
