//! libvirt, asked by its own program `virsh`: one process for each question, which is ended at its limit. So a
//! libvirtd that hangs holds nobody up, and hosts without libvirt need nothing of it. Why not its library:
//! docs/decisions/0019-libvirt.md.
//!
//! | module | idea |
//! |---|---|
//! | this one | asking, and what kind of no came back |
//! | [`xml`] | what a domain's XML says, pure |
//! | `said` | what a domain's state says, pure |
//! | [`plug`] | a disk plugged into a domain, and taken out |
//! | `behind` | what is behind such a disk, by names that mean the same on no other host |

mod behind;
pub mod plug;
mod said;
pub mod xml;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::io::Write;
use std::path::PathBuf;
use std::time::Duration;

use protocol::VmUuid;

use super::pause::RunState;
use crate::exec::{ExecError, Tool};
use said::Said;

/// How long libvirt may take for what is not slow.
const LIMIT: Duration = Duration::from_secs(10);
/// How many commands one process is given: the kernel takes 128 KiB as one argument.
const AT_ONCE: usize = 200;
/// What one domain's XML may have, in bytes; those of hundreds of devices have tens of thousands.
const XML_LIMIT: usize = 4 << 20;

/// A domain of a libvirt.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Domain {
    /// Which libvirt, as for `virsh -c`.
    pub uri: String,
    /// Which of its domains.
    pub uuid: VmUuid,
}

/// Why libvirt did not do it.
#[derive(Debug, thiserror::Error)]
pub enum LibvirtError {
    /// It did not answer in time.
    #[error("libvirt at {uri} does not answer")]
    TimedOut {
        /// Which.
        uri: String,
        /// How long it had.
        #[source]
        source: ExecError,
    },
    /// It, or virsh, is not there.
    #[error("reach libvirt at {uri}; virsh is in the package libvirt-clients")]
    Unreachable {
        /// Which.
        uri: String,
        /// Why.
        #[source]
        source: ExecError,
    },
    /// It has no such domain, or that does not run.
    #[error("the domain {0} does not run")]
    Gone(Domain),
    /// It said no.
    #[error("ask libvirt at {uri} to {command}")]
    Refused {
        /// Which.
        uri: String,
        /// What.
        command: String,
        /// Its words.
        #[source]
        source: ExecError,
    },
    /// What it said is not what it says.
    #[error("what libvirt says of {what} is not understood: {why}")]
    Malformed {
        /// Of what.
        what: String,
        /// Why.
        why: String,
    },
    /// A file for it could not be made.
    #[error("make a file for virsh")]
    File(#[source] std::io::Error),
}

impl LibvirtError {
    /// Whether the domain is gone.
    pub fn is_gone(&self) -> bool {
        matches!(self, Self::Gone(_))
    }
}

impl fmt::Display for Domain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} at {}", self.uuid, self.uri)
    }
}

/// Every domain, those that do not run too: its UUID.
pub fn domains(uri: &str) -> Result<Vec<VmUuid>, LibvirtError> {
    let listed = virsh(uri, &["list", "--all", "--uuid"], LIMIT)?;
    let lines = listed.lines().map(str::trim).filter(|line| !line.is_empty());
    lines
        .map(|line| {
            line.parse().map_err(|_| LibvirtError::Malformed {
                what: "its domains".to_owned(),
                why: format!("{line:?} is no UUID"),
            })
        })
        .collect()
}

/// Several domains' XML, by one process. One that is gone meanwhile is left out.
pub fn dump(uri: &str, domains: &[VmUuid]) -> Result<Vec<String>, LibvirtError> {
    let said = each(uri, domains.iter().map(|uuid| format!("dumpxml {uuid}")))?;
    Ok(said.into_iter().filter(|text| text.starts_with("<domain")).collect())
}

/// The paths of volumes in storage pools, by pool and volume. One that is not there is left out.
pub fn volume_paths(
    uri: &str,
    volumes: BTreeSet<(String, String)>,
) -> Result<BTreeMap<(String, String), PathBuf>, LibvirtError> {
    let volumes: Vec<_> = volumes
        .into_iter()
        // What can be between single quotes, as virsh reads its commands.
        .filter(|(pool, volume)| ![pool, volume].iter().any(|name| name.contains(['\'', '\n'])))
        .collect();
    let commands = volumes.iter().map(|(pool, volume)| format!("vol-path --pool '{pool}' -- '{volume}'"));
    let said = each(uri, commands)?;
    let paths = said.into_iter().map(PathBuf::from);
    Ok(volumes.into_iter().zip(paths).filter(|(_, path)| path.is_absolute()).collect())
}

/// Runs several commands by few processes; what each said, nothing where it failed.
fn each(uri: &str, commands: impl Iterator<Item = String>) -> Result<Vec<String>, LibvirtError> {
    // What a domain says of itself can't end it: nobody knows the word before it is said.
    let end = format!("hostsnap-{}", uuid::Uuid::new_v4());
    let commands: Vec<_> = commands.map(|command| format!("{command}; echo {end}")).collect();
    let mut all = Vec::with_capacity(commands.len());
    for some in commands.chunks(AT_ONCE) {
        let said = virsh(uri, &[&some.join("; ")], LIMIT)?;
        all.extend(said.split(end.as_str()).take(some.len()).map(|text| text.trim().to_owned()));
    }
    Ok(all)
}

/// A domain as it is now.
pub fn description(domain: &Domain) -> Result<xml::Described, LibvirtError> {
    let text = of_domain(domain, &["dumpxml"], &[], LIMIT)?;
    xml::read(&text)
}

/// Whether it runs.
pub fn state(domain: &Domain) -> Result<RunState, LibvirtError> {
    said_of(domain).map(|said| said.state())
}

/// Lets it go on if it is paused; what it was. While it is being moved libvirt refuses until that ends.
pub fn go_on(domain: &Domain) -> Result<RunState, LibvirtError> {
    let said = said_of(domain)?;
    if said.is_paused() {
        of_domain(domain, &["resume"], &[], LIMIT)?;
    }
    Ok(said.state())
}

/// Whether its memory is kept in a file, with which it goes on at its next start.
pub fn is_saved(domain: &Domain) -> Result<bool, LibvirtError> {
    let said = of_domain(domain, &["dominfo"], &[], LIMIT)?;
    let saved = said.lines().find_map(|line| line.strip_prefix("Managed save:"));
    Ok(saved.is_some_and(|saved| saved.trim() == "yes"))
}

/// By one process: how it is, why, and what libvirt is doing to it.
fn said_of(domain: &Domain) -> Result<Said, LibvirtError> {
    let uuid = domain.uuid;
    let both = format!("domstate {uuid} --reason; domjobinfo {uuid}");
    match told(domain, virsh(&domain.uri, &[&both], LIMIT)) {
        Ok(said) => Ok(Said(said)),
        // The host that it comes from tells of its way (`src/qemu/qemu_driver.c`, `qemuDomainGetJobStats`).
        Err(LibvirtError::Refused { source: ExecError::Failed { stderr, .. }, .. })
            if stderr.contains("only on the source host") =>
        {
            Ok(Said("paused (migrating)".to_owned()))
        }
        Err(error) => Err(error),
    }
}

/// Pauses it.
pub fn suspend(domain: &Domain, limit: Duration) -> Result<(), LibvirtError> {
    of_domain(domain, &["suspend"], &[], limit).map(|_| ())
}

/// Asks about one domain: `command… UUID arguments…`.
fn of_domain(
    domain: &Domain,
    command: &[&str],
    arguments: &[&str],
    limit: Duration,
) -> Result<String, LibvirtError> {
    let uuid = domain.uuid.to_string();
    told(domain, virsh(&domain.uri, &[command, &[uuid.as_str()], arguments].concat(), limit))
}

/// What was said of a domain, which may be gone.
fn told(domain: &Domain, said: Result<String, LibvirtError>) -> Result<String, LibvirtError> {
    said.map_err(|error| match error {
        LibvirtError::Refused { source, .. } if is_of_no_domain(&source) => {
            LibvirtError::Gone(domain.clone())
        }
        error => error,
    })
}

/// As `of_domain`, with an XML that `virsh` reads from a file.
fn with_file(domain: &Domain, command: &str, xml: &str, limit: Duration) -> Result<(), LibvirtError> {
    let mut file = tempfile::NamedTempFile::new().map_err(LibvirtError::File)?;
    file.write_all(xml.as_bytes()).map_err(LibvirtError::File)?;
    let path = file.path().to_string_lossy().into_owned();
    of_domain(domain, &[command], &[&path, "--live"], limit).map(|_| ())
}

fn virsh(uri: &str, arguments: &[&str], limit: Duration) -> Result<String, LibvirtError> {
    let uri_of = || uri.to_owned();
    let tool = Tool::find("virsh").map_err(|source| LibvirtError::Unreachable { uri: uri_of(), source })?;
    let mut command = tool.command();
    command.args(["--quiet", "--connect", uri]).args(arguments);
    tool.run(&mut command, limit).map_err(|source| match &source {
        ExecError::TimedOut { .. } => LibvirtError::TimedOut { uri: uri_of(), source },
        ExecError::Failed { stderr, .. } if !stderr.contains("failed to connect") => LibvirtError::Refused {
            uri: uri_of(),
            command: arguments.first().copied().unwrap_or_default().to_owned(),
            source,
        },
        _ => LibvirtError::Unreachable { uri: uri_of(), source },
    })
}

/// Whether the domain is not there, or is there and does not run: libvirt's words (`src/util/virerror.c`,
/// `src/conf/domain_conf.c`), in the language that `exec` asks for.
fn is_of_no_domain(error: &ExecError) -> bool {
    let ExecError::Failed { stderr, .. } = error else { return false };
    ["Domain not found", "domain is not running", "failed to get domain"]
        .iter()
        .any(|words| stderr.contains(words))
}
