//! Another static library in Rust, of which a program may have any number. Its panics are its own matter.

/// Panics, and catches that.
#[no_mangle]
pub extern "C" fn other_panics() -> bool {
    std::panic::catch_unwind(|| panic!("of the other library")).is_err()
}
