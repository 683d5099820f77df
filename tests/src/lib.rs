//! What the tests of all crates share: real file systems on loop devices, real virtual machines.
//!
//! | module | idea |
//! |---|---|
//! | [`loopfs`] | a file system of its own, on a loop device, for one test |
//! | [`ceph`] | a Ceph cluster on loopback, for one test |
//! | [`wait`] | wait for a state with a limit, never for a time |
//! | [`assets`] | kernel, programs, device: what `cargo xtask setup` made |
//! | [`initramfs`] | the guests' root file system |
//! | [`platform`] | what this machine can give a guest: KVM or emulation, which vsock device |
//! | [`link`] | a guest's vsock device |
//! | [`relay`] | between a guest and the service: a line that can be cut |
//! | [`vm`] | a virtual machine |
//! | [`guest`] | running commands in it, over a serial port |
//! | [`within`] | a test that runs inside of such a machine |
//! | [`serial`] | what is said on that port, for both ends |
//! | [`hostsnapd`] | the service, with a configuration for these machines |
//! | [`libvirt`] | a libvirtd, for one test |
//! | [`domain`] | a virtual machine that it runs |
//! | [`monitor`] | a machine's QMP monitor, as a test asks it |
//! | [`process`] | a process that is ended when dropped |
//! | [`figures`] | what the benchmarks make of their raw figures |
//! | [`records`] | what the tests' application writes, and how it is verified |

pub mod assets;
pub mod ceph;
pub mod domain;
pub mod figures;
pub mod guest;
pub mod hostsnapd;
pub mod initramfs;
pub mod libvirt;
pub mod link;
pub mod loopfs;
pub mod monitor;
pub mod platform;
pub mod process;
pub mod records;
pub mod relay;
pub mod serial;
pub mod vm;
pub mod wait;
pub mod within;
