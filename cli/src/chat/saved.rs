//! What is said of conversations that were saved or loaded.

use std::path::Path;

use anyhow::Result;
use rwkv_edge_chat::{text_path, Conversation};

use crate::paths::{check_link, check_replaced, Written};
use crate::sampling::draws_or_penalises;

/// Refuses to save a conversation over files that hold something else.
pub(crate) fn check(path: &Path) -> Result<()> {
    let text_path = text_path(path);
    check_link(path)?;
    check_link(&text_path)?;
    check_replaced(path, Written::State)?;
    check_replaced(&text_path, Written::Conversation)
}

/// Saves a conversation; returns what was written, in words.
pub(crate) fn save(conversation: &Conversation, path: &Path) -> Result<String> {
    check(path)?;
    let saved = conversation.save(path)?;
    Ok(format!(
        "{}: the state after {} tokens; {}: the text, {} turns; not kept: options, seed, /undo",
        path.display(),
        saved.n_tokens,
        saved.text_path.display(),
        saved.n_turns
    ))
}

/// What is said of a tuned initial state.
pub(crate) const INITIAL: &str = "a tuned initial state; /reset goes back to it";

/// What was found in a saved conversation.
pub(crate) struct Loaded {
    pub(crate) words: String,
    /// Whether it brought its text and its template, and not the state alone.
    pub(crate) has_text: bool,
}

/// Goes on from a saved conversation, or from any saved state of the model.
pub(crate) fn load(conversation: &mut Conversation, path: &Path) -> Result<Loaded> {
    check_link(path)?;
    let loaded = conversation.load(path)?;
    if loaded.is_initial {
        return Ok(Loaded {
            words: format!("{}: {INITIAL}", path.display()),
            has_text: true,
        });
    }
    let found = match &loaded.n_turns {
        Ok(n) => format!("{n} turns, {}", conversation.transcript().template),
        Err(reason) => format!("without its text: {reason}"),
    };
    let restarts = match draws_or_penalises(conversation.sampling()) {
        true => "; random numbers and penalties begin anew",
        false => "",
    };
    Ok(Loaded {
        words: format!(
            "{}: {} tokens, {found}{restarts}",
            path.display(),
            loaded.n_tokens
        ),
        has_text: loaded.n_turns.is_ok(),
    })
}
