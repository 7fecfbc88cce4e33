//! Arithmetic on slices of numbers: kernels for every instruction set, the threads that share the work, and `exp` with
//! the same bits everywhere. Knows nothing of models, quantisations or files.

use crate::error::{Error, Result};

pub(crate) mod aligned;
pub(crate) mod exp;
pub(crate) mod kernels;
pub(crate) mod threads;

/// A vector with room for `n` elements of what is called `what`, or an error where the allocator refuses.
pub(crate) fn reserve<T>(n: usize, what: &str) -> Result<Vec<T>> {
    let mut vec = Vec::new();
    vec.try_reserve_exact(n).map_err(|e| {
        let size = n.saturating_mul(size_of::<T>());
        Error::memory(format!("not enough memory for {what} of {size} bytes")).with_source(e)
    })?;
    Ok(vec)
}

/// Whether no number is NaN or infinite. Looks at all of them, without branches, which lets the compiler use vectors:
/// a row of 50,277 takes a few microseconds.
pub(crate) fn all_finite(numbers: &[f32]) -> bool {
    /// All ones in NaN and infinities alone.
    const EXPONENT: u32 = 0x7f80_0000;
    let is_special = |number: &f32| u32::from(number.to_bits() & EXPONENT == EXPONENT);
    numbers.iter().map(is_special).fold(0, |a, b| a | b) == 0
}

#[cfg(test)]
mod tests {
    use super::{all_finite, reserve};
    use crate::ErrorKind;

    #[test]
    fn one_number_that_is_not_finite_is_found_wherever_it_is() {
        for n in 0..70 {
            let mut numbers = vec![f32::MAX; n];
            assert!(all_finite(&numbers));
            for at in 0..n {
                for bad in [f32::NAN, -f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
                    let before = std::mem::replace(&mut numbers[at], bad);
                    assert!(!all_finite(&numbers), "{bad} at {at} of {n}");
                    numbers[at] = before;
                }
            }
        }
    }

    #[test]
    fn memory_that_there_is_not_is_an_error_that_says_what_for() {
        let error = reserve::<u32>(usize::MAX / 4, "a session").expect_err("half of all addresses");
        assert_eq!(error.kind(), ErrorKind::Memory);
        let expected = format!("a session of {} bytes", usize::MAX / 4 * 4);
        assert!(error.to_string().contains(&expected), "{error}");
        assert!(reserve::<u32>(5, "weights").expect("20 bytes").capacity() >= 5);
    }
}
