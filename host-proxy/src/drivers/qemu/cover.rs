//! A qcow2 image that a running QEMU has open is given the bytes of a snapshot by that QEMU: its tables are cached there. The
//! image is put under a *cover*, which shows them at once; QEMU makes the image the same as its cover, and takes it away.
//!
//! ```text
//! device ─► cover ─► image          blockdev-snapshot, then block-commit; at its end: device ─► image
//!             └ data ─► snapshot    data takes what the guest writes meanwhile; the snapshot is read-only
//! ```
//!
//! An overlay shows what is below it where it has no data of its own. So the cover has some everywhere: its clusters are
//! allocated, in an external data file (QEMU `docs/interop/qcow2.rst`), which is an overlay of the snapshot.
//!
//! Both switches are made at one instant, and nothing that is written is lost. All that is in QEMU has the cover's name: what
//! a service that was killed has left is found by it, and brought to its end. Files are handed over, without a name.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::job::ignore_refusal;
use super::offline::qemu_img;
use super::{LIMIT, POLL_EVERY, job, look, of_qmp};
use crate::drivers::common::tool_failed;
use crate::drivers::restore::begun;
use crate::drivers::{DriverError, Kind, Progress, Volume};
use crate::vmm::disk::{self, CoverName, Disk, FindError};
use crate::vmm::pause;
use crate::vmm::qmp::{Qmp, QmpError};

/// How long it may take to make an empty image.
const MAKE_LIMIT: Duration = Duration::from_secs(60);
/// How long a monitor may have no answer while a cover is in place.
const PATIENCE: Duration = Duration::from_secs(120);

/// What became of it.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// The image has the bytes.
    Restored,
    /// It has no QEMU.
    NoQemu,
    /// Its QEMU ended meanwhile. The image may hold neither the old bytes nor the new.
    QemuEnded,
}

/// An image in a running QEMU.
pub(super) struct Image<'a> {
    pub(super) monitor: &'a Path,
    pub(super) volume: &'a Volume,
    pub(super) path: &'a Path,
}

impl Image<'_> {
    /// A connection; none where QEMU is gone.
    pub(super) fn reach(&self) -> Result<Option<Qmp>, DriverError> {
        match Qmp::connect(self.monitor, LIMIT) {
            Ok(qmp) => Ok(Some(qmp)),
            Err(error) if error.is_gone() => Ok(None),
            Err(error) => Err(of_qmp(format!("talk to QEMU at {}", self.monitor.display()), error)),
        }
    }

    /// Proves, without changing anything, that it can be put under a cover, and that QEMU gets it back.
    pub(super) fn can_be_covered(&self, qmp: &mut Qmp, name: &CoverName) -> Result<(), DriverError> {
        let disk = self.find(qmp)?;
        // It is opened anew, read-only and then for writing (QEMU `blockdev.c`, `external_snapshot_commit`, and
        // `block/commit.c`): one that may not do that any more would stay without its image.
        let Some(file) = disk.file.to_str().filter(|file| file.starts_with('/')) else { return Ok(()) };
        let probe = format!("{}-p", name.as_str());
        let driver = if is_device(&disk.file) { "host_device" } else { "file" };
        let node = json!({ "node-name": probe, "driver": driver, "filename": file, "locking": "off" });
        let doing = || format!("have QEMU open {} anew, to write to it", self.volume.source);
        remove_node(qmp, &probe).map_err(|error| of_qmp(doing(), error))?;
        qmp.execute("blockdev-add", node, LIMIT).map_err(|error| refused(doing(), error))?;
        remove_node(qmp, &probe).map_err(|error| of_qmp(doing(), error))
    }

    /// Gives it the bytes of the snapshot. `scratch` is a folder for what has a name only for a moment.
    pub(super) fn restore(
        &self,
        snapshot: &Path,
        name: &CoverName,
        scratch: &Path,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<Outcome, DriverError> {
        let Some(mut qmp) = self.reach()? else { return Ok(Outcome::NoQemu) };
        let mut disk = self.find(&mut qmp)?;
        progress(Progress { done_bytes: 0, total_bytes: disk.size_bytes });
        if let Some(before) = disk.cover.take() {
            // What an attempt before has left. What it shows, and what was written to it, is overwritten then.
            drop(qmp);
            if self.finish(&before, disk.size_bytes, &mut |_| {})? == Outcome::QemuEnded {
                return Ok(Outcome::QemuEnded);
            }
            let Some(again) = self.reach()? else { return Ok(Outcome::QemuEnded) };
            qmp = again;
            disk = self.find(&mut qmp)?;
        }
        let doing = || format!("put {} under a cover", self.volume.source);
        release(&mut qmp, name).map_err(|error| of_qmp(doing(), error))?;
        let covered = self.cover(&mut qmp, &disk, name, snapshot, scratch);
        drop(qmp);
        if let Err(error) = covered {
            return self.take_back(name, error);
        }
        self.finish(name, disk.size_bytes, progress)
    }

    fn find(&self, qmp: &mut Qmp) -> Result<Disk, DriverError> {
        let doing = || format!("restore {}", self.volume.source);
        if pause::is_moving(qmp).map_err(|error| of_qmp(doing(), error))? {
            let text = format!("{}: its machine is being moved or saved", doing());
            return Err(DriverError::new(Kind::Busy, text));
        }
        let disk = look(qmp, self.volume)?;
        if disk.layout != "qcow2" {
            let text = format!("{}: in QEMU it is below a filter, {}", doing(), disk.layout);
            return Err(DriverError::new(Kind::Unsupported, text));
        }
        // A commit would make it writable.
        if disk.is_read_only {
            let text = format!("{}: QEMU was given it read-only", doing());
            return Err(DriverError::new(Kind::Unsupported, text));
        }
        Ok(disk)
    }

    /// Has the device read the cover.
    fn cover(
        &self,
        qmp: &mut Qmp,
        disk: &Disk,
        name: &CoverName,
        snapshot: &Path,
        scratch: &Path,
    ) -> Result<(), DriverError> {
        let old = File::open(snapshot)
            .map_err(|error| DriverError::io(format!("open {}", snapshot.display()), error))?;
        let (cover, data) = self.files(scratch, disk.size_bytes)?;
        let name = name.as_str();
        let (data_node, old_node) = (format!("{name}-d"), format!("{name}-r"));
        let told = (|| {
            let old_file = hand_over(qmp, &old_node, &old)?;
            let data_file = hand_over(qmp, &data_node, &data)?;
            // So whoever comes later knows what is below.
            let cover_file = hand_over(qmp, &format!("{name} {}", disk.node), &cover)?;
            // A power loss of the host ends their QEMU too.
            let cache = json!({ "no-flush": true });
            let old = json!({
                "node-name": old_node, "driver": "raw", "read-only": true,
                "file": { "driver": "file", "filename": old_file, "read-only": true },
            });
            let data = json!({
                "node-name": data_node, "driver": "qcow2", "cache": cache,
                "file": { "driver": "file", "filename": data_file }, "backing": old,
            });
            let cover = json!({
                "node-name": name, "driver": "qcow2", "cache": cache,
                "file": { "driver": "file", "filename": cover_file }, "data-file": data, "backing": null,
            });
            qmp.execute("blockdev-add", cover, LIMIT)?;
            qmp.execute("blockdev-snapshot", json!({ "node": disk.node, "overlay": name }), LIMIT)
        })();
        told.map(drop).map_err(|error| refused(format!("put {} under a cover", self.volume.source), error))
    }

    /// Two empty images: the cover's own, and its data. They have no name any more: nothing is left of them when QEMU
    /// closes them.
    fn files(&self, scratch: &Path, size_bytes: u64) -> Result<(File, File), DriverError> {
        let doing = || format!("make a cover for {} in {}", self.volume.source, scratch.display());
        let io = |error: io::Error| DriverError::io(doing(), error);
        remove_folder(scratch).map_err(io)?;
        DirBuilder::new().mode(0o700).create(scratch).map_err(io)?;
        let tool = qemu_img(self.volume)?;
        let make = |name: &str, options: &[&str]| {
            let mut command = tool.command();
            // Names within the folder: no path of the host is taken for options, or stays in a file.
            command.current_dir(scratch).args(["create", "-q", "-f", "qcow2"]).args(options);
            command.arg(name).arg(size_bytes.to_string());
            let made = tool.run(&mut command, MAKE_LIMIT);
            made.map_err(|error| tool_failed(doing(), error, kind_of))?;
            let opened = OpenOptions::new().read(true).write(true).open(scratch.join(name));
            opened.map_err(|error| DriverError::io(doing(), error))
        };
        // Larger clusters make smaller tables: 16 MiB for a TiB.
        let everywhere = "cluster_size=512k,preallocation=metadata,data_file=none";
        let made = make("cover", &["-o", everywhere]).and_then(|cover| Ok((cover, make("data", &[])?)));
        remove_folder(scratch).map_err(io)?;
        made
    }

    /// Takes back what QEMU was given for a cover that could not be put in place. If it is in place after all, that is no
    /// refusal any more.
    fn take_back(&self, name: &CoverName, error: DriverError) -> Result<Outcome, DriverError> {
        let taken = match self.reach() {
            Ok(None) => return Ok(Outcome::QemuEnded),
            Ok(Some(mut qmp)) => release(&mut qmp, name)
                .map_err(|error| of_qmp(format!("take the cover {} back from QEMU", name.as_str()), error)),
            Err(error) => Err(error),
        };
        match taken {
            Ok(Released::Gone) => Err(error),
            Ok(Released::InPlace) => Err(DriverError { kind: Kind::Failed, ..error }),
            Err(undo) => Err(DriverError { kind: Kind::Failed, ..error }.after_undo(Err(undo))),
        }
    }

    /// Makes the image what the cover shows, and takes the cover away; from wherever an attempt before came to.
    fn finish(
        &self,
        name: &CoverName,
        size_bytes: u64,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<Outcome, DriverError> {
        let doing = || format!("have QEMU write the snapshot to {}", self.volume.source);
        let failed = |error| begun(&doing(), error);
        let (mut answered, mut most) = (Instant::now(), 0);
        loop {
            let mut qmp = match self.reach() {
                Ok(None) => return Ok(Outcome::QemuEnded),
                Ok(Some(qmp)) => qmp,
                // Somebody else talks to it.
                Err(error) if error.kind == Kind::Busy && answered.elapsed() < PATIENCE => {
                    std::thread::sleep(POLL_EVERY);
                    continue;
                }
                Err(error) => return Err(DriverError { kind: Kind::Failed, ..error }),
            };
            answered = Instant::now();
            match self.step(&mut qmp, name) {
                Ok(Step::IsAway) => break,
                Ok(Step::Runs { done, of }) => {
                    let done_bytes = Progress::share(size_bytes, done, of);
                    // What the guest writes is more to do.
                    if done_bytes > most {
                        most = done_bytes;
                        progress(Progress { done_bytes, total_bytes: size_bytes });
                    }
                }
                Ok(Step::Failed(said)) => {
                    return Err(DriverError::new(Kind::Failed, format!("{}: QEMU says: {said}", doing())));
                }
                // QEMU is gone, or only this connection: the next one tells.
                Err(QmpError::Io(_)) => {}
                Err(error) => return Err(failed(io::Error::other(error))),
            }
            drop(qmp);
            std::thread::sleep(POLL_EVERY);
        }
        // QEMU flushed it; where it was told not to, that is done here.
        File::open(self.path).and_then(|image| image.sync_all()).map_err(failed)?;
        progress(Progress { done_bytes: size_bytes, total_bytes: size_bytes });
        Ok(Outcome::Restored)
    }

    /// Does what is next.
    fn step(&self, qmp: &mut Qmp, name: &CoverName) -> Result<Step, QmpError> {
        let jobs = job::jobs(qmp)?;
        let Some(job) = job::of_name(&jobs, name.as_str()) else {
            return match disk::find(qmp, &self.volume.serial, self.path) {
                Ok(disk) if disk.cover.as_ref() == Some(name) => begin(qmp, name),
                Err(FindError::Qmp(error)) => Err(error),
                // Or its device is out of the machine by now.
                Ok(_) | Err(_) => release_soon(qmp, name).map(|()| Step::IsAway),
            };
        };
        let id = json!({ "id": name.as_str() });
        match job["status"].as_str().unwrap_or_default() {
            "ready" => ignore_refusal(qmp.execute("job-complete", id, LIMIT))?,
            "concluded" => {
                ignore_refusal(qmp.execute("job-dismiss", id, LIMIT))?;
                if let Some(error) = job["error"].as_str() {
                    return Ok(Step::Failed(error.to_owned()));
                }
            }
            _ => {}
        }
        let number = |key: &str| job[key].as_u64().unwrap_or(0);
        Ok(Step::Runs { done: number("current-progress"), of: number("total-progress") })
    }
}

/// How far QEMU is.
enum Step {
    Runs { done: u64, of: u64 },
    Failed(String),
    IsAway,
}

/// Has QEMU write what the cover shows to the image below.
fn begin(qmp: &mut Qmp, name: &CoverName) -> Result<Step, QmpError> {
    let Some(base) = below(qmp, name)? else {
        return Err(QmpError::Malformed(format!("QEMU does not say what is below {}", name.as_str())));
    };
    let job = json!({
        "job-id": name.as_str(), "device": name.as_str(), "base-node": base, "on-error": "report",
        // It stays until it is dismissed: whoever asks later learns how it ended.
        "auto-dismiss": false,
    });
    qmp.execute("block-commit", job, LIMIT)?;
    Ok(Step::Runs { done: 0, of: 1 })
}

/// What the descriptors say that QEMU was handed.
fn marks(sets: &Value) -> impl Iterator<Item = (&Value, &str)> {
    let sets = sets.as_array().into_iter().flatten();
    sets.flat_map(|set| {
        let fds = set["fds"].as_array().into_iter().flatten();
        fds.filter_map(|fd| Some((&set["fdset-id"], fd["opaque"].as_str()?)))
    })
}

fn below(qmp: &mut Qmp, name: &CoverName) -> Result<Option<String>, QmpError> {
    let sets = qmp.execute("query-fdsets", json!({}), LIMIT)?;
    let below = marks(&sets).filter_map(|(set, mark)| {
        Some((set.as_u64()?, mark.strip_prefix(name.as_str())?.strip_prefix(' ')?))
    });
    // A QEMU whose guest is paused still has the descriptors that were taken back from it: the newest is the cover's.
    Ok(below.max().map(|(_, base)| base.to_owned()))
}

/// Whether anything is left of a cover.
enum Released {
    Gone,
    /// A device reads it.
    InPlace,
}

/// Takes back what QEMU has of a cover that no device reads.
fn release(qmp: &mut Qmp, name: &CoverName) -> Result<Released, QmpError> {
    let name = name.as_str();
    if let Err(error) = remove_node(qmp, name) {
        return if let QmpError::Refused { .. } = error { Ok(Released::InPlace) } else { Err(error) };
    }
    remove_node(qmp, &format!("{name}-p"))?;
    let sets = qmp.execute("query-fdsets", json!({}), LIMIT)?;
    for (set, _) in marks(&sets).filter(|(_, mark)| mark.starts_with(name)) {
        ignore_refusal(qmp.execute("remove-fd", json!({ "fdset-id": set }), LIMIT))?;
    }
    Ok(Released::Gone)
}

/// As `release`, of a cover that no device reads any more.
fn release_soon(qmp: &mut Qmp, name: &CoverName) -> Result<(), QmpError> {
    let deadline = Instant::now() + LIMIT;
    while let Released::InPlace = release(qmp, name)? {
        if Instant::now() >= deadline {
            return Err(QmpError::TimedOut { command: "blockdev-del".to_owned() });
        }
        std::thread::sleep(POLL_EVERY);
    }
    Ok(())
}

/// Removes a node; absent is fine.
fn remove_node(qmp: &mut Qmp, node: &str) -> Result<(), QmpError> {
    match qmp.execute("blockdev-del", json!({ "node-name": node }), LIMIT) {
        Ok(_) => Ok(()),
        Err(error @ QmpError::Refused { .. }) => {
            let nodes = qmp.execute("query-named-block-nodes", json!({ "flat": true }), LIMIT)?;
            let is_there = nodes.as_array().into_iter().flatten().any(|one| one["node-name"] == node);
            if is_there { Err(error) } else { Ok(()) }
        }
        Err(error) => Err(error),
    }
}

fn hand_over(qmp: &mut Qmp, mark: &str, file: &File) -> Result<String, QmpError> {
    let added = qmp.execute_with_fd("add-fd", json!({ "opaque": mark }), file.as_fd(), LIMIT)?;
    Ok(format!("/dev/fdset/{}", added["fdset-id"]))
}

/// `qemu-img` has one exit status for all failures; its words are those of strerror(3).
fn kind_of(stderr: &str) -> Kind {
    if stderr.contains("No space left on device") { Kind::NoSpace } else { Kind::Failed }
}

/// A QEMU that says no before anything is changed can't.
fn refused(doing: String, error: QmpError) -> DriverError {
    match error {
        QmpError::Refused { .. } => DriverError { kind: Kind::Unsupported, ..of_qmp(doing, error) },
        _ => of_qmp(doing, error),
    }
}

fn is_device(path: &Path) -> bool {
    use std::os::unix::fs::FileTypeExt;
    fs::metadata(path).is_ok_and(|meta| meta.file_type().is_block_device())
}

fn remove_folder(path: &Path) -> io::Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}
