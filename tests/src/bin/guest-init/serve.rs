//! Runs what the harness asks, over the serial port.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use harness::serial::{Ask, PORT, Say};

/// Until the harness is gone.
pub(super) fn serve() -> anyhow::Result<()> {
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
