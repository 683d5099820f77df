//! The page of memory that flow and keeper share. Whoever thaws a file system first moves its slot
//! from `Frozen` to `Thawing`; nobody else does it again. All zeros is the beginning.

use std::fs::File;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicI32, AtomicU32, AtomicU64, Ordering::SeqCst};

use rustix::io::Errno;
use rustix::mm::{MapFlags, ProtFlags};
use rustix::time::{ClockId, clock_gettime};

use super::ioctl;

/// How many file systems can be frozen at once.
pub(super) const SLOTS: usize = 64;

const IDLE: u32 = 0;
const FREEZING: u32 = 1;
const FROZEN: u32 = 2;
const THAWING: u32 = 3;
const DONE: u32 = 4;

/// One file system.
#[repr(C)]
pub(super) struct Slot {
    state: AtomicU32,
    freeze_errno: AtomicI32,
    thaw_errno: AtomicI32,
    freeze_at_ns: AtomicU64,
    freeze_took_ns: AtomicU64,
    thaw_at_ns: AtomicU64,
    thaw_took_ns: AtomicU64,
}

/// The page's contents.
#[repr(C)]
struct Page {
    /// Nothing more may be frozen, and what is frozen must be thawed.
    stop: AtomicU32,
    /// The deadline passed.
    expired: AtomicU32,
    slots: [Slot; SLOTS],
}

/// A system call on the keeper's clock, in nanoseconds.
#[derive(Debug, Clone, Copy)]
pub(super) struct RawCall {
    pub(super) at_ns: u64,
    pub(super) took_ns: u64,
    pub(super) errno: i32,
}

/// The page, mapped.
pub(super) struct Shared(&'static Page);

impl Shared {
    /// A new page, and the file to map it from in another process.
    pub(super) fn create() -> rustix::io::Result<(Self, File)> {
        let flags = rustix::fs::MemfdFlags::CLOEXEC;
        let file = File::from(rustix::fs::memfd_create("hostsnap-freeze", flags)?);
        rustix::fs::ftruncate(&file, size_of::<Page>() as u64)?;
        Ok((Self::map(&file)?, file))
    }

    /// The page of another process.
    pub(super) fn map(file: impl AsFd) -> rustix::io::Result<Self> {
        // SAFETY: a fresh mapping, of the size that `create` gave the file; nothing shrinks the
        // file; it is never unmapped, so it may live as long as the process (one page for each
        // create, in a process that makes few). Every field is atomic and valid for all bytes, so
        // that another process writes to it is fine.
        let page = unsafe {
            let address = rustix::mm::mmap(
                std::ptr::null_mut(),
                size_of::<Page>(),
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::SHARED,
                file,
                0,
            )?;
            &*address.cast::<Page>()
        };
        Ok(Self(page))
    }

    pub(super) fn slots(&self) -> &'static [Slot] {
        &self.0.slots
    }

    /// From now on nothing more is frozen.
    pub(super) fn stop(&self) {
        self.0.stop.store(1, SeqCst);
    }

    pub(super) fn is_stopped(&self) -> bool {
        self.0.stop.load(SeqCst) != 0
    }

    pub(super) fn expire(&self) {
        self.0.expired.store(1, SeqCst);
    }

    pub(super) fn is_expired(&self) -> bool {
        self.0.expired.load(SeqCst) != 0
    }

    /// Freezes in order until one fails or a stop is asked for. Whether all are frozen.
    pub(super) fn freeze_all(&self, files: &[File]) -> bool {
        for (file, slot) in files.iter().zip(self.slots()) {
            if self.is_stopped() {
                return false;
            }
            let result = slot.freeze(file);
            if self.is_stopped() {
                // Who asked for the stop may have looked before this one was frozen.
                slot.thaw(file);
                return false;
            }
            if result.is_err() {
                return false;
            }
        }
        true
    }

    /// Thaws in reverse what is frozen by us.
    pub(super) fn thaw_all(&self, files: &[File]) {
        for (file, slot) in files.iter().zip(self.slots()).rev() {
            slot.thaw(file);
        }
    }

    /// For the flow, after the keeper's end: a FIFREEZE that the keeper died in has come to its end
    /// as well, and nobody wrote down how. It is thawed: better a stranger's freeze released, in
    /// this one narrow case, than ours kept for ever.
    pub(super) fn thaw_after_keeper(&self, files: &[File]) {
        self.stop();
        for slot in self.slots() {
            let _ = slot.state.compare_exchange(FREEZING, FROZEN, SeqCst, SeqCst);
            let _ = slot.state.compare_exchange(THAWING, FROZEN, SeqCst, SeqCst);
        }
        self.thaw_all(files);
    }
}

impl Slot {
    fn freeze(&self, file: &File) -> rustix::io::Result<()> {
        let at = now_ns();
        self.freeze_at_ns.store(at, SeqCst);
        self.state.store(FREEZING, SeqCst);
        let result = ioctl::freeze(file);
        self.freeze_took_ns.store(now_ns().saturating_sub(at), SeqCst);
        self.freeze_errno.store(errno_of(result), SeqCst);
        self.state.store(if result.is_ok() { FROZEN } else { IDLE }, SeqCst);
        result
    }

    fn thaw(&self, file: &File) {
        if self.state.compare_exchange(FROZEN, THAWING, SeqCst, SeqCst).is_err() {
            return;
        }
        let at = now_ns();
        let result = ioctl::thaw(file);
        self.thaw_at_ns.store(at, SeqCst);
        self.thaw_took_ns.store(now_ns().saturating_sub(at), SeqCst);
        self.thaw_errno.store(errno_of(result), SeqCst);
        self.state.store(DONE, SeqCst);
    }

    /// FIFREEZE, if it was called and came back.
    pub(super) fn freeze_call(&self) -> Option<RawCall> {
        let call = RawCall {
            at_ns: self.freeze_at_ns.load(SeqCst),
            took_ns: self.freeze_took_ns.load(SeqCst),
            errno: self.freeze_errno.load(SeqCst),
        };
        (call.at_ns != 0 && self.state.load(SeqCst) != FREEZING).then_some(call)
    }

    /// FITHAW, if it was called.
    pub(super) fn thaw_call(&self) -> Option<RawCall> {
        let call = RawCall {
            at_ns: self.thaw_at_ns.load(SeqCst),
            took_ns: self.thaw_took_ns.load(SeqCst),
            errno: self.thaw_errno.load(SeqCst),
        };
        (self.state.load(SeqCst) == DONE).then_some(call)
    }
}

fn errno_of(result: Result<(), Errno>) -> i32 {
    result.err().map_or(0, Errno::raw_os_error)
}

/// A clock that goes on while the machine is suspended: a lease does so too.
pub(super) fn now_ns() -> u64 {
    let now = clock_gettime(ClockId::Boottime);
    u64::try_from(now.tv_sec).unwrap_or(0) * 1_000_000_000 + u64::try_from(now.tv_nsec).unwrap_or(0)
}
