//! An lvm that waits for its next command: `lvm` without arguments reads them from its standard input
//! (lvm(8)). It is started before the freeze, so that the cut pays for no start-up and no search for
//! devices. It tells no exit status: what it prints is its answer, and what became of it is looked
//! at in the volume group before anything is acknowledged.

use std::io::{self, PipeReader, Read, Write};
use std::process::{Child, ChildStdin, Stdio};
use std::time::Instant;

use rustix::event::{PollFd, PollFlags};

use crate::exec::{self, ExecError, Tool};

/// No command prints more than a few lines, in bytes.
const OUTPUT_LIMIT: usize = 1 << 20;

/// A running lvm.
pub(super) struct Shell {
    program: String,
    child: Child,
    input: ChildStdin,
    output: PipeReader,
    commands: u32,
}

impl Shell {
    /// Starts it.
    pub(super) fn start(lvm: &Tool) -> Result<Self, ExecError> {
        let program = lvm.name();
        let start = || -> io::Result<_> {
            let (output, printed) = io::pipe()?;
            exec::set_nonblocking(&output)?;
            let mut command = lvm.command();
            command.stdin(Stdio::piped()).stdout(printed.try_clone()?).stderr(printed);
            let mut child = command.env("LVM_SUPPRESS_FD_WARNINGS", "1").spawn()?;
            let input = child.stdin.take().expect("it is piped");
            Ok((child, input, output))
        };
        match start() {
            Ok((child, input, output)) => Ok(Self { program, child, input, output, commands: 0 }),
            Err(source) => Err(ExecError::Io { program, source }),
        }
    }

    /// Runs one command line; what lvm printed. One that is not done at the deadline is ended with its shell.
    pub(super) fn run(&mut self, line: &str, deadline: Instant) -> Result<String, ExecError> {
        let began = Instant::now();
        self.commands += 1;
        // It complains about this one at once, and so says that it is done with the one before.
        let end = format!("hostsnap-end-{}", self.commands);
        let mut heard = Vec::new();
        let asked = self.input.write_all(format!("{line}\n{end}\n").as_bytes());
        let result = asked.and_then(|()| self.listen(&end, deadline, &mut heard));
        let said = String::from_utf8_lossy(&heard).into_owned();
        match result {
            Ok(true) => Ok(said),
            Ok(false) => {
                self.end();
                Err(ExecError::TimedOut {
                    program: self.program.clone(),
                    limit: deadline.saturating_duration_since(began),
                    stderr: said,
                })
            }
            Err(error) => {
                let source = io::Error::new(error.kind(), format!("{error}; it said: {}", said.trim()));
                Err(ExecError::Io { program: self.program.clone(), source })
            }
        }
    }

    /// Reads until lvm is done: whether that was in time.
    fn listen(&mut self, end: &str, deadline: Instant, heard: &mut Vec<u8>) -> io::Result<bool> {
        let mut chunk = [0; 4096];
        loop {
            match self.output.read(&mut chunk) {
                Ok(0) => return Err(io::Error::new(io::ErrorKind::BrokenPipe, "it ended")),
                Ok(read) => heard.extend_from_slice(&chunk[..read]),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    if !exec::wait(&mut [PollFd::new(&self.output, PollFlags::IN)], deadline)? {
                        return Ok(false);
                    }
                }
                Err(error) => return Err(error),
            }
            if heard.len() > OUTPUT_LIMIT {
                return Err(io::Error::other("it prints without end"));
            }
            let text = String::from_utf8_lossy(heard);
            if let Some(line) =
                text.lines().find(|line| line.contains("No such command") && line.contains(end))
            {
                let before = text.find(line).expect("it was found in it");
                heard.truncate(before);
                return Ok(true);
            }
        }
    }

    /// Ends it, whatever it does.
    fn end(&mut self) {
        exec::end(&mut self.child);
    }
}

impl Drop for Shell {
    fn drop(&mut self) {
        self.end();
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn fake(script: &str) -> (tempfile::TempDir, Tool) {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("lvm");
        std::fs::write(&path, format!("#!/bin/sh\n{script}")).unwrap();
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o755)).unwrap();
        (folder, Tool::at(path))
    }

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(30)
    }

    /// As lvm does: it knows some commands and complains about the others.
    const TALKS: &str = "while read -r a b; do case $a in \
        create) echo \"  Logical volume \\\"$b\\\" created.\";; fail) echo '  no room' >&2;; \
        hang) sleep 600;; die) exit 3;; *) echo \"  No such command '$a'.  Try 'help'.\" >&2;; esac; done";

    #[test]
    fn each_command_is_answered_by_what_was_printed_for_it() {
        let (_folder, lvm) = fake(TALKS);
        let mut shell = Shell::start(&lvm).unwrap();
        assert_eq!(shell.run("create one", soon()).unwrap().trim(), "Logical volume \"one\" created.");
        assert_eq!(shell.run("fail", soon()).unwrap().trim(), "no room");
        assert_eq!(shell.run("create two", soon()).unwrap().trim(), "Logical volume \"two\" created.");
    }

    #[test]
    fn one_that_hangs_or_dies_is_told_and_ended() {
        let (_folder, lvm) = fake(TALKS);
        let mut shell = Shell::start(&lvm).unwrap();
        let pid = shell.child.id();
        let error = shell.run("hang", Instant::now() + Duration::from_millis(300)).unwrap_err();
        assert!(matches!(error, ExecError::TimedOut { .. }), "{error}");
        assert!(!std::path::Path::new(&format!("/proc/{pid}")).exists(), "it lives on");
        let mut shell = Shell::start(&lvm).unwrap();
        shell.run("create one", soon()).unwrap();
        let error = shell.run("die", soon()).unwrap_err();
        assert!(matches!(error, ExecError::Io { .. }), "{error}");
        let error = Shell::start(&Tool::at("/no/lvm".into())).err().expect("there is none");
        assert!(matches!(error, ExecError::Io { .. }), "{error}");
    }
}
