//! Chat templates that come with a model: in a folder, beside a lone file, or within a GGUF or model file.
//!
//! Only the text is found here. It is a program in Jinja, of somebody else's: what runs it must bound it.

#![forbid(unsafe_code)]

use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::open::{folder_of, MODEL_FILE_FORMAT};
use super::{gguf, json, SafetensorsFile};
use crate::error::{Error, Result};
use crate::files::{retried, Folder, SourceFile};

/// Published ones have a few kilobytes.
pub(super) const TEXT_BYTES_MAX: u64 = 256 << 10;

/// Files of the World models list every token.
const CONFIG_BYTES_MAX: u64 = 16 << 20;

const TEMPLATE: &str = "chat_template.jinja";
const CONFIG: &str = "tokenizer_config.json";
/// What a folder calls a model file, as any other weights.
const WEIGHTS: &str = "model.safetensors";
/// The key of a model file's metadata. Earlier versions of the program pass over it.
pub(crate) const METADATA: &str = "chat_template";

/// The chat template of a model's files.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ChatTemplate {
    /// Where it was found, for texts.
    pub place: String,
    /// Jinja, as transformers runs it; or `rwkv-world`, which older GGUF files say for the form of the World models.
    pub text: String,
    /// What the template writes for the token that begins a text, where that is said.
    pub bos_token: Option<String>,
    /// The same for the one that ends it.
    pub eos_token: Option<String>,
}

impl ChatTemplate {
    /// One that came from elsewhere.
    pub fn new(place: impl Into<String>, text: impl Into<String>) -> Self {
        ChatTemplate {
            place: place.into(),
            text: text.into(),
            bos_token: None,
            eos_token: None,
        }
    }

    /// As a model file keeps it.
    pub(crate) fn to_metadata(&self) -> String {
        let kept = Kept {
            template: self.text.clone(),
            bos_token: self.bos_token.clone(),
            eos_token: self.eos_token.clone(),
        };
        serde_json::json!(kept).to_string()
    }
}

/// What a model file keeps of a template.
#[derive(Serialize, Deserialize)]
struct Kept {
    template: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    bos_token: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    eos_token: Option<String>,
}

/// What concerns chats.
#[derive(Default, Deserialize)]
struct TokenizerConfig {
    #[serde(default)]
    chat_template: Option<Value>,
    #[serde(default)]
    bos_token: Option<Value>,
    #[serde(default)]
    eos_token: Option<Value>,
}

/// That of a folder or a file; `None` where there is none.
///
/// # Errors
/// What cannot be read, or is no text.
pub(crate) fn read(path: &Path) -> Result<Option<ChatTemplate>> {
    let found = retried(|| std::fs::metadata(path)).map_err(|e| Error::io("open", path, e))?;
    if found.is_dir() {
        return of_folder(&Folder::Disk(path.to_owned()));
    }
    let inside = of_file(&SourceFile::open_without_mapping(path)?)?;
    inside.map_or_else(|| of_small_files(&folder_of(path)), |found| Ok(Some(found)))
}

fn of_folder(folder: &Folder) -> Result<Option<ChatTemplate>> {
    if let Some(found) = of_small_files(folder)? {
        return Ok(Some(found));
    }
    if let Some(file) = folder.open(WEIGHTS, false)? {
        return of_file(&file);
    }
    let names = folder.list()?;
    let mut files = names.iter().filter(|name| name.ends_with(".gguf"));
    let file = match (files.next(), files.next()) {
        (Some(name), None) => folder.open(name, false)?,
        _ => None,
    };
    file.map_or(Ok(None), |file| of_file(&file))
}

/// That of the files which transformers reads it from.
fn of_small_files(folder: &Folder) -> Result<Option<ChatTemplate>> {
    let config = folder.open(CONFIG, false)?;
    let place = config.as_ref().map(|file| file.name().to_owned());
    let config: Option<TokenizerConfig> = config
        .map(|file| json::parse(&file, CONFIG_BYTES_MAX))
        .transpose()?;
    let config = config.unwrap_or_default();
    let (bos_token, eos_token) = (
        token(config.bos_token.as_ref()),
        token(config.eos_token.as_ref()),
    );
    let with = |place: String, text: String| {
        Some(ChatTemplate {
            place,
            text,
            bos_token: bos_token.clone(),
            eos_token: eos_token.clone(),
        })
    };
    if let Some(file) = folder.open(TEMPLATE, false)? {
        let bytes = json::read_small(&file, TEXT_BYTES_MAX)?;
        let text = std::str::from_utf8(&bytes);
        let text = text.map_err(|_| Error::format("not UTF-8").at(file.name()))?;
        return Ok(with(file.name().to_owned(), text.to_owned()));
    }
    if let (Some(text), Some(place)) = (config.chat_template.as_ref().and_then(default), place) {
        return Ok(with(place, text));
    }
    Ok(None)
}

/// That within a file.
fn of_file(file: &SourceFile) -> Result<Option<ChatTemplate>> {
    let start = file.bytes(0..file.len().min(64))?;
    if gguf::recognises(&start) {
        let text = gguf::chat_template(file)?;
        return Ok(text.map(|text| ChatTemplate::new(file.name(), text)));
    }
    match SafetensorsFile::recognises(&start) {
        true => of_metadata(&SafetensorsFile::open(file.clone())?),
        false => Ok(None),
    }
}

/// That of a model file.
fn of_metadata(file: &SafetensorsFile) -> Result<Option<ChatTemplate>> {
    let is_model_file = file.metadata.get("format").map(String::as_str) == Some(MODEL_FILE_FORMAT);
    let Some(json) = file.metadata.get(METADATA).filter(|_| is_model_file) else {
        return Ok(None);
    };
    let damaged = |e| {
        let text = format!("metadata: damaged `{METADATA}`: {e}");
        Error::format(text).at(file.file.name())
    };
    let kept: Kept = serde_json::from_str(json).map_err(damaged)?;
    Ok(Some(ChatTemplate {
        place: file.file.name().to_owned(),
        text: kept.template,
        bos_token: kept.bos_token,
        eos_token: kept.eos_token,
    }))
}

/// One template, or that of several which is called `default`.
fn default(value: &Value) -> Option<String> {
    let of_list = |list: &Vec<Value>| {
        let default = list.iter().find(|one| one["name"] == "default")?;
        Some(default["template"].as_str()?.to_owned())
    };
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Array(list) => of_list(list),
        _ => None,
    }
}

/// Its text, which may have settings around it.
fn token(value: Option<&Value>) -> Option<String> {
    let value = value?;
    let text = value.as_str().or_else(|| value["content"].as_str());
    text.map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_have_them_in_several_places() {
        let folder = tempfile::tempdir().expect("a folder");
        let write = |name: &str, text: &str| {
            std::fs::write(folder.path().join(name), text).expect("can be written");
        };
        let found = || read(folder.path()).expect("can be read");
        assert_eq!(found(), None);
        write(CONFIG, r#"{"eos_token": {"content": "e"}, "more": [1]}"#);
        assert_eq!(found(), None);
        let list = r#"[{"name": "x", "template": "X"}, {"name": "default", "template": "D"}]"#;
        for (json, text) in [("\"T\"", "T"), (list, "D")] {
            let config = format!(r#"{{"bos_token": "b", "chat_template": {json}}}"#);
            write(CONFIG, &config);
            let found = found().expect("there");
            assert_eq!(found.text, text);
            assert_eq!(found.bos_token.as_deref(), Some("b"));
            assert!(found.place.ends_with(CONFIG), "{}", found.place);
        }
        write(TEMPLATE, "{{ bos_token }}");
        assert_eq!(found().expect("there").text, "{{ bos_token }}");
        write(TEMPLATE, &"x".repeat(TEXT_BYTES_MAX as usize + 1));
        let error = read(folder.path()).expect_err("too large").to_string();
        assert!(error.contains(TEMPLATE), "{error}");
        // What lies beside a lone file counts, too, whatever is in it.
        let other = folder.path().join("weights.pth");
        std::fs::write(&other, "x").expect("can be written");
        let error = read(&other).expect_err("too large").to_string();
        assert!(error.contains(TEMPLATE), "{error}");
        write(TEMPLATE, "beside");
        let found = read(&other).expect("a file").expect("there");
        assert_eq!(
            (&*found.text, found.bos_token.as_deref()),
            ("beside", Some("b"))
        );
        for name in [TEMPLATE, CONFIG] {
            std::fs::remove_file(folder.path().join(name)).expect("there");
        }
        assert_eq!(read(&other).expect("a file"), None);
    }
}
