//! Where the host is. In a virtual machine: vsock, CID 2, port 989. Tests and setups without vsock
//! use a Unix socket.

use std::fmt;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::socket::{self, AddressFamily, SockFlag, SockType, VsockAddr};
use protocol::{ErrorCode, PORT, RequestId, WireError};
use rustix::event::{PollFd, PollFlags, poll};

use super::wire::{Socket, timespec};

/// Source ports below this prove to the host that root asked (Linux `net/vmw_vsock/af_vsock.c`,
/// `LAST_RESERVED_PORT` = 1023).
const FIRST_UNPRIVILEGED_PORT: u32 = 1024;
/// Ports below this are left to others.
const LOWEST_PORT: u32 = 600;

/// Where the host is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HostAddress {
    /// By virtio-vsock.
    Vsock {
        /// 2 is the host.
        cid: u32,
        /// Where `hostsnapd` listens.
        port: u32,
    },
    /// By a Unix socket.
    Unix(PathBuf),
}

impl Default for HostAddress {
    fn default() -> Self {
        Self::Vsock { cid: vsock::VMADDR_CID_HOST, port: PORT }
    }
}

impl FromStr for HostAddress {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("{text:?} is no address of a host; write vsock:CID:PORT or unix:/path");
        match text.split_once(':').ok_or_else(wrong)? {
            ("unix", path) if path.starts_with('/') => Ok(Self::Unix(path.into())),
            ("vsock", rest) => {
                let (cid, port) = rest.split_once(':').ok_or_else(wrong)?;
                let number = |text: &str| text.parse().map_err(|_| wrong());
                Ok(Self::Vsock { cid: number(cid)?, port: number(port)? })
            }
            _ => Err(wrong()),
        }
    }
}

impl fmt::Display for HostAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Vsock { cid, port } => write!(f, "vsock:{cid}:{port}"),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

impl HostAddress {
    pub(super) fn connect(&self, deadline: Instant) -> Result<Socket, WireError> {
        match self {
            Self::Unix(path) => connect_unix(path, deadline)
                .map_err(|error| self.unreachable(&error.to_string(), "is hostsnapd running?")),
            Self::Vsock { cid, port } => self.connect_vsock(VsockAddr::new(*cid, *port), deadline),
        }
    }

    fn connect_vsock(&self, host: VsockAddr, deadline: Instant) -> Result<Socket, WireError> {
        let fd = socket::socket(
            AddressFamily::Vsock,
            SockType::Stream,
            SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK,
            None,
        )
        .map_err(|errno| {
            self.unreachable(
                &format!("this kernel has no vsock ({})", errno.desc()),
                "load the guest's module: modprobe vmw_vsock_virtio_transport; hostsnap doctor says more",
            )
        })?;
        self.bind_privileged(&fd)?;
        let failed = |error: io::Error| {
            let hint = match error.raw_os_error() {
                Some(errno) if errno == Errno::ENODEV as i32 => {
                    "this machine has no vsock device: the host's administrator adds one (vhost-vsock)"
                }
                // vhost-device-vsock is silent where nobody listens, vhost-vsock resets.
                _ => {
                    "hostsnapd does not listen there: ask the host's administrator; hostsnap doctor says more"
                }
            };
            self.unreachable(&error.to_string(), hint)
        };
        match socket::connect(fd.as_raw_fd(), &host) {
            Ok(()) => {}
            Err(Errno::EINPROGRESS) => wait_connected(&fd, deadline).map_err(failed)?,
            Err(errno) => return Err(failed(errno.into())),
        }
        let stream = vsock::VsockStream::from(fd);
        stream.set_nonblocking(false).map_err(failed)?;
        Ok(Socket::from(stream))
    }

    /// Neither `vsock` nor `tokio-vsock` can bind before it connects.
    fn bind_privileged(&self, fd: &OwnedFd) -> Result<(), WireError> {
        // Not from the same one each time: after a reset of this machine the host may still hold a
        // conversation with a port of the boot before, and hears no new one from there (Linux
        // `virtio_transport_common.c`: a connected socket ignores VIRTIO_VSOCK_OP_REQUEST).
        let ports = FIRST_UNPRIVILEGED_PORT - LOWEST_PORT;
        let first = RequestId::random().as_uuid().as_fields().0 % ports;
        for port in (0..ports).map(|n| LOWEST_PORT + (first + n) % ports) {
            match socket::bind(fd.as_raw_fd(), &VsockAddr::new(vsock::VMADDR_CID_ANY, port)) {
                Ok(()) => return Ok(()),
                Err(Errno::EADDRINUSE) => {}
                Err(Errno::EACCES) => {
                    return Err(WireError::new(
                        ErrorCode::Refused,
                        "only root may ask the host: ports below 1024 need CAP_NET_BIND_SERVICE",
                    )
                    .hint("run it as root: sudo hostsnap …"));
                }
                Err(errno) => return Err(self.unreachable(errno.desc(), "hostsnap doctor says more")),
            }
        }
        Err(self.unreachable("all ports below 1024 are in use", "close some of the connections to the host"))
    }

    fn unreachable(&self, why: &str, hint: &str) -> WireError {
        WireError::new(ErrorCode::Unreachable, format!("reach the host at {self}: {why}")).hint(hint)
    }
}

/// A full backlog makes a Unix socket's connect block without a limit, or fail at once if it may
/// not block (unix(7), EAGAIN).
fn connect_unix(path: &Path, deadline: Instant) -> io::Result<Socket> {
    let address = rustix::net::SocketAddrUnix::new(path)?;
    loop {
        let fd = rustix::net::socket_with(
            rustix::net::AddressFamily::UNIX,
            rustix::net::SocketType::STREAM,
            rustix::net::SocketFlags::CLOEXEC | rustix::net::SocketFlags::NONBLOCK,
            None,
        )?;
        match rustix::net::connect(&fd, &address) {
            Ok(()) => return Ok(Socket::from(fd)),
            Err(rustix::io::Errno::AGAIN) if Instant::now() < deadline => {
                std::thread::sleep(Duration::from_millis(10));
            }
            Err(errno) => return Err(errno.into()),
        }
    }
}

fn wait_connected(fd: &OwnedFd, deadline: Instant) -> io::Result<()> {
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        match poll(&mut [PollFd::new(fd, PollFlags::OUT)], Some(&timespec(left))) {
            Ok(0) => return Err(io::ErrorKind::TimedOut.into()),
            Ok(_) => break,
            Err(rustix::io::Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
    rustix::net::sockopt::socket_error(fd)?.map_err(io::Error::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_written_as_they_are_read() {
        for text in ["vsock:2:989", "unix:/run/x.sock"] {
            assert_eq!(text.parse::<HostAddress>().unwrap().to_string(), text);
        }
        for wrong in ["2:989", "vsock:2", "unix:relative", "tcp:1:2", "vsock:x:1", ""] {
            assert!(wrong.parse::<HostAddress>().is_err(), "{wrong}");
        }
        assert_eq!(HostAddress::default().to_string(), "vsock:2:989");
    }
}
