//! A set of two disks over the drivers reflink and btrfs.

use std::collections::BTreeSet;

use nix::errno::Errno;

use super::host::Host;
use super::scene::{Ear, Scene, Snapshot, Told, converse};
use super::tracer::{Before, Fault};

/// What a conversation does to the host, by the calls that do it: without one of these, something is
/// not seen.
const KINDS: [&str; 11] = [
    "write ",
    "send ",
    "sync ",
    "chmod ",
    "clone into ",
    "btrfs ",
    "create ",
    "make ",
    "remove ",
    "link ",
    "rename to ",
];

/// What strikes the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Strike {
    Kill,
    PowerCut,
    Error(Errno),
}

#[test]
fn killed_before_any_call_the_service_knows_what_it_has() {
    before_every_call(Strike::Kill);
}

#[test]
fn without_power_before_any_call_the_host_knows_what_it_has() {
    before_every_call(Strike::PowerCut);
}

#[test]
fn whichever_call_fails_nothing_is_lost_and_nothing_is_left() {
    before_every_call(Strike::Error(Errno::EIO));
}

fn before_every_call(strike: Strike) {
    let mut trial = Trial::new(strike);
    let calls = (1..).find(|n| !trial.strike(Before::Nth(*n))).expect("the conversation has an end") - 1;
    // Two conversations do not always make the same calls in the same order.
    for name in trial.seen.difference(&trial.struck).cloned().collect::<Vec<_>>() {
        trial.strike(Before::Named(name));
    }
    let Trial { struck, .. } = &trial;
    println!("{strike:?}: before each of {calls} calls, {} of them different", struck.len());
    for kind in KINDS {
        let is_told = matches!(strike, Strike::Error(_)) && kind == "send ";
        assert!(is_told || struck.iter().any(|call| call.starts_with(kind)), "no {kind}in {struck:#?}");
    }
}

struct Trial {
    host: Host,
    strike: Strike,
    bystander: Snapshot,
    /// How often it was tried.
    count: usize,
    seen: BTreeSet<String>,
    struck: BTreeSet<String>,
}

impl Trial {
    fn new(strike: Strike) -> Self {
        let mut host = Host::new();
        host.must_start();
        let bystander = Snapshot::new(0);
        bystander.take(&host);
        Self { host, strike, bystander, count: 0, seen: BTreeSet::new(), struck: BTreeSet::new() }
    }

    /// One conversation, struck before this call. `false` if there was no such call.
    #[track_caller]
    fn strike(&mut self, before: Before) -> bool {
        self.count += 1;
        let byte = u8::try_from(self.count % 200 + 1).expect("below 202");
        self.host.write(byte);
        let [bystander, old, new] = [self.bystander.clone(), Snapshot::new(byte), Snapshot::new(byte)];
        let scene = Scene { bystander, old, new };
        scene.old.take(&self.host);

        let (ear, until_then) = (Ear::default(), Ear::default());
        let (power, heard, kept) = (self.host.power(), ear.clone(), until_then.clone());
        let fault = match self.strike {
            Strike::Kill => Fault::Kill(Box::new(|| ())),
            // Whatever was told until now binds the host, and nothing later.
            Strike::PowerCut => Fault::Kill(Box::new(move || {
                *kept.lock().unwrap() = *heard.lock().unwrap();
                power.cut();
            })),
            Strike::Error(errno) => Fault::Fail(errno),
        };
        self.host.service().arm(before.clone(), fault);
        converse(&self.host, &scene.new, &scene.old, &ear);
        let (struck, seen) = self.host.service().disarm();
        self.seen.extend(seen);
        let Some(call) = struck else {
            scene.must_be_right(&self.host, *ear.lock().unwrap(), "nothing happened");
            return false;
        };
        let mut told = *ear.lock().unwrap();
        match self.strike {
            Strike::Kill => self.kill_twice(),
            Strike::PowerCut => {
                self.host.lose_power();
                self.host.must_start();
                told = Told { asked_to_delete: told.asked_to_delete, ..*until_then.lock().unwrap() };
            }
            Strike::Error(_) => {
                self.host.folder.admin(&["reconcile"]);
            }
        }
        scene.must_be_right(&self.host, told, &format!("{:?} before {before:?}, {call}", self.strike));
        self.struck.insert(call);
        true
    }

    /// The service is killed once more while it picks up what is there; before another call each time.
    fn kill_twice(&mut self) {
        self.host.kill();
        let again = Before::Nth(self.count % 37 + 1);
        let up = self.host.start(Some((again, Fault::Kill(Box::new(|| ())))));
        let (call, _) = self.host.service().disarm();
        if !up || call.is_some() {
            self.host.kill();
            self.host.must_start();
        }
        self.struck.extend(call.map(|call| format!("at the start: {call}")));
    }
}
