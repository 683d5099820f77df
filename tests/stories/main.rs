//! Stories in real virtual machines. Each reads as a short text.

mod agent;
mod attach;
mod boot;
mod ceph;
mod databases;
mod disasters;
mod faults;
mod from_the_host;
mod hooks;
mod inside;
mod layouts;
mod libvirt;
mod lvm;
mod mounted;
mod next_boot;
mod policy;
mod power;
mod real_vsock;
mod servers;
mod shapes;
mod snapshot;
mod stacking;
mod stage;
mod unit;
mod whole_machine;
mod zfs;
