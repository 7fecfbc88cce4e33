//! Products with packed weights of 4 to 6 bits; `packed.rs` beside the instruction sets has their layout.
//!
//! Activations have 16 bits, so each is split into two signed bytes, `x = 256 * high + low`. Codes plus an offset are
//! unsigned bytes of at most 63, so `vpmaddubsw` multiplies 32 of them with bytes of activations and adds pairs, of which two
//! fit 16 bits; `vpmaddwd` multiplies these by the blocks' scales on the way to i32. What the offset adds is the same for
//! every row but for the scales: the sum of a block's activations, which is subtracted at the end of a row.
//!
//! ```text
//! a unit of 64 weights with 4 bits: a load, 2 masks, a shift, 2 look-ups, 4 products of bytes, 2 additions, 2 products with
//! the scales and their shuffle, 2 additions: 16 instructions for 33 bytes, so that four a cycle could read 24 GB/s at 3 GHz
//! ```
//!
//! All sums are exact modulo 2^32.

use std::arch::asm;
use std::arch::x86_64::*;
use std::mem::MaybeUninit;

use super::super::packed::{self, PackedRow, PackedRows, BLOCK, NIBBLE_CODES, NIBBLE_OFFSET, UNIT};
use super::super::{Rows, PANEL_WIDTH};
use super::gather::{self, Fetch, PassRows};

/// How far ahead of itself decode fetches weights; see `tile.rs`.
const DECODE_FETCH: usize = 6 << 10;
/// Units whose activations are split at once: 4,096 columns, 8 KiB of bytes on the stack.
const SPLIT_UNITS: usize = 64;
/// Units whose scales are unpacked at once.
const GROUP: usize = 16;

/// Bytes of a unit.
const fn unit_bytes(bits: u32) -> usize {
    packed::packed_row_bytes(bits, UNIT)
}

/// `code * scale = (FACTOR * u - OFFSET) * scale` of the unsigned numbers `u` that products are made with.
const fn factor_and_offset(bits: u32) -> (i32, i32) {
    match bits {
        5 => (2, 31),
        6 => (2, 63),
        _ => (1, NIBBLE_OFFSET),
    }
}

/// Activations of some units, as products want them. Aligned, so that no load crosses a cache line.
#[repr(align(64))]
struct Split {
    /// (units, 4, 32): high bytes of the first halves of both blocks, their low bytes, those of the second halves
    bytes: MaybeUninit<[i8; SPLIT_UNITS * 4 * BLOCK]>,
    /// (2, units): sums of the activations of each unit's first block, and of its second
    sums: [[i32; SPLIT_UNITS]; 2],
}

impl Split {
    /// Splits up to `SPLIT_UNITS * UNIT` activations; missing ones are 0.
    ///
    /// # Safety
    /// The CPU has the features.
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn fill(&mut self, x: &[i16]) {
        assert!(x.len() <= SPLIT_UNITS * UNIT);
        self.sums = [[0; SPLIT_UNITS]; 2];
        let target: *mut i8 = self.bytes.as_mut_ptr().cast();
        for (unit, x) in x.chunks(UNIT).enumerate() {
            let mut padded = [0_i16; UNIT];
            let x = if x.len() == UNIT {
                x
            } else {
                padded[..x.len()].copy_from_slice(x);
                &padded
            };
            // SAFETY: a unit has 64 activations, and 128 bytes in `bytes`.
            unsafe {
                let load = |at: usize| _mm256_loadu_si256(x.as_ptr().add(at).cast());
                let target = target.add(unit * 4 * BLOCK);
                for half in 0..2 {
                    let (first, second) = (load(half * 16), load(half * 16 + BLOCK));
                    let high =
                        |v| _mm256_srai_epi16::<8>(_mm256_add_epi16(v, _mm256_set1_epi16(128)));
                    let low = |v| _mm256_srai_epi16::<8>(_mm256_slli_epi16::<8>(v));
                    // Packing works on halves of registers: what it interleaves is put in order.
                    let bytes =
                        |a, b| _mm256_permute4x64_epi64::<0b11_01_10_00>(_mm256_packs_epi16(a, b));
                    let target = target.add(half * 2 * BLOCK).cast::<__m256i>();
                    _mm256_storeu_si256(target, bytes(high(first), high(second)));
                    _mm256_storeu_si256(target.add(1), bytes(low(first), low(second)));
                }
                let ones = _mm256_set1_epi16(1);
                for block in 0..2 {
                    let pairs = |at| _mm256_madd_epi16(load(block * BLOCK + at), ones);
                    self.sums[block][unit] = total(_mm256_add_epi32(pairs(0), pairs(16)));
                }
            }
        }
    }

    fn bytes(&self) -> *const i8 {
        self.bytes.as_ptr().cast()
    }
}

/// The sum of all lanes.
///
/// # Safety
/// The CPU has the features.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn total(sums: __m256i) -> i32 {
    // SAFETY: the CPU has AVX2.
    unsafe {
        let high = _mm256_extracti128_si256::<1>(sums);
        let sum = _mm_add_epi32(_mm256_castsi256_si128(sums), high);
        let sum = _mm_add_epi32(sum, _mm_shuffle_epi32::<0b01_00_11_10>(sum));
        let sum = _mm_add_epi32(sum, _mm_shuffle_epi32::<0b10_11_00_01>(sum));
        _mm_cvtsi128_si32(sum)
    }
}

/// # Safety
/// The CPU has the features; lengths are as `KernelSet::dots_packed` demands.
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) unsafe fn dots(weights: PackedRows<'_>, x: Rows<'_, i16>, out: &mut [i32]) {
    // SAFETY: as here.
    unsafe {
        match weights.bits {
            4 => dots_of::<4>(weights, x, out),
            5 => dots_of::<5>(weights, x, out),
            _ => dots_of::<6>(weights, x, out),
        }
    }
}

/// # Safety
/// As [`dots`].
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn dots_of<const BITS: u32>(weights: PackedRows<'_>, x: Rows<'_, i16>, out: &mut [i32]) {
    out.fill(0);
    let n_out = weights.n_rows();
    let mut split = Split {
        bytes: MaybeUninit::uninit(),
        sums: [[0; SPLIT_UNITS]; 2],
    };
    for t in 0..x.n {
        let x = &x.values[t * x.stride..][..weights.cols];
        let out = &mut out[t * n_out..][..n_out];
        for (piece, x) in x.chunks(SPLIT_UNITS * UNIT).enumerate() {
            // SAFETY: the units of this piece are in every row, and `split` has their activations.
            unsafe {
                split.fill(x);
                for (index, out) in out.iter_mut().enumerate() {
                    let row = weights.row(index);
                    let sum =
                        dot::<BITS>(&row, &split, piece * SPLIT_UNITS, x.len().div_ceil(UNIT));
                    *out = out.wrapping_add(sum);
                }
            }
        }
    }
}

/// What unpacking needs beside the weights. Compilers put constants back into memory, which costs a load an instruction in
/// loops that are bound by loads; these stay in registers.
#[derive(Clone, Copy)]
struct Constants {
    nibble: __m256i,
    /// What four bits mean, plus the offset; or the bits above the low four.
    codes: __m256i,
    /// Where each word of eight bytes has its high bits: the first halves of blocks, and the second.
    shifts: [__m256i; 2],
}

impl Constants {
    /// # Safety
    /// The CPU has the features.
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn new<const BITS: u32>() -> Self {
        const TABLE: [i8; 16] = {
            let mut table = NIBBLE_CODES;
            let mut i = 0;
            while i < 16 {
                table[i] += NIBBLE_OFFSET as i8;
                i += 1;
            }
            table
        };
        // SAFETY: the CPU has AVX2, and the table 16 bytes.
        unsafe {
            let codes = match BITS {
                4 => _mm256_broadcastsi128_si256(_mm_loadu_si128(TABLE.as_ptr().cast())),
                5 => _mm256_set1_epi8(0x10),
                _ => _mm256_set1_epi8(0x30),
            };
            let shifts = match BITS {
                6 => [
                    _mm256_setr_epi64x(4, 4, 2, 2),
                    _mm256_setr_epi64x(0, 0, 2, 2),
                ],
                _ => [
                    _mm256_setr_epi64x(4, 3, 2, 1),
                    _mm256_setr_epi64x(0, 1, 2, 3),
                ],
            };
            Constants {
                nibble: in_register(_mm256_set1_epi8(15)),
                codes: in_register(codes),
                shifts: shifts.map(|shift| in_register(shift)),
            }
        }
    }
}

/// The same, of which the compiler does not know what it is.
///
/// # Safety
/// The CPU has the features.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn in_register(mut value: __m256i) -> __m256i {
    // SAFETY: nothing is executed.
    unsafe {
        asm!("/* {0} */", inout(ymm_reg) value, options(pure, nomem, nostack, preserves_flags));
    }
    value
}

/// The codes of one unit plus their offset, those of the first halves of both blocks and those of the second halves.
///
/// # Safety
/// The CPU has the features; 32 bytes are readable at `low`, `8 * (BITS - 4)` at `high`.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn unsigned<const BITS: u32>(
    constants: &Constants,
    low: *const u8,
    high: *const u8,
) -> [__m256i; 2] {
    // SAFETY: the caller's promise.
    unsafe {
        let bytes = _mm256_loadu_si256(low.cast());
        let first = _mm256_and_si256(bytes, constants.nibble);
        let second = _mm256_and_si256(_mm256_srli_epi16::<4>(bytes), constants.nibble);
        if BITS == 4 {
            return [
                _mm256_shuffle_epi8(constants.codes, first),
                _mm256_shuffle_epi8(constants.codes, second),
            ];
        }
        let high = match BITS {
            5 => _mm256_set1_epi64x(high.cast::<i64>().read_unaligned()),
            _ => _mm256_broadcastsi128_si256(_mm_loadu_si128(high.cast())),
        };
        let above = _mm256_sllv_epi64(high, constants.shifts[0]);
        let below = _mm256_srlv_epi64(high, constants.shifts[1]);
        [
            _mm256_or_si256(first, _mm256_and_si256(above, constants.codes)),
            _mm256_or_si256(second, _mm256_and_si256(below, constants.codes)),
        ]
    }
}

/// One row times split activations: units `first .. first + n`.
///
/// # Safety
/// The CPU has the features; the row has these units, and `split` their activations.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn dot<const BITS: u32>(row: &PackedRow<'_>, split: &Split, first: usize, n: usize) -> i32 {
    let n_high = 8 * (BITS as usize - 4);
    let (factor, offset) = factor_and_offset(BITS);
    // SAFETY: units stay below `first + n`, also in `split`, but for the scales of the last group: what is read behind them
    // are low bits, of which every unit has 32 bytes, and their sums are 0. A prefetch may name any address.
    unsafe {
        let mut low = row.low.as_ptr().add(first * BLOCK);
        let mut high = row.high.as_ptr().add(first * n_high);
        let mut x = split.bytes().cast::<__m256i>();
        // Rows follow each other: what lies so far ahead of a unit is a part of the next ones.
        let ahead = row.scales.as_ptr().wrapping_add(first * unit_bytes(BITS));
        let mut ahead = ahead.wrapping_add(DECODE_FETCH);
        let mut sums_high = _mm256_setzero_si256();
        let mut sums_low = _mm256_setzero_si256();
        let mut offsets = _mm256_setzero_si256();
        let (constants, one) = (Constants::new::<BITS>(), in_register(_mm256_set1_epi16(1)));
        for group in (0..n).step_by(GROUP) {
            let n_units = GROUP.min(n - group);
            let scales = _mm_loadu_si128(row.scales.as_ptr().add(first + group).cast());
            let nibble = _mm_set1_epi8(15);
            let scales = [
                _mm_and_si128(scales, nibble),
                _mm_and_si128(_mm_srli_epi16::<4>(scales), nibble),
            ];
            let scales = scales.map(|s| _mm_add_epi8(s, _mm_set1_epi8(1)));
            for (scales, sums) in scales.iter().zip(&split.sums) {
                let sums = sums.as_ptr().add(group).cast::<__m256i>();
                let eight = [*scales, _mm_srli_si128::<8>(*scales)];
                for (i, eight) in eight.into_iter().enumerate() {
                    let products = _mm256_mullo_epi32(
                        _mm256_cvtepu8_epi32(eight),
                        _mm256_loadu_si256(sums.add(i)),
                    );
                    offsets = _mm256_add_epi32(offsets, products);
                }
            }
            let scales = _mm256_set_m128i(scales[1], scales[0]);
            // Byte `i` of each half, widened to 16 bits, in all its lanes.
            let mut index = _mm256_set1_epi16(0x8000_u16 as i16);
            for _ in 0..n_units {
                _mm_prefetch::<_MM_HINT_T1>(ahead.cast());
                ahead = ahead.wrapping_add(unit_bytes(BITS));
                let scale = _mm256_shuffle_epi8(scales, index);
                index = _mm256_add_epi16(index, one);
                let [a, b] = unsigned::<BITS>(&constants, low, high);
                let product =
                    |codes, at: usize| _mm256_maddubs_epi16(codes, _mm256_loadu_si256(x.add(at)));
                let products_high = _mm256_add_epi16(product(a, 0), product(b, 2));
                let products_low = _mm256_add_epi16(product(a, 1), product(b, 3));
                sums_high = _mm256_add_epi32(sums_high, _mm256_madd_epi16(products_high, scale));
                sums_low = _mm256_add_epi32(sums_low, _mm256_madd_epi16(products_low, scale));
                low = low.add(BLOCK);
                high = high.add(n_high);
                x = x.add(4);
            }
        }
        let sums = _mm256_add_epi32(_mm256_slli_epi32::<8>(sums_high), sums_low);
        let sums = _mm256_mullo_epi32(sums, _mm256_set1_epi32(factor));
        let offsets = _mm256_mullo_epi32(offsets, _mm256_set1_epi32(offset));
        total(_mm256_sub_epi32(sums, offsets))
    }
}

/// Sixteen unsigned codes, widened, as integers with this scale.
///
/// # Safety
/// The CPU has the features.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn scaled<const BITS: u32>(codes: __m128i, scale: i16) -> __m256i {
    let (factor, offset) = factor_and_offset(BITS);
    // SAFETY: the CPU has AVX2.
    unsafe {
        let scale = _mm256_set1_epi16(scale);
        let codes = _mm256_cvtepu8_epi16(codes);
        let codes = match factor {
            1 => codes,
            _ => _mm256_add_epi16(codes, codes),
        };
        _mm256_mullo_epi16(
            _mm256_sub_epi16(codes, _mm256_set1_epi16(offset as i16)),
            scale,
        )
    }
}

/// The scales of both blocks of a unit.
#[inline(always)]
fn scales_of(byte: u8) -> [i16; 2] {
    [byte & 15, byte >> 4].map(|scale| i16::from(scale) + 1)
}

/// # Safety
/// The CPU has the features; lengths are as `KernelSet::widen_packed` demands.
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) unsafe fn widen(weights: PackedRows<'_>, out: &mut [i16]) {
    // SAFETY: as here.
    unsafe {
        match weights.bits {
            4 => widen_of::<4>(weights, out),
            5 => widen_of::<5>(weights, out),
            _ => widen_of::<6>(weights, out),
        }
    }
}

/// # Safety
/// As [`widen`].
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn widen_of<const BITS: u32>(weights: PackedRows<'_>, out: &mut [i16]) {
    let n_high = 8 * (BITS as usize - 4);
    // SAFETY: the CPU has AVX2.
    let constants = unsafe { Constants::new::<BITS>() };
    for (index, out) in out.chunks_exact_mut(weights.cols).enumerate() {
        let row = weights.row(index);
        for (unit, out) in out.chunks_mut(UNIT).enumerate() {
            let mut padded = [0_i16; UNIT];
            let target = match out.len() {
                UNIT => out.as_mut_ptr(),
                _ => padded.as_mut_ptr(),
            };
            let scales = scales_of(row.scales[unit]);
            // SAFETY: the row has as many units as `out` has chunks; `target` has 64 numbers.
            unsafe {
                let low = row.low.as_ptr().add(unit * BLOCK);
                let high = row.high.as_ptr().add(unit * n_high);
                let [a, b] = unsigned::<BITS>(&constants, low, high);
                let sixteen = [
                    scaled::<BITS>(_mm256_castsi256_si128(a), scales[0]),
                    scaled::<BITS>(_mm256_castsi256_si128(b), scales[0]),
                    scaled::<BITS>(_mm256_extracti128_si256::<1>(a), scales[1]),
                    scaled::<BITS>(_mm256_extracti128_si256::<1>(b), scales[1]),
                ];
                for (i, sixteen) in sixteen.into_iter().enumerate() {
                    _mm256_storeu_si256(target.add(16 * i).cast(), sixteen);
                }
            }
            if out.len() < UNIT {
                out.copy_from_slice(&padded[..out.len()]);
            }
        }
    }
}

/// # Safety
/// The CPU has the features; lengths and rows are as `KernelSet::gather_packed` demands.
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) unsafe fn gather(
    weights: PackedRows<'_>,
    rows: &[u32],
    values: &[i16],
    out: &mut [i32],
) {
    // SAFETY: as here.
    unsafe {
        match weights.bits {
            4 => gather_of::<4>(weights, rows, values, out),
            5 => gather_of::<5>(weights, rows, values, out),
            _ => gather_of::<6>(weights, rows, values, out),
        }
    }
}

/// Rows of one pass of a gather, and pairs of them.
const ROWS: usize = gather::GROUP;
const PAIRS: usize = ROWS / 2;
/// Units of which the scales of a pair of rows are unpacked at once.
const PAIR_GROUP: usize = 8;

/// # Safety
/// As [`gather`].
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn gather_of<const BITS: u32>(
    weights: PackedRows<'_>,
    rows: &[u32],
    values: &[i16],
    out: &mut [i32],
) {
    out.fill(0);
    for (first, values) in (0..).step_by(ROWS).zip(values.chunks(ROWS)) {
        // Missing rows are the first again, times 0.
        let index = |i: usize| rows[first + if i < values.len() { i } else { 0 }] as usize;
        let value = |i: usize| values.get(i).map_or(0, |&v| u32::from(v as u16));
        let pass = GatherPass::<BITS> {
            rows: std::array::from_fn(|i| weights.row(index(i))),
            values: std::array::from_fn(|pair| {
                (value(2 * pair) | value(2 * pair + 1) << 16) as i32
            }),
            n_pairs: values.len().div_ceil(2),
        };
        let mut fetch = match values.len() {
            ROWS => PassRows::new(weights.bytes, weights.row_bytes(), rows, first).fetch,
            _ => Fetch::nothing(),
        };
        // SAFETY: each row has as many units as `out`.
        unsafe { pass.add_to(out, &mut fetch) };
    }
}

/// Up to eight rows, each times a number of its own.
struct GatherPass<'a, const BITS: u32> {
    rows: [PackedRow<'a>; ROWS],
    /// Two numbers each.
    values: [i32; PAIRS],
    n_pairs: usize,
}

impl<const BITS: u32> GatherPass<'_, BITS> {
    /// `out[c] += sum over i of values[i] * rows[i][c]`.
    ///
    /// # Safety
    /// The CPU has the features; every row has as many units as `out`.
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn add_to(&self, out: &mut [i32], fetch: &mut Fetch) {
        // SAFETY: the CPU has AVX2.
        let (constants, values) = unsafe {
            (
                Constants::new::<BITS>(),
                self.values.map(|pair| _mm256_set1_epi32(pair)),
            )
        };
        // SAFETY: as above.
        let mut scales = [unsafe { _mm256_setzero_si256() }; PAIRS];
        for (unit, out) in out.chunks_mut(UNIT).enumerate() {
            if unit % PAIR_GROUP == 0 {
                for (pair, scales) in scales.iter_mut().enumerate().take(self.n_pairs) {
                    // SAFETY: the rows have this unit.
                    *scales = unsafe { self.scales(pair, unit) };
                }
            }
            // SAFETY: the CPU has AVX2.
            unsafe { fetch.go_on((ROWS * unit_bytes(BITS)).div_ceil(64)) };
            let mut padded = [0; UNIT];
            let target = match out.len() {
                UNIT => out.as_mut_ptr(),
                n => {
                    padded[..n].copy_from_slice(out);
                    padded.as_mut_ptr()
                }
            };
            // SAFETY: the rows have this unit, and `target` 64 sums.
            unsafe { self.add_unit(&constants, &scales, &values, unit, target) };
            if out.len() < UNIT {
                out.copy_from_slice(&padded[..out.len()]);
            }
        }
    }

    /// Scales of a pair of rows for eight units: two bytes a unit, of first blocks in the low half and of second blocks in
    /// the high half.
    ///
    /// # Safety
    /// The CPU has the features; the rows have units from `first` on.
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn scales(&self, pair: usize, first: usize) -> __m256i {
        // SAFETY: behind the scales of a row are its low bits, 32 bytes a unit, so that eight bytes can be read from
        // any of its scales on.
        unsafe {
            let load = |row: &PackedRow<'_>| {
                let scales = row.scales.as_ptr().add(first);
                _mm_loadl_epi64(scales.cast())
            };
            let rows = &self.rows[2 * pair..];
            let bytes = _mm_unpacklo_epi8(load(&rows[0]), load(&rows[1]));
            let nibble = _mm_set1_epi8(15);
            let low = _mm_and_si128(bytes, nibble);
            let high = _mm_and_si128(_mm_srli_epi16::<4>(bytes), nibble);
            _mm256_add_epi8(_mm256_set_m128i(high, low), _mm256_set1_epi8(1))
        }
    }

    /// # Safety
    /// The CPU has the features; the rows have this unit, `scales` are those of its group, and there are 64 sums at `out`.
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn add_unit(
        &self,
        constants: &Constants,
        scales: &[__m256i; PAIRS],
        values: &[__m256i; PAIRS],
        unit: usize,
        out: *mut i32,
    ) {
        let n_high = 8 * (BITS as usize - 4);
        let (factor, offset) = factor_and_offset(BITS);
        // SAFETY: the caller's promise.
        unsafe {
            let zero = _mm256_setzero_si256();
            // Columns of first blocks are in the low halves: 0 to 3, 4 to 7 and so on of both blocks.
            let mut sums = [zero; 8];
            let mut offsets = zero;
            // The two bytes of this unit, widened to 16 bits, in all lanes.
            let byte = 2 * (unit % PAIR_GROUP) as i32;
            let index = _mm256_set1_epi32(0x8001_8000_u32 as i32 + byte + (byte << 16));
            for pair in 0..self.n_pairs {
                let codes = |row: &PackedRow<'_>| {
                    let low = row.low.as_ptr().add(unit * BLOCK);
                    let high = row.high.as_ptr().add(unit * n_high);
                    unsigned::<BITS>(constants, low, high)
                };
                let (a, b) = (codes(&self.rows[2 * pair]), codes(&self.rows[2 * pair + 1]));
                let scale = _mm256_shuffle_epi8(scales[pair], index);
                let value = values[pair];
                offsets = _mm256_add_epi32(offsets, _mm256_madd_epi16(scale, value));
                for half in 0..2 {
                    let bytes = [
                        _mm256_unpacklo_epi8(a[half], b[half]),
                        _mm256_unpackhi_epi8(a[half], b[half]),
                    ];
                    for (i, bytes) in bytes.into_iter().enumerate() {
                        let pairs = [
                            _mm256_unpacklo_epi8(bytes, zero),
                            _mm256_unpackhi_epi8(bytes, zero),
                        ];
                        for (j, pairs) in pairs.into_iter().enumerate() {
                            let sum = &mut sums[4 * half + 2 * i + j];
                            let integers = _mm256_mullo_epi16(pairs, scale);
                            *sum = _mm256_add_epi32(*sum, _mm256_madd_epi16(integers, value));
                        }
                    }
                }
            }
            let offsets = _mm256_mullo_epi32(offsets, _mm256_set1_epi32(offset));
            let exact = |sum| {
                let sum = if factor == 2 {
                    _mm256_add_epi32(sum, sum)
                } else {
                    sum
                };
                _mm256_sub_epi32(sum, offsets)
            };
            for i in 0..4 {
                let (first, second) = (exact(sums[2 * i]), exact(sums[2 * i + 1]));
                let blocks = [
                    _mm256_permute2x128_si256::<0x20>(first, second),
                    _mm256_permute2x128_si256::<0x31>(first, second),
                ];
                for (block, sums) in blocks.into_iter().enumerate() {
                    let target = out.add(block * BLOCK + 8 * i).cast::<__m256i>();
                    _mm256_storeu_si256(target, _mm256_add_epi32(_mm256_loadu_si256(target), sums));
                }
            }
        }
    }
}

/// # Safety
/// The CPU has the features; lengths are as `KernelSet::pack_packed` demands.
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) unsafe fn pack(weights: PackedRows<'_>, first: usize, n: usize, panel: &mut [i16]) {
    if n < PANEL_WIDTH || first % PANEL_WIDTH != 0 {
        return packed::pack_packed(weights, first, n, panel);
    }
    // SAFETY: as here; the sixteen columns lie in one unit.
    unsafe {
        match weights.bits {
            4 => pack_of::<4>(weights, first, panel),
            5 => pack_of::<5>(weights, first, panel),
            _ => pack_of::<6>(weights, first, panel),
        }
    }
}

/// # Safety
/// The CPU has the features; rows have columns `first .. first + 16`, which begin at a multiple of 16; `panel` is
/// (ceil(rows / 2), 16, 2).
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn pack_of<const BITS: u32>(weights: PackedRows<'_>, first: usize, panel: &mut [i16]) {
    let (n_rows, row_bytes) = (weights.n_rows(), weights.row_bytes());
    let n_units = weights.cols.div_ceil(UNIT);
    let (unit, block) = (first / UNIT, first / BLOCK % 2);
    let n_high = 8 * (BITS as usize - 4);
    // Where these columns are in each row.
    let scale_at = unit;
    let low_at = n_units + unit * BLOCK + block * 16;
    let high_at = n_units * (1 + BLOCK) + unit * n_high;
    // SAFETY: rows are below `n_rows` and have the columns; a row of the panel has 32 numbers.
    unsafe {
        let constants = Constants::new::<BITS>();
        let sixteen = |row: usize| {
            let row = weights.bytes.as_ptr().add(row * row_bytes);
            let scale = scales_of(*row.add(scale_at))[block];
            let (low, high) = (row.add(low_at), row.add(high_at));
            let codes = match first / 16 % 2 {
                0 => half_of_block::<BITS, 0>(&constants, low, high, block),
                _ => half_of_block::<BITS, 1>(&constants, low, high, block),
            };
            scaled::<BITS>(codes, scale)
        };
        for (pair, panel) in panel.chunks_exact_mut(2 * PANEL_WIDTH).enumerate() {
            let a = sixteen(2 * pair);
            let b = match 2 * pair + 1 < n_rows {
                true => sixteen(2 * pair + 1),
                false => _mm256_setzero_si256(),
            };
            let (low, high) = (_mm256_unpacklo_epi16(a, b), _mm256_unpackhi_epi16(a, b));
            let target = panel.as_mut_ptr().cast::<__m256i>();
            _mm256_storeu_si256(target, _mm256_permute2x128_si256::<0x20>(low, high));
            _mm256_storeu_si256(target.add(1), _mm256_permute2x128_si256::<0x31>(low, high));
        }
    }
}

/// The codes of the first or second half of a block plus their offset.
///
/// # Safety
/// The CPU has the features; 16 bytes are readable at `low`, `8 * (BITS - 4)` at `high`.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn half_of_block<const BITS: u32, const HALF: usize>(
    constants: &Constants,
    low: *const u8,
    high: *const u8,
    block: usize,
) -> __m128i {
    // SAFETY: the caller's promise.
    unsafe {
        let bytes = _mm_loadu_si128(low.cast());
        let bytes = if HALF == 0 {
            bytes
        } else {
            _mm_srli_epi16::<4>(bytes)
        };
        let bytes = _mm_and_si128(bytes, _mm256_castsi256_si128(constants.nibble));
        let codes = _mm256_castsi256_si128(constants.codes);
        if BITS == 4 {
            return _mm_shuffle_epi8(codes, bytes);
        }
        let high = match BITS {
            5 => _mm_set1_epi64x(high.cast::<i64>().read_unaligned()),
            _ => _mm_loadu_si128(high.cast()),
        };
        let shift = match block {
            0 => _mm256_castsi256_si128(constants.shifts[HALF]),
            _ => _mm256_extracti128_si256::<1>(constants.shifts[HALF]),
        };
        let high = match HALF {
            0 => _mm_sllv_epi64(high, shift),
            _ => _mm_srlv_epi64(high, shift),
        };
        _mm_or_si128(bytes, _mm_and_si128(high, codes))
    }
}
