//! Facts about an open model, as `info` shows them: counted from its tensors, nothing is read.

#![forbid(unsafe_code)]

use crate::matrix::Quant;
use crate::model::Inner;
use crate::v4::{Tensor, ARCHITECTURE};

/// Facts about an open model.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Info {
    /// Where it was opened from.
    pub place: String,
    /// Name of the architecture: `rwkv-4`.
    pub architecture: &'static str,
    /// Layers.
    pub n_layer: usize,
    /// Width of the residual stream.
    pub n_embd: usize,
    /// Channels of the time mixing.
    pub n_attention: usize,
    /// Hidden units of the channel mixing.
    pub n_hidden: usize,
    /// Tokens of the vocabulary: length of a row of logits.
    pub n_vocab: usize,
    /// Tokens of context in training. Only advice: the state takes any number.
    pub context_length: usize,
    /// The token that ends a text.
    pub end_of_text: u32,
    /// Parameters, all tensors together.
    pub n_params: u64,
    /// Of the matrices as they are now; of most of them after
    /// [`with_matrices_of`](crate::Model::with_matrices_of).
    pub quant: Quant,
    /// Of all weights as they are now, scales included.
    pub weight_bytes: u64,
    /// Those of `weight_bytes` that are used in place from the file, without a copy in memory.
    pub mapped_bytes: u64,
    /// Bits of the matrices a weight, scales included.
    pub bits_per_weight: f64,
    /// Those of the weights that one token of decode needs, as stored: all matrices, but a single row of
    /// the embedding. Rows that sparsity saves are counted.
    pub decode_bytes: u64,
    /// Multiply-adds of one token's matrix products, without the head.
    pub layer_macs: u64,
    /// Multiply-adds of one row of logits.
    pub head_macs: u64,
    /// Of one sequence's recurrent state.
    pub state_bytes: usize,
    /// The kernel set in use.
    pub kernels: &'static str,
    /// Threads that work on one forward pass.
    pub threads: usize,
    /// Of the checkpoint: the same for every quantisation of it.
    pub fingerprint: u64,
    /// Name of the tokenizer's file, if there is one.
    pub tokenizer: Option<String>,
}

/// Facts about one tensor of an open model.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct TensorInfo {
    /// As in a model file.
    pub name: String,
    /// As stored, slowest dimension first.
    pub shape: Vec<usize>,
    /// How its numbers are stored.
    pub quant: Quant,
    /// Of the numbers and scales.
    pub size_bytes: u64,
}

impl Info {
    pub(crate) fn of(inner: &Inner, state_bytes: usize) -> Self {
        let Inner {
            network, config, ..
        } = inner;
        let mut totals = Totals::default();
        network
            .tensors()
            .iter()
            .for_each(|tensor| totals.add(tensor));
        let head_macs = network.head.n_weights();
        Info {
            place: inner.place.clone(),
            architecture: ARCHITECTURE,
            n_layer: config.n_layer,
            n_embd: config.n_embd,
            n_attention: config.n_attention,
            n_hidden: config.n_hidden,
            n_vocab: config.n_vocab,
            context_length: config.context_length,
            end_of_text: config.end_of_text,
            n_params: totals.n_params,
            quant: inner.quant,
            weight_bytes: totals.weight_bytes,
            mapped_bytes: totals.mapped_bytes,
            bits_per_weight: 8.0 * totals.matrix_bytes as f64 / totals.matrix_params as f64,
            decode_bytes: totals.matrix_bytes - network.embedding.size_bytes()
                + network.embedding.row_size_bytes(),
            layer_macs: totals.matrix_params - head_macs - network.embedding.n_weights(),
            head_macs,
            state_bytes,
            kernels: inner.kernels.name(),
            threads: inner.pool.n_threads(),
            fingerprint: inner.fingerprint,
            tokenizer: inner.tokenizer.file.as_ref().map(|file| file.name.clone()),
        }
    }
}

impl TensorInfo {
    pub(crate) fn of(tensor: &Tensor<'_>) -> Self {
        match tensor {
            Tensor::Vector(vector) => TensorInfo {
                name: vector.name.clone(),
                shape: vec![vector.len()],
                quant: Quant::F32,
                size_bytes: 4 * vector.len() as u64,
            },
            Tensor::Matrix(matrix) => TensorInfo {
                name: matrix.name.clone(),
                shape: vec![matrix.n_rows, matrix.n_cols],
                quant: matrix.quant(),
                size_bytes: matrix.size_bytes(),
            },
        }
    }
}

#[derive(Default)]
struct Totals {
    n_params: u64,
    weight_bytes: u64,
    mapped_bytes: u64,
    matrix_params: u64,
    matrix_bytes: u64,
}

impl Totals {
    fn add(&mut self, tensor: &Tensor<'_>) {
        match tensor {
            Tensor::Vector(vector) => {
                self.n_params += vector.len() as u64;
                self.weight_bytes += 4 * vector.len() as u64;
            }
            Tensor::Matrix(matrix) => {
                let n_params = matrix.n_weights();
                self.n_params += n_params;
                self.matrix_params += n_params;
                self.matrix_bytes += matrix.size_bytes();
                self.weight_bytes += matrix.size_bytes();
                if matrix.is_in_file() {
                    self.mapped_bytes += matrix.size_bytes();
                }
            }
        }
    }
}
