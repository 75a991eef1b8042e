//! What `cozy.toml` says of functions, against the functions that there are.

use std::collections::BTreeSet;

use gen_worker::__command::{CozyToml, did_you_mean, quoted};
use serde_json::Value;

use super::Finding;

/// Modules without functions, and models without references.
pub(super) fn mistakes(cozy: &CozyToml, manifest: &Value) -> Vec<Finding> {
    let functions = manifest["functions"].as_array().map_or(&[][..], Vec::as_slice);
    let mut findings = Vec::new();
    let modules: BTreeSet<&str> = functions.iter().filter_map(|one| one["module"].as_str()).collect();
    for module in cozy.modules.iter().filter(|module| !modules.iter().any(|path| is_in(path, module))) {
        let guess = did_you_mean(module, modules.iter().copied());
        let there = quoted(modules.iter().copied());
        let text = format!(
            "`[functions] modules` names `{module}`, which has no function{guess}; functions are in {there}"
        );
        findings.push(Finding::error("unknown_module", text));
    }
    let models: Vec<&str> = cozy.models.iter().map(|(key, _)| key.as_str()).collect();
    for function in functions {
        let keys = function["required_models"].as_array().into_iter().flatten().filter_map(Value::as_str);
        for key in keys.filter(|key| !models.contains(key)) {
            let guess = did_you_mean(key, models.iter().copied());
            let name = function["name"].as_str().unwrap_or_default();
            let text = format!(
                "`{name}` takes the model `{key}` of the deployment, which `[models]` does not have{guess}"
            );
            findings.push(Finding::error("unknown_model", text));
        }
    }
    findings
}

/// Whether a path of Rust is this module: as it is, or without the crate's name in front.
fn is_in(path: &str, module: &str) -> bool {
    path == module || path.split_once("::").is_some_and(|(_, within)| within == module)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[track_caller]
    fn check(cozy: &str, expected: &[&str]) {
        let manifest = json!({"functions": [
            {"name": "draw", "module": "my_worker", "required_models": ["base"]},
            {"name": "count", "module": "my_worker::text", "required_models": []},
        ]});
        let (cozy, mistakes) = CozyToml::parse(cozy);
        assert_eq!(mistakes, []);
        let found = super::mistakes(&cozy, &manifest);
        assert_eq!(found.iter().map(|finding| finding.message.as_str()).collect::<Vec<_>>(), expected);
    }

    #[test]
    fn modules_have_functions_and_models_have_references() {
        let models = "[models]\nbase = 'org/repo'\n";
        check(&format!("[functions]\nmodules = ['my_worker', 'text', 'my_worker::text']\n{models}"), &[]);
        check(
            &format!("[functions]\nmodules = ['my_wrker']\n{models}"),
            &[
                "`[functions] modules` names `my_wrker`, which has no function: did you mean `my_worker`?; functions \
               are in `my_worker`, `my_worker::text`",
            ],
        );
        check(
            "[functions]\nmodules = ['text']\n[models]\nbse = 'org/repo'\n",
            &[
                "`draw` takes the model `base` of the deployment, which `[models]` does not have: did you mean `bse`?",
            ],
        );
    }
}
