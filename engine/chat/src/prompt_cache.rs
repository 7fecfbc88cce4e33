//! States behind system texts, kept in files so that a long text is read once and not at every start.
//!
//! A file's name holds a hash of model, quantisation, text and tokens: another model or another text
//! looks for another file. What is found must be a whole state of this model after as many tokens as
//! the text has, or the text is read again. A cache that does not work is told, and stops nothing.

use std::fmt::Arguments;
use std::fs;
use std::path::{Path, PathBuf};

use rwkv_edge::{Result, Session};
use xxhash_rust::xxh3::Xxh3;

/// Where the states of one model's system texts are kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PromptCache {
    /// The model's own file or folder.
    model_path: Option<PathBuf>,
    /// For what cannot be kept beside the model.
    folder: Option<PathBuf>,
}

impl PromptCache {
    /// Keeps states beside the model's own file or in its folder, and in `folder`, which is made when it is
    /// needed, where that cannot be written. A model without a path, such as one that is part of the program,
    /// has no other place than the folder; nor has one whose path is only a name of it and does not exist.
    pub fn new(model_path: Option<&Path>, folder: Option<PathBuf>) -> Self {
        let model_path = model_path.filter(|path| path.exists()).map(Path::to_owned);
        PromptCache { model_path, folder }
    }

    /// Moves the session behind the text, if its state is there. `note` is told in lines for people.
    pub(crate) fn load(
        &self,
        session: &mut Session,
        text: &str,
        tokens: &[u32],
        note: &mut dyn FnMut(Arguments<'_>),
    ) -> bool {
        let key = key(session, text, tokens);
        let paths = [self.beside_model(&key), self.in_folder(&key)];
        for path in paths.into_iter().flatten().filter(|path| path.exists()) {
            match session.load_state(&path) {
                Ok(()) if session.state().n_tokens() == tokens.len() as u64 => {
                    let (n, shown) = (tokens.len(), path.display());
                    note(format_args!("system text: {n} tokens, from {shown}"));
                    return true;
                }
                Ok(()) => note(format_args!(
                    "{}: not the state of this text",
                    path.display()
                )),
                Err(error) => note(format_args!("{error}")),
            }
            session.reset();
        }
        false
    }

    /// Keeps the session's state, which is that behind the text: beside the model, or in the folder where
    /// that cannot be written. `note` is told in lines for people.
    pub(crate) fn save(
        &self,
        session: &Session,
        text: &str,
        tokens: &[u32],
        note: &mut dyn FnMut(Arguments<'_>),
    ) {
        let key = key(session, text, tokens);
        let save = |path: PathBuf| -> Result<PathBuf> {
            session.save_state(&path)?;
            Ok(path)
        };
        let save_in_folder = || {
            let path = self.in_folder(&key)?;
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
            Some(Ok(path)) => {
                let shown = path.display();
                note(format_args!("system text: {n} tokens, kept in {shown}"));
            }
            Some(Err(error)) => note(format_args!("system text is not kept: {error}")),
            None => note(format_args!(
                "system text is not kept: this user has no cache folder"
            )),
        }
    }

    fn in_folder(&self, key: &str) -> Option<PathBuf> {
        Some(self.folder.as_ref()?.join(format!("{key}.state")))
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

/// A tuned initial state is a part of what the text leaves. The quantisation counts, too: its state fits any other of the model, but is not to the bit what another
/// would have come to.
fn key(session: &Session, text: &str, tokens: &[u32]) -> String {
    let info = session.model().info();
    let mut hash = Xxh3::new();
    hash.update(&info.fingerprint.to_le_bytes());
    hash.update(info.quant.name().as_bytes());
    if let Some(initial) = session.state().initial_hash() {
        hash.update(&initial.to_le_bytes());
    }
    hash.update(&(text.len() as u64).to_le_bytes());
    hash.update(text.as_bytes());
    for token in tokens {
        hash.update(&token.to_le_bytes());
    }
    format!("{:032x}", hash.digest128())
}
