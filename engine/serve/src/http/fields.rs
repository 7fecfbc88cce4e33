//! Fields of requests. A field is honoured, or accepted because it changes no answer, or known and accepted as long as
//! it asks for what happens anyway; every other one is an error that names it. So nothing is asked for in vain.

use serde_json::{Map, Value};

use super::error::{ApiError, Result};

/// What a kind of request may have.
pub(super) struct Lists {
    /// Fields that are read.
    pub(super) honoured: &'static [&'static str],
    /// Fields that tell the server nothing about the answer.
    pub(super) without_effect: &'static [&'static str],
    /// Fields of other servers, with the values that ask for what happens here anyway, as JSON.
    pub(super) only_default: &'static [(&'static str, &'static [&'static str])],
}

/// What clients send with everything: who asks, for bookkeeping, and where to look for what was kept.
const WITHOUT_EFFECT: &[&str] = &[
    "cache_prompt",
    "include_reasoning",
    "metadata",
    "parallel_tool_calls",
    "prompt_cache_key",
    "prompt_cache_retention",
    "safety_identifier",
    "service_tier",
    "store",
    "user",
];

/// How tokens are drawn.
macro_rules! drawing {
    ($($more:literal),* $(,)?) => {
        &[
            "frequency_penalty", "grammar", "grammar_form", "ignore_eos", "logit_bias", "logprobs", "max_tokens",
            "min_p", "model", "n", "penalty_decay", "presence_penalty", "regex", "repetition_penalty",
            "response_format", "seed", "session", "stop", "stream", "stream_options", "temperature",
            "temperature_last", "top_k", "top_p", "typical_p",
            $($more),*
        ]
    };
}

/// What other servers know of answers, and what turns it off.
macro_rules! not_drawing {
    ($($more:expr),* $(,)?) => {
        &[
            ("audio", &[]),
            ("best_of", &["1"]),
            ("function_call", &["\"none\"", "\"auto\""]),
            ("functions", &["[]"]),
            ("length_penalty", &["1"]),
            ("min_tokens", &["0"]),
            ("mirostat", &["0"]),
            ("modalities", &["[\"text\"]"]),
            ("n_probs", &["0"]),
            ("prediction", &[]),
            ("skip_special_tokens", &["true"]),
            ("spaces_between_special_tokens", &["true"]),
            ("tfs_z", &["1"]),
            ("tool_choice", &["\"none\"", "\"auto\""]),
            ("tools", &["[]"]),
            ("top_a", &["0"]),
            ("use_beam_search", &["false"]),
            ("verbosity", &["\"medium\""]),
            ("web_search_options", &[]),
            $($more),*
        ]
    };
}

pub(super) const CHAT: Lists = Lists {
    honoured: drawing!(
        "max_completion_tokens",
        "messages",
        "reasoning_effort",
        "think",
        "top_logprobs",
    ),
    without_effect: WITHOUT_EFFECT,
    only_default: not_drawing!(
        ("add_generation_prompt", &["true"]),
        ("chat_template_kwargs", &["{}"]),
        ("continue_final_message", &["false"]),
        ("echo", &["false"]),
    ),
};

pub(super) const COMPLETIONS: Lists = Lists {
    honoured: drawing!("echo", "prompt"),
    without_effect: WITHOUT_EFFECT,
    only_default: not_drawing!(("suffix", &["\"\""])),
};

/// Of Anthropic's `/v1/messages`.
pub(super) const MESSAGES: Lists = Lists {
    honoured: &[
        "max_tokens",
        "messages",
        "model",
        "session",
        "stop_sequences",
        "stream",
        "system",
        "temperature",
        "thinking",
        "top_k",
        "top_p",
    ],
    without_effect: &[
        "cache_control",
        "diagnostics",
        "metadata",
        "service_tier",
        "user_profile_id",
        "workspace_id",
    ],
    only_default: &[
        ("container", &[]),
        ("context_management", &[]),
        ("inference_geo", &[]),
        ("mcp_servers", &["[]"]),
        ("output_config", &["{}"]),
        ("output_format", &[]),
        ("speed", &["\"standard\""]),
        ("tool_choice", &["{\"type\":\"none\"}"]),
        ("tools", &["[]"]),
    ],
};

/// Of its `/v1/messages/count_tokens`.
pub(super) const COUNT_TOKENS: Lists = Lists {
    honoured: &["messages", "model", "system", "thinking"],
    ..MESSAGES
};

pub(super) const EMBEDDINGS: Lists = Lists {
    honoured: &["dimensions", "encoding_format", "input", "model", "pooling"],
    without_effect: WITHOUT_EFFECT,
    only_default: &[("truncate_prompt_tokens", &[])],
};

pub(super) const TOKENIZE: Lists = Lists {
    honoured: &[
        "content",
        "messages",
        "model",
        "prompt",
        "reasoning_effort",
        "think",
    ],
    without_effect: &[],
    only_default: &[
        ("add_special", &["false", "true"]),
        ("add_special_tokens", &["false", "true"]),
        ("with_pieces", &["false"]),
    ],
};

pub(super) const DETOKENIZE: Lists = Lists {
    honoured: &["model", "tokens"],
    without_effect: &[],
    only_default: &[],
};

pub(super) const FORK: Lists = Lists {
    honoured: &["to"],
    without_effect: &[],
    only_default: &[],
};

/// Fields of one request, or of an object in it.
pub(super) struct Fields {
    fields: Map<String, Value>,
    honoured: &'static [&'static str],
    /// In front of the names, where this is an object in a request: `place.`
    prefix: String,
}

impl Fields {
    /// # Errors
    ///
    /// A field that is on no list, with its name.
    pub(super) fn new(fields: Map<String, Value>, lists: &Lists) -> Result<Self> {
        Self::read(String::new(), fields, lists)
    }

    /// Fields of an object in a request, which errors name by where it is.
    ///
    /// # Errors
    ///
    /// As [`new`](Self::new).
    pub(super) fn within(place: &str, fields: Map<String, Value>, lists: &Lists) -> Result<Self> {
        Self::read(format!("{place}."), fields, lists)
    }

    fn read(prefix: String, fields: Map<String, Value>, lists: &Lists) -> Result<Self> {
        for (name, value) in &fields {
            let is_listed = |list: &[&str]| list.contains(&name.as_str());
            if value.is_null() || is_listed(lists.honoured) || is_listed(lists.without_effect) {
                let is_known = is_listed(lists.honoured)
                    || is_listed(lists.without_effect)
                    || lists.only_default.iter().any(|(known, _)| known == name);
                if is_known {
                    continue;
                }
            }
            let known = lists.only_default.iter().find(|(known, _)| known == name);
            let name = &format!("{prefix}{name}");
            let Some((_, accepted)) = known else {
                let text = format!("unknown field {name}: nothing here knows what it means");
                return Err(ApiError::bad(text).param(name).code("unknown_parameter"));
            };
            if !accepted.iter().any(|text| is_same(text, value)) {
                let expected = match accepted.is_empty() {
                    true => "null, since there is nothing of the kind here".to_owned(),
                    false => format!(
                        "{}, since there is nothing else here",
                        accepted.join(" or ")
                    ),
                };
                let error = ApiError::field(name, value, expected);
                return Err(error.code("unsupported_parameter"));
            }
        }
        Ok(Fields {
            fields,
            honoured: lists.honoured,
            prefix,
        })
    }

    /// A field as errors name it.
    pub(super) fn place(&self, name: &str) -> String {
        format!("{}{name}", self.prefix)
    }

    /// The value of a field; `None` where it is null or not there.
    pub(super) fn take(&mut self, name: &str) -> Option<Value> {
        debug_assert!(self.honoured.contains(&name), "{name} is on no list");
        self.fields.remove(name).filter(|value| !value.is_null())
    }

    pub(super) fn flag(&mut self, name: &str) -> Result<Option<bool>> {
        let Some(value) = self.take(name) else {
            return Ok(None);
        };
        match value.as_bool() {
            Some(flag) => Ok(Some(flag)),
            None => Err(ApiError::field(&self.place(name), &value, "true or false")),
        }
    }

    pub(super) fn text(&mut self, name: &str) -> Result<Option<String>> {
        match self.take(name) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(other) => Err(ApiError::field(&self.place(name), &other, "a string")),
        }
    }

    /// A number within a range.
    pub(super) fn number(&mut self, name: &str, min: f64, max: f64) -> Result<Option<f32>> {
        let Some(value) = self.take(name) else {
            return Ok(None);
        };
        let number = value.as_f64().filter(|number| (min..=max).contains(number));
        match number {
            Some(number) => Ok(Some(number as f32)),
            None => Err(ApiError::field(
                &self.place(name),
                &value,
                format!("a number from {min} to {max}"),
            )),
        }
    }

    /// A whole number within a range.
    pub(super) fn whole(&mut self, name: &str, min: usize, max: usize) -> Result<Option<usize>> {
        let Some(value) = self.take(name) else {
            return Ok(None);
        };
        let number = value
            .as_u64()
            .and_then(|number| usize::try_from(number).ok());
        match number.filter(|number| (min..=max).contains(number)) {
            Some(number) => Ok(Some(number)),
            None => {
                let expected = match max {
                    usize::MAX => format!("a whole number, at least {min}"),
                    max => format!("a whole number from {min} to {max}"),
                };
                Err(ApiError::field(&self.place(name), &value, expected))
            }
        }
    }
}

/// Whether a value is that of a JSON text; numbers by what they are worth.
fn is_same(text: &str, value: &Value) -> bool {
    match serde_json::from_str::<Value>(text) {
        Ok(Value::Number(number)) => value.is_number() && number.as_f64() == value.as_f64(),
        Ok(expected) => expected == *value,
        Err(_) => false,
    }
}
