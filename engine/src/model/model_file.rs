//! The model file: a whole model, tokenizer included, as one `.safetensors` file that is used in place.
//!
//! docs/FORMAT.md is the specification. Reading checks structure, names, shapes, scales and vectors;
//! the weights themselves are not touched, so that a file opens in milliseconds whatever its size.
//! [`verify_checksum`] reads everything. Writing goes through a temporary file.

#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::io::Write;
use std::ops::Range;
use std::path::Path;

use serde_json::{json, Map, Value};
use xxhash_rust::xxh3::Xxh3;

use crate::checkpoint::safetensors::{SafetensorsFile, TensorEntry};
use crate::checkpoint::{Dtype, RawTensor, TokenizerFile, CHAT_TEMPLATE};
use crate::devices::plan::Plan;
use crate::devices::stages::Stages;
use crate::error::{Error, Result};
use crate::files::output::OutputFile;
use crate::files::{FileBytes, GrowingBytes, SourceFile, Watch};
use crate::math::numbers_of;
use crate::math::threads::Pool;
use crate::model::load::{convert, convert_in_pieces};
use crate::model::{Inner, Loaded};
use crate::networks::config::Config;
use crate::networks::fingerprint::Fingerprint;
use crate::networks::mix::Mix;
use crate::networks::source::{RowsSource, TakeRows, WeightSource};
use crate::networks::state::{time_state_name, Initial, StateLayout};
use crate::networks::table::TensorAt;
use crate::networks::{known, Tensor};
use crate::progress::{Counter, Progress, ProgressUnit};
use crate::quant::exponents::Importance;
use crate::quant::matrix::{Matrix, Vector};
use crate::quant::parts::{BadPart, Numbers, PartKind, Stored};
use crate::quant::{Quant, Weights};

mod checksum;
mod formats;

pub(crate) use checksum::verify as verify_checksum;
use checksum::{find as find_checksum, BLANK as CHECKSUM_BLANK};

/// Value of the metadata key `format`.
pub(crate) const FORMAT: &str = "rwkv-edge";
const FORMAT_VERSION: u32 = 1;
/// The data section and every tensor in it start at a multiple of this.
const ALIGNMENT: usize = 64;
/// Files of version 0.1 of the program do not have it.
const FINGERPRINT_OF_ROWS: &str = "fingerprint_of_rows";
const TOKENIZER: &str = "tokenizer";
/// Only of models that were merged with some.
const ADAPTERS: &str = "adapters";
const PADDING: &str = "padding.";
/// Bytes written or hashed at once.
const WRITE_BYTES: usize = 4 << 20;

/// One tensor to be written.
struct FileTensor<'a> {
    name: String,
    dtype: &'static str,
    shape: Vec<usize>,
    bytes: &'a [u8],
    /// Whose weights these are.
    matrix: Option<&'a Matrix>,
    /// Of a mapped file, if the bytes are in one.
    watch: Option<&'a Watch>,
}

impl<'a> FileTensor<'a> {
    fn new(name: &str, dtype: &'static str, shape: Vec<usize>, bytes: &'a [u8]) -> Self {
        let name = name.to_owned();
        FileTensor {
            name,
            dtype,
            shape,
            bytes,
            matrix: None,
            watch: None,
        }
    }
}

/// Writes a model; `progress` counts bytes.
pub(crate) fn write(
    model: &Inner,
    initial: Option<&Initial>,
    path: &Path,
    progress: &mut dyn FnMut(Progress),
) -> Result<()> {
    let networks = model.stages.only_networks("saved")?;
    let tensors = networks.iter().flat_map(|network| network.tensors());
    let mut parts: Vec<_> = tensors.flat_map(tensor_parts).collect();
    let layout = StateLayout::of_sizes(&model.config.sizes);
    let tuned = initial.map_or(Ok(Vec::new()), |initial| initial.time_states(&layout))?;
    let shape = layout.tuned_shape().unwrap_or_default();
    for (layer, numbers) in tuned.iter().enumerate() {
        let (name, bytes) = (time_state_name(layer), bytemuck::cast_slice(numbers));
        parts.push(FileTensor::new(&name, "F32", shape.to_vec(), bytes));
    }
    if let Some(file) = &model.tokenizer.file {
        let shape = vec![file.bytes.len()];
        parts.push(FileTensor {
            watch: file.bytes.watch(),
            ..FileTensor::new(TOKENIZER, "U8", shape, &file.bytes)
        });
    }
    let parts = with_padding(parts);
    let header = header(model, &parts)?;
    let total = header.len() + parts.iter().map(|part| part.bytes.len()).sum::<usize>();

    let mut file = OutputFile::create(path)?;
    let mut hash = Xxh3::new();
    let mut counter = Counter::new(ProgressUnit::Bytes, total as u64, progress);
    let mut write = |piece: &[u8]| -> Result<()> {
        file.write(piece)?;
        hash.update(piece);
        counter.advance(piece.len() as u64);
        Ok(())
    };
    write(&header)?;
    for part in &parts {
        let written = part.bytes.chunks(WRITE_BYTES).try_for_each(&mut write);
        match part.watch {
            Some(watch) => watch.judge(written)?,
            None => written?,
        }
        if let (Some(matrix), Some(_)) = (part.matrix, model.budget.paging()) {
            matrix.release();
        }
    }
    if let Some(at) = find_checksum(&header) {
        file.overwrite(at as u64, format!("{:016x}", hash.digest()).as_bytes())?;
    }
    file.commit()
}

fn tensor_parts(tensor: Tensor<'_>) -> Vec<FileTensor<'_>> {
    let matrix = match tensor {
        Tensor::Vector(vector) => {
            let bytes = bytemuck::cast_slice(&vector.values);
            return vec![FileTensor::new(
                &vector.name,
                "F32",
                vec![vector.len()],
                bytes,
            )];
        }
        Tensor::Matrix(matrix) => matrix,
    };
    let parts = matrix.parts().into_iter().map(|(kind, bytes)| {
        let name = format!("{}{}", matrix.name, kind.suffix);
        FileTensor::new(&name, kind.numbers.name(), kind.shape, bytes)
    });
    let mut parts: Vec<_> = parts.collect();
    parts[0].matrix = Some(matrix);
    parts[0].watch = matrix.in_file_bytes().and_then(FileBytes::watch);
    parts
}

/// The format allows no gaps between tensors, so whatever moves the next one to its boundary is a
/// tensor itself.
fn with_padding(parts: Vec<FileTensor<'_>>) -> Vec<FileTensor<'_>> {
    static ZEROS: [u8; ALIGNMENT] = [0; ALIGNMENT];
    let mut padded = Vec::with_capacity(2 * parts.len());
    for part in parts {
        let n = part.bytes.len().next_multiple_of(ALIGNMENT) - part.bytes.len();
        padded.push(part);
        if n > 0 {
            let name = format!("{PADDING}{}", padded.len());
            padded.push(FileTensor::new(&name, "U8", vec![n], &ZEROS[..n]));
        }
    }
    padded
}

/// The file up to its data section, with a blank checksum.
fn header(model: &Inner, parts: &[FileTensor<'_>]) -> Result<Vec<u8>> {
    let mut metadata = json!({
        "format": FORMAT,
        "format_version": FORMAT_VERSION.to_string(),
        "architecture": model.config.sizes.architecture.name,
        "config": model.config.to_json().to_string(),
        "quant": model.quant.name(),
        "fingerprint": format!("{:016x}", model.fingerprint.first),
        "checksum": CHECKSUM_BLANK,
    });
    if let Some(rows) = model.fingerprint.rows {
        metadata[FINGERPRINT_OF_ROWS] = json!(format!("{rows:016x}"));
    }
    if let Some(file) = &model.tokenizer.file {
        let name = Path::new(&file.name).file_name().unwrap_or_default();
        metadata[TOKENIZER] = json!(name.to_string_lossy());
    }
    if let Some(template) = model.chat_template() {
        metadata[CHAT_TEMPLATE] = json!(template.to_metadata());
    }
    if !model.adapters.is_empty() {
        metadata[ADAPTERS] = json!(json!(model.adapters).to_string());
    }
    let mut entries = Map::new();
    entries.insert("__metadata__".into(), metadata);
    let mut begin = 0;
    for part in parts {
        let end = begin + part.bytes.len();
        let entry = json!({
            "dtype": part.dtype, "shape": part.shape, "data_offsets": [begin, end],
        });
        entries.insert(part.name.clone(), entry);
        begin = end;
    }
    let mut entries = Value::Object(entries);
    // Where a crate beside this one lets objects keep the order in which they were filled (`preserve_order`), a file
    // must not differ by it.
    entries.sort_all_objects();
    let mut header = GrowingBytes::default();
    header.append(|header| header.write_all(&[0; 8]))?;
    header.append(|header| serde_json::to_writer(header, &entries))?;
    let n_spaces = header.len().next_multiple_of(ALIGNMENT) - header.len();
    header.append(|header| header.write_all(&[b' '; ALIGNMENT][..n_spaces]))?;
    let mut header = header.into_vec();
    let size = header.len() as u64 - 8;
    header[..8].copy_from_slice(&size.to_le_bytes());
    Ok(header)
}

/// An open model file whose weights have not been looked at.
pub(crate) struct ModelFile {
    pub(crate) config: Config,
    /// How its matrices are stored.
    pub(crate) quant: Quant,
    /// In a model of few bits: how each of them is.
    pub(crate) mix: Option<Mix>,
    fingerprint: Fingerprint,
    adapters: Vec<String>,
    pub(crate) tokenizer: Option<TokenizerFile>,
    tensors: SafetensorsFile,
}

/// Where its tokenizer was looked for.
pub(crate) const TOKENIZER_SEARCH: &str = "looked for one inside the model file";

impl ModelFile {
    /// Reads the metadata.
    ///
    /// # Errors
    /// What is missing, damaged, or of a kind or version that this program does not know.
    pub(crate) fn new(tensors: SafetensorsFile) -> Result<Self> {
        let file = tensors.file.clone();
        Self::parse(tensors).map_err(|e| e.at(file.name()))
    }

    fn parse(tensors: SafetensorsFile) -> Result<Self> {
        let get = |key: &str| {
            let missing = || Error::format(format!("metadata: no `{key}`"));
            tensors
                .metadata
                .get(key)
                .map(String::as_str)
                .ok_or_else(missing)
        };
        let version = get("format_version")?;
        if version != FORMAT_VERSION.to_string() {
            return Err(Error::unsupported(format!(
                "model file of format version {version}, this program reads {FORMAT_VERSION}"
            )));
        }
        let architecture = known::by_name(get("architecture")?)?;
        let quant = get("quant")?;
        let unknown = || Error::unsupported(format!("quant {quant}, expected {}", Quant::names()));
        let damaged = |key: &str, e: &dyn std::fmt::Display| {
            Error::format(format!("metadata: damaged `{key}`: {e}"))
        };
        let hash =
            |key: &str, digits: &str| u64::from_str_radix(digits, 16).map_err(|e| damaged(key, &e));
        let fingerprint = Fingerprint {
            first: hash("fingerprint", get("fingerprint")?)?,
            rows: match tensors.metadata.get(FINGERPRINT_OF_ROWS) {
                Some(digits) => Some(hash(FINGERPRINT_OF_ROWS, digits)?),
                None => None,
            },
        };
        let config = Config::from_json(architecture, get("config")?)?;
        let quant = Quant::from_name(quant).ok_or_else(unknown)?;
        Ok(ModelFile {
            mix: quant
                .is_mixed()
                .then(|| formats::in_file(&config.sizes, quant, &tensors)),
            config,
            quant,
            fingerprint,
            adapters: match tensors.metadata.get(ADAPTERS) {
                Some(list) => serde_json::from_str(list).map_err(|e| damaged(ADAPTERS, &e))?,
                None => Vec::new(),
            },
            tokenizer: tokenizer_file(&tensors)?,
            tensors,
        })
    }

    /// Whether it holds a tuned initial state.
    pub(super) fn is_tuned(&self) -> bool {
        let first = time_state_name(0);
        let mut entries = self.tensors.tensors.iter();
        entries.any(|entry| entry.name == first)
    }

    pub(crate) fn file(&self) -> &SourceFile {
        &self.tensors.file
    }

    /// The same bytes are in another place.
    pub(super) fn move_to(&mut self, file: SourceFile) {
        self.tensors.file = file;
    }

    /// Loads the weights. The plan may ask for less than is stored, but not for more. Where memory is short, no
    /// page is kept that was read only to be copied.
    pub(crate) fn load(self, plan: &Plan, pool: &Pool, is_short: bool) -> Result<Loaded> {
        let entries = self.tensors.tensors.iter();
        let mut weights = FileWeights {
            entries: entries.map(|entry| (entry.name.clone(), entry)).collect(),
            file: &self.tensors,
            stored: self.quant,
            mix: self.mix.as_ref(),
            quant: plan.quant(),
            pool,
            is_short,
        };
        let stages = Stages::build(&mut weights, &self.config, plan)?;
        let initial = weights.initial(StateLayout::of_sizes(&self.config.sizes))?;
        weights.nothing_left()?;
        Ok(Loaded {
            initial,
            stages,
            fingerprint: self.fingerprint,
            place: self.file().name().to_owned(),
            config: self.config,
            tokenizer: self.tokenizer,
            tokenizer_search: TOKENIZER_SEARCH.into(),
            correction: None,
            model_file: Some(self.tensors.file),
            stored_blocks: None,
            adapters: self.adapters,
        })
    }
}

fn tokenizer_file(tensors: &SafetensorsFile) -> Result<Option<TokenizerFile>> {
    let Some(entry) = tensors.tensors.iter().find(|entry| entry.name == TOKENIZER) else {
        return Ok(None);
    };
    let inner_name = tensors
        .metadata
        .get(TOKENIZER)
        .map_or(TOKENIZER, String::as_str);
    let name = format!("{inner_name} in {}", tensors.file.name());
    Ok(Some(TokenizerFile {
        place: name.clone(),
        name,
        bytes: tensors.file.bytes(entry.begin..entry.end)?,
    }))
}

/// The tensors of a model file that no one has asked for yet.
struct FileWeights<'a> {
    entries: BTreeMap<String, &'a TensorEntry>,
    file: &'a SafetensorsFile,
    stored: Quant,
    mix: Option<&'a Mix>,
    quant: Quant,
    pool: &'a Pool,
    /// Whether pages of what was copied are dropped at once, because memory is short.
    is_short: bool,
}

impl FileWeights<'_> {
    /// A tensor's place, once its dtype and shape are as expected.
    fn take_entry(&mut self, name: &str, dtype: Dtype, shape: &[usize]) -> Result<&TensorEntry> {
        let entry = self.entries.remove(name);
        let entry = entry.ok_or_else(|| self.error(name, "missing"))?;
        if entry.dtype != dtype || entry.shape != shape {
            let (found, found_shape) = (entry.dtype, &entry.shape);
            return Err(self.error(
                name,
                &format!("{found} {found_shape:?}, expected {dtype} {shape:?}"),
            ));
        }
        Ok(entry)
    }

    /// A tensor's bytes, once its dtype and shape are as expected.
    fn take(&mut self, name: &str, dtype: Dtype, shape: &[usize]) -> Result<FileBytes> {
        let file = &self.file.file;
        let entry = self.take_entry(name, dtype, shape)?;
        file.bytes(entry.begin..entry.end)
    }

    fn was_copied(&self, bytes: &FileBytes) {
        if self.is_short {
            bytes.release(0..bytes.len());
        }
    }

    fn error(&self, tensor: &str, text: &str) -> Error {
        Error::format(format!(
            "{}: tensor {tensor}: {text}",
            self.file.file.name()
        ))
    }

    /// The tuned initial state, if the file has the first layer's.
    fn initial(&mut self, layout: StateLayout) -> Result<Option<Initial>> {
        let Some(shape) = layout.tuned_shape() else {
            return Ok(None);
        };
        if !self.entries.contains_key(&time_state_name(0)) {
            return Ok(None);
        }
        let read = |layer| self.finite(&time_state_name(layer), &shape);
        Initial::new(layout, read).map(Some)
    }

    /// Floats that are kept as f32.
    fn finite(&mut self, name: &str, shape: &[usize]) -> Result<Vec<f32>> {
        let bytes = self.take(name, Dtype::F32, shape)?;
        let values: Vec<f32> = numbers_of(&bytes, "a vector of weights")?;
        self.was_copied(&bytes);
        if let Some(index) = values.iter().position(|value| !value.is_finite()) {
            let text = format!("{} at [{index}], expected a number", values[index]);
            return Err(self.error(name, &text));
        }
        Ok(values)
    }

    fn nothing_left(&self) -> Result<()> {
        let known = |name: &&String| *name == TOKENIZER || name.starts_with(PADDING);
        match self.entries.keys().find(|name| !known(name)) {
            Some(name) => Err(self.error(name, "not a tensor of this model")),
            None => Ok(()),
        }
    }

    /// What the file has beside a matrix of these parts; `None` for what is left out.
    fn beside(&mut self, name: &str, kinds: &[PartKind]) -> Result<Vec<Option<FileBytes>>> {
        let mut beside = Vec::new();
        for kind in &kinds[1..] {
            let name = format!("{name}{}", kind.suffix);
            let is_left_out = kind.is_optional && !self.entries.contains_key(&name);
            beside.push(match is_left_out {
                true => None,
                false => Some(self.take(&name, kind.numbers.into(), &kind.shape)?),
            });
        }
        Ok(beside)
    }

    /// Weights that are used as they are stored.
    fn stored(&mut self, name: &str, shape: (usize, usize), quant: Quant) -> Result<Weights> {
        let kinds = quant.parts(shape.0, shape.1);
        let values = self.take(name, kinds[0].numbers.into(), &kinds[0].shape)?;
        let mut parts = self.beside(name, &kinds)?;
        parts.insert(0, Some(values));
        let weights = Weights::from_parts(quant, shape, &parts);
        let weights = weights.map_err(|bad| self.bad(name, bad))?;
        // What belongs to the weights was copied.
        let beside = parts[1..].iter().flatten();
        beside.for_each(|part| self.was_copied(part));
        weights.ok_or_else(|| self.error(name, "not readable"))
    }

    /// The same, given to `take` piece by piece.
    fn stored_rows(
        &mut self,
        name: &str,
        shape: (usize, usize),
        quant: Quant,
        take: &mut TakeRows<'_>,
    ) -> Result<()> {
        let kinds = quant.parts(shape.0, shape.1);
        let values = self.take_entry(name, kinds[0].numbers.into(), &kinds[0].shape)?;
        let (begin, row_bytes) = (values.begin, quant.row_values_bytes(shape.1));
        let beside = self.beside(name, &kinds)?;
        let stored = Stored::new(quant, shape, &beside);
        let stored = stored.map_err(|bad| self.bad(name, bad))?;
        let at = |row: usize| begin + row as u64 * row_bytes;
        let read = |rows: Range<usize>| self.file.file.bytes(at(rows.start)..at(rows.end));
        stored.for_each_piece(read, take)?;
        beside
            .iter()
            .flatten()
            .for_each(|part| self.was_copied(part));
        Ok(())
    }

    fn bad(&self, name: &str, bad: BadPart) -> Error {
        let tensor = format_args!("tensor {name}{}", bad.suffix).to_string();
        bad.error.at(tensor).at(self.file.file.name())
    }

    /// How a matrix is stored.
    fn quant_in_file(&self, tensor: &TensorAt<'_>) -> Quant {
        match self.mix {
            Some(mix) => mix.format(tensor),
            None => tensor.quant(self.stored),
        }
    }

    /// What rounding errors of a matrix will do.
    fn importance(&self, matrix: &TensorAt<'_>) -> Result<Importance> {
        matrix.importance(matrix.quant(self.quant), &mut |vector| {
            let name = vector.name();
            let raw = self.file.tensor(&name).transpose()?;
            let raw = raw.ok_or_else(|| self.error(&name, "missing"))?;
            raw.read_vector(vector.len())
        })
    }

    /// A matrix of floats as it is stored.
    fn raw(&mut self, name: &str, numbers: Numbers, shape: (usize, usize)) -> Result<RawTensor> {
        self.take_entry(name, numbers.into(), &[shape.0, shape.1])?;
        let raw = self.file.tensor(name).transpose()?;
        raw.ok_or_else(|| self.error(name, "missing"))
    }
}

impl WeightSource for FileWeights<'_> {
    fn set_quant(&mut self, quant: Quant) -> Result<()> {
        if self.stored.floats().is_none() && quant != self.stored {
            return Err(Error::unsupported(format!(
                "{}: holds {} weights, which cannot become {quant}: ask for no other quant, or open \
                 the checkpoint it was made from",
                self.file.file.name(),
                self.stored
            )));
        }
        self.quant = quant;
        Ok(())
    }

    fn vector(&mut self, tensor: &TensorAt<'_>) -> Result<Vector> {
        let name = tensor.name();
        let values = self.finite(&name, &[tensor.len()])?;
        Ok(Vector { name, values })
    }

    fn matrix(&mut self, tensor: &TensorAt<'_>) -> Result<Matrix> {
        let (name, layout) = (tensor.name(), tensor.layout());
        let (n_rows, n_cols) = tensor.stored_shape();
        let (stored, quant) = (self.quant_in_file(tensor), tensor.quant(self.quant));
        if let Some(numbers) = stored.floats() {
            let raw = self.raw(&name, numbers, (n_rows, n_cols))?;
            let importance = self.importance(tensor)?;
            return convert(&raw, name, layout, quant, importance, self.pool);
        }
        let weights = self.stored(&name, (n_rows, n_cols), stored)?;
        Ok(Matrix {
            name,
            n_rows,
            n_cols,
            layout,
            weights,
        })
    }
}

impl RowsSource for FileWeights<'_> {
    fn matrix_rows(&mut self, tensor: &TensorAt<'_>, take: &mut TakeRows<'_>) -> Result<()> {
        let (name, shape) = (tensor.name(), tensor.stored_shape());
        let in_file = self.quant_in_file(tensor);
        match in_file.floats() {
            Some(numbers) => {
                let raw = self.raw(&name, numbers, shape)?;
                let importance = self.importance(tensor)?;
                convert_in_pieces(&raw, tensor.quant(self.quant), importance, self.pool, take)
            }
            None => self.stored_rows(&name, shape, in_file, take),
        }
    }
}
