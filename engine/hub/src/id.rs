//! Names: of models on the hub, and of files in its cache.

#![forbid(unsafe_code)]

use std::fmt;
use std::path::Path;

/// The hub's own limit.
const NAME_CHARS_MAX: usize = 96;

/// The branch that is meant where none is named.
const DEFAULT_REVISION: &str = "main";

/// Endings by which a name of two parts is a path to a file that is missing, rather than a
/// repository.
const FILE_ENDINGS: [&str; 6] = [".pth", ".pt", ".safetensors", ".bin", ".gguf", ".json"];

/// A model on the hub: `OWNER/NAME`, with a file of the repository behind another slash where one of
/// several is meant, and with a branch, tag or commit behind an `@`.
///
/// ```
/// use rwkv_edge_hub::ModelId;
///
/// let id = ModelId::parse("BlinkDL/rwkv-4-pile-169m/RWKV-4-Pile-169M.pth@main").expect("it is one");
/// assert_eq!(id.repository(), "BlinkDL/rwkv-4-pile-169m");
/// assert_eq!(id.file(), Some("RWKV-4-Pile-169M.pth"));
/// assert_eq!(ModelId::parse("./models/mine"), None);
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModelId {
    owner: String,
    name: String,
    file: Option<String>,
    revision: Option<String>,
}

impl ModelId {
    /// The id that a text is, if it looks like one.
    pub fn parse(text: &str) -> Option<Self> {
        let (path, revision) = match text.split_once('@') {
            Some((path, revision)) => (path, Some(revision)),
            None => (text, None),
        };
        let mut parts = path.splitn(3, '/');
        let (owner, name, file) = (parts.next()?, parts.next()?, parts.next());
        let is_file = |name: &str| FILE_ENDINGS.iter().any(|ending| name.ends_with(ending));
        let looks_right = is_repository_name(owner)
            && is_repository_name(name)
            && !(file.is_none() && is_file(name))
            && file.is_none_or(is_file_path)
            && revision.is_none_or(is_revision);
        looks_right.then(|| ModelId {
            owner: owner.to_owned(),
            name: name.to_owned(),
            file: file.map(str::to_owned),
            revision: revision.map(str::to_owned),
        })
    }

    /// The id that a path is, if there is nothing at that path and it looks like one. Anything else is for
    /// whoever opens the path, also to say that it does not exist.
    pub fn of_missing(path: &Path) -> Option<Self> {
        // A link to nothing is something at that path.
        match path.exists() || path.is_symlink() {
            true => None,
            false => Self::parse(path.to_str()?),
        }
    }

    /// Who has the repository.
    pub fn owner(&self) -> &str {
        &self.owner
    }

    /// What the repository is called by its owner.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// `OWNER/NAME`
    pub fn repository(&self) -> String {
        format!("{}/{}", self.owner, self.name)
    }

    /// A file of the repository, with slashes between its folders, where one is named.
    pub fn file(&self) -> Option<&str> {
        self.file.as_deref()
    }

    /// A branch, tag or commit; `main` where none is named.
    pub fn revision(&self) -> &str {
        self.revision.as_deref().unwrap_or(DEFAULT_REVISION)
    }

    /// The same repository and revision, and this file.
    #[cfg(feature = "network")]
    pub(crate) fn with_file(&self, file: &str) -> Self {
        ModelId {
            file: Some(file.to_owned()),
            ..self.clone()
        }
    }
}

impl fmt::Display for ModelId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.owner, self.name)?;
        if let Some(file) = &self.file {
            write!(f, "/{file}")?;
        }
        match &self.revision {
            Some(revision) => write!(f, "@{revision}"),
            None => Ok(()),
        }
    }
}

/// The hub's rules for names of owners and repositories.
fn is_repository_name(name: &str) -> bool {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    (1..=NAME_CHARS_MAX).contains(&name.len())
        && name.chars().all(allowed)
        && !name.starts_with(['-', '.'])
        && !name.ends_with(['-', '.'])
        && !name.contains("--")
        && !name.contains("..")
        && !name.ends_with(".git")
}

/// Whether a name can be a file in a folder of ours: no way out of it, nothing hidden, no
/// separators.
pub(crate) fn is_plain_name(name: &str) -> bool {
    let refused = |c: char| c.is_control() || matches!(c, '/' | '\\' | ':');
    !name.is_empty() && name.len() <= 255 && !name.starts_with('.') && !name.contains(refused)
}

/// Plain names with slashes between them.
pub(crate) fn is_file_path(path: &str) -> bool {
    path.split('/').all(is_plain_name)
}

/// Lower-case hexadecimal digits, so many of them: how the hub writes hashes.
pub(crate) fn is_hex(text: &str, n_digits: usize) -> bool {
    let digit = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
    text.len() == n_digits && text.bytes().all(digit)
}

/// The hash that a file of the cache is stored under, which is that of its content; `None` for any other
/// file. `file` is its real path, and no link to it.
pub fn content_hash(file: &Path) -> Option<&str> {
    let name = file.file_name()?.to_str()?;
    let in_blobs = file.parent()?.file_name()? == "blobs";
    (in_blobs && (is_hex(name, 40) || is_hex(name, 64))).then_some(name)
}

/// Branches and tags may have slashes in them, such as `refs/pr/1`; git allows no spaces.
fn is_revision(revision: &str) -> bool {
    is_file_path(revision) && !revision.contains(char::is_whitespace)
}

#[cfg(test)]
mod tests {
    use super::ModelId;

    #[test]
    fn ids_are_told_from_paths() {
        let parts = |text: &str| {
            let id = ModelId::parse(text)?;
            assert_eq!(id.to_string(), text);
            let revision = id.revision().to_owned();
            Some((id.repository(), id.file, revision))
        };
        let of = |repository: &str, file: Option<&str>, revision: &str| {
            let file = file.map(str::to_owned);
            Some((repository.to_owned(), file, revision.to_owned()))
        };
        assert_eq!(
            parts("RWKV/rwkv-4-169m-pile"),
            of("RWKV/rwkv-4-169m-pile", None, "main")
        );
        assert_eq!(parts("a/b_c.d@v1.0"), of("a/b_c.d", None, "v1.0"));
        assert_eq!(parts("a/b@refs/pr/1"), of("a/b", None, "refs/pr/1"));
        assert_eq!(
            parts("BlinkDL/rwkv-4/x/RWKV-4 Pile.pth@main"),
            of("BlinkDL/rwkv-4", Some("x/RWKV-4 Pile.pth"), "main")
        );
        for path in [
            "",
            "model",
            "./a/b",
            "/a/b",
            "../a/b",
            "~/a",
            "a/b/",
            "a//b",
            "a/.b",
            "a/b/../c",
            "a/b@",
            "a/b@-/../x",
            "a b/c",
            "a/b--c",
            "a..b/c",
            "-a/b",
            "a/b.",
            "models/rwkv.pth",
            "a/x.safetensors",
            "C:\\a\\b",
            "a/b@x y",
            "ä/b",
            "a/b.git",
            "a/b/c\\d",
            "@",
            "a/@x",
        ] {
            assert_eq!(ModelId::parse(path), None, "{path}");
        }
        let long = format!("a/{}", "b".repeat(97));
        assert_eq!(ModelId::parse(&long), None);
    }
}
