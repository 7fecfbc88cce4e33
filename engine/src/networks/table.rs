//! What a network is, as data: its sizes, its tensors, its state, and what passes between its stages.
//!
//! An [`Architecture`] is the one place where these are written down. Names in every kind of checkpoint, checks of
//! shapes, uploads to devices, memory estimates, the layout of states, synthetic models, `info`, conversion and the
//! model file are derived from it. Nothing here computes with weights.

#![forbid(unsafe_code)]

use std::ops::Range;

use super::config::{Config, Sizes};
use super::form::Form;
use super::importance::NearbyNorm;
use super::names::{split_layer, HuggingFace, EMBEDDING};
pub(crate) use super::sensitivity::Sensitivity;
use super::state::StateLayout;
use crate::quant::matrix::Layout;

/// Rows, columns or channels, from the sizes of a model.
pub(crate) type Count = fn(&Sizes) -> usize;

/// A constant of the arithmetic.
pub(crate) type Number = fn(&Config) -> f32;

/// A kind of network: all that is known of it but its arithmetic.
pub(crate) struct Architecture {
    /// Which arithmetic it has.
    pub(crate) kind: Kind,
    /// In model files, state files, `info` and plugins: `rwkv-4`.
    pub(crate) name: &'static str,
    /// In texts for people: `RWKV-4`.
    pub(crate) title: &'static str,
    /// Of RWKV.
    pub(crate) version: u32,
    /// Of a model, each after those that its default is computed from.
    pub(crate) sizes: &'static [SizeSpec],
    /// Epsilon of the norm in front of the head.
    pub(crate) norm_out_epsilon: Number,
    /// Constants of the arithmetic, by the names that plugins get them by.
    pub(crate) numbers: &'static [(&'static str, Number)],
    /// Tensors in front of the layers, of each layer, and behind the layers; in the order in which a token needs
    /// them. Fingerprints of checkpoints, and so saved states, depend on this order.
    pub(crate) embedding: &'static [TensorSpec],
    pub(crate) layer: &'static [TensorSpec],
    pub(crate) head: &'static [TensorSpec],
    /// Of each layer, one behind the other.
    pub(crate) state: &'static [StatePart],
    /// Which of these "state tuning" trains: (head, key, value) of heads of `head_size`. Checkpoints hold it as
    /// `att.time_state` of each layer, (head, value, key).
    pub(crate) tuned_part: Option<usize>,
    /// What a row has that passes from stage to stage.
    pub(crate) row: &'static [RowPart],
    pub(crate) hugging_face: HuggingFace,
    /// Whether no program has directories of it. Names are spelt as above all the same.
    pub(crate) is_only_raw: bool,
    /// Tokens that models were trained on at a time, where nothing says it.
    pub(crate) context_length: usize,
    /// What sizes must have in common beside their bounds.
    pub(crate) check: fn(&Sizes) -> std::result::Result<(), String>,
    /// What the time mixing of a layer remembers, one number a channel, from that layer's numbers in a state.
    pub(crate) memory: fn(&StateLayout, &[f32]) -> Vec<f32>,
}

/// The arithmetics that there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    V4,
    V5,
    V6,
    V7,
}

/// A size of a model: in its configuration, and as its tensors show it.
pub(crate) struct SizeSpec {
    /// In model files, plugins and error texts.
    pub(crate) name: &'static str,
    pub(crate) get: Count,
    pub(crate) set: fn(&mut Sizes, usize),
    /// Bounds keep products of two sizes far from overflowing.
    pub(crate) max: u64,
    /// 0 where a model need not have it.
    pub(crate) min: u64,
    /// In `config.json` of Hugging Face directories.
    pub(crate) field: &'static str,
    /// Where `config.json` does not say it; `None`: then the tensors do.
    pub(crate) default: Option<Count>,
    /// Where no configuration says it.
    pub(crate) shown_by: ShownBy,
}

/// What of a checkpoint shows a size.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum ShownBy {
    /// A dimension of a matrix, by its name in raw checkpoints.
    Matrix(&'static str, usize),
    /// The same, and 0 where there is no such matrix.
    MatrixIfAny(&'static str, usize),
    /// How many layers there are.
    LayerCount,
}

/// A tensor of a network.
#[derive(Clone, Copy)]
pub(crate) struct TensorSpec {
    /// In model files and for devices; without its layer.
    pub(crate) name: &'static str,
    /// In checkpoints of BlinkDL and rwkv.cpp.
    pub(crate) raw: &'static str,
    pub(crate) shape: Shape,
    /// Whether only the first layer has it, although it comes with the embedding.
    pub(crate) is_in_first_layer: bool,
    /// What checkpoints hold instead of its numbers.
    pub(crate) form: Form,
    /// Whether checkpoints write it as [1, 1, n].
    pub(crate) is_broadcast: bool,
    /// Smallest and largest number in made-up models.
    pub(crate) noise: (f32, f32),
    /// Of a matrix: shows how much its rounding errors matter.
    pub(crate) nearby_norm: NearbyNorm,
    /// Of a matrix: what they do to a model's predictions.
    pub(crate) sensitivity: Sensitivity,
    /// Whether the first layer lacks it. Checkpoints may hold one there that is never used.
    pub(crate) is_behind_first_layer: bool,
    /// Of a vector that checkpoints write with a row for each head: channels of a row.
    pub(crate) row: Option<Count>,
    /// Whether it belongs to a gate that variants of its network do without.
    pub(crate) is_of_gate: bool,
}

/// What a tensor is, and how large.
#[derive(Clone, Copy)]
pub(crate) enum Shape {
    /// Always f32.
    Vector(Count),
    /// In any quantisation.
    Matrix {
        outputs: Count,
        inputs: Count,
        layout: Layout,
    },
}

/// Numbers that a state has for each layer.
pub(crate) struct StatePart {
    /// For people who read a state.
    pub(crate) name: &'static str,
    pub(crate) len: Count,
    /// What each of them is before the first token.
    pub(crate) empty: f32,
}

/// Numbers of a row between stages. The residual stream is the first part of all.
#[derive(Clone, Copy)]
pub(crate) struct RowPart {
    #[allow(dead_code)] // For people who read the table.
    pub(crate) name: &'static str,
    pub(crate) len: Count,
}

/// The first part of every row, and of most versions' the only one.
pub(crate) const RESIDUAL_STREAM: RowPart = RowPart {
    name: "residual stream",
    len: |s| s.n_embd,
};

/// Which part of a network a stage has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct StageRange {
    /// Of the model's layers; may be none where it has the head.
    pub(crate) layers: Range<usize>,
    pub(crate) has_embedding: bool,
    pub(crate) has_head: bool,
}

/// A tensor of a model of known sizes.
#[derive(Clone, Copy)]
pub(crate) struct TensorAt<'a> {
    pub(crate) spec: &'static TensorSpec,
    /// `None` for those outside of layers.
    pub(crate) layer: Option<usize>,
    pub(crate) sizes: &'a Sizes,
}

/// A size by the name of its field in [`Sizes`]. `$shown_by` as in [`SizeSpec`].
macro_rules! size {
    ($name:ident <= $max:expr, $field:literal, $default:expr, $shown_by:expr) => {
        SizeSpec {
            name: stringify!($name),
            get: |sizes| sizes.$name,
            set: |sizes, n| sizes.$name = n,
            max: $max,
            min: 1,
            field: $field,
            default: $default,
            shown_by: $shown_by,
        }
    };
}

/// The sizes that every version has. Checkpoints show all of them.
pub(crate) const N_VOCAB: SizeSpec = size!(
    n_vocab <= 1 << 24,
    "vocab_size",
    None,
    ShownBy::Matrix(EMBEDDING, 0)
);
pub(crate) const N_EMBD: SizeSpec = size!(
    n_embd <= 1 << 16,
    "hidden_size",
    None,
    ShownBy::Matrix(EMBEDDING, 1)
);
pub(crate) const N_LAYER: SizeSpec = size!(
    n_layer <= 1 << 10,
    "num_hidden_layers",
    None,
    ShownBy::LayerCount
);
pub(crate) const N_ATTENTION: SizeSpec = size!(
    n_attention <= 1 << 16,
    "attention_hidden_size",
    None,
    ShownBy::Matrix("blocks.0.att.key.weight", 0)
);
pub(crate) const N_HIDDEN: SizeSpec = size!(
    n_hidden <= 1 << 20,
    "intermediate_size",
    None,
    ShownBy::Matrix("blocks.0.ffn.key.weight", 0)
);

/// Declares the weights of a part of a network, and in the same lines the table of its tensors: each field is a
/// [`Vector`](crate::quant::matrix::Vector) or a [`Matrix`](crate::quant::matrix::Matrix) with its [`TensorSpec`].
macro_rules! tensors {
    ($(#[$about:meta])* $visible:vis struct $name:ident {
        $($(#[$field_about:meta])* $field:ident: $kind:ty = $spec:expr,)*
    }) => {
        $(#[$about])*
        $visible struct $name {
            $($(#[$field_about])* pub(crate) $field: $kind,)*
        }

        impl $name {
            /// The table, in the order of the fields.
            pub(crate) const TENSORS: &'static [TensorSpec] = &[$($spec),*];

            /// Takes the tensors from `source` in that order.
            pub(crate) fn take(
                source: &mut dyn $crate::networks::source::WeightSource,
                layer: Option<usize>,
                sizes: &Sizes,
            ) -> $crate::error::Result<Self> {
                let mut specs = Self::TENSORS.iter();
                let mut next = || specs.next().map(|spec| spec.at(layer, sizes));
                Ok($name {
                    $($field: $crate::networks::source::Weight::take(source, next())?,)*
                })
            }

            /// The same tensors to look at.
            pub(crate) fn tensors(&self) -> Vec<$crate::networks::Tensor<'_>> {
                let tensors = [$($crate::networks::source::Weight::as_tensor(&self.$field)),*];
                tensors.into_iter().flatten().collect()
            }
        }
    };
}

pub(crate) use {size, tensors};

impl Architecture {
    /// Every tensor of a part of a model, in the order in which a token needs them.
    pub(crate) fn tensors<'a>(
        &'static self,
        sizes: &'a Sizes,
        part: &StageRange,
    ) -> impl Iterator<Item = TensorAt<'a>> {
        let outside = |specs: &'static [TensorSpec], is_there: bool| {
            let specs = if is_there { specs } else { &[] };
            specs.iter().map(|spec| spec.at(None, sizes))
        };
        let layers = part.layers.clone().flat_map(move |layer| {
            let specs = self.layer.iter();
            let there = specs.filter(move |spec| layer > 0 || !spec.is_behind_first_layer);
            there.map(move |spec| spec.at(Some(layer), sizes))
        });
        outside(self.embedding, part.has_embedding)
            .chain(layers)
            .chain(outside(self.head, part.has_head))
    }

    /// Numbers of a row that passes from stage to stage.
    pub(crate) fn row_width(&self, sizes: &Sizes) -> usize {
        self.row.iter().map(|part| (part.len)(sizes)).sum()
    }

    /// Every tensor in the order in which transformers keeps them.
    pub(crate) fn tensors_in_order<'a>(&'static self, sizes: &'a Sizes) -> Vec<TensorAt<'a>> {
        let mut tensors: Vec<_> = self.tensors(sizes, &self.whole(sizes)).collect();
        let order = self.hugging_face.order;
        let place = |tensor: &TensorAt<'_>| {
            let is_behind = self.head.iter().any(|spec| std::ptr::eq(spec, tensor.spec));
            let within = order.iter().position(|raw| *raw == tensor.spec.raw);
            (is_behind, tensor.number_of_layer(), within)
        };
        tensors.sort_by_key(place);
        tensors
    }

    /// The tensor of that name in a checkpoint, raw or Hugging Face's, and its layer.
    pub(crate) fn find(&self, name: &str) -> Option<(&'static TensorSpec, Option<usize>)> {
        let raw = self.hugging_face.raw(name);
        let mut outside = self.embedding.iter().chain(self.head);
        if let Some(spec) = outside.find(|spec| !spec.is_in_first_layer && spec.raw == raw) {
            return Some((spec, None));
        }
        let (layer, leaf) = split_layer(&raw)?;
        let in_first = self.embedding.iter();
        let in_first = in_first.filter(|spec| spec.is_in_first_layer && layer == 0);
        let mut inside = self.layer.iter().chain(in_first);
        let spec = inside.find(|spec| spec.raw == leaf)?;
        Some((spec, (!spec.is_in_first_layer).then_some(layer)))
    }

    /// The whole network.
    pub(crate) fn whole(&self, sizes: &Sizes) -> StageRange {
        StageRange {
            layers: 0..sizes.n_layer,
            has_embedding: true,
            has_head: true,
        }
    }
}

impl PartialEq for Architecture {
    fn eq(&self, other: &Self) -> bool {
        self.name == other.name
    }
}

impl std::fmt::Debug for Architecture {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name)
    }
}

impl TensorSpec {
    /// A vector called `name` everywhere.
    pub(crate) const fn vector(name: &'static str, len: Count) -> Self {
        Self::new(name, Shape::Vector(len))
    }

    /// A matrix called `name` everywhere, stored with a row for each output.
    pub(crate) const fn matrix(name: &'static str, outputs: Count, inputs: Count) -> Self {
        Self::new(
            name,
            Shape::Matrix {
                outputs,
                inputs,
                layout: Layout::RowPerOutput,
            },
        )
    }

    const fn new(name: &'static str, shape: Shape) -> Self {
        TensorSpec {
            name,
            raw: name,
            shape,
            is_in_first_layer: false,
            form: Form::Same,
            is_broadcast: false,
            noise: (0.0, 1.0),
            nearby_norm: NearbyNorm::None,
            sensitivity: Sensitivity::Usual,
            is_behind_first_layer: false,
            row: None,
            is_of_gate: false,
        }
    }

    /// A small matrix called `name` everywhere that stays floats, stored with a row for each input as in raw
    /// checkpoints.
    pub(crate) const fn low_rank(name: &'static str, inputs: Count, outputs: Count) -> Self {
        Self::new(
            name,
            Shape::Matrix {
                outputs,
                inputs,
                layout: Layout::LowRank,
            },
        )
    }

    /// The first layer has none.
    pub(crate) const fn behind_first_layer(mut self) -> Self {
        self.is_behind_first_layer = true;
        self
    }

    /// Checkpoints write it in rows of so many channels.
    pub(crate) const fn in_rows_of(mut self, row: Count) -> Self {
        self.row = Some(row);
        self
    }

    /// It belongs to a gate.
    pub(crate) const fn of_gate(mut self) -> Self {
        self.is_of_gate = true;
        self
    }

    /// What checkpoints have in its place, and call it.
    pub(crate) const fn stored_as(mut self, raw: &'static str, form: Form) -> Self {
        self.raw = raw;
        self.form = form;
        self
    }

    /// Checkpoints write it as [1, 1, n].
    pub(crate) const fn broadcast(mut self) -> Self {
        self.is_broadcast = true;
        self
    }

    /// It belongs to the first layer alone.
    pub(crate) const fn in_first_layer(mut self) -> Self {
        self.is_in_first_layer = true;
        self
    }

    /// The matrix is stored with a row for each input: rows whose input is 0 need not be read.
    pub(crate) const fn row_per_input(mut self) -> Self {
        if let Shape::Matrix {
            outputs, inputs, ..
        } = self.shape
        {
            self.shape = Shape::Matrix {
                outputs,
                inputs,
                layout: Layout::RowPerInput,
            };
        }
        self
    }

    /// Made-up models have numbers between these.
    pub(crate) const fn noise(mut self, low: f32, high: f32) -> Self {
        self.noise = (low, high);
        self
    }

    /// The matrix is multiplied with what a layer norm gives, after a token shift where `mix` names its shares.
    pub(crate) const fn behind_norm(
        mut self,
        norm: &'static str,
        mix: Option<&'static str>,
    ) -> Self {
        self.nearby_norm = NearbyNorm::InFront { norm, mix };
        self
    }

    /// Rows of the matrix are normalised by a layer norm.
    pub(crate) const fn in_front_of_norm(mut self, norm: &'static str) -> Self {
        self.nearby_norm = NearbyNorm::Behind { norm };
        self
    }

    /// Whether it is a small matrix that stays floats, which raw checkpoints store with a row for each input.
    pub(crate) fn is_low_rank(&self) -> bool {
        matches!(
            self.shape,
            Shape::Matrix {
                layout: Layout::LowRank,
                ..
            }
        )
    }

    pub(crate) fn is_vector(&self) -> bool {
        matches!(self.shape, Shape::Vector(_))
    }

    /// The layer that a tensor's name has, `layer` being the one that it is part of.
    fn layer_in_name(&self, layer: Option<usize>) -> Option<usize> {
        layer.or(self.is_in_first_layer.then_some(0))
    }

    fn full(&self, name: &str, layer: Option<usize>) -> String {
        match self.layer_in_name(layer) {
            Some(layer) => format!("blocks.{layer}.{name}"),
            None => name.to_owned(),
        }
    }

    /// In raw checkpoints.
    pub(crate) fn raw_name(&self, layer: Option<usize>) -> String {
        self.full(self.raw, layer)
    }

    /// The tensor in a layer of a model of these sizes.
    pub(crate) fn at<'a>(&'static self, layer: Option<usize>, sizes: &'a Sizes) -> TensorAt<'a> {
        TensorAt {
            spec: self,
            layer,
            sizes,
        }
    }
}

impl TensorAt<'_> {
    /// The layer that its name has.
    pub(crate) fn number_of_layer(&self) -> Option<usize> {
        self.spec.layer_in_name(self.layer)
    }

    /// In model files.
    pub(crate) fn name(&self) -> String {
        self.spec.full(self.spec.name, self.layer)
    }

    /// In raw checkpoints.
    pub(crate) fn raw_name(&self) -> String {
        self.spec.raw_name(self.layer)
    }

    /// In Hugging Face directories.
    pub(crate) fn hugging_face_name(&self) -> String {
        let names = &self.sizes.architecture.hugging_face;
        names.name(&self.raw_name())
    }

    /// Whether a vector that raw checkpoints write as [1, 1, n] is [n] there.
    pub(crate) fn is_flat_in_hugging_face(&self) -> bool {
        let names = &self.sizes.architecture.hugging_face;
        names.flat.contains(&self.spec.raw)
    }

    /// The tensor of that raw name in the same part of the model.
    pub(crate) fn sibling(&self, raw: &str) -> Option<Self> {
        let architecture = self.sizes.architecture;
        let specs = match self.layer {
            Some(_) => architecture.layer.iter().chain(&[]),
            None => architecture.embedding.iter().chain(architecture.head),
        };
        let spec = specs.into_iter().find(|spec| spec.raw == raw)?;
        Some(spec.at(self.layer, self.sizes))
    }

    pub(crate) fn is_matrix(&self) -> bool {
        matches!(self.spec.shape, Shape::Matrix { .. })
    }

    /// Outputs and inputs of a matrix; of a vector its length and 1.
    pub(crate) fn outputs_and_inputs(&self) -> (usize, usize) {
        match self.spec.shape {
            Shape::Vector(len) => (len(self.sizes), 1),
            Shape::Matrix {
                outputs, inputs, ..
            } => (outputs(self.sizes), inputs(self.sizes)),
        }
    }

    pub(crate) fn layout(&self) -> Layout {
        match self.spec.shape {
            Shape::Vector(_) => Layout::RowPerOutput,
            Shape::Matrix { layout, .. } => layout,
        }
    }

    /// Whether this layer has it.
    pub(crate) fn is_there(&self) -> bool {
        let mut listed = self.sizes.architecture.layer.iter();
        let is_listed = self.layer.is_none() || listed.any(|spec| spec.name == self.spec.name);
        is_listed && (self.layer != Some(0) || !self.spec.is_behind_first_layer)
    }

    /// Rows and columns of a matrix in raw checkpoints.
    pub(crate) fn checkpoint_shape(&self) -> (usize, usize) {
        match self.layout() {
            Layout::LowRank => self.stored_shape(),
            Layout::RowPerOutput | Layout::RowPerInput => self.outputs_and_inputs(),
        }
    }

    /// Rows and columns as stored.
    pub(crate) fn stored_shape(&self) -> (usize, usize) {
        let (n_outputs, n_inputs) = self.outputs_and_inputs();
        self.layout().stored_shape(n_outputs, n_inputs)
    }

    /// Numbers.
    pub(crate) fn len(&self) -> usize {
        let (n_outputs, n_inputs) = self.outputs_and_inputs();
        n_outputs.saturating_mul(n_inputs)
    }
}
