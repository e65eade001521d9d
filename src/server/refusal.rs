//! What is wrong with a request, as OpenAI's error objects have it.

use axum::body::Body;
use axum::http::header::{CONTENT_TYPE, RETRY_AFTER};
use axum::http::{Response, StatusCode};
use serde_json::{Value, json};

use crate::error::{Error, MOST_CHARS, one_line};

/// Why a request is not answered, with the status that says so.
#[derive(Debug, Clone)]
pub struct Refusal {
    pub status: StatusCode,
    /// The name that clients know the kind by, where there is one.
    code: Option<&'static str>,
    /// The field that is wrong.
    field: Option<String>,
    message: String,
}

impl Refusal {
    pub fn new(status: StatusCode, message: impl Into<String>) -> Self {
        Self { status, code: None, field: None, message: message.into() }
    }

    /// 400: what the request says makes no sense.
    pub fn invalid(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, message)
    }

    /// 400: this field is wrong, where `what` says how.
    pub fn field(name: &str, what: impl std::fmt::Display) -> Self {
        let refusal = Self::invalid(format!("{name} {what}"));
        Self { field: Some(name.to_owned()), ..refusal }
    }

    pub fn with_code(self, code: &'static str) -> Self {
        Self { code: Some(code), ..self }
    }

    /// 500: what runs the model has failed, or could make nothing of it.
    pub fn failed(error: &Error) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, error.to_string())
    }

    /// 503: not now.
    pub fn unavailable(message: impl Into<String>) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, message)
    }

    pub fn message(&self) -> String {
        one_line(&self.message, MOST_CHARS)
    }

    /// `{"error": {message, type, param, code}}`
    pub fn to_json(&self) -> Value {
        let kind = match self.status.as_u16() {
            401 | 403 => "authentication_error",
            404 => "not_found_error",
            429 => "rate_limit_error",
            500.. => "server_error",
            _ => "invalid_request_error",
        };
        json!({ "error": {
            "message": self.message(),
            "type": kind,
            "param": self.field,
            "code": self.code,
        }})
    }

    pub fn into_response(self) -> Response<Body> {
        let mut response =
            Response::builder().status(self.status).header(CONTENT_TYPE, "application/json");
        if matches!(self.status, StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE) {
            response = response.header(RETRY_AFTER, "1");
        }
        let body = Body::from(self.to_json().to_string());
        let mut response = response.body(body).expect("the parts are constants");
        response.extensions_mut().insert(self); // for the log
        response
    }
}

/// What the library says of options and prompts that a request has given: 400. It quotes fields' names.
impl From<Error> for Refusal {
    fn from(error: Error) -> Self {
        let message = error.to_string();
        let field = message.strip_prefix('`').and_then(|rest| Some(rest.split_once('`')?.0));
        Self { field: field.map(str::to_owned), ..Self::invalid(message.replace('`', "")) }
    }
}
