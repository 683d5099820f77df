//! What most of these tests begin with: a real file system in the part of a disk, and the flow's
//! surroundings. Whether it is frozen is asked of the kernel.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use guest_agent::client::{HostAddress, Limits};
use guest_agent::flow::{self, Options, Otherwise, Outcome, Surroundings, Target, Told};
use guest_agent::topology::select::{Disk, FileSystem};
use guest_agent::topology::stack::SuperBlock;
use harness::loopfs::{Kind, LoopFs};
use harness::wait::wait_until;
use protocol::fingerprint::Fingerprint;
use protocol::{Consistency, RequestId, WireError};

/// How long a state is waited for.
const LIMIT: Duration = Duration::from_secs(60);

/// `rcu_expedited` and the freeze lock are the whole machine's: tests take turns.
static TURN: Mutex<()> = Mutex::new(());

/// A machine with one disk and one file system.
pub(crate) struct Stage {
    pub(crate) fs: LoopFs,
    pub(crate) target: Target,
    pub(crate) options: Options,
    pub(crate) around: Surroundings,
    folder: tempfile::TempDir,
    _turn: MutexGuard<'static, ()>,
}

impl Stage {
    pub(crate) fn set() -> Self {
        assert!(rustix::process::geteuid().is_root(), "these tests freeze file systems: run them as root");
        let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        let fs = LoopFs::new(Kind::Ext4, 64);
        let folder = tempfile::tempdir().unwrap();
        let disk = Disk { name: "vdx".to_owned(), serial: "data".parse().unwrap(), size_bytes: 64 << 20 };
        let target = Target {
            disks: vec![(disk, Fingerprint::empty())],
            file_systems: vec![FileSystem {
                mount_point: fs.path(),
                mount_id: mount_id(&fs.path()),
                rank: 0,
                fs_type: "ext4".to_owned(),
                disks: BTreeSet::from(["vdx".to_owned()]),
                read_only: false,
                super_block: SuperBlock::Btrfs("any".to_owned()),
            }],
        };
        let options = Options {
            paths: vec![fs.path()],
            labels: Default::default(),
            note: "".parse().unwrap(),
            minimum: Consistency::Filesystem,
            otherwise: Otherwise::Remove,
            keep_for: None,
            freeze_timeout: Duration::from_secs(30),
            request: RequestId::random(),
            dry_run: false,
            wait: true,
        };
        let limits = Limits {
            connect: Duration::from_millis(500),
            prepare: Duration::from_millis(500),
            late_cut: Duration::from_millis(500),
            abort: Duration::from_millis(500),
            settle_silence: Duration::from_secs(5),
            ..Limits::default()
        };
        let around = Surroundings {
            limits,
            hooks: folder.path().join("hooks.d"),
            // One folder for all test processes of this machine.
            run: std::env::temp_dir().join("hostsnap-test-run"),
            lock_limit: LIMIT,
            keeper: env!("CARGO_BIN_EXE_hostsnap").into(),
            ..Surroundings::default()
        };
        Self { fs, target, options, around, folder, _turn: turn }
    }

    /// Runs the flow against this host.
    pub(crate) fn create(&self, host: HostAddress) -> Result<Outcome, WireError> {
        self.create_telling(host, &mut |_| {})
    }

    pub(crate) fn create_telling(
        &self,
        host: HostAddress,
        tell: &mut dyn FnMut(Told),
    ) -> Result<Outcome, WireError> {
        let around = Surroundings { host, ..self.around.clone() };
        flow::create_of(&self.options, &self.target, &around, tell)
    }

    /// The block device of its file system, by name.
    pub(crate) fn loop_device(&self) -> String {
        let line = mount_line(&self.fs.path());
        let source = line.split(' ').find_map(|field| field.strip_prefix("/dev/")).expect("a device");
        source.to_owned()
    }

    /// Installs a hook that notes its calls, and does this. A header may be its first line.
    pub(crate) fn hook(&self, name: &str, body: &str) {
        fs::create_dir_all(&self.around.hooks).unwrap();
        let path = self.around.hooks.join(name);
        let log = self.folder.path().join("hooks.log");
        let (header, body) = body.split_once('\n').unwrap_or(("", body));
        let note = format!("echo {name} $1 >> {}", log.display());
        fs::write(&path, format!("#!/bin/sh\n{header}\n{note}\n{body}\n")).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    }

    /// The hooks' calls, in order.
    pub(crate) fn hook_calls(&self) -> Vec<String> {
        let text = fs::read_to_string(self.folder.path().join("hooks.log")).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }

    /// The application writes.
    #[track_caller]
    pub(crate) fn writes(&self) {
        let path = self.fs.path();
        let writer = std::thread::spawn(move || {
            let file = fs::File::create(path.join("written")).unwrap();
            file.sync_all().unwrap();
        });
        wait_until("the application writes", LIMIT, || writer.is_finished());
        writer.join().unwrap();
    }
}

fn mount_id(path: &Path) -> u32 {
    mount_line(path).split(' ').next().unwrap().parse().unwrap()
}

/// Its line of `/proc/self/mountinfo`.
fn mount_line(path: &Path) -> String {
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
    table.lines().find(|line| line.split(' ').nth(4) == path.to_str()).expect("a mount").to_owned()
}

/// Whether somebody holds it frozen: another freeze fails then (EBUSY).
pub(crate) fn is_frozen(path: &PathBuf) -> bool {
    let froze = Command::new("fsfreeze").arg("-f").arg(path).output().unwrap().status.success();
    if froze {
        assert!(Command::new("fsfreeze").arg("-u").arg(path).status().unwrap().success());
    }
    !froze
}
