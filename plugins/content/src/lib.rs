//! Content: the blob store and the metadata database.
