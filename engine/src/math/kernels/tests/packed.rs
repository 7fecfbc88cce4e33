//! Kernels for packed weights of every set: the scalar twin's numbers, and what the layout says of single bits.

use super::super::packed::{
    code, packed_row_bytes, BLOCK, NIBBLE_CODES, PACKED_ACTIVATION_MAX, PACKED_WEIGHT_MAX, UNIT,
};
use super::*;

/// Columns: around the edges of blocks and units, and more than kernels split at once.
const COLS: [usize; 15] = [
    1, 15, 16, 17, 31, 32, 33, 63, 64, 65, 300, 768, 1040, 4096, 5000,
];

struct Made {
    bytes: Vec<u8>,
    cols: usize,
    bits: u32,
}

impl Made {
    /// Every byte is valid.
    fn new(bits: u32, rows: usize, cols: usize) -> Self {
        let mut random = Random::new(cols + bits as usize);
        let n = rows * packed_row_bytes(bits, cols);
        let bytes = (0..n).map(|_| random.0.next_u32() as u8).collect();
        Made { bytes, cols, bits }
    }

    fn rows(&self) -> PackedRows<'_> {
        PackedRows {
            bytes: &self.bytes,
            cols: self.cols,
            bits: self.bits,
        }
    }
}

/// As [`super::work_to_count`], of a matrix of so many rows and columns: "dots_q4" and its like, as the engine takes one
/// row of activations and several, "gather_q4" and "panel_q4".
pub(super) fn work_to_count(
    set: KernelSet,
    kernel: &str,
    (x, rows, cols): (Rows<'_, i16>, usize, usize),
    times: usize,
) {
    let (kind, bits) = kernel.split_once("_q").expect("a kernel");
    let bits = bits.parse().expect("a number");
    let (by_output, by_input) = (Made::new(bits, rows, cols), Made::new(bits, cols, rows));
    let indices: Vec<u32> = (0..rows as u32).collect();
    let (mut widened, mut panel) = (vec![0; rows * cols], vec![0; cols * PANEL_WIDTH]);
    let mut sums = vec![0; x.n * cols];
    for _ in 0..times {
        match kind {
            "dots" if x.n == 1 => set.dots_packed(by_output.rows(), x, &mut sums[..rows]),
            "dots" => {
                set.widen_packed(by_output.rows(), &mut widened);
                set.dots_i16(&widened, x, cols, &mut sums[..x.n * rows]);
            }
            "gather" => {
                let values = &x.values[..rows];
                set.gather_packed(by_output.rows(), &indices, values, &mut sums[..cols]);
            }
            "panel" => {
                for first in (0..rows).step_by(PANEL_WIDTH) {
                    set.pack_packed(by_input.rows(), first, PANEL_WIDTH, &mut panel);
                    set.multiply_panel_i8(&panel, x, &mut sums[..x.n * PANEL_WIDTH]);
                }
            }
            _ => panic!("no such kernel: {kernel}"),
        }
    }
    std::hint::black_box(sums);
}

fn activations(n: usize, seed: usize) -> Vec<i16> {
    let numbers = Random::new(seed).shorts(n);
    let largest = PACKED_ACTIVATION_MAX;
    let numbers = numbers.into_iter().map(|x| x.clamp(-largest, largest));
    numbers
        .enumerate()
        .map(|(i, x)| match i % 97 {
            0 => largest,
            1 => -largest,
            _ => x,
        })
        .collect()
}

fn for_each(check: impl Fn(KernelSet, &Made, &str)) {
    for_each_set(|set| {
        for bits in 4..=6 {
            for cols in COLS {
                let made = Made::new(bits, 7, cols);
                check(set, &made, &format!("{} {bits} bits, {cols}", set.name()));
            }
        }
    });
}

#[test]
fn products_are_those_of_the_scalar_twin() {
    for_each(|set, made, what| {
        let cols = made.cols;
        for n in [1, 2, 5] {
            let stride = cols + 3;
            let values = activations(n * stride, cols);
            let x = Rows {
                values: &values,
                stride,
                n,
            };
            let (mut expected, mut found) = (vec![0; 7 * n], vec![1; 7 * n]);
            KernelSet::Scalar.dots_packed(made.rows(), x, &mut expected);
            set.dots_packed(made.rows(), x, &mut found);
            assert_eq!(found, expected, "{what}: dots of {n}");

            let mut widened = vec![1; 7 * cols];
            set.widen_packed(made.rows(), &mut widened);
            set.dots_i16(&widened, x, cols, &mut found);
            assert_eq!(found, expected, "{what}: widened, {n}");
        }
    });
}

#[test]
fn gathers_and_panels_are_those_of_the_scalar_twin() {
    for_each(|set, made, what| {
        for n in [1, 2, 3, 7, 8, 9, 17] {
            let rows: Vec<u32> = (0..n).map(|i| (i * 3 + 1) % 7).collect();
            let values = activations(n as usize, n as usize);
            let (mut expected, mut found) = (vec![0; made.cols], vec![1; made.cols]);
            KernelSet::Scalar.gather_packed(made.rows(), &rows, &values, &mut expected);
            set.gather_packed(made.rows(), &rows, &values, &mut found);
            assert!(found == expected, "{what}: gather of {n}");
        }
        for first in (0..made.cols).step_by(if made.cols < 100 { 3 } else { 16 }) {
            let n = PANEL_WIDTH.min(made.cols - first);
            let (mut expected, mut found) = (vec![0; 8 * 16], vec![1; 8 * 16]);
            KernelSet::Scalar.pack_packed(made.rows(), first, n, &mut expected);
            set.pack_packed(made.rows(), first, n, &mut found);
            assert!(found == expected, "{what}: panel from {first}");
        }
    });
}

/// Where kernels hold sums in 16 bits: numbers, scales and activations that are as large as they can be.
#[test]
fn the_largest_products_are_those_of_the_scalar_twin() {
    for_each_set(|set| {
        for bits in 4..=6 {
            for byte in [0x00, 0xff] {
                let cols = 3 * UNIT;
                let mut made = Made::new(bits, 3, cols);
                made.bytes.fill(byte);
                // Of 128 the low byte is -128; of the largest, both bytes are 127.
                for x in [128, PACKED_ACTIVATION_MAX, -PACKED_ACTIVATION_MAX] {
                    let values = vec![x; cols];
                    let x = Rows {
                        values: &values,
                        stride: cols,
                        n: 1,
                    };
                    let (mut expected, mut found) = (vec![0; 3], vec![1; 3]);
                    KernelSet::Scalar.dots_packed(made.rows(), x, &mut expected);
                    set.dots_packed(made.rows(), x, &mut found);
                    assert_eq!(found, expected, "{} {bits} bits, {byte}", set.name());
                }
            }
        }
    });
}

/// The layout, bit by bit: a row that is 0 but for one bit of one weight.
#[test]
fn bits_lie_where_the_layout_says() {
    for bits in 4..=6 {
        let cols = 2 * UNIT;
        let empty = vec![0_u8; packed_row_bytes(bits, cols)];
        let read = |bytes: &[u8]| {
            let mut weights = vec![0; cols];
            let rows = PackedRows { bytes, cols, bits };
            KernelSet::Scalar.widen_packed(rows, &mut weights);
            weights
        };
        let without = read(&empty);
        assert!(without.iter().all(|&w| w == i16::from(code(bits, 0))));
        let mut seen = std::collections::BTreeSet::new();
        let n_scales = cols / UNIT;
        for byte in n_scales..empty.len() {
            for bit in 0..8 {
                let mut bytes = empty.clone();
                bytes[byte] = 1 << bit;
                let changed: Vec<(usize, i16)> = read(&bytes)
                    .into_iter()
                    .enumerate()
                    .filter(|&(i, w)| w != without[i])
                    .collect();
                assert_eq!(changed.len(), 1, "{bits} bits: byte {byte}, bit {bit}");
                assert!(seen.insert(changed[0]), "twice: {:?}", changed[0]);
            }
        }
        assert_eq!(seen.len(), cols * bits as usize);
        let mut scaled = empty.clone();
        scaled[1] = 0xf0;
        let scaled = read(&scaled);
        let by = |at: usize| scaled[at] / without[at];
        assert!((0..cols).all(|at| by(at) == if at / BLOCK == 3 { 16 } else { 1 }));
    }
}

#[test]
fn codes_ascend_and_bound_what_kernels_rely_on() {
    for bits in 4..=6 {
        let codes: Vec<i32> = (0..1 << bits).map(|u| i32::from(code(bits, u))).collect();
        assert!(codes.windows(2).all(|pair| pair[0] < pair[1]));
        assert!(codes.iter().all(|c| 16 * c.abs() <= PACKED_WEIGHT_MAX));
    }
    // Where two codes meet is a multiple of 1/2, by which rounding finds the nearest.
    assert!(NIBBLE_CODES.iter().all(|c| (-32..32).contains(c)));
}
