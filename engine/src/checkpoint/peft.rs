//! Folders of PEFT: LoRA's weights, and beside them `adapter_config.json`, which says by what they are multiplied.
//!
//! What PEFT can do beyond that changes what the numbers mean, and is refused by the name of its setting.

#![forbid(unsafe_code)]

use std::path::{Path, PathBuf};

use serde::de::IgnoredAny;

use super::adapter::{CONFIG, CONFIG_BYTES_MAX};
use super::json::{self, StringOrNot, UniqueMap};
use crate::error::{Error, Result};
use crate::files::{Access, SourceFile};

/// What PEFT calls the weights.
const WEIGHTS: [&str; 2] = ["adapter_model.safetensors", "adapter_model.bin"];

/// What it puts in front of the model's own names.
const PREFIX: &str = "base_model.model.";

/// Beginnings of an adapter that leave the model's weights alone; all others take them off these first.
const INITS: [&str; 3] = ["gaussian", "orthogonal", "eva"];

/// The settings that matter for LoRA.
#[derive(serde::Deserialize)]
struct Config {
    peft_type: Option<StringOrNot>,
    r: Option<usize>,
    lora_alpha: Option<f64>,
    use_rslora: Option<bool>,
    alpha_pattern: Option<UniqueMap<f64>>,
    rank_pattern: Option<UniqueMap<usize>>,
    init_lora_weights: Option<StringOrNot>,
    use_dora: Option<bool>,
    use_qalora: Option<bool>,
    fan_in_fan_out: Option<bool>,
    layer_replication: Option<IgnoredAny>,
    alora_invocation_tokens: Option<IgnoredAny>,
}

/// By what the product of LoRA's matrices is multiplied, for each matrix of a model.
#[derive(Clone, Debug)]
pub(super) struct Scaling {
    alpha: f64,
    /// Alphas of matrices whose names end so; the first one that fits.
    alphas: Vec<(String, f64)>,
    /// Divided by the square root of the rank (rsLoRA), not by the rank.
    by_root: bool,
    /// What ranks must be, if anything says it, and those of other matrices.
    rank: Option<usize>,
    ranks: Vec<(String, usize)>,
}

impl Scaling {
    /// One alpha for all, as the user gives it.
    pub(super) fn of_alpha(alpha: f64) -> Self {
        Scaling {
            alpha,
            alphas: Vec::new(),
            by_root: false,
            rank: None,
            ranks: Vec::new(),
        }
    }

    /// The factor for a matrix of an adapter by the name of its tensor `lora_A`.
    ///
    /// # Errors
    /// Another rank than the configuration says.
    pub(super) fn factor(&self, tensor: &str, rank: usize) -> Result<f64> {
        let module = tensor.split(".lora_A").next().unwrap_or(tensor);
        let module = without_prefix(module);
        if let Some(expected) = by_pattern(&self.ranks, module).or(self.rank) {
            if rank != expected {
                let text = format!("rank {rank}, expected {expected} as {CONFIG} says");
                return Err(Error::format(text));
            }
        }
        let alpha = by_pattern(&self.alphas, module).unwrap_or(self.alpha);
        Ok(match self.by_root {
            true => alpha / (rank as f64).sqrt(),
            false => alpha / rank as f64,
        })
    }

    /// The alpha of all matrices.
    pub(super) fn alpha(&self) -> f64 {
        self.alpha
    }

    /// What says more than the one alpha, as text that differs where results do; empty where nothing does.
    pub(super) fn beyond_alpha(&self) -> String {
        let mut text = String::new();
        if self.by_root {
            text.push_str(" by the square root of the rank");
        }
        for (name, alpha) in &self.alphas {
            text.push_str(&format!(", {alpha} for {name}"));
        }
        text
    }
}

/// PEFT takes the first key that fits the end of a name from a point on.
fn by_pattern<T: Copy>(patterns: &[(String, T)], module: &str) -> Option<T> {
    let fits = |key: &str| {
        let before = module.strip_suffix(key);
        before.is_some_and(|before| before.is_empty() || before.ends_with('.'))
    };
    patterns.iter().find(|(key, _)| fits(key)).map(|of| of.1)
}

/// A name as the model has it.
pub(super) fn without_prefix(name: &str) -> &str {
    name.strip_prefix(PREFIX).unwrap_or(name)
}

/// The file of weights that is meant, and the configuration beside it, if there is one.
///
/// # Errors
/// A folder without one of them.
pub(super) fn find(path: &Path) -> Result<(PathBuf, Option<PathBuf>)> {
    let is_folder = path.is_dir();
    let folder = match is_folder {
        true => path,
        false => path.parent().unwrap_or(Path::new("")),
    };
    let config = Some(folder.join(CONFIG)).filter(|config| config.is_file());
    if !is_folder {
        return Ok((path.to_owned(), config));
    }
    let mut files = WEIGHTS.iter().map(|name| folder.join(name));
    let missing = match (files.find(|file| file.is_file()), &config) {
        (Some(file), Some(_)) => return Ok((file, config)),
        (None, _) => WEIGHTS[0],
        (_, None) => CONFIG,
    };
    let text = format!(
        "a folder without {missing}, expected an adapter as PEFT saves it, with {CONFIG} and {}, or the file of one",
        WEIGHTS[0]
    );
    Err(Error::format(text).at(path.display()))
}

/// What a configuration says; `None` if it is of another kind of adapter.
///
/// # Errors
/// What cannot be read, and settings that would change what the numbers mean.
pub(super) fn read(path: &Path, access: Access) -> Result<Option<Scaling>> {
    let file = SourceFile::open_with(path, access)?;
    let config: Config = json::parse(&file, CONFIG_BYTES_MAX)?;
    scaling(config).map_err(|e| e.at(file.name()))
}

fn scaling(config: Config) -> Result<Option<Scaling>> {
    let kind = config.peft_type.and_then(|text| text.0);
    if kind.as_deref() != Some("LORA") {
        return Ok(None);
    }
    let init = config.init_lora_weights.and_then(|text| text.0);
    let other_init = init.is_some_and(|init| !INITS.contains(&init.as_str()));
    for (name, is_set) in [
        ("use_dora", config.use_dora == Some(true)),
        ("use_qalora", config.use_qalora == Some(true)),
        ("fan_in_fan_out", config.fan_in_fan_out == Some(true)),
        ("init_lora_weights", other_init),
        ("layer_replication", config.layer_replication.is_some()),
        (
            "alora_invocation_tokens",
            config.alora_invocation_tokens.is_some(),
        ),
    ] {
        if is_set {
            let text = format!(
                "{name} is set, expected plain LoRA: merge it into its model with merge_and_unload() of PEFT"
            );
            return Err(Error::unsupported(text));
        }
    }
    let alphas = config.alpha_pattern.map_or(Vec::new(), |map| map.0);
    let ranks = config.rank_pattern.map_or(Vec::new(), |map| map.0);
    let names = alphas.iter().map(|(key, _)| ("alpha_pattern", key));
    let is_plain = |c: char| c.is_alphanumeric() || "._-".contains(c);
    for (field, key) in names.chain(ranks.iter().map(|(key, _)| ("rank_pattern", key))) {
        if key.is_empty() || !key.chars().all(is_plain) {
            let text =
                format!("{field} has {key:?}, a regular expression, expected names of modules");
            return Err(Error::unsupported(text));
        }
    }
    let Some(alpha) = config.lora_alpha else {
        return Err(Error::format("no lora_alpha, expected a number"));
    };
    let all = alphas.iter().map(|(_, alpha)| *alpha).chain([alpha]);
    if let Some(alpha) = all.into_iter().find(|a| !(a.is_finite() && *a > 0.0)) {
        let text = format!("lora_alpha {alpha}, expected a finite number above 0");
        return Err(Error::format(text));
    }
    Ok(Some(Scaling {
        alpha,
        alphas,
        by_root: config.use_rslora == Some(true),
        rank: config.r,
        ranks,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Option<Scaling>> {
        scaling(serde_json::from_str(text).expect("JSON"))
    }

    #[test]
    fn factors() {
        let config = r#"{"peft_type": "LORA", "r": 4, "lora_alpha": 8, "use_rslora": false,
            "alpha_pattern": {"0.att.key": 2, "key": 16}, "rank_pattern": {"value": 2}, "init_lora_weights": true,
            "layer_replication": null, "use_dora": false, "bias": "none", "target_modules": ["key"]}"#;
        let scaling = read(config).expect("valid").expect("LoRA");
        let factor = |name: &str, rank| scaling.factor(name, rank).map_err(|e| e.to_string());
        let with = |name: &str| format!("base_model.model.blocks.{name}.lora_A.weight");
        assert_eq!(factor(&with("1.att.output"), 4), Ok(2.0));
        assert_eq!(factor(&with("0.att.key"), 4), Ok(0.5));
        assert_eq!(factor(&with("10.att.key"), 4), Ok(4.0));
        assert_eq!(factor(&with("1.att.keykey"), 4), Ok(2.0));
        assert_eq!(factor(&with("1.att.value"), 2), Ok(4.0));
        let wrong = factor(&with("1.att.value"), 4).expect_err("another rank");
        assert!(wrong.contains("rank 4, expected 2"), "{wrong}");
        let by_root = config.replace("\"use_rslora\": false", "\"use_rslora\": true");
        let scaling = read(&by_root).expect("valid").expect("LoRA");
        assert_eq!(scaling.factor("x.lora_A", 4).ok(), Some(4.0));
        assert!(scaling.beyond_alpha().contains("square root"));
        assert_eq!(Scaling::of_alpha(3.0).beyond_alpha(), "");
    }

    #[test]
    fn what_is_not_plain_lora_is_named() {
        for (more, word) in [
            (r#","use_dora": true"#, "use_dora"),
            (
                r#","init_lora_weights": "pissa_niter_4""#,
                "init_lora_weights",
            ),
            (r#","layer_replication": [[0, 1]]"#, "layer_replication"),
            (r#","alpha_pattern": {"^k": 2}"#, "alpha_pattern"),
            (r#","rank_pattern": {"(a|b)": 2}"#, "rank_pattern"),
            (r#","alpha_pattern": {"k": 0}"#, "lora_alpha 0"),
        ] {
            let text = format!(r#"{{"peft_type":"LORA","lora_alpha":1,"r":2{more}}}"#);
            let error = read(&text).expect_err("refused").to_string();
            assert!(error.contains(word), "{error}");
        }
        let none = read(r#"{"peft_type":"LORA","r":2}"#).expect_err("refused");
        assert!(none.to_string().contains("no lora_alpha"));
        assert!(read(r#"{"peft_type":"MISS","r":2}"#).is_ok_and(|found| found.is_none()));
    }
}
