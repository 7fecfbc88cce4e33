//! Which tensors a model has: from the names of both spellings to those of the table, complete and in shape.
//!
//! Input: the tensors of all files, under the names they have there. Output: the same under
//! BlinkDL's names, complete, with nothing left over, each of the shape that the configuration
//! says. Tensors of other architectures are recognised, so that the error says what the model is.

#![forbid(unsafe_code)]

use std::collections::{BTreeMap, BTreeSet};

use super::per_head::{is_time_first, Heads};
use super::tensor::RawTensor;
use super::tuned::{time_state_layer, TunedState};
use crate::error::{Error, Result};
use crate::networks::config::{Config, Sizes};
use crate::networks::known;
use crate::networks::names::{is_of_adapter, split_layer, Cleaner, BLOCKS, EMBEDDING, HEAD};
use crate::networks::state::StateLayout;
use crate::networks::table::{Architecture, ShownBy, SizeSpec, TensorAt, TensorSpec};

/// What shape a tensor must have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Want {
    Matrix(usize, usize),
    /// Any shape with this many elements along one dimension: both [D] and [1, 1, D] are in use.
    Vector(usize),
    /// The same, or rows of so many.
    Rows(usize, usize),
}

impl Want {
    fn of(tensor: &TensorAt<'_>) -> Self {
        let (n_rows, n_cols) = tensor.checkpoint_shape();
        match (tensor.is_matrix(), tensor.spec.row) {
            (true, _) => Want::Matrix(n_rows, n_cols),
            (false, None) => Want::Vector(n_rows),
            (false, Some(row)) => {
                let width = row(tensor.sizes).max(1);
                Want::Rows(n_rows / width, width)
            }
        }
    }

    fn admits(self, shape: &[usize]) -> bool {
        match self {
            Want::Matrix(rows, cols) => shape == [rows, cols],
            Want::Vector(n) => {
                let long = shape.iter().filter(|&&dim| dim != 1).count();
                long <= 1 && !shape.is_empty() && shape.iter().product::<usize>() == n
            }
            Want::Rows(rows, width) => {
                shape == [rows, width] || Want::Vector(rows * width).admits(shape)
            }
        }
    }

    fn shape(self) -> Vec<usize> {
        match self {
            Want::Matrix(rows, cols) | Want::Rows(rows, cols) => vec![rows, cols],
            Want::Vector(n) => vec![n],
        }
    }
}

/// Refuses a tensor that replaces one of a model and has another shape.
pub(super) fn require_fit(tensor: &RawTensor, line: &TensorAt<'_>) -> Result<()> {
    let want = Want::of(line);
    if want.admits(&tensor.shape) {
        return Ok(());
    }
    let (found, expected) = (&tensor.shape, want.shape());
    let text = format!("shape {found:?}, expected {expected:?} by the model");
    Err(Error::format(text).at(tensor.place()))
}

/// Channels of a head in all models that were published.
const PUBLISHED_HEAD: usize = 64;

/// Tensors under BlinkDL's names.
pub(super) struct Named {
    place: String,
    architecture: &'static Architecture,
    tensors: BTreeMap<String, RawTensor>,
    /// Whether the norms of heads have the name of those whose epsilon is scaled.
    has_scaled_head_norm: bool,
    /// Of a tuned initial state, by layer.
    tuned: BTreeMap<usize, RawTensor>,
}

impl Named {
    /// Renames the tensors found at `place`.
    ///
    /// # Errors
    /// A tensor that only another architecture has, one of an adapter, or one that occurs twice.
    pub(super) fn new(place: String, found: Vec<RawTensor>) -> Result<Self> {
        refuse_adapter(&found)?;
        let found = of_one_model(found)?;
        let cleaner = Cleaner::new(found.iter().map(|tensor| tensor.name.as_str()));
        let architecture = architecture(&place, &found, &cleaner)?;
        let spelling = &architecture.hugging_face;
        let scaled = spelling.config.scaled_head_norm;
        let mut named = Named {
            place,
            architecture,
            tensors: BTreeMap::new(),
            has_scaled_head_norm: false,
            tuned: BTreeMap::new(),
        };
        for tensor in found {
            let clean = cleaner.name(&tensor.name).into_owned();
            let can_be_tuned = architecture.tuned_part.is_some();
            if let (true, Some(layer)) = (can_be_tuned, time_state_layer(&clean)) {
                if let Some(twice) = named.tuned.insert(layer, tensor) {
                    let text = "one of two initial states of its layer";
                    return Err(Error::format(text).at(twice.place()));
                }
                continue;
            }
            named.has_scaled_head_norm |= scaled.is_some_and(|end| clean.ends_with(end));
            let held = spelling.held_in_one(&clean);
            if !held.is_empty() {
                for (name, part) in held.iter().zip(tensor.split(held.len())?) {
                    named.add(name, part)?;
                }
                continue;
            }
            let tensor = match spelling.is_transposed(&clean) {
                true => tensor.transposed(),
                false => tensor,
            };
            named.add(&clean, tensor)?;
        }
        let turned = named.turn_low_rank_matrices();
        let renamed = named.give_heads_rows();
        if let (Some(name), Some(state)) = (turned.or(renamed), named.tuned.values().next()) {
            let text = format!(
                "an initial state beside {name}, which another program has changed, and maybe the state as well: \
                 expected the tensors as they were trained"
            );
            return Err(Error::unsupported(text).at(state.place()));
        }
        Ok(named)
    }

    /// Adds a tensor by its name in either spelling.
    fn add(&mut self, name: &str, tensor: RawTensor) -> Result<()> {
        let name = match self.architecture.find(name) {
            Some((spec, layer)) => spec.raw_name(layer),
            None => name.to_owned(),
        };
        if let Some(other) = self.tensors.get(&name) {
            let mut message = format!("the same as tensor {}", other.name);
            if other.file.name() != tensor.file.name() {
                message += &format!(" of {}", other.file.name());
            }
            return Err(Error::format(message).at(tensor.place()));
        }
        self.tensors.insert(name, tensor);
        Ok(())
    }

    /// Some programs write low-rank matrices as transposes under their raw names. One side of each is as wide as other
    /// tensors, and tells which way it lies; where both are, it lies as in raw checkpoints. Gives the name of one that was turned.
    fn turn_low_rank_matrices(&mut self) -> Option<String> {
        let mut turned = None;
        let mut sizes = Sizes::unknown(self.architecture);
        for size in self.architecture.sizes {
            if let ShownBy::Matrix(tensor, dimension) = size.shown_by {
                // Ranks are shown by these matrices themselves.
                let is_rank = self.low_rank(tensor).is_some();
                let tensor = self.tensors.get(tensor).filter(|_| !is_rank);
                let n = tensor.and_then(|tensor| tensor.shape.get(dimension));
                (size.set)(&mut sizes, n.copied().unwrap_or(0));
            }
        }
        let names: Vec<String> = self.tensors.keys().cloned().collect();
        for name in names {
            let Some(spec) = self.low_rank(&name) else {
                continue;
            };
            let (rows, cols) = spec.at(None, &sizes).checkpoint_shape();
            let lies_across = |shape: &[usize]| match (rows, cols, shape) {
                (n, 0, &[a, b]) | (0, n, &[b, a]) => a != n && b == n,
                _ => false,
            };
            if let Some(tensor) = self.tensors.get_mut(&name) {
                if lies_across(&tensor.shape) {
                    *tensor = tensor.clone().transposed();
                    turned = Some(name);
                }
            }
        }
        turned
    }

    /// Gives the decays and bonuses of RWKV-5 a row for each head, whichever of its versions they are of. Gives the name
    /// of a bonus that another program has renamed.
    fn give_heads_rows(&mut self) -> Option<String> {
        let heads = Heads::shown_by(self.architecture, &self.tensors)?;
        let mut renamed = None;
        for (name, tensor) in &mut self.tensors {
            let line = self.architecture.find(name);
            if line.is_none_or(|(spec, _)| spec.row.is_none()) {
                continue;
            }
            *tensor = heads.rows_of(tensor.clone());
            if is_time_first(&tensor.name) && !tensor.is_per_head() {
                renamed = Some(tensor.name.clone());
            }
        }
        renamed
    }

    /// The line of a low-rank matrix of that raw name.
    fn low_rank(&self, name: &str) -> Option<&'static TensorSpec> {
        let (spec, _) = self.architecture.find(name)?;
        spec.is_low_rank().then_some(spec)
    }

    /// The sizes that the shapes show, where no file says them.
    pub(super) fn infer_config(&self) -> Result<Config> {
        let mut sizes = Sizes::unknown(self.architecture);
        for size in self.architecture.sizes {
            (size.set)(&mut sizes, self.size(size)?);
        }
        sizes.check().map_err(|e| e.at(&self.place))?;
        let mut config = Config::of_sizes(sizes);
        if self.is_rwkv_5_of_rwkv_cpp() && config.sizes.head_size != PUBLISHED_HEAD {
            config.settings.head_norm_epsilon = config.settings.layer_norm_epsilon;
        }
        if let Some(epsilon) = self.head_norm_epsilon(&config) {
            config.settings.head_norm_epsilon = epsilon;
        }
        Ok(config)
    }

    /// Whether these are the tensors of an rwkv.cpp file of RWKV-5. rwkv.cpp takes 1e-5 for the epsilon of the norms of
    /// heads. That is wrong for published models, whose heads have 64 channels and which were trained with 64 times as
    /// much, but right for its own small one.
    fn is_rwkv_5_of_rwkv_cpp(&self) -> bool {
        let decay = self.tensors.get("blocks.0.att.time_decay");
        // No other file has decays in the network's form.
        self.architecture.version == 5 && decay.is_some_and(|decay| decay.is_in_network_form)
    }

    /// Where a model is taken otherwise here than by the program whose file it is, in words for people.
    pub(super) fn difference(&self, config: &Config) -> Option<String> {
        let differs = self.is_rwkv_5_of_rwkv_cpp() && config.sizes.head_size == PUBLISHED_HEAD;
        differs.then(|| {
            format!(
                "{}: the norms of its heads take an epsilon of {:e}, as RWKV-5 was trained; rwkv.cpp takes 1e-5, \
                 and its texts differ a little",
                self.place, config.settings.head_norm_epsilon
            )
        })
    }

    fn n_layer(&self) -> usize {
        count_layers(self.tensors.keys().map(String::as_str))
    }

    /// A size as the shapes show it.
    pub(super) fn size(&self, size: &SizeSpec) -> Result<usize> {
        Ok(match size.shown_by {
            ShownBy::Matrix(tensor, dimension) => self.matrix(tensor)?[dimension],
            ShownBy::MatrixIfAny(tensor, _)
                if !self.tensors.contains_key(tensor) && self.n_layer() < 2 =>
            {
                0
            }
            ShownBy::MatrixIfAny(tensor, dimension) => self.matrix(tensor)?[dimension],
            ShownBy::LayerCount => self.n_layer(),
        })
    }

    /// The epsilon that the norms of heads have by their names, where these say it.
    pub(super) fn head_norm_epsilon(&self, config: &Config) -> Option<f32> {
        let scaled = || {
            config
                .settings
                .scaled_head_norm_epsilon(config.sizes.head_size)
        };
        self.has_scaled_head_norm.then(scaled)
    }

    /// Whether the tensors are those of the architecture that `source` names.
    ///
    /// # Errors
    /// Another.
    pub(super) fn require(&self, architecture: &Architecture, source: &str) -> Result<()> {
        if *architecture == *self.architecture {
            return Ok(());
        }
        let (found, expected) = (self.architecture.title, architecture.title);
        let text = format!("are those of {found}, expected {expected} by {source}");
        Err(Error::format(text).at(format!("{}: tensors", self.place)))
    }

    /// Takes out the tuned initial state, where the architecture can have one and the checkpoint has it.
    ///
    /// # Errors
    /// Layers without it, or of other shapes.
    pub(super) fn take_tuned(&mut self, config: &Config) -> Result<Option<TunedState>> {
        let found = std::mem::take(&mut self.tuned);
        // That a configuration is of another architecture is told by all tensors.
        if found.is_empty() || config.sizes.architecture != self.architecture {
            return Ok(None);
        }
        let layout = StateLayout::of_sizes(&config.sizes);
        TunedState::new(&self.place, found, &layout, Error::format).map(Some)
    }

    /// The tensors, once they are exactly those of `config`; `source` says where that came from.
    pub(super) fn into_exact(
        mut self,
        config: &Config,
        source: &str,
    ) -> Result<BTreeMap<String, RawTensor>> {
        let (sizes, title) = (&config.sizes, self.architecture.title);
        self.require(sizes.architecture, source)?;
        if config.settings.tie_word_embeddings {
            self.check_tied_head()?;
        }
        if config.settings.tie_word_embeddings && !self.tensors.contains_key(HEAD) {
            let embedding = self.tensors.get(EMBEDDING).cloned();
            let head = embedding.map(|tensor| (HEAD.to_owned(), tensor));
            self.tensors.extend(head);
        }
        let whole = self.architecture.whole(sizes);
        let unused = self.architecture.layer.iter();
        for spec in unused.filter(|spec| spec.is_behind_first_layer) {
            self.tensors.remove(&spec.raw_name(Some(0)));
        }
        let tensors = self.architecture.tensors(sizes, &whole);
        let wanted: BTreeMap<String, Want> = tensors
            .map(|tensor| (tensor.raw_name(), Want::of(&tensor)))
            .collect();
        for (name, want) in &wanted {
            let Some(tensor) = self.tensors.get(name) else {
                let names = &self.architecture.hugging_face;
                let joined = split_layer(name).and_then(|(layer, leaf)| {
                    let (one, held) = names.joined(leaf)?;
                    Some((format!("{BLOCKS}{layer}.{one}"), held.len()))
                });
                // As files have it.
                let (name, mut shape) = match &joined {
                    Some((one, n)) => (one, vec![*n]),
                    None => (name, Vec::new()),
                };
                shape.extend(want.shape());
                let message = format!("missing, expected shape {shape:?} by {source}");
                return Err(Error::format(message).at(format!("{}: tensor {name}", self.place)));
            };
            if !want.admits(&tensor.shape) {
                let (mut found, mut expected) = (tensor.shape.clone(), want.shape());
                if self.architecture.hugging_face.is_transposed(&tensor.name) {
                    // As the file has it.
                    found.reverse();
                    expected.reverse();
                }
                let text = format!("shape {found:?}, expected {expected:?} by {source}");
                return Err(Error::format(text).at(tensor.place()));
            }
            if !tensor.dtype.is_weight() {
                let message = format!("dtype {}, expected F32, F16 or BF16", tensor.dtype);
                return Err(Error::unsupported(message).at(tensor.place()));
            }
        }
        match self
            .tensors
            .iter()
            .find(|(name, _)| !wanted.contains_key(*name))
        {
            None => Ok(self.tensors),
            Some((_, tensor)) => Err(Error::format(format!(
                "not part of an {title} model with {} layers, as expected by {source}",
                sizes.n_layer
            ))
            .at(tensor.place())),
        }
    }

    /// Refuses a head beside a configuration that says that the embedding is the head, where the two are not one.
    fn check_tied_head(&self) -> Result<()> {
        let is_refused = self.architecture.hugging_face.config.has_tied_heads_only;
        let pair = self.tensors.get(HEAD).zip(self.tensors.get(EMBEDDING));
        let Some((head, embedding)) = pair.filter(|_| is_refused) else {
            return Ok(());
        };
        let place = |tensor: &RawTensor| (tensor.file.name().to_owned(), tensor.offset);
        if place(head) == place(embedding) {
            return Ok(());
        }
        let text = "a head, expected none: tie_word_embeddings says that the embedding is the head";
        Err(Error::format(text).at(head.place()))
    }

    fn matrix(&self, name: &str) -> Result<[usize; 2]> {
        let Some(tensor) = self.tensors.get(name) else {
            let message = format!("{}: tensor {name}: missing", self.place);
            return Err(Error::format(message));
        };
        <[usize; 2]>::try_from(&tensor.shape[..]).map_err(|_| {
            let message = format!("shape {:?}, expected a matrix", tensor.shape);
            Error::format(message).at(tensor.place())
        })
    }
}

/// How many layers tensors of these names belong to.
pub(super) fn count_layers<'a>(names: impl Iterator<Item = &'a str>) -> usize {
    // A layer far out of range is left over later, by its name, and must not size anything here.
    let bounds = known::architectures().flat_map(|one| one.sizes);
    let max = bounds
        .filter(|size| size.shown_by == ShownBy::LayerCount)
        .map(|size| size.max)
        .max();
    let layers = names.filter_map(|name| {
        let raw = known::architectures().map(|one| one.hugging_face.raw(name));
        raw.filter_map(|name| Some(split_layer(&name)?.0)).next()
    });
    let highest = layers.filter(|&layer| Some(layer as u64) < max).max();
    highest.map_or(0, |highest| highest + 1)
}

/// Says what a file is that has LoRA's tensors or those of other adapters: their sums with the model's matrices
/// are what the model was trained to be, and are made where an adapter is named as one (`lora.rs`).
fn refuse_adapter(tensors: &[RawTensor]) -> Result<()> {
    let is_state = |tensor: &RawTensor| tensor.name.ends_with(".time_state");
    if let (true, Some(tensor)) = (tensors.iter().all(is_state), tensors.first()) {
        let text =
            "trained initial states (state tuning) without their model, expected a whole model: open that, and \
             name this file with --load-state";
        return Err(Error::unsupported(text).at(tensor.place()));
    }
    let Some(tensor) = tensors.iter().find(|tensor| is_of_adapter(&tensor.name)) else {
        return Ok(());
    };
    let has_base = tensors.iter().any(|tensor| {
        tensor.name.ends_with("emb.weight") || tensor.name.ends_with("embeddings.weight")
    });
    let text = match has_base {
        true => "LoRA or another adapter beside its model, expected one merged with the other: merge them \
                 first, with merge_and_unload() of PEFT or the merge script of what trained it",
        false => "LoRA or another adapter without its model, expected a whole model: open that, and name this file \
                  with --lora; what that refuses, merge_and_unload() of PEFT or the merge script of what trained it \
                  merges",
    };
    Err(Error::unsupported(text).at(tensor.place()))
}

/// The tensors without the counters that training keeps beside them, such as `n_averaged` of torch's
/// `AveragedModel`, where all names of the model have a prefix that those lack.
///
/// # Errors
/// Several models, and other tensors beside the one.
fn of_one_model(mut found: Vec<RawTensor>) -> Result<Vec<RawTensor>> {
    let cleaner = Cleaner::new(found.iter().map(|tensor| tensor.name.as_str()));
    let names: Vec<_> = found.iter().map(|one| cleaner.name(&one.name)).collect();
    if known::shown(names.iter().map(|name| &**name)).is_some() {
        return Ok(found);
    }
    let prefixes = found.iter().filter_map(|tensor| {
        let embedding = ["embeddings.weight", EMBEDDING];
        let mut prefixes = embedding
            .iter()
            .filter_map(|end| tensor.name.strip_suffix(end));
        let prefix = prefixes.next()?;
        let mut short = known::architectures().filter_map(|one| {
            let rest = prefix.strip_suffix(one.hugging_face.prefix);
            rest.filter(|rest| rest.ends_with('.'))
        });
        Some(short.next().unwrap_or(prefix)).filter(|prefix| prefix.ends_with('.'))
    });
    let prefixes: BTreeSet<String> = prefixes.map(str::to_owned).collect();
    let mut rest = prefixes.iter();
    let (Some(prefix), second) = (rest.next(), rest.next()) else {
        return Ok(found);
    };
    let is_outside = |tensor: &RawTensor| !tensor.name.starts_with(prefix);
    if let Some(second) = second {
        let text = format!(
            "one of several models, whose names begin with {prefix:?} and with {second:?}, expected one: save the \
             tensors of one alone"
        );
        let tensor = found.iter().find(|tensor| tensor.name.starts_with(second));
        let place = tensor.map(RawTensor::place).unwrap_or_default();
        return Err(Error::unsupported(text).at(place));
    }
    let is_counter = |tensor: &RawTensor| tensor.shape.iter().all(|&dim| dim == 1);
    found.retain(|tensor| !(is_outside(tensor) && is_counter(tensor)));
    match found.iter().find(|tensor| is_outside(tensor)) {
        None => Ok(found),
        Some(tensor) => {
            let text = format!(
                "beside a model whose names all begin with {prefix:?}, expected the model alone: save its tensors \
                 without the others"
            );
            Err(Error::unsupported(text).at(tensor.place()))
        }
    }
}

/// The architecture whose tensors these are.
fn architecture(
    place: &str,
    tensors: &[RawTensor],
    cleaner: &Cleaner,
) -> Result<&'static Architecture> {
    let expected = known::titles();
    let names: Vec<_> = tensors
        .iter()
        .map(|tensor| cleaner.name(&tensor.name))
        .collect();
    match known::shown(names.iter().map(|name| &**name)) {
        Some(Ok(architecture)) => Ok(architecture),
        Some(Err((name, title))) => {
            let mut tensors = tensors.iter();
            let tensor = tensors.find(|tensor| cleaner.name(&tensor.name) == name);
            let place = tensor.map_or(place.to_owned(), RawTensor::place);
            let message = format!("shows {title}, expected {expected}");
            Err(Error::unsupported(message).at(place))
        }
        None => Err(match tensors.first() {
            None => Error::format(format!(
                "{place}: no tensors, expected those of an {expected} model"
            )),
            Some(tensor) => {
                let message = format!("no name of an RWKV model, expected {expected}");
                Error::unsupported(message).at(tensor.place())
            }
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn vectors_of_any_shape() {
        let vector = Want::Vector(4);
        for shape in [&[4][..], &[1, 1, 4], &[4, 1]] {
            assert!(vector.admits(shape), "{shape:?}");
        }
        for shape in [&[][..], &[2, 2], &[3], &[1, 5], &[4, 0]] {
            assert!(!vector.admits(shape), "{shape:?}");
        }
        assert!(Want::Vector(1).admits(&[1, 1]) && !Want::Matrix(1, 4).admits(&[4]));
    }
}
