//! The `roost` binary: arguments in, exit code out.

fn main() {}
