//! Never a lost snapshot, never an unknown one: proved at every call by which `hostsnapd` changes
//! anything. The real service takes and deletes real snapshots, and right before its nth such call it is
//! killed, or the host loses power, or the call fails; for every n that there is. The calls are found by
//! the kernel (ptrace), so none can be forgotten, and nothing for it is in the program.
//!
//! | module | idea |
//! |---|---|
//! | `tracer`, `calls` | stopping a program before its nth call; which calls count |
//! | `host` | the host: disks that lose power, a service over two stores |
//! | `scene` | what a guest does meanwhile, and what must be true afterwards |
//! | `files` | kills, power cuts, errors: a set over the drivers reflink and btrfs |
//! | `restores` | kills and power cuts while that set is given back its old bytes |

mod calls;
mod files;
#[allow(dead_code)]
#[path = "../common/guest.rs"]
mod guest;
mod host;
mod restores;
mod scene;
#[allow(dead_code)]
#[path = "../common/served.rs"]
mod served;
#[allow(dead_code)]
mod tracer;
