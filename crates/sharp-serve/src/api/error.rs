//! Errors as OpenAI's clients understand them.

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

use crate::job::Failure;
use crate::memory::Shortage;

/// A refused or failed request.
#[derive(Debug)]
pub(crate) struct ApiError {
    status: StatusCode,
    kind: &'static str,
    code: Option<&'static str>,
    param: Option<String>,
    message: String,
}

impl ApiError {
    pub(crate) fn new(status: StatusCode, message: impl Into<String>) -> Self {
        let kind = match status {
            StatusCode::TOO_MANY_REQUESTS => "rate_limit_error",
            StatusCode::UNAUTHORIZED => "authentication_error",
            status if status.is_server_error() => "server_error",
            _ => "invalid_request_error",
        };
        Self { status, kind, code: None, param: None, message: message.into() }
    }

    pub(crate) fn bad(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, message)
    }

    pub(crate) fn internal(message: impl Into<String>) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, message)
    }

    pub(crate) fn with_code(mut self, code: &'static str) -> Self {
        self.code = Some(code);
        self
    }

    pub(crate) fn with_param(mut self, param: impl Into<String>) -> Self {
        self.param = Some(param.into());
        self
    }

    pub(crate) fn no_key() -> Self {
        Self::new(
            StatusCode::UNAUTHORIZED,
            "this server wants its key in the header Authorization: Bearer KEY, and got none or another",
        )
        .with_code("invalid_api_key")
    }

    pub(crate) fn no_model(asked: &str, served: &str) -> Self {
        let message = format!("the model {asked:?} is not here; this server has {served:?}");
        Self::new(StatusCode::NOT_FOUND, message).with_code("model_not_found").with_param("model")
    }

    pub(crate) fn busy(limit: usize) -> Self {
        let message = format!("{limit} sequences wait already; try again later");
        Self::new(StatusCode::TOO_MANY_REQUESTS, message).with_code("queue_full")
    }

    pub(crate) fn stopping() -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "the server is stopping").with_code("stopping")
    }

    /// Says that there is no memory for a request, now or ever.
    pub(crate) fn no_memory(shortage: Shortage) -> Self {
        let Shortage { needed, room, later } = shortage;
        let what =
            format!("this request needs {needed} bytes of memory, and {room} are there for all of them");
        if later {
            let message = format!("{what}; others hold them now, so try again later");
            Self::new(StatusCode::SERVICE_UNAVAILABLE, message).with_code("out_of_memory")
        } else {
            Self::bad(format!("{what}; ask for fewer tokens or choices, or less text"))
                .with_code("request_too_large")
        }
    }

    /// Says that the server does not answer to this name.
    pub(crate) fn no_host(name: &str) -> Self {
        let message = format!(
            "this server does not answer to the name {name:?}; if it is this server's, start it with \
             --allowed-host {name}"
        );
        Self::new(StatusCode::MISDIRECTED_REQUEST, message).with_code("host_not_allowed")
    }

    /// Says what the engine said about a sequence it gave up.
    pub(crate) fn failure(failure: Failure) -> Self {
        match failure {
            Failure::Timeout => {
                Self::new(StatusCode::GATEWAY_TIMEOUT, "the request took longer than this server allows")
                    .with_code("timeout")
            }
            Failure::Stopping => Self::stopping(),
            Failure::Memory => {
                let message = "the system has no memory for this request now; try again later";
                Self::new(StatusCode::SERVICE_UNAVAILABLE, message).with_code("out_of_memory")
            }
            Failure::Engine(what) => Self::internal(what),
        }
    }

    /// Says that the engine ended without a word.
    pub(crate) fn no_engine() -> Self {
        Self::internal("the engine has stopped")
    }

    /// Writes the error as the body of an answer or as an event of a stream.
    pub(crate) fn json(&self) -> Value {
        json!({"error": {
            "message": self.message,
            "type": self.kind,
            "param": self.param,
            "code": self.code,
        }})
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = (self.status, axum::Json(self.json())).into_response();
        if matches!(self.status, StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE) {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
        }
        if self.status == StatusCode::UNSUPPORTED_MEDIA_TYPE {
            response.headers_mut().insert(header::ACCEPT_ENCODING, HeaderValue::from_static("gzip"));
        }
        if self.status == StatusCode::REQUEST_TIMEOUT {
            response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        if self.status == StatusCode::UNAUTHORIZED {
            response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response
    }
}
