//! Which store a disk's snapshots are kept in, by where the disk is.

use std::path::{Path, PathBuf};

use crate::config::{Backend, Config, LibvirtConfig};
use crate::drivers::Source;

/// The store of a path: that of the longest folder that it is in.
pub(super) fn of_path(file: &Config, libvirt: &LibvirtConfig, path: &Path) -> Option<String> {
    let said = libvirt.stores.iter().map(|(folder, store)| (folder.clone(), store));
    let own = file
        .stores
        .iter()
        .flat_map(|store| folders(&store.backend).into_iter().map(move |folder| (folder, &store.name)));
    // Of equals the last is taken: what was said.
    let all = own.chain(said).filter(|(folder, _)| path.starts_with(folder));
    let best = all.max_by_key(|(folder, _)| folder.components().count()).map(|(_, store)| store);
    best.or(libvirt.store.as_ref()).cloned()
}

/// The store of an image of Ceph's, and its name there.
pub(super) fn of_image(file: &Config, name: &str) -> Result<(Source, String), String> {
    let parts: Vec<&str> = name.split('/').collect();
    let (pool, namespace, image) = match parts[..] {
        [pool, image] => (pool, None, image),
        [pool, namespace, image] => (pool, Some(namespace), image),
        _ => return Err(format!("{name} is no pool/image of Ceph's")),
    };
    let store = file.stores.iter().find(|store| {
        matches!(&store.backend, Backend::Rbd(place)
            if place.pool == pool && place.namespace.as_deref() == namespace)
    });
    let store = store.ok_or_else(|| format!("the image {name} is in no store of the driver rbd"))?;
    Ok((Source::Volume(image.to_owned()), store.name.clone()))
}

/// The folders whose disks are plainly a store's.
fn folders(backend: &Backend) -> Vec<PathBuf> {
    match backend {
        Backend::Qemu(path) | Backend::Reflink(path) | Backend::Btrfs(path) => vec![path.clone()],
        Backend::LvmThin(pool, _) => {
            let pool = pool.to_string();
            let group = pool.split('/').next().unwrap_or_default();
            vec![Path::new("/dev").join(group)]
        }
        Backend::Zfs(dataset) => {
            vec![Path::new("/dev/zvol").join(dataset.as_str()), Path::new("/").join(dataset.as_str())]
        }
        Backend::Rbd(_) | Backend::Csi(_) => Vec::new(),
    }
}
