//! The real service, as a process with a state folder, a store and a socket of its own, on its bad
//! days: no room, a damaged catalog, a configuration with a mistake, guests and services that end in
//! the middle. Each ends in a clear error and its exit code, with nothing lost and nothing left.

mod catalog;
mod comparing;
mod configuration;
mod exporting;
mod full;
#[path = "../common/guest.rs"]
mod guest;
mod interrupted;
mod locks;
mod refusals;
mod restore;
mod stage;
mod usage;
mod volumes;
