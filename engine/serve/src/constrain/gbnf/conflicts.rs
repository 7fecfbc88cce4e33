//! Whether the longest match hides texts of a grammar.
//!
//! The lexer ends a terminal where no terminal goes on. So a text is lost where one has come to its end, the next one
//! begins, and with the same character some terminal, it or another that begins with the same text, goes on. That is
//! looked for among all terminals, whether they are expected in one place or not, and with repetitions that are not
//! counted: what is found may be harmless, and nothing is missed.

use std::cell::Cell;
use std::collections::{BTreeSet, HashSet};

use super::parts::Part;
use super::{Node, Rule, Written};

/// What takes more steps is taken for a grammar with a conflict.
const STEPS_MAX: usize = 4_000_000;

type Ranges = Vec<(char, char)>;

/// Whether there may be such a text.
pub(super) fn are_in(rules: &[Rule], written: &Written) -> bool {
    // One terminal has nothing behind it.
    !written.rules.is_empty() && search(rules, written).unwrap_or(true)
}

/// Steps that are left.
struct Budget(Cell<usize>);

impl Budget {
    fn spend(&self, n_steps: usize) -> Option<()> {
        self.0.set(self.0.get().checked_sub(n_steps)?);
        Some(())
    }
}

/// `None` where that would take too long.
fn search(rules: &[Rule], written: &Written) -> Option<bool> {
    let budget = Budget(Cell::new(STEPS_MAX));
    let mut automaton = Automaton {
        rules,
        budget: &budget,
        places: Vec::new(),
        following: Vec::new(),
    };
    let terminals = written.terminals.iter().map(|node| automaton.add(node));
    let terminals = terminals.collect::<Option<Vec<Ends>>>()?;
    let behind = Behind::of(written, &budget)?;
    for (one, next) in terminals.iter().zip(&behind.of_terminals) {
        let next: Places = next
            .iter()
            .flat_map(|&next| &terminals[next].first)
            .copied()
            .collect();
        if next.is_empty() {
            continue;
        }
        for other in &terminals {
            if automaton.hides(one, other, &next)? {
                return Some(true);
            }
        }
    }
    Some(false)
}

/// Characters and classes of terminals, in the places where they stand.
struct Automaton<'a> {
    rules: &'a [Rule],
    budget: &'a Budget,
    places: Vec<Ranges>,
    /// Places that may come next behind each.
    following: Vec<Places>,
}

type Places = BTreeSet<usize>;

/// Where a part of a terminal begins and ends.
#[derive(Default)]
struct Ends {
    first: Places,
    last: Places,
    is_empty: bool,
}

impl Automaton<'_> {
    /// Whether a text of one terminal is the beginning of one of another that goes on as what is next begins.
    fn hides(&self, one: &Ends, other: &Ends, next: &Places) -> Option<bool> {
        // Places in both that the same text leads to.
        let mut seen = HashSet::new();
        let mut left = Vec::new();
        self.meet(&one.first, &other.first, &mut seen, &mut left)?;
        while let Some((a, b)) = left.pop() {
            let goes_on = &self.following[b];
            if one.last.contains(&a) {
                let mut found = Vec::new();
                self.meet(goes_on, next, &mut HashSet::new(), &mut found)?;
                if !found.is_empty() {
                    return Some(true);
                }
            }
            self.meet(&self.following[a], goes_on, &mut seen, &mut left)?;
        }
        Some(false)
    }

    /// Pairs of places that have a character in common, those that are new.
    fn meet(
        &self,
        some: &Places,
        others: &Places,
        seen: &mut HashSet<(usize, usize)>,
        found: &mut Vec<(usize, usize)>,
    ) -> Option<()> {
        for &a in some {
            for &b in others {
                let (one, other) = (&self.places[a], &self.places[b]);
                self.budget.spend(1 + one.len() * other.len())?;
                let overlap = |x: &(char, char), y: &(char, char)| x.0 <= y.1 && y.0 <= x.1;
                if one.iter().any(|x| other.iter().any(|y| overlap(x, y))) && seen.insert((a, b)) {
                    found.push((a, b));
                }
            }
        }
        Some(())
    }

    /// `None` where it gets too large.
    fn add(&mut self, node: &Node) -> Option<Ends> {
        self.budget.spend(1)?;
        match node {
            Node::Text(text) => {
                let characters = text.chars().map(|c| vec![(c, c)]);
                let characters: Vec<Ranges> = characters.collect();
                let parts = characters.into_iter().map(|ranges| self.place(ranges));
                let parts: Vec<Ends> = parts.collect();
                self.chain(parts)
            }
            Node::Class(class) => Some(self.place(class.ranges.clone())),
            Node::Rule(index) => {
                let rules = self.rules;
                self.add(&rules[*index].node)
            }
            Node::Sequence(nodes) => {
                let parts: Option<Vec<Ends>> = nodes.iter().map(|node| self.add(node)).collect();
                self.chain(parts?)
            }
            Node::Choice(nodes) => {
                let mut all = Ends::default();
                for node in nodes {
                    let one = self.add(node)?;
                    all.first.extend(one.first);
                    all.last.extend(one.last);
                    all.is_empty |= one.is_empty;
                }
                Some(all)
            }
            Node::Repeat(_, _, Some(0)) => self.chain(Vec::new()),
            Node::Repeat(node, least, most) => {
                let mut ends = self.add(node)?;
                ends.is_empty |= *least == 0;
                if *most != Some(1) {
                    self.follow(&ends.last, &ends.first)?;
                }
                Some(ends)
            }
        }
    }

    fn place(&mut self, ranges: Ranges) -> Ends {
        let place = BTreeSet::from([self.places.len()]);
        self.places.push(ranges);
        self.following.push(BTreeSet::new());
        Ends {
            first: place.clone(),
            last: place,
            is_empty: false,
        }
    }

    fn follow(&mut self, last: &Places, first: &Places) -> Option<()> {
        self.budget.spend(last.len() * first.len())?;
        for &place in last {
            self.following[place].extend(first);
        }
        Some(())
    }

    fn chain(&mut self, parts: Vec<Ends>) -> Option<Ends> {
        let mut all = Ends {
            is_empty: true,
            ..Ends::default()
        };
        for part in parts {
            self.follow(&all.last, &part.first)?;
            if all.is_empty {
                all.first.extend(&part.first);
            }
            if !part.is_empty {
                all.last.clear();
            }
            all.last.extend(part.last);
            all.is_empty &= part.is_empty;
        }
        Some(all)
    }
}

/// Terminals that may come next.
struct Behind<'a> {
    budget: &'a Budget,
    /// Behind each terminal.
    of_terminals: Vec<Numbers>,
    /// Behind each rule, by its number.
    of_rules: Vec<Numbers>,
    /// Those that each rule begins with, and whether it matches the empty text.
    starts: Vec<(Numbers, bool)>,
}

type Numbers = BTreeSet<usize>;

impl<'a> Behind<'a> {
    /// `None` where it would take too long.
    fn of(written: &Written, budget: &'a Budget) -> Option<Self> {
        let n_rules = written.rules.iter().map(|(index, _)| index + 1).max();
        let n_rules = n_rules.unwrap_or(0);
        let mut behind = Behind {
            budget,
            of_terminals: vec![Numbers::new(); written.terminals.len()],
            of_rules: vec![Numbers::new(); n_rules],
            starts: vec![(Numbers::new(), false); n_rules],
        };
        // Least fixed points, of what rules begin with and then of what is behind them.
        loop {
            let mut is_changed = false;
            for (index, part) in &written.rules {
                let start = behind.start(part)?;
                is_changed |= start != behind.starts[*index];
                behind.starts[*index] = start;
            }
            if !is_changed {
                break;
            }
        }
        behind.walk(&written.start, &Numbers::new())?;
        loop {
            let before = behind.n_known();
            for (index, part) in &written.rules {
                let next = behind.of_rules[*index].clone();
                behind.walk(part, &next)?;
            }
            if behind.n_known() == before {
                return Some(behind);
            }
        }
    }

    fn n_known(&self) -> usize {
        let all = self.of_terminals.iter().chain(&self.of_rules);
        all.map(Numbers::len).sum()
    }

    fn start(&self, part: &Part) -> Option<(Numbers, bool)> {
        let mut all = Numbers::new();
        let is_empty = match part {
            Part::Terminal(number, _) => !all.insert(*number),
            Part::Rule(index) => {
                all.clone_from(&self.starts[*index].0);
                self.starts[*index].1
            }
            Part::Sequence(parts) => {
                let mut is_empty = true;
                for part in parts {
                    let (first, is_part_empty) = self.start(part)?;
                    all.extend(first);
                    is_empty = is_part_empty;
                    if !is_empty {
                        break;
                    }
                }
                is_empty
            }
            Part::Choice(parts) => {
                let mut is_empty = false;
                for part in parts {
                    let (first, is_part_empty) = self.start(part)?;
                    all.extend(first);
                    is_empty |= is_part_empty;
                }
                is_empty
            }
            Part::Repeat(part, least, _) => {
                let (first, is_empty) = self.start(part)?;
                all = first;
                is_empty || *least == 0
            }
        };
        self.budget.spend(1 + all.len())?;
        Some((all, is_empty))
    }

    fn walk(&mut self, part: &Part, next: &Numbers) -> Option<()> {
        self.budget.spend(1 + next.len())?;
        match part {
            Part::Terminal(number, _) => self.of_terminals[*number].extend(next),
            Part::Rule(index) => self.of_rules[*index].extend(next),
            Part::Sequence(parts) => {
                let mut next = next.clone();
                for part in parts.iter().rev() {
                    self.walk(part, &next)?;
                    let (first, is_empty) = self.start(part)?;
                    match is_empty {
                        true => next.extend(first),
                        false => next = first,
                    }
                }
            }
            Part::Choice(parts) => {
                for part in parts {
                    self.walk(part, next)?;
                }
            }
            Part::Repeat(part, _, most) => {
                let mut next = next.clone();
                if *most != Some(1) {
                    next.extend(self.start(part)?.0);
                }
                self.walk(part, &next)?;
            }
        }
        Some(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::{parse, written, Facts};
    use super::*;

    fn has_conflict(grammar: &str) -> bool {
        let (rules, root) = parse::parse(grammar).expect("a grammar");
        let facts = Facts::of(&rules);
        are_in(&rules, &written(&rules, root, &facts, false))
    }

    #[test]
    fn what_the_longest_match_hides_is_found() {
        for (grammar, expected) in [
            (
                "root ::= [a-z]* pair\npair ::= \"a\" pair \"b\" | \"c\"",
                true,
            ),
            (
                "root ::= [d-z]* pair\npair ::= \"a\" pair \"b\" | \"c\"",
                false,
            ),
            // Blanks that may be part of what is before them, or a line's end.
            (
                "root ::= (x \"\\n\")+\nx ::= [a-z] ws | \"(\" x \")\" ws\nws ::= [ \\n]*",
                true,
            ),
            (
                "root ::= (x \";\")+\nx ::= [a-z] ws | \"(\" x \")\" ws\nws ::= [ \\n]*",
                false,
            ),
            // Another terminal goes on.
            ("root ::= \"if\" root | [a-z]+ \" \" root | \"x\"", true),
            (
                "root ::= \"if\" \" \" root | [a-z]+ \" \" root | \"x\"",
                false,
            ),
            ("root ::= \"(\" root \")\" | \"x\"", false),
            ("root ::= \"(\" root \")\" | [^()]+", false),
            ("root ::= \"(\" root \")\" | [^(]+", true),
            ("root ::= .* | \"(\" root", true),
            ("root ::= [a-z]+ [a-z]+", false),
        ] {
            assert_eq!(has_conflict(grammar), expected, "{grammar}");
        }
    }

    #[test]
    fn what_takes_too_long_is_taken_for_a_conflict() {
        let many: String = (0..3000)
            .map(|i| format!("| \"{i}x\" root [0-9]\n"))
            .collect();
        assert!(has_conflict(&format!("root ::= \"a\"\n{many}")));
        let doubling: String = (0..60)
            .map(|i| format!("r{i} ::= r{0} r{0}\n", i + 1))
            .collect();
        let grammar = format!("root ::= \"b\" root | r0\n{doubling}r60 ::= \"a\"\n");
        assert!(has_conflict(&grammar));
    }
}
