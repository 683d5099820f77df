//! Running commands in a guest.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use crate::serial::{Ask, Say};

/// How long a command may take, under emulation on a busy machine.
const COMMAND_LIMIT: Duration = Duration::from_secs(240);

/// What a command came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Output {
    /// Its exit code; 128 + n for a signal.
    pub status: i32,
    /// What it printed.
    pub stdout: String,
    /// What it complained about.
    pub stderr: String,
}

#[derive(Default)]
struct Heard {
    boots: u32,
    ended: HashMap<u64, Output>,
    gone: bool,
}

/// A guest's shell.
#[derive(Clone)]
pub struct Guest {
    writer: Arc<Mutex<UnixStream>>,
    heard: Arc<(Mutex<Heard>, Condvar)>,
    next: Arc<AtomicU64>,
}

/// A command that is running.
pub struct Running {
    guest: Guest,
    id: u64,
    script: String,
}

impl Guest {
    /// Over the harness' end of the serial port.
    ///
    /// # Panics
    /// When there is no second descriptor for it.
    pub fn over(stream: UnixStream) -> Self {
        let heard = Arc::new((Mutex::new(Heard::default()), Condvar::new()));
        let listener = Arc::clone(&heard);
        let reader = BufReader::new(stream.try_clone().expect("a descriptor"));
        std::thread::spawn(move || {
            let (heard, changed) = &*listener;
            for line in reader.lines().map_while(Result::ok) {
                let mut heard = heard.lock().expect("no holder of this lock panics");
                match serde_json::from_str(&line) {
                    Ok(Say::Booted) => heard.boots += 1,
                    Ok(Say::Ended { id, status, stdout, stderr }) => {
                        heard.ended.insert(id, Output { status, stdout, stderr });
                    }
                    Err(error) => eprintln!("the guest said {line:?}: {error}"),
                }
                changed.notify_all();
            }
            heard.lock().expect("no holder of this lock panics").gone = true;
            changed.notify_all();
        });
        Self { writer: Arc::new(Mutex::new(stream)), heard, next: Arc::new(AtomicU64::new(1)) }
    }

    /// How often it has booted.
    pub fn boots(&self) -> u32 {
        self.heard.0.lock().expect("no holder of this lock panics").boots
    }

    /// Starts a script in the background.
    ///
    /// # Panics
    /// When the guest is gone.
    pub fn spawn(&self, script: &str) -> Running {
        let id = self.next.fetch_add(1, SeqCst);
        let ask = Ask { id, script: format!("export PATH=/bin:/sbin:/usr/bin:/usr/sbin; {script}") };
        let mut line = serde_json::to_vec(&ask).expect("no value that JSON lacks");
        line.push(b'\n');
        self.writer.lock().expect("no holder of this lock panics").write_all(&line).expect("the guest lives");
        Running { guest: self.clone(), id, script: script.to_owned() }
    }

    /// Runs a script to its end.
    pub fn run(&self, script: &str) -> Output {
        self.spawn(script).wait()
    }

    /// Runs a script that must succeed; what it printed.
    ///
    /// # Panics
    /// When it does not, with what it said.
    #[track_caller]
    pub fn sh(&self, script: &str) -> String {
        let output = self.run(script);
        assert_eq!(output.status, 0, "{script}\n{}{}", output.stdout, output.stderr);
        output.stdout
    }

    /// As `sh`, for a script that prints JSON.
    #[track_caller]
    pub fn json(&self, script: &str) -> serde_json::Value {
        let text = self.sh(script);
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{script}: {error}\n{text}"))
    }
}

impl Running {
    /// Whether it has ended.
    pub fn has_ended(&self) -> bool {
        self.guest.heard.0.lock().expect("no holder of this lock panics").ended.contains_key(&self.id)
    }

    /// Waits for its end.
    ///
    /// # Panics
    /// When the guest is gone, or it does not end.
    #[track_caller]
    pub fn wait(self) -> Output {
        self.wait_within(COMMAND_LIMIT)
    }

    /// As `wait`, for a command that has more to do.
    ///
    /// # Panics
    /// When the guest is gone, or it does not end.
    #[track_caller]
    pub fn wait_within(self, time: Duration) -> Output {
        let limit = Instant::now() + time;
        let (heard, changed) = &*self.guest.heard;
        let mut heard = heard.lock().expect("no holder of this lock panics");
        loop {
            if let Some(output) = heard.ended.remove(&self.id) {
                return output;
            }
            assert!(!heard.gone, "the guest is gone; it was running: {}", self.script);
            let left = limit.saturating_duration_since(Instant::now());
            assert!(!left.is_zero(), "no end within {} s: {}", time.as_secs(), self.script);
            heard = changed.wait_timeout(heard, left).expect("no holder of this lock panics").0;
        }
    }
}
