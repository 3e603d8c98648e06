// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause

//! Names of containers, from the files that runtimes keep about them.
//!
//! All of it is taken for hostile: a container that broke out, or a user whose containers have no
//! root, may have put anything there. So nothing is opened through a link, nothing but regular
//! files is opened at all, nothing blocks, and neither size nor depth is without limit.

use std::collections::HashMap;
use std::fs;
use std::fs::File;
use std::fs::OpenOptions;
use std::io::Read as _;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::path::PathBuf;

use nix::fcntl::OFlag;
use nix::fcntl::OpenHow;
use nix::fcntl::ResolveFlag;
use nix::fcntl::openat2;
use serde::Deserialize;

use crate::container::Container;
use crate::container::Place;
use crate::container::Runtime;

/// The description of one container; real ones have some ten kilobytes.
const ONE: u64 = 1 << 20;
/// The list of all containers of a store.
const ALL: u64 = 8 << 20;
/// Longer names are nobody's.
const LONGEST: usize = 255;
/// Namespaces of containerd that are looked through.
const NAMESPACES: usize = 64;

/// Where runtimes keep their files.
pub struct Bundles {
    docker: Vec<PathBuf>,
    containerd: Vec<PathBuf>,
    /// Of CRI-O and podman, as they are while containers run, and for good.
    stores: Vec<PathBuf>,
    /// Whether they are a user's own, who may have mounted anything there.
    of_user: bool,
}

/// The directories of a store, one for each way to keep layers.
const DRIVERS: [&str; 4] =
    ["overlay-containers", "vfs-containers", "btrfs-containers", "zfs-containers"];

impl Bundles {
    /// Those of the machine.
    pub fn of_machine() -> Self {
        let moved = read_below(Path::new("/etc/docker"), "daemon.json", ONE, false)
            .and_then(|text| serde_json::from_slice::<Daemon>(&text).ok())
            .and_then(|daemon| daemon.data_root)
            .map(PathBuf::from);
        Self {
            docker: moved.into_iter().chain(["/var/lib/docker".into()]).collect(),
            containerd: ["/run/containerd", "/run/k3s/containerd"].map(PathBuf::from).into(),
            stores: ["/run/containers/storage", "/var/lib/containers/storage"]
                .map(PathBuf::from)
                .into(),
            of_user: false,
        }
    }

    /// Those of a user whose containers run without root; `None` when there is no such user.
    pub fn of_user(uid: u32) -> Option<Self> {
        let passwd = fs::read_to_string("/etc/passwd").ok()?;
        let home = PathBuf::from(home_of(&passwd, uid)?);
        let share = |rest: &str| home.join(".local/share").join(rest);
        Some(Self {
            docker: vec![share("docker")],
            containerd: Vec::new(),
            stores: vec![
                PathBuf::from(format!("/run/user/{uid}/containers")),
                share("containers/storage"),
            ],
            of_user: true,
        })
    }

    /// What the files tell about a container.
    pub fn describe(&self, place: &Place) -> Container {
        let mut found =
            Container { id: place.id.clone(), name: None, runtime: place.runtime, pod: None };
        match place.runtime {
            Some(Runtime::Lxc | Runtime::Nspawn) => found.name = Some(place.id.clone()),
            Some(Runtime::Docker) => self.docker(&mut found),
            Some(Runtime::Containerd) => self.containerd(&mut found),
            Some(Runtime::Crio | Runtime::Podman) => self.store(&mut found),
            None => {
                self.docker(&mut found);
                if found.name.is_none() {
                    self.containerd(&mut found);
                }
                if found.name.is_none() {
                    self.store(&mut found);
                }
            }
        }
        found
    }

    fn docker(&self, found: &mut Container) {
        let path = format!("containers/{}/config.v2.json", found.id);
        for root in &self.docker {
            let Some(config) = self.parse::<DockerConfig>(root, &path, ONE) else { continue };
            let labels = config.config.and_then(|inner| inner.labels).unwrap_or_default();
            found.runtime.get_or_insert(Runtime::Docker);
            found.pod = pod_of(&labels);
            let own = config.name.map(|name| name.trim_start_matches('/').to_string());
            found.name = kept(labels.get(KUBE_NAME)).or_else(|| kept(own.as_ref()));
            return;
        }
    }

    fn containerd(&self, found: &mut Container) {
        for root in &self.containerd {
            let tasks = root.join("io.containerd.runtime.v2.task");
            let Ok(namespaces) = fs::read_dir(&tasks) else { continue };
            for namespace in namespaces.flatten().take(NAMESPACES) {
                let Ok(namespace) = namespace.file_name().into_string() else { continue };
                let path = format!("{namespace}/{}/config.json", found.id);
                let Some(spec) = self.parse::<Spec>(&tasks, &path, ONE) else { continue };
                found.runtime.get_or_insert(Runtime::Containerd);
                self.annotated(found, &spec);
                return;
            }
        }
    }

    fn store(&self, found: &mut Container) {
        for root in &self.stores {
            for driver in DRIVERS {
                let path = format!("{driver}/{}/userdata/config.json", found.id);
                if found.name.is_none()
                    && let Some(spec) = self.parse::<Spec>(root, &path, ONE)
                {
                    self.annotated(found, &spec);
                }
                for list in ["containers.json", "volatile-containers.json"] {
                    if found.name.is_some() {
                        return;
                    }
                    let path = format!("{driver}/{list}");
                    let Some(all) = self.parse::<Vec<Stored>>(root, &path, ALL) else { continue };
                    let one = all.into_iter().find(|stored| stored.id == found.id);
                    let names = one.and_then(|stored| stored.names).unwrap_or_default();
                    found.name = kept(names.first());
                }
            }
        }
    }

    /// What the container's specification says about itself.
    fn annotated(&self, found: &mut Container, spec: &Spec) {
        let Some(notes) = &spec.annotations else { return };
        found.pod = pod_of(notes);
        let names = [KUBE_NAME, "io.kubernetes.cri.container-name", "nerdctl/name"];
        found.name = names.iter().find_map(|name| kept(notes.get(*name)));
        match notes.get("io.container.manager").map(String::as_str) {
            Some("libpod") => found.runtime = Some(Runtime::Podman),
            Some("cri-o") => found.runtime = Some(Runtime::Crio),
            _ => {}
        }
    }

    fn parse<T: for<'de> Deserialize<'de>>(
        &self,
        root: &Path,
        path: &str,
        limit: u64,
    ) -> Option<T> {
        // What is not asked for is skipped without recursion and without being kept.
        serde_json::from_slice(&read_below(root, path, limit, self.of_user)?).ok()
    }
}

const KUBE_NAME: &str = "io.kubernetes.container.name";

/// Only what is asked for is kept of a file.
#[derive(Deserialize)]
struct Daemon {
    #[serde(rename = "data-root")]
    data_root: Option<String>,
}

#[derive(Deserialize)]
struct DockerConfig {
    #[serde(rename = "Name")]
    name: Option<String>,
    #[serde(rename = "Config")]
    config: Option<DockerInner>,
}

#[derive(Deserialize)]
struct DockerInner {
    #[serde(rename = "Labels")]
    labels: Option<HashMap<String, String>>,
}

#[derive(Deserialize)]
struct Spec {
    annotations: Option<HashMap<String, String>>,
}

#[derive(Deserialize)]
struct Stored {
    id: String,
    names: Option<Vec<String>>,
}

fn kept(text: Option<&String>) -> Option<String> {
    text.filter(|text| !text.is_empty() && text.len() <= LONGEST).cloned()
}

/// `NAMESPACE/NAME`, from the notes of kubelet, of containerd or of CRI-O.
fn pod_of(notes: &HashMap<String, String>) -> Option<String> {
    let either = |names: [&str; 2]| names.iter().find_map(|name| kept(notes.get(*name)));
    let name = either(["io.kubernetes.pod.name", "io.kubernetes.cri.sandbox-name"])?;
    let namespace = either(["io.kubernetes.pod.namespace", "io.kubernetes.cri.sandbox-namespace"])?;
    Some(format!("{namespace}/{name}"))
}

fn home_of(passwd: &str, uid: u32) -> Option<&str> {
    passwd.lines().find_map(|line| {
        let mut parts = line.split(':').skip(2);
        let own = parts.next()?.parse() == Ok(uid);
        own.then(|| parts.nth(2)).flatten().filter(|home| home.starts_with('/'))
    })
}

/// Reads a regular file below a directory, of at most `limit` bytes. The directory itself may be
/// a link, the administrator's; nothing below it. With `one_mount` nothing that is mounted there
/// is looked into, as a file system of the user's own that answers when it pleases.
fn read_below(root: &Path, path: &str, limit: u64, one_mount: bool) -> Option<Vec<u8>> {
    let directory = OpenOptions::new()
        .read(true)
        .custom_flags((OFlag::O_PATH | OFlag::O_DIRECTORY).bits())
        .open(root)
        .ok()?;
    let mut resolve = ResolveFlag::RESOLVE_BENEATH
        | ResolveFlag::RESOLVE_NO_SYMLINKS
        | ResolveFlag::RESOLVE_NO_MAGICLINKS;
    if one_mount {
        resolve |= ResolveFlag::RESOLVE_NO_XDEV;
    }
    // First only the place: opening a device or a FIFO may already do something.
    let flags = OFlag::O_PATH | OFlag::O_CLOEXEC | OFlag::O_NOFOLLOW;
    let place = openat2(&directory, path, OpenHow::new().flags(flags).resolve(resolve)).ok()?;
    let place = File::from(place);
    let metadata = place.metadata().ok()?;
    if !metadata.is_file() || metadata.len() > limit {
        return None;
    }
    let file = OpenOptions::new()
        .read(true)
        .custom_flags((OFlag::O_NONBLOCK | OFlag::O_NOCTTY).bits())
        .open(format!("/proc/self/fd/{}", place.as_raw_fd()))
        .ok()?;
    let mut text = Vec::with_capacity(usize::try_from(metadata.len()).ok()?);
    // It may grow while it is read.
    file.take(limit + 1).read_to_end(&mut text).ok()?;
    (text.len() as u64 <= limit).then_some(text)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use nix::sys::stat::Mode;
    use nix::unistd::mkfifo;

    use super::*;

    const ID: &str = "4c01db0b339c8f5d2b0f8e3a7d6c5b4a39281706f5e4d3c2b1a0998877665544";

    struct Root(PathBuf);

    impl Root {
        fn new(name: &str) -> Self {
            let path =
                std::env::temp_dir().join(format!("bpfscope-bundle-{}-{name}", std::process::id()));
            fs::create_dir_all(&path).expect("directory");
            Self(path)
        }

        fn write(&self, path: &str, text: &str) -> PathBuf {
            let path = self.0.join(path.replace("ID", ID));
            fs::create_dir_all(path.parent().expect("a parent")).expect("directory");
            fs::write(&path, text).expect("write");
            path
        }

        fn bundles(&self) -> Bundles {
            Bundles {
                docker: vec![self.0.join("docker")],
                containerd: vec![self.0.join("containerd")],
                stores: vec![self.0.join("run"), self.0.join("store")],
                of_user: false,
            }
        }

        fn describe(&self, runtime: Option<Runtime>) -> Container {
            self.bundles().describe(&Place { runtime, id: ID.into() })
        }
    }

    impl Drop for Root {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    const DOCKER: &str = "docker/containers/ID/config.v2.json";
    const CONFIG: &str = r#"{"ID":"x","Name":"/web","Config":{"Labels":{"a":"b"},"Env":["X=1"]}}"#;

    #[test]
    fn each_runtime_tells_names() {
        let root = Root::new("docker");
        assert_eq!(root.describe(Some(Runtime::Docker)).name, None);
        root.write(DOCKER, CONFIG);
        assert_eq!(root.describe(Some(Runtime::Docker)).name.as_deref(), Some("web"));
        let found = root.describe(None);
        assert_eq!((found.runtime, found.name.as_deref()), (Some(Runtime::Docker), Some("web")));
        let labels = r#"{"Name":"/k8s_app","Config":{"Labels":{
            "io.kubernetes.container.name":"app","io.kubernetes.pod.name":"p",
            "io.kubernetes.pod.namespace":"shop"}}}"#;
        root.write(DOCKER, labels);
        let found = root.describe(Some(Runtime::Docker));
        assert_eq!((found.name.as_deref(), found.pod.as_deref()), (Some("app"), Some("shop/p")));

        let root = Root::new("containerd");
        let spec = r#"{"ociVersion":"1.0","process":{"args":["a"]},"annotations":{
            "io.kubernetes.cri.container-name":"app","io.kubernetes.cri.sandbox-name":"p",
            "io.kubernetes.cri.sandbox-namespace":"shop"}}"#;
        let tasks = "containerd/io.containerd.runtime.v2.task";
        fs::create_dir_all(root.0.join(tasks).join("default")).expect("namespace");
        root.write(&format!("{tasks}/k8s.io/ID/config.json"), spec);
        let found = root.describe(Some(Runtime::Containerd));
        assert_eq!((found.name.as_deref(), found.pod.as_deref()), (Some("app"), Some("shop/p")));
        assert_eq!(root.describe(None).runtime, Some(Runtime::Containerd));

        let root = Root::new("store");
        let spec = r#"{"annotations":{"io.container.manager":"cri-o",
            "io.kubernetes.container.name":"app","io.kubernetes.pod.name":"p",
            "io.kubernetes.pod.namespace":"shop"}}"#;
        root.write("run/overlay-containers/ID/userdata/config.json", spec);
        let found = root.describe(None);
        assert_eq!(
            (found.runtime, found.name.as_deref(), found.pod.as_deref()),
            (Some(Runtime::Crio), Some("app"), Some("shop/p"))
        );
        let root = Root::new("podman");
        let list = format!(r#"[{{"id":"other","names":["x"]}},{{"id":"{ID}","names":["db"]}}]"#);
        root.write("store/overlay-containers/containers.json", &list);
        assert_eq!(root.describe(Some(Runtime::Podman)).name.as_deref(), Some("db"));
        let found = Bundles::of_machine()
            .describe(&Place { runtime: Some(Runtime::Lxc), id: "web".into() });
        assert_eq!(found.name.as_deref(), Some("web"));
    }

    #[test]
    fn links_and_what_is_no_file_are_not_opened() {
        let root = Root::new("hostile");
        let secret = root.write("secret", CONFIG);
        let path = root.write(DOCKER, CONFIG);
        let name = || root.describe(Some(Runtime::Docker)).name;
        assert!(name().is_some());

        fs::remove_file(&path).expect("remove");
        symlink(&secret, &path).expect("link");
        assert_eq!(name(), None, "a link");
        fs::remove_file(&path).expect("remove");
        symlink("/etc/shadow", &path).expect("link");
        assert_eq!(name(), None, "a link to a secret");
        fs::remove_file(&path).expect("remove");

        // Would block for ever.
        mkfifo(&path, Mode::S_IRWXU).expect("fifo");
        assert_eq!(name(), None, "a fifo");
        fs::remove_file(&path).expect("remove");
        fs::create_dir(&path).expect("directory");
        assert_eq!(name(), None, "a directory");
        fs::remove_dir(&path).expect("remove");

        // The directory above it leads elsewhere.
        let elsewhere = root.write("elsewhere/config.v2.json", CONFIG);
        let above = path.parent().expect("a parent");
        fs::remove_dir(above).expect("remove");
        symlink(elsewhere.parent().expect("a parent"), above).expect("link");
        assert_eq!(name(), None, "a link above");
        // The administrator may have put the whole elsewhere.
        let moved = Root::new("moved");
        moved.write(DOCKER, CONFIG);
        let linked = Root::new("linked");
        symlink(moved.0.join("docker"), linked.0.join("docker")).expect("link");
        assert!(linked.describe(Some(Runtime::Docker)).name.is_some());
    }

    #[test]
    fn sizes_and_depths_have_limits() {
        let root = Root::new("sizes");
        let name = || root.describe(Some(Runtime::Docker)).name;
        let path = root.write(DOCKER, CONFIG);
        // Ten gigabytes that take no room.
        File::options().write(true).open(&path).expect("open").set_len(10 << 30).expect("length");
        assert_eq!(name(), None, "huge");
        let padded = |bytes: usize| format!("{CONFIG}{}", " ".repeat(bytes - CONFIG.len()));
        let limit = usize::try_from(ONE).expect("fits");
        root.write(DOCKER, &padded(limit));
        assert!(name().is_some(), "as large as can be");
        root.write(DOCKER, &padded(limit + 1));
        assert_eq!(name(), None, "a byte too large");

        // What is not asked for is skipped at any depth; what is asked for has none.
        let brackets = |depth: usize| format!("{}{}", "[".repeat(depth), "]".repeat(depth));
        let braces = |depth: usize| format!("{}1{}", "{\"a\":".repeat(depth), "}".repeat(depth));
        for deep in [brackets(500_000), braces(150_000)] {
            root.write(DOCKER, &format!(r#"{{"x":{deep},"Name":"/web"}}"#));
            assert!(name().is_some(), "deep");
            root.write(DOCKER, &format!(r#"{{"Name":"/web","Config":{{"Labels":{deep}}}}}"#));
            assert_eq!(name(), None, "deep where it must not be");
            root.write(DOCKER, &deep);
            assert_eq!(name(), None, "only deep");
        }
        for bad in ["", "{", &CONFIG[..30], "[]", "null", r#"{"Name":7}"#, "{\"Name\":\"\u{0}\"}"] {
            root.write(DOCKER, bad);
            assert_eq!(name(), None, "{bad}");
        }
        root.write(DOCKER, &format!(r#"{{"Name":"/{}"}}"#, "x".repeat(256)));
        assert_eq!(name(), None, "a long name");
        fs::write(&path, b"{\"Name\":\"/\xff\"}").expect("write");
        assert_eq!(name(), None, "not UTF-8");
    }

    #[test]
    fn homes() {
        let passwd = "root:x:0:0:root:/root:/bin/sh\nann:x:1000:1000::/home/ann:/bin/sh\nbad\n";
        assert_eq!((home_of(passwd, 1000), home_of(passwd, 1)), (Some("/home/ann"), None));
    }
}
