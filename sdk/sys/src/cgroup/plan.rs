//! What is to be done to set up a group, as data, and doing it.

use std::fs;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::bpf;
use crate::error::{Error, Result};

/// A plan of more steps than this was not made by this module.
const STEPS_MAX: usize = 4096;

/// Files of groups are at most a page.
const FILE_MAX: usize = 64 << 10;

/// Steps that create and limit a group, in order. Made by [`Group`](super::Group).
///
/// Plain data without privilege: whoever executes it must trust where it came from, since it names
/// files.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    /// The steps.
    pub steps: Vec<Step>,
}

/// One step of a plan.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Step {
    /// Make the directory unless it exists.
    MakeDir(PathBuf),
    /// v1: take `cpuset.cpus` and `cpuset.mems` over from the parent where they are empty; no process
    /// can join before.
    InheritCpuset(PathBuf),
    /// v2: pass these controllers on to the children, those that can be. Whether one that is needed is
    /// missing shows when its file is written.
    Enable {
        /// The parent directory.
        dir: PathBuf,
        /// Names of controllers.
        controllers: Vec<String>,
    },
    /// Write a value into a file.
    Write(Write),
    /// Write the first if its file exists, else the second: kernels differ in names.
    WriteEither(Write, Write),
    /// v2: let this program decide about devices, and no other one attached here before.
    Devices {
        /// The group's directory.
        dir: PathBuf,
        /// Instructions, each as in `struct bpf_insn`.
        program: Vec<u64>,
    },
}

/// A value for a file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Write {
    /// Absolute path of the file, which must exist.
    pub file: PathBuf,
    /// Written in one call.
    pub value: String,
    /// Whether `EINVAL` is no failure: a later step writes again what could not be set yet.
    pub may_be_early: bool,
}

impl Write {
    /// A write that must succeed.
    pub fn new(file: PathBuf, value: impl Into<String>) -> Self {
        Self { file, value: value.into(), may_be_early: false }
    }
}

impl Plan {
    /// Carries the plan out. Blocking, though each step takes microseconds.
    ///
    /// If a step fails, the directories that this call made are removed again and nothing else is
    /// undone; limits that were changed in an existing group stay changed.
    pub fn execute(&self) -> Result<()> {
        if self.steps.len() > STEPS_MAX {
            return Err(Error::refused("execute", "control-group plan", "too many steps"));
        }
        let mut made = Vec::new();
        let answer = self.steps.iter().try_for_each(|step| step.execute(&mut made));
        if answer.is_err() {
            for dir in made.iter().rev() {
                // The error that matters is the first; a directory that stays is found on removal.
                let _ = fs::remove_dir(dir);
            }
        }
        answer
    }
}

impl Step {
    fn execute<'a>(&'a self, made: &mut Vec<&'a Path>) -> Result<()> {
        match self {
            Self::MakeDir(dir) => match fs::create_dir(dir) {
                Ok(()) => {
                    made.push(dir);
                    Ok(())
                }
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
                Err(error) => Err(Error::at("make control group", dir, error)),
            },
            Self::InheritCpuset(dir) => inherit_cpuset(dir),
            Self::Enable { dir, controllers } => enable(dir, controllers),
            Self::Write(write) => write.execute(),
            Self::WriteEither(first, second) => {
                if first.file.exists() {
                    first.execute()
                } else {
                    second.execute()
                }
            }
            Self::Devices { dir, program } => bpf::replace_device_program(dir, program),
        }
    }
}

impl Write {
    fn execute(&self) -> Result<()> {
        match write_file(&self.file, &self.value) {
            Err(error) if self.may_be_early && error.kind() == io::ErrorKind::InvalidInput => {
                Ok(())
            }
            Err(error) => Err(self.explain(error)),
            Ok(()) => Ok(()),
        }
    }

    fn explain(&self, error: io::Error) -> Error {
        let detail = match error.kind() {
            io::ErrorKind::NotFound => {
                "this kernel or this group lacks the controller for it".into()
            }
            _ => format!("value {:?}", self.value),
        };
        Error::at("set", &self.file, error).with_detail(detail)
    }
}

/// Writes a value to an existing control file in one call.
pub(super) fn write_file(file: &Path, value: &str) -> io::Result<()> {
    // Without `O_CREAT`: a name that is not there must be an error whatever lies beneath.
    fs::OpenOptions::new().write(true).open(file)?.write_all(value.as_bytes())
}

/// Reads a control file.
pub(super) fn read_file(file: &Path) -> Result<String> {
    let bytes = crate::path::read_file_bounded(file, FILE_MAX)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

fn inherit_cpuset(dir: &Path) -> Result<()> {
    for name in ["cpuset.cpus", "cpuset.mems"] {
        let file = dir.join(name);
        if !read_file(&file)?.trim().is_empty() {
            continue;
        }
        let parent = dir.parent().unwrap_or(Path::new("/")).join(name);
        let value = read_file(&parent)?;
        write_file(&file, value.trim()).map_err(|error| Error::at("set", &file, error))?;
    }
    Ok(())
}

fn enable(dir: &Path, controllers: &[String]) -> Result<()> {
    let file = dir.join("cgroup.subtree_control");
    let enabled = read_file(&file)?;
    for controller in controllers {
        if !enabled.split_whitespace().any(|it| it == controller) {
            // One by one, for one that cannot be enabled must not keep the others out.
            let _ = write_file(&file, &format!("+{controller}"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Scratch;

    #[test]
    fn a_failing_step_removes_the_directories_that_were_made() {
        let dir = Scratch::new("cgroup-plan");
        dir.make("there");
        let at = |name: &str| dir.path().join(name);
        let plan = Plan {
            steps: vec![
                Step::MakeDir(at("there")),
                Step::MakeDir(at("there/new")),
                Step::MakeDir(at("there/new/newer")),
                Step::Write(Write::new(at("there/new/absent"), "1")),
            ],
        };
        let error = plan.execute().unwrap_err();
        assert!(error.to_string().contains("lacks the controller"), "{error}");
        assert!(at("there").exists() && !at("there/new").exists());
    }

    #[test]
    fn cpusets_are_inherited_where_empty_and_alternatives_are_chosen() {
        let dir = Scratch::new("cgroup-cpuset");
        for (name, content) in [
            ("cpuset.cpus", "0-3\n"),
            ("cpuset.mems", "0\n"),
            ("child/cpuset.cpus", "\n"),
            ("child/cpuset.mems", "1\n"),
        ] {
            dir.write(name, content.as_bytes());
        }
        let at = |name: &str| dir.path().join(name);
        let plan = Plan {
            steps: vec![
                Step::InheritCpuset(at("child")),
                Step::WriteEither(
                    Write::new(at("no"), "a"),
                    Write::new(at("child/cpuset.mems"), "b"),
                ),
            ],
        };
        plan.execute().unwrap();
        let read = |name: &str| std::fs::read_to_string(at(name)).unwrap();
        assert_eq!(read("child/cpuset.cpus"), "0-3");
        assert_eq!(read("child/cpuset.mems"), "b\n");
    }
}
