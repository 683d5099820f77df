//! The service's life: start, reload, stop. What it serves is the other rooms' business.

use std::fs::{self, File, OpenOptions};
use std::os::fd::{FromRawFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use protocol::PORT;
use rustix::net::AddressFamily;
use sd_notify::NotifyState;
use tokio::net::UnixListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::Instant;

use crate::audit::Audit;
use crate::catalog::Catalog;
use crate::config::Config;
use crate::control;
use crate::listen::{Listeners, Vsock};
use crate::service::Service;
use crate::world::World;

/// How often unfinished and expired snapshots are looked after.
const TEND_EVERY: Duration = Duration::from_secs(60);
/// How often it is looked which machines libvirt has. Who comes in by a CID is looked up at that moment.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// How long open conversations may go on after a stop was asked for.
const STOP_LIMIT: Duration = Duration::from_secs(20);
/// How long a machine that is paused then may be waited for before it is let go on.
const LET_GO_LIMIT: Duration = Duration::from_secs(12);

/// Runs until SIGTERM or SIGINT.
pub fn run(config_path: &Path) -> Result<()> {
    // Before any thread is started: the descriptors are ours alone.
    let inherited = Inherited::take()?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .context("start the runtime")?;
    runtime.block_on(serve(config_path, inherited))
}

async fn serve(config_path: &Path, inherited: Inherited) -> Result<()> {
    let config = Config::load(config_path)?;
    let state_dir = config.service.state_dir.clone();
    make_private_folder(&state_dir)?;
    let _only_one = lock(&state_dir)?;
    let catalog = Catalog::open(&state_dir.join("catalog.sqlite"))?;
    let audit = Audit::open(&state_dir).context("open the audit log")?;
    let world = World::new(config.clone(), None)?;
    let service = Service::new(world, catalog, audit);
    // Without libvirt the machines of the file are served all the same; the failure is in the log.
    let _ = service.look_at_machines(Instant::now()).await;

    let report = service.reconcile().await?;
    if !report.is_clean() {
        tracing::info!(?report, "reconciled the catalog with the storage");
    }

    let mut listeners = Listeners::new(Arc::clone(&service));
    if config.service.listen_vsock {
        listeners.add_vsock(match inherited.vsock {
            Some(fd) => Vsock::from_fd(fd),
            None => Vsock::bind(PORT).with_context(|| {
                format!(
                    "listen on vsock port {PORT}: load the module vhost_vsock, \
                     or set listen_vsock = false where all guests have a socket"
                )
            })?,
        });
    }
    listeners.follow(&config);
    let control = match inherited.unix {
        Some(listener) => UnixListener::from_std(listener).context("take over the control socket")?,
        None => control::bind(&config.service.control_socket).with_context(|| {
            format!("listen on the control socket {}", config.service.control_socket.display())
        })?,
    };
    tokio::spawn(control::serve(Arc::clone(&service), control));
    tokio::spawn(tend(Arc::clone(&service)));
    tokio::spawn(follow_machines(Arc::clone(&service)));
    tokio::spawn(watchdog());

    notify(&[NotifyState::Ready]);
    tracing::info!(vms = config.vms.len(), "ready");

    let mut reload = signal(SignalKind::hangup())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    loop {
        tokio::select! {
            _ = reload.recv() => reload_config(config_path, &service, &mut listeners).await,
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
        }
    }
    notify(&[NotifyState::Stopping]);
    tracing::info!("stopping: open conversations have {} s", STOP_LIMIT.as_secs());
    if tokio::time::timeout(STOP_LIMIT, listeners.close()).await.is_err() {
        tracing::warn!("conversations were still open; what they left is picked up at the next start");
    }
    service.let_go(LET_GO_LIMIT).await;
    Ok(())
}

/// A configuration with a mistake changes nothing.
async fn reload_config(path: &Path, service: &Arc<Service>, listeners: &mut Listeners) {
    if let Ok(now) = NotifyState::monotonic_usec_now() {
        notify(&[NotifyState::Reloading, now]);
    }
    let before = service.world();
    let reloaded = match Config::load(path) {
        Ok(config) => service.take_over(config).await.map_err(anyhow::Error::from),
        Err(error) => Err(error.into()),
    };
    match reloaded {
        Ok(()) => {
            let world = service.world();
            if world.config.service != before.config.service {
                tracing::warn!(
                    "[service] changed: listen_vsock, state_dir and control_socket need a restart"
                );
            }
            listeners.follow(&world.config);
            tracing::info!(vms = world.config.vms.len(), "configuration reloaded");
        }
        Err(error) => tracing::error!("the configuration stays as it was: {error:#}"),
    }
    notify(&[NotifyState::Ready]);
}

/// Looks which machines libvirt has, where that is asked for.
async fn follow_machines(service: Arc<Service>) {
    loop {
        tokio::time::sleep(LOOK_EVERY).await;
        // The failure is in the log, once.
        let _ = service.look_at_machines(Instant::now()).await;
        service.look_at_arrived().await;
    }
}

async fn tend(service: Arc<Service>) {
    loop {
        tokio::time::sleep(TEND_EVERY).await;
        service.tend().await;
    }
}

/// Tells the service manager that the runtime still runs.
async fn watchdog() {
    let Some(limit) = sd_notify::watchdog_enabled() else { return };
    loop {
        notify(&[NotifyState::Watchdog]);
        tokio::time::sleep(limit / 3).await;
    }
}

fn notify(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::warn!("tell the service manager: {error}");
    }
}

fn make_private_folder(path: &Path) -> Result<()> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .with_context(|| format!("make the state folder {}", path.display()))
}

/// Another service has the state folder.
#[derive(Debug, thiserror::Error)]
#[error("another hostsnapd uses {}; stop it first", .0.display())]
pub struct InUse(PathBuf);

/// Two services would both reconcile the same storage.
pub(crate) fn lock(state_dir: &Path) -> Result<File> {
    let path: PathBuf = state_dir.join("lock");
    let file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(&path)
        .with_context(|| format!("open {}", path.display()))?;
    match rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(file),
        Err(rustix::io::Errno::WOULDBLOCK) => Err(InUse(state_dir.to_owned()).into()),
        Err(error) => Err(error).with_context(|| format!("lock {}", path.display())),
    }
}

/// Sockets that the service manager opened for us (sd_listen_fds(3)).
#[derive(Default)]
struct Inherited {
    vsock: Option<OwnedFd>,
    /// Becomes tokio's once its runtime runs.
    unix: Option<std::os::unix::net::UnixListener>,
}

impl Inherited {
    fn take() -> Result<Self> {
        let mut inherited = Self::default();
        for fd in sd_notify::listen_fds().context("take over the sockets of the service manager")? {
            // SAFETY: the service manager passed this descriptor to us alone, and `listen_fds` is
            // called once, before anything else could have taken it.
            let fd = unsafe { OwnedFd::from_raw_fd(fd) };
            let address = rustix::net::getsockname(&fd).context("look at an inherited socket")?;
            match address.address_family() {
                AddressFamily::UNIX => {
                    let listener = std::os::unix::net::UnixListener::from(fd);
                    listener.set_nonblocking(true)?;
                    inherited.unix = Some(listener);
                }
                AddressFamily::VSOCK => inherited.vsock = Some(fd),
                other => bail!("the service manager passed a socket of the family {other:?}"),
            }
        }
        Ok(inherited)
    }
}
