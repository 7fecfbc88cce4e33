//! What the kernels take: the structs of `kernels/*.cuh`, field by field. A test compares their sizes with
//! those in the compiled kernels.

use crate::driver::Address;

/// Threads of a block of every kernel but the products.
pub(crate) const THREADS: u32 = 512;
pub(crate) const WKV_CHANNELS: u32 = 64;
/// Warps of a block, and outputs of a warp at a time.
pub(crate) const WARPS: u32 = THREADS / 32;

macro_rules! parameters {
    ($($(#[$meta:meta])* struct $name:ident { $($field:ident: $kind:ty,)* })*) => {$(
        $(#[$meta])*
        #[repr(C)]
        #[derive(Clone, Copy, Default)]
        pub(crate) struct $name { $(pub(crate) $field: $kind,)* }
    )*};
}

parameters! {
    struct Batch {
        tokens: Address,
        row_span: Address,
        span_first: Address,
        span_rows: Address,
        span_state: Address,
        chunk_span: Address,
        chunk_first: Address,
        chunk_rows: Address,
        chunk_index: Address,
        out_rows: Address,
        out_logits: Address,
    }
    struct Norm {
        weight: Address,
        bias: Address,
        epsilon: f32,
    }
    struct Matrix {
        weights: Address,
        input_factors: Address,
        output_factors: Address,
        n_outputs: u32,
        stride: u32,
    }
    struct Ahead {
        weights: Address,
        vectors: Address,
        weight_lines: u32,
        vector_lines: u32,
        state: u32,
        state_lines: u32,
    }
    struct TimeIn {
        x: Address,
        norm: Norm,
        mix: [Address; 3],
        matrix: [Matrix; 3],
        n_blocks: [u32; 3],
        out: [Address; 3],
        normed: Address,
        n_embd: u32,
        x_stride: u32,
        a_stride: u32,
        n_rows: u32,
        previous: u32,
        batch: Batch,
        ahead: Ahead,
    }
    struct TimeOut {
        key: Address,
        value: Address,
        receptance: Address,
        decay_log: Address,
        bonus: Address,
        matrix: Matrix,
        normed: Address,
        x: Address,
        n_attention: u32,
        n_embd: u32,
        x_stride: u32,
        a_stride: u32,
        n_rows: u32,
        previous: u32,
        wkv: u32,
        batch: Batch,
        ahead: Ahead,
    }
    struct ChannelIn {
        x: Address,
        norm: Norm,
        mix: [Address; 2],
        matrix: [Matrix; 2],
        n_blocks: [u32; 2],
        hidden_factors: Address,
        hidden: Address,
        gate: Address,
        normed: Address,
        key: Address,
        value: Address,
        decay_log: Address,
        n_attention: u32,
        n_embd: u32,
        x_stride: u32,
        a_stride: u32,
        hidden_stride: u32,
        n_rows: u32,
        previous: u32,
        wkv: u32,
        batch: Batch,
        ahead: Ahead,
    }
    struct ChannelOut {
        hidden: Address,
        matrix: Matrix,
        gate: Address,
        normed: Address,
        x: Address,
        x_stride: u32,
        hidden_stride: u32,
        n_rows: u32,
        previous: u32,
        batch: Batch,
        ahead: Ahead,
    }
    struct Head {
        x: Address,
        norm: Norm,
        matrix: Matrix,
        best: Address,
        n_embd: u32,
        x_stride: u32,
        n_rows: u32,
        batch: Batch,
        ahead: Ahead,
    }
    /// With tensor cores high and low halves of f16, without f32 in the first.
    struct Inputs {
        high: Address,
        low: Address,
        scales: Address,
        stride: u32,
    }
    struct Shift {
        x: Address,
        norm: Norm,
        mix: [Address; 3],
        factors: [Address; 3],
        out: [Inputs; 3],
        split: u32,
        last: Address,
        n_embd: u32,
        x_stride: u32,
        n_rows: u32,
        rows_of_block: u32,
        single: u32,
        staged: u32,
        behind_products: u32,
        previous: u32,
        hidden_bound: Address,
        hidden_scales: Address,
        batch: Batch,
    }
    struct Plain {
        x: Address,
        factors: Address,
        out: Inputs,
        split: u32,
        n: u32,
        x_stride: u32,
        single: u32,
        last: Address,
        last_stride: u32,
        n_embd: u32,
        previous: u32,
        batch: Batch,
    }
    struct WkvRows {
        key: Address,
        value: Address,
        receptance: Address,
        decay_log: Address,
        bonus: Address,
        factors: Address,
        out: Inputs,
        split: u32,
        gated: Address,
        sums: Address,
        start: Address,
        last: Address,
        n_attention: u32,
        a_stride: u32,
        last_stride: u32,
        n_embd: u32,
        previous: u32,
        wkv: u32,
        batch: Batch,
    }
    struct NormOut {
        x: Address,
        norm: Norm,
        factors: Address,
        out: Inputs,
        split: u32,
        hidden: Address,
        n_embd: u32,
        x_stride: u32,
        first: u32,
        behind_products: u32,
        batch: Batch,
    }
    struct LogitsOut {
        logits: Address,
        kept: u32,
        best: Address,
        n_vocab: u32,
        stride: u32,
        first: u32,
        batch: Batch,
    }
    struct Tokens {
        best: Address,
        tokens: Address,
    }
    struct Begin {
        from: Batch,
        batch: Batch,
        embedding: Matrix,
        norm: Norm,
        x: Address,
        n_embd: u32,
        x_stride: u32,
        single: u32,
        outputs: u32,
    }
    struct Product {
        matrix: Matrix,
        inputs: Inputs,
        out: Address,
        gate: Address,
        out_stride: u32,
        finish: u32,
    }
    struct Products {
        product: [Product; 3],
        n_tiles: [u32; 3],
        n_rows: u32,
        partials: Address,
        counters: Address,
        hidden: Inputs,
        hidden_factors: Address,
        split: u32,
        out_logits: Address,
        best: Address,
        early: u32,
    }
    struct HiddenBound {
        key: Matrix,
        hidden_factors: Address,
        bound: Address,
    }
    struct ResidentLayer {
        att_norm: Norm,
        att_mix: [Address; 3],
        decay_log: Address,
        bonus: Address,
        att_in: [Matrix; 3],
        att_output: Matrix,
        ffn_norm: Norm,
        ffn_mix: [Address; 2],
        ffn_in: [Matrix; 2],
        ffn_value: Matrix,
    }
    struct Resident {
        layer: ResidentLayer,
        vectors_step: u64,
        weights_step: u64,
        norm_out: Norm,
        head: Matrix,
        x: Address,
        x_flagged: Address,
        gated_flagged: Address,
        hidden_flagged: Address,
        n_launches: Address,
        best: Address,
        vectors: Address,
        vector_lines: u32,
        n_layers: u32,
        n_embd: u32,
        n_attention: u32,
        n_hidden: u32,
        n_slots: u32,
        in_flight_bytes: u32,
        n_tiles: u32,
        plane_bytes: u32,
        hidden_plane_bytes: u32,
        planes_bytes: u32,
        batch: Batch,
    }
    struct Repack {
        from: Address,
        to: Address,
        n_rows: u32,
        n_cols: u32,
        first_row: u32,
        stride: u32,
        transpose: u32,
    }
}

/// What becomes of a product: `enum Finish` of products.cuh.
#[derive(Clone, Copy)]
pub(crate) enum Finish {
    Store = 0,
    SquaredRelu = 1,
    Sigmoid = 2,
    Add = 3,
    AddGated = 4,
    Hidden = 5,
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Bytes of the parameter of `kernel` in compiled kernels.
    fn size_in(ptx: &str, kernel: &str) -> usize {
        let name = format!("{kernel}_param_0[");
        let start = ptx.find(&name).map(|at| at + name.len());
        let start = start.unwrap_or_else(|| panic!("no kernel {kernel}"));
        let digits: String = ptx[start..]
            .chars()
            .take_while(char::is_ascii_digit)
            .collect();
        digits.parse().expect("a number")
    }

    /// kernels/build.py writes the hash of its sources into the first line.
    #[test]
    fn kernels_are_compiled_from_their_sources() {
        use sha2::{Digest, Sha256};
        let mut hash = Sha256::new();
        for source in [
            include_str!("../kernels/rwkv4.cu"),
            include_str!("../kernels/common.cuh"),
            include_str!("../kernels/decode.cuh"),
            include_str!("../kernels/rows.cuh"),
            include_str!("../kernels/single.cuh"),
            include_str!("../kernels/tensor.cuh"),
            include_str!("../kernels/products.cuh"),
            include_str!("../kernels/ring.cuh"),
            include_str!("../kernels/resident.cuh"),
        ] {
            hash.update(source);
        }
        let hash: String = hash
            .finalize()
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        let first_line = format!("// sources {hash}\n");
        for (name, ptx) in [
            ("61 f16", include_str!("../kernels/rwkv4_sm61_f16.ptx")),
            ("61 int8", include_str!("../kernels/rwkv4_sm61_int8.ptx")),
            ("80 f16", include_str!("../kernels/rwkv4_sm80_f16.ptx")),
            ("80 int8", include_str!("../kernels/rwkv4_sm80_int8.ptx")),
            ("90 f16", include_str!("../kernels/rwkv4_sm90_f16.ptx")),
            ("90 int8", include_str!("../kernels/rwkv4_sm90_int8.ptx")),
        ] {
            assert!(
                ptx.starts_with(&first_line),
                "{name}: not compiled from these sources, run kernels/build.py"
            );
        }
    }

    #[test]
    fn structs_are_those_of_the_kernels() {
        let sizes: &[(&str, usize)] = &[
            ("time_in_1", size_of::<TimeIn>()),
            ("time_out_4", size_of::<TimeOut>()),
            ("channel_in_2", size_of::<ChannelIn>()),
            ("channel_out_1", size_of::<ChannelOut>()),
            ("head_1", size_of::<Head>()),
            ("shift_rows_2", size_of::<Shift>()),
            ("plain_rows", size_of::<Plain>()),
            ("wkv_single", size_of::<WkvRows>()),
            ("norm_out_rows", size_of::<NormOut>()),
            ("logits_out", size_of::<LogitsOut>()),
            ("tokens_out", size_of::<Tokens>()),
            ("begin_rows", size_of::<Begin>()),
            ("token", size_of::<Resident>()),
            ("repack", size_of::<Repack>()),
        ];
        for (ptx, products) in [
            (
                include_str!("../kernels/rwkv4_sm61_int8.ptx"),
                "products_plain",
            ),
            (
                include_str!("../kernels/rwkv4_sm80_f16.ptx"),
                "products_wide",
            ),
            (
                include_str!("../kernels/rwkv4_sm90_int8.ptx"),
                "products_64",
            ),
        ] {
            for (kernel, size) in sizes {
                assert_eq!(size_in(ptx, kernel), *size, "{kernel}");
            }
            assert_eq!(size_in(ptx, products), size_of::<Products>());
            if products != "products_plain" {
                let size = size_of::<HiddenBound>();
                assert_eq!(size_in(ptx, "hidden_bound_of"), size);
            }
        }
    }
}
