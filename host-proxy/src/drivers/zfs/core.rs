//! libzfs_core, loaded when the first store needs it: a host without ZFS does not. One call of it is one
//! request to the kernel, for many snapshots at once, and all of them or none.
//!
//! All unsafe code of the driver is here and in [`super::volume`]. Declarations follow `libzfs_core.h`
//! and `sys/nvpair.h` of OpenZFS; only functions that are there since 0.8 are used, and their interface is
//! committed (libzfs_core.c, "The commonly used API is stable").
//!
//! What makes the calls sound, and is not said again at each:
//! - the library is never unloaded, so a function's address stays valid;
//! - an `Nvlist` is owned by one value, made by a call that succeeded and released by its `Drop`;
//! - the library may be called by several threads at once (libzfs_core.c, "Thread Safe"), and a list is
//!   used by one at a time;
//! - texts are `CStr`s that outlive the call, and the lists copy them.

use std::collections::BTreeSet;
use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::ptr::{self, NonNull};
use std::sync::OnceLock;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::Duration;

use libloading::Library;
use rustix::io::Errno;

use crate::drivers::{DriverError, Kind};

/// How long the kernel may take for one request. It waits for the pool to write down all that is dirty.
const LIMIT: Duration = Duration::from_secs(50);
/// On each snapshot that is whole: nobody removes it by accident (`zfs holds`).
pub(super) const HOLD: &str = "hostsnap";

type Raw = *mut c_void;

macro_rules! functions {
    ($(fn $name:ident($($argument:ty),*) -> $result:ty;)*) => {
        /// The functions that the driver calls, by their names in C.
        struct Api {
            $($name: unsafe extern "C" fn($($argument),*) -> $result,)*
            nvlist_free: unsafe extern "C" fn(Raw),
        }

        impl Api {
            fn load(name: &str) -> Result<Self, libloading::Error> {
                // SAFETY: the initialisers of it and of libnvpair, which it brings along, only set up their own state.
                let library = unsafe { Library::new(name)? };
                let api = Self {
                    // SAFETY: each name is declared as in the library's header.
                    $($name: unsafe { *library.get(concat!(stringify!($name), "\0").as_bytes())? },)*
                    // SAFETY: as above.
                    nvlist_free: unsafe { *library.get(b"nvlist_free\0")? },
                };
                // Never unloaded: see above.
                std::mem::forget(library);
                Ok(api)
            }
        }
    };
}

functions! {
    fn libzfs_core_init() -> c_int;
    fn lzc_snapshot(Raw, Raw, *mut Raw) -> c_int;
    fn lzc_destroy_snaps(Raw, c_int, *mut Raw) -> c_int;
    fn lzc_hold(Raw, c_int, *mut Raw) -> c_int;
    fn lzc_release(Raw, *mut Raw) -> c_int;
    fn lzc_sync(*const c_char, Raw, *mut Raw) -> c_int;
    fn lzc_exists(*const c_char) -> c_int;
    fn nvlist_alloc(*mut Raw, u32, c_int) -> c_int;
    fn nvlist_add_boolean(Raw, *const c_char) -> c_int;
    fn nvlist_add_boolean_value(Raw, *const c_char, c_int) -> c_int;
    fn nvlist_add_string(Raw, *const c_char, *const c_char) -> c_int;
    fn nvlist_add_nvlist(Raw, *const c_char, Raw) -> c_int;
    fn nvlist_next_nvpair(Raw, Raw) -> Raw;
    fn nvpair_name(Raw) -> *const c_char;
    fn nvpair_value_int32(Raw, *mut i32) -> c_int;
}

/// A list of names and values, as the library takes it.
struct Nvlist(NonNull<c_void>);

// SAFETY: a list is plain memory, not bound to the thread that made it.
unsafe impl Send for Nvlist {}
// SAFETY: a shared list is only read.
unsafe impl Sync for Nvlist {}

impl Drop for Nvlist {
    fn drop(&mut self) {
        if let Some(api) = API.get() {
            // SAFETY: it is ours, and nobody uses it any more.
            unsafe { (api.nvlist_free)(self.0.as_ptr()) }
        }
    }
}

static API: OnceLock<Api> = OnceLock::new();

/// The library, loaded now if it was not.
pub(super) fn load() -> Result<(), DriverError> {
    match API.get() {
        Some(_) => Ok(()),
        None => load_from("libzfs_core.so.3").map(|api| {
            let _ = API.set(api);
        }),
    }
}

fn load_from(name: &str) -> Result<Api, DriverError> {
    Api::load(name).map_err(|error| DriverError {
        source: Some(Box::new(error)),
        ..DriverError::new(
            Kind::Unsupported,
            "load libzfs_core, version 0.8 of OpenZFS or newer: install zfsutils-linux (Debian, Ubuntu) or zfs",
        )
    })
}

/// The library, connected to the kernel.
fn api() -> Result<&'static Api, DriverError> {
    static CONNECTED: OnceLock<()> = OnceLock::new();
    load()?;
    let api = API.get().expect("it was loaded");
    if CONNECTED.get().is_none() {
        // SAFETY: takes nothing; it counts how often it is called.
        match unsafe { (api.libzfs_core_init)() } {
            0 => CONNECTED.get_or_init(|| ()),
            errno => {
                let doing = "open /dev/zfs: is the module loaded? modprobe zfs".to_owned();
                return Err(DriverError::io(doing, Errno::from_raw_os_error(errno)));
            }
        };
    }
    Ok(api)
}

fn text(text: &str) -> Result<CString, DriverError> {
    CString::new(text)
        .map_err(|_| DriverError::new(Kind::NotFound, format!("use the name {text:?}: it holds a zero byte")))
}

impl Nvlist {
    fn raw(&self) -> Raw {
        self.0.as_ptr()
    }

    /// An empty list, in which a name stands once.
    fn new(api: &Api) -> Result<Self, DriverError> {
        const UNIQUE_NAMES: u32 = 1;
        let mut list = ptr::null_mut();
        // SAFETY: writes a list to where it is told to.
        let answer = unsafe { (api.nvlist_alloc)(&raw mut list, UNIQUE_NAMES, 0) };
        NonNull::new(list).filter(|_| answer == 0).map(Self).ok_or_else(no_memory)
    }

    fn names<'a>(api: &Api, names: impl IntoIterator<Item = &'a str>) -> Result<Self, DriverError> {
        let list = Self::new(api)?;
        for name in names {
            let name = text(name)?;
            // SAFETY: a list of ours and a text.
            check_memory(unsafe { (api.nvlist_add_boolean)(list.raw(), name.as_ptr()) })?;
        }
        Ok(list)
    }

    fn texts<'a>(
        api: &Api,
        pairs: impl IntoIterator<Item = (&'a str, &'a str)>,
    ) -> Result<Self, DriverError> {
        let list = Self::new(api)?;
        for (name, value) in pairs {
            let (name, value) = (text(name)?, text(value)?);
            // SAFETY: a list of ours and two texts.
            check_memory(unsafe { (api.nvlist_add_string)(list.raw(), name.as_ptr(), value.as_ptr()) })?;
        }
        Ok(list)
    }

    fn lists<'a>(
        api: &Api,
        names: impl IntoIterator<Item = &'a str>,
        of: &Self,
    ) -> Result<Self, DriverError> {
        let list = Self::new(api)?;
        for name in names {
            let name = text(name)?;
            // SAFETY: two lists of ours, of which the second is copied, and a text.
            check_memory(unsafe { (api.nvlist_add_nvlist)(list.raw(), name.as_ptr(), of.raw()) })?;
        }
        Ok(list)
    }

    /// The first name that failed, with its `errno`.
    fn first_failure(&self, api: &Api) -> Option<(String, i32)> {
        let mut pair = ptr::null_mut();
        loop {
            // SAFETY: walks a list that is not changed meanwhile.
            pair = unsafe { (api.nvlist_next_nvpair)(self.raw(), pair) };
            if pair.is_null() {
                return None;
            }
            let mut errno = 0;
            // SAFETY: a pair of a living list; the name lives as long as that.
            let (answer, name) = unsafe {
                ((api.nvpair_value_int32)(pair, &raw mut errno), CStr::from_ptr((api.nvpair_name)(pair)))
            };
            if answer == 0 {
                return Some((name.to_string_lossy().into_owned(), errno));
            }
        }
    }
}

fn no_memory() -> DriverError {
    DriverError::io("make a list for libzfs_core", Errno::NOMEM)
}

fn check_memory(answer: c_int) -> Result<(), DriverError> {
    if answer == 0 { Ok(()) } else { Err(no_memory()) }
}

/// Calls the library and makes an error of what it answers: an `errno`, and which name it was.
fn call(api: &Api, doing: &str, call: impl FnOnce(*mut Raw) -> c_int) -> Result<(), DriverError> {
    let mut told = ptr::null_mut();
    let answer = call(&raw mut told);
    let told = NonNull::new(told).map(Nvlist);
    if answer == 0 {
        return Ok(());
    }
    let (name, errno) = match told.and_then(|list| list.first_failure(api)) {
        Some((name, errno)) => (format!(": {name}"), errno),
        None => (String::new(), answer),
    };
    Err(fault(format!("{doing}{name}"), Errno::from_raw_os_error(errno)))
}

/// What an `errno` of ZFS means to whoever has to mend it.
fn fault(doing: String, errno: Errno) -> DriverError {
    let (kind, more) = match errno {
        Errno::NOSPC => (Kind::NoSpace, "; zfs list -o space"),
        Errno::DQUOT => {
            (Kind::NoSpace, ": its snapshot_limit is reached; zfs get -r snapshot_limit,snapshot_count")
        }
        // EEXIST of destroy: it has clones.
        Errno::ROFS => (Kind::Unsupported, ": the pool is read-only; zpool get readonly"),
        Errno::SRCH => (Kind::NotFound, ""),
        _ => return DriverError::io(doing, errno),
    };
    DriverError { kind, ..DriverError::io(format!("{doing}{more}"), errno) }
}

/// Runs it on a thread of its own: the kernel does not come back from a pool that is suspended. What comes
/// back after its limit goes to `late`.
fn limited<T: Send + 'static>(
    doing: &str,
    limit: Duration,
    work: impl FnOnce() -> T + Send + 'static,
    late: impl FnOnce(T) + Send + 'static,
) -> Result<T, DriverError> {
    let (sender, receiver) = mpsc::channel();
    let run = move || {
        if let Err(mpsc::SendError(late_result)) = sender.send(work()) {
            late(late_result);
        }
    };
    std::thread::Builder::new()
        .name("hostsnap-zfs".to_owned())
        .spawn(run)
        .map_err(|error| DriverError::io(format!("{doing}: start a thread"), error))?;
    receiver.recv_timeout(limit).map_err(|error| match error {
        RecvTimeoutError::Timeout => DriverError::new(
            Kind::DeadlinePassed,
            format!("{doing}: no answer within {} ms; zpool status", limit.as_millis()),
        ),
        RecvTimeoutError::Disconnected => DriverError::new(Kind::Failed, doing),
    })
}

/// A cut with everything made that it needs.
pub(super) struct Cut {
    names: BTreeSet<String>,
    snapshots: Nvlist,
    properties: Nvlist,
}

impl Cut {
    /// Snapshots of these names, with these properties on each.
    pub(super) fn new(names: BTreeSet<String>, properties: &[(String, String)]) -> Result<Self, DriverError> {
        let api = api()?;
        let snapshots = Nvlist::names(api, names.iter().map(String::as_str))?;
        let properties = properties.iter().map(|(name, value)| (name.as_str(), value.as_str()));
        Ok(Self { snapshots, properties: Nvlist::texts(api, properties)?, names })
    }

    /// Makes them, and waits as long as the kernel wants.
    pub(super) fn make_here(&self) -> Result<(), DriverError> {
        let api = api()?;
        call(api, "make the snapshots", |told| {
            // SAFETY: two lists of ours, and a place for a list, which becomes ours.
            unsafe { (api.lzc_snapshot)(self.snapshots.raw(), self.properties.raw(), told) }
        })
    }

    /// Makes them: all of one instant, or none. Those that come after `limit` are removed when they come.
    pub(super) fn make(self, limit: Duration) -> Result<(), DriverError> {
        let work = move || (self.make_here(), self.names);
        let late = |(made, names): (Result<(), DriverError>, BTreeSet<String>)| {
            if made.is_ok()
                && let Err(error) = destroy(&names)
            {
                tracing::error!("snapshots that came too late stay until reconcile: {error}");
            }
        };
        limited("make the snapshots", limit, work, late)?.0
    }
}

/// Removes snapshots: all or none. One that is not there is no error.
pub(super) fn destroy(names: &BTreeSet<String>) -> Result<(), DriverError> {
    let api = api()?;
    let list = Nvlist::names(api, names.iter().map(String::as_str))?;
    let doing = "remove the snapshots";
    let work = move || {
        call(api, doing, |told| {
            // SAFETY: a list of ours, and a place for a list, which becomes ours. Not deferred: 0 is B_FALSE.
            unsafe { (api.lzc_destroy_snaps)(list.raw(), 0, told) }
        })
    };
    match limited(doing, LIMIT, work, drop)? {
        // Clones are told so.
        Err(error) if error.kind == Kind::Exists => Err(DriverError { kind: Kind::Busy, ..error }),
        result => result,
    }
}

/// Puts our hold on these snapshots. One that has it is no error.
pub(super) fn hold(names: &BTreeSet<String>) -> Result<(), DriverError> {
    each_but(Kind::Exists, names, hold_all)
}

/// Takes our hold off these snapshots. One that has none is no error.
pub(super) fn release(names: &BTreeSet<String>) -> Result<(), DriverError> {
    each_but(Kind::NotFound, names, release_all)
}

/// Does it to all at once. One that has it done to it already would keep it from the others: then one by one.
fn each_but(
    done: Kind,
    names: &BTreeSet<String>,
    act: impl Fn(&BTreeSet<String>) -> Result<(), DriverError>,
) -> Result<(), DriverError> {
    let unless_done = |result: Result<(), DriverError>| match result {
        Err(error) if error.kind == done => Ok(()),
        result => result,
    };
    match act(names) {
        Err(error) if error.kind == done => {
            names.iter().try_for_each(|name| unless_done(act(&BTreeSet::from([name.clone()]))))
        }
        result => result,
    }
}

fn hold_all(names: &BTreeSet<String>) -> Result<(), DriverError> {
    let api = api()?;
    let list = Nvlist::texts(api, names.iter().map(|name| (name.as_str(), HOLD)))?;
    let doing = "hold the snapshots";
    let work = move || {
        call(api, doing, |told| {
            // SAFETY: a list of ours, and a place for a list, which becomes ours. -1: it outlives this process.
            unsafe { (api.lzc_hold)(list.raw(), -1, told) }
        })
    };
    limited(doing, LIMIT, work, drop)?
}

fn release_all(names: &BTreeSet<String>) -> Result<(), DriverError> {
    let api = api()?;
    let tags = Nvlist::names(api, [HOLD])?;
    let list = Nvlist::lists(api, names.iter().map(String::as_str), &tags)?;
    let doing = "release the snapshots";
    let work = move || {
        call(api, doing, |told| {
            // SAFETY: a list of ours, and a place for a list, which becomes ours.
            unsafe { (api.lzc_release)(list.raw(), told) }
        })
    };
    limited(doing, LIMIT, work, drop)?
}

/// Writes down what is dirty in a pool: a cut would wait for it.
pub(super) fn sync(pool: &str, limit: Duration) -> Result<(), DriverError> {
    let api = api()?;
    let name = text(pool)?;
    let options = Nvlist::new(api)?;
    // SAFETY: a list of ours and a text; 0 is B_FALSE. Without it the kernel refuses the request.
    check_memory(unsafe { (api.nvlist_add_boolean_value)(options.raw(), c"force".as_ptr(), 0) })?;
    let doing = format!("sync the pool {pool}");
    let what = doing.clone();
    let work = move || {
        call(api, &what, |told| {
            // SAFETY: a text, a list of ours, and a place for a list, which becomes ours.
            unsafe { (api.lzc_sync)(name.as_ptr(), options.raw(), told) }
        })
    };
    limited(&doing, limit, work, drop)?
}

/// Whether there is a dataset or snapshot of this name.
pub(super) fn exists(name: &str) -> Result<bool, DriverError> {
    let api = api()?;
    let wanted = text(name)?;
    // SAFETY: a text.
    let work = move || unsafe { (api.lzc_exists)(wanted.as_ptr()) != 0 };
    limited(&format!("look for {name}"), LIMIT, work, drop)
}

#[cfg(test)]
mod tests {
    use std::error::Error;

    use super::*;

    #[test]
    fn a_host_without_zfs_is_told_what_to_install() {
        let error = load_from("libzfs_core.so.absent").err().expect("there is none");
        assert_eq!(error.kind, Kind::Unsupported);
        assert!(error.to_string().contains("install zfsutils-linux"), "{error}");
        assert!(error.source().unwrap().to_string().contains("libzfs_core.so.absent"), "{error:?}");
    }

    #[test]
    fn an_errno_of_zfs_is_told_with_what_to_do() {
        for (errno, kind, words) in [
            (Errno::NOSPC, Kind::NoSpace, "-o space"),
            (Errno::DQUOT, Kind::NoSpace, "snapshot_limit"),
            (Errno::ROFS, Kind::Unsupported, "read-only"),
            (Errno::NOENT, Kind::NotFound, ""),
            (Errno::SRCH, Kind::NotFound, ""),
            (Errno::EXIST, Kind::Exists, ""),
            (Errno::BUSY, Kind::Busy, ""),
            (Errno::IO, Kind::Failed, ""),
        ] {
            let error = fault("cut".to_owned(), errno);
            assert_eq!(error.kind, kind, "{error}");
            assert!(error.to_string().contains(words), "{error}");
        }
    }

    #[test]
    fn a_call_that_does_not_come_back_is_given_up_and_what_it_made_is_undone_when_it_does() {
        let (go, gone) = mpsc::channel::<()>();
        let (undo, undone) = mpsc::channel();
        let work = move || gone.recv().map(|()| 7).unwrap_or(0);
        let late = move |made: i32| undo.send(made).unwrap();
        let error = limited("cut", Duration::from_millis(50), work, late).expect_err("it does not come back");
        assert_eq!(error.kind, Kind::DeadlinePassed, "{error}");
        go.send(()).unwrap();
        assert_eq!(undone.recv_timeout(Duration::from_secs(30)), Ok(7));
        let in_time = limited("cut", Duration::from_secs(30), || 8, |_| unreachable!("it was in time"));
        assert_eq!(in_time.unwrap(), 8);
    }
}
