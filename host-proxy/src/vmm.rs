//! Virtual machine managers: what the drivers that work through one need of it.
//!
//! | module | idea |
//! |---|---|
//! | [`monitor`] | by whom a machine is asked: its QEMU, or libvirt |
//! | [`qmp`] | QEMU's machine protocol, with a limit on every wait |
//! | [`libvirt`] | libvirt, by `virsh` |
//! | [`pause`] | a machine that stands still |
//! | [`disk`] | which block node of a QEMU is the disk with this serial |
//! | [`plug`] | a disk plugged into a running QEMU, and taken out |
//! | `loop_device` | a file as a block device that clears itself |
//! | `port` | where a QEMU takes another disk |

pub mod disk;
pub mod libvirt;
mod loop_device;
pub mod monitor;
pub mod pause;
pub mod plug;
mod port;
pub mod qmp;
