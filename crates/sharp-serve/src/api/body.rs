//! A request's body: read within limits and unpacked.

use std::io::Read;

use axum::body::{Body, Bytes, HttpBody, to_bytes};
use axum::extract::Request;
use axum::http::{HeaderMap, StatusCode, header};
use flate2::read::MultiGzDecoder;

use super::Site;
use super::error::ApiError;
use super::fields::Fields;
use crate::connections::Work;
use crate::memory::Reservation;

/// A request's body as it came over the wire.
pub(crate) struct Received {
    bytes: Bytes,
    packed: bool,
    limit: usize,
    /// For the body and what is read out of it, as long as this is there.
    _memory: Reservation,
}

/// Times that a body is held at once: as it came, unpacked, field by field, and as values.
const COPIES: u64 = 4;

impl Received {
    /// Waits for the body of a request, up to the limits on its size and its time.
    pub(crate) async fn new(site: &Site, request: Request) -> Result<Self, ApiError> {
        let (head, body) = request.into_parts();
        check_type(&head.headers)?;
        let packed = is_gzip(&head.headers)?;
        let limit = site.options.body_limit;
        // One that says how long it is need not be read to be refused.
        let size = body.size_hint();
        if size.lower() > limit as u64 {
            return Err(too_large(limit, ""));
        }
        let largest = size.upper().filter(|_| !packed).unwrap_or(limit as u64);
        let memory = site.reserve(COPIES * largest)?;
        let bytes = collect(site, body).await?;
        if let Some(work) = head.extensions.get::<Work>() {
            work.begin();
        }
        Ok(Self { bytes, packed, limit, _memory: memory })
    }

    /// Unpacks the body and reads it as a JSON object.
    pub(crate) fn fields(&mut self) -> Result<Fields, ApiError> {
        let bytes = std::mem::take(&mut self.bytes);
        if self.packed { Fields::new(&unpack(&bytes, self.limit)?) } else { Fields::new(&bytes) }
    }
}

/// Refuses other types than JSON: a page from elsewhere can then not make a browser send a request without
/// asking this server first, which does not allow it.
fn check_type(headers: &HeaderMap) -> Result<(), ApiError> {
    let kind = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let kind = kind.split(';').next().unwrap_or_default().trim();
    if kind.eq_ignore_ascii_case("application/json") {
        return Ok(());
    }
    Err(ApiError::new(
        StatusCode::UNSUPPORTED_MEDIA_TYPE,
        "send the request as JSON, with the header Content-Type: application/json",
    ))
}

/// Tells whether the body is packed with gzip; other codings are refused by name (RFC 9110, 15.5.16).
fn is_gzip(headers: &HeaderMap) -> Result<bool, ApiError> {
    let mut codings = Vec::new();
    for value in headers.get_all(header::CONTENT_ENCODING) {
        let list = String::from_utf8_lossy(value.as_bytes()).to_lowercase();
        codings.extend(list.split(',').map(|coding| coding.trim().to_owned()));
    }
    codings.retain(|coding| !coding.is_empty() && coding != "identity");
    match codings.as_slice() {
        [] => Ok(false),
        [one] if one == "gzip" || one == "x-gzip" => Ok(true),
        all => Err(ApiError::new(
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            format!("this server does not read Content-Encoding: {}; send gzip or none", all.join(", ")),
        )
        .with_code("unsupported_encoding")),
    }
}

fn too_large(limit: usize, what: &str) -> ApiError {
    ApiError::new(
        StatusCode::PAYLOAD_TOO_LARGE,
        format!("the body {what}has more than the {limit} bytes that this server takes"),
    )
    .with_code("body_too_large")
}

/// Waits for the whole body, up to the limits on its size and its time.
async fn collect(site: &Site, body: Body) -> Result<Bytes, ApiError> {
    let limit = site.options.body_limit;
    let patience = site.options.connection_timeout;
    match tokio::time::timeout(patience, to_bytes(body, limit)).await {
        Ok(Ok(bytes)) => Ok(bytes),
        Ok(Err(error)) => {
            let cause = std::error::Error::source(&error);
            if cause.is_some_and(|cause| cause.is::<http_body_util::LengthLimitError>()) {
                return Err(too_large(limit, ""));
            }
            Err(ApiError::bad(format!("the body did not arrive whole: {error}")))
        }
        Err(_) => Err(ApiError::new(
            StatusCode::REQUEST_TIMEOUT,
            format!("the body did not arrive within {} seconds", patience.as_secs_f64()),
        )
        .with_code("timeout")),
    }
}

/// Unpacks a body; what it unpacks to has the same limit as one that was not packed.
fn unpack(bytes: &[u8], limit: usize) -> Result<Vec<u8>, ApiError> {
    let mut unpacked = Vec::new();
    MultiGzDecoder::new(bytes).take(limit as u64 + 1).read_to_end(&mut unpacked).map_err(|error| {
        ApiError::bad(format!("Content-Encoding says gzip, and the body is none: {error}"))
    })?;
    if unpacked.len() > limit {
        return Err(too_large(limit, "unpacked "));
    }
    Ok(unpacked)
}
