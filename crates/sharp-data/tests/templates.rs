//! Chat templates as jinja2 renders them: Python's methods, jinja2's tests, whole templates with both
//! (`tests/golden/templates/gen.py`); and where an answer ends.

use std::path::Path;

use serde_json::{Map, Value, json};
use sharp_data::Chat;
use sharp_model::tokenizer::Tokenizer;

fn cases() -> Value {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/templates/cases.json");
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

fn render(template: &str, context: &Value) -> String {
    let chat = Chat::new(template, Map::new()).unwrap();
    let messages = context.get("messages").cloned().unwrap_or_else(|| json!([]));
    match chat.render_json(&messages, false, context.as_object().unwrap()) {
        Ok(text) => text,
        Err(e) => e.to_string(),
    }
}

/// Compares every expression on every value with what jinja2 made of it.
fn hold(expressions: &Value, values: &Value, render: impl Fn(&str, &Value) -> String) {
    let mut wrong = Vec::new();
    for (expression, wants) in expressions.as_object().unwrap() {
        for (value, want) in values.as_array().unwrap().iter().zip(wants.as_array().unwrap()) {
            let got = render(expression, value);
            if got != want.as_str().unwrap() {
                wrong.push(format!("{expression} of {value}: {got}, jinja2 {want}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{} differ:\n{}", wrong.len(), wrong.join("\n"));
}

#[test]
fn methods_of_strings_are_pythons() {
    let cases = cases();
    hold(&cases["methods"], &cases["texts"], |method, text| {
        render(&format!("{{{{ t.{method} | tojson }}}}"), &json!({ "t": text }))
    });
}

#[test]
fn tests_are_jinja2s() {
    let cases = cases();
    hold(&cases["tests"], &cases["values"], |test, value| {
        render(&format!("{{{{ {test} }}}}"), &json!({ "v": value }))
    });
}

#[test]
fn whole_templates_render_as_jinja2_renders_them() {
    for case in cases()["whole"].as_array().unwrap() {
        let template = case["template"].as_str().unwrap();
        assert_eq!(render(template, &case["context"]), case["want"], "{template}");
    }
}

#[test]
fn arguments_as_openai_sends_them_are_what_templates_expect() {
    let whole = cases()["whole"].as_array().unwrap().clone();
    let calls = whole.iter().filter(|case| case["context"].to_string().contains("\"arguments\""));
    let mut texts = 0;
    for case in calls {
        let mut context = case["context"].clone();
        for message in context["messages"].as_array_mut().unwrap() {
            for call in message.get_mut("tool_calls").and_then(Value::as_array_mut).into_iter().flatten() {
                let arguments = &mut call["function"]["arguments"];
                if arguments.is_object() {
                    *arguments = json!(arguments.to_string());
                    texts += 1;
                }
            }
        }
        let template = case["template"].as_str().unwrap();
        assert_eq!(render(template, &context), case["want"], "{template}");
    }
    assert!(texts > 1);
}

#[test]
fn what_python_refuses_is_an_error() {
    for call in ["partition('')", "rsplit('')", "index('z')", "ljust(9, '')", "swapcase(1)", "nothing()"] {
        let chat = Chat::new(&format!("{{{{ 'abc'.{call} }}}}"), Map::new()).unwrap();
        assert!(chat.render(&[], false).is_err(), "{call}");
    }
}

/// A tokenizer of one word, and the special tokens given.
fn tokenizer(special: &[&str], template: &str) -> Tokenizer {
    let added: Vec<Value> = (1..)
        .zip(special)
        .map(|(id, text)| {
            json!({"id": id, "content": text, "single_word": false, "lstrip": false, "rstrip": false,
                   "normalized": false, "special": true})
        })
        .collect();
    let json = json!({"version": "1.0", "added_tokens": added, "model": {"type": "BPE", "vocab": {"a": 0}, "merges": []}});
    let config = json!({ "chat_template": template });
    let config = config.as_object().unwrap().clone();
    Tokenizer::from_parts(Path::new("tokenizer.json"), json.to_string().as_bytes(), config, &[]).unwrap()
}

#[test]
fn the_template_says_what_ends_a_turn() {
    let turn = "{% for m in messages %}<|at|>{{ m.role }}\n{{ m.content }}<|over|>\n{% endfor %}";
    let unasked = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{% endfor %}<|user|>";
    let open = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{% endfor %}";
    let after = "{% for m in messages %}[{{ m.content }}]{% if m.role == 'assistant' %}<|over|>{% endif %}{% endfor %}";
    let close = "{% for m in messages %}<|at|>{{ m.content | upper }}<|over|>{% endfor %}";
    for (template, end) in [
        (turn, Some("<|over|>")),
        (unasked, None),
        (open, None),
        (after, None),
        (close, None),
        ("{% for m in messages %}", None),
    ] {
        let tokenizer = tokenizer(&["<|at|>", "<|over|>", "<|user|>", "<|assistant|>"], template);
        let found = Chat::from_tokenizer(&tokenizer).unwrap().turn_end(&tokenizer);
        assert_eq!(found, end.and_then(|end| tokenizer.token_id(end)), "{template}");
    }
}

#[test]
fn a_content_of_parts_is_one_text_to_a_template_that_takes_one() {
    let talk = json!([
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "c"}]},
    ]);
    let texts = "{% for m in messages %}{{ m.role }}:{{ m.content }};{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}";
    let doc = Chat::new(texts, Map::new()).unwrap().document(&talk).unwrap();
    assert_eq!((doc.prompt.as_str(), doc.completion.as_str()), ("user:ab;assistant:", "c;"));
    let parts = "{% for m in messages %}{{ m.role }}:{% for p in m.content %}({{ p.text }}){% endfor %};{% endfor %}\
                 {% if add_generation_prompt %}assistant:{% endif %}";
    let doc = Chat::new(parts, Map::new()).unwrap().document(&talk).unwrap();
    assert_eq!((doc.prompt.as_str(), doc.completion.as_str()), ("user:(a)(b);assistant:", "(c);"));
    let picture =
        json!([{"role": "user", "content": [{"type": "image_url"}]}, {"role": "assistant", "content": "c"}]);
    let error = Chat::new(texts, Map::new()).unwrap().document(&picture).unwrap_err().to_string();
    assert!(error.contains("message 1") && error.contains("image_url"), "{error}");
}
