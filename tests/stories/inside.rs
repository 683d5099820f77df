//! Looking into a snapshot while its original is mounted, and has been written to since. The host is played: its
//! answers are the protocol's, and the disks that it plugs in were there from the start, filled when the snapshot
//! was taken. What is proved is the guest's side: on a real kernel, with real LVM, md, LUKS and file systems.

use std::fs::File;
use std::io::{Read, Write};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use harness::initramfs::Tools;
use harness::link::{Link, Listener};
use harness::vm::{Plan, Vm, blank_image};
use protocol::attach::{Access, Attach, AttachedName, Attachment, DetachOutcome};
use protocol::evidence::CutEvidence;
use protocol::frame::{self, HEADER};
use protocol::message::{Reply, Request, Welcome};
use protocol::record::{DiskRecord, MountRecord, SnapshotRecord, State, Timing, UnixMillis};
use protocol::text::Line;
use protocol::{Consistency, SnapshotId};
use serde_json::Value;

const ID: &str = "bf77abd9-d60d-5492-9bd0-07059232c906";
/// The disks, and whether a snapshot of one is plugged in read-only.
const DISKS: [(&str, u64, Access); 9] = [
    ("part", 64, Access::ReadOnly),
    ("xfs", 64, Access::ReadOnly),
    ("bt0", 128, Access::Writable),
    ("bt1", 128, Access::Writable),
    ("lv0", 64, Access::ReadOnly),
    ("lv1", 64, Access::ReadOnly),
    ("md0", 64, Access::ReadOnly),
    ("md1", 64, Access::ReadOnly),
    ("luks", 64, Access::ReadOnly),
];
const MOUNTS: [(&str, &str); 7] = [
    ("/part", "ext4"),
    ("/xfs", "xfs"),
    ("/bt", "btrfs"),
    ("/sub", "btrfs"),
    ("/lv", "ext4"),
    ("/md", "ext4"),
    ("/luks", "ext4"),
];

fn id() -> SnapshotId {
    ID.parse().unwrap()
}

fn serial(index: usize) -> protocol::DiskSerial {
    AttachedName::new(id(), index).serial()
}

/// The host's side of what is attached.
#[derive(Clone, Default)]
struct Host(Arc<Mutex<Vec<Attachment>>>);

impl Host {
    fn listen(&self, link: &Link) {
        let listener = link.listen(989).expect("nobody else listens");
        let host = self.clone();
        std::thread::spawn(move || host.serve(&listener));
    }

    fn serve(&self, listener: &Listener) {
        while let Ok(socket) = listener.accept_socket() {
            let (host, mut stream) = (self.clone(), File::from(socket));
            std::thread::spawn(move || while host.answer(&mut stream).is_ok() {});
        }
    }

    fn answer(&self, stream: &mut File) -> std::io::Result<()> {
        let mut header = [0; HEADER];
        stream.read_exact(&mut header)?;
        let mut payload = vec![0; frame::payload_len(header).expect("a request")];
        stream.read_exact(&mut payload)?;
        let mut attached = self.0.lock().expect("no holder of this lock panics");
        let reply = match frame::decode(&payload).expect("a request") {
            Request::Hello(_) => Reply::Hello(Welcome {
                version: 1,
                host_version: "0.1.0".parse().unwrap(),
                vm: "app".parse().unwrap(),
            }),
            Request::Get(_) => Reply::Snapshot(Box::new(record())),
            Request::Attachments => Reply::Attached(attached.clone().try_into().unwrap()),
            Request::Attach(attach) => Reply::Attached(plug_in(&mut attached, &attach).try_into().unwrap()),
            Request::Detach(_) => {
                let outcome =
                    if attached.is_empty() { DetachOutcome::WasNotAttached } else { DetachOutcome::Detached };
                attached.clear();
                Reply::Detached(outcome)
            }
            other => panic!("{other:?} is not expected"),
        };
        drop(attached);
        stream.write_all(&frame::encode(&reply).expect("a reply"))
    }

    #[track_caller]
    fn has_nothing_attached(&self) {
        let attached = self.0.lock().unwrap();
        assert!(attached.is_empty(), "{attached:?}");
    }
}

fn plug_in(attached: &mut Vec<Attachment>, attach: &Attach) -> Vec<Attachment> {
    let wanted =
        |disk: &str| attach.disks.is_empty() || attach.disks.iter().any(|serial| serial.as_str() == disk);
    let new: Vec<_> = DISKS
        .iter()
        .enumerate()
        .filter(|(_, (disk, ..))| wanted(disk))
        .map(|(index, (disk, mib, _))| Attachment {
            snapshot: id(),
            disk: disk.parse().unwrap(),
            serial: serial(index),
            access: attach.access,
            size_bytes: mib << 20,
        })
        .collect();
    for one in &new {
        if !attached.iter().any(|known| known.serial == one.serial) {
            attached.push(one.clone());
        }
    }
    new
}

fn record() -> SnapshotRecord {
    let mounts = MOUNTS.map(|(path, fs_type)| MountRecord {
        path: path.parse().unwrap(),
        fs_type: fs_type.parse().unwrap(),
    });
    let disks = DISKS.map(|(serial, mib, _)| DiskRecord {
        serial: serial.parse().unwrap(),
        driver: "reflink".parse().unwrap(),
        handle: "handle".parse().unwrap(),
        size_bytes: mib << 20,
    });
    SnapshotRecord {
        id: id(),
        vm_uuid: protocol::VmUuid::from_uuid("5f0b6f3e-8f0c-4c6e-9a55-000000000001".parse().unwrap()),
        vm: "app".parse().unwrap(),
        request: "5f0b6f3e-8f0c-4c6e-9a55-000000000002".parse().unwrap(),
        created_at: UnixMillis(1_795_507_200_123),
        consistency: Consistency::Filesystem,
        consistency_reason: Line::lossy("played"),
        minimum: Consistency::Filesystem,
        state: State::Ready,
        labels: Default::default(),
        note: "".parse().unwrap(),
        mounts: mounts.to_vec().try_into().unwrap(),
        disks: disks.to_vec().try_into().unwrap(),
        timing: Timing::default(),
        expires_at: None,
        locked_until: None,
        evidence: None,
        cut: CutEvidence::Unknown,
    }
}

/// A machine with everything mounted, and a snapshot of it in which each `file` says "before".
struct Scene {
    vm: Vm,
    host: Host,
    _folder: tempfile::TempDir,
}

impl Scene {
    fn set() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let images: Vec<PathBuf> =
            DISKS.iter().map(|(name, mib, _)| blank_image(folder.path(), name, *mib)).collect();
        let copies: Vec<PathBuf> = DISKS
            .iter()
            .map(|(name, mib, _)| blank_image(folder.path(), &format!("{name}-copy"), *mib))
            .collect();
        let tools = [Tools::DeviceMapper, Tools::Md, Tools::Xfs, Tools::Btrfs];
        let mut plan = Plan::new("inside").memory_mib(768).tools(tools);
        for (image, (name, ..)) in images.iter().zip(DISKS) {
            plan = plan.disk(image, name);
        }
        for (index, (copy, (.., access))) in copies.iter().zip(DISKS).enumerate() {
            let read_only = if access == Access::ReadOnly { ",read-only=on" } else { "" };
            let node = format!("driver=raw{read_only},file.driver=file,file.filename={}", copy.display());
            plan = plan.blockdev(&node, serial(index).as_str());
        }
        let vm = plan.boot();
        let host = Host::default();
        host.listen(&vm.link);
        make(&vm);
        vm.guest.sh("for fs in /part /xfs /sub /lv /md /luks; do echo before > $fs/file; done; sync; \
             for fs in /part /xfs /bt /lv /md /luks; do /sbin/fsfreeze -f $fs; done");
        for (image, copy) in images.iter().zip(&copies) {
            std::fs::copy(image, copy).unwrap();
        }
        // Nobody rescans a disk that was there all the time.
        vm.guest.sh("for fs in /part /xfs /bt /lv /md /luks; do /sbin/fsfreeze -u $fs; done; \
             for fs in /part /xfs /sub /lv /md /luks; do echo after > $fs/file; done; sync; \
             blockdev --rereadpt /dev/vdj");
        Self { vm, host, _folder: folder }
    }

    /// Nothing of any snapshot is in this machine, and each original is as it was and can be written to.
    #[track_caller]
    fn nothing_is_left(&self) {
        self.host.has_nothing_attached();
        let guest = &self.vm.guest;
        let left = "cat /sys/class/block/dm-*/dm/name | grep hostsnap; ls /run/hostsnap/mounts | grep -v lock; \
                    grep ' /mnt' /proc/self/mountinfo";
        assert_eq!(guest.run(left).stdout, "");
        guest.sh("for fs in /part /xfs /sub /lv /md /luks; do test $(cat $fs/file) = after && echo after > $fs/file || exit 1; done");
    }

    fn mount(&self, path: &str, more: &str) -> Value {
        self.vm.guest.json(&format!("mkdir -p /mnt && hostsnap --json mount {ID} /mnt --path {path} {more}"))
    }
}

fn make(vm: &Vm) {
    let guest = &vm.guest;
    guest.sh("printf 'n\\np\\n1\\n\\n\\nw\\n' | fdisk /dev/vda >/dev/null; sleep 1; \
         mkfs.ext4 -q /dev/vda1 && mkdir -p /part && mount /dev/vda1 /part");
    guest.sh(
        "TEST_DIR=x TEST_DEV=x QA_CHECK_FS=x mkfs.xfs -q /dev/vdb && mkdir -p /xfs && mount /dev/vdb /xfs",
    );
    guest.sh("mkfs.btrfs -q /dev/vdc /dev/vdd && btrfs device scan >/dev/null; mkdir -p /bt /sub && \
         mount /dev/vdc /bt && btrfs subvolume create /bt/s >/dev/null && mount -o subvol=s /dev/vdc /sub");
    guest.sh("lvm pvcreate -q /dev/vde /dev/vdf && lvm vgcreate -q vg0 /dev/vde /dev/vdf && \
         lvm lvcreate -q -y -Zn -i2 -I64 -L80M -n data vg0 && lvm lvextend -q -i1 -l+100%FREE vg0/data; \
         lvm vgmknodes; mkfs.ext4 -q /dev/mapper/vg0-data && mkdir -p /lv && mount /dev/mapper/vg0-data /lv");
    guest
        .sh("mdadm --create /dev/md0 --run --level=1 --raid-devices=2 /dev/vdg /dev/vdh >/dev/null 2>&1 && \
         mkfs.ext4 -q /dev/md0 && mkdir -p /md && mount /dev/md0 /md");
    guest.sh("echo secret > /run/key; \
         cryptsetup luksFormat -q --pbkdf pbkdf2 --pbkdf-force-iterations 1000 /dev/vdi /run/key && \
         cryptsetup open --key-file /run/key /dev/vdi secret && \
         lvm pvcreate -q /dev/mapper/secret && lvm vgcreate -q inner /dev/mapper/secret && \
         lvm lvcreate -q -y -Zn -l100%FREE -n lv inner && lvm vgmknodes; \
         mkfs.ext4 -q /dev/mapper/inner-lv && mkdir -p /luks && mount /dev/mapper/inner-lv /luks");
    guest.sh("mkdir -p /xfs/tree/deep && cd /xfs/tree && echo one > deep/one && ln deep/one two && \
         ln -s /xfs/tree/deep/one absolute && ln -s /etc/passwd out && truncate -s 20M sparse && chown 12:34 two && \
         chmod 4750 deep && dd if=/dev/urandom of=random bs=1M count=8 2>/dev/null && \
         dd if=/dev/urandom of=/lv/random bs=1M count=30 2>/dev/null && cp random /bt/random");
}

#[test]
fn a_snapshot_is_mounted_beside_its_original_through_every_layer_and_nothing_is_left() {
    let scene = Scene::set();
    let guest = &scene.vm.guest;

    for (path, options) in [
        ("/part", "ro"),
        ("/xfs", "norecovery"),
        ("/sub", "ro"),
        ("/lv", "ro"),
        ("/md", "ro"),
        ("/part/deep/down", "ro"),
    ] {
        let told = scene.mount(path, "");
        assert!(told["options"].as_array().is_some_and(|all| all.iter().any(|one| one == options)), "{told}");
        assert_eq!(guest.sh("cat /mnt/file"), "before\n", "{path}");
        assert_ne!(guest.run("echo x > /mnt/file").status, 0, "{path} is read-only");
        // Once more, elsewhere: the same devices serve both.
        guest.sh(&format!(
            "mkdir -p /mnt2 && hostsnap mount {ID} /mnt2 --path {path} && test $(cat /mnt2/file) = before"
        ));
        guest.sh("hostsnap umount /mnt2 && test $(cat /mnt/file) = before");
        guest.sh("hostsnap umount /mnt");
        scene.nothing_is_left();
    }

    // Only a key opens LUKS.
    let told = guest.run(&format!("hostsnap mount {ID} /mnt --path /luks"));
    assert_eq!(told.status, 2, "{told:?}");
    assert!(told.stderr.contains("--luks-key-file"), "{told:?}");
    scene.nothing_is_left();
    scene.mount("/luks", "--luks-key-file /run/key");
    assert_eq!(guest.sh("cat /mnt/file"), "before\n");

    // Who works in it is not thrown out; a mount that somebody took away is no hindrance.
    let busy = guest.run("cd /mnt && hostsnap umount /mnt");
    assert_eq!(busy.status, 6, "{busy:?}");
    assert!(busy.stderr.contains("fuser"), "{busy:?}");
    guest.sh("umount /mnt && hostsnap umount /mnt && hostsnap umount /mnt");
    scene.nothing_is_left();

    // What can't be is said before anything is attached.
    for (arguments, status, word) in [
        (format!("mount {ID} /nowhere"), 2, "mkdir"),
        (format!("mount {ID} /mnt"), 2, "--path"),
        (format!("mount {ID} /mnt --path /etc"), 5, "which holds /part"),
        (
            format!(
                "mount {ID} /mnt --path /part --uuid 5f0b6f3e-8f0c-4c6e-9a55-000000000009 --luks-key-file /run/key"
            ),
            5,
            "is not on",
        ),
    ] {
        let told = guest.run(&format!("hostsnap {arguments}"));
        assert_eq!(told.status, status, "{arguments}: {told:?}");
        assert!(told.stderr.contains(word), "{arguments}: {told:?}");
    }
    let planned = guest.json(&format!("hostsnap --json mount {ID} /mnt --path /bt --dry-run"));
    assert_eq!(
        (&planned["access"], &planned["disks"]),
        (&"writable".into(), &serde_json::json!(["bt0", "bt1"]))
    );
    scene.nothing_is_left();

    look_and_copy(&scene);
    whoever_kills_it(&scene);
}

fn look_and_copy(scene: &Scene) {
    let guest = &scene.vm.guest;
    let listed = guest.json(&format!("hostsnap --json ls {ID}:/xfs/tree"));
    let names: Vec<_> = listed.as_array().unwrap().iter().map(|one| one["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["absolute", "deep", "out", "random", "sparse", "two"]);
    assert_eq!(guest.sh(&format!("hostsnap ls {ID}:/xfs/tree/absolute")), "one\n");
    let out = guest.run(&format!("hostsnap ls {ID}:/xfs/tree/out"));
    assert_eq!(out.status, 5, "{out:?}");

    guest.sh(&format!(
        "mkdir -p /tmp/out && hostsnap cp {ID}:/xfs/tree {ID}:/bt/random {ID}:/part/file /tmp/out"
    ));
    guest.sh(
        "cd /tmp/out && for f in random sparse two deep/one; do cmp tree/$f /xfs/tree/$f || exit 1; done; \
         test $(readlink tree/out) = /etc/passwd && cmp random /bt/random && test $(cat file) = before",
    );
    let facts = "cd $1 && stat -c '%n %a %u:%g %Y %h %N' deep deep/one two absolute out sparse random";
    let of = |folder: &str| guest.sh(&format!("set -- {folder}; {facts}"));
    assert_eq!(of("/tmp/out/tree"), of("/xfs/tree"));
    assert!(guest.sh("du -k /tmp/out/tree/sparse | cut -f1").trim().parse::<u64>().unwrap() < 1024);
    let missing = guest.run(&format!("hostsnap cp {ID}:/xfs/nothing /tmp/out"));
    assert_ne!(missing.status, 0);
    guest.sh("rm -r /tmp/out");
    scene.nothing_is_left();
}

/// Whenever a copy is killed, the next command takes away what it left.
fn whoever_kills_it(scene: &Scene) {
    let guest = &scene.vm.guest;
    for after in ["0.05", "0.2", "0.4", "0.6"] {
        guest.run(&format!("timeout -s KILL {after} hostsnap cp {ID}:/lv/random /tmp/random"));
        guest.sh("hostsnap umount --all");
        scene.nothing_is_left();
    }
    guest.sh(&format!(
        "rm -f /tmp/.hostsnap-*; hostsnap cp {ID}:/lv/random /tmp/random && cmp /tmp/random /lv/random"
    ));
    let left = guest.run("ls -a /tmp | grep hostsnap").stdout;
    assert_eq!(left, "");
    scene.nothing_is_left();
}
