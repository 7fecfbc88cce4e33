//! What the system's loader would not refuse, but die of: plugins in static programs, and files that were cut short.
//!
//! This module holds `unsafe` code: it reads the headers of this program.

use std::ffi::{c_int, c_void};
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;

/// Says why a file must not be given to the loader.
pub(super) fn check(path: &Path) -> Result<(), String> {
    // Where the library is part of a C program, `crt-static` says nothing: whoever links that program decides. Loaders
    // in static programs bring a second C library, whose threads and allocations do not know those of the program.
    if is_static_program() {
        return Err(super::library::STATIC.into());
    }
    // A page of a mapping that the file does not have is SIGBUS to whoever reads it. What cannot be read here, the
    // loader refuses by itself.
    match extent(path) {
        Some((length, expected)) if length < expected => Err(format!(
            "cannot be loaded: it was cut short: {length} bytes, expected at least {expected}"
        )),
        _ => Ok(()),
    }
}

/// Whether no interpreter (the loader) belongs to this program.
fn is_static_program() -> bool {
    /// Looks at the first of what is loaded, which is the program, and stops.
    unsafe extern "C" fn look(
        info: *mut libc::dl_phdr_info,
        _: usize,
        is_static: *mut c_void,
    ) -> c_int {
        const INTERPRETER: u32 = libc::PT_INTERP;
        // SAFETY: `info` is there during this call; it says where the program's headers are, and how many.
        let headers = unsafe {
            let info = &*info;
            match info.dlpi_phdr.is_null() {
                true => return 1,
                false => std::slice::from_raw_parts(info.dlpi_phdr, usize::from(info.dlpi_phnum)),
            }
        };
        // SAFETY: the pointer to the answer, below.
        unsafe { *is_static.cast::<bool>() = headers.iter().all(|h| h.p_type != INTERPRETER) };
        1
    }
    let mut is_static = false;
    // SAFETY: calls `look` with its last argument, as long as this call.
    unsafe { libc::dl_iterate_phdr(Some(look), (&raw mut is_static).cast()) };
    is_static
}

/// Bytes of a file, and up to which of them it is mapped, if it is a library for programs such as this one. The layout is
/// that of the ELF format, in this program's numbers.
fn extent(path: &Path) -> Option<(u64, u64)> {
    const WORD: usize = size_of::<usize>();
    const LOAD: u32 = 1;
    let class = if WORD == 8 { 2 } else { 1 };
    let order = if cfg!(target_endian = "little") { 1 } else { 2 };
    // Of the file: where program headers are, their size and number; of one: offset and length in the file.
    let [headers_at, size_at, number_at] = if WORD == 8 {
        [32, 54, 56]
    } else {
        [28, 42, 44]
    };
    let [offset_at, length_at] = if WORD == 8 { [8, 32] } else { [4, 16] };

    let mut file = File::open(path).ok()?;
    let mut start = [0; 64];
    file.read_exact(&mut start).ok()?;
    if start[..6] != [0x7f, b'E', b'L', b'F', class, order] {
        return None;
    }
    let size = usize::from(u16::from_ne_bytes(bytes(&start, size_at)?));
    let number = usize::from(u16::from_ne_bytes(bytes(&start, number_at)?));
    let mut headers = vec![0; size * number];
    file.seek(SeekFrom::Start(word(&start, headers_at)?)).ok()?;
    file.read_exact(&mut headers).ok()?;
    let mut end = 0;
    for header in headers.chunks_exact(size.max(1)) {
        if u32::from_ne_bytes(bytes(header, 0)?) == LOAD {
            end = end.max(word(header, offset_at)?.saturating_add(word(header, length_at)?));
        }
    }
    Some((file.metadata().ok()?.len(), end))
}

fn bytes<const N: usize>(of: &[u8], at: usize) -> Option<[u8; N]> {
    of.get(at..at + N)?.try_into().ok()
}

fn word(of: &[u8], at: usize) -> Option<u64> {
    Some(usize::from_ne_bytes(bytes(of, at)?) as u64)
}
