//! librados and librbd, loaded when the first store needs them: a host without Ceph needs neither.
//!
//! All unsafe code of the driver is here and below: [`cluster`] has the connection and the pool, [`image`]
//! one image. Declarations follow `rados/librados.h` and `rbd/librbd.h` of Ceph 16; only functions
//! that are there since then are used.
//!
//! What makes the calls sound, and is not said again at each:
//! - the libraries are never unloaded, so a function's address stays valid;
//! - every handle is owned by one value, made by a call that succeeded and released by its `Drop`; what
//!   needs another handle holds an `Arc` of it;
//! - both libraries may be called by several threads at once with one handle (librados.h, "thread-safe";
//!   librbd guards an image by its own locks);
//! - texts are `CStr`s that outlive the call, and neither library keeps them.

pub(super) mod cluster;
pub(super) mod image;

use std::ffi::{CString, c_char, c_int, c_void};
use std::sync::OnceLock;

use libloading::Library;

use crate::drivers::{DriverError, Kind};

pub(super) type Handle = *mut c_void;
/// `diff_iterate2`'s callback: offset, length, whether there is data.
type Differs = unsafe extern "C" fn(u64, usize, c_int, *mut c_void) -> c_int;
type Progress = Option<unsafe extern "C" fn(u64, u64, *mut c_void) -> c_int>;

/// `rbd_image_spec_t`
#[repr(C)]
pub(super) struct ImageSpec {
    pub(super) id: *mut c_char,
    pub(super) name: *mut c_char,
}

/// `rbd_snap_info_t`
#[repr(C)]
pub(super) struct SnapInfo {
    pub(super) id: u64,
    pub(super) size: u64,
    pub(super) name: *const c_char,
}

/// `rbd_linked_image_spec_t`
#[repr(C)]
pub(super) struct LinkedImageSpec {
    pub(super) pool_id: i64,
    pub(super) pool_name: *mut c_char,
    pub(super) pool_namespace: *mut c_char,
    pub(super) image_id: *mut c_char,
    pub(super) image_name: *mut c_char,
    pub(super) trash: bool,
}

/// `rbd_image_watcher_t`
#[repr(C)]
pub(super) struct Watcher {
    pub(super) addr: *mut c_char,
    pub(super) id: i64,
    pub(super) cookie: u64,
}

macro_rules! functions {
    ($($library:ident { $(fn $name:ident($($argument:ty),*) $(-> $result:ty)?;)* })*) => {
        /// The functions that the driver calls, by their names in C.
        pub(super) struct Api {
            $($(pub(super) $name: unsafe extern "C" fn($($argument),*) $(-> $result)?,)*)*
        }

        impl Api {
            /// Loads both libraries by these names.
            fn load(librados: &str, librbd: &str) -> Result<Self, libloading::Error> {
                // SAFETY: the initialisers of both only set up their own state.
                let libraries = unsafe { Libraries { rados: Library::new(librados)?, rbd: Library::new(librbd)? } };
                let api = Self {
                    // SAFETY: each name is declared as in the library's header.
                    $($($name: unsafe { *libraries.$library.get(concat!(stringify!($name), "\0").as_bytes())? },)*)*
                };
                // Never unloaded: see above. They have threads of their own besides.
                std::mem::forget(libraries);
                Ok(api)
            }
        }
    };
}

struct Libraries {
    rados: Library,
    rbd: Library,
}

functions! {
    rados {
        fn rados_create(*mut Handle, *const c_char) -> c_int;
        fn rados_conf_read_file(Handle, *const c_char) -> c_int;
        fn rados_conf_set(Handle, *const c_char, *const c_char) -> c_int;
        fn rados_connect(Handle) -> c_int;
        fn rados_shutdown(Handle);
        fn rados_get_instance_id(Handle) -> u64;
        fn rados_mon_command(Handle, *mut *const c_char, usize, *const c_char, usize,
            *mut *mut c_char, *mut usize, *mut *mut c_char, *mut usize) -> c_int;
        fn rados_buffer_free(*mut c_char);
        fn rados_ioctx_create(Handle, *const c_char, *mut Handle) -> c_int;
        fn rados_ioctx_set_namespace(Handle, *const c_char);
        fn rados_set_pool_full_try(Handle);
        fn rados_ioctx_destroy(Handle);
        fn rados_exec(Handle, *const c_char, *const c_char, *const c_char, *const c_char, usize,
            *mut c_char, usize) -> c_int;
    }
    rbd {
        fn rbd_list2(Handle, *mut ImageSpec, *mut usize) -> c_int;
        fn rbd_image_spec_list_cleanup(*mut ImageSpec, usize);
        fn rbd_open(Handle, *const c_char, *mut Handle, *const c_char) -> c_int;
        fn rbd_open_read_only(Handle, *const c_char, *mut Handle, *const c_char) -> c_int;
        fn rbd_open_by_id(Handle, *const c_char, *mut Handle, *const c_char) -> c_int;
        fn rbd_open_by_id_read_only(Handle, *const c_char, *mut Handle, *const c_char) -> c_int;
        fn rbd_close(Handle) -> c_int;
        fn rbd_get_id(Handle, *mut c_char, usize) -> c_int;
        fn rbd_get_name(Handle, *mut c_char, *mut usize) -> c_int;
        fn rbd_get_size(Handle, *mut u64) -> c_int;
        fn rbd_read(Handle, u64, usize, *mut c_char) -> isize;
        fn rbd_snap_create2(Handle, *const c_char, u32, Progress, *mut c_void) -> c_int;
        fn rbd_snap_remove(Handle, *const c_char) -> c_int;
        fn rbd_snap_list(Handle, *mut SnapInfo, *mut c_int) -> c_int;
        fn rbd_snap_list_end(*mut SnapInfo);
        fn rbd_snap_is_protected(Handle, *const c_char, *mut c_int) -> c_int;
        fn rbd_snap_set_by_id(Handle, u64) -> c_int;
        fn rbd_snap_rollback_with_progress(Handle, *const c_char, Progress, *mut c_void) -> c_int;
        fn rbd_get_features(Handle, *mut u64) -> c_int;
        fn rbd_lock_acquire(Handle, c_int) -> c_int;
        fn rbd_diff_iterate2(Handle, *const c_char, u64, u64, u8, u8, Differs, *mut c_void) -> c_int;
        fn rbd_list_children3(Handle, *mut LinkedImageSpec, *mut usize) -> c_int;
        fn rbd_linked_image_spec_list_cleanup(*mut LinkedImageSpec, usize);
        fn rbd_watchers_list(Handle, *mut Watcher, *mut usize) -> c_int;
        fn rbd_watchers_list_cleanup(*mut Watcher, usize);
    }
}

/// The libraries, loaded now if they were not.
pub(super) fn api() -> Result<&'static Api, DriverError> {
    static API: OnceLock<Api> = OnceLock::new();
    match API.get() {
        Some(api) => Ok(api),
        None => {
            let loaded = load("librados.so.2", "librbd.so.1")?;
            Ok(API.get_or_init(|| loaded))
        }
    }
}

fn load(librados: &str, librbd: &str) -> Result<Api, DriverError> {
    Api::load(librados, librbd).map_err(|error| DriverError {
        source: Some(Box::new(error)),
        ..DriverError::new(
            Kind::Unsupported,
            "load Ceph's libraries, version 16 or newer: install librbd1 (Debian, Ubuntu) or librbd (Fedora)",
        )
    })
}

/// A text for C.
pub(super) fn text(text: &str) -> Result<CString, DriverError> {
    CString::new(text)
        .map_err(|_| DriverError::new(Kind::NotFound, format!("use the name {text:?}: it holds a zero byte")))
}

/// Ceph answers with a negated `errno`.
pub(super) fn check(answer: c_int, doing: impl FnOnce() -> String) -> Result<c_int, DriverError> {
    if answer >= 0 { Ok(answer) } else { Err(fault(doing(), answer.unsigned_abs())) }
}

/// What an `errno` of Ceph's means to whoever has to mend it.
pub(super) fn fault(doing: String, errno: u32) -> DriverError {
    use rustix::io::Errno;
    let errno = Errno::from_raw_os_error(errno.cast_signed());
    let (kind, more) = match errno {
        Errno::TIMEDOUT => {
            (Some(Kind::Unreachable), ": the cluster did not answer in time; look at it with ceph status")
        }
        Errno::SHUTDOWN | Errno::NOTCONN => {
            (Some(Kind::Unreachable), ": the cluster shut this host out; ceph osd blocklist ls")
        }
        Errno::PERM | Errno::ACCESS => (
            None,
            ": its user may not; ceph auth caps client.USER mon 'profile rbd' osd 'profile rbd pool=POOL'",
        ),
        // Also when the lock could not be had in time.
        Errno::ROFS => (
            Some(Kind::Busy),
            ": the image can't be changed now: its exclusive lock is held by somebody who does not give it, or it is the copy of a mirror",
        ),
        _ => (None, ""),
    };
    let error = DriverError::io(format!("{doing}{more}"), errno);
    DriverError { kind: kind.unwrap_or(error.kind), ..error }
}

/// Whether the cluster no longer listens to this client (EBLOCKLISTED is ESHUTDOWN).
pub(super) fn was_shut_out(error: &DriverError) -> bool {
    let cause = error.source.as_ref().and_then(|cause| cause.downcast_ref::<std::io::Error>());
    let errno = cause.and_then(|cause| cause.raw_os_error());
    [rustix::io::Errno::SHUTDOWN, rustix::io::Errno::NOTCONN]
        .iter()
        .any(|one| errno == Some(one.raw_os_error()))
}

#[cfg(test)]
mod tests {
    use std::error::Error;

    use super::*;

    #[test]
    fn a_host_without_cephs_libraries_is_told_what_to_install() {
        let error = load("librados.so.absent", "librbd.so.absent").err().expect("there are none");
        assert_eq!(error.kind, Kind::Unsupported);
        assert!(error.to_string().contains("install librbd1"), "{error}");
        assert!(error.source().unwrap().to_string().contains("librados.so.absent"), "{error:?}");
    }

    #[test]
    fn an_errno_of_cephs_is_told_with_what_to_do() {
        let kind =
            |errno: rustix::io::Errno| fault("write".to_owned(), errno.raw_os_error().cast_unsigned()).kind;
        use rustix::io::Errno;
        assert_eq!(kind(Errno::TIMEDOUT), Kind::Unreachable);
        assert_eq!(kind(Errno::NOSPC), Kind::NoSpace);
        assert_eq!(kind(Errno::DQUOT), Kind::NoSpace);
        assert_eq!(kind(Errno::NOENT), Kind::NotFound);
        assert_eq!(kind(Errno::EXIST), Kind::Exists);
        assert_eq!(kind(Errno::BUSY), Kind::Busy);
        assert_eq!(kind(Errno::IO), Kind::Failed);
    }
}
