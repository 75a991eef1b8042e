//! The dashboard: one page and what it is made of, part of the program, so that it is there without a network.
//!
//! It holds nothing of anybody's, so it is served to whoever can reach it; what it shows it asks of the API, with the
//! token that the person gives. What a browser may do with it is said in [`POLICY`].

use axum::{
    body::Body,
    extract::Path,
    http::{HeaderName, HeaderValue, header},
    response::{IntoResponse, Response},
};

use crate::http_error::HttpError;

/// Scripts and styles from here only and none of them inline, requests to here only, pictures and films from here or made
/// by the page; no text becomes markup, and no other page shows this one within itself.
const POLICY: HeaderValue = HeaderValue::from_static(
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; media-src 'self' blob:; \
     connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; \
     require-trusted-types-for 'script'; trusted-types 'none'",
);

const HTML: &str = "text/html; charset=utf-8";
const CSS: &str = "text/css; charset=utf-8";
const SCRIPT: &str = "text/javascript; charset=utf-8";
const SVG: &str = "image/svg+xml";

/// The page's parts, by the names under which it asks for them.
const PARTS: [(&str, &str, &str); 10] = [
    ("style.css", CSS, include_str!("dashboard/style.css")),
    ("icon.svg", SVG, include_str!("dashboard/icon.svg")),
    ("app.js", SCRIPT, include_str!("dashboard/app.js")),
    ("api.js", SCRIPT, include_str!("dashboard/api.js")),
    ("dom.js", SCRIPT, include_str!("dashboard/dom.js")),
    ("form.js", SCRIPT, include_str!("dashboard/form.js")),
    ("output.js", SCRIPT, include_str!("dashboard/output.js")),
    ("run.js", SCRIPT, include_str!("dashboard/run.js")),
    ("schema.js", SCRIPT, include_str!("dashboard/schema.js")),
    ("workers.js", SCRIPT, include_str!("dashboard/workers.js")),
];

pub(crate) async fn page() -> Response {
    answer(HTML, include_str!("dashboard/index.html"))
}

pub(crate) async fn part(Path(name): Path<String>) -> Result<Response, HttpError> {
    let found = PARTS.iter().find(|(part, ..)| *part == name);
    let (_, mime_type, text) = found.ok_or_else(|| HttpError::not_found("part of the dashboard"))?;
    Ok(answer(mime_type, text))
}

fn answer(mime_type: &'static str, text: &'static str) -> Response {
    let plain = |name: HeaderName, value: &'static str| (name, HeaderValue::from_static(value));
    let headers = [
        plain(header::CONTENT_TYPE, mime_type),
        (header::CONTENT_SECURITY_POLICY, POLICY),
        plain(header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        plain(header::REFERRER_POLICY, "no-referrer"),
        plain(HeaderName::from_static("cross-origin-opener-policy"), "same-origin"),
        plain(HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
        // Parts of two versions do not go together.
        plain(header::CACHE_CONTROL, "no-store"),
    ];
    (headers, Body::from(text)).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_part_that_is_asked_for_is_there() {
        let page = include_str!("dashboard/index.html");
        let quoted = |text: &'static str, before: &'static str| {
            text.split(before).skip(1).map(|rest| rest.split('"').next().unwrap_or_default())
        };
        let mut asked: Vec<_> = quoted(page, "\"/dashboard/").collect();
        asked.extend(PARTS.iter().flat_map(|(_, _, text)| quoted(text, "from \"./")));
        assert!(asked.len() > PARTS.len());
        for name in asked {
            assert!(PARTS.iter().any(|(part, ..)| *part == name), "{name}");
        }
    }

    #[test]
    fn no_part_makes_markup_of_text_or_needs_what_the_policy_forbids() {
        let scripts = PARTS.iter().map(|(_, _, text)| *text);
        for text in scripts.chain([include_str!("dashboard/index.html")]) {
            for sink in [
                "innerHTML",
                "outerHTML",
                "insertAdjacentHTML",
                "document.write",
                "eval(",
                "style=\"",
                "onclick=\"",
            ] {
                assert!(!text.contains(sink), "{sink}");
            }
        }
    }
}
