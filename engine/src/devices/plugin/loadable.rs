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
    // What cannot be read here, the loader refuses by itself.
    match extent(path) {
        // A page of a mapping that the file does not have is SIGBUS to whoever reads it.
        Some(Ok((length, expected))) if length < expected => Err(format!(
            "cannot be loaded: it was cut short: {length} bytes, expected at least {expected}"
        )),
        Some(Err(why)) => Err(format!("cannot be loaded: {why}")),
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

/// Program headers take at most this much, as those of programs do on Linux; libraries have some ten of them. Loaders
/// copy them to the stack, more than once: in a thread of 2 MiB 30,000 of them are a segmentation fault in glibc's.
const HEADERS_SIZE_MAX: usize = 64 << 10;

/// Bytes of a file, and up to which of them it is mapped, if it is a library for programs such as this one; or what is
/// wrong with its headers. The layout is that of the ELF format, in this program's numbers.
fn extent(path: &Path) -> Option<Result<(u64, u64), String>> {
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
    let [offset_at, length_at, expected_size] = if WORD == 8 { [8, 32, 56] } else { [4, 16, 32] };

    let mut file = File::open(path).ok()?;
    let mut start = [0; 64];
    file.read_exact(&mut start).ok()?;
    if start[..6] != [0x7f, b'E', b'L', b'F', class, order] {
        return None;
    }
    let size = usize::from(u16::from_ne_bytes(bytes(&start, size_at)?));
    let number = usize::from(u16::from_ne_bytes(bytes(&start, number_at)?));
    if size != expected_size {
        let why = format!("program headers of {size} bytes each, expected {expected_size}");
        return Some(Err(why));
    }
    // Neither number has more than 16 bits: 4 GiB, which a machine may not have, and no buffer of 32 bits.
    let headers_size = size * number;
    if headers_size > HEADERS_SIZE_MAX {
        let why =
            format!("program headers of {headers_size} bytes, expected at most {HEADERS_SIZE_MAX}");
        return Some(Err(why));
    }
    let mut headers = vec![0; headers_size];
    file.seek(SeekFrom::Start(word(&start, headers_at)?)).ok()?;
    file.read_exact(&mut headers).ok()?;
    let mut end = 0;
    for header in headers.chunks_exact(size) {
        if u32::from_ne_bytes(bytes(header, 0)?) == LOAD {
            end = end.max(word(header, offset_at)?.saturating_add(word(header, length_at)?));
        }
    }
    Some(Ok((file.metadata().ok()?.len(), end)))
}

fn bytes<const N: usize>(of: &[u8], at: usize) -> Option<[u8; N]> {
    of.get(at..at + N)?.try_into().ok()
}

fn word(of: &[u8], at: usize) -> Option<u64> {
    Some(usize::from_ne_bytes(bytes(of, at)?) as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The file header of a library for programs such as this one, with `number` program headers of `size` bytes
    /// right behind it.
    fn header(size: u16, number: u16) -> Vec<u8> {
        let is_64 = size_of::<usize>() == 8;
        let mut header = vec![0; 64];
        header[..4].copy_from_slice(b"\x7fELF");
        header[4] = if is_64 { 2 } else { 1 };
        header[5] = if cfg!(target_endian = "little") { 1 } else { 2 };
        let [at, size_at, number_at] = if is_64 { [32, 54, 56] } else { [28, 42, 44] };
        header[at..][..size_of::<usize>()].copy_from_slice(&64_usize.to_ne_bytes());
        header[size_at..][..2].copy_from_slice(&size.to_ne_bytes());
        header[number_at..][..2].copy_from_slice(&number.to_ne_bytes());
        header
    }

    const SIZE: u16 = if size_of::<usize>() == 8 { 56 } else { 32 };

    fn checked(content: &[u8]) -> Result<(), String> {
        let file = tempfile::NamedTempFile::new().expect("temporary file");
        std::fs::write(file.path(), content).expect("can be written");
        check(file.path())
    }

    #[test]
    fn sizes_in_headers_are_bounded_before_anything_is_allocated() {
        let wrong_size = |size: u16| format!("headers of {size} bytes each, expected {SIZE}");
        let most = HEADERS_SIZE_MAX / usize::from(SIZE);
        for (size, number, expected) in [
            (u16::MAX, u16::MAX, wrong_size(u16::MAX)),
            (SIZE - 1, 1, wrong_size(SIZE - 1)),
            (0, u16::MAX, wrong_size(0)),
            (SIZE, u16::MAX, "expected at most 65536".to_owned()),
            (SIZE, most as u16 + 1, "expected at most 65536".to_owned()),
        ] {
            // The loader would find as many headers as the file promises, where that is not too much.
            let mut content = header(size, number);
            content.resize(4 << 20, 0);
            let error = checked(&content).expect_err("not a library");
            assert!(error.contains(&expected), "{size} by {number}: {error}");
        }
        let mut content = header(SIZE, most as u16);
        content.resize(64 + HEADERS_SIZE_MAX, 0);
        checked(&content).expect("the loader refuses it");
    }

    /// Programs of the other kind and files that are shorter than their headers are the loader's to refuse.
    #[test]
    fn what_the_loader_refuses_by_itself_is_left_to_it() {
        checked(&header(SIZE, 3)).expect("headers are missing");
        checked(&header(SIZE, 3)[..50]).expect("half a header");
        let mut other = header(u16::MAX, u16::MAX);
        other[4] ^= 3;
        checked(&other).expect("for another kind of program");
    }
}
