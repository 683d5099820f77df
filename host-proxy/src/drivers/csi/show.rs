//! Showing a disk of a snapshot on this host: a volume is made of it, published to this host as to a node, staged where the
//! plugin wants that, and put at a path. Each call may be made again, and gives the same: so all are, each time.

use std::fs;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use protocol::DiskSerial;

use super::codes::Refusal;
use super::disk::Disk;
use super::node::Node;
use super::plugin::Plugin;
use super::proto::{
    ControllerPublishRequest, ControllerPublishResponse, Empty, NodePublishRequest, NodeStageRequest,
    VolumeCapability, method,
};
use super::secrets::Secrets;
use super::shown::{Asked, Shown, Spot, Volume};
use super::{Csi, Store, entry, hide, volume};
use crate::drivers::{DriverError, Expose, Exposed, Format, Kind, Owner};

/// How long all of it may take: the service waits 60 s. Of a plugin whose answers are waited for less long, twice that.
const LIMIT: Duration = Duration::from_secs(50);

impl Expose for Csi {
    fn expose(&self, owner: Owner, volume: &DiskSerial) -> Result<Exposed, DriverError> {
        let path = show(&self.store, owner, volume)?;
        Ok(Exposed::Path { path, format: Format::Raw })
    }

    fn shown(&self) -> Result<Vec<(Owner, DiskSerial)>, DriverError> {
        let spots = Spot::all(&self.store)?;
        let noted = spots.into_iter().filter_map(|(snapshot, spot)| {
            let shown = Shown::read(&spot).transpose()?;
            Some(shown.map(|shown| (Owner { vm: shown.vm, snapshot }, shown.serial)))
        });
        noted.collect()
    }

    fn conceal(&self, owner: Owner, volume: &DiskSerial) -> Result<(), DriverError> {
        hide::disk(&self.store, owner, volume)
    }
}

/// A step that failed.
struct Failed {
    error: DriverError,
    /// Whether what was asked for may still be done: then only later calls can undo it.
    is_open: bool,
}

impl From<DriverError> for Failed {
    fn from(error: DriverError) -> Self {
        Self { error, is_open: false }
    }
}

/// Where the disk can be read, from now on.
pub(super) fn show(store: &Store, owner: Owner, serial: &DiskSerial) -> Result<PathBuf, DriverError> {
    let disk = Disk::find(store, owner, serial)?;
    let secrets = store.secrets()?;
    let plugin = store.plugin_of(&disk.entry, &secrets)?;
    let node = store.node(&plugin, &secrets)?;
    let spot = Spot::new(store, owner, disk.index);
    let now = wanted(store, owner, &disk, &plugin, &node);
    let mut before = Shown::read(&spot)?;
    if before.as_ref().is_some_and(|before| !before.is(&now)) {
        // This host is another node now, or the store has other parameters.
        hide::spot(store, &spot)?;
        before = None;
    }
    let is_new = before.is_none();
    let mut steps = Steps { store, secrets, plugin, spot, shown: before.unwrap_or(now), is_new };
    let doing = format!("show the disk {serial} of {}", owner.snapshot);
    let done = steps.all(&doing).and_then(|()| Ok(readable(&steps.spot.device(), disk.member().size_bytes)?));
    match done {
        Ok(path) => Ok(path),
        // Somebody may read what was shown before. What was asked for and may still be done is taken back later.
        Err(Failed { error, is_open }) if is_open || !is_new => Err(error),
        Err(Failed { error, .. }) => {
            let undone = steps.undone();
            Err(error.after_undo(undone))
        }
    }
}

fn wanted(store: &Store, owner: Owner, disk: &Disk, plugin: &Plugin, node: &Node) -> Shown {
    let asked = Asked {
        name: entry::shown_name(owner, disk.index),
        snapshot: disk.made.id.clone(),
        // A volume must not be smaller than the storage says that its snapshot is, whatever its device has.
        required_bytes: disk.member().size_bytes.max(disk.made.size_bytes.unwrap_or(0)),
        parameters: store.place.volume_parameters.clone(),
        topology: node.topology.clone(),
    };
    Shown::new((owner.vm, &disk.member().serial), asked, plugin, node)
}

struct Steps<'a> {
    store: &'a Store,
    secrets: Secrets,
    plugin: Plugin,
    spot: Spot,
    shown: Shown,
    /// Nothing of it was there before.
    is_new: bool,
}

impl Steps<'_> {
    fn all(&mut self, doing: &str) -> Result<(), Failed> {
        let until = Instant::now() + LIMIT.min(self.store.place.timeout * 2);
        if self.is_new {
            self.spot.make()?;
            self.shown.write(&self.spot)?;
        }
        let volume = self.volume(doing, until)?;
        let failed = |refusal: Refusal| {
            let is_open = refusal.is_open();
            Failed { error: refusal.into_error(doing), is_open }
        };
        let publish_context = self.published(&volume, until).map_err(failed)?;
        let staging_target_path = if self.shown.stages { text(&self.spot.staging())? } else { String::new() };
        if self.shown.stages {
            let request = NodeStageRequest {
                volume_id: volume.id.clone(),
                publish_context: publish_context.clone(),
                staging_target_path: staging_target_path.clone(),
                volume_capability: Some(VolumeCapability::block()),
                secrets: self.secrets.for_request(),
                volume_context: volume.context.clone(),
            };
            let staged = self.store.node_client().insist(method::NODE_STAGE, request, &self.secrets, until);
            staged.map(|Empty {}| ()).map_err(failed)?;
        }
        let request = NodePublishRequest {
            volume_id: volume.id,
            publish_context,
            staging_target_path,
            target_path: text(&self.spot.device())?,
            volume_capability: Some(VolumeCapability::block()),
            readonly: true,
            secrets: self.secrets.for_request(),
            volume_context: volume.context,
        };
        let put = self.store.node_client().insist(method::NODE_PUBLISH, request, &self.secrets, until);
        put.map(|Empty {}| ()).map_err(failed)
    }

    /// The volume: the one that there is, or one that is made now. What the plugin calls it is noted before it is looked at.
    fn volume(&mut self, doing: &str, until: Instant) -> Result<Volume, Failed> {
        if let Some(volume) = &self.shown.volume {
            return Ok(volume.clone());
        }
        let told = volume::ask(&self.store.client, &self.shown.asked, &self.secrets, until);
        let answer = told.map_err(|refusal| {
            let is_open = volume::is_open(&refusal);
            Failed { error: refusal.into_error(doing), is_open }
        })?;
        self.shown.volume = Some(answer.volume.clone());
        self.shown.write(&self.spot)?;
        match answer.is_not_it {
            None => Ok(answer.volume),
            Some(why) => {
                let what = format!("{doing}: the volume that was made for it is of no use: {why}");
                Err(DriverError::new(Kind::Unsupported, what).into())
            }
        }
    }

    /// What the node service must hear of where the volume was published.
    fn published(
        &self,
        volume: &Volume,
        until: Instant,
    ) -> Result<std::collections::BTreeMap<String, String>, Refusal> {
        if !self.shown.publishes {
            return Ok(Default::default());
        }
        let request = ControllerPublishRequest {
            volume_id: volume.id.clone(),
            node_id: self.shown.node.clone(),
            volume_capability: Some(VolumeCapability::block()),
            // "CO MUST set this field to false if SP does not have the PUBLISH_READONLY controller capability."
            readonly: self.plugin.publishes_read_only,
            secrets: self.secrets.for_request(),
            volume_context: volume.context.clone(),
        };
        let told: ControllerPublishResponse =
            self.store.client.insist(method::PUBLISH, request, &self.secrets, until)?;
        Ok(told.publish_context)
    }

    /// Takes it back. A volume that was refused is none: it is not asked for again.
    fn undone(&self) -> Result<(), DriverError> {
        match &self.shown.volume {
            Some(_) => hide::spot(self.store, &self.spot),
            None => self.spot.remove(),
        }
    }
}

/// A path as a request takes it.
fn text(path: &Path) -> Result<String, DriverError> {
    path.to_str().map(str::to_owned).ok_or_else(|| {
        let what = format!("hand {} to the plugin: it is no UTF-8", path.display());
        DriverError::new(Kind::Unsupported, what)
    })
}

/// What the node service must have put there: a block device, or a file.
fn readable(device: &Path, size_bytes: u64) -> Result<PathBuf, DriverError> {
    let doing = || format!("read what the plugin's node service put at {}", device.display());
    let meta = fs::metadata(device).map_err(|error| DriverError::io(doing(), error))?;
    if meta.file_type().is_block_device() || (meta.is_file() && meta.len() >= size_bytes) {
        return Ok(device.to_owned());
    }
    let what = format!("{}: it is no block device; is its mount seen by this process?", doing());
    Err(DriverError::new(Kind::Failed, what))
}
