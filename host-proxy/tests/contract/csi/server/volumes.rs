//! Volumes that the tests' plugin makes of snapshots, and its node service: clones, put at a path as a block device or as a
//! file. It is strict: what comes in the wrong order, or without the words that an earlier call gave, is refused.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use harness::loopfs::run;
use host_proxy::drivers::csi::proto::{
    Capabilities, ContentSource, ControllerPublishRequest, ControllerPublishResponse,
    ControllerUnpublishRequest, CreateVolumeRequest, CreateVolumeResponse, DeleteVolumeRequest, Empty,
    NodeInfo, NodePublishRequest, NodeStageRequest, NodeUnpublishRequest, NodeUnstageRequest, SnapshotSource,
    Topology, TopologyRequirement, Volume, VolumeCapability, method,
};
use prost::Message;

use super::{
    ALREADY_EXISTS, FAILED_PRECONDITION, INTERNAL, INVALID_ARGUMENT, NOT_FOUND, RESOURCE_EXHAUSTED, State,
    UNIMPLEMENTED, capabilities, decode,
};

/// What the plugin calls this host.
pub(crate) const NODE: &str = "node-1";

/// What it does with volumes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Publishing {
    /// The controller publishes to nodes first.
    pub(crate) controller: bool,
    /// The node service stages first.
    pub(crate) stages: bool,
    /// Volumes are not everywhere.
    pub(crate) topology: bool,
    pub(crate) puts: Puts,
}

impl Publishing {
    /// As little as can be, on the way to a path of this host.
    pub(crate) const SIMPLY: Self =
        Self { controller: false, stages: false, topology: false, puts: Puts::File };
}

/// What stands at the path in the end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Puts {
    Device,
    File,
}

/// A volume made of a snapshot.
#[derive(Debug, Clone)]
pub(crate) struct Made {
    pub(crate) id: String,
    name: String,
    snapshot: String,
    file: PathBuf,
    node: Option<String>,
    staged: Option<String>,
    /// Where it was put, and the loop device that it is there.
    put: Option<(PathBuf, Option<String>)>,
}

type Told<T> = Result<T, (i32, String)>;
type Map = BTreeMap<String, String>;

fn refuse<T>(code: i32, why: &str) -> Told<T> {
    Err((code, why.to_owned()))
}

fn must(is_so: bool, code: i32, why: &str) -> Told<()> {
    if is_so { Ok(()) } else { refuse(code, why) }
}

fn is_block(capability: Option<VolumeCapability>) -> Told<()> {
    must(capability == Some(VolumeCapability::block()), INVALID_ARGUMENT, "no block volume of one node")
}

impl Made {
    fn context(&self) -> Map {
        [("made-of".to_owned(), self.snapshot.clone())].into()
    }

    fn publish_context(&self, publishing: Publishing) -> Map {
        let lun = || [("lun".to_owned(), self.id.clone())].into();
        if publishing.controller { lun() } else { Map::new() }
    }

    fn is_of(&self, context: &Map) -> Told<()> {
        must(*context == self.context(), INVALID_ARGUMENT, "another volume_context")
    }

    fn is_published(&self, context: &Map, publishing: Publishing) -> Told<()> {
        must(!publishing.controller || self.node.is_some(), FAILED_PRECONDITION, "not published to it")?;
        must(*context == self.publish_context(publishing), INVALID_ARGUMENT, "another publish_context")
    }

    /// Takes it away from its path; in use, that is refused as umount(8) does it.
    fn take(&mut self) -> Told<()> {
        let Some((path, device)) = &self.put else { return Ok(()) };
        let output = Command::new("umount").arg(path).output().expect("umount");
        let said = String::from_utf8_lossy(&output.stderr);
        must(output.status.success(), INTERNAL, &format!("umount failed: {}", said.trim()))?;
        fs::remove_file(path).expect("the file that was mounted on");
        if let Some(device) = device {
            run(Command::new("losetup").arg("-d").arg(device));
        }
        self.put = None;
        Ok(())
    }
}

impl State {
    /// `None`: it is no method of these.
    pub(super) fn volume_call(&mut self, path: &str, message: &[u8]) -> Option<Told<Vec<u8>>> {
        let of_node = path.starts_with("/csi.v1.Node/");
        let publishing = match self.offers.volumes {
            Some(publishing) if !of_node || self.is_node => publishing,
            _ => return of_node.then(|| refuse(UNIMPLEMENTED, "no node service")),
        };
        Some(match path {
            method::CREATE_VOLUME => {
                self.create_volume(decode(message), publishing).map(|one| one.encode_to_vec())
            }
            method::DELETE_VOLUME => self.delete_volume(decode(message)).map(|one| one.encode_to_vec()),
            method::PUBLISH => self.publish(decode(message), publishing).map(|one| one.encode_to_vec()),
            method::UNPUBLISH => self.unpublish(decode(message)).map(|one| one.encode_to_vec()),
            method::NODE_GET_CAPABILITIES => Ok(node_capabilities(publishing).encode_to_vec()),
            method::NODE_GET_INFO => Ok(node_info(self.node.clone(), publishing).encode_to_vec()),
            method::NODE_STAGE => self.stage(decode(message), publishing).map(|one| one.encode_to_vec()),
            method::NODE_UNSTAGE => self.unstage(decode(message)).map(|one| one.encode_to_vec()),
            method::NODE_PUBLISH => self.put(decode(message), publishing).map(|one| one.encode_to_vec()),
            method::NODE_UNPUBLISH => self.take(decode(message)).map(|one| one.encode_to_vec()),
            _ => return None,
        })
    }

    fn made(&mut self, id: &str) -> Told<&mut Made> {
        let found = self.made.iter_mut().find(|made| made.id == id);
        found.ok_or((NOT_FOUND, "no such volume".to_owned()))
    }

    fn create_volume(
        &mut self,
        request: CreateVolumeRequest,
        publishing: Publishing,
    ) -> Told<CreateVolumeResponse> {
        self.secrets = request.secrets;
        self.volume_parameters = request.parameters;
        is_block(request.volume_capabilities.first().copied())?;
        let here = publishing.topology.then(|| {
            let here = vec![here()];
            TopologyRequirement { requisite: here.clone(), preferred: here }
        });
        must(request.accessibility_requirements == here, INVALID_ARGUMENT, "another topology")?;
        let bytes = request.capacity_range.map_or(0, |range| range.required_bytes);
        let source = request.volume_content_source.and_then(|source| source.snapshot);
        let Some(SnapshotSource { snapshot_id }) = source else {
            return refuse(INVALID_ARGUMENT, "no source");
        };
        if !self.made.iter().any(|made| made.name == request.name) {
            let snapshot = self.snapshots.iter().find(|one| one.id == snapshot_id);
            let snapshot = snapshot.ok_or((NOT_FOUND, "no such snapshot".to_owned()))?;
            must(!self.is_full, RESOURCE_EXHAUSTED, "full")?;
            self.count += 1;
            let file = self.folder.join(format!("{}.vol", self.count));
            let clone = File::create(&file).unwrap();
            if !self.makes_empty {
                rustix::fs::ioctl_ficlone(&clone, File::open(&snapshot.file).unwrap()).expect("a clone");
            }
            clone.set_len(u64::try_from(bytes).unwrap().max(self.rounds_up_to)).unwrap();
            self.made.push(Made {
                id: format!("vol/{}", self.count),
                name: request.name.clone(),
                snapshot: snapshot_id.clone(),
                file,
                node: None,
                staged: None,
                put: None,
            });
        }
        let made = self.made.iter().find(|made| made.name == request.name).expect("just made");
        must(made.snapshot == snapshot_id, ALREADY_EXISTS, "of another snapshot")?;
        let content_source = ContentSource { snapshot: Some(SnapshotSource { snapshot_id }) };
        Ok(CreateVolumeResponse {
            volume: Some(Volume {
                capacity_bytes: bytes,
                volume_id: made.id.clone(),
                volume_context: made.context(),
                content_source: (!self.makes_empty).then_some(content_source),
            }),
        })
    }

    fn delete_volume(&mut self, request: DeleteVolumeRequest) -> Told<Empty> {
        self.secrets = request.secrets;
        let Ok(made) = self.made(&request.volume_id) else { return Ok(Empty {}) };
        let is_free = made.node.is_none() && made.staged.is_none() && made.put.is_none();
        must(is_free, FAILED_PRECONDITION, "still used")?;
        fs::remove_file(&made.file).unwrap();
        self.made.retain(|made| made.id != request.volume_id);
        Ok(Empty {})
    }

    fn publish(
        &mut self,
        request: ControllerPublishRequest,
        publishing: Publishing,
    ) -> Told<ControllerPublishResponse> {
        must(publishing.controller, UNIMPLEMENTED, "no such method")?;
        self.secrets = request.secrets;
        is_block(request.volume_capability)?;
        must(request.node_id == self.node, NOT_FOUND, "no such node")?;
        must(!request.readonly, INVALID_ARGUMENT, "PUBLISH_READONLY is not offered")?;
        let made = self.made(&request.volume_id)?;
        made.is_of(&request.volume_context)?;
        made.node = Some(request.node_id);
        Ok(ControllerPublishResponse { publish_context: made.publish_context(publishing) })
    }

    fn unpublish(&mut self, request: ControllerUnpublishRequest) -> Told<Empty> {
        self.secrets = request.secrets;
        let made = self.made(&request.volume_id)?;
        must(made.staged.is_none() && made.put.is_none(), FAILED_PRECONDITION, "still on its node")?;
        must(made.node.as_ref().is_none_or(|node| *node == request.node_id), NOT_FOUND, "another node")?;
        made.node = None;
        Ok(Empty {})
    }

    fn stage(&mut self, request: NodeStageRequest, publishing: Publishing) -> Told<Empty> {
        must(publishing.stages, UNIMPLEMENTED, "no such method")?;
        self.secrets = request.secrets;
        is_block(request.volume_capability)?;
        let made = self.made(&request.volume_id)?;
        made.is_of(&request.volume_context)?;
        made.is_published(&request.publish_context, publishing)?;
        must(Path::new(&request.staging_target_path).is_dir(), INVALID_ARGUMENT, "no folder")?;
        let is_elsewhere = made.staged.as_ref().is_some_and(|path| *path != request.staging_target_path);
        must(!is_elsewhere, FAILED_PRECONDITION, "staged elsewhere")?;
        made.staged = Some(request.staging_target_path);
        Ok(Empty {})
    }

    fn unstage(&mut self, request: NodeUnstageRequest) -> Told<Empty> {
        let made = self.made(&request.volume_id)?;
        must(made.put.is_none(), FAILED_PRECONDITION, "still at its path")?;
        made.staged = made.staged.take().filter(|path| *path != request.staging_target_path);
        Ok(Empty {})
    }

    fn put(&mut self, request: NodePublishRequest, publishing: Publishing) -> Told<Empty> {
        self.secrets = request.secrets;
        is_block(request.volume_capability)?;
        let made = self.made(&request.volume_id)?;
        made.is_of(&request.volume_context)?;
        made.is_published(&request.publish_context, publishing)?;
        let staged = made.staged.clone().unwrap_or_default();
        let is_staged = request.staging_target_path == staged && staged.is_empty() != publishing.stages;
        must(is_staged, FAILED_PRECONDITION, "not staged there")?;
        let path = PathBuf::from(request.target_path);
        if let Some((there, _)) = &made.put {
            return must(*there == path, FAILED_PRECONDITION, "it is elsewhere").map(|()| Empty {});
        }
        File::create(&path).or(refuse(INVALID_ARGUMENT, "its folder is not there"))?;
        let device = (publishing.puts == Puts::Device).then(|| {
            let told = run(Command::new("losetup").args(["--find", "--show"]).arg(&made.file));
            told.trim().to_owned()
        });
        let source = device.as_ref().map_or(made.file.clone(), PathBuf::from);
        run(Command::new("mount").arg("--bind").args([&source, &path]));
        made.put = Some((path, device));
        Ok(Empty {})
    }

    fn take(&mut self, request: NodeUnpublishRequest) -> Told<Empty> {
        let made = self.made(&request.volume_id)?;
        let is_there = made.put.as_ref().is_some_and(|(path, _)| *path == Path::new(&request.target_path));
        if is_there {
            made.take()?
        };
        Ok(Empty {})
    }

    /// As after a boot of this host: what was staged and put is not there any more.
    pub(crate) fn boot(&mut self) {
        for made in &mut self.made {
            made.take().expect("nobody uses it");
            made.staged = None;
        }
    }

    /// Whether volumes are made of this snapshot.
    pub(super) fn has_volumes_of(&self, snapshot: &str) -> bool {
        self.made.iter().any(|made| made.snapshot == snapshot)
    }
}

fn here() -> Topology {
    Topology { segments: [("zone".to_owned(), "here".to_owned())].into() }
}

fn node_capabilities(publishing: Publishing) -> Capabilities {
    capabilities(&[(host_proxy::drivers::csi::proto::STAGE_UNSTAGE_VOLUME, publishing.stages)])
}

fn node_info(node_id: String, publishing: Publishing) -> NodeInfo {
    NodeInfo { node_id, accessible_topology: publishing.topology.then(here) }
}

impl Drop for State {
    /// A test that failed leaves no mounts.
    fn drop(&mut self) {
        for (path, device) in self.made.iter().filter_map(|made| made.put.as_ref()) {
            let _ = Command::new("umount").arg("-l").arg(path).output();
            if let Some(device) = device {
                let _ = Command::new("losetup").arg("-d").arg(device).output();
            }
        }
    }
}
