//! What the types can't say: references, uniqueness, reserved CIDs. Pure; finds all mistakes.

use std::collections::HashMap;
use std::hash::Hash;
use std::path::Path;

use super::{Config, DriverKind, PeerId, Vm};

/// One mistake and where in the text it stands.
pub(super) struct Mistake {
    pub(super) at: usize,
    pub(super) what: String,
}

/// `file:line:column: what`, as editors and compilers understand it.
pub(super) fn at(path: &Path, text: &str, offset: usize, what: &str) -> String {
    let before = &text[..offset.min(text.len())];
    let line = before.matches('\n').count() + 1;
    let column = before.chars().rev().take_while(|c| *c != '\n').count() + 1;
    format!("{}:{line}:{column}: {what}", path.display())
}

/// All mistakes of a configuration whose keys and types are right.
pub(super) fn mistakes(config: &Config) -> Vec<Mistake> {
    let mut found = Vec::new();
    let mut say = |at: usize, what: String| found.push(Mistake { at, what });

    twice(config.stores.iter().map(|store| (store.name.get_ref(), store.name.span().start)))
        .for_each(|(name, at)| say(at, format!("a second store is named {name:?}")));
    for store in &config.stores {
        if !store.path.get_ref().is_absolute() {
            say(store.path.span().start, "the store's path must be absolute".to_owned());
        }
    }

    let vms = || config.vms.iter().map(|vm| (vm, vm.span.start));
    twice(vms().map(|(vm, at)| (&vm.name, at)))
        .for_each(|(name, at)| say(at, format!("a second virtual machine is named {name}")));
    twice(vms().map(|(vm, at)| (vm.uuid, at)))
        .for_each(|(uuid, at)| say(at, format!("a second virtual machine has the UUID {uuid}")));
    twice(vms().map(|(vm, at)| (&vm.peer, at)))
        .for_each(|(peer, at)| say(at, format!("a second virtual machine comes in by {peer}")));
    twice(
        config
            .vms
            .iter()
            .flat_map(|vm| vm.disks.iter().map(|disk| (disk.path.get_ref(), disk.path.span().start))),
    )
    .for_each(|(path, at)| say(at, format!("a second disk is {}", path.display())));

    for (vm, at) in vms() {
        check_vm(config, vm, at, &mut say);
    }
    found
}

fn check_vm(config: &Config, vm: &Vm, at: usize, say: &mut impl FnMut(usize, String)) {
    if vm.uuid.as_uuid().is_nil() {
        say(at, format!("the UUID of {} is nil; give it its own (uuidgen)", vm.name));
    }
    match &vm.peer {
        PeerId::Cid(1) if config.service.allow_local_cid => {}
        PeerId::Cid(cid @ (0..=2 | u32::MAX)) => {
            say(at, format!("{} has the CID {cid}, which is reserved; guests have 3 and above", vm.name));
        }
        PeerId::Socket(path) if !path.is_absolute() => {
            say(at, format!("the socket of {} must be an absolute path", vm.name));
        }
        PeerId::Cid(_) | PeerId::Socket(_) => {}
    }
    if vm.disks.len() > 64 {
        say(at, format!("{} has {} disks; at most 64 are supported", vm.name, vm.disks.len()));
    }
    twice(vm.disks.iter().map(|disk| (disk.serial.virtio(), disk.path.span().start))).for_each(
        |(serial, at)| {
            say(at, format!(
                "two disks of {} have the serial {serial} in the 20 bytes that virtio carries; the guest could not tell them apart",
                vm.name
            ));
        },
    );
    for disk in &vm.disks {
        if !disk.path.get_ref().is_absolute() {
            say(disk.path.span().start, format!("the path of the disk {} must be absolute", disk.serial));
        }
        let store = config.stores.iter().find(|store| store.name.get_ref() == disk.store.get_ref());
        match store {
            None => {
                let names: Vec<_> = config.stores.iter().map(|store| store.name.get_ref().as_str()).collect();
                say(
                    disk.store.span().start,
                    format!("there is no store {:?}; there are: {}", disk.store.get_ref(), names.join(", ")),
                );
            }
            Some(store) if store.driver == DriverKind::Qemu && vm.qmp.is_none() => say(
                disk.store.span().start,
                format!("the driver qemu needs the QMP socket of {}: add qmp = \"/path\"", vm.name),
            ),
            Some(_) => {}
        }
    }
}

/// Those that came before, each with where it came again.
fn twice<T: Eq + Hash + Clone>(all: impl Iterator<Item = (T, usize)>) -> impl Iterator<Item = (T, usize)> {
    let mut seen: HashMap<T, usize> = HashMap::new();
    all.filter(move |(one, at)| seen.insert(one.clone(), *at).is_some())
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::super::Config;

    const GOOD: &str = r#"
[[store]]
name = "images"
driver = "reflink"
path = "/srv/images"
min_free = "1GiB"

[[vm]]
name = "db1"
uuid = "3f1f54c2-66a2-4f4f-8d51-0b8a3b1d7f01"
cid = 42
[[vm.disk]]
serial = "data"
store = "images"
path = "/srv/images/data.img"
format = "raw"
"#;

    fn errors(text: &str) -> String {
        Config::parse(text, Path::new("hostsnapd.toml")).unwrap_err().to_string()
    }

    #[test]
    fn a_good_configuration_has_sane_defaults() {
        let config = Config::parse(GOOD, Path::new("x")).unwrap();
        assert_eq!(config.stores[0].min_free, 1 << 30);
        assert!(config.service.require_privileged_port && !config.service.allow_local_cid);
        assert_eq!(config.vms[0].quota.snapshots, 100);
    }

    #[test]
    fn mistakes_name_file_line_and_what_is_allowed() {
        for (from, to, line, words) in [
            ("min_free", "min_fre", 6, "expected one of `name`, `driver`, `path`, `min_free`"),
            ("\"reflink\"", "\"zfs2\"", 4, "expected one of `qemu`, `reflink`, `btrfs`"),
            ("cid = 42", "cid = 2", 9, "reserved"),
            ("cid = 42", "", 8, "exactly one of `cid`"),
            ("store = \"images\"", "store = \"image\"", 14, "there are: images"),
            ("1GiB", "1GB", 6, "10GiB"),
            ("\"/srv/images/data.img\"", "\"data.img\"", 15, "absolute"),
            ("3f1f54c2-66a2-4f4f-8d51-0b8a3b1d7f01", "00000000-0000-0000-0000-000000000000", 9, "nil"),
        ] {
            let told = errors(&GOOD.replacen(from, to, 1));
            assert!(told.contains(words), "{from} → {to}: {told}");
            assert!(told.contains(&format!("hostsnapd.toml:{line}:")), "{from} → {to}: {told}");
        }
    }

    #[test]
    fn all_mistakes_are_told_at_once() {
        let text = GOOD.replace("cid = 42", "cid = 1").replace("store = \"images\"", "store = \"x\"");
        let told = errors(&text);
        assert!(told.contains("reserved") && told.contains("no store"), "{told}");
    }

    #[test]
    fn two_disks_that_virtio_cannot_tell_apart_are_refused() {
        let second = GOOD.split("[[vm.disk]]").nth(1).unwrap();
        let text = format!(
            "{}[[vm.disk]]{}",
            GOOD.replace("\"data\"", "\"pvc-7286dfe6-7c44-40-A\""),
            second.replace("\"data\"", "\"pvc-7286dfe6-7c44-40-B\"").replace("data.img", "b.img"),
        );
        assert!(errors(&text).contains("could not tell them apart"), "{}", errors(&text));
    }
}
