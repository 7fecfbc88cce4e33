//! The C library: the functions of `include/rwkv_edge.h`, which is the contract.
//!
//! The outermost layer of the engine, and a thin one: it checks pointers, lengths and sizes of structs,
//! turns errors into codes, and lets no panic out. What the functions do is in the engine. The header
//! says what they promise; `tests.rs` fails when it and this library disagree.
//!
//! `fence.rs` has the panic fence and the text of the last error, `arguments.rs` the checks of pointers,
//! `types.rs` the structs, `model.rs` and `session.rs` the functions.
//!
//! Safety, in one place: every function takes pointers from C. It checks all that can be checked (NULL,
//! alignment, lengths beyond the address space) and relies on the caller for the rest, as any C library
//! does: that a pointer that is not NULL points to as many valid elements as were promised, that handles
//! came from this library and were not freed, and that no one else writes to the memory meanwhile.

// What makes a call safe is the contract in the header; see above.
#![allow(clippy::missing_safety_doc)]

#[cfg(not(panic = "unwind"))]
compile_error!("the C library must be built with panic = \"unwind\": a panic becomes a status");

mod arguments;
mod fence;
mod model;
mod session;
#[cfg(test)]
mod tests;
mod types;

use std::ffi::c_char;

/// `RWKV_EDGE_ABI_VERSION`
const ABI_VERSION: u32 = 1;
/// With the NUL that C wants.
const VERSION: &str = concat!(env!("CARGO_PKG_VERSION"), "\0");

/// The version of the header that this library was built for.
#[no_mangle]
pub extern "C" fn rwkv_edge_abi_version() -> u32 {
    ABI_VERSION
}

/// The version of the package, such as `0.1.0`.
#[no_mangle]
pub extern "C" fn rwkv_edge_version() -> *const c_char {
    VERSION.as_ptr().cast()
}

/// Why the last call on this thread that returns a status failed; empty if it did not.
#[no_mangle]
pub extern "C" fn rwkv_edge_last_error() -> *const c_char {
    fence::last_error()
}

/// Lets a mapped file that shrinks become an error.
#[no_mangle]
pub extern "C" fn rwkv_edge_install_sigbus_handler() -> fence::Status {
    fence::fence(|| Ok(engine::install_sigbus_handler()?))
}

/// Makes the next call on this thread that returns a status panic.
#[cfg(feature = "test-hooks")]
#[no_mangle]
pub extern "C" fn rwkv_edge_test_panic_next() {
    fence::panic_next(fence::PanicAt::Fence);
}

/// Makes the next call on this thread that uses a session panic in the middle of it.
#[cfg(feature = "test-hooks")]
#[no_mangle]
pub extern "C" fn rwkv_edge_test_panic_inside() {
    fence::panic_next(fence::PanicAt::Session);
}
