//! The dashboard in a real browser, with real workers behind it.

mod scripted;

use std::path::{Path, PathBuf};

use gen_worker_orchestrator::{Orchestrator, OrchestratorClient, OrchestratorConfig, QueueStore, RunState};
use gen_worker_tests::{Browser, Page, WorkerProcess, WorkerSettings};
use serde_json::{Value, json};
use tempfile::TempDir;

use self::scripted::Scripted;
use super::{CONFORMANCE, status};

const UPSCALE: &str = env!("CARGO_BIN_EXE_upscale-under-test");
const CHECKPOINTS: &str = env!("CARGO_BIN_EXE_checkpoints-under-test");
const EXAMPLE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../examples/upscale");

/// What a page must not take for markup.
const HOSTILE: &str = "<img src=x onerror=window.pwned=1><script>window.pwned=1</script>";

/// Texts on the page of less contrast with what is behind them than WCAG AA asks, 4.5 to 1, and controls without a name.
const ILLEGIBLE: &str = include_str!("dashboard/illegible.js");

/// Of the example, by its plain path: a browser takes no other.
fn example(path: &str) -> PathBuf {
    Path::new(EXAMPLE).join(path).canonicalize().unwrap()
}

/// An orchestrator, and a page that shows it.
struct Scene {
    page: Page,
    url: String,
    client: OrchestratorClient,
    orchestrator: Orchestrator,
    folder: TempDir,
}

impl Scene {
    async fn start(change: impl FnOnce(&mut OrchestratorConfig)) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut config = OrchestratorConfig {
            models_dir: Some(example("models")),
            ..OrchestratorConfig::local(folder.path().join("data"))
        };
        change(&mut config);
        let token = config.api_token.clone();
        let orchestrator = Orchestrator::start(config).await.unwrap();
        let url = orchestrator.base_url().to_string();
        let client = OrchestratorClient::new(orchestrator.base_url().clone(), token).unwrap();
        let mut page = Browser::lock();
        page.open(&url);
        Self { page, url, client, orchestrator, folder }
    }

    /// A worker of this binary.
    fn worker(&self, binary: &str) -> WorkerProcess {
        self.settings(binary).start()
    }

    /// What a worker of this binary is started with.
    fn settings(&self, binary: &str) -> WorkerSettings {
        WorkerSettings::anywhere(binary)
            .set("SCHEDULER_ADDR", self.orchestrator.grpc_addr().to_string())
            .set("COZY_HUB_URL", format!("{}hub", self.url))
    }

    /// A worker that the test speaks for.
    async fn scripted(&self, worker_id: &str, function: &str, schema: &Value) -> Scripted {
        Scripted::connect(format!("http://{}", self.orchestrator.grpc_addr()), worker_id, function, schema)
            .await
    }

    /// Chooses a function once a worker offers it.
    fn choose(&mut self, function: &str) {
        let name = json!(function);
        self.page.until(&format!(
            "[...document.getElementById('function').options].some((one) => one.value === {name})"
        ));
        self.page.eval(&format!(
            "document.getElementById('function').value = {name};
             document.getElementById('function').dispatchEvent(new Event('change'))"
        ));
    }

    /// Types into the field of this label, in the place of what is there.
    fn fill(&mut self, label: &str, text: &str) {
        self.page.eval(&format!(
            "(() => {{
                const labels = [...document.querySelectorAll('#fields label')];
                const {{ htmlFor }} = labels.find((one) => one.firstChild.textContent === '{label}');
                document.getElementById(htmlFor).focus();
                document.getElementById(htmlFor).select();
            }})()"
        ));
        self.page.type_text(text);
    }

    /// Waits until the run that is shown has come to a state.
    fn until_shown(&mut self, state: &str) {
        self.page.until(&format!("document.querySelector('.run .badge').textContent === '{state}'"));
    }

    /// Fails if something is illegible in either scheme, or the page is wider than any window that people have.
    fn assert_legible(&mut self) {
        for dark in [false, true] {
            self.page.prefer_dark(dark);
            for width in [360, 800, 1600] {
                self.page.resize(width, 900);
                let wide = self.page.eval("document.documentElement.scrollWidth - innerWidth");
                assert!(wide.as_i64().unwrap() <= 0, "{wide} pixels beyond {width}");
            }
            assert_eq!(self.page.eval(ILLEGIBLE), json!([]), "dark: {dark}");
        }
        self.page.resize(1280, 900);
    }

    /// Fails if the page complained of anything.
    fn assert_quiet(&mut self) {
        assert_eq!(self.page.complaints(), [""; 0]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_picture_is_enlarged_from_the_page() {
    let mut scene = Scene::start(|_| {}).await;
    let _worker = scene.worker(UPSCALE);
    scene.choose("upscale");
    scene.page.drop_file(".drop", &example("chelsea.png"));
    scene.page.until("/chelsea.png, \\d/.test(document.querySelector('.drop-state').textContent)");
    scene.page.eval(
        "window.shares = new Set();
         new MutationObserver(() => {
             const bar = document.querySelector('.progress progress');
             if (bar) window.shares.add(bar.value);
         }).observe(document.getElementById('run'), { subtree: true, childList: true })",
    );
    scene.page.click("#start");
    scene.until_shown("succeeded");
    scene.page.until("document.querySelector('.file-output img')?.naturalWidth === 902");
    let shares = scene.page.eval("[...window.shares]");
    assert!(shares.as_array().unwrap().len() > 1, "{shares}");
    scene.page.until("document.querySelectorAll('.waterfall tbody tr').length >= 3");
    scene.page.until("document.querySelector('.model-list .hint')?.textContent.startsWith('resident')");
    scene.assert_legible();
    scene.assert_quiet();
}

#[tokio::test(flavor = "multi_thread")]
async fn hits_and_evictions_are_shown_while_more_models_than_fit_are_called() {
    const COUNT: usize = 12;
    let checkpoints = tempfile::tempdir().unwrap();
    checkpoints::make(checkpoints.path(), COUNT).unwrap();
    let mut scene = Scene::start(|config| config.models_dir = Some(checkpoints.path().to_owned())).await;
    let worker = scene.settings(CHECKPOINTS).set("WORKER_MAX_RAM_GB", "0.0625");
    let worker = worker.set("WORKER_HTTP_ADDR", "127.0.0.1:0").start();
    let address = status::address(&worker).await;
    let mut calls = 0.0;
    for seed in 1..=3 {
        checkpoints::send(&scene.client, COUNT, 20, seed, |_, _| ()).await.unwrap();
        let text = status::metrics(address).await;
        let of = |what: &str| status::value(&text, &format!("gen_worker_model_{what}_total"));
        let [hits, misses, loads, evictions] =
            ["memory_hits", "memory_misses", "loads", "memory_evictions"].map(of);
        calls += 20.0;
        assert_eq!((hits + misses, misses), (calls, loads), "one call after the other");
        let rate = (hits / calls * 100.0).round();
        for (place, shown) in [
            (".meter-value", format!("{rate} %, {hits} of {calls}")),
            (".hint", format!("{loads} loads, {evictions} evictions")),
        ] {
            scene.page.until(&format!(
                "document.querySelector('.model-traffic {place}')?.textContent === '{shown}'"
            ));
        }
        assert!(hits > 0.0 && evictions > 0.0 || seed == 1, "{text}");
    }
    let budget = "document.querySelector('.worker [aria-label=\"models in memory\"]').value";
    let share = scene.page.eval(budget);
    assert!(share.as_f64().is_some_and(|share| share > 0.8), "{share}");
    scene.assert_legible();
    scene.assert_quiet();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_is_still_there_after_a_reload_and_can_be_canceled() {
    let mut scene = Scene::start(|_| {}).await;
    let _worker = scene.worker(CONFORMANCE);
    scene.choose("progress");
    scene.fill("steps", "1000000");
    scene.fill("delay_ms", "20");
    scene.page.click("#start");
    let going_on =
        "document.querySelectorAll('.log li').length > 3 && document.querySelector('.progress progress')";
    scene.page.until(going_on);
    scene.page.reload();
    scene.page.until(going_on);
    scene.until_shown("running");
    let runs = scene.client.list().await.unwrap();
    assert_eq!((runs.len(), runs[0].state), (1, RunState::Running));
    scene.page.click(".run .danger");
    scene.until_shown("canceled");
    assert_eq!(scene.client.get(&runs[0].run_id).await.unwrap().state, RunState::Canceled);
    scene.page.until("document.querySelector('#runs-body .badge').textContent === 'canceled'");
    scene.assert_legible();
    scene.assert_quiet();
    // Again, with what it was called with, which outlived the reload.
    scene.page.click(".run .buttons button:not(.danger, .quiet)");
    scene.until_shown("running");
    assert_eq!(scene.client.list().await.unwrap().len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_looks_like_markup_is_shown_as_text() {
    let mut scene = Scene::start(|_| {}).await;
    let schema = json!({
        "title": HOSTILE, "description": HOSTILE, "type": "object",
        "properties": {(HOSTILE): {"type": "string", "description": HOSTILE, "default": HOSTILE}},
    });
    let mut worker = scene.scripted(HOSTILE, HOSTILE, &schema).await;
    worker.event("", "model.state", &json!({"model_id": HOSTILE, "state": HOSTILE, "bytes": 1})).await;
    scene.choose(HOSTILE);
    scene.page.click("#start");
    let request = worker.run().await;
    let said = [
        ("job.progress", json!({"progress": 0.5, "stage": HOSTILE})),
        ("job.log", json!({"message": HOSTILE, "level": HOSTILE})),
        (
            "model.download",
            json!({"model_id": HOSTILE, "state": "downloading", "bytes_done": 1, "bytes_total": 2}),
        ),
        ("output.delta", json!({"text": HOSTILE})),
        (HOSTILE, json!({"x": HOSTILE})),
    ];
    for (event_type, payload) in said {
        worker.event(&request.run_id, event_type, &payload).await;
    }
    scene
        .page
        .until("document.querySelectorAll('.log li').length === 2 && document.querySelector('.stream pre')");
    assert_eq!(scene.page.eval("document.querySelector('.stream pre').textContent"), HOSTILE);
    scene.assert_legible();
    let output = json!({
        "html": HOSTILE, (HOSTILE): HOSTILE, "page": {"ref": format!("runs/{HOSTILE}"), "mime_type": "text/html"},
        "elsewhere": {"ref": "javascript:window.pwned=1", "mime_type": "image/png"},
        "climbing": {"ref": "../workers", "mime_type": "image/png"},
    });
    worker.answer(&request, Ok(&output)).await;
    scene.until_shown("succeeded");
    scene.page.click("#start");
    let request = worker.run().await;
    worker.answer(&request, Err(HOSTILE)).await;
    scene.until_shown("failed");
    scene.page.until(&format!("document.querySelector('.failure').textContent.includes({})", json!(HOSTILE)));
    scene.assert_legible();
    let made = "document.querySelectorAll('main img, main script, [onerror]').length";
    assert_eq!((scene.page.eval(made), scene.page.eval("window.pwned ?? null")), (json!(0), json!(null)));
    scene.assert_quiet();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_form_refuses_what_its_schema_refuses() {
    let mut scene = Scene::start(|_| {}).await;
    let schema = json!({
        "$defs": {"Size": {
            "type": "object", "required": ["width"],
            "properties": {"width": {"type": "integer", "minimum": 16, "maximum": 1024}},
        }},
        "type": "object", "required": ["prompt", "size", "sampler"],
        "properties": {
            "prompt": {"type": "string", "maxLength": 5},
            "size": {"$ref": "#/$defs/Size"},
            "sampler": {"enum": ["euler", "ddim"]},
            "strength": {"type": "number", "exclusiveMinimum": 0, "default": 0.5},
            "seed": {"type": ["integer", "null"], "format": "uint64", "minimum": 0},
            "tags": {"type": "array", "items": {"type": "string"}, "maxItems": 1},
        },
    });
    let mut worker = scene.scripted("w", "paint", &schema).await;
    scene.choose("paint");
    let errors =
        "[...document.querySelectorAll('#fields .error:not([hidden])')].map((one) => one.textContent)";
    scene.page.click("#start");
    assert_eq!(scene.page.eval(errors), json!(["is needed", "is needed", "is needed"]));
    assert_eq!(scene.page.eval("document.activeElement.getAttribute('aria-invalid')"), "true");
    for (label, text) in [("prompt", "too long"), ("width", "8"), ("strength", "0"), ("seed", "1.5")] {
        scene.fill(label, text);
    }
    scene.page.eval("document.querySelector('#fields select').value = '1'");
    scene.page.click("#start");
    let wrong = json!([
        "must have at most 5 characters",
        "must be 16 to 1024",
        "must be a whole number",
        "must be more than 0",
    ]);
    assert_eq!(scene.page.eval(errors), wrong);
    assert_eq!(scene.client.list().await.unwrap(), []);
    for (label, text) in
        [("prompt", "a cat"), ("width", "512"), ("strength", "0.5"), ("seed", "18446744073709551615")]
    {
        scene.fill(label, text);
    }
    scene.page.click("#start");
    let request = worker.run().await;
    let expected = json!({"prompt": "a cat", "size": {"width": 512}, "sampler": "ddim", "seed": u64::MAX});
    assert_eq!(gen_worker_tests::unpack::<Value>(&request.input_payload), expected);
    scene.assert_quiet();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_form_says_whatever_a_schema_can_say() {
    let mut scene = Scene::start(|_| {}).await;
    let schema = json!({
        "$ref": "#/$defs/In",
        "$defs": {
            "In": {
                "type": "object", "required": ["mode", "files", "tree"],
                "properties": {
                    "mode": {"$ref": "#/$defs/Mode"},
                    "files": {"type": "array", "items": {"$ref": "#/$defs/Asset"}, "minItems": 1},
                    "mask": {"anyOf": [{"$ref": "#/$defs/Asset"}, {"type": "null"}]},
                    "tree": {"$ref": "#/$defs/Tree"},
                    "sampler": {"oneOf": [{"const": "euler", "description": "fast"}, {"const": "ddim"}]},
                    "level": {"enum": [1, 2, 3], "default": 1},
                    "flag": {"type": "boolean", "default": true},
                    "maybe": {"type": ["boolean", "null"]},
                    "text": {"type": ["string", "null"]},
                    "bytes": {"type": "string", "contentEncoding": "base64"},
                    "weights": {"type": "object", "additionalProperties": {"type": "number"}},
                    "pair": {"type": "array", "prefixItems": [{"type": "integer"}, {"type": "string"}], "items": false},
                },
            },
            "Asset": {
                "type": "object", "x-asset": true, "required": ["ref"], "properties": {"ref": {"type": "string"}},
            },
            "Mode": {"oneOf": [
                {"type": "object", "required": ["kind"], "properties": {"kind": {"const": "plain"}}},
                {
                    "type": "object", "required": ["kind", "scale"],
                    "properties": {"kind": {"const": "guided"}, "scale": {"type": "number"}},
                },
            ]},
            "Tree": {
                "type": "object", "required": ["name"],
                "properties": {
                    "name": {"type": "string"},
                    "children": {"type": "array", "items": {"$ref": "#/$defs/Tree"}},
                },
            },
        },
    });
    let payloads = [
        json!({"mode": {"kind": "plain"}, "files": [{"ref": "a"}], "tree": {"name": "root"}}),
        json!({
            "mode": {"kind": "guided", "scale": 7.5}, "files": [{"ref": "a"}, {"ref": "https://b/c"}],
            "mask": {"ref": "m", "size_bytes": 3}, "sampler": "ddim", "level": 3, "flag": false, "maybe": false,
            "tree": {"name": "root", "children": [{"name": "leaf", "children": [{"name": "bud"}]}]}, "text": "x",
            "bytes": "AAEC", "weights": {"w": 0.5}, "pair": [1, "x"],
        }),
    ];
    for payload in payloads {
        let again = scene.page.eval(&format!(
            "import('/dashboard/form.js').then(({{ payloadForm }}) => {{
                const form = payloadForm({schema});
                document.getElementById('fields').replaceChildren(form.node);
                form.set({payload});
                return form.check() === null ? form.get() : 'refused';
            }})"
        ));
        assert_eq!(again, payload);
    }
    scene.assert_legible();
    scene.assert_quiet();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_keyboard_is_enough() {
    let mut scene = Scene::start(|_| {}).await;
    let _worker = scene.worker(CONFORMANCE);
    scene.page.until("document.getElementById('function').options.length > 3");
    let tab_to = |scene: &mut Scene, wanted: &str| {
        for _ in 0..20 {
            scene.page.press("Tab");
            let shown = "(() => {
                const { outlineStyle, outlineWidth } = getComputedStyle(document.activeElement);
                return outlineStyle !== 'none' && parseFloat(outlineWidth) >= 2;
            })()";
            assert_eq!(
                scene.page.eval(shown),
                true,
                "{}",
                scene.page.eval("document.activeElement.outerHTML")
            );
            if scene.page.eval(&format!("document.activeElement.matches({})", json!(wanted))) == true {
                return;
            }
        }
        panic!("{wanted} is out of reach");
    };
    tab_to(&mut scene, ".skip");
    tab_to(&mut scene, "#function");
    for _ in 0..40 {
        if scene.page.eval("document.getElementById('function').value") == "echo" {
            break;
        }
        scene.page.press("ArrowDown");
    }
    tab_to(&mut scene, "#fields textarea");
    scene.page.type_text("by hand");
    tab_to(&mut scene, "#start");
    scene.page.press("Enter");
    scene.until_shown("succeeded");
    scene.page.until("document.querySelector('.output').textContent.includes('by hand')");
    scene.page.until("document.getElementById('said').textContent === 'echo: succeeded'");
    tab_to(&mut scene, ".run .buttons button:not(.danger, .quiet)");
    scene.page.press("Space");
    scene.page.until("document.querySelectorAll('#runs-body tbody tr').length === 2");
    scene.assert_quiet();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_is_asked_for_and_kept_in_the_tab() {
    let mut scene = Scene::start(|config| config.api_token = Some("api-token".into())).await;
    let mut worker = scene.scripted("w", "f", &json!({"type": "object", "properties": {}})).await;
    scene.page.until("document.getElementById('sign-in').open");
    scene.page.type_text("wrong");
    scene.page.press("Enter");
    scene
        .page
        .until("document.getElementById('sign-in').open && !document.getElementById('token-error').hidden");
    scene.assert_legible();
    scene.page.type_text("api-token");
    scene.page.press("Enter");
    scene.page.until("document.getElementById('link').dataset.state === 'connected'");
    scene.choose("f");
    scene.page.click("#start");
    let request = worker.run().await;
    let picture = std::fs::read(example("chelsea.png")).unwrap();
    let stored = scene.client.upload("cat.png", picture.into(), None).await.unwrap();
    worker.answer(&request, Ok(&json!({"image": stored}))).await;
    scene.until_shown("succeeded");
    scene.page.until("document.querySelector('.file-output img')?.naturalWidth === 451");
    scene.page.reload();
    scene.until_shown("succeeded");
    let kept = "[location.href, JSON.stringify(localStorage), document.cookie].join()";
    assert!(!scene.page.eval(kept).as_str().unwrap().contains("api-token"));
    let unexpected = scene.page.complaints();
    let unexpected: Vec<_> = unexpected.iter().filter(|said| !said.contains("401 (Unauthorized)")).collect();
    assert!(unexpected.is_empty(), "{unexpected:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_has_run_is_there_after_a_restart_of_the_orchestrator() {
    let mut scene = Scene::start(|config| config.queue = QueueStore::File).await;
    let mut worker = scene.scripted("w", "f", &json!({"type": "object", "properties": {}})).await;
    scene.choose("f");
    scene.page.click("#start");
    let request = worker.run().await;
    worker.answer(&request, Ok(&json!({"said": "what is kept"}))).await;
    scene.until_shown("succeeded");
    drop(worker);
    let Scene { mut page, orchestrator, folder, .. } = scene;
    let http = orchestrator.http_addr();
    orchestrator.stop().await;
    page.until("document.getElementById('link').dataset.state === 'lost'");
    let config = OrchestratorConfig {
        http,
        queue: QueueStore::File,
        ..OrchestratorConfig::local(folder.path().join("data"))
    };
    let orchestrator = Orchestrator::start(config).await.unwrap();
    page.until("document.getElementById('link').dataset.state === 'connected'");
    page.until("document.querySelectorAll('#runs-body tbody tr').length === 1");
    page.reload();
    page.until("document.querySelector('.output').textContent.includes('what is kept')");
    drop(page);
    orchestrator.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn another_page_can_neither_call_nor_read() {
    let mut scene = Scene::start(|_| {}).await;
    let url = scene.url.clone();
    let tried = |page: &mut Page, request: &str| {
        page.eval(&format!("fetch('{url}v1/{request}).then((answer) => answer.type, () => 'refused')"))
    };
    assert_eq!(tried(&mut scene.page, "runs'"), "basic");
    let folder = tempfile::tempdir().unwrap();
    let other = Orchestrator::start(OrchestratorConfig::local(folder.path())).await.unwrap();
    scene.page.open(&format!("{}healthz", other.base_url()));
    assert_eq!(tried(&mut scene.page, "runs'"), "refused");
    // A request that a browser sends without asking first.
    let upload = "files?name=x', { method: 'POST', mode: 'no-cors', body: 'x' }";
    assert_eq!(tried(&mut scene.page, upload), "opaque");
    let stored = scene.folder.path().join("data/files");
    assert!(!stored.exists(), "the file of another page was stored");
}
