//! Folders of PEFT, which hold LoRA or another adapter and not the model that it belongs to.

#![forbid(unsafe_code)]

use super::json::{self, StringOrNot};
use crate::error::Error;
use crate::files::SourceFile;

/// What PEFT writes beside the adapter's weights.
pub(super) const CONFIG: &str = "adapter_config.json";

/// Such a file has some thirty lines.
pub(super) const CONFIG_BYTES_MAX: u64 = 1 << 20;

/// What is said of the adapter.
#[derive(serde::Deserialize)]
struct Config {
    peft_type: Option<StringOrNot>,
    base_model_name_or_path: Option<StringOrNot>,
}

/// Why a folder with an adapter's configuration and no model cannot be opened.
pub(super) fn without_model(config: &SourceFile) -> Error {
    let place = config.name();
    let config: Config = match json::parse(config, CONFIG_BYTES_MAX) {
        Ok(config) => config,
        Err(error) => return error,
    };
    let text = |field: Option<StringOrNot>| field.and_then(|text| text.0);
    let kind = match text(config.peft_type) {
        Some(kind) => format!("an adapter ({kind})"),
        None => "an adapter, such as LoRA,".to_owned(),
    };
    let base = match text(config.base_model_name_or_path) {
        Some(base) => format!("{base:?}"),
        None => "its base model".to_owned(),
    };
    Error::unsupported(format!(
        "{kind} without its model, expected a whole model: merge it into {base} first, with merge_and_unload() of \
         PEFT, and save that"
    ))
    .at(place)
}
