//! A machine with a data disk and a disk that stands for its root, the service, and qemu-ga in the
//! guest. The root matters: `guest-fsfreeze-freeze` freezes it as well.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use harness::assets;
use harness::hostsnapd::{self, Hostsnapd, Machine};
use harness::initramfs::Tools;
use harness::loopfs::{Kind, LoopFs};
use harness::vm::{Plan, Vm, blank_image};

use crate::{Driver, GuestFs};

/// Room for the records, the dirty pages and what btrfs needs beside them.
const DATA_MIB: u64 = 1280;
const ROOT_MIB: u64 = 256;
/// For the data disk and two copies of it.
const STORE_MIB: u64 = 4608;
/// So much that the kernel lets the dirty pages be: it begins to write back at a tenth of its memory
/// (`vm.dirty_background_ratio`).
const MEMORY_MIB: u32 = 3072;
/// By which qemu-ga is found (docs/interop/qemu-ga.rst).
pub(crate) const AGENT_PORT: &str = "org.qemu.guest_agent.0";

/// Everything that a measurement needs.
pub(crate) struct Stage {
    pub(crate) vm: Vm,
    pub(crate) driver: Driver,
    /// The data disk's image.
    pub(crate) image: PathBuf,
    // Dropped in this order: the service, then what it uses.
    _service: Hostsnapd,
    pub(crate) store: LoopFs,
}

impl Stage {
    /// Boots it; `/data` and `/root-disk` are mounted.
    pub(crate) fn set(driver: Driver, fs: GuestFs, parent: &Path) -> Result<Self> {
        let store = LoopFs::within(
            parent,
            match driver {
                Driver::Reflink => Kind::Xfs,
                Driver::Btrfs => Kind::Btrfs,
                Driver::Qemu => Kind::Ext4,
            },
            STORE_MIB,
        );
        let image = blank_image(&store.path(), "data.img", DATA_MIB);
        let root = blank_image(&store.path(), "root.img", ROOT_MIB);
        let vm = Plan::new(&format!("stall-{}-{}", fs.as_str(), driver.as_str()))
            .memory_mib(MEMORY_MIB)
            .disk(&image, "data")
            .disk(&root, "root")
            .tools([Tools::Xfs, Tools::Btrfs])
            .file(&assets::guest_program("stall-probe"), "/usr/bin/stall-probe")
            .file(&assets::asset("release/hostsnap"), "/usr/bin/hostsnap")
            .program(&assets::asset("qemu-ga/root/usr/sbin/qemu-ga"), "/usr/sbin/qemu-ga")
            .port(AGENT_PORT)
            .boot();
        let machine =
            Machine { vm: &vm, name: "app", disks: vec![("data", &image), ("root", &root)], more: "" };
        let config = hostsnapd::config(driver.as_str(), &store.path(), &[machine]);
        let service = Hostsnapd::start_program(assets::asset("release/hostsnapd"), &config);
        let force = if fs == GuestFs::Ext4 { "-q" } else { "-q -f" };
        vm.guest.sh(&format!(
            "mkfs.{0} {force} /dev/vda && mkdir -p /data && mount -t {0} /dev/vda /data && \
             mkfs.ext4 -q /dev/vdb && mkdir -p /root-disk && mount /dev/vdb /root-disk",
            fs.as_str()
        ));
        vm.guest.sh(&format!(
            "for p in /sys/class/virtio-ports/*; do grep -q {AGENT_PORT} $p/name && port=/dev/${{p##*/}}; done; \
             mkdir -p /run/qga && qemu-ga -d -m virtio-serial -p $port -t /run/qga -f /run/qga/pid -l /run/qga/log"
        ));
        Ok(Self { vm, driver, image, _service: service, store })
    }

    /// Connects to the second monitor.
    pub(crate) fn monitor(&self) -> Result<host_proxy::vmm::qmp::Qmp> {
        host_proxy::vmm::qmp::Qmp::connect(&self.vm.second_monitor(), crate::cut::LIMIT).context("reach QEMU")
    }
}
