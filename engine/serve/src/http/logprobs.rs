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

/// What a token stands for, which may be a part of a character; special ones stand for nothing.
pub(super) fn bytes(tokenizer: &Tokenizer, token: u32) -> Result<Vec<u8>> {
    match tokenizer.token_bytes(token) {
        Some(bytes) => Ok(bytes),
        // Where tokens have no bytes of their own, their text comes nearest.
        None => Ok(tokenizer.decode(&[token])?.into_bytes()),
    }
}

/// A token as text; bytes that are no characters as `\xf0`.
fn name(bytes: &[u8]) -> String {
    let mut name = String::new();
    for chunk in bytes.utf8_chunks() {
        name += chunk.valid();
        name.extend(chunk.invalid().iter().map(|byte| format!("\\x{byte:02x}")));
    }
    name
}

/// The same, marked as completions have it: nothing beside it tells bytes from characters there.
fn marked_name(bytes: &[u8]) -> String {
    let mark = match std::str::from_utf8(bytes) {
        Ok(_) => "",
        Err(_) => "bytes:",
    };
    mark.to_owned() + &name(bytes)
}

/// Where the text of tokens ends: a part of a character is no text until the rest of it has come.
#[derive(Default)]
pub(super) struct Positions {
    pub(super) n_bytes: usize,
    n_chars: usize,
    part: Vec<u8>,
}

impl Positions {
    fn add(&mut self, text: &str) {
        self.n_bytes += text.len();
        self.n_chars += text.chars().count();
    }

    /// Bytes that can be no part of a character become U+FFFD, as in the text of an answer.
    pub(super) fn push(&mut self, bytes: &[u8]) {
        self.part.extend_from_slice(bytes);
        let mut part = std::mem::take(&mut self.part);
        loop {
            let error = match std::str::from_utf8(&part) {
                Ok(text) => return self.add(text),
                Err(error) => error,
            };
            self.add(std::str::from_utf8(&part[..error.valid_up_to()]).unwrap_or_default());
            let n_invalid = error.error_len();
            part.drain(..error.valid_up_to() + n_invalid.unwrap_or(0));
            match n_invalid {
                Some(_) => self.add("\u{fffd}"),
                None => break,
            }
        }
        self.part = part;
    }

    /// Nothing follows that goes on with a character.
    fn finish(&mut self) {
        if !std::mem::take(&mut self.part).is_empty() {
            self.add("\u{fffd}");
        }
    }
}

/// As chat completions have it.
pub(super) fn of_chat(tokenizer: &Tokenizer, chosen: &[Chosen]) -> Result<Value> {
    let one = |token: u32, logprob: f32| -> Result<Value> {
        let bytes = bytes(tokenizer, token)?;
        Ok(json!({"token": name(&bytes), "logprob": number(logprob), "bytes": bytes}))
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
    end: Positions,
}

impl Lists {
    /// Tokens of a prompt, behind which a text begins anew.
    pub(super) fn push_prompt(&mut self, tokenizer: &Tokenizer, chosen: &[Chosen]) -> Result<()> {
        self.push(tokenizer, chosen)?;
        self.end.finish();
        Ok(())
    }

    pub(super) fn push(&mut self, tokenizer: &Tokenizer, chosen: &[Chosen]) -> Result<()> {
        for chosen in chosen {
            let bytes = bytes(tokenizer, chosen.token)?;
            let top = chosen.logprob.map(|logprob| -> Result<_> {
                let mut top = Map::new();
                // The token itself is always among them.
                let all = chosen.top.iter().copied().chain([(chosen.token, logprob)]);
                for (token, logprob) in all {
                    let name = marked_name(&self::bytes(tokenizer, token)?);
                    top.entry(name).or_insert_with(|| number(logprob).into());
                }
                Ok(top)
            });
            self.top_logprobs.push(top.transpose()?);
            self.token_logprobs.push(chosen.logprob.map(number));
            self.text_offset.push(self.end.n_chars);
            self.end.push(&bytes);
            self.tokens.push(marked_name(&bytes));
        }
        Ok(())
    }

    /// What has come since the last time.
    pub(super) fn take(&mut self) -> Value {
        let end = std::mem::take(&mut self.end);
        let all = std::mem::replace(
            self,
            Lists {
                end,
                ..Lists::default()
            },
        );
        json!({
            "tokens": all.tokens,
            "token_logprobs": all.token_logprobs,
            "top_logprobs": all.top_logprobs,
            "text_offset": all.text_offset,
        })
    }
}
