//! Rules as parts of a Lark grammar.

use std::collections::HashMap;
use std::fmt;

use super::{counts, terminal_part, Facts, Node, Rule};

/// A part of a rule; an empty sequence is the empty text.
pub(super) enum Part {
    /// The number of a terminal, and its name.
    Terminal(usize, String),
    /// The rule of this number.
    Rule(usize),
    Sequence(Vec<Part>),
    Choice(Vec<Part>),
    Repeat(Box<Part>, u32, Option<u32>),
}

impl Part {
    fn nothing() -> Self {
        Part::Sequence(Vec::new())
    }

    pub(super) fn is_nothing(&self) -> bool {
        matches!(self, Part::Sequence(parts) if parts.is_empty())
    }
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let joined = |parts: &[Part], sign: &str| {
            let parts: Vec<String> = parts.iter().map(Part::to_string).collect();
            parts.join(sign)
        };
        match self {
            Part::Terminal(_, name) => f.write_str(name),
            Part::Rule(index) => write!(f, "r{index}"),
            Part::Sequence(parts) => f.write_str(&joined(parts, " ")),
            Part::Choice(parts) => write!(f, "({})", joined(parts, " | ")),
            Part::Repeat(part, least, most) => write!(f, "({part}){}", counts(*least, *most)),
        }
    }
}

/// Makes parts of rules, and terminals of what they are made of.
pub(super) struct Writer<'a> {
    pub(super) facts: &'a Facts,
    pub(super) rules: &'a [Rule],
    pub(super) terminals: Vec<Node>,
    /// Of terminals, by what they match.
    pub(super) numbers: HashMap<String, usize>,
    /// Whether each terminal is one character.
    pub(super) is_by_character: bool,
}

impl Writer<'_> {
    /// What stands for a node in a rule.
    pub(super) fn part(&mut self, node: &Node) -> Part {
        if self.is_terminal(node) {
            return self.terminal(node);
        }
        match node {
            Node::Text(text) => {
                let characters = text.chars().map(|c| Node::Text(c.into()));
                Part::Sequence(characters.map(|one| self.terminal(&one)).collect())
            }
            Node::Class(_) => Part::nothing(),
            Node::Rule(index) => match self.is_nothing(&self.rules[*index].node) {
                true => Part::nothing(),
                false => Part::Rule(*index),
            },
            Node::Sequence(nodes) => self.sequence(nodes),
            Node::Choice(nodes) => self.choice(nodes),
            Node::Repeat(_, _, Some(0)) => Part::nothing(),
            Node::Repeat(inner, 0, most) if !self.is_by_character && self.is_terminal(inner) => {
                let some = Node::Repeat(inner.clone(), 1, *most);
                Part::Repeat(Box::new(self.terminal(&some)), 0, Some(1))
            }
            Node::Repeat(inner, least, most) => match self.part(inner) {
                part if part.is_nothing() => part,
                part => Part::Repeat(Box::new(part), *least, *most),
            },
        }
    }

    /// Whether a node is one terminal, which never matches the empty text.
    fn is_terminal(&self, node: &Node) -> bool {
        match (self.is_by_character, node) {
            (true, Node::Text(text)) => text.chars().count() == 1,
            (true, Node::Class(_)) => true,
            (true, _) => false,
            (false, _) => self.facts.is_terminal(node) && !self.facts.matches_empty(node),
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

    fn sequence(&mut self, nodes: &[Node]) -> Part {
        let mut parts = Vec::new();
        let facts = self.facts;
        for run in nodes.chunk_by(|a, b| facts.is_terminal(a) == facts.is_terminal(b)) {
            let is_whole = !self.is_by_character
                && facts.is_terminal(&run[0])
                && run.iter().any(|node| !facts.matches_empty(node));
            match is_whole {
                true => parts.push(self.terminal(&Node::Sequence(run.to_vec()))),
                false => parts.extend(run.iter().map(|node| self.part(node))),
            }
        }
        parts.retain(|part| !part.is_nothing());
        match parts.len() {
            1 => parts.remove(0),
            _ => Part::Sequence(parts),
        }
    }

    fn choice(&mut self, nodes: &[Node]) -> Part {
        let (plain, others): (Vec<&Node>, Vec<&Node>) =
            nodes.iter().partition(|node| self.is_terminal(node));
        let mut parts = Vec::new();
        if !plain.is_empty() {
            let plain = plain.into_iter().cloned().collect();
            parts.push(self.terminal(&Node::Choice(plain)));
        }
        parts.extend(others.into_iter().map(|node| self.part(node)));
        let has_empty = nodes.iter().any(|node| self.facts.matches_empty(node));
        parts.retain(|part| !part.is_nothing());
        match (parts.is_empty(), has_empty) {
            (true, _) => Part::nothing(),
            (false, false) => Part::Choice(parts),
            (false, true) => Part::Repeat(Box::new(Part::Choice(parts)), 0, Some(1)),
        }
    }

    fn terminal(&mut self, node: &Node) -> Part {
        let text = terminal_part(node);
        let next = self.terminals.len();
        let number = *self.numbers.entry(text).or_insert(next);
        if number == next {
            self.terminals.push(node.clone());
        }
        let name = match node {
            Node::Rule(index) => format!("T{index}"),
            _ => format!("X{number}"),
        };
        Part::Terminal(number, name)
    }
}
