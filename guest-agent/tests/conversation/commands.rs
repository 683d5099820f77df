//! The commands as a user runs them: what is printed, in both forms, and the exit code.

use std::process::{Command, Stdio};

use protocol::attach::{Access, Attach, Attachment, DetachOutcome};
use protocol::evidence::CutEvidence;
use protocol::message::{DeleteOutcome, DiskInfo, List, Page, Reply, Request};
use protocol::record::{DiskRecord, MountRecord, SnapshotRecord, State, Timing, UnixMillis};
use protocol::text::Line;
use protocol::{BoundedVec, Consistency, ErrorCode, RequestId, SnapshotId, VmUuid, WireError};
use serde_json::{Value, json};
use uuid::Uuid;

use super::host::{Host, Talk};

/// What a run came to.
struct Run {
    code: i32,
    out: String,
    err: String,
}

impl Run {
    #[track_caller]
    fn json(&self) -> Value {
        serde_json::from_str(&self.out).unwrap_or_else(|error| panic!("{error}: {:?}", self.out))
    }
}

fn hostsnap(host: &str, arguments: &[&str]) -> Run {
    let output = Command::new(env!("CARGO_BIN_EXE_hostsnap"))
        .args(["--host", host])
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .unwrap();
    Run {
        code: output.status.code().expect("an exit code"),
        out: String::from_utf8(output.stdout).unwrap(),
        err: String::from_utf8(output.stderr).unwrap(),
    }
}

/// Runs it against a host that answers these requests so, then hangs up.
fn against(arguments: &[&str], answers: Vec<(Request, Reply)>) -> Run {
    let host = Host::start(vec![Box::new(|talk: &mut Talk| {
        talk.greet();
        for (request, reply) in answers {
            assert_eq!(talk.receive(), request);
            talk.send(&reply);
        }
        talk.say_nothing();
    })]);
    let run = hostsnap(&host.address().to_string(), arguments);
    host.done();
    run
}

fn snapshot(number: u128) -> SnapshotRecord {
    let disk = DiskRecord {
        serial: "data".parse().unwrap(),
        driver: "qemu".parse().unwrap(),
        handle: "h".parse().unwrap(),
        size_bytes: 1 << 30,
    };
    let mount = MountRecord { path: "/data".parse().unwrap(), fs_type: "ext4".parse().unwrap() };
    SnapshotRecord {
        id: SnapshotId::from_uuid(Uuid::from_u128(number << 64)),
        vm_uuid: VmUuid::from_uuid(Uuid::from_u128(1)),
        vm: "app".parse().unwrap(),
        request: RequestId::random(),
        created_at: UnixMillis(1_795_507_200_123),
        minimum: Consistency::Filesystem,
        consistency: Consistency::Filesystem,
        consistency_reason: Line::lossy("no hook"),
        state: State::Ready,
        labels: Default::default(),
        note: "before the upgrade".parse().unwrap(),
        mounts: BoundedVec::try_from(vec![mount]).unwrap(),
        disks: BoundedVec::try_from(vec![disk]).unwrap(),
        timing: Timing { stall_us: 12_300, freeze_us: 2_000, ..Timing::default() },
        expires_at: None,
        locked_until: None,
        evidence: None,
        cut: CutEvidence::Unknown,
    }
}

fn get(reference: &str, reply: Reply) -> (Request, Reply) {
    (Request::Get(reference.parse().unwrap()), reply)
}

fn found(number: u128) -> Reply {
    Reply::Snapshot(Box::new(snapshot(number)))
}

#[test]
fn the_hosts_word_becomes_the_exit_code_and_the_text_says_what_to_do() {
    use ErrorCode::{Internal, Locked, NoSpace, NotFound, TimedOut, TooManySessions, Unavailable};
    let table = [
        (Internal, 1),
        (Unavailable, 3),
        (Locked, 4),
        (NotFound, 5),
        (TooManySessions, 6),
        (NoSpace, 8),
        (TimedOut, 9),
    ];
    for (code, exit_code) in table {
        let error = WireError::new(code, "it went wrong").hint("do this");
        let run = against(&["show", "latest"], vec![get("latest", Reply::Error(error.clone()))]);
        assert_eq!(run.code, exit_code, "{code:?}");
        assert_eq!(run.err, "hostsnap: it went wrong\ndo this\n");
        assert_eq!(run.out, "");

        let run = against(&["--json", "show", "latest"], vec![get("latest", Reply::Error(error))]);
        assert_eq!(run.code, exit_code);
        let error: Value = serde_json::from_str(&run.err).unwrap();
        assert_eq!(error["error"]["exit_code"], exit_code);
        assert_eq!(error["error"]["code"], format!("{code:?}"));
        assert_eq!(error["error"]["hint"], "do this");
    }
}

#[test]
fn a_snapshot_is_shown_as_a_block_and_as_the_json_that_is_promised() {
    let run = against(&["show", "0000"], vec![get("0000", found(1))]);
    assert_eq!(run.code, 0, "{}", run.err);
    for word in ["filesystem: no hook", "data  1.0 GiB  qemu", "/data  ext4", "12.3 ms", "before the upgrade"]
    {
        assert!(run.out.contains(word), "{word} in {}", run.out);
    }
    let json = against(&["show", "latest", "--json"], vec![get("latest", found(1))]).json();
    for name in ["id", "vm", "created_at", "consistency", "consistency_reason", "state", "labels", "note"] {
        assert!(json.get(name).is_some(), "{name} in {json}");
    }
    assert_eq!(json["mounts"][0]["fstype"], "ext4");
    assert_eq!(json["disks"][0]["handle"], "h");
    assert_eq!(json["timing"]["stall_us"], 12_300);
    assert_eq!(json["created_at"], "2026-11-24T08:00:00.123Z");
}

#[test]
fn a_list_follows_all_pages_and_asks_the_host_to_filter() {
    let page = |number, next: Option<u128>| {
        let next = next.map(|number| snapshot(number).id);
        Reply::Snapshots(Page { snapshots: BoundedVec::try_from(vec![snapshot(number)]).unwrap(), next })
    };
    let filter = List {
        disk: Some("data".parse().unwrap()),
        state: Some(State::Ready),
        limit: 256,
        ..List::default()
    };
    let answers = || {
        let second = List { after: Some(snapshot(1).id), ..filter.clone() };
        vec![
            (Request::List(filter.clone()), page(1, Some(1))),
            (Request::List(second), page(2, None)),
            (Request::Attachments, attached(&[])),
        ]
    };
    let run = against(&["list", "--disk", "data", "--state", "ready"], answers());
    assert_eq!(run.code, 0, "{}", run.err);
    assert_eq!(run.out.lines().count(), 3, "{}", run.out);
    let json = against(&["--json", "list", "--disk", "data", "--state", "ready"], answers()).json();
    assert_eq!(json.as_array().unwrap().len(), 2);
}

fn attached(snapshots: &[u128]) -> Reply {
    let attachments: Vec<_> = snapshots
        .iter()
        .map(|number| Attachment {
            snapshot: snapshot(*number).id,
            disk: "data".parse().unwrap(),
            serial: format!("hs-{:014x}.0", number).parse().unwrap(),
            access: Access::ReadOnly,
            size_bytes: 1 << 30,
        })
        .collect();
    Reply::Attached(attachments.try_into().unwrap())
}

#[test]
fn a_list_shows_what_is_attached_and_a_host_that_is_too_old_for_it_has_attached_nothing() {
    let answers = |attachments| {
        let page = Page { snapshots: BoundedVec::try_from(vec![snapshot(1)]).unwrap(), next: None };
        let all = List { limit: 256, ..List::default() };
        vec![(Request::List(all), Reply::Snapshots(page)), (Request::Attachments, attachments)]
    };
    let listed = against(&["--json", "list"], answers(attached(&[1]))).json();
    assert_eq!(listed[0]["attached"][0]["serial"], "hs-00000000000001.0");
    assert_eq!(listed[0]["attached"][0]["path"], Value::Null, "this kernel has no such disk");
    let shown = against(&["list"], answers(attached(&[1])));
    assert!(shown.out.contains("attached  not in this kernel  data  read-only"), "{}", shown.out);

    let too_old = Reply::Error(WireError::new(ErrorCode::Malformed, "these bytes are no message"));
    let listed = against(&["--json", "list"], answers(too_old)).json();
    assert_eq!(listed[0]["attached"], json!([]));
}

#[test]
fn the_hosts_refusal_to_attach_and_what_was_detached_before_an_error_are_said() {
    let attach = Attach {
        id: snapshot(1).id,
        disks: vec!["data".parse().unwrap()].try_into().unwrap(),
        access: Access::Writable,
    };
    let full = Reply::Error(WireError::new(ErrorCode::Unsupported, "no port is free").hint("add one"));
    let answers =
        vec![get("01", found(1)), (Request::Attachments, attached(&[])), (Request::Attach(attach), full)];
    let run = against(&["attach", "01", "data", "--writable"], answers);
    assert_eq!((run.code, run.err.as_str()), (6, "hostsnap: no port is free\nadd one\n"));

    let busy = Reply::Error(WireError::new(ErrorCode::Busy, "the guest has not released it"));
    let answers = vec![
        get("01", found(1)),
        get("02", found(2)),
        (Request::Attachments, attached(&[1, 2])),
        (Request::Detach(snapshot(1).id), Reply::Detached(DetachOutcome::Detached)),
        (Request::Attachments, attached(&[2])),
        (Request::Detach(snapshot(2).id), busy),
    ];
    let run = against(&["--json", "detach", "01", "02"], answers);
    assert_eq!(run.code, 6, "{}", run.err);
    assert_eq!(run.json(), json!([{ "id": snapshot(1).id, "detached": true }]));
}

#[test]
fn a_typing_error_among_several_deletes_nothing() {
    let missing = Reply::Error(WireError::new(ErrorCode::NotFound, "no snapshot begins with zz"));
    let run = against(&["delete", "01", "zz"], vec![get("01", found(1)), get("zz", missing)]);
    assert_eq!(run.code, 5, "{}", run.err);
    assert_eq!(run.out, "");
}

#[test]
fn what_was_deleted_before_an_error_is_said() {
    let id = |number| snapshot(number).id;
    let locked = Reply::Error(WireError::new(ErrorCode::Locked, "locked until Friday"));
    let answers = vec![
        get("01", found(1)),
        get("02", found(2)),
        get("03", found(3)),
        (Request::Delete(id(1)), Reply::Deleted(DeleteOutcome::Gone)),
        (Request::Delete(id(2)), Reply::Deleted(DeleteOutcome::WasAbsent)),
        (Request::Delete(id(3)), locked),
    ];
    let run = against(&["--json", "delete", "--yes", "01", "02", "03"], answers);
    assert_eq!(run.code, 4);
    let json = run.json();
    assert_eq!(json[0]["deleted"], true);
    assert_eq!(json[1]["deleted"], false);
    assert_eq!(json.as_array().unwrap().len(), 2);
    assert!(run.err.contains("locked until Friday"));
}

#[test]
fn nothing_is_sent_for_what_is_on_no_disk() {
    let host = Host::start(Vec::new());
    let run = hostsnap(&host.address().to_string(), &["create", "/proc"]);
    assert_eq!(run.code, 2, "{}", run.err);
    assert!(run.err.contains("/proc is on proc"), "{}", run.err);
    let run = hostsnap(&host.address().to_string(), &["create", "/no/such/path"]);
    assert_eq!(run.code, 2, "{}", run.err);
    assert!(run.err.contains("/no/such/path: No such file"), "{}", run.err);
    assert!(run.err.contains("hostsnap disks"), "what to do: {}", run.err);
    host.done();
}

#[test]
fn a_wrong_command_line_is_exit_code_2() {
    for arguments in [&["create"][..], &["show"], &["no-such-command"], &["create", "/", "--keep-for", "x"]] {
        let run = hostsnap("unix:/nonexistent", arguments);
        assert_eq!(run.code, 2, "{arguments:?}: {}", run.err);
    }
    assert_eq!(hostsnap("tcp:1:2", &["list"]).code, 2);
}

/// It was told in plain text: a script that reads JSON could not tell its own mistake from a crash.
#[test]
fn a_wrong_command_line_is_told_as_json_where_json_was_asked_for() {
    for arguments in [
        &["create", "--json", "--nonsense"][..],
        &["--json", "create"],
        &["no-such-command", "--json"],
        &["--json", "create", "/", "--keep-for", "x"],
        &["--json", "list", "--label", "x"],
    ] {
        let run = hostsnap("unix:/nonexistent", arguments);
        assert_eq!(run.code, 2, "{arguments:?}: {}", run.err);
        assert_eq!(run.out, "");
        let told: Value = serde_json::from_str(&run.err).unwrap_or_else(|_| panic!("{}", run.err));
        let error = &told["error"];
        assert_eq!((&error["exit_code"], &error["code"]), (&json!(2), &json!("BadRequest")), "{told}");
        assert!(!error["message"].as_str().unwrap().is_empty(), "{told}");
        assert!(error["hint"].as_str().unwrap().contains("--help"), "{told}");
    }
    // Help is no error, and not JSON.
    let run = hostsnap("unix:/nonexistent", &["--json", "--help"]);
    assert_eq!((run.code, run.err.as_str()), (0, ""));
    assert!(run.out.contains("Usage"));
}

#[test]
fn a_host_that_is_down_is_said_with_what_to_do() {
    let nobody = tempfile::tempdir().unwrap();
    // A socket that the host left: nobody listens on it any more.
    let left = nobody.path().join("left");
    drop(std::os::unix::net::UnixListener::bind(&left).unwrap());
    let absent = nobody.path().join("absent");
    for socket in [&left, &absent] {
        let address = format!("unix:{}", socket.display());
        for command in [&["list"][..], &["show", "latest"], &["delete", "latest"], &["create", "--all"]] {
            let run = hostsnap(&address, &[&["--json"], command].concat());
            assert_eq!(run.code, 3, "{command:?}: {}", run.err);
            assert_eq!(run.out, "");
            let told: Value = serde_json::from_str(&run.err).unwrap();
            assert!(told["error"]["message"].as_str().unwrap().contains(&address), "{told}");
            assert!(!told["error"]["hint"].as_str().unwrap().is_empty(), "{told}");
        }
    }
}

#[test]
fn disks_show_what_this_machine_and_the_host_know() {
    let known = DiskInfo {
        serial: "elsewhere".parse().unwrap(),
        driver: "qemu".parse().unwrap(),
        size_bytes: None,
        problem: "".parse().unwrap(),
    };
    let answer = || {
        let disks = BoundedVec::try_from(vec![known.clone()]).unwrap();
        // A host that is older than the question does not know it.
        let unknown = WireError::new(ErrorCode::Malformed, "these bytes are no message of this protocol");
        vec![(Request::Disks, Reply::Disks(disks)), (Request::Abilities, Reply::Error(unknown))]
    };
    let run = against(&["disks"], answer());
    assert_eq!(run.code, 0, "{}", run.err);
    assert!(run.out.starts_with("NAME"), "{}", run.out);
    assert!(against(&["--json", "disks"], answer()).json().is_array());

    // Without the host, what the machine knows itself, and the error.
    let run = hostsnap("unix:/nonexistent", &["--json", "disks"]);
    assert_eq!(run.code, 3);
    assert!(run.json().is_array());
    assert!(run.err.contains("Unreachable"), "{}", run.err);
}

#[test]
fn doctor_says_that_nobody_listens() {
    let run = hostsnap("unix:/nonexistent/host", &["--json", "doctor"]);
    assert_eq!(run.code, 3, "{}", run.out);
    let findings = run.json();
    let host =
        findings.as_array().unwrap().iter().find(|finding| finding["id"] == "host").expect("a finding");
    assert_eq!(host["status"], "fail");
    assert!(host["text"].as_str().unwrap().contains("/nonexistent/host"));
    assert!(!host["remedy"].as_str().unwrap().is_empty());
}
