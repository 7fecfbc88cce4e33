//! From a job to what is to be read: tokens, and the kept state behind which they begin.
//!
//! On a thread of its own, since cutting a long text into tokens and reading a state from a disk must not hold up the
//! steps of others. A job comes here when there is room for it (`queue.rs`), so that what it finds is not old.

use std::sync::Arc;

use rwkv_edge::{Error, ErrorKind, Model, Result, State};

use super::queue::Given;
use super::turns::{IsOpen, OpenSessions};
use crate::job::{Job, Prompt, Start};
use crate::session_errors;
use crate::store::{Key, Store, TextHash};

/// A job that can begin.
pub(crate) struct Prepared {
    pub(crate) job: Job,
    pub(crate) begin: Begin,
    /// Room for its choices, as far as there is some.
    pub(crate) given: Arc<Given>,
}

/// Where a job begins.
pub(crate) struct Begin {
    /// Of the state.
    pub(crate) key: Key,
    /// What has been read; `None` stands for nothing.
    pub(crate) state: Option<Arc<State>>,
    /// What the answers are drawn behind and the state has not read: at least one token.
    pub(crate) tokens: Vec<u32>,
    /// Behind each of the tokens.
    pub(crate) keys: Vec<Key>,
    /// Tokens of the prompt that the state has read.
    pub(crate) n_cached: usize,
    /// The first ones of `tokens`, if the state has read nothing of the prompt: what comes in front of it.
    pub(crate) n_in_front: usize,
    /// Of the prompt's text, where there is one: the states behind its answers are found by what follows.
    pub(crate) text: Option<TextHash>,
    /// The session that the answer goes to.
    pub(crate) session: Option<OpenSession>,
}

/// A session while a job works on it: no other may.
pub(crate) struct OpenSession {
    pub(crate) name: String,
    pub(crate) created: u64,
    pub(crate) is_open: IsOpen,
}

/// A state, and what is to be read behind it.
struct Place {
    key: Key,
    state: Option<Arc<State>>,
    tokens: Vec<u32>,
    /// In front of the prompt, if that is a text.
    text: String,
}

/// Makes the jobs of one model ready.
pub(crate) struct Preparer {
    pub(crate) model: Model,
    pub(crate) store: Arc<Store>,
    pub(crate) sessions: Arc<OpenSessions>,
}

impl Preparer {
    /// Finds out where a job begins.
    ///
    /// # Errors
    ///
    /// For tokens beyond the vocabulary, an empty prompt, a session that another job works on or whose state is no longer
    /// there, and those of the tokenizer.
    pub(crate) fn prepare(&self, job: Job, given: Arc<Given>) -> Result<Prepared> {
        let begin = self.begin(&job)?;
        Ok(Prepared { job, begin, given })
    }

    fn begin(&self, job: &Job) -> Result<Begin> {
        let (base, session) = match &job.start {
            Start::Beginning => (self.nothing(&[]), None),
            Start::Token(first) => (self.nothing(&[*first]), None),
            Start::Session { name, first } => self.session(job, name, first.as_slice())?,
        };
        let begin = self.behind(job, base, session)?;
        if begin.tokens.is_empty() {
            let text = "an empty prompt, expected at least one token";
            return Err(Error::new(ErrorKind::Argument, text));
        }
        let n_vocab = self.model.n_vocab();
        let beyond = |token: &&u32| **token as usize >= n_vocab;
        if let Some(token) = begin.tokens.iter().find(beyond) {
            let text = format!("token {token}, expected ids below {n_vocab}");
            return Err(Error::new(ErrorKind::Argument, text));
        }
        Ok(begin)
    }

    fn nothing(&self, first: &[u32]) -> Place {
        Place {
            key: self.store.root(),
            state: None,
            tokens: first.to_vec(),
            text: String::new(),
        }
    }

    fn session(
        &self,
        job: &Job,
        name: &str,
        first: &[u32],
    ) -> Result<(Place, Option<OpenSession>)> {
        let is_open = self.sessions.open(&job.owner, name)?;
        let (base, created) = match self.store.session(&job.owner, name)? {
            None => {
                self.sessions.check_new(&job.owner, name)?;
                (self.nothing(first), crate::store::now())
            }
            Some(session) => {
                let lost = || session_errors::lost(name);
                let key = session.key().ok_or_else(|| session_errors::damaged(name))?;
                let find = || self.store.find(&job.owner, key).ok_or_else(lost);
                let is_text = matches!(job.prompt, Prompt::Text(_)) && !job.prompt_logprobs;
                let (tokens, text) = match is_text {
                    true => session.pending_text(),
                    // What is told of a prompt begins with it.
                    false => (&*session.pending, ""),
                };
                let base = Place {
                    key,
                    state: (key != self.store.root()).then(find).transpose()?,
                    tokens: tokens.to_vec(),
                    text: text.to_owned(),
                };
                (base, session.created)
            }
        };
        let open = OpenSession {
            name: name.into(),
            created,
            is_open,
        };
        Ok((base, Some(open)))
    }

    /// The prompt behind a base: by its text, if it begins with an answer that is known, then by its tokens.
    fn behind(&self, job: &Job, base: Place, session: Option<OpenSession>) -> Result<Begin> {
        let n_before = n_read(&base.state);
        let n_in_front = base.tokens.len();
        // Texts belong to what comes before them.
        let root = base.tokens.iter().fold(base.key, |key, &t| key.then(t));
        let (place, hash) = match &job.prompt {
            Prompt::Tokens(more) => {
                let mut place = base;
                place.tokens.extend_from_slice(more);
                self.find_tokens(job, &mut place);
                (place, None)
            }
            Prompt::Text(text) => {
                let text = &format!("{}{text}", base.text);
                let mut whole = TextHash::behind(root);
                whole.push(text.as_bytes());
                (self.in_text(job, base, root, text)?, Some(whole))
            }
        };
        let keys = place.key.chain(&place.tokens);
        Ok(Begin {
            n_cached: usize::try_from(n_read(&place.state) - n_before).unwrap_or(usize::MAX),
            n_in_front,
            key: place.key,
            state: place.state,
            tokens: place.tokens,
            keys,
            text: hash,
            session,
        })
    }

    /// Where a text begins that is not known: behind an answer in it, or behind tokens, whichever leaves less to read.
    fn in_text(&self, job: &Job, base: Place, root: Key, text: &str) -> Result<Place> {
        let tokenizer = self.model.tokenizer()?;
        // Something is read in any case, since logits are not kept.
        let is_fit = |size: usize, next: Option<u32>| {
            let drawn = next.and_then(|next| tokenizer.token_bytes(next));
            size < text.len() && goes_on_well(text, size, drawn.as_deref())
        };
        let hit = match job.prompt_logprobs {
            true => None,
            false => self.store.find_text(&job.owner, root, text, is_fit),
        };
        let mut behind_answer = None;
        if let Some(hit) = hit {
            let mut place = Place {
                key: hit.key,
                state: Some(hit.state),
                tokens: tokenizer.encode(&text[hit.size..])?,
                text: String::new(),
            };
            self.find_tokens(job, &mut place);
            // All of a long text is only cut into tokens where that may be worth it.
            if 2 * hit.size > text.len() {
                return Ok(place);
            }
            behind_answer = Some(place);
        }
        let mut place = base;
        place.tokens.extend(tokenizer.encode(text)?);
        self.find_tokens(job, &mut place);
        Ok(match behind_answer {
            Some(other) if other.tokens.len() <= place.tokens.len() => other,
            _ => place,
        })
    }

    /// Goes on to the state that has read the most of the tokens, but for the last one.
    fn find_tokens(&self, job: &Job, place: &mut Place) {
        if job.prompt_logprobs || place.tokens.len() < 2 {
            return;
        }
        let keys = place.key.chain(&place.tokens[..place.tokens.len() - 1]);
        if let Some(hit) = self.store.find_tokens(&job.owner, &keys) {
            place.key = hit.key;
            place.state = Some(hit.state);
            place.tokens.drain(..hit.size);
        }
    }
}

fn n_read(state: &Option<Arc<State>>) -> u64 {
    state.as_ref().map_or(0, |state| state.n_tokens())
}

/// Whether a text may be gone on from a state that has read it up to this place, behind which a token with these bytes was
/// drawn. Where that is what follows, a word may go on there: the model has written it so.
fn goes_on_well(text: &str, at: usize, drawn: Option<&[u8]>) -> bool {
    let behind_drawn = drawn
        .filter(|drawn| text.as_bytes()[at..].starts_with(drawn))
        .map(|drawn| at + drawn.len());
    is_between_words(text, at)
        || behind_drawn.is_some_and(|end| text.is_char_boundary(end) && is_between_words(text, end))
}

/// Whether no word goes on across this place in a text. Where an answer was cut inside one and a client has written the
/// rest, a model would see two halves that it never saw in training.
fn is_between_words(text: &str, at: usize) -> bool {
    let before = text[..at].chars().next_back();
    let behind = text[at..].chars().next();
    !(before.is_some_and(char::is_alphanumeric) && behind.is_some_and(char::is_alphanumeric))
}
