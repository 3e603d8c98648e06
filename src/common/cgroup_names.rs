// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause

//! From a cgroup's id to its path and its container, also when it is gone; and which cgroups are
//! those of the containers that a filter wants.
//!
//! A cgroup that is there is asked for by its id, once, when its first event is shown. What was
//! made or removed since the start the kernel side tells (`bpf/cgroups.h`).

use std::cell::RefCell;
use std::collections::HashMap;
use std::fs;
use std::fs::File;
use std::io::ErrorKind;
use std::os::fd::AsFd as _;
use std::os::fd::AsRawFd as _;
use std::os::fd::BorrowedFd;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::DirEntryExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;
use std::time::Instant;

use anyhow::Context as _;
use anyhow::Result;
use libbpf_rs::MapCore as _;
use libbpf_rs::MapFlags;
use libbpf_rs::MapHandle;
use libbpf_rs::Object;
use libbpf_rs::RingBuffer;
use libbpf_rs::RingBufferBuilder;

use crate::bundle::Bundles;
use crate::cgroup;
use crate::cgroup::Mount;
use crate::container;
use crate::container::Container;
use crate::container::Identity;
use crate::container::Parsed;
use crate::container::Place;
use crate::container::Selector;
use crate::shared::CgroupNews;
use crate::shared::CgroupWhat;
use crate::sys;

/// Programs of `bpf/cgroups.h`, of which the last is for the filter alone.
pub const PROGRAMS: [&str; 3] = ["cgroup_made", "cgroup_removed", "cgroup_freed"];
/// Maps that only they use.
pub const MAPS: [&str; 2] = ["cgroup_news", "slot_cgroup_news"];
/// How many cgroups there can be in wanted containers.
pub const FILTERED: u32 = 32_768;

/// Cgroups that are remembered; twice as many at times.
const REMEMBERED: usize = 16_384;
/// A container without a name is asked for again so often, for so long: its files may be written
/// only after its cgroup was made.
const ASK_AGAIN: Duration = Duration::from_millis(100);
const GIVE_UP: Duration = Duration::from_secs(5);
/// How often all cgroups are looked through, where they cannot be asked for by id.
const LOOK_THROUGH: Duration = Duration::from_secs(1);

/// What is known of a cgroup.
#[derive(Default)]
struct Entry {
    /// Below the root of the hierarchy (`/system.slice/ssh.service`); `None` when it is gone.
    path: Option<Vec<u8>>,
    identity: Identity,
    /// Whether the identity is all that it will ever be.
    settled: bool,
}

/// A container that was asked for.
struct Known {
    container: Rc<Container>,
    first: Instant,
    asked: Instant,
}

/// What happened to which cgroup, and its path.
type Told = (CgroupWhat, u64, Vec<u8>);

/// What the kernel side tells.
struct News {
    ring: RingBuffer<'static>,
    map: MapHandle,
    came: Rc<RefCell<Vec<Told>>>,
}

/// The filter on containers.
struct Wanted {
    /// `filter_containers` of `bpf/cgroups.h`.
    set: MapHandle,
    /// Each with whether it has found something.
    selectors: Vec<(Selector, bool)>,
    /// Cgroups of containers whose name is not known yet.
    undecided: Vec<(u64, Vec<u8>)>,
}

/// See the module.
#[derive(Default)]
pub struct CgroupNames {
    mount: Option<Option<(File, Mount)>>,
    young: HashMap<u64, Rc<Entry>>,
    /// What was young before: forgotten when there are too many again.
    old: HashMap<u64, Rc<Entry>>,
    /// The one that was asked for last: events of a cgroup often come one after the other.
    last: Option<(u64, Rc<Entry>)>,
    looked_through: Option<Instant>,
    containers: HashMap<(Option<u32>, Place), Known>,
    bundles: HashMap<Option<u32>, Option<Bundles>>,
    news: Option<News>,
    wanted: Option<Wanted>,
    in_namespace: bool,
}

impl CgroupNames {
    /// Listens to the kernel side. With selectors, also finds the containers that are there and
    /// tells the filter about them. Call it when [`PROGRAMS`] are attached, so that nothing is
    /// missed in between.
    ///
    /// # Errors
    /// Fails when the kernel refuses.
    pub fn watch(object: &Object, selectors: &[Selector]) -> Result<Self> {
        let map = |name: &str| -> Result<MapHandle> {
            let map = object.maps().find(|map| map.name() == name);
            Ok(MapHandle::try_from(&map.with_context(|| format!("there is no map {name}"))?)?)
        };
        let mut names = Self { in_namespace: cgroup::in_namespace(), ..Self::default() };
        let ring_map = map("cgroup_news")?;
        let came = Rc::new(RefCell::new(Vec::new()));
        let queue = Rc::clone(&came);
        let mut builder = RingBufferBuilder::new();
        builder.add(&ring_map, move |bytes: &[u8]| {
            if let Ok(news) = plain::from_bytes::<CgroupNews>(bytes) {
                let path = &bytes[size_of::<CgroupNews>()..];
                let path = path.split(|b| *b == 0).next().unwrap_or_default();
                queue.borrow_mut().push((news.what, news.id, path.to_vec()));
            }
            0
        })?;
        let ring = builder.build().context("ring buffer of cgroups")?;
        names.news = Some(News { ring, map: ring_map, came });
        if !selectors.is_empty() {
            let selectors = selectors.iter().map(|selector| (selector.clone(), false)).collect();
            let set = map("filter_containers")?;
            names.wanted = Some(Wanted { set, selectors, undecided: Vec::new() });
            for (id, path) in names.all_cgroups() {
                names.consider(id, path)?;
            }
        }
        Ok(names)
    }

    /// What has found no container yet.
    pub fn unmatched(&self) -> Vec<&str> {
        let selectors = self.wanted.iter().flat_map(|wanted| &wanted.selectors);
        selectors.filter(|(_, found)| !found).map(|(one, _)| one.text.as_str()).collect()
    }

    /// The descriptor that becomes readable when a cgroup was made.
    pub fn news(&self) -> Option<BorrowedFd<'_>> {
        self.news.as_ref().map(|news| news.map.as_fd())
    }

    /// Takes in what has happened. Returns when it wants to be called again at the latest.
    ///
    /// # Errors
    /// Fails when the filter cannot hold any more.
    pub fn catch_up(&mut self) -> Result<Option<Instant>> {
        let Some(news) = &self.news else { return Ok(None) };
        let taken = news.ring.consume_raw();
        anyhow::ensure!(taken >= 0, "reading the ring buffer of cgroups: {taken}");
        let came: Vec<_> = news.came.borrow_mut().drain(..).collect();
        for (what, id, path) in came {
            // As they are seen from the cgroup namespace, if there is one.
            let seen = if self.in_namespace { self.ask(id) } else { None };
            let path = seen.unwrap_or(path);
            if what == CgroupWhat::CGROUP_MADE {
                if self.wanted.is_some() {
                    self.consider(id, path.clone())?;
                }
                // Now, because its files may be gone when its first event is shown.
                let entry = self.identify(Some(path));
                self.remember(id, entry);
            } else if self.young.get(&id).is_none_or(|entry| entry.path.is_none()) {
                let entry = self.identify(Some(path));
                self.remember(id, entry);
            }
        }
        self.reconsider()
    }

    /// Looks again for the names of containers that the filter could not decide about.
    fn reconsider(&mut self) -> Result<Option<Instant>> {
        let Some(wanted) = &mut self.wanted else { return Ok(None) };
        if wanted.undecided.is_empty() {
            return Ok(None);
        }
        for (id, path) in std::mem::take(&mut wanted.undecided) {
            self.consider(id, path)?;
        }
        let undecided = self.wanted.as_ref().is_some_and(|wanted| !wanted.undecided.is_empty());
        Ok(undecided.then(|| Instant::now() + ASK_AGAIN))
    }

    /// Tells the filter if this cgroup is in a wanted container.
    fn consider(&mut self, id: u64, path: Vec<u8>) -> Result<()> {
        let parsed = container::parse(&path);
        let Some(outermost) = parsed.containers.first() else { return Ok(()) };
        let (container, settled) = self.container(parsed.user, outermost);
        let Some(wanted) = &mut self.wanted else { return Ok(()) };
        let mut inside = false;
        for (selector, found) in &mut wanted.selectors {
            let means = parsed.containers.iter().any(|place| selector.means_id(&place.id))
                || selector.means(&container);
            *found |= means;
            inside |= means;
        }
        if inside {
            wanted
                .set
                .update(&id.to_ne_bytes(), &[1], MapFlags::ANY)
                .context("telling the filter about a container")?;
        } else if !settled {
            wanted.undecided.push((id, path));
        }
        Ok(())
    }

    /// What the files tell about a container, and whether that is the last word.
    fn container(&mut self, user: Option<u32>, place: &Place) -> (Rc<Container>, bool) {
        let now = Instant::now();
        let key = (user, place.clone());
        let known = self.containers.get(&key);
        if let Some(known) = known {
            let settled = known.container.name.is_some() || now - known.first > GIVE_UP;
            if settled || now - known.asked < ASK_AGAIN {
                return (Rc::clone(&known.container), settled);
            }
        }
        let first = known.map_or(now, |known| known.first);
        let bundles = self.bundles.entry(user).or_insert_with(|| match user {
            None => Some(Bundles::of_machine()),
            Some(uid) => Bundles::of_user(uid),
        });
        let nothing =
            || Container { id: place.id.clone(), name: None, runtime: place.runtime, pod: None };
        let described = bundles.as_ref().map_or_else(nothing, |bundles| bundles.describe(place));
        let container = Rc::new(described);
        let settled = container.name.is_some();
        if self.containers.len() > REMEMBERED {
            self.containers.clear();
        }
        self.containers.insert(key, Known { container: Rc::clone(&container), first, asked: now });
        (container, settled)
    }

    fn identify(&mut self, path: Option<Vec<u8>>) -> Entry {
        let Some(path) = path else { return Entry { settled: true, ..Entry::default() } };
        let Parsed { containers, pod, unit, user } = container::parse(&path);
        let asked = containers.first().map(|place| self.container(user, place));
        let settled = asked.as_ref().is_none_or(|(_, settled)| *settled);
        let container = asked.map(|(container, _)| container);
        let pod = container.as_ref().and_then(|container| container.pod.clone()).or(pod);
        Entry { path: Some(path), identity: Identity { container, pod, unit }, settled }
    }

    fn remember(&mut self, id: u64, entry: Entry) -> Rc<Entry> {
        if self.young.len() >= REMEMBERED {
            self.old = std::mem::take(&mut self.young);
        }
        let entry = Rc::new(entry);
        self.young.insert(id, Rc::clone(&entry));
        if self.last.as_ref().is_some_and(|(last, _)| *last == id) {
            self.last = None;
        }
        entry
    }

    fn look(&mut self, id: u64) -> &Entry {
        let hit = self.last.as_ref().is_some_and(|(last, entry)| *last == id && entry.settled);
        if !hit {
            let entry = self.find(id);
            self.last = Some((id, entry));
        }
        // Set just now, if it was not.
        &self.last.get_or_insert_with(|| (id, Rc::default())).1
    }

    fn find(&mut self, id: u64) -> Rc<Entry> {
        let kept = self.young.get(&id).or_else(|| self.old.get(&id)).cloned();
        if let Some(entry) = kept {
            if !entry.settled {
                let entry = self.identify(entry.path.clone());
                return self.remember(id, entry);
            }
            self.young.entry(id).or_insert_with(|| Rc::clone(&entry));
            return entry;
        }
        let path = self.ask(id);
        if path.is_none() {
            // It is gone, and that has been told, or will be in a moment. What stops the filter
            // comes up where the loop calls.
            let _ = self.catch_up();
            if let Some(entry) = self.young.get(&id) {
                return Rc::clone(entry);
            }
        }
        let entry = self.identify(path);
        self.remember(id, entry)
    }

    /// Where a cgroup that exists is.
    fn ask(&mut self, id: u64) -> Option<Vec<u8>> {
        let (file, mount) = self.mount()?;
        let dir = match sys::open_cgroup(file.as_fd(), id) {
            Ok(dir) => dir,
            Err(error) if error.kind() == ErrorKind::PermissionDenied => {
                return self.look_through(id);
            }
            Err(_) => return None,
        };
        let link = fs::read_link(format!("/proc/self/fd/{}", dir.as_raw_fd())).ok()?;
        let removed = |path: &'_ [u8]| path.strip_suffix(b" (deleted)").map(<[u8]>::to_vec);
        let Ok(inside) = link.strip_prefix(&mount.point) else {
            // Outside of what is mounted: a path from the root of the hierarchy.
            let path = link.as_os_str().as_bytes();
            return Some(removed(path).unwrap_or_else(|| path.to_vec()));
        };
        let inside = inside.as_os_str().as_bytes();
        // Removed since it was opened.
        Some(path_below(mount, &removed(inside).unwrap_or_else(|| inside.to_vec())))
    }

    /// Where a cgroup is, for those who may not ask for it by its id (`CAP_DAC_READ_SEARCH`).
    fn look_through(&mut self, id: u64) -> Option<Vec<u8>> {
        let now = Instant::now();
        if self.looked_through.is_some_and(|last| now - last < LOOK_THROUGH) {
            return None;
        }
        self.looked_through = Some(now);
        let mut found = None;
        for (other, path) in self.all_cgroups() {
            if other == id {
                found = Some(path);
            } else if self.young.get(&other).is_none_or(|entry| entry.path.is_none()) {
                let entry = Entry { path: Some(path), ..Entry::default() };
                self.remember(other, entry);
            }
        }
        found
    }

    fn mount(&mut self) -> Option<&(File, Mount)> {
        let found = self.mount.get_or_insert_with(|| {
            let mount = cgroup::mount()?;
            Some((File::open(&mount.point).ok()?, mount))
        });
        found.as_ref()
    }

    /// Every cgroup below the mount, with its path.
    fn all_cgroups(&mut self) -> Vec<(u64, Vec<u8>)> {
        let Some((_, mount)) = self.mount() else { return Vec::new() };
        let mut all = Vec::new();
        if let Ok(root) = fs::metadata(&mount.point) {
            all.push((root.ino(), path_below(mount, b"")));
        }
        let mut left = vec![mount.point.clone()];
        while let Some(directory) = left.pop() {
            // Gone meanwhile, or not ours to see.
            let Ok(entries) = fs::read_dir(&directory) else { continue };
            for entry in entries.flatten() {
                if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                    let path = entry.path();
                    let inside = path.strip_prefix(&mount.point).unwrap_or(Path::new(""));
                    all.push((entry.ino(), path_below(mount, inside.as_os_str().as_bytes())));
                    left.push(path);
                }
            }
        }
        all
    }

    /// The cgroup's path below the root of the hierarchy; `None` when it is gone and was never
    /// told of, or the caller may not ask.
    pub fn path(&mut self, id: u64) -> Option<&[u8]> {
        self.look(id).path.as_deref()
    }

    /// Container, pod and unit of the cgroup.
    pub fn identity(&mut self, id: u64) -> &Identity {
        &self.look(id).identity
    }
}

/// The path of what lies `inside` the mount, below the root of the hierarchy.
fn path_below(mount: &Mount, inside: &[u8]) -> Vec<u8> {
    let mut path = mount.root.trim_end_matches('/').as_bytes().to_vec();
    path.push(b'/');
    path.extend_from_slice(inside);
    if inside.is_empty() && path.len() > 1 {
        path.pop();
    }
    path
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_below_the_root_of_the_hierarchy() {
        let below = |root: &str, inside: &[u8]| {
            let mount = Mount { point: "/m".into(), root: root.into() };
            String::from_utf8(path_below(&mount, inside)).expect("UTF-8")
        };
        assert_eq!((below("/", b""), below("/", b"a/b")), ("/".into(), "/a/b".into()));
        assert_eq!((below("/x", b""), below("/x", b"a")), ("/x".into(), "/x/a".into()));
    }

    #[test]
    fn what_was_told_is_remembered_and_what_is_old_forgotten() {
        let mut names = CgroupNames { mount: Some(None), ..CgroupNames::default() };
        let put = |names: &mut CgroupNames, id: u64| {
            let entry = names.identify(Some(format!("/lxc.payload.c{id}").into_bytes()));
            names.remember(id, entry);
        };
        assert_eq!(names.path(1), None);
        // Told later, although it was asked for in vain.
        put(&mut names, 1);
        assert_eq!(names.path(1), Some(b"/lxc.payload.c1".as_slice()));
        let container = names.identity(1).container.clone().expect("a container");
        assert_eq!(container.shown(), "c1");
        for id in 2..=REMEMBERED as u64 + 1 {
            put(&mut names, id);
        }
        // Asked for, and so young again.
        assert!(names.path(1).is_some());
        for id in 0..REMEMBERED as u64 {
            put(&mut names, id + 1_000_000);
        }
        assert!(names.path(1).is_some() && names.path(2).is_none());
        assert!(names.young.len() <= REMEMBERED + 1 && names.containers.len() <= REMEMBERED + 1);
    }
}
