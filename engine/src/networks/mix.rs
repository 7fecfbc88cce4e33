//! Which format each matrix of a model of few bits is stored in, chosen for a size.
//!
//! What rounding does to predictions, the mean KL divergence, grows with the mean square of the errors, adds up over matrices,
//! and depends on what a matrix is for: each kind has its own share of it (docs/QUANTIZATION.md has the measurements). So the
//! mix of least expected damage within a size is found by giving bits, one after the other, to the matrix for which
//! they take most of it away, for what they cost.

#![forbid(unsafe_code)]

use std::collections::BTreeMap;

use super::config::Sizes;
use super::table::TensorAt;
use crate::error::{Error, Result};
use crate::quant::Quant;

/// How large a mixed model is to be at most.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Target {
    /// Thousandths of a bit a weight, as the mean over all matrices that are not floats: 4600 are 4.6 bits.
    MilliBits(u32),
    /// Bytes of a model file, with its tokenizer.
    FileBytes(u64),
}

/// Formats by the names of matrices.
#[derive(Clone, Debug)]
pub(crate) struct Mix {
    formats: BTreeMap<String, Quant>,
    /// What the model is called by.
    pub(crate) quant: Quant,
}

/// From the fewest bits on, with the mean square of rounding errors, relative to that of the weights: the same within 5 % on
/// every matrix of the trained models that were looked at.
const STEPS: [(Quant, f64); 4] = [
    (Quant::Q4, 6.2e-3),
    (Quant::Q5, 1.9e-3),
    (Quant::Q6, 4.8e-4),
    (Quant::Int8, 2.5e-5),
];
/// Beside its numbers a tensor of a model file takes so much of the header and of padding at most, and it is up to three.
const FILE_BYTES_OF_TENSOR: u64 = 3 * 384;
/// What a model file has besides: its settings, the names of adapters, a chat template.
const FILE_BYTES_OF_METADATA: u64 = 64 << 10;

/// A matrix on its way to more bits.
struct Candidate {
    name: String,
    damage: f64,
    /// Formats with their errors and bytes, each larger than the one in front of it.
    steps: Vec<(Quant, f64, u64)>,
    step: usize,
}

impl Candidate {
    /// `None` for what stays floats. `measured` is what the matrix in some format does to a text, which is known of all matrices
    /// or of none: the geometric mean of that and of what its kind does to most is taken, since a text of some hundred
    /// tokens says either too much or too little of each.
    fn of(tensor: &TensorAt<'_>, measured: Option<(Quant, f64)>) -> Option<Self> {
        let usual = tensor.spec.damage()? * tensor.len() as f64;
        let error_of = |quant| STEPS.iter().find(|step| step.0 == quant).map(|step| step.1);
        let damage = match measured.and_then(|(quant, damage)| Some(damage / error_of(quant)?)) {
            Some(damage) => (damage * usual).sqrt(),
            None => usual,
        };
        let mut steps: Vec<(Quant, f64, u64)> = Vec::with_capacity(STEPS.len());
        for (quant, error) in STEPS {
            let bytes = quant.stored_bytes(tensor.stored_shape());
            // Packed rows are filled up to 64 weights: in narrow matrices a better format may be the smaller one.
            while steps.last().is_some_and(|worse| worse.2 >= bytes) {
                steps.pop();
            }
            steps.push((quant, error, bytes));
        }
        Some(Candidate {
            name: tensor.name(),
            damage,
            steps,
            step: 0,
        })
    }

    fn least_bytes(&self) -> u64 {
        self.steps[0].2
    }

    /// What the next step costs, and what it saves for each byte of that.
    fn next(&self) -> Option<(u64, f64)> {
        let (_, error, bytes) = self.steps[self.step];
        let (_, better, more) = *self.steps.get(self.step + 1)?;
        let cost = more - bytes;
        Some((cost, self.damage * (error - better) / cost as f64))
    }
}

impl Mix {
    /// The mix for a model of these sizes, with `more_bytes` that its file has beside weights, such as a tokenizer. `measured`
    /// gives the format in which a matrix was tried and the damage that was measured, where it was.
    ///
    /// # Errors
    /// [`ErrorKind::Argument`](crate::ErrorKind::Argument) for a target below what four bits take.
    pub(crate) fn new(
        sizes: &Sizes,
        target: Target,
        more_bytes: u64,
        measured: impl Fn(&TensorAt<'_>) -> Option<(Quant, f64)>,
    ) -> Result<Self> {
        let tensors = sizes
            .architecture
            .tensors(sizes, &sizes.architecture.whole(sizes));
        let (mut candidates, mut n_weights) = (Vec::new(), 0);
        let mut other_bytes = more_bytes + FILE_BYTES_OF_METADATA;
        for tensor in tensors {
            other_bytes += FILE_BYTES_OF_TENSOR;
            match Candidate::of(&tensor, measured(&tensor)) {
                Some(candidate) => {
                    n_weights += tensor.len() as u64;
                    candidates.push(candidate);
                }
                None if tensor.spec.is_low_rank() => {
                    let shape = tensor.stored_shape();
                    other_bytes += Quant::F16.memory_bytes(shape, false);
                }
                None => other_bytes += 4 * tensor.len() as u64,
            }
        }
        let least: u64 = candidates.iter().map(Candidate::least_bytes).sum();
        let room = match target {
            Target::MilliBits(bits) => {
                let bytes = u128::from(bits) * u128::from(n_weights) / 8000;
                u64::try_from(bytes).unwrap_or(u64::MAX)
            }
            Target::FileBytes(bytes) => bytes.saturating_sub(other_bytes),
        };
        let Some(mut left) = room.checked_sub(least) else {
            return Err(Error::argument(match target {
                Target::MilliBits(bits) => format!(
                    "{:.3} bits a weight, expected {:.3} or more for this model",
                    f64::from(bits) / 1e3,
                    8.0 * least as f64 / n_weights as f64 + 5e-4
                ),
                Target::FileBytes(bytes) => format!(
                    "a file of {bytes} bytes, expected {} or more for this model",
                    least + other_bytes
                ),
            }));
        };
        // Which step saves most does not change by what others have; those that cost too much are passed over.
        loop {
            let affordable = candidates.iter().enumerate().filter_map(|(index, one)| {
                let (cost, saved) = one.next()?;
                (cost <= left).then_some((index, cost, saved))
            });
            // The first of equals, which is that of the first layer.
            let best = affordable.reduce(|best, next| if next.2 > best.2 { next } else { best });
            let Some((index, cost, _)) = best else { break };
            candidates[index].step += 1;
            left -= cost;
        }
        let bits = 8.0 * (room - left) as f64 / n_weights as f64;
        let quant = match bits {
            bits if bits < 5.2 => Quant::Q4,
            bits if bits < 6.2 => Quant::Q5,
            _ => Quant::Q6,
        };
        let formats = candidates.into_iter();
        let formats = formats.map(|one| (one.name, one.steps[one.step].0));
        Ok(Mix {
            formats: formats.collect(),
            quant,
        })
    }

    /// A model whose matrices have these formats, and others those of `quant`.
    pub(crate) fn of_formats(quant: Quant, formats: BTreeMap<String, Quant>) -> Self {
        Mix { formats, quant }
    }

    /// Bytes that matrices take more than in a model of the usual mix.
    pub(crate) fn more_bytes(&self, sizes: &Sizes) -> i64 {
        let tensors = sizes
            .architecture
            .tensors(sizes, &sizes.architecture.whole(sizes));
        let bytes = |tensor: TensorAt<'_>| {
            let [found, usual] = [self.format(&tensor), tensor.quant(self.quant)].map(|quant| {
                let bytes = quant.memory_bytes(tensor.stored_shape(), false);
                i64::try_from(bytes).unwrap_or(i64::MAX)
            });
            found - usual
        };
        tensors
            .filter(TensorAt::is_matrix)
            .map(bytes)
            .fold(0, i64::saturating_add)
    }

    /// How a matrix is stored.
    pub(crate) fn format(&self, tensor: &TensorAt<'_>) -> Quant {
        let chosen = self.formats.get(&tensor.name()).copied();
        chosen.unwrap_or_else(|| tensor.quant(self.quant))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::networks::tests::sizes;

    fn bytes(mix: &Mix, sizes: &Sizes) -> (u64, u64) {
        let tensors = sizes
            .architecture
            .tensors(sizes, &sizes.architecture.whole(sizes));
        let matrices = tensors.filter(|tensor| Candidate::of(tensor, None).is_some());
        matrices.fold((0, 0), |(bytes, n), tensor| {
            let of_tensor = mix.format(&tensor).stored_bytes(tensor.stored_shape());
            (bytes + of_tensor, n + tensor.len() as u64)
        })
    }

    fn by_kind(_: &TensorAt<'_>) -> Option<(Quant, f64)> {
        None
    }

    #[test]
    fn what_was_measured_decides() {
        let sizes = sizes([50_277, 768, 12, 768, 3072]);
        let format = |times: f64| {
            let measured = |tensor: &TensorAt<'_>| {
                let usual = tensor.spec.damage()? * tensor.len() as f64;
                let is_it = tensor.name() == "blocks.7.ffn.value.weight";
                Some((Quant::Q4, 6.2e-3 * usual * if is_it { times } else { 1.0 }))
            };
            let mix = Mix::new(&sizes, Target::MilliBits(4700), 0, measured).expect("enough");
            mix.formats["blocks.7.ffn.value.weight"]
        };
        assert_eq!(format(1.0), Quant::Q4);
        assert_eq!(format(900.0), Quant::Q6);
        assert_eq!(format(1e6), Quant::Int8);
    }

    #[test]
    fn mixes_fill_what_they_are_given_and_no_more() {
        let sizes = sizes([50_277, 768, 12, 768, 3072]);
        let usual = |quant| bytes(&Mix::of_formats(quant, BTreeMap::new()), &sizes).0;
        let mut last = 0;
        for bits in [4200, 4600, 4750, 5000, 5500, 6100, 7000, 8000, 9000] {
            let mix = Mix::new(&sizes, Target::MilliBits(bits), 0, by_kind).expect("enough");
            let (bytes, n) = bytes(&mix, &sizes);
            let found = 8000.0 * bytes as f64 / n as f64;
            assert!(found <= f64::from(bits), "{bits}: {found}");
            assert!(found >= f64::from(bits.min(8000)) - 60.0, "{bits}: {found}");
            assert_eq!(
                mix.more_bytes(&sizes),
                bytes as i64 - usual(mix.quant) as i64
            );
            assert!(bytes >= last);
            last = bytes;
        }
        let embedding = |bits| {
            let mix = Mix::new(&sizes, Target::MilliBits(bits), 0, by_kind).expect("enough");
            (
                mix.formats["emb.weight"],
                mix.formats["blocks.3.ffn.value.weight"],
            )
        };
        assert_eq!(embedding(4300).1, Quant::Q4);
        assert_eq!(
            embedding(4500).0,
            Quant::Q5,
            "what matters most comes first"
        );
        assert_eq!(embedding(9000), (Quant::Int8, Quant::Int8));
    }

    #[test]
    fn narrow_matrices_have_no_format_that_is_larger_and_worse() {
        for n_embd in [40, 48, 96, 130] {
            let sizes = sizes([300, n_embd, 3, n_embd, 4 * n_embd]);
            for bits in [5200, 6500, 8500] {
                if let Ok(mix) = Mix::new(&sizes, Target::MilliBits(bits), 0, by_kind) {
                    let (bytes, n) = bytes(&mix, &sizes);
                    assert!(8000.0 * bytes as f64 / n as f64 <= f64::from(bits));
                }
            }
            let most = Mix::new(&sizes, Target::MilliBits(12_000), 0, by_kind).expect("enough");
            assert!(
                most.formats.values().all(|quant| *quant == Quant::Int8),
                "{n_embd}"
            );
        }
    }

    #[test]
    fn targets_that_are_too_small_say_what_would_do() {
        let sizes = sizes([50_277, 768, 12, 768, 3072]);
        let error = Mix::new(&sizes, Target::MilliBits(4000), 0, by_kind).expect_err("too few");
        assert!(
            error
                .to_string()
                .contains("4.000 bits a weight, expected 4.1"),
            "{error}"
        );
        let error =
            Mix::new(&sizes, Target::FileBytes(1 << 20), 5000, by_kind).expect_err("too few");
        let least = error.to_string();
        let least = least
            .split("expected ")
            .nth(1)
            .and_then(|text| text.split(' ').next());
        let least: u64 = least.and_then(|n| n.parse().ok()).expect("a number");
        Mix::new(&sizes, Target::FileBytes(least), 5000, by_kind).expect("as it said");
        Mix::new(&sizes, Target::FileBytes(least - 1), 5000, by_kind).expect_err("one less");
    }
}
