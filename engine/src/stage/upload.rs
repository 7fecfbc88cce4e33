//! A network's weights on their way to devices.

use super::StageFacts;
use crate::error::{Error, Result};
use crate::info::TensorInfo;
use crate::matrix::{
    Buffer, Layout, Matrix, Quant, Rows, RowsSource, Vector, WeightSource, Weights,
};
use crate::plan::{PlannedStage, Target};
use crate::plugin::{self, StageBuilder, StageOptions, TensorName};
use crate::v4::Sizes;

/// Brings what a network asks for to devices, and gives placeholders.
pub(super) struct Upload<'a> {
    source: &'a mut dyn RowsSource,
    builders: Vec<StageBuilder>,
    tensors: Vec<TensorInfo>,
    device: String,
    estimate: plugin::Memory,
}

impl<'a> Upload<'a> {
    pub(super) fn new<'t>(
        source: &'a mut dyn RowsSource,
        targets: impl Iterator<Item = &'t Target>,
        planned: &PlannedStage,
        (sizes, epsilon, rows_max): (&Sizes, f32, usize),
    ) -> Result<Self> {
        let mut builders = Vec::new();
        let mut estimate = plugin::Memory::default();
        for target in targets {
            if let Target::Device(plugin, device) = *target {
                let (part, quant) = (&planned.part, planned.quant);
                let options = StageOptions::new(sizes, part, quant, device, rows_max, epsilon);
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

    pub(super) fn finish(self, planned: &PlannedStage) -> Result<(Vec<plugin::Stage>, StageFacts)> {
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

    fn vector(&mut self, name: String, n: usize) -> Result<Vector> {
        let vector = self.source.vector(name, n)?;
        let within = within_layer(&vector.name);
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

    fn matrix(
        &mut self,
        name: String,
        n_outputs: usize,
        n_inputs: usize,
        layout: Layout,
    ) -> Result<Matrix> {
        let within = within_layer(&name);
        let builders = &mut self.builders;
        let mut size = None;
        let mut take = |rows: Rows<'_>| {
            size = Some(rows.size());
            builders.iter_mut().try_for_each(|builder| {
                let taken = builder.rows(within, &rows);
                taken.map_err(|e| e.at(format_args!("tensor {name}")))
            })
        };
        self.source
            .matrix_rows(name.clone(), n_outputs, n_inputs, layout, &mut take)?;
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

/// The name of a tensor within its layer, and the layer: `blocks.3.att.key.weight` is `att.key.weight` of layer 3.
fn within_layer(name: &str) -> TensorName<'_> {
    let of_layer = || {
        let (layer, rest) = name.strip_prefix("blocks.")?.split_once('.')?;
        Some((rest, Some(layer.parse().ok()?)))
    };
    of_layer().unwrap_or((name, None))
}

#[cfg(test)]
mod tests {
    use super::within_layer;

    #[test]
    fn names_within_layers() {
        for (name, expected) in [
            ("emb.weight", ("emb.weight", None)),
            ("head.weight", ("head.weight", None)),
            ("blocks.0.ln0.bias", ("ln0.bias", Some(0))),
            ("blocks.31.att.key.weight", ("att.key.weight", Some(31))),
            ("blocks.x.att.key.weight", ("blocks.x.att.key.weight", None)),
        ] {
            assert_eq!(within_layer(name), expected);
        }
    }
}
