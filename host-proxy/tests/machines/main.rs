//! What the host does to whole machines, with real ones in which no guest runs: pauses them for a cut, finds them in
//! libvirt, plugs disks into them by it. What guests make of it is in the stories.
//!
//! | module | idea |
//! |---|---|
//! | `stage` | a QEMU with two disks, and the service |
//! | `alone` | a snapshot without the guest: the machine stands still, and goes on whatever happens |
//! | `domains` | a libvirtd with domains, and the service |
//! | `libvirt` | its machines: found, followed, paused, and disks plugged into them |
//! | `ceph` | one of them whose disk is an image of Ceph's |
//! | `moving` | machines on their way from one host to another, or to a file |

mod alone;
#[allow(dead_code)]
#[path = "../every_call/calls.rs"]
mod calls;
mod ceph;
mod domains;
#[allow(dead_code)]
#[path = "../common/guest.rs"]
mod guest;
mod libvirt;
mod moving;
#[allow(dead_code)]
#[path = "../common/served.rs"]
mod served;
mod stage;
#[allow(dead_code)]
#[path = "../every_call/tracer.rs"]
mod tracer;
