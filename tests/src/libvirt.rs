//! A libvirtd of a test's own, with QEMU's driver: a plain process, as root, on a socket in a temporary folder. All that libvirtd has
//! compiled-in paths for (its configuration, state and logs) is in that folder too, by a mount namespace. QEMU runs as
//! another user, as it does in production. Each can be a host of its own, to which others' machines move.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open};

use crate::process::Process;
use crate::wait::wait_until;

const LIMIT: Duration = Duration::from_secs(60);
/// What libvirtd's programs have compiled in.
const FOLDERS: [&str; 5] =
    ["/etc/libvirt", "/var/lib/libvirt", "/run/libvirt", "/var/log/libvirt", "/var/cache/libvirt"];

/// A running libvirtd.
pub struct Libvirtd {
    process: Process,
    folder: tempfile::TempDir,
}

impl Libvirtd {
    /// Starts it and waits until it answers.
    ///
    /// # Panics
    /// When it does not, with what it printed.
    pub fn start() -> Self {
        Self::start_on(1)
    }

    /// As `start`, on the host of this number: it has a UUID and a name of its own.
    ///
    /// # Panics
    /// When it does not, with what it printed.
    pub fn start_on(host: u8) -> Self {
        let folder = tempfile::Builder::new().prefix("hsv-").tempdir_in("/tmp").expect("a folder");
        let at = |name: &str| folder.path().join(name);
        // QEMU, another user, goes through it.
        set_mode(folder.path(), 0o755);
        for name in FOLDERS.iter().map(|path| inside(path)).chain(["socket".to_owned()]) {
            fs::create_dir(at(&name)).expect("a folder");
            set_mode(&at(&name), 0o755);
        }
        let daemon = format!(
            "unix_sock_dir = \"{}\"\nunix_sock_group = \"root\"\nauth_unix_rw = \"none\"\nauth_unix_ro = \"none\"\n\
             host_uuid = \"11111111-2222-4333-8444-5555555555{host:02x}\"\n",
            at("socket").display()
        );
        // Without a /dev of each QEMU's own: where KVM is hidden there, libvirt could not make one.
        let qemu = "security_driver = \"none\"\nstdio_handler = \"file\"\ncgroup_controllers = []\nnamespaces = []\n";
        // The user as whom libvirt was built to run QEMU; the package that makes it also starts services.
        for (file, line) in
            [("passwd", "libvirt-qemu:x:64055:64055::/:/bin/false\n"), ("group", "libvirt-qemu:x:64055:\n")]
        {
            let users = fs::read_to_string(Path::new("/etc").join(file)).expect("this machine's users");
            let is_there = users.lines().any(|user| user.starts_with("libvirt-qemu:"));
            fs::write(at(file), if is_there { users } else { users + line }).expect("users");
        }
        // One with a dot in it is looked up nowhere.
        fs::write(at("hostname"), host_name(host)).expect("a file");
        fs::write(at("no-kvm"), "").expect("a file");
        set_mode(&at("no-kvm"), 0);
        fs::write(at("libvirtd.conf"), daemon).expect("a configuration");
        fs::write(at(&inside("/etc/libvirt")).join("qemu.conf"), qemu).expect("a configuration");
        let libvirtd = Self { process: launch(folder.path()), folder };
        libvirtd.wait_until_it_answers();
        libvirtd
    }

    fn wait_until_it_answers(&self) {
        wait_until("libvirtd answers", LIMIT, || self.virsh(&["list"]).status.success());
    }

    /// What `virsh -c` takes.
    pub fn uri(&self) -> String {
        format!("qemu+unix:///system?socket={}", self.socket().display())
    }

    /// Where it listens.
    pub fn socket(&self) -> PathBuf {
        self.folder.path().join("socket/libvirt-sock")
    }

    /// A folder that QEMU gets at.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Runs `virsh`.
    ///
    /// # Panics
    /// When it can't be started.
    pub fn virsh(&self, arguments: &[&str]) -> Output {
        let mut command = Command::new("virsh");
        command.env("LC_ALL", "C").args(["--quiet", "--connect", &self.uri()]).args(arguments);
        command.output().expect("virsh can be started: run `cargo xtask setup`")
    }

    /// As `virsh`, for what must succeed; what it printed.
    ///
    /// # Panics
    /// When it does not.
    #[track_caller]
    pub fn must(&self, arguments: &[&str]) -> String {
        let output = self.virsh(arguments);
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "virsh {arguments:?}: {said}\n{}", self.process.printed());
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    }

    /// Defines a domain by its XML.
    ///
    /// # Panics
    /// When libvirt refuses.
    #[track_caller]
    pub fn define(&self, xml: &str) {
        let path = self.folder.path().join("domain.xml");
        fs::write(&path, xml).expect("a file");
        self.must(&["define", &path.to_string_lossy()]);
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) {
        self.process.signal(signal);
    }

    /// Ends it, and starts it again; its domains run on meanwhile.
    ///
    /// # Panics
    /// When it does not answer any more.
    pub fn restart(&mut self) {
        self.process.kill();
        self.process = launch(self.folder.path());
        self.wait_until_it_answers();
    }
}

impl Drop for Libvirtd {
    /// The domains' QEMUs are processes of their own: by their PIDs, which are in libvirtd's state.
    fn drop(&mut self) {
        self.process.kill();
        let state = self.folder.path().join(inside("/run/libvirt")).join("qemu");
        for entry in fs::read_dir(state).into_iter().flatten().flatten() {
            let path = entry.path();
            let is_pid = path.extension().is_some_and(|extension| extension == "pid");
            let pid =
                fs::read_to_string(&path).ok().filter(|_| is_pid).and_then(|text| text.trim().parse().ok());
            if let Some(pid) = pid.and_then(Pid::from_raw) {
                end(pid);
            }
        }
    }
}

/// SIGKILL, and waits for the end: what it has open is not ours until then.
fn end(pid: Pid) {
    let Ok(ending) = pidfd_open(pid, PidfdFlags::empty()) else { return };
    let _ = kill_process(pid, Signal::KILL);
    let limit = Timespec { tv_sec: 20, tv_nsec: 0 };
    let _ = poll(&mut [PollFd::new(&ending, PollFlags::IN)], Some(&limit));
}

fn host_name(host: u8) -> String {
    format!("host-{host}.test")
}

/// Where a folder of the system is in the test's own.
fn inside(path: &str) -> String {
    path.trim_start_matches('/').replace('/', "-")
}

fn set_mode(path: &Path, mode: u32) {
    use std::os::unix::fs::PermissionsExt;
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("a mode");
}

fn launch(folder: &Path) -> Process {
    let mut script = String::new();
    for path in FOLDERS {
        // A folder that no package of this machine made stays, empty.
        let own = folder.join(inside(path));
        script += &format!("mkdir -p {path} && mount --bind {} {path} && ", own.display());
    }
    // libvirtd asks QEMU what it can, by KVM where there is one; on some machines it is one that hangs.
    let hidden = [("passwd", "/etc/passwd"), ("group", "/etc/group"), ("no-kvm", "/dev/kvm")];
    for (own, path) in hidden.into_iter().filter(|(_, path)| Path::new(path).exists()) {
        script += &format!("mount --bind {}/{own} {path} && ", folder.display());
    }
    // A host has devices of its own.
    if fs::read_to_string(folder.join("hostname")).is_ok_and(|name| name != host_name(1)) {
        script += "mkdir -p /dev/hostsnap && mount -t tmpfs none /dev/hostsnap && ";
    }
    script += &format!("hostname -F {}/hostname && ", folder.display());
    script +=
        &format!("exec libvirtd --config {0}/libvirtd.conf --pid-file {0}/libvirtd.pid", folder.display());
    // What is mounted later, on this machine, is mounted there too.
    let mut command = Command::new("unshare");
    command.args(["--mount", "--uts", "--propagation", "slave", "sh", "-c", &script]);
    Process::start(&mut command, &log(folder))
}

fn log(folder: &Path) -> PathBuf {
    folder.join("log")
}
