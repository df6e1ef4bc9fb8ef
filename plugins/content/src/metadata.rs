//! Records by table and key in one embedded database.

use std::path::Path;
use std::sync::Arc;

use async_trait::async_trait;
use gantry_sdk::kinds::metadata::{Change, MetadataStore};
use gantry_sdk::{Ctx, Error, Result};
use redb::{ReadableDatabase, ReadableTable, TableDefinition, TableError};

/// Page cache. Records are few and small; the rest of the machine's memory has better uses.
const CACHE_BYTES: usize = 2 << 20;

type Table<'a> = TableDefinition<'a, &'static str, &'static [u8]>;

/// The database file. One writer at a time, readers never wait.
#[derive(Debug)]
pub struct Database(Arc<redb::Database>);

impl Database {
    /// Opens or creates the file. Repairs it first if the last process was killed.
    ///
    /// # Errors
    ///
    /// `Internal` naming the file: damaged, of a newer version, or in use by another process.
    pub fn open(path: &Path) -> Result<Self> {
        redb::Database::builder()
            .set_cache_size(CACHE_BYTES)
            .create(path)
            .map(|db| Self(Arc::new(db)))
            .map_err(|e| Error::internal(format!("cannot open {}", path.display()), e))
    }

    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&redb::Database) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let db = self.0.clone();
        tokio::task::spawn_blocking(move || work(&db)).await?
    }
}

#[async_trait]
impl MetadataStore for Database {
    async fn get(&self, _: &Ctx, table: &'static str, key: &str) -> Result<Option<Vec<u8>>> {
        let key = key.to_owned();
        self.blocking(move |db| {
            let read = db.begin_read().map_err(failed)?;
            match read.open_table(Table::new(table)) {
                Ok(table) => {
                    Ok(table.get(key.as_str()).map_err(failed)?.map(|v| v.value().to_vec()))
                }
                Err(TableError::TableDoesNotExist(_)) => Ok(None),
                Err(error) => Err(failed(error)),
            }
        })
        .await
    }

    async fn scan(
        &self,
        _: &Ctx,
        table: &'static str,
        prefix: &str,
    ) -> Result<Vec<(String, Vec<u8>)>> {
        let prefix = prefix.to_owned();
        self.blocking(move |db| {
            let read = db.begin_read().map_err(failed)?;
            let table = match read.open_table(Table::new(table)) {
                Ok(table) => table,
                Err(TableError::TableDoesNotExist(_)) => return Ok(Vec::new()),
                Err(error) => return Err(failed(error)),
            };
            let mut found = Vec::new();
            for entry in table.range(prefix.as_str()..).map_err(failed)? {
                let (key, value) = entry.map_err(failed)?;
                if !key.value().starts_with(&prefix) {
                    break;
                }
                found.push((key.value().to_owned(), value.value().to_vec()));
            }
            Ok(found)
        })
        .await
    }

    async fn commit(&self, _: &Ctx, changes: Vec<Change>) -> Result<()> {
        self.blocking(move |db| {
            let write = db.begin_write().map_err(failed)?;
            for change in &changes {
                apply(&write, change)?; // dropping the transaction undoes it
            }
            write.commit().map_err(failed)
        })
        .await
    }
}

fn apply(write: &redb::WriteTransaction, change: &Change) -> Result<()> {
    match change {
        Change::Put { table, key, value } => {
            let mut table = write.open_table(Table::new(table)).map_err(failed)?;
            table.insert(key.as_str(), value.as_slice()).map_err(failed)?;
        }
        Change::Delete { table, key } => {
            let mut table = write.open_table(Table::new(table)).map_err(failed)?;
            table.remove(key.as_str()).map_err(failed)?;
        }
        Change::Expect { table: name, key, value } => {
            let table = write.open_table(Table::new(name)).map_err(failed)?;
            let found = table.get(key.as_str()).map_err(failed)?;
            if found.as_ref().map(|v| v.value()) != value.as_deref() {
                return Err(Error::conflict(format!("record {key} of {name} has changed")));
            }
        }
    }
    Ok(())
}

fn failed(error: impl Into<redb::Error>) -> Error {
    let error = error.into();
    match error {
        redb::Error::Io(io) => Error::io("access", "the metadata database", io),
        other => Error::internal("cannot access the metadata database", other),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use gantry_sdk::ErrorKind;

    #[tokio::test]
    async fn commits_are_all_or_nothing_and_survive_reopening() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("db");
        let cx = Ctx::background();
        let put = |key: &str, value: &str| Change::Put {
            table: "t",
            key: key.into(),
            value: value.into(),
        };
        {
            let db = Database::open(&path).unwrap();
            db.commit(&cx, vec![put("a/1", "x"), put("a/2", "y"), put("b", "z")]).await.unwrap();
            let stale = Change::Expect { table: "t", key: "b".into(), value: None };
            let error = db.commit(&cx, vec![put("c", "w"), stale]).await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Conflict);
        }
        let db = Database::open(&path).unwrap();
        assert_eq!(db.get(&cx, "t", "c").await.unwrap(), None);
        assert_eq!(db.get(&cx, "none", "c").await.unwrap(), None);
        let found = db.scan(&cx, "t", "a/").await.unwrap();
        assert_eq!(found.iter().map(|(k, _)| k.as_str()).collect::<Vec<_>>(), ["a/1", "a/2"]);
    }
}
