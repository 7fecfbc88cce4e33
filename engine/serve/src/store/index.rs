//! What is kept where: all states of a model by owner and key, and the order in which they go.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rwkv_edge::State;
use xxhash_rust::xxh3::xxh3_128;

use super::keys::{Key, TextHash, TextKey};
use super::links::Links;
use super::sessions::{Session, SessionFiles, Sessions};
use super::{Kept, Size};
use crate::job::Owner;
use crate::metrics::ModelMetrics;

/// What an entry takes beside the numbers of its state, about: in the maps here, and for the state's own fields.
const ENTRY_BYTES: u64 = 512;
/// Spent states do not go before others while there are at most so many of them, in at most this share of the memory: a
/// message that is edited and an answer that is drawn again begin there, and so does the second conversation with a
/// system prompt, up to which only one goes on from it. Few, so that memory for 1.1 states of each conversation keeps
/// all ends, and some that several share.
const SPENT_KEPT_MAX: u64 = 16;
const SPENT_SHARE: u64 = 16;

/// An owner as it stands in names of files.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct OwnerId(pub(super) u128);

impl OwnerId {
    pub(super) fn of(owner: &Owner) -> Self {
        OwnerId(xxh3_128(owner.name().as_bytes()))
    }
}

/// A panic elsewhere leaves maps that are whole: each change of them is one call.
pub(super) fn lock(index: &Mutex<Index>) -> MutexGuard<'_, Index> {
    index.lock().unwrap_or_else(PoisonError::into_inner)
}

pub(super) struct Index {
    metrics: ModelMetrics,
    trees: HashMap<OwnerId, Tree>,
    /// Of those in memory the ends of conversations, and what several go on from.
    memory: Order,
    /// Of those in memory the ones that exactly one other goes on from: it is what the next request will want.
    spent: Order,
    disk: Order,
    /// Counts uses.
    clock: u64,
    sessions: Sessions,
    pub(super) session_files: SessionFiles,
}

/// The states of one owner.
#[derive(Default)]
struct Tree {
    entries: HashMap<Key, Entry>,
    links: Links,
    /// Those behind answers: by the size of the text, and its hash.
    texts: BTreeMap<u64, HashMap<u128, Key>>,
}

#[derive(Default)]
struct Entry {
    text: Option<TextKey>,
    memory: Option<InMemory>,
    disk: Option<OnDisk>,
}

struct InMemory {
    state: Arc<State>,
    place: Place,
    is_spent: bool,
}

struct OnDisk {
    /// As the name of the file says.
    text: Option<TextKey>,
    place: Place,
}

/// When it was used last, and what it takes.
#[derive(Clone, Copy)]
struct Place {
    used: u64,
    n_bytes: u64,
}

/// Entries by when they were used last.
#[derive(Default)]
struct Order {
    by_use: BTreeMap<u64, (OwnerId, Key)>,
    n_bytes: u64,
}

impl Order {
    fn add(&mut self, owner: OwnerId, key: Key, place: Place) {
        self.by_use.insert(place.used, (owner, key));
        self.n_bytes += place.n_bytes;
    }

    fn remove(&mut self, place: Place) {
        self.by_use.remove(&place.used);
        self.n_bytes -= place.n_bytes;
    }

    /// When it was used, and which one it is.
    fn oldest(&self) -> Option<(u64, (OwnerId, Key))> {
        self.by_use
            .first_key_value()
            .map(|(&used, &which)| (used, which))
    }

    fn size(&self) -> Size {
        Size {
            n_states: self.by_use.len() as u64,
            n_bytes: self.n_bytes,
        }
    }
}

impl Tree {
    /// A state is found by this text, and no longer by another: a session's texts begin with the session, those of messages
    /// with the conversation.
    fn set_text(&mut self, key: Key, text: TextKey) {
        let older = self.entries.entry(key).or_default().text.replace(text);
        if let Some(older) = older {
            self.forget_text(key, older);
        }
        let of_size = self.texts.entry(text.size).or_default();
        of_size.insert(text.hash, key);
    }

    fn forget_text(&mut self, key: Key, text: TextKey) {
        let Some(of_size) = self.texts.get_mut(&text.size) else {
            return;
        };
        // Another key may have the same text by now.
        if of_size.get(&text.hash) == Some(&key) {
            of_size.remove(&text.hash);
        }
        if of_size.is_empty() {
            self.texts.remove(&text.size);
        }
    }
}

impl Index {
    pub(super) fn new(metrics: &ModelMetrics) -> Self {
        Index {
            metrics: metrics.clone(),
            trees: HashMap::new(),
            memory: Order::default(),
            spent: Order::default(),
            disk: Order::default(),
            clock: 0,
            sessions: Sessions::default(),
            session_files: SessionFiles::default(),
        }
    }

    /// Tells what there is, after each change of it.
    fn count(&self) {
        let (memory, disk) = (self.in_memory(), self.disk.size());
        for (gauge, n) in [
            (&self.metrics.states_memory, memory.n_states),
            (&self.metrics.states_memory_bytes, memory.n_bytes),
            (&self.metrics.states_disk, disk.n_states),
            (&self.metrics.states_disk_bytes, disk.n_bytes),
        ] {
            gauge.set(i64::try_from(n).unwrap_or(i64::MAX));
        }
    }

    pub(super) fn in_memory(&self) -> Size {
        let (memory, spent) = (self.memory.size(), self.spent.size());
        Size {
            n_states: memory.n_states + spent.n_states,
            n_bytes: memory.n_bytes + spent.n_bytes,
        }
    }

    pub(super) fn on_disk(&self) -> Size {
        self.disk.size()
    }

    fn tick(&mut self) -> u64 {
        self.clock += 1;
        self.clock
    }

    fn entry(&mut self, owner: OwnerId, key: Key, text: Option<TextKey>) -> &mut Entry {
        let tree = self.trees.entry(owner).or_default();
        if let Some(text) = text {
            tree.set_text(key, text);
        }
        // The same tokens may be an answer's end in one request and part of a prompt in another.
        tree.entries.entry(key).or_default()
    }

    /// Keeps a state in memory, as the one that was used last.
    pub(super) fn insert(&mut self, owner: OwnerId, kept: &Kept) {
        let place = Place {
            used: self.tick(),
            n_bytes: kept.state.size_bytes() as u64 + ENTRY_BYTES,
        };
        let is_spent = self.is_spent(owner, kept.key);
        let in_memory = InMemory {
            state: kept.state.clone(),
            place,
            is_spent,
        };
        let entry = self.entry(owner, kept.key, kept.text);
        let older = entry.memory.replace(in_memory);
        if let Some(older) = older {
            self.order(older.is_spent).remove(older.place);
        }
        self.order(is_spent).add(owner, kept.key, place);
        self.link(owner, kept);
        self.count();
    }

    fn order(&mut self, is_spent: bool) -> &mut Order {
        match is_spent {
            true => &mut self.spent,
            false => &mut self.memory,
        }
    }

    /// Notes what a state goes on from, as far as that is still there.
    fn link(&mut self, owner: OwnerId, kept: &Kept) {
        let Some(tree) = self.trees.get_mut(&owner) else {
            return;
        };
        let is_there = |before: &Key| *before != kept.key && tree.entries.contains_key(before);
        let Some(before) = kept.before.filter(is_there) else {
            return;
        };
        let older = tree.links.link(before, kept.key);
        for changed in older.into_iter().chain([before]) {
            self.rank(owner, changed);
        }
    }

    /// Whether exactly one state goes on from this one, and no session. Where there is a folder this does not know of the
    /// sessions, and need not: their states are in files.
    fn is_spent(&self, owner: OwnerId, key: Key) -> bool {
        let tree = self.trees.get(&owner);
        tree.is_some_and(|tree| tree.links.has_one_behind(key)) && !self.sessions.is_at(owner, key)
    }

    /// Puts a state where it belongs, after a change of what goes on from it.
    fn rank(&mut self, owner: OwnerId, key: Key) {
        let is_spent = self.is_spent(owner, key);
        let tree = self.trees.get_mut(&owner);
        let entry = tree.and_then(|tree| tree.entries.get_mut(&key));
        let Some(memory) = entry.and_then(|entry| entry.memory.as_mut()) else {
            return;
        };
        if memory.is_spent != is_spent {
            memory.is_spent = is_spent;
            let place = memory.place;
            self.order(!is_spent).remove(place);
            self.order(is_spent).add(owner, key, place);
        }
    }

    pub(super) fn sessions(&self) -> &Sessions {
        &self.sessions
    }

    /// Keeps a session in memory.
    pub(super) fn insert_session(&mut self, owner: OwnerId, session: Session) {
        let key = session.key();
        let older = self.sessions.insert(owner, session);
        for key in older.and_then(|older| older.key()).into_iter().chain(key) {
            self.rank(owner, key);
        }
    }

    /// Forgets a session that is in memory; whether there was one.
    pub(super) fn remove_session(&mut self, owner: OwnerId, name: &str) -> bool {
        let removed = self.sessions.remove(owner, name);
        if let Some(key) = removed.as_ref().and_then(Session::key) {
            self.rank(owner, key);
        }
        removed.is_some()
    }

    /// A file of a state is there.
    pub(super) fn insert_file(
        &mut self,
        owner: OwnerId,
        key: Key,
        text: Option<TextKey>,
        n_bytes: u64,
    ) {
        let place = Place {
            used: self.tick(),
            n_bytes,
        };
        let on_disk = OnDisk { text, place };
        let older = self.entry(owner, key, text).disk.replace(on_disk);
        if let Some(older) = older {
            self.disk.remove(older.place);
        }
        self.disk.add(owner, key, place);
        self.count();
    }

    pub(super) fn has_file(&self, owner: OwnerId, key: Key) -> bool {
        self.look(owner, key)
            .is_some_and(|entry| entry.disk.is_some())
    }

    /// What the name of a state's file says of its text, if there is one.
    pub(super) fn file_text(&self, owner: OwnerId, key: Key) -> Option<Option<TextKey>> {
        Some(self.look(owner, key)?.disk.as_ref()?.text)
    }

    pub(super) fn has_in_memory(&self, owner: OwnerId, key: Key) -> bool {
        self.look(owner, key)
            .is_some_and(|entry| entry.memory.is_some())
    }

    fn look(&self, owner: OwnerId, key: Key) -> Option<&Entry> {
        self.trees.get(&owner)?.entries.get(&key)
    }

    /// How many keys lead to the last one of which there is a state.
    pub(super) fn longest(&self, owner: OwnerId, keys: &[Key]) -> Option<usize> {
        let tree = self.trees.get(&owner)?;
        let at = keys.iter().rposition(|key| tree.entries.contains_key(key));
        at.map(|at| at + 1)
    }

    /// All states that have read beginnings of a text: sizes of these, ascending, keys, and what was drawn behind each.
    pub(super) fn beginnings(
        &self,
        owner: OwnerId,
        root: Key,
        text: &[u8],
    ) -> Vec<(usize, Key, Option<u32>)> {
        let Some(tree) = self.trees.get(&owner) else {
            return Vec::new();
        };
        let mut hash = TextHash::behind(root);
        let mut start = 0;
        let mut found = Vec::new();
        for (&size, keys) in tree.texts.range(..=text.len() as u64) {
            let end = usize::try_from(size).unwrap_or(usize::MAX);
            hash.push(&text[start..end]);
            start = end;
            let Some(key) = keys.get(&hash.key(None).hash) else {
                continue;
            };
            let of_text = tree.entries.get(key).and_then(|entry| entry.text);
            found.push((end, *key, of_text.and_then(|text| text.next)));
        }
        found
    }

    /// The state, if it is in memory, and the text that it has read; it counts as used now.
    pub(super) fn get(
        &mut self,
        owner: OwnerId,
        key: Key,
    ) -> Option<(Option<Arc<State>>, Option<TextKey>)> {
        let used = self.tick();
        let entry = self.trees.get_mut(&owner)?.entries.get_mut(&key)?;
        let again = |order: &mut Order, place: &mut Place| {
            order.remove(*place);
            place.used = used;
            order.add(owner, key, *place);
        };
        if let Some(disk) = &mut entry.disk {
            again(&mut self.disk, &mut disk.place);
        }
        let state = entry.memory.as_mut().map(|memory| {
            let order = match memory.is_spent {
                true => &mut self.spent,
                false => &mut self.memory,
            };
            again(order, &mut memory.place);
            memory.state.clone()
        });
        Some((state, entry.text))
    }

    /// Forgets a state that is in memory alone.
    pub(super) fn forget(&mut self, owner: OwnerId, key: Key) {
        if !self.has_file(owner, key) {
            self.remove_from_memory(owner, key);
        }
    }

    fn remove_from_memory(&mut self, owner: OwnerId, key: Key) -> Option<Kept> {
        let entry = self.trees.get_mut(&owner)?.entries.get_mut(&key)?;
        let InMemory {
            state,
            place,
            is_spent,
        } = entry.memory.take()?;
        let text = entry.text;
        self.order(is_spent).remove(place);
        self.remove_if_nowhere(owner, key);
        self.count();
        Some(Kept {
            key,
            text,
            before: None,
            state,
        })
    }

    /// The file of a state is gone.
    pub(super) fn remove_file(&mut self, owner: OwnerId, key: Key) {
        let tree = self.trees.get_mut(&owner);
        let entry = tree.and_then(|tree| tree.entries.get_mut(&key));
        if let Some(OnDisk { place, .. }) = entry.and_then(|entry| entry.disk.take()) {
            self.disk.remove(place);
            self.remove_if_nowhere(owner, key);
            self.count();
        }
    }

    fn remove_if_nowhere(&mut self, owner: OwnerId, key: Key) {
        let Some(tree) = self.trees.get_mut(&owner) else {
            return;
        };
        let nowhere = |entry: &mut Entry| entry.memory.is_none() && entry.disk.is_none();
        if !tree.entries.get_mut(&key).is_some_and(nowhere) {
            return;
        }
        let removed = tree.entries.remove(&key);
        if let Some(text) = removed.and_then(|entry| entry.text) {
            tree.forget_text(key, text);
        }
        let before = tree.links.remove(key);
        if tree.entries.is_empty() {
            self.trees.remove(&owner);
        }
        if let Some(before) = before {
            self.rank(owner, before);
        }
    }

    /// Lets states go until so many bytes are left; gives those that are in no file.
    pub(super) fn shrink_memory(&mut self, n_bytes_max: u64) -> Vec<(OwnerId, Kept)> {
        let mut gone = Vec::new();
        while self.in_memory().n_bytes > n_bytes_max {
            let Some((owner, key)) = self.first_to_go(n_bytes_max) else {
                break;
            };
            let is_on_disk = self.has_file(owner, key);
            let kept = self.remove_from_memory(owner, key);
            gone.extend(kept.filter(|_| !is_on_disk).map(|kept| (owner, kept)));
        }
        gone
    }

    /// Of those in memory, which may have so many bytes: the spent one that was not used for longest, or where there are
    /// few of these, whichever was not.
    fn first_to_go(&self, n_bytes_max: u64) -> Option<(OwnerId, Key)> {
        let (spent, other) = (self.spent.oldest(), self.memory.oldest());
        let size = self.spent.size();
        let are_many = size.n_states > SPENT_KEPT_MAX || size.n_bytes > n_bytes_max / SPENT_SHARE;
        let first = match are_many {
            true => spent,
            false => spent.into_iter().chain(other).min_by_key(|&(used, _)| used),
        };
        first.map(|(_, which)| which)
    }

    /// Lets files go until so many bytes are left, those first that were not used for longest: sessions of other
    /// servers, and of earlier ones, may be anywhere in a chain. Gives those that are to be removed.
    pub(super) fn shrink_disk(&mut self, n_bytes_max: u64) -> Vec<(OwnerId, Key, Option<TextKey>)> {
        let mut gone = Vec::new();
        while self.disk.n_bytes > n_bytes_max {
            let Some((_, (owner, key))) = self.disk.oldest() else {
                break;
            };
            let text = self.file_text(owner, key).flatten();
            self.remove_file(owner, key);
            gone.push((owner, key, text));
        }
        gone
    }

    /// All states of which there should be files.
    pub(super) fn files(&self) -> Vec<(OwnerId, Key)> {
        self.disk.by_use.values().copied().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::Metrics;

    #[test]
    fn of_texts_no_more_are_kept_than_of_states() {
        let mut index = Index::new(&Metrics::new().model(""));
        let (owner, root) = (OwnerId(1), Key(7));
        let text = |text: &str, next| {
            let mut hash = TextHash::behind(root);
            hash.push(text.as_bytes());
            Some(hash.key(next))
        };
        let found = |index: &Index, text: &str| index.beginnings(owner, root, text.as_bytes());
        index.insert_file(owner, Key(1), text("one", None), 10);
        index.insert_file(owner, Key(2), text("another", None), 10);
        index.insert_file(owner, Key(2), text("two", None), 10);
        index.insert_file(owner, Key(2), text("two", Some(5)), 10);
        index.insert_file(owner, Key(2), None, 10);
        assert_eq!(found(&index, "another"), []);
        assert_eq!(found(&index, "two."), [(3, Key(2), Some(5))]);
        index.remove_file(owner, Key(2));
        assert_eq!(found(&index, "one!"), [(3, Key(1), None)]);
        assert_eq!(index.trees[&owner].texts.len(), 1);
        index.remove_file(owner, Key(1));
        assert!(index.trees.is_empty());
    }
}
