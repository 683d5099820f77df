//! The three btrfs calls that the driver needs. Source: Linux `include/uapi/linux/btrfs.h`
//! (BTRFS_IOC_SNAP_DESTROY, BTRFS_IOC_SNAP_CREATE_V2, BTRFS_IOC_SUBVOL_CREATE_V2).
//!
//! Unsafe, because an ioctl's number decides how the kernel reads its argument; there is no
//! well-kept crate for these three.

use std::os::fd::{AsFd, AsRawFd};

use rustix::io::{Errno, Result};
use rustix::ioctl::{self, Setter, opcode};

const MAGIC: u8 = 0x94;
const READ_ONLY: u64 = 1 << 1;

/// `struct btrfs_ioctl_vol_args`
#[repr(C)]
struct Args {
    fd: i64,
    name: [u8; 4088],
}

/// `struct btrfs_ioctl_vol_args_v2`
#[repr(C)]
struct ArgsV2 {
    fd: i64,
    transid: u64,
    flags: u64,
    unused: [u64; 4],
    name: [u8; 4040],
}

const _: () = assert!(size_of::<Args>() == 4096 && size_of::<ArgsV2>() == 4096);

/// A name of at most 255 bytes; the rest stays zero, since the kernel wants a terminated string.
fn name_in<const N: usize>(name: &str) -> Result<[u8; N]> {
    let mut field = [0; N];
    let place = field.get_mut(..name.len()).filter(|_| name.len() <= 255);
    place.ok_or(Errno::NAMETOOLONG)?.copy_from_slice(name.as_bytes());
    Ok(field)
}

/// Snapshots the subvolume `source`, read-only, as `name` in the folder `parent`.
pub fn snapshot(parent: impl AsFd, name: &str, source: impl AsFd) -> Result<()> {
    let args = ArgsV2 {
        fd: source.as_fd().as_raw_fd().into(),
        transid: 0,
        flags: READ_ONLY,
        unused: [0; 4],
        name: name_in(name)?,
    };
    // SAFETY: BTRFS_IOC_SNAP_CREATE_V2 is _IOW(0x94, 23, btrfs_ioctl_vol_args_v2) and only reads
    // its argument; `source` is borrowed, so its descriptor stays open for the call.
    unsafe { ioctl::ioctl(parent, Setter::<{ opcode::write::<ArgsV2>(MAGIC, 23) }, ArgsV2>::new(args)) }
}

/// Makes an empty subvolume `name` in the folder `parent`.
pub fn create(parent: impl AsFd, name: &str) -> Result<()> {
    let args = ArgsV2 { fd: 0, transid: 0, flags: 0, unused: [0; 4], name: name_in(name)? };
    // SAFETY: BTRFS_IOC_SUBVOL_CREATE_V2 is _IOW(0x94, 24, btrfs_ioctl_vol_args_v2) and only reads
    // its argument.
    unsafe { ioctl::ioctl(parent, Setter::<{ opcode::write::<ArgsV2>(MAGIC, 24) }, ArgsV2>::new(args)) }
}

/// Removes the subvolume `name` of the folder `parent`.
pub fn destroy(parent: impl AsFd, name: &str) -> Result<()> {
    let args = Args { fd: 0, name: name_in(name)? };
    // SAFETY: BTRFS_IOC_SNAP_DESTROY is _IOW(0x94, 15, btrfs_ioctl_vol_args) and only reads its
    // argument.
    unsafe { ioctl::ioctl(parent, Setter::<{ opcode::write::<Args>(MAGIC, 15) }, Args>::new(args)) }
}
