// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause

//! Maps that stand in a file system of their own, as whoever keeps a list for `--cgroupmap` and
//! `--mntnsmap` makes them.

use std::path::PathBuf;

use libbpf_rs::MapCore as _;
use libbpf_rs::MapFlags;
use libbpf_rs::MapHandle;
use libbpf_rs::MapType;
use nix::mount::MntFlags;
use nix::mount::MsFlags;
use nix::mount::mount;
use nix::mount::umount2;

use super::scratch;

/// A hash map that is pinned, in a BPF file system that goes with it.
pub struct Pinned {
    map: MapHandle,
    directory: PathBuf,
}

impl Pinned {
    /// One with this key alone, or why there can be none.
    pub fn new(key: &[u8]) -> Result<Self, String> {
        let directory = scratch("bpffs");
        mount(Some("none"), &directory, Some("bpf"), MsFlags::empty(), None::<&str>)
            .map_err(|error| format!("no BPF file system: {error}"))?;
        let size = u32::try_from(key.len()).expect("small");
        let options = libbpf_sys::bpf_map_create_opts {
            sz: size_of::<libbpf_sys::bpf_map_create_opts>() as libbpf_sys::size_t,
            ..Default::default()
        };
        let map = MapHandle::create(MapType::Hash, Some("pinned"), size, size, 1024, &options);
        let mut this = Self { map: map.expect("map"), directory };
        this.map.update(key, &vec![0; key.len()], MapFlags::ANY).expect("update");
        this.map.pin(this.directory.join("map")).expect("pin");
        Ok(this)
    }

    /// Where it is pinned.
    pub fn path(&self) -> String {
        self.directory.join("map").to_str().expect("UTF-8").to_string()
    }

    /// Takes the key out.
    pub fn remove(&self, key: &[u8]) {
        self.map.delete(key).expect("delete");
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        let _ = umount2(&self.directory, MntFlags::MNT_DETACH);
    }
}
