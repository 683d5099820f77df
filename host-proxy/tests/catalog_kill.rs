//! SIGKILL at any moment: what `begin` returned for is there, and what is there is whole.
//!
//! Its own `main`, because the test runs itself again as the child that is killed.

use std::collections::BTreeSet;
use std::env;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};

use host_proxy::catalog::{Begun, Catalog, Phase};
use protocol::evidence::CutEvidence;
use protocol::record::{State, Timing, UnixMillis};
use protocol::text::{Labels, Line};
use protocol::{Consistency, RequestId, SnapshotId, SnapshotRecord, VmUuid};

const CHILD: &str = "HOSTSNAP_TEST_CATALOG";
/// After how many begins each child is killed; what it does then is anywhere in its loop.
const ROUNDS: [usize; 8] = [1, 2, 3, 5, 8, 13, 40, 120];

fn main() {
    if let Some(path) = env::var_os(CHILD) {
        return begin_until_killed(Path::new(&path));
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("catalog.sqlite");
    let mut promised = BTreeSet::new();
    for begins in ROUNDS {
        promised.extend(run_and_kill(&path, begins));
        let catalog = Catalog::open(&path).unwrap();
        assert_eq!(catalog.integrity().unwrap(), Vec::<String>::new());
        for id in &promised {
            let entry = catalog.get(*id).unwrap().unwrap_or_else(|| panic!("{id} was promised and is lost"));
            assert!(matches!(entry.phase, Phase::Intent | Phase::Ready), "{entry:?}");
            assert_eq!(entry.digest, [7; 16]);
        }
        let more = catalog.all().unwrap().len() - promised.len();
        // Committed, but killed before it could say so: one a round at most.
        assert!(more <= ROUNDS.len(), "{more} entries that nobody was promised");
    }
    println!("catalog_kill: {} promises kept over {} kills", promised.len(), ROUNDS.len());
}

/// The identifiers that the child said were committed.
fn run_and_kill(path: &Path, begins: usize) -> Vec<SnapshotId> {
    let mut child =
        Command::new(env::current_exe().unwrap()).env(CHILD, path).stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut told: Vec<String> = lines.by_ref().take(begins).map(Result::unwrap).collect();
    child.kill().unwrap();
    // What it said before the kill is in the pipe still; the last line may be torn.
    told.extend(lines.map(Result::unwrap));
    child.wait().unwrap();
    assert!(told.len() >= begins, "the child ended by itself");
    told.iter().filter_map(|line| line.parse().ok()).collect()
}

fn begin_until_killed(path: &Path) {
    let catalog = Catalog::open(path).unwrap();
    let mut out = std::io::stdout().lock();
    loop {
        let record = record();
        assert_eq!(catalog.begin(&record, &[7; 16]).unwrap(), Begun::New);
        writeln!(out, "{}", record.id).unwrap();
        catalog.record(&record, Phase::Ready).unwrap();
    }
}

fn record() -> SnapshotRecord {
    let vm = VmUuid::from_uuid(*RequestId::random().as_uuid());
    let request = RequestId::random();
    SnapshotRecord {
        id: SnapshotId::derive(vm, request),
        vm_uuid: vm,
        vm: "db1".parse().unwrap(),
        request,
        created_at: UnixMillis(1),
        consistency: Consistency::Crash,
        consistency_reason: Line::lossy(""),
        minimum: Consistency::Crash,
        state: State::Settling,
        labels: Labels::default(),
        note: "".parse().unwrap(),
        mounts: Vec::new().try_into().unwrap(),
        disks: Vec::new().try_into().unwrap(),
        timing: Timing::default(),
        expires_at: None,
        locked_until: None,
        evidence: None,
        cut: CutEvidence::Unknown,
    }
}
