//! What flow and keeper say to each other: one message with all descriptors at the start, then
//! single bytes. The end of the other process is the end of the stream.

use std::fs::File;
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socketpair,
};
use rustix::time::Timespec;

use super::expedite::Expedite;
use super::shared::SLOTS;

/// To the keeper: freeze.
pub(super) const FREEZE: u8 = b'f';
/// To the keeper: thaw what is left, and end.
pub(super) const END: u8 = b'e';
/// From the keeper: it is ready.
pub(super) const READY: u8 = b'R';
/// From the keeper: everything is frozen.
pub(super) const FROZEN: u8 = b'F';
/// From the keeper: nothing is frozen; the shared page says why.
pub(super) const NOT_FROZEN: u8 = b'N';
/// From the keeper: it could not get ready; a text follows.
pub(super) const UNFIT: u8 = b'U';

/// What the keeper needs from the flow.
pub(super) struct Parts {
    pub(super) page: OwnedFd,
    pub(super) timer: OwnedFd,
    pub(super) lock: OwnedFd,
    pub(super) expedite: Option<Expedite>,
    pub(super) mounts: Vec<File>,
}

const FIXED: usize = 3;
const MOST: usize = FIXED + 1 + SLOTS;

/// Both ends; messages keep their borders.
pub(super) fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?)
}

/// Hands everything over. They are descriptors of the same open files: a lock in them is the same
/// lock (flock(2)), a timer the same timer.
pub(super) fn hand_over(channel: impl AsFd, parts: &Parts) -> io::Result<()> {
    let mut fds: Vec<BorrowedFd<'_>> = vec![parts.page.as_fd(), parts.timer.as_fd(), parts.lock.as_fd()];
    fds.extend(parts.expedite.as_ref().map(AsFd::as_fd));
    fds.extend(parts.mounts.iter().map(AsFd::as_fd));
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !control.push(SendAncillaryMessage::ScmRights(&fds)) {
        return Err(io::Error::other("too many descriptors"));
    }
    let has_expedite = [u8::from(parts.expedite.is_some())];
    sendmsg(channel, &[IoSlice::new(&has_expedite)], &mut control, SendFlags::NOSIGNAL)?;
    Ok(())
}

/// The keeper's side of [`hand_over`].
pub(super) fn take_over(channel: impl AsFd) -> io::Result<Parts> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut byte = [0];
    recvmsg(channel, &mut [IoSliceMut::new(&mut byte)], &mut control, RecvFlags::CMSG_CLOEXEC)?;
    let mut fds = control.drain().filter_map(|message| match message {
        RecvAncillaryMessage::ScmRights(fds) => Some(fds),
        _ => None,
    });
    let mut fds = fds.next().ok_or_else(|| io::Error::other("no descriptors came"))?;
    let mut next = || fds.next().ok_or_else(|| io::Error::other("a descriptor is missing"));
    let (page, timer, lock) = (next()?, next()?, next()?);
    let expedite = if byte == [1] { Some(Expedite::from(next()?)) } else { None };
    Ok(Parts { page, timer, lock, expedite, mounts: fds.map(File::from).collect() })
}

/// Says one byte. That the other side is gone shows where it is listened to.
pub(super) fn say(channel: impl AsFd, byte: u8) {
    let _ = rustix::net::send(channel, &[byte], SendFlags::NOSIGNAL);
}

/// The next message's first byte, its text behind it in `text`; `None` at the end of the stream.
pub(super) fn hear(channel: impl AsFd, text: &mut [u8]) -> Option<(u8, &[u8])> {
    loop {
        match rustix::net::recv(&channel, &mut *text, RecvFlags::empty()) {
            Ok((length, _)) if length > 0 => return text[..length].split_first().map(|(b, t)| (*b, t)),
            Err(Errno::INTR) => {}
            Ok(_) | Err(_) => return None,
        }
    }
}

/// Waits until one of these can be read or is gone. `false` if the limit came first.
pub(super) fn wait(fds: &mut [PollFd<'_>], limit: Option<Timespec>) -> bool {
    loop {
        match poll(fds, limit.as_ref()) {
            Ok(ready) => return ready > 0,
            Err(Errno::INTR) => {}
            // Only a bug brings another error. To act is safe, to sleep is not.
            Err(_) => return true,
        }
    }
}

/// Whether there is something to read, or the other side is gone.
pub(super) fn is_readable(fd: &PollFd<'_>) -> bool {
    fd.revents().intersects(PollFlags::IN | PollFlags::HUP | PollFlags::ERR)
}

/// Whether the other side is gone.
pub(super) fn is_gone(fd: &PollFd<'_>) -> bool {
    fd.revents().intersects(PollFlags::HUP | PollFlags::ERR)
}
