//! Taking back what showing a disk of a snapshot needed, in reverse order, by what was noted of it; however far that came, and
//! as often as need be: each call may be made again (CSI 1.12), and what is absent is fine.

use std::time::Instant;

use protocol::DiskSerial;
use tonic::Code;

use super::client::{Client, PATIENCE};
use super::codes::Refusal;
use super::proto::{
    ControllerUnpublishRequest, DeleteVolumeRequest, Empty, NodeUnpublishRequest, NodeUnstageRequest, method,
};
use super::secrets::Secrets;
use super::shown::{Shown, Spot};
use super::{Store, volume};
use crate::drivers::{DriverError, Kind, Owner};

/// One disk of a snapshot, whatever became of that.
pub(super) fn disk(store: &Store, owner: Owner, serial: &DiskSerial) -> Result<(), DriverError> {
    each(store, owner, |shown| shown.serial == *serial)
}

/// All disks of a snapshot.
pub(super) fn all(store: &Store, owner: Owner) -> Result<(), DriverError> {
    each(store, owner, |_| true)
}

/// Of what was never noted nothing was asked for: its folder goes with any.
fn each(store: &Store, owner: Owner, is_meant: impl Fn(&Shown) -> bool) -> Result<(), DriverError> {
    for (_, one) in Spot::all(store)?.into_iter().filter(|(snapshot, _)| *snapshot == owner.snapshot) {
        if Shown::read(&one)?.is_none_or(|shown| is_meant(&shown)) {
            spot(store, &one)?;
        }
    }
    Ok(())
}

/// Whatever was made for this one.
pub(super) fn spot(store: &Store, spot: &Spot) -> Result<(), DriverError> {
    let Some(shown) = Shown::read(spot)? else { return spot.remove() };
    let secrets = store.secrets()?;
    store.plugin_named(&shown.plugin, &secrets)?;
    let taking_back = Back { store, secrets: &secrets, doing: format!("take back {}", shown.asked.name) };
    taking_back.all(&shown, spot)?;
    spot.remove()
}

struct Back<'a> {
    store: &'a Store,
    secrets: &'a Secrets,
    doing: String,
}

impl Back<'_> {
    fn all(&self, shown: &Shown, spot: &Spot) -> Result<(), DriverError> {
        let controller = &self.store.client;
        let Some(volume) = &shown.volume else {
            // The answer was lost; nothing was done with a volume that nobody knew of.
            let until = Instant::now() + PATIENCE;
            let made = volume::was_made(controller, &shown.asked, self.secrets, until);
            let made = made.map_err(|refusal| refusal.into_error(&self.doing))?;
            return made.map_or(Ok(()), |volume| self.delete(&volume.id));
        };
        let node = self.store.node_client();
        let path = |path: std::path::PathBuf| path.to_string_lossy().into_owned();
        let request = NodeUnpublishRequest { volume_id: volume.id.clone(), target_path: path(spot.device()) };
        self.call(node, method::NODE_UNPUBLISH, request)?;
        spot.clear_device()?;
        if shown.stages {
            let request = NodeUnstageRequest {
                volume_id: volume.id.clone(),
                staging_target_path: path(spot.staging()),
            };
            self.call(node, method::NODE_UNSTAGE, request)?;
        }
        if shown.publishes {
            let request = ControllerUnpublishRequest {
                volume_id: volume.id.clone(),
                node_id: shown.node.clone(),
                secrets: self.secrets.for_request(),
            };
            self.call(controller, method::UNPUBLISH, request)?;
        }
        self.delete(&volume.id)
    }

    fn delete(&self, volume_id: &str) -> Result<(), DriverError> {
        let request =
            DeleteVolumeRequest { volume_id: volume_id.to_owned(), secrets: self.secrets.for_request() };
        self.call(&self.store.client, method::DELETE_VOLUME, request)
    }

    fn call<Q: prost::Message + Clone + 'static>(
        &self,
        client: &Client,
        method: &'static str,
        request: Q,
    ) -> Result<(), DriverError> {
        let told: Result<Empty, Refusal> =
            client.insist(method, request, self.secrets, Instant::now() + PATIENCE);
        match told {
            Ok(Empty {}) => Ok(()),
            Err(refusal) if refusal.code == Code::NotFound => Ok(()),
            Err(refusal) => {
                let is_in_use = refusal.says_busy();
                let error = refusal.into_error(&self.doing);
                Err(if is_in_use { DriverError { kind: Kind::Busy, ..error } } else { error })
            }
        }
    }
}
