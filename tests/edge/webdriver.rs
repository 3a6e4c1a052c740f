//! A real browser, driven over WebDriver (W3C Recommendation: JSON over HTTP).

use crate::harness::{PATIENCE, wait_for};
use crate::http::Connection;
use serde_json::{Value, json};
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};

/// The JSON key of an element's id in WebDriver.
const ELEMENT: &str = "element-6066-11e4-a52e-4f735466cecf";

/// A driver that ends at its start is started again so often at most.
const DRIVER_STARTS_MAX: usize = 5;

/// One Chromium with a profile of its own. Ends when dropped.
pub struct Browser {
    driver: Child,
    address: SocketAddr,
    session: String,
    _profile: tempfile::TempDir,
}

/// Starts a driver. `None`: it ended.
fn start_driver() -> Option<(Child, u16)> {
    let mut driver = Command::new("chromedriver")
        .arg("--port=0")
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("chromedriver is not here: install it by `.ci/need chromium chromedriver`");
    let mut lines = BufReader::new(driver.stdout.take().unwrap()).lines();
    let port = lines.by_ref().map_while(Result::ok).find_map(|line| {
        line.split("successfully on port ").nth(1)?.trim_end_matches('.').parse().ok()
    });
    // Drained in the background, so that later output does not fill the pipe.
    std::thread::spawn(move || lines.for_each(drop));
    if port.is_none() {
        driver.wait().unwrap();
    }
    Some((driver, port?))
}

impl Browser {
    /// Starts a browser; its driver listens on a port that the kernel chooses.
    pub fn start() -> Browser {
        // It looks for a port that is free over IPv4 and IPv6, and exits if another program takes
        // the port meanwhile.
        let (driver, port) = (0..DRIVER_STARTS_MAX)
            .find_map(|_| start_driver())
            .expect("chromedriver says on which port it listens");
        let profile = tempfile::tempdir().unwrap();
        let mut browser = Browser {
            driver,
            address: SocketAddr::from(([127, 0, 0, 1], port)),
            session: String::new(),
            _profile: profile,
        };
        let profile = format!("--user-data-dir={}", browser._profile.path().display());
        let arguments = [
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-quic",
            "--no-first-run",
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
            "--disable-dev-shm-usage",
            &profile,
        ];
        let wish = json!({ "capabilities": { "alwaysMatch": {
            "goog:chromeOptions": { "args": arguments },
            "goog:loggingPrefs": { "browser": "ALL" },
        } } });
        let session = browser.call("POST", "/session", &wish);
        let id = session["sessionId"].as_str();
        let id = id.unwrap_or_else(|| {
            panic!("no browser (install it by `.ci/need chromium chromedriver`): {session}")
        });
        browser.session = format!("/session/{id}");
        browser
    }

    fn call(&self, method: &str, path: &str, body: &Value) -> Value {
        let body = if method == "POST" { body.to_string() } else { String::new() };
        let mut connection = Connection::open(self.address);
        let head = format!(
            "{method} {path} HTTP/1.1\r\nHost: {}\r\nContent-Type: application/json\r\n\
             Content-Length: {}\r\n\r\n{body}",
            self.address,
            body.len()
        );
        connection.send(head.as_bytes());
        let answer = connection.read(method);
        let answer: Value = serde_json::from_slice(&answer.body).unwrap();
        answer["value"].clone()
    }

    fn post(&self, path: &str, body: &Value) -> Value {
        self.call("POST", &format!("{}{path}", self.session), body)
    }

    /// Opens an address.
    pub fn open(&self, url: &str) {
        let answer = self.post("/url", &json!({ "url": url }));
        assert!(answer.is_null(), "{answer}");
    }

    /// Runs the body of a function in the page and returns its result.
    pub fn ask(&self, script: &str) -> Value {
        self.post("/execute/sync", &json!({ "script": script, "args": [] }))
    }

    /// The visible text of the first match of a selector; empty if there is none.
    pub fn text(&self, selector: &str) -> String {
        let script = format!("return document.querySelector({})?.innerText ?? ''", json!(selector));
        self.ask(&script).as_str().unwrap_or_default().to_owned()
    }

    /// Waits until the text of an element contains `part`, and returns the text.
    pub fn wait_text(&self, selector: &str, part: &str) -> String {
        let mut text = String::new();
        let started = std::time::Instant::now();
        wait_for(&format!("{part:?} in {selector}"), || {
            text = self.text(selector);
            let late = started.elapsed() > PATIENCE - std::time::Duration::from_secs(2);
            assert!(!late || text.contains(part), "{selector} says {text:?} and not {part:?}");
            text.contains(part)
        });
        text
    }

    /// Types into the element that has the focus.
    pub fn press(&self, keys: &str) {
        let steps = keys.chars().flat_map(|key| {
            let key = key.to_string();
            [json!({ "type": "keyDown", "value": key }), json!({ "type": "keyUp", "value": key })]
        });
        let steps: Vec<Value> = steps.collect();
        let actions = json!({ "actions": [{ "type": "key", "id": "keys", "actions": steps }] });
        let answer = self.post("/actions", &actions);
        assert!(answer.is_null(), "{answer}");
    }

    /// Clicks the first match of a selector.
    pub fn click(&self, selector: &str) {
        let element = self.find(selector);
        let answer = self.post(&format!("/element/{element}/click"), &json!({}));
        assert!(answer.is_null(), "{answer}");
    }

    /// Types into the first match of a selector.
    pub fn fill(&self, selector: &str, text: &str) {
        let element = self.find(selector);
        let answer = self.post(&format!("/element/{element}/value"), &json!({ "text": text }));
        assert!(answer.is_null(), "{answer}");
    }

    fn find(&self, selector: &str) -> String {
        let by = json!({ "using": "css selector", "value": selector });
        let found = self.post("/element", &by);
        found[ELEMENT].as_str().unwrap_or_else(|| panic!("{selector}: {found}")).to_owned()
    }

    /// Shows the page on a screen of this width, in points, in the colour scheme `light` or `dark`.
    pub fn show(&self, width: u32, scheme: &str) {
        let screen =
            json!({ "width": width, "height": 900, "deviceScaleFactor": 1, "mobile": false });
        let scheme = json!({ "features": [{ "name": "prefers-color-scheme", "value": scheme }] });
        for (command, params) in
            [("setDeviceMetricsOverride", screen), ("setEmulatedMedia", scheme)]
        {
            self.devtools(&format!("Emulation.{command}"), &params);
        }
    }

    /// The names that a screen reader gets of all elements with this role.
    pub fn names_of(&self, role: &str) -> Vec<String> {
        let tree = self.devtools("Accessibility.getFullAXTree", &json!({}));
        let nodes = tree["nodes"].as_array().expect("an accessibility tree");
        let of_role = nodes.iter().filter(|node| node["role"]["value"] == role);
        let name = |node: &Value| node["name"]["value"].as_str().unwrap_or_default().to_owned();
        of_role.map(name).collect()
    }

    fn devtools(&self, command: &str, params: &Value) -> Value {
        self.post("/goog/cdp/execute", &json!({ "cmd": command, "params": params }))
    }

    /// The browser's error log: failed scripts and violated policies.
    pub fn complaints(&self) -> Vec<String> {
        let log = self.post("/se/log", &json!({ "type": "browser" }));
        let entries = log.as_array().cloned().unwrap_or_default();
        entries.iter().map(|entry| entry["message"].to_string()).collect()
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        if !self.session.is_empty() {
            // Ending the session ends Chromium; ending only the driver would leave it running.
            let path = std::mem::take(&mut self.session);
            let gone = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                self.call("DELETE", &path, &Value::Null)
            }));
            drop(gone);
        }
        let _ = self.driver.kill();
        let _ = self.driver.wait();
    }
}
