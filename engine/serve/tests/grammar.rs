//! Regexes, Lark and GBNF: what they take and what they do not, token by token; limits, and that all of it fails closed.

mod grammar_walk;
#[path = "grammar_walk/longest_match.rs"]
mod longest_match;

use std::time::{Duration, Instant};

use grammar_walk::{demo, world};
use rand_chacha::ChaCha8Rng;
use rand_core::SeedableRng;
use rwkv_edge::ErrorKind;
use rwkv_edge_serve::constrain::{Constraint, Grammar};
use serde_json::json;

fn check(grammar: Grammar, taken: &[&str], not_taken: &[&str]) {
    for vocabulary in [Some(demo()), world()].into_iter().flatten() {
        let constraint = vocabulary.compile(&grammar);
        for text in taken {
            assert!(
                vocabulary.matches(&constraint, text),
                "{grammar:?} does not take {text:?}"
            );
        }
        for text in not_taken {
            assert!(
                !vocabulary.matches(&constraint, text),
                "{grammar:?} takes {text:?}"
            );
        }
    }
}

#[test]
fn regexes_match_whole_answers() {
    let cases: [(&str, &[&str], &[&str]); 22] = [
        ("abc", &["abc"], &["", "ab", "abcd", "xabc"]),
        ("a+", &["a", "aaaa"], &["", "b", "aab"]),
        ("a*", &["", "a", "aaaa"], &["b"]),
        ("", &[""], &["a"]),
        ("a?b", &["b", "ab"], &["aab", "a"]),
        ("(?:ab|cd)+", &["ab", "cdab"], &["abc", ""]),
        (
            "(a|ab)(c|bcd)",
            &["ac", "abc", "abcd", "abbcd"],
            &["a", "abb"],
        ),
        ("^yes|no$", &["yes", "no"], &["yes no", "ye"]),
        ("a{2,3}", &["aa", "aaa"], &["a", "aaaa"]),
        ("a{3}", &["aaa"], &["aa", "aaaa"]),
        ("a{2,}", &["aa", "aaaaaaa"], &["a"]),
        ("a{0}b", &["b"], &["ab"]),
        ("[a-c]x[^a-c]", &["axd", "cx龍", "bx\n"], &["dxd", "axa"]),
        (r"\d{4}-\d\d", &["2024-12"], &["2024-1", "２０２４-12"]),
        (r"\w+\s\W", &["ab_1 !", "a\u{a0}é"], &["a b", "é !"]),
        (r"\D\S", &["ab", "é龍"], &["1b", "a "]),
        (".", &["a", "龍", "\t"], &["\n", "\r", "ab", ""]),
        (r"[\s\S]{2}", &["\n\n", "a龍"], &["a"]),
        (r"\p{Lu}\p{Ll}+", &["Ärger", "Bob"], &["bob", "B"]),
        (r"\u00e9\x41\u{1f600}\n", &["éA😀\n"], &["eA😀\n"]),
        (r"a/b\/c\.\\", &["a/b/c.\\"], &["a/b/cx\\"]),
        (r"[\]\-a\\^]+", &["]-a\\^"], &["b"]),
    ];
    for (regex, taken, not_taken) in cases {
        check(Grammar::Regex(regex.into()), taken, not_taken);
    }
}

#[test]
fn refused_regexes_are_named() {
    for (regex, expected) in [
        (
            "(?=a)b",
            "the regex: lookahead `(?=` is not supported, before character 3",
        ),
        (r"(a)\1", "the regex: a backreference is not supported"),
        (
            r"\bword\b",
            "the regex: the boundary `\\b` is not supported",
        ),
        ("a(?i)b", "flags in a regex are not supported"),
        ("a^b", "`^` that is not at the beginning"),
        ("[", "a class that is not closed"),
        (r"\p{Nope}", "a general category"),
        (r"\p{Lq}", "the regex: "),
        (r"a[^\s\S]", "the regex: no token can come first"),
    ] {
        let error = demo().refusal(&Grammar::Regex(regex.into()));
        assert!(error.contains(expected), "{regex}: {error}");
    }
    let long = demo().refusal(&Grammar::Regex("a".repeat(70_000)));
    assert!(
        long.contains("a regex of 70000 bytes, expected at most 65536"),
        "{long}"
    );
}

#[test]
fn lark_grammars_are_honoured() {
    let arithmetic = "start: expr\nexpr: term ((\"+\" | \"-\") term)*\nterm: NUMBER | \"(\" expr \")\"\nNUMBER: /[0-9]+/\n";
    check(
        Grammar::Lark(arithmetic.into()),
        &["1", "12+(3-4)", "((7))"],
        &["", "1+", "(1", "1 + 2", "a"],
    );
    let spaced = format!("{arithmetic}%ignore / +/\n");
    check(Grammar::Lark(spaced), &["1 + 2", "1+2"], &["1 +", "+ 1"]);
    check(
        Grammar::Lark(
            "start: greeting \", \" NAME \"!\"\ngreeting: \"Hello\" | \"Hi\"i\nNAME: /[A-Z][a-z]+/"
                .into(),
        ),
        &["Hello, Bob!", "hI, Eve!"],
        &["hello, Bob!", "Hello, bob!", "Hello, Bob"],
    );
    check(
        Grammar::Lark("%import common.INT\nstart: INT [\".\" INT]".into()),
        &["1", "1.25"],
        &["1.", ".5"],
    );
    check(
        Grammar::Lark("start: \"a\"{2,3} \"b\"~2".into()),
        &["aabb", "aaabb"],
        &["abb", "aab"],
    );
}

#[test]
fn refused_lark_grammars_are_named() {
    for (grammar, expected) in [
        ("start: a", "the Lark grammar: "),
        ("begin: \"a\"", "start"),
        ("start: \"a\"\n%json {}", "line 2: `%json` is not supported"),
        (
            "start: <|endoftext|>",
            "line 1: tokens `<..>` are not supported",
        ),
        ("start: a\na[max_tokens=5]: /.*/", "line 2: options"),
        ("start: /(?=a)b/", "the Lark grammar: "),
        ("start: /\\bb/", "the Lark grammar: "),
        ("", "the Lark grammar: "),
    ] {
        let error = demo().refusal(&Grammar::Lark(grammar.into()));
        assert!(error.contains(expected), "{grammar}: {error}");
    }
}

/// As in llama.cpp's repository.
const JSON_GBNF: &str = r#"root   ::= object
value  ::= object | array | string | number | ("true" | "false" | "null") ws

object ::=
  "{" ws (
            string ":" ws value
    ("," ws string ":" ws value)*
  )? "}" ws

array  ::=
  "[" ws (
            value
    ("," ws value)*
  )? "]" ws

string ::=
  "\"" (
    [^"\\\x7F\x00-\x1F] |
    "\\" (["\\bfnrt] | "u" [0-9a-fA-F]{4}) # escapes
  )* "\"" ws

number ::= ("-"? ([0-9] | [1-9] [0-9]{0,15})) ("." [0-9]+)? ([eE] [-+]? [0-9] [1-9]{0,15})? ws

# Optional space: by convention, applied in this grammar after literal chars when allowed
ws ::= | " " | "\n" [ \t]{0,20}
"#;

#[test]
fn gbnf_grammars_are_honoured() {
    check(
        Grammar::Gbnf(JSON_GBNF.into()),
        &[
            "{}",
            "{\"a\": [1, -2.5e3,true],\n\t\"b\":{\"c\":null}}",
            "{\"é\\n\\u00e9\":\"龍\"} ",
        ],
        &["", "[]", "{\"a\":}", "{a:1}", "{\"a\":01}", "{\"a\":1,}"],
    );
    let cases: [(&str, &[&str], &[&str]); 12] = [
        ("root ::= \"yes\" | \"no\"", &["yes", "no"], &["", "yesno", "y"]),
        ("root ::= [a-c]+ [^a-c]?", &["abc", "ad", "a龍"], &["", "d", "ad龍"]),
        ("root ::= \"a\"* \"b\"{2,} \"c\"{0,1}", &["bb", "aabbbc"], &["b", "aab", "bbcc"]),
        ("root ::= \"\"", &[""], &["a"]),
        ("root ::= \"a\"?", &["", "a"], &["aa"]),
        ("root ::= \"\\x41\\u00e9\\U0001F600\\t\\\"\\\\\"", &["Aé😀\t\"\\"], &["A"]),
        ("root ::= . \"x\"", &["ax", "\nx", "龍x"], &["x", "ab"]),
        ("root ::= \"ab\"{2}", &["abab"], &["abb", "ab"]),
        ("root ::= \"(\" root \")\" | \"x\"", &["x", "((x))"], &["", "(x", "x)", "()"]),
        ("root ::= (\"(\" root \")\")*", &["", "()", "(()())()"], &["(", ")("]),
        (
            "root ::= item (\",\" item)* # list\nitem ::= name | \"[\" root \"]\"\nname ::= [a-z]+\n\n",
            &["a", "ab,[c,d],e", "[[x]]"],
            &["", "a,", "[]", "A"],
        ),
        ("root ::=\n  \"a\"\n  | \"b\" c\nc ::= \"\" | d\nd ::= \"d\" root?", &["a", "b", "bd", "bda", "bdbd"], &["", "ad", "bdd"]),
    ];
    for (grammar, taken, not_taken) in cases {
        check(Grammar::Gbnf(grammar.into()), taken, not_taken);
    }
}

#[test]
fn refused_gbnf_grammars_are_named() {
    for (grammar, expected) in [
        ("root ::= <think>", "the GBNF grammar, line 1: tokens"),
        (
            "root ::= a\n",
            "the GBNF grammar, line 1: there is no rule `a`",
        ),
        (
            "root ::= \"a\" root",
            "the GBNF grammar, line 1: the rule `root` refers to itself without an end",
        ),
        ("", "there is no rule `root`"),
    ] {
        let error = demo().refusal(&Grammar::Gbnf(grammar.into()));
        assert!(error.contains(expected), "{grammar}: {error}");
    }
}

/// Random answers to a grammar in either form are answers to it.
#[test]
fn walks_end() {
    let mut rng = ChaCha8Rng::seed_from_u64(5);
    let grammars = [
        Grammar::Gbnf(JSON_GBNF.into()),
        Grammar::JsonObject,
        Grammar::Regex("[a-z]{1,9}( [a-z]{1,9}){0,5}\\.".into()),
    ];
    for grammar in grammars {
        let start = demo().compile(&grammar);
        let mut n_ended = 0;
        for _ in 0..10 {
            let mut constraint = start.clone();
            let answer = demo()
                .walk(&mut constraint, &mut rng)
                .expect("a token that may come");
            if let Some(answer) = answer {
                n_ended += 1;
                assert!(demo().matches(&start, &answer), "{grammar:?}: {answer}");
                if !matches!(grammar, Grammar::Regex(_)) {
                    let value: Result<serde_json::Value, _> = serde_json::from_str(&answer);
                    assert!(value.is_ok_and(|value| value.is_object()), "{answer}");
                }
            }
        }
        assert!(n_ended >= 5, "{grammar:?}: {n_ended}");
    }
}

#[test]
fn clones_are_independent() {
    let demo = demo();
    let mut first = demo.compile(&Grammar::Regex("a(b|c)".into()));
    let token = |text: &str| demo.tokenizer.encode(text).expect("tokens")[0];
    first.accept(token("a")).expect("allowed");
    let mut second = first.clone();
    second.accept(token("b")).expect("allowed");
    assert!(second.is_complete());
    assert!(!first.is_complete());
    first.accept(token("c")).expect("allowed");
    assert!(first.is_complete());
}

#[test]
fn ends_are_allowed_exactly_where_a_grammar_may_end() {
    let demo = demo();
    let token = |text: &str| demo.tokenizer.encode(text).expect("tokens")[0];
    let mut constraint = demo.compile(&Grammar::Regex("a+".into()));
    assert!(!demo
        .allowed(&mut constraint)
        .expect("a mask")
        .contains(&demo.end));
    constraint.accept(token("a")).expect("allowed");
    let allowed = demo.allowed(&mut constraint).expect("a mask");
    assert!(allowed.contains(&demo.end) && allowed.contains(&token("a")));
    assert!(!constraint.is_complete());
    constraint.accept(demo.end).expect("allowed");
    assert!(constraint.is_complete());

    // Nothing may follow: complete without a token that ends the text.
    let mut constraint = demo.compile(&Grammar::Regex("a".into()));
    constraint.accept(token("a")).expect("allowed");
    assert!(constraint.is_complete());
    assert_eq!(demo.allowed(&mut constraint).expect("a mask"), [demo.end]);
    assert!(constraint.accept(token("a")).is_err());
}

#[test]
fn it_fails_closed() {
    let demo = demo();
    let token = |text: &str| demo.tokenizer.encode(text).expect("tokens")[0];
    let grammar = Grammar::Regex("(a|b)c".into());
    // Whatever is allowed may not be drawn for another reason.
    let mut constraint = demo.compile(&grammar);
    let mut row = demo.row();
    for id in demo.allowed(&mut constraint).expect("a mask") {
        row[id as usize] = f32::NEG_INFINITY;
    }
    let error = constraint.apply(&mut row).expect_err("nothing is left");
    assert_eq!(error.kind(), ErrorKind::Argument);
    assert!(row.iter().all(|&logit| logit == f32::NEG_INFINITY));
    // Not a number is no token either.
    let mut row = vec![f32::NAN; demo.tokenizer.n_tokens()];
    assert!(demo.compile(&grammar).apply(&mut row).is_err());
    // A row that ends before the tokens that are allowed.
    assert!(demo.compile(&grammar).apply(&mut [0.0]).is_err());
    // Tokens that may not come, stand for nothing, or do not exist; the constraint is of no more use.
    for bad in [
        token("x"),
        demo.end,
        demo.tokenizer.n_tokens() as u32,
        u32::MAX,
    ] {
        let mut constraint = demo.compile(&grammar);
        let error = constraint.accept(bad).expect_err("not allowed");
        assert!(
            error
                .to_string()
                .contains(&format!("token {bad}: not allowed here")),
            "{error}"
        );
        assert!(!constraint.is_complete());
    }
    let mut constraint = demo.compile(&grammar);
    assert!(constraint.accept(token("x")).is_err());
    assert!(
        constraint.apply(&mut demo.row()).is_err(),
        "after what may not come"
    );
    assert!(!constraint.is_complete());
}

#[test]
fn constraints_go_to_other_threads() {
    fn check<T: Send + Clone>(_: &T) {}
    fn check_shared<T: Send + Sync>(_: &T) {}
    check(&demo().compile(&Grammar::JsonObject));
    check_shared(&demo().compiler);
}

/// What the model's files say: its vocabulary and the tokens that end a text.
#[test]
fn a_compiler_is_made_for_a_model() {
    let options = rwkv_edge::Options::default();
    let model = rwkv_edge::Model::open("../../cli/demo", &options).expect("the demo model");
    let compiler = rwkv_edge_serve::constrain::Compiler::new(&model).expect("a compiler");
    let mut constraint = compiler
        .compile(&Grammar::Regex("yes|no".into()))
        .expect("a regex");
    let mut row = vec![0.0; model.info().n_vocab];
    constraint.apply(&mut row).expect("a mask");
    let tokenizer = model.tokenizer().expect("a tokenizer");
    for (id, logit) in (0u32..).zip(&row) {
        let bytes = tokenizer.token_bytes(id).unwrap_or_default();
        let text = String::from_utf8_lossy(&bytes);
        let is_allowed =
            !text.is_empty() && ("yes".starts_with(&*text) || "no".starts_with(&*text));
        assert_eq!(*logit == 0.0, is_allowed, "{id} {text:?}");
    }
}

#[test]
fn tokens_without_bytes_of_their_own_are_refused() {
    let json = r#"{"version":"1.0","truncation":null,"padding":null,"added_tokens":[],"normalizer":null,
        "pre_tokenizer":{"type":"WhitespaceSplit"},"post_processor":null,"decoder":null,
        "model":{"type":"WordLevel","vocab":{"a":0,"b":1},"unk_token":"a"}}"#;
    let tokenizer =
        rwkv_edge::Tokenizer::from_bytes("words.json", json.as_bytes()).expect("a tokenizer");
    let error = rwkv_edge_serve::constrain::Compiler::of_vocabulary(&tokenizer, &[0])
        .expect_err("no bytes");
    assert_eq!(error.kind(), ErrorKind::Tokenizer);
}

/// A token that ends a text is no part of one, whatever it stands for; one that the vocabulary lacks does no harm; and
/// without any, only what is complete ends.
#[test]
fn tokens_that_end_a_text_are_those_of_the_model() {
    let demo = demo();
    let a = demo.tokenizer.encode("a").expect("tokens")[0];
    let allowed = |ends: &[u32], accepted: &[u32]| {
        let compiler = rwkv_edge_serve::constrain::Compiler::of_vocabulary(&demo.tokenizer, ends)
            .expect("a vocabulary");
        let mut constraint = compiler
            .compile(&Grammar::Regex("[ab]+".into()))
            .expect("a regex");
        for &token in accepted {
            constraint.accept(token).expect("allowed");
        }
        demo.allowed(&mut constraint).expect("a mask")
    };
    let b = demo.tokenizer.encode("b").expect("tokens")[0];
    assert!(!allowed(&[0, a], &[]).contains(&a));
    let ends = allowed(&[0, a], &[b]);
    assert!(ends.contains(&0) && ends.contains(&a) && ends.contains(&b));
    for none in [&[][..], &[u32::MAX]] {
        let allowed = allowed(none, &[a]);
        assert!(allowed.contains(&a) && !allowed.contains(&0), "{none:?}");
    }
}

/// Compiles and walks within seconds, or is an error.
fn within_seconds(what: &str, grammar: &Grammar) -> Option<String> {
    let start = Instant::now();
    let demo = demo();
    let compiled: Result<Constraint, _> = demo.compiler.compile(grammar);
    let compiled_in = start.elapsed();
    let mut rng = ChaCha8Rng::seed_from_u64(3);
    let error = match compiled {
        Ok(mut constraint) => demo.walk(&mut constraint, &mut rng).err(),
        Err(error) => Some(error),
    };
    let elapsed = start.elapsed();
    let text = error.map(|error| error.to_string());
    println!("{what}: compiled in {compiled_in:?}, all {elapsed:?}: {text:?}");
    assert!(elapsed < Duration::from_secs(20), "{what}: {elapsed:?}");
    text
}

#[test]
fn what_blows_up_is_an_error_within_seconds() {
    let words: Vec<String> = (0..10_000).map(|i| format!("word number {i}")).collect();
    assert_eq!(
        within_seconds("huge enum", &Grammar::JsonSchema(json!({"enum": words}))),
        None
    );
    let mut deep = json!({"type": "integer"});
    for _ in 0..60 {
        deep = json!({"type": "array", "items": deep});
    }
    within_seconds("deep schema", &Grammar::JsonSchema(deep.clone()));
    for _ in 0..60 {
        deep = json!({"items": deep});
    }
    let error = within_seconds("deeper schema", &Grammar::JsonSchema(deep)).expect("refused");
    assert!(error.contains("more than 64 levels deep"), "{error}");
    for regex in [
        "(a{1000}){1000}",
        "(a{1000}){1000}{2}",
        "((a{100}){100}){100}",
        "(x?){500}x{500}",
        "(a|b)*a(a|b){30}",
        "(.*a.*){20}",
        "(((((((((a?)?)?)?)?)?)?)?)?)+",
        "([a-z]{1,50} ){1,50}",
        "(a*)*b",
        "(.{0,500}x){100}",
        "\\p{L}{1,1000}\\p{Lu}{1,1000}",
    ] {
        within_seconds(regex, &Grammar::Regex(regex.into()));
    }
    // References, each in the one before it.
    let chain = |n: usize| {
        let definitions: serde_json::Map<_, _> = (0..n)
            .map(|i| (format!("d{i}"), json!({"type": "array", "items": {"$ref": format!("#/$defs/d{}", (i + 1) % n)}})))
            .collect();
        Grammar::JsonSchema(json!({"$ref": "#/$defs/d0", "$defs": definitions}))
    };
    assert_eq!(within_seconds("references 200 deep", &chain(200)), None);
    let error = within_seconds("references 2500 deep", &chain(2500)).expect("refused");
    assert!(error.contains("references"), "{error}");
    // Alternatives that multiply.
    let any: Vec<_> = (0..100)
        .map(|i| json!({"properties": {format!("p{i}"): {"const": i}}}))
        .collect();
    let error = within_seconds(
        "anyOf x anyOf x anyOf",
        &Grammar::JsonSchema(json!({"allOf": [{"anyOf": any}, {"anyOf": any}, {"anyOf": any}]})),
    );
    assert!(error.expect("refused").contains("the schema at #"));
    // Properties that all may be left out, in any number.
    let many: serde_json::Map<_, _> = (0..2000)
        .map(|i| (format!("property{i}"), json!({"type": "integer"})))
        .collect();
    within_seconds(
        "2000 properties",
        &Grammar::JsonSchema(
            json!({"type": "object", "properties": many, "additionalProperties": false}),
        ),
    );
    within_seconds(
        "long strings",
        &Grammar::JsonSchema(json!({"type": "string", "minLength": 100, "maxLength": 1_000_000})),
    );
    within_seconds(
        "long arrays",
        &Grammar::JsonSchema(
            json!({"type": "array", "items": {"type": "integer"}, "maxItems": 1_000_000}),
        ),
    );
    let patterns: serde_json::Map<_, _> = (0..16)
        .map(|i| (format!("^a{{{i}}}.*[b-z]{{{i}}}$"), json!(true)))
        .collect();
    within_seconds(
        "patterns",
        &Grammar::JsonSchema(json!({"patternProperties": patterns})),
    );
    // Rules, each in the one before it.
    let lark: String = (0..4000)
        .map(|i| format!("r{i}: \"(\" r{} \")\" | \"x\"\n", (i + 1) % 4000))
        .collect();
    within_seconds(
        "4000 Lark rules",
        &Grammar::Lark(format!("start: r0\n{lark}")),
    );
    let terminals: String = (0..4000)
        .map(|i| format!("T{i}: \"a\" T{}\n", i + 1))
        .collect();
    within_seconds(
        "4000 Lark terminals",
        &Grammar::Lark(format!("start: T0\n{terminals}T4000: \"b\"\n")),
    );
    let doubling: String = (0..60)
        .map(|i| format!("r{i} ::= r{0} r{0}\n", i + 1))
        .collect();
    within_seconds(
        "doubling GBNF",
        &Grammar::Gbnf(format!("root ::= r0\n{doubling}r60 ::= \"a\"?\n")),
    );
    let gbnf: String = (0..1999)
        .map(|i| format!("r{i} ::= \"(\" r{} \")\" | \"x\"\n", (i + 1) % 1999))
        .collect();
    within_seconds(
        "1999 GBNF rules",
        &Grammar::Gbnf(format!("root ::= r0\n{gbnf}")),
    );
    let error = demo().refusal(&Grammar::Lark("#".repeat(300_000)));
    assert!(
        error.contains("a Lark grammar of 300000 bytes, expected at most 262144"),
        "{error}"
    );
    let error = demo().refusal(&Grammar::JsonSchema(
        json!({"description": "x".repeat(300_000)}),
    ));
    assert!(error.contains("expected at most 262144"), "{error}");
}

/// A grammar whose text is ambiguous in more ways than there is time for.
#[test]
fn a_mask_that_takes_too_long_is_an_error() {
    let start = Instant::now();
    let grammar =
        Grammar::Lark("start: a\na: a a | b\nb: b b | \"x\" | a \"x\" | \"x\" a | a b a\n".into());
    let demo = demo();
    let mut constraint = demo.compile(&grammar);
    let x = demo.tokenizer.encode("x").expect("tokens")[0];
    let mut is_refused = false;
    let mut longest = Duration::ZERO;
    for _ in 0..3000 {
        let step = Instant::now();
        let mut row = demo.row();
        if constraint.apply(&mut row).is_err() || constraint.accept(x).is_err() {
            is_refused = true;
            break;
        }
        assert!(row[x as usize] == 0.0);
        longest = longest.max(step.elapsed());
    }
    println!("all {:?}, the longest token {longest:?}", start.elapsed());
    assert!(start.elapsed() < Duration::from_secs(60));
    assert!(
        is_refused,
        "3000 ambiguous tokens took {:?}",
        start.elapsed()
    );
    assert!(constraint.apply(&mut demo.row()).is_err(), "it stays so");
}
