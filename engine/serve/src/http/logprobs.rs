//! Log-probabilities of tokens in the two forms that clients read.

use rwkv_edge::Tokenizer;
use serde_json::{json, Map, Value};

use super::error::Result;
use crate::job::Chosen;

/// Stands for a probability of zero, since JSON has no infinity.
const LOGPROB_MIN: f32 = -9999.0;

fn number(logprob: f32) -> f64 {
    let logprob = match logprob.is_finite() {
        true => logprob.max(LOGPROB_MIN),
        false => LOGPROB_MIN,
    };
    f64::from(logprob)
}

fn text(tokenizer: &Tokenizer, token: u32) -> Result<String> {
    Ok(tokenizer.decode(&[token])?)
}

/// As chat completions have it.
pub(super) fn of_chat(tokenizer: &Tokenizer, chosen: &[Chosen]) -> Result<Value> {
    let one = |token: u32, logprob: f32| -> Result<Value> {
        let text = text(tokenizer, token)?;
        Ok(json!({"bytes": text.as_bytes(), "logprob": number(logprob), "token": text}))
    };
    let mut content = Vec::new();
    for chosen in chosen {
        let mut value = one(chosen.token, chosen.logprob.unwrap_or(LOGPROB_MIN))?;
        let top = chosen
            .top
            .iter()
            .map(|&(token, logprob)| one(token, logprob));
        value["top_logprobs"] = top.collect::<Result<Vec<Value>>>()?.into();
        content.push(value);
    }
    Ok(json!({"content": content, "refusal": null}))
}

/// As completions have it: lists side by side, a place a token.
#[derive(Default)]
pub(super) struct Lists {
    tokens: Vec<String>,
    token_logprobs: Vec<Option<f64>>,
    top_logprobs: Vec<Option<Map<String, Value>>>,
    text_offset: Vec<usize>,
    n_chars: usize,
}

impl Lists {
    pub(super) fn push(&mut self, tokenizer: &Tokenizer, chosen: &[Chosen]) -> Result<()> {
        for chosen in chosen {
            let token = text(tokenizer, chosen.token)?;
            let top = chosen.logprob.map(|logprob| -> Result<_> {
                let mut top = Map::new();
                // The token itself is always among them.
                let all = chosen.top.iter().copied().chain([(chosen.token, logprob)]);
                for (token, logprob) in all {
                    let text = text(tokenizer, token)?;
                    top.entry(text).or_insert_with(|| number(logprob).into());
                }
                Ok(top)
            });
            self.top_logprobs.push(top.transpose()?);
            self.token_logprobs.push(chosen.logprob.map(number));
            self.text_offset.push(self.n_chars);
            self.n_chars += token.chars().count();
            self.tokens.push(token);
        }
        Ok(())
    }

    /// What has come since the last time.
    pub(super) fn take(&mut self) -> Value {
        let n_chars = self.n_chars;
        let all = std::mem::take(self);
        self.n_chars = n_chars;
        json!({
            "tokens": all.tokens,
            "token_logprobs": all.token_logprobs,
            "top_logprobs": all.top_logprobs,
            "text_offset": all.text_offset,
        })
    }
}
