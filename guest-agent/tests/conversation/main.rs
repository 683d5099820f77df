//! Whole conversations between the guest's flow and a host that a test plays, with every fault, on a
//! real file system that is really frozen. Needs root.

mod commands;
mod faults;
mod host;
mod lost;
mod minimum;
mod signals;
mod stage;
mod way;
