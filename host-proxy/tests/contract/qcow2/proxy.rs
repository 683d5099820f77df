//! Stands between a client and QEMU's monitor and hangs up after so many commands, as a service that is killed does: QEMU
//! does the last one, and nobody hears of it. Until it is told to go on it lets nobody in.

use std::io::{IoSlice, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::net::Shutdown;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, recvmsg, sendmsg,
};

pub(crate) struct Proxy {
    left: Arc<AtomicI64>,
}

impl Proxy {
    pub(crate) fn start(at: &Path, qemu: &Path) -> Self {
        let listener = UnixListener::bind(at).unwrap();
        let (left, qemu) = (Arc::new(AtomicI64::new(i64::MAX)), qemu.to_owned());
        let counted = Arc::clone(&left);
        std::thread::spawn(move || {
            for client in listener.incoming() {
                let Ok(client) = client else { return };
                if counted.load(Ordering::SeqCst) > 0 {
                    serve(&client, &UnixStream::connect(&qemu).unwrap(), &counted);
                }
            }
        });
        Self { left }
    }

    /// Hangs up after so many commands from now on.
    pub(crate) fn hang_up_after(&self, commands: i64) {
        self.left.store(commands, Ordering::SeqCst);
    }

    pub(crate) fn go_on(&self) {
        self.hang_up_after(i64::MAX);
    }

    /// Whether it came to that.
    pub(crate) fn has_hung_up(&self) -> bool {
        self.left.load(Ordering::SeqCst) <= 0
    }
}

/// One client at a time, as a monitor.
fn serve(client: &UnixStream, qemu: &UnixStream, left: &AtomicI64) {
    let (mut from, mut to) = (qemu.try_clone().unwrap(), client.try_clone().unwrap());
    let answers = std::thread::spawn(move || {
        let mut chunk = [0; 16 << 10];
        while let Ok(length @ 1..) = from.read(&mut chunk) {
            let said = String::from_utf8_lossy(&chunk[..length]);
            let is_answer = said.contains("\"return\"") || said.contains("\"error\"");
            // When nobody hears it any more, QEMU has done the last one.
            if to.write_all(&chunk[..length]).is_err() && is_answer {
                break;
            }
        }
    });
    while let Some((said, fd)) = hear(client) {
        let fds: Vec<_> = fd.iter().map(AsFd::as_fd).collect();
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        if !fds.is_empty() {
            ancillary.push(SendAncillaryMessage::ScmRights(&fds));
        }
        // A client waits for the answer to each: what comes at once is one command, or a part of one.
        let ends = i64::from(said.ends_with(b"\n"));
        if left.fetch_sub(ends, Ordering::SeqCst) == ends {
            client.shutdown(Shutdown::Both).unwrap();
        }
        let sent = sendmsg(qemu, &[IoSlice::new(&said)], &mut ancillary, SendFlags::empty()).unwrap();
        assert_eq!(sent, said.len());
        if left.load(Ordering::SeqCst) <= 0 {
            break;
        }
    }
    if left.load(Ordering::SeqCst) > 0 {
        let _ = qemu.shutdown(Shutdown::Both);
    }
    answers.join().unwrap();
}

fn hear(client: &UnixStream) -> Option<(Vec<u8>, Option<OwnedFd>)> {
    let mut chunk = vec![0; 64 << 10];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let heard =
        recvmsg(client, &mut [IoSliceMut::new(&mut chunk)], &mut ancillary, RecvFlags::empty()).ok()?;
    let mut fd = None;
    for message in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(fds) = message {
            fd = fds.last();
        }
    }
    chunk.truncate(heard.bytes);
    (heard.bytes > 0).then_some((chunk, fd))
}
