//! A device plugin whose devices are two pieces of this machine's memory, and whose arithmetic is plain.
//!
//! It shows what docs/PLUGINS.md and the header say in as little code as that takes, and the tests of the
//! table run against it. It knows nothing of the engine. This file has the functions of the table: they
//! check what comes from the host, and let no panic out. `names.rs` has all that the host calls by names,
//! `lists.rs` what it can do, `options.rs` what stages there can be, `stage.rs` weights and states, `network.rs` the arithmetic,
//! `matrix.rs` the three ways in which matrices are stored.
//!
//! For tests of what can go wrong, environment variables change the plugin: CPUPLUG_DEVICES the number of
//! devices (0: none), CPUPLUG_FREE_BYTES the memory of each, CPUPLUG_QUANTS (f16,int8) what matrices they take,
//! CPUPLUG_ARCHITECTURES what they say that they run, CPUPLUG_STATE_MORE how many numbers too many a state has;
//! CPUPLUG_NO_DRIVER makes it fail as without a driver, CPUPLUG_BAD_TABLE gives a table that hosts must refuse.
//! With CPUPLUG_TELL_THREADS every forward pass says on stderr which thread it runs on. With CPUPLUG_FAIL_FORWARD=N
//! `forward` fails behind its work from the call on that is the N-th (from 0) since the variable is there; with
//! CPUPLUG_FAIL_STATES states are neither read, written nor copied.

mod lists;
mod matrix;
mod names;
mod network;
mod options;
mod stage;

pub(crate) use lists::{architectures, quants};

use std::cell::RefCell;
use std::ffi::{c_char, c_void, CStr};
use std::panic::{catch_unwind, AssertUnwindSafe};
use std::ptr::{null, null_mut};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::OnceLock;
use std::time::Instant;

use rwkv_edge_plugin as abi;

use options::Options;
use stage::{Given, Stage, State};

/// A status that is an error, and why.
pub(crate) struct Failed(abi::Status, String);

pub(crate) type Result<T = ()> = std::result::Result<T, Failed>;

pub(crate) fn wrong<T>(text: impl Into<String>) -> Result<T> {
    Err(Failed(abi::ERROR_ARGUMENT, text.into()))
}

pub(crate) fn unsupported<T>(text: impl Into<String>) -> Result<T> {
    Err(Failed(abi::ERROR_UNSUPPORTED, text.into()))
}

thread_local! {
    static LAST_ERROR: RefCell<String> = const { RefCell::new(String::new()) };
}

/// Bytes that stages and states have taken of each device.
pub(crate) static TAKEN: [AtomicU64; 2] = [AtomicU64::new(0), AtomicU64::new(0)];

/// What CPUPLUG_BAD_TABLE asks for is wrong with it.
fn table() -> Sealed {
    let wrong = std::env::var("CPUPLUG_BAD_TABLE").unwrap_or_default();
    let name = match wrong == "name" {
        true => c"Not a name",
        false => c"cpuplug",
    };
    Sealed(abi::Table {
        version: abi::VERSION + u32::from(wrong == "version"),
        struct_size: match wrong == "size" {
            true => 8,
            false => size_of::<abi::Table>() as u32,
        },
        name: name.as_ptr(),
        build: concat!(env!("CARGO_PKG_VERSION"), "\0").as_ptr().cast(),
        architectures: architectures().as_ptr(),
        device_count,
        device_info,
        device_limits,
        stage_estimate,
        state_count,
        stage_new,
        stage_tensor,
        stage_finish,
        stage_memory,
        stage_free,
        state_new,
        state_write,
        state_read,
        state_copy,
        state_free,
        state_logits,
        forward,
        last_error,
        reserved: [null_mut::<c_void>(); 8],
    })
}

struct Sealed(abi::Table);

// SAFETY: nothing writes to the table, and its pointers are to constants and functions.
unsafe impl Send for Sealed {}
// SAFETY: as above.
unsafe impl Sync for Sealed {}

/// The one symbol of a plugin.
#[no_mangle]
pub extern "C" fn rwkv_edge_plugin_v2(host_version: u32) -> *const abi::Table {
    static TABLE: OnceLock<Sealed> = OnceLock::new();
    let gives_none = std::env::var_os("CPUPLUG_BAD_TABLE").is_some_and(|wrong| wrong == "none");
    match host_version {
        abi::VERSION if !gives_none => &TABLE.get_or_init(table).0,
        _ => null(),
    }
}

/// Runs the work of a function of the table: keeps the text of an error, and makes one of a panic.
fn fence(work: impl FnOnce() -> Result) -> abi::Status {
    let result = catch_unwind(AssertUnwindSafe(work));
    let (status, text) = match result {
        Ok(Ok(())) => return abi::OK,
        Ok(Err(Failed(status, text))) => (status, text),
        Err(_) => (abi::ERROR_PANIC, "a panic".to_owned()),
    };
    LAST_ERROR.with(|last| *last.borrow_mut() = text);
    status
}

/// # Safety
/// The pointer is NULL or to a valid value that nobody writes to meanwhile.
unsafe fn reference<'a, T>(pointer: *const T, name: &str) -> Result<&'a T> {
    // SAFETY: the caller's promise is the same.
    match unsafe { pointer.as_ref() } {
        Some(value) => Ok(value),
        None => wrong(format!("{name} is NULL")),
    }
}

/// # Safety
/// The pointer is NULL or to a valid value that nobody else uses meanwhile.
unsafe fn exclusive<'a, T>(pointer: *mut T, name: &str) -> Result<&'a mut T> {
    // SAFETY: the caller's promise is the same.
    match unsafe { pointer.as_mut() } {
        Some(value) => Ok(value),
        None => wrong(format!("{name} is NULL")),
    }
}

/// # Safety
/// The pointer is NULL or to `len` values that nobody writes to meanwhile.
unsafe fn elements<'a, T>(pointer: *const T, len: usize, name: &str) -> Result<&'a [T]> {
    if pointer.is_null() {
        return wrong(format!("{name} is NULL"));
    }
    // SAFETY: not NULL, and the caller's promise is the rest.
    Ok(unsafe { std::slice::from_raw_parts(pointer, len) })
}

/// # Safety
/// The pointer is NULL or to `len` values that nobody else uses meanwhile.
unsafe fn elements_mut<'a, T>(pointer: *mut T, len: usize, name: &str) -> Result<&'a mut [T]> {
    if pointer.is_null() {
        return wrong(format!("{name} is NULL"));
    }
    // SAFETY: not NULL, and the caller's promise is the rest.
    Ok(unsafe { std::slice::from_raw_parts_mut(pointer, len) })
}

/// # Safety
/// The pointer is NULL or to a NUL-terminated text.
pub(crate) unsafe fn text(pointer: *const c_char, name: &str) -> Result<String> {
    if pointer.is_null() {
        return wrong(format!("{name} is NULL"));
    }
    // SAFETY: not NULL, and the caller's promise is the rest. What is not UTF-8 is no name that is known.
    Ok(unsafe { CStr::from_ptr(pointer) }
        .to_string_lossy()
        .into_owned())
}

/// Pairs of a name and a value.
///
/// # Safety
/// The pointer is NULL or to `len` elements, with names that are NULL or NUL-terminated.
pub(crate) unsafe fn named<T, V>(
    pointer: *const T,
    len: u32,
    what: &str,
    pair: impl Fn(&T) -> (*const c_char, V),
) -> Result<Vec<(String, V)>> {
    // SAFETY: the caller's promise is the same.
    let given = unsafe { elements(pointer, len as usize, what) }?;
    let pairs = given.iter().map(pair).map(|(name, value)| {
        // SAFETY: as above.
        Ok((unsafe { text(name, what) }?, value))
    });
    pairs.collect()
}

/// Structs of this version may grow in later ones, but never shrink.
pub(crate) fn check_size<T>(struct_size: u32, name: &str) -> Result {
    let expected = size_of::<T>();
    if (struct_size as usize) < expected {
        return wrong(format!(
            "{name}: struct_size is {struct_size}, expected {expected}"
        ));
    }
    Ok(())
}

fn setting(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

fn n_devices() -> Result<u32> {
    if std::env::var_os("CPUPLUG_NO_DRIVER").is_some() {
        let text = "no driver: CPUPLUG_NO_DRIVER is set";
        return Err(Failed(abi::ERROR_DEVICE, text.into()));
    }
    Ok(setting("CPUPLUG_DEVICES").map_or(TAKEN.len(), |n| (n as usize).min(TAKEN.len())) as u32)
}

pub(crate) fn check_device(device: u32) -> Result {
    let n = n_devices()?;
    if device >= n {
        let text = format!("no device {device}: there are {n}");
        return Err(Failed(abi::ERROR_DEVICE, text));
    }
    Ok(())
}

fn total_bytes() -> u64 {
    setting("CPUPLUG_FREE_BYTES").unwrap_or(4 << 30)
}

/// Takes memory of a device.
pub(crate) fn take(device: u32, bytes: u64) -> Result {
    let taken = TAKEN[device as usize].fetch_add(bytes, Ordering::Relaxed);
    if taken + bytes > total_bytes() {
        give_back(device, bytes);
        let text = format!(
            "{bytes} bytes on device {device}: {taken} are taken of {}",
            total_bytes()
        );
        return Err(Failed(abi::ERROR_MEMORY, text));
    }
    Ok(())
}

pub(crate) fn give_back(device: u32, bytes: u64) {
    TAKEN[device as usize].fetch_sub(bytes, Ordering::Relaxed);
}

/// Calls of `forward` since CPUPLUG_FAIL_FORWARD is set.
static FORWARDS: AtomicU64 = AtomicU64::new(0);

/// As a device that is lost on the way: the states have moved.
fn fail_forward() -> Result {
    let Some(good) = setting("CPUPLUG_FAIL_FORWARD") else {
        FORWARDS.store(0, Ordering::Relaxed);
        return Ok(());
    };
    match FORWARDS.fetch_add(1, Ordering::Relaxed) < good {
        true => Ok(()),
        false => lost("CPUPLUG_FAIL_FORWARD"),
    }
}

fn fail_states() -> Result {
    match std::env::var_os("CPUPLUG_FAIL_STATES") {
        None => Ok(()),
        Some(_) => lost("CPUPLUG_FAIL_STATES"),
    }
}

fn lost(variable: &str) -> Result {
    let text = format!("the device is lost: {variable} is set");
    Err(Failed(abi::ERROR_DEVICE, text))
}

unsafe extern "C" fn device_count(count: *mut u32) -> abi::Status {
    fence(|| {
        // SAFETY: NULL or valid, by the header.
        *unsafe { exclusive(count, "count") }? = n_devices()?;
        Ok(())
    })
}

unsafe extern "C" fn device_info(device: u32, info: *mut abi::Device) -> abi::Status {
    fence(|| {
        // SAFETY: NULL or valid, by the header.
        let info = unsafe { exclusive(info, "info") }?;
        check_size::<abi::Device>(info.struct_size, "info")?;
        check_device(device)?;
        let free = total_bytes().saturating_sub(TAKEN[device as usize].load(Ordering::Relaxed));
        *info = abi::Device {
            struct_size: info.struct_size,
            reserved: 0,
            total_bytes: total_bytes(),
            free_bytes: free,
            quants: quants().as_ptr(),
            name: fixed("a piece of memory"),
            detail: fixed("for tests of the table"),
        };
        Ok(())
    })
}

fn fixed(text: &str) -> [c_char; 96] {
    let mut chars = [0; 96];
    for (slot, byte) in chars[..95].iter_mut().zip(text.bytes()) {
        *slot = byte as c_char;
    }
    chars
}

unsafe extern "C" fn device_limits(device: u32, limits: *mut abi::Limits) -> abi::Status {
    fence(|| {
        // SAFETY: NULL or valid, by the header.
        let limits = unsafe { exclusive(limits, "limits") }?;
        check_size::<abi::Limits>(limits.struct_size, "limits")?;
        check_device(device)?;
        // What a careful plugin measures over about a second this one looks at once.
        let words = vec![1_u64; 1 << 20];
        let start = Instant::now();
        let sum: u64 = std::hint::black_box(&words).iter().sum();
        let seconds = start.elapsed().as_secs_f64().max(1e-9);
        std::hint::black_box(sum);
        let bytes_per_s = 8.0 * words.len() as f64 / seconds;
        limits.read_bytes_per_s = bytes_per_s;
        limits.macs_per_s = bytes_per_s;
        limits.step_seconds = 0.0;
        Ok(())
    })
}

unsafe extern "C" fn stage_estimate(
    options: *const abi::StageOptions,
    memory: *mut abi::Memory,
) -> abi::Status {
    fence(|| {
        // SAFETY: NULL or valid, by the header.
        let (options, memory) =
            unsafe { (reference(options, "options")?, exclusive(memory, "memory")?) };
        check_size::<abi::Memory>(memory.struct_size, "memory")?;
        // SAFETY: texts and arrays are as long as the options say, by the header.
        stage::estimate(&unsafe { Options::read(options) }?, memory);
        Ok(())
    })
}

unsafe extern "C" fn state_count(
    options: *const abi::StageOptions,
    count: *mut u64,
) -> abi::Status {
    fence(|| {
        // SAFETY: NULL or valid, by the header.
        let (options, count) =
            unsafe { (reference(options, "options")?, exclusive(count, "count")?) };
        // SAFETY: texts and arrays are as long as the options say, by the header.
        let n = stage::state_len(&unsafe { Options::read(options) }?) as u64;
        *count = n + setting("CPUPLUG_STATE_MORE").unwrap_or(0);
        Ok(())
    })
}

unsafe extern "C" fn stage_new(
    options: *const abi::StageOptions,
    stage: *mut *mut abi::Stage,
) -> abi::Status {
    fence(|| {
        // SAFETY: NULL or valid, by the header.
        let (options, out) =
            unsafe { (reference(options, "options")?, exclusive(stage, "stage")?) };
        // SAFETY: texts and arrays are as long as the options say, by the header.
        let options = unsafe { Options::read(options) }?;
        let stage = Box::new(Stage::new(options)?);
        *out = Box::into_raw(stage).cast();
        Ok(())
    })
}

unsafe extern "C" fn stage_tensor(
    stage: *mut abi::Stage,
    tensor: *const abi::Tensor,
) -> abi::Status {
    fence(|| {
        // SAFETY: NULL or valid, by the header; a stage was made by `stage_new`.
        let (stage, tensor) = unsafe {
            (
                reference(stage.cast::<Stage>(), "stage")?,
                reference(tensor, "tensor")?,
            )
        };
        check_size::<abi::Tensor>(tensor.struct_size, "tensor")?;
        // SAFETY: texts and arrays are as long as the tensor says, by the header.
        stage.add(&unsafe { Given::read(tensor) }?)
    })
}

unsafe extern "C" fn stage_finish(stage: *mut abi::Stage) -> abi::Status {
    fence(|| {
        // SAFETY: NULL or made by `stage_new`.
        unsafe { reference(stage.cast::<Stage>(), "stage") }?.finish()
    })
}

unsafe extern "C" fn stage_memory(
    stage: *const abi::Stage,
    memory: *mut abi::Memory,
) -> abi::Status {
    fence(|| {
        // SAFETY: NULL or valid, by the header.
        let (stage, memory) = unsafe {
            (
                reference(stage.cast::<Stage>(), "stage")?,
                exclusive(memory, "memory")?,
            )
        };
        check_size::<abi::Memory>(memory.struct_size, "memory")?;
        stage.memory(memory);
        Ok(())
    })
}

unsafe extern "C" fn stage_free(stage: *mut abi::Stage) {
    if !stage.is_null() {
        // SAFETY: made by `stage_new`, and freed once.
        drop(unsafe { Box::from_raw(stage.cast::<Stage>()) });
    }
}

unsafe extern "C" fn state_new(stage: *mut abi::Stage, state: *mut *mut abi::State) -> abi::Status {
    fence(|| {
        // SAFETY: NULL or valid, by the header.
        let (stage, out) = unsafe {
            (
                reference(stage.cast::<Stage>(), "stage")?,
                exclusive(state, "state")?,
            )
        };
        *out = Box::into_raw(Box::new(State::new(stage)?)).cast();
        Ok(())
    })
}

unsafe extern "C" fn state_write(
    state: *mut abi::State,
    numbers: *const f32,
    count: usize,
) -> abi::Status {
    fence(|| {
        fail_states()?;
        // SAFETY: NULL or valid, by the header.
        let state = unsafe { exclusive(state.cast::<State>(), "state") }?;
        check_count(count, state.numbers.len())?;
        // SAFETY: as above.
        state
            .numbers
            .copy_from_slice(unsafe { elements(numbers, count, "numbers") }?);
        Ok(())
    })
}

fn check_count(found: usize, expected: usize) -> Result {
    match found == expected {
        true => Ok(()),
        false => wrong(format!("count is {found}, expected {expected}")),
    }
}

unsafe extern "C" fn state_read(
    state: *const abi::State,
    numbers: *mut f32,
    count: usize,
) -> abi::Status {
    fence(|| {
        fail_states()?;
        // SAFETY: NULL or valid, by the header.
        let state = unsafe { reference(state.cast::<State>(), "state") }?;
        check_count(count, state.numbers.len())?;
        // SAFETY: as above.
        unsafe { elements_mut(numbers, count, "numbers") }?.copy_from_slice(&state.numbers);
        Ok(())
    })
}

unsafe extern "C" fn state_copy(to: *mut abi::State, from: *const abi::State) -> abi::Status {
    fence(|| {
        fail_states()?;
        if std::ptr::eq(to, from) {
            return Ok(());
        }
        // SAFETY: NULL or valid, by the header, and not the same.
        let (to, from) = unsafe {
            (
                exclusive(to.cast::<State>(), "to")?,
                reference(from.cast::<State>(), "from")?,
            )
        };
        to.copy_from(from)
    })
}

unsafe extern "C" fn state_free(state: *mut abi::State) {
    if !state.is_null() {
        // SAFETY: made by `state_new`, and freed once.
        drop(unsafe { Box::from_raw(state.cast::<State>()) });
    }
}

unsafe extern "C" fn state_logits(
    state: *const abi::State,
    logits: *mut f32,
    count: usize,
) -> abi::Status {
    fence(|| {
        fail_states()?;
        // SAFETY: NULL or valid, by the header.
        let state = unsafe { reference(state.cast::<State>(), "state") }?;
        check_count(count, state.n_vocab())?;
        if state.logits.is_empty() {
            return wrong("no logits or tokens were asked for of this state");
        }
        // SAFETY: as above.
        unsafe { elements_mut(logits, count, "logits") }?.copy_from_slice(&state.logits);
        Ok(())
    })
}

unsafe extern "C" fn forward(
    stages: *const *mut abi::Stage,
    n_stages: u32,
    batch: *const abi::Batch,
) -> abi::Status {
    fence(|| {
        // SAFETY: NULL or valid, by the header.
        let (pointers, batch) = unsafe {
            let pointers = elements(stages, n_stages as usize, "stages")?;
            (pointers, reference(batch, "batch")?)
        };
        check_size::<abi::Batch>(batch.struct_size, "batch")?;
        if std::env::var_os("CPUPLUG_TELL_THREADS").is_some() {
            // No number is given a second time.
            eprintln!("forward on {:?}", std::thread::current().id());
        }
        let stages = pointers.iter().map(|&stage| {
            // SAFETY: NULL or made by `stage_new`.
            unsafe { reference(stage.cast::<Stage>(), "a stage") }
        });
        let stages: Vec<&Stage> = stages.collect::<Result<_>>()?;
        // SAFETY: the header says that the batch's pointers are to as many elements as its sizes say, and
        // that nobody else uses its states.
        unsafe { network::forward(&stages, batch) }?;
        fail_forward()
    })
}

unsafe extern "C" fn last_error(text: *mut c_char, capacity: usize) -> usize {
    LAST_ERROR.with(|last| {
        let last = last.borrow();
        if !text.is_null() && capacity > 0 {
            let n = last.len().min(capacity - 1);
            for (i, byte) in last.bytes().take(n).chain([0]).enumerate() {
                // SAFETY: below `capacity`, which is how many bytes there are.
                unsafe { text.add(i).write(byte as c_char) };
            }
        }
        last.len()
    })
}
