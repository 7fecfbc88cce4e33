//! Which architectures there are: those that run here, and those that are only recognised, so that an error says what
//! a model is.

#![forbid(unsafe_code)]

use super::names::behind_number;
use super::table::Architecture;
use super::{v4, v5, v6, v7};
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

/// The gate of RWKV-5.1 and 5.2.
const GATE: &[&str] = &["att.gate.", "att.time_mix_g"];

const QWEN_6: &str = "QRWKV6, a Qwen2 with RWKV-6 for its attention";
const QWEN_7: &str = "ARWKV7, a Qwen2 with RWKV-7 for its attention";

/// The first line that matches any tensor names the model. Newer versions keep some tensors of older ones, and variants
/// those of what they were made of, so the newest come first, and RWKV-4, which any layer is a mark of, last.
static KNOWN: &[Known] = &[
    other("RWKV-8 (ROSA)", &["rosa", ".rosa"]),
    other("RWKV-8 (DeepEmbed)", &["ffn.enn."]),
    other("RWKV-7b (DeepEmbed and DEA attention)", &["qkv."]),
    other(
        "RWKV-7a (DeepEmbed)",
        &["ffn.s_emb", "ffn.s0", "ffn.s1", "ffn.s2"],
    ),
    other(
        "RWKV-X (sparse attention beside RWKV-7)",
        &["moba", ".moba"],
    ),
    other(
        "RWKV with a mixture of experts",
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
    // They have no bonus for the present token.
    other(QWEN_6, &["att.time_maa_w1"]).without(&["att.time_faaaa"]),
    other(
        "a hybrid of RWKV and attention",
        &["self_attn.", "attn.q_proj."],
    )
    .beside(TIME_MIXING),
    other(
        "a variant of RWKV-6 with another norm, x060b or x060c",
        &["att.time_maa_rkvw"],
    ),
    other(
        "RWKV-6 as flash-linear-attention has it",
        &["attn.x_proj.", "attn.bonus"],
    ),
    other(
        "RWKV-7",
        &[
            "att.x_r", "att.x_w", "att.x_x", "att.w0", "att.a0", "att.k_k", "att.r_k", "ffn.x_k",
        ],
    )
    .runs(&v7::ARCHITECTURE),
    other(
        "RWKV-6 by the names of web-rwkv's converter",
        &["att.time_mix_w1"],
    ),
    other(
        "RWKV-6",
        &["att.time_maa", "ffn.time_maa", "att.time_decay_w"],
    )
    .runs(&v6::ARCHITECTURE),
    other(
        "RWKV-6 by names that only GGUF files have",
        &["time_mix_first", "time_mix_decay", "time_mix_lerp_x"],
    ),
    other("RWKV-5.0", &["att.ln_x."])
        .without(GATE)
        .runs(&v5::WITHOUT_GATE),
    other("RWKV-5", GATE).runs(&v5::ARCHITECTURE),
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
static FOREIGN_TYPES: &[(&str, &str)] = &[
    ("rwkv6qwen2", QWEN_6),
    ("Rwkv6Qwen2ForCausalLM", QWEN_6),
    ("rwkv_hybrid", QWEN_7),
    ("RwkvHybridForCausalLM", QWEN_7),
    ("arwkv7", QWEN_7),
    ("rwkv7moe", "RWKV-7 with a mixture of experts"),
    ("Rwkv7MoeForCausalLM", "RWKV-7 with a mixture of experts"),
];

/// Those that run here.
pub(crate) fn architectures() -> impl Iterator<Item = &'static Architecture> + Clone {
    KNOWN.iter().filter_map(|known| known.architecture)
}

/// Those that there are Hugging Face directories of.
pub(crate) fn in_directories() -> impl Iterator<Item = &'static Architecture> + Clone {
    architectures().filter(|one| !one.is_only_raw)
}

/// That of made-up models of version 4.
pub(crate) fn version_4() -> &'static Architecture {
    &v4::ARCHITECTURE
}

/// The same of version 5.
pub(crate) fn version_5() -> &'static Architecture {
    &v5::ARCHITECTURE
}

/// The same of version 6.
pub(crate) fn version_6() -> &'static Architecture {
    &v6::ARCHITECTURE
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
        Error::unsupported(format!("architecture {name}, expected {}", either(&names)))
    })
}

/// The `model_type` that a `config.json` has for each architecture that this crate runs, and the architecture's name for
/// people.
pub fn model_types() -> Vec<(&'static str, &'static str)> {
    let types = in_directories().map(|one| (one.hugging_face.model_type, one.title));
    types.collect()
}

/// The titles of those that run here, for texts, oldest first; without variants, whose titles begin with that of their
/// version.
pub(crate) fn titles() -> String {
    let mut all: Vec<_> = in_directories().collect();
    all.sort_by_key(|architecture| architecture.version);
    let titles: Vec<_> = all.iter().map(|architecture| architecture.title).collect();
    either(&titles)
}

/// All of these as one text: `a, b or c`.
pub(crate) fn either<T: AsRef<str>>(names: &[T]) -> String {
    let mut text = String::new();
    for (at, name) in names.iter().enumerate() {
        text += match names.len() - at {
            _ if at == 0 => "",
            1 => " or ",
            _ => ", ",
        };
        text += name.as_ref();
    }
    text
}

/// What a `model_type` or class of a `config.json` stands for that cannot run here.
pub(crate) fn foreign_model_type(name: &str) -> Option<&'static str> {
    let found = FOREIGN_TYPES
        .iter()
        .find(|one| one.0.eq_ignore_ascii_case(name));
    found.map(|(_, title)| *title)
}

/// What the names of tensors show: the architecture, or the tensor that shows another kind of network, and which.
/// `None`: they show nothing.
pub(crate) fn shown<'a>(
    names: impl Iterator<Item = &'a str>,
) -> Option<std::result::Result<&'static Architecture, (&'a str, &'static str)>> {
    let lines = KNOWN.iter().map(|known| (known, Seen::default()));
    let mut lines: Vec<_> = lines.collect();
    for name in names {
        // Versions that do not run here have the spelling of RWKV-4's directories.
        let raw = v4::ARCHITECTURE.hugging_face.raw(name);
        let of_all = [name, &raw].map(Spelling::of);
        for (known, seen) in &mut lines {
            let own = known.architecture.map(|one| one.hugging_face.raw(name));
            let spellings = match &own {
                Some(own) => [of_all[0], Spelling::of(own)],
                None => of_all,
            };
            let has_any = |marks| spellings.iter().any(|spelling| spelling.has_any(marks));
            if seen.marked.is_none() && has_any(known.marks) {
                seen.marked = Some(name);
            }
            seen.is_beside |= has_any(known.beside);
            seen.is_ruled_out |= has_any(known.without);
        }
    }
    lines.into_iter().find_map(|(known, seen)| {
        let name = seen.marked?;
        let is_beside = known.beside.is_empty() || seen.is_beside;
        let is_it = is_beside && !seen.is_ruled_out;
        is_it.then(|| known.architecture.ok_or((name, known.title)))
    })
}

/// What names have shown of a line.
#[derive(Default)]
struct Seen<'a> {
    /// The first that has a mark.
    marked: Option<&'a str>,
    is_beside: bool,
    is_ruled_out: bool,
}

/// A name, and what it has behind the number of its layer.
#[derive(Clone, Copy)]
struct Spelling<'a>(&'a str, &'a str);

impl<'a> Spelling<'a> {
    fn of(name: &'a str) -> Self {
        Spelling(name, behind_number(name))
    }

    fn has_any(&self, marks: &[&str]) -> bool {
        let Spelling(name, behind) = *self;
        marks.iter().any(|mark| {
            let is_anywhere = mark.starts_with('.') && name.contains(mark);
            behind.starts_with(mark) || name.starts_with(mark) || is_anywhere
        })
    }
}
