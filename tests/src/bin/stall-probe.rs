//! What `cargo xtask bench` runs in its guests.
//!
//! - `stall-probe run FILE DIRTY_FILE DIRTY_MIB COMMAND…`: writes records to FILE, each one synced, and tells
//!   the longest time between two of them while COMMAND runs, beside that while nothing runs.
//! - `stall-probe floor MOUNT PORT`: what freezing a file system around a cut costs at least: nothing
//!   but the system calls and one round trip to the host.
//! - `stall-probe memory COMMAND…`: the peak memory of COMMAND, and of each process that it waited for, the
//!   largest of them. (busybox's `time -v` prints four times as much: it takes KiB for pages.)

use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use harness::records;
use nix::sys::resource::{UsageWho, getrusage};
use rustix::ioctl::{IntegerSetter, Opcode, ioctl, opcode};
use serde_json::{Value, json};

/// Records in the file; then from the beginning again, so that nothing is allocated.
const RING: u64 = 1024;
/// How many records must have been written before anything is measured.
const WARM: u64 = 50;
/// How long the undisturbed writer is watched.
const BASELINE: Duration = Duration::from_millis(300);
const EXPEDITED: &str = "/sys/kernel/rcu_expedited";
const FIFREEZE: Opcode = opcode::read_write::<i32>(b'X', 119);
const FITHAW: Opcode = opcode::read_write::<i32>(b'X', 120);

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let printed = match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["run", file, dirty_file, dirty_mib, program, ref rest @ ..] => {
            run(file, dirty_file, dirty_mib.parse()?, Command::new(program).args(rest))?
        }
        ["floor", mount, port] => floor(Path::new(mount), port.parse()?)?,
        ["memory", program, ref rest @ ..] => memory(Command::new(program).args(rest))?,
        _ => bail!("stall-probe run FILE DIRTY_FILE DIRTY_MIB COMMAND… | floor MOUNT PORT | memory COMMAND…"),
    };
    println!("{printed}");
    Ok(())
}

/// What the writer shares with who watches it.
struct Watch {
    clock: Instant,
    /// Records written.
    count: AtomicU64,
    /// Since when gaps count, in microseconds of the clock.
    since_us: AtomicU64,
    /// The longest gap since then, in microseconds.
    longest_us: AtomicU64,
    /// When it began, in microseconds of the clock.
    longest_at_us: AtomicU64,
}

impl Watch {
    fn now_us(&self) -> u64 {
        u64::try_from(self.clock.elapsed().as_micros()).unwrap_or(u64::MAX)
    }

    fn begin(&self) {
        self.since_us.store(self.now_us(), SeqCst);
        self.longest_us.store(0, SeqCst);
    }

    /// The longest gap since `begin`; one that is still open is waited for.
    fn end(&self) -> u64 {
        self.wait_for(self.count.load(SeqCst) + 1);
        self.longest_us.load(SeqCst)
    }

    fn wait_for(&self, count: u64) {
        while self.count.load(SeqCst) < count {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

fn write_for_ever(file: &File, watch: &Watch) -> std::io::Result<()> {
    let mut last_us = watch.now_us();
    for number in 0.. {
        file.write_all_at(&records::record(number), (number % RING) * records::RECORD as u64)?;
        file.sync_data()?;
        let now_us = watch.now_us();
        let from_us = last_us.max(watch.since_us.load(SeqCst));
        let gap_us = now_us.saturating_sub(from_us);
        if watch.longest_us.fetch_max(gap_us, SeqCst) < gap_us {
            watch.longest_at_us.store(from_us, SeqCst);
        }
        watch.count.fetch_add(1, SeqCst);
        last_us = now_us;
    }
    Ok(())
}

fn run(file: &str, dirty_file: &str, dirty_mib: usize, command: &mut Command) -> Result<Value> {
    let file = File::options().create(true).truncate(false).write(true).open(file)?;
    file.write_all_at(&vec![0; records::RECORD * RING as usize], 0)?;
    file.sync_all()?;
    let watch = Arc::new(Watch {
        clock: Instant::now(),
        count: AtomicU64::new(0),
        since_us: AtomicU64::new(0),
        longest_us: AtomicU64::new(0),
        longest_at_us: AtomicU64::new(0),
    });
    let writer = Arc::clone(&watch);
    std::thread::spawn(move || {
        // Else everybody would wait for its next record.
        let Err(error) = write_for_ever(&file, &writer) else { return };
        eprintln!("write records: {error}");
        std::process::exit(1);
    });
    watch.wait_for(WARM);
    watch.begin();
    std::thread::sleep(BASELINE);
    let base_us = watch.end();

    let block = vec![0x5a; 1 << 20];
    // Not truncated: ext4 writes back at the close of what was (`auto_da_alloc`, ext4(5)).
    let mut dirty = File::options().create(true).truncate(false).write(true).open(dirty_file)?;
    for _ in 0..dirty_mib {
        dirty.write_all(&block)?;
    }
    let dirty_kib = dirty_pages()?;
    ensure!(dirty_kib >= dirty_mib as u64 * 768, "of {dirty_mib} MiB only {dirty_kib} KiB are dirty");
    watch.begin();
    let began_us = watch.now_us();
    let output = command.stderr(Stdio::inherit()).output().context("run the command")?;
    let took_us = watch.now_us() - began_us;
    let stall_us = watch.end();
    let stall_at_us = watch.longest_at_us.load(SeqCst).saturating_sub(began_us);
    ensure!(output.status.success(), "the command: {}", output.status);
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    Ok(
        json!({ "base_us": base_us, "stall_us": stall_us, "stall_at_us": stall_at_us, "took_us": took_us, "said": said }),
    )
}

/// How much is to be written back, in KiB.
fn dirty_pages() -> Result<u64> {
    let text = std::fs::read_to_string("/proc/meminfo")?;
    let value = text.lines().find_map(|line| line.strip_prefix("Dirty:")).context("Dirty in meminfo")?;
    Ok(value.trim().trim_end_matches("kB").trim().parse()?)
}

fn memory(command: &mut Command) -> Result<Value> {
    let status = command.stdout(Stdio::null()).status().context("run the command")?;
    ensure!(status.success(), "the command: {status}");
    // KiB: getrusage(2).
    let peak_kib = getrusage(UsageWho::RUSAGE_CHILDREN)?.max_rss();
    Ok(json!({ "peak_kib": peak_kib }))
}

fn floor(mount: &Path, port: u32) -> Result<Value> {
    let mut host = vsock::VsockStream::connect_with_cid_port(vsock::VMADDR_CID_HOST, port)?;
    let file_system = File::open(mount)?;
    rustix::mm::mlockall(rustix::mm::MlockAllFlags::CURRENT | rustix::mm::MlockAllFlags::FUTURE)?;
    let began = Instant::now();
    rustix::fs::syncfs(&file_system)?;
    let flushed = Instant::now();
    std::fs::write(EXPEDITED, "1")?;
    let freezing = Instant::now();
    // SAFETY: the kernel ignores the argument (fs/ioctl.c, ioctl_fsfreeze).
    unsafe { ioctl(&file_system, IntegerSetter::<FIFREEZE>::new_usize(0)) }?;
    let frozen = Instant::now();
    let asked = host.write_all(b"c").and_then(|()| host.read_exact(&mut [0]));
    let cut = Instant::now();
    // SAFETY: as above.
    unsafe { ioctl(&file_system, IntegerSetter::<FITHAW>::new_usize(0)) }?;
    let thawed = Instant::now();
    std::fs::write(EXPEDITED, "0")?;
    asked?;
    let us = |from: Instant, to: Instant| u64::try_from((to - from).as_micros()).unwrap_or(u64::MAX);
    Ok(json!({ "timing": {
        "flush_us": us(began, flushed), "freeze_us": us(freezing, frozen), "cut_us": us(frozen, cut),
        "thaw_us": us(cut, thawed), "stall_us": us(freezing, thawed),
    } }))
}
