//! Snapshots that come and go for years, in short: what the service needs after thousands of them is what it
//! needed after the first hundreds. The service is a process of its own; its storage is real. `simulation` has
//! more of them, over a storage in memory.

use std::fs;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use guest::{Guest, hello, request_for};
use harness::loopfs::{Kind, LoopFs, run};
use harness::process::Process;
use harness::wait::wait_until;
use protocol::message::{DeleteOutcome, Reply, Request};
use protocol::{Consistency, PORT};
use rusqlite::Connection;

#[allow(dead_code)]
#[path = "common/guest.rs"]
mod guest;

const LIMIT: Duration = Duration::from_secs(60);
/// How many there are; HOSTSNAP_CYCLES asks for more.
const CYCLES: usize = 2000;
const IMAGE_BYTES: u64 = 1 << 20;
/// By how much memory may differ from one moment to another, in KiB: threads come and go with their stacks.
const MEMORY_SLACK_KIB: u64 = 2048;
/// SQLite folds its log into the database at a thousand pages (sqlite.org/wal.html, "Checkpointing").
const LOG_LIMIT: u64 = 1100 * 4096;

/// What the service has at one moment.
#[derive(Debug)]
struct Needs {
    memory_kib: u64,
    descriptors: usize,
    catalog_bytes: u64,
    log_bytes: u64,
    storage_bytes: u64,
    audit_bytes: u64,
}

struct Stage {
    process: Process,
    folder: tempfile::TempDir,
    store: LoopFs,
}

impl Stage {
    fn set(kind: Kind, driver: &str) -> Self {
        let store = LoopFs::in_memory(kind, 400);
        let memory = Path::new("/dev/shm");
        let folder = if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() };
        let folder = folder.unwrap();
        // What is deleted from btrfs is cleaned up by its next commit, which is 30 s away.
        if kind == Kind::Btrfs {
            run(Command::new("mount").args(["-o", "remount,commit=1"]).arg(store.path()));
        }
        let image = store.path().join("data.img");
        fs::write(&image, vec![7; usize::try_from(IMAGE_BYTES).unwrap()]).unwrap();
        let config = format!(
            "[service]\nlisten_vsock = false\nstate_dir = \"{0}/state\"\ncontrol_socket = \"{0}/control\"\n\
             [[store]]\nname = \"s\"\ndriver = \"{driver}\"\npath = \"{1}\"\nmin_free = \"1MiB\"\n\
             [[vm]]\nname = \"db1\"\nuuid = \"3f1f54c2-66a2-4f4f-8d51-0b8a3b1d7f01\"\nsocket = \"{0}/vsock\"\n\
             quota = {{ snapshots = 4, per_hour = 1000000 }}\n\
             [[vm.disk]]\nserial = \"data\"\nstore = \"s\"\npath = \"{2}\"\nformat = \"raw\"\n",
            folder.path().display(),
            store.path().display(),
            image.display(),
        );
        fs::write(folder.path().join("hostsnapd.toml"), config).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_hostsnapd"));
        command.args(["serve", "--config"]).arg(folder.path().join("hostsnapd.toml"));
        let process = Process::start(&mut command, &folder.path().join("log"));
        let mut stage = Self { process, folder, store };
        wait_until("hostsnapd listens", LIMIT, || {
            stage.process.must_live();
            UnixStream::connect(stage.socket()).is_ok()
        });
        stage
    }

    fn socket(&self) -> PathBuf {
        self.folder.path().join(format!("vsock_{PORT}"))
    }

    fn state(&self, file: &str) -> PathBuf {
        self.folder.path().join("state").join(file)
    }

    /// So many snapshots that are taken and deleted, each in a conversation of its own.
    fn cycles(&self, count: usize) {
        for _ in 0..count {
            let mut guest = Guest::connect(&self.socket());
            assert!(matches!(guest.ask(&hello(None)), Reply::Hello(_)));
            let record =
                guest.take(&request_for(&[("data", IMAGE_BYTES, 7)], Consistency::Filesystem)).unwrap();
            let deleted = guest.ask(&Request::Delete(record.id));
            assert!(matches!(deleted, Reply::Deleted(DeleteOutcome::Gone)), "{deleted:?}");
        }
    }

    /// What was removed is remembered for an hour; this is after it.
    fn an_hour_passes(&self) {
        let catalog = Connection::open(self.state("catalog.sqlite")).unwrap();
        catalog.busy_timeout(LIMIT).unwrap();
        catalog.execute("UPDATE gone SET gone_at = gone_at - 4000", []).unwrap();
    }

    fn needs(&self) -> Needs {
        let process = PathBuf::from(format!("/proc/{}", self.process.pid()));
        let status = fs::read_to_string(process.join("status")).unwrap();
        let memory = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        let store = fs::File::open(self.store.path()).unwrap();
        rustix::fs::syncfs(&store).unwrap();
        let room = rustix::fs::statvfs(self.store.path()).unwrap();
        let bytes = |file| fs::metadata(self.state(file)).unwrap().len();
        Needs {
            memory_kib: memory.trim().trim_end_matches(" kB").parse().unwrap(),
            descriptors: fs::read_dir(process.join("fd")).unwrap().count(),
            catalog_bytes: bytes("catalog.sqlite"),
            log_bytes: bytes("catalog.sqlite-wal"),
            storage_bytes: (room.f_blocks - room.f_bfree) * room.f_frsize,
            audit_bytes: bytes("audit.log"),
        }
    }

    fn rows(&self) -> i64 {
        let catalog = Connection::open(self.state("catalog.sqlite")).unwrap();
        catalog.query_row("SELECT count(*) FROM snapshots", [], |row| row.get(0)).unwrap()
    }
}

fn thousands_come_and_go(kind: Kind, driver: &str) {
    let cycles = std::env::var("HOSTSNAP_CYCLES").map_or(CYCLES, |text| text.parse().expect("a number"));
    let tenth = cycles / 10;
    let stage = Stage::set(kind, driver);
    let mut tenth_by_tenth = Vec::new();
    for _ in 0..10 {
        stage.cycles(tenth);
        stage.an_hour_passes();
        tenth_by_tenth.push(stage.needs());
    }
    let told = format!("{tenth_by_tenth:#?}");
    let (first, last) = (&tenth_by_tenth[0], &tenth_by_tenth[9]);
    println!("after {tenth}: {first:?}\nafter {cycles}: {last:?}");
    assert!(last.memory_kib <= first.memory_kib + MEMORY_SLACK_KIB, "{told}");
    // The last conversation may not be closed yet.
    wait_until("no descriptor is left open", LIMIT, || stage.needs().descriptors <= first.descriptors);
    assert!(last.catalog_bytes <= first.catalog_bytes + 8 * 4096, "{told}");
    assert!(last.log_bytes <= LOG_LIMIT, "{told}");
    assert_eq!(stage.rows(), 0);
    // A file system's own trees grow and shrink by some blocks.
    wait_until("the room of what was deleted is free", LIMIT, || {
        stage.needs().storage_bytes <= first.storage_bytes + (1 << 20)
    });
    // Three lines for each, which logrotate bounds (packaging/logrotate).
    let per_cycle = last.audit_bytes / cycles as u64;
    assert!((300..1500).contains(&per_cycle), "{per_cycle} bytes: {told}");
}

#[test]
fn thousands_of_reflinks_on_xfs_leave_no_trace() {
    thousands_come_and_go(Kind::Xfs, "reflink");
}

#[test]
fn thousands_of_subvolumes_on_btrfs_leave_no_trace() {
    thousands_come_and_go(Kind::Btrfs, "btrfs");
}
