//! Manifests and indexes, as a registry gives them: bounded, and told apart by what they hold.
//!
//! Source: OCI image specification, *Image Manifest* and *Image Index*; *Image Manifest Version 2,
//! Schema 2* of the distribution project, which has the same members.

use gantry_api::image::OciDescriptor;
use gantry_sdk::id::Digest;
use gantry_sdk::{Error, Result};
use serde::Deserialize;

use crate::config::{MAX_CONFIG, MAX_LAYERS};
use crate::platform::Platform;

/// Most manifests of one index.
const MAX_MANIFESTS: usize = 1024;
/// Largest layer that is believed, in bytes.
const MAX_LAYER: u64 = 1 << 40;

/// Configurations that are those of images; anything else is an artifact.
const IMAGE_CONFIGS: [&str; 2] =
    ["application/vnd.oci.image.config.v1+json", "application/vnd.docker.container.image.v1+json"];

/// An index or a manifest.
#[derive(Clone, Debug, PartialEq)]
pub enum Document {
    /// Images for several platforms, and what belongs to them.
    Index(Vec<OciDescriptor>),
    /// One image.
    Manifest(Box<Manifest>),
}

/// What makes an image.
#[derive(Clone, Debug, PartialEq)]
pub struct Manifest {
    /// The configuration.
    pub config: OciDescriptor,
    /// Base first.
    pub layers: Vec<OciDescriptor>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct Text {
    schema_version: i64,
    manifests: Option<Vec<OciDescriptor>>,
    config: Option<OciDescriptor>,
    layers: Vec<OciDescriptor>,
}

impl Document {
    /// Parses and checks the text of either.
    ///
    /// # Errors
    ///
    /// `InvalidArgument` with what is wrong; `Unsupported` for schema 1.
    pub fn parse(bytes: &[u8]) -> Result<Self> {
        let text: Text = gantry_api::json::from_slice(bytes)
            .map_err(|e| Error::invalid(format!("invalid manifest: {e}")))?;
        if text.schema_version == 1 {
            return Err(Error::unsupported(
                "the image has a manifest of schema version 1, which is not supported any more: \
                 push it again with a newer client",
            ));
        }
        if let Some(manifests) = text.manifests {
            if manifests.len() > MAX_MANIFESTS {
                return Err(too_many("index", MAX_MANIFESTS, "manifests"));
            }
            return Ok(Self::Index(manifests));
        }
        let config =
            text.config.ok_or_else(|| Error::invalid("invalid manifest: no configuration"))?;
        if text.layers.len() > MAX_LAYERS {
            return Err(too_many("manifest", MAX_LAYERS, "layers"));
        }
        let manifest = Manifest { config, layers: text.layers };
        manifest.check()?;
        Ok(Self::Manifest(Box::new(manifest)))
    }
}

impl Manifest {
    fn check(&self) -> Result<()> {
        size(&self.config, MAX_CONFIG)?;
        digest(&self.config)?;
        for layer in &self.layers {
            size(layer, MAX_LAYER)?;
            digest(layer)?;
        }
        Ok(())
    }

    /// Whether it is an image and not another artifact.
    ///
    /// # Errors
    ///
    /// `InvalidArgument` naming what it is.
    pub fn expect_image(&self) -> Result<()> {
        let kind = self.config.media_type.as_str();
        if kind.is_empty() || IMAGE_CONFIGS.contains(&kind) {
            return Ok(());
        }
        Err(Error::invalid(format!(
            "this is no image but an artifact with a configuration of type {kind:.100?}"
        )))
    }
}

fn too_many(what: &str, limit: usize, of: &str) -> Error {
    Error::invalid(format!("invalid {what}: more than {limit} {of}"))
}

/// The digest of what a descriptor names.
///
/// # Errors
///
/// `InvalidArgument`, also for algorithms other than SHA-256.
pub fn digest(descriptor: &OciDescriptor) -> Result<Digest> {
    descriptor.digest.parse().map_err(|error: Error| error.context("invalid manifest"))
}

/// The bytes of what a descriptor names.
///
/// # Errors
///
/// `InvalidArgument` for less than none and more than `limit`.
pub fn size(descriptor: &OciDescriptor, limit: u64) -> Result<u64> {
    u64::try_from(descriptor.size).ok().filter(|size| *size <= limit).ok_or_else(|| {
        let OciDescriptor { digest, size, .. } = descriptor;
        Error::invalid(format!("invalid manifest: {digest:.80} cannot have {size} bytes"))
    })
}

/// Whether a layer comes from elsewhere and is not to be distributed.
pub fn is_foreign(media_type: &str) -> bool {
    media_type.contains(".foreign.") || media_type.contains(".nondistributable.")
}

/// Whether a manifest of an index is about another one: provenance, a bill of materials.
pub fn is_attestation(descriptor: &OciDescriptor) -> bool {
    descriptor.annotations.contains_key("vnd.docker.reference.type")
        || descriptor.platform.as_ref().is_some_and(|platform| platform.os == "unknown")
}

/// The manifest of an index that suits `wanted` best: the very platform rather than one that runs
/// there too. An index within an index may have no platform and is taken last.
pub fn best<'a>(manifests: &'a [OciDescriptor], wanted: &Platform) -> Option<&'a OciDescriptor> {
    let of = |descriptor: &OciDescriptor| {
        let platform = descriptor.platform.as_ref()?;
        Some(Platform::new(&platform.os, &platform.architecture, &platform.variant))
    };
    let rank = |descriptor: &OciDescriptor| match of(descriptor) {
        Some(has) if has == *wanted => Some((0, 0)),
        Some(has) if wanted.accepts(&has) => {
            // The same architecture first, then the newest variant.
            let other = u8::from(has.architecture() != wanted.architecture());
            let level = has.variant().trim_start_matches('v').parse::<u8>().unwrap_or(0);
            Some((1 + other, u8::MAX - level))
        }
        Some(_) => None,
        None => Some((u8::MAX, 0)),
    };
    let images = manifests.iter().filter(|descriptor| !is_attestation(descriptor));
    images.filter_map(|d| Some((rank(d)?, d))).min_by_key(|(rank, _)| *rank).map(|(_, d)| d)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn index(platforms: &[&str]) -> Vec<OciDescriptor> {
        let manifest = |(n, text): (usize, &&str)| {
            let platform = Platform::parse(text).unwrap();
            let platform = gantry_api::image::OciPlatform {
                os: platform.os().to_owned(),
                architecture: platform.architecture().to_owned(),
                variant: platform.variant().to_owned(),
                ..Default::default()
            };
            OciDescriptor { size: n as i64, platform: Some(platform), ..Default::default() }
        };
        platforms.iter().enumerate().map(manifest).collect()
    }

    #[test]
    fn the_nearest_platform_is_taken() {
        let cases: [(&[&str], &str, Option<i64>); 6] = [
            (&["linux/arm64", "linux/amd64"], "linux/amd64", Some(1)),
            (&["linux/386", "linux/amd64"], "linux/amd64", Some(1)),
            (&["linux/386", "linux/arm64"], "linux/amd64", Some(0)),
            (&["linux/arm/v5", "linux/arm/v7", "linux/arm/v6"], "linux/arm/v7", Some(1)),
            (&["linux/arm/v5", "linux/arm/v6"], "linux/arm/v7", Some(1)),
            (&["linux/arm64"], "linux/amd64", None),
        ];
        for (has, wanted, expected) in cases {
            let found = index(has);
            let found = best(&found, &Platform::parse(wanted).unwrap()).map(|d| d.size);
            assert_eq!(found, expected, "{has:?} {wanted}");
        }
    }

    #[test]
    fn lies_are_refused() {
        let digest = format!("sha256:{}", "a".repeat(64));
        let layer = |size: i64, digest: &str| {
            format!(
                r#"{{"schemaVersion":2,"config":{{"digest":"sha256:{}","size":3}},
                "layers":[{{"digest":"{digest}","size":{size}}}]}}"#,
                "b".repeat(64)
            )
        };
        assert!(Document::parse(layer(5, &digest).as_bytes()).is_ok());
        let many = vec!["{}"; MAX_MANIFESTS + 1].join(",");
        for bad in [
            layer(-1, &digest),
            layer(i64::MAX, &digest),
            layer(5, "sha256:zz"),
            layer(5, "md5:aa"),
            r#"{"schemaVersion":1}"#.to_owned(),
            "{}".to_owned(),
            "[]".to_owned(),
            format!(r#"{{"manifests":[{many}]}}"#),
        ] {
            assert!(Document::parse(bad.as_bytes()).is_err(), "{bad:.200}");
        }
    }
}
