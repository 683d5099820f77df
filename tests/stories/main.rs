//! Stories in real virtual machines. Each reads as a short text.

mod agent;
mod boot;
mod disasters;
mod faults;
mod from_the_host;
mod layouts;
mod lvm;
mod policy;
mod real_vsock;
mod shapes;
mod snapshot;
mod stage;
