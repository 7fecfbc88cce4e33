//! API keys: a file of names and keys, read again when the process is told to.

use std::path::{Path, PathBuf};
use std::sync::{PoisonError, RwLock};

use rwkv_edge::{Error, ErrorKind, Result};
use subtle::ConstantTimeEq;

use crate::job::Owner;

const FILE_BYTES_MAX: u64 = 1 << 20;

/// The keys that are known, and where they stand.
pub(super) struct Keys {
    path: PathBuf,
    known: RwLock<Vec<(Owner, String)>>,
}

impl Keys {
    /// Reads a file: on each line a name, white space and a key; lines that begin with `#` are comments.
    ///
    /// # Errors
    ///
    /// With the line, when it is no such file; when there is no key in it.
    pub(super) fn open(path: &Path) -> Result<Self> {
        Ok(Keys {
            known: RwLock::new(read(path)?),
            path: path.to_owned(),
        })
    }

    /// Reads the file again; the keys stay as they were when that fails. Gives their number.
    pub(super) fn read_again(&self) -> Result<usize> {
        let new = read(&self.path)?;
        let n = new.len();
        *self.known.write().unwrap_or_else(PoisonError::into_inner) = new;
        Ok(n)
    }

    /// Whose key it is. Every key is compared, in a time that depends on its length alone.
    pub(super) fn owner(&self, given: &str) -> Option<Owner> {
        let known = self.known.read().unwrap_or_else(PoisonError::into_inner);
        let mut found = None;
        for (owner, key) in known.iter() {
            if bool::from(key.as_bytes().ct_eq(given.as_bytes())) {
                found = Some(owner.clone());
            }
        }
        found
    }
}

fn read(path: &Path) -> Result<Vec<(Owner, String)>> {
    let place = path.display();
    let io = |e: std::io::Error| Error::new(ErrorKind::Io, format!("{place}: cannot read: {e}"));
    let size = std::fs::metadata(path).map_err(io)?.len();
    let wrong = |text: String| Err(Error::new(ErrorKind::Format, format!("{place}: {text}")));
    if size > FILE_BYTES_MAX {
        return wrong(format!(
            "{size} bytes, expected a file of keys of at most {FILE_BYTES_MAX}"
        ));
    }
    let text = std::fs::read_to_string(path).map_err(io)?;
    let mut keys: Vec<(Owner, String)> = Vec::new();
    for (i, line) in text.lines().enumerate() {
        let line = line.trim();
        let number = i + 1;
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        // What stands in the line may be a key: it is not shown.
        let mut words = line.split_whitespace();
        let (Some(name), Some(key), None) = (words.next(), words.next(), words.next()) else {
            return wrong(format!("line {number}: expected a name and a key"));
        };
        let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_.@".contains(c);
        if name.len() > 64 || !name.chars().all(is_plain) {
            let expected = "expected a name of at most 64 letters, digits, - _ . @";
            return wrong(format!("line {number}: {expected}"));
        }
        if !key.chars().all(|c| c.is_ascii_graphic()) {
            let expected = "expected a key of visible ASCII characters";
            return wrong(format!("line {number}: {expected}"));
        }
        if keys.iter().any(|(_, other)| other == key) {
            return wrong(format!("line {number}: this key stands twice"));
        }
        keys.push((Owner::new(name), key.to_owned()));
    }
    match keys.is_empty() {
        true => wrong("no key in it, expected lines of a name and a key".into()),
        false => Ok(keys),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(text: &str) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().expect("a file");
        std::fs::write(file.path(), text).expect("written");
        file
    }

    #[test]
    fn keys_have_owners_and_bad_files_change_nothing() {
        let file = file("# who may\nann 12345678\n\n  bob\tabcdefgh  \nann other-key\n");
        let keys = Keys::open(file.path()).expect("keys");
        let owner = |key: &str| keys.owner(key).map(|owner| owner.name().to_owned());
        assert_eq!(owner("12345678").as_deref(), Some("ann"));
        assert_eq!(owner("other-key").as_deref(), Some("ann"));
        assert_eq!(owner("abcdefgh").as_deref(), Some("bob"));
        for bad in ["", "1234567", "123456789", "abcdefgH", "ann"] {
            assert_eq!(owner(bad), None, "{bad}");
        }
        std::fs::write(file.path(), "ann").expect("written");
        let error = keys
            .read_again()
            .expect_err("no key in the line")
            .to_string();
        assert!(
            error.ends_with("line 1: expected a name and a key"),
            "{error}"
        );
        assert!(keys.owner("12345678").is_some());
        std::fs::write(file.path(), "eve 87654321").expect("written");
        assert_eq!(keys.read_again().expect("keys"), 1);
        assert!(keys.owner("12345678").is_none() && keys.owner("87654321").is_some());
    }

    #[test]
    fn bad_files_are_refused_without_a_word_of_their_keys() {
        for text in [
            "",
            "# only a comment\n",
            "a b c",
            "a/b 12345678",
            "ann 123456ü8",
            "ann 12345678\nbob 12345678",
        ] {
            let Err(error) = Keys::open(file(text).path()) else {
                panic!("{text:?} was taken");
            };
            assert!(!error.to_string().contains("1234"), "{error}");
        }
        assert!(Keys::open(Path::new("/nowhere/at/all")).is_err());
    }
}
