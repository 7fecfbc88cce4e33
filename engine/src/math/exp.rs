//! Elementary functions that give the same bits on every CPU.
//!
//! The system's `expf` differs between C libraries; a model's text must not. These use only additions,
//! multiplications and bit operations, each rounded once, in a fixed order, and never a fused
//! multiply-add, so scalar code and every vector width agree exactly. They have no branches, which
//! lets the compiler vectorise the loops that call them.

#![forbid(unsafe_code)]

/// e to the power `x`, within 2 units in the last place for -87.3 <= x <= 88.
///
/// Below that range the result is exactly 0 (so that an empty WKV state, whose exponent is -1e30,
/// contributes nothing); above it the result stays at exp(88), which is finite. NaN gives NaN.
///
/// Method: x = n ln 2 + r with |r| <= ln 2 / 2; exp(r) by its Taylor-like minimax polynomial of
/// degree 6 (the coefficients are those of the Cephes library's `expf`); 2^n by its exponent bits.
#[inline(always)]
pub fn exp(x: f32) -> f32 {
    /// 1.5 * 2^23: adding it rounds to an integer and leaves that integer in the low mantissa bits.
    const ROUND: f32 = 12_582_912.0;
    /// ln 2 in two parts: the first has few bits, so n * LN2_HIGH is exact.
    const LN2_HIGH: f32 = 0.693_359_4;
    const LN2_LOW: f32 = -2.121_944_4e-4;

    let clamped = if x > 88.0 { 88.0 } else { x };
    let clamped = if clamped < -87.3 { -87.3 } else { clamped };
    let shifted = clamped * std::f32::consts::LOG2_E + ROUND;
    let n = shifted - ROUND;
    let r = (clamped - n * LN2_HIGH) - n * LN2_LOW;
    let mut p = 1.987_569_1e-4;
    p = p * r + 1.398_199_9e-3;
    p = p * r + 8.333_452e-3;
    p = p * r + 4.166_579_6e-2;
    p = p * r + 1.666_666_5e-1;
    p = p * r + 0.5;
    let exp_r = (p * (r * r) + r) + 1.0;
    let two_to_n = f32::from_bits((shifted.to_bits() << 23).wrapping_add(0x3f80_0000));
    let result = exp_r * two_to_n;
    if x < -87.3 {
        0.0
    } else {
        result
    }
}

/// 1 / (1 + exp(-x)); NaN for NaN and for infinities, which only bad weights give: as a gate that is quite open or
/// closed they would pass for good ones.
#[inline(always)]
pub fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + exp(-x)) + x * 0.0
}

/// The hyperbolic tangent; NaN for NaN and for infinities, as [`sigmoid`].
///
/// Method: near 0, where `exp` would lose digits, the polynomial of the Cephes library's `tanhf`; else 1 - 2 / (exp(2 |x|) + 1).
#[inline(always)]
pub fn tanh(x: f32) -> f32 {
    let size = x.abs();
    let square = x * x;
    let mut p = -5.704_988_7e-3;
    p = p * square + 2.063_909e-2;
    p = p * square - 5.373_971_6e-2;
    p = p * square + 1.333_144_2e-1;
    p = p * square - 3.333_328e-1;
    let near = p * square * x + x;
    let far = (1.0 - 2.0 / (exp(2.0 * size) + 1.0)).copysign(x);
    let value = if size < 0.625 { near } else { far };
    value + x * 0.0
}

/// The logarithm of base 2 of a positive number that is neither subnormal nor infinite, with an error of at most
/// 1e-15, or 1e-15 of its own size where that is above 1. Of other numbers it is finite, and means nothing.
///
/// Method: x = m 2^n with m from sqrt(1/2) to sqrt(2); ln m = 2 atanh(s) with s = (m - 1) / (m + 1), |s| < 0.172,
/// by its series up to s^23, where the next term is below 1e-19.
pub(crate) fn log2(x: f64) -> f64 {
    const MANTISSA: u64 = (1 << 52) - 1;
    let bits = x.to_bits();
    let exponent = ((bits >> 52) & 0x7ff) as f64 - 1023.0;
    let mantissa = f64::from_bits(bits & MANTISSA | 1023 << 52);
    let (m, n) = if mantissa > std::f64::consts::SQRT_2 {
        (0.5 * mantissa, exponent + 1.0)
    } else {
        (mantissa, exponent)
    };
    let s = (m - 1.0) / (m + 1.0);
    let square = s * s;
    let odd = [
        23.0, 21.0, 19.0, 17.0, 15.0, 13.0, 11.0, 9.0, 7.0, 5.0, 3.0, 1.0,
    ];
    let series = odd.iter().fold(0.0, |sum, k| sum * square + 1.0 / k);
    n + 2.0 * s * series * std::f64::consts::LOG2_E
}

/// The id of the highest value, the lowest of equals; NaN only if there is nothing else.
///
/// First the value, in lanes that do not depend on each other, then where it is: the compiler uses vectors
/// for both. One comparison after the other, with a copy of the row, took 50 us for a vocabulary of 50,277: 1.5 % of a token at 169M.
pub(crate) fn argmax(values: &[f32]) -> u32 {
    const LANES: usize = 32;
    let mut lanes = [f32::NEG_INFINITY; LANES];
    for values in values.chunks(LANES) {
        for (lane, &value) in lanes.iter_mut().zip(values) {
            // False for NaN.
            *lane = if value > *lane { value } else { *lane };
        }
    }
    let best = lanes.into_iter().fold(f32::NEG_INFINITY, f32::max);
    let is_there = |chunk: &[f32]| chunk.iter().fold(false, |found, &v| found | (v == best));
    let chunk = values.chunks(LANES).position(is_there).unwrap_or(0);
    let inside = values.iter().skip(chunk * LANES);
    let inside = inside.take(LANES).position(|&value| value == best);
    (chunk * LANES + inside.unwrap_or(0)) as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_within_two_ulp_of_the_correctly_rounded_value() {
        let mut worst = 0;
        for i in 0..2_000_000 {
            let x = -87.3 + 175.3 * (i as f32 / 2_000_000.0);
            let expected = f64::from(x).exp() as f32;
            let ulp = exp(x).to_bits().abs_diff(expected.to_bits());
            worst = worst.max(ulp);
        }
        assert!(worst <= 2, "worst error {worst} ulp");
    }

    #[test]
    fn exp_at_the_edges() {
        assert_eq!(exp(0.0), 1.0);
        assert_eq!(exp(-1e30), 0.0);
        assert_eq!(exp(f32::NEG_INFINITY), 0.0);
        assert!(exp(1e30).is_finite());
        assert!(exp(f32::NAN).is_nan());
        assert_eq!(sigmoid(0.0), 0.5);
        assert_eq!(sigmoid(100.0), 1.0);
        assert!(sigmoid(-100.0) < 1e-37);
        for x in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            assert!(sigmoid(x).is_nan(), "{x}");
        }
    }

    #[test]
    fn tanh_is_within_four_ulp_of_the_correctly_rounded_value() {
        let mut worst = 0;
        for i in -1_000_000..=1_000_000 {
            let x = 12.0 * (i as f32 / 1_000_000.0);
            let expected = f64::from(x).tanh() as f32;
            worst = worst.max(tanh(x).to_bits().abs_diff(expected.to_bits()));
        }
        assert!(worst <= 4, "worst error {worst} ulp");
        assert_eq!(tanh(0.0), 0.0);
        assert_eq!(tanh(1e30), 1.0);
        assert_eq!(tanh(-1e30), -1.0);
        for x in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            assert!(tanh(x).is_nan(), "{x}");
        }
    }

    #[test]
    fn log2_is_exact_to_a_few_units_in_the_last_place() {
        let mut x = 1e-300_f64;
        while x < 1e300 {
            let expected = x.log2();
            let error = (log2(x) - expected).abs();
            assert!(error <= 1e-15 * expected.abs().max(1.0), "{x}: {error}");
            x *= 1.000_37;
        }
        for n in -1000..1000 {
            assert_eq!(log2(2f64.powi(n)), f64::from(n));
        }
        assert!([0.0, f64::NAN, f64::INFINITY]
            .iter()
            .all(|&x| log2(x).is_finite()));
    }

    #[test]
    fn argmax_is_the_first_of_the_largest() {
        let plain = |values: &[f32]| {
            let mut best = (0, f32::NAN);
            for (&value, id) in values.iter().zip(0u32..) {
                if value > best.1 || (best.1.is_nan() && !value.is_nan()) {
                    best = (id, value);
                }
            }
            best.0
        };
        let (nan, low) = (f32::NAN, f32::NEG_INFINITY);
        for values in [
            &[][..],
            &[nan],
            &[nan, low],
            &[low, low],
            &[nan, 1.0, 1.0],
            &[0.0, -0.0],
            &[-0.0, 0.0],
        ] {
            assert_eq!(argmax(values), plain(values), "{values:?}");
        }
        let mut seed = 1u32;
        for n in 1..300 {
            let values: Vec<f32> = (0..n)
                .map(|_| {
                    seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                    match seed >> 28 {
                        0 => nan,
                        _ => f32::from((seed >> 16) as u8) - 128.0,
                    }
                })
                .collect();
            assert_eq!(argmax(&values), plain(&values), "{n} values");
        }
    }
}
