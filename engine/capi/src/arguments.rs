//! Pointers from C, checked as far as they can be: NULL, alignment, and lengths.
//!
//! This module holds `unsafe` code: what cannot be checked is the caller's promise (see `lib.rs`).

use std::ffi::{c_char, CStr};
use std::mem::MaybeUninit;
use std::path::PathBuf;

use crate::fence::{fail, wrong, Failed, Result, MEMORY};
use crate::types::{ModelInfo, Options, Sampling};

/// Paths and device maps, which are copied, are no longer; no system has longer paths.
const TEXT_BYTES_MAX: usize = 32 << 10;

/// Refuses NULL and misaligned pointers.
fn check<T>(pointer: *const T, name: &str) -> Result {
    if pointer.is_null() {
        return Err(wrong(format_args!("{name} is NULL")));
    }
    if !pointer.is_aligned() {
        return Err(misaligned(name));
    }
    Ok(())
}

fn misaligned(name: &str) -> Failed {
    wrong(format_args!("{name} is not aligned as its type must be"))
}

/// An object of ours.
///
/// # Safety
/// The pointer is NULL or from this library, and the object outlives `'a`.
pub(crate) unsafe fn object<'a, T>(pointer: *const T, name: &str) -> Result<&'a T> {
    check(pointer, name)?;
    // SAFETY: not NULL, aligned, and valid by the caller's promise.
    Ok(unsafe { &*pointer })
}

/// Elements to read; NULL is fine for none.
///
/// # Safety
/// A pointer that is not NULL points to `count` elements, which nobody writes during `'a`.
pub(crate) unsafe fn elements<'a, T>(
    pointer: *const T,
    count: usize,
    name: &str,
) -> Result<&'a [T]> {
    if count == 0 {
        return Ok(&[]);
    }
    check(pointer, name)?;
    if count > isize::MAX as usize / size_of::<T>() {
        let text = format_args!("{count} elements of {name}: more than the address space");
        return Err(wrong(text));
    }
    // SAFETY: not NULL, aligned, within the address space, and valid by the caller's promise.
    Ok(unsafe { std::slice::from_raw_parts(pointer, count) })
}

/// Where one result goes. Written by [`write`](Self::write), on success only.
pub(crate) struct Out<T>(*mut T);

impl<T> Out<T> {
    /// Not NULL.
    pub(crate) fn new(pointer: *mut T, name: &str) -> Result<Self> {
        check(pointer, name)?;
        Ok(Out(pointer))
    }

    /// # Safety
    /// The pointer points to memory for a `T`.
    pub(crate) unsafe fn write(self, value: T) {
        // SAFETY: not NULL and aligned, as was checked, and valid by the caller's promise.
        unsafe { self.0.write(value) }
    }
}

/// A buffer of the caller, and where the size of the whole result goes.
pub(crate) struct Buffer<T> {
    data: *mut T,
    capacity: usize,
    needed: *mut usize,
}

impl<T: Copy> Buffer<T> {
    /// NULL is fine for a capacity of 0, which asks for the size.
    pub(crate) fn new(
        data: *mut T,
        capacity: usize,
        needed: *mut usize,
        names: (&str, &str),
    ) -> Result<Self> {
        check(needed, names.1)?;
        if data.is_null() && capacity > 0 {
            let text = format_args!("{} is NULL, but its capacity is {capacity}", names.0);
            return Err(wrong(text));
        }
        if !data.is_aligned() {
            return Err(misaligned(names.0));
        }
        Ok(Buffer {
            data,
            capacity,
            needed,
        })
    }

    /// Tells the size of the result; then whether it is wanted, or an error if there is too little room.
    ///
    /// # Safety
    /// The pointers are what the header says.
    unsafe fn is_wanted(&self, count: usize) -> Result<bool> {
        // SAFETY: not NULL and aligned, as was checked, and valid by the caller's promise.
        unsafe { self.needed.write(count) };
        if self.data.is_null() {
            return Ok(false);
        }
        if count > self.capacity {
            let room = self.capacity;
            let text = format_args!("the result has {count} elements, the buffer room for {room}");
            return Err(fail(MEMORY, text));
        }
        Ok(true)
    }

    /// # Safety
    /// The pointers are what the header says.
    pub(crate) unsafe fn write(self, values: &[T]) -> Result {
        // SAFETY: the caller's promise is the same.
        if unsafe { self.is_wanted(values.len()) }? {
            // SAFETY: there is room for the values, and memory of the caller's is none of ours.
            unsafe { copy_out(values, self.data) };
        }
        Ok(())
    }
}

impl Buffer<u8> {
    /// Lets `fill` write `size` bytes in place.
    ///
    /// # Safety
    /// The pointers are what the header says.
    pub(crate) unsafe fn fill(self, size: usize, fill: impl FnOnce(&mut [u8]) -> Result) -> Result {
        // SAFETY: the caller's promise is the same.
        if unsafe { self.is_wanted(size) }? {
            // The bytes may never have been written, which Rust does not allow in a slice.
            // SAFETY: there is room for `size` bytes, which are then all written.
            let bytes = unsafe {
                std::ptr::write_bytes(self.data, 0, size);
                std::slice::from_raw_parts_mut(self.data, size)
            };
            fill(bytes)?;
        }
        Ok(())
    }
}

/// Refuses to go on where so many bytes cannot be had, of which what follows would die.
pub(crate) fn room_for(bytes: usize, what: &str) -> Result {
    let mut room: Vec<u8> = Vec::new();
    room.try_reserve_exact(bytes).map_err(|_| {
        let text = format_args!("not enough memory for {what} of {bytes} bytes");
        fail(MEMORY, text)
    })
}

/// # Safety
/// `to` has room for the values and does not overlap them.
pub(crate) unsafe fn copy_out<T: Copy>(values: &[T], to: *mut T) {
    // SAFETY: the caller's promise is the same.
    unsafe { std::ptr::copy_nonoverlapping(values.as_ptr(), to, values.len()) };
}

/// A path that must be there.
///
/// # Safety
/// The pointer is NULL or a NUL-terminated string.
pub(crate) unsafe fn path(pointer: *const c_char, name: &str) -> Result<PathBuf> {
    check(pointer, name)?;
    // SAFETY: not NULL, and NUL-terminated by the caller's promise.
    let text = unsafe { CStr::from_ptr(pointer) };
    if text.is_empty() {
        return Err(wrong(format_args!("{name} is empty")));
    }
    let size = text.to_bytes().len();
    if size > TEXT_BYTES_MAX {
        let text = format_args!("{name} has {size} bytes, expected at most {TEXT_BYTES_MAX}");
        return Err(wrong(text));
    }
    #[cfg(unix)]
    {
        use std::os::unix::ffi::OsStrExt;
        Ok(std::ffi::OsStr::from_bytes(text.to_bytes()).into())
    }
    #[cfg(not(unix))]
    match text.to_str() {
        Ok(text) => Ok(text.into()),
        Err(_) => Err(wrong(format_args!("{name} is not UTF-8"))),
    }
}

/// A struct of the header. Later versions of the library add fields at its end, whose value 0 means what there was
/// without them.
///
/// # Safety
/// All fields may be 0.
pub(crate) unsafe trait Versioned: Copy {
    /// Its sizes in all versions, the oldest first.
    const SIZES: &'static [usize];
}

// SAFETY: numbers and pointers.
unsafe impl Versioned for Options {
    const SIZES: &'static [usize] = &[size_of::<Self>()];
}

// SAFETY: numbers.
unsafe impl Versioned for ModelInfo {
    const SIZES: &'static [usize] = &[size_of::<Self>()];
}

// SAFETY: numbers and pointers.
unsafe impl Versioned for Sampling {
    const SIZES: &'static [usize] = &[Self::SIZE_WITH_SEED, size_of::<Self>()];
}

/// The size that a struct says it has in its first field, which is that of the version that the caller was compiled
/// with. Nothing else is read: of a struct for results C sets no other field, and memory that was never written
/// must not be read as numbers.
///
/// # Safety
/// The pointer is NULL or to a struct whose first field, a `u32`, is set.
pub(crate) unsafe fn check_size<T: Versioned>(pointer: *const T, name: &str) -> Result<u32> {
    check(pointer, name)?;
    // SAFETY: not NULL, aligned, and every version starts with this field.
    let size = unsafe { pointer.cast::<u32>().read() };
    if !T::SIZES.contains(&(size as usize)) {
        let sizes = T::SIZES;
        let text = format_args!("{name}: struct_size is {size}, expected one of {sizes:?}");
        return Err(wrong(text));
    }
    Ok(size)
}

/// A struct that C has filled in, as [`check_size`] wants it; what one of an older version lacks is 0.
///
/// # Safety
/// The pointer is NULL or to a struct of as many bytes as its first field says, of which all fields are set and all
/// bits are valid.
pub(crate) unsafe fn versioned<T: Versioned>(pointer: *const T, name: &str) -> Result<T> {
    // SAFETY: the caller's promise is more.
    let size = unsafe { check_size(pointer, name) }? as usize;
    let mut whole = MaybeUninit::<T>::zeroed();
    // SAFETY: it has the size of a version, none of which is larger than this one; its fields are set, and those that
    // it lacks may be 0.
    Ok(unsafe {
        std::ptr::copy_nonoverlapping(pointer.cast::<u8>(), whole.as_mut_ptr().cast(), size);
        whole.assume_init()
    })
}
