//! The `roost` binary: arguments in, exit code out.

use std::process::ExitCode;

fn main() -> ExitCode {
    roost::cli::main()
}
