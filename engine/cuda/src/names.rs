//! Values that the host gives by names.

use crate::error::{Failure, Result};

/// What the host gives in pairs of a name and a value.
pub(crate) type Named<T> = Vec<(String, T)>;

/// The values of `names` among those given, each at most once and no others.
pub(crate) fn chosen<T: Copy, const N: usize>(
    what: &str,
    names: [&str; N],
    given: &Named<T>,
) -> Result<[Option<T>; N]> {
    let mut found = [None; N];
    for (name, value) in given {
        let Some(at) = names.iter().position(|known| known == name) else {
            return Err(Failure::unsupported(format!(
                "{what} {name}: not known, expected {}",
                names.join(", ")
            )));
        };
        if found[at].replace(*value).is_some() {
            return Err(Failure::argument(format!("{what} {name}: twice")));
        }
    }
    Ok(found)
}

/// The same, where none may be missing.
pub(crate) fn all<T: Copy + Default, const N: usize>(
    what: &str,
    names: [&str; N],
    given: &Named<T>,
) -> Result<[T; N]> {
    let found = chosen(what, names, given)?;
    match found.iter().position(Option::is_none) {
        Some(at) => Err(Failure::argument(format!("{what} {}: missing", names[at]))),
        None => Ok(found.map(Option::unwrap_or_default)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rwkv_edge_plugin::{ERROR_ARGUMENT, ERROR_UNSUPPORTED};

    #[test]
    fn each_name_once_and_no_others() {
        let given = |names: &[&str]| -> Named<usize> {
            let names = names.iter().enumerate();
            names.map(|(i, name)| ((*name).to_owned(), i)).collect()
        };
        let two = |names: &[&str]| all("size", ["a", "b"], &given(names));
        assert_eq!(two(&["b", "a"]).expect("both"), [1, 0]);
        for (names, status, name) in [
            (&["a"][..], ERROR_ARGUMENT, "b"),
            (&[], ERROR_ARGUMENT, "a"),
            (&["a", "b", "a"], ERROR_ARGUMENT, "a"),
            (&["a", "b", "c"], ERROR_UNSUPPORTED, "c"),
            (&["a", "bb"], ERROR_UNSUPPORTED, "bb"),
        ] {
            let refused = two(names).expect_err("a refusal");
            assert_eq!(refused.status, status, "{names:?}: {}", refused.text);
            assert!(refused.text.contains(name), "{names:?}: {}", refused.text);
        }
        let found = chosen("part", ["a", "b"], &given(&["b"])).expect("one of them");
        assert_eq!(found, [None, Some(0)]);
    }
}
