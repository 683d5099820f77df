//! What happens on the host while it is struck, and what must be true afterwards.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};

use harness::wait::wait_until;
use protocol::message::{DeleteOutcome, DiskRequest, Prepare, Reply, Request};
use protocol::{BoundedVec, Consistency, ErrorCode, SnapshotId};

use super::guest::{Guest, conclude, cut, request_for};
use super::host::{Host, IMAGE_BYTES, LIMIT, UUID};

/// What a guest was told. Only that binds the host.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Told {
    /// Its new snapshot is whole.
    pub(crate) made: bool,
    /// Its old one was asked to go.
    pub(crate) asked_to_delete: bool,
    /// It is gone.
    pub(crate) deleted: bool,
}

/// The same as the other end learns it, call by call.
pub(crate) type Ear = Arc<Mutex<Told>>;

/// A snapshot, and the byte that fills its disks.
#[derive(Clone)]
pub(crate) struct Snapshot {
    asked: Prepare,
    byte: u8,
}

impl Snapshot {
    pub(crate) fn new(byte: u8) -> Self {
        let disks = [("one", IMAGE_BYTES, byte), ("two", IMAGE_BYTES, byte)];
        Self { asked: request_for(&disks, Consistency::Filesystem), byte }
    }

    pub(crate) fn id(&self) -> String {
        self.key().to_string()
    }

    /// Its disks, as a guest knows them.
    pub(crate) fn disks(&self) -> BoundedVec<DiskRequest, 64> {
        self.asked.disks.clone()
    }

    fn key(&self) -> SnapshotId {
        SnapshotId::derive(UUID.parse().unwrap(), self.asked.request)
    }

    /// Takes it, on a host that works. The disks are as it says.
    #[track_caller]
    pub(crate) fn take(&self, host: &Host) {
        let mut answer = None;
        wait_until("the request is answered", LIMIT, || {
            let mut guest = host.greeted().expect("it is up");
            match guest.take(&self.asked) {
                Err(error) if matches!(error.code, ErrorCode::Busy | ErrorCode::Unavailable) => false,
                other => {
                    answer = Some(other);
                    true
                }
            }
        });
        let record = answer.unwrap().unwrap_or_else(|error| panic!("{error}\n{}", host.folder.printed()));
        assert_eq!(record.id.to_string(), self.id(), "the same request, the same snapshot");
        assert_eq!(record.consistency, Consistency::Filesystem);
        assert_eq!(record.disks.iter().count(), 2, "{record:?}");
    }

    #[track_caller]
    fn delete(&self, host: &Host) {
        let output = host.folder.admin(&["delete", &self.id()]);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
}

/// Takes `new` and deletes `old`. `None` where the host was gone before the end.
pub(crate) fn converse(host: &Host, new: &Snapshot, old: &Snapshot, ear: &Ear) -> Option<()> {
    let mut guest = host.greeted()?;
    if make(&mut guest, new)? {
        ear.lock().unwrap().made = true;
    }
    ear.lock().unwrap().asked_to_delete = true;
    guest.send(&Request::Delete(old.key()));
    if let Reply::Deleted(DeleteOutcome::Gone) = guest.hears()? {
        ear.lock().unwrap().deleted = true;
    }
    Some(())
}

/// Whether it is told that there is a snapshot.
fn make(guest: &mut Guest, new: &Snapshot) -> Option<bool> {
    guest.send(&Request::Prepare(new.asked.clone()));
    let Reply::Prepared(prepared) = guest.hears()? else { return Some(false) };
    guest.send(&cut(prepared.ticket));
    let Reply::CutDone(_) = guest.hears()? else { return Some(false) };
    guest.send(&conclude(prepared.ticket));
    loop {
        match guest.hears()? {
            Reply::Progress(_) => {}
            reply => return Some(matches!(reply, Reply::Snapshot(_))),
        }
    }
}

/// What there is on the host, by what it was made of.
pub(crate) struct Scene {
    /// Nobody touches it.
    pub(crate) bystander: Snapshot,
    pub(crate) old: Snapshot,
    pub(crate) new: Snapshot,
}

impl Scene {
    /// Everything that must be true when the service is up again, whatever happened; then all but the
    /// bystander is removed.
    #[track_caller]
    pub(crate) fn must_be_right(&self, host: &Host, told: Told, when: &str) {
        let Self { bystander, old, new } = self;
        let of_id = |id: &str| [bystander, old, new].into_iter().find(|one| one.id() == id);
        let mut seen = String::new();
        let settled = || {
            let listed = host.listed();
            let whole: BTreeSet<_> = listed
                .iter()
                .filter(|one| one["state"] == "ready")
                .map(|one| one["id"].as_str().unwrap().to_owned())
                .collect();
            let held = [0, 1].map(|store| host.held_in(store).into_iter().collect::<BTreeSet<_>>());
            seen = format!("listed {listed:#?}\nheld {held:?}");
            listed.iter().all(|one| one["state"] != "settling") && held.iter().all(|held| *held == whole)
        };
        let settled = settles(settled);
        assert!(
            settled,
            "{when}: {told:?}: catalog and storage differ for good: {seen}\n{}",
            host.folder.printed()
        );

        let mut listed = host.listed();
        // What the storage failed to make durable is told as that, and holds nothing.
        if let Some(at) = listed.iter().position(|one| one["state"] == "failed") {
            assert!(listed[at]["id"] == new.id() && !told.made, "{when}: {told:?} lost\n{seen}");
            new.delete(host);
            listed.remove(at);
        }
        let is_listed = |one: &Snapshot| listed.iter().any(|listed| listed["id"] == one.id());
        assert!(is_listed(bystander), "{when}: one that nobody touched is lost\n{seen}");
        assert!(is_listed(new) || !told.made, "{when}: acknowledged and lost\n{seen}");
        assert!(is_listed(old) || told.asked_to_delete, "{when}: deleted without being asked to\n{seen}");
        assert!(!is_listed(old) || !told.deleted, "{when}: deleted and there again\n{seen}");
        for one in &listed {
            let known = of_id(one["id"].as_str().unwrap()).expect("one of ours");
            assert!(host.restores(&known.id(), known.byte), "{when}: it does not hold what it did: {one:#?}");
            assert_eq!(one["consistency"], "filesystem", "{when}: {one:#?}");
            assert_eq!(one["disks"].as_array().unwrap().len(), 2, "{when}: {one:#?}");
        }
        let reconciled = host.folder.admin(&["reconcile"]);
        let said = String::from_utf8_lossy(&reconciled.stdout);
        assert_eq!(said, "the catalog and the storage agree\n", "{when}");

        new.take(host);
        assert!(host.restores(&new.id(), new.byte), "{when}: a repeat gives something else");
        assert_eq!(host.listed().len(), 2 + usize::from(is_listed(old)), "{when}: a repeat makes one more");
        new.delete(host);
        if is_listed(old) {
            old.delete(host);
        }
        assert_eq!([host.held_in(0), host.held_in(1)], [(); 2].map(|()| vec![bystander.id()]), "{when}");
    }
}

/// Whether it becomes so in time.
fn settles(mut state: impl FnMut() -> bool) -> bool {
    let limit = std::time::Instant::now() + LIMIT / 6;
    while !state() {
        if std::time::Instant::now() > limit {
            return false;
        }
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    true
}
