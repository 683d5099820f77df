//! From attached disks down to the file systems on them, through partitions, LVM and md. Reads only; makes and
//! asks nothing of the kernel but a disk's partitions, which it has found by itself.

use std::fs;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::place::Place;
use super::probe::{Content, FileSystem, probe};
use super::{lvm, md};

/// How long the kernel may take to show the partitions of a disk that it has just got.
const PARTITIONS_LIMIT: Duration = Duration::from_secs(5);

/// What is on the disks.
#[derive(Debug, Default)]
pub struct Found {
    /// File systems, each with all its places: one, but for btrfs over several devices.
    pub file_systems: Vec<(FileSystem, Vec<Arc<Place>>)>,
    /// Containers that only a key opens, by their UUID.
    pub locked: Vec<(String, Arc<Place>)>,
    /// What can't be put together, and why.
    pub left_out: Vec<String>,
}

/// Looks at these, and at whatever they hold.
pub fn find(places: Vec<Arc<Place>>) -> io::Result<Found> {
    let mut found = Found::default();
    let mut left = places;
    let (mut physical, mut members) = (Vec::new(), Vec::new());
    loop {
        let Some(place) = left.pop() else {
            // All parts of a level are known now: what they make up comes next.
            if !members.is_empty() {
                arrays(std::mem::take(&mut members), &mut left, &mut found);
            } else if !physical.is_empty() {
                for volume in lvm::volumes(&std::mem::take(&mut physical))? {
                    match volume.place {
                        Ok(place) => left.push(place),
                        Err(why) => {
                            found
                                .left_out
                                .push(format!("the volume {}/{}: {why}", volume.group, volume.name));
                        }
                    }
                }
            } else {
                return Ok(found);
            }
            continue;
        };
        match probe(&place)? {
            Content::FileSystem(fs) => found.add(fs, place),
            Content::Lvm => physical.push(place),
            Content::Md(member) => members.push((member, place)),
            Content::Luks(uuid) => found.locked.push((uuid, place)),
            Content::Partitions => left.extend(partitions(&place)?),
            Content::Swap | Content::Unknown => {}
        }
    }
}

impl Found {
    fn add(&mut self, fs: FileSystem, place: Arc<Place>) {
        let same = |known: &FileSystem| known.uuid == fs.uuid && known.kind == fs.kind && fs.devices > 1;
        match self.file_systems.iter_mut().find(|(known, _)| same(known)) {
            Some((_, places)) => places.push(place),
            None => self.file_systems.push((fs, vec![place])),
        }
    }

    /// What was found behind a container that was opened.
    pub fn merge(&mut self, other: Self) {
        for (fs, places) in other.file_systems {
            for place in places {
                self.add(fs.clone(), place);
            }
        }
        self.locked.extend(other.locked);
        self.left_out.extend(other.left_out);
    }
}

fn arrays(mut members: Vec<(md::Member, Arc<Place>)>, places: &mut Vec<Arc<Place>>, found: &mut Found) {
    while let Some(array) = members.first().map(|(member, _)| member.array) {
        let (these, others): (Vec<_>, Vec<_>) =
            members.into_iter().partition(|(member, _)| member.array == array);
        members = others;
        match md::assemble(&these) {
            Ok(place) => places.push(Arc::new(place)),
            Err(why) => found.left_out.push(format!("the md array {array}: {why}")),
        }
    }
}

/// The kernel's devices for the partitions of a disk. In what it did not make itself it looks for none.
fn partitions(place: &Place) -> io::Result<Vec<Arc<Place>>> {
    let Place::Device { path, .. } = place else { return Ok(Vec::new()) };
    let Some(name) = path.file_name().and_then(|name| name.to_str()) else { return Ok(Vec::new()) };
    let deadline = Instant::now() + PARTITIONS_LIMIT;
    loop {
        let mut found = Vec::new();
        for entry in fs::read_dir(Path::new("/sys/class/block").join(name))?.flatten() {
            let device = Path::new("/dev").join(entry.file_name());
            if entry.path().join("partition").exists() && device.exists() {
                found.push(Arc::new(Place::open(device)?));
            }
        }
        if !found.is_empty() || Instant::now() >= deadline {
            return Ok(found);
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::super::place::tests::image;
    use super::*;

    fn made(program: &str, arguments: &[&str]) -> Arc<Place> {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(128 << 20).unwrap();
        let output = Command::new(program).args(arguments).arg(file.path()).output().unwrap();
        assert!(output.status.success(), "{program}: {}", String::from_utf8_lossy(&output.stderr));
        Arc::new(Place::open(file.path().to_owned()).unwrap())
    }

    #[test]
    fn a_file_system_over_two_devices_is_one_and_a_copy_of_one_is_two() {
        let folder = tempfile::tempdir().unwrap();
        let paths = ["a", "b"].map(|name| folder.path().join(name));
        for path in &paths {
            fs::File::create(path).unwrap().set_len(128 << 20).unwrap();
        }
        let made_two = Command::new("mkfs.btrfs").arg("-q").args(&paths).status().unwrap();
        assert!(made_two.success());
        let two = paths.map(|path| Arc::new(Place::open(path).unwrap()));
        let ext4 = made("mkfs.ext4", &["-q", "-F"]);
        let found = find([&two[..], &[Arc::clone(&ext4), ext4, image(&[0; 10])]].concat()).unwrap();
        let mut places: Vec<_> = found.file_systems.iter().map(|(_, places)| places.len()).collect();
        places.sort_unstable();
        assert_eq!(places, [1, 1, 2], "{found:?}");
    }
}
