use std::fs::Permissions;
use std::io::Write;
use std::os::unix::fs::symlink;
use std::process::{Command, Stdio};

use super::*;

/// Written by another process: a descriptor of ours, open for writing, could be inherited for a moment
/// by what another test starts, and then the kernel refuses to run the file (ETXTBSY).
pub(super) fn write_program(path: &Path, text: &str) {
    let mut install = Command::new("install");
    install.args(["-m", "755", "/dev/stdin"]).arg(path).stdin(Stdio::piped());
    let mut install = install.spawn().unwrap();
    install.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    assert!(install.wait().unwrap().success());
}

/// A folder of hooks that write down how they are called.
struct Scratch(tempfile::TempDir);

impl Scratch {
    fn new() -> Self {
        let scratch = Self(tempfile::tempdir().unwrap());
        fs::create_dir(scratch.folder()).unwrap();
        fs::set_permissions(scratch.folder(), Permissions::from_mode(0o755)).unwrap();
        scratch
    }

    fn folder(&self) -> PathBuf {
        self.0.path().join("hooks.d")
    }

    fn log(&self) -> Vec<String> {
        let text = fs::read_to_string(self.0.path().join("log")).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }

    fn hook(&self, name: &str, body: &str) -> PathBuf {
        let log = self.0.path().join("log");
        let path = self.folder().join(name);
        let script = format!("#!/bin/sh\necho {name} $1 $HOSTSNAP_RESULT >> {}\n{body}\n", log.display());
        write_program(&path, &script);
        path
    }

    fn hooks(&self, limit: Duration) -> Hooks {
        Hooks::find(&self.folder(), limit).unwrap()
    }

    fn quiesce(&self) -> Quiesced {
        self.hooks(LIMIT).quiesce(RequestId::random(), &["/data".into()])
    }

    fn refused(&self) -> PathBuf {
        match Hooks::find(&self.folder(), LIMIT) {
            Err(HookError::NotRoots(path)) => path,
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn hooks_run_in_order_and_are_released_in_reverse() {
    let scratch = Scratch::new();
    scratch.hook("20-b", "exit 0");
    scratch.hook("10-a", "exit 0");
    let quiesced = scratch.quiesce();
    assert!(quiesced.failed().is_none());
    assert_eq!(quiesced.evidence().len(), 2);
    let released = quiesced.release();
    assert_eq!(released.iter().map(|hook| hook.name.as_str()).collect::<Vec<_>>(), ["20-b", "10-a"]);
    let expected = ["10-a pre-freeze", "20-b pre-freeze", "20-b post-thaw ok", "10-a post-thaw ok"];
    assert_eq!(scratch.log(), expected);
}

#[test]
fn after_a_failure_no_more_are_started_and_those_that_were_are_released() {
    // qemu-ga: a failing freeze hook skips the thaw hook, and the application stays quiesced.
    let scratch = Scratch::new();
    scratch.hook("1", "exit 0");
    scratch.hook("2", "test $1 = post-thaw");
    scratch.hook("3", "exit 0");
    let quiesced = scratch.quiesce();
    assert_eq!(quiesced.failed().unwrap().outcome, HookOutcome::Exited(1));
    drop(quiesced);
    assert_eq!(scratch.log(), ["1 pre-freeze", "2 pre-freeze", "2 post-thaw failed", "1 post-thaw ok"]);
}

#[test]
fn a_release_that_fails_does_not_keep_the_others_from_being_released() {
    let scratch = Scratch::new();
    scratch.hook("1", "exit 0");
    scratch.hook("2", "test $1 = pre-freeze");
    let released = scratch.quiesce().release();
    let outcomes: Vec<_> = released.iter().map(|hook| hook.outcome).collect();
    assert_eq!(outcomes, [HookOutcome::Exited(1), HookOutcome::Exited(0)]);
}

#[test]
fn a_hook_that_does_not_end_is_killed_and_released() {
    let scratch = Scratch::new();
    scratch.hook("1", "test $1 = post-thaw || sleep 1000");
    let quiesced = scratch.hooks(Duration::from_millis(300)).quiesce(RequestId::random(), &[]);
    assert_eq!(quiesced.failed().unwrap().outcome, HookOutcome::TimedOut);
    drop(quiesced);
    assert_eq!(scratch.log(), ["1 pre-freeze", "1 post-thaw failed"]);
}

#[test]
fn what_others_than_root_could_have_written_is_refused() {
    let scratch = Scratch::new();
    let hook = scratch.hook("1", "exit 0");
    fs::set_permissions(&hook, Permissions::from_mode(0o775)).unwrap();
    assert_eq!(scratch.refused(), hook);
    let told = WireError::from(HookError::NotRoots(hook.clone()));
    assert!(told.hint.as_str().contains("chmod go-w"), "{told}");

    fs::set_permissions(&hook, Permissions::from_mode(0o755)).unwrap();
    std::os::unix::fs::chown(&hook, Some(12345), None).unwrap();
    assert_eq!(scratch.refused(), hook);

    std::os::unix::fs::chown(&hook, Some(0), None).unwrap();
    fs::set_permissions(scratch.folder(), Permissions::from_mode(0o777)).unwrap();
    assert_eq!(scratch.refused(), scratch.folder());
}

#[test]
fn a_link_is_judged_by_what_it_leads_to() {
    let scratch = Scratch::new();
    let elsewhere = scratch.0.path().join("elsewhere");
    fs::write(&elsewhere, "#!/bin/sh\n").unwrap();
    fs::set_permissions(&elsewhere, Permissions::from_mode(0o777)).unwrap();
    let link = scratch.folder().join("1");
    symlink(&elsewhere, &link).unwrap();
    assert_eq!(scratch.refused(), link);
}

#[test]
fn leftovers_and_what_is_not_executable_are_no_hooks() {
    let scratch = Scratch::new();
    for name in ["1-db.dpkg-old", "1-db~", ".1-db.swp", "1-db.rpmsave"] {
        scratch.hook(name, "exit 1");
    }
    fs::write(scratch.folder().join("README"), "how to write a hook").unwrap();
    fs::create_dir(scratch.folder().join("folder")).unwrap();
    assert!(scratch.hooks(LIMIT).is_empty());
    scratch.hook("1-db", "exit 0");
    assert_eq!(scratch.hooks(LIMIT).len(), 1);
}

#[test]
fn without_a_folder_there_are_no_hooks() {
    assert!(Hooks::find(Path::new("/nonexistent/hooks.d"), LIMIT).unwrap().is_empty());
}
