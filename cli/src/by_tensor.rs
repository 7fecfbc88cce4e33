//! `perplexity --by-tensor`: what quantising each matrix alone costs.
//!
//! The reference and the quantised model are opened once; a model with one quantised matrix shares the
//! weights of both, and is put together when its turn comes. All run side by side, so that the reference
//! is computed once and not again for each matrix.

use std::io::{self, Write};
use std::path::Path;

use anyhow::{bail, Result};
use rwkv_edge::{Model, OutputFile, Quant, TensorInfo};
use rwkv_edge_scoring::{Likelihood, Models, Outcome, Summary};
use serde_json::{json, Value};

use crate::bars;
use crate::paths;
use crate::perplexity::{add_summary, Report};

/// Model 0 is the reference, 1 has all matrices quantised, the others one each.
pub(crate) struct ByTensor {
    reference: Model,
    quantised: Model,
    /// Those that the quantisation changes.
    changed: Vec<TensorInfo>,
    /// Those of them that are looked at alone.
    matrices: Vec<TensorInfo>,
}

impl ByTensor {
    pub(crate) fn new(reference: Model, quantised: Model) -> Result<Self> {
        let of_reference = reference.tensors();
        let changed: Vec<_> = quantised
            .tensors()
            .into_iter()
            .zip(of_reference)
            .filter(|(ours, theirs)| ours.quant != theirs.quant)
            .map(|(ours, _)| ours)
            .collect();
        // Low-rank matrices stay floats: beside what integers do to others there is nothing to see of them.
        let is_integer = |tensor: &TensorInfo| !tensor.quant.is_float();
        let some_are_integers = changed.iter().any(is_integer);
        let is_looked_at = |tensor: &&TensorInfo| is_integer(tensor) || !some_are_integers;
        let matrices: Vec<_> = changed.iter().filter(is_looked_at).cloned().collect();
        if matrices.is_empty() {
            let quant = quantised.info().quant;
            bail!("--by-tensor: both models are {quant}, expected another --quant or --against");
        }
        let by_tensor = ByTensor {
            reference,
            quantised,
            changed,
            matrices,
        };
        // Says at once that the two do not belong together.
        by_tensor.get(1)?;
        Ok(by_tensor)
    }

    /// The matrices by what they did, the worst first. `outcomes` are those of all models.
    pub(crate) fn rank(&self, outcomes: Vec<Outcome>) -> Result<Ranking> {
        let mut outcomes = outcomes.into_iter();
        let (Some(reference), Some(all)) = (outcomes.next(), outcomes.next()) else {
            bail!("--by-tensor: nothing was measured");
        };
        let damage = |(tensor, outcome): (&TensorInfo, Outcome)| Damage {
            tensor: tensor.clone(),
            perplexity: outcome.likelihood.perplexity(),
            summary: outcome.divergence.summary(),
        };
        let mut damages: Vec<_> = self.matrices.iter().zip(outcomes).map(damage).collect();
        damages.sort_by(|a, b| b.summary.kl_mean.total_cmp(&a.summary.kl_mean));
        Ok(Ranking {
            quantised: self.quantised.info().quant,
            reference: (self.reference.info().quant, reference.likelihood),
            all,
            damages,
        })
    }
}

impl Models for ByTensor {
    fn n_models(&self) -> usize {
        2 + self.matrices.len()
    }

    fn get(&self, index: usize) -> rwkv_edge::Result<Model> {
        let chosen = match index {
            0 => return Ok(self.reference.clone()),
            1 => &self.changed[..],
            _ => &self.matrices[index - 2..=index - 2],
        };
        let names: Vec<_> = chosen.iter().map(|tensor| tensor.name.as_str()).collect();
        self.reference.with_matrices_of(&self.quantised, &names)
    }

    fn share_workspace(&self) -> bool {
        true
    }
}

/// What quantising one matrix did.
struct Damage {
    tensor: TensorInfo,
    perplexity: f64,
    summary: Summary,
}

/// All matrices, the worst first.
pub(crate) struct Ranking {
    pub(crate) quantised: Quant,
    pub(crate) reference: (Quant, Likelihood),
    /// What quantising all of them did.
    pub(crate) all: Outcome,
    damages: Vec<Damage>,
}

impl Ranking {
    /// Prints the ranking behind the report of the whole model.
    pub(crate) fn print(&self, report: &Report, json: bool) -> Result<()> {
        let mut stdout = io::stdout().lock();
        if json {
            let mut object = report.to_json();
            object["by_tensor"] = self.damages.iter().map(Damage::to_json).collect();
            writeln!(stdout, "{object}")?;
            return Ok(());
        }
        write!(stdout, "{}", report.to_text())?;
        let of_reference = self.reference.1.perplexity();
        writeln!(
            stdout,
            "\n{:32} {:>14} {:>10} {:>10} {:>8} {:>12}",
            format!("only this matrix {}", self.quantised),
            "shape",
            "KL mean",
            "KL p99",
            "same top",
            "perplexity"
        )?;
        for damage in &self.damages {
            writeln!(
                stdout,
                "{:32} {:>14} {:>10.7} {:>10.6} {:>6.2} % {:>+10.4} %",
                damage.tensor.name,
                damage.shape(),
                damage.summary.kl_mean,
                damage.summary.kl_p99,
                100.0 * damage.summary.top1_agreement,
                100.0 * (damage.perplexity / of_reference - 1.0),
            )?;
        }
        Ok(())
    }
}

impl Damage {
    fn shape(&self) -> String {
        let sizes = self.tensor.shape.iter().map(usize::to_string);
        sizes.collect::<Vec<_>>().join(" x ")
    }

    fn to_json(&self) -> Value {
        let mut object = json!({
            "name": self.tensor.name,
            "shape": self.tensor.shape,
            "quant": self.tensor.quant.name(),
            "bytes": self.tensor.size_bytes,
            "perplexity": self.perplexity,
        });
        add_summary(&mut object, &self.summary);
        object
    }
}

/// The chart to be drawn: its file is begun before the long work, which then is not done in vain.
pub(crate) struct Plot(OutputFile);

impl Plot {
    pub(crate) fn create(path: &Path) -> Result<Self> {
        paths::check_replaced(path, paths::Written::Chart)?;
        Ok(Plot(OutputFile::create(path)?))
    }

    pub(crate) fn write(self, ranking: &Ranking) -> Result<()> {
        let bar = |damage: &Damage| (damage.tensor.name.clone(), damage.summary.kl_mean);
        let bars: Vec<_> = ranking.damages.iter().map(bar).collect();
        let (quant, reference) = (ranking.quantised, ranking.reference.0);
        let title = format!("What {quant} costs, one matrix at a time");
        let label = format!("mean KL divergence from {reference}, nats a token");
        let mut file = self.0;
        file.write(bars::draw(&title, &label, &bars)?.as_bytes())?;
        file.commit()?;
        Ok(())
    }
}
