//! How a conversation is led, and who is told what goes on.

use std::sync::atomic::AtomicBool;
use std::sync::Arc;

use rwkv_edge::SamplerOptions;

use crate::prompt_cache::PromptCache;

/// How a conversation is led.
#[non_exhaustive]
pub struct Options {
    /// How tokens are drawn.
    pub sampling: SamplerOptions,
    /// Tokens of an answer at most.
    pub max_new_tokens: usize,
    /// Texts that end an answer, beside the template's own.
    pub stop: Vec<String>,
    /// Where the states behind system texts are kept, if they are.
    pub cache: Option<PromptCache>,
    /// Set from elsewhere to end what is going on. It stays set: whoever set it takes it back.
    pub interrupted: Arc<AtomicBool>,
    /// Told what goes on beside answers.
    pub on_event: Box<dyn FnMut(Event<'_>) + Send>,
}

impl Default for Options {
    /// Always the likeliest token, 512 at most; nothing is kept, and nobody is told.
    fn default() -> Self {
        Options {
            sampling: SamplerOptions::default(),
            max_new_tokens: 512,
            stop: Vec::new(),
            cache: None,
            interrupted: Arc::default(),
            on_event: Box::new(|_| ()),
        }
    }
}

/// What goes on beside answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Event<'a> {
    /// One line for people, such as where the state behind the system text was kept.
    Note(&'a str),
    /// A system text or a message is read; from 0 on.
    Reading {
        /// Tokens that were read.
        done: usize,
        /// Tokens of the text.
        total: usize,
    },
    /// Reading is over, whether all was read, or it was interrupted or failed.
    ReadingEnded,
}
