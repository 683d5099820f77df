//! Years in which snapshots come and go, some of them given up on the way: what the host needs does not grow with
//! them. In a process of its own, whose memory and descriptors are nobody else's.

use std::fs;
use std::process::Command;
use std::sync::Arc;

use protocol::ErrorCode;
use protocol::message::{Reply, Request};
use tokio::task::JoinSet;

use crate::guest::Machine;
use crate::host::Scratch;
use crate::number;
use crate::play::Play;
use crate::stage::Stage;
use crate::talk::Lost;

/// How many `cargo xtask test` plays.
const CYCLES: u64 = 5000;
/// How many there are in an hour.
const AN_HOUR: u64 = 50;
/// By how much the memory of a process may differ from one moment to another, in KiB.
const SLACK_KIB: u64 = 2048;
const ALONE: &str = "HOSTSNAP_CYCLES_ALONE";

#[derive(Debug)]
struct Needs {
    memory_kib: u64,
    descriptors: usize,
    catalog_bytes: u64,
}

#[test]
fn in_years_of_snapshots_that_come_and_go_nothing_grows() {
    if std::env::var_os(ALONE).is_some() {
        return years();
    }
    let name = "cycles::in_years_of_snapshots_that_come_and_go_nothing_grows";
    let mut alone = Command::new(std::env::current_exe().expect("this program"));
    let ended = alone.args(["--exact", name, "--nocapture"]).env(ALONE, "1").status();
    assert!(ended.expect("it starts").success());
}

fn years() {
    let cycles = number("HOSTSNAP_CYCLES").unwrap_or(CYCLES);
    let scratch = Arc::new(Scratch::new());
    scratch.clear();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
    let needs = runtime.expect("a runtime").block_on(async {
        let mut play = Play::new(Stage::new(1, false), Arc::clone(&scratch));
        play.mend();
        play.host.start();
        play.until(&mut JoinSet::new(), false).await.expect("it starts");
        let mut needs = Vec::new();
        for hour in 1..=cycles / AN_HOUR {
            an_hour(&mut play).await;
            if hour % (cycles / AN_HOUR / 10) == 0 {
                needs.push(what_it_needs(&scratch));
            }
        }
        needs
    });
    println!("{cycles} cycles, tenth by tenth: {needs:#?}");
    let (first, last) = (&needs[0], needs.last().expect("ten tenths"));
    assert!(last.memory_kib <= first.memory_kib + SLACK_KIB, "{needs:#?}");
    assert!(last.descriptors <= first.descriptors, "{needs:#?}");
    assert!(last.catalog_bytes <= first.catalog_bytes + 8 * 4096, "{needs:#?}");
}

/// Some snapshots of every machine, which are gone again at its end.
async fn an_hour(play: &mut Play) {
    let mut people = JoinSet::new();
    let machines = play.machines.iter().filter(|machine| machine.vm.guest_may_delete).cloned();
    let machines: Vec<_> = machines.collect();
    for machine in &machines {
        let count = AN_HOUR / machines.len() as u64;
        let machine = Arc::clone(machine);
        people.spawn(async move {
            for _ in 0..count {
                if come_and_go(&machine).await.is_err() {
                    machine.host.stage.broken("a conversation was lost in fair weather".to_owned());
                }
            }
        });
    }
    play.until(&mut people, false).await.unwrap_or_else(|what| panic!("{what}"));
    // A cut that came too late may have left its intent.
    let service = play.host.service().expect("it runs");
    people.spawn(async move { service.tend().await });
    play.until(&mut people, false).await.unwrap_or_else(|what| panic!("{what}"));
    let rows = play.observer.query_row("SELECT count(*) FROM snapshots", [], |row| row.get::<_, i64>(0));
    assert_eq!(rows.expect("the catalog"), 0);
    // What is gone is remembered for an hour by SQLite's own clock, which nobody sets here.
    play.observer.execute("UPDATE gone SET gone_at = gone_at - 4000", []).expect("the catalog");
    play.host.scratch.rotate_audit();
    let mut state = play.stage.lock();
    assert!(state.storage.owners().is_empty());
    // What the test itself remembers.
    state.witness = Default::default();
    state.storage.ever_whole.clear();
}

async fn come_and_go(machine: &Machine) -> Result<(), Lost> {
    let id = machine.new_wish();
    machine.create_once("user", id).await?;
    machine.with_wish(id, |wish| wish.may_be_deleted = true);
    loop {
        match machine.talk("user").await?.ask(&Request::Delete(id)).await? {
            Reply::Deleted(_) => break,
            // It was given up on its way.
            Reply::Error(error) if error.code == ErrorCode::NotFound => break,
            // It still settles, and was not waited for.
            Reply::Error(error) if error.code == ErrorCode::Busy => tokio::task::yield_now().await,
            other => {
                machine.nonsense(&other);
                break;
            }
        }
    }
    Ok(())
}

fn what_it_needs(scratch: &Scratch) -> Needs {
    let status = fs::read_to_string("/proc/self/status").expect("/proc");
    let memory = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("a size");
    Needs {
        memory_kib: memory.trim().trim_end_matches(" kB").parse().expect("a number"),
        descriptors: fs::read_dir("/proc/self/fd").expect("/proc").count(),
        catalog_bytes: fs::metadata(scratch.catalog()).expect("a catalog").len(),
    }
}
