//! What `zfs` and `zpool` say with -H and -p: one line each, tabs between the columns, bytes as plain
//! numbers, `-` where there is nothing. Pure: text in, values out. Lines that are none of this are
//! left out: a user property of somebody else's may hold any text.

use std::collections::BTreeMap;

use super::record::Properties;

/// The columns of a dataset: what [`datasets`] reads, in its order.
pub(super) const DATASET: &str = "name,type,guid,volsize,available,usedbydataset,refreservation,\
     usedbyrefreservation";
/// The columns of a snapshot: what [`snapshots`] reads, in its order.
pub(super) const SNAPSHOT: &str = "name,guid,clones";
/// The columns of a pool: what [`pool`] reads, in its order.
pub(super) const POOL: &str = "health,readonly";
/// The columns of a property: what [`properties`] reads, in its order.
pub(super) const PROPERTY: &str = "name,property,value";

/// A file system or a volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Dataset {
    pub(super) name: String,
    pub(super) is_volume: bool,
    pub(super) guid: u64,
    /// Of a volume, in bytes.
    pub(super) volsize: Option<u64>,
    /// What it may still take, its own reservation included, in bytes.
    available: u64,
    used: u64,
    refreservation: u64,
    reserved: u64,
}

impl Dataset {
    /// What may still be taken outside of its own reservation, in bytes.
    pub(super) fn free_bytes(&self) -> u64 {
        self.available.saturating_sub(self.reserved)
    }

    /// What may still be written to it, in bytes.
    pub(super) fn writable_bytes(&self) -> u64 {
        self.available
    }

    /// What a snapshot takes at once, in bytes: a reservation holds for what is written from then on, so
    /// all that is there is reserved a second time (OpenZFS `dsl_dataset_snapshot_reserve_space`).
    pub(super) fn needed_bytes(&self) -> u64 {
        self.used.min(self.refreservation)
    }
}

/// A snapshot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Snapshot {
    pub(super) name: String,
    pub(super) guid: u64,
    pub(super) clones: Vec<String>,
}

/// How a pool is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Pool {
    pub(super) health: String,
    pub(super) is_read_only: bool,
}

/// Reads what `zfs list` says with [`DATASET`].
pub(super) fn datasets(text: &str) -> Vec<Dataset> {
    let dataset = |line: &str| {
        let [name, kind, guid, volsize, available, used, refreservation, reserved] = columns(line)?;
        Some(Dataset {
            name: name.to_owned(),
            is_volume: match kind {
                "volume" => true,
                "filesystem" => false,
                _ => return None,
            },
            guid: guid.parse().ok()?,
            volsize: number(volsize),
            available: number(available).unwrap_or(0),
            used: number(used).unwrap_or(0),
            refreservation: number(refreservation).unwrap_or(0),
            reserved: number(reserved).unwrap_or(0),
        })
    };
    text.lines().filter_map(dataset).collect()
}

/// Reads what `zfs list` says with [`SNAPSHOT`].
pub(super) fn snapshots(text: &str) -> Vec<Snapshot> {
    let snapshot = |line: &str| {
        let [name, guid, clones] = columns(line)?;
        let clones = clones.split(',').filter(|clone| !clone.is_empty() && *clone != "-");
        Some(Snapshot {
            name: name.to_owned(),
            guid: guid.parse().ok()?,
            clones: clones.map(str::to_owned).collect(),
        })
    };
    text.lines().filter_map(snapshot).collect()
}

/// Reads what `zpool list` says with [`POOL`].
pub(super) fn pool(text: &str) -> Option<Pool> {
    let [health, read_only] = columns(text.lines().next()?)?;
    Some(Pool { health: health.to_owned(), is_read_only: read_only == "on" })
}

/// Reads what `zfs get` says with [`PROPERTY`]: for each name its properties.
pub(super) fn properties(text: &str) -> BTreeMap<String, Properties> {
    let mut found: BTreeMap<String, Properties> = BTreeMap::new();
    for line in text.lines() {
        let mut parts = line.splitn(3, '\t');
        if let (Some(name), Some(property), Some(value)) = (parts.next(), parts.next(), parts.next())
            && property.starts_with("hostsnap:")
        {
            found.entry(name.to_owned()).or_default().insert(property.to_owned(), value.to_owned());
        }
    }
    found
}

/// Reads what `zfs holds -H` says: the names and the tags on them.
pub(super) fn holds(text: &str) -> Vec<(String, String)> {
    let hold = |line: &str| {
        let [name, tag, _when] = columns(line)?;
        Some((name.to_owned(), tag.to_owned()))
    };
    text.lines().filter_map(hold).collect()
}

fn columns<const N: usize>(line: &str) -> Option<[&str; N]> {
    line.split('\t').collect::<Vec<_>>().try_into().ok()
}

fn number(text: &str) -> Option<u64> {
    text.parse().ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// What one version said of the same.
    struct Recorded {
        datasets: &'static str,
        snapshots: &'static str,
        properties: &'static str,
        holds: &'static str,
    }

    /// OpenZFS 2.1.11, Debian 12.
    const OLDER: Recorded = Recorded {
        datasets: include_str!("fixtures/zfs-2.1.11-datasets.tsv"),
        snapshots: include_str!("fixtures/zfs-2.1.11-snapshots.tsv"),
        properties: include_str!("fixtures/zfs-2.1.11-properties.tsv"),
        holds: include_str!("fixtures/zfs-2.1.11-holds.tsv"),
    };
    /// OpenZFS 2.3.9, Debian 13.
    const NEWER: Recorded = Recorded {
        datasets: include_str!("fixtures/zfs-2.3.9-datasets.tsv"),
        snapshots: include_str!("fixtures/zfs-2.3.9-snapshots.tsv"),
        properties: include_str!("fixtures/zfs-2.3.9-properties.tsv"),
        holds: include_str!("fixtures/zfs-2.3.9-holds.tsv"),
    };

    #[test]
    fn what_zfs_said_is_read() {
        for said in [OLDER, NEWER] {
            let mut all = datasets(said.datasets);
            // The newer was asked after its snapshot was cloned.
            all.retain(|one| !one.name.starts_with("tank/vms/c"));
            let names: Vec<&str> = all.iter().map(|one| one.name.as_str()).collect();
            assert_eq!(names, ["tank/vms", "tank/vms/images", "tank/vms/sparse", "tank/vms/thick"]);
            assert_eq!(all.iter().map(|one| one.is_volume).collect::<Vec<_>>(), [false, false, true, true]);
            assert!(all.iter().all(|one| one.guid > 1 << 32));
            // A volume that is not sparse reserves all of it a second time for a snapshot.
            let [store, _, sparse, thick] = &all[..] else { unreachable!("there are four") };
            assert_eq!((sparse.needed_bytes(), sparse.volsize), (0, Some(16 << 20)));
            assert!(thick.needed_bytes() > 8 << 20, "{thick:?}");
            assert!(
                thick.available > thick.free_bytes() && thick.free_bytes() == store.free_bytes(),
                "{thick:?}"
            );
        }
    }

    #[test]
    fn snapshots_properties_and_holds_are_read() {
        for said in [OLDER, NEWER] {
            let all = snapshots(said.snapshots);
            let names: Vec<&str> = all.iter().map(|one| one.name.as_str()).collect();
            assert_eq!(names, ["tank/vms/images@one", "tank/vms/sparse@one"]);
            assert_eq!(all[0].clones, [""; 0]);
            assert_eq!(all[1].clones, ["tank/vms/c2", "tank/vms/c1"]);
            let properties = properties(said.properties);
            assert_eq!(properties.len(), 1, "{properties:?}");
            let ours = &properties["tank/vms/sparse@one"];
            // Nothing but ours; a value may hold what it likes.
            assert_eq!(ours.keys().collect::<Vec<_>>(), ["hostsnap:record.0", "hostsnap:vm"]);
            assert_eq!(ours["hostsnap:record.0"], "1:{\"a\":\"b\tc\"}");
            let held = holds(said.holds);
            let mut tags: Vec<String> = held.into_iter().map(|(name, tag)| format!("{tag} {name}")).collect();
            tags.sort();
            assert_eq!(tags, ["hostsnap tank/vms/sparse@one", "mine tank/vms/sparse@one"]);
        }
    }

    #[test]
    fn a_pool_is_well_or_is_not() {
        let well = pool("ONLINE\toff\n").unwrap();
        assert!(well.health == "ONLINE" && !well.is_read_only);
        assert!(pool("SUSPENDED\ton\n").unwrap().is_read_only);
        for none in ["", "\n", "ONLINE", "ONLINE\toff\tmore"] {
            assert_eq!(pool(none), None, "{none:?}");
        }
    }

    proptest! {
        #[test]
        fn no_text_however_broken_makes_it_panic(
            said in prop::sample::select([OLDER.datasets, NEWER.datasets].as_slice()),
            at in 0..OLDER.datasets.len(),
            len in 0..100_usize,
            with in "[\t\n -~ä]{0,20}",
        ) {
            let end = (at + len).min(said.len());
            if said.is_char_boundary(at) && said.is_char_boundary(end) {
                let text = format!("{}{with}{}", &said[..at], &said[end..]);
                for one in datasets(&text) {
                    let _ = (one.free_bytes(), one.needed_bytes());
                }
                let _ = (snapshots(&text), properties(&text), holds(&text), pool(&text));
            }
        }
    }
}
