//! Disasters on purpose: with the cargo feature `rehearsal` the flow waits after a step until the tests
//! have done their worst, and goes on, panics or eats all memory as they say. In every other build
//! [`after`] is empty, and nothing of this is in the program.
//!
//! To wait costs two system calls on pipes that were opened before: it happens while frozen, too.
//!
//! `HOSTSNAP_REHEARSAL=FOLDER:STEP`: the step is said on `FOLDER/said`, and one byte is read from
//! `FOLDER/go`. Both are named pipes on something that is not frozen.

/// A step of the flow that has just been done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(not(feature = "rehearsal"), allow(dead_code))]
pub(crate) enum Step {
    Resolved,
    Connected,
    Prepared,
    Quiesced,
    Flushed,
    Armed,
    Frozen,
    CutSent,
    CutDone,
    Thawed,
    Concluded,
}

#[cfg(not(feature = "rehearsal"))]
pub(crate) const fn after(_: Step) {}

#[cfg(feature = "rehearsal")]
pub(crate) use stopping::after;
#[cfg(feature = "rehearsal")]
pub use stopping::prepare;

#[cfg(feature = "rehearsal")]
mod stopping {
    use std::fs::File;
    use std::path::Path;
    use std::sync::OnceLock;
    use std::sync::atomic::{AtomicBool, Ordering::SeqCst};

    use rustix::io::Errno;

    use super::Step;

    const VARIABLE: &str = "HOSTSNAP_REHEARSAL";

    struct Rehearsal {
        at: Step,
        said: File,
        go: File,
        is_over: AtomicBool,
    }

    static REHEARSAL: OnceLock<Rehearsal> = OnceLock::new();

    const STEPS: [(&str, Step); 11] = [
        ("resolved", Step::Resolved),
        ("connected", Step::Connected),
        ("prepared", Step::Prepared),
        ("quiesced", Step::Quiesced),
        ("flushed", Step::Flushed),
        ("armed", Step::Armed),
        ("frozen", Step::Frozen),
        ("cut-sent", Step::CutSent),
        ("cut-done", Step::CutDone),
        ("thawed", Step::Thawed),
        ("concluded", Step::Concluded),
    ];

    /// Opens what is needed later.
    ///
    /// # Panics
    /// When the tests said something that makes no sense.
    pub fn prepare() {
        let Ok(wish) = std::env::var(VARIABLE) else { return };
        let (folder, name) = wish.split_once(':').expect("FOLDER:STEP");
        let (_, at) = STEPS.into_iter().find(|(known, _)| *known == name).expect("a known step");
        // For both directions: an open named pipe waits for nobody then (fifo(7)).
        let open = |name| File::options().read(true).write(true).open(Path::new(folder).join(name));
        let (said, go) = (open("said").expect("a pipe"), open("go").expect("a pipe"));
        let rehearsal = Rehearsal { at, said, go, is_over: AtomicBool::new(false) };
        assert!(REHEARSAL.set(rehearsal).is_ok(), "prepared once");
    }

    pub(crate) fn after(step: Step) {
        let Some(rehearsal) = REHEARSAL.get() else { return };
        if rehearsal.at != step || rehearsal.is_over.swap(true, SeqCst) {
            return;
        }
        let _ = rustix::io::write(&rehearsal.said, b"!");
        let mut word = [0];
        while matches!(rustix::io::read(&rehearsal.go, &mut word), Err(Errno::INTR)) {}
        match word[0] {
            b'p' => panic!("a panic that was asked for"),
            b'm' => eat_all_memory(),
            _ => {}
        }
    }

    /// Until the out-of-memory killer comes.
    fn eat_all_memory() -> ! {
        let mut eaten = Vec::new();
        loop {
            eaten.push(std::hint::black_box(vec![1_u8; 1 << 20]));
        }
    }
}
