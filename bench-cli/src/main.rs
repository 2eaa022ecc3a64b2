//! Will this storage keep these GPUs fed?

use std::process::ExitCode;

fn main() -> ExitCode {
    gpufeed::main()
}
