//! `/`: a chat page that needs nothing but this server.

use std::sync::LazyLock;

use axum::body::Body;
use axum::http::Response;
use axum::http::header::{CONTENT_SECURITY_POLICY, CONTENT_TYPE, X_CONTENT_TYPE_OPTIONS};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ring::digest::{SHA256, digest};

const PAGE: &str = include_str!("page.html");

/// What the page may do: run its one script, by its one style, and ask this server. It may load nothing from
/// elsewhere, and be shown inside of no other page.
static POLICY: LazyLock<String> = LazyLock::new(|| {
    let [style, script] = ["style", "script"].map(|name| {
        let inside = PAGE.split_once(&format!("<{name}>")).expect("it has one").1;
        let inside = inside.split_once(&format!("</{name}>")).expect("which ends").0;
        STANDARD.encode(digest(&SHA256, inside.as_bytes()))
    });
    format!(
        "default-src 'none'; style-src 'sha256-{style}'; script-src 'sha256-{script}'; \
         connect-src 'self'; base-uri 'none'; frame-ancestors 'none'"
    )
});

pub async fn page() -> Response<Body> {
    let page = Response::builder()
        .header(CONTENT_TYPE, "text/html; charset=utf-8")
        .header(CONTENT_SECURITY_POLICY, POLICY.as_str())
        .header(X_CONTENT_TYPE_OPTIONS, "nosniff")
        .body(Body::from(PAGE));
    page.expect("the parts are constants")
}
