//! A CSI plugin of the tests' own: gRPC by hand on hyper, so that the driver does not talk to itself; snapshots are real clones of
//! files on XFS. It can be told to do each thing that plugins do wrong.
//!
//! | module | idea |
//! |---|---|
//! | this one | the server, and snapshots |
//! | `volumes` | volumes made of snapshots, and the node service |

// Where a benchmark includes this file, its rooms are found all the same.
#[path = "server/volumes.rs"]
pub(crate) mod volumes;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::convert::Infallible;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use host_proxy::drivers::csi::proto::{
    self, BlockMetadata, Capabilities, Capability, CapabilityType, Capacity, CreateGroupRequest,
    CreateGroupResponse, CreateSnapshotRequest, CreateSnapshotResponse, DeleteGroupRequest,
    DeleteSnapshotRequest, DeltaRequest, DeltaResponse, Empty, GetVolumeRequest, GetVolumeResponse, Group,
    ListSnapshotsRequest, ListSnapshotsResponse, PluginInfo, ProbeResponse, Snapshot, Timestamp,
    ValidateVolumeRequest, Volume, method,
};
use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::header::{HeaderMap, HeaderValue};
use hyper_util::rt::{TokioExecutor, TokioIo};
use prost::Message;

use volumes::{Made, Publishing, Puts};

/// gRPC's numbers.
pub(crate) const INVALID_ARGUMENT: i32 = 3;
pub(crate) const NOT_FOUND: i32 = 5;
pub(crate) const ALREADY_EXISTS: i32 = 6;
pub(crate) const RESOURCE_EXHAUSTED: i32 = 8;
pub(crate) const FAILED_PRECONDITION: i32 = 9;
pub(crate) const ABORTED: i32 = 10;
pub(crate) const UNIMPLEMENTED: i32 = 12;
pub(crate) const INTERNAL: i32 = 13;

/// The messages of an answer: one, but for streams.
type Answer = Result<Vec<Vec<u8>>, (i32, String)>;

/// What a method does instead of its work, once.
#[derive(Debug, Clone)]
pub(crate) enum Fault {
    /// Answers this code with this text, and does nothing.
    Refuses(i32, String),
    /// Does nothing and never answers.
    Hangs,
    /// Does its work and never answers.
    WorksAndHangs,
    /// Does its work; the connection ends before the answer.
    WorksAndDies,
    /// Does its work and answers these bytes.
    WorksAndAnswers(Vec<u8>),
}

/// What the plugin offers.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Offers {
    pub(crate) snapshots: bool,
    pub(crate) lists: bool,
    pub(crate) groups: bool,
    pub(crate) room: bool,
    pub(crate) changes: bool,
    /// Volumes, of snapshots too.
    pub(crate) volumes: Option<Publishing>,
}

impl Offers {
    /// All that there is.
    pub(crate) const EVERYTHING: Self = Self {
        snapshots: true,
        lists: true,
        groups: true,
        room: true,
        changes: true,
        volumes: Some(Publishing { controller: true, stages: true, topology: true, puts: Puts::Device }),
    };
}

/// All that it knows.
pub(crate) struct State {
    pub(crate) offers: Offers,
    pub(crate) name: String,
    pub(crate) volumes: BTreeMap<String, PathBuf>,
    pub(crate) snapshots: Vec<Kept>,
    pub(crate) faults: BTreeMap<&'static str, VecDeque<Fault>>,
    /// Identifiers of snapshots that can't be deleted now.
    pub(crate) in_use: BTreeSet<String>,
    pub(crate) is_full: bool,
    /// How often each snapshot is asked for before it is ready.
    pub(crate) unready: u32,
    /// Whether of one volume it tells one snapshot only, as the Kubernetes host-path driver does.
    pub(crate) tells_one: bool,
    /// Whether it says of any volume that it is there, as the Kubernetes host-path driver does where it is asked for one.
    pub(crate) tells_any: bool,
    /// How many snapshots, or changed ranges, one page holds.
    pub(crate) page: usize,
    /// What came with the last call that had secrets.
    pub(crate) secrets: BTreeMap<String, String>,
    pub(crate) parameters: BTreeMap<String, String>,
    pub(crate) volume_parameters: BTreeMap<String, String>,
    /// The volumes that it has made.
    pub(crate) made: Vec<Made>,
    /// Whether its volumes are empty, whatever they should be made of.
    pub(crate) makes_empty: bool,
    /// It makes no smaller volumes, in bytes.
    pub(crate) rounds_up_to: u64,
    /// Whether its node service is at this socket too.
    pub(crate) is_node: bool,
    /// What it calls this host.
    pub(crate) node: String,
    folder: PathBuf,
    count: u64,
}

/// One snapshot.
#[derive(Debug, Clone)]
pub(crate) struct Kept {
    pub(crate) id: String,
    pub(crate) name: String,
    pub(crate) volume: String,
    pub(crate) group: String,
    pub(crate) file: PathBuf,
    created_s: i64,
    unready: u32,
}

/// The plugin, at its socket until it is dropped.
pub(crate) struct Server {
    pub(crate) socket: PathBuf,
    state: Arc<Mutex<State>>,
    runtime: Mutex<Option<tokio::runtime::Runtime>>,
}

impl Server {
    /// Serves at this socket; its snapshots are files in this folder.
    pub(crate) fn start(socket: &Path, folder: &Path, offers: Offers) -> Self {
        let state = Arc::new(Mutex::new(State {
            offers,
            name: "test.hostsnap.example".to_owned(),
            volumes: BTreeMap::new(),
            snapshots: Vec::new(),
            faults: BTreeMap::new(),
            in_use: BTreeSet::new(),
            is_full: false,
            unready: 0,
            tells_one: false,
            tells_any: false,
            page: 100,
            secrets: BTreeMap::new(),
            parameters: BTreeMap::new(),
            volume_parameters: BTreeMap::new(),
            made: Vec::new(),
            makes_empty: false,
            rounds_up_to: 0,
            is_node: true,
            node: volumes::NODE.to_owned(),
            folder: folder.to_owned(),
            count: 0,
        }));
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .expect("a runtime");
        let listener = {
            let _context = runtime.enter();
            tokio::net::UnixListener::bind(socket).expect("a socket")
        };
        let served = Arc::clone(&state);
        runtime.spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(connection(stream, Arc::clone(&served)));
            }
        });
        Self { socket: socket.to_owned(), state, runtime: Mutex::new(Some(runtime)) }
    }

    /// As a plugin that is killed: its connections end.
    pub(crate) fn stop(&self) {
        if let Some(runtime) = self.runtime.lock().unwrap().take() {
            runtime.shutdown_background();
        }
    }

    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// The next call of this method does so; a second `fault` is for the call after that.
    pub(crate) fn fault(&self, method: &'static str, fault: Fault) {
        self.state().faults.entry(method).or_default().push_back(fault);
    }

    /// The snapshot of this volume whose name, or whose group's, begins so.
    pub(crate) fn find(&self, name: &str, volume: &str) -> Option<Kept> {
        let state = self.state();
        state.snapshots.iter().find(|one| one.name.starts_with(name) && one.volume == volume).cloned()
    }
}

async fn connection(stream: tokio::net::UnixStream, state: Arc<Mutex<State>>) {
    let end = Arc::new(tokio::sync::Notify::new());
    let ended = Arc::clone(&end);
    let service = hyper::service::service_fn(move |request: hyper::Request<Incoming>| {
        let (state, end) = (Arc::clone(&state), Arc::clone(&end));
        async move { Ok::<_, Infallible>(serve(request, &state, &end).await) }
    });
    let serving = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
        .serve_connection(TokioIo::new(stream), service);
    tokio::select! {
        _ = serving => {}
        () = ended.notified() => {}
    }
}

type Body = http_body_util::combinators::BoxBody<Bytes, Infallible>;

async fn serve(
    request: hyper::Request<Incoming>,
    state: &Mutex<State>,
    end: &tokio::sync::Notify,
) -> hyper::Response<Body> {
    let path = request.uri().path().to_owned();
    // Who asks may be killed in the middle of it.
    let Ok(body) = request.into_body().collect().await else {
        return hyper::Response::new(Full::new(Bytes::new()).boxed());
    };
    let body = body.to_bytes();
    // One message: a byte "not compressed", its length, itself.
    let message = body.get(5..).expect("a message").to_vec();
    let fault = {
        let mut state = state.lock().unwrap();
        state
            .faults
            .iter_mut()
            .find(|(method, _)| **method == path)
            .and_then(|(_, faults)| faults.pop_front())
    };
    let work = || state.lock().unwrap().answers(&path, &message);
    let answer = match fault {
        None => work(),
        Some(Fault::Refuses(code, text)) => Err((code, text)),
        Some(Fault::Hangs) => std::future::pending().await,
        Some(Fault::WorksAndHangs) => {
            work().expect("it works");
            std::future::pending().await
        }
        Some(Fault::WorksAndDies) => {
            work().expect("it works");
            end.notify_one();
            std::future::pending().await
        }
        Some(Fault::WorksAndAnswers(bytes)) => work().map(|_| vec![bytes]),
    };
    let (frame, code, text) = match answer {
        Ok(messages) => {
            let mut frames = Vec::new();
            for message in messages {
                frames.push(0);
                frames.extend(u32::try_from(message.len()).expect("a small message").to_be_bytes());
                frames.extend(message);
            }
            (frames, 0, String::new())
        }
        Err((code, text)) => (Vec::new(), code, text),
    };
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", HeaderValue::from(code));
    trailers.insert("grpc-message", HeaderValue::from_str(&text).expect("a plain text"));
    let body = Full::new(Bytes::from(frame)).with_trailers(async move { Some(Ok(trailers)) });
    hyper::Response::builder()
        .header("content-type", "application/grpc")
        .body(body.boxed())
        .expect("a response")
}

fn decode<M: Message + Default>(message: &[u8]) -> M {
    M::decode(message).expect("the driver sends what the method takes")
}

fn capabilities(types: &[(i32, bool)]) -> Capabilities {
    let offered = types.iter().filter(|(_, is_offered)| *is_offered);
    let one = |(r#type, _): &(i32, bool)| Capability { of: Some(CapabilityType { r#type: *r#type }) };
    Capabilities { capabilities: offered.map(one).collect() }
}

impl State {
    fn answers(&mut self, path: &str, message: &[u8]) -> Answer {
        match path {
            method::GET_METADATA_DELTA if self.offers.changes => self.delta(&decode(message)),
            _ => self.answer(path, message).map(|one| vec![one]),
        }
    }

    /// By comparing all bytes, as the Kubernetes host-path driver does.
    fn delta(&self, request: &DeltaRequest) -> Answer {
        let find = |id: &str| {
            let found = self.snapshots.iter().position(|one| one.id == id);
            found.ok_or((NOT_FOUND, "no such snapshot".to_owned()))
        };
        let (base, target) = (find(&request.base_snapshot_id)?, find(&request.target_snapshot_id)?);
        if base >= target {
            return Err((INVALID_ARGUMENT, "the base is not the older one".to_owned()));
        }
        let read = |index: usize| fs::read(&self.snapshots[index].file).expect("a snapshot's file");
        let (old, new) = (read(base), read(target));
        let blocks = old.chunks(4096).zip(new.chunks(4096)).enumerate();
        let changed = blocks.filter(|(_, (old, new))| old != new).map(|(n, (_, new))| BlockMetadata {
            byte_offset: i64::try_from(n * 4096).expect("a small disk"),
            size_bytes: i64::try_from(new.len()).expect("a block"),
        });
        let capacity = i64::try_from(new.len()).expect("a small disk");
        let message = |some: &[BlockMetadata]| {
            DeltaResponse {
                block_metadata_type: 1,
                volume_capacity_bytes: capacity,
                block_metadata: some.to_vec(),
            }
            .encode_to_vec()
        };
        Ok(changed.collect::<Vec<_>>().chunks(self.page.min(7)).map(message).collect())
    }

    fn answer(&mut self, path: &str, message: &[u8]) -> Result<Vec<u8>, (i32, String)> {
        if let Some(answer) = self.volume_call(path, message) {
            return answer;
        }
        let publishing = self.offers.volumes;
        Ok(match path {
            method::GET_PLUGIN_INFO => {
                PluginInfo { name: self.name.clone(), vendor_version: "1".to_owned() }.encode_to_vec()
            }
            method::PROBE => ProbeResponse { ready: Some(true) }.encode_to_vec(),
            method::GET_PLUGIN_CAPABILITIES => capabilities(&[
                (proto::CONTROLLER_SERVICE, true),
                (proto::GROUP_CONTROLLER_SERVICE, self.offers.groups),
                (proto::SNAPSHOT_METADATA_SERVICE, self.offers.changes),
                (proto::VOLUME_ACCESSIBILITY_CONSTRAINTS, publishing.is_some_and(|one| one.topology)),
            ])
            .encode_to_vec(),
            method::GET_CAPABILITIES => capabilities(&[
                (proto::CREATE_DELETE_SNAPSHOT, self.offers.snapshots),
                (proto::LIST_SNAPSHOTS, self.offers.lists),
                (proto::GET_CAPACITY, self.offers.room),
                (proto::GET_VOLUME, true),
                (proto::CREATE_DELETE_VOLUME, publishing.is_some()),
                (proto::PUBLISH_UNPUBLISH_VOLUME, publishing.is_some_and(|one| one.controller)),
            ])
            .encode_to_vec(),
            method::GROUP_GET_CAPABILITIES => capabilities(&[(proto::GROUP_SNAPSHOT, true)]).encode_to_vec(),
            method::GET_CAPACITY => Capacity { available_capacity: 1 << 40 }.encode_to_vec(),
            method::GET_VOLUME => {
                self.volume(&decode::<GetVolumeRequest>(message).volume_id)?.encode_to_vec()
            }
            method::VALIDATE_VOLUME => {
                let ValidateVolumeRequest { volume_id, volume_capabilities, secrets } = decode(message);
                self.secrets = secrets;
                if volume_capabilities.len() != 1 {
                    return Err((INVALID_ARGUMENT, "no capability".to_owned()));
                }
                let found = self.volumes.get(&volume_id).ok_or((NOT_FOUND, "no such volume".to_owned()));
                found.map(|_| Empty {}.encode_to_vec())?
            }
            method::CREATE_SNAPSHOT => self.create(decode(message))?.encode_to_vec(),
            method::DELETE_SNAPSHOT => self.delete(decode(message))?.encode_to_vec(),
            method::LIST_SNAPSHOTS => self.list(&decode(message)).encode_to_vec(),
            method::CREATE_GROUP_SNAPSHOT => self.create_group(decode(message))?.encode_to_vec(),
            method::DELETE_GROUP_SNAPSHOT => self.delete_group(decode(message))?.encode_to_vec(),
            _ => return Err((UNIMPLEMENTED, "no such method".to_owned())),
        })
    }

    fn volume(&self, id: &str) -> Result<GetVolumeResponse, (i32, String)> {
        if self.tells_any && !self.volumes.contains_key(id) {
            return Ok(GetVolumeResponse {
                volume: Some(Volume { volume_id: id.to_owned(), ..Default::default() }),
            });
        }
        let file = self.volumes.get(id).ok_or((NOT_FOUND, "no such volume".to_owned()))?;
        let capacity_bytes =
            i64::try_from(fs::metadata(file).expect("a volume's file").len()).expect("small");
        Ok(GetVolumeResponse {
            volume: Some(Volume { capacity_bytes, volume_id: id.to_owned(), ..Default::default() }),
        })
    }

    /// One clone; the same for the same name.
    fn cut(&mut self, name: &str, volume: &str, group: &str) -> Result<Snapshot, (i32, String)> {
        if let Some(there) = self
            .snapshots
            .iter_mut()
            .find(|one| one.name == name && (one.volume == volume || group.is_empty()))
        {
            if there.volume != volume {
                return Err((ALREADY_EXISTS, "of another volume".to_owned()));
            }
            let is_ready = there.unready == 0;
            there.unready = there.unready.saturating_sub(1);
            return Ok(there.message(is_ready));
        }
        if self.is_full {
            return Err((RESOURCE_EXHAUSTED, "full".to_owned()));
        }
        let source = self.volumes.get(volume).ok_or((NOT_FOUND, "no such volume".to_owned()))?;
        self.count += 1;
        let file = self.folder.join(format!("{}.snap", self.count));
        rustix::fs::ioctl_ficlone(File::create(&file).unwrap(), File::open(source).unwrap())
            .expect("a clone");
        let since =
            std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or(Duration::ZERO);
        self.snapshots.push(Kept {
            // Opaque, and longer than the 128 bytes that CSI allows.
            id: format!("array/{}/{}", self.count, "x".repeat(200)),
            name: name.to_owned(),
            volume: volume.to_owned(),
            group: group.to_owned(),
            file,
            created_s: i64::try_from(since.as_secs()).unwrap(),
            unready: self.unready.saturating_sub(1),
        });
        Ok(self.snapshots.last().expect("just pushed").message(self.unready == 0))
    }

    fn create(&mut self, request: CreateSnapshotRequest) -> Result<CreateSnapshotResponse, (i32, String)> {
        self.secrets = request.secrets;
        self.parameters = request.parameters;
        let snapshot = self.cut(&request.name, &request.source_volume_id, "")?;
        Ok(CreateSnapshotResponse { snapshot: Some(snapshot) })
    }

    fn delete(&mut self, request: DeleteSnapshotRequest) -> Result<Empty, (i32, String)> {
        if self.in_use.contains(&request.snapshot_id) {
            return Err((FAILED_PRECONDITION, "in use".to_owned()));
        }
        if self.has_volumes_of(&request.snapshot_id) {
            return Err((FAILED_PRECONDITION, "volumes are made of it".to_owned()));
        }
        self.forget(|one| one.id == request.snapshot_id);
        Ok(Empty {})
    }

    pub(crate) fn forget(&mut self, is_meant: impl Fn(&Kept) -> bool) {
        for gone in self.snapshots.iter().filter(|one| is_meant(one)) {
            fs::remove_file(&gone.file).expect("a snapshot's file");
        }
        self.snapshots.retain(|one| !is_meant(one));
    }

    fn list(&self, request: &ListSnapshotsRequest) -> ListSnapshotsResponse {
        let wanted = |one: &&Kept| {
            (request.source_volume_id.is_empty() || one.volume == request.source_volume_id)
                && (request.snapshot_id.is_empty() || one.id == request.snapshot_id)
        };
        let from: usize = request.starting_token.parse().unwrap_or(0);
        let mut all: Vec<&Kept> = self.snapshots.iter().filter(wanted).collect();
        if self.tells_one && !request.source_volume_id.is_empty() {
            all.truncate(1);
        }
        let to = all.len().min(from + self.page);
        let entries = all[from..to]
            .iter()
            .map(|one| CreateSnapshotResponse { snapshot: Some(one.message(true)) })
            .collect();
        let next_token = if to < all.len() { to.to_string() } else { String::new() };
        ListSnapshotsResponse { entries, next_token }
    }

    fn create_group(&mut self, request: CreateGroupRequest) -> Result<CreateGroupResponse, (i32, String)> {
        self.secrets = request.secrets;
        let group = format!("group/{}", request.name);
        let mut snapshots = Vec::new();
        // The last first: nothing says in which order they come.
        for volume in request.source_volume_ids.iter().rev() {
            snapshots.push(self.cut(&request.name, volume, &group)?);
        }
        let ready_to_use = snapshots.iter().all(|one| one.ready_to_use);
        let creation_time = snapshots.first().and_then(|one| one.creation_time);
        let group = Group { group_snapshot_id: group, snapshots, creation_time, ready_to_use };
        Ok(CreateGroupResponse { group_snapshot: Some(group) })
    }

    fn delete_group(&mut self, request: DeleteGroupRequest) -> Result<Empty, (i32, String)> {
        let members: BTreeSet<&str> = request.snapshot_ids.iter().map(String::as_str).collect();
        let ours = |one: &Kept| one.group == request.group_snapshot_id;
        if self.snapshots.iter().any(|one| ours(one) && self.in_use.contains(&one.id)) {
            return Err((FAILED_PRECONDITION, "in use".to_owned()));
        }
        if self.snapshots.iter().any(|one| ours(one) && self.has_volumes_of(&one.id)) {
            return Err((FAILED_PRECONDITION, "volumes are made of one of it".to_owned()));
        }
        assert!(self.snapshots.iter().filter(|one| ours(one)).all(|one| members.contains(one.id.as_str())));
        self.forget(ours);
        Ok(Empty {})
    }

    /// A snapshot that somebody else asked for.
    pub(crate) fn strange(&mut self, name: &str, volume: &str) {
        self.cut(name, volume, "").expect("a snapshot");
    }
}

impl Kept {
    fn message(&self, ready_to_use: bool) -> Snapshot {
        Snapshot {
            // No storage's size is to be believed.
            size_bytes: -1,
            snapshot_id: self.id.clone(),
            source_volume_id: self.volume.clone(),
            creation_time: Some(Timestamp { seconds: self.created_s, nanos: 0 }),
            ready_to_use,
            group_snapshot_id: self.group.clone(),
        }
    }
}
