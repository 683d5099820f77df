//! Hooks quiesce applications: programs that run before the freeze (`pre-freeze`) and after the
//! thaw (`post-thaw`).
//!
//! They are the executable files in `/etc/hostsnap/hooks.d`, in the order of their names. A hook
//! gets one argument, and `HOSTSNAP_REQUEST_ID` in its environment. `post-thaw` runs in reverse, for
//! every hook whose `pre-freeze` was started, whatever came of it and of the snapshot, with
//! `HOSTSNAP_RESULT` = `ok` or `failed` (of its own `pre-freeze`): what was quiesced must be released.
//! A hook that does not end in time is killed with all processes of its group.

use std::fs;
use std::io::{self, Read};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use protocol::evidence::{HookEvidence, HookOutcome};
use protocol::text::Name;
use protocol::{ErrorCode, RequestId, WireError};

/// Where the hooks are.
pub const FOLDER: &str = "/etc/hostsnap/hooks.d";
/// How long one hook may take.
pub const LIMIT: Duration = Duration::from_secs(60);
/// How much of what a hook prints is kept for the log, in bytes.
const OUTPUT_LIMIT: u64 = 4096;

/// The hooks of this machine.
#[derive(Debug, Clone, Default)]
pub struct Hooks {
    paths: Vec<PathBuf>,
    limit: Duration,
}

/// Applications are quiesced. Dropping it releases them.
pub struct Quiesced {
    ran: Vec<(PathBuf, HookEvidence)>,
    request: RequestId,
    limit: Duration,
}

impl Hooks {
    /// Finds them. One that others than root could have written is refused: it runs as root.
    pub fn find(folder: &Path, limit: Duration) -> Result<Self, WireError> {
        let read = match fs::read_dir(folder) {
            Ok(read) => read,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Ok(Self { paths: Vec::new(), limit });
            }
            Err(error) => return Err(unusable(folder, &error.to_string())),
        };
        let mut paths: Vec<PathBuf> = read.flatten().map(|entry| entry.path()).collect();
        paths.sort();
        let mut hooks = Vec::new();
        for path in paths {
            let meta = fs::metadata(&path).map_err(|error| unusable(&path, &error.to_string()))?;
            if !meta.is_file() || meta.permissions().mode() & 0o111 == 0 {
                continue;
            }
            if meta.uid() != 0 || meta.permissions().mode() & 0o022 != 0 {
                return Err(unusable(&path, "it is not root's alone")
                    .hint("chown root and chmod go-w it: it would run as root"));
            }
            hooks.push(path);
        }
        Ok(Self { paths: hooks, limit })
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.paths.is_empty()
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.paths.len()
    }

    /// Runs `pre-freeze` of each, in order, until one fails.
    pub fn quiesce(&self, request: RequestId) -> Quiesced {
        let mut quiesced = Quiesced { ran: Vec::new(), request, limit: self.limit };
        for path in &self.paths {
            let began = Instant::now();
            let outcome = run(path, "pre-freeze", request, None, self.limit);
            let took_ms = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
            let evidence = HookEvidence { name: name_of(path), outcome, took_ms };
            quiesced.ran.push((path.clone(), evidence));
            if outcome != HookOutcome::Exited(0) {
                tracing::warn!("the hook {} {outcome}", path.display());
                break;
            }
        }
        quiesced
    }
}

impl Quiesced {
    /// What the hooks did, in order.
    pub fn evidence(&self) -> Vec<HookEvidence> {
        self.ran.iter().map(|(_, evidence)| evidence.clone()).collect()
    }

    /// The first that failed.
    pub fn failed(&self) -> Option<&HookEvidence> {
        self.ran.iter().map(|(_, evidence)| evidence).find(|hook| hook.outcome != HookOutcome::Exited(0))
    }

    /// Runs `post-thaw`, in reverse.
    pub fn release(mut self) {
        self.run_post();
    }

    fn run_post(&mut self) {
        while let Some((path, evidence)) = self.ran.pop() {
            let result = if evidence.outcome == HookOutcome::Exited(0) { "ok" } else { "failed" };
            let outcome = run(&path, "post-thaw", self.request, Some(result), self.limit);
            if outcome != HookOutcome::Exited(0) {
                tracing::warn!("the hook {} {outcome} after the thaw", path.display());
            }
        }
    }
}

impl Drop for Quiesced {
    fn drop(&mut self) {
        self.run_post();
    }
}

fn unusable(path: &Path, why: &str) -> WireError {
    WireError::new(ErrorCode::HookFailed, format!("the hook {} can't be used: {why}", path.display()))
}

fn name_of(path: &Path) -> Name {
    let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let plain: String = name
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() || "._-".contains(c) { c } else { '_' })
        .take(64)
        .collect();
    Name::try_from(plain).unwrap_or_else(|_| "hook".parse().expect("a valid name"))
}

fn run(path: &Path, when: &str, request: RequestId, result: Option<&str>, limit: Duration) -> HookOutcome {
    let mut command = Command::new(path);
    command
        .arg(when)
        .env("HOSTSNAP_REQUEST_ID", request.to_string())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        // A group of its own, so that what it starts is killed with it.
        .process_group(0);
    if let Some(result) = result {
        command.env("HOSTSNAP_RESULT", result);
    }
    match command.spawn() {
        Ok(child) => wait(child, path, limit),
        Err(error) => {
            tracing::warn!("start the hook {}: {error}", path.display());
            HookOutcome::NotStarted
        }
    }
}

fn wait(mut child: Child, path: &Path, limit: Duration) -> HookOutcome {
    let output = child.stdout.take();
    let reader = std::thread::spawn(move || {
        let mut text = Vec::new();
        let mut output = output?;
        let _ = output.by_ref().take(OUTPUT_LIMIT).read_to_end(&mut text);
        // The rest is read and thrown away: a hook must not block on a full pipe.
        let _ = io::copy(&mut output, &mut io::sink());
        Some(String::from_utf8_lossy(&text).into_owned())
    });
    let ends = Instant::now() + limit;
    let outcome = loop {
        match child.try_wait() {
            Ok(Some(status)) => {
                break match (status.code(), status.signal()) {
                    (Some(code), _) => HookOutcome::Exited(code),
                    (None, Some(signal)) => HookOutcome::Signalled(signal),
                    (None, None) => HookOutcome::NotStarted,
                };
            }
            Ok(None) if Instant::now() < ends => std::thread::sleep(Duration::from_millis(2)),
            Ok(None) | Err(_) => {
                kill_group(&mut child);
                break HookOutcome::TimedOut;
            }
        }
    };
    // What a hook left running may hold its output open: it is not waited for.
    if outcome != HookOutcome::TimedOut
        && reader.is_finished()
        && let Ok(Some(text)) = reader.join()
    {
        text.lines().for_each(|line| tracing::info!("hook {}: {line}", path.display()));
    }
    outcome
}

fn kill_group(child: &mut Child) {
    let pid = i32::try_from(child.id()).ok().and_then(rustix::process::Pid::from_raw);
    if let Some(pid) = pid {
        let _ = rustix::process::kill_process_group(pid, rustix::process::Signal::KILL);
    }
    let _ = child.wait();
}

#[cfg(test)]
mod tests {
    use std::fs::Permissions;

    use super::*;

    struct Scratch(tempfile::TempDir);

    impl Scratch {
        fn new() -> Self {
            let scratch = Self(tempfile::tempdir().unwrap());
            fs::create_dir(scratch.folder()).unwrap();
            scratch
        }

        fn folder(&self) -> PathBuf {
            self.0.path().join("hooks.d")
        }

        fn log(&self) -> Vec<String> {
            let text = fs::read_to_string(self.0.path().join("log")).unwrap_or_default();
            text.lines().map(str::to_owned).collect()
        }

        fn hook(&self, name: &str, body: &str) {
            let log = self.0.path().join("log");
            let path = self.folder().join(name);
            let script = format!("#!/bin/sh\necho {name} $1 $HOSTSNAP_RESULT >> {}\n{body}\n", log.display());
            fs::write(&path, script).unwrap();
            fs::set_permissions(&path, Permissions::from_mode(0o755)).unwrap();
        }

        fn hooks(&self, limit: Duration) -> Hooks {
            Hooks::find(&self.folder(), limit).unwrap()
        }
    }

    #[test]
    fn hooks_run_in_order_and_are_released_in_reverse() {
        let scratch = Scratch::new();
        scratch.hook("20-b", "exit 0");
        scratch.hook("10-a", "exit 0");
        let quiesced = scratch.hooks(LIMIT).quiesce(RequestId::random());
        assert!(quiesced.failed().is_none());
        assert_eq!(quiesced.evidence().len(), 2);
        quiesced.release();
        assert_eq!(
            scratch.log(),
            ["10-a pre-freeze", "20-b pre-freeze", "20-b post-thaw ok", "10-a post-thaw ok"]
        );
    }

    #[test]
    fn after_a_failure_no_more_are_started_and_those_that_were_are_released() {
        // qemu-ga: a failing freeze hook skips the thaw hook, and the application stays quiesced.
        let scratch = Scratch::new();
        scratch.hook("1", "exit 0");
        scratch.hook("2", "test $1 = post-thaw");
        scratch.hook("3", "exit 0");
        let quiesced = scratch.hooks(LIMIT).quiesce(RequestId::random());
        assert_eq!(quiesced.failed().unwrap().outcome, HookOutcome::Exited(1));
        drop(quiesced);
        assert_eq!(scratch.log(), ["1 pre-freeze", "2 pre-freeze", "2 post-thaw failed", "1 post-thaw ok"]);
    }

    #[test]
    fn a_hook_that_does_not_end_is_killed_with_its_children() {
        let scratch = Scratch::new();
        scratch.hook("1", "test $1 = post-thaw || sleep 1000 & wait");
        let began = Instant::now();
        let quiesced = scratch.hooks(Duration::from_millis(200)).quiesce(RequestId::random());
        assert_eq!(quiesced.failed().unwrap().outcome, HookOutcome::TimedOut);
        assert!(began.elapsed() < Duration::from_secs(100));
    }

    #[test]
    fn a_hook_that_others_could_have_written_is_refused() {
        let scratch = Scratch::new();
        scratch.hook("1", "exit 0");
        fs::set_permissions(scratch.folder().join("1"), Permissions::from_mode(0o777)).unwrap();
        let error = Hooks::find(&scratch.folder(), LIMIT).unwrap_err();
        assert!(error.to_string().contains("chmod go-w"), "{error}");
    }

    #[test]
    fn without_a_folder_there_are_no_hooks() {
        assert!(Hooks::find(Path::new("/nonexistent/hooks.d"), LIMIT).unwrap().is_empty());
    }
}
