//! The guest's side of Hostsnap: the command line `hostsnap` and its daemon.
//!
//! | room | idea |
//! |---|---|
//! | [`topology`] | path → mount → block stack → virtual disks |
//! | [`freeze`] | freezing, and above all thawing again |

pub mod freeze;
pub mod topology;
