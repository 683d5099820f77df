//! The bare call of a CSI plugin, for the benchmark that holds the driver against it.

use std::collections::BTreeMap;

use super::Place;
use super::client::Client;
use super::proto::{CreateSnapshotRequest, CreateSnapshotResponse, DeleteSnapshotRequest, Empty, method};
use super::secrets::Secrets;
use crate::drivers::{DriverError, Kind};

/// A plugin, and nothing around it.
pub struct BarePlugin {
    client: Client,
    secrets: Secrets,
}

impl BarePlugin {
    /// The plugin of this store. It is connected when it is asked for the first time.
    pub fn new(place: &Place) -> Result<Self, DriverError> {
        let client = Client::new(&place.endpoint, place.timeout)?;
        Ok(Self { client, secrets: Secrets::default() })
    }

    /// `CreateSnapshot`; what the plugin calls it.
    pub fn snapshot(&self, name: &str, volume: &str) -> Result<String, DriverError> {
        let request = CreateSnapshotRequest {
            source_volume_id: volume.to_owned(),
            name: name.to_owned(),
            secrets: BTreeMap::new(),
            parameters: BTreeMap::new(),
        };
        let made: CreateSnapshotResponse = self
            .client
            .call(method::CREATE_SNAPSHOT, request, &self.secrets)
            .map_err(|refusal| refusal.into_error("snapshot the volume"))?;
        let id = made.snapshot.map(|snapshot| snapshot.snapshot_id);
        id.ok_or_else(|| DriverError::new(Kind::Failed, "read the plugin's answer: it holds no snapshot"))
    }

    /// `DeleteSnapshot`.
    pub fn remove(&self, snapshot_id: String) -> Result<(), DriverError> {
        let request = DeleteSnapshotRequest { snapshot_id, secrets: BTreeMap::new() };
        self.client
            .call(method::DELETE_SNAPSHOT, request, &self.secrets)
            .map(|Empty {}| ())
            .map_err(|refusal| refusal.into_error("remove the snapshot"))
    }
}
