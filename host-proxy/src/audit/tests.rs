//! What is written down, and that it can be read again.

use super::read::{Filter, read};
use super::*;

fn refused() -> WireError {
    WireError::new(ErrorCode::Refused, "no\nsecond line \u{1b}[31m")
}

fn event<'a>(decision: Decision, error: Option<&'a WireError>) -> Event<'a> {
    Event {
        verb: "delete",
        vm: None,
        vm_uuid: None,
        peer: "vsock:42:1023",
        disks: Vec::new(),
        snapshot: None,
        decision,
        error,
        took: Duration::from_millis(3),
    }
}

fn lines(path: &Path) -> Vec<serde_json::Value> {
    let text = fs::read_to_string(path).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn a_refusal_is_one_line_and_a_rotated_log_is_followed() {
    let folder = tempfile::tempdir().unwrap();
    let audit = Audit::open(folder.path()).unwrap();
    let error = refused();
    let event = event(Decision::of(error.code), Some(&error));
    audit.note(&event);
    let path = folder.path().join(FILE);
    fs::rename(&path, folder.path().join("audit.log.1")).unwrap();
    audit.note(&event);
    for file in ["audit.log.1", FILE] {
        let path = folder.path().join(file);
        let written = lines(&path);
        assert_eq!(written.len(), 1, "{written:?}");
        assert_eq!(written[0]["decision"], "refused");
        assert_eq!(written[0]["peer"], "vsock:42:1023");
        assert!(!fs::read_to_string(&path).unwrap().contains('\u{1b}'));
        assert_eq!(fs::metadata(path).unwrap().mode() & 0o777, 0o600);
    }
    assert_eq!(read(folder.path(), &Filter::default()).unwrap().entries.len(), 2);
}

#[test]
fn a_guest_that_is_refused_all_day_cannot_fill_the_disk_and_the_count_is_told() {
    let folder = tempfile::tempdir().unwrap();
    let audit = Audit::open(folder.path()).unwrap();
    let error = refused();
    let flood = u64::from(REFUSALS_A_MINUTE) + 40;
    (0..flood).for_each(|_| audit.note(&event(Decision::Refused, Some(&error))));
    let neighbour = Some(VmUuid::from_uuid(uuid::Uuid::from_u128(7)));
    audit.note(&Event { vm_uuid: neighbour, ..event(Decision::Refused, Some(&error)) });
    audit.note(&event(Decision::Done, None));
    let path = folder.path().join(FILE);
    let written = lines(&path);
    assert_eq!(written.len(), 60 + 2, "the neighbour and what was done are written all the same");

    let mut state = audit.state.lock().unwrap();
    let next = state.admit(&event(Decision::Refused, Some(&error)), Instant::now() + MINUTE);
    assert_eq!(next, Some(40));
}

#[test]
fn a_line_that_was_torn_by_a_crash_spoils_no_other() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(FILE);
    fs::write(&path, "{\"time\":\"2026-11-24T08:0").unwrap();
    let audit = Audit::open(folder.path()).unwrap();
    audit.note(&event(Decision::Done, None));
    let log = read(folder.path(), &Filter::default()).unwrap();
    assert_eq!((log.entries.len(), log.unreadable), (1, 1));
    assert_eq!(log.entries[0].verb, "delete");
}

/// `/dev/full` takes no byte: the write fails as on a full disk.
#[test]
fn without_room_for_the_log_the_service_goes_on_and_the_next_line_is_whole() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(FILE);
    let audit = Audit::open(folder.path()).unwrap();
    {
        let mut state = audit.state.lock().unwrap();
        state.file = OpenOptions::new().append(true).open("/dev/full").unwrap();
        let full = state.append(Path::new("/dev/full"), "lost\n");
        assert_eq!(full.unwrap_err().kind(), io::ErrorKind::StorageFull);
        assert!(state.torn);
    }
    audit.note(&event(Decision::Done, None));
    assert_eq!(lines(&path).len(), 1);
}
