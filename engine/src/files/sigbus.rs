//! What happens when bytes of a mapped file cannot be read, because it was cut or its disk failed: the system
//! sends SIGBUS to the thread that touches them. The handler here puts zeros in place of the mapping and marks it,
//! and whoever read it looks at the mark.
//!
//! This module holds `unsafe` code: a signal handler, and pages under memory that others have references to. Its
//! facts:
//! * The handler uses atomics, `mmap`, `sigaction`, `pthread_sigmask` and `raise`: nothing else, so that it may
//!   interrupt anything. It keeps `errno`, waits for nobody, and may run on any number of threads at once.
//! * It changes mappings that are in the list, and no other address. One leaves the list before it is unmapped, and
//!   waits until no handler is at work that may have found it there.
//! * The whole mapping is replaced, not a page: one fault for a file instead of one a page, no limit on the number of
//!   mappings is met, and the pages' size does not matter, but for the end of the mapping. Where the system refuses that,
//!   as it may a large mapping when all memory is to be locked, it is the page of the fault.

use std::ffi::{c_int, c_void};
use std::fs::File;
use std::mem;
use std::os::fd::AsRawFd;
use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use memmap2::Mmap;

use super::watch::Watch;
use crate::error::{Error, ErrorKind, Result};

#[cfg(target_os = "android")]
use libc::__errno as errno_location;
#[cfg(not(target_os = "android"))]
use libc::__errno_location as errno_location;

/// A place in the list of mappings. Places are used again and never freed, so that the handler can walk them.
struct Place {
    next: Option<&'static Place>,
    /// Of whole pages, in bytes from address 0. `end` is 0 while there is no mapping here, and changes last.
    start: AtomicUsize,
    end: AtomicUsize,
    /// The size of its pages.
    page: AtomicUsize,
    /// The mark of the mapping, which lives as long as it is in the list.
    mark: AtomicPtr<AtomicBool>,
}

/// The first place.
static PLACES: AtomicPtr<Place> = AtomicPtr::new(ptr::null_mut());
/// Held by whoever changes the list; the handler does not.
static CHANGE: Mutex<()> = Mutex::new(());
/// Handlers that are walking the list.
static WALKERS: AtomicUsize = AtomicUsize::new(0);
/// What faults at other addresses are for; null stands for `SIG_DFL`.
static PREVIOUS: AtomicPtr<libc::sigaction> = AtomicPtr::new(ptr::null_mut());

/// A mapping in the list, until this is dropped. To be dropped before the mapping.
pub(super) struct Known {
    place: &'static Place,
    /// Has the mark.
    _watch: Watch,
}

impl Known {
    pub(super) fn new(map: &Mmap, file: &File, watch: Watch) -> Self {
        let page = page_size(file);
        let (start, len) = (map.as_ptr() as usize, map.len());
        let end = (start + len).next_multiple_of(page);
        let _held = CHANGE.lock().unwrap_or_else(PoisonError::into_inner);
        let place = free_place();
        let mark: *const AtomicBool = watch.flag();
        place.mark.store(mark.cast_mut(), Ordering::Relaxed);
        place.start.store(start / page * page, Ordering::Relaxed);
        place.page.store(page, Ordering::Relaxed);
        place.end.store(end, Ordering::Release);
        Known {
            place,
            _watch: watch,
        }
    }
}

impl Drop for Known {
    fn drop(&mut self) {
        let _held = CHANGE.lock().unwrap_or_else(PoisonError::into_inner);
        self.place.end.store(0, Ordering::SeqCst);
        // A handler that saw the end before says so before it looked: all of these operations have one order.
        // Nearly always there is none.
        while WALKERS.load(Ordering::SeqCst) != 0 {
            thread::sleep(Duration::from_micros(100));
        }
    }
}

fn first_place() -> Option<&'static Place> {
    // SAFETY: null or a place, which is never freed and changes by atomics only.
    unsafe { PLACES.load(Ordering::Acquire).as_ref() }
}

/// A place without a mapping. `CHANGE` is held.
fn free_place() -> &'static Place {
    let first = first_place();
    let mut at = first;
    while let Some(place) = at {
        if place.end.load(Ordering::Relaxed) == 0 {
            return place;
        }
        at = place.next;
    }
    let place = Box::leak(Box::new(Place {
        next: first,
        start: AtomicUsize::new(0),
        end: AtomicUsize::new(0),
        page: AtomicUsize::new(1),
        mark: AtomicPtr::new(ptr::null_mut()),
    }));
    PLACES.store(place, Ordering::Release);
    place
}

/// Of what pages a mapping of the file consists.
fn page_size(file: &File) -> usize {
    // SAFETY: plain numbers, of which all bits may be 0.
    let mut found: libc::statfs = unsafe { mem::zeroed() };
    // SAFETY: an open file, and room for the answer.
    let is_known = unsafe { libc::fstatfs(file.as_raw_fd(), &mut found) } == 0;
    if is_known && found.f_type as u32 == libc::HUGETLBFS_MAGIC as u32 {
        return found.f_bsize as usize;
    }
    // SAFETY: has no conditions.
    let page = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    usize::try_from(page).unwrap_or(4096)
}

/// Lets a mapped model file that shrinks, or whose disk fails, become an error instead of the end of the process:
/// installs a handler of SIGBUS, for this process and for good. Calling this again does nothing.
///
/// What reads such a file then fails with [`ErrorKind::Io`]: opening, forward passes, saving, converting. The
/// model keeps failing, and states that a pass was working on are [undefined](crate::State::check). Faults at
/// addresses that are not in a file mapped by this crate go to the handler that was there before, or end the
/// process as they do without one. Files that were opened before the call count, too.
///
/// Handlers belong to the program, so nothing else in this crate installs one: neither loading it nor opening a
/// model. A handler that is installed later replaces this one unless it passes on what is not its own. The
/// library that has this function must not be unloaded afterwards.
///
/// The system does not call the handler in a thread that blocks SIGBUS: a fault ends the process there. The threads of
/// a model block what the thread does that opens it, so neither that one nor those that use the model may.
///
/// # Errors
///
/// [`ErrorKind::Unsupported`] on systems other than Linux and Android, where nothing has changed.
pub fn install_sigbus_handler() -> Result<()> {
    static IS_INSTALLED: Mutex<bool> = Mutex::new(false);
    let mut is_installed = IS_INSTALLED.lock().unwrap_or_else(PoisonError::into_inner);
    if *is_installed {
        return Ok(());
    }
    let handler: extern "C" fn(c_int, *mut libc::siginfo_t, *mut c_void) = on_sigbus;
    // SAFETY: plain numbers, of which all bits may be 0.
    let mut ours: libc::sigaction = unsafe { mem::zeroed() };
    ours.sa_sigaction = handler as usize;
    // On the stack for signals where the thread has one: its own may be what is full.
    ours.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK | libc::SA_RESTART;
    // Known before the handler is there, so that it never lacks where to pass a fault on.
    let before = exchange_action(None)?;
    PREVIOUS.store(Box::leak(Box::new(before)), Ordering::Release);
    let replaced = exchange_action(Some(&ours))?;
    // Another thread may have installed one meanwhile.
    if replaced.sa_sigaction != before.sa_sigaction || replaced.sa_flags != before.sa_flags {
        PREVIOUS.store(Box::leak(Box::new(replaced)), Ordering::Release);
    }
    *is_installed = true;
    Ok(())
}

/// What SIGBUS did so far; from now on it does what is given.
fn exchange_action(new: Option<&libc::sigaction>) -> Result<libc::sigaction> {
    let new = new.map_or(ptr::null(), ptr::from_ref);
    // SAFETY: plain numbers, of which all bits may be 0; then structs of the system's, and a handler for which the facts
    // above hold.
    let (is_done, old) = unsafe {
        let mut old: libc::sigaction = mem::zeroed();
        (libc::sigaction(libc::SIGBUS, new, &mut old) == 0, old)
    };
    if is_done {
        return Ok(old);
    }
    let cause = std::io::Error::last_os_error();
    let text = format!("cannot install a handler of SIGBUS: {cause}");
    Err(Error::new(ErrorKind::Io, text).with_source(cause))
}

extern "C" fn on_sigbus(signal: c_int, info: *mut libc::siginfo_t, context: *mut c_void) {
    // SAFETY: the system gives a handler with SA_SIGINFO what happened.
    let (code, address) = unsafe { ((*info).si_code, (*info).si_addr() as usize) };
    // Not an address that is merely not aligned, which would be the same in other pages.
    let is_lost_page = matches!(
        code,
        libc::BUS_ADRERR | libc::BUS_OBJERR | libc::BUS_MCEERR_AR
    );
    if is_lost_page && replace_mapping_of(address) {
        return;
    }
    // SAFETY: as the system gave them.
    unsafe { pass_on(signal, info, context) };
}

/// Whether the address is in a mapping of the list, which then is one of zeros.
fn replace_mapping_of(address: usize) -> bool {
    WALKERS.fetch_add(1, Ordering::SeqCst);
    let mut is_replaced = false;
    let mut at = first_place();
    while let Some(place) = at {
        // Where there is an end, the rest belongs to it, and stays as long as this walk is counted.
        let end = place.end.load(Ordering::SeqCst);
        let start = place.start.load(Ordering::Relaxed);
        if start <= address && address < end {
            // SAFETY: the mark lives as long as the mapping is in the list, in which it stays while this walks.
            unsafe { (*place.mark.load(Ordering::Relaxed)).store(true, Ordering::SeqCst) };
            let page = place.page.load(Ordering::Relaxed);
            is_replaced = put_zeros(start, end - start) || put_zeros(address / page * page, page);
            break;
        }
        at = place.next;
    }
    WALKERS.fetch_sub(1, Ordering::SeqCst);
    is_replaced
}

/// Replaces whole pages by such that are all 0, as read-only as those.
fn put_zeros(start: usize, len: usize) -> bool {
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED | libc::MAP_NORESERVE;
    // SAFETY: the pages are those of a mapping of this crate that stays until the handler has ended. Bytes under
    // references change, as they did when the file shrank, to ones that are valid for every type read from files,
    // and nothing that was made of them is used: the mark, which is set before, is looked at first.
    unsafe {
        let errno = *errno_location();
        let at = libc::mmap(
            ptr::with_exposed_provenance_mut(start),
            len,
            libc::PROT_READ,
            flags,
            -1,
            0,
        );
        *errno_location() = errno;
        at != libc::MAP_FAILED
    }
}

/// Gives a signal to whom it would have gone without this handler.
///
/// # Safety
/// Called by a handler with its arguments.
unsafe fn pass_on(signal: c_int, info: *mut libc::siginfo_t, context: *mut c_void) {
    // SAFETY: the caller's promise. A fault comes again as soon as the handler has returned, a signal that was
    // sent does not. What is stored is null or a struct that is never freed, which holds a handler of the type
    // that its flags say; it runs with the signals blocked that it asked for, up to the end of this one.
    unsafe {
        let comes_again = (*info).si_code > 0 && (*info).si_code != libc::BUS_MCEERR_AO;
        let previous = PREVIOUS.load(Ordering::Acquire).as_ref();
        let action = previous.map_or(libc::SIG_DFL, |previous| previous.sa_sigaction);
        let (flags, previous) = match previous {
            _ if action == libc::SIG_IGN && !comes_again => return,
            // The system does not ignore faults.
            Some(previous) if action != libc::SIG_DFL && action != libc::SIG_IGN => {
                (previous.sa_flags, previous)
            }
            _ => {
                libc::signal(signal, libc::SIG_DFL);
                if !comes_again {
                    libc::raise(signal);
                }
                return;
            }
        };
        libc::pthread_sigmask(libc::SIG_BLOCK, &previous.sa_mask, ptr::null_mut());
        if flags & libc::SA_NODEFER != 0 {
            let mut own: libc::sigset_t = mem::zeroed();
            libc::sigaddset(&mut own, signal);
            libc::pthread_sigmask(libc::SIG_UNBLOCK, &own, ptr::null_mut());
        }
        if flags & libc::SA_RESETHAND != 0 {
            PREVIOUS.store(ptr::null_mut(), Ordering::Release);
        }
        if flags & libc::SA_SIGINFO != 0 {
            type Handler = extern "C" fn(c_int, *mut libc::siginfo_t, *mut c_void);
            mem::transmute::<usize, Handler>(action)(signal, info, context);
        } else {
            mem::transmute::<usize, extern "C" fn(c_int)>(action)(signal);
        }
    }
}
