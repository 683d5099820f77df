//! The command line of `hostsnap`: types only. Help, man pages and completions come from here.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use protocol::args::{duration, label};
use protocol::record::State;
use protocol::text::{LabelKey, LabelValue, Note, SnapshotRef};
use protocol::{Consistency, DiskSerial, RequestId};

use crate::client::HostAddress;

/// Snapshots of this machine's own disks, taken by its host.
#[derive(Debug, Parser)]
#[command(name = "hostsnap", version, max_term_width = 100)]
pub struct Cli {
    /// Print JSON; errors too, on stderr
    #[arg(long, global = true)]
    pub json: bool,
    /// Where the host listens: vsock:CID:PORT, or unix:/path
    #[arg(long, global = true, env = "HOSTSNAP_HOST", default_value_t, value_name = "ADDRESS")]
    pub host: HostAddress,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Take a snapshot of the disks that hold the given paths
    Create(Create),
    /// List this machine's snapshots, newest first
    List {
        /// Only those with this label; may be repeated
        #[arg(long = "label", value_name = "KEY=VALUE", value_parser = label)]
        labels: Vec<(LabelKey, LabelValue)>,
        /// Only those that hold the disk with this serial
        #[arg(long, value_name = "SERIAL")]
        disk: Option<DiskSerial>,
        /// Only those in this state
        #[arg(long)]
        state: Option<ListState>,
    },
    /// Show one snapshot
    Show {
        /// Its identifier, any unique prefix of it, or `latest`
        snapshot: SnapshotRef,
    },
    /// Delete snapshots
    Delete {
        /// Their identifiers, or unique prefixes of them
        #[arg(required = true)]
        snapshots: Vec<SnapshotRef>,
        /// Do not ask
        #[arg(long, short)]
        yes: bool,
    },
    /// Plug a snapshot's disks into this machine, as new disks beside the original ones
    ///
    /// Prints the device of each. They are read-only; the snapshot itself never changes. Nothing is
    /// mounted. They stay over a reboot, until `hostsnap detach`, or until the machine is stopped.
    Attach {
        /// Its identifier, any unique prefix of it, or `latest`
        snapshot: SnapshotRef,
        /// Only these of its disks, by serial
        disks: Vec<DiskSerial>,
        /// Let them be written to: a clone, thrown away when it is detached
        #[arg(long)]
        writable: bool,
    },
    /// Take a snapshot's disks out of this machine again
    Detach {
        /// Their identifiers, or unique prefixes of them
        #[arg(required = true)]
        snapshots: Vec<SnapshotRef>,
    },
    /// Show this machine's disks, what is mounted on them, and what the host knows of them
    Disks {
        /// Print what /proc and /sys say, as the tests read it: for a bug report
        #[arg(long)]
        capture: bool,
    },
    /// Say in plain words what is wrong and what to do
    Doctor,
    /// Emergency exit: thaw every file system of this machine, whoever froze it
    Thaw,
    /// Serve the host: it may ask for snapshots (systemd starts it so)
    Daemon {
        /// Listen on this Unix socket instead of vsock port 989
        #[arg(long, value_name = "SOCKET")]
        listen: Option<PathBuf>,
        /// Also serve CID 1, this machine itself: for tests
        #[arg(long, hide = true)]
        allow_local: bool,
    },
}

/// The states by which a list can be narrowed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ListState {
    /// Cut, but not yet durable
    Settling,
    /// Durable and whole
    Ready,
    /// Lost by the storage before it was whole
    Failed,
}

impl From<ListState> for State {
    fn from(state: ListState) -> Self {
        match state {
            ListState::Settling => Self::Settling,
            ListState::Ready => Self::Ready,
            ListState::Failed => Self::Failed,
        }
    }
}

/// The options of a snapshot.
#[derive(Debug, Args)]
#[group(skip)]
pub struct Create {
    /// Paths whose disks to take, all at one instant
    #[arg(required_unless_present = "all")]
    pub paths: Vec<PathBuf>,
    /// Take all disks that hold a mounted file system or that the host knows
    #[arg(long, conflicts_with = "paths")]
    pub all: bool,
    /// Attach a label; may be repeated
    #[arg(long = "label", value_name = "KEY=VALUE", value_parser = label)]
    pub labels: Vec<(LabelKey, LabelValue)>,
    /// Attach a remark
    #[arg(long, default_value = "", hide_default_value = true)]
    pub note: Note,
    /// The least that is acceptable: crash, filesystem or application. What is worth less is not
    /// kept. More is always tried for
    #[arg(long, default_value = "filesystem")]
    pub consistency: Consistency,
    /// Keep a snapshot that is worth less, too: it says what it is worth, and the exit code is 7
    #[arg(long)]
    pub keep_anyway: bool,
    /// Let the host remove it after this time, such as 7d
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    pub keep_for: Option<Duration>,
    /// The longest that file systems may be frozen; thawed then whatever happens
    #[arg(long, default_value = "10s", value_name = "DURATION", value_parser = freeze_timeout)]
    pub freeze_timeout: Duration,
    /// Repeating a request with the same identifier gives the same snapshot
    #[arg(long, value_name = "UUID")]
    pub request_id: Option<RequestId>,
    /// Check everything and say what would be done; freeze and take nothing
    #[arg(long)]
    pub dry_run: bool,
    /// Do not wait until the snapshot is durable and whole
    #[arg(long)]
    pub no_wait: bool,
}

fn freeze_timeout(text: &str) -> Result<Duration, String> {
    let limit = duration(text)?;
    if limit.is_zero() || limit > Duration::from_secs(60) {
        return Err(format!("{text}: a freeze may last from 1ms to 60s"));
    }
    Ok(limit)
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn a_snapshot_needs_paths_or_all_and_not_both() {
        let parse = |args: &[&str]| Cli::try_parse_from([&["hostsnap", "create"], args].concat());
        assert!(parse(&["/data"]).is_ok());
        assert!(parse(&["--all"]).is_ok());
        assert!(parse(&[]).is_err());
        assert!(parse(&["--all", "/data"]).is_err());
        assert!(parse(&["/data", "--freeze-timeout", "61s"]).is_err());
        assert!(parse(&["/data", "--freeze-timeout", "0s"]).is_err());
        assert!(parse(&["/data", "--keep-for", "7d", "--label", "why=upgrade"]).is_ok());
        assert!(parse(&["/data", "--consistency", "perfect"]).is_err());
    }
}
