//! The fields of a span as a JSON object.

use std::fmt;

use tracing::field::{Field, Visit};
use tracing_subscriber::{
    field::RecordFields,
    fmt::{FormatFields, FormattedFields, format::Writer},
};

/// Writes the fields of a span as they come. Every run has a span, whether or not its code logs, and the library's own way,
/// through a table of values, takes several times as long.
pub(super) struct ObjectFields;

impl<'writer> FormatFields<'writer> for ObjectFields {
    fn format_fields<R: RecordFields>(&self, writer: Writer<'writer>, fields: R) -> fmt::Result {
        let mut object = Object { writer, is_empty: true, result: Ok(()) };
        object.result = object.writer.write_char('{');
        fields.record(&mut object);
        object.result?;
        object.writer.write_char('}')
    }

    /// Of a field that is recorded again, the last value is shown.
    fn add_fields(
        &self,
        current: &'writer mut FormattedFields<Self>,
        fields: &tracing::span::Record<'_>,
    ) -> fmt::Result {
        // Whatever was recorded first wrote an object, if an empty one.
        current.fields.pop();
        let is_empty = current.fields.len() <= 1;
        let mut object = Object { writer: current.as_writer(), is_empty, result: Ok(()) };
        fields.record(&mut object);
        object.result?;
        object.writer.write_char('}')
    }
}

struct Object<'writer> {
    writer: Writer<'writer>,
    is_empty: bool,
    result: fmt::Result,
}

impl Object<'_> {
    fn field(&mut self, field: &Field, value: impl fmt::Display) {
        let comma = if std::mem::replace(&mut self.is_empty, false) { "" } else { "," };
        // The names of raw identifiers begin so.
        let name = field.name().trim_start_matches("r#");
        let written = write!(self.writer, "{comma}\"{name}\":{value}");
        self.result = self.result.and(written);
    }

    fn text(&mut self, field: &Field, text: &str) {
        self.field(field, serde_json::to_string(text).unwrap_or_default());
    }
}

impl Visit for Object<'_> {
    fn record_i64(&mut self, field: &Field, value: i64) {
        self.field(field, value);
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.field(field, value);
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.field(field, value);
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        self.field(field, serde_json::Value::from(value));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.text(field, value);
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.text(field, &format!("{value:?}"));
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io,
        sync::{Arc, Mutex, PoisonError},
    };

    use serde_json::{Value, json};
    use tracing_subscriber::fmt::MakeWriter;

    use super::*;

    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap_or_else(PoisonError::into_inner).write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl MakeWriter<'_> for Lines {
        type Writer = Self;

        fn make_writer(&self) -> Self {
            self.clone()
        }
    }

    /// The spans of a line that is logged here.
    fn spans(log: impl FnOnce()) -> Value {
        let lines = Lines::default();
        let subscriber = tracing_subscriber::fmt()
            .json()
            .with_current_span(false)
            .fmt_fields(ObjectFields)
            .with_writer(lines.clone())
            .finish();
        tracing::subscriber::with_default(subscriber, log);
        let line = lines.0.lock().unwrap().clone();
        let mut line: Value = serde_json::from_slice(&line).unwrap();
        line["spans"].take()
    }

    #[test]
    fn every_kind_of_field_is_shown_once_as_itself() {
        let shown = spans(|| {
            let text = "a \"quoted\"\nline \u{1b}[0m é";
            let outer = tracing::info_span!("outer", text, int = -1_i64, uint = u64::MAX, yes = true);
            let _outer = outer.entered();
            let inner =
                tracing::info_span!("inner", float = 0.5, nan = f64::NAN, seen = ?Some(1), r#type = "t");
            inner.in_scope(|| tracing::info!("hello"));
        });
        let outer = json!({
            "name": "outer", "text": "a \"quoted\"\nline \u{1b}[0m é", "int": -1, "uint": u64::MAX, "yes": true,
        });
        let inner = json!({"name": "inner", "float": 0.5, "nan": null, "seen": "Some(1)", "type": "t"});
        assert_eq!(shown, json!([outer, inner]));
    }

    #[test]
    fn what_is_recorded_later_is_added() {
        let shown = spans(|| {
            let later = tracing::info_span!("later", a = tracing::field::Empty, b = tracing::field::Empty);
            let _later = later.clone().entered();
            later.record("a", 1);
            later.record("b", "two");
            later.record("a", 3);
            tracing::info!("hello");
        });
        assert_eq!(shown, json!([{"name": "later", "a": 3, "b": "two"}]));
    }
}
