//! The configuration of a Hugging Face directory, from its `config.json`.
//!
//! Fields that are missing or `null` take the values that transformers gives them, and so do tokens that are -1 or `[]`;
//! sizes that no version of its code agrees on are those of the tensors. Which fields there are is in the architecture's
//! table. Sizes are bounded here, so that products of two of them never
//! overflow; that the tensors agree with them is checked by `names.rs`.

#![forbid(unsafe_code)]

use std::ops::RangeInclusive;

use serde_json::{Map, Value};

use super::json;
use super::names::Named;
use crate::error::{Error, Result};
use crate::files::SourceFile;
use crate::networks::config::{Config, OtherEnds, Settings, Sizes};
use crate::networks::known;
use crate::networks::table::{Architecture, ShownBy, SizeSpec};

/// A new model comes with a new one.
pub(super) const CONFIG: &str = "config.json";

/// A `config.json` has some twenty lines. All of them are kept, in many times the memory of their text.
const FILE_BYTES_MAX: u64 = 256 << 10;

/// What a `config.json` says.
pub(super) struct Stated {
    /// The file.
    place: String,
    /// 0 where it says nothing and the tensors do.
    sizes: Sizes,
    settings: Settings,
    says_head_norm_epsilon: bool,
    /// All that stands in it.
    pub(super) fields: Map<String, Value>,
}

impl Stated {
    /// # Errors
    /// What is out of its bounds or of another type, and a model of another kind.
    pub(super) fn from_file(file: &SourceFile) -> Result<Self> {
        let fields: Map<String, Value> = json::parse(file, FILE_BYTES_MAX)?;
        Self::from_fields(file.name(), fields).map_err(|e| e.at(file.name()))
    }

    fn from_fields(place: &str, mut fields: Map<String, Value>) -> Result<Self> {
        let architecture = architecture(&fields)?;
        let names = &architecture.hugging_face.config;
        fields.retain(|name, _| !names.ignored.contains(&name.as_str()));
        let mut sizes = Sizes::unknown(architecture);
        for size in architecture.sizes {
            let others = names.other_sizes.iter();
            let others = others.filter(|(field, _)| *field == size.field);
            let all = std::iter::once(size.field).chain(others.map(|(_, other)| *other));
            let stored = first_count(&fields, all, size.min..=size.max)?;
            let n = stored.or_else(|| size.default.map(|default| default(&sizes)));
            (size.set)(&mut sizes, n.unwrap_or(0));
        }
        (names.refuse)(&fields, &sizes).map_err(Error::unsupported)?;
        let lengths = names.context_length.iter().copied();
        let context = first_count(&fields, lengths, 1..=u64::from(u32::MAX))?;
        let trained = Config::of_sizes(sizes).settings;
        let (end_of_text, other_ends_of_text) = ends_of_text(&fields)?;
        let epsilons = names.norm_epsilon.iter().copied();
        let divisor = first_f64(&fields, names.head_divisor.into_iter())?;
        let head_norm = match first_number(&fields, names.head_norm_epsilon.into_iter())? {
            None => divisor.map(|divisor| (divisor * divisor * 1e-5) as f32),
            epsilon => epsilon,
        };
        let stated = Stated {
            place: place.to_owned(),
            sizes,
            settings: Settings {
                head_norm_epsilon: head_norm.unwrap_or(trained.head_norm_epsilon),
                layer_norm_epsilon: first_number(&fields, epsilons)?
                    .unwrap_or(trained.layer_norm_epsilon),
                end_of_text,
                other_ends_of_text,
                bos: token(&fields, "bos_token_id")?,
                context_length: context.unwrap_or(trained.context_length),
                tie_word_embeddings: flag(&fields, "tie_word_embeddings")?,
            },
            says_head_norm_epsilon: head_norm.is_some(),
            fields,
        };
        if stated.left_to_tensors().next().is_none() {
            stated.config().check()?;
        }
        Ok(stated)
    }

    fn config(&self) -> Config {
        Config {
            sizes: self.sizes,
            settings: self.settings,
        }
    }

    /// The sizes that it does not say.
    fn left_out(&self) -> impl Iterator<Item = &'static SizeSpec> + '_ {
        let others = self.sizes.architecture.hugging_face.config.other_sizes;
        let sizes = self.sizes.architecture.sizes.iter();
        sizes.filter(move |size| {
            let mut others = others.iter().filter(|(field, _)| *field == size.field);
            let is_there = |field: &str| present(&self.fields, field).is_some();
            !is_there(size.field) && !others.any(|(_, other)| is_there(other))
        })
    }

    fn left_to_tensors(&self) -> impl Iterator<Item = &'static SizeSpec> + '_ {
        self.left_out().filter(|size| size.default.is_none())
    }

    /// What errors call its sizes.
    pub(super) fn source(&self) -> String {
        let left_out: Vec<_> = self.left_out().map(|size| size.field).collect();
        let others = match self.left_to_tensors().next() {
            Some(_) => "sizes of the other tensors",
            None => "defaults of transformers",
        };
        match left_out[..] {
            [] => CONFIG.to_owned(),
            _ => format!(
                "{CONFIG} (with the {others} for {}, which it does not have)",
                left_out.join(", ")
            ),
        }
    }

    /// All that is configured, with what the tensors say.
    ///
    /// # Errors
    /// Tensors of another architecture, and sizes that no model can have.
    pub(super) fn complete(&self, named: &Named) -> Result<Config> {
        let mut config = self.config();
        let architecture = config.sizes.architecture;
        named.require(architecture, &self.source())?;
        for size in self.left_to_tensors() {
            (size.set)(&mut config.sizes, named.size(size)?);
        }
        // What a model of one layer does not have is not there, whatever is said of its size.
        for size in architecture.sizes {
            let may_lack = matches!(size.shown_by, ShownBy::MatrixIfAny(..));
            if may_lack && named.size(size)? == 0 {
                (size.set)(&mut config.sizes, 0);
            }
        }
        if let (false, Some(epsilon)) = (
            self.says_head_norm_epsilon,
            named.head_norm_epsilon(&config),
        ) {
            config.settings.head_norm_epsilon = epsilon;
        }
        if has_ends_of_0(&config) {
            config.settings.end_of_text = 0;
            config.settings.other_ends_of_text = OtherEnds::default();
            config.settings.bos = 0;
        }
        config.check().map_err(|e| e.at(&self.place))?;
        Ok(config)
    }

    /// What was corrected in [`complete`](Self::complete), for people.
    pub(super) fn correction(&self, config: &Config) -> Option<String> {
        let claimed: Vec<_> = self.settings.ends_of_text().collect();
        let is_wrong = has_ends_of_0(config) && claimed != [0];
        is_wrong.then(|| corrected_end(&self.place, &format!("eos_token_id {claimed:?}")))
    }
}

/// What is told where another end of texts was configured than the vocabulary has.
pub(super) fn corrected_end(place: &str, found: &str) -> String {
    format!(
        "{place}: {found} is said to end texts, which token 0 does in this vocabulary: corrected"
    )
}

/// Whether the vocabulary is one whose texts end with token 0, whatever is configured.
pub(crate) fn has_ends_of_0(config: &Config) -> bool {
    let fields = &config.sizes.architecture.hugging_face.config;
    fields.n_vocab_ended_by_0.contains(&config.sizes.n_vocab)
}

/// The architecture whose directory this is: its name says more than the first tensor that is missing.
fn architecture(fields: &Map<String, Value>) -> Result<&'static Architecture> {
    let all = known::in_directories;
    let expected = |name: fn(&Architecture) -> &str| {
        let names: Vec<_> = all()
            .map(|one| format!("\"{}\" ({})", name(one), one.title))
            .collect();
        known::either(&names)
    };
    let foreign = |found: &Value| found.as_str().and_then(known::foreign_model_type);
    let class = present(fields, "architectures").and_then(|list| list.get(0));
    let refuse_class = |found: &Value| {
        let expected = expected(|one| one.hugging_face.class);
        let title = foreign(found).map_or(String::new(), |title| format!(" ({title})"));
        Error::unsupported(format!("architecture {found}{title}, expected {expected}"))
    };
    if let Some(found) = present(fields, "model_type") {
        let by_version = by_version(fields, found)?;
        let one = all().find(|one| found == one.hugging_face.model_type);
        let Some(one) = by_version.or(one) else {
            let expected = expected(|one| one.hugging_face.model_type);
            let title = foreign(found).map_or(String::new(), |title| format!(" ({title})"));
            let text = format!("model_type {found}{title}, expected {expected}");
            return Err(Error::unsupported(text));
        };
        // Some variants keep the type of what they were made of.
        return match class.filter(|class| foreign(class).is_some()) {
            Some(class) => Err(refuse_class(class)),
            None => Ok(one),
        };
    }
    let Some(found) = class else {
        let types: Vec<_> = all()
            .map(|one| format!("\"{}\"", one.hugging_face.model_type))
            .collect();
        return Err(Error::format(format!(
            "no model_type, expected {}",
            known::either(&types)
        )));
    };
    let one = all().find(|one| found == one.hugging_face.class);
    one.ok_or_else(|| refuse_class(found))
}

/// The architecture by the field that one version of transformers' code has beside a `model_type` that stands for all
/// versions of RWKV.
fn by_version(
    fields: &Map<String, Value>,
    model_type: &Value,
) -> Result<Option<&'static Architecture>> {
    const FIELD: &str = "architecture_version";
    let Some(found) = present(fields, FIELD).filter(|_| model_type == "rwkv") else {
        return Ok(None);
    };
    let name = |one: &Architecture| format!("rwkv{}", one.version);
    let one = known::in_directories().find(|one| *found == *name(one));
    one.map(Some).ok_or_else(|| {
        let names: Vec<_> = known::in_directories()
            .map(|one| format!("\"{}\"", name(one)))
            .collect();
        Error::unsupported(format!(
            "{FIELD} {found}, expected {}",
            known::either(&names)
        ))
    })
}

/// A field that is there and not `null`.
fn present<'a>(fields: &'a Map<String, Value>, name: &str) -> Option<&'a Value> {
    fields.get(name).filter(|value| !value.is_null())
}

/// The first of these fields that is there.
fn first_count<'a>(
    fields: &Map<String, Value>,
    mut names: impl Iterator<Item = &'a str>,
    bounds: RangeInclusive<u64>,
) -> Result<Option<usize>> {
    let found = names.find_map(|name| Some((name, present(fields, name)?)));
    let Some((name, value)) = found else {
        return Ok(None);
    };
    match value.as_u64().filter(|size| bounds.contains(size)) {
        // The bounds are within 32 bits for every field.
        Some(size) => Ok(usize::try_from(size).ok()),
        None => Err(Error::format(format!(
            "{name} {value}, expected {} to {}",
            bounds.start(),
            bounds.end()
        ))),
    }
}

/// A token's id: a number or the first of a list. Minus one and an empty list say that there is none.
fn token(fields: &Map<String, Value>, name: &str) -> Result<u32> {
    let Some(value) = present(fields, name) else {
        return Ok(0);
    };
    let first = match value {
        Value::Array(list) => list.first(),
        value => Some(value),
    };
    let Some(first) = first.filter(|id| !is_no_token(id)) else {
        return Ok(0);
    };
    let id = first.as_u64().and_then(|id| u32::try_from(id).ok());
    id.ok_or_else(|| Error::format(format!("{name} {value}, expected a token id")))
}

/// What programs write where a model has no such token.
fn is_no_token(value: &Value) -> bool {
    value.as_i64() == Some(-1)
}

/// The token that ends a text, and others that do so, too: a number or a list of some.
fn ends_of_text(fields: &Map<String, Value>) -> Result<(u32, OtherEnds)> {
    const FIELD: &str = "eos_token_id";
    let Some(Value::Array(list)) = fields.get(FIELD) else {
        return Ok((token(fields, FIELD)?, OtherEnds::default()));
    };
    let refuse = || {
        let text = serde_json::to_string(list).unwrap_or_default();
        let max = OtherEnds::MAX + 1;
        let text = format!("{FIELD} {text}, expected a token id or a list of at most {max}");
        Error::format(text)
    };
    let mut ids = Vec::new();
    let listed = list.iter().filter(|id| !is_no_token(id));
    for value in listed.take(OtherEnds::MAX + 2) {
        let id = value.as_u64().and_then(|id| u32::try_from(id).ok());
        let id = id.ok_or_else(refuse)?;
        if !ids.contains(&id) {
            ids.push(id);
        }
    }
    let Some((&first, others)) = ids.split_first() else {
        return Ok((0, OtherEnds::default()));
    };
    let others = OtherEnds::try_from(others.to_vec()).map_err(|_| refuse())?;
    Ok((first, others))
}

/// The first of these fields that is there.
fn first_number<'a>(
    fields: &Map<String, Value>,
    names: impl Iterator<Item = &'a str>,
) -> Result<Option<f32>> {
    Ok(first_f64(fields, names)?.map(|number| number as f32))
}

fn first_f64<'a>(
    fields: &Map<String, Value>,
    mut names: impl Iterator<Item = &'a str>,
) -> Result<Option<f64>> {
    let found = names.find_map(|name| Some((name, present(fields, name)?)));
    let Some((name, value)) = found else {
        return Ok(None);
    };
    let number = value.as_f64().map(Some);
    number.ok_or_else(|| Error::format(format!("{name} {value}, expected a number")))
}

fn flag(fields: &Map<String, Value>, name: &str) -> Result<bool> {
    match present(fields, name) {
        None => Ok(false),
        Some(Value::Bool(value)) => Ok(*value),
        Some(value) => Err(Error::format(format!(
            "{name} {value}, expected true or false"
        ))),
    }
}
