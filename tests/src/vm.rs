//! A virtual machine: QEMU, its vsock device, its serial ports. Ended when dropped; its logs stay
//! under `target/vm/logs`.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::assets;
use crate::guest::Guest;
use crate::initramfs::{self, Tools};
use crate::link::Link;
use crate::loopfs::run;
use crate::monitor::Monitor;
use crate::platform::Accel;
use crate::process::Process;
use crate::wait::wait_until;

/// How long a guest may take to boot, under emulation on a busy machine.
const BOOT_LIMIT: Duration = Duration::from_secs(180);

pub(crate) const KERNEL_LINE: &str =
    "console=ttyS0 panic=-1 quiet loglevel=4 mitigations=off tsc=reliable no_timer_check";
const DEBIAN_MEMORY_MIB: u32 = 1024;
const DEBIAN_SERIAL: &str = "debian-root";

/// How a disk is attached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bus {
    /// virtio-blk.
    VirtioBlk,
    /// virtio-scsi.
    VirtioScsi,
    /// NVMe.
    Nvme,
}

/// A disk.
#[derive(Debug, Clone)]
pub struct Disk {
    /// What is behind it: QEMU's `-blockdev`, without the node's name.
    pub blockdev: String,
    /// By which guest and host know it.
    pub serial: String,
    /// How it is attached.
    pub bus: Bus,
}

/// What a virtual machine is to be.
#[derive(Debug, Clone)]
pub struct Plan {
    name: String,
    memory_mib: u32,
    disks: Vec<Disk>,
    tools: BTreeSet<Tools>,
    extra: Vec<(PathBuf, String)>,
    programs: Vec<(PathBuf, String)>,
    ports: Vec<String>,
    slots: usize,
    takes_scsi: bool,
    uuid: String,
    root: Root,
}

/// What it runs.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Root {
    /// `guest-init` and busybox, all in memory.
    Initramfs,
    /// A whole Debian: its changes go to a throwaway overlay.
    Debian,
    /// A whole Debian that was copied to this disk of the plan, by its serial.
    DebianOn(String),
}

/// A running virtual machine.
pub struct Vm {
    // Dropped in this order: first what uses the folder.
    qemu: Process,
    /// Its vsock device.
    pub link: Link,
    /// To run commands in it.
    pub guest: Guest,
    folder: tempfile::TempDir,
    uuid: String,
}

impl Plan {
    /// A machine without disks. Its name is for the logs.
    pub fn new(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            memory_mib: 512,
            disks: Vec::new(),
            tools: BTreeSet::new(),
            extra: Vec::new(),
            programs: Vec::new(),
            ports: Vec::new(),
            slots: 0,
            takes_scsi: false,
            uuid: format!("5f0b6f3e-8f0c-4c6e-9a55-{:012x}", crc32fast::hash(name.as_bytes())),
            root: Root::Initramfs,
        }
    }

    /// As `new`, with a whole Debian: systemd, databases, `apt`'s usual programs. What the guest does to its
    /// root file system is thrown away. Data disks are named from `/dev/vda` on: the root is the last.
    pub fn debian(name: &str) -> Self {
        Self { root: Root::Debian, memory_mib: DEBIAN_MEMORY_MIB, ..Self::new(name) }
    }

    /// As `debian`, from this image, a copy of [`assets::debian`]: a disk as any other, which can be snapshotted.
    pub fn debian_on(name: &str, image: &Path, serial: &str) -> Self {
        let root = Root::DebianOn(serial.to_owned());
        Self { root, memory_mib: DEBIAN_MEMORY_MIB, ..Self::new(name) }.disk(image, serial)
    }

    /// With a disk.
    #[must_use]
    pub fn disk(self, path: &Path, serial: &str) -> Self {
        let layout = layout(path);
        self.blockdev(&format!("driver={layout},file.driver=file,file.filename={}", path.display()), serial)
    }

    /// With a disk that QEMU opens so, as a `-blockdev` without the node's name.
    #[must_use]
    pub fn blockdev(mut self, blockdev: &str, serial: &str) -> Self {
        let disk = Disk { blockdev: blockdev.to_owned(), serial: serial.to_owned(), bus: Bus::VirtioBlk };
        self.disks.push(disk);
        self
    }

    /// With a disk on another bus.
    #[must_use]
    pub fn disk_on(mut self, path: &Path, serial: &str, bus: Bus) -> Self {
        self = self.disk(path, serial);
        self.disks.last_mut().expect("just pushed").bus = bus;
        self
    }

    /// With programs and modules.
    #[must_use]
    pub fn tools(mut self, tools: impl IntoIterator<Item = Tools>) -> Self {
        self.tools.extend(tools);
        self
    }

    /// With a file of this machine.
    #[must_use]
    pub fn file(mut self, from: &Path, to: &str) -> Self {
        self.extra.push((from.to_owned(), to.to_owned()));
        self
    }

    /// With a program of this machine and the libraries that it needs.
    #[must_use]
    pub fn program(mut self, from: &Path, to: &str) -> Self {
        self.programs.push((from.to_owned(), to.to_owned()));
        self
    }

    /// With one more virtio serial port of this name, for somebody else than the harness.
    #[must_use]
    pub fn port(mut self, name: &str) -> Self {
        self.ports.push(name.to_owned());
        self
    }

    /// With so many PCIe slots into which a disk can be plugged while it runs.
    #[must_use]
    pub fn slots(mut self, slots: usize) -> Self {
        self.slots = slots;
        self
    }

    /// With a SCSI controller that takes disks while it runs.
    #[must_use]
    pub fn takes_scsi(mut self) -> Self {
        self.takes_scsi = true;
        self
    }

    /// With so much memory.
    #[must_use]
    pub fn memory_mib(mut self, mib: u32) -> Self {
        self.memory_mib = mib;
        self
    }

    /// Boots it.
    ///
    /// # Panics
    /// When it does not come up, with what it printed.
    pub fn boot(self) -> Vm {
        // Unix sockets have short paths (108 bytes, unix(7)).
        let folder = tempfile::Builder::new().prefix("hs-").tempdir_in("/tmp").expect("a folder");
        let at = |name: &str| folder.path().join(name);
        let logs = assets::root().join("logs").join(&self.name);
        let _ = fs::remove_dir_all(&logs);
        fs::create_dir_all(&logs).expect("a folder for logs");
        let initramfs = initramfs::of(&self.tools, &self.extra, &self.programs).expect("an initramfs");

        let link = Link::start(folder.path(), &logs);
        let memory = self.memory_mib;
        let mut kernel_line = KERNEL_LINE.to_owned();
        let root = match &self.root {
            Root::Initramfs => None,
            Root::Debian => Some(DEBIAN_SERIAL),
            Root::DebianOn(serial) => Some(serial.as_str()),
        };
        if let Some(serial) = root {
            kernel_line += &format!(" {}={serial}", crate::serial::DEBIAN_ROOT);
        }
        let mut command = Command::new("qemu-system-x86_64");
        command
            .args(["-nodefaults", "-no-user-config", "-nographic", "-no-reboot", "-nic", "none"])
            .args(Accel::of_this_machine().arguments())
            .args(["-smp", "1", "-uuid", &self.uuid])
            .arg("-m")
            .arg(format!("{memory}M"))
            .args(["-machine", "q35,memory-backend=mem"])
            .arg("-object")
            .arg(format!("memory-backend-memfd,id=mem,size={memory}M,share=on"))
            .arg("-kernel")
            .arg(assets::kernel())
            .arg("-initrd")
            .arg(&initramfs)
            .args(["-append", &kernel_line])
            .arg("-serial")
            .arg(format!("file:{}", logs.join("serial.log").display()))
            .args(link.arguments(folder.path()))
            .args(["-device", "virtio-serial-pci"])
            .arg("-chardev")
            .arg(format!("socket,id=harness,path={},server=on,wait=off", at("harness").display()))
            .arg("-device")
            .arg(format!("virtserialport,chardev=harness,name={}", crate::serial::PORT));
        for name in &self.ports {
            command
                .arg("-chardev")
                .arg(format!("socket,id={name},path={},server=on,wait=off", at(name).display()));
            command.arg("-device").arg(format!("virtserialport,chardev={name},name={name}"));
        }
        for name in ["qmp", "qmp-harness"] {
            command.arg("-qmp").arg(format!("unix:{},server=on,wait=off", at(name).display()));
        }
        for slot in 1..=self.slots {
            command.arg("-device").arg(format!("pcie-root-port,id=slot{slot},chassis={slot},slot={slot}"));
        }
        if self.takes_scsi {
            command.args(["-device", "virtio-scsi-pci,id=hotscsi"]);
        }
        for (index, disk) in self.disks.iter().enumerate() {
            attach(&mut command, index, disk);
        }
        if self.root == Root::Debian {
            attach_debian(&mut command, &at("root.qcow2"));
        }
        let mut qemu = Process::start(&mut command, &logs.join("qemu.log"));
        let serial_log = logs.join("serial.log");
        let limit = Instant::now() + BOOT_LIMIT;
        let stream = loop {
            qemu.must_live();
            match UnixStream::connect(at("harness")) {
                Ok(stream) => break stream,
                Err(_) if Instant::now() < limit => std::thread::sleep(Duration::from_millis(20)),
                Err(error) => panic!("reach the guest's serial port: {error}"),
            }
        };
        let guest = Guest::over(stream);
        while guest.boots() == 0 {
            qemu.must_live();
            assert!(Instant::now() < limit, "{} did not boot:\n{}", self.name, tail(&serial_log));
            std::thread::sleep(Duration::from_millis(20));
        }
        Vm { qemu, link, guest, folder, uuid: self.uuid }
    }
}

fn attach(command: &mut Command, index: usize, disk: &Disk) {
    let Disk { blockdev, serial, bus } = disk;
    command.arg("-blockdev").arg(format!("{blockdev},node-name=disk{index}"));
    match bus {
        Bus::VirtioBlk => command
            .arg("-device")
            .arg(format!("virtio-blk-pci,drive=disk{index},serial={serial},id=dev{index}")),
        Bus::VirtioScsi => command
            .arg("-device")
            .arg(format!("virtio-scsi-pci,id=scsi{index}"))
            .arg("-device")
            .arg(format!("scsi-hd,bus=scsi{index}.0,drive=disk{index},serial={serial},id=dev{index}")),
        Bus::Nvme => {
            command.arg("-device").arg(format!("nvme,drive=disk{index},serial={serial},id=dev{index}"))
        }
    };
}

/// How the bytes of an image lie in its file: its name says so.
pub fn layout(image: &Path) -> &'static str {
    if image.extension().is_some_and(|extension| extension == "qcow2") { "qcow2" } else { "raw" }
}

/// The image is shared by all tests: what is written goes to an overlay, which may be lost with the machine.
fn attach_debian(command: &mut Command, overlay: &Path) {
    run(Command::new("qemu-img")
        .args(["create", "-q", "-f", "qcow2", "-F", "raw", "-b"])
        .arg(assets::debian().canonicalize().expect("it exists"))
        .arg(overlay));
    command
        .arg("-blockdev")
        .arg(format!(
            "driver=qcow2,node-name=root,cache.no-flush=on,file.driver=file,file.filename={}",
            overlay.display()
        ))
        .arg("-device")
        .arg(format!("virtio-blk-pci,drive=root,serial={DEBIAN_SERIAL}"));
}

impl Vm {
    /// Its UUID.
    pub fn uuid(&self) -> &str {
        &self.uuid
    }

    /// Its QMP socket, for the product.
    pub fn qmp(&self) -> PathBuf {
        self.folder.path().join("qmp")
    }

    /// A QMP socket beside it, for tests and benchmarks.
    pub fn second_monitor(&self) -> PathBuf {
        self.folder.path().join("qmp-harness")
    }

    /// This machine's end of a serial port that was planned.
    pub fn port(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Panics if QEMU has ended.
    pub fn must_live(&mut self) {
        self.qemu.must_live();
    }

    /// Presses its reset button and waits until it is up again. What ran in it never ends.
    ///
    /// # Panics
    /// When it does not come up.
    pub fn reset(&mut self) {
        self.boots_again(|vm| {
            Monitor::at(&vm.second_monitor()).ask("system_reset", json!({}));
        });
    }

    /// Lets its systemd end everything and boot it again, and waits until it is up.
    ///
    /// # Panics
    /// When it does not come up.
    pub fn reboot(&mut self) {
        self.boots_again(|vm| {
            vm.guest.spawn("exec systemctl reboot");
        });
    }

    fn boots_again(&mut self, by: impl FnOnce(&Self)) {
        let boots = self.guest.boots();
        // It was started so that a reset ends it: that is how a panic of its kernel is noticed.
        Monitor::at(&self.second_monitor()).ask("set-action", json!({ "reboot": "reset" }));
        by(self);
        wait_until("it is up again", BOOT_LIMIT, || {
            self.qemu.must_live();
            self.guest.boots() > boots
        });
    }

    /// Ends QEMU as a crash of it would.
    pub fn kill(&mut self) {
        self.qemu.kill();
    }
}

fn tail(path: &Path) -> String {
    let text = String::from_utf8_lossy(&fs::read(path).unwrap_or_default()).into_owned();
    let lines: Vec<_> = text.lines().collect();
    lines[lines.len().saturating_sub(40)..].join("\n")
}

/// An image of zeros, sparse.
///
/// # Panics
/// When it can't be made.
pub fn blank_image(folder: &Path, name: &str, mib: u64) -> PathBuf {
    let path = folder.join(name);
    if layout(&path) == "qcow2" {
        let mut create = Command::new("qemu-img");
        create.args(["create", "-q", "-f", "qcow2"]).arg(&path).arg(format!("{mib}M"));
        assert!(create.status().expect("qemu-img").success(), "{} was not made", path.display());
        return path;
    }
    let file = fs::File::create(&path).expect("an image");
    file.set_len(mib << 20).expect("an image's size");
    path
}
