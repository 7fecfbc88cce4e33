//! What of Lark, as llguidance reads it, is taken.

use super::refused;
use rwkv_edge::Result;

/// How deep brackets may be nested.
const DEPTH_MAX: usize = 64;
/// Rules are walked into one inside the other.
const LINES_MAX: usize = 4096;

/// Statements that would go around the checks of this module's others, or change what an answer is.
const STATEMENTS: [(&str, &str); 5] = [
    ("%json", "give the schema by itself"),
    ("%regex", "write a regex"),
    ("%lark", "write its rules into this grammar"),
    ("%llguidance", "options are not taken"),
    ("%if", "conditions are not taken"),
];

/// Refuses what is not honoured here: tokens that are no text, options and nested grammars.
///
/// # Errors
///
/// [`ErrorKind::Argument`](rwkv_edge::ErrorKind::Argument), with the line.
pub(super) fn check(text: &str) -> Result<()> {
    let mut rest = text;
    let mut depth = 0usize;
    // Whether what came last is a name at the start of a line, where options of a rule may follow.
    let mut is_head = true;
    let mut line = 1;
    let error = |line: usize, what: &str| refused(format!("the Lark grammar, line {line}: {what}"));
    if text.lines().count() > LINES_MAX {
        return Err(refused(format!(
            "the Lark grammar: more than {LINES_MAX} lines"
        )));
    }
    while let Some(c) = rest.chars().next() {
        let mut n_bytes = c.len_utf8();
        match c {
            '#' => n_bytes = rest.find('\n').unwrap_or(rest.len()),
            '/' if rest.starts_with("//") => n_bytes = rest.find('\n').unwrap_or(rest.len()),
            '/' | '"' => {
                n_bytes = quoted(rest)
                    .ok_or_else(|| error(line, &format!("no `{c}` that closes what it opens")))?;
                if c == '/'
                    && (rest[..n_bytes].contains("(?P<stop>")
                        || rest[..n_bytes].contains("(?<stop>"))
                {
                    return Err(error(line, "a group with the name `stop` is not supported"));
                }
            }
            '\n' => is_head = true,
            ':' if rest.starts_with("::") => {
                return Err(error(line, "parameters `::` are not supported"))
            }
            ':' => is_head = false,
            '<' => {
                return Err(error(
                    line,
                    "tokens `<..>` are not supported: answers are text",
                ))
            }
            '@' => {
                return Err(error(
                    line,
                    "references `@..` to other grammars are not supported",
                ))
            }
            '[' if is_head && depth == 0 => {
                return Err(error(line, "options `[..]` of a rule are not supported"));
            }
            '(' | '[' | '{' => {
                depth += 1;
                if depth > DEPTH_MAX {
                    return Err(error(line, &format!("brackets more than {DEPTH_MAX} deep")));
                }
            }
            ')' | ']' | '}' => depth = depth.saturating_sub(1),
            '|' => is_head = false,
            '%' => {
                let name = rest[1..].find(|c: char| !c.is_ascii_alphabetic());
                n_bytes = name.map_or(rest.len(), |end| end + 1);
                let found = STATEMENTS
                    .iter()
                    .find(|(name, _)| *name == &rest[..n_bytes]);
                if let Some((name, instead)) = found {
                    return Err(error(
                        line,
                        &format!("`{name}` is not supported: {instead}"),
                    ));
                }
                // The rule behind it has a head of its own.
                is_head = &rest[..n_bytes] == "%override";
            }
            _ => {}
        }
        line += rest[..n_bytes].matches('\n').count();
        rest = &rest[n_bytes..];
    }
    Ok(())
}

/// Bytes up to the sign that closes what the first one opens.
fn quoted(text: &str) -> Option<usize> {
    let quote = text.chars().next()?;
    let mut is_escaped = false;
    for (byte, c) in text.char_indices().skip(1) {
        match c {
            _ if is_escaped => is_escaped = false,
            '\\' => is_escaped = true,
            '\n' if quote == '"' => return None,
            c if c == quote => return Some(byte + 1),
            _ => {}
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_honoured_is_named_with_its_line() {
        let cases = [
            (
                "start: \"a\"\n\n%json {}",
                "line 3: `%json` is not supported: give the schema by itself",
            ),
            ("%llguidance {}\nstart: \"a\"", "line 1: `%llguidance`"),
            ("start: X\nX: %regex {}", "line 2: `%regex`"),
            ("start: %lark { start: \"a\" }", "`%lark`"),
            ("start: \"a\" <|endoftext|>", "line 1: tokens `<..>`"),
            ("start: <[0]>", "tokens `<..>`"),
            ("start: @other", "references `@..`"),
            ("start: a\na[max_tokens=3]: /b/", "line 2: options `[..]`"),
            ("a[stop=\"\"]: /b/", "options `[..]`"),
            ("?a [temperature=1]: /b/", "options `[..]`"),
            ("%override a[max_tokens=1]: /b/", "options `[..]`"),
            ("start::_: \"a\"", "parameters `::`"),
            ("start: /a(?P<stop>b)/", "the name `stop`"),
            ("start: \"a", "no `\"` that closes"),
            ("start: /a", "no `/` that closes"),
            (&("start: ".to_owned() + &"(".repeat(100)), "64 deep"),
            (&"\n".repeat(5000), "4096 lines"),
        ];
        for (grammar, expected) in cases {
            let error = check(grammar).expect_err(expected).to_string();
            assert!(error.contains(expected), "{grammar}: {error}");
        }
    }

    #[test]
    fn texts_and_comments_are_no_statements() {
        for grammar in [
            "start: \"<a> @b %json [ ::\"",
            "start: /<a> @b %json \\/ [\"]/",
            "# %json <a>\nstart: \"a\" // @b",
            "start: [\"a\"] b\nb: (\"c\"\n | [\"d\"])",
            "start: \"\\\"<\" \"a\"i",
            "%ignore /[ \\t]+/\n%import common.INT\nstart: INT",
            "start: A{2,3}\nA: \"a\" | \"b\"",
        ] {
            assert!(check(grammar).is_ok(), "{grammar}");
        }
    }
}
