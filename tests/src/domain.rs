//! A virtual machine that libvirt runs, with a guest of ours in it.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use crate::assets;
use crate::guest::Guest;
use crate::initramfs;
use crate::libvirt::Libvirtd;
use crate::link::Link;
use crate::vm::KERNEL_LINE;
use crate::wait::wait_until;

/// What its kernel says.
const SERIAL_LOG: &str = "serial.log";
/// How long a guest may take to boot, under emulation on a busy machine.
const BOOT_LIMIT: Duration = Duration::from_secs(180);
/// Ports into which a disk can be plugged, beside those that libvirt itself uses.
const PORTS: usize = 12;

/// A running domain.
pub struct Domain {
    /// To run commands in it.
    pub guest: Guest,
    /// Its vsock device.
    pub link: Link,
    _folder: tempfile::TempDir,
}

impl Domain {
    /// Defines and starts one with these disks, by image and serial, and waits until it is up.
    ///
    /// # Panics
    /// When it does not come up.
    pub fn boot(libvirtd: &Libvirtd, name: &str, uuid: &str, disks: &[(&Path, &str)]) -> Self {
        let folder = tempfile::Builder::new().prefix("hsg-").tempdir_in("/tmp").expect("a folder");
        // libvirt's QEMU is another user's: it makes sockets there.
        open_to_all(folder.path());
        let initramfs = initramfs::of(&BTreeSet::new(), &[], &[]).expect("an initramfs");
        // libvirt gives them to that user: copies.
        for (from, to) in [(&assets::kernel(), "kernel"), (&initramfs, "initramfs")] {
            fs::copy(from, folder.path().join(to)).expect("a copy");
        }
        fs::write(folder.path().join(SERIAL_LOG), "").expect("a file");
        let link = Link::start(folder.path(), folder.path());
        for entry in fs::read_dir(folder.path()).expect("a folder").flatten() {
            open_to_all(&entry.path());
        }
        libvirtd.define(&xml(name, uuid, disks, folder.path(), &link));
        libvirtd.must(&["start", name]);
        let stream = UnixStream::connect(folder.path().join("harness")).expect("the guest's serial port");
        let guest = Guest::over(stream);
        wait_until(&format!("{name} is up"), BOOT_LIMIT, || {
            assert_eq!(libvirtd.must(&["domstate", name]), "running");
            guest.boots() > 0
        });
        Self { guest, link, _folder: folder }
    }
}

fn xml(name: &str, uuid: &str, disks: &[(&Path, &str)], folder: &Path, link: &Link) -> String {
    let at = |name: &str| folder.join(name).display().to_string();
    let disk = |(index, (image, serial)): (usize, &(&Path, &str))| {
        let letter = char::from(b'a' + u8::try_from(index).expect("few disks"));
        format!(
            "<disk type='file' device='disk'><driver name='qemu' type='raw'/><source file='{}'/>\
             <target dev='vd{letter}' bus='virtio'/><serial>{serial}</serial></disk>",
            image.display()
        )
    };
    let disks: String = disks.iter().enumerate().map(disk).collect();
    let ports = "<controller type='pci' model='pcie-root-port'/>".repeat(PORTS);
    let (vsock, arguments) = match link {
        Link::Kernel(cid) => {
            (format!("<vsock model='virtio'><cid auto='no' address='{cid}'/></vsock>"), String::new())
        }
        Link::Hybrid { .. } => {
            let arguments = link.arguments(folder).into_iter();
            // A slot that libvirt, which does not know of it, gives to nothing else.
            let placed = |word: String| match word.starts_with("vhost-user-vsock-pci") {
                true => format!("<qemu:arg value='{word},bus=pcie.0,addr=0x1e'/>"),
                false => format!("<qemu:arg value='{word}'/>"),
            };
            (String::new(), arguments.map(placed).collect())
        }
    };
    format!(
        "<domain type='qemu' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>\
         <name>{name}</name><uuid>{uuid}</uuid><memory unit='MiB'>512</memory><vcpu>1</vcpu>\
         <memoryBacking><source type='memfd'/><access mode='shared'/></memoryBacking>\
         <os><type arch='x86_64' machine='q35'>hvm</type><kernel>{kernel}</kernel><initrd>{initrd}</initrd>\
         <cmdline>{KERNEL_LINE}</cmdline></os><features><acpi/></features><cpu mode='maximum'/><devices>\
         <emulator>/usr/bin/qemu-system-x86_64</emulator>{disks}<controller type='pci' model='pcie-root'/>{ports}\
         <controller type='usb' model='none'/><memballoon model='none'/>\
         <serial type='file'><source path='{serial}'/><target port='0'/></serial>\
         <channel type='unix'><source mode='bind' path='{channel}'/>\
         <target type='virtio' name='{port}'/></channel>{vsock}</devices>\
         <qemu:commandline>{arguments}</qemu:commandline></domain>",
        kernel = at("kernel"),
        initrd = at("initramfs"),
        serial = at(SERIAL_LOG),
        channel = at("harness"),
        port = crate::serial::PORT,
    )
}

fn open_to_all(path: &Path) {
    use std::os::unix::fs::PermissionsExt;
    fs::set_permissions(path, fs::Permissions::from_mode(0o777)).expect("a mode");
}
