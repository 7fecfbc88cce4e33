//! Texts to token ids, within the model's memory limit.

#![forbid(unsafe_code)]

use std::io::{self, ErrorKind as IoErrorKind, Read};
use std::ops::Deref;

use super::Model;
use crate::error::{Error, ErrorKind, Result};
use crate::memory::budget::Reservation;
use crate::text::token_stream::TokenStream;

/// Bytes of a text that are read at once.
const CHUNK_BYTES: usize = 2048;

/// Token ids, which count against [`Options::memory_max`](crate::Options::memory_max) as long as they are held.
#[derive(Debug, Default)]
pub struct Tokens {
    ids: Vec<u32>,
    held: Option<Reservation>,
}

impl Tokens {
    /// The same tokens behind another one, such as that which begins a text.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Memory`] when there is no room for one more.
    pub fn behind(mut self, first: u32) -> Result<Self> {
        match &mut self.held {
            Some(held) => make_room(&mut self.ids, 1, held)?,
            None => self.ids.try_reserve(1).map_err(|e| {
                Error::memory("not enough memory for the tokens of a text").with_source(e)
            })?,
        }
        self.ids.insert(0, first);
        Ok(self)
    }
}

impl Deref for Tokens {
    type Target = [u32];

    fn deref(&self) -> &[u32] {
        &self.ids
    }
}

/// Ids that nobody has counted.
impl From<Vec<u32>> for Tokens {
    fn from(ids: Vec<u32>) -> Self {
        Tokens { ids, held: None }
    }
}

impl Model {
    /// Token ids of a text, of the first `n_max` of them at most: as [`Tokenizer::encode_bytes`], but the text
    /// is read a piece at a time, no further than is needed, and all memory that this takes counts.
    ///
    /// [`Tokenizer::encode_bytes`]: crate::Tokenizer::encode_bytes
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Io`] when the text cannot be read, [`ErrorKind::Memory`] when
    /// [`Options::memory_max`](crate::Options::memory_max) leaves no room or the system has none, and those of
    /// [`tokenizer`](Self::tokenizer) and [`Tokenizer::encode`](crate::Tokenizer::encode).
    pub fn tokenize(&self, mut text: impl Read, n_max: usize) -> Result<Tokens> {
        let mut stream = TokenStream::new(self.tokenizer()?);
        let mut ids = Vec::new();
        let mut held = Reservation::new(self.budget(), 0, "tokens")?;
        let mut working = Reservation::new(self.budget(), 0, "tokenizing")?;
        let mut chunk = [0; CHUNK_BYTES];
        while ids.len() < n_max {
            let n = match text.read(&mut chunk) {
                Err(e) if e.kind() == IoErrorKind::Interrupted => continue,
                Err(e) => {
                    let text = format!("cannot read the text: {e}");
                    return Err(Error::new(ErrorKind::Io, text).with_source(e));
                }
                Ok(n) => n,
            };
            let grown = working.grow_to(stream.more_bytes(n), "tokenizing a text");
            if grown.is_err() {
                let rest = stream.waiting_bytes() + n + rest_bytes(&mut text);
                return Err(self.no_room(&stream, rest, working));
            }
            let more = match n {
                0 => stream.finish()?,
                _ => stream.push(&chunk[..n])?,
            };
            let more = &more[..more.len().min(n_max - ids.len())];
            make_room(&mut ids, more.len(), &mut held)?;
            ids.extend_from_slice(more);
            if n == 0 {
                break;
            }
        }
        Ok(Tokens {
            ids,
            held: Some(held),
        })
    }

    /// The error that names a limit with which the rest of a text, `n` bytes, has room in one piece.
    fn no_room(&self, stream: &TokenStream<'_>, n: usize, working: Reservation) -> Error {
        // What it holds is part of what is asked for here.
        drop(working);
        let ids = n.saturating_mul(size_of::<u32>()) as u64;
        // The tokens that are kept take up to an eighth more than they need.
        let ids = ids.saturating_add(ids / 8);
        let bytes = stream.more_bytes(n - stream.waiting_bytes());
        let bytes = bytes.saturating_add(ids);
        let name = format!("{n} bytes of text without a known place to cut them: working memory");
        let taken = self.budget().take(bytes, &name);
        match taken {
            Err(error) => error,
            Ok(()) => {
                // Others have given memory back in the meantime.
                self.budget().give_back(bytes);
                Error::memory(format!("{name} of {bytes} bytes, which were not left"))
            }
        }
    }
}

/// Bytes that are left of a text, as far as it is worth counting them.
fn rest_bytes(text: &mut impl Read) -> usize {
    const COUNTED_MAX: u64 = 64 << 20;
    // A text that cannot be read any more ends there.
    let counted = io::copy(&mut text.take(COUNTED_MAX), &mut io::sink());
    counted.map_or(0, |n| n as usize)
}

/// Room for more ids: an eighth more at a time, since what is counted should be what is used.
fn make_room(ids: &mut Vec<u32>, n: usize, held: &mut Reservation) -> Result<()> {
    if ids.capacity() - ids.len() >= n {
        return Ok(());
    }
    let room = ids.len() + n.max(ids.len() / 8).max(CHUNK_BYTES);
    held.grow_to((room * size_of::<u32>()) as u64, "the tokens of a text")?;
    ids.try_reserve_exact(room - ids.len())
        .map_err(|e| Error::memory("not enough memory for the tokens of a text").with_source(e))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Options;

    fn demo(memory_max: u64) -> Model {
        let options = Options::new().threads(1).memory_max(memory_max);
        Model::open("../cli/demo", &options).expect("the demo")
    }

    /// Gives a little at a time, and counts it.
    struct Slow<'a>(&'a [u8], usize);

    impl Read for Slow<'_> {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            let n = self.0.len().min(buffer.len()).min(1000);
            buffer[..n].copy_from_slice(&self.0[..n]);
            self.0 = &self.0[n..];
            self.1 += n;
            Ok(n)
        }
    }

    #[test]
    fn no_more_is_read_than_is_needed() {
        let model = demo(0);
        let text = "Ownership is what makes a program safe. ".repeat(2000);
        let all = model.tokenizer().and_then(|t| t.encode(&text));
        let all = all.expect("a text");
        let mut slow = Slow(text.as_bytes(), 0);
        let few = model.tokenize(&mut slow, 100).expect("a text");
        assert_eq!(*few, all[..100]);
        assert!(slow.1 < 20_000, "{}", slow.1);
        let whole = model.tokenize(text.as_bytes(), usize::MAX).expect("a text");
        assert_eq!(*whole, all);
        assert!(model.tokenize(&b""[..], 5).expect("a text").is_empty());
        assert!(model.tokenize(&b"a"[..], 0).expect("a text").is_empty());
    }

    #[test]
    fn what_tokens_take_counts() {
        let model = demo(80 << 20);
        model.tokenizer().expect("room");
        let left = model.memory_left().expect("a limit");
        let text = "ab ".repeat(1 << 20);
        let tokens = model.tokenize(text.as_bytes(), usize::MAX).expect("room");
        let taken = left - model.memory_left().expect("a limit");
        let least = 4 * tokens.len() as u64;
        assert!(
            (least..=least + least / 4).contains(&taken),
            "{taken}, {least}"
        );
        drop(tokens);
        assert_eq!(model.memory_left(), Some(left));
        // A text that cannot be cut needs room for all of it at once.
        let error = model.tokenize("a".repeat(1 << 20).as_bytes(), usize::MAX);
        let error = error.expect_err("too long");
        assert_eq!(error.kind(), ErrorKind::Memory);
        assert!(error.to_string().contains("(the memory limit)"), "{error}");
        // It says how long the text is, and a limit with which there is room.
        let words = error.to_string();
        assert!(words.starts_with("1048576 bytes of text"), "{words}");
        assert_eq!(model.memory_left(), Some(left));
        struct Failing;
        impl Read for Failing {
            fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
                Err(io::Error::other("torn"))
            }
        }
        let error = model.tokenize(Failing, 5).expect_err("no text");
        assert_eq!(error.kind(), ErrorKind::Io);
        assert!(error.to_string().contains("torn"));
    }
}
