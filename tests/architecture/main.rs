//! Who may depend on whom, and who may name whom: the drawing in `kernel/ARCHITECTURE.md`, checked.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

/// Libraries that live beside the plugins that use them and are no plugins themselves.
const DOMAIN_LIBRARIES: [&str; 5] = [
    "gantry-archive",
    "gantry-erofs",
    "gantry-layer-dirs",
    "gantry-seccomp",
    "gantry-shim-protocol",
];

/// A binary that lives beside the plugin that starts it.
const SHIM: &str = "gantry-shim";

/// The plugin whose command is the test kit.
const KIT: &str = "gantry-kit";

/// What the user sees at the top of the tree, dot-files aside.
const TOP_LEVEL: [&str; 8] =
    ["Cargo.lock", "Cargo.toml", "LICENSE", "README.md", "kernel", "plugins", "sdk", "tests"];

/// Part of the top level from the day there are plugins in wasm.
const TOP_LEVEL_LATER: &str = "wit";

/// Where a crate stands in the drawing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Layer {
    Api,
    Sys,
    Sdk,
    Testkit,
    Kernel,
    Carrier,
    Daemon,
    Builtin,
    Library,
    Shim,
    Plugin,
    Tests,
}

#[derive(Debug)]
struct Crate {
    name: String,
    layer: Layer,
    /// Workspace crates it is built with.
    needs: Vec<String>,
    /// Workspace crates only its tests are built with.
    tests_need: Vec<String>,
}

impl Layer {
    fn of(name: &str, directory: &Path) -> Result<Self> {
        Ok(match name {
            "gantry-api" => Self::Api,
            "gantry-sys" => Self::Sys,
            "gantry-sdk" => Self::Sdk,
            "gantry-testkit" => Self::Testkit,
            "gantry-kernel" => Self::Kernel,
            "gantryd" => Self::Daemon,
            "gantry-builtin" => Self::Builtin,
            SHIM => Self::Shim,
            name if DOMAIN_LIBRARIES.contains(&name) => Self::Library,
            _ if directory.starts_with("kernel/carriers") => Self::Carrier,
            _ if directory.starts_with("plugins") => Self::Plugin,
            _ if directory.starts_with("tests") => Self::Tests,
            _ => anyhow::bail!("{name} in {} has no place in the drawing", directory.display()),
        })
    }

    /// Whether a crate of this layer may be built with one of `other`.
    fn may_need(self, other: Self) -> bool {
        match self {
            Self::Api | Self::Sys => false,
            Self::Sdk => matches!(other, Self::Api | Self::Sys),
            Self::Testkit | Self::Kernel => matches!(other, Self::Api | Self::Sys | Self::Sdk),
            Self::Carrier => matches!(other, Self::Api | Self::Sys | Self::Sdk),
            Self::Library => matches!(other, Self::Api | Self::Sys | Self::Sdk | Self::Library),
            Self::Shim => matches!(other, Self::Sys | Self::Library),
            Self::Plugin => matches!(other, Self::Api | Self::Sys | Self::Sdk | Self::Library),
            Self::Builtin => matches!(other, Self::Sdk | Self::Plugin),
            Self::Daemon => {
                let parts = matches!(other, Self::Kernel | Self::Carrier | Self::Builtin);
                parts || matches!(other, Self::Api | Self::Sys | Self::Sdk)
            }
            Self::Tests => true,
        }
    }

    /// Whether its tests may be built with one of `other` in addition.
    fn tests_may_need(self, other: Self) -> bool {
        self.may_need(other)
            || matches!(other, Self::Testkit | Self::Sdk)
            // The graph's golden test looks at the real list of plugins.
            || (self == Self::Daemon && other == Self::Plugin)
            // A plugin's tests may set up its real neighbours behind the SDK's traits.
            || (self == Self::Plugin && other == Self::Plugin)
            || (self == Self::Builtin && matches!(other, Self::Kernel | Self::Plugin))
    }
}

fn root() -> Result<PathBuf> {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR"));
    Ok(tests.parent().context("tests has no parent")?.to_owned())
}

fn crates() -> Result<BTreeMap<String, Crate>> {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version", "1", "--no-deps", "--offline"])
        .current_dir(root()?)
        .output()?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: Value = serde_json::from_slice(&output.stdout)?;
    let root = root()?;
    let mut all = BTreeMap::new();
    for package in metadata["packages"].as_array().context("no packages")? {
        let name = package["name"].as_str().context("no name")?.to_owned();
        let manifest = Path::new(package["manifest_path"].as_str().context("no path")?);
        let directory = manifest.parent().context("no directory")?.strip_prefix(&root)?;
        let (mut needs, mut tests_need) = (Vec::new(), Vec::new());
        for dependency in package["dependencies"].as_array().context("no dependencies")? {
            if dependency["path"].is_null() {
                continue;
            }
            let name = dependency["name"].as_str().context("no name")?.to_owned();
            let for_tests = dependency["kind"] == "dev";
            if for_tests { tests_need.push(name) } else { needs.push(name) }
        }
        let layer = Layer::of(&name, directory)?;
        all.insert(name.clone(), Crate { name, layer, needs, tests_need });
    }
    Ok(all)
}

#[test]
fn dependencies_point_one_way() -> Result<()> {
    let all = crates()?;
    let layer = |name: &String| all.get(name).map(|c| c.layer).context(name.clone());
    let mut wrong = Vec::new();
    for from in all.values() {
        for to in &from.needs {
            let is_kit = from.name == KIT && layer(to)? == Layer::Testkit;
            if !from.layer.may_need(layer(to)?) && !is_kit {
                wrong.push(format!("{} ({:?}) → {to} ({:?})", from.name, from.layer, layer(to)?));
            }
        }
        for to in &from.tests_need {
            if !from.layer.tests_may_need(layer(to)?) {
                wrong.push(format!("tests of {} → {to}", from.name));
            }
        }
    }
    assert!(wrong.is_empty(), "edges that the drawing does not have:\n  {}", wrong.join("\n  "));
    Ok(())
}

/// Only the list of built-ins and the tests name plugins.
#[test]
fn the_kernel_names_no_plugin() -> Result<()> {
    let all = crates()?;
    let mut names = Vec::new();
    for plugin in all.values().filter(|c| c.layer == Layer::Plugin) {
        names.push(plugin.name.clone());
        names.push(plugin.name.replace('-', "_"));
    }
    names.extend(plugin_ids()?.into_iter().map(|id| format!("\"{id}\"")));
    ensure!(names.len() > 20, "the plugins were not found: {names:?}");

    let root = root()?;
    let mut wrong = Vec::new();
    for file in sources(&root.join("kernel"))? {
        for (number, line) in production_lines(&std::fs::read_to_string(&file)?) {
            if let Some(name) = names.iter().find(|name| holds_word(line, name)) {
                let file = file.strip_prefix(&root)?.display();
                wrong.push(format!("{file}:{number} names {name}: {}", line.trim()));
            }
        }
    }
    assert!(wrong.is_empty(), "the kernel names plugins:\n  {}", wrong.join("\n  "));
    Ok(())
}

/// Ids with a dot, such as `storage.overlay2`, as the plugins' sources state them. Ids of one word
/// (`image`, `network`) are words of the API as well, so finding one in the kernel says nothing.
fn plugin_ids() -> Result<Vec<String>> {
    let mut ids = Vec::new();
    for file in sources(&root()?.join("plugins"))? {
        let text = std::fs::read_to_string(&file)?;
        ids.extend(text.split('"').skip(1).step_by(2).filter(|s| is_id(s)).map(str::to_owned));
    }
    ids.sort_unstable();
    ids.dedup();
    Ok(ids)
}

fn is_id(literal: &str) -> bool {
    let Some((kind, name)) = literal.split_once('.') else { return false };
    matches!(kind, "storage" | "network" | "log" | "volume" | "runtime")
        && !name.is_empty()
        && name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-')
}

/// The lines of a source file before its unit tests, numbered from 1.
fn production_lines(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let lines = text.lines().enumerate().map(|(index, line)| (index + 1, line));
    lines.take_while(|(_, line)| !line.starts_with("#[cfg(test)]"))
}

fn holds_word(line: &str, word: &str) -> bool {
    let part = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
    line.match_indices(word).any(|(start, _)| {
        !line[..start].ends_with(part) && !line[start + word.len()..].starts_with(part)
    })
}

fn sources(directory: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in directory.read_dir()? {
        let path = entry?.path();
        if path.is_dir() {
            found.extend(sources(&path)?);
        } else if path.extension().is_some_and(|e| e == "rs") {
            found.push(path);
        }
    }
    Ok(found)
}

#[test]
fn the_top_level_stays_as_it_is() -> Result<()> {
    let mut visible = Vec::new();
    for entry in root()?.read_dir()? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        if !name.starts_with('.') && name != TOP_LEVEL_LATER && name != "target" {
            visible.push(name);
        }
    }
    visible.sort_unstable();
    assert_eq!(visible, TOP_LEVEL);
    Ok(())
}

/// All `unsafe` is in one crate.
#[test]
fn unsafe_code_is_in_sys_only() -> Result<()> {
    let root = root()?;
    let mut wrong = Vec::new();
    for top in ["kernel", "plugins", "sdk", "tests"] {
        for file in sources(&root.join(top))? {
            let relative = file.strip_prefix(&root)?;
            if relative.starts_with("sdk/sys") {
                continue;
            }
            for (number, line) in production_lines(&std::fs::read_to_string(&file)?) {
                let code = line.split("//").next().unwrap_or_default().trim_start();
                if code.starts_with("unsafe ") || code.contains(concat!("allow(", "unsafe_code")) {
                    wrong.push(format!("{}:{number}", relative.display()));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "unsafe code outside gantry-sys:\n  {}", wrong.join("\n  "));
    Ok(())
}
