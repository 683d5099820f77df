//! Stories in real virtual machines. Each reads as a short text.

mod boot;
mod snapshot;
mod stage;
