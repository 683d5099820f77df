//! One file system's slot in the shared page: its state, who thaws it, and what the calls came to.
//!
//! ```text
//! idle ─► in syncfs ─► idle
//! idle ─► in FIFREEZE ─► frozen ─► claimed (by flow or keeper) ─► thawed
//!                   └──► not frozen
//! ```

use std::fs::File;
use std::sync::atomic::{AtomicI32, AtomicU32, AtomicU64, Ordering::SeqCst};

use rustix::io::Errno;

use super::clock::now_ns;
use super::ioctl;

/// Who acts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Side {
    Flow,
    Keeper,
}

// A slot's state.
const IDLE: u32 = 0;
const IN_FIFREEZE: u32 = 1;
const IS_FROZEN: u32 = 2;
const CLAIMED_BY_FLOW: u32 = 3;
const CLAIMED_BY_KEEPER: u32 = 4;
const IS_THAWED: u32 = 5;
const NOT_FROZEN: u32 = 6;
const IN_SYNCFS: u32 = 7;

impl Side {
    const fn claim(self) -> u32 {
        match self {
            Self::Flow => CLAIMED_BY_FLOW,
            Self::Keeper => CLAIMED_BY_KEEPER,
        }
    }
}

/// One file system.
#[repr(C)]
pub(super) struct Slot {
    rank: AtomicU32,
    state: AtomicU32,
    freeze_errno: AtomicI32,
    thaw_errno: AtomicI32,
    freeze_at_ns: AtomicU64,
    freeze_took_ns: AtomicU64,
    thaw_at_ns: AtomicU64,
    thaw_took_ns: AtomicU64,
}

/// A system call, in nanoseconds of the shared clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct RawCall {
    pub(super) at_ns: u64,
    pub(super) took_ns: u64,
    pub(super) errno: i32,
}

impl Slot {
    /// `syncfs`, shortly before FIFREEZE. Its failure is told as that of FIFREEZE, which would not tell it.
    /// Whether it may be frozen.
    pub(super) fn flush(&self, file: &File) -> bool {
        let at = now_ns();
        self.state.store(IN_SYNCFS, SeqCst);
        let result = rustix::fs::syncfs(file);
        if result.is_err() {
            self.freeze_at_ns.store(at, SeqCst);
            self.freeze_took_ns.store(now_ns().saturating_sub(at), SeqCst);
            self.freeze_errno.store(errno_of(result), SeqCst);
        }
        self.state.store(if result.is_ok() { IDLE } else { NOT_FROZEN }, SeqCst);
        result.is_ok()
    }

    /// FIFREEZE. Whether it is frozen now.
    pub(super) fn freeze(&self, file: &File) -> bool {
        let at = now_ns();
        self.freeze_at_ns.store(at, SeqCst);
        self.state.store(IN_FIFREEZE, SeqCst);
        let result = ioctl::freeze(file);
        self.freeze_took_ns.store(now_ns().saturating_sub(at), SeqCst);
        self.freeze_errno.store(errno_of(result), SeqCst);
        self.state.store(if result.is_ok() { IS_FROZEN } else { NOT_FROZEN }, SeqCst);
        result.is_ok()
    }

    /// FITHAW, if it is frozen and nobody has claimed it.
    pub(super) fn thaw(&self, file: &File, side: Side) {
        if !self.step(IS_FROZEN, side.claim()) {
            return;
        }
        let at = now_ns();
        let result = ioctl::thaw(file);
        self.thaw_at_ns.store(at, SeqCst);
        self.thaw_took_ns.store(now_ns().saturating_sub(at), SeqCst);
        self.thaw_errno.store(errno_of(result), SeqCst);
        self.state.store(IS_THAWED, SeqCst);
    }

    pub(super) fn rank(&self) -> u32 {
        self.rank.load(SeqCst)
    }

    pub(super) fn set_rank(&self, rank: u32) {
        self.rank.store(rank, SeqCst);
    }

    /// In the place of a side that does not come to the thaw that it claimed.
    pub(super) fn give_up(&self, side: Side) {
        self.step(side.claim(), IS_FROZEN);
    }

    /// In the place of a keeper that died in FIFREEZE.
    pub(super) fn assume_frozen(&self) {
        self.step(IN_FIFREEZE, IS_FROZEN);
    }

    /// Whether it is neither frozen by us nor about to be thawed.
    pub(super) fn is_settled(&self) -> bool {
        !matches!(self.state.load(SeqCst), IS_FROZEN | CLAIMED_BY_FLOW | CLAIMED_BY_KEEPER)
    }

    fn step(&self, from: u32, to: u32) -> bool {
        self.state.compare_exchange(from, to, SeqCst, SeqCst).is_ok()
    }

    /// Whether FIFREEZE, or the write-back before it, has been called and not come back.
    pub(super) fn is_in_fifreeze(&self) -> bool {
        matches!(self.state.load(SeqCst), IN_FIFREEZE | IN_SYNCFS)
    }

    /// FIFREEZE, if it was called and came back.
    pub(super) fn freeze_call(&self) -> Option<RawCall> {
        let state = self.state.load(SeqCst);
        (!matches!(state, IDLE | IN_SYNCFS | IN_FIFREEZE)).then(|| RawCall {
            at_ns: self.freeze_at_ns.load(SeqCst),
            took_ns: self.freeze_took_ns.load(SeqCst),
            errno: self.freeze_errno.load(SeqCst),
        })
    }

    /// FITHAW, if it was called and came back.
    pub(super) fn thaw_call(&self) -> Option<RawCall> {
        (self.state.load(SeqCst) == IS_THAWED).then(|| RawCall {
            at_ns: self.thaw_at_ns.load(SeqCst),
            took_ns: self.thaw_took_ns.load(SeqCst),
            errno: self.thaw_errno.load(SeqCst),
        })
    }
}

fn errno_of(result: Result<(), Errno>) -> i32 {
    result.err().map_or(0, Errno::raw_os_error)
}
