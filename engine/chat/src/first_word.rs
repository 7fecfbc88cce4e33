//! How an answer begins.

use rwkv_edge::{Model, Result, Sampler};

/// A vocabulary has a few dozen tokens of line breaks and spaces; a model that wants nothing else may
/// have its way.
const PASSED_OVER_MAX: usize = 64;

/// Draws a token of an answer that has no word yet, passing over those that would end it before there is one:
/// small models often see the blank line behind a question as the end of everything. What is passed over is
/// minus infinity in `logits` (n_vocab) then.
///
/// # Errors
///
/// Those of the model's tokenizer.
pub fn first_word(sampler: &mut Sampler, logits: &mut [f32], model: &Model) -> Result<u32> {
    let tokenizer = model.tokenizer()?;
    for _ in 0..PASSED_OVER_MAX {
        let token = sampler.sample(logits);
        let text = tokenizer.decode(&[token])?;
        let is_line_break = text.contains('\n') && text.trim().is_empty();
        if !model.ends_text(token) && !is_line_break {
            return Ok(token);
        }
        match logits.get_mut(token as usize) {
            Some(logit) => *logit = f32::NEG_INFINITY,
            None => return Ok(token),
        }
    }
    Ok(sampler.sample(logits))
}
