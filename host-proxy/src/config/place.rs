//! Where each key stands in the text, so that a mistake in its value is told with its line. The
//! text is read a second time for this: the configuration itself stays free of places.

use serde::Deserialize;
use serde::de::IgnoredAny;
use toml::Spanned;

type Key = Option<Spanned<IgnoredAny>>;

/// The places of all keys whose values are checked.
#[derive(Default, Deserialize)]
#[serde(default)]
pub(super) struct Places {
    pub(super) service: ServicePlaces,
    pub(super) libvirt: LibvirtPlaces,
    pub(super) store: Vec<StorePlaces>,
    pub(super) vm: Vec<VmPlaces>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
pub(super) struct ServicePlaces {
    pub(super) state_dir: Key,
    pub(super) control_socket: Key,
    pub(super) max_connections_per_vm: Key,
    pub(super) max_lease: Key,
}

#[derive(Default, Deserialize)]
#[serde(default)]
pub(super) struct LibvirtPlaces {
    pub(super) uri: Key,
    pub(super) stores: Key,
    pub(super) store: Key,
}

#[derive(Default, Deserialize)]
#[serde(default)]
pub(super) struct StorePlaces {
    pub(super) name: Key,
    pub(super) driver: Key,
    pub(super) path: Key,
    pub(super) pool: Key,
    pub(super) dataset: Key,
    pub(super) conf: Key,
    pub(super) timeout: Key,
    pub(super) endpoint: Key,
    pub(super) node_endpoint: Key,
    pub(super) secrets_file: Key,
}

#[derive(Default, Deserialize)]
#[serde(default)]
pub(super) struct VmPlaces {
    pub(super) name: Key,
    pub(super) uuid: Key,
    pub(super) cid: Key,
    pub(super) socket: Key,
    pub(super) qmp: Key,
    pub(super) disk: Vec<DiskPlaces>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
pub(super) struct DiskPlaces {
    pub(super) serial: Key,
    pub(super) store: Key,
    pub(super) path: Key,
    pub(super) volume: Key,
}

impl Places {
    /// The places in a text that is a configuration already.
    pub(super) fn of(text: &str) -> Self {
        toml::from_str(text).unwrap_or_default()
    }
}

/// Where a key's value begins; the file's beginning if the key is not there.
pub(super) fn start(key: &Key) -> usize {
    key.as_ref().map_or(0, |value| value.span().start)
}
