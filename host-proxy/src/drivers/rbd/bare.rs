//! The bare call of librbd, for the benchmark that holds the driver against it.

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

    /// Removes such a snapshot.
    pub fn remove(&self, name: &str) -> Result<(), DriverError> {
        self.0.remove_snapshot(name).map(drop)
    }
}
