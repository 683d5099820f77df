//! A QMP monitor of a virtual machine, as a test asks it: one connection for each question.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Value, json};

/// How long QEMU may take.
const LIMIT: Duration = Duration::from_secs(20);

/// Where it is.
#[derive(Debug, Clone)]
pub struct Monitor(PathBuf);

impl Monitor {
    /// The monitor at this socket.
    pub fn at(path: &Path) -> Self {
        Self(path.to_owned())
    }

    /// Runs a command that must succeed; its answer.
    ///
    /// # Panics
    /// When QEMU refuses or does not answer.
    #[track_caller]
    pub fn ask(&self, command: &str, arguments: Value) -> Value {
        let stream = UnixStream::connect(&self.0).expect("a monitor");
        stream.set_read_timeout(Some(LIMIT)).expect("a limit");
        let mut lines = BufReader::new(stream.try_clone().expect("a descriptor")).lines();
        let mut answer = |id: &str| loop {
            let line = lines.next().expect("QEMU goes on").expect("QEMU answers");
            let said: Value = serde_json::from_str(&line).expect("JSON");
            if said["id"] == id {
                break said;
            }
        };
        let mut say = |command: &str, arguments: &Value| {
            let text = json!({ "execute": command, "arguments": arguments, "id": command });
            writeln!(&stream, "{text}").expect("QEMU listens");
            answer(command)
        };
        say("qmp_capabilities", &json!({}));
        let mut said = say(command, &arguments);
        assert!(said.get("return").is_some(), "{command}: {said}");
        said["return"].take()
    }
}
