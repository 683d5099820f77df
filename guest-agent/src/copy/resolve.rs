//! A path of the original's, inside a snapshot. The kernel follows no link here: it would lead an absolute one into
//! the running system. Each is read, and followed within the snapshot's file system; one that leads out of that is
//! refused.

use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::{Component, Path, PathBuf};

use rustix::fs::{FileType, Mode, OFlags, fstat, openat, readlinkat};

/// As many as the kernel follows (path_resolution(7)).
const MOST_LINKS: usize = 40;

/// Why a path could not be found.
#[derive(Debug, thiserror::Error)]
pub enum NotFound {
    /// It is not there.
    #[error("{} in the snapshot", path.display())]
    Io {
        /// The path.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A link on the way leads to another file system.
    #[error("{} is a link that leads to {}, which is not on this file system of the snapshot", link.display(), to.display())]
    LeadsOut {
        /// The path of the link.
        link: PathBuf,
        /// Where it leads.
        to: PathBuf,
    },
}

/// What to do with a link at the end of the path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LastLink {
    /// It is what is wanted.
    Itself,
    /// What it leads to is wanted.
    Follow,
}

/// What was found.
#[derive(Debug)]
pub struct Located {
    /// The folder that it is in; the thing itself, if it is the root.
    pub folder: OwnedFd,
    /// Its name there; `.` for the root.
    pub name: OsString,
}

/// The root of a file system of a snapshot.
#[derive(Debug)]
pub struct Root {
    /// The folder that was mounted.
    pub folder: OwnedFd,
    /// Where it was mounted.
    pub of: PathBuf,
}

impl Root {
    /// The part of a mount that was mounted at the original's path.
    pub fn new(mount: impl AsFd, part: &Path, of: PathBuf) -> Result<Self, NotFound> {
        let whole = Self { folder: open(&mount, OsStr::new(".")).map_err(not_found(part))?, of: "/".into() };
        let Located { folder, name } = whole.find(part, LastLink::Itself)?;
        let folder = open(&folder, &name).map_err(not_found(part))?;
        Ok(Self { folder, of })
    }

    /// Finds a path of the original's, which is below the mount point.
    pub fn find(&self, path: &Path, last: LastLink) -> Result<Located, NotFound> {
        let missing = not_found(path);
        let inside = path.strip_prefix(&self.of).map_err(|_| io::ErrorKind::NotFound.into());
        let mut left = match inside {
            Ok(inside) => parts(inside),
            Err(error) => return Err(missing(error)),
        };
        // The folders on the way, each with its name.
        let mut way: Vec<(OwnedFd, OsString)> = Vec::new();
        let mut links = 0;
        while let Some(part) = left.pop_front() {
            if part == ".." {
                if way.pop().is_none() && self.of != Path::new("/") {
                    return Err(NotFound::LeadsOut { link: path.to_owned(), to: self.of.join("..") });
                }
                continue;
            }
            let folder = way.last().map_or(self.folder.as_fd(), |(folder, _)| folder.as_fd());
            let found = open(folder, &part).map_err(not_found(path))?;
            let kind = FileType::from_raw_mode(
                fstat(&found).map_err(|errno| not_found(path)(errno.into()))?.st_mode,
            );
            if kind == FileType::Symlink && (last == LastLink::Follow || !left.is_empty()) {
                links += 1;
                if links > MOST_LINKS {
                    return Err(not_found(path)(rustix::io::Errno::LOOP.into()));
                }
                let to =
                    readlinkat(&found, c"", Vec::new()).map_err(|errno| not_found(path)(errno.into()))?;
                let to = PathBuf::from(OsString::from_vec(to.into_bytes()));
                let at: PathBuf = way.iter().map(|(_, name)| name).chain([&part]).collect();
                let inside = match to.is_absolute() {
                    false => to.as_path(),
                    true => {
                        way.clear();
                        to.strip_prefix(&self.of)
                            .map_err(|_| NotFound::LeadsOut { link: self.of.join(at), to: to.clone() })?
                    }
                };
                parts(inside).into_iter().rev().for_each(|part| left.push_front(part));
                continue;
            }
            way.push((found, part));
        }
        let own = || self.folder.try_clone().map_err(not_found(path));
        match way.pop() {
            None => Ok(Located { folder: own()?, name: ".".into() }),
            Some((_, name)) => {
                let folder = way.pop().map_or_else(own, |(folder, _)| Ok(folder))?;
                Ok(Located { folder, name })
            }
        }
    }
}

fn parts(path: &Path) -> VecDeque<OsString> {
    path.components()
        .filter_map(|component| match component {
            Component::Normal(name) => Some(name.to_owned()),
            Component::ParentDir => Some("..".into()),
            Component::CurDir | Component::RootDir | Component::Prefix(_) => None,
        })
        .collect()
}

fn open(folder: impl AsFd, name: &OsStr) -> io::Result<OwnedFd> {
    Ok(openat(folder, name, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())?)
}

fn not_found(path: &Path) -> impl Fn(io::Error) -> NotFound {
    let path = path.to_owned();
    move |source| NotFound::Io { path: path.clone(), source }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    /// What is found has this content.
    fn read(root: &Root, path: &str, last: LastLink) -> Result<String, NotFound> {
        let Located { folder, name } = root.find(Path::new(path), last)?;
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW;
        let file = openat(folder, &name, flags, Mode::empty());
        let file = fs::File::from(file.map_err(|errno| not_found(Path::new(path))(errno.into()))?);
        io::read_to_string(file).map_err(not_found(Path::new(path)))
    }

    #[test]
    fn links_are_followed_inside_and_never_out_into_the_running_system() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        fs::create_dir_all(at("sub/deep")).unwrap();
        fs::write(at("sub/deep/file"), "inside").unwrap();
        for (to, link) in [
            ("sub/deep", "relative"),
            ("/data/sub/deep", "absolute"),
            ("../../sub", "sub/deep/up"),
            ("/etc", "out"),
            ("../etc", "above"),
            ("sub/deep/file", "file"),
            ("loop", "loop"),
        ] {
            symlink(to, at(link)).unwrap();
        }
        let mount = fs::File::open(folder.path()).unwrap();
        let root = Root::new(&mount, Path::new("/"), "/data".into()).unwrap();
        for path in
            ["sub/deep/file", "relative/file", "absolute/file", "sub/deep/up/deep/../deep/file", "./file"]
        {
            assert_eq!(read(&root, &format!("/data/{path}"), LastLink::Follow).unwrap(), "inside", "{path}");
        }
        for path in ["out/passwd", "above/passwd", "../etc/passwd"] {
            let told = read(&root, &format!("/data/{path}"), LastLink::Follow).unwrap_err();
            assert!(matches!(told, NotFound::LeadsOut { .. }), "{told}");
        }
        assert!(read(&root, "/data/file", LastLink::Itself).is_err(), "a link is not opened");
        for path in ["/data/loop", "/data/nothing", "/data/file/below", "/elsewhere"] {
            assert!(matches!(read(&root, path, LastLink::Follow), Err(NotFound::Io { .. })), "{path}");
        }
        // A part of the file system was mounted there.
        let part = Root::new(&mount, Path::new("/sub"), "/data".into()).unwrap();
        assert_eq!(read(&part, "/data/deep/file", LastLink::Follow).unwrap(), "inside");
    }
}
