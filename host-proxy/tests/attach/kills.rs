//! The service is killed before each call by which it changes anything while a clone is attached and
//! detached, and started again.

use std::collections::BTreeSet;

use protocol::attach::{Access, DetachOutcome};
use protocol::message::{Reply, Request};

use super::guest::Guest;
use super::machine::Machine;
use super::tracer::{Before, Fault};

/// What a guest was told before the service was gone.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Told {
    attached: bool,
    asked_to_detach: bool,
    detached: bool,
}

#[test]
fn killed_before_any_call_the_service_keeps_what_it_told_and_leaves_nothing() {
    let mut machine = Machine::new(&["-machine", "q35", "-device", "virtio-scsi-pci,id=scsi"], "");
    let struck = whenever_it_is_killed_it_keeps_its_word(&mut machine, 1);
    for kind in ["write ", "send ", "create "] {
        assert!(struck.iter().any(|call| call.starts_with(kind)), "no {kind}in {struck:#?}");
    }
}

/// Before every call, or every so many; which they were.
pub(crate) fn whenever_it_is_killed_it_keeps_its_word(
    machine: &mut Machine,
    every: usize,
) -> BTreeSet<String> {
    let mut struck = BTreeSet::new();
    for n in (1..).step_by(every) {
        let guest = machine.guest();
        machine.served.traced().arm(Before::Nth(n), Fault::Kill(Box::new(|| ())));
        let mut told = Told::default();
        let all_was_said = converse(machine, guest, &mut told).is_some();
        let (call, _) = machine.served.traced().disarm();
        let Some(call) = call else {
            assert!(all_was_said && told.detached, "{told:?}");
            break;
        };
        machine.served.kill();
        machine.served.start();
        must_be_right(machine, told, &format!("killed before call {n}, {call}, {told:?}"));
        struck.insert(call);
    }
    println!("killed before {} different calls", struck.len());
    machine.nothing_is_left("at the end");
    struck
}

/// Attaches and detaches. `None` where the host was gone before the end.
fn converse(machine: &Machine, mut guest: Guest, told: &mut Told) -> Option<()> {
    guest.send(&machine.wish(Access::Writable));
    told.attached = matches!(guest.hears()?, Reply::Attached(_));
    told.asked_to_detach = true;
    guest.send(&Request::Detach(machine.id));
    told.detached = matches!(guest.hears()?, Reply::Detached(DetachOutcome::Detached));
    Some(())
}

/// What the catalog says is what QEMU has, and it is no less than the guest was told.
#[track_caller]
fn must_be_right(machine: &Machine, told: Told, when: &str) {
    let attached = machine.attachments();
    let names: Vec<_> = attached.iter().map(|one| one.serial.to_string()).collect();
    assert_eq!(machine.devices(), names, "{when}");
    assert_eq!(machine.clones(), names.len(), "{when}");
    if told.attached && !told.asked_to_detach {
        assert_eq!(names.len(), 1, "{when}: its guest is using it");
    }
    if told.detached {
        assert_eq!(names.len(), 0, "{when}");
    }
    assert_eq!(machine.attach(Access::Writable).unwrap().len(), 1, "{when}");
    assert_eq!(machine.detach().unwrap(), DetachOutcome::Detached, "{when}");
    machine.nothing_is_left(when);
}
