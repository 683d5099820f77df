//! `/sys/kernel/rcu_expedited`: FIFREEZE waits for RCU grace periods, and expedited ones are several
//! times shorter (measured: a freeze of 120 ms became 30 ms). It is a setting of the whole guest, so
//! whoever sets it restores it, on every path.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;

use rustix::io::pwrite;

const PATH: &str = "/sys/kernel/rcu_expedited";

/// The setting, open, if there is one and it is ours to set.
pub(super) struct Expedite(File);

impl Expedite {
    /// `None` where the kernel has no such setting, or where it is set already: then it stays.
    pub(super) fn open() -> Option<Self> {
        let is_off = std::fs::read_to_string(PATH).ok()?.trim() == "0";
        let file = File::options().read(true).write(true).open(PATH).ok()?;
        is_off.then_some(Self(file))
    }

    pub(super) fn from_file(file: File) -> Self {
        Self(file)
    }

    pub(super) fn try_clone(&self) -> io::Result<File> {
        self.0.try_clone()
    }

    pub(super) fn on(&self) {
        self.write(b"1");
    }

    pub(super) fn off(&self) {
        self.write(b"0");
    }

    /// Best effort: a failure costs speed, or leaves the guest faster in a way that costs it power.
    fn write(&self, value: &[u8]) {
        let _ = pwrite(self.0.as_fd(), value, 0);
    }
}
