//! What these tests begin with: a store of reflinks with one image, and `hostsnapd serve` for one
//! machine, whose guest is the test itself, at the machine's socket.

use std::fs;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use harness::loopfs::{Kind, LoopFs};
use harness::process::Process;
use harness::wait::wait_until;
use protocol::message::{Prepare, Reply};
use protocol::{BootId, Consistency, PORT, SnapshotId, SnapshotRecord, WireError};
use rustix::process::Signal;
use serde_json::Value;

pub(crate) use super::guest::{Guest, conclude, cut};
use super::guest::{hello, request_for};

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

    /// The administrator's socket.
    pub(crate) fn control(&self) -> PathBuf {
        self.folder.path().join("control")
    }

    /// The state folder.
    pub(crate) fn state(&self) -> &Path {
        &self.state
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

    /// What the storage has of the disk in a snapshot.
    pub(crate) fn kept(&self, id: &SnapshotId) -> PathBuf {
        self.store.path().join(".hostsnap").join(UUID).join(id.to_string()).join("data.img")
    }

    pub(crate) fn uuid(&self) -> &'static str {
        UUID
    }

    /// Where the machine's vsock device listens while it runs.
    pub(crate) fn device(&self) -> PathBuf {
        self.folder.path().join("vsock")
    }

    fn guests_socket(&self) -> PathBuf {
        self.folder.path().join(format!("vsock_{PORT}"))
    }

    /// A conversation in which nothing was said.
    pub(crate) fn connect(&self) -> Guest {
        Guest::connect(&self.guests_socket())
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

/// A request for the disk, worth at least this.
pub(crate) fn request(minimum: Consistency) -> Prepare {
    request_for(&[("data", IMAGE_BYTES, 7)], minimum)
}

/// The identifier of the snapshot that answers a request.
pub(crate) fn id_of(prepare: &Prepare) -> String {
    SnapshotId::derive(UUID.parse().unwrap(), prepare.request).to_string()
}
