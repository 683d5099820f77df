//! What these tests begin with: a store of reflinks with one image, and `hostsnapd serve` for one
//! machine, whose guest is the test itself, at the machine's socket.

use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use harness::loopfs::{Kind, LoopFs};
use harness::process::Process;
use harness::wait::wait_until;
use protocol::evidence::{CallEvidence, Evidence, FileSystemEvidence, Freeze};
use protocol::fingerprint;
use protocol::frame::{self, HEADER};
use protocol::message::{Conclude, Cut, DiskRequest, Hello, Prepare, Prepared, Reply, Request};
use protocol::record::Timing;
use protocol::text::Labels;
use protocol::{
    BootId, BoundedVec, Consistency, PORT, RequestId, SnapshotId, SnapshotRecord, Ticket, VERSIONS, WireError,
};
use rustix::process::Signal;
use serde_json::Value;

pub(crate) const LIMIT: Duration = Duration::from_secs(60);
const UUID: &str = "3f1f54c2-66a2-4f4f-8d51-0b8a3b1d7f01";
const IMAGE_BYTES: u64 = 1 << 20;

/// A store, a state folder, and the service over both.
pub(crate) struct Stage {
    process: Option<Process>,
    folder: tempfile::TempDir,
    state: PathBuf,
    pub(crate) store: LoopFs,
}

/// What a command came to.
pub(crate) struct Run {
    pub(crate) code: i32,
    pub(crate) out: String,
    pub(crate) err: String,
}

impl Run {
    #[track_caller]
    pub(crate) fn json(&self) -> Value {
        assert_eq!(self.code, 0, "{}", self.err);
        serde_json::from_str(&self.out).unwrap_or_else(|error| panic!("{error}: {:?}", self.out))
    }

    /// The error, which was told as JSON.
    #[track_caller]
    pub(crate) fn error(&self) -> Value {
        let told: Value = serde_json::from_str(&self.err).unwrap_or_else(|_| panic!("{}", self.err));
        assert_eq!(told["error"]["exit_code"], self.code, "{told}");
        assert!(!told["error"]["message"].as_str().unwrap().is_empty(), "{told}");
        told["error"].clone()
    }
}

pub(crate) fn hostsnapd(arguments: &[&str]) -> Run {
    let output =
        Command::new(env!("CARGO_BIN_EXE_hostsnapd")).args(arguments).stdin(Stdio::null()).output().unwrap();
    Run {
        code: output.status.code().expect("an exit code"),
        out: String::from_utf8(output.stdout).unwrap(),
        err: String::from_utf8(output.stderr).unwrap(),
    }
}

impl Stage {
    /// Everything is there, and the service runs.
    pub(crate) fn set() -> Self {
        let mut stage = Self::unset(None);
        stage.start();
        stage
    }

    /// As `set`, with its state in this folder.
    pub(crate) fn with_state(state: &Path) -> Self {
        let mut stage = Self::unset(Some(state));
        stage.start();
        stage
    }

    /// As `set`, with its state in the file system of its snapshots.
    pub(crate) fn with_state_in_its_store() -> Self {
        let mut stage = Self::unset(None);
        stage.state = stage.store.path().join("state");
        stage.configure(&stage.config_text());
        stage.start();
        stage
    }

    fn unset(state: Option<&Path>) -> Self {
        let store = LoopFs::new(Kind::Xfs, 400);
        let folder = tempfile::tempdir().unwrap();
        let state = state.map_or_else(|| folder.path().join("state"), Path::to_owned);
        let stage = Self { process: None, folder, state, store };
        fs::write(stage.image(), vec![7; usize::try_from(IMAGE_BYTES).unwrap()]).unwrap();
        stage.configure(&stage.config_text());
        stage
    }

    /// The configuration that it begins with.
    pub(crate) fn config_text(&self) -> String {
        format!(
            "[service]\nlisten_vsock = false\nstate_dir = \"{}\"\ncontrol_socket = \"{}\"\n\
             [[store]]\nname = \"s\"\ndriver = \"reflink\"\npath = \"{}\"\nmin_free = \"1MiB\"\n\
             [[vm]]\nname = \"db1\"\nuuid = \"{UUID}\"\nsocket = \"{}\"\n\
             [[vm.disk]]\nserial = \"data\"\nstore = \"s\"\npath = \"{}\"\nformat = \"raw\"\n",
            self.state.display(),
            self.folder.path().join("control").display(),
            self.store.path().display(),
            self.folder.path().join("vsock").display(),
            self.image().display(),
        )
    }

    pub(crate) fn configure(&self, text: &str) {
        fs::write(self.config(), text).unwrap();
    }

    pub(crate) fn config(&self) -> PathBuf {
        self.folder.path().join("hostsnapd.toml")
    }

    pub(crate) fn image(&self) -> PathBuf {
        self.store.path().join("data.img")
    }

    pub(crate) fn catalog(&self) -> PathBuf {
        self.state.join("catalog.sqlite")
    }

    /// Starts the service and waits until it answers.
    pub(crate) fn start(&mut self) {
        let mut command = Command::new(env!("CARGO_BIN_EXE_hostsnapd"));
        command.args(["serve", "--config"]).arg(self.config());
        self.process = Some(Process::start(&mut command, &self.log()));
        wait_until("hostsnapd answers", LIMIT, || {
            self.process.as_mut().unwrap().must_live();
            self.admin(&["list"]).code == 0 && UnixStream::connect(self.guests_socket()).is_ok()
        });
    }

    /// Kills it, as a crash would.
    pub(crate) fn kill(&mut self) {
        self.process.take().expect("it runs").kill();
    }

    pub(crate) fn restart(&mut self) {
        self.kill();
        self.start();
    }

    pub(crate) fn signal(&self, signal: Signal) {
        self.process.as_ref().expect("it runs").signal(signal);
    }

    fn log(&self) -> PathBuf {
        self.folder.path().join("log")
    }

    pub(crate) fn printed(&self) -> String {
        String::from_utf8_lossy(&fs::read(self.log()).unwrap()).into_owned()
    }

    /// A command of the administrator's that asks the service.
    pub(crate) fn admin(&self, arguments: &[&str]) -> Run {
        let control = self.folder.path().join("control");
        hostsnapd(&[arguments, &["--control", control.to_str().unwrap()]].concat())
    }

    /// One that works without it.
    pub(crate) fn offline(&self, arguments: &[&str]) -> Run {
        hostsnapd(&[arguments, &["--config", self.config().to_str().unwrap()]].concat())
    }

    /// The identifiers of all snapshots in the list.
    #[track_caller]
    pub(crate) fn listed(&self) -> Vec<String> {
        let list = self.admin(&["list", "--json"]).json();
        list.as_array().unwrap().iter().map(|one| one["id"].as_str().unwrap().to_owned()).collect()
    }

    /// What the storage holds of snapshots, whole or not.
    pub(crate) fn on_storage(&self) -> Vec<String> {
        let Ok(read) = fs::read_dir(self.store.path().join(".hostsnap").join(UUID)) else {
            return Vec::new();
        };
        read.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
    }

    pub(crate) fn uuid(&self) -> &'static str {
        UUID
    }

    fn guests_socket(&self) -> PathBuf {
        self.folder.path().join(format!("vsock_{PORT}"))
    }

    /// A conversation in which nothing was said.
    pub(crate) fn connect(&self) -> Guest {
        let stream = UnixStream::connect(self.guests_socket()).unwrap();
        stream.set_read_timeout(Some(LIMIT)).unwrap();
        Guest(stream)
    }

    pub(crate) fn greeted(&self) -> Guest {
        self.greeted_by(None)
    }

    /// As `greeted`, by this boot of the guest.
    pub(crate) fn greeted_by(&self, boot_id: Option<BootId>) -> Guest {
        let mut guest = self.connect();
        let reply = guest.ask(&hello(boot_id));
        assert!(matches!(reply, Reply::Hello(_)), "{reply:?}");
        guest
    }

    /// A snapshot from beginning to end.
    #[track_caller]
    pub(crate) fn take(&self, prepare: &Prepare) -> Result<Box<SnapshotRecord>, WireError> {
        self.greeted().take(prepare)
    }
}

/// The guest's end of a conversation.
pub(crate) struct Guest(UnixStream);

impl Guest {
    pub(crate) fn send(&mut self, request: &Request) {
        self.0.write_all(&frame::encode(request).unwrap()).unwrap();
    }

    /// A header that promises more than comes.
    pub(crate) fn sends_half_a_message(&mut self) {
        self.0.write_all(&[9, 0, 0, 0, 1]).unwrap();
    }

    /// Whether it may speak; it greets, and is not heard again.
    pub(crate) fn let_in(mut self) -> bool {
        let hello = hello(None);
        self.0.write_all(&frame::encode(&hello).unwrap()).is_ok()
            && matches!(self.hears(), Some(Reply::Hello(_)))
    }

    /// `None` where the host hung up.
    pub(crate) fn hears(&mut self) -> Option<Reply> {
        let mut header = [0; HEADER];
        match self.0.read_exact(&mut header) {
            Ok(()) => {}
            Err(error) if matches!(error.kind(), ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset) => {
                return None;
            }
            Err(error) => panic!("neither an answer nor an end: {error}"),
        }
        let mut payload = vec![0; frame::payload_len(header).unwrap()];
        self.0.read_exact(&mut payload).unwrap();
        Some(frame::decode(&payload).unwrap())
    }

    pub(crate) fn ask(&mut self, request: &Request) -> Reply {
        self.send(request);
        self.hears().expect("an answer")
    }

    /// As `ask`; what the host refuses is an error.
    pub(crate) fn asks(&mut self, request: &Request) -> Result<Reply, WireError> {
        match self.ask(request) {
            Reply::Error(error) => Err(error),
            reply => Ok(reply),
        }
    }

    pub(crate) fn prepare(&mut self, prepare: &Prepare) -> Result<Prepared, WireError> {
        match self.asks(&Request::Prepare(prepare.clone()))? {
            Reply::Prepared(prepared) => Ok(prepared),
            other => panic!("{other:?}"),
        }
    }

    pub(crate) fn take(&mut self, prepare: &Prepare) -> Result<Box<SnapshotRecord>, WireError> {
        let prepared = match self.asks(&Request::Prepare(prepare.clone()))? {
            Reply::Prepared(prepared) => prepared,
            Reply::Existing(record) => return Ok(record),
            other => panic!("{other:?}"),
        };
        self.asks(&cut(prepared.ticket))?;
        match self.asks(&conclude(prepared.ticket))? {
            Reply::Snapshot(record) => Ok(record),
            other => panic!("{other:?}"),
        }
    }
}

fn hello(boot_id: Option<BootId>) -> Request {
    let agent_version = "0.0.1".parse().unwrap();
    Request::Hello(Hello { versions: VERSIONS, agent_version, boot_id, vm_uuid: None })
}

/// A request for the disk, worth at least this.
pub(crate) fn request(minimum: Consistency) -> Prepare {
    let disk = DiskRequest {
        serial: "data".parse().unwrap(),
        size_bytes: IMAGE_BYTES,
        fingerprint: fingerprint::of_head(&[7; fingerprint::HEAD_BYTES]),
    };
    Prepare {
        request: RequestId::random(),
        disks: vec![disk].try_into().unwrap(),
        mounts: BoundedVec::empty(),
        labels: Labels::default(),
        note: "".parse().unwrap(),
        minimum,
        keep_for_s: None,
        lease_ms: 60_000,
        dry_run: false,
    }
}

/// The identifier of the snapshot that answers a request.
pub(crate) fn id_of(prepare: &Prepare) -> String {
    SnapshotId::derive(UUID.parse().unwrap(), prepare.request).to_string()
}

pub(crate) fn cut(ticket: Ticket) -> Request {
    Request::Cut(Cut { ticket, within_us: 60_000_000 })
}

/// The guest was frozen through the cut.
pub(crate) fn conclude(ticket: Ticket) -> Request {
    let call = Some(CallEvidence { at_us: 0, took_us: 1, errno: 0 });
    let fs = FileSystemEvidence {
        mount_point: "/data".parse().unwrap(),
        fs_type: "ext4".parse().unwrap(),
        freeze: call,
        thaw: call,
    };
    let file_systems = vec![fs].try_into().unwrap();
    let evidence = Evidence { freeze: Freeze::Held, file_systems, hooks: BoundedVec::empty() };
    Request::Conclude(Conclude { ticket, evidence, timing: Timing::default(), wait: true })
}
