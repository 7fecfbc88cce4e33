//! Quantising by what a text does to a model: layer after layer, each given what the quantised layers in front of it make
//! of the text.
//!
//! A layer is run twice over all tokens. Its weights as floats show what its matrices are multiplied with; then they are
//! rounded by that (`quant/feedback.rs`), and what the rounded layer gives goes on. So the errors of a layer are part of
//! what those behind it are rounded for. Rows of all tokens are held, and one layer as floats: where the checkpoint is mapped, and
//! stored as f16, not even that.

#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use crate::devices::plan::{Plan, PlannedStage, Target};
use crate::error::{Error, Result};
use crate::math::kernels::Rows;
use crate::math::threads::Pool;
use crate::math::{all_finite, zeroed};
use crate::model::mixed_quant::joined;
use crate::networks::batch::{Output, Segment, Span};
use crate::networks::config::{Config, Sizes};
use crate::networks::source::{CalibratedSource, WeightSource};
use crate::networks::state::{Initial, State, StateLayout};
use crate::networks::table::{StageRange, TensorAt};
use crate::networks::{Buffers, Machine, Network};
use crate::products::Observer;
use crate::quant::exponents::Importance;
use crate::quant::feedback::Moments;
use crate::quant::matrix::{Layout, Matrix, Vector};
use crate::quant::Quant;

/// Tokens that are fed at once.
const ROWS: usize = 256;

/// A text to quantise by, and what it is run on.
pub(crate) struct Calibration<'a> {
    /// At least one, all of the vocabulary.
    pub(crate) tokens: &'a [u32],
    pub(crate) machine: Machine<'a>,
}

impl Calibration<'_> {
    /// Refuses what cannot be done, before anything is read.
    ///
    /// # Errors
    /// See [`Model::open_calibrated`](crate::Model::open_calibrated).
    pub(crate) fn check(&self, config: &Config, plan: &Plan) -> Result<()> {
        check_tokens(self.tokens, config.sizes.n_vocab)?;
        let quant = plan.quant();
        if !quant.is_mixed() {
            let text = format!("{quant} gains nothing by a text, expected q4, q5 or q6");
            return Err(Error::unsupported(text).at("calibration"));
        }
        if !matches!(
            plan.stages[..],
            [PlannedStage {
                target: Target::Cpu,
                ..
            }]
        ) {
            let text = "a model with layers on devices, expected the CPU alone";
            return Err(Error::unsupported(text).at("calibration"));
        }
        Ok(())
    }

    /// The network, quantised. Both sources are of one model: `floats` has the weights as they are, `weights` rounds them;
    /// `initial` is its empty state, where that was tuned.
    ///
    /// # Errors
    /// Those of the sources; [`ErrorKind::Format`](crate::ErrorKind::Format) where the text leads to numbers that are not
    /// finite; [`ErrorKind::Memory`](crate::ErrorKind::Memory).
    pub(crate) fn run(
        &self,
        (floats, weights): (&mut dyn WeightSource, &mut dyn CalibratedSource),
        config: &Config,
        initial: Option<Initial>,
    ) -> Result<Network> {
        let sizes = &config.sizes;
        let mut stream = Stream::new(sizes, self, initial)?;
        let part = |layers, has_embedding, has_head| StageRange {
            layers,
            has_embedding,
            has_head,
        };
        let embedding = Network::build(weights, config, &part(0..0, true, false))?;
        stream.pass(&embedding, None)?;
        let mut parts = vec![embedding];
        for layer in 0..sizes.n_layer {
            let part = part(layer..layer + 1, false, false);
            let exact = Network::build(floats, config, &part)?;
            for matrix in exact.matrices() {
                // Else it would be the text that is blamed for numbers that are none.
                matrix.check_finite(0..matrix.n_rows, false)?;
            }
            let seen = Seen::new(self.machine.pool);
            let in_layer = |e: Error| e.at(format_args!("layer {layer}"));
            stream.pass(&exact, Some(&seen)).map_err(in_layer)?;
            // What is mapped is read again when it is rounded, then mostly from the system's cache.
            exact.matrices().for_each(Matrix::release);
            drop(exact);
            weights.set_importances(seen.importances()?);
            let network = Network::build(weights, config, &part)?;
            stream.pass(&network, None).map_err(in_layer)?;
            parts.push(network);
        }
        let part = part(sizes.n_layer..sizes.n_layer, false, true);
        // Its logits are not needed, and so its matrix is not.
        let norms = Network::build(&mut VectorsOf(floats), config, &part)?;
        let seen = Seen::new(self.machine.pool);
        stream.see_head(&norms, &seen)?;
        weights.set_importances(seen.importances()?);
        parts.push(Network::build(weights, config, &part)?);
        joined(&parts, config)
    }
}

/// Refuses a text that cannot be read.
pub(crate) fn check_tokens(tokens: &[u32], n_vocab: usize) -> Result<()> {
    if tokens.is_empty() {
        let text = "no tokens to calibrate with, expected some thousands";
        return Err(Error::argument(text));
    }
    match tokens.iter().find(|&&token| token as usize >= n_vocab) {
        None => Ok(()),
        Some(token) => {
            let text = format!("token {token} to calibrate with, expected less than {n_vocab}");
            Err(Error::argument(text))
        }
    }
}

/// The vectors of a source, and placeholders for its matrices.
struct VectorsOf<'a>(&'a mut dyn WeightSource);

impl WeightSource for VectorsOf<'_> {
    fn set_quant(&mut self, quant: Quant) -> Result<()> {
        self.0.set_quant(quant)
    }

    fn vector(&mut self, tensor: &TensorAt<'_>) -> Result<Vector> {
        self.0.vector(tensor)
    }

    fn matrix(&mut self, tensor: &TensorAt<'_>) -> Result<Matrix> {
        let (name, shape) = (tensor.name(), tensor.stored_shape());
        Ok(Matrix::placeholder(name, shape, tensor.layout()))
    }
}

/// What passes from layer to layer.
struct Stream<'a> {
    calibration: &'a Calibration<'a>,
    state: State,
    buffers: Buffers,
    /// (tokens, row width)
    rows: Vec<f32>,
    row_width: usize,
}

impl<'a> Stream<'a> {
    fn new(
        sizes: &Sizes,
        calibration: &'a Calibration<'a>,
        initial: Option<Initial>,
    ) -> Result<Self> {
        let n_threads = calibration.machine.pool.n_threads();
        let row_width = sizes.architecture.row_width(sizes);
        let n_numbers = calibration.tokens.len().saturating_mul(row_width);
        Ok(Stream {
            calibration,
            state: State::new(StateLayout::of_sizes(sizes), initial)?,
            buffers: Buffers::new(sizes, ROWS, n_threads, false)?,
            rows: zeroed(n_numbers, "rows of all tokens")?,
            row_width,
        })
    }

    /// Feeds all rows to a part of the model, from the empty state on. Where nobody looks, what it gives takes their place.
    fn pass(&mut self, network: &Network, observer: Option<&dyn Observer>) -> Result<()> {
        let machine = Machine {
            observer,
            ..self.calibration.machine
        };
        self.state.reset();
        let pieces = self.rows.chunks_mut(ROWS * self.row_width);
        for (tokens, rows) in self.calibration.tokens.chunks(ROWS).zip(pieces) {
            let memory = (&mut self.buffers, &mut self.state);
            feed(network, machine, memory, tokens, rows);
            let given = self.buffers.rows_mut(tokens.len()).0;
            if !all_finite(given) {
                let text = "the text to calibrate with leads to numbers that are not finite";
                return Err(Error::format(text));
            }
            if observer.is_none() {
                rows.copy_from_slice(given);
            }
        }
        Ok(())
    }

    /// Shows what the head reads, without the logits that it makes of that.
    fn see_head(&mut self, network: &Network, seen: &Seen<'_>) -> Result<()> {
        let Some(head) = &network.head else {
            return Ok(());
        };
        let n_embd = head.matrix.n_cols;
        let numbers: [usize; ROWS] = std::array::from_fn(|row| row);
        let mut inputs = zeroed(ROWS * n_embd, "inputs of the head")?;
        for rows in self.rows.chunks(ROWS * self.row_width) {
            let n_rows = rows.len() / self.row_width;
            put_rows(&mut self.buffers, n_rows, rows);
            let inputs = &mut inputs[..n_rows * n_embd];
            network.hidden(
                self.calibration.machine,
                &self.buffers,
                &numbers[..n_rows],
                inputs,
            );
            let rows = Rows {
                values: &*inputs,
                stride: n_embd,
                n: n_rows,
            };
            seen.inputs(&head.matrix, rows);
        }
        Ok(())
    }
}

/// Feeds tokens, whose rows the parts in front have made, to a part of a model. One with the embedding does not look at
/// the rows.
pub(super) fn feed(
    network: &Network,
    machine: Machine<'_>,
    (buffers, state): (&mut Buffers, &mut State),
    tokens: &[u32],
    rows: &[f32],
) {
    if network.embedding.is_none() {
        put_rows(buffers, tokens.len(), rows);
    }
    let segment = Segment {
        span: 0,
        first_token: 0,
        first_row: 0,
        n_rows: tokens.len(),
        output: Output::None,
    };
    let mut spans = [Span::new(state, tokens, Output::None)];
    network.forward(machine, buffers, &[segment], &mut spans);
}

/// What a stage finds as its input.
fn put_rows(buffers: &mut Buffers, n_rows: usize, rows: &[f32]) {
    buffers.rows_mut(n_rows).1.copy_from_slice(rows);
    buffers.swap_rows();
}

/// What was seen of the inputs of matrices, by their names.
struct Seen<'a> {
    pool: &'a Pool,
    moments: Mutex<BTreeMap<String, Result<Moments>>>,
}

impl<'a> Seen<'a> {
    fn new(pool: &'a Pool) -> Self {
        Seen {
            pool,
            moments: Mutex::default(),
        }
    }

    fn importances(self) -> Result<BTreeMap<String, Importance>> {
        let moments = self.moments.into_inner();
        let moments = moments.unwrap_or_else(PoisonError::into_inner);
        let importance = |(name, moments): (String, Result<Moments>)| {
            Ok((name, moments?.importance(self.pool)?))
        };
        moments.into_iter().map(importance).collect()
    }
}

impl Observer for Seen<'_> {
    fn inputs(&self, matrix: &Matrix, rows: Rows<'_, f32>) {
        let mut all = self.moments.lock().unwrap_or_else(PoisonError::into_inner);
        let moments = all.entry(matrix.name.clone()).or_insert_with(|| {
            let with_pairs = matrix.layout == Layout::RowPerOutput;
            Moments::new(matrix.n_inputs(), with_pairs)
        });
        if let Ok(moments) = moments {
            moments.add(rows, self.pool);
        }
    }
}
