//! Arithmetic on slices of numbers: kernels for every instruction set, the threads that share the work, and `exp` with
//! the same bits everywhere. Knows nothing of models, quantisations or files.

use bytemuck::{AnyBitPattern, Zeroable};

use crate::error::{Error, Result};

pub(crate) mod aligned;
pub(crate) mod exp;
pub(crate) mod kernels;
pub(crate) mod linear;
pub(crate) mod threads;

/// A vector with room for `n` elements of what is called `what`, or an error where the allocator refuses.
pub(crate) fn reserve<T>(n: usize, what: &str) -> Result<Vec<T>> {
    let mut vec = Vec::new();
    let reserved = vec.try_reserve_exact(n);
    reserved.map_err(|e| no_memory::<T>(n, what).with_source(e))?;
    Ok(vec)
}

/// So many numbers of 0, or the error of [`reserve`]. They cost nothing before they are used.
pub(crate) fn zeroed<T: Zeroable>(n: usize, what: &str) -> Result<Vec<T>> {
    bytemuck::try_zeroed_vec(n).map_err(|()| no_memory::<T>(n, what))
}

/// The same elements in memory of their own, or the error of [`reserve`].
pub(crate) fn copied<T: Copy>(values: &[T], what: &str) -> Result<Vec<T>> {
    let mut copy = reserve(values.len(), what)?;
    copy.extend_from_slice(values);
    Ok(copy)
}

/// The numbers that bytes are, at whatever address they lie, or the error of [`reserve`].
pub(crate) fn numbers_of<T: AnyBitPattern>(bytes: &[u8], what: &str) -> Result<Vec<T>> {
    let numbers = bytes.chunks_exact(size_of::<T>());
    collected(numbers.map(bytemuck::pod_read_unaligned), what)
}

/// What an iterator that knows its length gives, or the error of [`reserve`].
pub(crate) fn collected<T>(values: impl ExactSizeIterator<Item = T>, what: &str) -> Result<Vec<T>> {
    let mut all = reserve(values.len(), what)?;
    all.extend(values);
    Ok(all)
}

/// Makes a vector as long as is said, its new elements being `value`, or gives the error of [`reserve`]; it is as it
/// was then.
pub(crate) fn resized<T: Clone>(vec: &mut Vec<T>, n: usize, value: T, what: &str) -> Result<()> {
    let more = n.saturating_sub(vec.len());
    let reserved = vec.try_reserve_exact(more);
    reserved.map_err(|e| no_memory::<T>(n, what).with_source(e))?;
    vec.resize(n, value);
    Ok(())
}

fn no_memory<T>(n: usize, what: &str) -> Error {
    let size = n.saturating_mul(size_of::<T>());
    Error::memory(format!("not enough memory for {what} of {size} bytes"))
}

/// Whether no number is NaN or infinite. Looks at all of them, without branches, which lets the compiler use vectors:
/// a row of 50,277 takes a few microseconds.
pub(crate) fn all_finite(numbers: &[f32]) -> bool {
    const LANES: usize = 16;
    // 0 times a number is 0, or NaN where the number is not finite; and NaN stays in a sum.
    let mut sums = [0.0_f32; LANES];
    let chunks = numbers.chunks_exact(LANES);
    let rest = chunks.remainder();
    let mut add = |chunk: &[f32]| {
        for (sum, &number) in sums.iter_mut().zip(chunk) {
            *sum += number * 0.0;
        }
    };
    chunks.for_each(&mut add);
    add(rest);
    sums.iter().all(|&sum| sum == 0.0)
}

/// Adds an element to a vector that grows as a file says, or gives an error where the allocator refuses.
pub(crate) fn push<T>(all: &mut Vec<T>, value: T, what: &str) -> Result<()> {
    if all.len() == all.capacity() {
        let reserved = all.try_reserve(1);
        reserved.map_err(|e| no_memory::<T>(all.len() + 1, what).with_source(e))?;
    }
    all.push(value);
    Ok(())
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
