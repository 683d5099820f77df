//! The command line of `hostsnap`: types only. Help, man pages and completions come from here.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::time::Duration;

use clap::builder::{OsStringValueParser, TypedValueParser};
use clap::{Args, Parser, Subcommand, ValueEnum};
use protocol::args::{duration, label};
use protocol::record::State;
use protocol::text::{LabelKey, LabelValue, Note, SnapshotRef};
use protocol::{Consistency, DiskSerial, RequestId};
use uuid::Uuid;

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
    /// Mount a file system of a snapshot at a folder, beside its original
    ///
    /// Attaches the snapshot's disks, finds the file system by the UUID of the original (through
    /// partitions, LVM, md and LUKS), and mounts it read-only. It is in no fstab, and is undone with
    /// `hostsnap umount`.
    Mount(Mount),
    /// Unmount what `hostsnap mount` mounted, and give the disks back
    Umount {
        /// The folder; nothing mounted there is no error
        #[arg(required_unless_present = "all")]
        dir: Option<PathBuf>,
        /// Everything that is mounted from snapshots, and what killed commands left
        #[arg(long, conflicts_with = "dir")]
        all: bool,
    },
    /// Copy files out of a snapshot, with owners, modes, times, ACLs, attributes, links and holes
    ///
    /// Links are copied, not followed. A file at the target is replaced when its copy is whole. What
    /// can't be copied is told and left out; the exit code is 1 then.
    Cp {
        /// What to copy, such as latest:/etc/hosts; several of one snapshot
        #[arg(required = true, value_name = "ID:/PATH", value_parser = inside())]
        sources: Vec<Inside>,
        /// A folder, or the new name of the only source
        dest: PathBuf,
        /// How to find the file system.
        #[command(flatten)]
        which: Which,
    },
    /// List a folder of a snapshot
    Ls {
        /// Such as latest:/etc
        #[arg(value_name = "ID:/PATH", value_parser = inside())]
        path: Inside,
        /// With mode, owner, size and time
        #[arg(long, short)]
        long: bool,
        /// How to find the file system.
        #[command(flatten)]
        which: Which,
    },
    /// Give disks of this machine the bytes that they had in a snapshot
    ///
    /// Refused, with the list of what is in the way, while anything here uses the disks: unmount it, or let --remount do
    /// it. What the disks hold now is kept as a snapshot first. All other snapshots stay. The root disk goes back from
    /// the host, while the machine is stopped: `hostsnapd restore`.
    Restore(Restore),
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

/// The options of a mount.
#[derive(Debug, Args)]
#[group(skip)]
pub struct Mount {
    /// Its identifier, any unique prefix of it, or `latest`
    pub snapshot: SnapshotRef,
    /// Where to mount it; the folder must be there
    pub dir: PathBuf,
    /// Which file system: a path that was on it. Not needed where the snapshot holds one
    #[arg(long)]
    pub path: Option<PathBuf>,
    /// How to find the file system.
    #[command(flatten)]
    pub which: Which,
    /// Let it be written to: a clone, thrown away when it is unmounted
    #[arg(long)]
    pub writable: bool,
    /// Say what would be done; attach and mount nothing
    #[arg(long)]
    pub dry_run: bool,
}

/// The options of a restore.
#[derive(Debug, Args)]
#[group(skip)]
pub struct Restore {
    /// Its identifier, any unique prefix of it, or `latest`
    pub snapshot: SnapshotRef,
    /// Only these of its disks: by serial, or the disk that holds a path
    #[arg(value_name = "DISK|PATH")]
    pub what: Vec<PathBuf>,
    /// Say what would be done, what is lost and what is in the way; change nothing
    #[arg(long, visible_alias = "dry-run")]
    pub preview: bool,
    /// Unmount what is mounted of the disks, and mount it again in the same way, also after a failure
    #[arg(long)]
    pub remount: bool,
    /// Do not keep what the disks hold now: it is lost
    #[arg(long)]
    pub no_safety: bool,
    /// Also where a disk was partitioned or formatted anew since
    #[arg(long)]
    pub changed_layout: bool,
}

/// How a file system is found where that needs help.
#[derive(Debug, Clone, Args)]
#[group(skip)]
pub struct Which {
    /// The file system with this UUID, where several would do
    #[arg(long, value_name = "UUID")]
    pub uuid: Option<Uuid>,
    /// Open LUKS with this key file; `-` reads the key from standard input
    #[arg(long, value_name = "FILE")]
    pub luks_key_file: Option<PathBuf>,
}

/// A path in a snapshot: `ID:/path`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Inside {
    /// The snapshot.
    pub snapshot: SnapshotRef,
    /// The path that the original has.
    pub path: PathBuf,
}

/// A path may hold any bytes, the snapshot's name not.
fn inside() -> impl TypedValueParser<Value = Inside> {
    OsStringValueParser::new().try_map(|text| {
        let bytes = text.as_bytes();
        let form = "it has the form ID:/path, such as latest:/etc/hosts";
        let colon = bytes.iter().position(|byte| *byte == b':').ok_or(form)?;
        let snapshot =
            std::str::from_utf8(&bytes[..colon]).ok().and_then(|id| id.parse().ok()).ok_or(form)?;
        let path = PathBuf::from(OsStr::from_bytes(&bytes[colon + 1..]));
        if path.is_absolute() { Ok(Inside { snapshot, path }) } else { Err(form) }
    })
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

    #[test]
    fn a_path_in_a_snapshot_has_both_parts() {
        let source = |text: &str| match Cli::try_parse_from(["hostsnap", "cp", text, "."]).ok()?.command {
            Command::Cp { sources, .. } => sources.into_iter().next(),
            _ => None,
        };
        let found = source("latest:/etc/a:b").unwrap();
        assert_eq!((found.snapshot.as_str(), found.path), ("latest", PathBuf::from("/etc/a:b")));
        for text in ["latest", "latest:", "latest:etc", ":/etc", "/etc:/etc", "a b:/etc"] {
            assert!(source(text).is_none(), "{text}");
        }
        let parse = |args: &[&str]| Cli::try_parse_from([&["hostsnap", "umount"], args].concat()).is_ok();
        assert!(parse(&["/mnt"]) && parse(&["--all"]) && !parse(&[]) && !parse(&["--all", "/mnt"]));
    }
}
