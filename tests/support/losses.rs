// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause

//! What a tool that shows events says when there is no room for them.

use nix::sys::signal::Signal;

use super::start;
use super::wait_until_stopped;

/// With the smallest buffer, and while nobody reads it, not all of `made` events fit, which `act`
/// causes and which are all that pass the filters in `args`. What is shown, lost and missed is
/// together what there was; `--strict` ends with status 4 for that, and otherwise it is only said.
pub fn assert_counted(tool: &str, args: &[&str], made: u64, mut act: impl FnMut()) {
    for (more, status) in [(&["--strict"][..], 4), (&[], 0)] {
        let args = [args, &["--buffer-size", "4k"], more].concat();
        let running = start(tool, &args);
        running.signal(Signal::SIGSTOP);
        wait_until_stopped(running.pid());
        act();
        running.signal(Signal::SIGCONT);
        let finished = running.stop();
        let end = finished.end();
        let number = |name: &str| end[name].as_u64().unwrap_or(0);
        let shown = finished.of("event").count() as u64;
        assert_eq!((number("events"), number("map_full")), (shown, 0), "{tool} {more:?}: {end}");
        assert!(number("lost") > 0, "{tool}: nothing was lost, so nothing was tested: {end}");
        // What the kernel skipped it counts, and a twin may have dealt with it all the same.
        let known = shown + number("lost");
        let right = known <= made && made - known <= number("missed");
        assert!(right, "{tool} {more:?}: {shown} shown of {made}: {end}");
        let told = finished.of("lost").filter_map(|record| record["lost"].as_u64());
        assert_eq!(told.sum::<u64>(), number("lost"), "{tool} {more:?}");
        assert_eq!(finished.status.code(), Some(status), "{tool} {more:?}: {}", finished.stderr);
        let sentences = finished.stderr.lines().filter(|line| line.contains("lost")).count();
        assert!(sentences > 0, "{tool} {more:?}: {}", finished.stderr);
    }
}
