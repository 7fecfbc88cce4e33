//! What the networks are: their tensors and states as data, and their arithmetic for a batch of rows.
//!
//! `table.rs` says what an architecture is; `common.rs` has what all versions share: embedding, head, norms, products of
//! shifted inputs. A version is one file: its table, its weights, its forward pass. This file has the enums over the
//! versions, with the few functions that differ.

#![forbid(unsafe_code)]

use std::ops::Range;

use crate::error::Result;
use crate::quant::matrix::{Matrix, Vector};

pub(crate) mod batch;
pub(crate) mod common;
pub(crate) mod config;
pub(crate) mod config_fields;
mod eagle;
pub(crate) mod fingerprint;
pub(crate) mod form;
mod gated_mixing;
mod head_states;
pub(crate) mod hidden;
pub(crate) mod importance;
pub(crate) mod known;
pub(crate) mod mix;
pub(crate) mod names;
mod sensitivity;
pub(crate) mod source;
pub(crate) mod state;
pub(crate) mod table;
pub(crate) mod tensor_info;
#[cfg(test)]
pub(crate) mod tests;
mod v4;
mod v5;
mod v6;
mod v7;

pub(crate) use crate::products::{Machine, BUFFERS};
use batch::{Segment, Span};
use common::{Embedding, Head, Pass};
use config::{Config, Sizes};
use source::WeightSource;
use table::{Kind, StageRange};

/// The weights of a model, or of some of its layers.
pub(crate) struct Network {
    pub(crate) config: Config,
    /// In the part with the first layer.
    pub(crate) embedding: Option<Embedding>,
    /// Number in the model of the first of `layers`.
    first_layer: usize,
    layers: Layers,
    /// In the last part.
    pub(crate) head: Option<Head>,
}

/// Layers of one version.
enum Layers {
    V4(Vec<v4::Layer>),
    V5(Vec<v5::Layer>),
    V6(Vec<v6::Layer>),
    V7(Vec<v7::Layer>),
}

/// Every parameter of a network.
#[derive(Clone, Copy)]
pub(crate) enum Tensor<'a> {
    Vector(&'a Vector),
    Matrix(&'a Matrix),
}

/// Memory for forward passes of at most so many rows.
pub(crate) struct Buffers {
    common: common::Buffers,
    layers: LayerBuffers,
}

/// What layers of one version need besides.
// A workspace has one of these, so that what it takes as a value is no matter.
#[allow(clippy::large_enum_variant)]
enum LayerBuffers {
    V4(v4::Buffers),
    /// Of RWKV-5 and 6.
    Eagle(eagle::Buffers),
    V7(v7::Buffers),
}

impl Network {
    /// Takes the weights of a part from `source`, in the order of the architecture's table.
    pub(crate) fn build(
        source: &mut dyn WeightSource,
        config: &Config,
        part: &StageRange,
    ) -> Result<Self> {
        let sizes = &config.sizes;
        let embedding = match part.has_embedding {
            true => Some(Embedding::take(source, None, sizes)?),
            false => None,
        };
        let layers = Layers::take(source, part.layers.clone(), sizes)?;
        let head = match part.has_head {
            true => Some(Head::take(source, None, sizes)?),
            false => None,
        };
        Ok(Network {
            config: *config,
            embedding,
            first_layer: part.layers.start,
            layers,
            head,
        })
    }

    /// Which part of the model it is.
    pub(crate) fn part(&self) -> StageRange {
        StageRange {
            layers: self.first_layer..self.first_layer + self.layers.len(),
            has_embedding: self.embedding.is_some(),
            has_head: self.head.is_some(),
        }
    }

    /// Every parameter, in the order in which a token needs them.
    pub(crate) fn tensors(&self) -> Vec<Tensor<'_>> {
        let embedding = self.embedding.iter().flat_map(Embedding::tensors);
        let head = self.head.iter().flat_map(Head::tensors);
        embedding.chain(self.layers.tensors()).chain(head).collect()
    }

    /// Its matrices, in that order.
    pub(crate) fn matrices(&self) -> impl Iterator<Item = &Matrix> {
        self.tensors()
            .into_iter()
            .filter_map(|tensor| match tensor {
                Tensor::Matrix(matrix) => Some(matrix),
                Tensor::Vector(_) => None,
            })
    }

    /// Feeds the rows that `segments` describe and moves the states of their spans. Rows are numbered
    /// through the segments in order; their number is at most the buffers'. A part without the
    /// embedding finds its input in the rows of the buffers, where the output is, too.
    pub(crate) fn forward(
        &self,
        machine: Machine<'_>,
        buffers: &mut Buffers,
        segments: &[Segment],
        spans: &mut [Span<'_>],
    ) {
        let pass = Pass {
            machine,
            segments,
            n_rows: segments.iter().map(|segment| segment.n_rows).sum(),
            epsilon: self.config.settings.layer_norm_epsilon,
            head_epsilon: self.config.settings.head_norm_epsilon,
        };
        buffers.common.begin(&pass);
        if let Some(embedding) = &self.embedding {
            embedding.apply(&pass, &mut buffers.common, spans);
        }
        let (first, head) = (self.first_layer, self.head.as_ref());
        let common = &mut buffers.common;
        match (&self.layers, &mut buffers.layers) {
            (Layers::V4(layers), LayerBuffers::V4(own)) => {
                common::forward((layers, first, head), &pass, (common, own), spans);
            }
            (Layers::V5(layers), LayerBuffers::Eagle(own)) => {
                common::forward((layers, first, head), &pass, (common, own), spans);
            }
            (Layers::V6(layers), LayerBuffers::Eagle(own)) => {
                common::forward((layers, first, head), &pass, (common, own), spans);
            }
            (Layers::V7(layers), LayerBuffers::V7(own)) => {
                common::forward((layers, first, head), &pass, (common, own), spans);
            }
            // A workspace is made for one network, which `Pipeline::fits` compares.
            (Layers::V4(_) | Layers::V5(_) | Layers::V6(_) | Layers::V7(_), _) => {}
        }
    }
}

/// Behind the layers.
impl Network {
    /// Logits of some rows of the last pass: `rows[i]` gives `out[i]`, (rows.len(), n_vocab). Nothing in a part
    /// without the head.
    pub(crate) fn logits(
        &self,
        machine: Machine<'_>,
        buffers: &mut Buffers,
        rows: &[usize],
        out: &mut [f32],
    ) {
        let input = match &mut buffers.layers {
            LayerBuffers::V4(own) => own.input_mut(),
            LayerBuffers::Eagle(own) => own.input_mut(),
            LayerBuffers::V7(own) => own.input_mut(),
        };
        if let Some(head) = &self.head {
            let buffers = (&mut buffers.common, input);
            head.logits(machine, buffers, self.config.norm_out_epsilon(), rows, out);
        }
    }

    /// What the head reads of some rows, (rows.len(), n_embd): the residual stream behind the output norm.
    pub(crate) fn hidden(
        &self,
        machine: Machine<'_>,
        buffers: &Buffers,
        rows: &[usize],
        out: &mut [f32],
    ) {
        if let Some(head) = &self.head {
            let epsilon = self.config.norm_out_epsilon();
            head.hidden(machine, &buffers.common, epsilon, rows, out);
        }
    }
}

impl Layers {
    fn take(source: &mut dyn WeightSource, layers: Range<usize>, sizes: &Sizes) -> Result<Self> {
        Ok(match sizes.architecture.kind {
            Kind::V4 => Layers::V4(
                layers
                    .map(|layer| v4::Layer::take(source, Some(layer), sizes))
                    .collect::<Result<_>>()?,
            ),
            Kind::V5 => Layers::V5(
                layers
                    .map(|layer| v5::Layer::take(source, Some(layer), sizes))
                    .collect::<Result<_>>()?,
            ),
            Kind::V6 => Layers::V6(
                layers
                    .map(|layer| v6::Layer::take(source, Some(layer), sizes))
                    .collect::<Result<_>>()?,
            ),
            Kind::V7 => Layers::V7(
                layers
                    .map(|layer| v7::Layer::take(source, Some(layer), sizes))
                    .collect::<Result<_>>()?,
            ),
        })
    }

    fn len(&self) -> usize {
        match self {
            Layers::V4(layers) => layers.len(),
            Layers::V5(layers) => layers.len(),
            Layers::V6(layers) => layers.len(),
            Layers::V7(layers) => layers.len(),
        }
    }

    fn tensors(&self) -> Vec<Tensor<'_>> {
        match self {
            Layers::V4(layers) => layers.iter().flat_map(v4::Layer::tensors).collect(),
            Layers::V5(layers) => layers.iter().flat_map(v5::Layer::tensors).collect(),
            Layers::V6(layers) => layers.iter().flat_map(v6::Layer::tensors).collect(),
            Layers::V7(layers) => layers.iter().flat_map(v7::Layer::tensors).collect(),
        }
    }
}

impl Buffers {
    /// # Errors
    /// [`ErrorKind::Memory`](crate::ErrorKind::Memory).
    pub(crate) fn new(
        sizes: &Sizes,
        rows_max: usize,
        n_threads: usize,
        no_sparsity: bool,
    ) -> Result<Self> {
        Ok(Buffers {
            common: common::Buffers::new(sizes, rows_max, n_threads)?,
            layers: match sizes.architecture.kind {
                Kind::V4 => LayerBuffers::V4(v4::Buffers::new(sizes, rows_max, no_sparsity)?),
                Kind::V5 | Kind::V6 => {
                    let limits = (rows_max, n_threads);
                    LayerBuffers::Eagle(eagle::Buffers::new(sizes, limits, no_sparsity)?)
                }
                Kind::V7 => {
                    let limits = (rows_max, n_threads);
                    LayerBuffers::V7(v7::Buffers::new(sizes, limits, no_sparsity)?)
                }
            },
        })
    }

    /// Bytes that [`new`](Self::new) takes.
    pub(crate) fn bytes_for(sizes: &Sizes, rows_max: usize, n_threads: usize) -> u64 {
        let layers = match sizes.architecture.kind {
            Kind::V4 => v4::Buffers::bytes_for(sizes, rows_max),
            Kind::V5 | Kind::V6 => eagle::Buffers::bytes_for(sizes, (rows_max, n_threads)),
            Kind::V7 => v7::Buffers::bytes_for(sizes, (rows_max, n_threads)),
        };
        common::Buffers::bytes_for(sizes, rows_max, n_threads) + layers
    }

    /// What they take in memory.
    pub(crate) fn size_bytes(&self) -> usize {
        let layers = match &self.layers {
            LayerBuffers::V4(own) => own.size_bytes(),
            LayerBuffers::Eagle(own) => own.size_bytes(),
            LayerBuffers::V7(own) => own.size_bytes(),
        };
        self.common.size_bytes() + layers
    }

    /// (n_rows, row width) what passes from stage to stage, and other memory of its size.
    pub(crate) fn rows_mut(&mut self, n_rows: usize) -> (&[f32], &mut [f32]) {
        self.common.rows_mut(n_rows)
    }

    /// What was written into the other memory becomes the rows.
    pub(crate) fn swap_rows(&mut self) {
        self.common.swap_rows();
    }

    /// Rows of matrices stored row per input that were not read, of those that there were.
    pub(crate) fn sparsity(&self) -> (u64, u64) {
        match &self.layers {
            LayerBuffers::V4(own) => own.sparsity(),
            LayerBuffers::Eagle(own) => own.sparsity(),
            LayerBuffers::V7(own) => own.sparsity(),
        }
    }
}
