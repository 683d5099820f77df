//! Copying a tree with everything that a file can be, from one real file system to another. Needs root.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use guest_agent::copy::resolve::{LastLink, Root};
use guest_agent::copy::tree::{Copied, Copier};
use guest_agent::copy::{Listener, Told};
use harness::loopfs::{Kind, LoopFs, run};

#[derive(Default)]
struct Heard {
    bytes: u64,
    failures: Vec<String>,
    ends_after: Option<u64>,
}

impl Listener for Heard {
    fn hear(&mut self, told: Told) {
        match told {
            Told::Bytes(bytes) => self.bytes += bytes,
            Told::Failed(failure) => self.failures.push(format!("{failure}: {}", failure.source)),
        }
    }

    fn wants_end(&self) -> bool {
        self.ends_after.is_some_and(|limit| self.bytes >= limit)
    }
}

/// As the snapshot's file system of `/data` is copied.
fn copy(from: &Path, path: &str, to: &Path, heard: &mut Heard) -> Copied {
    let mount = fs::File::open(from).unwrap();
    let root = Root::new(&mount, Path::new("/"), "/data".into()).unwrap();
    let found = root.find(Path::new(path), LastLink::Itself).unwrap();
    let mut copier = Copier::new(heard);
    copier.copy(&found, Path::new(path), to);
    copier.end()
}

fn make(at: &Path) {
    let path = |name: &str| at.join(name);
    fs::create_dir_all(path("sub/empty")).unwrap();
    fs::write(path("sub/file"), "content").unwrap();
    fs::hard_link(path("sub/file"), path("second name")).unwrap();
    symlink("/etc/passwd", path("absolute")).unwrap();
    symlink("nothing", path("dangling")).unwrap();
    let sparse = fs::File::create(path("sparse")).unwrap();
    sparse.set_len(64 << 20).unwrap();
    sparse.write_all_at(b"middle", 10 << 20).unwrap();
    fs::write(path("program"), vec![7; 3 << 20]).unwrap();
    fs::set_permissions(path("program"), fs::Permissions::from_mode(0o4755)).unwrap();
    let name = "x".repeat(255);
    fs::write(path(&name), "long").unwrap();
    let script = "mkfifo pipe && mknod device c 1 3 && chown 1234:4321 sub/file sub && chmod 1777 sub/empty && \
                  chown -h 77:88 dangling && touch -h -d 2001-02-03T04:05:06.789 dangling && \
                  touch -d 1999-01-01T00:00:00.123456789 sub/file sub/empty sub program";
    run(Command::new("sh").arg("-ec").arg(script).current_dir(at));
    let set = |name: &str, key: &str, value: &[u8]| {
        rustix::fs::lsetxattr(path(name), key, value, rustix::fs::XattrFlags::empty()).unwrap();
    };
    set("sub/file", "user.note", b"kept\0too");
    set("sub", "user.folder", b"");
    // cap_net_raw, in the second revision of the format (linux/capability.h).
    set("program", "security.capability", b"\x01\0\0\x02\0\x20\0\0\0\0\0\0\0\0\0\0\0\0\0\0");
    // user::rw-, user:1000:r--, group::r--, mask::r--, other::--- (linux/posix_acl_xattr.h).
    let acl = [(1u16, 6u16, !0u32), (2, 4, 1000), (4, 4, !0), (0x10, 4, !0), (0x20, 0, !0)];
    let acl: Vec<u8> =
        acl.into_iter().fold(2u32.to_le_bytes().to_vec(), |mut bytes, (tag, permission, id)| {
            bytes.extend(tag.to_le_bytes());
            bytes.extend(permission.to_le_bytes());
            bytes.extend(id.to_le_bytes());
            bytes
        });
    set("sparse", "system.posix_acl_access", &acl);
}

/// Everything that is known of everything below a folder, by path.
fn all(at: &Path) -> BTreeMap<PathBuf, String> {
    const XFS: u64 = 0x5846_5342;
    let on_xfs = rustix::fs::statfs(at).unwrap().f_type.cast_unsigned() == XFS;
    let mut found = BTreeMap::new();
    let mut left = vec![at.to_owned()];
    let mut inodes = BTreeMap::new();
    while let Some(path) = left.pop() {
        let meta = fs::symlink_metadata(&path).unwrap();
        let mut text = format!(
            "{:o} {}:{} {} {}.{} {}",
            meta.mode(),
            meta.uid(),
            meta.gid(),
            if meta.is_dir() { 0 } else { meta.len() },
            meta.mtime(),
            meta.mtime_nsec(),
            meta.rdev()
        );
        let mut names = vec![0; 4096];
        let length = rustix::fs::llistxattr(&path, &mut names[..]).unwrap();
        let mut names: Vec<_> =
            names[..length].split(|byte| *byte == 0).filter(|name| !name.is_empty()).collect();
        if on_xfs {
            // It shows an ACL twice.
            names.retain(|name| !name.starts_with(b"trusted.SGI_ACL_"));
        }
        names.sort_unstable();
        for name in names {
            let mut value = vec![0; 4096];
            let length = rustix::fs::lgetxattr(&path, name, &mut value[..]).unwrap();
            text += &format!(" {}={:?}", String::from_utf8_lossy(name), &value[..length]);
        }
        if meta.is_dir() {
            left.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
        } else if meta.is_symlink() {
            text += &format!(" → {}", fs::read_link(&path).unwrap().display());
        } else if meta.is_file() {
            text += &format!(" {:016x}", digest(&path));
            let next = inodes.len();
            text += &format!(" inode {}", inodes.entry(meta.ino()).or_insert(next));
        }
        found.insert(path.strip_prefix(at).unwrap().to_owned(), text);
        left.sort();
    }
    found.retain(|path, _| path != Path::new("lost+found"));
    found
}

fn digest(path: &Path) -> u64 {
    use std::hash::{DefaultHasher, Hasher};
    let mut hasher = DefaultHasher::new();
    hasher.write(&fs::read(path).unwrap());
    hasher.finish()
}

#[test]
fn a_copy_is_what_the_original_is_in_every_respect() {
    let (source, target) = (LoopFs::new(Kind::Ext4, 96), LoopFs::new(Kind::Xfs, 320));
    make(&source.path());
    let mut heard = Heard::default();
    let to = target.path().join("copy");
    let copied = copy(&source.path(), "/data", &to, &mut heard);
    assert_eq!(heard.failures, Vec::<String>::new());
    assert_eq!(
        (copied.failures, copied.entries),
        (0, all(&to).len() as u64 + u64::from(source.path().join("lost+found").exists()))
    );
    assert_eq!(all(&to), all(&source.path()));
    let blocks = fs::metadata(to.join("sparse")).unwrap().blocks();
    assert!(blocks * 512 < 2 << 20, "holes were filled: {blocks} blocks");
    assert!(heard.bytes > 64 << 20, "holes count as done");

    // From XFS back to ext4: nothing has come to it on the way.
    let again = LoopFs::new(Kind::Ext4, 96);
    copy(&to, "/data", &again.path().join("copy"), &mut Heard::default());
    assert_eq!(all(&again.path().join("copy")), all(&to));

    // Again, over what is there: replaced, not written into.
    let open = fs::File::open(to.join("sub/file")).unwrap();
    copy(&source.path(), "/data", &to, &mut Heard::default());
    assert_eq!(all(&to), all(&source.path()));
    assert_ne!(open.metadata().unwrap().ino(), fs::metadata(to.join("sub/file")).unwrap().ino());
    assert_eq!(io::read_to_string(open).unwrap(), "content", "who had it open reads it still");
}

#[test]
fn what_fails_is_told_and_the_others_are_copied() {
    let (source, target) = (LoopFs::new(Kind::Ext4, 96), LoopFs::new(Kind::Ext4, 96));
    make(&source.path());
    let to = target.path().join("copy");
    fs::create_dir_all(to.join("program/in the way")).unwrap();
    fs::write(to.join("sub"), "in the way").unwrap();
    let mut heard = Heard::default();
    let copied = copy(&source.path(), "/data", &to, &mut heard);
    assert_eq!(copied.failures, 2, "{:?}", heard.failures);
    for path in ["/data/program", "/data/sub"] {
        assert!(
            heard.failures.iter().any(|told| told.starts_with(&format!("{path}: "))),
            "{:?}",
            heard.failures
        );
    }
    assert_eq!(fs::read_to_string(to.join("second name")).unwrap(), "content");
    assert_eq!(fs::read_to_string(to.join("sub")).unwrap(), "in the way", "what is in the way stays");
    let left = fs::read_dir(&to)
        .unwrap()
        .filter(|entry| entry.as_ref().unwrap().file_name().to_string_lossy().starts_with(".hostsnap-"));
    assert_eq!(left.count(), 0);
}

#[test]
fn a_copy_that_is_stopped_leaves_no_half_file() {
    let (source, target) = (LoopFs::new(Kind::Ext4, 96), LoopFs::new(Kind::Ext4, 96));
    fs::write(source.path().join("large"), vec![1; 32 << 20]).unwrap();
    fs::write(target.path().join("large"), "old").unwrap();
    let mut heard = Heard { ends_after: Some(4 << 20), ..Heard::default() };
    copy(&source.path(), "/data/large", &target.path().join("large"), &mut heard);
    assert_eq!(heard.failures.len(), 1);
    assert_eq!(fs::read_to_string(target.path().join("large")).unwrap(), "old");
    let names: Vec<_> =
        fs::read_dir(target.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert!(names.iter().all(|name| name == "large" || name == "lost+found"), "{names:?}");
}
