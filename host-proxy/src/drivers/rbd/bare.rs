//! The bare call of librbd, for the benchmark that holds the driver against it.

use std::sync::mpsc;

use super::Place;
use super::ffi::cluster::Pool;
use super::ffi::image::{For, Image};
use super::ffi::text;
use crate::drivers::DriverError;

/// An image, and nothing around it.
pub struct BareImage(Image);

impl BareImage {
    /// Connects and opens it, as `prepare` does.
    pub fn open(place: &Place, name: &str) -> Result<Self, DriverError> {
        Ok(Self(Image::by_name(&Pool::open(place)?, name, For::Cutting)?))
    }

    /// `rbd_snap_create2`.
    pub fn snapshot(&self, name: &str) -> Result<(), DriverError> {
        self.0.snapshot(&text(name)?)
    }

    /// `rbd_snap_rollback_with_progress`, of which nobody hears, under the image's lock.
    pub fn roll_back(&self, name: &str) -> Result<(), DriverError> {
        self.0.lock()?;
        self.0.roll_back(name, mpsc::channel().0)
    }

    /// Removes such a snapshot.
    pub fn remove(&self, name: &str) -> Result<(), DriverError> {
        self.0.remove_snapshot(name).map(drop)
    }
}
