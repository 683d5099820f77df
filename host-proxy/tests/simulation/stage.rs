//! Where everything happens, one step after another: what wants to go on stands in a line, and chance
//! picks who does. Nothing runs beside it, so a seed gives the same schedule each time.

use std::cell::RefCell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, MutexGuard};

use host_proxy::service::{Job, Tell};
use protocol::record::UnixMillis;
use tokio::sync::oneshot;
use tokio::time::{Duration, Instant};

use crate::chance::{Chance, Weather};
use crate::storage::Storage;
use crate::witness::Witness;

/// How a call ends that the service does not survive.
pub(crate) struct Died;

/// What stands in the line.
enum Item {
    /// A call of the host's.
    Job(Job),
    /// The outcome of a call.
    Tell(Tell),
    /// Somebody outside the host waits for a turn.
    Turn(String, oneshot::Sender<()>),
}

pub(crate) struct State {
    pub(crate) chance: Chance,
    pub(crate) weather: Weather,
    pub(crate) storage: Storage,
    pub(crate) witness: Witness,
    line: Vec<Item>,
    /// What died with the service. It is kept: whoever waits for it waits for ever.
    graveyard: Vec<Item>,
    /// Which life of the service this is.
    pub(crate) life: u32,
    /// What the wall clock shows more than it should, in milliseconds.
    pub(crate) clock_off_ms: i64,
    began: Instant,
    /// What was found wrong first.
    broken: Option<String>,
    loud: bool,
}

#[derive(Clone)]
pub(crate) struct Stage(Arc<Mutex<State>>);

thread_local! {
    /// What the last panic on this thread said. Each schedule has a thread for itself.
    static PANIC: RefCell<Option<String>> = const { RefCell::new(None) };
}

/// Keeps what a panic says as well, for whoever tells of the schedule: tokio catches those of tasks.
pub(crate) fn note_panics() {
    let before = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        PANIC.set(Some(panic.to_string()));
        before(panic);
    }));
}

impl Stage {
    pub(crate) fn new(seed: u64, loud: bool) -> Self {
        PANIC.take();
        let mut chance = Chance::new(seed);
        let weather = Weather::of(&mut chance);
        let stage = Self(Arc::new(Mutex::new(State {
            chance,
            weather,
            storage: Storage::default(),
            witness: Witness::default(),
            line: Vec::new(),
            graveyard: Vec::new(),
            life: 0,
            clock_off_ms: 0,
            began: Instant::now(),
            broken: None,
            loud,
        })));
        stage.say(|| format!("{weather:?}"));
        stage
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().expect("nothing panics while it holds the stage")
    }

    /// Tells what happens, if somebody listens.
    pub(crate) fn say(&self, what: impl FnOnce() -> String) {
        let at = {
            let state = self.lock();
            state.loud.then(|| state.began.elapsed())
        };
        if let Some(at) = at {
            println!("{:>9.3} s  {}", at.as_secs_f64(), what());
        }
    }

    /// Something is wrong. The first finding stays.
    pub(crate) fn broken(&self, what: String) {
        self.say(|| format!("WRONG: {what}"));
        self.lock().broken.get_or_insert(what);
    }

    pub(crate) fn finding(&self) -> Option<String> {
        let panic = PANIC.with_borrow(|panic| panic.as_ref().map(|panic| format!("it panicked: {panic}")));
        self.lock().broken.clone().or(panic)
    }

    pub(crate) fn chance<T>(&self, ask: impl FnOnce(&mut Chance) -> T) -> T {
        ask(&mut self.lock().chance)
    }

    pub(crate) fn permille(&self, share: impl FnOnce(&Weather) -> usize) -> bool {
        let mut state = self.lock();
        let share = share(&state.weather);
        state.chance.permille(share)
    }

    pub(crate) fn now(&self) -> UnixMillis {
        let state = self.lock();
        let since = i64::try_from(state.began.elapsed().as_millis()).expect("a short story");
        UnixMillis(u64::try_from(1_800_000_000_000 + since + state.clock_off_ms).expect("long after 1970"))
    }

    /// A call of the host in this life of it.
    pub(crate) fn call(&self, life: u32, job: Job) {
        let mut state = self.lock();
        let item = Item::Job(job);
        if life == state.life { state.line.push(item) } else { state.graveyard.push(item) }
    }

    /// Waits for a turn.
    pub(crate) async fn turn(&self, what: impl Into<String>) {
        let (go, wait) = oneshot::channel();
        self.lock().line.push(Item::Turn(what.into(), go));
        // Without a stage there is nothing left to do.
        let _ = wait.await;
    }

    /// Everybody goes on until all of them wait. A paused clock goes on only when nobody else does.
    pub(crate) async fn settle(&self) {
        tokio::time::sleep(Duration::from_millis(1)).await;
        tokio::task::yield_now().await;
    }

    /// The life of the service ends: what it had begun is never told.
    pub(crate) fn bury(&self) {
        let mut state = self.lock();
        state.life += 1;
        let (dead, alive) = std::mem::take(&mut state.line)
            .into_iter()
            .partition::<Vec<_>, _>(|item| !matches!(item, Item::Turn(..)));
        state.line = alive;
        state.graveyard.extend(dead);
    }

    /// Lets one of the line go on. `None` if there is nobody; `Err` if the service died of it.
    pub(crate) fn step(&self) -> Option<Result<(), Died>> {
        let item = {
            let mut state = self.lock();
            if state.line.is_empty() {
                return None;
            }
            let len = state.line.len();
            let which = state.chance.below(len);
            state.line.remove(which)
        };
        match item {
            Item::Turn(what, go) => {
                self.say(|| what);
                // Who does not wait any more needs no turn.
                let _ = go.send(());
            }
            // What comes too late is undone then, and the service may die of that as well.
            Item::Tell(tell) => return Some(self.guarded(tell).map(|_| ())),
            Item::Job(job) => match self.guarded(job) {
                Ok(Some(tell)) if self.permille(|weather| weather.tells_later) => {
                    self.say(|| "  … its answer is on its way".to_owned());
                    self.lock().line.push(Item::Tell(tell));
                }
                Ok(Some(tell)) => return Some(self.guarded(tell).map(|_| ())),
                Ok(None) => {}
                Err(died) => return Some(Err(died)),
            },
        }
        Some(Ok(()))
    }

    /// Runs something of the host. `None` if it panicked.
    fn guarded<T>(&self, what: impl FnOnce() -> T) -> Result<Option<T>, Died> {
        match catch_unwind(AssertUnwindSafe(what)) {
            Ok(done) => Ok(Some(done)),
            Err(panic) if panic.is::<Died>() => Err(Died),
            Err(_) => {
                self.broken("a call of the host panicked".to_owned());
                Ok(None)
            }
        }
    }

    /// Drops what died, when nothing of it can be woken any more.
    pub(crate) fn clear(&self) {
        let dead = {
            let mut state = self.lock();
            state
                .line
                .drain(..)
                .collect::<Vec<_>>()
                .into_iter()
                .chain(state.graveyard.drain(..).collect::<Vec<_>>())
        };
        drop(dead.collect::<Vec<_>>());
    }
}
