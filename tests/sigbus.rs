//! Mapped model files that shrink while they are used: an error where the program asked for the handler of SIGBUS, and
//! as ever where it did not. Faults that are not the engine's go where they went before.

#![cfg(any(target_os = "linux", target_os = "android"))]

mod common;

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::Barrier;
use std::{env, mem, ptr, thread};

use common::golden;
use rwkv_edge::{
    install_sigbus_handler, CheckpointSource, ConvertOptions, Error, ErrorKind, GenerateOptions,
    Model, Options, Quant, Sampler, SamplerOptions,
};
use tempfile::TempDir;

const CHILD: &str = "RWKV_EDGE_TEST_SIGBUS";
const TOKENS: [u32; 4] = [1, 2, 3, 4];

/// A copy of a checkpoint that may be cut, and its weights.
fn checkpoint() -> (TempDir, PathBuf) {
    let folder = tempfile::tempdir().expect("temporary folder");
    for entry in fs::read_dir(golden("small-safetensors")).expect("a fixture") {
        let path = entry.expect("an entry").path();
        let name = path.file_name().expect("a name");
        fs::copy(&path, folder.path().join(name)).expect("a copy");
    }
    let weights = folder.path().join("model.safetensors");
    (folder, weights)
}

/// A model file whose matrices are used in place.
fn model_file(quant: Quant) -> (TempDir, PathBuf) {
    let folder = tempfile::tempdir().expect("temporary folder");
    let path = folder.path().join("model.safetensors");
    let model = common::open(golden("small-safetensors"), quant, 1);
    model.save(&path, &mut |_| {}).expect("saved");
    (folder, path)
}

fn open(path: &Path) -> Model {
    Model::open(path, &Options::new().threads(2)).unwrap_or_else(|e| panic!("{e}"))
}

fn cut(path: &Path, len: u64) {
    let file = OpenOptions::new().write(true).open(path);
    file.and_then(|file| file.set_len(len)).expect("is cut");
}

/// Cuts a file, but only once.
fn cut_once(path: &Path) -> impl FnMut(rwkv_edge::Progress) + '_ {
    let mut is_cut = false;
    move |_| {
        if !is_cut {
            cut(path, 0);
        }
        is_cut = true;
    }
}

#[track_caller]
fn is_lost<T>(result: Result<T, Error>, path: &Path) {
    let Err(error) = result else {
        panic!("expected an error");
    };
    assert_eq!(error.kind(), ErrorKind::Io, "{error}");
    let expected = format!("{}: the file shrank or could not be read", path.display());
    assert!(error.to_string().starts_with(&expected), "{error}");
}

#[test]
fn a_model_that_shrinks_fails_and_keeps_failing() {
    install_sigbus_handler().expect("a handler");
    for (quant, len) in [(Quant::F16, 0), (Quant::Int8, 0), (Quant::F32, 100_000)] {
        let (_folder, path) = model_file(quant);
        let model = open(&path);
        let mut first = model.session();
        let mut other = model.session();
        other.eval(&TOKENS).expect("whole");
        let (before, logits) = (other.state().clone(), other.logits().map(<[f32]>::to_vec));
        cut(&path, len);
        is_lost(first.eval(&TOKENS), &path);
        let error = first.state().check().expect_err("undefined");
        assert_eq!(error.kind(), ErrorKind::Backend, "{error}");
        assert!(first.logits().is_none());
        let state = path.with_file_name("state");
        first.save_state(&state).expect_err("no state to save");
        assert!(!state.exists());
        first.reset();
        is_lost(first.eval_all(&TOKENS), &path);
        // Nothing has moved where no pass was under way.
        is_lost(other.eval(&TOKENS), &path);
        other.state().check().expect("as it was");
        assert_eq!(other.logits().map(<[f32]>::to_vec), logits);
        assert!(other.state().numbers().expect("there") == before.numbers().expect("there"));
        is_lost(model.verify(&mut |_| {}), &path);
        let copy = path.with_file_name("copy");
        is_lost(model.save(&copy, &mut |_| {}), &path);
        assert!(!copy.exists());
        // Another model is another file.
        let (_folder, path) = model_file(quant);
        open(&path).session().eval(&TOKENS).expect("whole");
    }
}

#[test]
fn text_ends_where_the_model_does() {
    install_sigbus_handler().expect("a handler");
    let (_folder, path) = model_file(Quant::F16);
    let model = open(&path);
    let mut session = model.session();
    session.eval(&TOKENS).expect("whole");
    let sampler = Sampler::new(SamplerOptions::default(), model.n_vocab());
    let options = GenerateOptions::new().ignore_end_of_text(true);
    let mut n_tokens = 0;
    let generated = session.generate(&mut sampler.expect("a sampler"), &options, |_| {
        n_tokens += 1;
        if n_tokens == 3 {
            cut(&path, 0);
        }
        std::ops::ControlFlow::Continue(())
    });
    is_lost(generated, &path);
    assert_eq!(n_tokens, 3);
}

#[test]
fn opening_and_writing_what_shrinks_meanwhile() {
    install_sigbus_handler().expect("a handler");
    for quant in [Quant::Int8, Quant::F16, Quant::F32] {
        let (folder, weights) = checkpoint();
        let options = Options::new().quant(quant);
        let opened = Model::open_with_progress(folder.path(), &options, &mut cut_once(&weights));
        is_lost(opened, &weights);
    }
    // The fewest bytes that can be missing: they are in a page that is still there.
    let (folder, weights) = checkpoint();
    let len = fs::metadata(&weights).expect("there").len();
    let mut shorten = |_: rwkv_edge::Progress| cut(&weights, len - 1);
    let opened = Model::open_with_progress(folder.path(), &Options::new(), &mut shorten);
    is_lost(opened, &weights);

    for (quant, len) in [(Quant::F16, 0), (Quant::Int8, 0), (Quant::Int8, 20_000)] {
        let (folder, path) = model_file(quant);
        let model = open(&path);
        let out = folder.path().join("out");
        is_lost(model.save(&out, &mut |_| cut(&path, len)), &path);
        assert!(!out.exists());
        let names = fs::read_dir(folder.path()).expect("a folder").count();
        assert_eq!(names, 1, "no part of a file is left");
        let (_folder, path) = model_file(quant);
        is_lost(open(&path).verify(&mut |_| cut(&path, len)), &path);
    }

    let (folder, weights) = checkpoint();
    let source = CheckpointSource::open(folder.path()).expect("whole");
    let out = folder.path().join("out.pth");
    let options = ConvertOptions::new();
    is_lost(
        source.to_raw(&out, &options, &mut cut_once(&weights)),
        &weights,
    );
    assert!(!out.exists());
    let (folder, weights) = checkpoint();
    let source = CheckpointSource::open(folder.path()).expect("whole");
    let out = tempfile::tempdir().expect("temporary folder");
    let written = source.to_hugging_face(out.path(), &options, &mut cut_once(&weights));
    is_lost(written, &weights);
    assert_eq!(fs::read_dir(out.path()).expect("a folder").count(), 0);
}

/// The tokenizer is parsed with the first text.
#[test]
fn a_tokenizer_that_shrinks() {
    install_sigbus_handler().expect("a handler");
    let (folder, _weights) = checkpoint();
    let list = folder.path().join("vocab.txt");
    let lines: String = (1..=4000)
        .map(|i| format!("{i} '{}' {}\n", "x".repeat(i), i))
        .take(200)
        .collect();
    fs::write(&list, lines).expect("is written");
    let model = open(folder.path());
    cut(&list, 0);
    is_lost(model.tokenizer(), &list);
}

/// Faults of several threads at once, in one mapping and in several, while others come and go.
#[test]
fn many_threads_at_once() {
    install_sigbus_handler().expect("a handler");
    const N_CUT: usize = 6;
    let (_intact_folder, intact) = model_file(Quant::Int8);
    for _ in 0..10 {
        let (_shared_folder, shared_path) = model_file(Quant::F16);
        let shared = Model::open(&shared_path, &Options::new().threads(1)).expect("whole");
        let barrier = Barrier::new(N_CUT + 3);
        thread::scope(|scope| {
            for index in 0..N_CUT {
                let (shared, shared_path, barrier) = (&shared, &shared_path, &barrier);
                scope.spawn(move || {
                    let own = model_file(Quant::F16);
                    // Half of them read one mapping.
                    let (model, path) = match index % 2 {
                        0 => (shared.clone(), shared_path),
                        _ => (open(&own.1), &own.1),
                    };
                    let mut session = model.session();
                    barrier.wait();
                    if index % 2 == 1 {
                        cut(path, 0);
                    }
                    barrier.wait();
                    is_lost(session.eval(&TOKENS), path);
                });
            }
            for _ in 0..2 {
                scope.spawn(|| {
                    barrier.wait();
                    barrier.wait();
                    for _ in 0..20 {
                        open(&intact).session().eval(&TOKENS).expect("whole");
                    }
                });
            }
            barrier.wait();
            cut(&shared_path, 0);
            barrier.wait();
        });
    }
}

/// Runs this program again, for one thing that a process can do once; `None` where it cannot be started.
fn in_child(what: &str) -> Option<ExitStatus> {
    if env::var_os("RWKV_EDGE_EMULATED").is_some() {
        // Built for another machine, it is not started by the system alone.
        println!("skipped: {what}");
        return None;
    }
    let program = env::current_exe().expect("a file");
    let mut command = Command::new(program);
    command.args(["child", "--exact", "--test-threads=1"]);
    let output = command.env(CHILD, what).output();
    let output = output.unwrap_or_else(|e| panic!("{what}: {e}"));
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    println!("{what}: {}\n{said}", output.status);
    Some(output.status)
}

#[track_caller]
fn dies(what: &str) {
    if let Some(status) = in_child(what) {
        assert_eq!(status.signal(), Some(libc::SIGBUS), "{what}: {status}");
    }
}

#[track_caller]
fn lives(what: &str) {
    if let Some(status) = in_child(what) {
        assert!(status.success(), "{what}: {status}");
    }
}

#[test]
fn nothing_is_installed_unasked() {
    dies("unasked");
}

#[test]
fn other_faults_go_where_they_went() {
    lives("a handler with facts");
    lives("a plain handler");
    lives("a handler for once");
    lives("a sent signal that is ignored");
    dies("a sent signal");
    dies("a fault of others");
    dies("a fault of others that is ignored");
}

/// Where all memory is locked and hardly any more may be, the system does not replace a mapping by a second one of its
/// size, but page by page.
#[test]
fn memory_that_is_locked() {
    lives("locked memory");
}

/// What the children of the tests above do.
#[test]
fn child() {
    match env::var(CHILD).as_deref() {
        Ok("unasked") => unasked(),
        Ok("locked memory") => locked(),
        Ok("a handler with facts") => {
            handled(on_fault_with_facts as *const () as usize, libc::SA_SIGINFO);
            handled_again();
        }
        Ok("a plain handler") => {
            handled(on_fault as *const () as usize, 0);
            handled_again();
        }
        Ok("a handler for once") => {
            handled(on_fault as *const () as usize, libc::SA_RESETHAND);
            assert_eq!(send_in_child(), libc::SIGBUS, "there is none any more");
        }
        Ok("a sent signal that is ignored") => {
            set_action(libc::SIG_IGN, 0);
            install_sigbus_handler().expect("a handler");
            send();
        }
        Ok("a sent signal") => {
            set_action(libc::SIG_DFL, 0);
            install_sigbus_handler().expect("a handler");
            send();
        }
        Ok("a fault of others") => {
            // The handler that was there is that of Rust's library.
            install_sigbus_handler().expect("a handler");
            fault();
        }
        Ok("a fault of others that is ignored") => {
            set_action(libc::SIG_IGN, 0);
            install_sigbus_handler().expect("a handler");
            fault();
        }
        _ => {}
    }
}

fn unasked() {
    let before = action();
    let (_folder, path) = model_file(Quant::F16);
    let model = open(&path);
    let mut session = model.session();
    session.eval(&TOKENS).expect("whole");
    assert_eq!(action(), before);
    cut(&path, 0);
    let _ = session.eval(&TOKENS);
    panic!("reads what is not there");
}

fn locked() {
    install_sigbus_handler().expect("a handler");
    let (_folder, path) = model_file(Quant::F16);
    // SAFETY: numbers only.
    if unsafe { libc::mlockall(libc::MCL_FUTURE) } != 0 {
        return println!("skipped: memory cannot be locked");
    }
    let model = Model::open(&path, &Options::new().threads(1)).expect("whole");
    let mut session = model.session();
    session.eval(&TOKENS).expect("whole");
    let status = fs::read_to_string("/proc/self/status").expect("there");
    let locked = status.lines().find_map(|line| line.strip_prefix("VmLck:"));
    let locked = locked.and_then(|locked| locked.trim().strip_suffix(" kB"));
    let locked: libc::rlim_t = locked.expect("a size").parse().expect("a number");
    let len = fs::metadata(&path).expect("there").len();
    assert!(len > 64 << 10, "{len}");
    let limit = (locked << 10) + (32 << 10);
    let limit = libc::rlimit {
        rlim_cur: limit,
        rlim_max: limit,
    };
    // SAFETY: the limit lives as long as the call.
    if unsafe { libc::setrlimit(libc::RLIMIT_MEMLOCK, &limit) } != 0 {
        return println!("skipped: {locked} KiB are locked, more than may be");
    }
    cut(&path, 0);
    is_lost(session.eval(&TOKENS), &path);
}

static N_FAULTS: AtomicUsize = AtomicUsize::new(0);
static FAULT_AT: AtomicUsize = AtomicUsize::new(0);

/// A handler of the program's own, the library's beside it, and a fault for each.
fn handled(handler: usize, flags: i32) {
    set_action(handler, flags);
    install_sigbus_handler().expect("a handler");
    install_sigbus_handler().expect("the same");
    let (_folder, path) = model_file(Quant::F16);
    let model = open(&path);
    cut(&path, 0);
    is_lost(model.session().eval(&TOKENS), &path);
    assert_eq!(N_FAULTS.load(Ordering::Relaxed), 0);
    fault();
    assert_eq!(N_FAULTS.load(Ordering::Relaxed), 1);
}

fn handled_again() {
    fault();
    send();
    assert_eq!(N_FAULTS.load(Ordering::Relaxed), 3);
}

extern "C" fn on_fault(signal: i32) {
    assert_eq!(signal, libc::SIGBUS);
    N_FAULTS.fetch_add(1, Ordering::Relaxed);
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED;
    let at = FAULT_AT.load(Ordering::Relaxed);
    // SAFETY: a page of the mapping in `fault`.
    let page = unsafe { libc::mmap(at as *mut _, 1, libc::PROT_READ, flags, -1, 0) };
    assert!(page != libc::MAP_FAILED);
}

extern "C" fn on_fault_with_facts(
    signal: i32,
    info: *mut libc::siginfo_t,
    context: *mut libc::c_void,
) {
    assert!(!context.is_null());
    // SAFETY: given by the system.
    let (code, address) = unsafe { ((*info).si_code, (*info).si_addr() as usize) };
    if code > 0 {
        assert_eq!(address, FAULT_AT.load(Ordering::Relaxed));
    }
    on_fault(signal);
}

/// Reads a byte of a mapped file that has none any more.
fn fault() {
    let mut file = tempfile::tempfile().expect("a file");
    file.write_all(&[1; 100]).expect("is written");
    // SAFETY: the file is cut below, which is what this is for.
    let map = unsafe { memmap2::Mmap::map(&file) }.expect("a mapping");
    FAULT_AT.store(map.as_ptr() as usize, Ordering::Relaxed);
    File::set_len(&file, 0).expect("is cut");
    // SAFETY: within the mapping.
    let byte = unsafe { ptr::read_volatile(map.as_ptr()) };
    assert_eq!(byte, 0);
}

fn send() {
    // SAFETY: has no conditions.
    unsafe { libc::raise(libc::SIGBUS) };
}

/// What a process that was forked from this one ends of when it sends itself the signal.
fn send_in_child() -> i32 {
    // SAFETY: the child does nothing but that.
    unsafe {
        let child = libc::fork();
        if child == 0 {
            libc::raise(libc::SIGBUS);
            libc::_exit(0);
        }
        let mut status = 0;
        libc::waitpid(child, &mut status, 0);
        libc::WTERMSIG(status)
    }
}

fn set_action(handler: usize, flags: i32) {
    // SAFETY: plain numbers, and a handler as the flags say.
    unsafe {
        let mut action: libc::sigaction = mem::zeroed();
        action.sa_sigaction = handler;
        action.sa_flags = flags;
        assert_eq!(libc::sigaction(libc::SIGBUS, &action, ptr::null_mut()), 0);
    }
}

fn action() -> usize {
    // SAFETY: plain numbers.
    unsafe {
        let mut action: libc::sigaction = mem::zeroed();
        assert_eq!(libc::sigaction(libc::SIGBUS, ptr::null(), &mut action), 0);
        action.sa_sigaction
    }
}
