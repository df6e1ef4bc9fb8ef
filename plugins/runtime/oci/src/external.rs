//! Runtime programs with runc's command line, as `runtimes` in the configuration names them.

use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};

use gantry_sdk::kinds::networks::SandboxNs;
use gantry_sdk::kinds::runtime::{Launch, RuntimeInfo};
use gantry_sdk::{Error, Labels, Result};
use gantry_shim_protocol::{
    External as Wire, FdIndex, LaunchHead, Namespace, NamespaceMode, Namespaces, TargetKind,
};
use gantry_sys::cgroup::{Group, Layout, Plan};
use gantry_sys::path::{Durability, replace};
use oci_spec::runtime as oci;
use serde::Deserialize;

use crate::container::wire_stdio;
use crate::native::wire_log;
use crate::shim::Shim;
use crate::sources::Sources;

/// Where the tiny init is in a container that an external runtime starts.
const INIT_PATH: &str = "/sbin/docker-init";

/// A program in place of the built-in core.
#[derive(Clone, Debug)]
pub(crate) struct External {
    /// The program.
    pub(crate) path: String,
    /// Arguments before the subcommand.
    pub(crate) args: Vec<String>,
    /// Directory for the runtime's own state.
    pub(crate) root: PathBuf,
}

/// A runtime as `daemon.json` has it.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(crate) struct Config {
    /// The program, a path or a name in `PATH`.
    pub(crate) path: String,
    /// Arguments before the subcommand.
    pub(crate) runtime_args: Vec<String>,
    /// A containerd shim; not supported.
    pub(crate) runtime_type: String,
    /// Its options; not supported.
    pub(crate) options: serde_json::Map<String, serde_json::Value>,
}

/// A bundle that is ready, and what the shim is told.
#[derive(Debug)]
pub(crate) struct Prepared {
    pub(crate) head: LaunchHead,
}

impl External {
    /// Takes a configured runtime.
    ///
    /// # Errors
    ///
    /// `InvalidArgument` naming what is wrong with it.
    pub(crate) fn configured(name: &str, config: &Config, root: &Path) -> Result<Self> {
        let refuse = |why: &str| Error::invalid(format!("runtime {name}: {why}"));
        if !config.runtime_type.is_empty() || !config.options.is_empty() {
            return Err(refuse("runtimeType and options (containerd shims) are not supported"));
        }
        if config.path.is_empty() {
            return Err(refuse("path is missing"));
        }
        let path = find_program(&config.path)
            .ok_or_else(|| refuse(&format!("{} is not an executable file", config.path)))?;
        let path = path.to_str().ok_or_else(|| refuse("its path is not text"))?.to_owned();
        Ok(Self { path, args: config.runtime_args.clone(), root: root.join(name) })
    }

    /// Writes the bundle. Blocks.
    pub(crate) fn prepare(
        &self,
        launch: &Launch,
        sources: &Sources,
        layout: &Layout,
    ) -> Result<Prepared> {
        // Runtimes refuse a root whose path has a link in it, as `/var/run` is one.
        let run_dir = std::fs::canonicalize(&launch.run_dir)
            .map_err(|error| Error::io("resolve", launch.run_dir.display(), error))?;
        let bundle = run_dir.join("bundle");
        let text = |path: &Path| {
            path.to_str().map(str::to_owned).ok_or_else(|| Error::invalid("a path is not text"))
        };
        make_dir(&bundle)?;
        make_dir(&bundle.join("rootfs"))?;
        make_dir(&bundle.join("mounts"))?;
        make_dir(&self.root)?;
        let mut mounts: Vec<(FdIndex, String)> = vec![(0, text(&bundle.join("rootfs"))?)];
        for (at, tree) in &sources.trees {
            let place = bundle.join("mounts").join(at.to_string());
            match tree.kind {
                TargetKind::Directory => make_dir(&place)?,
                TargetKind::File => std::fs::write(&place, "")
                    .map_err(|error| Error::io("make", place.display(), error))?,
            }
            mounts.push((tree.index, text(&place)?));
        }
        let spec = self.rewrite(launch, sources, &bundle)?;
        let json = serde_json::to_vec(&spec)
            .map_err(|error| Error::invalid("bad specification").caused_by(error))?;
        replace(&bundle.join("config.json"), &json, Durability::Volatile)
            .map_err(|error| Error::internal("cannot write the bundle", error))?;
        let linux = launch.spec.linux().as_ref();
        let path = linux.and_then(|linux| linux.cgroups_path().clone());
        let path = path.unwrap_or_else(|| Path::new("gantry").join(&launch.id));
        let mut group = Group::new(layout, &path)
            .map_err(|error| Error::invalid("bad cgroupsPath").caused_by(error))?;
        let unmount = self.in_the_way(layout)?;
        group.dirs.retain(|dir| !unmount.iter().any(|path| dir.mount == Path::new(path)));
        let external = Wire {
            binary: self.path.clone(),
            args: self.args.clone(),
            root: text(&self.root)?,
            bundle: text(&bundle)?,
            run_dir: text(&run_dir)?,
            mounts,
            unmount,
        };
        let own = |kind: oci::LinuxNamespaceType, wire: Namespace| {
            let all = linux.and_then(|linux| linux.namespaces().as_ref());
            let has =
                all.is_some_and(|all| all.iter().any(|it| it.typ() == kind && it.path().is_none()));
            has.then_some((wire, NamespaceMode::New))
        };
        let list = [
            own(oci::LinuxNamespaceType::Pid, Namespace::Pid),
            own(oci::LinuxNamespaceType::User, Namespace::User),
        ];
        let head = LaunchHead {
            id: launch.id.clone(),
            namespaces: Namespaces { list: list.into_iter().flatten().collect() },
            id_maps: None,
            group,
            plan: Plan::default(),
            oom_score_adj: None,
            stdio: wire_stdio(launch.stdio),
            log: wire_log(&launch.log)?,
            init: false,
            attach: Vec::new(),
            external: Some(external),
        };
        Ok(Prepared { head })
    }

    /// The specification with paths in place of descriptors.
    fn rewrite(&self, launch: &Launch, sources: &Sources, bundle: &Path) -> Result<oci::Spec> {
        let mut spec = (*launch.spec).clone();
        let readonly = spec.root().as_ref().and_then(|root| root.readonly()).unwrap_or(false);
        let mut root = oci::Root::default();
        root.set_path(bundle.join("rootfs")).set_readonly(Some(readonly));
        spec.set_root(Some(root));
        let mut mounts = spec.mounts().clone().unwrap_or_default();
        for (at, mount) in mounts.iter_mut().enumerate() {
            if sources.trees.contains_key(&at) {
                mount.set_source(Some(bundle.join("mounts").join(at.to_string())));
                let mut options = mount.options().clone().unwrap_or_default();
                if !options.iter().any(|option| option == "bind" || option == "rbind") {
                    options.insert(0, "rbind".to_owned());
                }
                mount.set_options(Some(options)).set_typ(Some("bind".to_owned()));
            }
        }
        if launch.init {
            mounts.push(init_mount(bundle)?);
        }
        spec.set_mounts(Some(mounts));
        if let Some(process) = spec.process_mut() {
            process.set_terminal(Some(launch.stdio.tty));
            if launch.init {
                let program = process.args().clone().unwrap_or_default();
                let args = [INIT_PATH.to_owned(), "--".to_owned()].into_iter().chain(program);
                process.set_args(Some(args.collect()));
            }
        }
        if let Some(linux) = spec.linux_mut()
            && let Some(namespaces) = linux.namespaces_mut()
        {
            join_network(namespaces, &launch.netns);
        }
        Ok(spec)
    }

    /// crun refuses a machine with v1 and v2 side by side; in the shim's mount namespace the v2 part
    /// can be taken out of its sight.
    fn in_the_way(&self, layout: &Layout) -> Result<Vec<String>> {
        let is_crun = Path::new(&self.path)
            .file_name()
            .is_some_and(|name| name.to_string_lossy().contains("crun"));
        match &layout.v2 {
            Some(unified) if is_crun && !layout.is_unified() => {
                let path = unified.mount.to_str();
                let path = path.ok_or_else(|| Error::invalid("a path is not text"))?;
                Ok(vec![path.to_owned()])
            }
            _ => Ok(Vec::new()),
        }
    }

    /// Facts for `/info`.
    pub(crate) fn describe(&self) -> RuntimeInfo {
        let status = Labels::from([("args".to_owned(), self.args.join(" "))]);
        RuntimeInfo { path: self.path.clone(), version: String::new(), status }
    }
}

/// The runtime opens the namespace while this daemon holds it open, and keeps it by the container.
fn join_network(namespaces: &mut Vec<oci::LinuxNamespace>, netns: &SandboxNs) {
    use std::os::fd::AsRawFd;
    let is_network = |it: &oci::LinuxNamespace| it.typ() == oci::LinuxNamespaceType::Network;
    match netns {
        SandboxNs::Host => namespaces.retain(|it| !is_network(it)),
        SandboxNs::Ready(fd) => {
            let path = format!("/proc/{}/fd/{}", std::process::id(), fd.as_raw_fd());
            for namespace in namespaces.iter_mut().filter(|it| is_network(it)) {
                namespace.set_path(Some(PathBuf::from(&path)));
            }
        }
    }
}

/// Puts the tiny init into the bundle, and says how it comes into the container.
fn init_mount(bundle: &Path) -> Result<oci::Mount> {
    let file = bundle.join("docker-init");
    std::fs::write(&file, Shim::bytes())
        .and_then(|()| std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o755)))
        .map_err(|error| Error::io("write", file.display(), error))?;
    let mut mount = oci::Mount::default();
    mount
        .set_destination(PathBuf::from(INIT_PATH))
        .set_typ(Some("bind".to_owned()))
        .set_source(Some(file))
        .set_options(Some(vec!["bind".to_owned(), "ro".to_owned()]));
    Ok(mount)
}

fn make_dir(path: &Path) -> Result<()> {
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o711)
        .create(path)
        .map_err(|error| Error::io("make", path.display(), error))
}

fn find_program(name: &str) -> Option<PathBuf> {
    let runs = |path: &PathBuf| {
        path.metadata().is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
    };
    if name.contains('/') {
        return Some(PathBuf::from(name)).filter(runs);
    }
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|dir| dir.join(name)).find(runs)
}
