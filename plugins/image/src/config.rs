//! The configuration blob of an image, as far as this daemon understands it.
//!
//! Source: OCI image specification, *Image Configuration*, and what older builders wrote beside it.

use gantry_api::image::ImageConfig;
use gantry_sdk::id::Digest;
use gantry_sdk::{Error, Result};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// Most bytes of a configuration. Real ones have some kilobytes.
pub const MAX_CONFIG: u64 = 4 << 20;
/// Most layers of one image; storage drivers have bounds of their own below this.
pub const MAX_LAYERS: usize = 512;

/// The blob's content.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ImageFile {
    /// `amd64`, `arm64`, …
    pub architecture: String,
    /// `linux`; older builders left it out.
    pub os: String,
    /// `v7`, `v8`, …
    #[serde(skip_serializing_if = "String::is_empty")]
    pub variant: String,
    /// Version of the operating system.
    #[serde(rename = "os.version", skip_serializing_if = "String::is_empty")]
    pub os_version: String,
    /// RFC 3339.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub created: Option<String>,
    /// Author.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub author: String,
    /// Comment, by older builders.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub comment: String,
    /// Version of the classic builder.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub docker_version: String,
    /// What a container of it runs.
    pub config: ImageConfig,
    /// Its layers.
    pub rootfs: RootFs,
    /// How it was made, first step first.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub history: Vec<HistoryEntry>,
}

/// The layers that a configuration names.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct RootFs {
    /// `layers`.
    #[serde(rename = "type")]
    pub kind: String,
    /// Digests of the uncompressed layers, base first.
    pub diff_ids: Vec<String>,
}

/// A step of the making.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct HistoryEntry {
    /// RFC 3339.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub created: Option<String>,
    /// Who.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub author: String,
    /// The command.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub created_by: String,
    /// Comment.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub comment: String,
    /// Whether it made no layer.
    #[serde(skip_serializing_if = "is_false")]
    pub empty_layer: bool,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "the signature serde asks for")]
fn is_false(value: &bool) -> bool {
    !value
}

impl ImageFile {
    /// Parses a blob.
    ///
    /// # Errors
    ///
    /// `InvalidArgument` for anything but one configuration with layers this daemon can have.
    pub fn parse(bytes: &[u8]) -> Result<Self> {
        let file: Self = gantry_api::json::from_slice(bytes)
            .map_err(|e| Error::invalid(format!("invalid image configuration: {e}")))?;
        file.diff_ids()?;
        if file.rootfs.diff_ids.len() > MAX_LAYERS {
            return Err(Error::invalid(format!(
                "invalid image configuration: more than {MAX_LAYERS} layers"
            )));
        }
        Ok(file)
    }

    /// The digests of the uncompressed layers, base first.
    ///
    /// # Errors
    ///
    /// `InvalidArgument` if one is no digest.
    pub fn diff_ids(&self) -> Result<Vec<Digest>> {
        self.rootfs
            .diff_ids
            .iter()
            .map(|text| text.parse().map_err(|e: Error| e.context("invalid image configuration")))
            .collect()
    }

    /// The operating system.
    pub fn os(&self) -> &str {
        if self.os.is_empty() { "linux" } else { &self.os }
    }

    /// `os/arch[/variant]`.
    pub fn platform(&self) -> String {
        let mut text = format!("{}/{}", self.os(), self.architecture);
        if !self.variant.is_empty() {
            text.push('/');
            text.push_str(&self.variant);
        }
        text
    }

    /// When it was made; None if unknown or unreadable.
    pub fn created(&self) -> Option<Timestamp> {
        time_of(self.created.as_deref())
    }

    /// The comment: its own, or that of the last step.
    pub fn comment(&self) -> &str {
        if self.comment.is_empty() {
            self.history.last().map_or("", |step| &step.comment)
        } else {
            &self.comment
        }
    }
}

/// A time in a configuration; the zero time means "unknown".
pub fn time_of(text: Option<&str>) -> Option<Timestamp> {
    let text = text.filter(|text| *text != gantry_api::ZERO_TIME)?;
    text.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nulls_and_unknown_fields_are_taken() {
        let diff = format!("sha256:{}", "a".repeat(64));
        let text = serde_json::json!({
            "architecture": "amd64", "os": "linux", "created": "2023-11-14T22:13:20.5+01:00",
            "config": {"Cmd": ["sh"], "Env": null, "Labels": null, "Hostname": "x"},
            "rootfs": {"type": "layers", "diff_ids": [diff]}, "history": null, "moby.x": [1],
        });
        let file = ImageFile::parse(text.to_string().as_bytes()).unwrap();
        assert_eq!(file.config.cmd, ["sh"]);
        assert_eq!(file.created().unwrap().to_string(), "2023-11-14T21:13:20.5Z");
        assert_eq!(file.platform(), "linux/amd64");
    }

    #[test]
    fn lies_about_layers_are_refused() {
        for text in ["", "[]", "null x", r#"{"rootfs":{"diff_ids":["md5:1"]}}"#] {
            assert!(ImageFile::parse(text.as_bytes()).is_err(), "{text}");
        }
    }
}
