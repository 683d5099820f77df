//! Volumes of LVM and ZFS. This machine's kernel may have neither, so they are measured in a virtual machine, by this program once
//! more; their pools lie in its memory.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::Result;
use harness::initramfs::Tools;
use harness::loopfs::run;
use harness::vm::Plan;
use harness::wait::wait_until;
use harness::within;

use crate::bed::name;
use crate::{Driver, Options};

/// A thousand snapshots of both twins, under emulation.
const LIMIT: Duration = Duration::from_secs(4 * 3600);
const MEMORY_MIB: u32 = 3072;
const POOL_BYTES: u64 = 1200 << 20;
/// Where the copy keeps its figures.
const OUT: &str = "/run/figures";

/// The figures of a driver that is measured in a machine, as they are kept; of another one none.
pub(crate) fn measured_within(driver: Driver, options: &Options) -> Result<Option<String>> {
    let tools = match driver {
        Driver::LvmThin => Tools::DeviceMapper,
        Driver::Zfs => Tools::Zfs,
        _ => return Ok(None),
    };
    if within::is_here() {
        return Ok(None);
    }
    let driver = driver.as_str();
    let plan = Plan::debian(&format!("bench-{driver}")).tools([tools]).memory_mib(MEMORY_MIB);
    let Options { runs, thousand, measured, restores, .. } = options;
    let measured = measured.map(|measured| format!(" --measured {measured}")).unwrap_or_default();
    let arguments = format!(
        "--driver {driver} --runs {runs} --thousand {thousand}{measured} --restores {restores} --out {OUT}"
    );
    let lines = within::program(plan, &arguments, &Path::new(OUT).join("figures.jsonl"), LIMIT);
    Ok(Some(lines))
}

/// A loop device on a file in memory.
struct Device {
    path: String,
    _folder: tempfile::TempDir,
}

impl Device {
    fn make() -> Result<Self> {
        let folder = tempfile::tempdir_in("/dev/shm")?;
        let image = folder.path().join("pool");
        File::create(&image)?.set_len(POOL_BYTES)?;
        let path = run(Command::new("losetup").args(["--find", "--show"]).arg(&image)).trim().to_owned();
        Ok(Self { path, _folder: folder })
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        let _ = Command::new("losetup").args(["-d", &self.path]).output();
    }
}

fn fill(device: &Path, bytes: u64) -> Result<()> {
    wait_until("the volume is there", Duration::from_secs(60), || device.exists());
    let file = File::options().write(true).open(device)?;
    file.write_all_at(&vec![1; usize::try_from(bytes)?], 0)?;
    Ok(file.sync_all()?)
}

const GROUP: &str = "bench";

/// A volume group with a thin pool; gone when dropped.
pub(crate) struct Group {
    _device: Device,
}

impl Group {
    pub(crate) fn make(bytes: u64) -> Result<Self> {
        let device = Device::make()?;
        let lvm = |arguments: &[&str]| run(Command::new("lvm").args(arguments));
        // The group's metadata is a text, with some lines for each snapshot.
        lvm(&["vgcreate", "-q", "--metadatasize", "64m", GROUP, &device.path]);
        let group = Self { _device: device };
        lvm(&[
            "lvcreate",
            "-q",
            "--type",
            "thin-pool",
            "-L",
            "900M",
            "--poolmetadatasize",
            "64M",
            "-n",
            "thin",
            GROUP,
        ]);
        for twin in [false, true] {
            let size = format!("{}b", bytes.max(4 << 20));
            lvm(&["lvcreate", "-q", "--thin", "-V", &size, "-n", name(twin), &group.pool()]);
            fill(&group.device(twin), bytes)?;
        }
        Ok(group)
    }

    pub(crate) fn vg(&self) -> &'static str {
        GROUP
    }

    pub(crate) fn pool(&self) -> String {
        format!("{GROUP}/thin")
    }

    pub(crate) fn device(&self, twin: bool) -> PathBuf {
        Path::new("/dev").join(GROUP).join(name(twin))
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let _ = Command::new("vgremove").args(["-q", "-f", GROUP]).output();
    }
}

const TANK: &str = "bench";

/// A pool of ZFS with two volumes; gone when dropped.
pub(crate) struct Tank {
    _device: Device,
}

impl Tank {
    pub(crate) fn make(bytes: u64) -> Result<Self> {
        let device = Device::make()?;
        run(Command::new("zpool").args(["create", "-m", "none", TANK, &device.path]));
        let tank = Self { _device: device };
        run(Command::new("zfs").args(["create", &tank.store()]));
        for twin in [false, true] {
            let size = bytes.to_string();
            run(Command::new("zfs").args(["create", "-s", "-V", &size, &tank.volume(twin)]));
            fill(&tank.device(twin), bytes)?;
        }
        Ok(tank)
    }

    pub(crate) fn pool(&self) -> &'static str {
        TANK
    }

    pub(crate) fn store(&self) -> String {
        format!("{TANK}/vms")
    }

    pub(crate) fn volume(&self, twin: bool) -> String {
        format!("{}/{}", self.store(), name(twin))
    }

    pub(crate) fn device(&self, twin: bool) -> PathBuf {
        Path::new("/dev/zvol").join(self.volume(twin))
    }
}

impl Drop for Tank {
    fn drop(&mut self) {
        let _ = Command::new("zpool").args(["destroy", "-f", TANK]).output();
    }
}
