//! Where two files of one file system differ, by where their blocks lie on its device: two snapshots of an image share the
//! blocks that did not change. Source: Linux `Documentation/filesystems/fiemap.rst`, `include/uapi/linux/fiemap.h`.
//!
//! Both files must be snapshots: nobody writes to them. XFS and btrfs never write to a block that two files
//! share, so one place on the device means the same bytes. What the map can't tell (compressed, inline in the metadata,
//! not said to be shared, on its way to the disk) is read and compared.

mod map;

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use super::extents::{self, Extent};
use super::{DriverError, Kind};
use map::{Mapped, Place};

/// How often a map may change while it is compared (a file system that is balanced, say).
const TRIES: usize = 5;
const BLOCK: usize = 64 << 10;

/// Whether the file system of this folder maps files as it is assumed here.
pub(super) fn is_known(folder: &Path) -> bool {
    // XFS_SUPER_MAGIC and BTRFS_SUPER_MAGIC, Linux include/uapi/linux/magic.h
    rustix::fs::statfs(folder).is_ok_and(|stat| matches!(stat.f_type, 0x5846_5342 | 0x9123_683e))
}

/// What of the file `to` may not be as in the file `from`.
pub(super) fn changes(from: &Path, to: &Path) -> Result<Vec<Extent>, DriverError> {
    let open = |path: &Path| {
        File::open(path).map_err(|error| DriverError::io(format!("open {}", path.display()), error))
    };
    let (from_file, to_file) = (open(from)?, open(to)?);
    compare(&from_file, &to_file).map_err(|error| {
        DriverError::io(format!("compare {} with {}", to.display(), from.display()), error)
    })?.ok_or_else(|| {
        DriverError::new(
            Kind::Busy,
            format!("compare {}: its blocks are being moved (a balance, a defragmentation); try again when that is over", from.display()),
        )
    })
}

/// `None` if the blocks moved meanwhile, again and again.
fn compare(from: &File, to: &File) -> io::Result<Option<Vec<Extent>>> {
    let (from_size, to_size) = (from.metadata()?.len(), to.metadata()?.len());
    let common = from_size.min(to_size);
    let mut before = map::of(from, common)?;
    for _ in 0..TRIES {
        let other = map::of(to, common)?;
        // A block that was moved may lie where another one lay: only a map that was the same before and
        // after can be compared with what was read in between.
        let after = map::of(from, common)?;
        if before != after {
            before = after;
            continue;
        }
        let (mut changed, unknown) = differences(&before, &other);
        for extent in unknown {
            differing_blocks(from, to, extent, &mut changed)?;
        }
        changed.push(Extent::between(common, to_size));
        return Ok(Some(extents::in_order(changed, to_size)));
    }
    Ok(None)
}

enum Verdict {
    Same,
    MayDiffer,
    Unknown,
}

const fn verdict(one: Place, other: Place) -> Verdict {
    match (one, other) {
        (Place::Unclear, _) | (_, Place::Unclear) => Verdict::Unknown,
        (Place::Zeros, Place::Zeros) => Verdict::Same,
        (Place::Shared(one), Place::Shared(other)) if one == other => Verdict::Same,
        // Both have it, and the file system does not say that it is shared.
        (Place::Shared(one) | Place::Alone(one), Place::Shared(other) | Place::Alone(other))
            if one == other =>
        {
            Verdict::Unknown
        }
        _ => Verdict::MayDiffer,
    }
}

/// Walks both maps, which cover the same bytes: what differs, and what has to be read to know.
fn differences(from: &[Mapped], to: &[Mapped]) -> (Vec<Extent>, Vec<Extent>) {
    let (mut changed, mut unknown) = (Vec::new(), Vec::new());
    let (mut left, mut right) = (from.iter().peekable(), to.iter().peekable());
    let mut at = 0;
    while let (Some(one), Some(other)) = (left.peek(), right.peek()) {
        let end = one.end.min(other.end);
        let extent = Extent::between(at, end);
        match verdict(one.place_at(at), other.place_at(at)) {
            Verdict::Same => {}
            Verdict::MayDiffer => changed.push(extent),
            Verdict::Unknown => unknown.push(extent),
        }
        at = end;
        if one.end == end {
            left.next();
        }
        if other.end == end {
            right.next();
        }
    }
    (changed, unknown)
}

/// Reads both and adds the blocks that are not the same.
fn differing_blocks(from: &File, to: &File, extent: Extent, changed: &mut Vec<Extent>) -> io::Result<()> {
    let (mut one, mut other) = (vec![0; BLOCK], vec![0; BLOCK]);
    let mut at = extent.offset;
    while at < extent.end() {
        let end = extent.end().min(at + BLOCK as u64);
        let length = usize::try_from(end - at).expect("at most a block");
        from.read_exact_at(&mut one[..length], at)?;
        to.read_exact_at(&mut other[..length], at)?;
        if one[..length] != other[..length] {
            changed.push(Extent::between(at, end));
        }
        at = end;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(places: &[(u64, Place)]) -> Vec<Mapped> {
        let mut begin = 0;
        let mapped = places.iter().map(|(end, place)| {
            let one = Mapped { begin, end: *end, place: *place };
            begin = *end;
            one
        });
        mapped.collect()
    }

    #[test]
    fn only_the_same_shared_blocks_and_zeros_are_the_same_without_reading() {
        use Place::{Alone, Shared, Unclear, Zeros};
        for (one, other, changed, read) in [
            (Zeros, Zeros, false, false),
            (Shared(4096), Shared(4096), false, false),
            (Shared(4096), Shared(8192), true, false),
            (Shared(4096), Zeros, true, false),
            (Zeros, Alone(4096), true, false),
            (Alone(4096), Alone(8192), true, false),
            (Alone(4096), Shared(8192), true, false),
            // Said to be at one place, and not to be shared: that can't be.
            (Alone(4096), Alone(4096), false, true),
            (Alone(4096), Shared(4096), false, true),
            (Unclear, Unclear, false, true),
            (Unclear, Zeros, false, true),
            (Shared(4096), Unclear, false, true),
        ] {
            let (differ, unknown) = differences(&map(&[(512, one)]), &map(&[(512, other)]));
            let whole = Extent { offset: 0, length: 512 };
            assert_eq!(differ, if changed { vec![whole] } else { vec![] }, "{one:?} {other:?}");
            assert_eq!(unknown, if read { vec![whole] } else { vec![] }, "{one:?} {other:?}");
        }
    }

    #[test]
    fn extents_that_begin_in_the_middle_of_others_are_compared_by_their_own_bytes() {
        use Place::{Shared, Zeros};
        let from = map(&[(100, Shared(1000)), (200, Zeros)]);
        let to = map(&[(40, Shared(1000)), (60, Shared(5000)), (150, Shared(1060)), (200, Zeros)]);
        let (changed, unknown) = differences(&from, &to);
        assert!(unknown.is_empty());
        let told = extents::in_order(changed, 200);
        assert_eq!(told, [Extent { offset: 40, length: 20 }, Extent { offset: 100, length: 50 }]);
    }
}
