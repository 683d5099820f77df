//! Which system calls change something outside of the process that makes them: files, folders, what
//! others hear. Between two of them it may be killed wherever it likes: nobody can tell the difference.
//! What is called differently each time (identifiers, sockets) is called the same here.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;

use nix::libc;
use nix::unistd::Pid;

/// FICLONE (Linux `include/uapi/linux/fs.h`).
const FICLONE: u64 = 0x4004_9409;
/// What calls to btrfs have in their second byte (`include/uapi/linux/btrfs.h`).
const BTRFS: u64 = 0x94;

/// What the call is, for people, if it changes something.
pub(crate) fn that_changes(thread: Pid, number: u64, arguments: &[u64; 6]) -> Option<String> {
    let [first, second, third, fourth, ..] = *arguments;
    let on = |name: &str| on_descriptor(thread, name, first);
    let at = |name: &str, address: u64| Some(format!("{name} {}", text(thread, address)));
    let call = match i64::try_from(number).ok()? {
        libc::SYS_write | libc::SYS_pwrite64 | libc::SYS_writev | libc::SYS_pwritev => on("write"),
        libc::SYS_sendto | libc::SYS_sendmsg => on("send"),
        libc::SYS_fsync | libc::SYS_fdatasync | libc::SYS_syncfs => on("sync"),
        libc::SYS_ftruncate | libc::SYS_fallocate => on("resize"),
        libc::SYS_fchmod => on("chmod"),
        libc::SYS_ioctl if second == FICLONE => on("clone into"),
        libc::SYS_ioctl if second >> 8 & 0xff == BTRFS => on("btrfs"),
        libc::SYS_open if second & creates() != 0 => at("create", first),
        libc::SYS_openat if third & creates() != 0 => at("create", second),
        libc::SYS_mkdir => at("make", first),
        libc::SYS_mkdirat => at("make", second),
        libc::SYS_rmdir | libc::SYS_unlink => at("remove", first),
        libc::SYS_unlinkat => at("remove", second),
        libc::SYS_symlink => at("link", second),
        libc::SYS_symlinkat => at("link", third),
        libc::SYS_chmod => at("chmod", first),
        libc::SYS_fchmodat => at("chmod", second),
        libc::SYS_rename => at("rename to", second),
        libc::SYS_renameat | libc::SYS_renameat2 => at("rename to", fourth),
        _ => None,
    };
    call.map(|call| alike(&call))
}

/// Numbers and identifiers are written as `_`.
fn alike(call: &str) -> String {
    let is_number =
        |word: &str| word.len() > 2 && word.bytes().all(|byte| byte.is_ascii_hexdigit() || byte == b'-');
    let mut text = String::new();
    for word in call.split_inclusive(['/', '.', '[', ']', '#', ' ']) {
        let (name, end) = word.split_at(word.trim_end_matches(['/', '.', '[', ']', '#', ' ']).len());
        text += if is_number(name) { "_" } else { name };
        text += end;
    }
    text
}

/// Whether it is something that somebody else is told.
pub(crate) fn is_message(call: &str) -> bool {
    call.contains("socket:")
}

fn creates() -> u64 {
    u64::try_from(libc::O_CREAT | libc::O_TRUNC).expect("flags are positive")
}

/// Files and sockets; what the process says to itself, its log and devices don't count.
fn on_descriptor(thread: Pid, name: &str, descriptor: u64) -> Option<String> {
    if descriptor <= 2 {
        return None;
    }
    let target = fs::read_link(format!("/proc/{thread}/fd/{descriptor}")).ok()?;
    let target = target.to_string_lossy();
    // Files in memory are files too.
    let is_device = target.starts_with("/dev/") && !target.starts_with("/dev/shm/");
    let counts = target.starts_with("socket:") || target.starts_with('/') && !is_device;
    counts.then(|| format!("{name} {target}"))
}

fn text(thread: Pid, address: u64) -> String {
    let mut bytes = [0; 512];
    let read =
        File::open(format!("/proc/{thread}/mem")).and_then(|memory| memory.read_at(&mut bytes, address));
    let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(read.unwrap_or(0));
    String::from_utf8_lossy(&bytes[..end]).into_owned()
}
