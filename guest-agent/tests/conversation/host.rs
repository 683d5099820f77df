//! A host that says what a test tells it to, over a Unix socket, and remembers what it was asked.

use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::thread::JoinHandle;
use std::time::Duration;

use guest_agent::client::HostAddress;
use protocol::evidence::CutEvidence;
use protocol::frame::{self, HEADER};
use protocol::message::{Conclude, Cut, CutDone, Prepare, Prepared, Reply, Request, Welcome};
use protocol::record::{DiskRecord, SnapshotRecord, State, UnixMillis};
use protocol::text::Line;
use protocol::{BoundedVec, Consistency, SnapshotId, Ticket, VmUuid};
use uuid::Uuid;

/// Longer than any wait of a test that goes well.
const LIMIT: Duration = Duration::from_secs(60);

/// One conversation, from the host's side.
pub(crate) type Script = Box<dyn FnOnce(&mut Talk) + Send>;

/// A host with a script for each connection, in order.
pub(crate) struct Host {
    folder: tempfile::TempDir,
    thread: JoinHandle<()>,
}

impl Host {
    pub(crate) fn start(scripts: Vec<Script>) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(socket(folder.path())).unwrap();
        Self { folder, thread: std::thread::spawn(move || serve(&listener, scripts)) }
    }

    /// As `start`; between the first conversation and the others nobody listens for a while.
    pub(crate) fn restarting(first: Script, others: Vec<Script>) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = socket(folder.path());
        let listener = UnixListener::bind(&path).unwrap();
        let thread = std::thread::spawn(move || {
            let (stream, _) = listener.accept().unwrap();
            // Before the guest notices that it is lost.
            drop(listener);
            std::fs::remove_file(&path).unwrap();
            first(&mut Talk::new(stream));
            std::thread::sleep(Duration::from_millis(500));
            serve(&UnixListener::bind(&path).unwrap(), others);
        });
        Self { folder, thread }
    }

    pub(crate) fn address(&self) -> HostAddress {
        HostAddress::Unix(socket(self.folder.path()))
    }

    /// Every conversation was held, and went as its script says.
    #[track_caller]
    pub(crate) fn done(self) {
        if let Err(panic) = self.thread.join() {
            std::panic::resume_unwind(panic);
        }
    }
}

fn socket(folder: &Path) -> PathBuf {
    folder.join("host")
}

fn serve(listener: &UnixListener, scripts: Vec<Script>) {
    for script in scripts {
        script(&mut Talk::new(listener.accept().unwrap().0));
    }
}

/// One conversation.
pub(crate) struct Talk(UnixStream);

impl Talk {
    fn new(stream: UnixStream) -> Self {
        stream.set_read_timeout(Some(LIMIT)).unwrap();
        Self(stream)
    }

    pub(crate) fn receive(&mut self) -> Request {
        let mut header = [0; HEADER];
        self.0.read_exact(&mut header).expect("a request");
        let mut payload = vec![0; frame::payload_len(header).unwrap()];
        self.0.read_exact(&mut payload).expect("a whole request");
        frame::decode(&payload).unwrap()
    }

    pub(crate) fn send(&mut self, reply: &Reply) {
        self.send_bytes(&frame::encode(reply).unwrap());
    }

    pub(crate) fn send_bytes(&mut self, bytes: &[u8]) {
        self.0.write_all(bytes).expect("the guest listens");
    }

    /// Says nothing until the guest hangs up.
    pub(crate) fn say_nothing(&mut self) {
        assert_eq!(self.0.read(&mut [0]).expect("the guest hangs up"), 0, "the guest says more");
    }

    pub(crate) fn greet(&mut self) {
        assert!(matches!(self.receive(), Request::Hello(_)));
        self.send(&Reply::Hello(Welcome {
            version: 1,
            host_version: "0.1.0".parse().unwrap(),
            vm: "app".parse().unwrap(),
        }));
    }

    pub(crate) fn prepare(&mut self) -> Prepare {
        match self.receive() {
            Request::Prepare(prepare) => prepare,
            other => panic!("{other:?} instead of Prepare"),
        }
    }

    /// Greets, and answers `Prepare` with a ticket for so long.
    pub(crate) fn prepared(&mut self, lease: Duration) -> Prepare {
        self.greet();
        let prepare = self.prepare();
        self.grant(id_of(&prepare), lease);
        prepare
    }

    /// The ticket, for so long.
    pub(crate) fn grant(&mut self, id: SnapshotId, lease: Duration) {
        let lease_ms = u32::try_from(lease.as_millis()).unwrap();
        self.send(&Reply::Prepared(Prepared { ticket: TICKET, id, lease_ms }));
    }

    pub(crate) fn cut(&mut self) -> Cut {
        match self.receive() {
            Request::Cut(cut) if cut.ticket == TICKET => cut,
            other => panic!("{other:?} instead of Cut"),
        }
    }

    pub(crate) fn cut_done(&mut self) {
        self.send(&Reply::CutDone(CutDone { ticket: TICKET, took_us: 100 }));
    }

    pub(crate) fn conclude(&mut self) -> Conclude {
        match self.receive() {
            Request::Conclude(conclude) if conclude.ticket == TICKET => conclude,
            other => panic!("{other:?} instead of Conclude"),
        }
    }

    /// The guest gives up before the cut.
    pub(crate) fn aborted(&mut self) {
        assert_eq!(self.receive(), Request::Abort(TICKET));
        self.send(&Reply::Aborted);
        self.say_nothing();
    }

    /// A second conversation about the same request, whose snapshot exists.
    pub(crate) fn existing(&mut self, state: State, consistency: Consistency) -> Prepare {
        self.greet();
        let prepare = self.prepare();
        self.send(&Reply::Existing(record(&prepare, state, consistency)));
        prepare
    }
}

pub(crate) const TICKET: Ticket = Ticket::from_uuid(Uuid::from_u128(7));

fn id_of(prepare: &Prepare) -> SnapshotId {
    SnapshotId::derive(VmUuid::from_uuid(Uuid::from_u128(1)), prepare.request)
}

/// What the host says of a snapshot.
pub(crate) fn record(prepare: &Prepare, state: State, consistency: Consistency) -> Box<SnapshotRecord> {
    let disks: Vec<_> = prepare
        .disks
        .iter()
        .map(|disk| DiskRecord {
            serial: disk.serial.clone(),
            driver: "qemu".parse().unwrap(),
            handle: "handle".parse().unwrap(),
            size_bytes: disk.size_bytes,
        })
        .collect();
    Box::new(SnapshotRecord {
        id: id_of(prepare),
        vm_uuid: VmUuid::from_uuid(Uuid::from_u128(1)),
        vm: "app".parse().unwrap(),
        request: prepare.request,
        created_at: UnixMillis(1_795_507_200_123),
        minimum: prepare.minimum,
        consistency,
        consistency_reason: Line::lossy("a script says so"),
        state,
        labels: prepare.labels.clone(),
        note: prepare.note.clone(),
        mounts: prepare.mounts.clone(),
        disks: BoundedVec::try_from(disks).unwrap(),
        timing: protocol::record::Timing::default(),
        expires_at: None,
        locked_until: None,
        evidence: None,
        cut: CutEvidence::Unknown,
    })
}
