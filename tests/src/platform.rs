//! What this machine can give a guest, tried once: a KVM that really runs a kernel, a vsock device of
//! the kernel's own. Where one does not work, emulation and a device in a process do the same, slower.

use std::fs::{self, File};
use std::process::Command;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use crate::assets;
use crate::process::Process;

/// How long a kernel may take under KVM until it finds that it has no root file system: about a
/// second where KVM works. Where it hangs, this is what the trial costs, once.
const KVM_LIMIT: Duration = Duration::from_secs(40);

/// Who runs the guest's instructions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Accel {
    /// The processor.
    Kvm,
    /// QEMU.
    Tcg,
}

/// Who is the guest's vsock device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum VsockDevice {
    /// vhost-vsock: the guest has a CID on this machine.
    Kernel,
    /// vhost-device-vsock: the guest is reached by a Unix socket.
    Process,
}

impl Accel {
    /// What works here.
    pub fn of_this_machine() -> Self {
        static FOUND: OnceLock<Accel> = OnceLock::new();
        *FOUND.get_or_init(|| match File::options().read(true).write(true).open("/dev/kvm") {
            Ok(_) => remembered(),
            Err(_) => Self::Tcg,
        })
    }

    /// What QEMU is told.
    pub const fn arguments(self) -> [&'static str; 4] {
        match self {
            Self::Kvm => ["-accel", "kvm", "-cpu", "host"],
            Self::Tcg => ["-accel", "tcg,thread=multi", "-cpu", "max"],
        }
    }
}

impl VsockDevice {
    /// What works here: to have the kernel's, the port of the product must be free too.
    pub fn of_this_machine() -> Self {
        static FOUND: OnceLock<VsockDevice> = OnceLock::new();
        *FOUND.get_or_init(|| {
            let there = File::options().read(true).write(true).open("/dev/vhost-vsock").is_ok();
            let free =
                || vsock::VsockListener::bind_with_cid_port(vsock::VMADDR_CID_ANY, protocol::PORT).is_ok();
            if there && free() { Self::Kernel } else { Self::Process }
        })
    }
}

/// The trial's result, kept until the machine boots again.
fn remembered() -> Accel {
    let place = assets::root().join("accel");
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    let line = |accel: Accel| format!("{} {accel:?}", boot.trim());
    let known = fs::read_to_string(&place).unwrap_or_default();
    if let Some(accel) = [Accel::Kvm, Accel::Tcg].into_iter().find(|accel| known == line(*accel)) {
        return accel;
    }
    let accel = if kvm_boots_a_kernel() { Accel::Kvm } else { Accel::Tcg };
    let _ = fs::write(place, line(accel));
    accel
}

/// `/dev/kvm` may open and still run no stock kernel. One without a root file system ends in a panic
/// that it prints: then it ran.
fn kvm_boots_a_kernel() -> bool {
    let folder = tempfile::tempdir().expect("a folder");
    let serial = folder.path().join("serial");
    let mut qemu = Process::start(
        Command::new("qemu-system-x86_64")
            .args([
                "-nodefaults",
                "-no-user-config",
                "-nographic",
                "-no-reboot",
                "-nic",
                "none",
                "-m",
                "256M",
            ])
            .args(["-machine", "q35", "-append", "console=ttyS0 panic=-1 quiet"])
            .args(Accel::Kvm.arguments())
            .arg("-kernel")
            .arg(assets::kernel())
            .arg("-serial")
            .arg(format!("file:{}", serial.display())),
        &folder.path().join("log"),
    );
    let limit = Instant::now() + KVM_LIMIT;
    while Instant::now() < limit && qemu.ended().is_none() {
        std::thread::sleep(Duration::from_millis(50));
    }
    let printed = fs::read(&serial).unwrap_or_default();
    String::from_utf8_lossy(&printed).contains("Kernel panic")
}
