//! This host as the plugin's node: what its node service says of itself. It is the part of a plugin that runs where volumes
//! are used, on the controller's socket or on one of its own.

use std::collections::BTreeMap;
use std::fmt;

use super::client::Client;
use super::codes::Refusal;
use super::plugin::{self, Plugin};
use super::proto::{self, Capabilities, Empty, NodeInfo, method};
use super::secrets::Secrets;
use crate::drivers::{DriverError, Kind};

/// The longest name of a node, in bytes (CSI 1.12, `NodeGetInfoResponse.node_id`).
const MAX_NODE_ID: usize = 256;

/// A node service that answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Node {
    /// What the plugin calls this host; empty where nobody needs to know.
    pub(super) id: String,
    /// Where this host is, for a plugin whose volumes are not everywhere.
    pub(super) topology: Option<BTreeMap<String, String>>,
    /// A volume is staged before it is published.
    pub(super) stages: bool,
}

impl fmt::Display for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let id = if self.id.is_empty() { "its node" } else { &self.id };
        write!(f, "this host is {id}{}", if self.stages { ", with STAGE_UNSTAGE_VOLUME" } else { "" })
    }
}

impl Node {
    /// Asks. One of another plugin is refused.
    pub(super) fn ask(client: &Client, plugin: &Plugin, secrets: &Secrets) -> Result<Self, DriverError> {
        let doing = || format!("ask the node service of {} at {}", plugin.name, client.endpoint());
        let failed = |refusal: Refusal| refusal.into_error(doing());
        let name = plugin::name(client, secrets).map_err(failed)?;
        if name != plugin.name {
            let what = format!("{}: {name} is there; look at node_endpoint of the store", doing());
            return Err(DriverError::new(Kind::Unsupported, what));
        }
        let told: Capabilities =
            client.call(method::NODE_GET_CAPABILITIES, Empty {}, secrets).map_err(failed)?;
        let stages = plugin::types(&told).contains(&proto::STAGE_UNSTAGE_VOLUME);
        // "A Node Plugin MUST implement this RPC call if the plugin has PUBLISH_UNPUBLISH_VOLUME": others may not.
        if !plugin.publishes && !plugin.has_topology {
            return Ok(Self { id: String::new(), topology: None, stages });
        }
        let info: NodeInfo = client.call(method::NODE_GET_INFO, Empty {}, secrets).map_err(failed)?;
        let is_id = (1..=MAX_NODE_ID).contains(&info.node_id.len());
        if !is_id || info.node_id.chars().any(char::is_control) {
            return Err(failed(Refusal::garbage(method::NODE_GET_INFO, "a name that is none")));
        }
        let topology = info.accessible_topology.filter(|_| plugin.has_topology).map(|one| one.segments);
        Ok(Self { id: info.node_id, topology, stages })
    }
}
