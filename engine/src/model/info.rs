//! Facts about an open model, as `info` shows them: counted from its tensors, nothing is read.

#![forbid(unsafe_code)]

use std::ops::Range;

use crate::devices::stages::{StageFacts, Stages};
use crate::model::Inner;
use crate::networks::state::StateLayout;
use crate::networks::tensor_info::{TensorInfo, CPU};
use crate::quant::Quant;

/// Facts about an open model.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Info {
    /// Where it was opened from.
    pub place: String,
    /// Name of the architecture: `rwkv-4` or `rwkv-7`.
    pub architecture: &'static str,
    /// Version of RWKV: 4 or 7.
    pub version: u32,
    /// Layers.
    pub n_layer: usize,
    /// Width of the residual stream.
    pub n_embd: usize,
    /// Channels of the time mixing.
    pub n_attention: usize,
    /// Hidden units of the channel mixing.
    pub n_hidden: usize,
    /// Channels of a head of the time mixing; 0 in versions without heads.
    pub head_size: usize,
    /// Tokens of the vocabulary: length of a row of logits.
    pub n_vocab: usize,
    /// Tokens of context in training. Only advice: the state takes any number.
    pub context_length: usize,
    /// The token that ends a text: the first of [`ends_of_text`](Self::ends_of_text).
    pub end_of_text: u32,
    /// All tokens that end a text, mostly one.
    pub ends_of_text: Vec<u32>,
    /// Parameters, all tensors together.
    pub n_params: u64,
    /// Of the matrices as they are now; of most of them after
    /// [`with_matrices_of`](crate::Model::with_matrices_of).
    pub quant: Quant,
    /// Name of the blocks that most matrices are stored in in a GGUF or rwkv.cpp file, such as `Q8_0`: nothing here
    /// computes with them, so they have become [`quant`](Self::quant).
    pub stored_blocks: Option<&'static str>,
    /// The adapters that are merged with the weights, in the order in which they were: the file of each, and its alpha,
    /// if it has one. Also those that a model file was made with.
    pub adapters: Vec<String>,
    /// Of all weights as they are now, scales included.
    pub weight_bytes: u64,
    /// Those of `weight_bytes` that are used in place from the file, without a copy in memory.
    pub mapped_bytes: u64,
    /// Those of `weight_bytes` that were copied as the file stores them, into huge pages where the system has them:
    /// what came of [`Options::huge_pages`](crate::Options::huge_pages).
    pub huge_page_bytes: u64,
    /// Those of `mapped_bytes` for which the memory limit has no room now: they are read from the file again
    /// for every batch. A single row of the embedding is, of course, all of it that a token needs.
    pub paged_bytes: u64,
    /// Bits of the matrices a weight, scales included; without low-rank matrices, which stay floats.
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
    /// What a state has for each layer, in the order of [`State::as_slice`](crate::State::as_slice): names, and how many
    /// numbers. docs/ARCHITECTURE.md says what the names mean.
    pub state_parts: Vec<(&'static str, usize)>,
    /// Whether the empty state was tuned: it came with the model, or by
    /// [`with_initial_state`](crate::Model::with_initial_state).
    pub has_tuned_state: bool,
    /// The kernel set in use.
    pub kernels: &'static str,
    /// Threads that work on one forward pass.
    pub threads: usize,
    /// Of the checkpoint: the same for every quantisation of it.
    pub fingerprint: u64,
    /// Name of the tokenizer's file, if there is one.
    pub tokenizer: Option<String>,
    /// Where the layers run, in their order; of a model that is on several devices as a whole, one stage a
    /// device.
    pub stages: Vec<StageInfo>,
    /// Why a device map `auto` chose the CPU.
    pub device_note: Option<String>,
    /// What was corrected of what the model's files say, in words for people, such as a token that ends no text in
    /// its vocabulary; or where the model is taken otherwise than by the program whose file it is, or what
    /// beside it belongs to another model.
    pub correction: Option<String>,
}

/// Facts about a range of layers on one device.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct StageInfo {
    /// `cpu`, or a plugin's device such as `cuda:0`.
    pub device: String,
    /// What the device is, such as `NVIDIA H200`; `None` for the CPU.
    pub device_name: Option<String>,
    /// Of the matrices.
    pub quant: Quant,
    /// The model's layers that it has.
    pub layers: Range<usize>,
    /// Whether it turns tokens into the residual stream.
    pub has_embedding: bool,
    /// Whether it gives the logits.
    pub has_head: bool,
    /// Of its weights, as the host stores or sent them.
    pub weight_bytes: u64,
    /// What its plugin said before loading that it would take of the device, one state included; 0 for the
    /// CPU.
    pub estimated_bytes: u64,
    /// What it has taken of the device now, states included; 0 for the CPU.
    pub allocated_bytes: u64,
}

impl Info {
    pub(crate) fn of(inner: &Inner) -> Self {
        let (sizes, settings) = (&inner.config.sizes, &inner.config.settings);
        let state = sizes.architecture.state;
        let mut totals = Totals::default();
        let tensors = tensors(&inner.stages);
        tensors.iter().for_each(|tensor| totals.add(tensor));
        // Readers demand exactly one table of each name.
        let table = (sizes.n_vocab * sizes.n_embd) as u64;
        let embedding = tensors.first();
        let [embedding_bytes, embedding_row_bytes] = embedding.map_or([0, 0], |embedding| {
            [embedding.size_bytes, embedding.row_size_bytes]
        });
        Info {
            place: inner.place.clone(),
            architecture: sizes.architecture.name,
            version: sizes.architecture.version,
            n_layer: sizes.n_layer,
            n_embd: sizes.n_embd,
            n_attention: sizes.n_attention,
            n_hidden: sizes.n_hidden,
            head_size: sizes.head_size,
            n_vocab: sizes.n_vocab,
            context_length: settings.context_length,
            end_of_text: settings.end_of_text,
            ends_of_text: settings.ends_of_text().collect(),
            n_params: totals.n_params,
            quant: inner.quant,
            stored_blocks: inner.stored_blocks,
            adapters: inner.adapters.clone(),
            weight_bytes: totals.weight_bytes,
            mapped_bytes: totals.mapped_bytes,
            huge_page_bytes: totals.huge_page_bytes,
            paged_bytes: inner.budget.paged_bytes(),
            bits_per_weight: 8.0 * totals.matrix_bytes as f64 / totals.matrix_params as f64,
            decode_bytes: totals.matrix_bytes + totals.low_rank_bytes - embedding_bytes
                + embedding_row_bytes,
            layer_macs: totals.matrix_params + totals.low_rank_params - 2 * table,
            head_macs: table,
            state_bytes: StateLayout::of_sizes(sizes).size_bytes(),
            state_parts: state
                .iter()
                .map(|part| (part.name, (part.len)(sizes)))
                .collect(),
            has_tuned_state: false,
            kernels: inner.kernels.name(),
            threads: inner.pool.n_threads(),
            fingerprint: inner.fingerprint.first,
            tokenizer: inner.tokenizer.file.as_ref().map(|file| file.name.clone()),
            stages: stage_infos(&inner.stages),
            device_note: inner.note.clone(),
            correction: inner.correction.clone(),
        }
    }
}

/// Every tensor of a model, in the order in which a token needs them.
pub(crate) fn tensors(stages: &Stages) -> Vec<TensorInfo> {
    let mut networks = stages.networks();
    let mut all = Vec::new();
    for facts in &stages.facts {
        match facts.tensors.is_empty() {
            // Those of devices have their tensors here.
            true => {
                let tensors = networks.next().map(|network| network.tensors());
                all.extend(tensors.iter().flatten().map(TensorInfo::of));
            }
            false => all.extend_from_slice(&facts.tensors),
        }
    }
    all
}

fn stage_infos(stages: &Stages) -> Vec<StageInfo> {
    let mut networks = stages.networks();
    let mut devices = stages.pipelines[0].placed().iter();
    let mut infos = Vec::new();
    for facts in &stages.facts {
        if facts.tensors.is_empty() {
            let tensors = networks.next().map(|network| network.tensors());
            let bytes = tensors
                .iter()
                .flatten()
                .map(|t| TensorInfo::of(t).size_bytes);
            infos.push(StageInfo::new(facts, CPU.into(), bytes.sum()));
            continue;
        }
        let weight_bytes = facts.tensors.iter().map(|tensor| tensor.size_bytes).sum();
        let replicas = stages.pipelines[1..].iter().flat_map(|p| p.placed());
        for stage in devices.next().into_iter().chain(replicas) {
            let mut info = StageInfo::new(facts, stage.place(), weight_bytes);
            let device = stage.plugin().device_info(stage.device());
            info.device_name = device.ok().map(|device| device.name);
            info.estimated_bytes = facts.estimate.total();
            info.allocated_bytes = stage.memory().map_or(0, |memory| memory.allocated);
            infos.push(info);
        }
    }
    infos
}

impl StageInfo {
    fn new(facts: &StageFacts, device: String, weight_bytes: u64) -> Self {
        let part = &facts.planned.part;
        StageInfo {
            device,
            device_name: None,
            quant: facts.planned.quant,
            layers: part.layers.clone(),
            has_embedding: part.has_embedding,
            has_head: part.has_head,
            weight_bytes,
            estimated_bytes: 0,
            allocated_bytes: 0,
        }
    }
}

#[derive(Default)]
struct Totals {
    n_params: u64,
    weight_bytes: u64,
    mapped_bytes: u64,
    huge_page_bytes: u64,
    matrix_params: u64,
    matrix_bytes: u64,
    low_rank_params: u64,
    low_rank_bytes: u64,
}

impl Totals {
    fn add(&mut self, tensor: &TensorInfo) {
        let n_params = tensor.shape.iter().map(|&n| n as u64).product::<u64>();
        self.n_params += n_params;
        self.weight_bytes += tensor.size_bytes;
        if tensor.is_low_rank {
            self.low_rank_params += n_params;
            self.low_rank_bytes += tensor.size_bytes;
        } else if tensor.shape.len() == 2 {
            self.matrix_params += n_params;
            self.matrix_bytes += tensor.size_bytes;
        }
        if tensor.is_in_file {
            self.mapped_bytes += tensor.size_bytes;
        }
        if tensor.is_in_huge_pages {
            self.huge_page_bytes += tensor.size_bytes;
        }
    }
}
