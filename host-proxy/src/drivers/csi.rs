//! Any storage that has a CSI plugin: its controller takes the snapshots, by gRPC on a Unix socket of this host. Where the
//! plugin can, all volumes of a set are one group, cut at one instant; else they are asked for side by side.
//!
//! CSI opens no snapshot: to show one, a volume is made of it and published to this host by the plugin's node service.
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
//! | `node` | this host as its node |
//! | `entry` | what this host keeps of a snapshot |
//! | `disk` | one disk of a whole snapshot |
//! | `ask` | asking for the snapshots of a set |
//! | `set` | from prepared to whole |
//! | `pending` | what became of a question whose answer was lost |
//! | `remove` | removing a snapshot, whatever its state |
//! | `inventory` | which of ours the storage still has |
//! | `shown` | what this host keeps of a disk that is shown |
//! | `volume` | asking for the volume that is made of a snapshot |
//! | `show`, `hide` | the steps from a snapshot to a path of this host, and back |
//! | `restore` | a volume given back the bytes of a snapshot |

mod ask;
#[doc(hidden)]
pub mod bare;
mod changes;
mod client;
mod codec;
mod codes;
mod disk;
mod entry;
mod hide;
mod inventory;
mod node;
mod pending;
mod plugin;
#[doc(hidden)]
pub mod proto;
mod remove;
mod restore;
mod secrets;
mod set;
mod show;
mod shown;
mod volume;

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
use self::node::Node;
use self::plugin::Plugin;
use self::proto::{
    Capacity, Empty, GetVolumeRequest, GetVolumeResponse, ValidateVolumeRequest, VolumeCapability, method,
};
use self::secrets::Secrets;
use self::set::{Prepared, Taken};
use super::folder::{Folder, Place as Where};
use super::{
    Abilities, Changes, Deleted, Driver, DriverError, Expose, Format, Found, Kind, Owner, Plan, ROOM_UNKNOWN,
    Ready, Recovered, Restore, Source, Volume, VolumeFacts, image,
};

/// Where the plugin is, and what it is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// The plugin's socket.
    pub endpoint: PathBuf,
    /// That of its node service on this host, where it has one of its own.
    pub node_endpoint: Option<PathBuf>,
    /// The folder of this host that holds what CSI has no place for.
    pub folder: PathBuf,
    /// For the plugin, with each snapshot: what Kubernetes calls the parameters of a class.
    pub parameters: BTreeMap<String, String>,
    /// For the plugin, with each volume that is made of a snapshot: what Kubernetes calls the parameters of a storage class.
    pub volume_parameters: BTreeMap<String, String>,
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
    /// Where the node service has a socket of its own.
    node: Option<Client>,
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
        let at = |socket: &PathBuf| Client::new(socket, place.timeout);
        let node = place.node_endpoint.as_ref().map(at).transpose()?;
        let folder = Folder::of_store(&place.folder);
        Ok(Self { store: Arc::new(Store { place, client, node, folder }) })
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
        self.plugin_named(&entry.plugin, secrets)
    }

    fn plugin_named(&self, name: &str, secrets: &Secrets) -> Result<Plugin, DriverError> {
        let plugin = self.plugin(secrets)?;
        if plugin.name == name {
            return Ok(plugin);
        }
        let what = format!(
            "use the snapshots of the CSI plugin {name}: behind {} is {} now; give that one a store of its own",
            self.client.endpoint(),
            plugin.name
        );
        Err(DriverError::new(Kind::Unsupported, what))
    }

    fn node_client(&self) -> &Client {
        self.node.as_ref().unwrap_or(&self.client)
    }

    /// This host as the plugin's node, where a volume that is made of a snapshot can be used.
    fn node(&self, plugin: &Plugin, secrets: &Secrets) -> Result<Node, DriverError> {
        if !plugin.makes_volumes {
            let what =
                format!("show snapshots of {}: it makes no volumes (CREATE_DELETE_VOLUME)", plugin.name);
            return Err(DriverError::new(Kind::Unsupported, what));
        }
        Node::ask(self.node_client(), plugin, secrets)
    }

    /// What it can show snapshots by, or why it can't: asked anew, since another version may be there by now.
    fn shows(&self) -> Result<(Plugin, Node), CantShow> {
        let secrets = self.secrets().map_err(CantShow::Nothing)?;
        let plugin = self.plugin(&secrets).map_err(CantShow::Nothing)?;
        if !plugin.makes_volumes {
            return Err(CantShow::NoVolumes(plugin));
        }
        match self.node(&plugin, &secrets) {
            Ok(node) => Ok((plugin, node)),
            Err(error) => Err(CantShow::NoNode(plugin, error)),
        }
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
            volume_capabilities: vec![VolumeCapability::block()],
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

/// Why no snapshot can be shown on this host.
enum CantShow {
    /// The plugin does not answer, or can't be asked.
    Nothing(DriverError),
    /// It makes no volumes.
    NoVolumes(Plugin),
    /// Its node service is not here.
    NoNode(Plugin, DriverError),
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

    fn expose(&self) -> Option<&dyn Expose> {
        self.store.shows().is_ok().then_some(self as &dyn Expose)
    }

    fn restore(&self) -> Option<&dyn Restore> {
        self.store.shows().is_ok().then_some(self as &dyn Restore)
    }

    fn exposes(&self) -> Option<&dyn Expose> {
        Some(self)
    }

    /// The plugin is asked once for all of them.
    fn abilities(&self) -> Abilities {
        let shows = self.store.shows();
        let plugin = match &shows {
            Ok((plugin, _)) | Err(CantShow::NoVolumes(plugin) | CantShow::NoNode(plugin, _)) => Some(plugin),
            Err(CantShow::Nothing(_)) => None,
        };
        Abilities {
            set: self.set_cut(),
            expose: shows.is_ok(),
            changes: plugin.is_some_and(|plugin| plugin.tells_changes),
            restore: shows.is_ok(),
        }
    }

    fn limits(&self) -> &'static str {
        macro_rules! limits {
            ($rest:literal) => {
                concat!(
                    "volumes of a CSI plugin, published on this host; one instant only where the plugin has groups; ",
                    $rest
                )
            };
        }
        match self.store.shows() {
            Ok(_) => limits!("a volume is made of a snapshot to show or restore it"),
            Err(CantShow::NoVolumes(_)) => limits!("shows and restores none: the plugin makes no volumes"),
            Err(CantShow::NoNode(..)) => {
                limits!("shows and restores none: no node service of the plugin answers on the host")
            }
            Err(CantShow::Nothing(_)) => limits!("the plugin does not answer now"),
        }
    }

    fn offers(&self) -> Option<String> {
        let (plugin, shows) = match self.store.shows() {
            Ok((plugin, node)) => (plugin, node.to_string()),
            Err(CantShow::NoVolumes(plugin)) => {
                (plugin, "shows no snapshots: it makes no volumes (CREATE_DELETE_VOLUME)".to_owned())
            }
            Err(CantShow::NoNode(plugin, error)) => {
                (plugin, format!("shows no snapshots: {}", crate::service::chain(&error)))
            }
            Err(CantShow::Nothing(error)) => return Some(crate::service::chain(&error)),
        };
        Some(format!("{plugin}; {shows}"))
    }
}
