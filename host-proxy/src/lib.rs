//! The host's side of Hostsnap: the service `hostsnapd` and its administrator's command line.

pub mod drivers;
