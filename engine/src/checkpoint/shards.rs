//! Shards by their names, `model-00001-of-00002.safetensors`, for folders whose index is missing.

#![forbid(unsafe_code)]

use crate::error::Error;

/// More shards than any model has.
const SHARDS_MAX: usize = 1 << 12;

/// What a name says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Shard<'a> {
    /// In front of the numbers.
    stem: &'a str,
    /// Of this one, from 1.
    number: usize,
    /// Of all.
    pub(super) of: usize,
    extension: &'a str,
}

impl<'a> Shard<'a> {
    /// What the name at the end of a path says; `None` for a name that is no shard's.
    pub(super) fn of_path(path: &'a str) -> Option<Self> {
        let name = path.rsplit(['/', '\\']).next()?;
        let (start, extension) = name.rsplit_once('.')?;
        let (start, of) = start.rsplit_once("-of-")?;
        let (stem, number) = start.rsplit_once('-')?;
        let parse = |digits: &str| -> Option<usize> {
            let is_number = digits.len() >= 2 && digits.bytes().all(|byte| byte.is_ascii_digit());
            is_number.then(|| digits.parse().ok()).flatten()
        };
        let (number, of) = (parse(number)?, parse(of)?);
        (1..=SHARDS_MAX).contains(&of).then_some(Shard {
            stem,
            number,
            of,
            extension,
        })
    }

    /// Of one shard where all are needed.
    pub(super) fn alone(&self) -> Error {
        let (number, of) = (self.number, self.of);
        Error::format(format!(
            "shard {number} of {of}, which is not a whole model: name the folder with all of them instead"
        ))
    }

    /// What lists the shards, in a folder that is whole.
    fn index(&self) -> String {
        format!("{}.{}.index.json", self.stem, self.extension)
    }
}

/// Why a folder of shards cannot be opened that has no list of what is in them.
pub(super) fn without_index(names: &[&String]) -> Error {
    let shards: Vec<_> = names
        .iter()
        .filter_map(|name| Shard::of_path(name))
        .collect();
    let Some(first) = shards.iter().find(|shard| shard.of > 1) else {
        return Error::format("no shards");
    };
    if first.extension == "gguf" {
        return Error::unsupported(format!(
            "a GGUF file that was split, {names:?}, expected a whole one: join them with llama-gguf-split --merge"
        ));
    }
    let same = |shard: &&Shard<'_>| (shard.stem, shard.of) == (first.stem, first.of);
    let has = |number: usize| {
        shards
            .iter()
            .filter(same)
            .any(|shard| shard.number == number)
    };
    let also = match (1..=first.of).find(|&number| !has(number)) {
        Some(number) => format!("; so is shard {number} of {}", first.of),
        None => String::new(),
    };
    Error::format(format!(
        "{} is missing, which says what is in the shards {names:?}{also}",
        first.index()
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_shards() {
        let shard = Shard::of_path("a/b-of-c/model-00002-of-00003.safetensors").expect("a shard");
        assert_eq!((shard.stem, shard.number, shard.of), ("model", 2, 3));
        assert_eq!(shard.index(), "model.safetensors.index.json");
        let bin = Shard::of_path("pytorch_model-00001-of-00001.bin").expect("a shard");
        assert_eq!(bin.index(), "pytorch_model.bin.index.json");
        for name in [
            "model.safetensors",
            "a-of-b.bin",
            "x-1-of-2.bin",
            "m-00001-of-00000.bin",
            "m-00001-of-99999999999999999999.bin",
            "-of-",
            "",
        ] {
            assert_eq!(Shard::of_path(name), None, "{name}");
        }
    }
}
