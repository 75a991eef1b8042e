//! A real browser, headless, told what to do over the DevTools protocol: JSON messages, each ended by a zero byte, over two
//! pipes. It ends when the pipes do.
//!
//! Waits happen within the page, so nothing here sleeps. What the page complains of (exceptions, errors on its console,
//! what its content security policy refused) is kept.

use std::{
    io::{BufRead, BufReader, Write},
    path::Path,
    process::{Child, ChildStdin, Command, Stdio},
    sync::{
        Mutex, MutexGuard, PoisonError,
        mpsc::{Receiver, channel},
    },
    time::{Duration, Instant},
};

use base64::{Engine, engine::general_purpose::STANDARD};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::browser_program;

/// No step takes this long unless it never happens.
const PATIENCE: Duration = Duration::from_secs(30);

/// The pipes are inherited as the third and fourth file, as `--remote-debugging-pipe` has it.
const START: &str = r#"exec "$@" 3<&0 4>&1 </dev/null >/dev/null 2>&1"#;

const FLAGS: [&str; 12] = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--disable-extensions",
    "--no-first-run",
    "--no-default-browser-check",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--remote-debugging-pipe",
];

/// One browser for all tests of a process; whoever has it is alone with it.
static BROWSER: Mutex<Option<Browser>> = Mutex::new(None);

/// A running browser.
pub struct Browser {
    child: Child,
    commands: ChildStdin,
    messages: Receiver<Value>,
    complaints: Vec<String>,
    last_id: u64,
    _profile: TempDir,
}

impl Browser {
    /// The browser, started if it is not running. The calls of a page block their thread.
    ///
    /// # Panics
    /// It cannot be started: see `cargo xtask browser`.
    pub fn lock() -> Page {
        let mut browser = BROWSER.lock().unwrap_or_else(PoisonError::into_inner);
        let own = browser.get_or_insert_with(Self::start);
        own.complaints.clear();
        let context = own.call("", "Target.createBrowserContext", json!({}));
        let context = context["browserContextId"].as_str().expect("a context has an id").to_owned();
        let about = json!({"url": "about:blank", "browserContextId": context});
        let target = own.call("", "Target.createTarget", about);
        let attach = json!({"targetId": target["targetId"], "flatten": true});
        let session = own.call("", "Target.attachToTarget", attach)["sessionId"].as_str().map(str::to_owned);
        let mut page = Page { browser, context, session: session.expect("a session has an id") };
        for domain in ["Page", "Runtime", "Log", "Network"] {
            page.call(&format!("{domain}.enable"), json!({}));
        }
        page.resize(1280, 900);
        page
    }

    fn start() -> Self {
        let profile = tempfile::tempdir().expect("a temporary folder");
        let mut child = Command::new("sh")
            .args(["-c", START, "sh"])
            .arg(browser_program())
            .args(FLAGS)
            .arg(format!("--user-data-dir={}", profile.path().display()))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("a browser starts; `cargo xtask browser` puts one in place");
        let commands = child.stdin.take().expect("stdin is piped");
        let mut replies = BufReader::new(child.stdout.take().expect("stdout is piped"));
        let (sender, messages) = channel();
        std::thread::spawn(move || {
            let mut message = Vec::new();
            while replies.read_until(0, &mut message).is_ok_and(|length| length > 0) {
                let text = message.strip_suffix(&[0]).unwrap_or(&message);
                let Ok(value) = serde_json::from_slice(text) else { return };
                if sender.send(value).is_err() {
                    return;
                }
                message.clear();
            }
        });
        Self { child, commands, messages, complaints: Vec::new(), last_id: 0, _profile: profile }
    }

    /// Sends a command that works.
    fn call(&mut self, session: &str, method: &str, params: Value) -> Value {
        self.ask(session, method, params).unwrap_or_else(|error| panic!("{method}: {error}"))
    }

    /// Sends a command and waits for its answer.
    fn ask(&mut self, session: &str, method: &str, params: Value) -> Result<Value, Value> {
        self.last_id += 1;
        let mut command = json!({"id": self.last_id, "method": method, "params": params});
        if !session.is_empty() {
            command["sessionId"] = session.into();
        }
        self.commands.write_all(format!("{command}\0").as_bytes()).expect("the browser listens");
        loop {
            let answer = self.messages.recv_timeout(PATIENCE);
            let mut message = answer.unwrap_or_else(|error| panic!("{method}: {error}"));
            if message["id"] == self.last_id {
                return if message["error"].is_null() {
                    Ok(message["result"].take())
                } else {
                    Err(message["error"].take())
                };
            }
            self.complaints.extend(complaint(&message));
        }
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What a message says that should not be: an exception, or an error in the log or on the console.
fn complaint(message: &Value) -> Option<String> {
    let params = &message["params"];
    match message["method"].as_str()? {
        "Runtime.exceptionThrown" => Some(params["exceptionDetails"].to_string()),
        "Log.entryAdded" if params["entry"]["level"] == "error" => {
            let entry = &params["entry"];
            Some(format!("{} {} {}", entry["source"], entry["text"], entry["url"]))
        }
        "Runtime.consoleAPICalled" if params["type"] == "error" => Some(params["args"].to_string()),
        _ => None,
    }
}

/// One page with a profile of its own, as a person has it before them. It is closed when dropped.
pub struct Page {
    browser: MutexGuard<'static, Option<Browser>>,
    context: String,
    session: String,
}

impl Page {
    fn call(&mut self, method: &str, params: Value) -> Value {
        let session = self.session.clone();
        self.browser.as_mut().expect("it was started").call(&session, method, params)
    }

    /// Goes to an address, and returns when the page has been loaded.
    pub fn open(&mut self, url: &str) {
        let went = self.call("Page.navigate", json!({"url": url}));
        assert!(went.get("errorText").is_none(), "{url}: {went}");
        self.loaded();
    }

    /// Loads the page again.
    pub fn reload(&mut self) {
        self.eval("window.beforeReload = true");
        self.call("Page.reload", json!({}));
        self.until("window.beforeReload === undefined");
        self.loaded();
    }

    fn loaded(&mut self) {
        self.until("document.readyState === 'complete' && document.getElementById('link')?.dataset.state !== 'waiting'");
    }

    /// The size of the window, in CSS pixels.
    pub fn resize(&mut self, width: u32, height: u32) {
        let size = json!({"width": width, "height": height, "deviceScaleFactor": 1, "mobile": false});
        self.call("Emulation.setDeviceMetricsOverride", size);
    }

    /// Whether the person prefers dark pages.
    pub fn prefer_dark(&mut self, dark: bool) {
        let value = if dark { "dark" } else { "light" };
        let features = json!([{"name": "prefers-color-scheme", "value": value}]);
        self.call("Emulation.setEmulatedMedia", json!({"features": features}));
    }

    /// The value of an expression; of a promise, what it comes to.
    ///
    /// # Panics
    /// It throws.
    pub fn eval(&mut self, expression: &str) -> Value {
        let asked = json!({"expression": expression, "awaitPromise": true, "returnByValue": true});
        let mut told = self.call("Runtime.evaluate", asked);
        assert!(told.get("exceptionDetails").is_none(), "{expression}: {}", told["exceptionDetails"]);
        told["result"]["value"].take()
    }

    /// Waits until an expression is true, however often the page is loaded meanwhile.
    ///
    /// # Panics
    /// It is never true.
    pub fn until(&mut self, expression: &str) {
        let wait = format!(
            "new Promise((resolve) => {{
                const until = performance.now() + 1000;
                const look = () => {{
                    let found = false;
                    try {{ found = Boolean({expression}); }} catch {{}}
                    if (found || performance.now() > until) resolve(found);
                    else setTimeout(look, 20);
                }};
                look();
            }})"
        );
        let since = Instant::now();
        while since.elapsed() < PATIENCE {
            let asked = json!({"expression": wait, "awaitPromise": true, "returnByValue": true});
            // The page may be loaded again while it waits; then the answer is an error.
            let answer =
                self.browser.as_mut().expect("it was started").ask(&self.session, "Runtime.evaluate", asked);
            if answer.is_ok_and(|told| told["result"]["value"] == true) {
                return;
            }
        }
        let shown = self.eval("document.body.innerText");
        panic!("it never happened: {expression}\n{}", shown.as_str().unwrap_or_default());
    }

    /// Where an element is, once there is one and it has been scrolled to.
    fn middle_of(&mut self, selector: &str) -> Value {
        let selector = text(selector);
        self.until(&format!("document.querySelector({selector})"));
        self.eval(&format!(
            "(() => {{
                const one = document.querySelector({selector});
                one.scrollIntoView({{ block: 'center' }});
                const {{ x, y, width, height }} = one.getBoundingClientRect();
                return [x + width / 2, y + height / 2];
            }})()"
        ))
    }

    /// Clicks into the middle of an element.
    pub fn click(&mut self, selector: &str) {
        let middle = self.middle_of(selector);
        for kind in ["mousePressed", "mouseReleased"] {
            let event =
                json!({"type": kind, "x": middle[0], "y": middle[1], "button": "left", "clickCount": 1});
            self.call("Input.dispatchMouseEvent", event);
        }
    }

    /// Drops a file onto an element.
    pub fn drop_file(&mut self, selector: &str, file: &Path) {
        let middle = self.middle_of(selector);
        let data = json!({"items": [], "files": [file], "dragOperationsMask": 1});
        for kind in ["dragEnter", "dragOver", "drop"] {
            let event = json!({"type": kind, "x": middle[0], "y": middle[1], "data": data});
            self.call("Input.dispatchDragEvent", event);
        }
    }

    /// Chooses a file in an `<input type="file">`.
    pub fn choose_file(&mut self, selector: &str, file: &Path) {
        let asked = json!({"expression": format!("document.querySelector({})", text(selector))});
        let found = self.call("Runtime.evaluate", asked);
        let object = &found["result"]["objectId"];
        self.call("DOM.setFileInputFiles", json!({"files": [file], "objectId": object}));
    }

    /// Types a text where the focus is.
    pub fn type_text(&mut self, typed: &str) {
        self.call("Input.insertText", json!({"text": typed}));
    }

    /// Presses one key: `Tab`, `Enter`, `Space` or an arrow; with `Shift+` in front, together with it.
    ///
    /// # Panics
    /// It is another key.
    pub fn press(&mut self, key: &str) {
        let (modifiers, key) = key.strip_prefix("Shift+").map_or((0, key), |key| (8, key));
        let (name, code, number, typed) = match key {
            "Tab" => ("Tab", "Tab", 9, None),
            "Enter" => ("Enter", "Enter", 13, Some("\r")),
            "Space" => (" ", "Space", 32, Some(" ")),
            "ArrowDown" => ("ArrowDown", "ArrowDown", 40, None),
            "ArrowUp" => ("ArrowUp", "ArrowUp", 38, None),
            other => panic!("no key {other}"),
        };
        for kind in ["keyDown", "keyUp"] {
            let mut event = json!({
                "type": kind, "key": name, "code": code, "windowsVirtualKeyCode": number, "modifiers": modifiers,
            });
            if let Some(typed) = typed.filter(|_| kind == "keyDown") {
                event["text"] = typed.into();
            }
            self.call("Input.dispatchKeyEvent", event);
        }
    }

    /// The page as a PNG, from its top to its end.
    pub fn picture(&mut self) -> Vec<u8> {
        let asked = json!({"format": "png", "captureBeyondViewport": true});
        let taken = self.call("Page.captureScreenshot", asked);
        let data = taken["data"].as_str().expect("a picture is text");
        STANDARD.decode(data).expect("in base64")
    }

    /// What the page complained of since this was asked last.
    pub fn complaints(&mut self) -> Vec<String> {
        // What was said before this answer has been read.
        self.eval("0");
        std::mem::take(&mut self.browser.as_mut().expect("it was started").complaints)
    }
}

impl Drop for Page {
    fn drop(&mut self) {
        let context = json!({"browserContextId": self.context});
        if let Some(browser) = self.browser.as_mut().filter(|_| !std::thread::panicking()) {
            browser.call("", "Target.disposeBrowserContext", context);
        } else {
            // A test that failed leaves nothing behind for the next one.
            self.browser.take();
        }
    }
}

/// A text as a literal of a script.
fn text(text: &str) -> String {
    Value::from(text).to_string()
}
