//! What is at a place: told by the magic numbers of its super block, as blkid(8) does it, for the few kinds
//! that matter here. The guest's program needs no other program for it.

use std::io;

use uuid::Uuid;

use super::bytes::{text, u16_be, u16_le, u32_le, u64_le};
use super::md::{self, Member};
use super::place::Place;

/// What was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Content {
    /// A file system.
    FileSystem(FileSystem),
    /// A physical volume of LVM.
    Lvm,
    /// A member of an md array.
    Md(Member),
    /// A container of LUKS, by its UUID.
    Luks(String),
    /// A table of partitions, which the kernel reads.
    Partitions,
    /// Swap space.
    Swap,
    /// Nothing that is known here.
    Unknown,
}

/// A file system.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileSystem {
    /// Its kind.
    pub kind: Kind,
    /// Its UUID: the one by which the kernel tells two of them apart.
    pub uuid: Uuid,
    /// Its label; may be empty.
    pub label: String,
    /// Where it was mounted last, if it says so.
    pub last_mounted: String,
    /// Whether a journal is to be replayed.
    pub needs_recovery: bool,
    /// On how many devices it is; each of them shows the same.
    pub devices: u64,
}

/// Kinds of file systems that can be told and mounted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// ext2, ext3 and ext4: the kernel mounts all of them as ext4.
    Ext4,
    /// XFS.
    Xfs,
    /// btrfs.
    Btrfs,
}

impl Kind {
    /// As mount(2) wants it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Ext4 => "ext4",
            Self::Xfs => "xfs",
            Self::Btrfs => "btrfs",
        }
    }

    /// Of a kind as `/proc/self/mountinfo` names it.
    pub fn of_mounted(fs_type: &str) -> Option<Self> {
        match fs_type {
            "ext2" | "ext3" | "ext4" => Some(Self::Ext4),
            "xfs" => Some(Self::Xfs),
            "btrfs" => Some(Self::Btrfs),
            _ => None,
        }
    }
}

/// Looks. What lies deeper comes first: a mirror of md with its super block at the end begins like the file
/// system in it.
pub fn probe(place: &Place) -> io::Result<Content> {
    if let Some(member) = md::member(place)? {
        return Ok(Content::Md(member));
    }
    let Some(head) = place.bytes::<4096>(0)? else { return Ok(Content::Unknown) };
    if head.starts_with(b"LUKS\xba\xbe") && matches!(u16_be(&head, 6), 1 | 2) {
        // LUKS 1 and 2 have it at the same place (cryptsetup, on-disk format, §2.1 and §2).
        return Ok(Content::Luks(text(&head[168..208])));
    }
    if super::lvm::is_labelled(&head) {
        return Ok(Content::Lvm);
    }
    if let Some(fs) = xfs(&head).or_else(|| ext4(&head)) {
        return Ok(Content::FileSystem(fs));
    }
    if let Some(fs) = super::btrfs::read(place)? {
        return Ok(Content::FileSystem(fs));
    }
    if head.ends_with(b"SWAPSPACE2") {
        return Ok(Content::Swap);
    }
    Ok(if has_partitions(&head) { Content::Partitions } else { Content::Unknown })
}

/// Linux `fs/xfs/libxfs/xfs_format.h`, `struct xfs_dsb`.
fn xfs(head: &[u8]) -> Option<FileSystem> {
    head.starts_with(b"XFSB").then(|| FileSystem {
        kind: Kind::Xfs,
        uuid: uuid(head, 32),
        label: text(&head[108..120]),
        last_mounted: String::new(),
        // Not to be seen in the super block. A frozen one has always something in its log.
        needs_recovery: true,
        devices: 1,
    })
}

/// Linux `fs/ext4/ext4.h`, `struct ext4_super_block`, 1024 bytes from the beginning.
fn ext4(head: &[u8]) -> Option<FileSystem> {
    const RECOVER: u32 = 0x4;
    const JOURNAL_DEVICE: u32 = 0x8;
    let block = &head[1024..2048];
    let incompatible = u32_le(block, 0x60);
    (u16_le(block, 0x38) == 0xef53 && incompatible & JOURNAL_DEVICE == 0).then(|| FileSystem {
        kind: Kind::Ext4,
        uuid: uuid(block, 0x68),
        label: text(&block[0x78..0x88]),
        last_mounted: text(&block[0x88..0xc8]),
        needs_recovery: incompatible & RECOVER != 0,
        devices: 1,
    })
}

/// A table of the old kind, or the one that GPT has for programs that know no GPT (UEFI 2.10 §5.2).
fn has_partitions(head: &[u8]) -> bool {
    let entries = head[446..510].chunks(16);
    head[510..512] == [0x55, 0xaa] && entries.into_iter().any(|entry| entry[4] != 0 && u64_le(entry, 8) != 0)
}

fn uuid(block: &[u8], at: usize) -> Uuid {
    Uuid::from_slice(&block[at..at + 16]).expect("sixteen bytes")
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    fn made(program: &str, arguments: &[&str], mib: u64) -> Content {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(mib << 20).unwrap();
        let output = Command::new(program).args(arguments).arg(file.path()).output().unwrap();
        assert!(output.status.success(), "{program}: {}", String::from_utf8_lossy(&output.stderr));
        probe(&Place::open(file.path().to_owned()).unwrap()).unwrap()
    }

    #[test]
    fn what_mkfs_makes_is_told_with_its_uuid_and_label() {
        let uuid = "0b8a3b1d-7f01-4f4f-8d51-3f1f54c266a2";
        let xfs_uuid = format!("uuid={uuid}");
        let table: [(&str, &[&str], u64, Kind); 4] = [
            ("mkfs.ext4", &["-q", "-U", uuid, "-L", "here", "-M", "/data"], 16, Kind::Ext4),
            ("mkfs.ext2", &["-q", "-U", uuid, "-L", "here"], 16, Kind::Ext4),
            ("mkfs.xfs", &["-q", "-m", &xfs_uuid, "-L", "here"], 320, Kind::Xfs),
            ("mkfs.btrfs", &["-q", "-U", uuid, "-L", "here"], 128, Kind::Btrfs),
        ];
        for (program, arguments, mib, kind) in table {
            let Content::FileSystem(fs) = made(program, arguments, mib) else { panic!("{program}") };
            assert_eq!((fs.kind, fs.uuid.to_string().as_str(), fs.label.as_str()), (kind, uuid, "here"));
            assert_eq!(fs.last_mounted, if program == "mkfs.ext4" { "/data" } else { "" });
            assert_eq!((fs.needs_recovery, fs.devices), (kind == Kind::Xfs, 1));
        }
    }

    #[test]
    fn what_is_no_file_system_is_told_too() {
        assert_eq!(made("mkswap", &[], 8), Content::Swap);
        assert_eq!(made("true", &[], 8), Content::Unknown);
        let luks = ["luksFormat", "-q", "--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000", "--uuid"];
        let uuid = "3f1f54c2-66a2-4f4f-8d51-0b8a3b1d7f01";
        let key = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(key.path(), "secret").unwrap();
        let key = key.path().to_str().unwrap();
        assert_eq!(
            made("cryptsetup", &[&luks[..], &[uuid, "--key-file", key]].concat(), 32),
            Content::Luks(uuid.to_owned())
        );
        let mut table = vec![0; 8192];
        assert!(!has_partitions(&table));
        table[510..512].copy_from_slice(&[0x55, 0xaa]);
        assert!(!has_partitions(&table), "a boot sector without a table");
        table[450] = 0x83;
        table[454..462].copy_from_slice(&[0, 8, 0, 0, 0, 8, 0, 0]);
        assert!(has_partitions(&table));
    }

    #[test]
    fn the_beginning_of_anything_is_read_without_a_panic() {
        for length in [0, 1, 511, 4095, 4096, 70_000] {
            for byte in [0, 0xff, b'L'] {
                let place = super::super::place::tests::image(&vec![byte; length]);
                assert_eq!(probe(&place).unwrap(), Content::Unknown, "{length} times {byte}");
            }
        }
    }
}
