//! The command line of `hostsnapd`: types only. Help, man pages and completions come from here.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use protocol::args::{duration, label};
use protocol::text::{LabelKey, LabelValue, Name, Note, SnapshotRef};
use protocol::{Consistency, DiskSerial, RequestId};

/// What every command's exit code means; the guest's program has the same.
const EXIT_CODES: &str = "\
Exit codes: 0 done, 1 internal error, 2 bad usage or configuration, 3 the service or the guest is not \
reachable, 4 refused (policy, quota, lock), 5 not found, 6 not possible now (in use, unsupported), \
7 consistency not reached, 8 the storage failed, 9 timed out.";

/// Lets virtual machines take snapshots of their own disks.
///
/// `hostsnapd serve` is the service. All other commands are for the host's administrator: most ask the
/// running service over its control socket, which only root can open.
#[derive(Debug, Parser)]
#[command(name = "hostsnapd", version, max_term_width = 100, after_help = EXIT_CODES)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the service (systemd starts it so)
    Serve(ConfigFile),
    /// Prove the configuration: every disk, driver, program and socket; changes nothing
    Check {
        #[command(flatten)]
        #[allow(missing_docs)]
        config: ConfigFile,
        #[command(flatten)]
        #[allow(missing_docs)]
        output: Output,
    },
    /// Show the virtual machines with their disks
    Vms(Ask),
    /// List snapshots, newest first
    List {
        #[command(flatten)]
        #[allow(missing_docs)]
        ask: Ask,
        /// Only this virtual machine's
        #[arg(long, value_name = "VM")]
        vm: Option<Name>,
        /// Only those with this label; may be repeated
        #[arg(long = "label", value_name = "KEY=VALUE", value_parser = label)]
        labels: Vec<(LabelKey, LabelValue)>,
    },
    /// Show one snapshot
    Show {
        #[command(flatten)]
        #[allow(missing_docs)]
        ask: Ask,
        /// Its identifier, any unique prefix of it, or `latest`
        snapshot: SnapshotRef,
        /// Only among this virtual machine's
        #[arg(long, value_name = "VM")]
        vm: Option<Name>,
    },
    /// Ask the agent in a virtual machine to take a snapshot of it
    Create {
        #[command(flatten)]
        #[allow(missing_docs)]
        ask: Ask,
        #[command(flatten)]
        #[allow(missing_docs)]
        create: Create,
    },
    /// Delete snapshots
    Delete {
        #[command(flatten)]
        #[allow(missing_docs)]
        ask: Ask,
        /// Their identifiers, or unique prefixes of them
        #[arg(required = true)]
        snapshots: Vec<SnapshotRef>,
    },
    /// Lock a snapshot: until then nobody can delete it, its time to keep neither
    Lock {
        #[command(flatten)]
        #[allow(missing_docs)]
        ask: Ask,
        /// Its identifier, or any unique prefix of it
        snapshot: SnapshotRef,
        #[command(flatten)]
        #[allow(missing_docs)]
        until: Until,
    },
    /// Unlock a snapshot
    Unlock {
        #[command(flatten)]
        #[allow(missing_docs)]
        ask: Ask,
        /// Its identifier, or any unique prefix of it
        snapshot: SnapshotRef,
    },
    /// Take out of its machine what a guest has attached of its snapshots
    ///
    /// The emergency exit: the guest itself does it with `hostsnap detach`, which makes sure that nothing
    /// there uses the disks any more. This does not.
    Detach {
        #[command(flatten)]
        #[allow(missing_docs)]
        ask: Ask,
        /// Their identifiers, or unique prefixes of them
        #[arg(required = true)]
        snapshots: Vec<SnapshotRef>,
    },
    /// Give the disks of a stopped virtual machine the bytes that they had in a snapshot, the root disk included
    ///
    /// What they hold now is kept as a snapshot first. All other snapshots stay. The guest itself does it with
    /// `hostsnap restore`, while it runs, for disks that it can unmount.
    Restore {
        #[command(flatten)]
        #[allow(missing_docs)]
        ask: Ask,
        #[command(flatten)]
        #[allow(missing_docs)]
        restore: Restore,
    },
    /// Ask the agent in a virtual machine whether it is there and what it is doing
    Ping {
        #[command(flatten)]
        #[allow(missing_docs)]
        ask: Ask,
        /// The virtual machine
        vm: Name,
    },
    /// Show where the disks of one snapshot differ from another's
    ///
    /// The storage tells it, where it can, from its own maps and without reading the disks. All bytes outside of the extents
    /// are the same; within them some may be the same too. With --json every extent is listed, in bytes.
    Changes {
        #[command(flatten)]
        #[allow(missing_docs)]
        ask: Ask,
        /// The snapshot to compare with: an identifier, or a unique prefix of one
        #[arg(value_name = "A")]
        from: SnapshotRef,
        /// The snapshot to compare, of the same virtual machine
        #[arg(value_name = "B")]
        to: SnapshotRef,
        /// Only this disk
        #[arg(long, value_name = "SERIAL")]
        disk: Option<DiskSerial>,
    },
    /// Serve a disk of a snapshot to backup tools, read-only, over NBD on a Unix socket
    ///
    /// It is served until this command ends, by Ctrl-C or with the service; so long the snapshot can't be deleted. Clients find
    /// the context base:allocation, and with --since qemu:dirty-bitmap:changed. Needs qemu-storage-daemon.
    Export {
        #[command(flatten)]
        #[allow(missing_docs)]
        ask: Ask,
        /// The snapshot: its identifier, any unique prefix of it, or `latest`
        snapshot: SnapshotRef,
        /// The disk, by its serial; not needed where there is one only
        disk: Option<DiskSerial>,
        /// Also tell what changed on it since this snapshot of the same machine, where the storage can
        #[arg(long, value_name = "OTHER")]
        since: Option<SnapshotRef>,
        /// Where to serve it; without, beside the service's own socket
        #[arg(long, value_name = "PATH")]
        socket: Option<PathBuf>,
    },
    /// Compare the catalog with the storage and finish what is unfinished
    Reconcile(Ask),
    /// Make a new catalog from what the storage holds, while the service is stopped
    ///
    /// For a catalog that is damaged or lost. The old one is moved aside, never overwritten.
    RebuildCatalog {
        #[command(flatten)]
        #[allow(missing_docs)]
        config: ConfigFile,
        #[command(flatten)]
        #[allow(missing_docs)]
        output: Output,
    },
    /// Show what was decided: done, refused, failed; the oldest first
    ///
    /// Reads the audit log itself, with the files that it was rotated to unless they are compressed.
    /// With --json each line is one JSON object, as in the file.
    Audit {
        #[command(flatten)]
        #[allow(missing_docs)]
        config: ConfigFile,
        #[command(flatten)]
        #[allow(missing_docs)]
        output: Output,
        /// Only this virtual machine's
        #[arg(long, value_name = "VM")]
        vm: Option<Name>,
        /// Only from then on: how long ago, such as 2h or 7d, or a moment, such as 2026-11-24T08:00:00Z
        #[arg(long, value_name = "TIME", value_parser = crate::audit::read::since)]
        since: Option<jiff::Timestamp>,
    },
}

/// Where the configuration is.
#[derive(Debug, Args)]
pub struct ConfigFile {
    /// The configuration file
    #[arg(long, default_value = "/etc/hostsnap/hostsnapd.toml", value_name = "FILE")]
    pub config: PathBuf,
}

/// How to print.
#[derive(Debug, Clone, Copy, Args)]
pub struct Output {
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// A question to the running service.
#[derive(Debug, Args)]
pub struct Ask {
    /// The socket of the running service
    #[arg(long, default_value = "/run/hostsnap/control.sock", value_name = "SOCKET")]
    pub control: PathBuf,
    /// How to print
    #[command(flatten)]
    pub output: Output,
}

/// How long a lock lasts.
#[derive(Debug, Clone, Copy, Args)]
#[group(required = true, multiple = false)]
pub struct Until {
    /// Until this moment, such as 2030-01-31 (its first, in UTC) or 2030-01-31T18:00:00Z
    #[arg(long = "until", value_name = "TIME", value_parser = moment)]
    pub moment: Option<jiff::Timestamp>,
    /// For this long from now, such as 30d
    #[arg(long = "for", value_name = "DURATION", value_parser = duration)]
    pub time: Option<Duration>,
}

/// A moment as people write it.
fn moment(text: &str) -> Result<jiff::Timestamp, String> {
    let day = || format!("{}T00:00:00Z", text.parse::<jiff::civil::Date>().ok()?).parse().ok();
    text.parse::<jiff::Timestamp>()
        .ok()
        .or_else(day)
        .ok_or_else(|| format!("{text:?} is no moment; write 2030-01-31 or 2030-01-31T18:00:00Z"))
}

/// The options of a restore.
#[derive(Debug, Args)]
#[group(skip)]
pub struct Restore {
    /// The virtual machine
    pub vm: Name,
    /// The snapshot's identifier, any unique prefix of it, or `latest`
    pub snapshot: SnapshotRef,
    /// Only these of its disks, by serial
    pub disks: Vec<DiskSerial>,
    /// Say what would be done; change nothing
    #[arg(long, visible_alias = "dry-run")]
    pub preview: bool,
    /// Do not keep what the disks hold now: it is lost
    #[arg(long)]
    pub no_safety: bool,
    /// Also where a disk was partitioned or formatted anew since
    #[arg(long)]
    pub changed_layout: bool,
}

/// The options of a snapshot.
#[derive(Debug, Args)]
#[group(skip)]
pub struct Create {
    /// The virtual machine
    pub vm: Name,
    /// Paths in the guest whose disks to take; all disks if none is given
    pub paths: Vec<String>,
    /// Attach a label; may be repeated
    #[arg(long = "label", value_name = "KEY=VALUE", value_parser = label)]
    pub labels: Vec<(LabelKey, LabelValue)>,
    /// Attach a remark
    #[arg(long, default_value = "", hide_default_value = true)]
    pub note: Note,
    /// Do not ask the guest: the host cuts alone, as a power cut would, whatever the guest is doing
    ///
    /// Several disks are of one instant where their storage makes them so, and else if the machine can be paused (`qmp`
    /// in its [[vm]], or libvirt): it stands still while they are cut, ten seconds at most.
    #[arg(long, conflicts_with = "paths")]
    pub no_agent: bool,
    /// The least that is acceptable: crash, filesystem or application; with --no-agent crash
    #[arg(long, default_value = "filesystem", default_value_if("no_agent", "true", "crash"))]
    pub consistency: Consistency,
    /// Remove it after this time, such as 7d
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    pub keep_for: Option<Duration>,
    /// The longest that the guest may be frozen
    #[arg(long, default_value = "10s", value_name = "DURATION", value_parser = duration)]
    pub freeze_timeout: Duration,
    /// Repeating a request with the same identifier gives the same snapshot
    #[arg(long, value_name = "UUID")]
    pub request_id: Option<RequestId>,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn a_moment_is_a_day_or_a_time_of_a_day_and_nothing_else() {
        let shown = |text: &str| moment(text).unwrap().to_string();
        assert_eq!(shown("2030-01-31"), "2030-01-31T00:00:00Z");
        assert_eq!(shown("2030-01-31T18:00:00+02:00"), "2030-01-31T16:00:00Z");
        for wrong in ["30d", "tomorrow", "2030-02-30", ""] {
            assert!(moment(wrong).unwrap_err().contains("2030-01-31"), "{wrong}");
        }
    }

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }
}
