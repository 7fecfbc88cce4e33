//! What the host calls by names. Each is looked up once, when a stage is made or a tensor comes: a pass sees no text.

use crate::{unsupported, wrong, Result};

/// The one architecture that `network.rs` computes.
pub(crate) const ARCHITECTURE: &str = "rwkv-4";

/// How numbers are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Quant {
    F32,
    F16,
    Int8,
}

impl Quant {
    pub(crate) fn of(name: &str) -> Result<Self> {
        match name {
            "f32" => Ok(Quant::F32),
            "f16" => Ok(Quant::F16),
            "int8" => Ok(Quant::Int8),
            _ => unsupported(format!("quant {name}: not known here")),
        }
    }

    /// Bytes of one value.
    pub(crate) fn value_bytes(self) -> u64 {
        match self {
            Quant::F32 => 4,
            Quant::F16 => 2,
            Quant::Int8 => 1,
        }
    }
}

/// The tensors of RWKV-4.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Tensor {
    Embedding,
    NormInWeight,
    NormInBias,
    AttNormWeight,
    AttNormBias,
    AttMixKey,
    AttMixValue,
    AttMixReceptance,
    AttDecayLog,
    AttBonus,
    AttKey,
    AttValue,
    AttReceptance,
    AttOutput,
    FfnNormWeight,
    FfnNormBias,
    FfnMixKey,
    FfnMixReceptance,
    FfnKey,
    FfnReceptance,
    FfnValue,
    NormOutWeight,
    NormOutBias,
    Head,
}

impl Tensor {
    pub(crate) const ALL: [(Tensor, &'static str); 24] = [
        (Tensor::Embedding, "emb.weight"),
        (Tensor::NormInWeight, "ln0.weight"),
        (Tensor::NormInBias, "ln0.bias"),
        (Tensor::AttNormWeight, "ln1.weight"),
        (Tensor::AttNormBias, "ln1.bias"),
        (Tensor::AttMixKey, "att.time_mix_k"),
        (Tensor::AttMixValue, "att.time_mix_v"),
        (Tensor::AttMixReceptance, "att.time_mix_r"),
        (Tensor::AttDecayLog, "att.decay_log"),
        (Tensor::AttBonus, "att.time_first"),
        (Tensor::AttKey, "att.key.weight"),
        (Tensor::AttValue, "att.value.weight"),
        (Tensor::AttReceptance, "att.receptance.weight"),
        (Tensor::AttOutput, "att.output.weight"),
        (Tensor::FfnNormWeight, "ln2.weight"),
        (Tensor::FfnNormBias, "ln2.bias"),
        (Tensor::FfnMixKey, "ffn.time_mix_k"),
        (Tensor::FfnMixReceptance, "ffn.time_mix_r"),
        (Tensor::FfnKey, "ffn.key.weight"),
        (Tensor::FfnReceptance, "ffn.receptance.weight"),
        (Tensor::FfnValue, "ffn.value.weight"),
        (Tensor::NormOutWeight, "ln_out.weight"),
        (Tensor::NormOutBias, "ln_out.bias"),
        (Tensor::Head, "head.weight"),
    ];

    pub(crate) fn of(name: &str) -> Result<Self> {
        match Self::ALL.iter().find(|(_, known)| *known == name) {
            Some((tensor, _)) => Ok(*tensor),
            None => unsupported(format!(
                "tensor {name}: {ARCHITECTURE} has none of that name"
            )),
        }
    }
}

/// The values of `names` among those given, each at most once and no others.
pub(crate) fn chosen<T: Copy, const N: usize>(
    what: &str,
    names: [&str; N],
    given: &[(String, T)],
) -> Result<[Option<T>; N]> {
    let mut found = [None; N];
    for (name, value) in given {
        let Some(at) = names.iter().position(|known| known == name) else {
            return unsupported(format!("{what} {name}: expected one of {names:?}"));
        };
        if found[at].replace(*value).is_some() {
            return wrong(format!("{what} {name}: twice"));
        }
    }
    Ok(found)
}

/// The same, where none may be missing.
pub(crate) fn all<T: Copy + Default, const N: usize>(
    what: &str,
    names: [&str; N],
    given: &[(String, T)],
) -> Result<[T; N]> {
    let found = chosen(what, names, given)?;
    match found.iter().position(Option::is_none) {
        Some(at) => wrong(format!("{what} {}: missing", names[at])),
        None => Ok(found.map(Option::unwrap_or_default)),
    }
}
