//! The benchmarks: they report, and nothing is asserted.

use std::fs;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use clap::Subcommand;

use crate::{debian, setup};

/// What is measured.
#[derive(Subcommand)]
pub(crate) enum Bench {
    /// How long an application waits for a snapshot, beside the floor and beside qemu-ga
    Stall {
        /// More options: `-- --help` tells them
        #[arg(last = true)]
        options: Vec<String>,
    },
    /// The cut of each storage driver beside the bare operation of its storage
    Drivers {
        /// More options: `-- --help` tells them
        #[arg(last = true)]
        options: Vec<String>,
    },
    /// Attach, detach, mount and cp from inside a machine, the copy beside a plain cp
    Use {
        /// More options: `-- --help` tells them
        #[arg(last = true)]
        options: Vec<String>,
    },
    /// The size of the guest's program, and the memory of both programs
    Size,
    /// Freeze and thaw alone, on this machine, beside the bare system calls
    Freeze,
}

pub(crate) fn run(bench: &Bench) -> Result<()> {
    setup::all()?;
    match bench {
        Bench::Stall { options } => {
            release()?;
            guest_agent_of_qemu()?;
            let mut arguments = vec!["bench", "--quiet", "-p", "tests", "--bench", "stall", "--"];
            arguments.extend(options.iter().map(String::as_str));
            setup::cargo(&arguments, &[])
        }
        Bench::Drivers { options } => {
            let mut arguments = vec!["bench", "--quiet", "-p", "tests", "--bench", "drivers", "--"];
            arguments.extend(options.iter().map(String::as_str));
            setup::cargo(&arguments, &[])
        }
        Bench::Use { options } => {
            release()?;
            let mut arguments = vec!["bench", "--quiet", "-p", "tests", "--bench", "use", "--"];
            arguments.extend(options.iter().map(String::as_str));
            setup::cargo(&arguments, &[])
        }
        Bench::Size => {
            release()?;
            setup::cargo(&["bench", "--quiet", "-p", "tests", "--bench", "size"], &[])
        }
        Bench::Freeze => {
            setup::cargo(&["bench", "--quiet", "-p", "guest-agent", "--bench", "freeze_window"], &[])
        }
    }
}

/// Both programs as they are shipped: the guest's static.
fn release() -> Result<()> {
    setup::cargo(&["build", "--quiet", "--release", "-p", "host-proxy"], &[])?;
    let built = setup::build_static("release", &["-p", "guest-agent"])?.join("hostsnap");
    let place = setup::folder().join("release");
    fs::create_dir_all(&place)?;
    for program in [built, setup::root().join("target/release/hostsnapd")] {
        let name = program.file_name().expect("a program has a name");
        let kept = place.join(name);
        // One that still runs can't be written to, but it can be replaced.
        let _ = fs::remove_file(&kept);
        fs::copy(&program, kept).with_context(|| format!("keep {}", program.display()))?;
    }
    Ok(())
}

/// The peer, unpacked and not installed: it is for the guests.
fn guest_agent_of_qemu() -> Result<()> {
    let place = setup::folder().join("qemu-ga");
    let program = place.join("root/usr/sbin/qemu-ga");
    if !program.exists() {
        debian::unpack("qemu-guest-agent", &place)?;
    }
    let listed = Command::new("ldd").arg(&program).output().context("list what qemu-ga needs")?;
    let listed = String::from_utf8_lossy(&listed.stdout).into_owned();
    ensure!(!listed.contains("not found"), "qemu-ga needs libraries that are missing here:\n{listed}");
    Ok(())
}
