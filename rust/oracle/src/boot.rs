//! What the first process of a machine does before it can be the world: file systems and modules.

use nix::errno::Errno;
use nix::kmod::init_module;
use nix::mount::{MsFlags, mount};

use crate::Error;

/// Mounts /proc, /sys, /dev and what is below /sys/kernel, and loads modules in the order in which they are given.
///
/// # Errors
///
/// [`Error::Unavailable`]: what could not be done.
pub fn boot(modules: &[(String, Vec<u8>)]) -> Result<(), Error> {
    let failed = |what: &str, errno: Errno| Error::Unavailable(format!("{what}: {errno}"));
    let systems = [
        ("proc", "/proc"),
        ("sysfs", "/sys"),
        ("devtmpfs", "/dev"),
        ("debugfs", "/sys/kernel/debug"),
        ("tracefs", "/sys/kernel/tracing"),
    ];
    for (kind, target) in systems {
        mount(Some(kind), target, Some(kind), MsFlags::empty(), None::<&str>)
            .map_err(|errno| failed(&format!("mount {target}"), errno))?;
    }
    for (name, module) in modules {
        init_module(module, c"").map_err(|errno| failed(&format!("module {name}"), errno))?;
    }
    Ok(())
}
