//! The page of memory that flow and keeper share: how far the freeze has come, and the state of each
//! file system. It leaves to others who acts when; here is only who may.
//!
//! Two rules keep both sides from meeting:
//! - The *phase* goes forward only, by compare-and-swap. The first end wins, so "held" and "the
//!   deadline passed" exclude each other.
//! - Whoever thaws a file system claims its slot first. A claim is taken over only from a side that
//!   is dead, or still has not acted on it well after the deadline (it was stopped).

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::SeqCst};

use rustix::mm::{MapFlags, ProtFlags};

use super::clock::now_ns;
use super::slot::{Side, Slot};

/// How many file systems can be frozen at once: as many as a record has room for.
pub(super) const SLOTS: usize = 64;

/// How long after the deadline a claim is left to who made it.
const CLAIM_LIMIT_NS: u64 = 200_000_000;

// The phase. All zeros is the beginning.
const ARMED: u32 = 0;
const FREEZING: u32 = 1;
const FROZEN: u32 = 2;

/// Why the freeze is over, or will not come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub(super) enum End {
    /// The flow said so, with everything frozen and before the deadline: the only good end.
    Released = 3,
    /// The flow said so before everything was frozen.
    Dropped = 4,
    /// A FIFREEZE failed.
    Failed = 5,
    /// The deadline passed.
    Deadline = 6,
    /// The process that asked for the freeze ended.
    FlowGone = 7,
    /// The keeper ended.
    KeeperGone = 8,
    /// `hostsnap thaw` was called.
    Emergency = 9,
}

const ENDS: [End; 7] =
    [End::Released, End::Dropped, End::Failed, End::Deadline, End::FlowGone, End::KeeperGone, End::Emergency];

#[repr(C)]
struct Page {
    phase: AtomicU32,
    deadline_ns: AtomicU64,
    slots: [Slot; SLOTS],
}

/// The page, mapped.
pub(super) struct Shared {
    page: NonNull<Page>,
}

// SAFETY: the mapping belongs to the process, not to a thread, and all of it is atomics.
unsafe impl Send for Shared {}
// SAFETY: as above.
unsafe impl Sync for Shared {}

impl Drop for Shared {
    fn drop(&mut self) {
        // SAFETY: `map` made this mapping, of this size, and every reference into it borrows `self`.
        let unmapped = unsafe { rustix::mm::munmap(self.page.as_ptr().cast(), size_of::<Page>()) };
        debug_assert!(unmapped.is_ok());
    }
}

impl Shared {
    /// A new page, and the file to map it from in another process.
    pub(super) fn create() -> rustix::io::Result<(Self, OwnedFd)> {
        use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, ftruncate, memfd_create};
        let file = memfd_create("hostsnap-freeze", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
        ftruncate(&file, size_of::<Page>() as u64)?;
        // A file that shrank would turn an access into SIGBUS.
        fcntl_add_seals(&file, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)?;
        Ok((Self::map(&file)?, file))
    }

    /// The page that another process created.
    pub(super) fn map(file: impl AsFd) -> rustix::io::Result<Self> {
        // SAFETY: a fresh mapping at an address of the kernel's choice takes nobody's memory.
        let address = unsafe {
            rustix::mm::mmap(
                std::ptr::null_mut(),
                size_of::<Page>(),
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::SHARED | MapFlags::POPULATE,
                file,
                0,
            )?
        };
        let page = NonNull::new(address.cast()).expect("mmap does not return null");
        Ok(Self { page })
    }

    fn page(&self) -> &Page {
        // SAFETY: mapped until drop, of this size, which a seal keeps. Every field is an atomic and
        // valid for all bytes, so that another process writes to it is no data race.
        unsafe { self.page.as_ref() }
    }

    pub(super) fn slots(&self) -> &[Slot] {
        &self.page().slots
    }

    pub(super) fn deadline_ns(&self) -> u64 {
        self.page().deadline_ns.load(SeqCst)
    }

    /// From armed to freezing, with this deadline. `false` if it has ended already.
    pub(super) fn begin(&self, deadline_ns: u64) -> bool {
        self.page().deadline_ns.store(deadline_ns, SeqCst);
        self.step(ARMED, FREEZING)
    }

    /// Whether FIFREEZE may be called.
    pub(super) fn is_freezing(&self) -> bool {
        self.page().phase.load(SeqCst) == FREEZING
    }

    /// Whether everything is frozen, and nothing has been thawed yet.
    pub(super) fn is_frozen(&self) -> bool {
        self.page().phase.load(SeqCst) == FROZEN
    }

    /// The flow's good end. Anything else that came first stays, the deadline included.
    pub(super) fn release(&self) {
        if now_ns() >= self.deadline_ns() || !self.step(FROZEN, End::Released as u32) {
            self.end(if self.is_frozen() { End::Deadline } else { End::Dropped });
        }
    }

    /// Nothing more may be frozen, and what is must be thawed; for this reason, unless there is one.
    pub(super) fn end(&self, why: End) {
        for phase in [ARMED, FREEZING, FROZEN] {
            self.step(phase, why as u32);
        }
    }

    /// Why it ended, if it has.
    pub(super) fn ended(&self) -> Option<End> {
        let phase = self.page().phase.load(SeqCst);
        ENDS.into_iter().find(|end| *end as u32 == phase)
    }

    fn step(&self, from: u32, to: u32) -> bool {
        self.page().phase.compare_exchange(from, to, SeqCst, SeqCst).is_ok()
    }

    /// The keeper's work before: what was written since the flush, while the keeper started, and whoever wanted
    /// the processor had it, is written back before applications wait; and what can't be written is told.
    pub(super) fn flush(&self, files: &[File], index: usize) {
        if self.is_freezing() && !self.slots()[index].flush(&files[index]) {
            self.end(End::Failed);
        }
    }

    /// The keeper's work: FIFREEZE of one, unless the freeze has ended.
    ///
    /// Whoever ends the freeze changes the phase and then looks at the slots; here the slot is
    /// changed and then the phase looked at. So at least one of the two sees the other, and no
    /// file system is left frozen between them.
    pub(super) fn freeze(&self, files: &[File], index: usize) {
        if !self.is_freezing() {
            return;
        }
        if !self.slots()[index].freeze(&files[index]) {
            self.end(End::Failed);
        }
        if !self.is_freezing() {
            self.thaw_all(files, Side::Keeper);
        }
    }

    /// After the last [`Self::freeze`]: whether all are frozen. If not, those that were are thawed.
    pub(super) fn all_frozen(&self, files: &[File]) -> bool {
        if self.step(FREEZING, FROZEN) {
            return true;
        }
        self.thaw_all(files, Side::Keeper);
        false
    }

    /// Notes the rank of each file system, for the keeper.
    pub(super) fn set_ranks(&self, ranks: impl Iterator<Item = u32>) {
        for (slot, rank) in self.slots().iter().zip(ranks) {
            slot.set_rank(rank);
        }
    }

    /// The ranks of the first so many file systems.
    pub(super) fn ranks(&self, count: usize) -> Vec<u32> {
        self.slots().iter().take(count).map(Slot::rank).collect()
    }

    /// FITHAW, in reverse, of what is frozen by us and not claimed by anybody.
    pub(super) fn thaw_all(&self, files: &[File], side: Side) {
        for (file, slot) in files.iter().zip(self.slots()).rev() {
            slot.thaw(file, side);
        }
    }

    /// Thaws in the other side's stead what it had claimed: it is dead, or was stopped between the
    /// claim and FITHAW. If it comes to its FITHAW after all, one of both fails with EINVAL, and
    /// the freeze counts as not held.
    pub(super) fn take_over_claims(&self, files: &[File], from: Side, side: Side) {
        for slot in self.slots() {
            slot.give_up(from);
        }
        self.thaw_all(files, side);
    }

    /// For the flow, when the keeper is dead: takes over everything. What the keeper was freezing
    /// when it died has come to its end as well, and nobody wrote down how; it is thawed.
    /// Somebody else's freeze can be released so, if the keeper died in the very call that was to
    /// return EBUSY: better that than ours kept for ever.
    pub(super) fn take_over_from_dead_keeper(&self, files: &[File]) {
        for slot in self.slots() {
            slot.assume_frozen();
        }
        self.take_over_claims(files, Side::Keeper, Side::Flow);
    }

    /// Whether the deadline is so far behind that a claim from before it will come to nothing.
    pub(super) fn is_long_over(&self) -> bool {
        let deadline_ns = self.deadline_ns();
        deadline_ns != 0 && now_ns() >= deadline_ns.saturating_add(CLAIM_LIMIT_NS)
    }

    /// Whether nothing is frozen by us, nor about to be thawed. A FIFREEZE that has not come back
    /// counts as neither: it may take for ever.
    pub(super) fn is_settled(&self) -> bool {
        self.slots().iter().all(Slot::is_settled)
    }

    /// Whether a FIFREEZE is in the kernel.
    pub(super) fn is_in_fifreeze(&self) -> bool {
        self.slots().iter().any(Slot::is_in_fifreeze)
    }
}
