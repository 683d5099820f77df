//! Any storage that has a CSI plugin: its controller takes the snapshots, by gRPC on a Unix socket of this host. Where the
//! plugin can, all volumes of a set are one group, cut at one instant; else they are asked for side by side.
//!
//! CSI has no place for a manifest and finds nothing by its name, so both, and what the plugin calls a snapshot, are kept in a
//! folder of this host: docs/decisions/0014-csi.md.
//!
//! | module | idea |
//! |---|---|
//! | `proto` | the messages |
//! | `changes` | what changed between two snapshots |
//! | `client` | calling, with a limit on every call |
//! | `codec` | bytes, for tonic |
//! | `codes` | what a refusal means |
//! | `secrets` | what only the plugin may see |
//! | `plugin` | what it is and can do |
//! | `entry` | what this host keeps of a snapshot |
//! | `ask` | asking for the snapshots of a set |
//! | `set` | from prepared to whole |
//! | `pending` | what became of a question whose answer was lost |
//! | `remove` | removing a snapshot, whatever its state |
//! | `inventory` | which of ours the storage still has |

mod ask;
#[doc(hidden)]
pub mod bare;
mod changes;
mod client;
mod codec;
mod codes;
mod entry;
mod inventory;
mod pending;
mod plugin;
#[doc(hidden)]
pub mod proto;
mod remove;
mod secrets;
mod set;

use std::collections::BTreeMap;
use std::fmt;
use std::fs::{self, File};
use std::io::{Seek, SeekFrom};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tonic::Code;

use self::client::Client;
use self::codes::Refusal;
use self::entry::{Cut, Entry, Member};
use self::plugin::Plugin;
use self::proto::{
    AccessMode, Capacity, Empty, GetVolumeRequest, GetVolumeResponse, ValidateVolumeRequest,
    VolumeCapability, method,
};
use self::secrets::Secrets;
use self::set::{Prepared, Taken};
use super::folder::{Folder, Place as Where};
use super::{
    Changes, Deleted, Driver, DriverError, Format, Found, Kind, Owner, Plan, ROOM_UNKNOWN, Ready, Recovered,
    Source, Volume, VolumeFacts, image,
};

/// Where the plugin is, and what it is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// The plugin's socket.
    pub endpoint: PathBuf,
    /// The folder of this host that holds what CSI has no place for.
    pub folder: PathBuf,
    /// For the plugin, with each snapshot: what Kubernetes calls the parameters of a class.
    pub parameters: BTreeMap<String, String>,
    /// The file of secrets for the plugin.
    pub secrets_file: Option<PathBuf>,
    /// How long one answer is waited for.
    pub timeout: Duration,
    /// Whether sets are cut as groups where the plugin can.
    pub group_snapshots: bool,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.folder.display())
    }
}

/// Snapshots by a CSI plugin.
pub struct Csi {
    store: Arc<Store>,
}

/// What all of a driver's parts share.
struct Store {
    place: Place,
    client: Client,
    folder: Folder,
}

impl Csi {
    /// A store with this plugin. The plugin need not be there yet; the folder must.
    pub fn new(place: Place) -> Result<Self, DriverError> {
        let shown = place.folder.display();
        let meta = fs::metadata(&place.folder)
            .map_err(|error| DriverError::io(format!("look at the store's folder {shown}"), error))?;
        if !meta.is_dir() {
            let what = format!("look at the store's folder {shown}: it is no folder");
            return Err(DriverError::new(Kind::NotFound, what));
        }
        let client = Client::new(&place.endpoint, place.timeout)?;
        let folder = Folder::of_store(&place.folder);
        Ok(Self { store: Arc::new(Store { place, client, folder }) })
    }
}

impl Store {
    fn secrets(&self) -> Result<Secrets, DriverError> {
        Secrets::read(self.place.secrets_file.as_deref())
    }

    fn plugin(&self, secrets: &Secrets) -> Result<Plugin, DriverError> {
        Plugin::ask(&self.client, secrets)
    }

    /// The plugin that made this entry's snapshots; no other may touch what it calls by the same names.
    fn plugin_of(&self, entry: &Entry, secrets: &Secrets) -> Result<Plugin, DriverError> {
        let plugin = self.plugin(secrets)?;
        if plugin.name == entry.plugin {
            return Ok(plugin);
        }
        let what = format!(
            "use the snapshots of the CSI plugin {}: behind {} is {} now; give that one a store of its own",
            entry.plugin,
            self.client.endpoint(),
            plugin.name
        );
        Err(DriverError::new(Kind::Unsupported, what))
    }

    /// The size of a volume as its guest sees it: what its device on this host says.
    fn size_bytes(volume: &Volume) -> Result<u64, DriverError> {
        let measured = |mut file: File| {
            file.seek(SeekFrom::End(0))
                .map_err(|error| DriverError::io(format!("measure {}", volume.source), error))
        };
        match image::open(volume).and_then(measured)? {
            0 => Err(DriverError::new(Kind::NotFound, format!("measure {}: it is empty", volume.source))),
            size_bytes => Ok(size_bytes),
        }
    }

    /// Refuses a volume that the plugin does not know. Every controller has this call ("MUST implement"), and "volume does not
    /// exist" is the one answer that it must give; GET_VOLUME, which few have, is not enough: the Kubernetes host-path
    /// driver answers it for any name. What is said of the capabilities is of no interest: some want a context that only
    /// Kubernetes has.
    fn refuse_unknown(&self, volume: &Volume, secrets: &Secrets) -> Result<(), DriverError> {
        let request = ValidateVolumeRequest {
            volume_id: volume_id(volume)?.to_owned(),
            volume_capabilities: vec![VolumeCapability {
                block: Some(Empty {}),
                access_mode: Some(AccessMode { mode: proto::SINGLE_NODE_WRITER }),
            }],
            secrets: secrets.for_request(),
        };
        let told: Result<Empty, Refusal> = self.client.call(method::VALIDATE_VOLUME, request, secrets);
        match told {
            Err(refusal) if refusal.code == Code::NotFound || refusal.is_silence() => {
                Err(refusal.into_error(format!("look for the volume {}", volume.source)))
            }
            _ => Ok(()),
        }
    }

    /// Whether the plugin knows this volume, and has as much of it as its guest sees.
    fn prove(
        &self,
        plugin: &Plugin,
        volume: &Volume,
        size_bytes: u64,
        secrets: &Secrets,
    ) -> Result<(), DriverError> {
        self.refuse_unknown(volume, secrets)?;
        if !plugin.tells_volumes {
            return Ok(());
        }
        let doing = || format!("look for the volume {}", volume.source);
        let request = GetVolumeRequest { volume_id: volume_id(volume)?.to_owned() };
        let told: GetVolumeResponse = self
            .client
            .call(method::GET_VOLUME, request, secrets)
            .map_err(|refusal| refusal.into_error(doing()))?;
        let capacity = told.volume.map_or(0, |volume| volume.capacity_bytes);
        match u64::try_from(capacity) {
            // 0 is "not told".
            Ok(capacity) if capacity == 0 || capacity >= size_bytes => Ok(()),
            _ => {
                let what = format!(
                    "{}: the storage says {capacity} bytes, the device has {size_bytes}; volume and path are not the same disk",
                    doing()
                );
                Err(DriverError::new(Kind::Unsupported, what))
            }
        }
    }
}

/// What the plugin calls a volume.
fn volume_id(volume: &Volume) -> Result<&str, DriverError> {
    let refuse =
        |why: &str| Err(DriverError::new(Kind::Unsupported, format!("snapshot {}: {why}", volume.source)));
    match (&volume.source, volume.format) {
        (Source::Published { volume, .. }, Format::Raw) => Ok(volume),
        (Source::Published { .. }, _) => refuse("this driver takes raw disks"),
        _ => refuse("this driver needs both, the volume's name on the storage and its path on this host"),
    }
}

impl Driver for Csi {
    fn name(&self) -> &'static str {
        "csi"
    }

    fn check(&self, volume: &Volume) -> Result<VolumeFacts, DriverError> {
        volume_id(volume)?;
        let size_bytes = Store::size_bytes(volume)?;
        let secrets = self.store.secrets()?;
        let plugin = self.store.plugin(&secrets)?;
        self.store.prove(&plugin, volume, size_bytes, &secrets)?;
        Ok(VolumeFacts { size_bytes })
    }

    /// CSI reads no volumes: this is the device where the volume is published on this host.
    fn read_head(&self, volume: &Volume, len: usize) -> Result<Vec<u8>, DriverError> {
        image::read_head(volume, len)
    }

    fn free_bytes(&self) -> Result<u64, DriverError> {
        let secrets = self.store.secrets()?;
        if !self.store.plugin(&secrets)?.tells_room {
            return Ok(ROOM_UNKNOWN);
        }
        let told: Capacity = self
            .store
            .client
            .call(method::GET_CAPACITY, Empty {}, &secrets)
            .map_err(|refusal| refusal.into_error("ask the storage for its room"))?;
        Ok(u64::try_from(told.available_capacity).unwrap_or(0))
    }

    fn prepare(&self, plan: &Plan, deadline: Instant) -> Result<Box<dyn Ready>, DriverError> {
        let store = &self.store;
        let secrets = store.secrets()?;
        let plugin = store.plugin(&secrets)?;
        let mut volumes = Vec::with_capacity(plan.volumes.len());
        for volume in &plan.volumes {
            if Instant::now() >= deadline {
                return Err(DriverError::new(Kind::DeadlinePassed, "look at the volumes"));
            }
            let size_bytes = Store::size_bytes(volume)?;
            let id = volume_id(volume)?.to_owned();
            store.prove(&plugin, volume, size_bytes, &secrets)?;
            image::flush(&image::open(volume)?, volume)?;
            volumes.push(Member { serial: volume.serial.clone(), volume: id, size_bytes });
        }
        let is_group = plugin.cuts_groups && store.place.group_snapshots && volumes.len() > 1;
        let entry = Entry::new(&plugin.name, is_group, volumes);
        let folder = store.folder.begin(plan.owner, &plan.manifest)?;
        let prepared = entry
            .write(&folder)
            .and_then(|note| Prepared::new(store, plan.owner, &entry, note))
            .map_err(|error| error.after_undo(remove::unasked(store, plan.owner)))?;
        Ok(Box::new(prepared))
    }

    fn list(&self) -> Result<Vec<Found>, DriverError> {
        inventory::list(&self.store)
    }

    fn recover(&self, owner: Owner, _: &[Volume]) -> Result<Recovered, DriverError> {
        let store = &self.store;
        let folder = match store.folder.place(owner) {
            Where::Absent => return Ok(Recovered::Nothing),
            Where::Whole(_) => return Ok(Recovered::Whole),
            Where::Deleting(_) => return remove::all(store, owner).map(|_| Recovered::Nothing),
            Where::Partial(folder) => folder,
        };
        let Some(entry) = Entry::read(&folder)? else {
            return remove::unasked(store, owner).map(|()| Recovered::Nothing);
        };
        let secrets = store.secrets()?;
        let plugin = store.plugin_of(&entry, &secrets)?;
        let cut = match Cut::read(&folder)? {
            Some(cut) => Some(cut),
            None => pending::was_cut(store, owner, &entry, &plugin, &secrets)?,
        };
        match cut {
            Some(cut) => {
                let taken = Taken::again(store, owner, &entry, Cut::reopen(&folder)?, cut)?;
                Ok(Recovered::Cut(Box::new(taken)))
            }
            None => remove::unasked(store, owner).map(|()| Recovered::Nothing),
        }
    }

    fn delete(&self, owner: Owner) -> Result<Deleted, DriverError> {
        remove::all(&self.store, owner)
    }

    fn rewrite(&self, owner: Owner, manifest: &[u8]) -> Result<(), DriverError> {
        self.store.folder.rewrite(owner, manifest)
    }

    /// Asked anew: another version of the plugin may be there by now. One that does not answer can't.
    fn changes(&self) -> Option<&dyn Changes> {
        let secrets = self.store.secrets().ok()?;
        let plugin = self.store.plugin(&secrets).ok()?;
        plugin.tells_changes.then_some(self as &dyn Changes)
    }

    fn limits(&self) -> &'static str {
        "volumes of a CSI plugin, published on this host; one instant only where the plugin has groups; no restore: CSI has no call for it"
    }
}
