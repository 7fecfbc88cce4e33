//! RWKV-4's weights: their names, shapes and order. The arithmetic is in `v4.rs`.

#![forbid(unsafe_code)]

use crate::checkpoint::Config;
use crate::error::Result;
use crate::matrix::{Layout, Matrix, Vector, WeightSource};

/// The name in model files.
pub(crate) const ARCHITECTURE: &str = "rwkv-4";
/// Name in a layer of what checkpoints hold as `att.time_decay`: -exp() of it.
pub(crate) const DECAY_LOG: &str = "att.decay_log";
/// Of ln_out; that of the other norms is in the configuration. transformers does the same.
const NORM_OUT_EPSILON: f32 = 1e-5;
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

/// All weights of an RWKV-4 model.
pub(crate) struct Network {
    pub(crate) sizes: Sizes,
    /// (n_vocab, n_embd)
    pub(crate) embedding: Matrix,
    /// ln0, applied to the embedding
    pub(crate) norm_in: Norm,
    pub(crate) layers: Vec<Layer>,
    pub(crate) norm_out: Norm,
    /// (n_vocab, n_embd)
    pub(crate) head: Matrix,
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
    /// Takes all weights from `source`, in the order in which a token needs them.
    pub(crate) fn build(source: &mut dyn WeightSource, sizes: Sizes, epsilon: f32) -> Result<Self> {
        let (d, v) = (sizes.n_embd, sizes.n_vocab);
        let embedding = source.matrix("emb.weight".into(), v, d, Layout::RowPerOutput)?;
        let norm_in = Norm::build(source, "blocks.0.ln0", d, epsilon)?;
        let layers = (0..sizes.n_layer)
            .map(|index| Layer::build(source, index, &sizes, epsilon))
            .collect::<Result<_>>()?;
        Ok(Network {
            embedding,
            norm_in,
            layers,
            norm_out: Norm::build(source, "ln_out", d, NORM_OUT_EPSILON)?,
            head: source.matrix("head.weight".into(), v, d, Layout::RowPerOutput)?,
            sizes,
        })
    }

    /// Every parameter, in the order in which a token needs them.
    pub(crate) fn tensors(&self) -> Vec<Tensor<'_>> {
        let mut tensors = vec![Tensor::Matrix(&self.embedding)];
        tensors.extend(self.norm_in.tensors());
        tensors.extend(self.layers.iter().flat_map(Layer::tensors));
        tensors.extend(self.norm_out.tensors());
        tensors.push(Tensor::Matrix(&self.head));
        tensors
    }
}
