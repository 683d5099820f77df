//! A snapshot as backup tools read it: the tools themselves, what the snapshot is spared meanwhile, and what is left of an
//! export that is killed.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, FileTypeExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use harness::loopfs::run;
use harness::wait::wait_until;
use protocol::Consistency;
use serde_json::{Value, json};

use super::stage::{LIMIT, Stage, request};

/// A running `hostsnapd export`.
struct Export {
    child: Child,
    socket: PathBuf,
    told: Value,
}

impl Export {
    #[track_caller]
    fn start(stage: &Stage, folder: &Path, arguments: &[&str]) -> Self {
        let socket = folder.join("nbd");
        let told = folder.join("told");
        let mut command = Command::new(env!("CARGO_BIN_EXE_hostsnapd"));
        command.arg("export").args(arguments).arg("--json").arg("--socket").arg(&socket);
        command.arg("--control").arg(stage.control()).stdin(Stdio::null());
        let mut child = command.stdout(File::create(&told).unwrap()).spawn().unwrap();
        let mut read = Value::Null;
        wait_until("it is served", LIMIT, || {
            assert!(child.try_wait().unwrap().is_none(), "it has ended");
            read = serde_json::from_slice(&fs::read(&told).unwrap()).unwrap_or_default();
            !read.is_null()
        });
        Self { child, socket, told: read }
    }

    fn uri(&self) -> &str {
        self.told["uri"].as_str().unwrap()
    }

    fn is_served(&self) -> bool {
        UnixStream::connect(&self.socket).is_ok()
    }

    fn code(&mut self) -> Option<i32> {
        let mut code = None;
        wait_until("the command ends", LIMIT, || {
            code = self.child.try_wait().unwrap();
            code.is_some()
        });
        code.unwrap().code()
    }

    fn end(&mut self) {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
        assert_eq!(self.code(), Some(0));
        assert!(!self.socket.exists(), "the socket is left");
    }

    /// Of the child that serves.
    fn server(&self) -> u32 {
        let path = format!("/proc/{0}/task/{0}/children", self.child.id());
        fs::read_to_string(path).unwrap().split_whitespace().next().unwrap().parse().unwrap()
    }
}

impl Drop for Export {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn take(stage: &Stage) -> String {
    stage.take(&request(Consistency::Filesystem)).unwrap().id.to_string()
}

fn write(stage: &Stage, byte: u8, len: usize, offset: u64) {
    let image = File::options().write(true).open(stage.image()).unwrap();
    image.write_all_at(&vec![byte; len], offset).unwrap();
    image.sync_all().unwrap();
}

#[test]
fn backup_tools_read_a_snapshot_byte_for_byte_and_what_changed_since_another() {
    let stage = Stage::set();
    let first = take(&stage);
    write(&stage, 8, 10_000, 512 << 10);
    let cut = fs::read(stage.image()).unwrap();
    let second = take(&stage);
    write(&stage, 9, 1 << 20, 0);

    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let mut export = Export::start(&stage, folder.path(), &[&second, "data", "--since", &first]);
    let told = &export.told;
    assert_eq!(
        (&told["snapshot"], &told["disk"], &told["size_bytes"]),
        (&json!(second), &json!("data"), &json!(1 << 20))
    );
    assert_eq!(told["contexts"], json!(["base:allocation", "qemu:dirty-bitmap:changed"]));
    assert_eq!((&told["since"], &told["changed_bytes"]), (&json!(first), &json!(12_288)));

    // libnbd's, with both contexts.
    let size = run(Command::new("nbdinfo").args(["--size", export.uri()]));
    assert_eq!(size.trim(), (1 << 20).to_string());
    let map = run(Command::new("nbdinfo").args(["--map", "--totals", export.uri()]));
    assert!(map.contains("1048576 100.0%") && map.contains("data"), "{map}");
    let map = run(Command::new("nbdinfo").args(["--map=qemu:dirty-bitmap:changed", "--json", export.uri()]));
    let map: Value = serde_json::from_str(&map).unwrap();
    let dirty: Vec<_> = map.as_array().unwrap().iter().filter(|one| one["type"] == 1).collect();
    assert_eq!(dirty.len(), 1, "{map}");
    assert_eq!((&dirty[0]["offset"], &dirty[0]["length"]), (&json!(512 << 10), &json!(12_288)));
    run(Command::new("nbdcopy").arg(export.uri()).arg(at("copied")));
    assert!(fs::read(at("copied")).unwrap() == cut, "nbdcopy");
    run(Command::new("qemu-img")
        .args(["compare", "-f", "raw", "-F", "raw"])
        .arg(export.uri())
        .arg(at("copied")));

    // restic takes it into its repository, and gives it back.
    let restic = |script: &str| {
        let mut command = Command::new("sh");
        command
            .args(["-e", "-c", script])
            .env("RESTIC_REPOSITORY", at("repository"))
            .env("RESTIC_PASSWORD", "secret");
        run(command
            .env("RESTIC_CACHE_DIR", at("cache"))
            .env("URI", export.uri())
            .env("RESTORED", at("restored")))
    };
    restic("restic -q init; nbdcopy \"$URI\" - | restic -q backup --stdin --stdin-filename data.img");
    restic("restic -q dump latest data.img > \"$RESTORED\"");
    assert!(fs::read(at("restored")).unwrap() == cut, "restic");

    // What is read stays; the other one may go.
    let refused = stage.admin(&["delete", &second, "--json"]);
    assert_eq!(refused.code, 6, "{}", refused.err);
    assert!(
        refused.err.contains("is being exported") && refused.err.contains("hostsnapd export"),
        "{}",
        refused.err
    );
    assert_eq!(stage.admin(&["delete", &first]).code, 0);
    export.end();
    wait_until("it can be deleted", LIMIT, || stage.admin(&["delete", &second]).code == 0);
    let audit = stage.offline(&["audit", "--json"]).out;
    assert!(audit.lines().any(|line| line.contains("\"export\"") && line.contains(&second)), "{audit}");
}

#[test]
fn an_export_ends_with_its_command_with_the_service_and_with_its_server_and_leaves_nothing() {
    let mut stage = Stage::set();
    let id = take(&stage);
    let folder = tempfile::tempdir().unwrap();
    let notes = stage.state().join("exports");
    let noted = || fs::read_dir(&notes).map_or(0, Iterator::count);

    // The command is killed: its child ends at once, and the service clears up.
    let mut export = Export::start(&stage, folder.path(), &[&id]);
    assert_eq!(noted(), 1);
    export.child.kill().unwrap();
    wait_until("nobody serves", LIMIT, || !export.is_served());
    wait_until("the socket and the note are gone", LIMIT, || !export.socket.exists() && noted() == 0);

    // The child is killed: the command says so.
    let mut export = Export::start(&stage, folder.path(), &[&id]);
    let server = rustix::process::Pid::from_raw(export.server().try_into().unwrap()).unwrap();
    rustix::process::kill_process(server, rustix::process::Signal::KILL).unwrap();
    assert_eq!(export.code(), Some(8));
    assert!(!export.socket.exists());

    // The service is killed: the command ends, and the next service has nothing shown.
    let mut export = Export::start(&stage, folder.path(), &[&id]);
    stage.kill();
    assert_eq!(export.code(), Some(3));
    assert!(!export.socket.exists());
    assert_eq!(noted(), 1, "the note outlives the service");
    stage.start();
    wait_until("the note is gone", LIMIT, || noted() == 0);

    // Whoever reads while it ends is not waited for.
    let mut export = Export::start(&stage, folder.path(), &[&id]);
    let _reader = UnixStream::connect(&export.socket).unwrap();
    export.end();
    wait_until("it can be deleted", LIMIT, || stage.admin(&["delete", &id]).code == 0);
}

#[test]
fn what_can_not_be_exported_is_said_before_anything_is_served() {
    let stage = Stage::set();
    let id = take(&stage);
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("nbd");
    fs::write(&socket, b"a file of somebody's").unwrap();
    let at = socket.to_str().unwrap();
    for (arguments, code, words) in [
        (["export", "ffff", "data"].as_slice(), 5, "no snapshot ffff"),
        (&["export", &id, "other"], 5, "no disk other is in"),
        (&["export", &id, "--since", "ffff"], 5, "no snapshot ffff"),
        (&["export", &id], 6, "is in use; remove it"),
    ] {
        let run = stage.admin(&[arguments, &["--json", "--socket", at]].concat());
        assert_eq!(run.code, code, "{}", run.err);
        assert!(run.error()["message"].as_str().unwrap().contains(words), "{}", run.err);
    }
    assert!(fs::symlink_metadata(&socket).unwrap().file_type().is_file(), "what was there is there");
    // What a server that was killed has left is nobody's.
    fs::remove_file(&socket).unwrap();
    drop(std::os::unix::net::UnixListener::bind(&socket).unwrap());
    assert!(fs::symlink_metadata(&socket).unwrap().file_type().is_socket());
    Export::start(&stage, folder.path(), &[&id]).end();
    assert_eq!(stage.admin(&["delete", &id]).code, 0, "a failed export keeps nothing");
}
