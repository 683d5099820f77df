//! A program under ptrace(2): something happens to it right before the nth call by which it changes
//! anything outside of itself. Nothing of this is in the program: what is tried is what is shipped.
//!
//! x86-64, as QEMU's machines of the other tests are.

use std::collections::{BTreeSet, HashMap};
use std::io;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::{Arc, Mutex, mpsc};
use std::thread::JoinHandle;

use nix::errno::Errno;
use nix::libc;
use nix::sys::ptrace::{self, Options};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

use super::calls;

/// What happens right before a call.
pub(crate) enum Fault {
    /// The program is killed, after this was done.
    Kill(Box<dyn FnOnce() + Send>),
    /// The call fails so, and is not made.
    Fail(Errno),
    /// This is done, then the call is made.
    After(Box<dyn FnOnce() + Send>),
}

/// Before which call.
#[derive(Debug, Clone)]
pub(crate) enum Before {
    /// The nth from now on.
    Nth(usize),
    /// The first that is called so.
    Named(String),
    /// The first whose name has all of this.
    Having(&'static [&'static str]),
}

/// What is to happen, and what did.
#[derive(Default)]
struct Plan {
    awaited: Option<(Before, Fault)>,
    /// The call that it happened to.
    struck: Option<String>,
    /// All calls until then.
    seen: BTreeSet<String>,
}

/// The program.
pub(crate) struct Traced {
    pid: Pid,
    plan: Arc<Mutex<Plan>>,
    ended: Arc<AtomicBool>,
    tracer: Option<JoinHandle<()>>,
}

impl Traced {
    /// Starts it. What it prints goes to the end of `log`.
    pub(crate) fn start(mut command: Command, log: &Path, fault: Option<(Before, Fault)>) -> Self {
        let output = std::fs::File::options().append(true).create(true).open(log).unwrap();
        command.stdin(Stdio::null()).stdout(output.try_clone().unwrap()).stderr(output);
        let plan = Arc::new(Mutex::new(Plan::default()));
        let ended = Arc::new(AtomicBool::new(false));
        plan.lock().unwrap().awaited = fault;
        let (started, pid) = mpsc::channel();
        let (its_plan, its_end) = (Arc::clone(&plan), Arc::clone(&ended));
        // All of ptrace is for the thread that attached, which here is the one that starts it.
        let tracer = std::thread::spawn(move || {
            let leader = launch(&mut command);
            started.send(leader).unwrap();
            Tracer { leader, plan: its_plan, failing: HashMap::new() }.run();
            its_end.store(true, SeqCst);
        });
        Self { pid: pid.recv().expect("it starts"), plan, ended, tracer: Some(tracer) }
    }

    /// From now on calls are counted, until the fault comes.
    pub(crate) fn arm(&self, before: Before, fault: Fault) {
        *self.plan.lock().unwrap() = Plan { awaited: Some((before, fault)), ..Plan::default() };
    }

    /// Nothing is awaited any more. The call that was struck since `arm`, if there was one, and all that
    /// were seen.
    pub(crate) fn disarm(&self) -> (Option<String>, BTreeSet<String>) {
        let Plan { struck, seen, .. } = std::mem::take(&mut *self.plan.lock().unwrap());
        (struck, seen)
    }

    pub(crate) fn has_ended(&self) -> bool {
        self.ended.load(SeqCst)
    }

    /// Kills it, if it lives, and waits for its end.
    pub(crate) fn kill(&mut self) {
        if !self.has_ended() {
            let _ = kill(self.pid, Signal::SIGKILL);
        }
        if let Some(tracer) = self.tracer.take() {
            tracer.join().expect("the tracer does not panic");
        }
    }
}

impl Drop for Traced {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            return self.kill();
        }
        let _ = kill(self.pid, Signal::SIGKILL);
    }
}

impl Plan {
    /// A call comes. What is to happen before it.
    fn meet(&mut self, call: String) -> Option<Fault> {
        let (before, fault) = self.awaited.as_mut()?;
        // A message that can't be sent is a guest that is gone: that is told elsewhere.
        if matches!(fault, Fault::Fail(_)) && calls::is_message(&call) {
            return None;
        }
        self.seen.insert(call.clone());
        let is_it = match before {
            Before::Nth(left) => {
                *left -= 1;
                *left == 0
            }
            Before::Named(name) => *name == call,
            Before::Having(words) => words.iter().all(|word| call.contains(word)),
        };
        if !is_it {
            return None;
        }
        self.struck = Some(call);
        self.awaited.take().map(|(_, fault)| fault)
    }
}

// Its end is waited for with that of its threads, by `Tracer::run`.
#[allow(clippy::zombie_processes)]
fn launch(command: &mut Command) -> Pid {
    // SAFETY: between fork and exec this makes one system call and allocates nothing.
    unsafe { command.pre_exec(|| ptrace::traceme().map_err(io::Error::from)) };
    let child = command.spawn().expect("the program starts");
    let leader = Pid::from_raw(i32::try_from(child.id()).expect("a PID is small"));
    // It stops after exec.
    waitpid(leader, None).expect("it is our child");
    let options = Options::PTRACE_O_TRACESYSGOOD
        | Options::PTRACE_O_TRACECLONE
        | Options::PTRACE_O_TRACEFORK
        | Options::PTRACE_O_TRACEVFORK
        | Options::PTRACE_O_EXITKILL;
    ptrace::setoptions(leader, options).expect("it is stopped");
    go_on(leader, None);
    leader
}

/// A thread that was killed meanwhile has no need to go on.
fn go_on(thread: Pid, signal: Option<Signal>) {
    match ptrace::syscall(thread, signal) {
        Ok(()) | Err(Errno::ESRCH) => {}
        Err(error) => panic!("let the program go on: {error}"),
    }
}

struct Tracer {
    leader: Pid,
    plan: Arc<Mutex<Plan>>,
    /// The threads that are in a call that was made to fail.
    failing: HashMap<Pid, Errno>,
}

impl Tracer {
    fn run(&mut self) {
        // Only what this thread traces: the tests beside have children too.
        let flags = WaitPidFlag::__WALL | WaitPidFlag::__WNOTHREAD;
        loop {
            match waitpid(None, Some(flags)) {
                Ok(WaitStatus::PtraceSyscall(thread)) => {
                    self.call(thread);
                    go_on(thread, None);
                }
                // A new thread begins with SIGSTOP, which is ptrace's.
                Ok(WaitStatus::Stopped(thread, Signal::SIGSTOP | Signal::SIGTRAP))
                | Ok(WaitStatus::PtraceEvent(thread, ..)) => go_on(thread, None),
                Ok(WaitStatus::Stopped(thread, signal)) => go_on(thread, Some(signal)),
                Ok(_) | Err(Errno::EINTR) => {}
                Err(Errno::ECHILD) => return,
                Err(error) => panic!("wait for the program: {error}"),
            }
        }
    }

    /// A thread stands at the beginning or at the end of a call.
    fn call(&mut self, thread: Pid) {
        let Ok(info) = ptrace::syscall_info(thread) else { return };
        if info.op == libc::PTRACE_SYSCALL_INFO_EXIT {
            if let Some(errno) = self.failing.remove(&thread) {
                set(thread, |regs| regs.rax = i64::from(-(errno as i32)).cast_unsigned());
            }
            return;
        }
        if info.op != libc::PTRACE_SYSCALL_INFO_ENTRY || self.plan.lock().unwrap().awaited.is_none() {
            return;
        }
        // SAFETY: `op` says that it is the beginning of a call, which the kernel filled in.
        let entry = unsafe { info.u.entry };
        let Some(what) = calls::that_changes(thread, entry.nr, &entry.args) else { return };
        // Held meanwhile: whoever disarms waits until it is over.
        let mut plan = self.plan.lock().unwrap();
        match plan.meet(what) {
            Some(Fault::Kill(before)) => {
                before();
                let _ = kill(self.leader, Signal::SIGKILL);
            }
            Some(Fault::Fail(errno)) => {
                // There is no call of that number: the kernel does nothing.
                set(thread, |regs| regs.orig_rax = u64::MAX);
                self.failing.insert(thread, errno);
            }
            Some(Fault::After(before)) => before(),
            None => {}
        }
    }
}

fn set(thread: Pid, change: impl FnOnce(&mut libc::user_regs_struct)) {
    if let Ok(mut regs) = ptrace::getregs(thread) {
        change(&mut regs);
        let _ = ptrace::setregs(thread, regs);
    }
}
