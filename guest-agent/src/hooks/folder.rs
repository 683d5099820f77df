//! Which files are hooks: executable, root's alone, and not left behind by a package manager or an
//! editor.

use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::time::Duration;

use super::{Hook, HookError, header};

/// What packages and editors leave behind.
const LEFTOVERS: [&str; 7] = ["~", ".bak", ".orig", ".rpmnew", ".rpmsave", ".rpmorig", ".swp"];

/// By which arguments a hook is called.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// Hostsnap's.
    Own,
    /// qemu-ga's.
    Qemu,
}

/// Those of a folder, in the order of their names. No folder is no hook.
pub(super) fn hooks_in(folder: &Path, kind: Kind, limit: Duration) -> Result<Vec<Hook>, HookError> {
    let read = |source| HookError::Read { path: folder.to_owned(), source };
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(source) => return Err(read(source)),
    };
    is_roots(folder)?;
    let mut hooks = Vec::new();
    for entry in entries {
        let entry = entry.map_err(read)?;
        let path = entry.path();
        if is_hook_name(&entry.file_name().to_string_lossy()) && is_program(&path)? {
            let (need, own_limit) = header::of(&path)?;
            hooks.push(Hook { path, kind, need, limit: own_limit.unwrap_or(limit) });
        }
    }
    hooks.sort_by(|one, other| one.path.cmp(&other.path));
    Ok(hooks)
}

fn is_hook_name(name: &str) -> bool {
    !name.starts_with('.') && !name.contains(".dpkg-") && !LEFTOVERS.iter().any(|end| name.ends_with(end))
}

fn is_program(path: &Path) -> Result<bool, HookError> {
    let meta = is_roots(path)?;
    let is_program = meta.is_file() && meta.permissions().mode() & 0o111 != 0;
    if meta.is_file() && !is_program {
        tracing::warn!("{} is not executable, so it is no hook", path.display());
    }
    Ok(is_program)
}

/// Whether only root can change it; for a link, what it leads to.
fn is_roots(path: &Path) -> Result<fs::Metadata, HookError> {
    let meta = fs::metadata(path).map_err(|source| HookError::Read { path: path.to_owned(), source })?;
    match meta.uid() == 0 && meta.permissions().mode() & 0o022 == 0 {
        true => Ok(meta),
        false => Err(HookError::NotRoots(path.to_owned())),
    }
}
