//! Output that must match a grammar, a regex or a JSON schema.

use rwkv_edge::{Model, Result};
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

/// Makes constraints for one model's vocabulary.
pub struct Compiler {}

impl Compiler {
    /// # Errors
    ///
    /// When the model has no tokenizer.
    pub fn new(_model: &Model) -> Result<Self> {
        Ok(Compiler {})
    }

    /// # Errors
    ///
    /// [`ErrorKind::Argument`](rwkv_edge::ErrorKind::Argument), with what of the grammar is not honoured, and where.
    pub fn compile(&self, _grammar: &Grammar) -> Result<Constraint> {
        Ok(Constraint {})
    }
}

/// Which tokens may come next.
#[derive(Clone)]
pub struct Constraint {}

impl Constraint {
    /// Forbids, by negative infinity, every token that may not come next; `logits` is one row.
    ///
    /// # Errors
    ///
    /// When no token may come, or the grammar takes too long.
    pub fn apply(&mut self, _logits: &mut [f32]) -> Result<()> {
        Ok(())
    }

    /// A token was drawn.
    ///
    /// # Errors
    ///
    /// When it may not come next.
    pub fn accept(&mut self, _token: u32) -> Result<()> {
        Ok(())
    }

    /// Whether the answer is complete, and nothing may follow.
    pub fn is_complete(&self) -> bool {
        false
    }
}
