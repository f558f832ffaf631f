//! Bodies of requests, through the server's routes.

use std::sync::LazyLock;
use std::time::Duration;

use axum::body::{Body, to_bytes};
use axum::http::Request;
use serde_json::json;
use sharp_infer::{Model, Options, Synthetic, synth_tokenizer};
use sharp_model::ModelConfig;
use sharp_model::tokenizer::Tokenizer;
use sharp_serve::{ServeOptions, Server};
use tokio::runtime::Runtime;
use tower::ServiceExt;

use crate::target::{Place, Target};

/// The routes, by the first byte of an input.
const ROUTES: [&str; 4] = ["/v1/chat/completions", "/v1/completions", "/tokenize", "/detokenize"];

/// A server on a model of a few kilobytes.
struct Site {
    server: Server,
    runtime: Runtime,
}

static SITE: LazyLock<Site> = LazyLock::new(|| {
    let config = ModelConfig::llama(16, 32, 1, 2, 1, 272).expect("a sound shape");
    let source = Synthetic::in_memory(&config, None, 5).expect("a sound shape");
    let model =
        Model::from_source(&source, &Options { threads: 1, ..Options::default() }).expect("a sound model");
    let (text, mut settings) = synth_tokenizer(272).expect("a vocabulary of bytes");
    settings.insert(
        "chat_template".to_owned(),
        json!("{% for m in messages %}<{{ m.role }}>{{ m.content }}\n{% endfor %}"),
    );
    let tokenizer = Tokenizer::from_parts("tokenizer.json".as_ref(), text.as_bytes(), settings, &[0]);
    let mut options = ServeOptions::default();
    (options.context, options.max_batch, options.body_limit) = (64, 2, 1 << 16);
    options.timeout = Duration::from_secs(5);
    let server = Server::new(model, tokenizer.expect("a sound tokenizer"), options).expect("a sound server");
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
    Site { server, runtime: runtime.expect("threads") }
});

pub(crate) const REQUEST: Target = Target {
    name: "request",
    file: "body.bin",
    longest: 1 << 13,
    // Made before the first input, so that no input pays for it.
    prepare: |_| {
        LazyLock::force(&SITE);
    },
    run: request,
};

/// Posts an input and reads the whole answer, which must not be a fault of the server's own.
fn request(place: &Place<'_>) {
    let Some((route, body)) = place.input.split_first() else { return };
    let route = ROUTES[usize::from(*route) % ROUTES.len()];
    let mut request =
        Request::post(route).header("host", "localhost").header("content-type", "application/json");
    if body.starts_with(&[0x1f, 0x8b]) {
        request = request.header("content-encoding", "gzip");
    }
    let request = request.body(Body::from(body.to_vec())).expect("a sound request");
    SITE.runtime.block_on(async {
        let answer = SITE.server.router().oneshot(request).await.unwrap_or_else(|never| match never {});
        let status = answer.status().as_u16();
        let body = to_bytes(answer.into_body(), 1 << 20).await.expect("an answer of less than a megabyte");
        assert!(!matches!(status, 500 | 504), "{status}: {}", String::from_utf8_lossy(&body));
    });
}
