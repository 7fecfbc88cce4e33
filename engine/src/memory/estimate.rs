//! How much memory a model and its sessions take, told before any of it is taken: sums of what buffers, states and
//! weights say of themselves.

#![forbid(unsafe_code)]

use crate::networks::config::Sizes;
use crate::networks::state::StateLayout;
use crate::networks::table::{StageRange, TensorAt};
use crate::networks::Buffers;
use crate::products::paging::PAGED_BYTES;
use crate::products::{BLOCK_OUTPUTS_MAX, CHUNK_INPUTS, MANY_ROWS};
use crate::quant::matrix::Layout;
use crate::quant::Quant;
use crate::text::sampler::Sampler;

/// Bytes of matrices that are in memory at once while batches of so many rows go through a network none of
/// whose matrices stays.
pub(crate) fn window_bytes(sizes: &Sizes, quant: Quant, rows_max: usize) -> u64 {
    let piece = |tensor: TensorAt<'_>| {
        let (n_rows, n_cols) = tensor.stored_shape();
        let rows = match tensor.layout() {
            Layout::RowPerOutput => BLOCK_OUTPUTS_MAX.min(n_rows),
            // Batches of many rows walk a matrix stored row per input more than once.
            Layout::RowPerInput if rows_max < MANY_ROWS => CHUNK_INPUTS.min(n_rows),
            Layout::RowPerInput => n_rows,
            // Not paged.
            Layout::LowRank => 0,
        };
        let quant = tensor.quant(quant);
        quant.row_values_bytes(n_cols).saturating_mul(rows as u64)
    };
    // Before and behind what was touched, the system may map as much as is dropped with it.
    matrices(sizes).map(piece).fold(PAGED_BYTES, u64::max) + 2 * crate::files::RELEASE_MARGIN
}

/// Numbers of the largest matrix.
pub(crate) fn largest_matrix(sizes: &Sizes) -> u64 {
    let numbers = matrices(sizes).map(|tensor| tensor.len() as u64);
    numbers.max().unwrap_or(0)
}

fn matrices(sizes: &Sizes) -> impl Iterator<Item = TensorAt<'_>> {
    // All layers are of one size.
    let part = StageRange {
        layers: 0..1,
        ..sizes.architecture.whole(sizes)
    };
    let tensors = sizes.architecture.tensors(sizes, &part);
    tensors.filter(TensorAt::is_matrix)
}

/// Bytes of the weights of a part of a network of these sizes. Matrices that are used where they lie, in a
/// file or in flash, take none, but vectors and scales are kept in memory always.
pub(crate) fn weight_bytes(sizes: &Sizes, part: &StageRange, quant: Quant, in_place: bool) -> u64 {
    let bytes = |tensor: TensorAt<'_>| match tensor.is_matrix() {
        true => {
            let quant = tensor.quant(quant);
            quant.memory_bytes(tensor.stored_shape(), in_place)
        }
        false => (tensor.len() * size_of::<f32>()) as u64,
    };
    let tensors = sizes.architecture.tensors(sizes, part);
    tensors.map(bytes).fold(0, u64::saturating_add)
}

/// Bytes of the low-rank matrices of a part of a network. They lie in a file like all others, but are never read from it
/// again: they are small, and all of them are needed for every token.
pub(crate) fn low_rank_bytes(sizes: &Sizes, part: &StageRange, quant: Quant) -> u64 {
    let tensors = sizes.architecture.tensors(sizes, part);
    let low_rank = tensors.filter(|tensor| tensor.spec.is_low_rank());
    let bytes = |tensor: TensorAt<'_>| {
        let quant = tensor.quant(quant);
        quant.memory_bytes(tensor.stored_shape(), false)
    };
    low_rank.map(bytes).fold(0, u64::saturating_add)
}

/// Bytes of a session that allocates nothing later: state, two rows of logits, sampler, and buffers for
/// one token and for a piece of a prompt; `None` where the CPU has no layers and so needs no buffers.
pub(crate) fn session_bytes(sizes: &Sizes, prefill_rows: Option<usize>, n_threads: usize) -> u64 {
    let state = StateLayout::of_sizes(sizes).size_bytes();
    let text = 2 * size_of::<f32>() * sizes.n_vocab + Sampler::reserved_bytes(sizes.n_vocab);
    let workspaces = prefill_rows.map_or(0, |rows| {
        Buffers::bytes_for(sizes, 1, n_threads) + Buffers::bytes_for(sizes, rows, n_threads)
    });
    (state + text) as u64 + workspaces
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::session::Session;
    use crate::model::{Model, Options};
    use crate::networks::tests::sizes;

    /// What is told beforehand is what is taken, and hardly more.
    #[test]
    fn estimates_are_those_of_the_real_thing() {
        for name in ["small-safetensors", "odd-bin", "deep-sharded"] {
            for &quant in Quant::ALL {
                let options = Options::new().quant(quant).threads(2);
                let path = format!("../tests/fixtures/golden/{name}");
                let model = Model::open(path, &options).expect("a valid checkpoint");
                let sizes = model.sizes();
                // Factors as f32 are not part of a file's bytes.
                let weights = weight_bytes(sizes, &sizes.architecture.whole(sizes), quant, false);
                let stored = model.info().weight_bytes;
                assert!(weights >= stored, "{name} {quant}: {weights}, {stored}");
                if quant.floats().is_some() {
                    assert_eq!(weights, stored, "{name} {quant}");
                }
                for rows in [1, 2, 32, 128] {
                    let told = Buffers::bytes_for(sizes, rows, 2);
                    let taken = model.workspace(rows).size_bytes() as u64;
                    assert_eq!(told, taken, "{name} {rows}");
                }
            }
        }
    }

    /// The table of docs/EMBEDDING.md, from the sizes of the published models.
    #[test]
    fn the_documentation_says_what_is_computed() {
        let text = include_str!("../../../docs/EMBEDDING.md");
        let models = [
            ("169M", 12, 768),
            ("430M", 24, 1024),
            ("1.5B", 24, 2048),
            ("3B", 32, 2560),
            ("7B", 32, 4096),
            ("14B", 40, 5120),
        ];
        for (name, n_layer, n_embd) in models {
            let sizes = sizes([50_277, n_embd, n_layer, n_embd, 4 * n_embd]);
            let mega = |bytes: u64| format!("{:.1}", bytes as f64 / 1e6);
            let weights = |quant| {
                mega(weight_bytes(
                    &sizes,
                    &sizes.architecture.whole(&sizes),
                    quant,
                    false,
                ))
            };
            let line = format!(
                "| {name} | {n_layer} | {n_embd} | {} | {} | {} | {} |",
                weights(Quant::Int8),
                weights(Quant::F16),
                mega(session_bytes(&sizes, Some(Session::PREFILL_ROWS), 1)),
                mega((n_layer * 5 * n_embd * 4) as u64),
            );
            assert!(text.contains(&line), "expected {line}");
        }
        let small = sizes([50_277, 768, 12, 768, 3072]);
        let in_flash = weight_bytes(&small, &small.architecture.whole(&small), Quant::Int8, true);
        assert_eq!(format!("{:.1}", in_flash as f64 / 1e6), "2.1");
        assert!(text.contains("2.1 MB for the 169M model in int8"));
    }
}
