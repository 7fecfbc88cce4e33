//! Grammars to constraints, within bounds of time and memory.

use std::sync::Arc;
use std::time::{Duration, Instant};

use llguidance::api::{ParserLimits, TopLevelGrammar};
use llguidance::toktrie::InferenceCapabilities;
use llguidance::{Matcher, ParserFactory};
use rwkv_edge::{Error, ErrorKind, Model, Result, Tokenizer};
use serde_json::{json, Value};

use super::schema::Schema;
use super::vocabulary::Vocabulary;
use super::{gbnf, lark, refused, regex, schema, Constraint, Grammar};

/// Bytes of a grammar, or of a schema written compactly.
const GRAMMAR_BYTES_MAX: usize = 256 << 10;
/// Bytes of a regex.
const REGEX_BYTES_MAX: usize = 64 << 10;
/// Bytes of an error's text that come from elsewhere.
const ERROR_BYTES_MAX: usize = 400;
/// How long is looked for the place of what is wrong.
const BLAME_TIME: Duration = Duration::from_secs(1);

/// Enough for the deepest grammars that pass: rules, each in the one before it.
const STACK_BYTES: usize = 64 << 20;

/// Makes constraints for one model's vocabulary.
pub struct Compiler {
    factory: ParserFactory,
    vocabulary: Arc<Vocabulary>,
}

impl Compiler {
    /// Reads the model's vocabulary, which takes a part of a second where it is large.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Tokenizer`] when the model has no tokenizer, or one whose tokens have no bytes of their own.
    pub fn new(model: &Model) -> Result<Self> {
        Self::of_vocabulary(model.tokenizer()?, &model.info().ends_of_text)
    }

    /// The same for a tokenizer, and the tokens that end a text.
    ///
    /// # Errors
    ///
    /// Those of [`Compiler::new`].
    pub fn of_vocabulary(tokenizer: &Tokenizer, ends_of_text: &[u32]) -> Result<Self> {
        let vocabulary = Vocabulary::new(tokenizer, ends_of_text)?;
        let capabilities = InferenceCapabilities::default();
        // Tokens that strings of JSON are made of, which most masks have in common.
        let slices = llguidance::earley::SlicedBiasComputer::general_slices();
        let mut factory =
            ParserFactory::new(&vocabulary.trie, capabilities, &slices).map_err(|error| {
                let why = first_line(&error);
                Error::new(ErrorKind::Tokenizer, format!("a vocabulary: {why}"))
            })?;
        factory.quiet();
        *factory.limits_mut() = limits();
        Ok(Compiler {
            factory,
            vocabulary: Arc::new(vocabulary),
        })
    }

    /// Makes a constraint for an answer from its beginning. It may take a second; masks take far less.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Argument`], with what of the grammar is not honoured, and where: JSON pointers in schemas, lines in
    /// grammars, characters in regexes. Also where it is too large.
    pub fn compile(&self, grammar: &Grammar) -> Result<Constraint> {
        // Rules within rules take stack, which a thread of a server may not have.
        std::thread::scope(|scope| {
            let thread = std::thread::Builder::new()
                .name("grammar".into())
                .stack_size(STACK_BYTES);
            let thread = thread
                .spawn_scoped(scope, || self.compile_here(grammar))
                .map_err(|e| {
                    Error::new(
                        ErrorKind::Memory,
                        format!("not enough memory to compile a grammar: {e}"),
                    )
                })?;
            let compiled = thread.join();
            compiled.unwrap_or_else(|_| Err(refused("a grammar that fails to compile")))
        })
    }

    fn compile_here(&self, grammar: &Grammar) -> Result<Constraint> {
        let matcher = match grammar {
            Grammar::JsonObject => self.compile_schema(&json!({"type": "object"}))?,
            Grammar::JsonSchema(schema) => self.compile_schema(schema)?,
            Grammar::Lark(text) => {
                check_size("a Lark grammar", text.len(), GRAMMAR_BYTES_MAX)?;
                lark::check(text)?;
                self.compile_lark("the Lark grammar", text.clone())?
            }
            Grammar::Gbnf(text) => {
                check_size("a GBNF grammar", text.len(), GRAMMAR_BYTES_MAX)?;
                self.compile_lark("the GBNF grammar", gbnf::to_lark(text)?)?
            }
            Grammar::Regex(text) => {
                check_size("a regex", text.len(), REGEX_BYTES_MAX)?;
                let regex = regex::whole(text).map_err(|e| refused(format!("the regex: {e}")))?;
                self.compile_lark("the regex", format!("start: /{regex}/"))?
            }
        };
        Ok(Constraint::new(matcher, Arc::clone(&self.vocabulary)))
    }

    fn compile_lark(&self, what: &str, text: String) -> Result<Matcher> {
        self.matcher(TopLevelGrammar::from_lark(text))
            .map_err(|why| refused(format!("{what}: {why}")))
    }

    fn compile_schema(&self, value: &Value) -> Result<Matcher> {
        check_size("a schema", compact_size(value), GRAMMAR_BYTES_MAX)?;
        let schema = schema::check(value)?;
        let grammar = TopLevelGrammar::from_json_schema(schema.whole());
        self.matcher(grammar)
            .map_err(|why| self.blame(&schema, why))
    }

    /// Finds the innermost part of a schema that alone is refused.
    fn blame(&self, schema: &Schema, why: String) -> Error {
        let no_answer = "Unsatisfiable schema";
        if why.contains(no_answer) {
            let why = schema.with_places(&why);
            return refused(format!("the schema at #: no answer can satisfy it: {why}"));
        }
        let start = Instant::now();
        for (place, part) in schema.parts() {
            if start.elapsed() > BLAME_TIME {
                break;
            }
            let grammar = TopLevelGrammar::from_json_schema(part);
            if let Err(why) = self.matcher(grammar) {
                if !why.contains(no_answer) {
                    let why = in_own_words(schema.with_places(&why));
                    return refused(format!("the schema at {place}: {why}"));
                }
            }
        }
        let why = in_own_words(schema.with_places(&why));
        refused(format!("the schema at #: {why}"))
    }

    fn matcher(&self, grammar: TopLevelGrammar) -> std::result::Result<Matcher, String> {
        let mut parser = self
            .factory
            .create_parser(grammar)
            .map_err(|error| first_line(&error))?;
        // What is warned of is not honoured exactly.
        if let Some(warning) = parser.grammar_warnings().into_iter().next() {
            return Err(warning);
        }
        // A grammar without any answer shows at once, and what is computed stays.
        let mut matcher = Matcher::new(Ok(parser));
        match matcher.compute_mask() {
            Ok(_) => Ok(matcher),
            Err(error) => Err(format!("no token can come first: {}", first_line(&error))),
        }
    }
}

/// Advice that nobody can follow here is left out.
fn in_own_words(why: String) -> String {
    match why.contains("coerce_one_of") {
        true => "alternatives of `oneOf` that do not exclude each other visibly, by their types, constants or those of a \
                 required property, are not supported"
            .to_owned(),
        false => why,
    }
}

/// Fuel and sizes, with the speeds that llguidance gives for them.
fn limits() -> ParserLimits {
    ParserLimits {
        // What an ambiguous grammar needs grows with the square of this.
        max_items_in_row: 2000,
        // 20 ms at 50 000 in a millisecond.
        initial_lexer_fuel: 1_000_000,
        // 15 ms at 14 000 in a millisecond, for a mask.
        step_lexer_fuel: 200_000,
        // 5 ms at 20 000 in a millisecond, for a mask.
        step_max_items: 100_000,
        // 1 to 2 KB each.
        max_lexer_states: 20_000,
        max_grammar_size: 100_000,
        precompute_large_lexemes: true,
        verbose_errors: false,
    }
}

fn check_size(what: &str, size: usize, max: usize) -> Result<()> {
    match size <= max {
        true => Ok(()),
        false => Err(refused(format!(
            "{what} of {size} bytes, expected at most {max}"
        ))),
    }
}

/// Counts bytes instead of keeping them.
fn compact_size(value: &Value) -> usize {
    struct Count(usize);
    impl std::io::Write for Count {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0 += bytes.len();
            Ok(bytes.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let mut count = Count(0);
    match serde_json::to_writer(&mut count, value) {
        Ok(()) => count.0,
        Err(_) => usize::MAX,
    }
}

/// What went wrong inside llguidance, without its backtraces and excerpts.
pub(super) fn first_line(error: &impl std::fmt::Display) -> String {
    let text = error.to_string();
    let line = text.lines().next().unwrap_or_default();
    let end = (0..=line.len().min(ERROR_BYTES_MAX))
        .rev()
        .find(|&end| line.is_char_boundary(end));
    line[..end.unwrap_or(0)].to_owned()
}

impl std::fmt::Debug for Compiler {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Compiler").finish_non_exhaustive()
    }
}
