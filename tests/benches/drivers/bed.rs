//! A storage with a volume that hostsnapd snapshots, and its twin for the bare operation. The stores lie in memory, so that a disk
//! adds no noise.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use harness::ceph::{Ceph, POOL, USER};
use harness::loopfs::{self, Kind, LoopFs};
use harness::process::{Process, paused_qemu};
use harness::wait::wait_until;
use host_proxy::drivers::csi;
use host_proxy::vmm::qmp::Qmp;
use serde_json::json;

use crate::Driver;
use crate::pools::{Group, Tank};
use crate::server::volumes::Publishing;
use crate::server::{Offers, Server};

/// Of each volume that is cut. QEMU copies it a thousand times.
pub(crate) const DISK_BYTES: u64 = 1 << 20;
const BLOCK: u64 = 4096;
const LIMIT: Duration = Duration::from_secs(60);

/// All of it; gone when dropped.
pub(crate) struct Bed {
    pub(crate) driver: Driver,
    pub(crate) place: Place,
}

/// Where the volumes are.
pub(crate) enum Place {
    /// Image files; with a QEMU that has them open, or without.
    Files { qemu: Option<Qemu>, fs: LoopFs },
    /// Images in a pool.
    Pool(Ceph),
    /// Volumes of a CSI plugin.
    Array(Array),
    /// Thin volumes in a group of LVM's.
    Group(Group),
    /// Volumes in a pool of ZFS'.
    Tank(Tank),
}

/// The tests' own CSI plugin.
pub(crate) struct Array {
    server: Server,
    fs: LoopFs,
}

/// A QEMU with both disks, stopped before its first instruction.
pub(crate) struct Qemu {
    process: Process,
    folder: tempfile::TempDir,
}

impl Bed {
    /// With volumes of this size, filled.
    pub(crate) fn make(driver: Driver, bytes: u64) -> Result<Self> {
        let place = match driver {
            Driver::Reflink => Place::Files { qemu: None, fs: files(Kind::Xfs, bytes)? },
            Driver::Btrfs => Place::Files { qemu: None, fs: files(Kind::Btrfs, bytes)? },
            Driver::Qemu => {
                let fs = files(Kind::Ext4, bytes)?;
                Place::Files { qemu: Some(Qemu::start(&fs.path())?), fs }
            }
            Driver::Rbd => {
                let ceph = Ceph::start();
                for twin in [false, true] {
                    ceph.rbd(&["create", name(twin), "--size", &format!("{bytes}B")]);
                }
                Place::Pool(ceph)
            }
            Driver::Csi => Place::Array(Array::start(bytes)?),
            Driver::LvmThin => Place::Group(Group::make(bytes)?),
            Driver::Zfs => Place::Tank(Tank::make(bytes)?),
        };
        Ok(Self { driver, place })
    }

    /// A guest's write of one block, synced.
    pub(crate) fn write(&self, twin: bool, run: usize) -> Result<()> {
        let at = (run as u64 * 7) % (DISK_BYTES / BLOCK) * BLOCK;
        let byte = u8::try_from(run % 255).context("a byte")? + 1;
        match &self.place {
            // A program for each write would take most of the time.
            Place::Pool(_) if !run.is_multiple_of(10) => Ok(()),
            _ => self.put(twin, byte, &[(at, BLOCK)]),
        }
    }

    /// Writes these pieces, each where it begins and how long it is, synced.
    pub(crate) fn put(&self, twin: bool, byte: u8, pieces: &[(u64, u64)]) -> Result<()> {
        let path = match &self.place {
            Place::Files { qemu: Some(qemu), .. } => {
                return pieces.iter().try_for_each(|(at, len)| qemu.write(twin, *at, *len, byte));
            }
            Place::Pool(ceph) => {
                let writes = pieces.iter().map(|(at, len)| format!("write -P {byte} {at} {len}"));
                in_pool(ceph, twin, writes);
                return Ok(());
            }
            Place::Files { qemu: None, .. } | Place::Array(_) | Place::Group(_) | Place::Tank(_) => {
                self.path(twin).context("it is on this host")?
            }
        };
        let file = File::options().write(true).open(path)?;
        for (at, len) in pieces {
            file.write_all_at(&vec![byte; usize::try_from(*len)?], *at)?;
        }
        Ok(file.sync_all()?)
    }

    /// Whether the block there is of this byte.
    pub(crate) fn holds(&self, twin: bool, byte: u8, at: u64) -> Result<bool> {
        if let Place::Pool(ceph) = &self.place {
            let said = in_pool(ceph, twin, std::iter::once(format!("read -P {byte} {at} {BLOCK}")));
            return Ok(!said.contains("verification failed"));
        }
        let mut block = [0; BLOCK as usize];
        File::open(self.path(twin).context("it is on this host")?)?.read_exact_at(&mut block, at)?;
        Ok(block == [byte; BLOCK as usize])
    }

    /// Where a volume is on this host.
    pub(crate) fn path(&self, twin: bool) -> Option<PathBuf> {
        match &self.place {
            Place::Files { fs, .. } => Some(image(&fs.path(), twin)),
            Place::Array(array) => Some(array.fs.path().join(name(twin))),
            Place::Group(group) => Some(group.device(twin)),
            Place::Tank(tank) => Some(tank.device(twin)),
            Place::Pool(_) => None,
        }
    }

    /// What hostsnapd has to know, as `[[store]]`, a line of `[[vm]]` and `[[vm.disk]]`.
    pub(crate) fn config(&self) -> [String; 3] {
        match &self.place {
            Place::Files { qemu, fs } => {
                let driver = self.driver.as_str();
                let store = format!(
                    "driver = \"{driver}\"\npath = \"{}\"\nmin_free = \"0\"\n",
                    store(&fs.path()).display()
                );
                let qmp = qemu.as_ref().map(|qemu| format!("qmp = \"{}\"\n", qemu.at("qmp").display()));
                [
                    store,
                    qmp.unwrap_or_default(),
                    format!("path = \"{}\"\n", image(&fs.path(), false).display()),
                ]
            }
            Place::Pool(ceph) => [
                format!(
                    "driver = \"rbd\"\npool = \"{POOL}\"\nconf = \"{}\"\nuser = \"{USER}\"\nmin_free = \"0\"\n",
                    ceph.conf().display()
                ),
                String::new(),
                format!("volume = \"{}\"\n", name(false)),
            ],
            Place::Array(array) => [
                format!(
                    "driver = \"csi\"\nendpoint = \"{}\"\npath = \"{}\"\nmin_free = \"0\"\n",
                    array.server.socket.display(),
                    array.fs.path().join("store").display()
                ),
                String::new(),
                format!(
                    "volume = \"{0}\"\npath = \"{1}\"\n",
                    name(false),
                    array.fs.path().join(name(false)).display()
                ),
            ],
            Place::Group(group) => [
                format!("driver = \"lvm-thin\"\npool = \"{}\"\nmin_free = \"0\"\n", group.pool()),
                String::new(),
                format!("path = \"{}\"\n", group.device(false).display()),
            ],
            Place::Tank(tank) => [
                format!("driver = \"zfs\"\ndataset = \"{}\"\nmin_free = \"0\"\n", tank.store()),
                String::new(),
                format!("path = \"{}\"\n", tank.device(false).display()),
            ],
        }
    }
}

/// Has qemu-io do this with an image; what it says.
fn in_pool(ceph: &Ceph, twin: bool, commands: impl Iterator<Item = String>) -> String {
    let image = format!("rbd:{POOL}/{}:conf={}:id={USER}", name(twin), ceph.conf().display());
    let commands = commands.chain(["flush".to_owned()]).flat_map(|one| ["-c".to_owned(), one]);
    loopfs::run(Command::new("qemu-io").args(["-f", "raw"]).args(commands).arg(image))
}

fn fill(path: &Path, bytes: u64) -> Result<()> {
    Ok(File::create(path)?.write_all_at(&vec![1; usize::try_from(bytes)?], 0)?)
}

/// A volume's name.
pub(crate) const fn name(twin: bool) -> &'static str {
    if twin { "twin" } else { "disk" }
}

/// The folder, on btrfs the subvolume, of the volume that hostsnapd snapshots.
fn store(fs: &Path) -> PathBuf {
    fs.join(name(false))
}

pub(crate) fn image(fs: &Path, twin: bool) -> PathBuf {
    fs.join(name(twin)).join("image")
}

fn files(kind: Kind, bytes: u64) -> Result<LoopFs> {
    let fs = LoopFs::in_memory(kind, 4096);
    for twin in [false, true] {
        let folder = fs.path().join(name(twin));
        match kind {
            Kind::Btrfs => {
                drop(loopfs::run(Command::new("btrfs").args(["-q", "subvolume", "create"]).arg(&folder)))
            }
            _ => fs::create_dir(&folder)?,
        }
        fill(&image(&fs.path(), twin), bytes)?;
    }
    fs::create_dir(fs.path().join("bare"))?;
    Ok(fs)
}

impl Array {
    fn start(bytes: u64) -> Result<Self> {
        let fs = LoopFs::in_memory(Kind::Xfs, 4096);
        let offers = Offers { changes: false, volumes: Some(Publishing::SIMPLY), ..Offers::EVERYTHING };
        let server = Server::start(&fs.path().join("csi.sock"), &fs.path(), offers);
        for twin in [false, true] {
            let path = fs.path().join(name(twin));
            fill(&path, bytes)?;
            server.state().volumes.insert(name(twin).to_owned(), path);
        }
        fs::create_dir(fs.path().join("store"))?;
        Ok(Self { server, fs })
    }

    pub(crate) fn place(&self) -> csi::Place {
        csi::Place {
            endpoint: self.server.socket.clone(),
            node_endpoint: None,
            folder: self.fs.path().join("store"),
            parameters: std::collections::BTreeMap::new(),
            volume_parameters: std::collections::BTreeMap::new(),
            secrets_file: None,
            timeout: LIMIT,
            group_snapshots: true,
        }
    }
}

impl Qemu {
    fn start(fs: &Path) -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("hsb-").tempdir_in("/tmp")?;
        let mut command = paused_qemu();
        for monitor in ["qmp", "hand"] {
            let socket = folder.path().join(monitor);
            command.arg("-qmp").arg(format!("unix:{},server=on,wait=off", socket.display()));
        }
        for twin in [false, true] {
            let (name, path) = (name(twin), image(fs, twin));
            let node =
                format!("driver=raw,node-name={name},file.driver=file,file.filename={}", path.display());
            command.arg("-blockdev").arg(node);
            command.arg("-device").arg(format!("virtio-blk-pci,drive={name},serial={name},id=dev-{name}"));
        }
        let process = Process::start(&mut command, &folder.path().join("log"));
        let mut qemu = Self { process, folder };
        wait_until("QEMU's monitors", LIMIT, || {
            qemu.process.must_live();
            ["qmp", "hand"]
                .iter()
                .all(|name| std::os::unix::net::UnixStream::connect(qemu.folder.path().join(name)).is_ok())
        });
        Ok(qemu)
    }

    fn at(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// The monitor that hostsnapd does not use.
    pub(crate) fn monitor(&self) -> Result<Qmp> {
        Qmp::connect(&self.at("hand"), LIMIT).context("reach QEMU")
    }

    fn write(&self, twin: bool, at: u64, len: u64, byte: u8) -> Result<()> {
        let line = format!(
            "qemu-io -d /machine/peripheral/dev-{}/virtio-backend \"write -P {byte} {at} {len}\"",
            name(twin)
        );
        let said =
            self.monitor()?.execute("human-monitor-command", json!({ "command-line": line }), LIMIT)?;
        ensure!(said == "", "QEMU complains: {said}");
        Ok(())
    }
}
