//! Grammars in the form of llama.cpp (GBNF), as Lark grammars.
//!
//! Rules that do not refer to themselves, through whatever others, become terminals, which the lexer takes at one go;
//! only what is recursive is left to the parser. The lexer takes the longest match: where a terminal can go on with
//! what the parser expects behind it, a text that the grammar allows in another way may not be found. Whatever is found
//! is a text of the grammar.

mod parse;

use std::fmt::Write;

use super::{refused, regex};
use rwkv_edge::Result;

/// A part of a rule.
#[derive(Clone, Debug, PartialEq)]
enum Node {
    Text(String),
    /// One character, as a regex.
    Class(String),
    /// The rule of this number.
    Rule(usize),
    Sequence(Vec<Node>),
    Choice(Vec<Node>),
    Repeat(Box<Node>, u32, Option<u32>),
}

/// A rule, and the line where it is.
struct Rule {
    name: String,
    line: usize,
    node: Node,
}

/// The same grammar in Lark's form.
///
/// # Errors
///
/// [`ErrorKind::Argument`](rwkv_edge::ErrorKind::Argument), with the line.
pub(super) fn to_lark(text: &str) -> Result<String> {
    let (rules, root) = parse::parse(text)
        .map_err(|(line, what)| refused(format!("the GBNF grammar, line {line}: {what}")))?;
    let facts = Facts::of(&rules);
    if let Some(index) =
        (0..rules.len()).find(|&index| facts.is_reached_from(root, index) && !facts.ends[index])
    {
        let Rule { name, line, .. } = &rules[index];
        return Err(refused(format!(
            "the GBNF grammar, line {line}: the rule `{name}` refers to itself without an end"
        )));
    }
    let mut writer = Writer {
        facts: &facts,
        rules: &rules,
        lark: String::new(),
        n_terminals: 0,
    };
    let start = writer.rule_part(&Node::Rule(root));
    // Alternatives of nothing are written as nothing.
    let start = if start.is_empty() {
        EMPTY.to_owned()
    } else {
        start
    };
    let _ = writeln!(writer.lark, "start: {start}");
    for (index, rule) in rules
        .iter()
        .enumerate()
        .filter(|&(index, _)| facts.is_reached_from(root, index))
    {
        if !facts.is_recursive[index] {
            let terminal = terminal_part(&rule.node);
            let _ = writeln!(writer.lark, "T{index}: {terminal}");
        }
        if facts.is_recursive[index] || facts.is_empty[index] {
            let part = writer.rule_part(&rule.node);
            let _ = writeln!(
                writer.lark,
                "r{index}: {}",
                if part.is_empty() { EMPTY } else { &part }
            );
        }
    }
    Ok(writer.lark)
}

/// A terminal that matches nothing but the empty text.
const EMPTY: &str = "\"\"";

/// What is known of each rule.
struct Facts {
    /// Whether it refers to itself, or to one that does.
    is_recursive: Vec<bool>,
    /// Whether the empty text matches it.
    is_empty: Vec<bool>,
    /// Whether any text matches it.
    ends: Vec<bool>,
    /// (rules x rules) what each leads to
    reaches: Vec<Vec<bool>>,
}

impl Facts {
    fn of(rules: &[Rule]) -> Self {
        let n = rules.len();
        let reaches: Vec<Vec<bool>> = (0..n).map(|from| reached_from(rules, from)).collect();
        let mut facts = Facts {
            is_recursive: vec![false; n],
            is_empty: vec![false; n],
            ends: vec![false; n],
            reaches,
        };
        for from in 0..n {
            facts.is_recursive[from] = facts.reaches[from][from]
                || (0..n).any(|to| facts.reaches[from][to] && facts.reaches[to][to]);
        }
        // Least fixed points: a rule is what its parts make it.
        loop {
            let mut is_changed = false;
            for (index, rule) in rules.iter().enumerate() {
                let (is_empty, ends) = (facts.matches_empty(&rule.node), facts.has_end(&rule.node));
                is_changed |= is_empty != facts.is_empty[index] || ends != facts.ends[index];
                facts.is_empty[index] = is_empty;
                facts.ends[index] = ends;
            }
            if !is_changed {
                return facts;
            }
        }
    }

    fn is_reached_from(&self, root: usize, index: usize) -> bool {
        index == root || self.reaches[root][index]
    }

    fn matches_empty(&self, node: &Node) -> bool {
        match node {
            Node::Text(text) => text.is_empty(),
            Node::Class(_) => false,
            Node::Rule(index) => self.is_empty[*index],
            Node::Sequence(nodes) => nodes.iter().all(|node| self.matches_empty(node)),
            Node::Choice(nodes) => nodes.iter().any(|node| self.matches_empty(node)),
            Node::Repeat(node, least, _) => *least == 0 || self.matches_empty(node),
        }
    }

    fn has_end(&self, node: &Node) -> bool {
        match node {
            Node::Text(_) | Node::Class(_) => true,
            Node::Rule(index) => self.ends[*index],
            Node::Sequence(nodes) => nodes.iter().all(|node| self.has_end(node)),
            Node::Choice(nodes) => nodes.iter().any(|node| self.has_end(node)),
            Node::Repeat(node, least, _) => *least == 0 || self.has_end(node),
        }
    }

    fn is_terminal(&self, node: &Node) -> bool {
        match node {
            Node::Text(_) | Node::Class(_) => true,
            Node::Rule(index) => !self.is_recursive[*index],
            Node::Sequence(nodes) | Node::Choice(nodes) => {
                nodes.iter().all(|node| self.is_terminal(node))
            }
            Node::Repeat(node, _, _) => self.is_terminal(node),
        }
    }
}

/// What a rule leads to, itself only if it leads back.
fn reached_from(rules: &[Rule], from: usize) -> Vec<bool> {
    let mut reached = vec![false; rules.len()];
    let mut left = vec![&rules[from].node];
    while let Some(node) = left.pop() {
        match node {
            Node::Text(_) | Node::Class(_) => {}
            Node::Rule(index) if reached[*index] => {}
            Node::Rule(index) => {
                reached[*index] = true;
                left.push(&rules[*index].node);
            }
            Node::Sequence(nodes) | Node::Choice(nodes) => left.extend(nodes),
            Node::Repeat(node, _, _) => left.push(node),
        }
    }
    reached
}

struct Writer<'a> {
    facts: &'a Facts,
    rules: &'a [Rule],
    lark: String,
    n_terminals: usize,
}

impl Writer<'_> {
    /// What stands for a node in a rule; nothing for what matches the empty text alone.
    fn rule_part(&mut self, node: &Node) -> String {
        if self.facts.is_terminal(node) && !self.facts.matches_empty(node) {
            return self.terminal(node);
        }
        match node {
            Node::Text(_) | Node::Class(_) => String::new(),
            Node::Rule(index) => match self.is_nothing(&self.rules[*index].node) {
                true => String::new(),
                false => format!("r{index}"),
            },
            Node::Sequence(nodes) => self.sequence(nodes),
            Node::Choice(nodes) => self.choice(nodes),
            Node::Repeat(_, _, Some(0)) => String::new(),
            Node::Repeat(inner, 0, most)
                if self.facts.is_terminal(inner) && !self.facts.matches_empty(inner) =>
            {
                let some = Node::Repeat(inner.clone(), 1, *most);
                format!("{}?", self.terminal(&some))
            }
            Node::Repeat(inner, least, most) => match self.rule_part(inner) {
                part if part.is_empty() => part,
                part => format!("({part}){}", counts(*least, *most)),
            },
        }
    }

    fn is_nothing(&self, node: &Node) -> bool {
        match node {
            Node::Text(text) => text.is_empty(),
            Node::Class(_) | Node::Rule(_) => false,
            Node::Sequence(nodes) | Node::Choice(nodes) => {
                nodes.iter().all(|node| self.is_nothing(node))
            }
            Node::Repeat(node, _, most) => *most == Some(0) || self.is_nothing(node),
        }
    }

    fn sequence(&mut self, nodes: &[Node]) -> String {
        let mut parts = Vec::new();
        let facts = self.facts;
        for run in nodes.chunk_by(|a, b| facts.is_terminal(a) == facts.is_terminal(b)) {
            let is_whole =
                facts.is_terminal(&run[0]) && run.iter().any(|node| !facts.matches_empty(node));
            match is_whole {
                true => parts.push(self.terminal(&Node::Sequence(run.to_vec()))),
                false => parts.extend(run.iter().map(|node| self.rule_part(node))),
            }
        }
        parts.retain(|part| !part.is_empty());
        parts.join(" ")
    }

    fn choice(&mut self, nodes: &[Node]) -> String {
        let facts = self.facts;
        let is_plain = |node: &&Node| facts.is_terminal(node) && !facts.matches_empty(node);
        let plain: Vec<Node> = nodes.iter().filter(is_plain).cloned().collect();
        let mut parts = Vec::new();
        if !plain.is_empty() {
            parts.push(self.terminal(&Node::Choice(plain)));
        }
        for node in nodes.iter().filter(|node| !is_plain(node)) {
            parts.push(self.rule_part(node));
        }
        let has_empty = nodes.iter().any(|node| facts.matches_empty(node));
        parts.retain(|part| !part.is_empty());
        match parts.is_empty() {
            true => String::new(),
            false => format!(
                "({}){}",
                parts.join(" | "),
                if has_empty { "?" } else { "" }
            ),
        }
    }

    /// The name of a terminal.
    fn terminal(&mut self, node: &Node) -> String {
        if let Node::Rule(index) = node {
            return format!("T{index}");
        }
        let name = format!("X{}", self.n_terminals);
        self.n_terminals += 1;
        let _ = writeln!(self.lark, "{name}: {}", terminal_part(node));
        name
    }
}

/// A node as part of a terminal.
fn terminal_part(node: &Node) -> String {
    let joined = |nodes: &[Node], sign: &str| {
        let parts: Vec<String> = nodes.iter().map(terminal_part).collect();
        format!("({})", parts.join(sign))
    };
    match node {
        Node::Text(text) if text.is_empty() => EMPTY.to_owned(),
        Node::Text(text) => format!("/{}/", text.chars().map(regex::escaped).collect::<String>()),
        Node::Class(regex) => format!("/{regex}/"),
        Node::Rule(index) => format!("T{index}"),
        Node::Sequence(nodes) if nodes.is_empty() => EMPTY.to_owned(),
        Node::Sequence(nodes) => joined(nodes, " "),
        Node::Choice(nodes) => joined(nodes, " | "),
        Node::Repeat(_, _, Some(0)) => EMPTY.to_owned(),
        Node::Repeat(node, least, most) => {
            format!("({}){}", terminal_part(node), counts(*least, *most))
        }
    }
}

fn counts(least: u32, most: Option<u32>) -> String {
    match (least, most) {
        (0, Some(1)) => "?".to_owned(),
        (0, None) => "*".to_owned(),
        (1, None) => "+".to_owned(),
        (least, None) => format!("{{{least},}}"),
        (least, Some(most)) => format!("{{{least},{most}}}"),
    }
}
