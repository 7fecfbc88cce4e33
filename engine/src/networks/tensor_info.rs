//! Facts about the tensors of a network, as `info` shows them.

#![forbid(unsafe_code)]

use super::Tensor;
use crate::files::FileBytes;
use crate::quant::matrix::{Layout, Vector};
use crate::quant::parts::MatrixSize;
use crate::quant::Quant;

/// Where tensors are that no device has.
pub(crate) const CPU: &str = "cpu";

/// Facts about one tensor of an open model.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct TensorInfo {
    /// As in a model file.
    pub name: String,
    /// As stored, slowest dimension first.
    pub shape: Vec<usize>,
    /// How its numbers are stored.
    pub quant: Quant,
    /// Of the numbers and scales.
    pub size_bytes: u64,
    /// Where it is: `cpu`, or a plugin's device such as `cuda:0`.
    pub device: String,
    /// Whether it is used in place from a file.
    pub(crate) is_in_file: bool,
    /// Whether it is in a copy of a file.
    pub(crate) is_in_huge_pages: bool,
    /// Whether it is a small matrix that stays floats.
    pub(crate) is_low_rank: bool,
    /// Of a row with its scale; 0 for vectors.
    pub(crate) row_size_bytes: u64,
}

impl TensorInfo {
    pub(crate) fn of_vector(vector: &Vector, device: &str) -> Self {
        TensorInfo {
            name: vector.name.clone(),
            shape: vec![vector.len()],
            quant: Quant::F32,
            size_bytes: 4 * vector.len() as u64,
            device: device.to_owned(),
            is_in_file: false,
            is_in_huge_pages: false,
            is_low_rank: false,
            row_size_bytes: 0,
        }
    }

    pub(crate) fn of_matrix(name: &str, size: &MatrixSize, layout: Layout, device: &str) -> Self {
        TensorInfo {
            name: name.to_owned(),
            shape: vec![size.n_rows, size.n_cols],
            quant: size.quant,
            size_bytes: size.size_bytes(),
            device: device.to_owned(),
            is_in_file: false,
            is_in_huge_pages: false,
            is_low_rank: layout == Layout::LowRank,
            row_size_bytes: size.row_size_bytes(),
        }
    }

    /// Of a tensor that the CPU reads.
    pub(crate) fn of(tensor: &Tensor<'_>) -> Self {
        match tensor {
            Tensor::Vector(vector) => Self::of_vector(vector, CPU),
            Tensor::Matrix(matrix) => {
                let is_copy = matrix.in_file_bytes().map(FileBytes::is_in_huge_pages);
                TensorInfo {
                    is_in_file: is_copy == Some(false),
                    is_in_huge_pages: is_copy == Some(true),
                    ..Self::of_matrix(&matrix.name, &matrix.size(), matrix.layout, CPU)
                }
            }
        }
    }
}
