//! The API's description, for programs that make clients of it. It is written by hand; tests hold it against the routes
//! and the types.

use axum::{
    http::{HeaderValue, header},
    response::{IntoResponse, Response},
};

const DOCUMENT: &str = include_str!("openapi.json");

/// The document; it holds nothing of anybody's.
pub(crate) async fn document() -> Response {
    ([(header::CONTENT_TYPE, HeaderValue::from_static("application/json"))], DOCUMENT).into_response()
}

/// The paths that it describes, sorted.
#[cfg(test)]
pub(crate) fn paths() -> Vec<String> {
    let document: serde_json::Value = serde_json::from_str(DOCUMENT).unwrap();
    let mut paths: Vec<_> = document["paths"].as_object().unwrap().keys().cloned().collect();
    paths.sort();
    paths
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use gen_worker_core::AssetRef;
    use serde_json::{Value, json};

    use crate::run::{RunError, RunState, RunSubmission, RunView};

    fn document() -> Value {
        serde_json::from_str(super::DOCUMENT).unwrap()
    }

    /// Every object in a document.
    fn walk(value: &Value, seen: &mut impl FnMut(&Value)) {
        seen(value);
        match value {
            Value::Object(fields) => fields.values().for_each(|field| walk(field, seen)),
            Value::Array(items) => items.iter().for_each(|item| walk(item, seen)),
            _ => {}
        }
    }

    #[test]
    fn what_it_points_to_is_there_and_operations_have_names_of_their_own() {
        let document = document();
        let mut names = BTreeMap::new();
        walk(&document, &mut |value| {
            if let Some(reference) = value.get("$ref").and_then(Value::as_str) {
                let target = document.pointer(reference.trim_start_matches('#'));
                assert!(target.is_some(), "{reference}");
            }
            if let Some(name) = value.get("operationId").and_then(Value::as_str) {
                *names.entry(name.to_owned()).or_insert(0) += 1;
                assert!(value["responses"].as_object().is_some_and(|answers| !answers.is_empty()), "{name}");
                assert!(value["summary"].is_string(), "{name}");
            }
        });
        assert!(names.len() > 15 && names.values().all(|count| *count == 1), "{names:?}");
    }

    #[test]
    fn whoever_asks_about_runs_may_find_the_queue_away() {
        let document = document();
        let of_runs =
            document["paths"].as_object().unwrap().iter().filter(|(path, _)| path.starts_with("/v1/runs"));
        for (path, item) in of_runs {
            for (method, operation) in
                item.as_object().unwrap().iter().filter(|(name, _)| *name != "parameters")
            {
                assert!(operation["responses"]["503"].is_object(), "{method} {path}");
            }
        }
    }

    #[test]
    fn parameters_of_a_path_are_described() {
        for (path, item) in document()["paths"].as_object().unwrap() {
            let in_path = path.split('{').skip(1).map(|rest| rest.split('}').next().unwrap());
            let wanted: BTreeSet<_> = in_path.collect();
            let of =
                |value: &Value| -> Vec<Value> { value["parameters"].as_array().cloned().unwrap_or_default() };
            let listed = of(item);
            let described: BTreeSet<_> = listed
                .iter()
                .filter(|one| one["in"] == "path")
                .map(|one| one["name"].as_str().unwrap())
                .collect();
            assert_eq!(described, wanted, "{path}");
        }
    }

    #[test]
    fn schemas_have_the_fields_of_the_types() {
        let document = document();
        let check = |name: &str, full: Value| {
            let schema = &document["components"]["schemas"][name];
            let described: BTreeSet<_> =
                schema["properties"].as_object().expect(name).keys().cloned().collect();
            let there: BTreeSet<_> = full.as_object().unwrap().keys().cloned().collect();
            assert_eq!(described, there, "{name}");
        };
        let text = || Some("x".to_owned());
        let error = RunError {
            kind: String::new(),
            message: String::new(),
            retryable: false,
            detail: "x".to_owned(),
        };
        check("RunError", json!(error));
        check(
            "RunSubmission",
            json!(RunSubmission {
                function: String::new(),
                payload: json!({}),
                run_id: text(),
                timeout_ms: Some(1),
                tenant_id: text(),
                user_id: text(),
                required_models: vec![String::new()],
            }),
        );
        check(
            "Run",
            json!(RunView {
                run_id: String::new(),
                function: String::new(),
                state: RunState::Queued,
                attempt: 1,
                worker: text(),
                tenant_id: text(),
                user_id: text(),
                created_at_ms: 0,
                started_at_ms: Some(0),
                finished_at_ms: Some(0),
                output: Some(json!(1)),
                error: Some(error),
            }),
        );
        check(
            "Asset",
            json!(AssetRef {
                reference: String::new(),
                tenant_id: None,
                mime_type: None,
                size_bytes: None,
                sha256: None
            }),
        );
        let states =
            [RunState::Queued, RunState::Running, RunState::Succeeded, RunState::Failed, RunState::Canceled];
        assert_eq!(document["components"]["schemas"]["RunState"]["enum"], json!(states));
    }
}
