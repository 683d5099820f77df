//! One schedule, from its seed to its end: an hour of trouble, then everything works again, comes to rest,
//! and is counted.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use protocol::VmUuid;
use rusqlite::Connection;
use tokio::task::JoinSet;

use crate::admin;
use crate::chance::Weather;
use crate::guest::Machine;
use crate::host::{Host, Scratch};
use crate::stage::Stage;

/// More steps than any schedule has that comes to an end.
const STEPS: usize = 20_000;
/// Refuses every change of the catalog, as a full file system does.
const REFUSE: &str = "
    CREATE TRIGGER refuse_insert BEFORE INSERT ON snapshots BEGIN SELECT RAISE(ABORT, 'by chance'); END;
    CREATE TRIGGER refuse_update BEFORE UPDATE ON snapshots BEGIN SELECT RAISE(ABORT, 'by chance'); END;
    CREATE TRIGGER refuse_delete BEFORE DELETE ON snapshots BEGIN SELECT RAISE(ABORT, 'by chance'); END;";
const ALLOW: &str = "DROP TRIGGER IF EXISTS refuse_insert; DROP TRIGGER IF EXISTS refuse_update;
    DROP TRIGGER IF EXISTS refuse_delete;";

/// Plays the schedule of this seed. `Err` tells what was found wrong.
pub(crate) fn one(seed: u64, scratch: &Arc<Scratch>, loud: bool) -> Result<(), String> {
    scratch.clear();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .expect("a runtime");
    let (stage, result) = runtime.block_on(async {
        let stage = Stage::new(seed, loud);
        let result = Play::new(stage.clone(), Arc::clone(scratch)).play().await;
        (stage, result)
    });
    drop(runtime);
    stage.clear();
    result
}

pub(crate) struct Play {
    pub(crate) stage: Stage,
    pub(crate) host: Host,
    pub(crate) machines: Vec<Arc<Machine>>,
    pub(crate) observer: Connection,
    quotas: BTreeMap<VmUuid, u64>,
    refusing: bool,
}

impl Play {
    pub(crate) fn new(stage: Stage, scratch: Arc<Scratch>) -> Self {
        let host = Host::new(stage.clone(), scratch);
        let machines = host.vms().iter().map(|vm| Machine::new(&host, vm)).collect();
        let quotas = host.vms().iter().map(|vm| (vm.uuid, vm.quota.snapshots)).collect();
        let observer = host.observer();
        Self { stage, host, machines, observer, quotas, refusing: false }
    }

    async fn play(mut self) -> Result<(), String> {
        self.host.start();
        let mut people = JoinSet::new();
        for machine in &self.machines {
            for user in 0..self.stage.chance(|chance| chance.pick(&[1, 1, 2])) {
                let things = 1 + self.stage.chance(|chance| chance.below(6));
                people.spawn(Arc::clone(machine).live(user, things));
            }
        }
        let things = self.stage.chance(|chance| chance.below(6));
        people.spawn(admin::live(self.host.clone(), things));
        self.until(&mut people, true).await?;
        self.mend();
        self.until(&mut people, false).await?;
        self.rest().await?;
        admin::last_look(&mut self).await
    }

    /// Steps until nobody has anything left to do, with trouble or without.
    pub(crate) async fn until(&mut self, people: &mut JoinSet<()>, trouble: bool) -> Result<(), String> {
        for _ in 0..STEPS {
            self.stage.settle().await;
            self.look()?;
            while people.try_join_next().is_some() {}
            if people.is_empty() && (trouble || self.host.is_open()) {
                return Ok(());
            }
            if trouble && self.trouble().await {
                continue;
            }
            match self.stage.step() {
                Some(Ok(())) => {}
                Some(Err(_)) => self.restart(),
                None => tokio::time::sleep(Duration::from_millis(200)).await,
            }
        }
        Err("it never comes to an end".to_owned())
    }

    /// Whatever is out comes back, whatever has a limit reaches it.
    async fn rest(&mut self) -> Result<(), String> {
        for _ in 0..40 {
            self.stage.settle().await;
            while let Some(step) = self.stage.step() {
                step.map_err(|_| "nobody dies in fair weather".to_owned())?;
                self.stage.settle().await;
                self.look()?;
            }
            tokio::time::sleep(Duration::from_secs(10)).await;
        }
        Ok(())
    }

    pub(crate) fn look(&self) -> Result<(), String> {
        let now = self.stage.now();
        let mut said = Vec::new();
        let looked = {
            let mut state = self.stage.lock();
            let state = &mut *state;
            state.witness.latest = state.witness.latest.max(Some(now));
            state.witness.look(&self.observer, &mut state.storage, &self.quotas, |what| said.push(what))
        };
        said.into_iter().for_each(|what| self.stage.say(|| what));
        if let Err(what) = looked {
            self.stage.broken(what);
        }
        self.stage.finding().map_or(Ok(()), Err)
    }

    /// Something that nobody asked for. `false` if nothing happens.
    async fn trouble(&mut self) -> bool {
        if self.stage.permille(|weather| weather.power_cut) {
            self.stage.say(|| "the host loses power".to_owned());
            {
                let mut state = self.stage.lock();
                let state = &mut *state;
                state.storage.lose_power(|| state.chance.permille(500));
            }
            self.restart();
        } else if self.stage.permille(|weather| weather.dies) {
            self.restart();
        } else if self.stage.permille(|weather| weather.time_passes) {
            let seconds = self.stage.chance(|chance| chance.pick(&[1, 12, 35, 61, 125]));
            self.stage.say(|| format!("{seconds} s pass"));
            tokio::time::sleep(Duration::from_secs(seconds)).await;
        } else if self.stage.permille(|weather| weather.clock_jumps) {
            let off = self.stage.chance(|chance| chance.pick(&[-3_600_000, 3_600_000, -1000]));
            self.stage.say(|| format!("the clock jumps by {off} ms"));
            self.stage.lock().clock_off_ms += off;
        } else if self.stage.permille(|weather| weather.catalog_fails) {
            self.refuse(!self.refusing);
        } else if self.stage.permille(|weather| weather.storage_changes) {
            let mut state = self.stage.lock();
            let full = state.chance.permille(500);
            let storage = &mut state.storage;
            let what = if full { &mut storage.full } else { &mut storage.held };
            *what = !*what;
            let text = format!("the storage: full {}, in use {}", storage.full, storage.held);
            drop(state);
            self.stage.say(|| text);
        } else {
            return false;
        }
        true
    }

    fn refuse(&mut self, refuse: bool) {
        self.stage.say(|| format!("the catalog can {}be written", if refuse { "not " } else { "" }));
        self.observer.execute_batch(if refuse { REFUSE } else { ALLOW }).expect("change the catalog's mind");
        self.refusing = refuse;
    }

    fn restart(&mut self) {
        let catalog_lost = self.stage.permille(|weather| weather.catalog_lost);
        self.host.die(catalog_lost);
        if catalog_lost {
            self.observer = self.host.observer();
            self.refusing = false;
        }
        self.host.start();
    }

    /// From here on everything works.
    pub(crate) fn mend(&mut self) {
        self.stage.say(|| "fair weather".to_owned());
        self.refuse(false);
        let mut state = self.stage.lock();
        state.weather = Weather::fair();
        (state.storage.full, state.storage.held) = (false, false);
    }
}
