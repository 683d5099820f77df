//! Between a guest and the service: forwards the guest's conversations, and breaks them off when told.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Mutex, Weak};

use rustix::net::Shutdown;

use crate::link::{Link, Listener};

/// A line between a guest and the service that can be cut.
pub struct Relay {
    base: PathBuf,
    line: Arc<Line>,
}

#[derive(Default)]
struct Line {
    is_cut: AtomicBool,
    refused: AtomicU64,
    open: Mutex<Vec<Weak<Conversation>>>,
}

struct Conversation {
    guest: File,
    host: File,
}

impl Relay {
    /// Listens at the link's port and forwards to `base_PORT`, where a service listens that was
    /// given [`Relay::config`].
    ///
    /// # Panics
    /// When somebody else listens at that port.
    pub fn start(link: &Link, port: u32, base: &Path) -> Self {
        let listener = link.listen(port).expect("nobody else listens there");
        let line = Arc::new(Line::default());
        let to = PathBuf::from(format!("{}_{port}", base.display()));
        let of_thread = Arc::clone(&line);
        std::thread::spawn(move || of_thread.forward_all(&listener, &to));
        Self { base: base.to_owned(), line }
    }

    /// The line of a `[[vm]]` by which the service listens behind it.
    pub fn config(&self) -> String {
        format!("socket = \"{}\"", self.base.display())
    }

    /// Breaks off all conversations; new ones are broken off at once.
    pub fn cut(&self) {
        self.line.is_cut.store(true, SeqCst);
        for conversation in self.line.open().drain(..).filter_map(|open| open.upgrade()) {
            conversation.end();
        }
    }

    /// New conversations are forwarded again.
    pub fn mend(&self) {
        self.line.is_cut.store(false, SeqCst);
    }

    /// How many conversations have been broken off at once.
    pub fn refused(&self) -> u64 {
        self.line.refused.load(SeqCst)
    }
}

impl Line {
    fn open(&self) -> std::sync::MutexGuard<'_, Vec<Weak<Conversation>>> {
        self.open.lock().expect("no holder of this lock panics")
    }

    fn forward_all(&self, listener: &Listener, to: &Path) {
        while let Ok(guest) = listener.accept_socket() {
            if self.is_cut.load(SeqCst) {
                self.refused.fetch_add(1, SeqCst);
                continue;
            }
            // A service that is down breaks off the conversation as well.
            let Ok(host) = UnixStream::connect(to) else { continue };
            let conversation =
                Arc::new(Conversation { guest: guest.into(), host: OwnedFd::from(host).into() });
            self.open().push(Arc::downgrade(&conversation));
            // A cut between the look and the entry would have missed it.
            if self.is_cut.load(SeqCst) {
                conversation.end();
            }
            let back = Arc::clone(&conversation);
            std::thread::spawn(move || copy(&conversation.guest, &conversation.host, &conversation));
            std::thread::spawn(move || copy(&back.host, &back.guest, &back));
        }
    }
}

impl Conversation {
    fn end(&self) {
        for side in [&self.guest, &self.host] {
            let _ = rustix::net::shutdown(side, Shutdown::Both);
        }
    }
}

/// Until one side ends it; then the other learns that.
fn copy(mut from: &File, mut to: &File, conversation: &Conversation) {
    let mut bytes = [0; 4096];
    while let Ok(count) = from.read(&mut bytes)
        && count > 0
        && to.write_all(&bytes[..count]).is_ok()
    {}
    conversation.end();
}
