//! A server on a small model with random weights, and what its answers should be.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::PathBuf;
use std::sync::OnceLock;
use std::time::Duration;

use reqwest::{Client, Response};
use serde_json::{Value, json};
use sharp_infer::{
    DType, GenerateOptions, Generation, Model, Options, Recipe, SamplerOptions, Session, Synthetic, Team,
    generate, quantize, synth_tokenizer,
};
use sharp_model::{ModelConfig, tokenizer::Tokenizer};
use sharp_progress::Silent;
use sharp_serve::{ServeOptions, Server};
use tokio::sync::oneshot;
use tokio::task::{JoinHandle, block_in_place};

pub(crate) const TEMPLATE: &str = "{% for m in messages %}<{{ m.role }}>{{ m.content }}\n{% endfor %}\
                                   {% if add_generation_prompt %}<assistant>{% endif %}";

/// A packed model: its results do not depend on what else is in a batch.
pub(crate) fn model(threads: usize) -> Model {
    static FILE: OnceLock<(tempfile::TempDir, PathBuf)> = OnceLock::new();
    let (_, path) = FILE.get_or_init(|| {
        let config = ModelConfig::llama(64, 160, 4, 4, 2, 272).unwrap();
        let source = Synthetic::in_memory(&config, None, 5).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.sharp");
        quantize(&source, &Recipe::load("q8").unwrap(), &path, &Team::new(1).unwrap(), &Silent).unwrap();
        (folder, path)
    });
    // F32 as in whole-sequence passes, which the tests compare with.
    let options = Options { threads, kv_cache: Some(DType::F32), ..Options::default() };
    Model::open(path, &options).unwrap()
}

/// Bytes as tokens, with a chat template.
pub(crate) fn tokenizer(template: bool) -> Tokenizer {
    tokenizer_with(template.then_some(TEMPLATE))
}

/// Bytes as tokens, with a chat template of one's own.
pub(crate) fn tokenizer_with(template: Option<&str>) -> Tokenizer {
    let (text, mut settings) = synth_tokenizer(272).unwrap();
    if let Some(template) = template {
        settings.insert("chat_template".into(), json!(template));
    }
    Tokenizer::from_parts("tokenizer.json".as_ref(), text.as_bytes(), settings, &[0]).unwrap()
}

/// Options for tests: a name, and the whole context of the model.
pub(crate) fn options() -> ServeOptions {
    let mut options = ServeOptions::default();
    options.model_name = "tiny".into();
    options.context = 2048;
    options
}

/// A server in this process, on a port of its own.
pub(crate) struct Running {
    pub(crate) url: String,
    pub(crate) client: Client,
    stop: Option<oneshot::Sender<()>>,
    serving: JoinHandle<sharp_serve::Result<()>>,
}

impl Running {
    pub(crate) async fn start(options: ServeOptions) -> Self {
        Self::start_with(options, tokenizer(true)).await
    }

    pub(crate) async fn start_with(options: ServeOptions, tokenizer: Tokenizer) -> Self {
        let server = Server::new(model(1), tokenizer, options).unwrap();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let (stop, stopped) = oneshot::channel();
        let serving = tokio::spawn(server.serve(listener, async move {
            let _ = stopped.await;
        }));
        let client = Client::builder().timeout(Duration::from_secs(120)).build().unwrap();
        Self { url, client, stop: Some(stop), serving }
    }

    pub(crate) fn address(&self) -> &str {
        self.url.strip_prefix("http://").unwrap()
    }

    /// Sends `bytes` and reads until the server ends the connection.
    pub(crate) fn raw(&self, bytes: &str) -> String {
        block_in_place(|| {
            let mut socket = TcpStream::connect(self.address()).unwrap();
            socket.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
            socket.write_all(bytes.as_bytes()).unwrap();
            let mut answer = String::new();
            socket.read_to_string(&mut answer).unwrap();
            answer
        })
    }

    pub(crate) async fn post(&self, path: &str, body: &Value) -> Response {
        self.client.post(format!("{}{path}", self.url)).json(body).send().await.unwrap()
    }

    /// The answer to a request that has to succeed.
    pub(crate) async fn ask(&self, path: &str, body: &Value) -> Value {
        let response = self.post(path, body).await;
        let status = response.status();
        let text = response.text().await.unwrap();
        assert!(status.is_success(), "{status}: {text}");
        serde_json::from_str(&text).unwrap()
    }

    /// The events of a streamed answer, without the last, which has to be `[DONE]`.
    pub(crate) async fn stream(&self, path: &str, body: &Value) -> Vec<Value> {
        let mut body = body.clone();
        body["stream"] = json!(true);
        let response = self.post(path, &body).await;
        assert_eq!(response.headers()["content-type"], "text/event-stream");
        events(&response.text().await.unwrap())
    }

    /// A value of `/metrics`.
    pub(crate) async fn metric(&self, name: &str) -> f64 {
        let text =
            self.client.get(format!("{}/metrics", self.url)).send().await.unwrap().text().await.unwrap();
        assert!(text.ends_with("# EOF\n"), "{text}");
        let line = text.lines().find(|line| line.split(' ').next() == Some(name));
        line.unwrap_or_else(|| panic!("no {name} in {text}")).rsplit(' ').next().unwrap().parse().unwrap()
    }

    /// Waits until a metric has a value.
    pub(crate) async fn until(&self, name: &str, right: impl Fn(f64) -> bool) {
        for _ in 0..3000 {
            if right(self.metric(name).await) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("{name} is {}", self.metric(name).await);
    }

    pub(crate) fn ask_to_stop(&mut self) {
        if let Some(stop) = self.stop.take() {
            stop.send(()).unwrap();
        }
    }

    /// Stops the server, which has to end by itself.
    pub(crate) async fn stop(mut self) {
        self.ask_to_stop();
        self.ended().await;
    }

    pub(crate) async fn ended(self) {
        drop(self.client);
        tokio::time::timeout(Duration::from_secs(60), self.serving).await.unwrap().unwrap().unwrap();
    }
}

/// Parses server-sent events; the last has to be `[DONE]`.
pub(crate) fn events(text: &str) -> Vec<Value> {
    let mut data: Vec<&str> = text
        .split("\n\n")
        .filter(|event| !event.is_empty() && !event.starts_with(':'))
        .map(|event| event.strip_prefix("data: ").unwrap_or_else(|| panic!("{event:?}")))
        .collect();
    assert_eq!(data.pop(), Some("[DONE]"), "{text}");
    data.into_iter().map(|event| serde_json::from_str(event).unwrap()).collect()
}

/// What the engine writes alone.
pub(crate) fn alone(prompt: &str, max_tokens: usize, sampler: SamplerOptions, stop: &[&str]) -> Generation {
    let (model, tokenizer) = (model(1), tokenizer(false));
    let tokens = tokenizer.encode(prompt, true).unwrap();
    let mut session = Session::new(&model, 2048).unwrap();
    let stop = stop.iter().map(|s| (*s).to_owned()).collect();
    let options = GenerateOptions { max_tokens, sampler, stop, ignore_eos: false };
    generate(&mut session, &tokenizer, &tokens, &options, &mut |_| true).unwrap()
}

/// The sampler of a request with `temperature` and `seed`.
pub(crate) fn sampler(temperature: f32, seed: u64) -> SamplerOptions {
    SamplerOptions { temperature, seed, ..SamplerOptions::default() }
}
