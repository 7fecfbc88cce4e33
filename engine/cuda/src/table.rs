//! The table: what the host calls. Everything that comes from outside is checked here.

mod host;

use std::ffi::{c_char, CStr};
use std::ptr::null;
use std::sync::Arc;

use rwkv_edge_plugin as abi;

use crate::device;
use crate::driver::{self, Context};
use crate::error::{answer, last, Failure, Result};
use crate::forward::{self, Input, Output, Span};
use crate::limits;
use crate::options::{ARCHITECTURE, QUANTS};
use crate::stage::{self, Stage, State};
use crate::tensor::{Source, TensorId};
use host::{options, parts, read, slice, slice_mut, text, write};

/// The static table, and lists of names, may be read from any thread: nothing in them changes.
struct Shared<T>(T);

// SAFETY: it holds functions and addresses of static text, and is never written.
unsafe impl Sync for Shared<abi::Table> {}
// SAFETY: as above.
unsafe impl<const N: usize> Sync for Shared<[*const c_char; N]> {}

const NAME: &CStr = c"cuda";
const BUILD: &CStr =
    match CStr::from_bytes_with_nul(concat!(env!("CARGO_PKG_VERSION"), "\0").as_bytes()) {
        Ok(text) => text,
        Err(_) => c"",
    };

static ARCHITECTURE_NAMES: Shared<[*const c_char; 2]> = Shared([ARCHITECTURE.as_ptr(), null()]);
static QUANT_NAMES: Shared<[*const c_char; QUANTS.len() + 1]> =
    Shared([QUANTS[0].0.as_ptr(), QUANTS[1].0.as_ptr(), null()]);

static TABLE: Shared<abi::Table> = Shared(abi::Table {
    version: abi::VERSION,
    struct_size: size_of::<abi::Table>() as u32,
    name: NAME.as_ptr(),
    build: BUILD.as_ptr(),
    architectures: ARCHITECTURE_NAMES.0.as_ptr(),
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
    reserved: [std::ptr::null_mut(); 8],
});

/// The one exported symbol: see `rwkv_edge_plugin.h`.
///
/// # Safety
///
/// None is needed: it reads a number and gives an address of static memory.
#[no_mangle]
pub unsafe extern "C" fn rwkv_edge_plugin_v2(host_version: u32) -> *const abi::Table {
    match host_version {
        abi::VERSION => &TABLE.0,
        _ => null(),
    }
}

/// # Safety
///
/// `pointer` is null or came from [`stage_new`] and was not freed.
unsafe fn stage_of<'a>(pointer: *const abi::Stage) -> Result<&'a Arc<Stage>> {
    // SAFETY: stage_new hands out boxes of Arc<Stage>.
    let stage = unsafe { pointer.cast::<Arc<Stage>>().as_ref() };
    stage.ok_or_else(|| Failure::argument("the stage is null"))
}

/// # Safety
///
/// `pointer` is null or came from [`state_new`] and was not freed.
unsafe fn state_of<'a>(pointer: *const abi::State) -> Result<&'a State> {
    // SAFETY: state_new hands out boxes of State.
    let state = unsafe { pointer.cast::<State>().as_ref() };
    state.ok_or_else(|| Failure::argument("the state is null"))
}

unsafe extern "C" fn device_count(count: *mut u32) -> abi::Status {
    answer(|| {
        // SAFETY: the host gives room for one number, or null.
        let count = unsafe { slice_mut("count", count, 1)? };
        count[0] = driver::device_count()?;
        Ok(())
    })
}

unsafe extern "C" fn device_info(index: u32, info: *mut abi::Device) -> abi::Status {
    answer(|| {
        let context = Context::new(index)?;
        let (free_bytes, total_bytes) = context.memory()?;
        let device = abi::Device {
            struct_size: size_of::<abi::Device>() as u32,
            reserved: 0,
            total_bytes,
            free_bytes,
            quants: QUANT_NAMES.0.as_ptr(),
            name: fixed(&context.name()?),
            detail: fixed(&device::detail(&context)?),
        };
        // SAFETY: the host gives a struct that starts with its size, or null.
        unsafe { write("info", info, device) }
    })
}

/// Text for a field of a struct, cut where it is too long.
fn fixed(text: &str) -> [c_char; 96] {
    let mut out = [0; 96];
    for (to, &byte) in out[..95].iter_mut().zip(text.as_bytes()) {
        *to = byte as c_char;
    }
    out
}

unsafe extern "C" fn device_limits(index: u32, out: *mut abi::Limits) -> abi::Status {
    // SAFETY: the host gives a struct that starts with its size, or null.
    answer(|| unsafe { write("limits", out, limits::measure(index)?) })
}

unsafe extern "C" fn stage_estimate(
    options: *const abi::StageOptions,
    memory: *mut abi::Memory,
) -> abi::Status {
    // SAFETY: the host gives structs that start with their sizes, or null.
    answer(|| unsafe { write("memory", memory, stage::estimate(&self::options(options)?)?) })
}

unsafe extern "C" fn state_count(
    options: *const abi::StageOptions,
    count: *mut u64,
) -> abi::Status {
    answer(|| {
        // SAFETY: the host gives a struct that starts with its size, and room for one number, or null.
        let (options, count) = unsafe { (self::options(options)?, slice_mut("count", count, 1)?) };
        count[0] = stage::state_count(&options)?;
        Ok(())
    })
}

unsafe extern "C" fn stage_new(
    options: *const abi::StageOptions,
    out: *mut *mut abi::Stage,
) -> abi::Status {
    answer(|| {
        // SAFETY: the host gives a struct that starts with its size, and room for one pointer, or null.
        let (options, out) = unsafe { (self::options(options)?, slice_mut("stage", out, 1)?) };
        let stage = Arc::new(Stage::new(&options)?);
        out[0] = Box::into_raw(Box::new(stage)).cast();
        Ok(())
    })
}

unsafe extern "C" fn stage_tensor(
    stage: *mut abi::Stage,
    tensor: *const abi::Tensor,
) -> abi::Status {
    answer(|| {
        // SAFETY: the host gives a stage and a struct that starts with its size, or null; the struct says truly how
        // long its texts and arrays are.
        let (stage, tensor, name, quant, parts) = unsafe {
            let tensor = read("tensor", tensor)?;
            (
                stage_of(stage)?,
                tensor,
                text("name", tensor.name)?,
                text("quant", tensor.quant)?,
                parts(&tensor)?,
            )
        };
        let id = TensorId::new(&name, tensor.layer)?;
        let quants = (quant.as_str(), stage.options.quant);
        stage.put(id, &Source::new(id, &tensor, quants, &parts)?)
    })
}

unsafe extern "C" fn stage_finish(stage: *mut abi::Stage) -> abi::Status {
    // SAFETY: the host gives a stage or null.
    answer(|| unsafe { stage_of(stage)? }.finish())
}

unsafe extern "C" fn stage_memory(
    stage: *const abi::Stage,
    memory: *mut abi::Memory,
) -> abi::Status {
    // SAFETY: the host gives a stage and a struct that starts with its size, or null.
    answer(|| unsafe { write("memory", memory, stage_of(stage)?.memory()?) })
}

unsafe extern "C" fn stage_free(stage: *mut abi::Stage) {
    if !stage.is_null() {
        answer(|| {
            // SAFETY: it came from stage_new, and the host gives it up.
            drop(unsafe { Box::from_raw(stage.cast::<Arc<Stage>>()) });
            Ok(())
        });
    }
}

unsafe extern "C" fn state_new(stage: *mut abi::Stage, out: *mut *mut abi::State) -> abi::Status {
    answer(|| {
        // SAFETY: the host gives a stage and room for one pointer, or null.
        let (stage, out) = unsafe { (stage_of(stage)?, slice_mut("state", out, 1)?) };
        out[0] = Box::into_raw(Box::new(State::new(stage)?)).cast();
        Ok(())
    })
}

unsafe extern "C" fn state_write(
    state: *mut abi::State,
    numbers: *const f32,
    count: usize,
) -> abi::Status {
    answer(|| {
        // SAFETY: the host gives a state or null; nobody else uses it meanwhile.
        let state = unsafe { state_of(state)? };
        state.check_count(count)?;
        // SAFETY: the host gives `count` numbers, as many as a state has, or null.
        let numbers = unsafe { slice("numbers", numbers, count)? };
        state.write(numbers)
    })
}

unsafe extern "C" fn state_read(
    state: *const abi::State,
    numbers: *mut f32,
    count: usize,
) -> abi::Status {
    answer(|| {
        // SAFETY: the host gives a state or null.
        let state = unsafe { state_of(state)? };
        state.check_count(count)?;
        // SAFETY: the host gives room for `count` numbers, as many as a state has, or null.
        let numbers = unsafe { slice_mut("numbers", numbers, count)? };
        state.read(numbers)
    })
}

unsafe extern "C" fn state_copy(to: *mut abi::State, from: *const abi::State) -> abi::Status {
    // SAFETY: the host gives states or null; nobody else uses `to` meanwhile.
    answer(|| unsafe { state_of(to)?.copy_from(state_of(from)?) })
}

unsafe extern "C" fn state_free(state: *mut abi::State) {
    if !state.is_null() {
        answer(|| {
            // SAFETY: it came from state_new, and the host gives it up.
            drop(unsafe { Box::from_raw(state.cast::<State>()) });
            Ok(())
        });
    }
}

unsafe extern "C" fn state_logits(
    state: *const abi::State,
    logits: *mut f32,
    count: usize,
) -> abi::Status {
    answer(|| {
        // SAFETY: the host gives a state or null.
        let state = unsafe { state_of(state)? };
        state.check_logits(count)?;
        // SAFETY: the host gives room for `count` numbers, a row of logits, or null.
        let logits = unsafe { slice_mut("logits", logits, count)? };
        state.logits(logits)
    })
}

unsafe extern "C" fn forward(
    stages: *const *mut abi::Stage,
    n_stages: u32,
    batch: *const abi::Batch,
) -> abi::Status {
    answer(|| {
        // SAFETY: the host gives `n_stages` stages and a batch whose arrays are as large as it says, or null.
        unsafe {
            let stages = slice("stages", stages, n_stages as usize)?;
            let stages = stages.iter().map(|&stage| stage_of(stage));
            let stages: Vec<_> = stages.collect::<Result<_>>()?;
            forward_batch(&stages, &read("batch", batch)?)
        }
    })
}

/// # Safety
///
/// The arrays of `batch` are null or as large as it says, and nobody else uses the states meanwhile.
unsafe fn forward_batch(stages: &[&Arc<Stage>], batch: &abi::Batch) -> Result<()> {
    // SAFETY: the caller's promise.
    let spans = unsafe { slice("spans", batch.spans, batch.n_spans as usize)? };
    let span = |span: &abi::Span| {
        // SAFETY: the caller's promise; there is one state a stage.
        let states = unsafe { slice("states", span.states, stages.len())? };
        // SAFETY: the caller's promise.
        let states = states.iter().map(|&state| unsafe { state_of(state) });
        Ok(Span {
            states: states.collect::<Result<_>>()?,
            n_rows: span.n_rows,
            rows: span.rows,
        })
    };
    let spans: Vec<_> = spans.iter().map(span).collect::<Result<_>>()?;
    let n_rows: u64 = spans.iter().map(|span| u64::from(span.n_rows)).sum();
    let Some(last) = stages.last() else {
        return Err(Failure::argument("no stages"));
    };
    if n_rows != u64::from(batch.n_rows) {
        return Err(Failure::argument(format!(
            "{} rows, but the spans have {n_rows}",
            batch.n_rows
        )));
    }
    let (n_embd, n_vocab) = (last.options.n_embd as usize, last.options.n_vocab as usize);
    let (n_rows, n_asked) = (n_rows as usize, forward::n_outputs(&spans));
    // SAFETY: the caller's promise; the sizes are those of the table's description.
    let (input, mut output) = unsafe {
        let input = match batch.tokens.is_null() {
            false => Input::Tokens(slice("tokens", batch.tokens, n_rows)?),
            true => Input::Rows(slice("tokens and rows_in", batch.rows_in, n_rows * n_embd)?),
        };
        let numbers = |n: usize| slice_mut("numbers", batch.numbers, n);
        let of_rows = [abi::WRITE_HIDDEN, abi::WRITE_LOGITS, abi::WRITE_TOKENS];
        let output = match batch.write {
            abi::WRITE_NOTHING => Output::Nothing,
            // No row is asked for.
            write if of_rows.contains(&write) && n_asked == 0 && last.options.has_head => {
                Output::Nothing
            }
            abi::WRITE_ROWS => Output::Rows(numbers(n_rows * n_embd)?),
            abi::WRITE_HIDDEN => Output::Hidden(numbers(n_asked * n_embd)?),
            abi::WRITE_LOGITS => Output::Logits(numbers(n_asked * n_vocab)?),
            abi::WRITE_TOKENS => {
                Output::Tokens(slice_mut("tokens_out", batch.tokens_out, n_asked)?)
            }
            other => return Err(Failure::argument(format!("write {other}"))),
        };
        (input, output)
    };
    forward::forward(stages, &spans, &input, &mut output)
}

unsafe extern "C" fn last_error(out: *mut c_char, capacity: usize) -> usize {
    let text = last();
    if !out.is_null() && capacity > 0 {
        let n = text.len().min(capacity - 1);
        // SAFETY: the host gives room for `capacity` bytes.
        unsafe {
            std::ptr::copy_nonoverlapping(text.as_ptr().cast(), out, n);
            out.add(n).write(0);
        }
    }
    text.len()
}
