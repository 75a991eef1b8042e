//! One thing that is wrong with a project.

use std::fmt;

use gen_worker::__command::CozyMistake;
use serde::Serialize;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Level {
    /// It must be mended.
    Error,
    /// It may be meant.
    Warning,
}

#[derive(Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Finding {
    pub(crate) level: Level,
    /// A word for programs.
    pub(crate) code: &'static str,
    /// What is wrong, and what would be right.
    pub(crate) message: String,
    /// Where; `None`: in the project as a whole.
    #[serde(flatten)]
    pub(crate) place: Option<Place>,
}

#[derive(Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Place {
    file: &'static str,
    line: usize,
    column: usize,
}

impl Finding {
    pub(crate) fn error(code: &'static str, message: impl Into<String>) -> Self {
        Self { level: Level::Error, code, message: message.into(), place: None }
    }

    pub(crate) fn warning(code: &'static str, message: impl Into<String>) -> Self {
        Self { level: Level::Warning, ..Self::error(code, message) }
    }
}

impl From<CozyMistake> for Finding {
    fn from(mistake: CozyMistake) -> Self {
        let place = Place { file: "cozy.toml", line: mistake.line, column: mistake.column };
        Self { place: Some(place), ..Self::error("cozy_toml", mistake.message) }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let level = match self.level {
            Level::Error => "error",
            Level::Warning => "warning",
        };
        write!(f, "{level}: ")?;
        if let Some(Place { file, line, column }) = &self.place {
            write!(f, "{file}:{line}:{column}: ")?;
        }
        f.write_str(&self.message)
    }
}
