//! One open image.

use std::ffi::{CStr, c_char, c_int, c_void};
use std::ptr::{null, null_mut};
use std::sync::Arc;
use std::sync::mpsc::Sender;

use rustix::io::Errno;

use super::cluster::Pool;
use super::{Handle, LinkedImageSpec, SnapInfo, Watcher, check, fault, text};
use crate::drivers::{DriverError, Extent};

/// The longest name of an image, in bytes, with its final zero (librbd.h has 96; images can be longer).
const NAME_LIMIT: usize = 4096;
/// `RBD_SNAP_CREATE_SKIP_QUIESCE`: the guest quiesces itself; who maps the image elsewhere is not asked.
const SKIP_QUIESCE: u32 = 1;

/// `RBD_FEATURE_EXCLUSIVE_LOCK`
const EXCLUSIVE_LOCK: u64 = 1 << 2;
/// `RBD_LOCK_MODE_EXCLUSIVE`
const EXCLUSIVE: c_int = 0;

/// For what an image is opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::drivers::rbd) enum For {
    /// To look at it: leaves no trace.
    Reading,
    /// To snapshot it: the cluster sees a watcher.
    Cutting,
}

/// An open image.
pub(in crate::drivers::rbd) struct Image {
    pool: Arc<Pool>,
    handle: Handle,
    /// What we call it in errors.
    called: String,
}

// SAFETY: librbd guards an image by its own locks; any thread may use the handle.
unsafe impl Send for Image {}
// SAFETY: as above, and several at once.
unsafe impl Sync for Image {}

impl Drop for Image {
    fn drop(&mut self) {
        // SAFETY: nobody else has the handle, and the pool lives on.
        let closed = unsafe { (self.pool.api.rbd_close)(self.handle) };
        if closed < 0 {
            tracing::debug!(
                "close the image {}: {}",
                self.called,
                fault(String::new(), closed.unsigned_abs())
            );
        }
    }
}

/// A snapshot that somebody made by name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::drivers::rbd) struct Snapshot {
    pub(in crate::drivers::rbd) id: u64,
    pub(in crate::drivers::rbd) name: String,
}

impl Image {
    /// Opens an image by its name.
    pub(in crate::drivers::rbd) fn by_name(
        pool: &Arc<Pool>,
        name: &str,
        what: For,
    ) -> Result<Self, DriverError> {
        let open = match what {
            For::Reading => pool.api.rbd_open_read_only,
            For::Cutting => pool.api.rbd_open,
        };
        Self::open(pool, name, open)
    }

    /// Opens an image by its identifier, which stays when it is renamed.
    pub(in crate::drivers::rbd) fn by_id(pool: &Arc<Pool>, id: &str, what: For) -> Result<Self, DriverError> {
        let open = match what {
            For::Reading => pool.api.rbd_open_by_id_read_only,
            For::Cutting => pool.api.rbd_open_by_id,
        };
        Self::open(pool, id, open)
    }

    fn open(
        pool: &Arc<Pool>,
        called: &str,
        open: unsafe extern "C" fn(Handle, *const c_char, *mut Handle, *const c_char) -> c_int,
    ) -> Result<Self, DriverError> {
        let name = text(called)?;
        let mut handle = null_mut();
        // SAFETY: `handle` is written before it is used; no snapshot is named.
        let opened = unsafe { open(pool.io, name.as_ptr(), &raw mut handle, null()) };
        check(opened, || format!("open the image {called}"))?;
        Ok(Self { pool: Arc::clone(pool), handle, called: called.to_owned() })
    }

    fn check(&self, answer: c_int, doing: &str) -> Result<c_int, DriverError> {
        check(answer, || format!("{doing} of the image {}", self.called))
    }

    /// Its identifier. Images of the old format 1 have none: EINVAL.
    pub(in crate::drivers::rbd) fn id(&self) -> Result<String, DriverError> {
        let mut id = [0_u8; 128];
        // SAFETY: room for as many bytes as is said, terminated by librbd.
        let got = unsafe { (self.pool.api.rbd_get_id)(self.handle, id.as_mut_ptr().cast(), id.len()) };
        self.check(got, "read the identifier")?;
        Ok(until_zero(&id))
    }

    /// Its name now.
    pub(in crate::drivers::rbd) fn name(&self) -> Result<String, DriverError> {
        let mut name = vec![0_u8; NAME_LIMIT];
        let mut len = name.len();
        // SAFETY: room for as many bytes as is said, terminated by librbd.
        let got =
            unsafe { (self.pool.api.rbd_get_name)(self.handle, name.as_mut_ptr().cast(), &raw mut len) };
        self.check(got, "read the name")?;
        Ok(until_zero(&name))
    }

    /// Its size, in bytes.
    pub(in crate::drivers::rbd) fn size_bytes(&self) -> Result<u64, DriverError> {
        let mut size = 0;
        // SAFETY: one number is written.
        let got = unsafe { (self.pool.api.rbd_get_size)(self.handle, &raw mut size) };
        self.check(got, "read the size")?;
        Ok(size)
    }

    /// Its first bytes: at most `len`, fewer of a smaller image.
    pub(in crate::drivers::rbd) fn head(&self, len: usize) -> Result<Vec<u8>, DriverError> {
        let len = usize::try_from(self.size_bytes()?).map_or(len, |size| size.min(len));
        let mut head = vec![0_u8; len];
        // SAFETY: room for as many bytes as is said.
        let got = unsafe { (self.pool.api.rbd_read)(self.handle, 0, len, head.as_mut_ptr().cast()) };
        let read = c_int::try_from(got).expect("a head is small");
        self.check(read, "read the beginning")?;
        head.truncate(usize::try_from(read).expect("checked: not negative"));
        Ok(head)
    }

    /// Snapshots it. The owner of its exclusive lock, a QEMU say, does it on our behalf.
    pub(in crate::drivers::rbd) fn snapshot(&self, name: &CStr) -> Result<(), DriverError> {
        // SAFETY: no callback, so nothing of ours is kept.
        let made = unsafe {
            (self.pool.api.rbd_snap_create2)(self.handle, name.as_ptr(), SKIP_QUIESCE, None, null_mut())
        };
        check(made, || format!("snapshot the image {}", self.called)).map(|_| ())
    }

    /// Removes a snapshot; whether it was there.
    pub(in crate::drivers::rbd) fn remove_snapshot(&self, name: &str) -> Result<bool, DriverError> {
        let c_name = text(name)?;
        // SAFETY: only the text is passed.
        let removed = unsafe { (self.pool.api.rbd_snap_remove)(self.handle, c_name.as_ptr()) };
        if removed == -Errno::NOENT.raw_os_error() {
            return Ok(false);
        }
        self.check(removed, &format!("remove the snapshot {name}"))?;
        Ok(true)
    }

    /// The snapshots that were made by name: not those of groups, mirrors and the trash.
    pub(in crate::drivers::rbd) fn snapshots(&self) -> Result<Vec<Snapshot>, DriverError> {
        let mut room: c_int = 64;
        loop {
            let capacity = usize::try_from(room).expect("positive");
            let mut infos: Vec<SnapInfo> = Vec::with_capacity(capacity);
            // SAFETY: `infos` has room for `room` of them.
            let listed =
                unsafe { (self.pool.api.rbd_snap_list)(self.handle, infos.as_mut_ptr(), &raw mut room) };
            if listed == -Errno::RANGE.raw_os_error() {
                room = room.max(capacity as c_int + 1);
                continue;
            }
            let count =
                usize::try_from(self.check(listed, "list the snapshots")?).expect("checked: not negative");
            // SAFETY: librbd wrote `count` of them.
            unsafe { infos.set_len(count) };
            let snapshots = infos.iter().map(|info| {
                // SAFETY: a terminated text.
                let name = unsafe { CStr::from_ptr(info.name) }.to_string_lossy().into_owned();
                Snapshot { id: info.id, name }
            });
            let snapshots = snapshots.collect();
            if count > 0 {
                // SAFETY: written by the call above, freed once. It wants the element after the last
                // to have no name: there is room, since librbd asks for one more than it writes.
                unsafe { (self.pool.api.rbd_snap_list_end)(infos.as_mut_ptr()) };
            }
            return Ok(snapshots);
        }
    }

    /// Whether somebody protected this snapshot from being removed.
    pub(in crate::drivers::rbd) fn is_protected(&self, name: &str) -> Result<bool, DriverError> {
        let mut protected = 0;
        let c_name = text(name)?;
        // SAFETY: one number is written.
        let got = unsafe {
            (self.pool.api.rbd_snap_is_protected)(self.handle, c_name.as_ptr(), &raw mut protected)
        };
        self.check(got, &format!("look at the snapshot {name}"))?;
        Ok(protected != 0)
    }

    /// An image that was cloned from this snapshot, if there is one. The image is at that snapshot
    /// afterwards: use one that is opened for this.
    pub(in crate::drivers::rbd) fn a_clone_of(&self, snapshot: u64) -> Result<Option<String>, DriverError> {
        // SAFETY: only a number is passed.
        let set = unsafe { (self.pool.api.rbd_snap_set_by_id)(self.handle, snapshot) };
        self.check(set, "look at a snapshot")?;
        let mut room = 16_usize;
        loop {
            let mut specs: Vec<LinkedImageSpec> = Vec::with_capacity(room);
            let mut count = room;
            // SAFETY: `specs` has room for `count` of them.
            let listed = unsafe {
                (self.pool.api.rbd_list_children3)(self.handle, specs.as_mut_ptr(), &raw mut count)
            };
            if listed == -Errno::RANGE.raw_os_error() {
                room = count.max(room * 2);
                continue;
            }
            self.check(listed, "list the clones")?;
            // SAFETY: librbd wrote `count` of them.
            unsafe { specs.set_len(count) };
            let first = specs.first().map(|spec| {
                // SAFETY: two terminated texts.
                let [pool, image] = [spec.pool_name, spec.image_name]
                    .map(|text| unsafe { CStr::from_ptr(text) }.to_string_lossy());
                format!("{pool}/{image}")
            });
            // SAFETY: written by the call above, freed once.
            unsafe { (self.pool.api.rbd_linked_image_spec_list_cleanup)(specs.as_mut_ptr(), count) };
            return Ok(first);
        }
    }

    /// Its size at this snapshot, in bytes. The image is at that snapshot afterwards.
    pub(in crate::drivers::rbd) fn size_at(&self, snapshot: u64) -> Result<u64, DriverError> {
        // SAFETY: only a number is passed.
        let set = unsafe { (self.pool.api.rbd_snap_set_by_id)(self.handle, snapshot) };
        self.check(set, "look at a snapshot")?;
        self.size_bytes()
    }

    /// What of its first bytes, at the snapshot that it is at, was written since the snapshot of this name.
    pub(in crate::drivers::rbd) fn changed_since(
        &self,
        older: &str,
        size_bytes: u64,
    ) -> Result<Vec<Extent>, DriverError> {
        /// Adds one to the list; it allocates, and does not panic otherwise.
        unsafe extern "C" fn add(offset: u64, length: usize, _: c_int, list: *mut c_void) -> c_int {
            // SAFETY: `list` is the vector below, which nobody else uses during the call: librbd calls back from
            // one thread at a time (librbd `DiffIterate.cc`, its own lock).
            let list = unsafe { &mut *list.cast::<Vec<Extent>>() };
            list.push(Extent { offset, length: length as u64 });
            0
        }
        let name = text(older)?;
        let mut list: Vec<Extent> = Vec::new();
        // SAFETY: the list outlives the call, and `add` is as librbd wants it.
        let done = unsafe {
            (self.pool.api.rbd_diff_iterate2)(
                self.handle,
                name.as_ptr(),
                0,
                size_bytes,
                1,
                0,
                add,
                (&raw mut list).cast(),
            )
        };
        self.check(done, &format!("compare with the snapshot {older}"))?;
        Ok(list)
    }

    /// Whether one client at a time may write to it, where they ask each other for it.
    pub(in crate::drivers::rbd) fn has_exclusive_lock(&self) -> Result<bool, DriverError> {
        let mut features = 0;
        // SAFETY: one number is written.
        let got = unsafe { (self.pool.api.rbd_get_features)(self.handle, &raw mut features) };
        self.check(got, "read the features")?;
        Ok(features & EXCLUSIVE_LOCK != 0)
    }

    /// Takes the exclusive lock from who has it and gives it, and keeps it until the image is closed: writes of others
    /// fail meanwhile.
    pub(in crate::drivers::rbd) fn lock(&self) -> Result<(), DriverError> {
        // SAFETY: only a number is passed.
        let locked = unsafe { (self.pool.api.rbd_lock_acquire)(self.handle, EXCLUSIVE) };
        self.check(locked, "take the exclusive lock").map(|_| ())
    }

    /// Makes it what it was at this snapshot; it must be locked. `tell` hears how many objects were begun, of how many.
    /// Each of them may take as long as one answer of the cluster may.
    pub(in crate::drivers::rbd) fn roll_back(
        &self,
        snapshot: &str,
        tell: Sender<(u64, u64)>,
    ) -> Result<(), DriverError> {
        /// Passes it on; it does not panic. Who hears no more does not stop it.
        unsafe extern "C" fn pass_on(done: u64, of: u64, tell: *mut c_void) -> c_int {
            // SAFETY: `tell` is the sender below, which may be used by several threads at once.
            let tell = unsafe { &*tell.cast::<Sender<(u64, u64)>>() };
            let _ = tell.send((done, of));
            0
        }
        let name = text(snapshot)?;
        // SAFETY: the sender outlives the call, in which all calls of `pass_on` are made, and is only shared.
        let rolled_back = unsafe {
            (self.pool.api.rbd_snap_rollback_with_progress)(
                self.handle,
                name.as_ptr(),
                Some(pass_on),
                (&raw const tell).cast_mut().cast(),
            )
        };
        self.check(rolled_back, &format!("roll back to the snapshot {snapshot}")).map(|_| ())
    }

    /// The clients that have the image open for more than reading.
    pub(in crate::drivers::rbd) fn watchers(&self) -> Result<Vec<u64>, DriverError> {
        let mut room = 16_usize;
        loop {
            let mut found: Vec<Watcher> = Vec::with_capacity(room);
            let mut count = room;
            // SAFETY: `found` has room for `count` of them.
            let listed =
                unsafe { (self.pool.api.rbd_watchers_list)(self.handle, found.as_mut_ptr(), &raw mut count) };
            if listed == -Errno::RANGE.raw_os_error() {
                room = count.max(room * 2);
                continue;
            }
            self.check(listed, "list the watchers")?;
            // SAFETY: librbd wrote `count` of them.
            unsafe { found.set_len(count) };
            let clients = found.iter().map(|watcher| watcher.id.cast_unsigned()).collect();
            // SAFETY: written by the call above, freed once.
            unsafe { (self.pool.api.rbd_watchers_list_cleanup)(found.as_mut_ptr(), count) };
            return Ok(clients);
        }
    }
}

fn until_zero(bytes: &[u8]) -> String {
    let len = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
    String::from_utf8_lossy(&bytes[..len]).into_owned()
}
