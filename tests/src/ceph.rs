//! A Ceph cluster for one test: a monitor, a manager and an OSD as plain processes, on loopback, in a folder of
//! their own. Up in some seconds, ended when dropped.

use std::fmt::Write as _;
use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use rustix::process::Signal;

use crate::loopfs::run;
use crate::process::Process;
use crate::wait::wait_until;

/// How long the daemons may take to be up, on a busy machine.
const UP_LIMIT: Duration = Duration::from_secs(120);
/// The pool of every cluster.
pub const POOL: &str = "vms";
/// The user that hostsnapd is, with no more rights than its guide says.
pub const USER: &str = "hostsnap";

/// A running cluster.
pub struct Ceph {
    // Dropped in this order: first what uses the folder.
    osd: Process,
    mgr: Process,
    mon: Process,
    folder: tempfile::TempDir,
}

impl Ceph {
    /// A cluster that commits as fast as it can.
    pub fn start() -> Self {
        Self::with("paxos_propose_interval = 0.02\npaxos_min_wait = 0.01\n")
    }

    /// A cluster with more lines in its `[global]`; with none it commits once a second, as Ceph does by
    /// default.
    ///
    /// # Panics
    /// When it does not come up, with what it printed.
    pub fn with(more: &str) -> Self {
        let folder = tempfile::Builder::new().prefix("hsc-").tempdir_in("/tmp").expect("a folder");
        let at = |name: &str| folder.path().join(name);
        for name in ["mon", "mgr", "osd", "run"] {
            fs::create_dir(at(name)).expect("a folder");
        }
        let port = free_port();
        let (cluster, disk) = (uuid(), uuid());
        fs::write(at("ceph.conf"), conf(folder.path(), &cluster, port, more)).expect("a configuration");
        keys(&at("keyring"));
        run(Command::new("monmaptool")
            .args(["--create", "--fsid", &cluster, "--addv", "a", &format!("[v2:127.0.0.1:{port}]")])
            .arg(at("monmap")));
        let daemon = |program: &str, id: &str| {
            let mut command = Command::new(program);
            command.arg("-c").arg(at("ceph.conf")).args(["-i", id]);
            command
        };
        run(daemon("ceph-mon", "a")
            .arg("--mkfs")
            .arg("--monmap")
            .arg(at("monmap"))
            .arg("--keyring")
            .arg(at("keyring")));
        let mut mon = Process::start(daemon("ceph-mon", "a").arg("-f"), &at("mon.out"));
        let mgr = Process::start(daemon("ceph-mgr", "a").arg("-f"), &at("mgr.out"));
        wait_until("the monitor listens", UP_LIMIT, || {
            mon.must_live();
            std::net::TcpStream::connect(("127.0.0.1", port)).is_ok()
        });
        run(admin(folder.path()).args(["osd", "new", &disk]));
        run(daemon("ceph-osd", "0").args(["--mkfs", "--osd-uuid", &disk]));
        let osd = Process::start(daemon("ceph-osd", "0").arg("-f"), &at("osd.out"));
        let mut cluster = Self { osd, mgr, mon, folder };
        cluster.ceph(&["osd", "pool", "create", POOL, "8"]);
        cluster.ceph(&["osd", "pool", "application", "enable", POOL, "rbd"]);
        wait_until("the cluster is up", UP_LIMIT, || {
            cluster.osd.must_live();
            cluster.mgr.must_live();
            cluster.is_clean() && cluster.ceph(&["df", "--format", "json"]).contains(&format!("\"{POOL}\""))
        });
        cluster
    }

    /// Whether all placement groups serve; the manager may have made some of its own.
    fn is_clean(&self) -> bool {
        let stat = self.ceph(&["pg", "stat", "--format", "json"]);
        let stat: serde_json::Value = serde_json::from_str(&stat).expect("JSON");
        let summary = &stat["pg_summary"];
        let states = summary["num_pg_by_state"].as_array().map_or(&[][..], Vec::as_slice);
        summary["num_pgs"].as_u64() >= Some(8) && states.iter().all(|state| state["name"] == "active+clean")
    }

    /// Whether the pool is over its quota, and known to be.
    pub fn is_full(&self) -> bool {
        self.ceph(&["osd", "pool", "ls", "detail"]).contains("full")
    }

    /// Its configuration's file; it names the keyring.
    pub fn conf(&self) -> PathBuf {
        self.folder.path().join("ceph.conf")
    }

    /// Runs `ceph` as its administrator.
    ///
    /// # Panics
    /// When it fails, with what it said.
    pub fn ceph(&self, arguments: &[&str]) -> String {
        run(admin(self.folder.path()).args(arguments))
    }

    /// Runs `rbd`.
    ///
    /// # Panics
    /// When it fails, with what it said.
    pub fn rbd(&self, arguments: &[&str]) -> String {
        run(Command::new("rbd")
            .arg("-c")
            .arg(self.conf())
            .args(["-n", "client.admin", "-p", POOL])
            .args(arguments))
    }

    /// What an image or a snapshot (`image@snapshot`) holds.
    ///
    /// # Panics
    /// When it can't be read.
    pub fn read(&self, image: &str) -> Vec<u8> {
        let to = self.folder.path().join("exported");
        let _ = fs::remove_file(&to);
        self.rbd(&["export", "--no-progress", image, &to.to_string_lossy()]);
        fs::read(to).expect("what was exported")
    }

    /// The image as a disk of QEMU's, for [`crate::vm::Plan::blockdev`].
    pub fn blockdev(&self, image: &str) -> String {
        format!("driver=rbd,pool={POOL},image={image},user={USER},conf={}", self.conf().display())
    }

    /// The names of an image's snapshots.
    pub fn snapshots(&self, image: &str) -> Vec<String> {
        let text = self.rbd(&["snap", "ls", image, "--format", "json"]);
        let snapshots: Vec<serde_json::Value> = serde_json::from_str(&text).expect("JSON");
        snapshots.iter().map(|one| one["name"].as_str().expect("a name").to_owned()).collect()
    }

    /// The OSD no longer answers, and lives.
    pub fn stall_osd(&self) -> Stalled<'_> {
        Stalled::new(&self.osd)
    }

    /// The monitor no longer answers, and lives.
    pub fn stall_monitor(&self) -> Stalled<'_> {
        Stalled::new(&self.mon)
    }
}

/// A daemon that goes on when this is dropped.
pub struct Stalled<'a>(&'a Process);

impl<'a> Stalled<'a> {
    fn new(process: &'a Process) -> Self {
        process.signal(Signal::STOP);
        Self(process)
    }
}

impl Drop for Stalled<'_> {
    fn drop(&mut self) {
        self.0.signal(Signal::CONT);
    }
}

fn admin(folder: &Path) -> Command {
    let mut command = Command::new("ceph");
    command.arg("-c").arg(folder.join("ceph.conf")).args(["-n", "client.admin"]);
    command
}

/// A placement group may be read for as long as its lease, which other OSDs renew: 16 s by default (`osd_heartbeat_grace`
/// times `osd_pool_default_read_lease_ratio`). Where there is no other one, a lease that ran out in a stall may never
/// be renewed: the group stays `laggy`, and nothing is answered any more. So here it is longer than any test.
fn conf(folder: &Path, cluster: &str, port: u16, more: &str) -> String {
    let folder = folder.display();
    format!(
        "[global]\n\
         fsid = {cluster}\n\
         mon_host = [v2:127.0.0.1:{port}]\n\
         public_addr = 127.0.0.1\n\
         cluster_addr = 127.0.0.1\n\
         ms_bind_msgr1 = false\n\
         keyring = {folder}/keyring\n\
         run_dir = {folder}/run\n\
         admin_socket = {folder}/run/$name-$pid.asok\n\
         log_file = {folder}/$name.log\n\
         mon_cluster_log_file = {folder}/cluster.log\n\
         log_to_stderr = false\n\
         crash_dir = {folder}/run\n\
         mon_data = {folder}/mon\n\
         mgr_data = {folder}/mgr\n\
         osd_data = {folder}/osd\n\
         mgr_initial_modules =\n\
         mon_data_avail_warn = 1\n\
         mon_data_avail_crit = 1\n\
         auth_allow_insecure_global_id_reclaim = false\n\
         mon_allow_pool_size_one = true\n\
         mon_warn_on_pool_no_redundancy = false\n\
         osd_pool_default_size = 1\n\
         osd_pool_default_min_size = 1\n\
         osd_pool_default_pg_autoscale_mode = off\n\
         osd_crush_chooseleaf_type = 0\n\
         osd_pool_default_read_lease_ratio = 100\n\
         osd_objectstore = bluestore\n\
         bluestore_block_size = 2147483648\n\
         bluestore_cache_autotune = false\n\
         bluestore_cache_size = 67108864\n\
         {more}"
    )
}

/// Keys made here: the cluster takes over those that it finds at its beginning.
fn keys(keyring: &Path) {
    let every = [
        ("mon.", vec!["mon", "allow *"]),
        ("client.admin", vec!["mon", "allow *", "osd", "allow *", "mgr", "allow *"]),
        ("mgr.a", vec!["mon", "allow profile mgr", "osd", "allow *"]),
        ("osd.0", vec!["mon", "allow profile osd", "mgr", "allow profile osd", "osd", "allow *"]),
        ("client.hostsnap", vec!["mon", "profile rbd", "osd", "profile rbd pool=vms"]),
        ("client.reader", vec!["mon", "profile rbd", "osd", "profile rbd-read-only pool=vms"]),
    ];
    let mut text = String::new();
    for (name, caps) in every {
        let key = run(Command::new("ceph-authtool").arg("--gen-print-key"));
        write!(text, "[{name}]\n\tkey = {}\n", key.trim()).expect("writing to a String");
        for pair in caps.chunks(2) {
            writeln!(text, "\tcaps {} = \"{}\"", pair[0], pair[1]).expect("writing to a String");
        }
    }
    fs::write(keyring, text).expect("a keyring");
}

fn free_port() -> u16 {
    let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a port");
    listener.local_addr().expect("an address").port()
}

fn uuid() -> String {
    fs::read_to_string("/proc/sys/kernel/random/uuid").expect("a UUID").trim().to_owned()
}
