//! What the service manager expects: readiness, a watchdog, sockets that it opened itself.

use std::os::unix::net::{UnixDatagram, UnixStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

const LIMIT: Duration = Duration::from_secs(60);

struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn write_config(folder: &Path) -> std::path::PathBuf {
    let config = folder.join("hostsnapd.toml");
    let text = format!(
        "[service]\nlisten_vsock = false\nstate_dir = \"{0}/state\"\ncontrol_socket = \"{0}/control.sock\"\n",
        folder.display()
    );
    std::fs::write(&config, text).unwrap();
    config
}

#[test]
fn the_service_manager_is_told_of_readiness_and_life() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("notify");
    let notify = UnixDatagram::bind(&path).unwrap();
    notify.set_read_timeout(Some(LIMIT)).unwrap();
    let service = Command::new(env!("CARGO_BIN_EXE_hostsnapd"))
        .args(["serve", "--config"])
        .arg(write_config(folder.path()))
        .env("NOTIFY_SOCKET", &path)
        .env("WATCHDOG_USEC", "300000")
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let service = Running(service);
    let mut heard = String::new();
    let mut buffer = [0; 512];
    while !(heard.contains("READY=1") && heard.matches("WATCHDOG=1").count() > 1) {
        let length = notify.recv(&mut buffer).expect("it says something in time");
        heard += &String::from_utf8_lossy(&buffer[..length]);
        heard.push('\n');
    }
    let pid = rustix::process::Pid::from_child(&service.0);
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    while !heard.contains("STOPPING=1") {
        let length = notify.recv(&mut buffer).expect("it says that it stops");
        heard += &String::from_utf8_lossy(&buffer[..length]);
    }
}

#[test]
fn a_socket_of_the_service_manager_is_taken_over() {
    let folder = tempfile::tempdir().unwrap();
    let control = folder.path().join("control.sock");
    let config = write_config(folder.path());
    let _activator = Running(
        Command::new("systemd-socket-activate")
            .arg("-l")
            .arg(&control)
            .arg(env!("CARGO_BIN_EXE_hostsnapd"))
            .args(["serve", "--config"])
            .arg(&config)
            .stderr(Stdio::null())
            .spawn()
            .expect("systemd is installed: cargo xtask setup"),
    );
    let began = Instant::now();
    while UnixStream::connect(&control).is_err() {
        assert!(began.elapsed() < LIMIT, "the socket is not there");
        std::thread::sleep(Duration::from_millis(10));
    }
    // The service starts with the first connection, and answers on the socket that it was given.
    let asked = Command::new(env!("CARGO_BIN_EXE_hostsnapd"))
        .args(["list", "--json", "--control"])
        .arg(&control)
        .output()
        .unwrap();
    assert!(asked.status.success(), "{}", String::from_utf8_lossy(&asked.stderr));
    assert_eq!(String::from_utf8_lossy(&asked.stdout).trim(), "[]");
}
