//! The messages of CSI that are used, and of them only the fields that are looked at: field numbers as in `csi.proto` of
//! CSI 1.12. What a plugin sends besides is passed over, as protobuf wants it.

use std::collections::BTreeMap;
use std::fmt;

/// What holds secrets is never printed.
macro_rules! unprinted {
    ($($message:ident)*) => { $(
        impl fmt::Debug for $message {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(stringify!($message))
            }
        }
    )* };
}
use unprinted;

mod volume;

pub use volume::{
    CapacityRange, ContentSource, ControllerPublishRequest, ControllerPublishResponse,
    ControllerUnpublishRequest, CreateVolumeRequest, CreateVolumeResponse, DeleteVolumeRequest, NodeInfo,
    NodePublishRequest, NodeStageRequest, NodeUnpublishRequest, NodeUnstageRequest, SnapshotSource, Topology,
    TopologyRequirement,
};

/// `csi.v1.Identity`, `csi.v1.Controller`, `csi.v1.GroupController`, `csi.v1.SnapshotMetadata`, `csi.v1.Node`.
pub mod method {
    #![allow(missing_docs, reason = "the specification documents them")]
    pub const GET_PLUGIN_INFO: &str = "/csi.v1.Identity/GetPluginInfo";
    pub const GET_PLUGIN_CAPABILITIES: &str = "/csi.v1.Identity/GetPluginCapabilities";
    pub const PROBE: &str = "/csi.v1.Identity/Probe";
    pub const GET_CAPACITY: &str = "/csi.v1.Controller/GetCapacity";
    pub const GET_CAPABILITIES: &str = "/csi.v1.Controller/ControllerGetCapabilities";
    pub const GET_VOLUME: &str = "/csi.v1.Controller/ControllerGetVolume";
    pub const CREATE_SNAPSHOT: &str = "/csi.v1.Controller/CreateSnapshot";
    pub const DELETE_SNAPSHOT: &str = "/csi.v1.Controller/DeleteSnapshot";
    pub const LIST_SNAPSHOTS: &str = "/csi.v1.Controller/ListSnapshots";
    pub const GROUP_GET_CAPABILITIES: &str = "/csi.v1.GroupController/GroupControllerGetCapabilities";
    pub const CREATE_GROUP_SNAPSHOT: &str = "/csi.v1.GroupController/CreateVolumeGroupSnapshot";
    pub const CREATE_VOLUME: &str = "/csi.v1.Controller/CreateVolume";
    pub const DELETE_VOLUME: &str = "/csi.v1.Controller/DeleteVolume";
    pub const PUBLISH: &str = "/csi.v1.Controller/ControllerPublishVolume";
    pub const UNPUBLISH: &str = "/csi.v1.Controller/ControllerUnpublishVolume";
    pub const NODE_GET_CAPABILITIES: &str = "/csi.v1.Node/NodeGetCapabilities";
    pub const NODE_GET_INFO: &str = "/csi.v1.Node/NodeGetInfo";
    pub const NODE_STAGE: &str = "/csi.v1.Node/NodeStageVolume";
    pub const NODE_UNSTAGE: &str = "/csi.v1.Node/NodeUnstageVolume";
    pub const NODE_PUBLISH: &str = "/csi.v1.Node/NodePublishVolume";
    pub const NODE_UNPUBLISH: &str = "/csi.v1.Node/NodeUnpublishVolume";
    pub const VALIDATE_VOLUME: &str = "/csi.v1.Controller/ValidateVolumeCapabilities";
    pub const GET_METADATA_DELTA: &str = "/csi.v1.SnapshotMetadata/GetMetadataDelta";
    pub const DELETE_GROUP_SNAPSHOT: &str = "/csi.v1.GroupController/DeleteVolumeGroupSnapshot";
}

/// `PluginCapability.Service.Type`
pub const CONTROLLER_SERVICE: i32 = 1;
/// `PluginCapability.Service.Type`
pub const VOLUME_ACCESSIBILITY_CONSTRAINTS: i32 = 2;
/// `PluginCapability.Service.Type`
pub const GROUP_CONTROLLER_SERVICE: i32 = 3;
/// `PluginCapability.Service.Type`
pub const SNAPSHOT_METADATA_SERVICE: i32 = 4;
/// `ControllerServiceCapability.RPC.Type`
pub const CREATE_DELETE_VOLUME: i32 = 1;
/// `ControllerServiceCapability.RPC.Type`
pub const PUBLISH_UNPUBLISH_VOLUME: i32 = 2;
/// `ControllerServiceCapability.RPC.Type`
pub const GET_CAPACITY: i32 = 4;
/// `ControllerServiceCapability.RPC.Type`
pub const CREATE_DELETE_SNAPSHOT: i32 = 5;
/// `ControllerServiceCapability.RPC.Type`
pub const LIST_SNAPSHOTS: i32 = 6;
/// `ControllerServiceCapability.RPC.Type`
pub const PUBLISH_READONLY: i32 = 8;
/// `ControllerServiceCapability.RPC.Type`
pub const GET_VOLUME: i32 = 12;
/// `GroupControllerServiceCapability.RPC.Type`
pub const GROUP_SNAPSHOT: i32 = 1;
/// `NodeServiceCapability.RPC.Type`
pub const STAGE_UNSTAGE_VOLUME: i32 = 1;

type Map = BTreeMap<String, String>;

/// Any request without fields.
#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
pub struct Empty {}

/// `GetPluginInfoResponse`
#[derive(Clone, PartialEq, prost::Message)]
#[allow(missing_docs, reason = "the specification documents them")]
pub struct PluginInfo {
    #[prost(string, tag = "1")]
    pub name: String,
    #[prost(string, tag = "2")]
    pub vendor_version: String,
}

/// `ProbeResponse`
#[derive(Clone, PartialEq, prost::Message)]
#[allow(missing_docs, reason = "the specification documents them")]
pub struct ProbeResponse {
    /// `google.protobuf.BoolValue`
    #[prost(message, optional, tag = "1")]
    pub ready: Option<bool>,
}

/// A number in a capability: `Service` of a plugin's, `RPC` of a controller's. All three messages have the same form.
#[derive(Clone, PartialEq, prost::Message)]
#[allow(missing_docs, reason = "the specification documents them")]
pub struct Capability {
    #[prost(message, optional, tag = "1")]
    pub of: Option<CapabilityType>,
}

/// `PluginCapability.Service`, `ControllerServiceCapability.RPC`, `GroupControllerServiceCapability.RPC`
#[derive(Clone, PartialEq, prost::Message)]
#[allow(missing_docs, reason = "the specification documents them")]
pub struct CapabilityType {
    #[prost(int32, tag = "1")]
    pub r#type: i32,
}

/// `GetPluginCapabilitiesResponse`, `ControllerGetCapabilitiesResponse`, `GroupControllerGetCapabilitiesResponse`
#[derive(Clone, PartialEq, prost::Message)]
#[allow(missing_docs, reason = "the specification documents them")]
pub struct Capabilities {
    #[prost(message, repeated, tag = "1")]
    pub capabilities: Vec<Capability>,
}

/// `GetCapacityResponse`
#[derive(Clone, PartialEq, prost::Message)]
#[allow(missing_docs, reason = "the specification documents them")]
pub struct Capacity {
    #[prost(int64, tag = "1")]
    pub available_capacity: i64,
}

/// `ControllerGetVolumeRequest`
#[derive(Clone, PartialEq, prost::Message)]
#[allow(missing_docs, reason = "the specification documents them")]
pub struct GetVolumeRequest {
    #[prost(string, tag = "1")]
    pub volume_id: String,
}

/// `ControllerGetVolumeResponse`
#[derive(Clone, PartialEq, prost::Message)]
#[allow(missing_docs, reason = "the specification documents them")]
pub struct GetVolumeResponse {
    #[prost(message, optional, tag = "1")]
    pub volume: Option<Volume>,
}

/// `Volume`
#[derive(Clone, PartialEq, prost::Message)]
#[allow(missing_docs, reason = "the specification documents them")]
pub struct Volume {
    #[prost(int64, tag = "1")]
    pub capacity_bytes: i64,
    #[prost(string, tag = "2")]
    pub volume_id: String,
    #[prost(btree_map = "string, string", tag = "3")]
    pub volume_context: Map,
    #[prost(message, optional, tag = "4")]
    pub content_source: Option<ContentSource>,
}

/// `ValidateVolumeCapabilitiesRequest`
#[derive(Clone, PartialEq, prost::Message)]
#[prost(skip_debug)]
#[allow(missing_docs, reason = "the specification documents them")]
pub struct ValidateVolumeRequest {
    #[prost(string, tag = "1")]
    pub volume_id: String,
    #[prost(message, repeated, tag = "3")]
    pub volume_capabilities: Vec<VolumeCapability>,
    #[prost(btree_map = "string, string", tag = "5")]
    pub secrets: Map,
}

/// `VolumeCapability` of a block volume.
#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
#[allow(missing_docs, reason = "the specification documents them")]
pub struct VolumeCapability {
    #[prost(message, optional, tag = "1")]
    pub block: Option<Empty>,
    #[prost(message, optional, tag = "3")]
    pub access_mode: Option<AccessMode>,
}

/// `VolumeCapability.AccessMode`
#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
#[allow(missing_docs, reason = "the specification documents them")]
pub struct AccessMode {
    #[prost(int32, tag = "1")]
    pub mode: i32,
}

/// `VolumeCapability.AccessMode.Mode`
pub const SINGLE_NODE_WRITER: i32 = 1;

impl VolumeCapability {
    /// A block device of one node.
    pub fn block() -> Self {
        Self { block: Some(Empty {}), access_mode: Some(AccessMode { mode: SINGLE_NODE_WRITER }) }
    }
}

/// `GetMetadataDeltaRequest`
#[derive(Clone, PartialEq, prost::Message)]
#[prost(skip_debug)]
#[allow(missing_docs, reason = "the specification documents them")]
pub struct DeltaRequest {
    #[prost(string, tag = "1")]
    pub base_snapshot_id: String,
    #[prost(string, tag = "2")]
    pub target_snapshot_id: String,
    #[prost(int64, tag = "3")]
    pub starting_offset: i64,
    #[prost(int32, tag = "4")]
    pub max_results: i32,
    #[prost(btree_map = "string, string", tag = "5")]
    pub secrets: Map,
}

/// `GetMetadataDeltaResponse`
#[derive(Clone, PartialEq, prost::Message)]
#[allow(missing_docs, reason = "the specification documents them")]
pub struct DeltaResponse {
    #[prost(int32, tag = "1")]
    pub block_metadata_type: i32,
    #[prost(int64, tag = "2")]
    pub volume_capacity_bytes: i64,
    #[prost(message, repeated, tag = "3")]
    pub block_metadata: Vec<BlockMetadata>,
}

/// `BlockMetadata`
#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
#[allow(missing_docs, reason = "the specification documents them")]
pub struct BlockMetadata {
    #[prost(int64, tag = "1")]
    pub byte_offset: i64,
    #[prost(int64, tag = "2")]
    pub size_bytes: i64,
}

/// `CreateSnapshotRequest`
#[derive(Clone, PartialEq, prost::Message)]
#[prost(skip_debug)]
#[allow(missing_docs, reason = "the specification documents them")]
pub struct CreateSnapshotRequest {
    #[prost(string, tag = "1")]
    pub source_volume_id: String,
    #[prost(string, tag = "2")]
    pub name: String,
    #[prost(btree_map = "string, string", tag = "3")]
    pub secrets: Map,
    #[prost(btree_map = "string, string", tag = "4")]
    pub parameters: Map,
}

/// `CreateSnapshotResponse`
#[derive(Clone, PartialEq, prost::Message)]
#[allow(missing_docs, reason = "the specification documents them")]
pub struct CreateSnapshotResponse {
    #[prost(message, optional, tag = "1")]
    pub snapshot: Option<Snapshot>,
}

/// `Snapshot`
#[derive(Clone, PartialEq, prost::Message)]
#[allow(missing_docs, reason = "the specification documents them")]
pub struct Snapshot {
    #[prost(int64, tag = "1")]
    pub size_bytes: i64,
    #[prost(string, tag = "2")]
    pub snapshot_id: String,
    #[prost(string, tag = "3")]
    pub source_volume_id: String,
    #[prost(message, optional, tag = "4")]
    pub creation_time: Option<Timestamp>,
    #[prost(bool, tag = "5")]
    pub ready_to_use: bool,
    #[prost(string, tag = "6")]
    pub group_snapshot_id: String,
}

/// `google.protobuf.Timestamp`
#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
#[allow(missing_docs, reason = "the specification documents them")]
pub struct Timestamp {
    #[prost(int64, tag = "1")]
    pub seconds: i64,
    #[prost(int32, tag = "2")]
    pub nanos: i32,
}

/// `DeleteSnapshotRequest`
#[derive(Clone, PartialEq, prost::Message)]
#[prost(skip_debug)]
#[allow(missing_docs, reason = "the specification documents them")]
pub struct DeleteSnapshotRequest {
    #[prost(string, tag = "1")]
    pub snapshot_id: String,
    #[prost(btree_map = "string, string", tag = "2")]
    pub secrets: Map,
}

/// `ListSnapshotsRequest`
#[derive(Clone, PartialEq, prost::Message)]
#[prost(skip_debug)]
#[allow(missing_docs, reason = "the specification documents them")]
pub struct ListSnapshotsRequest {
    #[prost(int32, tag = "1")]
    pub max_entries: i32,
    #[prost(string, tag = "2")]
    pub starting_token: String,
    #[prost(string, tag = "3")]
    pub source_volume_id: String,
    #[prost(string, tag = "4")]
    pub snapshot_id: String,
    #[prost(btree_map = "string, string", tag = "5")]
    pub secrets: Map,
}

/// `ListSnapshotsResponse`
#[derive(Clone, PartialEq, prost::Message)]
#[allow(missing_docs, reason = "the specification documents them")]
pub struct ListSnapshotsResponse {
    #[prost(message, repeated, tag = "1")]
    pub entries: Vec<CreateSnapshotResponse>,
    #[prost(string, tag = "2")]
    pub next_token: String,
}

/// `CreateVolumeGroupSnapshotRequest`
#[derive(Clone, PartialEq, prost::Message)]
#[prost(skip_debug)]
#[allow(missing_docs, reason = "the specification documents them")]
pub struct CreateGroupRequest {
    #[prost(string, tag = "1")]
    pub name: String,
    #[prost(string, repeated, tag = "2")]
    pub source_volume_ids: Vec<String>,
    #[prost(btree_map = "string, string", tag = "3")]
    pub secrets: Map,
    #[prost(btree_map = "string, string", tag = "4")]
    pub parameters: Map,
}

/// `CreateVolumeGroupSnapshotResponse`
#[derive(Clone, PartialEq, prost::Message)]
#[allow(missing_docs, reason = "the specification documents them")]
pub struct CreateGroupResponse {
    #[prost(message, optional, tag = "1")]
    pub group_snapshot: Option<Group>,
}

/// `VolumeGroupSnapshot`
#[derive(Clone, PartialEq, prost::Message)]
#[allow(missing_docs, reason = "the specification documents them")]
pub struct Group {
    #[prost(string, tag = "1")]
    pub group_snapshot_id: String,
    #[prost(message, repeated, tag = "2")]
    pub snapshots: Vec<Snapshot>,
    #[prost(message, optional, tag = "3")]
    pub creation_time: Option<Timestamp>,
    #[prost(bool, tag = "4")]
    pub ready_to_use: bool,
}

/// `DeleteVolumeGroupSnapshotRequest`
#[derive(Clone, PartialEq, prost::Message)]
#[prost(skip_debug)]
#[allow(missing_docs, reason = "the specification documents them")]
pub struct DeleteGroupRequest {
    #[prost(string, tag = "1")]
    pub group_snapshot_id: String,
    #[prost(string, repeated, tag = "2")]
    pub snapshot_ids: Vec<String>,
    #[prost(btree_map = "string, string", tag = "3")]
    pub secrets: Map,
}

unprinted! { ValidateVolumeRequest DeltaRequest CreateSnapshotRequest DeleteSnapshotRequest ListSnapshotsRequest CreateGroupRequest DeleteGroupRequest }
