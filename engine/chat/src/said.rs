//! What was said: answers, turns, and the text of a conversation.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::template::Template;

/// What was said in one turn.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Turn {
    /// Without blank lines, which would end the turn.
    pub user: String,
    /// Without the space around it.
    pub answer: String,
}

/// The text of a conversation.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Transcript {
    /// How it is written down for the model.
    pub template: Template,
    /// What the conversation began with, as the user gave it.
    pub system: String,
    /// The oldest first.
    pub turns: Vec<Turn>,
}

impl Transcript {
    /// Nothing said yet.
    pub(crate) fn new(template: Template) -> Self {
        Transcript {
            template,
            system: String::new(),
            turns: Vec::new(),
        }
    }
}

/// Why an answer ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Ending {
    /// With the template's stop text, or another one of [`Options::stop`](crate::Options::stop).
    Stop,
    /// The model ended the text.
    EndOfText,
    /// With as many tokens as [`Options::max_new_tokens`](crate::Options::max_new_tokens) allows.
    Length,
    /// By [`Options::interrupted`](crate::Options::interrupted).
    Interrupted,
}

impl Ending {
    /// For JSON: `stop`, `end_of_text`, `length` or `interrupted`.
    pub fn name(self) -> &'static str {
        match self {
            Ending::Stop => "stop",
            Ending::EndOfText => "end_of_text",
            Ending::Length => "length",
            Ending::Interrupted => "interrupted",
        }
    }
}

/// What the model said, and how long it took.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Answer {
    /// Without the space around it.
    pub text: String,
    /// The thought in front of it, without the space and the brackets around it; `None` where the model was
    /// not asked for one. It is no part of the conversation.
    pub thought: Option<String>,
    /// Why there is no more of it.
    pub ending: Ending,
    /// Tokens of the message, as the template writes it.
    pub n_prompt_tokens: usize,
    /// Tokens that were drawn.
    pub n_tokens: usize,
    /// For the message.
    pub prefill_time: Duration,
    /// For the answer.
    pub decode_time: Duration,
}
