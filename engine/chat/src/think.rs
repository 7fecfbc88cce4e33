//! Thoughts: how a model is asked for them, and where in what it writes they end.

use std::fmt;
use std::str::FromStr;

use rwkv_edge::{Error, ErrorKind};

/// Whether a model thinks before it answers, which the World models of 2025 on (G1) have learnt to do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Think {
    /// It answers at once.
    #[default]
    Off,
    /// It thinks as long as it likes.
    On,
    /// It is told that it has thought already: answers in the manner of those behind a thought, at once.
    Fake,
    /// It is asked to think a bit.
    Short,
    /// It is asked to think a lot.
    Long,
}

/// All of them, with their names.
const NAMES: [(Think, &str); 5] = [
    (Think::Off, "off"),
    (Think::On, "on"),
    (Think::Fake, "fake"),
    (Think::Short, "short"),
    (Think::Long, "long"),
];

/// Begins a thought.
const BEGIN: &str = "<think>";
/// Ends a thought.
const END: &str = "</think>";

impl Think {
    /// What stands behind the user's text.
    pub(crate) fn length(self) -> &'static str {
        match self {
            Think::Short => " (think a bit)",
            Think::Long => " (think a lot)",
            Think::Off | Think::On | Think::Fake => "",
        }
    }

    /// What the answer begins with, but for the `>` that the model writes.
    pub(crate) fn opening(self) -> &'static str {
        match self {
            Think::Off => "",
            Think::On | Think::Short | Think::Long => " <think",
            Think::Fake => " <think>\n</think",
        }
    }
}

/// The name that [`FromStr`] reads.
impl fmt::Display for Think {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = NAMES.iter().find(|(think, _)| think == self);
        f.write_str(name.map_or("", |(_, name)| name))
    }
}

impl FromStr for Think {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let found = NAMES.iter().find(|(_, name)| *name == text);
        found.map(|(think, _)| *think).ok_or_else(|| {
            let text = "expected off, on, fake, short or long";
            Error::new(ErrorKind::Argument, text)
        })
    }
}

/// What a model writes, taken apart into the thought and the answer as it comes.
#[derive(Clone)]
pub(crate) struct Parted {
    /// Without the brackets around it.
    pub(crate) thought: String,
    pub(crate) answer: String,
    part: Part,
    /// What may be the beginning of the thought's end, or of a thought.
    held: String,
    /// Whether all of it is the answer.
    is_answer: bool,
}

/// Where the next character belongs.
#[derive(Clone, Copy, PartialEq)]
enum Part {
    /// A thought that the model opens itself, or the answer.
    Start,
    /// The `>` of the prompt's `<think`, or no bracket and already the thought.
    Opening,
    Thought,
    /// The same of the prompt's `</think`, in front of the answer.
    Closing,
    Answer,
}

impl Parted {
    /// Behind a prompt that ends as this wants it.
    pub(crate) fn behind(think: Think) -> Self {
        Self::at(match think {
            Think::Off => Part::Answer,
            Think::Fake => Part::Closing,
            Think::On | Think::Short | Think::Long => Part::Opening,
        })
    }

    /// Behind what a template that came with a model writes for an answer to come: it may open a thought, open and
    /// close one, or leave that to the model.
    pub(crate) fn behind_text(text: &str) -> Self {
        let behind = |mark: &str| text.rfind(mark).map(|at| (at, &text[at + mark.len()..]));
        let (opened, closed) = (behind("<think"), behind("</think"));
        Self::at(match (opened, closed) {
            (opened, Some((at, rest))) if opened.is_none_or(|(open, _)| open < at) => {
                match rest.is_empty() {
                    true => Part::Closing,
                    false => Part::Answer,
                }
            }
            (Some((_, "")), _) => Part::Opening,
            (Some(_), _) => Part::Thought,
            (None, _) => Part::Start,
        })
    }

    fn at(part: Part) -> Self {
        Parted {
            thought: String::new(),
            answer: String::new(),
            part,
            held: String::new(),
            is_answer: matches!(part, Part::Start | Part::Answer),
        }
    }

    /// Whether the text so far, from the prompt on, has neither a thought nor the end of one.
    pub(crate) fn begins_with_answer(&self) -> bool {
        self.is_answer
    }

    /// Takes more of the text, and gives what has come to the thought and to the answer.
    pub(crate) fn push(&mut self, piece: &str) -> (&str, &str) {
        let (n_thought, n_answer) = (self.thought.len(), self.answer.len());
        let mut rest = piece;
        let begun;
        if self.part == Part::Start {
            self.held.push_str(piece);
            let word = self.held.trim_start();
            rest = "";
            if let Some(thought) = word.strip_prefix(BEGIN) {
                begun = thought.to_owned();
                rest = &begun;
                self.held.clear();
                self.is_answer = false;
                self.part = Part::Thought;
            } else if !BEGIN.starts_with(word) {
                self.answer.push_str(&self.held);
                self.held.clear();
                self.part = Part::Answer;
            }
        }
        if matches!(self.part, Part::Opening | Part::Closing) && !rest.is_empty() {
            rest = rest.strip_prefix('>').unwrap_or(rest);
            self.part = match self.part {
                Part::Opening => Part::Thought,
                _ => Part::Answer,
            };
        }
        if self.part == Part::Thought {
            self.held.push_str(rest);
            rest = "";
            if let Some(at) = self.held.find(END) {
                self.thought.push_str(&self.held[..at]);
                self.answer.push_str(&self.held[at + END.len()..]);
                self.held.clear();
                self.part = Part::Answer;
            } else {
                let n = self.held.len() - unfinished(&self.held);
                self.thought.extend(self.held.drain(..n));
            }
        }
        self.answer.push_str(rest);
        (&self.thought[n_thought..], &self.answer[n_answer..])
    }

    /// Ends the text: what might have become a thought's beginning or end is part of the answer or the thought. Gives
    /// what comes to the thought and to the answer.
    pub(crate) fn finish(&mut self) -> (&str, &str) {
        let (n_thought, n_answer) = (self.thought.len(), self.answer.len());
        match self.part {
            Part::Start => self.answer.push_str(&self.held),
            _ => self.thought.push_str(&self.held),
        }
        self.held.clear();
        (&self.thought[n_thought..], &self.answer[n_answer..])
    }
}

/// Bytes at the end of a text that begin [`END`].
fn unfinished(text: &str) -> usize {
    let longest = text.len().min(END.len() - 1);
    let mut sizes = (1..=longest).rev();
    let found = sizes.find(|&n| text.as_bytes().ends_with(&END.as_bytes()[..n]));
    found.unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whatever pieces the text comes in.
    fn parted(think: Think, text: &str) -> (String, String) {
        let whole = parted_in(think, text, text.len());
        for size in 1..text.len() {
            assert_eq!(parted_in(think, text, size), whole, "{text:?} by {size}");
        }
        whole
    }

    fn parted_in(think: Think, text: &str, size: usize) -> (String, String) {
        parted_behind(Parted::behind(think), text, size)
    }

    fn parted_behind(mut parts: Parted, text: &str, size: usize) -> (String, String) {
        let mut given = (String::new(), String::new());
        let bytes: Vec<char> = text.chars().collect();
        for piece in bytes.chunks(size.max(1)) {
            let piece: String = piece.iter().collect();
            let (thought, answer) = parts.push(&piece);
            given.0 += thought;
            given.1 += answer;
        }
        let (thought, answer) = parts.finish();
        given.0 += thought;
        given.1 += answer;
        assert_eq!((&given.0, &given.1), (&parts.thought, &parts.answer));
        given
    }

    #[test]
    fn thoughts_come_apart_from_answers() {
        let texts = |thought: &str, answer: &str| (thought.to_owned(), answer.to_owned());
        let text = ">\nWell <b> 猫.\n\nSo</think>\n\nYes.</think>";
        assert_eq!(
            parted(Think::On, text),
            texts("\nWell <b> 猫.\n\nSo", "\n\nYes.</think>")
        );
        assert_eq!(parted(Think::Short, "ing</thi"), texts("ing</thi", ""));
        assert_eq!(parted(Think::Long, "></think>"), texts("", ""));
        assert_eq!(parted(Think::Fake, ">\nYes."), texts("", "\nYes."));
        assert_eq!(parted(Think::Fake, "Yes>"), texts("", "Yes>"));
        assert_eq!(parted(Think::Off, ">a</think>"), texts("", ">a</think>"));
    }

    /// Where templates of others leave off.
    #[test]
    fn thoughts_may_be_opened_by_the_prompt_or_by_the_model() {
        for (prompt, text, thought, answer) in [
            ("Assistant:", " Yes <think>", "", " Yes <think>"),
            (
                "Assistant:",
                "\n<think>\nWell</think> Yes",
                "\nWell",
                " Yes",
            ),
            ("Assistant:", " <thin", "", " <thin"),
            ("", "<think>Well", "Well", ""),
            ("Assistant: <think", ">Well</think>Yes", "Well", "Yes"),
            ("Assistant: <think>\n", "Well</think>Yes", "Well", "Yes"),
            ("<think>\nOkay,", " so</think>Yes", " so", "Yes"),
            ("<think></think", ">\nYes", "", "\nYes"),
            ("<think>\n\n</think>\n\n", "Yes</think>", "", "Yes</think>"),
        ] {
            for size in 1..=text.len() {
                let found = parted_behind(Parted::behind_text(prompt), text, size);
                assert_eq!(
                    found,
                    (thought.into(), answer.into()),
                    "{prompt:?} {text:?}"
                );
            }
        }
    }

    #[test]
    fn names_are_read_as_they_are_written() {
        for (think, name) in NAMES {
            assert_eq!(think.to_string(), name);
            assert_eq!(name.parse::<Think>().ok(), Some(think));
        }
        assert!("On".parse::<Think>().is_err());
    }
}
