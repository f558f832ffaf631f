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

/// Returns the name of a row of the results in words.
pub(super) fn row_name(name: &str) -> String {
    let words = match name {
        "original" => "original",
        "direct" => "untrained",
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
}
