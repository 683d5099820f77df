//! Which dataset is behind a path: a zvol says its own name, a file lies where a file system is mounted.

use std::fs::{self, File};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::ioctl::{self, Getter, opcode};

use crate::drivers::{DriverError, Format, Kind, Volume, image};

/// How long a zvol may take to get its device.
const DEVICE_LIMIT: Duration = Duration::from_secs(10);

/// A volume in its dataset.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) dataset: String,
    /// The image, from the dataset's root; none for a zvol.
    pub(super) file: Option<String>,
}

impl Place {
    /// Where the volume is.
    pub(super) fn of(volume: &Volume) -> Result<Self, DriverError> {
        if volume.format != Format::Raw {
            return Err(unsupported(
                volume,
                format!(
                    "a {:?} image is not whole in its file while QEMU has it open; use the driver qemu",
                    volume.format
                ),
            ));
        }
        let path = volume.path()?;
        let meta = fs::metadata(path)
            .map_err(|error| DriverError::io(format!("look at {}", volume.source), error))?;
        if meta.file_type().is_block_device() {
            let dataset = zvol(&image::open(volume)?, meta.rdev())
                .ok_or_else(|| unsupported(volume, "it is no zvol; /dev/zvol has them by name".to_owned()))?;
            return Ok(Self { dataset, file: None });
        }
        image::regular_size(volume)?;
        let path = path
            .canonicalize()
            .map_err(|error| DriverError::io(format!("look at {}", volume.source), error))?;
        let device = (rustix::fs::major(meta.dev()), rustix::fs::minor(meta.dev()));
        within(&mounts()?, device, &path)
            .ok_or_else(|| unsupported(volume, "it is on no file system of ZFS's".to_owned()))
    }

    /// The size of the disk, in bytes.
    pub(super) fn size_bytes(&self, volume: &Volume) -> Result<u64, DriverError> {
        use std::io::{Seek, SeekFrom};
        match self.file {
            Some(_) => image::regular_size(volume),
            None => image::open(volume)?
                .seek(SeekFrom::End(0))
                .map_err(|error| DriverError::io(format!("look at {}", volume.source), error)),
        }
    }
}

fn unsupported(volume: &Volume, why: String) -> DriverError {
    DriverError::new(Kind::Unsupported, format!("snapshot {}: {why}", volume.source))
}

/// The name of the zvol that has this device; `None` for other devices and for partitions.
fn zvol(file: &File, device: u64) -> Option<String> {
    let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
    let sys = fs::read_link(format!("/sys/dev/block/{major}:{minor}")).ok()?;
    let name = sys.file_name()?.to_str()?.strip_prefix("zd")?;
    if !name.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    // SAFETY: BLKZNAME is _IOR(0x12, 125, char[256]) (OpenZFS `sys/fs/zfs.h`), which writes a terminated name, and
    // no other block device knows it.
    let name =
        unsafe { ioctl::ioctl(file, Getter::<{ opcode::read::<[u8; 256]>(0x12, 125) }, [u8; 256]>::new()) };
    let name = name.ok()?;
    let name = name.split(|byte| *byte == 0).next()?;
    String::from_utf8(name.to_vec()).ok()
}

/// The device of a zvol that was just made.
pub(super) fn device(dataset: &str) -> Result<PathBuf, DriverError> {
    let until = Instant::now() + DEVICE_LIMIT;
    loop {
        let found = zvols().into_iter().find(|path| {
            let device = fs::metadata(path).map(|meta| meta.rdev());
            let file = File::open(path);
            matches!((file, device), (Ok(file), Ok(device)) if zvol(&file, device).as_deref() == Some(dataset))
        });
        match found {
            Some(path) => return Ok(path),
            None if Instant::now() >= until => {
                return Err(DriverError::new(Kind::NotFound, format!("find the device of {dataset}")));
            }
            None => std::thread::sleep(Duration::from_millis(20)),
        }
    }
}

/// All devices that look like zvols. By what the kernel calls them: udev makes the other names, in its own time.
fn zvols() -> Vec<PathBuf> {
    let devices = fs::read_dir("/sys/block").into_iter().flatten().flatten();
    let names = devices.filter_map(|entry| entry.file_name().into_string().ok());
    names.filter(|name| name.starts_with("zd")).map(|name| Path::new("/dev").join(name)).collect()
}

/// Where a dataset is mounted, whole.
pub(super) fn mount_point(dataset: &str) -> Result<PathBuf, DriverError> {
    let mounts = mounts()?;
    let mount = mounts.iter().rev().find(|mount| mount.source == dataset && mount.root == Path::new("/"));
    mount.map(|mount| mount.point.clone()).ok_or_else(|| {
        DriverError::new(Kind::NotFound, format!("find where {dataset} is mounted; zfs mount {dataset}"))
    })
}

/// A file system of ZFS's that is mounted.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Mount {
    device: (u32, u32),
    /// What of it is mounted here.
    root: PathBuf,
    point: PathBuf,
    source: String,
}

fn mounts() -> Result<Vec<Mount>, DriverError> {
    let text = fs::read_to_string("/proc/self/mountinfo")
        .map_err(|error| DriverError::io("read /proc/self/mountinfo", error))?;
    Ok(parse(&text))
}

/// Reads mountinfo (proc_pid_mountinfo(5)).
fn parse(text: &str) -> Vec<Mount> {
    let mount = |line: &str| {
        let (front, back) = line.split_once(" - ")?;
        let mut front = front.split(' ').skip(2);
        let (major, minor) = front.next()?.split_once(':')?;
        let (root, point) = (unescaped(front.next()?)?, unescaped(front.next()?)?);
        let mut back = back.split(' ');
        let is_zfs = back.next()? == "zfs";
        let source = unescaped(back.next()?)?;
        is_zfs.then_some(Mount {
            device: (major.parse().ok()?, minor.parse().ok()?),
            root: root.into(),
            point: point.into(),
            source,
        })
    };
    text.lines().filter_map(mount).collect()
}

/// `\ooo` stands for a byte (proc_pid_mounts(5)).
fn unescaped(text: &str) -> Option<String> {
    let mut parts = text.split('\\');
    let mut bytes = parts.next()?.as_bytes().to_vec();
    for part in parts {
        let (code, rest) = part.split_at_checked(3)?;
        bytes.push(u8::from_str_radix(code, 8).ok()?);
        bytes.extend_from_slice(rest.as_bytes());
    }
    String::from_utf8(bytes).ok()
}

/// Where in its dataset a file is. A bound mount shows a part of one; a snapshot below `.zfs` is none.
fn within(mounts: &[Mount], device: (u32, u32), path: &Path) -> Option<Place> {
    let here = mounts.iter().filter(|mount| mount.device == device && path.starts_with(&mount.point));
    let mount = here.max_by_key(|mount| mount.point.components().count())?;
    let inside = mount.root.join(path.strip_prefix(&mount.point).ok()?);
    let inside = inside.strip_prefix("/").ok()?.to_str()?;
    (!mount.source.contains('@'))
        .then(|| Place { dataset: mount.source.clone(), file: Some(inside.to_owned()) })
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOUNTS: &str = "\
22 28 0:21 / /proc rw,nosuid shared:5 - proc proc rw
95 28 0:46 / /tank rw shared:47 - zfs tank rw,xattr,noacl
97 95 0:47 / /tank/my\\040vms rw shared:49 - zfs tank/my\\040vms rw,xattr,noacl
98 28 0:47 /sub /srv/bound rw shared:49 - zfs tank/my\\040vms rw,xattr,noacl
99 97 0:48 / /tank/my\\040vms/.zfs/snapshot/x rw - zfs tank/my\\040vms@x ro,xattr,noacl
100 28 8:1 / /mnt rw - ext4 /dev/sda1 rw
";

    #[test]
    fn a_file_is_found_in_its_dataset() {
        let mounts = parse(MOUNTS);
        assert_eq!(mounts.len(), 4);
        for (device, path, expected) in [
            ((0, 46), "/tank/a.img", Some(("tank", "a.img"))),
            ((0, 47), "/tank/my vms/db1/a.img", Some(("tank/my vms", "db1/a.img"))),
            ((0, 47), "/srv/bound/a.img", Some(("tank/my vms", "sub/a.img"))),
            ((0, 48), "/tank/my vms/.zfs/snapshot/x/a.img", None),
            ((8, 1), "/mnt/a.img", None),
            ((0, 47), "/elsewhere/a.img", None),
        ] {
            let expected = expected
                .map(|(dataset, file)| Place { dataset: dataset.to_owned(), file: Some(file.to_owned()) });
            assert_eq!(within(&mounts, device, Path::new(path)), expected, "{path}");
        }
    }

    #[test]
    fn a_broken_line_is_left_out() {
        for line in
            ["", "x", "1 2 3:4 / /a - zfs", "1 2 3 / /a rw - zfs tank rw", "1 2 3:4 / /\\9 rw - zfs tank rw"]
        {
            assert_eq!(parse(line), [], "{line}");
        }
    }
}
