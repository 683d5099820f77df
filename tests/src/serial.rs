//! What harness and guest say to each other over a virtio serial port: a line of JSON each. The
//! port, not vsock: vsock is what is tested.

use serde::{Deserialize, Serialize};

/// The port's name.
pub const PORT: &str = "hostsnap.harness";

/// On the kernel's command line, `NAME=SERIAL`: start the whole Debian on the disk with this serial.
pub const DEBIAN_ROOT: &str = "harness.debian";

/// In the initramfs, files that the whole Debian gets at the same places.
pub const FOR_DEBIAN: &str = "/for-debian";

/// What the harness says.
#[derive(Debug, Serialize, Deserialize)]
pub struct Ask {
    /// To find the answer.
    pub id: u64,
    /// A shell script, run by the guest's `sh`: busybox's, or Debian's.
    pub script: String,
}

/// What the guest says: first that it is there, then an answer to each `Ask`, in any order.
#[derive(Debug, Serialize, Deserialize)]
pub enum Say {
    /// It has booted.
    Booted,
    /// A script ended.
    Ended {
        /// Of the `Ask`.
        id: u64,
        /// Its exit code; 128 + n for a signal.
        status: i32,
        /// What it printed.
        stdout: String,
        /// What it complained about.
        stderr: String,
    },
}
