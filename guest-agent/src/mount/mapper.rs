//! Block devices of what was put together: the device mapper, asked by its ioctls (Linux
//! `include/uapi/linux/dm-ioctl.h`). The program `dmsetup` would do, but a guest without LVM may lack it.
//!
//! Every name begins with `hostsnap-` and the snapshot's first digits: nobody else's device is ever removed.

use std::fs::File;
use std::io;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::ioctl::{self, Updater, opcode};

use super::place::{Place, Target};

/// What all names of ours begin with.
pub(super) const PREFIX: &str = "hostsnap-";
/// As long as udev's programs may look at a device that has just appeared.
const BUSY_LIMIT: Duration = Duration::from_secs(10);

const CONTROL: &str = "/dev/mapper/control";
const HEADER: usize = 312;
const SIZE: usize = 32 << 10;
/// Bytes of a target before its parameters: start, length, status, next, kind.
const TARGET: usize = 40;
const NAME: usize = 48;
const LONGEST_NAME: usize = 127;
const FLAGS: usize = 28;
const READ_ONLY: u32 = 1;

/// A request: its header has the size of `struct dm_ioctl`, which the ioctl's number names; what follows is as long
/// as `data_size` says.
#[repr(C, align(8))]
struct Request([u8; SIZE]);

const fn number(command: u8) -> ioctl::Opcode {
    opcode::read_write::<[u8; HEADER]>(0xfd, command)
}

const CREATE: ioctl::Opcode = number(3);
const REMOVE: ioctl::Opcode = number(4);
const SUSPEND: ioctl::Opcode = number(6);
const STATUS: ioctl::Opcode = number(7);
const LOAD: ioctl::Opcode = number(9);

/// Whether what is made may be written to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Writes {
    /// No.
    Never,
    /// It is a clone that is thrown away.
    Allowed,
}

/// A name of the device mapper's for a part of this snapshot; what it can't have is left out.
pub(super) fn name(digits: &str, part: &str) -> String {
    let plain = |c: char| if c.is_ascii_alphanumeric() || "._+-".contains(c) { c } else { '_' };
    let name = format!("{PREFIX}{digits}-{}", part.chars().map(plain).collect::<String>());
    name.chars().take(LONGEST_NAME).collect()
}

/// The names of the devices that must be made for a place, the lowest first.
pub(super) fn names(digits: &str, place: &Place) -> Vec<String> {
    let Place::Mapped { name, targets } = place else { return Vec::new() };
    let below = targets.iter().flat_map(|target| &target.stripes).flat_map(|(place, _)| names(digits, place));
    let mut all: Vec<_> = below.collect();
    all.push(self::name(digits, name));
    let mut seen = std::collections::BTreeSet::new();
    all.retain(|name| seen.insert(name.clone()));
    all
}

/// The device of a place: its own, or one that is made, with all that it needs. One of the same name is
/// that of the same snapshot, and used again.
pub(super) fn realize(digits: &str, place: &Place, writes: Writes) -> io::Result<PathBuf> {
    let (part, targets) = match place {
        Place::Device { path, .. } => return Ok(path.clone()),
        Place::Mapped { name, targets } => (name, targets),
    };
    let name = self::name(digits, part);
    if let Some(minor) = status(&name)? {
        return Ok(node(minor));
    }
    let table = targets.iter().map(|target| line(digits, target, writes)).collect::<io::Result<Vec<_>>>()?;
    create(&name, &table, writes).map(node)
}

/// Start, length, kind, parameters.
type Line = (u64, u64, &'static str, String);

fn line(digits: &str, target: &Target, writes: Writes) -> io::Result<Line> {
    let mut devices = Vec::new();
    for (place, begin) in &target.stripes {
        let device = rustix::fs::stat(realize(digits, place, writes)?)?.st_rdev;
        let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
        devices.push(format!("{major}:{minor} {begin}"));
    }
    let (kind, parameters) = match &devices[..] {
        [one] => ("linear", one.clone()),
        several => ("striped", format!("{} {} {}", several.len(), target.chunk, several.join(" "))),
    };
    Ok((target.start, target.sectors, kind, parameters))
}

fn create(name: &str, table: &[Line], writes: Writes) -> io::Result<u32> {
    let control = control()?;
    let mut made = Request::new(name, 0);
    call::<CREATE>(&control, &mut made)?;
    let flags = if writes == Writes::Never { READ_ONLY } else { 0 };
    let loaded = Request::new(name, flags).with(table).and_then(|mut load| call::<LOAD>(&control, &mut load));
    // Without the flag for suspending this resumes: the table takes effect.
    let resumed = loaded.and_then(|()| call::<SUSPEND>(&control, &mut Request::new(name, flags)));
    if let Err(error) = resumed {
        let _ = call::<REMOVE>(&control, &mut Request::new(name, 0));
        return Err(error);
    }
    Ok(made.minor())
}

/// Removes a device of ours; one that is not there is fine.
pub(super) fn remove(name: &str) -> io::Result<()> {
    if !name.starts_with(PREFIX) {
        return Err(io::Error::other("it is not one of hostsnap's"));
    }
    let control = match control() {
        // No device mapper, no devices.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        control => control?,
    };
    let deadline = Instant::now() + BUSY_LIMIT;
    loop {
        match call::<REMOVE>(&control, &mut Request::new(name, 0)) {
            Err(error) if error.raw_os_error() == Some(Errno::NXIO.raw_os_error()) => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::ResourceBusy && Instant::now() < deadline => {
                std::thread::sleep(Duration::from_millis(20));
            }
            result => return result,
        }
    }
}

/// The minor number of a device, if there is one of this name.
pub(super) fn status(name: &str) -> io::Result<Option<u32>> {
    let mut request = Request::new(name, 0);
    match call::<STATUS>(&control()?, &mut request) {
        Ok(()) => Ok(Some(request.minor())),
        Err(error) if error.raw_os_error() == Some(Errno::NXIO.raw_os_error()) => Ok(None),
        Err(error) => Err(error),
    }
}

/// The kernel makes it itself; the names in `/dev/mapper` are udev's.
pub(super) fn node(minor: u32) -> PathBuf {
    format!("/dev/dm-{minor}").into()
}

fn control() -> io::Result<File> {
    File::options().read(true).write(true).open(CONTROL)
}

fn call<const NUMBER: ioctl::Opcode>(control: &File, request: &mut Request) -> io::Result<()> {
    // SAFETY: the kernel reads and writes at most `data_size` bytes (drivers/md/dm-ioctl.c, copy_params and
    // ctl_ioctl), which `Request::new` sets to the size of the buffer. Every byte of it is initialised, and any bytes
    // are valid in it. There is no safe wrapper for these calls.
    Ok(unsafe { ioctl::ioctl(control, Updater::<NUMBER, Request>::new(request)) }?)
}

impl Request {
    fn new(name: &str, flags: u32) -> Box<Self> {
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
    fn with(mut self: Box<Self>, table: &[Line]) -> io::Result<Box<Self>> {
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
    fn minor(&self) -> u32 {
        let dev = u64::from_ne_bytes(self.0[40..48].try_into().expect("eight bytes"));
        u32::try_from((dev & 0xff) | ((dev >> 12) & 0xf_ff00)).expect("twenty bits")
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::super::place::tests::image;
    use super::*;

    #[test]
    fn every_name_is_ours_and_one_that_the_device_mapper_takes() {
        assert_eq!(name("bf77abd9d60d54", "vg0-my lv/x"), "hostsnap-bf77abd9d60d54-vg0-my_lv_x");
        assert_eq!(name("bf77", &"x".repeat(200)).len(), LONGEST_NAME);
        let mapped = |name: &str, below: &Arc<Place>| {
            let stripes = vec![(Arc::clone(below), 0), (Arc::clone(below), 8)];
            let targets = vec![Target { start: 0, sectors: 8, chunk: 4, stripes }];
            Arc::new(Place::Mapped { name: name.to_owned(), targets })
        };
        let upon = mapped("vg-lv", &mapped("md-1", &image(b"")));
        assert_eq!(names("d", &upon), ["hostsnap-d-md-1", "hostsnap-d-vg-lv"], "each once, the lowest first");
    }

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
