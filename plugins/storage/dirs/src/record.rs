//! One layer's record, and its form on disk.

use gantry_sdk::kinds::storage::{Layer, LayerState};
use gantry_sdk::{Error, Result};

/// How far a layer has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Writable.
    Active,
    /// Read-only, and lost if the power fails now.
    Committed,
    /// Read-only and on disk.
    Durable,
}

/// One layer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// The name of its directory.
    pub id: u64,
    /// The caller's name for it.
    pub key: String,
    /// The key of the layer below.
    pub parent: Option<String>,
    /// Its state.
    pub state: State,
    /// Nothing of it needs to survive a power cut, and nothing does.
    pub volatile: bool,
}

/// The longest key.
const KEY_BYTES: usize = 256;

impl Record {
    /// Its content's directory, relative to the root.
    pub fn content(&self) -> String {
        format!("l/{}/fs", self.id)
    }

    /// Its scratch directory, relative to the root.
    pub fn work(&self) -> String {
        format!("l/{}/work", self.id)
    }

    /// Whether it can be written to.
    pub fn is_active(&self) -> bool {
        self.state == State::Active
    }

    /// As the SDK describes layers.
    pub fn to_layer(&self) -> Layer {
        let state = if self.is_active() { LayerState::Active } else { LayerState::Committed };
        Layer { key: self.key.clone(), parent: self.parent.clone(), state }
    }

    /// `1/<state>/<parent>/<key>`: a version, and `/` between, which no key contains.
    pub(crate) fn encode(&self) -> String {
        let state = match self.state {
            State::Active if self.volatile => 'v',
            State::Active => 'a',
            State::Committed => 'c',
            State::Durable => 'd',
        };
        format!("1/{state}/{}/{}", self.parent.as_deref().unwrap_or_default(), self.key)
    }

    pub(crate) fn decode(id: u64, text: &str) -> Option<Self> {
        let mut fields = text.split('/');
        let mut next = || fields.next();
        let ("1", state, parent, key, None) = (next()?, next()?, next()?, next()?, next()) else {
            return None;
        };
        let volatile = state == "v";
        let state = match state {
            "a" | "v" => State::Active,
            "c" => State::Committed,
            "d" => State::Durable,
            _ => return None,
        };
        let parent = (!parent.is_empty()).then(|| parent.to_owned());
        check_key(key).is_ok().then(|| Self { id, key: key.to_owned(), parent, state, volatile })
    }
}

/// Whether `key` may name a layer.
pub(crate) fn check_key(key: &str) -> Result<()> {
    let is_fine = |byte: u8| (b' '..=b'~').contains(&byte) && byte != b'/';
    if (1..=KEY_BYTES).contains(&key.len()) && key.bytes().all(is_fine) {
        return Ok(());
    }
    let why = "1 to 256 printable ASCII characters without \"/\"";
    Err(Error::invalid(format!("invalid layer key {key:.80?}: {why}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_survive_the_disk_and_strangers_do_not() {
        for (parent, state, volatile) in [
            (None, State::Active, false),
            (Some("y"), State::Active, true),
            (Some("sha256:ab"), State::Committed, false),
            (Some(" x"), State::Durable, false),
        ] {
            let parent = parent.map(str::to_owned);
            let record = Record { id: 7, key: "a b:c,\\".to_owned(), parent, state, volatile };
            assert_eq!(Record::decode(7, &record.encode()), Some(record));
        }
        for text in ["", "2/a//k", "1/x//k", "1/a//", "1/a//k/more", "../../etc"] {
            assert_eq!(Record::decode(7, text), None, "{text}");
        }
    }

    #[test]
    fn keys_are_printable_and_bounded() {
        for (key, ok) in [("a", true), ("", false), ("a/b", false), ("ä", false), ("a\n", false)] {
            assert_eq!(check_key(key).is_ok(), ok, "{key:?}");
        }
        assert!(check_key(&"k".repeat(256)).is_ok() && check_key(&"k".repeat(257)).is_err());
    }
}
