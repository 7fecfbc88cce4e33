//! Strings of bytes in a tree that finds the longest one at the start of a text.
//!
//! Three flat arrays hold it: 9 bytes a node, 1.0 MB for the RWKV World vocabulary (116,079 nodes).
//! Nodes are numbered level by level, so that the children of a node lie side by side, in the order
//! of their bytes, right behind those of the node before it.

#![forbid(unsafe_code)]

use std::ops::Range;

/// The id of a node at which no string ends.
const NONE: u32 = u32::MAX;

pub(super) struct Trie {
    /// (nodes - 1) the byte that leads to a node from its parent; the root, node 0, has none
    labels: Vec<u8>,
    /// (nodes + 1) index in `labels` of a node's first child; the next entry is where they end
    first_child: Vec<u32>,
    /// (nodes) id of the string that ends here
    ids: Vec<u32>,
}

/// Two ids with the same string of bytes.
#[derive(Debug, PartialEq)]
pub(super) struct Duplicate(pub(super) u32, pub(super) u32);

impl Trie {
    /// From (id, string) pairs; no string is empty, ids are below `u32::MAX`, and all bytes
    /// together are fewer than 2^32.
    pub(super) fn new<'a>(
        strings: impl Iterator<Item = (u32, &'a [u8])>,
    ) -> Result<Self, Duplicate> {
        // Comparing the first eight bytes as one number decides nearly always.
        let mut sorted: Vec<(u64, &[u8], u32)> = strings
            .map(|(id, string)| (first_eight(string), string, id))
            .collect();
        sorted.sort_unstable();
        let mut trie = Trie {
            labels: Vec::new(),
            first_child: Vec::new(),
            ids: Vec::new(),
        };
        // The nodes of a level: which of the sorted strings go through them.
        let mut level: Vec<Range<usize>> = std::iter::once(0..sorted.len()).collect();
        let mut next_level = Vec::new();
        let mut depth = 0;
        while !level.is_empty() {
            for mut range in level.drain(..) {
                trie.first_child.push(trie.labels.len() as u32);
                // Of strings that begin with the same bytes the shortest comes first.
                let ends_here = |&(_, string, _): &&(u64, &[u8], u32)| string.len() == depth;
                let mut id = NONE;
                if let Some(&(_, _, ends)) = sorted[range.clone()].first().filter(ends_here) {
                    id = ends;
                    range.start += 1;
                    if let Some(&(_, _, other)) = sorted[range.clone()].first().filter(ends_here) {
                        return Err(Duplicate(ends, other));
                    }
                }
                trie.ids.push(id);
                while let Some(&(_, string, _)) = sorted[range.clone()].first() {
                    let label = string[depth];
                    let with_label = sorted[range.clone()]
                        .iter()
                        .take_while(|&&(_, string, _)| string[depth] == label);
                    let end = range.start + with_label.count();
                    trie.labels.push(label);
                    next_level.push(range.start..end);
                    range.start = end;
                }
            }
            std::mem::swap(&mut level, &mut next_level);
            depth += 1;
        }
        trie.first_child.push(trie.labels.len() as u32);
        Ok(trie)
    }

    /// Id and length of the longest string that `text` starts with.
    pub(super) fn longest(&self, text: &[u8]) -> Option<(u32, usize)> {
        let mut node = 0;
        let mut longest = None;
        for (&byte, size) in text.iter().zip(1..) {
            let start = self.first_child[node] as usize;
            let children = &self.labels[start..self.first_child[node + 1] as usize];
            let Ok(index) = children.binary_search(&byte) else {
                break;
            };
            // Labels start at node 1: the root has none.
            node = start + index + 1;
            if self.ids[node] != NONE {
                longest = Some((self.ids[node], size));
            }
        }
        longest
    }
}

/// The first eight bytes as a number that orders as they do; shorter strings end in zeros.
fn first_eight(string: &[u8]) -> u64 {
    let mut eight = [0; 8];
    let n = string.len().min(8);
    eight[..n].copy_from_slice(&string[..n]);
    u64::from_be_bytes(eight)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Against the definition, over random strings of few different bytes, 0 among them.
    #[test]
    fn the_longest_string_is_found() {
        let mut random = 5u64;
        let mut below = |n: u64| {
            random = random.wrapping_mul(6364136223846793005).wrapping_add(1);
            (random >> 33) % n
        };
        let mut found = [0; 2];
        for _ in 0..500 {
            let alphabet = 2 + below(3);
            let n_strings = below(40);
            let mut string = |size_max: u64, least: u64| -> Vec<u8> {
                let size = least + below(size_max);
                (0..size).map(|_| below(alphabet) as u8).collect()
            };
            let mut strings: Vec<Vec<u8>> = (0..n_strings).map(|_| string(11, 1)).collect();
            let text = string(14, 0);
            strings.sort();
            strings.dedup();
            let mut pairs: Vec<(u32, &[u8])> =
                (7..).zip(strings.iter().map(Vec::as_slice)).collect();
            pairs.reverse();
            let trie = Trie::new(pairs.into_iter());
            let trie = trie.expect("no two are the same");
            for start in 0..=text.len() {
                let text = &text[start..];
                let fits = strings
                    .iter()
                    .zip(7u32..)
                    .filter(|(s, _)| text.starts_with(s));
                let expected = fits
                    .max_by_key(|(s, _)| s.len())
                    .map(|(s, id)| (id, s.len()));
                assert_eq!(trie.longest(text), expected, "{strings:?} {text:?}");
                found[usize::from(expected.is_some())] += 1;
            }
        }
        assert!(found[0] > 500 && found[1] > 500, "{found:?}");
    }

    #[test]
    fn the_same_string_twice_is_found_out() {
        let strings: [&[u8]; 5] = [b"ab", b"a", b"abc", b"ab", b"b"];
        let pairs = || strings.iter().zip(3..).map(|(&string, id)| (id, string));
        assert_eq!(Trie::new(pairs()).err(), Some(Duplicate(3, 6)));
        assert!(Trie::new(pairs().filter(|&(id, _)| id != 6)).is_ok());
        let empty = Trie::new(std::iter::empty()).expect("no strings at all");
        assert_eq!(empty.longest(b"a"), None);
    }
}
