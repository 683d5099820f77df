//! Virtual machine managers: what the drivers that work through one need of it.
//!
//! | module | idea |
//! |---|---|
//! | [`qmp`] | QEMU's machine protocol, with a limit on every wait |
//! | [`disk`] | which block node of a QEMU is the disk with this serial |
//! | [`plug`] | a disk plugged into a running QEMU, and taken out |
//! | `port` | where a QEMU takes another disk |

pub mod disk;
pub mod plug;
mod port;
pub mod qmp;
