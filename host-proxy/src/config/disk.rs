//! Reading one `[[vm.disk]]`: what is behind it is a path of this host, a name on the storage, or both.

use std::path::PathBuf;

use protocol::DiskSerial;
use serde::de::Error;
use serde::{Deserialize, Deserializer};

use super::Disk;
use crate::drivers::{Format, Source};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Raw {
    serial: DiskSerial,
    store: String,
    path: Option<PathBuf>,
    volume: Option<String>,
    format: Format,
}

impl<'de> Deserialize<'de> for Disk {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let Raw { serial, store, path, volume, format } = Raw::deserialize(deserializer)?;
        let source = match (path, volume) {
            (Some(path), None) => Source::Path(path),
            (None, Some(volume)) => Source::Volume(volume),
            (Some(path), Some(volume)) => Source::Published { volume, path },
            (None, None) => {
                return Err(D::Error::custom(format!(
                    "the disk {serial} needs `path` (an image file or block device), `volume` (its name on the \
                     storage), or both, as its store's driver wants it"
                )));
            }
        };
        Ok(Self { serial, store, source, format })
    }
}
