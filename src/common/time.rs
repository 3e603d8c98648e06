// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause

//! Clocks: events carry `CLOCK_BOOTTIME` from the kernel; people want wall-clock time.

use std::fmt::Write as _;
use std::fs;
use std::time::Duration;
use std::time::Instant;

use jiff::Timestamp;
use jiff::tz::TimeZone;
use nix::time::ClockId;
use nix::time::clock_gettime;

use crate::value::push_fraction_of_second;
use crate::value::push_int;
use crate::value::push_uint;

/// How a column shows the time of an event; `--time-format`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TimeFormat {
    /// Local `HH:MM:SS`.
    Wall,
    /// The same in UTC.
    Utc,
    /// RFC 3339 with nanoseconds and offset.
    Iso,
    /// Seconds since 1970-01-01 UTC.
    Epoch,
    /// Seconds since the tool was ready.
    SinceStart,
    /// Seconds since the first event shown.
    SinceFirst,
    /// Seconds since boot, suspend included.
    Boot,
}

impl TimeFormat {
    /// The names that `--time-format` takes.
    pub const NAMES: [(&'static str, Self); 7] = [
        ("wall", Self::Wall),
        ("utc", Self::Utc),
        ("iso", Self::Iso),
        ("epoch", Self::Epoch),
        ("since-start", Self::SinceStart),
        ("since-first", Self::SinceFirst),
        ("boot", Self::Boot),
    ];
}

const SECOND: u64 = 1_000_000_000;

/// Maps the kernel's `CLOCK_BOOTTIME` to wall-clock time. The offset between the two is measured
/// again every second while events flow, so that it follows when the clock is set.
pub struct Clock {
    zone: TimeZone,
    /// Nanoseconds to add to a boot time to get nanoseconds since 1970.
    offset: i128,
    /// When the offset was measured; `None` where it is given.
    measured: Option<Instant>,
    /// What a time namespace adds to `CLOCK_BOOTTIME` in user space, but not in the kernel
    /// (`/proc/self/timens_offsets`).
    namespace: i128,
    start: u64,
    first: Option<u64>,
    /// The second for which `local` holds the text up to the seconds, and `zone_text` the offset.
    cached: i64,
    local: String,
    zone_text: String,
}

impl Default for Clock {
    fn default() -> Self {
        Self::new()
    }
}

impl Clock {
    /// A clock of the local time zone, started now.
    pub fn new() -> Self {
        let mut clock = Self {
            zone: TimeZone::system(),
            offset: 0,
            measured: None,
            namespace: namespace_offset(),
            start: 0,
            first: None,
            cached: i64::MIN,
            local: String::new(),
            zone_text: String::new(),
        };
        clock.measure();
        clock.start = clock.now();
        clock
    }

    /// The kernel's `CLOCK_BOOTTIME` now, in nanoseconds.
    pub fn now(&self) -> u64 {
        let user = read(ClockId::CLOCK_BOOTTIME) - self.namespace;
        u64::try_from(user).unwrap_or(0)
    }

    /// Forgets the start: "since start" counts from now.
    pub fn restart(&mut self) {
        self.start = self.now();
    }

    /// Maps times around `boot_ns` as they were when that was `wall_ns` since 1970.
    pub fn set(&mut self, boot_ns: u64, wall_ns: i128) {
        self.offset = wall_ns - i128::from(boot_ns);
        // Not to be measured here: it was elsewhere, or long ago.
        self.measured = None;
    }

    /// "Since start" counts from then.
    pub fn set_start(&mut self, boot_ns: u64) {
        self.start = boot_ns;
    }

    /// When "since start" began.
    pub fn start(&self) -> u64 {
        self.start
    }

    /// The `CLOCK_BOOTTIME` at a time in nanoseconds since 1970.
    pub fn boot_time(&self, wall_ns: i128) -> u64 {
        u64::try_from(wall_ns - self.offset).unwrap_or(0)
    }

    /// Measures the offset again if the last time is a second ago.
    pub fn refresh(&mut self) {
        if self.measured.is_some_and(|at| at.elapsed() >= Duration::from_secs(1)) {
            self.measure();
        }
    }

    fn measure(&mut self) {
        // The narrowest of a few tries: a preemption between the two reads would show as error.
        let mut best = i128::MAX;
        for _ in 0..3 {
            let before = read(ClockId::CLOCK_BOOTTIME);
            let wall = read(ClockId::CLOCK_REALTIME);
            let width = read(ClockId::CLOCK_BOOTTIME) - before;
            if width < best {
                best = width;
                self.offset = wall - (before + width / 2) + self.namespace;
            }
        }
        self.measured = Some(Instant::now());
    }

    fn wall(&self, boot_ns: u64) -> (i64, u32) {
        let ns = i128::from(boot_ns) + self.offset;
        // Always, until 2554; and much quicker.
        if let Ok(ns) = u64::try_from(ns) {
            let seconds = i64::try_from(ns / SECOND).unwrap_or(0);
            return (seconds, u32::try_from(ns % SECOND).unwrap_or(0));
        }
        let second = i128::from(SECOND);
        let seconds = i64::try_from(ns.div_euclid(second)).unwrap_or(0);
        (seconds, u32::try_from(ns.rem_euclid(second)).unwrap_or(0))
    }

    fn cache(&mut self, seconds: i64) {
        if self.cached == seconds {
            return;
        }
        self.cached = seconds;
        self.local.clear();
        self.zone_text.clear();
        let Ok(time) = Timestamp::from_second(seconds) else { return };
        let (offset, civil) = (self.zone.to_offset(time).seconds(), self.zone.to_datetime(time));
        // Writing to a String cannot fail.
        let _ = write!(
            self.local,
            "{:04}-{:02}-{:02}T{:02}:{:02}:{:02}",
            civil.year(),
            civil.month(),
            civil.day(),
            civil.hour(),
            civil.minute(),
            civil.second()
        );
        let sign = if offset < 0 { '-' } else { '+' };
        let minutes = offset.unsigned_abs() / 60;
        let _ = write!(self.zone_text, "{sign}{:02}:{:02}", minutes / 60, minutes % 60);
    }

    /// Appends RFC 3339 with nanoseconds and offset.
    pub fn push_iso(&mut self, out: &mut Vec<u8>, boot_ns: u64) {
        let (seconds, ns) = self.wall(boot_ns);
        self.cache(seconds);
        out.extend_from_slice(self.local.as_bytes());
        push_fraction_of_second(out, u64::from(ns), 9);
        out.extend_from_slice(self.zone_text.as_bytes());
    }

    /// Appends the time in `format`, with `decimals` digits of a second where it has any.
    pub fn push(&mut self, out: &mut Vec<u8>, boot_ns: u64, format: TimeFormat, decimals: usize) {
        let since = |out: &mut Vec<u8>, ns: u64| {
            push_uint(out, ns / SECOND);
            push_fraction_of_second(out, ns % SECOND, decimals);
        };
        match format {
            TimeFormat::Wall => {
                let (seconds, ns) = self.wall(boot_ns);
                self.cache(seconds);
                out.extend_from_slice(self.local.get(11..).unwrap_or("").as_bytes());
                push_fraction_of_second(out, u64::from(ns), decimals);
            }
            TimeFormat::Utc => {
                let (seconds, ns) = self.wall(boot_ns);
                let of_day = seconds.rem_euclid(86_400);
                let (hour, minute, second) = (of_day / 3600, of_day / 60 % 60, of_day % 60);
                out.extend_from_slice(format!("{hour:02}:{minute:02}:{second:02}").as_bytes());
                push_fraction_of_second(out, u64::from(ns), decimals);
            }
            TimeFormat::Iso => self.push_iso(out, boot_ns),
            TimeFormat::Epoch => {
                let (seconds, ns) = self.wall(boot_ns);
                push_int(out, seconds);
                push_fraction_of_second(out, u64::from(ns), 9);
            }
            TimeFormat::SinceStart => since(out, boot_ns.saturating_sub(self.start)),
            TimeFormat::SinceFirst => {
                let first = *self.first.get_or_insert(boot_ns);
                since(out, boot_ns.saturating_sub(first));
            }
            TimeFormat::Boot => since(out, boot_ns),
        }
    }
}

fn read(id: ClockId) -> i128 {
    // Both clocks exist on every Linux that has BPF.
    clock_gettime(id)
        .map_or(0, |t| i128::from(t.tv_sec()) * i128::from(SECOND) + i128::from(t.tv_nsec()))
}

fn namespace_offset() -> i128 {
    let Ok(text) = fs::read_to_string("/proc/self/timens_offsets") else { return 0 };
    for line in text.lines() {
        let mut words = line.split_whitespace();
        if words.next() == Some("boottime") {
            let mut number = || words.next().and_then(|w| w.parse::<i128>().ok()).unwrap_or(0);
            return number() * i128::from(SECOND) + number();
        }
    }
    0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn clock_at(offset: i128) -> Clock {
        Clock { zone: TimeZone::UTC, offset, start: 5 * SECOND, ..Clock::new() }
    }

    #[test]
    fn formats() {
        // 2026-01-02T03:04:05 UTC is 1767323045.
        let mut clock = clock_at(1_767_323_045 * i128::from(SECOND) - 7 * i128::from(SECOND));
        let mut show = |boot: u64, format, decimals| {
            let mut out = Vec::new();
            clock.push(&mut out, boot, format, decimals);
            String::from_utf8(out).expect("ASCII")
        };
        let boot = 7 * SECOND + 123_456_789;
        assert_eq!(show(boot, TimeFormat::Wall, 0), "03:04:05");
        assert_eq!(show(boot, TimeFormat::Wall, 3), "03:04:05.123");
        assert_eq!(show(boot, TimeFormat::Utc, 3), "03:04:05.123");
        assert_eq!(show(boot, TimeFormat::Iso, 0), "2026-01-02T03:04:05.123456789+00:00");
        assert_eq!(show(boot, TimeFormat::Epoch, 0), "1767323045.123456789");
        assert_eq!(show(boot, TimeFormat::SinceStart, 3), "2.123");
        assert_eq!(show(boot, TimeFormat::Boot, 6), "7.123456");
        assert_eq!(show(boot, TimeFormat::SinceFirst, 3), "0.000");
        assert_eq!(show(boot + SECOND, TimeFormat::SinceFirst, 3), "1.000");
    }

    #[test]
    fn boot_time_maps_to_now() {
        let clock = Clock::new();
        let (seconds, _) = clock.wall(clock.now());
        assert!((seconds - Timestamp::now().as_second()).abs() <= 1);
    }
}
