//! A stage: its weights, the memory of its forward passes, and the states of its sequences.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use rwkv_edge_plugin as abi;

use crate::device::{self, Device};
use crate::driver::{Address, Context, Event, Graph, Memory, Pinned, Stream};
use crate::error::{Failure, Result};
use crate::kernels::Kernels;
use crate::layout::{self, BatchLayout, Pieces, Place, SlotPlaces, Weights, Workspace};
use crate::options::{Quant, StageOptions};
use crate::spare::Spare;
use crate::tensor::{Source, SourceWeights, TensorId};
use crate::upload::{bound_hidden_units, Uploader};

/// Passes that may be in flight on a stage at once: as many stages of a pipeline can be busy at once.
pub(crate) const SLOTS: usize = 4;
/// Bytes of logits that go to the host through pinned memory.
pub(crate) const PINNED_LOGITS_BYTES: usize = 1 << 20;

pub(crate) struct Stage {
    pub(crate) options: StageOptions,
    pub(crate) device: Arc<Device>,
    work: Mutex<Work>,
    slots: Mutex<Vec<Slot>>,
    slot_is_free: Condvar,
    allocated: AtomicU64,
}

/// What one pass at a time puts into the stage's stream.
pub(crate) struct Work {
    pub(crate) stream: Stream,
    pub(crate) weights: Weights,
    pub(crate) kernels: Kernels,
    pub(crate) workspace: Workspace,
    pub(crate) graphs: BTreeMap<GraphKey, Graph>,
    /// Tensors that are not there, or not whole: rows of each that have come.
    missing: BTreeMap<TensorId, u64>,
    uploader: Option<Uploader>,
    /// Of vectors and factors, and of weights.
    weights_memory: [Memory; 2],
    workspace_memory: Option<Memory>,
    /// The empty state.
    empty: Option<Memory>,
    /// Of states that were freed.
    spare: Spare<Memory>,
}

/// Which recorded pass: slot, rows, whether every row is an output row.
pub(crate) type GraphKey = (usize, u32, bool);

/// What one pass has to itself.
pub(crate) struct Slot {
    pub(crate) index: usize,
    pub(crate) places: SlotPlaces,
    /// The batch as the host wrote it.
    pub(crate) batch: Pinned,
    /// (rows) tokens that the device found
    pub(crate) tokens: Pinned,
    pub(crate) logits: Option<Pinned>,
    pub(crate) done: Event,
    _memory: Memory,
}

/// A sequence's numbers for one stage, on its device.
pub(crate) struct State {
    pub(crate) stage: Arc<Stage>,
    memory: Option<Memory>,
}

/// Refuses what the device cannot run.
fn check_device(options: &StageOptions) -> Result<()> {
    let context = Context::new(options.device)?;
    device::check_capability(&context)?;
    // A block that turns a row of hidden units into inputs holds it, in int8 with its factors; one that norms a row
    // holds that and two vectors.
    let vectors = match (options.layer_count, options.quant) {
        (0, _) => 0,
        (_, Quant::Int8) => 2,
        (_, Quant::F16) => 1,
    };
    let rows = [
        ("hidden units", options.n_hidden, vectors),
        ("attention channels", options.n_attention, vectors),
        ("channels", options.n_embd, 3),
    ];
    let shared_max = device::shared_max(&context)?;
    for (what, width, vectors) in rows {
        let row_bytes = vectors * 4 * width;
        if row_bytes > shared_max {
            return Err(Failure::unsupported(format!(
                "{}: rows of {width} {what} need {row_bytes} bytes of shared memory, it has {shared_max}",
                context.name()?,
            )));
        }
    }
    Ok(())
}

/// Bytes of weights, of the workspace with its slots, and of a state.
pub(crate) fn estimate(options: &StageOptions) -> Result<abi::Memory> {
    check_device(options)?;
    let (mut small, mut weights) = (Pieces::new(0), Pieces::new(0));
    Weights::place(options, &mut small, &mut weights);
    let (mut workspace, mut slot) = (Pieces::new(0), Pieces::new(0));
    Workspace::place(options, &mut workspace);
    SlotPlaces::place(options, &mut slot);
    Ok(abi::Memory {
        struct_size: size_of::<abi::Memory>() as u32,
        reserved: 0,
        weight_bytes: small.used() + weights.used(),
        workspace_bytes: workspace.used() + SLOTS as u64 * slot.used(),
        state_bytes: layout::state_bytes(options),
        allocated_bytes: 0,
    })
}

/// Numbers of a state, on the host.
pub(crate) fn state_count(options: &StageOptions) -> Result<u64> {
    check_device(options)?;
    Ok(layout::state_floats(options))
}

impl Stage {
    pub(crate) fn new(options: &StageOptions) -> Result<Self> {
        let need = estimate(options)?;
        let device = Device::open(options.device)?;
        let (free, _) = device.context.memory()?;
        let bytes = need.weight_bytes + need.workspace_bytes + need.state_bytes;
        if bytes > free {
            return Err(Failure::memory(format!(
                "{}: the stage needs {bytes} bytes of device memory, {free} are free",
                device.context.name()?
            )));
        }
        let stream = Stream::new(&device.context)?;
        let (mut small, mut large) = (Pieces::new(0), Pieces::new(0));
        Weights::place(options, &mut small, &mut large);
        let small = Memory::zeroed(&stream, small.used())?;
        let large = Memory::zeroed(&stream, large.used())?;
        let weights = Weights::place(
            options,
            &mut Pieces::new(small.address()),
            &mut Pieces::new(large.address()),
        );
        let work = Work {
            missing: weights.places.keys().map(|&id| (id, 0)).collect(),
            weights,
            kernels: Kernels::new(&device, options.quant == Quant::Int8)?,
            workspace: Workspace::default(),
            graphs: BTreeMap::new(),
            uploader: Some(Uploader::new(&device.context, &stream)?),
            stream,
            workspace_memory: None,
            empty: None,
            spare: Spare::new(need.state_bytes),
            weights_memory: [small, large],
        };
        Ok(Stage {
            options: *options,
            allocated: AtomicU64::new(work.weights_memory.iter().map(Memory::size).sum()),
            device,
            work: Mutex::new(work),
            slots: Mutex::new(Vec::new()),
            slot_is_free: Condvar::new(),
        })
    }

    pub(crate) fn work(&self) -> MutexGuard<'_, Work> {
        self.work.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn allocate(&self, stream: &Stream, size: u64) -> Result<Memory> {
        let memory = Memory::zeroed(stream, size)?;
        self.allocated.fetch_add(memory.size(), Ordering::Relaxed);
        Ok(memory)
    }

    /// Keeps a state's memory for the next one, or gives it back to the driver.
    fn give_back(&self, memory: Memory) {
        let mut work = self.work();
        let Some(memory) = work.spare.keep(memory) else {
            return;
        };
        // Calls wait for what they start, but one that failed may have left something that knows the address. Where the
        // device cannot even be waited for, nothing works on it any more.
        let _ = work.stream.wait();
        drop(work);
        self.allocated.fetch_sub(memory.size(), Ordering::Relaxed);
    }

    /// Takes rows of a tensor to the device: of each tensor from the first to the last.
    pub(crate) fn put(&self, id: TensorId, source: &Source<'_>) -> Result<()> {
        let mut work = self.work();
        let Work {
            stream,
            weights,
            kernels,
            missing,
            uploader,
            ..
        } = &mut *work;
        let place = weights
            .places
            .get(&id)
            .ok_or_else(|| Failure::argument(format!("tensor {id}: not of this stage")))?;
        let (Some(uploader), Some(so_far)) = (uploader.as_mut(), missing.get_mut(&id)) else {
            return Err(Failure::argument(format!("tensor {id}: a second time")));
        };
        check_shape(id, place, source)?;
        if source.first_row != *so_far {
            return Err(Failure::argument(format!(
                "tensor {id}: rows from {} on, expected those from {so_far} on",
                source.first_row
            )));
        }
        uploader.put(stream, &kernels.repack, place, source)?;
        *so_far += source.row_count;
        if *so_far == source.n_rows {
            missing.remove(&id);
        }
        Ok(())
    }

    /// Every tensor is there: makes the memory for forward passes.
    pub(crate) fn finish(&self) -> Result<()> {
        let mut work = self.work();
        if let Some((id, so_far)) = work.missing.first_key_value() {
            let n = work.missing.len();
            return Err(Failure::argument(format!(
                "{n} tensors are missing, the first is {id}, of which {so_far} rows have come"
            )));
        }
        if work.uploader.is_none() {
            return Err(Failure::argument("the stage is finished already"));
        }
        let mut pieces = Pieces::new(0);
        Workspace::place(&self.options, &mut pieces);
        let memory = self.allocate(&work.stream, pieces.used())?;
        work.workspace = Workspace::place(&self.options, &mut Pieces::new(memory.address()));
        work.workspace_memory = Some(memory);
        bound_hidden_units(&work.stream, &work.kernels, &work.weights, &work.workspace)?;

        let mut numbers = vec![0.0_f32; layout::state_floats(&self.options) as usize];
        let (n_layer_floats, a) = (
            layout::layer_floats(&self.options),
            self.options.n_attention,
        );
        for layer in numbers.chunks_exact_mut(n_layer_floats as usize) {
            let top = layer.len() - a as usize;
            layer[top..].fill(-1e30);
        }
        let empty = self.allocate(&work.stream, layout::state_bytes(&self.options))?;
        work.stream.upload_slice(empty.address(), &numbers)?;
        let slots = (0..SLOTS)
            .map(|index| self.slot(&work.stream, index))
            .collect::<Result<_>>()?;
        *self.slots.lock().unwrap_or_else(PoisonError::into_inner) = slots;
        // Only now is the stage finished.
        work.uploader = None;
        work.empty = Some(empty);
        Ok(())
    }

    fn slot(&self, stream: &Stream, index: usize) -> Result<Slot> {
        let context = &self.device.context;
        let mut pieces = Pieces::new(0);
        SlotPlaces::place(&self.options, &mut pieces);
        let memory = self.allocate(stream, pieces.used())?;
        let rows_max = self.options.rows_max.max(layout::FEW_ROWS);
        let logits = match self.options.has_head {
            false => None,
            true => Some(Pinned::new(context, PINNED_LOGITS_BYTES)?),
        };
        Ok(Slot {
            index,
            places: SlotPlaces::place(&self.options, &mut Pieces::new(memory.address())),
            batch: Pinned::new(context, BatchLayout::new(self.options.rows_max).size)?,
            tokens: Pinned::new(context, 4 * rows_max as usize)?,
            logits,
            done: Event::new(context, false)?,
            _memory: memory,
        })
    }

    /// A slot for one pass; waits while all are taken.
    pub(crate) fn take_slot(&self) -> Result<Slot> {
        if self.work().empty.is_none() {
            return Err(Failure::argument("the stage is not finished"));
        }
        let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            if let Some(slot) = slots.pop() {
                return Ok(slot);
            }
            slots = self
                .slot_is_free
                .wait(slots)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }

    pub(crate) fn give_slot(&self, slot: Slot) {
        let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        slots.push(slot);
        self.slot_is_free.notify_one();
    }

    pub(crate) fn memory(&self) -> Result<abi::Memory> {
        Ok(abi::Memory {
            allocated_bytes: self.allocated.load(Ordering::Relaxed),
            ..estimate(&self.options)?
        })
    }
}

fn check_shape(id: TensorId, place: &Place, source: &Source<'_>) -> Result<()> {
    let is_vector = matches!(source.weights, SourceWeights::F32(_));
    let expected = match (place, is_vector) {
        (Place::Vector { n, .. }, true) => (1, u64::from(*n)),
        (Place::Matrix { n_rows, n_cols, .. }, false) => (u64::from(*n_rows), u64::from(*n_cols)),
        _ => {
            let text = format!("tensor {id}: not of the type that the stage has");
            return Err(Failure::argument(text));
        }
    };
    let found = (source.n_rows, source.n_cols);
    if expected == found {
        return Ok(());
    }
    Err(Failure::argument(format!(
        "tensor {id}: {found:?}, expected {expected:?}"
    )))
}

impl State {
    /// An empty state.
    pub(crate) fn new(stage: &Arc<Stage>) -> Result<Self> {
        let mut work = stage.work();
        if work.empty.is_none() {
            return Err(Failure::argument("the stage is not finished"));
        }
        let memory = match work.spare.take() {
            Some(memory) => memory,
            None => stage.allocate(&work.stream, layout::state_bytes(&stage.options))?,
        };
        let empty = work.empty.as_ref();
        let empty = empty.ok_or_else(|| Failure::argument("the stage is not finished"))?;
        let (from, to, size) = (empty.address(), memory.address(), memory.size());
        let filled = work
            .stream
            .copy(to, from, size)
            .and_then(|()| work.stream.wait());
        drop(work);
        // Dropped where it could not be filled.
        let state = State {
            stage: stage.clone(),
            memory: Some(memory),
        };
        filled.map(|()| state)
    }

    pub(crate) fn address(&self) -> Address {
        self.memory.as_ref().map_or(0, Memory::address)
    }

    /// Where the logits behind it are kept.
    pub(crate) fn logits_address(&self) -> Address {
        let floats = layout::state_floats(&self.stage.options).next_multiple_of(64);
        self.address() + 4 * floats
    }

    pub(crate) fn check_count(&self, count: usize) -> Result<()> {
        let expected = layout::state_floats(&self.stage.options);
        if count as u64 == expected {
            return Ok(());
        }
        let text = format!("a state of {count} numbers, expected {expected}");
        Err(Failure::argument(text))
    }

    pub(crate) fn write(&self, numbers: &[f32]) -> Result<()> {
        self.check_count(numbers.len())?;
        let work = self.stage.work();
        work.stream.upload_slice(self.address(), numbers)
    }

    pub(crate) fn read(&self, numbers: &mut [f32]) -> Result<()> {
        self.check_count(numbers.len())?;
        let work = self.stage.work();
        work.stream.download_slice(numbers, self.address())
    }

    pub(crate) fn copy_from(&self, other: &State) -> Result<()> {
        if !Arc::ptr_eq(&self.stage, &other.stage) {
            return Err(Failure::argument("the states are of different stages"));
        }
        let work = self.stage.work();
        let bytes = layout::state_bytes(&self.stage.options);
        work.stream.copy(self.address(), other.address(), bytes)?;
        work.stream.wait()
    }

    pub(crate) fn check_logits(&self, count: usize) -> Result<()> {
        let options = &self.stage.options;
        if !options.has_head || count != options.n_vocab as usize {
            return Err(Failure::argument(format!(
                "room for {} logits of a stage {} head, expected {} of one with a head",
                count,
                if options.has_head {
                    "with a"
                } else {
                    "without a"
                },
                options.n_vocab
            )));
        }
        Ok(())
    }

    pub(crate) fn logits(&self, logits: &mut [f32]) -> Result<()> {
        self.check_logits(logits.len())?;
        let work = self.stage.work();
        work.stream.download_slice(logits, self.logits_address())
    }
}

impl Drop for State {
    fn drop(&mut self) {
        if let Some(memory) = self.memory.take() {
            self.stage.give_back(memory);
        }
    }
}
