//! The first process of the tests' guests: mounts the usual, loads modules, then runs what the harness
//! asks. It lives in memory, so it is never frozen. Where the harness wants a whole Debian, it only
//! finds its disk and hands over to systemd, which starts it again as a service.

mod debian;
mod serve;

use std::fs;
use std::process::Command;

fn main() {
    let is_service = std::env::args().nth(1).is_some_and(|argument| argument == debian::SERVICE_ARGUMENT);
    let result = match is_service {
        true => serve::serve(),
        false => first_process(),
    };
    if let Err(error) = result {
        eprintln!("guest-init: {error:#}");
    }
    // The end of the first process is a panic of the kernel, which ends QEMU (panic=-1, -no-reboot).
}

fn first_process() -> anyhow::Result<()> {
    for (kind, at) in
        [("proc", "/proc"), ("sysfs", "/sys"), ("devtmpfs", "/dev"), ("tmpfs", "/run"), ("tmpfs", "/tmp")]
    {
        fs::create_dir_all(at)?;
        run(&format!("/bin/busybox mount -t {kind} {kind} {at}"));
    }
    run("/bin/busybox --install -s /bin; mkdir -p /dev/pts /dev/shm; mount -t devpts devpts /dev/pts; \
         mount -t tmpfs tmpfs /dev/shm; ip link set lo up; \
         for m in $(cat /modules.list); do modprobe $m || echo \"no module $m\"; done");
    if let Some(serial) = debian::wanted()? {
        return debian::hand_over(&serial);
    }
    // A guest within a guest has nobody to ask it.
    if std::path::Path::new("/autorun").exists() {
        run("sh /autorun > /dev/console 2>&1");
    }
    serve::serve()
}

fn run(script: &str) {
    let status = Command::new("/bin/busybox")
        .args(["sh", "-c", script])
        .env("PATH", "/bin:/sbin:/usr/bin:/usr/sbin")
        .status();
    if !matches!(&status, Ok(status) if status.success()) {
        eprintln!("guest-init: {script}: {status:?}");
    }
}
