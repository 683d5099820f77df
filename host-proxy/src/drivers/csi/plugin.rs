//! What a plugin is and can do: asked for at every beginning, since another version may be behind the socket by now.

use super::client::Client;
use super::codes::Refusal;
use super::proto::{self, Capabilities, Empty, PluginInfo, ProbeResponse, method};
use super::secrets::Secrets;
use crate::drivers::{DriverError, Kind};

/// A plugin that answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Plugin {
    /// `hostpath.csi.k8s.io`, say.
    pub(super) name: String,
    /// Tells its room.
    pub(super) tells_room: bool,
    /// Lists snapshots.
    pub(super) lists: bool,
    /// Tells of one volume.
    pub(super) tells_volumes: bool,
    /// Cuts several volumes at one instant.
    pub(super) cuts_groups: bool,
    /// Tells what changed between two snapshots.
    pub(super) tells_changes: bool,
}

impl Plugin {
    /// Asks. A plugin without snapshots is refused.
    pub(super) fn ask(client: &Client, secrets: &Secrets) -> Result<Self, DriverError> {
        let doing = || format!("ask the CSI plugin at {}", client.endpoint());
        let failed = |refusal: Refusal| refusal.into_error(doing());
        let info: PluginInfo = client.call(method::GET_PLUGIN_INFO, Empty {}, secrets).map_err(failed)?;
        if !is_name(&info.name) {
            let garbage = Refusal::garbage(method::GET_PLUGIN_INFO, "a name that is none");
            return Err(failed(garbage));
        }
        let probed: ProbeResponse = client.call(method::PROBE, Empty {}, secrets).map_err(failed)?;
        if probed.ready == Some(false) {
            let what = format!("{}: {} is not ready yet; try again in a moment", doing(), info.name);
            return Err(DriverError::new(Kind::Busy, what));
        }
        let asked = |method| {
            client.call(method, Empty {}, secrets).map(|answer: Capabilities| types(&answer)).map_err(failed)
        };
        let services = asked(method::GET_PLUGIN_CAPABILITIES)?;
        let controller = if services.contains(&proto::CONTROLLER_SERVICE) {
            asked(method::GET_CAPABILITIES)?
        } else {
            Vec::new()
        };
        if !controller.contains(&proto::CREATE_DELETE_SNAPSHOT) {
            let what = format!("{}: {} takes no snapshots (CREATE_DELETE_SNAPSHOT)", doing(), info.name);
            return Err(DriverError::new(Kind::Unsupported, what));
        }
        let groups = if services.contains(&proto::GROUP_CONTROLLER_SERVICE) {
            asked(method::GROUP_GET_CAPABILITIES)?
        } else {
            Vec::new()
        };
        Ok(Self {
            name: info.name,
            tells_room: controller.contains(&proto::GET_CAPACITY),
            lists: controller.contains(&proto::LIST_SNAPSHOTS),
            tells_volumes: controller.contains(&proto::GET_VOLUME),
            cuts_groups: groups.contains(&proto::GROUP_SNAPSHOT),
            tells_changes: services.contains(&proto::SNAPSHOT_METADATA_SERVICE),
        })
    }
}

fn types(answer: &Capabilities) -> Vec<i32> {
    answer.capabilities.iter().filter_map(|one| Some(one.of.as_ref()?.r#type)).collect()
}

/// CSI 1.12, `GetPluginInfoResponse.name`: at most 63 characters, letters, digits, dashes and dots.
fn is_name(name: &str) -> bool {
    (1..=63).contains(&name.len())
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.'))
}
