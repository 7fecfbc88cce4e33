//! How a conversation is led, and who is told what goes on.

use std::fmt;
use std::sync::atomic::AtomicBool;
use std::sync::Arc;

use rwkv_edge::{Progress, SamplerOptions};

use crate::prompt_cache::PromptCache;
use crate::think::Think;

/// How a conversation is led.
///
/// ```
/// use rwkv_edge::SamplerOptions;
/// use rwkv_edge_chat::Options;
///
/// let sampling = SamplerOptions::new().temperature(1.0).top_p(0.8);
/// let options = Options::new().sampling(sampling).max_new_tokens(200).stop(["Bob:"]);
/// ```
#[non_exhaustive]
#[must_use = "options do nothing until a conversation begins with them"]
pub struct Options {
    /// How tokens are drawn.
    pub sampling: SamplerOptions,
    /// Tokens of an answer at most.
    pub max_new_tokens: usize,
    /// Texts that end an answer, beside the template's own.
    pub stop: Vec<String>,
    /// Whether the model thinks before it answers.
    pub think: Think,
    /// Where the states behind system texts are kept, if they are.
    pub cache: Option<PromptCache>,
    /// Set from elsewhere to end what is going on. It stays set: whoever set it takes it back.
    pub interrupted: Arc<AtomicBool>,
    /// Told what goes on beside answers.
    pub on_event: Box<dyn FnMut(Event<'_>) + Send>,
}

impl Options {
    /// Always the likeliest token, 512 at most; nothing is kept, and nobody is told: the [`Default`].
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets [`sampling`](field@Self::sampling).
    pub fn sampling(mut self, sampling: SamplerOptions) -> Self {
        self.sampling = sampling;
        self
    }

    /// Sets [`max_new_tokens`](field@Self::max_new_tokens).
    pub fn max_new_tokens(mut self, max_new_tokens: usize) -> Self {
        self.max_new_tokens = max_new_tokens;
        self
    }

    /// Sets [`stop`](field@Self::stop), in place of those before.
    pub fn stop(mut self, stop: impl IntoIterator<Item = impl Into<String>>) -> Self {
        self.stop = stop.into_iter().map(Into::into).collect();
        self
    }

    /// Sets [`think`](field@Self::think).
    pub fn think(mut self, think: Think) -> Self {
        self.think = think;
        self
    }

    /// Sets [`cache`](field@Self::cache).
    pub fn cache(mut self, cache: impl Into<Option<PromptCache>>) -> Self {
        self.cache = cache.into();
        self
    }

    /// Sets [`interrupted`](field@Self::interrupted).
    pub fn interrupted(mut self, interrupted: Arc<AtomicBool>) -> Self {
        self.interrupted = interrupted;
        self
    }

    /// Sets [`on_event`](field@Self::on_event).
    pub fn on_event(mut self, on_event: impl FnMut(Event<'_>) + Send + 'static) -> Self {
        self.on_event = Box::new(on_event);
        self
    }
}

impl fmt::Debug for Options {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Options")
            .field("sampling", &self.sampling)
            .field("max_new_tokens", &self.max_new_tokens)
            .field("stop", &self.stop)
            .field("think", &self.think)
            .field("cache", &self.cache)
            .finish_non_exhaustive()
    }
}

impl Default for Options {
    /// That of [`Options::new`].
    fn default() -> Self {
        Options {
            sampling: SamplerOptions::default(),
            max_new_tokens: 512,
            stop: Vec::new(),
            think: Think::Off,
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
    /// More of the thought in front of an answer, as it comes; whole characters only.
    Thought(&'a str),
    /// A system text or a message is read; tokens from 0 on.
    Reading(Progress),
    /// Reading is over, whether all was read, or it was interrupted or failed.
    ReadingEnded,
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering;

    use super::*;
    use crate::Conversation;

    #[test]
    fn methods_set_fields() {
        let (new, default) = (Options::new(), Options::default());
        assert_eq!(format!("{new:?}"), format!("{default:?}"));
        let (interrupted, told) = (
            Arc::new(AtomicBool::new(true)),
            Arc::new(AtomicBool::new(false)),
        );
        let tell = told.clone();
        let sampling = SamplerOptions::new().seed(7);
        let mut options = Options::new()
            .sampling(sampling.clone())
            .max_new_tokens(3)
            .stop(["a", "b"])
            .think(Think::Short)
            .cache(PromptCache::new(None, None))
            .interrupted(interrupted)
            .on_event(move |_| tell.store(true, Ordering::Relaxed));
        assert_eq!(options.sampling, sampling);
        assert_eq!(options.max_new_tokens, 3);
        assert_eq!(options.stop, ["a", "b"]);
        assert_eq!(options.think, Think::Short);
        assert_eq!(options.cache, Some(PromptCache::new(None, None)));
        assert!(options.interrupted.load(Ordering::Relaxed));
        (options.on_event)(Event::ReadingEnded);
        assert!(told.load(Ordering::Relaxed));
        assert_eq!(options.cache(None).cache, None);
    }

    /// Compiles only where another thread may go on with it.
    #[test]
    fn a_conversation_may_go_to_another_thread() {
        fn sent<T: Send + 'static>() {}
        sent::<Conversation>();
        sent::<Options>();
    }
}
