//! Block devices of what was put together: the device mapper, asked by its ioctls (`request`). The program `dmsetup` would do, but a guest without LVM may lack it.
//!
//! Every name begins with `hostsnap-` and the snapshot's first digits: nobody else's device is ever removed.

mod request;

use std::io;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use rustix::io::Errno;

use super::place::{Place, Target};
use request::{CREATE, LOAD, LONGEST_NAME, Line, READ_ONLY, REMOVE, Request, STATUS, SUSPEND, call, control};

/// What all names of ours begin with.
pub(super) const PREFIX: &str = "hostsnap-";
/// As long as udev's programs may look at a device that has just appeared.
const BUSY_LIMIT: Duration = Duration::from_secs(10);

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
}
