//! RWKV-4's weights: their names, shapes and order. The arithmetic is in `v4.rs`.

#![forbid(unsafe_code)]

use std::ops::Range;

use crate::checkpoint::Config;
use crate::error::Result;
use crate::quant::matrix::{Layout, Matrix, Vector, WeightSource};

/// The name in model files.
pub(crate) const ARCHITECTURE: &str = "rwkv-4";
/// Name in a layer of what checkpoints hold as `att.time_decay`: -exp() of it.
pub(crate) const DECAY_LOG: &str = "att.decay_log";
/// Of ln_out; that of the other norms is in the configuration. transformers does the same.
pub(crate) const NORM_OUT_EPSILON: f32 = 1e-5;

/// Sizes of a network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Sizes {
    pub(crate) n_vocab: usize,
    pub(crate) n_embd: usize,
    pub(crate) n_layer: usize,
    /// Channels of the time mixing; n_embd in every published model.
    pub(crate) n_attention: usize,
    /// Hidden units of the channel mixing; 4 n_embd in every published model.
    pub(crate) n_hidden: usize,
}

impl Sizes {
    pub(crate) fn of(config: &Config) -> Self {
        Sizes {
            n_vocab: config.n_vocab,
            n_embd: config.n_embd,
            n_layer: config.n_layer,
            n_attention: config.n_attention,
            n_hidden: config.n_hidden,
        }
    }
}

/// Which part of a network a stage has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Part {
    /// Of the model's layers; may be none where it has the head.
    pub(crate) layers: Range<usize>,
    pub(crate) has_embedding: bool,
    pub(crate) has_head: bool,
}

/// A layer norm's parameters.
pub(crate) struct Norm {
    /// (n_embd)
    pub(crate) weight: Vector,
    /// (n_embd)
    pub(crate) bias: Vector,
    pub(crate) epsilon: f32,
}

/// Time mixing: what attention is to a transformer.
pub(crate) struct TimeMixing {
    pub(crate) norm: Norm,
    /// (n_embd) share of the present token in the input of each matrix
    pub(crate) mix_key: Vector,
    pub(crate) mix_value: Vector,
    pub(crate) mix_receptance: Vector,
    /// (n_attention) log of the decay a step, -exp(time_decay)
    pub(crate) decay_log: Vector,
    /// (n_attention) extra log-weight of the present token
    pub(crate) bonus: Vector,
    /// (n_attention, n_embd)
    pub(crate) key: Matrix,
    pub(crate) value: Matrix,
    pub(crate) receptance: Matrix,
    /// (n_embd, n_attention)
    pub(crate) output: Matrix,
}

/// Channel mixing: the feed-forward part.
pub(crate) struct ChannelMixing {
    pub(crate) norm: Norm,
    /// (n_embd)
    pub(crate) mix_key: Vector,
    pub(crate) mix_receptance: Vector,
    /// (n_hidden, n_embd)
    pub(crate) key: Matrix,
    /// (n_embd, n_embd)
    pub(crate) receptance: Matrix,
    /// (n_hidden, n_embd): stored row per input, because most inputs are 0
    pub(crate) value: Matrix,
}

pub(crate) struct Layer {
    pub(crate) time_mixing: TimeMixing,
    pub(crate) channel_mixing: ChannelMixing,
}

/// What turns tokens into the residual stream.
pub(crate) struct Embedding {
    /// (n_vocab, n_embd)
    pub(crate) table: Matrix,
    /// ln0, applied to its rows
    pub(crate) norm: Norm,
}

/// What turns the residual stream into logits.
pub(crate) struct Head {
    pub(crate) norm: Norm,
    /// (n_vocab, n_embd)
    pub(crate) matrix: Matrix,
}

/// The weights of an RWKV-4 model, or of some of its layers.
pub(crate) struct Network {
    pub(crate) sizes: Sizes,
    /// Of all norms but the one in front of the head.
    pub(crate) epsilon: f32,
    /// In the part with the first layer.
    pub(crate) embedding: Option<Embedding>,
    /// Number in the model of the first of `layers`.
    pub(crate) first_layer: usize,
    pub(crate) layers: Vec<Layer>,
    /// In the last part.
    pub(crate) head: Option<Head>,
}

/// Every parameter of a network.
pub(crate) enum Tensor<'a> {
    Vector(&'a Vector),
    Matrix(&'a Matrix),
}

impl Norm {
    fn build(source: &mut dyn WeightSource, name: &str, n: usize, epsilon: f32) -> Result<Self> {
        Ok(Norm {
            weight: source.vector(format!("{name}.weight"), n)?,
            bias: source.vector(format!("{name}.bias"), n)?,
            epsilon,
        })
    }

    fn tensors(&self) -> [Tensor<'_>; 2] {
        [Tensor::Vector(&self.weight), Tensor::Vector(&self.bias)]
    }
}

impl Layer {
    fn build(
        source: &mut dyn WeightSource,
        index: usize,
        sizes: &Sizes,
        epsilon: f32,
    ) -> Result<Self> {
        let (d, a, h) = (sizes.n_embd, sizes.n_attention, sizes.n_hidden);
        let by_output = Layout::RowPerOutput;
        let name = |part: &str| format!("blocks.{index}.{part}");
        let time_mixing = TimeMixing {
            norm: Norm::build(source, &name("ln1"), d, epsilon)?,
            mix_key: source.vector(name("att.time_mix_k"), d)?,
            mix_value: source.vector(name("att.time_mix_v"), d)?,
            mix_receptance: source.vector(name("att.time_mix_r"), d)?,
            decay_log: source.vector(name(DECAY_LOG), a)?,
            bonus: source.vector(name("att.time_first"), a)?,
            key: source.matrix(name("att.key.weight"), a, d, by_output)?,
            value: source.matrix(name("att.value.weight"), a, d, by_output)?,
            receptance: source.matrix(name("att.receptance.weight"), a, d, by_output)?,
            output: source.matrix(name("att.output.weight"), d, a, by_output)?,
        };
        let channel_mixing = ChannelMixing {
            norm: Norm::build(source, &name("ln2"), d, epsilon)?,
            mix_key: source.vector(name("ffn.time_mix_k"), d)?,
            mix_receptance: source.vector(name("ffn.time_mix_r"), d)?,
            key: source.matrix(name("ffn.key.weight"), h, d, by_output)?,
            receptance: source.matrix(name("ffn.receptance.weight"), d, d, by_output)?,
            value: source.matrix(name("ffn.value.weight"), d, h, Layout::RowPerInput)?,
        };
        Ok(Layer {
            time_mixing,
            channel_mixing,
        })
    }

    fn tensors(&self) -> Vec<Tensor<'_>> {
        let (time, channel) = (&self.time_mixing, &self.channel_mixing);
        let mut tensors = Vec::from(time.norm.tensors());
        let vectors = [&time.mix_key, &time.mix_value, &time.mix_receptance];
        tensors.extend(vectors.map(Tensor::Vector));
        tensors.extend([&time.decay_log, &time.bonus].map(Tensor::Vector));
        let matrices = [&time.key, &time.value, &time.receptance, &time.output];
        tensors.extend(matrices.map(Tensor::Matrix));
        tensors.extend(channel.norm.tensors());
        tensors.extend([&channel.mix_key, &channel.mix_receptance].map(Tensor::Vector));
        let matrices = [&channel.key, &channel.receptance, &channel.value];
        tensors.extend(matrices.map(Tensor::Matrix));
        tensors
    }
}

impl Network {
    /// Takes the weights of a part from `source`, in the order in which a token needs them.
    pub(crate) fn build(
        source: &mut dyn WeightSource,
        sizes: Sizes,
        epsilon: f32,
        part: &Part,
    ) -> Result<Self> {
        let (d, v) = (sizes.n_embd, sizes.n_vocab);
        let table = |source: &mut dyn WeightSource, name: &str| {
            source.matrix(name.into(), v, d, Layout::RowPerOutput)
        };
        let embedding = match part.has_embedding {
            true => Some(Embedding {
                table: table(source, "emb.weight")?,
                norm: Norm::build(source, "blocks.0.ln0", d, epsilon)?,
            }),
            false => None,
        };
        let layers = part.layers.clone();
        let layers = layers
            .map(|index| Layer::build(source, index, &sizes, epsilon))
            .collect::<Result<_>>()?;
        let head = match part.has_head {
            true => Some(Head {
                norm: Norm::build(source, "ln_out", d, NORM_OUT_EPSILON)?,
                matrix: table(source, "head.weight")?,
            }),
            false => None,
        };
        Ok(Network {
            sizes,
            epsilon,
            embedding,
            first_layer: part.layers.start,
            layers,
            head,
        })
    }

    pub(crate) fn part(&self) -> Part {
        Part {
            layers: self.first_layer..self.first_layer + self.layers.len(),
            has_embedding: self.embedding.is_some(),
            has_head: self.head.is_some(),
        }
    }

    /// Every parameter, in the order in which a token needs them.
    pub(crate) fn tensors(&self) -> Vec<Tensor<'_>> {
        let mut tensors = Vec::new();
        if let Some(embedding) = &self.embedding {
            tensors.push(Tensor::Matrix(&embedding.table));
            tensors.extend(embedding.norm.tensors());
        }
        tensors.extend(self.layers.iter().flat_map(Layer::tensors));
        if let Some(head) = &self.head {
            tensors.extend(head.norm.tensors());
            tensors.push(Tensor::Matrix(&head.matrix));
        }
        tensors
    }
}
