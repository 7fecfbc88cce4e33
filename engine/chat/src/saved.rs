//! Conversations in files: FILE is a state as [`Session::load_state`](rwkv_edge::Session::load_state) reads
//! it, FILE.json the text.
//!
//! The state alone is enough to go on; the text is what can be shown, and which template to go on
//! with. The text says which state it belongs to, so that one of the old pair is never taken for one of the new:
//! both are complete before either gets its name, and a process that is killed in the middle of that leaves the text of
//! the state that is there in FILE.json or in .FILE.json.rwkv-edge-new, from where the next save brings it to its place
//! before it writes anything.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use rwkv_edge::{Error, ErrorKind, Model, OutputFile, Result, State};
use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::{xxh3_64, Xxh3};

use crate::conversation::{Conversation, Known};
use crate::said::{Transcript, Turn};
use crate::template::{Template, OWN};

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
    /// xxh3 of the state's file, 16 hexadecimal digits; earlier versions did not write it.
    #[serde(default)]
    state_hash: Option<String>,
    /// xxh3 of the tokens read up to the state, 16 hexadecimal digits; where a template that came with the model wrote
    /// them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    tokens_hash: Option<String>,
    template: String,
    system: String,
    turns: Vec<Turn>,
}

/// What was saved.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Saved {
    /// Tokens up to the state.
    pub n_tokens: u64,
    /// The file of the text, beside that of the state.
    pub text_path: PathBuf,
    /// Turns in the text.
    pub n_turns: usize,
}

impl Saved {
    /// Whether bytes, of which 64 are enough, begin as those of a conversation's text do.
    pub fn begins_text(bytes: &[u8]) -> bool {
        let start = format!("{{\n  \"format\": \"{FORMAT}\"");
        bytes.starts_with(start.as_bytes())
    }
}

/// What was found.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Loaded {
    /// Tokens up to the state.
    pub n_tokens: u64,
    /// Whether it is a tuned initial state: a new conversation has begun with it, and so will others.
    pub is_initial: bool,
    /// Turns in the text, or why there is no text: that is for people, the state can be used all the same.
    pub n_turns: Result<usize, String>,
}

impl Conversation {
    /// Saves the conversation: the state to `path`, the text to the same name with `.json` behind it.
    ///
    /// Options, random numbers, penalties and the states to go back to are not part of it.
    ///
    /// # Errors
    ///
    /// When a file cannot be written; what was there before is then as it was, unless the error says otherwise.
    pub fn save(&self, path: &Path) -> Result<Saved> {
        let (session, transcript) = (self.session(), self.transcript());
        let size = session.saved_state_size();
        let mut state = Vec::new();
        state.try_reserve_exact(size).map_err(|_| {
            let text = format!("not enough memory for the saved state of {size} bytes");
            Error::new(ErrorKind::Memory, text)
        })?;
        state.resize(size, 0);
        session.save_state_to(&mut state)?;
        let text = Text {
            format: FORMAT.into(),
            fingerprint: format!("{:016x}", session.model().info().fingerprint),
            state_tokens: session.state().n_tokens(),
            state_hash: Some(shown_hash(xxh3_64(&state))),
            tokens_hash: self.read().map(|read| shown_hash(read.hash)),
            template: transcript.template.name().into(),
            system: transcript.system.clone(),
            turns: transcript.turns.clone(),
        };
        let text_path = text_path(path);
        let mut json =
            serde_json::to_vec_pretty(&text).expect("texts and numbers have a JSON form");
        json.push(b'\n');
        settle_text(path, &text_path)?;
        let mut text_file = OutputFile::create(&text_path)?;
        text_file.write(&json)?;
        let mut state_file = OutputFile::create(path)?;
        state_file.write(&state)?;
        drop(state);
        text_file.commit_beside(state_file)?;
        Ok(Saved {
            n_tokens: text.state_tokens,
            text_path,
            n_turns: text.turns.len(),
        })
    }

    /// Goes on from a saved conversation, or from any saved state of the model; or begins a new conversation, with the
    /// same system text, from a tuned initial state as
    /// [`Model::with_initial_state`](rwkv_edge::Model::with_initial_state) reads it.
    ///
    /// # Errors
    ///
    /// When there is no state in the file, or that of another model, or it cannot be read. Nothing has changed then.
    pub fn load(&mut self, path: &Path) -> Result<Loaded> {
        let model = self.session().model().clone();
        if Model::is_initial_state(path) {
            if !self.start_over_with(path)? {
                let text = format!("{}: interrupted: nothing has changed", path.display());
                return Err(Error::new(ErrorKind::State, text));
            }
            return Ok(Loaded {
                n_tokens: self.session().state().n_tokens(),
                is_initial: true,
                n_turns: Ok(0),
            });
        }
        // A copy keeps the empty state that there is to go back to.
        let mut state = self.session().state().clone();
        state.load(path)?;
        let hash = hash_of_file(path).map_err(|e| cannot_read(path, &e))?;
        let template = &self.transcript().template;
        let found = find_text(
            &text_path(path),
            (&state, &hash, model.info().fingerprint),
            template,
        );
        let (transcript, read, n_turns) = match found {
            Ok((transcript, read)) => {
                let n_turns = transcript.turns.len();
                (transcript, read, Ok(n_turns))
            }
            Err(reason) => {
                let template = self.transcript().template.clone();
                (Transcript::new(template), None, Err(reason))
            }
        };
        self.resume(&state, transcript, read)?;
        Ok(Loaded {
            n_tokens: state.n_tokens(),
            is_initial: false,
            n_turns,
        })
    }
}

/// Gives a text its name that still waits for it, if it is that of the state which is there: the next one will wait in
/// the same place.
fn settle_text(path: &Path, text_path: &Path) -> Result<()> {
    let waiting = OutputFile::beside_waiting(text_path);
    let bytes = match fs::read(&waiting) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        bytes => bytes.map_err(|e| cannot_read(&waiting, &e))?,
    };
    let hash = match hash_of_file(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        hash => hash.map_err(|e| cannot_read(path, &e))?,
    };
    match serde_json::from_slice::<Text>(&bytes) {
        Ok(text) if text.state_hash == Some(hash) => OutputFile::settle_beside(text_path),
        // Of a state that never got its name.
        _ => Ok(()),
    }
}

fn cannot_read(path: &Path, error: &io::Error) -> Error {
    let text = format!("{}: cannot read: {error}", path.display());
    Error::new(ErrorKind::Io, text)
}

/// The text under its name, or where it waits for it; and which tokens the state has read, where that is known.
fn find_text(
    path: &Path,
    of: (&State, &str, u64),
    present: &Template,
) -> Result<(Transcript, Option<Known>), String> {
    // What waits says the hash; what has the name may be of a version that did not write it.
    let waiting = read_text(&OutputFile::beside_waiting(path), of, present);
    waiting.or_else(|_| read_text(path, of, present))
}

/// The reason why not is for the user; the state can be used all the same.
fn read_text(
    path: &Path,
    (state, hash, fingerprint): (&State, &str, u64),
    present: &Template,
) -> Result<(Transcript, Option<Known>), String> {
    let shown = path.display();
    let bytes = match fs::read(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Err(format!("no {shown}")),
        bytes => bytes.map_err(|e| format!("{shown}: cannot read: {e}"))?,
    };
    let text: Text = serde_json::from_slice(&bytes).map_err(|e| format!("{shown}: {e}"))?;
    let belongs = text.format == FORMAT
        && text.fingerprint == format!("{fingerprint:016x}")
        && text.state_tokens == state.n_tokens()
        && text.state_hash.is_none_or(|text| text == hash);
    if !belongs {
        return Err(format!("{shown} is of another state"));
    }
    // A model's own template is no part of the file.
    let template = match (text.template == OWN, present.own()) {
        (true, Some(_)) => present.clone(),
        (true, None) => return Err(format!("{shown} was written with the model's own template")),
        (false, _) => text
            .template
            .parse()
            .map_err(|e| format!("{shown}: template: {e}"))?,
    };
    let hash = text.tokens_hash.as_deref();
    let hash = hash.and_then(|digits| u64::from_str_radix(digits, 16).ok());
    let n = usize::try_from(text.state_tokens).ok();
    let read = n.zip(hash).map(|(n, hash)| Known { n, hash });
    let transcript = Transcript {
        template,
        system: text.system,
        turns: text.turns,
    };
    Ok((transcript, read))
}

fn hash_of_file(path: &Path) -> io::Result<String> {
    let (mut file, mut hash, mut piece) = (File::open(path)?, Xxh3::new(), [0; 8 << 10]);
    loop {
        match file.read(&mut piece) {
            Ok(0) => return Ok(shown_hash(hash.digest())),
            Ok(n) => hash.update(&piece[..n]),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
}

fn shown_hash(hash: u64) -> String {
    format!("{hash:016x}")
}

/// Where the text of a conversation is, whose state is in `path`.
pub fn text_path(path: &Path) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(".json");
    name.into()
}

#[cfg(test)]
mod tests {
    use std::ops::ControlFlow;

    use super::*;
    use crate::Options;

    fn begin(model: &Model, system: &str) -> Result<Conversation> {
        let options = Options::new().max_new_tokens(8);
        Conversation::new(model, "qa".parse()?, system, options)
    }

    fn say(conversation: &mut Conversation, message: &str) -> Result<String> {
        let said = conversation.say(message, &mut |_| ControlFlow::Continue(()))?;
        Ok(said.expect("nobody interrupts").text)
    }

    #[test]
    fn a_saved_conversation_goes_on_as_if_it_had_never_ended() -> Result<()> {
        let model = Model::open("../../cli/demo", &rwkv_edge::Options::default())?;
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("talk.state");
        let mut first = begin(&model, "About Rust.")?;
        say(&mut first, "What is ownership?")?;
        let saved = first.save(&path)?;
        assert_eq!(saved.text_path, folder.path().join("talk.state.json"));
        assert_eq!((saved.n_turns, saved.n_tokens > 8), (1, true));
        let text = fs::read(&saved.text_path).expect("was written");
        assert!(Saved::begins_text(&text[..64]) && !Saved::begins_text(b"{}"));
        let expected = say(&mut first, "And borrowing?")?;

        let mut second = begin(&model, "")?;
        let loaded = second.load(&path)?;
        assert_eq!(loaded.n_turns, Ok(1));
        assert_eq!(loaded.n_tokens, saved.n_tokens);
        assert_eq!(second.transcript().system, "About Rust.");
        assert_eq!(say(&mut second, "And borrowing?")?, expected);
        assert_eq!(second.transcript(), first.transcript());

        // The text waits for its name where a save was killed, and what has the name is of another state.
        let waiting = OutputFile::beside_waiting(&saved.text_path);
        fs::rename(&saved.text_path, &waiting).expect("same folder");
        let other = fs::read_to_string(&waiting).expect("there");
        let hash = other.split("\"state_hash\": \"").nth(1).expect("a hash");
        let other = other.replace(&hash[..16], "0123456789abcdef");
        fs::write(&saved.text_path, other).expect("can be written");
        assert_eq!(second.load(&path)?.n_turns, Ok(1));
        // A save that fails does not lose it, nor a file of the user's.
        let new = folder.path().join("talk.state.json.new");
        fs::write(&new, "mine").expect("can be written");
        settle_text(&path, &saved.text_path)?;
        assert!(!waiting.exists());
        assert_eq!(second.load(&path)?.n_turns, Ok(1));
        // One of a state that never came stays out of the way.
        fs::write(&waiting, "{}").expect("can be written");
        settle_text(&path, &saved.text_path)?;
        assert_eq!(second.load(&path)?.n_turns, Ok(1));
        let [state, text] = [&path, &saved.text_path].map(|path| fs::read(path).expect("there"));
        second.save(&path)?;
        assert!(!waiting.exists());
        assert_eq!(second.load(&path)?.n_turns, Ok(1));
        assert_eq!(fs::read_to_string(&new).expect("there"), "mine");
        fs::write(&path, state).expect("can be written");
        fs::write(&saved.text_path, text).expect("can be written");
        let other = fs::read_to_string(&saved.text_path).expect("there");
        let hash = other.split("\"state_hash\": \"").nth(1).expect("a hash");
        let other = other.replace(&hash[..16], "0123456789abcdef");
        fs::write(&saved.text_path, other).expect("can be written");
        assert!(second.load(&path)?.n_turns.is_err());

        // Without its text the state goes on all the same; without a state nothing changes.
        fs::write(&saved.text_path, "{}").expect("can be written");
        let loaded = second.load(&path)?;
        assert!(loaded
            .n_turns
            .is_err_and(|reason| reason.contains("talk.state.json")));
        assert!(second.transcript().turns.is_empty());
        assert_eq!(say(&mut second, "And borrowing?")?, expected);
        let before = second.transcript().clone();
        let error = second.load(&folder.path().join("none")).err();
        assert_eq!(error.map(|error| error.kind()), Some(ErrorKind::Io));
        assert_eq!(*second.transcript(), before);
        Ok(())
    }
}
