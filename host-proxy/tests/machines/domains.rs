//! A libvirtd with domains that no guest runs in, a store in which they have their disks, and the service.

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;

use harness::libvirt::Libvirtd;
use harness::loopfs::{Kind, LoopFs};
use harness::process::Process;
use harness::wait::wait_until;
use serde_json::Value;

use super::served::Folder;
use super::stage::LIMIT;
use super::tracer::{Before, Fault, Traced};

pub(crate) const UUID: &str = "3f1f54c2-66a2-4f4f-8d51-0b8a3b1d7f01";
pub(crate) const IMAGE_BYTES: u64 = 1 << 20;

pub(crate) struct Domains {
    service: Option<Process>,
    pub(crate) libvirtd: Libvirtd,
    pub(crate) folder: Folder,
    store: Arc<LoopFs>,
}

impl Domains {
    /// A service that finds its machines in libvirt, with these lines more in its configuration.
    pub(crate) fn new(more: &str) -> Self {
        let store = LoopFs::in_memory(Kind::Xfs, 320);
        // libvirt's QEMU goes through it.
        harness::loopfs::run(
            Command::new("chmod").arg("755").args([store.path().parent().unwrap(), &store.path()]),
        );
        Self::on(1, Arc::new(store), "", more)
    }

    /// Another host that has the same disks, with these lines more in its configuration; its service keeps its snapshots
    /// beside the first's.
    pub(crate) fn beside(&self, more: &str) -> Self {
        fs::create_dir(self.store.path().join("there")).unwrap();
        Self::on(2, Arc::clone(&self.store), "/there", more)
    }

    fn on(host: u8, store: Arc<LoopFs>, kept: &str, more: &str) -> Self {
        let folder = Folder::new("hsd-");
        let libvirtd = Libvirtd::start_on(host);
        let mut domains = Self { service: None, libvirtd, folder, store };
        let text = format!(
            "[service]\nlisten_vsock = false\ndiscover = \"libvirt\"\nstate_dir = \"{0}/state\"\n\
             control_socket = \"{0}/control\"\n[libvirt]\nuri = \"{1}\"\nstore = \"files\"\n\
             [[store]]\nname = \"files\"\ndriver = \"reflink\"\npath = \"{2}{kept}\"\nmin_free = \"1MiB\"\n{3}",
            domains.folder.path().display(),
            domains.libvirtd.uri(),
            domains.store.path().display(),
            more.replace("@STORE@", &domains.store.path().display().to_string())
                .replace("@FOLDER@", &domains.folder.path().display().to_string()),
        );
        domains.folder.configure(&text);
        domains.start();
        domains
    }

    #[track_caller]
    pub(crate) fn start(&mut self) {
        self.service = Some(Process::start(&mut self.folder.serve(), &self.folder.at("log")));
        wait_until("hostsnapd is up", LIMIT, || {
            self.service.as_mut().unwrap().must_live();
            self.folder.admin(&["vms"]).status.success()
        });
    }

    /// The service anew, and what happens until it is killed before the first call that has all of this in its name.
    pub(crate) fn killed_before(
        &mut self,
        call: &'static [&'static str],
        happens: impl FnOnce(&Self, &dyn Fn()),
    ) {
        self.kill_service();
        let traced = Traced::start(self.folder.serve(), &self.folder.at("log"), None);
        wait_until("hostsnapd is up", LIMIT, || {
            assert!(!traced.has_ended(), "{}", self.folder.printed());
            self.folder.admin(&["vms"]).status.success()
        });
        happens(self, &|| traced.arm(Before::Having(call), Fault::Kill(Box::new(|| ()))));
        assert!(traced.disarm().0.is_some(), "{call:?} was never called");
        drop(traced);
        self.start();
    }

    pub(crate) fn kill_service(&mut self) {
        self.service.take().expect("it was started").kill();
    }

    pub(crate) fn signal_service(&self, signal: rustix::process::Signal) {
        self.service.as_ref().expect("it was started").signal(signal);
    }

    /// A domain's XML: disks by target and serial, in the store.
    pub(crate) fn xml(&self, name: &str, uuid: &str, disks: &[(&str, &str)], more: &str) -> String {
        let disks: String = disks
            .iter()
            .map(|(target, serial)| {
                let image = self.store.path().join(format!("{name}-{target}.img"));
                if !image.exists() {
                    fs::write(&image, vec![7; usize::try_from(IMAGE_BYTES).unwrap()]).unwrap();
                }
                let serial =
                    if serial.is_empty() { String::new() } else { format!("<serial>{serial}</serial>") };
                format!(
                    "<disk type='file' device='disk'><driver name='qemu' type='raw'/><source file='{}'/>\
                     <target dev='{target}' bus='virtio'/>{serial}</disk>",
                    image.display()
                )
            })
            .collect();
        format!(
            "<domain type='qemu'><name>{name}</name><uuid>{uuid}</uuid><memory unit='MiB'>64</memory><vcpu>1</vcpu>\
             <os><type arch='x86_64' machine='q35'>hvm</type></os><features><acpi/></features><devices>\
             <emulator>/usr/bin/qemu-system-x86_64</emulator>{disks}<controller type='usb' model='none'/>\
             <memballoon model='none'/>{more}</devices></domain>"
        )
    }

    /// As `admin`, for what must succeed and prints JSON.
    #[track_caller]
    pub(crate) fn json(&self, arguments: &[&str]) -> Value {
        let output = self.folder.admin(&[arguments, &["--json"]].concat());
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{arguments:?}: {said}\n{}", self.folder.printed());
        serde_json::from_slice(&output.stdout).unwrap()
    }

    /// Where the disks are.
    pub(crate) fn store(&self) -> PathBuf {
        self.store.path()
    }

    /// The machines, as `name: peer, disks`.
    pub(crate) fn machines(&self) -> Vec<String> {
        let vms = self.json(&["vms"]);
        let line = |vm: &Value| {
            let disks = vm["disks"].as_array().unwrap().iter();
            let serials: Vec<_> = disks.map(|disk| disk["disk"].as_str().unwrap()).collect();
            format!(
                "{}: {}, {}",
                vm["name"].as_str().unwrap(),
                vm["peer"].as_str().unwrap(),
                serials.join(" ")
            )
        };
        vms.as_array().unwrap().iter().map(line).collect()
    }

    #[track_caller]
    pub(crate) fn wait_for_machines(&self, wanted: &[&str]) {
        wait_until(&format!("the machines are {wanted:?}"), LIMIT, || self.machines() == wanted);
    }

    /// What `hostsnapd check` finds, the lines that fail.
    pub(crate) fn failing(&self) -> Vec<String> {
        let output = Command::new(env!("CARGO_BIN_EXE_hostsnapd"))
            .args(["check", "--json", "--config"])
            .arg(self.folder.at("hostsnapd.toml"))
            .output()
            .unwrap();
        let findings: Value = serde_json::from_slice(&output.stdout).unwrap();
        let failing = findings.as_array().unwrap().iter().filter(|one| one["ok"] == false);
        failing
            .map(|one| format!("{}: {}", one["what"].as_str().unwrap(), one["says"].as_str().unwrap()))
            .collect()
    }

    /// Starts a domain, and puts disks of nobody's into all ports that libvirt gave it to spare: in such a port a disk is
    /// released only by a guest.
    pub(crate) fn start_full(&self, domain: &str) {
        self.libvirtd.must(&["start", domain]);
        for letter in 'p'..='z' {
            let (image, target) =
                (self.folder.at(&format!("{domain}-filler-{letter}")), format!("vd{letter}"));
            fs::write(&image, [0; 4096]).unwrap();
            let attach = ["attach-disk", domain, &image.to_string_lossy(), &target, "--live"];
            if !self.libvirtd.virsh(&attach).status.success() {
                return;
            }
        }
        panic!("{domain} takes any number");
    }

    pub(crate) fn state_of(&self, domain: &str) -> String {
        self.libvirtd.must(&["domstate", domain])
    }
}
