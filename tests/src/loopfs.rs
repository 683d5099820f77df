//! A file system of its own, on a loop device, for one test. Needs root, and says so.

use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::Command;

/// A mounted file system; unmounted and gone when dropped.
pub struct LoopFs {
    folder: tempfile::TempDir,
}

/// Which kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// ext4
    Ext4,
    /// XFS with reflinks
    Xfs,
    /// btrfs
    Btrfs,
    /// ext2: it can't set blocks aside (fallocate)
    Ext2,
}

impl Kind {
    /// Those that every test machine has.
    pub const ALL: [Self; 3] = [Self::Ext4, Self::Xfs, Self::Btrfs];

    /// Its name as mount(8) knows it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Ext4 => "ext4",
            Self::Xfs => "xfs",
            Self::Btrfs => "btrfs",
            Self::Ext2 => "ext2",
        }
    }

    const fn mkfs(self) -> &'static [&'static str] {
        match self {
            Self::Ext4 => &["mkfs.ext4", "-q", "-F"],
            Self::Xfs => &["mkfs.xfs", "-q", "-f", "-m", "reflink=1"],
            Self::Btrfs => &["mkfs.btrfs", "-q", "-f"],
            Self::Ext2 => &["mkfs.ext2", "-q", "-F"],
        }
    }
}

impl LoopFs {
    /// Makes and mounts one, of this size.
    ///
    /// # Panics
    /// When that does not work: a test that needs it has failed.
    pub fn new(kind: Kind, mib: u64) -> Self {
        Self::within(&std::env::temp_dir(), kind, mib)
    }

    /// As `new`, with its image in memory where there is enough of it: for tests that sync thousands of
    /// times, and mean the file system and not the disk below it.
    pub fn in_memory(kind: Kind, mib: u64) -> Self {
        let memory = Path::new("/dev/shm");
        let room = rustix::fs::statvfs(memory).map_or(0, |stat| stat.f_bavail.saturating_mul(stat.f_frsize));
        match room >> 20 > 2 * mib {
            true => Self::within(memory, kind, mib),
            false => Self::new(kind, mib),
        }
    }

    /// As `new`, with its image in this folder.
    pub fn within(parent: &Path, kind: Kind, mib: u64) -> Self {
        let folder = tempfile::Builder::new().prefix("hostsnap-fs-").tempdir_in(parent).expect("a folder");
        let image = folder.path().join("image");
        let file = std::fs::File::create(&image).expect("an image");
        file.set_len(mib << 20).expect("an image's size");
        let fs = Self { folder };
        let [program, options @ ..] = kind.mkfs() else { unreachable!("a program") };
        run(Command::new(program).args(options).arg(&image));
        std::fs::create_dir(fs.path()).expect("a mount point");
        run(Command::new("mount").args(["-t", kind.as_str(), "-o", "loop"]).arg(&image).arg(fs.path()));
        fs
    }

    /// Where it is mounted.
    pub fn path(&self) -> PathBuf {
        self.folder.path().join("mnt")
    }

    /// The image that it is in.
    pub fn image(&self) -> PathBuf {
        self.folder.path().join("image")
    }
}

impl LoopFs {
    /// Takes the power from it and gives it back: what the file system had not written to its device is lost. Nobody may have
    /// anything of it open.
    ///
    /// # Panics
    /// When it can't be unmounted, or mounted again.
    pub fn lose_power(&self) {
        let after = self.folder.path().join("after");
        run(Command::new("cp").arg("--sparse=always").arg(self.image()).arg(&after));
        run(Command::new("umount").arg(self.path()));
        std::fs::rename(after, self.image()).expect("what the device has");
        run(Command::new("mount").args(["-o", "loop"]).arg(self.image()).arg(self.path()));
    }
}

/// Takes all the room of a file system as long as it lives.
pub struct Filler(PathBuf);

impl LoopFs {
    /// Fills it to its last block.
    ///
    /// # Panics
    /// When something else than that ends the writing.
    pub fn fill(&self) -> Filler {
        let filler = Filler(self.path().join("filler"));
        let mut file = File::create(&filler.0).expect("a file");
        for block in [1 << 16, 4096, 1] {
            let zeros = vec![0; block];
            let full = loop {
                if let Err(error) = file.write_all(&zeros).and_then(|()| file.sync_data()) {
                    break error;
                }
            };
            assert_eq!(full.kind(), io::ErrorKind::StorageFull, "{full}");
        }
        filler
    }
}

impl Drop for Filler {
    fn drop(&mut self) {
        let folder = self.0.parent().and_then(|folder| File::open(folder).ok());
        let _ = std::fs::remove_file(&self.0);
        // The blocks are free when the journal has the removal.
        let _ = folder.map(rustix::fs::syncfs);
    }
}

impl Drop for LoopFs {
    fn drop(&mut self) {
        // It may be frozen by a test that failed: umount would block on it for ever. What it lies on may be
        // too, and then the thaw would.
        if let Some(outer) = self.folder.path().parent().filter(|parent| parent.ends_with("mnt")) {
            let _ = Command::new("fsfreeze").arg("-u").arg(outer).output();
        }
        let _ = Command::new("fsfreeze").arg("-u").arg(self.path()).output();
        let unmounted = Command::new("umount").arg(self.path()).status();
        if !unmounted.is_ok_and(|status| status.success()) {
            let _ = Command::new("umount").arg("-l").arg(self.path()).status();
        }
    }
}

/// Runs a program that must succeed.
///
/// # Panics
/// When it does not, with what it said.
#[track_caller]
pub fn run(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|error| {
        panic!("{command:?}: {error}; `cargo xtask setup` installs what the tests need")
    });
    assert!(
        output.status.success(),
        "{command:?} (needs root): {}\n{}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8_lossy(&output.stdout).into_owned()
}
