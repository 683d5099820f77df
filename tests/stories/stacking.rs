//! What stands on what, and what changes between the plan and the freeze: with real freezes. (`layouts` proves
//! by dry runs which disks are found.)

use harness::assets;
use harness::guest::{Output, Running};
use harness::initramfs::Tools;
use harness::vm::Plan;
use serde_json::Value;

use super::stage::{Stage, Writer, records_in};

fn set(name: &str, tools: &[Tools], serials: &[&str]) -> Stage {
    let plan = Plan::new(name)
        .memory_mib(768)
        .tools(tools.iter().copied())
        .file(&assets::guest_program("hostsnap-rehearsal"), "/usr/bin/hostsnap");
    let stage = Stage::planned(plan, "reflink", serials, "");
    stage.vm.guest.sh("mkdir -p /run/r && mkfifo /run/r/said /run/r/go");
    stage
}

#[test]
fn whatever_stands_on_what_is_frozen_in_its_order_and_held() {
    let tools = [Tools::DeviceMapper, Tools::Md, Tools::Xfs];
    let stage = set("stacking", &tools, &["luks", "md0", "md1", "plain", "xfs"]);
    let guest = &stage.vm.guest;
    guest.sh("echo secret > /run/key; \
         cryptsetup luksFormat -q --pbkdf pbkdf2 --pbkdf-force-iterations 1000 /dev/vda /run/key && \
         cryptsetup open --key-file /run/key /dev/vda secret && \
         lvm pvcreate -q /dev/mapper/secret && lvm vgcreate -q inner /dev/mapper/secret && \
         lvm lvcreate -q -y -Zn -l100%FREE -n lv inner && lvm vgmknodes; \
         mkfs.ext4 -q /dev/mapper/inner-lv && mkdir -p /luks && mount /dev/mapper/inner-lv /luks");
    guest
        .sh("mdadm --create /dev/md0 --run --level=1 --raid-devices=2 /dev/vdb /dev/vdc >/dev/null 2>&1 && \
         mkfs.ext4 -q /dev/md0 && mkdir -p /md && mount /dev/md0 /md");
    stage.mount("/dev/vdd", "/plain");
    // A file system in a file of a frozen one, twice; a nested mount, a read-only one, a bound file and folder,
    // and what a container engine makes.
    guest.sh("truncate -s 48M /plain/image && mkfs.ext4 -q /plain/image && mkdir -p /plain/nested && \
         mount -o loop /plain/image /plain/nested && \
         truncate -s 16M /plain/nested/image && mkfs.ext4 -q /plain/nested/image && mkdir -p /innermost && \
         mount -o loop /plain/nested/image /innermost && \
         mkdir -p /plain/d /bound /view && touch /plain/f /run/f && mount -o bind /plain/d /bound && \
         mount -o bind /plain/f /run/f && mount -o bind /plain/d /view && mount -o remount,ro,bind /view && \
         mkdir -p /plain/docker/lower /plain/docker/up /plain/docker/work /plain/docker/merged && \
         mount -t overlay overlay -o \
         lowerdir=/plain/docker/lower,upperdir=/plain/docker/up,workdir=/plain/docker/work /plain/docker/merged");
    // A reader whose every read is to be written down (velero-io/velero#2113).
    // So small ones are for XFS's own tests (mkfs/xfs_mkfs.c), and for ours.
    guest.sh("TEST_DIR=x TEST_DEV=x QA_CHECK_FS=x mkfs.xfs -q /dev/vde && mkdir -p /xfs && mount -o strictatime /dev/vde /xfs && \
         for i in 1 2 3; do echo $i > /xfs/$i; done");
    guest.spawn("while true; do cat /xfs/* > /dev/null; echo x >> /run/reads; done");
    let writers: Vec<_> = ["/luks/r", "/md/r", "/plain/r", "/innermost/r", "/plain/docker/merged/r"]
        .into_iter()
        .map(|file| Writer::start(&stage.vm, file))
        .collect();
    let before = writers[2].acknowledged();

    let snapshot = stage.create("/luks /md /plain /xfs");
    assert_eq!(snapshot["consistency"], "filesystem", "{snapshot}");
    let frozen: Vec<_> =
        snapshot["mounts"].as_array().unwrap().iter().map(|one| one["path"].as_str().unwrap()).collect();
    let place =
        |path: &str| frozen.iter().position(|one| *one == path).unwrap_or_else(|| panic!("{frozen:?}"));
    assert!(place("/innermost") < place("/plain/nested") && place("/plain/nested") < place("/plain"));
    assert_eq!(frozen.len(), 6, "each once: {frozen:?}");
    assert_eq!(snapshot["disks"].as_array().map(Vec::len), Some(5), "{snapshot}");
    assert!(records_in(&stage.image(&snapshot, "plain"), "r") >= before);
    writers.iter().for_each(Writer::goes_on);
    let reads = || guest.sh("wc -c < /run/reads").trim().parse::<u64>().unwrap();
    let seen = reads();
    harness::wait::wait_until("the reader goes on", super::stage::LIMIT, || reads() > seen);
    for path in ["/bound", "/plain/nested", "/plain/docker/merged"] {
        guest.sh(&format!("touch {path}/written"));
    }
}

/// A command that waits after a step.
struct Waiting<'a> {
    stage: &'a Stage,
    create: Running,
}

impl<'a> Waiting<'a> {
    fn after(stage: &'a Stage, step: &str, arguments: &str) -> Self {
        let command =
            format!("HOSTSNAP_REHEARSAL=/run/r:{step} exec hostsnap --json create --freeze-timeout 60s");
        let create = stage.vm.guest.spawn(&format!("{command} {arguments}"));
        assert_eq!(stage.vm.guest.run("timeout 60 head -c 1 /run/r/said").stdout, "!");
        Self { stage, create }
    }

    /// After this was done, it goes on to its end.
    fn and(self, script: &str) -> Output {
        self.stage.vm.guest.sh(script);
        self.stage.vm.guest.sh("printf g 1<>/run/r/go");
        self.create.wait()
    }
}

fn record(output: &Output) -> Value {
    serde_json::from_str(&output.stdout).unwrap_or_else(|_| panic!("{output:?}"))
}

#[track_caller]
fn says(output: &Output, code: i32, word: &str) {
    assert_eq!(output.status, code, "{output:?}");
    assert!(output.stderr.contains(word), "{word:?}: {output:?}");
}

#[test]
fn what_changes_between_the_plan_and_the_thaw_is_noticed() {
    let stage = set("changes", &[], &["data"]);
    let guest = &stage.vm.guest;
    guest.sh("printf 'n\\np\\n1\\n\\n+50M\\nn\\np\\n2\\n\\n\\nw\\n' | fdisk /dev/vda >/dev/null; sleep 1; \
         mkfs.ext4 -q /dev/vda1 && mkfs.ext4 -q /dev/vda2 && mkdir -p /a /b && mount /dev/vda1 /a");
    let is_frozen = |path: &str| guest.run(&format!("/sbin/fsfreeze -f {path}")).status != 0;

    // Something else on the same disk is mounted, and would have been cut unfrozen.
    for step in ["prepared", "frozen"] {
        let appeared = Waiting::after(&stage, step, "/a").and("mount /dev/vda2 /b");
        says(&appeared, if step == "prepared" { 6 } else { 7 }, "/b was mounted");
        guest.sh("umount /b && touch /a/written");
    }
    let appeared = Waiting::after(&stage, "frozen", "--consistency crash /a").and("mount /dev/vda2 /b");
    assert_eq!(record(&appeared)["consistency"], "crash");
    guest.sh("umount /b");

    // What was to be frozen is gone, or lies under something else.
    let gone = Waiting::after(&stage, "prepared", "/a").and("umount /a");
    says(&gone, 6, "leads to another file system");
    guest.sh("mount /dev/vda1 /a");
    let covered = Waiting::after(&stage, "prepared", "/a").and("mount -t tmpfs tmpfs /a");
    says(&covered, 6, "leads to another file system");
    guest.sh("umount /a && touch /a/written");

    // Somebody else has frozen it: theirs it stays.
    guest.sh("/sbin/fsfreeze -f /a");
    let theirs = guest.run("hostsnap --json create /a");
    says(&theirs, 6, "/a was frozen already, by somebody else");
    assert!(is_frozen("/a"), "it stays theirs");
    let crash = record(&guest.run("hostsnap --json create --consistency crash /a"));
    assert_eq!(crash["consistency"], "crash", "{crash}");
    assert!(crash["consistency_reason"].as_str().unwrap().contains("by somebody else"), "{crash}");
    assert!(is_frozen("/a"), "it stays theirs");
    guest.sh("/sbin/fsfreeze -u /a && touch /a/written");

    // Somebody else thaws it too early.
    let thawed = Waiting::after(&stage, "frozen", "/a").and("/sbin/fsfreeze -u /a");
    says(&thawed, 7, "had been thawed by somebody else");
    let thawed = Waiting::after(&stage, "frozen", "--consistency crash /a").and("/sbin/fsfreeze -u /a");
    assert_eq!(record(&thawed)["consistency"], "crash");

    assert_eq!(stage.create("/a")["consistency"], "filesystem");
    assert_eq!(stage.on_storage().len(), 4, "what was worth less than was asked for is not kept");
}
