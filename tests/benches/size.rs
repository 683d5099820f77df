//! What both programs weigh: the size of the guest's program, the peak memory of `hostsnap create` in a
//! real virtual machine, and the memory of a `hostsnapd` that waits. Reported beside what we set
//! ourselves; nothing is asserted. Run by `cargo xtask bench size`.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use harness::assets;
use harness::hostsnapd::{self, Hostsnapd, Machine};
use harness::vm::{Plan, blank_image};

fn main() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let image = blank_image(folder.path(), "data.img", 128);
    let program = assets::asset("release/hostsnap");
    let vm = Plan::new("size")
        .disk(&image, "data")
        .file(&program, "/usr/bin/hostsnap")
        .file(&assets::guest_program("stall-probe"), "/usr/bin/stall-probe")
        .boot();
    let machine = Machine { vm: &vm, name: "app", disks: vec![("data", &image)], more: "" };
    let config = hostsnapd::config("qemu", folder.path(), &[machine]);
    let service = Hostsnapd::start_program(assets::asset("release/hostsnapd"), &config);
    let idle = memory(service.pid(), "VmRSS")?;

    vm.guest.sh("mkfs.ext4 -q /dev/vda && mkdir -p /data && mount /dev/vda /data");
    let told = vm.guest.json("stall-probe memory hostsnap create /data");
    let peak = told["peak_kib"].as_u64().context("what was measured")?;

    println!("| what | is | goal |\n|---|---|---|");
    line("static guest program", fs::metadata(&program)?.len() / 1024, 4096);
    line("peak memory of hostsnap create", peak, 8192);
    line("hostsnapd, idle", idle, 16384);
    line("hostsnapd, at its peak with one snapshot", memory(service.pid(), "VmHWM")?, 16384);
    Ok(())
}

fn line(what: &str, kib: u64, goal_kib: u64) {
    println!("| {what} | {kib} KiB | {} MiB |", goal_kib / 1024);
}

/// A line of `/proc/PID/status`, in KiB.
fn memory(pid: u32, key: &str) -> Result<u64> {
    let text = fs::read_to_string(Path::new("/proc").join(pid.to_string()).join("status"))?;
    let value = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'));
    let value = value.with_context(|| format!("{key} of {pid}"))?;
    Ok(value.trim().trim_end_matches("kB").trim().parse()?)
}
