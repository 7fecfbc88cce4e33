//! Text to tokens, tokens to text, and the choice of the next token. Knows nothing of models.

pub(crate) mod sampler;
pub(crate) mod stream;
pub(crate) mod token_stream;
pub(crate) mod tokenizer;
