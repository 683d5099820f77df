use std::fs::{self, Permissions};
use std::io::Write;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::process::{Command, Stdio};

use protocol::evidence::HookOutcome;

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
        let path = self.folder().join(name);
        self.write_hook(&path, body);
        path
    }

    fn qemu_hook(&self, name: &str, body: &str) {
        let folder = self.0.path().join(QEMU_FOLDER);
        fs::create_dir_all(&folder).unwrap();
        fs::set_permissions(&folder, Permissions::from_mode(0o755)).unwrap();
        self.write_hook(&folder.join(name), body);
    }

    /// The first line of `body` may be a header.
    fn write_hook(&self, path: &Path, body: &str) {
        let log = self.0.path().join("log");
        let name = path.file_name().unwrap().to_string_lossy();
        let (header, body) = body.split_once('\n').unwrap_or(("", body));
        let note = format!("echo {name} $1 $HOSTSNAP_RESULT >> {}", log.display());
        write_program(path, &format!("#!/bin/sh\n{header}\n{note}\n{body}\n"));
    }

    fn hooks(&self, limit: Duration) -> Hooks {
        Hooks::find(&self.folder(), limit).unwrap()
    }

    fn quiesce(&self) -> Quiesced {
        quiesce(&self.hooks(LIMIT))
    }

    fn refused(&self) -> PathBuf {
        match Hooks::find(&self.folder(), LIMIT) {
            Err(HookError::NotRoots(path)) => path,
            other => panic!("{other:?}"),
        }
    }
}

fn quiesce(hooks: &Hooks) -> Quiesced {
    let (vm, request) = (protocol::VmUuid::from_uuid(uuid::Uuid::from_u128(1)), RequestId::random());
    hooks.quiesce(&Occasion {
        request,
        snapshot: SnapshotId::derive(vm, request),
        mounts: &["/data".into(), "/srv".into()],
        disks: &["data".parse().unwrap()],
    })
}

#[test]
fn hooks_run_in_order_and_are_released_in_reverse() {
    let scratch = Scratch::new();
    scratch.hook("20-b", "exit 0");
    scratch.hook("10-a", "exit 0");
    let quiesced = scratch.quiesce();
    assert!(quiesced.refused().is_none());
    assert_eq!(quiesced.evidence().len(), 2);
    let told = quiesced.release(Ended::Cut);
    assert_eq!(told.iter().map(|hook| hook.name.as_str()).collect::<Vec<_>>(), ["10-a", "20-b"]);
    let expected = ["10-a pre-freeze", "20-b pre-freeze", "20-b post-thaw ok", "10-a post-thaw ok"];
    assert_eq!(scratch.log(), expected);
}

#[test]
fn after_a_required_hook_failed_no_more_are_started_and_those_that_were_are_released() {
    // qemu-ga: a failing freeze hook skips the thaw hook, and the application stays quiesced.
    let scratch = Scratch::new();
    scratch.hook("1", "exit 0");
    scratch.hook("2", "# hostsnap: required\ntest $1 = post-thaw");
    scratch.hook("3", "exit 0");
    let quiesced = scratch.quiesce();
    assert_eq!(quiesced.refused().unwrap().outcome, HookOutcome::Exited(1));
    drop(quiesced);
    let expected = [
        "1 pre-freeze",
        "2 pre-freeze",
        "2 freeze-failed failed",
        "2 post-thaw failed",
        "1 freeze-failed ok",
        "1 post-thaw ok",
    ];
    assert_eq!(scratch.log(), expected);
}

#[test]
fn after_a_best_effort_hook_failed_the_others_go_on_and_only_it_is_told_of_a_failure() {
    let scratch = Scratch::new();
    scratch.hook("1", "test $1 = post-thaw");
    scratch.hook("2", "exit 0");
    let quiesced = scratch.quiesce();
    assert!(quiesced.refused().is_none());
    let told = quiesced.release(Ended::Cut);
    let outcomes: Vec<_> = told.iter().map(|hook| hook.outcome).collect();
    assert_eq!(outcomes, [HookOutcome::Exited(1), HookOutcome::Exited(0)]);
    let expected =
        ["1 pre-freeze", "2 pre-freeze", "2 post-thaw ok", "1 freeze-failed failed", "1 post-thaw failed"];
    assert_eq!(scratch.log(), expected);

    let quiesced = quiesce(&scratch.hooks(LIMIT).all_required());
    assert_eq!(quiesced.refused().unwrap().outcome, HookOutcome::Exited(1), "where all are needed");
}

#[test]
fn a_release_that_fails_is_told_and_does_not_keep_the_others_from_being_released() {
    // A lock that was lost before the cut is noticed only when it is to be released.
    let scratch = Scratch::new();
    scratch.hook("1", "exit 0");
    scratch.hook("2", "test $1 = pre-freeze");
    let told = scratch.quiesce().release(Ended::Cut);
    let outcomes: Vec<_> = told.iter().map(|hook| hook.outcome).collect();
    assert_eq!(outcomes, [HookOutcome::Exited(0), HookOutcome::Exited(1)]);
    assert_eq!(scratch.log().last().unwrap(), "1 post-thaw ok");
}

#[test]
fn a_hook_that_does_not_end_is_killed_and_released() {
    let scratch = Scratch::new();
    scratch.hook("1", "test $1 != pre-freeze || sleep 1000");
    let quiesced = quiesce(&scratch.hooks(Duration::from_millis(300)));
    assert_eq!(quiesced.evidence()[0].outcome, HookOutcome::TimedOut);
    drop(quiesced);
    assert_eq!(scratch.log(), ["1 pre-freeze", "1 freeze-failed failed", "1 post-thaw failed"]);
}

#[test]
fn a_hooks_own_time_limit_is_the_one_that_counts() {
    let scratch = Scratch::new();
    scratch.hook("1", "# hostsnap: timeout=1s\ntest $1 != pre-freeze || sleep 1000");
    scratch.hook("2", "exit 0");
    let hooks = scratch.hooks(Duration::from_secs(500));
    assert_eq!(hooks.longest(), Duration::from_secs(501));
    assert_eq!(quiesce(&hooks).evidence()[0].outcome, HookOutcome::TimedOut);
}

#[test]
fn a_header_that_makes_no_sense_is_told_before_anything_runs() {
    let scratch = Scratch::new();
    scratch.hook("1", "exit 0");
    let wrong = scratch.hook("2", "# hostsnap: requierd\nexit 0");
    let error = Hooks::find(&scratch.folder(), LIMIT).unwrap_err();
    assert!(matches!(&error, HookError::Header { path, .. } if *path == wrong), "{error:?}");
    assert!(WireError::from(error).to_string().contains("required, best-effort"));
    assert!(scratch.log().is_empty());
}

#[test]
fn hooks_of_qemu_ga_run_unchanged_and_closest_to_the_freeze() {
    let scratch = Scratch::new();
    scratch.hook("50-own", "exit 0");
    // As qemu ships one: anything but `freeze` thaws.
    scratch.qemu_hook("10-mysql.sh", "case $1 in freeze) exit 0;; thaw) exit 0;; *) exit 1;; esac");
    let quiesced = scratch.quiesce();
    let told = quiesced.release(Ended::NotCut);
    assert!(told.iter().all(|hook| hook.outcome == HookOutcome::Exited(0)), "{told:?}");
    let expected = [
        "50-own pre-freeze",
        "10-mysql.sh freeze",
        "10-mysql.sh thaw ok",
        "50-own freeze-failed ok",
        "50-own post-thaw ok",
    ];
    assert_eq!(scratch.log(), expected);
}

#[test]
fn a_hook_is_told_what_is_taken() {
    let scratch = Scratch::new();
    let out = scratch.0.path().join("out");
    scratch.hook("1", &format!("\n[ $1 = post-thaw ] || env > {}", out.display()));
    drop(scratch.quiesce());
    let told = fs::read_to_string(out).unwrap();
    for expected in
        ["HOSTSNAP_MOUNTS=/data\n/srv\n", "HOSTSNAP_DISKS=data\n", "HOSTSNAP_SNAPSHOT_ID=", "LC_ALL"]
    {
        assert!(told.contains(expected), "{expected:?} is not in {told:?}");
    }
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
    for name in ["1-db.dpkg-old", "1-db~", ".1-db.swp", "1-db.rpmsave", "1-db.orig"] {
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
