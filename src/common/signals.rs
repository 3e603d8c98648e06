// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause

//! Names and descriptions of signals, as the GNU C library has them on x86 and arm64.

use std::borrow::Cow;

/// The first real-time signal of the GNU C library, which keeps two for itself.
const RTMIN: u32 = 34;
/// The last one.
const RTMAX: u32 = 64;

/// The name of a signal: `SIGKILL`, `SIGRTMIN+2`.
pub fn name(signal: u32) -> Option<Cow<'static, str>> {
    match signal {
        RTMIN => Some("SIGRTMIN".into()),
        RTMAX => Some("SIGRTMAX".into()),
        _ if (RTMIN..RTMAX).contains(&signal) => {
            Some(format!("SIGRTMIN+{}", signal - RTMIN).into())
        }
        _ => known(signal).map(|(name, _)| name.into()),
    }
}

/// The number of a signal that is given by name, with or without `SIG`, or by number.
pub fn number(text: &str) -> Option<u32> {
    if let Ok(number) = text.parse() {
        return (1..=RTMAX).contains(&number).then_some(number);
    }
    let upper = text.to_ascii_uppercase();
    let wanted = upper.strip_prefix("SIG").unwrap_or(&upper);
    (1..=RTMAX).find(|signal| name(*signal).is_some_and(|name| &name[3..] == wanted))
}

/// What strsignal() says: `Killed`, `Segmentation fault`.
pub fn description(signal: u32) -> Cow<'static, str> {
    match signal {
        RTMIN..=RTMAX => format!("Real-time signal {}", signal - RTMIN).into(),
        _ => match known(signal) {
            Some((_, description)) => description.into(),
            None => format!("Unknown signal {signal}").into(),
        },
    }
}

fn known(signal: u32) -> Option<(&'static str, &'static str)> {
    SIGNALS.get(usize::try_from(signal).ok()?.checked_sub(1)?).copied()
}

/// From 1 on.
static SIGNALS: [(&str, &str); 31] = [
    ("SIGHUP", "Hangup"),
    ("SIGINT", "Interrupt"),
    ("SIGQUIT", "Quit"),
    ("SIGILL", "Illegal instruction"),
    ("SIGTRAP", "Trace/breakpoint trap"),
    ("SIGABRT", "Aborted"),
    ("SIGBUS", "Bus error"),
    ("SIGFPE", "Floating point exception"),
    ("SIGKILL", "Killed"),
    ("SIGUSR1", "User defined signal 1"),
    ("SIGSEGV", "Segmentation fault"),
    ("SIGUSR2", "User defined signal 2"),
    ("SIGPIPE", "Broken pipe"),
    ("SIGALRM", "Alarm clock"),
    ("SIGTERM", "Terminated"),
    ("SIGSTKFLT", "Stack fault"),
    ("SIGCHLD", "Child exited"),
    ("SIGCONT", "Continued"),
    ("SIGSTOP", "Stopped (signal)"),
    ("SIGTSTP", "Stopped"),
    ("SIGTTIN", "Stopped (tty input)"),
    ("SIGTTOU", "Stopped (tty output)"),
    ("SIGURG", "Urgent I/O condition"),
    ("SIGXCPU", "CPU time limit exceeded"),
    ("SIGXFSZ", "File size limit exceeded"),
    ("SIGVTALRM", "Virtual timer expired"),
    ("SIGPROF", "Profiling timer expired"),
    ("SIGWINCH", "Window changed"),
    ("SIGIO", "I/O possible"),
    ("SIGPWR", "Power failure"),
    ("SIGSYS", "Bad system call"),
];

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::signal::Signal;

    #[test]
    fn names_agree_with_the_c_library() {
        for signal in Signal::iterator() {
            let raw = u32::try_from(signal as i32).expect("positive");
            assert_eq!(name(raw).as_deref(), Some(signal.as_str()));
            assert_eq!(number(signal.as_str()), Some(raw));
        }
        assert_eq!((name(0), name(32), name(65)), (None, None, None));
        assert_eq!(name(36).as_deref(), Some("SIGRTMIN+2"));
        assert_eq!((number("kill"), number("9"), number("rtmin+2")), (Some(9), Some(9), Some(36)));
        assert_eq!((number("0"), number("65"), number("x")), (None, None, None));
    }

    #[test]
    fn descriptions() {
        assert_eq!(description(9), "Killed");
        assert_eq!(description(34), "Real-time signal 0");
        assert_eq!(description(32), "Unknown signal 32");
    }
}
