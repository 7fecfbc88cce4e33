//! Models of the published sizes with made-up weights, so that speed and memory can be measured without
//! a download.
//!
//! The weights are uniform noise, scaled so that activations stay of order 1, made row by row from the
//! names of the tensors: the same on every machine, and never in memory as f32 all at once.

#![forbid(unsafe_code)]

use std::ops::Range;
use std::sync::{Arc, OnceLock};

use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

use crate::checkpoint::Config;
use crate::devices::plan::Plan;
use crate::devices::stages::Stages;
use crate::error::Result;
use crate::math::kernels::KernelSet;
use crate::math::threads::Pool;
use crate::memory::budget::Budget;
use crate::model::{Inner, TokenizerSlot};
use crate::networks::v4::Sizes;
use crate::quant::blocks::{Blocks, RowSource};
use crate::quant::convert::{convert_rows, convert_rows_in_pieces};
use crate::quant::matrix::{Layout, Matrix, Quant, Rows, RowsSource, Vector, WeightSource};

/// A size in which RWKV-4 was published.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SyntheticSize {
    /// 169 million parameters: 12 layers of width 768.
    M169,
    /// 430 million parameters: 24 layers of width 1024.
    M430,
    /// 1.5 billion parameters: 24 layers of width 2048.
    B1_5,
    /// 3 billion parameters: 32 layers of width 2560.
    B3,
}

impl SyntheticSize {
    /// The name on the command line, as in the names of the published models.
    pub fn name(self) -> &'static str {
        match self {
            SyntheticSize::M169 => "169m",
            SyntheticSize::M430 => "430m",
            SyntheticSize::B1_5 => "1b5",
            SyntheticSize::B3 => "3b",
        }
    }

    pub(crate) fn config(self) -> Config {
        let (n_layer, n_embd) = match self {
            SyntheticSize::M169 => (12, 768),
            SyntheticSize::M430 => (24, 1024),
            SyntheticSize::B1_5 => (24, 2048),
            SyntheticSize::B3 => (32, 2560),
        };
        Config {
            n_vocab: 50_277,
            n_embd,
            n_layer,
            n_attention: n_embd,
            n_hidden: 4 * n_embd,
            layer_norm_epsilon: 1e-5,
            end_of_text: 0,
            bos: 0,
            context_length: 1024,
            tie_word_embeddings: false,
        }
    }
}

/// Makes a model; calls `progress(done, total)` in weights.
pub(crate) fn build(
    size: SyntheticSize,
    plan: &Plan,
    pool: Pool,
    kernels: KernelSet,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<Inner> {
    let config = size.config();
    let sizes = Sizes::of(&config);
    let (d, h, n) = (
        config.n_embd as u64,
        config.n_hidden as u64,
        config.n_layer as u64,
    );
    let total = 2 * config.n_vocab as u64 * d + n * (5 * d * d + 2 * d * h);
    let quant = plan.quant();
    let mut weights = SyntheticWeights {
        quant,
        pool: &pool,
        done: 0,
        total,
        progress,
    };
    let stages = Stages::build(&mut weights, sizes, config.layer_norm_epsilon, plan)?;
    let place = format!("synthetic {}", size.name());
    let searched = "a synthetic model has none".into();
    Ok(Inner {
        fingerprint: xxh3_64(place.as_bytes()),
        place,
        sizes,
        stages,
        config,
        quant,
        pool: Arc::new(pool),
        kernels,
        no_sparsity: false,
        budget: Budget::default(),
        tokenizer: TokenizerSlot {
            file: None,
            searched,
            parsed: OnceLock::new(),
        },
        model_file: None,
        note: plan.note.clone(),
    })
}

struct SyntheticWeights<'a> {
    quant: Quant,
    pool: &'a Pool,
    done: u64,
    total: u64,
    progress: &'a mut dyn FnMut(u64, u64),
}

impl WeightSource for SyntheticWeights<'_> {
    fn set_quant(&mut self, quant: Quant) -> Result<()> {
        self.quant = quant;
        Ok(())
    }

    fn vector(&mut self, name: String, n: usize) -> Result<Vector> {
        let (low, high) = match name.rsplit('.').next() {
            Some("weight") => (0.5, 1.5),
            Some("bias") => (-0.1, 0.1),
            Some("decay_log") => (-3.0, -0.001),
            Some("time_first") => (-1.0, 0.5),
            _ => (0.0, 1.0), // token shift
        };
        let mut values = vec![0.0; n];
        Noise::new(&name, 0).fill(low, high, &mut values);
        Ok(Vector { name, values })
    }

    fn matrix(
        &mut self,
        name: String,
        n_outputs: usize,
        n_inputs: usize,
        layout: Layout,
    ) -> Result<Matrix> {
        let rows = SyntheticRows::new(&name, n_outputs, n_inputs, layout);
        let weights = convert_rows(&mut rows.blocks(self.pool), self.quant)?;
        let (n_rows, n_cols) = (rows.n_rows, rows.n_cols);
        self.was_made(n_rows * n_cols);
        Ok(Matrix {
            name,
            n_rows,
            n_cols,
            layout,
            weights,
        })
    }
}

impl RowsSource for SyntheticWeights<'_> {
    fn matrix_rows(
        &mut self,
        name: String,
        n_outputs: usize,
        n_inputs: usize,
        layout: Layout,
        take: &mut dyn FnMut(Rows<'_>) -> Result<()>,
    ) -> Result<()> {
        let rows = SyntheticRows::new(&name, n_outputs, n_inputs, layout);
        convert_rows_in_pieces(&mut rows.blocks(self.pool), self.quant, take)?;
        self.was_made(n_outputs * n_inputs);
        Ok(())
    }
}

impl SyntheticWeights<'_> {
    fn was_made(&mut self, n: usize) {
        self.done += n as u64;
        (self.progress)(self.done, self.total);
    }
}

struct SyntheticRows<'a> {
    name: &'a str,
    limit: f32,
    n_rows: usize,
    n_cols: usize,
}

impl<'a> SyntheticRows<'a> {
    fn new(name: &'a str, n_outputs: usize, n_inputs: usize, layout: Layout) -> Self {
        let (n_rows, n_cols) = layout.stored_shape(n_outputs, n_inputs);
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
