//! What is in a folder of a snapshot, as ls(1) shows it.

use std::ffi::OsStr;
use std::os::fd::AsFd;
use std::path::Path;

use jiff::Timestamp;
use protocol::text::MountPath;
use rustix::fs::{AtFlags, FileType, Mode, OFlags, openat, readlinkat, statat};
use serde::Serialize;

use crate::copy::resolve::{LastLink, Located, NotFound, Root};
use crate::copy::tree;

/// A name in a folder.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Entry {
    /// Its name; bytes that are no UTF-8 are replaced.
    pub name: String,
    /// `file`, `folder`, `link`, `pipe`, `socket`, `device`.
    #[serde(rename = "type")]
    pub kind: &'static str,
    /// Its permissions, in octal.
    pub mode: String,
    /// Its owner.
    pub uid: u32,
    /// Its group.
    pub gid: u32,
    /// Its size.
    pub size_bytes: u64,
    /// When it was written to last.
    pub modified_at: Option<Timestamp>,
    /// Where a link leads.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub target: Option<String>,
}

/// Lists a folder; anything else as itself.
pub fn list(root: &Root, path: &Path) -> Result<Vec<Entry>, NotFound> {
    let failed = |errno: rustix::io::Errno| NotFound::Io { path: path.to_owned(), source: errno.into() };
    let Located { folder, name } = root.find(path, LastLink::Follow)?;
    let stat = statat(&folder, &name, AtFlags::SYMLINK_NOFOLLOW).map_err(failed)?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::Directory {
        return Ok(vec![entry(&folder, &name).map_err(failed)?]);
    }
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let folder = openat(&folder, &name, flags, Mode::empty()).map_err(failed)?;
    let names = tree::list(&folder).map_err(|source| NotFound::Io { path: path.to_owned(), source })?;
    names.iter().map(|name| entry(&folder, name).map_err(failed)).collect()
}

fn entry(folder: impl AsFd, name: &OsStr) -> rustix::io::Result<Entry> {
    let stat = statat(&folder, name, AtFlags::SYMLINK_NOFOLLOW)?;
    let kind = match FileType::from_raw_mode(stat.st_mode) {
        FileType::Directory => "folder",
        FileType::Symlink => "link",
        FileType::Fifo => "pipe",
        FileType::Socket => "socket",
        FileType::BlockDevice | FileType::CharacterDevice => "device",
        FileType::RegularFile | FileType::Unknown => "file",
    };
    let target = (kind == "link").then(|| readlinkat(&folder, name, Vec::new())).transpose()?;
    Ok(Entry {
        name: name.to_string_lossy().into_owned(),
        kind,
        mode: format!("{:04o}", stat.st_mode & 0o7777),
        uid: stat.st_uid,
        gid: stat.st_gid,
        size_bytes: stat.st_size.try_into().unwrap_or(0),
        modified_at: Timestamp::from_second(stat.st_mtime).ok(),
        target: target.map(|target| target.to_string_lossy().into_owned()),
    })
}

impl Entry {
    /// Its name for people: somebody chose it, and may have put an escape sequence into it.
    pub fn shown(&self) -> String {
        MountPath::lossy(&self.name).to_string()
    }

    /// One line with everything.
    pub fn line(&self) -> String {
        let time = self.modified_at.map_or_else(|| "?".to_owned(), |time| time.to_string());
        let target = self.target.as_ref().map(|target| format!(" → {}", MountPath::lossy(target)));
        format!(
            "{:<6}  {}  {:>6} {:>6}  {:>12}  {time}  {}{}",
            self.kind,
            self.mode,
            self.uid,
            self.gid,
            self.size_bytes,
            self.shown(),
            target.unwrap_or_default()
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_an_escape_sequence_is_shown_without_it() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("red\u{1b}[31m"), "12345").unwrap();
        std::os::unix::fs::symlink("red", folder.path().join("link")).unwrap();
        let mount = std::fs::File::open(folder.path()).unwrap();
        let root = Root::new(&mount, Path::new("/"), "/data".into()).unwrap();
        let listed = list(&root, Path::new("/data")).unwrap();
        assert_eq!((listed[0].kind, listed[0].target.as_deref()), ("link", Some("red")));
        assert_eq!((listed[1].kind, listed[1].size_bytes), ("file", 5));
        assert!(listed.iter().all(|entry| !entry.line().contains('\u{1b}')), "{}", listed[1].line());
        assert!(list(&root, Path::new("/data/link")).is_err(), "it leads to nothing");
    }
}
