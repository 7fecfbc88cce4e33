//! Stages, which hold weights, and states, which hold what a sequence remembers of them.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use rwkv_edge_plugin as abi;

use crate::matrix::{copied, Matrix};
use crate::{give_back, take, wrong, Result};

/// A range of layers. States hold it too, so that nothing dangles whatever the host does.
#[derive(Clone)]
pub(crate) struct Stage(pub(crate) Arc<Inner>);

pub(crate) struct Inner {
    pub(crate) options: abi::StageOptions,
    /// Tensors that have come so far; `None` once it is finished.
    loading: Mutex<Option<Tensors>>,
    finished: OnceLock<Tensors>,
    /// Bytes taken of the device, states included.
    taken: AtomicU64,
}

/// By their numbers and layers.
#[derive(Default)]
pub(crate) struct Tensors {
    vectors: HashMap<(u32, u32), Vec<f32>>,
    matrices: HashMap<(u32, u32), Matrix>,
}

impl Tensors {
    /// How many rows of a tensor have come.
    fn rows_so_far(&self, key: (u32, u32)) -> u64 {
        match self.matrices.get(&key) {
            Some(matrix) => matrix.rows_so_far() as u64,
            None => u64::from(self.vectors.contains_key(&key)),
        }
    }

    /// Every tensor that a stage must have was there when it was finished.
    pub(crate) fn vector(&self, tensor: u32, layer: u32) -> &[f32] {
        &self.vectors[&(tensor, layer)]
    }

    pub(crate) fn matrix(&self, tensor: u32, layer: u32) -> &Matrix {
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
fn shape(o: &abi::StageOptions, tensor: u32, layer: u32) -> Option<Shape> {
    let [v, d, a, h] = [o.n_vocab, o.n_embd, o.n_attention, o.n_hidden].map(u64::from);
    let has_layer = layer >= o.first_layer && layer - o.first_layer < o.layer_count;
    let is_there = match tensor {
        abi::EMBEDDING..=abi::NORM_IN_BIAS => o.has_embedding == 1 && layer == 0,
        abi::NORM_OUT_WEIGHT..=abi::HEAD => o.has_head == 1 && layer == 0,
        _ => has_layer,
    };
    if !is_there {
        return None;
    }
    let (is_matrix, n_rows, n_cols) = match tensor {
        abi::EMBEDDING | abi::HEAD => (true, v, d),
        abi::ATT_KEY | abi::ATT_VALUE | abi::ATT_RECEPTANCE => (true, a, d),
        abi::ATT_OUTPUT => (true, d, a),
        abi::FFN_KEY | abi::FFN_VALUE => (true, h, d),
        abi::FFN_RECEPTANCE => (true, d, d),
        abi::ATT_DECAY_LOG | abi::ATT_BONUS => (false, 1, a),
        _ if tensor < abi::TENSORS => (false, 1, d),
        _ => return None,
    };
    Some(Shape {
        is_matrix,
        n_rows,
        n_cols,
    })
}

/// All tensors of a stage.
fn all(o: &abi::StageOptions) -> impl Iterator<Item = (u32, u32, Shape)> + '_ {
    let layers = o.first_layer..o.first_layer + o.layer_count;
    let keys = (0..abi::TENSORS).flat_map(move |tensor| {
        let layers = match tensor {
            abi::ATT_NORM_WEIGHT..=abi::FFN_VALUE => layers.clone(),
            _ => 0..1,
        };
        layers.map(move |layer| (tensor, layer))
    });
    keys.filter_map(|(tensor, layer)| Some((tensor, layer, shape(o, tensor, layer)?)))
}

fn size_bytes(shape: &Shape, quant: u32) -> u64 {
    let n = shape.n_rows * shape.n_cols;
    match (shape.is_matrix, quant) {
        (false, _) | (true, abi::F32) => 4 * n,
        (true, abi::F16) => 2 * n,
        (true, _) => n + 2 * shape.n_rows + 4 * shape.n_cols,
    }
}

/// Numbers of a state of the stage.
fn state_len(o: &abi::StageOptions) -> usize {
    o.layer_count as usize * (2 * o.n_embd as usize + 3 * o.n_attention as usize)
}

fn state_bytes(o: &abi::StageOptions) -> u64 {
    let logits = if o.has_head == 1 {
        o.n_vocab as usize
    } else {
        0
    };
    4 * (state_len(o) + logits) as u64
}

pub(crate) fn estimate(o: &abi::StageOptions, memory: &mut abi::Memory) {
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
    pub(crate) fn new(options: abi::StageOptions) -> Result<Self> {
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

    /// # Safety
    /// The tensor's pointers are NULL or to as many elements as its sizes say.
    pub(crate) unsafe fn add(&self, tensor: &abi::Tensor) -> Result {
        let o = &self.0.options;
        let key = (tensor.tensor, tensor.layer);
        let Some(shape) = shape(o, tensor.tensor, tensor.layer) else {
            return wrong(format!(
                "tensor {} of layer {} is not of this stage",
                key.0, key.1
            ));
        };
        let dtype = if shape.is_matrix { o.quant } else { abi::F32 };
        let found = (tensor.n_rows, tensor.n_cols, tensor.dtype);
        let expected = (shape.n_rows, shape.n_cols, dtype);
        if found != expected {
            return wrong(format!(
                "tensor {}: rows, columns, dtype {found:?}, expected {expected:?}",
                key.0
            ));
        }
        let rows_left = tensor.n_rows.checked_sub(tensor.first_row);
        if tensor.row_count == 0 || rows_left.is_none_or(|left| tensor.row_count > left) {
            return wrong(format!(
                "tensor {}: {} rows from {} on, of {}",
                key.0, tensor.row_count, tensor.first_row, tensor.n_rows
            ));
        }
        let is_int8 = shape.is_matrix && dtype == abi::INT8;
        if tensor.values.is_null() || is_int8 && tensor.row_scales.is_null() {
            return wrong(format!("tensor {}: values or row_scales is NULL", key.0));
        }
        let mut loading = self
            .0
            .loading
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let Some(tensors) = &mut *loading else {
            return wrong("the stage is finished");
        };
        let expected = tensors.rows_so_far(key);
        if tensor.first_row != expected {
            return wrong(format!(
                "tensor {} of layer {}: rows from {} on, expected those from {expected} on",
                key.0, key.1, tensor.first_row
            ));
        }
        if !shape.is_matrix {
            // SAFETY: not NULL, and the sizes are those that were expected; the rest is the caller's.
            let values = unsafe { copied::<f32>(tensor.values.cast(), shape.n_cols as usize) };
            tensors.vectors.insert(key, values.collect());
            return Ok(());
        }
        let matrices = tensors.matrices.entry(key);
        let matrix = matrices.or_insert_with(|| Matrix::new(tensor));
        // SAFETY: as above.
        unsafe { matrix.append(tensor) }
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
        for (tensor, layer, shape) in all(&self.0.options) {
            let (found, expected) = (tensors.rows_so_far((tensor, layer)), shape.n_rows);
            if found != expected {
                return wrong(format!(
                    "tensor {tensor} of layer {layer}: {found} rows of {expected} have come"
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
