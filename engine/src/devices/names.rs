//! Where a model's layers run: the names of devices, and the maps that people write.
//!
//! Only texts and values here; `plan.rs` decides with them which layers go where, `plugin/` reaches the
//! devices.

#![forbid(unsafe_code)]

use std::fmt;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::str::FromStr;

use crate::devices::plugin::{self, DeviceInfo};
use crate::error::{Error, Result};
use crate::quant::Quant;

/// A device that layers run on.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Device {
    /// This machine's processor.
    Cpu,
    /// One of the devices of a plugin.
    Plugin {
        /// How the plugin calls its devices: `cuda`.
        name: String,
        /// Which of them, from 0.
        index: u32,
    },
}

/// How the layers of a model are spread over devices; read from text by [`str::parse`].
///
/// | text | means |
/// | --- | --- |
/// | `cpu` | all on the CPU: the default |
/// | `cuda`, `cuda:1` | all on one device; without a number the first |
/// | `auto` | as much as fits on the devices of plugins, the rest on the CPU |
/// | `data-parallel` | the whole model on each device of a plugin, sequences spread over them |
/// | `cuda:0 f16 *12 -> cuda:1 int8 *6 -> cpu int8` | stages one after the other, as in ChatRWKV's strategies |
///
/// A stage is a device, how its matrices are stored (`f32`, `f16`, `int8`; also `fp32`, `fp16` and `fp16i8`,
/// `fp32i8`; not given: as for the whole model) and how many layers it has. The head counts as a layer behind
/// the last one, and the last stage takes the rest.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum DeviceMap {
    /// All on the CPU.
    #[default]
    Cpu,
    /// As much as fits on devices of plugins, the rest on the CPU.
    Auto,
    /// The whole model on each device.
    DataParallel,
    /// Stages one after the other.
    Stages(Vec<StageMap>),
}

/// One stage of a [`DeviceMap`].
///
/// ```
/// use rwkv_edge::{DeviceMap, Quant, StageMap};
///
/// # fn main() -> rwkv_edge::Result<()> {
/// let first = StageMap::new("cuda:0".parse()?).quant(Quant::F16).n_layers(12);
/// let map = DeviceMap::Stages(vec![first, StageMap::new("cpu".parse()?)]);
/// assert_eq!(map, "cuda:0 f16 *12 -> cpu".parse()?);
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
#[must_use = "a stage does nothing until it is part of a device map"]
pub struct StageMap {
    /// Where it runs.
    pub device: Device,
    /// How its matrices are stored; `None`: as for the whole model.
    pub quant: Option<Quant>,
    /// Its layers, where the head counts as one behind the last; `None`: all that are left.
    pub n_layers: Option<NonZeroUsize>,
}

impl FromStr for Device {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let (name, index) = match text.split_once(':') {
            Some((name, index)) => (name, Some(index)),
            None => (text, None),
        };
        let is_allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
        let expected = "expected cpu, or a plugin's device such as cuda or cuda:1";
        let wrong = || Error::argument(format!("device `{text}`: {expected}"));
        if name.is_empty() || !name.chars().all(is_allowed) || name == "auto" {
            return Err(wrong());
        }
        if name == "cpu" {
            return index.map_or(Ok(Device::Cpu), |_| Err(wrong()));
        }
        let index = index.map_or(Ok(0), |index| index.parse().map_err(|_| wrong()))?;
        let name = name.to_owned();
        Ok(Device::Plugin { name, index })
    }
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Device::Cpu => f.write_str("cpu"),
            Device::Plugin { name, index } => write!(f, "{name}:{index}"),
        }
    }
}

impl FromStr for DeviceMap {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match text.trim() {
            "cpu" => return Ok(DeviceMap::Cpu),
            "auto" => return Ok(DeviceMap::Auto),
            "data-parallel" => return Ok(DeviceMap::DataParallel),
            _ => {}
        }
        let failed = |e: Error| e.at(format_args!("device map `{}`", text.trim()));
        let stages: Vec<StageMap> = text
            .split("->")
            .map(StageMap::parse)
            .collect::<Result<_>>()
            .map_err(failed)?;
        let all_but_last = &stages[..stages.len() - 1];
        if let Some(at) = all_but_last.iter().position(|s| s.n_layers.is_none()) {
            let text = format!("stage {at} has no *N, which only the last stage may leave out");
            return Err(failed(Error::argument(text)));
        }
        Ok(DeviceMap::Stages(stages))
    }
}

impl fmt::Display for DeviceMap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let stages = match self {
            DeviceMap::Cpu => return f.write_str("cpu"),
            DeviceMap::Auto => return f.write_str("auto"),
            DeviceMap::DataParallel => return f.write_str("data-parallel"),
            DeviceMap::Stages(stages) => stages,
        };
        for (index, stage) in stages.iter().enumerate() {
            let arrow = if index == 0 { "" } else { " -> " };
            write!(f, "{arrow}{}", stage.device)?;
            if let Some(quant) = stage.quant {
                write!(f, " {quant}")?;
            }
            if let Some(n_layers) = stage.n_layers {
                write!(f, " *{n_layers}")?;
            }
        }
        Ok(())
    }
}

impl StageMap {
    /// A stage of all layers that are left, stored as the whole model is.
    pub fn new(device: Device) -> Self {
        StageMap {
            device,
            quant: None,
            n_layers: None,
        }
    }

    /// Sets [`quant`](field@Self::quant).
    pub fn quant(mut self, quant: impl Into<Option<Quant>>) -> Self {
        self.quant = quant.into();
        self
    }

    /// Sets [`n_layers`](field@Self::n_layers); 0 is `None`.
    pub fn n_layers(mut self, n_layers: usize) -> Self {
        self.n_layers = NonZeroUsize::new(n_layers);
        self
    }

    fn parse(text: &str) -> Result<Self> {
        let text = text.trim();
        let wrong = |what: &str| {
            let example = "expected DEVICE [QUANT] [*LAYERS], such as cuda:0 f16 *12";
            Error::argument(format!("stage `{text}`: {what}; {example}"))
        };
        let mut words = text.split_whitespace();
        let device = words.next().ok_or_else(|| wrong("no device"))?.parse()?;
        let mut stage = StageMap::new(device);
        for word in words {
            if let Some(count) = word.strip_prefix('*') {
                if count.ends_with('+') {
                    return Err(Error::unsupported(format!(
                        "stage `{text}`: *N+ would stream weights to the device for every token, which is not \
                         supported; give it the layers that fit, and the cpu the rest"
                    )));
                }
                let count: usize = count
                    .parse()
                    .map_err(|_| wrong(&format!("`{word}` is no number of layers")))?;
                let count = NonZeroUsize::new(count);
                if count.is_none() || stage.n_layers.is_some() {
                    return Err(wrong("*N once, and at least 1"));
                }
                stage.n_layers = count;
            } else if stage.quant.is_some() || stage.n_layers.is_some() {
                return Err(wrong(&format!("`{word}` is one too many")));
            } else {
                stage.quant = Some(quant(word)?);
            }
        }
        Ok(stage)
    }
}

/// A quantisation by our name or ChatRWKV's.
fn quant(word: &str) -> Result<Quant> {
    match word {
        "f32" | "fp32" => Ok(Quant::F32),
        "f16" | "fp16" => Ok(Quant::F16),
        // There the first number is that of the activations, which are f32 here.
        "int8" | "fp16i8" | "fp32i8" => Ok(Quant::Int8),
        "bf16" | "bf16i8" => Err(Error::unsupported(format!(
            "{word}: weights are never bf16 here: use f16, f32 or int8"
        ))),
        _ => {
            let text = format!("quant `{word}`: expected {}", Quant::names());
            Quant::from_name(word).ok_or_else(|| Error::argument(text))
        }
    }
}

/// A plugin that was found.
#[derive(Debug)]
#[non_exhaustive]
pub struct FoundPlugin {
    /// Its file.
    pub path: PathBuf,
    /// How its devices are called; `None` when the file could not be opened.
    pub name: Option<String>,
    /// Its own version.
    pub build: Option<String>,
    /// Its devices, or why there are none.
    pub devices: Result<Vec<DeviceInfo>>,
}

/// All plugins that are found, and their devices.
pub fn found_plugins() -> Vec<FoundPlugin> {
    let describe = |(path, plugin): (PathBuf, Result<&'static plugin::Plugin>)| match plugin {
        Ok(plugin) => FoundPlugin {
            path,
            name: Some(plugin.name().to_owned()),
            build: Some(plugin.build().to_owned()),
            devices: devices_of(plugin),
        },
        Err(error) => FoundPlugin {
            path,
            name: None,
            build: None,
            devices: Err(error),
        },
    };
    plugin::all().into_iter().map(describe).collect()
}

pub(crate) fn devices_of(plugin: &plugin::Plugin) -> Result<Vec<DeviceInfo>> {
    let count = plugin.device_count()?;
    (0..count).map(|index| plugin.device_info(index)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cuda(index: u32) -> Device {
        let name = "cuda".to_owned();
        Device::Plugin { name, index }
    }

    #[test]
    fn maps_are_read_as_chatrwkv_writes_them() {
        let stage = |device, quant: Option<Quant>, n_layers: usize| {
            StageMap::new(device).quant(quant).n_layers(n_layers)
        };
        let cases = [
            ("cpu", DeviceMap::Cpu),
            (" auto ", DeviceMap::Auto),
            ("data-parallel", DeviceMap::DataParallel),
            ("cuda", DeviceMap::Stages(vec![stage(cuda(0), None, 0)])),
            ("cuda:3", DeviceMap::Stages(vec![stage(cuda(3), None, 0)])),
            (
                "cuda:0 fp16 *12 -> cuda:1 fp16i8 *6->cpu int8",
                DeviceMap::Stages(vec![
                    stage(cuda(0), Some(Quant::F16), 12),
                    stage(cuda(1), Some(Quant::Int8), 6),
                    stage(Device::Cpu, Some(Quant::Int8), 0),
                ]),
            ),
            (
                "cpu fp32 *1",
                DeviceMap::Stages(vec![stage(Device::Cpu, Some(Quant::F32), 1)]),
            ),
        ];
        for (text, expected) in cases {
            assert_eq!(text.parse::<DeviceMap>().expect(text), expected, "{text}");
            let written = expected.to_string();
            assert_eq!(written.parse::<DeviceMap>().expect(&written), expected);
        }
    }

    #[test]
    fn what_is_no_map_is_told() {
        for (text, part) in [
            ("", "no device"),
            ("cuda:x", "cuda:x"),
            ("cpu:0", "cpu:0"),
            ("CUDA", "expected cpu"),
            ("cuda f17", "f17"),
            ("cuda bf16", "never bf16"),
            ("cuda f16 *0", "at least 1"),
            ("cuda f16 *x", "`*x` is no number of layers"),
            ("cuda *3 f16", "one too many"),
            ("cuda f16 *3+", "`cuda f16 *3+`: *N+ would stream"),
            ("cuda -> cpu", "stage 0 has no *N"),
            ("cuda *2 ->", "no device"),
            ("auto -> cpu", "auto"),
        ] {
            let error = text.parse::<DeviceMap>().expect_err(text).to_string();
            assert!(error.contains(part), "{text}: {error}");
        }
    }
}
