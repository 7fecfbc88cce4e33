//! GBNF lets no lexer hide what it means.

use rwkv_edge_serve::constrain::Grammar;

use super::check;

/// Where the longest match would hide texts of the grammar.
#[test]
fn gbnf_grammars_lose_no_text_to_the_longest_match() {
    // As in llama.cpp's repository.
    let arithmetic = r#"root  ::= (expr "=" ws term "\n")+
expr  ::= term ([-+*/] term)*
term  ::= ident | num | "(" ws expr ")" ws
ident ::= [a-z] [a-z0-9_]* ws
num   ::= [0-9]+ ws
ws    ::= [ \t\n]*
"#;
    let cases: [(&str, &[&str], &[&str]); 5] = [
        (
            "root ::= [a-z]* pair\npair ::= \"a\" pair \"b\" | \"c\"",
            &["c", "xc", "acb", "aacbb", "zzaacbb", "aaacb", "cc"],
            &["", "a", "acbb", "xcx"],
        ),
        (
            arithmetic,
            &["a=b\n", "1 +(x*2)=y2\n", "a=b\nc=d\n", "a=b \n\n"],
            &["a=b", "=b\n", "a=\n", "a=b\nc"],
        ),
        (
            "root ::= \"if\" root | [a-z]+ \" \" root | \"x\"",
            &["x", "ifx", "ififx", "if x", "ifif ifx"],
            &["if", "if ", "xx"],
        ),
        (
            "root ::= \"<\" root | \"<=\" root | [=a]",
            &["a", "=", "<a", "<=a", "<=", "<<==", "<=="],
            &["<", "<==a"],
        ),
        (
            "root ::= \"(\" root \")\" | (. [龍-龠]?)*",
            &["", "(", "()", "(龍)", "((a龍)"],
            &[],
        ),
    ];
    for (grammar, taken, not_taken) in cases {
        check(Grammar::Gbnf(grammar.into()), taken, not_taken);
    }
}
