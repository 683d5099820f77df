//! `/sys/kernel/rcu_expedited`: FIFREEZE waits for RCU grace periods, and expedited ones are several
//! times shorter (measured in a guest: a freeze of 120 ms became 30 ms). It is a setting of the whole
//! machine, so whoever sets it restores it, on every path.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::pwrite;

const PATH: &str = "/sys/kernel/rcu_expedited";

/// The setting, open for writing.
pub(super) struct Expedite(OwnedFd);

impl Expedite {
    /// `None` where the kernel has no such setting, where we may not write it, or where it is set
    /// already: then it is somebody else's and stays.
    pub(super) fn open() -> Option<Self> {
        let mut file = File::options().read(true).write(true).open(PATH).ok()?;
        let mut value = String::new();
        file.read_to_string(&mut value).ok()?;
        (value.trim() == "0").then(|| Self(file.into()))
    }

    pub(super) fn on(&self) {
        self.write(b"1");
    }

    pub(super) fn off(&self) {
        self.write(b"0");
    }

    /// A failure costs speed only: either the freeze waits longer, or later grace periods are short
    /// and cost more CPU. Nothing could be done about it while frozen.
    fn write(&self, value: &[u8]) {
        let _ = pwrite(&self.0, value, 0);
    }

    pub(super) fn try_clone(&self) -> io::Result<Self> {
        self.0.try_clone().map(Self)
    }
}

/// For who had set it and was killed before it could restore it.
pub(super) fn off_in_their_stead() {
    // As with `write`.
    let _ = File::options().write(true).open(PATH).and_then(|file| Ok(pwrite(file, b"0", 0)?));
}

impl From<OwnedFd> for Expedite {
    fn from(fd: OwnedFd) -> Self {
        Self(fd)
    }
}

impl AsFd for Expedite {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
