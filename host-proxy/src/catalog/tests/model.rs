//! The catalog against a model: whatever is done in whatever order, both say the same. Reopening it
//! at any point changes nothing.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

#[derive(Debug, Clone)]
enum Step {
    Begin(usize),
    Record(usize, Phase),
    DropIntent(usize),
    BeginDelete(usize),
    CancelDelete(usize),
    Remove(usize),
    Lock(usize, Option<u64>),
    Reopen,
}

fn step() -> impl Strategy<Value = Step> {
    let which = 0..6usize;
    let phase = prop::sample::select(vec![Phase::Settling, Phase::Ready, Phase::Failed]);
    prop_oneof![
        3 => which.clone().prop_map(Step::Begin),
        4 => (which.clone(), phase).prop_map(|(n, phase)| Step::Record(n, phase)),
        1 => which.clone().prop_map(Step::DropIntent),
        1 => which.clone().prop_map(Step::BeginDelete),
        1 => which.clone().prop_map(Step::CancelDelete),
        1 => which.clone().prop_map(Step::Remove),
        1 => (which, prop::option::of(0..9u64)).prop_map(|(n, until)| Step::Lock(n, until)),
        1 => Just(Step::Reopen),
    ]
}

#[derive(Debug, Clone, PartialEq)]
struct Known {
    phase: Phase,
    lock: Option<UnixMillis>,
}

#[derive(Default)]
struct Model {
    known: BTreeMap<usize, Known>,
    /// Where each stands in its machine's list, those that are gone included.
    places: BTreeMap<usize, u64>,
}

impl Model {
    /// What begins comes before all that its machine ever had.
    fn begin(&mut self, records: &[SnapshotRecord], n: usize) {
        let mine = |other: &usize| records[*other].vm_uuid == records[n].vm_uuid;
        let newest = self.places.iter().filter(|(other, _)| mine(other)).map(|(_, place)| place + 1).max();
        self.places.insert(n, newest.unwrap_or(0).max(records[n].created_at.0));
        self.known.insert(n, Known { phase: Phase::Intent, lock: None });
    }
}

/// Does one step on both; what the calls answer must be the same.
fn run(catalog: &Catalog, model: &mut Model, records: &[SnapshotRecord], step: &Step) {
    let visible = |known: Option<&Known>| known.is_some_and(|known| known.phase != Phase::Deleting);
    match *step {
        Step::Begin(n) => {
            let begun = catalog.begin(&records[n], &[u8::try_from(n).unwrap(); 16]).unwrap();
            assert_eq!(begun == Begun::New, !model.known.contains_key(&n));
            if begun == Begun::New {
                model.begin(records, n);
            }
        }
        Step::Record(n, phase) => {
            assert_eq!(catalog.record(&records[n], phase).is_ok(), visible(model.known.get(&n)));
            if let Some(known) = model.known.get_mut(&n).filter(|known| known.phase != Phase::Deleting) {
                known.phase = phase;
            }
        }
        Step::DropIntent(n) => {
            let is_intent = model.known.get(&n).is_some_and(|known| known.phase == Phase::Intent);
            assert_eq!(catalog.drop_intent(records[n].id).unwrap(), is_intent);
            if is_intent {
                model.known.remove(&n);
            }
        }
        Step::BeginDelete(n) => {
            let was = model.known.get(&n).map(|known| known.phase);
            assert_eq!(catalog.begin_delete(records[n].id).unwrap(), was);
            if let Some(known) = model.known.get_mut(&n) {
                known.phase = Phase::Deleting;
            }
        }
        Step::CancelDelete(n) => {
            let deleting = model.known.get_mut(&n).filter(|known| known.phase == Phase::Deleting);
            assert_eq!(catalog.cancel_delete(records[n].id, Phase::Ready).unwrap(), deleting.is_some());
            if let Some(known) = deleting {
                known.phase = Phase::Ready;
            }
        }
        Step::Remove(n) => {
            assert_eq!(catalog.remove(records[n].id).unwrap(), model.known.remove(&n).is_some());
        }
        Step::Lock(n, until) => {
            let until = until.map(UnixMillis);
            assert_eq!(catalog.set_lock(records[n].id, until).unwrap(), visible(model.known.get(&n)));
            if let Some(known) = model.known.get_mut(&n).filter(|known| known.phase != Phase::Deleting) {
                known.lock = until;
            }
        }
        Step::Reopen => unreachable!("the test reopens"),
    }
}

/// Every way to look at the catalog says what the model says.
fn compare(catalog: &Catalog, model: &Model, records: &[SnapshotRecord]) {
    for (n, record) in records.iter().enumerate() {
        let entry = catalog.get(record.id).unwrap();
        let told = entry.map(|entry| Known { phase: entry.phase, lock: entry.record.locked_until });
        assert_eq!(told.as_ref(), model.known.get(&n));
    }
    for owner in [1, 2] {
        let mine = |n: usize| records[n].vm_uuid == vm(owner);
        let shown = |known: &Known| matches!(known.phase, Phase::Settling | Phase::Ready | Phase::Failed);
        let mut expected: Vec<_> =
            model.known.iter().filter(|(n, known)| mine(**n) && shown(known)).map(|(n, _)| n).collect();
        expected.sort_by_key(|n| std::cmp::Reverse(model.places[n]));
        let expected: Vec<_> = expected.into_iter().map(|n| records[*n].id).collect();

        let mut paged = Vec::new();
        while let Some(entry) = catalog.list(Some(vm(owner)), &list(1, paged.last().copied())).unwrap().pop()
        {
            paged.push(entry.record.id);
        }
        assert_eq!(paged, expected);
        let latest = catalog.find(Some(vm(owner)), &"latest".parse().unwrap());
        assert_eq!(latest.ok().map(|entry| entry.record.id), expected.first().copied());
        let counted =
            model.known.iter().filter(|(n, known)| mine(**n) && known.phase != Phase::Failed).count();
        assert_eq!(catalog.usage(vm(owner), UnixMillis(0)).unwrap().snapshots, counted as u64);
    }
    let open = |known: &&Known| matches!(known.phase, Phase::Intent | Phase::Settling | Phase::Deleting);
    assert_eq!(catalog.unfinished().unwrap().len(), model.known.values().filter(open).count());
    assert_eq!(catalog.all().unwrap().len(), model.known.len());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn whatever_is_done_the_catalog_and_a_simple_model_of_it_agree(
        steps in prop::collection::vec(step(), 1..40)
    ) {
        let scratch = scratch();
        // Two machines, three snapshots each, two of them of one moment.
        let records: Vec<_> = (0..6u64).map(|n| record(vm(1 + u128::from(n % 2)), n / 4)).collect();
        let mut catalog = Catalog::open(&scratch.path).unwrap();
        let mut model = Model::default();
        for step in &steps {
            if matches!(step, Step::Reopen) {
                drop(catalog);
                catalog = Catalog::open(&scratch.path).unwrap();
            } else {
                run(&catalog, &mut model, &records, step);
            }
            compare(&catalog, &model, &records);
        }
        prop_assert_eq!(catalog.integrity().unwrap(), Vec::<String>::new());
    }
}
