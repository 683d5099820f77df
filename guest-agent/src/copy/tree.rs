//! Folders, files and links, each with all that it is. Links are copied, not followed; two names of one file are
//! two names of one file again.

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{
    AtFlags, CWD, Dir, FileType, Mode, OFlags, Stat, linkat, mkdirat, mknodat, openat, readlinkat, renameat,
    statat, symlinkat, unlinkat,
};
use rustix::io::Errno;
use uuid::Uuid;

use super::data::Bytes;
use super::meta::{self, Entry};
use super::resolve::Located;
use super::{Failure, Listener, Told};

/// What was copied.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Copied {
    /// Files, folders, links.
    pub entries: u64,
    /// What could not be copied, or not as it was.
    pub failures: u64,
}

/// Copies from one file system.
pub struct Copier<'a> {
    listener: &'a mut dyn Listener,
    bytes: Bytes,
    /// Files with several names, by device and inode: where the first is now.
    names: HashMap<(u64, u64), PathBuf>,
    copied: Copied,
}

impl<'a> Copier<'a> {
    /// With somebody to tell.
    pub fn new(listener: &'a mut dyn Listener) -> Self {
        let (names, copied) = (HashMap::new(), Copied::default());
        Self { listener, bytes: Bytes::new(), names, copied }
    }

    /// Copies what was located, which users know by this path, to a path that may exist.
    pub fn copy(&mut self, from: &Located, known_as: &Path, to: &Path) {
        let parent = to.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let place = open_folder(CWD, parent.as_os_str(), OFlags::empty());
        match place {
            Err(error) => {
                self.failed(known_as, &format!("open the target's folder {}", parent.display()), error)
            }
            Ok(folder) => {
                let source = Entry { folder: from.folder.as_fd(), name: &from.name };
                let name = to.file_name().unwrap_or(OsStr::new("."));
                self.entry(source, Entry { folder: folder.as_fd(), name }, &Names { from: known_as, to });
            }
        }
    }

    /// What came of all of it.
    pub fn end(self) -> Copied {
        self.copied
    }

    fn failed(&mut self, path: &Path, doing: &str, source: io::Error) {
        self.copied.failures += 1;
        self.listener.hear(Told::Failed(Failure { path: path.to_owned(), doing: doing.to_owned(), source }));
    }

    fn entry(&mut self, from: Entry<'_>, to: Entry<'_>, names: &Names<'_>) {
        if self.listener.wants_end() {
            return;
        }
        let copied =
            statat(from.folder, from.name, AtFlags::SYMLINK_NOFOLLOW).map_err(Into::into).and_then(|stat| {
                match FileType::from_raw_mode(stat.st_mode) {
                    FileType::Directory => self.folder(from, &stat, to, names),
                    FileType::RegularFile => self.several_names(from, &stat, to, names),
                    _ => self.renamed(from, &stat, to, names, |temporary, _| other(from, &stat, temporary)),
                }
            });
        match copied {
            Ok(()) => self.copied.entries += 1,
            Err(error) => self.failed(names.from, "copy it", error),
        }
    }

    fn folder(&mut self, from: Entry<'_>, stat: &Stat, to: Entry<'_>, names: &Names<'_>) -> io::Result<()> {
        let source = open_folder(from.folder, from.name, OFlags::NOFOLLOW)?;
        let is_new = match mkdirat(to.folder, to.name, Mode::RWXU) {
            Err(Errno::EXIST) => false,
            made => made.map(|()| true)?,
        };
        // What the user named may be a link to a folder; below it none is followed.
        let flags = if is_new || to.name != "." { OFlags::NOFOLLOW } else { OFlags::empty() };
        let target = open_folder(to.folder, to.name, flags)?;
        for name in list(&source)? {
            let (from, to) = (names.from.join(&name), names.to.join(&name));
            let inner = Names { from: &from, to: &to };
            let entry = |folder| Entry { folder, name: &name };
            self.entry(entry(source.as_fd()), entry(target.as_fd()), &inner);
        }
        if let Err((doing, error)) = meta::copy(from, stat, to) {
            self.failed(names.from, &doing, error);
        }
        Ok(())
    }

    fn several_names(
        &mut self,
        from: Entry<'_>,
        stat: &Stat,
        to: Entry<'_>,
        names: &Names<'_>,
    ) -> io::Result<()> {
        let identity = (stat.st_dev, stat.st_ino);
        if stat.st_nlink > 1
            && let Some(first) = self.names.get(&identity).cloned()
        {
            let temporary = temporary();
            linkat(CWD, &first, to.folder, &temporary, AtFlags::empty())?;
            // Of two names of one file a rename removes none (rename(2)).
            let renamed = renameat(to.folder, &temporary, to.folder, to.name);
            let _ = unlinkat(to.folder, &temporary, AtFlags::empty());
            return Ok(renamed?);
        }
        self.renamed(from, stat, to, names, |target, copier| copier.file(from, target))?;
        if stat.st_nlink > 1 {
            self.names.insert(identity, names.to.to_owned());
        }
        Ok(())
    }

    fn file(&mut self, from: Entry<'_>, to: Entry<'_>) -> io::Result<()> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let source = File::from(openat(from.folder, from.name, flags, Mode::empty())?);
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        let target = File::from(openat(to.folder, to.name, flags, Mode::RUSR | Mode::WUSR)?);
        self.bytes.copy(&source, &target, self.listener)
    }

    /// Makes it under another name, and gives it its own when it is whole.
    fn renamed(
        &mut self,
        from: Entry<'_>,
        stat: &Stat,
        to: Entry<'_>,
        names: &Names<'_>,
        make: impl FnOnce(Entry<'_>, &mut Self) -> io::Result<()>,
    ) -> io::Result<()> {
        let name = temporary();
        let temporary = Entry { folder: to.folder, name: &name };
        let made = make(temporary, self).and_then(|()| {
            if let Err((doing, error)) = meta::copy(from, stat, temporary) {
                self.failed(names.from, &doing, error);
            }
            Ok(renameat(to.folder, &name, to.folder, to.name)?)
        });
        if made.is_err() {
            let _ = unlinkat(to.folder, &name, AtFlags::empty());
        }
        made
    }
}

/// What users call the two.
struct Names<'a> {
    from: &'a Path,
    to: &'a Path,
}

/// Links, pipes, sockets, devices.
fn other(from: Entry<'_>, stat: &Stat, to: Entry<'_>) -> io::Result<()> {
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::Symlink => {
            let target = readlinkat(from.folder, from.name, Vec::new())?;
            symlinkat(target, to.folder, to.name)?;
        }
        kind => mknodat(to.folder, to.name, kind, Mode::RUSR | Mode::WUSR, stat.st_rdev)?,
    }
    Ok(())
}

/// One that nobody has, and that says whose it is, should it be left.
fn temporary() -> OsString {
    format!(".hostsnap-{}", Uuid::new_v4()).into()
}

fn open_folder(folder: impl AsFd, name: &OsStr, more: OFlags) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC | more;
    Ok(openat(folder, name, flags, Mode::empty())?)
}

/// Names in a folder, sorted: a copy of the same is made in the same order.
pub(crate) fn list(folder: impl AsFd) -> io::Result<Vec<OsString>> {
    let mut names = Vec::new();
    for entry in Dir::read_from(folder)? {
        let entry = entry?;
        let name = OsStr::from_bytes(entry.file_name().to_bytes());
        if name != "." && name != ".." {
            names.push(name.to_owned());
        }
    }
    names.sort();
    Ok(names)
}

/// How many bytes there are to copy, for a progress bar. What can't be read is passed over: the copy will tell.
pub fn size(folder: BorrowedFd<'_>, name: &OsStr) -> u64 {
    let Ok(stat) = statat(folder, name, AtFlags::SYMLINK_NOFOLLOW) else { return 0 };
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile => stat.st_size.try_into().unwrap_or(0),
        FileType::Directory => {
            let Ok(inner) = open_folder(folder, name, OFlags::NOFOLLOW) else { return 0 };
            list(&inner).unwrap_or_default().iter().map(|name| size(inner.as_fd(), name)).sum()
        }
        _ => 0,
    }
}
