//! A configuration with a mistake: at the start, and on a reload.

use harness::wait::wait_until;
use protocol::message::{Reply, Request};
use protocol::{Consistency, ErrorCode};
use rustix::process::Signal;

use super::stage::{LIMIT, Stage, conclude, cut, request};

#[test]
fn a_reload_with_a_mistake_changes_nothing_and_names_the_line() {
    let stage = Stage::set();
    let good = stage.config_text();
    // A conversation in the middle of a snapshot, and one that is idle.
    let mut idle = stage.greeted();
    let mut busy = stage.greeted();
    let prepared = busy.prepare(&request(Consistency::Filesystem)).unwrap();

    let second_machine = good.replace("name = \"db1\"", "name = \"db1\"\nalow = [\"list\"]");
    let no_store = good.replace("store = \"s\"", "store = \"t\"");
    let gone = good.replace(&stage.store.path().display().to_string(), "/nonexistent");
    for (bad, told) in [
        ("no toml at all".to_owned(), "hostsnapd.toml:1:"),
        (second_machine, "hostsnapd.toml:12:"),
        (no_store, "hostsnapd.toml:16:"),
        (gone, "set up the store s"),
    ] {
        let before = stage.printed().len();
        stage.configure(&bad);
        stage.signal(Signal::HUP);
        wait_until("the mistake is in the log", LIMIT, || {
            let log = stage.printed().split_off(before);
            log.contains("the configuration stays as it was") && log.contains(told)
        });
        assert_eq!(idle.ask(&Request::Ping(1)), Reply::Pong(1), "its conversation goes on");
        stage.take(&request(Consistency::Filesystem)).unwrap();
    }
    busy.asks(&cut(prepared.ticket)).unwrap();
    busy.asks(&conclude(prepared.ticket)).unwrap();
    assert_eq!(stage.listed().len(), 5);

    // What is right again is taken.
    stage.configure(&good.replace("name = \"db1\"", "name = \"db1\"\nallow = [\"list\"]"));
    stage.signal(Signal::HUP);
    wait_until("the new configuration is in force", LIMIT, || {
        stage.take(&request(Consistency::Filesystem)).is_err_and(|error| error.code == ErrorCode::Refused)
    });
    assert_eq!(idle.ask(&Request::Ping(2)), Reply::Pong(2));
}

#[test]
fn with_a_mistake_in_its_configuration_it_does_not_start() {
    let mut stage = Stage::set();
    stage.kill();
    stage.configure(&stage.config_text().replace("store = \"s\"", "store = \"t\""));
    for command in ["serve", "check", "rebuild-catalog", "audit"] {
        let run = stage.offline(&[command]);
        assert_eq!(run.code, 2, "{command}: {}", run.err);
        assert!(run.err.contains("hostsnapd.toml:16:"), "{command}: {}", run.err);
    }
    let told = stage.offline(&["check", "--json"]).error();
    assert!(told["message"].as_str().unwrap().contains("hostsnapd.toml:16:"), "{told}");
    stage.configure(&stage.config_text().replace(&stage.store.path().display().to_string(), "/nonexistent"));
    let run = stage.offline(&["serve"]);
    assert_eq!(run.code, 8, "{}", run.err);
    assert!(run.err.contains("/nonexistent"), "{}", run.err);
}
