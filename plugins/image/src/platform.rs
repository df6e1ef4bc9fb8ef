//! Platforms: `linux/arm64/v8` and its JSON form.

use gantry_api::image::OciPlatform;
use gantry_sdk::{Error, Result};

/// An operating system and an architecture, in the registry's spelling.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Platform {
    os: String,
    architecture: String,
    variant: String,
}

impl Platform {
    /// From its parts.
    pub fn new(os: &str, architecture: &str, variant: &str) -> Self {
        let (architecture, implied) = match architecture.to_ascii_lowercase().as_str() {
            "x86_64" | "x86-64" => ("amd64".to_owned(), ""),
            "i386" => ("386".to_owned(), ""),
            "aarch64" => ("arm64".to_owned(), ""),
            "armhf" => ("arm".to_owned(), "v7"),
            "armel" => ("arm".to_owned(), "v6"),
            other => (other.to_owned(), ""),
        };
        let variant = if variant.is_empty() { implied } else { variant };
        // These are what no variant means.
        let variant = match (architecture.as_str(), variant) {
            ("arm64", "8" | "v8") | ("amd64", "v1") => "",
            _ => variant,
        };
        Self { os: os.to_ascii_lowercase(), architecture, variant: variant.to_owned() }
    }

    /// The one this daemon runs on.
    pub fn host() -> Self {
        let architecture = match std::env::consts::ARCH {
            "x86" => "386",
            "powerpc64" => "ppc64le",
            "loongarch64" => "loong64",
            other => other,
        };
        Self::new("linux", architecture, "")
    }

    /// Operating system.
    pub fn os(&self) -> &str {
        &self.os
    }

    /// Architecture.
    pub fn architecture(&self) -> &str {
        &self.architecture
    }

    /// Variant; empty for the usual one.
    pub fn variant(&self) -> &str {
        &self.variant
    }

    /// Parses `os[/arch[/variant]]` or a known architecture alone.
    ///
    /// # Errors
    ///
    /// `InvalidArgument`.
    pub fn parse(text: &str) -> Result<Self> {
        let word = |part: &&str| {
            !part.is_empty()
                && part
                    .bytes()
                    .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
        };
        let parts: Vec<&str> = text.split('/').collect();
        if !parts.iter().all(word) {
            return Err(Error::invalid(format!("{text:.80?} is an invalid component of platform")));
        }
        let host = Self::host();
        match parts.as_slice() {
            ["linux"] => Ok(Self::new("linux", &host.architecture, &host.variant)),
            [arch] if is_architecture(arch) => Ok(Self::new("linux", arch, "")),
            [os, arch] => Ok(Self::new(os, arch, "")),
            [os, arch, variant] => Ok(Self::new(os, arch, variant)),
            _ => Err(Error::invalid(format!("cannot parse platform specifier {text:.80?}"))),
        }
    }

    /// Parses the JSON form that requests carry.
    ///
    /// # Errors
    ///
    /// `InvalidArgument` with the reference engine's texts.
    pub fn parse_json(text: &str) -> Result<Self> {
        let platform: OciPlatform = gantry_api::json::from_slice(text.as_bytes())
            .map_err(|e| Error::invalid(format!("failed to parse platform: {e}")))?;
        let optional = !platform.variant.is_empty()
            || !platform.os_version.is_empty()
            || !platform.os_features.is_empty();
        if platform.os.is_empty() && platform.architecture.is_empty() && optional {
            return Err(Error::invalid(
                "optional platform fields provided, but OS and Architecture are missing",
            ));
        }
        if platform.os.is_empty() || platform.architecture.is_empty() {
            return Err(Error::invalid("both OS and Architecture must be provided"));
        }
        Ok(Self::new(&platform.os, &platform.architecture, &platform.variant))
    }

    /// Whether an image for `image` is what was asked for: the same, or one that runs there
    /// without emulation.
    pub fn accepts(&self, image: &Self) -> bool {
        self.distance(image).is_some()
    }

    /// How far an image for `image` is from what was asked for: 0 for the same; None if it does not
    /// run there without emulation.
    pub fn distance(&self, image: &Self) -> Option<u32> {
        /// Another architecture is further away than any variant.
        const OTHER: u32 = 1000;
        if self.os != image.os {
            return None;
        }
        match (self.architecture.as_str(), image.architecture.as_str()) {
            ("amd64", "386") => return Some(OTHER),
            ("arm64", "arm") => {
                // The newer the variant, the better; without one it is the seventh.
                let variant = if image.variant.is_empty() { "v7" } else { &image.variant };
                return Some(OTHER + 10 - level(variant).unwrap_or(0).min(10));
            }
            (wanted, found) if wanted != found => return None,
            _ => {}
        }
        if self.variant == image.variant {
            return Some(0);
        }
        match (level(&self.variant), level(&image.variant)) {
            (Some(wanted), Some(found)) if found <= wanted => Some(wanted - found),
            _ if image.variant.is_empty() => Some(OTHER / 2),
            _ => None,
        }
    }
}

/// The number of a variant.
fn level(variant: &str) -> Option<u32> {
    variant.strip_prefix('v').unwrap_or(variant).parse().ok()
}

fn is_architecture(text: &str) -> bool {
    let known = [
        "amd64", "x86_64", "x86-64", "386", "i386", "arm64", "aarch64", "arm", "armhf", "armel",
        "ppc64le", "s390x", "riscv64", "loong64", "mips64le",
    ];
    known.contains(&text)
}

impl std::fmt::Display for Platform {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        if !self.variant.is_empty() {
            write!(f, "/{}", self.variant)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn aliases_and_fallbacks() {
        let cases = [
            ("linux/amd64", "linux/x86_64", true),
            ("linux/arm64", "linux/arm64/v8", true),
            ("linux/arm/v7", "linux/arm/v6", true),
            ("linux/arm/v6", "linux/arm/v7", false),
            ("linux/amd64", "linux/386", true),
            ("linux/amd64", "linux/arm64", false),
            ("linux/amd64", "windows/amd64", false),
        ];
        for (wanted, image, accepted) in cases {
            let (wanted, image) =
                (Platform::parse(wanted).unwrap(), Platform::parse(image).unwrap());
            assert_eq!(wanted.accepts(&image), accepted, "{wanted} {image}");
        }
        let arm = Platform::parse("linux/arm/v7").unwrap();
        let distance = |image: &str| arm.distance(&Platform::parse(image).unwrap());
        assert!(distance("linux/arm/v7") < distance("linux/arm/v6"));
        assert!(distance("linux/arm/v6") < distance("linux/arm"));
        assert!(Platform::parse("linux/a$").is_err());
        assert!(Platform::parse_json(r#"{"variant":"v7"}"#).is_err());
        assert!(Platform::parse_json(r#"{"os":"linux","architecture":"arm"}"#).is_ok());
    }
}
