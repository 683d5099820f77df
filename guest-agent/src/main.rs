//! `hostsnap`: see the library for its rooms.

use std::process::ExitCode;

use guest_agent::freeze::keeper;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().collect();
    if arguments.get(1).is_some_and(|first| first == keeper::ARGUMENT) {
        return keeper::run(&arguments[2..]);
    }
    ExitCode::FAILURE
}
