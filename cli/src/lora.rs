//! `--lora`: adapters that are merged with a model while it is loaded.

use std::convert::Infallible;
use std::ffi::OsString;

use anyhow::{bail, Result};
use clap::builder::{OsStringValueParser, TypedValueParser};
use rwkv_edge::Lora;

use crate::paths;

/// Which adapters.
#[derive(clap::Args, Clone)]
pub(crate) struct LoraArgs {
    /// Merge an adapter, such as LoRA, with the weights; repeatable
    ///
    /// A .pth or .safetensors file as RWKV-PEFT saves it: LoRA, which needs the lora_alpha that it was trained with,
    /// as a number behind the last colon, such as rwkv-0.pth:32; DiSHA (MiSS) or Bone; or PiSSA, behind a --lora of its
    /// init_lora.pth. Or a folder of PEFT with LoRA, whose adapter_config.json says alpha. Several are merged in the order given. What is saved of a merged model (states, conversations) is
    /// of that and not of its base. A file made by `quantize` is refused: merge before that.
    #[arg(
        long = "lora",
        value_name = "FILE[:ALPHA]",
        value_parser = OsStringValueParser::new().try_map(|text| Ok::<_, Infallible>(parse(text)))
    )]
    pub(crate) loras: Vec<Lora>,
}

impl LoraArgs {
    /// The adapters, if there is a file where each says.
    pub(crate) fn checked(&self) -> Result<&[Lora]> {
        for lora in &self.loras {
            paths::check_link(&lora.file)?;
            let text = lora.file.to_string_lossy();
            let before_colon = text.rsplit_once(':').filter(|_| !lora.file.exists());
            if let Some((file, alpha)) = before_colon {
                if std::path::Path::new(file).exists() {
                    bail!("--lora {text}: alpha {alpha:?}, expected a number behind the colon");
                }
            }
        }
        Ok(&self.loras)
    }
}

/// A file, and what is behind the last colon of the text, if that is a number.
pub(crate) fn parse(text: OsString) -> Lora {
    let parts = text.to_str().and_then(|text| text.rsplit_once(':'));
    match parts.and_then(|(file, alpha)| Some((file, alpha.parse::<f64>().ok()?))) {
        Some((file, alpha)) if !file.is_empty() => Lora::new(file, alpha),
        _ => Lora::new(text, None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_with_and_without_alpha() {
        for (text, file, alpha) in [
            ("a.pth", "a.pth", None),
            ("a.pth:32", "a.pth", Some(32.0)),
            ("c:\\a.pth", "c:\\a.pth", None),
            ("c:\\a.pth:0.5", "c:\\a.pth", Some(0.5)),
            ("a:b", "a:b", None),
            ("a:", "a:", None),
            (":3", ":3", None),
        ] {
            assert_eq!(parse(text.into()), Lora::new(file, alpha), "{text}");
        }
        assert!(parse("a:nan".into()).alpha.is_some_and(f64::is_nan));
    }
}
