//! The main job, shown: a virtual machine snapshots its own disk while an application writes to it, and nothing that was
//! acknowledged is missing; it mounts the snapshot, and goes back to it. Each step prints what a user would see.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use harness::hostsnapd::{self, Hostsnapd, Machine};
use harness::loopfs::{Kind, LoopFs};
use harness::records;
use harness::vm::{Plan, Vm, blank_image};
use harness::wait::wait_until;
use serde_json::Value;

/// Where the virtual disk and its snapshots are.
enum Store {
    /// Any folder will do.
    Folder(tempfile::TempDir),
    /// A file system that the driver needs.
    FileSystem(LoopFs),
}

impl Store {
    fn for_driver(driver: &str) -> Result<Self> {
        Ok(match driver {
            "qemu" => Self::Folder(tempfile::Builder::new().prefix("hostsnap-demo-").tempdir()?),
            "reflink" => Self::FileSystem(LoopFs::new(Kind::Xfs, 1024)),
            "btrfs" => Self::FileSystem(LoopFs::new(Kind::Btrfs, 1024)),
            other => bail!("there is no driver {other}: qemu, reflink or btrfs"),
        })
    }

    fn path(&self) -> PathBuf {
        match self {
            Self::Folder(folder) => folder.path().to_owned(),
            Self::FileSystem(fs) => fs.path(),
        }
    }
}

fn main() -> Result<()> {
    let driver = std::env::args().nth(1).unwrap_or_else(|| "qemu".to_owned());
    let store = Store::for_driver(&driver)?;
    let image = blank_image(&store.path(), "data.img", 256);

    say("a virtual machine boots: QEMU with a real virtio-vsock device and a data disk");
    let vm = Plan::new("demo").disk(&image, "data").slots(1).boot();
    println!("{}", vm.guest.sh("uname -sr").trim());

    say(&format!("on the host, hostsnapd starts, with the driver {driver}"));
    let machine = Machine { vm: &vm, name: "demo", disks: vec![("data", &image)], more: "" };
    let service = Hostsnapd::start(&hostsnapd::config(&driver, &store.path(), &[machine]));
    print!("{}", printed(&service, &["vms"])?);

    say("in the machine, an application writes checksummed records, each one synced");
    show(&vm, "mkfs.ext4 -q /dev/vda && mkdir -p /data && mount /dev/vda /data");
    vm.guest.spawn("exec app-writer run /data/records /run/status");
    wait_until("the application writes", Duration::from_secs(60), || status(&vm).0 > 100);
    let (before, longest_before) = status(&vm);
    println!("{before} records acknowledged so far; longest write stall: {:.1} ms", ms(longest_before));

    say("the machine asks its own host for a snapshot");
    show(&vm, "hostsnap create /data --label why=demo --note 'before the upgrade'");
    let (after, longest) = status(&vm);
    println!("{after} records acknowledged now; longest write stall: {:.1} ms", ms(longest));

    say("it mounts the snapshot beside the disk, which goes on being written to");
    show(&vm, "mkdir -p /mnt && hostsnap mount latest /mnt --path /data");
    show(&vm, "hostsnap list && ls -l /mnt/records /data/records");
    show(&vm, "hostsnap umount /mnt");
    let snapshot = vm.guest.json("hostsnap --json show latest");

    say("on the host, the snapshot is opened: are all records there that were acknowledged before it?");
    let exposed = exposed_image(&store.path(), &vm, &snapshot, &driver)?;
    let held = verify(&exposed)?;
    println!(
        "the file system needs no recovery; {held} whole records, {before} were acknowledged before the snapshot"
    );
    ensure!(held >= before, "an acknowledged record is missing from the snapshot");
    ensure!(held <= after + 1, "the snapshot holds records that were written after it");

    say("something goes wrong with the upgrade, and the machine goes back to the snapshot");
    show(&vm, "kill $(pidof app-writer) && rm /data/records");
    show(&vm, &format!("hostsnap restore {} /data --remount", text(&snapshot["id"])));
    let back = show(&vm, "app-writer verify /data/records");
    ensure!(back.trim().parse() == Ok(held), "the disk holds {back} records, the snapshot {held}");

    say("done: nothing that was acknowledged is missing");
    println!("snapshot     {}", text(&snapshot["id"]));
    println!("disks        {}", text(&snapshot["disks"][0]["disk"]));
    println!("consistency  {}", text(&snapshot["consistency"]));
    println!("write stall  {:.1} ms at the longest", ms(longest));
    Ok(())
}

fn say(what: &str) {
    println!("\n# {what}");
}

fn show(vm: &Vm, script: &str) -> String {
    println!("guest$ {script}");
    let said = vm.guest.sh(script);
    print!("{said}");
    said
}

fn printed(service: &Hostsnapd, arguments: &[&str]) -> Result<String> {
    println!("host$ hostsnapd {}", arguments.join(" "));
    let output = service.admin(arguments);
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Acknowledged records, and the longest time between two, in microseconds.
fn status(vm: &Vm) -> (u64, u64) {
    let text = vm.guest.run("cat /run/status").stdout;
    let mut numbers = text.split_whitespace().filter_map(|word| word.parse().ok());
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
}

#[allow(clippy::cast_precision_loss)] // shown with one decimal
fn ms(us: u64) -> f64 {
    us as f64 / 1000.0
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or("?")
}

fn exposed_image(store: &Path, vm: &Vm, snapshot: &Value, driver: &str) -> Result<PathBuf> {
    let file = if driver == "btrfs" { "disk-data" } else { "data.img" };
    let path = store.join(".hostsnap").join(vm.uuid()).join(text(&snapshot["id"])).join(file);
    path.canonicalize().with_context(|| format!("find the snapshot's image {}", path.display()))
}

/// Counts the records in the snapshot's file system, which must be clean: without root its metadata
/// is checked and the file is copied out of it, without mounting.
fn verify(image: &Path) -> Result<u64> {
    let header = run(Command::new("dumpe2fs").arg("-h").arg(image))?;
    ensure!(!header.contains("needs_recovery"), "the file system's journal needs recovery");
    run(Command::new("e2fsck").arg("-fn").arg(image))?;
    let folder = tempfile::tempdir()?;
    let copy = folder.path().join("records");
    run(Command::new("debugfs").arg("-R").arg(format!("dump /records {}", copy.display())).arg(image))?;
    Ok(records::verify(&copy)?)
}

fn run(command: &mut Command) -> Result<String> {
    let output = command.output().with_context(|| format!("run {command:?}"))?;
    ensure!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
