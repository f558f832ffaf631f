//! Answers are what the engine writes alone, in the shapes OpenAI's clients read.

use serde_json::{Value, json};
use sharp_infer::{Finish, SamplerOptions};

use crate::harness::{Running, TEMPLATE, alone, model, options, sampler, tokenizer};

fn text_of(events: &[Value]) -> String {
    events.iter().filter_map(|e| e["choices"][0]["text"].as_str()).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn completions_are_what_the_engine_writes() {
    let server = Running::start(options()).await;
    for (temperature, seed) in [(0.0, 0), (0.8, 7), (1.3, 8)] {
        let expected = alone("Once upon", 40, sampler(temperature, seed), &[]);
        let body = json!({
            "model": "tiny", "prompt": "Once upon", "max_tokens": 40, "temperature": temperature, "seed": seed,
        });
        let answer = server.ask("/v1/completions", &body).await;
        assert_eq!(answer["object"], "text_completion");
        assert_eq!(answer["choices"][0]["text"], expected.text);
        let reason = if expected.finish == Finish::Eos { "stop" } else { "length" };
        assert_eq!(answer["choices"][0]["finish_reason"], reason);
        assert_eq!(answer["usage"]["prompt_tokens"], 9);
        assert_eq!(answer["usage"]["completion_tokens"], expected.tokens.len());
        assert_eq!(answer["usage"]["total_tokens"], 9 + expected.tokens.len());

        let mut streamed = body.clone();
        streamed["stream_options"] = json!({"include_usage": true});
        let events = server.stream("/v1/completions", &streamed).await;
        assert_eq!(text_of(&events), expected.text);
        let (usage, chunks) = events.split_last().unwrap();
        assert_eq!(usage["usage"]["completion_tokens"], expected.tokens.len());
        assert_eq!(usage["choices"], json!([]));
        assert_eq!(chunks.last().unwrap()["choices"][0]["finish_reason"], reason);
        assert!(chunks.len() > 10, "{} chunks are no stream", chunks.len());
        assert!(chunks.iter().all(|c| c["id"] == usage["id"]));
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_sampling_parameter_reaches_the_sampler() {
    let server = Running::start(options()).await;
    let base = SamplerOptions { temperature: 1.5, seed: 3, ..SamplerOptions::default() };
    let plain = alone("abcabc", 30, base.clone(), &[]).text;
    for (name, value, options) in [
        ("top_k", json!(3), SamplerOptions { top_k: 3, ..base.clone() }),
        ("top_p", json!(0.25), SamplerOptions { top_p: 0.25, ..base.clone() }),
        ("min_p", json!(0.5), SamplerOptions { min_p: 0.5, ..base.clone() }),
        ("repetition_penalty", json!(2.5), SamplerOptions { repetition_penalty: 2.5, ..base.clone() }),
        ("seed", json!(4), SamplerOptions { seed: 4, ..base.clone() }),
        ("temperature", json!(0.25), SamplerOptions { temperature: 0.25, ..base.clone() }),
    ] {
        let expected = alone("abcabc", 30, options, &[]).text;
        assert_ne!(expected, plain, "{name} changes nothing here");
        let mut body = json!({"prompt": "abcabc", "max_tokens": 30, "temperature": 1.5, "seed": 3});
        body[name] = value;
        assert_eq!(server.ask("/v1/completions", &body).await["choices"][0]["text"], expected, "{name}");
    }
    // A token that is pushed up by 100 is all that is written; one that is pushed down is never written.
    let body = |bias: Value| json!({"prompt": "x", "max_tokens": 20, "temperature": 1, "logit_bias": bias});
    let pushed = server.ask("/v1/completions", &body(json!({"98": 100}))).await;
    assert_eq!(pushed["choices"][0]["text"], "a".repeat(20));
    // With both up, a penalty on what is there makes them take turns.
    let mut turns = body(json!({"98": 100, "99": 100}));
    turns["temperature"] = json!(0);
    turns["frequency_penalty"] = json!(2);
    let text = server.ask("/v1/completions", &turns).await["choices"][0]["text"].as_str().unwrap().to_owned();
    let of = |c: char| text.chars().filter(|&x| x == c).count() as i64;
    assert_eq!(of('a') + of('b'), 20);
    assert!((of('a') - of('b')).abs() <= 8, "{text}");
    // Without a seed two requests differ.
    let free = json!({"prompt": "x", "max_tokens": 40, "temperature": 2});
    let texts = [server.ask("/v1/completions", &free).await, server.ask("/v1/completions", &free).await];
    assert_ne!(texts[0]["choices"][0]["text"], texts[1]["choices"][0]["text"]);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn echoed_prompts_carry_the_models_log_probabilities() {
    let server = Running::start(options()).await;
    let prompt = "The quick brown fox jumps over the lazy dog";
    let tokens = tokenizer(false).encode(prompt, true).unwrap();
    let logits = model(1).forward(&tokens, &mut ()).unwrap();
    // A chunk of the prompt ends within it.
    for max_tokens in [0, 1, 3] {
        let body = json!({
            "prompt": prompt, "echo": true, "logprobs": 2, "max_tokens": max_tokens, "temperature": 0,
        });
        let answer = server.ask("/v1/completions", &body).await;
        let choice = &answer["choices"][0];
        assert!(choice["text"].as_str().unwrap().starts_with(prompt));
        let logprobs = &choice["logprobs"];
        let values = logprobs["token_logprobs"].as_array().unwrap();
        let written = answer["usage"]["completion_tokens"].as_u64().unwrap() as usize;
        assert_eq!(values.len(), tokens.len() + written);
        assert_eq!(values[0], Value::Null);
        for (i, row) in logits.chunks(272).enumerate().take(tokens.len() - 1) {
            // In plain arithmetic: ln softmax.
            let top = row.iter().copied().fold(f32::MIN, f32::max);
            let sum: f64 = row.iter().map(|l| f64::from(l - top).exp()).sum();
            let at = |token: u32| f64::from(row[token as usize] - top) - sum.ln();
            let found = values[i + 1].as_f64().unwrap();
            assert!((found - at(tokens[i + 1])).abs() < 1e-5, "{i}: {found} {}", at(tokens[i + 1]));
            let best = (0..272).max_by(|&a, &b| at(a).total_cmp(&at(b))).unwrap();
            let tops = logprobs["top_logprobs"][i + 1].as_object().unwrap();
            assert_eq!(tops.len(), 2);
            let (_, first) = tops.iter().next().unwrap();
            assert!((first.as_f64().unwrap() - at(best)).abs() < 1e-5);
        }
        assert_eq!(logprobs["tokens"][4], "q");
        assert_eq!(logprobs["text_offset"][4], 4);
        let streamed = server.stream("/v1/completions", &body).await;
        assert_eq!(text_of(&streamed), choice["text"].as_str().unwrap());
        let all: Vec<&Value> = streamed
            .iter()
            .filter_map(|e| e["choices"][0]["logprobs"]["token_logprobs"].as_array())
            .flatten()
            .collect();
        assert_eq!(all, values.iter().collect::<Vec<_>>());
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn prompts_may_be_texts_or_tokens_one_or_more() {
    let server = Running::start(options()).await;
    let one = |text: &str| alone(text, 8, sampler(0.0, 0), &[]).text;
    let ask = async |prompt: Value| {
        server.ask("/v1/completions", &json!({"prompt": prompt, "max_tokens": 8, "temperature": 0})).await
    };
    let both = ask(json!(["first", "second one"])).await;
    assert_eq!(both["choices"][0]["text"], one("first"));
    assert_eq!(both["choices"][1]["text"], one("second one"));
    assert_eq!(both["usage"]["prompt_tokens"], 15);
    let tokens = tokenizer(false).encode("first", true).unwrap();
    assert_eq!(ask(json!(tokens)).await["choices"][0]["text"], one("first"));
    assert_eq!(ask(json!([tokens, tokens])).await["choices"][1]["text"], one("first"));
    // Choices of one prompt: each with the next seed.
    let body = json!({"prompt": "go", "max_tokens": 12, "temperature": 1, "seed": 50, "n": 3});
    let three = server.ask("/v1/completions", &body).await;
    for j in 0..3 {
        let text = alone("go", 12, sampler(1.0, 50 + j), &[]).text;
        assert_eq!(three["choices"][j as usize]["text"], text);
        assert_eq!(three["choices"][j as usize]["index"], j);
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stop_strings_end_an_answer_before_themselves() {
    let server = Running::start(options()).await;
    let free = alone("stop here", 60, sampler(1.0, 4), &[]).text;
    // Something that the free answer has in its middle.
    let inner: Vec<char> = free.chars().collect();
    let stop: String = inner[inner.len() / 2..inner.len() / 2 + 2].iter().collect();
    let expected = alone("stop here", 60, sampler(1.0, 4), &[&stop]);
    assert!(expected.finish == Finish::Stop && !expected.text.contains(&stop));
    for form in [json!(stop), json!(["never to be seen", stop])] {
        let body =
            json!({"prompt": "stop here", "max_tokens": 60, "temperature": 1, "seed": 4, "stop": form});
        let answer = server.ask("/v1/completions", &body).await;
        assert_eq!(answer["choices"][0]["text"], expected.text);
        assert_eq!(answer["choices"][0]["finish_reason"], "stop");
        assert_eq!(text_of(&server.stream("/v1/completions", &body).await), expected.text);
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn conversations_go_through_the_models_template() {
    assert!(TEMPLATE.contains("<assistant>"));
    let server = Running::start(options()).await;
    let expected = alone("<system>Be brief\n<user>Hello\n<assistant>", 24, sampler(0.0, 0), &[]);
    let body = json!({
        "model": "tiny", "temperature": 0, "max_completion_tokens": 24,
        "messages": [
            {"role": "developer", "content": "Be brief"},
            {"role": "user", "content": [{"type": "text", "text": "Hel"}, {"type": "text", "text": "lo"}]},
        ],
    });
    let answer = server.ask("/v1/chat/completions", &body).await;
    assert_eq!(answer["object"], "chat.completion");
    assert_eq!(answer["choices"][0]["message"]["role"], "assistant");
    assert_eq!(answer["choices"][0]["message"]["content"], expected.text);
    let events = server.stream("/v1/chat/completions", &body).await;
    assert_eq!(events[0]["choices"][0]["delta"], json!({"role": "assistant", "content": ""}));
    assert_eq!(events[0]["object"], "chat.completion.chunk");
    let text: String = events.iter().filter_map(|e| e["choices"][0]["delta"]["content"].as_str()).collect();
    assert_eq!(text, expected.text);
    let reasons: Vec<&Value> =
        events.iter().map(|e| &e["choices"][0]["finish_reason"]).filter(|r| !r.is_null()).collect();
    assert_eq!(reasons.len(), 1);
    let mut with = body.clone();
    with["logprobs"] = json!(true);
    with["top_logprobs"] = json!(3);
    let content =
        server.ask("/v1/chat/completions", &with).await["choices"][0]["logprobs"]["content"].clone();
    let first = &content[0];
    assert_eq!(first["top_logprobs"].as_array().unwrap().len(), 3);
    // Greedy: what was taken is the likeliest.
    assert_eq!(first["logprob"], first["top_logprobs"][0]["logprob"]);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn prompts_that_begin_alike_are_computed_once() {
    let server = Running::start(options()).await;
    let long = "A long beginning that two requests have in common, word for word. ".repeat(4);
    let ask = async |end: &str| {
        let body = json!({"prompt": format!("{long}{end}"), "max_tokens": 20, "temperature": 0});
        server.ask("/v1/completions", &body).await
    };
    let cached = |answer: &Value| answer["usage"]["prompt_tokens_details"]["cached_tokens"].as_u64().unwrap();
    let first = ask("One").await;
    assert_eq!(cached(&first), 0);
    let again = ask("One").await;
    assert_eq!(cached(&again) as usize, long.len() + 2);
    let other = ask("Two").await;
    assert_eq!(cached(&other) as usize, long.len());
    for (answer, end) in [(&first, "One"), (&again, "One"), (&other, "Two")] {
        let expected = alone(&format!("{long}{end}"), 20, sampler(0.0, 0), &[]);
        assert_eq!(answer["choices"][0]["text"], expected.text);
    }
    assert_eq!(server.metric("sharp_prompt_tokens_cached_total").await as usize, 2 * long.len() + 2);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tokens_models_health_and_the_page() {
    let server = Running::start(options()).await;
    let tokens = server.ask("/tokenize", &json!({"prompt": "héllo"})).await;
    assert_eq!(tokens["count"], 6);
    assert_eq!(tokens["max_model_len"], 2048);
    let back = server.ask("/detokenize", &json!({"tokens": tokens["tokens"]})).await;
    assert_eq!(back["prompt"], "héllo");
    let chat = json!({"messages": [{"role": "user", "content": "hi"}]});
    assert_eq!(server.ask("/tokenize", &chat).await["count"], "<user>hi\n<assistant>".len());
    let get = async |path: &str| server.client.get(format!("{}{path}", server.url)).send().await.unwrap();
    let models: Value = get("/v1/models").await.json().await.unwrap();
    assert_eq!(models["data"][0]["id"], "tiny");
    assert_eq!(get("/v1/models/tiny").await.status(), 200);
    assert_eq!(get("/v1/models/huge").await.status(), 404);
    assert_eq!(get("/health").await.status(), 200);
    for path in ["/", "/chat.css", "/chat.js"] {
        let page = get(path).await;
        assert!(
            page.headers()["content-security-policy"].to_str().unwrap().starts_with("default-src 'none'")
        );
        let text = page.text().await.unwrap();
        assert!(text.len() > 500 && !text.contains("http:") && !text.contains("https:"), "{path}");
    }
    server.stop().await;
}
