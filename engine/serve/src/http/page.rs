//! `GET /`: a chat for browsers, and what the server does. One file with all its parts inside, which asks no other host
//! for anything: the browser runs and shows nothing but what the header's hashes are of.

use std::sync::LazyLock;

use axum::http::header::{CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, REFERRER_POLICY};
use axum::response::{IntoResponse, Response};
use base64::prelude::{Engine, BASE64_STANDARD};
use sha2::{Digest, Sha256};

const HTML: &str = include_str!("../../page/index.html");
const STYLE: &str = include_str!("../../page/page.css");
/// In one scope; what is begun at once stands at the end of the last.
const SCRIPT: &str = concat!(
    include_str!("../../page/markdown.js"),
    include_str!("../../page/server.js"),
    include_str!("../../page/page.js"),
);
/// Where they go in the HTML.
const STYLE_PLACE: &str = "/*page.css*/";
const SCRIPT_PLACE: &str = "/*page.js*/";

struct Page {
    html: String,
    policy: String,
}

static PAGE: LazyLock<Page> = LazyLock::new(|| {
    let hash = |text: &str| BASE64_STANDARD.encode(Sha256::digest(text));
    Page {
        html: HTML
            .replace(STYLE_PLACE, STYLE)
            .replace(SCRIPT_PLACE, SCRIPT),
        policy: format!(
            "default-src 'self'; script-src 'sha256-{}'; style-src 'sha256-{}'; img-src 'self' data:; base-uri 'none'; \
             form-action 'none'; frame-ancestors 'none'",
            hash(SCRIPT),
            hash(STYLE)
        ),
    }
});

pub(super) async fn page() -> Response {
    let page = &*PAGE;
    let headers = [
        (CONTENT_TYPE, "text/html; charset=utf-8"),
        (CONTENT_SECURITY_POLICY, page.policy.as_str()),
        (REFERRER_POLICY, "no-referrer"),
        // A new version of the server has another page.
        (CACHE_CONTROL, "no-cache"),
    ];
    (headers, page.html.as_str()).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_is_small_and_whole() {
        assert!(PAGE.html.len() <= 60_000, "{}", PAGE.html.len());
        assert!(!PAGE.html.contains(STYLE_PLACE) && !PAGE.html.contains(SCRIPT_PLACE));
        // What would end the elements that they are in.
        assert!(!STYLE.contains("</style") && !SCRIPT.contains("</script"));
        // Model text is never taken for HTML, and no other host is asked.
        for taken in [
            "innerHTML",
            "outerHTML",
            "insertAdjacentHTML",
            "document.write",
            "eval(",
        ] {
            assert!(!SCRIPT.contains(taken), "{taken}");
        }
        assert!(!HTML.contains("http://") && !HTML.contains("https://"));
    }
}
