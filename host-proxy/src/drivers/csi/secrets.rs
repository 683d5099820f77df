//! Secrets of a plugin's: read from a file that only root can read, sent with each call, and kept out of everything else.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::File;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use crate::drivers::{DriverError, Kind};

/// What is shown in the place of a secret.
const HIDDEN: &str = "***";
/// A shorter value is not looked for in texts: it would be found in the middle of ordinary words.
const LOOKED_FOR: usize = 4;
/// The largest map that CSI allows, in bytes ("Size Limits").
const MAX_BYTES: u64 = 4096;

/// Names and values, for the plugin only.
#[derive(Clone, Default, PartialEq, Eq)]
pub(super) struct Secrets(BTreeMap<String, String>);

impl Secrets {
    /// Reads the file of this store, if it has one: TOML, one `name = "value"` a line. Read anew for each snapshot, so
    /// that a secret can be changed without a reload.
    pub(super) fn read(path: Option<&Path>) -> Result<Self, DriverError> {
        let Some(path) = path else { return Ok(Self::default()) };
        let doing = || format!("read the secrets in {}", path.display());
        let failed = |error| DriverError::io(doing(), error);
        let refuse = |why: String| Err(DriverError::new(Kind::Unsupported, format!("{}: {why}", doing())));
        let mut file = File::open(path).map_err(failed)?;
        let meta = file.metadata().map_err(failed)?;
        if !meta.is_file() {
            return refuse("it is no file".to_owned());
        }
        let me = rustix::process::geteuid().as_raw();
        if meta.mode() & 0o077 != 0 || ![0, me].contains(&meta.uid()) {
            return refuse(format!(
                "others than root can read or change it; chown root:root {0}, chmod 600 {0}",
                path.display()
            ));
        }
        if meta.len() > MAX_BYTES {
            return refuse(format!("it has {} bytes, and CSI allows {MAX_BYTES}", meta.len()));
        }
        let mut text = String::new();
        file.by_ref().take(MAX_BYTES).read_to_string(&mut text).map_err(failed)?;
        // The cause would show the line, and with it the secret.
        toml::from_str(&text).map(Self).or_else(|_| refuse("it is not lines of name = \"value\"".to_owned()))
    }

    /// As a request takes them.
    pub(super) fn for_request(&self) -> BTreeMap<String, String> {
        self.0.clone()
    }

    /// A plugin's text without the secrets that it may have repeated.
    pub(super) fn hide(&self, text: &str) -> String {
        // The longest first: one may be a part of another.
        let mut values: Vec<&str> =
            self.0.values().map(String::as_str).filter(|value| value.len() >= LOOKED_FOR).collect();
        values.sort_by_key(|value| std::cmp::Reverse(value.len()));
        values.iter().fold(text.to_owned(), |text, value| text.replace(value, HIDDEN))
    }
}

impl fmt::Debug for Secrets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Secrets({HIDDEN})")
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn file(text: &str, mode: u32) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), text).unwrap();
        fs::set_permissions(file.path(), fs::Permissions::from_mode(mode)).unwrap();
        file
    }

    #[test]
    fn secrets_are_read_and_never_shown() {
        let file = file("user = \"admin\"\npassword = \"geheim123\"\n", 0o600);
        let secrets = Secrets::read(Some(file.path())).unwrap();
        assert_eq!(secrets.for_request()["password"], "geheim123");
        assert_eq!(secrets.hide("login admin/geheim123 refused"), "login ***/*** refused");
        assert!(!format!("{secrets:?}").contains("geheim123"));
    }

    #[test]
    fn a_file_that_others_can_read_is_refused_with_what_to_do() {
        let error = Secrets::read(Some(file("a = \"geheim\"", 0o640).path())).unwrap_err();
        assert!(error.to_string().contains("chmod 600"), "{error}");
    }

    #[test]
    fn a_file_with_a_mistake_is_refused_without_showing_it() {
        let error = Secrets::read(Some(file("password = geheim123", 0o600).path())).unwrap_err();
        assert_eq!(error.kind, Kind::Unsupported);
        assert!(error.source.is_none() && !error.to_string().contains("geheim123"), "{error:?}");
        assert!(Secrets::read(Some(file(&"a".repeat(5000), 0o600).path())).is_err());
        assert_eq!(Secrets::read(None).unwrap(), Secrets::default());
    }
}
