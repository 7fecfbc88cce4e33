//! Grammars in the form of llama.cpp (GBNF), as Lark grammars.
//!
//! Rules that do not refer to themselves, through whatever others, become terminals, which the lexer takes at one go;
//! only what is recursive is left to the parser. The lexer takes the longest match: where a terminal can go on with
//! what the parser expects behind it, a text that the grammar allows in another way would not be found. Such grammars
//! (`conflicts.rs`) are written so that each terminal is one character, which the parser alone puts together.

mod conflicts;
mod parse;
mod parts;

use std::collections::HashMap;
use std::fmt::Write;

use self::parts::{Part, Writer};
use super::{refused, regex};
use rwkv_edge::Result;

/// A part of a rule.
#[derive(Clone, Debug, PartialEq)]
enum Node {
    Text(String),
    /// One character.
    Class(Class),
    /// The rule of this number.
    Rule(usize),
    Sequence(Vec<Node>),
    Choice(Vec<Node>),
    Repeat(Box<Node>, u32, Option<u32>),
}

/// Characters, as a regex and as ranges, both ends included.
#[derive(Clone, Debug, PartialEq)]
struct Class {
    regex: String,
    ranges: Vec<(char, char)>,
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
    let by_terminals = written(&rules, root, &facts, false);
    let has_conflict = conflicts::are_in(&rules, &by_terminals);
    Ok(match has_conflict {
        false => by_terminals.to_lark(&rules),
        true => written(&rules, root, &facts, true).to_lark(&rules),
    })
}

/// A grammar of terminals and of rules.
struct Written {
    start: Part,
    /// The numbers of the rules that are no terminals, and what they are.
    rules: Vec<(usize, Part)>,
    terminals: Vec<Node>,
    /// Rules that are terminals.
    terminal_rules: Vec<usize>,
}

fn written(rules: &[Rule], root: usize, facts: &Facts, is_by_character: bool) -> Written {
    let mut writer = Writer {
        facts,
        rules,
        terminals: Vec::new(),
        numbers: HashMap::new(),
        is_by_character,
    };
    let start = writer.part(&Node::Rule(root));
    let (mut parts, mut terminal_rules) = (Vec::new(), Vec::new());
    for (index, rule) in rules.iter().enumerate() {
        if !facts.is_reached_from(root, index) {
            continue;
        }
        if !facts.is_recursive[index] && !is_by_character {
            terminal_rules.push(index);
        }
        if facts.is_recursive[index] || facts.is_empty[index] || is_by_character {
            parts.push((index, writer.part(&rule.node)));
        }
    }
    Written {
        start,
        rules: parts,
        terminals: writer.terminals,
        terminal_rules,
    }
}

impl Written {
    fn to_lark(&self, rules: &[Rule]) -> String {
        let mut lark = String::new();
        let shown = |part: &Part| match part.to_string() {
            // Alternatives of nothing are written as nothing.
            text if text.is_empty() => EMPTY.to_owned(),
            text => text,
        };
        let _ = writeln!(lark, "start: {}", shown(&self.start));
        for (number, node) in self.terminals.iter().enumerate() {
            if !matches!(node, Node::Rule(_)) {
                let _ = writeln!(lark, "X{number}: {}", terminal_part(node));
            }
        }
        for &index in &self.terminal_rules {
            let _ = writeln!(lark, "T{index}: {}", terminal_part(&rules[index].node));
        }
        for (index, part) in &self.rules {
            let _ = writeln!(lark, "r{index}: {}", shown(part));
        }
        lark
    }
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

/// A node as part of a terminal.
fn terminal_part(node: &Node) -> String {
    let joined = |nodes: &[Node], sign: &str| {
        let parts: Vec<String> = nodes.iter().map(terminal_part).collect();
        format!("({})", parts.join(sign))
    };
    match node {
        Node::Text(text) if text.is_empty() => EMPTY.to_owned(),
        Node::Text(text) => format!("/{}/", text.chars().map(regex::escaped).collect::<String>()),
        Node::Class(class) => format!("/{}/", class.regex),
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
