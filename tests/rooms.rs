//! The rooms of the engine: which folder of engine/src uses which. docs/ARCHITECTURE.md lists the arrows that there may
//! be; this reads every path in the sources and fails on any other.
//!
//! Paths that begin with `crate::` or climb out of their folder with `super::` count, wherever they are; those of unit
//! tests do not, which may use what they like.

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use common::repository;

/// Rooms in the order of the document, with what each may use.
fn listed() -> Vec<(String, BTreeSet<String>)> {
    let text = fs::read_to_string(repository("docs/ARCHITECTURE.md")).expect("a document");
    let table = text
        .split("| room | may use |")
        .nth(1)
        .expect("the table of rooms");
    let rows = table
        .lines()
        .skip(2)
        .take_while(|line| line.starts_with('|'));
    let names = |cell: &str| -> Vec<String> {
        let quoted = cell.split('`').skip(1).step_by(2);
        quoted
            .map(|name| name.trim_end_matches('/').to_owned())
            .collect()
    };
    rows.map(|row| {
        let cells: Vec<&str> = row.split('|').collect();
        let room = names(cells[1]).pop().expect("the name of a room");
        (room, names(cells[2]).into_iter().collect())
    })
    .collect()
}

fn sources(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        let name = path
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        match path.is_dir() {
            // Unit tests have folders and files of that name.
            true if name != "tests" => sources(&path, found),
            false if name.ends_with(".rs") && name != "tests.rs" => found.push(path),
            _ => {}
        }
    }
}

/// The code without comments and without the unit tests at its end.
fn code(path: &Path) -> String {
    let text = fs::read_to_string(path).expect("a source file");
    let text = text
        .split("#[cfg(test)]\nmod tests")
        .next()
        .unwrap_or_default();
    let lines = text
        .lines()
        .map(|line| line.split("//").next().unwrap_or_default());
    lines.collect::<Vec<_>>().join("\n")
}

fn identifier(text: &str) -> &str {
    let end = text.find(|c: char| !c.is_alphanumeric() && c != '_');
    &text[..end.unwrap_or(text.len())]
}

/// The rooms that a file's paths lead to; `depth` is how many modules it is below the crate's root.
fn rooms_used(code: &str, depth: usize) -> BTreeSet<String> {
    let mut used = BTreeSet::new();
    for (_, rest) in split_at_word(code, "crate::") {
        match rest.strip_prefix('{') {
            Some(list) => used.extend(list.split(',').map(|one| identifier(one.trim()).to_owned())),
            None => drop(used.insert(identifier(rest).to_owned())),
        }
    }
    for (before, mut rest) in split_at_word(code, "super::") {
        if before.ends_with("super::") {
            continue;
        }
        let mut climbed = 1;
        while let Some(further) = rest.strip_prefix("super::") {
            (rest, climbed) = (further, climbed + 1);
        }
        if climbed == depth {
            used.insert(identifier(rest).to_owned());
        }
    }
    used
}

/// What stands before and behind each occurrence of `word`.
fn split_at_word<'a>(text: &'a str, word: &'a str) -> impl Iterator<Item = (&'a str, &'a str)> {
    let found = text.match_indices(word).filter(|(at, _)| {
        let before = text[..*at].chars().next_back();
        before.is_none_or(|c| !c.is_alphanumeric() && c != '_' && c != '$')
    });
    found.map(move |(at, _)| (&text[..at], &text[at + word.len()..]))
}

#[test]
fn rooms_use_only_what_is_listed() {
    let listed = listed();
    let names: BTreeSet<&str> = listed.iter().map(|(room, _)| room.as_str()).collect();
    // Each may use only rooms before it, so that there are no circles.
    let mut before = BTreeSet::new();
    for (room, uses) in &listed {
        let later: Vec<_> = uses
            .iter()
            .filter(|other| !before.contains(other))
            .collect();
        assert!(
            later.is_empty(),
            "{room} is listed before {later:?}, which it may use"
        );
        assert!(before.insert(room), "{room} is listed twice");
    }
    let root = repository("engine/src");
    let mut files = Vec::new();
    sources(&root, &mut files);
    let mut found: BTreeMap<String, BTreeMap<String, PathBuf>> = BTreeMap::new();
    for path in files {
        let inside = path.strip_prefix(&root).expect("below the root").to_owned();
        let parts: Vec<String> = inside
            .components()
            .map(|part| part.as_os_str().to_string_lossy().into_owned())
            .collect();
        let room = parts[0].trim_end_matches(".rs").to_owned();
        if room == "lib" {
            continue;
        }
        let is_mod = parts.last().is_some_and(|name| name == "mod.rs");
        let depth = parts.len() - usize::from(is_mod);
        let used = rooms_used(&code(&path), depth);
        let others = used
            .into_iter()
            .filter(|other| *other != room && names.contains(other.as_str()));
        let arrows = found.entry(room.clone()).or_default();
        arrows.extend(others.map(|other| (other, inside.clone())));
        assert!(
            names.contains(room.as_str()),
            "{room} is not in docs/ARCHITECTURE.md"
        );
    }
    let mut wrong = Vec::new();
    for (room, uses) in &listed {
        let arrows = found.remove(room).unwrap_or_default();
        for (other, file) in arrows.iter().filter(|(other, _)| !uses.contains(*other)) {
            wrong.push(format!("{room} uses {other}, in {}", file.display()));
        }
        let unused = uses.iter().filter(|other| !arrows.contains_key(*other));
        wrong.extend(unused.map(|other| format!("{room} does not use {other}")));
    }
    assert!(
        wrong.is_empty(),
        "docs/ARCHITECTURE.md lists other arrows:\n{}",
        wrong.join("\n")
    );
}

#[test]
fn paths_are_seen_wherever_they_are() {
    let code = "use crate::files::{Access};\nuse super::table::Part;\nfn f() { crate::math::exp(super::super::quant::N) }\n\
                use crate::{text, error::Error};\nlet x = $crate::model::X;";
    let used: Vec<String> = rooms_used(code, 2).into_iter().collect();
    assert_eq!(used, ["error", "files", "math", "quant", "text"]);
    assert_eq!(rooms_used("use super::state::State;", 1).len(), 1);
}
