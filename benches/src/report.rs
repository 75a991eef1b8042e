//! Measurements beside their yardsticks and goals, for people and as JSON.

use serde::Serialize;

/// One line of the report.
#[derive(Serialize)]
pub(crate) struct Line {
    pub(crate) what: String,
    pub(crate) unit: &'static str,
    pub(crate) measured: f64,
    /// The same of the raw echo, or what the name of the line says.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) yardstick: Option<f64>,
    #[serde(skip_serializing_if = "str::is_empty")]
    pub(crate) goal: &'static str,
}

/// All lines, in the order of their measuring.
#[derive(Default, Serialize)]
pub(crate) struct Report {
    lines: Vec<Line>,
}

impl Report {
    pub(crate) fn add(&mut self, what: impl Into<String>, unit: &'static str, measured: f64) -> &mut Line {
        let line = Line { what: what.into(), unit, measured, yardstick: None, goal: "" };
        self.lines.push(line);
        self.lines.last_mut().expect("it was just added")
    }

    pub(crate) fn json(&self) -> String {
        serde_json::to_string_pretty(self).expect("numbers and texts have a JSON form")
    }

    pub(crate) fn table(&self) -> String {
        let mut table = row(&["what", "measured", "unit", "yardstick", "ratio", "goal"]);
        for line in &self.lines {
            let yardstick = line.yardstick.map(number).unwrap_or_default();
            let ratio = line.yardstick.map(|yardstick| format!("{:.2}", line.measured / yardstick));
            table += &row(&[
                &line.what,
                &number(line.measured),
                line.unit,
                &yardstick,
                ratio.as_deref().unwrap_or_default(),
                line.goal,
            ]);
        }
        table
    }
}

impl Line {
    pub(crate) fn beside(&mut self, yardstick: f64) -> &mut Self {
        self.yardstick = Some(yardstick);
        self
    }

    pub(crate) fn goal(&mut self, goal: &'static str) {
        self.goal = goal;
    }
}

fn row([what, measured, unit, yardstick, ratio, goal]: &[&str; 6]) -> String {
    format!("{what:<52}{measured:>10} {unit:<7}{yardstick:>11}{ratio:>7}  {goal}").trim_end().to_owned()
        + "\n"
}

fn number(value: f64) -> String {
    if value.abs() < 100.0 { format!("{value:.2}") } else { format!("{value:.0}") }
}
