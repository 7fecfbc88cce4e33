//! Sessions: feeding tokens, sampling, generating, and the state as bytes.
//!
//! A session allocates in [`rwkv_edge_session_new`] and, the texts of `generate` aside, never again.
//! This module holds `unsafe` code: pointers from C (see `lib.rs`).

use std::cell::UnsafeCell;
use std::ffi::{c_char, c_void};
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicU8, Ordering};

use engine::{GenerateOptions, Sampler, Tokens};

use crate::arguments::{copy_out, elements, object, room_for, versioned, Buffer, Out};
use crate::fence::{fail, fence, fence_quietly, outside, wrong, Result, Status, PANIC};
use crate::model::{check_tokens, Model};
use crate::types::{OnText, Sampling};

/// `rwkv_edge_session`
pub struct Session {
    /// [`IDLE`], [`BUSY`] or [`BROKEN`]. A session belongs to one thread at a time; this tells a second
    /// one, or a callback of `generate` that comes back to its own session.
    use_state: AtomicU8,
    parts: UnsafeCell<Parts>,
}

struct Parts {
    session: engine::Session,
    sampler: Sampler,
}

const IDLE: u8 = 0;
const BUSY: u8 = 1;
/// A panic left it in the middle of something.
const BROKEN: u8 = 2;

/// Runs `work` with a session that no one else uses meanwhile, and whose state is one: after a device has failed in the
/// middle of an eval it is not.
///
/// # Safety
/// The pointer is NULL or to a session that has not been freed.
unsafe fn with_session(pointer: *const Session, work: impl FnOnce(&mut Parts) -> Result) -> Result {
    // SAFETY: the caller's promise is the same.
    unsafe {
        with_any_session(pointer, |parts| {
            parts.session.state().check()?;
            work(parts)
        })
    }
}

/// [`with_session`] for work that gives the session another state.
///
/// # Safety
/// As for [`with_session`].
unsafe fn with_any_session(
    pointer: *const Session,
    work: impl FnOnce(&mut Parts) -> Result,
) -> Result {
    // SAFETY: the caller's promise is the same.
    let session = unsafe { object(pointer, "session") }?;
    let order = (Ordering::Acquire, Ordering::Relaxed);
    let taken = session
        .use_state
        .compare_exchange(IDLE, BUSY, order.0, order.1);
    match taken {
        Ok(_) => {}
        Err(BROKEN) => {
            let text = format_args!("a bug of rwkv-edge left this session broken: only free it");
            return Err(fail(PANIC, text));
        }
        Err(_) => return Err(wrong(format_args!("the session is in use by another call"))),
    }
    let mut holder = Holder {
        session,
        then: BROKEN,
    };
    #[cfg(feature = "test-hooks")]
    crate::fence::panic_if_asked(crate::fence::PanicAt::Session);
    // SAFETY: the exchange above lets in only one at a time, until the holder is dropped.
    let result = work(unsafe { &mut *session.parts.get() });
    holder.then = IDLE;
    result
}

/// Gives a session back when dropped, also by a panic.
struct Holder<'a> {
    session: &'a Session,
    then: u8,
}

impl Drop for Holder<'_> {
    fn drop(&mut self) {
        self.session.use_state.store(self.then, Ordering::Release);
    }
}

/// A session at the empty state, with all memory that it will need.
#[no_mangle]
pub unsafe extern "C" fn rwkv_edge_session_new(
    model: *const Model,
    session: *mut *mut Session,
) -> Status {
    fence(|| {
        let out = Out::new(session, "session")?;
        // SAFETY: the pointers are what the header says, by the caller's promise.
        let model = unsafe { object(model, "model") }?;
        let (session, sampler) = engine::Session::with_all_memory(&model.0)?;
        let session = Box::new(Session {
            use_state: AtomicU8::new(IDLE),
            parts: UnsafeCell::new(Parts { session, sampler }),
        });
        // SAFETY: as above.
        unsafe { out.write(Box::into_raw(session)) };
        Ok(())
    })
}

/// Back to the empty state; the sampling settings stay.
#[no_mangle]
pub unsafe extern "C" fn rwkv_edge_session_reset(session: *mut Session) -> Status {
    // SAFETY: the pointer is what the header says, by the caller's promise.
    let reset = || unsafe {
        with_any_session(session, |parts| {
            parts.session.reset();
            parts.sampler.reset();
            Ok(())
        })
    };
    fence(reset)
}

/// Gives a session back. From within a callback of its own `generate` it does nothing.
#[no_mangle]
pub unsafe extern "C" fn rwkv_edge_session_free(session: *mut Session) {
    if session.is_null() {
        return;
    }
    fence_quietly(|| {
        // SAFETY: made by `rwkv_edge_session_new`, and not freed yet by the caller's promise.
        let is_busy = unsafe { &*session }.use_state.load(Ordering::Acquire) == BUSY;
        if !is_busy {
            // SAFETY: as above; nobody uses it.
            drop(unsafe { Box::from_raw(session) });
        }
    });
}

/// Feeds tokens.
#[no_mangle]
pub unsafe extern "C" fn rwkv_edge_eval(
    session: *mut Session,
    tokens: *const u32,
    count: usize,
    logits: *mut f32,
) -> Status {
    // SAFETY: the pointers are what the header says, by the caller's promise.
    let eval = || unsafe {
        let tokens = elements(tokens, count, "tokens")?;
        if !logits.is_aligned() {
            return Err(wrong(format_args!(
                "logits is not aligned as floats must be"
            )));
        }
        with_session(session, |Parts { session, .. }| {
            check_tokens(session.model(), tokens)?;
            if !tokens.is_empty() {
                session.eval(tokens)?;
            }
            match (session.logits(), logits.is_null()) {
                (_, true) => {}
                (Some(row), false) => copy_out(row, logits),
                (None, false) => return Err(nothing_fed()),
            }
            Ok(())
        })
    };
    fence(eval)
}

fn nothing_fed() -> crate::fence::Failed {
    wrong(format_args!("no token has been fed, expected at least one"))
}

/// Sets how tokens are chosen from here on.
#[no_mangle]
pub unsafe extern "C" fn rwkv_edge_set_sampling(
    session: *mut Session,
    sampling: *const Sampling,
) -> Status {
    // SAFETY: the pointers are what the header says, by the caller's promise; any bits are valid in the
    // struct's fields.
    let set = || unsafe {
        let given: Sampling = versioned(sampling, "sampling")?;
        let (n_banned, n_uncounted) = (given.n_banned_tokens, given.n_uncounted_tokens);
        let banned = copied(given.banned_tokens, n_banned, "banned_tokens")?;
        let uncounted = copied(given.uncounted_tokens, n_uncounted, "uncounted_tokens")?;
        with_session(session, |parts| {
            let options = given
                .options()?
                .banned_tokens(banned)
                .uncounted_tokens(uncounted);
            Ok(parts.sampler.set_options(options)?)
        })
    };
    fence(set)
}

/// A list of tokens, whose length is the caller's, so that there may be no memory for it.
///
/// # Safety
/// As for [`elements`].
unsafe fn copied(tokens: *const u32, n_tokens: u32, name: &str) -> Result<Vec<u32>> {
    // SAFETY: the caller's promise is the same.
    let tokens = unsafe { elements(tokens, n_tokens as usize, name) }?;
    // Every copy of the sampler has the list, too.
    room_for(2 * size_of_val(tokens), name)?;
    Ok(tokens.to_vec())
}

/// Draws the next token, and counts it for the penalties.
#[no_mangle]
pub unsafe extern "C" fn rwkv_edge_sample(session: *mut Session, token: *mut u32) -> Status {
    // SAFETY: the pointers are what the header says, by the caller's promise.
    let sample = || unsafe {
        let out = Out::new(token, "token")?;
        with_session(session, |Parts { session, sampler }| {
            let logits = session.logits().ok_or_else(nothing_fed)?;
            let token = sampler.sample(logits);
            sampler.accept(token);
            out.write(token);
            Ok(())
        })
    };
    fence(sample)
}

/// Feeds a prompt and generates text.
#[no_mangle]
pub unsafe extern "C" fn rwkv_edge_generate(
    session: *mut Session,
    prompt: *const c_char,
    prompt_size: usize,
    max_tokens: u32,
    on_text: Option<OnText>,
    user: *mut c_void,
) -> Status {
    // SAFETY: the pointers are what the header says, by the caller's promise.
    let generate = || unsafe {
        let prompt = elements(prompt.cast::<u8>(), prompt_size, "prompt")?;
        with_session(session, |parts| {
            generate(
                parts,
                prompt,
                max_tokens,
                on_text.is_some(),
                |text| match on_text {
                    Some(on_text) => outside(|| on_text(text.as_ptr().cast(), text.len(), user)),
                    None => true,
                },
            )
        })
    };
    fence(generate)
}

/// The work of [`rwkv_edge_generate`]. `on_text` returns whether to go on.
fn generate(
    Parts { session, sampler }: &mut Parts,
    prompt: &[u8],
    max_tokens: u32,
    wants_text: bool,
    mut on_text: impl FnMut(&str) -> bool,
) -> Result {
    let model = session.model().clone();
    if wants_text {
        model.tokenizer()?;
    }
    let tokens = match prompt.is_empty() {
        true => Tokens::default(),
        false => model.tokenize(prompt, usize::MAX)?,
    };
    if tokens.is_empty() && session.logits().is_none() {
        let text = format_args!("the prompt is empty and no token has been fed, expected one");
        return Err(wrong(text));
    }
    // Turning tokens into text may fail with some tokenizers, and a call that fails changes nothing.
    let row = session.logits().unwrap_or_default();
    // Of the sampler at most 16 bytes a token of the vocabulary, and its lists of tokens.
    let options = sampler.options();
    let lists = [&options.banned_tokens[..], &options.uncounted_tokens];
    let bytes =
        size_of_val(row) + 16 * model.n_vocab() + lists.map(size_of_val).iter().sum::<usize>();
    room_for(bytes, "a copy of the session")?;
    let (logits, sampler_before) = (row.to_vec(), sampler.clone());
    let before = (session.state().try_clone()?, logits, sampler_before);
    let options = GenerateOptions::new().max_new_tokens(max_tokens as usize);
    let mut goes_on = true;
    let mut work = || {
        if !tokens.is_empty() {
            session.eval(&tokens)?;
        }
        session.generate(sampler, &options, |text| {
            if !text.is_empty() && goes_on {
                goes_on = on_text(text);
            }
            match goes_on {
                true => ControlFlow::Continue(()),
                false => ControlFlow::Break(()),
            }
        })
    };
    if let Err(error) = work() {
        let (state, logits, sampler_before) = before;
        *sampler = sampler_before;
        // Where a device fails here, too, the state is undefined from now on, as in eval. Why the call failed is the
        // first error.
        let _ = session.restore(&state, &logits);
        return Err(error.into());
    }
    Ok(())
}

/// The state with the last output row, as bytes.
#[no_mangle]
pub unsafe extern "C" fn rwkv_edge_state_save(
    session: *const Session,
    buffer: *mut c_void,
    capacity: usize,
    size: *mut usize,
) -> Status {
    // SAFETY: the pointers are what the header says, by the caller's promise.
    let save = || unsafe {
        let is_wanted = !buffer.is_null();
        let buffer = Buffer::new(buffer.cast::<u8>(), capacity, size, ("buffer", "size"))?;
        with_session(session, |Parts { session, .. }| {
            if is_wanted {
                // Before anything is written: a device may not give its part, or it is not finite.
                session.check_savable()?;
            }
            buffer.fill(session.saved_state_size(), |bytes| {
                Ok(session.save_state_to(bytes)?)
            })
        })
    };
    fence(save)
}

/// Goes on from saved bytes. The sampler stays as it is.
#[no_mangle]
pub unsafe extern "C" fn rwkv_edge_state_load(
    session: *mut Session,
    buffer: *const c_void,
    size: usize,
) -> Status {
    // SAFETY: the pointers are what the header says, by the caller's promise.
    let load = || unsafe {
        let bytes = elements(buffer.cast::<u8>(), size, "buffer")?;
        if buffer.is_null() {
            return Err(wrong(format_args!("buffer is NULL")));
        }
        with_any_session(session, |parts| Ok(parts.session.load_state_from(bytes)?))
    };
    fence(load)
}
