//! What decides everything: a stream of numbers that a seed fixes (SplitMix64, Steele et al. 2014).
//! And the weather of one schedule: not every trouble comes in every one, so that those that do come
//! are not hidden by the others (swarm testing, Groce et al. 2012).

use uuid::Uuid;

pub(crate) struct Chance(u64);

impl Chance {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x2545_f491_4f6c_dd1d))
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `end`.
    pub(crate) fn below(&mut self, end: usize) -> usize {
        usize::try_from(self.next() % end as u64).expect("it is below a usize")
    }

    /// True in so many of a thousand cases.
    pub(crate) fn permille(&mut self, share: usize) -> bool {
        self.below(1000) < share
    }

    pub(crate) fn pick<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.below(of.len())]
    }

    pub(crate) fn uuid(&mut self) -> Uuid {
        Uuid::from_u64_pair(self.next(), self.next())
    }
}

/// How often what goes wrong, in thousandths of the steps or calls.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Weather {
    /// A call of the storage fails.
    pub(crate) storage_fails: usize,
    /// The service dies in a call of the storage.
    pub(crate) dies_in_a_call: usize,
    /// The service dies between two steps.
    pub(crate) dies: usize,
    /// The whole host loses power.
    pub(crate) power_cut: usize,
    /// After a death the catalog is not there any more.
    pub(crate) catalog_lost: usize,
    /// The catalog begins or ceases to refuse writes.
    pub(crate) catalog_fails: usize,
    /// The storage begins or ceases to be full, or to hold a snapshot open.
    pub(crate) storage_changes: usize,
    /// A message, or the answer to it, is lost with its connection.
    pub(crate) loses_messages: usize,
    /// Time passes while calls are out: leases end, limits are reached.
    pub(crate) time_passes: usize,
    /// The wall clock jumps.
    pub(crate) clock_jumps: usize,
    /// A call is done, and tells so only later.
    pub(crate) tells_later: usize,
}

impl Weather {
    pub(crate) fn of(chance: &mut Chance) -> Self {
        let mut sometimes = |often: &[usize]| if chance.permille(450) { chance.pick(often) } else { 0 };
        Self {
            storage_fails: sometimes(&[10, 30, 100]),
            dies_in_a_call: sometimes(&[5, 20]),
            dies: sometimes(&[3, 10, 30]),
            power_cut: sometimes(&[3, 10]),
            catalog_lost: sometimes(&[300, 1000]),
            catalog_fails: sometimes(&[10, 40]),
            storage_changes: sometimes(&[10, 40]),
            loses_messages: sometimes(&[20, 60, 200]),
            time_passes: sometimes(&[5, 20, 60]),
            clock_jumps: sometimes(&[5, 20]),
            tells_later: sometimes(&[100, 400]),
        }
    }

    /// Nothing goes wrong.
    pub(crate) const fn fair() -> Self {
        Self {
            storage_fails: 0,
            dies_in_a_call: 0,
            dies: 0,
            power_cut: 0,
            catalog_lost: 0,
            catalog_fails: 0,
            storage_changes: 0,
            loses_messages: 0,
            time_passes: 0,
            clock_jumps: 0,
            tells_later: 0,
        }
    }
}
