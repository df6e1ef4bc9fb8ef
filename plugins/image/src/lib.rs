//! Images: store, load, save, tag, history, removal.
