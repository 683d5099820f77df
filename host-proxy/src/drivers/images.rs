//! What drivers do alike whose snapshots hold a raw image file of each volume: showing it, and giving a volume its bytes.

use std::path::{Path, PathBuf};

use protocol::DiskSerial;

use super::restore::{can_restore_image, restore_image};
use super::{DriverError, Expose, Exposed, Format, Others, Owner, Progress, Restore, Volume};

/// A driver whose snapshots hold image files.
pub trait KeepsImages {
    /// The image of a volume in a snapshot that is whole; `NotFound` without one.
    fn image_of(&self, owner: Owner, volume: &DiskSerial) -> Result<PathBuf, DriverError>;

    /// [`Restore::can_restore`], by the snapshot's image.
    fn can_restore_by(
        &self,
        _owner: Owner,
        image: &Path,
        volume: &Volume,
        others: Others,
    ) -> Result<(), DriverError> {
        can_restore_image(image, volume, others)
    }

    /// [`Restore::restore`], by the snapshot's image.
    fn restore_by(
        &self,
        _owner: Owner,
        image: &Path,
        volume: &Volume,
        others: Others,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<(), DriverError> {
        restore_image(image, volume, others, progress)
    }
}

impl<T: KeepsImages> Expose for T {
    fn expose(&self, owner: Owner, volume: &DiskSerial) -> Result<Exposed, DriverError> {
        Ok(Exposed::Path { path: self.image_of(owner, volume)?, format: Format::Raw })
    }
}

impl<T: KeepsImages> Restore for T {
    fn can_restore(&self, owner: Owner, volume: &Volume, others: Others) -> Result<(), DriverError> {
        self.can_restore_by(owner, &self.image_of(owner, &volume.serial)?, volume, others)
    }

    fn restore(
        &self,
        owner: Owner,
        volume: &Volume,
        others: Others,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<(), DriverError> {
        self.restore_by(owner, &self.image_of(owner, &volume.serial)?, volume, others, progress)
    }
}
