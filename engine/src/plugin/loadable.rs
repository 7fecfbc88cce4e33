//! What the system's loader would not refuse, but die of: plugins in static programs, and files that were cut short.
//!
//! This module holds `unsafe` code: it reads the headers of this program and of the file as the system's own structs.

use std::fs::File;
use std::io::Read;
use std::mem::MaybeUninit;
use std::path::Path;

#[cfg(target_pointer_width = "32")]
use libc::{Elf32_Ehdr as FileHeader, Elf32_Phdr as ProgramHeader};
#[cfg(target_pointer_width = "64")]
use libc::{Elf64_Ehdr as FileHeader, Elf64_Phdr as ProgramHeader};

/// Says why a file must not be given to the loader.
pub(super) fn check(path: &Path) -> Result<(), String> {
    // Where the library is part of a C program, `crt-static` says nothing: whoever links that program decides. Loaders
    // in static programs bring a second C library, whose threads and allocations do not know those of the program.
    if is_static_program() {
        return Err(super::library::STATIC.into());
    }
    // A page of a mapping that the file does not have is SIGBUS to whoever reads it.
    match file_header(path) {
        Some(header) if end_of_sections(&header) > length(path) => Err(format!(
            "cannot be loaded: it was cut short: {} bytes, expected at least {}",
            length(path),
            end_of_sections(&header)
        )),
        _ => Ok(()),
    }
}

/// Whether no interpreter (the loader) started this program. A program that says nothing of itself is taken for one
/// that has a loader, as nearly all have.
fn is_static_program() -> bool {
    const INTERPRETER: u32 = libc::PT_INTERP;
    // SAFETY: asks for a number; 0 where there is none.
    let [at, count, size] =
        unsafe { [libc::AT_PHDR, libc::AT_PHNUM, libc::AT_PHENT].map(|of| libc::getauxval(of)) };
    if at == 0 || count == 0 || size as usize != size_of::<ProgramHeader>() {
        return false;
    }
    // SAFETY: the kernel says that so many headers of this size are there, in a part of this program that stays mapped
    // and is not written to.
    let headers = unsafe { std::slice::from_raw_parts(at as *const ProgramHeader, count as usize) };
    headers.iter().all(|header| header.p_type != INTERPRETER)
}

/// The start of a file, if it is a library of the kind that this program is: the loader refuses others by itself.
fn file_header(path: &Path) -> Option<FileHeader> {
    const SIZE: usize = size_of::<FileHeader>();
    let class = if cfg!(target_pointer_width = "64") {
        2
    } else {
        1
    };
    let order = if cfg!(target_endian = "little") { 1 } else { 2 };
    let mut bytes = [0; SIZE];
    File::open(path).ok()?.read_exact(&mut bytes).ok()?;
    if bytes[..6] != [0x7f, b'E', b'L', b'F', class, order] {
        return None;
    }
    let mut header = MaybeUninit::<FileHeader>::uninit();
    // SAFETY: both have SIZE bytes, and a header is integers, which any bytes are.
    unsafe {
        std::ptr::copy_nonoverlapping(bytes.as_ptr(), header.as_mut_ptr().cast(), SIZE);
        Some(header.assume_init())
    }
}

/// Bytes up to the end of the table of sections, which linkers put last; 0 in a file that has none.
#[allow(clippy::useless_conversion)] // 32 bits on some machines
fn end_of_sections(header: &FileHeader) -> u64 {
    let table = u64::from(header.e_shnum) * u64::from(header.e_shentsize);
    u64::from(header.e_shoff).saturating_add(table)
}

fn length(path: &Path) -> u64 {
    std::fs::metadata(path).map_or(0, |file| file.len())
}
