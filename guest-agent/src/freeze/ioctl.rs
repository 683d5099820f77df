//! The two calls. Unsafe, because an ioctl's number decides how the kernel reads its argument;
//! rustix has no safe wrapper for these.

use std::os::fd::AsFd;

use rustix::io::Result;
use rustix::ioctl::{self, IntegerSetter, opcode};

/// Linux `include/uapi/linux/fs.h`: `_IOWR('X', 119, int)`.
const FIFREEZE: ioctl::Opcode = opcode::read_write::<i32>(b'X', 119);
/// Linux `include/uapi/linux/fs.h`: `_IOWR('X', 120, int)`.
const FITHAW: ioctl::Opcode = opcode::read_write::<i32>(b'X', 120);

/// Freezes the file system of an open file or folder. EBUSY if it is frozen already, EOPNOTSUPP if
/// it can't be. Waits for dirty pages to be written; can't be interrupted.
pub(super) fn freeze(file: impl AsFd) -> Result<()> {
    // SAFETY: the kernel ignores the argument of FIFREEZE (fs/ioctl.c, ioctl_fsfreeze).
    unsafe { ioctl::ioctl(file, IntegerSetter::<FIFREEZE>::new_usize(0)) }
}

/// Thaws it. EINVAL if it is not frozen.
pub(super) fn thaw(file: impl AsFd) -> Result<()> {
    // SAFETY: the kernel ignores the argument of FITHAW (fs/ioctl.c, ioctl_fsthaw).
    unsafe { ioctl::ioctl(file, IntegerSetter::<FITHAW>::new_usize(0)) }
}
