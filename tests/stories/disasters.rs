//! Every disaster after every step of the flow, in real machines: the guest writes again, the record is
//! true, nothing leaks, and the exit code says what happened. Many in one boot; the table is printed.
//!
//! | module | idea |
//! |---|---|
//! | `table` | what can happen, and what must come of it |
//! | `scene` | the machine, its host, and the line between them |
//! | `cell` | one disaster after one step |

mod cell;
mod scene;
mod table;

use cell::{Cell, HOST_LEASE};
use scene::{Frozen, Scene};
use table::{Disaster, Step, expected};

#[test]
fn whatever_happens_after_whichever_step_a_guest_writes_again_and_nothing_is_left() {
    all_of(&Scene::set("disasters", Frozen::Data), &Step::ALL);
}

#[test]
fn it_also_does_with_its_own_root_its_program_and_its_log_frozen() {
    let scene = Scene::set("disasters-root", Frozen::RootToo);
    all_of(&scene, &[Step::Armed, Step::Frozen, Step::CutSent, Step::CutDone]);
}

/// What stops the flow must not be in what is shipped.
#[test]
fn only_the_tests_own_program_can_be_stopped_after_a_step() {
    let has_it = |name: &str| {
        let program = std::fs::read(harness::assets::guest_program(name)).unwrap();
        program.windows(18).any(|bytes| bytes == b"HOSTSNAP_REHEARSAL")
    };
    assert!(has_it("hostsnap-rehearsal"), "or this test sees nothing");
    assert!(!has_it("hostsnap"));
}

fn all_of(scene: &Scene, steps: &[Step]) {
    let head: String = steps.iter().map(|step| format!("{:>12}", step.name())).collect();
    println!("exit code, and how long an application waited at most:\n{:<18}{head}", "");
    let mut wrong = Vec::new();
    for disaster in Disaster::ALL {
        if disaster == Disaster::LeasePasses {
            scene.shorten_the_lease(HOST_LEASE);
        }
        let mut row = format!("{:<18}", format!("{disaster:?}"));
        for step in steps {
            let text = expected(disaster, *step)
                .filter(|_| is_worth_it(disaster, *step, scene.frozen))
                .map_or(Ok("-".to_owned()), |expected| {
                    Cell { scene, disaster, step: *step, expected }.rehearse()
                });
            row += &format!("{:>12}", text.as_deref().unwrap_or("WRONG"));
            if let Err(found) = text {
                wrong.push(format!("{disaster:?} after {}:\n  {}", step.name(), found.join("\n  ")));
            }
        }
        println!("{row}");
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// `HOSTSNAP_DISASTER` names the only one to be rehearsed, after every step. Without it, a host that is away, which takes its
/// minute each time, is rehearsed once: a shorter stall after every step is another row.
fn is_worth_it(disaster: Disaster, step: Step, frozen: Frozen) -> bool {
    match std::env::var("HOSTSNAP_DISASTER") {
        Ok(only) => only == format!("{disaster:?}"),
        Err(_) => disaster != Disaster::HostIsAway || (step, frozen) == (Step::Frozen, Frozen::RootToo),
    }
}
