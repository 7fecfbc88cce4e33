//! GBNF to rules.

use std::collections::HashMap;

use super::super::regex::escaped;
use super::{Class, Node, Rule};

/// The line, and what is wrong there.
type Result<T> = std::result::Result<T, (usize, String)>;

const DEPTH_MAX: usize = 32;
const REPEAT_MAX: u32 = 10_000;
/// Rules are walked into one inside the other.
const RULES_MAX: usize = 2000;

/// The rules of a grammar, and the number of `root`.
pub(super) fn parse(text: &str) -> Result<(Vec<Rule>, usize)> {
    let mut parser = Parser {
        text,
        at: 0,
        line: 1,
        depth: 0,
        numbers: HashMap::new(),
        used_in: Vec::new(),
    };
    let mut rules: Vec<Option<Rule>> = Vec::new();
    parser.skip(true);
    while parser.at < text.len() {
        let line = parser.line;
        let name = parser.name()?;
        parser.skip(false);
        if !parser.take("::=") {
            return parser.error(format!("expected `::=` behind the name `{name}`"));
        }
        parser.skip(true);
        let node = parser.choice(false)?;
        let number = parser.number(name, line)?;
        rules.resize_with(parser.used_in.len(), || None);
        let rule = Rule {
            name: name.to_owned(),
            line,
            node,
        };
        if rules[number].replace(rule).is_some() {
            return Err((line, format!("the rule `{name}` is there twice")));
        }
        parser.skip(true);
    }
    rules.resize_with(parser.used_in.len(), || None);
    let Some(&root) = parser.numbers.get("root") else {
        return Err((parser.line, "there is no rule `root`".into()));
    };
    let missing = parser
        .numbers
        .iter()
        .filter(|(_, &number)| rules[number].is_none());
    if let Some((name, &number)) = missing.min_by_key(|(_, &number)| number) {
        return Err((parser.used_in[number], format!("there is no rule `{name}`")));
    }
    Ok((rules.into_iter().flatten().collect(), root))
}

struct Parser<'a> {
    text: &'a str,
    at: usize,
    line: usize,
    depth: usize,
    numbers: HashMap<&'a str, usize>,
    /// By number, the line where each rule was named first.
    used_in: Vec<usize>,
}

impl<'a> Parser<'a> {
    fn error<T>(&self, what: impl Into<String>) -> Result<T> {
        Err((self.line, what.into()))
    }

    fn peek(&self) -> Option<char> {
        self.text[self.at..].chars().next()
    }

    fn next(&mut self) -> Option<char> {
        let c = self.peek()?;
        self.at += c.len_utf8();
        self.line += usize::from(c == '\n');
        Some(c)
    }

    fn take(&mut self, expected: &str) -> bool {
        let is_there = self.text[self.at..].starts_with(expected);
        if is_there {
            self.at += expected.len();
        }
        is_there
    }

    /// Goes over blanks and comments, and ends of lines too where they say nothing.
    fn skip(&mut self, over_lines: bool) {
        while let Some(c) = self.peek() {
            match c {
                ' ' | '\t' => {}
                '\r' | '\n' if over_lines => {}
                '#' => {
                    let rest = &self.text[self.at..];
                    self.at += rest.find('\n').unwrap_or(rest.len());
                    continue;
                }
                _ => return,
            }
            self.next();
        }
    }

    fn name(&mut self) -> Result<&'a str> {
        let rest = &self.text[self.at..];
        let is_part = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
        let name = &rest[..rest.find(|c| !is_part(c)).unwrap_or(rest.len())];
        if name.is_empty() {
            let found = self
                .peek()
                .map_or("the end".to_owned(), |c| format!("{c:?}"));
            return self.error(format!("expected the name of a rule, found {found}"));
        }
        self.at += name.len();
        Ok(name)
    }

    fn number(&mut self, name: &'a str, line: usize) -> Result<usize> {
        let next = self.used_in.len();
        let number = *self.numbers.entry(name).or_insert(next);
        if number == next {
            if next == RULES_MAX {
                return self.error(format!("more than {RULES_MAX} rules"));
            }
            self.used_in.push(line);
        }
        Ok(number)
    }

    fn choice(&mut self, is_nested: bool) -> Result<Node> {
        let mut nodes = vec![self.sequence(is_nested)?];
        loop {
            // Lines that begin with `|` go on with the rule.
            let (at, line) = (self.at, self.line);
            self.skip(true);
            if !self.take("|") {
                (self.at, self.line) = if is_nested {
                    (self.at, self.line)
                } else {
                    (at, line)
                };
                break;
            }
            self.skip(true);
            nodes.push(self.sequence(is_nested)?);
        }
        Ok(match nodes.len() {
            1 => nodes.remove(0),
            _ => Node::Choice(nodes),
        })
    }

    fn sequence(&mut self, is_nested: bool) -> Result<Node> {
        let mut nodes = Vec::new();
        loop {
            self.skip(is_nested);
            let node = match self.peek() {
                None | Some('|' | '\n' | '\r') => break,
                Some(')') if is_nested => break,
                Some('"') => self.text()?,
                Some('[') => self.class()?,
                Some('.') => {
                    self.next();
                    Node::Class(Class {
                        regex: "(?s:.)".into(),
                        ranges: vec![('\0', char::MAX)],
                    })
                }
                Some('(') => self.group()?,
                Some('<' | '!') => {
                    return self.error("tokens `<..>` are not supported: answers are text")
                }
                Some(c @ ('*' | '+' | '?' | '{')) => {
                    return self.error(format!("`{c}` repeats nothing"))
                }
                Some(c) if c.is_ascii_alphanumeric() || c == '-' || c == '_' => {
                    let line = self.line;
                    let name = self.name()?;
                    Node::Rule(self.number(name, line)?)
                }
                Some(c) => return self.error(format!("{c:?} is not supported here")),
            };
            nodes.push(self.repeated(node)?);
        }
        Ok(match nodes.len() {
            1 => nodes.remove(0),
            _ => Node::Sequence(nodes),
        })
    }

    fn group(&mut self) -> Result<Node> {
        let line = self.line;
        self.next();
        self.depth += 1;
        if self.depth > DEPTH_MAX {
            return self.error(format!("groups more than {DEPTH_MAX} deep"));
        }
        let node = self.choice(true)?;
        self.depth -= 1;
        match self.take(")") {
            true => Ok(node),
            false => Err((line, "a group that is not closed".into())),
        }
    }

    fn repeated(&mut self, node: Node) -> Result<Node> {
        self.skip(false);
        let (least, most) = match self.peek() {
            Some('*') => (0, None),
            Some('+') => (1, None),
            Some('?') => (0, Some(1)),
            Some('{') => {
                let (least, most) = self.counts()?;
                return self.again(Node::Repeat(Box::new(node), least, most));
            }
            _ => return Ok(node),
        };
        self.next();
        self.again(Node::Repeat(Box::new(node), least, most))
    }

    /// `a*?` would be read in several ways.
    fn again(&mut self, node: Node) -> Result<Node> {
        match self.peek() {
            Some('*' | '+' | '?' | '{') => {
                self.error("a repetition of a repetition; put the first one in a group")
            }
            _ => Ok(node),
        }
    }

    fn counts(&mut self) -> Result<(u32, Option<u32>)> {
        let rest = &self.text[self.at..];
        let inside = rest
            .split_once('}')
            .map(|(head, _)| head[1..].replace(' ', ""));
        let counts = inside
            .as_deref()
            .and_then(|inside| match inside.split_once(',') {
                None => inside.parse().ok().map(|n| (n, Some(n))),
                Some((least, "")) => least.parse().ok().map(|n| (n, None)),
                Some((least, most)) => Some((least.parse().ok()?, Some(most.parse().ok()?))),
            });
        let is_good = |(least, most): &(u32, Option<u32>)| {
            (*least).max(most.unwrap_or(0)) <= REPEAT_MAX && most.is_none_or(|most| most >= *least)
        };
        match counts.filter(is_good) {
            Some(counts) => {
                while self.next() != Some('}') {}
                Ok(counts)
            }
            None => self.error(format!(
                "expected a repetition such as {{2}}, {{2,}} or {{2,5}}, at most {REPEAT_MAX}"
            )),
        }
    }

    fn text(&mut self) -> Result<Node> {
        self.next();
        let mut text = String::new();
        loop {
            match self.peek() {
                None | Some('\n') => return self.error("a text that is not closed"),
                Some('"') => {
                    self.next();
                    return Ok(Node::Text(text));
                }
                Some(_) => text.push(self.character()?),
            }
        }
    }

    fn class(&mut self) -> Result<Node> {
        self.next();
        let mut class = String::from("[");
        let is_negated = self.take("^");
        if is_negated {
            class.push('^');
        }
        let mut ranges = Vec::new();
        if self.peek() == Some(']') {
            return self.error("a class of nothing");
        }
        loop {
            match self.peek() {
                None | Some('\n') => return self.error("a class that is not closed"),
                Some(']') => break,
                Some(_) => {}
            }
            let first = self.character()?;
            let mut range = (first, first);
            class.push_str(&escaped(first));
            if self.peek() == Some('-') && !self.text[self.at..].starts_with("-]") {
                self.next();
                let last = self.character()?;
                if last < first {
                    return self.error("a range from its end to its beginning");
                }
                class.push('-');
                class.push_str(&escaped(last));
                range.1 = last;
            }
            ranges.push(range);
        }
        self.next();
        class.push(']');
        if is_negated {
            ranges = all_but(ranges);
        }
        Ok(Node::Class(Class {
            regex: class,
            ranges,
        }))
    }

    /// A character of a text or of a class.
    fn character(&mut self) -> Result<char> {
        match self.next() {
            None => self.error("the end inside a text or a class"),
            Some('\\') => match self.next() {
                Some('n') => Ok('\n'),
                Some('r') => Ok('\r'),
                Some('t') => Ok('\t'),
                Some(c @ ('\\' | '"' | '[' | ']')) => Ok(c),
                Some('x') => self.code(2),
                Some('u') => self.code(4),
                Some('U') => self.code(8),
                Some(c) => self.error(format!("the escape `\\{c}` is not supported")),
                None => self.error("a backslash before nothing"),
            },
            Some(c) => Ok(c),
        }
    }

    fn code(&mut self, n_digits: usize) -> Result<char> {
        let digits = self.text[self.at..].get(..n_digits);
        let digits = digits.filter(|digits| digits.bytes().all(|b| b.is_ascii_hexdigit()));
        let code = digits.and_then(|digits| u32::from_str_radix(digits, 16).ok());
        match code.and_then(char::from_u32) {
            Some(c) => {
                self.at += n_digits;
                Ok(c)
            }
            None => self.error(format!(
                "expected {n_digits} hexadecimal digits of a character"
            )),
        }
    }
}

/// The characters that are in none of these ranges.
fn all_but(mut ranges: Vec<(char, char)>) -> Vec<(char, char)> {
    ranges.sort_unstable();
    let mut others = Vec::new();
    let mut next = Some('\0');
    for (first, last) in ranges {
        let Some(from) = next else { break };
        if from < first {
            // The character before it.
            others.extend((from..first).next_back().map(|before| (from, before)));
        }
        if last >= from {
            next = (last..=char::MAX).nth(1);
        }
    }
    others.extend(next.map(|from| (from, char::MAX)));
    others
}

#[cfg(test)]
mod tests {
    use super::super::to_lark;

    #[test]
    fn what_is_not_supported_is_named_with_its_line() {
        let cases = [
            ("roots ::= \"a\"", "there is no rule `root`"),
            ("root ::= a\n\na ::= b\n", "line 3: there is no rule `b`"),
            (
                "root ::= \"a\"\nroot ::= \"b\"",
                "line 2: the rule `root` is there twice",
            ),
            ("root := \"a\"", "line 1: expected `::=`"),
            ("root ::= \"a", "a text that is not closed"),
            ("root ::= [a", "a class that is not closed"),
            ("root ::= []", "a class of nothing"),
            ("root ::= [b-a]", "a range from its end"),
            ("root ::= (\"a\"", "a group that is not closed"),
            ("root ::= \"a\")", "')' is not supported here"),
            ("root ::= *", "`*` repeats nothing"),
            ("root ::= \"a\"**", "a repetition of a repetition"),
            ("root ::= \"a\"{3,2}", "expected a repetition"),
            ("root ::= \"a\"{,2}", "expected a repetition"),
            ("root ::= \"a\"{99999}", "at most 10000"),
            ("root ::= \"\\q\"", "the escape `\\q`"),
            ("root ::= \"\\u12\"", "expected 4 hexadecimal digits"),
            ("root ::= <think>", "tokens `<..>`"),
            ("root ::= <[1000]>", "tokens `<..>`"),
            ("root ::= 'a'", "'\\'' is not supported here"),
            (
                "root ::= \"a\" root",
                "line 1: the rule `root` refers to itself without an end",
            ),
            (
                "root ::= \"a\" | b\nb ::= \"(\" b \")\"",
                "line 2: the rule `b` refers to itself",
            ),
            ("| a", "expected the name of a rule"),
        ];
        for (grammar, expected) in cases {
            let error = to_lark(grammar).expect_err(grammar).to_string();
            assert!(error.contains(expected), "{grammar}: {error}");
        }
        let deep = format!("root ::= {}\"a\"{}", "(".repeat(100), ")".repeat(100));
        assert!(to_lark(&deep)
            .expect_err("deep")
            .to_string()
            .contains("32 deep"));
        let many: String = (0..3000).map(|i| format!("r{i} ::= \"a\"\n")).collect();
        assert!(to_lark(&many)
            .expect_err("many")
            .to_string()
            .contains("2000 rules"));
    }

    #[test]
    fn what_is_not_recursive_is_one_terminal() {
        let lark =
            to_lark("root ::= a b* # a comment\na ::= \"x\" |\n  \"/\"\nb ::= [^a-c\\n]{2,3}")
                .expect("a grammar");
        assert_eq!(
            lark,
            "start: T2\nT0: (/x/ | /\\x{2f}/)\nT1: (/[^a-c\\x{a}]/){2,3}\nT2: (T0 (T1)*)\n"
        );
    }
}
