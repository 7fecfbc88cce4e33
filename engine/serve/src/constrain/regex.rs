//! Regular expressions with one meaning.
//!
//! What is read is what the dialects of JavaScript (which JSON schemas use), Python, Rust and Perl share, with
//! JavaScript's meaning where they differ: `\d` and `\w` are ASCII, `.` is anything but an end of a line. What is
//! written uses no shorthand and has no anchors, so that nothing about it can be read otherwise; everything else is
//! refused by name.

use std::iter::Peekable;
use std::str::CharIndices;

/// How deep groups may be nested.
const DEPTH_MAX: usize = 32;
/// How often something may be repeated, by number.
const REPEAT_MAX: u32 = 100_000;
const ANYTHING: &str = "(?s:.)*";

/// What is wrong, and at which character.
type Result<T> = std::result::Result<T, String>;

/// The regex for texts that match as a whole. Anchors at both ends are allowed and say nothing new.
pub(super) fn whole(text: &str) -> Result<String> {
    let branches = Parser::new(text).branches(true)?;
    Ok(join(branches.into_iter().map(|branch| branch.regex)))
}

/// The regex for whole texts in which a match may be anywhere, but where anchors hold it.
pub(super) fn search(text: &str) -> Result<String> {
    let branches = Parser::new(text).branches(true)?;
    Ok(join(branches.into_iter().map(|branch| {
        let before = if branch.from_start { "" } else { ANYTHING };
        let behind = if branch.to_end { "" } else { ANYTHING };
        format!("{before}{}{behind}", branch.regex)
    })))
}

fn join(branches: impl Iterator<Item = String>) -> String {
    format!("(?:{})", branches.collect::<Vec<_>>().join("|"))
}

/// A character as part of a regex.
pub(super) fn escaped(c: char) -> String {
    match c.is_ascii_alphanumeric() || c == ' ' || c == '_' {
        true => c.to_string(),
        false => format!("\\x{{{:x}}}", u32::from(c)),
    }
}

/// One of the alternatives.
struct Branch {
    regex: String,
    from_start: bool,
    to_end: bool,
}

struct Parser<'a> {
    text: &'a str,
    chars: Peekable<CharIndices<'a>>,
    depth: usize,
}

/// One character, or several of a class.
enum Member {
    One(char),
    /// The inside of a class.
    Class(String),
}

impl<'a> Parser<'a> {
    fn new(text: &'a str) -> Self {
        Parser {
            text,
            chars: text.char_indices().peekable(),
            depth: 0,
        }
    }

    fn error<T>(&mut self, what: &str) -> Result<T> {
        let end = self.text.len();
        let byte = self.chars.peek().map_or(end, |&(byte, _)| byte);
        let n = self.text[..byte].chars().count();
        Err(format!("{what}, before character {}", n + 1))
    }

    fn peek(&mut self) -> Option<char> {
        self.chars.peek().map(|&(_, c)| c)
    }

    fn next(&mut self) -> Option<char> {
        self.chars.next().map(|(_, c)| c)
    }

    fn take(&mut self, expected: char) -> bool {
        self.chars.next_if(|&(_, c)| c == expected).is_some()
    }

    fn rest(&mut self) -> &'a str {
        let end = self.text.len();
        let byte = self.chars.peek().map_or(end, |&(byte, _)| byte);
        &self.text[byte..]
    }

    /// Alternatives up to the end, or to the bracket that closes the group.
    fn branches(&mut self, is_outermost: bool) -> Result<Vec<Branch>> {
        let mut branches = Vec::new();
        loop {
            let from_start = is_outermost && self.take('^');
            let mut regex = String::new();
            let mut to_end = false;
            loop {
                match self.peek() {
                    None | Some('|') => break,
                    Some(')') if !is_outermost => break,
                    Some(_) if to_end => {
                        return self.error("`$` that is not at the end is not supported")
                    }
                    Some('$') if is_outermost => {
                        self.next();
                        to_end = true;
                    }
                    Some(_) => self.item(&mut regex)?,
                }
            }
            branches.push(Branch {
                regex,
                from_start,
                to_end,
            });
            if !self.take('|') {
                return Ok(branches);
            }
        }
    }

    /// Something that may be repeated.
    fn item(&mut self, regex: &mut String) -> Result<()> {
        let item = match self.peek() {
            Some('(') => {
                self.next();
                self.group()?
            }
            Some('[') => {
                self.next();
                self.class()?
            }
            Some('.') => {
                self.next();
                "[^\\x{a}\\x{d}\\x{2028}\\x{2029}]".to_owned()
            }
            Some('\\') => {
                self.next();
                match self.escape(false)? {
                    Member::One(c) => escaped(c),
                    Member::Class(inside) => format!("[{inside}]"),
                }
            }
            Some('^') => return self.error("`^` that is not at the beginning is not supported"),
            Some('$') => return self.error("`$` that is not at the end is not supported"),
            Some(c @ ('*' | '+' | '?')) => return self.error(&format!("`{c}` repeats nothing")),
            Some(c @ ('{' | '}' | ']' | ')')) => {
                return self.error(&format!("`{c}` by itself; escape it: `\\{c}`"))
            }
            Some(c) => {
                self.next();
                escaped(c)
            }
            None => return self.error("the end"),
        };
        regex.push_str("(?:");
        regex.push_str(&item);
        regex.push(')');
        self.repetition(regex)
    }

    fn repetition(&mut self, regex: &mut String) -> Result<()> {
        match self.peek() {
            Some(c @ ('*' | '+' | '?')) => {
                self.next();
                regex.push(c);
            }
            Some('{') => {
                let (least, most) = self.counts()?;
                regex.push_str(&match most {
                    Some(most) => format!("{{{least},{most}}}"),
                    None => format!("{{{least},}}"),
                });
            }
            _ => return Ok(()),
        }
        // Which of several ways a text matches is of no concern.
        self.take('?');
        match self.peek() {
            Some('+') => self.error("possessive repetition is not supported"),
            Some('*' | '?' | '{') => {
                self.error("a repetition of a repetition; put the first one in a group")
            }
            _ => Ok(()),
        }
    }

    fn counts(&mut self) -> Result<(u32, Option<u32>)> {
        let rest = self.rest();
        let inside = rest.split_once('}').map(|(head, _)| &head[1..]);
        let parsed = inside.and_then(|inside| {
            let number = |digits: &str| {
                let is_number = !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit());
                is_number.then(|| digits.parse().unwrap_or(u32::MAX))
            };
            match inside.split_once(',') {
                None => number(inside).map(|n| (n, Some(n))),
                Some((least, "")) => number(least).map(|n| (n, None)),
                Some((least, most)) => Some((number(least)?, Some(number(most)?))),
            }
        });
        let Some((least, most)) = parsed else {
            return self.error("`{` that is no repetition; escape it: `\\{`");
        };
        if least.max(most.unwrap_or(0)) > REPEAT_MAX {
            return self.error(&format!("a repetition of more than {REPEAT_MAX}"));
        }
        if most.is_some_and(|most| most < least) {
            return self.error("a repetition of more than at most");
        }
        while self.next() != Some('}') {}
        Ok((least, most))
    }

    fn group(&mut self) -> Result<String> {
        if self.take('?') {
            let rest = self.rest();
            let refused = [
                ("=", "lookahead `(?=`"),
                ("!", "lookahead `(?!`"),
                ("<=", "lookbehind `(?<=`"),
                ("<!", "lookbehind `(?<!`"),
                (">", "an atomic group `(?>`"),
                ("P=", "a backreference `(?P=`"),
                ("(", "a condition `(?(`"),
                ("#", "a comment `(?#`"),
            ];
            for (sign, name) in refused {
                if rest.starts_with(sign) {
                    return self.error(&format!("{name} is not supported"));
                }
            }
            match self.next() {
                Some(':') => {}
                Some('P') if self.take('<') => self.name()?,
                Some('<') => self.name()?,
                _ => return self.error("flags in a regex are not supported"),
            }
        }
        self.depth += 1;
        if self.depth > DEPTH_MAX {
            return self.error(&format!("groups more than {DEPTH_MAX} deep"));
        }
        let branches = self.branches(false)?;
        self.depth -= 1;
        if !self.take(')') {
            return self.error("a group that is not closed");
        }
        Ok(join(branches.into_iter().map(|branch| branch.regex)))
    }

    fn name(&mut self) -> Result<()> {
        loop {
            match self.next() {
                Some('>') => return Ok(()),
                Some(c) if c == '_' || c.is_ascii_alphanumeric() => {}
                _ => return self.error("a name of a group that is not closed"),
            }
        }
    }

    fn class(&mut self) -> Result<String> {
        let mut class = String::from("[");
        if self.take('^') {
            class.push('^');
        }
        if self.peek() == Some(']') {
            return self.error("a class of nothing, or `]` that is not escaped in it");
        }
        while !self.take(']') {
            if ["[:", "[.", "[=", "&&", "--", "~~", "||"]
                .iter()
                .any(|s| self.rest().starts_with(s))
            {
                return self.error("classes inside a class and operations on them are not supported; escape the sign");
            }
            let first = match self.member()? {
                Member::Class(inside) => {
                    class.push_str(&inside);
                    if self.peek() == Some('-') && !self.rest().starts_with("-]") {
                        return self.error("a range from a class of characters");
                    }
                    continue;
                }
                Member::One(c) => c,
            };
            let is_range = self.peek() == Some('-') && !self.rest().starts_with("-]");
            class.push_str(&escaped(first));
            if is_range {
                self.next();
                match self.member()? {
                    Member::One(last) if last >= first => {
                        class.push('-');
                        class.push_str(&escaped(last));
                    }
                    Member::One(_) => return self.error("a range from its end to its beginning"),
                    Member::Class(_) => return self.error("a range to a class of characters"),
                }
            }
        }
        class.push(']');
        Ok(class)
    }

    /// One part of a class.
    fn member(&mut self) -> Result<Member> {
        match self.next() {
            None => self.error("a class that is not closed"),
            Some('\\') => self.escape(true),
            Some(c) => Ok(Member::One(c)),
        }
    }

    /// What stands behind a backslash.
    fn escape(&mut self, in_class: bool) -> Result<Member> {
        const WHITE: &str = "\\x{9}-\\x{d}\\x{20}\\x{a0}\\x{1680}\\x{2000}-\\x{200a}\\x{2028}\\x{2029}\\x{202f}\\x{205f}\\x{3000}\\x{feff}";
        const WORD: &str = "0-9A-Z_a-z";
        let Some(c) = self.next() else {
            return self.error("a backslash before nothing");
        };
        let class = |inside: &str| Ok(Member::Class(inside.to_owned()));
        // A class inside a class may be a negated one.
        let all_but = |inside: &str| Ok(Member::Class(format!("[^{inside}]")));
        match c {
            'd' => class("0-9"),
            'D' => all_but("0-9"),
            'w' => class(WORD),
            'W' => all_but(WORD),
            's' => class(WHITE),
            'S' => all_but(WHITE),
            'n' => Ok(Member::One('\n')),
            'r' => Ok(Member::One('\r')),
            't' => Ok(Member::One('\t')),
            'f' => Ok(Member::One('\x0c')),
            'v' => Ok(Member::One('\x0b')),
            'x' => self.code(2).map(Member::One),
            'u' if self.peek() == Some('{') => {
                self.next();
                let rest = self.rest();
                let digits = rest.find('}').unwrap_or(0);
                let c = self.code(digits)?;
                self.next();
                Ok(Member::One(c))
            }
            'u' => self.code(4).map(Member::One),
            'p' | 'P' => {
                let rest = self.rest();
                let name = rest.strip_prefix('{').and_then(|rest| rest.split_once('}'));
                let known = ["C", "L", "M", "N", "P", "S", "Z"];
                match name {
                    Some((name, _))
                        if name.len() <= 2
                            && name.bytes().all(|b| b.is_ascii_alphabetic())
                            && known.iter().any(|group| name.starts_with(group)) =>
                    {
                        while self.next() != Some('}') {}
                        Ok(Member::Class(format!("\\{c}{{{name}}}")))
                    }
                    _ => self.error(&format!(
                        "`\\{c}` with anything but a general category of one or two letters is not supported"
                    )),
                }
            }
            'b' | 'B' if !in_class => self.error(&format!("the boundary `\\{c}` is not supported")),
            'A' | 'Z' | 'z' | 'G' if !in_class => {
                self.error(&format!("the anchor `\\{c}` is not supported"))
            }
            '1'..='9' | 'k' => self.error("a backreference is not supported"),
            c if c.is_ascii_alphanumeric() => {
                self.error(&format!("the escape `\\{c}` is not supported"))
            }
            c => Ok(Member::One(c)),
        }
    }

    /// A character of so many hexadecimal digits.
    fn code(&mut self, n_digits: usize) -> Result<char> {
        let digits = self.rest().get(..n_digits).filter(|digits| {
            (1..=6).contains(&digits.len()) && digits.bytes().all(|b| b.is_ascii_hexdigit())
        });
        let code = digits.and_then(|digits| u32::from_str_radix(digits, 16).ok());
        match code.and_then(char::from_u32) {
            Some(c) => {
                for _ in 0..n_digits {
                    self.next();
                }
                Ok(c)
            }
            None => self.error("not the number of a character"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn anchors_hold_a_match() {
        let cases = [
            ("a", "(?:(?s:.)*(?:a)(?s:.)*)"),
            ("^a", "(?:(?:a)(?s:.)*)"),
            ("a$", "(?:(?s:.)*(?:a))"),
            ("^a$", "(?:(?:a))"),
            ("^a|b$", "(?:(?:a)(?s:.)*|(?s:.)*(?:b))"),
            ("", "(?:(?s:.)*(?s:.)*)"),
            ("^$", "(?:)"),
        ];
        for (regex, expected) in cases {
            assert_eq!(search(regex).as_deref(), Ok(expected), "{regex}");
        }
        assert_eq!(whole("^ab*$").as_deref(), Ok("(?:(?:a)(?:b)*)"));
    }

    #[test]
    fn what_has_another_meaning_elsewhere_is_refused() {
        let cases = [
            (
                "(?=a)b",
                "lookahead `(?=` is not supported, before character 3",
            ),
            ("a(?!b)", "lookahead"),
            ("(?<=a)b", "lookbehind"),
            ("(?<!a)b", "lookbehind"),
            ("(a)\\1", "a backreference"),
            ("(?P<x>a)(?P=x)", "a backreference"),
            ("(?<x>a)\\k<x>", "a backreference"),
            ("a\\b", "the boundary `\\b`"),
            ("\\Aa", "the anchor `\\A`"),
            (
                "a^b",
                "`^` that is not at the beginning is not supported, before character 2",
            ),
            ("a$b", "`$` that is not at the end"),
            ("(^a)", "`^` that is not at the beginning"),
            ("(a$)", "`$` that is not at the end"),
            ("(?i)a", "flags in a regex"),
            ("(?i:a)", "flags in a regex"),
            ("(?>a)", "an atomic group"),
            ("a*+", "possessive"),
            ("a**", "a repetition of a repetition"),
            ("*a", "`*` repeats nothing"),
            ("a{,3}", "`{` that is no repetition"),
            ("a{3,2}", "a repetition of more than at most"),
            ("a{100001}", "a repetition of more than 100000"),
            ("[[:alpha:]]", "classes inside a class"),
            ("[a-z&&[^b]]", "classes inside a class"),
            ("[b-a]", "a range from its end"),
            ("[]", "a class of nothing"),
            ("[a", "a class that is not closed"),
            ("(a", "a group that is not closed"),
            ("a)", "`)` by itself"),
            ("\\p{Greek}", "a general category"),
            ("\\q", "the escape `\\q`"),
            ("\\cA", "the escape `\\c`"),
            ("\\ud800", "not the number of a character"),
            ("\\x4", "not the number of a character"),
            ("a\\", "a backslash before nothing"),
        ];
        for (regex, expected) in cases {
            let error = whole(regex).expect_err(regex);
            assert!(error.contains(expected), "{regex}: {error}");
            assert!(search(regex).is_err(), "{regex}");
        }
        let deep = "(".repeat(1000) + "a" + &")".repeat(1000);
        assert!(whole(&deep).expect_err("deep").contains("32 deep"));
    }
}
