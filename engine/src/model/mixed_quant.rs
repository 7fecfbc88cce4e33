//! A network put together from two quantisations of one checkpoint.
//!
//! Sits between the networks and `model/mod.rs`. Nothing is read or converted: the new network shares the
//! weights of the two it is made of, so that trying out each of a hundred matrices costs no memory.

#![forbid(unsafe_code)]

use std::collections::BTreeMap;

use crate::error::{Error, Result};
use crate::networks::source::WeightSource;
use crate::networks::table::TensorAt;
use crate::networks::{Network, Tensor};
use crate::quant::matrix::{Layout, Matrix, Vector};
use crate::quant::Quant;

/// The network `base`, but for the matrices called `names`, which are those of `other`. Both have the
/// same sizes.
///
/// # Errors
///
/// [`ErrorKind::Argument`](crate::ErrorKind::Argument) for a name that is no matrix of `other`.
pub(crate) fn mix(base: &Network, other: &Network, names: &[&str]) -> Result<Network> {
    let mut parts = Parts::default();
    for tensor in base.tensors() {
        match tensor {
            Tensor::Vector(vector) => drop(parts.vectors.insert(&vector.name, vector)),
            Tensor::Matrix(matrix) => drop(parts.matrices.insert(&matrix.name, matrix)),
        }
    }
    let others: BTreeMap<_, _> = other.matrices().map(|m| (m.name.as_str(), m)).collect();
    for &name in names {
        let matrix = others.get(name).ok_or_else(|| {
            Error::argument(format!(
                "{name}: not a matrix of the model: see its tensors"
            ))
        })?;
        parts.matrices.insert(name, matrix);
    }
    Network::build(&mut parts, &base.config, &base.part())
}

/// Refuses networks with a matrix that is not of this quantisation.
pub(crate) fn check_quant(networks: &[&Network], quant: Quant) -> Result<()> {
    let mut all = networks.iter().copied().flat_map(Network::matrices);
    match all.find(|matrix| matrix.layout != Layout::LowRank && matrix.quant() != quant) {
        None => Ok(()),
        Some(matrix) => {
            let (name, found) = (&matrix.name, matrix.quant());
            let text = format!("tensor {name}: {found}, expected {quant} as the others");
            Err(Error::unsupported(text))
        }
    }
}

/// Tensors by name.
#[derive(Default)]
struct Parts<'a> {
    vectors: BTreeMap<&'a str, &'a Vector>,
    matrices: BTreeMap<&'a str, &'a Matrix>,
}

/// Sizes and names need no check: they are those of a network that was built the same way.
impl WeightSource for Parts<'_> {
    /// They are what they are.
    fn set_quant(&mut self, _quant: Quant) -> Result<()> {
        Ok(())
    }

    fn vector(&mut self, tensor: &TensorAt<'_>) -> Result<Vector> {
        let name = tensor.name();
        let vector = self.vectors.get(name.as_str()).copied().cloned();
        vector.ok_or_else(|| missing(&name))
    }

    fn matrix(&mut self, tensor: &TensorAt<'_>) -> Result<Matrix> {
        let name = tensor.name();
        let matrix = self.matrices.get(name.as_str()).copied().cloned();
        matrix.ok_or_else(|| missing(&name))
    }
}

fn missing(name: &str) -> Error {
    Error::format(format!("tensor {name}: missing"))
}
