//! The metadata database: small records by table and key, in transactions.

use std::time::Duration;

use crate::{Result, kind};

/// One change of a [`MetadataStore::commit`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// Writes a record.
    Put {
        /// Table, named after the plugin that owns it.
        table: &'static str,
        /// Key within the table.
        key: String,
        /// Content.
        value: Vec<u8>,
    },
    /// Removes a record; a missing one is no error.
    Delete {
        /// Table.
        table: &'static str,
        /// Key.
        key: String,
    },
    /// Lets the commit fail unless the record is as expected (`None`: absent).
    Expect {
        /// Table.
        table: &'static str,
        /// Key.
        key: String,
        /// Content before the commit.
        value: Option<Vec<u8>>,
    },
}

impl Change {
    /// Writes `value` as JSON.
    ///
    /// # Errors
    ///
    /// `Internal` if it cannot be encoded.
    pub fn put_json(
        table: &'static str,
        key: impl Into<String>,
        value: &impl serde::Serialize,
    ) -> Result<Self> {
        let value = serde_json::to_vec(value)
            .map_err(|e| crate::Error::internal("cannot encode a record", e))?;
        Ok(Self::Put { table, key: key.into(), value })
    }

    /// Removes a record.
    pub fn delete(table: &'static str, key: impl Into<String>) -> Self {
        Self::Delete { table, key: key.into() }
    }
}

kind! {
    /// Records by table and key. A returned commit is on disk.
    pub trait MetadataStore: Metadata = "metadata" (1, 0), budget Some(Duration::from_secs(60)) => {
        /// The record, if there is one.
        async fn get(&self, cx: &Ctx, table: &'static str, key: &str) -> Result<Option<Vec<u8>>>;

        /// All records of a table whose key starts with `prefix`, in key order.
        async fn scan(&self, cx: &Ctx, table: &'static str, prefix: &str) -> Result<Vec<(String, Vec<u8>)>>;

        /// Applies all changes or none; durable when it returns.
        ///
        /// # Errors
        ///
        /// `Conflict` if an expectation does not hold; `NoSpace`; `Internal`.
        async fn commit(&self, cx: &Ctx, changes: Vec<Change>) -> Result<()>;
    }
}
