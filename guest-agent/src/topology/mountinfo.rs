//! `/proc/self/mountinfo` (proc_pid_mountinfo(5)). Paths are bytes: the kernel escapes blanks, tabs,
//! newlines and backslashes as three octal digits, and promises no character set.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

/// A device number, `major:minor`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Dev {
    /// 0 for file systems without a block device of their own.
    pub major: u32,
    /// Within the major number.
    pub minor: u32,
}

impl std::str::FromStr for Dev {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let (major, minor) = text.trim().split_once(':').ok_or(())?;
        Ok(Self { major: major.parse().map_err(drop)?, minor: minor.parse().map_err(drop)? })
    }
}

impl std::fmt::Display for Dev {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}", self.major, self.minor)
    }
}

/// One mount.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mount {
    /// Its number.
    pub id: u32,
    /// The number of the mount that it is on.
    pub parent: u32,
    /// The file system's device number.
    pub dev: Dev,
    /// Which part of the file system is mounted: `/` but for bind mounts and subvolumes.
    pub root: PathBuf,
    /// Where.
    pub mount_point: PathBuf,
    /// Its kind.
    pub fs_type: String,
    /// What was mounted, such as `/dev/vda1`.
    pub source: PathBuf,
    /// Whether the file system (not just this mount of it) is read-only.
    pub super_read_only: bool,
    /// This mount's own options, such as `rw,nosuid,relatime`.
    pub options: String,
    /// The file system's, such as `rw,errors=remount-ro`.
    pub super_options: String,
}

/// Parses the whole table. Lines that are no mounts are passed over: a newer kernel may add some.
pub fn parse(table: &[u8]) -> Vec<Mount> {
    table.split(|byte| *byte == b'\n').filter_map(parse_line).collect()
}

fn parse_line(line: &[u8]) -> Option<Mount> {
    let mut fields = line.split(|byte| *byte == b' ');
    let mut next = || fields.next();
    let text = |field: &[u8]| String::from_utf8_lossy(field).into_owned();
    let id = text(next()?).parse().ok()?;
    let parent = text(next()?).parse().ok()?;
    let dev = text(next()?).parse().ok()?;
    let root = unescape(next()?);
    let mount_point = unescape(next()?);
    let options = text(next()?);
    // Optional fields end with a dash.
    fields.by_ref().find(|field| *field == b"-")?;
    let fs_type = text(fields.next()?);
    let source = unescape(fields.next()?);
    let super_options = text(fields.next()?);
    let super_read_only = super_options.split(',').any(|option| option == "ro");
    Some(Mount {
        id,
        parent,
        dev,
        root,
        mount_point,
        fs_type,
        source,
        super_read_only,
        options,
        super_options,
    })
}

fn unescape(field: &[u8]) -> PathBuf {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&byte, tail)) = rest.split_first() {
        match (byte, tail) {
            (b'\\', &[a @ b'0'..=b'3', b @ b'0'..=b'7', c @ b'0'..=b'7', ..]) => {
                bytes.push((a - b'0') * 64 + (b - b'0') * 8 + (c - b'0'));
                rest = &tail[3..];
            }
            _ => {
                bytes.push(byte);
                rest = tail;
            }
        }
    }
    OsString::from_vec(bytes).into()
}

/// The mount that a canonical path is on: the last one of the longest mount point above it. A later
/// mount on the same point covers an earlier one, and everything mounted below the earlier one.
pub fn of_path<'a>(mounts: &'a [Mount], path: &Path) -> Option<&'a Mount> {
    let mut current = root_mount(mounts)?;
    loop {
        // Among what is mounted on `current`, the one nearest to the path wins; of two on the same
        // point, the later.
        let above = mounts
            .iter()
            .filter(|mount| mount.parent == current.id && mount.id != current.id)
            .filter(|mount| path.starts_with(&mount.mount_point))
            // Walking down from the root meets the shortest first.
            .min_by_key(|mount| mount.mount_point.components().count());
        match above {
            Some(mount) => current = mount,
            None => return Some(current),
        }
    }
}

/// Whose parent is not in the table: the root of this mount namespace. What is mounted over `/`
/// is its child.
fn root_mount(mounts: &[Mount]) -> Option<&Mount> {
    mounts
        .iter()
        .filter(|mount| mount.mount_point == Path::new("/"))
        .find(|mount| !mounts.iter().any(|other| other.id == mount.parent && other.id != mount.id))
}

/// Whether a path to its mount point leads to this mount, and not to one that covers it.
pub fn is_visible(mounts: &[Mount], mount: &Mount) -> bool {
    of_path(mounts, &mount.mount_point).is_some_and(|found| found.id == mount.id)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const TABLE: &[u8] = b"\
22 1 254:1 / / rw,relatime shared:1 - ext4 /dev/vda1 rw
23 22 0:20 / /proc rw - proc proc rw
30 22 254:16 / /data rw,noatime shared:2 master:1 - xfs /dev/vdb rw,attr2
31 22 254:1 /srv/www /var/www rw - ext4 /dev/vda1 rw
32 22 254:1 /etc/hosts /run/hosts rw - ext4 /dev/vda1 rw
33 30 254:32 / /data/with\\040blank ro - ext4 /dev/vdc ro
34 22 254:48 / /cover rw - ext4 /dev/vdd rw
35 34 254:64 / /cover/below rw - ext4 /dev/vde rw
36 34 0:50 / /cover rw - tmpfs tmpfs rw
";

    #[test]
    fn a_path_is_on_the_mount_that_is_seen_there() {
        let mounts = parse(TABLE);
        assert_eq!(mounts.len(), 9);
        for (path, id) in [
            ("/", 22),
            ("/etc/passwd", 22),
            ("/data/x/y", 30),
            ("/database", 22),
            ("/data/with blank/z", 33),
            ("/var/www/index.html", 31),
            ("/run/hosts", 32),
            ("/cover/x", 36),
            ("/cover/below/x", 36),
        ] {
            assert_eq!(of_path(&mounts, Path::new(path)).unwrap().id, id, "{path}");
        }
    }

    #[test]
    fn a_covered_mount_is_not_visible() {
        let mounts = parse(TABLE);
        let hidden: Vec<_> =
            mounts.iter().filter(|mount| !is_visible(&mounts, mount)).map(|m| m.id).collect();
        assert_eq!(hidden, [34, 35]);
    }

    #[test]
    fn read_only_is_the_file_systems_not_the_mounts() {
        let mounts = parse(b"1 0 8:1 / / ro,relatime - ext4 /dev/sda1 rw\n");
        assert!(!mounts[0].super_read_only);
    }

    proptest! {
        #[test]
        fn any_bytes_are_parsed_without_a_panic(table in proptest::collection::vec(any::<u8>(), 0..400)) {
            for mount in parse(&table) {
                of_path(&[mount], Path::new("/a/b"));
            }
        }

        #[test]
        fn an_escaped_path_is_given_back(path in "[a-z \\\\\t\n]{1,20}") {
            let escaped = path.bytes().map(|byte| match byte {
                b' ' | b'\t' | b'\n' | b'\\' => format!("\\{byte:03o}"),
                _ => char::from(byte).to_string(),
            }).collect::<String>();
            prop_assert_eq!(unescape(escaped.as_bytes()), PathBuf::from(path));
        }
    }
}
