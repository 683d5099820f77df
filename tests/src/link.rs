//! A guest's vsock device, as the host sees it.

use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::time::Duration;

use vsock::{VsockListener, VsockStream};

use crate::assets;
use crate::platform::VsockDevice;
use crate::process::Process;
use crate::wait::wait_until;

/// The CID that a guest has behind a device of its own.
const ALONE: u32 = 42;

/// Bytes to and from a guest.
pub trait Stream: Read + Write {}
impl<T: Read + Write> Stream for T {}

/// The device.
pub enum Link {
    /// The kernel's: the guest has this CID.
    Kernel(u32),
    /// A process: the guest's port P comes out at `base_P`, and `base` leads to the guest.
    Hybrid {
        /// The process.
        device: Process,
        /// The base path.
        base: PathBuf,
    },
}

impl Link {
    /// The one that works on this machine.
    ///
    /// # Panics
    /// When it does not start.
    pub(crate) fn start(folder: &Path, logs: &Path) -> Self {
        match VsockDevice::of_this_machine() {
            VsockDevice::Kernel => Self::Kernel(own_cid()),
            VsockDevice::Process => Self::process(folder, logs),
        }
    }

    fn process(folder: &Path, logs: &Path) -> Self {
        let (vhost, base) = (vhost_socket(folder), folder.join("vsock"));
        let argument = format!("guest-cid={ALONE},socket={},uds-path={}", vhost.display(), base.display());
        let mut device = Process::start(
            Command::new(assets::vhost_device_vsock()).arg("--vm").arg(argument),
            &logs.join("vsock.log"),
        );
        wait_until("the vsock device", Duration::from_secs(20), || {
            device.must_live();
            vhost.exists()
        });
        Self::Hybrid { device, base }
    }

    /// What QEMU is told. Its memory is shared with the device.
    pub(crate) fn arguments(&self, folder: &Path) -> Vec<String> {
        match self {
            Self::Kernel(cid) => vec!["-device".to_owned(), format!("vhost-vsock-pci,guest-cid={cid}")],
            Self::Hybrid { .. } => vec![
                "-chardev".to_owned(),
                format!("socket,id=vhost,path={}", vhost_socket(folder).display()),
                "-device".to_owned(),
                "vhost-user-vsock-pci,chardev=vhost".to_owned(),
            ],
        }
    }

    /// Its line in a `[[vm]]`.
    pub fn config(&self) -> String {
        match self {
            Self::Kernel(cid) => format!("cid = {cid}"),
            Self::Hybrid { base, .. } => format!("socket = \"{}\"", base.display()),
        }
    }

    /// Listens where the guest's connections to this port of its host arrive.
    ///
    /// # Errors
    /// When somebody else does.
    pub fn listen(&self, port: u32) -> io::Result<Listener> {
        Ok(match self {
            Self::Kernel(_) => {
                Listener::Vsock(VsockListener::bind_with_cid_port(vsock::VMADDR_CID_HOST, port)?)
            }
            Self::Hybrid { base, .. } => {
                let place = PathBuf::from(format!("{}_{port}", base.display()));
                // A listener of before leaves its name.
                let _ = std::fs::remove_file(&place);
                Listener::Unix(UnixListener::bind(place)?)
            }
        })
    }

    /// Connects to a port of the guest.
    ///
    /// # Errors
    /// When nobody listens there.
    pub fn connect(&self, port: u32, silence: Duration) -> io::Result<Box<dyn Stream>> {
        match self {
            Self::Kernel(cid) => {
                let stream = VsockStream::connect_with_cid_port(*cid, port)?;
                stream.set_read_timeout(Some(silence))?;
                Ok(Box::new(stream))
            }
            Self::Hybrid { base, .. } => {
                let mut stream = UnixStream::connect(base)?;
                stream.set_read_timeout(Some(silence))?;
                stream.write_all(format!("CONNECT {port}\n").as_bytes())?;
                let mut answer = Vec::new();
                while answer.last() != Some(&b'\n') {
                    let mut byte = [0];
                    stream.read_exact(&mut byte)?;
                    answer.extend(byte);
                }
                match answer.starts_with(b"OK ") {
                    true => Ok(Box::new(stream)),
                    false => Err(io::ErrorKind::ConnectionRefused.into()),
                }
            }
        }
    }
}

/// Waits for the guest.
pub enum Listener {
    /// At the kernel's device.
    Vsock(VsockListener),
    /// At a process'.
    Unix(UnixListener),
}

impl Listener {
    /// Accepts one connection, as a plain socket.
    ///
    /// # Errors
    /// When that fails.
    pub fn accept_socket(&self) -> io::Result<OwnedFd> {
        Ok(match self {
            Self::Vsock(listener) => listener.accept()?.0.into(),
            Self::Unix(listener) => listener.accept()?.0.into(),
        })
    }

    /// Accepts one connection; on it, reads wait no longer than this.
    ///
    /// # Errors
    /// When that fails.
    pub fn accept(&self, silence: Duration) -> io::Result<Box<dyn Stream>> {
        Ok(match self {
            Self::Vsock(listener) => {
                let (stream, _) = listener.accept()?;
                stream.set_read_timeout(Some(silence))?;
                Box::new(stream)
            }
            Self::Unix(listener) => {
                let (stream, _) = listener.accept()?;
                stream.set_read_timeout(Some(silence))?;
                Box::new(stream)
            }
        })
    }
}

fn vhost_socket(folder: &Path) -> PathBuf {
    folder.join("vhost")
}

/// A CID that no other guest on this machine is likely to have: QEMU says so if one has it.
fn own_cid() -> u32 {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    0x1000_0000 + (std::process::id() % 0x10_0000) * 0x100 + COUNT.fetch_add(1, Relaxed) % 0x100
}
