//! `hostsnapd serve` in a folder of its own, with its configuration, log and control socket; under the tracer, so that it can
//! be killed before any of its calls.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use harness::wait::wait_until;

use super::tracer::Traced;

const LIMIT: Duration = Duration::from_secs(60);

/// Where a service has what is its own.
pub(crate) struct Folder(tempfile::TempDir);

impl Folder {
    /// Short: the path of a socket has at most 107 bytes (unix(7)).
    pub(crate) fn new(prefix: &str) -> Self {
        Self(tempfile::Builder::new().prefix(prefix).tempdir_in("/tmp").unwrap())
    }

    pub(crate) fn path(&self) -> &Path {
        self.0.path()
    }

    pub(crate) fn at(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    pub(crate) fn configure(&self, text: &str) {
        fs::write(self.at("hostsnapd.toml"), text).unwrap();
    }

    /// The service, to be started.
    pub(crate) fn serve(&self) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_hostsnapd"));
        command.args(["serve", "--config"]).arg(self.at("hostsnapd.toml"));
        command
    }

    /// A command that needs no service.
    pub(crate) fn offline(&self, arguments: &[&str]) -> Output {
        self.run(arguments, "--config", "hostsnapd.toml")
    }

    pub(crate) fn printed(&self) -> String {
        String::from_utf8_lossy(&fs::read(self.at("log")).unwrap_or_default()).into_owned()
    }

    pub(crate) fn admin(&self, arguments: &[&str]) -> Output {
        self.run(arguments, "--control", "control")
    }

    fn run(&self, arguments: &[&str], option: &str, name: &str) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_hostsnapd"));
        command.args(arguments).arg(option).arg(self.at(name));
        command.stdin(Stdio::null()).output().unwrap()
    }
}

/// A service that runs, or was killed.
pub(crate) struct Served {
    pub(crate) folder: Folder,
    traced: Option<Traced>,
}

impl Served {
    pub(crate) fn start_in(folder: Folder) -> Self {
        let mut served = Self { folder, traced: None };
        served.start();
        served
    }

    #[track_caller]
    pub(crate) fn start(&mut self) {
        let traced = Traced::start(self.folder.serve(), &self.folder.at("log"), None);
        wait_until("hostsnapd is up", LIMIT, || {
            assert!(!traced.has_ended(), "{}", self.printed());
            self.admin(&["vms"]).status.success()
        });
        self.traced = Some(traced);
    }

    pub(crate) fn kill(&mut self) {
        self.traced.take().expect("it was started").kill();
    }

    pub(crate) fn traced(&self) -> &Traced {
        self.traced.as_ref().expect("it was started")
    }

    pub(crate) fn at(&self, name: &str) -> PathBuf {
        self.folder.at(name)
    }

    pub(crate) fn printed(&self) -> String {
        self.folder.printed()
    }

    pub(crate) fn admin(&self, arguments: &[&str]) -> Output {
        self.folder.admin(arguments)
    }
}
