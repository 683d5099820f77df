//! `[libvirt]`: what holds for the machines that libvirt has and no `[[vm]]` names.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use serde::Deserialize;

use super::{Quota, Verb};

/// Who tells which machines there are, beside the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Discover {
    /// libvirt.
    Libvirt,
}

/// `[libvirt]`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LibvirtConfig {
    /// Which libvirt, as for `virsh -c`.
    pub uri: String,
    /// The store of disks in this folder, the longest first; beside the stores' own folders.
    pub stores: BTreeMap<PathBuf, String>,
    /// The store of disks in no such folder.
    pub store: Option<String>,
    /// What the guests may do.
    pub allow: BTreeSet<Verb>,
    /// Whether they may delete their own snapshots.
    pub guest_may_delete: bool,
    /// How much each may have.
    pub quota: Quota,
}

impl Default for LibvirtConfig {
    fn default() -> Self {
        Self {
            uri: "qemu:///system".to_owned(),
            stores: BTreeMap::new(),
            store: None,
            allow: Verb::all(),
            guest_may_delete: true,
            quota: Quota::default(),
        }
    }
}

impl LibvirtConfig {
    /// The stores that it names.
    pub(super) fn named_stores(&self) -> impl Iterator<Item = &String> {
        self.stores.values().chain(&self.store)
    }
}
