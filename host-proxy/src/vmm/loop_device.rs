//! A file as a block device, for those who open what they use by its path, as another user, and can't reach the
//! file. The device is gone with the last who has it open: whoever is killed leaves none.
//!
//! Source: Linux `include/uapi/linux/loop.h` (LOOP_CTL_GET_FREE, LOOP_CONFIGURE, since Linux 5.8). Unsafe, because an
//! ioctl's number decides how the kernel reads its argument; util-linux's losetup can't make a device that clears
//! itself.

use std::ffi::c_void;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

use rustix::io::Errno;
use rustix::ioctl::{self, Ioctl, IoctlOutput, Opcode, Setter};

const GET_FREE: Opcode = 0x4c82;
const CONFIGURE: Opcode = 0x4c0a;
const READ_ONLY: u32 = 1;
const AUTOCLEAR: u32 = 4;
/// Others take devices too, between our asking for a free one and our taking it.
const ATTEMPTS: usize = 64;

/// `struct loop_info64`
#[repr(C)]
struct Info {
    device: u64,
    inode: u64,
    rdevice: u64,
    offset: u64,
    size_limit: u64,
    number: u32,
    encrypt_type: u32,
    encrypt_key_size: u32,
    flags: u32,
    file_name: [u8; 64],
    crypt_name: [u8; 64],
    encrypt_key: [u8; 32],
    init: [u64; 2],
}

/// `struct loop_config`
#[repr(C)]
struct Config {
    fd: u32,
    block_size: u32,
    info: Info,
    reserved: [u64; 8],
}

const _: () = assert!(size_of::<Info>() == 232 && size_of::<Config>() == 304);

/// The number of a free device is what the call itself gives.
struct GetFree;

// SAFETY: LOOP_CTL_GET_FREE takes no argument and changes no memory of ours.
unsafe impl Ioctl for GetFree {
    type Output = i32;
    const IS_MUTATING: bool = false;

    fn opcode(&self) -> Opcode {
        GET_FREE
    }

    fn as_ptr(&mut self) -> *mut c_void {
        std::ptr::null_mut()
    }

    unsafe fn output_from_ptr(number: IoctlOutput, _: *mut c_void) -> rustix::io::Result<i32> {
        Ok(number)
    }
}

/// A device, as long as this or somebody else has it open.
pub(super) struct LoopDevice {
    path: PathBuf,
    _open: File,
}

impl LoopDevice {
    /// A file, read-only.
    pub(super) fn read_only(file: &File) -> io::Result<Self> {
        Self::over(file, READ_ONLY)
    }

    /// A file that is open for writing.
    pub(super) fn writable(file: &File) -> io::Result<Self> {
        Self::over(file, 0)
    }

    fn over(file: &File, flags: u32) -> io::Result<Self> {
        let control = File::open("/dev/loop-control")?;
        for _ in 0..ATTEMPTS {
            // SAFETY: `control` is the loop driver's control device, whose call this is.
            let number = unsafe { ioctl::ioctl(&control, GetFree) }?;
            let path = PathBuf::from(format!("/dev/loop{number}"));
            // A device that is opened for reading is read-only, whatever its flags say.
            let open = File::options().read(true).write(flags & READ_ONLY == 0).open(&path)?;
            let info = Info {
                device: 0,
                inode: 0,
                rdevice: 0,
                offset: 0,
                size_limit: 0,
                number: 0,
                encrypt_type: 0,
                encrypt_key_size: 0,
                flags: flags | AUTOCLEAR,
                file_name: [0; 64],
                crypt_name: [0; 64],
                encrypt_key: [0; 32],
                init: [0; 2],
            };
            let fd = u32::try_from(file.as_raw_fd()).expect("a descriptor is not negative");
            let config = Config { fd, block_size: 0, info, reserved: [0; 8] };
            // SAFETY: LOOP_CONFIGURE only reads its argument, a `struct loop_config`; `file` is borrowed, so its
            // descriptor stays open for the call.
            match unsafe { ioctl::ioctl(&open, Setter::<CONFIGURE, Config>::new(config)) } {
                Ok(()) => return Ok(Self { path, _open: open }),
                Err(Errno::BUSY) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Err(Errno::BUSY.into())
    }

    /// Where it is.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::unix::fs::FileExt;

    use harness::wait::wait_until;

    use super::*;

    #[test]
    fn a_file_is_a_device_as_long_as_somebody_has_it_open() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&[7; 4096]).unwrap();
        let device = LoopDevice::read_only(&file).unwrap();
        let path = device.path().to_owned();
        let mut other = File::open(&path).unwrap();
        drop(device);
        let mut read = Vec::new();
        other.read_to_end(&mut read).unwrap();
        assert_eq!(read, [7; 4096]);
        // Some kernels refuse the open, others the write.
        let written = File::options().write(true).open(&path).and_then(|mut device| {
            device.write_all(&[1; 4096])?;
            device.sync_all()
        });
        assert!(written.is_err());
        let mut unchanged = [0; 4096];
        file.read_exact_at(&mut unchanged, 0).unwrap();
        assert_eq!(unchanged, [7; 4096]);
        drop(other);
        is_free(&path);

        let device = LoopDevice::writable(&file).unwrap();
        let other = File::options().write(true).open(device.path()).unwrap();
        other.write_all_at(&[9; 4096], 0).unwrap();
        other.sync_all().unwrap();
        file.read_exact_at(&mut unchanged, 0).unwrap();
        assert_eq!(unchanged, [9; 4096]);
        let path = device.path().to_owned();
        drop((device, other));
        is_free(&path);
    }

    fn is_free(path: &Path) {
        let backing = Path::new("/sys/block").join(path.file_name().unwrap()).join("loop/backing_file");
        wait_until("the device is free", std::time::Duration::from_secs(10), || !backing.exists());
    }
}
