//! A network put together from two quantisations of one checkpoint.
//!
//! Sits between the networks and `model/mod.rs`. Nothing is read or converted: the new network shares the
//! weights of the two it is made of, so that trying out each of a hundred matrices costs no memory.

#![forbid(unsafe_code)]

use std::collections::BTreeMap;

use super::{Loaded, Model, Setup};
use crate::devices::stages::Stages;
use crate::error::{Error, Result};
use crate::memory::budget::Budget;
use crate::networks::config::Config;
use crate::networks::source::WeightSource;
use crate::networks::table::TensorAt;
use crate::networks::{Network, Tensor};
use crate::quant::matrix::{Matrix, Vector};
use crate::quant::Quant;

impl Model {
    /// This model, but for the matrices called `names` (as [`tensors`](Self::tensors) calls them), which
    /// are those of `other`, the same checkpoint opened with another quantisation. Weights and threads
    /// are shared with this model, not copied. Shows what quantising a part of a model costs.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Argument`](crate::ErrorKind::Argument) when `other` is of another checkpoint, or a name is not that of a matrix.
    pub fn with_matrices_of(&self, other: &Model, names: &[&str]) -> Result<Self> {
        let (base, other) = (&*self.0, &*other.0);
        if !base.state_layout().fits(&other.state_layout()) {
            let text = format!("is of another checkpoint than {}", base.place);
            return Err(Error::argument(text).at(&other.place));
        }
        let network = mix(
            base.stages.one_network()?,
            other.stages.one_network()?,
            names,
        )?;
        let quant = match check_quant(&[&network], other.quant) {
            Ok(()) => other.quant,
            Err(_) => base.quant,
        };
        let loaded = Loaded {
            place: base.place.clone(),
            config: base.config,
            stages: Stages::of_network(network, quant),
            fingerprint: base.fingerprint,
            tokenizer: base.tokenizer.file.clone(),
            tokenizer_search: base.tokenizer.searched.clone(),
            // Its checksum is not that of these weights.
            model_file: None,
            stored_blocks: base.stored_blocks,
            adapters: base.adapters.clone(),
            correction: base.correction.clone(),
            initial: self.initial().cloned(),
        };
        let setup = Setup {
            quant,
            pool: base.pool.clone(),
            kernels: base.kernels,
            no_sparsity: base.no_sparsity,
            budget: Budget::default(),
            note: None,
            path: None,
        };
        Ok(Model::assemble(loaded, setup))
    }
}

/// The network `base`, but for the matrices called `names`, which are those of `other`. Both have the
/// same sizes.
///
/// # Errors
///
/// [`ErrorKind::Argument`](crate::ErrorKind::Argument) for a name that is no matrix of `other`.
pub(crate) fn mix(base: &Network, other: &Network, names: &[&str]) -> Result<Network> {
    let mut parts = Parts::default();
    parts.insert(base);
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

/// One network of parts that follow each other. Weights are shared with them.
///
/// # Errors
/// When a part is missing.
pub(crate) fn joined(networks: &[Network], config: &Config) -> Result<Network> {
    let mut parts = Parts::default();
    networks.iter().for_each(|network| parts.insert(network));
    let sizes = &config.sizes;
    Network::build(&mut parts, config, &sizes.architecture.whole(sizes))
}

/// Refuses networks with a matrix that is not of this quantisation.
pub(crate) fn check_quant(networks: &[&Network], quant: Quant) -> Result<()> {
    let mut all = networks.iter().copied().flat_map(Network::matrices);
    // Of models of integers each matrix may have a format of its own: a file says of each what it is.
    let fits = |matrix: &&Matrix| {
        let wanted = matrix.layout.quant(quant);
        let are_integers = matrix.quant().floats().is_none() && wanted.floats().is_none();
        matrix.quant() == wanted || (are_integers && quant.is_mixed())
    };
    match all.find(|matrix| !fits(matrix)) {
        None => Ok(()),
        Some(matrix) => {
            let (name, found) = (&matrix.name, matrix.quant());
            let wanted = matrix.layout.quant(quant);
            let text =
                format!("tensor {name}: {found}, expected {wanted} as in a model of {quant}");
            Err(Error::unsupported(text))
        }
    }
}

/// Tensors by name.
#[derive(Default)]
pub(crate) struct Parts<'a> {
    vectors: BTreeMap<&'a str, &'a Vector>,
    matrices: BTreeMap<&'a str, &'a Matrix>,
}

impl<'a> Parts<'a> {
    pub(crate) fn insert(&mut self, network: &'a Network) {
        for tensor in network.tensors() {
            match tensor {
                Tensor::Vector(vector) => drop(self.vectors.insert(&vector.name, vector)),
                Tensor::Matrix(matrix) => self.insert_matrix(matrix),
            }
        }
    }

    /// In the place of one of that name.
    pub(crate) fn insert_matrix(&mut self, matrix: &'a Matrix) {
        self.matrices.insert(&matrix.name, matrix);
    }
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
