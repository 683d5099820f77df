//! The connection to a cluster, and a pool in it.

use std::ffi::{CStr, c_char};
use std::ptr::{null, null_mut};
use std::sync::Arc;

use super::{Api, Handle, ImageSpec, api, check, text};
use crate::drivers::rbd::Place;
use crate::drivers::{DriverError, Kind};

/// How much one class method may answer, in bytes: far more than all manifests of an image.
const ANSWER_LIMIT: usize = 256 << 20;

/// A connected client.
struct Cluster {
    api: &'static Api,
    handle: Handle,
}

// SAFETY: librados.h: a cluster handle may be used by any thread.
unsafe impl Send for Cluster {}
// SAFETY: as above, and by several at once.
unsafe impl Sync for Cluster {}

impl Drop for Cluster {
    fn drop(&mut self) {
        // SAFETY: nothing uses the handle any more: pools hold an `Arc` of it.
        unsafe { (self.api.rados_shutdown)(self.handle) }
    }
}

/// A pool, in one of its namespaces.
pub(in crate::drivers::rbd) struct Pool {
    pub(super) api: &'static Api,
    pub(super) io: Handle,
    cluster: Cluster,
}

// SAFETY: librados.h: an I/O context may be used by any thread; it is not changed after it was made.
unsafe impl Send for Pool {}
// SAFETY: as above, and by several at once.
unsafe impl Sync for Pool {}

impl Drop for Pool {
    fn drop(&mut self) {
        // SAFETY: images hold an `Arc` of this pool, so none is open; the cluster is dropped after it.
        unsafe { (self.api.rados_ioctx_destroy)(self.io) }
    }
}

/// An image in a pool's list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::drivers::rbd) struct ImageName {
    pub(in crate::drivers::rbd) id: String,
    pub(in crate::drivers::rbd) name: String,
}

impl Cluster {
    fn connect(place: &Place) -> Result<Self, DriverError> {
        let api = api()?;
        let user = text(&place.user)?;
        let mut handle = null_mut();
        // SAFETY: `handle` is written before it is used.
        let made = unsafe { (api.rados_create)(&raw mut handle, user.as_ptr()) };
        check(made, || format!("become the user client.{} of Ceph", place.user))?;
        let cluster = Self { api, handle };
        let conf = text(&place.conf.to_string_lossy())?;
        // SAFETY: the handle is not connected yet.
        let read = unsafe { (api.rados_conf_read_file)(handle, conf.as_ptr()) };
        check(read, || format!("read Ceph's configuration {}", place.conf.display()))?;
        // Whatever stalls, a call ends.
        let seconds = text(&place.timeout.as_secs().max(1).to_string())?;
        for option in [c"client_mount_timeout", c"rados_mon_op_timeout", c"rados_osd_op_timeout"] {
            // SAFETY: the handle is not connected yet.
            let set = unsafe { (api.rados_conf_set)(handle, option.as_ptr(), seconds.as_ptr()) };
            check(set, || format!("set {} of Ceph", option.to_string_lossy()))?;
        }
        // SAFETY: configured, and connected only here.
        let connected = unsafe { (api.rados_connect)(handle) };
        check(connected, || {
            format!("connect to the cluster of {} as client.{}", place.conf.display(), place.user)
        })?;
        Ok(cluster)
    }

    fn ask(&self, command: &str) -> Result<Vec<u8>, DriverError> {
        let line = text(command)?;
        let mut lines = [line.as_ptr()];
        let (mut out, mut out_len, mut status, mut status_len) = (null_mut(), 0, null_mut(), 0);
        // SAFETY: one line; both answers are ours to free.
        let answer = unsafe {
            (self.api.rados_mon_command)(
                self.handle,
                lines.as_mut_ptr(),
                1,
                null(),
                0,
                &raw mut out,
                &raw mut out_len,
                &raw mut status,
                &raw mut status_len,
            )
        };
        let bytes = if out.is_null() {
            Vec::new()
        } else {
            // SAFETY: librados wrote `out_len` bytes there.
            unsafe { std::slice::from_raw_parts(out.cast::<u8>(), out_len) }.to_vec()
        };
        for buffer in [out, status] {
            // SAFETY: allocated by the call above, or null, which is fine.
            unsafe { (self.api.rados_buffer_free)(buffer) };
        }
        check(answer, || format!("ask the monitor: {command}"))?;
        Ok(bytes)
    }
}

impl Pool {
    /// Connects to a cluster and opens the pool.
    pub(in crate::drivers::rbd) fn open(place: &Place) -> Result<Arc<Self>, DriverError> {
        let cluster = Cluster::connect(place)?;
        let api = cluster.api;
        let name = text(&place.pool)?;
        let mut io = null_mut();
        // SAFETY: connected; `io` is written before it is used.
        let opened = unsafe { (api.rados_ioctx_create)(cluster.handle, name.as_ptr(), &raw mut io) };
        check(opened, || format!("open the pool {}", place.pool))?;
        let pool = Self { api, io, cluster };
        if let Some(namespace) = &place.namespace {
            let namespace = text(namespace)?;
            // SAFETY: nobody else has the context yet.
            unsafe { (api.rados_ioctx_set_namespace)(pool.io, namespace.as_ptr()) }
        }
        // A full pool must be told as that, not waited for; and what makes room must go through.
        // SAFETY: as above.
        unsafe { (api.rados_set_pool_full_try)(pool.io) }
        Ok(Arc::new(pool))
    }

    /// By which the cluster knows this connection; watchers of images are named so.
    pub(in crate::drivers::rbd) fn client(&self) -> u64 {
        // SAFETY: connected.
        unsafe { (self.api.rados_get_instance_id)(self.cluster.handle) }
    }

    /// Asks the monitor; the command and the answer are JSON.
    pub(in crate::drivers::rbd) fn ask(
        &self,
        command: &serde_json::Value,
    ) -> Result<serde_json::Value, DriverError> {
        let command = command.to_string();
        let answer = self.cluster.ask(&command)?;
        serde_json::from_slice(&answer).map_err(|error| DriverError {
            source: Some(Box::new(error)),
            ..DriverError::new(Kind::Failed, format!("understand the monitor's answer to {command}"))
        })
    }

    /// Calls a method of the OSD's class `rbd` on an object.
    pub(in crate::drivers::rbd) fn exec(
        &self,
        object: &str,
        method: &CStr,
        input: &[u8],
    ) -> Result<Vec<u8>, DriverError> {
        let name = text(object)?;
        let mut answer = vec![0_u8; 64 << 10];
        loop {
            // SAFETY: `answer` has room for as many bytes as is said.
            let said = unsafe {
                (self.api.rados_exec)(
                    self.io,
                    name.as_ptr(),
                    c"rbd".as_ptr(),
                    method.as_ptr(),
                    input.as_ptr().cast(),
                    input.len(),
                    answer.as_mut_ptr().cast::<c_char>(),
                    answer.len(),
                )
            };
            if said == -rustix::io::Errno::RANGE.raw_os_error() && answer.len() < ANSWER_LIMIT {
                answer = vec![0; answer.len() * 8];
                continue;
            }
            let len = check(said, || format!("{} of {object}", method.to_string_lossy()))?;
            answer.truncate(usize::try_from(len).expect("checked: not negative"));
            return Ok(answer);
        }
    }

    /// All images of the pool.
    pub(in crate::drivers::rbd) fn images(&self) -> Result<Vec<ImageName>, DriverError> {
        let mut room = 256_usize;
        loop {
            let mut specs: Vec<ImageSpec> = Vec::with_capacity(room);
            let mut count = room;
            // SAFETY: `specs` has room for `count` of them.
            let listed = unsafe { (self.api.rbd_list2)(self.io, specs.as_mut_ptr(), &raw mut count) };
            if listed == -rustix::io::Errno::RANGE.raw_os_error() {
                room = count.max(room * 2);
                continue;
            }
            check(listed, || "list the images of the pool".to_owned())?;
            // SAFETY: librbd wrote `count` of them.
            unsafe { specs.set_len(count) };
            let images = specs.iter().map(|spec| {
                // SAFETY: two terminated texts each.
                let [id, name] = [spec.id, spec.name]
                    .map(|text| unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned());
                ImageName { id, name }
            });
            let images = images.collect();
            // SAFETY: written by the call above, freed once.
            unsafe { (self.api.rbd_image_spec_list_cleanup)(specs.as_mut_ptr(), count) };
            return Ok(images);
        }
    }
}
