//! Sizes and ages for people.

use std::time::Duration;

pub(crate) fn span(age: Duration) -> String {
    match age.as_secs() {
        seconds @ 0..120 => format!("{seconds} s"),
        seconds @ 120..7200 => format!("{} min", seconds / 60),
        seconds @ 7200..172_800 => format!("{} h", seconds / 3600),
        seconds => format!("{} days", seconds / 86_400),
    }
}

pub(crate) fn size(bytes: u64) -> String {
    const UNITS: [&str; 4] = ["KiB", "MiB", "GiB", "TiB"];
    let scale = |unit: usize| bytes as f64 / 1024_f64.powi(unit as i32 + 1);
    let unit = (0..UNITS.len()).rev().find(|unit| scale(*unit) >= 1.0).unwrap_or(0);
    format!("{:.1} {}", scale(unit), UNITS[unit])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_ages_are_short() {
        assert_eq!([size(0), size(1536), size(5 << 30)], ["0.0 KiB", "1.5 KiB", "5.0 GiB"]);
        let spans = [5, 600, 7200, 200_000].map(|seconds| span(Duration::from_secs(seconds)));
        assert_eq!(spans, ["5 s", "10 min", "2 h", "2 days"]);
    }
}
