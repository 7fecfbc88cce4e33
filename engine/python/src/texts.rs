//! What callers give: texts or token ids, one or many.

use pyo3::exceptions::{PyOverflowError, PyTypeError};
use pyo3::prelude::*;
use pyo3::types::{PyByteArray, PyBytes, PyDict, PyFrozenSet, PySet, PyString};

use crate::error::{Failed, Result};

/// A text, or what it would become.
pub(crate) enum Text {
    Words(String),
    Ids(Vec<u32>),
}

impl Text {
    /// A str, or a sequence of token ids.
    pub(crate) fn of(given: &Bound<'_, PyAny>) -> Result<Self> {
        match given.cast::<PyString>() {
            Ok(words) => Ok(Text::Words(words.to_cow()?.into_owned())),
            Err(_) => {
                refuse_look_alikes(given, "str or token ids")?;
                ids(given).map(Text::Ids)
            }
        }
    }

    /// Its token ids, behind token 0 where `bos` asks for it.
    pub(crate) fn tokens(self, model: &engine::Model, bos: bool) -> engine::Result<Vec<u32>> {
        let mut tokens = match self {
            Text::Words(words) => model.tokenizer()?.encode(&words)?,
            Text::Ids(ids) => ids,
        };
        if bos {
            tokens.insert(0, 0);
        }
        Ok(tokens)
    }
}

/// What was given as one text, or as a list of them.
pub(crate) enum Texts {
    One(Text),
    Many(Vec<Text>),
}

impl Texts {
    /// A str or a sequence of integers is one text, a sequence of those are many.
    pub(crate) fn of(given: &Bound<'_, PyAny>) -> Result<Self> {
        if given.is_instance_of::<PyString>() {
            return Text::of(given).map(Texts::One);
        }
        refuse_look_alikes(given, "str or token ids")?;
        let mut items = Vec::new();
        // Not by `collect`, which asks how many there are: that imports a module, and swallows a Ctrl-C meanwhile.
        for item in given.try_iter()? {
            items.push(item?);
        }
        // Arrays have it, too.
        let is_id = |item: &Bound<'_, PyAny>| {
            PyResult::Ok(item.hasattr("__index__")? && !item.hasattr("__len__")?)
        };
        match items.first().map(is_id).transpose()? {
            Some(true) => Text::of(given).map(Texts::One),
            _ => Ok(Texts::Many(
                items.iter().map(Text::of).collect::<Result<_>>()?,
            )),
        }
    }

    /// All of them, and whether they are one that is no list.
    pub(crate) fn all(self) -> (Vec<Text>, bool) {
        match self {
            Texts::One(text) => (vec![text], true),
            Texts::Many(texts) => (texts, false),
        }
    }
}

/// Refuses what can be iterated over like token ids, but is none: the bytes of a text, or what has no order.
fn refuse_look_alikes(given: &Bound<'_, PyAny>, expected: &str) -> Result<()> {
    let is_bytes = given.is_instance_of::<PyBytes>() || given.is_instance_of::<PyByteArray>();
    let is_set = given.is_instance_of::<PySet>() || given.is_instance_of::<PyFrozenSet>();
    if is_bytes || is_set || given.is_instance_of::<PyDict>() {
        let text = format!("{}, expected {expected}", given.get_type().name()?);
        return Err(PyTypeError::new_err(text).into());
    }
    Ok(())
}

/// Refuses ids that the vocabulary has not, before anything is computed: `what` names a text, which has a number where
/// there are several.
pub(crate) fn check_ids<'a>(
    model: &engine::Model,
    what: &str,
    texts: impl ExactSizeIterator<Item = &'a [u32]>,
) -> engine::Result<()> {
    let (n_vocab, n_texts) = (model.n_vocab(), texts.len());
    for (number, tokens) in texts.enumerate() {
        let Some(index) = tokens.iter().position(|&id| id as usize >= n_vocab) else {
            continue;
        };
        let which = match n_texts {
            1 => what.to_owned(),
            _ => format!("{what} {number}"),
        };
        let id = tokens[index];
        let text = format!(
            "{which}, token {index}: id {id}, expected less than {n_vocab}, the vocabulary"
        );
        return Err(engine::Error::new(engine::ErrorKind::Argument, text));
    }
    Ok(())
}

/// Token ids: any sequence of integers. Whether the vocabulary has them, [`check_ids`] or the engine tells.
pub(crate) fn ids(given: &Bound<'_, PyAny>) -> Result<Vec<u32>> {
    refuse_look_alikes(given, "token ids")?;
    given.extract::<Vec<u32>>().map_err(|error| {
        let py = given.py();
        if error.is_instance_of::<PyOverflowError>(py) {
            return Failed::argument("a token id below 0 or beyond 32 bits");
        }
        if error.is_instance_of::<PyTypeError>(py) {
            let text = "token ids: expected a sequence of integers";
            let said = PyTypeError::new_err(text);
            said.set_cause(py, Some(error));
            return said.into();
        }
        error.into()
    })
}
