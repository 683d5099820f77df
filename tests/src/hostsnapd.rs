//! The service, started for a test with a configuration for its machines.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Mutex;
use std::time::Duration;

use rustix::process::Signal;

use crate::link::Link;
use crate::process::Process;
use crate::vm::{Vm, layout};
use crate::wait::wait_until;

/// A running `hostsnapd`.
pub struct Hostsnapd {
    process: Mutex<Process>,
    program: PathBuf,
    folder: tempfile::TempDir,
}

/// A virtual machine in the configuration, and its disks by serial and image.
pub struct Machine<'a> {
    /// The machine.
    pub vm: &'a Vm,
    /// Its name.
    pub name: &'a str,
    /// Its disks: serial, image.
    pub disks: Vec<(&'a str, &'a Path)>,
    /// More lines of its `[[vm]]`.
    pub more: &'a str,
}

/// A configuration.
pub fn config(driver: &str, store: &Path, machines: &[Machine<'_>]) -> String {
    let mut text = format!(
        "[service]\nlisten_vsock = {}\nstate_dir = \"@STATE@\"\ncontrol_socket = \"@STATE@/control.sock\"\n\n\
         [[store]]\nname = \"store\"\ndriver = \"{driver}\"\npath = \"{}\"\nmin_free = \"1MiB\"\n",
        machines.iter().any(|machine| matches!(machine.vm.link, Link::Kernel(_))),
        store.display()
    );
    for Machine { vm, name, disks, more } in machines {
        text += &format!(
            "\n[[vm]]\nname = \"{name}\"\nuuid = \"{}\"\n{}\nqmp = \"{}\"\n{more}\n",
            vm.uuid(),
            vm.link.config(),
            vm.qmp().display()
        );
        for (serial, path) in disks {
            text += &format!(
                "[[vm.disk]]\nserial = \"{serial}\"\nstore = \"store\"\npath = \"{}\"\nformat = \"{}\"\n",
                path.display(),
                layout(path)
            );
        }
    }
    text
}

impl Hostsnapd {
    /// Starts it and waits until it answers. `@STATE@` in the configuration becomes its folder.
    ///
    /// # Panics
    /// When it does not come up, with what it printed.
    pub fn start(config: &str) -> Self {
        Self::start_program(program(), config)
    }

    /// As `start`, of another build.
    ///
    /// # Panics
    /// When it does not come up, with what it printed.
    pub fn start_program(program: PathBuf, config: &str) -> Self {
        let folder = tempfile::Builder::new().prefix("hsd-").tempdir_in("/tmp").expect("a folder");
        let config = config.replace("@STATE@", &folder.path().to_string_lossy());
        fs::write(folder.path().join("hostsnapd.toml"), config).expect("a configuration");
        let process = Mutex::new(launch(&program, folder.path()));
        let service = Self { process, program, folder };
        service.wait_ready();
        service
    }

    fn wait_ready(&self) {
        let control = self.folder.path().join("control.sock");
        wait_until("hostsnapd answers", Duration::from_secs(60), || {
            self.process.lock().expect("no holder of this lock panics").must_live();
            std::os::unix::net::UnixStream::connect(&control).is_ok()
        });
    }

    /// Sends a signal to it. SIGKILL takes effect when the call that it is in comes back.
    pub fn signal(&self, signal: Signal) {
        self.process.lock().expect("no holder of this lock panics").signal(signal);
    }

    /// Waits for its end after a signal, SIGKILL if need be, and starts it again.
    pub fn restart(&self) {
        let mut process = self.process.lock().expect("no holder of this lock panics");
        process.kill();
        *process = launch(&self.program, self.folder.path());
        drop(process);
        self.wait_ready();
    }

    /// Its PID.
    pub fn pid(&self) -> u32 {
        self.process.lock().expect("no holder of this lock panics").pid()
    }

    /// What it printed.
    pub fn printed(&self) -> String {
        self.process.lock().expect("no holder of this lock panics").printed()
    }

    /// Runs an administrator's command.
    ///
    /// # Panics
    /// When the program can't be started.
    pub fn admin(&self, arguments: &[&str]) -> Output {
        Command::new(&self.program)
            .args(arguments)
            .arg("--control")
            .arg(self.folder.path().join("control.sock"))
            .output()
            .expect("hostsnapd can be started")
    }

    /// As `admin`, for a command that must succeed and prints JSON.
    ///
    /// # Panics
    /// When it does not.
    #[track_caller]
    pub fn json(&self, arguments: &[&str]) -> serde_json::Value {
        let output = self.admin(&[arguments, &["--json"]].concat());
        assert!(
            output.status.success(),
            "hostsnapd {arguments:?}: {}\nthe service printed:\n{}",
            String::from_utf8_lossy(&output.stderr),
            self.printed()
        );
        serde_json::from_slice(&output.stdout).expect("JSON")
    }

    /// Gives it another configuration, which it takes over while it runs.
    ///
    /// # Panics
    /// When it does not.
    pub fn reload(&self, config: &str) {
        let config = config.replace("@STATE@", &self.folder.path().to_string_lossy());
        let said = self.printed().matches("configuration reloaded").count();
        fs::write(self.config(), config).expect("a configuration");
        self.signal(Signal::HUP);
        wait_until("hostsnapd takes its new configuration", Duration::from_secs(60), || {
            self.printed().matches("configuration reloaded").count() > said
        });
    }

    /// Its configuration's file.
    pub fn config(&self) -> PathBuf {
        self.folder.path().join("hostsnapd.toml")
    }
}

/// The service's program: built by `cargo xtask`, or by `cargo build`.
///
/// # Panics
/// When it is missing.
pub fn program() -> PathBuf {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/debug/hostsnapd");
    assert!(path.exists(), "{} is missing: run `cargo build` or `cargo xtask test`", path.display());
    path
}

fn launch(program: &Path, folder: &Path) -> Process {
    Process::start(
        Command::new(program).arg("serve").arg("--config").arg(folder.join("hostsnapd.toml")),
        &folder.join("log"),
    )
}
