//! `docker import`: a tree in an archive becomes an image of one layer.

use std::sync::Arc;

use gantry_sdk::id::Digest;
use gantry_sdk::route::RequestBody;
use gantry_sdk::{Ctx, Error, Result};
use jiff::Timestamp;

use crate::admit::Admission;
use crate::changes;
use crate::config::{HistoryEntry, ImageFile, RootFs};
use crate::load::ingest::with_body;
use crate::load::sink::Sink;
use crate::load::{layer_record, own_content};
use crate::platform::Platform;
use crate::store::{Store, check_name};
use gantry_sdk::reference::Reference;

/// What to make of the archive.
#[derive(Debug)]
pub struct Import {
    /// Its name, if any.
    pub reference: Option<Reference>,
    /// The comment of its history.
    pub message: String,
    /// Instructions as in a Dockerfile.
    pub changes: Vec<String>,
    /// What it runs on; the host's if none.
    pub platform: Option<Platform>,
}

/// Imports the archive in `body`; returns the image's id. Content of a failed import is left for
/// [`Store::litter`].
///
/// # Errors
///
/// `InvalidArgument` for changes, names and archives; those of the layer store.
pub async fn import(
    store: &Arc<Store>,
    cx: &Ctx,
    body: RequestBody,
    import: Import,
) -> Result<Digest> {
    if let Some(reference) = &import.reference {
        check_name(reference)?;
    }
    let platform = import.platform.clone().unwrap_or_else(Platform::host);
    if platform.os() != "linux" {
        return Err(Error::invalid(format!(
            "operating system {:?} is not supported",
            platform.os()
        )));
    }
    let now = Timestamp::now();
    let mut file = ImageFile {
        architecture: platform.architecture().to_owned(),
        variant: platform.variant().to_owned(),
        os: platform.os().to_owned(),
        created: Some(now.to_string()),
        comment: import.message.clone(),
        history: vec![HistoryEntry {
            created: Some(now.to_string()),
            comment: import.message,
            ..HistoryEntry::default()
        }],
        ..ImageFile::default()
    };
    changes::apply(&mut file.config, &import.changes)?;

    let lease = store.blobs.lease(cx).await?;
    let sink = Sink::new(store, lease.clone(), cx);
    let (content, file, _hold) = with_body(body, move |reader| {
        let coming = sink.layer(reader)?;
        let mut stored = sink.known(sink.finish(coming)?)?;
        let hold = stored.hold.take();
        let layer = layer_record(stored)?;
        file.rootfs =
            RootFs { kind: "layers".to_owned(), diff_ids: vec![layer.diff_id.to_string()] };
        Ok((own_content(&sink, &file, vec![layer])?, file, hold))
    })
    .await?;
    let (entry, _) = store.admit(cx, Admission::new(content, file)).await?;
    if let Some(reference) = &import.reference {
        store.tag(cx, &entry.id, None, reference).await?;
    }
    store.report("import", &entry, entry.id.to_string());
    Ok(entry.id.clone())
}
