//! Real database servers in a Debian guest, started by `servers.sh` there, and hooks, installed there.

use std::path::Path;

use harness::vm::Vm;
use harness::wait::wait_until;

use super::stage::LIMIT;

const SCRIPT: &str = include_str!("servers.sh");

/// The servers of a guest.
pub(crate) struct Servers<'a>(pub(crate) &'a Vm);

impl Servers<'_> {
    /// Runs `servers.sh` in the guest.
    #[track_caller]
    pub(crate) fn script(&self, arguments: &str) -> String {
        self.0.guest.sh(&format!("sh /run/servers.sh {arguments}"))
    }

    /// Puts `servers.sh` there.
    pub(crate) fn install(&self) {
        install(self.0, "/run/servers.sh", "644", SCRIPT);
    }

    /// Starts them on new data on this device.
    pub(crate) fn start_new(&self, device: &str) {
        self.install();
        self.script(&format!("data {device}"));
        self.start();
    }

    /// Starts them on what is mounted on `/data`.
    pub(crate) fn start(&self) {
        self.script("start");
        wait_until("the servers are up", LIMIT, || self.0.guest.run("sh /run/servers.sh is-up").status == 0);
    }
}

/// Installs Hostsnap's own hooks in a guest and enables these: name of the link, hook.
pub(crate) fn install_hooks(vm: &Vm, links: &[(&str, &str)]) {
    let packaged = Path::new(env!("CARGO_MANIFEST_DIR")).join("../packaging/hooks");
    for entry in std::fs::read_dir(packaged).expect("the hooks").flatten() {
        let name = entry.file_name().into_string().expect("a plain name");
        let text = std::fs::read_to_string(entry.path()).expect("a script");
        let mode = if name.ends_with(".sh") { "644" } else { "755" };
        install(vm, &format!("/usr/lib/hostsnap/hooks/{name}"), mode, &text);
    }
    vm.guest.sh("mkdir -p /etc/hostsnap/hooks.d");
    for (link, hook) in links {
        vm.guest.sh(&format!("ln -s /usr/lib/hostsnap/hooks/{hook} /etc/hostsnap/hooks.d/{link}"));
    }
}

/// Enables a hook of a test's own.
pub(crate) fn install_hook(vm: &Vm, name: &str, script: &str) {
    install(vm, &format!("/etc/hostsnap/hooks.d/{name}"), "755", &format!("#!/bin/sh\n{script}\n"));
}

/// Writes a file in a guest.
pub(crate) fn install(vm: &Vm, path: &str, mode: &str, text: &str) {
    let end = "END-OF-WHAT-IS-INSTALLED";
    vm.guest.sh(&format!(
        "mkdir -p -m 755 $(dirname {path}) && cat > {path} <<'{end}' && chmod {mode} {path}\n{text}\n{end}\n"
    ));
}
