//! The small files of a Hugging Face directory: configuration, generation defaults, tokenizer.
//!
//! What the source directory says beyond the sizes is carried over; what nothing says gets the values
//! that the architecture's table has, those of transformers or flash-linear-attention.

#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::{json, Map, Value};

use crate::checkpoint::{has_ends_of_0, Checkpoint};
use crate::error::{Error, ErrorKind, Result};
use crate::files::{Folder, SourceFile};
use crate::math::{copied, reserve};
use crate::networks::config::{decimal, Config, Settings};
use crate::text::tokenizer::{self, Tokenizer};

pub(super) const CONFIG: &str = "config.json";
const GENERATION: &str = "generation_config.json";
/// Whose fields these files have.
const TRANSFORMERS_VERSION: &str = "4.57.6";
/// Tokenizers have a few megabytes.
const FILE_BYTES_MAX: u64 = 256 << 20;

/// Files of a tokenizer that transformers reads, beside World vocabularies; the chat template is one of them.
const TOKENIZER_FILES: [&str; 8] = [
    "chat_template.jinja",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "vocab.txt",
];

/// A small file to be written.
pub(super) struct SideFile {
    pub(super) name: String,
    pub(super) bytes: Vec<u8>,
}

impl SideFile {
    fn json(name: &str, value: &Value) -> Self {
        let mut value = value.clone();
        // The same text whatever order objects keep.
        value.sort_all_objects();
        SideFile {
            name: name.to_owned(),
            bytes: format!("{value:#}\n").into_bytes(),
        }
    }
}

/// `config.json` of the model, whose weights are stored as `dtype`.
pub(super) fn config(checkpoint: &Checkpoint, dtype: &str) -> SideFile {
    let config = &checkpoint.config;
    let names = &config.sizes.architecture.hugging_face.config;
    let owned = |(name, value): (&str, Value)| (name.to_owned(), value);
    let fields = checkpoint.config_fields.clone();
    let mut fields: BTreeMap<String, Value> = fields.into_iter().collect();
    fields.extend(known_fields(config, dtype).into_iter().map(owned));
    for name in names.obsolete {
        fields.remove(*name);
    }
    for (name, value) in (names.defaults)() {
        fields.entry(name.to_owned()).or_insert(value);
    }
    fields.extend((names.computed)(config).into_iter().map(owned));
    SideFile::json(CONFIG, &json!(fields))
}

fn known_fields(config: &Config, dtype: &str) -> Vec<(&'static str, Value)> {
    let (architecture, settings) = (config.sizes.architecture, &config.settings);
    let names = &architecture.hugging_face;
    let epsilon = json!(decimal(settings.layer_norm_epsilon));
    let first = |all: &[&'static str]| all.first().copied().unwrap_or_default();
    let sizes = architecture.sizes.iter();
    let sizes = sizes.map(|size| (size.field, json!((size.get)(&config.sizes))));
    let others = [
        ("architectures", json!([names.class])),
        ("bos_token_id", json!(settings.bos)),
        (
            first(names.config.context_length),
            json!(settings.context_length),
        ),
        ("dtype", json!(dtype)),
        ("eos_token_id", ends_of_text(settings)),
        (first(names.config.norm_epsilon), epsilon),
        ("model_type", json!(names.model_type)),
        ("tie_word_embeddings", json!(settings.tie_word_embeddings)),
        ("transformers_version", json!(TRANSFORMERS_VERSION)),
    ];
    sizes.chain(others).collect()
}

/// The token that ends a text, or a list of those that do.
fn ends_of_text(settings: &Settings) -> Value {
    match settings.ends_of_text().count() {
        1 => json!(settings.end_of_text),
        _ => settings.ends_of_text().collect(),
    }
}

/// `generation_config.json`: the source directory's own, or one that says what `config.json` does.
pub(super) fn generation(checkpoint: &Checkpoint) -> Result<SideFile> {
    let settings = &checkpoint.config.settings;
    if let Some(bytes) = read(checkpoint, GENERATION)? {
        let name = GENERATION.to_owned();
        // What config.json said of ends of texts was corrected, so this is.
        let corrected = has_ends_of_0(&checkpoint.config)
            .then(|| serde_json::from_slice::<Map<String, Value>>(&bytes).ok());
        if let Some(mut fields) = corrected.flatten() {
            fields.insert("bos_token_id".into(), json!(settings.bos));
            fields.insert("eos_token_id".into(), ends_of_text(settings));
            return Ok(SideFile::json(GENERATION, &Value::Object(fields)));
        }
        return Ok(SideFile { name, bytes });
    }
    let fields = json!({
        "_from_model_config": true,
        "bos_token_id": settings.bos,
        "eos_token_id": ends_of_text(settings),
        "transformers_version": TRANSFORMERS_VERSION,
    });
    Ok(SideFile::json(GENERATION, &fields))
}

/// The files of a tokenizer: of the file that was asked for, the one within the source, those of the source
/// directory, or the one beside a lone file. `notes` gets why one is left out.
pub(super) fn tokenizer(
    checkpoint: &Checkpoint,
    file: Option<&Path>,
    notes: &mut Vec<String>,
) -> Result<Vec<SideFile>> {
    let inside = checkpoint.tokenizer.as_ref();
    if let (None, Some(inside), true) = (file, inside, checkpoint.has_tokenizer_inside) {
        let bytes = copied(&inside.bytes, "a tokenizer")?;
        let name = inside.name.clone();
        return Ok(vec![SideFile { name, bytes }]);
    }
    match (file, &checkpoint.folder) {
        (Some(path), _) => {
            let file = SourceFile::open_without_mapping(path)?;
            tokenizer_files(&checkpoint.config, path, file.name(), whole(&file)?)
        }
        (None, Some(folder)) => {
            let mut files = Vec::new();
            for name in folder
                .list()?
                .into_iter()
                .filter(|name| is_tokenizer_file(name))
            {
                if let Some(bytes) = read(checkpoint, &name)? {
                    files.push(SideFile { name, bytes });
                }
            }
            Ok(files)
        }
        (None, None) => {
            let Some(beside) = inside else {
                return Ok(Vec::new());
            };
            let bytes = copied(&beside.bytes, "a tokenizer")?;
            let path = Path::new(&beside.name);
            let files = tokenizer_files(&checkpoint.config, path, &beside.place, bytes);
            // It may be that of another model.
            files.or_else(|error| match error.kind() {
                ErrorKind::Tokenizer => {
                    notes.push(format!("passed over {error}"));
                    Ok(Vec::new())
                }
                _ => Err(error),
            })
        }
    }
}

/// Whether a directory's tokenizer would be read from a file of this name.
pub(super) fn is_tokenizer_file(name: &str) -> bool {
    TOKENIZER_FILES.contains(&name) || (name.starts_with("rwkv_vocab") && name.ends_with(".txt"))
}

/// Those of a directory that has the tokenizer of a file; `path` may be nothing but its name.
fn tokenizer_files(
    config: &Config,
    path: &Path,
    place: &str,
    bytes: Vec<u8>,
) -> Result<Vec<SideFile>> {
    match Tokenizer::from_bytes(place, &bytes) {
        Ok(tokenizer) => tokenizer.check_fits(config.sizes.n_vocab)?,
        // A sound file of a kind that this build cannot read is passed on all the same.
        Err(e) if e.kind() == ErrorKind::Unsupported => {}
        Err(e) => return Err(e),
    }
    if tokenizer::are_world(&bytes) {
        let own = path.file_name().and_then(|name| name.to_str());
        let name = own.filter(|name| is_tokenizer_file(name) && name.ends_with(".txt"));
        let name = name.unwrap_or("vocab.txt").to_owned();
        return Ok(vec![SideFile { name, bytes }]);
    }
    let parsed: Value = serde_json::from_slice(&bytes)
        .map_err(|e| Error::new(ErrorKind::Tokenizer, e.to_string()).at(place))?;
    let mut added = Map::new();
    let mut special = Map::new();
    for token in parsed["added_tokens"].as_array().into_iter().flatten() {
        let mut token = token.clone();
        let Some(id) = token["id"].as_u64() else {
            continue;
        };
        for (role, of_role) in [
            ("bos_token", config.settings.bos),
            ("eos_token", config.settings.end_of_text),
        ] {
            if id == u64::from(of_role) && token["special"] == true {
                special.insert(role.into(), token["content"].clone());
            }
        }
        if let Some(fields) = token.as_object_mut() {
            fields.remove("id");
        }
        added.insert(id.to_string(), token);
    }
    let mut settings = json!({
        "added_tokens_decoder": added,
        "clean_up_tokenization_spaces": false,
        "extra_special_tokens": {},
        "tokenizer_class": "PreTrainedTokenizerFast",
    });
    if let Some(settings) = settings.as_object_mut() {
        settings.extend(special.clone());
    }
    Ok(vec![
        SideFile::json("tokenizer_config.json", &settings),
        SideFile::json("special_tokens_map.json", &special.into()),
        SideFile {
            name: "tokenizer.json".into(),
            bytes,
        },
    ])
}

/// A file of the source directory; `None` if there is none, or the source is no directory.
fn read(checkpoint: &Checkpoint, name: &str) -> Result<Option<Vec<u8>>> {
    let folder: &Folder = match &checkpoint.folder {
        Some(folder) => folder,
        None => return Ok(None),
    };
    match folder.open(name, false)? {
        Some(file) => whole(&file).map(Some),
        None => Ok(None),
    }
}

fn whole(file: &SourceFile) -> Result<Vec<u8>> {
    if file.len() > FILE_BYTES_MAX {
        let text = format!("{} bytes, expected at most {FILE_BYTES_MAX}", file.len());
        return Err(Error::format(text).at(file.name()));
    }
    let bytes = file.bytes(0..file.len())?;
    let mut copy = reserve(bytes.len(), "a small file of the model")?;
    copy.extend_from_slice(&bytes);
    Ok(copy)
}
