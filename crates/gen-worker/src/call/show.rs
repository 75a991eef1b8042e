//! What a person sees of a run: bars on a terminal, lines elsewhere; results on stdout, everything else on stderr.
#![expect(clippy::print_stderr, reason = "this is what the person asked to see")]

use std::{
    io::{self, IsTerminal, Write},
    time::{Duration, Instant},
};

use gen_worker_orchestrator::RunEvent;
use indicatif::{HumanBytes, MultiProgress, ProgressBar, ProgressStyle};
use serde_json::{Value, json};

use super::files::Saved;

/// Lines between which this much time has passed are printed when there is no terminal for a bar.
const LINE_EVERY: Duration = Duration::from_secs(1);

pub(super) struct Show {
    /// For people, not for programs.
    pretty: bool,
    terminal: bool,
    bars: MultiProgress,
    download: Option<ProgressBar>,
    run: ProgressBar,
    last_line: Option<Instant>,
    timings: Value,
}

impl Show {
    pub(super) fn new(function: &str, pretty: bool) -> Self {
        let bars = MultiProgress::new();
        let run =
            bars.add(ProgressBar::new(1000).with_style(style("{prefix:>12} [{bar:30}] {percent:>3}% {msg}")));
        run.set_prefix(function.to_owned());
        run.tick();
        let terminal = std::io::stderr().is_terminal();
        Self { pretty, terminal, bars, download: None, run, last_line: None, timings: Value::Null }
    }

    pub(super) fn event(&mut self, event: &RunEvent) {
        let Ok(payload) = serde_json::from_slice::<Value>(&event.payload) else { return };
        match event.event_type.as_str() {
            "job.progress" => self.progress(&payload),
            "job.log" => self.line(payload["message"].as_str().unwrap_or_default()),
            "model.download" => self.download(&payload),
            "job.timings" => self.timings = payload,
            "output.delta" => self.delta(&payload),
            "events.dropped" => {
                self.line(&format!("{} events were lost: they came too fast", payload["count"]))
            }
            _ => {}
        }
    }

    fn progress(&mut self, payload: &Value) {
        let share = payload["progress"].as_f64().unwrap_or(0.0);
        let stage = payload["stage"].as_str().unwrap_or_default();
        self.run.set_position((share * 1000.0) as u64);
        self.run.set_message(stage.to_owned());
        self.now_and_then(share >= 1.0, || format!("{:3.0}% {stage}", share * 100.0));
    }

    fn download(&mut self, payload: &Value) {
        let (done, total) = (payload["bytes_done"].as_u64().unwrap_or(0), payload["bytes_total"].as_u64());
        let (bars, run) = (&self.bars, &self.run);
        let bar = self.download.get_or_insert_with(|| {
            let look = style("{prefix:>12} [{bar:30}] {bytes}/{total_bytes} {msg}");
            bars.insert_before(run, ProgressBar::new(0).with_style(look)).with_prefix("model")
        });
        let model = payload["model_id"].as_str().unwrap_or_default().to_owned();
        bar.set_length(total.unwrap_or(done));
        bar.set_position(done);
        bar.set_message(model.clone());
        let state = payload["state"].as_str().unwrap_or_default().replace('_', " ");
        let ended = state != "downloading";
        self.now_and_then(ended, || format!("model {model}: {state}, {done} bytes"));
    }

    /// Without a terminal there are no bars: a line a second says as much.
    fn now_and_then(&mut self, always: bool, text: impl FnOnce() -> String) {
        let due = always || self.last_line.is_none_or(|last| last.elapsed() >= LINE_EVERY);
        if !self.terminal && due {
            self.last_line = Some(Instant::now());
            eprintln!("{}", text());
        }
    }

    fn line(&self, text: &str) {
        self.bars.suspend(|| eprintln!("{text}"));
    }

    fn delta(&self, item: &Value) {
        let line = if self.pretty { format!("{item:#}") } else { json!({ "delta": item }).to_string() };
        self.bars.suspend(|| put_out(&line));
    }

    /// Leaves the bars where they stand.
    pub(super) fn leave_bars(&self) {
        self.download.iter().for_each(ProgressBar::abandon);
        self.run.abandon();
    }

    /// The result, and the files that were saved.
    pub(super) fn result(&self, output: &Value, saved: &[Saved]) {
        match (self.pretty, saved) {
            // After a stream there is nothing more to say.
            (true, _) if output.is_null() => {}
            (true, _) => put_out(&format!("{output:#}")),
            (false, []) => put_out(&json!({ "result": output }).to_string()),
            (false, saved) => {
                let files: Vec<Value> = saved.iter().map(Saved::json).collect();
                put_out(&json!({"result": output, "files": files}).to_string());
            }
        }
        for Saved { path, mime_type, size_bytes, .. } in saved {
            let mime_type = mime_type.as_deref().unwrap_or("unknown type");
            let size = size_bytes.map(|size| format!(", {}", HumanBytes(size))).unwrap_or_default();
            eprintln!("saved: {} ({mime_type}{size})", path.display());
        }
    }

    /// How long each stage took, in the order in which they happened.
    pub(super) fn timings(&self) {
        const STAGES: [(&str, &str); 8] = [
            ("queue_ms", "wait to start"),
            ("inputs_ms", "fetch inputs"),
            ("model_ms", "fetch model"),
            ("load_ms", "load model"),
            ("gpu_wait_ms", "wait for GPU"),
            ("run_ms", "run"),
            ("store_ms", "store output"),
            ("total_ms", "in all"),
        ];
        for (key, name) in STAGES {
            if let Some(ms) = self.timings[key].as_f64() {
                eprintln!("{name:>14} {ms:9.1} ms");
            }
        }
    }
}

/// A line for whoever reads the results. They may have left, say when they had enough of a stream: the run's files are wanted
/// all the same.
fn put_out(line: &str) {
    let _ = writeln!(io::stdout(), "{line}");
}

/// A line for the person at the terminal.
pub(super) fn say(line: &str) {
    eprintln!("{line}");
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).expect("the templates are constant").progress_chars("=> ")
}
