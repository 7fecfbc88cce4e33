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
    /// Beginnings of names, without prefix and layer and in raw checkpoints' spelling, that no line below has. What
    /// begins with a dot may be anywhere in a name.
    marks: &'static [&'static str],
    /// One of these is there, too, if anything stands here: for names that other networks have as well.
    beside: &'static [&'static str],
    /// None of these is there.
    without: &'static [&'static str],
    /// `None`: it cannot run here.
    architecture: Option<&'static Architecture>,
}

/// What cannot run here, and what shows it.
const fn other(title: &'static str, marks: &'static [&'static str]) -> Known {
    Known {
        title,
        marks,
        beside: &[],
        without: &[],
        architecture: None,
    }
}

impl Known {
    const fn beside(mut self, marks: &'static [&'static str]) -> Self {
        self.beside = marks;
        self
    }

    const fn without(mut self, marks: &'static [&'static str]) -> Self {
        self.without = marks;
        self
    }

    const fn runs(mut self, architecture: &'static Architecture) -> Self {
        self.architecture = Some(architecture);
        self
    }
}

/// Time mixings of RWKV, of any version.
const TIME_MIXING: &[&str] = &[
    "att.x_",
    "att.r_k",
    "att.time_",
    "attn.x_",
    "attn.k_k",
    "attn.r_k",
    "attn.w_lora.",
    "attn.bonus",
];

const DEEP_EMBED: &str = "RWKV-7a (DeepEmbed)";
const QWEN_6: &str = "QRWKV6 (time mixing of RWKV-6 in a transformer)";
const QWEN_7: &str = "ARWKV7 (time mixing of RWKV-7 in a transformer)";
const HYBRID: &str = "a hybrid of RWKV and attention";
const EXPERTS: &str = "RWKV with a mixture of experts";

/// The first line that matches any tensor names the model. Newer versions keep some tensors of older ones, and variants
/// those of what they were made of, so the newest come first, and RWKV-4, which any layer is a mark of, last.
static KNOWN: &[Known] = &[
    other("RWKV-8 (ROSA)", &["rosa", ".rosa"]),
    other("RWKV-8 (DeepEmbed)", &["ffn.enn."]),
    other("RWKV-7b (DeepEmbed and DEA attention)", &["qkv."]),
    other(DEEP_EMBED, &["ffn.s_emb", "ffn.s0", "ffn.s1", "ffn.s2"]),
    other(
        "RWKV-X (sparse attention beside RWKV-7)",
        &["moba", ".moba"],
    ),
    other(
        EXPERTS,
        &[
            ".experts.",
            "ffn.expert",
            "ffn.router",
            "ffn.gate.",
            "mlp.gate.",
            "mlp.router",
        ],
    )
    .beside(TIME_MIXING),
    other(
        QWEN_7,
        &[
            "self_attn.time_mixer.",
            "self_attn.x_",
            "self_attn.w0",
            "self_attn.a0",
            "self_attn.k_k",
            "self_attn.r_k",
        ],
    ),
    other(
        QWEN_7,
        &["att.receptance.bias", "att.key.bias", "att.value.bias"],
    )
    .beside(&["att.x_", "att.w0", "att.a0"]),
    other(QWEN_6, &["self_attn.time_"]),
    other(
        QWEN_6,
        &["att.receptance.bias", "att.key.bias", "att.value.bias"],
    )
    .beside(&["att.time_maa"]),
    other(QWEN_6, &["att.time_maa_w1"]).without(&["att.time_faaaa"]),
    other(HYBRID, &["self_attn.", "attn.q_proj."]).beside(TIME_MIXING),
    other(
        "a variant of RWKV-6 with another norm, x060b or x060c",
        &["att.time_maa_rkvw"],
    ),
    // As flash-linear-attention calls them.
    other("RWKV-6", &["attn.x_proj.", "attn.bonus"]),
    other(
        "RWKV-7",
        &[
            "att.x_", "att.w0", "att.a0", "att.k_k", "att.r_k", "ffn.x_k", "attn.x_", "attn.k_k",
        ],
    )
    .runs(&v7::ARCHITECTURE),
    other(
        "RWKV-6",
        &[
            "att.time_maa",
            "ffn.time_maa",
            "att.time_decay_w",
            "att.time_mix_w1",
            // In GGUF files.
            "time_mix_first",
            "time_mix_decay",
            "time_mix_lerp_x",
        ],
    ),
    other(
        "RWKV-5",
        &["att.ln_x.", "att.gate.", "att.time_mix_g", "att.time_faaaa"],
    ),
    other(
        "a variant of RWKV-4 with extra attention, such as RWKV-4a",
        &[
            "att.qq.",
            "att.time_mix_qq",
            "att.att_mask",
            "tiny_",
            "head_q.",
            "copy_mask",
        ],
    ),
    other(
        "a variant of RWKV-4 with another channel mixing, such as RWKV-4b",
        &["ffn.aa.", "ffn.bb."],
    ),
    other("RWKV-4", &["blocks.", "emb."]).runs(&v4::ARCHITECTURE),
];

/// `model_type` or class, but for capitals, in the `config.json` of networks that cannot run here, and their titles.
static OTHER_TYPES: &[(&str, &str)] = &[
    ("rwkv5", "RWKV-5"),
    ("Rwkv5ForCausalLM", "RWKV-5"),
    ("rwkv6", "RWKV-6"),
    ("Rwkv6ForCausalLM", "RWKV-6"),
    ("rwkv6qwen2", QWEN_6),
    ("Rwkv6Qwen2ForCausalLM", QWEN_6),
    ("rwkv_hybrid", QWEN_7),
    ("RwkvHybridForCausalLM", QWEN_7),
    ("arwkv7", QWEN_7),
    ("rwkv7moe", EXPERTS),
    ("Rwkv7MoeForCausalLM", EXPERTS),
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

/// The titles of those that run here, for texts, oldest first.
pub(crate) fn titles() -> String {
    let mut all: Vec<_> = architectures().collect();
    all.sort_by_key(|architecture| architecture.version);
    let titles: Vec<_> = all.iter().map(|architecture| architecture.title).collect();
    titles.join(" or ")
}

/// What network a `model_type` or class of a `config.json` stands for that cannot run here.
pub(crate) fn other_type(name: &str) -> Option<&'static str> {
    let found = OTHER_TYPES
        .iter()
        .find(|one| one.0.eq_ignore_ascii_case(name));
    found.map(|(_, title)| *title)
}

/// Fields of a `config.json` that change an architecture into another network when they are neither `null` nor
/// `false`, and what it is then.
pub(crate) const CHANGING_FIELDS: [(&str, &str); 2] =
    [("attn", HYBRID), ("use_deep_embed", DEEP_EMBED)];

/// What the names of tensors show: the architecture, or the tensor that shows another kind of network, and which.
/// `None`: they show nothing.
pub(crate) fn shown<'a>(
    names: impl Iterator<Item = &'a str> + Clone,
) -> Option<std::result::Result<&'static Architecture, (&'a str, &'static str)>> {
    KNOWN.iter().find_map(|known| {
        let find = |marks: &[&str]| names.clone().find(|name| is_marked(name, marks));
        let name = find(known.marks)?;
        if (!known.beside.is_empty() && find(known.beside).is_none())
            || find(known.without).is_some()
        {
            return None;
        }
        Some(known.architecture.ok_or((name, known.title)))
    })
}

/// Whether a name has one of these marks, in any spelling.
fn is_marked(name: &str, marks: &[&str]) -> bool {
    let has = |name: &str, mark: &str| {
        behind_number(name).starts_with(mark)
            || name.starts_with(mark)
            || (mark.starts_with('.') && name.contains(mark))
    };
    let shows = |name: &str| marks.iter().any(|mark| has(name, mark));
    shows(name) || architectures().any(|one| shows(&one.hugging_face.raw(name)))
}
