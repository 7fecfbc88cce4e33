//! States behind system texts, kept in files so that a long text is read once and not at every start.
//!
//! A file's name holds a hash of model, quantisation, text and tokens: another model or another text
//! looks for another file. What is found must be a whole state of this model after as many tokens as
//! the text has, or the text is read again. A cache that does not work is told, and stops nothing.

use std::fs;
use std::path::{Path, PathBuf};

use rwkv_edge::{Model, Result, Session};
use xxhash_rust::xxh3::Xxh3;

use crate::{cache_folder, note};

/// Where the states of one model's system texts are kept.
pub(crate) struct PromptCache {
    /// The model's own file or folder; none for the built-in one.
    model_path: Option<PathBuf>,
}

impl PromptCache {
    pub(crate) fn new(model_path: Option<&Path>) -> Self {
        // A model that is found elsewhere, by a name, has no place of ours beside it.
        let model_path = model_path.filter(|path| path.exists()).map(Path::to_owned);
        PromptCache { model_path }
    }

    /// Moves the session behind the text, if its state is there.
    pub(crate) fn load(&self, session: &mut Session, text: &str, tokens: &[u32]) -> bool {
        let key = key(session.model(), text, tokens);
        let paths = [self.beside_model(&key), in_cache_folder(&key)];
        for path in paths.into_iter().flatten().filter(|path| path.exists()) {
            match session.load_state(&path) {
                Ok(()) if session.state().n_tokens() == tokens.len() as u64 => {
                    let shown = path.display();
                    note!("system text: {} tokens, from {shown}", tokens.len());
                    return true;
                }
                Ok(()) => note!("{}: not the state of this text", path.display()),
                Err(error) => note!("{error}"),
            }
            session.reset();
        }
        false
    }

    /// Keeps the session's state, which is that behind the text: beside the model, or in the user's
    /// cache folder where that cannot be written.
    pub(crate) fn save(&self, session: &Session, text: &str, tokens: &[u32]) {
        let key = key(session.model(), text, tokens);
        let save = |path: PathBuf| -> Result<PathBuf> {
            session.save_state(&path)?;
            Ok(path)
        };
        let save_in_folder = || {
            let path = in_cache_folder(&key)?;
            // Where this fails, so does writing the file, and says why.
            let _ = path.parent().map(fs::create_dir_all);
            Some(save(path))
        };
        let beside = self.beside_model(&key).map(save);
        let saved = match beside {
            Some(Ok(path)) => Some(Ok(path)),
            _ => save_in_folder().or(beside),
        };
        let n = tokens.len();
        match saved {
            Some(Ok(path)) => note!("system text: {n} tokens, kept in {}", path.display()),
            Some(Err(error)) => note!("system text is not kept: {error}"),
            None => note!("system text is not kept: this user has no cache folder"),
        }
    }

    fn beside_model(&self, key: &str) -> Option<PathBuf> {
        let path = self.model_path.as_ref()?;
        if path.is_dir() {
            return Some(path.join(format!("prompt-{key}.state")));
        }
        let mut name = path.file_name()?.to_owned();
        name.push(format!(".prompt-{key}.state"));
        Some(path.with_file_name(name))
    }
}

fn in_cache_folder(key: &str) -> Option<PathBuf> {
    let folder = cache_folder::of_program().ok()?.join("prompts");
    Some(folder.join(format!("{key}.state")))
}

/// The quantisation counts: its state fits any other of the model, but is not to the bit what another
/// would have come to.
fn key(model: &Model, text: &str, tokens: &[u32]) -> String {
    let info = model.info();
    let mut hash = Xxh3::new();
    hash.update(&info.fingerprint.to_le_bytes());
    hash.update(info.quant.name().as_bytes());
    hash.update(&(text.len() as u64).to_le_bytes());
    hash.update(text.as_bytes());
    for token in tokens {
        hash.update(&token.to_le_bytes());
    }
    format!("{:032x}", hash.digest128())
}
