//! A virtual machine: its applications write, its users ask for snapshots, look at them and delete
//! them, several at once, and try what is not theirs. How a snapshot is taken is in `create`.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use host_proxy::config::Vm;
use protocol::message::{List, Reply, Request};
use protocol::{BootId, ErrorCode, SnapshotId};

use crate::host::Host;
use crate::storage::Contents;
use crate::talk::{Lost, Talk};
use crate::witness::Wish;

/// What all users of one machine share.
pub(crate) struct Machine {
    pub(crate) vm: Vm,
    pub(crate) host: Host,
    boot: Mutex<BootId>,
    /// One freeze at a time, as the agent's lock has it.
    pub(crate) freezing: tokio::sync::Mutex<()>,
    pub(crate) frozen: Mutex<bool>,
}

impl Machine {
    pub(crate) fn new(host: &Host, vm: &Vm) -> Arc<Self> {
        let boot = Mutex::new(BootId::from_uuid(host.stage.chance(|chance| chance.uuid())));
        let machine = Self {
            vm: vm.clone(),
            host: host.clone(),
            boot,
            freezing: Default::default(),
            frozen: Mutex::new(false),
        };
        machine.write();
        Arc::new(machine)
    }

    /// One user of it, who does so many things.
    pub(crate) async fn live(self: Arc<Self>, user: usize, things: usize) {
        let who = format!("{}/{user}", self.vm.name);
        for _ in 0..things {
            self.host.stage.turn(format!("{who} goes on")).await;
            let done = match self.host.stage.chance(|chance| chance.below(100)) {
                0..50 => self.create(&who).await,
                50..65 => self.delete(&who).await,
                65..80 => self.list(&who).await,
                80..88 => self.look(&who).await,
                88..91 => {
                    self.restart();
                    Ok(())
                }
                _ => {
                    self.write();
                    Ok(())
                }
            };
            if done.is_err() {
                tokio::time::sleep(Duration::from_millis(500)).await;
            }
        }
    }

    pub(crate) async fn talk(&self, who: &str) -> Result<Talk, Lost> {
        let boot = *self.boot.lock().expect("no panic");
        Talk::begin(&self.host, self.vm.uuid, who, boot).await
    }

    /// The machine is reset: a new boot, and nobody closes its conversations.
    fn restart(&self) {
        let boot = BootId::from_uuid(self.host.stage.chance(|chance| chance.uuid()));
        self.host.stage.say(|| format!("{} is reset", self.vm.name));
        *self.boot.lock().expect("no panic") = boot;
    }

    pub(crate) fn write(&self) {
        if *self.frozen.lock().expect("no panic") {
            return;
        }
        let mut state = self.host.stage.lock();
        for disk in &self.vm.disks {
            *state.storage.volumes.entry(disk.source.to_string()).or_default() += 1;
        }
    }

    pub(crate) fn contents(&self, wish: &Wish) -> Contents {
        let state = self.host.stage.lock();
        let disks = self.vm.disks.iter().filter(|disk| wish.disks.contains(&disk.serial));
        let content = |path: String| state.storage.volumes.get(&path).copied().unwrap_or(0);
        disks.map(|disk| (disk.serial.clone(), content(disk.source.to_string()))).collect()
    }

    /// A wish of its own that it had before, or somebody else's.
    pub(crate) fn known(&self, own: bool) -> Option<SnapshotId> {
        let mut state = self.host.stage.lock();
        let ids: Vec<_> = state.witness.wishes.values().map(|wish| wish.owner).collect();
        let ids: Vec<_> = ids.into_iter().filter(|owner| (owner.vm == self.vm.uuid) == own).collect();
        (!ids.is_empty()).then(|| state.chance.pick(&ids).snapshot)
    }

    pub(crate) fn with_wish<T>(&self, id: SnapshotId, act: impl FnOnce(&mut Wish) -> T) -> T {
        act(self.host.stage.lock().witness.wishes.get_mut(&id).expect("it was wished for"))
    }

    async fn delete(&self, who: &str) -> Result<(), Lost> {
        let own = self.host.stage.chance(|chance| chance.permille(850));
        let Some(id) = self.known(own) else { return Ok(()) };
        let mut talk = self.talk(who).await?;
        let request = Request::Delete(id);
        if !own {
            let absent =
                |reply: &Reply| matches!(reply, Reply::Error(error) if error.code == ErrorCode::NotFound);
            return self.expect(&mut talk, &request, absent).await;
        }
        if !self.vm.guest_may_delete {
            return self.expect(&mut talk, &request, |reply| matches!(reply, Reply::Error(_))).await;
        }
        self.with_wish(id, |wish| wish.may_be_deleted = true);
        match talk.ask(&request).await? {
            Reply::Deleted(_) => {
                let state = self.host.stage.lock();
                let wish = &state.witness.wishes[&id];
                let (owner, again) = (wish.owner, wish.attempts > 0);
                let left = state.storage.parts(owner).count();
                drop(state);
                if left > 0 && !again {
                    self.host.stage.broken(format!("{id} is deleted, they say, and still on the storage"));
                }
            }
            Reply::Error(_) => {}
            other => self.nonsense(&other),
        }
        Ok(())
    }

    /// All pages. What stood all the while must be among them.
    async fn list(&self, who: &str) -> Result<(), Lost> {
        let mut talk = self.talk(who).await?;
        let stood = self.standing();
        let mut seen = Vec::new();
        let mut after = None;
        loop {
            let limit = self.host.stage.chance(|chance| chance.pick(&[1, 2, 50]));
            let list = List { limit, after, ..List::default() };
            match talk.ask(&Request::List(list)).await? {
                Reply::Snapshots(page) => {
                    page.snapshots.iter().for_each(|record| self.told(record));
                    seen.extend(page.snapshots.iter().map(|record| record.id));
                    after = page.next;
                    if after.is_none() {
                        break;
                    }
                }
                Reply::Error(_) => return Ok(()),
                other => {
                    self.nonsense(&other);
                    return Ok(());
                }
            }
        }
        let still = self.standing();
        if let Some(missing) = stood.iter().find(|id| still.contains(id) && !seen.contains(id)) {
            self.host.stage.broken(format!("{missing} was acknowledged, and is not in the list {seen:?}"));
        }
        Ok(())
    }

    async fn look(&self, who: &str) -> Result<(), Lost> {
        let own = self.host.stage.chance(|chance| chance.permille(700));
        let Some(id) = self.known(own) else { return Ok(()) };
        let mut talk = self.talk(who).await?;
        let stood = self.stands(id);
        match talk.ask(&Request::Get(id.to_string().parse().expect("a reference"))).await? {
            Reply::Snapshot(record) => self.told(&record),
            Reply::Error(error) if error.code == ErrorCode::NotFound && own && stood && self.stands(id) => {
                self.host.stage.broken(format!("{id} was acknowledged, and can't be shown"));
            }
            Reply::Error(_) => {}
            other => self.nonsense(&other),
        }
        Ok(())
    }

    pub(crate) async fn expect(
        &self,
        talk: &mut Talk,
        request: &Request,
        right: impl Fn(&Reply) -> bool,
    ) -> Result<(), Lost> {
        let reply = talk.ask(request).await?;
        // Of a host in trouble anything may be heard but a success.
        if !right(&reply) && !matches!(reply, Reply::Error(_)) {
            self.nonsense(&reply);
        }
        Ok(())
    }

    pub(crate) fn nonsense(&self, reply: &Reply) {
        self.host.stage.broken(format!("{} got the wrong answer: {reply:?}", self.vm.name));
    }

    /// Its snapshots that are acknowledged, and the catalog is not lost just now.
    fn standing(&self) -> Vec<SnapshotId> {
        let state = self.host.stage.lock();
        let latest = state.witness.latest;
        let mine = state.witness.wishes.values().filter(|wish| wish.owner.vm == self.vm.uuid);
        let standing = mine.filter(|wish| wish.stands(latest) && !state.witness.catalog_is_lost);
        standing.map(|wish| wish.owner.snapshot).collect()
    }

    pub(crate) fn stands(&self, id: SnapshotId) -> bool {
        self.standing().contains(&id)
    }

    pub(crate) fn told(&self, record: &protocol::SnapshotRecord) {
        let told = {
            let mut state = self.host.stage.lock();
            let state = &mut *state;
            state.witness.told(Some(self.vm.uuid), record, &state.storage)
        };
        self.check(told);
    }

    pub(crate) fn promised(&self, record: &protocol::SnapshotRecord) {
        let told = {
            let mut state = self.host.stage.lock();
            let state = &mut *state;
            state.witness.promised(record, &state.storage)
        };
        self.check(told);
    }

    fn check(&self, result: Result<(), String>) {
        if let Err(what) = result {
            self.host.stage.broken(what);
        }
    }
}
