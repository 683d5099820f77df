//! The device mapper's ioctls, byte by byte (Linux `include/uapi/linux/dm-ioctl.h`).

use std::fs::File;
use std::io;

use rustix::ioctl::{self, Updater, opcode};

/// A target of a table: start, length, kind, parameters.
pub(super) type Line = (u64, u64, &'static str, String);

const CONTROL: &str = "/dev/mapper/control";
const HEADER: usize = 312;
const SIZE: usize = 32 << 10;
/// Bytes of a target before its parameters: start, length, status, next, kind.
const TARGET: usize = 40;
const NAME: usize = 48;
/// The longest name, without the zero at its end.
pub(super) const LONGEST_NAME: usize = 127;
const FLAGS: usize = 28;
/// The flag by which what is made can't be written to.
pub(super) const READ_ONLY: u32 = 1;

/// A request: its header has the size of `struct dm_ioctl`, which the ioctl's number names; what follows is as long
/// as `data_size` says.
#[repr(C, align(8))]
pub(super) struct Request([u8; SIZE]);

const fn number(command: u8) -> ioctl::Opcode {
    opcode::read_write::<[u8; HEADER]>(0xfd, command)
}

pub(super) const CREATE: ioctl::Opcode = number(3);
pub(super) const REMOVE: ioctl::Opcode = number(4);
pub(super) const SUSPEND: ioctl::Opcode = number(6);
pub(super) const STATUS: ioctl::Opcode = number(7);
pub(super) const LOAD: ioctl::Opcode = number(9);

pub(super) fn control() -> io::Result<File> {
    File::options().read(true).write(true).open(CONTROL)
}

pub(super) fn call<const NUMBER: ioctl::Opcode>(control: &File, request: &mut Request) -> io::Result<()> {
    // SAFETY: the kernel reads and writes at most `data_size` bytes (drivers/md/dm-ioctl.c, copy_params and
    // ctl_ioctl), which `Request::new` sets to the size of the buffer. Every byte of it is initialised, and any bytes
    // are valid in it. There is no safe wrapper for these calls.
    Ok(unsafe { ioctl::ioctl(control, Updater::<NUMBER, Request>::new(request)) }?)
}

impl Request {
    pub(super) fn new(name: &str, flags: u32) -> Box<Self> {
        let mut request = Box::new(Self([0; SIZE]));
        let header = &mut request.0;
        let mut put = |at: usize, value: u32| header[at..at + 4].copy_from_slice(&value.to_ne_bytes());
        // Version 4.0.0 of the interface.
        put(0, 4);
        put(12, u32::try_from(SIZE).expect("32 KiB"));
        put(16, u32::try_from(HEADER).expect("a few hundred"));
        put(FLAGS, flags);
        let name = &name.as_bytes()[..name.len().min(LONGEST_NAME)];
        header[NAME..NAME + name.len()].copy_from_slice(name);
        request
    }

    /// With a table.
    pub(super) fn with(mut self: Box<Self>, table: &[Line]) -> io::Result<Box<Self>> {
        let mut at = HEADER;
        for (start, sectors, kind, parameters) in table {
            // The text ends with a zero, and the next target begins on a boundary of eight.
            let length = (TARGET + parameters.len() + 1).next_multiple_of(8);
            let Some(target) = self.0.get_mut(at..at + length) else {
                return Err(io::Error::other(
                    "it is in more pieces than fit into a table of the device mapper",
                ));
            };
            target[..8].copy_from_slice(&start.to_ne_bytes());
            target[8..16].copy_from_slice(&sectors.to_ne_bytes());
            target[20..24].copy_from_slice(&u32::try_from(length).expect("it fits").to_ne_bytes());
            target[24..24 + kind.len()].copy_from_slice(kind.as_bytes());
            target[TARGET..TARGET + parameters.len()].copy_from_slice(parameters.as_bytes());
            at += length;
        }
        let count = u32::try_from(table.len()).expect("they fit into the request");
        self.0[20..24].copy_from_slice(&count.to_ne_bytes());
        Ok(self)
    }

    /// Of the device, which the kernel wrote as `huge_encode_dev` does (Linux `include/linux/kdev_t.h`).
    pub(super) fn minor(&self) -> u32 {
        let dev = u64::from_ne_bytes(self.0[40..48].try_into().expect("eight bytes"));
        u32::try_from((dev & 0xff) | ((dev >> 12) & 0xf_ff00)).expect("twenty bits")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_laid_out_as_the_kernel_wants_it() {
        let table = [
            (0, 8, "linear", "254:0 2048".to_owned()),
            (8, 16, "striped", "2 8 254:0 0 254:16 0".to_owned()),
        ];
        let request = Request::new("hostsnap-x", READ_ONLY).with(&table).unwrap();
        assert_eq!(&request.0[NAME..NAME + 11], b"hostsnap-x\0");
        assert_eq!((request.0[0], request.0[20], request.0[FLAGS]), (4, 2, 1));
        let second = HEADER + 56;
        assert_eq!(request.0[HEADER + 20], 56);
        assert_eq!(&request.0[second + 24..second + 32], b"striped\0");
        assert_eq!(&request.0[second + 40..second + 61], b"2 8 254:0 0 254:16 0\0");
        let too_many = vec![(0, 8, "linear", "254:0 2048".to_owned()); 1000];
        assert!(Request::new("hostsnap-x", 0).with(&too_many).is_err());
        assert_eq!(CREATE, 0xc138_fd03);
    }
}
