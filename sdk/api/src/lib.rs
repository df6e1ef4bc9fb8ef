//! Wire types of the Docker Engine API and their version transformers.
