//! Reading one `[[store]]`: each driver has its own keys, and takes no other's.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::de::Error;
use serde::{Deserialize, Deserializer};

use super::{Store, units};
use crate::drivers::lvm_thin::{NotAPool, PoolName, Watermarks};
use crate::drivers::zfs::{DatasetName, NotADataset};
use crate::drivers::{csi, rbd};

/// A driver with what it needs to find its storage.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Backend {
    /// QEMU copies, by QMP, into this folder.
    Qemu(PathBuf),
    /// FICLONE, into this folder.
    Reflink(PathBuf),
    /// Snapshots of the btrfs subvolume that this folder is.
    Btrfs(PathBuf),
    /// Thin snapshots in this pool, while it is not too full.
    LvmThin(PoolName, Watermarks),
    /// Snapshots of the images in this pool of Ceph's.
    Rbd(rbd::Place),
    /// Snapshots of this dataset and those below it.
    Zfs(DatasetName),
    /// Snapshots by this CSI plugin.
    Csi(csi::Place),
}

/// How a driver's disks are named.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Named {
    /// By `path`.
    Path,
    /// By `volume`.
    Volume,
    /// By both.
    Both,
}

/// The words of `driver =`.
#[derive(Clone, Copy, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Word {
    Qemu,
    Reflink,
    Btrfs,
    LvmThin,
    Rbd,
    Zfs,
    Csi,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Raw {
    name: String,
    driver: Word,
    #[serde(default = "units::default_min_free", deserialize_with = "units::bytes")]
    min_free: u64,
    path: Option<PathBuf>,
    pool: Option<String>,
    dataset: Option<String>,
    data_watermark: Option<u8>,
    metadata_watermark: Option<u8>,
    namespace: Option<String>,
    conf: Option<PathBuf>,
    user: Option<String>,
    #[serde(default, deserialize_with = "units::optional_duration")]
    timeout: Option<Duration>,
    endpoint: Option<PathBuf>,
    node_endpoint: Option<PathBuf>,
    parameters: Option<BTreeMap<String, String>>,
    volume_parameters: Option<BTreeMap<String, String>>,
    secrets_file: Option<PathBuf>,
    group_snapshots: Option<bool>,
}

impl Raw {
    fn backend(&mut self) -> Result<Backend, String> {
        let backend = match self.driver {
            Word::Qemu => Backend::Qemu(self.folder("qemu")?),
            Word::Reflink => Backend::Reflink(self.folder("reflink")?),
            Word::Btrfs => Backend::Btrfs(self.folder("btrfs")?),
            Word::LvmThin => {
                let pool = self.pool.take().ok_or_else(|| {
                    format!("the store {:?} needs its thin pool: pool = \"vg0/thin\"", self.name)
                })?;
                Backend::LvmThin(
                    pool.parse().map_err(|error: NotAPool| error.to_string())?,
                    self.watermarks()?,
                )
            }
            Word::Rbd => Backend::Rbd(self.ceph()?),
            Word::Zfs => {
                let dataset = self.dataset.take().ok_or_else(|| {
                    format!("the store {:?} needs its dataset: dataset = \"tank/vms\"", self.name)
                })?;
                Backend::Zfs(dataset.parse().map_err(|error: NotADataset| error.to_string())?)
            }
            Word::Csi => Backend::Csi(self.plugin()?),
        };
        Ok(backend)
    }

    fn watermarks(&mut self) -> Result<Watermarks, String> {
        let otherwise = Watermarks::default();
        let watermarks = Watermarks {
            data: self.data_watermark.take().unwrap_or(otherwise.data),
            metadata: self.metadata_watermark.take().unwrap_or(otherwise.metadata),
        };
        match watermarks {
            Watermarks { data: 1..=100, metadata: 1..=100 } => Ok(watermarks),
            _ => Err(format!("a watermark of the store {:?} is none: percent, from 1 to 100", self.name)),
        }
    }

    fn ceph(&mut self) -> Result<rbd::Place, String> {
        let pool = self.pool.take().ok_or_else(|| {
            format!("the store {:?} needs the pool that holds the images: pool = \"…\"", self.name)
        })?;
        Ok(rbd::Place {
            pool,
            namespace: self.namespace.take(),
            conf: self.conf.take().unwrap_or_else(|| "/etc/ceph/ceph.conf".into()),
            user: self.user.take().unwrap_or_else(|| "hostsnap".to_owned()),
            timeout: self.timeout.take().unwrap_or(Duration::from_secs(15)),
        })
    }

    fn plugin(&mut self) -> Result<csi::Place, String> {
        let endpoint = self.endpoint.take().ok_or_else(|| {
            format!("the store {:?} needs the socket of its CSI plugin: endpoint = \"/…\"", self.name)
        })?;
        let folder = self.path.take().ok_or_else(|| {
            format!(
                "the store {:?} needs a folder for what CSI has no place for, the manifests: path = \"/…\"",
                self.name
            )
        })?;
        Ok(csi::Place {
            endpoint,
            node_endpoint: self.node_endpoint.take(),
            folder,
            parameters: self.parameters.take().unwrap_or_default(),
            volume_parameters: self.volume_parameters.take().unwrap_or_default(),
            secrets_file: self.secrets_file.take(),
            timeout: self.timeout.take().unwrap_or(Duration::from_secs(30)),
            group_snapshots: self.group_snapshots.take().unwrap_or(true),
        })
    }

    /// The first key that is left: the driver has no use for it.
    fn left(&self) -> Option<&'static str> {
        let keys = [
            ("path", self.path.is_some()),
            ("pool", self.pool.is_some()),
            ("dataset", self.dataset.is_some()),
            ("data_watermark", self.data_watermark.is_some()),
            ("metadata_watermark", self.metadata_watermark.is_some()),
            ("namespace", self.namespace.is_some()),
            ("conf", self.conf.is_some()),
            ("user", self.user.is_some()),
            ("timeout", self.timeout.is_some()),
            ("endpoint", self.endpoint.is_some()),
            ("node_endpoint", self.node_endpoint.is_some()),
            ("parameters", self.parameters.is_some()),
            ("volume_parameters", self.volume_parameters.is_some()),
            ("secrets_file", self.secrets_file.is_some()),
            ("group_snapshots", self.group_snapshots.is_some()),
        ];
        keys.into_iter().find_map(|(key, is_left)| is_left.then_some(key))
    }

    fn folder(&mut self, driver: &str) -> Result<PathBuf, String> {
        self.path.take().ok_or_else(|| {
            format!("the store {:?} needs the folder where the driver {driver} keeps its snapshots: path = \"/…\"", self.name)
        })
    }
}

impl<'de> Deserialize<'de> for Store {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let mut raw = Raw::deserialize(deserializer)?;
        let backend = raw.backend().map_err(D::Error::custom)?;
        if let Some(key) = raw.left() {
            return Err(D::Error::custom(format!(
                "the store {:?} has the key {key}, which the driver {} has no use for",
                raw.name,
                backend.driver()
            )));
        }
        Ok(Self { name: raw.name, backend, min_free: raw.min_free })
    }
}

impl Backend {
    /// The driver's name.
    pub const fn driver(&self) -> &'static str {
        match self {
            Self::Qemu(_) => "qemu",
            Self::Reflink(_) => "reflink",
            Self::Btrfs(_) => "btrfs",
            Self::LvmThin(..) => "lvm-thin",
            Self::Rbd(_) => "rbd",
            Self::Zfs(_) => "zfs",
            Self::Csi(_) => "csi",
        }
    }

    /// The folder of this host where the snapshots are, for drivers that keep files.
    pub fn folder(&self) -> Option<&Path> {
        match self {
            Self::Qemu(path) | Self::Reflink(path) | Self::Btrfs(path) => Some(path),
            Self::Csi(place) => Some(&place.folder),
            Self::LvmThin(..) | Self::Rbd(_) | Self::Zfs(_) => None,
        }
    }

    /// Whether it asks the QEMU that has the disk.
    pub(super) const fn needs_qmp(&self) -> bool {
        matches!(self, Self::Qemu(_))
    }

    /// How a disk is named.
    pub(super) const fn named(&self) -> Named {
        match self {
            Self::Qemu(_) | Self::Reflink(_) | Self::Btrfs(_) | Self::LvmThin(..) | Self::Zfs(_) => {
                Named::Path
            }
            Self::Rbd(_) => Named::Volume,
            Self::Csi(_) => Named::Both,
        }
    }

    /// Where it keeps its snapshots, in words; no two stores may share it.
    pub(super) fn place(&self) -> String {
        match self {
            Self::Qemu(path) | Self::Reflink(path) | Self::Btrfs(path) => path.display().to_string(),
            Self::LvmThin(pool, _) => pool.to_string(),
            Self::Rbd(place) => place.to_string(),
            Self::Zfs(dataset) => dataset.to_string(),
            Self::Csi(place) => place.to_string(),
        }
    }
}
