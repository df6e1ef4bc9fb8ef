//! What goes over `/x/layers/…`, between the daemon and the command `storage`.

use serde::{Deserialize, Serialize};

/// `GET /x/layers/instances`: one instance.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct InstanceReport {
    /// Its name.
    pub name: String,
    /// Whether new containers get it.
    pub default: bool,
    /// Why it cannot be used; none if it can.
    pub down: Option<String>,
    /// Layers of images that are unpacked there.
    pub layers: u64,
    /// Bytes of the files in them.
    pub bytes: u64,
    /// Containers whose writable layer is there.
    pub containers: u64,
    /// Bytes that these wrote; only if they were asked for, because they have to be counted.
    pub written: Option<u64>,
    /// Old writable layers of containers that have moved away and have not been started since.
    pub kept: u64,
    /// Bytes that are still being removed.
    pub removing: u64,
}

/// Which images, or which containers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Selection {
    /// `all` or `used` images, `stopped` containers, `none` of them.
    Word(String),
    /// These.
    List(Vec<String>),
}

impl Selection {
    /// Whether nothing is selected.
    pub(crate) fn is_none(&self) -> bool {
        match self {
            Self::Word(word) => word == "none",
            Self::List(list) => list.is_empty(),
        }
    }
}

/// `POST /x/layers/migrate`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct MigrateRequest {
    /// The instance to go to.
    pub to: String,
    /// Images to unpack there.
    pub images: Selection,
    /// Containers to move there.
    pub containers: Selection,
    /// Say what would be done.
    #[serde(default)]
    pub dry_run: bool,
    /// Also compare the content of files.
    #[serde(default)]
    pub deep: bool,
    /// Remove old writable layers at once, also those of earlier moves.
    #[serde(default)]
    pub purge: bool,
    /// Bytes a second at most.
    #[serde(default)]
    pub rate: Option<u64>,
}

/// `POST /x/layers/verify`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct VerifyRequest {
    /// The instance.
    pub instance: String,
    /// Also compare the content of files.
    #[serde(default)]
    pub deep: bool,
    /// Drop what is damaged, unless a container stands on it.
    #[serde(default)]
    pub repair: bool,
}

/// `POST /x/layers/drop`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct DropRequest {
    /// The instance.
    pub instance: String,
    /// Although containers refer to it.
    #[serde(default)]
    pub force: bool,
}

/// The answer to a drop.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Dropped {
    /// Layers that are gone.
    pub layers: u64,
    /// Bytes of the files in them.
    pub bytes: u64,
    /// Layers that stay, because something stands on them or is using them.
    pub left: u64,
}

/// What a message is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Subject {
    /// An image that is unpacked.
    Image,
    /// A container that is moved.
    Container,
    /// An unpacked layer that is verified.
    Layer,
}

/// How far something is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    /// It would be done (a dry run).
    Planned,
    /// Bytes are moving.
    Working,
    /// What was written is being compared.
    Comparing,
    /// It is done.
    Done,
    /// There was nothing to do.
    Present,
    /// It cannot be done as things are, which is no fault.
    Skipped,
    /// It was attempted in vain, or is damaged.
    Failed,
    /// It was damaged and has been dropped.
    Repaired,
}

/// One message of a stream; documents are separated by newlines.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
pub enum Message {
    /// How far one thing is. The last message about a thing is its result.
    Item {
        /// What it is.
        subject: Subject,
        /// Its id.
        id: String,
        /// What people call it.
        name: String,
        /// How far it is.
        state: State,
        /// Bytes so far.
        #[serde(default)]
        current: u64,
        /// Bytes in all, 0 if that is not known.
        #[serde(default)]
        total: u64,
        /// Why it failed or was skipped, or what differs.
        #[serde(default)]
        why: Vec<String>,
    },
    /// The end; a stream without it broke off.
    End {
        /// Things that are done.
        done: u64,
        /// Things that needed nothing.
        present: u64,
        /// Things that could not be done as things are.
        skipped: u64,
        /// Things that failed.
        failed: u64,
        /// Bytes that were moved.
        bytes: u64,
        /// Why nothing more was attempted, if it was given up.
        #[serde(default)]
        error: Option<String>,
    },
}
