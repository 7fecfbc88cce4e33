//! Calls through a plugin's table, behind types that cannot be used wrongly.
//!
//! A [`Stage`] or [`State`] that exists was made by its plugin and is freed when it is dropped, states
//! before their stage. Lengths are compared with sizes before a pointer is passed on, so that a plugin that
//! keeps to the header never reads or writes beyond a slice.
//!
//! This module holds `unsafe` code: every call into a plugin is.

use std::ffi::{c_char, CStr};
use std::fmt;
use std::ptr::{null, null_mut};
use std::sync::{Arc, Mutex, PoisonError};

use rwkv_edge_plugin as abi;

use super::library::Plugin;
use crate::error::{Error, ErrorKind, Result};
use crate::networks::batch;
use crate::quant::parts::Rows;
use crate::quant::Quant;

/// Longer error texts of plugins are cut.
const TEXT_BYTES: usize = 1024;

/// A device of a plugin, as it is now.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct DeviceInfo {
    /// How options call it: `cuda:0`.
    pub device: String,
    /// What it is, such as `NVIDIA H200`.
    pub name: String,
    /// What else its plugin says of it, such as the versions of hardware and driver.
    pub detail: String,
    /// Memory of the device.
    pub total_bytes: u64,
    /// Of it now.
    pub free_bytes: u64,
    /// What matrices may be stored as.
    pub quants: Vec<Quant>,
}

/// What a device can do at most, measured.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub struct DeviceLimits {
    /// Bytes a second read from its memory.
    pub read_bytes_per_s: f64,
    /// Multiply-adds a second of the arithmetic that long prompts use.
    pub macs_per_s: f64,
    /// Seconds of one step of decode that waits for the one before; 0 where the plugin cannot say.
    pub step_seconds: f64,
}

/// Which stage is meant, in the numbers of the table.
#[derive(Clone, Copy, Debug)]
pub(crate) struct StageOptions(pub(crate) abi::StageOptions);

/// Bytes on a device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Memory {
    pub(crate) weights: u64,
    pub(crate) workspace: u64,
    /// One state.
    pub(crate) state: u64,
    /// Taken until now; 0 in an estimate.
    pub(crate) allocated: u64,
}

impl Memory {
    /// With one state.
    pub(crate) fn total(&self) -> u64 {
        let sum = self.weights.saturating_add(self.workspace);
        sum.saturating_add(self.state)
    }

    fn of(memory: abi::Memory) -> Self {
        Memory {
            weights: memory.weight_bytes,
            workspace: memory.workspace_bytes,
            state: memory.state_bytes,
            allocated: memory.allocated_bytes,
        }
    }
}

fn struct_size<T>() -> u32 {
    size_of::<T>() as u32
}

pub(crate) fn quant_code(quant: Quant) -> u32 {
    match quant {
        Quant::F32 => abi::F32,
        Quant::F16 => abi::F16,
        Quant::Int8 => abi::INT8,
    }
}

impl Plugin {
    /// Turns a status into a result, with the plugin's text. Must follow the call on the same thread.
    fn check(&self, status: abi::Status, place: impl fmt::Display) -> Result<()> {
        let kind = match status {
            abi::OK => return Ok(()),
            abi::ERROR_UNSUPPORTED => ErrorKind::Unsupported,
            abi::ERROR_MEMORY => ErrorKind::Memory,
            _ => ErrorKind::Backend,
        };
        let mut bytes = [0_u8; TEXT_BYTES];
        // SAFETY: the buffer has that many bytes.
        let length = unsafe { (self.table().last_error)(bytes.as_mut_ptr().cast(), bytes.len()) };
        let end = bytes.iter().position(|&b| b == 0).unwrap_or(bytes.len());
        let text = String::from_utf8_lossy(&bytes[..end.min(length)]).into_owned();
        let text = match (text.is_empty(), status) {
            (false, abi::ERROR_PANIC) => format!("a bug of the plugin: {text}"),
            (false, _) => text,
            (true, _) => format!("failed with status {status} and without a text"),
        };
        Err(Error::new(kind, text).at(place))
    }

    fn place(&self, device: u32) -> String {
        format!("{}:{device}", self.name())
    }

    /// Devices that there are now.
    pub(crate) fn device_count(&self) -> Result<u32> {
        let mut count = 0;
        // SAFETY: the pointer is to a number.
        let status = unsafe { (self.table().device_count)(&mut count) };
        self.check(status, self.name())?;
        Ok(count)
    }

    pub(crate) fn device_info(&self, device: u32) -> Result<DeviceInfo> {
        let mut info = abi::Device {
            struct_size: struct_size::<abi::Device>(),
            quants: 0,
            total_bytes: 0,
            free_bytes: 0,
            name: [0; 96],
            detail: [0; 96],
        };
        // SAFETY: the pointer is to a struct of the size that it says.
        let status = unsafe { (self.table().device_info)(device, &mut info) };
        self.check(status, self.place(device))?;
        let quants = [Quant::F32, Quant::F16, Quant::Int8];
        let has = |quant: &Quant| info.quants >> quant_code(*quant) & 1 == 1;
        Ok(DeviceInfo {
            device: self.place(device),
            name: fixed_text(&info.name),
            detail: fixed_text(&info.detail),
            total_bytes: info.total_bytes,
            free_bytes: info.free_bytes,
            quants: quants.into_iter().filter(has).collect(),
        })
    }

    /// Measures; takes about a second.
    pub(crate) fn device_limits(&self, device: u32) -> Result<DeviceLimits> {
        let mut limits = abi::Limits {
            struct_size: struct_size::<abi::Limits>(),
            ..abi::Limits::default()
        };
        // SAFETY: the pointer is to a struct of the size that it says.
        let status = unsafe { (self.table().device_limits)(device, &mut limits) };
        self.check(status, self.place(device))?;
        Ok(DeviceLimits {
            read_bytes_per_s: limits.read_bytes_per_s,
            macs_per_s: limits.macs_per_s,
            step_seconds: limits.step_seconds,
        })
    }

    /// What a stage would take.
    pub(crate) fn stage_estimate(&self, options: &StageOptions) -> Result<Memory> {
        let mut memory = empty_memory();
        // SAFETY: both structs have the sizes that they say.
        let status = unsafe { (self.table().stage_estimate)(&options.0, &mut memory) };
        self.check(status, self.place(options.0.device))?;
        Ok(Memory::of(memory))
    }
}

fn empty_memory() -> abi::Memory {
    abi::Memory {
        struct_size: struct_size::<abi::Memory>(),
        ..abi::Memory::default()
    }
}

fn fixed_text(text: &[c_char]) -> String {
    // A `char` of C has a sign on some CPUs and none on others.
    let bytes = text
        .iter()
        .map(|c| c.to_ne_bytes()[0])
        .take_while(|&b| b != 0);
    String::from_utf8_lossy(&bytes.collect::<Vec<u8>>()).into_owned()
}

/// A range of a model's layers on a device. Shared by its model and its states.
pub(crate) struct Stage {
    plugin: &'static Plugin,
    raw: *mut abi::Stage,
    options: abi::StageOptions,
}

// SAFETY: the header lets calls on one stage come from several threads at once.
unsafe impl Send for Stage {}
// SAFETY: as above.
unsafe impl Sync for Stage {}

impl Drop for Stage {
    fn drop(&mut self) {
        // SAFETY: made by stage_new, not freed before; every state held an `Arc` of this.
        unsafe { (self.plugin.table().stage_free)(self.raw) };
    }
}

impl fmt::Debug for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Stage").field(&self.options).finish()
    }
}

impl Stage {
    pub(crate) fn plugin(&self) -> &'static Plugin {
        self.plugin
    }

    pub(crate) fn device(&self) -> u32 {
        self.options.device
    }

    /// Such as `cuda:0`.
    pub(crate) fn place(&self) -> String {
        self.plugin.place(self.options.device)
    }

    /// The layers of the model that it has.
    pub(crate) fn layers(&self) -> std::ops::Range<usize> {
        let first = self.options.first_layer as usize;
        first..first + self.options.layer_count as usize
    }

    /// Numbers of one state.
    fn state_len(&self) -> usize {
        let (d, a) = (
            self.options.n_embd as usize,
            self.options.n_attention as usize,
        );
        self.layers().len() * (2 * d + 3 * a)
    }

    pub(crate) fn memory(&self) -> Result<Memory> {
        let mut memory = empty_memory();
        // SAFETY: the stage is valid, and the struct has the size that it says.
        let status = unsafe { (self.plugin.table().stage_memory)(self.raw, &mut memory) };
        self.plugin.check(status, self.place())?;
        Ok(Memory::of(memory))
    }
}

/// A stage that does not have all its tensors yet.
pub(crate) struct StageBuilder(Stage);

impl StageBuilder {
    pub(crate) fn new(plugin: &'static Plugin, options: &StageOptions) -> Result<Self> {
        let mut raw = null_mut();
        // SAFETY: the options have the size that they say, and the other pointer is to a pointer.
        let status = unsafe { (plugin.table().stage_new)(&options.0, &mut raw) };
        plugin.check(status, plugin.place(options.0.device))?;
        if raw.is_null() {
            let text = "a bug of the plugin: it gave no stage and no error";
            return Err(Error::backend(text).at(plugin.place(options.0.device)));
        }
        Ok(StageBuilder(Stage {
            plugin,
            raw,
            options: options.0,
        }))
    }

    pub(crate) fn vector(&mut self, tensor: u32, layer: u32, values: &[f32]) -> Result<()> {
        self.tensor(abi::Tensor {
            struct_size: struct_size::<abi::Tensor>(),
            tensor,
            layer,
            dtype: abi::F32,
            n_rows: 1,
            n_cols: values.len() as u64,
            first_row: 0,
            row_count: 1,
            values: values.as_ptr().cast(),
            row_scales: null(),
            column_exponents: null(),
        })
    }

    /// Some rows of a matrix; they come from the first to the last.
    pub(crate) fn rows(&mut self, tensor: u32, layer: u32, rows: &Rows<'_>) -> Result<()> {
        let (size, range) = (rows.size(), rows.range());
        // As many bytes as sizes and quantisation say.
        let part = |name: &CStr| {
            let part = rows
                .parts()
                .iter()
                .find(|(kind, _)| kind.device_name == name);
            part.map_or(null(), |(_, bytes)| bytes.as_ptr())
        };
        self.tensor(abi::Tensor {
            struct_size: struct_size::<abi::Tensor>(),
            tensor,
            layer,
            dtype: quant_code(size.quant),
            n_rows: size.n_rows as u64,
            n_cols: size.n_cols as u64,
            first_row: range.start as u64,
            row_count: range.len() as u64,
            values: part(c"values").cast(),
            row_scales: part(c"row_scales").cast(),
            column_exponents: part(c"column_exponents").cast(),
        })
    }

    /// Its pointers are to as many elements as its sizes say: only the two functions above call this.
    fn tensor(&mut self, tensor: abi::Tensor) -> Result<()> {
        let Stage { plugin, raw, .. } = self.0;
        // SAFETY: the stage is valid, and the tensor is as the callers made it.
        let status = unsafe { (plugin.table().stage_tensor)(raw, &tensor) };
        plugin.check(status, self.0.place())
    }

    pub(crate) fn finish(self) -> Result<Stage> {
        let Stage { plugin, raw, .. } = self.0;
        // SAFETY: the stage is valid.
        let status = unsafe { (plugin.table().stage_finish)(raw) };
        plugin.check(status, self.0.place())?;
        Ok(self.0)
    }
}

/// What one sequence remembers of one stage, on the device.
pub(crate) struct State {
    stage: Arc<Stage>,
    /// Locked for every call on it but `forward`, which has the state to itself.
    raw: Mutex<RawState>,
}

struct RawState(*mut abi::State);

// SAFETY: the header lets functions be called from any thread.
unsafe impl Send for RawState {}

impl Drop for State {
    fn drop(&mut self) {
        let raw = self.raw.get_mut().unwrap_or_else(PoisonError::into_inner);
        // SAFETY: made by state_new and not freed before; the stage is still held.
        unsafe { (self.stage.plugin.table().state_free)(raw.0) };
    }
}

impl State {
    /// The empty state.
    pub(crate) fn new(stage: &Arc<Stage>) -> Result<Self> {
        let mut raw = null_mut();
        // SAFETY: the stage is valid, and the other pointer is to a pointer.
        let status = unsafe { (stage.plugin.table().state_new)(stage.raw, &mut raw) };
        stage.plugin.check(status, stage.place())?;
        if raw.is_null() {
            let text = "a bug of the plugin: it gave no state and no error";
            return Err(Error::backend(text).at(stage.place()));
        }
        Ok(State {
            stage: Arc::clone(stage),
            raw: Mutex::new(RawState(raw)),
        })
    }

    pub(crate) fn stage(&self) -> &Arc<Stage> {
        &self.stage
    }

    /// Calls `call` with the state, which nobody else uses meanwhile.
    fn with(&self, call: impl FnOnce(&abi::Table, *mut abi::State) -> abi::Status) -> Result<()> {
        let raw = self.raw.lock().unwrap_or_else(PoisonError::into_inner);
        let plugin = self.stage.plugin;
        plugin.check(call(plugin.table(), raw.0), self.stage.place())
    }

    /// # Panics
    /// When `numbers` has another length than the stage's layers need.
    pub(crate) fn write(&mut self, numbers: &[f32]) -> Result<()> {
        assert!(numbers.len() == self.stage.state_len());
        // SAFETY: the state is valid, and the slice has as many numbers as are said.
        self.with(|table, raw| unsafe { (table.state_write)(raw, numbers.as_ptr(), numbers.len()) })
    }

    /// # Panics
    /// When `numbers` has another length than the stage's layers need.
    pub(crate) fn read(&self, numbers: &mut [f32]) -> Result<()> {
        assert!(numbers.len() == self.stage.state_len());
        self.with(|table, raw| {
            // SAFETY: the state is valid, and the slice has room for as many numbers as are said.
            unsafe { (table.state_read)(raw, numbers.as_mut_ptr(), numbers.len()) }
        })
    }

    /// Becomes a copy of another state of the same stage.
    ///
    /// # Panics
    /// When it is of another stage.
    pub(crate) fn copy_from(&mut self, other: &State) -> Result<()> {
        assert!(Arc::ptr_eq(&self.stage, &other.stage));
        let to = self.raw.get_mut().unwrap_or_else(PoisonError::into_inner).0;
        // SAFETY: both states are valid and of one stage; this one is borrowed by us alone.
        other.with(|table, from| unsafe { (table.state_copy)(to, from) })
    }

    /// The logits behind the last row that logits or tokens were asked for.
    ///
    /// # Panics
    /// When `logits` has another length than the vocabulary.
    pub(crate) fn logits(&self, logits: &mut [f32]) -> Result<()> {
        assert!(logits.len() == self.stage.options.n_vocab as usize);
        self.with(|table, raw| {
            // SAFETY: the state is valid, and the slice has room for as many numbers as are said.
            unsafe { (table.state_logits)(raw, logits.as_mut_ptr(), logits.len()) }
        })
    }
}

/// What goes into the first stage of a chain.
#[derive(Clone, Copy)]
pub(crate) enum Input<'a> {
    /// One a row, where the stage has the embedding.
    Tokens(&'a [u32]),
    /// (rows, n_embd)
    Residual(&'a [f32]),
}

/// What the last stage of a chain writes, and where to.
pub(crate) enum Output<'a> {
    Nothing,
    /// (rows, n_embd)
    Residual(&'a mut [f32]),
    /// (rows asked for, n_embd)
    Hidden(&'a mut [f32]),
    /// (rows asked for, n_vocab)
    Logits(&'a mut [f32]),
    /// (rows asked for)
    Tokens(&'a mut [u32]),
}

/// One sequence's part of a batch.
pub(crate) struct SpanInput<'a> {
    /// One a stage of the chain.
    pub(crate) states: &'a mut [State],
    pub(crate) n_rows: usize,
    pub(crate) rows: batch::Output,
}

/// Memory for the pointers of one call, kept so that no call allocates.
#[derive(Default)]
pub(crate) struct BatchScratch {
    spans: Vec<abi::Span>,
    states: Vec<*mut abi::State>,
    stages: Vec<*mut abi::Stage>,
}

// SAFETY: between calls the pointers are never read: `forward` begins by clearing them.
unsafe impl Send for BatchScratch {}
// SAFETY: as above.
unsafe impl Sync for BatchScratch {}

/// Feeds a batch to consecutive stages of one plugin.
///
/// # Errors
/// What the plugin says; the states are undefined then.
///
/// # Panics
/// When lengths do not agree with the rows, a state is of another stage than the chain's, or stages are
/// not of one plugin: bugs of the caller.
pub(crate) fn forward<'a>(
    stages: &[Arc<Stage>],
    scratch: &mut BatchScratch,
    spans: impl Iterator<Item = SpanInput<'a>>,
    input: Input<'_>,
    output: Output<'_>,
) -> Result<()> {
    let (first, last) = (&stages[0], &stages[stages.len() - 1]);
    let plugin = first.plugin;
    scratch.stages.clear();
    scratch.states.clear();
    scratch.spans.clear();
    for stage in stages {
        assert!(std::ptr::eq(stage.plugin, plugin), "stages of one plugin");
        scratch.stages.push(stage.raw);
    }
    let (mut n_rows, mut n_asked) = (0, 0);
    for span in spans {
        assert!(span.n_rows > 0 && span.states.len() == stages.len());
        for (state, stage) in span.states.iter_mut().zip(stages) {
            assert!(Arc::ptr_eq(&state.stage, stage), "a state of this stage");
            let raw = state.raw.get_mut().unwrap_or_else(PoisonError::into_inner);
            scratch.states.push(raw.0);
        }
        let (rows, asked) = match span.rows {
            batch::Output::None => (abi::ROWS_NONE, 0),
            batch::Output::Last => (abi::ROWS_LAST, 1),
            batch::Output::All => (abi::ROWS_ALL, span.n_rows),
        };
        n_rows += span.n_rows;
        n_asked += asked;
        scratch.spans.push(abi::Span {
            states: null(),
            n_rows: span.n_rows as u32,
            rows,
        });
    }
    // Only now does the memory of `states` not move any more.
    let of_spans = scratch.states.chunks_exact(stages.len());
    for (span, states) in scratch.spans.iter_mut().zip(of_spans) {
        span.states = states.as_ptr();
    }
    let mut batch = abi::Batch {
        struct_size: struct_size::<abi::Batch>(),
        n_spans: scratch.spans.len() as u32,
        spans: scratch.spans.as_ptr(),
        n_rows: n_rows as u32,
        write: abi::WRITE_NOTHING,
        tokens: null(),
        residual: null(),
        numbers: null_mut(),
        tokens_out: null_mut(),
    };
    let (n_embd, n_vocab) = (
        first.options.n_embd as usize,
        first.options.n_vocab as usize,
    );
    assert!(n_rows > 0 && n_rows <= first.options.rows_max as usize);
    match input {
        Input::Tokens(tokens) => {
            assert!(tokens.len() == n_rows && first.options.has_embedding == 1);
            batch.tokens = tokens.as_ptr();
        }
        Input::Residual(residual) => {
            assert!(residual.len() == n_rows * n_embd && first.options.has_embedding == 0);
            batch.residual = residual.as_ptr();
        }
    }
    let (write, numbers, expected) = match output {
        Output::Nothing => (abi::WRITE_NOTHING, None, 0),
        Output::Residual(out) => (abi::WRITE_RESIDUAL, Some(out), n_rows * n_embd),
        Output::Hidden(out) => (abi::WRITE_HIDDEN, Some(out), n_asked * n_embd),
        Output::Logits(out) => (abi::WRITE_LOGITS, Some(out), n_asked * n_vocab),
        Output::Tokens(out) => {
            assert!(out.len() == n_asked);
            batch.tokens_out = out.as_mut_ptr();
            (abi::WRITE_TOKENS, None, 0)
        }
    };
    batch.write = write;
    if let Some(out) = numbers {
        assert!(out.len() == expected);
        batch.numbers = out.as_mut_ptr();
    }
    let needs_head = [abi::WRITE_HIDDEN, abi::WRITE_LOGITS, abi::WRITE_TOKENS].contains(&write);
    assert!(!needs_head || last.options.has_head == 1);
    // SAFETY: stages and states are valid, of one plugin and one another; nobody else uses the states,
    // which the spans borrow; every buffer has the length that rows and sizes give, as was asserted.
    let status = unsafe {
        (plugin.table().forward)(scratch.stages.as_ptr(), scratch.stages.len() as u32, &batch)
    };
    plugin.check(status, last.place())
}
