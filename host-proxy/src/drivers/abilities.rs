//! What a driver can do besides cutting, listing and deleting, told before anybody relies on it: who learns at the restore
//! that there is none has lost.

/// How the volumes of one set are cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SetCut {
    /// All at one instant, also without a freeze.
    OneInstant,
    /// Each by its own call. Only a freeze that is held until the last makes one instant of it.
    Each,
}

/// What a driver can do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Abilities {
    /// How it cuts several volumes.
    pub set: SetCut,
    /// Whether it shows a snapshot's contents on the host.
    pub expose: bool,
    /// Whether it tells what changed between two snapshots.
    pub changes: bool,
    /// Whether it gives a volume back the bytes of a snapshot.
    pub restore: bool,
}

impl Abilities {
    /// The words that people and programs read. A host that can more says one more.
    pub fn words(self) -> Vec<&'static str> {
        let Self { set, expose, changes, restore } = self;
        let set_atomic = set == SetCut::OneInstant;
        [("set-atomic", set_atomic), ("expose", expose), ("changes", changes), ("restore", restore)]
            .into_iter()
            .filter_map(|(word, can)| can.then_some(word))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_a_driver_can_do_is_said() {
        let nothing = Abilities { set: SetCut::Each, expose: false, changes: false, restore: false };
        assert!(nothing.words().is_empty());
        let all = Abilities { set: SetCut::OneInstant, expose: true, changes: true, restore: true };
        assert_eq!(all.words(), ["set-atomic", "expose", "changes", "restore"]);
        assert_eq!(Abilities { expose: true, ..nothing }.words(), ["expose"]);
    }
}
