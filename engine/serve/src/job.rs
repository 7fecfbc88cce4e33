//! What a request asks of a model, and what it gets: the words between the interfaces and the scheduler.
//!
//! An interface (HTTP, or a test) turns a request into a [`Job`], gives it to a [`Worker`](crate::Worker), and reads
//! [`Event`]s until the last one. When it drops the receiver the job's place is free at the next step.

use std::fmt;
use std::sync::Arc;

use rwkv_edge::{Error, SamplerOptions};
use tokio::sync::mpsc;

use crate::constrain::Constraint;

/// Whose a request is: the name of an API key. States, sessions and answers of different owners are never shared, so
/// that nobody learns from times or counts what another asked.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Owner(Arc<str>);

impl Owner {
    /// An owner of that name; the empty name is everybody's, where there are no keys.
    pub fn new(name: &str) -> Self {
        Owner(name.into())
    }

    /// The name.
    pub fn name(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What is to be read.
#[derive(Clone, Debug, PartialEq)]
pub enum Prompt {
    /// A text. Where it begins with texts and answers that are known, only the rest is read.
    Text(String),
    /// Token ids as they are.
    Tokens(Vec<u32>),
}

/// Where a prompt is read behind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Start {
    /// Nothing.
    Beginning,
    /// The token that a text begins with, where the prompt does not go on with something older. Versions that were
    /// trained so have 0.
    Token(u32),
    /// The state of a session of this name, which is where this job's answer leaves it. It begins with the token, if
    /// there is one, when there is no such session yet.
    Session {
        /// The name, as the client chose it.
        name: String,
        /// What a session begins with.
        first: Option<u32>,
    },
}

/// What remains of an answer in the history, as it stands behind the prompt in the next one: `None` stands for all of it.
/// Of an answer behind a thought it is the text without the thought, which models were trained to go on from.
pub type Remains = Box<dyn Fn(&str) -> Option<String> + Send + Sync>;

/// One request for answers to one prompt.
pub struct Job {
    /// Whose.
    pub owner: Owner,
    /// What comes before the prompt.
    pub start: Start,
    /// What is read.
    pub prompt: Prompt,
    /// How tokens are drawn; choice i draws with the seed + i.
    pub sampling: SamplerOptions,
    /// Added to the logits of tokens.
    pub bias: Vec<(u32, f32)>,
    /// Answers to draw, at least 1; at most 1 in a session.
    pub n_choices: usize,
    /// Tokens of an answer at most; `None` is no limit.
    pub max_new_tokens: Option<usize>,
    /// Texts that end an answer and are no part of it.
    pub stops: Vec<String>,
    /// Whether the tokens that end a text are answers like others.
    pub ignore_end_of_text: bool,
    /// Whether tokens that would end an answer before there is a word in it are passed over, as in a conversation.
    pub begins_with_word: bool,
    /// With every token its log-probability and those of so many likeliest ones.
    pub top_logprobs: Option<usize>,
    /// Whether the prompt's tokens are told with their log-probabilities, too: all of it is read then.
    pub prompt_logprobs: bool,
    /// What the answer must be; each choice has its own.
    pub constraint: Option<Constraint>,
    /// What remains of an answer in the history.
    pub remains: Option<Remains>,
    /// Where events go.
    pub events: mpsc::UnboundedSender<Event>,
}

/// A token that was drawn or read, and how likely it was.
#[derive(Clone, Debug, PartialEq)]
pub struct Chosen {
    /// Its id.
    pub token: u32,
    /// Natural logarithm of its probability before temperature, penalties and cuts; `None` for the first token of a
    /// prompt, or where none was asked for.
    pub logprob: Option<f32>,
    /// The likeliest tokens in that place, from the likeliest on.
    pub top: Vec<(u32, f32)>,
}

/// What becomes of a job, in this order: `Began`, then events of the prompt and of its choices, then `Done`; or `Failed`
/// at any time, as the last one.
#[derive(Debug)]
pub enum Event {
    /// Reading begins: tokens of everything behind which answers are drawn, and how many of them a kept state knew.
    Began {
        /// Tokens of the whole prompt; of a session those that are new.
        n_prompt: usize,
        /// Those that need not be read again: at most all but one.
        n_cached: usize,
    },
    /// Tokens of the prompt, in their order, where they were asked for.
    Prompt(Vec<Chosen>),
    /// A token was drawn.
    Token {
        /// Of which choice.
        choice: usize,
        /// Which one.
        chosen: Chosen,
        /// What is certain to be part of the answer since the last event: nothing while it may be the beginning of a stop
        /// text, or of a character.
        text: String,
    },
    /// What is kept of an answer could not be written; the answer is as it should be.
    NotWritten(Error),
    /// A choice has ended.
    Ended {
        /// Which one.
        choice: usize,
        /// What the answer still lacked.
        text: String,
        /// Why.
        ending: Ending,
        /// Tokens that were drawn, the one that ended the text included.
        n_tokens: usize,
    },
    /// All choices have ended, and what is kept of them is where it belongs.
    Done,
    /// Something failed; nothing follows.
    Failed(Error),
}

/// Why an answer ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// The model ended the text.
    Stop,
    /// The stop text of this index in [`Job::stops`] came.
    StopText(usize),
    /// As many tokens as were allowed.
    Length,
    /// Nothing may follow under the grammar.
    Complete,
}
