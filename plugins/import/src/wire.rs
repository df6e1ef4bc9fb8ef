//! What goes over `/x/import/images`, between the daemon and the command `import`.

use serde::{Deserialize, Serialize};

/// `POST /x/import/images`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ImportRequest {
    /// Absolute path of the data root, as the daemon sees it.
    pub root: String,
    /// Say what would come.
    #[serde(default)]
    pub dry_run: bool,
    /// The namespace in the containerd image store; `moby` if there is none.
    #[serde(default)]
    pub namespace: Option<String>,
}

/// How far an image is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    /// It would come (a dry run).
    Planned,
    /// Bytes are moving.
    Working,
    /// It is here.
    Done,
    /// It was here, with all its names.
    Present,
    /// It cannot be read.
    Failed,
}

/// What is counted and stays where it is, and what is to be known.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Remainder {
    /// Containers.
    pub containers: u64,
    /// Named volumes.
    pub volumes: u64,
    /// Names by digest whose manifest is gone.
    pub digests: u64,
    /// Anything else that was left out, in sentences.
    pub notes: Vec<String>,
}

/// One message of the stream; documents are separated by newlines.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
pub enum Message {
    /// How far one image is. The last message about an image is its result.
    Image {
        /// Digest of what its names point at.
        id: String,
        /// Its names; may be none.
        names: Vec<String>,
        /// How far it is.
        state: State,
        /// Bytes handed over so far.
        #[serde(default)]
        current: u64,
        /// About how many there are.
        #[serde(default)]
        total: u64,
        /// Why it failed, or what came with it.
        #[serde(default)]
        why: Vec<String>,
    },
    /// The end; a stream without it broke off.
    End {
        /// Images that came, or would come.
        done: u64,
        /// Images that were here.
        present: u64,
        /// Images that could not be read.
        failed: u64,
        /// Bytes that were handed over.
        bytes: u64,
        /// What did not come.
        remainder: Remainder,
        /// Why nothing more was attempted, if it was given up.
        #[serde(default)]
        error: Option<String>,
    },
}
