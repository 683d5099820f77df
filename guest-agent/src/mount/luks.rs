//! Containers of LUKS: only their key opens them, and only the user has it. cryptsetup does it, which is there
//! where LUKS is used.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::MountError;
use super::mapper::{self, Writes};

/// Opens a container under this name; its device. One that is open is used again.
pub(super) fn open(device: &Path, name: &str, key: &Path, writes: Writes) -> Result<PathBuf, MountError> {
    let looking = || MountError::io(format!("look for the device {name}"));
    if let Some(minor) = mapper::status(name).map_err(looking())? {
        return Ok(mapper::node(minor));
    }
    let mut command = Command::new("cryptsetup");
    command.args(["open", "--type", "luks", "--batch-mode", "--key-file"]).arg(key);
    if writes == Writes::Never {
        command.arg("--readonly");
    }
    // Standard input may be the key.
    let output = command.arg(device).arg(name).stdin(Stdio::inherit()).output();
    let output = output.map_err(MountError::io("run cryptsetup, which opens LUKS; is it installed?"))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        return Err(MountError::Program { program: "cryptsetup", said });
    }
    match mapper::status(name).map_err(looking())? {
        Some(minor) => Ok(mapper::node(minor)),
        None => Err(MountError::Program { program: "cryptsetup", said: format!("made no device {name}") }),
    }
}
