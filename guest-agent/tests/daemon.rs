//! The daemon, over a Unix socket: whoever asks is the host.

use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use guest_agent::client::{HostAddress, Limits, Wire, WireFailure};
use guest_agent::daemon::{self, Place};
use guest_agent::flow::Surroundings;
use harness::wait::wait_until;
use protocol::agent::{AgentCreate, AgentPhase, AgentReply, AgentRequest, AgentStatus};
use protocol::message::{Reply, Request, VersionRange, Welcome};
use protocol::{BoundedVec, Consistency, ErrorCode, RequestId, VERSIONS, WireError};

const LIMIT: Duration = Duration::from_secs(60);

/// A daemon that runs as long as the tests do; and where its host would be.
struct Daemon {
    folder: tempfile::TempDir,
}

/// The host's end of a conversation.
struct Talk(Wire);

impl Daemon {
    fn start() -> Self {
        let daemon = Self { folder: tempfile::tempdir().unwrap() };
        let place = Place::Unix(daemon.socket());
        let around = Surroundings {
            host: HostAddress::Unix(daemon.host()),
            limits: Limits { connect: LIMIT, ..Limits::default() },
            run: daemon.folder.path().join("run"),
            hooks: daemon.folder.path().join("hooks.d"),
            ..Surroundings::default()
        };
        std::thread::spawn(move || daemon::serve(&place, around).unwrap());
        wait_until("the daemon listens", LIMIT, || daemon.socket().exists());
        daemon
    }

    fn socket(&self) -> PathBuf {
        self.folder.path().join("daemon")
    }

    fn host(&self) -> PathBuf {
        self.folder.path().join("host")
    }

    /// A conversation in which nothing was said.
    fn connect(&self) -> Talk {
        let mut stream = None;
        wait_until("the daemon accepts", LIMIT, || {
            stream = UnixStream::connect(self.socket()).ok();
            stream.is_some()
        });
        Talk(Wire::new(stream.unwrap().into()))
    }

    fn greeted(&self) -> Talk {
        let mut talk = self.connect();
        let hello = talk.ask(&AgentRequest::Hello(VERSIONS));
        assert!(matches!(hello, AgentReply::Hello { version: 1, .. }), "{hello:?}");
        talk
    }
}

impl Talk {
    fn ask(&mut self, request: &AgentRequest) -> AgentReply {
        self.0.send(request, Instant::now() + LIMIT).unwrap();
        self.receive()
    }

    fn receive(&mut self) -> AgentReply {
        self.0.receive(Instant::now() + LIMIT).unwrap()
    }

    fn status(&mut self) -> AgentStatus {
        match self.ask(&AgentRequest::Status) {
            AgentReply::Status(status) => status,
            other => panic!("{other:?}"),
        }
    }

    #[track_caller]
    fn refused(&mut self, request: &AgentRequest) -> WireError {
        match self.ask(request) {
            AgentReply::Error(error) => error,
            other => panic!("{other:?}"),
        }
    }
}

fn create(paths: &[&str]) -> AgentRequest {
    let paths: Vec<_> = paths.iter().map(|path| path.parse().unwrap()).collect();
    AgentRequest::Create(AgentCreate {
        request: RequestId::random(),
        paths: BoundedVec::try_from(paths).unwrap(),
        labels: Default::default(),
        note: "".parse().unwrap(),
        minimum: Consistency::Filesystem,
        keep_for_s: None,
        freeze_timeout_ms: 10_000,
    })
}

#[test]
fn it_answers_pings_and_says_what_it_is_doing() {
    let daemon = Daemon::start();
    let mut talk = daemon.greeted();
    assert_eq!(talk.ask(&AgentRequest::Ping(7)), AgentReply::Pong(7));
    let status = talk.status();
    assert_eq!((status.phase, status.last), (AgentPhase::Idle, None));
    assert_eq!(talk.refused(&AgentRequest::Hello(VERSIONS)).code, ErrorCode::OutOfOrder);
    assert_eq!(talk.ask(&AgentRequest::Ping(8)), AgentReply::Pong(8), "the conversation goes on");
}

#[test]
fn hello_comes_first_and_must_have_a_version_in_common() {
    let daemon = Daemon::start();
    assert_eq!(daemon.connect().refused(&AgentRequest::Ping(1)).code, ErrorCode::OutOfOrder);
    let later = AgentRequest::Hello(VersionRange { min: 900, max: 901 });
    let error = daemon.connect().refused(&later);
    assert_eq!(error.code, ErrorCode::UnsupportedVersion);
    assert!(error.message.as_str().contains("900"), "{error}");
}

#[test]
fn bytes_of_no_message_end_the_conversation_and_nothing_else() {
    let daemon = Daemon::start();
    for nonsense in [&[0xff; 8][..], &[1, 0, 0, 0, 0xfa], &[0; 4]] {
        let mut talk = daemon.connect();
        talk.0.send_bytes(nonsense, Instant::now() + LIMIT).unwrap();
        let AgentReply::Error(error) = talk.receive() else { panic!("an answer to nonsense") };
        assert_eq!(error.code, ErrorCode::Malformed);
        let ended = talk.0.receive_bytes(Instant::now() + LIMIT);
        assert!(matches!(ended, Err(WireFailure::Closed)), "{ended:?}");
    }
    assert_eq!(daemon.greeted().ask(&AgentRequest::Ping(1)), AgentReply::Pong(1));
}

#[test]
fn a_path_on_no_disk_is_an_error_and_the_daemon_goes_on() {
    let daemon = Daemon::start();
    let mut talk = daemon.greeted();
    let error = talk.refused(&create(&["/proc"]));
    assert_eq!(error.code, ErrorCode::BadRequest);
    assert!(error.message.as_str().contains("/proc"), "{error}");
    assert_eq!(talk.status().phase, AgentPhase::Idle);
}

#[test]
fn while_it_takes_a_snapshot_it_answers_and_takes_no_second_one() {
    let daemon = Daemon::start();
    let host = UnixListener::bind(daemon.host()).unwrap();
    let mut first = daemon.greeted();
    // All disks: which the host knows must be asked first.
    first.0.send(&create(&[]), Instant::now() + LIMIT).unwrap();
    let mut asked = Wire::new(host.accept().unwrap().0.into());

    let mut second = daemon.greeted();
    assert_eq!(second.ask(&AgentRequest::Ping(1)), AgentReply::Pong(1));
    assert_eq!(second.status().phase, AgentPhase::Preparing);
    assert_eq!(second.refused(&create(&["/proc"])).code, ErrorCode::Busy);

    let soon = || Instant::now() + LIMIT;
    assert!(matches!(asked.receive::<Request>(soon()), Ok(Request::Hello(_))));
    let welcome = Welcome { version: 1, host_version: "1".parse().unwrap(), vm: "app".parse().unwrap() };
    asked.send(&Reply::Hello(welcome), soon()).unwrap();
    assert_eq!(asked.receive::<Request>(soon()).unwrap(), Request::Disks);
    asked.send(&Reply::Error(WireError::new(ErrorCode::Refused, "not this one")), soon()).unwrap();
    let AgentReply::Error(error) = first.receive() else { panic!("no error") };
    assert_eq!((error.code, error.message.as_str()), (ErrorCode::Refused, "not this one"));
    assert_eq!(second.status().phase, AgentPhase::Idle);
}

#[test]
fn silent_conversations_wait_in_line_and_others_are_served_when_they_end() {
    let daemon = Daemon::start();
    let mut silent: Vec<_> = (0..4).map(|_| daemon.greeted()).collect();
    let mut fifth = daemon.connect();
    fifth.0.send(&AgentRequest::Hello(VERSIONS), Instant::now() + LIMIT).unwrap();
    let early = fifth.0.receive_bytes(Instant::now() + Duration::from_millis(50));
    assert!(matches!(early, Err(WireFailure::TimedOut)), "all threads are taken: {early:?}");
    silent.pop();
    assert!(matches!(fifth.receive(), AgentReply::Hello { .. }));
}
