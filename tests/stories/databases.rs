//! Real databases, and the hooks that Hostsnap ships for them.

use std::collections::BTreeMap;

use harness::vm::Plan;
use harness::wait::wait_until;

use super::servers::{Servers, install_hook, install_hooks};
use super::stage::{LIMIT, Stage};

const DATA_MIB: u64 = 512;
const HOOKS: [(&str, &str); 3] =
    [("50-postgresql", "postgresql"), ("80-redis", "redis"), ("90-mariadb", "mariadb")];

const SERVERS: [&str; 4] = ["postgresql", "mariadb", "redis-dumping", "redis-appending"];

/// What is in a server after all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Held {
    /// How many transactions.
    transactions: u64,
    /// The number of the last one; in MariaDB of a table without transactions.
    last: u64,
}

impl Servers<'_> {
    /// Starts them on the data that are on this device.
    fn start_on(&self, device: &str) {
        self.install();
        self.0.guest.sh(&format!("mkdir /data && mount {device} /data"));
        self.start();
    }

    /// Starts the loads, which never end by themselves.
    fn load(&self) {
        self.0.guest.sh("mkdir /run/acks");
        for server in SERVERS {
            self.script(&format!("prepare {server}"));
            self.0.guest.spawn(&format!("exec sh /run/servers.sh load {server} > /run/acks/{server} 2>&1"));
        }
        wait_until("all loads run", LIMIT, || {
            self.acknowledged("/run/acks").values().all(|count| *count > 5)
        });
    }

    /// How many transactions each server has acknowledged, by what is noted in this folder.
    fn acknowledged(&self, folder: &str) -> BTreeMap<String, u64> {
        let last = |server: &str| {
            let line = self.0.guest.sh(&format!("grep -a '^ack ' {folder}/{server} | tail -n 1"));
            line.trim().strip_prefix("ack ").and_then(|number| number.parse().ok()).unwrap_or(0)
        };
        SERVERS.iter().map(|server| ((*server).to_owned(), last(server))).collect()
    }

    /// What is in a server, of which nothing is torn.
    fn held(&self, server: &str) -> Held {
        let text = self.script(&format!("held {server}"));
        let numbers: Vec<i64> = text.split_whitespace().filter_map(|number| number.parse().ok()).collect();
        let [transactions, last, sum] = numbers[..] else { panic!("{server}: {text}") };
        assert_eq!(sum, 0, "{server}: a torn transaction");
        Held { transactions: transactions.unsigned_abs(), last: last.unsigned_abs() }
    }

    /// What a server's own program finds wrong in it.
    fn damage(&self, server: &str) -> String {
        let output = self.0.guest.run(&format!("sh /run/servers.sh check {server} 2>&1"));
        output.stdout
    }
}

#[test]
fn real_databases_under_load_lose_nothing_that_they_acknowledged_before_the_cut() {
    let stage = Stage::sized(Plan::debian("databases"), "reflink", &["data"], "", DATA_MIB);
    let servers = Servers(&stage.vm);
    servers.start_new("/dev/vda");
    install_hooks(&stage.vm, &HOOKS);
    // The last before the freeze and the first after the thaw: what was acknowledged by then.
    install_hook(&stage.vm, "99-note", "rm -rf /run/at-$1; cp -r /run/acks /run/at-$1");
    servers.load();

    let snapshot = stage.create("/data --consistency application");
    assert_eq!(snapshot["consistency"], "application", "{snapshot}");
    let (before, after) =
        (servers.acknowledged("/run/at-pre-freeze"), servers.acknowledged("/run/at-post-thaw"));
    wait_until("all write again", LIMIT, || {
        servers.acknowledged("/run/acks").iter().all(|(server, count)| *count > after[server])
    });
    let last = servers.acknowledged("/run/acks");

    // Another machine, that has nothing of it but the snapshot.
    let copy = stage.store.path().join("copy.img");
    std::fs::copy(stage.image(&snapshot, "data"), &copy).expect("a clone");
    stage.vm.guest.spawn("poweroff -f");
    let vm = Plan::debian("databases-again").disk(&copy, "data").boot();
    let again = Servers(&vm);
    again.start_on("/dev/vda");
    for server in SERVERS {
        let held = again.held(server);
        let told = format!("{server} has {held:?}, of {} to {}", before[server], after[server]);
        match server {
            // It was not held up: it acknowledged more before the freeze, and after the thaw.
            "postgresql" => {
                assert_eq!(held.transactions, held.last, "one is missing: {told}");
                assert!(held.last >= before[server] && held.last <= last[server] + 1, "{told}");
            }
            // Nothing was acknowledged in between, and nothing of that is missing. MariaDB's load may have
            // committed one more and wait for the table without transactions.
            _ => {
                assert_eq!((before[server], held.last), (after[server], after[server]), "{told}");
                let ahead = held.transactions - held.last;
                assert!(ahead <= u64::from(server == "mariadb"), "{told}");
            }
        }
        let damage = again.damage(server);
        assert_eq!(damage.trim(), "", "{server} is damaged");
    }
}
