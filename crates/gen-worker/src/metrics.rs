//! Every metric of a worker, in one page.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write,
    path::Path,
};

use gen_worker_core::metric::{Metric, MetricKind};
use yaml_rust2::{Yaml, YamlLoader};

/// The tables of all metrics, by subject.
fn tables() -> Vec<(&'static str, &'static [&'static Metric])> {
    vec![
        ("The worker", gen_worker_runtime::METRICS),
        ("Models", gen_worker_hub::METRICS),
        ("Outputs", gen_worker_upload::METRICS),
        ("The process", gen_worker_status::METRICS),
        ("The log", crate::backlog::METRICS),
        #[cfg(feature = "dev")]
        ("The orchestrator", gen_worker_orchestrator::METRICS),
    ]
}

/// `docs/operations/metrics.md` as the tables say it. `UPDATE_DOCS=1` writes it.
#[test]
fn the_metrics_page_is_up_to_date() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/operations/metrics.md");
    let page = page();
    #[expect(clippy::disallowed_methods, reason = "a switch of this test, no setting")]
    if std::env::var_os("UPDATE_DOCS").is_some() {
        std::fs::write(&path, &page).unwrap();
    }
    let current = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(current == page, "docs/operations/metrics.md is stale: run `cargo xtask docs`");
}

fn page() -> String {
    let mut page = String::from(include_str!("docs/metrics.md"));
    for (subject, metrics) in tables() {
        write!(
            page,
            "\n## {subject}\n\n| metric | kind | unit | labels | meaning |\n|---|---|---|---|---|\n"
        )
        .unwrap();
        for Metric { name, kind, unit, labels, help } in metrics {
            let labels =
                if labels.is_empty() { "–".to_owned() } else { format!("`{}`", labels.join("`, `")) };
            let kind = format!("{kind:?}").to_lowercase();
            writeln!(page, "| `{name}` | {kind} | {unit} | {labels} | {help} |").unwrap();
        }
    }
    page
}

#[test]
fn names_follow_the_conventions() {
    let mut seen = BTreeSet::new();
    for metric in tables().into_iter().flat_map(|(_, metrics)| metrics) {
        let Metric { name, kind, unit, labels, help } = metric;
        assert!(seen.insert(name), "{name} is there twice");
        assert!(name.starts_with("gen_worker_") || name.starts_with("process_"), "{name}");
        assert!(name.bytes().all(|c| c.is_ascii_lowercase() || c == b'_'), "{name}");
        assert_eq!(name.ends_with("_total"), *kind == MetricKind::Counter, "{name}");
        if ["seconds", "bytes"].contains(unit) {
            assert!(name.trim_end_matches("_total").ends_with(unit), "{name} must end with its unit, {unit}");
        }
        assert!(!unit.is_empty() && help.ends_with('.'), "{name}");
        // `le` is Prometheus's own; who a run, caller or model is has no bound.
        let unbounded = ["le", "run_id", "user_id", "tenant_id", "model", "worker_id"];
        assert!(labels.iter().all(|label| !unbounded.contains(label)), "{name}");
    }
}

/// A file of `docs/operations`.
fn example(name: &str) -> String {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/operations");
    std::fs::read_to_string(folder.join(name)).unwrap()
}

/// The words of a text that begin so, each once.
fn words<'t>(text: &'t str, prefixes: &[&str]) -> BTreeSet<&'t str> {
    let words = text.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'));
    words.filter(|word| prefixes.iter().any(|prefix| word.starts_with(prefix))).collect()
}

#[test]
fn the_board_and_the_alerts_ask_for_metrics_that_exist() {
    let metrics: Vec<_> = tables().into_iter().flat_map(|(_, metrics)| metrics).collect();
    let is_known = |word: &str| {
        metrics.iter().any(|Metric { name, kind, .. }| match kind {
            MetricKind::Histogram => {
                ["_bucket", "_sum", "_count"].iter().any(|part| word == format!("{name}{part}"))
            }
            MetricKind::Counter | MetricKind::Gauge => word == *name,
        })
    };
    for (file, least) in [("alerts.yml", 4), ("alerts.test.yml", 4), ("grafana.json", 4), ("fleet.yml", 3)] {
        let text = example(file);
        let asked = words(&text, &["gen_worker_", "process_"]);
        assert!(asked.len() >= least, "{file}");
        assert_eq!(asked.into_iter().find(|word| !is_known(word)), None, "{file}");
    }
}

#[test]
fn the_examples_set_variables_that_exist() {
    let known: BTreeSet<_> =
        crate::WorkerConfig::variables().into_iter().flat_map(|(_, vars)| vars).map(|var| var.name).collect();
    for file in ["gen-worker.service", "kubernetes.yml", "fleet.yml"] {
        let text = example(file);
        let set = words(&text, &["WORKER_", "SCHEDULER_", "ORCHESTRATOR_"]);
        assert!(set.len() > 5, "{file}");
        assert_eq!(set.into_iter().find(|word| !known.contains(word)), None, "{file}");
    }
}

/// The objects of a file of YAML, by kind and name.
fn objects(file: &str) -> BTreeMap<(String, String), Yaml> {
    let documents =
        YamlLoader::load_from_str(&example(file)).unwrap_or_else(|error| panic!("{file}: {error}"));
    let text = |value: &Yaml| value.as_str().unwrap_or_else(|| panic!("{file}: {value:?}")).to_owned();
    let named = documents.into_iter().map(|object| {
        assert!(object["apiVersion"].as_str().is_some() && object["spec"].as_hash().is_some(), "{file}");
        ((text(&object["kind"]), text(&object["metadata"]["name"])), object)
    });
    named.collect()
}

#[test]
fn the_manifests_hold_together() {
    for (file, count) in [("kubernetes.yml", 1), ("fleet.yml", 7)] {
        let objects = objects(file);
        assert_eq!(objects.len(), count, "{file}");
        let labels: Vec<_> =
            objects.values().map(|object| &object["spec"]["template"]["metadata"]["labels"]).collect();
        for ((kind, name), object) in &objects {
            let spec = &object["spec"];
            match kind.as_str() {
                "Service" => assert!(labels.contains(&&spec["selector"]), "{name} is a service of nothing"),
                "Deployment" | "StatefulSet" => {
                    assert_eq!(
                        spec["selector"]["matchLabels"], spec["template"]["metadata"]["labels"],
                        "{name}"
                    );
                    if kind == "StatefulSet" {
                        let service =
                            ("Service".to_owned(), spec["serviceName"].as_str().unwrap().to_owned());
                        assert_eq!(objects[&service]["spec"]["clusterIP"].as_str(), Some("None"), "{name}");
                    }
                    let pod = &spec["template"]["spec"];
                    let own = pod["volumes"].as_vec().into_iter().flatten().map(|volume| &volume["name"]);
                    let claimed = spec["volumeClaimTemplates"].as_vec().into_iter().flatten();
                    let there: Vec<_> = own.chain(claimed.map(|claim| &claim["metadata"]["name"])).collect();
                    for container in pod["containers"].as_vec().unwrap() {
                        for mount in container["volumeMounts"].as_vec().into_iter().flatten() {
                            assert!(there.contains(&&mount["name"]), "{name} mounts {mount:?}");
                        }
                    }
                }
                "ScaledObject" => {
                    let target = spec["scaleTargetRef"]["name"].as_str().unwrap();
                    assert!(objects.contains_key(&("Deployment".to_owned(), target.to_owned())), "{target}");
                }
                other => panic!("{file}: {other}"),
            }
        }
    }
}

/// A variable that the first container of a deployment's pods is given.
fn variable<'y>(object: &'y Yaml, name: &str) -> &'y str {
    let given = object["spec"]["template"]["spec"]["containers"][0]["env"].as_vec().unwrap();
    let found = given.iter().find(|variable| variable["name"].as_str() == Some(name));
    found.and_then(|variable| variable["value"].as_str()).unwrap_or_else(|| panic!("{name} is not set"))
}

#[test]
fn the_workers_of_the_fleet_go_where_its_orchestrators_send_them() {
    let objects = objects("fleet.yml");
    let of = |kind: &str, name: &str| &objects[&(kind.to_owned(), name.to_owned())];
    let (orchestrators, worker) = (of("StatefulSet", "orchestrator"), of("Deployment", "worker"));
    let allowed: Vec<_> = variable(worker, "SCHEDULER_REDIRECT_ALLOW").split(',').collect();
    let replicas = orchestrators["spec"]["replicas"].as_i64().unwrap();
    let sent_to: Vec<_> = (0..replicas)
        .map(|pod| {
            let address = variable(orchestrators, "ORCHESTRATOR_PUBLIC_GRPC_ADDR");
            address.replace("$(POD_NAME).orchestrators:8080", &format!("orchestrator-{pod}.orchestrators"))
        })
        .collect();
    assert_eq!(sent_to, allowed);
    assert_eq!(orchestrators["spec"]["serviceName"].as_str(), Some("orchestrators"));
}
