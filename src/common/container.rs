// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause

//! From a cgroup's path to the container, pod and systemd unit that it belongs to. No daemon is
//! asked: runtimes write who they are into the path.

use std::rc::Rc;

/// Digits of the ids that docker, containerd, CRI-O and podman give to containers.
const ID_DIGITS: usize = 64;
/// Digits of an id that stand for the whole where there is no name.
const SHORT: usize = 12;
/// Digits that `--container` needs at least to take them for the beginning of an id.
const PREFIX: usize = 4;

/// Who made a container.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Runtime {
    /// Docker.
    Docker,
    /// containerd without Docker: Kubernetes, nerdctl.
    Containerd,
    /// CRI-O.
    Crio,
    /// podman.
    Podman,
    /// LXC, LXD, Incus.
    Lxc,
    /// systemd-nspawn and what else registers with systemd-machined.
    Nspawn,
}

impl Runtime {
    /// Its name in the output.
    pub fn name(self) -> &'static str {
        match self {
            Self::Docker => "docker",
            Self::Containerd => "containerd",
            Self::Crio => "cri-o",
            Self::Podman => "podman",
            Self::Lxc => "lxc",
            Self::Nspawn => "systemd-nspawn",
        }
    }

    /// What stands before the id in a scope or directory.
    fn of_prefix(prefix: &str) -> Option<Self> {
        match prefix {
            "docker" => Some(Self::Docker),
            "cri-containerd" | "containerd" | "nerdctl" => Some(Self::Containerd),
            "crio" => Some(Self::Crio),
            "libpod" | "libpod-payload" => Some(Self::Podman),
            _ => None,
        }
    }
}

/// One container as a path names it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Place {
    /// Who made it; `None` where the path does not tell.
    pub runtime: Option<Runtime>,
    /// Its id; of LXC and systemd-nspawn, which have none, its name.
    pub id: String,
}

/// What a cgroup's path says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Parsed {
    /// The containers that it lies in, from the outermost on.
    pub containers: Vec<Place>,
    /// The pod's uid (Kubernetes) or id (podman).
    pub pod: Option<String>,
    /// The innermost systemd unit.
    pub unit: Option<String>,
    /// The user below whose slice it lies, and who may have made up the rest.
    pub user: Option<u32>,
}

fn is_id(text: &str) -> bool {
    text.len() == ID_DIGITS && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

/// What systemd makes of characters that unit names cannot have: `\x2d`.
fn unescape(text: &str) -> String {
    let mut out = Vec::new();
    let mut rest = text.as_bytes();
    while let [first, more @ ..] = rest {
        let code = more
            .strip_prefix(b"x")
            .and_then(|hex| hex.get(..2))
            .filter(|_| *first == b'\\')
            .and_then(|hex| u8::from_str_radix(std::str::from_utf8(hex).ok()?, 16).ok());
        match code {
            Some(byte) => {
                out.push(byte);
                rest = &more[3..];
            }
            None => {
                out.push(*first);
                rest = more;
            }
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

/// The container that a component of the path begins.
fn container(parent: &str, name: &str, next: &str) -> Option<Place> {
    let place = |runtime, id: &str| Some(Place { runtime, id: id.to_string() });
    // Processes that watch a container from outside.
    if name.contains("-conmon-") || (parent == "lxc.monitor" || name.starts_with("lxc.monitor.")) {
        return None;
    }
    if let Some(payload) = name.strip_prefix("lxc.payload.") {
        return place(Some(Runtime::Lxc), payload);
    }
    if matches!(parent, "lxc" | "lxc.payload") && !name.starts_with("lxc.") {
        return place(Some(Runtime::Lxc), name);
    }
    let machine = name
        .strip_prefix("systemd-nspawn@")
        .and_then(|rest| rest.strip_suffix(".service"))
        .or_else(|| name.strip_prefix("machine-")?.strip_suffix(".scope"));
    if let Some(machine) = machine {
        let machine = unescape(machine);
        // Virtual machines are registered like containers, and the supervisor is outside.
        if machine.starts_with("qemu-") || next == "supervisor" {
            return None;
        }
        return place(Some(Runtime::Nspawn), &machine);
    }
    if is_id(name) {
        return match parent {
            // The pod's directory; the container's is below it.
            "libpod_parent" => None,
            "docker" => place(Some(Runtime::Docker), name),
            _ => place(None, name),
        };
    }
    let stem = name.strip_suffix(".scope").unwrap_or(name);
    // The last is what containerd makes of a systemd path when it does not use systemd.
    let (prefix, id) = stem.rsplit_once('-').filter(|(_, id)| is_id(id)).or_else(|| {
        let (before, id) = stem.rsplit_once(':')?;
        is_id(id).then_some((before.rsplit(':').next()?, id))
    })?;
    // "machine-libpod_pod_ID.slice" and the like have another ending, and end up at None.
    place(Runtime::of_prefix(prefix), id)
}

/// The pod that a component of the path is of.
fn pod(parent: &str, name: &str) -> Option<String> {
    let kube = |uid: &str| -> Option<String> {
        let uid = uid.replace('_', "-");
        let valid = !uid.is_empty() && uid.bytes().all(|b| b.is_ascii_hexdigit() || b == b'-');
        valid.then_some(uid)
    };
    if matches!(parent, "kubepods" | "burstable" | "besteffort" | "guaranteed") {
        return kube(name.strip_prefix("pod")?);
    }
    let name = name.split(':').next()?;
    if let Some(slice) = name.strip_suffix(".slice") {
        if let Some((_, id)) = slice.rsplit_once("libpod_pod_") {
            return is_id(id).then(|| id.to_string());
        }
        return slice.contains("kubepods").then(|| kube(slice.rsplit_once("-pod")?.1))?;
    }
    (parent == "libpod_parent" && is_id(name)).then(|| name.to_string())
}

fn is_unit(name: &str) -> bool {
    const KINDS: [&str; 8] =
        ["service", "scope", "slice", "socket", "mount", "swap", "automount", "timer"];
    name.rsplit_once('.').is_some_and(|(stem, kind)| !stem.is_empty() && KINDS.contains(&kind))
}

/// Reads a path below the root of the v2 hierarchy. What is not UTF-8 is nobody's.
pub fn parse(path: &[u8]) -> Parsed {
    let mut parsed = Parsed::default();
    let names: Vec<&str> = path
        .split(|b| *b == b'/')
        .map(|name| std::str::from_utf8(name).unwrap_or_default())
        .filter(|name| !name.is_empty())
        .collect();
    for (i, name) in names.iter().enumerate() {
        let parent = if i == 0 { "" } else { names[i - 1] };
        let next = names.get(i + 1).copied().unwrap_or_default();
        if let Some(user) = name.strip_prefix("user-").and_then(|rest| rest.strip_suffix(".slice"))
            && parsed.containers.is_empty()
        {
            parsed.user = parsed.user.or_else(|| user.parse().ok());
        }
        if parsed.pod.is_none() && parsed.containers.is_empty() {
            parsed.pod = pod(parent, name);
        }
        if let Some(place) = container(parent, name, next) {
            parsed.containers.push(place);
        }
        if is_unit(name) {
            parsed.unit = Some((*name).to_string());
        }
    }
    parsed
}

/// What is known of a container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Container {
    /// Its id, or its name where it has no id.
    pub id: String,
    /// Its name; `None` where no file tells.
    pub name: Option<String>,
    /// Who made it, as far as known.
    pub runtime: Option<Runtime>,
    /// Its pod's name as `NAMESPACE/NAME`, where a file tells.
    pub pod: Option<String>,
}

impl Container {
    /// Its name, or the beginning of its id.
    pub fn shown(&self) -> &str {
        match &self.name {
            Some(name) => name,
            None if is_id(&self.id) => &self.id[..SHORT],
            None => &self.id,
        }
    }
}

/// Who a cgroup belongs to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Identity {
    /// The outermost container: the one that the machine itself knows of. What lies deeper was
    /// made, and named, by what runs in it.
    pub container: Option<Rc<Container>>,
    /// The pod: `NAMESPACE/NAME`, or its uid.
    pub pod: Option<String>,
    /// The systemd unit.
    pub unit: Option<String>,
}

/// What `--container` asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Selector {
    /// As it was given.
    pub text: String,
}

impl Selector {
    /// Parses a list, as `--container` takes it: names, `POD/NAME`, and beginnings of ids.
    ///
    /// # Errors
    /// A sentence, for what can be neither.
    pub fn list(text: &str) -> Result<Vec<Self>, String> {
        text.split(',')
            .map(str::trim)
            .map(|word| {
                let parts: Vec<&str> = word.split('/').collect();
                let valid = parts.len() <= 2
                    && parts.iter().all(|part| {
                        part.starts_with(|c: char| c.is_alphanumeric() || c == '_')
                            && part.chars().all(|c| c.is_alphanumeric() || "_.-".contains(c))
                    });
                if !valid {
                    return Err(format!("'{word}' is neither a container's name nor its id"));
                }
                Ok(Self { text: word.to_string() })
            })
            .collect()
    }

    /// Whether it means this id, or the container of this name where there are no ids.
    pub fn means_id(&self, id: &str) -> bool {
        let prefix = is_id(id) && self.text.len() >= PREFIX && id.starts_with(&self.text);
        prefix || id == self.text
    }

    /// Whether it means this container.
    pub fn means(&self, container: &Container) -> bool {
        if self.means_id(&container.id) || container.name.as_deref() == Some(&self.text) {
            return true;
        }
        let pod = container.pod.as_deref().and_then(|pod| pod.rsplit('/').next());
        pod.zip(container.name.as_deref()).is_some_and(|(pod, name)| {
            self.text.strip_prefix(pod).and_then(|rest| rest.strip_prefix('/')) == Some(name)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "4c01db0b339c8f5d2b0f8e3a7d6c5b4a39281706f5e4d3c2b1a0998877665544";
    const OTHER: &str = "99aabbccddeeff00112233445566778899aabbccddeeff001122334455667788";

    /// Runtime, id, pod and unit of the outermost container.
    fn told(path: &str) -> (Option<Runtime>, String, Option<String>, Option<String>) {
        let path = path.replace("ID", ID).replace("OTHER", OTHER);
        let parsed = parse(path.as_bytes());
        let first = parsed.containers.first();
        (
            first.and_then(|place| place.runtime),
            first.map(|place| place.id.clone()).unwrap_or_default(),
            parsed.pod,
            parsed.unit,
        )
    }

    fn is(path: &str, runtime: Option<Runtime>, id: &str, pod: Option<&str>, unit: Option<&str>) {
        let id = id.replace("ID", ID);
        let pod = pod.map(|pod| pod.replace("OTHER", OTHER));
        let unit = unit.map(|unit| unit.replace("ID", ID).replace("OTHER", OTHER));
        assert_eq!(told(path), (runtime, id, pod, unit), "{path}");
    }

    #[test]
    fn docker_and_podman() {
        let docker = Some(Runtime::Docker);
        let podman = Some(Runtime::Podman);
        is("/system.slice/docker-ID.scope", docker, "ID", None, Some("docker-ID.scope"));
        is("/docker/ID", docker, "ID", None, None);
        is("/docker/ID/init.scope", docker, "ID", None, Some("init.scope"));
        is(
            "/ecstasks.slice/ecstasks-5f.slice/docker-ID.scope",
            docker,
            "ID",
            None,
            Some("docker-ID.scope"),
        );
        is("/machine.slice/libpod-ID.scope", podman, "ID", None, Some("libpod-ID.scope"));
        is("/machine.slice/libpod-ID.scope/container", podman, "ID", None, Some("libpod-ID.scope"));
        is("/machine.slice/libpod-conmon-ID.scope", None, "", None, Some("libpod-conmon-ID.scope"));
        is("/libpod_parent/libpod-ID", podman, "ID", None, None);
        is("/libpod_parent/OTHER/libpod-ID", podman, "ID", Some("OTHER"), None);
        is(
            "/machine.slice/machine-libpod_pod_OTHER.slice/libpod-ID.scope",
            podman,
            "ID",
            Some("OTHER"),
            Some("libpod-ID.scope"),
        );
        is("/system.slice/web.service/libpod-payload-ID", podman, "ID", None, Some("web.service"));
        let rootless = "/user.slice/user-1000.slice/user@1000.service/user.slice/libpod-ID.scope";
        is(rootless, podman, "ID", None, Some("libpod-ID.scope"));
        assert_eq!(parse(rootless.replace("ID", ID).as_bytes()).user, Some(1000));
    }

    #[test]
    fn kubernetes_with_both_drivers() {
        let uid = "4f2a6c1e-8b3d-4e5f-9a7b-1c2d3e4f5a6b";
        let slices = "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod\
                      4f2a6c1e_8b3d_4e5f_9a7b_1c2d3e4f5a6b.slice";
        let containerd = Some(Runtime::Containerd);
        is(
            &format!("{slices}/cri-containerd-ID.scope"),
            containerd,
            "ID",
            Some(uid),
            Some("cri-containerd-ID.scope"),
        );
        is(
            &format!("{slices}/crio-ID.scope/container"),
            Some(Runtime::Crio),
            "ID",
            Some(uid),
            Some("crio-ID.scope"),
        );
        is(
            &format!("{slices}/crio-conmon-ID.scope"),
            None,
            "",
            Some(uid),
            Some("crio-conmon-ID.scope"),
        );
        is(
            &format!("{slices}/docker-ID.scope"),
            Some(Runtime::Docker),
            "ID",
            Some(uid),
            Some("docker-ID.scope"),
        );
        is(&format!("/kubepods/besteffort/pod{uid}/ID"), None, "ID", Some(uid), None);
        is(&format!("/kubepods/pod{uid}/ID"), None, "ID", Some(uid), None);
        is(
            &format!("/kubepods/burstable/pod{uid}/crio-ID"),
            Some(Runtime::Crio),
            "ID",
            Some(uid),
            None,
        );
        // Guaranteed pods have no class of their own; static ones a hash for a uid.
        is(
            "/kubepods.slice/kubepods-pod0123456789abcdef0123456789abcdef.slice/crio-ID.scope",
            Some(Runtime::Crio),
            "ID",
            Some("0123456789abcdef0123456789abcdef"),
            Some("crio-ID.scope"),
        );
        is(
            "/system.slice/kubepods-besteffort-pod4f2a6c1e_8b3d.slice:cri-containerd:ID",
            containerd,
            "ID",
            Some("4f2a6c1e-8b3d"),
            Some("system.slice"),
        );
        is(slices, None, "", Some(uid), Some(slices.rsplit('/').next().expect("a")));
    }

    /// A cluster in a container: the machine knows the container, and both can be asked for.
    #[test]
    fn containers_in_containers() {
        let path = format!(
            "/docker/{ID}/kubelet.slice/kubelet-kubepods.slice/\
             kubelet-kubepods-pod4f2a6c1e_8b3d.slice/cri-containerd-{OTHER}.scope"
        );
        let parsed = parse(path.as_bytes());
        let ids: Vec<&str> = parsed.containers.iter().map(|place| place.id.as_str()).collect();
        assert_eq!(ids, [ID, OTHER]);
        // The pod is what somebody in the container says it is.
        assert_eq!(parsed.pod, None);
        is("/lxc.payload.web/docker/ID", Some(Runtime::Lxc), "web", None, None);
    }

    #[test]
    fn lxc_and_nspawn() {
        let lxc = Some(Runtime::Lxc);
        let nspawn = Some(Runtime::Nspawn);
        is("/lxc.payload.web/system.slice/a.service", lxc, "web", None, Some("a.service"));
        is("/lxc.payload/web", lxc, "web", None, None);
        is("/lxc/101/ns/init.scope", lxc, "101", None, Some("init.scope"));
        is("/lxc.monitor.web", None, "", None, None);
        is("/lxc.monitor/web", None, "", None, None);
        is(
            "/machine.slice/machine-my\\x2dbox.scope/payload",
            nspawn,
            "my-box",
            None,
            Some("machine-my\\x2dbox.scope"),
        );
        is(
            "/machine.slice/systemd-nspawn@box.service/payload/init.scope",
            nspawn,
            "box",
            None,
            Some("init.scope"),
        );
        is(
            "/machine.slice/systemd-nspawn@box.service/supervisor",
            None,
            "",
            None,
            Some("systemd-nspawn@box.service"),
        );
        let machine = "/machine.slice/machine-qemu\\x2d1\\x2dvm.scope/libvirt/emulator";
        is(machine, None, "", None, Some("machine-qemu\\x2d1\\x2dvm.scope"));
    }

    #[test]
    fn what_is_no_container() {
        is("/", None, "", None, None);
        is("/system.slice/ssh.service", None, "", None, Some("ssh.service"));
        is("/system.slice/docker.service", None, "", None, Some("docker.service"));
        is("/user.slice/user-0.slice/session-3.scope", None, "", None, Some("session-3.scope"));
        is("/docker/4c01db0b339c", None, "", None, None);
        is("/system.slice/docker-XYZ.scope", None, "", None, Some("docker-XYZ.scope"));
        is(&format!("/docker/{}", ID.to_uppercase()), None, "", None, None);
        assert_eq!(parse(b"/docker/\xff\xfe"), Parsed::default());
        // Of a runtime that is not known by name.
        is("/system.slice/strange-ID.scope", None, "ID", None, Some("strange-ID.scope"));
    }

    #[test]
    fn selectors() {
        let parsed = Selector::list("web, 4c01db0b339c ,pod-1/app").expect("valid");
        assert_eq!(parsed.len(), 3);
        for bad in ["", "a,,b", "a b", "a/b/c", "/web", "we*b", "-x", "a\nb"] {
            assert!(Selector::list(bad).is_err(), "{bad:?}");
        }
        let container = |name: Option<&str>, pod: Option<&str>| Container {
            id: ID.into(),
            name: name.map(String::from),
            runtime: None,
            pod: pod.map(String::from),
        };
        let means = |text: &str, container: &Container| {
            Selector::list(text).expect("valid")[0].means(container)
        };
        let app = container(Some("app"), Some("shop/pod-1"));
        for text in ["app", "pod-1/app", "4c01", &ID[..12], ID] {
            assert!(means(text, &app), "{text}");
        }
        for text in ["ap", "apps", "pod-1", "pod/app", "4c0", "4c02", &format!("{ID}0")] {
            assert!(!means(text, &app), "{text}");
        }
        assert_eq!(container(None, None).shown(), "4c01db0b339c");
        assert_eq!(app.shown(), "app");
    }
}
