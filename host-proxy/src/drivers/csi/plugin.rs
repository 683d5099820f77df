//! What a plugin is and can do: asked for at every beginning, since another version may be behind the socket by now.

use std::fmt;

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
    /// Makes volumes, of snapshots too.
    pub(super) makes_volumes: bool,
    /// A volume is published to a node before it can be used there.
    pub(super) publishes: bool,
    /// It can be published so that nobody can write to it.
    pub(super) publishes_read_only: bool,
    /// Not every node can use every volume.
    pub(super) has_topology: bool,
}

impl Plugin {
    /// Asks. A plugin without snapshots is refused.
    pub(super) fn ask(client: &Client, secrets: &Secrets) -> Result<Self, DriverError> {
        let doing = || format!("ask the CSI plugin at {}", client.endpoint());
        let failed = |refusal: Refusal| refusal.into_error(doing());
        let name = name(client, secrets).map_err(failed)?;
        let probed: ProbeResponse = client.call(method::PROBE, Empty {}, secrets).map_err(failed)?;
        if probed.ready == Some(false) {
            let what = format!("{}: {name} is not ready yet; try again in a moment", doing());
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
            let what = format!("{}: {name} takes no snapshots (CREATE_DELETE_SNAPSHOT)", doing());
            return Err(DriverError::new(Kind::Unsupported, what));
        }
        let groups = if services.contains(&proto::GROUP_CONTROLLER_SERVICE) {
            asked(method::GROUP_GET_CAPABILITIES)?
        } else {
            Vec::new()
        };
        Ok(Self {
            name,
            tells_room: controller.contains(&proto::GET_CAPACITY),
            lists: controller.contains(&proto::LIST_SNAPSHOTS),
            tells_volumes: controller.contains(&proto::GET_VOLUME),
            cuts_groups: groups.contains(&proto::GROUP_SNAPSHOT),
            tells_changes: services.contains(&proto::SNAPSHOT_METADATA_SERVICE),
            makes_volumes: controller.contains(&proto::CREATE_DELETE_VOLUME),
            publishes: controller.contains(&proto::PUBLISH_UNPUBLISH_VOLUME),
            publishes_read_only: controller.contains(&proto::PUBLISH_READONLY),
            has_topology: services.contains(&proto::VOLUME_ACCESSIBILITY_CONSTRAINTS),
        })
    }
}

impl fmt::Display for Plugin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let offers = [
            ("LIST_SNAPSHOTS", self.lists),
            ("CREATE_DELETE_GET_VOLUME_GROUP_SNAPSHOT", self.cuts_groups),
            ("GET_CAPACITY", self.tells_room),
            ("GET_VOLUME", self.tells_volumes),
            ("SNAPSHOT_METADATA_SERVICE", self.tells_changes),
            ("CREATE_DELETE_VOLUME", self.makes_volumes),
            ("PUBLISH_UNPUBLISH_VOLUME", self.publishes),
        ];
        let offered = offers.into_iter().filter(|(_, is_offered)| *is_offered);
        let words: Vec<&str> = offered.map(|(word, _)| word).collect();
        write!(
            f,
            "{} offers {}",
            self.name,
            if words.is_empty() { "nothing more".into() } else { words.join(", ") }
        )
    }
}

pub(super) fn types(answer: &Capabilities) -> Vec<i32> {
    answer.capabilities.iter().filter_map(|one| Some(one.of.as_ref()?.r#type)).collect()
}

/// What the plugin behind this socket is called.
pub(super) fn name(client: &Client, secrets: &Secrets) -> Result<String, Refusal> {
    let info: PluginInfo = client.call(method::GET_PLUGIN_INFO, Empty {}, secrets)?;
    if is_name(&info.name) {
        return Ok(info.name);
    }
    Err(Refusal::garbage(method::GET_PLUGIN_INFO, "a name that is none"))
}

/// CSI 1.12, `GetPluginInfoResponse.name`: at most 63 characters, letters, digits, dashes and dots.
fn is_name(name: &str) -> bool {
    (1..=63).contains(&name.len())
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.'))
}
