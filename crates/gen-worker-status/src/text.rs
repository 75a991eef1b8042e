//! Readings in Prometheus's text format, version 0.0.4.

use std::fmt::Write;

use gen_worker_core::metric::{BOUNDS_MS, Metric, MetricKind, Readings, Sample, Value};

/// The media type of what [`render`] writes.
pub const MEDIA_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Readings in Prometheus's text format, version 0.0.4.
pub fn render(readings: &Readings) -> String {
    let mut text = String::new();
    for (metric, samples) in readings.iter() {
        let Metric { name, help, .. } = metric;
        line(&mut text, format_args!("# HELP {name} {help}"));
        line(&mut text, format_args!("# TYPE {name} {}", kind(metric.kind)));
        samples.iter().for_each(|sample| show(&mut text, metric, sample));
    }
    text
}

fn kind(kind: MetricKind) -> &'static str {
    match kind {
        MetricKind::Counter => "counter",
        MetricKind::Gauge => "gauge",
        MetricKind::Histogram => "histogram",
    }
}

fn show(text: &mut String, metric: &Metric, sample: &Sample) {
    let (name, labels) = (metric.name, labels(metric, sample));
    match &sample.value {
        Value::Number(number) => line(text, format_args!("{name}{} {number}", braced(&labels))),
        Value::Distribution(distribution) => {
            let bounds = BOUNDS_MS.iter().map(|bound| (*bound as f64 / 1000.0).to_string());
            for (bound, count) in bounds.chain(["+Inf".to_owned()]).zip(distribution.up_to) {
                let labels: Vec<_> = labels.iter().cloned().chain([format!("le=\"{bound}\"")]).collect();
                line(text, format_args!("{name}_bucket{} {count}", braced(&labels)));
            }
            line(text, format_args!("{name}_sum{} {}", braced(&labels), distribution.sum.as_secs_f64()));
            line(text, format_args!("{name}_count{} {}", braced(&labels), distribution.count()));
        }
    }
}

fn labels(metric: &Metric, sample: &Sample) -> Vec<String> {
    let pairs = metric.labels.iter().zip(&sample.labels);
    pairs.map(|(label, value)| format!("{label}=\"{}\"", escaped(value))).collect()
}

fn braced(labels: &[String]) -> String {
    if labels.is_empty() { String::new() } else { format!("{{{}}}", labels.join(",")) }
}

fn escaped(value: &str) -> String {
    value.replace('\\', r"\\").replace('"', "\\\"").replace('\n', r"\n")
}

fn line(text: &mut String, line: std::fmt::Arguments<'_>) {
    writeln!(text, "{line}").expect("a string takes everything");
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use gen_worker_core::metric::Histogram;

    use super::*;

    static RUNS: Metric = Metric::counter("runs_total", "runs", &["function", "outcome"], "Runs.");
    static TOOK: Metric = Metric::histogram("took_seconds", &["stage"], "How long.");
    static HELD: Metric = Metric::gauge("held_bytes", "bytes", &[], "What is held.");

    #[test]
    fn readings_are_written_as_prometheus_reads_them() {
        let (mut readings, histogram) = (Readings::default(), Histogram::default());
        histogram.observe(Duration::from_millis(1));
        histogram.observe(Duration::from_secs(3600));
        readings.add_by(&RUNS, ["a\"b\\c\n", "success"], 3_u64);
        readings.add_by(&RUNS, ["d", "success"], 0_u64);
        readings.add_by(&TOOK, ["run"], &histogram);
        readings.add(&HELD, 67_108_864_u64);
        let text = render(&readings);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(
            lines[..4],
            [
                "# HELP runs_total Runs.",
                "# TYPE runs_total counter",
                r#"runs_total{function="a\"b\\c\n",outcome="success"} 3"#,
                r#"runs_total{function="d",outcome="success"} 0"#,
            ]
        );
        assert_eq!(
            lines[4..7],
            [
                "# HELP took_seconds How long.",
                "# TYPE took_seconds histogram",
                r#"took_seconds_bucket{stage="run",le="0.001"} 1"#,
            ]
        );
        assert_eq!(
            lines[18..],
            [
                r#"took_seconds_bucket{stage="run",le="1800"} 1"#,
                r#"took_seconds_bucket{stage="run",le="+Inf"} 2"#,
                r#"took_seconds_sum{stage="run"} 3600.001"#,
                r#"took_seconds_count{stage="run"} 2"#,
                "# HELP held_bytes What is held.",
                "# TYPE held_bytes gauge",
                "held_bytes 67108864",
            ]
        );
    }
}
