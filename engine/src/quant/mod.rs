//! How weights are stored: the quantisations, and matrices as the kernels read them.
//!
//! ```text
//! blocks.rs    matrices as rows of f32, block by block, from wherever they come
//! convert.rs   from such rows to weights, whole or in pieces for devices
//! parts.rs     what a stored matrix consists of: tensors of a model file, parts for devices
//! floats.rs    f32 and f16
//! scales.rs    what formats of integers have beside these: scales of rows and columns
//! int8.rs      8-bit integers
//! packed.rs    4, 5 and 6 bits in blocks with scales of their own
//! matrix.rs    numbers in memory or in a file, and a matrix with its name and shape
//! ```
//!
//! Nothing outside knows a quantisation but by asking here, neither the readers and writers of files nor products, devices
//! or the estimates of memory. **To add one:**
//!
//! 1. kernels in `math/kernels/`: a scalar one and its tests first, they are the specification;
//! 2. a file here with a type that implements [`Format`], in which the compiler and the comments say what is wanted. It
//!    opens with the formula and the layout;
//! 3. the lines of this file that list all of them: [`Quant`], [`Quant::ALL`], [`Weights`], `of_quant!`, `of_weights!`,
//!    and `FloatSums` with `of_floats!` or `IntegerSums` with `of_integers!`, by what products are added up in.
//!
//! The tests of this folder and of `products/` then go over it. docs/FORMAT.md and docs/PLUGINS.md have its parts, and it gets
//! its name in the command's options, `engine/capi` and device maps.

#![forbid(unsafe_code)]

use std::ops::Range;

use half::f16;

use crate::error::{Error, Result};
use crate::files::FileBytes;
use crate::math::kernels::{self, ActivationBounds, KernelSet};
use crate::math::threads::ColumnBlock;

pub(crate) mod blocks;
pub(crate) mod convert;
pub(crate) mod exponents;
pub(crate) mod feedback;
mod floats;
mod int8;
pub(crate) mod matrix;
mod packed;
pub(crate) mod parts;
mod scales;
#[cfg(test)]
mod tests;

use blocks::Blocks;
use int8::Int8;
use matrix::{Buffer, Layout};
use packed::Packed;
use parts::{check_sizes, present, BadPart, Numbers, PartKind};

/// How the matrices of a model are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Quant {
    /// 32-bit floats.
    F32,
    /// 16-bit floats.
    F16,
    /// 8-bit integers with a scale for each row and each column; see docs/QUANTIZATION.md.
    Int8,
    /// 6 bits in blocks of 32, each with a scale. The first layer's output matrix has 8.
    Q6,
    /// 5 bits, likewise. Matrices whose errors matter most have 6.
    Q5,
    /// 4 bits, likewise. Matrices whose errors matter most have 5.
    Q4,
}

/// The numbers of a matrix. A clone shares them.
#[derive(Clone)]
pub(crate) enum Weights {
    F32(Buffer<f32>),
    F16(Buffer<f16>),
    Int8(Int8),
    Q6(Packed<6>),
    Q5(Packed<5>),
    Q4(Packed<4>),
}

/// The same of all quantisations, `$format` being the type that a [`Quant`] stands for.
macro_rules! of_quant {
    ($quant:expr, $format:ident => $answer:expr) => {
        match $quant {
            $crate::quant::Quant::F32 => {
                type $format = $crate::quant::Buffer<f32>;
                $answer
            }
            $crate::quant::Quant::F16 => {
                type $format = $crate::quant::Buffer<half::f16>;
                $answer
            }
            $crate::quant::Quant::Int8 => {
                type $format = $crate::quant::Int8;
                $answer
            }
            $crate::quant::Quant::Q6 => {
                type $format = $crate::quant::Packed<6>;
                $answer
            }
            $crate::quant::Quant::Q5 => {
                type $format = $crate::quant::Packed<5>;
                $answer
            }
            $crate::quant::Quant::Q4 => {
                type $format = $crate::quant::Packed<4>;
                $answer
            }
        }
    };
}
use of_quant;

/// The same of the weights of all quantisations.
macro_rules! of_weights {
    ($weights:expr, $inner:ident => $answer:expr) => {
        match $weights {
            Weights::F32($inner) => $answer,
            Weights::F16($inner) => $answer,
            Weights::Int8($inner) => $answer,
            Weights::Q6($inner) => $answer,
            Weights::Q5($inner) => $answer,
            Weights::Q4($inner) => $answer,
        }
    };
}

/// Takes all parts of some rows, also those that may be left out.
type TakeParts<'a> = dyn FnMut(Range<usize>, &[&[u8]]) -> Result<()> + 'a;

/// What a quantisation has to say of itself. A value is the weights of one matrix, stored as rows of `n_cols` numbers.
trait Format: Sized + Into<Weights> {
    const QUANT: Quant;
    /// On the command line and in model files.
    const NAME: &'static str;
    /// The type of the weights where these are nothing but floats. Tensors of checkpoints that have it are then used in
    /// place, and a model file can be opened as any other quantisation.
    const FLOATS: Option<Numbers> = None;

    /// What a matrix consists of, the weights first, which are by rows and are not looked at when a file is opened.
    fn parts(n_rows: usize, n_cols: usize) -> Vec<PartKind>;

    /// Bytes that a matrix keeps in memory besides its parts.
    fn kept_bytes(_n_rows: u64, _n_cols: u64) -> u64 {
        0
    }

    /// Refuses numbers that a part must not have; `index` counts the parts, and is not 0.
    fn check_part(_index: usize, _bytes: &[u8]) -> std::result::Result<(), String> {
        Ok(())
    }

    /// Weights of these parts, which are as large as they have to be and were checked. The first is used in place:
    /// `None` where its address does not allow that.
    ///
    /// # Errors
    /// [`ErrorKind::Memory`](crate::ErrorKind::Memory) for what is copied.
    fn from_parts(shape: (usize, usize), parts: &[Option<FileBytes>]) -> Result<Option<Self>>;

    /// The first part.
    fn values(&self) -> &[u8];

    /// The other parts, also those that may be left out.
    fn beside(&self) -> Vec<&[u8]> {
        Vec::new()
    }

    /// The first part, where it lies in a file.
    fn in_file_bytes(&self) -> Option<&FileBytes>;

    /// Makes weights of rows, in memory of their own. The result must not depend on blocks or threads.
    fn convert(blocks: &mut Blocks<'_>) -> Result<Self>;

    /// As [`convert`](Self::convert), but gives the rows of one block after the other to `take`.
    fn convert_in_pieces(blocks: &mut Blocks<'_>, take: &mut TakeParts<'_>) -> Result<()>;

    /// Widens one row.
    fn read_row(&self, row: usize, out: &mut [f32]);

    /// The first of these stored weights that is NaN or infinite, with its index among them; reads them all, if they
    /// can be.
    fn first_not_finite(&self, _weights: Range<usize>) -> Option<(usize, f32)> {
        None
    }

    /// See [`Weights::input_factors`].
    fn input_factors(&self, _layout: Layout) -> Option<&[f32]> {
        None
    }

    /// See [`Weights::activation_bounds`].
    fn activation_bounds(&self) -> ActivationBounds {
        ActivationBounds::INT8
    }

    /// See [`Weights::dots`].
    fn dots(
        &self,
        kernels: KernelSet,
        n_cols: usize,
        inputs: &Inputs<'_>,
        room: Room<'_>,
        out: &mut ColumnBlock<'_, f32>,
    );

    /// See [`Weights::by_input`].
    fn by_input(&self) -> ByInput<'_>;
}

impl Quant {
    /// All there are.
    pub const ALL: &'static [Quant] = &[
        Quant::F32,
        Quant::F16,
        Quant::Int8,
        Quant::Q6,
        Quant::Q5,
        Quant::Q4,
    ];

    /// The name on the command line and in model files, such as `int8`.
    pub fn name(self) -> &'static str {
        of_quant!(self, F => F::NAME)
    }

    /// The quantisation of that name.
    pub fn from_name(name: &str) -> Option<Self> {
        let mut all = Self::ALL.iter().copied();
        all.find(|quant| quant.name() == name)
    }

    /// All names, for texts: `f32, f16, ... or q4`.
    pub(crate) fn names() -> String {
        let mut names: Vec<_> = Self::ALL.iter().map(|quant| quant.name()).collect();
        let last = names.pop().unwrap_or_default();
        format!("{} or {last}", names.join(", "))
    }

    /// Whether matrices of a model that is stored so have different formats; see `TensorAt::quant`.
    pub(crate) fn is_mixed(self) -> bool {
        matches!(self, Quant::Q6 | Quant::Q5 | Quant::Q4)
    }

    /// What matrices are stored as whose errors matter most, in a mixed model.
    pub(crate) fn with_more_bits(self) -> Self {
        match self {
            Quant::Q4 => Quant::Q5,
            Quant::Q5 => Quant::Q6,
            _ => self,
        }
    }

    /// Whether matrices are floats, and not integers with scales.
    pub fn is_float(self) -> bool {
        self.floats().is_some()
    }

    /// The type of the weights where they are nothing but floats.
    pub(crate) fn floats(self) -> Option<Numbers> {
        of_quant!(self, F => F::FLOATS)
    }

    /// Whether products of f32 weights and very many rows go to the gemm crate; see `products/`.
    pub(crate) fn has_gemm(self) -> bool {
        self.floats() == Some(Numbers::F32)
    }

    /// What a matrix consists of, the weights first.
    pub(crate) fn parts(self, n_rows: usize, n_cols: usize) -> Vec<PartKind> {
        of_quant!(self, F => F::parts(n_rows, n_cols))
    }

    /// Bytes of all parts of a matrix, also of those that may be left out.
    pub(crate) fn stored_bytes(self, (n_rows, n_cols): (usize, usize)) -> u64 {
        let parts = self.parts(n_rows, n_cols);
        let bytes = parts.iter().map(PartKind::size_bytes);
        bytes.fold(0, u64::saturating_add)
    }

    /// Bytes of one row of weights, without what belongs to it.
    pub(crate) fn row_values_bytes(self, n_cols: usize) -> u64 {
        let parts = self.parts(1, n_cols);
        parts.first().map_or(0, PartKind::size_bytes)
    }

    /// Bytes of memory that a matrix takes at most; of one whose weights are used where they lie, only what belongs to
    /// them.
    pub(crate) fn memory_bytes(self, (n_rows, n_cols): (usize, usize), in_place: bool) -> u64 {
        let parts = self.parts(n_rows, n_cols);
        let parts = parts.iter().skip(usize::from(in_place));
        let kept = of_quant!(self, F => F::kept_bytes(n_rows as u64, n_cols as u64));
        parts.fold(kept, |bytes, part| bytes.saturating_add(part.size_bytes()))
    }

    /// Refuses numbers that must not be in the parts beside the weights.
    fn check_beside(self, beside: &[Option<FileBytes>]) -> std::result::Result<(), BadPart> {
        for (index, part) in (1..).zip(beside) {
            let Some(bytes) = part else { continue };
            of_quant!(self, F => F::check_part(index, bytes)).map_err(|text| BadPart {
                suffix: self.parts(1, 1)[index].suffix,
                error: Error::format(text),
            })?;
        }
        Ok(())
    }
}

impl std::fmt::Display for Quant {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// Rows of activations of a product, in the form that [`Weights::input_factors`] asks for. The other form is of the
/// same size, and its numbers mean nothing.
pub(crate) struct Inputs<'a> {
    pub(crate) floats: kernels::Rows<'a, f32>,
    pub(crate) integers: kernels::Rows<'a, i16>,
    /// What the integers of a row are to be multiplied by.
    pub(crate) scales: &'a [f32],
}

impl Inputs<'_> {
    /// Integer sums (rows, outputs) back to numbers, those of the outputs from `first` on; `factors` belong to these.
    #[inline]
    fn rescale(
        &self,
        kernels: KernelSet,
        sums: &[i32],
        factors: &[f32],
        first: usize,
        out: &mut ColumnBlock<'_, f32>,
    ) {
        for (row, sums) in sums.chunks_exact(factors.len()).enumerate() {
            let out = &mut out.row_mut(row)[first..][..factors.len()];
            kernels.rescale_sums(sums, self.scales[row], factors, out);
        }
    }
}

/// Memory for intermediate results.
pub(crate) struct Room<'a> {
    /// (rows of activations, outputs)
    pub(crate) sums: &'a mut [i32],
    /// (rows of activations, outputs)
    pub(crate) product: &'a mut [f32],
    /// (some rows of weights, inputs): weights as integers of 16 bits
    pub(crate) widened: &'a mut [i16],
}

/// What a quantisation says besides, if its products are added up in floats where the matrix is stored row per input.
trait SumsOfFloats {
    /// See [`FloatSums::gather`].
    fn gather(
        &self,
        kernels: KernelSet,
        inputs: Range<usize>,
        rows: &[u32],
        values: &[f32],
        out: &mut [f32],
    );

    /// See [`FloatSums::pack`].
    fn pack(
        &self,
        kernels: KernelSet,
        n_cols: usize,
        inputs: Range<usize>,
        outputs: Range<usize>,
        panel: &mut [f32],
    );
}

/// What a quantisation says besides, if its products are added up in integers.
trait SumsOfIntegers {
    /// See [`IntegerSums::output_factors`].
    fn output_factors(&self, layout: Layout) -> &[f32];

    /// See [`IntegerSums::gather`].
    fn gather(
        &self,
        kernels: KernelSet,
        inputs: Range<usize>,
        rows: &[u32],
        values: &[i16],
        out: &mut [i32],
    );

    /// See [`IntegerSums::pack`].
    fn pack(
        &self,
        kernels: KernelSet,
        n_cols: usize,
        inputs: Range<usize>,
        outputs: Range<usize>,
        panel: &mut [i16],
    );
}

/// Weights stored row per input, by what their products with activations are added up in.
#[derive(Clone, Copy)]
pub(crate) enum ByInput<'a> {
    /// In f32, in one order.
    Floats(FloatSums<'a>),
    /// In integers, which are exact in any order.
    Integers(IntegerSums<'a>),
}

/// Those of which a [`ByInput`] is integers.
#[derive(Clone, Copy)]
pub(crate) enum IntegerSums<'a> {
    Int8(&'a Int8),
    Q6(&'a Packed<6>),
    Q5(&'a Packed<5>),
    Q4(&'a Packed<4>),
}

macro_rules! of_integers {
    ($weights:expr, $inner:ident => $answer:expr) => {
        match $weights {
            IntegerSums::Int8($inner) => $answer,
            IntegerSums::Q6($inner) => $answer,
            IntegerSums::Q5($inner) => $answer,
            IntegerSums::Q4($inner) => $answer,
        }
    };
}

impl<'a> IntegerSums<'a> {
    /// What integer sums are multiplied by, one a matrix output.
    pub(crate) fn output_factors(self, layout: Layout) -> &'a [f32] {
        of_integers!(self, w => w.output_factors(layout))
    }

    /// `out[o] = sum over i of values[i] * weight[first + rows[i], o]` in integers, `first` being the first of the stored
    /// rows `inputs`.
    #[inline]
    pub(crate) fn gather(
        self,
        kernels: KernelSet,
        inputs: Range<usize>,
        rows: &[u32],
        values: &[i16],
        out: &mut [i32],
    ) {
        of_integers!(self, w => w.gather(kernels, inputs, rows, values, out));
    }

    /// Widens outputs `outputs`, at most 16, of the stored rows `inputs` of `n_cols` to a panel.
    pub(crate) fn pack(
        self,
        kernels: KernelSet,
        n_cols: usize,
        inputs: Range<usize>,
        outputs: Range<usize>,
        panel: &mut [i16],
    ) {
        of_integers!(self, w => w.pack(kernels, n_cols, inputs, outputs, panel));
    }
}

/// Those of which a [`ByInput`] is floats.
#[derive(Clone, Copy)]
pub(crate) enum FloatSums<'a> {
    F32(&'a Buffer<f32>),
    F16(&'a Buffer<f16>),
}

macro_rules! of_floats {
    ($weights:expr, $inner:ident => $answer:expr) => {
        match $weights {
            FloatSums::F32($inner) => $answer,
            FloatSums::F16($inner) => $answer,
        }
    };
}

impl FloatSums<'_> {
    /// `out[o] = sum over i of values[i] * weight[first + rows[i], o]`, `first` being the first of the stored rows
    /// `inputs`.
    pub(crate) fn gather(
        self,
        kernels: KernelSet,
        inputs: Range<usize>,
        rows: &[u32],
        values: &[f32],
        out: &mut [f32],
    ) {
        of_floats!(self, w => w.gather(kernels, inputs, rows, values, out));
    }

    /// Widens outputs `outputs`, at most 16, of the stored rows `inputs` of `n_cols` to a panel.
    pub(crate) fn pack(
        self,
        kernels: KernelSet,
        n_cols: usize,
        inputs: Range<usize>,
        outputs: Range<usize>,
        panel: &mut [f32],
    ) {
        of_floats!(self, w => w.pack(kernels, n_cols, inputs, outputs, panel));
    }
}

impl Weights {
    /// Weights (n_rows, n_cols) of these parts, `None` being what is left out. The weights themselves are used in place
    /// and not looked at; there is no result where their address does not allow that.
    ///
    /// # Errors
    /// A part that is missing, of another size than it has to be, that has numbers it must not have, or for which there is
    /// no memory.
    pub(crate) fn from_parts(
        quant: Quant,
        shape: (usize, usize),
        parts: &[Option<FileBytes>],
    ) -> std::result::Result<Option<Self>, BadPart> {
        check_sizes(&quant.parts(shape.0, shape.1), parts)?;
        quant.check_beside(&parts[1..])?;
        let made = of_quant!(quant, F => F::from_parts(shape, parts).map(|made| made.map(F::into)));
        made.map_err(|error| BadPart { suffix: "", error })
    }

    pub(crate) fn quant(&self) -> Quant {
        fn of<F: Format>(_: &F) -> Quant {
            F::QUANT
        }
        of_weights!(self, w => of(w))
    }

    /// The weights as they lie in memory, without what belongs to them.
    #[inline]
    pub(crate) fn values(&self) -> &[u8] {
        of_weights!(self, w => w.values())
    }

    /// The parts of a matrix (n_rows, n_cols), without those that are left out.
    fn parts(&self, (n_rows, n_cols): (usize, usize)) -> Vec<(PartKind, &[u8])> {
        let beside = of_weights!(self, w => w.beside());
        let parts = std::iter::once(self.values()).chain(beside);
        present(self.quant().parts(n_rows, n_cols), parts)
    }

    /// The same as [`values`](Self::values), where they lie in a file.
    pub(crate) fn in_file_bytes(&self) -> Option<&FileBytes> {
        of_weights!(self, w => w.in_file_bytes())
    }

    fn read_row(&self, row: usize, out: &mut [f32]) {
        of_weights!(self, w => w.read_row(row, out));
    }

    /// The first NaN or infinity in stored rows of `n_cols`, with its index in these rows.
    fn first_not_finite(&self, rows: Range<usize>, n_cols: usize) -> Option<(usize, f32)> {
        of_weights!(self, w => w.first_not_finite(rows.start * n_cols..rows.end * n_cols))
    }

    /// f32 weights, for the gemm crate.
    #[cfg(feature = "gemm")]
    pub(crate) fn gemm(&self) -> Option<&[f32]> {
        match self {
            Weights::F32(w) => Some(w.as_slice()),
            _ => None,
        }
    }

    /// What activations are multiplied by before they are rounded to integers, one an input. Where there are none,
    /// products want them as they are.
    pub(crate) fn input_factors(&self, layout: Layout) -> Option<&[f32]> {
        of_weights!(self, w => w.input_factors(layout))
    }

    /// How large activations may be that are rounded to integers.
    pub(crate) fn activation_bounds(&self) -> ActivationBounds {
        of_weights!(self, w => w.activation_bounds())
    }

    /// Products with weights stored row per output, in rows of `n_cols`: those with all inputs of the outputs that `out`
    /// has.
    #[inline]
    pub(crate) fn dots(
        &self,
        kernels: KernelSet,
        n_cols: usize,
        inputs: &Inputs<'_>,
        room: Room<'_>,
        out: &mut ColumnBlock<'_, f32>,
    ) {
        of_weights!(self, w => w.dots(kernels, n_cols, inputs, room, out));
    }

    /// For products with weights stored row per input.
    #[inline]
    pub(crate) fn by_input(&self) -> ByInput<'_> {
        of_weights!(self, w => w.by_input())
    }
}
