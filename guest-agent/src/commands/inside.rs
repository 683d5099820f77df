//! The commands that look into a snapshot: mount, umount, cp, ls.

use std::ffi::OsStr;
use std::io::{self, IsTerminal};
use std::path::{Component, Path, PathBuf};
use std::process::ExitCode;

use indicatif::{ProgressBar, ProgressStyle};
use protocol::attach::Access;
use protocol::{ErrorCode, SnapshotRecord, WireError};
use serde_json::json;

use super::print;
use crate::cli::{Inside, Mount, Which};
use crate::client::{Client, HostAddress, Limits};
use crate::copy::resolve::{LastLink, NotFound, Root};
use crate::copy::tree::{self, Copier};
use crate::copy::{Listener, Told};
use crate::flow::{Patience, chain};
use crate::listing;
use crate::mount::run::{self, View, Wish};
use crate::mount::undo;

/// What `cp` ends with when something was left out, as cp(1) does.
const NOT_ALL: u8 = 1;

pub(super) fn mount(mount: Mount, host: &HostAddress, json: bool) -> Result<(), WireError> {
    let Mount { snapshot, dir, path, which, writable, dry_run } = mount;
    let dir = dir.canonicalize().and_then(|dir| match dir.is_dir() {
        true => Ok(dir),
        false => Err(io::ErrorKind::NotADirectory.into()),
    });
    let dir = dir.map_err(|error| {
        WireError::new(ErrorCode::BadRequest, format!("the folder to mount at: {error}"))
            .hint("it must be there: mkdir")
    })?;
    let mut client = Client::connect(host, Limits::default())?;
    let record = client.get(snapshot)?;
    let path = path.map(|path| absolute(&path)).transpose()?;
    let wish = Wish { path, writable, ..wish(&which) };
    if dry_run {
        return plan(&record, &wish, &dir, json);
    }
    let _patience = Patience::new();
    let view = run::open(&mut client, &record, &wish, Some(&dir))?;
    let (told, text) = describe(&view, &record, &dir);
    let notes = view.notes.clone();
    view.place(&mut client)?;
    if json {
        print::json(&told)
    } else {
        print::out(&text)
    }
    notes.iter().for_each(|note| eprintln!("hostsnap: {note}"));
    Ok(())
}

fn wish(which: &Which) -> Wish {
    let Which { uuid, luks_key_file } = which.clone();
    Wish { uuid, luks_key_file, ..Wish::default() }
}

fn describe(view: &View, record: &SnapshotRecord, dir: &Path) -> (serde_json::Value, String) {
    let (fs, of) = (&view.fs, &view.of);
    let told = json!({
        "id": record.id, "dir": dir, "path": of, "fstype": fs.kind.as_str(), "uuid": fs.uuid,
        "options": view.options, "notes": view.notes,
    });
    let text = format!(
        "mounted      {}\nsnapshot     {}\nfile system  {}  {}\nUUID         {}\noptions      {}\n",
        print::path(dir),
        record.id,
        print::path(of),
        fs.kind.as_str(),
        fs.uuid,
        view.options
    );
    (told, text)
}

fn plan(record: &SnapshotRecord, wish: &Wish, dir: &Path, json: bool) -> Result<(), WireError> {
    let plan = run::plan(record, wish)?;
    let disks: Vec<_> = match plan.disks.is_empty() {
        true => record.disks.iter().map(|disk| disk.serial.to_string()).collect(),
        false => plan.disks.iter().map(ToString::to_string).collect(),
    };
    let uuid = plan.original.as_ref().map(|original| original.uuid);
    if json {
        print::json(&json!({
            "dry_run": true, "id": record.id, "dir": dir, "path": plan.mount.path, "fstype": plan.mount.fs_type,
            "uuid": uuid, "disks": disks, "access": plan.access,
        }));
        return Ok(());
    }
    let how = match plan.access {
        Access::ReadOnly => "read-only",
        Access::Writable => "as a clone that is thrown away",
    };
    let uuid = uuid.map_or_else(
        || "by its kind: nothing that is known is mounted there now".to_owned(),
        |uuid| uuid.to_string(),
    );
    print::out(&format!(
        "would attach  {}  {how}\nand find      the {} of {}  {uuid}\nand mount it  {}\n",
        disks.join(" "),
        plan.mount.fs_type,
        plan.mount.path,
        print::path(dir)
    ));
    Ok(())
}

pub(super) fn umount(dir: Option<&Path>, host: &HostAddress, json: bool) -> Result<(), WireError> {
    let dir = dir.map(|dir| dir.canonicalize().or_else(|_| absolute(dir))).transpose()?;
    let mut client = Client::connect(host, Limits::default())?;
    let _patience = Patience::new();
    let done = undo::close_all(&mut client, dir.as_deref())?;
    if json {
        print::json(&done.iter().map(|dir| json!({ "dir": dir, "unmounted": true })).collect::<Vec<_>>());
        return Ok(());
    }
    done.iter().for_each(|dir| print::out(&format!("{} unmounted\n", print::path(dir))));
    if let (Some(dir), true) = (dir, done.is_empty()) {
        print::out(&format!("{}: nothing of a snapshot was mounted there\n", print::path(&dir)));
    }
    Ok(())
}

/// Without looking at the running system: `..` and links mean what they mean in the snapshot.
fn absolute(path: &Path) -> Result<PathBuf, WireError> {
    std::path::absolute(path)
        .map_err(|error| WireError::new(ErrorCode::BadRequest, format!("{}: {error}", path.display())))
}

fn root_of(view: &View) -> Result<Root, WireError> {
    Ok(Root::new(&view.mount, &view.root, view.of.clone())?)
}

impl From<NotFound> for WireError {
    fn from(error: NotFound) -> Self {
        let text = chain(&error);
        match error {
            NotFound::Io { .. } => {
                Self::new(ErrorCode::NotFound, text).hint("hostsnap ls ID:/path lists what is there")
            }
            NotFound::LeadsOut { .. } => Self::new(ErrorCode::NotFound, text)
                .hint("ask for the path that it leads to, if the snapshot holds it"),
        }
    }
}

pub(super) fn ls(
    inside: &Inside,
    long: bool,
    which: &Which,
    host: &HostAddress,
    json: bool,
) -> Result<(), WireError> {
    let mut client = Client::connect(host, Limits::default())?;
    let record = client.get(inside.snapshot.clone())?;
    let _patience = Patience::new();
    let view =
        run::open(&mut client, &record, &Wish { path: Some(inside.path.clone()), ..wish(which) }, None)?;
    let listed = root_of(&view).and_then(|root| Ok(listing::list(&root, &inside.path)?));
    view.close(&mut client)?;
    let listed = listed?;
    if json {
        print::json(&listed);
    } else {
        listed.iter().for_each(|entry| print::out(&(if long { entry.line() } else { entry.shown() } + "\n")));
    }
    Ok(())
}

pub(super) fn cp(
    sources: Vec<Inside>,
    dest: &Path,
    which: &Which,
    host: &HostAddress,
    json: bool,
) -> Result<ExitCode, WireError> {
    let first = sources.first().expect("clap asks for one").snapshot.clone();
    if sources.iter().any(|source| source.snapshot != first) {
        return Err(WireError::new(ErrorCode::BadRequest, "the sources are of several snapshots")
            .hint("copy from one snapshot at a time"));
    }
    let into = dest.is_dir();
    if !into && sources.len() > 1 {
        return Err(WireError::new(
            ErrorCode::BadRequest,
            format!("{} is no folder, and there are several sources", dest.display()),
        )
        .hint("name a folder that is there"));
    }
    let mut client = Client::connect(host, Limits::default())?;
    let record = client.get(first)?;
    let mut listener = Heard { patience: Patience::new(), bar: ProgressBar::hidden(), bytes: 0, json };
    let mut entries = 0;
    let mut failures = 0;
    for source in &sources {
        let wish = Wish { path: Some(source.path.clone()), ..wish(which) };
        let view = run::open(&mut client, &record, &wish, None)?;
        view.notes.iter().for_each(|note| eprintln!("hostsnap: {note}"));
        let copied = copy(&view, source, dest, into, &mut listener);
        view.close(&mut client)?;
        let copied = copied?;
        entries += copied.entries;
        failures += copied.failures;
    }
    listener.bar.finish_and_clear();
    if json {
        print::json(
            &json!({ "id": record.id, "entries": entries, "bytes": listener.bytes, "failures": failures }),
        );
    }
    Ok(if failures == 0 { ExitCode::SUCCESS } else { ExitCode::from(NOT_ALL) })
}

fn copy(
    view: &View,
    source: &Inside,
    dest: &Path,
    into: bool,
    listener: &mut Heard,
) -> Result<tree::Copied, WireError> {
    // As cp(1): a slash at the end means what a link leads to.
    let last = if ends_in_slash(&source.path) { LastLink::Follow } else { LastLink::Itself };
    let found = root_of(view)?.find(&source.path, last)?;
    if io::stderr().is_terminal() {
        use std::os::fd::AsFd;
        let style =
            ProgressStyle::with_template("copying {bar:30} {bytes}/{total_bytes} {bytes_per_sec} {eta}");
        listener.bar = ProgressBar::new(tree::size(found.folder.as_fd(), &found.name))
            .with_style(style.expect("a valid template"));
    }
    let to = match source.path.components().next_back() {
        Some(Component::Normal(name)) if into => dest.join(name),
        _ => dest.to_owned(),
    };
    let mut copier = Copier::new(listener);
    copier.copy(&found, &source.path, &to);
    Ok(copier.end())
}

fn ends_in_slash(path: &Path) -> bool {
    use std::os::unix::ffi::OsStrExt;
    path.as_os_str().as_bytes().ends_with(b"/") && path.as_os_str() != OsStr::new("/")
}

struct Heard {
    patience: Patience,
    bar: ProgressBar,
    bytes: u64,
    json: bool,
}

impl Listener for Heard {
    fn hear(&mut self, told: Told) {
        match told {
            Told::Bytes(count) => {
                self.bytes += count;
                self.bar.inc(count);
            }
            Told::Failed(failure) => {
                let error = WireError::new(ErrorCode::Internal, chain(&failure));
                self.bar.suspend(|| print::error(&error, self.json));
            }
        }
    }

    fn wants_end(&self) -> bool {
        self.patience.stopped_by().is_some()
    }
}
