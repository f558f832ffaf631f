//! The name that a request is sent to.
//!
//! A page from elsewhere can make its own name point to this machine (DNS rebinding). For the browser the
//! page and this server are then one origin, and the only thing that tells is the name in the request. An
//! address in figures needs no name, so nobody can redirect it.

use std::net::IpAddr;
use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::header;
use axum::http::uri::Authority;
use axum::middleware::Next;
use axum::response::Response;

use super::Site;
use super::error::ApiError;

/// Refuses requests to names that are not this server's.
pub(crate) async fn check(
    State(site): State<Arc<Site>>,
    request: Request,
    next: Next,
) -> Result<Response, ApiError> {
    // A whole address in the first line counts as well as the header (RFC 9112, 3.2.2).
    if let Some(authority) = request.uri().authority() {
        check_name(authority.as_str(), &site.options.allowed_hosts)?;
    }
    let mut hosts = request.headers().get_all(header::HOST).iter();
    match (hosts.next(), hosts.next()) {
        (Some(host), None) => {
            check_name(&String::from_utf8_lossy(host.as_bytes()), &site.options.allowed_hosts)?;
        }
        // HTTP/1.0 has no such header; browsers always send it.
        (None, _) if request.version() < axum::http::Version::HTTP_11 => {}
        (None, _) => return Err(ApiError::bad("the header Host is missing")),
        (Some(_), Some(_)) => return Err(ApiError::bad("there is more than one header Host")),
    }
    Ok(next.run(request).await)
}

fn check_name(host: &str, allowed: &[String]) -> Result<(), ApiError> {
    let authority: Authority = host
        .parse()
        .ok()
        .filter(|_| !host.contains('@'))
        .ok_or_else(|| ApiError::bad(format!("the header Host is {host:?}, which is no name")))?;
    let name = authority.host();
    if is_own(name, allowed) { Ok(()) } else { Err(ApiError::no_host(name)) }
}

fn is_own(name: &str, allowed: &[String]) -> bool {
    let plain = |name: &str| name.trim_end_matches('.').to_ascii_lowercase();
    let bare = name.strip_prefix('[').and_then(|name| name.strip_suffix(']')).unwrap_or(name);
    let name = plain(name);
    bare.parse::<IpAddr>().is_ok()
        || name == "localhost"
        // Never asked of a name server (RFC 6761, 6.3).
        || name.ends_with(".localhost")
        || allowed.iter().any(|allowed| plain(allowed) == name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_localhost_and_allowed_names_are_own() {
        let allowed = ["Model.Example".to_owned()];
        for host in [
            "127.0.0.1",
            "127.0.0.1:8080",
            "[::1]:8080",
            "192.168.0.7:80",
            "localhost:1",
            "LOCALHOST.",
            "a.localhost",
            "model.example:8080",
        ] {
            assert!(check_name(host, &allowed).is_ok(), "{host}");
        }
        for host in [
            "evil.example",
            "evil.example:8080",
            "127.0.0.1.evil.example",
            "localhost.evil.example",
            "notlocalhost",
            "x.model.example",
            "localhost@evil.example",
            "evil.example@localhost",
            "",
        ] {
            assert!(check_name(host, &allowed).is_err(), "{host}");
        }
    }
}
