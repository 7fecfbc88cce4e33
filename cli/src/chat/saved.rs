//! Conversations in files: FILE is a state as `generate --load-state` reads it, FILE.json the text.
//!
//! The state alone is enough to go on; the text is what `/show` shows, and which template to go on
//! with. Both are written whole or not at all, the state last.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Result;
use rwkv_edge::internals::OutputFile;
use rwkv_edge::State;
use serde::{Deserialize, Serialize};

use super::conversation::{Conversation, Transcript, Turn};
use crate::sampling::draws_or_penalises;

/// Value of the field `format`.
const FORMAT: &str = "rwkv-edge chat";

/// The text of a conversation, and which state it belongs to.
#[derive(Serialize, Deserialize)]
struct Text {
    format: String,
    /// Of the model, 16 hexadecimal digits.
    fingerprint: String,
    /// Tokens read up to the state.
    state_tokens: u64,
    template: String,
    system: String,
    turns: Vec<Turn>,
}

/// Saves a conversation; returns what was written, in words.
pub(crate) fn save(conversation: &Conversation, path: &Path) -> Result<String> {
    let (session, transcript) = (conversation.session(), conversation.transcript());
    let text = Text {
        format: FORMAT.into(),
        fingerprint: format!("{:016x}", session.model().info().fingerprint),
        state_tokens: session.state().n_tokens(),
        template: transcript.template.name().into(),
        system: transcript.system.clone(),
        turns: transcript.turns.clone(),
    };
    let text_path = text_path(path);
    let mut json = serde_json::to_vec_pretty(&text)?;
    json.push(b'\n');
    let mut file = OutputFile::create(&text_path)?;
    file.write(&json)?;
    file.commit()?;
    session.save_state(path)?;
    Ok(format!(
        "{}: the state after {} tokens; {}: the text, {} turns; not kept: options, seed, /undo",
        path.display(),
        text.state_tokens,
        text_path.display(),
        text.turns.len()
    ))
}

/// Goes on from a saved conversation, or from any saved state of the model; returns what was found,
/// in words.
pub(crate) fn load(conversation: &mut Conversation, path: &Path) -> Result<String> {
    let model = conversation.session().model().clone();
    let mut state = model.new_state();
    state.load(path)?;
    let n_tokens = state.n_tokens();
    let text_path = text_path(path);
    let template = conversation.transcript().template.clone();
    let (transcript, found) = match read_text(&text_path, &state, model.info().fingerprint) {
        Ok(transcript) => {
            let found = format!("{} turns, {}", transcript.turns.len(), transcript.template);
            (transcript, found)
        }
        Err(reason) => {
            let transcript = Transcript {
                template,
                system: String::new(),
                turns: Vec::new(),
            };
            (transcript, format!("without its text: {reason}"))
        }
    };
    conversation.resume(&state, transcript)?;
    let restarts = match draws_or_penalises(conversation.sampling()) {
        true => "; random numbers and penalties begin anew",
        false => "",
    };
    Ok(format!(
        "{}: {n_tokens} tokens, {found}{restarts}",
        path.display()
    ))
}

/// The reason why not is for the user; the state can be used all the same.
fn read_text(path: &Path, state: &State, fingerprint: u64) -> Result<Transcript, String> {
    let shown = path.display();
    let bytes = match fs::read(path) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Err(format!("no {shown}")),
        bytes => bytes.map_err(|e| format!("{shown}: cannot read: {e}"))?,
    };
    let text: Text = serde_json::from_slice(&bytes).map_err(|e| format!("{shown}: {e}"))?;
    let belongs = text.format == FORMAT
        && text.fingerprint == format!("{fingerprint:016x}")
        && text.state_tokens == state.n_tokens();
    if !belongs {
        return Err(format!("{shown} is of another state"));
    }
    let template = text
        .template
        .parse()
        .map_err(|e| format!("{shown}: template: {e}"))?;
    Ok(Transcript {
        template,
        system: text.system,
        turns: text.turns,
    })
}

fn text_path(path: &Path) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(".json");
    name.into()
}
