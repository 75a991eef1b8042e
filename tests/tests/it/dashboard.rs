//! The dashboard in a real browser, with real workers behind it.

use std::path::{Path, PathBuf};

use gen_worker_orchestrator::{Orchestrator, OrchestratorConfig};
use gen_worker_tests::{Browser, Page, WorkerProcess, WorkerSettings};
use tempfile::TempDir;

const UPSCALE: &str = env!("CARGO_BIN_EXE_upscale-under-test");
const EXAMPLE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../examples/upscale");

/// Of the example, by its plain path: a browser takes no other.
fn example(path: &str) -> PathBuf {
    Path::new(EXAMPLE).join(path).canonicalize().unwrap()
}

/// An orchestrator, a worker, and a page that shows them.
struct Scene {
    page: Page,
    _worker: WorkerProcess,
    _orchestrator: Orchestrator,
    _folder: TempDir,
}

impl Scene {
    async fn start(binary: &str, change: impl FnOnce(&mut OrchestratorConfig)) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut config = OrchestratorConfig {
            models_dir: Some(example("models")),
            ..OrchestratorConfig::local(folder.path().join("data"))
        };
        change(&mut config);
        let token = config.api_token.clone();
        let orchestrator = Orchestrator::start(config).await.unwrap();
        let url = orchestrator.base_url().to_string();
        let worker = WorkerSettings::anywhere(binary)
            .set("SCHEDULER_ADDR", orchestrator.grpc_addr().to_string())
            .set("COZY_HUB_URL", format!("{url}hub"))
            .set("COZY_HUB_TOKEN", token.as_ref().map_or("", |token| token.expose()))
            .start();
        let mut page = Browser::lock();
        page.open(&url);
        Self { page, _worker: worker, _orchestrator: orchestrator, _folder: folder }
    }

    /// Chooses a function once a worker offers it.
    fn choose(&mut self, function: &str) {
        self.page.until(&format!(
            "[...document.querySelector('#function').options].some((one) => one.value === '{function}')"
        ));
        self.page.eval(&format!(
            "document.querySelector('#function').value = '{function}';
             document.querySelector('#function').dispatchEvent(new Event('change'))"
        ));
    }

    fn until_shown(&mut self, state: &str) {
        self.page.until(&format!("document.querySelector('.run .badge').textContent === '{state}'"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_picture_is_enlarged_from_the_page() {
    let mut scene = Scene::start(UPSCALE, |_| {}).await;
    scene.choose("upscale");
    scene.page.drop_file(".drop", &example("chelsea.png"));
    scene.page.until("/chelsea.png, \\d/.test(document.querySelector('.drop-state').textContent)");
    scene.page.eval(
        "window.shares = new Set();
         new MutationObserver(() => {
             const bar = document.querySelector('.progress progress');
             if (bar) window.shares.add(bar.value);
         }).observe(document.querySelector('#run'), { subtree: true, childList: true })",
    );
    scene.page.click("#start");
    scene.until_shown("succeeded");
    scene.page.until("document.querySelector('.file-output img')?.naturalWidth === 902");
    let shares = scene.page.eval("[...window.shares]");
    assert!(shares.as_array().unwrap().len() > 1, "{shares}");
    scene.page.until("document.querySelectorAll('.waterfall tbody tr').length >= 3");
    assert_eq!(scene.page.complaints(), [""; 0]);
}
