//! Devices: the options that choose them, and what is said of them.

use std::io::{self, Write};

use rwkv_edge::{
    found_plugins, printable, Device, DeviceInfo, DeviceMap, FoundPlugin, Info, StageInfo, StageMap,
};
use serde_json::{json, Value};

use crate::byte_size::ByteSize;

/// Where the layers of a model run.
#[derive(clap::Args, Clone, Default)]
pub(crate) struct DeviceArgs {
    /// cpu, auto, or a device such as cuda [default: cpu]
    ///
    /// cuda is the first device of the plugin of that name, cuda:1 the second; see `info --devices`. auto
    /// takes as much of devices as the model needs and they have, and the CPU for the rest, or for all where
    /// there is no device.
    #[arg(long, value_name = "DEVICE", value_parser = parse_device)]
    device: Option<DeviceMap>,

    /// How layers are spread over devices
    ///
    /// auto; data-parallel: the whole model on each device, sequences spread over them; or stages, such as
    /// "cuda:0 f16 *12 -> cuda:1 int8 *6 -> cpu int8": a device, how its weights are stored, and how many
    /// layers it has, of which the head is one more. The last stage takes the rest.
    #[arg(long, value_name = "MAP", conflicts_with = "device")]
    device_map: Option<DeviceMap>,

    /// Memory that may be taken of devices, such as cuda:0=2G,cuda:1=500M
    ///
    /// Units are as of --max-memory; 0 leaves a device out.
    #[arg(long, value_name = "LIMITS", value_parser = parse_limits)]
    max_device_memory: Option<Limits>,
}

/// Limits of devices' memory.
#[derive(Clone)]
struct Limits(Vec<(Device, u64)>);

fn parse_limits(text: &str) -> Result<Limits, String> {
    const EXPECTED: &str = "expected DEVICE=SIZE, such as cuda:0=2G,cuda:1=500M";
    let mut limits: Vec<(Device, u64)> = Vec::new();
    let parts = text.split(',').map(str::trim);
    for part in parts.filter(|part| !part.is_empty()) {
        let wrong = |what: &str| format!("`{part}`: {what}; {EXPECTED}");
        let (device, size) = part.split_once('=').ok_or_else(|| wrong("no `=`"))?;
        let device = device.trim().parse::<Device>();
        let device = device.map_err(|error| wrong(&error.to_string()))?;
        let bytes = match size.trim() {
            "0" => 0,
            size => size.parse::<ByteSize>().map_err(|error| wrong(&error))?.0,
        };
        if device == Device::Cpu {
            return Err(wrong("the CPU's memory is limited by --max-memory"));
        }
        if limits.iter().any(|(other, _)| *other == device) {
            return Err(wrong("that device has a limit already"));
        }
        limits.push((device, bytes));
    }
    match limits.is_empty() {
        true => Err(EXPECTED.to_owned()),
        false => Ok(Limits(limits)),
    }
}

/// One device, or auto.
fn parse_device(text: &str) -> Result<DeviceMap, String> {
    if text == "auto" {
        return Ok(DeviceMap::Auto);
    }
    let device = text.parse::<Device>();
    let device = device.map_err(|error| format!("{error}, or auto"))?;
    Ok(match device {
        Device::Cpu => DeviceMap::Cpu,
        device => DeviceMap::Stages(vec![StageMap::new(device)]),
    })
}

impl DeviceArgs {
    pub(crate) fn map(&self) -> DeviceMap {
        let given = self.device.as_ref().or(self.device_map.as_ref());
        given.cloned().unwrap_or_default()
    }

    pub(crate) fn limits(&self) -> Vec<(Device, u64)> {
        let limits = self.max_device_memory.as_ref();
        limits.map_or_else(Vec::new, |limits| limits.0.clone())
    }

    pub(crate) fn are_only_the_cpu(&self) -> bool {
        match self.map() {
            DeviceMap::Cpu => true,
            DeviceMap::Stages(stages) => stages.iter().all(|stage| stage.device == Device::Cpu),
            // Any other may find a device.
            _ => false,
        }
    }

    /// The same devices for a model whose quant `--quant` alone decides.
    pub(crate) fn without_quants(mut self) -> Self {
        if let Some(DeviceMap::Stages(stages)) = &mut self.device_map {
            stages.iter_mut().for_each(|stage| stage.quant = None);
        }
        self
    }

    /// The options that say the same.
    pub(crate) fn to_options(&self) -> Vec<String> {
        let mut options = vec!["--device-map".to_owned(), self.map().to_string()];
        let limits = self.limits().into_iter();
        let limits: Vec<String> = limits.map(|(device, n)| format!("{device}={n}")).collect();
        if !limits.is_empty() {
            options.extend(["--max-device-memory".to_owned(), limits.join(",")]);
        }
        options
    }

    /// The same model where every machine has room for it.
    pub(crate) fn on_cpu() -> Self {
        Self::default()
    }
}

/// The devices that a model is on, in the order of its layers: `cuda:0 + cpu`.
pub(crate) fn names(info: &Info) -> String {
    let mut names: Vec<&str> = info.stages.iter().map(|s| s.device.as_str()).collect();
    names.dedup();
    names.join(" + ")
}

/// Whether a device of a plugin has a part of the model.
pub(crate) fn is_on_device(info: &Info) -> bool {
    info.stages.iter().any(|stage| stage.device != "cpu")
}

/// Bytes that the model's weights have of devices.
pub(crate) fn weight_bytes(info: &Info) -> u64 {
    let stages = info.stages.iter().filter(|stage| stage.device != "cpu");
    // A model that is on several devices as a whole has as much on each.
    let bytes = stages.map(|stage| stage.weight_bytes).sum::<u64>();
    bytes.min(info.weight_bytes)
}

/// One line about a stage.
pub(crate) fn describe(stage: &StageInfo) -> String {
    let name = stage.device_name.as_ref();
    let name = name.map_or(String::new(), |name| format!(" ({})", printable(name)));
    let mut parts = Vec::new();
    if stage.has_embedding {
        parts.push("embedding".to_owned());
    }
    match stage.layers.len() {
        0 => {}
        1 => parts.push(format!("layer {}", stage.layers.start)),
        _ => parts.push(format!(
            "layers {} to {}",
            stage.layers.start,
            stage.layers.end - 1
        )),
    }
    if stage.has_head {
        parts.push("head".to_owned());
    }
    let mb = |bytes: u64| bytes as f64 / 1e6;
    let memory = match stage.device.as_str() {
        "cpu" => String::new(),
        _ => format!(
            "; takes {:.1} MB of the device, expected {:.1} MB",
            mb(stage.allocated_bytes),
            mb(stage.estimated_bytes)
        ),
    };
    format!(
        "{}{name}: {} as {}, {:.1} MB of weights{memory}",
        stage.device,
        parts.join(", "),
        stage.quant,
        mb(stage.weight_bytes)
    )
}

pub(crate) fn stage_json(stage: &StageInfo) -> Value {
    json!({
        "device": stage.device,
        "device_name": stage.device_name,
        "quant": stage.quant.name(),
        "first_layer": stage.layers.start,
        "n_layer": stage.layers.len(),
        "has_embedding": stage.has_embedding,
        "has_head": stage.has_head,
        "weight_bytes": stage.weight_bytes,
        "estimated_bytes": stage.estimated_bytes,
        "allocated_bytes": stage.allocated_bytes,
    })
}

/// `info --devices`
pub(crate) fn list(as_json: bool, out: &mut impl Write) -> io::Result<()> {
    let plugins = found_plugins();
    if as_json {
        let plugins: Vec<Value> = plugins.iter().map(plugin_json).collect();
        return writeln!(out, "{}", json!({ "plugins": plugins }));
    }
    if plugins.is_empty() {
        return writeln!(out, "no plugin is installed: the CPU is the only device");
    }
    for plugin in &plugins {
        print(plugin, out)?;
    }
    Ok(())
}

fn print(plugin: &FoundPlugin, out: &mut impl Write) -> io::Result<()> {
    if let (Some(name), Some(build)) = (&plugin.name, &plugin.build) {
        writeln!(
            out,
            "plugin        {} {}, {}",
            printable(name),
            printable(build),
            printable(&plugin.path.to_string_lossy())
        )?;
    }
    let devices = match &plugin.devices {
        Ok(devices) => devices,
        Err(error) => return writeln!(out, "no device     {error}"),
    };
    if devices.is_empty() {
        writeln!(out, "no device     the plugin finds none")?;
    }
    for info in devices {
        let gb = |bytes: u64| bytes as f64 / 1e9;
        writeln!(
            out,
            "{:13} {}: {:.1} GB free of {:.1} GB; {}; {}",
            info.device,
            printable(&info.name),
            gb(info.free_bytes),
            gb(info.total_bytes),
            quants(info).join(", "),
            printable(&info.detail)
        )?;
    }
    Ok(())
}

fn quants(info: &DeviceInfo) -> Vec<&'static str> {
    info.quants.iter().map(|quant| quant.name()).collect()
}

fn plugin_json(plugin: &FoundPlugin) -> Value {
    let device = |info: &DeviceInfo| {
        json!({
            "device": info.device,
            "name": info.name,
            "detail": info.detail,
            "total_bytes": info.total_bytes,
            "free_bytes": info.free_bytes,
            "quants": quants(info),
        })
    };
    let devices = plugin.devices.as_ref();
    json!({
        "name": plugin.name,
        "build": plugin.build,
        "path": plugin.path,
        "devices": devices.map_or_else(|_| Vec::new(), |d| d.iter().map(device).collect()),
        "error": devices.err().map(ToString::to_string),
    })
}

/// Stages on devices that a token passes one after the other; 1 where the whole model is on each device.
pub(crate) fn pipeline_length(info: &Info) -> usize {
    let on_devices = info.stages.iter().filter(|stage| stage.device != "cpu");
    let mut firsts: Vec<_> = on_devices.map(|stage| stage.layers.start).collect();
    firsts.dedup();
    firsts.len().max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_of_memory() {
        let text = "cuda:0=2GB, cuda:1=1.5GiB,cuda:2=700,cuda:3=500M,npu=0,";
        let found = parse_limits(text).expect("valid").0;
        let expected = [
            ("cuda:0", 2_000_000_000),
            ("cuda:1", 3 << 29),
            ("cuda:2", 700),
            ("cuda:3", 500 << 20),
            ("npu:0", 0),
        ];
        assert_eq!(found.len(), expected.len());
        for ((device, bytes), expected) in found.iter().zip(expected) {
            assert_eq!((&device.to_string()[..], *bytes), expected);
        }
        for text in [
            "cuda",
            "cuda=x",
            "cuda=-1",
            "cpu=1G",
            "=1",
            "cuda=1e30",
            "",
            ",",
            "cuda=1,cuda:0=2",
        ] {
            assert!(parse_limits(text).is_err(), "{text}");
        }
    }
}
