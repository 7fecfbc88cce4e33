//! RWKV-5.0 and 5.1 as the table has RWKV-5.2: decays and bonuses with a number for each channel.
//!
//! Before 5.2 all channels of a head had one decay and one bonus: their tensors have a number for each head, which here
//! stands for all of its channels, read again for each. Where such a bonus is called `time_first` the checkpoint holds its
//! logarithm; as `time_faaaa` it is the number itself, as in 5.2. web-rwkv, too, calls the bonus of 5.2 `time_first`, but
//! leaves it as it is: a number for each channel, and no logarithm.

#![forbid(unsafe_code)]

use std::collections::BTreeMap;

use super::dtype::Dtype;
use super::tensor::RawTensor;
use crate::networks::config::Sizes;
use crate::networks::table::{Architecture, Kind};

/// What the bonus is called beside `time_faaaa`; RWKV-4 has another tensor of this name.
const TIME_FIRST: &str = "time_first";
const TIME_FAAAA: &str = "time_faaaa";

/// How the channels of the time mixing are split.
#[derive(Clone, Copy)]
pub(super) struct Heads {
    n: usize,
    /// Channels of each.
    size: usize,
}

impl Heads {
    /// As the first layer shows them, by raw names. `None` of another architecture, and where no tensor shows them.
    pub(super) fn shown_by(
        architecture: &Architecture,
        tensors: &BTreeMap<String, RawTensor>,
    ) -> Option<Self> {
        if architecture.kind != Kind::V5 {
            return None;
        }
        let key = tensors.get("blocks.0.att.key.weight")?;
        let channels = *key.shape.first()?;
        let of = |name: &str| {
            let tensor = tensors.get(name)?;
            let n = match long_sides(&tensor.shape)[..] {
                // A row a head, which may hold a number for each channel.
                [n, size] if n.checked_mul(size) == Some(channels) => n,
                [n] if n < channels => n,
                [] => 1,
                // One row of all channels shows no heads.
                _ => return None,
            };
            (n > 0 && channels % n == 0).then_some(Heads {
                n,
                size: channels / n,
            })
        };
        of("blocks.0.att.time_faaaa").or_else(|| of("blocks.0.att.time_decay"))
    }

    /// Those of a model of these sizes. `None` of another architecture.
    pub(super) fn of_sizes(sizes: &Sizes) -> Option<Self> {
        let size = sizes.head_size;
        (sizes.architecture.kind == Kind::V5 && size > 0).then(|| Heads {
            n: sizes.n_attention / size,
            size,
        })
    }

    /// A decay or bonus with a row for each head, whether it has a number for each or for each channel. One of another
    /// size is left as it is, and will be refused.
    pub(super) fn rows_of(self, mut tensor: RawTensor) -> RawTensor {
        let Heads { n, size } = self;
        let long = long_sides(&tensor.shape);
        if long.len() > 1 || matches!(tensor.dtype, Dtype::Blocks(_)) {
            return tensor;
        }
        if tensor.len() == n && size > 1 {
            let mut sides = tensor.shape.iter().zip(&tensor.strides);
            let stride = sides
                .find(|(n, _)| **n != 1)
                .map_or(1, |(_, &stride)| stride);
            tensor.shape = vec![n, size];
            tensor.strides = vec![stride, 0];
            tensor.is_logarithm = is_time_first(&tensor.name) && !tensor.is_in_network_form;
        } else if Some(tensor.len()) == n.checked_mul(size) && tensor.is_contiguous() {
            return tensor.in_rows_of(size);
        }
        tensor
    }
}

/// Whether a tensor of RWKV-5 is a bonus under its other name.
pub(super) fn is_time_first(name: &str) -> bool {
    name.ends_with(TIME_FIRST)
}

/// The sides that are not 1.
fn long_sides(shape: &[usize]) -> Vec<usize> {
    shape.iter().copied().filter(|&n| n != 1).collect()
}

impl RawTensor {
    /// Whether it has one number for all channels of each head.
    pub(crate) fn is_per_head(&self) -> bool {
        matches!((&self.shape[..], &self.strides[..]), ([_, size], [_, 0]) if *size > 1)
    }

    /// One that [is](Self::is_per_head), as a raw checkpoint holds it, and its name there, of which `name` is the one that
    /// the table has.
    pub(crate) fn as_per_head(&self, name: &str) -> (String, Self) {
        let mut tensor = self.clone();
        tensor.shape.truncate(1);
        tensor.strides.truncate(1);
        tensor.is_logarithm = false;
        match self.is_logarithm {
            true => (name.replace(TIME_FAAAA, TIME_FIRST), tensor),
            false => (name.to_owned(), tensor),
        }
    }
}

/// What logarithms are of, each computed in f64 and rounded once.
pub(super) fn exponentials(numbers: &mut [f32]) {
    for number in numbers {
        *number = f64::from(*number).exp() as f32;
    }
}
