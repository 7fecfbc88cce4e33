//! A network's weights on their way to devices.

use rwkv_edge_plugin as abi;

use super::stages::StageFacts;
use crate::devices::plan::{PlannedStage, Target};
use crate::devices::plugin::{self, StageBuilder, StageOptions};
use crate::error::{Error, Result};
use crate::networks::config::Config;
use crate::networks::source::{RowsSource, WeightSource};
use crate::networks::table::TensorAt;
use crate::networks::tensor_info::TensorInfo;
use crate::quant::matrix::{Buffer, Matrix, Vector};
use crate::quant::parts::Rows;
use crate::quant::{Quant, Weights};

/// Brings what a network asks for to devices, and gives placeholders.
pub(crate) struct Upload<'a> {
    source: &'a mut dyn RowsSource,
    builders: Vec<StageBuilder>,
    tensors: Vec<TensorInfo>,
    device: String,
    estimate: plugin::Memory,
}

impl<'a> Upload<'a> {
    pub(crate) fn new<'t>(
        source: &'a mut dyn RowsSource,
        targets: impl Iterator<Item = &'t Target>,
        planned: &PlannedStage,
        (config, rows_max): (&Config, usize),
    ) -> Result<Self> {
        let mut builders = Vec::new();
        let mut estimate = plugin::Memory::default();
        for target in targets {
            if let Target::Device(plugin, device) = *target {
                let (part, quant) = (&planned.part, planned.quant);
                let options = StageOptions::new(config, part, quant, device, rows_max);
                estimate = plugin.stage_estimate(&options)?;
                builders.push(StageBuilder::new(plugin, &options)?);
            }
        }
        Ok(Upload {
            source,
            builders,
            tensors: Vec::new(),
            device: planned.target.name(),
            estimate,
        })
    }

    pub(crate) fn finish(self, planned: &PlannedStage) -> Result<(Vec<plugin::Stage>, StageFacts)> {
        let stages = self.builders.into_iter().map(StageBuilder::finish);
        let facts = StageFacts {
            planned: planned.clone(),
            tensors: self.tensors,
            estimate: self.estimate,
        };
        Ok((stages.collect::<Result<_>>()?, facts))
    }
}

impl WeightSource for Upload<'_> {
    fn set_quant(&mut self, quant: Quant) -> Result<()> {
        self.source.set_quant(quant)
    }

    fn vector(&mut self, tensor: &TensorAt<'_>) -> Result<Vector> {
        let vector = self.source.vector(tensor)?;
        let (tensor, layer) = tensor_of(&vector.name)?;
        for builder in &mut self.builders {
            builder
                .vector(tensor, layer, &vector.values)
                .map_err(|e| e.at(format_args!("tensor {}", vector.name)))?;
        }
        self.tensors
            .push(TensorInfo::of_vector(&vector, &self.device));
        Ok(Vector {
            name: vector.name,
            values: Vec::new(),
        })
    }

    fn matrix(&mut self, tensor: &TensorAt<'_>) -> Result<Matrix> {
        let (at, name, layout) = (tensor, tensor.name(), tensor.layout());
        let (tensor, layer) = tensor_of(&name)?;
        let builders = &mut self.builders;
        let mut size = None;
        let mut take = |rows: Rows<'_>| {
            size = Some(rows.size());
            builders.iter_mut().try_for_each(|builder| {
                let taken = builder.rows(tensor, layer, &rows);
                taken.map_err(|e| e.at(format_args!("tensor {name}")))
            })
        };
        self.source.matrix_rows(at, &mut take)?;
        let size = size.ok_or_else(|| Error::format(format!("tensor {name}: no rows")))?;
        self.tensors
            .push(TensorInfo::of_matrix(&name, &size, &self.device));
        Ok(Matrix {
            name,
            n_rows: size.n_rows,
            n_cols: size.n_cols,
            layout,
            weights: Weights::F32(Buffer::owned(Vec::new())),
        })
    }
}

/// The number of a tensor in a plugin's table, and its layer.
fn tensor_of(name: &str) -> Result<(u32, u32)> {
    const OUTSIDE: [(&str, u32); 6] = [
        ("emb.weight", abi::EMBEDDING),
        ("blocks.0.ln0.weight", abi::NORM_IN_WEIGHT),
        ("blocks.0.ln0.bias", abi::NORM_IN_BIAS),
        ("ln_out.weight", abi::NORM_OUT_WEIGHT),
        ("ln_out.bias", abi::NORM_OUT_BIAS),
        ("head.weight", abi::HEAD),
    ];
    const INSIDE: [(&str, u32); 18] = [
        ("ln1.weight", abi::ATT_NORM_WEIGHT),
        ("ln1.bias", abi::ATT_NORM_BIAS),
        ("att.time_mix_k", abi::ATT_MIX_KEY),
        ("att.time_mix_v", abi::ATT_MIX_VALUE),
        ("att.time_mix_r", abi::ATT_MIX_RECEPTANCE),
        ("att.decay_log", abi::ATT_DECAY_LOG),
        ("att.time_first", abi::ATT_BONUS),
        ("att.key.weight", abi::ATT_KEY),
        ("att.value.weight", abi::ATT_VALUE),
        ("att.receptance.weight", abi::ATT_RECEPTANCE),
        ("att.output.weight", abi::ATT_OUTPUT),
        ("ln2.weight", abi::FFN_NORM_WEIGHT),
        ("ln2.bias", abi::FFN_NORM_BIAS),
        ("ffn.time_mix_k", abi::FFN_MIX_KEY),
        ("ffn.time_mix_r", abi::FFN_MIX_RECEPTANCE),
        ("ffn.key.weight", abi::FFN_KEY),
        ("ffn.receptance.weight", abi::FFN_RECEPTANCE),
        ("ffn.value.weight", abi::FFN_VALUE),
    ];
    let find = |list: &[(&str, u32)], name: &str| {
        let found = list.iter().find(|(known, _)| *known == name);
        found.map(|(_, tensor)| *tensor)
    };
    let of_layer = |name: &str| {
        let (layer, rest) = name.strip_prefix("blocks.")?.split_once('.')?;
        Some((find(&INSIDE, rest)?, layer.parse().ok()?))
    };
    let found = find(&OUTSIDE, name).map(|tensor| (tensor, 0));
    found
        .or_else(|| of_layer(name))
        .ok_or_else(|| Error::unsupported(format!("tensor {name}: not one that devices know")))
}
