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

use bytemuck::Pod;
use rwkv_edge_plugin as abi;

use super::library::{texts, Plugin};
use super::options::{c_text, StageOptions};
use crate::devices::not_finite::TEXT;
use crate::error::{Error, ErrorKind, Result};
use crate::math::all_finite;
use crate::quant::parts::MatrixRows;
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
    /// Seconds of one step of decode that waits for the one before; `None` where the plugin cannot say.
    pub step_seconds: Option<f64>,
}

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

pub(super) fn struct_size<T>() -> u32 {
    size_of::<T>() as u32
}

impl Plugin {
    /// Turns a status into a result, with the plugin's text. Must follow the call on the same thread.
    pub(super) fn check(&self, status: abi::Status, place: impl fmt::Display) -> Result<()> {
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

    /// Refuses what none of its devices can run; `place` is the device that is meant.
    pub(crate) fn check_architecture(
        &self,
        architecture: &str,
        place: impl fmt::Display,
    ) -> Result<()> {
        let has = self.architectures();
        if has.iter().any(|known| known == architecture) {
            return Ok(());
        }
        let has = match has.is_empty() {
            true => "none".to_owned(),
            false => has.join(" and "),
        };
        let text = format!("cannot run {architecture}, has {has}");
        Err(Error::unsupported(text).at(place))
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
            reserved: 0,
            total_bytes: 0,
            free_bytes: 0,
            quants: null(),
            name: [0; 96],
            detail: [0; 96],
        };
        // SAFETY: the pointer is to a struct of the size that it says.
        let status = unsafe { (self.table().device_info)(device, &mut info) };
        self.check(status, self.place(device))?;
        // SAFETY: NULL, or what the plugin gave as a list.
        let quants = unsafe { texts(info.quants) };
        // Names that only later hosts know are none of ours.
        // Formats of few bits are mixed within a model, which plugins are not told of.
        let quants = quants.iter().filter_map(|name| Quant::from_name(name));
        let quants = quants.filter(|quant| !quant.is_mixed());
        Ok(DeviceInfo {
            device: self.place(device),
            name: fixed_text(&info.name),
            detail: fixed_text(&info.detail),
            total_bytes: info.total_bytes,
            free_bytes: info.free_bytes,
            quants: quants.collect(),
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
            step_seconds: Some(limits.step_seconds).filter(|seconds| *seconds > 0.0),
        })
    }

    /// What a stage would take, if plugin and host agree about what a state of it is.
    pub(crate) fn stage_estimate(&self, options: &StageOptions) -> Result<Memory> {
        let place = || self.place(options.device);
        let (mut memory, mut count) = (empty_memory(), 0);
        options.in_table_form(|raw| {
            // SAFETY: both structs have the sizes that they say, and what they point to is there.
            let status = unsafe { (self.table().stage_estimate)(raw, &mut memory) };
            self.check(status, place())?;
            // SAFETY: as above, and the other pointer is to a number.
            let status = unsafe { (self.table().state_count)(raw, &mut count) };
            self.check(status, place())
        })??;
        if count != options.state_len as u64 {
            let text = format!(
                "states of {} layers of {} are {count} numbers there, expected {}",
                options.layers.len(),
                options.architecture,
                options.state_len
            );
            return Err(Error::backend(text).at(place()));
        }
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
    pub(super) plugin: &'static Plugin,
    pub(super) raw: *mut abi::Stage,
    pub(super) options: StageOptions,
    /// Widths of logits and of hidden rows.
    pub(super) n_vocab: usize,
    pub(super) n_embd: usize,
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
        self.options.layers.clone()
    }

    /// Refuses what the device gave where it is NaN or infinite.
    pub(super) fn check_finite(&self, numbers: &[f32]) -> Result<()> {
        if all_finite(numbers) {
            return Ok(());
        }
        let text = format!("{TEXT}: its weights are damaged, or the device is");
        Err(Error::format(text).at(self.place()))
    }

    pub(crate) fn memory(&self) -> Result<Memory> {
        let mut memory = empty_memory();
        // SAFETY: the stage is valid, and the struct has the size that it says.
        let status = unsafe { (self.plugin.table().stage_memory)(self.raw, &mut memory) };
        self.plugin.check(status, self.place())?;
        Ok(Memory::of(memory))
    }
}

/// Of a tensor: its name within a layer, and the layer of the model, if one has it.
pub(crate) type TensorName<'a> = (&'a str, Option<u32>);

/// Valid as long as the numbers.
fn part<T: Pod>(name: &'static CStr, numbers: &[T]) -> abi::Part {
    abi::Part {
        name: name.as_ptr(),
        data: numbers.as_ptr().cast(),
        bytes: size_of_val(numbers) as u64,
    }
}

/// A stage that does not have all its tensors yet.
pub(crate) struct StageBuilder(Stage);

impl StageBuilder {
    pub(crate) fn new(plugin: &'static Plugin, options: &StageOptions) -> Result<Self> {
        let (n_vocab, n_embd) = (options.size("n_vocab")?, options.size("n_embd")?);
        let (place, mut raw) = (plugin.place(options.device), null_mut());
        // SAFETY: the options have the size that they say, and the other pointer is to a pointer.
        let new = |options: &_| unsafe { (plugin.table().stage_new)(options, &mut raw) };
        let status = options.in_table_form(new)?;
        plugin.check(status, &place)?;
        if raw.is_null() {
            let text = "a bug of the plugin: it gave no stage and no error";
            return Err(Error::backend(text).at(place));
        }
        Ok(StageBuilder(Stage {
            plugin,
            raw,
            options: options.clone(),
            n_vocab,
            n_embd,
        }))
    }

    pub(crate) fn vector(&mut self, name: TensorName<'_>, values: &[f32]) -> Result<()> {
        let rows = [0, 1, 1, values.len()];
        self.tensor(name, Quant::F32, rows, &[part(c"values", values)])
    }

    /// Some rows of a matrix; they come from the first to the last.
    pub(crate) fn rows(&mut self, name: TensorName<'_>, rows: &MatrixRows<'_>) -> Result<()> {
        let (size, range) = (rows.size(), rows.range());
        let of_rows = [range.start, range.len(), size.n_rows, size.n_cols];
        // As many bytes as sizes and quantisation say.
        let parts = rows.parts().iter();
        let parts: Vec<_> = parts
            .map(|(kind, bytes)| part(kind.device_name, bytes))
            .collect();
        self.tensor(name, size.quant, of_rows, &parts)
    }

    /// The parts' pointers are to as many bytes as they say: only [`part`] makes them.
    fn tensor(
        &mut self,
        (name, layer): TensorName<'_>,
        quant: Quant,
        [first_row, row_count, n_rows, n_cols]: [usize; 4],
        parts: &[abi::Part],
    ) -> Result<()> {
        let Stage { plugin, raw, .. } = self.0;
        let (name, quant) = (c_text(name)?, c_text(quant.name())?);
        let tensor = abi::Tensor {
            struct_size: struct_size::<abi::Tensor>(),
            layer: layer.unwrap_or(abi::NO_LAYER),
            name: name.as_ptr(),
            quant: quant.as_ptr(),
            n_rows: n_rows as u64,
            n_cols: n_cols as u64,
            first_row: first_row as u64,
            row_count: row_count as u64,
            parts: parts.as_ptr(),
            n_parts: parts.len() as u32,
            reserved: 0,
        };
        // SAFETY: the stage is valid, and the texts and parts live as long as the call.
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
    pub(super) stage: Arc<Stage>,
    /// Locked for every call on it but `forward`, which has the state to itself.
    pub(super) raw: Mutex<RawState>,
}

pub(super) struct RawState(pub(super) *mut abi::State);

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
        assert!(numbers.len() == self.stage.options.state_len);
        // SAFETY: the state is valid, and the slice has as many numbers as are said.
        self.with(|table, raw| unsafe { (table.state_write)(raw, numbers.as_ptr(), numbers.len()) })
    }

    /// # Panics
    /// When `numbers` has another length than the stage's layers need.
    pub(crate) fn read(&self, numbers: &mut [f32]) -> Result<()> {
        assert!(numbers.len() == self.stage.options.state_len);
        self.with(|table, raw| {
            // SAFETY: the state is valid, and the slice has room for as many numbers as are said.
            unsafe { (table.state_read)(raw, numbers.as_mut_ptr(), numbers.len()) }
        })?;
        self.stage.check_finite(numbers)
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
        assert!(logits.len() == self.stage.n_vocab);
        self.with(|table, raw| {
            // SAFETY: the state is valid, and the slice has room for as many numbers as are said.
            unsafe { (table.state_logits)(raw, logits.as_mut_ptr(), logits.len()) }
        })?;
        self.stage.check_finite(logits)
    }
}
