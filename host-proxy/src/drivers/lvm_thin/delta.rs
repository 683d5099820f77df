//! What changed between two thin volumes: `thin_delta` reads it from the pool's metadata, of which the kernel keeps a
//! snapshot meanwhile (Linux `Documentation/admin-guide/device-mapper/thin-provisioning.rst`, "reserve_metadata_snap"). No
//! block of a volume is read, and neither has to be active.

use std::time::Duration;

use super::pool::{self, Pool, SETTINGS};
use super::report::{Lv, VolumeGroup};
use crate::drivers::extents::{self, Extent};
use crate::drivers::{DriverError, Kind};
use crate::exec::Tool;

/// It reads the metadata of both volumes, which has some bytes for each block.
const DELTA_LIMIT: Duration = Duration::from_secs(100);
const LVS_LIMIT: Duration = Duration::from_secs(20);
/// The unit of the device mapper's numbers (Linux `SECTOR_SIZE`).
const SECTOR_BYTES: u64 = 512;

/// What of `to` may not be as in `from`.
pub(super) fn changes(
    pool: &Pool,
    vg: &VolumeGroup,
    delta: &Tool,
    from: &Lv,
    to: &Lv,
) -> Result<Vec<Extent>, DriverError> {
    let (one, other) = (thin_id(pool, from)?, thin_id(pool, to)?);
    let thin_pool = vg.dm_uuid(pool.lv_in(vg)?, "-tpool");
    let (metadata, block_bytes) = table(pool, &thin_pool)?;
    let held = MetadataSnapshot::take(pool, &thin_pool)?;
    let mut command = delta.command();
    command.args(["--metadata-snap", "--thin1", &one, "--thin2", &other, &metadata]);
    let doing = || format!("compare {} with {}", pool.lv(&to.name), pool.lv(&from.name));
    let text = delta.run(&mut command, DELTA_LIMIT).map_err(|error| pool::failed(doing(), error));
    let released = held.release();
    let text = match (text, released) {
        (Ok(text), Ok(())) => text,
        (Ok(_), Err(error)) => return Err(error),
        (Err(error), released) => return Err(error.after_undo(released)),
    };
    let mut changed = parse(&text, block_bytes).ok_or_else(|| {
        DriverError::new(Kind::Failed, format!("{}: understand what thin_delta says", doing()))
    })?;
    // What is behind the end of the shorter one is in one of them alone.
    let (from_bytes, to_bytes) = (from.size_bytes(), to.size_bytes());
    changed.push(Extent::between(from_bytes.min(to_bytes), to_bytes));
    Ok(extents::in_order(changed, to_bytes))
}

/// The size of the blocks that the pool gives out.
pub(super) fn block_bytes(pool: &Pool, vg: &VolumeGroup) -> Result<u64, DriverError> {
    let thin_pool = vg.dm_uuid(pool.lv_in(vg)?, "-tpool");
    table(pool, &thin_pool).map(|(_, block_bytes)| block_bytes)
}

/// The kernel's number of a thin volume.
fn thin_id(pool: &Pool, lv: &Lv) -> Result<String, DriverError> {
    let name = pool.lv(&lv.name);
    let doing = || format!("look up the number of {name}");
    let mut command = pool.lvm.command();
    command.args(["lvs", "--noheadings", "-o", "thin_id", "--config", SETTINGS, &name]);
    let text = pool.lvm.run(&mut command, LVS_LIMIT).map_err(|error| pool::failed(doing(), error))?;
    let id = text.trim();
    match id.parse::<u32>() {
        Ok(_) => Ok(id.to_owned()),
        Err(_) => Err(DriverError::new(Kind::Failed, format!("{}: lvm says {id:?}", doing()))),
    }
}

/// The device of the pool's metadata, and the size of its blocks, from `0 N thin-pool MAJOR:MINOR MAJOR:MINOR SECTORS …`.
fn table(pool: &Pool, thin_pool: &str) -> Result<(String, u64), DriverError> {
    let text = pool.dmsetup("look at the pool", &["table", "--uuid", thin_pool])?;
    let words: Vec<&str> = text.split_whitespace().collect();
    let found = match words[..] {
        [_, _, "thin-pool", metadata, _, sectors, ..] => {
            let minor = metadata.split_once(':').and_then(|(_, minor)| minor.parse::<u32>().ok());
            minor.zip(sectors.parse::<u64>().ok().and_then(|sectors| sectors.checked_mul(SECTOR_BYTES)))
        }
        _ => None,
    };
    let (minor, block_bytes) = found.ok_or_else(|| {
        DriverError::new(Kind::Failed, format!("look at the pool {}: dmsetup says {text:?}", pool.name))
    })?;
    Ok((format!("/dev/dm-{minor}"), block_bytes))
}

/// The kernel keeps one for each pool; held for as short as can be, since it takes room of the metadata.
struct MetadataSnapshot<'a> {
    pool: &'a Pool,
    thin_pool: &'a str,
    is_held: bool,
}

impl<'a> MetadataSnapshot<'a> {
    fn take(pool: &'a Pool, thin_pool: &'a str) -> Result<Self, DriverError> {
        let held = Self { pool, thin_pool, is_held: true };
        match held.send("reserve_metadata_snap") {
            Ok(()) => Ok(held),
            Err(error) => {
                std::mem::forget(held);
                Err(DriverError {
                    kind: Kind::Busy,
                    doing: format!(
                        "{}; if nobody compares snapshots of it now, one is left of somebody who was killed: \
                         dmsetup message {}-tpool 0 release_metadata_snap",
                        error.doing,
                        pool.name.to_string().replace('-', "--").replacen('/', "-", 1)
                    ),
                    ..error
                })
            }
        }
    }

    fn release(mut self) -> Result<(), DriverError> {
        self.is_held = false;
        self.send("release_metadata_snap")
    }

    fn send(&self, message: &str) -> Result<(), DriverError> {
        let doing = format!("{message} of the pool {}", self.pool.name);
        self.pool.dmsetup(&doing, &["message", "--uuid", self.thin_pool, "0", message]).map(drop)
    }
}

impl Drop for MetadataSnapshot<'_> {
    /// For a panic between taking and releasing.
    fn drop(&mut self) {
        if self.is_held
            && let Err(error) = self.send("release_metadata_snap")
        {
            tracing::error!("{}", crate::service::chain(&error));
        }
    }
}

/// The blocks that are not the same, from `thin_delta`'s XML, a tag on each line: `different`, `left_only` and `right_only`
/// with `begin` and `length` in blocks. `None` if it is none, or not whole: a change that is not told is lost.
fn parse(text: &str, block_bytes: u64) -> Option<Vec<Extent>> {
    let mut changed = Vec::new();
    let (mut is_diff, mut is_whole) = (false, false);
    for line in text.lines().map(str::trim) {
        let number = |name: &str| -> Option<u64> {
            let (_, behind) = line.split_once(&format!("{name}=\""))?;
            behind.split_once('"')?.0.parse().ok()
        };
        if line == "</diff>" {
            is_whole = is_diff;
            continue;
        }
        match line.split([' ', '>', '/']).next()? {
            "<diff" => is_diff = true,
            "<different" | "<left_only" | "<right_only" => changed.push(Extent {
                offset: number("begin")?.checked_mul(block_bytes)?,
                length: number("length")?.checked_mul(block_bytes)?,
            }),
            "<same" | "<superblock" | "<" | "" => {}
            _ => return None,
        }
    }
    is_whole.then_some(changed)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Recorded of thin-provisioning-tools 0.9.0, Debian 12.
    const RECORDED: &str = include_str!("fixtures/thin-delta-0.9.0.xml");
    /// And of 1.1.0, Debian 13, which was written anew.
    const REWRITTEN: &str = include_str!("fixtures/thin-delta-1.1.0.xml");

    #[test]
    fn a_recorded_delta_says_which_blocks_differ() {
        let extent = |block: u64, blocks: u64| Extent { offset: block << 16, length: blocks << 16 };
        for recorded in [RECORDED, REWRITTEN] {
            let changed = extents::in_order(parse(recorded, 1 << 16).unwrap(), 8 << 20);
            assert_eq!(changed, [extent(3, 2), extent(40, 4), extent(96, 6)]);
        }
    }

    #[test]
    fn what_is_no_delta_is_not_taken_for_one_without_changes() {
        for text in [
            "",
            "<superblock>\n</superblock>\n",
            "<diff>\n<new_tag begin=\"1\" length=\"2\"/>\n</diff>",
            "<diff>\n<different/>\n</diff>",
            "<diff>\n<same begin=\"0\" length=\"1\"/>\n",
        ] {
            assert!(parse(text, 1 << 16).is_none(), "{text:?}");
        }
    }

    proptest! {
        #[test]
        fn no_text_however_broken_makes_it_panic(at in 0..RECORDED.len(), len in 0..100_usize, with in ".{0,20}") {
            let end = (at + len).min(RECORDED.len());
            if RECORDED.is_char_boundary(at) && RECORDED.is_char_boundary(end) {
                let text = format!("{}{with}{}", &RECORDED[..at], &RECORDED[end..]);
                let told = parse(&text, 1 << 16).map(|changed| extents::in_order(changed, 8 << 20));
                prop_assert!(told.is_none_or(|told| told.iter().all(|one| one.end() <= 8 << 20)));
            }
        }
    }
}
