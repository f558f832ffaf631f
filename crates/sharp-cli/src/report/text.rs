//! Numbers and words as the report writes them.

/// A count with thousands separated: `134,515,008`.
pub(super) fn count(n: u64) -> String {
    let digits = n.to_string();
    let mut out = String::with_capacity(digits.len() + digits.len() / 3);
    for (i, c) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(c);
    }
    out
}

/// A perplexity: enough figures to compare, none that mean nothing.
pub(super) fn perplexity(v: f64) -> String {
    if !v.is_finite() {
        return "not finite".into();
    }
    match v {
        v if v >= 1e15 => format!("{v:.1e}"),
        v if v >= 1000.0 => count(v.round() as u64),
        v if v >= 100.0 => format!("{v:.0}"),
        v => format!("{v:.2}"),
    }
}

/// A duration: `1 h 02 min`, `3 min 07 s`, `4.2 s`.
pub(super) fn seconds(s: f64) -> String {
    if !s.is_finite() || s < 0.0 {
        return "-".into();
    }
    let whole = s.round() as u64;
    match whole {
        3600.. => format!("{} h {:02} min", whole / 3600, whole % 3600 / 60),
        60.. => format!("{} min {:02} s", whole / 60, whole % 60),
        _ if s >= 1.0 => format!("{s:.1} s"),
        _ => format!("{:.1} ms", s * 1e3),
    }
}

/// A fraction in percent.
pub(super) fn percent(v: f64) -> String {
    format!("{:.1} %", 100.0 * v)
}

/// What a key of a measurement is called, and how its value is written, by the unit its name ends in.
pub(super) fn labelled(key: &str, value: f64) -> (String, String) {
    type Written = fn(f64) -> String;
    let known: [(&str, Written); 8] = [
        ("_tokens_per_second", |v| format!("{v:.1} tokens/s")),
        ("_bytes_per_second", |v| format!("{:.1} GB/s", v / 1e9)),
        ("_bytes", |v| crate::output::bytes(v.max(0.0) as u64)),
        ("_seconds", seconds),
        ("_ms", |v| seconds(v / 1e3)),
        ("_s", seconds),
        ("_fraction", percent),
        ("_gb_s", |v| format!("{v:.1} GB/s")),
    ];
    let words = |key: &str| key.replace('_', " ");
    if key.contains("bytes_per_token") {
        return (
            words(key).replace("bytes per token", "per token"),
            crate::output::bytes(value.max(0.0) as u64),
        );
    }
    if key == "bytes" {
        return ("size".into(), crate::output::bytes(value.max(0.0) as u64));
    }
    for (ending, write) in known {
        if let Some(stem) = key.strip_suffix(ending).filter(|s| !s.is_empty()) {
            return (words(stem), write(value));
        }
    }
    let text = if value.fract() == 0.0 && value.abs() < 1e15 && value >= 0.0 {
        count(value as u64)
    } else {
        sharp_similarity::number(value)
    };
    (words(key), text)
}

/// The name of a row of the results, in words.
pub(super) fn row_name(name: &str) -> String {
    let words = match name {
        "original" => "original",
        "direct" => "direct sharing, no recovery",
        "slw" => "SLW only",
        "sft" => "SFT only",
        "slw_sft" => "SLW + SFT",
        "slw_sft_q4" => "SLW + SFT, quantised (q4)",
        "unrepaired_q4" => "SLW + SFT, quantised (q4), not repaired",
        "unrepaired_q8" => "SLW + SFT, quantised (q8), not repaired",
        "slw_sft_q8" => "SLW + SFT, quantised (q8)",
        "original_q4" => "original, quantised (q4)",
        "original_q8" => "original, quantised (q8)",
        other => return other.replace('_', " "),
    };
    words.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_read_well() {
        assert_eq!(count(134_515_008), "134,515,008");
        assert_eq!(count(7), "7");
        assert_eq!(perplexity(21.512), "21.51");
        assert_eq!(perplexity(1_234_567.0), "1,234,567");
        assert_eq!(perplexity(f64::INFINITY), "not finite");
        assert_eq!(seconds(3725.0), "1 h 02 min");
        assert_eq!(seconds(187.0), "3 min 07 s");
        assert_eq!(seconds(0.0123), "12.3 ms");
    }

    #[test]
    fn units_come_from_the_ending_of_a_key() {
        assert_eq!(labelled("decode_tokens_per_second", 101.26), ("decode".into(), "101.3 tokens/s".into()));
        assert_eq!(labelled("peak_memory_bytes", 98_362_432.0), ("peak memory".into(), "98.4 MB".into()));
        assert_eq!(labelled("load_s", 0.0021), ("load".into(), "2.1 ms".into()));
        assert_eq!(labelled("roofline_fraction", 0.734), ("roofline".into(), "73.4 %".into()));
        assert_eq!(labelled("bytes_per_token", 5e6), ("per token".into(), "5.0 MB".into()));
        assert_eq!(labelled("threads", 2.0), ("threads".into(), "2".into()));
    }
}
