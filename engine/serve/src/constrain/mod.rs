//! Output that must match a grammar, a regex or a JSON schema.
//!
//! A [`Compiler`] holds a model's vocabulary as a trie of bytes, made once. It makes a [`Constraint`] of a [`Grammar`],
//! which says before every token which ones may come next. The `llguidance` crate does that, with an Earley parser over
//! a lexer of regex derivatives; what it is given passes through here first:
//!
//! * a JSON schema through `schema.rs`, which refuses by name and place whatever would not be honoured exactly, and
//!   writes the rest in forms that `llguidance` honours;
//! * a regex, also one in a schema, through `regex.rs`, which gives it one meaning;
//! * a grammar of llama.cpp through `gbnf.rs`, which makes a Lark grammar of it, and Lark through `lark.rs`.
//!
//! All of it fails closed: what cannot be honoured is an error before the first token, and a mask that would take too
//! long, or that is empty, is an error in place of the token. There is never a token that the grammar does not allow.

mod compile;
mod constraint;
mod formats;
mod gbnf;
mod lark;
mod numbers;
mod references;
mod regex;
mod schema;
mod vocabulary;

pub use compile::Compiler;
pub use constraint::Constraint;

use serde_json::Value;

/// What an answer must be.
#[derive(Clone, Debug, PartialEq)]
pub enum Grammar {
    /// Any JSON object.
    JsonObject,
    /// JSON of this schema.
    JsonSchema(Value),
    /// A grammar in Lark's form.
    Lark(String),
    /// A grammar in the form of llama.cpp.
    Gbnf(String),
    /// A regular expression that the whole answer matches.
    Regex(String),
}

/// A grammar that is not taken.
fn refused(text: impl Into<String>) -> rwkv_edge::Error {
    rwkv_edge::Error::new(rwkv_edge::ErrorKind::Argument, text)
}
