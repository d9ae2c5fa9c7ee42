//! Two versions run as the same user during a switch. This keeps one from reading the
//! memory of the other.

use std::io;

use crate::identity::instance;

/// Closes `/proc/PID/mem` and ptrace to other processes of the user. A process that was not
/// deployed stays open: a debugger may want it.
#[cfg(target_os = "linux")]
pub fn forbid_memory_access() -> io::Result<()> {
    if instance().is_none() {
        return Ok(());
    }
    // SAFETY: it takes no pointers.
    #[allow(unsafe_code)]
    match unsafe { libc::prctl(libc::PR_SET_DUMPABLE, 0, 0, 0, 0) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// For `cargo run` elsewhere; servers are Linux.
#[cfg(not(target_os = "linux"))]
pub fn forbid_memory_access() -> io::Result<()> {
    let _ = instance();
    Ok(())
}
