//! Which architectures there are: those that run here, and those that are only recognised, so that an error says what
//! a model is.

#![forbid(unsafe_code)]

use super::names::behind_number;
use super::table::Architecture;
use super::{v4, v7};
use crate::error::{Error, Result};

/// A kind of network that its tensors show.
struct Known {
    title: &'static str,
    /// Beginnings of names, without prefix and layer and in raw checkpoints' spelling, that no line below has.
    marks: &'static [&'static str],
    /// `None`: it cannot run here.
    architecture: Option<&'static Architecture>,
}

/// The first line that matches any tensor names the model. Newer versions keep some tensors of older ones, so the newest
/// come first, and RWKV-4, which any layer is a mark of, last.
static KNOWN: &[Known] = &[
    Known {
        title: "RWKV-8, or another successor of RWKV-7",
        marks: &["ffn.enn.", "rosa"],
        architecture: None,
    },
    Known {
        title: "RWKV-7b, a variant of RWKV-7 with extra attention",
        marks: &["qkv."],
        architecture: None,
    },
    Known {
        title: "RWKV-7a, a variant of RWKV-7 with embeddings in each layer",
        marks: &["ffn.s_emb", "ffn.s0", "ffn.s1", "ffn.s2"],
        architecture: None,
    },
    Known {
        title: "RWKV-7",
        // Versions 6 of others have `attn.x_proj`.
        marks: &[
            "att.x_r", "att.x_w", "att.x_x", "att.w0", "att.a0", "att.k_k", "att.r_k", "ffn.x_k",
        ],
        architecture: Some(&v7::ARCHITECTURE),
    },
    Known {
        title: "RWKV-6",
        marks: &[
            "att.time_maa",
            "ffn.time_maa",
            "att.time_decay_w",
            "att.time_mix_w1",
        ],
        architecture: None,
    },
    Known {
        title: "RWKV-5",
        marks: &["att.ln_x.", "att.gate.", "att.time_mix_g", "att.time_faaaa"],
        architecture: None,
    },
    Known {
        title: "a variant of RWKV-4 with extra attention, such as RWKV-4a",
        marks: &[
            "att.qq.",
            "att.time_mix_qq",
            "att.att_mask",
            "tiny_",
            "head_q.",
            "copy_mask",
        ],
        architecture: None,
    },
    Known {
        title: "a variant of RWKV-4 with another channel mixing, such as RWKV-4b",
        marks: &["ffn.aa.", "ffn.bb."],
        architecture: None,
    },
    Known {
        title: "RWKV-4",
        marks: &["blocks.", "emb."],
        architecture: Some(&v4::ARCHITECTURE),
    },
];

/// Those that run here.
pub(crate) fn architectures() -> impl Iterator<Item = &'static Architecture> + Clone {
    KNOWN.iter().filter_map(|known| known.architecture)
}

/// That of made-up models of version 4.
pub(crate) fn version_4() -> &'static Architecture {
    &v4::ARCHITECTURE
}

/// The same of version 7.
pub(crate) fn version_7() -> &'static Architecture {
    &v7::ARCHITECTURE
}

/// The architecture of that name in model files.
///
/// # Errors
/// `Unsupported` for one that does not run here.
pub(crate) fn by_name(name: &str) -> Result<&'static Architecture> {
    let found = architectures().find(|architecture| architecture.name == name);
    found.ok_or_else(|| {
        let names: Vec<_> = architectures()
            .map(|architecture| architecture.name)
            .collect();
        Error::unsupported(format!(
            "architecture {name}, expected {}",
            names.join(" or ")
        ))
    })
}

/// The `model_type` that a `config.json` has for each architecture that this crate runs, and the architecture's name for
/// people.
pub fn model_types() -> Vec<(&'static str, &'static str)> {
    let types = architectures().map(|one| (one.hugging_face.model_type, one.title));
    types.collect()
}

/// What a `model_type` stands for that cannot run here, where its name does not say that.
pub(crate) fn foreign_model_type(name: &str) -> Option<&'static str> {
    const FOREIGN: [(&str, &str); 4] = [
        ("rwkv7moe", "RWKV-7 with a mixture of experts"),
        (
            "rwkv6qwen2",
            "QRWKV6, a Qwen2 with RWKV-6 for its attention",
        ),
        (
            "rwkv_hybrid",
            "ARWKV, a Qwen2 with RWKV-7 for its attention",
        ),
        ("arwkv7", "ARWKV, a Qwen2 with RWKV-7 for its attention"),
    ];
    let found = FOREIGN.iter().find(|(one, _)| *one == name);
    found.map(|(_, title)| *title)
}

/// The titles of those that run here, for texts.
pub(crate) fn titles() -> String {
    let titles: Vec<_> = architectures()
        .map(|architecture| architecture.title)
        .collect();
    titles.join(" or ")
}

/// What the names of tensors show: the architecture, or the tensor that shows another kind of network, and which.
/// `None`: they show nothing.
pub(crate) fn shown<'a>(
    names: impl Iterator<Item = &'a str> + Clone,
) -> Option<std::result::Result<&'static Architecture, (&'a str, &'static str)>> {
    KNOWN.iter().find_map(|known| {
        let shows = |name: &str| {
            let is_marked =
                |mark: &&str| behind_number(name).starts_with(mark) || name.starts_with(mark);
            known.marks.iter().any(is_marked)
        };
        // Versions that do not run here have the spelling of RWKV-4's directories.
        let own = known.architecture.unwrap_or(&v4::ARCHITECTURE);
        let mut names = names.clone();
        let name = names.find(|name| shows(name) || shows(&own.hugging_face.raw(name)))?;
        Some(known.architecture.ok_or((name, known.title)))
    })
}
