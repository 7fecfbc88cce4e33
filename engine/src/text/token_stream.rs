//! Text to tokens as it comes.

#![forbid(unsafe_code)]

use crate::error::{Error, Result};
use crate::text::tokenizer::Tokenizer;

/// Turns a text that comes piece by piece into token ids, which put together are those that
/// [`Tokenizer::encode_bytes`] gives for all of it at once, wherever it is cut.
///
/// Memory does not depend on the length of the text, as long as it has places at which words end whatever is
/// around them: for byte-level tokenizers such as that of the RWKV-4 Pile models in front of white space and
/// between letters, digits and punctuation. A World vocabulary, and a text for which no such places are known,
/// need none and all of it.
///
/// ```
/// use rwkv_edge::{Model, Options, TokenStream};
///
/// # fn main() -> rwkv_edge::Result<()> {
/// let model = Model::open("../cli/demo", &Options::default())?;
/// let tokenizer = model.tokenizer()?;
/// let mut stream = TokenStream::new(tokenizer);
/// let mut ids = Vec::new();
/// for piece in ["Owner", "ship is a set", " of rules"] {
///     ids.extend_from_slice(stream.push(piece.as_bytes())?);
/// }
/// ids.extend_from_slice(stream.finish()?);
/// assert_eq!(ids, tokenizer.encode("Ownership is a set of rules")?);
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct TokenStream<'t> {
    tokenizer: &'t Tokenizer,
    /// Text whose tokens are not certain yet,
    waiting: Vec<u8>,
    /// and how much of it is known to have none that are.
    searched: usize,
    /// Those given out last; kept for their memory.
    ids: Vec<u32>,
}

impl<'t> TokenStream<'t> {
    /// A stream at the beginning of a text.
    pub fn new(tokenizer: &'t Tokenizer) -> Self {
        TokenStream {
            tokenizer,
            waiting: Vec::new(),
            searched: 0,
            ids: Vec::new(),
        }
    }

    /// Takes the next piece of the text, cut anywhere, and gives the ids that are certain now.
    ///
    /// # Errors
    ///
    /// Those of [`Tokenizer::encode`]; the stream is at the beginning of a new text then.
    pub fn push(&mut self, text: &[u8]) -> Result<&[u32]> {
        self.encode(text, false)
    }

    /// Ends the text: gives the ids of what is left of it. The stream is then at the beginning of a new text.
    ///
    /// # Errors
    ///
    /// Those of [`push`](Self::push).
    pub fn finish(&mut self) -> Result<&[u32]> {
        self.encode(&[], true)
    }

    /// Bytes of memory that tokenizing so many more bytes may take in all, if no place to cut them is among them.
    pub fn memory_bytes(&self, n_bytes: usize) -> u64 {
        self.more_bytes(n_bytes)
            .saturating_add(Tokenizer::WORKING_BYTES)
    }

    /// Bytes of the text whose tokens are not certain yet.
    pub fn waiting_bytes(&self) -> usize {
        self.waiting.len()
    }

    /// Bytes of memory that pushing so many bytes may take beside those that the tokenizer's own estimate has.
    pub(crate) fn more_bytes(&self, n_bytes: usize) -> u64 {
        let n = self.waiting.len().saturating_add(n_bytes);
        let ids = n.saturating_mul(size_of::<u32>());
        // The text waits in a buffer that may double.
        let held = (2 * n as u64).saturating_add(ids as u64);
        self.tokenizer.working_bytes(n).saturating_add(held)
    }

    fn encode(&mut self, text: &[u8], is_end: bool) -> Result<&[u32]> {
        self.ids.clear();
        let encoded = self.encode_waiting(text, is_end);
        if is_end || encoded.is_err() {
            self.waiting.clear();
            self.searched = 0;
        }
        encoded?;
        Ok(&self.ids)
    }

    fn encode_waiting(&mut self, text: &[u8], is_end: bool) -> Result<()> {
        self.waiting.try_reserve(text.len()).map_err(|e| {
            Error::memory("not enough memory for a text that has no place to cut it").with_source(e)
        })?;
        self.waiting.extend_from_slice(text);
        let (waiting, searched) = (&self.waiting, &mut self.searched);
        let n = self
            .tokenizer
            .encode_some(waiting, is_end, searched, &mut self.ids)?;
        self.waiting.drain(..n);
        Ok(())
    }
}
