//! Which host this is, for what several hosts read.

use std::fs;

/// The machine's name and its own identifier (machine-id(5)): machines that were cloned share the second.
pub(crate) fn name() -> String {
    let id = fs::read_to_string("/etc/machine-id").unwrap_or_default();
    format!("{} {}", rustix::system::uname().nodename().to_string_lossy(), id.trim()).trim().to_owned()
}
