//! Hooks quiesce applications: programs that run before the freeze (`pre-freeze`) and after the
//! thaw (`post-thaw`). Whether a failure ends the snapshot is the `flow`'s to say.
//!
//! They are the executable files in `/etc/hostsnap/hooks.d`, in the order of their names; what a
//! package manager or an editor left behind is none. Each gets one argument, a plain environment, and
//! nobody at its standard input:
//!
//! | variable | value |
//! |---|---|
//! | `HOSTSNAP_REQUEST_ID` | the request: the same before and after |
//! | `HOSTSNAP_MOUNTS` | the mount points that are frozen, one a line |
//! | `HOSTSNAP_RESULT` | `post-thaw` only: `ok`, or `failed` if its own `pre-freeze` failed |
//! | `PATH`, `LC_ALL` | the same whoever started the snapshot |
//!
//! `pre-freeze` is run until one fails. `post-thaw` is run in reverse, for every hook whose
//! `pre-freeze` was started, whatever came of it and of the snapshot: what was quiesced must be
//! released. (qemu-ga: a failing freeze hook skips the thaw hook. zrepl releases only what succeeded;
//! but a hook that ran into its time limit may have quiesced already, so here it is told instead.)

mod run;

use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use protocol::evidence::{HookEvidence, HookOutcome};
use protocol::text::Name;
use protocol::{ErrorCode, RequestId, WireError};

use run::Job;

/// Where the hooks are.
pub const FOLDER: &str = "/etc/hostsnap/hooks.d";
/// How long one hook may take.
pub const LIMIT: Duration = Duration::from_secs(60);

/// What packages and editors leave behind.
const LEFTOVERS: [&str; 6] = ["~", ".bak", ".rpmnew", ".rpmsave", ".rpmorig", ".swp"];

/// The hooks of this machine.
#[derive(Debug, Clone, Default)]
pub struct Hooks {
    paths: Vec<PathBuf>,
    limit: Duration,
}

/// Why the hooks can't be used. Nothing has been run.
#[derive(Debug, thiserror::Error)]
pub enum HookError {
    /// The folder or a file in it can't be read.
    #[error("read {} for hooks", path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Somebody who is not root could change what runs as root.
    #[error("{} is not root's alone, and what is in it would run as root", .0.display())]
    NotRoots(PathBuf),
}

impl From<HookError> for WireError {
    fn from(error: HookError) -> Self {
        let hint = match &error {
            HookError::Read { .. } => String::new(),
            HookError::NotRoots(path) => format!("chown root {0} && chmod go-w {0}", path.display()),
        };
        Self::new(ErrorCode::HookFailed, crate::flow::chain(&error)).hint(hint)
    }
}

/// Applications are quiesced. Dropping it releases them.
pub struct Quiesced {
    ran: Vec<(PathBuf, HookEvidence)>,
    request: RequestId,
    mounts: Vec<u8>,
    limit: Duration,
}

impl Hooks {
    /// Finds them. No folder is no hook.
    ///
    /// # Errors
    /// When something can't be read, or others than root could have written it.
    pub fn find(folder: &Path, limit: Duration) -> Result<Self, HookError> {
        let entries = match fs::read_dir(folder) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Ok(Self { paths: Vec::new(), limit });
            }
            Err(source) => return Err(HookError::Read { path: folder.to_owned(), source }),
        };
        is_roots(folder)?;
        let mut paths = Vec::new();
        for entry in entries {
            let entry = entry.map_err(|source| HookError::Read { path: folder.to_owned(), source })?;
            let path = entry.path();
            if is_hook_name(&entry.file_name().to_string_lossy()) && is_program(&path)? {
                paths.push(path);
            }
        }
        paths.sort();
        Ok(Self { paths, limit })
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
    pub fn quiesce(&self, request: RequestId, mounts: &[PathBuf]) -> Quiesced {
        let lines: Vec<&[u8]> = mounts.iter().map(|path| path.as_os_str().as_bytes()).collect();
        let mounts = lines.join(&b'\n');
        let mut quiesced = Quiesced { ran: Vec::new(), request, mounts, limit: self.limit };
        for path in &self.paths {
            let evidence = quiesced.run(path, "pre-freeze", None);
            let succeeded = evidence.outcome == HookOutcome::Exited(0);
            quiesced.ran.push((path.clone(), evidence));
            if !succeeded {
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

    /// The one that failed.
    pub fn failed(&self) -> Option<&HookEvidence> {
        self.ran.iter().map(|(_, evidence)| evidence).find(|hook| hook.outcome != HookOutcome::Exited(0))
    }

    /// Runs `post-thaw`, in reverse, and says how each went.
    pub fn release(mut self) -> Vec<HookEvidence> {
        self.run_post()
    }

    fn run_post(&mut self) -> Vec<HookEvidence> {
        let mut went = Vec::with_capacity(self.ran.len());
        while let Some((path, before)) = self.ran.pop() {
            let result = if before.outcome == HookOutcome::Exited(0) { "ok" } else { "failed" };
            went.push(self.run(&path, "post-thaw", Some(result)));
        }
        went
    }

    fn run(&self, path: &Path, when: &'static str, result: Option<&'static str>) -> HookEvidence {
        let request = self.request.to_string();
        let job = Job { program: path, when, request: &request, mounts: &self.mounts, result };
        let began = Instant::now();
        let outcome = run::run(&job, self.limit);
        let took_ms = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
        HookEvidence { name: name_of(path), outcome, took_ms }
    }
}

impl Drop for Quiesced {
    fn drop(&mut self) {
        self.run_post();
    }
}

fn is_hook_name(name: &str) -> bool {
    !name.starts_with('.') && !name.contains(".dpkg-") && !LEFTOVERS.iter().any(|end| name.ends_with(end))
}

fn is_program(path: &Path) -> Result<bool, HookError> {
    let meta = is_roots(path)?;
    let is_program = meta.is_file() && meta.permissions().mode() & 0o111 != 0;
    if meta.is_file() && !is_program {
        tracing::warn!("{} is not executable, so it is no hook", path.display());
    }
    Ok(is_program)
}

/// Whether only root can change it; for a link, what it leads to.
fn is_roots(path: &Path) -> Result<fs::Metadata, HookError> {
    let meta = fs::metadata(path).map_err(|source| HookError::Read { path: path.to_owned(), source })?;
    match meta.uid() == 0 && meta.permissions().mode() & 0o022 == 0 {
        true => Ok(meta),
        false => Err(HookError::NotRoots(path.to_owned())),
    }
}

/// Its file name, as far as a record takes it.
fn name_of(path: &Path) -> Name {
    let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let plain = |c: char| if c.is_ascii_alphanumeric() || "._-".contains(c) { c } else { '_' };
    let plain: String = name.chars().map(plain).take(64).collect();
    Name::try_from(plain).unwrap_or_else(|_| "hook".parse().expect("a valid name"))
}

#[cfg(test)]
mod tests;
