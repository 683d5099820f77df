//! Mounting a snapshot: attach, find, choose, mount. Each step is noted before it is made (`state`), so that `undo`
//! can undo it, whatever ends it in the middle.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use protocol::attach::{Access, AttachedName};
use protocol::record::MountRecord;
use protocol::{Consistency, DiskSerial, SnapshotId, SnapshotRecord};
use rustix::io::Errno;
use uuid::Uuid;

use super::attachment::{self, Options};
use super::choose::{self, NoChoice, Original};
use super::find::{Found, find};
use super::mapper::{self, Writes};
use super::place::Place;
use super::probe::{FileSystem, Kind};
use super::state::{self, Kept, Mounted};
use super::undo::{sweep, undo};
use super::{MountError, btrfs, folder, luks, original, udev};
use crate::attach;
use crate::client::Client;
use crate::topology::capture;

/// What is to be mounted, and how.
#[derive(Debug, Clone, Default)]
pub struct Wish {
    /// A path on the file system; not needed where the snapshot has only one.
    pub path: Option<PathBuf>,
    /// Its UUID, where it can't be told.
    pub uuid: Option<Uuid>,
    /// Opens what is inside LUKS.
    pub luks_key_file: Option<PathBuf>,
    /// Whether it is to be writable: a clone that is thrown away.
    pub writable: bool,
}

/// What would be done.
#[derive(Debug)]
pub struct Plan<'a> {
    /// The file system, as the record has it.
    pub mount: &'a MountRecord,
    /// What is mounted there now.
    pub original: Option<Original>,
    /// Which disks of the snapshot hold it; none is all, where that can't be told.
    pub disks: Vec<DiskSerial>,
    /// How they are attached.
    pub access: Access,
}

/// A file system of a snapshot, mounted out of sight as long as this lives.
#[derive(Debug)]
pub struct View {
    kept: Kept,
    /// The mount.
    pub mount: OwnedFd,
    /// What it is.
    pub fs: FileSystem,
    /// The part of it that was mounted at the original's path.
    pub root: PathBuf,
    /// The path that it is of.
    pub of: PathBuf,
    /// How it is mounted.
    pub options: Options,
    /// What a user should know.
    pub notes: Vec<String>,
}

/// Decides what can be decided without attaching anything.
pub fn plan<'a>(record: &'a SnapshotRecord, wish: &Wish) -> Result<Plan<'a>, MountError> {
    let mount = choose::recorded(&record.mounts, wish.path.as_deref())?;
    let kind = Kind::of_mounted(mount.fs_type.as_str()).ok_or_else(|| NoChoice::Kind {
        mount: mount.path.to_string(),
        fs_type: mount.fs_type.to_string(),
    })?;
    let capture = capture::live().map_err(|error| MountError::Host(error.into()))?;
    let (original, disks) = match original::at(&capture, Path::new(mount.path.as_str())) {
        Some((original, beneath)) => (Some(original), in_record(record, &beneath)),
        None => (None, Vec::new()),
    };
    // A copy of a btrfs has to get another UUID.
    let access = if wish.writable || kind == Kind::Btrfs { Access::Writable } else { Access::ReadOnly };
    Ok(Plan { mount, original, disks, access })
}

/// The snapshot's disks of these serials; none, unless it has all of them.
fn in_record(record: &SnapshotRecord, serials: &[String]) -> Vec<DiskSerial> {
    let known = |serial: &String| {
        let serial = serial.parse::<DiskSerial>().ok()?;
        record.disks.iter().find(|disk| disk.serial.same_disk(&serial)).map(|disk| disk.serial.clone())
    };
    serials.iter().map(known).collect::<Option<_>>().unwrap_or_default()
}

/// Attaches, finds, chooses and mounts out of sight; for a folder, if one is named.
pub fn open(
    client: &mut Client,
    record: &SnapshotRecord,
    wish: &Wish,
    at: Option<&Path>,
) -> Result<View, MountError> {
    let plan = plan(record, wish)?;
    let _lock = state::lock(&folder())?;
    sweep(client)?;
    udev::guard();
    let of_this = |mounted: &Mounted| mounted.snapshot == record.id;
    let attached = client.attachments().map_err(|error| MountError::Host(error.into()))?;
    let by_hand = attached.iter().any(|attachment| attachment.snapshot == record.id)
        && !state::needed(&folder()).iter().any(|mounted| of_this(mounted) && mounted.attached);
    let mut kept = Kept::new(
        &folder(),
        Mounted {
            snapshot: record.id,
            at: at.map(Path::to_owned),
            of: plan.mount.path.to_string(),
            mount_id: None,
            devices: Vec::new(),
            attached: !by_hand,
        },
    )?;
    let built = match build(client, record, wish, &plan, &plan.disks, &mut kept) {
        // It was on other disks when the snapshot was taken.
        Err(MountError::Choice(NoChoice::Missing { .. })) if !plan.disks.is_empty() => {
            build(client, record, wish, &plan, &[], &mut kept)
        }
        built => built,
    };
    match built {
        Ok(built) => Ok(built.into_view(kept, &plan, record)),
        Err(error) => Err(error.and(undo(client, kept))),
    }
}

struct Built {
    mount: OwnedFd,
    fs: FileSystem,
    options: Options,
}

impl Built {
    fn into_view(self, kept: Kept, plan: &Plan<'_>, record: &SnapshotRecord) -> View {
        let Self { mount, fs, options } = self;
        let mut notes = Vec::new();
        let unreplayed = match fs.kind {
            Kind::Ext4 => fs.needs_recovery,
            Kind::Xfs => record.consistency == Consistency::Crash,
            Kind::Btrfs => false,
        };
        if unreplayed && plan.access == Access::ReadOnly {
            notes.push(format!(
                "the journal of {} was not replayed, so what was written last may be missing or torn; \
                 --writable replays it in a clone",
                plan.mount.path
            ));
        }
        notes.extend(udev::note());
        let root = original::root(plan.original.as_ref(), &fs);
        View { kept, mount, root, fs, of: plan.mount.path.as_str().into(), options, notes }
    }
}

fn build(
    client: &mut Client,
    record: &SnapshotRecord,
    wish: &Wish,
    plan: &Plan<'_>,
    disks: &[DiskSerial],
    kept: &mut Kept,
) -> Result<Built, MountError> {
    let disks = attach::attach(client, record.id, disks, plan.access).map_err(MountError::Host)?;
    let reading = || MountError::io("read what is on the attached disks");
    let places = disks.into_iter().map(|disk| Place::open(disk.path).map(Arc::new));
    let mut found = find(places.collect::<Result<_, _>>().map_err(reading())?).map_err(reading())?;
    let writes = if plan.access == Access::Writable { Writes::Allowed } else { Writes::Never };
    let digits = digits(record.id);
    if let Some(key) = &wish.luks_key_file {
        unlock(&mut found, key, &digits, writes, kept)?;
    }
    let (fs, places) = choose::choose(found, plan.mount, plan.original.as_ref(), wish.uuid)?;
    let mut devices = Vec::new();
    for place in &places {
        devices.push(realize(place, &digits, writes, kept)?);
    }
    if fs.kind == Kind::Btrfs {
        identify(&places, &devices)?;
    }
    let options = attachment::options(&fs, if wish.writable { Writes::Allowed } else { Writes::Never });
    let doing = format!("mount the {} of {} with {options}", fs.kind.as_str(), plan.mount.path);
    let mount = attachment::mount(&fs, &devices, &options).map_err(MountError::io(doing))?;
    Ok(Built { mount, fs, options })
}

/// As attached disks are named.
fn digits(snapshot: SnapshotId) -> String {
    AttachedName::new(snapshot, 0).digits().to_owned()
}

/// Notes the devices first, then makes them.
fn realize(place: &Place, digits: &str, writes: Writes, kept: &mut Kept) -> Result<PathBuf, MountError> {
    kept.will_make(mapper::names(digits, place))?;
    mapper::realize(digits, place, writes)
        .map_err(MountError::io(format!("make a block device of {} of the snapshot", place.name())))
}

/// Opens every container, and those inside.
fn unlock(
    found: &mut Found,
    key: &Path,
    digits: &str,
    writes: Writes,
    kept: &mut Kept,
) -> Result<(), MountError> {
    while let Some((uuid, place)) = found.locked.pop() {
        let device = realize(&place, digits, writes, kept)?;
        let name = mapper::name(digits, &format!("luks-{uuid}"));
        kept.will_make(vec![name.clone()])?;
        let opened = luks::open(&device, &name, key, writes)?;
        let reading = || MountError::io(format!("read what is in LUKS {uuid}"));
        let place = Place::open(opened).map_err(reading())?;
        found.merge(find(vec![Arc::new(place)]).map_err(reading())?);
    }
    Ok(())
}

/// All devices of a copy get one new UUID, unless it is mounted already: then it has one.
fn identify(places: &[Arc<Place>], devices: &[PathBuf]) -> Result<(), MountError> {
    let uuid = Uuid::new_v4();
    for (place, device) in places.iter().zip(devices) {
        use std::os::unix::fs::OpenOptionsExt;
        let exclusive = rustix::fs::OFlags::EXCL.bits().cast_signed();
        let opened = std::fs::File::options().read(true).write(true).custom_flags(exclusive).open(device);
        match opened {
            Ok(file) => btrfs::identify(&file, place.size_bytes(), uuid)?,
            Err(error) if error.raw_os_error() == Some(Errno::BUSY.raw_os_error()) => return Ok(()),
            Err(error) => return Err(MountError::io(format!("write to {}", device.display()))(error)),
        }
    }
    Ok(())
}

impl View {
    /// Shows it at the folder that it was opened for.
    pub fn place(self, client: &mut Client) -> Result<(), MountError> {
        let Self { mut kept, mount, root, .. } = self;
        let Some(at) = kept.mounted.at.clone() else { return undo(client, kept) };
        let meanwhile = folder().join(format!("whole-{}", Uuid::new_v4()));
        let doing = || MountError::io(format!("mount it at {}", at.display()));
        let placed = attachment::part(mount, &root, &meanwhile).map_err(doing()).and_then(|mount| {
            kept.mounted.mount_id = Some(attachment::id(&mount).map_err(doing())?);
            kept.save()?;
            attachment::place(&mount, &at).map_err(doing())
        });
        placed.map_err(|error| error.and(undo(client, kept)))
    }

    /// Undoes it.
    pub fn close(self, client: &mut Client) -> Result<(), MountError> {
        drop(self.mount);
        let _lock = state::lock(&folder())?;
        undo(client, self.kept)
    }
}
