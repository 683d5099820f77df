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

mod parts;

use std::fs::{self, File};
use std::io;
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::json;

use super::job::ignore_refusal;
use super::{LIMIT, POLL_EVERY, job, look, of_qmp};
use crate::drivers::restore::begun;
use crate::drivers::{DriverError, Kind, Progress, Volume};
use crate::vmm::disk::{self, CoverName, Disk, FindError};
use crate::vmm::pause;
use crate::vmm::qmp::{Qmp, QmpError};
use parts::{Released, below, put_over, release, release_soon, remove_node};

/// How long QEMU may take to write back what it holds of an image, before another is put over it.
const FLUSH_LIMIT: Duration = Duration::from_secs(120);
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
        let covered = put_over(&mut qmp, self.volume, &disk, name, snapshot, scratch);
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
            let more = format!(", {}", disk.layout);
            return Err(DriverError::not_restored(
                self.volume,
                "its QEMU has a filter above its image",
                &more,
            ));
        }
        // A commit would make it writable.
        if disk.is_read_only {
            return Err(DriverError::not_restored(self.volume, "its QEMU was given its image read-only", ""));
        }
        Ok(disk)
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
    qmp.execute("block-commit", job, FLUSH_LIMIT)?;
    Ok(Step::Runs { done: 0, of: 1 })
}

/// A QEMU that says no before anything is changed can't.
fn refused(doing: String, error: QmpError) -> DriverError {
    match error {
        QmpError::Refused { .. } => DriverError {
            kind: Kind::Unsupported,
            told: Some("its QEMU does not open its image anew"),
            ..of_qmp(doing, error)
        },
        _ => of_qmp(doing, error),
    }
}

fn is_device(path: &Path) -> bool {
    use std::os::unix::fs::FileTypeExt;
    fs::metadata(path).is_ok_and(|meta| meta.file_type().is_block_device())
}
