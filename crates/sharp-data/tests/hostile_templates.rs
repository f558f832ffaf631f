//! Templates of models that nobody trusts: whatever they do costs one request, never the process.

use std::time::{Duration, Instant};

use serde_json::Map;
use sharp_data::{Chat, Message};

/// The most that a template may have.
const BYTES: usize = 64 << 10;

fn render(template: &str) -> Result<String, String> {
    let chat = Chat::new(template, Map::new()).map_err(|e| e.to_string())?;
    chat.render(&[Message::new("user", "a")], true).map_err(|e| e.to_string())
}

/// A template that makes values about as deep as its fuel allows, and then does something with them.
fn deep(then: &str) -> String {
    let nested = |name: &str, levels: usize| {
        format!("{{% set ns.{name} = {}ns.{name}{} %}}", "[".repeat(levels), "]".repeat(levels))
    };
    let both = if then.contains("ns.y") { nested("x", 8) + &nested("y", 8) } else { nested("x", 16) };
    format!("{{% set ns = namespace(x=[], y=[]) %}}{{% for i in range(9999) %}}{both}{{% endfor %}}{then}")
}

#[test]
fn deep_values_cost_one_request() {
    for then in [
        "",
        "{{ ns.x }}",
        "{{ ns.x | tojson }}",
        "{{ ns.x == ns.y }}",
        "{{ ns.x in [ns.y] }}",
        "{{ ns.x | string | length }}",
        "{{ [ns.x, ns.y] | sort }}",
        "{{ [ns.x, ns.y] | unique | list }}",
        "{{ {ns.x: 1} }}",
        "{{ raise_exception(ns.x) }}",
        "{{ [ns.x].index(ns.y) }}",
        "{{ '%s' % ns.x }}",
        "{{ ns.x | pprint }}",
        "{{ ns.x | tojson(indent=4) }}",
    ] {
        // Too deep, out of fuel or a value that nobody wanted: anything but the end of the process.
        let outcome = render(&deep(then));
        assert!(outcome.as_ref().map_or(true, |text| text.len() < 40 << 20), "{then}");
    }
    let endless = deep("").replace("{% for i", "{% for j in range(9999) %}{% for i") + "{% endfor %}";
    assert!(render(&endless).unwrap_err().contains("fuel"));
}

#[test]
fn long_expressions_compile_or_are_refused() {
    for (begin, again, end) in [
        ("{{ 1", "+1", " }}"),
        ("{{ 'a'", "~'a'", " }}"),
        ("{{ 'a'", "|upper", " }}"),
        ("{{ a", ".b", " }}"),
        ("{{ a", "[0]", " }}"),
        ("{{ a", "()", " }}"),
        ("{{ ", "not ", "1 }}"),
        ("{{ ", "- ", "1 }}"),
        ("{{ 1", " and 1", " }}"),
        ("{{ 1", " if 1 else 1", " }}"),
        ("{{ 1", " is true", " }}"),
        ("{{ ", "(", "1"),
        ("{{ ", "[", "1"),
        ("{% if 1 %}", "{% elif 1 %}", "{% endif %}"),
        ("", "{% if 1 %}", ""),
        ("", "{% for a in b %}", ""),
        ("", "{{ 1 }}", ""),
        ("{{ ", "'%s' % (", "1"),
        ("{{ ", "'", " }}"),
    ] {
        let count = (BYTES - begin.len() - end.len()) / again.len();
        let template = format!("{begin}{}{end}", again.repeat(count));
        let begun = Instant::now();
        drop(render(&template));
        assert!(begun.elapsed() < Duration::from_secs(60), "{begin}{again}");
    }
}

#[test]
fn long_templates_are_refused_in_no_time() {
    let refused = render(&"{%".repeat(1 << 20)).unwrap_err();
    assert!(refused.contains("2097152 bytes") && refused.contains("65536"), "{refused}");
    assert!(render(&"{%".repeat(BYTES / 2)).is_err());
}
