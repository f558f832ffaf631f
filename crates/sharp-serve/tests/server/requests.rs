//! Requests as clients write them: fields, numbers and conversations, with OpenAI's API as the reference.

use serde_json::{Value, json};

use crate::harness::{Running, options, tokenizer};

const COMPLETE: &str = "/v1/completions";
const CHAT: &str = "/v1/chat/completions";

async fn refusal(server: &Running, path: &str, body: &Value) -> Value {
    let response = server.post(path, body).await;
    let status = response.status().as_u16();
    let answer: Value = response.json().await.unwrap();
    assert_eq!(status, 400, "{path} {body}: {answer}");
    answer["error"].clone()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fields_that_nobody_reads_are_refused_everywhere() {
    let server = Running::start(options()).await;
    let messages = json!([{"role": "user", "content": "x"}]);
    for (path, body, name, known) in [
        (COMPLETE, json!({"prompt": "a", "temprature": 0.5}), "temprature", "did you mean `temperature`?"),
        (COMPLETE, json!({"prompt": "a", "stop_sequence": "b"}), "stop_sequence", "known are"),
        (COMPLETE, json!({"prompt": "a", "repeat_penalty": 2}), "repeat_penalty", "`repetition_penalty`?"),
        (COMPLETE, json!({"prompt": "a", "n_predict": 2}), "n_predict", "did you mean `max_tokens`?"),
        (CHAT, json!({"messages": messages, "max_token": 2}), "max_token", "did you mean `max_tokens`?"),
        (CHAT, json!({"messages": messages, "prompt": "x"}), "prompt", "unknown field `prompt`"),
        (
            CHAT,
            json!({"messages": messages, "stream_options": {"include_usages": true}}),
            "stream_options.include_usages",
            "did you mean `include_usage`?",
        ),
        ("/tokenize", json!({"prompt": "a", "add_special_token": false}), "add_special_token", "_tokens`?"),
        ("/tokenize", json!({"content": "a", "prompt": "a"}), "content", "known are"),
        ("/detokenize", json!({"tokens": [1], "tokns": [1]}), "tokns", "did you mean `tokens`?"),
    ] {
        let error = refusal(&server, path, &body).await;
        assert_eq!(error["code"], "unknown_parameter", "{error}");
        assert_eq!(error["param"], name, "{error}");
        assert!(error["message"].as_str().unwrap().contains(known), "{error}");
    }
    // What OpenAI's API has and this server has not is named so.
    for (name, value) in [
        ("tool_choice", json!("required")),
        ("modalities", json!(["text", "audio"])),
        ("reasoning_effort", json!("high")),
        ("verbosity", json!("low")),
        ("web_search_options", json!({"search_context_size": "low"})),
    ] {
        let mut body = json!({ "messages": messages });
        body[name] = value;
        let error = refusal(&server, CHAT, &body).await;
        assert_eq!((&error["code"], &error["param"]), (&json!("unsupported_parameter"), &json!(name)));
    }
    // What asks for nothing passes.
    server.ask("/tokenize", &json!({"prompt": "a", "stream": false})).await;
    server.ask("/detokenize", &json!({"tokens": [1], "stream": false})).await;
    let mut body = json!({
        "messages": messages, "max_tokens": 1, "tools": [], "tool_choice": "auto", "parallel_tool_calls": true,
        "response_format": {"type": "text"}, "modalities": ["text"], "user": "u", "metadata": {"a": "b"},
        "store": false, "service_tier": "auto", "logit_bias": {}, "stop": null, "top_k": null, "audio": null,
        "stream_options": {"include_usage": true, "include_obfuscation": false}, "unheard_of": null,
    });
    server.ask(CHAT, &body).await;
    body["verbosity"] = json!("medium");
    server.ask(CHAT, &body).await;
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fraction_of_zero_makes_a_whole_number() {
    let server = Running::start(options()).await;
    let plain = json!({
        "prompt": [98, 99], "max_tokens": 4, "n": 2, "seed": 7, "top_k": 40, "temperature": 1, "logprobs": 1,
    });
    let floats = r#"{"prompt": [98.0, 99e0], "max_tokens": 4.0, "n": 2.0, "seed": 7.0, "top_k": 4e1,
                     "temperature": 1, "logprobs": 1.0, "best_of": 2.0}"#;
    let floats: Value = serde_json::from_str(floats).unwrap();
    let [left, right] = [server.ask(COMPLETE, &plain).await, server.ask(COMPLETE, &floats).await];
    assert_eq!(left["choices"], right["choices"]);
    let chat = json!({
        "messages": [{"role": "user", "content": "x"}], "max_completion_tokens": 2.0, "logprobs": true,
        "top_logprobs": 1.0,
    });
    let scored = server.ask(CHAT, &chat).await["choices"][0]["logprobs"]["content"].clone();
    assert_eq!(scored[0]["top_logprobs"].as_array().unwrap().len(), 1);
    assert_eq!(server.ask("/detokenize", &json!({"tokens": [98.0]})).await["prompt"], "a");
    // Every integer of 64 bits is a seed, signed or not.
    for seed in [json!(u64::MAX), json!(i64::MIN), json!(-1)] {
        server.ask(COMPLETE, &json!({"prompt": "a", "max_tokens": 1, "seed": seed})).await;
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wrong_values_are_told_in_the_words_of_json() {
    let server = Running::start(options()).await;
    let with = |name: &str, value: Value| {
        let mut body = json!({"prompt": "a", "max_tokens": 1});
        body[name] = value;
        body
    };
    for (body, message) in [
        (
            with("max_tokens", json!("4")),
            "max_tokens is the string \"4\"; it has to be a whole number from 0",
        ),
        (with("max_tokens", json!(2.5)), "max_tokens is the number 2.5; it has to be a whole number"),
        (with("max_tokens", json!(-2)), "or -1 for no limit"),
        (with("max_tokens", json!(1e300)), "max_tokens is the number 1e+300; it has to be a whole number"),
        (with("n", json!([1])), "n is an array; it has to be a whole number from 0"),
        (with("seed", json!(1.5)), "seed is the number 1.5; it has to be a whole number"),
        (with("temperature", json!({})), "temperature is an object; it has to be a number"),
        (with("temperature", json!(true)), "temperature is true; it has to be a number"),
        (with("top_p", json!(1e300)), "top_p is the number 1e+300"),
        (with("stream", json!("true")), "stream is the string \"true\"; it has to be true or false"),
        (with("echo", json!(1)), "echo is the number 1; it has to be true or false"),
        (with("model", json!(1)), "model is the number 1; it has to be a string"),
        (with("stop", json!(5)), "stop is the number 5; it has to be a string or an array of strings"),
        (with("stop", json!(["a", 5])), "stop[1] is the number 5; it has to be a string"),
        (with("logit_bias", json!([])), "logit_bias is an array; it has to be an object"),
        (with("logprobs", json!(true)), "logprobs is true; it has to be a whole number from 0"),
        (with("stream_options", json!(true)), "stream_options is true; it has to be an object"),
        (with("prompt", json!(5)), "prompt is the number 5; it has to be a string, an array"),
        (with("prompt", json!([1, "a"])), "prompt[1] is the string \"a\"; it has to be a token"),
        (with("prompt", json!([[1, -1]])), "prompt[0][1] is the number -1; it has to be a token"),
        (with("prompt", json!(["a", {}])), "prompt[1] is an object; it has to be a string"),
        (json!({}), "prompt is missing; it has to be a string"),
    ] {
        let error = refusal(&server, COMPLETE, &body).await;
        assert!(error["message"].as_str().unwrap().contains(message), "{error}");
    }
    let say = |message: Value| json!({ "messages": [message] });
    for (body, message) in [
        (json!({}), "messages is missing; it has to be an array"),
        (json!({"messages": "hi"}), "messages is the string \"hi\"; it has to be an array of messages"),
        (json!({"messages": ["hi"]}), "messages[0] is the string \"hi\"; it has to be an object"),
        (say(json!({"content": "x"})), "messages[0] has no role"),
        (say(json!({"role": 1, "content": "x"})), "messages[0].role is the number 1; it has to be a string"),
        (say(json!({"role": "user"})), "messages[0].content is missing"),
        (say(json!({"role": "user", "content": null})), "messages[0].content is null"),
        (say(json!({"role": "user", "content": 5})), "messages[0].content is the number 5"),
        (say(json!({"role": "user", "content": [5]})), "messages[0].content[0] has no type"),
        (say(json!({"role": "user", "content": [{"type": "image_url"}]})), "the type \"image_url\""),
        (say(json!({"role": "user", "content": [{"type": "text"}]})), "content[0].text is null"),
        (say(json!({"role": "assistant", "content": null})), "only beside tool_calls"),
        (say(json!({"role": "assistant", "tool_calls": []})), "only beside tool_calls"),
        (say(json!({"role": "assistant", "tool_calls": "x"})), "tool_calls is the string \"x\""),
    ] {
        let error = refusal(&server, CHAT, &body).await;
        assert!(error["message"].as_str().unwrap().contains(message), "{error}");
        assert_eq!(error["param"].as_str().unwrap().split('[').next(), Some("messages"), "{error}");
    }
    server.stop().await;
}

/// OpenAI's answers with calls have `"content": null`, and its clients send them back; its schema of a
/// request allows to leave content out beside `tool_calls` or `function_call`.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_conversation_with_calls_goes_on() {
    let server = Running::start(options()).await;
    let call = json!([{"id": "c1", "type": "function", "function": {"name": "clock", "arguments": "{}"}}]);
    let count = async |said: Value| {
        let messages = json!([
            {"role": "user", "content": "When?"}, said,
            {"role": "tool", "tool_call_id": "c1", "content": "12:00"}, {"role": "user", "content": "Thanks"},
        ]);
        server.ask(CHAT, &json!({"messages": messages, "max_tokens": 1})).await["usage"]["prompt_tokens"]
            .clone()
    };
    let empty = count(json!({"role": "assistant", "content": "", "tool_calls": call})).await;
    let rest = "<user>When?\n<assistant>\n<tool>12:00\n<user>Thanks\n<assistant>";
    assert_eq!(empty, rest.len());
    for said in [
        json!({"role": "assistant", "content": null, "tool_calls": call}),
        json!({"role": "assistant", "tool_calls": call}),
        json!({"role": "assistant", "content": null, "tool_calls": call, "refusal": null, "audio": null}),
        json!({"role": "assistant", "content": null, "function_call": {"name": "clock", "arguments": "{}"}}),
        json!({"role": "assistant", "content": [], "tool_calls": call}),
    ] {
        assert_eq!(count(said.clone()).await, empty, "{said}");
    }
    // A refusal is what was said.
    for said in [
        json!({"role": "assistant", "content": null, "refusal": "No."}),
        json!({"role": "assistant", "content": [{"type": "refusal", "refusal": "No."}]}),
    ] {
        assert_eq!(count(said.clone()).await, rest.len() + "No.".len(), "{said}");
    }
    server.stop().await;
}

/// A tokenizer that learnt a token after its model was made, as training scripts that add `[PAD]` leave it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_without_an_embedding_is_the_clients_error() {
    let plain = tokenizer(true);
    let mut json: Value = serde_json::from_str(&plain.to_json().unwrap()).unwrap();
    // Added tokens are numbered on; the last is the first without a row.
    for id in 257..=272 {
        let content = if id == 272 { "[PAD]".to_owned() } else { format!("<{id}>") };
        json["added_tokens"].as_array_mut().unwrap().push(json!({
            "id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false, "special": true,
        }));
    }
    let grown = sharp_model::tokenizer::Tokenizer::from_parts(
        "tokenizer.json".as_ref(),
        json.to_string().as_bytes(),
        plain.config().clone(),
        &[0],
    )
    .unwrap();
    assert_eq!(grown.encode("[PAD]", false).unwrap(), [272]);
    let server = Running::start_with(options(), grown).await;
    let text = "What does [PAD] mean?";
    for (path, body) in [
        (COMPLETE, json!({ "prompt": text })),
        (COMPLETE, json!({ "prompt": [text, "x"] })),
        (COMPLETE, json!({ "prompt": [272] })),
        (CHAT, json!({"messages": [{"role": "user", "content": text}]})),
    ] {
        let error = refusal(&server, path, &body).await;
        let message = error["message"].as_str().unwrap();
        assert!(message.contains("\"[PAD]\" is token 272") && message.contains("leave it out"), "{error}");
    }
    server.stop().await;
}
