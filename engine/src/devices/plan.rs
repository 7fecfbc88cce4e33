//! Decides which layers of a model run where, before any weight is read, and says why a map cannot be.
//!
//! Input: sizes of a model and a device map. Output: pipelines of stages, for which there is memory. Sits
//! between `names.rs`, which reads maps, and `stages.rs`, which makes stages of weights.

#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::num::NonZeroUsize;

use crate::devices::names::{devices_of, Device, DeviceMap, StageMap};
use crate::devices::plugin::{self, DeviceInfo, Memory, Plugin, StageOptions};
use crate::error::{Error, Result};
use crate::networks::config::Config;
use crate::networks::table::StageRange;
use crate::quant::Quant;

/// Rows of a batch where all stages are on devices of plugins: large enough to be bound by arithmetic.
pub(crate) const DEVICE_ROWS_MAX: usize = 2048;
/// The same where the CPU has a part, whose buffers need not be larger.
pub(crate) const MIXED_ROWS_MAX: usize = 256;
/// Of a device's free memory `auto` leaves this part for states and for others,
const RESERVE_SHARE: u64 = 16;
/// and at least so much.
const RESERVE_BYTES: u64 = 256 << 20;

/// Where a stage goes.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Target {
    Cpu,
    Device(&'static Plugin, u32),
}

impl Target {
    /// As options call it.
    pub(crate) fn name(&self) -> String {
        match self {
            Target::Cpu => Device::Cpu.to_string(),
            Target::Device(plugin, index) => format!("{}:{index}", plugin.name()),
        }
    }
}

/// One stage of a plan.
#[derive(Clone, Debug)]
pub(crate) struct PlannedStage {
    pub(crate) target: Target,
    pub(crate) quant: Quant,
    pub(crate) part: StageRange,
}

/// Where everything goes.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    /// One after the other the whole model.
    pub(crate) stages: Vec<PlannedStage>,
    /// Where the same stage goes besides: other devices that hold the whole model.
    pub(crate) replicas: Vec<Target>,
    /// At most so many rows a batch; `None` where everything is on the CPU.
    pub(crate) rows_max: Option<usize>,
    /// Why `auto` chose the CPU.
    pub(crate) note: Option<String>,
}

/// What a plan is made for.
pub(crate) struct Request<'a> {
    pub(crate) map: &'a DeviceMap,
    /// Limits of memory, which `auto` keeps.
    pub(crate) memory_max: &'a [(Device, u64)],
    pub(crate) config: &'a Config,
    /// What was asked for.
    pub(crate) quant: Option<Quant>,
    /// What matrices are stored as, or become where nothing is asked for.
    pub(crate) stored: Quant,
}

impl Plan {
    /// # Errors
    /// [`ErrorKind::Backend`](crate::ErrorKind::Backend) for a device that is not there,
    /// [`ErrorKind::Memory`](crate::ErrorKind::Memory) with the numbers for one that has too little,
    /// [`ErrorKind::Argument`](crate::ErrorKind::Argument) for a map that does not fit the model,
    /// [`ErrorKind::Unsupported`](crate::ErrorKind::Unsupported) for matrices that the device cannot have.
    pub(crate) fn new(request: &Request<'_>) -> Result<Self> {
        match request.map {
            DeviceMap::Cpu => Ok(request.on_cpu(None)),
            DeviceMap::Auto => request.auto(),
            DeviceMap::DataParallel => request.data_parallel(),
            DeviceMap::Stages(stages) => request.explicit(stages),
        }
    }

    /// What most layers are stored as.
    pub(crate) fn quant(&self) -> Quant {
        let (mut largest, mut quant) = (0, Quant::F16);
        for stage in &self.stages {
            let size = stage.part.layers.len() + usize::from(stage.part.has_head);
            if size > largest {
                (largest, quant) = (size, stage.quant);
            }
        }
        quant
    }

    /// Checks the devices' memory, and completes the plan.
    fn checked(self, request: &Request<'_>) -> Result<Self> {
        let mut needed: BTreeMap<String, (&'static Plugin, u32, Memory)> = BTreeMap::new();
        let first = self.stages.first();
        let replicas = self.replicas.iter().flat_map(|target| {
            first.map(|stage| PlannedStage {
                target: *target,
                ..stage.clone()
            })
        });
        for stage in self.stages.iter().cloned().chain(replicas) {
            let Target::Device(plugin, index) = stage.target else {
                continue;
            };
            let options = request.stage_options(&stage, index, self.rows_max);
            let memory = plugin.stage_estimate(&options)?;
            let entry = needed.entry(stage.target.name());
            let (_, _, sum) = entry.or_insert((plugin, index, Memory::default()));
            sum.weights = sum.weights.saturating_add(memory.weights);
            sum.workspace = sum.workspace.saturating_add(memory.workspace);
            sum.state = sum.state.saturating_add(memory.state);
        }
        for (name, (plugin, index, memory)) in needed {
            let info = plugin.device_info(index)?;
            let limit = request.limit(&name);
            let free = limit.map_or(info.free_bytes, |limit| limit.min(info.free_bytes));
            if memory.total() > free {
                return Err(Error::memory(format!(
                    "{name}: needs {} (weights {}, workspace {}, one state {}), has {} {} of {}: give it \
                     fewer layers, a smaller quant, or use auto",
                    size(memory.total()),
                    size(memory.weights),
                    size(memory.workspace),
                    size(memory.state),
                    size(free),
                    if free < info.free_bytes { "allowed" } else { "free" },
                    size(info.total_bytes)
                )));
            }
        }
        Ok(self)
    }
}

/// Bytes for people.
pub(crate) fn size(bytes: u64) -> String {
    match bytes {
        0..10_000_000 => format!("{bytes} bytes"),
        10_000_000..10_000_000_000 => format!("{:.0} MB", bytes as f64 / 1e6),
        _ => format!("{:.1} GB", bytes as f64 / 1e9),
    }
}

impl Request<'_> {
    fn n_layers_and_head(&self) -> usize {
        self.config.sizes.n_layer + 1
    }

    fn quant(&self) -> Quant {
        self.quant.unwrap_or(self.stored)
    }

    /// The stage that has `count` of the layers from `first` on, the head being the last.
    fn part(&self, first: usize, count: usize) -> StageRange {
        let n_layer = self.config.sizes.n_layer;
        StageRange {
            layers: first.min(n_layer)..(first + count).min(n_layer),
            has_embedding: first == 0,
            has_head: first + count == n_layer + 1,
        }
    }

    fn on_cpu(&self, note: Option<String>) -> Plan {
        Plan {
            stages: vec![PlannedStage {
                target: Target::Cpu,
                quant: self.quant(),
                part: self.part(0, self.n_layers_and_head()),
            }],
            replicas: Vec::new(),
            rows_max: None,
            note,
        }
    }

    fn stage_options(
        &self,
        stage: &PlannedStage,
        device: u32,
        rows_max: Option<usize>,
    ) -> StageOptions {
        let rows_max = rows_max.unwrap_or(MIXED_ROWS_MAX);
        StageOptions::new(self.config, &stage.part, stage.quant, device, rows_max)
    }

    /// A limit of a device that is not there would limit nothing.
    fn check_limits(&self) -> Result<()> {
        for (device, _) in self.memory_max {
            if let Device::Plugin { name, index } = device {
                find(name, *index).map_err(|error| error.at("limits of memory"))?;
            }
        }
        Ok(())
    }

    fn limit(&self, device: &str) -> Option<u64> {
        let mut limits = self.memory_max.iter();
        let limit = limits.find(|(limited, _)| limited.to_string() == device);
        limit.map(|(_, bytes)| *bytes)
    }

    /// How matrices are stored on a device, if nothing is said of its stage.
    fn quant_on(&self, info: &DeviceInfo) -> Result<Quant> {
        let wanted = self.quant();
        // The nearest that the device has, unless f32 is what was asked for.
        if wanted == Quant::F32 && self.quant.is_none() && !info.quants.contains(&wanted) {
            return check_quant(info, Quant::F16);
        }
        check_quant(info, wanted)
    }

    fn explicit(&self, maps: &[StageMap]) -> Result<Plan> {
        self.check_limits()?;
        let total = self.n_layers_and_head();
        let mut stages = Vec::with_capacity(maps.len());
        let mut first = 0;
        for map in maps {
            let left = total.saturating_sub(first);
            let count = map.n_layers.map_or(left, NonZeroUsize::get);
            if count == 0 || first + count > total {
                return Err(Error::argument(format!(
                    "device map: {} layers, the head counted as one, are not enough for {} stages that \
                     take {} of them: see *N",
                    total,
                    maps.len(),
                    first + count.max(1)
                )));
            }
            let (target, quant) = match &map.device {
                Device::Cpu => (Target::Cpu, map.quant.unwrap_or(self.quant())),
                Device::Plugin { name, index } => {
                    let (target, info) = find(name, *index)?;
                    if let Target::Device(plugin, _) = target {
                        plugin.check_architecture(
                            self.config.sizes.architecture.name,
                            &info.device,
                        )?;
                    }
                    let quant = match map.quant {
                        Some(quant) => check_quant(&info, quant)?,
                        None => self.quant_on(&info)?,
                    };
                    (target, quant)
                }
            };
            let part = self.part(first, count);
            stages.push(PlannedStage {
                target,
                quant,
                part,
            });
            first += count;
        }
        if first < total {
            return Err(Error::argument(format!(
                "device map: {first} of {total} layers, the head counted as one, have a place: leave out \
                 the last *N"
            )));
        }
        let plan = Plan {
            rows_max: rows_max(&stages),
            stages,
            replicas: Vec::new(),
            note: None,
        };
        plan.checked(self)
    }

    fn data_parallel(&self) -> Result<Plan> {
        let failed = |reasons: String| Error::backend(reasons).at("data-parallel");
        let (plugin, devices) =
            first_with_devices(self.config.sizes.architecture.name).map_err(failed)?;
        self.check_limits()?;
        let mut wanted = (0..)
            .zip(&devices)
            .filter(|(_, info)| self.limit(&info.device) != Some(0));
        let Some((first, info)) = wanted.next() else {
            return Err(failed("no device is left".into()));
        };
        let stage = PlannedStage {
            target: Target::Device(plugin, first),
            quant: self.quant_on(info)?,
            part: self.part(0, self.n_layers_and_head()),
        };
        let plan = Plan {
            stages: vec![stage],
            replicas: wanted
                .map(|(index, _)| Target::Device(plugin, index))
                .collect(),
            rows_max: Some(DEVICE_ROWS_MAX),
            note: None,
        };
        plan.checked(self)
    }

    fn auto(&self) -> Result<Plan> {
        let (plugin, mut devices) = match first_with_devices(self.config.sizes.architecture.name) {
            Ok(found) => found,
            Err(reasons) => return Ok(self.on_cpu(Some(reasons))),
        };
        self.check_limits()?;
        devices.sort_by_key(|info| std::cmp::Reverse(self.free(info)));
        let total = self.n_layers_and_head();
        // Rather smaller batches than layers on the CPU.
        let mut rows_max = DEVICE_ROWS_MAX;
        let mut stages = self.fill(plugin, &devices, rows_max)?;
        while count(&stages) < total && rows_max > MIXED_ROWS_MAX {
            rows_max /= 2;
            stages = self.fill(plugin, &devices, rows_max)?;
        }
        let first = count(&stages);
        if first == 0 {
            let free: Vec<String> = devices
                .iter()
                .map(|info| format!("{} has {} for it", info.device, size(self.free(info))))
                .collect();
            let text = format!("not one layer fits: {}", free.join(", "));
            return Ok(self.on_cpu(Some(text)));
        }
        if first < total {
            stages.push(PlannedStage {
                target: Target::Cpu,
                quant: self.quant(),
                part: self.part(first, total - first),
            });
        }
        Ok(Plan {
            rows_max: Some(rows_max),
            stages,
            replicas: Vec::new(),
            note: None,
        })
    }

    /// Memory that `auto` may take of a device: the limit, or what is free without a reserve.
    fn free(&self, info: &DeviceInfo) -> u64 {
        let free = info.free_bytes;
        let reserve = RESERVE_BYTES.max(free / RESERVE_SHARE);
        match self.limit(&info.device) {
            Some(limit) => limit.min(free),
            // A small device would be all reserve.
            None => free - reserve.min(free / 4),
        }
    }

    /// As many layers as fit on each device, one device after the other.
    fn fill(
        &self,
        plugin: &'static Plugin,
        devices: &[DeviceInfo],
        rows_max: usize,
    ) -> Result<Vec<PlannedStage>> {
        let total = self.n_layers_and_head();
        let mut stages: Vec<PlannedStage> = Vec::new();
        for info in devices {
            let first = count(&stages);
            if first == total {
                break;
            }
            let (_, index) = info.device.rsplit_once(':').unwrap_or_default();
            let index: u32 = index.parse().unwrap_or_default();
            let quant = self.quant_on(info)?;
            let stage = |count: usize| PlannedStage {
                target: Target::Device(plugin, index),
                quant,
                part: self.part(first, count),
            };
            let fits = |count: usize| -> Result<bool> {
                let options = self.stage_options(&stage(count), index, Some(rows_max));
                Ok(plugin.stage_estimate(&options)?.total() <= self.free(info))
            };
            // More layers never need less.
            let (mut fitting, mut too_many) = (0, total - first + 1);
            while too_many - fitting > 1 {
                let middle = fitting + (too_many - fitting) / 2;
                match fits(middle)? {
                    true => fitting = middle,
                    false => too_many = middle,
                }
            }
            if fitting > 0 {
                stages.push(stage(fitting));
            }
        }
        Ok(stages)
    }
}

/// Layers of stages, the head counted as one.
fn count(stages: &[PlannedStage]) -> usize {
    let of = |part: &StageRange| part.layers.len() + usize::from(part.has_head);
    stages.iter().map(|stage| of(&stage.part)).sum()
}

fn rows_max(stages: &[PlannedStage]) -> Option<usize> {
    let is_cpu = |stage: &PlannedStage| matches!(stage.target, Target::Cpu);
    match (stages.iter().any(is_cpu), stages.iter().all(is_cpu)) {
        (_, true) => None,
        (true, _) => Some(MIXED_ROWS_MAX),
        (false, _) => Some(DEVICE_ROWS_MAX),
    }
}

/// The device of that name and number.
fn find(name: &str, index: u32) -> Result<(Target, DeviceInfo)> {
    let plugin = plugin::named(name)?;
    let n_devices = plugin.device_count()?;
    if index >= n_devices {
        let there = match n_devices {
            0 => "there is none".to_owned(),
            1 => format!("there is only {name}:0"),
            n => format!("there are {name}:0 to {name}:{}", n - 1),
        };
        return Err(Error::backend(format!(
            "{name}:{index}: no such device: {there}"
        )));
    }
    Ok((Target::Device(plugin, index), plugin.device_info(index)?))
}

/// The first plugin that has a device for models of an architecture; else why none has.
fn first_with_devices(
    architecture: &str,
) -> std::result::Result<(&'static Plugin, Vec<DeviceInfo>), String> {
    let mut reasons = Vec::new();
    for (_, plugin) in plugin::all() {
        let devices = plugin.and_then(|plugin| {
            plugin.check_architecture(architecture, plugin.name())?;
            Ok((plugin, devices_of(plugin)?))
        });
        match devices {
            Ok((plugin, devices)) if !devices.is_empty() => return Ok((plugin, devices)),
            Ok((plugin, _)) => reasons.push(format!("{}: no devices", plugin.name())),
            Err(error) => reasons.push(error.to_string()),
        }
    }
    match reasons.is_empty() {
        true => Err("no plugin is installed".into()),
        false => Err(reasons.join("; ")),
    }
}

fn check_quant(info: &DeviceInfo, quant: Quant) -> Result<Quant> {
    if info.quants.contains(&quant) {
        return Ok(quant);
    }
    let has: Vec<&str> = info.quants.iter().map(|quant| quant.name()).collect();
    Err(Error::unsupported(format!(
        "{}: cannot have matrices of {quant}, expected {}: see --quant",
        info.device,
        has.join(" or ")
    )))
}
