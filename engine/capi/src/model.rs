//! Opening a model, facts about it, and text to tokens and back.
//!
//! This module holds `unsafe` code: pointers from C (see `lib.rs`).

use std::ffi::{c_char, c_void};

use crate::arguments::{check_size, elements, object, path, versioned, Buffer, Out};
use crate::fence::{fence, fence_quietly, wrong, Result, Status};
use crate::types::{code_of_quant, quant_of_code, ModelInfo, Options, FLAG_NO_MMAP};

/// `rwkv_edge_model`
pub struct Model(pub(crate) engine::Model);

/// Reads and checks options; NULL is the default.
///
/// # Safety
/// The pointer is NULL or points to a struct as its first field says, all set, with valid strings.
unsafe fn options(pointer: *const Options) -> Result<engine::Options> {
    if pointer.is_null() {
        return Ok(engine::Options::default());
    }
    // SAFETY: the caller's promise is the same.
    let given = unsafe { versioned(pointer, "options") }?;
    let unknown = given.flags & !FLAG_NO_MMAP;
    if unknown != 0 {
        let text = format_args!("options: flags {unknown:#x} are not known to this version");
        return Err(wrong(text));
    }
    let tokenizer = match given.tokenizer.is_null() {
        true => None,
        // SAFETY: NUL-terminated by the caller's promise.
        false => Some(unsafe { path(given.tokenizer, "options: tokenizer") }?),
    };
    let mut options = engine::Options::new()
        .quant(quant_of_code(given.quant)?)
        .threads(given.threads as usize)
        .no_mmap(given.flags & FLAG_NO_MMAP != 0)
        .memory_max(given.max_memory)
        // SAFETY: NUL-terminated by the caller's promise.
        .device_map(unsafe { device_map(given.device_map) }?);
    options.tokenizer = tokenizer;
    options.check()?;
    Ok(options)
}

/// # Safety
/// The pointer is NULL or a NUL-terminated string.
unsafe fn device_map(pointer: *const c_char) -> Result<engine::DeviceMap> {
    if pointer.is_null() {
        return Ok(engine::DeviceMap::Cpu);
    }
    // SAFETY: not NULL, and NUL-terminated by the caller's promise.
    let text = unsafe { path(pointer, "options: device_map") }?;
    Ok(text.to_string_lossy().parse()?)
}

/// Gives an open model to C. A tokenizer that was named is read at once, so that a wrong one is told
/// here and not by the first text.
///
/// # Safety
/// `out` points to memory for a pointer.
unsafe fn hand_out(model: engine::Model, named_tokenizer: bool, out: Out<*mut Model>) -> Result {
    if named_tokenizer {
        model.tokenizer()?;
    }
    // SAFETY: the caller's promise is the same.
    unsafe { out.write(Box::into_raw(Box::new(Model(model)))) };
    Ok(())
}

/// Opens a checkpoint or model file by path.
#[no_mangle]
pub unsafe extern "C" fn rwkv_edge_model_open(
    path: *const c_char,
    options: *const Options,
    model: *mut *mut Model,
) -> Status {
    fence(|| {
        let out = Out::new(model, "model")?;
        // SAFETY: all pointers are what the header says, by the caller's promise.
        let (path, options) = unsafe {
            (
                crate::arguments::path(path, "path")?,
                self::options(options)?,
            )
        };
        let named_tokenizer = options.tokenizer.is_some();
        let model = engine::Model::open(path, &options)?;
        // SAFETY: as above.
        unsafe { hand_out(model, named_tokenizer, out) }
    })
}

/// Opens a single-file model that lies in memory.
#[no_mangle]
pub unsafe extern "C" fn rwkv_edge_model_open_memory(
    data: *const c_void,
    size: usize,
    options: *const Options,
    model: *mut *mut Model,
) -> Status {
    fence(|| {
        let out = Out::new(model, "model")?;
        if data.is_null() {
            return Err(wrong(format_args!("data is NULL")));
        }
        // SAFETY: the header demands that the image outlives the model and its sessions, which are all
        // that keep this reference; `'static` stands for that.
        let image: &'static [u8] = unsafe { elements(data.cast(), size, "data") }?;
        // SAFETY: all pointers are what the header says, by the caller's promise.
        let options = unsafe { self::options(options) }?;
        let named_tokenizer = options.tokenizer.is_some();
        let model = engine::Model::open_image("the model in memory", image, &options)?;
        // SAFETY: as above.
        unsafe { hand_out(model, named_tokenizer, out) }
    })
}

/// Facts about a model.
#[no_mangle]
pub unsafe extern "C" fn rwkv_edge_model_get_info(
    model: *const Model,
    info: *mut ModelInfo,
) -> Status {
    fence(|| {
        // SAFETY: the pointers are what the header says, by the caller's promise: of the
        // info, that its first field is set.
        let (model, struct_size) = unsafe { (object(model, "model")?, check_size(info, "info")?) };
        let facts = model.0.info();
        let out = Out::new(info, "info")?;
        // Sizes of tensors, which the checkpoint's own checks keep below 2^32.
        let count = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        let facts = ModelInfo {
            struct_size,
            version: facts.version,
            n_vocab: count(facts.n_vocab),
            n_embd: count(facts.n_embd),
            n_layer: count(facts.n_layer),
            quant: code_of_quant(facts.quant),
            n_params: facts.n_params,
            weight_bytes: facts.weight_bytes,
            state_bytes: facts.state_bytes as u64,
        };
        // SAFETY: as above.
        unsafe { out.write(facts) };
        Ok(())
    })
}

/// Gives a model back. Its sessions keep what they need of it.
#[no_mangle]
pub unsafe extern "C" fn rwkv_edge_model_free(model: *mut Model) {
    if model.is_null() {
        return;
    }
    fence_quietly(|| {
        // SAFETY: made by `hand_out`, and not freed yet by the caller's promise.
        drop(unsafe { Box::from_raw(model) });
    });
}

/// Text to token ids.
#[no_mangle]
pub unsafe extern "C" fn rwkv_edge_tokenize(
    model: *const Model,
    text: *const c_char,
    text_size: usize,
    tokens: *mut u32,
    capacity: usize,
    count: *mut usize,
) -> Status {
    fence(|| {
        // SAFETY: the pointers are what the header says, by the caller's promise.
        let (model, text) = unsafe {
            let text = elements(text.cast::<u8>(), text_size, "text");
            (object(model, "model")?, text?)
        };
        let buffer = Buffer::new(tokens, capacity, count, ("tokens", "count"))?;
        let ids = model.0.tokenize(text, usize::MAX)?;
        // SAFETY: as above.
        unsafe { buffer.write(&ids) }
    })
}

/// Token ids to text.
#[no_mangle]
pub unsafe extern "C" fn rwkv_edge_detokenize(
    model: *const Model,
    tokens: *const u32,
    count: usize,
    text: *mut c_char,
    capacity: usize,
    size: *mut usize,
) -> Status {
    fence(|| {
        // SAFETY: the pointers are what the header says, by the caller's promise.
        let (model, tokens) =
            unsafe { (object(model, "model")?, elements(tokens, count, "tokens")?) };
        let buffer = Buffer::new(text.cast::<u8>(), capacity, size, ("text", "size"))?;
        check_tokens(&model.0, tokens)?;
        let text = model.0.tokenizer()?.decode(tokens)?;
        // SAFETY: as above.
        unsafe { buffer.write(text.as_bytes()) }
    })
}

/// Refuses ids beyond the vocabulary, without allocating for the text.
pub(crate) fn check_tokens(model: &engine::Model, tokens: &[u32]) -> Result {
    let n_vocab = model.n_vocab();
    match tokens.iter().position(|&token| token as usize >= n_vocab) {
        None => Ok(()),
        Some(index) => Err(wrong(format_args!(
            "token {index}: id {}, expected less than {n_vocab} (the vocabulary)",
            tokens[index]
        ))),
    }
}
