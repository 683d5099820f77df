//! Attaching to a real QEMU in which no guest runs: what it takes by itself is enough to try every port, every
//! failure and every kill. What a guest makes of it is in the stories.
//!
//! | module | idea |
//! |---|---|
//! | `machine` | a QEMU, a service with one snapshot of its disk, and what both know |
//! | `ports` | where a disk goes, and where it does not |
//! | `trouble` | a guest that does not let go, a QEMU that does not answer, a lost catalog |
//! | `csi` | a snapshot that is a volume of a plugin's meanwhile |
//! | `cut` | a connection to QEMU that breaks after each command |
//! | `damaged` | a snapshot of which the storage lost something |
//! | `kills` | the service killed before each call by which it changes anything |

#[allow(dead_code)]
#[path = "../every_call/calls.rs"]
mod calls;
mod csi;
mod cut;
mod damaged;
#[allow(dead_code)]
#[path = "../common/guest.rs"]
mod guest;
mod kills;
mod machine;
mod ports;
#[allow(dead_code)]
#[path = "../common/served.rs"]
mod served;
#[allow(dead_code, reason = "the contract's; it can do more than is wanted here")]
#[path = "../contract/csi/server.rs"]
mod server;
#[allow(dead_code)]
#[path = "../every_call/tracer.rs"]
mod tracer;
mod trouble;
