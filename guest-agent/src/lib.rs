//! The guest's side of Hostsnap: the command line `hostsnap` and its daemon.
//!
//! | room | idea |
//! |---|---|
//! | [`topology`] | path → mount → block stack → virtual disks |
//! | [`freeze`] | freezing, and above all thawing again |
//! | [`hooks`] | quiescing applications |
//! | [`mount`] | what is in a snapshot: mounted, listed, copied |
//! | [`client`] | the conversation with the host |
//! | [`attach`] | a snapshot's disks in this machine |
//! | [`restore`] | this machine's disks with a snapshot's bytes |
//! | [`flow`] | the way of a snapshot, which joins all of these |
//! | [`commands`], [`daemon`], [`doctor`] | the ways to run the program, by [`cli`] |

pub mod attach;
pub mod cli;
pub mod client;
pub mod commands;
pub mod copy;
pub mod daemon;
pub mod doctor;
pub mod flow;
pub mod freeze;
pub mod hooks;
pub mod listing;
pub mod mount;
pub mod rehearsal;
pub mod restore;
pub mod topology;
