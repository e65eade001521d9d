//! HTTP, as the hub needs it. Redirects are followed here, so that the token goes to the hub alone.

use std::time::Duration;

use ureq::http::{HeaderMap, Response, StatusCode};
use ureq::{Agent, Body};

use crate::json::one_line;

const MOST_REDIRECTS: usize = 10;

/// A file's body may take longer: it goes on from where it was when this has passed.
const BODY_TIMEOUT: Duration = Duration::from_secs(120);

/// What keeps an answer from coming.
#[derive(Debug)]
pub enum Trouble {
    /// The network, or a server that is busy: it may be better in a while.
    Passing(String),
    /// What the hub or the network says will not change.
    Lasting(String),
    /// The hub's answer is no: the status, and its name for why.
    Refused(u16, String),
}

/// A hub, and who we are to it.
pub struct Client {
    agent: Agent,
    /// Without a slash at its end.
    endpoint: String,
    token: Option<String>,
}

impl Client {
    pub fn new(endpoint: String, token: Option<String>) -> Self {
        let config = Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            .max_redirects_will_error(false)
            .timeout_resolve(Some(Duration::from_secs(10)))
            .timeout_connect(Some(Duration::from_secs(10)))
            .timeout_recv_response(Some(Duration::from_secs(30)))
            .timeout_recv_body(Some(BODY_TIMEOUT))
            .user_agent(concat!("chaski/", env!("CARGO_PKG_VERSION")))
            .build();
        Self { agent: config.into(), endpoint, token }
    }

    pub fn endpoint(&self) -> &str {
        &self.endpoint
    }

    pub fn has_token(&self) -> bool {
        self.token.is_some()
    }

    /// The answer to a request for `path`, `/...` at the hub, from byte `from` on.
    pub fn get(&self, path: &str, from: u64) -> Result<Response<Body>, Trouble> {
        let mut url = format!("{}{path}", self.endpoint);
        for _ in 0..MOST_REDIRECTS {
            let mut request = self.agent.get(&url).header("accept-encoding", "identity");
            if from > 0 {
                request = request.header("range", format!("bytes={from}-"));
            }
            if let Some(token) = self.token_for(&url) {
                request = request.header("authorization", format!("Bearer {token}"));
            }
            let response = request.call().map_err(|error| silent(&url, error))?;
            match next(&url, &response)? {
                Some(other) => url = other,
                None => return accepted(response),
            }
        }
        Err(Trouble::Lasting(format!("{path} is redirected over {MOST_REDIRECTS} times")))
    }

    /// The headers that describe the file at `path` without sending it, from the hub itself: it may name
    /// another host for the file.
    pub fn describe(&self, path: &str) -> Result<HeaderMap, Trouble> {
        let mut url = format!("{}{path}", self.endpoint);
        for _ in 0..MOST_REDIRECTS {
            let mut request = self.agent.head(&url).header("accept-encoding", "identity");
            if let Some(token) = self.token_for(&url) {
                request = request.header("authorization", format!("Bearer {token}"));
            }
            let response = request.call().map_err(|error| silent(&url, error))?;
            match next(&url, &response)? {
                Some(other) if !response.headers().contains_key("x-linked-etag") => url = other,
                Some(_) => return Ok(response.into_parts().0.headers),
                None => return accepted(response).map(|response| response.into_parts().0.headers),
            }
        }
        Err(Trouble::Lasting(format!("{path} is redirected over {MOST_REDIRECTS} times")))
    }

    /// The token, if that is for whoever `url` leads to.
    fn token_for(&self, url: &str) -> Option<&str> {
        self.token.as_deref().filter(|_| origin(url) == origin(&self.endpoint))
    }
}

fn silent(url: &str, error: ureq::Error) -> Trouble {
    let (place, error) = (one_line(origin(url)), one_line(&error.to_string()));
    Trouble::Passing(format!("{place} does not answer: {error}"))
}

/// Where a redirect leads.
fn next(url: &str, response: &Response<Body>) -> Result<Option<String>, Trouble> {
    if ![301, 302, 303, 307, 308].contains(&response.status().as_u16()) {
        return Ok(None);
    }
    let Some(location) = header(response.headers(), "location") else {
        return Err(Trouble::Lasting(format!("{} redirects to nowhere", one_line(url))));
    };
    let next = match location {
        _ if location.contains("://") => location.to_owned(),
        _ if location.starts_with("//") => {
            let scheme = url.split("//").next().unwrap_or_default();
            format!("{scheme}{location}")
        }
        _ if location.starts_with('/') => format!("{}{location}", origin(url)),
        _ => {
            let path = url.split(['?', '#']).next().unwrap_or(url);
            let folder = path.rfind('/').map_or(path, |slash| &path[..slash]);
            format!("{folder}/{location}")
        }
    };
    if url.starts_with("https:") && !next.starts_with("https:") {
        let (from, to) = (one_line(url), one_line(&next));
        return Err(Trouble::Lasting(format!("{from} redirects to {to}, which is not https")));
    }
    Ok(Some(next))
}

/// `scheme://host:port` of a URL.
fn origin(url: &str) -> &str {
    let start = url.find("://").map_or(0, |colon| colon + 3);
    let end = url[start..].find(['/', '?', '#']).map_or(url.len(), |slash| start + slash);
    &url[..end]
}

fn accepted(response: Response<Body>) -> Result<Response<Body>, Trouble> {
    let status = response.status();
    match status {
        _ if status.is_success() || status == StatusCode::RANGE_NOT_SATISFIABLE => Ok(response),
        StatusCode::TOO_MANY_REQUESTS | StatusCode::REQUEST_TIMEOUT => {
            Err(Trouble::Passing(format!("the hub is busy: {status}")))
        }
        _ if status.is_server_error() => {
            Err(Trouble::Passing(format!("the hub reports an error: {status}")))
        }
        _ => {
            let why = header(response.headers(), "x-error-code").unwrap_or_default();
            Err(Trouble::Refused(status.as_u16(), one_line(why)))
        }
    }
}

/// A header's text.
pub fn header<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name)?.to_str().ok()
}

/// `name` as a part of a URL's path.
pub fn escaped(name: &str) -> String {
    let mut text = String::new();
    for byte in name.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => {
                text.push(byte.into());
            }
            _ => text.push_str(&format!("%{byte:02X}")),
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn origins_are_scheme_host_and_port() {
        assert_eq!(origin("https://huggingface.co/a/b"), "https://huggingface.co");
        assert_eq!(origin("http://[::1]:80?x=/"), "http://[::1]:80");
        assert_ne!(origin("https://hub@evil.example/"), origin("https://hub"));
    }

    #[test]
    fn names_are_escaped_byte_by_byte() {
        assert_eq!(escaped("a b#?%/é.json"), "a%20b%23%3F%25%2F%C3%A9.json");
    }
}
