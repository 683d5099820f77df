//! What the host does for a guest or for its administrator. The only room that joins policy,
//! drivers, virtual machines and catalog; it takes what policy allowed and nothing else.
//!
//! | module | idea |
//! |---|---|
//! | `create` | the beginning of a snapshot: checks, slow work, the intent |
//! | `operation` | ready → cut → concluded: up to the storage's atomic point and what it is worth |
//! | `agentless` | a snapshot of a machine without its guest |
//! | `machines` | those that libvirt has, looked at again and again |
//! | `moves` | a machine that is on its way to another host while its guest asks |
//! | `pause` | a machine that stands still meanwhile, and goes on on every path |
//! | `settle` | from cut to durable, in the background, with progress |
//! | `abilities` | what the storage of each disk can do |
//! | `changes` | what changed between two snapshots |
//! | `read` | disks, lists, single snapshots |
//! | `attach` | a snapshot's disks in the machine that it is of |
//! | `shown` | a disk of a snapshot, made readable on this host |
//! | `left_shown` | what is shown and nobody needs |
//! | `exports` | disks of snapshots that are read on this host |
//! | `restore` | disks given back the bytes of a snapshot |
//! | `delete` | removal on demand and when a snapshot's time is over |
//! | `overdue` | snapshots that stay although their time is over |
//! | `problems` | what comparing could not decide, told once |
//! | `lock` | what nobody may delete until a date |
//! | `forget` | failed snapshots that were shown for long enough |
//! | `clock` | the wall clock, and whether it can be believed |
//! | `reconcile` | the catalog against the storage, at start and on command |
//! | `shared` | stores that other hosts use too |
//! | `blocking`, `errors`, `in_flight`, `manifest` | what those share |

mod abilities;
mod agentless;
mod attach;
mod blocking;
mod changes;
mod clock;
mod create;
mod delete;
mod errors;
mod exports;
mod forget;
mod in_flight;
mod left_shown;
mod lock;
mod machines;
mod manifest;
mod moves;
mod operation;
mod overdue;
mod pause;
mod problems;
mod read;
mod reconcile;
mod restore;
mod settle;
mod shared;
mod shown;

use std::sync::atomic::AtomicBool;
use std::sync::{Arc, RwLock};

use protocol::WireError;
use protocol::record::UnixMillis;
use tokio::sync::Semaphore;

pub use agentless::Alone;
pub use blocking::{Job, Tell, Workers};
pub use changes::DiskChanges;
pub use clock::{Clock, now};
pub use create::Outcome;
pub use errors::chain;
pub use exports::Exported;
pub use operation::{CutOperation, Operation};
pub use reconcile::Report;
pub use restore::{RestoreStep, Restoring};
pub use settle::{SettleState, Settling};

use crate::audit::Audit;
use crate::boots::Boots;
use crate::catalog::{Catalog, CatalogError};
use crate::world::World;
use attach::Turns;
use exports::Exports;
use in_flight::InFlight;
use machines::Looks;
use overdue::Overdue;
use problems::Problems;
use shared::Freshness;

/// How many snapshots may be between prepared and settled-in-the-foreground at once, over all
/// guests. The others wait in `Prepare`, where nothing is frozen.
const ADMITTED: usize = 4;

/// The service's state.
pub struct Service {
    world: RwLock<Arc<World>>,
    catalog: Arc<Catalog>,
    audit: Audit,
    workers: Workers,
    clock: Clock,
    boots: Boots,
    in_flight: InFlight,
    admission: Arc<Semaphore>,
    /// Held while a new intent is decided on and committed.
    beginning: tokio::sync::Mutex<()>,
    freshness: Freshness,
    turns: Turns,
    overdue: Overdue,
    exports: Exports,
    /// Open for those who pause a machine, until the service stops.
    pauses: Semaphore,
    looks: Looks,
    /// A store could not be listed: what is in it may be unknown, and counts for no quota.
    unlisted: Arc<AtomicBool>,
    problems: Problems,
}

impl Service {
    /// A service over this world and this catalog.
    pub fn new(world: World, catalog: Catalog, audit: Audit) -> Arc<Self> {
        Self::with(world, catalog, audit, Workers::threads(), Clock::default())
    }

    /// A service whose calls and time somebody else rules: for a simulation.
    #[doc(hidden)]
    pub fn with(world: World, catalog: Catalog, audit: Audit, workers: Workers, clock: Clock) -> Arc<Self> {
        Arc::new(Self {
            world: RwLock::new(Arc::new(world)),
            catalog: Arc::new(catalog),
            audit,
            workers,
            clock,
            boots: Boots::default(),
            in_flight: InFlight::default(),
            admission: Arc::new(Semaphore::new(ADMITTED)),
            beginning: tokio::sync::Mutex::new(()),
            freshness: Freshness::default(),
            turns: Turns::default(),
            overdue: Overdue::default(),
            exports: Exports::default(),
            pauses: Semaphore::new(pause::ALL as usize),
            looks: Looks::default(),
            unlisted: Arc::default(),
            problems: Problems::default(),
        })
    }

    /// The world as it is now.
    pub fn world(&self) -> Arc<World> {
        Arc::clone(&self.world.read().expect("no holder of this lock panics"))
    }

    /// Puts a reloaded world in its place. What runs goes on with the one it began with.
    pub fn replace_world(&self, world: World) {
        *self.world.write().expect("no holder of this lock panics") = Arc::new(world);
    }

    /// Runs a call of the catalog where it may block. Its failure is logged; the guest's text of it
    /// is the error.
    async fn catalog<T: Send + 'static>(
        &self,
        call: impl FnOnce(&Catalog) -> Result<T, CatalogError> + Send + 'static,
    ) -> Result<T, WireError> {
        let catalog = Arc::clone(&self.catalog);
        let called = self.workers.unbounded(move || call(&catalog)).await;
        called.expect("no call of the catalog panics").map_err(|error| errors::of_catalog(&error))
    }

    /// Which boot of each guest speaks.
    pub fn boots(&self) -> &Boots {
        &self.boots
    }

    /// What the clock shows.
    pub fn now(&self) -> UnixMillis {
        self.clock.now()
    }

    /// Where decisions are written down.
    pub fn audit(&self) -> &Audit {
        &self.audit
    }
}
