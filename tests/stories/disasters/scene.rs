//! Where disasters are rehearsed: one machine for all of them, with a program that can be stopped after
//! each step, and a line to its host that can be cut.
//!
//! In the second scene the command lives on a disk as its root file system, with its program, its folder and
//! what it prints, and that one is frozen as well. The harness stays in memory and looks on.

use std::path::PathBuf;
use std::time::Duration;

use harness::assets;
use harness::guest::{Output, Running};
use harness::hostsnapd::{self, Hostsnapd, Machine};
use harness::loopfs::{Kind, LoopFs};
use harness::relay::Relay;
use harness::vm::{Plan, Vm, blank_image};
use harness::wait::wait_until;
use protocol::PORT;
use rustix::process::Signal;

use super::table::Step;
use crate::stage::LIMIT;

const DISK_MIB: u64 = 128;
/// The command's control group; it needs a tenth of it.
const MEMORY: &str = "48M";

/// More than a machine usually takes.
const MANY: &str = "[vm.quota]\nper_hour = 1000";

/// What is frozen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Frozen {
    /// A disk that nothing else needs.
    Data,
    /// Also the command's own root file system.
    RootToo,
}

/// The machine, its service, and the line between them.
pub(crate) struct Scene {
    pub(crate) vm: Vm,
    pub(crate) service: Hostsnapd,
    pub(crate) relay: Relay,
    pub(crate) frozen: Frozen,
    /// How many mounts there are.
    pub(crate) mounts: usize,
    config: String,
    store: LoopFs,
}

impl Scene {
    pub(crate) fn set(name: &str, frozen: Frozen) -> Self {
        let store = LoopFs::new(Kind::Xfs, 1024);
        let serials: &[&str] = if frozen == Frozen::Data { &["data"] } else { &["data", "root"] };
        let images: Vec<PathBuf> = serials
            .iter()
            .map(|serial| blank_image(&store.path(), &format!("{serial}.img"), DISK_MIB))
            .collect();
        let plan = Plan::new(name).file(&assets::guest_program("hostsnap-rehearsal"), "/usr/bin/hostsnap");
        let plan = images.iter().zip(serials).fold(plan, |plan, (image, serial)| plan.disk(image, serial));
        let vm = plan.boot();
        let relay = Relay::start(&vm.link, PORT, &vm.port("relay"));
        let disks = serials.iter().zip(&images).map(|(serial, image)| (*serial, image.as_path())).collect();
        let machine = Machine { vm: &vm, name: "app", disks, more: MANY };
        let config = hostsnapd::config("reflink", &store.path(), &[machine])
            .replace(&vm.link.config(), &relay.config())
            .replace("listen_vsock = true", "listen_vsock = false");
        let service = Hostsnapd::start(&config);
        let mut scene = Self { vm, service, relay, frozen, mounts: 0, config, store };
        scene.prepare();
        scene.mounts = scene.vm.guest.sh("cat /proc/mounts").lines().count();
        scene
    }

    fn prepare(&self) {
        self.vm.guest.sh(&format!(
            "mkfs.ext4 -q /dev/vda && mkdir -p /data /run/r && mount /dev/vda /data && \
             mkfifo /run/r/said /run/r/go && \
             mount -t cgroup2 cgroup2 /sys/fs/cgroup && \
             echo +memory > /sys/fs/cgroup/cgroup.subtree_control && mkdir /sys/fs/cgroup/cli && \
             echo {MEMORY} > /sys/fs/cgroup/cli/memory.max && echo 1 > /sys/fs/cgroup/cli/memory.oom.group"
        ));
        let root = match self.frozen {
            Frozen::Data => "",
            Frozen::RootToo => {
                self.vm.guest.sh(
                    "mkfs.ext4 -q /dev/vdb && mkdir /disk && mount /dev/vdb /disk && cd /disk && \
                     mkdir -p bin usr/bin home proc sys dev run data && cp /bin/busybox bin/ && \
                     ln -s busybox bin/sh && cp /usr/bin/hostsnap usr/bin/ && \
                     for d in proc sys dev run data; do mount --rbind /$d $d; done",
                );
                "/disk"
            }
        };
        self.vm.guest.sh(&format!(
            "mkdir -p {root}/etc/hostsnap/hooks.d && \
             printf '#!/bin/sh\\necho $1 >> /run/r/hooks\\n' > {root}/etc/hostsnap/hooks.d/app && \
             chmod 755 {root}/etc/hostsnap/hooks.d/app"
        ));
    }

    /// Starts the command; it will wait after this step.
    pub(crate) fn create(&self, step: Step, lease: Duration) -> Running {
        let run = format!(
            "echo 0 > /sys/fs/cgroup/cli/cgroup.procs; export RUST_LOG=trace HOSTSNAP_REHEARSAL=/run/r:{}; \
             exec hostsnap --json create --freeze-timeout {}s",
            step.name(),
            lease.as_secs()
        );
        let place = self.place_of_output();
        self.vm.guest.spawn(&match self.frozen {
            Frozen::Data => {
                format!("cd /run/r; echo $$ > /run/r/pid; {run} /data > {place}/out 2> {place}/err")
            }
            Frozen::RootToo => format!(
                "echo $$ > /run/r/pid; exec unshare -m sh -c 'mount --make-rprivate / && cd {place} && \
                 mount --move . / && exec chroot . /bin/sh -c \"\
                 export PATH=/bin:/usr/bin; cd /home; {run} / /data > /out 2> /err\"'"
            ),
        })
    }

    fn place_of_output(&self) -> &'static str {
        match self.frozen {
            Frozen::Data => "/run/r",
            Frozen::RootToo => "/disk",
        }
    }

    /// Waits until the command has come to its step.
    pub(crate) fn reached(&self) -> bool {
        self.vm.guest.run("timeout 60 head -c 1 /run/r/said").stdout == "!"
    }

    /// A word for the command that waits: `g` to go on, `p` to panic, `m` to eat all memory.
    pub(crate) fn tell(&self, word: char) {
        // Opened for both directions, which waits for nobody.
        self.vm.guest.sh(&format!("printf {word} 1<>/run/r/go"));
    }

    /// What it printed and complained about.
    pub(crate) fn printed(&self) -> (String, String) {
        let place = self.place_of_output();
        let Output { stdout, .. } = self.vm.guest.run(&format!("cat {place}/out; echo '#'; cat {place}/err"));
        let (out, err) = stdout.split_once("#\n").unwrap_or((&stdout, ""));
        (out.to_owned(), err.to_owned())
    }

    /// The files that applications write to, and their images on the host.
    pub(crate) fn files(&self) -> &'static [(&'static str, &'static str)] {
        match self.frozen {
            Frozen::Data => &[("/data/records", "data")],
            Frozen::RootToo => &[("/data/records", "data"), ("/disk/records", "root")],
        }
    }

    /// What the storage holds of snapshots, whole or not.
    pub(crate) fn on_storage(&self) -> Vec<String> {
        let folder = self.store.path().join(".hostsnap").join(self.vm.uuid());
        let Ok(read) = std::fs::read_dir(folder) else { return Vec::new() };
        read.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
    }

    /// The image of a disk in a snapshot.
    pub(crate) fn image(&self, id: &str, serial: &str) -> PathBuf {
        let folder = self.store.path().join(".hostsnap").join(self.vm.uuid());
        folder.join(id).join(format!("{serial}.img"))
    }

    /// From now on the host waits only so long for the cut.
    pub(crate) fn shorten_the_lease(&self, lease: Duration) {
        let short = format!("[service]\nmax_lease = \"{}s\"", lease.as_secs());
        let state = self.service.config().parent().expect("a folder").to_string_lossy().into_owned();
        let config = self.config.replace("[service]", &short).replace("@STATE@", &state);
        std::fs::write(self.service.config(), config).expect("a configuration");
        let before = self.service.printed().matches("configuration reloaded").count();
        self.service.signal(Signal::HUP);
        wait_until("it is in force", LIMIT, || {
            self.service.printed().matches("configuration reloaded").count() > before
        });
    }
}
