//! The border that no panic and no Rust error crosses: what happens inside becomes a status and a text.
//!
//! The text of the last error lies in a buffer of fixed size for each thread, so that a failing call
//! need not allocate for it, and so that a thread which ends has nothing to free.

#![forbid(unsafe_code)]

use std::any::Any;
use std::cell::{Cell, RefCell};
use std::ffi::c_char;
use std::fmt::{self, Write};
use std::panic::{catch_unwind, set_hook, take_hook, AssertUnwindSafe};
use std::sync::Once;
use std::thread;

use engine::internals::THREAD_NAME;
use engine::ErrorKind;

/// `rwkv_edge_status`
pub(crate) type Status = i32;

pub(crate) const OK: Status = 0;
pub(crate) const ARGUMENT: Status = 1;
pub(crate) const IO: Status = 2;
pub(crate) const FORMAT: Status = 3;
pub(crate) const UNSUPPORTED: Status = 4;
pub(crate) const MEMORY: Status = 5;
pub(crate) const STATE: Status = 6;
pub(crate) const TOKENIZER: Status = 7;
pub(crate) const BACKEND: Status = 8;
pub(crate) const PANIC: Status = 99;

/// A failure whose text is already that of the last error.
#[derive(Debug)]
pub(crate) struct Failed(Status);

pub(crate) type Result<T = ()> = std::result::Result<T, Failed>;

/// Longer texts are cut: a path may have 4,096 bytes, and what is wrong comes after it.
const TEXT_BYTES: usize = 6144;

struct Text {
    bytes: [u8; TEXT_BYTES],
    size: usize,
    /// The text was written by a panic of the present call.
    of_panic: bool,
    #[cfg(feature = "test-hooks")]
    panic_at: Option<PanicAt>,
}

thread_local! {
    /// Whether this thread is in a function of this library, and not in a callback of it.
    static INSIDE: Cell<bool> = const { Cell::new(false) };

    static LAST: RefCell<Text> = const {
        RefCell::new(Text {
            bytes: [0; TEXT_BYTES],
            size: 0,
            of_panic: false,
            #[cfg(feature = "test-hooks")]
            panic_at: None,
        })
    };
}

impl Text {
    fn clear(&mut self) {
        self.size = 0;
        self.bytes[0] = 0;
        self.of_panic = false;
    }
}

impl Write for Text {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for c in text.chars() {
            // The caller gets a C string.
            let c = if c == '\0' {
                char::REPLACEMENT_CHARACTER
            } else {
                c
            };
            if self.size + c.len_utf8() >= TEXT_BYTES {
                break;
            }
            c.encode_utf8(&mut self.bytes[self.size..]);
            self.size += c.len_utf8();
        }
        self.bytes[self.size] = 0;
        Ok(())
    }
}

/// A failure with its text.
pub(crate) fn fail(status: Status, text: fmt::Arguments<'_>) -> Failed {
    LAST.with_borrow_mut(|last| {
        last.clear();
        // Writing to the buffer cannot fail.
        let _ = last.write_fmt(text);
    });
    Failed(status)
}

/// [`fail`] for what the caller did wrong.
pub(crate) fn wrong(text: fmt::Arguments<'_>) -> Failed {
    fail(ARGUMENT, text)
}

impl From<engine::Error> for Failed {
    fn from(error: engine::Error) -> Self {
        let status = match error.kind() {
            ErrorKind::Argument => ARGUMENT,
            ErrorKind::Io => IO,
            ErrorKind::Format => FORMAT,
            ErrorKind::Unsupported => UNSUPPORTED,
            ErrorKind::Memory => MEMORY,
            ErrorKind::State => STATE,
            ErrorKind::Tokenizer => TOKENIZER,
            ErrorKind::Backend => BACKEND,
            // A kind that this library does not know yet.
            _ => UNSUPPORTED,
        };
        fail(status, format_args!("{error}"))
    }
}

/// A time on one side of the border; when it is dropped, also by a panic, the thread is where it was.
struct Side {
    before: bool,
}

impl Side {
    fn inside(is_inside: bool) -> Self {
        Side {
            before: INSIDE.replace(is_inside),
        }
    }
}

impl Drop for Side {
    fn drop(&mut self) {
        INSIDE.set(self.before);
    }
}

/// Runs a callback of the caller: what panics there is none of ours.
pub(crate) fn outside<T>(callback: impl FnOnce() -> T) -> T {
    let _side = Side::inside(false);
    callback()
}

/// Runs the body of a function: `work` fails with a status, and so does a panic.
pub(crate) fn fence(work: impl FnOnce() -> Result) -> Status {
    silence_panics();
    let _side = Side::inside(true);
    LAST.with_borrow_mut(Text::clear);
    let result = catch_unwind(AssertUnwindSafe(|| {
        #[cfg(feature = "test-hooks")]
        panic_if_asked(PanicAt::Fence);
        work()
    }));
    match result {
        Ok(Ok(())) => {
            // A callback may have made a call that failed.
            LAST.with_borrow_mut(Text::clear);
            OK
        }
        Ok(Err(Failed(status))) => status,
        Err(panic) => {
            note_panic(&*panic, None);
            PANIC
        }
    }
}

/// For functions without a status: a panic while freeing leaves no one to tell.
pub(crate) fn fence_quietly(work: impl FnOnce()) {
    silence_panics();
    let _side = Side::inside(true);
    let _ = catch_unwind(AssertUnwindSafe(work));
}

/// The text of the last error of this thread, NUL-terminated.
pub(crate) fn last_error() -> *const c_char {
    LAST.with_borrow(|last| last.bytes.as_ptr().cast())
}

/// The default hook prints; ours keeps the text of our own panics, and leaves all others to the hook that was
/// there before. The shared library has a hook to itself. Static libraries written in Rust share one when they are linked
/// into one program, because they share the standard library; so ours is not the only code whose panics come here.
fn silence_panics() {
    static SILENCED: Once = Once::new();
    // A thread that is panicking must not change the hook; then a later call does.
    if SILENCED.is_completed() || thread::panicking() {
        return;
    }
    SILENCED.call_once(|| {
        let before = take_hook();
        set_hook(Box::new(move |panic| match is_ours() {
            true => note_panic(panic.payload(), panic.location()),
            false => before(panic),
        }));
    });
}

/// Whether what happens on this thread now is work of this library.
fn is_ours() -> bool {
    let is_worker = |name: &str| name.starts_with(THREAD_NAME);
    INSIDE.get() || thread::current().name().is_some_and(is_worker)
}

/// Writes the text of a panic, once for each: the hook knows the place, but in a worker thread it
/// writes to that thread's text.
fn note_panic(payload: &(dyn Any + Send), place: Option<&std::panic::Location<'_>>) {
    let text = payload
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| payload.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("no text");
    LAST.with(|last| {
        // A panic while the text is being written keeps what is there.
        let Ok(mut last) = last.try_borrow_mut() else {
            return;
        };
        if last.of_panic && place.is_none() {
            return;
        }
        last.clear();
        last.of_panic = true;
        let _ = write!(last, "a bug in rwkv-edge: {text}");
        if let Some(place) = place {
            let _ = write!(last, " ({place})");
        }
    });
}

/// Where a test wants a panic.
#[cfg(feature = "test-hooks")]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PanicAt {
    Fence,
    Session,
}

/// Makes the next call of this thread that comes to this place panic.
#[cfg(feature = "test-hooks")]
pub(crate) fn panic_next(place: PanicAt) {
    LAST.with_borrow_mut(|last| last.panic_at = Some(place));
}

#[cfg(feature = "test-hooks")]
pub(crate) fn panic_if_asked(place: PanicAt) {
    let asked = LAST.with_borrow_mut(|last| last.panic_at.take_if(|at| *at == place));
    assert!(asked.is_none(), "the test asked for it");
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    /// What came to the hook that was there before ours.
    static HEARD: Mutex<Vec<String>> = Mutex::new(Vec::new());

    fn heard() -> Vec<String> {
        std::mem::take(&mut HEARD.lock().expect("no panic meanwhile"))
    }

    fn panics(text: &'static str) {
        let caught = catch_unwind(|| panic!("{text}"));
        assert!(caught.is_err());
    }

    /// All in one test: the hook belongs to the whole process, and so does that of another library which shares it.
    #[test]
    fn only_our_own_panics_are_silent() {
        set_hook(Box::new(|panic| {
            let text = panic.payload().downcast_ref::<String>().cloned();
            HEARD
                .lock()
                .expect("no panic meanwhile")
                .extend(text.filter(|text| text.starts_with("of ")));
        }));
        assert_eq!(fence(|| Ok(())), OK);
        panics("of another library");
        assert_eq!(heard(), ["of another library"]);

        assert_eq!(fence(|| panic!("{}", "of ours")), PANIC);
        fence_quietly(|| panic!("{}", "of ours while freeing"));
        let worker = thread::Builder::new().name(format!("{THREAD_NAME}1"));
        let worker = worker.spawn(|| panics("of a worker")).expect("a thread");
        worker.join().expect("its panic was caught");
        assert_eq!(heard(), [""; 0]);

        // A callback is the caller's, and what it calls of this library is ours again.
        let status = fence(|| {
            outside(|| {
                panics("of a callback");
                assert_eq!(fence(|| panic!("{}", "of ours in a callback")), PANIC);
                panics("of a callback that goes on");
            });
            panic!("{}", "of ours behind it");
        });
        assert_eq!(status, PANIC);
        assert_eq!(heard(), ["of a callback", "of a callback that goes on"]);

        panics("of another library again");
        let other = thread::spawn(|| panics("of another thread"));
        other.join().expect("its panic was caught");
        assert_eq!(heard(), ["of another library again", "of another thread"]);
    }
}
