//! Making a volume of a snapshot, and publishing it to a node.

use super::{Map, Volume, VolumeCapability};
use std::fmt;

/// `CreateVolumeRequest`
#[derive(Clone, PartialEq, prost::Message)]
#[prost(skip_debug)]
#[allow(missing_docs, reason = "the specification documents them")]
pub struct CreateVolumeRequest {
    #[prost(string, tag = "1")]
    pub name: String,
    #[prost(message, optional, tag = "2")]
    pub capacity_range: Option<CapacityRange>,
    #[prost(message, repeated, tag = "3")]
    pub volume_capabilities: Vec<VolumeCapability>,
    #[prost(btree_map = "string, string", tag = "4")]
    pub parameters: Map,
    #[prost(btree_map = "string, string", tag = "5")]
    pub secrets: Map,
    #[prost(message, optional, tag = "6")]
    pub volume_content_source: Option<ContentSource>,
    #[prost(message, optional, tag = "7")]
    pub accessibility_requirements: Option<TopologyRequirement>,
}

/// `CapacityRange`
#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
#[allow(missing_docs, reason = "the specification documents them")]
pub struct CapacityRange {
    #[prost(int64, tag = "1")]
    pub required_bytes: i64,
    #[prost(int64, tag = "2")]
    pub limit_bytes: i64,
}

/// `VolumeContentSource` that is a snapshot.
#[derive(Clone, PartialEq, prost::Message)]
#[allow(missing_docs, reason = "the specification documents them")]
pub struct ContentSource {
    #[prost(message, optional, tag = "1")]
    pub snapshot: Option<SnapshotSource>,
}

/// `VolumeContentSource.SnapshotSource`
#[derive(Clone, PartialEq, prost::Message)]
#[allow(missing_docs, reason = "the specification documents them")]
pub struct SnapshotSource {
    #[prost(string, tag = "1")]
    pub snapshot_id: String,
}

/// `TopologyRequirement`
#[derive(Clone, PartialEq, prost::Message)]
#[allow(missing_docs, reason = "the specification documents them")]
pub struct TopologyRequirement {
    #[prost(message, repeated, tag = "1")]
    pub requisite: Vec<Topology>,
    #[prost(message, repeated, tag = "2")]
    pub preferred: Vec<Topology>,
}

/// `Topology`
#[derive(Clone, PartialEq, prost::Message)]
#[allow(missing_docs, reason = "the specification documents them")]
pub struct Topology {
    #[prost(btree_map = "string, string", tag = "1")]
    pub segments: Map,
}

/// `CreateVolumeResponse`
#[derive(Clone, PartialEq, prost::Message)]
#[allow(missing_docs, reason = "the specification documents them")]
pub struct CreateVolumeResponse {
    #[prost(message, optional, tag = "1")]
    pub volume: Option<Volume>,
}

/// `DeleteVolumeRequest`
#[derive(Clone, PartialEq, prost::Message)]
#[prost(skip_debug)]
#[allow(missing_docs, reason = "the specification documents them")]
pub struct DeleteVolumeRequest {
    #[prost(string, tag = "1")]
    pub volume_id: String,
    #[prost(btree_map = "string, string", tag = "2")]
    pub secrets: Map,
}

/// `ControllerPublishVolumeRequest`
#[derive(Clone, PartialEq, prost::Message)]
#[prost(skip_debug)]
#[allow(missing_docs, reason = "the specification documents them")]
pub struct ControllerPublishRequest {
    #[prost(string, tag = "1")]
    pub volume_id: String,
    #[prost(string, tag = "2")]
    pub node_id: String,
    #[prost(message, optional, tag = "3")]
    pub volume_capability: Option<VolumeCapability>,
    #[prost(bool, tag = "4")]
    pub readonly: bool,
    #[prost(btree_map = "string, string", tag = "5")]
    pub secrets: Map,
    #[prost(btree_map = "string, string", tag = "6")]
    pub volume_context: Map,
}

/// `ControllerPublishVolumeResponse`
#[derive(Clone, PartialEq, prost::Message)]
#[allow(missing_docs, reason = "the specification documents them")]
pub struct ControllerPublishResponse {
    #[prost(btree_map = "string, string", tag = "1")]
    pub publish_context: Map,
}

/// `ControllerUnpublishVolumeRequest`
#[derive(Clone, PartialEq, prost::Message)]
#[prost(skip_debug)]
#[allow(missing_docs, reason = "the specification documents them")]
pub struct ControllerUnpublishRequest {
    #[prost(string, tag = "1")]
    pub volume_id: String,
    #[prost(string, tag = "2")]
    pub node_id: String,
    #[prost(btree_map = "string, string", tag = "3")]
    pub secrets: Map,
}

/// `NodeStageVolumeRequest`
#[derive(Clone, PartialEq, prost::Message)]
#[prost(skip_debug)]
#[allow(missing_docs, reason = "the specification documents them")]
pub struct NodeStageRequest {
    #[prost(string, tag = "1")]
    pub volume_id: String,
    #[prost(btree_map = "string, string", tag = "2")]
    pub publish_context: Map,
    #[prost(string, tag = "3")]
    pub staging_target_path: String,
    #[prost(message, optional, tag = "4")]
    pub volume_capability: Option<VolumeCapability>,
    #[prost(btree_map = "string, string", tag = "5")]
    pub secrets: Map,
    #[prost(btree_map = "string, string", tag = "6")]
    pub volume_context: Map,
}

/// `NodeUnstageVolumeRequest`: it has no secrets.
#[derive(Clone, PartialEq, prost::Message)]
#[allow(missing_docs, reason = "the specification documents them")]
pub struct NodeUnstageRequest {
    #[prost(string, tag = "1")]
    pub volume_id: String,
    #[prost(string, tag = "2")]
    pub staging_target_path: String,
}

/// `NodePublishVolumeRequest`
#[derive(Clone, PartialEq, prost::Message)]
#[prost(skip_debug)]
#[allow(missing_docs, reason = "the specification documents them")]
pub struct NodePublishRequest {
    #[prost(string, tag = "1")]
    pub volume_id: String,
    #[prost(btree_map = "string, string", tag = "2")]
    pub publish_context: Map,
    #[prost(string, tag = "3")]
    pub staging_target_path: String,
    #[prost(string, tag = "4")]
    pub target_path: String,
    #[prost(message, optional, tag = "5")]
    pub volume_capability: Option<VolumeCapability>,
    #[prost(bool, tag = "6")]
    pub readonly: bool,
    #[prost(btree_map = "string, string", tag = "7")]
    pub secrets: Map,
    #[prost(btree_map = "string, string", tag = "8")]
    pub volume_context: Map,
}

/// `NodeUnpublishVolumeRequest`: it has no secrets.
#[derive(Clone, PartialEq, prost::Message)]
#[allow(missing_docs, reason = "the specification documents them")]
pub struct NodeUnpublishRequest {
    #[prost(string, tag = "1")]
    pub volume_id: String,
    #[prost(string, tag = "2")]
    pub target_path: String,
}

/// `NodeGetInfoResponse`
#[derive(Clone, PartialEq, prost::Message)]
#[allow(missing_docs, reason = "the specification documents them")]
pub struct NodeInfo {
    #[prost(string, tag = "1")]
    pub node_id: String,
    #[prost(message, optional, tag = "3")]
    pub accessible_topology: Option<Topology>,
}

super::unprinted! { CreateVolumeRequest DeleteVolumeRequest ControllerPublishRequest ControllerUnpublishRequest NodeStageRequest NodePublishRequest }
