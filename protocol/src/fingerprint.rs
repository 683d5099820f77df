//! What a disk's first bytes say it is: partition table identifiers and file system UUIDs.
//!
//! Guest and host both run [`of_head`] on what they read of a disk; if the answers differ, the host
//! would cut somebody else's volume, and refuses. Sources of the offsets: UEFI 2.10 §5.2.3 and
//! §5.3.2 (MBR signature, GPT header), and `libblkid/src/superblocks/` of util-linux for the others.

use serde::{Deserialize, Serialize};

use crate::BoundedVec;

/// How many bytes of a disk are looked at.
pub const HEAD_BYTES: usize = 68 * 1024;

/// What was recognised, in the order of [`Kind`].
pub type Fingerprint = BoundedVec<Mark, 8>;

/// One recognised structure with its identifier.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mark {
    /// What it is.
    pub kind: Kind,
    /// Its identifier as it stands on the disk; shorter ones are padded with zeros.
    pub id: [u8; 32],
}

/// What can be recognised.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Kind {
    /// MBR disk signature.
    Mbr,
    /// GPT disk GUID.
    Gpt,
    /// ext2, ext3, ext4.
    Ext,
    /// XFS.
    Xfs,
    /// btrfs.
    Btrfs,
    /// LUKS 1 and 2.
    Luks,
    /// LVM2 physical volume.
    Lvm,
    /// Swap space.
    Swap,
}

struct Recipe {
    kind: Kind,
    magic_at: usize,
    magic: &'static [u8],
    id_at: usize,
    id_len: usize,
}

/// Logical sectors may have 512 or 4096 bytes; the GPT header stands in the second one.
const RECIPES: &[Recipe] = &[
    Recipe { kind: Kind::Mbr, magic_at: 510, magic: &[0x55, 0xaa], id_at: 0x1b8, id_len: 4 },
    Recipe { kind: Kind::Gpt, magic_at: 512, magic: b"EFI PART", id_at: 512 + 56, id_len: 16 },
    Recipe { kind: Kind::Gpt, magic_at: 4096, magic: b"EFI PART", id_at: 4096 + 56, id_len: 16 },
    Recipe { kind: Kind::Ext, magic_at: 0x438, magic: &[0x53, 0xef], id_at: 0x468, id_len: 16 },
    Recipe { kind: Kind::Xfs, magic_at: 0, magic: b"XFSB", id_at: 32, id_len: 16 },
    Recipe { kind: Kind::Btrfs, magic_at: 0x10040, magic: b"_BHRfS_M", id_at: 0x10020, id_len: 16 },
    Recipe { kind: Kind::Luks, magic_at: 0, magic: b"LUKS\xba\xbe", id_at: 168, id_len: 32 },
    Recipe { kind: Kind::Lvm, magic_at: 512, magic: b"LABELONE", id_at: 512 + 32, id_len: 32 },
    Recipe { kind: Kind::Swap, magic_at: 4086, magic: b"SWAPSPACE2", id_at: 1036, id_len: 16 },
];

/// Recognises what stands in the first [`HEAD_BYTES`] of a disk (fewer on a smaller disk).
pub fn of_head(head: &[u8]) -> Fingerprint {
    let slice = |at: usize, len: usize| head.get(at..at + len);
    let marks: Vec<Mark> = RECIPES
        .iter()
        .filter(|recipe| slice(recipe.magic_at, recipe.magic.len()) == Some(recipe.magic))
        .filter_map(|recipe| {
            let mut id = [0; 32];
            id[..recipe.id_len].copy_from_slice(slice(recipe.id_at, recipe.id_len)?);
            Some(Mark { kind: recipe.kind, id })
        })
        .take(8)
        .collect();
    marks.try_into().expect("at most 8 were taken")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_ext4_superblock_is_known_by_its_uuid() {
        let mut head = vec![0; HEAD_BYTES];
        head[0x438..0x43a].copy_from_slice(&[0x53, 0xef]);
        head[0x468..0x478].copy_from_slice(&[7; 16]);
        let found = of_head(&head);
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].kind, Kind::Ext);
        assert_eq!(found[0].id[..16], [7; 16]);
        head[0x468] = 8;
        assert_ne!(of_head(&head), found);
    }

    #[test]
    fn a_blank_or_tiny_disk_has_no_marks() {
        assert!(of_head(&vec![0; HEAD_BYTES]).is_empty());
        assert!(of_head(&[]).is_empty());
        assert!(of_head(&[0x55; 100]).is_empty());
    }
}
