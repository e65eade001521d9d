//! Who may ask.

use axum::http::header::{
    ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS, ACCESS_CONTROL_ALLOW_ORIGIN,
    AUTHORIZATION, HOST, ORIGIN, VARY,
};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode};
use ring::digest::{SHA256, digest};

use super::refusal::Refusal;

/// What a request must show.
pub struct Guard {
    /// The hash of the key, if one is asked for.
    key: Option<[u8; 32]>,
    /// Whose pages may ask from elsewhere: an origin, or `*`.
    cors: Option<HeaderValue>,
    /// Whether only this machine can reach the server.
    is_loopback: bool,
}

/// What anybody may have without a key: whether the server is up, and the page, which asks for the key.
const OPEN: [&str; 2] = ["/", "/health"];

impl Guard {
    pub fn new(key: Option<&str>, cors: Option<HeaderValue>, is_loopback: bool) -> Self {
        Self { key: key.map(|key| hash(key.as_bytes())), cors, is_loopback }
    }

    /// Refuses who may not ask this.
    ///
    /// # Errors
    /// 403 for a page from elsewhere, 401 for a wrong key.
    pub fn check(&self, method: &Method, path: &str, headers: &HeaderMap) -> Result<(), Refusal> {
        let text = |name| headers.get(name).and_then(|value| value.to_str().ok());
        let host = text(HOST).unwrap_or_default();
        // A name that leads here may be anybody's.
        if self.is_loopback && !is_this_machine(host) {
            let message = format!("this server is for its own machine, and no {host:?}");
            return Err(Refusal::new(StatusCode::FORBIDDEN, message));
        }
        if let Some(origin) = headers.get(ORIGIN) {
            let own = origin.to_str().is_ok_and(|origin| {
                origin.split_once("://").is_some_and(|(_, authority)| authority == host)
            });
            if !own && self.allowed(origin).is_none() {
                let message =
                    format!("pages of {origin:?} may not ask here: the option cors lets them");
                return Err(Refusal::new(StatusCode::FORBIDDEN, message));
            }
        }
        if *method == Method::OPTIONS || OPEN.contains(&path) {
            return Ok(());
        }
        let given = text(AUTHORIZATION).and_then(|value| {
            let (scheme, key) = value.split_once(' ')?;
            scheme.eq_ignore_ascii_case("bearer").then(|| key.trim())
        });
        match (&self.key, given) {
            (None, _) => Ok(()),
            // Of hashes, how long the comparison takes tells nothing about the key.
            (Some(key), Some(given)) if *key == hash(given.as_bytes()) => Ok(()),
            (Some(_), given) => {
                let what = if given.is_some() { "is wrong" } else { "is missing" };
                let message = format!("the key {what}: Authorization: Bearer KEY is needed");
                Err(Refusal::new(StatusCode::UNAUTHORIZED, message).with_code("invalid_api_key"))
            }
        }
    }

    /// Tells a browser that the page which asks may see the answer.
    pub fn allow(&self, origin: Option<&HeaderValue>, headers: &mut HeaderMap) {
        let Some(allowed) = origin.and_then(|origin| self.allowed(origin)) else { return };
        headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, allowed);
        headers.insert(VARY, HeaderValue::from_static("Origin"));
        let (methods, fields) = ("GET, POST, OPTIONS", "Authorization, Content-Type");
        headers.insert(ACCESS_CONTROL_ALLOW_METHODS, HeaderValue::from_static(methods));
        headers.insert(ACCESS_CONTROL_ALLOW_HEADERS, HeaderValue::from_static(fields));
    }

    fn allowed(&self, origin: &HeaderValue) -> Option<HeaderValue> {
        self.cors.clone().filter(|cors| cors == "*" || cors == origin)
    }
}

fn hash(bytes: &[u8]) -> [u8; 32] {
    digest(&SHA256, bytes).as_ref().try_into().expect("32 bytes")
}

/// Whether a Host header names this machine as such.
fn is_this_machine(host: &str) -> bool {
    let has_port = |rest: &str| {
        rest.is_empty() || rest.strip_prefix(':').is_some_and(|port| port.parse::<u16>().is_ok())
    };
    let names = ["localhost", "127.0.0.1", "[::1]"];
    names.iter().any(|name| host.strip_prefix(name).is_some_and(has_port))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(guard: &Guard, headers: &[(&'static str, &str)]) -> u16 {
        let pairs = headers.iter().map(|(name, value)| {
            (name.parse::<axum::http::HeaderName>().unwrap(), HeaderValue::from_str(value).unwrap())
        });
        let headers: HeaderMap = pairs.collect();
        let checked = guard.check(&Method::POST, "/v1/completions", &headers);
        checked.map_or_else(|refusal| refusal.status.as_u16(), |()| 200)
    }

    #[test]
    fn pages_of_others_and_wrong_keys_are_refused() {
        let own = ("host", "localhost:8080");
        let open = Guard::new(None, None, true);
        assert_eq!(status(&open, &[own]), 200);
        for host in ["evil.example", "localhost.evil.example", "127.0.0.1x", "localhost:x", ""] {
            assert_eq!(status(&open, &[("host", host)]), 403, "{host}");
        }
        for host in ["127.0.0.1", "[::1]:80", "localhost"] {
            assert_eq!(status(&open, &[("host", host)]), 200, "{host}");
        }
        assert_eq!(status(&open, &[own, ("origin", "http://localhost:8080")]), 200);
        for origin in ["http://evil.example", "null", "http://localhost:8081"] {
            assert_eq!(status(&open, &[own, ("origin", origin)]), 403, "{origin}");
        }
        let cors = Some(HeaderValue::from_static("http://page.example"));
        let shared = Guard::new(None, cors, true);
        assert_eq!(status(&shared, &[own, ("origin", "http://page.example")]), 200);
        assert_eq!(status(&shared, &[own, ("origin", "http://other.example")]), 403);
        let far = Guard::new(Some("secret"), None, false);
        let host = ("host", "box.example");
        assert_eq!(status(&far, &[host]), 401);
        assert_eq!(status(&far, &[host, ("authorization", "Bearer wrong")]), 401);
        assert_eq!(status(&far, &[host, ("authorization", "Basic secret")]), 401);
        assert_eq!(status(&far, &[host, ("authorization", "bearer secret")]), 200);
    }
}
