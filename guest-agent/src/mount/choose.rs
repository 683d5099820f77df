//! Which of the file systems on a snapshot's disks is the one that a path was on. Pure.
//!
//! What is mounted at that path now has the UUID that is looked for, unless it was made anew since. Where
//! nothing is mounted there, or something else, the record's kind and what ext4 remembers of its last mount point
//! must do; what stays ambiguous is refused, with the choices.

use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use protocol::ErrorCode;
use protocol::record::MountRecord;
use uuid::Uuid;

use super::find::Found;
use super::place::Place;
use super::probe::{FileSystem, Kind};

/// Why none was chosen.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NoChoice {
    /// The snapshot holds no file system.
    #[error("the snapshot notes no file system; hostsnap attach gives you its disks")]
    NothingMounted,
    /// Several are in it, and none was named.
    #[error("the snapshot holds several file systems: {}; name one of them with --path", list(.0))]
    Several(Vec<String>),
    /// The path was on none of them.
    #[error("{} is on no file system of the snapshot, which holds {}", path.display(), list(holds))]
    NotIn {
        /// The path.
        path: PathBuf,
        /// The mount points.
        holds: Vec<String>,
    },
    /// One that can't be mounted this way.
    #[error("{mount} was {fs_type}, which hostsnap can't mount from a snapshot")]
    Kind {
        /// Where it was mounted.
        mount: String,
        /// Its kind.
        fs_type: String,
    },
    /// No such file system is on its disks.
    #[error("the {fs_type} of {mount} is not on the snapshot's disks{others}")]
    Missing {
        /// Where it was mounted.
        mount: String,
        /// Its kind.
        fs_type: &'static str,
        /// What is there instead.
        others: String,
    },
    /// It may be inside a container that is locked.
    #[error(
        "the file system of {mount} is not on the snapshot's disks, unless it is inside LUKS on {places}"
    )]
    Locked {
        /// Where it was mounted.
        mount: String,
        /// Where the containers are.
        places: String,
    },
    /// Several would do.
    #[error("several file systems of the snapshot may be that of {mount}:{choices}")]
    Ambiguous {
        /// Where it was mounted.
        mount: String,
        /// One a line.
        choices: String,
    },
}

fn list(mounts: &[String]) -> String {
    mounts.join(", ")
}

impl NoChoice {
    pub(super) const fn code(&self) -> ErrorCode {
        match self {
            Self::NothingMounted | Self::Kind { .. } => ErrorCode::Unsupported,
            Self::Several(_) | Self::Locked { .. } => ErrorCode::BadRequest,
            Self::NotIn { .. } | Self::Missing { .. } => ErrorCode::NotFound,
            Self::Ambiguous { .. } => ErrorCode::Ambiguous,
        }
    }

    pub(super) fn hint(&self) -> String {
        match self {
            Self::Kind { .. } | Self::Missing { .. } => {
                "hostsnap attach gives you the snapshot's disks as they are"
            }
            Self::Locked { .. } => "open it with --luks-key-file FILE",
            Self::Ambiguous { .. } => "name one of them with --uuid UUID",
            Self::NothingMounted | Self::Several(_) | Self::NotIn { .. } => {
                "hostsnap show lists its file systems"
            }
        }
        .to_owned()
    }
}

/// What is mounted at the path of the original now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Original {
    /// Its kind.
    pub kind: Kind,
    /// Its UUID.
    pub uuid: Uuid,
    /// Which part of it is mounted: `/`, a subvolume, a folder.
    pub root: PathBuf,
}

/// The file system of the record that holds this path; the only one, if none is named.
pub fn recorded<'a>(mounts: &'a [MountRecord], path: Option<&Path>) -> Result<&'a MountRecord, NoChoice> {
    let all = || mounts.iter().map(|mount| mount.path.to_string()).collect::<Vec<_>>();
    let Some(path) = path else {
        return match mounts {
            [] => Err(NoChoice::NothingMounted),
            [one] => Ok(one),
            _ => Err(NoChoice::Several(all())),
        };
    };
    let holds = |mount: &&MountRecord| path.starts_with(mount.path.as_str());
    mounts
        .iter()
        .filter(holds)
        .max_by_key(|mount| Path::new(mount.path.as_str()).components().count())
        .ok_or_else(|| NoChoice::NotIn { path: path.to_owned(), holds: all() })
}

/// A file system, and its devices.
pub type Choice = (FileSystem, Vec<Arc<Place>>);

/// Chooses.
pub fn choose(
    found: Found,
    mount: &MountRecord,
    original: Option<&Original>,
    wanted: Option<Uuid>,
) -> Result<Choice, NoChoice> {
    let path = mount.path.to_string();
    let kind = Kind::of_mounted(mount.fs_type.as_str())
        .ok_or_else(|| NoChoice::Kind { mount: path.clone(), fs_type: mount.fs_type.to_string() })?;
    let Found { file_systems, locked, left_out } = found;
    let matching = |fits: &dyn Fn(&FileSystem) -> bool| {
        file_systems.iter().filter(|(fs, _)| fits(fs)).collect::<Vec<_>>()
    };
    let mut fitting = match (wanted, original) {
        (Some(uuid), _) => matching(&|fs| fs.uuid == uuid),
        (None, Some(original)) => matching(&|fs| fs.uuid == original.uuid && fs.kind == original.kind),
        (None, None) => Vec::new(),
    };
    if fitting.is_empty() && wanted.is_none() && (original.is_none() || locked.is_empty()) {
        fitting = matching(&|fs| fs.kind == kind);
        if fitting.len() > 1 {
            let remembers = matching(&|fs| fs.kind == kind && fs.last_mounted == path);
            if remembers.len() == 1 {
                fitting = remembers;
            }
        }
    }
    match fitting[..] {
        [(fs, places)] => Ok((fs.clone(), places.clone())),
        [] if !locked.is_empty() => {
            let places: Vec<_> = locked.iter().map(|(_, place)| place.name()).collect();
            Err(NoChoice::Locked { mount: path, places: places.join(", ") })
        }
        [] => {
            let told = file_systems.iter().map(|(fs, _)| format!("{} {}", fs.kind.as_str(), fs.uuid));
            let mut others: Vec<_> = told.chain(left_out).collect();
            others.insert(0, String::new());
            let others = if others.len() > 1 { others.join("; ") } else { String::new() };
            Err(NoChoice::Missing { mount: path, fs_type: kind.as_str(), others })
        }
        _ => {
            let choices = fitting.iter().fold(String::new(), |mut text, (fs, places)| {
                let on: Vec<_> = places.iter().map(|place| place.name()).collect();
                let _ = write!(text, " {} (on {}, label {:?})", fs.uuid, on.join(" and "), fs.label);
                text
            });
            Err(NoChoice::Ambiguous { mount: path, choices })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::place::tests::image;
    use super::*;

    fn mount(path: &str, fs_type: &str) -> MountRecord {
        MountRecord { path: path.parse().unwrap(), fs_type: fs_type.parse().unwrap() }
    }

    fn fs(kind: Kind, uuid: u128, last_mounted: &str) -> (FileSystem, Vec<Arc<Place>>) {
        let fs = FileSystem {
            kind,
            uuid: Uuid::from_u128(uuid),
            label: String::new(),
            last_mounted: last_mounted.to_owned(),
            needs_recovery: false,
            devices: 1,
        };
        (fs, vec![image(b"")])
    }

    fn found(file_systems: Vec<(FileSystem, Vec<Arc<Place>>)>) -> Found {
        Found { file_systems, ..Found::default() }
    }

    #[test]
    fn a_path_is_on_the_deepest_mount_above_it() {
        let mounts = [mount("/", "ext4"), mount("/data", "xfs"), mount("/data/deep", "xfs")];
        for (path, expected) in
            [("/etc/passwd", "/"), ("/data", "/data"), ("/database", "/"), ("/data/deep/x", "/data/deep")]
        {
            assert_eq!(recorded(&mounts, Some(Path::new(path))).unwrap().path.as_str(), expected);
        }
        assert!(matches!(recorded(&mounts, None), Err(NoChoice::Several(_))));
        assert!(matches!(recorded(&[], None), Err(NoChoice::NothingMounted)));
        assert_eq!(recorded(&mounts[1..2], None).unwrap().path.as_str(), "/data");
        assert!(matches!(recorded(&mounts[1..], Some(Path::new("/etc"))), Err(NoChoice::NotIn { .. })));
    }

    #[test]
    fn the_uuid_of_what_is_mounted_now_decides_before_anything_else() {
        let original = |uuid| Original { kind: Kind::Ext4, uuid: Uuid::from_u128(uuid), root: "/".into() };
        let all =
            || found(vec![fs(Kind::Ext4, 1, "/data"), fs(Kind::Ext4, 2, "/other"), fs(Kind::Xfs, 3, "")]);
        let chosen = |mounted: &MountRecord, original: Option<Original>, wanted| {
            choose(all(), mounted, original.as_ref(), wanted).map(|(fs, _)| fs.uuid.as_u128())
        };
        let data = mount("/data", "ext4");
        assert_eq!(chosen(&data, Some(original(2)), None), Ok(2));
        // Made anew since, or not mounted: by what it remembers.
        assert_eq!(chosen(&data, Some(original(9)), None), Ok(1));
        assert_eq!(chosen(&data, None, None), Ok(1));
        assert_eq!(chosen(&mount("/x", "xfs"), None, None), Ok(3), "the only one of its kind");
        assert_eq!(chosen(&data, Some(original(2)), Some(Uuid::from_u128(1))), Ok(1));
        let told = chosen(&mount("/moved", "ext4"), None, None).unwrap_err();
        assert!(
            matches!(told, NoChoice::Ambiguous { .. }) && told.to_string().contains("-000000000002"),
            "{told}"
        );
        let told = chosen(&mount("/b", "btrfs"), None, None).unwrap_err().to_string();
        assert!(told.contains("xfs 00000000"), "{told}");
        assert!(chosen(&data, None, Some(Uuid::from_u128(7))).is_err(), "what was named and is not there");
        assert!(matches!(chosen(&mount("/v", "vfat"), None, None), Err(NoChoice::Kind { .. })));
    }

    #[test]
    fn what_may_be_in_a_locked_container_is_not_taken_for_something_else() {
        let original = Original { kind: Kind::Ext4, uuid: Uuid::from_u128(9), root: "/".into() };
        let mut all = found(vec![fs(Kind::Ext4, 1, "/data")]);
        all.locked.push(("luks".to_owned(), image(b"")));
        let told = choose(all, &mount("/data", "ext4"), Some(&original), None).unwrap_err();
        assert!(matches!(told, NoChoice::Locked { .. }) && told.hint().contains("--luks-key-file"), "{told}");
    }
}
