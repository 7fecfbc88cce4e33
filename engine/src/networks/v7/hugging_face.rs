//! RWKV-7 in Hugging Face directories: as flash-linear-attention writes it, and as transformers' own code does.
//!
//! The former has names of its own and keeps low-rank matrices as linear layers do, transposed; the latter has the raw
//! names behind a prefix. Both are read, flash-linear-attention's are written.

#![forbid(unsafe_code)]

use serde_json::{json, Map, Value};

use crate::networks::config::{decimal, Config, Sizes, WORLD_VOCABULARY};
use crate::networks::config_fields::ConfigFields;
use crate::networks::names::HuggingFace;

pub(super) const HUGGING_FACE: HuggingFace = HuggingFace {
    model_type: "rwkv7",
    class: "RWKV7ForCausalLM",
    prefix: "model.",
    other_prefixes: &["rwkv7."],
    layers: "layers.",
    parts: &[
        ("emb.", "embeddings."),
        ("ln_out.", "norm."),
        ("head.", "lm_head."),
        ("ln0.", "pre_norm."),
        ("ln1.", "attn_norm."),
        ("ln2.", "ffn_norm."),
        ("att.receptance.", "attn.r_proj."),
        ("att.key.", "attn.k_proj."),
        ("att.value.", "attn.v_proj."),
        ("att.output.", "attn.o_proj."),
        ("att.ln_x.", "attn.g_norm."),
        ("att.w0", "attn.w_lora.lora.2.bias"),
        ("att.w1", "attn.w_lora.lora.0.weight"),
        ("att.w2", "attn.w_lora.lora.2.weight"),
        ("att.a0", "attn.a_lora.lora.2.bias"),
        ("att.a1", "attn.a_lora.lora.0.weight"),
        ("att.a2", "attn.a_lora.lora.2.weight"),
        ("att.v0", "attn.v_lora.lora.2.bias"),
        ("att.v1", "attn.v_lora.lora.0.weight"),
        ("att.v2", "attn.v_lora.lora.2.weight"),
        ("att.g1", "attn.g_lora.lora.0.weight"),
        ("att.g2", "attn.g_lora.lora.2.weight"),
        ("att.", "attn."),
    ],
    leaves: &[],
    // Linear layers under the raw names, in some versions of transformers' own code.
    also_read: &[
        ("att.w1", "att.w1.weight"),
        ("att.w2", "att.w2.weight"),
        ("att.a1", "att.a1.weight"),
        ("att.a2", "att.a2.weight"),
        ("att.v1", "att.v1.weight"),
        ("att.v2", "att.v2.weight"),
        ("att.g1", "att.g1.weight"),
        ("att.g2", "att.g2.weight"),
    ],
    transposed: &[
        ".lora.0.weight",
        ".lora.2.weight",
        ".att.w1.weight",
        ".att.w2.weight",
        ".att.a1.weight",
        ".att.a2.weight",
        ".att.v1.weight",
        ".att.v2.weight",
        ".att.g1.weight",
        ".att.g2.weight",
    ],
    // As the first versions of flash-linear-attention had them.
    in_one: &[(
        "att.x_x",
        &[
            "att.x_r", "att.x_w", "att.x_k", "att.x_v", "att.x_a", "att.x_g",
        ],
    )],
    joined: &[],
    flat: &[
        "att.w0", "att.a0", "att.v0", "att.k_k", "att.k_a", "ffn.x_k",
    ],
    order: &[
        "ln0.weight",
        "ln0.bias",
        "ln1.weight",
        "ln1.bias",
        "att.x_r",
        "att.x_w",
        "att.x_k",
        "att.x_v",
        "att.x_a",
        "att.x_g",
        "att.k_k",
        "att.k_a",
        "att.r_k",
        "att.receptance.weight",
        "att.key.weight",
        "att.value.weight",
        "att.output.weight",
        "att.w1",
        "att.w2",
        "att.w0",
        "att.v1",
        "att.v2",
        "att.v0",
        "att.a1",
        "att.a2",
        "att.a0",
        "att.g1",
        "att.g2",
        "att.ln_x.weight",
        "att.ln_x.bias",
        "ln2.weight",
        "ln2.bias",
        "ffn.x_k",
        "ffn.key.weight",
        "ffn.value.weight",
    ],
    config: ConfigFields {
        other_sizes: &[("head_dim", "head_size")],
        norm_epsilon: &["norm_eps", "layer_norm_epsilon"],
        context_length: &["max_position_embeddings", "context_length"],
        head_norm_epsilon: Some(HEAD_NORM_EPSILON),
        head_divisor: None,
        ignored: &[],
        scaled_head_norm: Some("attn.g_norm.weight"),
        // World's and, of two sizes, those of the Pile models. Many directories say 1 and 2, which flash-linear-attention writes where it is told nothing, or
        // an id that no training text had. Nothing is said about it: the weights leave no doubt.
        n_vocab_ended_by_0: &[WORLD_VOCABULARY, 50_304, 50_277],
        has_tied_heads_only: true,
        refuse,
        derived: |_| Vec::new(),
        // Of transformers' own code, which says the same in other fields; and of code that is not copied.
        obsolete: &[
            "architecture_version",
            "attention_hidden_size",
            "auto_map",
            "context_length",
            "deep_embedding",
            "embedding_layer_norm_fused",
            HEAD_NORM_EPSILON,
            "head_size",
            "layer_norm_epsilon",
            "torch_dtype",
            "use_deep_embed",
            "wkv_state_dtype",
        ],
        defaults: || {
            vec![
                ("attn", Value::Null),
                ("attn_mode", json!("chunk")),
                ("fuse_cross_entropy", json!(true)),
                ("fuse_norm", json!(false)),
                ("initializer_range", json!(0.006)),
                ("pad_token_id", json!(0)),
                ("use_cache", json!(true)),
            ]
        },
        computed,
    },
};

/// Fields that say what the arithmetic is, each with the only value that it can have here, and what others mean.
const FIXED: &[(&str, Fixed, &str)] = &[
    (
        "attn",
        Fixed::Null,
        "a hybrid of RWKV-7 with layers of attention",
    ),
    (
        "use_deep_embed",
        Fixed::Flag(false),
        "RWKV-7a, which has embeddings in each layer",
    ),
    (
        "deep_embedding",
        Fixed::Flag(false),
        "embeddings that are normalised already",
    ),
    (
        "embedding_layer_norm_fused",
        Fixed::Flag(false),
        "embeddings that are normalised already",
    ),
    (
        "norm_first",
        Fixed::Flag(true),
        "embeddings that are not normalised",
    ),
    ("norm_bias", Fixed::Flag(true), "norms without bias"),
    (
        "hidden_act",
        Fixed::Text("sqrelu"),
        "another activation of the channel mixing",
    ),
];

enum Fixed {
    Null,
    Flag(bool),
    Text(&'static str),
}

fn refuse(fields: &Map<String, Value>, sizes: &Sizes) -> Result<(), String> {
    for (name, fixed, meaning) in FIXED {
        let found = fields.get(*name).filter(|value| !value.is_null());
        let Some(found) = found else {
            continue;
        };
        let (is_right, expected) = match fixed {
            Fixed::Null => (false, Value::Null),
            Fixed::Flag(flag) => (found == flag, json!(flag)),
            Fixed::Text(text) => (found == text, json!(text)),
        };
        if !is_right {
            // Lists and objects may have any length.
            let found = match found {
                Value::Object(_) | Value::Array(_) => String::new(),
                found => format!(" {found}"),
            };
            return Err(format!("{name}{found}: {meaning}, expected {expected}"));
        }
    }
    let channels = match sizes.n_attention {
        0 => sizes.n_embd,
        channels => channels,
    };
    let widths = match fields.get("value_dim") {
        Some(Value::Array(widths)) => widths.as_slice(),
        Some(width) if !width.is_null() => std::slice::from_ref(width),
        _ => &[],
    };
    let mut wrong = widths.iter().enumerate();
    match wrong.find(|(_, width)| channels > 0 && **width != channels) {
        None => Ok(()),
        Some((layer, width)) => {
            // What is no number may have any length.
            let width = width
                .as_f64()
                .map_or("no number".to_owned(), |_| width.to_string());
            Err(format!(
                "value_dim {width} of layer {layer}, expected {channels} as for keys"
            ))
        }
    }
}

/// Of the norms of heads, where it is not that of the other norms times the channels of a head.
const HEAD_NORM_EPSILON: &str = "group_norm_epsilon";

fn computed(config: &Config) -> Vec<(&'static str, Value)> {
    let sizes = &config.sizes;
    let channels = sizes.n_attention;
    let mut fields = vec![
        ("hidden_act", json!("sqrelu")),
        (
            "hidden_ratio",
            json!(sizes.n_hidden as f64 / sizes.n_embd.max(1) as f64),
        ),
        ("norm_bias", json!(true)),
        ("norm_first", json!(true)),
        ("num_heads", json!(channels / sizes.head_size.max(1))),
        ("value_dim", json!(vec![channels; sizes.n_layer])),
    ];
    if channels != sizes.n_embd {
        fields.push(("attention_hidden_size", json!(channels)));
    }
    // flash-linear-attention knows no such field, and always scales: there the norms of heads that are not 64 wide are
    // a little different, which only quiet heads show.
    let (settings, head_size) = (&config.settings, sizes.head_size);
    if settings.head_norm_epsilon != settings.scaled_head_norm_epsilon(head_size) {
        let epsilon = decimal(settings.head_norm_epsilon);
        fields.push((HEAD_NORM_EPSILON, json!(epsilon)));
    }
    fields
}
