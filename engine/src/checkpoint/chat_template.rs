//! Chat templates that come with a model: in a folder, or within a GGUF file.
//!
//! Only the text is found here. It is a program in Jinja, of somebody else's: what runs it must bound it.

#![forbid(unsafe_code)]

use std::path::Path;

use serde::Deserialize;
use serde_json::Value;

use super::{gguf, json};
use crate::error::{Error, Result};
use crate::files::{retried, Folder, SourceFile};

/// Published ones have a few kilobytes.
pub(super) const TEXT_BYTES_MAX: u64 = 256 << 10;

/// Files of the World models list every token.
const CONFIG_BYTES_MAX: u64 = 16 << 20;

const TEMPLATE: &str = "chat_template.jinja";
const CONFIG: &str = "tokenizer_config.json";

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
    match found.is_dir() {
        true => of_folder(&Folder::Disk(path.to_owned())),
        false => of_file(&SourceFile::open_without_mapping(path)?),
    }
}

fn of_folder(folder: &Folder) -> Result<Option<ChatTemplate>> {
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
    let names = folder.list()?;
    let mut files = names.iter().filter(|name| name.ends_with(".gguf"));
    let file = match (files.next(), files.next()) {
        (Some(name), None) => folder.open(name, false)?,
        _ => None,
    };
    file.map_or(Ok(None), |file| of_file(&file))
}

fn of_file(file: &SourceFile) -> Result<Option<ChatTemplate>> {
    if !gguf::recognises(&file.bytes(0..file.len().min(64))?) {
        return Ok(None);
    }
    let text = gguf::chat_template(file)?;
    Ok(text.map(|text| ChatTemplate::new(file.name(), text)))
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
        let other = folder.path().join("weights.pth");
        std::fs::write(&other, "x").expect("can be written");
        assert_eq!(read(&other).expect("a file"), None);
    }
}
