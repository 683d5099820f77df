//! The first process of the tests' guests: mounts the usual, loads modules, runs what the harness
//! asks. It lives in memory, so it is never frozen.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use harness::serial::{Ask, PORT, Say};

fn main() {
    if let Err(error) = serve() {
        eprintln!("guest-init: {error:#}");
    }
    // The end of the first process is a panic of the kernel, which ends QEMU (panic=-1, -no-reboot).
}

fn serve() -> anyhow::Result<()> {
    for (kind, at) in
        [("proc", "/proc"), ("sysfs", "/sys"), ("devtmpfs", "/dev"), ("tmpfs", "/run"), ("tmpfs", "/tmp")]
    {
        fs::create_dir_all(at)?;
        run(&format!("/bin/busybox mount -t {kind} {kind} {at}"));
    }
    run("/bin/busybox --install -s /bin; mkdir -p /dev/pts /dev/shm; mount -t devpts devpts /dev/pts; \
         mount -t tmpfs tmpfs /dev/shm; ip link set lo up; \
         for m in $(cat /modules.list); do modprobe $m || echo \"no module $m\"; done");
    // A guest within a guest has nobody to ask it.
    if std::path::Path::new("/autorun").exists() {
        run("sh /autorun > /dev/console 2>&1");
    }
    let port = loop {
        match find_port() {
            Some(port) => break port,
            None => std::thread::sleep(Duration::from_millis(20)),
        }
    };
    // A port can be opened once.
    let port = File::options().read(true).write(true).open(port)?;
    let writer = Arc::new(Mutex::new(port.try_clone()?));
    say(&writer, &Say::Booted);
    for line in BufReader::new(port).lines() {
        let ask: Ask = serde_json::from_str(&line?)?;
        let writer = Arc::clone(&writer);
        std::thread::spawn(move || {
            let output = Command::new("/bin/sh").arg("-c").arg(&ask.script).stdin(Stdio::null()).output();
            let ended = match output {
                Ok(output) => Say::Ended {
                    id: ask.id,
                    status: output.status.code().or(output.status.signal().map(|n| 128 + n)).unwrap_or(255),
                    stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
                    stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
                },
                Err(error) => {
                    Say::Ended { id: ask.id, status: 255, stdout: String::new(), stderr: error.to_string() }
                }
            };
            say(&writer, &ended);
        });
    }
    Ok(())
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

fn find_port() -> Option<PathBuf> {
    fs::read_dir("/sys/class/virtio-ports").ok()?.flatten().find_map(|entry| {
        let name = fs::read_to_string(entry.path().join("name")).ok()?;
        (name.trim() == PORT).then(|| PathBuf::from("/dev").join(entry.file_name()))
    })
}

fn say(writer: &Mutex<File>, what: &Say) {
    let mut line = serde_json::to_vec(what).expect("a message has no value that JSON lacks");
    line.push(b'\n');
    // A harness that is gone has no use for it.
    let _ = writer.lock().expect("no holder of this lock panics").write_all(&line);
}
