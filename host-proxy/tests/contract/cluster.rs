//! A Ceph cluster on its bad days: it stalls, it is full, its images move, others work on them.

use std::error::Error;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use harness::ceph::{Ceph, POOL};
use harness::process::Process;
use harness::wait::wait_until;
use host_proxy::drivers::rbd::{Place, Rbd};
use host_proxy::drivers::{
    Deleted, Driver, DriverError, Exposed, Found, Kind, Others, Owner, Recovered, Volume,
};

use super::bench::Bench;
use super::ceph::{Pool, volume};
use super::{delete, first_byte, owner, plan, prepare, settle, soon, take};

/// What a call may take that the cluster does not answer: a few answers of three seconds each.
const SOON: Duration = Duration::from_secs(25);

fn told(error: &DriverError) -> String {
    let cause = error.source().map(ToString::to_string).unwrap_or_default();
    format!("{error}: {cause}")
}

fn impatient(pool: &Pool) -> Rbd {
    Rbd::new(pool.place()).unwrap()
}

#[track_caller]
fn unreachable<T>(call: impl FnOnce() -> Result<T, DriverError>) -> DriverError {
    let began = Instant::now();
    let error = call().err().expect("nobody answers");
    assert!(began.elapsed() < SOON, "{:?}: {}", began.elapsed(), told(&error));
    assert_eq!(error.kind, Kind::Unreachable, "{}", told(&error));
    assert!(told(&error).contains("did not answer in time"), "{}", told(&error));
    error
}

/// Ours, on the images themselves.
fn on_the_images(pool: &Pool) -> Vec<String> {
    let images = pool.volumes().into_iter().map(|volume| volume.source.to_string());
    images.flat_map(|image| pool.ceph.snapshots(&image)).collect()
}

#[track_caller]
fn nothing_is_left(pool: &Pool) {
    assert_eq!(pool.driver().list().unwrap(), []);
    assert_eq!(on_the_images(pool), Vec::<String>::new());
    for volume in pool.volumes() {
        let meta = pool.ceph.rbd(&["image-meta", "list", &volume.source.to_string()]);
        assert!(!meta.contains("hostsnap."), "{meta}");
    }
}

/// One after the other, on one cluster: each leaves it as it was, but the last.
#[test]
fn ceph_on_its_bad_days_loses_nothing_and_says_what_is_wrong() {
    let pool = Pool::start();
    a_snapshot_that_is_protected_is_busy_and_who_may_only_read_is_told_what_is_missing(&pool);
    a_cluster_that_does_not_answer_is_told_in_time_by_every_call(&pool);
    a_cluster_that_stalls_in_the_cut_leaves_a_snapshot_that_is_whole_or_nothing(&pool);
    a_cluster_that_stalls_after_the_cut_loses_nothing(&pool);
    in_a_pool_that_is_full_nothing_is_begun_and_deleting_goes_on(&pool);
    images_that_are_renamed_keep_their_snapshots_and_images_that_are_gone_are_told(&pool);
}

fn a_cluster_that_does_not_answer_is_told_in_time_by_every_call(pool: &Pool) {
    let [first, ..] = &pool.volumes()[..] else { panic!("no volume") };
    let warm = impatient(pool);
    warm.check(first).unwrap();
    {
        let _stalled = pool.ceph.stall_monitor();
        unreachable(|| impatient(pool).check(first));
        unreachable(|| impatient(pool).list());
        unreachable(|| warm.free_bytes());
    }
    {
        let _stalled = pool.ceph.stall_osd();
        unreachable(|| warm.check(first));
        unreachable(|| warm.read_head(first, 4096));
        unreachable(|| warm.list());
        unreachable(|| warm.delete(owner()));
        unreachable(|| warm.recover(owner(), &pool.volumes()));
        unreachable(|| warm.prepare(&plan(owner(), &pool.volumes()), soon()));
    }
    // The same connection is good again.
    assert_eq!(warm.list().unwrap(), []);
    warm.check(first).unwrap();
    nothing_is_left(pool);
}

fn a_cluster_that_stalls_in_the_cut_leaves_a_snapshot_that_is_whole_or_nothing(pool: &Pool) {
    for stall in [Ceph::stall_osd, Ceph::stall_monitor] {
        let owner = owner();
        let ready = impatient(pool).prepare(&plan(owner, &pool.volumes()), soon()).unwrap();
        let stalled = stall(&pool.ceph);
        let began = Instant::now();
        let error = ready.cut(soon()).err().expect("nobody answers");
        assert!(began.elapsed() < SOON, "{:?}", began.elapsed());
        assert!(matches!(error.kind, Kind::Unreachable | Kind::Busy), "{}", told(&error));
        assert!(error.undo_failed.is_some(), "what is left is told: {}", told(&error));
        drop(stalled);
        match pool.driver().recover(owner, &pool.volumes()).unwrap() {
            Recovered::Cut(cut) => cut.abandon().unwrap(),
            Recovered::Nothing => {}
            Recovered::Whole => panic!("nobody sealed it"),
        }
        nothing_is_left(pool);
    }
    delete(pool, take(pool));
}

fn a_cluster_that_stalls_after_the_cut_loses_nothing(pool: &Pool) {
    let owner = owner();
    for volume in &pool.volumes() {
        pool.write(volume, 0x11);
    }
    let mut cut =
        impatient(pool).prepare(&plan(owner, &pool.volumes()), soon()).unwrap().cut(soon()).unwrap();
    let stalled = pool.ceph.stall_osd();
    settle(&mut *cut).unwrap();
    unreachable(|| cut.seal(b"final"));
    drop(stalled);
    for volume in &pool.volumes() {
        pool.write(volume, 0x22);
    }
    if let Recovered::Cut(mut again) = pool.driver().recover(owner, &pool.volumes()).unwrap() {
        settle(&mut *again).unwrap();
        again.seal(b"final").unwrap();
    }
    let whole = Found { owner, whole: true, manifest: Some(b"final".to_vec()) };
    assert_eq!(pool.driver().list().unwrap(), [whole]);
    for volume in &pool.volumes() {
        assert_eq!(first_byte(pool, owner, volume), 0x11);
    }
    delete(pool, owner);
}

fn in_a_pool_that_is_full_nothing_is_begun_and_deleting_goes_on(pool: &Pool) {
    let kept = take(pool);
    let ready = prepare(pool, owner());
    let filler = pool.fill();
    let error =
        pool.driver().prepare(&plan(owner(), &pool.volumes()), soon()).err().expect("there is no room");
    assert_eq!(error.kind, Kind::NoSpace, "{}", told(&error));
    assert!(told(&error).contains("ceph osd pool get-quota vms"), "{}", told(&error));
    // What was prepared before it was full may be cut or not; what it comes to is the truth.
    match ready.cut(soon()) {
        Ok(cut) => cut.abandon().unwrap(),
        Err(error) => assert_eq!(error.kind, Kind::NoSpace, "{}", told(&error)),
    }
    assert_eq!(pool.driver().delete(kept).unwrap(), Deleted::Gone);
    assert_eq!(pool.driver().list().unwrap(), []);
    drop(filler);
    nothing_is_left(pool);
}

fn images_that_are_renamed_keep_their_snapshots_and_images_that_are_gone_are_told(pool: &Pool) {
    let [first, second] = &pool.volumes()[..] else { panic!("two volumes") };
    pool.write(first, 0x11);
    let ready = prepare(pool, owner());
    pool.ceph.rbd(&["rename", "db1-one", "moved"]);
    ready.cut(soon()).unwrap().abandon().unwrap();
    let error = pool.driver().check(first).unwrap_err();
    assert_eq!(error.kind, Kind::NotFound, "{}", told(&error));
    assert!(told(&error).contains("db1-one"), "{}", told(&error));
    pool.ceph.rbd(&["rename", "moved", "db1-one"]);

    let kept = take(pool);
    pool.ceph.rbd(&["rename", "db1-one", "moved"]);
    assert_eq!(first_byte(pool, kept, first), 0x11);
    let Exposed::Node(node) = pool.driver().expose().unwrap().expose(kept, &first.serial).unwrap() else {
        panic!("no node")
    };
    assert_eq!(node["image"], "moved");
    pool.ceph.rbd(&["rename", "moved", "db1-one"]);

    // A hand that removes one of its snapshots: it is whole no more, and what is left can be deleted.
    let name = format!("db1-one@hostsnap.{}", kept.snapshot);
    pool.ceph.rbd(&["snap", "rm", "--no-progress", &name]);
    let listed = pool.driver().list().unwrap();
    assert!(matches!(&listed[..], [Found { whole: false, .. }]), "{listed:?}");
    // A snapshot that took its name since is not ours.
    pool.ceph.rbd(&["snap", "create", "--no-progress", &name]);
    assert!(!pool.driver().list().unwrap()[0].whole);
    delete(pool, kept);
    assert_eq!(on_the_images(pool), [format!("hostsnap.{}", kept.snapshot)]);
    // And nothing is begun where that name is taken.
    let error = pool.driver().prepare(&plan(kept, &pool.volumes()), soon()).err().expect("it is taken");
    assert_eq!(error.kind, Kind::Exists, "{}", told(&error));
    assert!(matches!(pool.driver().recover(kept, &pool.volumes()).unwrap(), Recovered::Nothing));
    pool.ceph.rbd(&["snap", "rm", "--no-progress", &name]);
    nothing_is_left(pool);

    pool.ceph.rbd(&["rm", "--no-progress", "db1-two"]);
    let error = pool.driver().prepare(&plan(owner(), &pool.volumes()), soon()).err().expect("one is gone");
    assert_eq!(error.kind, Kind::NotFound, "{}", told(&error));
    assert_eq!(pool.driver().check(second).unwrap_err().kind, Kind::NotFound);
    assert_eq!(pool.driver().list().unwrap(), []);
}

fn a_snapshot_that_is_protected_is_busy_and_who_may_only_read_is_told_what_is_missing(pool: &Pool) {
    let kept = take(pool);
    let name = format!("db1-two@hostsnap.{}", kept.snapshot);
    pool.ceph.rbd(&["snap", "protect", &name]);
    let error = pool.driver().delete(kept).unwrap_err();
    assert_eq!(error.kind, Kind::Busy, "{}", told(&error));
    assert!(told(&error).contains("rbd snap unprotect"), "{}", told(&error));
    assert!(pool.driver().list().unwrap()[0].whole, "it stays as it was");
    pool.ceph.rbd(&["snap", "unprotect", &name]);
    delete(pool, kept);

    let [first, ..] = &pool.volumes()[..] else { panic!("no volume") };
    let reader = Rbd::new(Place { user: "reader".to_owned(), ..pool.place() }).unwrap();
    let error = reader.check(first).unwrap_err();
    assert!(told(&error).contains("ceph auth caps"), "{}", told(&error));
    let stranger = Rbd::new(Place { user: "stranger".to_owned(), ..pool.place() }).unwrap();
    let error = stranger.check(first).unwrap_err();
    assert!(told(&error).contains("connect to the cluster of"), "{}", told(&error));
    let elsewhere = Rbd::new(Place { pool: "absent".to_owned(), ..pool.place() }).unwrap();
    let error = elsewhere.check(first).unwrap_err();
    assert_eq!(error.kind, Kind::NotFound, "{}", told(&error));
    assert!(told(&error).contains("open the pool absent"), "{}", told(&error));
}

/// A client that has the exclusive lock of the image, as a QEMU has.
fn writer(pool: &Pool, log: &Path) -> Process {
    let mut writer = Command::new("rbd");
    writer.arg("-c").arg(pool.ceph.conf()).args(["-n", "client.admin", "-p", POOL]);
    writer.args([
        "bench",
        "--io-type",
        "write",
        "--io-size",
        "4K",
        "--io-threads",
        "1",
        "--io-total",
        "100G",
    ]);
    writer.arg("db1-one");
    let process = Process::start(&mut writer, log);
    wait_until("somebody writes to the image", Duration::from_secs(30), || {
        pool.ceph.rbd(&["lock", "ls", "db1-one", "--format", "json"]).contains("auto")
    });
    process
}

/// QEMU makes the snapshot on behalf of who asks. One that was asked for by a process which was killed
/// appeared after `recover` had removed all that was known of it: nobody would ever have found it.
#[test]
fn a_cut_whose_asker_was_killed_leaves_nothing_that_nobody_knows() {
    // The monitor takes its time: the kill comes in the middle.
    let pool = Pool::on(Ceph::with("paxos_propose_interval = 2\n"));
    let folder = tempfile::tempdir().unwrap();
    let mut writer = writer(&pool, &folder.path().join("writer"));
    let owner = owner();
    let mut child = other_process(&pool, owner, "cut", &[]);
    std::thread::sleep(Duration::from_millis(300));
    child.kill();
    match pool.driver().recover(owner, &pool.volumes()).unwrap() {
        Recovered::Cut(cut) => cut.abandon().unwrap(),
        Recovered::Nothing => {}
        Recovered::Whole => panic!("nobody sealed it"),
    }
    writer.must_live();
    // Longer than the monitor takes for anything that was still under way.
    std::thread::sleep(Duration::from_secs(5));
    nothing_is_left(&pool);
}

#[test]
fn what_another_host_is_making_is_left_alone_until_that_host_is_gone() {
    let pool = Pool::on(Ceph::with(
        "paxos_propose_interval = 0.02\npaxos_min_wait = 0.01\nosd_client_watch_timeout = 3\n",
    ));
    // The same machine, by its process; and another one, by its connection.
    for another in [&[][..], &["unshare", "--uts", "sh", "-c", "hostname another; exec \"$@\"", "sh"][..]] {
        let owner = owner();
        let mut child = other_process(&pool, owner, "prepare", another);
        assert_eq!(pool.driver().list().unwrap(), [], "it is theirs");
        for error in [
            pool.driver().recover(owner, &pool.volumes()).err().expect("somebody works on it"),
            pool.driver().delete(owner).unwrap_err(),
        ] {
            assert_eq!(error.kind, Kind::Busy, "{}", told(&error));
        }
        child.kill();
        wait_until("that host is known to be gone", Duration::from_secs(60), || {
            pool.driver().recover(owner, &pool.volumes()).is_ok()
        });
        nothing_is_left(&pool);
    }
    an_image_that_another_has_open_is_that_of_no_stopped_machine(&pool);
    a_restore_that_was_killed_with_the_lock_is_finished_by_the_next(&pool);
    nothing_is_left(&pool);
}

fn restore(pool: &Pool, owner: Owner, others: Others) -> Result<(), DriverError> {
    pool.driver().restore().expect("it can").restore(owner, &pool.volumes()[0], others, &mut |_| {})
}

fn an_image_that_another_has_open_is_that_of_no_stopped_machine(pool: &Pool) {
    let [first, ..] = &pool.volumes()[..] else { panic!("no volume") };
    pool.write(first, 0x11);
    let kept = take(pool);
    pool.write(first, 0x22);
    let another = owner();
    let mut child = other_process(pool, another, "prepare", &[]);
    let could = pool.driver().restore().expect("it can").can_restore(kept, first, Others::Nobody);
    assert_eq!(could.expect_err("it is open").kind, Kind::Busy);
    let error = restore(pool, kept, Others::Nobody).expect_err("it is open");
    assert_eq!(error.kind, Kind::Busy, "{}", told(&error));
    assert!(told(&error).contains("rbd status db1-one"), "{}", told(&error));
    assert_eq!(pool.driver().read_head(first, 1).unwrap(), [0x22], "it was refused and touched");
    child.kill();
    wait_until("nobody has it open", Duration::from_secs(60), || restore(pool, kept, Others::Nobody).is_ok());
    assert_eq!(pool.driver().read_head(first, 1).unwrap(), [0x11]);
    assert!(matches!(pool.driver().recover(another, &pool.volumes()).unwrap(), Recovered::Nothing));
    delete(pool, kept);
}

fn a_restore_that_was_killed_with_the_lock_is_finished_by_the_next(pool: &Pool) {
    let [first, ..] = &pool.volumes()[..] else { panic!("no volume") };
    pool.write(first, 0x33);
    let kept = take(pool);
    pool.write(first, 0x44);
    other_process(pool, kept, "restore", &[]).kill();
    wait_until("the lock of who is gone is broken", Duration::from_secs(60), || {
        restore(pool, kept, Others::Machine).is_ok()
    });
    assert_eq!(pool.driver().read_head(first, 1).unwrap(), [0x33]);
    pool.write(first, 0x55);
    delete(pool, kept);
}

/// Another process that does one thing with a snapshot of all volumes, and waits to be killed.
fn other_process(pool: &Pool, owner: Owner, what: &str, through: &[&str]) -> Process {
    let me = std::env::current_exe().unwrap();
    let done = tempfile::tempdir().unwrap();
    let log = done.path().join("log");
    let mut words: Vec<&str> = through.to_vec();
    let me = me.to_str().unwrap();
    words.extend([me, "--ignored", "--exact", "--nocapture", "cluster::as_another_process"]);
    let mut command = Command::new(words[0]);
    command.args(&words[1..]);
    command.env("HOSTSNAP_TEST_CONF", pool.ceph.conf()).env("HOSTSNAP_TEST_WHAT", what);
    command.env("HOSTSNAP_TEST_SNAPSHOT", owner.snapshot.to_string());
    let mut process = Process::start(&mut command, &log);
    wait_until("the other process is there", Duration::from_secs(30), || {
        process.must_live();
        process.printed().contains("THERE")
    });
    process
}

#[test]
#[ignore = "run by those above, as a process of its own"]
fn as_another_process() {
    let var = |name: &str| std::env::var(name).expect("it is run by another test");
    let place = Place {
        pool: POOL.to_owned(),
        namespace: None,
        conf: var("HOSTSNAP_TEST_CONF").into(),
        user: harness::ceph::USER.to_owned(),
        timeout: Duration::from_secs(15),
    };
    let owner = Owner { snapshot: var("HOSTSNAP_TEST_SNAPSHOT").parse().unwrap(), ..owner() };
    let volumes: Vec<Volume> = vec![volume("db1-one", "one"), volume("db1-two", "../two")];
    let driver = Rbd::new(place).unwrap();
    if var("HOSTSNAP_TEST_WHAT") == "restore" {
        let mut stay = |_| {
            println!("THERE");
            std::thread::sleep(Duration::from_secs(600));
        };
        driver.restore().unwrap().restore(owner, &volumes[0], Others::Machine, &mut stay).unwrap();
    }
    let ready = driver.prepare(&plan(owner, &volumes), soon()).unwrap();
    println!("THERE");
    let _cut = match var("HOSTSNAP_TEST_WHAT").as_str() {
        "cut" => Some(ready.cut(soon()).unwrap()),
        _ => {
            std::mem::forget(ready);
            None
        }
    };
    std::thread::sleep(Duration::from_secs(600));
}
