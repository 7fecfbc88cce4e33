//! Which states of an owner go on from which, so that those that a longer one stands for are told from the others.

use std::collections::{BTreeSet, HashMap};

use super::keys::Key;

/// A forest: a state has at most one before it, and any number behind it.
#[derive(Default)]
pub(super) struct Links {
    before: HashMap<Key, Key>,
    /// The same the other way round: a state and one behind it.
    behind: BTreeSet<(Key, Key)>,
}

impl Links {
    /// One state goes on from another; gives the one that it went on from until now.
    pub(super) fn link(&mut self, before: Key, key: Key) -> Option<Key> {
        let older = self.before.insert(key, before);
        if let Some(older) = older {
            self.behind.remove(&(older, key));
        }
        self.behind.insert((before, key));
        older
    }

    /// A state is gone: what went on from it goes on from the one before it, which is given. This takes as many steps
    /// as states are behind it: one, of most that go.
    pub(super) fn remove(&mut self, key: Key) -> Option<Key> {
        let behind: Vec<Key> = self.behind(key).collect();
        let before = self.before.remove(&key);
        if let Some(before) = before {
            self.behind.remove(&(before, key));
        }
        for other in behind {
            self.behind.remove(&(key, other));
            match before {
                Some(before) => {
                    self.before.insert(other, before);
                    self.behind.insert((before, other));
                }
                None => drop(self.before.remove(&other)),
            }
        }
        before
    }

    /// Whether exactly one state goes on from this one.
    pub(super) fn has_one_behind(&self, key: Key) -> bool {
        self.behind(key).take(2).count() == 1
    }

    fn behind(&self, key: Key) -> impl Iterator<Item = Key> + '_ {
        let of_key = self.behind.range((key, Key(0))..=(key, Key(u128::MAX)));
        of_key.map(|&(_, behind)| behind)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Those of 0 to 9 that exactly one goes on from.
    fn with_one_behind(links: &Links) -> Vec<u128> {
        let keys = 0..10;
        keys.filter(|&key| links.has_one_behind(Key(key))).collect()
    }

    #[test]
    fn what_goes_is_bridged() {
        let mut links = Links::default();
        // 0 - 1 - 2 - 3 and, from 2, 4.
        for (before, key) in [(0, 1), (1, 2), (2, 3), (2, 4)] {
            assert_eq!(links.link(Key(before), Key(key)), None);
        }
        assert_eq!(with_one_behind(&links), [0, 1]);
        assert_eq!(links.remove(Key(1)), Some(Key(0)));
        assert_eq!(with_one_behind(&links), [0]);
        // 0 has two behind it now.
        assert_eq!(links.remove(Key(2)), Some(Key(0)));
        assert_eq!(with_one_behind(&links), []);
        assert_eq!(links.remove(Key(4)), Some(Key(0)));
        assert_eq!(with_one_behind(&links), [0]);
        assert_eq!(links.remove(Key(0)), None);
        assert_eq!(links.remove(Key(3)), None);
        assert!(links.before.is_empty() && links.behind.is_empty());
    }

    #[test]
    fn a_nearer_one_takes_the_place_of_one_before_it() {
        let mut links = Links::default();
        links.link(Key(0), Key(2));
        links.link(Key(0), Key(1));
        assert_eq!(with_one_behind(&links), []);
        assert_eq!(links.link(Key(1), Key(2)), Some(Key(0)));
        assert_eq!(links.link(Key(1), Key(2)), Some(Key(1)));
        assert_eq!(with_one_behind(&links), [0, 1]);
    }
}
