//! Adapters, as RWKV-PEFT and PEFT train them, merged with a checkpoint: LoRA, PiSSA, DiSHA and Bone.
//!
//! Input: a checkpoint and files of tensors, `X.lora_A` and `X.lora_B`, `X.disha` or `X.bone` beside the `X.weight` of the
//! model, and tensors of the model that were trained as a whole. Output: the checkpoint, whose matrices know what is added
//! to them (`additions.rs`) and whose other tensors were replaced. Every tensor of an adapter must have its use.

#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;

use xxhash_rust::xxh3::Xxh3;

use super::additions::{Addition, Inputs};
use super::names::require_fit;
use super::open::{read_weights, FileContent};
use super::peft::{self, Scaling};
use super::per_head::Heads;
use super::tensor::RawTensor;
use super::tuned::{time_state_layer, TunedState};
use super::{Checkpoint, Dtype};
use crate::error::{Error, Result};
use crate::files::{Access, SourceFile};
use crate::networks::names::{is_of_adapter, Cleaner, EMBEDDING, HEAD};
use crate::networks::state::StateLayout;
use crate::networks::table::TensorAt;

/// Bytes hashed at once.
const HASH_BYTES: u64 = 8 << 20;

/// A file of an adapter, whose sum with a checkpoint is loaded in place of the checkpoint.
///
/// It is a `.pth` or `.safetensors` file of RWKV-PEFT, with these tensors beside a matrix `X.weight` (outputs, inputs) of
/// the model, here W:
///
/// * LoRA: `X.lora_A` (rank, inputs) and `X.lora_B` (outputs, rank). W + (alpha / rank) B A. Also a folder of PEFT, or the
///   file in it: its `adapter_config.json` says alpha, for each matrix, and whether the rank's square root is meant.
/// * PiSSA: the same, behind another file, of `X.init_lora_A` and `X.init_lora_B`, which training has written when it
///   began. W - B0 A0 + B A.
/// * DiSHA, also called MiSS: `X.disha` (r, outputs). Column j of W gets row j mod r added.
/// * Bone: `X.disha` or `X.bone` (inputs / r, r, r). Each r by r block of W that has the inputs of block b gets its product
///   with block b added, and that block itself.
///
/// Tensors that have a name of the model, such as `blocks.0.ln1.weight`, were trained as a whole and replace the model's.
/// `blocks.N.att.time_state` of all layers is a tuned initial state.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Lora {
    /// The file, or a folder of PEFT.
    pub file: PathBuf,
    /// Of LoRA, what it was trained with; its files do not hold it, but a configuration of PEFT beside them does. None
    /// of the others has one.
    pub alpha: Option<f64>,
}

impl Lora {
    /// An adapter with the alpha that it was trained with, if it has one.
    pub fn new(file: impl Into<PathBuf>, alpha: impl Into<Option<f64>>) -> Self {
        Lora {
            file: file.into(),
            alpha: alpha.into(),
        }
    }
}

/// Alphas are the same when their bits are.
impl PartialEq for Lora {
    fn eq(&self, other: &Self) -> bool {
        let bits = |lora: &Self| lora.alpha.map(f64::to_bits);
        self.file == other.file && bits(self) == bits(other)
    }
}

impl Eq for Lora {}

/// As the command writes it.
impl fmt::Display for Lora {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.file.display())?;
        match self.alpha {
            Some(alpha) => write!(f, ":{alpha}"),
            None => Ok(()),
        }
    }
}

/// An adapter that a checkpoint was merged with.
#[derive(Debug)]
pub(crate) struct MergedAdapter {
    /// The file and its alpha, for people.
    pub(crate) text: String,
    /// A hash of the whole file and of alpha.
    pub(crate) identity: u64,
    pub(crate) file: SourceFile,
}

/// What a tensor of an adapter is for its matrix.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Role {
    LoraA,
    LoraB,
    InitA,
    InitB,
    Disha,
    Bone,
}

/// Segments of names.
const ROLES: [(&str, Role); 6] = [
    ("lora_A", Role::LoraA),
    ("lora_B", Role::LoraB),
    ("init_lora_A", Role::InitA),
    ("init_lora_B", Role::InitB),
    ("disha", Role::Disha),
    ("bone", Role::Bone),
];

/// What is behind such a segment in the files of RWKV-PEFT, of PEFT's `save_pretrained`, and of its models as a whole.
const BEHIND_ROLES: [&str; 4] = ["", "weight", "default", "default.weight"];

/// The tensors of a file by the raw names of the model's tensors.
struct Adapter {
    /// Of LoRA.
    scaling: Option<Scaling>,
    /// It was named, and does not only lie beside.
    is_named: bool,
    file: SourceFile,
    parts: BTreeMap<String, BTreeMap<Role, RawTensor>>,
    /// Those that replace the model's.
    whole: BTreeMap<String, RawTensor>,
    /// Of a tuned initial state, by layer.
    tuned: BTreeMap<usize, RawTensor>,
}

/// Merges all of them with a checkpoint, in their order.
///
/// # Errors
/// What cannot be read or does not fit, with its file and tensor.
pub(crate) fn merge_all(checkpoint: &mut Checkpoint, loras: &[Lora], access: Access) -> Result<()> {
    let mut init: Option<Adapter> = None;
    let alone = |init: Adapter| {
        let text = "what PiSSA began with (init_lora_A and init_lora_B), expected the adapter that was trained from it \
                    behind it";
        Err(Error::argument(text).at(init.file.name()))
    };
    for lora in loras {
        let adapter = Adapter::read(checkpoint, lora, access)?;
        let watch = adapter.file.watch().clone();
        match (adapter.is_init()?, init.take()) {
            (true, Some(before)) => return alone(before),
            (true, None) => init = Some(adapter),
            (false, before) => watch.judge(adapter.merge(checkpoint, before))?,
        }
    }
    init.map_or(Ok(()), alone)
}

impl Adapter {
    fn read(checkpoint: &Checkpoint, lora: &Lora, access: Access) -> Result<Self> {
        let place = lora.file.display();
        if let Some(alpha) = lora
            .alpha
            .filter(|alpha| !(alpha.is_finite() && *alpha > 0.0))
        {
            let text = format!("alpha {alpha}, expected a finite number above 0");
            return Err(Error::argument(text).at(place));
        }
        let (path, config) = peft::find(&lora.file)?;
        let is_folder = path != lora.file;
        let scaling = match (lora.alpha, config) {
            (Some(_), Some(config)) if is_folder => {
                let text = format!("an alpha, expected none: {} says it", config.display());
                return Err(Error::argument(text).at(place));
            }
            (Some(alpha), _) => Some(Scaling::of_alpha(alpha)),
            (None, Some(config)) => match peft::read(&config, access)? {
                None if is_folder => {
                    let text = "of another kind of adapter, expected peft_type LORA";
                    return Err(Error::unsupported(text).at(config.display()));
                }
                scaling => scaling,
            },
            (None, None) => None,
        };
        let file = SourceFile::open_with(&path, access)?;
        let FileContent::Tensors(found) = read_weights(file.clone())? else {
            let text = "a whole model, expected an adapter in a .pth or .safetensors file";
            return Err(Error::unsupported(text).at(place));
        };
        let mut adapter = Adapter {
            scaling,
            is_named: lora.alpha.is_some() || is_folder,
            file,
            parts: BTreeMap::new(),
            whole: BTreeMap::new(),
            tuned: BTreeMap::new(),
        };
        let name_of = |tensor: &RawTensor| peft::without_prefix(&tensor.name).to_owned();
        let names: Vec<String> = found.iter().map(name_of).collect();
        let cleaner = Cleaner::new(names.iter().map(String::as_str));
        for (tensor, name) in found.into_iter().zip(&names) {
            adapter.add(checkpoint, tensor, &cleaner.name(name))?;
        }
        let mut roles = adapter.parts.values().flat_map(BTreeMap::keys);
        if !adapter.is_named && !roles.any(|role| *role <= Role::LoraB) {
            adapter.scaling = None;
        }
        if adapter.parts.is_empty() {
            let text =
                "no tensor of an adapter, expected lora_A and lora_B, or disha, of some matrices";
            return Err(Error::format(text).at(place));
        }
        Ok(adapter)
    }

    /// Adds a tensor by its name in either spelling.
    fn add(&mut self, checkpoint: &Checkpoint, tensor: RawTensor, name: &str) -> Result<()> {
        if !tensor.dtype.is_weight() || matches!(tensor.dtype, Dtype::Blocks(_)) {
            let text = format!("dtype {}, expected F32, F16 or BF16", tensor.dtype);
            return Err(Error::unsupported(text).at(tensor.place()));
        }
        let place = tensor.place();
        let twice = |other: Option<RawTensor>| match other {
            None => Ok(()),
            Some(other) => {
                let text = format!("the same as tensor {}", other.name);
                Err(Error::format(text).at(&place))
            }
        };
        if let Some((matrix, role)) = split_role(name) {
            let line = find(checkpoint, &format!("{matrix}.weight"), &tensor)?;
            if !line.is_matrix() || line.spec.is_low_rank() {
                let text = format!("of {}, expected one of the large matrices", line.raw_name());
                return Err(Error::unsupported(text).at(tensor.place()));
            }
            let parts = self.parts.entry(line.raw_name()).or_default();
            return twice(parts.insert(role, tensor));
        }
        if is_of_adapter(name) {
            let text = "of another kind of adapter, expected LoRA, PiSSA, DiSHA or Bone, as RWKV-PEFT saves them";
            return Err(Error::unsupported(text).at(tensor.place()));
        }
        let architecture = checkpoint.config.sizes.architecture;
        let can_be_tuned = architecture.tuned_part.is_some();
        if let (true, Some(layer)) = (can_be_tuned, time_state_layer(name)) {
            return twice(self.tuned.insert(layer, tensor));
        }
        let held = architecture.hugging_face.held_in_one(name);
        if !held.is_empty() {
            for (name, part) in held.iter().zip(tensor.split(held.len())?) {
                self.add(checkpoint, part, name)?;
            }
            return Ok(());
        }
        let tensor = match architecture.hugging_face.is_transposed(name) {
            true => tensor.transposed(),
            false => tensor,
        };
        let line = find(checkpoint, name, &tensor)?;
        // Of the first layer's tensors some have no use in any model.
        if !line.is_there() {
            return Ok(());
        }
        let heads = Heads::of_sizes(line.sizes).filter(|_| line.spec.row.is_some());
        let tensor = match heads {
            Some(heads) => heads.rows_of(tensor),
            None => tensor,
        };
        require_fit(&tensor, &line)?;
        twice(self.whole.insert(line.raw_name(), tensor))
    }

    /// Whether it is what PiSSA began with.
    fn is_init(&self) -> Result<bool> {
        let tensors = self.parts.values().flatten();
        let (init, others): (Vec<_>, Vec<_>) =
            tensors.partition(|(role, _)| matches!(role, Role::InitA | Role::InitB));
        let mut others = others.into_iter().map(|(_, tensor)| tensor);
        let first = others.next().or(self.whole.values().next());
        match (init.is_empty(), first.or(self.tuned.values().next())) {
            (true, _) => Ok(false),
            (false, None) if self.scaling.is_some() => Err(self.needs_no_alpha()),
            (false, None) => Ok(true),
            (false, Some(tensor)) => {
                let text =
                    "beside what PiSSA began with, expected init_lora_A and init_lora_B alone";
                Err(Error::format(text).at(tensor.place()))
            }
        }
    }

    /// `init`: what PiSSA began with, for one that it has trained.
    fn merge(mut self, checkpoint: &mut Checkpoint, init: Option<Adapter>) -> Result<()> {
        let tied = checkpoint.config.settings.tie_word_embeddings;
        let mut changed = self.parts.keys().chain(self.whole.keys());
        if let (true, Some(name)) = (
            tied,
            changed.find(|name| [EMBEDDING, HEAD].contains(&&***name)),
        ) {
            let text = format!(
                "changes {name}, expected neither embedding nor head to change: in this model one is the other"
            );
            return Err(Error::unsupported(text).at(self.file.name()));
        }
        if let Some(init) = &init {
            self.require_pair(init)?;
        }
        let is_lora =
            |parts: &BTreeMap<Role, RawTensor>| parts.keys().any(|role| *role <= Role::LoraB);
        let has_alpha = init.is_none() && self.parts.values().any(is_lora);
        if !has_alpha && !self.is_named {
            self.scaling = None;
        }
        match (has_alpha, &self.scaling) {
            (true, None) => {
                let text = "LoRA without its alpha, which such files do not hold, expected the lora_alpha that it was \
                            trained with: FILE:ALPHA on the command line, or adapter_config.json of PEFT beside it";
                return Err(Error::argument(text).at(self.file.name()));
            }
            (false, Some(_)) => return Err(self.needs_no_alpha()),
            _ => {}
        }
        let mut adapters = Vec::new();
        if let Some(init) = init {
            adapters.push(init.merged()?);
            for (name, parts) in init.parts {
                add_to(checkpoint, &name, parts, Scale::Fixed(-1.0))?;
            }
        }
        let scale = match &self.scaling {
            Some(scaling) => Scale::Of(scaling),
            None => Scale::Fixed(1.0),
        };
        adapters.push(self.merged()?);
        checkpoint.tensors.extend(self.whole);
        for (name, parts) in self.parts {
            add_to(checkpoint, &name, parts, scale)?;
        }
        if !self.tuned.is_empty() {
            let layout = StateLayout::of_sizes(&checkpoint.config.sizes);
            let tuned = TunedState::new(self.file.name(), self.tuned, &layout, Error::format)?;
            checkpoint.tuned = Some(tuned);
        }
        checkpoint.adapters.extend(adapters);
        Ok(())
    }

    /// Whether both have the same matrices.
    fn require_pair(&self, init: &Adapter) -> Result<()> {
        let pair = [(self, init, Role::LoraA), (init, self, Role::InitA)];
        for (one, other, role) in pair {
            let parts = one
                .parts
                .iter()
                .filter(|(_, parts)| parts.contains_key(&role));
            for (name, parts) in parts {
                let there = other.parts.get(name).into_iter().flat_map(BTreeMap::keys);
                let mut there = there.filter(|role| !matches!(role, Role::Disha | Role::Bone));
                if there.next().is_none() {
                    let text = format!(
                        "no tensors of {name} in {}, expected a pair",
                        other.file.name()
                    );
                    return Err(Error::format(text).at(parts[&role].place()));
                }
            }
        }
        Ok(())
    }

    fn needs_no_alpha(&self) -> Error {
        let text = "an alpha, expected none: only LoRA has one, and PiSSA, DiSHA and Bone are added as they are";
        Error::argument(text).at(self.file.name())
    }

    /// Reads all of the file.
    fn merged(&self) -> Result<MergedAdapter> {
        let alpha = self.scaling.as_ref().map(Scaling::alpha);
        let more = self.scaling.as_ref().map(Scaling::beyond_alpha);
        let more = more.unwrap_or_default();
        let mut hash = Xxh3::with_seed(alpha.map_or(0, f64::to_bits));
        hash.update(more.as_bytes());
        let mut start = 0;
        while start < self.file.len() {
            let range = start..self.file.len().min(start + HASH_BYTES);
            start = range.end;
            hash.update(&self.file.bytes(range.clone())?);
            self.file.release(range);
        }
        let name = self.file.name();
        Ok(MergedAdapter {
            text: match alpha {
                Some(alpha) => format!("{name}, alpha {alpha}{more}"),
                None => name.to_owned(),
            },
            identity: hash.digest(),
            file: self.file.clone(),
        })
    }
}

/// By what a product of two matrices is multiplied.
#[derive(Clone, Copy)]
enum Scale<'a> {
    Of(&'a Scaling),
    Fixed(f64),
}

/// Adds what the tensors of an adapter are for one matrix.
fn add_to(
    checkpoint: &mut Checkpoint,
    name: &str,
    mut parts: BTreeMap<Role, RawTensor>,
    scale: Scale<'_>,
) -> Result<()> {
    let Some(matrix) = checkpoint.tensors.get_mut(name) else {
        let place = format!("{}: tensor {name}", checkpoint.place);
        return Err(Error::format("missing").at(place));
    };
    let &[outputs, inputs] = matrix.shape.as_slice() else {
        let text = format!("shape {:?}, expected a matrix", matrix.shape);
        return Err(Error::format(text).at(matrix.place()));
    };
    for (a, b) in [(Role::LoraA, Role::LoraB), (Role::InitA, Role::InitB)] {
        let half = |one: RawTensor, other: &str| {
            let text = format!("without its {other}, expected both");
            Err(Error::format(text).at(one.place()))
        };
        match (parts.remove(&a), parts.remove(&b)) {
            (None, None) => {}
            (Some(a), None) => return half(a, "B"),
            (None, Some(b)) => return half(b, "A"),
            (Some(a), Some(b)) => {
                let addition = product(a, b, (outputs, inputs), scale)?;
                matrix.additions.push(addition);
            }
        }
    }
    for role in [Role::Disha, Role::Bone] {
        if let Some(tensor) = parts.remove(&role) {
            let addition = match (role, tensor.shape.len()) {
                (Role::Disha, 2) => repeated(tensor, (outputs, inputs))?,
                _ => blocks(tensor, (outputs, inputs))?,
            };
            matrix.additions.push(addition);
        }
    }
    Ok(())
}

fn product(
    a: RawTensor,
    b: RawTensor,
    (outputs, inputs): (usize, usize),
    scale: Scale<'_>,
) -> Result<Addition> {
    let rank = match a.shape[..] {
        [rank, n] if n == inputs && rank > 0 => rank,
        _ => {
            let expected = format!("[rank, {inputs}] of a rank of at least 1");
            return Err(wrong_shape(&a, &expected));
        }
    };
    if b.shape != [outputs, rank] {
        return Err(wrong_shape(&b, &format!("[{outputs}, {rank}]")));
    }
    let scale = match scale {
        Scale::Of(scaling) => scaling.factor(&a.name, rank).map_err(|e| e.at(a.place()))?,
        Scale::Fixed(scale) => scale,
    };
    Ok(Addition::Product {
        left: b,
        right: a,
        scale,
    })
}

fn repeated(tensor: RawTensor, (outputs, inputs): (usize, usize)) -> Result<Addition> {
    match tensor.shape[..] {
        [r, n] if n == outputs && (1..=inputs).contains(&r) => Ok(Addition::Repeated {
            tensor,
            inputs: Inputs::Columns,
        }),
        _ => {
            let expected = format!("[r, {outputs}] with r from 1 to {inputs}");
            Err(wrong_shape(&tensor, &expected))
        }
    }
}

fn blocks(tensor: RawTensor, (outputs, inputs): (usize, usize)) -> Result<Addition> {
    let size = match tensor.shape[..] {
        [n, size, other]
            if size == other
                && size > 0
                && n.checked_mul(size) == Some(inputs)
                && outputs % size == 0 =>
        {
            size
        }
        // Two dimensions were in use for a form whose blocks nobody can tell apart from others by their shape.
        _ => {
            let expected =
                format!("[{inputs} / r, r, r] with an r that divides {inputs} and {outputs}");
            return Err(wrong_shape(&tensor, &expected));
        }
    };
    if !tensor.is_contiguous() {
        let text =
            "a view whose numbers do not lie in order, expected one saved after contiguous()";
        return Err(Error::unsupported(text).at(tensor.place()));
    }
    Ok(Addition::Blocks {
        tensor: tensor.in_rows_of(size),
        size,
        inputs: Inputs::Columns,
    })
}

fn wrong_shape(tensor: &RawTensor, expected: &str) -> Error {
    let text = format!("shape {:?}, expected {expected} by the model", tensor.shape);
    Error::format(text).at(tensor.place())
}

/// The name of the matrix that a tensor of an adapter belongs to, without its `.weight`, and what it is for it.
fn split_role(name: &str) -> Option<(&str, Role)> {
    let mut start = 0;
    for segment in name.split('.') {
        let end = start + segment.len();
        if let Some((_, role)) = ROLES.iter().find(|(role, _)| *role == segment) {
            let behind = name.get(end..)?;
            let behind = behind.strip_prefix('.').unwrap_or(behind);
            let matrix = name.get(..start)?.strip_suffix('.')?;
            return BEHIND_ROLES.contains(&behind).then_some((matrix, *role));
        }
        start = end + 1;
    }
    None
}

/// The line of the model's table for a name in either spelling.
fn find<'a>(checkpoint: &'a Checkpoint, name: &str, tensor: &RawTensor) -> Result<TensorAt<'a>> {
    let sizes = &checkpoint.config.sizes;
    let found = sizes.architecture.find(name);
    let found = found.map(|(spec, layer)| spec.at(layer, sizes));
    let is_part =
        |line: &TensorAt<'_>| !line.is_there() || checkpoint.tensors.contains_key(&line.raw_name());
    found.filter(is_part).ok_or_else(|| {
        let (title, n_layer) = (sizes.architecture.title, sizes.n_layer);
        let text =
            format!("not of an {title} model with {n_layer} layers, expected names of its tensors");
        Error::format(text).at(tensor.place())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        for (name, expected) in [
            (
                "blocks.0.att.key.lora_A",
                Some(("blocks.0.att.key", Role::LoraA)),
            ),
            (
                "blocks.0.att.key.lora_B.weight",
                Some(("blocks.0.att.key", Role::LoraB)),
            ),
            ("a.lora_A.default.weight", Some(("a", Role::LoraA))),
            ("head.init_lora_A", Some(("head", Role::InitA))),
            ("a.b.bone", Some(("a.b", Role::Bone))),
            ("a.lora_A.other", None),
            ("lora_A", None),
            ("a.lora_Ab", None),
            ("a.weight", None),
        ] {
            assert_eq!(split_role(name), expected, "{name}");
        }
    }

    #[test]
    fn text() {
        assert_eq!(Lora::new("a.pth", 32.0).to_string(), "a.pth:32");
        assert_eq!(Lora::new("a.pth", None).to_string(), "a.pth");
        assert_eq!(Lora::new("a", f64::NAN), Lora::new("a", f64::NAN));
        assert_ne!(Lora::new("a", 1.0), Lora::new("a", None));
    }
}
