//! The host's side of Hostsnap: the service `hostsnapd` and its administrator's command line.
//!
//! | room | idea |
//! |---|---|
//! | [`config`] | what the administrator configures, checked as a whole |
//! | [`listen`] | where guests come in, and who they are |
//! | [`session`], [`boots`] | one conversation with a guest; which boot of it speaks |
//! | [`policy`] | who may do what; pure |
//! | [`service`] | the only room that joins policy, drivers, vmm and catalog |
//! | [`drivers`] | storage devices that take snapshots |
//! | [`vmm`] | virtual machine managers: QEMU |
//! | [`exec`] | external programs, each run with a limit |
//! | [`export`] | a snapshot's disk served over NBD, by a child |
//! | [`catalog`], [`audit`] | what is known, what was decided |
//! | [`control`], [`agent`] | the administrator's way in; the way to a guest's daemon |
//! | [`discover`] | the machines that libvirt has |
//! | [`world`], [`transport`] | a configuration made real; frames over streams |
//! | [`serve`], [`check`], [`admin`], [`offline`] | the ways to run the program, by [`cli`] |
//! | [`failure`] | how each of them ends when it failed |

pub mod admin;
pub mod agent;
pub mod audit;
pub mod boots;
pub mod catalog;
pub mod check;
pub mod cli;
pub mod config;
pub mod control;
pub mod discover;
pub mod drivers;
pub mod exec;
pub mod export;
pub mod failure;
pub mod listen;
pub mod offline;
pub mod policy;
pub mod serve;
pub mod service;
pub mod session;
mod this_host;
pub mod transport;
pub mod vmm;
pub mod world;
