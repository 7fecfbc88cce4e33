//! What pointers of the host point to: structs, arrays and texts, or a refusal where they are null.

use std::ffi::{c_char, CStr};

use rwkv_edge_plugin as abi;

use crate::error::{Failure, Result};
use crate::names::Named;
use crate::options::{Names, StageOptions};

/// A struct of the host's, read as far as both sides know it.
///
/// # Safety
///
/// `pointer` is null or that of a struct of `T`'s kind that starts with its own size.
pub(super) unsafe fn read<T: Copy>(what: &str, pointer: *const T) -> Result<T> {
    if pointer.is_null() {
        return Err(Failure::argument(format!("{what} is null")));
    }
    // SAFETY: every struct of the table starts with its size, a u32.
    let found = unsafe { pointer.cast::<u32>().read() } as usize;
    // Nothing has been added since version 2.
    if found < size_of::<T>() {
        return Err(Failure::argument(format!(
            "{what} has {found} bytes, expected {}",
            size_of::<T>()
        )));
    }
    // SAFETY: it is as large as it says.
    Ok(unsafe { pointer.read() })
}

/// Writes a struct of the host's, whose size it has set.
///
/// # Safety
///
/// As [`read`].
pub(super) unsafe fn write<T: Copy>(what: &str, pointer: *mut T, value: T) -> Result<()> {
    // SAFETY: the caller's promise.
    unsafe {
        read(what, pointer)?;
        pointer.write(value);
    }
    Ok(())
}

/// # Safety
///
/// `pointer` is null or that of `n` numbers that nobody writes meanwhile.
pub(super) unsafe fn slice<'a, T>(what: &str, pointer: *const T, n: usize) -> Result<&'a [T]> {
    if pointer.is_null() {
        return Err(Failure::argument(format!("{what} is null")));
    }
    // SAFETY: the caller's promise.
    Ok(unsafe { std::slice::from_raw_parts(pointer, n) })
}

/// # Safety
///
/// `pointer` is null or that of room for `n` numbers that is the plugin's for the time of the call. The numbers there
/// are floats or integers, of which any bits are some.
pub(super) unsafe fn slice_mut<'a, T>(
    what: &str,
    pointer: *mut T,
    n: usize,
) -> Result<&'a mut [T]> {
    if pointer.is_null() {
        return Err(Failure::argument(format!("{what} is null")));
    }
    // SAFETY: the caller's promise.
    Ok(unsafe { std::slice::from_raw_parts_mut(pointer, n) })
}

/// What is not UTF-8 is no name that is known.
///
/// # Safety
///
/// `pointer` is null or that of a text with a NUL behind it.
pub(super) unsafe fn text(what: &str, pointer: *const c_char) -> Result<String> {
    if pointer.is_null() {
        return Err(Failure::argument(format!("{what} is null")));
    }
    // SAFETY: the caller's promise.
    let text = unsafe { CStr::from_ptr(pointer) };
    Ok(text.to_string_lossy().into_owned())
}

/// Pairs of a name and a value.
///
/// # Safety
///
/// `pointer` is null or that of `n` elements, whose names are as [`text`] wants them.
unsafe fn named<T: Copy, V>(
    what: &str,
    pointer: *const T,
    n: u32,
    pair: impl Fn(T) -> (*const c_char, V),
) -> Result<Named<V>> {
    // SAFETY: the caller's promise.
    let elements = unsafe { slice(what, pointer, n as usize)? };
    let pairs = elements.iter().map(|&element| {
        let (name, value) = pair(element);
        // SAFETY: the caller's promise.
        Ok((unsafe { text(what, name)? }, value))
    });
    pairs.collect()
}

/// The stage that is asked for, if it can be.
///
/// # Safety
///
/// `pointer` is as [`read`] wants it, and the struct's texts and arrays are null or as long as it says.
pub(super) unsafe fn options(pointer: *const abi::StageOptions) -> Result<StageOptions> {
    // SAFETY: the caller's promise.
    unsafe {
        let o = read("options", pointer)?;
        let names = Names {
            architecture: text("architecture", o.architecture)?,
            quant: text("quant", o.quant)?,
            sizes: named("sizes", o.sizes, o.n_sizes, |size| (size.name, size.value))?,
            numbers: named("numbers", o.numbers, o.n_numbers, |number| {
                (number.name, number.value)
            })?,
        };
        StageOptions::new(&o, &names)
    }
}

/// The parts of a tensor.
///
/// # Safety
///
/// The tensor's parts are null or as many as it says, and each is null or has as many bytes.
pub(super) unsafe fn parts<'a>(tensor: &abi::Tensor) -> Result<Named<&'a [u8]>> {
    // SAFETY: the caller's promise.
    let parts = unsafe {
        named("parts", tensor.parts, tensor.n_parts, |part| {
            (part.name, part)
        })?
    };
    let bytes = |(name, part): (String, abi::Part)| {
        // No slice may have more.
        if part.bytes > isize::MAX as u64 {
            return Err(Failure::argument(format!(
                "part {name}: {} bytes",
                part.bytes
            )));
        }
        // SAFETY: the caller's promise.
        let bytes = unsafe { slice(&name, part.data.cast(), part.bytes as usize)? };
        Ok((name, bytes))
    };
    parts.into_iter().map(bytes).collect()
}
