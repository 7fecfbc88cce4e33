//! Models of the published sizes with made-up weights, so that speed and memory can be measured without
//! a download.
//!
//! The weights are uniform noise, scaled so that activations stay of order 1, made row by row from the
//! names of the tensors: the same on every machine, and never in memory as f32 all at once.

#![forbid(unsafe_code)]

use std::ops::Range;
use std::sync::Arc;

use xxhash_rust::xxh3::xxh3_64_with_seed;

use crate::devices::plan::{Plan, Request};
use crate::devices::stages::Stages;
use crate::error::Result;
use crate::math::kernels::KernelSet;
use crate::math::threads::Pool;
use crate::math::zeroed;
use crate::memory::budget::Budget;
use crate::model::{n_threads, Loaded, Model, Options, Setup};
use crate::networks::config::{Config, Sizes};
use crate::networks::fingerprint::Fingerprint;
use crate::networks::known;
use crate::networks::source::{RowsSource, TakeRows, WeightSource};
use crate::networks::table::TensorAt;
use crate::progress::{Counter, Progress, ProgressUnit};
use crate::quant::blocks::{Blocks, RowSource};
use crate::quant::convert::{convert_rows, convert_rows_in_pieces};
use crate::quant::matrix::{Matrix, Vector};
use crate::quant::Quant;

/// A size in which RWKV was published; of version 4 where the name says no other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum SyntheticSize {
    /// 169 million parameters: 12 layers of width 768.
    M169,
    /// 430 million parameters: 24 layers of width 1024.
    M430,
    /// 1.5 billion parameters: 24 layers of width 2048.
    B1_5,
    /// 3 billion parameters: 32 layers of width 2560.
    B3,
    /// Version 5, 1.58 billion parameters: 24 layers of width 2048.
    V5B1_5,
    /// Version 6, 1.6 billion parameters: 24 layers of width 2048.
    V6B1_6,
    /// Version 7, 191 million parameters: 12 layers of width 768.
    V7B0_1,
    /// Version 7, 451 million parameters: 24 layers of width 1024.
    V7B0_4,
    /// Version 7, 1.53 billion parameters: 24 layers of width 2048.
    V7B1_5,
    /// Version 7, 2.95 billion parameters: 32 layers of width 2560.
    V7B2_9,
}

impl SyntheticSize {
    /// The name on the command line, as in the names of the published models.
    pub fn name(self) -> &'static str {
        match self {
            SyntheticSize::M169 => "169m",
            SyntheticSize::M430 => "430m",
            SyntheticSize::B1_5 => "1b5",
            SyntheticSize::B3 => "3b",
            SyntheticSize::V5B1_5 => "v5-1.5b",
            SyntheticSize::V6B1_6 => "v6-1.6b",
            SyntheticSize::V7B0_1 => "v7-0.1b",
            SyntheticSize::V7B0_4 => "v7-0.4b",
            SyntheticSize::V7B1_5 => "v7-1.5b",
            SyntheticSize::V7B2_9 => "v7-2.9b",
        }
    }

    fn sizes(self) -> Sizes {
        // Ranks of the pairs of decay, learning rate, value and gate.
        let (architecture, n_layer, n_embd, ranks) = match self {
            SyntheticSize::M169 => (known::version_4(), 12, 768, [0; 4]),
            SyntheticSize::M430 => (known::version_4(), 24, 1024, [0; 4]),
            SyntheticSize::B1_5 => (known::version_4(), 24, 2048, [0; 4]),
            SyntheticSize::B3 => (known::version_4(), 32, 2560, [0; 4]),
            SyntheticSize::V5B1_5 => (known::version_5(), 24, 2048, [0; 4]),
            SyntheticSize::V6B1_6 => (known::version_6(), 24, 2048, [64, 0, 0, 0]),
            SyntheticSize::V7B0_1 => (known::version_7(), 12, 768, [64, 64, 32, 128]),
            SyntheticSize::V7B0_4 => (known::version_7(), 24, 1024, [64, 64, 32, 128]),
            SyntheticSize::V7B1_5 => (known::version_7(), 24, 2048, [96, 96, 64, 256]),
            SyntheticSize::V7B2_9 => (known::version_7(), 32, 2560, [96, 96, 64, 320]),
        };
        let [rank_decay, rank_iclr, rank_value, rank_gate] = ranks;
        let sizes = Sizes {
            n_vocab: 65_536,
            n_embd,
            n_layer,
            n_attention: n_embd,
            n_hidden: 4 * n_embd,
            head_size: 64,
            rank_decay,
            rank_iclr,
            rank_value,
            rank_gate,
            ..Sizes::unknown(architecture)
        };
        match architecture.version {
            4 => Sizes {
                n_vocab: 50_277,
                head_size: 0,
                ..sizes
            },
            5 | 6 => Sizes {
                n_hidden: 7 * n_embd / 2,
                rank_mixes: if architecture.version == 6 { 5 * 32 } else { 0 },
                ..sizes
            },
            _ => sizes,
        }
    }
}

impl Model {
    /// A model of a published size with made-up weights: for measuring speed and memory, which do not
    /// depend on what the weights are. The same seedless weights every time. About half of the hidden
    /// units of the channel mixing are 0, where trained models have more. Calls `progress` while it works, which counts
    /// weights of matrices.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Argument`](crate::ErrorKind::Argument) for too many threads, [`ErrorKind::Memory`](crate::ErrorKind::Memory).
    pub fn synthetic(
        size: SyntheticSize,
        options: &Options,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<Self> {
        let kernels = KernelSet::select()?;
        let pool = Pool::new(n_threads(options.threads)?);
        let config = Config::of_sizes(size.sizes());
        let plan = Plan::new(&Request {
            map: &options.device_map,
            memory_max: &options.device_memory_max,
            config: &config,
            quant: options.quant,
            stored: Quant::F16,
        })?;
        let loaded = load(size, config, &plan, &pool, progress)?;
        let setup = Setup {
            quant: plan.quant(),
            pool: Arc::new(pool),
            kernels,
            no_sparsity: options.no_sparsity,
            budget: Budget::default(),
            note: plan.note,
            path: None,
        };
        Ok(Model::assemble(loaded, setup))
    }
}

/// Makes the weights; `progress` counts those of matrices.
fn load(
    size: SyntheticSize,
    config: Config,
    plan: &Plan,
    pool: &Pool,
    progress: &mut dyn FnMut(Progress),
) -> Result<Loaded> {
    let (sizes, architecture) = (&config.sizes, config.sizes.architecture);
    let tensors = architecture.tensors(sizes, &architecture.whole(sizes));
    let matrices = tensors.filter(TensorAt::is_matrix);
    let total = matrices.map(|tensor| tensor.len() as u64).sum();
    let mut weights = SyntheticWeights {
        quant: plan.quant(),
        pool,
        counter: Counter::new(ProgressUnit::Weights, total, progress),
    };
    let stages = Stages::build(&mut weights, &config, plan)?;
    let place = format!("synthetic {}", size.name());
    Ok(Loaded {
        fingerprint: Fingerprint::of_text(&place),
        place,
        config,
        stages,
        initial: None,
        tokenizer: None,
        tokenizer_search: "a synthetic model has none".into(),
        model_file: None,
        stored_blocks: None,
        adapters: Vec::new(),
        correction: None,
    })
}

struct SyntheticWeights<'a> {
    quant: Quant,
    pool: &'a Pool,
    counter: Counter<'a>,
}

impl WeightSource for SyntheticWeights<'_> {
    fn set_quant(&mut self, quant: Quant) -> Result<()> {
        self.quant = quant;
        Ok(())
    }

    fn vector(&mut self, tensor: &TensorAt<'_>) -> Result<Vector> {
        let (name, (low, high)) = (tensor.name(), tensor.spec.noise);
        let mut values = zeroed(tensor.len(), "a vector of weights")?;
        Noise::new(&name, 0).fill(low, high, &mut values);
        Ok(Vector { name, values })
    }

    fn matrix(&mut self, tensor: &TensorAt<'_>) -> Result<Matrix> {
        let name = tensor.name();
        let rows = SyntheticRows::new(&name, tensor);
        let quant = tensor.quant(self.quant);
        let weights = convert_rows(&mut rows.blocks(self.pool), quant)?;
        let (n_rows, n_cols) = (rows.n_rows, rows.n_cols);
        self.was_made(tensor.len());
        Ok(Matrix {
            layout: tensor.layout(),
            name,
            n_rows,
            n_cols,
            weights,
        })
    }
}

impl RowsSource for SyntheticWeights<'_> {
    fn matrix_rows(&mut self, tensor: &TensorAt<'_>, take: &mut TakeRows<'_>) -> Result<()> {
        let name = tensor.name();
        let rows = SyntheticRows::new(&name, tensor);
        let quant = tensor.quant(self.quant);
        convert_rows_in_pieces(&mut rows.blocks(self.pool), quant, take)?;
        self.was_made(tensor.len());
        Ok(())
    }
}

impl SyntheticWeights<'_> {
    fn was_made(&mut self, n: usize) {
        self.counter.advance(n as u64);
    }
}

struct SyntheticRows<'a> {
    name: &'a str,
    limit: f32,
    n_rows: usize,
    n_cols: usize,
}

impl<'a> SyntheticRows<'a> {
    fn new(name: &'a str, tensor: &TensorAt<'_>) -> Self {
        let (n_rows, n_cols) = tensor.stored_shape();
        let (_, n_inputs) = tensor.outputs_and_inputs();
        SyntheticRows {
            name,
            // Uniform numbers up to a have a variance of a^2 / 3; outputs shall have that of the inputs.
            limit: (3.0 / n_inputs as f32).sqrt(),
            n_rows,
            n_cols,
        }
    }

    fn blocks(&'a self, pool: &'a Pool) -> Blocks<'a> {
        Blocks::new(self, self.n_rows, self.n_cols, pool)
    }
}

impl RowSource for SyntheticRows<'_> {
    fn read_rows(&self, rows: Range<usize>, out: &mut [f32]) -> Result<()> {
        for (row, out) in rows.zip(out.chunks_exact_mut(self.n_cols)) {
            Noise::new(self.name, row as u64 + 1).fill(-self.limit, self.limit, out);
        }
        Ok(())
    }

    fn place(&self) -> String {
        self.name.to_owned()
    }
}

/// The SplitMix64 generator: a counter and a hash of it.
struct Noise(u64);

impl Noise {
    fn new(name: &str, stream: u64) -> Self {
        Noise(xxh3_64_with_seed(name.as_bytes(), stream))
    }

    fn fill(&mut self, low: f32, high: f32, out: &mut [f32]) {
        let step = (high - low) / (1 << 24) as f32;
        for pair in out.chunks_mut(2) {
            self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mut bits = self.0;
            bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            bits ^= bits >> 31;
            let numbers = [(bits >> 40) as u32, (bits & 0xff_ffff) as u32];
            for (out, number) in pair.iter_mut().zip(numbers) {
                *out = low + number as f32 * step;
            }
        }
    }
}
