//! Stages, which hold weights, and states, which hold what a sequence remembers of them.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use rwkv_edge_plugin as abi;

use crate::matrix::{floats, Matrix, Parts};
use crate::names::{chosen, Quant, Tensor};
use crate::options::Options;
use crate::{elements, give_back, named, take, text, wrong, Result};

/// A range of layers. States hold it too, so that nothing dangles whatever the host does.
#[derive(Clone)]
pub(crate) struct Stage(pub(crate) Arc<Inner>);

pub(crate) struct Inner {
    pub(crate) options: Options,
    /// Tensors that have come so far; `None` once it is finished.
    loading: Mutex<Option<Tensors>>,
    finished: OnceLock<Tensors>,
    /// Bytes taken of the device, states included.
    taken: AtomicU64,
}

/// Which tensor, and the layer of the model that has it, or NO_LAYER.
type Key = (Tensor, u32);

#[derive(Default)]
pub(crate) struct Tensors {
    vectors: HashMap<Key, Vec<f32>>,
    matrices: HashMap<Key, Matrix>,
}

impl Tensors {
    /// How many rows of a tensor have come.
    fn rows_so_far(&self, key: Key) -> u64 {
        match self.matrices.get(&key) {
            Some(matrix) => matrix.rows_so_far() as u64,
            None => u64::from(self.vectors.contains_key(&key)),
        }
    }

    /// Every tensor that a stage must have was there when it was finished.
    pub(crate) fn vector(&self, tensor: Tensor, layer: u32) -> &[f32] {
        &self.vectors[&(tensor, layer)]
    }

    pub(crate) fn matrix(&self, tensor: Tensor, layer: u32) -> &Matrix {
        &self.matrices[&(tensor, layer)]
    }
}

/// What a tensor must look like.
struct Shape {
    is_matrix: bool,
    n_rows: u64,
    n_cols: u64,
}

/// `None` for a tensor that the stage does not have.
fn shape(o: &Options, tensor: Tensor, layer: u32) -> Option<Shape> {
    let [v, d, a, h] = [o.n_vocab, o.n_embd, o.n_attention, o.n_hidden].map(u64::from);
    let has_layer = (o.first_layer..o.first_layer + o.layer_count).contains(&layer);
    let is_outside = layer == abi::NO_LAYER;
    let is_there = match tensor {
        Tensor::Embedding => o.has_embedding && is_outside,
        Tensor::NormInWeight | Tensor::NormInBias => o.has_embedding && layer == 0,
        Tensor::NormOutWeight | Tensor::NormOutBias | Tensor::Head => o.has_head && is_outside,
        _ => has_layer,
    };
    if !is_there {
        return None;
    }
    let (is_matrix, n_rows, n_cols) = match tensor {
        Tensor::Embedding | Tensor::Head => (true, v, d),
        Tensor::AttKey | Tensor::AttValue | Tensor::AttReceptance => (true, a, d),
        Tensor::AttOutput => (true, d, a),
        Tensor::FfnKey | Tensor::FfnValue => (true, h, d),
        Tensor::FfnReceptance => (true, d, d),
        Tensor::AttDecayLog | Tensor::AttBonus => (false, 1, a),
        _ => (false, 1, d),
    };
    Some(Shape {
        is_matrix,
        n_rows,
        n_cols,
    })
}

/// All tensors of a stage.
fn all(o: &Options) -> impl Iterator<Item = (&'static str, Key, Shape)> + '_ {
    let layers = o.first_layer..o.first_layer + o.layer_count;
    let places = Tensor::ALL.iter().flat_map(move |&(tensor, name)| {
        let layers = layers.clone().chain([abi::NO_LAYER]);
        layers.map(move |layer| (name, (tensor, layer)))
    });
    places.filter_map(|(name, key)| Some((name, key, shape(o, key.0, key.1)?)))
}

fn size_bytes(shape: &Shape, quant: Quant) -> u64 {
    let n = shape.n_rows * shape.n_cols;
    match (shape.is_matrix, quant) {
        (false, _) | (true, Quant::F32) => 4 * n,
        (true, Quant::F16) => 2 * n,
        (true, Quant::Int8) => n + 2 * shape.n_rows + 4 * shape.n_cols,
    }
}

/// Numbers of a state of the stage.
pub(crate) fn state_len(o: &Options) -> usize {
    o.layer_count as usize * (2 * o.n_embd as usize + 3 * o.n_attention as usize)
}

fn state_bytes(o: &Options) -> u64 {
    let logits = if o.has_head { o.n_vocab as usize } else { 0 };
    4 * (state_len(o) + logits) as u64
}

pub(crate) fn estimate(o: &Options, memory: &mut abi::Memory) {
    memory.weight_bytes = all(o)
        .map(|(_, _, shape)| size_bytes(&shape, o.quant))
        .sum();
    // Rows of the residual stream, of what a layer makes of them, and of logits.
    let width = 4 * o.n_embd + 4 * o.n_attention + o.n_hidden;
    memory.workspace_bytes = 4 * u64::from(o.rows_max) * u64::from(width);
    memory.state_bytes = state_bytes(o);
    memory.allocated_bytes = 0;
}

impl Stage {
    pub(crate) fn new(options: Options) -> Result<Self> {
        let mut memory = abi::Memory::default();
        estimate(&options, &mut memory);
        let bytes = memory.weight_bytes + memory.workspace_bytes;
        take(options.device, bytes)?;
        Ok(Stage(Arc::new(Inner {
            options,
            loading: Mutex::new(Some(Tensors::default())),
            finished: OnceLock::new(),
            taken: AtomicU64::new(bytes),
        })))
    }

    pub(crate) fn add(&self, given: &Given<'_>) -> Result {
        let (o, name, layer) = (&self.0.options, &given.name, given.layer);
        let key = (Tensor::of(name)?, layer);
        let Some(shape) = shape(o, key.0, layer) else {
            return wrong(format!("tensor {name} of layer {layer}: not of this stage"));
        };
        let quant = if shape.is_matrix { o.quant } else { Quant::F32 };
        let found = Quant::of(&given.quant)?;
        if found != quant {
            return wrong(format!("tensor {name}: {found:?}, expected {quant:?}"));
        }
        let (found, expected) = ((given.n_rows, given.n_cols), (shape.n_rows, shape.n_cols));
        if found != expected {
            return wrong(format!("tensor {name}: {found:?}, expected {expected:?}"));
        }
        let rows_left = given.n_rows.checked_sub(given.first_row);
        if given.row_count == 0 || rows_left.is_none_or(|left| given.row_count > left) {
            return wrong(format!(
                "tensor {name}: {} rows from {} on, of {}",
                given.row_count, given.first_row, given.n_rows
            ));
        }
        let parts = given.parts(quant)?;
        let mut loading = self
            .0
            .loading
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let Some(tensors) = &mut *loading else {
            return wrong("the stage is finished");
        };
        let expected = tensors.rows_so_far(key);
        if given.first_row != expected {
            return wrong(format!(
                "tensor {name} of layer {layer}: rows from {} on, expected those from {expected} on",
                given.first_row
            ));
        }
        if !shape.is_matrix {
            tensors.vectors.insert(key, floats(parts.values).collect());
            return Ok(());
        }
        let matrix = tensors
            .matrices
            .entry(key)
            .or_insert_with(|| Matrix::new(quant, shape.n_rows as usize, shape.n_cols as usize));
        matrix.append(&parts)
    }

    pub(crate) fn finish(&self) -> Result {
        let mut loading = self
            .0
            .loading
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let Some(tensors) = &*loading else {
            return wrong("the stage is finished already");
        };
        for (name, key, shape) in all(&self.0.options) {
            let (found, expected) = (tensors.rows_so_far(key), shape.n_rows);
            if found != expected {
                return wrong(format!(
                    "tensor {name} of layer {}: {found} rows of {expected} have come",
                    key.1
                ));
            }
        }
        if let Some(tensors) = loading.take() {
            let _ = self.0.finished.set(tensors);
        }
        Ok(())
    }

    /// The weights, once they are all there.
    pub(crate) fn tensors(&self) -> Result<&Tensors> {
        match self.0.finished.get() {
            Some(tensors) => Ok(tensors),
            None => wrong("the stage is not finished"),
        }
    }

    pub(crate) fn memory(&self, memory: &mut abi::Memory) {
        estimate(&self.0.options, memory);
        memory.allocated_bytes = self.0.taken.load(Ordering::Relaxed);
    }
}

/// Rows of a tensor as they come: names that are texts, and parts that are bytes.
pub(crate) struct Given<'a> {
    name: String,
    layer: u32,
    quant: String,
    n_rows: u64,
    n_cols: u64,
    first_row: u64,
    row_count: u64,
    parts: Vec<(String, &'a [u8])>,
}

impl<'a> Given<'a> {
    /// # Safety
    /// The texts and arrays of the tensor are NULL or as long as it says.
    pub(crate) unsafe fn read(tensor: &'a abi::Tensor) -> Result<Self> {
        // SAFETY: the caller's promise is the same.
        let (name, quant, parts) = unsafe {
            (
                text(tensor.name, "name")?,
                text(tensor.quant, "quant")?,
                named(tensor.parts, tensor.n_parts, "parts", |part| {
                    (part.name, *part)
                })?,
            )
        };
        let bytes = |(name, part): (String, abi::Part)| {
            // No slice may have more.
            if part.bytes > isize::MAX as u64 {
                return wrong(format!("part {name}: {} bytes", part.bytes));
            }
            // SAFETY: as above.
            let bytes = unsafe { elements(part.data.cast::<u8>(), part.bytes as usize, &name) }?;
            Ok((name, bytes))
        };
        Ok(Given {
            name,
            layer: tensor.layer,
            quant,
            n_rows: tensor.n_rows,
            n_cols: tensor.n_cols,
            first_row: tensor.first_row,
            row_count: tensor.row_count,
            parts: parts.into_iter().map(bytes).collect::<Result<_>>()?,
        })
    }

    /// All as large as the rows, which were checked, want them.
    fn parts(&self, quant: Quant) -> Result<Parts<'a>> {
        let sized = |part: &str, found: Option<&'a [u8]>, expected: u64| {
            let found = match found {
                Some(found) => found,
                None => return wrong(format!("tensor {}: no {part}", self.name)),
            };
            match found.len() as u64 == expected {
                true => Ok(found),
                false => wrong(format!(
                    "tensor {}: {} bytes of {part}, expected {expected}",
                    self.name,
                    found.len()
                )),
            }
        };
        let names = ["values", "row_scales", "column_exponents"];
        let [values, row_scales, column_exponents] = match quant {
            Quant::Int8 => chosen("part", names, &self.parts)?,
            Quant::F32 | Quant::F16 => {
                let [values] = chosen("part", ["values"], &self.parts)?;
                [values, Some(&[][..]), None]
            }
        };
        let n_scales = if quant == Quant::Int8 {
            self.row_count
        } else {
            0
        };
        let n_values = self.row_count * self.n_cols;
        let exponents = column_exponents.map(|_| sized(names[2], column_exponents, self.n_cols));
        Ok(Parts {
            values: sized(names[0], values, n_values * quant.value_bytes())?,
            row_scales: sized(names[1], row_scales, 2 * n_scales)?,
            column_exponents: exponents.transpose()?,
        })
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        // States are gone: they held this.
        give_back(self.options.device, self.taken.load(Ordering::Relaxed));
    }
}

/// What one sequence remembers of a stage.
pub(crate) struct State {
    pub(crate) stage: Stage,
    /// (layers, 2 n_embd + 3 n_attention)
    pub(crate) numbers: Vec<f32>,
    /// (n_vocab) of the last row that logits or tokens were asked for; empty before.
    pub(crate) logits: Vec<f32>,
}

impl State {
    pub(crate) fn new(stage: &Stage) -> Result<Self> {
        stage.tensors()?;
        let o = &stage.0.options;
        take(o.device, state_bytes(o))?;
        stage.0.taken.fetch_add(state_bytes(o), Ordering::Relaxed);
        let (d, a) = (o.n_embd as usize, o.n_attention as usize);
        let mut numbers = vec![0.0; state_len(o)];
        for layer in numbers.chunks_exact_mut(2 * d + 3 * a) {
            // exponent_max; 0 would let the first token underflow.
            layer[2 * d + 2 * a..].fill(-1e30);
        }
        Ok(State {
            stage: stage.clone(),
            numbers,
            logits: Vec::new(),
        })
    }

    pub(crate) fn n_vocab(&self) -> usize {
        self.stage.0.options.n_vocab as usize
    }

    pub(crate) fn copy_from(&mut self, other: &State) -> Result {
        if !Arc::ptr_eq(&self.stage.0, &other.stage.0) {
            return wrong("states of two stages");
        }
        self.numbers.copy_from_slice(&other.numbers);
        self.logits.clone_from(&other.logits);
        Ok(())
    }
}

impl Drop for State {
    fn drop(&mut self) {
        let o = &self.stage.0.options;
        self.stage
            .0
            .taken
            .fetch_sub(state_bytes(o), Ordering::Relaxed);
        give_back(o.device, state_bytes(o));
    }
}
