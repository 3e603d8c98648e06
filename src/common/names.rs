// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause

//! Names of numbers that mean the same in every tool.

use nix::errno::Errno;

/// The name of an errno value (`2` is `ENOENT`); `None` for 0 and for numbers without a name.
///
/// The kernel also has values that user space never sees by name; the few that a traced function
/// may return are added here (include/linux/errno.h).
pub fn errno(value: i64) -> Option<&'static str> {
    match value {
        512 => return Some("ERESTARTSYS"),
        513 => return Some("ERESTARTNOINTR"),
        514 => return Some("ERESTARTNOHAND"),
        515 => return Some("ENOIOCTLCMD"),
        516 => return Some("ERESTART_RESTARTBLOCK"),
        517 => return Some("EPROBE_DEFER"),
        524 => return Some("ENOTSUPP"),
        _ => {}
    }
    ERRNO.get(usize::try_from(value).ok()?).copied().filter(|name| !name.is_empty())
}

/// The errno value of a name (`ENOENT` is `2`).
pub fn errno_value(name: &str) -> Option<i64> {
    ERRNO.iter().position(|known| *known == name).and_then(|i| i64::try_from(i).ok())
}

/// The message of an errno value ("No such file or directory").
pub fn errno_message(value: i64) -> &'static str {
    i32::try_from(value).map_or("unknown error", |value| Errno::from_raw(value).desc())
}

/// include/uapi/asm-generic/errno-base.h and errno.h, which x86 and arm64 share.
#[rustfmt::skip]
static ERRNO: [&str; 134] = [
    "", "EPERM", "ENOENT", "ESRCH", "EINTR", "EIO", "ENXIO", "E2BIG", "ENOEXEC", "EBADF",
    "ECHILD", "EAGAIN", "ENOMEM", "EACCES", "EFAULT", "ENOTBLK", "EBUSY", "EEXIST", "EXDEV",
    "ENODEV", "ENOTDIR", "EISDIR", "EINVAL", "ENFILE", "EMFILE", "ENOTTY", "ETXTBSY", "EFBIG",
    "ENOSPC", "ESPIPE", "EROFS", "EMLINK", "EPIPE", "EDOM", "ERANGE", "EDEADLK", "ENAMETOOLONG",
    "ENOLCK", "ENOSYS", "ENOTEMPTY", "ELOOP", "", "ENOMSG", "EIDRM", "ECHRNG", "EL2NSYNC",
    "EL3HLT", "EL3RST", "ELNRNG", "EUNATCH", "ENOCSI", "EL2HLT", "EBADE", "EBADR", "EXFULL",
    "ENOANO", "EBADRQC", "EBADSLT", "", "EBFONT", "ENOSTR", "ENODATA", "ETIME", "ENOSR", "ENONET",
    "ENOPKG", "EREMOTE", "ENOLINK", "EADV", "ESRMNT", "ECOMM", "EPROTO", "EMULTIHOP", "EDOTDOT",
    "EBADMSG", "EOVERFLOW", "ENOTUNIQ", "EBADFD", "EREMCHG", "ELIBACC", "ELIBBAD", "ELIBSCN",
    "ELIBMAX", "ELIBEXEC", "EILSEQ", "ERESTART", "ESTRPIPE", "EUSERS", "ENOTSOCK", "EDESTADDRREQ",
    "EMSGSIZE", "EPROTOTYPE", "ENOPROTOOPT", "EPROTONOSUPPORT", "ESOCKTNOSUPPORT", "EOPNOTSUPP",
    "EPFNOSUPPORT", "EAFNOSUPPORT", "EADDRINUSE", "EADDRNOTAVAIL", "ENETDOWN", "ENETUNREACH",
    "ENETRESET", "ECONNABORTED", "ECONNRESET", "ENOBUFS", "EISCONN", "ENOTCONN", "ESHUTDOWN",
    "ETOOMANYREFS", "ETIMEDOUT", "ECONNREFUSED", "EHOSTDOWN", "EHOSTUNREACH", "EALREADY",
    "EINPROGRESS", "ESTALE", "EUCLEAN", "ENOTNAM", "ENAVAIL", "EISNAM", "EREMOTEIO", "EDQUOT",
    "ENOMEDIUM", "EMEDIUMTYPE", "ECANCELED", "ENOKEY", "EKEYEXPIRED", "EKEYREVOKED",
    "EKEYREJECTED", "EOWNERDEAD", "ENOTRECOVERABLE", "ERFKILL", "EHWPOISON",
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errno_names_agree_with_the_c_library() {
        for (i, name) in ERRNO.iter().enumerate().filter(|(_, name)| !name.is_empty()) {
            let value = i32::try_from(i).expect("small");
            let known = format!("{:?}", Errno::from_raw(value));
            assert!(known == *name || known == "UnknownErrno", "{i}: {name} is {known}");
            assert_eq!(errno(i64::from(value)), Some(*name));
            assert_eq!(errno_value(name), Some(i64::from(value)));
        }
        assert_eq!((errno(0), errno(41), errno(9999), errno(-1)), (None, None, None, None));
    }
}
