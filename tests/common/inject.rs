//! Runs a program under the eyes of the debugger's interface of Linux, and ends it at a call of the system, or lets the
//! call fail: what `strace --inject` does, for calls that change files.

use std::collections::HashMap;
use std::fs;
use std::os::unix::process::CommandExt;
use std::process::Command;

use nix::errno::Errno;
use nix::sys::ptrace::{self, Options};
use nix::sys::signal::Signal;
use nix::sys::wait::{waitpid, WaitPidFlag, WaitStatus};
use nix::unistd::Pid;

/// Calls of the system by their numbers on x86-64.
pub type Calls = [(&'static str, u64)];

/// Those that look for files.
pub const LOOKS: &Calls = &[("openat", 257), ("statx", 332), ("newfstatat", 262)];

/// Those that change files, lock them, or list folders.
pub const STEPS: &Calls = &[
    ("write", 1),
    ("fsync", 74),
    ("rename", 82),
    ("renameat", 264),
    ("renameat2", 316),
    ("mkdir", 83),
    ("rmdir", 84),
    ("unlink", 87),
    ("unlinkat", 263),
    ("fchmod", 91),
    ("flock", 73),
    ("getdents64", 217),
];

#[derive(Clone, Copy, Debug)]
pub enum Fault {
    Kill,
    Error(Errno),
}

/// The call of this name that is the n-th of its name, from 1 on.
pub type Step = (&'static str, usize);

/// What came of a run.
#[derive(Debug)]
pub struct Outcome {
    /// `None`: killed.
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
    /// All calls that were asked for, in order.
    pub steps: Vec<Step>,
}

/// Whether the system lets a program be looked at in this way, as some containers do not.
pub fn is_allowed() -> bool {
    let mut command = Command::new("true");
    // SAFETY: between fork and exec only one call of the system is made.
    unsafe { command.pre_exec(|| Ok(ptrace::traceme()?)) };
    let Ok(mut child) = command.spawn() else {
        return false;
    };
    // It stops before it begins.
    let killed = child.kill().and_then(|()| child.wait());
    killed.is_ok()
}

/// Runs a command. At calls that `pick` picks there is a fault.
pub fn run(command: &mut Command, pick: impl FnMut(Step) -> Option<Fault>) -> Outcome {
    run_with(STEPS, command, pick)
}

/// As [`run`], with other calls.
// The child is waited for by its number.
#[allow(clippy::zombie_processes)]
pub fn run_with(
    calls: &Calls,
    command: &mut Command,
    mut pick: impl FnMut(Step) -> Option<Fault>,
) -> Outcome {
    let [printed, said] = [(); 2].map(|()| tempfile::NamedTempFile::new().expect("a file"));
    command
        .stdout(printed.reopen().expect("just made"))
        .stderr(said.reopen().expect("just made"));
    // SAFETY: between fork and exec only one call of the system is made.
    unsafe { command.pre_exec(|| Ok(ptrace::traceme()?)) };
    let child = command.spawn().expect("the binary starts");
    let main = Pid::from_raw(child.id() as i32);
    // Of this thread alone: other tests have children, too.
    let flags = WaitPidFlag::__WALL | WaitPidFlag::__WNOTHREAD;
    waitpid(main, Some(flags)).expect("stops where it begins");
    let options =
        Options::PTRACE_O_TRACESYSGOOD | Options::PTRACE_O_TRACECLONE | Options::PTRACE_O_EXITKILL;
    ptrace::setoptions(main, options).expect("a child");
    ptrace::syscall(main, None).expect("a child");

    // Calls that threads are in, with the error that they will come back with.
    let mut inside: HashMap<Pid, Option<Errno>> = HashMap::new();
    let mut counts: HashMap<&str, usize> = HashMap::new();
    let mut steps = Vec::new();
    let code = loop {
        match waitpid(None, Some(flags)).expect("a child") {
            WaitStatus::PtraceSyscall(pid) => {
                match inside.remove(&pid) {
                    Some(None) => {}
                    Some(Some(error)) => {
                        let mut registers = ptrace::getregs(pid).expect("stopped");
                        registers.rax = (-(error as i64)) as u64;
                        ptrace::setregs(pid, registers).expect("stopped");
                    }
                    None => {
                        let mut registers = ptrace::getregs(pid).expect("stopped");
                        let called = calls.iter().find(|step| step.1 == registers.orig_rax);
                        let fault = called.and_then(|(name, _)| {
                            let count = counts.entry(name).or_default();
                            *count += 1;
                            steps.push((*name, *count));
                            pick((name, *count))
                        });
                        let error = match fault {
                            Some(Fault::Error(error)) => {
                                registers.orig_rax = u64::MAX;
                                ptrace::setregs(pid, registers).expect("stopped");
                                Some(error)
                            }
                            Some(Fault::Kill) => {
                                nix::sys::signal::kill(main, Signal::SIGKILL).expect("a child");
                                continue;
                            }
                            None => None,
                        };
                        inside.insert(pid, error);
                    }
                }
                let _ = ptrace::syscall(pid, None);
            }
            WaitStatus::PtraceEvent(pid, ..) | WaitStatus::Stopped(pid, Signal::SIGSTOP) => {
                let _ = ptrace::syscall(pid, None);
            }
            WaitStatus::Stopped(pid, signal) => {
                let _ = ptrace::syscall(pid, signal);
            }
            WaitStatus::Exited(pid, code) if pid == main => break Some(code),
            WaitStatus::Signaled(pid, ..) if pid == main => break None,
            _ => {}
        }
    };
    Outcome {
        code,
        stdout: fs::read_to_string(printed.path()).expect("UTF-8"),
        stderr: fs::read_to_string(said.path()).expect("UTF-8"),
        steps,
    }
}
