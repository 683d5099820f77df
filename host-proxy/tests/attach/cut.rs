//! The connection to QEMU breaks after each command in turn: QEMU lives and has done what it was told, and nobody
//! heard its answer.

use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead, BufReader, IoSlice, IoSliceMut, Write};
use std::mem::MaybeUninit;
use std::net::Shutdown;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex};

use harness::wait::wait_until;
use protocol::attach::{Access, DetachOutcome};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, recvmsg, sendmsg,
};

use super::machine::{LIMIT, Machine};

/// What is known of the connection that is to break.
#[derive(Default)]
struct Plan {
    /// The name of the command that it is to break at, and how many of that name it lets through before.
    at: Option<(String, usize)>,
    /// The names of all that was said, in its order. One that is repeated until something is so counts once.
    said: Vec<String>,
    /// The command of which nobody heard the answer.
    broke_at: Option<String>,
}

/// Stands where QEMU's monitor was.
#[derive(Clone, Default)]
struct Wire(Arc<Mutex<Plan>>);

impl Wire {
    fn before(machine: &Machine) -> Self {
        let (at, itself) = (machine.served.at("qmp"), machine.served.at("qmp-itself"));
        fs::rename(&at, &itself).unwrap();
        let listener = UnixListener::bind(&at).unwrap();
        let wire = Self::default();
        let serving = wire.clone();
        // As QEMU does: one client at a time.
        std::thread::spawn(move || {
            listener.incoming().flatten().for_each(|client| serving.serve(&client, &itself))
        });
        wire
    }

    /// Breaks at this one of the commands of this name, from 0.
    fn break_at(&self, name: &str, nth: usize) {
        *self.0.lock().unwrap() = Plan { at: Some((name.to_owned(), nth)), ..Plan::default() };
    }

    fn said(&self) -> BTreeSet<String> {
        self.0.lock().unwrap().said.iter().cloned().collect()
    }

    fn broke_at(&self) -> Option<String> {
        self.0.lock().unwrap().broke_at.clone()
    }

    /// Whether this command is the last one.
    fn is_last(&self, command: &str) -> bool {
        let mut plan = self.0.lock().unwrap();
        let name = name_of(command);
        if plan.said.last() == Some(&name) {
            return false;
        }
        let nth = plan.said.iter().filter(|said| **said == name).count();
        let is_last = plan.at.as_ref().is_some_and(|(at, which)| *at == name && *which == nth);
        plan.said.push(name);
        if is_last {
            *plan = Plan { broke_at: Some(command.to_owned()), ..Plan::default() };
        }
        is_last
    }

    fn serve(&self, client: &UnixStream, itself: &Path) {
        let qemu = UnixStream::connect(itself).unwrap();
        let answers = Arc::new(AtomicUsize::new(0));
        let back = {
            let (from, mut to, answers) =
                (qemu.try_clone().unwrap(), client.try_clone().unwrap(), Arc::clone(&answers));
            std::thread::spawn(move || {
                for line in BufReader::new(from).lines().map_while(Result::ok) {
                    // The client may be gone.
                    let _ = writeln!(to, "{line}");
                    if line.contains("\"return\"") || line.contains("\"error\"") {
                        answers.fetch_add(1, SeqCst);
                    }
                }
            })
        };
        let mut asked = 0;
        while let Some((bytes, fds)) = receive(client) {
            asked += 1;
            let is_last = self.is_last(&String::from_utf8_lossy(&bytes));
            if is_last {
                client.shutdown(Shutdown::Both).unwrap();
            }
            send(&qemu, &bytes, &fds);
            if is_last {
                wait_until("QEMU has done it", LIMIT, || answers.load(SeqCst) == asked);
                break;
            }
        }
        qemu.shutdown(Shutdown::Both).unwrap();
        back.join().unwrap();
    }
}

fn name_of(command: &str) -> String {
    let parsed: serde_json::Value = serde_json::from_str(command).unwrap();
    parsed["execute"].as_str().unwrap().to_owned()
}

/// One command: the service sends each by itself and waits for its answer.
fn receive(from: &UnixStream) -> Option<(Vec<u8>, Vec<OwnedFd>)> {
    let mut bytes = Vec::new();
    let mut fds = Vec::new();
    while bytes.last() != Some(&b'\n') {
        let mut chunk = [0; 4096];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let received =
            recvmsg(from, &mut [IoSliceMut::new(&mut chunk)], &mut ancillary, RecvFlags::CMSG_CLOEXEC)
                .ok()?;
        if received.bytes == 0 {
            return None;
        }
        bytes.extend_from_slice(&chunk[..received.bytes]);
        for message in ancillary.drain() {
            if let RecvAncillaryMessage::ScmRights(rights) = message {
                fds.extend(rights);
            }
        }
    }
    Some((bytes, fds))
}

fn send(to: &UnixStream, bytes: &[u8], fds: &[OwnedFd]) {
    let borrowed: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !borrowed.is_empty() {
        assert!(ancillary.push(SendAncillaryMessage::ScmRights(&borrowed)));
    }
    let sent = sendmsg(to, &[IoSlice::new(bytes)], &mut ancillary, SendFlags::NOSIGNAL).unwrap();
    assert_eq!(sent, bytes.len());
}

/// A connection that broke was taken for a QEMU that is gone: the clone was removed, and the attachment forgotten, while the
/// machine had the disk still.
#[test]
fn wherever_the_connection_to_qemu_breaks_what_was_begun_is_undone_or_stays_known() {
    let machine = Machine::new(&["-machine", "q35", "-device", "virtio-scsi-pci,id=scsi"], "");
    let wire = Wire::before(&machine);
    machine.attach(Access::Writable).unwrap();
    assert_eq!(machine.detach(), Ok(DetachOutcome::Detached));
    // How often QEMU is asked until something is so, and whether it has to be asked at all, differs from time to time: each
    // command is found by its name.
    let breaks = |command: &String| (0..).take_while(|nth| breaks_at(&machine, &wire, command, *nth)).count();
    let broke: BTreeSet<String> = wire.said().into_iter().filter(|command| breaks(command) > 0).collect();
    for command in ["add-fd", "blockdev-add", "device_add", "device_del", "blockdev-del", "remove-fd"] {
        assert!(broke.contains(command), "{command} is not in {broke:?}");
    }
}

/// Attaches and detaches while the connection breaks at this command; whether it did.
fn breaks_at(machine: &Machine, wire: &Wire, command: &str, nth: usize) -> bool {
    wire.break_at(command, nth);
    let attached = machine.attach(Access::Writable);
    if let (Ok(attached), None) = (&attached, wire.broke_at()) {
        assert_eq!(machine.devices(), [attached[0].serial.as_str()], "{command} {nth}");
    }
    let detached = attached.is_ok().then(|| machine.detach());
    let Some(broke_at) = wire.broke_at() else {
        assert_eq!(detached, Some(Ok(DetachOutcome::Detached)));
        return false;
    };
    // What is left of it is the service's to know and to take out, which it does as soon as anybody asks.
    wait_until("what was begun is over", LIMIT, || match machine.attachments().is_empty() {
        true => true,
        false => {
            let _ = machine.detach();
            false
        }
    });
    machine.nothing_is_left(&format!("the connection broke at {command} {nth}: {broke_at}"));
    true
}
