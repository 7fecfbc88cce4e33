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

/// Adds an element to a vector that grows as a file says, or gives an error where the allocator refuses.
pub(crate) fn push<T>(all: &mut Vec<T>, value: T, what: &str) -> Result<()> {
    if all.len() == all.capacity() {
        all.try_reserve(1)
            .map_err(|e| Error::memory(format!("not enough memory for {what}")).with_source(e))?;
    }
    all.push(value);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::reserve;
    use crate::ErrorKind;

    #[test]
    fn memory_that_there_is_not_is_an_error_that_says_what_for() {
        let error = reserve::<u32>(usize::MAX / 4, "a session").expect_err("half of all addresses");
        assert_eq!(error.kind(), ErrorKind::Memory);
        let expected = format!("a session of {} bytes", usize::MAX / 4 * 4);
        assert!(error.to_string().contains(&expected), "{error}");
        assert!(reserve::<u32>(5, "weights").expect("20 bytes").capacity() >= 5);
    }
}
