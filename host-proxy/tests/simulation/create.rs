//! The way of a snapshot, as a guest's agent goes it: with a freeze that has a deadline, hooks that may take
//! too long, and the same request again where nothing was heard.

use std::time::Duration;

use host_proxy::drivers::Owner;
use protocol::message::{Conclude, Cut, Prepare, Prepared, Reply, Request};
use protocol::record::Timing;
use protocol::text::Labels;
use protocol::{BoundedVec, Consistency, RequestId, SnapshotId};

use crate::guest::Machine;
use crate::storage::Contents;
use crate::talk::{Lost, Talk, evidence};
use crate::witness::{Wish, disk_request};

impl Machine {
    pub(crate) fn new_wish(&self) -> SnapshotId {
        let mut state = self.host.stage.lock();
        let request = RequestId::from_uuid(state.chance.uuid());
        let owner = Owner { vm: self.vm.uuid, snapshot: SnapshotId::derive(self.vm.uuid, request) };
        let all: Vec<_> = self.vm.disks.iter().map(|disk| disk.serial.clone()).collect();
        let disks = if state.chance.permille(600) { all } else { all[..1].to_vec() };
        let minimum = state.chance.pick(&[Consistency::Crash, Consistency::Filesystem]);
        let keep_for_s =
            if state.chance.permille(150) { Some(state.chance.pick(&[1, 60, 3000])) } else { None };
        let note = format!("wish {}", state.witness.wishes.len());
        let mut wish = Wish::new(owner, request, disks, minimum, note, keep_for_s);
        drop(state);
        wish.before = self.contents(&wish);
        self.host.stage.lock().witness.wishes.insert(owner.snapshot, wish);
        owner.snapshot
    }

    /// The way of a snapshot, as the agent goes it. A user who did not learn what became of it asks again.
    pub(crate) async fn create(&self, who: &str) -> Result<(), Lost> {
        let again = self.host.stage.chance(|chance| chance.permille(300));
        let id = self.known(true).filter(|_| again).unwrap_or_else(|| self.new_wish());
        let result = self.create_once(who, id).await;
        match result {
            Err(Lost) if self.host.stage.chance(|chance| chance.permille(600)) => {
                self.create_once(who, id).await
            }
            other => other,
        }
    }

    pub(crate) async fn create_once(&self, who: &str, id: SnapshotId) -> Result<(), Lost> {
        self.with_wish(id, |wish| wish.attempts += 1);
        let result = self.attempt(who, id).await;
        self.with_wish(id, |wish| wish.attempts -= 1);
        result
    }

    async fn attempt(&self, who: &str, id: SnapshotId) -> Result<(), Lost> {
        let mut talk = self.talk(who).await?;
        let other_note = self.host.stage.chance(|chance| chance.permille(30));
        let mut prepare = self.with_wish(id, |wish| prepare(wish));
        if other_note {
            prepare.note = "another wish".parse().expect("a note");
        }
        let stood = self.stands(id);
        let prepared = match talk.ask(&Request::Prepare(prepare)).await? {
            Reply::Prepared(prepared) if stood && self.stands(id) => {
                self.host
                    .stage
                    .broken(format!("{id} was acknowledged, and the same request begins a second one"));
                prepared
            }
            Reply::Prepared(prepared) if other_note => {
                // The first one of this request is gone; this is another wish, which is not gone on with.
                talk.ask(&Request::Abort(prepared.ticket)).await?;
                return Ok(());
            }
            Reply::Prepared(prepared) => prepared,
            Reply::Existing(record) if other_note => {
                self.host.stage.broken(format!("{id}: another wish got the record of the first: {record:?}"));
                return Ok(());
            }
            Reply::Existing(record) => {
                self.told(&record);
                self.promised(&record);
                return Ok(());
            }
            Reply::Error(_) => return Ok(()),
            other => {
                self.nonsense(&other);
                return Ok(());
            }
        };
        self.go_on(&mut talk, id, prepared).await
    }

    async fn go_on(&self, talk: &mut Talk, id: SnapshotId, prepared: Prepared) -> Result<(), Lost> {
        match self.host.stage.chance(|chance| chance.below(20)) {
            0 => {
                return self
                    .expect(talk, &Request::Abort(prepared.ticket), |reply| matches!(reply, Reply::Aborted))
                    .await;
            }
            // Hooks that take too long: the lease ends.
            1 => tokio::time::sleep(Duration::from_secs(30)).await,
            _ => {}
        }
        let within = Duration::from_millis(self.host.stage.chance(|chance| chance.pick(&[3, 2000, 10_000])));
        let cut = Cut { ticket: prepared.ticket, within_us: within.as_micros().try_into().expect("short") };
        self.with_wish(id, |wish| wish.cut_asked = true);
        let lock = self.freezing.lock().await;
        *self.frozen.lock().expect("no panic") = true;
        let contents = self.with_wish_contents(id);
        let request = Request::Cut(cut);
        let (held, reply) = {
            let asked = talk.ask(&request);
            tokio::pin!(asked);
            let answered = tokio::time::timeout(within, &mut asked).await;
            *self.frozen.lock().expect("no panic") = false;
            drop(lock);
            self.write();
            match answered {
                Ok(reply) => (true, reply?),
                Err(_) => (false, asked.await?),
            }
        };
        match reply {
            Reply::CutDone(_) => {}
            Reply::Error(_) => return Ok(()),
            other => {
                self.nonsense(&other);
                return Ok(());
            }
        }
        if held {
            self.with_wish(id, |wish| wish.frozen.push(contents));
        }
        let wait = self.host.stage.chance(|chance| chance.permille(800));
        let conclude =
            Conclude { ticket: prepared.ticket, evidence: evidence(held), timing: Timing::default(), wait };
        match talk.ask(&Request::Conclude(conclude)).await? {
            Reply::Snapshot(record) => {
                self.told(&record);
                self.promised(&record);
            }
            Reply::Error(_) => {}
            other => self.nonsense(&other),
        }
        Ok(())
    }

    fn with_wish_contents(&self, id: SnapshotId) -> Contents {
        let wish = self.with_wish(id, |wish| {
            Wish::new(wish.owner, wish.request, wish.disks.clone(), wish.minimum, String::new(), None)
        });
        self.contents(&wish)
    }
}

fn prepare(wish: &Wish) -> Prepare {
    let disks: Vec<_> = wish.disks.iter().map(disk_request).collect();
    Prepare {
        request: wish.request,
        disks: disks.try_into().expect("few disks"),
        mounts: BoundedVec::empty(),
        labels: Labels::default(),
        note: wish.note.parse().expect("a note"),
        minimum: wish.minimum,
        keep_for_s: wish.keep_for_s,
        lease_ms: 20_000,
        dry_run: false,
    }
}
