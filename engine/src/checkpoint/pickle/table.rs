//! Which dictionary of a pickle holds the weights: the outer one, or the one that training keeps beside
//! optimizers, counters and losses.

#![forbid(unsafe_code)]

use std::collections::{HashSet, VecDeque};

use super::{Interpreter, Opaque, PickledTensor, Value, TEXT_BYTES_MAX};
use crate::error::{Error, Result};
use crate::math::reserve;
use crate::networks::known;
use crate::networks::names::Cleaner;

/// How deep dictionaries of weights lie: {"model": {"module": {...}}}.
const DEPTH_MAX: usize = 4;

/// Keys that an error names.
const NAMED_MAX: usize = 8;

const SAVE_ALONE: &str = "load the file in Python and save that dictionary alone";

/// A dictionary that may hold the weights.
struct Candidate<'a> {
    dict: u32,
    has_tensors: bool,
    /// The keys that lead to it.
    path: Vec<&'a str>,
}

impl Interpreter<'_> {
    /// The tensors of the dictionary that holds the weights, under their names.
    pub(super) fn into_table(self, top: Value) -> Result<Vec<(String, PickledTensor)>> {
        let Value::Dict(top) = top else {
            return Err(match top {
                Value::Opaque(Opaque::Object(_)) => Error::unsupported(format!(
                    "{}, expected a dictionary of tensors: load the file in Python and save its \
                     state_dict() alone",
                    self.what(top)
                )),
                _ => Error::format(format!(
                    "holds no dictionary, but {}, expected one of tensors",
                    self.what(top)
                )),
            });
        };
        match self.choose(top, &self.candidates(top))? {
            Some(dict) => self.tensors_of(dict),
            None => Ok(Vec::new()),
        }
    }

    /// All dictionaries that keys of text lead to, the outer ones first, but for those of
    /// optimizers.
    fn candidates(&self, top: u32) -> Vec<Candidate<'_>> {
        let mut found = Vec::new();
        let mut seen = HashSet::from([top]);
        let mut waiting = VecDeque::from([(top, Vec::new())]);
        while let Some((dict, path)) = waiting.pop_front() {
            let mut has_tensors = false;
            for &(key, value) in self.dict(dict) {
                let Value::Text(key) = key else {
                    continue;
                };
                let key = self.text_at(key);
                match value {
                    Value::Tensor(_) => has_tensors = true,
                    Value::Dict(inner)
                        if path.len() < DEPTH_MAX
                            && !key.contains("optim")
                            && seen.insert(inner) =>
                    {
                        let mut path = path.clone();
                        path.push(key);
                        waiting.push_back((inner, path));
                    }
                    _ => {}
                }
            }
            found.push(Candidate {
                dict,
                has_tensors,
                path,
            });
        }
        found
    }

    /// Whether the names in a dictionary are those of a model that has a name here.
    fn shows_model(&self, dict: u32) -> bool {
        let names = self.dict(dict).iter().filter_map(|entry| match *entry {
            (Value::Text(key), Value::Tensor(_)) => Some(self.text_at(key)),
            _ => None,
        });
        let clean = Cleaner::new(names.clone());
        let names: Vec<_> = names.map(|name| clean.name(name)).collect();
        known::shown(names.iter().map(|name| &**name)).is_some()
    }

    /// The dictionary that holds the weights beyond doubt; `None` if there is nothing at all.
    fn choose(&self, top: u32, candidates: &[Candidate<'_>]) -> Result<Option<u32>> {
        let all: Vec<_> = candidates.iter().filter(|one| one.has_tensors).collect();
        if let [one] = all[..] {
            return Ok(Some(one.dict));
        }
        let models = all.iter().filter(|one| self.shows_model(one.dict));
        let of_model: Vec<_> = models.copied().collect();
        // The outer one comes first. Its names say what it is if nothing further in does.
        if let Some(outer) = of_model.first().or(all.first()) {
            if outer.path.is_empty() {
                return Ok(Some(outer.dict));
            }
        }
        match (&of_model[..], &all[..]) {
            ([one], _) => Ok(Some(one.dict)),
            ([], []) if self.dict(top).is_empty() => Ok(None),
            ([], []) => {
                let dicts = candidates.iter().map(|one| self.dict(one.dict));
                let mut entries = dicts.flatten();
                entries.try_for_each(|(key, value)| self.check_other(*key, *value))?;
                let keys = self.dict(top).iter().take(NAMED_MAX);
                let keys: Vec<_> = keys.map(|(key, _)| self.key(*key)).collect();
                Err(Error::unsupported(format!(
                    "no tensor in its dictionary, whose keys are {}: expected weights",
                    keys.join(", ")
                )))
            }
            ([], several) | (several, _) => {
                let paths = several.iter().take(NAMED_MAX).map(|one| {
                    let keys: Vec<_> = one.path.iter().map(|key| format!("{key:?}")).collect();
                    match keys.is_empty() {
                        true => "no key".to_owned(),
                        false => keys.join(" in "),
                    }
                });
                let paths: Vec<_> = paths.collect();
                Err(Error::unsupported(format!(
                    "several dictionaries of tensors, under {}, expected one of weights: {SAVE_ALONE}",
                    paths.join(" and ")
                )))
            }
        }
    }

    fn tensors_of(&self, dict: u32) -> Result<Vec<(String, PickledTensor)>> {
        let mut seen = HashSet::new();
        let mut table = reserve(self.dict(dict).len(), "a table of tensors")?;
        for &(key, value) in self.dict(dict) {
            let (Value::Text(key), Value::Tensor(tensor)) = (key, value) else {
                self.check_other(key, value)?;
                continue;
            };
            let name = self.text_at(key);
            if !seen.insert(name) {
                return Err(Error::format(format!("tensor {name}: occurs twice")));
            }
            let tensor = self.tensors.get(tensor as usize).cloned();
            table.extend(tensor.map(|tensor| (name.to_owned(), tensor)));
        }
        Ok(table)
    }

    /// What stands beside weights is of no interest, unless it should have been one of them.
    fn check_other(&self, key: Value, value: Value) -> Result<()> {
        let is_weight = match key {
            Value::Text(name) => known::shown(std::iter::once(self.text_at(name))).is_some(),
            _ => matches!(value, Value::Tensor(_)),
        };
        match (is_weight, key) {
            (false, _) => Ok(()),
            (true, Value::Text(_)) => Err(Error::unsupported(format!(
                "entry {} is no tensor, but {}",
                self.key(key),
                self.what(value)
            ))),
            (true, Value::Opaque(Opaque::LongText)) => Err(Error::format(format!(
                "a key of more than {TEXT_BYTES_MAX} bytes, expected names of tensors"
            ))),
            (true, _) => Err(Error::format(
                "a key that is no text, expected names of tensors",
            )),
        }
    }

    fn key(&self, key: Value) -> String {
        match key {
            Value::Text(text) => format!("{:?}", self.text_at(text)),
            Value::Int(number) => number.to_string(),
            _ => self.what(key),
        }
    }

    /// What a value is, for error texts.
    fn what(&self, value: Value) -> String {
        match value {
            Value::None => "None",
            Value::Bool(_) => "a truth value",
            Value::Int(_) => "a number",
            Value::Text(_) => "a text",
            Value::Tuple(_) => "a tuple",
            Value::Dict(_) => "a dictionary",
            Value::Global(_) => "a class",
            Value::Storage(_) => "a storage",
            Value::Tensor(_) => "a tensor",
            Value::Opaque(Opaque::Value) => "a value of another type",
            Value::Opaque(Opaque::LongText) => "a long text",
            Value::Opaque(Opaque::LongInt) => "a number",
            Value::Opaque(Opaque::List) => "a list",
            Value::Opaque(Opaque::Object(name)) => {
                let name = self.names.get(name as usize).map(String::as_str);
                return format!("an object of {}", name.unwrap_or_default());
            }
        }
        .to_owned()
    }
}
