//! Walks through constraints, token by token.
#![allow(dead_code)] // Not every test uses all of it.

use std::sync::OnceLock;

use rand_chacha::ChaCha8Rng;
use rand_core::RngCore;
use rwkv_edge::{Result, Tokenizer};
use rwkv_edge_serve::constrain::{Compiler, Constraint, Grammar};

/// Tokens of an answer at most.
const TOKENS_MAX: usize = 600;
/// Rows of logits are longer than the vocabulary.
const PADDING: usize = 7;

/// A vocabulary and its compiler.
pub struct Vocabulary {
    pub tokenizer: Tokenizer,
    pub compiler: Compiler,
    pub end: u32,
}

/// That of the demo model: byte-level, 4096 tokens or so, read from its tokenizer.json.
pub fn demo() -> &'static Vocabulary {
    static DEMO: OnceLock<Vocabulary> = OnceLock::new();
    DEMO.get_or_init(|| {
        let file = include_bytes!("../../../../cli/demo/tokenizer.json");
        of(Tokenizer::from_bytes("tokenizer.json", file).expect("a tokenizer"))
    })
}

/// The World vocabulary, where it is at hand.
pub fn world() -> Option<&'static Vocabulary> {
    static WORLD: OnceLock<Option<Vocabulary>> = OnceLock::new();
    let world = WORLD.get_or_init(|| {
        let Some(folder) = std::env::var_os("RWKV_EDGE_TEST_DATA") else {
            println!("skipped: the World vocabulary in RWKV_EDGE_TEST_DATA");
            return None;
        };
        let file = std::path::Path::new(&folder).join("rwkv_vocab_v20230424.txt");
        Some(of(Tokenizer::open(file).expect("the World vocabulary")))
    });
    world.as_ref()
}

fn of(tokenizer: Tokenizer) -> Vocabulary {
    let compiler = Compiler::of_vocabulary(&tokenizer, &[0]).expect("a vocabulary");
    Vocabulary {
        tokenizer,
        compiler,
        end: 0,
    }
}

impl Vocabulary {
    pub fn row(&self) -> Vec<f32> {
        vec![0.0; self.tokenizer.n_tokens() + PADDING]
    }

    /// Ids that may come next.
    pub fn allowed(&self, constraint: &mut Constraint) -> Result<Vec<u32>> {
        let mut row = self.row();
        constraint.apply(&mut row)?;
        let n_tokens = self.tokenizer.n_tokens();
        assert!(
            row[n_tokens..]
                .iter()
                .all(|&logit| logit == f32::NEG_INFINITY),
            "an id of no token is allowed"
        );
        Ok((0u32..)
            .zip(row)
            .filter(|&(_, logit)| logit > f32::NEG_INFINITY)
            .map(|(id, _)| id)
            .collect())
    }

    /// A random answer, or `None` where it has not ended after many tokens.
    pub fn walk(
        &self,
        constraint: &mut Constraint,
        rng: &mut ChaCha8Rng,
    ) -> Result<Option<String>> {
        let mut answer = Vec::new();
        let mut one_of = |tokens: &[u32]| tokens[rng.next_u32() as usize % tokens.len()];
        for step in 0..TOKENS_MAX {
            let allowed = self.allowed(constraint)?;
            let is_closing = |token: &&u32| {
                let bytes = self.tokenizer.token_bytes(**token).unwrap_or_default();
                bytes.len() == 1 && b"\"}]".contains(&bytes[0])
            };
            let closing: Vec<u32> = allowed.iter().filter(is_closing).copied().collect();
            let dice = one_of(&(0..100).collect::<Vec<_>>());
            // The longer the answer is, the likelier it ends.
            let token = match dice < 25 + step as u32 / 2 {
                true if allowed.contains(&self.end) => self.end,
                true if !closing.is_empty() => one_of(&closing),
                _ => one_of(&allowed),
            };
            constraint.accept(token)?;
            if token != self.end {
                let bytes = self.tokenizer.token_bytes(token);
                answer.extend(bytes.expect("only tokens with bytes are allowed"));
            }
            if token == self.end {
                assert!(constraint.is_complete());
            }
            if constraint.is_complete() {
                assert_eq!(
                    self.allowed(constraint)?,
                    [self.end],
                    "what may follow a complete answer"
                );
                return Ok(Some(String::from_utf8(answer).expect("answers are UTF-8")));
            }
        }
        Ok(None)
    }

    /// Whether a text is an answer to a grammar, as these tokens.
    pub fn takes(&self, start: &Constraint, tokens: &[u32]) -> bool {
        let mut constraint = start.clone();
        for &token in tokens {
            let is_allowed = self
                .allowed(&mut constraint)
                .is_ok_and(|allowed| allowed.contains(&token));
            let is_taken = constraint.accept(token).is_ok();
            assert!(
                is_allowed == is_taken,
                "the mask and what is accepted differ: token {token}"
            );
            if !is_taken {
                return false;
            }
        }
        let may_end = self
            .allowed(&mut constraint)
            .is_ok_and(|allowed| allowed.contains(&self.end));
        let is_taken = constraint.accept(self.end).is_ok();
        assert_eq!(
            may_end, is_taken,
            "the mask and what is accepted differ at the end"
        );
        assert_eq!(is_taken, constraint.is_complete());
        is_taken
    }

    /// Whether a text is an answer: as the tokenizer cuts it, and a byte at a time.
    pub fn matches(&self, start: &Constraint, text: &str) -> bool {
        let whole = self.tokenizer.encode(text).expect("tokens");
        let is_taken = self.takes(start, &whole);
        let bytes: Vec<u32> = text.bytes().map(|byte| self.byte(byte)).collect();
        assert_eq!(
            self.takes(start, &bytes),
            is_taken,
            "{text:?} cut otherwise"
        );
        is_taken
    }

    /// One of the tokens that are allowed; where a text may be closed, that every third time.
    pub fn draw(&self, row: &[f32], rng: &mut ChaCha8Rng) -> u32 {
        let allowed: Vec<u32> = (0u32..)
            .zip(row)
            .filter(|(_, &logit)| logit > f32::NEG_INFINITY)
            .map(|(id, _)| id)
            .collect();
        let quote = self.byte(b'"');
        match rng.next_u32().is_multiple_of(3) && allowed.contains(&quote) {
            true => quote,
            false => allowed[rng.next_u32() as usize % allowed.len()],
        }
    }

    fn byte(&self, byte: u8) -> u32 {
        let mut ids = 0..self.tokenizer.n_tokens() as u32;
        let found = ids.find(|&id| {
            self.tokenizer
                .token_bytes(id)
                .is_some_and(|bytes| bytes == [byte])
        });
        found.expect("a token for every byte")
    }

    pub fn compile(&self, grammar: &Grammar) -> Constraint {
        match self.compiler.compile(grammar) {
            Ok(constraint) => constraint,
            Err(error) => panic!("{grammar:?}: {error}"),
        }
    }

    /// Why a grammar is refused.
    pub fn refusal(&self, grammar: &Grammar) -> String {
        match self.compiler.compile(grammar) {
            Ok(_) => panic!("was taken: {grammar:?}"),
            Err(error) => {
                assert_eq!(error.kind(), rwkv_edge::ErrorKind::Argument, "{error}");
                error.to_string()
            }
        }
    }
}
