//! What `cargo xtask setup` made, under `target/vm`.

use std::path::{Path, PathBuf};

/// The folder of everything.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/vm")
}

/// One of it.
///
/// # Panics
/// When it is missing, with what to do.
pub fn asset(name: &str) -> PathBuf {
    let path = root().join(name);
    assert!(path.exists(), "{} is missing: run `cargo xtask setup`", path.display());
    path
}

/// The guests' kernel.
pub fn kernel() -> PathBuf {
    asset("kernel/vmlinuz")
}

/// The guests' modules, with `modules.dep`.
pub fn modules() -> PathBuf {
    asset("kernel/modules")
}

/// A static program for the guests.
pub fn guest_program(name: &str) -> PathBuf {
    asset("static").join(name)
}

/// A whole Debian with systemd and databases: the image of an ext4 file system.
pub fn debian() -> PathBuf {
    asset("debian/root.img")
}

/// The programs and libraries of OpenZFS, for a whole Debian. Not every machine can have it.
pub fn zfs() -> PathBuf {
    asset("zfs/programs")
}

/// What Debian's initramfs-tools give to hooks.
pub fn hook_functions() -> PathBuf {
    asset("initramfs-tools/root/usr/share/initramfs-tools/hook-functions")
}

/// The vsock device.
pub fn vhost_device_vsock() -> PathBuf {
    asset("tools/bin/vhost-device-vsock")
}
