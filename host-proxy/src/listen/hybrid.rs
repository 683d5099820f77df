//! One Unix socket per virtual machine, for hybrid vsock (Firecracker, Cloud Hypervisor,
//! vhost-device-vsock): a guest's connection to port P arrives at `<socket>_P`. Which socket it
//! came through is who it is: the peer's credential is the device process's.

use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use protocol::{PORT, VmUuid};
use tokio::net::UnixListener;
use tokio::time::timeout;

use super::{Connections, converse};
use crate::service::Service;
use crate::session::Peer;

/// How often it is looked whether the socket is still there: a machine that restarts may clear its
/// folder.
const LOOK_EVERY: Duration = Duration::from_secs(1);

pub(super) async fn accept_all(service: Arc<Service>, open: Connections, vm: VmUuid, base: PathBuf) {
    let path = socket_path(&base);
    let mut told = false;
    loop {
        match bind(&path) {
            Ok(listener) => {
                told = false;
                tracing::info!("listening on {}", path.display());
                serve(&service, &open, vm, &path, &listener).await;
                tracing::info!("{} was removed; making it again", path.display());
            }
            Err(error) if !told => {
                told = true;
                tracing::warn!("listen on {}: {error}; trying again until it works", path.display());
            }
            Err(_) => {}
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// `<socket>_<port>`, as all of these devices name it.
fn socket_path(base: &Path) -> PathBuf {
    let mut path = base.as_os_str().to_owned();
    path.push(format!("_{PORT}"));
    path.into()
}

/// Accepts until the socket's file is no longer ours.
async fn serve(service: &Arc<Service>, open: &Connections, vm: VmUuid, path: &Path, listener: &UnixListener) {
    let ours = identity_of(path);
    while identity_of(path) == ours {
        match timeout(LOOK_EVERY, listener.accept()).await {
            Ok(Ok((stream, _))) => {
                let via = format!("unix:{}", path.display());
                converse(service, open, Peer { vm, via }, stream);
            }
            Ok(Err(error)) => {
                tracing::error!("accept on {}: {error}", path.display());
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
            Err(_) => {}
        }
    }
}

fn identity_of(path: &Path) -> Option<(u64, u64)> {
    fs::symlink_metadata(path).ok().map(|meta| (meta.dev(), meta.ino()))
}

/// Binds; a socket that an earlier service left is replaced, anything else is not touched. The
/// folder's group may connect: the device process runs under it, not as root.
fn bind(path: &Path) -> io::Result<UnixListener> {
    match fs::symlink_metadata(path) {
        Ok(meta) if meta.file_type().is_socket() => fs::remove_file(path)?,
        Ok(_) => {
            return Err(io::Error::new(io::ErrorKind::AlreadyExists, "there is a file that is no socket"));
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    let listener = UnixListener::bind(path)?;
    let group = path.parent().and_then(|folder| fs::metadata(folder).ok()).map(|meta| meta.gid());
    std::os::unix::fs::lchown(path, None, group)?;
    fs::set_permissions(path, Permissions::from_mode(0o660))?;
    Ok(listener)
}
