//! A network's weights on their way to devices.

use super::stages::StageFacts;
use crate::devices::plan::{PlannedStage, Target};
use crate::devices::plugin::{self, StageBuilder, StageOptions, TensorName};
use crate::error::{Error, Result};
use crate::networks::config::Config;
use crate::networks::source::{RowsSource, WeightSource};
use crate::networks::table::TensorAt;
use crate::networks::tensor_info::TensorInfo;
use crate::quant::matrix::{Matrix, Vector};
use crate::quant::parts::MatrixRows;
use crate::quant::Quant;

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
        let within = within_layer(tensor);
        for builder in &mut self.builders {
            builder
                .vector(within, &vector.values)
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
        let (name, layout, within) = (tensor.name(), tensor.layout(), within_layer(tensor));
        let builders = &mut self.builders;
        let mut size = None;
        let mut take = |rows: MatrixRows<'_>| {
            size = Some(rows.size());
            builders.iter_mut().try_for_each(|builder| {
                let taken = builder.rows(within, &rows);
                taken.map_err(|e| e.at(format_args!("tensor {name}")))
            })
        };
        self.source.matrix_rows(tensor, &mut take)?;
        let size = size.ok_or_else(|| Error::format(format!("tensor {name}: no rows")))?;
        self.tensors
            .push(TensorInfo::of_matrix(&name, &size, layout, &self.device));
        Ok(Matrix::placeholder(
            name,
            (size.n_rows, size.n_cols),
            layout,
        ))
    }
}

/// The name of a tensor within its layer, and the layer: `blocks.3.att.key.weight` is `att.key.weight` of layer 3.
fn within_layer(tensor: &TensorAt<'_>) -> TensorName<'static> {
    let layer = tensor.number_of_layer().map(|layer| layer as u32);
    (tensor.spec.name, layer)
}
