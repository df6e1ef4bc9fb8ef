//! A set of offsets within a subnet, small for a few addresses in a large one.

use std::collections::BTreeMap;

/// Offsets per page.
const PAGE: u128 = 1024;
const WORDS: usize = 16;

/// Offsets in use, as bits in pages that exist only where there are some.
#[derive(Debug, Default)]
pub(crate) struct OffsetSet {
    pages: BTreeMap<u128, Box<[u64; WORDS]>>,
}

impl OffsetSet {
    /// Adds `offset`; `false` if it was there.
    pub(crate) fn insert(&mut self, offset: u128) -> bool {
        let (page, word, bit) = place(offset);
        let words = self.pages.entry(page).or_default();
        let new = words[word] & bit == 0;
        words[word] |= bit;
        new
    }

    /// Removes `offset`; `false` if it was not there.
    pub(crate) fn remove(&mut self, offset: u128) -> bool {
        let (page, word, bit) = place(offset);
        let Some(words) = self.pages.get_mut(&page) else { return false };
        let had = words[word] & bit != 0;
        words[word] &= !bit;
        if words.iter().all(|w| *w == 0) {
            self.pages.remove(&page);
        }
        had
    }

    /// The lowest offset from `first` to `last` that is not in the set.
    pub(crate) fn first_free(&self, first: u128, last: u128) -> Option<u128> {
        let mut at = first;
        while at <= last {
            let (page, word, bit) = place(at);
            let Some(words) = self.pages.get(&page) else { return Some(at) };
            // The bits below `at` in its word count as used.
            let free = !(words[word] | (bit - 1));
            let word_start = at - u128::from(bit.trailing_zeros());
            if free != 0 {
                let found = word_start + u128::from(free.trailing_zeros());
                return (found <= last).then_some(found);
            }
            at = word_start.checked_add(64)?;
        }
        None
    }
}

fn place(offset: u128) -> (u128, usize, u64) {
    let within = (offset % PAGE) as usize; // below 1024
    (offset / PAGE, within / 64, 1 << (within % 64))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_first_free_offset_is_found() {
        let mut set = OffsetSet::default();
        for offset in 0..3000 {
            assert!(set.insert(offset));
        }
        assert!(!set.insert(7));
        let cases = [
            ("behind all", 0, 5000, Some(3000)),
            ("range is full", 0, 2999, None),
            ("starts in a hole", 4000, 4000, Some(4000)),
            ("empty range", 5, 4, None),
            ("the end of the key space", u128::MAX, u128::MAX, Some(u128::MAX)),
        ];
        for (what, first, last, expected) in cases {
            assert_eq!(set.first_free(first, last), expected, "{what}");
        }
        assert!(set.remove(65) && !set.remove(65));
        assert_eq!(set.first_free(0, 5000), Some(65));
    }

    proptest! {
        /// The set agrees with the obvious one.
        #[test]
        fn behaves_like_a_plain_set(steps in vec((any::<bool>(), 0..2200_u128), 0..400), from in 0..2200_u128) {
            let (mut set, mut plain) = (OffsetSet::default(), BTreeSet::new());
            for (add, offset) in steps {
                if add {
                    prop_assert_eq!(set.insert(offset), plain.insert(offset));
                } else {
                    prop_assert_eq!(set.remove(offset), plain.remove(&offset));
                }
            }
            let free = (from..=2199).find(|o| !plain.contains(o));
            prop_assert_eq!(set.first_free(from, 2199), free);
        }
    }
}
