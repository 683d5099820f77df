//! Whole conversations with guests that do not behave: none of them gets more than a refusal, costs
//! more than its limit, or leaves anything behind.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use host_proxy::audit::Audit;
use host_proxy::catalog::Catalog;
use host_proxy::config::Config;
use host_proxy::service::Service;
use host_proxy::session::{self, Peer};
use host_proxy::transport::{self, TransportError};
use host_proxy::world::World;
use protocol::evidence::{Evidence, Freeze};
use protocol::fingerprint::Fingerprint;
use protocol::message::{Conclude, Cut, DiskRequest, Hello, List, Prepare, VersionRange};
use protocol::record::Timing;
use protocol::text::{Labels, Note};
use protocol::{BoundedVec, Consistency, ErrorCode, Reply, Request, RequestId, Ticket, VERSIONS, VmUuid};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};

const UUID: &str = "3f1f54c2-66a2-4f4f-8d51-0b8a3b1d7f01";
const LIMIT: Duration = Duration::from_secs(120);

/// A service with one machine, whose disk does not exist: what a test asks for must fail before it
/// is looked at, or because of that.
struct Host {
    folder: tempfile::TempDir,
    service: Arc<Service>,
}

impl Host {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name).display().to_string();
        std::fs::create_dir(at("store")).unwrap();
        let text = format!(
            "[service]\nlisten_vsock = false\nstate_dir = \"{}\"\ncontrol_socket = \"{}\"\n\
             [[store]]\nname = \"s\"\ndriver = \"reflink\"\npath = \"{}\"\nmin_free = \"1MiB\"\n\
             [[vm]]\nname = \"db1\"\nuuid = \"{UUID}\"\nsocket = \"{}\"\n\
             [[vm.disk]]\nserial = \"data\"\nstore = \"s\"\npath = \"{}\"\nformat = \"raw\"\n",
            folder.path().display(),
            at("control"),
            at("store"),
            at("vsock"),
            at("store/absent.img"),
        );
        let config = Config::parse(&text, Path::new("test.toml")).unwrap();
        let catalog = Catalog::open(&folder.path().join("catalog.sqlite")).unwrap();
        let audit = Audit::open(folder.path()).unwrap();
        let service = Service::new(World::new(config, None).unwrap(), catalog, audit);
        Self { folder, service }
    }

    fn connect(&self) -> DuplexStream {
        let (guest, host) = duplex(256 * 1024);
        let peer = Peer { vm: UUID.parse().unwrap(), via: "test".to_owned() };
        tokio::spawn(session::run(Arc::clone(&self.service), peer, host));
        guest
    }

    /// A guest that has greeted.
    async fn greeted(&self) -> DuplexStream {
        let mut guest = self.connect();
        let reply = ask(&mut guest, &Request::Hello(hello())).await;
        assert!(matches!(reply, Reply::Hello(_)), "{reply:?}");
        guest
    }

    fn audit(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("audit.log")).unwrap_or_default()
    }
}

fn hello() -> Hello {
    let agent_version = "0.0.1".parse().unwrap();
    Hello { versions: VERSIONS, agent_version, boot_id: None, vm_uuid: None }
}

fn prepare(serials: &[&str]) -> Prepare {
    let disks: Vec<_> = serials
        .iter()
        .map(|serial| DiskRequest {
            serial: serial.parse().unwrap(),
            size_bytes: 4096,
            fingerprint: Fingerprint::empty(),
        })
        .collect();
    Prepare {
        request: RequestId::random(),
        disks: disks.try_into().unwrap(),
        mounts: BoundedVec::empty(),
        labels: Labels::default(),
        note: "".parse::<Note>().unwrap(),
        minimum: Consistency::Crash,
        keep_for_s: None,
        lease_ms: 1000,
        dry_run: false,
    }
}

async fn ask(guest: &mut DuplexStream, request: &Request) -> Reply {
    transport::send(guest, request).await.unwrap();
    transport::receive(guest, LIMIT).await.unwrap()
}

#[track_caller]
fn refused(reply: Reply) -> ErrorCode {
    match reply {
        Reply::Error(error) => error.code,
        other => panic!("not refused: {other:?}"),
    }
}

#[tokio::test]
async fn who_does_not_greet_first_is_not_heard() {
    let host = Host::new();
    let mut guest = host.connect();
    assert_eq!(refused(ask(&mut guest, &Request::Disks).await), ErrorCode::OutOfOrder);
    let next = transport::receive::<Reply>(&mut guest, LIMIT).await.unwrap_err();
    assert!(matches!(next, TransportError::Closed), "{next}");
}

#[tokio::test]
async fn versions_that_have_none_in_common_are_told_so() {
    let host = Host::new();
    let versions = VersionRange { min: 900, max: 901 };
    let reply = ask(&mut host.connect(), &Request::Hello(Hello { versions, ..hello() })).await;
    assert_eq!(refused(reply), ErrorCode::UnsupportedVersion);
}

#[tokio::test]
async fn a_machine_that_says_it_is_another_is_refused_and_written_down() {
    let host = Host::new();
    let vm_uuid: Option<VmUuid> = Some("00000000-0000-0000-0000-00000000000a".parse().unwrap());
    let reply = ask(&mut host.connect(), &Request::Hello(Hello { vm_uuid, ..hello() })).await;
    assert_eq!(refused(reply), ErrorCode::Refused);
    assert!(host.audit().contains("\"refused\""), "{}", host.audit());
}

#[tokio::test]
async fn garbage_ends_the_conversation_and_nothing_else() {
    let host = Host::new();
    for garbage in [&[0xff; 64][..], &[0, 0, 0, 0], &[3, 0, 0, 0, 0xff, 0xff, 0xff], &[1, 0, 0, 0, 200]] {
        let mut guest = host.greeted().await;
        guest.write_all(garbage).await.unwrap();
        let code = refused(transport::receive(&mut guest, LIMIT).await.unwrap());
        assert_eq!(code, ErrorCode::Malformed, "{garbage:?}");
        assert_eq!(guest.read(&mut [0]).await.unwrap(), 0, "it stays open");
    }
    host.greeted().await;
}

#[tokio::test(start_paused = true)]
async fn silence_ends_at_its_limit_before_and_after_the_greeting() {
    let host = Host::new();
    for mut guest in [host.connect(), host.greeted().await] {
        assert_eq!(guest.read(&mut [0]).await.unwrap(), 0);
    }
}

#[tokio::test]
async fn steps_that_were_not_earned_are_out_of_order() {
    let host = Host::new();
    let mut guest = host.greeted().await;
    let ticket = Ticket::random();
    let evidence =
        Evidence { freeze: Freeze::Held, file_systems: BoundedVec::empty(), hooks: BoundedVec::empty() };
    for request in [
        Request::Cut(Cut { ticket, within_us: u64::MAX }),
        Request::Conclude(Conclude { ticket, evidence, timing: Timing::default(), wait: true }),
        Request::Abort(ticket),
        Request::Hello(hello()),
    ] {
        assert_eq!(refused(ask(&mut guest, &request).await), ErrorCode::OutOfOrder, "{request:?}");
    }
    assert_eq!(ask(&mut guest, &Request::Ping(7)).await, Reply::Pong(7));
}

#[tokio::test]
async fn disks_that_are_not_its_own_none_at_all_or_one_twice_are_refused() {
    let host = Host::new();
    let mut guest = host.greeted().await;
    for (serials, code) in [
        (&["other"][..], ErrorCode::UnknownDisk),
        (&[][..], ErrorCode::BadRequest),
        (&["data", "data"][..], ErrorCode::BadRequest),
        (&["data"][..], ErrorCode::StorageFailed),
    ] {
        let reply = ask(&mut guest, &Request::Prepare(prepare(serials))).await;
        assert_eq!(refused(reply), code, "{serials:?}");
    }
    let listed = ask(&mut guest, &Request::List(List { limit: 10, ..List::default() })).await;
    let Reply::Snapshots(page) = listed else { panic!("{listed:?}") };
    assert!(page.snapshots.is_empty(), "a refused request left something");
    assert!(!host.folder.path().join("store/.hostsnap").exists());
}

#[tokio::test]
async fn what_the_guest_reads_names_no_path_of_the_host() {
    let host = Host::new();
    let mut guest = host.greeted().await;
    let Reply::Error(error) = ask(&mut guest, &Request::Prepare(prepare(&["data"]))).await else {
        panic!("a disk that does not exist was prepared");
    };
    let told = error.to_string();
    assert!(!told.contains("absent.img") && !told.contains(&*host.folder.path().to_string_lossy()), "{told}");
}
